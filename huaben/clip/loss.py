"""Contrastive losses between pictures and texts, as named terms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeError


def contrastive_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> dict[str, Tensor]:
    """Return CLIP's symmetric cross-entropy: pair i of the batch belongs together, all others do not.

    Args:
        image_features, text_features: (B, E), of length 1.
        logit_scale: scalar that multiplies the cosines (the inverse temperature).

    Returns:
        ``loss`` (the mean of both directions), and detached ``image_to_text``, ``text_to_image`` and ``accuracy``
        (share of pictures whose own text scores highest in the batch).

    Raises:
        ShapeError: if the two are not (B, E) of the same shape.

    Source: Radford et al. 2021 (arXiv:2103.00020), figure 3.
    """
    if image_features.ndim != 2 or image_features.shape != text_features.shape:
        raise ShapeError(
            f"image features {tuple(image_features.shape)} and text features {tuple(text_features.shape)}, "
            "expected the same (batch, width)",
            hint="pass one text per picture",
        )
    logits = logit_scale * image_features.float() @ text_features.float().T
    own = torch.arange(len(logits), device=logits.device)
    image_to_text = F.cross_entropy(logits, own)
    text_to_image = F.cross_entropy(logits.T, own)
    return {
        "loss": (image_to_text + text_to_image) / 2,
        "image_to_text": image_to_text.detach(),
        "text_to_image": text_to_image.detach(),
        "accuracy": (logits.argmax(1) == own).float().mean().detach(),
    }
