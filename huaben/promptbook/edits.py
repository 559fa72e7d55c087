"""Edits: everything that can happen to a page between two turns, as records that know their own inverse.

``edit.apply(page)`` returns the new page and the edit that undoes it: ``inverse.apply(new)[0] == page``. An edit
changes what it names and leaves every other character as it is; statuses are set later, by
:meth:`~huaben.promptbook.book.PromptBook.add`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..config import Config
from ..errors import ConfigError, PromptBookError, PromptBookParseError
from .book import Attributes, Character, Page, sorted_attributes
from .layout import Box


@dataclass(frozen=True, kw_only=True, slots=True)
class AddCharacter(Config):
    """Put a character on the page.

    Attributes:
        character: the whole entry, with a fresh or a returning id.
        index: its place in the list; the end when None.
    """

    kind: ClassVar[str] = "add"
    character: Character
    index: int | None = None

    def apply(self, page: Page) -> tuple[Page, Edit]:
        """Return the page with the character, and the removal that undoes it."""
        if any(character.key == self.character.key for character in page.characters):
            raise PromptBookError(
                f"id {self.character.id!r} is already on the page", hint="use a fresh id, or an instance number"
            )
        index = len(page.characters) if self.index is None else self.index
        if not 0 <= index <= len(page.characters):
            raise PromptBookError(f"index {index} is outside a page of {len(page.characters)} characters")
        characters = (*page.characters[:index], self.character, *page.characters[index:])
        return page.replace(characters=characters), RemoveCharacter(
            id=self.character.id, instance=self.character.instance
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoveCharacter(Config):
    """Take a character off the page; its id stays reserved."""

    kind: ClassVar[str] = "remove"
    id: str
    instance: int | None = None

    def apply(self, page: Page) -> tuple[Page, Edit]:
        """Return the page without the character, and the addition that undoes it."""
        character = page.find(self.id, self.instance)
        index = page.characters.index(character)
        characters = (*page.characters[:index], *page.characters[index + 1 :])
        return page.replace(characters=characters), AddCharacter(character=character, index=index)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplaceCharacter(Config):
    """Put another character in one's place. What is of another category must come with another id."""

    kind: ClassVar[str] = "replace"
    id: str
    character: Character
    instance: int | None = None

    def apply(self, page: Page) -> tuple[Page, Edit]:
        """Return the page with the other character, and the replacement that undoes it."""
        old = page.find(self.id, self.instance)
        if old.id == self.character.id and old.category != self.character.category:
            raise PromptBookError(
                f"id {old.id!r} is a {old.category}, and was reused for a {self.character.category}",
                hint="give the new character a fresh id",
            )
        if self.character.key != old.key and any(c.key == self.character.key for c in page.characters):
            raise PromptBookError(f"id {self.character.id!r} is already on the page", hint="use a fresh id")
        return _swap(page, old, self.character), ReplaceCharacter(
            id=self.character.id, character=old, instance=self.character.instance
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeAttributes(Config):
    """Recolour, dress, undress, turn, cheer up: set or drop attributes, and word the prompt anew.

    Attributes:
        attributes: pairs to set.
        dropped: names to drop.
        prompt: the new prompt; unchanged when None.
        name: the new name; unchanged when None.
    """

    kind: ClassVar[str] = "change"
    id: str
    attributes: Attributes = ()
    dropped: tuple[str, ...] = ()
    prompt: str | None = None
    name: str | None = None
    instance: int | None = None

    def apply(self, page: Page) -> tuple[Page, Edit]:
        """Return the page with the character changed, and the change that undoes it."""
        old = page.find(self.id, self.instance)
        before = dict(old.attributes)
        after = {name: value for name, value in before.items() if name not in self.dropped} | dict(self.attributes)
        new = old.replace(
            attributes=sorted_attributes(after),
            prompt=old.prompt if self.prompt is None else self.prompt,
            name=old.name if self.name is None else self.name,
        )
        inverse = ChangeAttributes(
            id=self.id,
            attributes=tuple((name, value) for name, value in old.attributes if after.get(name) != value),
            dropped=tuple(name for name in after if name not in before),
            prompt=None if self.prompt is None else old.prompt,
            name=None if self.name is None else old.name,
            instance=self.instance,
        )
        return _swap(page, old, new), inverse


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveCharacter(Config):
    """Put a character somewhere else; ``z`` changes only when given."""

    kind: ClassVar[str] = "move"
    id: str
    box: Box
    z: int | None = None
    instance: int | None = None

    def apply(self, page: Page) -> tuple[Page, Edit]:
        """Return the page with the box moved, and the move that undoes it."""
        old = page.find(self.id, self.instance)
        new = old.replace(box=self.box, z=old.z if self.z is None else self.z)
        inverse = MoveCharacter(id=self.id, box=old.box, z=None if self.z is None else old.z, instance=self.instance)
        return _swap(page, old, new), inverse


@dataclass(frozen=True, kw_only=True, slots=True)
class ResizeCharacter(Config):
    """Make a character larger or smaller."""

    kind: ClassVar[str] = "resize"
    id: str
    box: Box
    prompt: str | None = None
    instance: int | None = None

    def apply(self, page: Page) -> tuple[Page, Edit]:
        """Return the page with the box resized, and the edit that undoes it."""
        old = page.find(self.id, self.instance)
        new = old.replace(box=self.box, prompt=old.prompt if self.prompt is None else self.prompt)
        inverse = ResizeCharacter(
            id=self.id, box=old.box, prompt=None if self.prompt is None else old.prompt, instance=self.instance
        )
        return _swap(page, old, new), inverse


@dataclass(frozen=True, kw_only=True, slots=True)
class SetCount(Config):
    """Change how many of one category there are.

    Attributes:
        category: what is counted.
        added: entries to put on the page.
        removed: ids to take off it.
        indices: where each of ``added`` goes in the final list, in ascending order; the end when empty.
    """

    kind: ClassVar[str] = "count"
    category: str
    added: tuple[Character, ...] = field(default=())
    removed: tuple[str, ...] = ()
    indices: tuple[int, ...] = ()

    def apply(self, page: Page) -> tuple[Page, Edit]:
        """Return the page with the other number, and the edit that undoes it."""
        leaving = [page.find(id) for id in self.removed]
        for character in (*leaving, *self.added):
            if character.category != self.category:
                raise PromptBookError(f"id {character.id!r} is a {character.category}, not a {self.category}")
        places = tuple(page.characters.index(character) for character in leaving)
        characters = [character for character in page.characters if character not in leaving]
        if self.indices and len(self.indices) != len(self.added):
            raise PromptBookError(f"{len(self.indices)} indices for {len(self.added)} characters")
        for offset, character in enumerate(self.added):
            characters.insert(self.indices[offset] if self.indices else len(characters), character)
        order = sorted(range(len(places)), key=places.__getitem__)
        inverse = SetCount(
            category=self.category,
            added=tuple(leaving[i] for i in order),
            removed=tuple(character.id for character in self.added),
            indices=tuple(places[i] for i in order),
        )
        return page.replace(characters=tuple(characters)), inverse


@dataclass(frozen=True, kw_only=True, slots=True)
class SetBackground(Config):
    """Change where the scene is."""

    kind: ClassVar[str] = "background"
    background: str

    def apply(self, page: Page) -> tuple[Page, Edit]:
        """Return the page with the background, and the edit that undoes it."""
        return page.replace(background=self.background), SetBackground(background=page.background)


@dataclass(frozen=True, kw_only=True, slots=True)
class SetStyle(Config):
    """Change the picture style."""

    kind: ClassVar[str] = "style"
    style: str

    def apply(self, page: Page) -> tuple[Page, Edit]:
        """Return the page with the style, and the edit that undoes it."""
        return page.replace(style=self.style), SetStyle(style=page.style)


@dataclass(frozen=True, kw_only=True, slots=True)
class SetNegative(Config):
    """Change what must not be there."""

    kind: ClassVar[str] = "negative"
    negative: str

    def apply(self, page: Page) -> tuple[Page, Edit]:
        """Return the page with the negative prompt, and the edit that undoes it."""
        return page.replace(negative=self.negative), SetNegative(negative=page.negative)


@dataclass(frozen=True, kw_only=True, slots=True)
class RestorePage(Config):
    """Go back to an earlier page, whole."""

    kind: ClassVar[str] = "restore"
    page: Page

    def apply(self, page: Page) -> tuple[Page, Edit]:
        """Return the earlier page, and the edit that comes back from it."""
        return self.page, RestorePage(page=page)


Edit = (
    AddCharacter
    | RemoveCharacter
    | ReplaceCharacter
    | ChangeAttributes
    | MoveCharacter
    | ResizeCharacter
    | SetCount
    | SetBackground
    | SetStyle
    | SetNegative
    | RestorePage
)

EDITS: dict[str, type[Edit]] = {
    edit.kind: edit
    for edit in (
        AddCharacter,
        RemoveCharacter,
        ReplaceCharacter,
        ChangeAttributes,
        MoveCharacter,
        ResizeCharacter,
        SetCount,
        SetBackground,
        SetStyle,
        SetNegative,
        RestorePage,
    )
}


def apply_edits(page: Page, edits: tuple[Edit, ...]) -> tuple[Page, tuple[Edit, ...]]:
    """Apply edits in order; return the new page and the inverses, in the order that undoes them."""
    inverses: list[Edit] = []
    for edit in edits:
        page, inverse = edit.apply(page)
        inverses.append(inverse)
    return page, tuple(reversed(inverses))


def edit_to_dict(edit: Edit) -> dict[str, Any]:
    """Return an edit as plain JSON values, with its ``kind``."""
    return {"kind": edit.kind, **edit.to_dict()}


def edit_from_dict(values: dict[str, Any]) -> Edit:
    """Read an edit written by :func:`edit_to_dict`.

    Raises:
        PromptBookParseError: for an unknown kind or a wrong field.
    """
    kind = values.get("kind") if isinstance(values, dict) else None
    if kind not in EDITS:
        raise PromptBookParseError(f"edit kind {kind!r} is unknown", hint=f"one of {', '.join(sorted(EDITS))}")
    try:
        return EDITS[kind].from_dict({name: value for name, value in values.items() if name != "kind"})
    except ConfigError as error:
        raise PromptBookParseError(error.message, hint=error.hint) from error


def _swap(page: Page, old: Character, new: Character) -> Page:
    """Return the page with one entry replaced in place."""
    return page.replace(characters=tuple(new if character is old else character for character in page.characters))
