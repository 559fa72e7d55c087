"""Fused causal attention with adaptive position encoding on a GPU: nothing of size T x T is stored.

DAPE lets a small network over all heads' scores and biases correct every score; stored, its maps take ``3H + 2D`` floats
a pair. Here one program holds all heads of a block of queries, walks over windows of keys with an online softmax and
recomputes the maps in the backward pass. A window carries the neighbours that two stacked convolutions look at, so tiles
do not touch. Weights, keys and values, and the table of biases get the same gradient, bit for bit, in every run.

Needs triton and a GPU, or ``TRITON_INTERPRET=1`` set before triton is imported (a slow CPU run, for tests).

Source: Zheng et al. 2024 (arXiv:2405.14722, Eq. 2 and 3; arXiv:2410.04798 for the convolution); the online softmax of
Dao 2023 (arXiv:2307.08691). Differs: the papers' code stores every map; hidden units right of a query see an endless run of
masked keys instead of the array's end ("virtual").
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ..optional import probe
from .dape_triton_launch import (
    Case,
    backward_keys,
    backward_queries,
    choose_tile,
    document_spans,
    fitting,
    forward,
    interpreted,
    kernel_arguments,
    pack,
    padded,
    table_units,
    unpack,
)

MODES = ("concat_residual", "concat", "add_residual")
EDGES = ("virtual", "masked")
MAX_HEADS = 16
MAX_HEAD_DIM = 128
MAX_HIDDEN = 128
MAX_KERNEL_SIZE = 9
WINDOW_BYTES = 32768  # of the keys in a window; every product of a program needs such a piece
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def triton_supported(
    q: Tensor,
    *,
    heads: int | None = None,
    hidden: int = 0,
    kernel_size: int = 1,
    toeplitz: bool = True,
    causal: bool = True,
    edge: str = "virtual",
    content_positions: bool = False,
) -> str | None:
    """Return why the fused kernel cannot do a case; None if it can.

    Args:
        q: the queries (B, H, Tq, d): device, dtype, heads and head width are read from it.
        heads: of the adapter; None is ``q``'s.
        hidden: width of the adapter's hidden layer; 0 without an adapter.
        kernel_size: of the adapter along the keys.
        toeplitz: the bias depends on the distance alone, or there is none (FIRE's does not).
        causal: whether the attention is.
        edge: what hidden units right of a query see.
        content_positions: scores that read queries or keys again (CoPE, Transformer-XL).
    """
    reason = _case_problem(q, heads or q.shape[1], hidden, kernel_size, edge)
    if reason is not None:
        return reason
    if not causal:
        return "the fused kernel is causal only"
    if not toeplitz:
        return "the bias is no function of the distance alone"
    if content_positions:
        return "positions that depend on content change scores inside the product"
    return _platform_problem(q.device) or _room_problem(q, kernel_size)


def _case_problem(q: Tensor, heads: int, hidden: int, kernel_size: int, edge: str) -> str | None:
    if q.dtype not in _DTYPES:
        return f"dtype {q.dtype} is none of float32, float16, bfloat16"
    if edge not in EDGES:
        return f"edge {edge!r} is none of {', '.join(EDGES)}: the kernel does not know where the array ends"
    if heads > MAX_HEADS or q.shape[-1] > MAX_HEAD_DIM or hidden > MAX_HIDDEN:
        return (
            f"{heads} heads of width {q.shape[-1]} with {hidden} hidden units exceed a program's registers "
            f"({MAX_HEADS}, {MAX_HEAD_DIM}, {MAX_HIDDEN})"
        )
    if kernel_size > MAX_KERNEL_SIZE or kernel_size % 2 == 0:
        return f"kernel size {kernel_size} is even or above {MAX_KERNEL_SIZE}"
    return None


def _platform_problem(device: torch.device) -> str | None:
    if device.type not in ("cuda", "cpu"):
        return f"there is no kernel for device {device.type!r}"
    found = probe("triton")
    if not found.works:
        return f"triton does not load ({found.problem})" if found.problem else "triton is not installed"
    if device.type == "cpu" and not interpreted():
        return "tensors are on the CPU, where triton only runs with TRITON_INTERPRET=1 set before it is imported"
    return None


def _room_problem(q: Tensor, kernel_size: int) -> str | None:
    """Return why a window of keys, all heads of it, leaves a GPU's program too little shared memory.

    Compiled for an H100 the key side takes 190 KiB of 227 at the half-precision limit, 128 KiB at the fp32 one.
    """
    if q.device.type != "cuda":
        return None
    window = min(tile.window for tile in fitting("keys", kernel_size, 16))
    room = padded(q.shape[1]) * padded(q.shape[3]) * window * q.element_size()
    limit = WINDOW_BYTES if q.element_size() == 2 else WINDOW_BYTES // 2  # fp32 products keep two parts of each number
    if room <= limit:
        return None
    return (
        f"{window} keys of {q.shape[1]} heads of width {q.shape[3]} in {q.dtype} take {room} bytes (padded), "
        f"above {limit}: more than a program's shared memory has room for"
    )


def triton_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    weight2: Tensor | None = None,
    bias2: Tensor | None = None,
    bias_table: Tensor | None = None,
    mode: str = "concat_residual",
    with_bias: bool = True,
    kernel_size: int = 1,
    q_offset: int = 0,
    edge: str = "virtual",
    scale: float | None = None,
    key_mask: Tensor | None = None,
    documents: Tensor | None = None,
) -> Tensor:
    """Return causal attention (B, H, Tq, d) whose scores an adapter over heads and neighbouring keys corrects.

    Scores are ``S = A + Bias + f(A, Bias)`` with ``A = scale * q k'`` ("concat_residual"), ``A + f(A, Bias)`` ("concat") or
    ``A + Bias + f(A + Bias)`` ("add_residual"); ``f`` is two convolutions of ``kernel_size`` along the keys that mix heads,
    LeakyReLU between. Without weights ``S = A + Bias``. A pair that may not be seen counts as zero for ``f``; hidden units
    live on visible pairs and, with the virtual edge, on all keys right of the query. A query that sees nothing gives zero.

    Args:
        q: (B, H, Tq, d), fp32, fp16 or bf16; row r stands at position ``q_offset + r``.
        k, v: (B, Hkv, Tk, d) of the same dtype, ``H % Hkv == 0``, ``Tk >= q_offset + Tq``.
        weight1: (D, C, kernel_size), C = 2H (scores first, then biases) if ``with_bias`` and not "add_residual", else H.
        bias1: (D,).
        weight2: (H, D, kernel_size).
        bias2: (H,); moves all scores of a head alike, so it has no effect and its gradient is zero.
        bias_table: (H, T), entry delta is the bias at distance delta, ``T >= q_offset + Tq``; None is no bias.
        mode: one of MODES.
        with_bias: whether ``f`` reads the biases beside the scores.
        kernel_size: odd, at most 9; 1 is the pointwise network.
        q_offset: position of the first query.
        edge: "virtual" or "masked" (hidden units right of the query are zero).
        scale: of the products; None is ``1 / sqrt(d)``.
        key_mask: bool (B, Tk), True = a real token.
        documents: int (B, Tk); a query sees keys of its own document only.

    Returns:
        (B, H, Tq, d) in ``q``'s dtype. Differentiable in q, k, v, the weights and the table.

    Raises:
        ShapeError: if tensors do not fit each other.
        ConfigError: for a case outside ``triton_supported``.
    """
    heads, hidden = q.shape[1], 0 if weight1 is None else weight1.shape[0]
    reason = (
        _case_problem(q, heads, hidden, kernel_size, edge)
        or _platform_problem(q.device)
        or _room_problem(q, kernel_size)
    )
    if reason is not None:
        raise ConfigError(f"the fused kernel cannot run: {reason}", hint='use impl="rows"')
    if mode not in MODES:
        raise ConfigError(f"mode={mode!r}, expected one of {', '.join(MODES)}", hint="concat_residual is the papers'")
    inputs = 2 * heads if with_bias and mode != "add_residual" else heads
    _check_states(q, k, v, q_offset)
    _check_adapter(weight1, bias1, weight2, bias2, heads, inputs, kernel_size)
    _check_extras(q, k, q_offset, bias_table, key_mask, documents)
    case = Case(
        q_offset=q_offset,
        scale=1 / math.sqrt(q.shape[-1]) if scale is None else float(scale),
        taps=kernel_size if weight1 is not None else 1,
        adapter=weight1 is not None,
        residual=bias_table is not None and (weight1 is None or mode != "concat"),
        bias_input=bias_table is not None and weight1 is not None and inputs == 2 * heads,
        sum_input=bias_table is not None and weight1 is not None and mode == "add_residual",
        virtual=edge == "virtual",
    )
    dtype = q.dtype
    if dtype == torch.bfloat16 and interpreted():  # whose products know no bf16
        q, k, v = q.float(), k.float(), v.float()
    out: Tensor = _FusedAttention.apply(q, k, v, weight1, bias1, weight2, bias2, bias_table, key_mask, documents, case)  # type: ignore[no-untyped-call]
    return out.to(dtype)


def _check_states(q: Tensor, k: Tensor, v: Tensor, q_offset: int) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ShapeError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, expected (B, H, Tq, d), (B, Hkv, Tk, d) twice",
            hint="heads come before positions",
        )
    if q.shape[1] % k.shape[1]:
        raise ShapeError(f"{q.shape[1]} heads over {k.shape[1]} of k and v", hint="one must divide the other")
    if k.dtype != q.dtype or v.dtype != q.dtype or k.device != q.device or v.device != q.device:
        raise ShapeError(
            f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype} on {q.device}, {k.device}, {v.device}, expected one of each",
            hint="convert them before",
        )
    if q_offset < 0 or q_offset + q.shape[2] > k.shape[2] or q.shape[2] == 0:
        raise ShapeError(
            f"{q.shape[2]} queries from position {q_offset} on and {k.shape[2]} keys, expected a key for every query",
            hint="pass the whole cache as k and v, with q_offset the number of positions before the queries",
        )


def _check_adapter(
    weight1: Tensor | None, bias1: Tensor | None, weight2: Tensor | None, bias2: Tensor | None, heads: int, inputs: int,
    kernel_size: int,
) -> None:  # fmt: skip
    if weight1 is None and weight2 is None:
        return
    if weight1 is None or bias1 is None or weight2 is None:
        raise ShapeError("some of weight1, bias1, weight2 are missing", hint="pass all or none")
    hidden = weight1.shape[0]
    expected = {"weight1": (hidden, inputs, kernel_size), "bias1": (hidden,), "weight2": (heads, hidden, kernel_size)}
    found = {"weight1": weight1, "bias1": bias1, "weight2": weight2}
    if bias2 is not None:
        expected["bias2"], found["bias2"] = (heads,), bias2
    for name, shape in expected.items():
        if tuple(found[name].shape) != shape:
            raise ShapeError(
                f"{name} is {tuple(found[name].shape)}, expected {shape}", hint="see with_bias, mode and kernel_size"
            )


def _check_extras(
    q: Tensor, k: Tensor, q_offset: int, table: Tensor | None, key_mask: Tensor | None, documents: Tensor | None
) -> None:
    length = q_offset + q.shape[2]
    if table is not None and (table.ndim != 2 or table.shape[0] != q.shape[1] or table.shape[1] < length):
        raise ShapeError(
            f"bias_table is {tuple(table.shape)}, expected ({q.shape[1]}, at least {length})", hint="one row a head"
        )
    for name, extra in (("key_mask", key_mask), ("documents", documents)):
        if extra is not None and tuple(extra.shape) != (k.shape[0], k.shape[2]):
            raise ShapeError(
                f"{name} is {tuple(extra.shape)}, expected {(k.shape[0], k.shape[2])}", hint="one entry a key"
            )


def _over_groups(x: Tensor, kv_heads: int) -> Tensor:
    return x.unflatten(1, (kv_heads, -1)).sum(2) if x.shape[1] != kv_heads else x


class _FusedAttention(torch.autograd.Function):
    """The kernels as one differentiable step; keeps its inputs, the output and (B, H, Tq) sums."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, weight1: Tensor | None, bias1: Tensor | None, weight2: Tensor | None,
        bias2: Tensor | None, table: Tensor | None, key_mask: Tensor | None, documents: Tensor | None, case: Case,
    ) -> Tensor:  # fmt: skip
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        key_mask = None if key_mask is None else key_mask.to(torch.int8).contiguous()
        documents = None if documents is None else document_spans(documents)
        rows = None if table is None else table.detach().float().contiguous()
        packed = pack(weight1, bias1, weight2, q.shape[1], q)
        hidden = 0 if weight1 is None else weight1.shape[0]
        shared = kernel_arguments(q, k, v, packed, rows, key_mask, documents, case, hidden)
        tile = choose_tile("forward", shared, lambda tile: forward(shared, tile))
        out, lse = forward(shared, tile)
        ctx.save_for_backward(q, k, v, weight1, bias1, weight2, bias2, table, key_mask, documents, out, lse)
        ctx.case = case
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weight1, bias1, weight2, bias2, table, key_mask, documents, out, lse = ctx.saved_tensors
        case: Case = ctx.case
        d_out = grads[0].to(q.dtype).contiguous()
        delta = (d_out.float() * out.float()).sum(-1)
        heads, kv_heads = q.shape[1], k.shape[1]
        hidden = 0 if weight1 is None else weight1.shape[0]
        rows = None if table is None else table.detach().float().contiguous()
        packed = pack(weight1, bias1, weight2, heads, q)
        shared = kernel_arguments(q, k, v, packed, rows, key_mask, documents, case, hidden)
        needs = ctx.needs_input_grad
        weights, wants_table = case.adapter and any(needs[3:6]), case.bias and needs[7]
        d_q = d_k = d_v = d_weight1 = d_bias1 = d_weight2 = d_table = None
        if needs[0] or weights or wants_table:
            units = table_units(d_out, v, weight1, weight2, case, q.shape[2]) if wants_table else None
            tile = choose_tile(
                "queries", shared, lambda t: backward_queries(shared, d_out, lse, delta, units, weights, t)
            )
            d_q, d_weights, d_table = backward_queries(shared, d_out, lse, delta, units, weights, tile)
            if d_weights is not None:
                d_weight1, d_bias1, d_weight2 = unpack(d_weights, case.taps, heads, hidden, weight1.shape[1])
        if needs[1] or needs[2]:
            tile = choose_tile("keys", shared, lambda t: backward_keys(shared, d_out, lse, delta, t))
            d_k, d_v = (_over_groups(x, kv_heads) for x in backward_keys(shared, d_out, lse, delta, tile))
        d_bias2 = torch.zeros_like(bias2) if bias2 is not None and needs[6] else None
        if wants_table is False and needs[7]:
            d_table = torch.zeros_like(table)
        found = (d_q, d_k, d_v, d_weight1, d_bias1, d_weight2, d_bias2, d_table)
        like = (q, k, v, weight1, bias1, weight2, bias2, table)
        wanted = zip(found, like, needs, strict=False)
        return *(None if x is None or not need else x.to(to.dtype) for x, to, need in wanted), None, None, None
