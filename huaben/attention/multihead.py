"""Multi-head attention with normalised queries and keys.

Letters: B batch, N image tokens, S context tokens, D width, H heads, d head width. Queries and keys pass a LayerNorm
over d after projection, then the rotation; values pass neither.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .layers import LayerNorm
from .rope import rotate


class SelfAttention(nn.Module):
    """Attention among image tokens; ``qkv`` stacks the three projections as rows q, k, v."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_width(dim, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = LayerNorm(self.head_dim)
        self.k_norm = LayerNorm(self.head_dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, states: Tensor, rotation: Tensor | None) -> Tensor:
        """Return ``(B, N, D)``; ``rotation`` is complex and broadcasts to ``(B, N, H, d / 2)``."""
        q, k, v = self.qkv(states).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return self.out_proj(attend(q, k.to(v.dtype).transpose(1, 2), v.transpose(1, 2)))


class CrossAttention(nn.Module):
    """Attention from image tokens to context tokens whose keys and values are computed once per prompt."""

    def __init__(self, dim: int, num_heads: int, context_dim: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_width(dim, num_heads)
        self.q_proj = nn.Linear(dim, dim)
        self.kv_proj = nn.Linear(context_dim, 2 * dim)
        self.q_norm = LayerNorm(self.head_dim)
        self.k_norm = LayerNorm(self.head_dim)
        self.out_proj = nn.Linear(dim, dim)

    def keys_values(
        self,
        text: Tensor,
        context: Tensor | None = None,
        context_rotation: Tensor | None = None,
        *,
        index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values, ``(B, H, S + E, d)`` each, of the text followed by the context tokens.

        Args:
            text: ``(B, S, C)``, or with ``index`` distinct tokens ``(R, C)``; its keys are not rotated.
            context: ``(B, E, C)`` further tokens with a place in the picture, or None.
            context_rotation: complex ``(B, E, 1, d / 2)``, the place of each context token, or None.
            index: ``(B, S)``, which row of ``text`` stands where.
        """
        k, v = self._project(text)
        if index is not None:
            k, v = k[index], v[index]
        if context is not None:
            context_k, context_v = self._project(context.to(text.dtype))
            if context_rotation is not None:
                context_k = rotate(context_k, context_rotation)
            k, v = torch.cat([k, context_k], dim=1), torch.cat([v, context_v], dim=1)
        k, v = k.to(v.dtype).transpose(1, 2), v.transpose(1, 2)
        return (k, v) if torch.is_grad_enabled() else (k.contiguous(), v.contiguous())

    def _project(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys, normalised, and values, ``(..., H, d)`` each."""
        k, v = self.kv_proj(tokens).unflatten(-1, (2, self.num_heads, self.head_dim)).unbind(-3)
        return self.k_norm(k), v

    def forward(self, states: Tensor, keys: Tensor, values: Tensor, rotation: Tensor | None) -> Tensor:
        """Return ``(B, N, D)`` from states ``(B, N, D)`` and :meth:`keys_values`; only the queries are rotated."""
        q = self.q_norm(self.q_proj(states).unflatten(-1, (self.num_heads, self.head_dim)))
        if rotation is not None:
            q = rotate(q, rotation)
        return self.out_proj(attend(q, keys, values))


class AttentionPooler(nn.Module):
    """Pool a sequence into one vector: its mean is the only query of one attention over the mean and the sequence.

    With a single query the key and value projections need not be applied to every token: scores are
    ``(W_k^T q) . x + q . b_k``, and the values are projected after the weighted sum.
    """

    def __init__(self, length: int, dim: int, out_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_width(dim, num_heads)
        self.position_embedding = nn.Parameter(torch.empty(length + 1, dim))
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, out_dim)

    def forward(self, states: Tensor) -> Tensor:
        """Return ``(B, out_dim)`` from ``(B, S, dim)``; every position counts, padding included."""
        tokens = torch.cat([states.mean(1, keepdim=True), states], dim=1) + self.position_embedding.to(states.dtype)
        heads = (self.num_heads, self.head_dim)
        q = self.q_proj(tokens[:, 0]).unflatten(-1, heads)
        k_weight = self.k_proj.weight.unflatten(0, heads)  # (H, d, D)
        v_weight = self.v_proj.weight.unflatten(0, heads)
        probe = torch.einsum("bhd,hdc->bhc", q, k_weight)
        # The second term is the same for every token: it cancels, and keeps the bias a part of the graph.
        offset = (q * self.k_proj.bias.unflatten(0, heads).to(q.dtype)).sum(-1, keepdim=True)
        scores = (torch.einsum("bhc,bsc->bhs", probe, tokens) + offset).float() * self.head_dim**-0.5
        mixed = torch.einsum("bhs,bsc->bhc", scores.softmax(-1).to(tokens.dtype), tokens)
        pooled = torch.einsum("bhc,hdc->bhd", mixed, v_weight).flatten(1)
        return self.out_proj(pooled + self.v_proj.bias.to(pooled.dtype))


def head_width(dim: int, num_heads: int) -> int:
    """Return ``dim / num_heads``.

    Raises:
        ConfigError: if it is not a whole number.
    """
    if num_heads < 1 or dim % num_heads:
        raise ConfigError(f"num_heads={num_heads} does not divide width {dim}", hint="choose a divisor of the width")
    return dim // num_heads


def attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return ``(B, N, D)`` from queries ``(B, N, H, d)`` and keys and values ``(B, H, S, d)``."""
    q = q.to(values.dtype).transpose(1, 2)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad:
        # The fused kernel's backward pass is several times slower than plain products in this one case.
        mixed = torch.matmul(torch.softmax(torch.matmul(q * q.shape[-1] ** -0.5, keys.mT), dim=-1), values)
    else:
        mixed = F.scaled_dot_product_attention(q, keys, values)
    return mixed.transpose(1, 2).flatten(2)
