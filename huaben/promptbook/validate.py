"""Repair of pages that a model or a person wrote: nothing impossible gets through, nothing valid is touched.

:func:`read_page` takes untrusted values (a model's JSON) and keeps every entry that makes sense;
:func:`repair_page` then puts the geometry and the words in order. Both say what they did as records, in both
languages. Repair is idempotent.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from ..config import Config
from ..errors import PromptBookError, PromptBookParseError
from .book import PLAIN_BACKGROUND, Character, Page, PromptBook, sorted_attributes
from .layout import (
    CANVAS,
    Box,
    area,
    centre,
    clip,
    fit_inside,
    height,
    intersection,
    is_inside,
    largest_free_rectangle,
    overlap_share,
    round_box,
    scale_about_centre,
    shift_inside,
    width,
)

MAX_CHARACTERS = 6
"""What the embedded models draw well; large models take 6."""

MIN_SIDE = 0.125
"""Two cells of a 16 x 16 grid."""

MAX_HIDDEN = 0.7
COVERS_CANVAS = 0.95
UNIT_SLACK = 2.0

_MESSAGES: dict[str, tuple[str, str]] = {
    "entry_rejected": ("Left out an entry that cannot be read: {detail}.", "略去了一个无法读取的条目：{detail}。"),
    "field_ignored": ("Ignored {detail}.", "忽略了{detail}。"),
    "units": ("Boxes were in units of 0 to {detail}; rescaled.", "框的单位是 0 到 {detail}，已换算。"),
    "corners_swapped": ("The corners of {name}'s box were swapped.", "{name}的框角颠倒了，已换回。"),
    "box_shifted": ("{name} was partly outside the picture; moved inside.", "{name}有一部分在画面外，已移进来。"),
    "box_scaled": ("{name} was larger than the picture; made to fit.", "{name}比画面还大，已缩小。"),
    "box_placed": ("{name} had no usable place; put where there is room.", "{name}没有可用的位置，已放到空处。"),
    "box_covers": ("{name} fills the whole picture.", "{name}占满了整个画面。"),
    "box_enlarged": ("{name} was too small to draw; enlarged.", "{name}太小，已放大。"),
    "overlap": ("{name} was almost hidden; moved apart.", "{name}几乎被挡住，已挪开。"),
    "overlap_kept": ("{name} stays almost hidden; there is no room.", "{name}仍几乎被挡住，没有空位。"),
    "id_reused": ("{name} came with the id of something else; it has a new one.", "{name}用了别人的编号，已换新编号。"),
    "id_duplicate": ("{name} is there more than once; numbered.", "{name}出现了不止一次，已编号。"),
    "too_many": (
        "{name} does not fit (at most {detail}); it is mentioned in the background only.",
        "{name}放不下（最多{detail}个），只写进了背景。",
    ),
    "empty_background": ("There was no background; using {detail}.", "没有背景，使用{detail}。"),
    "empty_caption": ("The page has no caption.", "这一页没有说明文字。"),
    "negative_dropped": ("{name} is in the picture, so it is no longer excluded.", "{name}在画面里，不再排除。"),
    "negative_removed": ("{name} was taken out, as asked.", "按要求去掉了{name}。"),
    "negative_none": ("A negative prompt of 'None' means nothing.", "“None”表示没有要排除的东西。"),
    "entry_empty": ("An entry had neither a name nor a prompt.", "有一个条目既没有名字也没有描述。"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PageWarning(Config):
    """One thing that was repaired or left out.

    Attributes:
        code: stable identifier.
        en: the message in English.
        zh: the message in Chinese.
        character: id of the character it is about, or None.
    """

    code: str
    en: str
    zh: str
    character: str | None = None

    def message(self, language: str) -> str:
        """Return the message in ``"en"`` or ``"zh"``."""
        return self.zh if language == "zh" else self.en


def warning(code: str, *, name: str = "", detail: str = "", character: str | None = None) -> PageWarning:
    """Return the warning of one code."""
    en, zh = (text.format(name=name, detail=detail) for text in _MESSAGES[code])
    return PageWarning(code=code, en=en[:1].upper() + en[1:], zh=zh, character=character)


Warnings = tuple[PageWarning, ...]


def repair_page(
    page: Page,
    *,
    book: PromptBook | None = None,
    max_characters: int = MAX_CHARACTERS,
    min_side: float = MIN_SIDE,
) -> tuple[Page, Warnings]:
    """Return a page that can be drawn, and what had to be done to it.

    Args:
        page: the page as written.
        book: the pages before it; gives the background to fall back on, and the ids in use.
        max_characters: the most that are drawn; the rest is mentioned in the background.
        min_side: smallest side of a box.
    """
    said: list[PageWarning] = []
    page = _repair_words(page, book, said)
    characters = _fresh_ids(page.characters, book, said)
    characters = _rescale_units(characters, said)
    characters, omitted = _limit(characters, max_characters, said)
    if omitted:
        names = ", ".join(character.prompt or character.name for character in omitted)
        page = page.replace(background=f"{page.background}, with {names}")
    characters = _repair_boxes(characters, min_side, said)
    characters = _separate(characters, min_side, said)
    return page.replace(characters=characters), tuple(said)


def read_page(
    values: Any,
    *,
    book: PromptBook | None = None,
    max_characters: int = MAX_CHARACTERS,
    min_side: float = MIN_SIDE,
) -> tuple[Page, Warnings]:
    """Read a page from untrusted values, keeping the entries that make sense, and repair it.

    Args:
        values: a mapping with ``background``, ``style``, ``negative``, ``caption`` and ``characters``.
        book: the pages before it; gives the background to fall back on, and the ids in use.
        max_characters: the most that are drawn; the rest is mentioned in the background.
        min_side: smallest side of a box.

    Raises:
        PromptBookParseError: when ``values`` is not a mapping, or its characters are not a list.
    """
    if not isinstance(values, dict):
        raise PromptBookParseError(f"a page is an object, found {type(values).__name__}", hint="see docs: page JSON")
    said: list[PageWarning] = []
    texts: dict[str, str] = {}
    for name in ("background", "style", "negative", "caption"):
        value = values.get(name, "")
        if value is not None and not isinstance(value, str):
            said.append(warning("field_ignored", detail=f"{name}={value!r}"))
            value = ""
        texts[name] = (value or "").strip()
    entries = values.get("characters", [])
    if not isinstance(entries, list):
        raise PromptBookParseError(
            f"characters is {type(entries).__name__}, expected a list", hint="[] for a plain background"
        )
    used = {entry["id"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)}
    counter = _Counter(used, book)
    characters = [character for entry in entries if (character := _read_entry(entry, counter, said)) is not None]
    page = Page(
        background=texts["background"],
        style=texts["style"],
        negative=texts["negative"],
        caption=texts["caption"],
        characters=tuple(_number_instances(characters, said)),
    )
    page, more = repair_page(page, book=book, max_characters=max_characters, min_side=min_side)
    return page, (*said, *more)


def extract_json(text: str) -> Any:
    """Return the outermost JSON object in a model's answer; code fences, talk and trailing commas are tolerated.

    Raises:
        PromptBookParseError: when there is none.
    """
    start = text.find("{")
    while start >= 0:
        end = _matching_brace(text, start)
        if end is None:
            break
        body = _drop_trailing_commas(text[start : end + 1])
        try:
            return json.loads(body, parse_constant=lambda name: math.nan)
        except json.JSONDecodeError as error:
            line = text[:start].count("\n") + error.lineno
            raise PromptBookParseError(
                f"not JSON: {error.msg}", hint="answer with one JSON object", line=line
            ) from error
    raise PromptBookParseError("no JSON object in the answer", hint="answer with one JSON object", line=1)


def _matching_brace(text: str, start: int) -> int | None:
    """Return where the brace at ``start`` closes, strings respected."""
    depth, quoted, escaped = 0, False, False
    for index in range(start, len(text)):
        letter = text[index]
        if quoted:
            quoted, escaped = (letter != '"' or escaped), letter == "\\" and not escaped
        elif letter == '"':
            quoted = True
        elif letter in "{[":
            depth += 1
        elif letter in "}]":
            depth -= 1
            if depth == 0:
                return index
    return None


def _drop_trailing_commas(text: str) -> str:
    """Return JSON text without commas before a closing bracket, strings respected."""
    parts = re.split(r'("(?:\\.|[^"\\])*")', text)
    return "".join(part if index % 2 else re.sub(r",(\s*[}\]])", r"\1", part) for index, part in enumerate(parts))


class _Counter:
    """Hands out ids nobody has used."""

    def __init__(self, used: set[str], book: PromptBook | None) -> None:
        self.used = set(used) | set(book.categories if book is not None else ())
        self.number = book.next_id if book is not None else 1

    def fresh(self) -> str:
        while str(self.number) in self.used:
            self.number += 1
        self.used.add(str(self.number))
        return str(self.number)


def _read_entry(entry: Any, counter: _Counter, said: list[PageWarning]) -> Character | None:
    """Return one character, or None after saying why not."""
    if not isinstance(entry, dict):
        return _reject(f"{short_repr(entry)} is not an object", said)
    for name in ("name", "prompt", "category"):
        if not isinstance(entry.get(name) or "", str):
            return _reject(f"{name}={short_repr(entry[name])} is not text", said)
    id = entry.get("id")
    if isinstance(id, int) and not isinstance(id, bool):
        id = str(id)
    if id is not None and not isinstance(id, str):
        return _reject(f"id={short_repr(id)} is not text", said)
    box = entry.get("box", entry.get("bbox"))
    if box is None:
        return _reject("it has no box", said)
    if not isinstance(box, (list, tuple)) or len(box) != 4:
        return _reject(f"box={short_repr(box)} is not four numbers", said)
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value) for value in box):
        return _reject(f"box={short_repr(box)} is not four finite numbers", said)
    prompt = (entry.get("prompt") or entry.get("name") or "").strip()
    if not prompt:
        said.append(warning("entry_empty"))
        return None
    category = (entry.get("category") or "").strip() or head_noun(prompt)
    z = entry.get("z")
    if z is not None and (isinstance(z, bool) or not isinstance(z, int)):
        said.append(warning("field_ignored", detail=f"z={short_repr(z)}"))
        z = None
    instance = entry.get("instance")
    if instance is not None and (isinstance(instance, bool) or not isinstance(instance, int) or instance < 1):
        said.append(warning("field_ignored", detail=f"instance={short_repr(instance)}"))
        instance = None
    attributes = entry.get("attributes") or {}
    if isinstance(attributes, list) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in attributes):
        attributes = {str(key): value for key, value in attributes}
    if not isinstance(attributes, dict) or not all(isinstance(value, str) for value in attributes.values()):
        said.append(warning("field_ignored", detail=f"attributes={short_repr(attributes)}"))
        attributes = {}
    x0, y0, x1, y1 = (float(value) for value in box)
    return Character(
        id=id or counter.fresh(),
        name=(entry.get("name") or "").strip() or category,
        prompt=prompt,
        category=category,
        box=(x0, y0, x1, y1),
        z=z if z is not None else 0,
        instance=instance,
        attributes=sorted_attributes({str(key): value for key, value in attributes.items()}),
    )


def _reject(reason: str, said: list[PageWarning]) -> Character | None:
    """Say why an entry is left out."""
    said.append(warning("entry_rejected", detail=reason))
    return None


def _finite(value: float) -> bool:
    """Return whether a number, however large, is finite as a float."""
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def short_repr(value: Any) -> str:
    """Return a value's text, cut."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _number_instances(characters: list[Character], said: list[PageWarning]) -> list[Character]:
    """Give entries that share a key their own instance numbers."""
    seen: set[tuple[str, int]] = set()
    result: list[Character] = []
    for character in characters:
        repeated = character.key in seen
        while character.key in seen:
            character = character.replace(instance=(character.instance or 1) + 1)
        if repeated:
            said.append(warning("id_duplicate", name=character.name, character=character.id))
        seen.add(character.key)
        result.append(character)
    return result


_PREPOSITIONS = frozenset("with in on at of by from near under over behind beside wearing holding and".split())
_REMOVAL = re.compile(
    r"\b(without|remove|removed|delete|erase|take away|get rid|no|not|don't|hide)\b"
    r"|去掉|去除|删|移除|不要|没有|拿走|别画|不画|去了|取消",
    re.IGNORECASE,
)


def head_noun(prompt: str) -> str:
    """Return the word a noun phrase is about: the last one before a preposition; in Chinese, what follows the 的."""
    text = re.split(r"[,;，；、。.]", prompt.strip())[0].strip()
    if re.search(r"[一-鿿]", text):
        return text.rsplit("的", 1)[-1].strip() or text
    words = text.split()
    for index, word in enumerate(words):
        if index and word.casefold() in _PREPOSITIONS:
            words = words[:index]
            break
    return words[-1] if words else ""


def _repair_words(page: Page, book: PromptBook | None, said: list[PageWarning]) -> Page:
    """Put background, caption and negative in order."""
    if not page.background.strip():
        previous = book.current if book is not None else None
        background = previous.background if previous is not None and previous.background.strip() else PLAIN_BACKGROUND
        said.append(warning("empty_background", detail=background))
        page = page.replace(background=background)
    if not page.caption.strip():
        said.append(warning("empty_caption"))
    if page.negative.strip().casefold() in ("none", "无", "没有", "n/a"):
        said.append(warning("negative_none"))
        page = page.replace(negative="")
    if not page.negative:
        return page
    kept_terms: list[str] = []
    characters = page.characters
    for term in (part.strip() for part in re.split(r"[,;，；、]", page.negative)):
        named = [character for character in characters if term and _names(term, character)]
        if not named:
            kept_terms.append(term)
        elif _REMOVAL.search(page.caption) and any(_mentions(page.caption, character) for character in named):
            characters = tuple(character for character in characters if character not in named)
            kept_terms.append(term)
            said.extend(warning("negative_removed", name=c.name, character=c.id) for c in named)
        else:
            said.extend(warning("negative_dropped", name=c.name, character=c.id) for c in named)
    if len(kept_terms) != len(re.split(r"[,;，；、]", page.negative)):
        page = page.replace(negative=", ".join(term for term in kept_terms if term))
    return page.replace(characters=characters)


def _names(term: str, character: Character) -> bool:
    """Return whether a negative term names a character."""
    term = re.sub(r"^(?:an?|the|any|no)\s+", "", term.casefold())
    words = {text.casefold() for text in (character.name, character.category, character.prompt) if text}
    return term in words or head_noun(term) in words or (term.endswith("s") and term[:-1] in words)


def _mentions(caption: str, character: Character) -> bool:
    """Return whether a caption mentions a character by name or category."""
    text = caption.casefold()
    return any(word and word.casefold() in text for word in (character.name, character.category))


def _fresh_ids(
    characters: tuple[Character, ...], book: PromptBook | None, said: list[PageWarning]
) -> tuple[Character, ...]:
    """Give a new id to whoever came with the id of another category."""
    known = book.categories if book is not None else {}
    counter = _Counter({character.id for character in characters}, book)
    result: list[Character] = []
    own: dict[str, str] = {}
    for character in characters:
        if known.get(character.id, own.get(character.id, character.category)) != character.category:
            character = character.replace(id=counter.fresh(), instance=None)
            said.append(warning("id_reused", name=character.name, character=character.id))
        own.setdefault(character.id, character.category)
        result.append(character)
    return tuple(result)


def _rescale_units(characters: tuple[Character, ...], said: list[PageWarning]) -> tuple[Character, ...]:
    """Bring boxes written in per cent, thousandths or pixels to [0, 1], all by the same factor."""
    largest = max((abs(value) for character in characters for value in character.box), default=0.0)
    if largest <= UNIT_SLACK:
        return characters
    unit = next((unit for unit in (100.0, 1000.0, 1024.0) if largest <= unit), largest)
    said.append(warning("units", detail=f"{unit:g}"))
    return tuple(character.replace(box=tuple(value / unit for value in character.box)) for character in characters)


def _limit(
    characters: tuple[Character, ...], most: int, said: list[PageWarning]
) -> tuple[tuple[Character, ...], tuple[Character, ...]]:
    """Split characters into those that are drawn, nearest and largest first, and the rest."""
    if len(characters) <= most:
        return characters, ()
    ranked = sorted(range(len(characters)), key=lambda i: (-characters[i].z, -area(clip(characters[i].box)), i))
    keep = set(ranked[:most])
    omitted = tuple(character for index, character in enumerate(characters) if index not in keep)
    said.extend(warning("too_many", name=c.name, detail=str(most), character=c.id) for c in omitted)
    return tuple(character for index, character in enumerate(characters) if index in keep), omitted


def _repair_boxes(characters: tuple[Character, ...], min_side: float, said: list[PageWarning]) -> tuple[Character, ...]:
    """Bring every box inside the canvas, with an area, no smaller than ``min_side``."""
    result: list[Character] = []
    homeless: list[int] = []
    for index, character in enumerate(characters):
        box, code = _repair_box(character.box, min_side)
        if code == "box_placed":
            homeless.append(index)
        elif code:
            said.append(warning(code, name=character.name, character=character.id))
        result.append(character.replace(box=box) if box != character.box else character)
    covering = [index for index, character in enumerate(result) if area(character.box) >= COVERS_CANVAS]
    for order, index in enumerate(covering):
        if order:
            homeless.append(index)
            continue
        said.append(warning("box_covers", name=result[index].name, character=result[index].id))
        lowest = min((c.z for i, c in enumerate(result) if i != index), default=None)
        if lowest is not None and result[index].z >= lowest:
            result[index] = result[index].replace(z=lowest - 1)
    for index in homeless:
        settled = [c.box for i, c in enumerate(result) if i not in homeless and area(c.box) < COVERS_CANVAS]
        settled += [result[i].box for i in homeless[: homeless.index(index)]]
        result[index] = result[index].replace(box=_free_place(settled, min_side))
        said.append(warning("box_placed", name=result[index].name, character=result[index].id))
    return tuple(result)


def _repair_box(box: Box, min_side: float) -> tuple[Box, str]:
    """Return one box repaired, and the code of what was done ("" for a valid one)."""
    if is_inside(box) and width(box) >= min_side and height(box) >= min_side:
        return box, ""
    code = ""
    if box[0] > box[2] or box[1] > box[3]:
        box = (min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3]))
        code = "corners_swapped"
    if width(box) <= 0 or height(box) <= 0 or intersection(box, CANVAS) <= 0:
        return box, "box_placed"
    if width(box) < min_side or height(box) < min_side:
        x, y = centre(box)
        w, h = max(width(box), min_side) / 2, max(height(box), min_side) / 2
        box, code = (x - w, y - h, x + w, y + h), "box_enlarged"
    if not is_inside(box):
        code = "box_scaled" if width(box) > 1 or height(box) > 1 else code or "box_shifted"
        box = shift_inside(box)
    return _at_least(round_box(box), min_side), code


def _at_least(box: Box, side: float) -> Box:
    """Return a box inside the canvas with no side shorter than ``side``, in spite of rounding and scaling."""
    x0, y0, x1, y1 = box
    if x1 - x0 < side:
        x0 = min(max(0.0, (x0 + x1 - side) / 2), 1.0 - side)
        x1 = min(1.0, x0 + side * 1.001)
        x0 = min(x0, x1 - side)
    if y1 - y0 < side:
        y0 = min(max(0.0, (y0 + y1 - side) / 2), 1.0 - side)
        y1 = min(1.0, y0 + side * 1.001)
        y0 = min(y0, y1 - side)
    return max(0.0, x0), max(0.0, y0), x1, y1


def _free_place(taken: list[Box], min_side: float) -> Box:
    """Return a box of ordinary size in the largest free rectangle, or low in the middle when nothing is free."""
    free = largest_free_rectangle(taken)
    if free is None or width(free) < min_side or height(free) < min_side:
        return (0.3, 0.5, 0.7, 0.9)
    return _at_least(round_box(fit_inside((0.4, 0.4), free)), min_side)


def _separate(characters: tuple[Character, ...], min_side: float, said: list[PageWarning]) -> tuple[Character, ...]:
    """Move whoever is almost hidden by one nearer character; front ones stay, back ones give way."""
    order = sorted(range(len(characters)), key=lambda index: (-characters[index].z, index))
    result = list(characters)
    for rank, index in enumerate(order):
        fronts = [result[i].box for i in order[:rank]]
        box = result[index].box
        if area(box) >= COVERS_CANVAS or not _hidden(box, fronts):
            continue
        moved = _nearest_visible(box, fronts, min_side)
        code = "overlap" if moved is not None else "overlap_kept"
        if moved is not None:
            result[index] = result[index].replace(box=moved)
        said.append(warning(code, name=result[index].name, character=result[index].id))
    return tuple(result)


def _hidden(box: Box, fronts: list[Box]) -> bool:
    """Return whether one of the nearer boxes hides too much of ``box``."""
    return any(overlap_share(box, front) > MAX_HIDDEN for front in fronts)


def _nearest_visible(box: Box, fronts: list[Box], min_side: float, steps: int = 20) -> Box | None:
    """Return the nearest place, the box shrunk as little as possible, where no nearer box hides it."""
    x, y = centre(box)
    for scale in (1.0, 0.85, 0.7, 0.55, 0.4):
        small = scale_about_centre(box, scale)
        w, h = width(small) / 2, height(small) / 2
        if min(2 * w, 2 * h) < min_side:
            break
        best: tuple[float, float, float] | None = None
        found: Box | None = None
        for i in range(steps + 1):
            for j in range(steps + 1):
                cx, cy = w + (1 - 2 * w) * i / steps, h + (1 - 2 * h) * j / steps
                candidate = _at_least(round_box((cx - w, cy - h, cx + w, cy + h)), min_side)
                if any(overlap_share(candidate, front) > MAX_HIDDEN - 0.2 for front in fronts):
                    continue
                move = (round((cx - x) ** 2 + (cy - y) ** 2, 9), cx, cy)
                if best is None or move < best:
                    best, found = move, candidate
        if found is not None:
            return found
    return None


def check_page(page: Page, *, book: PromptBook | None = None, max_characters: int = MAX_CHARACTERS) -> Page:
    """Return the page unchanged if repair would not touch it.

    Raises:
        PromptBookError: naming the first thing repair would do.
    """
    repaired, said = repair_page(page, book=book, max_characters=max_characters)
    if repaired != page:
        raise PromptBookError(said[0].en if said else "the page needs repair", hint="pass it through repair_page()")
    return page
