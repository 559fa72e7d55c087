"""One line of progress on stderr, in a terminal only."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .texts import tell

if TYPE_CHECKING:
    from ..painting import Progress


class Steps:
    """Shows which step of which attempt is done, and wipes the line at the end.

    Args:
        attempts: pictures painted at most.
        loading: say at once that models are being loaded.
    """

    def __init__(self, *, attempts: int, loading: bool = False) -> None:
        self.attempts, self.loading = attempts, loading
        self.stream = sys.stderr
        self.shown = 0

    def __enter__(self) -> Self:
        """Begin."""
        self._show(tell("loading" if self.loading else "thinking"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Wipe the line."""
        self._show("")

    def step(self, attempt: int, progress: Progress) -> None:
        """Show one step."""
        text = tell("painting", step=progress.step, steps=progress.steps)
        if attempt:
            text = f"{tell('attempt', number=attempt + 1, count=self.attempts)} {text}"
        self._show(text)

    def _show(self, text: str) -> None:
        """Replace the line."""
        if not self.stream.isatty():
            return
        self.stream.write("\r" + " " * self.shown + "\r" + text)
        self.stream.flush()
        self.shown = 2 * len(text)
