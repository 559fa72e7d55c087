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
import torch
from PIL import Image as PillowImage

from ..stations import load_detector
from ..world.detector import Detector, as_pictures, letterbox
from ..world.vocabulary import KEYS
from .experiment import bootstrap

CELL, COLUMNS = 96, 20
MARGIN = 0.08
"""Of a character's size, on every side of it in a crop."""
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
    guesses = [named_by(detector, cell(grid, number, entry["size"])) for number, entry in enumerate(labels)]
    values: dict[str, list[float]] = {}
    for entry, guess in zip(labels, guesses, strict=True):
        named = [seen == entry["species"] for seen in entry["seen"]]
        people = all(named)
        machine = guess == entry["species"]
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


@torch.inference_mode()
def named_by(detector: Detector, crop: npt.NDArray[np.uint8]) -> str:
    """Return the species that the detector's reader names with a probability of a half or more; else nothing.

    Where the character stands is known, so nothing is looked for: the crop is its box with the margin it was cut with.
    """
    canvas, (width, height) = letterbox(as_pictures([crop])[0], detector.config.image_size)
    edge = MARGIN / (1 + 2 * MARGIN)
    box = torch.tensor([[edge * width, edge * height, (1 - edge) * width, (1 - edge) * height]])
    likely = detector.read(canvas[None], box, torch.zeros(1, dtype=torch.long)).characters["species"][0].softmax(-1)
    return KEYS["species"][int(likely.argmax())] if float(likely.max()) >= 0.5 else ""


def cell(grid: npt.NDArray[np.uint8], number: int, size: list[int]) -> npt.NDArray[np.uint8]:
    """Return one crop of the grid; ``size`` is its (width, height) in the picture, which it fills its cell in ratio to."""
    y, x = number // COLUMNS * CELL, number % COLUMNS * CELL
    scale = CELL / max(size)
    width, height = (max(1, round(side * scale)) for side in size)
    return np.ascontiguousarray(grid[y : y + height, x : x + width])
