from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from huaben.clip.dual_encoder import DualEncoder, encode_all_texts, load_dual_encoder
from huaben.clip.zero_shot import TEMPLATES, accuracy, classifier, zero_shot
from huaben.errors import ConfigError, DataError, ShapeError

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
CHINESE = {"红": "red", "绿": "green", "蓝": "blue"}
AXES = ("red", "green", "blue")


class ColourEncoder(DualEncoder):
    """Pictures point where their mean colour points, texts where the colours they name do."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.weight = "colours", torch.nn.Parameter(torch.ones(()))

    def prepare_images(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        return torch.stack([torch.from_numpy(image / 255.0).float().mean((0, 1)) for image in images])

    def prepare_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        rows = [[float(name in text or chinese in text) for chinese, name in CHINESE.items()] for text in texts]
        lengths = [[0.01 * len(text)] for text in texts]  # templates matter a little
        return {"rows": torch.cat([torch.tensor(rows), torch.tensor(lengths)], 1)}

    def encode_images(self, pixels: Tensor) -> Tensor:
        return F.normalize(F.pad(pixels, (0, 1), value=0.1), dim=-1) * self.weight

    def encode_texts(self, tokens: Mapping[str, Tensor]) -> Tensor:
        return F.normalize(tokens["rows"], dim=-1)

    @property
    def logit_scale(self) -> Tensor:
        return torch.tensor(10.0)

    def save(self, folder: str | Path) -> None:
        raise NotImplementedError


def pictures() -> tuple[list[NDArray[np.uint8]], NDArray[np.int64]]:
    labels = np.array([0, 1, 2, 2, 1, 0, 0])
    return [np.full((9, 8, 3), COLOURS[AXES[label]], np.uint8) for label in labels], labels


def test_both_languages_and_their_mean() -> None:
    images, labels = pictures()
    classes = {"en": ["red", "green", "blue"], "zh": ["蓝", "绿", "红"]}  # two Chinese names swapped
    result = zero_shot(ColourEncoder(), images, labels, classes, ks=(1, 2, 5))
    assert result["en"]["top1"] == result["en"]["per_class"] == 1.0
    assert result["zh"]["top1"] == pytest.approx(2 / 7) and result["zh"]["per_class"] == pytest.approx(1 / 3)
    assert result["mean"]["top1"] == pytest.approx((1 + 2 / 7) / 2)
    assert "top2" in result["en"] and "top5" not in result["en"]
    assert (result["num_images"], result["num_classes"]) == (7, 3)


def test_vectors_give_what_pictures_give() -> None:
    images, labels = pictures()
    encoder, classes = ColourEncoder(), {"en": ["red", "green", "blue"]}
    with torch.inference_mode():
        vectors = encoder.encode_images(encoder.prepare_images(images)).numpy()
    assert zero_shot(encoder, vectors, labels, classes) == zero_shot(encoder, images, labels, classes)


def test_classifier_is_the_renormalised_mean_of_unit_vectors() -> None:
    encoder = load_dual_encoder("embedded")
    classes, templates = ["cat", ("dog", "puppy")], ["{}", "a {} here"]
    vectors = classifier(encoder, classes, "en", templates)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    for row, names in enumerate((["cat"], ["dog", "puppy"])):
        mean = encode_all_texts(encoder, [t.replace("{}", name) for name in names for t in templates]).mean(0)
        np.testing.assert_allclose(vectors[row], mean / np.linalg.norm(mean), atol=1e-5)


def test_every_template_set_speaks_both_languages_with_one_place_for_the_class() -> None:
    for languages in TEMPLATES.values():
        assert set(languages) == {"en", "zh"} and len(languages["en"]) == len(languages["zh"])
        for sentences in languages.values():
            assert len(set(sentences)) == len(sentences) and all(text.count("{}") == 1 for text in sentences)


def test_accuracy_counts_equal_classes_against() -> None:
    classes = np.eye(4, dtype=np.float32)
    images = np.array([[1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]], np.float32)
    assert accuracy(images, classes, np.array([0, 2]), (1, 3)) == {"top1": 0.5, "top3": 0.5, "per_class": 0.5}
    many = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    labels = np.arange(50) % 4
    assert accuracy(many, classes, labels, block=7) == accuracy(many, classes, labels)
    assert accuracy(many, classes, labels)["top1"] == pytest.approx((many.argmax(1) == labels).mean())


def test_bad_input_is_named() -> None:
    encoder, (images, labels) = ColourEncoder(), pictures()
    names = ["red", "green", "blue"]
    with pytest.raises(ConfigError, match="templates='phots'"):
        classifier(encoder, names, "en", "phots")
    with pytest.raises(ConfigError, match="'fr'"):
        classifier(encoder, names, "fr")
    with pytest.raises(ConfigError, match=r"one \{\} in it"):
        classifier(encoder, names, "en", ["a photo"])
    with pytest.raises(ConfigError, match="no template"):
        zero_shot(encoder, images, labels, {"en": names}, templates={"zh": ["{}"]})
    with pytest.raises(DataError, match="1 names stand for several classes: red"):
        classifier(encoder, ["red", "green", "red "])
    with pytest.raises(DataError, match="class 1 has an empty name"):
        classifier(encoder, ["red", " "])
    with pytest.raises(DataError, match="at least 2"):
        classifier(encoder, ["red"])
    with pytest.raises(DataError, match="one string"):
        classifier(encoder, "red")
    with pytest.raises(DataError, match="different numbers"):
        zero_shot(encoder, images, labels, {"en": names, "zh": ["红", "绿"]})
    with pytest.raises(DataError, match="no language"):
        zero_shot(encoder, images, labels, {})
    with pytest.raises(DataError, match="0 to 2 for 2 classes"):
        zero_shot(encoder, images, labels, {"en": names[:2]})
    with pytest.raises(DataError, match="whole numbers"):
        zero_shot(encoder, images, labels.astype(float), {"en": names})
    with pytest.raises(ShapeError, match="one label a picture"):
        zero_shot(encoder, images, labels[:3], {"en": names})
    with pytest.raises(ShapeError, match="same model"):
        zero_shot(encoder, np.ones((7, 9), np.float32), labels, {"en": names})
    with pytest.raises(DataError, match="picture 2 is not finite"):
        zero_shot(encoder, np.where(np.arange(7)[:, None] == 2, np.nan, np.ones((7, 4))), labels, {"en": names})
    with pytest.raises(ConfigError, match="ks"):
        zero_shot(encoder, images, labels, {"en": names}, ks=())
