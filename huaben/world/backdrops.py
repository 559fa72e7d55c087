"""Backgrounds: a vertical gradient and a few large quiet shapes, varied by the backdrop seed.

Coordinates are shares of the picture: x from 0 to its aspect ratio, y from 0 at the top to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..rng import numpy_stream
from .shapes import Colour, Shape, blob, ellipse, mix, polygon, scallop, stroke

CLOUD: Colour = (255, 255, 255, 215)


class Backdrop(NamedTuple):
    """A gradient (colour at top, at bottom) and the shapes over it, none of them outlined."""

    top: Colour
    bottom: Colour
    shapes: tuple[Shape, ...]


def _ground(width: float, y: float, fill: Colour, rng: np.random.Generator, roll: float = 0.03) -> Shape:
    xs = np.linspace(-0.2, width + 0.2, 7)
    ys = y + roll * (rng.random(7) - 0.5) * 2
    points = blob([*zip(xs, ys, strict=True), (width + 0.3, 1.3), (-0.3, 1.3)], 4)
    return Shape(points, fill, 0)


def _clouds(width: float, rng: np.random.Generator, count: int, low: float = 0.05, high: float = 0.3) -> list[Shape]:
    shapes = []
    for _ in range(count):
        x, y, s = rng.random() * width, low + rng.random() * (high - low), 0.07 + 0.05 * rng.random()
        shapes.append(Shape(scallop(x, y, s * 1.7, s * 0.62, 6, 0.14, rng.random()), CLOUD, 0))
    return shapes


def _sun(width: float, rng: np.random.Generator, fill: Colour = (255, 236, 150)) -> list[Shape]:
    x, y = width * (0.12 + 0.76 * rng.random()), 0.1 + 0.08 * rng.random()
    return [Shape(ellipse(x, y, 0.1, 0.1), (*fill, 90), 0), Shape(ellipse(x, y, 0.07, 0.07), fill, 0)]


def _beach(width: float, rng: np.random.Generator) -> Backdrop:
    shapes = [*_sun(width, rng), *_clouds(width, rng, 2)]
    y = 0.46 + 0.04 * rng.random()
    shapes.append(Shape(polygon((-0.1, y), (width + 0.1, y), (width + 0.1, 0.8), (-0.1, 0.8)), (74, 176, 214), 0))
    for _ in range(4):
        x, wy = rng.random() * width, y + 0.03 + 0.1 * rng.random()
        shapes.append(Shape(polygon((x, wy), (x + 0.16, wy), (x + 0.16, wy + 0.01), (x, wy + 0.01)), (190, 232, 244), 0))
    shapes.append(_ground(width, 0.645, (250, 246, 232), rng, 0.012))
    shapes.append(_ground(width, 0.665, (242, 218, 164), rng, 0.012))
    for _ in range(5):
        shapes.append(Shape(ellipse(rng.random() * width, 0.74 + 0.24 * rng.random(), 0.014, 0.008, count=8), (220, 190, 134), 0))
    return Backdrop((142, 208, 244), (214, 240, 250), tuple(shapes))


def _snow(width: float, rng: np.random.Generator) -> Backdrop:
    shapes = []
    for _ in range(4):
        x, h = rng.random() * width, 0.16 + 0.1 * rng.random()
        base = 0.6 + 0.03 * rng.random()
        shapes.append(Shape(polygon((x - 0.09, base), (x, base - h), (x + 0.09, base)), (148, 178, 190), 0))
        shapes.append(Shape(polygon((x - 0.045, base - h * 0.5), (x, base - h), (x + 0.045, base - h * 0.5)), (240, 246, 252), 0))
    shapes += [_ground(width, 0.57, (216, 228, 242), rng), _ground(width, 0.68, (236, 243, 251), rng)]
    for x, y, r in zip(rng.random(22) * width, rng.random(22), 0.006 + 0.008 * rng.random(22), strict=True):
        shapes.append(Shape(ellipse(x, y * 0.66, r, r, count=8), (255, 255, 255, 235), 0))
    return Backdrop((168, 192, 218), (222, 232, 244), tuple(shapes))


def _forest(width: float, rng: np.random.Generator) -> Backdrop:
    shapes = [_ground(width, 0.42, (96, 148, 110), rng, 0.06)]
    for k in range(6):
        x = width * (k + 0.2 + 0.6 * rng.random()) / 6
        lean, w = 0.02 * (rng.random() - 0.5), 0.022 + 0.018 * rng.random()
        shapes.append(Shape(polygon((x - w + lean, -0.05), (x + w + lean, -0.05), (x + w, 0.66), (x - w, 0.66)), (84, 92, 76), 0))
    for k in range(5):
        x = width * (k + 0.5 * rng.random()) / 4.5
        shapes.append(Shape(scallop(x, 0.03, 0.2, 0.15, 7, 0.13, rng.random()), mix((52, 104, 74), (78, 128, 82), rng.random()), 0))
    shapes += [_ground(width, 0.62, (72, 120, 80), rng, 0.02), _ground(width, 0.74, (88, 138, 84), rng, 0.02)]
    return Backdrop((150, 190, 150), (176, 206, 162), tuple(shapes))


def _night(width: float, rng: np.random.Generator) -> Backdrop:
    shapes = []
    for x, y, r in zip(rng.random(24) * width, rng.random(24) * 0.58, 0.004 + 0.006 * rng.random(24), strict=True):
        shapes.append(Shape(ellipse(x, y, r, r, count=6), (255, 248, 214), 0))
    x, y = width * (0.15 + 0.7 * rng.random()), 0.13
    outer, inner = np.linspace(0.35, 2 * np.pi - 0.35, 24) - 0.36, np.linspace(2 * np.pi - 0.62, 0.62, 20) - 0.36
    crescent = [(x + 0.085 * np.cos(a), y + 0.085 * np.sin(a)) for a in outer]
    crescent += [(x + 0.03 + 0.062 * np.cos(a), y - 0.011 + 0.066 * np.sin(a)) for a in inner]
    shapes.append(Shape(polygon(*crescent), (250, 240, 200), 0))
    shapes += [_ground(width, 0.6, (36, 54, 92), rng, 0.05), _ground(width, 0.72, (44, 70, 92), rng)]
    return Backdrop((22, 26, 68), (62, 66, 124), tuple(shapes))


def _meadow(width: float, rng: np.random.Generator) -> Backdrop:
    shapes = [*_sun(width, rng), *_clouds(width, rng, 2)]
    shapes += [_ground(width, 0.54, (146, 204, 122), rng, 0.05), _ground(width, 0.64, (126, 192, 100), rng, 0.03)]
    for _ in range(7):
        x, y = rng.random() * width, 0.7 + 0.27 * rng.random()
        shapes.append(Shape(polygon((x - 0.016, y), (x - 0.012, y - 0.035), (x, y - 0.01), (x + 0.012, y - 0.04), (x + 0.016, y)), (96, 166, 80), 0))
    for _ in range(5):
        x, y = rng.random() * width, 0.7 + 0.27 * rng.random()
        shapes.append(Shape(ellipse(x, y, 0.011, 0.011, count=8), (255, 250, 220), 0))
    return Backdrop((140, 206, 246), (206, 236, 250), tuple(shapes))


def _sea(width: float, rng: np.random.Generator) -> Backdrop:
    shapes = []
    for k in range(3):
        x = width * (0.1 + 0.3 * k + 0.15 * rng.random())
        shapes.append(Shape(polygon((x, -0.02), (x + 0.1, -0.02), (x - 0.06, 0.8), (x - 0.24, 0.8)), (190, 236, 250, 46), 0))
    for x, y, r in zip(rng.random(10) * width, 0.1 + 0.6 * rng.random(10), 0.008 + 0.012 * rng.random(10), strict=True):
        shapes.append(Shape(ellipse(x, y, r, r, count=10), (214, 244, 255, 150), 0))
    shapes.append(_ground(width, 0.84, (214, 200, 150), rng, 0.02))
    for _ in range(4):
        x, h, bend = rng.random() * width, 0.12 + 0.12 * rng.random(), 0.05 * (rng.random() - 0.5)
        path = np.array([(x, 0.92), (x + bend, 0.92 - h * 0.4), (x - bend, 0.92 - h * 0.75), (x + bend, 0.92 - h)])
        shapes.append(Shape(stroke(path, 0.03, 0.3), (40, 138, 120), 0))
    return Backdrop((72, 182, 220), (26, 100, 166), tuple(shapes))


def _desert(width: float, rng: np.random.Generator) -> Backdrop:
    shapes = [*_sun(width, rng, (255, 222, 130))]
    shapes += [_ground(width, 0.52, (232, 184, 118), rng, 0.06), _ground(width, 0.66, (240, 200, 136), rng, 0.03)]
    for _ in range(2):
        x, y, s = rng.random() * width, 0.6 + 0.05 * rng.random(), 0.7 + 0.4 * rng.random()
        green: Colour = (110, 150, 96)
        shapes.append(Shape(polygon((x - 0.022 * s, y - 0.2 * s), (x + 0.022 * s, y - 0.2 * s), (x + 0.022 * s, y), (x - 0.022 * s, y)), green, 0))
        arm = np.array([(x, y - 0.08 * s), (x + 0.075 * s, y - 0.085 * s), (x + 0.08 * s, y - 0.16 * s)])
        shapes.append(Shape(stroke(arm, 0.03 * s), green, 0))
    shapes.append(_ground(width, 0.84, (246, 210, 150), rng, 0.02))
    return Backdrop((250, 214, 160), (254, 238, 206), tuple(shapes))


def _city(width: float, rng: np.random.Generator) -> Backdrop:
    shapes = [*_clouds(width, rng, 1)]
    x = -0.05
    while x < width:
        w, top = 0.12 + 0.1 * rng.random(), 0.18 + 0.26 * rng.random()
        tone = mix((150, 164, 190), (186, 190, 208), rng.random())
        shapes.append(Shape(polygon((x, top), (x + w, top), (x + w, 0.7), (x, 0.7)), tone, 0))
        for wx in np.arange(x + 0.025, x + w - 0.03, 0.05):
            for wy in np.arange(top + 0.04, 0.6, 0.09):
                if rng.random() < 0.6:
                    shapes.append(Shape(polygon((wx, wy), (wx + 0.022, wy), (wx + 0.022, wy + 0.04), (wx, wy + 0.04)), (250, 236, 180), 0))
        x += w + 0.012
    shapes.append(Shape(polygon((-0.1, 0.66), (width + 0.1, 0.66), (width + 0.1, 0.76), (-0.1, 0.76)), (204, 202, 200), 0))
    shapes.append(Shape(polygon((-0.1, 0.745), (width + 0.1, 0.745), (width + 0.1, 1.1), (-0.1, 1.1)), (136, 140, 150), 0))
    offset = rng.random() * 0.2
    for k in range(-1, int(width / 0.2) + 2):
        x = k * 0.2 + offset
        shapes.append(Shape(polygon((x, 0.87), (x + 0.1, 0.87), (x + 0.1, 0.885), (x, 0.885)), (240, 240, 236), 0))
    return Backdrop((176, 206, 236), (226, 236, 246), tuple(shapes))


def _room(width: float, rng: np.random.Generator) -> Backdrop:
    walls: tuple[Colour, ...] = ((246, 226, 204), (222, 230, 216), (232, 222, 238), (216, 230, 240))
    wall = walls[int(rng.integers(len(walls)))]
    shapes = []
    for k in range(int(width / 0.1) + 1):
        shapes.append(Shape(polygon((k * 0.1, 0), (k * 0.1 + 0.04, 0), (k * 0.1 + 0.04, 0.68), (k * 0.1, 0.68)), mix(wall, (255, 255, 255), 0.35), 0))
    x, y = width * (0.14 + 0.42 * rng.random()), 0.12
    shapes.append(Shape(polygon((x - 0.02, y - 0.02), (x + 0.28, y - 0.02), (x + 0.28, y + 0.3), (x - 0.02, y + 0.3)), (168, 124, 92), 0))
    for cx in (0.0, 0.135):
        for cy in (0.0, 0.145):
            shapes.append(Shape(polygon((x + cx, y + cy), (x + cx + 0.12, y + cy), (x + cx + 0.12, y + cy + 0.13), (x + cx, y + cy + 0.13)), (170, 216, 244), 0))
    shapes.append(Shape(polygon((-0.1, 0.66), (width + 0.1, 0.66), (width + 0.1, 1.1), (-0.1, 1.1)), (206, 158, 112), 0))
    shapes.append(Shape(polygon((-0.1, 0.65), (width + 0.1, 0.65), (width + 0.1, 0.675), (-0.1, 0.675)), (250, 244, 234), 0))
    for k in range(4):
        y = 0.73 + 0.08 * k
        shapes.append(Shape(polygon((-0.1, y), (width + 0.1, y), (width + 0.1, y + 0.006), (-0.1, y + 0.006)), (186, 136, 94), 0))
    rug = ((214, 150, 140), (140, 168, 190), (170, 184, 140))[int(rng.integers(3))]
    shapes.append(Shape(ellipse(width / 2, 0.88, 0.36, 0.08), rug, 0))
    return Backdrop(wall, wall, tuple(shapes))


def _mountain(width: float, rng: np.random.Generator) -> Backdrop:
    shapes = [*_clouds(width, rng, 2, 0.04, 0.16)]
    for k in range(4):
        x, h = width * (k + rng.random()) / 4, 0.28 + 0.16 * rng.random()
        w = 0.26 + 0.1 * rng.random()
        tone = mix((126, 138, 160), (150, 156, 172), rng.random())
        shapes.append(Shape(polygon((x - w, 0.64), (x, 0.64 - h), (x + w, 0.64)), tone, 0))
        c = 0.32
        shapes.append(Shape(polygon((x - w * c, 0.64 - h * (1 - c)), (x, 0.64 - h), (x + w * c, 0.64 - h * (1 - c)), (x + w * c * 0.4, 0.64 - h * 0.74), (x, 0.64 - h * 0.64), (x - w * c * 0.4, 0.64 - h * 0.74)), (246, 248, 252), 0))
    shapes += [_ground(width, 0.61, (128, 158, 120), rng, 0.02), _ground(width, 0.74, (150, 172, 118), rng, 0.02)]
    for _ in range(4):
        x, y = rng.random() * width, 0.76 + 0.2 * rng.random()
        shapes.append(Shape(ellipse(x, y, 0.03, 0.016, count=10), (164, 164, 158), 0))
    return Backdrop((150, 196, 236), (220, 236, 244), tuple(shapes))


def _sky(width: float, rng: np.random.Generator) -> Backdrop:
    shapes = [*_sun(width, rng), *_clouds(width, rng, 5, 0.06, 0.66)]
    for k in range(7):
        x = width * (k + 0.6 * rng.random() - 0.3) / 6
        shapes.append(Shape(scallop(x, 0.93 + 0.04 * rng.random(), 0.2, 0.12, 7, 0.13, rng.random()), (248, 250, 255), 0))
    shapes.append(Shape(polygon((-0.1, 0.97), (width + 0.1, 0.97), (width + 0.1, 1.1), (-0.1, 1.1)), (248, 250, 255), 0))
    return Backdrop((92, 164, 236), (196, 226, 250), tuple(shapes))


BUILDERS: dict[str, Callable[[float, np.random.Generator], Backdrop]] = {
    "beach": _beach, "snow": _snow, "forest": _forest, "night": _night, "meadow": _meadow, "sea": _sea,
    "desert": _desert, "city": _city, "room": _room, "mountain": _mountain, "sky": _sky,
}  # fmt: skip


@lru_cache(maxsize=512)
def backdrop(background: str, width: float, seed: int) -> Backdrop:
    """Return the backdrop of a picture ``width`` times as wide as high; the same seed is always the same place."""
    return BUILDERS[background](width, numpy_stream(seed, "backdrop", background))
