"""The seam to chat models: messages and a JSON schema in, text out as it comes. No torch, no network here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatMessage:
    """One message to or from a chat model.

    Attributes:
        role: who says it.
        text: the words.
        images: PNG or JPEG bytes shown with it; only for models that see pictures.
    """

    role: Role
    text: str
    images: tuple[bytes, ...] = ()


@runtime_checkable
class ChatModel(Protocol):
    """Any chat model.

    The stream may be closed at any time, which ends the answer and frees what it holds. A schema is a wish: a model
    that can be held to it is, and the reader of the text must not rely on it.
    """

    @property
    def name(self) -> str:
        """What to call it in reports and messages."""
        ...

    @property
    def sees_pictures(self) -> bool:
        """Whether it reads ``ChatMessage.images``."""
        ...

    def stream(self, messages: Sequence[ChatMessage], *, schema: Mapping[str, Any] | None = None) -> Iterator[str]:
        """Yield the answer's text in pieces.

        Args:
            messages: oldest first; the last one is the user's.
            schema: JSON schema of the answer, or None for free text.

        Raises:
            GenerationError: if no answer can be had: no connection, a time-out, a refused prompt.
            ConfigError: if the model refuses how it is set up: a wrong key, an unknown model.
        """
        ...


MAX_ANSWER = 100_000
"""Characters of an answer after which reading stops: an endless answer is no answer."""


def whole_answer(model: ChatModel, messages: Sequence[ChatMessage], *, schema: Mapping[str, Any] | None = None) -> str:
    """Return a model's whole answer, cut after :data:`MAX_ANSWER` characters."""
    parts: list[str] = []
    length = 0
    for part in model.stream(messages, schema=schema):
        parts.append(part)
        length += len(part)
        if length > MAX_ANSWER:
            break
    return "".join(parts)[:MAX_ANSWER]
