"""Scene graphs: what a picture of the embedded world contains, exactly.

Frozen records of JSON values; boxes are ``(x0, y0, x1, y1)`` in [0, 1] from the top left. ``identity`` is the seed of
an individual (its markings, ears, eyes and hue shift); no caption mentions it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..config import Config
from ..errors import DataError
from .vocabulary import KEYS

BoxTuple = tuple[float, float, float, float]

MAX_CHARACTERS = 6
TRAINED_CHARACTERS = 3
"""Pictures with more characters than this are never trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneCharacter(Config):
    """One character or prop.

    Attributes:
        species, colour, accessory, expression, facing: keys of :mod:`.vocabulary`.
        identity: seed of the individual, ``>= 0``.
        box: the box its drawing fills, accessory included.
    """

    species: str
    colour: str
    box: BoxTuple
    accessory: str = "none"
    expression: str = "happy"
    facing: str = "right"
    identity: int = 0

    def __post_init__(self) -> None:
        for name in ("species", "colour", "accessory", "expression", "facing"):
            value = getattr(self, name)
            if value not in KEYS[name]:
                raise DataError(f"{name}={value!r} is not in the world", hint=f"one of {', '.join(KEYS[name])}")
        x0, y0, x1, y1 = self.box
        if not (x0 < x1 and y0 < y1):
            raise DataError(f"box {self.box} is empty", hint="boxes are (x0, y0, x1, y1) in [0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneGraph(Config):
    """A whole picture; later characters are in front of earlier ones.

    Attributes:
        background, style: keys of :mod:`.vocabulary`.
        characters: 0 to 6, back to front.
        backdrop: seed of what varies in a background (hills, clouds, windows) and is not described.
    """

    background: str
    style: str = "flat"
    characters: tuple[SceneCharacter, ...] = field(default=())
    backdrop: int = 0

    def __post_init__(self) -> None:
        for name in ("background", "style"):
            if getattr(self, name) not in KEYS[name]:
                raise DataError(
                    f"{name}={getattr(self, name)!r} is not in the world", hint=f"one of {', '.join(KEYS[name])}"
                )
        if len(self.characters) > MAX_CHARACTERS:
            raise DataError(f"{len(self.characters)} characters, at most {MAX_CHARACTERS} fit in a picture")


SIZE_HEIGHTS: dict[str, float] = {"small": 0.28, "medium": 0.38, "large": 0.5}
"""Height of a box of each describable size, as a share of the picture's height."""

_SIZE_EDGES = (0.33, 0.44)
_TOP_EDGE = 0.42


def size_key(box: BoxTuple) -> str:
    """Return ``small``, ``medium`` or ``large`` for a box, by its height."""
    height = box[3] - box[1]
    return "small" if height < _SIZE_EDGES[0] else "medium" if height < _SIZE_EDGES[1] else "large"


def place_key(box: BoxTuple) -> str:
    """Return the key of :data:`.vocabulary.PLACES` that a box's centre lies in."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    column = "left" if x < 0.36 else "right" if x > 0.64 else "middle"
    if y >= _TOP_EDGE:
        return column
    return {"left": "top left", "middle": "top", "right": "top right"}[column]
