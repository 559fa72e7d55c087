"""Searchers that learn nothing about architectures as graphs: what any learned method must beat.

Random search, regularised evolution (Real et al. 2019, arXiv 1802.01548), Optuna's tree-structured Parzen estimator, and
two fixed rankings: by a number known beforehand (such as FLOPs) and by the mean rank on the source tasks. On
TransNAS-Bench-101 the ranking by FLOPs alone is strong, so it belongs beside every result.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ..errors import CheckpointError, ConfigError, DataError
from ..files import write_bytes
from ..optional import require
from ..rng import stream_seed
from .base import Arch, SearchSpace
from .candidates import Candidates
from .searcher import Proposal, Ranked, SearchConfig, Searcher
from .sources import percent_ranks, read_sources, source_size, write_sources
from .task import TaskSpec, TaskTable

SCORES_NAME = "scores.json"


class RandomSearch(Searcher):
    """Uniform over canonical architectures, without replacement."""

    method = "random"

    def _propose(self, limit: int) -> Sequence[Proposal]:
        archs = self.candidates.random(self.stream("random"), self.log.keys, min(limit, 10))
        return [(arch, "random") for arch in archs]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvolutionConfig(SearchConfig):
    """Regularised evolution.

    Attributes:
        population: random architectures to begin with, and how many of the youngest are alive.
        tournament: how many of them compete to be the parent.
    """

    population: int = 10
    tournament: int = 5

    def __post_init__(self) -> None:
        SearchConfig.__post_init__(self)
        if not 1 <= self.tournament <= self.population:
            raise ConfigError(
                f"tournament={self.tournament} of population={self.population}, expected 1 to {self.population}"
            )


class RegularisedEvolution(Searcher):
    """Ageing evolution: the best of a few random survivors has a child; the oldest dies.

    Differs: children whose canonical form was seen before are drawn again, after 50 tries at random.
    """

    method = "evolution"
    config_class: ClassVar[type[SearchConfig]] = EvolutionConfig
    config: EvolutionConfig

    def _propose(self, limit: int) -> Sequence[Proposal]:
        rng, settings = self.stream("evolution"), self.config
        planned = sum(trial.round >= 0 and trial.attempt == 1 for trial in self.log.trials)
        if planned < settings.population:
            count = min(limit, settings.population - planned)
            return [(arch, "start") for arch in self.candidates.random(rng, self.log.keys, count)]
        alive = self.labels()[-settings.population :]
        if alive:
            picks = rng.choice(len(alive), size=min(settings.tournament, len(alive)), replace=False)
            parent = max((alive[int(pick)] for pick in picks), key=lambda row: row[1])[0].arch
            for _ in range(50):
                child = self.space.mutate(parent, rng)
                key = self.candidates.key(child)
                if key not in self.log.keys and self.candidates.holds(key):
                    return [(child, "child")]
        return [(arch, "random") for arch in self.candidates.random(rng, self.log.keys, 1)]


class OptunaTPE(Searcher):
    """Optuna's TPE over one categorical parameter per axis.

    The study is rebuilt from the log for every proposal, with a sampler seeded by the round: the same log gives the same
    proposal. What Optuna suggests twice is drawn again, after 20 tries at random.

    Raises:
        MissingDependencyError: when asked, where Optuna is not installed.
    """

    method = "tpe"

    def _propose(self, limit: int) -> Sequence[Proposal]:
        optuna = require("optuna", extra="search")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=stream_seed(self.seed, "tpe", self.log.rounds) % 2**32)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        spread = {
            axis.name: optuna.distributions.CategoricalDistribution(list(range(len(axis.choices))))
            for axis in self.space.axes
        }
        for trial, value in self.labels():
            params = {axis.name: choice for axis, choice in zip(self.space.axes, trial.arch, strict=True)}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=spread, value=value))
        for _ in range(20):
            suggestion = study.ask(spread)
            arch = self._checked(tuple(suggestion.params[axis.name] for axis in self.space.axes))
            if arch is not None:
                key = self.candidates.key(arch)
                if key not in self.log.keys and self.candidates.holds(key):
                    return [(arch, "tpe")]
            study.tell(suggestion, state=optuna.trial.TrialState.FAIL)
        rng = self.stream("tpe fallback")
        return [(arch, "random") for arch in self.candidates.random(rng, self.log.keys, 1)]

    def _checked(self, arch: Arch) -> Arch | None:
        """Return ``arch`` as the space writes it, or None where a constraint refuses it."""
        try:
            return self.space.check(arch)
        except DataError:
            return None


class ScoreRanker(Searcher):
    """A fixed ranking: the highest score first, such as FLOPs; unknown architectures last, at random.

    Args:
        scores: architecture to number, higher proposed first.
    """

    method = "score"

    def __init__(
        self,
        space: SearchSpace,
        task: TaskSpec,
        *,
        scores: Mapping[Arch, float],
        config: SearchConfig | None = None,
        seed: int = 0,
        candidates: Candidates | None = None,
    ) -> None:
        super().__init__(space, task, config=config, seed=seed, candidates=candidates)
        self.scores = {space.check(arch): float(value) for arch, value in scores.items()}
        best: dict[str, tuple[float, Arch]] = {}
        for arch, value in self.scores.items():
            if np.isfinite(value):
                key = space.canonical(arch)
                # Of twins the cheaper counts: the operations that set it apart compute nothing.
                if key not in best or value < best[key][0]:
                    best[key] = (value, arch)
        self.order = sorted(((-value, key, arch) for key, (value, arch) in best.items()), key=lambda row: row[:2])

    def _propose(self, limit: int) -> Sequence[Proposal]:
        count = min(limit, 10)
        known = (row for row in self.order if row[1] not in self.log.keys and self.candidates.holds(row[1]))
        found = [(arch, "top") for _, _, arch in itertools.islice(known, count)]
        if len(found) < count:
            taken = self.log.keys | {key for _, key, _ in self.order}
            more = self.candidates.random(self.stream("rest"), taken, count - len(found))
            found += [(arch, "random") for arch in more]
        return found

    def _places(self) -> tuple[Sequence[Ranked], Mapping[str, Any]]:
        values = {trial.key: trial.value for trial in self.log.complete()}
        return [
            Ranked(arch, self.space.format(arch), -score, None, values.get(key))
            for score, key, arch in self.order[:256]
        ], {}

    def _save_state(self, folder: Path) -> None:
        rows = [[self.space.format(arch), value] for arch, value in self.scores.items() if np.isfinite(value)]
        write_bytes(folder / SCORES_NAME, json.dumps(rows, ensure_ascii=False).encode("utf-8"))

    @classmethod
    def _restore(cls, folder: Path, values: Mapping[str, Any], space: SearchSpace) -> Self:
        try:
            rows = json.loads((folder / SCORES_NAME).read_text(encoding="utf-8"))
            scores = {space.parse(text): float(value) for text, value in rows}
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{folder / SCORES_NAME} cannot be read: {error}") from error
        config = cls.config_class.from_dict(values["config"])
        return cls(space, TaskSpec.from_dict(values["task"]), scores=scores, config=config, seed=values["seed"])


class FlopsRanker(ScoreRanker):
    """The largest models first: ``scores`` are FLOPs."""

    method = "flops"


class SourceRanker(ScoreRanker):
    """The best mean percent rank over the source tasks first; the target's values are never looked at.

    Args:
        sources: tables of other tasks. With complete tables this is an oracle about the sources.
    """

    method = "source_rank"

    def __init__(
        self,
        space: SearchSpace,
        task: TaskSpec,
        *,
        sources: Sequence[TaskTable],
        config: SearchConfig | None = None,
        seed: int = 0,
        candidates: Candidates | None = None,
    ) -> None:
        if not sources:
            raise ConfigError("no source tables", hint="give at least one, or use random search")
        self.sources = tuple(sources)
        ranks: dict[str, list[float]] = {}
        shown: dict[str, Arch] = {}
        for table in self.sources:
            for arch, percent in percent_ranks(table).items():
                key = space.canonical(arch)
                ranks.setdefault(key, []).append(percent)
                shown[key] = min(arch, shown.get(key, arch))
        scores = {shown[key]: -float(np.mean(values)) for key, values in ranks.items()}
        super().__init__(space, task, scores=scores, config=config, seed=seed, candidates=candidates)

    @property
    def source_evaluations(self) -> int:
        return source_size(self.sources)

    def _save_state(self, folder: Path) -> None:
        write_sources(folder, self.space, self.sources)

    @classmethod
    def _restore(cls, folder: Path, values: Mapping[str, Any], space: SearchSpace) -> Self:
        config, task = cls.config_class.from_dict(values["config"]), TaskSpec.from_dict(values["task"])
        return cls(space, task, sources=read_sources(folder, space), config=config, seed=values["seed"])
