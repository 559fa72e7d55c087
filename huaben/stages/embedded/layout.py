"""Where characters stand, and pages as scene graphs of the embedded world and back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import DialogueError
from ...promptbook import Box, Character, Page, PromptBook, overlap_share, sorted_attributes
from ...promptbook.layout import centre, clip, height, round_box, width
from ...world.scene import SIZE_HEIGHTS, SceneCharacter, SceneGraph, place_key, size_key
from ...world.vocabulary import BACKGROUNDS, KEYS, STYLES, Language, Term, term
from .words import describe

ASPECTS: dict[str, float] = {
    "cat": 0.94, "dog": 1.08, "rabbit": 0.7, "bear": 0.85, "fox": 1.0, "mouse": 1.09, "pig": 0.91, "frog": 1.06,
    "lion": 1.04, "elephant": 1.26, "sheep": 1.06, "bird": 1.25, "owl": 0.95, "penguin": 1.03, "duck": 1.26,
    "turtle": 1.75, "fish": 1.5, "whale": 1.54, "tree": 0.9, "house": 1.13, "car": 1.8, "star": 1.11, "flower": 0.77,
    "mushroom": 1.15, "boat": 1.37, "balloon": 0.84,
}  # fmt: skip
"""Width over height of each species' drawing."""

HIGH_SPECIES = frozenset({"bird", "owl", "star", "balloon"})
"""What is up in the air unless the user says otherwise."""

COLUMNS: dict[str, tuple[float, float, float]] = {
    "left": (0.0, 0.2, 0.345),
    "middle": (0.375, 0.5, 0.625),
    "right": (0.655, 0.8, 1.0),
}
"""Smallest, preferred and largest centre of each column, inside the bounds of ``place_key``."""

SIZE_RANGES: dict[str, tuple[float, float]] = {"small": (0.2, 0.32), "medium": (0.335, 0.43), "large": (0.445, 0.62)}
"""Heights that read back as each size."""

_GROUND = 0.92
_BACK_FOOT, _FRONT_FOOT = 0.72, 0.97
"""Where feet stand when there are too many for one row; both are on the ground of every place."""
_ROW = 3
"""How many stand in one row before there are two, each between the heads of the other."""
_ROW_HEIGHT = 0.27
_MAX_HIDDEN = 0.08
"""Share of a box that another one may cover at no cost."""
_UNSAID_HEIGHTS = (0.38, 0.38, 0.35, 0.28)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What is wanted of one box.

    Attributes:
        species: gives the shape.
        size: a size key, or None.
        height: an exact height instead of a size.
        place: a place key, "bottom", or None.
        x: where along the width it should be, when nothing else says so.
        relation: left, right, beside, above, below, behind or front, of ``anchor``.
        anchor: index of another wish, or a box that stays.
    """

    species: str
    size: str | None = None
    height: float | None = None
    place: str | None = None
    x: float | None = None
    relation: str | None = None
    anchor: int | Box | None = None


def layout_characters(wishes: Sequence[Wish], taken: Sequence[Box] = ()) -> tuple[Box, ...]:
    """Return a box for each wish; deterministic, and apart wherever there is room.

    Sizes and places that were asked for read back as asked (``size_key``, ``place_key``); the rest gives way. Boxes
    already ``taken`` stay.
    """
    rows = [_is_high(wish) for wish in wishes]
    full = [centre(box)[1] < 0.42 for box in taken]
    heights = [_height(wish, rows.count(high) + full.count(high)) for wish, high in zip(wishes, rows, strict=True)]
    for is_high in (False, True):
        row = [i for i, wish in enumerate(wishes) if _is_high(wish) == is_high]
        others = [box for box in taken if (centre(box)[1] < 0.42) == is_high]
        _fit_row(row, heights, wishes, 0.97 - sum(width(box) for box in others))
    targets = _targets(wishes, heights, taken)
    feet: dict[int, float] = {}
    ground = [i for i in _row(wishes, False) if wishes[i].relation in (None, "left", "right", "beside")]
    if len(ground) + full.count(False) > _ROW:
        for k, i in enumerate(ground):
            feet[i] = _FRONT_FOOT if k % 2 == 0 else _BACK_FOOT
            targets[i] = (k + 0.5) / len(ground) if not taken and _column(wishes[i]) is None else targets[i]
            if wishes[i].height is None and wishes[i].size is None:
                heights[i] = min(_ROW_HEIGHT, 1.8 / len(ground) / ASPECTS[wishes[i].species])
    placed: dict[int, Box] = {}
    order = sorted(range(len(wishes)), key=lambda i: (_depth(i, wishes), wishes[i].place is None, i))
    for index in order:
        placed[index] = _search(index, wishes, heights, targets, feet, placed, taken)
    return tuple(placed[index] for index in range(len(wishes)))


def _height(wish: Wish, count: int) -> float:
    """Return the height to start from."""
    if wish.height is not None:
        return wish.height
    if wish.size is not None:
        return SIZE_HEIGHTS[wish.size]
    return _UNSAID_HEIGHTS[min(count, len(_UNSAID_HEIGHTS)) - 1]


def _is_high(wish: Wish) -> bool:
    """Return whether a wish is for the upper part of the picture."""
    if wish.place is not None:
        return wish.place.startswith("top")
    return wish.relation is None and wish.species in HIGH_SPECIES


def _fit_row(row: list[int], heights: list[float], wishes: Sequence[Wish], room: float) -> None:
    """Shrink the boxes of one row, in place, until they stand side by side: unsaid sizes first."""
    for free_only in (True, False):
        total = sum(heights[i] * ASPECTS[wishes[i].species] for i in row)
        if total <= room:
            return
        movable = [i for i in row if wishes[i].height is None and (wishes[i].size is None or not free_only)]
        fixed = total - sum(heights[i] * ASPECTS[wishes[i].species] for i in movable)
        share = max(0.0, room - fixed) / (total - fixed) if total > fixed else 1.0
        for i in movable:
            size = wishes[i].size
            floor = SIZE_RANGES[size][0] if size is not None else 0.22
            heights[i] = max(floor, heights[i] * share)


def _targets(wishes: Sequence[Wish], heights: list[float], taken: Sequence[Box]) -> list[float]:
    """Return the centre along the width each wish would like, from an even row in the order asked for."""
    targets = [0.5] * len(wishes)
    for is_high in (False, True):
        row = _row(wishes, is_high)
        widths = [heights[i] * ASPECTS[wishes[i].species] for i in row]
        gap = max(0.0, 1.0 - sum(widths)) / (len(row) + 1)
        at = gap
        for i, w in zip(row, widths, strict=True):
            targets[i] = at + w / 2
            at += w + gap
    for i, wish in enumerate(wishes):
        column = _column(wish)
        if column is not None:
            low, middle, high = COLUMNS[column]
            targets[i] = targets[i] if low <= targets[i] <= high and not taken else middle
        elif wish.x is not None and (taken or len(wishes) == 1):
            targets[i] = wish.x
    return targets


def _row(wishes: Sequence[Wish], is_high: bool) -> list[int]:
    """Return who stands in one row, from left to right: by column, then as asked; neighbours next to each other."""
    everyone = [i for i, wish in enumerate(wishes) if _is_high(wish) == is_high]
    row = [i for i in everyone if not _is_neighbour(wishes[i], everyone)]
    row.sort(key=lambda i: (_column_rank(wishes[i]), i))
    rest = [i for i in everyone if i not in row]
    while rest:
        ready = [i for i in rest if wishes[i].anchor in row] or rest[:1]
        for i in ready:
            at = row.index(int(wishes[i].anchor)) if wishes[i].anchor in row else len(row)  # type: ignore[arg-type]
            row.insert(at if wishes[i].relation == "left" else at + 1, i)
            rest.remove(i)
    return row


def _is_neighbour(wish: Wish, row: list[int]) -> bool:
    """Return whether a wish stands beside another one of the row."""
    return wish.relation in ("left", "right", "beside") and isinstance(wish.anchor, int) and wish.anchor in row


def _column(wish: Wish) -> str | None:
    """Return the column a wish names."""
    if wish.place is None or wish.place == "bottom":
        return None
    return {"top": "middle", "top left": "left", "top right": "right"}.get(wish.place, wish.place)


def _column_rank(wish: Wish) -> float:
    """Return where in a row a wish belongs."""
    column = _column(wish)
    if column is None and wish.x is not None:
        return 2 * wish.x
    return {"left": 0.0, "right": 2.0}.get(column or "", 1.0)


def _depth(index: int, wishes: Sequence[Wish]) -> int:
    """Return how many wishes must be placed before this one."""
    depth, seen = 0, {index}
    while isinstance(wishes[index].anchor, int) and wishes[index].relation is not None:
        index = int(wishes[index].anchor)  # type: ignore[arg-type]
        if index in seen:
            break
        seen.add(index)
        depth += 1
    return depth


def _search(
    index: int,
    wishes: Sequence[Wish],
    heights: list[float],
    targets: list[float],
    feet: dict[int, float],
    placed: dict[int, Box],
    taken: Sequence[Box],
) -> Box:
    """Return the best box for one wish, given those already placed."""
    wish = wishes[index]
    others = [*taken, *placed.values()]
    anchor = placed.get(wish.anchor) if isinstance(wish.anchor, int) else wish.anchor
    relation = wish.relation if anchor is not None else None
    floats = _is_high(wish) or relation in ("above", "below")
    best: tuple[float, ...] | None = None
    chosen: Box = (0.3, 0.5, 0.7, 0.9)
    for shrink, h in enumerate(_height_options(wish, heights[index])):
        w = min(h * ASPECTS[wish.species], 0.96)
        x_wish, y_wish = _wanted_centre(wish, relation, anchor, targets[index], w, h)
        if index in feet:
            y_wish = feet[index] - h / 2
        for x in _grid(x_wish, w / 2 + 0.01, 0.99 - w / 2, 32):
            for y in _grid(y_wish, h / 2 + 0.01, 0.98 - h / 2, 16):
                move = abs(x - x_wish) + (2.0 if floats else 3.0) * abs(y - y_wish)
                if best is not None and move + 0.15 * shrink > best[0]:
                    break
                box = round_box((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
                wrong = not _obeys(box, wish, relation, anchor)
                hidden = 0.0
                for other in others:
                    share = max(overlap_share(box, other), overlap_share(other, box))
                    allowed = 0.6 if relation in ("behind", "front") and other is anchor else _MAX_HIDDEN
                    hidden += max(0.0, share - allowed)
                    if relation not in ("above", "below") and _stands_on(box, other):
                        hidden += 0.05
                rank = (10.0 * wrong + 20.0 * hidden + move + 0.15 * shrink, x, y)
                if best is None or rank < best:
                    best, chosen = rank, box
    return chosen


def _stands_on(a: Box, b: Box) -> bool:
    """Return whether one of two boxes has its feet about where the other has its head, mostly above it."""
    upper, lower = (a, b) if a[3] < b[3] else (b, a)
    across = min(a[2], b[2]) - max(a[0], b[0])
    return abs(upper[3] - lower[1]) < 0.06 and across > 0.6 * min(width(a), width(b))


def _height_options(wish: Wish, start: float) -> list[float]:
    """Return heights to try, largest first, that keep a size that was asked for."""
    if wish.height is not None:
        return [start]
    floor = SIZE_RANGES[wish.size][0] if wish.size is not None else 0.17
    return [start, *(start * scale for scale in (0.88, 0.76, 0.62) if start * scale >= floor)]


def _grid(wish: float, low: float, high: float, steps: int) -> list[float]:
    """Return positions between two bounds, nearest to the wished one first."""
    if low >= high:
        return [(low + high) / 2]
    inside = min(max(wish, low), high)
    values = {round(inside, 4), *(round(low + (high - low) * i / steps, 4) for i in range(steps + 1))}
    return sorted(values, key=lambda value: (abs(value - wish), value))


def _wanted_centre(
    wish: Wish, relation: str | None, anchor: Box | None, target: float, w: float, h: float
) -> tuple[float, float]:
    """Return where the centre of a box would like to be."""
    y = h / 2 + 0.06 if _is_high(wish) else _GROUND - h / 2
    if wish.place is not None and not wish.place.startswith("top"):
        y = _GROUND - h / 2
    if relation is None or anchor is None:
        return target, y
    x0, y0, x1, y1 = anchor
    foot = min(y1, 0.97) - h / 2
    if isinstance(wish.anchor, int) and relation in ("left", "right", "beside"):
        return target, foot
    if relation == "left":
        return x0 - w / 2 - 0.01, foot
    if relation == "right":
        return x1 + w / 2 + 0.01, foot
    if relation == "beside":
        side = 1 if (x0 + x1) / 2 <= 0.5 else -1
        return (x1 + w / 2 + 0.01 if side > 0 else x0 - w / 2 - 0.01), foot
    if relation == "above":
        return (x0 + x1) / 2, y0 - h / 2 - 0.01
    if relation == "below":
        return (x0 + x1) / 2, y1 + h / 2 + 0.01
    if relation == "behind":
        return (x0 + x1) / 2 + 0.4 * w, min(y1, 0.95) - 0.1 - h / 2
    return (x0 + x1) / 2 + 0.4 * w, min(0.97, y1 + 0.05) - h / 2


def _obeys(box: Box, wish: Wish, relation: str | None, anchor: Box | None) -> bool:
    """Return whether a box reads back as what was asked for."""
    (x, y), h = centre(box), height(box)
    if wish.size is not None and wish.height is None and size_key(box) != wish.size:
        return False
    if wish.place == "bottom":
        return y >= 0.43
    if wish.place is not None:
        low, _, high = COLUMNS[_column(wish) or "middle"]
        if place_key(box) != wish.place or not low <= x <= high:
            return False
    elif relation is None and not _is_high(wish) and box[3] < 0.7:
        return False
    if relation is None or anchor is None:
        return True
    ax, ay = centre(anchor)
    if relation == "left":
        return x < ax - 0.08
    if relation == "right":
        return x > ax + 0.08
    if relation == "above":
        return y < ay - 0.08
    if relation == "below":
        return y > ay + 0.04
    return h > 0


# --------------------------------------------------------------------------------------------------- pages and scenes


def find_key(text: str, terms: tuple[Term, ...]) -> str | None:
    """Return the key a text names, in either language; only its part before the first comma counts."""
    word = text.split(",")[0].split("，")[0].strip().casefold()
    for entry in terms:
        if word == entry.key or word in entry.en or word in entry.zh:
            return entry.key
    return None


def page_to_scene(page: Page, identities: dict[str, int] | None = None, *, backdrop: int | None = None) -> SceneGraph:
    """Return a page as the scene graph the world's renderer draws.

    Args:
        page: a page of the embedded world.
        identities: the individual behind each id; by default one that depends on the id alone.
        backdrop: seed of the backdrop; by default one that depends on the background alone.

    Raises:
        DialogueError: for a background, style or species the world does not have.
    """
    background = find_key(page.background, BACKGROUNDS)
    style = find_key(page.style, STYLES) if page.style else "flat"
    if background is None or style is None:
        bad, terms = (page.background, BACKGROUNDS) if background is None else (page.style, STYLES)
        raise DialogueError(f"{bad!r} is not in the world", hint=f"one of {', '.join(entry.key for entry in terms)}")
    characters = []
    for character in page.back_to_front():
        species = character.attribute("species") or character.category
        if species not in KEYS["species"]:
            raise DialogueError(f"{species!r} is not in the world", hint=f"one of {', '.join(KEYS['species'])}")
        identity = (identities or {}).get(character.id)
        box = clip(character.box)
        characters.append(
            SceneCharacter(
                species=species,
                colour=character.attribute("colour") or DEFAULT_COLOURS[species],
                accessory=character.attribute("accessory") or "none",
                expression=character.attribute("expression") or "happy",
                facing=character.attribute("facing") or "right",
                identity=_seed("character", character.id) if identity is None else identity,
                box=box,
            )
        )
    seed = _seed("backdrop", background) if backdrop is None else backdrop
    return SceneGraph(background=background, style=style, characters=tuple(characters), backdrop=seed)


def scene_to_page(scene: SceneGraph, *, book: PromptBook | None = None, language: Language = "en") -> Page:
    """Return a scene, such as one read from an uploaded picture, as a page with fresh ids."""
    ids = (book or PromptBook()).fresh_ids(len(scene.characters))
    characters = []
    for z, (id, person) in enumerate(zip(ids, scene.characters, strict=True)):
        attributes = {
            name: getattr(person, name) for name in ("species", "colour", "accessory", "expression", "facing")
        }
        characters.append(
            Character(
                id=id,
                name=term("species", person.species).name(language),
                prompt=describe(attributes, language),
                category=person.species,
                box=person.box,
                z=z,
                attributes=sorted_attributes(attributes),
            )
        )
    return Page(background=scene.background, style=scene.style, characters=tuple(characters))


def _seed(*names: str) -> int:
    """Return a small seed that depends on the names alone."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(names).encode(), digest_size=4).digest(), "little") >> 1


DEFAULT_COLOURS: dict[str, str] = {
    "cat": "orange", "dog": "brown", "rabbit": "white", "bear": "brown", "fox": "orange", "mouse": "gray",
    "pig": "pink", "frog": "green", "lion": "yellow", "elephant": "gray", "sheep": "white", "bird": "blue",
    "owl": "brown", "penguin": "black", "duck": "yellow", "turtle": "green", "fish": "orange", "whale": "blue",
    "tree": "green", "house": "red", "car": "red", "star": "yellow", "flower": "pink", "mushroom": "red",
    "boat": "brown", "balloon": "red",
}  # fmt: skip
"""The colour of what nobody gave one."""
