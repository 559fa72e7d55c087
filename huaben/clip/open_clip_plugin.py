"""HELIP inside open_clip's own training loop: a loss and a sampler, nothing patched.

open_clip calls ``loss(**model_output, output_dict=True)`` and minimises the sum of what comes back; it asks
``data["train"]`` for a loader, and tells it each epoch. So :class:`HelipLoss` and :func:`helip_data` are all it takes::

    from open_clip_train.params import parse_args
    data = helip_data(dataset, pairs.pairs, batch_size=args.batch_size, workers=args.workers)
    loss = HelipLoss(MARGINS["default"])
    for epoch in range(args.epochs):
        train_one_epoch(model, data, loss, epoch, optimizer, scaler, scheduler, args)

The structure of a batch is in the order of its rows (:func:`huaben.clip.margin.hard_mask`), as no ids reach the loss:
it must not be shuffled on the way. Nothing here imports open_clip but :func:`train_one_epoch`.

Source: HELIP (arXiv:2305.05208); the loop as of open_clip_torch 3.3.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from ..errors import ConfigError, MissingDependencyError, ShapeError
from ..optional import probe
from .gather import gather_features, gather_ids, own_rows, process_rank, world_size
from .loss import contrastive_loss, siglip_loss
from .margin import MarginAlarm, MarginConfig, hard_mask, hard_negative_margin_loss
from .sampler import HardPairBatchSampler


class HelipLoss(nn.Module):
    """CLIP's (or SigLIP's) loss and the hard negative margin loss, in place of open_clip's ``ClipLoss``.

    With gamma 0 the contrastive term is that of ``ClipLoss``, bit for bit in fp32.

    Args:
        margin: of the margin loss; the default variant if it is left out.
        p: hard pairs added for each seed.
        block: rows of a block: a process's micro-batch, open_clip's ``args.batch_size``. Needed with gradient
            accumulation, where the loss is given several of them at once; all rows of a process by default.
        objective: the loss beside it; "siglip" needs a model with a logit bias.
        local_loss: anchors are this process's rows only; cheaper than all rows, and the same gradient.
        gather_with_grad: gradients flow back to the features of other processes.
        alarm: watches the active share while gamma is above 0; None for no alarm.

    Attributes:
        margin_raw, active: of the last call: the margin loss before its weight, and the share of ordinary negatives
            above the margin.

    Raises:
        ConfigError: for ``local_loss`` without ``gather_with_grad``: its gradient is wrong (see :mod:`.gather`).
    """

    def __init__(
        self,
        margin: MarginConfig | None = None,
        *,
        p: int = 1,
        block: int | None = None,
        objective: Literal["contrastive", "siglip"] = "contrastive",
        local_loss: bool = True,
        gather_with_grad: bool = True,
        alarm: MarginAlarm | Literal["default"] | None = "default",
    ) -> None:
        super().__init__()
        if local_loss and not gather_with_grad:
            raise ConfigError(
                "local_loss without gather_with_grad: features would not learn from other processes' anchors",
                hint="set both, as --local-loss --gather-with-grad does",
            )
        if objective not in ("contrastive", "siglip"):
            raise ConfigError(f"objective={objective!r}, expected 'contrastive' or 'siglip'", hint="use 'contrastive'")
        if p < 1 or (block is not None and (block < 1 or block % (1 + p))):
            raise ConfigError(
                f"block={block} is no multiple of 1 + p = {1 + p}", hint="use one of HelipSampler's sizes"
            )
        self.margin = MarginConfig() if margin is None else margin
        self.p, self.block, self.objective = p, block, objective
        self.local_loss, self.gather_with_grad = local_loss, gather_with_grad
        self.alarm = MarginAlarm(hard_per_seed=p) if alarm == "default" else alarm
        self.margin_raw = self.active = torch.zeros(())

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
        ids: Tensor | None = None,
    ) -> Any:
        """Return ``{"contrastive_loss", "hnml_loss"}``, the second already weighted, or their sum.

        Args:
            image_features, text_features: (b, E), of length 1; this process's blocks one after the other.
            logit_scale: scalar.
            logit_bias: scalar of a SigLIP model; the softmax does not see it.
            output_dict: the terms by name.
            ids: (b,) what each pair is, if known; all differ by default.

        Raises:
            ShapeError: if the rows are not whole blocks.
            ConfigError: without a logit bias for SigLIP.
        """
        count = len(image_features)
        block = count if self.block is None else self.block
        if count % block or block % (1 + self.p):
            raise ShapeError(
                f"{count} rows, expected blocks of {block}, a multiple of 1 + p = {1 + self.p}",
                hint="set block to the batch size of one process, and drop the last batch of an epoch",
            )
        images = gather_features(image_features, with_grad=self.gather_with_grad)
        texts = gather_features(text_features, with_grad=self.gather_with_grad)
        every_id = None if ids is None else gather_ids(ids)
        alone = world_size() == 1
        rows = own_rows(count) if self.local_loss or alone else None
        if self.objective == "siglip":
            if logit_bias is None:
                raise ConfigError("no logit_bias, expected one for objective='siglip'", hint="use 'contrastive'")
            terms = siglip_loss(images, texts, logit_scale, logit_bias, ids=every_id, rows=rows)
        else:
            terms = contrastive_loss(images, texts, logit_scale, ids=every_id, rows=rows)
        n = block // (1 + self.p)
        seeds, hard = hard_mask(len(images) // block, n, self.p, device=images.device)
        if rows is not None:
            mine = slice(rows.start // (1 + self.p), rows.stop // (1 + self.p))
            seeds, hard = seeds[mine], hard[mine]
        if every_id is None:
            every_id = torch.arange(len(images), device=images.device)
        margin = hard_negative_margin_loss(images, texts, hard, seeds, every_id, self.margin, logit_scale)
        self.margin_raw, self.active = margin["loss"].detach(), margin["active"]
        self._watch()
        losses = {"contrastive_loss": terms["loss"], "hnml_loss": margin["weighted"]}
        return losses if output_dict else losses["contrastive_loss"] + losses["hnml_loss"]

    def _watch(self) -> None:
        """Tell the alarm; all processes tell theirs the same, so that all stop or none."""
        if self.alarm is not None and self.alarm.watching and self.training and self.margin.gamma:
            self.alarm.update(gather_features(self.active[None], with_grad=False).mean())


class HelipSampler(DistributedSampler[Any]):
    """Rows of one process, batch after batch: seeds, then their hard pairs.

    For a ``DataLoader`` with this batch size and ``drop_last``; one process, too. An epoch is as many whole batches
    (of all processes, all accumulated parts) as the seeds fill; what they do not fill is left out, other rows each
    time.

    Args:
        dataset: what is loaded; only its length is used.
        hard: see :class:`~huaben.clip.sampler.HardPairBatchSampler`.
        batch_size: of one process and one forward pass, hard pairs included; a multiple of ``1 + hard_per_seed``.
        hard_per_seed: p.
        accum_freq: forward passes a step; no row comes twice in a step.
        rank, world: of the process; those of the process group by default.
        seed: of everything drawn.
        **settings: others of the batch sampler: ``k_use``, ``seeds``, ``in_degree_cap``, ``ids``.

    Raises:
        ConfigError, DataError: as the batch sampler does.
    """

    def __init__(
        self,
        dataset: Sized,
        hard: NDArray[Any] | Literal["random"] | None,
        *,
        batch_size: int,
        hard_per_seed: int = 1,
        accum_freq: int = 1,
        rank: int | None = None,
        world: int | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        world = world_size() if world is None else world
        rank = process_rank() if rank is None else rank
        if accum_freq < 1:
            raise ConfigError(f"accum_freq={accum_freq!r}, expected at least 1", hint="use 1")
        super().__init__(dataset, num_replicas=world, rank=rank, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.batch_size, self.accum_freq = batch_size, accum_freq
        self.batches = HardPairBatchSampler(
            len(dataset),
            hard,
            batch_size=batch_size * world * accum_freq,
            hard_per_seed=hard_per_seed,
            seed=seed,
            world=world * accum_freq,
            drop_last=True,
            **settings,
        )
        self.num_samples = len(self.batches) * accum_freq * batch_size
        self.total_size = self.num_samples * world

    def __iter__(self) -> Iterator[int]:
        first = self.batches.first_step(self.epoch)
        mine = slice(self.rank * self.accum_freq, (self.rank + 1) * self.accum_freq)
        for step in range(first, self.batches.first_step(self.epoch + 1)):
            blocks = self.batches.batch(step).reshape(-1, self.batch_size)
            yield from np.concatenate(blocks[mine]).tolist()

    def __len__(self) -> int:
        return self.num_samples


@dataclass(frozen=True, slots=True)
class HelipData:
    """What open_clip asks of ``data["train"]``: a loader, and to be told the epoch."""

    dataloader: DataLoader[Any]
    sampler: HelipSampler

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)


def helip_data(
    dataset: Dataset[Any],
    hard: NDArray[Any] | Literal["random"] | None,
    *,
    batch_size: int,
    workers: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Return ``{"train": ...}`` for open_clip's loop.

    Args:
        dataset: with a length, by row, as the hard pairs were mined; an item is what open_clip's loop takes, a
            preprocessed picture and its tokens.
        hard, batch_size, **settings: of :class:`HelipSampler`.
        workers: of the loader.
        collate: of the loader.

    Raises:
        ConfigError: for a dataset without a length, and as :class:`HelipSampler` does.
    """
    if not isinstance(dataset, Sized):
        raise ConfigError(
            f"{type(dataset).__name__} has no length, expected rows by number", hint="hard pairs need random access"
        )
    sampler = HelipSampler(dataset, hard, batch_size=batch_size, **settings)
    loader: Any = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
    )
    loader.num_batches, loader.num_samples = len(loader), sampler.total_size
    return {"train": HelipData(loader, sampler)}


def train_one_epoch(
    model: nn.Module,
    data: dict[str, Any],
    loss: HelipLoss,
    epoch: int,
    optimizer: torch.optim.Optimizer,
    scaler: Any,
    scheduler: Callable[[int], Any],
    args: Any,
    tb_writer: Any = None,
) -> None:
    """Call open_clip's own ``train_one_epoch``, after checking that its settings are those of loss and sampler.

    Args:
        model: an open_clip model that returns a dict (``output_dict=True``), wrapped for several processes or not.
        data: :func:`helip_data`.
        loss: see there.
        epoch: from 0.
        optimizer, scaler, scheduler, args, tb_writer: open_clip's.

    Raises:
        ConfigError: if ``batch_size`` or ``accum_freq`` differ between args, loss and sampler, or args ask for
            distillation.
        MissingDependencyError: without open_clip's training package.
    """
    sampler: HelipSampler = data["train"].sampler
    block = args.batch_size if loss.block is None and args.accum_freq == 1 else loss.block
    for name, sizes in (
        ("batch_size", (args.batch_size, sampler.batch_size, block)),
        ("accum_freq", (args.accum_freq, sampler.accum_freq)),
        ("hard pairs for each seed", (sampler.batches.hard_per_seed, loss.p)),
    ):
        if len(set(sizes)) > 1:
            raise ConfigError(
                f"{name}: {', '.join(map(str, sizes))} in args, sampler and loss, expected the same",
                hint="pass args.batch_size and args.accum_freq to helip_data, and block=args.batch_size to HelipLoss",
            )
    if getattr(args, "distill", False):
        raise ConfigError("args.distill is set, and HelipLoss has no such term", hint="train without distillation")
    found = probe("open_clip_train.train")
    if not found.works:
        raise MissingDependencyError(
            f"open_clip's training package {f'does not load ({found.problem})' if found.problem else 'is not installed'}",
            hint="pip install 'open_clip_torch[training]' and a torchvision built for this torch",
        )
    legacy = importlib.util.find_spec("open_clip_train.legacy_train") is not None  # where later versions keep the loop
    loop = importlib.import_module("open_clip_train.legacy_train" if legacy else "open_clip_train.train")
    loop.train_one_epoch(model, data, loss, epoch, optimizer, scaler, scheduler, None, args, tb_writer=tb_writer)
