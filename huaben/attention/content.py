"""Position biases that look at the queries and keys themselves: CoPE and Transformer-XL.

Both are ``scores(q, k, ...)``: the plain scores, and what is added to them. The two are told apart so that a score
adapter can look at either.

Letters: B batch, H heads, Q and K numbers of queries and keys, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError


class ContentBias(nn.Module):
    """Base of the content-dependent biases."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        if heads < 1 or head_dim < 1:
            raise ConfigError(
                f"heads={heads} and head_dim={head_dim}, expected both at least 1", hint="check the model"
            )
        self.heads, self.head_dim = heads, head_dim

    def scores(
        self, q: Tensor, k: Tensor, i: Tensor, j: Tensor, *, scale: float, visible: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the scaled scores and the bias, ``(B, H, Q, K)`` each.

        Args:
            q: ``(B, H, Q, d)``. k: ``(B, H, K, d)``; both fp32 or fp64.
            i, j: positions, ``(Q,)`` and ``(K,)``, each without gaps.
            scale: of the scores.
            visible: True where a query may see a key; broadcasts to ``(B, H, Q, K)``.

        Raises:
            ShapeError: for queries of other heads.
        """
        if q.shape[1] != self.heads or q.shape[-1] != self.head_dim:
            raise ShapeError(
                f"queries {tuple(q.shape)} do not fit {self.heads} heads of width {self.head_dim}",
                hint="one bias per attention layer",
            )
        return self._scores(q, k, i, j, scale, visible)

    def _scores(
        self, q: Tensor, k: Tensor, i: Tensor, j: Tensor, scale: float, visible: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class CoPE(ContentBias):
    """Contextual positions: a key's distance is the sum of gates ``sigmoid(score)`` from it to the query.

    The bias is the query's product with an embedding of that distance, interpolated between the two nearest whole ones.
    Gates come from scaled scores, the bias from the unscaled query. Distances stop at ``positions - 1``.

    Args:
        heads, head_dim: of the queries; the embedding is shared by the heads.
        positions: number of embeddings, which start at zero.

    Source: Golovneva et al. 2024 (arXiv:2405.18719), section 4, as the baseline of DAPE has it.
    """

    def __init__(self, heads: int, head_dim: int, *, positions: int = 64) -> None:
        super().__init__(heads, head_dim)
        if positions < 2:
            raise ConfigError(f"positions={positions}, expected at least 2", hint="use 64")
        self.embedding = nn.Parameter(torch.zeros(1, head_dim, positions))

    def _scores(
        self, q: Tensor, k: Tensor, i: Tensor, j: Tensor, scale: float, visible: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        scores = q @ k.transpose(-1, -2) * scale
        gates = torch.sigmoid(scores)
        if visible is not None:
            gates = gates.masked_fill(~visible, 0)
        embedding = self.embedding.to(q.dtype)
        # a sum from the right end of the row: keys ahead of the query have gates of zero
        distance = gates.flip(-1).cumsum(-1).flip(-1).clamp(max=embedding.shape[-1] - 1)
        low = distance.floor()
        at = q @ embedding
        near, far = at.gather(-1, low.long()), at.gather(-1, distance.ceil().long())
        part = distance - low
        return scores, far * part + near * (1 - part)


class TransformerXL(ContentBias):
    """``(q + u) k + (q + w) W R[i - j]``, scaled, with sinusoids ``R``.

    Args:
        heads, head_dim: of the queries; ``W`` is a square matrix of their product.

    Source: Dai et al. 2019 (arXiv:1901.02860), section 3.3, as the baseline of DAPE has it.
    """

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__(heads, head_dim)
        width = heads * head_dim
        if width % 2:
            raise ConfigError(f"heads * head_dim = {width}, expected an even number", hint="sinusoids come in pairs")
        self.u = nn.Parameter(0.02 * torch.randn(heads, head_dim))
        self.w = nn.Parameter(0.02 * torch.randn(heads, head_dim))
        self.distance = nn.Linear(width, width, bias=False)

    def _scores(
        self, q: Tensor, k: Tensor, i: Tensor, j: Tensor, scale: float, visible: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        dtype = q.dtype
        scores = (q + self.u.to(dtype)[:, None]) @ k.transpose(-1, -2) * scale
        least = i[0] - j[-1]
        delta = least + torch.arange(len(i) + len(j) - 1, device=q.device)
        projected = nn.functional.linear(self._sinusoids(delta, dtype), self.distance.weight.to(dtype))
        by_head = projected.view(len(delta), self.heads, self.head_dim).transpose(0, 1)  # (H, distances, d)
        by_distance = (q + self.w.to(dtype)[:, None]) @ by_head.transpose(-1, -2) * scale  # (B, H, Q, distances)
        index = i[:, None] - j[None, :] - least
        return scores, by_distance.gather(-1, index.expand(len(q), self.heads, -1, -1))

    def _sinusoids(self, delta: Tensor, dtype: torch.dtype) -> Tensor:
        width = self.heads * self.head_dim
        frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64, device=delta.device) / width)
        angles = delta[:, None].double() * frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1).to(dtype)
