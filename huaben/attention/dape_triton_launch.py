"""Launches of the fused attention kernels: arguments, memory, how a program is cut, and what the host adds up."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..optional import require

SLOPE = 0.01  # of LeakyReLU


@dataclass(frozen=True, slots=True)
class Tile:
    """How a program is cut: query rows, keys of a window, hidden units at a time, warps, pipeline stages."""

    rows: int
    window: int
    hidden: int
    warps: int
    stages: int = 1


# Cuts to try on a GPU, smallest shared memory last; a program keeps one block's outputs and maps in registers.
CANDIDATES: dict[str, tuple[Tile, ...]] = {
    "forward": (
        Tile(16, 32, 32, 8),
        Tile(16, 16, 32, 8, 2),
        Tile(32, 16, 32, 8),
        Tile(16, 64, 16, 8),
        Tile(16, 32, 16, 8),
        Tile(16, 16, 32, 4),
        Tile(16, 16, 16, 8),
    ),
    "queries": (
        Tile(16, 32, 32, 8),
        Tile(16, 16, 32, 8),
        Tile(32, 16, 32, 8),
        Tile(16, 64, 16, 8),
        Tile(16, 32, 16, 8),
        Tile(16, 16, 32, 4),
        Tile(16, 16, 16, 8),
        Tile(16, 16, 32, 16),
    ),
    "keys": (
        Tile(16, 16, 32, 8),
        Tile(32, 16, 16, 8),
        Tile(16, 64, 16, 8),
        Tile(16, 32, 16, 8),
        Tile(16, 16, 32, 4),
        Tile(16, 16, 16, 8),
        Tile(16, 16, 16, 16),
    ),
}
_CHOSEN: dict[tuple[Any, ...], Tile] = {}


def interpreted() -> bool:
    """Return whether triton runs kernels in Python, on the CPU."""
    return bool(importlib.import_module("triton").knobs.runtime.interpret)


def kernels() -> ModuleType:
    """Import the kernels.

    Raises:
        MissingDependencyError: without triton.
    """
    require("triton", extra="gpu")
    return importlib.import_module(".dape_triton_kernels", __package__)


def fitting(kind: str, taps: int, hidden: int) -> list[Tile]:
    """Return the cuts of a kernel whose windows keep at least as many keys of their own as of a neighbour's."""
    halo = 2 * (taps // 2)
    cuts = [
        Tile(tile.rows, tile.window, min(tile.hidden, hidden), tile.warps, tile.stages)
        for tile in CANDIDATES[kind]
        if tile.window - 2 * halo >= halo and tile.window > 2 * halo
    ]
    return list(dict.fromkeys(cuts))


def choose_tile(kind: str, arguments: dict[str, Any], launch: Callable[[Tile], object]) -> Tile:
    """Return the fastest cut for a case, timed once a process for each case and power of two of the lengths.

    Raises:
        ConfigError: if no cut fits the device.
    """
    taps, hidden = arguments["TAPS"], arguments["HD"]
    cuts = fitting(kind, taps, hidden)
    if interpreted():
        return min(cuts, key=lambda tile: (tile.rows, tile.window, tile.hidden))
    q = arguments["q"]
    flags = tuple(value for name, value in sorted(arguments.items()) if name.isupper())
    lengths = tuple(max(arguments[name], 64).bit_length() for name in ("queries", "keys"))
    case = (kind, torch.cuda.get_device_name(q.device), q.dtype, q.shape[0], *flags, *lengths)
    if case not in _CHOSEN:
        _CHOSEN[case] = _fastest(cuts, launch)
    return _CHOSEN[case]


def _fastest(cuts: list[Tile], launch: Callable[[Tile], object]) -> Tile:
    testing = importlib.import_module("triton.testing")
    errors = importlib.import_module("triton.runtime.errors")
    seconds: dict[Tile, float] = {}
    problem = ""
    for tile in cuts:
        try:
            launch(tile)  # compiles
            seconds[tile] = testing.do_bench(lambda tile=tile: launch(tile), warmup=5, rep=20)
        except (errors.OutOfResources, errors.PTXASError) as error:
            problem = str(error).strip().splitlines()[0]
    if not seconds:
        raise ConfigError(f"no cut of the kernel fits this device: {problem}", hint='use impl="rows"')
    return min(seconds, key=lambda tile: seconds[tile])


def padded(size: int) -> int:
    """Return the next power of two of at least 16, the smallest side of a matrix product."""
    return max(16, 1 << (size - 1).bit_length())


@dataclass(frozen=True, slots=True)
class Case:
    """What the kernels are specialised to, and the two numbers they need."""

    q_offset: int
    scale: float
    taps: int
    adapter: bool
    residual: bool
    bias_input: bool
    sum_input: bool
    virtual: bool

    @property
    def bias(self) -> bool:
        return self.residual or self.bias_input or self.sum_input


@dataclass(frozen=True, slots=True)
class Packed:
    """The adapter's weights in fp32, padded, taps first: (taps, HD, HP) twice, (HD,), (taps, HD, HP)."""

    weight1: Tensor
    weight1_bias: Tensor
    bias1: Tensor
    weight2: Tensor


def pack(weight1: Tensor | None, bias1: Tensor | None, weight2: Tensor | None, heads: int, like: Tensor) -> Packed:
    """Lay the weights out for the kernels."""
    if weight1 is None or bias1 is None or weight2 is None:
        none = like.new_zeros(1, dtype=torch.float32)
        return Packed(none, none, none, none)
    hidden, inputs, _ = weight1.shape
    head_pad, hidden_pad = padded(heads) - heads, padded(hidden) - hidden
    first = F.pad(weight1[:, :heads].detach().float().permute(2, 0, 1), (0, head_pad, 0, hidden_pad)).contiguous()
    second = torch.zeros_like(first)
    if inputs == 2 * heads:
        second[:, :hidden, :heads] = weight1[:, heads:].detach().permute(2, 0, 1)
    last = F.pad(weight2.detach().float().permute(2, 1, 0), (0, head_pad, 0, hidden_pad)).contiguous()
    return Packed(first, second, F.pad(bias1.detach().float(), (0, hidden_pad)).contiguous(), last)


def document_spans(documents: Tensor) -> Tensor:
    """Return int32 (2, B, T): the first and last position of each position's document.

    The first position names the document. It may lie in pieces; nothing outside its span is seen, so kernels skip that.
    """
    length = documents.shape[1]
    ids, order = documents.sort(dim=1, stable=True)
    here = torch.arange(length, device=documents.device).expand_as(order)
    changes = ids[:, 1:] != ids[:, :-1]
    begins = F.pad(changes, (1, 0), value=True)
    ends = F.pad(changes, (0, 1), value=True)
    begin = torch.where(begins, here, 0).cummax(dim=1).values
    end = torch.where(ends, here, length - 1).flip(1).cummin(dim=1).values.flip(1)
    first = torch.empty_like(order).scatter_(1, order, order.gather(1, begin))
    last = torch.empty_like(order).scatter_(1, order, order.gather(1, end))
    return torch.stack([first, last]).to(torch.int32).contiguous()


def kernel_arguments(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed, table: Tensor | None, key_mask: Tensor | None,
    documents: Tensor | None, case: Case, hidden: int,
) -> dict[str, Any]:  # fmt: skip
    """Return the arguments that every kernel takes by name."""
    absent = packed.bias1
    return {
        "q": q,
        "k": k,
        "v": v,
        "table": absent if table is None else table,
        "weight1": packed.weight1,
        "weight1_bias": packed.weight1_bias,
        "bias1": packed.bias1,
        "weight2": packed.weight2,
        "key_mask": absent if key_mask is None else key_mask,
        "documents": absent if documents is None else documents,
        "document_batch": 0 if documents is None else documents[0].numel(),
        "q_batch": q.stride(0),
        "q_head": q.stride(1),
        "q_row": q.stride(2),
        "k_batch": k.stride(0),
        "k_head": k.stride(1),
        "k_row": k.stride(2),
        "v_batch": v.stride(0),
        "v_head": v.stride(1),
        "v_row": v.stride(2),
        "table_stride": 0 if table is None else table.stride(0),
        "queries": q.shape[2],
        "keys": k.shape[2],
        "q_offset": case.q_offset,
        "scale": case.scale,
        "num_heads": q.shape[1],
        "group": q.shape[1] // k.shape[1],
        "head_dim": q.shape[3],
        "HAS_ADAPTER": case.adapter,
        "HAS_BIAS": case.bias,
        "RESIDUAL": case.residual,
        "BIAS_INPUT": case.bias_input,
        "SUM_INPUT": case.sum_input,
        "VIRTUAL": case.virtual,
        "HAS_MASK": key_mask is not None,
        "HAS_DOCUMENTS": documents is not None,
        "TAPS": case.taps,
        "HP": padded(q.shape[1]),
        "HD": padded(max(hidden, 1)),
        "DP": padded(q.shape[3]),
        "SLOPE": SLOPE,
        "PRECISION": "tf32x3" if q.dtype == torch.float32 else "tf32",
    }


def forward(shared: dict[str, Any], tile: Tile) -> tuple[Tensor, Tensor]:
    """Return the output (B, H, Tq, d) and the log of the softmax's sum (B, H, Tq), without ``bias2``."""
    q = shared["q"]
    batch, heads, queries, _ = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = q.new_empty(batch, heads, queries, dtype=torch.float32)
    grid = (-(-queries // tile.rows), batch)
    with torch.cuda.device_of(q):
        kernels().forward_kernel[grid](
            **shared, out=out, lse=lse, DC=tile.hidden, BM=tile.rows, W=tile.window,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out, lse


def backward_queries(
    shared: dict[str, Any], d_out: Tensor, lse: Tensor, delta: Tensor, units: Tensor | None, weights: bool, tile: Tile
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of the queries, of the packed weights and of the table (in integer units, fp32 over them)."""
    q, table = shared["q"], shared["table"]
    batch, _, queries, _ = q.shape
    blocks = -(-queries // tile.rows)
    size = 3 * shared["TAPS"] * shared["HD"] * shared["HP"] + shared["HD"]
    d_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    shares = q.new_zeros((batch * blocks, size) if weights else (1,), dtype=torch.float32)
    d_table = q.new_zeros(table.shape if units is not None else (1,), dtype=torch.int64)
    with torch.cuda.device_of(q):
        kernels().query_kernel[blocks, batch](
            **shared, d_out=d_out, lse=lse, delta=delta, d_q=d_q, d_weights=shares, d_table=d_table,
            table_units=shares if units is None else units, distances=table.shape[-1], WEIGHTS=weights,
            TABLE=units is not None, DC=tile.hidden, BM=tile.rows, W=tile.window,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    d_weights = shares.sum(0) if weights else None
    return d_q, d_weights, None if units is None else (d_table.double() / units).float()


def backward_keys(
    shared: dict[str, Any], d_out: Tensor, lse: Tensor, delta: Tensor, tile: Tile
) -> tuple[Tensor, Tensor]:
    """Return the gradients (B, H, Tk, d) of keys and values per query head, fp32."""
    q, keys = shared["q"], shared["keys"]
    batch, heads, _, head_dim = q.shape
    halo = 2 * (shared["TAPS"] // 2)
    own = tile.window - 2 * halo
    tiles = -(-keys // own)
    windows = q.new_empty(batch, heads, tiles, tile.window, head_dim, dtype=torch.float32)
    d_v = q.new_empty(batch, heads, keys, head_dim, dtype=torch.float32)
    with torch.cuda.device_of(q):
        kernels().key_kernel[tiles, batch](
            **shared, d_out=d_out, lse=lse, delta=delta, d_k=windows, d_v=d_v, DC=tile.hidden, BM=tile.rows,
            W=tile.window, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    d_k = windows[:, :, :, halo : halo + own]
    if halo:  # own >= halo, so a window reaches into its direct neighbours only
        d_k[:, :, :-1, own - halo :] += windows[:, :, 1:, :halo]
        d_k[:, :, 1:, :halo] += windows[:, :, :-1, halo + own :]
    return d_k.reshape(batch, heads, tiles * own, head_dim)[:, :, :keys], d_v


def table_units(
    d_out: Tensor, v: Tensor, weight1: Tensor | None, weight2: Tensor | None, case: Case, queries: int
) -> Tensor:
    """Return how many integer units make 1, a power of two (): as many as cannot overflow 62 bits.

    A row's probabilities sum to 1, so its gradients of the scores sum to at most ``2 max|dO| max|v|`` in size, and those
    of the biases to that times one plus the largest column sum of the absolute weights.
    """
    bound = 2 * d_out.float().norm(dim=-1).amax() * v.float().norm(dim=-1).amax()
    if case.adapter and weight1 is not None and weight2 is not None:
        heads = weight2.shape[0]
        inputs = weight1[:, heads:] if case.bias_input else weight1
        gain = torch.einsum("dct,d->c", inputs.float().abs(), weight2.float().abs().sum((0, 2))).amax()
        bound = bound * (1 + gain)
    bound = bound * (queries * d_out.shape[0])
    return torch.exp2(torch.floor(62 - torch.log2(bound.clamp_min(1e-30))).clamp_max(120)).float()


def unpack(d_weights: Tensor, taps: int, heads: int, hidden: int, inputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of weight1, bias1 and weight2 in their own layout."""
    head_pad, hidden_pad = padded(heads), padded(hidden)
    size = taps * hidden_pad * head_pad
    maps = d_weights[: 3 * size].view(3, taps, hidden_pad, head_pad)[:, :, :hidden, :heads]
    first = maps[0] if inputs == heads else torch.cat([maps[0], maps[1]], dim=-1)
    return first.permute(1, 2, 0), d_weights[3 * size : 3 * size + hidden], maps[2].permute(2, 1, 0)
