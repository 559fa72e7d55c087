"""Position biases: values by hand, ranges of the parameters, tables against rows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from huaben.attention.bias import FIRE, ALiBi, Bias, KerpleLog, KerplePower, T5Bias, alibi_slopes, t5_bucket
from huaben.errors import ConfigError, ShapeError

SLOPES = {
    1: [-8],
    2: [-4, -8],
    3: [-4, -8, -2],
    6: [-2, -4, -6, -8, -1, -3],
    8: [-1, -2, -3, -4, -5, -6, -7, -8],
    12: [-1, -2, -3, -4, -5, -6, -7, -8, -0.5, -1.5, -2.5, -3.5],
    16: [-0.5 * h for h in range(1, 17)],
    20: [*(-0.5 * h for h in range(1, 17)), -0.25, -0.75, -1.25, -1.75],
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("heads", SLOPES)
def test_alibi_slopes_are_those_of_the_paper(heads: int) -> None:
    slopes = alibi_slopes(heads)
    assert [math.log2(slope) for slope in slopes] == pytest.approx(SLOPES[heads], abs=1e-12)
    rows = ALiBi(heads).rows(torch.tensor([3]), torch.tensor([0, 3]))
    torch.testing.assert_close(rows, torch.tensor([[[-3 * slope, 0.0]] for slope in slopes]))


@given(st.integers(1, 70))
def test_any_number_of_heads_has_positive_slopes(heads: int) -> None:
    slopes = alibi_slopes(heads)
    assert len(slopes) == heads == len(set(slopes))
    assert min(slopes) > 0


def test_alibi_can_tell_past_from_future() -> None:
    i = torch.arange(3)
    plain, lifted = ALiBi(1).rows(i, i)[0], ALiBi(1, past_bonus=0.5).rows(i, i)[0]
    torch.testing.assert_close(plain, plain.T)
    torch.testing.assert_close(lifted - plain, torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0]]) * 0.5 * 2.0**-8)


BIASES = [ALiBi, KerpleLog, KerplePower, T5Bias]


@pytest.mark.parametrize("kind", BIASES)
def test_a_table_is_the_rows_by_distance(kind: type[Bias]) -> None:
    bias, i = kind(3), torch.arange(40, 50)
    table = bias.table(50, dtype=torch.float64)
    rows = bias.rows(i, torch.arange(50), dtype=torch.float64)
    distance = i[:, None] - torch.arange(50)
    seen = distance >= 0
    torch.testing.assert_close(rows[:, seen], table[:, distance[seen]], rtol=0, atol=0)
    torch.testing.assert_close(bias.rows(i + 7, torch.arange(50) + 7, dtype=torch.float64), rows, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [*BIASES, FIRE])
def test_biases_stay_fp32_in_a_half_precision_module(kind: type[Bias]) -> None:
    bias = kind(2).bfloat16()
    far = bias.rows(torch.tensor([8191, 8190]), torch.tensor([0]))
    assert far.dtype == torch.float32
    assert bool(far.isfinite().all())
    if kind is ALiBi:
        assert float(far[0, 1] - far[0, 0]) == pytest.approx(2.0**-4)


def test_kerple_values_and_floors() -> None:
    log, power = KerpleLog(2).double(), KerplePower(2).double()
    with torch.no_grad():
        log.p.copy_(torch.tensor([1.5, -3.0]))
        log.a.copy_(torch.tensor([0.5, -100.0]))
        power.a.copy_(torch.tensor([0.3, -1.0]))
        power.p.copy_(torch.tensor([7.0, -1.0]))
    delta = torch.arange(5, dtype=torch.float64)
    expected = torch.stack((-1.5 * torch.log(1 + 0.5 * delta), -0.01 * torch.log(1 + 0.01 * delta)))
    torch.testing.assert_close(log.table(5, dtype=torch.float64), expected)
    expected = torch.stack((-0.3 * delta**2, torch.where(delta > 0, -0.01 * delta**0.01, 0)))
    torch.testing.assert_close(power.table(5, dtype=torch.float64), expected)


@pytest.mark.parametrize("kind", [KerpleLog, KerplePower])
def test_kerple_falls_with_distance_after_extreme_steps(kind: type[KerpleLog] | type[KerplePower]) -> None:
    bias = kind(8)
    optimizer = torch.optim.SGD(bias.parameters(), lr=100.0)
    (-bias.table(20).square().sum()).backward()
    optimizer.step()
    table = bias.table(64)
    assert bool((table[:, 0] == 0).all())
    assert bool((table.diff(dim=1) <= 0).all())
    assert bool((table[:, 1:] < 0).all())


def test_a_parameter_below_its_floor_comes_back_and_goes_no_further() -> None:
    bias = KerpleLog(1)
    with torch.no_grad():
        bias.p.fill_(-1.0)
    bias.table(9).sum().backward()  # descent lowers the sum: a larger p, inward
    assert bias.p.grad is not None
    assert float(bias.p.grad) < 0
    bias.p.grad = None
    (-bias.table(9).sum()).backward()
    assert float(bias.p.grad) == 0


@pytest.mark.parametrize("kind", [KerpleLog, KerplePower, FIRE, T5Bias])
def test_gradients_are_those_of_the_formula(kind: type[Bias]) -> None:
    bias = kind(2).double()
    if isinstance(bias, (KerpleLog, KerplePower)):
        with torch.no_grad():
            bias.a.copy_(torch.tensor([0.4, 0.7]))
            bias.p.copy_(torch.tensor([0.6, 1.3]))
    i = torch.arange(6)
    names = [name for name, _ in bias.named_parameters()]

    def rows(*values: Tensor) -> Tensor:
        return torch.func.functional_call(
            bias, dict(zip(names, values, strict=True)), (i, i), {"dtype": torch.float64}, strict=True
        )

    bias.forward = bias.rows  # type: ignore[method-assign]
    assert torch.autograd.gradcheck(rows, tuple(bias.parameters()))


def test_fire_by_hand_and_its_argument() -> None:
    bias = FIRE(3, length=8).double()
    i = torch.arange(40)
    x = bias.argument(i[:, None], i[None, :], dtype=torch.float64).detach()
    assert float(x.min()) == 0
    assert float(x.max()) <= 1
    assert bool((x.diagonal() == 0).all())
    psi = lambda value: math.log(1 + 0.1 * value)  # noqa: E731
    assert float(x[5, 2]) == pytest.approx(psi(3) / (psi(8) + 1e-6))
    assert float(x[30, 2]) == pytest.approx(psi(28) / (psi(30) + 1e-6))
    hidden = torch.relu(bias.first.weight[:, 0] * x[30, 2] + bias.first.bias)
    expected = bias.last.weight @ hidden + bias.last.bias
    torch.testing.assert_close(bias.rows(i, i, dtype=torch.float64)[:, 30, 2], expected)


def test_fire_is_finite_without_scale_and_follows_its_origin() -> None:
    bias = FIRE(2, length=4)
    i = torch.arange(12)
    rows = bias.rows(i + 5, i + 5, origin=torch.full((1, 12), 5))
    torch.testing.assert_close(rows[0], bias.rows(i, i))
    with torch.no_grad():
        bias.c.zero_()
        bias.l.zero_()
    bias.rows(i, i).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in bias.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("delta", "bucket"),
    [(0, 0), (15, 15), (16, 16), (18, 16), (19, 17), (31, 21), (63, 26), (112, 30), (113, 31), (128, 31), (9999, 31)],
)
def test_t5_buckets_are_the_known_ones(delta: int, bucket: int) -> None:
    assert int(t5_bucket(torch.tensor(delta))) == bucket
    assert int(t5_bucket(torch.tensor(-delta))) == bucket


@pytest.mark.parity
def test_t5_buckets_equal_those_of_transformers() -> None:
    attention = pytest.importorskip("transformers.models.t5.modeling_t5").T5Attention
    delta = torch.arange(-300, 301)
    for both in (False, True):
        theirs = attention._relative_position_bucket(
            -delta if both else -delta.abs(), bidirectional=both, num_buckets=32, max_distance=128
        )
        assert t5_bucket(delta, bidirectional=both).tolist() == theirs.tolist()


def test_t5_multiplier_and_initialisation() -> None:
    bias = T5Bias(400, multiplier=8.0)
    torch.testing.assert_close(bias.table(200)[:, 150], 8 * bias.weight[31].float())
    assert float(bias.weight.detach().std()) == pytest.approx(math.sqrt(2 / (32 + 400)), rel=0.05)


def test_impossible_biases_are_refused() -> None:
    with pytest.raises(ConfigError, match="heads=0"):
        ALiBi(0)
    with pytest.raises(ConfigError, match="buckets=7"):
        T5Bias(2, buckets=7)
    with pytest.raises(ConfigError, match="more than the distance"):
        FIRE(2).table(4)
    with pytest.raises(ShapeError, match="whole"):
        ALiBi(2).rows(torch.ones(2), torch.arange(2))
    with pytest.raises(ShapeError, match="origin"):
        FIRE(2).rows(torch.arange(2), torch.arange(2), origin=torch.zeros(2, 3))
