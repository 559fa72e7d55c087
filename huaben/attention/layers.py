"""Small layers shared by the models: normalisation, sinusoidal embedding, two-layer perceptron."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """Layer normalisation with eps 1e-6 whose statistics are fp32 whatever the input.

    A 16-bit input next to fp32 weights (under autocast) is widened first; equal types go straight to the kernel, which
    accumulates in fp32.
    """

    def __init__(self, dim: int, *, affine: bool = True) -> None:
        super().__init__(dim, eps=1e-6, elementwise_affine=affine)

    def forward(self, input: Tensor) -> Tensor:
        if self.weight is not None and input.dtype != self.weight.dtype:
            input = input.to(self.weight.dtype)
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


def sinusoidal_embedding(values: Tensor, dim: int = 256, *, max_period: float = 10000.0) -> Tensor:
    """Return ``[cos(v f), sin(v f)]``, ``(..., dim)`` fp32, of ``values`` ``(...)``; ``f_k = max_period^(-2k/dim)``."""
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=values.device)
    angles = values.float()[..., None] * torch.exp(steps * (-math.log(max_period) / half))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class MLP(nn.Module):
    """Linear, activation, linear.

    ``gelu_tanh`` and ``silu`` round only their result: the kernels compute 16-bit inputs in fp32.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        out_dim: int | None = None,
        *,
        activation: Literal["silu", "gelu_tanh"] = "silu",
    ) -> None:
        super().__init__()
        self.activation = activation
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim if out_dim is None else out_dim)

    def forward(self, states: Tensor) -> Tensor:
        hidden = self.fc1(states)
        hidden = F.silu(hidden) if self.activation == "silu" else F.gelu(hidden, approximate="tanh")
        return self.fc2(hidden)
