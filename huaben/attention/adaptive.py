"""Score adapters: DAPE's perceptron over the scores and biases of all heads, and its convolution along the keys.

An adapter sees, for one query, the scores (and biases) of every head and returns a correction for every head:
``f(z) = W2 * leaky(W1 * z + c1) + c2``, a leaky ReLU with slope 0.01. :class:`ScoreMLP` looks at each key alone (DAPE);
:class:`ScoreConv` also at its neighbours (DAPE V2; both layers have the same odd kernel, so an output sees ``k - 1``
keys on either side). With kernel 1 they are the same thing. What a query may not see is zero in ``z``;
:func:`huaben.attention.dape.dape_attention` takes care of that.

Three ways to use ``f``, with scores A and biases B:

- ``"concat_residual"``: ``A + B + f(A, B)``. The default; what the released code does.
- ``"concat"``: ``A + f(A, B)``.
- ``"add_residual"``: ``A + B + f(A + B)``.

Without a bias all three are ``A + f(A)``.

Source: Zheng et al. 2024, DAPE (arXiv:2405.14722), equations 2 and 3; DAPE V2 (arXiv:2410.04798), section 3.
Differs: the released V2 code declares ``2 H`` inputs without a bias too, which cannot run; here there are ``H``.

Letters: H heads, D hidden width, C input channels (2 H or H), k kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError, ShapeError

AdapterMode = Literal["concat_residual", "concat", "add_residual"]
AdapterInit = Literal["torch", "zero"]

LEAK = 0.01


class ScoreAdapter(nn.Module):
    """Base of the two adapters.

    Args:
        heads: query heads; all of them are mixed.
        hidden: D.
        kernel_size: odd, along the keys.
        with_bias: whether there is a position bias to look at.
        mode: how ``f`` is used, see the module's text.
        init: ``"torch"`` for PyTorch's defaults, as in the paper, or ``"zero"`` for ``f = 0`` at the start: a model
            fitted with the adapter then begins exactly where it was.

    Attributes:
        weight1: ``(D, C, k)``. bias1: ``(D,)``. weight2: ``(H, D, k)``. bias2: ``(H,)``; it shifts all scores of a head
            alike, so softmax ignores it. It is kept for the official checkpoints.

    Raises:
        ConfigError: for an even kernel, an unknown mode or init, or sizes below 1.
    """

    def __init__(
        self,
        heads: int,
        hidden: int = 32,
        *,
        kernel_size: int,
        with_bias: bool = True,
        mode: AdapterMode = "concat_residual",
        init: AdapterInit = "torch",
    ) -> None:
        super().__init__()
        if heads < 1 or hidden < 1:
            raise ConfigError(f"heads={heads} and hidden={hidden}, expected both at least 1", hint="use hidden=32")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size={kernel_size}, expected an odd number", hint="use 1, 3, 5 or 7")
        if mode not in get_args(AdapterMode):
            raise ConfigError(
                f"mode={mode!r} is none of {', '.join(map(repr, get_args(AdapterMode)))}", hint="use 'concat_residual'"
            )
        if init not in get_args(AdapterInit):
            raise ConfigError(f"init={init!r} is neither 'torch' nor 'zero'", hint="use 'torch'")
        self.heads, self.hidden, self.kernel_size = heads, hidden, kernel_size
        self.with_bias, self.mode, self.init = with_bias, mode, init
        channels = 2 * heads if with_bias and mode != "add_residual" else heads
        self.weight1 = nn.Parameter(torch.empty(hidden, channels, kernel_size))
        self.bias1 = nn.Parameter(torch.empty(hidden))
        self.weight2 = nn.Parameter(torch.empty(heads, hidden, kernel_size))
        self.bias2 = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    @property
    def channels(self) -> int:
        """C: ``2 H`` where scores and biases enter side by side, else ``H``."""
        return self.weight1.shape[1]

    def reset_parameters(self) -> None:
        """Draw the weights as ``nn.Linear`` and ``nn.Conv2d`` do; ``init="zero"`` then clears the second layer."""
        for weight, bias in ((self.weight1, self.bias1), (self.weight2, self.bias2)):
            bound = 1 / math.sqrt(weight.shape[1] * weight.shape[2])
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)
        if self.init == "zero":
            nn.init.zeros_(self.weight2)
            nn.init.zeros_(self.bias2)

    def forward(self, z: Tensor) -> Tensor:
        """Return ``f(z)``: ``(B, C, Q, K)`` to ``(B, H, Q, K)``, with zeros beyond both ends of the keys.

        Raises:
            ShapeError: for a number of channels other than C.
        """
        if z.ndim != 4 or z.shape[1] != self.channels:
            raise ShapeError(
                f"scores {tuple(z.shape)} do not fit an adapter of {self.channels} channels",
                hint="stack scores, then biases, along axis 1",
            )
        p = self.kernel_size // 2
        u = F.conv2d(z, self.weight1[:, :, None].to(z.dtype), self.bias1.to(z.dtype), padding=(0, p))
        u = F.leaky_relu(u, LEAK)
        return F.conv2d(u, self.weight2[:, :, None].to(z.dtype), self.bias2.to(z.dtype), padding=(0, p))

    def official_state(self) -> dict[str, Tensor]:
        """Return the parameters under the released code's names and shapes (``mlp2.0.weight`` …)."""
        linear = self.kernel_size == 1
        return {
            "mlp2.0.weight": self.weight1.detach()[:, :, 0] if linear else self.weight1.detach()[:, :, None],
            "mlp2.0.bias": self.bias1.detach(),
            "mlp2.2.weight": self.weight2.detach()[:, :, 0] if linear else self.weight2.detach()[:, :, None],
            "mlp2.2.bias": self.bias2.detach(),
        }

    def load_official(self, state: Mapping[str, Tensor], *, prefix: str = "mlp2.") -> None:
        """Take the parameters from a state dict of the released code.

        Args:
            state: holds ``{prefix}0.weight``, ``{prefix}0.bias``, ``{prefix}2.weight`` and ``{prefix}2.bias``; weights
                are ``(D, C)`` of a linear layer or ``(D, C, 1, k)`` of a convolution. Other names are left alone.
            prefix: of the names.

        Raises:
            CheckpointError: if a name is absent or a tensor is of another scheme; nothing is changed then.
        """
        wanted = {
            f"{prefix}0.weight": self.weight1,
            f"{prefix}0.bias": self.bias1,
            f"{prefix}2.weight": self.weight2,
            f"{prefix}2.bias": self.bias2,
        }
        missing = [name for name in wanted if name not in state]
        if missing:
            raise CheckpointError(f"the state lacks {', '.join(missing)}", hint=f"its names begin {sorted(state)[:4]}")
        found: dict[str, Tensor] = {}
        for name, parameter in wanted.items():
            value = state[name]
            if value.ndim == 4 and value.shape[2] == 1:
                value = value[:, :, 0]
            elif value.ndim == 2:
                value = value[:, :, None]
            if value.shape != parameter.shape:
                raise CheckpointError(
                    f"{name} is {tuple(state[name].shape)}, expected what fits {tuple(parameter.shape)}",
                    hint="heads, hidden, kernel_size, mode and with_bias must be those of the checkpoint",
                )
            found[name] = value
        with torch.no_grad():
            for name, parameter in wanted.items():
                parameter.copy_(found[name])

    def extra_repr(self) -> str:
        return (
            f"heads={self.heads}, hidden={self.hidden}, kernel_size={self.kernel_size}, "
            f"with_bias={self.with_bias}, mode={self.mode!r}"
        )


class ScoreMLP(ScoreAdapter):
    """DAPE: a perceptron over the heads, at every pair of query and key alone. See :class:`ScoreAdapter`."""

    def __init__(
        self,
        heads: int,
        hidden: int = 32,
        *,
        with_bias: bool = True,
        mode: AdapterMode = "concat_residual",
        init: AdapterInit = "torch",
    ) -> None:
        super().__init__(heads, hidden, kernel_size=1, with_bias=with_bias, mode=mode, init=init)


class ScoreConv(ScoreAdapter):
    """DAPE V2: two convolutions along the keys, mixing the heads. See :class:`ScoreAdapter`."""

    def __init__(
        self,
        heads: int,
        hidden: int = 32,
        *,
        kernel_size: int = 3,
        with_bias: bool = True,
        mode: AdapterMode = "concat_residual",
        init: AdapterInit = "torch",
    ) -> None:
        super().__init__(heads, hidden, kernel_size=kernel_size, with_bias=with_bias, mode=mode, init=init)
