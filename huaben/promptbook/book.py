"""The prompt book: who is on each page, where, and how every character has been described.

Frozen records of JSON values. A book is generic: it knows ids, names, prompts, boxes and free attributes; what an
attribute may be is the business of whoever writes the page.

Source: TheaterGen (arXiv:2404.18919), section 3, equation (1): background prompt, negative prompt, and an
``(id, prompt, box)`` triple per character.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from ..config import Config
from ..errors import ConfigError, PromptBookError, PromptBookParseError
from .layout import Box

Status = Literal["new", "kept", "edited"]
Attributes = tuple[tuple[str, str], ...]

PLAIN_BACKGROUND = "plain background"


def sorted_attributes(values: dict[str, str] | Attributes) -> Attributes:
    """Return attributes as the sorted pairs a record holds."""
    return tuple(sorted(dict(values).items()))


@dataclass(frozen=True, kw_only=True, slots=True)
class Character(Config):
    """One character or prop of one page.

    Attributes:
        id: stays the same from page to page, and is never given to anyone else.
        name: what to call it in a reply ("cat").
        prompt: a short noun phrase for the painter; may change every turn.
        category: one head noun, for detection; never changes for an id.
        box: where it is, ``(x0, y0, x1, y1)``.
        z: paint order; larger is nearer.
        status: against the previous page.
        attributes: sorted pairs; the truth that ``prompt`` words.
        instance: 1..n when several entries share one id.
    """

    id: str
    name: str
    prompt: str
    category: str
    box: Box
    z: int = 0
    status: Status = "new"
    attributes: Attributes = ()
    instance: int | None = None

    def __post_init__(self) -> None:
        if not self.id:
            raise PromptBookError("a character has an empty id", hint="ids are short strings such as '1'")
        if len(self.box) != 4 or not all(math.isfinite(value) for value in self.box):
            raise PromptBookError(f"character {self.id} has box {self.box}", hint="four finite numbers x0, y0, x1, y1")
        if self.attributes != sorted_attributes(self.attributes):
            raise PromptBookError(
                f"attributes of character {self.id} are not sorted and unique", hint="use sorted_attributes()"
            )

    @property
    def key(self) -> tuple[str, int]:
        """What is unique on a page: the id and the instance (0 when there is only one)."""
        return self.id, self.instance or 0

    def attribute(self, name: str, default: str = "") -> str:
        """Return one attribute."""
        return dict(self.attributes).get(name, default)

    def with_attributes(self, **values: str) -> Self:
        """Return a copy with some attributes set."""
        return self.replace(attributes=sorted_attributes({**dict(self.attributes), **values}))

    def to_public(self) -> dict[str, Any]:
        """Return the four public fields."""
        return {"id": self.id, "name": self.name, "prompt": self.prompt, "box": list(self.box)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Page(Config):
    """The state of the picture after a turn.

    Attributes:
        background: background prompt.
        style: style prompt.
        negative: what must not be there; empty, never "None".
        caption: the user's words, for evaluation.
        characters: in any order; ``z`` decides who is in front.
        removed: ids on the previous page and not on this one.
        attributes: further facts about the page as a whole, sorted pairs.
    """

    background: str = ""
    style: str = ""
    negative: str = ""
    caption: str = ""
    characters: tuple[Character, ...] = field(default=())
    removed: tuple[str, ...] = ()
    attributes: Attributes = ()

    def __post_init__(self) -> None:
        seen: set[tuple[str, int]] = set()
        for character in self.characters:
            if character.key in seen:
                raise PromptBookError(
                    f"id {character.id!r} is on the page twice", hint="give each its own id, or an instance number"
                )
            seen.add(character.key)
        if self.attributes != sorted_attributes(self.attributes):
            raise PromptBookError("page attributes are not sorted and unique", hint="use sorted_attributes()")

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids on the page, each once, in order."""
        return tuple(dict.fromkeys(character.id for character in self.characters))

    def find(self, id: str, instance: int | None = None) -> Character:
        """Return one entry.

        Raises:
            PromptBookError: for an unknown id, listing the known ones, or an id with several instances.
        """
        found = [c for c in self.characters if c.id == id and (instance is None or c.instance == instance)]
        if not found:
            known = ", ".join(f"{c.id} ({c.name})" for c in self.characters) or "none"
            raise PromptBookError(f"there is no character {id!r} on this page", hint=f"known ids: {known}")
        if len(found) > 1:
            raise PromptBookError(f"character {id!r} is there {len(found)} times", hint="name the instance too")
        return found[0]

    def back_to_front(self) -> tuple[Character, ...]:
        """Return the characters in paint order."""
        return tuple(sorted(self.characters, key=lambda character: character.z))

    def to_public(self) -> dict[str, Any]:
        """Return the page as ``huaben chat`` writes it."""
        return {
            "background": self.background,
            "style": self.style,
            "negative": self.negative,
            "characters": [character.to_public() for character in self.characters],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference(Config):
    """What changed from one page to the next: a status per character of the new page, and the ids that left."""

    statuses: tuple[tuple[str, int, Status], ...] = ()
    removed: tuple[str, ...] = ()


def diff(old: Page | None, new: Page, *, categories: dict[str, str] | None = None) -> Difference:
    """Compare two pages.

    Args:
        old: the previous page, or None at the first turn.
        new: the page after it.
        categories: the category of every id ever used; the previous page's by default.

    Raises:
        PromptBookError: when an id comes back as something of another category.
    """
    before = {character.key: character for character in old.characters} if old is not None else {}
    known = {character.id: character.category for character in before.values()} | (categories or {})
    statuses: list[tuple[str, int, Status]] = []
    for character in new.characters:
        if known.get(character.id, character.category) != character.category:
            raise PromptBookError(
                f"id {character.id!r} is a {known[character.id]}, and was reused for a {character.category}",
                hint="give the new character a fresh id",
            )
        was = before.get(character.key)
        status: Status = "new"
        if was is not None:
            status = "kept" if _content(was) == _content(character) else "edited"
        elif character.id in known:
            status = "kept"
        statuses.append((*character.key, status))
    present = set(new.ids)
    removed = tuple(id for id in (old.ids if old is not None else ()) if id not in present)
    return Difference(statuses=tuple(statuses), removed=removed)


def mark(old: Page | None, new: Page, *, categories: dict[str, str] | None = None) -> Page:
    """Return ``new`` with every status, and the list of removed ids, set against ``old``."""
    difference = diff(old, new, categories=categories)
    characters = tuple(
        character.replace(status=status)
        for character, (_, _, status) in zip(new.characters, difference.statuses, strict=True)
    )
    return new.replace(characters=characters, removed=difference.removed)


def _content(character: Character) -> Character:
    """Return what an edit can change, without the status."""
    return character.replace(status="kept")


def merge_description(prompt: str, canonical: str) -> str:
    """Return ``prompt`` with the canonical description added, unless it already says so."""
    if not canonical or canonical.casefold() in prompt.casefold():
        return prompt
    if prompt and prompt.casefold() in canonical.casefold():
        return canonical
    return f"{prompt}, {canonical}" if prompt else canonical


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptBook(Config):
    """All pages of a conversation, and what stays true between them.

    Attributes:
        pages: oldest first.
        descriptions: the canonical description per id, sorted pairs; set when an id appears, renewed when its
            attributes are edited.
        next_id: the number the next fresh id gets; never reused.
    """

    pages: tuple[Page, ...] = field(default=())
    descriptions: Attributes = ()
    next_id: int = 1

    def __post_init__(self) -> None:
        if self.next_id < 1:
            raise PromptBookError(f"next_id={self.next_id}", hint="ids count from 1")
        if self.descriptions != sorted_attributes(self.descriptions):
            raise PromptBookError("descriptions are not sorted and unique", hint="use sorted_attributes()")

    @property
    def current(self) -> Page | None:
        """The newest page, or None before the first."""
        return self.pages[-1] if self.pages else None

    @property
    def categories(self) -> dict[str, str]:
        """The category of every id ever used."""
        return {character.id: character.category for page in self.pages for character in page.characters}

    def description(self, id: str) -> str:
        """Return the canonical description of an id, or an empty string."""
        return dict(self.descriptions).get(id, "")

    def fresh_ids(self, count: int) -> tuple[str, ...]:
        """Return the next ids; :meth:`add` moves the counter past those that a page uses."""
        return tuple(str(self.next_id + index) for index in range(count))

    def add(self, page: Page) -> Self:
        """Return the book with one more page, its statuses set against the page before.

        Raises:
            PromptBookError: when an id comes back as something of another category.
        """
        marked = mark(self.current, page, categories=self.categories)
        descriptions = dict(self.descriptions)
        before = {character.id: character for character in self.current.characters} if self.current else {}
        for character in marked.characters:
            was = before.get(character.id)
            if character.id not in descriptions or (was is not None and was.attributes != character.attributes):
                descriptions[character.id] = character.prompt
        numbers = [int(character.id) for character in marked.characters if character.id.isdecimal()]
        return self.replace(
            pages=(*self.pages, marked),
            descriptions=sorted_attributes(descriptions),
            next_id=max([self.next_id, *(number + 1 for number in numbers)]),
        )

    def described(self, character: Character) -> Character:
        """Return a character whose prompt also says what its canonical description says."""
        return character.replace(prompt=merge_description(character.prompt, self.description(character.id)))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a book written by ``to_json``.

        Raises:
            PromptBookParseError: for text that is not one, naming the line where it stops being JSON.
        """
        return cls.from_dict(load_json(text))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build the book from plain values, strictly.

        Raises:
            PromptBookParseError: for an unknown, missing or mistyped field.
        """
        try:
            return super(PromptBook, cls).from_dict(values)
        except ConfigError as error:
            raise PromptBookParseError(error.message, hint=error.hint) from error


def load_json(text: str) -> Any:
    """Parse JSON text; NaN and Infinity are refused.

    Raises:
        PromptBookParseError: with the line of the first error.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise PromptBookParseError(f"not JSON: {error.msg}", hint="see the line", line=error.lineno) from error


def _refuse_constant(name: str) -> float:
    raise PromptBookParseError(f"the number {name} is not allowed", hint="use finite numbers")
