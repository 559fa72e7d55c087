"""Attention whose scores are processed by a score adapter (DAPE), or only biased, at any length.

``softmax(mask(S)) v`` with ``S`` made of the scaled scores ``A``, a position bias ``B`` and an adapter ``f`` of both;
see :mod:`huaben.attention.adaptive`. Without an adapter ``S = A + B``.

Three implementations of the same function:

- ``"naive"``: the formulas as they stand, every ``T x T`` map in memory. The reference, in any dtype.
- ``"rows"``: blocks of query rows, each over the keys it can see; the backward pass computes the block again. Exact,
  since an adapter never mixes queries; memory grows with ``T``. See :mod:`huaben.attention.dape_rows`.
- ``"triton"``: one fused GPU kernel. See :mod:`huaben.attention.dape_triton`.

What a query may not see is zero in the adapter's input. The convolution of V2 has a second layer, whose input, the
hidden values, exists at keys that may not be seen too. Those at or before the query (padding, another document, before
the first position) are zero. What lies ahead of the query is the business of ``edge``:

- ``"virtual"``: endless keys that may not be seen, whose hidden values are what the first layer makes of zeros and the
  last keys. A prefix then gives the same rows at any length, and so does decoding with cached keys.
- ``"masked"``: hidden values are zero there; as consistent.
- ``"array"``: as ``"virtual"`` up to the end of the tensor. Bit for bit the released code, whose last rows depend on
  where the tensor ends.

In two-way attention hidden values are zero at every key that may not be seen, on either side.

Source: Zheng et al. 2024, DAPE (arXiv:2405.14722), equations 2 and 3; DAPE V2 (arXiv:2410.04798), section 3.

Letters: B batch, H query heads, G key heads, Q and K numbers of queries and keys, d width of a head.
"""

from __future__ import annotations

import math
from typing import Literal, TypedDict, get_args

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from .adaptive import ScoreAdapter
from .bias import Bias
from .content import ContentBias
from .dape_naive import Edge, naive_attention
from .dape_rows import rows_attention

__all__ = ["Edge", "Implementation", "dape_attention"]

Implementation = Literal["auto", "naive", "rows", "triton"]

_FUSED_FROM = 16  # queries; fewer leave the kernel's tiles empty
_NAIVE_BYTES = 512 << 20


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
    arguments = _Arguments(
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
    if impl == "auto":
        impl = _choose(q, k, arguments)
    with torch.autocast(q.device.type, enabled=False):  # scores stay in full precision
        if impl == "triton":
            return _triton(q, k, v, arguments)
        return (rows_attention if impl == "rows" else naive_attention)(q, k, v, **arguments)


class _Arguments(TypedDict):
    """What every implementation takes besides queries, keys and values."""

    bias: Bias | ContentBias | None
    score: ScoreAdapter | None
    causal: bool
    q_offset: int
    edge: Edge
    key_mask: Tensor | None
    documents: Tensor | None
    start: Tensor | None
    scale: float


def _choose(q: Tensor, k: Tensor, arguments: _Arguments) -> Implementation:
    """Return the implementation for ``"auto"``."""
    if q.device.type == "cuda" and q.shape[2] >= _FUSED_FROM and _fused_problem(q, arguments) is None:
        return "triton"
    bias, score = arguments["bias"], arguments["score"]
    if q.shape[2] == 1:
        return "naive"
    if isinstance(bias, ContentBias) or not arguments["causal"]:  # blocks save memory there, but no time
        maps = 3 * q.shape[1] + (0 if score is None else 2 * score.hidden)
        return "rows" if q.shape[0] * q.shape[2] * k.shape[2] * maps * 4 > _NAIVE_BYTES else "naive"
    if score is None:
        least = 512
    else:
        least = 128 if bias is None or bias.toeplitz else 256
    return "rows" if q.shape[2] * k.shape[2] >= least**2 else "naive"


def _fused_problem(q: Tensor, arguments: _Arguments) -> str | None:
    """Return why the fused kernel cannot do this."""
    from .dape_triton import triton_supported

    bias, score = arguments["bias"], arguments["score"]
    content = isinstance(bias, ContentBias)
    return triton_supported(
        q,
        hidden=0 if score is None else score.hidden,
        kernel_size=1 if score is None else score.kernel_size,
        toeplitz=not isinstance(bias, Bias) or bias.toeplitz,
        causal=arguments["causal"],
        edge=arguments["edge"] if score is not None and score.kernel_size > 1 else "virtual",
        content_positions=content,
    )


def _triton(q: Tensor, k: Tensor, v: Tensor, arguments: _Arguments) -> Tensor:
    """Return the attention by the fused kernel."""
    from .dape_triton import triton_attention

    problem = _fused_problem(q, arguments)
    if problem is not None:
        raise ConfigError(f"impl='triton' cannot do this: {problem}", hint="use impl='auto'")
    bias, score = arguments["bias"], arguments["score"]
    key_mask, start, q_offset = arguments["key_mask"], arguments["start"], arguments["q_offset"]
    if start is not None:
        begun = torch.arange(k.shape[2], device=k.device) >= start[:, None]
        key_mask = begun if key_mask is None else key_mask & begun
    table = bias.table(q_offset + q.shape[2], device=q.device) if isinstance(bias, Bias) else None
    return triton_attention(
        q,
        k,
        v,
        weight1=None if score is None else score.weight1,
        bias1=None if score is None else score.bias1,
        weight2=None if score is None else score.weight2,
        bias2=None if score is None else score.bias2,
        bias_table=table,
        mode="concat_residual" if score is None else score.mode,
        with_bias=bias is not None,
        kernel_size=1 if score is None else score.kernel_size,
        q_offset=q_offset,
        edge=arguments["edge"] if score is not None and score.kernel_size > 1 else "virtual",
        scale=arguments["scale"],
        key_mask=key_mask,
        documents=arguments["documents"],
    )


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
