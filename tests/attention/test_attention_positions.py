"""Rotary positions: the formula, growing tables, randomised positions, YaRN."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from huaben.attention.positions import RandomizedRope, Rope, Yarn
from huaben.errors import ConfigError, ShapeError


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_rope_is_the_rotation_of_each_pair() -> None:
    states = torch.randn(1, 2, 3, 8, dtype=torch.float64)
    turned = Rope(8).rotate(states, torch.tensor([0, 5, 70]))
    torch.testing.assert_close(turned[:, :, 0], states[:, :, 0], rtol=0, atol=0)
    for row, position in ((1, 5), (2, 70)):
        for pair in range(4):
            angle = position * 10000 ** (-2 * pair / 8)
            a, b = states[:, :, row, pair], states[:, :, row, pair + 4]
            torch.testing.assert_close(turned[:, :, row, pair], a * math.cos(angle) - b * math.sin(angle))
            torch.testing.assert_close(turned[:, :, row, pair + 4], b * math.cos(angle) + a * math.sin(angle))


@given(st.integers(0, 5000))
def test_scores_depend_on_the_difference_alone_at_any_length(shift: int) -> None:
    q, k = torch.randn(2, 1, 1, 6, 16, dtype=torch.float64).unbind()
    rope, positions = Rope(16), torch.arange(6)
    here = rope.rotate(q, positions) @ rope.rotate(k, positions).mT
    there = rope.rotate(q, positions + shift) @ rope.rotate(k, positions + shift).mT
    torch.testing.assert_close(here, there)


def test_a_grown_table_keeps_its_first_rows_and_rows_may_differ() -> None:
    rope, states = Rope(8), torch.randn(2, 1, 3, 8)
    positions = torch.tensor([[0, 1, 2], [7, 8, 9]])
    before = rope.rotate(states, positions)
    rope.rotate(states, torch.tensor([4000, 9000, 3]))
    torch.testing.assert_close(rope.rotate(states, positions), before, rtol=0, atol=0)
    torch.testing.assert_close(before[1:], rope.rotate(states[1:], positions[1]), rtol=0, atol=0)
    assert rope.rotate(states.bfloat16(), positions).dtype == torch.bfloat16
    assert rope.state_dict() == {}


def test_randomised_positions_are_a_sorted_subset_shared_until_drawn_anew() -> None:
    rope = RandomizedRope(8, max_position=100, generator=torch.Generator().manual_seed(3))
    placed = rope.place(torch.arange(20))
    assert bool((placed.diff() > 0).all())
    assert 0 <= int(placed.min()) <= int(placed.max()) < 100
    assert rope.place(torch.arange(20)).tolist() == placed.tolist()
    rope.resample()
    assert rope.place(torch.arange(20)).tolist() != placed.tolist()
    again = RandomizedRope(8, max_position=100, generator=torch.Generator().manual_seed(3))
    assert again.place(torch.arange(20)).tolist() == placed.tolist()
    assert rope.place(torch.arange(100)).tolist() == list(range(100))
    with pytest.raises(ConfigError, match="101 training positions"):
        rope.place(torch.arange(101))


def test_randomised_positions_are_fixed_in_evaluation() -> None:
    rope = RandomizedRope(8, max_position=16, stride=3).eval()
    assert rope.place(torch.arange(50)).tolist() == list(range(0, 150, 3))


def test_yarn_blends_frequencies_and_sharpens() -> None:
    plain, yarn = Rope(64), Yarn(64, factor=8.0, train_length=512)
    ratio = plain.frequencies() / yarn.frequencies()
    assert float(ratio[0]) == 1
    assert float(ratio[-1]) == pytest.approx(8)
    assert bool((ratio.diff() >= -1e-9).all())
    turns = 512 * plain.frequencies() / (2 * math.pi)
    assert bool((ratio[turns < 0.5] > 7.99).all())
    assert bool((ratio[turns > 40] < 1.01).all())
    states = torch.randn(1, 1, 1, 64)
    gain = yarn.rotate(states, torch.tensor([0])) / states
    torch.testing.assert_close(gain, torch.full_like(gain, 1 + 0.1 * math.log(8)))


def test_yarn_of_factor_one_is_rope() -> None:
    states = torch.randn(1, 2, 9, 16)
    positions = torch.arange(9)
    torch.testing.assert_close(
        Yarn(16, factor=1.0).rotate(states, positions), Rope(16).rotate(states, positions), rtol=0, atol=0
    )


@pytest.mark.parity
def test_yarn_frequencies_equal_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    module = pytest.importorskip("transformers.modeling_rope_utils")
    config = transformers.LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=4096,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 512,
        },
    )
    theirs, gain = module.ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    ours = Yarn(64, factor=8.0, train_length=512)
    torch.testing.assert_close(ours.frequencies().float(), theirs, rtol=1e-5, atol=1e-9)
    assert ours.gain == pytest.approx(gain)


def test_misfits_are_refused() -> None:
    rope = Rope(8)
    with pytest.raises(ConfigError, match="head_dim=7"):
        Rope(7)
    with pytest.raises(ShapeError, match="expected \\(B, H, T, 8\\)"):
        rope.rotate(torch.randn(1, 1, 2, 6), torch.arange(2))
    with pytest.raises(ShapeError, match="positions"):
        rope.rotate(torch.randn(3, 1, 2, 8), torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(ShapeError, match="position -1"):
        rope.rotate(torch.randn(1, 1, 2, 8), torch.tensor([-1, 0]))
    with pytest.raises(ConfigError, match="factor"):
        Yarn(8, factor=0.5)
