"""The extrapolation measurement: every scheme on the same windows, a cache that is used, checks that can fail."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from huaben.bench import extrapolation
from huaben.errors import ConfigError, DataError
from huaben.language.corpus import read_documents

SETTINGS: dict[str, Any] = {
    "schemes": "rope,kerple,dape-kerple,v2-kerple",
    "one_seed": "rope",
    "seeds": 2,
    "steps": 3,
    "train_length": 16,
    "lengths": "16,64",
    "windows": 6,
    "scored": 32,
    "batch_size": 2,
    "layers": 1,
    "width": 8,
    "heads": 2,
    "hidden": 4,
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    for name in ("train", "valid"):
        words = " ".join("".join(chr(97 + v) for v in rng.integers(0, 6, 4)) for _ in range(400))
        (folder / f"{name}.txt").write_text(words)
    return {name: str(folder / f"{name}.txt") for name in ("train", "valid")}


@pytest.fixture(scope="module")
def found(texts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    cache = str(tmp_path_factory.mktemp("cache"))
    return extrapolation.run(seed=1, **texts, **SETTINGS, cache=cache), cache


def test_every_scheme_has_every_length(found: tuple[dict[str, Any], str]) -> None:
    results = json.loads(json.dumps(found[0]))
    assert (results["shared"], results["tail"]) == (16, 4)
    assert {name: scheme["seeds"] for name, scheme in results["schemes"].items()} == {
        "rope": [1], "kerple": [1, 2], "dape-kerple": [1, 2], "v2-kerple": [1, 2],
    }  # fmt: skip
    for scheme in results["schemes"].values():
        for length, row in scheme["lengths"].items():
            assert row["scored"] == min(int(length), 32)
            assert row["perplexity"]["n"] == 6
            assert row["perplexity"]["low"] < row["perplexity"]["mean"] < row["perplexity"]["high"]
            assert row["perplexity"]["mean"] == pytest.approx(math.exp(row["loss"]["mean"]), rel=1e-3)
            assert len(row["by_seed"]) == len(scheme["seeds"])
    assert set(results["paired"]) == {"v2-kerple - dape-kerple", "dape-kerple - kerple", "v2-kerple - kerple"}
    difference = results["paired"]["v2-kerple - kerple"]["64"]["mean"]
    means = [results["schemes"][name]["lengths"]["64"]["loss"]["mean"] for name in ("v2-kerple", "kerple")]
    assert difference == pytest.approx(means[0] - means[1], abs=2e-4)
    for check in results["checks"].values():
        assert check["holds"] == (check["difference"]["mean"] <= 0)


def test_nothing_is_computed_twice(
    found: tuple[dict[str, Any], str], texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fit", "score_length"):
        monkeypatch.setattr(extrapolation, name, lambda *_, **__: pytest.fail("computed again"))
    assert extrapolation.run(seed=1, **texts, **SETTINGS, cache=found[1]) == found[0]


def test_other_settings_train_again(
    found: tuple[dict[str, Any], str], texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(extrapolation, "fit", stop)
    for change in ({"steps": 4}, {"learning_rate": 1e-3}, {"width": 16}, {"train_length": 8}):
        with pytest.raises(KeyboardInterrupt):
            extrapolation.run(seed=1, **texts, **(SETTINGS | change), cache=found[1])


def losses(value: float, noise: float = 0.0) -> np.ndarray[Any, Any]:
    return np.full((20, 8), value) + noise * np.random.default_rng(0).normal(size=(20, 8))


def test_checks_follow_the_losses() -> None:
    card = [{"parameters": 1, "minutes": 1.0}]
    runs = {
        "rope": {0: {4: losses(1.0), 32: losses(3.0)}},
        "kerple": {0: {4: losses(1.0), 32: losses(1.2)}},
        "dape-kerple": {0: {4: losses(0.9), 32: losses(0.8)}},
        "v2-kerple": {0: {4: losses(0.8), 32: losses(0.85)}},
    }
    trained = {name: card for name in runs}
    found = extrapolation.summary(runs, trained, seed=0, lengths=[4, 32], train_length=4, steps=1)
    holds = {name: check["holds"] for name, check in found["checks"].items()}
    assert holds == {
        "dape-kerple at 32 no worse than at 4": True,
        "dape-kerple at 32 no worse than at 4_tail": True,
        "v2-kerple at 32 no worse than at 4": False,
        "v2-kerple at 32 no worse than at 4_tail": False,
        "v2-kerple no worse than dape-kerple at 4": True,
        "v2-kerple no worse than dape-kerple at 32": False,
        "dape-kerple no worse than kerple at 4": True,
        "dape-kerple no worse than kerple at 32": True,
        "v2-kerple no worse than kerple at 4": True,
        "v2-kerple no worse than kerple at 32": True,
        "rope at 32 worse than at 4": True,
    }


def test_seeds_are_averaged_and_pairs_use_the_common_ones() -> None:
    card = {"parameters": 1, "minutes": 1.0}
    runs = {
        "kerple": {0: {4: losses(1.0)}},
        "dape-kerple": {0: {4: losses(2.0)}, 1: {4: losses(0.0)}},
    }
    trained = {"kerple": [card], "dape-kerple": [card, card]}
    found = extrapolation.summary(runs, trained, seed=0, lengths=[4], train_length=4, steps=1)
    assert found["schemes"]["dape-kerple"]["lengths"]["4"]["loss"]["mean"] == 1.0
    assert found["schemes"]["dape-kerple"]["lengths"]["4"]["seed_std"] > 1
    assert found["paired"]["dape-kerple - kerple"]["4"]["mean"] == 1.0
    assert found["paired"]["dape-kerple - kerple"]["4"]["by_seed"] == [1.0]


def test_a_run_out_of_time_reports_what_it_has(texts: dict[str, str], tmp_path: Path) -> None:
    found = extrapolation.run(**texts, **SETTINGS, cache=str(tmp_path), limit_minutes=0)
    assert list(found["schemes"]) == ["rope"]
    assert list(found["checks"]) == ["rope at 64 worse than at 16"]


def test_a_picture_is_drawn(found: tuple[dict[str, Any], str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    extrapolation.plot({"results": found[0]}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_impossible_settings_are_refused(texts: dict[str, str], tmp_path: Path) -> None:
    def run(**changes: Any) -> None:
        extrapolation.run(**(texts | SETTINGS | {"cache": str(tmp_path)} | changes))

    with pytest.raises(ConfigError, match="did you mean 'kerple'"):
        run(schemes="kerpel")
    with pytest.raises(ConfigError, match="seeds=0"):
        run(seeds=0)
    with pytest.raises(ConfigError, match="not numbers"):
        run(lengths="16,long")
    with pytest.raises(DataError, match="absent"):
        run(train="absent.txt")
    with pytest.raises(DataError, match="windows of"):
        run(lengths=100_000)


def test_long_documents_are_read_whole(shared_data: Callable[[str], Path]) -> None:
    documents = list(read_documents(shared_data("text/stacks_valid.txt.xz")))
    assert len(documents) == 8
    assert min(map(len, documents)) > 8192
    assert not any("\0" in text for text in documents)
