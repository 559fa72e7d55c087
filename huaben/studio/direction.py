"""What a person decides about one turn beside the words: the parts of a stage, wrapped for that turn.

Changes made by hand on the page become edits of an ordinary turn; a chosen seed or prompt reaches the painter; one
picture is painted at a time, whoever asks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from ..dialogue.message import Conversation, Message, Reply
from ..errors import Cancelled, DataError, DialogueError
from ..promptbook import (
    AddCharacter,
    Box,
    ChangeAttributes,
    Character,
    Edit,
    MoveCharacter,
    Page,
    RemoveCharacter,
    ReplaceCharacter,
    ResizeCharacter,
    SetBackground,
    SetNegative,
    SetStyle,
    apply_edits,
    place_boxes,
    sorted_attributes,
)
from ..promptbook.layout import height, is_inside, round_box, width

if TYPE_CHECKING:
    from collections.abc import Iterator

Language = Literal["en", "zh"]
ReadPhrase = Callable[[str], Character]

WORDS: dict[str, tuple[str, str]] = {
    "move": ("move {name}", "移动{name}"),
    "resize": ("resize {name}", "调整{name}的大小"),
    "change": ("make {name} {what}", "把{name}改成{what}"),
    "rename": ("call {name} {what}", "把{name}叫作{what}"),
    "remove": ("remove {name}", "去掉{name}"),
    "add": ("add {what}", "加上{what}"),
    "background": ("background {what}", "背景：{what}"),
    "style": ("style {what}", "风格：{what}"),
    "negative": ("leave out {what}", "不要出现：{what}"),
    "nothing": ("nothing", "无"),
    "redraw": ("draw it again", "再画一次"),
    "arranged": ("Drawn as you arranged it on the page.", "按你在页面上的安排画好了。"),
    "again": ("Here it is once more.", "再画了一张。"),
    "text_only": (
        "Only talking, as you chose. I would have drawn a new picture for this.",
        "按你的选择只聊天。这句话本来会画一张新图。",
    ),
}


def word(key: str, language: Language, **values: str) -> str:
    """Return one of the words of this module."""
    return WORDS[key][0 if language == "en" else 1].format(**values)


def page_edits(page: Page, wanted: dict[str, Any], read_phrase: ReadPhrase) -> tuple[Edit, ...]:
    """Return the edits that turn ``page`` into what was arranged by hand.

    Args:
        page: as it stands.
        wanted: any of ``background``, ``style``, ``negative`` and ``characters``; what is left out stays. Of a
            character: ``id`` of one on the page, or a new one with ``new`` set; ``prompt``, ``name``, ``box``; or
            ``record``, a whole character of the library. Characters that are not listed leave the page.
        read_phrase: reads "a blue cat" into a character.

    Raises:
        DataError: for an unknown id or an impossible box.
    """
    edits: list[Edit] = []
    for name, make in (("background", SetBackground), ("style", SetStyle), ("negative", SetNegative)):
        if wanted.get(name) is not None and wanted[name].strip() != getattr(page, name):
            edits.append(make(**{name: wanted[name].strip()}))
    if wanted.get("characters") is None:
        return tuple(edits)
    listed = {entry["id"] for entry in wanted["characters"] if not entry.get("new")}
    edits += [RemoveCharacter(id=c.id, instance=c.instance) for c in page.characters if c.id not in listed]
    taken = [tuple(entry.get("box") or ()) for entry in wanted["characters"]]
    taken += [c.box for c in page.characters if any(e["id"] == c.id and not e.get("box") for e in wanted["characters"])]
    boxes = [(x[0], x[1], x[2], x[3]) for x in taken if len(x) == 4]
    for entry in wanted["characters"]:
        if entry.get("new"):
            made = _added(page, entry, read_phrase, boxes)
            boxes.append(made.character.box)
            edits.append(made)
        else:
            edits += _changed(page, entry, read_phrase)
    return tuple(edits)


def _box(entry: dict[str, Any]) -> tuple[float, float, float, float] | None:
    """Return an entry's box, checked."""
    if entry.get("box") is None:
        return None
    x0, y0, x1, y1 = entry["box"]
    box = round_box((x0, y0, x1, y1))
    if not is_inside(box) or min(width(box), height(box)) < 0.02:
        raise DataError(f"box {entry['box']} is empty or outside the picture", hint="x0, y0, x1, y1 in [0, 1]")
    return box


def _added(page: Page, entry: dict[str, Any], read_phrase: ReadPhrase, taken: list[Box]) -> AddCharacter:
    """Return the edit that adds one character, where there is room if it has no box."""
    record = entry.get("record")
    if record is not None:
        attributes = sorted_attributes({str(name): str(value) for name, value in record["attributes"].items()})
        made = Character(
            id=entry["id"],
            name=record["name"],
            prompt=record["prompt"],
            category=record["category"],
            box=(0.33, 0.45, 0.67, 0.92),
            attributes=attributes,
        )
    else:
        made = read_phrase(entry.get("prompt") or "").replace(id=entry["id"], status="new", instance=None)
    box = _box(entry)
    if box is None:
        sizes = [(width(made.box), height(made.box))]
        (box,) = place_boxes(sizes, taken=taken)
        box = round_box(box)
    front = max((character.z for character in page.characters), default=-1) + 1
    return AddCharacter(character=made.replace(z=front, box=box))


def _changed(page: Page, entry: dict[str, Any], read_phrase: ReadPhrase) -> list[Edit]:
    """Return the edits of one character that is on the page."""
    try:
        old = page.find(entry["id"], entry.get("instance"))
    except Exception as error:
        raise DataError(f"there is no character {entry['id']!r} on the page", hint="reload the page") from error
    edits: list[Edit] = []
    prompt, name, box = (entry.get("prompt") or "").strip(), (entry.get("name") or "").strip(), _box(entry)
    if prompt and prompt != old.prompt:
        read = read_phrase(prompt)
        if read.category != old.category:
            new = read.replace(id=f"{entry['spare']}", box=box or old.box, z=old.z, instance=None, status="new")
            return [ReplaceCharacter(id=old.id, character=new, instance=old.instance)]
        dropped = tuple(key for key, _ in old.attributes if key not in dict(read.attributes) and key != "species")
        edits.append(
            ChangeAttributes(
                id=old.id, attributes=read.attributes, dropped=dropped, prompt=read.prompt, instance=old.instance
            )
        )
    if name and name != old.name:
        edits.append(ChangeAttributes(id=old.id, name=name, instance=old.instance))
    if box is not None and max(abs(a - b) for a, b in zip(box, old.box, strict=True)) > 2e-4:
        same = abs(width(box) - width(old.box)) < 2e-3 and abs(height(box) - height(old.box)) < 2e-3
        kind = MoveCharacter if same else ResizeCharacter
        edits.append(kind(id=old.id, box=box, instance=old.instance))
    return edits


def sentence(edits: tuple[Edit, ...], page: Page, language: Language) -> str:
    """Return edits as the message they stand for."""
    names = {character.id: character.name for character in page.characters}
    parts = []
    for edit in edits:
        who = names.get(getattr(edit, "id", ""), "?")
        match edit:
            case MoveCharacter():
                parts.append(word("move", language, name=who))
            case ResizeCharacter():
                parts.append(word("resize", language, name=who))
            case ChangeAttributes():
                key = "change" if edit.prompt is not None else "rename"
                parts.append(word(key, language, name=who, what=edit.prompt or edit.name or ""))
            case ReplaceCharacter():
                parts.append(word("change", language, name=who, what=edit.character.prompt))
            case RemoveCharacter():
                parts.append(word("remove", language, name=who))
            case AddCharacter():
                parts.append(word("add", language, what=edit.character.prompt))
            case SetBackground() | SetStyle() | SetNegative():
                what = getattr(edit, edit.kind) or word("nothing", language)
                parts.append(word(edit.kind, language, what=what))
    text = (", " if language == "en" else "，").join(parts) or word("redraw", language)
    return text[:1].upper() + text[1:]


class DirectedScreenwriter:
    """A screenwriter for one turn that follows what was decided by hand.

    Args:
        inner: reads everything else.
        wanted: the page as arranged by hand, see :func:`page_edits`.
        redraw: draw the page as it is.
        mode: ``picture`` asks for a picture even where the message could be talk; ``text`` never draws.
        negative: what to keep out of what is drawn.
        language: of answers given here.
        heard: told the reply, and the message it answers.
    """

    def __init__(
        self,
        inner: Any,
        *,
        wanted: dict[str, Any] | None = None,
        redraw: bool = False,
        mode: str = "auto",
        negative: str | None = None,
        language: Language = "en",
        heard: Callable[[Reply], None] | None = None,
    ) -> None:
        self.inner, self.wanted, self.redraw, self.mode = inner, wanted, redraw, mode
        self.negative = negative
        self.language, self.heard = language, heard or (lambda reply: None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def read(self, message: Message | str, conversation: Conversation | None = None, **more: Any) -> Reply:
        """Return the reply to a message, or to what was arranged by hand."""
        conversation = conversation or Conversation()
        if self.wanted is not None or self.redraw:
            reply = self._arranged(conversation)
        else:
            reply = self._in_mode(message, conversation, more)
            if self.negative is not None and reply.action == "draw" and reply.page is not None:
                edits = (*reply.edits, SetNegative(negative=self.negative))
                reply = reply.replace(page=reply.page.replace(negative=self.negative), edits=edits)
        self.heard(reply)
        return reply

    def _arranged(self, conversation: Conversation) -> Reply:
        """Return the reply to hand-made edits."""
        page = conversation.page or Page()
        edits = page_edits(page, self.wanted or {}, self._phrase)
        new, _ = apply_edits(page, edits)
        if not new.characters and not new.background:
            raise DialogueError(
                "the page is empty, expected a character or a background", hint="say what to draw first"
            )
        index, memory = len(conversation.book.pages), conversation.memory
        memory = memory.replace(
            focus=new.ids[-1:] or memory.focus,
            trail=(*memory.trail, index),
            drawn=(*memory.drawn, index),
            undone=(),
            pending=None,
            language=self.language,
        )
        text = word("arranged" if edits else "again", self.language)
        return Reply(action="draw", text=text, language=self.language, edits=edits, page=new, memory=memory)

    def _in_mode(self, message: Message | str, conversation: Conversation, more: dict[str, Any]) -> Reply:
        """Return the inner reply, held to the mode."""
        reply = self.inner.read(message, conversation, **more)
        if self.mode == "text" and reply.action == "draw":
            memory = conversation.memory.replace(language=reply.language)
            text = word("text_only", reply.language)
            return Reply(action="chat", text=text, language=reply.language, page=conversation.page, memory=memory)
        if self.mode == "picture" and reply.action in ("chat", "ask"):
            text = message if isinstance(message, str) else message.text
            asked = f"draw {text}" if reply.language == "en" else f"画{text}"
            again = self.inner.read(Message(text=asked), conversation, **more)
            return again if again.action == "draw" else reply
        return reply

    def _phrase(self, phrase: str) -> Character:
        """Read a noun phrase into a character.

        Raises:
            DataError: if the stage cannot draw it.
        """
        if phrase.strip():
            asked = f"draw {phrase}" if phrase.isascii() else f"画{phrase}"
            try:
                page = self.inner.read(Message(text=asked), Conversation()).page
            except DialogueError:
                page = None
            if page is not None and page.characters:
                return page.characters[0]
        raise DataError(f"{phrase!r} cannot be drawn here", hint="describe one thing, such as 'a red cat with a hat'")


class DirectedPainter:
    """A painter for one turn: waits for its place, and takes a seed or prompt that was chosen by hand.

    Args:
        inner: paints.
        place: holds as many as may paint at once.
        seed: of the first attempt; later ones are derived.
        prompt: instead of the page's words.
    """

    def __init__(
        self, inner: Any, place: threading.Semaphore, *, seed: int | None = None, prompt: str | None = None
    ) -> None:
        self.inner, self.place, self.seed, self.prompt = inner, place, seed, prompt
        self.attempts = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def paint(self, request: Any, *, on_step: Any = None, should_cancel: Any = None) -> Any:
        """Paint when it is this turn's turn."""
        from ..theater.performance import attempt_seed

        if self.seed is not None:
            request = replace(request, seed=attempt_seed(self.seed, self.attempts))
        if self.prompt:
            request = replace(request, prompt=self.prompt)
        self.attempts += 1
        with waiting(self.place, should_cancel):
            return self.inner.paint(request, on_step=on_step, should_cancel=should_cancel)


class SharedReader:
    """A reader that one turn at a time uses."""

    def __init__(self, inner: Any, place: threading.Semaphore) -> None:
        self.inner, self.place = inner, place

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if name not in ("detect", "read"):
            return found

        def alone(*arguments: Any, **named: Any) -> Any:
            with self.place:
                return found(*arguments, **named)

        return alone


@contextmanager
def waiting(place: threading.Semaphore, should_cancel: Callable[[], bool] | None) -> Iterator[None]:
    """Hold a place; stop waiting when asked to."""
    while not place.acquire(timeout=0.1):
        if should_cancel is not None and should_cancel():
            raise Cancelled("stopped while waiting for the painter", hint="send it again when you like")
    try:
        yield
    finally:
        place.release()
