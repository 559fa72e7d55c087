"""Muon: momentum whose update is made orthogonal, for the large matrices of a network; AdamW for everything else.

An update with all singular values near one moves every direction of a matrix equally, where Adam's is dominated by a
few. Scaled to the root mean square that Adam's updates have, it shares Adam's learning rate and weight decay.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers"; scale of Liu et al. 2025 (arXiv:2502.16982), section 2.2.
Differs: what is a hidden matrix is decided by its shape, in :func:`is_hidden`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MATCHED_RMS = 0.2
MIN_SIDE = 64
EPS = 1e-8


def hidden_matrices(model: nn.Module) -> set[int]:
    """Return the ids of the weights Muon is for: those of linear layers whose sides are both at least 64."""
    return {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Linear) and is_hidden(module.weight)
    }


def is_hidden(weight: Tensor) -> bool:
    return weight.ndim == 2 and min(weight.shape) >= MIN_SIDE


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return a matrix with the singular vectors of ``matrix`` and singular values of about one (0.7 to 1.2).

    Five Newton-Schulz iterations in bf16, with coefficients that trade exactness for speed.
    """
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """One optimizer for a whole model.

    Args:
        groups: dicts with "params", "weight_decay" and "muon" (bool).
        lr: of both kinds.
        betas: of AdamW; the first is also Muon's momentum.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0, "muon": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; ``closure`` is not used."""
        for group in self.param_groups:
            update = self._muon if group["muon"] else self._adamw
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update(parameter, parameter.grad, group)

    def _muon(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum, beta = state["momentum"], group["betas"][0]
        momentum.lerp_(grad, 1 - beta)
        direction = orthogonalised(grad.lerp(momentum, beta))  # Nesterov's
        scale = MATCHED_RMS * max(parameter.shape) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"] * scale)

    def _adamw(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "exp_avg" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        (beta1, beta2), count = group["betas"], state["step"].add_(1)
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(grad, 1 - beta1)
        square.lerp_(grad.square(), 1 - beta2)
        done = float(count)
        spread = (square / (1 - beta2**done)).sqrt_().add_(EPS)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(mean, spread, value=-group["lr"] / (1 - beta1**done))
