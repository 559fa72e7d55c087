"""How well the detector reads fresh pictures of the world: the error bar under every other score.

Two trials: *reading* (render a random scene, read it back, compare) and *recognition* (twenty individuals of one
species and colour, a reference picture of each, and the right one picked for a new picture of each). Both under any
distortion of :mod:`.distort`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConfigError
from ..rng import numpy_stream
from .distort import add_noise, blur, compress, lose_resolution
from .matching import ATTRIBUTES, match, score_reading
from .render import Rendered, render
from .sample import IDENTITIES, Split, rebox, sample_look, sample_scene
from .scene import SceneCharacter, SceneGraph
from .sprites import aspect_of

if TYPE_CHECKING:
    from .detector import Detector

Distortion = Callable[[np.ndarray, np.random.Generator], np.ndarray]

DISTORTIONS: dict[str, Distortion] = {
    "clean": lambda image, rng: image,
    "blur 1": lambda image, rng: blur(image, 1.0),
    "blur 2": lambda image, rng: blur(image, 2.0),
    "noise 0.05": lambda image, rng: add_noise(image, 0.05, rng),
    "noise 0.1": lambda image, rng: add_noise(image, 0.1, rng),
    "jpeg 40": lambda image, rng: compress(image, 40),
    "half resolution": lambda image, rng: lose_resolution(image, 0.5),
}
"""The conditions the detector is scored under."""

CAST = 20
"""Individuals of one species and colour among whom one has to be recognised."""

SIZE = 256
"""Side of the pictures, as they are painted by default."""

BATCH = 32


def distortion_named(name: str) -> Distortion:
    """Return a distortion.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in DISTORTIONS:
        raise ConfigError(f"no distortion is called {name!r}", hint=f"one of {', '.join(DISTORTIONS)}")
    return DISTORTIONS[name]


def reading_trial(
    detector: Detector,
    *,
    count: int,
    seed: int = 0,
    distortion: str = "clean",
    split: Split = "train",
    num_characters: int | None = None,
    size: int | tuple[int, int] = SIZE,
    masks: bool = True,
) -> dict[str, list[float]]:
    """Read fresh pictures back.

    Args:
        detector: the instrument.
        count: pictures.
        seed: of the pictures.
        distortion: a key of :data:`DISTORTIONS`.
        split: as for ``sample_scene``.
        num_characters: as for ``sample_scene``.
        size: of the pictures.
        masks: also score masks.

    Returns:
        One number per character: ``recognised`` (species and colour), each attribute, ``found``, ``box_iou`` and
        ``mask_iou``; a character that was not found counts as wrong. One number per picture: ``extra`` detections,
        ``background``, ``style``, ``exact``.
    """
    spoil = distortion_named(distortion)
    rng = numpy_stream(seed, "reading trial")
    values: dict[str, list[float]] = {
        name: []
        for name in ("recognised", *ATTRIBUTES, "found", "box_iou", "mask_iou", "extra", "background", "style", "exact")
    }
    for start in range(0, count, BATCH):
        scenes = [
            sample_scene(rng, split=split, num_characters=num_characters) for _ in range(min(BATCH, count - start))
        ]
        drawn = [render(scene, size, masks=masks) for scene in scenes]
        readings = detector.detect([spoil(picture.image, rng) for picture in drawn], masks=masks)
        for scene, picture, reading in zip(scenes, drawn, readings, strict=True):
            score = score_reading(reading, scene, picture.boxes, picture.masks)
            for character in score.characters:
                values["recognised"].append(character.recognised)
                values["found"].append(character.found)
                values["box_iou"].append(character.box_iou)
                if character.mask_iou is not None:
                    values["mask_iou"].append(character.mask_iou)
                for name in ATTRIBUTES:
                    values[name].append(character.right[name])
            values["extra"].append(score.extra)
            values["background"].append(score.background)
            values["style"].append(score.style)
            values["exact"].append(score.exact)
    return {name: [float(value) for value in numbers] for name, numbers in values.items() if numbers}


def recognition_trial(
    detector: Detector, *, groups: int, seed: int = 0, distortion: str = "clean", company: int = 1
) -> dict[str, list[float]]:
    """Pick the right individual among :data:`CAST` of the same species and colour.

    Each individual has a reference, alone in a clean picture, and is looked for in a new picture with other accessory,
    expression, facing, place, background and style, distorted, where up to ``company`` others stand about.

    Returns:
        ``top1``: 1 where the reference with the highest cosine is the right one (an individual that was not found is
        wrong); ``same`` and ``other``: cosines to the right reference and to the best wrong one.
    """
    spoil = distortion_named(distortion)
    rng = numpy_stream(seed, "recognition trial")
    values: dict[str, list[float]] = {"top1": [], "same": [], "other": []}
    for _ in range(groups):
        look = sample_look(rng)
        identities = [int(value) for value in rng.choice(IDENTITIES, CAST, replace=False)]
        references = [_portrait(look, identity, rng, 1) for identity in identities]
        queries = [_portrait(look, identity, rng, 1 + int(rng.integers(company + 1))) for identity in identities]
        known = np.concatenate(
            detector.embed([picture.image for picture, _ in references], [p.boxes[[i]] for p, i in references])
        )
        readings = detector.detect([spoil(picture.image, rng) for picture, _ in queries])
        for number, (reading, (picture, place)) in enumerate(zip(readings, queries, strict=True)):
            found = match(reading, picture.boxes)[place]
            if found is None:
                values["top1"].append(0.0)
                continue
            likeness = known @ reading.characters[found].identity
            values["top1"].append(float(likeness.argmax() == number))
            values["same"].append(float(likeness[number]))
            values["other"].append(float(np.delete(likeness, number).max()))
    return {name: numbers for name, numbers in values.items() if numbers}


def _portrait(look: dict[str, str], identity: int, rng: np.random.Generator, number: int) -> tuple[Rendered, int]:
    """Draw an individual in a random scene of ``number`` characters; also return which of them it is."""
    scene: SceneGraph = sample_scene(rng, num_characters=number)
    place = int(rng.integers(number))
    actor = scene.characters[place].replace(species=look["species"], colour=look["colour"], identity=identity)
    characters = list(scene.characters)
    characters[place] = fit_to_place(actor)
    return render(scene.replace(characters=tuple(characters)), SIZE), place


def fit_to_place(character: SceneCharacter) -> SceneCharacter:
    """Return the character with its box as wide as its drawing, standing where it stood, inside the picture."""
    x0, y0, x1, y1 = character.box
    height = y1 - y0
    width = height * aspect_of(character)
    if width > 0.94:
        height, width = height * 0.94 / width, 0.94
    left = min(max((x0 + x1 - width) / 2, 0.02), 0.98 - width)
    return rebox(character, (left, y1 - height, left + width, y1))


def measure(detector: Detector, *, count: int, groups: int, seed: int = 0) -> dict[str, float]:
    """Return the means that decide whether a detector is better than another one: clean, blurred and noisy."""
    result: dict[str, float] = {}
    for name in ("clean", "blur 1", "noise 0.05"):
        prefix = "" if name == "clean" else name.replace(" ", "_") + "_"
        values = reading_trial(detector, count=count, seed=seed, distortion=name, masks=name == "clean")
        values["identity_top1"] = recognition_trial(detector, groups=groups, seed=seed, distortion=name)["top1"]
        for key, numbers in values.items():
            result[prefix + key] = float(np.mean(numbers))
    return result
