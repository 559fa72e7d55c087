"""Adapted attention: what every implementation promises, and row blocks against the formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from huaben.attention import dape_naive, dape_rows
from huaben.attention.adaptive import ScoreConv, ScoreMLP
from huaben.attention.bias import FIRE, ALiBi, Bias, KerpleLog, T5Bias
from huaben.attention.content import CoPE
from huaben.attention.dape import dape_attention
from huaben.attention.scheme import Scheme, SchemeConfig, scheme_config
from huaben.errors import ConfigError, ShapeError

POSITIONS = ("nope", "rope", "alibi", "kerple", "fire", "t5")
ADAPTERS = ("none", "mlp", "conv")
IMPLEMENTATIONS = ("naive", "rows")
HEADS, WIDTH = 4, 8


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and tiles that end inside short sequences."""
    torch.manual_seed(0)
    monkeypatch.setattr(dape_rows, "_MOST_ROWS", 5)
    monkeypatch.setattr(dape_rows, "_LEAST_ROWS", 5)
    monkeypatch.setattr(dape_rows, "CPU_TILE_PAIRS", 40)


def scheme(position: str, adapter: str, **changes: Any) -> Scheme:
    config = SchemeConfig.from_dict(
        {"position": position, "adapter": adapter, "hidden": 6, "train_length": 7, **changes}
    )
    return Scheme(config, HEADS, WIDTH).double().eval()


def states(length: int, *, batch: int = 2, heads: int = HEADS, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(batch, n, length, WIDTH, dtype=dtype) for n in (HEADS, heads, heads)]


def attend(made: Scheme, q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> Tensor:
    """Rotate to the positions and attend; ``arguments`` may hold the queries' offset."""
    keys = torch.arange(k.shape[2])
    offset = arguments.get("q_offset", 0)
    queries = torch.arange(offset, offset + q.shape[2])
    out: Tensor = made(made.rotate(q, queries), made.rotate(k, keys), v, **arguments)
    return out


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max()) if a.numel() else 0.0


def with_gradients(made: Scheme, tensors: list[Tensor], **arguments: Any) -> dict[str, Tensor]:
    """Return the output and the gradient of everything that has one."""
    q, k, v = (x.detach().clone().requires_grad_() for x in tensors)
    made.zero_grad()
    out = attend(made, q, k, v, **arguments)
    weight = torch.linspace(-3, 5, out.numel(), dtype=out.dtype).sin().view_as(out)
    (out * weight).sum().backward()
    found = {"out": out.detach(), "q": q.grad, "k": k.grad, "v": v.grad}
    found |= {name: p.grad for name, p in made.named_parameters()}
    return {name: torch.zeros(()) if value is None else value for name, value in found.items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        scale = max(1.0, float(value.abs().max()) if value.numel() else 1.0)
        assert gap(value, b[name]) <= tolerance * scale, f"{name}: {gap(value, b[name])}"


# --- causality and consistency ------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("position", POSITIONS)
def test_later_tokens_leave_earlier_outputs_alone(position: str, adapter: str, impl: str) -> None:
    for kernel_size in (1, 3, 5, 7) if adapter == "conv" else (3,):
        for edge in ("virtual", "masked", "array") if adapter == "conv" else ("virtual",):
            made = scheme(position, adapter, kernel_size=kernel_size, edge=edge)
            before = states(13)
            after = [torch.cat((x[:, :, :8], torch.randn_like(x[:, :, 8:])), dim=2) for x in before]
            same = attend(made, *before, impl=impl)[:, :, :8]
            assert torch.equal(attend(made, *after, impl=impl)[:, :, :8], same)


def test_without_the_triangle_v2_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard matters: the same scores through the convolution, future ones included, see the future."""

    def untriangled(z: Tensor, score: ScoreConv, *rest: object) -> Tensor:
        return score(z)

    made, before = scheme("kerple", "conv"), states(13)
    after = [torch.cat((x[:, :, :8], torch.randn_like(x[:, :, 8:])), dim=2) for x in before]
    monkeypatch.setattr(dape_naive, "_process", untriangled)
    leak = attend(made, *after, impl="naive")[:, :, :8] - attend(made, *before, impl="naive")[:, :, :8]
    assert float(leak.detach()[:, :, :6].abs().max()) < 1e-12  # the kernel reaches two keys ahead
    assert float(leak.detach()[:, :, 6:].abs().max()) > 1e-3


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("position", POSITIONS)
def test_a_prefix_is_the_same_at_any_length(position: str, adapter: str, impl: str) -> None:
    for kernel_size, edge in ((3, "virtual"), (5, "virtual"), (3, "masked")):
        made = scheme(position, adapter, kernel_size=kernel_size, edge=edge)
        tensors = states(11)
        full = attend(made, *tensors, impl=impl)
        for t in range(1, 12):
            assert gap(attend(made, *(x[:, :, :t] for x in tensors), impl=impl), full[:, :, :t]) <= 1e-12


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_the_array_edge_differs_in_the_last_rows_alone(kernel_size: int, impl: str) -> None:
    p = kernel_size // 2
    made = scheme("kerple", "conv", kernel_size=kernel_size, edge="array")
    long = states(14)
    short = [x[:, :, :10] for x in long]
    difference = (attend(made, *long, impl=impl)[:, :, :10] - attend(made, *short, impl=impl)).detach().abs()
    assert float(difference[:, :, : 10 - p].max()) <= 1e-12
    assert bool((difference.amax((0, 1, 3))[10 - p :] > 1e-6).all())
    virtual = scheme("kerple", "conv", kernel_size=kernel_size)
    virtual.load_state_dict(made.state_dict())
    same = (attend(virtual, *short, impl=impl) - attend(made, *short, impl=impl)).detach().abs().amax((0, 1, 3))
    assert float(same[: 10 - p].max()) <= 1e-12
    assert bool((same[10 - p :] > 1e-6).all())


def test_the_array_edge_is_the_released_code() -> None:
    """``tril``, two convolutions, residual, mask: written as the released module has it."""
    made = scheme("alibi", "conv", edge="array")
    score, bias = made.score, made.bias
    assert isinstance(score, ScoreConv)
    assert isinstance(bias, ALiBi)
    q, k, v = states(9)
    scores = q @ k.mT / math.sqrt(WIDTH)
    i = torch.arange(9)
    added = bias.rows(i, i, dtype=torch.float64).expand_as(scores)
    first, second = nn.Conv2d(8, 6, (1, 3), padding=(0, 1)).double(), nn.Conv2d(6, 4, (1, 3), padding=(0, 1)).double()
    state = score.official_state()
    first.load_state_dict({"weight": state["mlp2.0.weight"], "bias": state["mlp2.0.bias"]})
    second.load_state_dict({"weight": state["mlp2.2.weight"], "bias": state["mlp2.2.bias"]})
    f = second(nn.functional.leaky_relu(first(torch.tril(torch.cat((scores, added), dim=1)))))
    total = (scores + added + f).masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(1), -math.inf)
    expected = torch.softmax(total, dim=-1) @ v
    for impl in IMPLEMENTATIONS:
        assert gap(attend(made, q, k, v, impl=impl), expected) <= 1e-12


# --- row blocks against the formulas ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "mode"),
    [
        ("none", "concat_residual"),
        *((a, m) for a in ("mlp", "conv") for m in ("concat_residual", "concat", "add_residual")),
    ],
)
@pytest.mark.parametrize("position", [*POSITIONS, "kerple_power", "cope", "transformer_xl"])
def test_row_blocks_equal_the_formulas_with_every_gradient(position: str, adapter: str, mode: str) -> None:
    for edge in ("virtual", "masked", "array") if adapter == "conv" else ("virtual",):
        made = scheme(position, adapter, mode=mode, edge=edge)
        tensors = states(17, heads=2)
        arguments = {"q_offset": 4, "key_mask": None}
        tensors[0] = tensors[0][:, :, :13]
        formulas = with_gradients(made, tensors, impl="naive", **arguments)
        assert_same(formulas, with_gradients(made, tensors, impl="rows", **arguments), 1e-11)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("position", ["kerple", "fire"])
def test_row_blocks_equal_the_formulas_under_every_mask(position: str, adapter: str) -> None:
    holes = torch.rand(2, 17) > 0.3
    holes[0, :3], holes[1, 0], holes[1, -3:] = False, True, False
    documents = torch.tensor([[0] * 5 + [1] * 9 + [2] * 3, [4] * 17])
    scattered = torch.tensor([[0, 1] * 8 + [0], [2] * 17])
    for edge in ("virtual", "masked", "array") if adapter == "conv" else ("virtual",):
        made, tensors = scheme(position, adapter, edge=edge), states(17, heads=2)
        cases: list[dict[str, Any]] = [
            {"key_mask": holes},
            {"start": torch.tensor([0, 6])},
            {"documents": documents},
            {"documents": scattered},
            {"documents": documents, "key_mask": holes, "start": torch.tensor([2, 0])},
            {"causal": False},
            {"causal": False, "key_mask": holes},
        ]
        for case in cases:
            formulas = with_gradients(made, tensors, impl="naive", **case)
            assert_same(formulas, with_gradients(made, tensors, impl="rows", **case), 1e-11)


@settings(max_examples=12, deadline=None)
@given(
    length=st.sampled_from([1, 2, 3, 17, 31]),
    offset=st.integers(0, 6),
    heads=st.sampled_from([1, 3, 6]),
    hidden=st.sampled_from([1, 8, 10]),
    kernel_size=st.sampled_from([1, 3, 5, 7]),
    batch=st.sampled_from([1, 3]),
    position=st.sampled_from(["nope", "kerple", "fire"]),
    rows=st.integers(1, 9),
    pairs=st.integers(1, 200),
)
def test_row_blocks_equal_the_formulas_at_any_size(
    length: int,
    offset: int,
    heads: int,
    hidden: int,
    kernel_size: int,
    batch: int,
    position: str,
    rows: int,
    pairs: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dape_rows, "_MOST_ROWS", rows)
        patch.setattr(dape_rows, "_LEAST_ROWS", 1)
        patch.setattr(dape_rows, "CPU_TILE_PAIRS", pairs)
        config = scheme_config(f"v2-{position}", hidden=hidden, kernel_size=kernel_size, train_length=5)
        made = Scheme(config, heads, 4).double()
        q = torch.randn(batch, heads, length, 4, dtype=torch.float64)
        k, v = torch.randn(2, batch, heads, length + offset, 4, dtype=torch.float64).unbind()
        found = [with_gradients(made, [q, k, v], impl=impl, q_offset=offset) for impl in IMPLEMENTATIONS]
        assert_same(*found, 1e-11)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_row_blocks_equal_the_formulas_in_real_sizes(
    adapter: str, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dape_rows, "_MOST_ROWS", 64)
    monkeypatch.setattr(dape_rows, "CPU_TILE_PAIRS", 4096)
    made = Scheme(SchemeConfig.from_dict({"position": "kerple", "adapter": adapter}), 12, 64)
    tensors = [torch.randn(1, 12, 129, 64).to(dtype) for _ in range(3)]
    found = [with_gradients(made, tensors, impl=impl) for impl in IMPLEMENTATIONS]
    assert found[1]["out"].dtype == dtype
    assert_same(*found, tolerance)


@pytest.mark.parametrize("adapter", ["mlp", "conv"])
def test_gradients_of_row_blocks_are_those_of_finite_differences(adapter: str) -> None:
    made = scheme("kerple", adapter)
    q, k, v = (x.requires_grad_() for x in states(6, batch=1))
    assert torch.autograd.gradcheck(lambda q, k, v: attend(made, q, k, v, impl="rows"), (q, k, v), fast_mode=True)


def test_row_blocks_repeat_bit_for_bit_and_ignore_autocast() -> None:
    made, tensors = scheme("kerple", "conv").float(), [x.float() for x in states(23)]
    once, twice = with_gradients(made, tensors, impl="rows"), with_gradients(made, tensors, impl="rows")
    assert all(torch.equal(once[name], twice[name]) for name in once)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for impl in IMPLEMENTATIONS:
            assert gap(attend(made, *tensors, impl=impl), once["out"]) < 1e-5


def test_row_blocks_keep_no_square_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """What autograd keeps, and the largest tensor made on the way, grow with T; the formulas' with its square."""

    def footprint(impl: str, length: int) -> tuple[int, int]:
        kept: dict[int, int] = {}
        largest = 0

        class Watch(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                nonlocal largest
                out = func(*args, **(kwargs or {}))
                if isinstance(out, Tensor):
                    largest = max(largest, out.numel())
                return out

        def keep(x: Tensor) -> Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        made, tensors = scheme("kerple", "conv"), [x.requires_grad_() for x in states(length, batch=1)]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), Watch():
            attend(made, *tensors, impl=impl).sum().backward()
        return sum(kept.values()), largest

    rows = [footprint("rows", length) for length in (64, 128, 256)]
    naive = [footprint("naive", length) for length in (64, 128)]
    for part in (0, 1):
        assert rows[2][part] <= 4.2 * rows[0][part]
        assert rows[1][part] * 4 <= naive[1][part]
        assert naive[1][part] >= 3 * naive[0][part]


# --- what the adapter is ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("adapter", ["mlp", "conv"])
@pytest.mark.parametrize("position", POSITIONS)
def test_a_zero_adapter_is_its_base_exactly_and_can_learn(position: str, adapter: str, impl: str) -> None:
    made, base = scheme(position, adapter, init="zero"), scheme(position, "none")
    base.load_state_dict({name: value for name, value in made.state_dict().items() if not name.startswith("score")})
    tensors = states(9)
    ours, plain = with_gradients(made, tensors, impl=impl), with_gradients(base, tensors, impl=impl)
    assert_same({name: ours[name] for name in plain}, plain, 1e-14)
    assert float(ours["score.weight2"].abs().max()) > 1e-6


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_kernel_one_and_dead_side_taps_are_v1(impl: str) -> None:
    mlp, one, three = scheme("kerple", "mlp"), scheme("kerple", "conv", kernel_size=1), scheme("kerple", "conv")
    one.load_state_dict(mlp.state_dict())
    three.load_state_dict(
        {
            name: nn.functional.pad(value, (1, 1)) if name.startswith("score.weight") else value
            for name, value in mlp.state_dict().items()
        }
    )
    tensors = states(9)
    expected = attend(mlp, *tensors, impl="naive")
    assert gap(attend(one, *tensors, impl=impl), expected) <= 1e-13
    assert gap(attend(three, *tensors, impl=impl), expected) <= 1e-13


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("adapter", ["mlp", "conv"])
def test_heads_are_mixed_and_interchangeable(adapter: str, impl: str) -> None:
    made = scheme("kerple", adapter)
    q, k, v = states(9)
    changed = q.clone()
    changed[:, 0] += 1
    moved = (attend(made, changed, k, v, impl=impl) - attend(made, q, k, v, impl=impl)).detach().abs().amax((0, 2, 3))
    assert bool((moved[1:] > 1e-4).all())
    order = torch.tensor([2, 0, 3, 1])
    permuted = scheme("kerple", adapter)
    state = {name: value.clone() for name, value in made.state_dict().items()}
    for name in ("bias.p", "bias.a", "score.weight2", "score.bias2"):
        state[name] = state[name][order]
    state["score.weight1"] = state["score.weight1"][:, torch.cat((order, order + HEADS))]
    permuted.load_state_dict(state)
    expected = attend(made, q, k, v, impl=impl)[:, order]
    assert gap(attend(permuted, q[:, order], k[:, order], v[:, order], impl=impl), expected) <= 1e-13


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_the_last_bias_does_nothing_but_a_shift_of_scores_does(impl: str) -> None:
    made, tensors = scheme("alibi", "mlp"), states(9)
    found = with_gradients(made, tensors, impl=impl)
    assert float(found["score.bias2"].abs().max()) <= 1e-10
    with torch.no_grad():
        made.score.bias2.add_(3.0)  # type: ignore[union-attr]
    assert gap(attend(made, *tensors, impl=impl), found["out"]) <= 1e-12
    # a constant on a row of scores: one more channel on which all keys are 1
    q, k, v = (nn.functional.pad(x, (0, 1)) for x in tensors)
    k[..., -1] = 1
    lifted = q.clone()
    lifted[..., -1] = 5.0
    scale = 1 / math.sqrt(WIDTH)
    for score, change in ((made.score, True), (None, False)):
        given = {"bias": made.bias, "score": score, "scale": scale, "impl": impl}
        moved = gap(dape_attention(lifted, k, v, **given), dape_attention(q, k, v, **given))
        assert (moved > 1e-3) == change


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_the_adapter_gets_scaled_scores_by_hand(impl: str) -> None:
    score = ScoreMLP(1, 1, with_bias=False).double()
    with torch.no_grad():
        for parameter, value in zip(score.parameters(), (0.5, 0.1, -2.0, 0.3), strict=True):
            parameter.fill_(value)
    q = torch.tensor([[[[1.0, 0, 0, 2], [2, 1, 0, 0]]]], dtype=torch.float64)
    k = torch.tensor([[[[3.0, 0, 1, 0], [-1, -4, 0, 0]]]], dtype=torch.float64)
    v = torch.tensor([[[[1.0, 0, 0, 0], [0, 1, 0, 0]]]], dtype=torch.float64)
    scores = torch.tensor([6 / 2, -6 / 2])  # of the second query, over sqrt(4)
    hidden = 0.5 * scores + 0.1
    total = scores - 2 * torch.where(hidden > 0, hidden, 0.01 * hidden) + 0.3
    weights = torch.softmax(total.double(), dim=0)
    out = dape_attention(q, k, v, score=score, impl=impl)
    torch.testing.assert_close(out[0, 0, 1, :2], weights, rtol=1e-6, atol=1e-6)
    twice = dape_attention(2 * q, k, v, score=score, impl=impl)
    assert gap(twice, dape_attention(q, k, v, score=score, scale=1.0, impl=impl)) <= 1e-14


# --- batches ------------------------------------------------------------------------------------------------------


def variants() -> list[Any]:
    return [pytest.param(p, a, i, id=f"{p}-{a}-{i}") for p in POSITIONS for a in ADAPTERS for i in IMPLEMENTATIONS]


@pytest.mark.parametrize(("position", "adapter", "impl"), variants())
def test_batches_equal_rows_alone(position: str, adapter: str, impl: str) -> None:
    made = scheme(position, adapter, kernel_size=5)
    q, k, v = states(12, heads=2)
    out = attend(made, q, k, v, impl=impl)
    repeated = [x.repeat_interleave(2, dim=1) for x in (k, v)]
    assert gap(attend(made, q, *repeated, impl=impl), out) <= 1e-13

    cut = [slice(0, 5), slice(5, 12)]
    documents = torch.tensor([[3] * 5 + [1] * 7] * 2)
    packed = attend(made, q, k, v, documents=documents, impl=impl)
    alone = torch.cat([attend(made, *(x[:, :, part] for x in (q, k, v)), impl=impl) for part in cut], dim=2)
    assert gap(packed, alone) <= 1e-12

    begin = 4
    expected = attend(made, *(x[1:, :, begin:] for x in (q, k, v)), impl=impl)
    mask = torch.arange(12) >= torch.tensor([[0], [begin]])
    for arguments in ({"start": torch.tensor([0, begin])}, {"key_mask": mask}):
        padded = attend(made, q, k, v, impl=impl, **arguments)
        assert gap(padded[0], out[0]) <= 1e-12
        assert gap(padded[1:, :, begin:], expected) <= 1e-12
        assert not bool(padded[1, :, :begin].any())

    right = torch.arange(12) < torch.tensor([[12], [7]])
    padded = attend(made, q, k, v, key_mask=right, impl=impl)
    assert gap(padded[1, :, :7], out[1, :, :7]) <= 1e-12


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("causal", [True, False])
def test_padding_has_no_influence(adapter: str, impl: str, causal: bool) -> None:
    made = scheme("kerple", adapter)
    mask = torch.rand(2, 12) > 0.4
    mask[:, 0] = True
    before = states(12)
    after = [torch.where(mask[:, None, :, None], x, torch.randn_like(x) * 50) for x in before]
    same = [attend(made, *x, key_mask=mask, causal=causal, impl=impl) for x in (before, [before[0], *after[1:]])]
    assert torch.equal(*same)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_two_way_attention_does_not_notice_padding_at_its_ends(adapter: str, impl: str) -> None:
    made = scheme("alibi", adapter)
    tensors = states(12)
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[:, 3:9] = True
    padded = attend(made, *tensors, key_mask=mask, causal=False, impl=impl)[:, :, 3:9]
    assert gap(padded, attend(made, *(x[:, :, 3:9] for x in tensors), causal=False, impl=impl)) <= 1e-12


def test_two_way_v2_is_a_plain_convolution_of_all_scores() -> None:
    made = scheme("nope", "conv")
    q, k, v = states(7)
    scores = q @ k.mT / math.sqrt(WIDTH)
    assert made.score is not None
    expected = torch.softmax(scores + made.score(scores), dim=-1) @ v
    for impl in IMPLEMENTATIONS:
        assert gap(attend(made, q, k, v, causal=False, impl=impl), expected) <= 1e-12


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_extreme_scores_and_single_tokens_stay_finite(adapter: str, impl: str) -> None:
    made = scheme("kerple", adapter).float()
    for length, size in ((1, 1.0), (9, 1e4), (9, 0.0)):
        q, k, v = (x.float() for x in states(length))
        found = with_gradients(made, [q * size, k, v], impl=impl)
        assert all(bool(value.isfinite().all()) for value in found.values())
    mask = torch.zeros(2, 9, dtype=torch.bool)
    tensors = [x.float() for x in states(9)]
    blind = with_gradients(made, tensors, key_mask=mask, impl=impl)
    assert not any(bool(value.any()) for value in blind.values())


# --- choosing and refusing ----------------------------------------------------------------------------------------


def test_auto_chooses_by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    import huaben.attention.dape as module

    chosen: list[str] = []

    def watch(name: str) -> Callable[..., Tensor]:
        def attend(q: Tensor, *_: Any, **__: Any) -> Tensor:
            chosen.append(name)
            return q

        return attend

    monkeypatch.setattr(module, "rows_attention", watch("rows"))
    monkeypatch.setattr(module, "naive_attention", watch("naive"))
    score, bias = ScoreMLP(1, 4), ALiBi(1)
    for queries, keys, arguments in (
        (16, 16, {"bias": bias, "score": score}),
        (1, 4096, {"bias": bias, "score": score, "q_offset": 4095}),
        (512, 512, {"bias": bias, "score": score}),
        (256, 256, {"bias": bias}),
        (512, 512, {"bias": CoPE(1, 4), "score": score}),
        (512, 4096, {"score": ScoreMLP(1, 64, with_bias=False), "causal": False}),
    ):
        dape_attention(torch.zeros(1, 1, queries, 4), *torch.zeros(2, 1, 1, keys, 4), **arguments)
    assert chosen == ["naive", "naive", "rows", "naive", "naive", "rows"]


def test_the_fused_kernel_says_why_not() -> None:
    with pytest.raises(ConfigError, match=r"impl='triton' cannot do this: dtype torch\.float64"):
        attend(scheme("kerple", "mlp"), *states(4), impl="triton")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bias": ALiBi(2)}, "the bias has 2 heads, q 4"),
        ({"bias": KerpleLog(4), "score": ScoreMLP(3)}, "the score has 3 heads, q 4"),
        ({"score": ScoreMLP(4)}, "with_bias=True, but no bias"),
        ({"bias": T5Bias(4), "score": ScoreMLP(4, with_bias=False)}, "with_bias=False, but a bias"),
        ({"key_mask": torch.ones(1, 5, dtype=torch.bool)}, r"key_mask \(1, 5\), expected \(2, 5\)"),
        ({"key_mask": torch.ones(2, 5)}, "key_mask is torch.float32, expected bool"),
        ({"documents": torch.zeros(2, 4, dtype=torch.long)}, r"documents \(2, 4\), expected \(2, 5\)"),
        ({"documents": torch.ones(2, 5, dtype=torch.bool)}, "documents is torch.bool"),
        ({"start": torch.zeros(1, dtype=torch.long)}, r"start \(1,\), expected \(2,\)"),
        ({"q_offset": 1}, "do not fit 5 keys"),
        ({"edge": "open"}, "edge='open'"),
        ({"impl": "fast"}, "impl='fast'"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ShapeError, ConfigError), match=message):
        dape_attention(*(x.float() for x in states(5)), **arguments)


def test_tensors_that_do_not_fit_are_refused() -> None:
    q, k, v = states(5)
    for wrong in ((q, k[:1], v[:1]), (q, k[..., :4], v[..., :4]), (q, k, v[:, :, :4]), (q[0], k[0], v[0])):
        with pytest.raises(ShapeError, match="expected"):
            dape_attention(*wrong)
    with pytest.raises(ShapeError, match="3 key heads do not divide 4"):
        dape_attention(q, k[:, :3], v[:, :3])
    with pytest.raises(ShapeError, match="one floating dtype"):
        dape_attention(q, k.float(), v)
    assert dape_attention(q[:, :, :0], k, v).shape == (2, HEADS, 0, WIDTH)


def test_a_bias_of_ones_own_works_everywhere() -> None:
    class Steps(Bias):
        """The parity of the distance."""

        def _rows(self, i: Tensor, j: Tensor, dtype: torch.dtype) -> Tensor:
            return ((i - j) % 2).to(dtype).unsqueeze(-3).expand(*(i - j).shape[:-2], self.heads, -1, -1).contiguous()

    q, k, v = states(13)
    score = ScoreConv(HEADS, 5).double()
    found = [dape_attention(q, k, v, bias=Steps(HEADS), score=score, impl=impl) for impl in IMPLEMENTATIONS]
    assert gap(*found) <= 1e-13
    assert isinstance(scheme("fire", "none").bias, FIRE)
