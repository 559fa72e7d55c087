"""Several relation predictors, fitted together: sources first, then the target task round by round.

All members are one batched computation. Fitting is a pure function of data, configuration and seed; no global random
state is read or changed, and on one thread the same seed gives the same bits.

Shape letters: M members, U architectures, T tasks, P pairs, d task vector.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from ..errors import CheckpointError, ConfigError, DataError
from ..pretrained import CONFIG_NAME, FORMAT_VERSION, WEIGHTS_NAME, read_config, read_weights, write_atomic
from ..rng import check_seed, torch_stream
from .base import Arch, SearchSpace
from .calibration import Calibration, calibrate
from .encoder import PreparedGraphs
from .graphs import GraphBatch
from .pairs import Observations, PairSampler, bag, observed
from .relation import MAX_PAIRS, RelationConfig, RelationPredictor, Relations

MODEL_TYPE = "relation-ensemble"
HELD_OUT_PAIRS = 256
"""Most held-out pairs for each member and task."""
MIN_CALIBRATION_PAIRS = 60
"""Fewer held-out pairs of the target than this, over all members, and the sources' are used."""


@dataclass(frozen=True, slots=True)
class FitReport:
    """What a fit did.

    Attributes:
        steps: taken before it ended or was stopped.
        best_steps: for each member, the step whose weights were kept.
        held_out_loss: for each member, of the kept weights; NaN where nothing was held out.
    """

    steps: int
    best_steps: tuple[int, ...]
    held_out_loss: tuple[float, ...]


def fit_relations(
    predictor: RelationPredictor,
    tasks: Tensor,
    graphs: PreparedGraphs,
    sampler: PairSampler,
    *,
    task_weights: Sequence[float],
    always: Sequence[int] = (),
    steps: int,
    learning_rate: float,
    seed: int,
    name: str,
) -> FitReport:
    """Fit ``predictor`` and, where they require gradients, the task vectors; both are changed in place.

    Binary cross-entropy, averaged over the pairs of a task and then over tasks by weight; AdamW with a cosine that ends
    at 0; gradients are clipped for each member.

    Args:
        predictor: M members.
        tasks: (M, T, d).
        graphs: the U architectures of ``sampler``.
        sampler: of the pairs.
        task_weights: T numbers from 0.
        always: places of the architectures that every step encodes; of the others ``archs_per_step`` are drawn.
        steps: at most.
        learning_rate: at the first step.
        seed, name: of the random stream.
    """
    config, members = predictor.config, predictor.members
    generator = torch_stream(seed, "fit relations", name)
    weights = torch.as_tensor(np.asarray(task_weights, dtype=np.float32) * sampler.usable.astype(np.float32))
    if steps == 0 or float(weights.sum()) == 0:
        return FitReport(0, (0,) * members, (math.nan,) * members)
    weights = weights / weights.sum()
    parameters: list[Tensor] = [*predictor.parameters(), *([tasks] if tasks.requires_grad else [])]
    groups: list[dict[str, Any]] = [{"params": list(predictor.parameters())}]
    if tasks.requires_grad:
        groups.append({"params": [tasks], "weight_decay": 0.0})  # a vector without gradient stays as it is
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=config.weight_decay)
    fixed = torch.as_tensor(list(always), dtype=torch.long)
    others = torch.as_tensor(np.setdiff1d(np.arange(len(graphs)), fixed.numpy()), dtype=torch.long)
    whole = torch.arange(len(graphs)).expand(members, -1) if len(others) <= config.archs_per_step else None
    judge = _Judge(predictor, tasks, graphs, sampler, weights, seed) if config.eval_every else None
    taken = 0
    for step in range(steps):
        if whole is not None:
            subset, batch = whole, graphs
        else:
            drawn = torch.rand(members, len(others), generator=generator).argsort(1)[:, : config.archs_per_step]
            subset = torch.cat([fixed.expand(members, -1), others[drawn]], dim=1)
            batch = graphs.take(subset)
        pairs, labels, pair_weights = sampler.draw(subset, generator)
        logits = predictor(batch, pairs, tasks, generator)
        losses = F.binary_cross_entropy_with_logits(logits, labels, pair_weights, reduction="none").sum(2)
        losses = losses / pair_weights.sum(2).clamp_min(1)  # (M, T)
        loss = (losses * weights).sum()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        _clip_members(parameters, config.grad_clip)
        optimizer.step()
        taken = step + 1
        if judge is not None and (taken % config.eval_every == 0 or taken == steps) and judge.look(taken):
            break
    return FitReport(taken, (taken,) * members, (math.nan,) * members) if judge is None else judge.finish(taken)


def _clip_members(parameters: Sequence[Tensor], limit: float) -> None:
    """Scale each member's gradients to a norm of at most ``limit``."""
    grads = [p.grad for p in parameters if p.grad is not None and p.numel()]
    square = torch.stack([grad.flatten(1).square().sum(1) for grad in grads]).sum(0)
    scale = (limit / square.sqrt().clamp_min(1e-12)).clamp_max(1.0)
    if bool((scale < 1).any()):
        for grad in grads:
            grad.mul_(scale.view(-1, *[1] * (grad.ndim - 1)))


class _Judge:
    """Looks at held-out pairs, remembers each member's best weights, and says when to stop."""

    def __init__(
        self,
        predictor: RelationPredictor,
        tasks: Tensor,
        graphs: PreparedGraphs,
        sampler: PairSampler,
        weights: Tensor,
        seed: int,
    ) -> None:
        self.predictor, self.tasks, self.graphs, self.weights = predictor, tasks, graphs, weights
        self.pairs, self.labels, self.pair_weights = sampler.held_out(HELD_OUT_PAIRS, seed)
        self.members = predictor.members
        counts = self.pair_weights.sum(2)  # (M, T)
        # A task is trusted as far as it has pairs to show: a handful says little.
        self.shares = weights * counts / (counts + 30)
        self.able = self.shares.sum(1) > 0
        self.best = torch.full((self.members,), math.inf)
        self.best_steps = [0] * self.members
        self.kept: list[Tensor] = []
        self.misses = 0

    def _state(self) -> list[Tensor]:
        return [*self.predictor.parameters(), self.tasks]

    @torch.no_grad()
    def look(self, step: int) -> bool:
        """Judge the weights after ``step``; return whether to stop."""
        if not bool(self.able.any()):
            return False
        logits = self.predictor(self.graphs, self.pairs, self.tasks)
        losses = F.binary_cross_entropy_with_logits(logits, self.labels, self.pair_weights, reduction="none").sum(2)
        losses = losses / self.pair_weights.sum(2).clamp_min(1)
        loss = (losses * self.shares).sum(1) / self.shares.sum(1).clamp_min(1e-12)
        better = (loss < self.best) & self.able
        if not self.kept:
            self.kept = [p.detach().clone() for p in self._state()]
        for kept, now in zip(self.kept, self._state(), strict=True):
            kept[better] = now[better]
        self.best = torch.where(better, loss, self.best)
        for member in range(self.members):
            if better[member]:
                self.best_steps[member] = step
        self.misses = 0 if bool(better.any()) else self.misses + 1
        return self.misses >= self.predictor.config.patience and bool(self.able.all())

    @torch.no_grad()
    def finish(self, step: int) -> FitReport:
        """Put each member's best weights back; a member without held-out pairs keeps its last ones."""
        if self.kept:
            for kept, now in zip(self.kept, self._state(), strict=True):
                now[self.able] = kept[self.able]
        steps = tuple(best if able else step for best, able in zip(self.best_steps, self.able.tolist(), strict=True))
        losses = (loss if able else math.nan for loss, able in zip(self.best.tolist(), self.able.tolist(), strict=True))
        return FitReport(step, steps, tuple(losses))


class RelationEnsemble:
    """Relation predictors of one search space, for transfer from source tasks to a target task.

    Args:
        space: encodes architectures as graphs.
        config: of the predictors and their fitting.
        members: how many; 1 gives no uncertainty.
        seed: of initial weights, bootstrap samples and pairs.
        encode: architectures to graphs; default ``space.encode``. Give one to add features of whole architectures.

    One phase per call::

        ensemble = RelationEnsemble(space, members=4, seed=0).fit_sources(tables)
        ensemble.fit_target(archs, values)           # once per round, with everything evaluated so far
        mean, std = ensemble.probabilities(space.encode(candidates))
    """

    def __init__(
        self,
        space: SearchSpace,
        config: RelationConfig | None = None,
        *,
        members: int = 4,
        seed: int = 0,
        encode: Callable[[Sequence[Arch]], GraphBatch] | None = None,
    ) -> None:
        if members < 1:
            raise ConfigError(f"members={members} is below 1", hint="use 3 to 5 for uncertainty, 1 for none")
        self.space, self.config = space, config or RelationConfig()
        self.members, self.seed = members, check_seed(seed)
        self.encode: Callable[[Sequence[Arch]], GraphBatch] = encode or space.encode
        self.sources = Observations((), np.zeros((0, 0)))
        self.target = Observations((), np.zeros((0, 0)))
        self.rounds = 0
        self.reports: list[FitReport] = []
        self.calibration = Calibration()
        self._predictor: RelationPredictor | None = None
        self._source_state: dict[str, Tensor] = {}
        self._source_tasks = torch.zeros(members, 0, self.config.task_dim)  # after the source phase
        self._tasks = torch.zeros(members, 0, self.config.task_dim)  # now
        self._target_task: Tensor | None = None
        self._given_sources = False

    @property
    def num_sources(self) -> int:
        return self.sources.num_tasks

    # -- fitting

    def fit_sources(
        self,
        tables: Sequence[Any],
        task_vectors: Sequence[Any] | None = None,
        *,
        cache: str | Path | None = None,
    ) -> Self:
        """Fit on source tasks: the first phase, once.

        Args:
            tables: a TaskTable, or (architectures, values) with higher better, for each source. Sources with fewer than
                two different values teach nothing. None at all leaves the fresh weights.
            task_vectors: one of ``task_dim`` numbers for each source; None learns them.
            cache: folder that keeps fitted weights by content: the same sources, configuration, seed and members are
                read back instead of fitted again.

        Raises:
            DataError: for unusable tables or vectors.
        """
        data = Observations.of([observed(table) for table in tables])
        given = self._vectors(task_vectors, data.num_tasks)
        folder = None
        if cache is not None:
            folder = Path(cache) / self._digest(data, given)
            if (folder / CONFIG_NAME).is_file():
                self._restore(folder)
                return self
        generator = torch_stream(self.seed, "task vectors")
        start = torch.randn(self.members, data.num_tasks, self.config.task_dim, generator=generator) * 0.3
        self.sources, self.target, self.rounds = data, Observations((), np.zeros((0, 0))), 0
        self._target_task, self._predictor, self.reports = None, None, []
        self._given_sources = given is not None
        tasks = start if given is None else given
        if len(data.archs):
            graphs = self.encode(data.archs)
            predictor = self._build(graphs)
            prepared = predictor.encoder.prepare(graphs)
            sampler = PairSampler(data, bag(data.archs, self.members, self.seed, self.config), self.config)
            tasks = tasks.clone().requires_grad_(given is None)
            report = fit_relations(
                predictor,
                tasks,
                prepared,
                sampler,
                task_weights=[1.0] * data.num_tasks,
                steps=self.config.source_steps,
                learning_rate=self.config.source_lr,
                seed=self.seed,
                name="sources",
            )
            self.reports.append(report)
            tasks = tasks.detach()
            self._source_state = {key: value.clone() for key, value in predictor.state_dict().items()}
            self._calibrate(prepared, sampler, tasks, target=None)
        self._source_tasks = tasks.clone()
        self._tasks = tasks
        if folder is not None:
            self.save(folder)
        return self

    def fit_target(
        self,
        archs: Sequence[Arch],
        values: Sequence[float] | npt.NDArray[np.float64],
        *,
        task_vector: Any = None,
        source_weights: Sequence[float] | None = None,
    ) -> FitReport:
        """Fit on everything evaluated on the target so far, sources rehearsed along: one round.

        Args:
            archs, values: all of them, not only this round's; higher is better, values that are not finite are left out.
            task_vector: ``task_dim`` numbers; None learns it from the mean of the sources on.
            source_weights: of each source in the loss, from 0; None is 1 each. See :meth:`source_weights`.

        Raises:
            DataError: for unusable values, vectors or weights.
        """
        target = Observations.of([observed((archs, values))])
        weights = [1.0] * self.num_sources if source_weights is None else [float(w) for w in source_weights]
        if len(weights) != self.num_sources or not all(math.isfinite(w) and w >= 0 for w in weights):
            raise DataError(f"source_weights={weights}, expected {self.num_sources} finite numbers from 0")
        vector = None if task_vector is None else self._vectors([task_vector], 1)
        data = self.sources.join(target)
        if not data.archs:
            raise DataError("there is nothing to fit: no architecture has a finite value", hint="evaluate some first")
        graphs = self.encode(data.archs)
        predictor = self._build(graphs)
        self.rounds += 1
        if self.config.restart == "source" or self._target_task is None:
            predictor.load_state_dict(self._source_state)
            self._tasks, self._target_task = self._source_tasks.clone(), None
        # Given vectors stay as they are; learned ones go on learning.
        fixed = self._tasks.detach()
        start = (self.target_task if vector is None else vector[:, 0]).detach()
        learned = torch.cat([fixed, start.unsqueeze(1)], dim=1).clone()
        free = torch.ones(self.num_sources + 1, 1)
        free[: self.num_sources] = float(not self._given_sources)
        free[self.num_sources] = float(vector is None)
        tasks = learned.requires_grad_(bool(free.any()))
        hook = tasks.register_hook(lambda grad: grad * free) if tasks.requires_grad else None
        counts = bag(data.archs, self.members, self.seed, self.config)
        sampler = PairSampler(data, counts, self.config)
        prepared = predictor.encoder.prepare(graphs)
        places = {arch: place for place, arch in enumerate(data.archs)}
        report = fit_relations(
            predictor,
            tasks,
            prepared,
            sampler,
            task_weights=[*weights, self.config.target_weight],
            always=sorted(places[arch] for arch in target.archs),
            steps=self.config.target_steps,
            learning_rate=self.config.target_lr,
            seed=self.seed,
            name=f"target {self.rounds}",
        )
        if hook is not None:
            hook.remove()
        tasks = tasks.detach()
        self._tasks, self._target_task = tasks[:, :-1].clone(), tasks[:, -1].clone()
        self.target = target
        self.reports.append(report)
        self._calibrate(prepared, sampler, tasks, target=self.num_sources)
        return report

    def _build(self, graphs: GraphBatch) -> RelationPredictor:
        """Return the predictor, made for the features of ``graphs`` the first time."""
        if self._predictor is None:
            self._predictor = RelationPredictor(
                self.config, graphs.num_features, graphs.num_extra, members=self.members, seed=self.seed
            )
            self._source_state = {key: value.clone() for key, value in self._predictor.state_dict().items()}
        return self._predictor

    def _vectors(self, vectors: Sequence[Any] | None, count: int) -> Tensor | None:
        """Return given task vectors as (M, T, d)."""
        if vectors is None:
            return None
        array = np.asarray([np.asarray(vector, dtype=np.float32) for vector in vectors], dtype=np.float32)
        expected = (count, self.config.task_dim)
        if array.reshape(len(array), -1).shape != expected or not np.isfinite(array).all():
            raise DataError(
                f"task vectors have shape {array.shape}, expected {expected} and finite values",
                hint="reduce them to RelationConfig.task_dim numbers, or set task_dim to their length",
            )
        return torch.as_tensor(array).view(1, *expected).expand(self.members, -1, -1).clone()

    def _calibrate(self, graphs: PreparedGraphs, sampler: PairSampler, tasks: Tensor, target: int | None) -> None:
        """Fit the temperature on held-out pairs: the target's where there are enough, else the sources'."""
        assert self._predictor is not None
        pairs, labels, weights = sampler.held_out(HELD_OUT_PAIRS, self.seed)
        with torch.no_grad():
            logits = self._predictor(graphs, pairs, tasks)
        hard = (labels > 0.5).numpy()
        seen = (weights > 0).numpy()
        if target is not None and seen[:, target].sum() >= MIN_CALIBRATION_PAIRS:
            chosen, of = seen[:, target], "target"
            found, truth = logits[:, target].numpy()[chosen], hard[:, target][chosen]
        else:
            seen = seen[:, : self.num_sources]
            of = "sources"
            found, truth = logits[:, : self.num_sources].numpy()[seen], hard[:, : self.num_sources][seen]
        if len(found) < MIN_CALIBRATION_PAIRS:
            self.calibration = Calibration()
        else:
            self.calibration = calibrate(found, truth, of)

    # -- reading

    @property
    def target_task(self) -> Tensor:
        """The target's task vector (M, d); before the first round the mean of the sources, 0 without any."""
        if self._target_task is not None:
            return self._target_task
        if self.num_sources:
            return self._tasks.mean(1)
        return torch.zeros(self.members, self.config.task_dim)

    def relations(self, graphs: GraphBatch, *, task_vector: Any = None) -> Relations:
        """Embed architectures once and return their calibrated relations, to be read in blocks.

        Args:
            graphs: the architectures.
            task_vector: instead of the target's (for zero-shot use of a given vector).
        """
        vector = None if task_vector is None else self._vectors([task_vector], 1)
        task = self.target_task if vector is None else vector[:, 0]
        relations = self._build(graphs).relations(graphs, task)
        relations.temperature = self.calibration.temperature
        return relations

    def probabilities(
        self, graphs: GraphBatch, *, max_pairs: int = MAX_PAIRS
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return mean and standard deviation over members (N, N) of the probability that row beats column.

        Raises:
            DataError: if that is more than ``max_pairs`` pairs.
        """
        mean, std = self.relations(graphs).matrix(max_pairs)
        return mean.numpy(), std.numpy()

    def source_weights(
        self, archs: Sequence[Arch], values: Sequence[float] | npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """Return how well each source knows the target, (T,) in [0, 1]: against negative transfer.

        The weights of the source phase, which have seen no value of the target, predict its pairs as if it were each
        source in turn. The weight is the accuracy above one half, as a share of the best source's; a source that is
        right no more than half the time gets 0. Without two different values all get 1.
        """
        target = Observations.of([observed((archs, values))])
        if (
            self._predictor is None
            or not self.num_sources
            or len(np.unique(target.values[np.isfinite(target.values)])) < 2
        ):
            return np.ones(self.num_sources)
        now = {key: value.clone() for key, value in self._predictor.state_dict().items()}
        self._predictor.load_state_dict(self._source_state)
        first, second = np.triu_indices(len(target.archs), 1)
        pairs = torch.as_tensor(np.stack([first, second], 1)).expand(self.members, self.num_sources, -1, -1)
        with torch.no_grad():
            embeddings = self._predictor.embed(self.encode(target.archs))
            logits = self._predictor.logits(embeddings, pairs, self._source_tasks).mean(0).numpy()
        self._predictor.load_state_dict(now)
        gap = target.values[0][first] - target.values[0][second]
        usable = np.isfinite(gap) & (gap != 0)
        right = ((logits > 0) == (gap > 0))[:, usable].mean(1) - 0.5
        return np.clip(right, 0, None) / max(right.max(), 1e-12) if right.max() > 0 else np.zeros(self.num_sources)

    # -- keeping

    def clone(self) -> Self:
        """Return a copy that can be fitted on without changing this one."""
        twin = copy.copy(self)
        twin._predictor = copy.deepcopy(self._predictor)
        twin.reports = list(self.reports)
        return twin

    def _digest(self, data: Observations, given: Tensor | None) -> str:
        """Return a name for what the source phase depends on."""
        sources = self.config.to_dict()
        for key in ("target_steps", "target_lr", "target_weight", "restart"):
            sources.pop(key)
        sources |= {
            "members": self.members,
            "seed": self.seed,
            "space": self.space.fingerprint(),
            "format": FORMAT_VERSION,
        }
        graphs = self.encode(data.archs) if data.archs else None
        hashed = hashlib.blake2b(json.dumps(sources, sort_keys=True).encode(), digest_size=16)
        hashed.update(repr(data.archs).encode())
        hashed.update(np.ascontiguousarray(data.values).tobytes())
        hashed.update(b"" if given is None else given.numpy().tobytes())
        hashed.update(b"" if graphs is None else graphs.nodes.numpy().tobytes() + graphs.extra.numpy().tobytes())
        return hashed.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write configuration, weights and the sources' values to a folder: JSON and safetensors."""
        folder = Path(folder)
        tensors = {
            "source_tasks": self._source_tasks,
            "tasks": self._tasks,
            "sources.archs": _codes(self.sources.archs),
            "sources.values": torch.as_tensor(self.sources.values),
            "target.archs": _codes(self.target.archs),
            "target.values": torch.as_tensor(self.target.values),
        }
        if self._target_task is not None:
            tensors["target_task"] = self._target_task
        values: dict[str, Any] = {
            "model_type": MODEL_TYPE,
            "format_version": FORMAT_VERSION,
            "config": self.config.to_dict(),
            "members": self.members,
            "seed": self.seed,
            "space": self.space.fingerprint(),
            "rounds": self.rounds,
            "given_sources": self._given_sources,
            "calibration": self.calibration.to_dict(),
            "sizes": None,
        }
        if self._predictor is not None:
            values["sizes"] = [self._predictor.encoder.node_size, self._predictor.encoder.extra_size]
            tensors |= {f"now.{key}": value for key, value in self._predictor.state_dict().items()}
            tensors |= {f"source.{key}": value for key, value in self._source_state.items()}
        write_atomic(folder / WEIGHTS_NAME, save({key: value.contiguous() for key, value in tensors.items()}))
        text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        write_atomic(folder / CONFIG_NAME, text.encode())

    @classmethod
    def load(
        cls,
        folder: str | Path,
        space: SearchSpace,
        *,
        encode: Callable[[Sequence[Arch]], GraphBatch] | None = None,
    ) -> Self:
        """Read an ensemble that :meth:`save` wrote; fitting goes on as if it had not been interrupted.

        Raises:
            CheckpointError: for anything but a complete folder of this search space.
        """
        values = read_config(folder, MODEL_TYPE)
        try:
            config = RelationConfig.from_dict(values["config"])
            ensemble = cls(space, config, members=values["members"], seed=values["seed"], encode=encode)
        except (KeyError, TypeError, ConfigError) as error:
            raise CheckpointError(f"{Path(folder) / CONFIG_NAME} is not a saved ensemble: {error}") from error
        ensemble._restore(Path(folder))
        return ensemble

    def _restore(self, folder: Path) -> None:
        """Read a folder's weights and state into this ensemble."""
        values, tensors = read_config(folder, MODEL_TYPE), read_weights(folder / WEIGHTS_NAME)
        try:
            if values["space"] != self.space.fingerprint():
                raise CheckpointError(
                    f"{folder} was fitted on another search space than {self.space.name}",
                    hint="load it with the space it was saved with",
                )
            self.sources = _observations(tensors["sources.archs"], tensors["sources.values"])
            self.target = _observations(tensors["target.archs"], tensors["target.values"])
            self._source_tasks, self._tasks = tensors["source_tasks"], tensors["tasks"]
            self._target_task = tensors.get("target_task")
            self.rounds, self._given_sources = values["rounds"], values["given_sources"]
            self.calibration = Calibration.from_dict(values["calibration"])
            self.reports, self._predictor = [], None
            if values["sizes"] is not None:
                node_size, extra_size = values["sizes"]
                predictor = RelationPredictor(self.config, node_size, extra_size, members=self.members, seed=self.seed)
                predictor.load_state_dict(_under(tensors, "now."))
                self._predictor, self._source_state = predictor, _under(tensors, "source.")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{folder} is not a complete ensemble: {error}", hint="fit and save it again"
            ) from error


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _codes(archs: Sequence[Arch]) -> Tensor:
    return torch.as_tensor(np.asarray(archs, dtype=np.int64).reshape(len(archs), -1 if archs else 0))


def _observations(archs: Tensor, values: Tensor) -> Observations:
    return Observations(tuple(tuple(row) for row in archs.tolist()), values.numpy())
