"""The official files of TransNAS-Bench-101 and NAS-Bench-201, opened without running anything they hold.

The files are pickles. They are read with torch's restricted unpickler, which builds plain containers, numbers, text and
tensors (NumPy's numbers are let through, too) and refuses everything else before it is imported.
"""

from __future__ import annotations

import pickle  # noqa: TID251 - only the class of its errors
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..errors import DataError
from .base import Arch, SearchSpace
from .cells import NASBench201, TransNASMicro
from .sequences import TransNASMacro
from .task import TRANSNAS_TASKS, TaskSpec, TaskTable

MetricMode = Literal["final", "best"]

TRANSNAS_METRICS = {
    "class_scene": "top1",
    "class_object": "top1",
    "room_layout": "neg_loss",
    "jigsaw": "top1",
    "segmentsemantic": "acc",
    "normal": "ssim",
    "autoencoder": "ssim",
}
"""Metric of each task, without the split before it; the benchmark also has "mIoU" for segmentsemantic."""

TRANSNAS_FEATURES = {"params": "model_params", "flops": "model_FLOPs"}
"""Feature of our tables to the benchmark's name."""

NASBENCH201_TASKS = {"cifar10-valid": "x-valid", "cifar100": "x-valid", "ImageNet16-120": "x-valid"}
"""Data set to the evaluation set that its validation accuracy is stored under."""


def read_transnas_pth(
    path: str | Path,
    *,
    metric_mode: MetricMode = "final",
    split: Literal["valid", "test"] = "valid",
    metrics: Mapping[str, str] | None = None,
    nonfinite: Literal["error", "failed"] = "error",
) -> dict[str, dict[str, TaskTable]]:
    """Read the official TransNAS-Bench-101 file.

    Args:
        path: ``transnas-bench_v10141024.pth``.
        metric_mode: the metric of the last epoch, or of the best one; their rankings differ.
        split: the validation or the test metric.
        metrics: task to metric without its split, over ``TRANSNAS_METRICS``; {"segmentsemantic": "mIoU"} for example.
        nonfinite: what NaN and infinite metrics are: "error", or "failed" evaluations.

    Returns:
        Search space ("micro", "macro") to task to table, with features "params" and "flops" of the class_scene model.

    Raises:
        DataError: for a file that cannot be read, holds code, or is laid out otherwise; the message names the entry.
    """
    path = Path(path)
    database = _mapping(_load(path), f"{path}")
    data = _mapping(_member(database, "data", f"{path}"), f"{path}: data")
    spaces: dict[str, SearchSpace] = {"micro": TransNASMicro(), "macro": TransNASMacro()}
    chosen = {**TRANSNAS_METRICS, **(metrics or {})}
    result: dict[str, dict[str, TaskTable]] = {}
    for name in data:
        if name not in spaces:
            raise DataError(f"{path}: data holds the search space {name!r}, expected micro and macro")
        space, results = spaces[name], _mapping(data[name], f"{path}: {name}")
        rows: dict[str, list[tuple[str, float | None]]] = {}
        features: dict[str, dict[Arch, float]] = {feature: {} for feature in TRANSNAS_FEATURES}
        for text, entry in results.items():
            where = f"{path}: {name}/{text}"
            for task, found in _mapping(entry, where).items():
                if task not in chosen:
                    raise DataError(f"{where}: unknown task {task!r}", hint=f"known are {', '.join(chosen)}")
                found = _mapping(found, f"{where}/{task}")
                curves = _mapping(_member(found, "metrics", f"{where}/{task}"), f"{where}/{task}/metrics")
                curve = _curve(_member(curves, f"{split}_{chosen[task]}", f"{where}/{task}/metrics"), f"{where}/{task}")
                rows.setdefault(task, []).append((text, curve[-1] if metric_mode == "final" else _maximum(curve)))
                if task == "class_scene":
                    info = _mapping(found.get("model_info", {}), f"{where}/{task}/model_info")
                    for feature, key in TRANSNAS_FEATURES.items():
                        if key in info:
                            features[feature][space.parse(text)] = _number(info[key], f"{where}/{task}/{key}")
        known = {feature: column for feature, column in features.items() if column}
        result[name] = {
            task: TaskTable.from_rows(
                space,
                TRANSNAS_TASKS[task].replace(metric_mode=metric_mode, metric=f"{split}_{chosen[task]}"),
                rows[task],
                features=known,
                nonfinite=nonfinite,
            )
            for task in chosen
            if task in rows
        }
    return result


def read_nasbench201(
    path: str | Path, *, epochs: Literal[12, 200] = 200, metric_mode: MetricMode = "final"
) -> dict[str, TaskTable]:
    """Read the official NAS-Bench-201 file (version 1.0 or 1.1).

    Args:
        path: ``NAS-Bench-201-v1_1-096897.pth``.
        epochs: length of the training whose results are taken.
        metric_mode: validation accuracy of the last epoch, or the best over epochs, the mean over seeds in both cases.

    Returns:
        Data set to table of validation accuracy in percent, with features "params" and "flops" in millions.

    Raises:
        DataError: for a file that cannot be read, holds code, or is laid out otherwise; the message names the entry.
    """
    path = Path(path)
    document = _mapping(_load(path), f"{path}")
    names = _member(document, "meta_archs", f"{path}")
    infos = _mapping(_member(document, "arch2infos", f"{path}"), f"{path}: arch2infos")
    space = NASBench201()
    rows: dict[str, list[tuple[str, float | None]]] = {name: [] for name in NASBENCH201_TASKS}
    features: dict[str, dict[str, dict[Arch, float]]] = {name: {"params": {}, "flops": {}} for name in rows}
    length = "full" if epochs == 200 else "less"
    for index in sorted(infos):
        where = f"{path}: arch2infos/{index}/{length}"
        entry = _mapping(_member(_mapping(infos[index], where), length, where), where)
        if not isinstance(index, int) or not isinstance(names, (list, tuple)) or not 0 <= index < len(names):
            raise DataError(f"{where}: {index!r} is no place in meta_archs")
        text = names[index]
        trials = _mapping(_member(entry, "all_results", where), f"{where}/all_results")
        for task, evaluated in NASBENCH201_TASKS.items():
            found = [trial for key, trial in trials.items() if isinstance(key, tuple) and key and key[0] == task]
            curves = [list(_epochs(_mapping(trial, where), evaluated, f"{where}/{task}")) for trial in found]
            curves = [curve for curve in curves if curve]
            if not curves:
                continue
            value = statistics.fmean(curve[-1] if metric_mode == "final" else _maximum(curve) for curve in curves)
            rows[task].append((text, value))
            arch = space.parse(text)
            for feature, key in (("params", "params"), ("flops", "flop")):
                if key in found[0]:
                    features[task][feature][arch] = _number(found[0][key], f"{where}/{task}/{key}")
    return {
        task: TaskTable.from_rows(
            space,
            TaskSpec(task, "max", metric_mode=metric_mode, kind="classification", metric="validation accuracy, %"),
            rows[task],
            features=features[task],
        )
        for task in rows
        if rows[task]
    }


def _epochs(trial: Mapping[Any, Any], evaluated: str, where: str) -> Iterator[float]:
    """Yield the accuracies of an evaluation set in the order of epochs; keys are ``name@epoch``."""
    accuracies = _mapping(trial.get("eval_acc1es", {}), f"{where}/eval_acc1es")
    places = []
    for key in accuracies:
        name, _, epoch = str(key).partition("@")
        if name == evaluated and epoch.isdigit():
            places.append((int(epoch), key))
    for _, key in sorted(places):
        yield _number(accuracies[key], f"{where}/eval_acc1es/{key}")


def _load(path: Path) -> Any:
    """Return what a pickled file holds, if it is made of plain data."""
    if not path.is_file():
        raise DataError(f"no file at {path}", hint="download the benchmark's official file and give its path")
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (_scalar, "numpy.core.multiarray.scalar"),
        (_scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")),
    ]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickle protocols other than torch's own
            return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 - restricted, others' format
    except pickle.UnpicklingError as error:
        reason = str(error).replace("\n", " ")
        refused = "Unsupported" in reason or "not an allowed global" in reason or "GLOBAL" in reason
        raise DataError(
            f"{path} {'holds more than plain data and is refused' if refused else 'is not a complete file'}:"
            f" {reason[:200]}",
            hint="use the benchmark's official file; a file that holds code may be harmful",
        ) from error
    except (RuntimeError, ValueError, EOFError, KeyError, OSError, AttributeError, TypeError, IndexError) as error:
        raise DataError(f"{path} is not a complete torch file ({error})", hint="download it again") from error


def _scalar(kind: np.dtype[Any], data: bytes) -> Any:
    """Return a NumPy number from its bytes, as NumPy's own function would, but never an object."""
    if not isinstance(kind, np.dtype) or kind.hasobject or not isinstance(data, (bytes, str)):
        raise DataError("a number in the file is not plain data")
    raw = data.encode("latin-1") if isinstance(data, str) else data
    return np.frombuffer(raw, dtype=kind, count=1)[0]


def _mapping(value: Any, where: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: found {type(value).__name__}, expected a mapping", hint="is it the official file?")
    return value


def _member(values: Mapping[Any, Any], key: str, where: str) -> Any:
    if key not in values:
        some = ", ".join(map(str, list(values)[:8]))
        raise DataError(f"{where}: lacks {key!r}", hint=f"it has {some}" if some else "it is empty")
    return values[key]


def _curve(value: Any, where: str) -> list[float]:
    """Return a metric by epoch."""
    if isinstance(value, torch.Tensor):
        value = value.flatten().tolist()
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise DataError(f"{where}: the metric is {value!r}, expected one number per epoch")
    return [_number(number, where) for number in value]


def _maximum(curve: Sequence[float]) -> float:
    """Return the largest finite number of a curve; its last one if none is finite."""
    finite = [value for value in curve if np.isfinite(value)]
    return max(finite) if finite else curve[-1]


def _number(value: Any, where: str) -> float:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise DataError(f"{where}: {value!r} is not a number")
    return float(value)
