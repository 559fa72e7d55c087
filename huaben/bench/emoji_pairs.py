"""Emoji with bilingual captions, split by concept: a small real data set whose near-twins are natural hard pairs.

A picture is kept as a *sheet*: uint8 (2 * side, side, 3), its colours (times opacity) over its opacity, so that every
view can stand on another background. :func:`view` turns a sheet into a picture as the model sees it.

Emoji that are variants of one thing (woman, man and person; hearts and squares by colour; clock faces by time) form a
*concept* and stay on the same side of the split.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..errors import DataError
from ..optional import require
from ..rng import numpy_stream

Sheet = NDArray[np.uint8]
COLUMNS = ("codepoints", "image", "name_en", "name_zh", "keywords_en", "keywords_zh")
LANGUAGES: tuple[Literal["en", "zh"], ...] = ("en", "zh")
TEMPLATES: dict[str, tuple[str, ...]] = {
    "en": ("{}", "a picture of {}", "an emoji of {}"),
    "zh": ("{}", "{}的图片", "{}的表情符号"),
}
"""Sentences around a name, for captions and for classes by name."""
KEYWORDS = 2
"""Keywords that a caption with keywords adds to the name."""

_PEOPLE = {0x1F466, 0x1F467, 0x1F468, 0x1F469, 0x1F9D1, 0x1F9D2, 0x1F9D3, 0x1F474, 0x1F475, 0x2640, 0x2642}
_JOINERS = {0x200D, 0xFE0F, 0x20E3}
_CLOCKS = range(0x1F550, 0x1F568)
_VARIED = re.compile(
    r"\b(?:wo)?m[ae]n\b|\b(?:person|people|boys?|girls?|child|mrs?|mx|facing|right|left|up|down|large|medium|small|"
    r"red|orange|yellow|green|blue|purple|brown|black|white|pink|grey|light|dark)\b|[^a-z0-9 ]"
)


@dataclass(frozen=True)
class Emoji:
    """One picture and what it is called.

    Attributes:
        key: its code points, as in the file.
        sheet: colours over opacity.
        names: by language.
        keywords: by language, without the name itself.
        concept: variants of one thing share it.
    """

    key: str
    sheet: Sheet
    names: Mapping[str, str]
    keywords: Mapping[str, tuple[str, ...]]
    concept: str

    def captions(self, language: str) -> list[str]:
        """Return what the picture may be called: the name in every template, and twice the name with some keywords."""
        name, known = self.names[language], self.keywords[language]
        rng = numpy_stream(0, "emoji", "keywords", self.key, language)
        said = [template.format(name) for template in TEMPLATES[language]]
        comma = ", " if language == "en" else "，"
        for _ in range(2):
            chosen = rng.permutation(len(known))[:KEYWORDS]
            said.append(comma.join([name, *(known[index] for index in chosen)]))
        return said


def read_emoji(path: str | Path, side: int, limit: int | None = None) -> list[Emoji]:
    """Read a Parquet file with columns ``codepoints, image, name_en, name_zh, keywords_en, keywords_zh``.

    Args:
        path: the file; pictures are encoded, with opacity.
        side: pictures are resized to it, in pixels.
        limit: the first so many rows; None reads all.

    Raises:
        MissingDependencyError: without pyarrow.
        DataError: if the file or a picture cannot be read, or a column is absent.
    """
    parquet = require("pyarrow.parquet", extra="hf")
    try:
        table = parquet.read_table(str(path))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet ({error})", hint="name the emoji file with --set data=PATH"
        ) from error
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}", hint=f"it needs {', '.join(COLUMNS)}")
    rows = table.slice(0, limit).to_pylist()
    concepts = concepts_of([row["codepoints"] for row in rows], [row["name_en"] for row in rows])
    return [
        Emoji(
            key=row["codepoints"],
            sheet=to_sheet(row["image"], side, row["codepoints"]),
            names={language: row[f"name_{language}"] for language in LANGUAGES},
            keywords={
                language: tuple(word for word in row[f"keywords_{language}"] or () if word != row[f"name_{language}"])
                for language in LANGUAGES
            },
            concept=concept,
        )
        for row, concept in zip(rows, concepts, strict=True)
    ]


def to_sheet(data: bytes, side: int, key: str = "") -> Sheet:
    """Return an encoded picture as colours, times opacity, over opacity: uint8 (2 * side, side, 3).

    Raises:
        DataError: if it cannot be decoded.
    """
    try:
        picture = Image.open(io.BytesIO(data)).convert("RGBA")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"the picture of {key!r} cannot be read ({error})") from error
    if picture.size != (side, side):
        picture = picture.convert("RGBa").resize((side, side), Image.Resampling.BICUBIC).convert("RGBA")
    pixels = np.asarray(picture)
    colours = (pixels[..., :3] * (pixels[..., 3:] / 255) + 0.5).astype(np.uint8)
    return np.concatenate([colours, np.repeat(pixels[..., 3:], 3, axis=2)])


def concepts_of(codepoints: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return each emoji's concept: emoji with the same signs but for people, or the same words but for variants."""
    parent: dict[str, str] = {}

    def root(label: str) -> str:
        while parent.setdefault(label, label) != label:
            label = parent[label]
        return label

    first = []
    for text, name in zip(codepoints, names, strict=True):
        points = [int(part, 16) for part in text.split("-")]
        clock = any(point in _CLOCKS for point in points)
        signs = sorted(set(points) - _PEOPLE - _JOINERS)
        words = " ".join(_VARIED.sub(" ", name.lower().partition(":")[0]).split())
        labels = [
            f"signs {'clock' if clock else '-'.join(map(str, signs)) or 'people'}",
            f"words {words}" if words else "words",
        ]
        if not words:
            labels = labels[:1]
        for label in labels[1:]:
            parent[root(label)] = root(labels[0])
        first.append(labels[0])
    return [root(label) for label in first]


def split_concepts(emoji: Sequence[Emoji], share: float, seed: int) -> tuple[list[Emoji], list[Emoji]]:
    """Return (trained, held out): about ``share`` of the emoji, whole concepts only, are held out.

    Raises:
        DataError: if one of the two would be empty.
    """
    concepts = sorted({one.concept for one in emoji})
    order = numpy_stream(seed, "emoji", "split").permutation(len(concepts))
    sizes = {concept: sum(one.concept == concept for one in emoji) for concept in concepts}
    held: set[str] = set()
    count = 0
    for index in order:
        size = sizes[concepts[index]]
        if count + size <= share * len(emoji) and size <= max(4, 0.1 * share * len(emoji)):
            held.add(concepts[index])
            count += size
    sides = [one for one in emoji if one.concept not in held], [one for one in emoji if one.concept in held]
    if not all(sides):
        raise DataError(
            f"{len(emoji)} emoji in {len(concepts)} concepts leave nothing to hold out or to train on",
            hint="use more of the file, or another share",
        )
    return sides


def view(sheet: Sheet, rng: np.random.Generator, size: int, *, strength: float = 1.0) -> NDArray[np.uint8]:
    """Return a picture of a sheet, uint8 (size, size, 3): moved, turned, scaled, on some background, with noise.

    Args:
        sheet: colours over opacity.
        rng: decides everything.
        size: side in pixels.
        strength: of all changes but the background, from 0 to 1.
    """
    side = sheet.shape[1]
    angle = math.radians(rng.uniform(-15, 15) * strength)
    scale = side / size / math.exp(rng.uniform(-0.3, 0.05) * strength)
    shift = rng.uniform(-0.1, 0.1, 2) * strength * side
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    middle = size / 2
    moves = (
        cos, sin, side / 2 + shift[0] - cos * middle - sin * middle,
        -sin, cos, side / 2 + shift[1] + sin * middle - cos * middle,
    )  # fmt: skip
    rgba = np.concatenate([sheet[:side], sheet[side:, :, :1]], axis=2)
    drawn = Image.frombuffer("RGBa", (side, side), rgba.tobytes(), "raw", "RGBa", 0, 1)  # colours times opacity
    drawn = drawn.transform((size, size), Image.Transform.AFFINE, moves, Image.Resampling.BILINEAR)
    moved = np.frombuffer(drawn.tobytes(), np.uint8).reshape(size, size, 4).astype(np.float32)
    low, high = rng.uniform(0, 255, (2, 3))
    ramp = np.arange(size, dtype=np.float32)[:, None] / size
    ground = (low + (high - low) * ramp).astype(np.float32)  # (size, 3), from one colour to another
    ground = ground[:, None] if rng.random() < 0.5 else ground[None]
    picture = moved[..., :3] + ground * (1 - moved[..., 3:] * np.float32(1 / 255))
    picture *= np.float32(1 + rng.uniform(-0.25, 0.25) * strength)
    picture += np.float32(rng.uniform(-25, 25) * strength)
    picture += rng.standard_normal((size, size, 3), dtype=np.float32) * np.float32(rng.uniform(0, 8) * strength)
    return picture.clip(0, 255).astype(np.uint8)


def fingerprint(emoji: Sequence[Emoji]) -> str:
    """Return twelve hexadecimal digits that stand for pictures, names and order."""
    digest = hashlib.blake2b(digest_size=6)
    for one in emoji:
        facts: list[Any] = [one.key, one.concept, dict(one.names), dict(one.keywords)]
        digest.update(repr(facts).encode())
        digest.update(one.sheet.tobytes())
    return digest.hexdigest()
