"""Evaluate trials as Ray tasks. Ray is optional and imported when asked for."""

from __future__ import annotations

from typing import Any

from ..optional import require
from .runner import Call, Evaluate, Outcome, attempt, late
from .trials import Trial


def ray_call(evaluate: Evaluate, timeout: float | None = None, **options: Any) -> Call:
    """Return a function that evaluates one trial as one Ray task; it may be called from many threads.

    A running Ray is used; where none is, a local one is started. A task that is late is cancelled by force, and one
    whose worker or node dies is lost; Ray itself never repeats it, since the searcher counts attempts.

    Args:
        evaluate: trial to metric; Ray sends it by value.
        timeout: seconds, from submission: it includes waiting for a free worker.
        **options: of the task, such as ``num_cpus`` and ``num_gpus``.

    Raises:
        MissingDependencyError: if Ray is not installed.
    """
    ray = require("ray", extra="ray")
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    remote = ray.remote(**{"max_retries": 0, "num_cpus": 1, **options})(attempt)
    lasting = ray.put(evaluate)

    def call(trial: Trial) -> Outcome:
        task = remote.remote(lasting, trial)
        try:
            return ray.get(task, timeout=timeout)
        except ray.exceptions.GetTimeoutError:
            ray.cancel(task, force=True)
            assert timeout is not None
            return late(timeout)
        except ray.exceptions.RayTaskError as error:
            return Outcome("failed", error=f"{type(error).__name__}: {error}")
        except ray.exceptions.RayError as error:
            return Outcome("lost", error=f"{type(error).__name__}: {error}")

    return call
