"""Compile the fused kernels for an H100 without one; run by test_attention_triton.py, or alone with kernel options.

Prints a line a kernel: name, dtype of states, registers a thread, bytes of spills to the stack, bytes of shared memory.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from huaben.attention import dape_triton_kernels as kernels
from huaben.attention.dape_triton_launch import Tile

SMALL = {"HP": 16, "HD": 16, "DP": 16}  # compiles in seconds
PAPER = {"HP": 16, "HD": 32, "DP": 64}  # 12 heads of width 64, 32 hidden units
STATES = {"q", "k", "v", "out", "d_out", "d_q"}
POINTERS = {"key_mask": "*i8", "documents": "*i32", "d_table": "*i64"}
NUMBERS = {"scale": "fp32", "distances": "i32"}


def compile_kernel(name: str, tile: Tile, sizes: dict[str, int], taps: int = 3, states: str = "bf16") -> Any:
    kernel = getattr(kernels, name)
    flags: dict[str, Any] = sizes | {
        "HAS_ADAPTER": True, "HAS_BIAS": True, "RESIDUAL": True, "BIAS_INPUT": True, "SUM_INPUT": False, "VIRTUAL": True,
        "HAS_MASK": True, "HAS_DOCUMENTS": True, "TAPS": taps, "SLOPE": 0.01, "WEIGHTS": True, "TABLE": True,
        "PRECISION": "tf32x3" if states == "fp32" else "tf32", "DC": tile.hidden, "BM": tile.rows, "W": tile.window,
    }  # fmt: skip
    signature = {}
    for argument in kernel.arg_names:
        if argument in flags:
            signature[argument] = "constexpr"
        elif argument in STATES:
            signature[argument] = f"*{states}"
        elif argument in POINTERS | NUMBERS:
            signature[argument] = (POINTERS | NUMBERS)[argument]
        elif argument.endswith(("_batch", "_head", "_row", "_stride", "_offset", "_dim")) or argument in {
            "queries", "keys", "num_heads", "group",
        }:  # fmt: skip
            signature[argument] = "i32"
        else:
            signature[argument] = "*fp32"
    constants = {name: flags[name] for name, kind in signature.items() if kind == "constexpr"}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name.endswith(("_batch", "_head", "_row"))
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def registers_and_stack(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (-1, -1)


def main(sizes: dict[str, int], tile: Tile, names: list[str], states: str = "bf16") -> None:
    for name in names:
        compiled = compile_kernel(name, tile, sizes, states=states)
        registers, stack = registers_and_stack(compiled.asm["cubin"])
        print("compiled", name, states, registers, stack, compiled.metadata.shared, flush=True)  # noqa: T201


if __name__ == "__main__":
    every = ["forward_kernel", "query_kernel", "key_kernel"]
    if len(sys.argv) > 1:  # NAME ROWS WINDOW HIDDEN WARPS: the paper's sizes
        main(PAPER, Tile(*map(int, sys.argv[2:6])), [sys.argv[1]])
    else:
        main(SMALL, Tile(16, 16, 16, 4), every)
        main(SMALL, Tile(16, 16, 16, 4), every, states="fp32")
