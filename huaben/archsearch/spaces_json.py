"""Search spaces from JSON: user-defined cells, sequences and mixed axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from ..errors import ConfigError
from .base import Axis, Rule, SearchSpace, Value
from .cells import CellSpace, NASBench201, TransNASMicro
from .jsontree import Node, read_json
from .mixed import MixedSpace, integer_choices
from .sequences import Count, SequenceSpace, TransNASMacro

SPACES: dict[str, Callable[[], SearchSpace]] = {
    "transnas-micro": TransNASMicro,
    "transnas-macro": TransNASMacro,
    "nasbench201": NASBench201,
}
"""The spaces of benchmarks, by name."""

VERSION = 1


def load_space(source: str | Path | Mapping[str, Any]) -> SearchSpace:
    """Return a space from the name of a benchmark's, a JSON file, or the object such a file holds.

    A definition has ``version`` 1 and a ``type``:

    - ``cell-dag``: ``nodes``, ``ops``, ``edges``; optional ``null_op``, ``input``, ``output``, ``encode``,
      ``constraints`` (``[{"reachable": true}]``), ``rule``, ``isomorphic``. See :class:`CellSpace`.
    - ``sequence``: ``ops``, ``length`` [fewest, most]; optional ``encode``, ``separator``, ``counts`` (objects with
      ``ops``, ``min``, ``max``), ``scale``. See :class:`SequenceSpace`.
    - ``mixed``: ``axes``, objects with ``name``, ``type`` (categorical, ordinal, integer), ``choices`` or, for
      integers, ``low``, ``high`` and optionally ``step``; optional ``when`` {earlier axis: [choices]}. See
      :class:`MixedSpace`.

    and an optional ``name``.

    Raises:
        ConfigError: for an unknown name, an unreadable file or an impossible definition, starting with the JSON pointer
            of the value at fault.
    """
    if isinstance(source, Mapping):
        return _space(Node(dict(source)))
    if str(source) in SPACES:
        return SPACES[str(source)]()
    path = Path(source)
    if not path.exists():
        raise ConfigError(f"{str(source)!r} is neither a file nor a known space", hint=f"known are {', '.join(SPACES)}")
    document = read_json(path)
    try:
        return _space(document)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from error


def _space(document: Node) -> SearchSpace:
    members = document.members(("version", "type"))
    if members["version"].value != VERSION or isinstance(members["version"].value, bool):
        members["version"].fail(f"{members['version'].value!r}, this huaben reads version {VERSION}")
    builders = {"cell-dag": _cell, "sequence": _sequence, "mixed": _mixed}
    return builders[members["type"].one_of(builders)](document)


def _cell(document: Node) -> CellSpace:
    members = document.members(
        ("version", "type", "nodes", "ops", "edges"),
        ("name", "null_op", "input", "output", "encode", "constraints", "rule", "isomorphic"),
    )
    options: dict[str, Any] = {}
    for key in ("name", "encode", "null_op"):
        if key in members and not (key == "null_op" and members[key].value is None):
            options[key] = members[key].text()
    for key in ("input", "output"):
        if key in members:
            options[key] = members[key].integer()
    if "rule" in members:
        options["rule"] = cast(Rule, members["rule"].one_of(("none", "strict", "loose")))
    if "isomorphic" in members:
        options["isomorphic"] = members["isomorphic"].boolean()
    for constraint in members["constraints"].items() if "constraints" in members else ():
        options["reachable"] = constraint.members(("reachable",), ())["reachable"].boolean()
    return CellSpace(
        nodes=members["nodes"].integer(2),
        ops=_names(members["ops"]),
        edges=[[end.integer() for end in edge.items(2)] for edge in members["edges"].items()],
        **options,
    )


def _sequence(document: Node) -> SequenceSpace:
    members = document.members(("version", "type", "ops", "length"), ("name", "encode", "separator", "counts", "scale"))
    fewest, most = (end.integer(1) for end in members["length"].items(2))
    counts = []
    for entry in members["counts"].items() if "counts" in members else ():
        fields = entry.members(("ops",), ("min", "max"))
        low = fields["min"].integer(0) if "min" in fields else 0
        high = fields["max"].integer(0) if "max" in fields else most
        counts.append(Count(ops=tuple(_names(fields["ops"])), low=low, high=high))
    scale = {
        quantity: {op: factor.number() for op, factor in factors.members().items()}
        for quantity, factors in (members["scale"].members().items() if "scale" in members else ())
    }
    options = {key: members[key].text() for key in ("name", "encode", "separator") if key in members}
    return SequenceSpace(ops=_names(members["ops"]), length=(fewest, most), counts=counts, scale=scale, **options)


def _mixed(document: Node) -> MixedSpace:
    members = document.members(("version", "type", "axes"), ("name",))
    axes = [_axis(entry) for entry in members["axes"].items()]
    return MixedSpace(axes, **({"name": members["name"].text()} if "name" in members else {}))


def _axis(entry: Node) -> Axis:
    fields = entry.members(("name", "type"), ("choices", "low", "high", "step", "when"))
    kind = fields["type"].one_of(("categorical", "ordinal", "integer"))
    if kind == "integer" and "choices" not in fields:
        fields = entry.members(("name", "type", "low", "high"), ("step", "when"))
        low, high = fields["low"].integer(), fields["high"].integer()
        if high < low:
            fields["high"].fail(f"{high} is below low, {low}")
        choices: tuple[Value, ...] = integer_choices(low, high, fields["step"].integer(1) if "step" in fields else 1)
    else:
        fields = entry.members(("name", "type", "choices"), ("when",))
        choices = tuple(_value(choice) for choice in fields["choices"].items())
    parent: str | None = None
    when: tuple[Value, ...] = ()
    if "when" in fields:
        condition = fields["when"].members()
        if len(condition) != 1:
            fields["when"].fail(f"names {len(condition)} axes, expected one")
        parent, allowed = next(iter(condition.items()))
        when = tuple(_value(choice) for choice in allowed.items())
    return Axis(name=fields["name"].text(), choices=choices, kind=cast(Any, kind), parent=parent, when=when)


def _names(node: Node) -> list[str]:
    return [item.text() for item in node.items()]


def _value(node: Node) -> Value:
    if not isinstance(node.value, (str, int, float, bool)):
        node.fail("expected a text, number or truth value")
    return node.value
