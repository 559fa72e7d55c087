"""What the relation predictor learns from: values of architectures on tasks, and the pairs they make.

Shape letters: M members, U architectures, T tasks, K architectures of a step, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import DataError
from ..rng import numpy_stream
from .base import Arch
from .relation import RelationConfig
from .task import TaskTable

FloatArray = npt.NDArray[np.float64]

MIN_HELD_OUT = 3
MIN_IN_BAG = 4
"""Fewer distinct architectures than this teach a member nothing: it then learns from all of them."""

Observed = tuple[Sequence[Arch], Sequence[float] | FloatArray]
"""Architectures and their values, higher is better."""


def observed(table: Any) -> Observed:
    """Return a task table's architectures and values, oriented higher-is-better; a pair of both is passed through.

    Raises:
        DataError: for anything else, or if there are not as many values as architectures.
    """
    if isinstance(table, TaskTable):
        return table.archs, [table.oriented(arch) for arch in table.archs]
    if not (isinstance(table, tuple) and len(table) == 2):
        raise DataError(
            f"a source is a {type(table).__name__}, expected a TaskTable or (architectures, values)",
            hint="values are oriented so that higher is better",
        )
    archs, values = list(table[0]), np.asarray(table[1], dtype=np.float64)
    if values.shape != (len(archs),):
        raise DataError(f"{len(archs)} architectures come with values of shape {values.shape}")
    return archs, values


@dataclass(frozen=True, slots=True, eq=False)
class Observations:
    """The values of several tasks over the union of their architectures.

    Attributes:
        archs: U, each once and with a value on some task.
        values: (T, U), NaN where a task has no usable value.
    """

    archs: tuple[Arch, ...]
    values: FloatArray

    @classmethod
    def of(cls, tables: Sequence[Observed]) -> Self:
        """Join tables; a value that is not finite is left out, the mean of repeated ones is taken."""
        places: dict[Arch, int] = {}
        for archs, values in tables:
            for arch, value in zip(archs, values, strict=True):
                if np.isfinite(value):
                    places.setdefault(tuple(arch), len(places))
        total, count = np.zeros((2, len(tables), len(places)))
        for task, (archs, values) in enumerate(tables):
            for arch, value in zip(archs, values, strict=True):
                if np.isfinite(value):
                    total[task, places[tuple(arch)]] += value
                    count[task, places[tuple(arch)]] += 1
        with np.errstate(invalid="ignore"):
            return cls(tuple(places), np.where(count > 0, total / np.maximum(count, 1), np.nan))

    def join(self, other: Self) -> Observations:
        """Return both: the tasks of ``other`` come after, its new architectures too."""
        tables = [
            ([arch for arch, known in zip(part.archs, row, strict=True) if known], values[row])
            for part in (self, other)
            for values in part.values
            for row in (np.isfinite(values),)
        ]
        return Observations.of(tables)

    @property
    def num_tasks(self) -> int:
        return len(self.values)


def bag(archs: Sequence[Arch], members: int, seed: int, config: RelationConfig) -> npt.NDArray[np.int64]:
    """Return how often each member draws each architecture (M, U); 0 is held out.

    A draw depends on the seed and the architecture alone, so what a member holds out stays held out when more
    architectures arrive. With ``bootstrap`` the counts are Poisson(1), the limit of sampling with replacement.
    """
    counts = np.ones((members, len(archs)), dtype=np.int64)
    for place, arch in enumerate(archs):
        rng = numpy_stream(seed, "bag", *(int(code) for code in arch))
        counts[:, place] = rng.poisson(1.0, members) if config.bootstrap else rng.random(members) >= config.holdout
    return counts


class PairSampler:
    """Draws labelled pairs for every task and member.

    Args:
        data: values of the tasks.
        counts: (M, U) of :func:`bag`.
        config: margin, soft labels, top weight.
    """

    def __init__(self, data: Observations, counts: npt.NDArray[np.int64], config: RelationConfig) -> None:
        self.config = config
        values = data.values
        known = np.isfinite(values)
        self.usable = known.sum(1) >= 2
        chances = counts[:, None, :] * known  # (M, T, U)
        held = (chances == 0) & known
        thin = (chances > 0).sum(2) < np.minimum(MIN_IN_BAG, known.sum(1))
        few = held.sum(2) < MIN_HELD_OUT
        everything = thin | few  # too little to learn from, or to judge by: learn from all, hold out none
        if not config.bootstrap:
            chances = np.where(everything[:, :, None], known, chances)
        else:
            chances = np.where(thin[:, :, None], known, chances)
        self.held = held & ~everything[:, :, None]
        self.chances = torch.as_tensor(chances, dtype=torch.float32)
        low = np.nanmin(np.where(known, values, np.inf), axis=1, keepdims=True)
        high = np.nanmax(np.where(known, values, -np.inf), axis=1, keepdims=True)
        spread = np.where(self.usable[:, None] & (high > low), high - low, 1.0)
        scaled = np.where(known, (values - np.where(np.isfinite(low), low, 0)) / spread, 0.0)
        centred = np.where(
            known, scaled - (scaled * known).sum(1, keepdims=True) / known.sum(1, keepdims=True).clip(1), 0
        )
        deviation = np.sqrt((centred**2).sum(1) / known.sum(1).clip(1))
        top = np.zeros_like(known)
        for task, row in enumerate(known):
            if row.any():
                top[task] = row & (scaled[task] >= np.quantile(scaled[task][row], 0.9))
        # Who wins is decided by rank, so that no rescaling can turn a difference into a tie.
        rank = np.stack([np.unique(row, return_inverse=True)[1].reshape(-1) for row in np.where(known, values, 0.0)])
        self._rank, self._scaled, self._known, self._top = (torch.as_tensor(x) for x in (rank, scaled, known, top))
        self._margin = torch.as_tensor(config.margin * deviation)

    @property
    def num_tasks(self) -> int:
        return len(self._scaled)

    def draw(self, subset: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw pairs among the architectures of one step.

        Args:
            subset: long (M, K), places in U.
            generator: of the draw.

        Returns:
            Places in the subset (M, T, P, 2), labels (M, T, P) in [0, 1], and weights (M, T, P), 0 without a label.
        """
        members, size = subset.shape
        tasks, pairs = self.num_tasks, self.config.pairs_per_task
        chances = self.chances.gather(2, subset[:, None, :].expand(-1, tasks, -1)).reshape(members * tasks, size)
        empty = chances.sum(1, keepdim=True) == 0
        drawn = torch.multinomial(chances + empty, 2 * pairs, replacement=True, generator=generator)
        places = drawn.view(members, tasks, pairs, 2)
        labels, weights = self.label(subset[:, None, None, :].expand(-1, tasks, pairs, -1).gather(3, places))
        return places, labels, weights * ~empty.view(members, tasks, 1)

    def label(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Return labels and weights (M, T, P) of pairs (M, T, P, 2) of places in U."""
        first, second = pairs.unbind(3)
        members, tasks, _ = first.shape

        def read(table: Tensor, places: Tensor) -> Tensor:
            return table.expand(members, -1, -1).gather(2, places)

        gap = read(self._scaled, first) - read(self._scaled, second)
        order = read(self._rank, first) - read(self._rank, second)
        valid = (order != 0) & read(self._known, first) & read(self._known, second)
        if self.config.margin > 0:
            valid = valid & (gap.abs() > self._margin.view(1, tasks, 1))
        label = torch.sigmoid(gap) if self.config.soft else (order > 0).to(gap.dtype)
        weight = valid.to(gap.dtype)
        if self.config.top_weight:
            weight = weight * (1 + self.config.top_weight * (read(self._top, first) | read(self._top, second)))
        return label.float(), weight.float()

    def held_out(self, limit: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return pairs of architectures that a member holds out (both of them), for early stopping and calibration.

        Args:
            limit: most pairs for each member and task.
            seed: of the choice where there are more.

        Returns:
            Places in U (M, T, P, 2), labels and weights (M, T, P); rows are padded with weight 0.
        """
        members, tasks, _ = self.held.shape
        chosen = []
        for member in range(members):
            for task in range(tasks):
                places = np.flatnonzero(self.held[member, task])
                first, second = np.triu_indices(len(places), 1)
                if len(first) > limit:
                    keep = np.sort(
                        numpy_stream(seed, "held out", member, task).choice(len(first), limit, replace=False)
                    )
                    first, second = first[keep], second[keep]
                chosen.append(np.stack([places[first], places[second]], axis=1))
        width = max((len(rows) for rows in chosen), default=0)
        padded = np.zeros((members * tasks, width, 2), dtype=np.int64)  # (0, 0) is a tie: weight 0
        for row, pairs in enumerate(chosen):
            padded[row, : len(pairs)] = pairs
        pairs_of = torch.as_tensor(padded).view(members, tasks, width, 2)
        labels, weights = self.label(pairs_of)
        return pairs_of, labels, weights
