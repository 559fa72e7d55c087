"""Characters and props: species builders, faces, accessories and what makes an individual.

A builder draws its species facing right in a frame about one unit wide (x in [-0.5, 0.5]) standing at y = 1, and names
the anchors where a face and accessories go. Everything an individual differs in (markings and their accent colour, ear
and eye shape, stretch, a small hue shift) comes from :class:`Individual`, drawn from the identity seed alone.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from ..rng import numpy_stream
from .scene import SceneCharacter
from .shapes import Colour, Points, Shape, blob, curve, ellipse, mix, polygon, scallop, stroke

WHITE: Colour = (255, 255, 255)
CREAM: Colour = (255, 244, 222)
INK: Colour = (44, 36, 46)
ROSE: Colour = (240, 130, 140)
BEAK: Colour = (245, 158, 46)
WOOD: Colour = (134, 92, 60)
LEAF: Colour = (84, 152, 74)

PALETTE: dict[str, Colour] = {
    "red": (220, 56, 52),
    "orange": (244, 138, 34),
    "yellow": (248, 212, 60),
    "green": (88, 172, 72),
    "teal": (40, 178, 174),
    "blue": (62, 114, 222),
    "purple": (140, 84, 198),
    "pink": (248, 148, 188),
    "brown": (138, 88, 54),
    "white": (248, 246, 242),
    "gray": (148, 152, 158),
    "black": (56, 54, 62),
}

ACCENTS: tuple[Colour, ...] = (
    (255, 246, 224),
    (70, 50, 48),
    (250, 204, 92),
    (122, 196, 240),
    (240, 128, 150),
    (130, 214, 150),
    (186, 140, 226),
)
MARKINGS = ("plain", "spots", "stripes", "patch", "belly", "socks", "heart")
EYES = ("round", "tall", "wide", "bead")

ACCESSORY_COLOURS: dict[str, Colour] = {
    "red": (52, 92, 178),
    "orange": (64, 84, 168),
    "yellow": (200, 62, 70),
    "green": (206, 66, 76),
    "teal": (214, 84, 70),
    "blue": (226, 86, 60),
    "purple": (244, 182, 58),
    "pink": (70, 110, 190),
    "brown": (54, 132, 190),
    "white": (206, 60, 66),
    "gray": (210, 70, 76),
    "black": (218, 66, 70),
}


@dataclass(frozen=True, slots=True)
class Individual:
    """What no caption mentions: drawn once from an identity seed.

    Attributes:
        hue: shift of the named colour, in turns, within ±0.018.
        value: factor on its brightness.
        marking, accent: kind of marking and its colour.
        phase: where the markings lie.
        ear, ear_width: factors on ear length and width.
        eye, eye_scale, eye_gap: shape, size and distance of the eyes.
        stretch: width factor of the whole body.
        head: size factor of the head.
        blush: whether the cheeks are pink.
    """

    hue: float
    value: float
    marking: str
    accent: Colour
    phase: float
    ear: float
    ear_width: float
    eye: str
    eye_scale: float
    eye_gap: float
    stretch: float
    head: float
    blush: bool


@lru_cache(maxsize=65536)
def individual(identity: int) -> Individual:
    """Return the individual of an identity seed."""
    rng = numpy_stream(identity, "identity")
    u = rng.random(12)
    return Individual(
        hue=float((u[0] - 0.5) * 0.036),
        value=float(0.95 + 0.1 * u[1]),
        marking=MARKINGS[int(rng.integers(len(MARKINGS)))],
        accent=ACCENTS[int(rng.integers(len(ACCENTS)))],
        phase=float(u[2]),
        ear=float(0.72 + 0.62 * u[3]),
        ear_width=float(0.78 + 0.5 * u[4]),
        eye=EYES[int(rng.integers(len(EYES)))],
        eye_scale=float(0.8 + 0.5 * u[5]),
        eye_gap=float(0.82 + 0.4 * u[6]),
        stretch=float(0.88 + 0.26 * u[7]),
        head=float(0.92 + 0.16 * u[8]),
        blush=bool(u[9] < 0.5),
    )


def tint(colour: str, who: Individual) -> Colour:
    """Return the named colour as this individual wears it."""
    r, g, b = (c / 255 for c in PALETTE[colour])
    h, s, v = colorsys.rgb_to_hsv(r, g, b)
    if s < 0.12:
        h, s = (h + who.hue * 8) % 1, s + abs(who.hue) * 0.8
    tinted = colorsys.hsv_to_rgb((h + who.hue) % 1, s, min(1.0, v * who.value))
    return tuple(round(c * 255) for c in tinted)


@dataclass(slots=True)
class Pen:
    """What a builder draws with: the individual, its tones, and the shapes so far.

    ``skin`` is the colour under the face, ``behind`` how many shapes lie behind a headphone's band.
    """

    who: Individual
    main: Colour
    dark: Colour
    light: Colour
    accent: Colour
    shapes: list[Shape]
    skin: Colour
    behind: int = 0

    def add(self, points: Points, fill: Colour, edge: int = 1) -> None:
        self.shapes.append(Shape(points, fill, edge))


@dataclass(frozen=True, slots=True)
class Anchors:
    """Where a face and accessories go, in the builder's frame.

    Attributes:
        face: centre x, y and scale of the face; scale 1 spans about 0.5 units.
        crown: x, y of the top of the head and its half width.
        neck: x, y and half width.
        muzzle: y offset of the mouth below the face centre, in face scales.
        mouth: whether a happy, sleepy or angry mouth is drawn; a beak or trunk leaves no place for one.
        mouth_x: x offset of the mouth from the face centre, in face scales.
        mouth_scale: how much larger than usual the mouth is.
        head: x, y of the top and half width of the head under headphones; the crown's if None.
    """

    face: tuple[float, float, float]
    crown: tuple[float, float, float]
    neck: tuple[float, float, float]
    muzzle: float = 0.2
    mouth: bool = True
    mouth_x: float = 0.03
    mouth_scale: float = 1.0
    head: tuple[float, float, float] | None = None


def _markings(pen: Pen, x: float, y: float, rx: float, ry: float) -> None:
    """Draw the individual's marking inside an ellipse."""
    kind, phase = pen.who.marking, pen.who.phase
    if kind == "spots":
        for k in range(4):
            angle = 2 * np.pi * (phase + k * 0.27)
            radius = 0.3 + 0.34 * ((k * 0.618 + phase) % 1)
            size = 0.22 - 0.03 * k
            pen.add(
                ellipse(x + rx * radius * np.cos(angle), y + ry * radius * np.sin(angle), rx * size, ry * size, count=12),
                pen.accent,
                0,
            )
    elif kind == "stripes":
        for offset in (-0.5, 0.0, 0.5):
            h = (offset + 0.3 * (phase - 0.5)) * ry
            w = rx * np.sqrt(max(0.05, 1 - (h / ry) ** 2)) * 0.93
            pen.add(
                polygon((x - w, y + h), (x, y + h + 0.1 * ry), (x + w, y + h), (x, y + h + 0.34 * ry)), pen.accent, 0
            )
    elif kind == "patch":
        side = -1 if phase < 0.5 else 1
        pen.add(ellipse(x + side * rx * 0.42, y - ry * 0.2 * side, rx * 0.46, ry * 0.56, count=16), pen.accent, 0)
    elif kind == "belly":
        pen.add(ellipse(x, y + ry * 0.16, rx * 0.66, ry * 0.7, count=18), pen.accent, 0)
    elif kind == "heart":
        s = min(rx, ry) * 0.75
        pen.add(
            blob([(x, y + s * 0.7), (x - s * 0.7, y - s * 0.1), (x - s * 0.34, y - s * 0.55), (x, y - s * 0.2),
                  (x + s * 0.34, y - s * 0.55), (x + s * 0.7, y - s * 0.1)], 4),
            pen.accent,
            0,
        )  # fmt: skip


def _feet(pen: Pen, gap: float, y: float, rx: float, ry: float, fill: Colour | None = None) -> None:
    colour = fill or (pen.accent if pen.who.marking == "socks" else pen.dark)
    for side in (-1, 1):  # toes point where the body faces
        pen.add(ellipse(side * gap + 0.35 * rx, y, rx, ry, count=14), colour)


def _sitting(
    pen: Pen,
    head_rx: float = 0.34,
    head_ry: float = 0.28,
    head_points: Points | None = None,
    chest: Colour | None = None,
) -> Anchors:
    """Draw the usual animal: a body with arms and feet below a big head; ears and tail were drawn before."""
    who = pen.who
    pen.add(ellipse(-0.22, 0.72, 0.08, 0.14, 0.45, 14), pen.dark)
    pen.add(ellipse(0, 0.77, 0.25, 0.23), pen.main)
    if chest is not None:
        pen.add(ellipse(0.05, 0.82, 0.15, 0.13, count=18), chest, 0)
    _markings(pen, 0, 0.79, 0.22, 0.19)
    _feet(pen, 0.14, 0.955, 0.12, 0.05)
    pen.add(ellipse(0.27, 0.74, 0.075, 0.15, -0.85, 16), pen.accent if who.marking == "socks" else pen.main)
    rx, ry = head_rx * who.head, head_ry * who.head
    pen.add(ellipse(0.05, 0.38, rx, ry, count=30) if head_points is None else head_points, pen.main)
    if who.marking == "patch":
        side = -1 if who.phase < 0.5 else 1
        pen.add(ellipse(0.05 + side * rx * 0.42, 0.36, rx * 0.34, ry * 0.48, count=14), pen.accent, 0)
    elif who.marking == "stripes":
        for k in (-0.24, 0.0, 0.24):
            top = 0.38 - ry * np.sqrt(1 - k * k)
            pen.add(
                polygon((0.02 + rx * (k - 0.08), top + 0.005), (0.02 + rx * (k + 0.08), top + 0.005),
                        (0.02 + rx * k, top + ry * 0.42)),
                pen.accent,
                0,
            )  # fmt: skip
    return Anchors((0.13, 0.37, 1.0), (0.04, 0.4 - ry, rx), (0.02, 0.66, 0.22))


def _cat(pen: Pen) -> Anchors:
    w = pen.who
    pen.add(stroke(curve([(-0.18, 0.9), (-0.42, 0.88), (-0.46, 0.66), (-0.38, 0.5 - 0.08 * w.ear)]), 0.1, 0.7), pen.main)
    for side in (-1, 1):
        x, h, ew = 0.04 + side * 0.24, 0.3 * w.ear, 0.12 * w.ear_width
        pen.add(polygon((x - ew, 0.28), (x + side * 0.07, 0.2 - h), (x + ew, 0.3)), pen.main)
        pen.add(polygon((x - ew * 0.5, 0.26), (x + side * 0.055, 0.22 - h * 0.6), (x + ew * 0.5, 0.27)), ROSE, 0)
    anchors = _sitting(pen)
    pen.add(ellipse(0.2, 0.5, 0.13, 0.085, count=18), mix(pen.light, WHITE, 0.4), 0)
    for side in (-1, 1):
        for k in (0, 1):
            y = 0.47 + 0.05 * k
            pen.add(stroke(polygon((0.2 + side * 0.12, y), (0.2 + side * 0.32, y - 0.03 + 0.05 * k)), 0.016), INK, 0)
    pen.add(polygon((0.17, 0.435), (0.29, 0.435), (0.235, 0.485)), ROSE, 0)
    return replace(anchors, muzzle=0.16, mouth_x=0.09)


def _dog(pen: Pen) -> Anchors:
    w = pen.who
    pen.add(stroke(curve([(-0.2, 0.86), (-0.4, 0.78), (-0.46, 0.56)]), 0.11, 0.6), pen.main)
    pen.add(ellipse(-0.45, 0.58, 0.05, 0.07, count=12), CREAM, 0)
    anchors = _sitting(pen, 0.31, 0.27, chest=CREAM)
    pen.add(blob([(0.06, 0.4), (0.3, 0.41), (0.46, 0.46), (0.44, 0.57), (0.24, 0.62), (0.04, 0.56)]), mix(pen.light, CREAM, 0.75))
    pen.add(ellipse(0.43, 0.45, 0.065, 0.05, count=14), INK, 0)
    pen.add(ellipse(-0.24, 0.3 + 0.16 * w.ear, 0.11 * w.ear_width, 0.24 * w.ear, 0.22, 20), pen.dark)
    pen.add(ellipse(0.29, 0.17 + 0.05 * w.ear, 0.075 * w.ear_width, 0.13 * w.ear, -0.75, 16), pen.dark)
    return replace(anchors, face=(0.12, 0.31, 0.92), muzzle=0.26, mouth_x=0.13)


def _rabbit(pen: Pen) -> Anchors:
    w = pen.who
    pen.add(ellipse(-0.3, 0.86, 0.1, 0.1, count=14), mix(pen.light, WHITE, 0.5))
    for side in (-1, 1):
        h = 0.24 * w.ear + 0.04
        pen.add(ellipse(-0.02 + side * 0.15, 0.16 - h * 0.6, 0.085 * w.ear_width, h, side * 0.14 - 0.15, 18), pen.main)
        pen.add(ellipse(-0.02 + side * 0.15, 0.17 - h * 0.6, 0.045 * w.ear_width, h * 0.74, side * 0.14 - 0.15, 14), ROSE, 0)
    anchors = _sitting(pen, 0.31, 0.26)
    pen.add(ellipse(0.22, 0.49, 0.12, 0.08, count=16), mix(pen.light, WHITE, 0.5), 0)
    pen.add(ellipse(0.25, 0.44, 0.045, 0.03, count=10), ROSE, 0)
    pen.add(polygon((0.19, 0.53), (0.26, 0.53), (0.26, 0.6), (0.19, 0.6)), WHITE)
    return replace(anchors, muzzle=0.15, mouth_x=0.09, mouth_scale=0.85)


def _bear(pen: Pen) -> Anchors:
    w = pen.who
    for side in (-1, 1):
        r = 0.125 * (0.5 + 0.5 * w.ear)
        pen.add(ellipse(0.04 + side * 0.27, 0.17, r * w.ear_width, r, count=18), pen.main)
        pen.add(ellipse(0.04 + side * 0.27, 0.175, r * 0.55 * w.ear_width, r * 0.55, count=14), pen.light, 0)
    anchors = _sitting(pen, 0.36, 0.29)
    pen.add(ellipse(0.21, 0.5, 0.14, 0.1, count=18), pen.light, 0)
    pen.add(ellipse(0.26, 0.445, 0.055, 0.04, count=12), INK, 0)
    return replace(anchors, face=(0.13, 0.34, 1.0), muzzle=0.19, mouth_x=0.09, mouth_scale=0.9)


def _fox(pen: Pen) -> Anchors:
    w = pen.who
    pen.add(blob([(-0.14, 0.92), (-0.4, 0.96), (-0.52, 0.76), (-0.42, 0.54), (-0.34, 0.7), (-0.24, 0.78)]), pen.main)
    pen.add(blob([(-0.52, 0.72), (-0.42, 0.54), (-0.36, 0.66), (-0.44, 0.72)]), WHITE, 0)
    for side in (-1, 1):
        x, h, ew = 0.02 + side * 0.24, 0.34 * w.ear, 0.14 * w.ear_width
        pen.add(polygon((x - ew, 0.3), (x + side * 0.09, 0.2 - h), (x + ew, 0.3)), pen.main)
        pen.add(polygon((x + side * 0.02 - ew * 0.42, 0.2 - h * 0.5), (x + side * 0.09, 0.2 - h), (x + side * 0.05 + ew * 0.42, 0.2 - h * 0.5)), INK, 0)
    head = blob([(0.04, 0.13), (0.28, 0.2), (0.4, 0.38), (0.4, 0.5), (0.5, 0.58), (0.28, 0.64), (0.02, 0.62), (-0.33, 0.46), (-0.24, 0.22)])
    anchors = _sitting(pen, head_points=head)
    pen.add(blob([(0.5, 0.58), (0.28, 0.635), (0.02, 0.61), (-0.3, 0.46), (-0.02, 0.48), (0.24, 0.5), (0.4, 0.5)]), WHITE, 0)
    pen.add(ellipse(0.49, 0.565, 0.05, 0.042, count=12), INK, 0)
    return replace(anchors, face=(0.12, 0.35, 0.92), crown=(0.03, 0.16, 0.3), neck=(0.01, 0.68, 0.22), muzzle=0.22, mouth_x=0.14, mouth_scale=0.85)


def _mouse(pen: Pen) -> Anchors:
    w = pen.who
    pen.add(stroke(curve([(-0.18, 0.92), (-0.4, 0.96), (-0.48, 0.8), (-0.4, 0.68)]), 0.045, 0.5), ROSE)
    for side in (-1, 1):
        r = 0.2 * (0.6 + 0.4 * w.ear)
        pen.add(ellipse(side * 0.3, 0.17, r * w.ear_width, r, count=22), pen.main)
        pen.add(ellipse(side * 0.3, 0.18, r * 0.66 * w.ear_width, r * 0.66, count=18), ROSE, 0)
    head = blob([(0.0, 0.14), (0.22, 0.2), (0.34, 0.38), (0.48, 0.48), (0.4, 0.56), (0.12, 0.63), (-0.2, 0.56), (-0.28, 0.36), (-0.2, 0.2)])
    anchors = _sitting(pen, 0.29, 0.25, head)
    pen.add(ellipse(0.47, 0.49, 0.05, 0.042, count=12), ROSE)
    return replace(anchors, face=(0.1, 0.36, 0.9), muzzle=0.22, mouth_x=0.14, mouth_scale=0.9)


def _pig(pen: Pen) -> Anchors:
    w = pen.who
    pen.add(stroke(curve([(-0.2, 0.84), (-0.36, 0.88), (-0.4, 0.74), (-0.3, 0.74), (-0.34, 0.84), (-0.48, 0.8)]), 0.04), pen.dark)
    anchors = _sitting(pen, 0.36, 0.29)
    for side in (-1, 1):
        x = 0.04 + side * 0.25
        pen.add(polygon((x - side * 0.13 * w.ear_width, 0.16), (x + side * 0.1, 0.2 - 0.16 * w.ear), (x + side * 0.1, 0.31)), pen.dark)
    pen.add(ellipse(0.26, 0.46, 0.15, 0.105, count=22), mix(pen.main, (214, 92, 120), 0.45))
    for side in (-1, 1):
        pen.add(ellipse(0.27 + side * 0.055, 0.46, 0.03, 0.045, count=12), INK, 0)
    return replace(anchors, face=(0.12, 0.32, 1.0), muzzle=0.29, mouth_x=0.12, mouth_scale=0.85)


def _frog(pen: Pen) -> Anchors:
    w = pen.who
    for side in (-1, 1):
        pen.add(ellipse(side * 0.33, 0.86, 0.15, 0.12, side * 0.4, 16), pen.dark)
    for side in (-1, 1):
        pen.add(ellipse(0.1 + side * 0.19, 0.2, 0.15 * (0.7 + 0.3 * w.ear), 0.15 * (0.7 + 0.3 * w.ear), count=20), pen.main)
    anchors = _sitting(pen, 0.4, 0.24, chest=pen.light)
    pen.add(ellipse(0.14, 0.5, 0.28, 0.11, count=22), pen.light, 0)
    for x in (0.22, 0.3):
        pen.add(ellipse(x, 0.41, 0.016, 0.012, count=8), INK, 0)
    return replace(anchors, face=(0.1, 0.21, 1.2), crown=(0.08, 0.13, 0.3), muzzle=0.24, mouth_x=0.06, mouth_scale=1.5)


def _lion(pen: Pen) -> Anchors:
    w = pen.who
    pen.add(stroke(curve([(-0.18, 0.88), (-0.42, 0.86), (-0.48, 0.66)]), 0.055), pen.main)
    mane = mix(pen.main, (108, 56, 22), 0.6)
    pen.add(ellipse(-0.48, 0.62, 0.075, 0.09, count=14), mane)
    r = 0.42 * (0.8 + 0.2 * w.ear)
    pen.add(scallop(0.02, 0.39, r * 1.05, r * 0.94, 9 + int(4 * w.ear_width), 0.12, w.phase), mane)
    anchors = _sitting(pen, 0.27, 0.24)
    pen.behind = len(pen.shapes)
    for side in (-1, 1):
        pen.add(ellipse(0.05 + side * 0.21, 0.2, 0.075, 0.075, count=14), pen.main)
    pen.add(ellipse(0.18, 0.49, 0.12, 0.085, count=16), pen.light, 0)
    pen.add(polygon((0.13, 0.43), (0.26, 0.43), (0.2, 0.49)), INK, 0)
    return replace(anchors, face=(0.11, 0.35, 0.88), crown=(0.03, 0.04, 0.3), neck=(0.02, 0.72, 0.22), muzzle=0.21, mouth_x=0.1, mouth_scale=0.9, head=(0.05, 0.15, 0.3))


def _elephant(pen: Pen) -> Anchors:
    w = pen.who
    pen.add(stroke(polygon((-0.22, 0.78), (-0.38, 0.9)), 0.045), pen.dark)
    x, grow = -0.24, 0.5 + 0.5 * w.ear
    pen.add(ellipse(0.28, 0.32, 0.13 * w.ear_width, 0.2 * grow, -0.15, 20), pen.dark)
    anchors = _sitting(pen, 0.29, 0.27)
    pen.add(ellipse(x, 0.38, 0.2 * w.ear_width, 0.25 * grow, 0.15, 22), pen.dark)
    pen.add(ellipse(x, 0.39, 0.12 * w.ear_width, 0.16 * grow, 0.15, 18), mix(pen.light, ROSE, 0.5), 0)
    pen.add(polygon((0.2, 0.54), (0.3, 0.54), (0.38, 0.64), (0.26, 0.6)), CREAM)
    pen.add(stroke(curve([(0.26, 0.4), (0.38, 0.5), (0.44, 0.68), (0.5, 0.82), (0.62, 0.8), (0.66, 0.68)], 6), 0.19, 0.5), pen.main)
    for px, py in ((0.35, 0.52), (0.4, 0.62), (0.43, 0.72)):
        pen.add(stroke(polygon((px - 0.04, py + 0.02), (px + 0.05, py - 0.015)), 0.014), pen.dark, 0)
    return replace(anchors, face=(0.1, 0.34, 0.92), neck=(0.0, 0.68, 0.2), muzzle=0.25, mouth=False, mouth_x=0.02, mouth_scale=0.8)


def _sheep(pen: Pen) -> Anchors:
    w = pen.who
    for x in (-0.24, -0.06, 0.1):
        pen.add(ellipse(x, 0.92, 0.05, 0.08, count=12), INK)
    pen.add(scallop(-0.08, 0.68, 0.38, 0.25, 9, 0.13, w.phase), pen.main)
    _markings(pen, -0.12, 0.74, 0.24, 0.16)
    face = mix(CREAM, (190, 150, 120), 0.35 + 0.4 * w.phase)
    pen.skin = face
    for side in (-1, 1):
        pen.add(ellipse(0.16 + side * 0.25, 0.34, 0.12 * w.ear, 0.055 * w.ear_width, side * 0.4, 14), face)
    pen.behind = len(pen.shapes)
    pen.add(blob([(0.16, 0.14), (0.34, 0.22), (0.4, 0.42), (0.46, 0.52), (0.34, 0.62), (0.14, 0.6), (-0.04, 0.46), (-0.04, 0.24)]), face)
    pen.add(scallop(0.13, 0.18, 0.25, 0.13, 7, 0.15, w.phase), pen.main)
    pen.add(ellipse(0.42, 0.5, 0.045, 0.03, count=10), INK, 0)
    return Anchors((0.2, 0.37, 0.82), (0.12, 0.1, 0.24), (0.1, 0.66, 0.2), 0.24, mouth_x=0.12, mouth_scale=0.85)


def _bird(pen: Pen) -> Anchors:
    w = pen.who
    for k in (-1, 0, 1):
        pen.add(ellipse(-0.42, 0.66 + 0.08 * k, 0.16, 0.05, -0.3 + 0.28 * k, 12), pen.dark)
    for x in (-0.06, 0.1):
        pen.add(stroke(polygon((x, 0.86), (x, 0.99)), 0.03), BEAK, 0)
    pen.add(blob([(0.0, 0.16 - 0.1 * w.ear), (0.08, 0.16), (0.02, 0.24), (-0.06, 0.2)]), pen.dark)
    pen.add(blob([(0.06, 0.16), (0.32, 0.26), (0.36, 0.56), (0.2, 0.86), (-0.1, 0.88), (-0.34, 0.72), (-0.3, 0.4), (-0.14, 0.2)]), pen.main)
    _markings(pen, 0.1, 0.68, 0.2, 0.17)
    pen.add(blob([(-0.3, 0.56), (-0.1, 0.5), (0.04 * w.ear_width, 0.62), (-0.08, 0.78), (-0.3, 0.74)]), pen.dark)
    pen.add(polygon((0.3, 0.38), (0.52, 0.46), (0.3, 0.53)), BEAK)
    return Anchors((0.14, 0.37, 0.85), (0.08, 0.17, 0.22), (0.06, 0.62, 0.26), 0.27, False)


def _owl(pen: Pen) -> Anchors:
    w = pen.who
    for side in (-1, 1):
        pen.add(polygon((0.06 + side * 0.1, 0.2), (0.06 + side * 0.3, 0.16 - 0.14 * w.ear), (0.06 + side * 0.34 * (0.7 + 0.3 * w.ear_width), 0.36)), pen.dark)
    pen.add(blob([(-0.28, 0.7), (-0.5, 0.94), (-0.3, 0.92), (-0.12, 0.88)]), pen.dark)
    _feet(pen, 0.12, 0.96, 0.09, 0.04, BEAK)
    pen.add(blob([(0.06, 0.13), (0.32, 0.2), (0.39, 0.5), (0.3, 0.82), (0, 0.96), (-0.28, 0.82), (-0.32, 0.5), (-0.22, 0.2)]), pen.main)
    pen.add(ellipse(0.12, 0.74, 0.19, 0.18, count=18), pen.light, 0)
    _markings(pen, 0.12, 0.74, 0.17, 0.16)
    pen.add(blob([(-0.26, 0.46), (-0.04, 0.54), (-0.1, 0.84), (-0.3, 0.92), (-0.4, 0.66)]), pen.dark)
    for side in (-1, 1):
        pen.add(ellipse(0.12 + side * 0.15, 0.36, 0.16, 0.16, count=22), mix(pen.light, WHITE, 0.4))
    pen.add(polygon((0.1, 0.41), (0.24, 0.41), (0.26, 0.55)), BEAK)
    pen.skin = mix(pen.light, WHITE, 0.4)
    return Anchors((0.12, 0.36, 1.1), (0.06, 0.15, 0.26), (0.05, 0.6, 0.3), 0.32, False, 0.08)


def _penguin(pen: Pen) -> Anchors:
    w = pen.who
    pen.add(polygon((-0.2, 0.86), (-0.42, 0.96), (-0.14, 0.95)), pen.dark)
    _feet(pen, 0.13, 0.96, 0.12, 0.045, BEAK)
    pen.add(ellipse(0.33, 0.62, 0.07 * w.ear_width, 0.2 * (0.6 + 0.4 * w.ear), -0.7, 16), pen.dark)
    pen.add(blob([(0, 0.06), (0.25, 0.16), (0.32, 0.48), (0.3, 0.82), (0, 0.96), (-0.3, 0.82), (-0.32, 0.48), (-0.25, 0.16)]), pen.main)
    pen.add(blob([(0.1, 0.46), (0.26, 0.54), (0.27, 0.82), (0.08, 0.92), (-0.12, 0.82), (-0.1, 0.54)]), WHITE, 0)
    pen.add(blob([(0.12, 0.28), (0.22, 0.16), (0.3, 0.3), (0.29, 0.46), (0.1, 0.5), (-0.1, 0.46), (-0.14, 0.3), (0.0, 0.16)]), WHITE, 0)
    _markings(pen, 0.08, 0.74, 0.15, 0.15)
    pen.add(ellipse(-0.26, 0.62, 0.08 * w.ear_width, 0.22 * (0.6 + 0.4 * w.ear), 0.3, 16), pen.dark)
    pen.add(polygon((0.16, 0.36), (0.46, 0.43), (0.16, 0.47)), BEAK)
    pen.skin = WHITE
    return Anchors((0.11, 0.3, 0.82), (0, 0.08, 0.24), (0, 0.55, 0.28), 0.3, False, 0.05)


def _duck(pen: Pen) -> Anchors:
    w = pen.who
    for x in (-0.08, 0.06):
        pen.add(ellipse(x + 0.03, 0.965, 0.08, 0.03, count=10), BEAK)
    pen.add(blob([(0.24, 0.6), (0.2, 0.86), (-0.06, 0.95), (-0.32, 0.86), (-0.5, 0.56 - 0.06 * w.ear), (-0.28, 0.62), (0.0, 0.56)]), pen.main)
    pen.add(blob([(-0.32, 0.72), (-0.08, 0.64), (0.06 * w.ear_width, 0.74), (-0.08, 0.86), (-0.28, 0.84)]), pen.dark)
    _markings(pen, 0.06, 0.78, 0.13, 0.12)
    pen.add(ellipse(0.12, 0.36, 0.24 * w.head, 0.24 * w.head, count=22), pen.main)
    pen.add(blob([(0.3, 0.4), (0.46, 0.4), (0.52, 0.46), (0.42, 0.51), (0.28, 0.5)]), BEAK)
    return Anchors((0.14, 0.32, 0.8), (0.12, 0.14, 0.22), (0.1, 0.62, 0.18), 0.27, False)


def _turtle(pen: Pen) -> Anchors:
    w = pen.who
    skin = mix(pen.light, (150, 190, 120), 0.35)
    for x in (-0.28, 0.14):
        pen.add(ellipse(x, 0.9, 0.1, 0.09, count=14), skin)
    pen.add(polygon((-0.44, 0.84), (-0.56, 0.9), (-0.42, 0.92)), skin)
    pen.add(ellipse(0.37, 0.52, 0.22 * w.head, 0.21 * w.head, count=22), skin)
    pen.add(stroke(polygon((0.2, 0.84), (0.32, 0.62)), 0.16), skin, 0)
    h = 0.46 * (0.86 + 0.14 * w.ear)
    pen.add(blob([(-0.5, 0.9), (-0.44, 0.9 - h * 0.66), (-0.12, 0.9 - h), (0.18, 0.9 - h * 0.7), (0.26, 0.9), (-0.12, 0.94)]), pen.main)
    if w.marking == "plain":
        for x, y in ((-0.28, 0.72), (-0.02, 0.7), (-0.14, 0.84)):
            pen.add(ellipse(x, y, 0.075, 0.06, count=8), pen.dark, 0)
    _markings(pen, -0.12, 0.74, 0.26, 0.15)
    pen.add(stroke(curve([(-0.5, 0.89), (-0.12, 0.93), (0.26, 0.89)]), 0.05), pen.dark, 0)
    pen.skin = skin
    return Anchors((0.39, 0.49, 0.72), (0.36, 0.34, 0.17), (0.29, 0.73, 0.12), 0.2)


def _fish(pen: Pen) -> Anchors:
    w = pen.who
    pen.add(blob([(-0.24, 0.62), (-0.52, 0.38), (-0.46, 0.62), (-0.52, 0.86)], 4), pen.dark)
    pen.add(blob([(-0.16, 0.42), (-0.06, 0.42 - 0.18 * w.ear), (0.16, 0.36), (0.1, 0.46)]), pen.dark)
    pen.add(blob([(-0.06, 0.82), (-0.08, 0.96), (0.1, 0.86)]), pen.dark)
    ry = 0.26 * (0.8 + 0.2 * w.ear_width)
    pen.add(blob([(0.5, 0.62), (0.36, 0.62 - ry * 0.85), (0.06, 0.62 - ry), (-0.28, 0.62), (0.06, 0.62 + ry), (0.36, 0.62 + ry * 0.85)]), pen.main)
    _markings(pen, -0.0, 0.63, 0.17, ry * 0.8)
    pen.add(ellipse(-0.02, 0.68, 0.09, 0.06, 0.3, 12), pen.dark, 0)
    return Anchors((0.26, 0.56, 0.76), (0.16, 0.37, 0.2), (0.12, 0.84, 0.16), 0.22, mouth_x=0.12)


def _whale(pen: Pen) -> Anchors:
    w = pen.who
    for side in (-1, 1):
        pen.add(stroke(curve([(0.1, 0.36), (0.1 + side * 0.02, 0.2), (0.1 + side * 0.14 * w.ear_width, 0.14 + 0.02 * w.ear)]), 0.05, 0.7), (130, 200, 240), 0)
    pen.add(blob([(-0.4, 0.66), (-0.62, 0.34), (-0.5, 0.36), (-0.42, 0.44), (-0.36, 0.32), (-0.26, 0.36)], 4), pen.main)
    pen.add(blob([(0.58, 0.66), (0.46, 0.42), (0.14, 0.34), (-0.2, 0.46), (-0.44, 0.54), (-0.34, 0.8), (-0.04, 0.96), (0.36, 0.94)]), pen.main)
    pen.add(blob([(0.56, 0.74), (0.2, 0.78), (-0.16, 0.76), (-0.04, 0.94), (0.34, 0.93)]), pen.accent if w.marking == "belly" else mix(pen.light, WHITE, 0.5), 0)
    if w.marking != "belly":
        _markings(pen, -0.04, 0.58, 0.2, 0.14)
    pen.add(ellipse(-0.02, 0.86, 0.14 * w.ear, 0.055, 0.5, 14), pen.dark)
    return Anchors((0.32, 0.58, 0.76), (0.24, 0.38, 0.24), (0.1, 0.9, 0.2), 0.25, mouth_x=0.1)


def _tree(pen: Pen) -> Anchors:
    w = pen.who
    pen.add(polygon((-0.09, 0.6), (0.09, 0.6), (0.12 * w.ear_width, 0.99), (-0.12 * w.ear_width, 0.99)), WOOD)
    r = 0.36 * (0.9 + 0.1 * w.ear)
    pen.add(scallop(0, 0.38, r * 1.06, r, 6 + int(3 * w.ear_width), 0.13, w.phase * 2), pen.main)
    _markings(pen, -0.02, 0.28, 0.27, 0.17)
    for k in range(2):
        x = (-0.2 + 0.36 * k) * w.ear_width
        pen.add(ellipse(x, 0.56, 0.05, 0.03, count=10), pen.dark, 0)
    return Anchors((0.1, 0.4, 0.95), (0, 0.05, 0.28), (0, 0.68, 0.15))


def _house(pen: Pen) -> Anchors:
    w = pen.who
    pen.add(polygon((0.18, 0.1), (0.3, 0.1), (0.3, 0.4), (0.18, 0.4)), mix(WOOD, (200, 120, 100), 0.5))
    pen.add(polygon((-0.36, 0.42), (0.36, 0.42), (0.36, 0.98), (-0.36, 0.98)), pen.main)
    _markings(pen, 0, 0.84, 0.3, 0.12)
    top = 0.16 - 0.1 * w.ear
    e = 0.44 + 0.05 * w.ear_width
    pen.add(polygon((-e, 0.46), (-0.02, top), (e, 0.46)), pen.dark)
    pen.add(polygon((-0.3, 0.98), (-0.3, 0.74), (-0.14, 0.74), (-0.14, 0.98)), WOOD)
    pen.add(ellipse(-0.02, 0.34, 0.06, 0.06, count=14), (250, 226, 140))
    return Anchors((0.12, 0.58, 0.9), (-0.02, top + 0.06, 0.26), (0, 0.46, 0.3))


def _car(pen: Pen) -> Anchors:
    w = pen.who
    top = 0.44 - 0.08 * w.ear
    pen.add(blob([(-0.34, 0.66), (-0.26, top), (0.1 * w.ear_width, top), (0.28, 0.64)], 4), pen.main)
    pen.add(blob([(-0.24, 0.6), (-0.2, top + 0.06), (-0.06, top + 0.06), (-0.06, 0.6)], 4), (206, 234, 248))
    pen.add(blob([(0.0, 0.6), (0.0, top + 0.06), (0.08 * w.ear_width, top + 0.06), (0.2, 0.6)], 4), (206, 234, 248))
    pen.add(blob([(-0.52, 0.66), (-0.5, 0.88), (0.5, 0.88), (0.54, 0.72), (0.3, 0.62), (-0.3, 0.6)], 4), pen.main)
    _markings(pen, -0.2, 0.73, 0.16, 0.09)
    for x in (-0.28, 0.3):
        pen.add(ellipse(x, 0.88, 0.13, 0.12, count=20), INK)
        pen.add(ellipse(x, 0.88, 0.06, 0.055, count=12), (214, 214, 220), 0)
    pen.add(ellipse(0.5, 0.72, 0.035, 0.045, count=10), (255, 240, 160), 0)
    return Anchors((0.26, 0.68, 0.72), (-0.08, top + 0.02, 0.2), (0.06, 0.62, 0.22), 0.2)


def _star(pen: Pen) -> Anchors:
    w = pen.who
    angles = np.pi * (np.arange(10) / 5 - 0.5) + 0.1 * (w.phase - 0.5)
    radius = np.where(np.arange(10) % 2, 0.27 * (0.85 + 0.15 * w.ear_width), 0.5)
    tips = np.stack([radius * np.cos(angles), 0.5 + radius * np.sin(angles)], axis=1)
    pen.add(blob(tips, 3), pen.main)
    _markings(pen, 0, 0.62, 0.22, 0.14)
    return Anchors((0.06, 0.46, 0.95), (0, 0.14, 0.14), (0, 0.7, 0.2))


def _flower(pen: Pen) -> Anchors:
    w = pen.who
    pen.add(stroke(curve([(0.0, 0.5), (0.03, 0.75), (0, 1.0)]), 0.06), LEAF)
    pen.add(ellipse(-0.14, 0.86, 0.14 * w.ear, 0.055, 0.5, 14), LEAF)
    pen.add(ellipse(0.16, 0.8, 0.14 * w.ear, 0.055, -0.5, 14), LEAF)
    petals = 5 + int(w.phase * 4)
    for k in range(petals):
        angle = 2 * np.pi * k / petals + w.phase
        fill = pen.accent if w.marking in ("spots", "stripes") and k % 2 else pen.main
        pen.add(ellipse(0.23 * np.cos(angle), 0.36 + 0.23 * np.sin(angle), 0.15, 0.11 * w.ear_width, angle, 16), fill)
    centre = mix(pen.accent, CREAM, 0.55) if w.marking in ("belly", "patch") else CREAM
    pen.add(ellipse(0, 0.36, 0.2, 0.2, count=20), centre)
    pen.skin = centre
    return Anchors((0.05, 0.35, 0.8), (0, 0.1, 0.22), (0, 0.6, 0.16))


def _mushroom(pen: Pen) -> Anchors:
    w = pen.who
    e = 0.16 * (0.8 + 0.3 * w.ear_width)
    pen.add(blob([(-e, 0.5), (e, 0.5), (e * 1.15, 0.92), (0, 0.99), (-e * 1.15, 0.92)]), CREAM)
    top = 0.2 - 0.12 * w.ear
    pen.add(blob([(-0.48, 0.52), (-0.34, 0.26), (0, top), (0.34, 0.26), (0.48, 0.52), (0, 0.6)]), pen.main)
    spot = pen.accent if w.marking != "plain" else WHITE
    for k in range(3 + int(w.phase * 3)):
        x = -0.3 + 0.6 * ((k * 0.618 + w.phase) % 1)
        y = 0.3 + 0.16 * ((k * 0.41 + w.phase) % 1)
        pen.add(ellipse(x, y, 0.07 - 0.008 * k, 0.055, count=14), spot, 0)
    pen.skin = CREAM
    return Anchors((0.05, 0.74, 0.7), (0, top + 0.05, 0.28), (0, 0.62, 0.2))


def _boat(pen: Pen) -> Anchors:
    w = pen.who
    pen.add(stroke(polygon((-0.02, 0.64), (-0.02, 0.04)), 0.04), WOOD)
    sail = pen.accent if w.marking in ("belly", "patch", "heart") else CREAM
    pen.add(polygon((0.02, 0.06), (0.02, 0.58), (0.38 * w.ear_width, 0.58)), sail)
    pen.add(polygon((-0.06, 0.14), (-0.06, 0.58), (-0.3 * w.ear, 0.58)), mix(sail, pen.main, 0.25))
    pen.add(blob([(-0.54, 0.62), (0.56, 0.62), (0.4, 0.94), (0, 0.98), (-0.38, 0.94)], 4), pen.main)
    if w.marking in ("spots", "stripes", "socks"):
        pen.add(stroke(curve([(-0.5, 0.68), (0, 0.71), (0.52, 0.68)]), 0.06), pen.accent, 0)
    return Anchors((0.2, 0.76, 0.7), (-0.02, 0.08, 0.16), (0.1, 0.64, 0.26))


def _balloon(pen: Pen) -> Anchors:
    w = pen.who
    pen.add(stroke(curve([(0, 0.74), (0.06, 0.82), (-0.05, 0.9), (0.02, 1.0)]), 0.025), INK, 0)
    pen.add(polygon((-0.06, 0.77), (0.06, 0.77), (0, 0.7)), pen.dark)
    rx = 0.34 * (0.9 + 0.1 * w.ear_width)
    pen.add(blob([(0, 0.02), (rx, 0.16), (rx * 1.04, 0.42), (0, 0.74), (-rx * 1.04, 0.42), (-rx, 0.16)]), pen.main)
    _markings(pen, 0, 0.54, 0.24, 0.13)
    pen.add(ellipse(-0.18, 0.2, 0.05, 0.09 * w.ear, 0.5, 12), mix(pen.light, WHITE, 0.6), 0)
    return Anchors((0.09, 0.34, 1.0), (0, 0.05, 0.24), (0, 0.7, 0.14))


BUILDERS: dict[str, Callable[[Pen], Anchors]] = {
    "cat": _cat, "dog": _dog, "rabbit": _rabbit, "bear": _bear, "fox": _fox, "mouse": _mouse, "pig": _pig,
    "frog": _frog, "lion": _lion, "elephant": _elephant, "sheep": _sheep, "bird": _bird, "owl": _owl,
    "penguin": _penguin, "duck": _duck, "turtle": _turtle, "fish": _fish, "whale": _whale, "tree": _tree,
    "house": _house, "car": _car, "star": _star, "flower": _flower, "mushroom": _mushroom, "boat": _boat,
    "balloon": _balloon,
}  # fmt: skip


def _eyes(w: Individual, scale: float) -> tuple[float, float, float]:
    """Return the eyes' distance from the middle and their two radii."""
    r = 0.075 * scale * (0.55 + 0.45 * w.eye_scale)
    rx, ry = {"round": (r, r), "tall": (r * 0.88, r * 1.2), "wide": (r * 1.15, r * 0.95), "bead": (r * 0.88, r * 0.88)}[w.eye]
    return 0.15 * scale * (0.5 + 0.5 * w.eye_gap), rx, ry


def _line(pen: Pen) -> Colour:
    """Return the colour of thin lines in the face: dark, or pale on a dark skin."""
    r, g, b = pen.skin[:3]
    return INK if 0.3 * r + 0.59 * g + 0.11 * b > 96 else CREAM


def _face(pen: Pen, anchors: Anchors, expression: str) -> None:
    """Draw eyes, brows, mouth and cheeks; the gaze goes to the right and the far eye is narrower."""
    x, y, scale = anchors.face
    gap, rx, ry = _eyes(pen.who, scale)
    line = _line(pen)
    for side in (-1, 1):
        ex, ey = x + side * gap * (1.0 if side < 0 else 0.92), y - 0.02 * scale
        near = 1.0 if side < 0 else 0.88
        if expression == "sleepy":
            lid = [(ex - rx * 1.5, ey), (ex - rx * 0.7, ey + ry * 0.75), (ex + rx * 0.7, ey + ry * 0.75), (ex + rx * 1.5, ey)]
            pen.add(stroke(curve(lid, 5), 0.05 * scale), line, 0)
            continue
        grown = 1.42 if expression == "surprised" else 1.0
        pupil = 0.62 if expression == "surprised" else 0.9
        pen.add(ellipse(ex, ey, rx * 1.3 * grown * near, ry * 1.3 * grown, count=20), INK, 0)
        pen.add(ellipse(ex, ey, rx * 1.14 * grown * near, ry * 1.14 * grown, count=20), WHITE, 0)
        pen.add(ellipse(ex + rx * 0.3, ey + 0.06 * ry, rx * pupil * near, ry * pupil, count=16), INK, 0)
        if pen.who.eye != "bead":
            pen.add(ellipse(ex + rx * 0.5, ey - ry * 0.3, rx * 0.3, ry * 0.3, count=8), WHITE, 0)
        high, wide = ey - ry * 1.3, rx * 1.5
        if expression == "angry":  # a lid of skin and a heavy brow that fall towards the middle
            inner, outer = ex - side * wide, ex + side * wide
            pen.add(polygon((outer, high - ry * 0.8), (inner, high - ry * 0.4), (inner, ey + ry * 0.1), (outer, high + ry * 0.3)), pen.skin, 0)
            pen.add(stroke(polygon((outer, high - ry * 0.15), (inner, ey - ry * 0.05)), 0.07 * scale), line, 0)
        elif expression == "sad":
            inner, outer = ex - side * wide * 0.8, ex + side * wide
            pen.add(stroke(polygon((inner, high - ry * 0.75), (outer, high + ry * 0.35)), 0.05 * scale), line, 0)
            tear = blob([(ex, ey + ry * 0.9), (ex + 0.05 * scale, ey + ry * 1.9), (ex, ey + ry * 2.5), (ex - 0.05 * scale, ey + ry * 1.9)], 4)
            pen.add(tear, (78, 170, 250), 0)
        elif expression == "surprised":
            brow = [(ex - rx * 1.1, high - ry * 0.95), (ex, high - ry * 1.35), (ex + rx * 1.1, high - ry * 0.95)]
            pen.add(stroke(curve(brow, 4), 0.04 * scale), line, 0)
    if pen.who.blush and expression != "sad":
        for side in (-1, 1):
            pen.add(ellipse(x + side * gap * 1.8, y + 0.13 * scale, 0.055 * scale, 0.035 * scale, count=12), ROSE, 0)
    _mouth(pen, anchors, expression, line)
    if expression == "sleepy":
        for size, dx, dy in ((0.15, 0.36, -0.14), (0.11, 0.5, -0.3)):
            _letter_z(pen, x - dx * scale, y + dy * scale, size * scale)


def _letter_z(pen: Pen, x: float, y: float, size: float) -> None:
    """Draw a Z with a dark rim, which a sleeper breathes out."""
    z = polygon((x, y), (x + size, y), (x + size, y + size * 0.28), (x + size * 0.42, y + size * 0.74), (x + size, y + size * 0.74),
                (x + size, y + size), (x, y + size), (x, y + size * 0.74), (x + size * 0.56, y + size * 0.28), (x, y + size * 0.28))  # fmt: skip
    centre = z.mean(0)
    pen.add((z - centre) * 1.35 + centre, INK, 0)
    pen.add(z, WHITE, 0)


def _mouth(pen: Pen, anchors: Anchors, expression: str, line: Colour) -> None:
    x, y, scale = anchors.face
    mx, my = x + anchors.mouth_x * scale, y + (anchors.muzzle - 0.02) * scale
    if not anchors.mouth and expression in ("happy", "sleepy", "angry"):
        return
    s = scale * anchors.mouth_scale
    if expression == "happy":
        pen.add(blob([(mx - 0.12 * s, my - 0.015 * s), (mx + 0.12 * s, my - 0.015 * s), (mx + 0.06 * s, my + 0.09 * s), (mx - 0.06 * s, my + 0.09 * s)], 5), (150, 30, 44), 0)
        pen.add(ellipse(mx, my + 0.065 * s, 0.05 * s, 0.028 * s, count=12), (244, 120, 130), 0)
    elif expression == "surprised":
        pen.add(ellipse(mx, my + 0.04 * s, 0.075 * s, 0.095 * s, count=18), (110, 26, 38), 0)
    elif expression == "sleepy":
        pen.add(ellipse(mx, my + 0.02 * s, 0.035 * s, 0.025 * s, count=10), (120, 36, 48), 0)
    elif expression == "angry":
        pen.add(polygon((mx - 0.11 * s, my + 0.1 * s), (mx - 0.09 * s, my + 0.01 * s), (mx + 0.09 * s, my + 0.01 * s), (mx + 0.11 * s, my + 0.1 * s)), INK, 0)
        pen.add(polygon((mx - 0.085 * s, my + 0.078 * s), (mx - 0.07 * s, my + 0.032 * s), (mx + 0.07 * s, my + 0.032 * s), (mx + 0.085 * s, my + 0.078 * s)), WHITE, 0)
    else:
        pen.add(stroke(curve([(mx - 0.11 * s, my + 0.08 * s), (mx, my + 0.0 * s), (mx + 0.11 * s, my + 0.08 * s)], 5), 0.045 * s), INK if anchors.mouth else line, 0)


def _accessory(pen: Pen, anchors: Anchors, kind: str, colour: Colour) -> None:
    deep = mix(colour, INK, 0.35)
    if kind == "hat":  # narrow enough that ears stand beside it
        x, y, r = anchors.crown
        r = min(max(r * 0.62, 0.14), 0.19)
        pen.add(polygon((x - r * 0.78, y + 0.02), (x - r * 0.7, y - r * 1.35), (x + r * 0.7, y - r * 1.35), (x + r * 0.78, y + 0.02)), colour)
        pen.add(polygon((x - r * 0.77, y - 0.01), (x - r * 0.75, y - r * 0.42), (x + r * 0.75, y - r * 0.42), (x + r * 0.77, y - 0.01)), CREAM, 0)
        pen.add(ellipse(x, y + 0.02, r * 1.3, 0.05, count=20), deep)
    elif kind == "crown":
        x, y, r = anchors.crown
        r = min(max(r * 0.5, 0.13), 0.17)
        h = r * 1.3
        pen.add(polygon((x - r, y + 0.05), (x - r * 1.08, y - h), (x - r * 0.5, y - h * 0.4), (x, y - h * 1.15), (x + r * 0.5, y - h * 0.4), (x + r * 1.08, y - h), (x + r, y + 0.05)), (252, 200, 52))
        for k, gem in ((-0.55, (220, 60, 80)), (0.0, (70, 130, 230)), (0.55, (220, 60, 80))):
            pen.add(ellipse(x + r * k, y - h * 0.06, r * 0.16, r * 0.18, count=8), gem, 0)
    elif kind == "scarf":
        x, y, r = anchors.neck
        pen.add(polygon((x - r * 0.62, y), (x - r * 0.1, y + 0.02), (x - r * 0.2, y + 0.27), (x - r * 0.85, y + 0.25)), deep)
        pen.add(ellipse(x, y, r * 1.16, 0.075, count=20), colour)
        pen.add(stroke(polygon((x - r * 0.78, y + 0.19), (x - r * 0.16, y + 0.2)), 0.035), CREAM, 0)
    elif kind == "bowtie":
        x, y, r = anchors.neck
        s = max(0.16, r * 0.75)
        for side in (-1, 1):
            pen.add(polygon((x, y), (x + side * s, y - s * 0.6), (x + side * s, y + s * 0.6)), colour)
        pen.add(ellipse(x, y, s * 0.28, s * 0.3, count=12), deep)
    elif kind == "glasses":
        x, y, scale = anchors.face
        gap = max(_eyes(pen.who, scale)[0], 0.135 * scale)
        r = 0.145 * scale
        pen.add(stroke(polygon((x - gap, y - 0.05 * scale), (x - gap - r * 1.7, y - 0.09 * scale)), 0.05 * scale), deep, 0)
        for side in (-1, 1):
            cx, cy = x + side * gap * 1.06, y - 0.02 * scale
            for radius, fill in ((1.12, INK), (1.04, colour), (0.78, INK)):
                outer, inner = ellipse(0, 0, r * radius, r * radius, count=24), ellipse(0, 0, r * 0.72, r * 0.72, count=24)
                ring = np.concatenate([outer, outer[:1], inner[:1], inner[::-1]])
                pen.add(np.add(ring, (cx, cy)), fill, 0)
            pen.add(ellipse(cx, cy, r * 0.72, r * 0.72, count=18), (190, 228, 252, 70), 0)
        pen.add(stroke(polygon((x - gap * 0.25, y - 0.04 * scale), (x + gap * 0.25, y - 0.04 * scale)), 0.06 * scale), deep, 0)
    elif kind == "headphones":
        x, y, r = anchors.head or anchors.crown
        fy = anchors.face[1]
        r = max(r, 0.2)
        band = stroke(curve([(x - r, fy), (x - r * 0.86, y - 0.02), (x, y - 0.1), (x + r * 0.86, y - 0.02), (x + r, fy)]), 0.075)
        pen.shapes.insert(pen.behind, Shape(band, deep, 1))  # behind ears, which stay visible
        for side in (-1, 1):
            pen.add(ellipse(x + side * r, fy + 0.02, 0.085, 0.13, count=18), colour)
            pen.add(ellipse(x + side * r, fy + 0.02, 0.045, 0.08, count=14), deep, 0)


@lru_cache(maxsize=4096)
def sprite(species: str, colour: str, accessory: str, expression: str, identity: int) -> tuple[Shape, ...]:
    """Return the shapes of one character facing right, scaled to a unit height and standing at (0, 1).

    The extent of all shapes runs from y = 0 to y = 1 and is centred on x = 0, so its width is the aspect ratio.
    """
    who = individual(identity)
    main = tint(colour, who)
    accent = who.accent
    if sum(abs(a - b) for a, b in zip(accent, main, strict=True)) < 120:
        accent = ACCENTS[(ACCENTS.index(accent) + 1) % len(ACCENTS)]
    dark = mix(main, (30, 20, 40), 0.24 if colour != "black" else -0.16)
    pen = Pen(who, main, tuple(min(255, max(0, c)) for c in dark), mix(main, WHITE, 0.5), accent, [], main)
    anchors = BUILDERS[species](pen)
    _face(pen, anchors, expression)
    if accessory != "none":
        _accessory(pen, anchors, accessory, ACCESSORY_COLOURS[colour])
    points = np.concatenate([shape.points for shape in pen.shapes])
    points[:, 0] *= who.stretch
    low, high = points.min(0), points.max(0)
    scale = 1 / (high[1] - low[1])
    points = (points - ((low[0] + high[0]) / 2, low[1])) * scale
    cuts = np.cumsum([len(shape.points) for shape in pen.shapes])[:-1]
    return tuple(
        Shape(part, shape.fill, shape.edge) for part, shape in zip(np.split(points, cuts), pen.shapes, strict=True)
    )


def sprite_of(character: SceneCharacter) -> tuple[Shape, ...]:
    """Return :func:`sprite` for a scene's character."""
    c = character
    return sprite(c.species, c.colour, c.accessory, c.expression, c.identity)


def aspect_of(character: SceneCharacter) -> float:
    """Return width / height of the drawn character."""
    return 2 * max(float(shape.points[:, 0].max()) for shape in sprite_of(character))
