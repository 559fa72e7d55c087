"""Adapted attention by blocks of query rows: exact, with memory that grows with the length and not its square.

An adapter mixes heads and neighbouring keys but never queries, so a block of queries and the keys it sees are a problem
of their own. The forward pass keeps the log-sums of the rows and nothing else; the backward pass computes each block
again. Work above the diagonal is skipped but for the block's own corner.

How a block of ``n`` visible keys is laid out: scores are ``(H, rows, n + pad)``, flat after the first axis, with enough
zero columns after each row that a shift of the flat axis is a shift of the keys: a convolution is then one matrix
product per tap. Rows stand in descending order of position. A bias of ``i - j`` is in this order a strided view of one
line, without a copy; what the adapter's first layer makes of the bias is a line too, computed once. ``edges`` holds that
layer's truncated sums at the first keys, where taps fall off the left end. Rows go through the adapter a few at a time,
so that its hidden values stay in the cache.

Source: the recomputation is that of Dao et al. 2022 (arXiv:2205.14135), for rows instead of tiles.

Letters: H query heads, G key heads, D hidden width, d width of a head, p half of the kernel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from .adaptive import LEAK, ScoreAdapter
from .bias import Bias
from .content import ContentBias
from .dape_naive import Edge, naive_attention

CPU_BLOCK_BYTES = 24 << 20
CPU_TILE_PAIRS = 4096
GPU_BLOCK_BYTES = 512 << 20
_MOST_ROWS = 64
_LEAST_ROWS = 16


def rows_attention(
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
    block: int | None = None,
) -> Tensor:
    """Return the attention by row blocks; arguments as of :func:`huaben.attention.dape.dape_attention`.

    Args:
        block: rows of a block; by default what the cache (or the GPU's memory) holds.
    """
    segments = None
    if causal and not isinstance(bias, ContentBias):
        segments = _segments(q, k, q_offset, key_mask, documents, start)
    padded = key_mask is not None or documents is not None or start is not None
    if segments is None or isinstance(bias, ContentBias) or (padded and edge == "array"):
        return _checkpointed(
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
            block=block,
        )

    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    heads, length = q.shape[1], max((s.q1 - s.k0 for s in segments), default=1)
    p = 0 if score is None else score.kernel_size // 2
    pad = max(2 * p, 1)
    hidden = 0 if score is None else score.hidden
    rows, tile = _block_sizes(q, heads, hidden, length + pad, dtype, block)
    stacked = score is not None and score.channels > heads  # scores and biases side by side

    line = first = edges = weight_a = weight_b = bias1 = weight2 = None
    parameters: tuple[Tensor, ...] = ()
    dense = bias is not None and (
        not bias.toeplitz or (stacked and p > 0 and any(s.mask is not None for s in segments))
    )
    if score is not None:
        weight1, bias1, weight2 = score.weight1.to(dtype), score.bias1.to(dtype), score.weight2.to(dtype)
        weight_a = weight1[:, :heads]
        weight_b = weight1[:, heads:] if stacked else None
    if bias is not None and bias.toeplitz:
        line = F.pad(bias.table(length, dtype=dtype, device=q.device).flip(1), (0, rows + pad))
        if not dense and weight_b is not None and bias1 is not None:
            first, edges = _first_layer(line, weight_b, bias1)
            weight_b = bias1 = None
    elif bias is not None:
        parameters = tuple(bias.parameters())
    unused = None if score is None else score.bias2  # softmax does not see it; its gradient is zero
    case = _Case(
        segments=segments,
        heads=heads,
        p=p,
        pad=pad,
        rows=rows,
        tile=tile,
        length=length,
        offset=q_offset,
        scale=scale,
        masked=edge == "masked",
        end=k.shape[2] if edge == "array" else None,
        merged=score is not None and score.mode == "add_residual" and bias is not None,
        residual=bias is not None and (score is None or score.mode == "concat_residual"),
        dense=dense,
        bias=bias if dense else None,
    )
    out: Tensor = _Rows.apply(
        case, q, k, v, line, first, edges, weight_a, weight_b, bias1, weight2, unused, *parameters
    )
    return out


def _first_layer(line: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the first layer's sums over a line of biases: ``(D, L)``, and ``(p, D, L)`` for the first p keys."""
    taps = weight.shape[2]
    p = taps // 2
    whole = F.conv1d(line[None], weight, bias, padding=p)[0]
    if not p:
        return whole, None
    reach = torch.arange(taps, device=weight.device)
    cut = [F.conv1d(line[None], weight * (reach >= p - x), bias, padding=p)[0] for x in range(p)]
    return whole, torch.stack(cut)


def _block_sizes(
    q: Tensor, heads: int, hidden: int, width: int, dtype: torch.dtype, block: int | None
) -> tuple[int, int]:
    """Return the rows of a block and the pairs of a tile."""
    size = dtype.itemsize
    if q.device.type == "cpu":
        fitting = CPU_BLOCK_BYTES // (3 * heads * width * size)
        rows = max(_LEAST_ROWS, min(_MOST_ROWS, fitting))
        tile = CPU_TILE_PAIRS
    else:
        fitting = GPU_BLOCK_BYTES // ((3 * heads + 3 * hidden) * width * size)
        rows = max(_LEAST_ROWS, min(512, fitting))
        tile = rows * width
    rows = block or rows
    return max(1, min(rows, q.shape[2])), tile


@dataclass(frozen=True, slots=True)
class _Segment:
    """Queries ``q0 … q1 - 1`` of one row of the batch and the keys from ``k0`` on that they may see (absolute positions).

    The first key is a real one; ``mask`` (keys ``k0 … q1 - 1``) is None where all are.
    """

    row: int
    q0: int
    q1: int
    k0: int
    mask: Tensor | None


def _segments(
    q: Tensor, k: Tensor, q_offset: int, key_mask: Tensor | None, documents: Tensor | None, start: Tensor | None
) -> list[_Segment] | None:
    """Split a batch into problems without padding on the left; None where a document is not in one piece."""
    last = q_offset + q.shape[2]
    keys = k.shape[2]
    found: list[_Segment] = []
    starts = [0] * q.shape[0] if start is None else start.tolist()
    for row, begin in enumerate(starts):
        runs = [(0, keys)]
        if documents is not None:
            ids = documents[row]
            cuts = [0, *((ids[1:] != ids[:-1]).nonzero()[:, 0] + 1).tolist(), keys]
            runs = list(itertools.pairwise(cuts))
            if len(runs) > 1 and len(torch.unique(ids)) != len(runs):
                return None
        for k0, k1 in runs:
            k0, q1 = max(k0, begin), min(k1, last)
            if k0 >= q1:
                continue
            mask = None
            if key_mask is not None:
                real = key_mask[row, k0:q1].nonzero()[:, 0]
                if not len(real):
                    continue
                k0 += int(real[0])
                if len(real) != q1 - k0:
                    mask = key_mask[row, k0:q1]
            q0 = max(k0, q_offset)
            if q0 < q1:
                found.append(_Segment(row, q0, q1, k0, mask))
    return found


@dataclass(frozen=True, slots=True)
class _Case:
    """What does not change during a call."""

    segments: Sequence[_Segment]
    heads: int
    p: int
    pad: int
    rows: int
    tile: int
    length: int
    offset: int
    scale: float
    masked: bool
    end: int | None  # the released code's right edge, where asked for
    merged: bool  # A + B goes through the adapter
    residual: bool  # B is added to the result
    dense: bool  # biases are computed block by block
    bias: Bias | None


@dataclass(frozen=True, slots=True)
class _Weights:
    """Tensors of a call, None where it has none: lines and first-layer sums, adapter weights with taps first."""

    line: Tensor | None
    first: Tensor | None
    edges: Tensor | None
    a: Tensor | None  # (k, D, H)
    b: Tensor | None  # (k, D, H)
    bias1: Tensor | None
    two: Tensor | None  # (k, H, D)


class _Block:
    """One block of queries: ``rows`` of them, the last at position ``n - 1`` of its segment's keys."""

    def __init__(self, case: _Case, weights: _Weights, segment: _Segment, hi: int, rows: int) -> None:
        self.case, self.weights, self.segment = case, weights, segment
        self.n, self.rows = hi, rows
        self.width = hi + case.pad
        self.base = case.length - hi

    def setup(self, like: Tensor) -> None:
        """Make the masks: where a key lies ahead, and where it is padding."""
        width = self.rows + self.case.pad
        place = torch.arange(self.rows - 1, -1, -1, device=like.device)
        self.ahead = torch.arange(width, device=like.device) > place[:, None]
        mask = self.segment.mask
        self.hole: Tensor | None = None
        if mask is not None:
            self.hole = F.pad(~mask[: self.n], (0, self.case.pad))
            if self.case.p:
                seen = F.pad(~self.ahead, (self.width - width, 0), value=True)
                self.passed_hole = self.hole & seen
        self.added = self._bias(like) if self.weights.line is not None or self.case.dense else None

    def fill(self, maps: Tensor, value: float, a: int = 0, c: int | None = None) -> None:
        """Set ``(…, rows a … c, width)`` to ``value`` at keys that may not be seen."""
        maps[:, :, self.n - self.rows :].masked_fill_(self.ahead[a:c], value)
        if self.hole is not None:
            maps.masked_fill_(self.hole, value)

    def _bias(self, like: Tensor) -> Tensor:
        """Return the biases ``(H, rows, width)``, zero at keys that may not be seen: a view where that is possible."""
        line = self.weights.line
        if line is not None:
            view = self.along(line, 0, self.rows)
            return view.masked_fill(self.hole, 0) if self.case.dense and self.hole is not None else view
        with torch.no_grad():
            dense = F.pad(self.dense_bias(like), (0, self.case.pad))
        self.fill(dense, 0.0)
        return dense

    def dense_bias(self, like: Tensor) -> Tensor:
        """Return ``(H, rows, n)`` of a bias without a table, rows in descending order."""
        assert self.case.bias is not None
        keys = torch.arange(self.n, device=like.device)
        return self.case.bias.rows(keys[-self.rows :].flip(0), keys, dtype=like.dtype)

    def along(self, line: Tensor, a: int, c: int) -> Tensor:
        """Return rows a … c of a line ``(C, L)`` as the ``(C, rows, width)`` view of it."""
        start = line.storage_offset() + self.base + a
        return line.as_strided((line.shape[0], c - a, self.width), (line.stride(0), 1, 1), start)

    def gather(self, into: Tensor, maps: Tensor, a: int, c: int) -> None:
        """Add ``(C, rows a … c, width)``, zero ahead of each query, to the line ``into`` it was spread from."""
        rows = maps.as_strided((maps.shape[0], c - a, self.width), (maps.stride(0), self.width - 1, 1))
        into[:, self.base + a : self.base + a + self.width] += rows.sum(1)

    def hidden(self, z: Tensor, a: int, c: int) -> Tensor:
        """Return the first layer's output after the leaky ReLU, ``(D, flat)``, of scores ``(H, flat)``."""
        w, p = self.weights, self.case.p
        assert w.a is not None
        u = z.new_empty(w.a.shape[1], z.shape[1])
        rows = u.view(len(u), c - a, self.width)
        if w.first is not None:
            rows.copy_(self.along(w.first, a, c))
            if w.edges is not None:
                for x in range(p):
                    rows[:, :, x] = w.edges[x, :, self.base + a + x : self.base + c + x]
        else:
            assert w.bias1 is not None
            u.copy_(w.bias1[:, None].expand_as(u))
            if w.b is not None:
                _convolve(u, w.b, self.bias_rows(a, c))
        _convolve(u, w.a, z)
        F.leaky_relu_(u, LEAK)
        self.clear(rows, a, c)
        return u

    def bias_rows(self, a: int, c: int) -> Tensor:
        assert self.added is not None
        return self.added[:, a:c].reshape(len(self.added), -1)

    def clear(self, rows: Tensor, a: int, c: int) -> None:
        """Set hidden values ``(D, rows a … c, width)`` to zero where the edge rule says so."""
        case = self.case
        if not case.p:
            return
        if case.masked:
            self.fill(rows, 0.0, a, c)
        else:
            if self.hole is not None:
                rows.masked_fill_(self.passed_hole[a:c], 0)
            rows[:, :, self.n + case.p if case.end is None else min(self.n + case.p, case.end) :] = 0

    def tiles(self) -> list[tuple[int, int]]:
        """Return the rows that go through the adapter together."""
        step = max(1, self.case.tile // self.width) if self.weights.a is not None else self.rows
        return [(a, min(a + step, self.rows)) for a in range(0, self.rows, step)]


def _convolve(out: Tensor, weight: Tensor, z: Tensor) -> None:
    """Add the convolution of ``z`` ``(C, flat)`` with ``weight`` ``(k, O, C)`` to ``out`` ``(O, flat)``."""
    p, size = len(weight) // 2, z.shape[1]
    for tap, matrix in enumerate(weight):
        shift = tap - p
        low, high = max(0, -shift), size - max(0, shift)
        out[:, low:high].addmm_(matrix, z[:, low + shift : high + shift])


def _convolve_back(out: Tensor, weight: Tensor, grad: Tensor) -> None:
    """Add the gradient with respect to ``z`` of :func:`_convolve` to ``out``."""
    p, size = len(weight) // 2, grad.shape[1]
    for tap, matrix in enumerate(weight):
        shift = tap - p
        low, high = max(0, -shift), size - max(0, shift)
        out[:, low + shift : high + shift].addmm_(matrix.T, grad[:, low:high])


def _convolve_weight(out: Tensor, grad: Tensor, z: Tensor) -> None:
    """Add the gradient with respect to the weight of :func:`_convolve` to ``out`` ``(k, O, C)``."""
    p, size = len(out) // 2, z.shape[1]
    for tap in range(len(out)):
        shift = tap - p
        low, high = max(0, -shift), size - max(0, shift)
        out[tap].addmm_(grad[:, low:high], z[:, low + shift : high + shift].T)


def _taps_first(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.permute(2, 0, 1).contiguous()


def _taps_last(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.permute(1, 2, 0)


class _Rows(torch.autograd.Function):
    """Causal attention with an optional bias and adapter, by row blocks."""

    @staticmethod
    def forward(
        ctx: Any,
        case: _Case,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        line: Tensor | None,
        first: Tensor | None,
        edges: Tensor | None,
        weight_a: Tensor | None,
        weight_b: Tensor | None,
        bias1: Tensor | None,
        weight2: Tensor | None,
        unused: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        weights = _Weights(
            line, first, edges, _taps_first(weight_a), _taps_first(weight_b), bias1, _taps_first(weight2)
        )
        out = q.new_zeros(q.shape, dtype=dtype)
        log_sums = q.new_zeros(q.shape[:3], dtype=dtype)
        for segment in case.segments:
            problem = _Problem(case, weights, segment, q, k, v, dtype)
            for lo, hi in problem.blocks():
                block, queries = problem.block(lo, hi), problem.rows_of(problem.q, lo, hi)
                maps = problem.scores(block, queries)
                flat = maps.view(case.heads, -1)
                for a, c in block.tiles():
                    part = flat[:, a * block.width : c * block.width]
                    if weights.two is not None:
                        _convolve(part, weights.two, block.hidden(part, a, c))
                    rows = part.view(case.heads, c - a, block.width)
                    if case.residual and block.added is not None:
                        rows += block.added[:, a:c]
                    block.fill(rows, -math.inf, a, c)
                    most = rows.amax(-1, keepdim=True)
                    rows.sub_(most).exp_()
                    total = rows.sum(-1, keepdim=True)
                    rows.div_(total)
                    at = problem.where(lo, hi, a, c)
                    log_sums[segment.row, :, at] = (most + total.log()).squeeze(-1).flip(1)
                result = torch.bmm(problem.by_key_head(maps), problem.v[:, : block.width])
                out[segment.row, :, problem.where(lo, hi, 0, block.rows)] = result.view(
                    case.heads, block.rows, -1
                ).flip(1)
        ctx.case = case
        ctx.save_for_backward(
            q, k, v, line, first, edges, weight_a, weight_b, bias1, weight2, unused, out, log_sums, *parameters
        )
        return out.to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
        case: _Case = ctx.case
        saved = ctx.saved_tensors
        q, k, v, line, first, edges, weight_a, weight_b, bias1, weight2, unused, out, log_sums = saved[:13]
        parameters = saved[13:]
        dtype = out.dtype
        weights = _Weights(
            line, first, edges, _taps_first(weight_a), _taps_first(weight_b), bias1, _taps_first(weight2)
        )
        zero = _Weights(*(None if x is None else torch.zeros_like(x) for x in _fields(weights)))
        grad_q, grad_k, grad_v = (torch.zeros(x.shape, dtype=dtype, device=x.device) for x in (q, k, v))
        grad_out = grad_out.to(dtype)
        delta = (grad_out * out).sum(-1)
        want_line = ctx.needs_input_grad[4]
        grad_parameters = [torch.zeros_like(x) for x in parameters]

        for segment in case.segments:
            problem = _Problem(case, weights, segment, q, k, v, dtype)
            for lo, hi in problem.blocks():
                block, queries = problem.block(lo, hi), problem.rows_of(problem.q, lo, hi)
                at = problem.where(lo, hi, 0, block.rows)
                grads = problem.grouped(grad_out[segment.row, :, at].flip(1))
                sums = log_sums[segment.row, :, at].flip(1)[..., None]
                deltas = delta[segment.row, :, at].flip(1)[..., None]
                maps = problem.scores(block, queries)
                shape, flat = maps.shape, maps.view(case.heads, -1)
                weighted = torch.empty_like(maps) if weights.two is not None else maps
                d_maps = torch.bmm(grads, problem.v[:, : block.width].transpose(1, 2)).view(shape)
                d_flat, w_flat = d_maps.view(case.heads, -1), weighted.view(case.heads, -1)
                d_added = torch.zeros_like(maps) if case.dense else None
                for a, c in block.tiles():
                    where = slice(a * block.width, c * block.width)
                    z, ds = flat[:, where], d_flat[:, where]
                    part, hidden = w_flat[:, where], None
                    if weights.two is not None:
                        hidden = block.hidden(z, a, c)
                        part.copy_(z)
                        _convolve(part, weights.two, hidden)
                    rows, d_rows = weighted[:, a:c], d_maps[:, a:c]
                    if case.residual and block.added is not None:
                        rows += block.added[:, a:c]
                    block.fill(rows, -math.inf, a, c)
                    rows.sub_(sums[:, a:c]).exp_()
                    d_rows.sub_(deltas[:, a:c]).mul_(rows)
                    if case.residual and d_added is not None:
                        d_added[:, a:c] += d_rows
                    elif case.residual and want_line and zero.line is not None:
                        block.gather(zero.line, d_rows, a, c)
                    if hidden is not None:
                        _adapter_back(block, weights, zero, z, hidden, ds, d_added, a, c)
                if case.p:
                    block.fill(d_maps, 0.0)
                if case.merged and d_added is not None:
                    d_added = d_maps
                elif case.merged and want_line and zero.line is not None:
                    block.gather(zero.line, d_maps, 0, block.rows)
                if d_added is not None:
                    block.fill(d_added, 0.0)
                    if zero.line is not None:
                        block.gather(zero.line, d_added, 0, block.rows)
                    elif parameters:
                        with torch.enable_grad():
                            again = block.dense_bias(d_added)
                        for total, part_grad in zip(
                            grad_parameters,
                            torch.autograd.grad(again, parameters, d_added[..., : block.n], allow_unused=True),
                            strict=True,
                        ):
                            if part_grad is not None:
                                total += part_grad
                d_scores = problem.by_key_head(d_maps)
                d_queries = torch.bmm(d_scores, problem.k[:, : block.width]).mul_(case.scale)
                grad_q[segment.row, :, at] = d_queries.view(case.heads, block.rows, -1).flip(1)
                keys = slice(segment.k0, segment.k0 + block.n)
                n = block.n
                grad_k[segment.row, :, keys] += torch.bmm(d_scores[:, :, :n].transpose(1, 2), queries)
                grad_v[segment.row, :, keys] += torch.bmm(
                    problem.by_key_head(weighted)[:, :, :n].transpose(1, 2), grads
                )
        return (
            None,
            grad_q.to(q.dtype),
            grad_k.to(k.dtype),
            grad_v.to(v.dtype),
            zero.line if want_line else None,
            zero.first,
            zero.edges,
            _taps_last(zero.a),
            _taps_last(zero.b),
            zero.bias1,
            _taps_last(zero.two),
            None if unused is None else torch.zeros_like(unused),
            *grad_parameters,
        )


def _fields(weights: _Weights) -> tuple[Tensor | None, ...]:
    return (weights.line, weights.first, weights.edges, weights.a, weights.b, weights.bias1, weights.two)


def _adapter_back(
    block: _Block,
    weights: _Weights,
    zero: _Weights,
    z: Tensor,
    hidden: Tensor,
    ds: Tensor,
    d_added: Tensor | None,
    a: int,
    c: int,
) -> None:
    """Add the gradients of one tile through the adapter; ``ds`` becomes the gradient of the scores themselves."""
    assert weights.a is not None
    assert weights.two is not None
    assert zero.a is not None
    assert zero.two is not None
    _convolve_weight(zero.two, ds, hidden)
    du = torch.zeros_like(hidden)
    _convolve_back(du, weights.two, ds)
    rows = du.view(len(du), c - a, block.width)
    block.clear(rows, a, c)
    torch.ops.aten.leaky_relu_backward.grad_input(du, hidden, LEAK, True, grad_input=du)
    _convolve_weight(zero.a, du, z)
    _convolve_back(ds, weights.a, du)
    if zero.first is not None:
        if zero.edges is not None:
            for x in range(block.case.p):
                zero.edges[x, :, block.base + a + x : block.base + c + x] += rows[:, :, x]
            rows[:, :, : block.case.p] = 0
        block.gather(zero.first, rows, a, c)
        return
    assert zero.bias1 is not None
    zero.bias1.add_(du.sum(1))
    if weights.b is not None and zero.b is not None and d_added is not None:
        _convolve_weight(zero.b, du, block.bias_rows(a, c))
        back = torch.zeros_like(z)
        _convolve_back(back, weights.b, du)
        d_added[:, a:c] += back.view(len(z), c - a, block.width)


class _Problem:
    """One segment: its queries, and its keys and values with the zero columns."""

    def __init__(
        self, case: _Case, weights: _Weights, segment: _Segment, q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype
    ) -> None:
        self.case, self.weights, self.segment = case, weights, segment
        self.first = segment.q0 - segment.k0  # position of the first query among the segment's keys
        self.q = q[segment.row, :, segment.q0 - case.offset : segment.q1 - case.offset]
        self.k, self.v = (
            F.pad(x[segment.row, :, segment.k0 : segment.q1].to(dtype), (0, 0, 0, case.pad)) for x in (k, v)
        )
        self.dtype = dtype

    def blocks(self) -> list[tuple[int, int]]:
        """Return the positions of each block's queries."""
        last = self.segment.q1 - self.segment.k0
        return [(lo, min(lo + self.case.rows, last)) for lo in range(self.first, last, self.case.rows)]

    def block(self, lo: int, hi: int) -> _Block:
        block = _Block(self.case, self.weights, self.segment, hi, hi - lo)
        block.setup(self.k)
        return block

    def where(self, lo: int, hi: int, a: int, c: int) -> slice:
        """Return where rows a … c of a block lie among the queries of the call."""
        shift = self.segment.k0 - self.case.offset
        return slice(hi - c + shift, hi - a + shift)

    def rows_of(self, queries: Tensor, lo: int, hi: int) -> Tensor:
        """Return the scaled queries of a block, ``(G, H / G * rows, d)``, in descending order."""
        part = queries[:, lo - self.first : hi - self.first].flip(1).to(self.dtype) * self.case.scale
        return self.grouped(part)

    def grouped(self, states: Tensor) -> Tensor:
        """Return ``(H, rows, d)`` as ``(G, H / G * rows, d)``."""
        return states.reshape(len(self.k), -1, states.shape[-1])

    def by_key_head(self, maps: Tensor) -> Tensor:
        """Return ``(H, rows, width)`` as ``(G, H / G * rows, width)``."""
        return maps.view(len(self.k), -1, maps.shape[-1])

    def scores(self, block: _Block, queries: Tensor) -> Tensor:
        """Return what the adapter sees of the scores, ``(H, rows, width)``."""
        maps = torch.bmm(queries, self.k[:, : block.width].transpose(1, 2)).view(
            self.case.heads, block.rows, block.width
        )
        if self.case.merged and block.added is not None:
            maps += block.added
        if self.case.p:
            block.fill(maps, 0.0)
        return maps


def _checkpointed(
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
    block: int | None,
) -> Tensor:
    """Return the attention of any kind: the formulas on row blocks, computed again in the backward pass."""
    queries, keys = q.shape[2], k.shape[2]
    if block is None:
        hidden = 0 if score is None else score.hidden
        per_row = q.shape[0] * (3 * q.shape[1] + 2 * hidden) * keys * 4
        budget = 2 * CPU_BLOCK_BYTES if q.device.type == "cpu" else GPU_BLOCK_BYTES
        block = max(_LEAST_ROWS, min(512, budget // max(per_row, 1)))
    reach = 0 if score is None else score.kernel_size - 1
    parts: list[Tensor] = []
    for lo in range(0, queries, block):
        hi = min(lo + block, queries)
        n = keys
        if causal:
            n = min(keys, q_offset + hi + (reach if edge == "array" else 0))

        def attend(q: Tensor, k: Tensor, v: Tensor, lo: int = lo, n: int = n) -> Tensor:
            return naive_attention(
                q,
                k,
                v,
                bias=bias,
                score=score,
                causal=causal,
                q_offset=q_offset + lo,
                edge=edge,
                key_mask=None if key_mask is None else key_mask[:, :n],
                documents=None if documents is None else documents[:, :n],
                start=start,
                scale=scale,
            )

        arguments = (q[:, :, lo:hi], k[:, :, :n], v[:, :, :n])
        if torch.is_grad_enabled():
            parts.append(checkpoint(attend, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(attend(*arguments))
    return torch.cat(parts, dim=2)
