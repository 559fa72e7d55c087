"""Tiny random models of transformers, saved and read back; nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from huaben.clip.dual_encoder import encode_all_images, encode_all_texts, load_dual_encoder
from huaben.clip.transformers_adapter import PROCESSOR_NAME, ImageSteps, TransformersDualEncoder
from huaben.errors import CheckpointError, ConfigError, DataError, ShapeError

transformers = pytest.importorskip("transformers")

TEXTS = ["a cat", "two red dogs and a cat in the grass of a garden", "cat 猫"]
SHAPES = [(20, 31), (64, 32), (32, 32), (37, 37), (9, 100), (100, 33)]
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "attention_dropout": 0.0,
}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}


def pictures(shapes: list[tuple[int, int]] = SHAPES) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


def clip_tokenizer() -> Any:
    letters = [chr(code) for code in range(33, 127)] + [chr(code) for code in range(0xA1, 0x180)]
    tokens = ["<|startoftext|>", *letters, *(letter + "</w>" for letter in letters), "<|endoftext|>"]
    vocabulary = {token: row for row, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12)


def word_tokenizer() -> Any:
    import tokenizers

    pad, end, unknown = "<pad>", "</s>", "<unk>"
    words = {word: row for row, word in enumerate([pad, end, unknown, "a", "cat", "two", "red", "dogs", "and"])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=unknown))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, words[end])]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, eos_token=end, unk_token=unknown
    )


def write_clip(folder: Path) -> Any:
    tokenizer = clip_tokenizer()
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 12}
    text |= {"bos_token_id": 0, "eos_token_id": len(tokenizer) - 1, "pad_token_id": len(tokenizer) - 1}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)
    processor = {"size": 32, "crop_size": 32, "do_center_crop": True, "resample": 3}  # the older, shorter form
    return write(folder, transformers.CLIPModel(config), tokenizer, processor)


def write_siglip(folder: Path) -> Any:
    text = {**TOWER, "vocab_size": 9, "max_position_embeddings": 10, "projection_size": 16}
    config = transformers.SiglipConfig(text_config=text, vision_config=VISION)
    processor = {"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return write(folder, transformers.SiglipModel(config), word_tokenizer(), processor)


def write_chinese_clip(folder: Path) -> Any:
    folder.mkdir(exist_ok=True, parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "red", "dogs", "猫"]
    tokenizer = transformers.BertTokenizer(vocab={word: row for row, word in enumerate(words)}, model_max_length=12)
    text = {**TOWER, "vocab_size": len(words), "max_position_embeddings": 16}
    config = transformers.ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)
    processor = {"size": {"height": 32, "width": 32}, "do_center_crop": False, "resample": 3}
    return write(folder, transformers.ChineseCLIPModel(config), tokenizer, processor)


def write(folder: Path, model: Any, tokenizer: Any, processor: dict[str, Any]) -> Any:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / PROCESSOR_NAME).write_text(json.dumps(processor))
    return model.eval()


WRITERS = {"clip": write_clip, "siglip": write_siglip, "chinese_clip": write_chinese_clip}


@pytest.fixture(scope="module", params=sorted(WRITERS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model of transformers, and the folder it was read from as a dual encoder."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = WRITERS[request.param](folder)
    return model, load_dual_encoder(folder)


@pytest.mark.parity
@torch.inference_mode()
def test_features_and_logits_equal_the_models_own_forward(pair: tuple[Any, Any]) -> None:
    model, encoder = pair
    pixels, tokens = encoder.prepare_images(pictures(SHAPES[:3])), encoder.prepare_texts(TEXTS)
    theirs = model(pixel_values=pixels, **tokens)
    ours = encoder(pixels, tokens)
    torch.testing.assert_close(ours.image_features, theirs.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.text_features, theirs.text_embeds, atol=1e-5, rtol=0)
    logits = ours.logit_scale * ours.image_features @ ours.text_features.T
    if encoder.model_type == "siglip":
        assert ours.logit_bias.shape == ()
        logits = logits + ours.logit_bias
    else:
        assert ours.logit_bias is None
    assert ours.logit_scale.shape == ()
    torch.testing.assert_close(logits, theirs.logits_per_image, atol=1e-4, rtol=1e-5)


def test_texts_are_cut_and_padded_as_the_model_was_trained(pair: tuple[Any, Any]) -> None:
    _, encoder = pair
    tokens = encoder.prepare_texts(TEXTS)
    length = {"clip": 12, "siglip": 10, "chinese_clip": 12}[encoder.model_type]
    assert all(rows.shape == (3, length) for rows in tokens.values())
    assert ("attention_mask" in tokens) == (encoder.model_type != "siglip")
    alone = encode_all_texts(encoder, TEXTS, batch=1)
    np.testing.assert_allclose(alone, encode_all_texts(encoder, TEXTS), atol=1e-5)
    with pytest.raises(DataError, match="one string"):
        encoder.prepare_texts("a cat")


def test_it_can_be_trained_and_saved_for_transformers(pair: tuple[Any, Any], tmp_path: Path) -> None:
    _, encoder = pair
    output = encoder(encoder.prepare_images(pictures(SHAPES[:3])), encoder.prepare_texts(TEXTS))
    loss = output.logit_scale * (output.image_features * output.text_features).sum()
    (loss if output.logit_bias is None else loss + output.logit_bias).backward()
    unused = {name for name, weight in encoder.model.named_parameters() if weight.grad is None}
    assert all("pooler" in name for name in unused)  # Chinese-CLIP's text pooler is never used
    with torch.no_grad():
        for weight in encoder.parameters():
            if weight.grad is not None:
                weight -= 0.01 * weight.grad.clamp(-1, 1)
    encoder.zero_grad(set_to_none=True)
    encoder.save(tmp_path)
    again = load_dual_encoder(tmp_path)
    np.testing.assert_array_equal(encode_all_images(again, pictures()), encode_all_images(encoder, pictures()))
    np.testing.assert_array_equal(encode_all_texts(again, TEXTS), encode_all_texts(encoder, TEXTS))
    plain = transformers.AutoModel.from_pretrained(tmp_path)
    for name, weight in encoder.model.state_dict().items():
        assert torch.equal(weight, plain.state_dict()[name])
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)(TEXTS).input_ids == encoder.tokenizer(TEXTS).input_ids


PROCESSORS: list[tuple[str, str, dict[str, Any]]] = [
    ("CLIPImageProcessorPil", "clip", {}),
    ("CLIPImageProcessorPil", "clip", {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}),
    ("CLIPImageProcessorPil", "clip", {"size": 24, "crop_size": 33, "resample": 2}),  # smaller than the crop: padded
    ("CLIPImageProcessorPil", "clip", {"do_normalize": False, "size": {"height": 30, "width": 50}}),
    ("CLIPImageProcessorPil", "clip", {"do_resize": False, "crop_size": 21, "image_mean": 0.1, "image_std": 0.3}),
    ("ChineseCLIPImageProcessorPil", "chinese_clip", {"size": {"height": 48, "width": 48}, "do_center_crop": False}),
    ("SiglipImageProcessorPil", "siglip", {}),
    ("SiglipImageProcessorPil", "siglip", {"size": {"height": 40, "width": 24}, "resample": 1, "rescale_factor": 0.01}),
]


@pytest.mark.parity
@pytest.mark.parametrize(("name", "model_type", "values"), PROCESSORS)
def test_pictures_are_prepared_as_transformers_does(name: str, model_type: str, values: dict[str, Any]) -> None:
    theirs = getattr(transformers, name)(**values)
    ours = ImageSteps.from_processor(values, model_type)
    images = pictures()
    # bytes and filters are the same, so that only float rounding may differ
    expected = theirs(images, return_tensors="pt", input_data_format="channels_last")["pixel_values"].float()
    torch.testing.assert_close(ours(images), expected, atol=2e-6, rtol=1e-6)


def test_a_processor_saved_inside_processor_config_is_read(tmp_path: Path) -> None:
    write_clip(tmp_path)
    values = json.loads((tmp_path / PROCESSOR_NAME).read_text())
    (tmp_path / PROCESSOR_NAME).unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {**values, "resample": 2}}))
    encoder = load_dual_encoder(tmp_path)
    assert isinstance(encoder, TransformersDualEncoder)
    assert encoder.steps == ImageSteps(shortest=32, crop=(32, 32), resample=2)
    encoder.save(tmp_path / "again")
    again = load_dual_encoder(tmp_path / "again")
    assert isinstance(again, TransformersDualEncoder) and again.steps == encoder.steps


def test_steps_written_without_a_processor_are_read_back(tmp_path: Path) -> None:
    write_clip(tmp_path)
    read = load_dual_encoder(tmp_path)
    assert isinstance(read, TransformersDualEncoder)
    for steps in (ImageSteps(shortest=None, size=(32, 32), crop=None), ImageSteps(shortest=36, crop=(32, 32))):
        TransformersDualEncoder(read.model, read.tokenizer, steps, name="x").save(tmp_path / "written")
        again = load_dual_encoder(tmp_path / "written")
        assert isinstance(again, TransformersDualEncoder) and again.steps == steps


def test_unusable_folders_are_named(tmp_path: Path) -> None:
    write_clip(tmp_path)
    processor = json.loads((tmp_path / PROCESSOR_NAME).read_text())
    (tmp_path / PROCESSOR_NAME).write_text(json.dumps({**processor, "crop_size": 16}))
    with pytest.raises(ConfigError, match="prepared as 16 x 16, the model reads 32 x 32"):
        load_dual_encoder(tmp_path)
    (tmp_path / PROCESSOR_NAME).write_text(json.dumps({**processor, "do_pad": True}))
    with pytest.raises(ConfigError, match="do_pad"):
        load_dual_encoder(tmp_path)
    (tmp_path / PROCESSOR_NAME).write_text(json.dumps({**processor, "size": {"longest_edge": 32}}))
    with pytest.raises(ConfigError, match="longest_edge"):
        load_dual_encoder(tmp_path)
    (tmp_path / PROCESSOR_NAME).unlink()
    with pytest.raises(CheckpointError, match="cannot load"):
        load_dual_encoder(tmp_path)
    (tmp_path / PROCESSOR_NAME).write_text(json.dumps(processor))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "projection_dim": 9}))
    with pytest.raises(CheckpointError, match="projection"):
        load_dual_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ConfigError, match="'gpt2' model"):
        load_dual_encoder(tmp_path)


def test_the_hub_is_not_asked_without_leave() -> None:
    with pytest.raises(CheckpointError, match="huaben-no-such/model"):
        load_dual_encoder("hf:huaben-no-such/model")


def test_bad_pictures_and_steps_are_named() -> None:
    with pytest.raises(ShapeError, match="no picture"):
        ImageSteps()([])
    with pytest.raises(ShapeError, match="float32"):
        ImageSteps()([np.zeros((32, 32, 3), np.float32)])  # type: ignore[list-item]
    with pytest.raises(ShapeError, match="one size"):
        ImageSteps(shortest=32, crop=None)(pictures())
    for values in ({"size": (3, 3)}, {"resample": 9}, {"std": (0.0, 1.0, 1.0)}, {"shortest": 0}):
        with pytest.raises(ConfigError):
            ImageSteps(**values)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="three channels"):
        ImageSteps.from_processor({"image_mean": [0.5]}, "clip")
