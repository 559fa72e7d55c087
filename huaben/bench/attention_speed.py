"""Adapted attention: row blocks beside the formulas (time, memory), and cached decoding beside recomputing.

One layer's attention, forward and backward, without the projections around it. Times are taken in turns in one process.
Memory is the highest resident size of a fresh process over what it had before the call, one process a figure. The
formulas stop at the length where their maps would exceed a limit; what they need there is told.

Decoding adds one token to a context with cached keys; beside it, the same token by attending over the whole context
again, and by attention with neither bias nor adapter.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..attention.dape import Implementation
from ..attention.scheme import Scheme, SchemeConfig, scheme_config
from ..errors import ConfigError
from ..rng import torch_stream
from .apart import resident_mb, run_apart

MEASURE_LIMIT_S = 900.0


def run(
    *,
    seed: int = 0,
    lengths: str = "256,512,1024,2048,4096,8192",
    kernel_sizes: str = "1,3",
    position: str = "kerple",
    heads: int = 12,
    head_dim: int = 64,
    hidden: int = 32,
    batch: int = 1,
    rounds: int = 3,
    memory_limit_mb: int = 8000,
    decode_context: int = 4096,
    decode_tokens: int = 16,
    threads: int | None = None,
) -> dict[str, Any]:
    """Measure on the CPU in fp32.

    Args:
        seed: of weights and tensors.
        lengths: numbers of tokens.
        kernel_sizes: 1 is DAPE, more is DAPE V2.
        position: of the scheme.
        heads, head_dim, hidden, batch: sizes.
        rounds: of either side, taken in turns after one that is not counted.
        memory_limit_mb: of the maps the formulas keep; with their gradients they need about twice as much.
        decode_context, decode_tokens: keys in the cache, and tokens decoded a round; a context of 0 leaves it out.
        threads: of torch; None leaves them.

    Returns:
        Settings; ``cases``: per kernel and length the seconds of each round, the ratio of the medians (rows over
        formulas), memory in MB and its ratio; ``growth``: per kernel the exponent with which either side's memory grows
        over the last doubling; ``decoding``: per kernel tokens per second and ratios.

    Raises:
        ConfigError: for settings that measure nothing.
    """
    sizes, kernels = _numbers(lengths, "lengths"), _numbers(kernel_sizes, "kernel_sizes")
    if rounds < 1 or decode_tokens < 1 or decode_context < 0 or batch < 1:
        raise ConfigError(
            f"rounds={rounds}, decode_tokens={decode_tokens}, decode_context={decode_context}, batch={batch} measure "
            "nothing",
            hint="use at least 1 round, token and row",
        )
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    shape = {"heads": heads, "head_dim": head_dim, "hidden": hidden, "batch": batch}
    cases: list[dict[str, Any]] = []
    decoding: list[dict[str, Any]] = []
    try:
        used = torch.get_num_threads()
        for kernel_size in kernels:
            config = _config(position, kernel_size, hidden)
            for length in sizes:
                maps_mb = batch * length**2 * (3 * heads + 2 * hidden) * 4 / 1e6
                both = maps_mb <= memory_limit_mb
                case = {"kernel_size": kernel_size, "length": length, "naive_maps_mb": round(maps_mb, 1)}
                case |= _times(config, shape, length, rounds, seed, both)
                case |= _memory(config, shape, length, seed, both, used)
                cases.append(case)
            if decode_context:
                decoding.append(
                    {"kernel_size": kernel_size} | _decode(config, shape, decode_context, decode_tokens, rounds, seed)
                )
    finally:
        torch.set_num_threads(before)
    return {
        **shape,
        "position": position,
        "rounds": rounds,
        "threads": used,
        "dtype": "float32",
        "memory_limit_mb": memory_limit_mb,
        "cases": cases,
        "growth": {str(kernel_size): _growth(cases, kernel_size) for kernel_size in kernels},
        "decode_context": decode_context,
        "decode_tokens": decode_tokens,
        "decoding": decoding,
    }


def _numbers(text: str, name: str) -> list[int]:
    try:
        values = [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"{name}={text!r} are no whole numbers", hint="as in 256,512,1024") from error
    if not values or min(values) < 1:
        raise ConfigError(f"{name}={text!r}, expected whole numbers of at least 1", hint="as in 256,512,1024")
    return values


def _config(position: str, kernel_size: int, hidden: int) -> SchemeConfig:
    adapter = "mlp" if kernel_size == 1 else "conv"
    return scheme_config(position, adapter=adapter, kernel_size=kernel_size, hidden=hidden)


def _layer(config: SchemeConfig, heads: int, head_dim: int, seed: int) -> Scheme:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Scheme(config, heads, head_dim)


def _tensors(shape: dict[str, int], length: int, seed: int) -> list[Tensor]:
    size = (shape["batch"], shape["heads"], length, shape["head_dim"])
    generator = torch_stream(seed, "attention")
    return [torch.randn(size, generator=generator) for _ in range(3)]


def _step(layer: Scheme, tensors: list[Tensor], impl: Implementation) -> None:
    """One forward and one backward pass."""
    q, k, v = (x.detach().requires_grad_() for x in tensors)
    layer.zero_grad()
    layer(q, k, v, impl=impl).sum().backward()


def _times(
    config: SchemeConfig, shape: dict[str, int], length: int, rounds: int, seed: int, both: bool
) -> dict[str, Any]:
    layer, tensors = _layer(config, shape["heads"], shape["head_dim"], seed), _tensors(shape, length, seed)
    sides: tuple[Implementation, ...] = ("rows", "naive") if both else ("rows",)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side in sides:
            taken = _seconds(lambda side=side: _step(layer, tensors, side))  # type: ignore[misc]
            if number:
                seconds[side].append(taken)
    found: dict[str, Any] = {f"{side}_s": values for side, values in seconds.items()}
    if both:
        found["time_ratio"] = statistics.median(seconds["rows"]) / statistics.median(seconds["naive"])
    return found


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _memory(
    config: SchemeConfig, shape: dict[str, int], length: int, seed: int, both: bool, threads: int
) -> dict[str, Any]:
    found = {"rows_mb": peak_memory_mb(config, shape, length, "rows", seed=seed, threads=threads)}
    if both:
        found["naive_mb"] = peak_memory_mb(config, shape, length, "naive", seed=seed, threads=threads)
    if both and found["rows_mb"] and found["naive_mb"]:
        found["memory_ratio"] = found["rows_mb"] / found["naive_mb"]
    return found


def peak_memory_mb(
    config: SchemeConfig,
    shape: dict[str, int],
    length: int,
    impl: Implementation,
    *,
    seed: int = 0,
    threads: int = 1,
) -> float | None:
    """Return by how much a fresh process grew in one forward and backward pass; None where the system does not tell.

    Raises:
        GenerationError: if the process did not end well, as when memory ran out.
    """
    task = {
        "config": config.to_dict(),
        "shape": shape,
        "length": length,
        "impl": impl,
        "seed": seed,
        "threads": threads,
    }
    said = run_apart(
        __name__,
        task,
        what=f"{impl} at {length}",
        limit_s=MEASURE_LIMIT_S,
        hint="lower memory_limit_mb or the lengths",
    )
    grown: float | None = json.loads(said)
    return grown


def _measure_here(task: dict[str, Any]) -> float | None:
    """Return by how much this process's highest resident size grew, in MB."""
    torch.set_num_threads(task["threads"])
    shape = task["shape"]
    layer = _layer(SchemeConfig.from_dict(task["config"]), shape["heads"], shape["head_dim"], task["seed"])
    _step(layer, _tensors(shape, 16, task["seed"]), task["impl"])  # what the libraries set up once
    tensors = _tensors(shape, task["length"], task["seed"])
    before = resident_mb("VmRSS")
    if before is None:
        return None
    _step(layer, tensors, task["impl"])
    highest = resident_mb("VmHWM")
    return None if highest is None else highest - before


def _growth(cases: list[dict[str, Any]], kernel_size: int) -> dict[str, float]:
    """Return ``log(memory ratio) / log(length ratio)`` of the two longest cases of either side."""
    found: dict[str, float] = {}
    for side in ("rows", "naive"):
        known = [
            (case["length"], case[f"{side}_mb"])
            for case in cases
            if case["kernel_size"] == kernel_size and case.get(f"{side}_mb")
        ]
        if len(known) > 1:
            (short, low), (long, high) = sorted(known)[-2:]
            found[side] = float(torch.tensor(high / low).log() / torch.tensor(long / short).log())
    return found


@torch.no_grad()
def _decode(
    config: SchemeConfig, shape: dict[str, int], context: int, tokens: int, rounds: int, seed: int
) -> dict[str, Any]:
    """Time the next token of a context, three ways in turns."""
    layer, plain = (_layer(c, shape["heads"], shape["head_dim"], seed) for c in (config, SchemeConfig()))
    q, k, v = _tensors(shape, context + tokens, seed)

    def cached(layer: Scheme, offset: int) -> Tensor:
        end = offset + 1
        out: Tensor = layer(q[:, :, offset:end], k[:, :, :end], v[:, :, :end], q_offset=offset)
        return out

    seconds: dict[str, list[float]] = {"cached": [], "plain": [], "recomputed": []}
    for number in range(rounds + 1):
        for name, used in (("cached", layer), ("plain", plain)):
            taken = _seconds(lambda used=used: [cached(used, context + t) for t in range(tokens)])  # type: ignore[misc]
            if number:
                seconds[name].append(taken / tokens)
        end = context + 1
        taken = _seconds(lambda end=end: layer(q[:, :, :end], k[:, :, :end], v[:, :, :end]))  # type: ignore[misc]
        if number:
            seconds["recomputed"].append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    whole = layer(q[:, :, :end], k[:, :, :end], v[:, :, :end])[:, :, -1:]
    return {
        **{f"{name}_tokens_per_s": shape["batch"] / value for name, value in medians.items()},
        "recomputed_over_cached": medians["recomputed"] / medians["cached"],
        "cached_over_plain": medians["cached"] / medians["plain"],
        "max_difference": float((cached(layer, context) - whole).abs().max()),
    }


if __name__ == "__main__":
    json.dump(_measure_here(json.loads(sys.argv[1])), sys.stdout)
