"""Run a search with your own evaluation: in this process, in threads, in processes that may be killed, or on Ray.

``evaluate`` gets a :class:`~huaben.archsearch.trials.Trial` and returns the metric. What it raises makes the trial
failed (:class:`Pruned`: pruned, :class:`Lost`: lost); no answer in time, or a dead worker, makes it lost. Failed and lost
ones are tried again as the searcher's ``max_retries`` says. Trials that a killed run left running are evaluated first.
"""

from __future__ import annotations

import multiprocessing
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ..errors import ConfigError, DataError
from .searcher import Searcher, SearchResult
from .trials import State, Trial

Evaluate: TypeAlias = Callable[[Trial], float]
Executor: TypeAlias = Literal["local", "process", "ray"]
EXECUTORS: tuple[Executor, ...] = ("local", "process", "ray")
POLL_S = 0.05


class Pruned(Exception):
    """Raised by an evaluation that was stopped early on purpose: no label, no second attempt."""


class Lost(Exception):
    """Raised by an evaluation whose outcome will not be known: its worker vanished, or was too late."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an evaluation ended, before the searcher looks at the value."""

    state: State
    value: Any = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class SearchProgress:
    """One finished trial, and where the search stands.

    Attributes:
        trial: with its outcome.
        used, budget: evaluations started and allowed.
    """

    trial: Trial
    used: int
    budget: int


Call: TypeAlias = Callable[[Trial], Outcome]


def run_search(
    searcher: Searcher,
    evaluate: Evaluate,
    *,
    parallel: int = 1,
    executor: Executor = "local",
    timeout: float | None = None,
    wait_for_round: bool = False,
    on_trial: Callable[[SearchProgress], None] | None = None,
) -> SearchResult:
    """Evaluate until the searcher is done.

    Args:
        searcher: save it to a folder first, and a killed run goes on from there with :meth:`Searcher.load`.
        evaluate: trial to metric. With "process" and "ray" it must be importable or picklable in the workers.
        parallel: evaluations at a time.
        executor: "local" runs in this process (in threads if parallel or timed), "process" starts one process per
            trial, "ray" one Ray task per trial.
        timeout: seconds per trial; a process or Ray task is killed then, a thread can only be left behind.
        wait_for_round: start a round only when the last one is told, so that the result does not depend on timing.
        on_trial: told after every trial, in this thread.

    Raises:
        ConfigError: for an impossible setting.
        MissingDependencyError: for "ray" where Ray is not installed.
        StoreError: if the search's folder cannot be written.
    """
    if executor not in EXECUTORS:
        raise ConfigError(f"executor={executor!r}, expected one of {', '.join(EXECUTORS)}")
    if isinstance(parallel, bool) or not isinstance(parallel, int) or parallel < 1:
        raise ConfigError(f"parallel={parallel!r}, expected an integer of at least 1")
    if timeout is not None and not timeout > 0:
        raise ConfigError(f"timeout={timeout!r}, expected seconds above 0, or None")
    stop = threading.Event()
    call = _calls(executor, evaluate, timeout, stop)
    inline = executor == "local" and parallel == 1 and timeout is None
    left_over, ended, running = deque(searcher.pending()), queue.Queue[tuple[Trial, Outcome]](), 0
    try:
        while True:
            while running < parallel:
                if left_over:
                    trial = left_over.popleft()
                elif wait_for_round and running and not searcher.queued():
                    break
                elif asked := searcher.ask(1):
                    trial = asked[0]
                else:
                    break
                running += 1
                if inline:
                    ended.put((trial, call(trial)))
                else:
                    work = threading.Thread(target=_into, args=(ended, call, trial), daemon=True)
                    work.start()
            if not running:
                return searcher.result()
            trial, outcome = _take(ended)
            running -= 1
            told = _tell(searcher, trial, outcome)
            if on_trial is not None:
                on_trial(SearchProgress(told, searcher.used, searcher.config.budget))
    finally:
        stop.set()


def _take(ended: queue.Queue[tuple[Trial, Outcome]]) -> tuple[Trial, Outcome]:
    """Wait for an outcome in short pieces, so that Ctrl-C is heard on every system."""
    while True:
        try:
            return ended.get(timeout=1.0)
        except queue.Empty:
            continue


def _tell(searcher: Searcher, trial: Trial, outcome: Outcome) -> Trial:
    """Tell an outcome; something that is no number is the evaluation's failure, not the search's."""
    try:
        return searcher.tell(trial.id, outcome.value, state=outcome.state, error=outcome.error)
    except DataError as error:
        return searcher.tell(trial.id, state="failed", error=error.message)


def _into(ended: queue.Queue[tuple[Trial, Outcome]], call: Call, trial: Trial) -> None:
    ended.put((trial, call(trial)))


def _calls(executor: Executor, evaluate: Evaluate, timeout: float | None, stop: threading.Event) -> Call:
    """Return the function that evaluates one trial where ``executor`` says."""
    if executor == "ray":
        from .ray_runner import ray_call

        return ray_call(evaluate, timeout)
    if executor == "process":
        return lambda trial: _in_process(evaluate, trial, timeout, stop)
    if timeout is None:
        return lambda trial: attempt(evaluate, trial)
    return lambda trial: _in_thread(evaluate, trial, timeout)


def attempt(evaluate: Evaluate, trial: Trial) -> Outcome:
    """Evaluate here, and report whatever happens."""
    try:
        return Outcome("complete", evaluate(trial))
    except Pruned as error:
        return Outcome("pruned", error=str(error))
    except Lost as error:
        return Outcome("lost", error=str(error))
    except Exception as error:  # any: the user's code may raise anything, and one trial must not end the search
        return Outcome("failed", error=f"{type(error).__name__}: {error}")


def late(timeout: float) -> Outcome:
    """Return the outcome of a trial that did not answer in time."""
    return Outcome("lost", error=f"no answer within {timeout:g} s")


def _in_thread(evaluate: Evaluate, trial: Trial, timeout: float) -> Outcome:
    """Evaluate in a thread that is left behind if it is late."""
    box: queue.Queue[Outcome] = queue.Queue()
    threading.Thread(target=lambda: box.put(attempt(evaluate, trial)), daemon=True).start()
    try:
        return box.get(timeout=timeout)
    except queue.Empty:
        return late(timeout)


def _in_process(evaluate: Evaluate, trial: Trial, timeout: float | None, stop: threading.Event) -> Outcome:
    """Evaluate in a process of its own, killed if it is late or the search ends."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_process_main, args=(sender, evaluate, trial), daemon=True)
    try:
        worker.start()
    except Exception as error:  # any: an evaluation that cannot be pickled raises what its parts raise
        return Outcome("failed", error=f"it cannot be sent to a process: {type(error).__name__}: {error}")
    finally:
        sender.close()
    end = None if timeout is None else time.monotonic() + timeout
    try:
        while True:
            if receiver.poll(POLL_S):
                return receiver.recv()
            if not worker.is_alive() and not receiver.poll():
                return Outcome("lost", error=f"its process ended with exit code {worker.exitcode}")
            if end is not None and timeout is not None and time.monotonic() > end:
                return late(timeout)
            if stop.is_set():
                return Outcome("lost", error="the search was stopped")
    except EOFError:
        worker.join()
        return Outcome("lost", error=f"its process ended with exit code {worker.exitcode}")
    finally:
        receiver.close()
        if worker.is_alive():
            worker.join(1.0 if not stop.is_set() else 0.0)
        if worker.is_alive():
            worker.kill()
        worker.join()


def _process_main(sender: Any, evaluate: Evaluate, trial: Trial) -> None:
    """Evaluate and send the outcome; a value that cannot be sent is described instead."""
    outcome = attempt(evaluate, trial)
    try:
        sender.send(outcome)
    except Exception as error:  # any: pickling runs the value's own code
        sender.send(Outcome("failed", error=f"its value cannot be sent back: {type(error).__name__}: {error}"))
    finally:
        sender.close()
