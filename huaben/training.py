"""One plain training loop: AdamW, warm-up, EMA, metrics as JSON lines, checkpoints that survive a kill.

A :class:`Recipe` says what is trained (model, batches, loss); :func:`fit` says how. A batch is a pure function of the
seed and the step, the schedule is a pure function of the step and the planned length, and a checkpoint holds everything
else, so a run that was killed and resumed on the CPU in fp32 ends with the same bits as one that was not.

A run's folder::

    checkpoint.safetensors   weights, EMA, optimizer, random state; one file, renamed into place when complete
    metrics.jsonl            one object a logged step: means since the line before
    previews/                pictures, where the recipe draws them
    final/                   the EMA model as the recipe saves it, and card.json: what it is and how it scored
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import queue
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from . import __version__
from .config import Config
from .errors import Cancelled, CheckpointError, ConfigError, DataError, GenerationError
from .muon import Muon, hidden_matrices
from .pretrained import check_state, write_atomic
from .rng import check_seed, stream_seed

CHECKPOINT_NAME = "checkpoint.safetensors"
METRICS_NAME = "metrics.jsonl"
CARD_NAME = "card.json"
FINAL_NAME = "final"
CHECKPOINT_FORMAT = 1

SETTLE_STEPS = 5  # not timed: memory and caches settle
TIMED_STEPS = 20  # timed to plan the length of a run with a minutes budget
MAX_SKIPS = 10  # unusable losses in a row before the run is given up
LINE_EVERY_S = 20.0
STATE_KEYS = ("step", "exp_avg", "exp_avg_sq", "momentum")


MAX_THREADS = 1024
"""More than any machine makes use of; torch ends the process when the system has no more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig(Config):
    """How to train.

    The learning rate climbs linearly for ``warmup_steps``, stays, and falls over the last ``decay_share`` of the run to
    ``lr_floor`` times itself.

    Args:
        learning_rate: the highest one.
        optimizer: "adamw", or "muon": orthogonal updates for hidden matrices, AdamW for the rest (:mod:`.muon`).
        betas: of AdamW; the first is Muon's momentum.
        weight_decay: of AdamW; on weights with two or more axes only.
        warmup_steps: steps of linear climb.
        grad_clip: largest gradient norm; 0 does not clip.
        ema_decay: of the averaged weights; smaller in the first steps, ``(1 + n) / (10 + n)``.
        bf16: compute the loss under bfloat16 autocast where that is faster (:func:`has_fast_bf16`); weights stay fp32.
        decay: shape of the fall.
        decay_share: share of the run it takes.
        lr_floor: where it ends, as a share of ``learning_rate``.
        checkpoint_every_s: seconds between checkpoints; 0 writes one after every step.
        log_every: steps between lines of ``metrics.jsonl``.
        preview_every: steps between previews; 0 draws none.
        default_minutes: length of a run that names neither minutes nor steps.
        seed: of the initial weights and of torch's random numbers in the loop.
        threads: of torch; None leaves them as they are.
        prefetch: where batches are computed ahead: in a thread, in processes (Python-heavy rendering), or not at all.
        workers: processes for ``prefetch="process"``.
        queue: batches computed ahead (for each process).
    """

    learning_rate: float = 1e-3
    optimizer: Literal["adamw", "muon"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    warmup_steps: int = 200
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    bf16: bool = False
    decay: Literal["linear", "cosine"] = "linear"
    decay_share: float = 0.25
    lr_floor: float = 0.02
    checkpoint_every_s: float = 180.0
    log_every: int = 50
    preview_every: int = 0
    default_minutes: float = 10.0
    seed: int = 0
    threads: int | None = None
    prefetch: Literal["thread", "process", "none"] = "thread"
    workers: int = 1
    queue: int = 3

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name, low in (
            ("warmup_steps", 0),
            ("preview_every", 0),
            ("weight_decay", 0),
            ("grad_clip", 0),
            ("checkpoint_every_s", 0),
            ("log_every", 1),
            ("workers", 1),
            ("queue", 1),
        ):
            if getattr(self, name) < low:
                raise ConfigError(f"{name}={getattr(self, name)!r} is below {low}", hint=f"use {low} or more")
        if not (self.learning_rate > 0 and self.default_minutes > 0):
            raise ConfigError("learning_rate and default_minutes must be positive")
        for name in ("decay_share", "lr_floor", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)!r} is not in [0, 1]")
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise ConfigError(
                f"threads={self.threads}, expected 1 to {MAX_THREADS}", hint="leave it out to keep torch's setting"
            )


@runtime_checkable
class Recipe(Protocol):
    """What to train.

    Two methods are optional: ``preview(model) -> np.ndarray`` (uint8 HWC) and ``evaluate(model) -> dict[str, float]``;
    both are given the EMA model in eval mode. So is an attribute ``settings``, a dict of JSON values for the card.
    """

    name: str
    fit: FitConfig

    def build(self) -> nn.Module:
        """Return the model with fresh weights, on the CPU; random numbers come from torch's global generator."""
        ...

    def batch(self, step: int) -> Any:
        """Return one batch: tensors in tuples, lists and dicts.

        A pure function of the recipe's seed and ``step``, drawn from ``huaben.rng`` streams only: it runs ahead of
        the loop in another thread or process.
        """
        ...

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Return scalar terms; ``"loss"`` is minimised, the others are logged."""
        ...

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the finished model into ``folder``."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FitEvent:
    """Something that happened: ``plan``, ``resume``, ``log``, ``skip``, ``checkpoint``, ``preview`` or ``done``."""

    kind: str
    step: int
    total_steps: int | None
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class FitResult:
    """A finished run.

    Args:
        folder: the saved model, ``out_dir/final``.
        steps: optimizer steps since the very beginning.
        seconds: time in the loop since the very beginning.
        terms: means of the last logged steps, ``"loss"`` among them.
        scores: what the recipe's ``evaluate`` measured on the EMA model.
        skipped: steps whose loss or gradient was not a number.
    """

    folder: Path
    steps: int
    seconds: float
    terms: dict[str, float]
    scores: dict[str, float]
    skipped: int


def lr_factor(config: FitConfig, step: int, *, start: int = 0, total: int | None = None) -> float:
    """Return the share of ``learning_rate`` used by ``step`` (from 0) of a run from ``start`` up to ``total`` steps."""
    done = step - start
    factor = min(1.0, (done + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if total is None or config.decay_share == 0:
        return factor
    length = total - start
    fall = length * config.decay_share
    progress = min(1.0, max(0.0, (done - (length - fall)) / fall)) if fall else 0.0
    shape = 1.0 - progress if config.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return factor * (config.lr_floor + (1.0 - config.lr_floor) * shape)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters in two: matrices and kernels, which decay, and vectors and scalars, which do not."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trainable if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    model: nn.Module, groups: list[dict[str, Any]], config: FitConfig, device: torch.device
) -> torch.optim.Optimizer:
    """Return the config's optimizer for :func:`parameter_groups` of a model."""
    if config.optimizer == "adamw":
        fused = device.type in ("cpu", "cuda")
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused)
    hidden = hidden_matrices(model)
    split = [
        {**group, "params": [p for p in group["params"] if (id(p) in hidden) == muon], "muon": muon}
        for group in groups
        for muon in (True, False)
    ]
    return Muon([group for group in split if group["params"]], lr=config.learning_rate, betas=config.betas)


def ema_decay_at(decay: float, num_averaged: int) -> float:
    """Return the decay of update ``num_averaged`` (from 0): small at first, so that a short run is not left behind."""
    return min(decay, (1 + num_averaged) / (10 + num_averaged))


def averaged_model(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of ``model`` that follows it as an exponential moving average; buffers are copied."""

    @torch.no_grad()
    def average(averaged: Any, current: Any, num_averaged: Tensor | int) -> None:
        torch._foreach_lerp_(averaged, current, 1.0 - ema_decay_at(decay, int(num_averaged)))

    return AveragedModel(model, multi_avg_fn=average)


def to_device(batch: Any, device: torch.device) -> Any:
    """Move every tensor in nested tuples, lists and dicts."""
    return _map_leaves(batch, lambda leaf: leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf)


def read_checkpoint(out_dir: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the facts and tensors of a run's checkpoint.

    Raises:
        CheckpointError: if there is none, or it is not one of ours.
    """
    path = Path(out_dir) / CHECKPOINT_NAME
    if not path.is_file():
        raise CheckpointError(f"no {CHECKPOINT_NAME} in {out_dir}", hint="train without resume first")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("huaben", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})", hint="remove it and train again") from error
    if facts.get("format") != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {facts.get('format')!r}, this huaben reads {CHECKPOINT_FORMAT}",
            hint="finish the run with the version that began it",
        )
    return facts, tensors


def load_ema(recipe: Recipe, out_dir: str | Path) -> nn.Module:
    """Return the averaged model of a run that may still be going on, in eval mode on the CPU."""
    facts, tensors = read_checkpoint(out_dir)
    _check_owner(facts, recipe.name, None, Path(out_dir))
    model = recipe.build()
    state = _part(tensors, "ema.module.")
    check_state(model.state_dict(), state, str(Path(out_dir) / CHECKPOINT_NAME))
    model.load_state_dict(state)
    return model.eval()


def fit(
    recipe: Recipe,
    out_dir: str | Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    resume: bool = False,
    device: str | torch.device = "cpu",
    config: FitConfig | None = None,
    on_event: Callable[[FitEvent], None] | None = None,
    progress: bool = True,
) -> FitResult:
    """Train a recipe, score it, and save it to ``out_dir/final``.

    A minutes budget is turned into a number of steps once, after the first steps were timed, and kept in the
    checkpoint: the schedule never follows the clock again. It covers the loop; scoring and saving come after it.

    Args:
        recipe: what to train.
        out_dir: the run's folder.
        minutes: length by time; the recipe's ``default_minutes`` if neither is given.
        steps: length by steps.
        resume: go on from the checkpoint if there is one. A run under way keeps its plan, or gets a new one if
            ``minutes`` or ``steps`` differ from it (what is already trained counts). A finished run is lengthened by
            them: the learning rate climbs again, stays, and falls again.
        device: ``"cpu"``, ``"cuda"``, ``"auto"`` or a torch device.
        config: instead of ``recipe.fit``.
        on_event: told what happens; may raise ``Cancelled`` to stop.
        progress: show a bar (or a line now and then) on stderr.

    Raises:
        Cancelled: after Ctrl-C or a termination signal; a checkpoint was written.
        ConfigError: if the folder holds another run and ``resume`` is false, or the lengths make no sense.
        CheckpointError: if the checkpoint does not fit the recipe or cannot be written.
        GenerationError: if the loss stays unusable.
    """
    if minutes is not None and steps is not None:
        raise ConfigError("minutes and steps were both given", hint="give one of them")
    if (minutes is not None and not minutes > 0) or (steps is not None and steps < 1):
        raise ConfigError(f"minutes={minutes!r}, steps={steps!r}: nothing to train", hint="use a positive number")
    config = config or recipe.fit
    out_dir = Path(out_dir)
    place = pick_device(device)
    if not resume and (out_dir / CHECKPOINT_NAME).exists():
        raise ConfigError(f"{out_dir} already holds a training run", hint="resume it, or choose another folder")
    devices = [place] if place.type == "cuda" else []
    with _threads(config.threads), torch.random.fork_rng(devices=devices), _Stop() as stop:
        run = _Run(recipe, config, out_dir, place, stop, on_event, progress)
        run.begin(minutes, steps, resume)
        run.train()
        return run.finish()


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether bfloat16 is faster than fp32: on GPUs, and on processors that multiply it themselves.

    Elsewhere it is emulated, and a step takes eight times as long.
    """
    if device.type != "cpu":
        return True
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def pick_device(device: str | torch.device) -> torch.device:
    """Return a usable device; ``"auto"`` is the first GPU, or the CPU.

    Raises:
        ConfigError: for an unknown or absent device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}", hint="use auto, cpu or cuda") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for, torch sees no GPU", hint="use --device cpu, or run doctor")
    return found


class _Run:
    """The state of one run and its steps."""

    def __init__(
        self,
        recipe: Recipe,
        config: FitConfig,
        out_dir: Path,
        device: torch.device,
        stop: _Stop,
        on_event: Callable[[FitEvent], None] | None,
        progress: bool,
    ) -> None:
        self.recipe, self.config, self.out_dir, self.device = recipe, config, out_dir, device
        self.bf16 = config.bf16 and has_fast_bf16(device)
        self.stop, self.on_event = stop, on_event
        self.show: _Show = _Show(recipe.name) if progress else _Silent(recipe.name)
        torch.manual_seed(stream_seed(config.seed, "fit", recipe.name))
        self.model = recipe.build().to(device).train()
        self.ema = averaged_model(self.model, config.ema_decay).eval()
        groups = parameter_groups(self.model, config.weight_decay)
        if not groups:
            raise ConfigError(f"recipe {recipe.name!r} built a model without trainable parameters")
        self.params = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = make_optimizer(self.model, groups, config, device)
        self.step = 0
        self.elapsed = 0.0  # seconds in the loop before ``self.clock``
        self.skipped = 0
        self.start = 0  # first step of the current plan
        self.start_elapsed = 0.0
        self.total: int | None = None
        self.minutes: float | None = None
        self.steps: int | None = None
        self.clock = time.perf_counter()
        self.skips_in_row = 0
        self.window: dict[str, float] = {}
        self.window_size = 0
        self.terms: dict[str, float] = {}
        self.finished = False

    # -- beginning -----------------------------------------------------------------------------------------------

    def begin(self, minutes: float | None, steps: int | None, resume: bool) -> None:
        """Restore the checkpoint if there is one, and settle the length of the run."""
        self.out_dir.mkdir(parents=True, exist_ok=True)
        for stale in self.out_dir.glob(f".{CHECKPOINT_NAME}.*"):
            stale.unlink(missing_ok=True)
        if resume and (self.out_dir / CHECKPOINT_NAME).exists():
            self.restore()
            self.emit("resume", seconds=self.elapsed)
            self.replan(minutes, steps)
        else:
            self.set_plan(self.config.default_minutes if minutes is None and steps is None else minutes, steps)
        _keep_metrics(self.out_dir / METRICS_NAME, self.step)

    def set_plan(self, minutes: float | None, steps: int | None) -> None:
        self.minutes, self.steps = minutes, steps
        self.total = None if steps is None else self.start + steps
        if self.total is not None:
            self.emit("plan", minutes=None)

    def replan(self, minutes: float | None, steps: int | None) -> None:
        """Keep the plan, change it, or begin a new one behind a finished run."""
        asked = minutes is not None or steps is not None
        if self.total is not None and self.step >= self.total:
            if asked and (self.out_dir / FINAL_NAME / CARD_NAME).exists():
                self.start, self.start_elapsed = self.step, self.elapsed
                self.set_plan(minutes, steps)
        elif asked and (minutes, steps) != (self.minutes, self.steps):
            if steps is not None and self.start + steps < self.step:
                raise ConfigError(
                    f"steps={steps} were asked for, the run already has {self.step - self.start}",
                    hint="ask for more, or train into another folder",
                )
            self.set_plan(minutes, steps)

    # -- the loop ------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Step until the plan is done; write a checkpoint at its end."""
        if self.total is not None and self.step >= self.total:
            return
        self.clock = saved = time.perf_counter()
        timed_from = 0.0
        begun_at = self.step
        with contextlib.closing(_batches(self.recipe, self.config, self.step)) as batches, self.show:
            try:
                while self.total is None or self.step < self.total:
                    self.one_step(to_device(next(batches), self.device))
                    done = self.step - begun_at
                    if done == SETTLE_STEPS:
                        timed_from = time.perf_counter()
                    if self.total is None:
                        self.plan_by_time(timed_from, done)
                    self.after_step()
                    if self.stop.asked:
                        raise Cancelled("training was interrupted")
                    if time.perf_counter() - saved >= self.config.checkpoint_every_s:
                        self.save_checkpoint()
                        saved = time.perf_counter()
            except Cancelled as error:
                self.save_checkpoint()
                raise Cancelled(
                    f"training of {self.recipe.name!r} stopped at step {self.step}; {self.out_dir / CHECKPOINT_NAME} "
                    "was written",
                    hint="add --resume to go on",
                ) from error
            self.save_checkpoint()

    def one_step(self, batch: Any) -> None:
        """Make one optimizer step, unless its loss or gradient is not finite."""
        factor = lr_factor(self.config, self.step, start=self.start, total=self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            terms = self.recipe.loss(self.model, batch)
        if "loss" not in terms:
            raise ConfigError(f"recipe {self.recipe.name!r} returned {sorted(terms)}, expected a term 'loss'")
        terms["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.params, self.config.grad_clip or math.inf)
        names = [*terms, "grad_norm"]
        numbers = torch.stack([value.detach().float().reshape(()) for value in (*terms.values(), norm)]).tolist()
        values = dict(zip(names, numbers, strict=True))
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            self.skip(bad)
        else:
            self.skips_in_row = 0
            self.optimizer.step()
            self.ema.update_parameters(self.model)
            for name, value in values.items():
                self.window[name] = self.window.get(name, 0.0) + value
            self.window_size += 1
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def skip(self, bad: list[str]) -> None:
        self.skipped += 1
        self.skips_in_row += 1
        self.emit("skip", terms=bad)
        if self.skips_in_row >= MAX_SKIPS:
            raise GenerationError(
                f"{' and '.join(bad)} of recipe {self.recipe.name!r} was not finite {MAX_SKIPS} times in a row, "
                f"up to step {self.step}",
                hint="lower learning_rate, or look at the batch of that step; the checkpoint before it is kept",
            )

    def plan_by_time(self, timed_from: float, done: int) -> None:
        """Fix the number of steps once enough of them were timed."""
        assert self.minutes is not None
        left = self.minutes * 60 - (self.seconds() - self.start_elapsed)
        if left <= 0:
            self.total = self.step
        elif done >= SETTLE_STEPS + TIMED_STEPS:
            seconds_a_step = (time.perf_counter() - timed_from) / TIMED_STEPS
            self.total = self.step + max(1, round(left / seconds_a_step))
        if self.total is not None:
            self.emit("plan", minutes=self.minutes)

    def after_step(self) -> None:
        """Log, draw a preview and show progress where they are due."""
        config, last = self.config, self.step == self.total
        if (self.step % config.log_every == 0 or last) and self.window_size:
            self.terms = {name: value / self.window_size for name, value in self.window.items()}
            self.window, self.window_size = {}, 0
            line = {
                "step": self.step,
                "seconds": round(self.seconds(), 3),
                "lr": self.optimizer.param_groups[0]["lr"],
                **self.terms,
                "skipped": self.skipped,
            }
            with open(self.out_dir / METRICS_NAME, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self.emit("log", **line)
        if config.preview_every and (self.step % config.preview_every == 0 or last):
            self.draw_preview()
        running = {name: value / self.window_size for name, value in self.window.items()} if self.window_size else {}
        self.show.update(self.step, self.total, self.start, running or self.terms)

    def draw_preview(self) -> None:
        preview = getattr(self.recipe, "preview", None)
        if preview is None:
            return
        from PIL import Image

        with _aside(self.device):
            picture = preview(self.ema.module)
        if not (isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3):
            raise DataError(f"preview of recipe {self.recipe.name!r} returned no uint8 HWC array")
        path = self.out_dir / "previews" / f"{self.step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path)
        self.emit("preview", path=str(path))

    def seconds(self) -> float:
        """Return the time in the loop since the very beginning."""
        return self.elapsed + time.perf_counter() - self.clock

    def emit(self, kind: str, **values: Any) -> None:
        if self.on_event is not None:
            self.on_event(FitEvent(kind=kind, step=self.step, total_steps=self.total, values=values))

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        tensors["rng.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        facts = {
            "format": CHECKPOINT_FORMAT,
            "recipe": self.recipe.name,
            "seed": self.config.seed,
            "fit": self.config.to_dict(),
            "step": self.step,
            "start": self.start,
            "start_elapsed": self.start_elapsed,
            "total_steps": self.total,
            "minutes": self.minutes,
            "steps": self.steps,
            "elapsed": self.seconds(),
            "skipped": self.skipped,
            "terms": self.terms,
        }
        own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        write_atomic(self.out_dir / CHECKPOINT_NAME, save(own, metadata={"huaben": json.dumps(facts)}))
        self.emit("checkpoint", seconds=facts["elapsed"])

    def restore(self) -> None:
        facts, tensors = read_checkpoint(self.out_dir)
        _check_owner(facts, self.recipe.name, self.config.seed, self.out_dir)
        where = str(self.out_dir / CHECKPOINT_NAME)
        for module, prefix in ((self.model, "model."), (self.ema, "ema.")):
            state = _part(tensors, prefix)
            check_state(module.state_dict(), state, where)
            module.load_state_dict(state)
        for name, parameter in self.model.named_parameters():
            suffix = f".{name}"
            state = {
                key.removesuffix(suffix): value
                for key, value in _part(tensors, "optimizer.").items()
                if key.endswith(suffix) and key.removesuffix(suffix) in STATE_KEYS
            }
            if state:
                fused = self.optimizer.defaults.get("fused", False)
                self.optimizer.state[parameter] = {
                    key: value.to(parameter.device) if fused or key != "step" else value for key, value in state.items()
                }
        torch.set_rng_state(tensors["rng.cpu"])
        if self.device.type == "cuda" and "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"], self.device)
        self.step, self.start, self.total = facts["step"], facts["start"], facts["total_steps"]
        self.start_elapsed, self.elapsed = facts["start_elapsed"], facts["elapsed"]
        self.minutes, self.steps = facts["minutes"], facts["steps"]
        self.skipped, self.terms = facts["skipped"], facts["terms"]

    # -- the end -------------------------------------------------------------------------------------------------

    def finish(self) -> FitResult:
        """Score the EMA model, save it and write its card; the folder appears when complete."""
        seconds = read_checkpoint(self.out_dir)[0]["elapsed"]
        model = self.ema.module.eval()
        evaluate = getattr(self.recipe, "evaluate", None)
        scores: dict[str, float] = {}
        if evaluate is not None:
            with _aside(self.device):
                scores = {name: float(value) for name, value in evaluate(model).items()}
        folder, fresh = self.out_dir / FINAL_NAME, self.out_dir / f".{FINAL_NAME}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        self.recipe.save(model, fresh)
        card = self.card(fresh, scores, seconds)
        write_atomic(fresh / CARD_NAME, (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode())
        if folder.exists():
            old = self.out_dir / f".{FINAL_NAME}.old"
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
            fresh.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            fresh.rename(folder)
        self.emit("done", scores=scores, seconds=seconds)
        return FitResult(
            folder=folder,
            steps=self.step,
            seconds=seconds,
            terms=dict(self.terms),
            scores=scores,
            skipped=self.skipped,
        )

    def card(self, folder: Path, scores: dict[str, float], seconds: float) -> dict[str, Any]:
        return {
            "recipe": self.recipe.name,
            "settings": getattr(self.recipe, "settings", {}),
            "fit": self.config.to_dict(),
            "seed": self.config.seed,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "steps": self.step,
            "minutes": round(seconds / 60, 2),
            "skipped": self.skipped,
            "terms": self.terms,
            "scores": scores,
            "device": str(self.device),
            "hardware": hardware_name(self.device),
            "versions": {"huaben": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "files": file_hashes(folder),
        }


def hardware_name(device: torch.device | str = "cpu") -> str:
    """Return the name of the GPU, or of the CPU with the number of cores this process may use."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def file_hashes(folder: str | Path) -> dict[str, str]:
    """Return the sha256 of every file below ``folder`` but its card, by relative name."""
    folder = Path(folder)
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != CARD_NAME
    }


# -- batches ahead of time ---------------------------------------------------------------------------------------


def _batches(recipe: Recipe, config: FitConfig, first: int) -> Generator[Any, None, None]:
    """Yield ``recipe.batch(first)``, ``batch(first + 1)``, ... in order."""
    if config.prefetch == "process":
        return _process_batches(recipe, config, first)
    if config.prefetch == "thread":
        return _thread_batches(recipe, config, first)
    return (recipe.batch(step) for step in _count(first))


def _thread_batches(recipe: Recipe, config: FitConfig, first: int) -> Generator[Any, None, None]:
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=config.queue)
    closed = threading.Event()

    def produce() -> None:
        for step in _count(first):
            try:
                item: tuple[Any, BaseException | None] = (recipe.batch(step), None)
            except BaseException as error:  # handed to the loop, which raises it
                item = (None, error)
            while not closed.is_set():
                with contextlib.suppress(queue.Full):
                    ready.put(item, timeout=0.2)
                    break
            if closed.is_set() or item[1] is not None:
                return

    thread = threading.Thread(target=produce, name="batches", daemon=True)
    thread.start()
    try:
        while True:
            batch, error = ready.get()
            if error is not None:
                raise error
            yield batch
    finally:
        closed.set()
        thread.join(timeout=30)


class _StepData(torch.utils.data.Dataset[Any]):
    """A recipe's batches by step, for torch's worker processes; tensors travel as arrays through a pipe."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __getitem__(self, step: int) -> Any:
        return _map_leaves(self.recipe.batch(step), _pack)


def _process_batches(recipe: Recipe, config: FitConfig, first: int) -> Generator[Any, None, None]:
    loader = torch.utils.data.DataLoader(
        _StepData(recipe),
        batch_size=None,
        sampler=_Steps(first),
        num_workers=config.workers,
        prefetch_factor=config.queue,
        collate_fn=_same,
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # its own, so that the loop's random numbers stay untouched
        multiprocessing_context="fork",
    )
    for batch in loader:
        yield _map_leaves(batch, _unpack)


class _Steps(torch.utils.data.Sampler[int]):
    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return _count(self.first)


def _begin_worker(_: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the loop decides when to stop
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@dataclass(frozen=True, slots=True)
class _Packed:
    array: np.ndarray[Any, Any]
    dtype: torch.dtype


def _pack(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    plain = leaf.view(torch.int16) if leaf.dtype == torch.bfloat16 else leaf
    return _Packed(plain.numpy(), leaf.dtype)


def _unpack(leaf: Any) -> Any:
    if not isinstance(leaf, _Packed):
        return leaf
    tensor = torch.from_numpy(leaf.array)
    return tensor.view(leaf.dtype) if leaf.dtype == torch.bfloat16 else tensor


def _same(value: Any) -> Any:
    return value


def _count(first: int) -> Iterator[int]:
    while True:
        yield first
        first += 1


def _map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _map_leaves(item, change) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map_leaves(item, change) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_map_leaves(item, change) for item in value)
    return change(value)


# -- around the loop ---------------------------------------------------------------------------------------------


class _Stop:
    """Turns the first Ctrl-C or termination signal into a request; the second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self.ask)
        return self

    def ask(self, number: int, _: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """Compute without gradients and without moving the loop's random numbers."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        yield


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _check_owner(facts: dict[str, Any], recipe: str, seed: int | None, out_dir: Path) -> None:
    if facts["recipe"] != recipe or (seed is not None and facts["seed"] != seed):
        raise CheckpointError(
            f"{out_dir} holds a run of recipe {facts['recipe']!r} with seed {facts['seed']}, "
            f"expected {recipe!r}" + ("" if seed is None else f" with seed {seed}"),
            hint="train into another folder, or use the same recipe and seed",
        )


def _keep_metrics(path: Path, step: int) -> None:
    """Drop the lines behind ``step``, written after the checkpoint of a run that was killed."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # half a line
    write_atomic(path, "".join(kept).encode())


class _Show:
    """Progress on stderr: a bar on a terminal, else a line now and then."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bar: Any = None
        self.task: Any = None
        self.shown = self.begun = time.perf_counter()
        self.first: int | None = None

    def __enter__(self) -> _Show:
        self.shown = self.begun = time.perf_counter()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} {task.fields[terms]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task(self.name, total=None, terms="")
            self.bar.start()
        return self

    def update(self, step: int, total: int | None, start: int, terms: Mapping[str, float]) -> None:
        now = time.perf_counter()
        if self.first is None:
            self.first = step - 1
        text = f"loss {terms['loss']:.4g}" if "loss" in terms else ""
        if self.bar is not None:
            length = None if total is None else total - start
            self.bar.update(self.task, completed=step - start, total=length, terms=text)
        elif now - self.shown >= LINE_EVERY_S or step == total:
            self.shown = now
            each = (now - self.begun) / max(1, step - self.first)
            left = "" if total is None else f"  {(total - step) * each / 60:.1f} min left"
            of = "" if total is None else f"/{total}"
            sys.stderr.write(f"{self.name}  step {step}{of}  {text}  {each:.3g} s/step{left}\n")
            sys.stderr.flush()

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()


class _Silent(_Show):
    """Shows nothing."""

    def __enter__(self) -> _Show:
        return self

    def update(self, step: int, total: int | None, start: int, terms: Mapping[str, float]) -> None:
        pass
