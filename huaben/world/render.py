"""Scene graph to picture: anti-aliased, seedable, with exact boxes and masks, in five picture styles.

A style is a way of drawing the same shapes: whether edges are inked, cut out of paper with a shadow, or textured; and
what happens to the light afterwards. Drawing itself is done by AGG (the ``aggdraw`` package).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import aggdraw
import numpy as np
from numpy.typing import NDArray

from ..errors import ShapeError
from .backdrops import backdrop
from .scene import SceneCharacter, SceneGraph
from .shapes import Colour, Points, Shape, mix
from .sprites import INK, sprite_of

Picture = NDArray[np.uint8]
BACKDROPS_PER_KIND = 64
"""Backdrop seeds are taken modulo this, so that a place can be drawn again and kept in memory."""

MIN_SIZE, MAX_SIZE = 32, 2048


@dataclass(frozen=True, slots=True)
class Rendered:
    """A picture and what is exactly where.

    Attributes:
        image: uint8 (H, W, 3).
        boxes: float32 (n, 4), extent of each character's drawing, clipped to the picture.
        masks: bool (n, H, W) of visible pixels, or None if they were not asked for.
    """

    image: Picture
    boxes: NDArray[np.float32]
    masks: NDArray[np.bool_] | None


def check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width).

    Raises:
        ShapeError: outside 32..2048.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if not all(MIN_SIZE <= side <= MAX_SIZE for side in (height, width)):
        raise ShapeError(f"size {height}x{width} is outside {MIN_SIZE}..{MAX_SIZE}", hint="use 256x256")
    return height, width


def place(character: SceneCharacter, height: int, width: int) -> list[Points]:
    """Return the character's shapes in pixels: fitted uniformly into its box, standing at its bottom centre."""
    x0, y0, x1, y1 = character.box
    shapes = sprite_of(character)
    half = max(float(shape.points[:, 0].max()) for shape in shapes)
    scale = min((y1 - y0) * height, (x1 - x0) * width / (2 * half))
    flip = scale if character.facing == "right" else -scale
    centre, bottom = (x0 + x1) / 2 * width, y1 * height
    points = np.concatenate([shape.points for shape in shapes])
    points = points * (flip, scale) + (centre, bottom - scale)
    return np.split(points, np.cumsum([len(shape.points) for shape in shapes])[:-1])


def extent(character: SceneCharacter, size: tuple[int, int] = (128, 128)) -> tuple[float, float, float, float]:
    """Return the exact box of the drawing in shares of the picture, not clipped."""
    height, width = size
    points = np.concatenate(place(character, height, width)) / (width, height)
    low, high = points.min(0), points.max(0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def render(scene: SceneGraph, size: int | tuple[int, int] = 128, *, masks: bool = False) -> Rendered:
    """Draw a scene.

    Args:
        scene: what to draw; later characters are in front.
        size: one side of a square or (height, width), 32..2048.
        masks: also return each character's visible pixels (about twice the time).

    Raises:
        ShapeError: for an impossible size.
    """
    height, width = check_size(size)
    style = scene.style
    scene_back = backdrop(scene.background, round(width / height, 3), scene.backdrop % BACKDROPS_PER_KIND)
    canvas = aggdraw.Draw("RGB", (width, height))
    canvas.setantialias(True)
    top, bottom = (_backdrop_tone(fill, style) for fill in (scene_back.top, scene_back.bottom))
    canvas.frombytes(_gradient(top, bottom, height, width))
    for shape in scene_back.shapes:
        _draw_backdrop(canvas, shape, style, height)
    placed = [place(character, height, width) for character in scene.characters]
    for character, parts in zip(scene.characters, placed, strict=True):
        _draw_character(canvas, sprite_of(character), parts, style, height)
    image = np.frombuffer(canvas.tobytes(), np.uint8).reshape(height, width, 3)
    if style == "crayon":
        image = _crayon(image)
    elif style == "puppet":
        image = _lamp_light(image)
    boxes = np.zeros((len(placed), 4), np.float32)
    for i, parts in enumerate(placed):
        points = np.concatenate(parts)
        low, high = points.min(0) / (width, height), points.max(0) / (width, height)
        boxes[i] = np.clip([*low, *high], 0, 1)
    return Rendered(image, boxes, _visible(placed, height, width) if masks else None)


def _backdrop_tone(fill: Colour, style: str) -> Colour:
    """Return what a style makes of a colour of the place: washed-out for ink, parchment for shadow puppets."""
    return _wash(fill) if style == "ink" else _parchment(fill) if style == "puppet" else fill


def _draw_backdrop(canvas: aggdraw.Draw, shape: Shape, style: str, height: int) -> None:
    unit = height / 128
    points = shape.points * height
    fill = _backdrop_tone(shape.fill, style)
    alpha = fill[3] if len(fill) > 3 else 255
    large = min(np.ptp(shape.points, axis=0)) > 0.09
    pen = None
    if style == "papercut" and large:
        shadow = np.add(points, (1.2 * unit, -1.8 * unit)).ravel().tolist()
        canvas.polygon(shadow, None, aggdraw.Brush((40, 30, 50), 60))
        pen = aggdraw.Pen(mix(fill, (255, 255, 255), 0.65), 1.2 * unit)
        alpha = 255
    elif style == "ink" and large:
        pen = aggdraw.Pen((96, 92, 98), 0.8 * unit)
    elif style == "crayon" and large:
        pen = aggdraw.Pen(mix(fill, INK, 0.25), 1.0 * unit)
    canvas.polygon(points.ravel().tolist(), pen, aggdraw.Brush(fill[:3], alpha))


_RIM = tuple((float(np.cos(a)), float(np.sin(a))) for a in np.arange(8) * np.pi / 4)
"""Directions in which white copies make a cut-out's rim: a wide line would grow spikes at sharp corners."""


def _draw_character(
    canvas: aggdraw.Draw, shapes: tuple[Shape, ...], parts: list[Points], style: str, height: int
) -> None:
    unit = height / 128
    if style == "papercut":
        shadow, rim = aggdraw.Brush((40, 30, 50), 90), aggdraw.Brush((255, 255, 255))
        edged = [part for shape, part in zip(shapes, parts, strict=True) if shape.edge]
        for part in edged:
            canvas.polygon(np.add(part, (1.8 * unit, 2.4 * unit)).ravel().tolist(), None, shadow)
        for part in edged:
            for x, y in _RIM:
                canvas.polygon(np.add(part, (2.0 * x * unit, 2.0 * y * unit)).ravel().tolist(), None, rim)
    elif style == "ink":  # a brush stroke: the line is heavier below and to the right
        brush = aggdraw.Brush(INK)
        for shape, part in zip(shapes, parts, strict=True):
            if shape.edge:
                canvas.polygon(
                    np.add(part, (0.5 * unit, 0.8 * unit)).ravel().tolist(), aggdraw.Pen(INK, 1.9 * unit), brush
                )
    for shape, part in zip(shapes, parts, strict=True):
        flat, fill = part.ravel().tolist(), shape.fill
        pen = None
        if style == "ink":
            fill = (*mix(fill, (255, 253, 246), 0.18), *fill[3:])
        elif style == "puppet" and shape.edge:
            fill = mix(fill, (60, 28, 10), 0.3)
        if shape.edge:
            if style == "ink":
                pen = aggdraw.Pen(INK, 1.2 * unit)
            elif style == "puppet":
                pen = aggdraw.Pen((40, 20, 12), 1.8 * unit)
            elif style == "crayon":
                pen = aggdraw.Pen(mix(fill, INK, 0.4), 1.5 * unit)
            elif style == "flat":
                pen = aggdraw.Pen(mix(fill, INK, 0.3), 0.6 * unit)
        canvas.polygon(flat, pen, aggdraw.Brush(fill[:3], fill[3] if len(fill) > 3 else 255))


def _visible(placed: list[list[Points]], height: int, width: int) -> NDArray[np.bool_]:
    """Paint each character in its own number, front over back, and read the numbers back."""
    owner = aggdraw.Draw("L", (width, height), 0)
    owner.setantialias(False)
    for number, parts in enumerate(placed, start=1):
        brush = aggdraw.Brush(number)
        for part in parts:
            owner.polygon(part.ravel().tolist(), None, brush)
    numbers = np.frombuffer(owner.tobytes(), np.uint8).reshape(height, width)
    return numbers[None] == np.arange(1, len(placed) + 1, dtype=np.uint8)[:, None, None]


def _grey(fill: Colour) -> int:
    return round(0.3 * fill[0] + 0.59 * fill[1] + 0.11 * fill[2])


def _wash(fill: Colour) -> Colour:
    """Ink pictures have a pale background of thin washes on paper."""
    pale = mix(mix(fill, (_grey(fill),) * 3, 0.6), (253, 250, 242), 0.5)
    return (*pale, fill[3]) if len(fill) > 3 else pale


def _parchment(fill: Colour) -> Colour:
    """Shadow puppets play before lit parchment: brown tones with a trace of the place's colours."""
    light = 0.4 + 0.6 * _grey(fill) / 255
    tone = mix(fill, (round(255 * light), round(208 * light), round(136 * light)), 0.74)
    return (*tone, fill[3]) if len(fill) > 3 else tone


@lru_cache(maxsize=256)
def _gradient(top: Colour, bottom: Colour, height: int, width: int) -> bytes:
    share = np.clip(np.linspace(0, 1.5, height), 0, 1)[:, None]
    column = np.array(top[:3]) * (1 - share) + np.array(bottom[:3]) * share
    return np.ascontiguousarray(np.broadcast_to(column[:, None], (height, width, 3)).astype(np.uint8)).tobytes()


HATCH = 8
"""Distance of crayon strokes in pixels, whatever the picture's size: the paper's tooth, not the drawing's."""


@lru_cache(maxsize=16)
def _grain(height: int, width: int) -> NDArray[np.float32]:
    """Return how much paper shows between slanted wax strokes, (H, W, 1) in [0, 0.4]; pressure varies slowly."""
    y, x = np.mgrid[0:height, 0:width]
    stroke = np.abs((x + y) % HATCH - HATCH / 2) / (HATCH / 2)
    rng = np.random.default_rng(7)
    coarse = rng.random((height // 32 + 2, width // 32 + 2))
    fy, fx = y / 32, x / 32
    iy, ix = fy.astype(int), fx.astype(int)
    fy, fx = fy - iy, fx - ix
    pressure = (coarse[iy, ix] * (1 - fx) + coarse[iy, ix + 1] * fx) * (1 - fy)
    pressure += (coarse[iy + 1, ix] * (1 - fx) + coarse[iy + 1, ix + 1] * fx) * fy
    return (stroke**2 * (0.16 + 0.24 * pressure)).astype(np.float32)[:, :, None]


def _crayon(image: Picture) -> Picture:
    grain = _grain(*image.shape[:2])
    return np.round(image + (252.0 - image) * grain).astype(np.uint8)


@lru_cache(maxsize=16)
def _glow(height: int, width: int) -> NDArray[np.uint16]:
    """A warm lamp behind the screen: multipliers in 1/256, brighter in the middle."""
    y, x = np.mgrid[0:height, 0:width]
    r2 = ((y / height - 0.5) ** 2 + (x / width - 0.5) ** 2)[:, :, None]
    return np.round(256 * np.clip(1.1 - 1.1 * r2, 0.3, 1) * np.array([1.0, 0.97, 0.9])).astype(np.uint16)


def _lamp_light(image: Picture) -> Picture:
    return ((image * _glow(*image.shape[:2])) >> 8).astype(np.uint8)
