"""Linear probe: how well a straight line separates classes in frozen features.

Legend: N train rows, M test rows, D width of the features, C inverse strength of the L2 penalty.

Source: Radford et al. 2021 (arXiv:2103.00020), appendix A.3: scikit-learn's L-BFGS logistic regression, at most 1,000
iterations, C searched on a validation split over 1e-6 to 1e6, refined around the best to 8 steps per decade.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, DataError, ShapeError
from ..optional import require
from ..rng import numpy_stream

C_GRID = tuple(10.0**exponent for exponent in range(-6, 7, 2))
FINEST_STEP = 0.125


def linear_probe(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    *,
    c_grid: Sequence[float] = C_GRID,
    refine: bool = True,
    standardise: bool = False,
    valid_share: float = 0.2,
    max_iter: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Fit a multinomial logistic regression on frozen features and judge it on others.

    C is chosen on a split of the train rows, ``valid_share`` of every class (a class with one row stays in training),
    by validation accuracy, the smaller C among equals; the final fit sees all train rows. The test rows are used once.

    Args:
        train_x, test_x: (N, D) and (M, D).
        train_y, test_y: (N,) and (M,), whole numbers or strings.
        c_grid: first values of C to try, ascending.
        refine: also try values between the best and its neighbours, halving the step down to an eighth of a decade.
        standardise: give every feature mean 0 and deviation 1 over the rows that are fitted. Off as in the paper:
            unit vectors already have one scale.
        valid_share: in (0, 1).
        max_iter: of L-BFGS.
        seed: of the split.

    Returns:
        ``accuracy`` and ``per_class`` (mean over the test classes), ``c``, ``valid_accuracy`` of that C, ``tried`` (C
        to validation accuracy, ascending), ``at_edge`` (whether the best C ends the grid, so that a wider one may do
        better), ``converged`` (of the final fit), ``standardised``, ``num_train``, ``num_valid``, ``num_test``,
        ``num_classes``.

    Raises:
        ConfigError: for a grid, share or number of iterations that cannot be used.
        DataError: for values that are not finite, fewer than two classes, too few rows to split, or test classes that
            training never saw.
        MissingDependencyError: if scikit-learn is not installed.
        ShapeError: if features and labels do not fit together.
    """
    _check_settings(c_grid, valid_share, max_iter)
    train, labels = _checked(train_x, train_y, "train")
    test, wanted = _checked(test_x, test_y, "test")
    if train.shape[1] != test.shape[1]:
        raise ShapeError(f"train rows are {train.shape[1]} wide, test rows {test.shape[1]}", hint="use one encoder")
    classes = np.unique(labels)
    if len(classes) < 2:
        raise DataError(f"training has {len(classes)} class, expected at least 2", hint="check the labels")
    unseen = np.setdiff1d(wanted, classes) if wanted.dtype.kind == classes.dtype.kind else np.unique(wanted)
    if len(unseen):
        raise DataError(
            f"{len(unseen)} test classes never occur in training: {', '.join(map(str, unseen[:5]))}",
            hint="leave their rows out, and say so",
        )
    valid = _split(labels, valid_share, seed)
    fitted, checked = train[~valid], train[valid]
    tried: dict[float, float] = {}

    def score(c: float) -> float:
        if c not in tried:
            model, _ = _fit(fitted, labels[~valid], c, standardise, max_iter)
            tried[c] = float((_predict(model, checked) == labels[valid]).mean())
        return tried[c]

    best = _search(score, tuple(map(float, c_grid)), refine)
    model, converged = _fit(train, labels, best, standardise, max_iter)
    right = _predict(model, test) == wanted
    return {
        "accuracy": float(right.mean()),
        "per_class": float(np.mean([right[wanted == name].mean() for name in np.unique(wanted)])),
        "c": best,
        "valid_accuracy": tried[best],
        "tried": {c: tried[c] for c in sorted(tried)},
        "at_edge": best in (min(tried), max(tried)),
        "converged": converged,
        "standardised": standardise,
        "num_train": len(train),
        "num_valid": int(valid.sum()),
        "num_test": len(test),
        "num_classes": len(classes),
    }


def _search(score: Any, grid: tuple[float, ...], refine: bool) -> float:
    """Return the best C of the grid, or near it: the step halves, always around the best so far."""

    def best_of(values: Sequence[float]) -> float:
        return min(values, key=lambda c: (-score(c), c))

    best = best_of(grid)
    if not refine or len(grid) < 2:
        return best
    step = min(b - a for a, b in itertools.pairwise(np.log10(grid)))
    while step > FINEST_STEP:
        step /= 2
        around = [10.0 ** round(float(np.log10(best)) + sign * step, 6) for sign in (-1, 1)]
        best = best_of([best, *(c for c in around if grid[0] <= c <= grid[-1])])
    return best


def _fit(
    x: NDArray[np.float64], y: NDArray[Any], c: float, standardise: bool, max_iter: int
) -> tuple[tuple[Any, NDArray[np.float64], NDArray[np.float64]], bool]:
    """Return (model, mean, deviation) and whether L-BFGS converged."""
    require("sklearn", extra="clip")
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, deviation = np.zeros(x.shape[1]), np.ones(x.shape[1])
    if standardise:
        mean, deviation = x.mean(0), x.std(0)
        deviation[deviation == 0] = 1.0  # a feature that never changes says nothing
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model = LogisticRegression(C=c, max_iter=max_iter).fit((x - mean) / deviation, y)
    return (model, mean, deviation), not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def _predict(fitted: tuple[Any, NDArray[np.float64], NDArray[np.float64]], x: NDArray[np.float64]) -> NDArray[Any]:
    model, mean, deviation = fitted
    return np.asarray(model.predict((x - mean) / deviation))


def _split(labels: NDArray[Any], share: float, seed: int) -> NDArray[np.bool_]:
    """Return which rows judge C: ``share`` of each class, at least one of two, never all."""
    rng = numpy_stream(seed, "linear probe", "split")
    valid = np.zeros(len(labels), bool)
    for name in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == name))
        valid[rows[: min(max(1, round(share * len(rows))), len(rows) - 1)]] = True
    if not valid.any():
        raise DataError(
            f"{len(labels)} train rows, one a class: too few rows to choose C on", hint="give 2 rows a class or more"
        )
    return valid


def _check_settings(c_grid: Sequence[float], valid_share: float, max_iter: int) -> None:
    if not c_grid or min(c_grid) <= 0 or any(a >= b for a, b in itertools.pairwise(c_grid)):
        raise ConfigError(f"c_grid={tuple(c_grid)}, expected positive, ascending numbers", hint="use C_GRID")
    if not 0 < valid_share < 1:
        raise ConfigError(f"valid_share={valid_share}, expected a number between 0 and 1", hint="use 0.2")
    if max_iter < 1:
        raise ConfigError(f"max_iter={max_iter}, expected at least 1", hint="use 1000")


def _checked(x: ArrayLike, y: ArrayLike, what: str) -> tuple[NDArray[np.float64], NDArray[Any]]:
    features, labels = np.asarray(x, dtype=np.float64), np.asarray(y)
    if features.ndim != 2 or features.shape[1] == 0 or labels.shape != (len(features),):
        raise ShapeError(
            f"{what} features {features.shape} and labels {labels.shape}, expected (N, D) and (N,)",
            hint="one label a row",
        )
    if len(features) == 0:
        raise DataError(f"found no {what} row, expected at least one", hint="check the split")
    if labels.dtype.kind not in "iubUS":
        raise DataError(f"{what} labels are {labels.dtype}, expected whole numbers or strings", hint="convert them")
    broken = np.flatnonzero(~np.isfinite(features).all(1))
    if len(broken):
        raise DataError(
            f"{len(broken)} {what} rows are not finite, the first is row {broken[0]}", hint="extract the features again"
        )
    return features, labels
