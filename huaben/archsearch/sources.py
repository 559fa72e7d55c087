"""Source tables beside a saved search, and the ranks of their architectures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, HuabenError
from ..files import write_bytes
from .base import Arch, SearchSpace
from .task import TaskSpec, TaskTable

SOURCES_NAME = "sources.json"


def write_sources(
    folder: Path,
    space: SearchSpace,
    tables: Sequence[TaskTable],
    *,
    task_vectors: Mapping[str, Sequence[float]] | None = None,
    features: Mapping[str, Mapping[Arch, float]] | None = None,
) -> None:
    """Write tables, task vectors and features of architectures; nothing if there are none.

    Raises:
        StoreError: if the folder cannot be written.
    """
    if not tables and not task_vectors and not features:
        return
    values: dict[str, Any] = {
        "tables": [
            {"task": table.spec.to_dict(), "rows": [[space.format(arch), value] for arch, value in table.raw.items()]}
            for table in tables
        ],
        "task_vectors": {name: [float(x) for x in vector] for name, vector in (task_vectors or {}).items()},
        "features": {
            name: [[space.format(arch), value] for arch, value in column.items()]
            for name, column in (features or {}).items()
        },
    }
    write_bytes(folder / SOURCES_NAME, json.dumps(values, ensure_ascii=False).encode("utf-8"))


def read_sources(folder: Path, space: SearchSpace) -> tuple[TaskTable, ...]:
    """Read the tables of :func:`write_sources`; none if there is no such file.

    Raises:
        CheckpointError: for a damaged file.
    """
    return read_all_sources(folder, space)[0]


def read_all_sources(
    folder: Path, space: SearchSpace
) -> tuple[tuple[TaskTable, ...], dict[str, list[float]], dict[str, dict[Arch, float]]]:
    """Read tables, task vectors and features.

    Raises:
        CheckpointError: for a damaged file.
    """
    path = folder / SOURCES_NAME
    if not path.exists():
        return (), {}, {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        tables = tuple(
            TaskTable(space, TaskSpec.from_dict(entry["task"]), {space.parse(text): v for text, v in entry["rows"]})
            for entry in values["tables"]
        )
        features = {
            name: {space.parse(text): float(v) for text, v in rows} for name, rows in values["features"].items()
        }
        return tables, values["task_vectors"], features
    except (OSError, ValueError, KeyError, TypeError, AttributeError, HuabenError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", hint="restore the file from a copy") from error


def source_size(tables: Sequence[TaskTable]) -> int:
    """Return how many evaluations the tables hold."""
    return sum(len(table) for table in tables)


def percent_ranks(table: TaskTable) -> dict[Arch, float]:
    """Return each architecture's competition rank in its own table, in percent; lower is better."""
    values = table.oriented_values()
    order = np.sort(values)
    better = len(values) - np.searchsorted(order, values, side="right")
    return {arch: float(100.0 * (1 + above) / len(values)) for arch, above in zip(table.archs, better, strict=True)}
