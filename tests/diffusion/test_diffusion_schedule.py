"""Noise levels, targets, loss weights and timestep spacings."""

from __future__ import annotations

import math

import pytest
import torch

from huaben.diffusion.schedule import PRESETS, NoiseSchedule, ScheduleConfig, split_variance
from huaben.errors import ConfigError, ShapeError

# numpy 2 tells diffusers how to write its array conversion
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

KINDS = ("epsilon", "v_prediction", "sample")


def _batch(timesteps: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(timesteps), 4, 6, 5)
    x0, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return x0, noise, torch.tensor(timesteps)


@pytest.mark.parametrize(
    ("name", "beta_end", "last"),
    [("v1.1", 0.03, 5.7e-6), ("v1.2", 0.018, 4.9e-4), ("v1.2-inference", 0.02, 2.3e-4), ("embedded", 0.018, 4.9e-4)],
)
def test_preset_ends_at_the_published_level(name: str, beta_end: float, last: float) -> None:
    schedule = NoiseSchedule(PRESETS[name])
    assert float(schedule.betas[-1]) == pytest.approx(beta_end, abs=1e-12)
    assert float(schedule.alphas_cumprod[-1]) == pytest.approx(last, rel=0.02)
    assert schedule.alpha.dtype == torch.float32
    assert torch.allclose(schedule.alpha**2 + schedule.sigma**2, torch.ones(1000), atol=1e-6)


@pytest.mark.parametrize("beta_end", [0.018, 0.02, 0.03])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_tables_equal_diffusers(beta_end: float, zero_snr: bool) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=beta_end, beta_schedule="scaled_linear", rescale_betas_zero_snr=zero_snr
    )
    ours = NoiseSchedule(ScheduleConfig(beta_end=beta_end, zero_terminal_snr=zero_snr))
    rounding = 1e-5 if zero_snr else 1e-6  # the peer divides neighbouring float32 products to rescale
    assert (ours.betas - theirs.betas).abs().max() <= rounding
    assert (ours.alphas_cumprod - theirs.alphas_cumprod).abs().max() <= 1e-6


def test_noise_and_velocity_equal_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.018, beta_schedule="scaled_linear")
    ours = NoiseSchedule()
    x0, noise, timesteps = _batch([0, 1, 500, 999])
    x0, noise = x0.float(), noise.float()
    # the peer takes 1 - abar in float32, which costs the smallest sigma 7e-7, times values up to 4
    assert (ours.add_noise(x0, noise, timesteps) - theirs.add_noise(x0, noise, timesteps)).abs().max() <= 5e-6
    assert (ours.v_target(x0, noise, timesteps) - theirs.get_velocity(x0, noise, timesteps)).abs().max() <= 5e-6


@pytest.mark.parametrize("kind", KINDS)
def test_target_converts_back_to_picture_noise_and_velocity(kind: str) -> None:
    schedule = NoiseSchedule(ScheduleConfig(prediction_type=kind))  # type: ignore[arg-type]
    x0, noise, timesteps = _batch([3, 400, 900])
    latents = schedule.add_noise(x0, noise, timesteps)
    target = schedule.target(x0, noise, timesteps)
    assert torch.allclose(schedule.to_x0(target, latents, timesteps), x0, atol=1e-5)
    assert torch.allclose(schedule.to_noise(target, latents, timesteps), noise, atol=1e-5)
    assert torch.allclose(schedule.to_v(target, latents, timesteps), schedule.v_target(x0, noise, timesteps), atol=1e-5)


def test_zero_terminal_snr_holds_no_signal_at_the_end_and_keeps_the_start() -> None:
    plain, zero = NoiseSchedule(), NoiseSchedule(ScheduleConfig(zero_terminal_snr=True))
    assert float(zero.alpha[-1]) == 0.0
    assert float(zero.alpha[0]) == pytest.approx(float(plain.alpha[0]), abs=1e-6)
    assert bool(torch.isfinite(zero.min_snr_weight(torch.tensor([0, 999]))).all())


def test_min_snr_weight_has_three_forms() -> None:
    schedule, timesteps = NoiseSchedule(), torch.tensor([0, 100, 500, 999])
    snr = schedule.snr(timesteps)
    capped = snr.clamp(max=5.0)
    assert torch.allclose(schedule.min_snr_weight(timesteps), capped / (snr + 1))
    assert torch.allclose(schedule.min_snr_weight(timesteps, form="epsilon"), capped / snr)
    assert torch.allclose(schedule.min_snr_weight(timesteps, form="sample"), capped)
    with pytest.raises(ConfigError, match="form"):
        schedule.min_snr_weight(timesteps, form="x0")  # type: ignore[arg-type]


def test_variational_term_is_zero_for_the_true_step_and_trains_the_variance_only() -> None:
    schedule = NoiseSchedule()
    x0, noise, timesteps = _batch([1, 400, 999])
    latents, target = schedule.add_noise(x0, noise, timesteps), schedule.v_target(x0, noise, timesteps)
    target, variance = target.requires_grad_(), torch.full_like(x0, -1.0).requires_grad_()
    exact = schedule.variational_term(target, variance, x0, latents, timesteps)
    assert exact.shape == (3,)
    assert exact.abs().max() < 1e-4
    wide = schedule.variational_term(target, variance + 2.0, x0, latents, timesteps)
    assert bool((wide[:2] > exact[:2]).all())
    wide.sum().backward()
    assert variance.grad is not None
    assert target.grad is None


def test_variational_term_matches_the_gaussian_divergence_by_hand() -> None:
    schedule = NoiseSchedule()
    x0, noise, timesteps = _batch([300])
    latents = schedule.add_noise(x0, noise, timesteps)
    wrong = schedule.v_target(x0, noise, timesteps) + 0.1
    abar, before, beta = schedule.alphas_cumprod[300], schedule.alphas_cumprod[299], schedule.betas[300]
    variance = beta * (1 - before) / (1 - abar)
    model_variance = (0.5 * variance.log() + 0.5 * beta.log()).exp()
    shift = beta * before.sqrt() / (1 - abar) * (1 - abar).sqrt() * 0.1
    expected = 0.5 * ((model_variance / variance).log() + (variance + shift**2) / model_variance - 1) / math.log(2)
    found = schedule.variational_term(wrong, torch.zeros_like(x0), x0, latents, timesteps)
    assert float(found) == pytest.approx(float(expected), rel=1e-3)


def test_variational_term_at_the_first_timestep_is_a_likelihood() -> None:
    schedule = NoiseSchedule()
    x0, noise, timesteps = _batch([0])
    latents = schedule.add_noise(x0, noise, timesteps)
    right = schedule.variational_term(
        schedule.v_target(x0, noise, timesteps), torch.zeros_like(x0), x0, latents, timesteps
    )
    wrong = schedule.variational_term(
        schedule.v_target(x0, noise, timesteps) + 3.0, torch.zeros_like(x0), x0, latents, timesteps
    )
    assert 0.0 < float(right) < float(wrong)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 5, 20, 50, 30, 7])
def test_timesteps_equal_diffusers(spacing: str, steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    schedule = NoiseSchedule(ScheduleConfig(timestep_spacing=spacing))  # type: ignore[arg-type]
    for cls, extra in ((diffusers.DDIMScheduler, False), (diffusers.DPMSolverMultistepScheduler, True)):
        theirs = cls(timestep_spacing=spacing, steps_offset=1)
        if spacing == "linspace" and steps == 1 and not extra:
            with pytest.raises(ConfigError, match="trailing"):  # the peer would start from the clean end
                schedule.sampling_timesteps(steps)
            continue
        theirs.set_timesteps(steps)
        assert schedule.sampling_timesteps(steps, extra=extra).tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("steps", [0, -1, 1001, True, 2.0])
def test_impossible_step_counts_are_refused(steps: object) -> None:
    with pytest.raises(ConfigError, match="num_inference_steps"):
        NoiseSchedule().sampling_timesteps(steps)  # type: ignore[arg-type]


def test_spacing_that_leaves_the_table_is_refused_with_a_way_out() -> None:
    with pytest.raises(ConfigError, match="trailing"):
        NoiseSchedule().sampling_timesteps(1000)
    trailing = NoiseSchedule(ScheduleConfig(timestep_spacing="trailing"))
    assert trailing.sampling_timesteps(1000).tolist() == list(range(999, -1, -1))


@pytest.mark.parametrize(
    "changes",
    [
        {"beta_end": 1.0},
        {"beta_start": 0.5},
        {"prediction_type": "x0"},
        {"timestep_spacing": "even"},
        {"num_train_timesteps": 1},
        {"steps_offset": -1},
        {"zero_terminal_snr": True, "prediction_type": "epsilon"},
    ],
)
def test_impossible_configs_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ScheduleConfig().replace(**changes)


def test_config_round_trips() -> None:
    for config in PRESETS.values():
        assert ScheduleConfig.from_dict(config.to_dict()) == config


def test_timesteps_must_be_a_vector_of_integers_in_range() -> None:
    schedule = NoiseSchedule()
    x0, noise, _ = _batch([1, 2])
    for bad in (torch.tensor(3), torch.tensor([1.0, 2.0])):
        with pytest.raises(ShapeError, match="timesteps"):
            schedule.add_noise(x0, noise, bad)
    for out in ([0, 1000], [-1, 0]):
        with pytest.raises(ConfigError, match="expected 0 to 999"):
            schedule.add_noise(x0, noise, torch.tensor(out))


def test_split_variance() -> None:
    output = torch.arange(16.0).view(1, 8, 1, 2)
    prediction, variance = split_variance(output, 4)
    assert variance is not None
    assert torch.equal(torch.cat([prediction, variance], dim=1), output)
    assert split_variance(output, 8)[1] is None
    with pytest.raises(ShapeError, match="channels"):
        split_variance(output, 3)
