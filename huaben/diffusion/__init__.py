"""Noise to picture: autoencoder, noise schedules, samplers, diffusion transformer, and the pipeline joining them.

Names are imported when asked for: the painter's contract in :mod:`.pipeline` needs no torch.
"""

import importlib
from typing import Any

_HOME = {
    "Autoencoder": "autoencoder",
    "AutoencoderConfig": "autoencoder",
    "EmbeddedPainter": "pipeline",
    "GroundedDiT": "grounding",
    "Grounding": "grounding",
    "HunyuanDiT": "dit",
    "HunyuanDiTConfig": "dit",
    "NoiseSchedule": "schedule",
    "PaintRequest": "pipeline",
    "make_sampler": "samplers",
    "sample": "samplers",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import an exported name from its file."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
