"""Who has been seen: for every character id the picture it was first recognised in, fixed for the whole story.

An entry is stored only after the picture was read back and shows the character as asked. The first entry of an id is
*canonical* and never changes; an edit of its look (another colour, another accessory) that was painted and recognised
adds a *version*. Both are references for later pages; which one is used is a policy.

Source: TheaterGen (arXiv:2404.18919), the reference bank of the character designer.
Differs: the paper keeps the whole unchecked first picture; huaben keeps a checked cut-out with mask and embedding.
"""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from ..errors import ConfigError, DataError, StoreError
from ..files import write_bytes
from ..notices import Notice, notice
from ..painting import CROP_MARGIN, BoxTuple, Facing

Policy = Literal["canonical", "latest"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CastEntry:
    """One picture of one character that was recognised on a page.

    Attributes:
        id: the character's id in the prompt book.
        turn: the turn that painted it.
        prompt: its phrase on that turn's page.
        look: what decides whether a later picture is a new version, e.g. ``("cat", "red", "hat")``.
        facing: the way it faces in the crop.
        box: where it was found, in the whole picture.
        crop: uint8 (h, w, 3) with a margin: cut out of the page, or the sketch that the page was painted after.
        mask: bool (h, w), True on the character.
        embedding: float32 (D,) identity embedding; empty if the reader has none.
        version: 0 for the canonical entry.
    """

    id: str
    turn: int
    prompt: str
    look: tuple[str, ...]
    facing: Facing
    box: BoxTuple
    crop: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]
    embedding: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    version: int = 0

    def __post_init__(self) -> None:
        if self.crop.dtype != np.uint8 or self.crop.ndim != 3 or self.crop.shape[2] != 3 or 0 in self.crop.shape:
            raise DataError(f"crop of {self.id!r} is {self.crop.dtype} {self.crop.shape}, expected uint8 (h, w, 3)")
        if self.mask.shape != self.crop.shape[:2] or self.mask.dtype != np.bool_:
            raise DataError(f"mask of {self.id!r} is {self.mask.dtype} {self.mask.shape}, the crop {self.crop.shape}")
        for array in (self.crop, self.mask, self.embedding):
            array.setflags(write=False)

    @property
    def species(self) -> str:
        """First part of the look."""
        return self.look[0] if self.look else ""

    @property
    def colour(self) -> str:
        """Second part of the look."""
        return self.look[1] if len(self.look) > 1 else ""


@dataclass(frozen=True, slots=True, eq=False)
class Cast:
    """All entries of a story, oldest first. Every change returns a new cast."""

    entries: tuple[CastEntry, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """Every id, in order of first appearance."""
        return tuple(dict.fromkeys(entry.id for entry in self.entries))

    def versions(self, id: str) -> tuple[CastEntry, ...]:
        """Return the entries of ``id``, canonical first; empty if it was never recognised."""
        return tuple(entry for entry in self.entries if entry.id == id)

    def choose(self, id: str, policy: Policy = "canonical", *, species: str | None = None) -> CastEntry | None:
        """Return the reference of ``id``.

        Args:
            id: the character.
            policy: ``canonical`` is its first picture, ``latest`` the picture of its newest look.
            species: leave out versions of another species (a frog that became a prince is no reference of the prince).
        """
        if policy not in ("canonical", "latest"):
            raise ConfigError(f"policy={policy!r} is neither 'canonical' nor 'latest'")
        found = [entry for entry in self.versions(id) if species is None or entry.species == species]
        if not found:
            return None
        return found[0] if policy == "canonical" else found[-1]

    def add(self, entry: CastEntry) -> Cast:
        """Return the cast with ``entry``: canonical if its id is new, a version if its look is, else unchanged."""
        versions = self.versions(entry.id)
        if any(known.look == entry.look for known in versions):
            return self
        return Cast((*self.entries, replace(entry, version=len(versions))))

    def save(self, folder: Path) -> list[dict[str, Any]]:
        """Write the cut-outs into ``folder`` under the hash of their bytes and return the entries as JSON values.

        Files are never changed once written, so earlier states of a story stay readable.
        """
        return [_write_entry(entry, Path(folder)) for entry in self.entries]

    @classmethod
    def load(cls, folder: Path, values: list[dict[str, Any]]) -> tuple[Self, tuple[Notice, ...]]:
        """Read what :meth:`save` returned.

        Returns:
            The cast, and a notice for each entry whose picture is missing or damaged; that entry is left out.

        Raises:
            StoreError: if ``values`` is not a cast at all.
        """
        entries, notices = [], []
        for value in values:
            try:
                entries.append(_read_entry(value, Path(folder)))
            except (OSError, DataError, UnidentifiedImageError, SyntaxError):
                notices.append(notice("reference_unreadable", name=str(value.get("id", "?"))))
            except (KeyError, TypeError, ValueError) as error:
                raise StoreError(
                    f"the cast in {folder} has an entry that cannot be read: {error}",
                    hint="restore the session folder from a copy",
                ) from error
        return cls(tuple(entries)), tuple(notices)


def cut_out(
    image: npt.NDArray[np.uint8], box: BoxTuple, mask: npt.NDArray[np.bool_] | None, margin: float = CROP_MARGIN
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Cut a character out of a picture.

    Args:
        image: uint8 (H, W, 3).
        box: where it is.
        mask: bool (H, W); None takes the box itself.
        margin: share of the box's longer side kept around it, inside the picture.

    Returns:
        Copies of the pixels (h, w, 3) and of the mask (h, w).
    """
    height, width = image.shape[:2]
    pad = margin * max((box[2] - box[0]) * width, (box[3] - box[1]) * height)
    x0, x1 = _span(box[0] * width - pad, box[2] * width + pad, width)
    y0, y1 = _span(box[1] * height - pad, box[3] * height + pad, height)
    if mask is None:
        mask = np.zeros((height, width), bool)
        bx0, bx1 = _span(box[0] * width, box[2] * width, width)
        by0, by1 = _span(box[1] * height, box[3] * height, height)
        mask[by0:by1, bx0:bx1] = True
    return image[y0:y1, x0:x1].copy(), mask[y0:y1, x0:x1].copy()


def _span(low: float, high: float, length: int) -> tuple[int, int]:
    """Return whole-pixel bounds inside ``[0, length]``, at least one pixel wide."""
    start = min(max(int(np.floor(low)), 0), length - 1)
    return start, max(min(int(np.ceil(high)), length), start + 1)


def _write_entry(entry: CastEntry, folder: Path) -> dict[str, Any]:
    """Write one cut-out as RGBA and describe it."""
    alpha = np.where(entry.mask, 255, 0).astype(np.uint8)
    buffer = io.BytesIO()
    PillowImage.fromarray(np.dstack([entry.crop, alpha])).save(buffer, "PNG")
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    path = folder / f"{digest[:16]}.png"
    if not path.is_file():
        write_bytes(path, data)
    embedding = base64.b64encode(np.ascontiguousarray(entry.embedding, "<f4").tobytes()).decode("ascii")
    return {
        "id": entry.id,
        "version": entry.version,
        "turn": entry.turn,
        "prompt": entry.prompt,
        "look": list(entry.look),
        "facing": entry.facing,
        "box": [round(float(v), 6) for v in entry.box],
        "file": path.name,
        "sha256": digest,
        "embedding": embedding,
    }


def _read_entry(value: dict[str, Any], folder: Path) -> CastEntry:
    """Read one cut-out; raises DataError if its bytes changed."""
    name = str(value["file"])
    if Path(name).name != name:
        raise StoreError(f"cast file {name!r} is not a plain name", hint="restore the session folder from a copy")
    data = (folder / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != value["sha256"]:
        raise DataError(f"{folder / name} changed since it was written")
    with PillowImage.open(io.BytesIO(data), formats=["PNG"]) as picture:
        pixels = np.asarray(picture.convert("RGBA"))
    facing: Facing = "left" if value["facing"] == "left" else "right"
    x0, y0, x1, y1 = (float(v) for v in value["box"])
    return CastEntry(
        id=str(value["id"]),
        version=int(value["version"]),
        turn=int(value["turn"]),
        prompt=str(value["prompt"]),
        look=tuple(str(part) for part in value["look"]),
        facing=facing,
        box=(x0, y0, x1, y1),
        crop=pixels[..., :3].copy(),
        mask=pixels[..., 3] > 127,
        embedding=np.frombuffer(base64.b64decode(value["embedding"]), "<f4").copy(),
    )
