"""Messages, replies, and the conversation they make: frozen records that round-trip through JSON."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, runtime_checkable

from ..config import Config
from ..errors import ConfigError, DialogueError
from ..notices import Language
from ..promptbook import Edit, Page, PageWarning, PromptBook, edit_from_dict, edit_to_dict

Action = Literal["draw", "recall", "chat", "ask", "refuse"]

MAX_MESSAGE_LENGTH = 2000
_HAN = re.compile(r"[\u3400-\u9fff]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Message(Config):
    """What a user said.

    Attributes:
        text: the words.
        image: path of a picture sent along, or None.
    """

    text: str
    image: str | None = None


def clean_text(text: str, *, has_image: bool = False) -> str:
    """Return a message's text without control characters and surplus space.

    Raises:
        DialogueError: for text that is empty (unless a picture comes with it) or too long.
    """
    if not isinstance(text, str):
        raise DialogueError(f"the message is {type(text).__name__}, expected text", hint="send a string")
    if len(text) > MAX_MESSAGE_LENGTH:
        raise DialogueError(
            f"the message has {len(text)} characters, at most {MAX_MESSAGE_LENGTH} are read",
            hint="say it in fewer words, or over several turns",
        )
    kept = "".join(
        " " if letter in "\r\t\v\f" else letter
        for letter in text
        if letter in "\n\r\t\v\f" or unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Co", "Cn")
    )
    cleaned = "\n".join(" ".join(line.split()) for line in kept.split("\n")).strip()
    if not cleaned and not has_image:
        raise DialogueError(
            "the message has no words, expected a sentence", hint='say what to draw, such as "a red cat on the beach"'
        )
    return cleaned


def detect_language(text: str, fallback: Language = "en") -> Language:
    """Return the language a message is mostly in; ``fallback`` where there are no letters."""
    han = len(_HAN.findall(text))
    words = len(re.findall(r"[A-Za-z]+", text))
    if not han and not words:
        return fallback
    return "zh" if han > words or (han and han >= 2 and han * 2 >= words) else "en"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pending(Config):
    """A question huaben asked and waits for the answer of.

    Attributes:
        kind: ``without`` (draw it without what is unknown?), ``which`` (which one?) or ``meant`` (did you mean?).
        text: the message that is read again when the answer comes.
        options: ids to choose from.
    """

    kind: Literal["without", "which", "meant"]
    text: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory(Config):
    """What a reply leaves for the next one, beside the book.

    Attributes:
        focus: ids talked about most recently.
        language: of the last message.
        pending: the open question, or None.
        trail: indices of the book's pages that led to the current one; undo walks it back.
        undone: indices that redo walks forward, next one last.
        drawn: indices of the pages that were drawn, in order: "the second picture" is ``drawn[1]``.
    """

    focus: tuple[str, ...] = ()
    language: Language = "en"
    pending: Pending | None = None
    trail: tuple[int, ...] = ()
    undone: tuple[int, ...] = ()
    drawn: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply(Config):
    """What huaben answers, and what happens to the page.

    Attributes:
        action: ``draw`` a new picture, ``recall`` an earlier one, ``chat``, ``ask`` back, or ``refuse``.
        text: what is said, in ``language``.
        language: of the answer.
        edits: what happened, in order; applied to the page before they give ``page``.
        page: the state after the turn; None before anything was drawn.
        warnings: what was left out or repaired.
        recalled: for ``recall``, the index of the book's page whose picture is shown again.
        memory: what the next turn needs.
    """

    action: Action
    text: str
    language: Language = "en"
    edits: tuple[Edit, ...] = ()
    page: Page | None = None
    warnings: tuple[PageWarning, ...] = ()
    recalled: int | None = None
    memory: Memory = field(default_factory=Memory)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; edits carry their kind."""
        values = super(Reply, self).to_dict()
        return {**values, "edits": [edit_to_dict(edit) for edit in self.edits]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what :meth:`to_dict` wrote.

        Raises:
            ConfigError: for a wrong field.
        """
        if not isinstance(values, dict) or not isinstance(values.get("edits", []), list):
            raise ConfigError("a reply is an object with a list of edits")
        reply = super(Reply, cls).from_dict({name: value for name, value in values.items() if name != "edits"})
        return reply.replace(edits=tuple(edit_from_dict(edit) for edit in values.get("edits", [])))


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange(Config):
    """A message and its reply."""

    message: Message
    reply: Reply

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read an exchange.

        Raises:
            ConfigError: for a wrong field.
        """
        if not isinstance(values, dict) or set(values) != {"message", "reply"}:
            raise ConfigError("an exchange is an object with a message and a reply")
        return cls(message=Message.from_dict(values["message"]), reply=Reply.from_dict(values["reply"]))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"message": self.message.to_dict(), "reply": self.reply.to_dict()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation(Config):
    """Everything said so far, and the prompt book that came of it.

    Attributes:
        turns: oldest first.
        book: a page per turn that drew or recalled a picture.
        memory: what the last reply left.
    """

    turns: tuple[Exchange, ...] = ()
    book: PromptBook = field(default_factory=PromptBook)
    memory: Memory = field(default_factory=Memory)

    @property
    def page(self) -> Page | None:
        """The page the next message starts from."""
        return self.book.current

    def add(self, message: Message, reply: Reply) -> Self:
        """Return the conversation after one more turn."""
        book = self.book
        if reply.action in ("draw", "recall") and reply.page is not None:
            book = book.add(reply.page)
        return self.replace(turns=(*self.turns, Exchange(message=message, reply=reply)), book=book, memory=reply.memory)


@runtime_checkable
class Screenwriter(Protocol):
    """Reads what a user says and answers with what shall happen: anything from a grammar to a chat model.

    The reply's ``page`` is the whole state after it: for ``draw`` the new page, for ``recall`` the page of the book
    whose index is ``recalled``, else the page the conversation had. Ids that stay keep their meaning; a new character
    gets an id of ``conversation.book.fresh_ids``. What was not understood is asked or refused, never dropped silently.
    A screenwriter keeps nothing between calls: everything it may know is in the conversation.
    """

    def read(self, message: Message, conversation: Conversation, *, seen: Page | None = None) -> Reply:
        """Return the reply to a message.

        Args:
            message: what the user said; its text is clean, and empty only beside a picture.
            conversation: everything before it; after an upload that was read, its page is the one the picture shows.
            seen: what a reader found in the picture that came with the message (no characters: nothing), or None if
                there was no picture or nobody read it. Answering it is the screenwriter's, and nobody else's.

        Raises:
            DialogueError: for a message that cannot be accepted, or a model that could not be asked.
        """
        ...
