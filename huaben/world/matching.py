"""Which detected character is which intended one: exact one-to-one matching of boxes, and scores of a reading.

Boxes are ``(x0, y0, x1, y1)`` in [0, 1]. Numpy only; every score of a generated picture goes through here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ShapeError
from .scene import SceneGraph

if TYPE_CHECKING:
    from .detector import Reading

ATTRIBUTES = ("species", "colour", "accessory", "expression", "facing")
MIN_IOU = 0.2
"""Two boxes that overlap less than this are never the same character."""


def as_boxes(boxes: object) -> np.ndarray:
    """Return boxes as float64 ``(n, 4)``.

    Raises:
        ShapeError: for anything that is not a list of four numbers each.
    """
    array = np.asarray(boxes, dtype=np.float64)
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise ShapeError(f"boxes of shape {array.shape}, expected (n, 4)", hint="boxes are (x0, y0, x1, y1)")
    return array


def pairwise_iou(first: object, second: object) -> np.ndarray:
    """Return the intersection over union of every pair, ``(n, m)``; empty boxes overlap nothing."""
    a, b = as_boxes(first), as_boxes(second)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    area_a, area_b = (np.clip(x[:, 2:] - x[:, :2], 0, None).prod(-1) for x in (a, b))
    union = area_a[:, None] + area_b[None, :] - common
    return np.where(union > 0, common / np.where(union > 0, union, 1.0), 0.0)


def match_boxes(found: object, wanted: object, *, min_iou: float = MIN_IOU) -> tuple[int | None, ...]:
    """Return, for each wanted box, the index of the found box that is the same character, or None.

    Exact: of all one-to-one matchings of pairs with at least ``min_iou``, the one with the greatest summed overlap.
    Cost grows with ``2 ** min(n, m)``; pictures hold a handful of characters.
    """
    overlap = pairwise_iou(wanted, found)  # (n wanted, m found)
    turned = overlap.shape[0] > overlap.shape[1]
    table = overlap.T if turned else overlap  # rows: the smaller side
    rows, columns = table.shape
    # best[mask of used rows] = (summed overlap, pairs); columns are offered one after the other
    best: dict[int, tuple[float, tuple[tuple[int, int], ...]]] = {0: (0.0, ())}
    for column in range(columns):
        grown = dict(best)
        for mask, (total, pairs) in best.items():
            for row in range(rows):
                value = float(table[row, column])
                if mask >> row & 1 or value < min_iou or value <= 0:
                    continue
                key = mask | 1 << row
                if key not in grown or total + value > grown[key][0]:
                    grown[key] = (total + value, (*pairs, (row, column)))
        best = grown
    pairs = max(best.values(), key=lambda item: item[0])[1]
    result: list[int | None] = [None] * overlap.shape[0]
    for row, column in pairs:
        if turned:
            result[column] = row
        else:
            result[row] = column
    return tuple(result)


def match(reading: Reading, boxes: object, *, min_iou: float = MIN_IOU) -> tuple[int | None, ...]:
    """Return, for each intended box, the index into ``reading.characters``, or None if nothing is there."""
    return match_boxes([character.box for character in reading.characters], boxes, min_iou=min_iou)


@dataclass(frozen=True, kw_only=True, slots=True)
class CharacterScore:
    """How one intended character was read back.

    Attributes:
        found: whether any detection matched; False makes every attribute wrong and both overlaps 0.
        right: attribute name -> whether it was read as intended.
        box_iou: overlap with the intended box.
        mask_iou: overlap of visible pixels; None where no masks were given.
    """

    found: bool
    right: Mapping[str, bool]
    box_iou: float
    mask_iou: float | None = None

    @property
    def recognised(self) -> bool:
        """Species and colour both right."""
        return self.right["species"] and self.right["colour"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureScore:
    """How one picture was read back.

    Attributes:
        characters: one score per intended character, in the scene's order.
        extra: detections that match no intended character.
        background, style: whether each was read as intended.
    """

    characters: tuple[CharacterScore, ...]
    extra: int
    background: bool
    style: bool

    @property
    def exact(self) -> bool:
        """Every character recognised and nothing else found."""
        return self.extra == 0 and all(character.recognised for character in self.characters)


def mask_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Return the intersection over union of two boolean masks; 1.0 when both are empty."""
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    union = np.logical_or(first, second).sum()
    return float(np.logical_and(first, second).sum() / union) if union else 1.0


def score_reading(
    reading: Reading,
    scene: SceneGraph,
    boxes: object | None = None,
    masks: Sequence[np.ndarray] | np.ndarray | None = None,
    *,
    min_iou: float = MIN_IOU,
) -> PictureScore:
    """Compare a reading with the scene the picture should show.

    Args:
        reading: what the detector saw.
        scene: what was intended.
        boxes: tight boxes ``(n, 4)`` of the drawings; the scene's own boxes by default.
        masks: visible pixels of each character ``(n, H, W)``, to score the reading's masks as well.
        min_iou: overlap below which a detection is not the intended character.
    """
    wanted = [character.box for character in scene.characters] if boxes is None else boxes
    pairs = match(reading, wanted, min_iou=min_iou)
    if len(pairs) != len(scene.characters):
        raise ShapeError(f"{len(pairs)} boxes for {len(scene.characters)} characters", hint="one box per character")
    overlaps = pairwise_iou(wanted, [character.box for character in reading.characters])
    scores = []
    for index, (intended, place) in enumerate(zip(scene.characters, pairs, strict=True)):
        if place is None:
            nothing = None if masks is None else 0.0
            right = dict.fromkeys(ATTRIBUTES, False)
            score = CharacterScore(found=False, right=right, box_iou=0.0, mask_iou=nothing)
        else:
            seen = reading.characters[place]
            overlap = None
            if masks is not None:
                overlap = 0.0 if seen.mask is None else mask_iou(seen.mask, masks[index])
            score = CharacterScore(
                found=True,
                right={name: getattr(seen, name) == getattr(intended, name) for name in ATTRIBUTES},
                box_iou=float(overlaps[index, place]),
                mask_iou=overlap,
            )
        scores.append(score)
    return PictureScore(
        characters=tuple(scores),
        extra=len(reading.characters) - sum(place is not None for place in pairs),
        background=reading.background == scene.background,
        style=reading.style == scene.style,
    )
