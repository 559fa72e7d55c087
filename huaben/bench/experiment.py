"""One run of a measurement: its settings in, ``results.json`` (and a plot) out; and the statistics all share."""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..files import write_bytes
from ..rng import check_seed, numpy_stream
from . import load_bench

RESULTS_NAME = "results.json"
_PACKAGES = ("huaben", "torch", "numpy", "pillow", "safetensors", "tokenizers")


def run_experiment(
    name: str, *, seed: int = 0, settings: Mapping[str, Any] | None = None, out: Path | None = None
) -> dict[str, Any]:
    """Run one measurement and write what it found.

    Args:
        name: a key of :data:`~huaben.bench.BENCHES`.
        seed: of everything random.
        settings: keyword arguments of its ``run``; texts are read as JSON where they are JSON.
        out: folder for ``results.json`` and, where the module has ``plot(results, path)``, ``plot.png``.

    Returns:
        The record, as written.

    Raises:
        UsageError: for an unknown name or setting.
    """
    module = load_bench(name)
    check_seed(seed)
    arguments = check_settings(name, module.run, settings or {})
    started = time.perf_counter()
    if "out" in inspect.signature(module.run).parameters:
        arguments["out"] = out
    results = module.run(seed=seed, **arguments)
    record = {
        "name": name,
        "config": {key: value for key, value in arguments.items() if key != "out"},
        "seed": seed,
        "results": results,
        "seconds": round(time.perf_counter() - started, 2),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(),
        "arguments": sys.argv[1:],
    }
    if out is not None:
        text = json.dumps(record, ensure_ascii=False, indent=2, sort_keys=True, default=_plain) + "\n"
        write_bytes(out / RESULTS_NAME, text.encode("utf-8"))
        plot = getattr(module, "plot", None)
        if plot is not None:
            plot(record, out / "plot.png")
    return json.loads(json.dumps(record, default=_plain))


def check_settings(name: str, run: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with texts read as JSON; raises UsageError for one that ``run`` does not take."""
    known = [key for key in inspect.signature(run).parameters if key not in ("seed", "out")]
    result: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in known:
            raise UsageError(
                f"measurement {name!r} has no setting {key!r}", hint=f"it has {', '.join(known) or 'none'}"
            )
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                pass
        result[key] = value
    return result


def bootstrap(
    values: Sequence[float] | npt.NDArray[Any], seed: int, *names: str | int, resamples: int = 2000
) -> dict[str, Any]:
    """Return mean, number and 95 % bootstrap interval of the mean.

    Args:
        values: one number per independent unit (a story, a picture), never per correlated part of one.
        seed, names: of the resampling stream.
        resamples: bootstrap samples.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return {"mean": None, "n": 0, "low": None, "high": None}
    rng = numpy_stream(seed, "bootstrap", *names)
    means = array[rng.integers(0, array.size, (resamples, array.size))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return {
        "mean": round(float(array.mean()), 4),
        "n": int(array.size),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }


@functools.cache
def student_quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t, to about 1e-4."""
    if degrees < 1:
        raise UsageError(f"an interval of {degrees + 1} runs", hint="use 2 seeds or more")
    log_height = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
    # t = tan(a) sqrt(n) turns the density into a constant times cos(a)^(n - 1), which has no tail to cut.
    angles = np.linspace(0.0, math.pi / 2, 200_001)
    density = math.exp(log_height) * math.sqrt(degrees) * np.cos(angles) ** (degrees - 1)
    steps = (density[1:] + density[:-1]) / 2 * np.diff(angles)
    reached = 0.5 + np.concatenate([[0.0], np.cumsum(steps)])
    return float(math.sqrt(degrees) * math.tan(float(np.interp(0.975, reached, angles))))


def interval(values: Sequence[float] | npt.NDArray[Any]) -> dict[str, Any]:
    """Return mean, standard deviation and 95 % interval (Student's t) of independent values, in their own units."""
    array = np.asarray(values, np.float64)
    found: dict[str, Any] = {
        "mean": round(float(array.mean()), 4),
        "n": len(array),
        "sd": None,
        "low": None,
        "high": None,
    }
    if len(array) > 1:
        deviation = float(array.std(ddof=1))
        half = student_quantile(len(array) - 1) * deviation / math.sqrt(len(array))
        found |= {
            "sd": round(deviation, 4),
            "low": round(float(array.mean()) - half, 4),
            "high": round(float(array.mean()) + half, 4),
        }
    return found


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide results."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Return what the results were computed on."""
    record: dict[str, Any] = {"machine": platform.machine(), "system": platform.system(), "cpus": os.cpu_count()}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        record["cpu"] = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        record["cpu"] = platform.processor()
    torch = sys.modules.get("torch")
    if torch is not None:
        record["threads"] = torch.get_num_threads()
        record["gpu"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return record


def commit() -> str | None:
    """Return the commit of the working tree huaben runs from, with "+" if it was changed; None outside of one."""
    folder = Path(__file__).resolve().parent
    try:
        found = [
            subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True).stdout  # noqa: S603, S607
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return found[0].strip() + ("+" if found[1].strip() else "")


def _plain(value: Any) -> Any:
    """Return numpy values and paths as JSON values."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not a JSON value")
