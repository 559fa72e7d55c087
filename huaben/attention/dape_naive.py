"""Adapted attention by the formulas, every map in memory: the reference of the other implementations.

Letters: B batch, H query heads, Q and K numbers of queries and keys, C channels of an adapter's input.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .adaptive import LEAK, ScoreAdapter
from .bias import Bias
from .content import ContentBias

Edge = Literal["virtual", "masked", "array"]


def naive_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Bias | ContentBias | None,
    score: ScoreAdapter | None,
    causal: bool,
    q_offset: int,
    edge: Edge,
    key_mask: Tensor | None,
    documents: Tensor | None,
    start: Tensor | None,
    scale: float,
) -> Tensor:
    """Return the attention by the formulas, with every map in memory; arguments as of :func:`dape_attention`."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    groups = q.shape[1] // k.shape[1]
    i = torch.arange(q_offset, q_offset + q.shape[2], device=q.device)
    j = torch.arange(k.shape[2], device=q.device)
    visible = visible_pairs(i, j, causal=causal, key_mask=key_mask, documents=documents, start=start)
    padded = not (key_mask is None and documents is None and start is None)
    queries, keys = q.to(dtype), k.to(dtype).repeat_interleave(groups, dim=1)

    added: Tensor | None = None
    if isinstance(bias, ContentBias):
        scores, added = bias.scores(queries, keys, i, j, scale=scale, visible=visible)
    else:
        scores = queries @ keys.transpose(-1, -2) * scale
        if bias is not None:
            origin = None
            if padded and visible is not None and not bias.toeplitz:
                origin = visible.long().argmax(-1)[:, 0]  # the first key each query sees
            added = bias.rows(i, j, origin=origin, dtype=dtype)

    if score is None:
        total = scores if added is None else scores + added
    else:
        total = _adapted(scores, added, score, visible, edge=edge, causal=causal, padded=padded, ahead=j > i[:, None])
    if visible is not None:
        total = total.masked_fill(~visible, -math.inf)
    if padded and visible is not None:
        blind = ~visible.any(-1, keepdim=True)
        weights = torch.softmax(total.masked_fill(blind, 0), dim=-1).masked_fill(blind, 0)
    else:
        weights = torch.softmax(total, dim=-1)
    return (weights @ v.to(dtype).repeat_interleave(groups, dim=1)).to(q.dtype)


def _adapted(
    scores: Tensor,
    added: Tensor | None,
    score: ScoreAdapter,
    visible: Tensor | None,
    *,
    edge: Edge,
    causal: bool,
    padded: bool,
    ahead: Tensor,
) -> Tensor:
    """Return ``S`` of scores ``(B, H, Q, K)`` and biases."""
    if added is None:
        return scores + _process(scores, score, visible, edge, causal, padded, ahead)
    added = added.expand_as(scores)
    if score.mode == "add_residual":
        total = scores + added
        return total + _process(total, score, visible, edge, causal, padded, ahead)
    f = _process(torch.cat((scores, added), dim=1), score, visible, edge, causal, padded, ahead)
    return scores + f if score.mode == "concat" else scores + added + f


def _process(
    z: Tensor, score: ScoreAdapter, visible: Tensor | None, edge: Edge, causal: bool, padded: bool, ahead: Tensor
) -> Tensor:
    """Return ``f(z)`` of ``(B, C, Q, K)``, by the edge rules."""
    if score.kernel_size == 1:
        return score(z)
    keys, p = z.shape[-1], score.kernel_size // 2
    virtual = causal and edge == "virtual"
    if visible is not None:
        z = z.masked_fill(~visible, 0)
    if virtual:
        z = F.pad(z, (0, p))  # the first keys beyond the end; the convolution's own padding is the rest of them
    u = F.conv2d(z, score.weight1[:, :, None].to(z.dtype), score.bias1.to(z.dtype), padding=(0, p))
    hidden = F.leaky_relu(u, LEAK)
    if visible is not None and (edge == "masked" or not causal):
        hidden = hidden.masked_fill(~F.pad(visible, (0, hidden.shape[-1] - keys)), 0)
    elif visible is not None and padded:
        hidden = hidden.masked_fill(F.pad(~visible & ~ahead, (0, hidden.shape[-1] - keys)), 0)
    f = F.conv2d(hidden, score.weight2[:, :, None].to(z.dtype), score.bias2.to(z.dtype), padding=(0, p))
    return f[..., :keys]


def visible_pairs(
    i: Tensor,
    j: Tensor,
    *,
    causal: bool,
    key_mask: Tensor | None = None,
    documents: Tensor | None = None,
    start: Tensor | None = None,
) -> Tensor | None:
    """Return which keys each query sees: bool ``(1 or B, 1, Q, K)``, or None where it is all of them.

    Args:
        i, j: positions of queries and keys.
        causal, key_mask, documents, start: see :func:`dape_attention`.
    """
    visible: Tensor | None = None
    if causal:
        visible = (j <= i[:, None])[None, None]
    for part in (
        None if key_mask is None else key_mask[:, None, None, :],
        None if start is None else (j >= start[:, None])[:, None, None, :],
        None if documents is None else (documents[:, i, None] == documents[:, None, :])[:, None],
    ):
        if part is not None:
            visible = part if visible is None else visible & part
    if visible is not None and visible.shape[2] == 1 and len(i) > 1:
        visible = visible.expand(-1, -1, len(i), -1)
    return visible
