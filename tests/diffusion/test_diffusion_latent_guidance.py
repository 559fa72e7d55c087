"""Guided sampling: the right cells, the right noise level, nothing else."""

import numpy as np
import pytest
import torch

from huaben.diffusion.latent_guidance import guided_steps, hold_to, token_mask
from huaben.diffusion.samplers import make_sampler, sample
from huaben.diffusion.schedule import NoiseSchedule, ScheduleConfig
from huaben.errors import ConfigError, ShapeError

SHAPE = (1, 3, 6, 8)


def parts(name="ddim", kind="v_prediction", steps=8):
    sampler = make_sampler(name, NoiseSchedule(ScheduleConfig(prediction_type=kind)), steps)
    generator = torch.Generator().manual_seed(3)
    sketch, noise, start = (torch.randn(SHAPE, generator=generator) for _ in range(3))
    mask = torch.zeros(SHAPE[-2:], dtype=torch.bool)
    mask[2:5, 1:4] = True
    return sampler, sketch, noise, start, mask


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_guided_step_replaces_exactly_the_masked_cells(name, kind):
    sampler, sketch, noise, latents, mask = parts(name, kind)
    inject = hold_to(sampler, sketch, noise, mask, fraction=0.5)
    for i in range(4):
        result = inject(latents, i)
        assert torch.equal(result[..., ~mask], latents[..., ~mask])
        assert torch.equal(result[..., mask], sampler.noise_to(sketch, noise, i)[..., mask])
    assert inject(latents, 4) is latents


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_injected_noise_has_the_level_of_the_latents_it_replaces(name):
    sampler, sketch, noise, latents, mask = parts(name)
    inject = hold_to(sampler, torch.zeros_like(sketch), noise, mask, fraction=1.0)
    for i in range(len(sampler)):
        scale = (inject(latents, i)[..., mask] / noise[..., mask]).mean()
        assert abs(float(scale) - sampler.levels.sigma[i]) < 1e-6
        assert abs(float(scale) - sampler.levels.sigma[i + 1]) > 1e-3


def run(fraction, name="ddim", weight=1.0, masked=True):
    sampler, sketch, noise, start, mask = parts(name)
    mask = mask if masked else torch.zeros_like(mask)
    inject = hold_to(sampler, sketch, noise, mask, fraction=fraction, weight=weight)
    result = sample(lambda latents, i: 0.1 * latents, start, sampler, inject=inject)
    if fraction >= 1.0:
        result = inject(result, len(sampler))
    return result, sketch, mask


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_no_guidance_equals_plain_sampling_bit_for_bit(name):
    sampler, _, _, start, _ = parts(name)
    plain = sample(lambda latents, i: 0.1 * latents, start, sampler)
    assert torch.equal(run(0.0, name)[0], plain)
    assert torch.equal(run(0.5, name, masked=False)[0], plain)
    assert torch.equal(run(0.5, name, weight=0.0)[0], plain)
    assert not torch.equal(run(0.5, name)[0], plain)


def test_full_guidance_ends_at_the_sketch():
    result, sketch, mask = run(1.0)
    assert torch.equal(result[..., mask], sketch[..., mask])
    assert not torch.allclose(result[..., ~mask], sketch[..., ~mask], atol=0.1)


def test_more_guidance_ends_closer_to_the_sketch():
    errors = []
    for fraction in (0.0, 0.25, 0.5, 1.0):
        result, sketch, mask = run(fraction)
        errors.append(float((result - sketch)[..., mask].abs().mean()))
    assert errors == sorted(errors, reverse=True)


def test_less_weight_blends():
    sampler, sketch, noise, latents, mask = parts()
    half = hold_to(sampler, sketch, noise, mask, fraction=1.0, weight=0.5)(latents, 0)
    target = sampler.noise_to(sketch, noise, 0)
    torch.testing.assert_close(half[..., mask], (0.5 * latents + 0.5 * target)[..., mask])


def test_shapes_and_types_are_never_broadcast():
    sampler, sketch, noise, latents, mask = parts()
    with pytest.raises(ShapeError):
        hold_to(sampler, sketch[:, :1], noise, mask, fraction=0.5)
    inject = hold_to(sampler, sketch, noise, mask, fraction=0.5)
    with pytest.raises(ShapeError):
        inject(latents.double(), 0)
    with pytest.raises(ShapeError):
        inject(latents[..., :4], 0)


def test_any_fraction_guides_at_least_one_step():
    assert [guided_steps(f, 20) for f in (0.0, 0.01, 0.2, 1.0)] == [0, 1, 4, 20]


def test_every_character_keeps_a_cell_however_small():
    masks = np.zeros((3, 64, 64), bool)
    masks[0, 10:12, 10:12] = True
    masks[1, 32:64, 0:32] = True
    union, kept = token_mask(masks, (8, 8))
    assert union[1, 1]
    assert union[4:, :4].all()
    assert union.sum() == 17
    assert kept == (1.0, 1.0, 0.0)


def test_grid_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match="7x8"):
        token_mask(np.zeros((1, 64, 64), bool), (7, 8))
