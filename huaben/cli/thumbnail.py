"""Pictures inside a terminal: kitty's and iTerm's protocols, sixel, or half blocks in true colour."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from typing import Literal, TextIO

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

Protocol = Literal["kitty", "iterm", "sixel", "blocks", "none"]

BLOCK_COLUMNS = 48
SIXEL_COLOURS = 128
_KITTY_CHUNK = 4096


def protocol(stream: TextIO, environment: Mapping[str, str] | None = None) -> Protocol:
    """Return how ``stream`` can show a picture; ``HUABEN_THUMBNAIL`` decides where it is set.

    Nothing is shown where the stream is not a terminal, is dumb, or wants no colour.
    """
    env = os.environ if environment is None else environment
    wanted = env.get("HUABEN_THUMBNAIL", "")
    if wanted in ("kitty", "iterm", "sixel", "blocks", "none"):
        return wanted  # type: ignore[return-value]
    if not stream.isatty() or env.get("TERM", "") in ("", "dumb") or "NO_COLOR" in env:
        return "none"
    inside = "TMUX" in env or env.get("TERM", "").startswith("screen")
    if not inside:
        if "KITTY_WINDOW_ID" in env or env.get("TERM") == "xterm-kitty" or env.get("TERM_PROGRAM") == "ghostty":
            return "kitty"
        if env.get("TERM_PROGRAM") in ("iTerm.app", "WezTerm") or env.get("LC_TERMINAL") == "iTerm2":
            return "iterm"
        if "sixel" in env.get("TERM", "") or env.get("TERM") in ("mlterm", "foot", "foot-extra"):
            return "sixel"
    if env.get("COLORTERM", "") in ("truecolor", "24bit") and (stream.encoding or "").lower().startswith("utf"):
        return "blocks"
    return "none"


def thumbnail(image: npt.NDArray[np.uint8], how: Protocol) -> str:
    """Return the text that shows uint8 (H, W, 3); empty for ``none``."""
    if how == "kitty":
        return _kitty(_png(image))
    if how == "iterm":
        data = _png(image)
        return f"\x1b]1337;File=inline=1;size={len(data)};preserveAspectRatio=1:{_base64(data)}\x07\n"
    if how == "sixel":
        return _sixel(image)
    return _blocks(image) if how == "blocks" else ""


def _png(image: npt.NDArray[np.uint8]) -> bytes:
    """Return PNG bytes."""
    buffer = io.BytesIO()
    PillowImage.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _base64(data: bytes) -> str:
    """Return base64 text."""
    return base64.b64encode(data).decode("ascii")


def _kitty(data: bytes) -> str:
    """Send PNG bytes in chunks of at most 4096 characters."""
    text = _base64(data)
    chunks = [text[i : i + _KITTY_CHUNK] for i in range(0, len(text), _KITTY_CHUNK)]
    parts = []
    for number, chunk in enumerate(chunks):
        more = int(number + 1 < len(chunks))
        control = f"a=T,f=100,m={more}" if number == 0 else f"m={more}"
        parts.append(f"\x1b_G{control};{chunk}\x1b\\")
    return "".join(parts) + "\n"


def _blocks(image: npt.NDArray[np.uint8]) -> str:
    """Draw two pixels a character: the upper half in the foreground, the lower in the background colour."""
    height, width = image.shape[:2]
    columns = min(BLOCK_COLUMNS, width)
    rows = max(2, round(height * columns / width / 2) * 2)
    small = PillowImage.fromarray(image).resize((columns, rows), PillowImage.Resampling.LANCZOS)
    pixels = np.asarray(small)
    lines = []
    for y in range(0, rows, 2):
        cells = []
        for upper, lower in zip(pixels[y], pixels[y + 1], strict=True):
            cells.append(f"\x1b[38;2;{upper[0]};{upper[1]};{upper[2]};48;2;{lower[0]};{lower[1]};{lower[2]}m▀")
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines) + "\n"


def _sixel(image: npt.NDArray[np.uint8]) -> str:
    """Encode with a palette, six rows a band, runs shortened."""
    indexed = PillowImage.fromarray(image).quantize(SIXEL_COLOURS)
    pixels = np.asarray(indexed)
    height, width = pixels.shape
    palette = np.array(indexed.getpalette() or [], np.int32).reshape(-1, 3) * 100 // 255
    parts = [f'\x1bPq"1;1;{width};{height}']
    parts += [f"#{i};2;{r};{g};{b}" for i, (r, g, b) in enumerate(palette.tolist())]
    for top in range(0, height, 6):
        band = pixels[top : top + 6]
        weights = (1 << np.arange(len(band)))[:, None]
        for colour in np.unique(band):
            values = ((band == colour) * weights).sum(0)
            parts.append(f"#{colour}{_runs(values)}$")
        parts.append("-")
    return "".join(parts) + "\x1b\\\n"


def _runs(values: npt.NDArray[np.int64]) -> str:
    """Return sixel characters with repeats of four or more shortened."""
    edges = np.flatnonzero(np.diff(values)) + 1
    parts = []
    for run in np.split(values, edges):
        sign = chr(63 + int(run[0]))
        parts.append(f"!{len(run)}{sign}" if len(run) > 3 else sign * len(run))
    return "".join(parts)
