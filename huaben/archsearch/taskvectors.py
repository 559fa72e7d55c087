"""Task embeddings that need no pictures: given, learned, from responses, and none.

A benchmark that is only a table (TransNAS-Bench-101's, say) holds no task data, so Task2Vec cannot be computed on it.
There the learned vectors or the response embedding stand in; results of such runs are not results of Task2Vec.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from .base import Arch
from .task import TaskSpec, TaskTable

TASK_DIM = 16
"""Default width of a task vector."""


class TaskEmbedder(ABC):
    """Turns a task into a vector that the relation predictor is conditioned on.

    Attributes:
        dim: width of the vectors.
    """

    dim: int

    @abstractmethod
    def embed(self, task: Any) -> np.ndarray:
        """Return float32 (dim,); the same task always gives the same vector."""

    def embed_all(self, tasks: Sequence[Any]) -> np.ndarray:
        """Return float32 (T, dim)."""
        vectors = [self.embed(task) for task in tasks]
        return np.stack(vectors) if vectors else np.zeros((0, self.dim), dtype=np.float32)

    def vectors(self, tasks: Mapping[str, Any]) -> dict[str, list[float]]:
        """Return task name to numbers, the form a search takes, for tasks given by name."""
        return {name: self.embed(task).tolist() for name, task in tasks.items()}

    def describe(self) -> dict[str, Any]:
        """Return JSON values that say how the vectors were made, for results files."""
        return {"embedding": type(self).__name__, "dim": self.dim}


class NullEmbedding(TaskEmbedder):
    """All tasks alike: zeros. The single-task ablation."""

    def __init__(self, dim: int = TASK_DIM) -> None:
        self.dim = _check_dim(dim)

    def embed(self, task: Any) -> np.ndarray:
        return np.zeros(self.dim, dtype=np.float32)


class GivenEmbedding(TaskEmbedder):
    """Vectors by task name, computed elsewhere.

    Args:
        vectors: task name to numbers, all of one width.

    Raises:
        ConfigError: for no task, differing widths or numbers that are not finite.
    """

    def __init__(self, vectors: Mapping[str, Sequence[float] | np.ndarray]) -> None:
        self.given: dict[str, np.ndarray] = {}
        for name, values in vectors.items():
            try:
                vector = np.asarray(values, dtype=np.float32)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"the vector of task {name!r} is not made of numbers: {error}") from error
            if vector.ndim != 1 or not len(vector) or not np.isfinite(vector).all():
                raise ConfigError(f"the vector of task {name!r} has shape {vector.shape} or is not finite")
            self.given[name] = vector
        widths = {len(vector) for vector in self.given.values()}
        if len(widths) != 1:
            raise ConfigError(
                f"task vectors have the widths {sorted(widths)}, expected one", hint="give all tasks one width"
            )
        self.dim = widths.pop()

    def embed(self, task: str | TaskSpec | TaskTable) -> np.ndarray:
        """Return the vector of a task, given by name, specification or table.

        Raises:
            DataError: for a task without a vector.
        """
        name = task_name(task)
        if name not in self.given:
            near = difflib.get_close_matches(name, self.given, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(self.given)}"
            raise DataError(f"task {name!r} has no vector", hint=hint)
        return self.given[name].copy()


@dataclass(frozen=True, slots=True)
class LearnedTaskEmbedding:
    """A free vector per task, fitted with the relation predictor; a new task starts at the mean of the known ones.

    It holds no data: it says that vectors are parameters, and where they start.

    Attributes:
        dim: width of a vector.
        scale: standard deviation of the initial numbers.
    """

    dim: int = TASK_DIM
    scale: float = 0.1

    def __post_init__(self) -> None:
        _check_dim(self.dim)
        if not self.scale >= 0:
            raise ConfigError(f"scale={self.scale!r} is negative")

    def initial(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return float32 (count, dim), the starting vectors of ``count`` source tasks."""
        return (self.scale * rng.standard_normal((count, self.dim))).astype(np.float32)

    def unseen(self, vectors: np.ndarray) -> np.ndarray:
        """Return float32 (dim,), where a task without data starts: the mean of ``vectors`` (T, dim); zeros if T is 0."""
        return vectors.mean(axis=0).astype(np.float32) if len(vectors) else np.zeros(self.dim, dtype=np.float32)

    def describe(self) -> dict[str, Any]:
        """Return JSON values that say how the vectors are made, for results files."""
        return {"embedding": type(self).__name__, "dim": self.dim, "scale": self.scale}


class ResponseEmbedding(TaskEmbedder):
    """How a task's values run along with those of the source tasks: Spearman correlations over shared architectures.

    It needs values of the task itself, so a target has one only after its first evaluations.

    Args:
        sources: the source tasks; the vector has one number for each.
        min_common: fewer shared architectures than this give 0, no opinion.
    """

    def __init__(self, sources: Sequence[TaskTable], *, min_common: int = 5) -> None:
        if not sources:
            raise ConfigError("no source task to correlate with", hint="use NullEmbedding without sources")
        if min_common < 2:
            raise ConfigError(f"min_common={min_common}, expected at least 2")
        self.sources = tuple(sources)
        self.min_common = min_common
        self.dim = len(self.sources)

    def embed(self, task: TaskTable | Mapping[Arch, float]) -> np.ndarray:
        """Return float32 (number of sources,), each from -1 to 1.

        Args:
            task: a table, or architecture to *oriented* value.
        """
        known = (
            dict(zip(task.archs, task.oriented_values(), strict=True)) if isinstance(task, TaskTable) else dict(task)
        )
        vector = np.zeros(self.dim, dtype=np.float32)
        for place, source in enumerate(self.sources):
            common = [arch for arch in known if arch in source]
            if len(common) >= self.min_common:
                mine = np.array([known[arch] for arch in common], dtype=np.float64)
                vector[place] = spearman(mine, source.oriented_values(common))
        return vector

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "sources": [source.spec.name for source in self.sources]}


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Return the rank correlation of two float arrays (N,), ties at their mean rank; 0 where one of them is constant."""
    ranks = [_mean_ranks(values) - (len(values) - 1) / 2 for values in (first, second)]
    scale = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float((ranks[0] * ranks[1]).sum() / scale) if scale > 0 else 0.0


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    return (last - (counts - 1) / 2)[inverse]


def task_name(task: str | TaskSpec | TaskTable) -> str:
    """Return the name of a task given by name, specification or table."""
    if isinstance(task, TaskTable):
        return task.spec.name
    return task.name if isinstance(task, TaskSpec) else task


def _check_dim(dim: int) -> int:
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise ConfigError(f"dim={dim!r} is not a positive whole number")
    return dim
