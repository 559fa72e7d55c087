"""How far a predictor's confidence can be trusted: temperature, calibration error, trust threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..config import Config

BINS = 10
T_RANGE = (0.1, 20.0)

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration(Config):
    """What held-out pairs say about the probabilities.

    Attributes:
        temperature: logits are divided by it; 1 before anything was measured.
        pairs: held-out pairs it was fitted on, over all members; 0 if none.
        of: the task(s) they belong to, "target" or "sources".
        accuracy: share of them called right.
        ece_before, ece: expected calibration error at temperature 1 and at ``temperature``, on the same pairs.
        confidence, accuracies, counts: for each bin of confidence ``max(p, 1 - p)``: mean confidence, share right, pairs.
        trust: thresholds on ``abs(p - 0.5)`` and the accuracy at each, rising (isotonic regression).
    """

    temperature: float = 1.0
    pairs: int = 0
    of: str = ""
    accuracy: float = 0.0
    ece_before: float = 0.0
    ece: float = 0.0
    confidence: tuple[float, ...] = ()
    accuracies: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    trust: tuple[tuple[float, float], ...] = ()

    def tau(self, accuracy: float = 0.7, *, default: float = 0.02) -> float:
        """Return the least confidence ``abs(p - 0.5)`` from which on held-out pairs are right this often.

        ``default`` where nothing was measured; 0.5 (trust nothing) where no confidence suffices.
        """
        if not self.pairs:
            return default
        return next((threshold for threshold, right in self.trust if right >= accuracy), 0.5)


def calibrate(logits: FloatArray, labels: BoolArray, of: str = "") -> Calibration:
    """Fit one temperature by maximum likelihood and measure what it does.

    Args:
        logits: (P,), of held-out pairs.
        labels: (P,), whether the first of the pair was better.
        of: recorded.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=bool)
    signed = np.where(labels, logits, -logits)
    temperature = _best_temperature(signed)
    before, after = _sigmoid(logits), _sigmoid(logits / temperature)
    confidence, right = np.maximum(after, 1 - after), (after > 0.5) == labels
    place = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    filled = [bin_ for bin_ in range(BINS) if (place == bin_).any()]
    return Calibration(
        temperature=temperature,
        pairs=len(logits),
        of=of,
        accuracy=float(right.mean()),
        ece_before=expected_calibration_error(before, labels),
        ece=expected_calibration_error(after, labels),
        confidence=tuple(float(confidence[place == bin_].mean()) for bin_ in filled),
        accuracies=tuple(float(right[place == bin_].mean()) for bin_ in filled),
        counts=tuple(int((place == bin_).sum()) for bin_ in filled),
        trust=_trust(confidence - 0.5, right),
    )


def expected_calibration_error(probabilities: FloatArray, labels: BoolArray, bins: int = BINS) -> float:
    """Return the mean gap between confidence and accuracy over equally wide bins of confidence, weighted by pairs.

    Source: Guo et al. 2017 (arXiv:1706.04599), equation 3.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.size == 0:
        return 0.0
    confidence, right = np.maximum(p, 1 - p), (p > 0.5) == labels
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    gap = np.bincount(place, confidence - right, minlength=bins)
    return float(np.abs(gap).sum() / p.size)


def _sigmoid(x: FloatArray) -> npt.NDArray[np.float64]:
    return 0.5 + 0.5 * np.tanh(0.5 * np.asarray(x, dtype=np.float64))


def _best_temperature(signed: npt.NDArray[np.float64], rounds: int = 60) -> float:
    """Return the temperature of least cross-entropy: golden section on its logarithm, where the loss has one minimum."""
    low, high = np.log(T_RANGE[0]), np.log(T_RANGE[1])

    def loss(log_t: float) -> float:
        return float(np.logaddexp(0.0, -signed / np.exp(log_t)).mean())

    ratio = (np.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    loss_left, loss_right = loss(left), loss(right)
    for _ in range(rounds):
        if loss_left <= loss_right:
            high, right, loss_right = right, left, loss_left
            left = high - ratio * (high - low)
            loss_left = loss(left)
        else:
            low, left, loss_left = left, right, loss_right
            right = low + ratio * (high - low)
            loss_right = loss(right)
    return float(np.exp((low + high) / 2))


def _trust(confidence: npt.NDArray[np.float64], right: BoolArray) -> tuple[tuple[float, float], ...]:
    """Return (threshold, accuracy) steps, both rising: isotonic regression by pooling adjacent violators."""
    order = np.argsort(confidence, kind="stable")
    blocks: list[list[float]] = []  # least confidence, right ones, pairs
    for place in order:
        blocks.append([float(confidence[place]), float(right[place]), 1.0])
        while len(blocks) > 1 and blocks[-2][1] * blocks[-1][2] >= blocks[-1][1] * blocks[-2][2]:
            _, hits, count = blocks.pop()
            blocks[-1][1] += hits
            blocks[-1][2] += count
    return tuple((threshold, hits / count) for threshold, hits, count in blocks)
