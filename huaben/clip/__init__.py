"""One space for pictures and sentences."""

from .loss import contrastive_loss
from .model import Clip, ClipConfig
from .preprocess import preprocess

__all__ = ["Clip", "ClipConfig", "contrastive_loss", "preprocess"]
