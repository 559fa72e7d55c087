"""Chat models: messages and a JSON schema in, text out, piece by piece.

What a model says is data. Whoever asks parses it into types and never executes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message to a chat model.

    Attributes:
        role: system | user | assistant.
        text: its words.
        image: PNG bytes of a picture that goes with it, for models that see; others ignore it.
    """

    role: Role
    text: str
    image: bytes | None = None


@runtime_checkable
class ChatModel(Protocol):
    """Anything that continues a conversation.

    Attributes:
        name: for reports and error messages.
        sees: whether it reads pictures.
    """

    name: str
    sees: bool

    def stream(self, messages: Sequence[ChatMessage], *, schema: dict[str, Any] | None = None) -> Iterator[str]:
        """Yield the answer's text in pieces, in order.

        Args:
            messages: oldest first; the last one is the user's.
            schema: JSON schema the answer should satisfy; a model that cannot promise that answers freely, so the
                caller validates either way.

        Raises:
            GenerationError: if there is no answer (server down, time-out, out of memory).
            ConfigError: if the model refuses how it is set up (wrong key, unknown model).
        """
        ...


MAX_ANSWER = 100_000
"""Characters of an answer after which reading stops: an endless answer is no answer."""


def whole_answer(model: ChatModel, messages: Sequence[ChatMessage], *, schema: dict[str, Any] | None = None) -> str:
    """Return a model's whole answer, cut after :data:`MAX_ANSWER` characters."""
    parts: list[str] = []
    length = 0
    for part in model.stream(messages, schema=schema):
        parts.append(part)
        length += len(part)
        if length > MAX_ANSWER:
            break
    return "".join(parts)[:MAX_ANSWER]
