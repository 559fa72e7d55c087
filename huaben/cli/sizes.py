"""Sizes as typed: "128x192" is height x width; one number is a square."""

from __future__ import annotations

import re

from ..errors import UsageError


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width).

    Raises:
        UsageError: for anything but ``HxW`` or one number.
    """
    found = re.fullmatch(r"\s*(\d{1,5})\s*(?:[xX×*]\s*(\d{1,5})\s*)?", text)
    if found is None:
        raise UsageError(f"size {text!r} is not HEIGHTxWIDTH", hint="use --size 256x256")
    height = int(found[1])
    return height, int(found[2]) if found[2] else height
