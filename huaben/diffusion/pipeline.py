"""Prompt to picture: the painter's contract, and the embedded painter.

The contract knows prompts, boxes and reference crops, never a page or a conversation. Anything with a ``paint`` method
that keeps it is a painter: :class:`EmbeddedPainter` here, which joins the text encoders, the diffusion transformer and
the autoencoder of a pipeline folder, or an exact renderer, or another program behind an adapter.

Shapes: B batch, S text tokens, C h w latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, ShapeError
from ..notices import Notice
from ..rng import check_seed

Image = npt.NDArray[np.uint8]
"""uint8, (height, width, 3), RGB."""
BoxTuple = tuple[float, float, float, float]

MIN_SIZE, MAX_SIZE, SIZE_STEP = 64, 512, 16
MAX_STEPS = 200


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CharacterRequest:
    """One character of a picture.

    Attributes:
        id: the caller's name for it; used in reports only, never read by a model.
        phrase: what it looks like, e.g. "a red cat with a hat".
        box: where it goes; None leaves its place to the model.
        reference: an earlier picture of the same individual, cut out with a little margin; None for a new one.
        reference_facing: the way the individual faces in ``reference``.
        facing: the way it shall face now; None if unsaid.
    """

    id: str
    phrase: str
    box: BoxTuple | None = None
    reference: Image | None = None
    reference_facing: Literal["left", "right"] | None = None
    facing: Literal["left", "right"] | None = None

    def __post_init__(self) -> None:
        if not self.phrase.strip():
            raise ConfigError(f"character {self.id!r} has an empty phrase", hint="describe it, e.g. 'a red cat'")
        if self.box is not None:
            check_box(self.box, self.id)
        if self.reference is not None:
            check_image(self.reference, f"the reference of {self.id!r}")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LatentGuidance:
    """A sketch that the first steps of sampling are held to, inside a mask.

    Attributes:
        canvas: the sketch, of the picture's size.
        masks: bool (N, height, width), one per character drawn in the sketch; outside them sampling is free.
        fraction: share of the steps that are guided, counted from the noisiest.
        weight: 1 replaces the masked latents, less blends them with the sampler's own.
    """

    canvas: Image
    masks: npt.NDArray[np.bool_]
    fraction: float = 0.2
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_image(self.canvas, "the guidance canvas")
        if self.masks.ndim != 3 or self.masks.shape[1:] != self.canvas.shape[:2] or self.masks.dtype != np.bool_:
            raise ShapeError(
                f"guidance masks are {self.masks.dtype} {self.masks.shape}, expected bool (N, *{self.canvas.shape[:2]})"
            )
        for name in ("fraction", "weight"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"guidance {name}={getattr(self, name)} is not in [0, 1]", hint="use 0.2")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PaintRequest:
    """Everything that decides a picture; the same request gives the same bytes on one device.

    Attributes:
        prompt: the whole picture in words, English or Chinese.
        negative: what to keep out; needs ``guidance_scale`` above 1.
        size: (height, width), multiples of 16 from 64 to 512.
        seed: from 0 to 2**63 - 1.
        steps: denoising steps.
        guidance_scale: strength of the prompt; 1 switches classifier-free guidance off.
        characters: back to front.
        guidance: a sketch for the first steps; None samples freely.
    """

    prompt: str
    negative: str = ""
    size: tuple[int, int] = (128, 128)
    seed: int = 0
    steps: int = 20
    guidance_scale: float = 3.0
    characters: tuple[CharacterRequest, ...] = field(default=())
    guidance: LatentGuidance | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ConfigError("the prompt is empty", hint="say what to draw, e.g. 'a red cat on the beach'")
        check_seed(self.seed)
        check_size(self.size)
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or not 1 <= self.steps <= MAX_STEPS:
            raise ConfigError(f"steps={self.steps!r} is not from 1 to {MAX_STEPS}", hint="20 is a good number")
        if not 0.0 <= self.guidance_scale <= 30.0:
            raise ConfigError(f"guidance_scale={self.guidance_scale} is not in [0, 30]", hint="3 is a good value")
        if self.guidance is not None and self.guidance.canvas.shape[:2] != tuple(self.size):
            raise ShapeError(
                f"the guidance canvas is {self.guidance.canvas.shape[:2]}, the picture {tuple(self.size)}",
                hint="draw the canvas at the picture's size",
            )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Painting:
    """A finished picture.

    Attributes:
        image: the picture.
        seed: the request's seed.
        seconds: wall time of painting.
        model: short fingerprint of the weights, or the painter's name.
        warnings: what the caller should know.
    """

    image: Image
    seed: int
    seconds: float
    model: str = ""
    warnings: tuple[Notice, ...] = field(default=())


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Progress:
    """One step of painting is done.

    Attributes:
        step, steps: 1 to ``steps``.
        preview: a small picture of what is expected; None where the painter has none.
    """

    step: int
    steps: int
    preview: Image | None = None


OnStep = Callable[[Progress], None]
ShouldCancel = Callable[[], bool]


@runtime_checkable
class Painter(Protocol):
    """Anything that turns a request into a picture.

    ``paint`` returns a picture of exactly ``request.size``; the same request twice gives the same bytes; ``on_step``
    is called once a step, in order; ``should_cancel`` is asked at least once a step and, once true, ends painting with
    :class:`~huaben.errors.Cancelled`.
    """

    def paint(
        self, request: PaintRequest, *, on_step: OnStep | None = None, should_cancel: ShouldCancel | None = None
    ) -> Painting:
        """Return the picture; raises GenerationError where none can be made."""
        ...


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return ``size`` if it is (height, width) in multiples of 16 from 64 to 512.

    Raises:
        ConfigError: with the nearest size that works.
    """
    ok = len(size) == 2 and all(isinstance(side, int) and not isinstance(side, bool) for side in size)
    if ok and all(MIN_SIZE <= side <= MAX_SIZE and side % SIZE_STEP == 0 for side in size):
        return size
    near = "x".join(str(nearest_side(side)) for side in size) if ok else "128x128"
    found = "x".join(map(str, size))
    raise ConfigError(
        f"size {found} (height x width) is not two multiples of {SIZE_STEP} from {MIN_SIZE} to {MAX_SIZE}",
        hint=f"use {near}",
    )


def nearest_side(side: int) -> int:
    """Return the nearest side length a picture can have."""
    return min(max(round(side / SIZE_STEP) * SIZE_STEP, MIN_SIZE), MAX_SIZE)


def check_box(box: BoxTuple, name: str) -> None:
    """Raise ConfigError unless ``box`` is (x0, y0, x1, y1) in [0, 1] with an inside."""
    if len(box) != 4 or not all(isinstance(v, (int, float)) and np.isfinite(v) for v in box):
        raise ConfigError(f"box {box!r} of {name!r} is not four numbers", hint="use (x0, y0, x1, y1) in [0, 1]")
    x0, y0, x1, y1 = box
    if not (-1e-6 <= x0 < x1 <= 1 + 1e-6 and -1e-6 <= y0 < y1 <= 1 + 1e-6):
        raise ConfigError(f"box {box!r} of {name!r} is empty or leaves the picture", hint="keep it inside [0, 1]")


def check_image(image: Any, name: str) -> None:
    """Raise ShapeError unless ``image`` is uint8 (height, width, 3) and not empty."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ShapeError(f"{name} is {found}, expected uint8 (height, width, 3)")
    if 0 in image.shape:
        raise ShapeError(f"{name} is empty: {image.shape}")
