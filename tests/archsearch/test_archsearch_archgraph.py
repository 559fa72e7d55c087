"""Arch-Graph's loop: variants, resume, fallbacks, and that it learns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from huaben.archsearch.candidates import Candidates
from huaben.archsearch.cells import CellSpace
from huaben.archsearch.methods import load_search
from huaben.archsearch.relation import RelationConfig
from huaben.archsearch.search import ArchGraph, ArchGraphConfig
from huaben.archsearch.searcher import Searcher
from huaben.archsearch.task import TaskSpec, TaskTable
from huaben.archsearch.variants import BRPConfig, PairwiseBRP, UtilityConfig, UtilityRanker
from huaben.errors import ConfigError

SPACE = CellSpace(
    nodes=4,
    ops=("none", "skip", "conv"),
    edges=[(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)],
    null_op="none",
    name="small",
)
CANDIDATES = Candidates(SPACE)
TASK = TaskSpec("target", "max")
QUICK = RelationConfig(
    layers=2, width=16, head_width=16, task_dim=4, source_steps=30, target_steps=25, dropout=0.0, restart="source"
)


def metric(arch: tuple[int, ...], tilt: float = 0.0) -> float:
    """Convolutions are good, the later the better; ``tilt`` makes related tasks."""
    return float(sum((1 + place + tilt * (place % 2)) * (choice == 2) for place, choice in enumerate(arch)))


def sources(count: int = 40) -> list[TaskTable]:
    archs = CANDIDATES.random(np.random.default_rng(0), (), count)
    return [
        TaskTable(SPACE, TaskSpec(f"source{tilt}", "max"), {arch: metric(arch, tilt) for arch in archs})
        for tilt in (0.5, 1.0)
    ]


def config(**values: Any) -> ArchGraphConfig:
    first: dict[str, Any] = {"budget": 20, "start": 6, "round_size": 5, "explore": 1, "members": 2, "top": 32}
    return ArchGraphConfig(**{**first, "references": 32, "predictor": QUICK, **values})


def make(seed: int = 0, *, tables: list[TaskTable] | None = None, **values: Any) -> ArchGraph:
    found = sources() if tables is None else tables
    return ArchGraph(SPACE, TASK, sources=found, config=config(**values), seed=seed, candidates=CANDIDATES)


def run(search: Searcher, batch: int = 1) -> list[str]:
    order = []
    while not search.done():
        for trial in search.ask(batch):
            order.append(trial.text)
            search.tell(trial.id, metric(trial.arch))
    return order


def best(search: Searcher) -> float:
    return max(value for _, value in search.labels())


def test_full_finds_what_random_does_not_and_single_learns() -> None:
    top = max(metric(arch) for arch in CANDIDATES.archs)
    full = make()
    assert len(run(full)) == 20
    assert best(full) >= top - 1
    single = make(tables=[], variant="single")
    run(single)
    origins = [trial.origin for trial in single.log.trials]
    assert origins[:6] == ["start"] * 6 and "top" in origins[6:]
    start = np.mean([metric(t.arch) for t in single.log.trials[:6]])
    later = np.mean([metric(t.arch) for t in single.log.trials if t.origin == "top"])
    assert later > start + 2


def test_zero_ranks_once_from_the_sources_alone() -> None:
    search = make(variant="zero", budget=12)
    asked = search.ask(12)
    assert {trial.origin for trial in asked} == {"top"}
    assert search.log.rounds == 1
    for trial in asked:
        search.tell(trial.id, -metric(trial.arch))  # what is told changes nothing
    assert np.mean([metric(trial.arch) for trial in asked]) > np.mean([metric(a) for a in CANDIDATES.archs]) + 3
    assert any("no task vector" in note for note in search.notes)


pytestmark = pytest.mark.filterwarnings("ignore:no task vector of the target", "ignore:no source tables")


def test_rounds_hold_top_and_explored_ones() -> None:
    search = make(budget=10, explore=2)
    origins = [trial.origin for trial in search.ask(5)]
    assert origins == ["top"] * 3 + ["explore"] * 2
    thompson = make(budget=10, explore=2, exploration="thompson")
    assert [trial.origin for trial in thompson.ask(5)] == ["top"] * 3 + ["thompson"] * 2
    none = make(budget=10, explore=0)
    assert {trial.origin for trial in none.ask(5)} == {"top"}


@pytest.mark.parametrize("orderer", ["mwas", "win_score", "insertion", "utility"])
def test_every_orderer_runs_and_reports_what_it_kept(orderer: str) -> None:
    search = make(orderer=orderer, budget=10)
    run(search, 5)
    result = search.result()
    assert 0 < result.diagnostics["kept_weight"] <= result.diagnostics["total_weight"] + 1e-6
    if orderer == "utility":
        assert search.source_model().config.head == "utility"
    places = [place.text for place in result.ranking]
    assert len(set(places)) == len(places)
    told = {place.text: place.value for place in result.ranking if place.value is not None}
    assert set(told) == {trial.text for trial in result.trials}


def test_observed_relations_are_never_contradicted() -> None:
    search = make(budget=15)
    run(search, 5)
    values = [place.value for place in search.result().ranking if place.value is not None]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("restart", ["source", "previous"])
def test_a_killed_search_goes_on_as_if_it_had_not_been(tmp_path: Path, restart: Any) -> None:
    settings = {"budget": 16, "predictor": QUICK.replace(restart=restart)}
    whole = run(make(3, **settings))
    search: Searcher = make(3, **settings)
    search.save(tmp_path / "run")
    order: list[str] = []
    for count in range(16):
        trial = search.ask(1)[0]
        order.append(trial.text)
        if count in (2, 7, 12):
            search = load_search(tmp_path / "run")
        search.tell(trial.id, metric(trial.arch))
        if count in (4, 9, 14):  # between two rounds
            search = load_search(tmp_path / "run")
    assert order == whole
    assert not list((tmp_path / "run").rglob("*.pkl"))


def test_the_same_seed_gives_the_same_and_another_differs() -> None:
    assert run(make(1, budget=10)) == run(make(1, budget=10))
    assert run(make(1, budget=10)) != run(make(2, budget=10))


def test_the_order_of_outcomes_does_not_matter() -> None:
    orders = []
    for reverse in (False, True):
        search = make(budget=10)
        first = search.ask(5)
        for trial in sorted(first, key=lambda t: t.id, reverse=reverse):
            search.tell(trial.id, metric(trial.arch))
        orders.append([trial.text for trial in search.ask(5)])
    assert orders[0] == orders[1]


def test_direction_and_sign_together_change_nothing() -> None:
    texts = []
    for direction, sign in (("max", 1.0), ("min", -1.0)):
        tables = [
            TaskTable(SPACE, TaskSpec(t.spec.name, direction), {a: sign * v for a, v in t.raw.items()})  # type: ignore[arg-type]
            for t in sources()
        ]
        task = TaskSpec("target", direction)  # type: ignore[arg-type]
        search = ArchGraph(SPACE, task, sources=tables, config=config(budget=10), candidates=CANDIDATES)
        while trials := search.ask(1):
            search.tell(trials[0].id, sign * metric(trials[0].arch))
        texts.append([trial.text for trial in search.log.trials])
    assert texts[0] == texts[1]


def test_without_sources_full_becomes_single_and_zero_is_refused() -> None:
    with pytest.warns(UserWarning, match="no source tables"):
        search = make(tables=[])
    assert search.variant == "single"
    with pytest.raises(ConfigError, match="needs source tables"):
        make(tables=[], variant="zero")


def test_a_source_that_teaches_nothing_is_skipped() -> None:
    one = TaskTable(SPACE, TaskSpec("one", "max"), {CANDIDATES.archs[0]: 1.0})
    flat = TaskTable(SPACE, TaskSpec("flat", "max"), dict.fromkeys(CANDIDATES.archs[:9], 2.0))
    with pytest.warns(UserWarning, match="fewer than two different values"):
        search = make(tables=[*sources(), one, flat], budget=5)
    assert search.source_model().num_sources == 2
    with pytest.raises(ConfigError, match="two source tables"):
        make(tables=[*sources(), sources()[0]])


def test_values_that_are_all_equal_or_missing_fall_back_to_the_prior() -> None:
    search = make(budget=10)
    for trial in search.ask(5):
        search.tell(trial.id, 1.0)
    with pytest.warns(UserWarning, match="all values are equal"):
        again = search.ask(5)
    assert len(again) == 5
    broken = make(budget=10, max_retries=0)
    for trial in broken.ask(5):
        broken.tell(trial.id, math.nan)
    assert len(broken.ask(5)) == 5
    assert broken.result().best is None


def test_task_vectors_are_used_and_must_be_complete() -> None:
    tables = sources()
    vectors = {"source0.5": [1.0, 0, 0, 0], "source1.0": [0, 1.0, 0, 0], "target": [0.5, 0.5, 0, 0]}

    def first(vectors: dict[str, list[float]]) -> list[str]:
        search = ArchGraph(
            SPACE,
            TASK,
            sources=tables,
            config=config(variant="zero", budget=5),
            task_vectors=vectors,
            candidates=CANDIDATES,
        )
        return [trial.text for trial in search.ask(5)]

    assert first(vectors) == first(vectors)
    far = {**vectors, "target": [-9.0, 9.0, 9.0, -9.0]}
    assert first(vectors) != first(far)
    with pytest.raises(ConfigError, match="no task vector for source1.0".replace(".", r"\.")):
        first({"source0.5": [0.0] * 4})


def test_features_reach_the_predictor_and_survive_saving(tmp_path: Path) -> None:
    size = {arch: 1.0 + sum(arch) for arch in SPACE.enumerate()}
    tables = [TaskTable(SPACE, table.spec, table.raw, features={"flops": size}) for table in sources()]
    search = ArchGraph(SPACE, TASK, sources=tables, config=config(budget=5), candidates=CANDIDATES)
    assert search.candidates.encode(CANDIDATES.archs[:3]).num_extra == 1
    search.save(tmp_path)
    again = load_search(tmp_path)
    np.testing.assert_allclose(
        again.candidates.encode(CANDIDATES.archs[:9]).extra, search.candidates.encode(CANDIDATES.archs[:9]).extra
    )
    assert [t.text for t in again.ask(5)] == [
        t.text for t in ArchGraph(SPACE, TASK, sources=tables, config=config(budget=5), candidates=CANDIDATES).ask(5)
    ]
    plain = ArchGraph(SPACE, TASK, sources=tables, config=config(use_features=False), candidates=CANDIDATES)
    assert plain.candidates.encode(CANDIDATES.archs[:3]).num_extra == 0


def test_a_space_too_large_to_list_is_sampled_and_mutated() -> None:
    big = CellSpace(
        nodes=5,
        ops=("none", "skip", "conv", "pool"),
        edges=[(i, j) for j in range(1, 5) for i in range(j)],
        null_op="none",
    )
    search = ArchGraph(big, TASK, config=config(variant="single", budget=15, pool_size=60, max_enumerate=100))
    assert not search.candidates.listed
    run(search, 5)
    values = [metric(trial.arch) for trial in search.log.trials]
    assert np.mean(values[6:]) > np.mean(values[:6])
    assert len({trial.key for trial in search.log.trials}) == 15


def test_pretrained_sources_are_shared_and_left_alone() -> None:
    first = make(budget=10)
    model = first.source_model()
    before = {key: value.clone() for key, value in model._source_state.items()}
    second = ArchGraph(
        SPACE, TASK, sources=sources(), config=config(budget=10), candidates=CANDIDATES, pretrained=model
    )
    assert run(second) == run(make(budget=10))
    assert all((model._source_state[key] == value).all() for key, value in before.items())
    assert model.rounds == 0


def test_brp_sorts_by_comparison_and_utility_has_no_cycles() -> None:
    quick = QUICK.replace(head="concat")
    brp = PairwiseBRP(
        SPACE,
        TASK,
        candidates=CANDIDATES,
        config=BRPConfig(budget=15, start=5, round_size=5, explore=2, predictor=quick),
    )
    run(brp)
    origins = [trial.origin for trial in brp.log.trials]
    assert origins == ["start"] * 5 + (["top"] * 3 + ["explore"] * 2) * 2
    utility = UtilityRanker(
        SPACE,
        TASK,
        sources=sources(),
        candidates=CANDIDATES,
        config=UtilityConfig(budget=10, round_size=5, explore=1, members=2, predictor=QUICK),
    )
    run(utility)
    assert utility.source_model().config.head == "utility"


@pytest.mark.parametrize(
    "values",
    [{"explore": 6}, {"orderer": "sort"}, {"tau": 0.6}, {"kappa": -1.0}, {"members": 0}, {"top": 3}, {"start": 1}],
)
def test_impossible_settings_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        config(**values)


def test_settings_survive_json() -> None:
    settings = config(orderer="insertion", explore=0)
    assert ArchGraphConfig.from_dict(settings.to_dict()) == settings
