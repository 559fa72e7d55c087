"""Samplers as pure steps, guidance, and the loop around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from huaben.diffusion.samplers import (
    SAMPLERS,
    draw_noise,
    guided,
    guided_batch,
    make_sampler,
    noise_streams,
    sample,
)
from huaben.diffusion.schedule import PRESETS, NoiseSchedule, ScheduleConfig
from huaben.errors import Cancelled, ConfigError, GenerationError, ShapeError
from huaben.rng import torch_stream

# numpy 2 tells diffusers how to write its array conversion
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (2, 4, 6, 8)
NAMES = tuple(SAMPLERS)
KINDS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "trailing", "linspace")


def _schedule(**changes: Any) -> NoiseSchedule:
    return NoiseSchedule(ScheduleConfig().replace(**changes))


def _noise(seed: int = 0) -> torch.Tensor:
    return draw_noise(SHAPE, torch_stream(seed, "test"))


def _fake(latents: torch.Tensor, timestep: int) -> torch.Tensor:
    """A bounded, smooth stand-in for a model that mixes channels and places and depends on the timestep."""
    mixed = latents.roll(1, dims=1) - 0.5 * latents.flip(-1)
    return torch.tanh(0.7 * mixed + 0.3 * (timestep / 1000 - 0.5))


def _oracle(x0: torch.Tensor, sampler: Any) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """The model output that is exactly right for ``x0``."""

    def denoise(latents: torch.Tensor, i: int) -> torch.Tensor:
        alpha, sigma = sampler.levels.alpha[i], sampler.levels.sigma[i]
        noise = (latents - alpha * x0) / sigma
        kind = sampler.schedule.config.prediction_type
        return {"epsilon": noise, "sample": x0, "v_prediction": alpha * noise - sigma * x0}[kind]

    return denoise


def _peer(name: str, config: ScheduleConfig) -> Any:
    """The scheduler of diffusers with the same settings."""
    diffusers = pytest.importorskip("diffusers")
    common = {
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": "scaled_linear",
        "prediction_type": config.prediction_type,
        "timestep_spacing": config.timestep_spacing,
        "steps_offset": config.steps_offset,
    }
    if name == "dpmpp_2m":
        return diffusers.DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", solver_order=2)
    cls = diffusers.DDPMScheduler if name == "ddpm" else diffusers.DDIMScheduler
    return cls(**common, clip_sample=False)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize("preset", ["v1.1", "v1.2", "embedded"])
@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_trajectory_equals_diffusers(name: str, steps: int, preset: str, kind: str) -> None:
    schedule = NoiseSchedule(PRESETS[preset].replace(prediction_type=kind))
    theirs, ours = _peer(name, schedule.config), make_sampler(name, schedule, steps)
    theirs.set_timesteps(steps)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    mine = peer = _noise()
    generators = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for i, timestep in enumerate(theirs.timesteps):
        output = _fake(peer, int(timestep))
        extra = {} if name == "dpmpp_2m" else {"generator": generators[0]}
        mine = ours.step(_fake(mine, int(timestep)), i, mine, generators[1])
        peer = theirs.step(output, timestep, peer, **extra).prev_sample
        assert (mine - peer).abs().max() <= 1e-5, f"step {i}"


@pytest.mark.parametrize("name", NAMES)
def test_single_steps_of_epsilon_equal_diffusers(name: str) -> None:
    """One step at a time from the same latents: epsilon divides by a small alpha, so errors are relative."""
    schedule = _schedule(prediction_type="epsilon")
    theirs, ours = _peer(name, schedule.config), make_sampler(name, schedule, 20)
    theirs.set_timesteps(20)
    latents = _noise()
    generators = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for i, timestep in enumerate(theirs.timesteps):
        output = _fake(latents, int(timestep))
        extra = {} if name == "dpmpp_2m" else {"generator": generators[0]}
        mine = ours.step(output, i, latents, generators[1])
        peer = theirs.step(output, timestep, latents, **extra).prev_sample
        assert torch.allclose(mine, peer, rtol=1e-5, atol=1e-5), f"step {i}"
        latents = peer


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_eta_equals_diffusers(eta: float) -> None:
    schedule = NoiseSchedule(PRESETS["v1.2"])
    theirs, ours = _peer("ddim", schedule.config), make_sampler("ddim", schedule, 20, eta=eta)
    theirs.set_timesteps(20)
    mine = peer = _noise()
    generators = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for i, timestep in enumerate(theirs.timesteps):
        mine = ours.step(_fake(mine, int(timestep)), i, mine, generators[1])
        peer = theirs.step(_fake(peer, int(timestep)), timestep, peer, eta=eta, generator=generators[0]).prev_sample
        assert (mine - peer).abs().max() <= 1e-5, f"step {i}"


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m"])
def test_linspace_equals_diffusers(name: str) -> None:
    schedule = _schedule(timestep_spacing="linspace")
    theirs, ours = _peer(name, schedule.config), make_sampler(name, schedule, 20)
    theirs.set_timesteps(20)
    mine = peer = _noise()
    generators = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for i, timestep in enumerate(theirs.timesteps):
        extra = {} if name == "dpmpp_2m" else {"generator": generators[0]}
        mine = ours.step(_fake(mine, int(timestep)), i, mine, generators[1])
        peer = theirs.step(_fake(peer, int(timestep)), timestep, peer, **extra).prev_sample
    assert (mine - peer).abs().max() <= 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_oracle_recovers_the_picture(name: str, kind: str, spacing: str, steps: int) -> None:
    if spacing == "linspace" and steps == 1 and name != "dpmpp_2m":
        steps = 3  # one point of a line is its clean end, which is refused
    sampler = make_sampler(name, _schedule(prediction_type=kind, timestep_spacing=spacing), steps)
    x0 = _noise(1).double()
    found = sample(_oracle(x0, sampler), _noise().double(), sampler, generator=torch_stream(5))
    assert (found - x0).abs().max() <= 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_zero_terminal_snr_samples_from_pure_noise(name: str, kind: str) -> None:
    schedule = _schedule(zero_terminal_snr=True, timestep_spacing="trailing", prediction_type=kind)
    sampler = make_sampler(name, schedule, 10)
    assert sampler.levels.alpha[0] == 0.0
    x0 = _noise(1)
    found = sample(_oracle(x0, sampler), _noise(), sampler, generator=torch_stream(5))
    assert (found - x0).abs().max() <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_levels_end_clean_and_belong_to_the_timesteps(name: str) -> None:
    schedule = NoiseSchedule(PRESETS["v1.2"])
    sampler = make_sampler(name, schedule, 20)
    assert len(sampler.levels) == 21
    assert (sampler.levels.alpha[-1], sampler.levels.sigma[-1]) == (1.0, 0.0)
    for i, timestep in enumerate(sampler.timesteps.tolist()):
        assert sampler.levels.alpha[i] == pytest.approx(float(schedule.alpha[timestep]), abs=1e-6)
        assert sampler.levels.sigma[i] == pytest.approx(float(schedule.sigma[timestep]), abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_injected_noise_has_the_deviation_of_the_level_it_enters(name: str) -> None:
    sampler = make_sampler(name, NoiseSchedule(PRESETS["v1.2"]), 50)
    generator = torch_stream(0)
    noise = torch.randn(1, 4, 32, 32, generator=generator, dtype=torch.float64)
    noise = (noise - noise.mean()) / noise.std()
    deviations: list[float] = []

    def inject(latents: torch.Tensor, i: int) -> torch.Tensor:
        injected = sampler.noise_to(torch.full_like(noise, 0.25), noise, i)
        deviations.append(float(injected.std()))
        assert float(injected.mean()) == pytest.approx(0.25 * sampler.levels.alpha[i], abs=1e-6)
        return injected

    oracle = _oracle(torch.full_like(noise, 0.25), sampler)
    sample(oracle, noise, sampler, generator=torch_stream(1), inject=inject)
    found = torch.tensor(deviations, dtype=torch.float64)
    assert (found - torch.tensor(sampler.levels.sigma[:-1], dtype=torch.float64)).abs().max() <= 1e-6
    late = torch.tensor(sampler.levels.sigma[1:], dtype=torch.float64)
    assert (found - late).abs().max() > 1e-2, "a level off by one must not pass"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_masked_injection_leaves_the_rest_free_and_ends_on_the_canvas(name: str, kind: str) -> None:
    sampler = make_sampler(name, _schedule(prediction_type=kind), 10)
    canvas, noise, free = _noise(1), _noise(2), _noise(3)
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[..., :4] = True

    def inject(latents: torch.Tensor, i: int) -> torch.Tensor:
        return torch.where(mask, sampler.noise_to(canvas, noise, i), latents)

    oracle = _oracle(free, sampler)
    plain = sample(oracle, _noise(), sampler)
    held = sample(oracle, _noise(), sampler, inject=inject)
    assert torch.allclose(held[~mask], plain[~mask], atol=1e-4)
    assert torch.equal(inject(held, 10)[mask], canvas[mask])


def test_injection_clears_multistep_history_and_an_unchanged_tensor_does_not() -> None:
    schedule = NoiseSchedule(PRESETS["v1.2"])
    plain = make_sampler("dpmpp_2m", schedule, 10)

    def denoise(latents: torch.Tensor, i: int) -> torch.Tensor:
        return _fake(latents, int(plain.timesteps[i]))

    expected = sample(denoise, _noise(), plain)
    assert plain.history.x0 is None
    assert torch.equal(sample(denoise, _noise(), plain, inject=lambda latents, i: latents), expected)
    found = sample(denoise, _noise(), plain, inject=lambda latents, i: latents.clone() if i == 5 else latents)
    by_hand = _noise()
    for i in range(10):
        if i == 5:
            plain.reset()
        by_hand = plain.step(denoise(by_hand, i), i, by_hand)
    assert torch.equal(found, by_hand)
    assert not torch.equal(found, expected)


def test_a_skipped_step_is_not_used_as_history() -> None:
    sampler = make_sampler("dpmpp_2m", NoiseSchedule(PRESETS["v1.2"]), 10)
    latents = _noise()
    sampler.step(_fake(latents, 900), 0, latents)
    skipped = sampler.step(_fake(latents, 500), 5, latents)
    sampler.reset()
    assert torch.equal(skipped, sampler.step(_fake(latents, 500), 5, latents))


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_is_bit_equal_and_arguments_are_untouched(name: str) -> None:
    sampler = make_sampler(name, NoiseSchedule(PRESETS["embedded"]), 8)
    start = _noise()
    runs = [sample(lambda x, i: _fake(x, 100 * i), start, sampler, generator=torch_stream(7)) for _ in range(2)]
    assert torch.equal(*runs)
    assert torch.equal(start, _noise())


def test_one_generator_per_picture_makes_pictures_independent_of_their_batch() -> None:
    sampler = make_sampler("ddpm", NoiseSchedule(PRESETS["embedded"]), 8)

    def run(seeds: list[int]) -> torch.Tensor:
        streams = noise_streams(seeds)
        start = draw_noise((len(seeds), *SHAPE[1:]), streams)
        return sample(lambda x, i: _fake(x, 100 * i), start, sampler, generator=streams)

    assert torch.equal(run([4, 9])[1:], run([9]))
    with pytest.raises(ShapeError, match="generators"):
        draw_noise((3, 4), noise_streams([1, 2]))


@pytest.mark.gpu
def test_noise_is_the_same_on_every_device() -> None:
    moved = draw_noise(SHAPE, torch_stream(7), device="cuda")
    assert torch.equal(moved.cpu(), draw_noise(SHAPE, torch_stream(7)))


def test_half_precision_outputs_leave_latents_in_their_type() -> None:
    for name in NAMES:
        sampler = make_sampler(name, NoiseSchedule(PRESETS["embedded"]), 5)
        latents = _noise()
        assert sampler.step(latents.bfloat16(), 0, latents, torch_stream(1)).dtype == torch.float32


def test_cancel_stops_before_the_next_model_call() -> None:
    sampler = make_sampler("dpmpp_2m", NoiseSchedule(PRESETS["v1.2"]), 10)
    calls: list[int] = []

    def denoise(latents: torch.Tensor, i: int) -> torch.Tensor:
        calls.append(i)
        return _fake(latents, 10)

    start = _noise()
    with pytest.raises(Cancelled, match="after 3 of 10"):
        sample(denoise, start, sampler, should_cancel=lambda: len(calls) == 3)
    assert calls == [0, 1, 2]
    assert torch.equal(start, _noise())
    assert sampler.history.x0 is None
    with pytest.raises(Cancelled, match="after 10 of 10"):
        sample(denoise, start, sampler, should_cancel=lambda: len(calls) == 13)


@pytest.mark.parametrize("name", NAMES)
def test_previews_show_the_predicted_picture_at_every_step(name: str) -> None:
    sampler = make_sampler(name, NoiseSchedule(PRESETS["v1.2"]), 6)
    x0, seen, previews = _noise(1).double(), [], []

    def on_step(i: int, steps: int, preview: Callable[[], torch.Tensor]) -> None:
        seen.append((i, steps))
        previews.append(preview)

    sample(_oracle(x0, sampler), _noise().double(), sampler, generator=torch_stream(1), on_step=on_step)
    assert seen == [(i, 6) for i in range(6)]
    for preview in previews:
        assert (preview() - x0).abs().max() < 1e-5


def test_start_continues_from_a_noised_picture() -> None:
    sampler = make_sampler("ddim", NoiseSchedule(PRESETS["v1.2"]), 10)
    x0, calls = _noise(1), []

    def denoise(latents: torch.Tensor, i: int) -> torch.Tensor:
        calls.append(i)
        return _oracle(x0, sampler)(latents, i)

    found = sample(denoise, sampler.noise_to(x0, _noise(), 6), sampler, start=6)
    assert calls == [6, 7, 8, 9]
    assert (found - x0).abs().max() < 1e-5
    with pytest.raises(ConfigError, match="start"):
        sample(denoise, x0, sampler, start=10)


def test_guidance_one_is_the_conditional_output_exactly() -> None:
    cond, uncond = _noise(1), _noise(2)
    for rescale in (0.0, 0.7, 1.0):
        assert torch.equal(guided(cond, uncond, 1.0, rescale), cond)
    assert torch.equal(guided(cond, uncond, 0.0), uncond)


def test_guidance_follows_the_formula_and_rescale_restores_the_deviation() -> None:
    cond, uncond = _noise(1), _noise(2)
    plain = guided(cond, uncond, 5.0)
    assert torch.allclose(plain, uncond + 5.0 * (cond - uncond))
    assert torch.equal(guided(cond, uncond, 5.0, 0.0), plain)
    full = guided(cond, uncond, 5.0, 1.0)
    assert torch.allclose(full.std(dim=(1, 2, 3)), cond.std(dim=(1, 2, 3)), rtol=1e-5)
    assert torch.allclose(guided(cond, uncond, 5.0, 0.5), 0.5 * plain + 0.5 * full, atol=1e-5)


def test_batched_guidance_takes_the_unconditional_half_first() -> None:
    cond, uncond = _noise(1), _noise(2)
    assert torch.equal(guided_batch(torch.cat([uncond, cond]), 5.0), guided(cond, uncond, 5.0))
    with pytest.raises(ShapeError, match="uncond"):
        guided_batch(cond[:1], 5.0)
    with pytest.raises(ShapeError, match="expected the same"):
        guided(cond, uncond[:1], 5.0)
    with pytest.raises(ConfigError, match="rescale"):
        guided(cond, uncond, 5.0, 2.0)


def test_wrong_uses_say_what_to_do() -> None:
    schedule, latents = NoiseSchedule(PRESETS["v1.2"]), _noise()
    with pytest.raises(ConfigError, match="dpmpp_2m"):
        make_sampler("euler", schedule, 10)
    with pytest.raises(ConfigError, match="eta"):
        make_sampler("ddpm", schedule, 10, eta=1.0)
    with pytest.raises(ConfigError, match="eta"):
        make_sampler("ddim", schedule, 10, eta=2.0)
    sampler = make_sampler("ddpm", schedule, 10)
    with pytest.raises(ConfigError, match="generator"):
        sampler.step(latents, 0, latents)
    with pytest.raises(ShapeError, match="split_variance"):
        sampler.step(torch.cat([latents, latents], dim=1), 0, latents)
    with pytest.raises(ConfigError, match="step 10"):
        sampler.step(latents, 10, latents)
    with pytest.raises(ConfigError, match="level 11"):
        sampler.noise_to(latents, latents, 11)
    with pytest.raises(ShapeError, match="inject"):
        sample(_fake, latents, sampler, generator=torch_stream(1), inject=lambda x, i: x[:1])


def test_results_that_are_not_finite_are_an_error() -> None:
    sampler = make_sampler("ddim", NoiseSchedule(PRESETS["v1.2"]), 3)
    with pytest.raises(GenerationError, match="not finite"):
        sample(lambda x, i: x * float("nan"), _noise(), sampler)
