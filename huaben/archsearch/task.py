"""Tasks and what is known of them: tables of evaluated architectures, with ranks and regret.

Values are kept as they were measured; everything that compares uses the *oriented* value, higher is better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from ..config import Config
from ..errors import ConfigError, DataError
from .base import Arch, SearchSpace

Direction = Literal["max", "min"]
State = Literal["complete", "failed", "missing"]


@dataclass(frozen=True, slots=True)
class TaskSpec(Config):
    """What is optimised.

    Attributes:
        name: of the task, unique among the tasks of a search.
        direction: whether the metric is better when higher ("max") or lower ("min"); never guessed.
        metric_mode: the metric of the last epoch, or of the best one; rankings differ, so results record it.
        kind: of task, for task embeddings.
        metric: name and unit of the metric, for reports.
    """

    name: str
    direction: Direction
    metric_mode: Literal["final", "best"] = "final"
    kind: Literal["classification", "dense", "regression", "self-supervised", "other"] = "other"
    metric: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ConfigError(f"name={self.name!r} is empty", hint="name the task, as 'class_scene'")
        for field, allowed in (
            ("direction", ("max", "min")),
            ("metric_mode", ("final", "best")),
            ("kind", ("classification", "dense", "regression", "self-supervised", "other")),
        ):
            if getattr(self, field) not in allowed:
                raise ConfigError(
                    f"task {self.name!r}: {field}={getattr(self, field)!r} is none of {', '.join(allowed)}",
                    hint="'max' where a higher metric is better, 'min' where a lower one is"
                    if field == "direction"
                    else "",
                )

    def orient(self, value: float) -> float:
        """Return ``value`` such that higher is better."""
        return value if self.direction == "max" else -value


TRANSNAS_TASKS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec("class_scene", "max", kind="classification", metric="top-1 accuracy, %"),
        TaskSpec("class_object", "max", kind="classification", metric="top-1 accuracy, %"),
        TaskSpec("room_layout", "max", kind="regression", metric="negative loss"),
        TaskSpec("jigsaw", "max", kind="self-supervised", metric="top-1 accuracy, %"),
        TaskSpec("segmentsemantic", "max", kind="dense", metric="pixel accuracy, %"),
        TaskSpec("normal", "max", kind="dense", metric="SSIM"),
        TaskSpec("autoencoder", "max", kind="self-supervised", metric="SSIM"),
    )
}
"""The seven tasks of TransNAS-Bench-101, all higher-is-better (room layout is a negated loss)."""


class TaskTable:
    """The evaluated architectures of one task.

    Args:
        space: that the architectures belong to.
        spec: name and direction of the metric.
        values: the metric as measured. None is a failed evaluation.
        failed: architectures whose evaluation failed: they count as evaluated, have no value and no rank.
        features: further numbers per architecture ("params", "flops", ...), for :meth:`log_features`.
        nonfinite: what NaN and infinite values are: "error", or "failed" evaluations.

    Raises:
        DataError: for an architecture outside the space, a value that is no finite number, or one that also failed;
            the message names the row.
    """

    def __init__(
        self,
        space: SearchSpace,
        spec: TaskSpec,
        values: Mapping[Arch, float | None],
        *,
        failed: Iterable[Arch] = (),
        features: Mapping[str, Mapping[Arch, float]] | None = None,
        nonfinite: Literal["error", "failed"] = "error",
    ) -> None:
        self._fill(space, spec, enumerate(values.items()), failed, features, nonfinite, "row")

    @classmethod
    def from_rows(
        cls,
        space: SearchSpace,
        spec: TaskSpec,
        rows: Iterable[tuple[Arch | str, float | None]],
        *,
        features: Mapping[str, Mapping[Arch, float]] | None = None,
        nonfinite: Literal["error", "failed"] = "error",
    ) -> TaskTable:
        """Build a table from rows of architecture (or its text) and metric.

        A row that repeats another exactly is ignored.

        Raises:
            DataError: as the constructor, and for an architecture given twice with different values.
        """
        table = cls.__new__(cls)
        table._fill(space, spec, enumerate(rows), (), features, nonfinite, "row")
        return table

    @classmethod
    def from_numbered_rows(
        cls,
        space: SearchSpace,
        spec: TaskSpec,
        rows: Iterable[tuple[int, tuple[Arch, float | None]]],
        *,
        features: Mapping[str, Mapping[Arch, float]] | None = None,
        nonfinite: Literal["error", "failed"] = "error",
        unit: str = "line",
    ) -> TaskTable:
        """As :meth:`from_rows`, with each row's number in its file, for errors."""
        table = cls.__new__(cls)
        table._fill(space, spec, rows, (), features, nonfinite, unit)
        return table

    def _fill(
        self,
        space: SearchSpace,
        spec: TaskSpec,
        rows: Iterable[tuple[int, tuple[Arch | str, float | None]]],
        failed: Iterable[Arch],
        features: Mapping[str, Mapping[Arch, float]] | None,
        nonfinite: Literal["error", "failed"],
        unit: str,
    ) -> None:
        if nonfinite not in ("error", "failed"):
            raise ConfigError(f"nonfinite={nonfinite!r} is neither 'error' nor 'failed'")
        self.space, self.spec = space, spec
        seen: dict[Arch, tuple[int, float | None]] = {}
        for number, (given, value) in rows:
            where = f"{spec.name}, {unit} {number}"
            try:
                arch = space.parse(given) if isinstance(given, str) else space.check(given)
            except DataError as error:
                raise DataError(f"{where}: {error.message}", hint=error.hint) from error
            number_value = self._number(value, where, nonfinite)
            if arch in seen:
                before, other = seen[arch]
                if other != number_value:
                    raise DataError(
                        f"{where}: {space.format(arch)} is {_shown(number_value)},"
                        f" but {unit} {before} has it with {_shown(other)}",
                        hint="keep one of them, or their mean",
                    )
                continue
            seen[arch] = (number, number_value)
        for given in failed:
            arch = space.check(given)
            if arch in seen and seen[arch][1] is not None:
                raise DataError(f"{spec.name}: {space.format(arch)} has a value and failed", hint="decide for one")
            seen[arch] = (-1, None)
        self.raw: dict[Arch, float] = {arch: value for arch, (_, value) in seen.items() if value is not None}
        self.failed: frozenset[Arch] = frozenset(arch for arch, (_, value) in seen.items() if value is None)
        self.archs: tuple[Arch, ...] = tuple(self.raw)
        self.features = {name: dict(column) for name, column in (features or {}).items()}

    @staticmethod
    def _number(value: float | None, where: str, nonfinite: str) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise DataError(f"{where}: value {value!r} is not a number")
        if math.isfinite(value):
            return float(value)
        if nonfinite == "failed":
            return None
        raise DataError(
            f"{where}: value {value!r} is not finite",
            hint="leave the row out, or read with nonfinite='failed' to keep it as a failed evaluation",
        )

    def __len__(self) -> int:
        """The number of architectures with a value."""
        return len(self.archs)

    def __contains__(self, arch: object) -> bool:
        return arch in self.raw

    def __iter__(self) -> Iterator[Arch]:
        return iter(self.archs)

    def __repr__(self) -> str:
        lost = f", {len(self.failed)} failed" if self.failed else ""
        return f"TaskTable({self.spec.name!r}, {len(self)} architectures{lost})"

    def state(self, arch: Arch) -> State:
        """Return whether the architecture has a value, failed, or is absent."""
        arch = self.space.check(arch)
        return "complete" if arch in self.raw else "failed" if arch in self.failed else "missing"

    def value(self, arch: Arch) -> float:
        """Return the metric as measured.

        Raises:
            DataError: if the architecture failed or is absent.
        """
        arch = self.space.check(arch)
        if arch not in self.raw:
            state = self.state(arch)
            raise DataError(
                f"task {self.spec.name!r} has no value for {self.space.format(arch)}: it is {state}",
                hint=f"{len(self)} architectures have one; ask state() first",
            )
        return self.raw[arch]

    def oriented(self, arch: Arch) -> float:
        """Return the metric, higher is better.

        Raises:
            DataError: if the architecture failed or is absent.
        """
        return self.spec.orient(self.value(arch))

    def oriented_values(self, archs: Sequence[Arch] | None = None) -> np.ndarray:
        """Return float64 (N,): oriented values of ``archs`` (default: all of the table, in its order)."""
        if archs is None:
            return self._oriented.copy()
        return np.array([self.oriented(arch) for arch in archs], dtype=np.float64)

    @cached_property
    def _oriented(self) -> np.ndarray:
        return np.array([self.spec.orient(value) for value in self.raw.values()], dtype=np.float64)

    @cached_property
    def _sorted(self) -> np.ndarray:
        if not len(self):
            raise DataError(f"task {self.spec.name!r} has no value", hint="a rank needs at least one")
        return np.sort(self._oriented)

    @property
    def best(self) -> Arch:
        """The best architecture; the first of the table among equals."""
        self._sorted  # noqa: B018 - refuses an empty table
        return self.archs[int(np.argmax(self._oriented))]

    def rank_percent(self, value: float) -> float:
        """Return ``100 * (1 + number of strictly better) / N`` of an oriented value: competition rank in percent.

        N counts the architectures with a value, twins apart; ties share the better rank.
        """
        better = len(self._sorted) - int(np.searchsorted(self._sorted, value, side="right"))
        return 100.0 * (1 + better) / len(self._sorted)

    def best_rank_percent(self, archs: Arch | Iterable[Arch]) -> float:
        """Return the competition rank in percent of an architecture, or of the best of several.

        Raises:
            DataError: if one has no value, or none is given.
        """
        return self.rank_percent(self._best_of(archs))

    def regret(self, archs: Arch | Iterable[Arch]) -> float:
        """Return ``(best - found) / (best - median)`` of an architecture, or of the best of several.

        0 is the table's best and 1 its median; infinite where the median equals the best and the found one does not.
        """
        best, found = float(self._sorted[-1]), self._best_of(archs)
        gap, scale = best - found, best - float(np.median(self._sorted))
        if gap <= 0:
            return 0.0
        return gap / scale if scale > 0 else math.inf

    def _best_of(self, archs: Arch | Iterable[Arch]) -> float:
        listed = list(archs)  # an architecture, or several
        if not listed:
            raise DataError(f"task {self.spec.name!r}: no architecture given", hint="evaluate at least one")
        if isinstance(listed[0], (int, np.integer)):
            return self.oriented(tuple(listed))  # type: ignore[arg-type]
        return max(self.oriented(arch) for arch in listed)  # type: ignore[arg-type]

    def subset(self, archs: Iterable[Arch]) -> TaskTable:
        """Return a table of some of the architectures, which must have a value."""
        return TaskTable(self.space, self.spec, {arch: self.value(arch) for arch in archs}, features=self.features)

    def sample(self, count: int, rng: np.random.Generator) -> TaskTable:
        """Return a table of ``count`` architectures drawn without replacement (all, if there are fewer)."""
        places = rng.choice(len(self), size=min(count, len(self)), replace=False)
        return self.subset(self.archs[int(place)] for place in places)

    def class_means(self) -> dict[str, float]:
        """Return canonical form to the mean oriented value of its architectures: twins as one."""
        groups: dict[str, list[float]] = {}
        for arch, value in zip(self.archs, self._oriented, strict=True):
            groups.setdefault(self.space.canonical(arch), []).append(float(value))
        return {key: float(np.mean(group)) for key, group in groups.items()}

    def log_features(self, archs: Sequence[Arch], names: Sequence[str] = ("params", "flops")) -> np.ndarray:
        """Return float32 (N, e): log of the named positive features, standardised over the table.

        Raises:
            DataError: for a feature the table lacks, an architecture without it, or a value that is not positive.
        """
        columns = []
        for name in names:
            column = self.features.get(name)
            if not column:
                raise DataError(
                    f"task {self.spec.name!r} has no feature {name!r}",
                    hint=f"its features are {', '.join(self.features) or 'none'}",
                )
            whole = np.array(list(column.values()), dtype=np.float64)
            missing = next((arch for arch in archs if tuple(arch) not in column), None)
            if missing is not None:
                raise DataError(f"feature {name!r} lacks {self.space.format(missing)}")
            if not (np.isfinite(whole) & (whole > 0)).all():
                raise DataError(
                    f"feature {name!r} has values that are not positive", hint="it goes through a logarithm"
                )
            logs = np.log(whole)
            chosen = np.log(np.array([column[tuple(arch)] for arch in archs], dtype=np.float64))
            columns.append((chosen - logs.mean()) / (logs.std() or 1.0))
        return np.stack(columns, axis=1).astype(np.float32) if columns else np.zeros((len(archs), 0), dtype=np.float32)


def _shown(value: float | None) -> str:
    return "failed" if value is None else f"{value:.10g}"
