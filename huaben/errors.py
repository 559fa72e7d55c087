"""The exception tree. Every error says what was found, what was expected, and what to do next.

::

    HuabenError
    ├── ConfigError            a setting that cannot be used            (ValueError)
    ├── ShapeError             a tensor or picture of the wrong shape   (ValueError)
    ├── CheckpointError        a model folder or weights file
    ├── DataError              a picture, a script line, a data file
    ├── StoreError             a session folder: locked, full, unreadable
    ├── PromptBookError        an impossible book or edit
    │   └── PromptBookParseError
    ├── DialogueError          a message that cannot be understood or accepted
    │   └── ReplyFormatError   a model's reply that does not parse (the raw text is kept)
    ├── GenerationError        a picture that could not be made
    │   ├── DeviceMemoryError
    │   └── Cancelled
    ├── MissingDependencyError an optional package                      (ImportError)
    └── UsageError             a wrong command line (exit code 2)
"""

from __future__ import annotations


class HuabenError(Exception):
    """Base of every error huaben raises on purpose.

    Args:
        message: what was found and what was expected.
        hint: what to do next; shown on its own line.
    """

    code = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; hint: {self.hint}" if self.hint else self.message


class ConfigError(HuabenError, ValueError):
    """A setting that cannot be used."""

    code = "config"


class ShapeError(HuabenError, ValueError):
    """A tensor or picture of the wrong shape."""

    code = "shape"


class CheckpointError(HuabenError):
    """A model folder or weights file that cannot be read or does not fit the model."""

    code = "checkpoint"


class DataError(HuabenError):
    """A picture, a script line or a data file that cannot be used."""

    code = "data"


class StoreError(HuabenError):
    """A session folder that is locked, full or unreadable."""

    code = "store"


class PromptBookError(HuabenError):
    """A prompt book or an edit that cannot exist."""

    code = "promptbook"


class PromptBookParseError(PromptBookError):
    """Text that is not a prompt book; ``line`` is the offending line, from 1."""

    code = "promptbook_parse"

    def __init__(self, message: str, *, hint: str = "", line: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.line = line


class DialogueError(HuabenError):
    """A message that cannot be accepted."""

    code = "dialogue"


class ReplyFormatError(DialogueError):
    """A model's reply that does not parse; ``raw`` keeps it."""

    code = "reply_format"

    def __init__(self, message: str, *, hint: str = "", raw: str = "") -> None:
        super().__init__(message, hint=hint)
        self.raw = raw


class GenerationError(HuabenError):
    """A picture that could not be made."""

    code = "generation"


class DeviceMemoryError(GenerationError):
    """Not enough memory on the device."""

    code = "memory"


class Cancelled(GenerationError):
    """The caller asked to stop."""

    code = "cancelled"


class MissingDependencyError(HuabenError, ImportError):
    """An optional package that is not installed or does not load."""

    code = "missing_dependency"


class UsageError(HuabenError):
    """A wrong command line (exit code 2)."""

    code = "usage"
