"""Baselines: each proposes what its name says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from huaben.archsearch.baselines import (
    EvolutionConfig,
    FlopsRanker,
    OptunaTPE,
    RandomSearch,
    RegularisedEvolution,
    SourceRanker,
)
from huaben.archsearch.candidates import Candidates
from huaben.archsearch.cells import CellSpace
from huaben.archsearch.methods import METHODS, SEARCHERS, load_search, make_search
from huaben.archsearch.regressor import GCNRegressor, RegressorConfig
from huaben.archsearch.searcher import SearchConfig, Searcher
from huaben.archsearch.task import TaskSpec, TaskTable
from huaben.errors import CheckpointError, ConfigError

SPACE = CellSpace(
    nodes=4,
    ops=("none", "skip", "conv"),
    edges=[(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)],
    null_op="none",
    name="small",
)
CANDIDATES = Candidates(SPACE)
TASK = TaskSpec("toy", "max")
BUDGET = SearchConfig(budget=30)


def metric(arch: tuple[int, ...]) -> float:
    return float(sum((place + 1) * (choice == 2) for place, choice in enumerate(arch)))


def table(name: str, sign: float = 1.0) -> TaskTable:
    return TaskTable(SPACE, TaskSpec(name, "max"), {arch: sign * metric(arch) for arch in CANDIDATES.archs})


def run(search: Searcher) -> list[float]:
    while trials := search.ask(1):
        search.tell(trials[0].id, metric(trials[0].arch))
    keys = [trial.key for trial in search.log.trials]
    assert len(set(keys)) == len(keys) == search.config.budget
    return [trial.value for trial in search.log.trials if trial.value is not None]


def test_evolution_and_tpe_beat_random() -> None:
    def mean(kind: type[Searcher], config: SearchConfig) -> float:
        return float(
            np.mean([max(run(kind(SPACE, TASK, config=config, seed=s, candidates=CANDIDATES))) for s in range(4)])
        )

    random = mean(RandomSearch, BUDGET)
    assert mean(RegularisedEvolution, EvolutionConfig(budget=30)) > random + 0.5
    assert mean(OptunaTPE, BUDGET) > random + 0.5


def test_evolution_needs_a_tournament_that_fits() -> None:
    with pytest.raises(ConfigError, match="tournament=11"):
        EvolutionConfig(population=10, tournament=11)


def test_flops_ranker_goes_from_large_to_small() -> None:
    scores = {arch: float(sum(arch)) for arch in SPACE.enumerate()}
    search = FlopsRanker(SPACE, TASK, scores=scores, config=BUDGET, candidates=CANDIDATES)
    run(search)
    sizes = [sum(trial.arch) for trial in search.log.trials]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 12


def test_flops_ranker_goes_on_at_random_where_nothing_is_known(tmp_path: Path) -> None:
    known = dict.fromkeys(CANDIDATES.archs[:5], 1.0)
    search = FlopsRanker(SPACE, TASK, scores=known, config=BUDGET, candidates=CANDIDATES)
    search.save(tmp_path)
    run(search)
    origins = [trial.origin for trial in search.log.trials]
    assert origins[:5] == ["top"] * 5 and set(origins[5:]) == {"random"}
    again = load_search(tmp_path)
    assert isinstance(again, FlopsRanker)
    assert again.scores == search.scores


def test_source_ranker_takes_the_best_of_the_sources(tmp_path: Path) -> None:
    search = SourceRanker(SPACE, TASK, sources=[table("a"), table("b")], config=BUDGET, candidates=CANDIDATES)
    search.save(tmp_path)
    values = run(search)
    assert values[0] == max(metric(arch) for arch in CANDIDATES.archs)
    assert values == sorted(values, reverse=True)
    assert search.result().source_evaluations == 2 * len(CANDIDATES)
    again = load_search(tmp_path)
    assert [place.text for place in again.result().ranking[:5]] == [p.text for p in search.result().ranking[:5]]
    with pytest.raises(ConfigError, match="no source"):
        SourceRanker(SPACE, TASK, sources=[])


def test_regressor_learns_what_is_good(tmp_path: Path) -> None:
    config = RegressorConfig(budget=40, start=15, width=16, layers=2, members=2, steps=60, explore=2)
    search = GCNRegressor(SPACE, TASK, config=config, candidates=CANDIDATES, seed=1)
    values = run(search)
    assert [trial.origin for trial in search.log.trials][:15] == ["start"] * 15
    later = [v for v, t in zip(values, search.log.trials, strict=True) if t.origin == "top"]
    assert np.mean(later) > np.mean(values[:15]) + 2


def test_a_resumed_evolution_proposes_the_same(tmp_path: Path) -> None:
    config = EvolutionConfig(budget=25)
    whole = run(RegularisedEvolution(SPACE, TASK, config=config, seed=2, candidates=CANDIDATES))
    search: Searcher = RegularisedEvolution(SPACE, TASK, config=config, seed=2, candidates=CANDIDATES)
    search.save(tmp_path)
    values = []
    while trials := search.ask(1):
        values.append(metric(trials[0].arch))
        search.tell(trials[0].id, values[-1])
        if len(values) == 15:
            search = load_search(tmp_path)
    assert values == whole


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("zero", "source_rank", "full", "utility")])
def test_every_method_is_made_by_name(name: str) -> None:
    search = make_search(name, SPACE, TASK, settings={"budget": 3}, seed=1)
    assert SEARCHERS[search.method] is type(search)
    assert search.config.budget == 3


def test_unknown_methods_settings_and_useless_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'random'"):
        make_search("randm", SPACE, TASK)
    with pytest.raises(ConfigError, match="has no field"):
        make_search("random", SPACE, TASK, settings={"populations": 3})
    with pytest.raises(ConfigError, match="uses no sources"):
        make_search("random", SPACE, TASK, sources=[table("a")])
    (tmp_path / "search.json").write_text(
        '{"format": "huaben search", "format_version": 1, "method": "magic", "space": {}, "task": {}, "seed": 0, "config": {}}'
    )
    with pytest.raises(CheckpointError, match="magic"):
        load_search(tmp_path)


def test_only_given_architectures_are_proposed(tmp_path: Path) -> None:
    given = Candidates(SPACE, archs=CANDIDATES.archs[::7])
    for kind in (RandomSearch, RegularisedEvolution, OptunaTPE):
        search = kind(SPACE, TASK, config=kind.config_class(budget=20), candidates=given)
        while trials := search.ask(1):
            search.tell(trials[0].id, metric(trials[0].arch))
        assert {trial.key for trial in search.log.trials} <= set(given.keys)
        search.save(tmp_path / kind.__name__)
        again = kind.load(tmp_path / kind.__name__)
        assert again.candidates.given and set(again.candidates.keys) == set(given.keys)
        assert [trial.key for trial in again.log.trials] == [trial.key for trial in search.log.trials]
