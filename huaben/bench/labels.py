"""Does the detector agree with people about what can be recognised?

``crops.jpg`` is a grid of characters cut out of painted pictures, good and bad; ``labels.json`` says, for each cell in
reading order, what was asked for and what was named by looking at the grid without the captions, in two passes. A crop
counts as recognisable when both passes name its species. The detector looks at the same crops; where it calls one right
that nobody could name, or misses one that everybody can, it disagrees.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from ..stations import load_detector
from .experiment import bootstrap

CELL, COLUMNS = 96, 20
FOLDER = Path("experiments/pictures")


def run(*, seed: int = 0, folder: str = str(FOLDER)) -> dict[str, Any]:
    """Compare the detector with the labels.

    Args:
        seed: of the intervals.
        folder: where ``crops.jpg`` and ``labels.json`` lie.

    Returns:
        ``agreement``, ``passes`` (how often the two passes agree), ``recognisable`` by people, ``right`` by the detector,
        ``false_right``: the share of unrecognisable crops that the detector calls right; per source as well.
    """
    labels = json.loads((Path(folder) / "labels.json").read_text(encoding="utf-8"))
    grid = np.asarray(PillowImage.open(Path(folder) / "crops.jpg").convert("RGB"))
    detector = load_detector()
    readings = detector.detect([cell(grid, number, entry["size"]) for number, entry in enumerate(labels)])
    values: dict[str, list[float]] = {}
    for entry, reading in zip(labels, readings, strict=True):
        named = [seen == entry["species"] for seen in entry["seen"]]
        people = all(named)
        machine = any(seen.species == entry["species"] for seen in reading.characters[:1])
        for prefix in ("", f"{entry['source']}."):
            for name, value in (
                ("agreement", people == machine),
                ("passes", named[0] == named[1]),
                ("recognisable", people),
                ("right", machine),
            ):
                values.setdefault(prefix + name, []).append(float(value))
            if not people:
                values.setdefault(f"{prefix}false_right", []).append(float(machine))
    return {name: bootstrap(numbers, seed, "labels", name) for name, numbers in values.items()}


def cell(grid: npt.NDArray[np.uint8], number: int, size: list[int]) -> npt.NDArray[np.uint8]:
    """Return one crop of the grid; ``size`` is its (width, height) in the picture, which it fills its cell in ratio to."""
    y, x = number // COLUMNS * CELL, number % COLUMNS * CELL
    scale = CELL / max(size)
    width, height = (max(1, round(side * scale)) for side in size)
    return np.ascontiguousarray(grid[y : y + height, x : x + width])
