"""A measurement in a process of its own, where memory of what ran before does not count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import GenerationError


def run_apart(module: str, task: Mapping[str, Any], *, what: str, limit_s: float, hint: str) -> str:
    """Run ``python -m module TASK`` in a fresh process, the task as JSON, and return what it printed.

    Raises:
        GenerationError: if the process did not end well, as when memory ran out; it names ``what`` and gives the hint.
    """
    package = Path(__file__).resolve().parents[2]
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(  # noqa: S603 - our own module
        [sys.executable, "-m", module, json.dumps(task)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    if done.returncode != 0:
        raise GenerationError(
            f"measuring {what} ended with status {done.returncode}: {done.stderr.strip()[-500:]}", hint=hint
        )
    return done.stdout


def resident_mb(name: str) -> float | None:
    """Return this process's resident size now (``VmRSS``) or at its highest (``VmHWM``); None where it is not told.

    ``getrusage`` will not do: its highest size begins with that of the process that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith(f"{name}:")]
    return kilobytes[0] * 1024 / 1e6 if kilobytes else None
