"""How long one picture takes: painted in a warm process, and by the command from a cold start.

Warm, a picture falls into three: the words and characters (everything before the first step), sampling, and decoding.
They are told apart by the painter's own reports after each step, so any painter can be timed: with a steady step of
``d`` seconds, sampling is ``steps * d``, and what came before the first report is ``d`` and the words.

Cold, the command runs in a fresh process, watched by a small one that knows nothing of huaben; ``import torch`` alone
stands beside it as what cannot be saved. Files are in the system's memory from the second run on; the first run's time
is told apart.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError, GenerationError
from ..painting import PaintCharacter, Painter, PaintRequest, Progress
from ..stations import load_painter

PROMPT = "a red cat with a hat on the beach"
PHRASE = "a red cat with a hat"
BOX = (0.3, 0.5, 0.7, 0.92)
PARTS = ("total", "text", "sampling", "decode")
COLD_LIMIT_S = 600.0

_WATCH = """
import json, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
seconds = time.perf_counter() - start
try:
    import resource
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    scale = 1 if sys.platform == "darwin" else 1024
    memory, cpu = used.ru_maxrss * scale, used.ru_utime + used.ru_stime
except ImportError:
    memory = cpu = None
json.dump({"seconds": seconds, "memory": memory, "cpu": cpu, "status": done.returncode,
           "stdout": done.stdout, "stderr": done.stderr[-2000:]}, sys.stdout)
"""


def run(
    repeats: int = 5,
    *,
    cold_repeats: int = 3,
    threads: Sequence[int] = (2, 1),
    steps: int = 20,
    size: int = 256,
    model: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure the embedded painter and the ``draw`` command.

    Args:
        repeats: warm pictures per number of threads, taken in turns after one that is not counted.
        cold_repeats: cold starts; 0 leaves them out.
        threads: numbers of torch threads to measure with.
        steps: of sampling, of the warm pictures; the command uses its own defaults.
        size: side of the warm pictures.
        model: pipeline folder; the embedded one by default.
        seed: of the pictures.

    Returns:
        ``warm``: threads -> part -> seconds (median, mean, lowest, highest, number); ``cold``: see :func:`cold_start`;
        and the settings.

    Raises:
        CheckpointError: where the weights are absent.
        ConfigError: for settings that measure nothing.
    """
    if repeats < 1 or cold_repeats < 0 or steps < 2 or not threads or min(threads) < 1:
        raise ConfigError(
            f"repeats={repeats}, cold_repeats={cold_repeats}, steps={steps}, threads={list(threads)} cannot be measured",
            hint="use at least 1 repeat, 2 steps and 1 thread",
        )
    painter = load_painter(Path(model) if model else None)
    results: dict[str, Any] = {
        "warm": warm_pictures(painter, repeats=repeats, threads=threads, steps=steps, size=size, seed=seed),
        "steps": steps,
        "size": size,
        "guidance_scale": PaintRequest(prompt=PROMPT).guidance_scale,
        "prompt": PROMPT,
    }
    del painter
    if cold_repeats:
        results["cold"] = cold_start(cold_repeats, model=model, seed=seed)
    return results


def warm_pictures(
    painter: Painter, *, repeats: int, threads: Sequence[int], steps: int, size: int, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Return, per number of torch threads and part of the work, the seconds of a picture."""
    times: dict[int, dict[str, list[float]]] = {count: {part: [] for part in PARTS} for count in threads}
    with _no_previews(painter):
        for repeat in range(repeats + 1):
            for count in times:
                with _torch_threads(count):
                    parts = time_picture(painter, _request(steps, size, seed + repeat))
                if repeat:
                    for part, seconds in parts.items():
                        times[count][part].append(seconds)
    return {str(count): {part: timing(values) for part, values in by_part.items()} for count, by_part in times.items()}


def time_picture(painter: Painter, request: PaintRequest) -> dict[str, float]:
    """Paint once and return the seconds of each of :data:`PARTS`."""
    reports: list[float] = []

    def note(progress: Progress) -> None:
        reports.append(time.perf_counter())

    start = time.perf_counter()
    painter.paint(request, on_step=note)
    end = time.perf_counter()
    if len(reports) < 2:
        raise GenerationError(f"the painter reported {len(reports)} steps, expected {request.steps}")
    step = (reports[-1] - reports[0]) / (len(reports) - 1)
    text = max(0.0, reports[0] - start - step)
    return {
        "total": end - start,
        "text": text,
        "sampling": reports[-1] - start - text,
        "decode": end - reports[-1],
    }


def cold_start(repeats: int, *, model: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Time ``huaben draw PROMPT --json`` in fresh processes.

    Returns:
        ``seconds`` of the whole process, ``first_s`` of the first run, ``cpu_s`` (its own time on all cores),
        ``inside_s`` (as the command tells it), ``peak_memory_mb``, ``attempts`` painted, and ``import_torch_s`` of a
        process that does nothing else.

    Raises:
        CheckpointError: if the command could not be run to its end; with what it said.
    """
    command = [sys.executable, "-m", "huaben", "draw", PROMPT, "--json", "--seed", str(seed)]
    if model:
        command += ["--model", str(Path(model).resolve())]
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="huaben-bench-") as folder:
        for number in range(repeats):
            found = watch([*command, "--out", f"{number}.png"], Path(folder))
            found["record"] = json.loads(found["stdout"])
            runs.append(found)
        torch_alone = [watch([sys.executable, "-c", "import torch"], Path(folder)) for _ in range(repeats)]
    memory = [found["memory"] / 1e6 for found in runs if found["memory"] is not None]
    cpu = [found["cpu"] for found in runs if found["cpu"] is not None]
    return {
        "command": f'huaben draw "{PROMPT}" --json',
        "seconds": timing([found["seconds"] for found in runs]),
        "first_s": round(runs[0]["seconds"], 3),
        "cpu_s": timing(cpu) if cpu else None,
        "inside_s": timing([found["record"]["seconds"] for found in runs]),
        "peak_memory_mb": timing(memory, 1) if memory else None,
        "attempts": [len(found["record"]["attempts"]) for found in runs],
        "import_torch_s": timing([found["seconds"] for found in torch_alone]),
    }


def watch(command: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run a command in ``folder`` under a small watching process: seconds, peak memory (bytes), CPU time, output.

    The watcher is needed because a process's peak memory, as the system counts it, begins with that of the one that
    started it.

    Raises:
        CheckpointError: if the command fails, with its last words.
    """
    package = Path(__file__).resolve().parents[2]
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-c", _WATCH, *command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=COLD_LIMIT_S,
            check=True,
        )
    except subprocess.SubprocessError as error:
        raise CheckpointError(f"{' '.join(command[:4])} … did not end: {error}", hint="run it by hand") from error
    found: dict[str, Any] = json.loads(done.stdout)
    if found["status"] != 0:
        raise CheckpointError(
            f"{' '.join(command[:4])} … ended with status {found['status']}: {found['stderr'].strip()}",
            hint="huaben doctor says what is missing",
        )
    return found


def timing(values: Sequence[float], digits: int = 4) -> dict[str, Any]:
    """Return median, mean, lowest, highest and number of some seconds."""
    return {
        "median": round(statistics.median(values), digits),
        "mean": round(statistics.fmean(values), digits),
        "low": round(min(values), digits),
        "high": round(max(values), digits),
        "n": len(values),
    }


def _request(steps: int, size: int, seed: int) -> PaintRequest:
    """Return the picture that is timed: one character in a box."""
    who = PaintCharacter(id="1", phrase=PHRASE, box=BOX)
    return PaintRequest(prompt=PROMPT, size=(size, size), seed=seed, steps=steps, characters=(who,))


@contextmanager
def _no_previews(painter: Painter) -> Iterator[None]:
    """Keep a painter from decoding previews, where it can be told so."""
    config = getattr(painter, "config", None)
    if config is None or not hasattr(config, "previews"):
        yield
        return
    painter.config = config.replace(previews=0)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        painter.config = config  # type: ignore[attr-defined]


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Use so many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
