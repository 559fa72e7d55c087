"""The transformer's wiring: skips, masks, text states, caches, precision."""

from __future__ import annotations

import copy

import pytest
import torch
from dit_peers import TINY, make_inputs, make_sizes, max_abs, text_of, tiny_model
from torch import Tensor

from huaben.attention.rope import point_positions
from huaben.bench import dit_speed
from huaben.diffusion.blocks import patchify, unpatchify
from huaben.diffusion.dit import PRESETS, HunyuanDiT, HunyuanDiTConfig, SkipCache, TextState, check_finite
from huaben.errors import ConfigError, GenerationError, ShapeError


@pytest.fixture(autouse=True)
def _no_grad():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


# --- config and size -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("DiT-g/2", 1_499_952_032),
        ("DiT-g/2-v1.1", 1_516_534_048),
        ("DiT-XL/2", 713_784_480),
        ("DiT-XL/2-v1.1", 726_171_936),
        ("tiny", 99_312),
    ],
)
def test_presets_have_the_published_parameter_counts(name, count):
    with torch.device("meta"):
        assert HunyuanDiT(PRESETS[name]).num_parameters() == count


def test_giant_preset_has_the_published_block_size():
    with torch.device("meta"):
        model = HunyuanDiT(PRESETS["DiT-g/2"])
    blocks = sum(weight.numel() for weight in model.blocks.parameters())
    shifts = sum(weight.numel() for weight in model.shifts.parameters())
    assert blocks + shifts == 1_439_135_872
    assert sum(weight.numel() for weight in model.pooler.parameters()) == 15_213_568


def test_embedded_preset_is_small():
    with torch.device("meta"):
        model = HunyuanDiT(PRESETS["embedded"])
    assert model.config.hidden_size == 192
    assert model.num_parameters() == 4_431_664


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 5}, "num_layers=5 is odd"),
        ({"head_dim": 18}, "head_dim=18 is not a multiple of 4"),
        ({"pooler_heads": 3}, "pooler_heads=3 does not divide"),
        ({"num_heads": 0}, "num_heads=0 is not positive"),
        ({"mlp_ratio": -1.0}, "mlp_ratio=-1.0"),
    ],
)
def test_impossible_configs_are_refused(change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        TINY.replace(**change)
    assert caught.value.hint


def test_config_round_trips():
    for config in PRESETS.values():
        assert HunyuanDiTConfig.from_dict(config.to_dict()) == config


def test_new_model_predicts_zero():
    model = HunyuanDiT(TINY)
    assert torch.equal(model(**make_inputs(TINY)), torch.zeros(2, 8, 8, 8))


def test_patches_round_trip():
    latents = torch.randn(2, 3, 4, 6)
    tokens = patchify(latents, 2)
    assert tokens.shape == (2, 6, 12)
    assert torch.equal(tokens[0, 1].reshape(3, 2, 2), latents[0, :, 0:2, 2:4])  # rows first
    out = tokens.unflatten(-1, (3, 2, 2)).permute(0, 1, 3, 4, 2).flatten(2)  # (row, column, channel)
    assert torch.equal(unpatchify(out, 4, 6, 2), latents)


# --- skips and control ---------------------------------------------------------------------------------------------


def record(model: HunyuanDiT) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Return what blocks give and what their skip inputs receive, filled by the next forward pass."""
    given: dict[int, Tensor] = {}
    received: dict[int, Tensor] = {}
    dim = model.config.hidden_size
    for j, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, __, output, j=j: given.__setitem__(j, output))
        if block.has_skip:
            block.skip_norm.register_forward_hook(lambda _, args, __, j=j: received.__setitem__(j, args[0][..., dim:]))
    return given, received


@pytest.mark.parametrize("num_layers", [2, 4, 8])
def test_long_skips_mirror(num_layers):
    model = tiny_model(num_layers=num_layers)
    given, received = record(model)
    model(**make_inputs(TINY))
    assert sorted(received) == list(range(num_layers // 2 + 1, num_layers))
    for j, skip in received.items():
        assert torch.equal(skip, given[num_layers - 1 - j])
    names = {name for name, _ in model.named_parameters()}
    for j in range(num_layers):
        assert (f"blocks.{j}.skip_norm.weight" in names) == (j > num_layers // 2)


@pytest.mark.parametrize("i", [0, 1, 2])
def test_control_residual_reaches_its_mirror(i):
    model = tiny_model(num_layers=8)
    given, received = record(model)
    control = [torch.zeros(2, 16, 32) for _ in range(3)]
    control[i] = torch.randn(2, 16, 32)
    model(**make_inputs(TINY), control=control)
    for j, skip in received.items():
        expected = given[7 - j] + control[7 - j]
        assert torch.equal(skip, expected)
        assert torch.equal(skip, given[7 - j]) == (j != 7 - i)


def test_control_count_is_checked():
    with pytest.raises(ShapeError, match="control has 1 residuals, expected 3"):
        tiny_model(num_layers=8)(**make_inputs(TINY), control=[torch.zeros(2, 16, 32)])


# --- masks ---------------------------------------------------------------------------------------------------------


def test_masked_clip_features_have_no_effect():
    model, inputs = tiny_model(), make_inputs(TINY)
    expected = model(**inputs)
    noisy = torch.where(inputs["clip_mask"][..., None], inputs["clip_states"], torch.randn(2, 8, 32))
    assert torch.equal(model(**inputs | {"clip_states": noisy}), expected)


def test_masked_t5_features_act_through_the_pooler_only():
    model, inputs = tiny_model(), make_inputs(TINY)
    noisy = torch.where(inputs["t5_mask"][..., None], inputs["t5_states"], torch.randn(2, 12, 16))
    assert max_abs(model(**inputs | {"t5_states": noisy}), model(**inputs)) > 1e-3
    model.pooler.out_proj.weight.zero_()
    assert torch.equal(model(**inputs | {"t5_states": noisy}), model(**inputs))


def test_masked_text_equals_the_padding():
    model, inputs = tiny_model(), make_inputs(TINY)
    nothing = {"clip_mask": torch.zeros(2, 8), "t5_mask": torch.zeros(2, 12)}
    state = model.encode_text(**text_of(inputs) | nothing)
    for block, keys, values in zip(model.blocks, state.keys, state.values, strict=True):
        expected = block.cross_attention.keys_values(model.text_padding.expand(2, -1, -1))
        torch.testing.assert_close((keys, values), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_text_state_of_sampling_equals_that_of_training(share):
    """Sampling projects distinct tokens once; training projects every position."""
    model, inputs = tiny_model(), make_inputs(TINY, batch=3)
    inputs |= {name: torch.rand_like(inputs[name], dtype=torch.float32) < share for name in ("clip_mask", "t5_mask")}
    sampling = model.encode_text(**text_of(inputs))
    with torch.enable_grad():
        training = model.encode_text(**text_of(inputs))
    torch.testing.assert_close(sampling.keys, training.keys, rtol=0, atol=2e-6)
    torch.testing.assert_close(sampling.values, training.values, rtol=0, atol=2e-6)


def test_integer_masks_equal_bool_masks():
    model, inputs = tiny_model(), make_inputs(TINY)
    numbers = {name: inputs[name].long() for name in ("clip_mask", "t5_mask")}
    assert torch.equal(model(**inputs | numbers), model(**inputs))


@pytest.mark.parametrize("changes", [{}, {"use_style_and_size": True}], ids=["v1.2", "v1.1"])
def test_pictures_of_a_batch_do_not_mix(changes):
    model = tiny_model(**changes)
    inputs = make_inputs(TINY, batch=3, grid=(3, 5)) | (make_sizes(3) if changes else {})
    expected = model(**inputs)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        model(**{name: tensor[order] for name, tensor in inputs.items()}), expected[order], rtol=0, atol=2e-6
    )
    for b in range(3):
        alone = model(**{name: tensor[b : b + 1] for name, tensor in inputs.items()})
        torch.testing.assert_close(alone, expected[b : b + 1], rtol=0, atol=2e-6)


# --- text state, plan, step ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"use_style_and_size": True}], ids=["v1.2", "v1.1"])
def test_planned_steps_equal_forward(changes):
    model, inputs = tiny_model(**changes), make_inputs(TINY)
    sizes = make_sizes() if changes else {}
    state = model.encode_text(**text_of(inputs), **sizes)
    timesteps = torch.linspace(999, 0, 10)
    table = model.plan(timesteps, state)
    assert table.num_steps == 10
    for i, t in enumerate(timesteps):
        latents = torch.randn(2, 4, 8, 8)
        expected = model(**inputs | {"latents": latents, "timesteps": t.expand(2)}, **sizes)
        assert max_abs(model.step(latents, i, state, table), expected) <= 2e-6


def test_context_and_offset_pass_through_the_state():
    model, inputs = tiny_model(), make_inputs(TINY)
    grounding = {
        "context": torch.randn(2, 3, 32),
        "context_positions": point_positions(torch.rand(2, 3, 2), 4, 4),
        "token_offset": torch.randn(2, 16, 32),
    }
    expected = model(**inputs, **grounding)
    state = model.encode_text(**text_of(inputs), **grounding, grid=(4, 4))
    assert state.keys[0].shape == (2, 2, 8 + 12 + 3, 16)
    table = model.plan(inputs["timesteps"][None], state)
    assert max_abs(model.step(inputs["latents"], 0, state, table), expected) <= 1e-6
    plain = model(**inputs)
    for name, tensor in grounding.items():
        other = tensor + torch.randn_like(tensor)
        assert max_abs(model(**inputs, **grounding | {name: other}), expected) > 1e-4
    assert max_abs(expected, plain) > 1e-3
    zero_offset = model(**inputs, token_offset=torch.zeros(2, 16, 32))
    assert torch.equal(zero_offset, plain)


def test_context_order_does_not_matter():
    model, inputs = tiny_model(), make_inputs(TINY)
    context, positions = torch.randn(2, 4, 32), torch.rand(2, 4, 2) * 32
    order = torch.tensor([3, 1, 0, 2])
    expected = model(**inputs, context=context, context_positions=positions)
    found = model(**inputs, context=context[:, order], context_positions=positions[:, order])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_joined_states_equal_a_batch():
    model = tiny_model()
    first, second = make_inputs(TINY, batch=1, seed=1), make_inputs(TINY, batch=1, seed=2)
    states = [model.encode_text(**text_of(inputs), token_offset=torch.randn(1, 16, 32)) for inputs in (first, second)]
    joined = TextState.join(states)
    latents, timesteps = torch.randn(1, 4, 8, 8), torch.tensor([500.0, 20.0])
    table = model.plan(timesteps, joined)
    both = model.step(latents.expand(2, -1, -1, -1), 1, joined, table)
    for b, state in enumerate(states):
        alone = model.step(latents, 1, state, model.plan(timesteps, state))
        torch.testing.assert_close(both[b : b + 1], alone, rtol=0, atol=2e-6)
    with pytest.raises(ShapeError, match="no text states"):
        TextState.join([])
    with pytest.raises(ShapeError, match="differ in model"):
        TextState.join([states[0], tiny_model().encode_text(**text_of(first))])
    with pytest.raises(ShapeError, match="token_offset"):
        TextState.join([states[0], model.encode_text(**text_of(first))])


def test_stale_states_are_detected():
    model, other, inputs = tiny_model(), tiny_model(), make_inputs(TINY)
    latents, timesteps = inputs["latents"], torch.tensor([10.0, 5.0])
    state = model.encode_text(**text_of(inputs))
    table = model.plan(timesteps, state)
    new_prompt = model.encode_text(**text_of(make_inputs(TINY, seed=1)))
    assert new_prompt.fingerprint != state.fingerprint
    with pytest.raises(GenerationError, match="planned for text state"):
        model.step(latents, 0, new_prompt, table)
    with pytest.raises(GenerationError, match="another model"):
        other.plan(timesteps, state)
    with pytest.raises(GenerationError, match="another model"):
        other.step(latents, 0, state, table)
    with pytest.raises(GenerationError, match="another model"):
        copy.deepcopy(model).plan(timesteps, state)
    with pytest.raises(ShapeError, match="latents hold 1 pictures, the text state 2"):
        model.step(latents[:1], 0, state, table)
    with pytest.raises(ShapeError, match="step 2 is not planned"):
        model.step(latents, 2, state, table)
    model.shifts.bias.add_(1.0)
    with pytest.raises(GenerationError, match="weights changed"):
        model.plan(timesteps, state)


def test_state_belongs_to_its_grid():
    model, inputs = tiny_model(), make_inputs(TINY, grid=(4, 6))
    state = model.encode_text(**text_of(inputs), grid=(6, 4))
    with pytest.raises(ShapeError, match=r"\(4, 6\).*\(6, 4\)"):
        model.step(inputs["latents"], 0, state, model.plan(torch.tensor([1.0]), state))


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("latents", torch.zeros(2, 3, 8, 8), "latents are"),
        ("latents", torch.zeros(2, 4, 8, 7), "multiples of 2"),
        ("timesteps", torch.zeros(3), "timesteps are"),
        ("clip_states", torch.zeros(2, 7, 32), "clip_states is"),
        ("clip_mask", torch.zeros(2, 9), "clip_mask is"),
        ("t5_states", torch.zeros(2, 12, 17), "t5_states is"),
        ("t5_mask", torch.zeros(1, 12), "t5_mask is"),
        ("context", torch.zeros(2, 1, 31), "context is"),
        ("context_positions", torch.zeros(2, 1, 2), "without context"),
        ("token_offset", torch.zeros(2, 15, 32), "token_offset is"),
        ("rope", (torch.zeros(16, 8), torch.zeros(16, 8)), "rope tables"),
        ("style", torch.zeros(2, dtype=torch.long), "no such conditions"),
    ],
)
def test_misshapen_inputs_are_refused(name, tensor, message):
    with pytest.raises(ShapeError, match=message):
        tiny_model()(**make_inputs(TINY) | {name: tensor})


def test_sizes_are_needed_where_they_are_a_condition():
    with pytest.raises(ShapeError, match="image_meta_size is None"):
        tiny_model(use_style_and_size=True)(**make_inputs(TINY))


# --- skip cache ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_cached_step_on_the_same_input_is_exact(depth):
    model, inputs = tiny_model(num_layers=8), make_inputs(TINY)
    state = model.encode_text(**text_of(inputs))
    table = model.plan(torch.tensor([400.0]), state)
    cache, runs = SkipCache(2, depth), []
    for block in model.blocks:
        block.register_forward_hook(lambda *_: runs.append(1))
    full = model.step(inputs["latents"], 0, state, table)
    assert torch.equal(model.step(inputs["latents"], 0, state, table, cache=cache), full)
    runs.clear()
    assert torch.equal(model.step(inputs["latents"], 0, state, table, cache=cache), full)
    assert len(runs) == 2 * depth
    runs.clear()
    model.step(inputs["latents"], 0, state, table, cache=cache)
    assert len(runs) == 8  # every second step is full


def test_cache_keeps_fresh_ends_only():
    model, inputs = tiny_model(num_layers=8), make_inputs(TINY)
    state = model.encode_text(**text_of(inputs))
    table = model.plan(torch.tensor([900.0, 100.0]), state)
    cache, latents = SkipCache(2, 1), torch.randn(2, 4, 8, 8)
    model.step(inputs["latents"], 0, state, table, cache=cache)
    cached, full = model.step(latents, 1, state, table, cache=cache), model.step(latents, 1, state, table)
    assert max_abs(cached, full) > 1e-4
    cache.reset()
    assert torch.equal(model.step(latents, 1, state, table, cache=cache), full)


def test_interval_one_never_reuses_and_new_prompts_start_full():
    model, inputs = tiny_model(), make_inputs(TINY)
    state = model.encode_text(**text_of(inputs))
    table = model.plan(torch.tensor([900.0, 100.0]), state)
    cache, often = SkipCache(1, 1), SkipCache(5, 1)
    for i in (0, 1):
        latents = torch.randn(2, 4, 8, 8)
        assert torch.equal(model.step(latents, i, state, table, cache=cache), model.step(latents, i, state, table))
    model.step(latents, 0, state, table, cache=often)
    state = model.encode_text(**text_of(make_inputs(TINY, seed=3)))
    table = model.plan(torch.tensor([900.0]), state)
    assert torch.equal(model.step(latents, 0, state, table, cache=often), model.step(latents, 0, state, table))


def test_impossible_caches_are_refused():
    model, inputs = tiny_model(), make_inputs(TINY)
    state = model.encode_text(**text_of(inputs))
    with pytest.raises(ConfigError, match="cache depth 2 exceeds"):
        model.step(inputs["latents"], 0, state, model.plan(torch.tensor([1.0]), state), cache=SkipCache(2, 2))
    with pytest.raises(ConfigError, match="interval=0"):
        SkipCache(0)


# --- precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_output_is_near(dtype):
    model, inputs = tiny_model(use_style_and_size=True), make_inputs(TINY) | make_sizes()
    expected = model(**inputs)
    found = model.to(dtype)(**inputs)
    assert found.dtype == torch.float32  # that of the latents
    assert float((found - expected).norm() / expected.norm()) < 2e-2


def test_autocast_output_is_near():
    model, inputs = tiny_model(), make_inputs(TINY)
    expected = model(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(**inputs)
    assert float((found - expected).norm() / expected.norm()) < 2e-2


def test_same_input_twice_is_bit_equal():
    model, inputs = tiny_model(), make_inputs(TINY)
    assert torch.equal(model(**inputs), model(**inputs))


def test_finite_check_names_the_block():
    model, inputs = tiny_model(), make_inputs(TINY)
    remove = check_finite(model)
    model(**inputs)
    model.blocks[2].mlp.fc2.bias[0] = float("inf")
    with pytest.raises(GenerationError, match=r"blocks\.2 "):
        model(**inputs)
    remove()
    assert not torch.isfinite(model(**inputs)).all()


# --- speed measurement ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.filterwarnings("default")
def test_speed_measurement_compares_equal_results():
    pytest.importorskip("diffusers")
    threads = torch.get_num_threads()
    results = dit_speed.run(steps=2, rounds=1, grids=[(2, 3)], num_heads=1, head_dim=16, num_layers=2, threads=1)
    (case,) = results["cases"]
    assert case["tokens"] == 6
    assert case["max_difference"] < 1e-4 < case["max_latent"]
    assert case["ratio"] > 0
    assert torch.get_num_threads() == threads
    with pytest.raises(ConfigError, match="steps=0"):
        dit_speed.run(steps=0)
