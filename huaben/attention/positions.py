"""Rotary positions for a sequence: plain, randomised and YaRN.

Queries and keys are turned before their scores are taken; keys may be turned before they are cached. The first and the
second half of a head's channels form the pairs (``rotate_half``), as in GPT-NeoX and Llama. Angles are computed in fp64
and tables grow when a later position is asked for, so no length is out of reach.

Source: Su et al. 2021, RoFormer (arXiv:2104.09864); Ruoss et al. 2023 (arXiv:2305.16843); Peng et al. 2023, YaRN
(arXiv:2309.00071).
Differs: DAPE's code keeps its table at the training length and cannot evaluate RoPE beyond it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError

BASE = 10000.0


class Rope(nn.Module):
    """Turn each pair of channels by ``position * base ** (-2 m / d)``.

    Args:
        head_dim: d, even.
        base: of the frequencies.
    """

    def __init__(self, head_dim: int, *, base: float = BASE) -> None:
        super().__init__()
        if head_dim < 2 or head_dim % 2:
            raise ConfigError(f"head_dim={head_dim}, expected an even number", hint="rotary positions turn pairs")
        if base <= 1:
            raise ConfigError(f"base={base}, expected more than 1", hint="10000 is usual")
        self.head_dim, self.base = head_dim, base
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def frequencies(self) -> Tensor:
        """Return the turn per position of each pair, ``(d / 2,)``, fp64."""
        return self.base ** (-torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim)

    @property
    def gain(self) -> float:
        """What the cosines and sines are multiplied with."""
        return 1.0

    def rotate(self, states: Tensor, positions: Tensor) -> Tensor:
        """Return queries or keys turned to their positions.

        Args:
            states: ``(B, H, T, d)``.
            positions: whole numbers from 0, ``(T,)``, or ``(B, T)`` where they differ by row.

        Raises:
            ShapeError: if they do not fit.
        """
        if states.ndim != 4 or states.shape[-1] != self.head_dim:
            raise ShapeError(
                f"states {tuple(states.shape)}, expected (B, H, T, {self.head_dim})", hint="split the heads first"
            )
        batch, _, length, _ = states.shape
        if positions.is_floating_point() or positions.shape not in ((length,), (batch, length)):
            raise ShapeError(
                f"positions {tuple(positions.shape)} ({positions.dtype}), expected whole numbers ({length},) or "
                f"({batch}, {length})",
                hint="use torch.arange",
            )
        if not length or not batch:
            return states
        positions = self.place(positions)
        low, high = (int(value) for value in torch.aminmax(positions))
        if low < 0:
            raise ShapeError(f"position {low}, expected none below 0", hint="clamp the positions of padding")
        dtype = torch.float64 if states.dtype == torch.float64 else torch.float32
        cos, sin = (table[positions] for table in self._table(high + 1, states.device, dtype))
        if positions.ndim == 2:
            cos, sin = cos[:, None], sin[:, None]
        a, b = states.to(dtype).chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(states.dtype)

    forward = rotate

    def place(self, positions: Tensor) -> Tensor:
        """Return where the positions are put; the randomised variant moves them."""
        return positions

    def _table(self, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of at least ``length`` positions, ``(n, d / 2)``."""
        found = self._tables.get((device, dtype))
        if found is None or len(found[0]) < length:
            size = max(64, 1 << (length - 1).bit_length())
            angles = torch.arange(size, dtype=torch.float64)[:, None] * self.frequencies()
            found = (
                (self.gain * angles.cos()).to(device, dtype),
                (self.gain * angles.sin()).to(device, dtype),
            )
            self._tables[device, dtype] = found
        return found

    def extra_repr(self) -> str:
        return f"head_dim={self.head_dim}, base={self.base:g}"


class RandomizedRope(Rope):
    """RoPE at random positions while training: a sorted subset of ``0 .. max_position - 1``, then angles as usual.

    Long distances are so seen in short training sequences. A subset stays in use until :meth:`resample`, so that
    queries and keys of a layer get the same one; :class:`huaben.attention.scheme.Scheme` asks for a new one after each
    training pass. In ``eval()`` nothing is random: position ``n`` is put at ``n * stride``, whatever the length.

    Args:
        head_dim: d.
        max_position: training positions lie below.
        stride: of evaluation; 1 leaves positions as they are.
        base: of the frequencies.
        generator: what subsets are drawn with; by default torch's own CPU stream, which activation checkpointing
            restores.

    Source: Ruoss et al. 2023 (arXiv:2305.16843), section 3, with the angles of RoPE as DAPE's baseline has it.
    Differs: the source also draws positions at evaluation; here a cached token keeps its place.
    """

    def __init__(
        self,
        head_dim: int,
        *,
        max_position: int = 2048,
        stride: int = 1,
        base: float = BASE,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(head_dim, base=base)
        if max_position < 1 or stride < 1:
            raise ConfigError(
                f"max_position={max_position} and stride={stride}, expected both at least 1", hint="use 2048 and 1"
            )
        self.max_position, self.stride, self.generator = max_position, stride, generator
        self._subset: Tensor | None = None

    def resample(self) -> None:
        """Draw new positions at the next training call."""
        self._subset = None

    def place(self, positions: Tensor) -> Tensor:
        if not self.training:
            return positions * self.stride
        length = int(positions.max()) + 1
        if length > self.max_position:
            raise ConfigError(
                f"{length} training positions do not fit in {self.max_position}", hint="raise max_position"
            )
        if self._subset is None or len(self._subset) != length:
            drawn = torch.randperm(self.max_position, generator=self.generator)[:length]
            self._subset = drawn.sort().values
        return self._subset.to(positions.device)[positions]


class Yarn(Rope):
    """YaRN: slow frequencies are divided by ``factor``, fast ones kept, those between blended; scores sharpened.

    It has no weights: a model trained with :class:`Rope` is evaluated with it.

    Args:
        head_dim: d.
        factor: s, how many times the training length is to be covered; at 1 this is RoPE.
        train_length: the length the model was trained with.
        beta_fast, beta_slow: turns within the training length above which a frequency is kept and below which it is
            divided.
        base: of the frequencies.

    Source: Peng et al. 2023 (arXiv:2309.00071), section 3; cosines and sines are multiplied by ``1 + 0.1 ln s``.
    """

    def __init__(
        self,
        head_dim: int,
        *,
        factor: float = 4.0,
        train_length: int = 512,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
        base: float = BASE,
    ) -> None:
        super().__init__(head_dim, base=base)
        if factor < 1 or train_length < 1 or not 0 < beta_slow < beta_fast:
            raise ConfigError(
                f"factor={factor}, train_length={train_length}, beta_slow={beta_slow}, beta_fast={beta_fast}, expected "
                "a factor and a length of at least 1 and 0 < beta_slow < beta_fast",
                hint="use factor=4, beta_slow=1 and beta_fast=32",
            )
        self.factor, self.train_length = factor, train_length
        self.beta_fast, self.beta_slow = beta_fast, beta_slow

    @property
    def gain(self) -> float:
        return 1.0 + 0.1 * math.log(self.factor)

    def frequencies(self) -> Tensor:
        plain = super().frequencies()

        def pair_of(turns: float) -> float:
            """Return the (fractional) pair that makes so many turns within the training length."""
            return self.head_dim * math.log(self.train_length / (turns * 2 * math.pi)) / (2 * math.log(self.base))

        low = max(math.floor(pair_of(self.beta_fast)), 0)
        high = min(math.ceil(pair_of(self.beta_slow)), self.head_dim - 1)
        ramp = (torch.arange(self.head_dim // 2, dtype=torch.float64) - low) / max(high - low, 0.001)
        slow = ramp.clamp(0, 1)
        return plain / self.factor * slow + plain * (1 - slow)
