"""Three checkpoint layouts: the same numbers, bit-equal round trips, errors that name weights."""

from __future__ import annotations

import json

import pytest
import torch
from dit_peers import TINY, diffusers_peer, make_inputs, make_sizes, max_abs, run_peer, text_of, tiny_model, twin_of
from safetensors.torch import load_file, save_file

from huaben.attention.rope import rotary_table
from huaben.diffusion.convert import (
    config_from_diffusers,
    config_from_state,
    config_to_diffusers,
    detect_layout,
    from_layout,
    rules,
    to_layout,
)
from huaben.diffusion.dit import PRESETS, HunyuanDiT, HunyuanDiTConfig
from huaben.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.filterwarnings("default")  # other packages' import-time warnings


def sizes_for(config: HunyuanDiTConfig) -> dict[str, torch.Tensor]:
    return make_sizes() if config.use_style_and_size else {}


@pytest.mark.parity
@pytest.mark.parametrize("grid", [(4, 4), (6, 3), (2, 5)], ids=str)
@pytest.mark.parametrize("num_layers", [4, 6, 8])
@pytest.mark.parametrize("use_style_and_size", [True, False])
def test_output_equals_diffusers(use_style_and_size, num_layers, grid):
    config = TINY.replace(num_layers=num_layers, use_style_and_size=use_style_and_size)
    peer = diffusers_peer(config, seed=num_layers)
    model, inputs, rope = twin_of(peer, config), make_inputs(config, grid=grid), rotary_table(*grid, config.head_dim)
    sizes = sizes_for(config)
    expected = run_peer(peer, inputs, rope, sizes)
    with torch.no_grad():
        assert max_abs(model(**inputs, **sizes, rope=rope), expected) <= 1e-5
        assert max_abs(model(**inputs, **sizes), expected) <= 1e-5  # the official table is the default
        state = model.encode_text(**text_of(inputs), **sizes)
        table = model.plan(inputs["timesteps"][None], state)
        assert max_abs(model.step(inputs["latents"], 0, state, table), expected) <= 1e-5
    assert float(expected.std()) > 0.1


@pytest.mark.parity
@pytest.mark.parametrize("use_style_and_size", [True, False])
def test_control_residuals_equal_diffusers(use_style_and_size):
    config = TINY.replace(num_layers=6, use_style_and_size=use_style_and_size)
    peer = diffusers_peer(config)
    model, inputs, rope = twin_of(peer, config), make_inputs(config), rotary_table(4, 4, config.head_dim)
    sizes, control = sizes_for(config), [torch.randn(2, 16, 32) for _ in range(2)]
    with torch.no_grad():
        expected = peer(
            inputs["latents"],
            inputs["timesteps"],
            inputs["clip_states"],
            inputs["clip_mask"],
            inputs["t5_states"],
            inputs["t5_mask"],
            sizes.get("image_meta_size"),
            sizes.get("style"),
            rope,
            controlnet_block_samples=list(control),
            return_dict=False,
        )[0]
        assert max_abs(model(**inputs, **sizes, control=control), expected) <= 1e-5


@pytest.mark.parity
@pytest.mark.parametrize("use_style_and_size", [True, False])
def test_diffusers_folder_loads(tmp_path, use_style_and_size):
    config = TINY.replace(use_style_and_size=use_style_and_size)
    peer = diffusers_peer(config)
    peer.save_pretrained(tmp_path)
    model = HunyuanDiT.from_pretrained(tmp_path)
    assert model.config == config
    assert not model.training
    inputs, sizes = make_inputs(config), sizes_for(config)
    expected = run_peer(peer, inputs, rotary_table(4, 4, config.head_dim), sizes)
    with torch.no_grad():
        assert max_abs(model(**inputs, **sizes), expected) <= 1e-5
    alone = HunyuanDiT.from_pretrained(tmp_path / "diffusion_pytorch_model.safetensors")  # without its config.json
    assert alone.config == config


@pytest.mark.parity
def test_diffusers_sharded_folder_loads(tmp_path):
    peer = diffusers_peer(TINY)
    peer.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "diffusion_pytorch_model.safetensors.index.json").is_file()
    expected = twin_of(peer, TINY).state_dict()
    found = HunyuanDiT.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parity
def test_diffusers_reads_what_we_write(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    model = tiny_model(use_style_and_size=True)
    model.save_pretrained(tmp_path, layout="diffusers")
    peer = diffusers.HunyuanDiT2DModel.from_pretrained(tmp_path).eval()
    inputs, sizes = make_inputs(TINY), make_sizes()
    with torch.no_grad():
        ours = model(**inputs, **sizes)
    assert max_abs(run_peer(peer, inputs, rotary_table(4, 4, 16), sizes), ours) <= 1e-5


@pytest.mark.parametrize("layout", ["diffusers", "official"])
@pytest.mark.parametrize("changes", [{}, {"use_style_and_size": True, "num_layers": 6}], ids=["v1.2", "v1.1"])
def test_round_trip_is_bit_equal(layout, changes):
    model = tiny_model(**changes)
    ours = model.state_dict()
    foreign = to_layout(ours, model.config, layout)
    assert detect_layout(foreign) == layout
    assert HunyuanDiTConfig.from_dict(config_from_state(foreign, layout)) == model.config
    back = from_layout(foreign, model.config, layout)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.items())
    again = to_layout(back, model.config, layout)
    assert all(torch.equal(again[name], tensor) for name, tensor in foreign.items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", "folder", "trainer"])
def test_official_checkpoint_loads(tmp_path, suffix):
    model = tiny_model(use_style_and_size=True)
    state = to_layout(model.state_dict(), model.config, "official")
    state = {name: tensor.clone() for name, tensor in state.items()}
    state["style_embedder.weight"] = torch.cat([state["style_embedder.weight"], torch.ones(2, 32)])  # unused rows
    path = tmp_path / "pytorch_model_ema.pt"
    if suffix == ".safetensors":
        path = tmp_path / "model.safetensors"
        save_file(state, path)
    elif suffix == "trainer":
        torch.save({"module": {name: tensor + 1 for name, tensor in state.items()}, "ema": state}, path)
    else:
        torch.save(state, path)
        path = tmp_path if suffix == "folder" else path
    loaded = HunyuanDiT.from_pretrained(path)
    assert loaded.config == model.config
    inputs, sizes = make_inputs(TINY), make_sizes()
    with torch.no_grad():
        assert torch.equal(loaded(**inputs, **sizes), model(**inputs, **sizes))


@pytest.mark.parametrize("layout", ["huaben", "diffusers", "official"])
def test_saved_model_loads_equal(tmp_path, layout):
    model = tiny_model()
    model.save_pretrained(tmp_path, layout=layout)
    loaded = HunyuanDiT.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert all(weight.requires_grad for weight in loaded.parameters())
    model.save_pretrained(tmp_path, layout=layout, dtype=torch.bfloat16)
    assert HunyuanDiT.from_pretrained(tmp_path, dtype=None).dtype == torch.bfloat16


@pytest.mark.parametrize("layout", ["diffusers", "official"])
def test_missing_and_extra_weights_are_named(tmp_path, layout):
    model = tiny_model()
    state = {name: t.clone() for name, t in to_layout(model.state_dict(), model.config, layout).items()}
    gone = {"diffusers": "blocks.2.attn2.to_k.bias", "official": "blocks.2.attn2.kv_proj.bias"}[layout]
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor for name, tensor in state.items() if name != gone}, path)
    with pytest.raises(CheckpointError, match=gone.replace(".", r"\.")):
        HunyuanDiT.from_pretrained(path)
    save_file({**state, "blocks.2.surprise": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"blocks\.2\.surprise"):
        HunyuanDiT.from_pretrained(path)
    sized = {"diffusers": "pos_embed.proj.weight", "official": "x_embedder.proj.weight"}[layout]
    save_file({**state, sized.replace("weight", "bias"): torch.zeros(5)}, path)
    with pytest.raises(CheckpointError, match="the model expects"):
        HunyuanDiT.from_pretrained(path)
    needed = "text_embedding_padding"
    save_file({name: tensor for name, tensor in state.items() if name != needed}, path)
    with pytest.raises(CheckpointError, match=needed):
        HunyuanDiT.from_pretrained(path)


def swapped(state: dict[str, torch.Tensor], mistake: str) -> dict[str, torch.Tensor]:
    """Diffusers' weights as a converter with one mistake would have read them."""
    out = dict(state)
    for name, tensor in state.items():
        if mistake == "norms" and ".norm2." in name:
            other = name.replace(".norm2.", ".norm3.")
            out[name], out[other] = state[other], tensor
        elif mistake == "halves" and name.startswith("norm_out.linear"):
            out[name] = torch.cat(tensor.chunk(2)[::-1])
        elif mistake == "qkv" and ".attn1.to_q." in name:
            other = name.replace("to_q", "to_k")
            out[name], out[other] = state[other], tensor
        elif mistake == "kv" and ".attn2.to_k." in name:
            other = name.replace("to_k", "to_v")
            out[name], out[other] = state[other], tensor
    return out


@pytest.mark.parametrize("mistake", ["norms", "halves", "qkv", "kv"])
def test_every_transform_matters(mistake):
    """Leaving out one transform changes the output, so the parity tests would notice."""
    model = tiny_model()
    state = to_layout(model.state_dict(), model.config, "diffusers")
    wrong = HunyuanDiT(model.config).eval()
    wrong.load_state_dict(from_layout(swapped(state, mistake), model.config, "diffusers"))
    inputs = make_inputs(TINY)
    with torch.no_grad():
        assert max_abs(wrong(**inputs), model(**inputs)) > 1e-3


@pytest.mark.parametrize(
    ("name", "layout", "count"),
    [("DiT-g/2", "official", 1304), ("DiT-g/2-v1.1", "official", 1305), ("DiT-g/2", "diffusers", 1544)],
)
def test_released_layouts_have_their_number_of_weights(name, layout, count):
    config = PRESETS[name]
    found = rules(layout, num_layers=config.num_layers, use_style_and_size=config.use_style_and_size)
    assert sum(len(rule.foreign) for rule in found) == count
    with torch.device("meta"):
        state = to_layout(HunyuanDiT(config).state_dict(), config, layout)
    assert len(state) == count
    assert HunyuanDiTConfig.from_dict(config_from_state(state, layout)).mlp_dim == config.mlp_dim == 6144


def test_configs_translate_both_ways():
    for config in (TINY, PRESETS["DiT-g/2"], PRESETS["DiT-XL/2-v1.1"]):
        assert HunyuanDiTConfig.from_dict(config_from_diffusers(config_to_diffusers(config))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ({"hidden_size": 48}, "hidden_size=48"),
        ({"activation_fn": "geglu"}, "geglu"),
        ({"num_frames": 3}, "num_frames"),
        ({"in_channels": None}, "in_channels"),
        ({"num_layers": 5}, "odd"),
    ],
)
def test_bad_diffusers_configs_are_refused(tmp_path, change, message):
    tiny_model().save_pretrained(tmp_path, layout="diffusers")
    values = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        HunyuanDiT.from_pretrained(tmp_path)


class _Payload:
    def __reduce__(self):
        return print, ("executed",)


def test_pickles_with_code_are_refused(tmp_path, capsys):
    path = tmp_path / "pytorch_model_ema.pt"
    torch.save({"module": _Payload()}, path)
    with pytest.raises(CheckpointError, match="plain weights"):
        HunyuanDiT.from_pretrained(path)
    assert "executed" not in capsys.readouterr().out


def test_unusable_places_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no file or folder"):
        HunyuanDiT.from_pretrained(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="0 weights files"):
        HunyuanDiT.from_pretrained(tmp_path)
    torch.save(torch.zeros(1), tmp_path / "pytorch_model_ema.pt")
    with pytest.raises(CheckpointError, match="no plain dict"):
        HunyuanDiT.from_pretrained(tmp_path)
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model_ema.pt")
    with pytest.raises(CheckpointError, match="not a Hunyuan-DiT"):
        HunyuanDiT.from_pretrained(tmp_path)
    torch.save({}, tmp_path / "pytorch_model_module.pt")
    with pytest.raises(CheckpointError, match="2 weights files"):
        HunyuanDiT.from_pretrained(tmp_path)
    (tmp_path / "pytorch_model_ema.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="plain weights"):
        HunyuanDiT.from_pretrained(tmp_path / "pytorch_model_ema.pt")
    save_file({"patch_embed.weight": torch.zeros(2, 2)}, tmp_path / "ours.safetensors")
    with pytest.raises(CheckpointError, match="without their config"):
        HunyuanDiT.from_pretrained(tmp_path / "ours.safetensors")


def test_settings_that_a_layout_lacks_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="pooler_heads=4"):
        tiny_model(pooler_heads=4).save_pretrained(tmp_path, layout="diffusers")
    with pytest.raises(ConfigError, match="rope_base=16"):
        tiny_model(rope_base=16).save_pretrained(tmp_path, layout="official")
    with pytest.raises(ConfigError, match="layout='onnx'"):
        tiny_model().save_pretrained(tmp_path, layout="onnx")
    assert not list(tmp_path.iterdir())


def test_saved_diffusers_weights_share_no_memory(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path, layout="diffusers")
    state = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert sum(tensor.numel() for tensor in state.values()) == model.num_parameters()
