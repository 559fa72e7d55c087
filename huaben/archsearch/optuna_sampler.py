"""Arch-Graph as a sampler of Optuna studies. Optuna is optional: it is imported when a sampler is made.

::

    sampler = archgraph_sampler(space, sources=tables, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(lambda trial: train(sampler.architecture(trial)), n_trials=50)

Nothing is kept between suggestions: each one rebuilds the search from the study's trials, so several processes can work
on one shared storage, and a study goes on after a restart. The study counts the trials; there is no budget here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError
from ..optional import require
from .base import Arch, SearchSpace
from .candidates import Candidates
from .search import ArchGraph, ArchGraphConfig
from .task import TaskSpec, TaskTable

if TYPE_CHECKING:
    from .ensemble import RelationEnsemble

UNLIMITED = 10**9


class Advisor:
    """The part of the sampler that does not need Optuna: finished and running architectures in, the next one out.

    Rounds are counted by the number of trials, and each is planned from the trials before it.

    Args:
        space, sources, config, seed, task_vectors: as for :class:`ArchGraph`; the config's budget does not count.
        direction: of the study.
    """

    def __init__(
        self,
        space: SearchSpace,
        direction: str,
        *,
        sources: Sequence[TaskTable] = (),
        config: ArchGraphConfig | None = None,
        seed: int = 0,
        task_vectors: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        settings = (config or ArchGraphConfig()).replace(budget=UNLIMITED)
        self.settings = settings.replace(variant="single") if not sources and settings.variant == "full" else settings
        self.space, self.seed = space, seed
        self.sources, self.task_vectors = tuple(sources), task_vectors
        self.task = TaskSpec("study", "max" if direction == "maximize" else "min")
        self.candidates = Candidates(space, limit=settings.max_enumerate, pool_size=settings.pool_size, seed=seed)
        self._model: RelationEnsemble | None = None
        self._round: tuple[int, int, list[Arch]] = (-1, 0, [])

    def suggest(self, trials: Sequence[tuple[Arch, float | None, str]]) -> Arch:
        """Return the next architecture.

        Args:
            trials: architecture, value and state ("complete", "failed", "pruned", "running") of every earlier trial.

        Raises:
            DataError: if every architecture of the space was tried.
        """
        taken = {self.candidates.key(arch) for arch, _, _ in trials}
        number, begin = self._round_of(len(trials))
        if self._round[:2] != (number, begin):
            # What finished after the round began does not change it: a study goes on after a restart as without.
            self._round = (number, begin, self._plan(trials[:begin], number))
        left = [arch for arch in self._round[2] if self.candidates.key(arch) not in taken]
        left = left or [arch for arch in self._plan(trials, number) if self.candidates.key(arch) not in taken]
        if not left:
            raise DataError("every architecture of the space was tried", hint="stop the study")
        return left[0]

    def _round_of(self, count: int) -> tuple[int, int]:
        """Return the round of the trial after ``count`` others, and how many trials came before that round."""
        first = self.settings.start if self.settings.variant == "single" else 0
        if count < first:
            return 0, 0
        number = (count - first) // self.settings.round_size
        return number + (first > 0), first + number * self.settings.round_size

    def _plan(self, trials: Sequence[tuple[Arch, float | None, str]], number: int) -> list[Arch]:
        """Return the proposals of one round."""
        return [arch for arch, _ in self._search(trials, number)._propose(self.settings.top)]

    def _search(self, trials: Sequence[tuple[Arch, float | None, str]], number: int) -> ArchGraph:
        search = ArchGraph(
            self.space,
            self.task,
            sources=self.sources,
            config=self.settings,
            seed=self.seed,
            task_vectors=self.task_vectors,
            candidates=self.candidates,
            pretrained=self._model,
        )
        for arch, value, state in trials:
            search.observe(arch, value, state=state)  # type: ignore[arg-type]
        search.log.rounds = number
        self._model = search.source_model() if self.sources else None
        return search


def archgraph_sampler(
    space: SearchSpace,
    *,
    sources: Sequence[TaskTable] = (),
    config: ArchGraphConfig | None = None,
    seed: int = 0,
    task_vectors: Mapping[str, Sequence[float]] | None = None,
) -> Any:
    """Return an ``ArchGraphSampler``, a sampler for studies whose objective asks for the axes of ``space``.

    Every axis is a categorical parameter of its name, with the axis's choices. The objective may suggest them itself, or
    call ``sampler.architecture(trial)``. Other parameters are drawn at random.

    Raises:
        MissingDependencyError: if Optuna is not installed.
        ConfigError: in a study of several objectives.
    """
    optuna = require("optuna", extra="search")
    state = optuna.trial.TrialState
    names = {state.COMPLETE: "complete", state.FAIL: "failed", state.PRUNED: "pruned", state.RUNNING: "running"}
    spread = {axis.name: optuna.distributions.CategoricalDistribution(axis.choices) for axis in space.axes}

    class ArchGraphSampler(optuna.samplers.BaseSampler):  # type: ignore[misc,name-defined]
        """Suggests the architecture that Arch-Graph would evaluate next."""

        def __init__(self) -> None:
            self.space = space
            self._advisor: Advisor | None = None
            self._random = optuna.samplers.RandomSampler(seed=seed)

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return dict(spread)

        def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
            if len(study.directions) != 1:
                raise ConfigError(f"a study of {len(study.directions)} objectives", hint="optimise one metric")
            if self._advisor is None:
                self._advisor = Advisor(
                    space,
                    study.direction.name.lower(),
                    sources=sources,
                    config=config,
                    seed=seed,
                    task_vectors=task_vectors,
                )
            seen = []
            for other in study.get_trials(deepcopy=False):
                arch = self._arch(other.params) if other.number != trial.number else None
                if arch is None and other.number != trial.number:
                    arch = self._arch(other.system_attrs.get("archsearch:params", {}))
                if arch is not None and other.state in names:
                    value = other.value if other.state == state.COMPLETE else None
                    seen.append((arch, value, names[other.state]))
            arch = self._advisor.suggest(seen)
            params = {axis.name: axis.choices[code] for axis, code in zip(space.axes, arch, strict=True)}
            # Parameters reach the storage one by one; this tells other workers at once what is being tried.
            study._storage.set_trial_system_attr(trial._trial_id, "archsearch:params", params)
            return params

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return self._random.sample_independent(study, trial, param_name, param_distribution)

        def reseed_rng(self) -> None:
            self._random.reseed_rng()

        def architecture(self, trial: Any) -> Arch:
            """Suggest every axis on ``trial`` and return the architecture."""
            codes = [axis.choices.index(trial.suggest_categorical(axis.name, axis.choices)) for axis in space.axes]
            return space.check(codes)

        @staticmethod
        def _arch(params: Mapping[str, Any]) -> Arch | None:
            """Return the architecture of a trial's parameters; None if they are not, or not yet, one."""
            try:
                return space.check([axis.choices.index(params[axis.name]) for axis in space.axes])
            except (KeyError, ValueError, DataError):
                return None

    return ArchGraphSampler()
