"""The ordering measurement: its figures are true, and it runs at any size."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from huaben.bench.ordering import hidden_order, kendall, run
from huaben.errors import ConfigError
from huaben.rng import numpy_stream


def test_kendall_counts_the_pairs_in_the_wrong_order() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 7, 20, 33):
        truth, path = rng.normal(size=size), rng.permutation(size)
        wrong = sum(truth[path[a]] < truth[path[b]] for a, b in itertools.combinations(range(size), 2))
        expected = 1 - 2 * wrong / (size * (size - 1) / 2) if size > 1 else 1.0
        assert kendall(path, truth) == pytest.approx(expected)
    assert kendall(np.argsort(-truth), truth) == 1.0
    assert kendall(np.argsort(truth), truth) == -1.0


def test_hidden_order_is_antisymmetric_and_follows_the_truth_without_noise() -> None:
    p, truth = hidden_order(9, 0.0, numpy_stream(0, "test"))
    assert p + p.T == pytest.approx(np.ones((9, 9)))
    assert ((p > 0.5) == (truth[:, None] > truth[None, :])).all()


def test_run_compares_with_the_optimum_and_is_deterministic() -> None:
    settings = {"small": (8,), "large": (40,), "many": (600,), "noises": (2.0,), "graphs": 3}
    first, second = run(1, **settings), run(1, **settings)  # type: ignore[arg-type]
    small, large, many = first["small"][0], first["large"][0], first["many"][0]
    assert small["proven"] == 3
    assert all(0.5 <= row["min"] <= row["mean"] <= 1 for row in small["kept_of_best"].values())
    assert small["kept_of_best"]["insertion"]["mean"] >= small["kept_of_best"]["win_score"]["mean"]
    assert large["solvers"]["insertion"]["kept"] >= large["solvers"]["win_score"]["kept"]
    assert "greedy_mwas" in large["solvers"]
    assert many["true_best_found"] > 0.7
    assert small["kept_of_best"] == second["small"][0]["kept_of_best"]
    assert [row["kept"] for row in large["solvers"].values()] == [
        row["kept"] for row in second["large"][0]["solvers"].values()
    ]


def test_run_refuses_impossible_sizes() -> None:
    with pytest.raises(ConfigError):
        run(0, small=(1,))
    with pytest.raises(ConfigError):
        run(0, graphs=0)
