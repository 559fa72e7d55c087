"""The plain predictor: a graph network that regresses the metric of the target, and proposes what it expects most of.

The same encoder as the relation predictor, no sources, no relations: what pairwise prediction and transfer must beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ConfigError
from ..rng import stream_seed, torch_stream
from .base import Arch
from .encoder import GraphEncoder, MemberLinear, embed_in_blocks
from .searcher import Proposal, SearchConfig, Searcher


@dataclass(frozen=True, kw_only=True, slots=True)
class RegressorConfig(SearchConfig):
    """Settings of the regressor.

    Attributes:
        start: random evaluations before the first fit.
        round_size: evaluations per round.
        explore: how many of a round are drawn uniformly from the next places up to ``top``.
        top: how far exploration reaches.
        members: networks fitted side by side; their mean ranks.
        layers, width: of the encoder.
        steps, lr: of each fit, on all values so far.
    """

    start: int = 20
    round_size: int = 10
    explore: int = 3
    top: int = 256
    members: int = 4
    layers: int = 3
    width: int = 64
    steps: int = 150
    lr: float = 3e-3

    def __post_init__(self) -> None:
        SearchConfig.__post_init__(self)
        for name, least in (("start", 2), ("round_size", 1), ("explore", 0), ("members", 1), ("steps", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)!r} is below {least}")
        if self.explore > self.round_size:
            raise ConfigError(f"explore={self.explore} of round_size={self.round_size}", hint="explore at most all")


class GCNRegressor(Searcher):
    """Regress the standardised metric with a graph network, refitted every round."""

    method = "regressor"
    config_class: ClassVar[type[SearchConfig]] = RegressorConfig
    config: RegressorConfig

    def _propose(self, limit: int) -> Sequence[Proposal]:
        settings, planned = self.config, sum(t.attempt == 1 for t in self.log.trials)
        rows = self.labels()
        if planned < settings.start or len({value for _, value in rows}) < 2:
            count = min(limit, settings.start - planned if planned < settings.start else settings.round_size)
            return [(a, "start") for a in self.candidates.random(self.stream("start"), self.log.keys, count)]
        parents = [trial.arch for trial, _ in sorted(rows, key=lambda row: -row[1])[:10]]
        archs, keys = self.candidates.draw(self.stream("pool"), self.log.keys, parents)
        if not archs:
            return []
        scores = self.predict([trial.arch for trial, _ in rows], [value for _, value in rows], archs)
        places = np.lexsort((np.asarray(keys), -scores))
        count = min(limit, settings.round_size)
        explore = max(0, min(round(settings.explore * count / settings.round_size), len(archs) - count))
        rest = places[count - explore : max(settings.top, count)]
        drawn: list[Any] = (
            list(self.stream("explore").choice(rest, min(explore, len(rest)), replace=False)) if explore else []
        )
        found = [(archs[int(place)], "top") for place in places[: count - explore]]
        return found + [(archs[int(place)], "explore") for place in drawn]

    def predict(
        self, archs: Sequence[Arch], values: Sequence[float], candidates: Sequence[Arch]
    ) -> npt.NDArray[np.float64]:
        """Fit on ``archs`` and return the expected value (N,) of ``candidates``, in standard deviations."""
        settings, seed = self.config, stream_seed(self.seed, "regressor", self.log.rounds)
        graphs = self.candidates.encode(archs)
        generator = torch_stream(seed, "weights")
        encoder = GraphEncoder(
            graphs.num_features,
            graphs.num_extra,
            layers=settings.layers,
            width=settings.width,
            members=settings.members,
            directions="both",
            readout="mean_output",
            dropout=0.1,
            generator=generator,
        )
        head = MemberLinear(settings.members, encoder.embedding_size, 1, generator, bias=True)
        numbers = np.asarray(values, dtype=np.float64)
        target = torch.as_tensor((numbers - numbers.mean()) / max(numbers.std(), 1e-12), dtype=torch.float32)
        prepared = encoder.prepare(graphs)
        parameters = [*encoder.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
        for _ in range(settings.steps):
            optimizer.zero_grad(set_to_none=True)
            found = head(encoder(prepared, generator)).squeeze(-1)  # (members, N)
            (found - target).square().mean(1).sum().backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            return (
                head(embed_in_blocks(encoder, self.candidates.encode(candidates))).squeeze(-1).mean(0).double().numpy()
            )
