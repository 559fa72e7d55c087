from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from huaben.clip.probe import linear_probe
from huaben.errors import ConfigError, DataError, ShapeError

pytest.importorskip("sklearn")


def clusters(rows: int, spread: float, seed: int, classes: int = 4) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return unit vectors around one direction a class, and the classes."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(rows) % classes)
    x = np.eye(8)[labels] + spread * rng.normal(size=(rows, 8))
    return x / np.linalg.norm(x, axis=1, keepdims=True), labels


def test_separable_classes_are_separated_and_noise_is_not() -> None:
    train, test = clusters(80, 0.1, 0), clusters(40, 0.1, 1)
    result = linear_probe(*train, *test)
    assert result["accuracy"] == result["per_class"] == 1.0
    assert result["num_train"] == 80 and result["num_valid"] == 16 and result["num_classes"] == 4
    assert result["converged"] and not result["standardised"]
    shuffled = np.random.default_rng(2).permutation(test[1])
    assert linear_probe(*train, test[0], shuffled)["accuracy"] < 0.6


def test_c_is_the_best_tried_on_the_split_and_refined_between_decades() -> None:
    result = linear_probe(*clusters(120, 0.6, 3), *clusters(60, 0.6, 4))
    tried = result["tried"]
    assert result["valid_accuracy"] == tried[result["c"]] == max(tried.values())
    assert result["c"] == min(c for c, value in tried.items() if value == max(tried.values()))
    assert len(tried) > 7 and list(tried) == sorted(tried)
    plain = linear_probe(*clusters(120, 0.6, 3), *clusters(60, 0.6, 4), c_grid=(0.1, 1.0), refine=False)
    assert set(plain["tried"]) == {0.1, 1.0} and plain["at_edge"]


def test_test_rows_do_not_choose_c() -> None:
    train = clusters(60, 0.8, 5)
    one = linear_probe(*train, *clusters(20, 0.8, 6))
    other = linear_probe(*train, *clusters(30, 0.1, 7))
    assert one["tried"] == other["tried"] and one["c"] == other["c"]


def test_standardising_makes_scales_irrelevant() -> None:
    (x, y), (test_x, test_y) = clusters(80, 0.5, 8), clusters(40, 0.5, 9)
    scale = 10.0 ** np.arange(8) / 1e4
    plain = linear_probe(x, y, test_x, test_y, standardise=True, refine=False)
    scaled = linear_probe(x * scale, y, test_x * scale, test_y, standardise=True, refine=False)
    assert plain["standardised"] and scaled["accuracy"] == plain["accuracy"] and scaled["tried"] == plain["tried"]
    constant = np.concatenate([x, np.ones((80, 1))], 1), np.concatenate([test_x, np.ones((40, 1))], 1)
    assert linear_probe(constant[0], y, constant[1], test_y, standardise=True, refine=False)["accuracy"] > 0.5


def test_strings_rare_classes_and_repetition() -> None:
    x, y = clusters(40, 0.2, 10)
    names = np.array(["cat", "dog", "fox", "owl"])[y]
    x, names = np.concatenate([x, [[0] * 7 + [1]]]), np.append(names, "yak")  # one row of its class: never held out
    first = linear_probe(x, names, x, names, refine=False, seed=3)
    assert first == linear_probe(x, names, x, names, refine=False, seed=3)
    assert first["num_classes"] == 5 and first["accuracy"] > 0.9


def test_a_fit_that_stops_early_says_so() -> None:
    x, y = clusters(60, 0.8, 11)
    assert not linear_probe(x, y, x, y, c_grid=(1e4,), max_iter=2)["converged"]


def test_bad_input_is_named() -> None:
    x, y = clusters(20, 0.2, 12)
    with pytest.raises(DataError, match="1 class"):
        linear_probe(x, np.zeros(20, int), x, np.zeros(20, int))
    broken = x.copy()
    broken[7, 1] = np.inf
    with pytest.raises(DataError, match=r"1 train rows .* row 7"):
        linear_probe(broken, y, x, y)
    with pytest.raises(DataError, match="test rows are not finite"):
        linear_probe(x, y, broken, y)
    with pytest.raises(DataError, match="too few rows"):
        linear_probe(x[:4], np.arange(4), x[:4], np.arange(4))
    with pytest.raises(DataError, match=r"never occur in training: 9"):
        linear_probe(x, y, x[:2], [0, 9])
    with pytest.raises(DataError, match="no test row"):
        linear_probe(x, y, x[:0], y[:0])
    with pytest.raises(DataError, match="float64"):
        linear_probe(x, y.astype(float), x, y)
    with pytest.raises(ShapeError, match="labels"):
        linear_probe(x, y[:-1], x, y)
    with pytest.raises(ShapeError, match="wide"):
        linear_probe(x, y, x[:, :4], y)
    for settings in ({"c_grid": ()}, {"c_grid": (1.0, 0.1)}, {"valid_share": 1.0}, {"max_iter": 0}):
        with pytest.raises(ConfigError):
            linear_probe(x, y, x, y, **settings)
