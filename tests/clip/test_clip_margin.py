"""The margin loss: hand-computed cases, its gradients, what it leaves out, and the alarm."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from huaben.clip.loss import contrastive_loss
from huaben.clip.margin import (
    MARGINS,
    PAPER,
    RELEASED,
    HardNegativeMarginLoss,
    MarginAlarm,
    MarginConfig,
    hard_mask,
    hard_negative_margin_loss,
)
from huaben.errors import ConfigError, DataError, ShapeError

COSINE = MarginConfig(sim="cosine")
SEEDS, HARD = hard_mask(1, 2, 1)


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=-1)


def of_sims(sims: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features whose products are these similarities; the loss does not look at their lengths."""
    matrix = torch.tensor(sims, dtype=torch.float64)
    return matrix, torch.eye(len(matrix), dtype=torch.float64)


# Seeds 0 and 1, partners 2 (of 0) and 3 (of 1).
SIMS = [
    [0.9, 0.5, 0.4, 0.1],  # margin 0.4; ordinary 0.5 and 0.1: above by 0.1, and not
    [0.7, 0.8, 0.6, 0.2],  # margin 0.2; ordinary 0.7 and 0.6: above by 0.5 and 0.4
    [0.0, 0.0, 1.0, 0.0],
    [0.0, 0.0, 0.0, 1.0],
]


def test_hand_computed_cases_of_all_variants() -> None:
    images, texts = of_sims(SIMS)
    ids, scale = torch.arange(4), torch.tensor(10.0, dtype=torch.float64)
    terms = hard_negative_margin_loss(images, texts, HARD, SEEDS, ids, COSINE)
    assert terms["loss"].item() == pytest.approx((0.1 / 2 + 0.9 / 2) / 2)
    assert terms["weighted"].item() == pytest.approx(0.3 * 0.25)
    assert terms["active"].item() == pytest.approx(3 / 4)
    assert terms["margin"].item() == pytest.approx(0.3)
    # Paper: on logits, divided by the size of the batch.
    terms = hard_negative_margin_loss(images, texts, HARD, SEEDS, ids, PAPER, scale)
    assert terms["loss"].item() == pytest.approx(10 * (0.1 / 4 + 0.9 / 4) / 2)
    assert terms["weighted"].item() == pytest.approx(0.3 * 1.25)
    # Default: on logits, divided by the number of ordinary negatives.
    terms = hard_negative_margin_loss(images, texts, HARD, SEEDS, ids, MARGINS["default"], scale)
    assert terms["loss"].item() == pytest.approx(2.5)
    # Released: the contrastive loss of the whole batch, hard pairs included, and nothing else.
    released = hard_negative_margin_loss(images, texts, HARD, SEEDS, ids, RELEASED, scale)
    contrast = contrastive_loss(images, texts, scale)["loss"]
    rows = torch.tensor(SIMS, dtype=torch.float64) * 10
    by_hand = [
        (matrix[i].exp().sum().log() - matrix[i, i]).item() for matrix in (rows, rows.T.contiguous()) for i in range(4)
    ]
    assert (contrast + released["weighted"]).item() == pytest.approx(sum(by_hand) / 8)
    assert torch.equal(contrast + released["weighted"], contrast)


def test_both_directions_are_averaged() -> None:
    images, texts = of_sims(SIMS)
    ids = torch.arange(4)
    both = hard_negative_margin_loss(images, texts, HARD, SEEDS, ids, COSINE.replace(directions="both"))
    back = hard_negative_margin_loss(texts, images, HARD, SEEDS, ids, COSINE)
    # Text 0: margin S[2,0] = 0, ordinary S[1,0] = 0.7, S[3,0] = 0. Text 1: margin 0, ordinary 0.5 and 0.
    assert back["loss"].item() == pytest.approx((0.7 / 2 + 0.5 / 2) / 2)
    assert both["loss"].item() == pytest.approx((0.25 + 0.3) / 2)
    assert both["active"].item() == pytest.approx((0.75 + 0.5) / 2)


def test_several_hard_pairs_the_least_similar_is_the_margin() -> None:
    seeds, hard = hard_mask(1, 1, 2)
    images, texts = of_sims([[0.9, 0.5, 0.2], [0, 1, 0], [0, 0, 1]])
    terms = hard_negative_margin_loss(images, texts, hard, seeds, torch.arange(3), COSINE)
    assert terms["margin"].item() == pytest.approx(0.2)
    assert terms["loss"].item() == 0  # the other hard pair is no ordinary negative
    seeds, hard = hard_mask(2, 1, 2)
    images, texts = of_sims([[0.9, 0.5, 0.2, 0.6, 0.3, 0.1], *torch.eye(6)[1:].tolist()])
    terms = hard_negative_margin_loss(images, texts, hard, seeds, torch.arange(6), COSINE)
    assert terms["loss"].item() == pytest.approx((0.4 + 0.1) / 3 / 2)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans())
def test_gradients_are_the_closed_form(
    seed: int, blocks: int, n: int, p: int, batch_denominator: bool, detach: bool
) -> None:
    seeds, hard = hard_mask(blocks, n, p)
    count = hard.shape[1]
    sims = torch.randn(count, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sims.requires_grad_()
    config = COSINE.replace(denom="batch" if batch_denominator else "negatives", detach_margin=detach)
    ids = torch.arange(count)
    loss = hard_negative_margin_loss(sims, torch.eye(count, dtype=torch.float64), hard, seeds, ids, config)
    loss["loss"].backward()
    expected, total = torch.zeros_like(sims), 0.0
    for row, mask in zip(seeds.tolist(), hard, strict=True):
        values = sims[row].detach()
        ordinary = [j for j in range(count) if j != row and not mask[j]]
        weakest = min((j for j in range(count) if mask[j]), key=lambda j: float(values[j]))
        active = [j for j in ordinary if values[j] > values[weakest]]
        share = 1 / ((count if batch_denominator else max(1, len(ordinary))) * len(seeds))
        total += sum(float(values[j] - values[weakest]) for j in active) * share
        expected[row, active] = share
        if not detach:
            expected[row, weakest] = -len(active) * share
    assert loss["loss"].item() == pytest.approx(total)
    torch.testing.assert_close(sims.grad, expected)
    # What that means: the positive is left alone, and a row's gradients sum to zero.
    assert sims.grad is not None
    assert (sims.grad.diagonal() == 0).all()
    if not detach:
        torch.testing.assert_close(sims.grad.sum(1), torch.zeros(count, dtype=torch.float64))


def test_gradients_are_numerically_right_away_from_kinks() -> None:
    seeds, hard = hard_mask(2, 3, 1)
    images, texts = unit(12, 5, 0).requires_grad_(), unit(12, 5, 1).requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    ids = torch.arange(12)
    for config in (PAPER, MarginConfig(directions="both", detach_scale=False)):
        sims = (images @ texts.T).detach()
        gaps = torch.cat([(side[seeds] - side[seeds][hard][:, None]).flatten() for side in (sims, sims.T)])
        assert gaps[gaps != 0].abs().min() > 1e-4  # no kink within the step
        assert torch.autograd.gradcheck(
            lambda i, t, s, config=config: hard_negative_margin_loss(i, t, hard, seeds, ids, config, s)["loss"],
            (images, texts, scale),
            eps=1e-7,
            atol=1e-5,
        )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(-0.3, 0.3))
def test_it_is_zero_exactly_where_no_negative_is_closer_than_the_weakest_hard_pair(seed: int, raised: float) -> None:
    seeds, hard = hard_mask(1, 3, 1)
    generator = torch.Generator().manual_seed(seed)
    sims = torch.rand(6, 6, generator=generator, dtype=torch.float64)
    rows = torch.arange(3)
    others = sims.clone()
    others[rows, rows], others[rows, rows + 3] = -1, -1
    sims[rows, rows + 3] = others[:3].amax(1) + raised  # the hard pair, just above or below the nearest negative
    loss = hard_negative_margin_loss(sims, torch.eye(6, dtype=torch.float64), hard, seeds, torch.arange(6), COSINE)[
        "loss"
    ]
    assert (loss == 0) == (sims[rows, rows + 3] >= others[:3].amax(1)).all()


def test_equal_similarities_cost_nothing_and_push_nothing() -> None:
    sims = torch.full((4, 4), 0.5, requires_grad=True)
    loss = hard_negative_margin_loss(sims, torch.eye(4), HARD, SEEDS, torch.arange(4), COSINE)
    loss["loss"].backward()
    assert loss["loss"].item() == 0
    assert loss["active"].item() == 0
    assert not sims.grad.any()


def test_copies_of_the_seed_and_of_its_hard_pairs_are_no_ordinary_negatives() -> None:
    images, texts = of_sims(SIMS)
    # Pair 1 is a copy of seed 0: seed 0's only ordinary negative is 3 (0.1), seed 1's are 2 (0.6).
    terms = hard_negative_margin_loss(images, texts, HARD, SEEDS, torch.tensor([7, 7, 8, 9]), COSINE)
    assert terms["loss"].item() == pytest.approx((0.0 + 0.4) / 2)
    # Pair 1 is a copy of seed 0's partner.
    terms = hard_negative_margin_loss(images, texts, HARD, SEEDS, torch.tensor([7, 8, 8, 9]), COSINE)
    assert terms["loss"].item() == pytest.approx((0.0 + 0.5) / 2)
    # A partner that is a copy of its seed says nothing about the margin.
    terms = hard_negative_margin_loss(images, texts, HARD, SEEDS, torch.tensor([7, 8, 7, 9]), COSINE)
    assert terms["loss"].item() == pytest.approx((0.0 + 0.9 / 2) / 2)
    assert terms["active"].item() == pytest.approx(1.0)
    everything = hard_negative_margin_loss(images, texts, HARD, SEEDS, torch.zeros(4, dtype=torch.long), COSINE)
    assert everything["loss"].item() == 0
    assert everything["active"].item() == 0


@pytest.mark.parametrize("detached", [True, False])
def test_the_scale_learns_from_it_only_if_asked_to(detached: bool) -> None:
    images, texts = unit(8, 6, 0).requires_grad_(), unit(8, 6, 1)
    seeds, hard = hard_mask(1, 4, 1)
    scale = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    config = MarginConfig(detach_scale=detached)
    loss = hard_negative_margin_loss(images, texts, hard, seeds, torch.arange(8), config, scale)["loss"]
    loss.backward()
    assert images.grad is not None
    if detached:
        assert scale.grad is None
    else:  # the mean hinge on cosines: the loss would only ever lower the scale
        assert scale.grad.item() == pytest.approx(loss.item() / 20)


def test_gamma_zero_is_the_contrastive_loss_bit_for_bit() -> None:
    seeds, hard = hard_mask(1, 8, 1)
    grads = []
    for with_margin in (True, False):
        images, texts = (unit(16, 6, seed).float().requires_grad_() for seed in (0, 1))
        scale = torch.tensor(14.0, requires_grad=True)
        loss = contrastive_loss(images, texts, scale)["loss"]
        if with_margin:
            margin = HardNegativeMarginLoss(RELEASED)
            loss = loss + margin(images, texts, hard, seeds, torch.arange(16), scale)["weighted"]
        loss.backward()
        grads.append((loss, images.grad, texts.grad, scale.grad))
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_half_precision_is_computed_in_single() -> None:
    images, texts = unit(16, 32, 0).bfloat16(), unit(16, 32, 1).bfloat16()
    seeds, hard = hard_mask(1, 8, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = hard_negative_margin_loss(images, texts, hard, seeds, torch.arange(16), COSINE)
    exact = hard_negative_margin_loss(images.float(), texts.float(), hard, seeds, torch.arange(16), COSINE)
    assert terms["loss"].dtype == torch.float32
    assert torch.equal(terms["loss"], exact["loss"])


def test_the_mask_follows_blocks() -> None:
    seeds, hard = hard_mask(2, 2, 2)
    assert seeds.tolist() == [0, 1, 6, 7]
    assert [row.nonzero().flatten().tolist() for row in hard] == [[2, 3], [4, 5], [8, 9], [10, 11]]
    with pytest.raises(ConfigError, match="p=0"):
        hard_mask(1, 4, 0)


@pytest.mark.parametrize("p", [1, 3])
def test_random_partners_ring_the_alarm_and_mined_ones_do_not(p: int) -> None:
    seeds, hard = hard_mask(1, 32, p)
    count = hard.shape[1]
    generator = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(20):
        images, texts = (torch.randn(count, 16, generator=generator) for _ in range(2))
        terms = hard_negative_margin_loss(images, texts, hard, seeds, torch.arange(count), COSINE)
        shares.append(terms["active"])
    assert torch.stack(shares).mean().item() == pytest.approx(p / (1 + p), abs=0.03)
    alarm = MarginAlarm(hard_per_seed=p)
    for share in shares[:9]:
        alarm.update(share)
    with pytest.raises(DataError, match="does not belong to this data"):
        alarm.update(shares[9])
    quiet = MarginAlarm(hard_per_seed=p)
    for _ in range(60):
        quiet.update(0.079)
    assert quiet.steps == 50


def test_the_alarm_warns_once_and_stops_watching() -> None:
    alarm = MarginAlarm()
    for _ in range(9):
        alarm.update(0.4)
    with pytest.warns(UserWarning, match="0.40 of the ordinary negatives"):
        alarm.update(0.4)
    for _ in range(40):
        alarm.update(0.4)  # warnings are errors here: a second one would fail
    assert not alarm.watching
    alarm.update(1.0)
    deaf = MarginAlarm(stop=None)
    for value in [float("nan"), *[0.9] * 9]:
        deaf.update(value)
    with pytest.warns(UserWarning, match="mined from this data"):
        deaf.update(0.9)
    assert deaf.mean == pytest.approx(0.9)
    for bad in ({"warn": 0.0}, {"warn": 0.5, "stop": 0.4}, {"window": 0}, {"hard_per_seed": 0}):
        with pytest.raises(ConfigError):
            MarginAlarm(**bad)


def test_what_does_not_fit_is_refused() -> None:
    images, texts = of_sims(SIMS)
    ids = torch.arange(4)
    with pytest.raises(ConfigError, match="no logit_scale"):
        hard_negative_margin_loss(images, texts, HARD, SEEDS, ids)
    with pytest.raises(ShapeError, match="one text per picture"):
        hard_negative_margin_loss(images, texts[:3], HARD, SEEDS, ids, COSINE)
    for hard, seeds, names in ((HARD[:, :3], SEEDS, ids), (HARD, SEEDS[:1], ids), (HARD, SEEDS, ids[:3])):
        with pytest.raises(ShapeError, match="hard_mask"):
            hard_negative_margin_loss(images, texts, hard, seeds, names, COSINE)
    with pytest.raises(ShapeError, match=r"torch\.bool"):
        hard_negative_margin_loss(images, texts, HARD.int(), SEEDS, ids, COSINE)
    with pytest.raises(DataError, match="1 of 2 seeds have no hard pair in the batch, the first is seed 1"):
        hard_negative_margin_loss(images, texts, HARD & (SEEDS == 0)[:, None], SEEDS, ids, COSINE)
    for bad in ({"gamma": -1.0}, {"gamma": float("nan")}, {"sim": "dot"}, {"directions": "t2i"}, {"denom": "all"}):
        with pytest.raises(ConfigError):
            MarginConfig(**bad)
    assert MarginConfig.from_dict(PAPER.to_dict()) == PAPER
