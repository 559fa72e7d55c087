"""From noise to latents: DDPM, DDIM and DPM-Solver++ as pure steps, guidance, and the loop around them.

A sampler of S steps goes through S + 1 noise levels; level S is clean. Step ``i`` takes latents at level ``i`` to level
``i + 1``. Coefficients are computed in float64, latents keep their type. Random numbers are drawn on the CPU and then
moved, so that a seed means one picture on every device.

Source: DDPM (arXiv:2006.11239), DDIM (arXiv:2010.02502), DPM-Solver++ (arXiv:2211.01095) algorithm 2.
Differs: from diffusers' DDIM with "linspace" spacing, whose steps end at levels other than the next one's start.

Legend: B batch, C channels, h w latent, S steps.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import Cancelled, ConfigError, GenerationError, ShapeError
from ..rng import torch_stream
from .schedule import NoiseSchedule, predicted_noise, predicted_x0

Generators = torch.Generator | Sequence[torch.Generator]
"""One CPU generator for the whole batch, or one per picture."""


@dataclass(frozen=True, slots=True)
class Levels:
    """Signal and noise level of the latents that enter each step, and of the clean end: S + 1 values each."""

    alpha: tuple[float, ...]
    sigma: tuple[float, ...]

    def __len__(self) -> int:
        """Return S + 1."""
        return len(self.alpha)

    def log_snr(self, i: int) -> float:
        """Return ``log(alpha / sigma)``; minus infinity for pure noise, infinity at the clean end."""
        if self.alpha[i] == 0.0:
            return -math.inf
        return math.inf if self.sigma[i] == 0.0 else math.log(self.alpha[i]) - math.log(self.sigma[i])


@dataclass(slots=True)
class History:
    """What a multistep solver remembers: its last prediction and the step it was made at. Others leave it empty."""

    x0: Tensor | None = None
    step: int = -1

    def reset(self) -> None:
        """Forget everything; the next step is of first order."""
        self.x0, self.step = None, -1


class Sampler(ABC):
    """The contract of every sampler.

    Attributes:
        schedule: the noise schedule of the model's weights.
        num_inference_steps: S.
        timesteps: (S,) int64, noisiest first.
        levels: S + 1 noise levels, the last one clean.
        history: the memory of a multistep solver; everything else about a sampler is constant.
    """

    name: ClassVar[str]
    extra_point: ClassVar[bool] = False

    def __init__(self, schedule: NoiseSchedule, num_inference_steps: int) -> None:
        self.schedule = schedule
        self.num_inference_steps = num_inference_steps
        self.history = History()
        self.timesteps = schedule.sampling_timesteps(num_inference_steps, extra=self.extra_point)
        abar = [*schedule.alphas_cumprod[self.timesteps].tolist(), 1.0]
        self.levels = Levels(
            alpha=tuple(math.sqrt(value) for value in abar), sigma=tuple(math.sqrt(1.0 - value) for value in abar)
        )

    def __len__(self) -> int:
        """Return S."""
        return self.num_inference_steps

    def noise_to(self, x0: Tensor, noise: Tensor, i: int) -> Tensor:
        """Return clean latents brought to the level that enters step ``i``; ``i = S`` is the clean end.

        Raises:
            ConfigError: if ``i`` is not from 0 to S.
        """
        if not 0 <= i <= self.num_inference_steps:
            raise ConfigError(f"level {i} is not from 0 to {self.num_inference_steps}")
        return self.levels.alpha[i] * x0 + self.levels.sigma[i] * noise

    def predict_x0(self, model_output: Tensor, i: int, latents: Tensor) -> Tensor:
        """Return the clean latents that the model's output at step ``i`` implies; for previews and steps."""
        self._check_step(model_output, i, latents)
        kind = self.schedule.config.prediction_type
        return predicted_x0(model_output.to(latents.dtype), latents, self.levels.alpha[i], self.levels.sigma[i], kind)

    def predict_noise(self, model_output: Tensor, i: int, latents: Tensor) -> Tensor:
        """Return the noise that the model's output at step ``i`` implies."""
        self._check_step(model_output, i, latents)
        kind = self.schedule.config.prediction_type
        alpha, sigma = self.levels.alpha[i], self.levels.sigma[i]
        return predicted_noise(model_output.to(latents.dtype), latents, alpha, sigma, kind)

    @abstractmethod
    def step(self, model_output: Tensor, i: int, latents: Tensor, generator: Generators | None = None) -> Tensor:
        """Return the latents at level ``i + 1``; the arguments are left as they were.

        Args:
            model_output: (B, C, h, w), after guidance, of the schedule's prediction type.
            i: from 0 to S - 1.
            latents: (B, C, h, w) at level ``i``.
            generator: needed by samplers that add noise.

        Raises:
            ShapeError: if model output and latents differ in shape.
            ConfigError: if ``i`` is out of range, or a generator is needed and absent.
        """

    def reset(self) -> None:
        """Forget earlier steps: before a new picture, and after latents were replaced from outside."""
        self.history.reset()

    def _check_step(self, model_output: Tensor, i: int, latents: Tensor) -> None:
        if not 0 <= i < self.num_inference_steps:
            raise ConfigError(f"step {i} is not from 0 to {self.num_inference_steps - 1}")
        if model_output.shape != latents.shape:
            hint = "take the prediction half with split_variance" if model_output.shape[1] > latents.shape[1] else ""
            raise ShapeError(
                f"model output is {tuple(model_output.shape)}, latents {tuple(latents.shape)}, expected the same",
                hint=hint,
            )


class DDPMSampler(Sampler):
    """Ancestral sampling with the posterior's variance ("fixed_small"); Hunyuan-DiT's default."""

    name = "ddpm"

    def step(self, model_output: Tensor, i: int, latents: Tensor, generator: Generators | None = None) -> Tensor:
        """See :meth:`Sampler.step`; needs a generator."""
        x0 = self.predict_x0(model_output, i, latents)
        abar, before = self.levels.alpha[i] ** 2, self.levels.alpha[i + 1] ** 2
        noise_power, noise_power_before = self.levels.sigma[i] ** 2, self.levels.sigma[i + 1] ** 2
        kept = abar / before
        mean = (math.sqrt(before) * (1.0 - kept) / noise_power) * x0
        mean = mean + (math.sqrt(kept) * noise_power_before / noise_power) * latents
        if i == self.num_inference_steps - 1:
            return mean
        deviation = math.sqrt(noise_power_before / noise_power * (1.0 - kept))
        return mean + deviation * _drawn_like(latents, generator, self.name)


class DDIMSampler(Sampler):
    """Deterministic with ``eta`` 0; with ``eta`` 1 as noisy as DDPM."""

    name = "ddim"

    def __init__(self, schedule: NoiseSchedule, num_inference_steps: int, *, eta: float = 0.0) -> None:
        super().__init__(schedule, num_inference_steps)
        if not 0.0 <= eta <= 1.0:
            raise ConfigError(f"eta={eta} is not in [0, 1]", hint="0 is deterministic")
        self.eta = eta

    def step(self, model_output: Tensor, i: int, latents: Tensor, generator: Generators | None = None) -> Tensor:
        """See :meth:`Sampler.step`; needs a generator if ``eta`` is above 0."""
        x0 = self.predict_x0(model_output, i, latents)
        noise = self.predict_noise(model_output, i, latents)
        alpha, sigma = self.levels.alpha, self.levels.sigma
        variance = (sigma[i + 1] / sigma[i]) ** 2 * (1.0 - (alpha[i] / alpha[i + 1]) ** 2)
        deviation = self.eta * math.sqrt(variance)
        result = alpha[i + 1] * x0 + math.sqrt(max(sigma[i + 1] ** 2 - deviation**2, 0.0)) * noise
        if deviation == 0.0:
            return result
        return result + deviation * _drawn_like(latents, generator, f"{self.name} with eta={self.eta}")


class DPMSolverSampler(Sampler):
    """DPM-Solver++ 2M: second order from the previous prediction, deterministic, good from about 15 steps.

    The first and the last step are of first order, and so is the step after :meth:`reset` or after a skipped step.
    One object serves one picture (or batch) at a time, because of its ``history``.
    """

    name = "dpmpp_2m"
    extra_point = True

    def step(self, model_output: Tensor, i: int, latents: Tensor, generator: Generators | None = None) -> Tensor:
        """See :meth:`Sampler.step`; the generator is not used."""
        x0 = self.predict_x0(model_output, i, latents)
        levels, before = self.levels, self.history.x0
        gain = levels.log_snr(i + 1) - levels.log_snr(i)
        direction = x0
        if before is not None and self.history.step == i - 1 and i < self.num_inference_steps - 1:
            gain_before = levels.log_snr(i) - levels.log_snr(i - 1)
            direction = x0 + (0.5 * gain / gain_before) * (x0 - before)
        self.history.x0, self.history.step = x0, i
        pull = levels.alpha[i + 1] * -math.expm1(-gain)
        return (levels.sigma[i + 1] / levels.sigma[i]) * latents + pull * direction


SAMPLERS: dict[str, type[Sampler]] = {cls.name: cls for cls in (DDPMSampler, DDIMSampler, DPMSolverSampler)}


def make_sampler(name: str, schedule: NoiseSchedule, num_inference_steps: int, *, eta: float = 0.0) -> Sampler:
    """Return a sampler by name: "ddpm", "ddim" or "dpmpp_2m".

    Args:
        name: a key of :data:`SAMPLERS`.
        schedule: of the model's weights.
        num_inference_steps: S.
        eta: noise of "ddim"; others take 0 only.

    Raises:
        ConfigError: for an unknown name, a step count the spacing cannot place, or an ``eta`` that has no meaning.
    """
    if name not in SAMPLERS:
        raise ConfigError(f"no sampler {name!r}", hint=f"use one of {', '.join(SAMPLERS)}")
    if name == DDIMSampler.name:
        return DDIMSampler(schedule, num_inference_steps, eta=eta)
    if eta:
        raise ConfigError(f"eta={eta} has no meaning for sampler {name!r}", hint="use 'ddim', or leave eta out")
    return SAMPLERS[name](schedule, num_inference_steps)


def guided(cond: Tensor, uncond: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Return the classifier-free guided output.

    Args:
        cond: model output with the prompt, (B, C, h, w).
        uncond: model output with the negative or empty prompt.
        scale: 1 is exactly ``cond``, above 1 follows the prompt more closely.
        rescale: 0 changes nothing, 1 restores the per-picture deviation of ``cond``, against over-exposure.

    Source: Ho & Salimans 2022 (arXiv:2207.12598); rescale: Lin et al. 2023 (arXiv:2305.08891), section 3.4.

    Raises:
        ShapeError: if the two outputs differ in shape.
        ConfigError: if ``rescale`` is not in [0, 1].
    """
    if cond.shape != uncond.shape:
        raise ShapeError(f"cond is {tuple(cond.shape)}, uncond {tuple(uncond.shape)}, expected the same")
    if not 0.0 <= rescale <= 1.0:
        raise ConfigError(f"rescale={rescale} is not in [0, 1]", hint="0 switches it off, 0.7 is usual")
    if scale == 1.0:
        return cond
    output = uncond + scale * (cond - uncond)
    if rescale == 0.0:
        return output
    dims = tuple(range(1, cond.ndim))
    ratio = cond.std(dim=dims, keepdim=True) / output.std(dim=dims, keepdim=True).clamp(min=1e-12)
    return output * (rescale * ratio + (1.0 - rescale))


def guided_batch(model_output: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Return :func:`guided` of one doubled batch in the order [uncond, cond], (2B, C, h, w) to (B, C, h, w).

    Raises:
        ShapeError: if the batch cannot be halved.
    """
    if model_output.shape[0] % 2:
        raise ShapeError(f"a batch of {model_output.shape[0]} is not [uncond, cond]", hint="double the batch first")
    uncond, cond = model_output.chunk(2)
    return guided(cond, uncond, scale, rescale)


def draw_noise(
    shape: Sequence[int],
    generator: Generators,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return standard normal noise (B, ...), drawn on the CPU in float32 and then moved.

    Args:
        shape: of the whole batch.
        generator: one for the batch, or one per picture: then a picture does not depend on its batch.
        device: where the noise goes.
        dtype: of the result.

    Raises:
        ShapeError: if there is not one generator per picture.
    """
    if isinstance(generator, torch.Generator):
        noise = torch.randn(tuple(shape), generator=generator)
    else:
        if len(generator) != shape[0]:
            raise ShapeError(f"{len(generator)} generators for a batch of {shape[0]}", hint="give one per picture")
        noise = torch.stack([torch.randn(tuple(shape[1:]), generator=each) for each in generator])
    return noise.to(device=device, dtype=dtype)


def noise_streams(seeds: Sequence[int], *names: str | int) -> list[torch.Generator]:
    """Return one generator per picture: draw the first latents from it, then hand it to :func:`sample`."""
    return [torch_stream(seed, "noise", *names) for seed in seeds]


@torch.no_grad()
def sample(
    denoise: Callable[[Tensor, int], Tensor],
    latents: Tensor,
    sampler: Sampler,
    *,
    generator: Generators | None = None,
    on_step: Callable[[int, int, Callable[[], Tensor]], None] | None = None,
    should_cancel: Callable[[], bool] | None = None,
    inject: Callable[[Tensor, int], Tensor] | None = None,
    start: int = 0,
) -> Tensor:
    """Run a sampler to its clean end and return the latents; the given ones are left as they were.

    Args:
        denoise: ``denoise(latents, i)`` returns the guided model output for step ``i``.
        latents: (B, C, h, w) at level ``start``; standard normal noise at level 0.
        sampler: made for the model's schedule; its memory is cleared first.
        generator: for samplers that add noise.
        on_step: ``on_step(i, S, preview)`` after each model call; ``preview()`` computes the predicted clean latents.
        should_cancel: asked before each model call and once at the end.
        inject: ``inject(latents, i)`` before each model call returns latents at the same level ``i``, or the very
            tensor it was given where it changes nothing; multistep memory is cleared after a change. A picture held
            to the end is completed by calling it once more with ``i = S`` on the result.
        start: first step, above 0 to begin from a noised picture.

    Raises:
        Cancelled: if ``should_cancel`` said so.
        GenerationError: if the result is not finite.
        ShapeError: if ``denoise`` or ``inject`` returns another shape.
        ConfigError: if ``start`` is not from 0 to S - 1.
    """
    steps = sampler.num_inference_steps
    if not 0 <= start < steps:
        raise ConfigError(f"start={start} is not from 0 to {steps - 1}")
    sampler.reset()
    try:
        for i in range(start, steps):
            _raise_if_cancelled(should_cancel, i, steps)
            if inject is not None:
                replaced = inject(latents, i)
                if replaced is not latents:
                    if replaced.shape != latents.shape:
                        raise ShapeError(
                            f"inject returned {tuple(replaced.shape)} at step {i}, expected {tuple(latents.shape)}"
                        )
                    sampler.reset()
                    latents = replaced
            output = denoise(latents, i)
            if on_step is not None:
                on_step(i, steps, functools.partial(sampler.predict_x0, output, i, latents))
            latents = sampler.step(output, i, latents, generator)
        _raise_if_cancelled(should_cancel, steps, steps)
    finally:
        sampler.reset()
    if not bool(torch.isfinite(latents).all()):
        raise GenerationError(
            "the sampled latents are not finite", hint="run the model in bfloat16 or float32 instead of float16"
        )
    return latents


def _raise_if_cancelled(should_cancel: Callable[[], bool] | None, i: int, steps: int) -> None:
    if should_cancel is not None and should_cancel():
        raise Cancelled(f"cancelled after {i} of {steps} steps", hint="nothing was kept; ask again to start over")


def _drawn_like(latents: Tensor, generator: Generators | None, what: str) -> Tensor:
    """Return noise of the shape, device and type of ``latents``."""
    if generator is None:
        raise ConfigError(f"sampler {what} draws noise and got no generator", hint="give generator=torch_stream(seed)")
    return draw_noise(latents.shape, generator, device=latents.device, dtype=latents.dtype)
