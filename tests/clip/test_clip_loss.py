from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import huaben.clip
from huaben.clip.loss import contrastive_loss, nt_xent_loss, siglip_loss
from huaben.errors import ConfigError, ShapeError


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_swapping_pictures_and_texts_changes_nothing_but_the_names() -> None:
    a, b, scale = unit(6, 4, 0), unit(6, 4, 1), torch.tensor(10.0)
    one, two = contrastive_loss(a, b, scale), contrastive_loss(b, a, scale)
    torch.testing.assert_close(one["loss"], two["loss"])
    torch.testing.assert_close(one["image_to_text"], two["text_to_image"])
    assert one["image_to_text"] != one["text_to_image"]


def test_known_values() -> None:
    same = torch.eye(3)
    scale = torch.tensor(2.0)
    terms = contrastive_loss(same, same, scale)
    expected = math.log(math.exp(2) + 2) - 2
    assert terms["loss"].item() == pytest.approx(expected)
    assert terms["accuracy"].item() == 1.0
    equal = torch.ones(4, 1)
    assert contrastive_loss(equal, equal, scale)["loss"].item() == pytest.approx(math.log(4))


def test_the_gradient_pulls_pairs_together() -> None:
    a, b = unit(6, 4, 0).requires_grad_(), unit(6, 4, 1)
    terms = contrastive_loss(a, b, torch.tensor(5.0))
    terms["loss"].backward()
    moved = F.normalize(a - 0.5 * a.grad, dim=-1)
    assert ((moved * b).sum(-1) > (a * b).sum(-1)).float().mean() > 0.8
    assert not terms["image_to_text"].requires_grad


def test_batches_that_differ_are_refused() -> None:
    with pytest.raises(ShapeError, match="one text per picture"):
        contrastive_loss(unit(3, 4, 0), unit(4, 4, 1), torch.tensor(1.0))


def double(rows: int, width: int, seed: int) -> torch.Tensor:
    return unit(rows, width, seed).double()


def test_pairs_of_equal_id_are_no_negatives_of_each_other() -> None:
    a, b, scale = double(5, 4, 0), double(5, 4, 1), torch.tensor(6.0)
    ids = torch.tensor([4, 9, 4, 2, 1])
    terms = contrastive_loss(a, b, scale, ids=ids)
    logits = (6 * a @ b.T).tolist()
    by_hand = 0.0
    for i in range(5):
        others = [j for j in range(5) if j == i or ids[j] != ids[i]]
        for row in ([logits[i][j] for j in others], [logits[j][i] for j in others]):
            by_hand += math.log(sum(math.exp(value) for value in row)) - logits[i][i]
    assert terms["loss"].item() == pytest.approx(by_hand / 10)
    assert torch.equal(
        contrastive_loss(a, b, scale, ids=torch.arange(5))["loss"], contrastive_loss(a, b, scale)["loss"]
    )
    alone = contrastive_loss(a, b, scale, ids=torch.zeros(5, dtype=torch.long))
    assert alone["loss"].item() == 0
    assert alone["accuracy"].item() == 1


def test_the_mean_over_blocks_of_rows_is_the_whole_loss() -> None:
    a, b, scale, bias = double(12, 4, 0), double(12, 4, 1), torch.tensor(6.0), torch.tensor(-3.0)
    ids = torch.tensor([0, 1, 2, 3, 4, 5, 6, 0, 8, 9, 9, 11])
    blocks = [slice(0, 4), slice(4, 8), slice(8, 12)]
    for loss in (
        lambda rows: contrastive_loss(a, b, scale, ids=ids, rows=rows),
        lambda rows: siglip_loss(a, b, scale, bias, ids=ids, rows=rows),
        lambda rows: nt_xent_loss(a, b, ids=ids, rows=rows),
    ):
        whole, parts = loss(None), [loss(rows) for rows in blocks]
        for name in whole:
            if name != "negative_logit":  # blocks have unequal numbers of negatives
                torch.testing.assert_close(torch.stack([part[name] for part in parts]).mean(), whole[name])


def test_siglip_asks_each_combination_alone() -> None:
    a, b, scale, bias = double(4, 3, 0), double(4, 3, 1), torch.tensor(5.0), torch.tensor(-2.0)
    terms = siglip_loss(a, b, scale, bias)
    logits = (5 * a @ b.T - 2).tolist()
    by_hand = sum(math.log1p(math.exp(logits[i][j] * (-1 if i == j else 1))) for i in range(4) for j in range(4))
    assert terms["loss"].item() == pytest.approx(by_hand / 4)
    assert terms["positive_logit"].item() == pytest.approx(sum(logits[i][i] for i in range(4)) / 4)
    others = [logits[i][j] for i in range(4) for j in range(4) if i != j]
    assert terms["negative_logit"].item() == pytest.approx(sum(others) / 12)
    twins = siglip_loss(a, b, scale, bias, ids=torch.tensor([0, 1, 0, 3]))
    left_out = sum(math.log1p(math.exp(logits[i][j])) for i, j in ((0, 2), (2, 0)))
    assert twins["loss"].item() == pytest.approx((by_hand - left_out) / 4)


def test_nt_xent_is_the_formula() -> None:
    a, b = double(3, 4, 0) * 2, double(3, 4, 1) / 3  # lengths do not matter
    views = F.normalize(torch.cat([a, b]), dim=-1)
    sims = (views @ views.T / 0.5).exp().tolist()
    by_hand = [-math.log(sims[i][(i + 3) % 6] / sum(sims[i][j] for j in range(6) if j != i)) for i in range(6)]
    assert nt_xent_loss(a, b, 0.5)["loss"].item() == pytest.approx(sum(by_hand) / 6)
    twins = nt_xent_loss(a, b, 0.5, ids=torch.tensor([0, 1, 0]))["loss"].item()
    by_hand = []
    for i in range(6):
        same = {0, 2, 3, 5} if i in (0, 2, 3, 5) else set()
        pool = [j for j in range(6) if j != i and (j not in same or j == (i + 3) % 6)]
        by_hand.append(-math.log(sims[i][(i + 3) % 6] / sum(sims[i][j] for j in pool)))
    assert twins == pytest.approx(sum(by_hand) / 6)


def test_gradients_are_numerically_right() -> None:
    a, b = double(5, 3, 0).requires_grad_(), double(5, 3, 1).requires_grad_()
    scale, bias = torch.tensor(4.0, dtype=torch.double, requires_grad=True), torch.tensor(-1.0, dtype=torch.double)
    ids = torch.tensor([0, 1, 2, 0, 4])
    assert torch.autograd.gradcheck(lambda a, b, s: contrastive_loss(a, b, s, ids=ids)["loss"], (a, b, scale))
    assert torch.autograd.gradcheck(lambda a, b, s: siglip_loss(a, b, s, bias, ids=ids)["loss"], (a, b, scale))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent_loss(a, b, ids=ids)["loss"], (a, b))


def test_settings_that_do_not_fit_are_refused() -> None:
    a, scale = unit(4, 3, 0), torch.tensor(1.0)
    with pytest.raises(ShapeError, match="expected at least one"):
        contrastive_loss(a, a, scale, rows=slice(4, 8))
    with pytest.raises(ShapeError, match="one id per pair"):
        contrastive_loss(a, a, scale, ids=torch.arange(3))
    with pytest.raises(ConfigError, match="temperature"):
        nt_xent_loss(a, a, 0.0)
    with pytest.raises(ShapeError):
        siglip_loss(a, a[:3], scale, scale)


def test_the_rooms_names_are_there() -> None:
    for name in huaben.clip.__all__:
        assert getattr(huaben.clip, name) is not None
        assert name in dir(huaben.clip)
    assert callable(huaben.clip.preprocess)  # not the module of that name
    with pytest.raises(AttributeError, match="no_such"):
        _ = huaben.clip.no_such
