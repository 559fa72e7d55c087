"""The page being worked on while one message is read: changeable, then turned into a page and its edits."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...dialogue.message import Pending, detect_language
from ...promptbook import (
    AddCharacter,
    Box,
    ChangeAttributes,
    Character,
    Edit,
    MoveCharacter,
    Page,
    PageWarning,
    PromptBook,
    RemoveCharacter,
    ReplaceCharacter,
    ResizeCharacter,
    SetBackground,
    SetCount,
    SetNegative,
    SetStyle,
    overlap_share,
    repair_page,
    sorted_attributes,
)
from ...promptbook.layout import centre, height, round_box, scale_about_foot, width
from ...world.scene import SIZE_HEIGHTS, place_key, size_key
from ...world.vocabulary import Language, term
from .layout import ASPECTS, DEFAULT_COLOURS, HIGH_SPECIES, SIZE_RANGES, Wish, layout_characters
from .words import describe

SHOWN = ("species", "colour", "accessory", "expression", "facing")


class Stuck(Exception):
    """Reading cannot go on: ask or refuse, in both languages."""

    def __init__(self, action: str, en: str, zh: str, pending: Pending | None = None) -> None:
        super().__init__(en)
        self.action = action
        self.en = en
        self.zh = zh
        self.pending = pending


@dataclass(slots=True, eq=False)
class Draft:
    """One character while it is worked on.

    Attributes:
        id: of the character.
        attrs: species, colour, accessory, expression, facing, and size where it was said.
        box: where it is, or None while it has to be placed.
        height: height to keep when it is placed again, or None.
        place, relation, anchor: where it is wanted.
        x: where along the width it should stay near, or None.
        z: paint order, or None for "in front".
        language: of its prompt.
        origin: the record it came from, or None for a new one.
        replaces: id of the character whose place it takes.
    """

    id: str
    attrs: dict[str, str]
    box: Box | None = None
    height: float | None = None
    place: str | None = None
    relation: str | None = None
    anchor: Draft | None = None
    x: float | None = None
    z: int | None = None
    language: Language = "en"
    origin: Character | None = None
    replaces: str | None = None

    @property
    def species(self) -> str:
        """Key of the species."""
        return self.attrs["species"]

    def the(self, language: Language) -> str:
        """Return "the red cat", "红色的猫"."""
        shown = {"species": self.species, "colour": self.attrs["colour"]}
        return describe(shown, language, definite=True)

    def a(self, language: Language) -> str:
        """Return the full phrase."""
        return describe(self.attrs, language)


def draft_of(character: Character) -> Draft:
    """Return a draft of a character of the embedded world."""
    attrs = dict(character.attributes)
    species = attrs.get("species") or character.category
    attrs = {"colour": DEFAULT_COLOURS.get(species, "red"), "accessory": "none", "expression": "happy"} | attrs
    attrs = {"facing": "right", "species": species} | attrs
    return Draft(
        id=character.id,
        attrs=attrs,
        box=character.box,
        z=character.z,
        language=detect_language(character.prompt),
        origin=character,
    )


@dataclass(slots=True)
class Sheet:
    """The page while one message is read.

    Attributes:
        book: the pages before.
        page: the page the message starts from, or None.
        language: of the message.
        limit: the most characters a picture takes.
        drafts: who is there.
        background, style, negative: of the page; empty where nothing was said yet.
        fresh: whether this is a new scene and not an edit.
        focus: ids talked about, most recent last.
        did: what was done, as (English, Chinese) sentences without a full stop.
        notes: what was left out, as (code, English, Chinese).
        counted: species whose number was set.
        forced: ids to use where a name is ambiguous.
        instead: ids to use for whoever the message names, when a correction says who was meant.
        changed: whether anything changed.
        added: drafts added in this message.
        used: the largest id number given away.
        dressed: ids whose accessory this message set.
        gazes: who looks at whom; settled once everybody has a place.
        doubt: what to ask if the rest of the message changes nothing.
        hours: times of day that were named, as (key, text); settled once the background is known.
        scene_said: whether this message named a background.
        handed: the accessory this message took off somebody, for "and put it on the dog".
        text: the message.
    """

    book: PromptBook
    page: Page | None
    language: Language
    limit: int = 4
    drafts: list[Draft] = field(default_factory=list)
    background: str = ""
    style: str = ""
    negative: list[str] = field(default_factory=list)
    fresh: bool = False
    focus: list[str] = field(default_factory=list)
    did: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str, str]] = field(default_factory=list)
    counted: set[str] = field(default_factory=set)
    forced: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()
    changed: bool = False
    added: list[Draft] = field(default_factory=list)
    used: int = 0
    dressed: set[str] = field(default_factory=set)
    gazes: list[tuple[Draft, Draft]] = field(default_factory=list)
    doubt: Stuck | None = None
    hours: list[tuple[str, str]] = field(default_factory=list)
    scene_said: bool = False
    handed: str | None = None
    text: str = ""

    @classmethod
    def open(
        cls, book: PromptBook, page: Page | None, language: Language, focus: tuple[str, ...] = (), limit: int = 4
    ) -> Sheet:
        """Start from a page."""
        sheet = cls(book=book, page=page, language=language, limit=limit, focus=list(focus))
        if page is not None:
            sheet.drafts = [draft_of(character) for character in page.characters]
            sheet.background, sheet.style = page.background, page.style
            sheet.negative = [part.strip() for part in page.negative.split(",") if part.strip()]
        numbers = [int(draft.id) for draft in sheet.drafts if draft.id.isdecimal()]
        sheet.used = max([book.next_id - 1, *numbers])
        return sheet

    def say(self, en: str, zh: str) -> None:
        """Note what was done."""
        self.did.append((en, zh))
        self.changed = True

    def note(self, code: str, en: str, zh: str) -> None:
        """Note what was left out, once."""
        if all(code != other or en != text for other, text, _ in self.notes):
            self.notes.append((code, en, zh))

    def look_at(self, drafts: list[Draft]) -> None:
        """Make these what "it" and "them" mean."""
        self.focus = [draft.id for draft in drafts]

    def new(self, attrs: dict[str, str]) -> Draft | None:
        """Add a character with the attributes that were said; None, and a note, when the picture is full."""
        if len(self.drafts) >= self.limit:
            name = term("species", attrs["species"])
            self.note(
                "too_many",
                f"only {self.limit} fit in one picture, so there was no room for another {name.en[0]}",
                f"一张画最多放{self.limit}个，放不下更多的{name.zh[0]}",
            )
            return None
        self.used += 1
        species = attrs["species"]
        full = {"colour": DEFAULT_COLOURS[species], "accessory": "none", "expression": "happy", "facing": "right"}
        draft = Draft(id=str(self.used), attrs=full | attrs, language=self.language)
        self.drafts.append(draft)
        self.added.append(draft)
        self.negative = [word for word in self.negative if word not in _all_names(species)]
        self.changed = True
        return draft

    def bring_back(self, character: Character) -> Draft | None:
        """Put a character of an earlier page back."""
        if len(self.drafts) >= self.limit:
            self.note("too_many", f"at most {self.limit} fit in one picture", f"一张画里最多放{self.limit}个")
            return None
        draft = draft_of(character)
        draft.origin = None
        self.drafts.append(draft)
        self.added.append(draft)
        self.negative = [word for word in self.negative if word not in _all_names(draft.species)]
        self.changed = True
        if any(other.box and draft.box and overlap_share(draft.box, other.box) > 0.2 for other in self.drafts[:-1]):
            draft.height, draft.x, draft.box = height(character.box), centre(character.box)[0], None
        return draft

    def absent(self, species: str) -> list[Character]:
        """Return characters of a species that were on an earlier page and are not here, most recent first."""
        here = {draft.id for draft in self.drafts}
        found: dict[str, Character] = {}
        for page in reversed(self.book.pages):
            for character in page.characters:
                if character.id not in here and character.attribute("species") == species:
                    found.setdefault(character.id, character)
        return list(found.values())

    def drop(self, draft: Draft, *, forbid: bool = True) -> None:
        """Take a character off the page."""
        self.drafts.remove(draft)
        self.changed = True
        name = term("species", draft.species).name(self.language)
        left = any(other.species == draft.species for other in self.drafts)
        if forbid and not left and name not in self.negative:
            self.negative.append(name)
        for other in self.drafts:
            if other.anchor is draft:
                other.relation, other.anchor = None, None

    def restart(self) -> None:
        """Begin a new scene."""
        self.fresh, self.drafts, self.added, self.negative = True, [], [], []
        self.changed = True

    def move(self, draft: Draft, place: str) -> None:
        """Ask for another place, the size kept."""
        if draft.box is not None:
            here, draft.height = place_key(draft.box), height(draft.box)
            column = here.replace("top", "").strip() or "middle"
            if place == "top" and column != "middle":
                place = f"top {column}"
            elif place in ("left", "right", "middle") and here.startswith("top"):
                place = "top" if place == "middle" else f"top {place}"
            elif place == "bottom":
                place = column
        draft.place, draft.relation, draft.anchor, draft.box = place, None, None, None
        self.changed = True

    def relate(self, draft: Draft, relation: str, anchor: Draft) -> None:
        """Ask for a place next to another character."""
        if draft.box is not None:
            draft.height = height(draft.box)
        draft.relation, draft.anchor, draft.place, draft.box = relation, anchor, None, None
        self.changed = True

    def resize(self, draft: Draft, *, size: str | None = None, step: int = 0, little: bool = False) -> None:
        """Set a size, or go a step up or down."""
        if draft.box is None:
            draft.attrs["size"] = size or ("large" if step > 0 else "small")
            self.changed = True
            return
        now = height(draft.box)
        if size is not None:
            wanted = SIZE_HEIGHTS[size]
        else:
            order = ("small", "medium", "large")
            at = order.index(size_key(draft.box)) + step
            wanted = SIZE_HEIGHTS[order[at]] if 0 <= at <= 2 else now * (1.2 if step > 0 else 0.8)
            if little:
                wanted = now * (1.18 if step > 0 else 0.85)
        wanted = min(max(wanted, 0.16), 0.8)
        if wanted * ASPECTS[draft.species] > 0.96:
            wanted = 0.96 / ASPECTS[draft.species]
        draft.box = round_box(scale_about_foot(draft.box, wanted / now))
        draft.attrs["size"] = size_key(draft.box)
        self.changed = True

    # ----------------------------------------------------------------------------------------------- the finished page

    def finish(self, caption: str) -> tuple[Page, tuple[Edit, ...], tuple[PageWarning, ...]]:
        """Return the page, the edits that lead to it from the page before, and what had to be repaired."""
        self._place()
        for draft, seen in self.gazes:
            if draft.box is not None and seen.box is not None and seen in self.drafts:
                draft.attrs["facing"] = "left" if centre(seen.box)[0] < centre(draft.box)[0] else "right"
        old = self.page or Page()
        fresh_order = self.fresh and not any(draft.origin for draft in self.drafts)
        depth = self._paint_order(fresh_order)
        characters = []
        for draft in self.drafts:
            shown = {name: draft.attrs[name] for name in SHOWN}
            if "size" in draft.attrs:
                shown["size"] = draft.attrs["size"]
            attributes = sorted_attributes(shown)
            was = draft.origin
            same = was is not None and dict(was.attributes) == shown
            characters.append(
                Character(
                    id=draft.id,
                    name=term("species", draft.species).name(draft.language),
                    prompt=was.prompt if was is not None and same else describe(draft.attrs, draft.language),
                    category=draft.species,
                    box=draft.box or (0.3, 0.5, 0.7, 0.9),
                    z=depth[draft.id],
                    attributes=attributes,
                )
            )
        page = Page(
            background=self.background or "meadow",
            style=self.style or "flat",
            negative=", ".join(self.negative),
            caption=caption,
            characters=tuple(characters),
        )
        page, said = repair_page(page, max_characters=self.limit)
        page = page.replace(characters=self._in_order(old, page.characters))
        return page, self._edits(old, page), said

    def _in_order(self, old: Page, characters: tuple[Character, ...]) -> tuple[Character, ...]:
        """Return the characters in the order of the old page, newcomers last."""
        takes = {draft.id: draft.replaces for draft in self.drafts if draft.replaces}
        places = {id: index for index, id in enumerate(old.ids)}
        return tuple(
            sorted(
                characters, key=lambda character: places.get(takes.get(character.id, character.id) or "", len(places))
            )
        )

    def _place(self) -> None:
        """Give every draft a box; whoever is then almost hidden steps aside."""
        waiting = [draft for draft in self.drafts if draft.box is None]
        self._lay_out(waiting)
        for draft in waiting:
            for other in self.drafts:
                if other in waiting or other.box is None or draft.box is None:
                    continue
                if max(overlap_share(draft.box, other.box), overlap_share(other.box, draft.box)) > 0.25:
                    if draft.relation in ("behind", "front") and draft.anchor is other:
                        continue
                    other.height, other.x = height(other.box), centre(other.box)[0]
                    box, other.box = other.box, None
                    self._lay_out([other])
                    if other.box is None or self._worst(other, other.box) >= self._worst(other, box):
                        other.box = box
                    if not self._still_related(draft):
                        other.box = box
        crowd = [draft for draft in self.drafts if draft.box is not None and self._worst(draft, draft.box) > 0.3]
        crowd += [draft for draft in waiting if self._floats(draft) or not self._still_related(draft)]
        if waiting and crowd and not any(draft.relation in ("behind", "front") for draft in self.drafts):
            self._start_again()

    def _start_again(self) -> None:
        """Lay everybody out from nothing, in the same order, unless that is no better."""
        before = [(draft.box, draft.height) for draft in self.drafts]
        worst = self._badness()
        for draft in self.drafts:
            if draft.box is not None and draft.place is None and draft.relation is None:
                draft.x = centre(draft.box)[0]
                if place_key(draft.box).startswith("top"):
                    draft.place = place_key(draft.box)
            if "size" not in draft.attrs:
                draft.height = None
            draft.box = None
        self._lay_out(self.drafts)
        if self._badness() >= worst - 0.1:
            for draft, (box, tall) in zip(self.drafts, before, strict=True):
                draft.box, draft.height = box, tall

    def _badness(self) -> float:
        """Return how bad a layout is: the largest overlap, or 1 for somebody in the air who should not be."""
        return max(
            1.0 if self._floats(draft) or not self._still_related(draft) else self._worst(draft, draft.box)
            for draft in self.drafts
            if draft.box is not None
        )

    @staticmethod
    def _floats(draft: Draft) -> bool:
        """Return whether somebody who belongs on the ground is in the air unasked."""
        asked = draft.relation in ("above", "below") or (draft.place or "").startswith("top")
        return draft.box is not None and draft.box[3] < 0.7 and not asked and draft.species not in HIGH_SPECIES

    def _worst(self, draft: Draft, box: Box) -> float:
        """Return the largest overlap a box has with anybody else."""
        others = [other.box for other in self.drafts if other is not draft and other.box is not None]
        return max((max(overlap_share(box, o), overlap_share(o, box)) for o in others), default=0.0)

    @staticmethod
    def _still_related(draft: Draft) -> bool:
        """Return whether a left or right relation still holds."""
        if draft.anchor is None or draft.anchor.box is None or draft.box is None:
            return True
        gap = centre(draft.box)[0] - centre(draft.anchor.box)[0]
        return not ((draft.relation == "left" and gap > 0) or (draft.relation == "right" and gap < 0))

    def _lay_out(self, waiting: list[Draft]) -> None:
        """Place the drafts that wait, the others staying."""
        if not waiting:
            return
        wishes = []
        for draft in waiting:
            anchor: int | Box | None = None
            if draft.anchor is not None and draft.relation is not None:
                anchor = waiting.index(draft.anchor) if draft.anchor in waiting else draft.anchor.box
            size = draft.attrs.get("size")
            tall = draft.height
            if tall is not None and size is not None and not SIZE_RANGES[size][0] <= tall <= SIZE_RANGES[size][1]:
                tall = None
            wishes.append(
                Wish(
                    species=draft.species,
                    size=size,
                    height=tall,
                    place=draft.place,
                    x=draft.x,
                    relation=draft.relation if anchor is not None else None,
                    anchor=anchor,
                )
            )
        taken = [draft.box for draft in self.drafts if draft not in waiting and draft.box is not None]
        for draft, box in zip(waiting, layout_characters(wishes, taken), strict=True):
            draft.box = box

    def _paint_order(self, fresh: bool) -> dict[str, int]:
        """Return the paint order of every draft."""
        known = [draft.z for draft in self.drafts if draft.z is not None]
        top = max(known, default=-1)
        order: dict[str, int] = {}
        if fresh:
            ranked = sorted(self.drafts, key=lambda draft: (draft.box[3] if draft.box else 0.0, int(draft.id)))
            order = {draft.id: index for index, draft in enumerate(ranked)}
        else:
            for draft in self.drafts:
                if draft.z is None:
                    top += 1
                order[draft.id] = draft.z if draft.z is not None else top
        for draft in self.drafts:
            if draft.anchor is not None and draft.anchor.id in order and draft.anchor in self.drafts:
                if draft.relation == "behind" and order[draft.id] >= order[draft.anchor.id]:
                    order[draft.id] = order[draft.anchor.id] - 1
                if draft.relation == "front" and order[draft.id] <= order[draft.anchor.id]:
                    order[draft.id] = order[draft.anchor.id] + 1
        return order

    def _edits(self, old: Page, new: Page) -> tuple[Edit, ...]:
        """Return the edits that make ``new`` of ``old``, caption and statuses aside."""
        edits: list[Edit] = []
        before = {character.id: character for character in old.characters}
        after = {character.id: character for character in new.characters}
        takes = {draft.id: draft.replaces for draft in self.drafts if draft.replaces in before and draft.id in after}
        for id, gone in takes.items():
            edits.append(ReplaceCharacter(id=str(gone), character=after[id]))
        leaving = [id for id in before if id not in after and id not in takes.values()]
        arriving = [c for c in new.characters if c.id not in before and c.id not in takes]
        for species in sorted(self.counted):
            less = tuple(id for id in leaving if before[id].category == species)
            more = tuple(character for character in arriving if character.category == species)
            if less or more:
                edits.append(SetCount(category=species, removed=less, added=more))
                leaving = [id for id in leaving if id not in less]
        edits.extend(RemoveCharacter(id=id) for id in leaving)
        counted = {character.id for edit in edits if isinstance(edit, SetCount) for character in edit.added}
        order = [c.id for c in new.characters if c.id in before or c.id in takes]
        order += [c.id for c in new.characters if c.id in counted]
        for index, character in enumerate(new.characters):
            if character.id in order:
                continue
            at = min(index, len(order))
            order.insert(at, character.id)
            edits.append(AddCharacter(character=character, index=at))
        for id, was in before.items():
            now = after.get(id)
            if now is not None:
                edits.extend(_changes(was, now))
        if new.background != old.background:
            edits.append(SetBackground(background=new.background))
        if new.style != old.style:
            edits.append(SetStyle(style=new.style))
        if new.negative != old.negative:
            edits.append(SetNegative(negative=new.negative))
        return tuple(edits)


def _changes(was: Character, now: Character) -> list[Edit]:
    """Return the edits of one character that stays."""
    edits: list[Edit] = []
    if (was.attributes, was.prompt, was.name) != (now.attributes, now.prompt, now.name):
        before = dict(was.attributes)
        after = dict(now.attributes)
        edits.append(
            ChangeAttributes(
                id=was.id,
                attributes=tuple((name, value) for name, value in now.attributes if before.get(name) != value),
                dropped=tuple(name for name in before if name not in after),
                prompt=now.prompt if now.prompt != was.prompt else None,
                name=now.name if now.name != was.name else None,
            )
        )
    if was.box != now.box and abs(width(was.box) * height(was.box) - width(now.box) * height(now.box)) > 1e-3:
        edits.append(ResizeCharacter(id=was.id, box=now.box))
        if was.z != now.z:
            edits.append(MoveCharacter(id=was.id, box=now.box, z=now.z))
    elif was.box != now.box or was.z != now.z:
        edits.append(MoveCharacter(id=was.id, box=now.box, z=now.z if now.z != was.z else None))
    return edits


def _all_names(species: str) -> set[str]:
    """Return every name of a species, for the list of what must not be there."""
    entry = term("species", species)
    return {species, *entry.en, *entry.zh}
