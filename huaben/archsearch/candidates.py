"""What may be proposed: one representative of every set of isomorphic architectures, listed or drawn.

A listed space keeps the first architecture of every canonical form in the space's own order; in cell spaces that is the
one with the fewest operations, so twins never cost budget twice. A larger space is sampled anew for every round: random
architectures and mutants of the best ones so far.

Source: section 1.3 (canonical form) and question 7 of section 3 of our reading of Arch-Graph (arXiv 2204.05941).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, ShapeError
from .base import Arch, SearchSpace
from .graphs import GraphBatch

Features: TypeAlias = Callable[[Sequence[Arch]], npt.NDArray[np.floating]]
"""Architectures to numbers (N, e), such as log FLOPs; NaN where unknown."""

MUTANTS = 0.5
"""Share of a drawn pool that is mutated from the best architectures instead of sampled."""


class Candidates:
    """The candidates of one space; immutable, so that many searches can share it.

    Args:
        space: what is searched.
        limit: spaces of at most so many architectures are listed.
        pool_size: how many are drawn where the space is not listed.
        seed: kept for spaces that are drawn: the features are standardised over a sample.
        features: extra numbers per architecture for learned methods; standardised here, unknown ones set to the mean.
        archs: only these may be proposed, such as the rows of a table; twins still count once.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        limit: int = 5000,
        pool_size: int = 4096,
        seed: int = 0,
        features: Features | None = None,
        archs: Iterable[Arch] | None = None,
    ) -> None:
        self.space, self.pool_size, self.seed = space, pool_size, seed
        self.features: Features | None = features
        self.given = archs is not None
        self.listed = self.given or space.size <= limit
        self.archs: tuple[Arch, ...] = ()
        self.keys: tuple[str, ...] = ()
        self.index: dict[str, int] = {}
        if self.listed:
            first: dict[str, Arch] = {}
            for arch in space.enumerate() if archs is None else sorted(space.check(arch) for arch in archs):
                first.setdefault(space.canonical(arch), arch)
            self.archs, self.keys = tuple(first.values()), tuple(first)
            self.index = {key: number for number, key in enumerate(self.keys)}
        self._places = {arch: number for number, arch in enumerate(self.archs)}

    def with_features(self, features: Features) -> Candidates:
        """Return the same candidates with extra features, without listing them again."""
        twin = Candidates.__new__(Candidates)
        for name in ("space", "pool_size", "seed", "given", "listed", "archs", "keys", "index", "_places"):
            setattr(twin, name, getattr(self, name))
        twin.features = features
        return twin

    def __len__(self) -> int:
        """Return the number of listed candidates, or 0."""
        return len(self.archs)

    def key(self, arch: Arch) -> str:
        """Return the canonical form."""
        place = self._places.get(arch)
        return self.space.canonical(arch) if place is None else self.keys[place]

    def holds(self, key: str) -> bool:
        """Return whether an architecture of this canonical form may be proposed."""
        return not self.listed or key in self.index

    def draw(
        self, rng: np.random.Generator, taken: Collection[str], parents: Sequence[Arch] = ()
    ) -> tuple[list[Arch], list[str]]:
        """Return the candidates of one round and their keys: all listed ones that are not taken, or a drawn pool.

        Args:
            rng: of the draw; unused for a listed space.
            taken: canonical forms that must not come back.
            parents: architectures to mutate, best first.
        """
        if self.listed:
            pairs = [(arch, key) for arch, key in zip(self.archs, self.keys, strict=True) if key not in taken]
            return [arch for arch, _ in pairs], [key for _, key in pairs]
        found: dict[str, Arch] = {}
        for number in range(2 * self.pool_size):
            if len(found) >= self.pool_size:
                break
            if parents and number < MUTANTS * self.pool_size:
                arch = self._mutant(parents[number % len(parents)], rng)
            else:
                arch = self.space.sample(rng)
            key = self.key(arch)
            if key not in taken:
                found.setdefault(key, arch)
        return list(found.values()), list(found)

    def random(self, rng: np.random.Generator, taken: Collection[str], count: int) -> list[Arch]:
        """Return up to ``count`` distinct random candidates that are not taken, uniform over canonical forms if listed."""
        if self.listed:
            free = [number for number, key in enumerate(self.keys) if key not in taken]
            if not free:
                return []
            return [self.archs[free[int(pick)]] for pick in rng.choice(len(free), min(count, len(free)), replace=False)]
        found: dict[str, Arch] = {}
        for _ in range(1000 + 20 * count):
            if len(found) == count:
                break
            arch = self.space.sample(rng)
            key = self.key(arch)
            if key not in taken:
                found.setdefault(key, arch)
        return list(found.values())

    def encode(self, archs: Sequence[Arch]) -> GraphBatch:
        """Return graphs with their standardised extra features; a listed space is encoded once."""
        if self.listed:
            places = [self._places.get(tuple(arch), -1) for arch in archs]
            if min(places, default=0) >= 0:
                return self._all.take(np.asarray(places, dtype=np.int64))
        return self._with_features(archs)

    @functools.cached_property
    def _all(self) -> GraphBatch:
        return self._with_features(self.archs)

    @functools.cached_property
    def _scale(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean and standard deviation (e) of the features over the space, or over a sample of it."""
        assert self.features is not None
        rng = np.random.default_rng(self.seed)
        values = self._raw(self.archs if self.listed else [self.space.sample(rng) for _ in range(1000)])
        if np.isnan(values).all(axis=0).any():
            raise ConfigError("an extra feature is unknown for every architecture", hint="leave that feature out")
        spread = np.nanstd(values, axis=0)
        return np.nanmean(values, axis=0), np.where(spread > 0, spread, 1.0)

    def _raw(self, archs: Sequence[Arch]) -> npt.NDArray[np.float64]:
        assert self.features is not None
        values = np.asarray(self.features(archs), dtype=np.float64)
        if values.ndim != 2 or len(values) != len(archs):
            raise ShapeError(f"extra features are {values.shape}, expected ({len(archs)}, number of features)")
        return np.where(np.isfinite(values), values, np.nan)

    def _with_features(self, archs: Sequence[Arch]) -> GraphBatch:
        graphs = self.space.encode(archs)
        if self.features is None:
            return graphs
        mean, spread = self._scale
        return graphs.with_extra(np.nan_to_num((self._raw(archs) - mean) / spread).astype(np.float32))

    def _mutant(self, arch: Arch, rng: np.random.Generator) -> Arch:
        """Return a neighbour one to three steps away."""
        for _ in range(int(rng.integers(1, 4))):
            arch = self.space.mutate(arch, rng)
        return arch


def log_features(columns: Mapping[str, Mapping[Arch, float]]) -> Features:
    """Return the features that are the logarithms of ``columns``: name to {architecture: positive number}."""

    def logs(archs: Sequence[Arch]) -> npt.NDArray[np.float64]:
        rows = [[column.get(tuple(arch), np.nan) for column in columns.values()] for arch in archs]
        values = np.asarray(rows, dtype=np.float64).reshape(len(archs), len(columns))
        return np.log(np.where(values > 0, values, np.nan))

    return logs
