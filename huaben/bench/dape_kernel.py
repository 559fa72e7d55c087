"""The fused kernel of adaptive attention on a GPU, beside the formulas, row blocks, and plain attention.

One layer's causal attention without the projections around it, one sequence: time of the forward pass, of forward and
backward, and peak memory of the latter over what was held before. Adaptive attention has Kerple's bias, whose parameters
learn too; PyTorch's own attention (no bias) and compiled FlexAttention with ALiBi cannot hold an adapter and show what it
costs. A method that runs out of memory is reported as such and left out at greater lengths.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.adaptive import ScoreConv
from ..attention.bias import KerpleLog, alibi_slopes
from ..attention.dape import Implementation, dape_attention
from ..errors import ConfigError
from ..rng import torch_stream

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_IMPLEMENTATIONS: tuple[Implementation, ...] = ("triton", "rows", "naive")
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def run(
    *,
    seed: int = 0,
    lengths: str = "1024,2048,4096,8192,16384",
    heads: int = 12,
    head_dim: int = 64,
    hidden: int = 32,
    kernel_sizes: str = "1,3",
    dtype: str = "bf16",
    rounds: int = 10,
) -> dict[str, Any]:
    """Measure on the current CUDA device.

    Args:
        seed: of weights and states.
        lengths: numbers of tokens, from few to many.
        heads, head_dim, hidden: sizes of attention and adapter.
        kernel_sizes: 1 is DAPE, more is DAPE V2.
        dtype: of queries, keys and values: "bf16", "fp16" or "fp32".
        rounds: timed calls after three that are not; the median counts.

    Returns:
        Device, settings and a case per length: per method ``forward_ms``, ``both_ms`` (forward and backward), ``peak_mb``,
        or ``problem``; per kernel size what row blocks, the formulas and FlexAttention take over what the kernel takes,
        and the largest difference of its output to that of row blocks, over the largest entry.

    Raises:
        ConfigError: without a CUDA device, or for settings that cannot be used.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            f"no CUDA device was found (torch {torch.__version__}), expected one: the kernel's speed is a GPU's",
            hint="run attention_speed on a machine without a GPU",
        )
    sizes, taps = _numbers("lengths", lengths), _numbers("kernel_sizes", kernel_sizes)
    if dtype not in _DTYPES or rounds < 1:
        raise ConfigError(
            f"dtype={dtype!r} and rounds={rounds}, expected one of {', '.join(_DTYPES)} and at least 1",
            hint="use bf16 and 10",
        )
    device = torch.device("cuda", torch.cuda.current_device())
    methods = _methods(heads, hidden, taps, seed, device)
    failed: dict[str, str] = {}
    cases = []
    for length in sizes:
        generator = torch_stream(seed, f"states-{length}")
        states = [
            torch.randn(1, heads, length, head_dim, generator=generator).to(device, _DTYPES[dtype]).requires_grad_()
            for _ in range(4)
        ]
        found = {name: _measure(name, attend, states, rounds, failed) for name, attend in methods.items()}
        cases.append({"length": length, "methods": found, "kernel_sizes": _ratios(found, methods, states, taps)})
    return {
        "device": torch.cuda.get_device_name(device),
        "heads": heads,
        "head_dim": head_dim,
        "hidden": hidden,
        "dtype": dtype,
        "rounds": rounds,
        "cases": cases,
    }


def _numbers(name: str, text: str) -> list[int]:
    parts = [part.strip() for part in str(text).split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"{name}={text!r}, expected positive whole numbers and commas", hint="for example 1024,2048")
    return [int(part) for part in parts]


def _methods(heads: int, hidden: int, taps: list[int], seed: int, device: torch.device) -> dict[str, Attend]:
    """Return every way to attend, by name; modules belong to one kernel size each and are shared by its three ways."""
    methods: dict[str, Attend] = {}
    for size in taps:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            bias = KerpleLog(heads).to(device)
            score = ScoreConv(heads, hidden, kernel_size=size).to(device)
        for impl in _IMPLEMENTATIONS:
            methods[f"{impl} k={size}"] = _adaptive(bias, score, impl)
    methods["sdpa"] = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    methods["flex alibi"] = _flex_alibi(heads, device)
    return methods


def _adaptive(bias: KerpleLog, score: ScoreConv, impl: Implementation) -> Attend:
    return lambda q, k, v: dape_attention(q, k, v, bias=bias, score=score, impl=impl)


def _flex_alibi(heads: int, device: torch.device) -> Attend:
    """Return compiled FlexAttention with ALiBi and a causal block mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    slopes = torch.tensor(alibi_slopes(heads), device=device)
    compiled = torch.compile(flex_attention, dynamic=False)
    masks: dict[int, Any] = {}

    def alibi(score: Tensor, _: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score - slopes[head] * (i - j)

    def causal(_: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return i >= j

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.shape[2]
        if length not in masks:
            masks[length] = create_block_mask(causal, None, None, length, length, device=device)
        out: Tensor = compiled(q, k, v, score_mod=alibi, block_mask=masks[length])
        return out

    return attend


def _measure(
    name: str, attend: Attend, states: list[Tensor], rounds: int, failed: dict[str, str]
) -> dict[str, float | str]:
    """Time one method; a method that failed at a smaller length is not tried again."""
    if name in failed:
        return {"problem": failed[name]}
    q, k, v, d_out = states

    def forward() -> None:
        with torch.no_grad():
            attend(q, k, v)

    def both() -> None:
        attend(q, k, v).backward(d_out.detach())
        for leaf in states:
            leaf.grad = None

    try:
        result: dict[str, float | str] = {
            "forward_ms": _median_ms(forward, rounds),
            "both_ms": _median_ms(both, rounds),
        }
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        both()
        torch.cuda.synchronize()
        return result | {"peak_mb": (torch.cuda.max_memory_allocated() - held) / 2**20}
    except (torch.OutOfMemoryError, ConfigError) as error:
        short = "out of memory" if isinstance(error, torch.OutOfMemoryError) else str(error)
        failed[name] = f"{short} at {q.shape[2]} tokens"
    for leaf in states:
        leaf.grad = None
    torch.cuda.empty_cache()
    return {"problem": failed[name]}


def _median_ms(call: Callable[[], None], rounds: int) -> float:
    for _ in range(3):
        call()
    times = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def _ratios(
    found: dict[str, dict[str, float | str]], methods: dict[str, Attend], states: list[Tensor], taps: list[int]
) -> dict[str, dict[str, float]]:
    """Return per kernel size the ratios of times and memory that exist, and the difference of outputs."""
    ratios: dict[str, dict[str, float]] = {}
    for size in taps:
        ours = found[f"triton k={size}"]
        row: dict[str, float] = {}
        if "problem" not in ours:
            for other, name in ((f"rows k={size}", "rows"), (f"naive k={size}", "naive"), ("flex alibi", "flex_alibi")):
                if "problem" not in found[other]:
                    for value in ("forward_ms", "both_ms", "peak_mb"):
                        row[f"{name}_over_ours_{value}"] = float(found[other][value]) / float(ours[value])
            if "problem" not in found[f"rows k={size}"]:
                with torch.no_grad():
                    mine, theirs = (methods[f"{impl} k={size}"](*states[:3]).float() for impl in ("triton", "rows"))
                row["difference"] = float((mine - theirs).abs().max() / theirs.abs().max())
        ratios[str(size)] = row
    return ratios
