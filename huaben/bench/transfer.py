"""Transfer between the tasks of TransNAS-Bench-101: how good an architecture do 50 evaluations find?

Every task is the target in turn, the six others are sources: one random set of architectures per seed with the sources'
values, which are not part of the budget. The found architecture's place in the whole table is its *percent rank*,
``100 * (1 + number of strictly better rows) / rows``; lower is better. Beside it stand the regret, plain baselines at the
same budget, what training noise leaves to find, and the two figures that Arch-Graph's abstract gives.

Runs are kept one by one in ``cache``: a killed measurement goes on, and several processes with the same settings share
the work. Among learned methods differences are small: claim only what has a corrected test behind it.

Source: protocol of Arch-Graph (arXiv 2204.05941) as far as it could be read, on the public values of TransNAS-Bench-101
(arXiv 2105.11871). Differs: the metric is the last epoch's validation value, so the published figures are not comparable
digit for digit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..archsearch.base import SearchSpace
from ..archsearch.baselines import (
    FlopsRanker,
    OptunaTPE,
    RandomSearch,
    RegularisedEvolution,
    SourceRanker,
)
from ..archsearch.candidates import Candidates, log_features
from ..archsearch.ensemble import RelationEnsemble
from ..archsearch.readers import read_csv
from ..archsearch.regressor import GCNRegressor
from ..archsearch.search import ArchGraph, ArchGraphConfig
from ..archsearch.searcher import SearchConfig, Searcher
from ..archsearch.space import TransNASMacro, TransNASMicro
from ..archsearch.task import TaskTable
from ..archsearch.variants import PairwiseBRP, UtilityRanker
from ..errors import DataError, StoreError, UsageError
from ..files import folder_lock, write_bytes
from ..optional import is_available, require
from ..rng import numpy_stream
from .transfer_stats import compare, nested_choice, noise_limit, summary

FOLDER = Path("../shared/data/transnas101")
"""Where the tables are, unless ``table`` says otherwise."""
SPACES: dict[str, Callable[[], SearchSpace]] = {"micro": TransNASMicro, "macro": TransNASMacro}
BUDGETS = (10, 20, 30, 40, 50)
CONFIG: dict[str, Any] = {
    "members": 3,
    "predictor": {"width": 32, "head_width": 32, "task_dim": 8, "dropout": 0.0, "target_steps": 60},
}
"""Settings of the methods that predict relations, unless ``config`` says otherwise: the library's defaults, spelled out so
that kept runs keep their meaning. They were chosen by cost before the first run, not by results."""
VERSION = 1
"""Raised when runs kept earlier no longer mean the same."""
WAIT_S = 2.0

PUBLISHED: dict[str, Any] = {
    "status": "published",
    "method": "Arch-Graph",
    "source": "abstract of arXiv 2204.05941 (CVPR 2022)",
    "budget": 50,
    "average_percent": [0.16, 0.29],
    "note": "the averages on the two search spaces, in the abstract's order; metric and protocol differ from ours",
}


@dataclass
class Case:
    """One target and seed: what every method is given.

    Attributes:
        candidates: of the space, with parameters and FLOPs as features; ``plain`` the same without.
        target: the complete table, of which a method sees only what it evaluates.
        complete: complete tables of the six other tasks; only the oracle reads them whole.
        sources: the seed's random architectures of those tables.
        cache: folder for fitted source phases, or None.
    """

    candidates: Candidates
    plain: Candidates
    target: TaskTable
    complete: Sequence[TaskTable]
    sources: Sequence[TaskTable]
    seed: int
    budget: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    cache: Path | None = None
    _models: dict[str, tuple[RelationEnsemble, float]] = field(default_factory=dict)

    def archgraph(
        self,
        config: ArchGraphConfig,
        kind: type[ArchGraph] = ArchGraph,
        *,
        task_vectors: Mapping[str, Sequence[float]] | None = None,
    ) -> ArchGraph:
        """Return a search whose source phase is shared with every other search of the same one."""
        space, spec = self.target.space, self.target.spec
        candidates = self.candidates if config.use_features else self.plain
        head = "utility" if config.orderer == "utility" else config.predictor.head
        phase = {
            **config.predictor.to_dict(),
            "head": head,
            "members": config.members,
            "features": config.use_features,
            "alone": config.variant == "single",
            "vectors": task_vectors is not None,
        }
        key = json.dumps({k: v for k, v in phase.items() if not k.startswith("target_")}, sort_keys=True)
        found = self._models.get(key)
        sources = () if config.variant == "single" else self.sources
        search = kind(
            space,
            spec,
            sources=sources,
            config=config,
            seed=self.seed,
            task_vectors=task_vectors,
            candidates=candidates,
            pretrained=self._same_target_phase(found[0], config) if found else None,
        )
        if found is None:
            started = time.process_time()
            model = search.source_model(self.cache)
            found = model, self._cost(key, time.process_time() - started)
            self._models[key] = found
        search.source_cpu_seconds = found[1]  # type: ignore[attr-defined]
        return search

    def _cost(self, key: str, seconds: float) -> float:
        """Return the processor time of a source phase when it was fitted, not when it was read back."""
        if self.cache is None:
            return seconds
        text = "/".join([key, self.target.spec.name, str(self.seed)])
        path = self.cache / f"{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}.seconds"
        if not path.exists():
            write_bytes(path, f"{seconds:.3f}".encode())
        return float(path.read_text(encoding="utf-8"))

    @staticmethod
    def _same_target_phase(model: RelationEnsemble, config: ArchGraphConfig) -> RelationEnsemble:
        """Return the fitted sources with this configuration's settings of the target phase."""
        twin = model.clone()
        twin.config = config.predictor.replace(head=model.config.head)
        return twin


@dataclass(frozen=True)
class Method:
    """How a method's searcher is made.

    Attributes:
        build: case to searcher.
        about: what it is, for the results.
        settings: what it depends on, for the names of kept runs.
        seeded: whether another seed can give another result.
        limit: it runs on that many seeds only; None on all.
    """

    build: Callable[[Case], Searcher]
    about: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeded: bool = True
    limit: int | None = None

    def runs_on(self, seed: int, first: int) -> bool:
        """Return whether a seed is one of its own, ``first`` being the first of all."""
        limit = 1 if not self.seeded else self.limit
        return limit is None or seed < first + limit


def _plain_method(kind: Any, about: str, *, seeded: bool = True, **values: Any) -> Method:
    config_class = kind.config_class

    def build(case: Case) -> Searcher:
        config = config_class(budget=case.budget, **values)
        candidates = case.candidates if kind is GCNRegressor else case.plain
        return kind(case.target.space, case.target.spec, config=config, seed=case.seed, candidates=candidates)

    return Method(build, about, {"method": kind.method, **config_class(**values).to_dict()}, seeded)


def _relation_method(about: str, kind: type[ArchGraph] = ArchGraph, *, no_task: bool = False, **values: Any) -> Method:
    config_class: Any = kind.config_class
    config = config_class.from_dict(merged(config_class().to_dict(), values))

    def build(case: Case) -> Searcher:
        vectors = None
        if no_task:
            zeros = [0.0] * config.predictor.task_dim
            vectors = {table.spec.name: zeros for table in (*case.sources, case.target)}
        return case.archgraph(config.replace(budget=case.budget), kind, task_vectors=vectors)

    return Method(build, about, {"method": kind.method, "no_task": no_task, **config.to_dict()})


def _flops(case: Case) -> Searcher:
    scores = case.target.features.get("flops")
    if not scores:
        raise DataError("the table has no column 'flops'", hint="leave the method 'flops' out")
    config = SearchConfig(budget=case.budget)
    return FlopsRanker(
        case.target.space, case.target.spec, scores=scores, config=config, seed=case.seed, candidates=case.plain
    )


def _source_rank(case: Case, tables: Sequence[TaskTable]) -> Searcher:
    config = SearchConfig(budget=case.budget)
    return SourceRanker(
        case.target.space, case.target.spec, sources=tables, config=config, seed=case.seed, candidates=case.plain
    )


def all_methods(overrides: Mapping[str, Any] | None = None, *, ablations: bool = False) -> dict[str, Method]:
    """Return name to method: ours, baselines and, if asked for, ablations of "full".

    Args:
        overrides: settings of every method that predicts relations, as in :class:`ArchGraphConfig`, nested.
        ablations: each takes one thing away from "full".
    """
    base = dict(overrides or {})
    found = {
        "random": _plain_method(RandomSearch, "uniform over distinct architectures"),
        "evolution": _plain_method(RegularisedEvolution, "regularised evolution, population 10, tournament 5"),
        "tpe": _plain_method(OptunaTPE, "Optuna's TPE"),
        "flops": Method(_flops, "the most FLOPs first", {"method": "flops"}, seeded=False),
        "source_rank": Method(
            lambda case: _source_rank(case, case.sources), "best mean rank in the source sample", {"method": "sources"}
        ),
        "source_oracle": Method(
            lambda case: _source_rank(case, case.complete),
            "best mean rank in the complete source tables (an oracle)",
            {"method": "oracle"},
            seeded=False,
        ),
        "regressor": _plain_method(GCNRegressor, "graph network that regresses the target's metric, no sources"),
        "brp": _relation_method("BRP-NAS-like: pairwise, no sources, sorted by comparison", PairwiseBRP, **_brp(base)),
        "utility": _relation_method("Arch-Graph's loop with a utility per architecture", UtilityRanker, **base),
        "zero": _relation_method("Arch-Graph from the sources alone", **{**base, "variant": "zero"}),
        "single": _relation_method("Arch-Graph on the target alone", **{**base, "variant": "single"}),
        "full": _relation_method("Arch-Graph: sources, then rounds on the target, MWAS", **base),
    }
    if ablations:
        found |= {
            "full-no-mwas": _relation_method("full, ranked by win score", **{**base, "orderer": "win_score"}),
            "full-no-task": _relation_method("full, without task vectors", no_task=True, **base),
            "full-no-pretraining": _relation_method(
                "full, no source phase: sources only beside the target",
                **merged(base, {"predictor": {"source_steps": 0}}),
            ),
            "full-no-ensemble": _relation_method("full, a single predictor", **{**base, "members": 1, "kappa": 0.0}),
            "full-no-exploration": _relation_method("full, only top candidates", **{**base, "explore": 0}),
            "full-no-features": _relation_method(
                "full, without FLOPs and parameters", **{**base, "use_features": False}
            ),
            "full-no-observed": _relation_method(
                "full, relation graph of candidates only", **{**base, "observed_edges": False}
            ),
        }
    return found


def _brp(base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the overrides that do not take away what makes the method BRP-NAS's."""
    own = {"variant", "explore", "members", "orderer", "kappa", "tau"}
    kept = {key: value for key, value in base.items() if key not in own}
    if "predictor" in kept:
        kept["predictor"] = {key: value for key, value in kept["predictor"].items() if key != "head"}
    return kept


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with those of ``second`` on top."""
    result = dict(first)
    for key, value in second.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


class Bench:
    """The tables of one search space, and the runs kept for them.

    Args:
        table: CSV with a row per architecture and a column per task.
        space: "micro" or "macro".
        budget: evaluations per run.
        source_size: architectures whose source values are known.
        cache: folder of runs; None keeps nothing.
        scramble: replace every target's values by random numbers: nothing can be learned, so nothing may be found.
    """

    def __init__(
        self,
        table: str | Path,
        space: str = "micro",
        *,
        budget: int = 50,
        source_size: int = 100,
        cache: str | Path | None = None,
        scramble: bool = False,
    ) -> None:
        if space not in SPACES:
            raise UsageError(f"space={space!r}, expected one of {', '.join(SPACES)}")
        path = Path(table)
        self.space = SPACES[space]()
        self.tables = read_csv(path, self.space)
        self.digest = hashlib.blake2b(path.read_bytes(), digest_size=6).hexdigest()
        self.budget, self.source_size, self.scramble = budget, source_size, scramble
        self.cache = None if cache is None else Path(cache)

    @cached_property
    def plain(self) -> Candidates:
        archs = next(iter(self.tables.values())).archs
        return Candidates(self.space) if len(archs) == self.space.size else Candidates(self.space, archs=archs)

    @cached_property
    def candidates(self) -> Candidates:
        columns = next(iter(self.tables.values())).features
        return self.plain.with_features(log_features(columns)) if columns else self.plain

    def target(self, name: str, seed: int) -> TaskTable:
        """Return a complete table, scrambled if asked for."""
        table = self.tables[name]
        if not self.scramble:
            return table
        noise = numpy_stream(seed, "scramble", name).standard_normal(len(table))
        values = dict(zip(table.archs, noise.tolist(), strict=True))
        return TaskTable(self.space, table.spec, values, features=table.features)

    def case(self, name: str, seed: int) -> Case:
        """Return one target and seed, with the seed's own random source architectures, the same for every target."""
        archs = self.plain.random(numpy_stream(seed, "transfer sources"), (), self.source_size)
        others = [table for other, table in self.tables.items() if other != name]
        return Case(
            candidates=self.candidates,
            plain=self.plain,
            target=self.target(name, seed),
            complete=others,
            sources=[table.subset(archs) for table in others],
            seed=seed,
            budget=self.budget,
            cache=None if self.cache is None else self.cache / "models",
        )

    def run(self, case: Case, name: str, method: Method) -> dict[str, Any]:
        """Run one method to the end of its budget and return its record."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # notes are in the record
            search = method.build(case)
            table = case.target
            while trials := search.ask(1):
                search.tell(trials[0].id, table.value(trials[0].arch))
        values = [table.oriented(trial.arch) for trial in search.log.trials]
        best = np.maximum.accumulate(values)
        return {
            "method": name,
            "target": table.spec.name,
            "seed": case.seed,
            "percent": [round(table.rank_percent(float(value)), 5) for value in best],
            "regret": _regret(table, float(best[-1])),
            "evaluations": len(values),
            "source_evaluations": search.source_evaluations,
            "cpu_seconds": round(search.cpu_seconds, 3),
            "source_cpu_seconds": round(getattr(search, "source_cpu_seconds", 0.0), 3),
            "archs": [trial.text for trial in search.log.trials],
            "origins": [trial.origin for trial in search.log.trials],
            "rounds": list(getattr(search, "diagnostics", [])),
            "notes": list(search.notes),
        }

    def path(self, target: str, seed: int, name: str, method: Method) -> Path | None:
        """Return the file of one run, named by everything it depends on."""
        if self.cache is None:
            return None
        facts = [VERSION, self.digest, self.budget, self.source_size, self.scramble, dict(method.settings)]
        digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=5).hexdigest()
        return self.cache / "runs" / f"{target}-{seed:03d}-{name}-{digest}.json"

    def kept(self, target: str, seed: int, name: str, method: Method) -> dict[str, Any] | None:
        """Return a run that was made before."""
        path = self.path(target, seed, name, method)
        if path is None or not path.exists():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is not a run: {error}", hint="remove it to run it again") from error

    def all_runs(
        self, targets: Sequence[str], seeds: Sequence[int], chosen: Mapping[str, Method]
    ) -> list[dict[str, Any]]:
        """Return every run, made now or before; a case that another process works on is left to it."""
        left = [(target, seed) for seed in seeds for target in targets]
        records: dict[tuple[str, int, str], dict[str, Any]] = {}
        while left:
            waiting = []
            for target, seed in left:
                missing: dict[str, Method] = {}
                for name, method in chosen.items():
                    if not method.runs_on(seed, seeds[0]):
                        continue
                    record = self.kept(target, seed, name, method)
                    if record is None:
                        missing[name] = method
                    else:
                        records[target, seed, name] = record
                if missing:
                    try:
                        for record in self._make(target, seed, missing):
                            records[target, seed, record["method"]] = record
                    except StoreError as error:
                        if "in use" not in error.message:
                            raise
                        waiting.append((target, seed))
            if len(waiting) == len(left):
                time.sleep(WAIT_S)
            left = waiting
        return [records[key] for key in sorted(records)]

    def _make(self, target: str, seed: int, missing: Mapping[str, Method]) -> list[dict[str, Any]]:
        """Run what is missing of one case, while no other process does."""
        if self.cache is None:
            case = self.case(target, seed)
            return [self.run(case, name, method) for name, method in missing.items()]
        made = []
        with folder_lock(self.cache / "locks" / f"{target}-{seed:03d}", "measurement"):
            case = self.case(target, seed)
            for name, method in missing.items():
                record = self.kept(target, seed, name, method) or self.run(case, name, method)
                path = self.path(target, seed, name, method)
                assert path is not None
                write_bytes(path, (json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n").encode("utf-8"))
                made.append(record)
        return made


def _regret(table: TaskTable, value: float) -> float:
    """Return ``(best - found) / (best - median)``."""
    values = table.oriented_values()
    best, median = float(values.max()), float(np.median(values))
    return round((best - value) / (best - median), 5) if best > median else 0.0


def run(
    seed: int = 0,
    space: str = "micro",
    table: str | None = None,
    targets: Sequence[str] | None = None,
    seeds: int = 10,
    methods: Sequence[str] | None = None,
    ablations: bool = False,
    ablation_seeds: int | None = None,
    budget: int = 50,
    source_size: int = 100,
    config: Mapping[str, Any] | None = None,
    configurations: Mapping[str, Mapping[str, Any]] | None = None,
    reference: str = "full",
    scramble: bool = False,
    cache: str | None = None,
    *,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure.

    Args:
        seed: the first; ``seeds`` of them follow each other.
        space: "micro" (complete) or "macro" (a sample of 300: coarser, not comparable with published figures).
        table: CSV of the space; default below ``FOLDER``.
        targets: tasks; default all seven.
        seeds: how many.
        methods: names; default all that :func:`all_methods` gives.
        ablations: run those of "full", too.
        ablation_seeds: on how many of the seeds; default all.
        budget: evaluations per run.
        source_size: architectures with known source values.
        config: settings of all methods that predict relations, such as ``{"members": 3}``; default :data:`CONFIG`.
        configurations: name to further settings of "full", run beside it as ``full:NAME``. They, "full" and its
            ablations are what the nested choice is made from.
        reference: the method that the others are tested against.
        scramble: targets of random numbers, as a guard against leaks.
        cache: folder of single runs; default ``runs`` below ``out``.
        out: folder of the results.

    Returns:
        ``methods``: name to :func:`~huaben.bench.transfer_stats.summary`; ``tests``; ``nested``; ``noise_limit``;
        ``published``, as printed by the paper; and the settings.

    Raises:
        UsageError: for unknown names.
        DataError: for an unusable table.
    """
    bench = Bench(
        table or FOLDER / f"{space}.csv",
        space,
        budget=budget,
        source_size=source_size,
        cache=cache or (None if out is None else Path(out) / "cache"),
        scramble=scramble,
    )
    config = CONFIG if config is None else config
    chosen = {
        name: dataclasses.replace(method, limit=ablation_seeds) if name.startswith("full-") else method
        for name, method in all_methods(config, ablations=ablations).items()
    }
    if methods is not None:
        _check("method", methods, chosen)
        chosen = {name: method for name, method in chosen.items() if name in methods or name.startswith("full-")}
    for name, settings in (configurations or {}).items():
        chosen[f"full:{name}"] = _relation_method(f"full with {name}", **merged(dict(config), settings))
    names = list(targets or bench.tables)
    _check("target", names, bench.tables)
    if seeds < 1:
        raise UsageError(f"seeds={seeds} is below 1", hint="use 10")
    numbers = list(range(seed, seed + seeds))
    records = bench.all_runs(names, numbers, chosen)
    by_method = {name: [record for record in records if record["method"] == name] for name in chosen}
    budgets = [size for size in BUDGETS if size <= budget] or [budget]
    scores = {name: spread_scores(runs, numbers) for name, runs in by_method.items()}
    results: dict[str, Any] = {
        "methods": {
            name: {"about": chosen[name].about, **summary(runs, budgets, seed)} for name, runs in by_method.items()
        },
        "tests": {},
        "noise_limit": {},
        "published": PUBLISHED,
        "space": space,
        "rows": len(next(iter(bench.tables.values()))),
        "architectures": len(bench.plain),
        "targets": names,
        "seeds": numbers,
        "budget": budget,
        "source_size": source_size,
        "config": dict(config),
        "table": bench.digest,
        "scrambled": scramble,
    }
    if reference in scores and len(scores) > 1 and is_available("scipy"):
        others = {name: values for name, values in scores.items() if name != reference}
        results["tests"] = {"reference": reference, "against": compare(scores[reference], others)}
    rivals = {name: values for name, values in scores.items() if name.partition(":")[0].partition("-")[0] == "full"}
    if len(rivals) > 1 and len(names) > 1:
        results["nested"] = nested_choice(rivals)
    if not scramble and bench.plain.given is False:
        tables = list(bench.tables.values())
        limits = {name: noise_limit(bench.tables[name], tables, budget, seed) for name in names}
        known = [limit["percent"] for limit in limits.values() if limit["percent"] is not None]
        results["noise_limit"] = {
            "mean_percent": round(float(np.mean(known)), 4) if known else None,
            "per_task": limits,
        }
    return results


def spread_scores(runs: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[tuple[str, int], float]:
    """Return (target, seed) to final percent rank; a run that no seed changes stands for all seeds."""
    scores = {(run["target"], run["seed"]): run["percent"][-1] for run in runs}
    if {seed for _, seed in scores} == {seeds[0]}:
        return {(target, seed): value for (target, _), value in scores.items() for seed in seeds}
    return scores


def _check(kind: str, names: Sequence[str], known: Mapping[str, Any]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"unknown {kind} {', '.join(unknown)}", hint=f"use some of {', '.join(known)}")


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw the mean percent rank of the best found against the evaluations; nothing without Matplotlib."""
    if not is_available("matplotlib"):
        return
    figure_module = require("matplotlib.figure", extra="search")
    figure = figure_module.Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    entries = sorted(record["results"]["methods"].items(), key=lambda item: item[1]["percent"]["mean"])
    for number, (name, entry) in enumerate(entries):
        points = [(int(size), value) for size, value in entry["curve"].items()]
        style: dict[str, Any] = {"color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--"}
        if name == "full":
            style = {"color": "black", "linewidth": 2.5}
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=name, **style)
    limit = record["results"].get("noise_limit", {}).get("mean_percent")
    if limit is not None:
        axes.axhline(limit, color="grey", linestyle=":", label="limit by training noise")
    axes.set_yscale("log")
    axes.set_xlabel("evaluations on the target")
    axes.set_ylabel("percent rank of the best found")
    axes.legend(fontsize=7, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
