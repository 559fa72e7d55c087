"""Arch-Graph's budgeted search: learn pairwise relations on source tasks, order candidates without cycles, evaluate few.

Every round: fit the relation ensemble on what has been evaluated (sources rehearsed along), score every candidate by its
win score against random references, read all relations among the best ``top`` and the evaluated ones, keep a maximal
weighted acyclic subgraph of those the ensemble agrees on, and propose the first places of its topological order plus a
few explored ones.

Source: Arch-Graph, CVPR 2022 (arXiv 2204.05941). Differs: only the abstract and summaries could be read, so the loop, the
trust rule and every default are ours (sections 1.8 to 1.10 of our reading); evaluated architectures join the graph with
their observed relations as edges of full confidence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ConfigError
from .base import Arch, SearchSpace
from .candidates import Candidates, log_features
from .ensemble import RelationEnsemble
from .order import SOLVERS, order
from .relation import RelationConfig, Relations
from .searcher import Proposal, Ranked, SearchConfig, Searcher
from .sources import read_all_sources, source_size, write_sources
from .task import TaskSpec, TaskTable


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchGraphConfig(SearchConfig):
    """Settings of Arch-Graph.

    Attributes:
        variant: "full": sources first, then rounds with the target's values; "single": no sources; "zero": sources
            alone, ranked once.
        start: random evaluations before the first fit without sources.
        round_size: evaluations per round; the whole budget makes the search offline.
        explore: how many of a round are explored instead of taken from the top.
        exploration: "uniform": from the next places up to ``top``; "thompson": the first place of single members.
        orderer: "mwas" is the paper's method; "win_score" sorts by mean win probability; "utility" also uses a head that
            cannot contradict itself; any other solver of :mod:`~huaben.archsearch.order` goes, too.
        members: predictors in the ensemble.
        tau: relations closer to one half are not trusted.
        kappa: standard deviations of the ensemble that are taken off a relation's weight.
        top: candidates whose relations are all read.
        references: random candidates that every one is compared with first.
        observed_edges: whether evaluated architectures join the relation graph.
        weigh_sources: from the second round on, rehearse a source only as far as it agrees with the target.
        use_features: use numbers such as parameters and FLOPs where the tables have them.
        predictor: of the relations.
    """

    variant: Literal["full", "single", "zero"] = "full"
    start: int = 20
    round_size: int = 10
    explore: int = 3
    exploration: Literal["uniform", "thompson"] = "uniform"
    orderer: str = "mwas"
    members: int = 3
    tau: float = 0.02
    kappa: float = 0.5
    top: int = 256
    references: int = 256
    observed_edges: bool = True
    weigh_sources: bool = True
    use_features: bool = True
    predictor: RelationConfig = field(default_factory=lambda: RelationConfig(restart="source"))

    def __post_init__(self) -> None:
        SearchConfig.__post_init__(self)
        for name, least in (("start", 2), ("round_size", 1), ("explore", 0), ("members", 1), ("references", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)!r} is below {least}")
        if self.orderer not in (*SOLVERS, "utility"):
            raise ConfigError(f"orderer={self.orderer!r} is none of {', '.join((*SOLVERS, 'utility'))}")
        if self.explore > self.round_size:
            raise ConfigError(f"explore={self.explore} of round_size={self.round_size}", hint="explore at most all")
        if not 1 <= self.round_size <= self.top and self.round_size < self.budget:
            raise ConfigError(f"top={self.top} is below round_size={self.round_size}", hint="use 256")
        if not 0 <= self.tau <= 0.5 or not self.kappa >= 0:
            raise ConfigError(f"tau={self.tau!r}, kappa={self.kappa!r}, expected 0 to 0.5, and 0 or more")


@dataclass(frozen=True, slots=True)
class RelationRanking:
    """Candidates in the order found, and how it was found.

    Attributes:
        places: indices into the candidates, best first; those beyond ``top`` by win score.
        scores: mean win probability of every candidate.
        spread: its standard deviation over members, of the candidates among the first ``len(spread)`` places.
        diagnostics: weight of all trusted relations, and what cycle removal kept.
    """

    places: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64]
    diagnostics: Mapping[str, Any]


class ArchGraph(Searcher):
    """Arch-Graph by ask and tell.

    Args:
        space: what is searched.
        task: the target's name and direction.
        sources: evaluated architectures of other tasks, each table with as many or few as there are.
        config: settings.
        seed: of everything random.
        task_vectors: task name to vector, for every source and, if known, the target; None learns them.
        features: name to {architecture: positive number}, such as FLOPs; logarithms are given to the predictor. By
            default those of the first source table that knows them for every candidate.
        candidates: shared between searches of one space.
        pretrained: an ensemble after its source phase on the same sources, instead of fitting one; it is not changed.

    Raises:
        ConfigError: for "zero" without sources, or task vectors that miss a source.
    """

    method = "archgraph"
    config_class: ClassVar[type[SearchConfig]] = ArchGraphConfig
    config: ArchGraphConfig

    def __init__(
        self,
        space: SearchSpace,
        task: TaskSpec,
        *,
        sources: Sequence[TaskTable] = (),
        config: ArchGraphConfig | None = None,
        seed: int = 0,
        task_vectors: Mapping[str, Sequence[float]] | None = None,
        features: Mapping[str, Mapping[Arch, float]] | None = None,
        candidates: Candidates | None = None,
        pretrained: RelationEnsemble | None = None,
    ) -> None:
        super().__init__(space, task, config=config, seed=seed, candidates=candidates)
        self.sources = tuple(sources)
        self.task_vectors = dict(task_vectors or {})
        self.features: dict[str, dict[Arch, float]] = {}
        if self.config.use_features and self.candidates.features is None:
            self.features = self._covering(features)
            if self.features:
                self.candidates = self.candidates.with_features(log_features(self.features))
        self._used = self._usable_sources()
        self.variant = self.config.variant
        if self.variant == "zero" and not self._used:
            raise ConfigError("variant 'zero' needs source tables", hint="give sources, or use variant='single'")
        if self.variant == "full" and not self._used:
            self.variant = "single"
            if self.config.variant == "full" and self.sources == ():
                self.note("no source tables: searching the target alone, as variant='single'")
        if self.variant == "single":
            self._used = {}
        if self.variant == "zero" and task.name not in self.task_vectors:
            self.note("no task vector of the target: 'zero' ranks for the mean of the source tasks")
        self._source_model = pretrained
        self._model: RelationEnsemble | None = None
        self._told: tuple[tuple[tuple[Arch, float], ...], RelationEnsemble] | None = None
        self.diagnostics: list[dict[str, Any]] = []

    @property
    def source_evaluations(self) -> int:
        return 0 if self.variant == "single" else source_size(self.sources)

    # ------------------------------------------------------------------------------------------------- the ensemble

    def source_model(self, cache: str | Path | None = None) -> RelationEnsemble:
        """Return the ensemble after its source phase, fitted on first use. Do not change it: clone it.

        Args:
            cache: folder where fitted ensembles are kept by content, shared between searches.
        """
        if self._source_model is None:
            settings = self.config.predictor
            if self.config.orderer == "utility":
                settings = settings.replace(head="utility")
            model = RelationEnsemble(
                self.space, settings, members=self.config.members, seed=self.seed, encode=self.candidates.encode
            )
            vectors = [self.task_vectors[name] for name in self._used] if self.task_vectors else None
            model.fit_sources(list(self._used.values()), vectors, cache=cache)
            self._source_model = model
            if self.folder is not None:
                model.save(self.folder / "model_sources")
        return self._source_model

    def _fitted(self, rows: Sequence[tuple[Arch, float]]) -> RelationEnsemble:
        """Return an ensemble fitted on the target's values; this round's own, whatever was fitted before."""
        again = self._model is not None and self.config.predictor.restart == "previous"
        model = (self._model if again and self._model is not None else self.source_model()).clone()
        model.rounds = self.log.rounds
        archs, values = [arch for arch, _ in rows], np.asarray([value for _, value in rows])
        weights = None
        if self._used and self.config.weigh_sources and len(rows) >= 2 * self.config.round_size:
            weights = self.source_model().source_weights(archs, values).tolist()
        model.fit_target(archs, values, task_vector=self.task_vectors.get(self.task.name), source_weights=weights)
        return model

    def _latest(self, rows: Sequence[tuple[Arch, float]]) -> RelationEnsemble:
        """Return an ensemble fitted on everything told so far, once for the same values; it steers no proposal."""
        told = tuple(rows)
        if self._told is None or self._told[0] != told:
            self._told = told, self._fitted(rows)
        return self._told[1]

    def _rows(self) -> list[tuple[Arch, float]]:
        """Return evaluated architectures and oriented values; twins are one, with their mean."""
        groups: dict[str, list[tuple[Arch, float]]] = {}
        for trial, value in self.labels():
            groups.setdefault(trial.key, []).append((trial.arch, value))
        return [(group[0][0], float(np.mean([value for _, value in group]))) for group in groups.values()]

    # -------------------------------------------------------------------------------------------------- the proposal

    def _propose(self, limit: int) -> Sequence[Proposal]:
        settings, planned = self.config, sum(t.attempt == 1 for t in self.log.trials)
        rows = [] if self.variant == "zero" else self._rows()
        informed = len({value for _, value in rows}) > 1
        if len(rows) >= settings.round_size and not informed:
            self.note("all values are equal: nothing to learn from, so candidates are ranked as before the first")
        if not self._used and (planned < settings.start or not informed):
            count = min(limit, settings.start - planned if planned < settings.start else settings.round_size)
            archs = self.candidates.random(self.stream("start"), self.log.keys, count)
            return [(arch, "start") for arch in archs]
        model = self.source_model()
        if informed:
            model = self._fitted(rows)
            self._keep(model)
        count = limit if self.variant == "zero" else min(limit, settings.round_size)
        archs, keys = self._drawn(rows)
        if not archs:
            return []
        values = [math.nan] * len(archs) + [value for _, value in rows]
        archs, keys = [*archs, *(arch for arch, _ in rows)], [*keys, *(self.candidates.key(arch) for arch, _ in rows)]
        ranking = self.rank(model, archs, keys, values, width=max(settings.top, count))
        self.diagnostics.append({"round": self.log.rounds, **ranking.diagnostics})
        places = [int(place) for place in ranking.places if place < len(archs) - len(rows)]
        return self._picked(model, places, archs, count)

    def _picked(self, model: RelationEnsemble, places: list[int], archs: Sequence[Arch], count: int) -> list[Proposal]:
        """Return the first of ``places`` and the explored ones."""
        explore = 0 if self.variant == "zero" else round(self.config.explore * count / self.config.round_size)
        explore = max(0, min(explore, len(places) - count))
        picks = [(archs[place], "top") for place in places[: count - explore]]
        rest = places[count - explore : max(self.config.top, count)]
        rng = self.stream("explore")
        if self.config.exploration == "thompson" and explore:
            relations = self._relations(model, [archs[place] for place in rest])
            scores = [relations.member_scores(m, torch.arange(len(rest))).numpy() for m in range(relations.members)]
            while rest and explore:
                best = max(range(len(rest)), key=scores[int(rng.integers(len(scores)))].__getitem__)
                picks.append((archs[rest.pop(best)], "thompson"))
                scores = [np.delete(score, best) for score in scores]
                explore -= 1
            return picks
        drawn: list[Any] = list(rng.choice(rest, size=explore, replace=False)) if explore else []
        return picks + [(archs[int(place)], "explore") for place in drawn]

    def _drawn(self, rows: Sequence[tuple[Arch, float]]) -> tuple[list[Arch], list[str]]:
        """Return this round's candidates: everything not proposed yet, or a drawn pool."""
        parents = [arch for arch, _ in sorted(rows, key=lambda row: -row[1])[:10]]
        return self.candidates.draw(self.stream("pool"), self.log.keys, parents)

    def _relations(self, model: RelationEnsemble, archs: Sequence[Arch]) -> Relations:
        vector = self.task_vectors.get(self.task.name) if model is self._source_model else None
        return model.relations(self.candidates.encode(archs), task_vector=vector)

    def rank(
        self,
        model: RelationEnsemble,
        archs: Sequence[Arch],
        keys: Sequence[str],
        values: Sequence[float] | npt.NDArray[np.float64] | None = None,
        *,
        width: int | None = None,
    ) -> RelationRanking:
        """Order architectures by their predicted relations, and by the observed ones where values are known.

        Args:
            model: of the relations.
            archs, keys: N architectures and their canonical forms, which break ties.
            values: (N,) oriented values, NaN where unknown; the known ones join the graph, however they are scored.
            width: unknown architectures in the graph; default ``config.top``.
        """
        settings, count = self.config, len(archs)
        known = np.full(count, np.nan) if values is None else np.asarray(values, dtype=np.float64)
        relations = self._relations(model, archs)
        free = np.flatnonzero(np.isnan(known))
        size = min(settings.references, len(free))
        references = torch.as_tensor(np.sort(self.stream("references").choice(free, size=size, replace=False)))
        members = np.stack([relations.member_scores(m, references).numpy() for m in range(relations.members)])
        members = members.astype(np.float64)
        scores = members.mean(0)
        by_score = np.lexsort((np.asarray(keys), -scores))
        unknown = by_score[np.isnan(known[by_score])]
        nodes = np.concatenate(
            [unknown[: settings.top if width is None else width], np.flatnonzero(np.isfinite(known))]
        )
        with torch.no_grad():
            mean, std = (part.numpy() for part in relations(torch.as_tensor(nodes), torch.as_tensor(nodes)))
        found = order(
            mean,
            solver="win_score" if settings.orderer == "utility" else settings.orderer,  # type: ignore[arg-type]
            std=std,
            tau=settings.tau,
            kappa=settings.kappa,
            observed=known[nodes] if settings.observed_edges else None,
            keys=[keys[int(place)] for place in nodes],
        )
        inside = np.zeros(count, dtype=bool)
        inside[nodes] = True
        places = np.concatenate([nodes[found.order], by_score[~inside[by_score]]]).astype(np.int64)
        diagnostics = {
            "kept_weight": round(float(found.kept_weight), 3),
            "total_weight": round(float(found.total_weight), 3),
            "dropped_relations": len(found.dropped_edges),
            "solver": found.solver,
            "guarantee": found.guarantee,
            "nodes": len(nodes),
        }
        return RelationRanking(places, scores, members[:, places[: len(nodes)]].std(0), diagnostics)

    def _places(self) -> tuple[Sequence[Ranked], Mapping[str, Any]]:
        """Rank evaluated and other candidates with everything told so far; at most ``top`` of them."""
        rows = self._rows()
        informed = self.variant != "zero" and len({value for _, value in rows}) > 1
        if not self._used and not informed:
            return super()._places()
        model = self._latest(rows) if informed else self.source_model()
        archs, keys = self._drawn(rows)
        known = {self.candidates.key(arch): (arch, value) for arch, value in rows} if self.variant != "zero" else {}
        told = {trial.key: trial for trial in self.log.complete()}
        archs, keys = [*archs, *(trial.arch for trial in told.values())], [*keys, *told]
        values = [known[key][1] if key in known else math.nan for key in keys]
        ranking = self.rank(model, archs, keys, values)
        width = len(ranking.spread)
        return [
            Ranked(
                archs[place],
                self.space.format(archs[place]),
                float(ranking.scores[place]),
                float(ranking.spread[rank]),
                told[keys[place]].value if keys[place] in told else None,
            )
            for rank, place in enumerate(ranking.places[:width].tolist())
        ], {**ranking.diagnostics, "rounds": list(self.diagnostics)}

    def relation_matrix(self, archs: Sequence[Arch]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return mean and standard deviation (N, N) of the probability that row beats column, with all that is told."""
        with self._lock:
            rows = self._rows()
            informed = self.variant != "zero" and len({value for _, value in rows}) > 1
            model = self._latest(rows) if informed else self.source_model()
            with torch.no_grad():
                mean, std = self._relations(model, list(archs)).matrix()
            return mean.numpy(), std.numpy()

    # -------------------------------------------------------------------------------------------- sources, features

    def _usable_sources(self) -> dict[str, tuple[list[Arch], npt.NDArray[np.float64]]]:
        """Return task name to architectures and values, twins as one; without sources that teach nothing."""
        used: dict[str, tuple[list[Arch], npt.NDArray[np.float64]]] = {}
        for table in self.sources:
            groups: dict[str, list[tuple[Arch, float]]] = {}
            for arch, value in zip(table.archs, table.oriented_values().tolist(), strict=True):
                groups.setdefault(self.candidates.key(arch), []).append((arch, value))
            archs = [min(arch for arch, _ in group) for group in groups.values()]
            values = np.asarray([np.mean([value for _, value in group]) for group in groups.values()])
            name = table.spec.name
            if name in used:
                raise ConfigError(f"two source tables are named {name!r}", hint="give each task its own name")
            if len(np.unique(values)) < 2:
                self.note(f"source {name!r} has fewer than two different values and is skipped")
                continue
            used[name] = (archs, values)
        if self.task_vectors:
            missing = [name for name in used if name not in self.task_vectors]
            if missing:
                raise ConfigError(
                    f"no task vector for {', '.join(missing)}", hint="give one per source, or none at all"
                )
        return used

    def _covering(self, given: Mapping[str, Mapping[Arch, float]] | None) -> dict[str, dict[Arch, float]]:
        """Return the features to use, restricted to candidates and sources."""
        if given is None:
            if not self.candidates.listed:
                return {}
            given = next((table.features for table in self.sources if table.features), {})
            given = {name: column for name, column in given.items() if all(a in column for a in self.candidates.archs)}
        needed = {*self.candidates.archs, *(arch for table in self.sources for arch in table.archs)}
        return {
            name: {arch: float(value) for arch, value in column.items() if arch in needed or not self.candidates.listed}
            for name, column in given.items()
        }

    # -------------------------------------------------------------------------------------------------- persistence

    def _keep(self, model: RelationEnsemble) -> None:
        """Remember the round's model, on the disk where attached, so that a later start need not fit it again."""
        self._model = model
        if self.folder is not None:
            model.save(self.folder / f"model_{self.log.rounds:03d}")

    def _restrict(self, archs: Sequence[Arch]) -> None:
        super()._restrict(archs)
        if self.features:
            self.candidates = self.candidates.with_features(log_features(self.features))

    def _save_state(self, folder: Path) -> None:
        if self.candidates.features is not None and not self.features:
            raise ConfigError("features given with the candidates are not saved", hint="give them as features=…")
        write_sources(folder, self.space, self.sources, task_vectors=self.task_vectors, features=self.features)
        if self._source_model is not None:
            self._source_model.save(folder / "model_sources")
        if self._model is not None:
            self._model.save(folder / f"model_{self.log.rounds - 1:03d}")

    @classmethod
    def _restore(cls, folder: Path, values: Mapping[str, Any], space: SearchSpace) -> Self:
        sources, vectors, features = read_all_sources(folder, space)
        return cls(
            space,
            TaskSpec.from_dict(values["task"]),
            sources=sources,
            config=cls.config_class.from_dict(values["config"]),  # type: ignore[arg-type]
            seed=values["seed"],
            task_vectors=vectors,
            features=features or None,
        )

    @classmethod
    def load(cls, folder: str | Path, *, space: SearchSpace | None = None) -> Self:
        search = super().load(folder, space=space)
        folder, encode = Path(folder), search.candidates.encode
        if (folder / "model_sources").is_dir():
            search._source_model = RelationEnsemble.load(folder / "model_sources", search.space, encode=encode)
        last = folder / f"model_{search.log.rounds - 1:03d}"
        if last.is_dir():
            search._model = RelationEnsemble.load(last, search.space, encode=encode)
        return search
