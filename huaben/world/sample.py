"""Random scenes, and the split of the world into what is trained on and what is held out.

Held out for ever: a tenth of all (species, colour) pairs and a tenth of all (species, accessory) pairs
(``split="composition"`` draws characters from these), pictures with four and more characters, and, in :mod:`.captions`, some
paraphrase templates of each language.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np

from ..errors import ConfigError
from .backdrops import BUILDERS as _BACKDROPS
from .render import extent
from .scene import MAX_CHARACTERS, SIZE_HEIGHTS, TRAINED_CHARACTERS, SceneCharacter, SceneGraph
from .sprites import aspect_of
from .vocabulary import KEYS

Split = Literal["train", "composition"]

IDENTITIES = 2**31
AIRBORNE = frozenset({"bird", "owl", "star", "balloon", "fish", "whale"})
"""Species that are as often up in the picture as on the ground."""


def _tenth(*names: str) -> bool:
    return hashlib.blake2b(":".join(names).encode(), digest_size=4).digest()[0] % 10 == 0


HELD_OUT_COLOURS: frozenset[tuple[str, str]] = frozenset(
    (s, c) for s in KEYS["species"] for c in KEYS["colour"] if _tenth("colour", s, c)
)
HELD_OUT_ACCESSORIES: frozenset[tuple[str, str]] = frozenset(
    (s, a) for s in KEYS["species"] for a in KEYS["accessory"] if a != "none" and _tenth("accessory", s, a)
)


def is_held_out(character: SceneCharacter) -> bool:
    """Return whether a character is a combination that is never trained on."""
    return (character.species, character.colour) in HELD_OUT_COLOURS or (
        character.species,
        character.accessory,
    ) in HELD_OUT_ACCESSORIES


def sample_look(rng: np.random.Generator, split: Split = "train") -> dict[str, str]:
    """Return the describable attributes of one random character of a split."""
    for _ in range(1000):
        species = KEYS["species"][rng.integers(len(KEYS["species"]))]
        colour = KEYS["colour"][rng.integers(len(KEYS["colour"]))]
        accessory = KEYS["accessory"][rng.integers(1, len(KEYS["accessory"]))] if rng.random() < 0.5 else "none"
        held = (species, colour) in HELD_OUT_COLOURS or (species, accessory) in HELD_OUT_ACCESSORIES
        if held == (split == "composition"):
            break
    return {
        "species": species,
        "colour": colour,
        "accessory": accessory,
        "expression": "happy" if rng.random() < 0.35 else KEYS["expression"][rng.integers(len(KEYS["expression"]))],
        "facing": "left" if rng.random() < 0.5 else "right",
    }


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Return the overlap as a share of the smaller box."""
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _try_box(rng: np.random.Generator, species: str, aspect: float, crowded: bool, picture: float) -> tuple[float, ...]:
    share = rng.random()
    kind = "small" if share < (0.5 if crowded else 0.3) else "medium" if share < (0.9 if crowded else 0.65) else "large"
    height = SIZE_HEIGHTS[kind] * (0.92 + 0.16 * rng.random())
    width = height * aspect / picture
    if width > 0.9:
        height, width = height * 0.9 / width, 0.9
    x = 0.02 + rng.random() * (0.96 - width)
    up = 0.5 if species in AIRBORNE else 0.14
    bottom = height + 0.03 + rng.random() * (0.72 - height) if rng.random() < up else 0.78 + 0.19 * rng.random()
    bottom = min(max(bottom, height + 0.02), 0.975)
    return x, bottom - height, x + width, bottom


def sample_character(
    rng: np.random.Generator,
    taken: list[tuple[float, ...]],
    *,
    split: Split = "train",
    crowded: bool = False,
    aspect: float = 1.0,
) -> SceneCharacter | None:
    """Return a random character whose box leaves those ``taken`` visible, or None if no place was found."""
    look = sample_look(rng, split)
    identity = int(rng.integers(IDENTITIES))
    own_aspect = aspect_of(SceneCharacter(**look, identity=identity, box=(0, 0, 1, 1)))
    for attempt in range(24):
        box = _try_box(rng, look["species"], own_aspect, crowded or attempt > 8, aspect)
        if all(_overlap(box, other) < 0.18 for other in taken):
            x0, y0, x1, y1 = (round(v, 4) for v in box)
            return SceneCharacter(**look, identity=identity, box=(x0, y0, x1, y1))
    return None


def sample_scene(
    rng: np.random.Generator,
    *,
    split: Split = "train",
    num_characters: int | None = None,
    style: str | None = None,
    aspect: float = 1.0,
) -> SceneGraph:
    """Return a random scene.

    Args:
        rng: source of all randomness.
        split: ``composition`` makes every character a combination that training never shows.
        num_characters: 0..6; by default 1..3 (training never shows more).
        style: a fixed picture style.
        aspect: width over height of the picture it is for.

    Raises:
        ConfigError: for an impossible number of characters.
    """
    if num_characters is None:
        num_characters = int(rng.choice(TRAINED_CHARACTERS, p=(0.35, 0.4, 0.25))) + 1
    if not 0 <= num_characters <= MAX_CHARACTERS:
        raise ConfigError(f"num_characters={num_characters} is not in 0..{MAX_CHARACTERS}")
    backgrounds = tuple(_BACKDROPS)
    background = backgrounds[rng.integers(len(backgrounds))]
    style = style or KEYS["style"][rng.integers(len(KEYS["style"]))]
    characters: list[SceneCharacter] = []
    taken: list[tuple[float, ...]] = []
    tries = 0
    while len(characters) < num_characters:
        character = sample_character(rng, taken, split=split, crowded=num_characters > 1, aspect=aspect)
        tries += 1
        if character is None:
            if tries > 6 * num_characters:
                characters, taken, tries = [], [], 0
            continue
        characters.append(character)
        taken.append(character.box)
    characters.sort(key=lambda c: c.box[3])
    return SceneGraph(
        background=background, style=style, characters=tuple(characters), backdrop=int(rng.integers(IDENTITIES))
    )


def rebox(
    character: SceneCharacter, box: tuple[float, float, float, float], size: tuple[int, int] = (128, 128)
) -> SceneCharacter:
    """Return the character with the exact extent of its drawing inside ``box`` of a picture of (height, width)."""
    moved = character.replace(box=box)
    return moved.replace(box=tuple(round(v, 4) for v in extent(moved, size)))
