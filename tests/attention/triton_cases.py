"""The fused kernels against plain formulas in fp64; collected by name only, with TRITON_INTERPRET=1 set.

``test_attention_triton.py`` runs this file in its own process, since triton reads the variable once, when imported.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from huaben.attention import dape_triton_launch as launch
from huaben.attention.adaptive import ScoreConv
from huaben.attention.bias import KerpleLog
from huaben.attention.dape import dape_attention
from huaben.attention.dape_triton import triton_attention, triton_supported


def formula(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    weight2: Tensor | None = None,
    bias_table: Tensor | None = None,
    mode: str = "concat_residual",
    q_offset: int = 0,
    edge: str = "virtual",
    key_mask: Tensor | None = None,
    documents: Tensor | None = None,
    scores_into: list[Tensor] | None = None,
) -> Tensor:
    """Every map written out: scores, both convolutions, softmax; the visible scores are appended to a list."""
    heads, queries, keys = q.shape[1], q.shape[2], k.shape[2]
    k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    a = q @ k.mT / math.sqrt(q.shape[-1])
    i, j = q_offset + torch.arange(queries), torch.arange(keys)
    visible = (j <= i[:, None])[None].expand(len(q), -1, -1)
    if key_mask is not None:
        visible = visible & key_mask[:, None]
    if documents is not None:
        visible = visible & (documents[:, i, None] == documents[:, None, :])
    bias = torch.zeros_like(a)
    if bias_table is not None:
        bias = bias_table[:, (i[:, None] - j).clamp(min=0)].expand_as(a)
    scores = a if mode == "concat" and weight1 is not None else a + bias
    if weight1 is not None:
        radius = weight1.shape[-1] // 2
        z = a + bias if mode == "add_residual" else torch.cat([a, bias], 1)[:, : weight1.shape[1]]
        z = F.pad(torch.where(visible[:, None], z, 0), (0, 2 * radius))
        u = F.conv2d(z, weight1[:, :, None], bias1, padding=(0, radius))
        kept = F.pad(visible, (0, 2 * radius))
        if edge == "virtual":
            kept = kept | (torch.arange(keys + 2 * radius) > i[:, None])
        h = torch.where(kept[:, None], F.leaky_relu(u, 0.01), 0)
        scores = scores + F.conv2d(h, weight2[:, :, None], padding=(0, radius))[..., :keys]
    if scores_into is not None:
        scores_into.append(scores * visible[:, None])
    p = torch.softmax(scores.masked_fill(~visible[:, None], -1e300), -1)
    return (p * visible.any(-1)[:, None, :, None]) @ v


def random_case(
    *,
    heads: int = 3,
    kv_heads: int | None = None,
    queries: int = 20,
    keys: int | None = None,
    head_dim: int = 8,
    hidden: int = 10,
    kernel_size: int = 3,
    inputs: int | None = None,
    table: bool = True,
    adapter: bool = True,
    batch: int = 1,
    spread: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    torch.manual_seed(0)
    keys, kv_heads = keys or queries, kv_heads or heads
    inputs = inputs or 2 * heads
    leaves = {
        "q": (torch.randn(batch, heads, queries, head_dim) * spread).to(dtype),
        "k": (torch.randn(batch, kv_heads, keys, head_dim) * spread).to(dtype),
        "v": torch.randn(batch, kv_heads, keys, head_dim).to(dtype),
    }
    if adapter:
        leaves["weight1"] = torch.randn(hidden, inputs, kernel_size) * 0.3
        leaves["bias1"] = torch.randn(hidden) * 0.3
        leaves["weight2"] = torch.randn(heads, hidden, kernel_size) * 0.3
    if table:
        leaves["bias_table"] = -torch.rand(heads, keys)
    return {name: leaf.requires_grad_() for name, leaf in leaves.items()}


def compare(leaves: dict[str, Tensor], tolerance: float = 1e-5, **options: Any) -> Tensor:
    """Check the output and every gradient: the largest error, relative to the largest entry where that is above 0.1."""
    kernel_size = leaves["weight1"].shape[-1] if "weight1" in leaves else 1
    heads = leaves["q"].shape[1]
    with_bias = "weight1" in leaves and leaves["weight1"].shape[1] == 2 * heads
    out = triton_attention(**leaves, **options, kernel_size=kernel_size, with_bias=with_bias)
    d_out = torch.randn(out.shape).to(out.dtype)
    found = torch.autograd.grad(out, list(leaves.values()), d_out)
    exact = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    expected = formula(**exact, **options)
    wanted = torch.autograd.grad(expected, list(exact.values()), d_out.double())
    assert out.dtype == leaves["q"].dtype
    pairs = {"out": (out, expected)} | {
        name: pair for name, pair in zip(leaves, zip(found, wanted, strict=True), strict=True)
    }
    for name, (ours, theirs) in pairs.items():
        error = (ours.detach().double() - theirs.detach()).abs().max() / theirs.detach().abs().max().clamp_min(0.1)
        assert error < tolerance, f"{name}: {float(error):.2e}"
    return out.detach()


def test_convolution_over_three_keys():
    compare(random_case())


def test_pointwise_network_whose_bias_is_an_input_alone():
    compare(random_case(kernel_size=1, heads=4, queries=33), mode="concat")


def test_one_head_cached_keys_and_keys_ahead():
    compare(random_case(heads=1, queries=9, keys=23), q_offset=11)


def test_shared_keys_sum_input_masked_edge_and_five_taps():
    compare(random_case(heads=4, kv_heads=2, kernel_size=5, inputs=4), mode="add_residual", edge="masked")


def test_no_bias_and_a_hidden_layer_in_two_chunks():
    compare(random_case(inputs=3, table=False, hidden=20, queries=17, head_dim=20))


def test_no_adapter():
    compare(random_case(adapter=False, queries=35))


def test_seven_taps_take_a_wider_window():
    compare(random_case(kernel_size=7, heads=2, queries=18))


def test_packed_documents_equal_separate_runs():
    leaves = random_case(queries=24, batch=1)
    documents = torch.tensor([[7] * 9 + [2**40] * 15])
    out = compare(leaves, documents=documents)
    with torch.no_grad():
        for part in (slice(0, 9), slice(9, 24)):
            states = {name: leaves[name][:, :, part] for name in "qkv"}
            others = {name: leaf for name, leaf in leaves.items() if name not in "qkv"}
            alone = triton_attention(**states, **others, kernel_size=3)
            torch.testing.assert_close(out[:, :, part], alone, rtol=0, atol=1e-6)


def test_documents_may_lie_in_pieces():
    compare(random_case(queries=22, kernel_size=1), documents=torch.tensor([[0] * 5 + [1] * 8 + [0] * 9]))


def test_padding_on_the_left_equals_no_padding():
    leaves = random_case(batch=2, queries=20, kv_heads=1)
    mask = torch.arange(20) >= torch.tensor([[0], [6]])
    out = compare(leaves, key_mask=mask)
    assert not out[1, :, :6].any()  # rows that see nothing
    with torch.no_grad():
        states = {name: leaves[name][1:, :, 6:] for name in "qkv"}
        others = {name: leaf for name, leaf in leaves.items() if name not in "qkv"}
        torch.testing.assert_close(
            out[1:, :, 6:], triton_attention(**states, **others, kernel_size=3), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 2e-2)])
def test_half_precision(dtype, tolerance):
    compare(random_case(dtype=dtype, queries=17, head_dim=16), tolerance)


def test_one_position():
    compare(random_case(queries=1, kv_heads=1))


def test_extreme_scores_stay_finite():
    """Scores of 1e4 make output and gradients depend on the last bits of the input: the error may be as large as that.

    What fp32 can hold is measured in fp64, so that the bound is the same on every processor: the largest change when
    every input, and the gradient of every score beside its largest term, moves by a unit in the last place of fp32.
    """
    leaves = random_case(queries=18, spread=60.0)
    scores = leaves["q"] @ leaves["k"].mT / math.sqrt(8)
    assert scores.abs().max() > 1e4
    out = triton_attention(**leaves, kernel_size=3, with_bias=True)
    d_out = torch.randn(out.shape)
    found = [out, *torch.autograd.grad(out, list(leaves.values()), d_out)]

    def exactly(noise: float) -> list[Tensor]:
        moved = {
            name: (leaf.detach().double() * (1 + noise * torch.randn(leaf.shape, dtype=torch.float64))).requires_grad_()
            for name, leaf in leaves.items()
        }
        scores: list[Tensor] = []
        result = formula(**moved, scores_into=scores)
        size = noise * float(d_out.abs().max() * leaves["v"].detach().abs().max()) * leaves["v"].shape[-1]
        rounding = size * torch.randn(scores[0].shape, dtype=torch.float64)
        gradients = torch.autograd.grad([result, scores[0]], list(moved.values()), [d_out.double(), rounding])
        return [result.detach(), *gradients]

    expected, moved = exactly(0.0), [exactly(2.0**-23) for _ in range(16)]
    for place, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours.isfinite().all()
        held = max(float((other[place] - theirs).abs().max()) for other in moved)
        error = float((ours.detach().double() - theirs).abs().max())
        assert error < 4 * held + 1e-5 * float(theirs.abs().max()), (place, error, held)


def test_later_positions_do_not_reach_back():
    leaves = {name: leaf.detach() for name, leaf in random_case(queries=20).items()}
    before = triton_attention(**leaves, kernel_size=3)
    for name in "qkv":
        leaves[name] = torch.cat([leaves[name][:, :, :13], torch.randn_like(leaves[name][:, :, 13:])], 2)
    assert torch.equal(before[:, :, :13], triton_attention(**leaves, kernel_size=3)[:, :, :13])


def test_gradients_repeat_bit_for_bit_and_do_not_depend_on_the_cut(monkeypatch):
    leaves = random_case(queries=20)

    def gradients() -> tuple[Tensor, ...]:
        out = triton_attention(**leaves, kernel_size=3)
        return torch.autograd.grad(out.square().sum(), list(leaves.values()))

    first, second = gradients(), gradients()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for tile in (launch.Tile(32, 16, 16, 4), launch.Tile(16, 32, 16, 4)):
        monkeypatch.setattr("huaben.attention.dape_triton.choose_tile", lambda *_, tile=tile: tile)
        for a, b in zip(first, gradients(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_states_need_not_be_contiguous():
    leaves = random_case(kernel_size=1, queries=17)
    turned = {name: leaves[name].detach().transpose(1, 2).contiguous().transpose(1, 2) for name in "qkv"}
    others = {name: leaf for name, leaf in leaves.items() if name not in "qkv"}
    with torch.no_grad():
        torch.testing.assert_close(triton_attention(**turned, **others), triton_attention(**leaves))


def test_modules_train_through_it_as_through_the_reference():
    torch.manual_seed(0)
    bias, score = KerpleLog(3), ScoreConv(3, 10, kernel_size=3)
    q, k, v = (torch.randn(2, 3, 18, 8, requires_grad=True) for _ in range(3))
    start = torch.tensor([0, 4])
    leaves = [q, k, v, *bias.parameters(), *score.parameters()]
    d_out = torch.randn(2, 3, 18, 8)
    results = []
    for impl in ("naive", "triton"):
        out = dape_attention(q, k, v, bias=bias, score=score, start=start, impl=impl)
        results.append([out, *torch.autograd.grad(out, leaves, d_out)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5)
    assert results[1][4].any()  # Kerple's parameters learn


def test_a_case_it_can_do_has_no_reason_against_it():
    assert triton_supported(torch.zeros(1, 2, 4, 8), hidden=10, kernel_size=3) is None
