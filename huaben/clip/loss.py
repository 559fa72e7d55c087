"""Contrastive losses between pictures and texts, as named terms.

All of them compute on features of a whole batch. A process that holds a part of a batch gathers the others' features
(:mod:`.gather`) and names its own rows with ``rows``: the mean of all processes' losses is then the batch's loss, and
the gradients that data-parallel training averages are those of one process.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, ShapeError


def contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    ids: Tensor | None = None,
    rows: slice | None = None,
) -> dict[str, Tensor]:
    """Return CLIP's symmetric cross-entropy: pair i of the batch belongs together, all others do not.

    Args:
        image_features, text_features: (B, E), of length 1.
        logit_scale: scalar that multiplies the cosines (the inverse temperature).
        ids: (B,) what each pair is; pairs of equal id are no negatives of each other. All differ by default.
        rows: the anchors, in both directions; the whole batch by default.

    Returns:
        ``loss`` (the mean of both directions), and detached ``image_to_text``, ``text_to_image`` and ``accuracy``
        (share of pictures whose own text scores highest in the batch).

    Raises:
        ShapeError: if the two are not (B, E) of the same shape, ids are not (B,), or there are no rows.

    Source: Radford et al. 2021 (arXiv:2103.00020), figure 3.
    """
    _check_pairs(image_features, text_features)
    images, texts = full(image_features), full(text_features)
    own = torch.arange(len(images), device=images.device)
    if rows is None:
        image_logits = logit_scale * images @ texts.T
        text_logits = image_logits.T
    else:
        own = _anchors(own, rows)
        image_logits = logit_scale * images[rows] @ texts.T
        text_logits = logit_scale * texts[rows] @ images.T
    if ids is not None:
        same = _same(ids, own, len(images))
        image_logits = image_logits.masked_fill(same, -torch.inf)
        text_logits = text_logits.masked_fill(same, -torch.inf)
    image_to_text = F.cross_entropy(image_logits, own)
    text_to_image = F.cross_entropy(text_logits, own)
    return {
        "loss": (image_to_text + text_to_image) / 2,
        "image_to_text": image_to_text.detach(),
        "text_to_image": text_to_image.detach(),
        "accuracy": (image_logits.argmax(1) == own).float().mean().detach(),
    }


def siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    ids: Tensor | None = None,
    rows: slice | None = None,
) -> dict[str, Tensor]:
    """Return SigLIP's pairwise sigmoid loss: each picture and each text are asked alone whether they belong together.

    Args:
        image_features, text_features: (B, E), of length 1.
        logit_scale: scalar that multiplies the cosines.
        logit_bias: scalar added to them; negative, as most combinations do not belong together.
        ids: (B,) what each pair is; other combinations of equal id are not asked. All differ by default.
        rows: the pictures asked about, each with all texts; the whole batch by default.

    Returns:
        ``loss`` (summed over texts, mean over pictures), and detached ``accuracy`` (share of pictures whose own text
        scores highest), ``positive_logit`` and ``negative_logit`` (means). Hard pairs change what share of negatives
        is near: the last two show whether scale and bias follow.

    Raises:
        ShapeError: as for :func:`contrastive_loss`.

    Source: Zhai et al. 2023 (arXiv:2303.15343), algorithm 1.
    """
    _check_pairs(image_features, text_features)
    images, texts = full(image_features), full(text_features)
    own = torch.arange(len(images), device=images.device)
    if rows is not None:
        own = _anchors(own, rows)
        images = images[rows]
    logits = logit_scale * images @ texts.T + logit_bias
    positive = _own(own, logits.shape[1])
    asked = torch.ones_like(positive) if ids is None else ~_same(ids, own, logits.shape[1])
    each = -F.logsigmoid(torch.where(positive, logits, -logits))
    with torch.no_grad():
        others = asked & ~positive
        scored = logits.masked_fill(~asked, -torch.inf)
        terms = {
            "accuracy": (scored.argmax(1) == own).float().mean(),
            "positive_logit": logits.gather(1, own[:, None]).mean(),
            "negative_logit": (logits * others).sum() / others.sum().clamp_min(1),
        }
    return {"loss": (each * asked).sum() / len(logits), **terms}


def nt_xent_loss(
    first: Tensor, second: Tensor, temperature: float = 0.1, *, ids: Tensor | None = None, rows: slice | None = None
) -> dict[str, Tensor]:
    """Return SimCLR's loss: of all other views in the batch, a view has to find the other one of its own picture.

    Args:
        first, second: (B, E) two views of the same pictures; they are brought to length 1 here.
        temperature: divides the cosines, above 0.
        ids: (B,) what each picture is; other pictures of equal id are no negatives. All differ by default.
        rows: the pictures whose two views are anchors; the whole batch by default.

    Returns:
        ``loss`` (mean over both views of all anchors) and detached ``accuracy``.

    Raises:
        ShapeError: as for :func:`contrastive_loss`.
        ConfigError: for a temperature that is not above 0.

    Source: Chen et al. 2020 (arXiv:2002.05709), equation 1; with CLIP's loss: SLIP, Mu et al. 2021
    (arXiv:2112.12750), section 3.
    """
    _check_pairs(first, second)
    if not temperature > 0:
        raise ConfigError(f"temperature={temperature!r} is not above 0", hint="use 0.1")
    views = F.normalize(torch.cat([full(first), full(second)]), dim=-1)  # (2 B, E)
    count = len(first)
    anchors = torch.arange(count, device=views.device)
    if rows is not None:
        anchors = _anchors(anchors, rows)
    left_out = torch.cat([anchors, anchors + count])
    own = torch.cat([anchors + count, anchors])
    logits = views[left_out] @ views.T / temperature  # (2 b, 2 B)
    hidden = _own(left_out, 2 * count)
    if ids is not None:
        _check_ids(ids, count)
        twice = ids.repeat(2)
        hidden |= (twice[left_out, None] == twice) & ~_own(own, 2 * count)
    logits = logits.masked_fill(hidden, -torch.inf)
    return {"loss": F.cross_entropy(logits, own), "accuracy": (logits.argmax(1) == own).float().mean().detach()}


def full(features: Tensor) -> Tensor:
    """Return features in float32; float64 stays what it is."""
    return features if features.dtype == torch.float64 else features.float()


def _check_pairs(image_features: Tensor, text_features: Tensor) -> None:
    if image_features.ndim != 2 or image_features.shape != text_features.shape:
        raise ShapeError(
            f"image features {tuple(image_features.shape)} and text features {tuple(text_features.shape)}, "
            "expected the same (batch, width)",
            hint="pass one text per picture",
        )


def _anchors(every: Tensor, rows: slice) -> Tensor:
    """Return the numbers of the rows of a slice."""
    anchors = every[rows]
    if not len(anchors):
        raise ShapeError(f"rows={rows} of a batch of {len(every)}, expected at least one", hint="check the offset")
    return anchors


def _check_ids(ids: Tensor, count: int) -> None:
    if tuple(ids.shape) != (count,):
        raise ShapeError(f"ids of shape {tuple(ids.shape)}, expected ({count},)", hint="pass one id per pair")


def _own(own: Tensor, count: int) -> Tensor:
    """Return (b, count): True at each anchor's own column."""
    return own[:, None] == torch.arange(count, device=own.device)


def _same(ids: Tensor, own: Tensor, count: int) -> Tensor:
    """Return (b, B): which other pairs have the id of an anchor."""
    _check_ids(ids, count)
    return (ids[own, None] == ids) & ~_own(own, count)
