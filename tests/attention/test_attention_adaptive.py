"""Score adapters: sizes, initialisation, the released layout."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from huaben.attention.adaptive import ScoreAdapter, ScoreConv, ScoreMLP
from huaben.errors import CheckpointError, ConfigError, ShapeError


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("heads", "hidden", "counts"),
    [
        (12, 32, (1196, 812, 3500, 2348)),
        (16, 32, (1584, 1072, 4656, 3120)),
        (32, 32, (3136, 2112, 9280, 6208)),
        (8, 64, (1608, 1096, 4680, 3144)),
    ],
)
def test_parameter_counts_are_the_papers(heads: int, hidden: int, counts: tuple[int, ...]) -> None:
    made = (
        ScoreMLP(heads, hidden),
        ScoreMLP(heads, hidden, with_bias=False),
        ScoreConv(heads, hidden),
        ScoreConv(heads, hidden, with_bias=False),
    )
    assert tuple(sum(p.numel() for p in score.parameters()) for score in made) == counts


def official(score: ScoreAdapter) -> nn.Sequential:
    """The released code's module of the same sizes."""
    if score.kernel_size == 1:
        return nn.Sequential(
            nn.Linear(score.channels, score.hidden), nn.LeakyReLU(), nn.Linear(score.hidden, score.heads)
        )
    size, pad = (1, score.kernel_size), (0, score.kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(score.channels, score.hidden, size, padding=pad),
        nn.LeakyReLU(),
        nn.Conv2d(score.hidden, score.heads, size, padding=pad),
    )


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_an_official_state_loads_and_computes_the_same(kernel_size: int, with_bias: bool) -> None:
    score = ScoreConv(3, 7, kernel_size=kernel_size, with_bias=with_bias)
    theirs = official(score)
    state = {f"mlp2.{name}": value for name, value in theirs.state_dict().items()}
    score.load_official({**state, "other.weight": torch.ones(1)})
    z = torch.randn(2, score.channels, 5, 6)
    expected = theirs(z) if kernel_size > 1 else theirs(z.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(score(z), expected)
    back = score.official_state()
    assert {name: value.shape for name, value in back.items()} == {n: v.shape for n, v in state.items()}
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_a_state_of_another_scheme_is_refused_whole() -> None:
    score = ScoreConv(3, 7)
    before = score.weight1.clone()
    for other in (ScoreMLP(3, 7), ScoreConv(3, 7, with_bias=False), ScoreConv(3, 8), ScoreConv(4, 7)):
        with pytest.raises(CheckpointError, match="expected what fits"):
            score.load_official(other.official_state())
    with pytest.raises(CheckpointError, match="lacks"):
        score.load_official({"mlp.0.weight": before})
    assert torch.equal(score.weight1, before)


def test_initialisation_is_that_of_torch_or_zero() -> None:
    score = ScoreConv(16, 64, kernel_size=3)
    bound = 1 / math.sqrt(32 * 3)
    assert float(score.weight1.detach().abs().max()) <= bound
    assert float(score.weight1.detach().abs().max()) > 0.95 * bound
    assert float(score.weight2.detach().abs().max()) <= 1 / math.sqrt(64 * 3)
    zero = ScoreMLP(4, 8, init="zero")
    assert float(zero(torch.randn(1, 8, 3, 3)).detach().abs().max()) == 0
    assert float(zero.weight1.detach().abs().max()) > 0


def test_impossible_adapters_are_refused() -> None:
    with pytest.raises(ConfigError, match="kernel_size=2"):
        ScoreConv(4, kernel_size=2)
    with pytest.raises(ConfigError, match="mode='add'"):
        ScoreMLP(4, mode="add")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="init='one'"):
        ScoreMLP(4, init="one")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="hidden=0"):
        ScoreMLP(4, 0)
    with pytest.raises(ShapeError, match="8 channels"):
        ScoreMLP(4)(torch.randn(1, 4, 2, 2))
