"""What a reader saw in a picture, in the caller's words: neutral records that know no world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..painting import BoxTuple, Image
from ..promptbook.book import Character


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Seen:
    """One character or thing that was found.

    Attributes:
        label: what it is, in the word the caller used (``Character.category``) where it is one of the wanted.
        box: ``(x0, y0, x1, y1)`` in [0, 1] of the picture.
        score: confidence that it is there, in [0, 1].
        attributes: what else is known of it; a name that is absent was not looked at.
        mask: bool (H, W) of its visible pixels; None if it was not cut out.
        identity: float32 (D,) of unit length, compared by its cosine; empty if the reader tells no individuals apart.
    """

    label: str
    box: BoxTuple
    score: float
    attributes: Mapping[str, str] = field(default_factory=dict)
    mask: npt.NDArray[np.bool_] | None = None
    identity: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reading:
    """One picture as a reader saw it.

    Attributes:
        characters: by falling score.
        background, style: of the whole picture; empty if unknown.
        judged: names of attributes that make a character right or wrong; others are only for information.
        minor: those of ``judged`` that are too small to paint the page again for.
        backgrounds: the backgrounds it tells apart; a page with another one is not held against the picture.
    """

    characters: tuple[Seen, ...] = ()
    background: str = ""
    style: str = ""
    judged: tuple[str, ...] = ()
    minor: tuple[str, ...] = ()
    backgrounds: frozenset[str] = frozenset()


@runtime_checkable
class Reader(Protocol):
    """Anything that reads a picture back."""

    def read(self, image: Image, wanted: Sequence[Character] = ()) -> Reading:
        """Return what is in a picture.

        Args:
            image: uint8 (H, W, 3).
            wanted: who should be there; labels come back in their words. Without anyone, everything the reader knows
                is looked for, as in a picture that a user gives.

        Raises:
            GenerationError: if the picture cannot be read at all.
        """
        ...
