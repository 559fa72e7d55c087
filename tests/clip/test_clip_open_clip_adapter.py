"""The adapter against a stand-in with open_clip's own signatures.

open_clip imports torchvision, which is not part of the test environment, so a module of the same name takes its place:
the functions, arguments, results, folder layout and errors below follow open_clip 3.3 (``factory.py``, ``model.py``,
``push_to_hf_hub.py``). Only the towers are smaller.
"""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image as PillowImage
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from huaben.clip.dual_encoder import encode_all_images, encode_all_texts, load_dual_encoder
from huaben.clip.open_clip_adapter import OpenClipDualEncoder, load_open_clip
from huaben.errors import CheckpointError, ConfigError, MissingDependencyError, ShapeError

TEXTS = ["a cat", "two dogs on the grass of a long, long garden", "一只猫"]
CONFIGS: dict[str, dict[str, Any]] = {
    "ViT-T-8": {"embed_dim": 6, "vision_cfg": {"image_size": 16}, "text_cfg": {"context_length": 12}},
    "ViT-T-8-SigLIP": {
        "embed_dim": 6,
        "vision_cfg": {"image_size": 16},
        "text_cfg": {"context_length": 12, "hf_tokenizer_name": "timm/ViT-T-8-SigLIP"},
        "init_logit_bias": -10.0,
        "init_logit_scale": 4.8,  # exp(4.8) is above 100
    },
    "ViT-T-8-SigLIP-old": {"embed_dim": 6, "vision_cfg": {"image_size": 16}, "text_cfg": {"context_length": 12}},
}


class Visual(nn.Module):
    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.image_size = (size, size)
        self.proj = nn.Linear(3 * size * size, width)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image.flatten(1))


class CLIP(nn.Module):
    """Attributes and methods as open_clip's ``CLIP``; ``encode_*`` are not normalised unless asked."""

    def __init__(self, embed_dim: int, vision_cfg: dict[str, Any], text_cfg: dict[str, Any], **rest: float) -> None:
        super().__init__()
        self.visual = Visual(vision_cfg["image_size"], embed_dim)
        self.token_embedding = nn.Embedding(256, embed_dim)
        self.logit_scale = nn.Parameter(torch.ones([]) * rest.get("init_logit_scale", np.log(1 / 0.07)))
        bias = rest.get("init_logit_bias")
        self.logit_bias = None if bias is None else nn.Parameter(torch.ones([]) * bias)

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        features = self.visual(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        features = self.token_embedding(text).mean(1)
        return F.normalize(features, dim=-1) if normalize else features


class SimpleTokenizer:
    def __init__(self, context_length: int) -> None:
        self.context_length = context_length

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor:
        texts = [texts] if isinstance(texts, str) else texts
        length = context_length or self.context_length
        rows = [list(text.encode())[:length] for text in texts]
        return torch.tensor([row + [0] * (length - len(row)) for row in rows])


class SigLipTokenizer(SimpleTokenizer):
    """Chosen by a model's name alone, so that a folder does not say that it belongs to it."""

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor:
        return super().__call__(texts, context_length).flip(1)


class HFTokenizer(SimpleTokenizer):
    def save_pretrained(self, dest: str | Path) -> None:
        Path(dest).mkdir(parents=True, exist_ok=True)
        (Path(dest) / "tokenizer.json").write_text(json.dumps({"context_length": self.context_length}))


def stand_in(pretrained_file: Path) -> ModuleType:
    """Return the module; ``ViT-T-8`` has one pretrained tag, ``laion``, kept in ``pretrained_file``."""
    module = ModuleType("open_clip")

    def read(model_name: str) -> dict[str, Any]:
        folder = Path(model_name.removeprefix("local-dir:"))
        if not folder.is_dir():
            raise FileNotFoundError(f"Directory specified via 'local-dir:' schema not found: {folder}")
        values: dict[str, Any] = json.loads((folder / "open_clip_config.json").read_text())
        return values

    def get_model_config(model_name: str) -> dict[str, Any] | None:
        if model_name.startswith("local-dir:"):
            return read(model_name)["model_cfg"]  # type: ignore[no-any-return]
        return deepcopy(CONFIGS.get(model_name))

    def get_tokenizer(model_name: str = "", context_length: int | None = None) -> SimpleTokenizer:
        config = get_model_config(model_name)
        assert config is not None, f"No valid model config found for {model_name}."
        text = config["text_cfg"]
        if text.get("hf_tokenizer_name"):
            if model_name.startswith("local-dir:"):
                assert (Path(model_name.removeprefix("local-dir:")) / "tokenizer.json").is_file()
            return HFTokenizer(text["context_length"])
        if "siglip" in model_name.lower() and not model_name.startswith("local-dir:"):
            return SigLipTokenizer(text["context_length"])
        return SimpleTokenizer(text["context_length"])

    def create_model_and_transforms(
        model_name: str, pretrained: str | None = None, *, require_pretrained: bool = False
    ) -> tuple[CLIP, Any, Any]:
        config = get_model_config(model_name)
        if config is None:
            raise RuntimeError(f"Model config for '{model_name}' not found in built-ins.")
        path: Path | None = None
        steps: dict[str, Any] = {"size": 16, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
        if model_name.startswith("local-dir:"):
            path = Path(model_name.removeprefix("local-dir:")) / "open_clip_model.safetensors"
            steps |= read(model_name)["preprocess_cfg"]
        elif pretrained:
            if pretrained != "laion" and not Path(pretrained).is_file():
                raise RuntimeError(f"Pretrained value '{pretrained}' is not a known tag or valid file path")
            path = pretrained_file if pretrained == "laion" else Path(pretrained)
            steps["mean"] = (0.4, 0.5, 0.6)
        model = CLIP(**config)
        if path is not None and path.is_file():
            model.load_state_dict(load_file(path), strict=True)
        elif require_pretrained:
            raise RuntimeError("Required pretrained weights could not be loaded. ")
        model.visual.preprocess_cfg = steps  # type: ignore[assignment]

        def transform(picture: PillowImage.Image) -> Tensor:
            assert isinstance(picture, PillowImage.Image) and picture.mode == "RGB"
            small = np.asarray(picture.resize((16, 16), PillowImage.Resampling.BICUBIC)).copy()
            mean, std = torch.tensor(steps["mean"]), torch.tensor(steps["std"])
            return ((torch.from_numpy(small).float() / 255 - mean) / std).permute(2, 0, 1)

        return model, lambda picture: 1 / 0, transform  # the training transform must not be used

    for function in (get_model_config, get_tokenizer, create_model_and_transforms):
        setattr(module, function.__name__, function)
    module.__version__ = "3.3.0"  # type: ignore[attr-defined]
    return module


@pytest.fixture
def open_clip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    torch.manual_seed(0)
    save_file(CLIP(**CONFIGS["ViT-T-8"]).state_dict(), tmp_path / "laion.safetensors")
    module = stand_in(tmp_path / "laion.safetensors")
    module.__spec__ = ModuleSpec("open_clip", None)
    monkeypatch.setitem(sys.modules, "open_clip", module)
    return module


def pictures() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in ((16, 16), (20, 33), (64, 9))]


def test_features_are_the_models_own_normalised(open_clip: Any) -> None:
    encoder = load_dual_encoder("open_clip:ViT-T-8/laion")
    model, _, transform = open_clip.create_model_and_transforms("ViT-T-8", pretrained="laion")
    pixels = torch.stack([transform(PillowImage.fromarray(image)) for image in pictures()])
    ids = open_clip.get_tokenizer("ViT-T-8")(TEXTS)
    output = encoder(encoder.prepare_images(pictures()), encoder.prepare_texts(TEXTS))
    torch.testing.assert_close(output.image_features, model.encode_image(pixels, normalize=True))
    torch.testing.assert_close(output.text_features, model.encode_text(ids, normalize=True))
    assert output.logit_bias is None and output.logit_scale.item() == pytest.approx(1 / 0.07, rel=1e-5)
    assert encoder.name == "open_clip:ViT-T-8/laion" and not encoder.training
    assert encode_all_images(encoder, pictures(), batch=2).shape == (3, 6)


def test_siglip_has_a_bias_and_no_limit_on_its_scale(open_clip: Any) -> None:
    encoder = load_dual_encoder("open_clip:ViT-T-8-SigLIP")
    bias = encoder.logit_bias
    assert (
        bias is not None and bias.item() == -10 and encoder.logit_scale.item() == pytest.approx(np.exp(4.8), rel=1e-4)
    )


def test_gradients_reach_every_parameter(open_clip: Any) -> None:
    encoder = load_dual_encoder("open_clip:ViT-T-8-SigLIP").train()
    output = encoder(encoder.prepare_images(pictures()), encoder.prepare_texts(TEXTS))
    assert output.logit_bias is not None
    logits = output.logit_scale * output.image_features @ output.text_features.T + output.logit_bias
    F.logsigmoid(logits).sum().backward()
    assert all(weight.grad is not None for weight in encoder.parameters())


@pytest.mark.parametrize("source", ["ViT-T-8/laion", "ViT-T-8-SigLIP", "ViT-T-8-SigLIP-old"])
def test_a_saved_folder_loads_again_in_both(open_clip: Any, tmp_path: Path, source: str) -> None:
    encoder = load_dual_encoder(f"open_clip:{source}")
    with torch.no_grad():
        for weight in encoder.parameters():
            weight += 0.1 * torch.randn(weight.shape)
    encoder.save(tmp_path / "saved")
    again = load_dual_encoder(tmp_path / "saved")
    assert isinstance(again, OpenClipDualEncoder) and again.name == str(tmp_path / "saved")
    np.testing.assert_array_equal(encode_all_images(again, pictures()), encode_all_images(encoder, pictures()))
    np.testing.assert_array_equal(encode_all_texts(again, TEXTS), encode_all_texts(encoder, TEXTS))
    assert isinstance(encoder, OpenClipDualEncoder) and type(again.tokenizer) is type(encoder.tokenizer)
    folder = f"local-dir:{tmp_path / 'saved'}"
    plain, _, _ = open_clip.create_model_and_transforms(folder, require_pretrained=True)
    assert all(torch.equal(weight, plain.state_dict()[name]) for name, weight in encoder.model.state_dict().items())
    again.save(tmp_path / "twice")
    np.testing.assert_array_equal(
        encode_all_texts(load_dual_encoder(tmp_path / "twice"), TEXTS), encode_all_texts(encoder, TEXTS)
    )


def test_weights_files_are_taken(open_clip: Any, tmp_path: Path) -> None:
    tagged, filed = (load_open_clip(f"ViT-T-8/{weights}") for weights in ("laion", tmp_path / "laion.safetensors"))
    np.testing.assert_array_equal(encode_all_texts(tagged, TEXTS), encode_all_texts(filed, TEXTS))


def test_what_open_clip_does_not_know_is_named(open_clip: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model 'ViT-X'"):
        load_dual_encoder("open_clip:ViT-X")
    with pytest.raises(CheckpointError, match="not a known tag"):
        load_dual_encoder("open_clip:ViT-T-8/openai")
    with pytest.raises(CheckpointError, match="not found"):
        load_dual_encoder(f"open_clip:local-dir:{tmp_path / 'nowhere'}")
    for source in ("open_clip:", "open_clip:/laion", "open_clip:hf-hub:"):
        with pytest.raises(ConfigError, match="names no model"):
            load_dual_encoder(source)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIGS["ViT-T-8"], "preprocess_cfg": {}}))
    with pytest.raises(CheckpointError, match="Required pretrained weights"):
        load_dual_encoder(tmp_path)  # a config without weights is never a random model
    with pytest.raises(ShapeError, match="no picture"):
        load_dual_encoder("open_clip:ViT-T-8").prepare_images([])


def test_without_open_clip_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)  # importing it raises
    with pytest.raises(MissingDependencyError, match="torchvision built for your torch"):
        load_dual_encoder("open_clip:ViT-B-32/openai")
