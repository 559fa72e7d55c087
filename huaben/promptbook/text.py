"""A prompt book as text people and language models read and write.

Four forms of one object: our own labelled text in English or Chinese (``parse(render(x)) == x``), JSON
(:meth:`PromptBook.to_json`), the labelled text of LLM-grounded diffusion with ids, and a CMIGBench turn.

Source: the last two follow TheaterGen's released benchmark: a 512 x 512 canvas, boxes ``[x, y, w, h]``, integer ids,
and the word "None" for an empty negative prompt. "None" is read as empty and written only there.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any, Literal

from ..errors import PromptBookError, PromptBookParseError
from .book import Character, Page, PromptBook, sorted_attributes
from .layout import Box, area
from .validate import head_noun

Language = Literal["en", "zh"]

CANVAS_PX = 512

_LABELS: dict[str, dict[str, str]] = {
    "en": {
        "book": "Prompt book",
        "next_id": "Next id",
        "description": "Description",
        "page": "Page",
        "background": "Background",
        "style": "Style",
        "negative": "Negative",
        "caption": "Caption",
        "removed": "Removed",
        "attribute": "Attribute",
        "character": "Character",
        "name": "name",
        "prompt": "prompt",
        "category": "category",
        "box": "box",
        "z": "z",
        "status": "status",
        "instance": "instance",
        "has": "has",
    },
    "zh": {
        "book": "提示书",
        "next_id": "下一个编号",
        "description": "固定描述",
        "page": "页",
        "background": "背景",
        "style": "风格",
        "negative": "不要",
        "caption": "原话",
        "removed": "离场",
        "attribute": "页面属性",
        "character": "角色",
        "name": "名字",
        "prompt": "描述",
        "category": "类别",
        "box": "位置",
        "z": "层次",
        "status": "状态",
        "instance": "序号",
        "has": "属性",
    },
}
_STATUS: dict[str, dict[str, str]] = {
    "en": {"new": "new", "kept": "kept", "edited": "edited"},
    "zh": {"new": "新", "kept": "不变", "edited": "改动"},
}
_SEPARATOR = {"en": ": ", "zh": "："}


def render(what: Page | PromptBook, language: Language = "en") -> str:
    """Return a page or a book as labelled text; :func:`parse` reads it back exactly."""
    lines: list[str] = []
    if isinstance(what, Page):
        _render_page(what, language, lines, number=None)
    else:
        _line(lines, language, "book", str(len(what.pages)))
        _line(lines, language, "next_id", str(what.next_id))
        for id, text in what.descriptions:
            _line(lines, language, "description", _pair(id, text))
        for number, page in enumerate(what.pages, 1):
            lines.append("")
            _render_page(page, language, lines, number=number)
    return "\n".join(lines) + "\n"


def _render_page(page: Page, language: Language, lines: list[str], number: int | None) -> None:
    """Append one page."""
    _line(lines, language, "page", "" if number is None else str(number))
    for name in ("background", "style", "negative", "caption"):
        _line(lines, language, name, _quote(getattr(page, name)))
    for id in page.removed:
        _line(lines, language, "removed", _quote(id))
    for key, value in page.attributes:
        _line(lines, language, "attribute", _pair(key, value))
    for character in page.characters:
        _line(lines, language, "character", _quote(character.id))
        for name in ("name", "prompt", "category"):
            _line(lines, language, name, _quote(getattr(character, name)), indent="  ")
        _line(lines, language, "box", ", ".join(repr(value) for value in character.box), indent="  ")
        _line(lines, language, "z", str(character.z), indent="  ")
        _line(lines, language, "status", _STATUS[language][character.status], indent="  ")
        if character.instance is not None:
            _line(lines, language, "instance", str(character.instance), indent="  ")
        for key, value in character.attributes:
            _line(lines, language, "has", _pair(key, value), indent="  ")


def _line(lines: list[str], language: Language, label: str, value: str, indent: str = "") -> None:
    """Append one labelled line."""
    lines.append(f"{indent}{_LABELS[language][label]}{_SEPARATOR[language]}{value}".rstrip(" "))


def _quote(text: str, also: str = "") -> str:
    """Return text as it is when one line can hold it, else as a JSON string."""
    plain = text and text == text.strip() and text.isprintable() and not text.startswith('"')
    return text if plain and not any(letter in text for letter in also) else json.dumps(text)


def _pair(name: str, value: str) -> str:
    """Return ``name = value``; a name that holds either sign that ends it is quoted."""
    return _quote(name, '="') + " = " + _quote(value)


def _unquote(text: str, line: int) -> str:
    """Read what :func:`_quote` wrote."""
    if not text.startswith('"'):
        return text
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise PromptBookParseError(f"broken quotes in {text!r}", hint="close the quotes", line=line) from error
    return str(value)


class _Lines:
    """The lines of a text, with their labels resolved, read one by one."""

    def __init__(self, text: str) -> None:
        language = next(
            (
                language
                for language in ("zh", "en")
                if re.match(rf"\s*({_LABELS[language]['book']}|{_LABELS[language]['page']})\s*[:：]", text)
            ),
            None,
        )
        if language is None:
            raise PromptBookParseError(
                "the text starts neither with a prompt book nor with a page",
                hint="the first line is 'Page:' or 'Prompt book: 1' (页： or 提示书：1)",
                line=1,
            )
        names = {label: name for name, label in _LABELS[language].items()}
        self.statuses = {word: name for name, word in _STATUS[language].items()}
        self.items: list[tuple[int, str, str]] = []
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            match = re.match(r"\s*([^:：]+?)\s*[:：]\s*(.*?)\s*$", line)
            if match is None or match[1] not in names:
                raise PromptBookParseError(
                    f"line {number} has no known label: {line.strip()!r}",
                    hint=f"labels: {', '.join(_LABELS[language].values())}",
                    line=number,
                )
            self.items.append((number, names[match[1]], match[2]))
        self.at = 0

    @property
    def next_label(self) -> str | None:
        return self.items[self.at][1] if self.at < len(self.items) else None

    def take(self, label: str) -> tuple[int, str]:
        """Return line number and value of the next line, which must have ``label``."""
        if self.next_label != label:
            number = self.items[self.at][0] if self.at < len(self.items) else self.items[-1][0] + 1
            raise PromptBookParseError(
                f"line {number}: expected {label}, found {self.next_label or 'the end'}",
                hint="keep the order that render() writes",
                line=number,
            )
        number, _, value = self.items[self.at]
        self.at += 1
        return number, value

    def text(self, label: str) -> str:
        number, value = self.take(label)
        return _unquote(value, number)

    def integer(self, label: str) -> int:
        number, value = self.take(label)
        if not re.fullmatch(r"-?\d+", value):
            raise PromptBookParseError(f"line {number}: {value!r} is not a whole number", line=number)
        return int(value)

    def pair(self, label: str) -> tuple[str, str]:
        number, value = self.take(label)
        match = re.match(r'("(?:\\.|[^"\\])*"|[^="]*?)\s*=\s*(.*)$', value)
        if match is None:
            raise PromptBookParseError(f"line {number}: {value!r} is not 'name = value'", line=number)
        return _unquote(match[1], number), _unquote(match[2], number)

    def pairs(self, label: str) -> tuple[tuple[str, str], ...]:
        found: list[tuple[str, str]] = []
        while self.next_label == label:
            found.append(self.pair(label))
        return tuple(found)


def parse(text: str) -> Page | PromptBook:
    """Read what :func:`render` wrote, in either language.

    Raises:
        PromptBookParseError: naming the line.
    """
    lines = _Lines(text)
    if lines.next_label == "page":
        page = _parse_page(lines)
        if lines.next_label is not None:
            lines.take("end")
        return page
    count = lines.integer("book")
    next_id = lines.integer("next_id")
    descriptions = lines.pairs("description")
    pages = tuple(_parse_page(lines) for _ in range(count))
    if lines.next_label is not None:
        lines.take("end")
    return PromptBook(pages=pages, descriptions=sorted_attributes(descriptions), next_id=next_id)


def parse_page(text: str) -> Page:
    """Read one page.

    Raises:
        PromptBookParseError: also when the text is a whole book.
    """
    page = parse(text)
    if not isinstance(page, Page):
        raise PromptBookParseError("the text is a whole book", hint="use parse()", line=1)
    return page


def _parse_page(lines: _Lines) -> Page:
    """Read one page from the lines."""
    lines.take("page")
    texts = {name: lines.text(name) for name in ("background", "style", "negative", "caption")}
    removed: list[str] = []
    while lines.next_label == "removed":
        removed.append(lines.text("removed"))
    attributes = lines.pairs("attribute")
    characters: list[Character] = []
    while lines.next_label == "character":
        id = lines.text("character")
        words = {name: lines.text(name) for name in ("name", "prompt", "category")}
        box = _parse_box(*lines.take("box"))
        z = lines.integer("z")
        number, status = lines.take("status")
        if status not in lines.statuses:
            raise PromptBookParseError(
                f"line {number}: status {status!r}", hint=f"one of {', '.join(lines.statuses)}", line=number
            )
        instance = lines.integer("instance") if lines.next_label == "instance" else None
        has = sorted_attributes(lines.pairs("has"))
        characters.append(
            Character.from_dict(
                {"id": id, **words, "box": box, "z": z, "status": lines.statuses[status], "instance": instance}
                | {"attributes": has}
            )
        )
    return Page(**texts, removed=tuple(removed), attributes=sorted_attributes(attributes), characters=tuple(characters))


def _parse_box(number: int, value: str) -> Box:
    """Read four numbers."""
    try:
        x0, y0, x1, y1 = (float(part) for part in value.split(","))
    except ValueError as error:
        raise PromptBookParseError(f"line {number}: {value!r} is not four numbers", line=number) from error
    return x0, y0, x1, y1


# ------------------------------------------------------------------------------------------------ other people's forms


def _from_pixels(box: Any, where: str, line: int | None = None) -> Box:
    """Return ``[x, y, w, h]`` in canvas pixels as a box."""
    if (
        not isinstance(box, (list, tuple))
        or len(box) != 4
        or any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in box)
    ):
        raise PromptBookParseError(f"{where}: box {box!r} is not [x, y, w, h]", hint="four numbers", line=line)
    x, y, w, h = (float(value) for value in box)
    return x / CANVAS_PX, y / CANVAS_PX, (x + w) / CANVAS_PX, (y + h) / CANVAS_PX


def _to_pixels(box: Box) -> list[int]:
    """Return a box as ``[x, y, w, h]`` in whole canvas pixels."""
    x0, y0, x1, y1 = (round(value * CANVAS_PX) for value in box)
    return [x0, y0, x1 - x0, y1 - y0]


def _objects_to_characters(entries: list[tuple[str, Box, str]]) -> tuple[Character, ...]:
    """Return characters for ``(prompt, box, id)``; entries that share an id get instance numbers.

    These forms carry no paint order: the larger box is farther back, ties with the lower bottom edge in front.
    """
    ids = [id for _, _, id in entries]
    order = sorted(range(len(entries)), key=lambda i: (-area(entries[i][1]), entries[i][1][3], i))
    characters: list[Character] = []
    for index, (prompt, box, id) in enumerate(entries):
        noun = head_noun(prompt) or prompt
        instance = ids[: index + 1].count(id) if ids.count(id) > 1 else None
        characters.append(
            Character(id=id, name=noun, prompt=prompt, category=noun, box=box, z=order.index(index), instance=instance)
        )
    return tuple(characters)


def read_cmig_turn(turn: dict[str, Any]) -> Page:
    """Read one turn of a CMIGBench dialogue.

    Raises:
        PromptBookParseError: for a missing key or an object that is not ``[prompt, [x, y, w, h], id]``.
    """
    for name, kind in (("caption", str), ("objects", list), ("background", str), ("negative", str)):
        if not isinstance(turn, dict) or not isinstance(turn.get(name), kind):
            raise PromptBookParseError(
                f"a turn has no {name} of type {kind.__name__}", hint="keys: caption, objects, background, negative"
            )
    entries: list[tuple[str, Box, str]] = []
    for number, entry in enumerate(turn["objects"], 1):
        if not isinstance(entry, (list, tuple)) or len(entry) != 3 or not isinstance(entry[0], str):
            raise PromptBookParseError(f"object {number} is not [prompt, box, id]: {entry!r}")
        entries.append((entry[0], _from_pixels(entry[1], f"object {number}"), str(entry[2])))
    return Page(
        caption=turn["caption"],
        background=turn["background"],
        negative="" if turn["negative"] == "None" else turn["negative"],
        characters=_objects_to_characters(entries),
    )


def write_cmig_turn(page: Page) -> dict[str, Any]:
    """Return a page as a CMIGBench turn.

    Raises:
        PromptBookError: for an id that is not a whole number.
    """
    return {
        "caption": page.caption,
        "objects": [[c.prompt, _to_pixels(c.box), _integer_id(c)] for c in page.characters],
        "background": page.background,
        "negative": page.negative or "None",
    }


def _integer_id(character: Character) -> int:
    """Return a character's id as the whole number CMIGBench wants."""
    if not character.id.isdecimal():
        raise PromptBookError(f"id {character.id!r} is not a whole number", hint="CMIGBench numbers ids from 1")
    return int(character.id)


_LMD_LABELS = ("Objects", "Background prompt", "Negative prompt")


def read_labelled(text: str, *, caption: str = "") -> Page:
    """Read the labelled text of LLM-grounded diffusion: a list of ``(prompt, [x, y, w, h], id)`` and two prompts.

    A list that does not parse is accepted only if the text says that there are no objects. Nothing is executed.

    Raises:
        PromptBookParseError: for a missing list, a label given twice, or an entry of another form, with its line.
    """
    found: dict[str, tuple[int, list[str]]] = {}
    label = ""
    for number, line in enumerate(text.split("\n"), 1):
        match = re.match(rf"\s*({'|'.join(_LMD_LABELS)})\s*:\s*(.*)$", line, re.IGNORECASE)
        if match is not None:
            label = match[1].capitalize()
            if label in found:
                raise PromptBookParseError(f"{label!r} is given twice", hint="give each label once", line=number)
            found[label] = (number, [match[2]])
        elif label:
            found[label][1].append(line)
    if "Objects" not in found:
        raise PromptBookParseError("there is no 'Objects:' line", hint="Objects: [('a cat', [x, y, w, h], 1)]", line=1)
    values = {name: " ".join(part.strip() for part in parts).strip() for name, (_, parts) in found.items()}
    negative = values.get("Negative prompt", "")
    return Page(
        caption=caption,
        background=values.get("Background prompt", ""),
        negative="" if negative.casefold() == "none" else negative,
        characters=_objects_to_characters(_read_object_list(values["Objects"], found["Objects"][0])),
    )


def _read_object_list(text: str, line: int) -> list[tuple[str, Box, str]]:
    """Read the list of tuples as a literal."""
    try:
        value = ast.literal_eval(text) if text else []
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        if re.search(r"\b(no objects|none|empty)\b", text, re.IGNORECASE):
            return []
        raise PromptBookParseError(
            f"the object list does not parse: {text[:60]!r}", hint="[('a cat', [x, y, w, h], 1)]", line=line
        ) from error
    if value is None:
        return []
    entries: list[tuple[str, Box, str]] = []
    if not isinstance(value, (list, tuple)):
        raise PromptBookParseError(f"the objects are {type(value).__name__}, not a list", line=line)
    for number, entry in enumerate(value, 1):
        if not isinstance(entry, (list, tuple)) or len(entry) not in (2, 3) or not isinstance(entry[0], str):
            raise PromptBookParseError(f"object {number} is not (prompt, box, id): {entry!r}", line=line)
        id = str(entry[2]) if len(entry) == 3 else str(number)
        entries.append((entry[0], _from_pixels(entry[1], f"object {number}", line), id))
    return entries


def write_labelled(page: Page) -> str:
    """Return a page as the labelled text :func:`read_labelled` reads."""
    objects = [(c.prompt, _to_pixels(c.box), _integer_id(c)) for c in page.characters]
    return f"Objects: {objects!r}\nBackground prompt: {page.background}\nNegative prompt: {page.negative or 'None'}\n"
