"""The Hunyuan-DiT block, its long skip, and the final layer.

Letters: B batch, N image tokens, S context tokens, D width, H heads, d head width.

Source: Li et al. 2024 (arXiv:2405.08748), section 2.1.
Differs: the released model conditions a block by one additive shift before self-attention; it has no scale and no gate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..attention.layers import MLP, LayerNorm
from ..attention.multihead import CrossAttention, SelfAttention


class DiTBlock(nn.Module):
    """Long skip (second half only), shifted self-attention, cross-attention, perceptron."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, context_dim: int, *, has_skip: bool) -> None:
        super().__init__()
        self.has_skip = has_skip
        if has_skip:
            self.skip_norm = LayerNorm(2 * dim)
            self.skip_linear = nn.Linear(2 * dim, dim)
        self.self_norm = LayerNorm(dim)
        self.self_attention = SelfAttention(dim, num_heads)
        self.cross_norm = LayerNorm(dim)
        self.cross_attention = CrossAttention(dim, num_heads, context_dim)
        self.mlp_norm = LayerNorm(dim)
        self.mlp = MLP(dim, mlp_dim, activation="gelu_tanh")

    def forward(
        self, hidden: Tensor, shift: Tensor, keys: Tensor, values: Tensor, rotation: Tensor, skip: Tensor | None = None
    ) -> Tensor:
        """Return ``(B, N, D)``.

        Args:
            hidden: ``(B, N, D)``.
            shift: ``(B, D)``, this block's conditioning.
            keys, values: ``(B, H, S, d)`` from ``cross_attention.keys_values``.
            rotation: complex ``(N, 1, d / 2)``.
            skip: ``(B, N, D)``, the output of the mirrored block in the first half.
        """
        if skip is not None:
            # Normalising the concatenation is the paper's cure for exploding losses.
            hidden = self.skip_linear(self.skip_norm(torch.cat([hidden, skip], dim=-1)))
        hidden = hidden + self.self_attention(self.self_norm(hidden) + shift[:, None], rotation)
        hidden = hidden + self.cross_attention(self.cross_norm(hidden), keys, values, rotation)
        return hidden + self.mlp(self.mlp_norm(hidden))


class FinalLayer(nn.Module):
    """Scaled and shifted normalisation, then a linear map to patches."""

    def __init__(self, dim: int, patch_dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(dim, affine=False)
        self.modulation = nn.Linear(dim, 2 * dim)  # rows: shift, then scale
        self.linear = nn.Linear(dim, patch_dim)

    def forward(self, hidden: Tensor, modulation: Tensor) -> Tensor:
        """Return ``(B, N, patch_dim)``; ``modulation`` ``(B, 2 D)`` is what ``self.modulation`` computed."""
        shift, scale = modulation[:, None].chunk(2, dim=-1)
        return self.linear(torch.addcmul(shift, self.norm(hidden), 1 + scale))


def patchify(latents: Tensor, patch_size: int) -> Tensor:
    """Cut ``(B, C, h, w)`` into ``(B, N, C * p * p)``, tokens rows first, values (channel, row, column)."""
    batch, channels, height, width = latents.shape
    p = patch_size
    cut = latents.reshape(batch, channels, height // p, p, width // p, p)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * p * p)


def unpatchify(tokens: Tensor, height: int, width: int, patch_size: int) -> Tensor:
    """Join ``(B, N, p * p * C)``, values (row, column, channel), into ``(B, C, height, width)``."""
    p = patch_size
    grid = tokens.reshape(tokens.shape[0], height // p, width // p, p, p, -1)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(tokens.shape[0], -1, height, width)
