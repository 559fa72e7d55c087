"""The transfer measurement: its statistics, kept runs, and that nothing leaks from the target."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from huaben.archsearch.sequences import TransNASMacro
from huaben.archsearch.task import TRANSNAS_TASKS, TaskTable
from huaben.bench import transfer
from huaben.bench.transfer_stats import compare, holm, nested_choice, noise_limit, summary
from huaben.errors import DataError, StoreError, UsageError
from huaben.files import folder_lock

TASKS = ("class_scene", "class_object", "jigsaw")
QUICK = {
    "members": 2,
    "top": 32,
    "references": 32,
    "predictor": {"layers": 1, "width": 8, "head_width": 8, "task_dim": 2, "source_steps": 8, "target_steps": 5},
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 120 macro architectures with related made-up values on three tasks."""
    space, rng = TransNASMacro(), np.random.default_rng(0)
    archs = space.sample_distinct(120, rng)
    lines = ["arch,params,flops,jigsaw,class_object,class_scene"]
    for arch in archs:
        size = 1.0 + sum(arch) + rng.random()
        values = [size + 2 * rng.standard_normal() for _ in TASKS]
        lines.append(",".join([space.format(arch), str(size), str(size), *map(str, values)]))
    path = tmp_path_factory.mktemp("table") / "macro.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def measure(table: Path, **values: Any) -> dict[str, Any]:
    first: dict[str, Any] = {"space": "macro", "seeds": 2, "budget": 20, "source_size": 30, "config": QUICK}
    return transfer.run(table=str(table), **{**first, **values})


def test_every_method_is_measured_on_every_target(table: Path) -> None:
    found = json.loads(json.dumps(measure(table, seeds=1, ablations=True)))
    assert set(found["methods"]) == set(transfer.all_methods(ablations=True))
    for name, entry in found["methods"].items():
        assert entry["runs"] == 3, name
        assert entry["evaluations"] == 20, name
        assert set(entry["per_task"]) == set(TASKS)
        assert list(entry["curve"].values()) == sorted(entry["curve"].values(), reverse=True)
        assert 0 < entry["percent"]["mean"] <= 100
    assert found["methods"]["random"]["source_evaluations"] == found["methods"]["single"]["source_evaluations"] == 0
    assert found["methods"]["full"]["source_evaluations"] == 2 * 30
    assert found["tests"]["reference"] == "full"
    assert set(found["tests"]["against"]) == set(found["methods"]) - {"full"}
    assert found["published"]["status"] == "published"
    assert found["published"]["average_percent"] == [0.16, 0.29]


def test_runs_are_kept_and_read_back(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measure(table, methods=["random", "evolution"], reference="evolution", cache=str(tmp_path))
    assert len(list((tmp_path / "runs").glob("*.json"))) == 12

    def never(*_: Any) -> Any:
        raise AssertionError("ran again")

    monkeypatch.setattr(transfer.Bench, "run", never)
    again = measure(table, methods=["random", "evolution"], reference="evolution", cache=str(tmp_path))
    assert again == first
    with pytest.raises(AssertionError, match="ran again"):
        measure(table, methods=["random"], budget=19, cache=str(tmp_path))


def test_ablations_may_run_on_fewer_seeds(table: Path) -> None:
    found = measure(table, methods=["flops"], ablations=True, ablation_seeds=1, seeds=2, targets=["jigsaw"], budget=10)
    runs = {name: entry["seeds"] for name, entry in found["methods"].items()}
    assert runs.pop("flops") == 1
    assert set(runs.values()) == {1} and len(runs) == 7


def test_a_case_in_use_is_left_to_the_other_process(table: Path, tmp_path: Path) -> None:
    bench = transfer.Bench(table, "macro", budget=5, source_size=10, cache=tmp_path)
    chosen = {"random": transfer.all_methods()["random"]}
    held = folder_lock(tmp_path / "locks" / "jigsaw-000", "measurement")
    with held, pytest.raises(StoreError, match="in use"):
        bench._make("jigsaw", 0, chosen)
    assert [run["target"] for run in bench.all_runs(["jigsaw"], [0], chosen)] == ["jigsaw"]


@pytest.mark.slow
def test_two_processes_share_the_work(table: Path, tmp_path: Path) -> None:
    code = (
        "import json,sys; from huaben.bench import transfer; r = transfer.run(space='macro', table=sys.argv[1], seeds=4,"
        "methods=['random', 'evolution'], budget=20, source_size=30, reference='random', cache=sys.argv[2]);"
        "print(json.dumps(r['methods'], sort_keys=True))"
    )
    line = [sys.executable, "-c", code, str(table), str(tmp_path)]
    both = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=os.environ.copy()) for _ in range(2)]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert printed[0] == printed[1] != ""


def test_the_seed_decides_the_sources_and_the_target_does_not(table: Path) -> None:
    bench = transfer.Bench(table, "macro", source_size=10)
    one, other, later = bench.case("jigsaw", 1), bench.case("class_scene", 1), bench.case("jigsaw", 2)
    assert one.sources[0].archs == other.sources[0].archs
    assert one.sources[0].archs != later.sources[0].archs
    assert {t.spec.name for t in one.sources} == {"class_scene", "class_object"}


def test_unknown_names_are_refused(table: Path, tmp_path: Path) -> None:
    for values in ({"methods": ["magic"]}, {"targets": ["chess"]}, {"seeds": 0}, {"space": "nano"}):
        with pytest.raises(UsageError):
            measure(table, **values)
    with pytest.raises(DataError, match="cannot read"):
        transfer.run(table=str(tmp_path / "no.csv"))


def test_further_configurations_enter_the_nested_choice(table: Path) -> None:
    found = measure(table, methods=["full"], seeds=1, configurations={"greedy": {"explore": 0}})
    assert set(found["methods"]) == {"full", "full:greedy"}
    assert set(found["nested"]["chosen"].values()) <= {"full", "full:greedy"}
    assert set(found["nested"]["per_task"]) == set(TASKS)


# -------------------------------------------------------------------------------------------------------- statistics


def record(target: str, seed: int, curve: list[float]) -> dict[str, Any]:
    costs = {"cpu_seconds": 1.0, "source_cpu_seconds": 2.0, "evaluations": len(curve), "source_evaluations": 0}
    return {"target": target, "seed": seed, "percent": curve, "regret": curve[-1] / 10, **costs}


def test_summary_of_known_runs() -> None:
    runs = [
        record("a", 0, [4.0, 1.0]),
        record("b", 0, [9.0, 3.0]),
        record("a", 1, [8.0, 0.2]),
        record("b", 1, [5.0, 5.0]),
    ]
    found = summary(runs, (1, 2), seed=0)
    assert found["percent"]["mean"] == pytest.approx(2.3)
    assert found["percent"]["n"] == 2  # seeds: runs of one seed are not independent
    assert found["median"] == 2.0
    assert found["worst_task"] == {"task": "b", "mean": 4.0}
    assert found["worst_run"] == 5.0
    assert found["curve"] == {"1": 6.5, "2": 2.3}
    assert found["within_top"] == {"0.29": 0.25, "1": 0.5, "5": 1.0}


def test_holm_is_the_step_down_correction() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_compare_counts_pairs_and_sees_a_difference() -> None:
    pytest.importorskip("scipy")
    rng = np.random.default_rng(0)
    pairs = [(task, seed) for task in "abc" for seed in range(10)]
    good = {pair: float(rng.random()) for pair in pairs}
    bad = {pair: value + 1 + float(rng.random()) for pair, value in good.items()}
    found = compare(good, {"bad": bad, "same": dict(good)})
    assert (found["bad"]["better"], found["bad"]["worse"]) == (30, 0)
    assert found["bad"]["p_holm"] < 0.001 <= found["same"]["p"] == 1.0
    assert found["same"]["tied"] == 30


def test_nested_choice_never_looks_at_the_reported_target() -> None:
    tricky = {"x": {("a", 0): 0.0, ("b", 0): 9.0, ("c", 0): 9.0}, "y": {("a", 0): 5.0, ("b", 0): 1.0, ("c", 0): 1.0}}
    found = nested_choice(tricky)
    assert found["chosen"]["a"] == "y"  # though x is perfect there
    assert found["per_task"] == {"a": 5.0, "b": 1.0, "c": 1.0}
    with pytest.raises(DataError, match="not run on"):
        nested_choice({"x": tricky["x"], "y": {("a", 0): 1.0}})


def test_the_noise_limit_grows_with_the_noise() -> None:
    from huaben.archsearch.cells import TransNASMicro

    space, rng = TransNASMicro(), np.random.default_rng(0)
    archs = list(space.enumerate())
    truth: dict[str, float] = {}
    for arch in archs:
        truth.setdefault(space.canonical(arch), float(rng.standard_normal()))
    limits = []
    for noise in (0.02, 0.5):
        values = {arch: truth[space.canonical(arch)] + noise * float(rng.standard_normal()) for arch in archs}
        table = TaskTable(space, TRANSNAS_TASKS["jigsaw"], values)
        found = noise_limit(table, [table], 50, 0, draws=40)
        assert found["noise"] == pytest.approx(noise, rel=0.15)
        limits.append(found["single_pick"])
    assert limits[1] > 3 * limits[0]


# ------------------------------------------------------------------------------------------------------------- leaks


def test_a_target_of_random_numbers_cannot_be_searched(table: Path) -> None:
    """Full on scrambled targets is as good as random search: within three standard errors of its expectation."""
    found = measure(table, methods=["full"], seeds=6, scramble=True)
    expected = 100 * rank_of_best(120, 20) / 120
    assert found["scrambled"]
    runs = 18
    spread = expected / np.sqrt(runs)  # the best rank of a random sample is close to exponential
    assert abs(found["methods"]["full"]["percent"]["mean"] - expected) < 3 * spread


def rank_of_best(rows: int, draws: int) -> float:
    """Return the expected rank of the best of ``draws`` rows without replacement."""
    return (rows + 1) / (draws + 1)


@pytest.mark.slow
def test_the_real_table_is_searched_better_than_at_random(shared_data: Callable[[str], Path]) -> None:
    path = shared_data("transnas101/micro.csv")
    found = transfer.run(table=str(path), targets=["class_scene"], seeds=1, methods=["full", "random"])
    assert found["rows"] == 4096
    assert found["architectures"] == 2668
    assert found["methods"]["full"]["percent"]["mean"] < 2.0
    assert found["noise_limit"]["mean_percent"] < 0.2
