"""Pictures to CLIP's input: resized, in [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ShapeError


def check_image(image: NDArray[np.uint8]) -> None:
    """Check one picture.

    Raises:
        ShapeError: unless it is uint8 (height, width, 3), 8 pixels or more each way.
    """
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or min(array.shape[:2]) < 8:
        raise ShapeError(
            f"found a {array.dtype} array of shape {array.shape}, expected uint8 (height, width, 3)",
            hint="convert the picture to RGB, 8 pixels or more each way",
        )


def preprocess(images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], size: int) -> Tensor:
    """Return float (B, 3, size, size) in [-1, 1].

    A picture that is not square is squeezed, not cropped: what stands at its edges counts too.

    Args:
        images: uint8 (height, width, 3) pictures, sizes may differ; or one array (B, height, width, 3).
        size: side in pixels.

    Raises:
        ShapeError: for an empty batch or anything that is not such a picture.
    """
    if len(images) == 0:
        raise ShapeError("found no picture, expected at least one", hint="pass a list of pictures")
    for image in images:
        check_image(image)
    if isinstance(images, np.ndarray):
        return resize(to_float(torch.from_numpy(np.require(images, requirements=["C", "W"])).permute(0, 3, 1, 2)), size)
    rows = [torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)[None] for image in images]
    return torch.cat([resize(to_float(row), size) for row in rows])


def to_float(pixels: Tensor) -> Tensor:
    """Return uint8 values as floats in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def resize(pixels: Tensor, size: int) -> Tensor:
    """Return (B, C, size, size): averaged when shrinking by a whole factor, else anti-aliased bilinear."""
    height, width = pixels.shape[-2:]
    if (height, width) == (size, size):
        return pixels
    if height % size == 0 and width % size == 0:
        return F.avg_pool2d(pixels, (height // size, width // size))
    return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)
