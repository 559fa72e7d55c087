"""Trials and their log: every proposal, start and outcome as one JSON line that is on the disk before it counts.

The log is the whole state of a search. Proposals are a pure function of it (and of seed, settings and source weights),
so a search that was killed and loaded again proposes what it would have proposed without the interruption.

::

    {"event": "round", "round": 0, "trials": [{"id": 0, "arch": [...], ...}, ...]}   planned, all or none
    {"event": "ask", "ids": [0, 1]}                                                  handed out: started
    {"event": "tell", "id": 0, "state": "complete", "value": 56.1, "error": ""}      outcome
    {"event": "observe", "trial": {...}}                                             a result from elsewhere
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ..errors import DataError
from ..files import append_line, store_error, write_bytes
from .base import Arch

State: TypeAlias = Literal["proposed", "running", "complete", "failed", "pruned", "lost"]
STATES: tuple[State, ...] = ("proposed", "running", "complete", "failed", "pruned", "lost")
OUTCOMES: tuple[State, ...] = ("complete", "failed", "pruned", "lost")
TRIALS_NAME = "trials.jsonl"


@dataclass(frozen=True, slots=True)
class Trial:
    """One evaluation of one architecture.

    Attributes:
        id: number from 0, unique in a search; a repeated evaluation is a new trial.
        arch: choices.
        text: the space's own notation of ``arch``.
        key: canonical form; isomorphic architectures share it.
        origin: why it was proposed: "start", "top", "explore", "retry", "observed", or a baseline's own word.
        round: the round of proposals it belongs to; -1 if it came from elsewhere.
        attempt: 1, or more after a failure.
        state: proposed -> running -> complete, failed, pruned (stopped early on purpose) or lost (its worker vanished).
        value: metric as told, in the task's own orientation; None unless complete.
        error: what went wrong.
    """

    id: int
    arch: Arch
    text: str
    key: str
    origin: str
    round: int
    attempt: int = 1
    state: State = "proposed"
    value: float | None = None
    error: str = ""

    @property
    def finished(self) -> bool:
        return self.state in OUTCOMES

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**dataclasses.asdict(self), "arch": list(self.arch)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trial:
        """Build a trial from :meth:`to_dict`; raises DataError for anything else."""
        try:
            known = {field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values}
            trial = cls(**{**known, "arch": tuple(int(choice) for choice in values["arch"])})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"not a trial: {error}", hint="the log was written by another program or version"
            ) from error
        if trial.state not in STATES:
            raise DataError(f"trial {trial.id} is {trial.state!r}, expected one of {', '.join(STATES)}")
        return trial


class TrialLog:
    """The trials of one search, in memory and, once attached, in a file that only grows.

    Not locked: the searcher that owns it is.

    Args:
        max_retries: how often a failed or lost architecture is proposed again before it is given up.
    """

    def __init__(self, max_retries: int = 1) -> None:
        self.max_retries = max_retries
        self.trials: list[Trial] = []
        self.keys: set[str] = set()
        self.rounds = 0
        self.path: Path | None = None
        self._events: list[str] = []

    def record(self, event: Mapping[str, Any]) -> None:
        """Write one event to the disk, where attached, and apply it.

        Raises:
            StoreError: if it cannot be written; nothing has changed then.
        """
        line = json.dumps(event, ensure_ascii=False, allow_nan=False)
        if self.path is not None:
            append_line(self.path, line)
        self._apply(json.loads(line))
        self._events.append(line)

    def attach(self, folder: Path) -> None:
        """Write every event so far into ``folder`` and go on writing there.

        Raises:
            StoreError: if the folder cannot be written.
        """
        path = folder / TRIALS_NAME
        if path != self.path:
            write_bytes(path, "".join(f"{line}\n" for line in self._events).encode("utf-8"))
            self.path = path

    def replay(self, path: Path) -> bool:
        """Read a log, cut off a line that was only half written, and go on writing there.

        Returns:
            Whether a torn last line was removed.

        Raises:
            DataError: for a damaged line before the last, with its number.
            StoreError: if the file cannot be read.
        """
        try:
            data = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise store_error("read", path, error) from error
        whole, torn = _whole_lines(data)
        for number, line in enumerate(whole, 1):
            try:
                self._apply(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, IndexError, DataError) as error:
                reason = error.message if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
                raise DataError(
                    f"{path}, line {number} is not an event of a search ({reason})",
                    hint="restore the file from a copy, or start a new folder",
                ) from error
            self._events.append(line.decode("utf-8"))
        if torn:
            try:
                with path.open("r+b") as file:
                    file.truncate(sum(len(line) + 1 for line in whole))
            except OSError as error:
                raise store_error("written", path, error) from error
        self.path = path
        return torn

    def queued(self) -> list[Trial]:
        """Return planned trials that nobody has asked for, retries first."""
        waiting = [trial for trial in self.trials if trial.state == "proposed"]
        return sorted(waiting, key=lambda trial: (trial.attempt == 1, trial.id))

    def running(self) -> list[Trial]:
        """Return trials that were asked for and not told."""
        return [trial for trial in self.trials if trial.state == "running"]

    def complete(self) -> list[Trial]:
        """Return trials with a value, by id: whatever the order in which they finished."""
        return [trial for trial in self.trials if trial.state == "complete"]

    def given_up(self) -> list[Trial]:
        """Return the last failed attempt of every architecture that will not be tried again."""
        last = {trial.key: trial for trial in self.trials}
        return [trial for trial in last.values() if trial.state in ("failed", "lost")]

    def started(self, *, refund_failed: bool = False) -> int:
        """Return how many evaluations were started, those from elsewhere left out."""
        free: tuple[str, ...] = ("proposed", "failed", "lost") if refund_failed else ("proposed",)
        return sum(trial.round >= 0 and trial.state not in free for trial in self.trials)

    def _apply(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "round":
            for values in event["trials"]:
                self._add(Trial.from_dict(values))
            self.rounds = int(event["round"]) + 1
        elif kind == "ask":
            for number in event["ids"]:
                self.trials[number] = dataclasses.replace(self.trials[number], state="running")
        elif kind == "tell":
            self._finish(int(event["id"]), event["state"], event["value"], event["error"])
        elif kind == "observe":
            self._add(Trial.from_dict(event["trial"]))
        else:
            raise DataError(f"event {kind!r} is unknown, expected round, ask, tell or observe")

    def _add(self, trial: Trial) -> None:
        if trial.id != len(self.trials):
            raise DataError(f"trial {trial.id} follows trial {len(self.trials) - 1}, expected {len(self.trials)}")
        self.trials.append(trial)
        self.keys.add(trial.key)

    def _finish(self, number: int, state: State, value: float | None, error: str) -> None:
        trial = dataclasses.replace(self.trials[number], state=state, value=value, error=error)
        self.trials[number] = trial
        if state in ("failed", "lost") and trial.round >= 0 and trial.attempt <= self.max_retries:
            again = dataclasses.replace(
                trial,
                id=len(self.trials),
                attempt=trial.attempt + 1,
                origin="retry",
                state="proposed",
                value=None,
                error="",
            )
            self._add(again)


def round_event(number: int, trials: Iterable[Trial]) -> dict[str, Any]:
    """Return the event that plans a round."""
    return {"event": "round", "round": number, "trials": [trial.to_dict() for trial in trials]}


def usable(value: object) -> tuple[float | None, str]:
    """Return a told metric as a finite number, or None and what is wrong with it.

    Raises:
        DataError: for something that is no number at all.
    """
    if value is None:
        return None, "no value"
    if isinstance(value, (str, bytes, bool)) or not hasattr(value, "__float__"):
        raise DataError(f"value={value!r} is a {type(value).__name__}, expected a number", hint="tell a float")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"value={value!r} is not a number ({error})", hint="tell a float") from error
    return (number, "") if math.isfinite(number) else (None, f"value is {number}")


def _whole_lines(data: bytes) -> tuple[Sequence[bytes], bool]:
    """Split a log into lines; the last one is torn if it has no end or is no JSON."""
    lines = data.split(b"\n")
    tail = lines.pop()
    if tail:
        return lines, True
    if lines:
        try:
            json.loads(lines[-1])
        except ValueError:
            return lines[:-1], True
    return lines, False
