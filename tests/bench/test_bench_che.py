"""Length generalisation: what a measurement returns, keeps and reads back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from huaben.bench import che
from huaben.bench.che import PRESETS, ChePreset, one_run, read_run, run, run_path, summarise
from huaben.errors import ConfigError, DataError
from huaben.language.sequence_training import SequenceFit

SMALL = ChePreset(
    width=16, layers=1, heads=2, hidden=4, longest=4, test_to=8, test_strings=16, fit=SequenceFit(steps=4, batch=8)
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "mini", SMALL)


def test_finished_runs_are_read_back(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"tasks": "parity_check", "schemes": "nope,dape-kerple", "seeds": 2, "cache": tmp_path}
    first = run(**asked)
    assert first["missing"] == 0
    files = sorted(path.name.rsplit(".", 2)[0] for path in tmp_path.iterdir())
    assert files == [
        "parity_check.dape-kerple.0",
        "parity_check.dape-kerple.1",
        "parity_check.nope.0",
        "parity_check.nope.1",
    ]
    row = first["tasks"]["parity_check"]["schemes"]["nope"]
    assert row["accuracy"]["n"] == row["seen"]["n"] == 2
    assert list(row["by_length"]) == ["1", "2", "3", "4", "5", "6", "7", "8"]
    record = read_run(run_path(tmp_path, "parity_check", "nope", 1, SMALL))
    assert record is not None
    assert record["accuracy"] == pytest.approx(sum(record["by_length"][str(n)] for n in (5, 6, 7, 8)) / 4, abs=1e-4)
    assert record["settings"] == SMALL.to_dict()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(che, "one_run", refuse)
    assert run(**asked) == first
    with pytest.raises(AssertionError, match="trained again"):
        run(**asked, steps=5)  # other settings are other runs


def test_a_run_depends_on_its_seed_alone(small: None) -> None:
    runs = [one_run("odds_first", "v2-kerple", seed, SMALL) for seed in (0, 0, 1)]
    for record in runs:
        del record["seconds"], record["train_seconds"]
    assert runs[0] == runs[1]
    assert runs[0]["loss"] != runs[2]["loss"]


def test_time_that_is_up_leaves_runs_missing(small: None, tmp_path: Path) -> None:
    found = run(tasks=["even_pairs"], schemes=["nope"], seeds=1, cache=tmp_path, minutes=0)
    assert found["missing"] == 1
    assert found["mean"]["nope"]["n"] == 0
    assert found["tasks"]["even_pairs"]["schemes"]["nope"]["by_length"] == {}


def test_gains_compare_the_same_seeds() -> None:
    def record(accuracy: float) -> dict[str, Any]:
        return {"accuracy": accuracy, "seen": 1.0, "seconds": 1.0, "by_length": {"5": accuracy}}

    found = {
        ("parity_check", "kerple", 0): record(0.5),
        ("parity_check", "kerple", 1): record(0.9),
        ("parity_check", "v2-kerple", 0): record(0.7),
    }
    result = summarise(found, ["parity_check"], ["kerple", "v2-kerple"], 0, 2, SMALL)
    assert result["gain"]["v2-kerple"] == {"mean": 0.2, "n": 1, "low": 0.2, "high": 0.2}
    assert set(result["gain"]) == {"v2-kerple"}
    assert result["mean"]["kerple"]["mean"] == pytest.approx(0.7)
    assert result["missing"] == 1
    assert result["tasks"]["parity_check"]["guess"]["constant"] == pytest.approx(0.5, abs=0.15)


def test_odd_tasks_are_tested_at_odd_lengths(small: None) -> None:
    record = one_run("modular_arithmetic", "alibi", 0, SMALL)
    assert set(record["by_length"]) == {"1", "3", "5", "7"}


def test_the_picture_has_a_panel_a_task(small: None, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = run(tasks="parity_check,bucket_sort", schemes="nope", seeds=1, cache=tmp_path)
    che.plot({"results": results}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 2000


def test_a_spoilt_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "spoilt.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="spoilt"):
        read_run(path)
    path.write_text(json.dumps({"format": 99}), encoding="utf-8")
    with pytest.raises(DataError, match="format 1"):
        read_run(path)
    assert read_run(tmp_path / "absent.json") is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"tasks": "bucketsort"}, "did you mean 'bucket_sort'"),
        ({"schemes": "kerpl"}, "did you mean 'kerple'"),
        ({"preset": "huge"}, "mini, small"),
        ({"seeds": 0}, "0 seeds"),
        ({"tasks": ""}, "0 tasks"),
    ],
)
def test_impossible_settings_are_refused(asked: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(cache=tmp_path / "none", **asked)
    assert not (tmp_path / "none").exists()


def test_presets_are_those_of_the_papers_sizes() -> None:
    mini, small = PRESETS["mini"], PRESETS["small"]
    assert (mini.width, mini.layers, mini.heads, mini.longest, mini.test_to, mini.fit.steps) == (64, 3, 4, 20, 60, 5000)
    assert (small.width, small.layers, small.heads, small.hidden, small.longest, small.test_to) == (
        256,
        5,
        8,
        64,
        40,
        500,
    )
    with pytest.raises(ConfigError, match="test_to=4"):
        ChePreset(longest=4, test_to=4)
