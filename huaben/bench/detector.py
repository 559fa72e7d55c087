"""The instrument's own accuracy: what the detector gets wrong on pictures whose content is known exactly.

Every score of the embedded models is read off by the detector, so its errors bound what those scores can say. Beside
each condition stands what guessing would score.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..stations import load_detector
from ..world.detector import CHARACTER_ATTRIBUTES, PICTURE_ATTRIBUTES, Detector
from ..world.trial import CAST, DISTORTIONS, reading_trial, recognition_trial
from ..world.vocabulary import KEYS

SHARES = ("recognised", *CHARACTER_ATTRIBUTES, "found", *PICTURE_ATTRIBUTES, "exact")
"""Measures that count hits; the others are means."""

SPECIAL: dict[str, dict[str, Any]] = {
    "held-out combinations": {"split": "composition"},
    "four characters": {"num_characters": 4},
    "no characters": {"num_characters": 0},
    "192x320": {"size": (192, 320)},
    "128x128": {"size": 128},
    "512x512": {"size": 512},
}
"""Clean pictures of other kinds than the usual."""


def wilson_interval(hits: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, which stays honest near 0 and 1.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22:209.
    """
    if count == 0:
        return 0.0, 1.0
    z, p = 1.959964, hits / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * float(np.sqrt(p * (1 - p) / count + z * z / (4 * count * count)))
    return max(0.0, centre - half), min(1.0, centre + half)


def summarise(values: dict[str, list[float]], shares: tuple[str, ...] = SHARES) -> dict[str, dict[str, Any]]:
    """Return ``{"mean", "n", "interval"}`` per measure: Wilson for shares, normal for means."""
    result: dict[str, dict[str, Any]] = {}
    for name, numbers in values.items():
        count, mean = len(numbers), float(np.mean(numbers))
        if name in shares:
            low, high = wilson_interval(float(np.sum(numbers)), count)
        else:
            half = 1.959964 * float(np.std(numbers)) / float(np.sqrt(count))
            low, high = mean - half, mean + half
        result[name] = {"mean": round(mean, 5), "n": count, "interval": [round(low, 5), round(high, 5)]}
    return result


def chance() -> dict[str, float]:
    """Return what a uniform guess scores."""
    species, colour = len(KEYS["species"]), len(KEYS["colour"])
    return {
        "recognised": 1 / (species * colour),
        **{name: 1 / len(KEYS[name]) for name in (*CHARACTER_ATTRIBUTES, *PICTURE_ATTRIBUTES)},
        "top1": 1 / CAST,
    }


def run(count: int = 1000, detector: Detector | None = None, *, groups: int = 25, seed: int = 1) -> dict[str, Any]:
    """Score a detector under every condition.

    Args:
        count: pictures per distortion; the special conditions get a third of it.
        detector: the instrument; the shipped one by default.
        groups: casts of twenty individuals per distortion.
        seed: of the pictures; training and its own evaluation use other streams.

    Returns:
        ``reading`` and ``recognition``: condition -> measure -> mean, n and 95 % interval; ``chance``.
    """
    detector = detector or load_detector()
    reading = {
        name: summarise(reading_trial(detector, count=count, seed=seed, distortion=name)) for name in DISTORTIONS
    }
    for name, options in SPECIAL.items():
        reading[name] = summarise(reading_trial(detector, count=max(1, count // 3), seed=seed, **options))
    recognition = {
        name: summarise(recognition_trial(detector, groups=groups, seed=seed, distortion=name), ("top1",))
        for name in DISTORTIONS
    }
    return {
        "reading": reading,
        "recognition": recognition,
        "chance": chance(),
        "pictures": count,
        "individuals": CAST,
        "seed": seed,
        "parameters": detector.num_parameters(),
    }
