"""A screenwriter on any chat model: state and the last messages in, a typed reply out.

The model writes operations on the page, never the page: whoever it does not name stays as they are, so that no answer,
however broken, drops a character silently (DialogGen's consistency rule made structural; TheaterGen 6.3 lists the
ways in which answers break). An answer that cannot be used is sent back once with what was wrong; after that the user
is asked. What was left out of an otherwise good answer is said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from ..errors import ConfigError, PromptBookError, PromptBookParseError, ReplyFormatError
from ..notices import Language
from ..promptbook.book import PLAIN_BACKGROUND, Character, Page, PromptBook, merge_description, sorted_attributes
from ..promptbook.edits import (
    AddCharacter,
    ChangeAttributes,
    Edit,
    MoveCharacter,
    RemoveCharacter,
    RestorePage,
    SetBackground,
    SetNegative,
    SetStyle,
    apply_edits,
)
from ..promptbook.layout import Box, place_boxes
from ..promptbook.validate import PageWarning, extract_json, head_noun, repair_page, short_repr, warning
from .chat import ChatMessage, ChatModel, whole_answer
from .message import Conversation, Memory, Message, Reply, detect_language

LAST_TURNS = 4
"""Earlier turns the model is shown; everything older is in the page."""
MAX_CHARACTERS = 6
NEW_SIZE = (0.34, 0.46)
"""Width and height of a new character that came without a box, as fractions of the picture."""
MAX_TEXT = 1000
"""Characters of any text taken from an answer."""

_ACTIONS = ("draw", "recall", "undo", "chat", "ask", "refuse")
_THINKING = re.compile(r"<(think|thinking|reasoning)>.*?(</\1>|\Z)", re.DOTALL | re.IGNORECASE)

_SAY: dict[str, tuple[str, str]] = {
    "not_understood": (
        "I could not work out what to change. Could you say it another way?",
        "我没能弄清楚要改什么，能换个说法吗？",
    ),
    "nothing_changes": ("What should change in the picture?", "画面要怎么改？"),
    "drawn": ("Here it is.", "画好了。"),
    "no_picture": ("Which picture do you mean?", "你指的是哪一张图？"),
    "nothing_undone": ("There is nothing to take back.", "没有可以撤销的。"),
    "undone": ("Taken back.", "已撤销。"),
    "refused": ("I would rather not draw that.", "这个我不画。"),
}

_TEXT = {"type": ["string", "null"]}
_BOX = {"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}]}
_ATTRIBUTES = {"type": "object", "additionalProperties": {"type": "string"}}


def answer_schema(page: Page | None, pictures: int) -> dict[str, Any]:
    """Return the JSON schema of an answer; the ids on the page are the only ones it allows.

    Args:
        page: the page as it stands.
        pictures: how many pictures can be recalled.
    """
    ids = list(page.ids) if page is not None else []
    known: dict[str, Any] = {"type": "string", "enum": ids} if ids else {"type": "string"}
    new = {"name": {"type": "string"}, "prompt": {"type": "string"}, "category": {"type": "string"}}
    properties: dict[str, Any] = {
        "action": {"enum": list(_ACTIONS)},
        "add": {
            "type": "array",
            "maxItems": MAX_CHARACTERS,
            "items": _object({**new, "attributes": _ATTRIBUTES, "box": _BOX}, required=("name", "prompt", "category")),
        },
        "change": {
            "type": "array",
            "maxItems": len(ids),
            "items": _object(
                {
                    "id": known,
                    "name": {"type": "string"},
                    "prompt": {"type": "string"},
                    "attributes": _ATTRIBUTES,
                    "box": _BOX,
                },
                required=("id",),
            ),
        },
        "remove": {"type": "array", "maxItems": len(ids), "items": known},
        "background": _TEXT,
        "style": _TEXT,
        "negative": _TEXT,
        "picture": {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 1, "maximum": max(pictures, 1)}]},
        "reply": {"type": "string"},
    }
    return _object(properties, required=tuple(properties))


def _object(properties: dict[str, Any], *, required: Sequence[str]) -> dict[str, Any]:
    """Return the schema of an object without other keys."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


@dataclass(slots=True)
class _Reading:
    """What was made of one answer.

    Attributes:
        action: one of the known actions.
        edits: on the page, in order.
        reply: the model's words; may be empty.
        picture: the number asked for, or None.
        problems: what the model has to mend; empty for a clean answer.
        warnings: what was left out or repaired, for the user.
    """

    action: str
    edits: list[Edit] = field(default_factory=list)
    reply: str = ""
    picture: int | None = None
    problems: list[str] = field(default_factory=list)
    warnings: list[PageWarning] = field(default_factory=list)


class LLMScreenwriter:
    """Reads messages with a chat model.

    Args:
        model: the chat model.
        max_characters: the most that the painter draws.
        attempts: answers asked for before the user is.
    """

    def __init__(self, model: ChatModel, *, max_characters: int = MAX_CHARACTERS, attempts: int = 2) -> None:
        if attempts < 1 or max_characters < 1:
            raise ConfigError(f"attempts={attempts}, max_characters={max_characters}", hint="both are at least 1")
        self.model, self.max_characters, self.attempts = model, max_characters, attempts
        self._instructions = (files(__package__) / "instructions" / "screenwriter.txt").read_text(encoding="utf-8")

    def read(
        self, message: Message, conversation: Conversation, *, seen: Page | None = None, picture: bytes | None = None
    ) -> Reply:
        """Return what the model makes of a message.

        Args:
            message: what the user says.
            conversation: everything before.
            seen: what a picture that the user gave shows; None without one.
            picture: PNG bytes of the picture in question, for models that see.

        Raises:
            GenerationError: if the model does not answer at all.
        """
        language = detect_language(message.text, conversation.memory.language)
        page = conversation.page or Page()
        messages = self.prompt(message, conversation, seen=seen, picture=picture)
        schema = answer_schema(conversation.page, len(conversation.memory.drawn))
        reading: _Reading | None = None
        for attempt in range(self.attempts):
            answer = whole_answer(self.model, messages, schema=schema)
            try:
                reading = read_answer(answer, page, conversation.book)
            except ReplyFormatError as error:
                problems = [error.message]
            else:
                problems = reading.problems
                if not problems:
                    break
            if attempt + 1 < self.attempts:
                wrong = "; ".join(problems)
                messages = [
                    *messages,
                    ChatMessage(role="assistant", text=answer[:4000]),
                    ChatMessage(
                        role="user",
                        text=f"That answer cannot be used: {wrong}. Answer again with the whole JSON object.",
                    ),
                ]
        return self._reply(reading, message, conversation, page, language)

    def prompt(
        self, message: Message, conversation: Conversation, *, seen: Page | None, picture: bytes | None = None
    ) -> list[ChatMessage]:
        """Return what the model is sent: instructions, the last turns, the state and the new message."""
        messages = [ChatMessage(role="system", text=self._instructions)]
        for turn in conversation.turns[-LAST_TURNS:]:
            messages.append(ChatMessage(role="user", text=f"<message>{_unmarked(turn.message.text)}</message>"))
            messages.append(ChatMessage(role="assistant", text=json.dumps(_remembered(turn.reply), ensure_ascii=False)))
        state = _state(conversation)
        if seen is not None:
            state += f"\nthe user sent a picture; it shows: {_people(seen, conversation.book)}"
        images = () if picture is None or not self.model.sees_pictures else (picture,)
        words = f"{state}\n<message>{_unmarked(message.text)}</message>"
        messages.append(ChatMessage(role="user", text=words, images=images))
        return messages

    def _reply(
        self, reading: _Reading | None, message: Message, conversation: Conversation, page: Page, language: Language
    ) -> Reply:
        """Turn what was made of the last answer into a reply; what cannot be used becomes a question."""
        memory = conversation.memory.replace(language=language, pending=None)

        def say(action: str, text: str, **more: Any) -> Reply:
            values = {"page": conversation.page, "memory": memory, **more}
            return Reply(action=action, text=text, language=language, **values)  # type: ignore[arg-type]

        if reading is None:
            return say("ask", _words("not_understood", language))
        if reading.action in ("chat", "ask", "refuse"):
            key = {"chat": "not_understood", "ask": "not_understood", "refuse": "refused"}[reading.action]
            return say(reading.action, reading.reply or _words(key, language))
        if reading.action == "recall":
            return self._recall(reading, conversation, memory, say, language)
        if reading.action == "undo":
            return self._undo(conversation, memory, say, language)
        if not reading.edits and not (conversation.page is None and reading.reply and not reading.problems):
            key = "not_understood" if reading.problems else "nothing_changes"
            return say("ask", _words(key, language), warnings=tuple(reading.warnings))
        try:
            new, _ = apply_edits(page, tuple(reading.edits))
        except PromptBookError:
            return say("ask", _words("not_understood", language))
        if conversation.page is None and not new.background:
            new = new.replace(background=PLAIN_BACKGROUND)
        new, repairs = repair_page(
            new.replace(caption=message.text), book=conversation.book, max_characters=self.max_characters
        )
        index = len(conversation.book.pages)
        touched = tuple(
            dict.fromkeys(
                edit.character.id if isinstance(edit, AddCharacter) else edit.id
                for edit in reading.edits
                if isinstance(edit, AddCharacter | ChangeAttributes | MoveCharacter)
            )
        )
        return say(
            "draw",
            reading.reply or _words("drawn", language),
            edits=tuple(reading.edits),
            page=new,
            warnings=(*reading.warnings, *repairs),
            memory=memory.replace(
                focus=tuple(id for id in touched if id in new.ids) or memory.focus,
                trail=(*memory.trail, index),
                undone=(),
                drawn=(*memory.drawn, index),
            ),
        )

    @staticmethod
    def _recall(
        reading: _Reading, conversation: Conversation, memory: Memory, say: Callable[..., Reply], language: Language
    ) -> Reply:
        """Show an earlier picture again."""
        if reading.picture is None or not 1 <= reading.picture <= len(memory.drawn):
            return say("ask", _words("no_picture", language))
        index = memory.drawn[reading.picture - 1]
        memory = memory.replace(trail=(*memory.trail, index), undone=())
        return _restored(index, conversation, memory, reading.reply or _words("drawn", language), say)

    @staticmethod
    def _undo(conversation: Conversation, memory: Memory, say: Callable[..., Reply], language: Language) -> Reply:
        """Walk one step back."""
        trail = memory.trail
        if len(trail) < 2:
            return say("ask", _words("nothing_undone", language))
        memory = memory.replace(trail=trail[:-1], undone=(*memory.undone, trail[-1]))
        return _restored(trail[-2], conversation, memory, _words("undone", language), say)


def _restored(index: int, conversation: Conversation, memory: Memory, text: str, say: Callable[..., Reply]) -> Reply:
    """Go back to a page of the book."""
    page = conversation.book.pages[index].replace(removed=())
    memory = memory.replace(focus=page.ids)
    return say("recall", text, edits=(RestorePage(page=page),), page=page, recalled=index, memory=memory)


def _words(key: str, language: Language) -> str:
    """Return one of our own sentences."""
    return _SAY[key][0 if language == "en" else 1]


def _unmarked(text: str) -> str:
    """Return a user's words without anything that looks like our data marks."""
    return re.sub(r"</?\s*message\s*>", "", text, flags=re.IGNORECASE)


# --------------------------------------------------------------------------------------------------- what it is shown


def _people(page: Page, book: PromptBook) -> str:
    """Return who is on a page, with ids, looks and boxes."""
    if not page.characters:
        return "nobody"
    return "; ".join(
        f"id {character.id}: {character.name}, {json.dumps(book.described(character).prompt, ensure_ascii=False)}, "
        f"attributes {json.dumps(dict(character.attributes), ensure_ascii=False)}, "
        f"box [{', '.join(f'{value:.2f}' for value in character.box)}]"
        for character in page.characters
    )


def _state(conversation: Conversation) -> str:
    """Return the page as it stands, the characters who left, and the pictures so far."""
    page = conversation.page
    if page is None:
        return "page: (empty)"
    lines = [
        f"page: {_people(page, conversation.book)}",
        f"background: {page.background or '-'} | style: {page.style or '-'} | negative: {page.negative or '-'}",
        f"pictures so far: {len(conversation.memory.drawn)}",
    ]
    away = {
        character.id: character
        for earlier in conversation.book.pages
        for character in earlier.characters
        if character.id not in page.ids
    }
    if away:
        who = "; ".join(f"id {id}: {character.prompt}" for id, character in list(away.items())[-8:])
        lines.append(f"not on the page now (name the id in add to bring back): {who}")
    if conversation.memory.focus:
        lines.append(f"talked about last: {', '.join(conversation.memory.focus)}")
    return "\n".join(lines)


def _remembered(reply: Reply) -> dict[str, Any]:
    """Return an earlier reply, short, in the form of an answer."""
    return {"action": reply.action, "reply": reply.text}


# ------------------------------------------------------------------------------------------------- what it answered


def read_answer(text: str, page: Page, book: PromptBook) -> _Reading:
    """Make edits of a model's answer, keeping every entry that makes sense.

    Args:
        text: the answer, with whatever stands around the JSON.
        page: the page that is edited.
        book: the pages before; gives ids.

    Raises:
        ReplyFormatError: if there is no object with a known action in it.
    """
    try:
        values = extract_json(_THINKING.sub("", text))
    except PromptBookParseError as error:
        raise ReplyFormatError(error.message, hint=error.hint, raw=text) from error
    if isinstance(values, list):
        values = next((value for value in values if isinstance(value, dict)), None)
    if not isinstance(values, dict):
        raise ReplyFormatError("the answer is no JSON object", hint="answer with one object", raw=text)
    action = values.get("action")
    action = action.strip().lower() if isinstance(action, str) else action
    action = {"talk": "chat", "edit": "draw"}.get(action, action) if isinstance(action, str) else action
    if action not in _ACTIONS:
        raise ReplyFormatError(
            f"action is {short_repr(action)}, expected one of {', '.join(_ACTIONS)}",
            hint="name the action first",
            raw=text,
        )
    reading = _Reading(action, reply=_text(values.get("reply")) or "")
    if action == "recall":
        number = values.get("picture")
        if isinstance(number, str) and number.strip().isdecimal():
            number = int(number)
        reading.picture = number if isinstance(number, int) and not isinstance(number, bool) else None
    if action == "draw":
        _Editor(page, book, reading).read(values)
    return reading


class _Editor:
    """Reads the lists of one answer into edits on one page."""

    def __init__(self, page: Page, book: PromptBook, reading: _Reading) -> None:
        self.page, self.book, self.reading = page, book, reading
        self.present = {character.id: character for character in page.characters}
        self.fresh = book.next_id
        self.scale = 1.0

    def read(self, values: dict[str, Any]) -> None:
        """Append the edits of a whole answer: who leaves, who changes, who comes, and the page's own texts."""
        add, change = self._list(values, "add"), self._list(values, "change")
        self.scale = _box_unit([entry.get("box") for entry in (*add, *change) if isinstance(entry, dict)])
        for id in self._list(values, "remove"):
            self._remove(id)
        for entry in change:
            self._change(entry)
        new = [character for entry in add if (character := self._new(entry)) is not None]
        self._place(new)
        texts = ((SetBackground, "background"), (SetStyle, "style"), (SetNegative, "negative"))
        for edit, name in texts:
            value = values.get(name)
            if value is not None and not isinstance(value, str):
                self._left_out(f"{name} is {short_repr(value)}, expected text")
            elif value is not None and value.strip().casefold() not in ("", "null", "none", "unchanged"):
                if value.strip() != getattr(self.page, name):
                    self.reading.edits.append(edit(**{name: value.strip()[:MAX_TEXT]}))

    def _list(self, values: dict[str, Any], name: str) -> list[Any]:
        """Return one of the answer's lists; a single entry may stand without one."""
        found = values.get(name)
        if found is None:
            return []
        if isinstance(found, (dict, str, int)) and not isinstance(found, bool):
            return [found]
        if not isinstance(found, list):
            self._left_out(f"{name} is {short_repr(found)}, expected a list")
            return []
        return found

    def _left_out(self, problem: str) -> None:
        """Note something the model should mend, and the user should know if it does not."""
        self.reading.problems.append(problem)
        self.reading.warnings.append(warning("entry_rejected", detail=problem))

    def _remove(self, value: Any) -> None:
        id = _id(value.get("id") if isinstance(value, dict) else value)
        if id is None or id not in self.present:
            self._left_out(f"remove names {short_repr(value)}, ids on the page: {self._known()}")
            return
        del self.present[id]
        self.reading.edits.append(RemoveCharacter(id=id))

    def _known(self) -> str:
        return ", ".join(f"{id} ({character.name})" for id, character in self.present.items()) or "none"

    def _change(self, entry: Any) -> None:
        """Read what changes about one character; whoever is unknown but described is a new one."""
        if not isinstance(entry, dict):
            self._left_out(f"change holds {short_repr(entry)}, expected an object with an id")
            return
        id = _id(entry.get("id"))
        if id is None or id not in self.present:
            self.reading.problems.append(
                f"change names id {short_repr(entry.get('id'))}, ids on the page: {self._known()}"
            )
            if _text(entry.get("prompt")):
                self._place([new] if (new := self._new({**entry, "id": None})) is not None else [])
            else:
                self.reading.warnings.append(warning("entry_rejected", detail=f"id {short_repr(entry.get('id'))}"))
            return
        old = self.present[id]
        attributes = self._attributes(entry.get("attributes"))
        dropped = tuple(name for name, value in attributes.items() if not value and old.attribute(name))
        attributes = {name: value for name, value in attributes.items() if value and old.attribute(name) != value}
        prompt, name = _text(entry.get("prompt")), _text(entry.get("name"))
        if prompt is None and attributes:
            prompt = merge_description(", ".join(attributes.values()), old.prompt)
        if attributes or dropped or (prompt and prompt != old.prompt) or (name and name != old.name):
            self.reading.edits.append(
                ChangeAttributes(
                    id=id, attributes=sorted_attributes(attributes), dropped=dropped, prompt=prompt, name=name
                )
            )
        box = self._box(entry.get("box"))
        if box is not None and max(abs(a - b) for a, b in zip(box, old.box, strict=True)) > 0.005:
            self.reading.edits.append(MoveCharacter(id=id, box=box))

    def _new(self, entry: Any) -> tuple[Character, bool] | None:
        """Return a new or returning character and whether it came with a box; None after saying why not."""
        if isinstance(entry, str):
            entry = {"prompt": entry}
        if not isinstance(entry, dict):
            self._left_out(f"add holds {short_repr(entry)}, expected an object")
            return None
        name, prompt = _text(entry.get("name")), _text(entry.get("prompt"))
        if prompt is None and name is None:
            self._left_out(f"add holds {short_repr(entry)} without a prompt")
            return None
        prompt = prompt or name or ""
        category = _text(entry.get("category")) or head_noun(prompt)
        id = _id(entry.get("id"))
        if id is not None and id in self.present:
            self._change(entry)
            return None
        if id is None or self.book.categories.get(id) != category:
            id, self.fresh = str(self.fresh), self.fresh + 1
        box = self._box(entry.get("box", entry.get("bbox")))
        character = Character(
            id=id,
            name=name or category,
            prompt=prompt,
            category=category,
            box=box or (0.0, 0.0, 1.0, 1.0),
            attributes=sorted_attributes(
                {key: value for key, value in self._attributes(entry.get("attributes")).items() if value}
            ),
        )
        return character, box is not None

    def _place(self, new: list[tuple[Character, bool]]) -> None:
        """Add characters, finding room for those without a box."""
        taken = [character.box for character in self.present.values()]
        taken += [character.box for character, placed in new if placed]
        nearest = 1 + max((character.z for character in self.present.values()), default=-1)
        for offset, (character, placed) in enumerate(new):
            if not placed:
                (box,) = place_boxes([NEW_SIZE], taken=taken)
                taken.append(box)
                character = character.replace(box=box)
            character = character.replace(z=nearest + offset)
            self.present[character.id] = character
            self.reading.edits.append(AddCharacter(character=character))

    def _attributes(self, values: Any) -> dict[str, str]:
        """Return attributes as text; a null drops one."""
        if values is None:
            return {}
        if not isinstance(values, dict):
            self._left_out(f"attributes is {short_repr(values)}, expected an object")
            return {}
        found: dict[str, str] = {}
        for name, value in values.items():
            if value is None or value is False:
                found[str(name)] = ""
            elif isinstance(value, (str, int, float)) and not isinstance(value, bool):
                found[str(name)] = str(value).strip()[:MAX_TEXT]
            elif isinstance(value, list) and all(isinstance(part, str) for part in value):
                found[str(name)] = ", ".join(value)[:MAX_TEXT]
            else:
                self._left_out(f"attribute {name} is {short_repr(value)}, expected text")
        return found

    def _box(self, value: Any) -> Box | None:
        """Return a box in fractions; None where there is none or it makes no sense (a place is found then)."""
        if value is None or value == "null":
            return None
        if not _is_box(value):
            self.reading.problems.append(f"box is {short_repr(value)}, expected [x0, y0, x1, y1] from 0 to 1")
            return None
        x0, y0, x1, y1 = (float(number) / self.scale for number in value)
        if x1 <= x0 or y1 <= y0:
            self.reading.problems.append(f"box {short_repr(value)} is empty, expected x0 < x1 and y0 < y1")
            return None
        return x0, y0, x1, y1


def _is_box(value: Any) -> bool:
    """Return whether a value is four finite numbers."""
    return (
        isinstance(value, (list, tuple))
        and len(value) == 4
        and all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in value)
        and all(abs(number) < 1e6 for number in value)  # also false for NaN
    )


def _box_unit(boxes: list[Any]) -> float:
    """Return what boxes are counted in: 1, per cent, thousandths, or pixels of a canvas of a usual size."""
    largest = max((max(map(float, box)) for box in boxes if _is_box(box)), default=1.0)
    if largest <= 2.0:  # a box may stand partly outside; it is repaired later
        return 1.0
    return next((unit for unit in (100.0, 512.0, 1000.0, 1024.0) if largest <= unit), largest)


def _id(value: Any) -> str | None:
    """Return an id as text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value.strip():
        return value.strip().removeprefix("id ").strip()
    return None


def _text(value: Any) -> str | None:
    """Return a text without surplus space, or None for anything else."""
    if not isinstance(value, str):
        return None
    return " ".join(value.split())[:MAX_TEXT] or None
