"""Boxes: where things are on a page, and how to make room for them.

A box is a plain tuple ``(x0, y0, x1, y1)`` in [0, 1] from the top left. All functions are pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Box = tuple[float, float, float, float]

CANVAS: Box = (0.0, 0.0, 1.0, 1.0)


def width(box: Box) -> float:
    """Return the width of a box."""
    return box[2] - box[0]


def height(box: Box) -> float:
    """Return the height of a box."""
    return box[3] - box[1]


def area(box: Box) -> float:
    """Return the area of a box; 0 for an empty one."""
    return max(0.0, width(box)) * max(0.0, height(box))


def centre(box: Box) -> tuple[float, float]:
    """Return the middle of a box as ``(x, y)``."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def intersection(a: Box, b: Box) -> float:
    """Return the area two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def iou(a: Box, b: Box) -> float:
    """Return intersection over union, 0 for two empty boxes."""
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    return shared / union if union > 0 else 0.0


def overlap_share(box: Box, other: Box) -> float:
    """Return the share of ``box`` that ``other`` covers."""
    own = area(box)
    return min(1.0, intersection(box, other) / own) if own > 0 else 0.0


def is_inside(box: Box, frame: Box = CANVAS) -> bool:
    """Return whether a box has an area and lies inside ``frame``."""
    return frame[0] <= box[0] < box[2] <= frame[2] and frame[1] <= box[1] < box[3] <= frame[3]


def clip(box: Box, frame: Box = CANVAS) -> Box:
    """Return the part of ``box`` inside ``frame``; it may be empty."""
    x0, y0 = min(max(box[0], frame[0]), frame[2]), min(max(box[1], frame[1]), frame[3])
    x1, y1 = min(max(box[2], frame[0]), frame[2]), min(max(box[3], frame[1]), frame[3])
    return x0, y0, max(x0, x1), max(y0, y1)


def round_box(box: Box, digits: int = 4) -> Box:
    """Return the box rounded, and kept inside the canvas."""
    x0, y0, x1, y1 = (round(value, digits) + 0.0 for value in box)
    return clip((x0, y0, x1, y1))


def shift_inside(box: Box, frame: Box = CANVAS) -> Box:
    """Return the box moved the shortest way into ``frame``; scaled down first, aspect kept, if it is too large."""
    room_x, room_y = width(frame), height(frame)
    scale = min(1.0, room_x / width(box), room_y / height(box))
    if scale < 1.0:
        box = scale_about_centre(box, scale)
    dx = max(0.0, frame[0] - box[0]) - max(0.0, box[2] - frame[2])
    dy = max(0.0, frame[1] - box[1]) - max(0.0, box[3] - frame[3])
    return clip((box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy), frame)


def scale_about_centre(box: Box, scale: float) -> Box:
    """Return the box scaled around its centre."""
    (x, y), w, h = centre(box), width(box) * scale / 2, height(box) * scale / 2
    return x - w, y - h, x + w, y + h


def scale_about_foot(box: Box, scale: float) -> Box:
    """Return the box scaled around the middle of its lower edge, then moved inside the canvas."""
    x, w, h = (box[0] + box[2]) / 2, width(box) * scale / 2, height(box) * scale
    return shift_inside((x - w, box[3] - h, x + w, box[3]))


def move_to(box: Box, x: float, y: float) -> Box:
    """Return the box with its centre at ``(x, y)``, moved inside the canvas if needed."""
    w, h = width(box) / 2, height(box) / 2
    return shift_inside((x - w, y - h, x + w, y + h))


def largest_free_rectangle(taken: Iterable[Box], frame: Box = CANVAS) -> Box | None:
    """Return the largest rectangle inside ``frame`` that touches none of ``taken``; None when there is no room.

    Ties go to the lower, then the more central one, so that the answer never depends on the order of ``taken``.
    """
    boxes = [box for box in (clip(box, frame) for box in taken) if area(box) > 0]
    xs = sorted({frame[0], frame[2], *(box[i] for box in boxes for i in (0, 2))})
    ys = sorted({frame[1], frame[3], *(box[i] for box in boxes for i in (1, 3))})
    best: tuple[float, float, float] | None = None
    found: Box | None = None
    for i, x0 in enumerate(xs):
        for x1 in xs[i + 1 :]:
            for j, y0 in enumerate(ys):
                for y1 in ys[j + 1 :]:
                    candidate = (x0, y0, x1, y1)
                    if any(intersection(candidate, box) > 0 for box in boxes):
                        break
                    rank = (round(area(candidate), 9), y1, -abs(x0 + x1 - 1.0))
                    if best is None or rank > best:
                        best, found = rank, candidate
    return found


def fit_inside(size: tuple[float, float], frame: Box) -> Box:
    """Return a box of ``(width, height)``, scaled down if needed, standing in the middle of ``frame``."""
    scale = min(1.0, width(frame) / size[0], height(frame) / size[1])
    w, h = size[0] * scale, size[1] * scale
    x = (frame[0] + frame[2]) / 2
    return clip((x - w / 2, frame[3] - h, x + w / 2, frame[3]))


def place_boxes(
    sizes: Sequence[tuple[float, float]],
    *,
    taken: Iterable[Box] = (),
    preferred: Sequence[tuple[float, float] | None] | None = None,
    steps: int = 24,
) -> tuple[Box, ...]:
    """Return a box for each size, in order, each where it hides least and is nearest to where it is wanted.

    Args:
        sizes: ``(width, height)`` of each box.
        taken: boxes that stay where they are.
        preferred: wanted centre per box, or None for "anywhere low".
        steps: positions tried along each side.
    """
    placed: list[Box] = [box for box in taken if area(box) > 0]
    start = len(placed)
    for index, (w, h) in enumerate(sizes):
        w, h = min(w, 1.0), min(h, 1.0)
        wish = preferred[index] if preferred is not None else None
        x_wish, y_wish = wish if wish is not None else (0.5, 0.92 - h / 2)
        xs = {min(max(x_wish, w / 2), 1 - w / 2), *(w / 2 + (1 - w) * i / steps for i in range(steps + 1))}
        ys = {min(max(y_wish, h / 2), 1 - h / 2), *(h / 2 + (1 - h) * i / steps for i in range(steps + 1))}
        best: tuple[float, float, float] | None = None
        chosen = CANVAS
        for x in sorted(xs):
            for y in sorted(ys):
                box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
                hidden = max((max(overlap_share(box, o), overlap_share(o, box)) for o in placed), default=0.0)
                distance = (x - x_wish) ** 2 + 2 * (y - y_wish) ** 2
                rank = (round(4 * hidden + distance, 9), x, y)
                if best is None or rank < best:
                    best, chosen = rank, box
        placed.append(clip(chosen))
    return tuple(placed[start:])
