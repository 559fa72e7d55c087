"""Two-dimensional rotary position embedding for image tokens.

Half of each head's channels turns with the column ``x``, the other half with the row ``y``, in this order.
Neighbouring channels form the pairs; all angles are fp32.

``mode`` names the rule that places an ``h`` by ``w`` grid of tokens:

- ``"official"``: centralized interpolation. The grid is scaled to fit a square of side ``base`` and centred in it; the
  end is excluded, so token ``i`` of ``h`` sits at ``top + i * extent / h``.
- ``"diffusers"``: as above, but the positions are an inclusive linspace to ``(top + extent) * (h - 1) / h``. Equal to
  the official rule only where ``top`` is 0, that is along the longer side.
- ``"extended"``: token ``i`` sits at ``i``.

Source: Li et al. 2024 (arXiv:2405.08748), section 2.1, equations 1 and 2.
Differs: the paper scales both axes equally; the released model rounds the extent and the start to integers.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError

RopeMode = Literal["official", "diffusers", "extended"]
Rope = tuple[Tensor, Tensor]

ROPE_MODES: tuple[RopeMode, ...] = ("official", "diffusers", "extended")
THETA = 10000.0


def grid_extent(h: int, w: int, *, base: int = 32, mode: RopeMode = "official") -> tuple[int, int, int, int]:
    """Return ``(top, left, height, width)`` of the area that an ``h`` by ``w`` grid of tokens covers.

    Raises:
        ConfigError: for an unknown ``mode``, an empty grid or a ``base`` below 1.
    """
    if mode not in ROPE_MODES:
        raise ConfigError(f"mode={mode!r} is none of {', '.join(map(repr, ROPE_MODES))}", hint="use 'official'")
    if h < 1 or w < 1 or base < 1:
        raise ConfigError(f"grid {h}x{w} with base {base} has no tokens", hint="every side and the base are at least 1")
    if mode == "extended":
        return 0, 0, h, w
    height, width = (base, round(base / h * w)) if h > w else (round(base / w * h), base)
    return round((base - height) / 2), round((base - width) / 2), height, width


def grid_positions(h: int, w: int, *, base: int = 32, mode: RopeMode = "official") -> Rope:
    """Return the rotary position of every row, ``(h,)``, and of every column, ``(w,)``, as fp32."""
    top, left, height, width = grid_extent(h, w, base=base, mode=mode)
    return _axis(top, height, h, mode), _axis(left, width, w, mode)


def _axis(start: int, extent: int, count: int, mode: RopeMode) -> Tensor:
    if mode == "diffusers":
        return torch.linspace(start, (start + extent) * (count - 1) / count, count, dtype=torch.float64).float()
    return (start + torch.arange(count, dtype=torch.float64) * (extent / count)).float()


def point_positions(points: Tensor, h: int, w: int, *, base: int = 32, mode: RopeMode = "official") -> Tensor:
    """Map points of the picture to rotary positions, so that the centre of a token gets that token's position.

    Args:
        points: ``(..., 2)`` as ``(y, x)`` in [0, 1] from the top left.
        h, w: the token grid of the picture.
        base, mode: as for the grid's own table.

    Returns:
        ``(..., 2)`` fractional ``(y, x)`` positions for :func:`rotary_at`.
    """
    top, left, height, width = grid_extent(h, w, base=base, mode=mode)
    scale = points.new_tensor([height, width])
    start = points.new_tensor([top - 0.5 * height / h, left - 0.5 * width / w])
    return start + points * scale


def rotary_at(y: Tensor, x: Tensor, head_dim: int) -> Rope:
    """Return the cosine and sine tables, ``(..., head_dim)`` each, at fractional positions ``y`` and ``x`` ``(...)``.

    Raises:
        ConfigError: if ``head_dim`` is not a positive multiple of 4.
        ShapeError: if ``y`` and ``x`` differ in shape.
    """
    if head_dim < 4 or head_dim % 4:
        raise ConfigError(f"head_dim={head_dim} is not a positive multiple of 4", hint="two axes turn channel pairs")
    if y.shape != x.shape:
        raise ShapeError(f"y is {tuple(y.shape)} and x is {tuple(x.shape)}, expected equal shapes")
    exponents = torch.arange(0, head_dim // 2, 2, dtype=torch.float64, device=y.device) / (head_dim // 2)
    omega = (1.0 / THETA**exponents).float()
    angles = torch.cat([x.float()[..., None] * omega, y.float()[..., None] * omega], dim=-1)
    angles = angles.repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()


def rotary_table(
    h: int,
    w: int,
    head_dim: int,
    *,
    base: int = 32,
    mode: RopeMode = "official",
    device: torch.device | str = "cpu",
) -> Rope:
    """Return the cosine and sine tables, ``(h * w, head_dim)`` each, of a whole grid, rows first; cached."""
    return _cached_table(h, w, head_dim, base, mode, torch.device(device))


@functools.lru_cache(maxsize=64)
def _cached_table(h: int, w: int, head_dim: int, base: int, mode: RopeMode, device: torch.device) -> Rope:
    # A table first asked for while sampling must stay usable in training, so it is never an inference tensor.
    with torch.inference_mode(False), torch.no_grad():
        y, x = grid_positions(h, w, base=base, mode=mode)
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        cos, sin = rotary_at(grid_y.reshape(-1), grid_x.reshape(-1), head_dim)
        return cos.to(device), sin.to(device)


def as_rotation(rope: Rope) -> Tensor:
    """Return the tables as unit complex numbers, ``(..., head_dim / 2)``: one multiplication then turns every pair."""
    cos, sin = rope
    return torch.complex(cos[..., ::2].float(), sin[..., ::2].float())


def rotate(states: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring channels of ``states`` ``(..., head_dim)`` by ``rotation``, which broadcasts; fp32 inside."""
    pairs = torch.view_as_complex(states.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(states.dtype)


def apply_rotary(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn ``states`` ``(B, L, H, head_dim)`` by tables ``(L, head_dim)`` or ``(B, L, head_dim)``.

    Raises:
        ShapeError: if the tables do not fit.
    """
    if cos.shape != sin.shape or cos.shape[-2:] != (states.shape[1], states.shape[-1]):
        raise ShapeError(
            f"rotary tables {tuple(cos.shape)} and {tuple(sin.shape)} do not fit states {tuple(states.shape)}",
            hint="tables are (L, head_dim) or (B, L, head_dim)",
        )
    return rotate(states, as_rotation((cos, sin)).unsqueeze(-2))
