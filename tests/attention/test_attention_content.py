"""Content-dependent biases against sums written out."""

from __future__ import annotations

import math

import pytest
import torch

from huaben.attention.content import CoPE, TransformerXL
from huaben.errors import ConfigError, ShapeError


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_cope_by_hand() -> None:
    bias = CoPE(2, 4, positions=3).double()
    torch.nn.init.normal_(bias.embedding)
    q, k = torch.randn(2, 1, 2, 6, 4, dtype=torch.float64).unbind()
    i = torch.arange(6)
    visible = (i <= i[:, None])[None, None]
    scores, added = bias.scores(q, k, i, i, scale=0.5, visible=visible)
    torch.testing.assert_close(scores, 0.5 * q @ k.mT)
    for head in range(2):
        for row in range(6):
            for key in range(row + 1):
                gates = [torch.sigmoid(scores[0, head, row, j]).item() for j in range(key, row + 1)]
                distance = min(sum(gates), 2.0)
                low, high = math.floor(distance), math.ceil(distance)
                at = q[0, head, row] @ bias.embedding[0]
                expected = at[low] * (1 - (distance - low)) + at[high] * (distance - low)
                torch.testing.assert_close(added[0, head, row, key], expected)


def test_cope_starts_as_plain_attention() -> None:
    bias = CoPE(2, 4)
    q, k = torch.randn(2, 1, 2, 6, 4).unbind()
    assert not bool(bias.scores(q, k, torch.arange(6), torch.arange(6), scale=1.0)[1].any())


def test_transformer_xl_by_hand() -> None:
    bias = TransformerXL(2, 4).double()
    q, k = torch.randn(1, 2, 3, 4, dtype=torch.float64), torch.randn(1, 2, 5, 4, dtype=torch.float64)
    i, j = torch.arange(2, 5), torch.arange(5)
    scores, added = bias.scores(q, k, i, j, scale=0.5)
    for head in range(2):
        for row in range(3):
            for key in range(5):
                delta = float(i[row] - j[key])
                angles = [delta / 10000 ** (2 * m / 8) for m in range(4)]
                wave = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)], dtype=torch.float64)
                projected = (bias.distance.weight @ wave).view(2, 4)[head]
                content = (q[0, head, row] + bias.u[head]) @ k[0, head, key] * 0.5
                torch.testing.assert_close(scores[0, head, row, key], content)
                position = (q[0, head, row] + bias.w[head]) @ projected * 0.5
                torch.testing.assert_close(added[0, head, row, key], position)


def test_misfits_are_refused() -> None:
    with pytest.raises(ConfigError, match="positions=1"):
        CoPE(2, 4, positions=1)
    with pytest.raises(ConfigError, match="even"):
        TransformerXL(1, 3)
    with pytest.raises(ShapeError, match="do not fit"):
        CoPE(2, 4).scores(torch.randn(1, 3, 2, 4), torch.randn(1, 3, 2, 4), torch.arange(2), torch.arange(2), scale=1)
