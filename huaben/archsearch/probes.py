"""Small probe networks for Task2Vec where no trained one is at hand: convolutional for pictures, transformer for text.

Their weights are random and seeded. A random probe still separates tasks by the statistics of their inputs and the
form of their outputs, but it is not the ImageNet network of the Task2Vec paper; results carry its label.

Shape letters: B batch, C channels, h w map size, L tokens, D width, H heads.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError
from ..rng import torch_stream


class ConvProbe(nn.Module):
    """Residual stages, each halving the resolution: float (B, C, H, W) to features (B, D, h, w).

    Args:
        channels: of the input.
        widths: of the stages.
        seed: of the random weights.
    """

    def __init__(self, *, channels: int = 3, widths: tuple[int, ...] = (32, 64, 128), seed: int = 0) -> None:
        super().__init__()
        if channels < 1 or not widths or any(width < 8 or width % 8 for width in widths):
            raise ConfigError(
                f"channels={channels}, widths={widths}: widths are multiples of 8", hint="use (32, 64, 128)"
            )
        self.label = f"random convolutional probe {widths}, seed {seed}"
        self.channels = channels
        ends = (channels, *widths)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1, bias=False) for a, b in zip(ends, widths, strict=False))
        self.norm1 = nn.ModuleList(nn.GroupNorm(8, width) for width in widths)
        self.block = nn.ModuleList(nn.Conv2d(width, width, 3, 1, 1, bias=False) for width in widths)
        self.norm2 = nn.ModuleList(nn.GroupNorm(8, width) for width in widths)
        _randomise(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ShapeError(f"pictures are {tuple(x.shape)}, the probe expects (B, {self.channels}, H, W)")
        for down, norm1, block, norm2 in zip(self.down, self.norm1, self.block, self.norm2, strict=True):
            x = F.relu(norm1(down(x)))
            x = x + F.relu(norm2(block(x)))
        return x


class TransformerProbe(nn.Module):
    """A bidirectional transformer: int64 tokens (B, L) to features (B, L, D).

    Args:
        vocab_size: tokens are from 0 to this, exclusive.
        width, num_layers, num_heads: of the transformer.
        seed: of the random weights.
    """

    def __init__(
        self, *, vocab_size: int, width: int = 64, num_layers: int = 2, num_heads: int = 4, seed: int = 0
    ) -> None:
        super().__init__()
        if vocab_size < 1 or num_layers < 1 or num_heads < 1 or width % (2 * num_heads):
            raise ConfigError(f"width={width} is not a multiple of twice num_heads={num_heads}", hint="use 64 and 4")
        self.label = f"random transformer probe {num_layers}x{width}, seed {seed}"
        self.vocab_size, self.width, self.num_heads = vocab_size, width, num_heads
        self.tokens = nn.Embedding(vocab_size, width)
        self.norm1 = nn.ModuleList(nn.LayerNorm(width) for _ in range(num_layers))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(num_layers))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(num_layers))
        self.norm2 = nn.ModuleList(nn.LayerNorm(width) for _ in range(num_layers))
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(num_layers))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        _randomise(self, seed)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return features; ``mask`` bool (B, L) is True at real tokens."""
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise ShapeError(f"tokens are {tokens.dtype} {tuple(tokens.shape)}, the probe expects int64 (B, L)")
        length = tokens.shape[1]
        x = self.tokens(tokens) + _positions(length, self.width).to(self.tokens.weight)
        layers = zip(self.norm1, self.qkv, self.out, self.norm2, self.up, self.down, strict=True)
        for norm1, qkv, out, norm2, up, down in layers:
            q, k, v = qkv(norm1(x)).unflatten(2, (3, self.num_heads, -1)).movedim(2, 0)  # each B L H D/H
            scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
            if mask is not None:
                scores = torch.where(mask[:, None, None, :], scores, torch.full_like(scores, -1e9))
            x = x + out(torch.einsum("bhqk,bkhd->bqhd", scores.softmax(dim=-1), v).flatten(2))
            x = x + down(F.gelu(up(norm2(x))))
        return self.norm(x)


def default_probe(
    kind: Literal["image", "text"], *, channels: int = 3, vocab_size: int = 0, seed: int = 0
) -> nn.Module:
    """Return the random probe for pictures of ``channels`` or for ``vocab_size`` tokens."""
    return (
        ConvProbe(channels=channels, seed=seed)
        if kind == "image"
        else TransformerProbe(vocab_size=vocab_size, seed=seed)
    )


def _positions(length: int, width: int) -> Tensor:
    """Return float32 (length, width), sines and cosines of geometric frequencies."""
    frequencies = torch.exp(torch.arange(width // 2) * (-math.log(10_000.0) / (width // 2)))
    angles = torch.arange(length)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@torch.no_grad()
def _randomise(module: nn.Module, seed: int) -> None:
    """Draw every weight from the seed, whatever torch's global state: He-scaled filters, unit norms, no biases."""
    for name, parameter in module.named_parameters():
        if parameter.ndim >= 2:
            fan_in = parameter[0].numel() if name != "tokens.weight" else 1
            drawn = torch.randn(parameter.shape, generator=torch_stream(seed, "probe", name))
            parameter.copy_(drawn * math.sqrt((2.0 if parameter.ndim == 4 else 1.0) / fan_in))
        else:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
