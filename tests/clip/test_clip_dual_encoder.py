from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from huaben.clip.dual_encoder import (
    EMBEDDED_FOLDER,
    HuabenDualEncoder,
    encode_all_images,
    encode_all_texts,
    judging,
    limited_scale,
    load_dual_encoder,
)
from huaben.clip.model import PRESETS, Clip
from huaben.clip.preprocess import preprocess
from huaben.errors import CheckpointError, ConfigError, DataError, MissingDependencyError, ShapeError
from huaben.language.tokenizer import Tokenizer

TEXTS = ["a red cat", "一只蓝色的狗在草地上", "two foxes", "月亮"]


@pytest.fixture(scope="module")
def encoder() -> HuabenDualEncoder:
    tokenizer = Tokenizer.train(TEXTS * 4, vocab_size=400)
    torch.manual_seed(0)
    return HuabenDualEncoder(Clip(PRESETS["tiny"]).eval(), tokenizer, name="tiny")


def pictures(count: int = 5) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (20 + 3 * row, 41, 3), dtype=np.uint8) for row in range(count)]


def test_forward_gives_what_the_towers_give(encoder: HuabenDualEncoder) -> None:
    images = pictures(4)
    tokens = encoder.prepare_texts(TEXTS)
    output = encoder(encoder.prepare_images(images), tokens)
    ids, mask = encoder.tokenizer.encode(TEXTS, encoder.clip.config.text_length)
    torch.testing.assert_close(output.text_features, encoder.clip.text_features(ids, mask))
    torch.testing.assert_close(output.image_features, encoder.clip.image_features(preprocess(images, 32)))
    assert output.logit_bias is None and output.logit_scale.item() == pytest.approx(1 / 0.07, rel=1e-5)
    assert all(rows.shape == (4, int(mask.sum(1).max())) for rows in tokens.values())


def test_gradients_reach_every_parameter(encoder: HuabenDualEncoder) -> None:
    output = encoder(encoder.prepare_images(pictures(4)), encoder.prepare_texts(TEXTS))
    (output.logit_scale * (output.image_features @ output.text_features.T).square().sum()).backward()
    assert all(weight.grad is not None for weight in encoder.parameters())
    encoder.zero_grad()


def test_batches_change_nothing_and_the_mode_is_kept(encoder: HuabenDualEncoder) -> None:
    encoder.train()
    encoder.clip.text.eval()
    images = encode_all_images(encoder, iter(pictures()), batch=2)
    assert encoder.training and encoder.clip.training and not encoder.clip.text.training
    encoder.eval()
    assert images.dtype == np.float32 and images.shape == (5, 32)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(images, encode_all_images(encoder, pictures(), batch=5), atol=1e-5)
    texts = encode_all_texts(encoder, (text for text in TEXTS), batch=3)
    np.testing.assert_allclose(texts, encode_all_texts(encoder, TEXTS, batch=1), atol=1e-5)


def test_save_and_load(encoder: HuabenDualEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path / "clip")
    again = load_dual_encoder(tmp_path / "clip")
    assert again.name == str(tmp_path / "clip") and not again.training
    np.testing.assert_array_equal(encode_all_texts(again, TEXTS), encode_all_texts(encoder, TEXTS))
    np.testing.assert_array_equal(encode_all_images(again, pictures()), encode_all_images(encoder, pictures()))


def test_the_embedded_model_reads_both_languages() -> None:
    encoder = load_dual_encoder("embedded")
    assert encoder.name == "embedded" and not any(part.training for part in encoder.modules())
    assert encoder.device == torch.device("cpu") and EMBEDDED_FOLDER.is_dir()
    cat, katze, dog = encode_all_texts(encoder, ["a red cat", "一只红色的猫", "a blue dog"])
    assert cat @ katze > cat @ dog


def test_limited_scale_stops_at_the_limit_but_its_gradient_does_not() -> None:
    for value, expected in ((math.log(20.0), 20.0), (math.log(150.0), 100.0)):
        log_scale = torch.tensor([value], requires_grad=True)
        scale = limited_scale(log_scale)
        scale.backward()
        assert scale.shape == () and scale.item() == pytest.approx(expected, rel=1e-5)
        assert log_scale.grad is not None and log_scale.grad.item() == pytest.approx(math.exp(value), rel=1e-5)


def test_modes_come_back_after_an_error(encoder: HuabenDualEncoder) -> None:
    encoder.train()
    with pytest.raises(DataError), judging(encoder):
        raise DataError("broken")
    assert encoder.training
    encoder.eval()


def test_bad_input_is_named(encoder: HuabenDualEncoder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one string"):
        encoder.prepare_texts("a cat")
    with pytest.raises(DataError, match="one string"):
        encode_all_texts(encoder, "a cat")
    with pytest.raises(DataError, match="found a int"):
        encoder.prepare_texts(["a cat", 3])  # type: ignore[list-item]
    with pytest.raises(DataError, match="no text"):
        encoder.prepare_texts([])
    with pytest.raises(DataError, match="no picture"):
        encode_all_images(encoder, [])
    with pytest.raises(ShapeError, match="float64"):
        encode_all_images(encoder, [np.zeros((16, 16, 3))])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="batch=0"):
        encode_all_images(encoder, pictures(), batch=0)
    with pytest.raises(ConfigError, match="is no folder"):
        load_dual_encoder("embeded")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_dual_encoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_dual_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "painter", "format_version": 1}))
    with pytest.raises(CheckpointError, match="'painter'"):
        load_dual_encoder(tmp_path)
    small = Clip(PRESETS["tiny"].replace(vocab_size=200))
    with pytest.raises(CheckpointError, match="the text tower 200"):
        HuabenDualEncoder(small, Tokenizer.train(TEXTS * 4, vocab_size=400))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huaben.optional.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="transformers"):
        load_dual_encoder("hf:openai/clip-vit-base-patch32")
    with pytest.raises(MissingDependencyError, match="open_clip_torch"):
        load_dual_encoder("open_clip:ViT-B-32/openai")
