"""The autoencoder: parity with diffusers, folders, shapes, latents and the training loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from huaben.diffusion.autoencoder import (
    PRESETS,
    Autoencoder,
    AutoencoderConfig,
    AutoencoderLossConfig,
    autoencoder_loss,
)
from huaben.errors import CheckpointError, ConfigError, HuabenError, ShapeError
from huaben.rng import torch_stream

TINY = PRESETS["tiny"]
FOLDED = TINY.replace(pixel_unshuffle=2, latent_channels=3, mid_block_add_attention=False, use_quant_conv=False)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def _model(config: AutoencoderConfig = TINY, seed: int = 0) -> Autoencoder:
    """A model with every weight random, so that nothing hides behind a zero or a one."""
    model, generator = Autoencoder(config), torch_stream(seed, "weights")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return model.eval()


def _images(height: int = 16, width: int = 24, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch_stream(0, "images")) * 2 - 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mid_block_add_attention": False},
        {"use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 16, "shift_factor": 0.1},
        {"block_out_channels": (8, 16, 24), "layers_per_block": 2},
        {"block_out_channels": (8,)},
    ],
)
@torch.no_grad()
def test_parity_with_diffusers(tmp_path: Path, changes: dict[str, object]) -> None:
    diffusers = pytest.importorskip("diffusers")
    ours = _model(TINY.replace(**changes))
    ours.save_pretrained(tmp_path, layout="diffusers")
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path).eval()
    images = _images()
    mean, logvar = ours.encode(images)
    peer = theirs.encode(images).latent_dist
    assert theirs.config.scaling_factor == ours.config.scaling_factor
    assert (mean - peer.mean).abs().max() <= 1e-5
    assert (logvar - peer.logvar).abs().max() <= 1e-5
    assert (ours.decode_raw(mean) - theirs.decode(mean).sample).abs().max() <= 1e-5


@torch.no_grad()
def test_loads_a_folder_that_diffusers_saved_and_gives_it_back(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latents_mean=[0.1, 0.2, 0.3, 0.4],
        latents_std=[1.0, 2.0, 3.0, 4.0],
        scaling_factor=0.13025,
    ).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Autoencoder.from_pretrained(tmp_path / "theirs")
    assert ours.config.latent_mean == (0.1, 0.2, 0.3, 0.4)
    assert not ours.training
    assert (ours.encode(_images())[0] - theirs.encode(_images()).latent_dist.mean).abs().max() <= 1e-5
    ours.save_pretrained(tmp_path / "back", layout="diffusers")
    first, second = load_file(tmp_path / "theirs" / WEIGHTS), load_file(tmp_path / "back" / WEIGHTS)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert diffusers.AutoencoderKL.from_pretrained(tmp_path / "back").config.latents_std == [1.0, 2.0, 3.0, 4.0]


def test_sdxl_preset_has_its_published_size() -> None:
    with torch.device("meta"):
        model = Autoencoder(PRESETS["sdxl"])
    assert model.num_parameters() == 83_653_863
    assert model.factor == 8


def test_attention_names_of_old_diffusers_files_are_understood(tmp_path: Path) -> None:
    model = _model()
    model.save_pretrained(tmp_path, layout="diffusers")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load((tmp_path / WEIGHTS).read_bytes())
    for new_part, old_part in old.items():
        state = {name.replace(f".{new_part}.", f".{old_part}."): tensor for name, tensor in state.items()}
    assert "encoder.mid_block.attentions.0.query.weight" in state
    save_file(state, tmp_path / WEIGHTS)
    loaded = Autoencoder.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize("config", [TINY, FOLDED, TINY.replace(latent_mean=(0.5,) * 4, latent_std=(2.0,) * 4)])
@torch.no_grad()
def test_folder_round_trip_changes_nothing(tmp_path: Path, config: AutoencoderConfig) -> None:
    model = _model(config)
    model.save_pretrained(tmp_path)
    loaded = Autoencoder.from_pretrained(tmp_path)
    assert loaded.config == config
    assert torch.equal(model.decode(model.encode_latents(_images())), loaded.decode(loaded.encode_latents(_images())))


def test_half_precision_folder_loads_as_asked(tmp_path: Path) -> None:
    for layout in ("huaben", "diffusers"):
        _model().save_pretrained(tmp_path / layout, dtype=torch.bfloat16, layout=layout)  # type: ignore[arg-type]
        assert Autoencoder.from_pretrained(tmp_path / layout).dtype == torch.float32
    assert Autoencoder.from_pretrained(tmp_path / "diffusers", dtype=None).dtype == torch.bfloat16


def test_a_loaded_model_does_not_depend_on_its_file_any_more(tmp_path: Path) -> None:
    _model().save_pretrained(tmp_path, layout="diffusers")
    loaded = Autoencoder.from_pretrained(tmp_path)
    path = tmp_path / WEIGHTS
    with path.open("r+b") as file:
        file.seek(-1000, 2)
        file.write(b"\xff" * 1000)
    assert all(torch.equal(a, b) for a, b in zip(_model().parameters(), loaded.parameters(), strict=True))


def test_variant_names_the_weights_file(tmp_path: Path) -> None:
    _model().save_pretrained(tmp_path, layout="diffusers")
    (tmp_path / WEIGHTS).rename(tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    assert Autoencoder.from_pretrained(tmp_path, variant="fp16").config == TINY
    with pytest.raises(CheckpointError, match=r"fp16\.safetensors: give variant"):
        Autoencoder.from_pretrained(tmp_path)


def test_folded_pixels_cannot_be_saved_for_diffusers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pixel_unshuffle=2"):
        _model(FOLDED).save_pretrained(tmp_path, layout="diffusers")
    with pytest.raises(ConfigError, match="layout"):
        _model().save_pretrained(tmp_path, layout="official")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", ["huaben", "diffusers"])
def test_damaged_and_foreign_weights_are_named(tmp_path: Path, layout: str) -> None:
    _model().save_pretrained(tmp_path, layout=layout)  # type: ignore[arg-type]
    path = next(tmp_path.glob("*.safetensors"))
    whole = path.read_bytes()
    state = load(whole)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        Autoencoder.from_pretrained(tmp_path)
    kept = {name: tensor for name, tensor in state.items() if name != "encoder.conv_in.bias"}
    save_file(kept, path)
    with pytest.raises(CheckpointError, match=r"lacks encoder\.conv_in\.bias"):
        Autoencoder.from_pretrained(tmp_path)
    save_file({"blocks.0.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"has unknown blocks\.0\.weight"):
        Autoencoder.from_pretrained(tmp_path)
    save_file({**state, "encoder.conv_in.bias": torch.zeros(5)}, path)
    with pytest.raises(CheckpointError, match=r"encoder\.conv_in\.bias is \(5,\), the model expects \(8,\)"):
        Autoencoder.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match="no weights file"):
        Autoencoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
        ({"act_fn": "gelu"}, "act_fn"),
        ({"up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]}, "AttnUpDecoderBlock2D"),
        ({"temporal_layers": 2}, "temporal_layers"),
        ({"norm_num_groups": 3}, "norm_num_groups=3"),
        ({"block_out_channels": "8"}, "block_out_channels"),
    ],
)
def test_foreign_configs_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    _model().save_pretrained(tmp_path, layout="diffusers")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=message):
        Autoencoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(("config", "factor"), [(TINY, 2), (FOLDED, 4), (PRESETS["embedded"], 8)])
@torch.no_grad()
def test_latents_are_smaller_by_the_factor_at_any_aspect(config: AutoencoderConfig, factor: int) -> None:
    model = Autoencoder(config)
    assert model.factor == factor
    for height, width in ((16, 16), (32, 16), (8, 40)):
        latents = model.encode_latents(_images(height, width))
        assert latents.shape == (2, config.latent_channels, height // factor, width // factor)
        assert model.decode(latents).shape == (2, 3, height, width)


def test_wrong_sizes_say_the_nearest_right_one() -> None:
    model = Autoencoder(FOLDED)
    with pytest.raises(ShapeError, match=r"18x24, expected sides divisible by 4; hint: .* to (16|20)x24"):
        model.encode(_images(18, 24))
    for bad in (_images()[0], _images()[:, :2]):
        with pytest.raises(ShapeError, match=r"expected \(B, 3, H, W\)"):
            model.encode(bad)
    with pytest.raises(ShapeError, match=r"expected \(B, 3, h, w\)"):
        model.decode(torch.zeros(1, 4, 2, 2))


def test_scaling_follows_the_config_and_is_undone() -> None:
    raw = torch.randn(2, 4, 3, 3, generator=torch_stream(0))
    plain = Autoencoder(TINY.replace(scaling_factor=0.5, shift_factor=0.1))
    assert torch.allclose(plain.scale(raw), (raw - 0.1) * 0.5)
    mean, std = (0.1, -0.2, 0.3, 0.0), (1.0, 2.0, 0.5, 4.0)
    channels = Autoencoder(TINY.replace(scaling_factor=2.0, latent_mean=mean, latent_std=std))
    expected = (raw - torch.tensor(mean).view(1, 4, 1, 1)) * 2.0 / torch.tensor(std).view(1, 4, 1, 1)
    assert torch.allclose(channels.scale(raw), expected)
    for model in (plain, channels):
        assert torch.allclose(model.unscale(model.scale(raw)), raw, atol=1e-6)


@torch.no_grad()
def test_latents_are_the_mean_without_and_a_seeded_draw_with_a_generator() -> None:
    model = _model()
    mean, logvar = model.encode(_images())
    assert torch.equal(model.encode_latents(_images()), model.scale(mean))
    first, second = (model.encode_latents(_images(), torch_stream(1)) for _ in range(2))
    assert torch.equal(first, second)
    noise = torch.randn(mean.shape, generator=torch_stream(1))
    assert torch.allclose(first, model.scale(mean + (0.5 * logvar).exp() * noise))


@torch.no_grad()
def test_pictures_do_not_depend_on_their_batch() -> None:
    model, images = _model(), _images(batch=3)
    alone = model.decode(model.encode_latents(images[1:2]))
    assert (model.decode(model.encode_latents(images))[1:2] - alone).abs().max() < 1e-5


@pytest.mark.parametrize("config", [TINY, FOLDED])
def test_loss_reaches_every_weight_and_adds_up(config: AutoencoderConfig) -> None:
    model, weights = _model(config), AutoencoderLossConfig(kl_weight=1e-3)
    terms = autoencoder_loss(model, _images(), torch_stream(2), weights)
    total = terms["l1"] + 0.5 * terms["gradient"] + 0.5 * terms["multiscale"] + 1e-3 * terms["kl"]
    assert torch.allclose(terms["loss"], total)
    terms["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if not name.endswith("to_k.bias"):  # a constant added to every key changes no attention
            assert parameter.grad.abs().max() > 0, name


def test_divergence_is_zero_for_a_standard_normal() -> None:
    model = Autoencoder(TINY)
    for parameter in (model.quant_conv.weight, model.quant_conv.bias):
        torch.nn.init.zeros_(parameter)
    assert float(autoencoder_loss(model, _images(), torch_stream(0))["kl"].detach()) == 0.0


def test_training_lowers_the_error() -> None:
    torch.manual_seed(0)
    config = TINY.replace(block_out_channels=(16, 16), pixel_unshuffle=2, mid_block_add_attention=False)
    model, images, generator = Autoencoder(config), _images(16, 16, batch=4), torch_stream(0)
    images = torch.nn.functional.avg_pool2d(images, 5, 1, 2)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    history = []
    for _ in range(60):
        terms = autoencoder_loss(model, images, generator)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        history.append(float(terms["l1"].detach()))
    assert sum(history[-5:]) < 0.6 * sum(history[:5])


@pytest.mark.parametrize(
    "changes",
    [
        {"in_channels": 0},
        {"block_out_channels": ()},
        {"block_out_channels": (8, 15)},
        {"norm_num_groups": 0},
        {"pixel_unshuffle": 0},
        {"scaling_factor": 0.0},
        {"latent_mean": (0.0,) * 4},
        {"latent_mean": (0.0,) * 3, "latent_std": (1.0,) * 3},
        {"latent_mean": (0.0,) * 4, "latent_std": (1.0, 1.0, 0.0, 1.0)},
    ],
)
def test_impossible_configs_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        TINY.replace(**changes)


def test_presets_round_trip_and_errors_are_ours() -> None:
    for config in PRESETS.values():
        assert AutoencoderConfig.from_dict(json.loads(config.to_json())) == config
    with pytest.raises(HuabenError, match="layer_per_block"):
        AutoencoderConfig.from_dict({"layer_per_block": 2})
