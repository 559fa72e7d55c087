"""Readers of tables of evaluated architectures: CSV here, the official files of benchmarks beside."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from ..errors import DataError
from .base import Arch, SearchSpace
from .benchmark_files import read_nasbench201, read_transnas_pth
from .task import TRANSNAS_TASKS, Direction, TaskSpec, TaskTable

__all__ = ["FEATURES", "read_csv", "read_header", "read_nasbench201", "read_transnas_pth"]

FEATURES = ("params", "flops")
"""Columns that describe an architecture and are not tasks."""


def read_csv(
    path: str | Path,
    space: SearchSpace,
    *,
    tasks: Collection[str] | None = None,
    directions: Mapping[str, Direction] | Direction | None = None,
    features: Collection[str] = FEATURES,
    nonfinite: Literal["error", "failed"] = "error",
) -> dict[str, TaskTable]:
    """Read a table with a row per architecture and a column per task.

    Args:
        path: UTF-8, comma separated, with a header. Column ``arch`` holds the architecture's text, or ``ops`` its codes
            separated by spaces; where both exist they must agree. An empty cell is an architecture not evaluated on
            that task.
        space: that the architectures belong to.
        tasks: the task columns to read (default: all but arch, ops and features).
        directions: per task, or for all; the seven TransNAS-Bench-101 tasks are known.
        features: columns kept as features of an architecture, where they exist.
        nonfinite: what NaN and infinite metrics are: "error", or "failed" evaluations.

    Returns:
        Task name to table, in the file's order.

    Raises:
        DataError: for an unreadable file, missing columns, a task without a direction, or a bad row, naming its line.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            lines = [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not UTF-8 CSV: {error}") from error
    _check_header(header, path)
    wanted = [name for name in header if name not in ("arch", "ops") and name not in features]
    if tasks is not None:
        for name in tasks:
            if name not in wanted:
                raise DataError(f"{path} has no task column {name!r}", hint=f"its columns are {', '.join(header)}")
        wanted = [name for name in wanted if name in tasks]
    if not wanted:
        raise DataError(f"{path} has no task column", hint=f"its columns are {', '.join(header)}")
    specs = {name: _spec(name, directions, path) for name in wanted}
    rows: dict[str, list[tuple[int, tuple[Arch, float | None]]]] = {name: [] for name in wanted}
    columns: dict[str, dict[Arch, float]] = {name: {} for name in header if name in features}
    for line, row in lines:
        where = f"{path}, line {line}"
        if len(row) != len(header):
            raise DataError(f"{where}: {len(row)} cells, expected {len(header)}")
        cells = dict(zip(header, (cell.strip() for cell in row), strict=True))
        arch = _arch(cells, space, where)
        for name in wanted:
            if cells[name]:
                rows[name].append((line, (arch, _number(cells[name], f"{where}, column {name!r}"))))
        for name, column in columns.items():
            if cells[name]:
                column[arch] = _number(cells[name], f"{where}, column {name!r}")
    return {
        name: TaskTable.from_numbered_rows(
            space, specs[name], rows[name], features=columns, nonfinite=nonfinite, unit=f"{path}, line"
        )
        for name in wanted
    }


def read_header(path: str | Path) -> list[str]:
    """Return the columns of a table that :func:`read_csv` reads.

    Raises:
        DataError: for an unreadable file, or one without a column of architectures.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = [name.strip() for name in next(csv.reader(file), [])]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}", hint="give a UTF-8 CSV with a header") from error
    _check_header(header, path)
    return header


def _check_header(header: list[str], path: Path) -> None:
    if not header:
        raise DataError(f"{path} is empty", hint="expected a header and rows")
    if "arch" not in header and "ops" not in header:
        raise DataError(f"{path} has neither a column arch nor ops", hint=f"its columns are {', '.join(header)}")
    for place, name in enumerate(header):
        if not name or name in header[:place]:
            raise DataError(f"{path}: column {place + 1} is {name!r}, empty or repeated")


def _spec(name: str, directions: Mapping[str, Direction] | Direction | None, path: Path) -> TaskSpec:
    direction = directions if isinstance(directions, str) else (directions or {}).get(name)
    if direction is not None:
        known = TRANSNAS_TASKS.get(name)
        return TaskSpec(name, direction, kind=known.kind if known else "other")
    if name not in TRANSNAS_TASKS:
        raise DataError(
            f"{path}: whether a higher or lower {name!r} is better is unknown",
            hint=f"pass directions={{{name!r}: 'max'}} or 'min', or name the columns to read in tasks",
        )
    return TRANSNAS_TASKS[name]


def _arch(cells: Mapping[str, str], space: SearchSpace, where: str) -> Arch:
    """Return the architecture of a row."""
    found: list[Arch] = []
    try:
        if "arch" in cells:
            found.append(space.parse(cells["arch"]))
        if "ops" in cells:
            codes = cells["ops"].split()
            if not all(code.isascii() and code.isdigit() for code in codes):
                raise DataError(f"ops {cells['ops']!r} are not whole numbers separated by spaces")
            found.append(space.check([int(code) for code in codes]))
    except DataError as error:
        raise DataError(f"{where}: {error.message}", hint=error.hint) from error
    if len(set(found)) > 1:
        raise DataError(f"{where}: arch is {space.format(found[0])}, but ops are {cells['ops']!r}")
    return found[0]


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"{where}: {text!r} is not a number") from error
