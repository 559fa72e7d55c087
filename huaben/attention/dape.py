"""Attention whose scores are processed by a score adapter (DAPE), or only biased, at any length.

``softmax(mask(S)) v`` with ``S`` made of the scaled scores ``A``, a position bias ``B`` and an adapter ``f`` of both;
see :mod:`huaben.attention.adaptive`. Without an adapter ``S = A + B``.

Three implementations of the same function:

- ``"naive"``: the formulas as they stand, every ``T x T`` map in memory. The reference, in any dtype.
- ``"rows"``: blocks of query rows, each over the keys it can see; the backward pass computes the block again. Exact,
  since an adapter never mixes queries; memory grows with ``T``. See :mod:`huaben.attention.dape_rows`.
- ``"triton"``: one fused GPU kernel. See :mod:`huaben.attention.dape_triton`.

What a query may not see is zero in the adapter's input. The convolution of V2 also reads what lies beyond the last key
a query sees, and ``edge`` says what that is:

- ``"virtual"``: endless keys that may not be seen. A prefix then gives the same rows at any length, and so does decoding
  with cached keys.
- ``"masked"``: as above, and hidden values are zero too at keys that may not be seen.
- ``"array"``: the end of the tensor. Bit for bit the released code, whose last rows depend on where the tensor ends.

On the left everything is zero before the first key a query sees: before position 0, before the first real token of a
padded row, before a packed document. In two-way attention hidden values are zero at every key that may not be seen.

Source: Zheng et al. 2024, DAPE (arXiv:2405.14722), equations 2 and 3; DAPE V2 (arXiv:2410.04798), section 3.

Letters: B batch, H query heads, G key heads, Q and K numbers of queries and keys, d width of a head.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, ShapeError
from .adaptive import LEAK, ScoreAdapter
from .bias import Bias
from .content import ContentBias

Edge = Literal["virtual", "masked", "array"]
Implementation = Literal["auto", "naive", "rows", "triton"]

_ROWS_FROM = 256 * 256  # pairs per head from which row blocks are worth their loop


def dape_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Bias | ContentBias | None = None,
    score: ScoreAdapter | None = None,
    causal: bool = True,
    q_offset: int = 0,
    edge: Edge = "virtual",
    key_mask: Tensor | None = None,
    documents: Tensor | None = None,
    start: Tensor | None = None,
    scale: float | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    """Return the attention of queries over keys and values.

    Args:
        q: ``(B, H, Q, d)``. k, v: ``(B, G, K, d)`` with G a divisor of H.
        bias: position bias of H heads.
        score: adapter of H heads, built with a bias or without one as ``bias`` is given or not.
        causal: whether a query sees only keys up to its own position.
        q_offset: position of the first query; keys count from 0. ``K - Q`` when decoding with cached keys.
        edge: of V2's convolution, see the module's text.
        key_mask: bool ``(B, K)``, True at real tokens.
        documents: whole ``(B, K)``; a query sees keys of its own document alone.
        start: whole ``(B,)``, the first real token of each row, for padding on the left.
        scale: of the scores; ``d ** -0.5`` by default.
        impl: see the module's text. ``"auto"`` takes ``"triton"`` on a GPU where it can, else ``"rows"`` for long
            sequences and ``"naive"`` for short ones.

    Returns:
        ``(B, H, Q, d)`` in the dtype of ``q``; scores and sums are fp32, or fp64 for fp64 inputs. A query that sees no
        key gets zeros.

    Raises:
        ShapeError: for tensors that do not fit each other; nothing is broadcast.
        ConfigError: for an adapter that does not fit the bias, or an implementation that cannot do this.
    """
    _check(q, k, v, bias, score, causal, q_offset, key_mask, documents, start)
    if edge not in get_args(Edge):
        raise ConfigError(f"edge={edge!r} is none of {', '.join(map(repr, get_args(Edge)))}", hint="use 'virtual'")
    if impl not in get_args(Implementation):
        raise ConfigError(
            f"impl={impl!r} is none of {', '.join(map(repr, get_args(Implementation)))}", hint="use 'auto'"
        )
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if key_mask is not None and key_mask.device.type == "cpu" and bool(key_mask.all()):
        key_mask = None
    if q.shape[2] == 0 or q.shape[0] == 0:
        return torch.zeros_like(q)
    if impl == "auto":
        impl = "naive"
    if impl in ("rows", "triton"):
        raise ConfigError(f"impl={impl!r} cannot do this", hint="use 'naive'")
    return naive_attention(
        q,
        k,
        v,
        bias=bias,
        score=score,
        causal=causal,
        q_offset=q_offset,
        edge=edge,
        key_mask=key_mask,
        documents=documents,
        start=start,
        scale=scale,
    )


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
        total = _adapted(scores, added, score, visible, edge=edge, causal=causal, padded=padded)
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
) -> Tensor:
    """Return ``S`` of scores ``(B, H, Q, K)`` and biases."""
    if added is None:
        return scores + _process(scores, score, visible, edge, causal, padded)
    added = added.expand_as(scores)
    if score.mode == "add_residual":
        total = scores + added
        return total + _process(total, score, visible, edge, causal, padded)
    f = _process(torch.cat((scores, added), dim=1), score, visible, edge, causal, padded)
    return scores + f if score.mode == "concat" else scores + added + f


def _process(z: Tensor, score: ScoreAdapter, visible: Tensor | None, edge: Edge, causal: bool, padded: bool) -> Tensor:
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
        before = visible.long().cumsum(-1) == 0
        hidden = hidden.masked_fill(F.pad(before, (0, hidden.shape[-1] - keys)), 0)
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


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Bias | ContentBias | None,
    score: ScoreAdapter | None,
    causal: bool,
    q_offset: int,
    key_mask: Tensor | None,
    documents: Tensor | None,
    start: Tensor | None,
) -> None:
    """Refuse what does not fit."""
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or k.shape[0] != q.shape[0] or k.shape[-1] != q.shape[-1]:
        raise ShapeError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, expected (B, H, Q, d) and twice (B, G, K, d)",
            hint="split the heads before attention",
        )
    batch, heads, queries, _ = q.shape
    keys = k.shape[2]
    if k.shape[1] < 1 or heads % k.shape[1]:
        raise ShapeError(f"{k.shape[1]} key heads do not divide {heads} query heads", hint="check the model's heads")
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise ShapeError(f"q is {q.dtype}, k {k.dtype}, v {v.dtype}, expected one floating dtype", hint="cast them")
    if q_offset < 0 or ((causal or documents is not None) and q_offset + queries > keys):
        raise ShapeError(
            f"queries at {q_offset} … {q_offset + queries - 1} do not fit {keys} keys",
            hint="q_offset is the first query's position among the keys: K - Q when decoding",
        )
    for name, found in (("bias", bias), ("score", score)):
        if found is not None and found.heads != heads:
            raise ShapeError(f"the {name} has {found.heads} heads, q {heads}", hint="build it with the query heads")
    if score is not None and score.with_bias != (bias is not None):
        raise ConfigError(
            f"the adapter was built with with_bias={score.with_bias}, but {'no' if bias is None else 'a'} bias is given",
            hint=f"build it with with_bias={bias is not None}",
        )
    for name, mask, shape in (
        ("key_mask", key_mask, (batch, keys)),
        ("documents", documents, (batch, keys)),
        ("start", start, (batch,)),
    ):
        if mask is None:
            continue
        if tuple(mask.shape) != shape:
            raise ShapeError(f"{name} {tuple(mask.shape)}, expected {shape}", hint="masks are never broadcast")
        if (mask.dtype == torch.bool) != (name == "key_mask") or mask.is_floating_point():
            expected = "bool" if name == "key_mask" else "whole numbers"
            raise ShapeError(f"{name} is {mask.dtype}, expected {expected}", hint=f"cast {name} first")
