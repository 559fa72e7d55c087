"""The queue's workers: threads that take jobs from the store, and end them whatever happens."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

from ..errors import Cancelled, HuabenError
from .models import Job
from .store import Store
from .work import Crew, do_job, work_place

LOG = logging.getLogger("huaben.studio")
CHECK_EVERY_S = 0.4
BEAT_EVERY_S = 15.0


class Bell:
    """Counts what happened, so that those who wait look only when there is something to see."""

    def __init__(self) -> None:
        self.count = 0
        self._condition = threading.Condition()

    def ring(self) -> None:
        """Wake everyone."""
        with self._condition:
            self.count += 1
            self._condition.notify_all()

    def wait(self, seen: int, timeout: float) -> int:
        """Wait for a ring after ``seen``; return the count."""
        with self._condition:
            self._condition.wait_for(lambda: self.count != seen, timeout)
            return self.count


class Runner:
    """Works on jobs until closed.

    Args:
        store: has the queue.
        crew: the parts that do the work.
        threads: jobs worked on at once; pictures wait for the painter, talk does not.
        timeout_s: a job that takes longer is stopped and counts as failed.
        bell: rung at every event.
    """

    def __init__(
        self, store: Store, crew: Crew, *, threads: int = 4, timeout_s: float = 900.0, bell: Bell | None = None
    ) -> None:
        self.store, self.crew, self.timeout_s = store, crew, timeout_s
        self.bell = bell or Bell()
        self.name = f"{socket.gethostname()[:40]}:{os.getpid()}"
        self._closing = threading.Event()
        self._current: dict[str, float] = {}
        self._threads = [threading.Thread(target=self._work, name=f"job-{n}", daemon=True) for n in range(threads)]
        self._threads.append(threading.Thread(target=self._beat, name="beat", daemon=True))

    def start(self) -> None:
        """Begin to work."""
        _sweep_work()
        for thread in self._threads:
            thread.start()

    def close(self, timeout: float = 10.0) -> None:
        """Stop running jobs at their next step and end the threads."""
        self._closing.set()
        self.bell.ring()
        deadline = time.monotonic() + timeout
        for thread in filter(threading.Thread.is_alive, self._threads):
            thread.join(max(0.1, deadline - time.monotonic()))

    def _work(self) -> None:
        """Take jobs, one after the other."""
        while not self._closing.is_set():
            seen = self.bell.count
            try:
                job = self.store.claim(self.name)
            except HuabenError as error:
                LOG.error("cannot take a job: %s", error)
                self._closing.wait(2.0)
                continue
            if job is None:
                self.bell.wait(seen, 1.0 if self.store.dialect == "sqlite" else 0.3)
                continue
            self.bell.ring()
            self._do(job)
            self.bell.ring()

    def _do(self, job: Job) -> None:
        """Do one job; any error ends the job, never the worker."""
        self._current[job.id] = time.monotonic()
        stop = _Stop(self, job)
        try:
            do_job(self.store, self.crew, job, should_cancel=stop, told=self.bell.ring)
        except Cancelled as error:
            status = {"timeout": "failed", "closing": "interrupted"}.get(stop.reason, "cancelled")
            values = None if status == "cancelled" else _error(error)
            if stop.reason == "timeout":
                values = {"code": "timeout", "message": f"it took longer than {self.timeout_s:g} s", "hint": ""}
            self._end(job, status, values)
        except HuabenError as error:
            self._end(job, "failed", _error(error))
        except Exception as error:
            LOG.exception("job %s failed", job.id)
            self._end(job, "failed", {"code": "unexpected", "message": f"{type(error).__name__}: {error}", "hint": ""})
        finally:
            self._current.pop(job.id, None)

    def _end(self, job: Job, status: str, error: dict[str, Any] | None) -> None:
        """Record a job's end; a database that is gone leaves it to the next start."""
        try:
            self.store.finish(job.id, status, error=error)
        except Exception:
            LOG.exception("the end of job %s could not be recorded", job.id)

    def _beat(self) -> None:
        """Say every few seconds that running jobs are alive, and look after those of dead processes."""
        while not self._closing.wait(BEAT_EVERY_S):
            try:
                self.store.beat(list(self._current))
                if self.store.dialect == "postgresql":
                    self.store.recover(alone=False)
            except Exception:
                LOG.exception("the heartbeat failed")


class _Stop:
    """Whether a job shall stop, and why."""

    def __init__(self, runner: Runner, job: Job) -> None:
        self.runner, self.job = runner, job
        self.started, self.checked, self.reason = time.monotonic(), 0.0, ""

    def __call__(self) -> bool:
        now = time.monotonic()
        if self.runner._closing.is_set():
            self.reason = "closing"
        elif now - self.started > self.runner.timeout_s:
            self.reason = "timeout"
        elif now - self.checked > CHECK_EVERY_S:
            self.checked = now
            if self.runner.store.wants_cancel(self.job.id):
                self.reason = "cancelled"
        return bool(self.reason)


def _error(error: HuabenError) -> dict[str, Any]:
    """Return an error as the page and the API show it."""
    return {"code": error.code, "message": error.message, "hint": error.hint}


def _sweep_work() -> None:
    """Remove working folders of processes that are gone."""
    place = work_place()
    if place is None:
        return
    for folder in Path(place).glob("huaben-studio-*-*"):
        number = folder.name.split("-")[2]
        if number.isdecimal() and not Path(f"/proc/{number}").exists():
            shutil.rmtree(folder, ignore_errors=True)
