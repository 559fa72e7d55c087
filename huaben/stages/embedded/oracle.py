"""A painter that draws the request exactly, and a reader that knows what it drew: the upper bound of every metric.

Both are for tests, benchmarks and a quick look at a story without weights. The renderer keeps an individual's identity
by recognising a reference as part of a picture it has drawn before.
"""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import Cancelled, GenerationError
from ...painting import BoxTuple, OnStep, PaintCharacter, PainterLimits, Painting, PaintRequest, Progress, ShouldCancel
from ...rng import numpy_stream, stream_seed
from ...world.render import Rendered, render
from ...world.sample import IDENTITIES
from ...world.scene import MAX_CHARACTERS, SceneCharacter, SceneGraph
from ...world.vocabulary import ATTRIBUTES, KEYS

if TYPE_CHECKING:
    from ...world.detector import Reading

REMEMBERED = 256
"""Pictures a renderer remembers for recognising references."""
EMBEDDING_SIZE = 32


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """One picture, its scene and where everything is."""

    scene: SceneGraph
    rendered: Rendered


class RendererPainter:
    """Draws what the phrases and the prompt say, with the world's own renderer.

    Words it does not know are ignored; a phrase without a species cannot be drawn.
    """

    limits = PainterLimits(
        size=(256, 256),
        guidance_scale=3.0,
        max_side=512,
        max_characters=MAX_CHARACTERS,
        boxes=True,
        references=True,
        previews=True,
    )

    def __init__(self) -> None:
        self._drawn: dict[bytes, _Drawn] = {}

    def paint(
        self, request: PaintRequest, *, on_step: OnStep | None = None, should_cancel: ShouldCancel | None = None
    ) -> Painting:
        """Draw the request; every step shows the finished picture."""
        self.limits.check(request.size, request.steps)
        started = time.perf_counter()
        scene = self.scene(request)
        rendered = render(scene, request.size, masks=True)
        self._remember(scene, rendered)
        for step in range(1, request.steps + 1):
            if should_cancel is not None and should_cancel():
                raise Cancelled(f"stopped before step {step} of {request.steps}")
            if on_step is not None:
                on_step(Progress(step=step, steps=request.steps, draw=lambda: rendered.image))
        return Painting(
            image=rendered.image, seed=request.seed, seconds=time.perf_counter() - started, model="renderer"
        )

    def scene(self, request: PaintRequest) -> SceneGraph:
        """Return the scene a request describes."""
        words = read_words(request.prompt)
        characters = []
        for index, character in enumerate(request.characters):
            look = read_words(character.phrase)
            if "species" not in look:
                raise GenerationError(
                    f"phrase {character.phrase!r} names nothing of the embedded world",
                    hint=f"name one of {', '.join(KEYS['species'])}",
                )
            characters.append(
                SceneCharacter(
                    species=look["species"],
                    colour=look.get("colour", "gray"),
                    accessory=look.get("accessory", "none"),
                    expression=look.get("expression", "happy"),
                    facing=character.facing or look.get("facing", "right"),
                    box=character.box or _somewhere(request.seed, index, len(request.characters)),
                    identity=self._identity(character, request.seed, index),
                )
            )
        return SceneGraph(
            background=words.get("background", "meadow"),
            style=words.get("style", "flat"),
            characters=tuple(characters),
            backdrop=stream_seed(request.seed, "backdrop") % IDENTITIES,
        )

    def drawn(self, image: npt.NDArray[np.uint8]) -> _Drawn | None:
        """Return what is known of a picture, if this painter drew it."""
        return self._drawn.get(_digest(image))

    def _remember(self, scene: SceneGraph, rendered: Rendered) -> None:
        """Keep the newest pictures."""
        self._drawn.pop(_digest(rendered.image), None)
        self._drawn[_digest(rendered.image)] = _Drawn(scene, rendered)
        while len(self._drawn) > REMEMBERED:
            del self._drawn[next(iter(self._drawn))]

    def _identity(self, character: PaintCharacter, seed: int, index: int) -> int:
        """Return the individual: that of the reference, or a new one."""
        if character.reference is None:
            return stream_seed(seed, "identity", index) % IDENTITIES
        for drawn in reversed(self._drawn.values()):
            place = locate(drawn.rendered.image, character.reference)
            if place is None or not drawn.scene.characters:
                continue
            overlaps = [_overlap(place, tuple(map(float, box))) for box in drawn.rendered.boxes]
            return drawn.scene.characters[int(np.argmax(overlaps))].identity
        return int.from_bytes(_digest(character.reference)[:4], "little") % IDENTITIES


class RendererReader:
    """Reads pictures of one :class:`RendererPainter` without error; nothing is recognised in any other picture."""

    def __init__(self, painter: RendererPainter) -> None:
        self._painter = painter

    def detect(self, images: Any, *, masks: bool = False) -> list[Reading]:
        """Return what each picture truly shows."""
        return [self._read(np.asarray(image), masks) for image in images]

    def _read(self, image: npt.NDArray[np.uint8], masks: bool) -> Reading:
        """Turn one remembered picture into a reading."""
        from ...world.detector import ReadCharacter, Reading

        drawn = self._painter.drawn(image)
        if drawn is None:
            return Reading(characters=(), background="meadow", style="flat")
        characters = []
        for index, character in enumerate(drawn.scene.characters):
            x0, y0, x1, y1 = (float(v) for v in drawn.rendered.boxes[index])
            mask = drawn.rendered.masks[index] if masks and drawn.rendered.masks is not None else None
            if drawn.rendered.masks is not None and not drawn.rendered.masks[index].any():
                continue
            characters.append(
                ReadCharacter(
                    species=character.species,
                    colour=character.colour,
                    accessory=character.accessory,
                    expression=character.expression,
                    facing=character.facing,
                    box=(x0, y0, x1, y1),
                    score=1.0,
                    probabilities={
                        name: np.eye(len(KEYS[name]), dtype=np.float32)[KEYS[name].index(getattr(character, name))]
                        for name in ("species", "colour")
                    },
                    identity=identity_vector(character.identity),
                    mask=mask,
                )
            )
        return Reading(characters=tuple(characters), background=drawn.scene.background, style=drawn.scene.style)


def identity_vector(identity: int) -> npt.NDArray[np.float32]:
    """Return a unit vector that two individuals practically never share."""
    vector = numpy_stream(identity, "identity vector").standard_normal(EMBEDDING_SIZE).astype(np.float32)
    return vector / np.float32(np.linalg.norm(vector))


def locate(image: npt.NDArray[np.uint8], crop: npt.NDArray[np.uint8]) -> BoxTuple | None:
    """Return where ``crop`` occurs exactly in ``image``, as a box in shares; None if it does not."""
    height, width = image.shape[:2]
    h, w = crop.shape[:2]
    if h > height or w > width:
        return None
    corner = image[: height - h + 1, : width - w + 1]
    centre = image[h // 2 : h // 2 + height - h + 1, w // 2 : w // 2 + width - w + 1]
    hits = (corner == crop[0, 0]).all(-1) & (centre == crop[h // 2, w // 2]).all(-1)
    for y, x in zip(*np.nonzero(hits), strict=True):
        if np.array_equal(image[y : y + h, x : x + w], crop):
            return x / width, y / height, (x + w) / width, (y + h) / height
    return None


def read_words(text: str) -> dict[str, str]:
    """Return the first value of each attribute that a text names, longest names first; both languages."""
    lowered = text.casefold()
    taken = np.zeros(len(lowered), bool)
    hits: dict[str, tuple[int, str]] = {}
    for name, attribute, key in _names():
        pattern = rf"(?<![a-z]){re.escape(name)}(?![a-z])" if name.isascii() else re.escape(name)
        for found in re.finditer(pattern, lowered):
            start, end = found.span()
            if taken[start:end].any():
                continue
            taken[start:end] = True
            if attribute not in hits or start < hits[attribute][0]:
                hits[attribute] = (start, key)
    return {attribute: key for attribute, (_, key) in hits.items()}


@lru_cache(maxsize=1)
def _names() -> tuple[tuple[str, str, str], ...]:
    """Return (name, attribute, key) of every word of the world, longest first."""
    names = [
        (name.casefold(), attribute, term.key)
        for attribute, terms in ATTRIBUTES.items()
        for term in terms
        for name in (*term.en, *term.zh, *((term.plural,) if term.plural else ()))
        if term.key != "none"
    ]
    return tuple(sorted(names, key=lambda item: -len(item[0])))


def _somewhere(seed: int, index: int, count: int) -> BoxTuple:
    """Return a box for a character without one: side by side, a little at random."""
    shift = float(numpy_stream(seed, "place", index).uniform(-0.04, 0.04))
    middle = (index + 0.5) / count + shift
    half = min(0.2, 0.45 / count)
    return max(middle - half, 0.0), 0.45, min(middle + half, 1.0), 0.9


def _digest(image: npt.NDArray[np.uint8]) -> bytes:
    """Return a hash of a picture's size and pixels."""
    return hashlib.blake2b(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes(), digest_size=16).digest()


def _overlap(a: BoxTuple, b: tuple[float, ...]) -> float:
    """Return intersection over union of two boxes."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)
