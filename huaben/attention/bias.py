"""Position biases: numbers added to attention scores that depend on the positions of query and key alone.

Every bias is ``rows(i, j)``: the ``(H, |i|, |j|)`` block for query positions ``i`` and key positions ``j``. Where it
depends on the difference alone (``toeplitz``), ``table(T)`` gives it for the distances 0 to ``T - 1``. Biases are never
divided by the square root of the head's width, and are computed in fp32 or fp64 whatever the module's dtype: in half
precision distances beyond 2,048 are no longer whole.

Keys ahead of their query, which only non-causal attention sees, are as far as they are ahead: ``|i - j|``.

Source: Zheng et al. 2024, DAPE (arXiv:2405.14722), section 2, and the papers named at each class.

Letters: H heads, T length, i query position, j key position.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError

FLOOR = 0.01
_EPS = 1e-6


class Bias(nn.Module):
    """Base of the biases.

    Args:
        heads: number of heads, at least 1.

    Attributes:
        toeplitz: whether the bias depends on ``i - j`` alone.
    """

    toeplitz = True

    def __init__(self, heads: int) -> None:
        super().__init__()
        if heads < 1:
            raise ConfigError(f"heads={heads}, expected at least 1", hint="pass the number of query heads")
        self.heads = heads

    def rows(self, i: Tensor, j: Tensor, *, origin: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the bias of queries at ``i`` to keys at ``j``.

        Args:
            i, j: whole positions, ``(n,)`` and ``(m,)``.
            origin: ``(B, n)``, the position that counts as 0 for each query, where rows of a batch begin late or hold
                several documents. It matters only to a bias that depends on more than the distance.
            dtype: fp32 or fp64.

        Returns:
            ``(H, n, m)``, or ``(B, H, n, m)`` where ``origin`` matters.

        Raises:
            ShapeError: for positions that are no whole numbers or have other axes.
        """
        if i.is_floating_point() or j.is_floating_point() or i.ndim != 1 or j.ndim != 1:
            raise ShapeError(
                f"positions are {i.dtype} {tuple(i.shape)} and {j.dtype} {tuple(j.shape)}, expected whole numbers of "
                "one axis",
                hint="use torch.arange",
            )
        if origin is None or self.toeplitz:
            return self._rows(i[:, None], j[None, :], dtype)
        if origin.ndim != 2 or origin.shape[1] != len(i):
            raise ShapeError(f"origin {tuple(origin.shape)}, expected (B, {len(i)})", hint="one value per query")
        return self._rows((i - origin)[..., None], j - origin[..., None], dtype)

    def table(self, length: int, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
        """Return ``(H, length)``: the bias at the distances 0 to ``length - 1``, the key being the earlier.

        Raises:
            ConfigError: for a bias that depends on more than the distance.
        """
        if not self.toeplitz:
            raise ConfigError(f"{type(self).__name__} depends on more than the distance", hint="use rows(i, j)")
        i = torch.arange(length, device=device)
        return self._rows(i[:, None], i.new_zeros(1, 1), dtype)[..., 0]

    def _rows(self, i: Tensor, j: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the bias of positions that broadcast against each other, with an axis of heads before the last two."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"heads={self.heads}"


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """Return the slopes of ALiBi, all positive.

    For a power of two ``n``: ``2 ** (-8h / n)``, h from 1. Otherwise those of the power of two below, then every second
    one of the next power's, until there are enough.
    """
    if heads < 1:
        raise ConfigError(f"heads={heads}, expected at least 1", hint="pass the number of query heads")
    power = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8 * (h + 1) / power) for h in range(power)]
    between = [2.0 ** (-4 * (h + 1) / power) for h in range(0, 2 * power, 2)]
    return tuple((slopes + between)[:heads])


class ALiBi(Bias):
    """``-m_h |i - j|`` with fixed slopes.

    Args:
        heads: any number, not only a power of two.
        past_bonus: times the slope, added to keys strictly before the query. Two-way attention cannot tell before from
            after without it; the Chomsky-hierarchy benchmark uses 0.5.

    Source: Press et al. 2022 (arXiv:2108.12409), section 3; Delétang et al. 2023 (arXiv:2207.02098) for the bonus.
    """

    def __init__(self, heads: int, *, past_bonus: float = 0.0) -> None:
        super().__init__(heads)
        self.slopes = alibi_slopes(heads)
        self.past_bonus = past_bonus

    def _rows(self, i: Tensor, j: Tensor, dtype: torch.dtype) -> Tensor:
        delta = i - j
        bias = -delta.abs().to(dtype)
        if self.past_bonus:
            bias = bias + self.past_bonus * (delta > 0).to(dtype)
        return torch.tensor(self.slopes, dtype=dtype, device=i.device)[:, None, None] * bias.unsqueeze(-3)


class _Bound(torch.autograd.Function):
    """Clamp whose gradient vanishes only where it would push further out of the range."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.low, ctx.high = low, high
        return values.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (values,) = ctx.saved_tensors
        outward = ((values <= ctx.low) & (grad > 0)) | ((values >= ctx.high) & (grad < 0))
        return grad.masked_fill(outward, 0), None, None


def bounded(values: Tensor, low: float, high: float = math.inf) -> Tensor:
    """Return ``values`` clamped; a parameter out of its range is still pulled back by gradients that point inward."""
    bound: Tensor = _Bound.apply(values, low, high)
    return bound


class KerpleLog(Bias):
    """``-p_h log(1 + a_h |i - j|)`` with learned ``p`` and ``a``, both at least 0.01.

    Source: Chi et al. 2022, KERPLE (arXiv:2205.09921), section 4, logarithmic variant.
    Differs: the official code clamps the parameters' storage in each forward pass. Here the clamp is part of the
        function, and a gradient that points further out is dropped, which keeps the same values without side effects.
    """

    def __init__(self, heads: int) -> None:
        super().__init__(heads)
        self.p = nn.Parameter(2 * torch.rand(heads))
        self.a = nn.Parameter(torch.rand(heads))

    def _rows(self, i: Tensor, j: Tensor, dtype: torch.dtype) -> Tensor:
        p = bounded(self.p.to(dtype), FLOOR)[:, None, None]
        a = bounded(self.a.to(dtype), FLOOR)[:, None, None]
        return -p * torch.log1p(a * (i - j).abs().to(dtype).unsqueeze(-3))


class KerplePower(Bias):
    """``-a_h |i - j| ** p_h`` with learned ``a`` of at least 0.01 and ``p`` from 0.01 to 2.

    Source: Chi et al. 2022, KERPLE (arXiv:2205.09921), section 4, power variant.
    """

    def __init__(self, heads: int) -> None:
        super().__init__(heads)
        self.a = nn.Parameter(torch.rand(heads))
        self.p = nn.Parameter(2 * torch.rand(heads))

    def _rows(self, i: Tensor, j: Tensor, dtype: torch.dtype) -> Tensor:
        a = bounded(self.a.to(dtype), FLOOR)[:, None, None]
        p = bounded(self.p.to(dtype), FLOOR, 2.0)[:, None, None]
        delta = (i - j).abs().to(dtype).unsqueeze(-3)
        here = delta == 0
        # 0 ** p has the slope 0 * log(0); the distance 0 is taken out before the power and put back after it
        return (-a * delta.masked_fill(here, 1.0) ** p).masked_fill(here, 0.0)


class FIRE(Bias):
    """``g(psi(|i - j|) / psi(max(i, L)))`` with ``psi(x) = log(1 + |c x|)`` and a small perceptron ``g`` to the heads.

    The argument lies in [0, 1]. It depends on the query's own position, so this bias has no table.

    Args:
        heads: number of heads.
        length: ``L0``; the threshold ``L = |l L0|`` with a learned ``l`` starts there. The training length is usual.
        hidden: width of ``g``.

    Source: Li et al. 2024, FIRE (arXiv:2310.04418), section 3.
    Differs: where a key lies ahead of its query, which only two-way attention sees, the later of the two counts as
        ``i``, which keeps the argument at most 1. DAPE's code uses a leaky ReLU inside ``g`` when it adds its own
        perceptron; here ``g`` has a ReLU in either case.
    """

    toeplitz = False

    def __init__(self, heads: int, *, length: int = 512, hidden: int = 32) -> None:
        super().__init__(heads)
        if length < 1 or hidden < 1:
            raise ConfigError(f"length={length} and hidden={hidden}, expected both at least 1", hint="use 512 and 32")
        self.length = length
        self.c = nn.Parameter(torch.tensor(0.1))
        self.l = nn.Parameter(torch.tensor(1.0))
        self.first, self.last = nn.Linear(1, hidden), nn.Linear(hidden, heads)

    def argument(self, i: Tensor, j: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return what ``g`` is applied to, for positions that broadcast against each other."""
        c = self.c.to(dtype)
        threshold = (self.l.to(dtype) * self.length).abs()
        scale = torch.log1p((c * torch.maximum(torch.maximum(i, j).to(dtype), threshold)).abs()) + _EPS
        return torch.log1p((c * (i - j).abs().to(dtype)).abs()) / scale

    def _rows(self, i: Tensor, j: Tensor, dtype: torch.dtype) -> Tensor:
        first, last = self.first, self.last
        x = self.argument(i, j, dtype=dtype)
        hidden = torch.relu_(x[..., None] * first.weight.to(dtype)[:, 0] + first.bias.to(dtype))
        return torch.movedim(nn.functional.linear(hidden, last.weight.to(dtype), last.bias.to(dtype)), -1, -3)


def t5_bucket(delta: Tensor, *, buckets: int = 32, max_distance: int = 128, bidirectional: bool = False) -> Tensor:
    """Return the bucket of ``delta = i - j``: the near half one by one, the rest in logarithmic steps.

    Args:
        delta: whole numbers. Without ``bidirectional`` keys ahead count as far as they are ahead; with it they have the
            second half of the buckets to themselves.
        buckets, max_distance: the last bucket begins a step before ``max_distance``.
    """
    ahead = (delta < 0).long()
    delta = delta.abs()
    if bidirectional:
        buckets //= 2
    exact = buckets // 2
    step = math.log(max_distance / exact) / (buckets - exact)
    # fp64: in fp32 the logarithms of distances on a boundary fall on the wrong side of it
    far = exact + (torch.log(delta.clamp(min=1).double() / exact) / step + 1e-9).long()
    bucket = torch.where(delta < exact, delta, far.clamp(max=buckets - 1))
    return bucket + ahead * buckets if bidirectional else bucket


class T5Bias(Bias):
    """``multiplier * W[bucket(i - j), h]`` with a learned table of 32 buckets; works at any distance.

    Args:
        heads: number of heads.
        multiplier: GPT-NeoX and DAPE use the square root of the head's width, T5 itself 1.
        buckets, max_distance, bidirectional: see :func:`t5_bucket`.

    Source: Raffel et al. 2020 (arXiv:1910.10683), section 2.1; DAPE's code for the multiplier and the initialisation.
    Differs: T5 and DAPE's code share one table between all layers; sharing is the model's business here.
    """

    def __init__(
        self,
        heads: int,
        *,
        multiplier: float = 1.0,
        buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = False,
    ) -> None:
        super().__init__(heads)
        least = 8 if bidirectional else 4
        if buckets < least or buckets % 2 or max_distance <= buckets // 2:
            raise ConfigError(
                f"buckets={buckets} and max_distance={max_distance}, expected an even number of at least {least} "
                "buckets and a distance beyond half of them",
                hint="use 32 and 128",
            )
        self.multiplier = multiplier
        self.buckets, self.max_distance, self.bidirectional = buckets, max_distance, bidirectional
        self.weight = nn.Parameter(torch.empty(buckets, heads))
        nn.init.xavier_normal_(self.weight)

    def _rows(self, i: Tensor, j: Tensor, dtype: torch.dtype) -> Tensor:
        bucket = t5_bucket(
            i - j, buckets=self.buckets, max_distance=self.max_distance, bidirectional=self.bidirectional
        )
        return self.multiplier * torch.movedim(self.weight.to(dtype)[bucket], -1, -3)
