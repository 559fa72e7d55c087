"""The painter's data and recipe on tiny models: reproducible shards, pure batches, honest dropping of conditions."""

import numpy as np
import pytest
import torch

from huaben.clip.model import Clip, ClipConfig
from huaben.diffusion.autoencoder import Autoencoder, AutoencoderConfig
from huaben.diffusion.grounding import PRESETS as GROUNDED
from huaben.diffusion.grounding import GroundedDiTConfig, GroundingConfig
from huaben.errors import ConfigError
from huaben.language.encoder import TextEncoder, TextEncoderConfig
from huaben.recipes import painter_data
from huaben.recipes.autoencoder import AutoencoderRecipe, to_images, to_tensor, with_latent_statistics
from huaben.recipes.painter import PainterRecipe
from huaben.recipes.painter_data import load_shard, make_shard, save_shard, shard_path
from huaben.recipes.text_corpus import make_corpus
from huaben.rng import numpy_stream
from huaben.training import fit
from huaben.world.sample import sample_scene

TINY_AE = AutoencoderConfig(
    block_out_channels=(8, 8),
    latent_channels=4,
    norm_num_groups=4,
    mid_block_add_attention=False,
    pixel_unshuffle=4,
    scaling_factor=1.0,
)
TINY = GroundedDiTConfig(
    dit=GROUNDED["tiny"].dit.replace(clip_len=12, t5_len=24),
    grounding=GroundingConfig(phrase_dim=16, hidden_dim=32, reference_size=8),
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of tiny random models in the layout of the shipped ones."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    _, tokenizer = make_corpus(0, 200, 40, 24, vocab_size=700)
    tokenizer.save(folder / "text")
    size = tokenizer.vocab_size
    TextEncoder(
        TextEncoderConfig(
            vocab_size=size, hidden_size=16, num_layers=1, num_heads=2, head_dim=8, ffn_size=16, max_length=24
        )
    ).save_pretrained(folder / "text")
    Clip(
        ClipConfig(
            vocab_size=size,
            text_length=12,
            text_hidden_size=16,
            text_num_layers=1,
            text_num_heads=2,
            image_hidden_size=16,
            image_num_layers=1,
            image_num_heads=2,
            embedding_size=16,
        )
    ).save_pretrained(folder / "clip")
    Autoencoder(TINY_AE).save_pretrained(folder / "autoencoder")
    return folder


@pytest.fixture
def recipe(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(painter_data, "SHARD_SIZE", 16)

    def small(cache, folder, seed, count, workers=2):
        model = Autoencoder.from_pretrained(folder)
        paths = [shard_path(cache, folder, seed, k) for k in range(count)]
        for k, path in enumerate(paths):
            save_shard(make_shard(seed, k, model, 16), path)
        return paths

    monkeypatch.setattr("huaben.recipes.painter.ensure_shards", small)
    return PainterRecipe(batch_size=8, shards=4, model=TINY, weights=weights, cache=tmp_path)


def test_shard_is_reproducible_and_survives_the_disk(weights, tmp_path):
    model = Autoencoder.from_pretrained(weights / "autoencoder")
    a, b = make_shard(1, 4, model, 6), make_shard(1, 4, model, 6)
    assert torch.equal(a.latents, b.latents) and torch.equal(a.references, b.references)
    assert a.size == (192, 320) and a.latents.shape[-2:] == (24, 40)
    save_shard(a, tmp_path / "s.safetensors")
    again = load_shard(tmp_path / "s.safetensors")
    assert torch.equal(again.latents, a.latents) and again.scene(2) == a.scene(2)


def test_shard_scene_matches_its_boxes(weights):
    shard = make_shard(0, 0, Autoencoder.from_pretrained(weights / "autoencoder"), 6)
    for i in range(6):
        scene = shard.scene(i)
        assert len(scene.characters) == shard.counts[i]
        for character, box in zip(scene.characters, shard.boxes[i], strict=False):
            assert np.allclose(character.box, box)


def test_reference_crop_is_another_picture_of_the_same_species():
    rng = numpy_stream(0, "r")
    character = sample_scene(rng, num_characters=1).characters[0]
    crops = [painter_data.other_picture(character, "flat", rng) for _ in range(4)]
    assert all(crop.ndim == 3 and crop.dtype == np.uint8 and min(crop.shape[:2]) > 8 for crop in crops)
    assert not np.array_equal(painter_data.reference_tensor(crops[0]), painter_data.reference_tensor(crops[1]))


def test_batch_is_a_pure_function_of_the_step(recipe):
    a, b, c = recipe.batch(3), recipe.batch(3), recipe.batch(4)
    for name in ("latents", "noise", "timesteps", "boxes", "present"):
        assert torch.equal(a[name], b[name])
    assert not torch.equal(a["timesteps"], c["timesteps"])
    assert torch.equal(a["t5"][0], b["t5"][0])


def test_every_condition_is_dropped_sometimes_and_kept_mostly(recipe):
    batches = [recipe.batch(k) for k in range(40)]
    said = torch.cat([b["t5"][1].sum(1) > 1 for b in batches]).float().mean()
    grounded = torch.cat([b["present"].any(1) for b in batches]).float().mean()
    referenced = torch.cat([b["has_reference"].flatten() for b in batches]).float().mean()
    assert 0.7 < said < 0.92 and 0.7 < grounded < 0.9 and 0.5 < referenced < 0.8
    timesteps = torch.cat([b["timesteps"] for b in batches])
    assert timesteps.min() >= 0 and timesteps.max() < 1000 and abs(timesteps.float().mean() - 499.5) < 30


def test_painter_learns_and_is_saved(recipe, tmp_path):
    config = recipe.fit.replace(bf16=False, warmup_steps=2, checkpoint_every_s=1000.0, preview_every=0, log_every=5)
    result = fit(recipe, tmp_path / "run", steps=20, config=config, progress=False)
    assert result.terms["loss"] < 1.2
    assert (result.folder / "model.safetensors").is_file() and result.scores["v"] > 0


def test_preview_shows_three_rows(recipe):
    torch.manual_seed(0)
    picture = recipe.preview(recipe.build().eval())
    assert picture.dtype == np.uint8 and picture.shape == (3 * 256, 8 * 256, 3)


def test_autoencoder_recipe_falls_and_measures_its_latents(tmp_path):
    recipe = AutoencoderRecipe(batch_size=4, model=TINY_AE)
    model = recipe.build()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for step in range(25):
        loss = recipe.loss(model, recipe.batch(step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
    scaled = with_latent_statistics(model, 16)
    latents = scaled.encode_latents(to_tensor(np.zeros((1, 64, 64, 3), np.uint8)))
    assert latents.shape == (1, 4, 8, 8) and scaled.config.latent_std is not None


def test_pictures_survive_the_tensor_round_trip():
    images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    assert np.array_equal(to_images(to_tensor(images)), images)


def test_a_fine_tuned_decoder_keeps_its_encoder(tmp_path):
    torch.manual_seed(0)
    Autoencoder(TINY_AE).save_pretrained(tmp_path / "start")
    recipe = AutoencoderRecipe(batch_size=4, start_from=tmp_path / "start", decoder_only=True)
    config = recipe.fit.replace(bf16=False, warmup_steps=1, checkpoint_every_s=1000.0, preview_every=0)
    recipe.evaluate = lambda model: {}
    result = fit(recipe, tmp_path / "run", steps=3, config=config, progress=False)
    before, after = (Autoencoder.from_pretrained(f).state_dict() for f in (tmp_path / "start", result.folder))
    same = {name: torch.allclose(before[name], after[name], atol=2e-3) for name in before}
    assert all(value for name, value in same.items() if name.startswith("encoder"))
    assert not all(torch.equal(before[n], after[n]) for n in before if n.startswith("decoder"))
    with pytest.raises(ConfigError, match="encoder to keep"):
        AutoencoderRecipe(decoder_only=True)
