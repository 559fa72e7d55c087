"""Pairwise baselines beside Arch-Graph: BRP-NAS's way of using a relation predictor, and a utility ranker."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from .base import Arch
from .ensemble import RelationEnsemble
from .relation import RelationConfig
from .search import ArchGraph, ArchGraphConfig, RelationRanking
from .searcher import Proposal, SearchConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class BRPConfig(ArchGraphConfig):
    """BRP-NAS's choices: no sources, the concatenating head, one network, half of each round at random."""

    variant: str = "single"  # type: ignore[assignment]
    explore: int = 5
    members: int = 1
    predictor: RelationConfig = field(default_factory=lambda: RelationConfig(head="concat", restart="source"))


class PairwiseBRP(ArchGraph):
    """Sort all candidates with the predicted relation as the comparison, as if it had no cycles.

    Half of a round is taken from the top, half at random from a top part that halves every round.

    Source: BRP-NAS (arXiv 2007.08668), as read in its code. Differs: our encoder and schedule, and predictions are made
    symmetric first, so that the result does not depend on the order in which two candidates are compared.
    """

    method = "brp"
    config_class: ClassVar[type[SearchConfig]] = BRPConfig

    def rank(
        self,
        model: RelationEnsemble,
        archs: Sequence[Arch],
        keys: Sequence[str],
        values: Sequence[float] | npt.NDArray[np.float64] | None = None,
        *,
        width: int | None = None,
    ) -> RelationRanking:
        """Order all candidates by comparison sort; arguments as for :meth:`ArchGraph.rank`."""
        with torch.no_grad():
            mean, std = (part.numpy() for part in self._relations(model, archs).matrix())
        wins = (mean > 0.5).tolist()
        start = sorted(range(len(archs)), key=lambda place: keys[place])
        found = sorted(start, key=functools.cmp_to_key(lambda i, j: wins[j][i] - wins[i][j]))
        places = np.asarray(found, dtype=np.int64)
        shown = places[: self.config.top if width is None else width]
        spread = np.sqrt((std[shown] ** 2).mean(1)).astype(np.float64)
        return RelationRanking(places, mean.mean(1).astype(np.float64), spread, {"nodes": len(archs)})

    def _picked(self, model: RelationEnsemble, places: list[int], archs: Sequence[Arch], count: int) -> list[Proposal]:
        explore = max(0, min(round(self.config.explore * count / self.config.round_size), len(places) - count))
        part = max(count, len(places) >> self.log.rounds)
        rest = places[count - explore : part]
        drawn: list[Any] = (
            list(self.stream("explore").choice(rest, min(explore, len(rest)), replace=False)) if explore else []
        )
        picks = [(archs[place], "top") for place in places[: count - explore]]
        return picks + [(archs[int(place)], "explore") for place in drawn]


@dataclass(frozen=True, kw_only=True, slots=True)
class UtilityConfig(ArchGraphConfig):
    """A head that scores architectures one by one, and a plain sort."""

    orderer: str = "utility"


class UtilityRanker(ArchGraph):
    """Arch-Graph's loop with a utility for every architecture: relations are transitive, so there are no cycles."""

    method = "utility"
    config_class: ClassVar[type[SearchConfig]] = UtilityConfig
