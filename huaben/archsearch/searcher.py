"""The ask-and-tell contract that Arch-Graph and every baseline keep.

::

    while not search.done():
        for trial in search.ask(4):
            search.tell(trial.id, train(trial.arch))
    print(search.result().best)

What holds for every searcher: the budget is never exceeded; two isomorphic architectures are never both proposed, and
what is running is not proposed again; telling the same outcome twice changes nothing and telling another one is an
error; a metric that is not a finite number is a failure, never a label; a failed architecture is tried again
``max_retries`` times and then given up; every call may come from any thread (a call waits while another one fits).
After :meth:`Searcher.save` every event is on the disk before the call returns, and :meth:`Searcher.load` goes on exactly
where the log ends: nothing random is kept, since each round draws from streams named by seed and round.

Source: sections 1.9 and 4.4 of our reading of Arch-Graph (arXiv 2204.05941); the paper does not describe the loop.
"""

from __future__ import annotations

import json
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ..config import Config
from ..errors import CheckpointError, ConfigError, DataError
from ..files import write_bytes
from ..rng import check_seed, numpy_stream
from .base import Arch, SearchSpace
from .candidates import Candidates
from .spaces_json import load_space
from .task import TaskSpec
from .trials import OUTCOMES, State, Trial, TrialLog, round_event, usable

MANIFEST_NAME = "search.json"
CANDIDATES_NAME = "candidates.json"
"""Present where only given architectures may be proposed: their choices."""
FORMAT_VERSION = 1

Proposal = tuple[Arch, str]
"""An architecture and why it is proposed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig(Config):
    """What every searcher has in common.

    Attributes:
        budget: evaluations at most; every started one counts, failures too.
        max_retries: further attempts at an architecture that failed or was lost.
        refund_failed: failed and lost evaluations cost nothing.
        failed_is_bad: learn from a given-up architecture as one a little worse than the worst finished one.
        max_enumerate: spaces of at most so many architectures are listed; others are sampled.
        pool_size: candidates drawn per round where the space is sampled.
    """

    budget: int = 50
    max_retries: int = 1
    refund_failed: bool = False
    failed_is_bad: bool = False
    max_enumerate: int = 5000
    pool_size: int = 4096

    def __post_init__(self) -> None:
        for name, least in (("budget", 1), ("max_retries", 0), ("max_enumerate", 0), ("pool_size", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name}={value!r}, expected an integer of at least {least}")


@dataclass(frozen=True, slots=True)
class Ranked:
    """One place in a ranking.

    Attributes:
        arch, text: the architecture.
        score: mean probability of beating another candidate, 0 to 1, or a baseline's own score; higher is better.
        spread: standard deviation of ``score`` between the members of the ensemble; None without one.
        value: its metric where it was evaluated.
    """

    arch: Arch
    text: str
    score: float
    spread: float | None = None
    value: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        values = {"text": self.text, "arch": list(self.arch), "score": round(self.score, 6)}
        return {**values, "spread": None if self.spread is None else round(self.spread, 6), "value": self.value}


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search has found so far.

    Attributes:
        method, task, direction, metric_mode, seed: what was searched, and how.
        best: the best finished trial; None if none finished.
        trials: all of them, by id.
        ranking: candidates best-first, evaluated ones among them; the first few hundred in large spaces.
        budget, used: evaluations allowed and started.
        source_evaluations: values of other tasks that were learned from; they are not part of ``used``.
        cpu_seconds: of proposing, by this process.
        diagnostics: the method's own numbers, such as the weight that cycle removal kept.
        notes: what the user should know: fallbacks, ignored sources.
    """

    method: str
    task: str
    direction: str
    metric_mode: str
    seed: int
    best: Trial | None
    trials: tuple[Trial, ...]
    ranking: tuple[Ranked, ...]
    budget: int
    used: int
    source_evaluations: int
    cpu_seconds: float
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def best_so_far(self) -> list[float | None]:
        """Return the best value after each started trial, in the task's own orientation; None before the first."""
        curve: list[float | None] = []
        best: float | None = None
        better = max if self.direction == "max" else min
        for trial in self.trials:
            if trial.round < 0 or trial.state == "proposed":
                continue
            if trial.value is not None:
                best = trial.value if best is None else better(best, trial.value)
            curve.append(best)
        return curve

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "method": self.method,
            "task": self.task,
            "direction": self.direction,
            "metric_mode": self.metric_mode,
            "seed": self.seed,
            "best": None if self.best is None else self.best.to_dict(),
            "trials": [trial.to_dict() for trial in self.trials],
            "ranking": [place.to_dict() for place in self.ranking],
            "budget": self.budget,
            "used": self.used,
            "source_evaluations": self.source_evaluations,
            "cpu_seconds": round(self.cpu_seconds, 3),
            "diagnostics": dict(self.diagnostics),
            "notes": list(self.notes),
        }

    def save(self, path: str | Path) -> None:
        """Write the result as JSON."""
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=2, sort_keys=True) + "\n"
        write_bytes(Path(path), text.encode("utf-8"))


class Searcher(ABC):
    """Base of every searcher: budget, trials, persistence; a subclass says what to propose.

    Args:
        space: what is searched.
        task: name and direction of the metric.
        config: settings; the subclass's ``config_class``.
        seed: of everything random.
        candidates: listed candidates of ``space``, to share the work between searches; made from ``space`` if absent.

    Raises:
        ConfigError: for a wrong seed or config.
    """

    method: ClassVar[str]
    config_class: ClassVar[type[SearchConfig]] = SearchConfig

    def __init__(
        self,
        space: SearchSpace,
        task: TaskSpec,
        *,
        config: SearchConfig | None = None,
        seed: int = 0,
        candidates: Candidates | None = None,
    ) -> None:
        self.space, self.task, self.seed = space, task, check_seed(seed)
        settings = self.config_class() if config is None else config
        if not isinstance(settings, self.config_class):
            raise ConfigError(
                f"{type(self).__name__} takes a {self.config_class.__name__}, found {type(settings).__name__}"
            )
        self.config = settings
        self.candidates = candidates or Candidates(
            space, limit=settings.max_enumerate, pool_size=settings.pool_size, seed=seed
        )
        self.log = TrialLog(settings.max_retries)
        self.notes: list[str] = []
        self.cpu_seconds = 0.0
        self.folder: Path | None = None
        self._exhausted = False
        self._lock = threading.RLock()

    @abstractmethod
    def _propose(self, limit: int) -> Sequence[Proposal]:
        """Return at most ``limit`` architectures that are not in the log, best first: the next round.

        A pure function of the log, the seed and the settings. Empty if the space has nothing left.
        """

    def _places(self) -> tuple[Sequence[Ranked], Mapping[str, Any]]:
        """Return the ranking and diagnostics; here what was evaluated, best first."""
        rows = sorted(self.labels(), key=lambda row: (-row[1], row[0].key))
        return [Ranked(trial.arch, trial.text, value, None, trial.value) for trial, value in rows], {}

    @property
    def source_evaluations(self) -> int:
        return 0

    # ------------------------------------------------------------------------------------------------ ask and tell

    def ask(self, n: int = 1) -> list[Trial]:
        """Return up to ``n`` trials to evaluate; fewer where budget or space end, none where nothing is left.

        Raises:
            ConfigError: for ``n`` below 1.
            StoreError: if the folder cannot be written; nothing was handed out then.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ConfigError(f"ask({n!r}), expected an integer of at least 1")
        with self._lock:
            handed: list[Trial] = []
            while len(handed) < n and self.left > 0:
                queue = self.log.queued()[: min(n - len(handed), self.left)]
                if queue:
                    ids = [trial.id for trial in queue]
                    self.log.record({"event": "ask", "ids": ids})
                    handed += [self.log.trials[number] for number in ids]
                elif not self._plan():
                    break
            return handed

    def tell(self, trial_id: int, value: float | None = None, *, state: State = "complete", error: str = "") -> Trial:
        """Take an outcome.

        Args:
            trial_id: as asked.
            value: the metric; anything but a finite number makes the trial failed.
            state: complete, failed, pruned or lost.
            error: why it did not complete.

        Returns:
            The finished trial.

        Raises:
            DataError: for an unknown trial, one that was not asked for, or an outcome other than the one told before.
            StoreError: if the folder cannot be written; nothing was taken then.
        """
        if state not in OUTCOMES:
            raise DataError(f"state={state!r}, expected one of {', '.join(OUTCOMES)}")
        number: float | None = None
        if state == "complete":
            number, problem = usable(value)
            if number is None:
                state, error = "failed", error or problem
        elif value is not None:
            raise DataError(f"trial {trial_id} is {state} and has value={value!r}", hint="tell a value or a failure")
        with self._lock:
            trial = self._trial(trial_id)
            if trial.state == "proposed":
                raise DataError(
                    f"trial {trial_id} was not asked for", hint="ask first; retries have an id of their own"
                )
            if trial.finished:
                if (trial.state, trial.value) == (state, number):
                    return trial
                found = f"{trial.state}" + ("" if trial.value is None else f" with {trial.value}")
                told = f"{state}" + ("" if number is None else f" with {number}")
                raise DataError(f"trial {trial_id} is {found} already, told {told}", hint="an outcome is told once")
            self.log.record({"event": "tell", "id": trial.id, "state": state, "value": number, "error": str(error)})
            return self.log.trials[trial.id]

    def observe(self, arch: Arch, value: float | None = None, *, state: State = "complete", error: str = "") -> Trial:
        """Take a result that was not asked for, such as one of an earlier study; it costs no budget.

        Raises:
            ConfigError, DataError: for an architecture that is not in the space, or no outcome.
        """
        arch = self.space.check(arch)
        if state not in (*OUTCOMES, "running"):
            raise DataError(f"state={state!r}, expected running or one of {', '.join(OUTCOMES)}")
        number: float | None = None
        if state == "complete":
            number, problem = usable(value)
            if number is None:
                state, error = "failed", error or problem
        with self._lock:
            trial = Trial(
                id=len(self.log.trials),
                arch=arch,
                text=self.space.format(arch),
                key=self.space.canonical(arch),
                origin="observed",
                round=-1,
                state=state,
                value=number,
                error=error,
            )
            self.log.record({"event": "observe", "trial": trial.to_dict()})
            return trial

    def done(self) -> bool:
        """Return whether nothing is running and nothing more would be proposed."""
        with self._lock:
            if any(trial.round >= 0 for trial in self.log.running()):
                return False
            return self.left <= 0 or (not self.log.queued() and self._spent())

    @property
    def used(self) -> int:
        """Evaluations started so far."""
        return self.log.started(refund_failed=self.config.refund_failed)

    @property
    def left(self) -> int:
        """Evaluations that may still be started."""
        return self.config.budget - self.used

    def queued(self) -> int:
        """Return how many trials can be asked for without planning another round."""
        with self._lock:
            return min(len(self.log.queued()), max(self.left, 0))

    def pending(self) -> list[Trial]:
        """Return the trials that were asked for and not told: after a crash, those to evaluate again."""
        with self._lock:
            return [trial for trial in self.log.running() if trial.round >= 0]

    def labels(self) -> list[tuple[Trial, float]]:
        """Return finished trials with their value oriented higher-is-better, by id."""
        sign = 1.0 if self.task.direction == "max" else -1.0
        rows = [(trial, sign * trial.value) for trial in self.log.complete() if trial.value is not None]
        if rows and self.config.failed_is_bad:
            values = np.asarray([value for _, value in rows])
            bad = float(values.min() - max(values.std(), 1e-9))
            rows += [(trial, bad) for trial in self.log.given_up()]
        return rows

    def result(self) -> SearchResult:
        """Return what has been found so far; may be called at any time."""
        with self._lock:
            rows = [(trial, value) for trial, value in self.labels() if trial.state == "complete"]
            places, diagnostics = self._timed(self._places)
            return SearchResult(
                method=self.method,
                task=self.task.name,
                direction=self.task.direction,
                metric_mode=self.task.metric_mode,
                seed=self.seed,
                best=max(rows, key=lambda row: (row[1], -row[0].id))[0] if rows else None,
                trials=tuple(self.log.trials),
                ranking=tuple(places),
                budget=self.config.budget,
                used=self.used,
                source_evaluations=self.source_evaluations,
                cpu_seconds=self.cpu_seconds,
                diagnostics=diagnostics,
                notes=tuple(self.notes),
            )

    def stream(self, *names: str | int) -> np.random.Generator:
        """Return the random stream of this seed, method, round and purpose."""
        return numpy_stream(self.seed, "archsearch", self.method, self.log.rounds, *names)

    def note(self, text: str) -> None:
        """Keep something the user should know, once, and warn."""
        if text not in self.notes:
            self.notes.append(text)
            warnings.warn(text, UserWarning, stacklevel=3)

    # ------------------------------------------------------------------------------------------------- persistence

    def save(self, folder: str | Path) -> None:
        """Write the search into a folder and keep every later event there.

        The folder holds ``search.json`` (method, space, task, settings), ``trials.jsonl`` (append-only) and what the
        method needs, as JSON and safetensors.

        Raises:
            StoreError: if the folder cannot be written.
            DataError: if it holds another search.
        """
        folder = Path(folder)
        with self._lock:
            manifest = folder / MANIFEST_NAME
            if folder != self.folder and manifest.exists():
                raise DataError(f"{folder} holds a search already", hint="load it, or choose another folder")
            self._save_state(folder)
            if self.candidates.given:
                given = json.dumps([list(arch) for arch in self.candidates.archs])
                write_bytes(folder / CANDIDATES_NAME, given.encode("ascii"))
            self.log.attach(folder)
            values = {
                "format": "huaben search",
                "format_version": FORMAT_VERSION,
                "method": self.method,
                "space": self.space.definition(),
                "task": self.task.to_dict(),
                "seed": self.seed,
                "config": self.config.to_dict(),
            }
            text = json.dumps(values, ensure_ascii=False, indent=2, sort_keys=True) + "\n"
            write_bytes(manifest, text.encode("utf-8"))
            self.folder = folder

    @classmethod
    def load(cls, folder: str | Path, *, space: SearchSpace | None = None) -> Self:
        """Open a saved search and go on writing to its folder.

        Args:
            folder: as given to :meth:`save`.
            space: needed only for a space of your own class; others are rebuilt from the folder.

        Raises:
            CheckpointError: if the folder holds no search, or one of another method or version.
            DataError: for a damaged log. A last line that was only half written is cut off, and noted.
        """
        folder = Path(folder)
        values = read_manifest(folder)
        if values["method"] != cls.method:
            raise CheckpointError(f"{folder} is a {values['method']!r} search, expected {cls.method!r}")
        search = cls._restore(folder, values, space or load_space(values["space"]))
        if (folder / CANDIDATES_NAME).is_file():
            search._restrict(_read_candidates(folder / CANDIDATES_NAME))
        if search.log.replay(folder / "trials.jsonl"):
            search.note(f"the last line of {folder / 'trials.jsonl'} was incomplete and was removed")
        search.folder = folder
        return search

    @classmethod
    def _restore(cls, folder: Path, values: Mapping[str, Any], space: SearchSpace) -> Self:
        """Build the searcher without its log; subclasses that keep more read it here."""
        task = TaskSpec.from_dict(values["task"])
        return cls(space, task, config=cls.config_class.from_dict(values["config"]), seed=values["seed"])

    def _restrict(self, archs: Sequence[Arch]) -> None:
        """Propose only these architectures."""
        self.candidates = Candidates(self.space, pool_size=self.config.pool_size, seed=self.seed, archs=archs)

    def _save_state(self, folder: Path) -> None:  # noqa: B027 - nothing more to keep is a proper answer
        """Write what the constructor needs besides the manifest."""

    # --------------------------------------------------------------------------------------------------- the inside

    def _trial(self, number: int) -> Trial:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(self.log.trials):
            raise DataError(f"there is no trial {number!r}", hint=f"trials are 0 to {len(self.log.trials) - 1}")
        return self.log.trials[number]

    def _plan(self) -> bool:
        """Plan one round; False if there is nothing left."""
        proposals = self._timed(lambda: self._propose(self.left))
        keys: set[str] = set()
        trials: list[Trial] = []
        for arch, origin in proposals:
            key = self.candidates.key(arch)
            if key not in self.log.keys and key not in keys and len(trials) < self.left:
                keys.add(key)
                number = len(self.log.trials) + len(trials)
                trials.append(Trial(number, arch, self.space.format(arch), key, origin, self.log.rounds))
        if not trials:
            self._exhausted = True
            return False
        self.log.record(round_event(self.log.rounds, trials))
        return True

    def _spent(self) -> bool:
        """Return whether every architecture has been proposed."""
        return self._exhausted or (self.candidates.listed and len(self.log.keys) >= len(self.candidates))

    def _timed(self, work: Any) -> Any:
        started = time.process_time()
        try:
            return work()
        finally:
            self.cpu_seconds += time.process_time() - started


def _read_candidates(path: Path) -> list[Arch]:
    """Return the architectures that a search is restricted to."""
    try:
        return [tuple(int(choice) for choice in arch) for arch in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", hint="restore it from a copy") from error


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read ``search.json``.

    Raises:
        CheckpointError: if it is absent, damaged, or of another version.
    """
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        raise CheckpointError(f"no {MANIFEST_NAME} in {folder}", hint="point to a folder written by save")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict) or values.get("format") != "huaben search":
        raise CheckpointError(f"{path} is no search", hint="point to a folder written by save")
    if values.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format_version {values.get('format_version')!r}, this huaben reads {FORMAT_VERSION}",
            hint="use the huaben that wrote it",
        )
    missing = [name for name in ("method", "space", "task", "seed", "config") if name not in values]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}", hint="restore the file from a copy")
    return values
