"""Task2Vec: a task as the Fisher information that a frozen probe network's filters carry about it.

Source: Achille et al., "Task2Vec: Task Embedding for Meta-Learning", ICCV 2019.
Differs: any probe and more kinds of output than the reference code (see :mod:`~huaben.archsearch.fisher`); the
reduction to a short vector and the appended type and sizes are ours, in the spirit of Arch-Graph (arXiv:2204.05941),
whose task vector covers data, requirements and input and output types.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor, nn

from ..config import Config
from ..errors import ConfigError, DataError
from ..files import write_bytes
from ..rng import torch_stream
from .fisher import TaskData, diagonal_fisher, filters_of, head_targets, log_likelihood, task_features
from .taskvectors import TASK_DIM, TaskEmbedder

GROUPS = ("classification", "dense", "regression", "self-supervised")
NUM_META = len(GROUPS) + 2
"""Numbers appended to the reduced Fisher vector: one-hot type of task, log size of an input and of an output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task2VecConfig(Config):
    """How the head is fitted, the Fisher information estimated and the vector made.

    Attributes:
        epochs, learning_rate, weight_decay: of the head (Adam).
        max_samples: samples used of each task, from the first.
        batch: samples at a time.
        passes: Monte-Carlo draws of the targets per sample.
        include_norms: whether the scales of normalisations count beside the filters, as in the reference code.
        per_sample: see :func:`~huaben.archsearch.fisher.diagonal_fisher`.
        dim: width of the vector, the six numbers of type and sizes included.
        reduce: "pca" over the fitted tasks, or "random", a seeded projection that needs no other task.
        metadata: whether type and sizes are appended.
        seed: of head, sampled targets and projection.

    Source: Task2Vec's reference code for the defaults of the head (10 epochs, 4e-4, 1e-4, 10,000 samples).
    """

    epochs: int = 10
    learning_rate: float = 4e-4
    weight_decay: float = 1e-4
    max_samples: int = 10_000
    batch: int = 32
    passes: int = 1
    include_norms: bool = True
    per_sample: Literal["vmap", "loop"] = "vmap"
    dim: int = TASK_DIM
    reduce: Literal["pca", "random"] = "pca"
    metadata: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_samples", "batch", "passes", "dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is not positive")
        if self.epochs < 0 or self.learning_rate <= 0 or self.weight_decay < 0:
            raise ConfigError(
                f"epochs={self.epochs}, learning_rate={self.learning_rate}, weight_decay={self.weight_decay}:"
                " expected 0 or more, above 0, and 0 or more"
            )
        if self.num_components < 1:
            raise ConfigError(f"dim={self.dim} leaves no room beside {NUM_META} numbers of metadata", hint="use 16")

    @property
    def num_components(self) -> int:
        """Numbers that come from the Fisher information."""
        return self.dim - (NUM_META if self.metadata else 0)


class Task2VecEmbedder(TaskEmbedder):
    """Embeds tasks of pictures or text given as samples.

    A benchmark that is only a table has no samples; use ``LearnedTaskEmbedding`` or ``ResponseEmbedding`` there.

    Args:
        probe: network without head, from inputs to features (N, D, h, w), (N, L, D) or pooled (N, D). It is copied,
            frozen and put into eval mode.
        config: see :class:`Task2VecConfig`.
        label: what the probe is, for results ("ResNet-34, ImageNet"); random probes of huaben label themselves.
        exclude: names of submodules whose weights do not count.
        cache: folder that keeps the Fisher vectors by content hash; None for memory only.

    Raises:
        ConfigError: if the probe has no filters.
    """

    def __init__(
        self,
        probe: nn.Module,
        *,
        config: Task2VecConfig | None = None,
        label: str = "",
        exclude: Collection[str] = (),
        cache: str | Path | None = None,
    ) -> None:
        self.config = config or Task2VecConfig()
        self.dim = self.config.dim
        found = label or getattr(probe, "label", "")
        self.label = found if isinstance(found, str) and found else "user's probe"
        self.probe = copy.deepcopy(probe).eval().requires_grad_(False)
        self.filters = filters_of(self.probe, norms=self.config.include_norms, exclude=exclude)
        if not self.filters:
            raise ConfigError("the probe has no weights that count", hint="expected convolutions or linear layers")
        self.weights: dict[str, Tensor] = {**dict(self.probe.named_parameters()), **dict(self.probe.named_buffers())}
        self.cache = None if cache is None else Path(cache)
        self._memory: dict[str, np.ndarray] = {}
        self._basis: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self._probe_hash = self._hash_probe(exclude)

    def _hash_probe(self, exclude: Collection[str]) -> str:
        digest = hashlib.blake2b(digest_size=16)
        settings = self.config.to_dict()
        for unrelated in ("dim", "reduce", "metadata", "per_sample"):  # nothing that the Fisher vector depends on
            settings.pop(unrelated)
        digest.update(json.dumps([settings, sorted(exclude), type(self.probe).__name__], sort_keys=True).encode())
        for name, tensor in sorted(self.weights.items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(np.ascontiguousarray(tensor.detach().cpu().float().numpy()).tobytes())
        return digest.hexdigest()

    @property
    def num_filters(self) -> int:
        return sum(self.weights[name].shape[axis] for name, axis in self.filters.items())

    def fisher(self, data: TaskData) -> np.ndarray:
        """Return float64 (num_filters,), the diagonal Fisher information averaged within each filter.

        The head, fitted on cached features of the frozen probe, has no part in it. The result is kept by the content
        of the samples, the probe and the settings.
        """
        key = hashlib.blake2b(f"{self._probe_hash} {data.content()}".encode(), digest_size=16).hexdigest()
        if key not in self._memory:
            stored = self._read(key)
            if stored is None:
                stored = self._compute(data.first(self.config.max_samples))
                self._write(key, stored)
            self._memory[key] = stored
        return self._memory[key].copy()

    def _read(self, key: str) -> np.ndarray | None:
        path = None if self.cache is None else self.cache / f"{key}.safetensors"
        if path is None or not path.is_file():
            return None
        try:
            vector = load_file(path).get("fisher")
        except (SafetensorError, OSError, ValueError):
            return None  # half a file is no file: compute again
        return vector if vector is not None and vector.shape == (self.num_filters,) else None

    def _write(self, key: str, vector: np.ndarray) -> None:
        if self.cache is not None:
            write_bytes(self.cache / f"{key}.safetensors", save({"fisher": vector}))

    def _compute(self, data: TaskData) -> np.ndarray:
        targets = head_targets(self.probe, self.weights, data)
        head = self._fit_head(data, targets)

        def predict(weights: dict[str, Tensor], inputs: Tensor, mask: Tensor | None) -> Tensor:
            return apply_head(head, task_features(self.probe, weights, data, inputs, mask))

        vector = diagonal_fisher(
            predict,
            self.weights,
            self.filters,
            data,
            targets,
            generator=torch_stream(self.config.seed, "task2vec", "targets"),
            batch=self.config.batch,
            passes=self.config.passes,
            per_sample=self.config.per_sample,
        )
        if not np.isfinite(vector).all():
            raise DataError(f"task {data.name!r}: the Fisher information is not finite", hint="scale the inputs")
        return vector

    def _fit_head(self, data: TaskData, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight (K, D) and bias (K,) of the head, fitted on features computed once."""
        config = self.config
        with torch.no_grad():
            features = torch.cat(
                [
                    task_features(
                        self.probe,
                        self.weights,
                        data,
                        data.inputs[start : start + config.batch],
                        None if data.mask is None else data.mask[start : start + config.batch],
                    )
                    for start in range(0, len(data.inputs), config.batch)
                ]
            )
        generator = torch_stream(config.seed, "task2vec", "head")
        bound = 1 / math.sqrt(features.shape[1])
        weight = (torch.rand(data.num_outputs, features.shape[1], generator=generator) * 2 - 1) * bound
        bias = torch.zeros(data.num_outputs)
        weight.requires_grad_(), bias.requires_grad_()
        optimizer = torch.optim.Adam([weight, bias], lr=config.learning_rate, weight_decay=config.weight_decay)
        for _ in range(config.epochs):
            order = torch.randperm(len(features), generator=generator)
            for start in range(0, len(order), config.batch):
                rows = order[start : start + config.batch]
                outputs = apply_head((weight, bias), features[rows])
                optimizer.zero_grad()
                (-log_likelihood(data, outputs, targets[rows]).mean()).backward()
                optimizer.step()
        return weight.detach(), bias.detach()

    def fit(self, tasks: Sequence[TaskData]) -> Task2VecEmbedder:
        """Learn how to shorten Fisher vectors from these tasks; "random" needs it not.

        Logarithms are standardised per filter over the tasks and projected on their principal components.

        Raises:
            DataError: for fewer than two tasks.
        """
        if len(tasks) < 2:
            raise DataError(f"{len(tasks)} task to fit on, expected at least 2", hint="or use reduce='random'")
        logs = np.stack([self._log(task) for task in tasks])
        mean, spread = logs.mean(axis=0), logs.std(axis=0)
        spread = np.where(spread > 1e-12, spread, 1.0)
        _, values, rows = np.linalg.svd((logs - mean) / spread, full_matrices=False)
        kept = min(self.config.num_components, len(tasks) - 1)
        rows = rows[:kept] * np.sign(rows[np.arange(kept), np.abs(rows[:kept]).argmax(axis=1)])[:, None]
        # Every component at unit spread over the tasks, so that none drowns the others.
        scale = np.where(values[:kept] > 1e-12, values[:kept] / math.sqrt(len(tasks)), 1.0)
        self._basis = (mean, spread, rows / scale[:, None])
        return self

    def _log(self, data: TaskData) -> np.ndarray:
        return np.log(self.fisher(data) + 1e-12)

    def embed(self, task: TaskData) -> np.ndarray:
        """Return float32 (dim,): components, zeros where there are fewer, then type and sizes.

        Raises:
            ConfigError: before :meth:`fit`, unless ``reduce`` is "random".
        """
        vector = np.zeros(self.dim, dtype=np.float32)
        if self.config.reduce == "random":
            logs = self._log(task)
            logs = (logs - logs.mean()) / (logs.std() or 1.0)
            generator = torch_stream(self.config.seed, "task2vec", "projection")
            matrix = torch.randn(
                self.config.num_components, len(logs), generator=generator, dtype=torch.float64
            ).numpy()
            components = matrix @ logs / math.sqrt(len(logs))
        elif self._basis is None:
            raise ConfigError("no task was fitted", hint="call fit(source_tasks) first, or use reduce='random'")
        else:
            mean, spread, rows = self._basis
            components = rows @ ((self._log(task) - mean) / spread)
        vector[: len(components)] = components
        if self.config.metadata:
            vector[self.config.num_components :] = task_metadata(task)
        return vector

    def distance(self, first: TaskData, second: TaskData) -> float:
        """Return the normalised cosine distance of two tasks, from 0 (alike) to 1."""
        return fisher_distance(self.fisher(first), self.fisher(second))

    def distances(self, tasks: Sequence[TaskData]) -> np.ndarray:
        """Return float64 (T, T), symmetric with a zero diagonal."""
        vectors = [self.fisher(task) for task in tasks]
        table = np.zeros((len(tasks), len(tasks)))
        for i in range(len(tasks)):
            for j in range(i):
                table[i, j] = table[j, i] = fisher_distance(vectors[i], vectors[j])
        return table

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "probe": self.label,
            "num_filters": self.num_filters,
            "config": self.config.to_dict(),
        }


def apply_head(head: tuple[Tensor, Tensor], features: Tensor) -> Tensor:
    """Return (N, K) from features (N, D), or (N, K, P) from (N, D, P)."""
    weight, bias = head
    if features.ndim == 2:
        return features @ weight.T + bias
    return torch.einsum("kd,ndp->nkp", weight, features) + bias[:, None]


def fisher_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the cosine distance of ``F0 / (F0 + F1)`` and ``F1 / (F0 + F1)``, each per filter.

    Source: Task2Vec (Achille et al., ICCV 2019), section 4, symmetric distance.
    """
    total = first + second + 1e-12
    a, b = first / total, second / total
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return 0.0 if np.array_equal(first, second) else 1.0 - float(a @ b) / norms if norms > 0 else 1.0


def task_metadata(data: TaskData) -> np.ndarray:
    """Return float32 (6,): one-hot type of task; log10 of the numbers in an input and in an output, over 6."""
    found = np.zeros(NUM_META, dtype=np.float32)
    found[GROUPS.index(data.group())] = 1
    outputs = data.num_outputs * (data.targets[0, ...].numel() if data.likelihood == "segmentation" else 1)
    if data.likelihood in ("regression", "laplace"):
        outputs = data.targets[0].numel()
    found[-2:] = [math.log10(max(1, data.inputs[0].numel())) / 6, math.log10(max(1, outputs)) / 6]
    return found
