"""HELIP's hard negative margin loss: ordinary negatives must not be closer to a pair than its hard negatives.

A batch holds seeds and, for each, some of its mined hard pairs. The similarity of a seed to the least similar of them
is its margin; every ordinary negative of the batch above it is pushed down, and that hard pair is pulled up. So the
loss keeps the order that mining found, while the contrastive loss separates all pairs alike.

Legend: B pairs of the batch, S seeds among them, p hard pairs of a seed, E width of the shared space.

Source: HELIP, "Getting More Juice Out of Your Data" (arXiv:2305.05208), equations 6 and 7.
Differs: the code released with the paper has no margin loss (it trains the contrastive loss on batches with hard
pairs); see :data:`MARGINS` for that variant and for the literal form of the equation.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..config import Config
from ..errors import ConfigError, DataError, ShapeError
from .loss import full

MIN_UPDATES = 10  # values before the alarm judges their mean


@dataclass(frozen=True, kw_only=True, slots=True)
class MarginConfig(Config):
    """How the margin loss is computed and weighted.

    Args:
        gamma: weight beside the contrastive loss; 0 switches the loss off.
        sim: similarities as cosines, or as logits (cosines times the logit scale, which makes the weight that much
            larger).
        detach_scale: with logits, whether the scale gets no gradient from this loss. It would only ever be lowered.
        directions: image to text, as in the paper, or the mean of that and text to image.
        detach_margin: whether the hard pair gets no gradient, so that ordinary negatives are only pushed.
        denom: what a seed's sum is divided by: the number of its ordinary negatives, or the size of the batch.
    """

    gamma: float = 0.3
    sim: Literal["logit", "cosine"] = "logit"
    detach_scale: bool = True
    directions: Literal["i2t", "both"] = "i2t"
    detach_margin: bool = False
    denom: Literal["negatives", "batch"] = "negatives"

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < math.inf:
            raise ConfigError(
                f"gamma={self.gamma!r}, expected a number from 0", hint="use 0.3, or 0 for no margin loss"
            )
        for name, allowed in (
            ("sim", ("logit", "cosine")),
            ("directions", ("i2t", "both")),
            ("denom", ("negatives", "batch")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r}, expected one of {', '.join(allowed)}", hint=f"use {allowed[0]!r}"
                )


PAPER = MarginConfig(denom="batch", detach_scale=False)
RELEASED = MarginConfig(gamma=0.0)
MARGINS = {"default": MarginConfig(), "paper": PAPER, "released": RELEASED}
"""Variants by name.

- ``default``: the paper's loss, divided by the number of ordinary negatives (so that its size does not depend on p)
  and without a gradient to the logit scale.
- ``paper``: the equation to the letter: image to text only, on logits, divided by the size of the whole batch. The
  seed itself and its hard pairs are left out of the sum, as they must be (the first would be pushed from its own
  text). The weight is the one reported by others for this loss.
- ``released``: the arithmetic of the code released with the paper: no margin loss at all, the contrastive loss on
  batches of seeds and hard pairs.
"""


def hard_negative_margin_loss(
    image_features: Tensor,
    text_features: Tensor,
    hard: Tensor,
    seeds: Tensor,
    ids: Tensor,
    config: MarginConfig | None = None,
    logit_scale: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the mean over seeds i of ``mean over ordinary negatives j of max(0, sim(i, j) - m_i)``.

    ``m_i`` is the least similarity of i to its hard pairs. Ordinary negatives are all pairs of the batch but i, its
    hard pairs, and pairs of the same id as one of these. A seed whose hard pairs all have its own id adds nothing.

    Args:
        image_features, text_features: (B, E), of length 1; of all processes, where there are several.
        hard: (S, B), bool: the hard pairs of each seed.
        seeds: (S,) rows of the seeds; only this process's, where there are several.
        ids: (B,) what each pair is: row numbers, or one number for all copies of a pair.
        config: see there.
        logit_scale: scalar; needed for similarities as logits.

    Returns:
        ``loss``, not weighted; ``weighted``, times gamma (a constant without gradient if gamma is 0); and detached
        ``active`` (share of ordinary negatives above the margin) and ``margin`` (mean m_i, in units of ``sim``).

    Raises:
        ShapeError: if the shapes do not fit.
        ConfigError: if the logit scale is missing.
        DataError: if a seed has no hard pair.

    Source: arXiv:2305.05208, equation 6.
    """
    config = MarginConfig() if config is None else config
    _check(image_features, text_features, hard, seeds, ids)
    if config.sim == "logit" and logit_scale is None:
        raise ConfigError("no logit_scale, expected one for sim='logit'", hint="pass the model's, or use sim='cosine'")
    own = ids[seeds, None] == ids  # (S, B): the seed and its copies
    near = _spread(hard, ids)
    ordinary = ~(own | near)
    hard = hard & ~own
    with torch.autocast(image_features.device.type, enabled=False):
        images, texts = full(image_features), full(text_features)
        scale: Tensor | float = 1.0
        if config.sim == "logit" and logit_scale is not None:
            scale = logit_scale.detach() if config.detach_scale else logit_scale
        ways = [_one_way(scale * images[seeds] @ texts.T, hard, ordinary, config)]
        if config.directions == "both":
            ways.append(_one_way(scale * texts[seeds] @ images.T, hard, ordinary, config))
    loss, active, margin = (torch.stack(values).mean() for values in zip(*ways, strict=True))
    weighted = config.gamma * loss if config.gamma else torch.zeros_like(loss.detach())
    return {"loss": loss, "weighted": weighted, "active": active.detach(), "margin": margin.detach()}


def _one_way(sims: Tensor, hard: Tensor, ordinary: Tensor, config: MarginConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, active share and mean margin of similarities (S, B) from seeds to all pairs."""
    margin = sims.masked_fill(~hard, torch.inf).min(1).values  # (S,); infinite where no hard pair is left
    above = torch.relu(sims - (margin.detach() if config.detach_margin else margin)[:, None])
    above = torch.where(ordinary, above, 0.0)
    negatives = ordinary.sum(1).clamp_min(1)
    each = above.sum(1) / (negatives if config.denom == "negatives" else sims.shape[1])
    with torch.no_grad():
        known = margin.isfinite()
        share = ((above > 0).sum(1) / negatives)[known]
        active = share.mean() if len(share) else sims.new_zeros(())
        level = margin[known].mean() if len(share) else sims.new_zeros(())
    return each.mean(), active.to(sims.dtype), level


def _spread(hard: Tensor, ids: Tensor) -> Tensor:
    """Return (S, B): pairs with the id of one of the seed's hard pairs."""
    group = torch.unique(ids, return_inverse=True)[1]
    groups = torch.zeros(hard.shape, dtype=torch.int32, device=hard.device)
    groups.index_add_(1, group, hard.int())
    return groups[:, group] > 0


def _check(image_features: Tensor, text_features: Tensor, hard: Tensor, seeds: Tensor, ids: Tensor) -> None:
    count = len(image_features)
    if image_features.ndim != 2 or image_features.shape != text_features.shape:
        raise ShapeError(
            f"image features {tuple(image_features.shape)} and text features {tuple(text_features.shape)}, "
            "expected the same (batch, width)",
            hint="pass one text per picture",
        )
    if seeds.ndim != 1 or not len(seeds) or tuple(hard.shape) != (len(seeds), count) or tuple(ids.shape) != (count,):
        raise ShapeError(
            f"seeds {tuple(seeds.shape)}, hard {tuple(hard.shape)} and ids {tuple(ids.shape)} for a batch of {count}, "
            "expected (seeds,), (seeds, batch) and (batch,)",
            hint="make the first two with hard_mask",
        )
    if hard.dtype != torch.bool:
        raise ShapeError(f"hard is {hard.dtype}, expected torch.bool", hint="make it with hard_mask")
    lacking = (~hard.any(1)).nonzero().flatten()
    if len(lacking):
        raise DataError(
            f"{len(lacking)} of {len(seeds)} seeds have no hard pair in the batch, the first is seed {int(lacking[0])}",
            hint="make batches with HardPairBatchSampler and the mask with hard_mask",
        )


def hard_mask(
    num_blocks: int, seeds_per_block: int, p: int, *, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """Return ``(seeds, hard)`` of a batch laid out in blocks by :class:`~huaben.clip.sampler.HardPairBatchSampler`.

    In each block the n seeds come first; the partners of the block's seed i are at ``n + i * p`` and after. Rows
    ``[r * n, (r + 1) * n)`` of both results belong to block r.

    Args:
        num_blocks: one for each process and each part of an accumulated batch.
        seeds_per_block: n.
        p: hard pairs added for each seed.
        device: of the results.

    Returns:
        ``seeds`` (S,), int64, and ``hard`` (S, B), bool, with S = num_blocks * n and B = S * (1 + p).

    Raises:
        ConfigError: for numbers below 1.
    """
    for name, value in (("num_blocks", num_blocks), ("seeds_per_block", seeds_per_block), ("p", p)):
        if value < 1:
            raise ConfigError(f"{name}={value!r}, expected at least 1", hint="a batch without hard pairs has no margin")
    block = seeds_per_block * (1 + p)
    starts = torch.arange(num_blocks, device=device)[:, None] * block
    inside = torch.arange(seeds_per_block, device=device)
    seeds = (starts + inside).flatten()
    partners = (starts + seeds_per_block + inside * p).flatten()[:, None] + torch.arange(p, device=device)  # (S, p)
    hard = torch.zeros(len(seeds), num_blocks * block, dtype=torch.bool, device=device)
    return seeds, hard.scatter_(1, partners, True)


class HardNegativeMarginLoss(nn.Module):
    """:func:`hard_negative_margin_loss` with a config, as a module.

    Args:
        config: see there; the default variant if it is left out.
    """

    def __init__(self, config: MarginConfig | None = None) -> None:
        super().__init__()
        self.config = MarginConfig() if config is None else config

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        hard: Tensor,
        seeds: Tensor,
        ids: Tensor,
        logit_scale: Tensor | None = None,
    ) -> dict[str, Tensor]:
        return hard_negative_margin_loss(image_features, text_features, hard, seeds, ids, self.config, logit_scale)


class MarginAlarm:
    """Watches the active share of the margin loss in the first steps: is this the right list of hard pairs?

    With hard pairs drawn at random, an ordinary negative is above the least of p of them in p / (1 + p) of cases: half,
    for p = 1. With lists mined by the model itself it is under a tenth. A list whose rows do not belong to this data
    looks like random pairs, and training with the margin loss on it does great harm. A model that has learned nothing
    yet looks the same: hard pairs are for one that has.

    Args:
        warn: mean share, for p = 1, above which a ``UserWarning`` is given, once.
        stop: mean share, for p = 1, above which training is stopped; None never stops.
        window: steps that are watched.
        hard_per_seed: p; both thresholds are those for p = 1 times ``2 p / (1 + p)``.
    """

    def __init__(
        self, warn: float = 0.35, stop: float | None = 0.45, window: int = 50, *, hard_per_seed: int = 1
    ) -> None:
        if not 0 < warn < 1 or (stop is not None and not warn <= stop < 1):
            raise ConfigError(
                f"warn={warn!r}, stop={stop!r}, expected 0 < warn <= stop < 1", hint="use 0.35 and 0.45, or stop=None"
            )
        if window < 1 or hard_per_seed < 1:
            raise ConfigError(
                f"window={window!r}, hard_per_seed={hard_per_seed!r}, expected at least 1", hint="use 50 and 1"
            )
        self.random = hard_per_seed / (1 + hard_per_seed)
        self.warn, self.stop = warn * 2 * self.random, None if stop is None else stop * 2 * self.random
        self.window = window
        self.steps, self.total, self.warned = 0, 0.0, False

    @property
    def watching(self) -> bool:
        """Whether the window is still open."""
        return self.steps < self.window

    @property
    def mean(self) -> float:
        """Mean share so far; 0 before the first."""
        return self.total / self.steps if self.steps else 0.0

    def update(self, active: float | Tensor) -> None:
        """Take the next step's share; values that are not finite and those after the window do not count.

        Raises:
            DataError: if the mean is above ``stop``.
        """
        if not self.watching:
            return
        value = float(active)
        if not math.isfinite(value):
            return
        self.steps, self.total = self.steps + 1, self.total + value
        if self.steps < min(MIN_UPDATES, self.window):
            return
        said = (
            f"{self.mean:.2f} of the ordinary negatives are closer than the hard pairs (mean of the first {self.steps} "
            f"steps); pairs drawn at random give {self.random:.2f}, mined ones under {0.2 * self.random:.2f}"
        )
        if self.stop is not None and self.mean > self.stop:
            raise DataError(
                f"{said}, so the list of hard pairs does not belong to this data, or the model has learned nothing yet",
                hint="check that the rows of the list are the rows of the data (HardPairs.matched); "
                "to go on all the same, switch the alarm off",
            )
        if self.mean > self.warn and not self.warned:
            self.warned = True
            warnings.warn(f"{said}; check that the list was mined from this data", UserWarning, stacklevel=2)
