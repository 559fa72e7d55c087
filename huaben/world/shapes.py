"""Plane shapes as polygons: the only thing the world draws.

A shape is ``(points, fill, edge)``: float array (n, 2) of x, y; an RGB or RGBA tuple of 0..255; ``edge`` 1 if a style
that outlines things outlines this one. Curves are flattened here once, coarsely enough to be cheap and finely enough
to look round at 512 px.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Colour = tuple[int, ...]


class Shape(NamedTuple):
    """One filled polygon."""

    points: Points
    fill: Colour
    edge: int = 1


@lru_cache(maxsize=64)
def _unit_circle(count: int) -> Points:
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def ellipse(x: float, y: float, rx: float, ry: float, tilt: float = 0.0, count: int = 22) -> Points:
    """Return an ellipse around (x, y); ``tilt`` in radians."""
    points = _unit_circle(count) * (rx, ry)
    if tilt:
        c, s = np.cos(tilt), np.sin(tilt)
        points = points @ np.array([[c, s], [-s, c]])
    return np.add(points, (x, y))


def polygon(*points: tuple[float, float]) -> Points:
    return np.array(points, dtype=np.float64)


@lru_cache(maxsize=32)
def _catmull_rom(per_segment: int) -> Points:
    t = np.linspace(0, 1, per_segment, endpoint=False)[:, None]
    powers = np.concatenate([t**3, t**2, t, np.ones_like(t)], axis=1)
    basis = 0.5 * np.array([[-1, 3, -3, 1], [2, -5, 4, -1], [-1, 0, 1, 0], [0, 2, 0, 0]])
    return powers @ basis


def blob(points: Points | list[tuple[float, float]], per_segment: int = 5) -> Points:
    """Return the closed Catmull-Rom curve through ``points``."""
    p = np.asarray(points, dtype=np.float64)
    neighbours = np.stack([np.roll(p, 1, 0), p, np.roll(p, -1, 0), np.roll(p, -2, 0)], axis=1)
    return (_catmull_rom(per_segment) @ neighbours).reshape(-1, 2)


def curve(points: Points | list[tuple[float, float]], per_segment: int = 5) -> Points:
    """Return the open Catmull-Rom curve through ``points``, ends included."""
    p = np.asarray(points, dtype=np.float64)
    padded = np.concatenate([p[:1], p, p[-1:]])
    parts = np.stack([padded[:-3], padded[1:-2], padded[2:-1], padded[3:]], axis=1)
    return np.concatenate([(_catmull_rom(per_segment) @ parts).reshape(-1, 2), p[-1:]])


def stroke(path: Points, width: float, taper: float = 1.0) -> Points:
    """Return the outline of a line along ``path``; its width ends at ``width * taper``."""
    delta = np.gradient(path, axis=0)
    normal = np.stack([-delta[:, 1], delta[:, 0]], axis=1)
    normal /= np.maximum(np.hypot(normal[:, 0], normal[:, 1]), 1e-9)[:, None]
    half = (np.linspace(1, taper, len(path)) * width / 2)[:, None]
    return np.concatenate([path + normal * half, (path - normal * half)[::-1]])


def scallop(x: float, y: float, rx: float, ry: float, bumps: int, depth: float = 0.12, phase: float = 0.0) -> Points:
    """Return an ellipse with ``bumps`` round bumps: wool, manes, tree crowns, clouds."""
    angles = np.linspace(0, 2 * np.pi, bumps * 6, endpoint=False)
    radius = 1 - depth + depth * 2 * np.abs(np.sin((angles + phase) * bumps / 2))
    return np.stack([x + rx * radius * np.cos(angles), y + ry * radius * np.sin(angles)], axis=1)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Return ``a`` moved towards ``b`` by ``share`` in [0, 1]; alpha is dropped."""
    return tuple(round(p + (q - p) * share) for p, q in zip(a[:3], b[:3], strict=True))
