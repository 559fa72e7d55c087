"""What every search space offers: axes, checking, text, canonical forms, sampling, mutation and graphs."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from ..errors import ConfigError, DataError
from .graphs import GraphBatch

Arch = tuple[int, ...]
"""An architecture: for each axis of its space, the index of the choice taken."""

Rule = Literal["none", "strict", "loose"]
"""How far :meth:`SearchSpace.canonical` simplifies; see :class:`~huaben.archsearch.cells.CellSpace`."""

Value = str | int | float | bool
"""One choice of an axis."""

ENUMERATION_LIMIT = 1_000_000
"""The largest space that is enumerated; larger ones are sampled and mutated."""

SAMPLE_TRIES = 10_000
"""Draws before a space whose constraints refuse nearly everything is reported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One decision.

    Attributes:
        name: unique in its space.
        choices: what can be chosen; an architecture holds an index into them.
        kind: whether the choices have no order, an order, or are whole numbers in ascending order.
        parent: name of an earlier axis that decides whether this one exists; None if it always does.
        when: the choices of ``parent`` under which it exists.
    """

    name: str
    choices: tuple[Value, ...]
    kind: Literal["categorical", "ordinal", "integer"] = "categorical"
    parent: str | None = None
    when: tuple[Value, ...] = ()


def place_of(value: Value, choices: Sequence[Value]) -> int | None:
    """Return the index of ``value`` in ``choices``; None if it is not there. True is not 1."""
    for place, choice in enumerate(choices):
        if choice == value and isinstance(choice, bool) == isinstance(value, bool):
            return place
    return None


class SearchSpace(ABC):
    """A finite set of architectures.

    Spaces are immutable after construction, hold no random state and can be shared between threads.

    Attributes:
        name: short name, for reports.
        axes: one per position of an architecture.
        rule: the default of :meth:`canonical`.
    """

    name: str
    axes: tuple[Axis, ...]
    rule: Rule = "strict"

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of architectures, twins counted apart."""

    @abstractmethod
    def format(self, arch: Arch) -> str:
        """Return the architecture's text, which :meth:`parse` reads back."""

    @abstractmethod
    def parse(self, text: str) -> Arch:
        """Return the architecture of a text.

        Raises:
            DataError: for text of another form, or of an architecture outside the space.
        """

    @abstractmethod
    def encode(self, archs: Sequence[Arch], *, extra: np.ndarray | Tensor | None = None) -> GraphBatch:
        """Return the architectures as graphs, all at once; ``extra`` (N, e) goes along.

        Raises:
            DataError: for an architecture outside the space, naming its place in ``archs``.
            ShapeError: for ``extra`` of another shape.
        """

    @abstractmethod
    def definition(self) -> dict[str, Any]:
        """Return the JSON object from which :func:`~huaben.archsearch.spaces_json.load_space` builds this space."""

    @abstractmethod
    def sample(self, rng: np.random.Generator) -> Arch:
        """Draw an architecture, each equally likely.

        Raises:
            ConfigError: if the constraints leave too little to find one by drawing.
        """

    @abstractmethod
    def mutate(self, arch: Arch, rng: np.random.Generator) -> Arch:
        """Return a neighbour: one decision changed, with what must follow from it; never ``arch`` itself.

        Raises:
            ConfigError: if the space holds no other architecture within reach.
        """

    @abstractmethod
    def _walk(self) -> Iterator[Arch]:
        """Yield every architecture in ascending order."""

    def _constrain(self, arch: Arch) -> Arch:
        """Return the architecture, whose codes are in range, in the form the space keeps it, or raise DataError."""
        return arch

    def check(self, arch: Sequence[int]) -> Arch:
        """Return ``arch`` as the space writes it: a tuple of ints, conditional axes that do not exist at 0.

        Raises:
            DataError: for a wrong length, an unknown choice (naming the position), or a broken constraint.
        """
        codes = tuple(arch)
        if len(codes) != len(self.axes):
            raise DataError(
                f"{self.name}: architecture {codes} has {len(codes)} positions, expected {len(self.axes)}",
                hint=f"the positions are {', '.join(axis.name for axis in self.axes[:12])}",
            )
        clean = []
        for position, (code, axis) in enumerate(zip(codes, self.axes, strict=True)):
            if isinstance(code, bool) or not isinstance(code, (int, np.integer)) or not 0 <= code < len(axis.choices):
                raise DataError(
                    f"{self.name}: position {position} ({axis.name}) of {codes} is {code!r},"
                    f" expected 0 to {len(axis.choices) - 1}",
                    hint="the choices are " + ", ".join(f"{i} = {c}" for i, c in enumerate(axis.choices[:12])),
                )
            clean.append(int(code))
        return self._constrain(tuple(clean))

    def canonical(self, arch: Arch, *, rule: Rule | None = None) -> str:
        """Return a text that is the same for architectures that are the same under ``rule`` (default: the space's).

        Raises:
            DataError: for an architecture outside the space.
        """
        return self.format(self.check(arch))

    def enumerate(self) -> Iterator[Arch]:
        """Yield every architecture, twins included, in ascending order.

        Raises:
            ConfigError: if there are more than ``ENUMERATION_LIMIT``.
        """
        if self.size > ENUMERATION_LIMIT:
            raise ConfigError(
                f"{self.name} holds {self.size} architectures, more than {ENUMERATION_LIMIT} to enumerate",
                hint="use sample and mutate",
            )
        return self._walk()

    def sample_distinct(self, count: int, rng: np.random.Generator, *, exclude: Collection[str] = ()) -> list[Arch]:
        """Draw ``count`` architectures whose canonical forms differ from each other and from ``exclude``.

        Returns fewer where the space has no more (or where 100 draws in a row bring nothing new in a large space).
        """
        seen: set[str] = set(exclude)
        found: list[Arch] = []
        if self.size <= max(4 * count, 4096):
            every = list(self.enumerate())
            for place in rng.permutation(len(every)):
                if len(found) == count:
                    break
                if (key := self.canonical(every[place])) not in seen:
                    seen.add(key)
                    found.append(every[place])
            return found
        misses = 0
        while len(found) < count and misses < 100:
            arch = self.sample(rng)
            if (key := self.canonical(arch)) in seen:
                misses += 1
            else:
                misses = 0
                seen.add(key)
                found.append(arch)
        return found

    def values(self, arch: Arch) -> dict[str, Value]:
        """Return axis name to choice, without the conditional axes that do not exist in ``arch``."""
        checked = self.check(arch)
        return {axis.name: axis.choices[code] for axis, code in zip(self.axes, checked, strict=True)}

    def from_values(self, values: Mapping[str, Value]) -> Arch:
        """Return the architecture of :meth:`values`.

        Raises:
            DataError: for an unknown or missing axis, or a value that is none of its choices.
        """
        names = [axis.name for axis in self.axes]
        if set(values) != set(names):
            odd = sorted(set(values) ^ set(names), key=str)
            raise DataError(
                f"{self.name}: axis {odd[0]!r} is {'missing' if odd[0] in names else 'unknown'}",
                hint=f"the axes are {', '.join(names[:12])}",
            )
        return self.check([self._code(axis, values[axis.name]) for axis in self.axes])

    def _code(self, axis: Axis, value: Value) -> int:
        code = place_of(value, axis.choices)
        if code is None:
            raise DataError(
                f"{self.name}: {value!r} is no choice of axis {axis.name!r}",
                hint=f"its choices are {', '.join(map(repr, axis.choices[:12]))}",
            )
        return code

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that identify the space's definition."""
        text = json.dumps(self.definition(), sort_keys=True, ensure_ascii=False)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SearchSpace) and self.definition() == other.definition()

    def __hash__(self) -> int:
        return hash(self.fingerprint())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.size} architectures)"

    def _codes(self, archs: Sequence[Arch]) -> np.ndarray:
        """Return checked architectures as int64 (N, axes), naming the place of a wrong one."""
        try:
            codes = np.asarray(list(archs), dtype=object).reshape(len(archs), -1)
            wide = np.asarray(codes, dtype=np.int64)
            plain = codes.shape == (len(archs), len(self.axes)) and bool((wide == codes).all())
        except (ValueError, TypeError, OverflowError):
            plain = False
        if len(archs) == 0:
            return np.zeros((0, len(self.axes)), dtype=np.int64)
        if plain:
            limits = np.array([len(axis.choices) for axis in self.axes])
            plain = bool(((wide >= 0) & (wide < limits)).all())
        if plain and type(self)._constrain is SearchSpace._constrain:
            return wide
        checked = []
        for place, arch in enumerate(archs):
            try:
                checked.append(self.check(arch))
            except DataError as error:
                raise DataError(f"architecture {place}: {error.message}", hint=error.hint) from error
        return np.array(checked, dtype=np.int64)
