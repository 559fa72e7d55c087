"""Train a :class:`~.sequence_model.SequenceModel` on a Chomsky-hierarchy task, and score it beyond its training lengths.

The protocol of the tasks' paper and of DAPE: lengths uniform up to a limit, the whole answer in one pass, cross-entropy
summed over the answer; accuracy per symbol, then the mean over the test lengths. Everything is drawn from named streams
of one seed: the same seed on the same machine gives the same model.

Source: Delétang et al. 2023 (arXiv:2207.02098), appendix B; DAPE (arXiv:2405.14722), section on the Chomsky hierarchy.
Differs: the learning rate warms up and falls at the end; the reference keeps it constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..attention.scheme import SchemeConfig
from ..config import Config
from ..errors import ConfigError
from ..rng import stream_seed
from .chomsky import Task, held_out_batch, training_batch
from .sequence_model import SequenceModel, SequenceModelConfig, answer_loss

PAIRS_AT_ONCE = 1 << 19
"""Most (query, key) pairs a head scores at once in evaluation: bounds its memory, not its results."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceFit(Config):
    """How long and how fast to train.

    Attributes:
        steps: of the optimizer, AdamW.
        batch: strings a step, all of one length.
        learning_rate: the highest one.
        weight_decay: on matrices and kernels; 0 is Adam.
        grad_clip: largest gradient norm.
        warmup_steps: of linear climb.
        decay_share: share of the steps over which the learning rate falls linearly to zero.
    """

    steps: int = 5000
    batch: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    warmup_steps: int = 100
    decay_share: float = 0.2

    def __post_init__(self) -> None:
        for name, low in (("steps", 1), ("batch", 1), ("warmup_steps", 0), ("weight_decay", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name}={getattr(self, name)}, expected at least {low}", hint=f"use {low} or more")
        for name in ("learning_rate", "grad_clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}, expected a positive number", hint="use 1e-3 and 1.0")
        if not 0 <= self.decay_share <= 1:
            raise ConfigError(f"decay_share={self.decay_share} is not in [0, 1]", hint="use 0 for a constant rate")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, from 0."""
        climb = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        fall = self.steps * self.decay_share
        return self.learning_rate * climb * (min(1.0, (self.steps - step) / fall) if fall else 1.0)


def build_model(config: SequenceModelConfig, seed: int, device: str | torch.device = "cpu") -> SequenceModel:
    """Return a model whose fresh weights depend on the config and the seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "sequence model"))
        return SequenceModel(config).to(device)


def task_model_config(task: Task, scheme: SchemeConfig, *, longest: int, **sizes: Any) -> SequenceModelConfig:
    """Return a config with the task's alphabets, whose scheme knows the longest sequence of training.

    Args:
        task: to be learned.
        scheme: its ``train_length`` is set to the longest input of at most ``longest`` symbols with its answer; without
            a causal mask, ALiBi and T5 tell keys before a query from those after it, as the tasks' reference does.
        longest: training length.
        sizes: further fields of :class:`SequenceModelConfig`.
    """
    total = max(length + task.output_length(length) for length in task.lengths(1, longest))
    two_way = {} if sizes.get("causal", True) else {"alibi_past_bonus": 0.5, "t5_bidirectional": True}
    return SequenceModelConfig(
        input_size=task.input_size,
        output_size=task.output_size,
        scheme=scheme.replace(train_length=total, **two_way),
        **sizes,
    )


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished run.

    Attributes:
        model: in eval mode.
        losses: of every step, fp32 (steps,) on the CPU.
        skipped: steps left out because their gradient was not finite.
    """

    model: SequenceModel
    losses: Tensor
    skipped: int


def train_steps(
    model: SequenceModel,
    loss_at: Callable[[int], Tensor],
    fit: SequenceFit,
    *,
    seed: int,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Trained:
    """Minimise ``loss_at(step)`` over the steps of ``fit``.

    Args:
        model: whose parameters are changed.
        loss_at: step -> scalar loss of that step's batch.
        fit: how.
        seed: of what a scheme draws while training.
        on_step: told each step's number and loss.
    """
    model.train()
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": fit.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=fit.learning_rate, fused=True)
    losses, skipped = [], 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "sequence training"))
        for step in range(fit.steps):
            for group in optimizer.param_groups:
                group["lr"] = fit.rate(step)
            loss = loss_at(step)
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), fit.grad_clip)
            if torch.isfinite(norm):
                optimizer.step()
            else:
                skipped += 1
            losses.append(loss.detach())
            if on_step is not None:
                on_step(step, losses[-1])
    return Trained(model.eval(), torch.stack(losses).float().cpu(), skipped)


def train_on_task(
    task: Task,
    config: SequenceModelConfig,
    fit: SequenceFit,
    *,
    longest: int,
    seed: int,
    device: str | torch.device = "cpu",
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Trained:
    """Train a fresh model on a task's strings of up to ``longest`` symbols; losses are in nats a string."""
    model = build_model(config, seed, device)

    def loss_at(step: int) -> Tensor:
        batch = training_batch(task, seed, step, batch=fit.batch, longest=longest)
        targets = torch.from_numpy(batch.targets).to(device)
        return answer_loss(model.answer(torch.from_numpy(batch.inputs).to(device), targets.shape[1]), targets)

    return train_steps(model, loss_at, fit, seed=seed, on_step=on_step)


@torch.no_grad()
def task_accuracy(
    model: SequenceModel, task: Task, lengths: Iterable[int], *, batch: int = 512, seed: int = 1
) -> dict[int, float]:
    """Return the share of right answer symbols for each length; the final score is their mean.

    Args:
        model: in eval mode.
        task: whose held-out strings are drawn.
        lengths: of the strings.
        batch: strings a length.
        seed: of the strings; the same for every model that is compared.
    """
    result = {}
    for length in lengths:
        test = held_out_batch(task, length, batch=batch, seed=seed)
        y = test.targets.shape[1]
        part = max(1, min(batch, PAIRS_AT_ONCE // (length + y) ** 2))
        said = [
            model.answer(torch.from_numpy(test.inputs[start : start + part]).to(model.device), y)
            .argmax(-1)
            .cpu()
            .numpy()
            for start in range(0, batch, part)
        ]
        right = (np.concatenate(said) == test.targets) & test.mask
        result[length] = float(right.sum() / test.mask.sum())
    return result
