"""One layer recalls what follows a key only with the convolution of DAPE V2."""

from __future__ import annotations

import numpy as np
import pytest

from huaben.bench.recall import (
    guess_accuracy,
    recall_accuracy,
    recall_config,
    recall_fit,
    recall_strings,
    run,
    train_recall,
)
from huaben.errors import ConfigError
from huaben.rng import numpy_stream


def test_strings_hold_each_key_once_and_the_answer_follows_the_key() -> None:
    strings, answers = recall_strings(numpy_stream(0, "strings"), 300)
    assert strings.shape == (300, 17) and answers.shape == (300,)
    for string, answer in zip(strings.tolist(), answers.tolist(), strict=True):
        pairs = dict(zip(string[:-1:2], string[1:-1:2], strict=True))
        assert len(pairs) == 8 and max(pairs) < 16 <= min(pairs.values()) and max(pairs.values()) < 32
        assert pairs[string[-1]] - 16 == answer
    assert len(np.unique(strings[:, :-1:2])) == 16 and len(np.unique(answers)) == 16
    with pytest.raises(ConfigError, match="pairs=17"):
        recall_strings(numpy_stream(0), 4, 17)


def test_guessing_among_the_values_shown_is_right_a_quarter_of_the_time() -> None:
    assert guess_accuracy(seed=0) == pytest.approx(0.25, abs=0.02)


def test_one_layer_recalls_with_the_convolution_alone() -> None:
    """The others do no better with sixteen times the steps: see the slow test."""
    fit = recall_fit(steps=120, batch=64, learning_rate=5e-3)
    accuracy = {
        name: recall_accuracy(train_recall(recall_config(name), fit, seed=0).model, seed=0, strings=1024)
        for name in ("v2-nope", "dape-nope", "nope", "rope")
    }
    assert accuracy["v2-nope"] >= 0.99
    for name in ("dape-nope", "nope", "rope"):
        assert accuracy[name] < 0.32, name


def test_a_run_reports_every_seed() -> None:
    found = run(schemes="nope,v2-nope", seeds=2, steps=3, batch=8, pairs=4)
    assert set(found["schemes"]) == {"nope", "v2-nope"}
    for part in found["schemes"].values():
        assert len(part["runs"]) == part["accuracy"]["n"] == 2
    # A convolution of width 16: 3 * 4 * 16 + 16 + 3 * 16 * 4 + 4.
    assert found["schemes"]["v2-nope"]["parameters"] - found["schemes"]["nope"]["parameters"] == 404
    with pytest.raises(ConfigError, match="seeds=0"):
        run(seeds=0)


@pytest.mark.slow
def test_the_published_setting() -> None:
    found = run(seeds=1)["schemes"]
    assert found["v2-nope"]["accuracy"]["mean"] >= 0.99
    for name in ("dape-nope", "nope", "rope"):
        assert 0.2 < found[name]["accuracy"]["mean"] < 0.32, name
