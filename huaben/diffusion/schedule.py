"""The noise a diffusion model is trained on: levels, targets, loss weights and sampling timesteps.

A picture at timestep ``t`` is ``alpha[t] * x0 + sigma[t] * noise``, with ``alpha = sqrt(abar)``,
``sigma = sqrt(1 - abar)`` and ``abar`` the running product of ``1 - beta``.

Source: Hunyuan-DiT (arXiv:2405.08748) and its official code; v-prediction: Salimans & Ho 2022 (arXiv:2202.00512);
spacings and terminal SNR: Lin et al. 2023 (arXiv:2305.08891).
Differs: the official code infers v1.2 with ``beta_end`` 0.02 although it was trained with 0.018; both are presets.

Legend: B batch, C channels, h w latent, T training timesteps, S sampling steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..errors import ConfigError, ShapeError

PredictionType = Literal["epsilon", "v_prediction", "sample"]
TimestepSpacing = Literal["leading", "trailing", "linspace"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig(Config):
    """What a model's weights assume about noise.

    Args:
        num_train_timesteps: T.
        beta_start: variance added at the first timestep.
        beta_end: variance added at the last timestep.
        beta_schedule: "scaled_linear": the square roots of the betas are evenly spaced.
        prediction_type: what the model outputs: the noise, the velocity or the clean latents.
        timestep_spacing: how S sampling timesteps are chosen among T. "leading" never reaches the last one;
            "trailing" starts at it, which is better with few steps; "linspace" includes both ends.
        steps_offset: added to every "leading" timestep.
        zero_terminal_snr: rescale so that the last timestep holds noise only. No release was trained this way; it lets
            a model trained with it reach very dark and very bright pictures. Needs "v_prediction" or "sample".
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.018
    beta_schedule: Literal["scaled_linear"] = "scaled_linear"
    prediction_type: PredictionType = "v_prediction"
    timestep_spacing: TimestepSpacing = "leading"
    steps_offset: int = 1
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if self.num_train_timesteps < 2:
            raise ConfigError(f"num_train_timesteps={self.num_train_timesteps}, expected at least 2")
        if not 0.0 < self.beta_start <= self.beta_end < 1.0:
            raise ConfigError(
                f"beta_start={self.beta_start} and beta_end={self.beta_end}, expected 0 < start <= end < 1"
            )
        for name, allowed in (
            ("beta_schedule", ("scaled_linear",)),
            ("prediction_type", ("epsilon", "v_prediction", "sample")),
            ("timestep_spacing", ("leading", "trailing", "linspace")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={getattr(self, name)!r} is none of {', '.join(map(repr, allowed))}")
        if not 0 <= self.steps_offset < self.num_train_timesteps:
            raise ConfigError(f"steps_offset={self.steps_offset} is not from 0 to {self.num_train_timesteps - 1}")
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise ConfigError(
                "zero_terminal_snr with prediction_type='epsilon': pure noise would say nothing about the picture",
                hint="use prediction_type='v_prediction'",
            )


PRESETS: dict[str, ScheduleConfig] = {
    "v1.0": ScheduleConfig(beta_end=0.03),
    "v1.1": ScheduleConfig(beta_end=0.03),
    "v1.2": ScheduleConfig(beta_end=0.018),
    "v1.2-inference": ScheduleConfig(beta_end=0.02),
    "embedded": ScheduleConfig(beta_end=0.018, timestep_spacing="trailing"),
}


class NoiseSchedule:
    """Tables of one :class:`ScheduleConfig` and the arithmetic on them; it holds no weights.

    Attributes:
        betas: (T,) float64.
        alphas_cumprod: ``abar``, (T,) float64.
        alpha: signal level, (T,) float32, computed in float64.
        sigma: noise level, (T,) float32, computed in float64.
    """

    def __init__(self, config: ScheduleConfig | None = None) -> None:
        self.config = config = config or ScheduleConfig()
        steps = config.num_train_timesteps
        roots = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, steps, dtype=torch.float64)
        self.betas = roots.square()
        if config.zero_terminal_snr:
            self.betas = _zero_terminal_betas(self.betas)
        self.alphas_cumprod = torch.cumprod(1.0 - self.betas, dim=0)
        self.alpha = self.alphas_cumprod.sqrt().float()
        self.sigma = (1.0 - self.alphas_cumprod).sqrt().float()
        self._on_device: dict[tuple[str, str], Tensor] = {}

    @property
    def num_train_timesteps(self) -> int:
        """T."""
        return self.config.num_train_timesteps

    def levels(self, timesteps: Tensor, ndim: int = 4) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma, float32, shaped (B, 1, ...) to ``ndim`` dimensions.

        Args:
            timesteps: (B,) integers in [0, T).
            ndim: dimensions of the tensor they will multiply.

        Raises:
            ShapeError: if ``timesteps`` is not a vector of integers.
            ConfigError: if one is out of range (checked on the CPU only, where looking is free).
        """
        self._check_timesteps(timesteps)
        return self._at("alpha", timesteps, ndim), self._at("sigma", timesteps, ndim)

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return ``alpha * x0 + sigma * noise``, (B, C, h, w)."""
        alpha, sigma = self.levels(timesteps, x0.ndim)
        return alpha * x0 + sigma * noise

    def v_target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the velocity ``alpha * noise - sigma * x0``, (B, C, h, w)."""
        alpha, sigma = self.levels(timesteps, x0.ndim)
        return alpha * noise - sigma * x0

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the model learns to output, by the config's ``prediction_type``."""
        if self.config.prediction_type == "v_prediction":
            return self.v_target(x0, noise, timesteps)
        return noise if self.config.prediction_type == "epsilon" else x0

    def to_x0(self, model_output: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor:
        """Return the clean latents that a model output implies."""
        alpha, sigma = self.levels(timesteps, latents.ndim)
        return predicted_x0(model_output, latents, alpha, sigma, self.config.prediction_type)

    def to_noise(self, model_output: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noise that a model output implies."""
        alpha, sigma = self.levels(timesteps, latents.ndim)
        return predicted_noise(model_output, latents, alpha, sigma, self.config.prediction_type)

    def to_v(self, model_output: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor:
        """Return the velocity that a model output implies."""
        if self.config.prediction_type == "v_prediction":
            return model_output
        alpha, sigma = self.levels(timesteps, latents.ndim)
        kind = self.config.prediction_type
        if kind == "epsilon":
            return (model_output - sigma * latents) / alpha
        return (alpha * latents - model_output) / sigma

    def snr(self, timesteps: Tensor) -> Tensor:
        """Return the signal-to-noise ratio ``abar / (1 - abar)``, (B,) float32."""
        self._check_timesteps(timesteps)
        return self._at("snr", timesteps, 1)

    def min_snr_weight(
        self, timesteps: Tensor, k: float = 5.0, form: Literal["v_prediction", "epsilon", "sample"] | None = None
    ) -> Tensor:
        """Return the Min-SNR weight of a squared error, (B,) float32.

        Args:
            timesteps: (B,) integers.
            k: cap on the ratio.
            form: "v_prediction": ``min(SNR, k) / (SNR + 1)``; "epsilon": ``min(SNR, k) / SNR``; "sample":
                ``min(SNR, k)``; None follows the config's prediction type.

        Source: Hang et al. 2023 (arXiv:2303.09556).
        Differs: the official Hunyuan-DiT trainer applies the "epsilon" form to its velocity loss.

        Raises:
            ConfigError: if ``k`` is not above 0 or ``form`` is unknown.
        """
        form = form or self.config.prediction_type
        if k <= 0:
            raise ConfigError(f"k={k}, expected above 0", hint="5 is the usual value")
        snr = self.snr(timesteps)
        if form == "v_prediction":
            return snr.clamp(max=k) / (snr + 1.0)
        if form == "epsilon":
            return (k / snr).clamp(max=1.0)
        if form == "sample":
            return snr.clamp(max=k)
        raise ConfigError(f"form={form!r} is none of 'v_prediction', 'epsilon', 'sample'")

    def variational_term(
        self, model_output: Tensor, variance: Tensor, x0: Tensor, latents: Tensor, timesteps: Tensor
    ) -> Tensor:
        """Return the term that trains a learned-range variance, (B,) float32, in bits per value.

        At ``t > 0`` it is the divergence between the true and the modelled step to ``t - 1``, at ``t == 0`` the
        likelihood of ``x0`` in bins of 2/255. The mean is detached: only ``variance`` gets gradients.

        Args:
            model_output: (B, C, h, w), of the config's prediction type.
            variance: (B, C, h, w); -1 means the smallest, 1 the largest sensible log-variance.
            x0: clean latents.
            latents: ``x0`` with noise added at ``timesteps``.
            timesteps: (B,) integers.

        Source: Nichol & Dhariwal 2021 (arXiv:2102.09672), equations 14 to 16.
        """
        x0, latents = x0.float(), latents.float()
        fraction = 0.5 * (variance.float() + 1.0)
        low, high = self._at("posterior_log_variance", timesteps, x0.ndim), self._at("log_beta", timesteps, x0.ndim)
        log_variance = fraction * high + (1.0 - fraction) * low
        x0_weight = self._at("posterior_x0", timesteps, x0.ndim)
        latents_weight = self._at("posterior_latents", timesteps, x0.ndim)
        guess = self.to_x0(model_output.detach().float(), latents, timesteps)
        mean = x0_weight * guess + latents_weight * latents
        true_mean = x0_weight * x0 + latents_weight * latents
        ratio = low - log_variance
        divergence = 0.5 * (-1.0 - ratio + ratio.exp() + (true_mean - mean).square() * torch.exp(-log_variance))
        likelihood = _binned_log_likelihood(x0, mean, 0.5 * log_variance)
        first = (timesteps == 0).view(-1, *[1] * (x0.ndim - 1))
        return torch.where(first, -likelihood, divergence).flatten(1).mean(dim=1) / math.log(2.0)

    def sampling_timesteps(self, num_inference_steps: int, *, extra: bool = False) -> Tensor:
        """Return S timesteps, noisiest first, (S,) int64.

        Args:
            num_inference_steps: S.
            extra: space for one more step and leave the cleanest out, as DPM-Solver++ does except with "trailing".

        Raises:
            ConfigError: if S is not from 1 to T, or the spacing cannot place S different timesteps below T.
        """
        steps, total, spacing = num_inference_steps, self.num_train_timesteps, self.config.timestep_spacing
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= total:
            raise ConfigError(f"num_inference_steps={steps!r} is not from 1 to {total}", hint="20 to 50 are usual")
        points = steps + int(extra)
        if spacing == "trailing":
            chosen = np.round(np.arange(total, 0, -total / steps)[:steps]).astype(np.int64) - 1
        elif spacing == "leading":
            chosen = (np.arange(points, dtype=np.int64) * (total // points))[::-1][:steps] + self.config.steps_offset
        else:
            chosen = np.linspace(0, total - 1, points).round()[::-1][:steps].astype(np.int64)
        one_clean_point = spacing == "linspace" and points == 1
        if one_clean_point or chosen[0] >= total or np.any(np.diff(chosen) >= 0):
            raise ConfigError(
                f"timestep_spacing={spacing!r} cannot place {steps} different timesteps below {total}",
                hint="use fewer steps, or timestep_spacing='trailing'",
            )
        return torch.from_numpy(chosen.copy())

    def _at(self, name: str, timesteps: Tensor, ndim: int) -> Tensor:
        """Return one float32 table at ``timesteps``, shaped (B, 1, ...)."""
        key = (name, str(timesteps.device))
        if key not in self._on_device:
            self._on_device[key] = self._table(name).float().to(timesteps.device)
        return self._on_device[key][timesteps].view(-1, *[1] * (ndim - 1))

    def _table(self, name: str) -> Tensor:
        """Compute one table in float64."""
        abar, betas = self.alphas_cumprod, self.betas
        before = torch.cat([abar.new_ones(1), abar[:-1]])
        if name == "alpha":
            return abar.sqrt()
        if name == "sigma":
            return (1.0 - abar).sqrt()
        if name == "snr":
            return abar / (1.0 - abar)
        if name == "log_beta":
            return betas.log()
        if name == "posterior_log_variance":  # it is 0 at t = 0, where the next one stands in
            variance = betas * (1.0 - before) / (1.0 - abar)
            return torch.cat([variance[1:2], variance[1:]]).log()
        if name == "posterior_x0":
            return betas * before.sqrt() / (1.0 - abar)
        if name == "posterior_latents":
            return (1.0 - before) * (1.0 - betas).sqrt() / (1.0 - abar)
        raise KeyError(name)

    def _check_timesteps(self, timesteps: Tensor) -> None:
        if timesteps.ndim != 1 or timesteps.is_floating_point() or timesteps.dtype == torch.bool:
            raise ShapeError(
                f"timesteps are {timesteps.dtype} {tuple(timesteps.shape)}, expected one integer per picture, (B,)"
            )
        if timesteps.device.type == "cpu" and timesteps.numel():
            low, high = int(timesteps.min()), int(timesteps.max())
            if low < 0 or high >= self.num_train_timesteps:
                raise ConfigError(f"timesteps from {low} to {high}, expected 0 to {self.num_train_timesteps - 1}")


def predicted_x0(
    model_output: Tensor, latents: Tensor, alpha: Tensor | float, sigma: Tensor | float, kind: PredictionType
) -> Tensor:
    """Return the clean latents that an output of ``kind`` implies at one noise level; epsilon needs ``alpha`` > 0."""
    if kind == "v_prediction":
        return alpha * latents - sigma * model_output
    if kind == "epsilon":
        return (latents - sigma * model_output) / alpha
    return model_output


def predicted_noise(
    model_output: Tensor, latents: Tensor, alpha: Tensor | float, sigma: Tensor | float, kind: PredictionType
) -> Tensor:
    """Return the noise that an output of ``kind`` implies at one noise level; sample needs ``sigma`` > 0."""
    if kind == "v_prediction":
        return alpha * model_output + sigma * latents
    if kind == "epsilon":
        return model_output
    return (latents - alpha * model_output) / sigma


def split_variance(model_output: Tensor, latent_channels: int) -> tuple[Tensor, Tensor | None]:
    """Split the output of a model that also learns its variance into prediction and variance.

    Args:
        model_output: (B, latent_channels, h, w), then the variance is None, or twice the channels.
        latent_channels: C.

    Raises:
        ShapeError: for any other channel count.
    """
    channels = model_output.shape[1]
    if channels == latent_channels:
        return model_output, None
    if channels == 2 * latent_channels:
        prediction, variance = model_output.chunk(2, dim=1)
        return prediction, variance
    raise ShapeError(f"model output has {channels} channels, expected {latent_channels} or {2 * latent_channels}")


def _zero_terminal_betas(betas: Tensor) -> Tensor:
    """Shift and stretch sqrt(abar) so that it ends at 0 and starts where it did."""
    roots = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    abar = ((roots - last) * (first / (first - last))).square()
    return 1.0 - torch.cat([abar[:1], abar[1:] / abar[:-1]])


def _binned_log_likelihood(values: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Return the log-probability of ``values`` under a Gaussian, in bins of 2/255, the outermost ones open."""
    centred, inverse = values - mean, torch.exp(-log_scale)
    upper = torch.special.ndtr((centred + 1.0 / 255.0) * inverse)
    lower = torch.special.ndtr((centred - 1.0 / 255.0) * inverse)
    mass = torch.where(values < -0.999, upper, torch.where(values > 0.999, 1.0 - lower, upper - lower))
    return mass.clamp(min=1e-12).log()
