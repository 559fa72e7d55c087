from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from huaben.clip.loss import contrastive_loss
from huaben.errors import ShapeError


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
