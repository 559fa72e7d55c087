"""Zero-shot classification in English and Chinese: a class is the mean direction of sentences that name it.

Legend: N pictures, C classes, T templates, E width of the shared space.

Source: Radford et al. 2021 (arXiv:2103.00020), section 3.1.4, for templates and their ensemble in the shared space.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, DataError, ShapeError
from .dual_encoder import DualEncoder, check_texts, encode_all_images, encode_all_texts
from .retrieval import CLOSE

TEMPLATES: dict[str, dict[str, tuple[str, ...]]] = {
    "name": {"en": ("{}",), "zh": ("{}",)},
    "photo": {"en": ("a photo of a {}.",), "zh": ("一张{}的照片。",)},
    "general": {
        "en": (
            "{}",
            "a photo of a {}.",
            "a picture of a {}.",
            "a drawing of a {}.",
            "a cartoon {}.",
            "a close-up of a {}.",
            "a small picture of the {}.",
            "there is a {} here.",
        ),
        "zh": (
            "{}",
            "一张{}的照片。",
            "一张{}的图片。",
            "一幅{}的画。",
            "卡通{}。",
            "{}的特写。",
            "一张小小的{}图片。",
            "这里有{}。",
        ),
    },
    "emoji": {
        "en": ("{}", "an emoji of {}", "the {} emoji", "a picture of {}", "a symbol: {}"),
        "zh": ("{}", "{}表情", "{}的表情符号", "一张{}的图", "符号：{}"),
    },
}
"""Sets of sentences by name and language; ``{}`` stands for the class. "general" and "emoji" are ensembles."""

ClassNames = Sequence[str | Sequence[str]]
"""One entry a class: its name, or several names that mean the same."""


def classifier(
    encoder: DualEncoder,
    classes: ClassNames,
    language: str = "en",
    templates: str | Sequence[str] = "general",
    *,
    batch: int = 256,
) -> NDArray[np.float32]:
    """Return one unit vector a class, float32 (C, E): the mean of its sentences' unit vectors, made unit again.

    Args:
        encoder: of the texts.
        classes: names in ``language``; every name of a class fills every template.
        language: "en" or "zh", or any other if ``templates`` are given as sentences.
        templates: a key of :data:`TEMPLATES`, or sentences with one ``{}`` each.
        batch: sentences encoded together.

    Raises:
        ConfigError: for unknown or unusable templates.
        DataError: for fewer than two classes, an empty name, two classes with the same name, or sentences of a class
            whose vectors cancel out.
    """
    sentences = _templates(templates, language)
    names = _names(classes)
    texts = [sentence.replace("{}", name) for row in names for name in row for sentence in sentences]
    vectors = encode_all_texts(encoder, texts, batch)
    counts = np.array([len(row) * len(sentences) for row in names])
    sums = np.add.reduceat(vectors.astype(np.float64), np.concatenate([[0], counts.cumsum()[:-1]]), axis=0)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths <= 1e-6 * counts[:, None]).any():
        worst = int(np.argmin(np.nan_to_num(lengths[:, 0], nan=-1.0)))
        raise DataError(f"the sentences of class {names[worst][0]!r} have no mean direction", hint="check the encoder")
    return (sums / lengths).astype(np.float32)


def zero_shot(
    encoder: DualEncoder,
    images: Sequence[NDArray[np.uint8]] | NDArray[Any],
    labels: ArrayLike,
    classes: Mapping[str, ClassNames],
    *,
    templates: str | Mapping[str, Sequence[str]] = "general",
    ks: Sequence[int] = (1, 5),
    batch: int = 64,
) -> dict[str, Any]:
    """Return how often the right class is among the first k, for each language and on average.

    Args:
        encoder: of texts and pictures.
        images: uint8 (height, width, 3) pictures, or their unit vectors as one float array (N, E).
        labels: (N,), whole numbers in [0, C).
        classes: the C names of the same classes in each language, ``{"en": [...], "zh": [...]}``.
        templates: a key of :data:`TEMPLATES`, or sentences for each language.
        ks: how many guesses count.
        batch: pictures encoded together.

    Returns:
        ``{"en": {...}, "zh": {...}, "mean": {...}, "num_images": N, "num_classes": C}``; a language has ``top1``,
        ``top5``... (shares of pictures; a k not below C is left out, it would always be 1) and ``per_class`` (top-1
        averaged over the classes that occur, which says more where classes differ in size). ``mean`` is the plain
        mean over languages.

    Raises:
        ConfigError, DataError: as :func:`classifier`; also for no language, languages with different numbers of
            classes, or labels out of range.
        ShapeError: if labels and pictures differ in number, or vectors have another width than the encoder's.
    """
    if not classes:
        raise DataError("found class names in no language", hint='pass {"en": [...], "zh": [...]}')
    numbers = {language: len(names) for language, names in classes.items()}
    if len(set(numbers.values())) > 1:
        raise DataError(f"languages name different numbers of classes: {numbers}", hint="give one entry a class")
    features = _features(encoder, images, batch)
    targets = _labels(labels, len(features), next(iter(numbers.values())))
    result: dict[str, Any] = {}
    for language, names in classes.items():
        sentences = templates if isinstance(templates, str) else templates.get(language, ())
        vectors = classifier(encoder, names, language, sentences)
        result[language] = accuracy(features, vectors, targets, ks)
    keys = next(iter(result.values()))
    result["mean"] = {key: float(np.mean([result[language][key] for language in classes])) for key in keys}
    return {**result, "num_images": len(features), "num_classes": next(iter(numbers.values()))}


def accuracy(
    image_features: NDArray[Any],
    class_vectors: NDArray[Any],
    labels: NDArray[np.int64],
    ks: Sequence[int] = (1, 5),
    *,
    block: int = 4096,
) -> dict[str, float]:
    """Return ``top1``, ``top5``... and ``per_class`` of unit vectors (N, E) against class vectors (C, E).

    A class that scores as high as the right one (within :data:`.retrieval.CLOSE`) counts as ahead of it.

    Raises:
        ConfigError: for a k below 1.
        ShapeError: if the widths differ.
    """
    if not ks or min(ks) < 1:
        raise ConfigError(f"ks={tuple(ks)}, expected numbers from 1", hint="use (1, 5)")
    if image_features.ndim != 2 or class_vectors.ndim != 2 or image_features.shape[1] != class_vectors.shape[1]:
        raise ShapeError(
            f"pictures {image_features.shape} and classes {class_vectors.shape}, expected (N, E) and (C, E)",
            hint="encode both with the same model",
        )
    ranks = np.empty(len(labels), np.int64)
    for start in range(0, len(labels), block):
        rows = slice(start, start + block)
        scores = image_features[rows].astype(np.float32) @ class_vectors.T.astype(np.float32)
        own = np.take_along_axis(scores, labels[rows, None], axis=1)
        ranks[rows] = (scores >= own - CLOSE).sum(1)  # the class itself counts once: ranks start at 1
    result = {f"top{k}": float((ranks <= k).mean()) for k in ks if k < len(class_vectors)}
    hits = np.bincount(labels, weights=ranks <= 1, minlength=len(class_vectors))
    sizes = np.bincount(labels, minlength=len(class_vectors))
    result["per_class"] = float((hits[sizes > 0] / sizes[sizes > 0]).mean())
    return result


def _templates(templates: str | Sequence[str], language: str) -> tuple[str, ...]:
    if isinstance(templates, str):
        if templates not in TEMPLATES:
            raise ConfigError(f"templates={templates!r}", hint=f"one of {', '.join(TEMPLATES)}, or a list of sentences")
        if language not in TEMPLATES[templates]:
            raise ConfigError(f"no templates in language {language!r}", hint="en or zh, or pass sentences")
        return TEMPLATES[templates][language]
    sentences = tuple(templates)
    if not sentences:
        raise ConfigError(f"found no template for language {language!r}", hint=f"one of {', '.join(TEMPLATES)}")
    for sentence in sentences:
        if sentence.count("{}") != 1:
            raise ConfigError(f"template {sentence!r}, expected one {{}} in it", hint='write "a photo of a {}."')
    return sentences


def _names(classes: ClassNames) -> list[list[str]]:
    """Return every class's names, stripped and checked."""
    if isinstance(classes, str):
        raise DataError("found one string, expected a list of class names", hint="write [name, name]")
    rows = [[name] if isinstance(name, str) else list(name) for name in classes]
    if len(rows) < 2:
        raise DataError(f"found {len(rows)} classes, expected at least 2", hint="name what to choose from")
    for index, row in enumerate(rows):
        check_texts(row)
        rows[index] = [name.strip() for name in row]
        if not all(rows[index]):
            raise DataError(f"class {index} has an empty name", hint="name every class")
    counts = Counter(name for row in rows for name in set(row))
    shared = sorted(name for name, count in counts.items() if count > 1)
    if shared:
        raise DataError(
            f"{len(shared)} names stand for several classes: {', '.join(shared[:5])}",
            hint="give classes of the same name the same label",
        )
    return rows


def _features(encoder: DualEncoder, images: Any, batch: int) -> NDArray[np.float32]:
    if not (isinstance(images, np.ndarray) and np.issubdtype(images.dtype, np.floating)):
        return encode_all_images(encoder, images, batch)
    if images.ndim != 2 or len(images) == 0:
        raise ShapeError(f"vectors of shape {images.shape}, expected (N, E)", hint="one row a picture")
    if not np.isfinite(images).all():
        row = int(np.flatnonzero(~np.isfinite(images).all(1))[0])
        raise DataError(f"the vector of picture {row} is not finite", hint="extract the features again")
    return images.astype(np.float32)


def _labels(labels: ArrayLike, count: int, num_classes: int) -> NDArray[np.int64]:
    array = np.asarray(labels)
    if array.shape != (count,):
        raise ShapeError(f"labels of shape {array.shape} for {count} pictures", hint="one label a picture")
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"labels are {array.dtype}, expected whole numbers", hint="number the classes from 0")
    if array.min() < 0 or array.max() >= num_classes:
        raise DataError(
            f"labels from {array.min()} to {array.max()} for {num_classes} classes", hint="number the classes from 0"
        )
    return array.astype(np.int64)
