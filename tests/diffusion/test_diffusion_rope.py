"""Rotary positions of picture grids: the official rule, diffusers' variant, the order of the axes."""

from __future__ import annotations

import math

import pytest
import torch

from huaben.attention.rope import grid_extent, grid_positions, point_positions, rotary_at, rotary_table
from huaben.errors import ConfigError, ShapeError

STANDARD = [(64, 64), (80, 80), (64, 48), (48, 64), (72, 54), (54, 72), (80, 60), (60, 80), (80, 48), (48, 80)]
BUCKETS = sorted(
    {
        size
        for i in range(17)
        for size in (
            (max(512, 1024 - 64 * i) // 16, (1024 + 64 * i) // 16),
            ((1024 + 64 * i) // 16, max(512, 1024 - 64 * i) // 16),
        )
    }
)
ODD = [(1, 1), (1, 7), (7, 1), (3, 5), (8, 8), (5, 31), (33, 2)]


def closed_form(h: int, w: int, head_dim: int, base: int = 32) -> torch.Tensor:
    """Angles in double precision, written with loops: ``(h * w, head_dim)``."""
    if h > w:
        height, width = base, round(base / h * w)
    else:
        height, width = round(base / w * h), base
    top, left = round((base - height) / 2), round((base - width) / 2)
    rows = []
    for i in range(h):
        for j in range(w):
            row = []
            for position in (left + j * width / w, top + i * height / h):
                for m in range(head_dim // 4):
                    row += [position * 10000 ** (-2 * m / (head_dim / 2))] * 2
            rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def test_there_are_33_buckets():
    assert len(BUCKETS) == 33


@pytest.mark.parametrize("grid", [*STANDARD[:4], STANDARD[8], *BUCKETS[::6], *ODD], ids=str)
def test_official_table_equals_the_closed_form(grid):
    angles = closed_form(*grid, 16)
    cos, sin = rotary_table(*grid, 16)
    assert float((cos - angles.cos()).abs().max()) <= 2e-6
    assert float((sin - angles.sin()).abs().max()) <= 2e-6


@pytest.mark.parametrize("grid", [*STANDARD, *BUCKETS, *ODD], ids=str)
def test_positions_equal_the_rule(grid):
    h, w = grid
    top, left, height, width = grid_extent(h, w)
    assert max(height, width) == 32
    y, x = grid_positions(h, w)
    torch.testing.assert_close(y, torch.tensor([top + i * height / h for i in range(h)]), rtol=0, atol=2e-6)
    torch.testing.assert_close(x, torch.tensor([left + j * width / w for j in range(w)]), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("grid", "expected"),
    [((64, 64), (0, 0, 32, 32)), ((64, 48), (0, 4, 32, 24)), ((80, 48), (0, 6, 32, 19)), ((48, 80), (6, 0, 19, 32))],
)
def test_extent_matches_the_released_sizes(grid, expected):
    assert grid_extent(*grid) == expected


@pytest.mark.parametrize("grid", [(64, 64), (64, 48), (80, 48), (48, 80), (72, 54), (5, 7)], ids=str)
def test_diffusers_mode_equals_diffusers(grid):
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    pipeline = pytest.importorskip("diffusers.pipelines.hunyuandit.pipeline_hunyuandit")
    crop = pipeline.get_resize_crop_region_for_grid(grid, 32)
    expected = embeddings.get_2d_rotary_pos_embed(16, crop, grid, output_type="pt")
    for ours, theirs in zip(rotary_table(*grid, 16, mode="diffusers"), expected, strict=True):
        assert float((ours - theirs).abs().max()) <= 2e-6


def test_diffusers_mode_differs_where_the_picture_is_not_square():
    official, variant = rotary_table(80, 48, 88), rotary_table(80, 48, 88, mode="diffusers")
    assert float((official[0] - variant[0]).abs().max()) > 0.1
    torch.testing.assert_close(rotary_table(64, 64, 88)[0], rotary_table(64, 64, 88, mode="diffusers")[0])


def test_extended_mode_counts_tokens():
    y, x = grid_positions(3, 5, mode="extended")
    assert y.tolist() == [0, 1, 2]
    assert x.tolist() == [0, 1, 2, 3, 4]


def test_x_comes_before_y():
    cos, sin = rotary_table(1, 9, 16)
    assert torch.equal(cos[:, 8:], cos[:1, 8:].expand(9, 8))
    assert torch.equal(sin[:, 8:], sin[:1, 8:].expand(9, 8))
    assert not torch.equal(cos[:, :8], cos[:1, :8].expand(9, 8))
    cos, _ = rotary_table(9, 1, 16)
    assert torch.equal(cos[:, :8], cos[:1, :8].expand(9, 8))


def test_rotary_at_continues_the_table_between_tokens():
    y, x = grid_positions(6, 4)
    cos, sin = rotary_table(6, 4, 16)
    at = rotary_at(y[2], x[3], 16)
    torch.testing.assert_close(at[0], cos[2 * 4 + 3])
    torch.testing.assert_close(at[1], sin[2 * 4 + 3])
    between = rotary_at((y[2] + y[3]) / 2, x[3], 16)[1]
    assert torch.equal(between[:8], sin[2 * 4 + 3][:8])  # the column did not move
    assert not torch.equal(between[8:], sin[2 * 4 + 3][8:])
    assert rotary_at(torch.zeros(2, 5), torch.zeros(2, 5), 16)[0].shape == (2, 5, 16)


@pytest.mark.parametrize("grid", [(8, 8), (6, 4), (5, 9)], ids=str)
def test_point_positions_put_token_centres_on_the_grid(grid):
    h, w = grid
    y, x = grid_positions(h, w)
    centres = torch.tensor([[(i + 0.5) / h, (j + 0.5) / w] for i in range(h) for j in range(w)])
    expected = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).reshape(-1, 2)
    torch.testing.assert_close(point_positions(centres, h, w), expected, rtol=0, atol=1e-5)


def test_cached_table_made_while_sampling_serves_training():
    with torch.inference_mode():
        cos, sin = rotary_table(11, 3, 8)
    weight = torch.ones(33, 8, requires_grad=True)
    (weight * cos + weight * sin).sum().backward()
    assert math.isfinite(float(weight.grad.sum()))


def test_bad_requests_are_refused():
    with pytest.raises(ConfigError, match="mode='linear'"):
        grid_positions(4, 4, mode="linear")
    with pytest.raises(ConfigError, match="head_dim=6"):
        rotary_at(torch.zeros(1), torch.zeros(1), 6)
    with pytest.raises(ConfigError, match="0x4"):
        rotary_table(0, 4, 8)
    with pytest.raises(ShapeError, match="equal shapes"):
        rotary_at(torch.zeros(2), torch.zeros(3), 8)
