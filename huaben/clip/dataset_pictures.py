"""Picture files of any origin to uint8 RGB: upright, on a background, or refused with a short reason."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageOps, UnidentifiedImageError

from ..errors import DataError
from ..pictures import eight_bits

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 100_000_000
MIN_SIDE = 8  # as in preprocess
WHITE = (255, 255, 255)
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, OverflowError, struct.error,
    zlib.error, PillowImage.DecompressionBombError,
)  # fmt: skip


def probe_image(data: bytes, *, decode: bool = True) -> bool:
    """Check picture bytes and return whether they have an alpha channel.

    Args:
        data: a picture file.
        decode: whether to read the pixels, or only format and size.

    Raises:
        DataError: with a short reason, if the picture cannot be used.
    """
    with _opened(data) as picture:
        if decode:
            _upright(picture)
        return _has_alpha(picture)


def decode_image(data: bytes, background: tuple[int, int, int] = WHITE) -> NDArray[np.uint8]:
    """Return picture bytes as uint8 (height, width, 3): upright, transparency composed over ``background``.

    Raises:
        DataError: with a short reason, if the picture cannot be used.
    """
    with _opened(data) as picture:
        upright = _upright(picture)
        if upright.mode == "RGBA":
            under = PillowImage.new("RGBA", upright.size, (*background, 255))
            upright = PillowImage.alpha_composite(under, upright).convert("RGB")
        return np.asarray(upright).copy()


def _opened(data: bytes) -> PillowImage.Image:
    """Return a picture whose header is read and whose size is checked."""
    if not data:
        raise DataError("the picture file is empty")
    try:
        picture = PillowImage.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise DataError(f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture") from error
    except _DAMAGE as error:
        raise DataError(f"damaged picture: {error}") from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{width}x{height} pixels, at most {MAX_PIXELS // 10**6} million are read")
    if min(width, height) < MIN_SIDE:
        raise DataError(f"{width}x{height} pixels, expected {MIN_SIDE} or more each way")
    return picture


def _has_alpha(picture: PillowImage.Image) -> bool:
    return picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info


def _upright(picture: PillowImage.Image) -> PillowImage.Image:
    """Return the decoded picture in RGB, or RGBA if it has an alpha channel; of an animation, the first frame."""
    try:
        picture.load()
        alpha = _has_alpha(picture)
        grey = eight_bits(picture)
        if grey is not picture:
            return grey.convert("RGB")
        return ImageOps.exif_transpose(picture).convert("RGBA" if alpha else "RGB")
    except _DAMAGE as error:
        raise DataError(f"damaged picture: {error}") from error
