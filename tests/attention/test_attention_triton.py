"""The fused kernels: what needs no triton here, the numbers under triton's interpreter, and that a GPU's compiler takes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from huaben.attention import dape_triton_launch as launch
from huaben.attention.dape_triton import triton_attention, triton_supported
from huaben.errors import ConfigError, ShapeError
from huaben.optional import Probe, is_available

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(not is_available("triton"), reason="triton is not installed")


def states(heads: int = 2, length: int = 4, head_dim: int = 8, **options: object) -> torch.Tensor:
    return torch.zeros(1, heads, length, head_dim, **options)


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments], env=environment | variables, cwd=ROOT, capture_output=True, text=True, check=False
    )


@needs_triton
def test_kernels_equal_the_formulas_under_the_interpreter():
    done = python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "triton_cases.py"), TRITON_INTERPRET="1"
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


@needs_triton
@pytest.mark.slow
def test_kernels_compile_for_a_gpu():
    done = python(str(HERE / "triton_compile.py"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("compiled ")]
    assert {line[1] for line in lines} == {"forward_kernel", "query_kernel", "key_kernel"}
    for line in lines:
        assert int(line[-1]) <= 227 * 1024, f"{line}: more shared memory than a program has"


def test_importing_it_leaves_triton_alone():
    done = python("-c", "import sys, huaben.attention.dape_triton; sys.exit('triton' in sys.modules)")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"q": states(dtype=torch.float64)}, "float64"),
        ({"edge": "array"}, "array"),
        ({"causal": False}, "causal"),
        ({"toeplitz": False}, "distance alone"),
        ({"content_positions": True}, "content"),
        ({"kernel_size": 4}, "even"),
        ({"kernel_size": 11}, "above 9"),
        ({"q": states(head_dim=256)}, "registers"),
        ({"q": states(heads=17)}, "registers"),
        ({"hidden": 512}, "registers"),
        ({"q": states(device="meta")}, "meta"),
    ],
)
def test_a_reason_is_given_for_every_case_left_out(options, reason):
    found = triton_supported(options.pop("q", states()), **options)
    assert found is not None
    assert reason in found


def test_without_triton_or_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr("huaben.attention.dape_triton.probe", lambda name: Probe(name, None))
    assert triton_supported(states()) == "triton is not installed"
    with pytest.raises(ConfigError, match=r"not installed.*rows"):
        triton_attention(states(), states(), states())
    monkeypatch.setattr("huaben.attention.dape_triton.probe", lambda name: Probe(name, None, "ImportError: libcuda"))
    assert "libcuda" in (triton_supported(states()) or "")
    monkeypatch.setattr("huaben.attention.dape_triton.probe", lambda name: Probe(name, "3"))
    monkeypatch.setattr("huaben.attention.dape_triton.interpreted", lambda: False)
    assert "TRITON_INTERPRET" in (triton_supported(states()) or "")


@pytest.mark.parametrize(
    ("shape", "dtype", "kernel_size", "fits"),
    [
        ((1, 12, 1, 64), torch.bfloat16, 3, True),
        ((1, 12, 1, 64), torch.bfloat16, 7, False),
        ((1, 12, 1, 32), torch.float16, 7, True),
        ((1, 12, 1, 128), torch.bfloat16, 1, False),
        ((1, 12, 1, 64), torch.float32, 3, False),
        ((1, 4, 1, 16), torch.float32, 3, True),
    ],
)
def test_what_exceeds_shared_memory_is_left_to_other_ways(monkeypatch, shape, dtype, kernel_size, fits):
    monkeypatch.setattr("huaben.attention.dape_triton._platform_problem", lambda device: None)
    q = SimpleNamespace(shape=shape, dtype=dtype, element_size=lambda: dtype.itemsize, device=torch.device("cuda"))
    reason = triton_supported(q, hidden=32, kernel_size=kernel_size)  # type: ignore[arg-type]
    assert reason is None if fits else "shared memory" in str(reason)


def test_what_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr("huaben.attention.dape_triton._platform_problem", lambda device: None)
    q = states()
    weights = {"weight1": torch.zeros(5, 4, 3), "bias1": torch.zeros(5), "weight2": torch.zeros(2, 5, 3)}
    for options, word in (
        ({"k": states(heads=3), "v": states(heads=3)}, "divide"),
        ({"k": states(length=3), "v": states(length=3)}, "a key for every query"),
        ({"v": states(length=5)}, "Hkv"),
        ({"k": q.half(), "v": q.half()}, "float16"),
        ({"q_offset": 1}, "position 1"),
        ({"weight1": torch.zeros(5, 4, 3)}, "missing"),
        (weights, "weight1"),
        (weights | {"kernel_size": 3, "with_bias": False}, "weight1"),
        (weights | {"kernel_size": 3, "bias2": torch.zeros(3)}, "bias2"),
        ({"bias_table": torch.zeros(2, 3)}, "bias_table"),
        ({"key_mask": torch.ones(1, 3, dtype=torch.bool)}, "key_mask"),
        ({"documents": torch.ones(2, 4, dtype=torch.int64)}, "documents"),
    ):
        with pytest.raises(ShapeError, match=word):
            triton_attention(**({"q": q, "k": q, "v": q} | options))
    with pytest.raises(ConfigError, match="mode='other'"):
        triton_attention(q, q, q, mode="other")


def test_weights_survive_packing():
    weight1, bias1, weight2 = torch.randn(10, 6, 3), torch.randn(10), torch.randn(3, 10, 3)
    packed = launch.pack(weight1, bias1, weight2, 3, weight1)
    assert packed.weight1.shape == packed.weight2.shape == (3, 16, 16)
    flat = torch.cat([part.flatten() for part in (packed.weight1, packed.weight1_bias, packed.weight2, packed.bias1)])
    for expected, found in zip((weight1, bias1, weight2), launch.unpack(flat, 3, 3, 10, 6), strict=True):
        assert torch.equal(expected, found)


def test_documents_span_from_their_first_to_their_last_position():
    first, last = launch.document_spans(torch.tensor([[5, 5, 2, 5, 9], [1, 1, 1, 1, 1]]))
    assert first.tolist() == [[0, 0, 2, 0, 4], [0] * 5]
    assert last.tolist() == [[3, 3, 2, 3, 4], [4] * 5]


@pytest.mark.parametrize("taps", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("kind", ["forward", "queries", "keys"])
def test_every_kernel_has_cuts_whose_windows_overlap_neighbours_alone(kind, taps):
    cuts = launch.fitting(kind, taps, 32)
    assert cuts
    halo = 2 * (taps // 2)
    for tile in cuts:
        own = tile.window - 2 * halo
        assert own >= max(halo, 1)
        assert tile.window & (tile.window - 1) == 0 and tile.rows >= 16 and 32 % tile.hidden == 0


def test_integer_units_of_the_table_cannot_overflow():
    torch.manual_seed(0)
    case = launch.Case(0, 1.0, 3, True, True, True, False, True)
    weight1, weight2 = torch.randn(10, 6, 3), torch.randn(3, 10, 3)
    d_out, v = torch.randn(2, 3, 40, 8), torch.randn(2, 3, 40, 8)
    units = launch.table_units(d_out, v, weight1, weight2, case, 40)
    assert float(torch.log2(units)).is_integer()
    largest = 2 * d_out.norm(dim=-1).max() * v.norm(dim=-1).max() * 80  # of the residual alone
    assert 2**40 < largest * units < 2**62
    assert torch.isfinite(launch.table_units(d_out * 0, v, weight1, weight2, case, 40))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_kernel_is_measured_on_a_gpu_only():
    from huaben.bench.dape_kernel import run

    with pytest.raises(ConfigError, match=r"no CUDA device.*hint: run attention_speed"):
        run()
