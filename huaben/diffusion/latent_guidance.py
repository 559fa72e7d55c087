"""Guiding sampling by a sketch, inside a mask: held to it from the start, or set into the picture on the way.

:func:`hold_to`, the paper's way: with z_i the latents that enter step i and g_i the sketch's latents brought to exactly
that noise level, the first steps replace z_i by g_i (or a blend) on the cells that characters cover; every other cell
is left as it is.

:func:`set_in`, ours: once, before step m, the predicted clean picture is decoded, the sketch's characters are set into
it pixel by pixel, and the result is encoded again and given back the noise that was predicted. The steps that are left
paint over the seams. Masks keep their pixels, and the ground under a character is the picture's own, where a held cell
mixes character and empty stage: in a latent of 8-pixel cells and characters of 40 pixels that is most cells.

Source: TheaterGen (arXiv:2404.18919), Eqs. (5), (6).
Differs: the held latents have the noise level of those they replace (the code is one step too noisy), and masks are
averaged over cells with at least one cell per character (the code erodes them, which leaves small ones unguided);
setting in is not in the paper.

Legend: B batch, C channels, h w latent, N masks, S steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor

    from .samplers import Sampler


def token_mask(
    masks: npt.NDArray[np.bool_], grid: tuple[int, int], threshold: float = 0.5
) -> tuple[npt.NDArray[np.bool_], tuple[float, ...]]:
    """Bring pixel masks to a model's grid by averaging areas.

    Args:
        masks: bool (N, H, W), one per character.
        grid: (rows, columns); they divide H and W.
        threshold: a cell is guided when at least this share of it is covered.

    Returns:
        The union as bool ``grid``, in which every non-empty mask keeps at least its best cell, and per character the
        share of its area that the kept cells cover.
    """
    count, height, width = masks.shape
    rows, columns = grid
    if height % rows or width % columns:
        raise ConfigError(f"a {rows}x{columns} grid does not divide a {height}x{width} mask")
    cover = masks.reshape(count, rows, height // rows, columns, width // columns).mean(axis=(2, 4))
    union = np.zeros(grid, bool)
    kept = []
    for share in cover:
        cells = share >= threshold
        if not cells.any() and share.any():
            cells = np.zeros(grid, bool)
            cells[np.unravel_index(int(share.argmax()), grid)] = True
        union |= cells
        kept.append(float(share[cells].sum() / share.sum()) if share.any() else 0.0)
    return union, tuple(kept)


def guided_steps(fraction: float, steps: int) -> int:
    """Return how many of the first steps are guided: at least one for any fraction above 0."""
    return 0 if fraction <= 0 else max(1, math.floor(fraction * steps + 0.5))


def hold_to(
    sampler: Sampler, sketch: Tensor, noise: Tensor, mask: Tensor, *, fraction: float, weight: float = 1.0
) -> Callable[[Tensor, int], Tensor]:
    """Return ``inject(latents, i)`` for :func:`~huaben.diffusion.samplers.sample`.

    Args:
        sampler: knows the noise level of each step.
        sketch: clean latents (B, C, h, w), scaled.
        noise: standard normal, the same for all steps.
        mask: bool (h, w).
        fraction: share of the steps, from the noisiest, that are guided; with 1 the clean end is as well.
        weight: 1 replaces, less blends.

    Raises:
        ShapeError: if the tensors do not have one shape; nothing is broadcast.
    """
    if sketch.shape != noise.shape or mask.shape != sketch.shape[-2:]:
        raise ShapeError(
            f"sketch {tuple(sketch.shape)}, noise {tuple(noise.shape)}, mask {tuple(mask.shape)} do not fit each other",
            hint="encode the sketch at the picture's size",
        )
    last = sampler.num_inference_steps if fraction >= 1.0 else guided_steps(fraction, len(sampler)) - 1
    inside = mask.to(sketch.dtype) * weight

    def inject(latents: Tensor, i: int) -> Tensor:
        """Return the latents of level ``i``, held to the sketch where the mask is."""
        if latents.shape != sketch.shape or latents.dtype != sketch.dtype:
            raise ShapeError(
                f"latents are {latents.dtype} {tuple(latents.shape)}, the sketch {sketch.dtype} {tuple(sketch.shape)}"
            )
        if i > last or weight <= 0.0 or not bool(mask.any()):
            return latents
        target = sampler.noise_to(sketch, noise, i)
        if weight >= 1.0:
            return target.where(mask, latents)
        return latents + inside * (target - latents)

    return inject


def set_in(
    sampler: Sampler,
    denoise: Callable[[Tensor, int], Tensor],
    compose: Callable[[Tensor], Tensor],
    *,
    fraction: float,
) -> Callable[[Tensor, int], Tensor]:
    """Return ``inject(latents, i)`` for :func:`~huaben.diffusion.samplers.sample` that sets the sketch in once.

    It costs one more call of the model, one decoding and one encoding.

    Args:
        sampler: knows the noise level of each step.
        denoise: the guided model output for latents (B, C, h, w) that enter step ``i``.
        compose: clean latents to the clean latents with the sketch set in.
        fraction: share of the steps before it; with 1 it is the finished picture.
    """
    when = guided_steps(fraction, len(sampler))

    def inject(latents: Tensor, i: int) -> Tensor:
        """Return the latents of level ``i``, with the sketch set in before step ``when``."""
        if i != when:
            return latents
        if i == len(sampler):
            return compose(latents)
        output = denoise(latents, i)
        noise = sampler.predict_noise(output, i, latents)
        return sampler.noise_to(compose(sampler.predict_x0(output, i, latents)), noise, i)

    return inject
