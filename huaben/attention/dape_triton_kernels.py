"""Triton kernels of causal attention with adaptive position encoding: forward, query side, key side.

Imported late (by ``dape_triton``): this file needs triton. One program owns all heads, since the adapter mixes them.

Legend: HP heads padded to a power of two, BM query rows, W keys of a window, R the radius ``kernel_size // 2``, N = BM * W,
HD hidden units padded to a power of two, DC of them at a time, DP the head width padded likewise.

A window holds ``W - 4R`` keys of its own and ``2R`` neighbours on each side, all that two stacked convolutions of radius R
look at. Scores leave a program for its own keys only, so every pair is counted once; gradients flow back from them to the
whole window. Everything after the products of queries and keys is fp32.
"""

# mypy: ignore-errors
# Triton compiles these functions from their source; Python's types do not describe them.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load_heads(base, stride_head, stride_row, rows, rows_ok, heads, heads_ok, DP: tl.constexpr, head_dim):
    """Return states (HP, rows, DP) at rows of every head; zero outside."""
    dims = tl.arange(0, DP)
    where = heads[:, None, None] * stride_head + rows[None, :, None] * stride_row + dims[None, None, :]
    mask = heads_ok[:, None, None] & rows_ok[None, :, None] & (dims < head_dim)[None, None, :]
    return tl.load(base + where, mask=mask, other=0.0)


@triton.jit
def _load_heads_turned(base, stride_head, stride_row, rows, rows_ok, heads, heads_ok, DP: tl.constexpr, head_dim):
    """Return the same states as (HP, DP, rows)."""
    dims = tl.arange(0, DP)
    where = heads[:, None, None] * stride_head + rows[None, None, :] * stride_row + dims[None, :, None]
    mask = heads_ok[:, None, None] & rows_ok[None, None, :] & (dims < head_dim)[None, :, None]
    return tl.load(base + where, mask=mask, other=0.0)


@triton.jit
def _store_heads(base, stride_head, stride_row, rows, rows_ok, heads, heads_ok, states, DP: tl.constexpr, head_dim):
    """Write states (HP, rows, DP)."""
    dims = tl.arange(0, DP)
    where = heads[:, None, None] * stride_head + rows[None, :, None] * stride_row + dims[None, None, :]
    mask = heads_ok[:, None, None] & rows_ok[None, :, None] & (dims < head_dim)[None, None, :]
    tl.store(base + where, states.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _visible(
    i,
    j,
    rows_ok,
    keys,
    key_mask,
    documents,
    HAS_MASK: tl.constexpr,
    HAS_DOCUMENTS: tl.constexpr,
):
    """Return (BM, W): the pairs a query may see."""
    inside = (j >= 0) & (j < keys)
    visible = rows_ok[:, None] & inside[None, :] & (j[None, :] <= i[:, None])
    if HAS_MASK:
        real = tl.load(key_mask + j, mask=inside, other=0) != 0
        visible = visible & real[None, :]
    if HAS_DOCUMENTS:
        of_rows = tl.load(documents + i, mask=rows_ok, other=-1)
        of_keys = tl.load(documents + j, mask=inside, other=-1)
        visible = visible & (of_rows[:, None] == of_keys[None, :])
    return visible


@triton.jit
def _bias(table, table_stride, i, j, visible, heads, heads_ok):
    """Return (HP, BM, W): the table's entries by distance; zero where nothing is seen."""
    distance = tl.maximum(i[:, None] - j[None, :], 0)
    where = heads[:, None, None] * table_stride + distance[None, :, :]
    return tl.load(table + where, mask=visible[None, :, :] & heads_ok[:, None, None], other=0.0)


@triton.jit
def _shifted(x, BY: tl.constexpr, C: tl.constexpr, BM: tl.constexpr, W: tl.constexpr):
    """Return (C, N) with column j showing column ``j + BY`` of its row; the window's ends repeat."""
    if BY == 0:
        return x
    else:
        wide = tl.reshape(x, (C * BM, W))
        columns = tl.minimum(tl.maximum(tl.arange(0, W) + BY, 0), W - 1)
        moved = tl.gather(wide, tl.broadcast_to(columns[None, :], (C * BM, W)), 1)
        return tl.reshape(moved, (C, BM * W))


@triton.jit
def _tap(weights, tap, first, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TOTAL: tl.constexpr):
    """Return one tap (ROWS, COLUMNS) of weights laid out (taps, TOTAL, COLUMNS), from row ``first``."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    return tl.load(weights + (tap * TOTAL + first + rows)[:, None] * COLUMNS + columns[None, :])


@triton.jit
def _hidden(
    z,
    z_bias,
    weight1,
    weight1_bias,
    bias1,
    first,
    TAPS: tl.constexpr,
    BIAS_INPUT: tl.constexpr,
    HP: tl.constexpr,
    HD: tl.constexpr,
    DC: tl.constexpr,
    BM: tl.constexpr,
    W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return (DC, N): hidden units from ``first`` on, before the activation."""
    u = tl.zeros((DC, BM * W), dtype=tl.float32) + tl.load(bias1 + first + tl.arange(0, DC))[:, None]
    for tap in tl.static_range(TAPS):
        one = tl.dot(_tap(weight1, tap, first, DC, HP, HD), z, input_precision=PRECISION)
        if BIAS_INPUT:
            one += tl.dot(_tap(weight1_bias, tap, first, DC, HP, HD), z_bias, input_precision=PRECISION)
        u += _shifted(one, tap - TAPS // 2, DC, BM, W)
    return u


@triton.jit
def _adapted(
    z,
    z_bias,
    kept,
    weight1,
    weight1_bias,
    bias1,
    weight2,
    TAPS: tl.constexpr,
    BIAS_INPUT: tl.constexpr,
    HP: tl.constexpr,
    HD: tl.constexpr,
    DC: tl.constexpr,
    BM: tl.constexpr,
    W: tl.constexpr,
    SLOPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return (HP, N): the adapter's change of the scores. ``weight2`` is (taps, HD, HP)."""
    f = tl.zeros((HP, BM * W), dtype=tl.float32)
    for chunk in tl.static_range(HD // DC):
        first = chunk * DC
        u = _hidden(
            z, z_bias, weight1, weight1_bias, bias1, first, TAPS, BIAS_INPUT, HP, HD, DC, BM, W, PRECISION
        )  # fmt: skip
        h = tl.where(kept, tl.where(u > 0, u, SLOPE * u), 0.0)
        for tap in tl.static_range(TAPS):
            one = tl.dot(tl.trans(_tap(weight2, tap, first, DC, HP, HD)), h, input_precision=PRECISION)
            f += _shifted(one, tap - TAPS // 2, HP, BM, W)
    return f


@triton.jit
def _scores(
    q,
    keys_turned,
    table,
    table_stride,
    i,
    j,
    visible,
    heads,
    heads_ok,
    weight1,
    weight1_bias,
    bias1,
    weight2,
    scale,
    HAS_ADAPTER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BIAS_INPUT: tl.constexpr,
    SUM_INPUT: tl.constexpr,
    VIRTUAL: tl.constexpr,
    TAPS: tl.constexpr,
    HP: tl.constexpr,
    HD: tl.constexpr,
    DC: tl.constexpr,
    BM: tl.constexpr,
    W: tl.constexpr,
    SLOPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the scores (HP, BM, W), the adapter's two inputs (HP, N) and where hidden units live (1, N)."""
    a = tl.dot(q, keys_turned, input_precision=PRECISION) * scale
    a = tl.where(visible[None, :, :], a, 0.0)
    if HAS_BIAS:
        bias = _bias(table, table_stride, i, j, visible, heads, heads_ok)
    else:
        bias = tl.zeros((HP, BM, W), dtype=tl.float32)
    scores = a
    if RESIDUAL:
        scores = a + bias
    if SUM_INPUT:
        z = tl.reshape(a + bias, (HP, BM * W))
    else:
        z = tl.reshape(a, (HP, BM * W))
    z_bias = tl.reshape(bias, (HP, BM * W))
    if VIRTUAL:
        kept = visible | (j[None, :] > i[:, None])
    else:
        kept = visible
    kept = tl.reshape(kept, (1, BM * W))
    if HAS_ADAPTER:
        f = _adapted(
            z, z_bias, kept, weight1, weight1_bias, bias1, weight2,
            TAPS, BIAS_INPUT, HP, HD, DC, BM, W, SLOPE, PRECISION,
        )  # fmt: skip
        scores += tl.reshape(f, (HP, BM, W))
    return scores, z, z_bias, kept


@triton.jit
def forward_kernel(
    q,
    k,
    v,
    table,
    weight1,
    weight1_bias,
    bias1,
    weight2,
    key_mask,
    documents,
    out,
    lse,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    table_stride,
    document_batch,
    queries,
    keys,
    q_offset,
    scale,
    num_heads,
    group,
    head_dim,
    HAS_ADAPTER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BIAS_INPUT: tl.constexpr,
    SUM_INPUT: tl.constexpr,
    VIRTUAL: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_DOCUMENTS: tl.constexpr,
    TAPS: tl.constexpr,
    HP: tl.constexpr,
    HD: tl.constexpr,
    DP: tl.constexpr,
    SLOPE: tl.constexpr,
    PRECISION: tl.constexpr,
    DC: tl.constexpr,
    BM: tl.constexpr,
    W: tl.constexpr,
):
    """Attend from BM rows of one batch element, all heads; write the output and the log of the softmax's sum."""
    HALO: tl.constexpr = 2 * (TAPS // 2)
    OWN: tl.constexpr = W - 2 * HALO
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest rows first
    batch = tl.program_id(1).to(tl.int64)
    heads, rows = tl.arange(0, HP), block * BM + tl.arange(0, BM)
    heads_ok, rows_ok = heads < num_heads, rows < queries
    i, columns = q_offset + rows, tl.arange(0, W)
    own = (columns >= HALO) & (columns < W - HALO)
    query = _load_heads(q + batch * q_batch, q_head, q_row, rows, rows_ok, heads, heads_ok, DP, head_dim)
    top = tl.full((HP, BM), float("-inf"), dtype=tl.float32)
    total = tl.zeros((HP, BM), dtype=tl.float32)
    acc = tl.zeros((HP, BM, DP), dtype=tl.float32)
    last = tl.minimum(q_offset + block * BM + BM, keys)
    begin = 0
    if HAS_DOCUMENTS:
        firsts = tl.load(documents + batch * keys + i, mask=rows_ok, other=keys)
        begin = tl.min(firsts, 0) // OWN * OWN
    for start in range(begin, last, OWN):
        j = start - HALO + columns
        inside = (j >= 0) & (j < keys)
        visible = _visible(
            i, j, rows_ok, keys, key_mask + batch * keys, documents + batch * keys, HAS_MASK, HAS_DOCUMENTS
        )  # fmt: skip
        key = _load_heads_turned(
            k + batch * k_batch, k_head, k_row, j, inside, heads // group, heads_ok, DP, head_dim
        )  # fmt: skip
        scores, _, _, _ = _scores(
            query, key, table, table_stride, i, j, visible, heads, heads_ok, weight1, weight1_bias, bias1, weight2, scale,
            HAS_ADAPTER, HAS_BIAS, RESIDUAL, BIAS_INPUT, SUM_INPUT, VIRTUAL, TAPS, HP, HD, DC, BM, W, SLOPE, PRECISION,
        )  # fmt: skip
        scores = tl.where((visible & own[None, :])[None, :, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 2))
        level = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp(scores - level[:, :, None])
        shrink = tl.exp(top - level)
        total = total * shrink + tl.sum(p, 2)
        value = _load_heads(v + batch * v_batch, v_head, v_row, j, inside, heads // group, heads_ok, DP, head_dim)
        acc = acc * shrink[:, :, None] + tl.dot(p.to(value.dtype), value, input_precision=PRECISION)
        top = higher
    seen = total > 0
    acc = acc / tl.where(seen, total, 1.0)[:, :, None]
    base = batch * num_heads * queries
    _store_heads(out + base * head_dim, queries * head_dim, head_dim, rows, rows_ok, heads, heads_ok, acc, DP, head_dim)
    where = base + heads[:, None] * queries + rows[None, :]
    log_sum = tl.where(seen, top + tl.log(tl.where(seen, total, 1.0)), float("-inf"))
    tl.store(lse + where, log_sum, mask=heads_ok[:, None] & rows_ok[None, :])


@triton.jit
def _accumulate(slab, part, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Add (ROWS, COLUMNS) to this program's own memory."""
    where = slab + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(where, tl.load(where) + part)


@triton.jit
def _over_pairs(
    left, right, L: tl.constexpr, R: tl.constexpr, BM: tl.constexpr, W: tl.constexpr, PRECISION: tl.constexpr
):
    """Return (L, R): left (L, N) times right (R, N), summed over pairs; a product a row, so that warps share the work."""
    rows_left = tl.permute(tl.reshape(left, (L, BM, W)), (1, 0, 2))
    rows_right = tl.permute(tl.reshape(right, (R, BM, W)), (1, 2, 0))
    return tl.sum(tl.dot(rows_left, rows_right, input_precision=PRECISION), 0)


@triton.jit
def _adapted_backward(
    d_scores,
    z,
    z_bias,
    kept,
    weight1,
    weight1_bias,
    bias1,
    weight2,
    slab,
    WEIGHTS: tl.constexpr,
    TAPS: tl.constexpr,
    BIAS_INPUT: tl.constexpr,
    HP: tl.constexpr,
    HD: tl.constexpr,
    DC: tl.constexpr,
    BM: tl.constexpr,
    W: tl.constexpr,
    SLOPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the gradients (HP, N) of the adapter's two inputs; with WEIGHTS add those of the weights to the slab.

    ``d_scores`` (HP, N) is zero outside the window's own keys, so what a shift repeats at the ends is zero.
    The slab holds weight1, weight1_bias, weight2 (each taps, HD, HP), then bias1 (HD).
    """
    SIZE: tl.constexpr = TAPS * HD * HP
    d_z = tl.zeros((HP, BM * W), dtype=tl.float32)
    d_z_bias = tl.zeros((HP, BM * W), dtype=tl.float32)
    for chunk in tl.static_range(HD // DC):
        first = chunk * DC
        u = _hidden(
            z, z_bias, weight1, weight1_bias, bias1, first, TAPS, BIAS_INPUT, HP, HD, DC, BM, W, PRECISION
        )  # fmt: skip
        slope = tl.where(kept, tl.where(u > 0, 1.0, SLOPE), 0.0)
        h = u * slope
        d_h = tl.zeros((DC, BM * W), dtype=tl.float32)
        for tap in tl.static_range(TAPS):
            part = _shifted(d_scores, TAPS // 2 - tap, HP, BM, W)
            d_h += tl.dot(_tap(weight2, tap, first, DC, HP, HD), part, input_precision=PRECISION)
            if WEIGHTS:
                one = _over_pairs(h, part, DC, HP, BM, W, PRECISION)
                _accumulate(slab + 2 * SIZE + (tap * HD + first) * HP, one, DC, HP)
        d_u = d_h * slope
        for tap in tl.static_range(TAPS):
            part = _shifted(d_u, TAPS // 2 - tap, DC, BM, W)
            turned = tl.trans(_tap(weight1, tap, first, DC, HP, HD))
            d_z += tl.dot(turned, part, input_precision=PRECISION)
            if BIAS_INPUT:
                turned = tl.trans(_tap(weight1_bias, tap, first, DC, HP, HD))
                d_z_bias += tl.dot(turned, part, input_precision=PRECISION)
            if WEIGHTS:
                one = _over_pairs(part, z, DC, HP, BM, W, PRECISION)
                _accumulate(slab + (tap * HD + first) * HP, one, DC, HP)
                if BIAS_INPUT:
                    one = _over_pairs(part, z_bias, DC, HP, BM, W, PRECISION)
                    _accumulate(slab + SIZE + (tap * HD + first) * HP, one, DC, HP)
        if WEIGHTS:
            where = slab + 3 * SIZE + first + tl.arange(0, DC)
            tl.store(where, tl.load(where) + tl.sum(d_u, 1))
    return d_z, d_z_bias


@triton.jit
def _add_by_distance(
    d_bias,
    d_table,
    i0,
    j0,
    distances,
    heads,
    heads_ok,
    units,
    HP: tl.constexpr,
    BM: tl.constexpr,
    W: tl.constexpr,
):
    """Sum (HP, BM, W) along its diagonals into the table's gradient, an integer: the order of additions is of no matter.

    Row r turned left by r shows key ``c + r - turn * W`` in column c, at distance ``i0 - j0 - c + turn * W``.
    """
    r, c = tl.arange(0, BM), tl.arange(0, W)
    turn = (c[None, :] + r[:, None]) // W
    source = (c[None, :] + r[:, None]) % W
    source = tl.reshape(tl.broadcast_to(source[None, :, :], (HP, BM, W)), (HP * BM, W))
    turned = tl.reshape(tl.gather(tl.reshape(d_bias, (HP * BM, W)), source, 1), (HP, BM, W))
    for part in tl.static_range((W + BM - 1 + W - 1) // W):
        line = tl.sum(tl.where((turn == part)[None, :, :], turned, 0.0), 1)
        distance = i0 - j0 - c + part * W
        where = d_table + heads[:, None] * distances + distance[None, :]
        mask = heads_ok[:, None] & ((distance >= 0) & (distance < distances))[None, :]
        tl.atomic_add(where, (line * units).to(tl.int64), mask=mask, sem="relaxed")


@triton.jit
def _tile_backward(
    query,
    d_out,
    keys_turned,
    values_turned,
    log_sum,
    delta,
    table,
    table_stride,
    i,
    j,
    visible,
    own,
    heads,
    heads_ok,
    weight1,
    weight1_bias,
    bias1,
    weight2,
    scale,
    slab,
    d_table,
    distances,
    units,
    i0,
    j0,
    WEIGHTS: tl.constexpr,
    TABLE: tl.constexpr,
    HAS_ADAPTER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BIAS_INPUT: tl.constexpr,
    SUM_INPUT: tl.constexpr,
    VIRTUAL: tl.constexpr,
    TAPS: tl.constexpr,
    HP: tl.constexpr,
    HD: tl.constexpr,
    DC: tl.constexpr,
    BM: tl.constexpr,
    W: tl.constexpr,
    SLOPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return probabilities of own keys and gradients of the products, from own keys to the whole window (HP, BM, W)."""
    scores, z, z_bias, kept = _scores(
        query, keys_turned, table, table_stride, i, j, visible, heads, heads_ok,
        weight1, weight1_bias, bias1, weight2, scale,
        HAS_ADAPTER, HAS_BIAS, RESIDUAL, BIAS_INPUT, SUM_INPUT, VIRTUAL, TAPS, HP, HD, DC, BM, W, SLOPE, PRECISION,
    )  # fmt: skip
    mine = (visible & own[None, :])[None, :, :]
    p = tl.exp(tl.where(mine, scores - log_sum[:, :, None], float("-inf")))
    d_p = tl.dot(d_out, values_turned, input_precision=PRECISION)
    d_scores = p * (d_p - delta[:, :, None])
    d_a = d_scores
    d_bias = tl.zeros((HP, BM, W), dtype=tl.float32)
    if RESIDUAL:
        d_bias = d_scores
    if HAS_ADAPTER:
        d_z, d_z_bias = _adapted_backward(
            tl.reshape(d_scores, (HP, BM * W)), z, z_bias, kept, weight1, weight1_bias, bias1, weight2, slab,
            WEIGHTS, TAPS, BIAS_INPUT, HP, HD, DC, BM, W, SLOPE, PRECISION,
        )  # fmt: skip
        through = tl.where(visible[None, :, :], tl.reshape(d_z, (HP, BM, W)), 0.0)
        d_a += through
        if SUM_INPUT:
            d_bias += through
        if BIAS_INPUT:
            d_bias += tl.where(visible[None, :, :], tl.reshape(d_z_bias, (HP, BM, W)), 0.0)
    if TABLE:
        _add_by_distance(d_bias, d_table, i0, j0, distances, heads, heads_ok, units, HP, BM, W)
    return p, d_a


@triton.jit
def query_kernel(
    q,
    k,
    v,
    table,
    weight1,
    weight1_bias,
    bias1,
    weight2,
    key_mask,
    documents,
    d_out,
    lse,
    delta,
    d_q,
    d_weights,
    d_table,
    table_units,
    distances,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    table_stride,
    document_batch,
    queries,
    keys,
    q_offset,
    scale,
    num_heads,
    group,
    head_dim,
    WEIGHTS: tl.constexpr,
    TABLE: tl.constexpr,
    HAS_ADAPTER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BIAS_INPUT: tl.constexpr,
    SUM_INPUT: tl.constexpr,
    VIRTUAL: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_DOCUMENTS: tl.constexpr,
    TAPS: tl.constexpr,
    HP: tl.constexpr,
    HD: tl.constexpr,
    DP: tl.constexpr,
    SLOPE: tl.constexpr,
    PRECISION: tl.constexpr,
    DC: tl.constexpr,
    BM: tl.constexpr,
    W: tl.constexpr,
):
    """Write the gradient of BM queries, add this program's share of the weights' and of the table's."""
    HALO: tl.constexpr = 2 * (TAPS // 2)
    OWN: tl.constexpr = W - 2 * HALO
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    heads, rows = tl.arange(0, HP), block * BM + tl.arange(0, BM)
    heads_ok, rows_ok = heads < num_heads, rows < queries
    i, columns = q_offset + rows, tl.arange(0, W)
    own = (columns >= HALO) & (columns < W - HALO)
    base = batch * num_heads * queries
    query = _load_heads(q + batch * q_batch, q_head, q_row, rows, rows_ok, heads, heads_ok, DP, head_dim)
    d_here = _load_heads(
        d_out + base * head_dim, queries * head_dim, head_dim, rows, rows_ok, heads, heads_ok, DP, head_dim
    )  # fmt: skip
    where = base + heads[:, None] * queries + rows[None, :]
    log_sum = tl.load(lse + where, mask=heads_ok[:, None] & rows_ok[None, :], other=0.0)
    inner = tl.load(delta + where, mask=heads_ok[:, None] & rows_ok[None, :], other=0.0)
    slab = d_weights + (batch * tl.num_programs(0) + block) * (3 * TAPS * HD * HP + HD)
    units = tl.load(table_units)
    acc = tl.zeros((HP, BM, DP), dtype=tl.float32)
    last = tl.minimum(q_offset + block * BM + BM, keys)
    begin = 0
    if HAS_DOCUMENTS:
        firsts = tl.load(documents + batch * keys + i, mask=rows_ok, other=keys)
        begin = tl.min(firsts, 0) // OWN * OWN
    for start in range(begin, last, OWN):
        j = start - HALO + columns
        inside = (j >= 0) & (j < keys)
        visible = _visible(
            i, j, rows_ok, keys, key_mask + batch * keys, documents + batch * keys, HAS_MASK, HAS_DOCUMENTS
        )  # fmt: skip
        key = _load_heads_turned(
            k + batch * k_batch, k_head, k_row, j, inside, heads // group, heads_ok, DP, head_dim
        )  # fmt: skip
        value = _load_heads_turned(
            v + batch * v_batch, v_head, v_row, j, inside, heads // group, heads_ok, DP, head_dim
        )  # fmt: skip
        _, d_a = _tile_backward(
            query, d_here, key, value, log_sum, inner, table, table_stride, i, j, visible, own, heads, heads_ok,
            weight1, weight1_bias, bias1, weight2, scale, slab, d_table, distances, units,
            q_offset + block * BM, start - HALO, WEIGHTS, TABLE,
            HAS_ADAPTER, HAS_BIAS, RESIDUAL, BIAS_INPUT, SUM_INPUT, VIRTUAL, TAPS, HP, HD, DC, BM, W, SLOPE, PRECISION,
        )  # fmt: skip
        acc += tl.dot(d_a.to(key.dtype), tl.permute(key, (0, 2, 1)), input_precision=PRECISION)
    _store_heads(
        d_q + base * head_dim, queries * head_dim, head_dim, rows, rows_ok, heads, heads_ok, acc * scale, DP, head_dim
    )  # fmt: skip


@triton.jit
def key_kernel(
    q,
    k,
    v,
    table,
    weight1,
    weight1_bias,
    bias1,
    weight2,
    key_mask,
    documents,
    d_out,
    lse,
    delta,
    d_k,
    d_v,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    table_stride,
    document_batch,
    queries,
    keys,
    q_offset,
    scale,
    num_heads,
    group,
    head_dim,
    HAS_ADAPTER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BIAS_INPUT: tl.constexpr,
    SUM_INPUT: tl.constexpr,
    VIRTUAL: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_DOCUMENTS: tl.constexpr,
    TAPS: tl.constexpr,
    HP: tl.constexpr,
    HD: tl.constexpr,
    DP: tl.constexpr,
    SLOPE: tl.constexpr,
    PRECISION: tl.constexpr,
    DC: tl.constexpr,
    BM: tl.constexpr,
    W: tl.constexpr,
):
    """Write what own keys' pairs give to the keys of a window and, complete, to own values; heads apart, fp32.

    ``d_k`` is (B, H, windows, W, d): windows overlap, and the host adds them up. ``d_v`` is (B, H, Tk, d).
    """
    HALO: tl.constexpr = 2 * (TAPS // 2)
    OWN: tl.constexpr = W - 2 * HALO
    tile, tiles = tl.program_id(0), tl.num_programs(0)  # the longest columns first
    batch = tl.program_id(1).to(tl.int64)
    heads, columns = tl.arange(0, HP), tl.arange(0, W)
    heads_ok = heads < num_heads
    own = (columns >= HALO) & (columns < W - HALO)
    j = tile * OWN - HALO + columns
    inside = (j >= 0) & (j < keys)
    key = _load_heads_turned(k + batch * k_batch, k_head, k_row, j, inside, heads // group, heads_ok, DP, head_dim)
    value = _load_heads_turned(v + batch * v_batch, v_head, v_row, j, inside, heads // group, heads_ok, DP, head_dim)
    to_keys = tl.zeros((HP, W, DP), dtype=tl.float32)
    to_values = tl.zeros((HP, W, DP), dtype=tl.float32)
    base = batch * num_heads * queries
    begin = tl.maximum(tile * OWN - q_offset, 0) // BM * BM
    stop = queries
    if HAS_DOCUMENTS:
        lasts = tl.load(documents + document_batch + batch * keys + j, mask=inside & own, other=0)
        stop = tl.minimum(queries, tl.max(lasts, 0) + 1 - q_offset)
    for first in range(begin, stop, BM):
        rows = first + tl.arange(0, BM)
        rows_ok, i = rows < queries, q_offset + rows
        visible = _visible(
            i, j, rows_ok, keys, key_mask + batch * keys, documents + batch * keys, HAS_MASK, HAS_DOCUMENTS
        )  # fmt: skip
        query = _load_heads(q + batch * q_batch, q_head, q_row, rows, rows_ok, heads, heads_ok, DP, head_dim)
        d_here = _load_heads(
            d_out + base * head_dim, queries * head_dim, head_dim, rows, rows_ok, heads, heads_ok, DP, head_dim
        )  # fmt: skip
        where = base + heads[:, None] * queries + rows[None, :]
        log_sum = tl.load(lse + where, mask=heads_ok[:, None] & rows_ok[None, :], other=0.0)
        inner = tl.load(delta + where, mask=heads_ok[:, None] & rows_ok[None, :], other=0.0)
        p, d_a = _tile_backward(
            query, d_here, key, value, log_sum, inner, table, table_stride, i, j, visible, own, heads, heads_ok,
            weight1, weight1_bias, bias1, weight2, scale, d_k, d_k, 0, 0.0, 0, 0, False, False,
            HAS_ADAPTER, HAS_BIAS, RESIDUAL, BIAS_INPUT, SUM_INPUT, VIRTUAL, TAPS, HP, HD, DC, BM, W, SLOPE, PRECISION,
        )  # fmt: skip
        to_keys += tl.dot(tl.permute(d_a, (0, 2, 1)).to(query.dtype), query, input_precision=PRECISION)
        to_values += tl.dot(tl.permute(p, (0, 2, 1)).to(d_here.dtype), d_here, input_precision=PRECISION)
    every = columns < W
    slab = d_k + (batch * num_heads * tiles + tile) * W * head_dim
    _store_heads(
        slab, tiles * W * head_dim, head_dim, columns, every, heads, heads_ok, to_keys * scale, DP, head_dim
    )  # fmt: skip
    _store_heads(
        d_v + batch * num_heads * keys * head_dim, keys * head_dim, head_dim, j, inside & own, heads, heads_ok,
        to_values, DP, head_dim,
    )  # fmt: skip
