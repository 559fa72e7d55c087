"""Families of near-identical scenes: one scene and its neighbours, each with exactly one attribute changed.

A family is a scene of one or two characters and, for every attribute of :data:`CHANGES`, the same scene with that
attribute changed: another colour, accessory, expression or species of one character, turned round, moved to another
place (two characters exchange sides), or another background. Captions in both languages say all of it, so that within
a family nothing but the changed attribute tells the right caption from a wrong one.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, ShapeError
from ..files import write_bytes
from ..language.tokenizer import Tokenizer
from ..rng import numpy_stream
from ..world.captions import BACKGROUND_PHRASES, attributes, describe_character
from ..world.render import render
from ..world.sample import is_held_out, rebox, sample_scene
from ..world.scene import SceneCharacter, SceneGraph
from ..world.vocabulary import KEYS, Language

CHANGES = ("species", "colour", "accessory", "expression", "facing", "place", "background")
FAMILY_SIZE = 1 + len(CHANGES)
"""The scene itself comes first, then one member per change, in this order."""
LANGUAGES: tuple[Language, ...] = ("en", "zh")
KINDS = (0, 1, 3)
"""Templates of :func:`~huaben.world.captions.describe_character` that are short enough to say everything."""
MIN_CHANGED = 12
"""Pixels that must change visibly, or the change cannot be seen at all."""
VISIBLE = 24
"""Levels of 255 by which a pixel counts as changed."""
TRIES = 12
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Families:
    """Families in order, member by member: row ``f * FAMILY_SIZE + m``.

    Attributes:
        scenes: N of them.
        pictures: uint8 (N, S, S, 3).
        captions: N times one text a language, in the order of :data:`LANGUAGES`.
    """

    scenes: tuple[SceneGraph, ...]
    pictures: NDArray[np.uint8]
    captions: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def family(self) -> NDArray[np.int64]:
        """The family of every row (N,)."""
        return np.arange(len(self)) // FAMILY_SIZE

    def save(self, path: Path) -> None:
        """Write everything into one ``.npz`` file."""
        said = {"scenes": [scene.to_dict() for scene in self.scenes], "captions": self.captions}
        text = np.frombuffer(json.dumps(said, ensure_ascii=False).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, pictures=self.pictures, text=text)
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Families:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: if it is not that.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
                pictures, text = arrays["pictures"], arrays["text"]
            said = json.loads(text.tobytes().decode())
            scenes = tuple(SceneGraph.from_dict(scene) for scene in said["scenes"])
            captions = tuple(tuple(texts) for texts in said["captions"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} holds no families ({error})", hint="remove it to draw them again") from error
        return cls(scenes, pictures, captions)


def make_families(
    seed: int, purpose: str, count: int, tokenizer: Tokenizer, *, size: int = 64, length: int = 32
) -> Families:
    """Return ``count`` families.

    Args:
        seed, purpose: name the stream of random numbers.
        count: how many families.
        tokenizer: captions must fit into ``length`` of its tokens, the end included.
        size: side of the pictures.
        length: see ``tokenizer``.

    Raises:
        DataError: if no caption of the world fits.
    """
    rng = numpy_stream(seed, "scene families", purpose)
    scenes: list[SceneGraph] = []
    pictures: list[NDArray[np.uint8]] = []
    captions: list[tuple[str, ...]] = []
    failures = 0
    while len(scenes) < count * FAMILY_SIZE:
        made = _family(rng, tokenizer, size, length)
        if made is None:
            failures += 1
            if failures > 60 + 20 * count:
                raise DataError(f"no family fits into {length} tokens", hint="allow longer texts")
            continue
        for scene, picture, said in made:
            scenes.append(scene)
            pictures.append(picture)
            captions.append(said)
    stacked = np.stack(pictures) if pictures else np.empty((0, size, size, 3), np.uint8)
    return Families(tuple(scenes), stacked, tuple(captions))


def make_scenes(
    seed: int, purpose: str, count: int, tokenizer: Tokenizer, *, size: int = 64, length: int = 32
) -> Families:
    """Return ``count`` unrelated scenes of one or two characters, described like families; arguments as there."""
    rng = numpy_stream(seed, "unrelated scenes", purpose)
    scenes: list[SceneGraph] = []
    captions: list[tuple[str, ...]] = []
    failures = 0
    while len(scenes) < count:
        scene = sample_scene(rng, num_characters=int(rng.integers(1, 3)))
        said = full_captions(scene, rng, tokenizer, length)
        if said is None:
            failures += 1
            if failures > 60 + 20 * count:
                raise DataError(f"no caption fits into {length} tokens", hint="allow longer texts")
            continue
        scenes.append(scene)
        captions.append(said)
    pictures = [render(scene, size).image for scene in scenes]
    stacked = np.stack(pictures) if pictures else np.empty((0, size, size, 3), np.uint8)
    return Families(tuple(scenes), stacked, tuple(captions))


def _family(
    rng: np.random.Generator, tokenizer: Tokenizer, size: int, length: int
) -> list[tuple[SceneGraph, NDArray[np.uint8], tuple[str, ...]]] | None:
    scene = sample_scene(rng, num_characters=int(rng.integers(1, 3)))
    said = full_captions(scene, rng, tokenizer, length)
    if said is None:
        return None
    first = render(scene, size).image
    members = [(scene, first, said)]
    for change in CHANGES:
        for _ in range(TRIES):
            other = changed(scene, change, rng)
            if other is None:
                continue
            picture = render(other, size).image
            moved = np.abs(picture.astype(np.int16) - first.astype(np.int16)).max(-1) > VISIBLE
            said = full_captions(other, rng, tokenizer, length)
            if said is not None and moved.sum() >= MIN_CHANGED:
                members.append((other, picture, said))
                break
        else:
            return None
    return members


def changed(scene: SceneGraph, change: str, rng: np.random.Generator) -> SceneGraph | None:
    """Return the scene with one attribute changed, or None if this try did not give a valid one.

    Args:
        scene: one or two characters.
        change: one of :data:`CHANGES`.
        rng: chooses the character and the new value.
    """
    if change == "background":
        return scene.replace(background=_other(rng, "background", scene.background))
    characters = list(scene.characters)
    if change == "place":
        moved = _exchanged(characters) if len(characters) == 2 else [_moved(characters[0], rng)]
        if moved is None:
            return None
        characters = moved
    else:
        which = int(rng.integers(len(characters)))
        old = characters[which]
        new = old.replace(**{change: _other(rng, change, getattr(old, change))})
        characters[which] = rebox(new, old.box) if change == "species" else new
    other = scene.replace(characters=tuple(characters))
    valid = differences(scene, other) == {change} and not any(is_held_out(character) for character in characters)
    return other if valid else None


def differences(first: SceneGraph, second: SceneGraph) -> set[str]:
    """Return the describable attributes in which two scenes of as many characters differ."""
    found = {name for name in ("background", "style") if getattr(first, name) != getattr(second, name)}
    for a, b in zip(first.characters, second.characters, strict=True):
        before, after = attributes(a), attributes(b)
        found |= {name for name in before if before[name] != after[name]}
    return found


def _other(rng: np.random.Generator, name: str, value: str) -> str:
    values = [key for key in KEYS[name] if key != value]
    return values[int(rng.integers(len(values)))]


def _shifted(character: SceneCharacter, centre: float) -> SceneCharacter | None:
    x0, y0, x1, y1 = character.box
    half = (x1 - x0) / 2
    if not 0.01 + half <= centre <= 0.99 - half:
        return None
    return character.replace(box=(round(centre - half, 4), y0, round(centre + half, 4), y1))


def _moved(character: SceneCharacter, rng: np.random.Generator) -> SceneCharacter:
    return _shifted(character, float(rng.uniform(0.1, 0.9))) or character


def _exchanged(characters: Sequence[SceneCharacter]) -> list[SceneCharacter] | None:
    centres = [(character.box[0] + character.box[2]) / 2 for character in characters]
    moved = [_shifted(character, centre) for character, centre in zip(characters, centres[::-1], strict=True)]
    boxes = [character.box for character in moved if character is not None]
    if len(boxes) < len(moved):
        return None
    (a0, b0, a1, b1), (c0, d0, c1, d1) = boxes
    width, height = min(a1, c1) - max(a0, c0), min(b1, d1) - max(b0, d0)
    smaller = min((a1 - a0) * (b1 - b0), (c1 - c0) * (d1 - d0))
    if width > 0 and height > 0 and width * height > 0.18 * smaller:
        return None
    return [character for character in moved if character is not None]


def full_captions(
    scene: SceneGraph, rng: np.random.Generator, tokenizer: Tokenizer, length: int
) -> tuple[str, ...] | None:
    """Return one caption a language that says everything but size and style, or None if none is short enough."""
    said = []
    for language in LANGUAGES:
        order = rng.permutation(len(scene.characters))
        for kind in rng.permutation(KINDS):
            text = full_caption(scene, language, order, int(kind))
            if len(tokenizer.encode_ids(text)) < length:
                said.append(text)
                break
        else:
            return None
    return tuple(said)


def full_caption(scene: SceneGraph, language: Language, order: Sequence[int] | NDArray[np.int64], kind: int) -> str:
    """Return the caption of one template, the characters in ``order``; nothing random."""
    people = [describe_character(said, language, kind) for said in full_facts(scene, order)]
    where = BACKGROUND_PHRASES[scene.background][0 if language == "en" else 1]
    if language == "en":
        return f"{(' and ' if kind == 1 else '; and ').join(people)} {where}"
    return f"{where}有{'；'.join(people)}"


def full_facts(scene: SceneGraph, order: Sequence[int] | NDArray[np.int64]) -> list[dict[str, str]]:
    """Return what :func:`full_caption` says about each character, in ``order``."""
    looks = [attributes(scene.characters[int(i)]) for i in order]
    return [
        {name: value for name, value in said.items() if name != "size" and (name, value) != ("accessory", "none")}
        for said in looks
    ]


# -- scores ------------------------------------------------------------------------------------------------------


def first_hits(image: FloatArray, text: FloatArray, block: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return, for every row, whether its own partner scores strictly highest within its block: picture to text, back.

    Args:
        image, text: (N, E) unit vectors.
        block: rows that compete with each other; N for all of them. Equal scores count against.

    Raises:
        ShapeError: if the two differ in shape or ``block`` does not divide N.
    """
    if image.shape != text.shape or image.ndim != 2 or block < 1 or len(image) % block:
        raise ShapeError(
            f"image {image.shape} and text {text.shape} in blocks of {block}", hint="pass whole families, row by row"
        )
    parts = (-1, block, image.shape[1])
    match = np.einsum("fie,fje->fij", image.reshape(parts), text.reshape(parts))
    own = match[:, np.arange(block), np.arange(block)]  # (F, block)
    to_text = (match >= own[:, :, None]).sum(2) == 1
    to_image = (match >= own[:, None, :]).sum(1) == 1
    return to_text.ravel(), to_image.ravel()


def family_scores(image: FloatArray, texts: dict[str, FloatArray]) -> dict[str, float]:
    """Return the share found first within its family: by direction and language, in all, and per change.

    ``family`` is the mean over directions and languages; ``family_COLOUR`` and so on the same over the members with
    that attribute changed, ``family_none`` over the unchanged ones.

    Args:
        image: (N, E), whole families.
        texts: language to (N, E).
    """
    hits: dict[str, NDArray[np.bool_]] = {}
    for language, text in texts.items():
        hits[f"image_to_text_{language}"], hits[f"text_to_image_{language}"] = first_hits(image, text, FAMILY_SIZE)
    scores = {f"family_{name}": float(found.mean()) for name, found in hits.items()}
    everything = np.mean([found for found in hits.values()], axis=0).reshape(-1, FAMILY_SIZE)  # (F, members)
    scores["family"] = float(everything.mean())
    for column, change in enumerate(("none", *CHANGES)):
        scores[f"family_{change}"] = float(everything[:, column].mean())
    return scores


def global_scores(image: FloatArray, texts: dict[str, FloatArray], name: str = "global") -> dict[str, float]:
    """Return the share found first among all rows: by direction and language, and ``NAME``, the mean of these."""
    scores: dict[str, float] = {}
    for language, text in texts.items():
        to_text, to_image = first_hits(image, text, len(image))
        scores[f"{name}_image_to_text_{language}"] = float(to_text.mean())
        scores[f"{name}_text_to_image_{language}"] = float(to_image.mean())
    return {name: float(np.mean(list(scores.values()))), **scores}
