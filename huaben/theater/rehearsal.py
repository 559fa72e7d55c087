"""Every character that has a picture in its place on an empty stage: the sketch that guides painting.

Cut-outs are scaled to fit their box with the aspect kept, centred and standing on its lower edge, and painted back to
front. :mod:`huaben.diffusion.latent_guidance` brings the masks to the model's grid and holds sampling to the sketch.

Source: TheaterGen (arXiv:2404.18919), rehearsal and Eqs. (5), (6).
Differs: explicit paint order and bottom-aligned placement, where the code sorts alphabetically and anchors at the top
left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from ..painting import BoxTuple, Facing

STAGE_COLOUR = 127
"""Grey level of an empty stage; only pixels inside masks are ever used."""


class CutOut(Protocol):
    """A character cut out of a picture: a cast entry, or a sketch."""

    @property
    def crop(self) -> npt.NDArray[np.uint8]:
        """Return its pixels, (h, w, 3), with a margin."""
        ...

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Return which of them are the character, (h, w)."""
        ...

    @property
    def facing(self) -> Facing:
        """Return the way it faces."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """A cut-out and where it stands; ``facing`` None keeps the way it faces."""

    cut_out: CutOut
    box: BoxTuple
    facing: Facing | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """The sketch: uint8 (H, W, 3) canvas and bool (N, H, W) visible masks, in the order of the placements."""

    canvas: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.bool_]


def paint_order(boxes: Sequence[BoxTuple]) -> tuple[int, ...]:
    """Return indices back to front: larger boxes farther back, then the ones whose lower edge is higher up."""

    def key(index: int) -> tuple[float, float]:
        x0, y0, x1, y1 = boxes[index]
        return -round((x1 - x0) * (y1 - y0), 6), y1

    return tuple(sorted(range(len(boxes)), key=key))


def set_stage(placements: Sequence[Placement], size: tuple[int, int]) -> Stage:
    """Paint ``placements``, back to front, onto an empty stage of (height, width)."""
    height, width = size
    canvas = np.full((height, width, 3), STAGE_COLOUR, np.uint8)
    masks = np.zeros((len(placements), height, width), bool)
    for index, placement in enumerate(placements):
        pixels, mask = _fit(placement, size)
        x, y = _anchor(placement.box, mask.shape, size)
        h, w = mask.shape
        canvas[y : y + h, x : x + w][mask] = pixels[mask]
        masks[index, y : y + h, x : x + w] = mask
        masks[:index, y : y + h, x : x + w] &= ~mask
    return Stage(canvas, masks)


def standing_box(cut_out: CutOut, box: BoxTuple, size: tuple[int, int]) -> BoxTuple:
    """Return what :func:`set_stage` fills of ``box`` with a cut-out."""
    height, width = size
    h, w = _fitted_shape(cut_out.mask[_extent(cut_out.mask)].shape, box, size)
    x, y = _anchor(box, (h, w), size)
    return x / width, y / height, (x + w) / width, (y + h) / height


def _fit(placement: Placement, size: tuple[int, int]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Return the cut-out's pixels and mask, mirrored if it turns round, scaled to fit its box."""
    crop, mask = placement.cut_out.crop, placement.cut_out.mask
    if not mask.any():
        mask = np.ones(mask.shape, bool)
    part = _extent(mask)
    crop, mask = crop[part], mask[part]
    if placement.facing is not None and placement.facing != placement.cut_out.facing:
        crop, mask = crop[:, ::-1], mask[:, ::-1]
    h, w = _fitted_shape(mask.shape, placement.box, size)
    image = PillowImage.fromarray(np.ascontiguousarray(crop)).resize((w, h), PillowImage.Resampling.LANCZOS)
    alpha = PillowImage.fromarray(np.ascontiguousarray(mask).astype(np.uint8) * 255).resize(
        (w, h), PillowImage.Resampling.BOX
    )
    return np.asarray(image), np.asarray(alpha) >= 128


def _extent(mask: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    """Return the rows and columns a mask spans; all of them if it is empty."""
    if not mask.any():
        return np.s_[:, :]
    ys, xs = np.nonzero(mask)
    return np.s_[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]


def _fitted_shape(shape: tuple[int, ...], box: BoxTuple, size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) in pixels of the largest picture of a ``shape`` that fits a box."""
    box_h, box_w = _box_pixels(box, size)
    scale = min(box_h / shape[0], box_w / shape[1])
    return min(max(round(shape[0] * scale), 1), box_h), min(max(round(shape[1] * scale), 1), box_w)


def _box_pixels(box: BoxTuple, size: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) of a box in whole pixels, at least one."""
    x0, y0, x1, y1 = _box_corners(box, size)
    return y1 - y0, x1 - x0


def _box_corners(box: BoxTuple, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return a box's whole-pixel corners, inside the picture."""
    height, width = size
    x0, y0 = min(round(box[0] * width), width - 1), min(round(box[1] * height), height - 1)
    x0, y0 = max(x0, 0), max(y0, 0)
    x1, y1 = max(min(round(box[2] * width), width), x0 + 1), max(min(round(box[3] * height), height), y0 + 1)
    return x0, y0, x1, y1


def _anchor(box: BoxTuple, shape: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int]:
    """Return the top left pixel of a cut-out that stands centred on its box's lower edge."""
    x0, _, x1, y1 = _box_corners(box, size)
    return x0 + (x1 - x0 - shape[1]) // 2, y1 - shape[0]
