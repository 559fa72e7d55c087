"""One space for pictures and sentences: dual encoders, their losses, and hard pairs to improve them (HELIP).

All names but the model's own are imported when first asked for. Retrieval and zero-shot scores are functions of
modules of the same name: ``huaben.clip.retrieval.retrieval``, ``huaben.clip.zero_shot.zero_shot``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .loss import contrastive_loss
from .model import Clip, ClipConfig
from .preprocess import preprocess

if TYPE_CHECKING:
    from .dataset import ArrayPairs, PairDataset, open_pairs
    from .dual_encoder import DualEncoder, DualOutput, HuabenDualEncoder, load_dual_encoder
    from .features import extract_features
    from .gather import gather_features, gather_ids
    from .hard_pairs import HardPairs
    from .loss import nt_xent_loss, siglip_loss
    from .margin import (
        MARGINS,
        HardNegativeMarginLoss,
        MarginAlarm,
        MarginConfig,
        hard_mask,
        hard_negative_margin_loss,
    )
    from .mining import mine_hard_pairs
    from .open_clip_plugin import HelipLoss, HelipSampler, helip_data
    from .probe import linear_probe
    from .sampler import HardPairBatchSampler

_HOMES = {
    "dataset": ("ArrayPairs", "PairDataset", "open_pairs"),
    "dual_encoder": ("DualEncoder", "DualOutput", "HuabenDualEncoder", "load_dual_encoder"),
    "features": ("extract_features",),
    "gather": ("gather_features", "gather_ids"),
    "hard_pairs": ("HardPairs",),
    "loss": ("nt_xent_loss", "siglip_loss"),
    "margin": (
        "MARGINS",
        "HardNegativeMarginLoss",
        "MarginAlarm",
        "MarginConfig",
        "hard_mask",
        "hard_negative_margin_loss",
    ),
    "mining": ("mine_hard_pairs",),
    "open_clip_plugin": ("HelipLoss", "HelipSampler", "helip_data"),
    "probe": ("linear_probe",),
    "sampler": ("HardPairBatchSampler",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "MARGINS",
    "ArrayPairs",
    "Clip",
    "ClipConfig",
    "DualEncoder",
    "DualOutput",
    "HardNegativeMarginLoss",
    "HardPairBatchSampler",
    "HardPairs",
    "HelipLoss",
    "HelipSampler",
    "HuabenDualEncoder",
    "MarginAlarm",
    "MarginConfig",
    "PairDataset",
    "contrastive_loss",
    "extract_features",
    "gather_features",
    "gather_ids",
    "hard_mask",
    "hard_negative_margin_loss",
    "helip_data",
    "linear_probe",
    "load_dual_encoder",
    "mine_hard_pairs",
    "nt_xent_loss",
    "open_pairs",
    "preprocess",
    "siglip_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
