"""A recipe trained by several processes: each takes its rows of every batch, and their gradients are averaged.

:func:`fit_distributed` runs :func:`huaben.training.fit` in every process around the model wrapped by Accelerate. All
processes hold the same weights at all times; the first one writes the run's folder, in the same format as a run of one
process, so a run may go on with another number of them. Start it with torchrun::

    torchrun --nproc-per-node 2 -m huaben lm train ...
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from ..optional import require
from ..training import CHECKPOINT_NAME, FitConfig, FitEvent, FitResult, Recipe, fit


class SharedRecipe(Recipe, Protocol):
    """A recipe whose batches can be divided."""

    def share(self, batch: Any, rank: int, processes: int) -> Any:
        """Return one process's part of a batch; the mean of the parts' losses must be the whole batch's loss."""
        ...


def num_processes() -> int:
    """Return how many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this process writes the results."""
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def main_process_first(device: str | torch.device = "cpu") -> Iterator[None]:
    """Let the first process through alone, then the others: for files that one writes and all read.

    Raises:
        MissingDependencyError: if there are several processes, without accelerate.
    """
    if num_processes() == 1:
        yield
        return
    state = require("accelerate", extra="hf").PartialState(cpu=str(device) == "cpu")
    with state.main_process_first():
        yield


def fit_distributed(
    recipe: SharedRecipe,
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
    """Train with all processes that torchrun started; with one, this is :func:`~huaben.training.fit`.

    Arguments and errors are those of ``fit``, but for these: the length is in ``steps``, as clocks differ between
    processes; ``out_dir`` must be the same for all of them, to resume also the same disk; ``device`` is "cpu", or
    "cuda" or "auto" for one GPU a process. A signal to any process stops all of them after the same step. The result
    is the first process's; the others get theirs without scores and files.

    Raises:
        ConfigError: if minutes are given, or the batch cannot be divided.
        MissingDependencyError: without accelerate.
    """
    if num_processes() == 1:
        return fit(
            recipe,
            out_dir,
            minutes=minutes,
            steps=steps,
            resume=resume,
            device=device,
            config=config,
            on_event=on_event,
            progress=progress,
        )
    under_way = resume and (Path(out_dir) / CHECKPOINT_NAME).exists()
    if minutes is not None or (steps is None and not under_way):
        raise ConfigError("a run of several processes needs its length in steps", hint="give steps, not minutes")
    accelerate = require("accelerate", extra="hf")
    accelerator = accelerate.Accelerator(
        cpu=str(device) == "cpu",
        kwargs_handlers=[accelerate.DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    shared = _Shared(recipe, accelerator)
    config = config or recipe.fit
    if accelerator.is_main_process:
        try:
            result = fit(
                shared,
                out_dir,
                steps=steps,
                resume=resume,
                device=accelerator.device,
                config=config,
                on_event=on_event,
                progress=progress,
            )
        finally:
            shared.close()
        accelerator.wait_for_everyone()
        return result
    scratch = Path(tempfile.mkdtemp(prefix="huaben-process-"))
    try:
        if under_way:
            try:
                os.symlink((Path(out_dir) / CHECKPOINT_NAME).resolve(), scratch / CHECKPOINT_NAME)
            except OSError as error:
                raise CheckpointError(f"cannot reach {out_dir}: {error.strerror}", hint="check the disk") from error
        result = fit(
            shared,
            scratch,
            steps=steps,
            resume=resume,
            device=accelerator.device,
            config=config.replace(checkpoint_every_s=float("inf"), preview_every=0),
            progress=False,
        )
        accelerator.wait_for_everyone()
        return result
    finally:
        shared.close()
        shutil.rmtree(scratch, ignore_errors=True)


class _Shared:
    """What each process trains: its part of a batch, its loss, and gradients that Accelerate averages."""

    def __init__(self, recipe: SharedRecipe, accelerator: Any) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.name, self.fit = recipe.name, recipe.fit
        self.wrapped: tuple[nn.Module, nn.Module] | None = None
        self.asked: int | None = None
        self.handlers: dict[int, Any] = {}
        if accelerator.is_main_process:
            self.settings = {**getattr(recipe, "settings", {}), "processes": accelerator.num_processes}
            for optional in ("evaluate", "preview"):
                if hasattr(recipe, optional):
                    setattr(self, optional, getattr(recipe, optional))

    def build(self) -> nn.Module:
        return self.recipe.build()

    def batch(self, step: int) -> Any:
        accelerator = self.accelerator
        return self.recipe.share(self.recipe.batch(step), accelerator.process_index, accelerator.num_processes)

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        if self.wrapped is None or self.wrapped[0] is not model:
            self.wrapped = (model, self.accelerator.prepare_model(model, device_placement=False))
            self._listen()
        terms = self.recipe.loss(self.wrapped[1], batch)
        mine = torch.stack([*(value.detach().float().reshape(()) for value in terms.values())])
        flag = torch.full((1,), 0.0 if self.asked is None else 1.0, device=mine.device)
        everyone = self.accelerator.reduce(torch.cat([mine, flag]), reduction="mean")
        if float(everyone[-1]) > 0:
            self._stop()
        # The value is the mean of all processes, so that all agree on whether it is finite; the gradient is this one's.
        return {
            name: value + (mean - value.detach()) if value.requires_grad else mean
            for (name, value), mean in zip(terms.items(), everyone[:-1].unbind(), strict=True)
        }

    def save(self, model: nn.Module, folder: Path) -> None:
        if self.accelerator.is_main_process:
            self.recipe.save(model, folder)

    # -- signals: one process must not stop a step before the others ---------------------------------------------

    def _listen(self) -> None:
        """Put a note in the place of the loop's own answer to a signal, until all processes have heard of it."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.handlers[number] = signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number

    def _stop(self) -> None:
        for handler in self.handlers.values():
            if callable(handler):
                handler(signal.SIGTERM, None)
                break
        self.close()

    def close(self) -> None:
        """Give the signals back."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}
