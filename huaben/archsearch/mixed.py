"""Named axes of any kind, some of which exist only under a choice of another: model configurations as a space."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .base import Arch, Axis, SearchSpace, Value, place_of
from .graphs import GraphBatch


class MixedSpace(SearchSpace):
    """All assignments of choices to axes.

    An axis that does not exist (its parent chose otherwise, or does not exist itself) is 0 in an architecture and
    absent from :meth:`values` and from the text form, a JSON object of axis name to choice.

    The graph is the chain input, axes in order, output; axes that do not exist are masked and skipped, and a parent
    feeds its conditional axes directly, too. Node features: one-hot over the axes, input and output; then one-hot over
    the choices of every categorical axis; then for each ordinal or integer axis its place among the choices, from 0 to
    1. So an axis shares no feature with another.

    Args:
        axes: with parents before their conditional axes.
        name: for reports.

    Raises:
        ConfigError: for an impossible definition; messages start with the JSON pointer of the field.
    """

    def __init__(self, axes: Sequence[Axis], *, name: str = "mixed") -> None:
        self.name = name
        self.axes = tuple(axes)
        if not self.axes:
            raise ConfigError("/axes: expected at least one axis")
        names = [axis.name for axis in self.axes]
        self._parents: list[int | None] = []
        self._when: list[frozenset[int]] = []
        for place, axis in enumerate(self.axes):
            _check_axis(axis, place, names)
            parent = None if axis.parent is None else names.index(axis.parent)
            self._parents.append(parent)
            codes = [place_of(value, self.axes[parent].choices) for value in axis.when] if parent is not None else []
            for at, code in enumerate(codes):
                if code is None:
                    raise ConfigError(
                        f"/axes/{place}/when: {axis.when[at]!r} is no choice of {axis.parent!r}",
                        hint=f"its choices are {', '.join(map(repr, self.axes[parent or 0].choices))}",
                    )
            self._when.append(frozenset(code for code in codes if code is not None))

    def _exists(self, place: int, arch: Sequence[int], active: Sequence[bool]) -> bool:
        parent = self._parents[place]
        return parent is None or (active[parent] and arch[parent] in self._when[place])

    def active(self, arch: Arch) -> list[bool]:
        """Return for each axis whether it exists in the architecture."""
        exists: list[bool] = []
        for place in range(len(self.axes)):
            exists.append(self._exists(place, arch, exists))
        return exists

    @cached_property
    def _ways(self) -> list[list[int]]:
        """For each axis and choice, the number of assignments of everything conditional on it."""
        ways: list[list[int]] = [[1] * len(axis.choices) for axis in self.axes]
        for place in reversed(range(len(self.axes))):
            parent = self._parents[place]
            if parent is not None:
                for code in self._when[place]:
                    ways[parent][code] *= sum(ways[place])
        return ways

    @cached_property
    def size(self) -> int:  # type: ignore[override]
        total = 1
        for ways, parent in zip(self._ways, self._parents, strict=True):
            total *= sum(ways) if parent is None else 1
        return total

    def _constrain(self, arch: Arch) -> Arch:
        return tuple(code if exists else 0 for code, exists in zip(arch, self.active(arch), strict=True))

    def values(self, arch: Arch) -> dict[str, Value]:
        checked = self.check(arch)
        exists = self.active(checked)
        return {
            axis.name: axis.choices[code] for axis, code, here in zip(self.axes, checked, exists, strict=True) if here
        }

    def from_values(self, values: Mapping[str, Value]) -> Arch:
        names = [axis.name for axis in self.axes]
        for name in values:
            if name not in names:
                near = difflib.get_close_matches(str(name), names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"the axes are {', '.join(names)}"
                raise DataError(f"{self.name} has no axis {name!r}", hint=hint)
        codes: list[int] = []
        exists: list[bool] = []
        for place, axis in enumerate(self.axes):
            here = self._exists(place, codes, exists)
            exists.append(here)
            if here != (axis.name in values):
                reason = "is missing" if here else f"is given, but exists only where {axis.parent!r} is in {axis.when}"
                raise DataError(f"{self.name}: axis {axis.name!r} {reason}")
            codes.append(self._code(axis, values[axis.name]) if here else 0)
        return tuple(codes)

    def format(self, arch: Arch) -> str:
        return json.dumps(self.values(arch), ensure_ascii=False)

    def parse(self, text: str) -> Arch:
        try:
            values = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"{self.name}: {text!r} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise DataError(f"{self.name}: {text!r} is not a JSON object of axis names to choices")
        return self.from_values(values)

    def _walk(self) -> Iterator[Arch]:
        def extend(prefix: tuple[int, ...], exists: tuple[bool, ...]) -> Iterator[Arch]:
            place = len(prefix)
            if place == len(self.axes):
                yield prefix
                return
            here = self._exists(place, prefix, exists)
            for code in range(len(self.axes[place].choices) if here else 1):
                yield from extend((*prefix, code), (*exists, here))

        return extend((), ())

    def _draw(self, place: int, rng: np.random.Generator) -> int:
        """Draw a choice in proportion to the assignments it leaves."""
        steps = self._steps[place]
        return min(int(np.searchsorted(steps, rng.random(), side="right")), len(steps) - 1)

    @cached_property
    def _steps(self) -> list[np.ndarray]:
        """For each axis, the cumulated shares of its choices among the assignments."""
        return [np.cumsum([way / sum(ways) for way in ways]) for ways in self._ways]

    def _complete(self, fixed: Mapping[int, int], rng: np.random.Generator) -> Arch:
        """Return ``fixed`` with the axes that exist beside it drawn, and the others at 0."""
        codes: list[int] = []
        exists: list[bool] = []
        for place in range(len(self.axes)):
            exists.append(self._exists(place, codes, exists))
            codes.append(0 if not exists[-1] else fixed[place] if place in fixed else self._draw(place, rng))
        return tuple(codes)

    def sample(self, rng: np.random.Generator) -> Arch:
        return self._complete({}, rng)

    def mutate(self, arch: Arch, rng: np.random.Generator) -> Arch:
        """Return a neighbour: one axis changed (half the time to the next choice, where choices have an order), and
        the axes that come into being drawn.
        """
        arch = self.check(arch)
        exists = self.active(arch)
        open_axes = [place for place, axis in enumerate(self.axes) if exists[place] and len(axis.choices) > 1]
        if not open_axes:
            raise ConfigError(f"{self.name}: {self.format(arch)} has no neighbour", hint="give an axis more choices")
        place = open_axes[int(rng.integers(len(open_axes)))]
        code, count = arch[place], len(self.axes[place].choices)
        others = [other for other in range(count) if other != code]
        if self.axes[place].kind != "categorical" and rng.random() < 0.5:
            others = [other for other in others if abs(other - code) == 1]
        kept = {at: old for at, old in enumerate(arch) if exists[at]}
        return self._complete({**kept, place: others[int(rng.integers(len(others)))]}, rng)

    def encode(self, archs: Sequence[Arch], *, extra: np.ndarray | Tensor | None = None) -> GraphBatch:
        codes = self._codes(archs)
        count, axes = len(codes), len(self.axes)
        size = axes + 2
        mask = np.ones((count, size), dtype=bool)
        for place, parent in enumerate(self._parents):
            if parent is not None:
                mask[:, 1 + place] = mask[:, 1 + parent] & np.isin(codes[:, parent], list(self._when[place]))
        wide = sum(len(axis.choices) if axis.kind == "categorical" else 1 for axis in self.axes)
        nodes = np.zeros((count, size, axes + 2 + wide), dtype=np.float32)
        nodes[:, 0, axes], nodes[:, -1, axes + 1] = 1, 1
        rows, slot = np.arange(count), axes + 2
        for place, axis in enumerate(self.axes):
            nodes[:, 1 + place, place] = 1
            if axis.kind == "categorical":
                nodes[rows, 1 + place, slot + codes[:, place]] = 1
                slot += len(axis.choices)
            else:
                nodes[:, 1 + place, slot] = codes[:, place] / max(1, len(axis.choices) - 1)
                slot += 1
        nodes[~mask] = 0
        adjacency = np.zeros((count, size, size), dtype=np.float32)
        last = np.zeros(count, dtype=np.int64)  # the latest node of the chain
        for node in range(1, size):
            here = mask[:, node]
            adjacency[rows[here], last[here], node] = 1
            last[here] = node
        for place, parent in enumerate(self._parents):
            if parent is not None:
                adjacency[mask[:, 1 + place], 1 + parent, 1 + place] = 1
        batch = GraphBatch(
            nodes=torch.from_numpy(nodes),
            adjacency=torch.from_numpy(adjacency),
            mask=torch.from_numpy(mask),
            output=size - 1,
            extra=torch.zeros(count, 0),
        )
        return batch if extra is None else batch.with_extra(extra)

    def definition(self) -> dict[str, Any]:
        axes: list[dict[str, Any]] = []
        for axis in self.axes:
            entry: dict[str, Any] = {"name": axis.name, "type": axis.kind, "choices": list(axis.choices)}
            if axis.parent is not None:
                entry["when"] = {axis.parent: list(axis.when)}
            axes.append(entry)
        return {"version": 1, "type": "mixed", "name": self.name, "axes": axes}


def integer_choices(low: int, high: int, step: int = 1) -> tuple[int, ...]:
    """Return ``low, low + step, ...`` up to ``high``, the choices of an integer axis."""
    return tuple(range(low, high + 1, step))


def _check_axis(axis: Axis, place: int, names: Sequence[str]) -> None:
    where = f"/axes/{place}"
    if not axis.name or axis.name in names[:place]:
        raise ConfigError(f"{where}/name: {axis.name!r} is empty or repeated")
    if not axis.choices:
        raise ConfigError(f"{where}/choices: no choice")
    if axis.kind not in ("categorical", "ordinal", "integer"):
        raise ConfigError(f"{where}/type: {axis.kind!r} is none of categorical, ordinal, integer")
    for at, choice in enumerate(axis.choices):
        if not isinstance(choice, (str, int, float, bool)) or choice != choice or choice in (np.inf, -np.inf):
            raise ConfigError(f"{where}/choices/{at}: {choice!r} is not a text, number or truth value")
        if place_of(choice, axis.choices[:at]) is not None:
            raise ConfigError(f"{where}/choices/{at}: {choice!r} occurs twice")
    if axis.kind == "integer":
        whole = all(isinstance(choice, int) and not isinstance(choice, bool) for choice in axis.choices)
        if not whole or list(axis.choices) != sorted(axis.choices):  # type: ignore[type-var]
            raise ConfigError(f"{where}/choices: an integer axis has whole numbers in ascending order")
    if axis.parent is not None:
        if axis.parent not in names[:place]:
            known = ", ".join(names[:place]) or "none"
            raise ConfigError(
                f"{where}/when: {axis.parent!r} is no earlier axis", hint=f"the axes before it are {known}"
            )
        if not axis.when:
            raise ConfigError(f"{where}/when/{axis.parent}: no choice, so the axis never exists")
    elif axis.when:
        raise ConfigError(f"{where}/when: choices without the axis they belong to")
