"""Running a search: threads, processes, failures, timeouts, and what is left after a crash."""

from __future__ import annotations

import importlib.machinery
import os
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest

from huaben.archsearch.baselines import RandomSearch
from huaben.archsearch.candidates import Candidates
from huaben.archsearch.cells import CellSpace
from huaben.archsearch.runner import Lost, Pruned, SearchProgress, run_search
from huaben.archsearch.searcher import SearchConfig
from huaben.archsearch.task import TaskSpec
from huaben.archsearch.trials import Trial
from huaben.errors import ConfigError, MissingDependencyError
from huaben.optional import is_available

SPACE = CellSpace(nodes=3, ops=("none", "skip", "conv"), edges=[(0, 1), (0, 2), (1, 2)], null_op="none")
CANDIDATES = Candidates(SPACE)


def make(**values: Any) -> RandomSearch:
    return RandomSearch(SPACE, TaskSpec("toy", "max"), config=SearchConfig(**values), candidates=CANDIDATES)


def total(trial: Trial) -> float:
    return float(sum(trial.arch))


def die(trial: Trial) -> float:
    if trial.id == 1:
        os._exit(3)
    return float(trial.id)


def sleep(trial: Trial) -> float:
    if trial.id == 0:
        time.sleep(60)
    return float(trial.id)


def test_it_runs_to_the_end_and_tells_progress() -> None:
    seen: list[SearchProgress] = []
    result = run_search(make(budget=8), total, on_trial=seen.append)
    assert [progress.used for progress in seen] == list(range(1, 9))
    assert result.best is not None and result.best.value == max(total(trial) for trial in result.trials)


def test_threads_run_at_the_same_time_and_never_more() -> None:
    now, most, lock = 0, 0, threading.Lock()

    def work(trial: Trial) -> float:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return total(trial)

    result = run_search(make(budget=12), work, parallel=3)
    assert most == 3
    assert result.used == 12
    assert len({trial.key for trial in result.trials}) == 12


def test_with_rounds_waited_for_the_result_does_not_depend_on_timing() -> None:
    def work(trial: Trial) -> float:
        time.sleep(0.001 * (trial.id % 5))
        return total(trial)

    one, two = (run_search(make(budget=15), work, parallel=p, wait_for_round=True) for p in (1, 4))
    assert [t.to_dict() for t in one.trials] == [t.to_dict() for t in two.trials]


def test_what_an_evaluation_raises_ends_the_trial_and_not_the_search() -> None:
    def work(trial: Trial) -> Any:
        if trial.id == 0:
            raise RuntimeError("out of memory")
        if trial.id == 1:
            raise Pruned("hopeless")
        if trial.id == 2:
            raise Lost("gone")
        return "text" if trial.id == 3 else 1.0

    result = run_search(make(budget=8, max_retries=0), work)
    assert [trial.state for trial in result.trials[:5]] == ["failed", "pruned", "lost", "failed", "complete"]
    assert "RuntimeError: out of memory" in result.trials[0].error
    assert "expected a number" in result.trials[3].error


def test_a_late_thread_is_lost_and_its_architecture_tried_again() -> None:
    gate = threading.Event()

    def work(trial: Trial) -> float:
        if trial.attempt == 1 and trial.id == 0:
            gate.wait(5)
        return total(trial)

    result = run_search(make(budget=5), work, timeout=0.1)
    gate.set()
    assert result.trials[0].state == "lost"
    again = [trial for trial in result.trials if trial.attempt == 2]
    assert [trial.arch for trial in again] == [result.trials[0].arch]
    assert result.used == 5


def test_what_a_killed_run_left_is_evaluated_first(tmp_path: Path) -> None:
    search = make(budget=6)
    search.save(tmp_path)
    left = search.ask(2)
    order: list[int] = []
    run_search(RandomSearch.load(tmp_path), lambda trial: order.append(trial.id) or 1.0)  # type: ignore[func-returns-value]
    assert order[:2] == [trial.id for trial in left]
    assert len(order) == 6


@pytest.mark.slow
def test_a_dead_process_is_lost_and_a_late_one_is_killed() -> None:
    result = run_search(make(budget=4, max_retries=0), die, executor="process", parallel=2)
    assert [trial.state for trial in result.trials] == ["complete", "lost", "complete", "complete"]
    assert "exit code 3" in result.trials[1].error
    started = time.monotonic()
    result = run_search(make(budget=2, max_retries=0), sleep, executor="process", parallel=2, timeout=20)
    assert result.trials[0].state == "lost"
    assert time.monotonic() - started < 50


def test_what_cannot_be_sent_to_a_process_is_a_failure() -> None:
    result = run_search(make(budget=2, max_retries=0), lambda trial: 1.0, executor="process")
    assert {trial.state for trial in result.trials} == {"failed"}
    assert "cannot be sent" in result.trials[0].error


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="executor"):
        run_search(make(), total, executor="cluster")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="parallel"):
        run_search(make(), total, parallel=0)
    with pytest.raises(ConfigError, match="timeout"):
        run_search(make(), total, timeout=0)


# -------------------------------------------------------------------------------------------------------------- Ray


def test_without_ray_it_says_what_to_install() -> None:
    if is_available("ray"):
        pytest.skip("Ray is installed")
    with pytest.raises(MissingDependencyError, match="ray"):
        run_search(make(), total, executor="ray")


class FakeRay(types.ModuleType):
    """The part of Ray's interface that is used, in this process."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.__spec__ = importlib.machinery.ModuleSpec("ray", None)
        self.cancelled: list[Any] = []
        self.options: dict[str, Any] = {}
        names = types.SimpleNamespace()
        names.RayError = type("RayError", (Exception,), {})
        names.RayTaskError = type("RayTaskError", (names.RayError,), {})
        names.GetTimeoutError = type("GetTimeoutError", (names.RayError, TimeoutError), {})
        names.WorkerCrashedError = type("WorkerCrashedError", (names.RayError,), {})
        self.exceptions = names

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: Any) -> None:
        self.started = True

    def put(self, value: Any) -> Any:
        return ("stored", value)

    def remote(self, **options: Any) -> Any:
        self.options = options
        return lambda function: types.SimpleNamespace(remote=lambda stored, trial: (function, stored[1], trial))

    def get(self, task: Any, timeout: float | None = None) -> Any:
        function, evaluate, trial = task
        if trial.id == 1:
            raise self.exceptions.WorkerCrashedError("worker died")
        if trial.id == 2:
            raise self.exceptions.GetTimeoutError("late")
        return function(evaluate, trial)

    def cancel(self, task: Any, force: bool) -> None:
        self.cancelled.append((task[2].id, force))


def test_ray_tasks_are_counted_lost_or_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    result = run_search(make(budget=4, max_retries=0), total, executor="ray", parallel=2, timeout=5)
    assert [trial.state for trial in result.trials] == ["complete", "lost", "lost", "complete"]
    assert fake.cancelled == [(2, True)]
    assert fake.options["max_retries"] == 0


@pytest.mark.filterwarnings("ignore")  # what Ray raises while it starts and stops
def test_ray_itself() -> None:
    ray = pytest.importorskip("ray")

    def evaluate(trial: Trial) -> float:  # sent by value: Ray's workers cannot import this file
        return float(sum(trial.arch))

    def broken(trial: Trial) -> float:
        raise ValueError("no such operation")

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        result = run_search(make(budget=3), evaluate, executor="ray", parallel=2, timeout=120)
        assert [trial.state for trial in result.trials] == ["complete"] * 3
        assert [trial.value for trial in result.trials] == [float(sum(trial.arch)) for trial in result.trials]
        failed = run_search(make(budget=1, max_retries=0), broken, executor="ray", timeout=120)
        assert failed.trials[0].state == "failed"
        assert "no such operation" in failed.trials[0].error
    finally:
        ray.shutdown()
