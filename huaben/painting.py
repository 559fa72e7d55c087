"""The painter's contract: what a picture is asked for with, what comes back, and what a painter can use. No torch.

The contract knows prompts, boxes and reference crops, never a page or a conversation. Anything with ``limits`` and a
``paint`` method that keeps it is a :class:`Painter`. What a painter cannot use is not an error: it says so in its
limits, and whoever asks announces it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt

from .config import Config
from .errors import ConfigError, ShapeError
from .notices import Notice, notice
from .rng import check_seed

Image = npt.NDArray[np.uint8]
"""uint8, (height, width, 3), RGB."""
BoxTuple = tuple[float, float, float, float]
Facing = Literal["left", "right"]
GuidanceWay = Literal["hold", "set_in"]

MAX_SIDE = 16384
"""Pixels of a side beyond which a size is taken for a mistake, whatever the painter."""
MAX_STEPS = 1000
CROP_MARGIN = 0.08
"""Share of a box's longer side that a reference crop shows around the character."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PaintCharacter:
    """One character of a picture.

    Attributes:
        id: the caller's name for it; used in reports only, never read by a model.
        phrase: what it looks like, e.g. "a red cat with a hat".
        box: where it goes; None leaves its place to the model.
        reference: an earlier picture of the same individual, cut out with a little margin; None for a new one.
        reference_mask: bool (h, w), True on the individual in ``reference``; None where it is not cut out.
        reference_facing: the way the individual faces in ``reference``.
        facing: the way it shall face now; None if unsaid.
    """

    id: str
    phrase: str
    box: BoxTuple | None = None
    reference: Image | None = None
    reference_mask: npt.NDArray[np.bool_] | None = None
    reference_facing: Facing | None = None
    facing: Facing | None = None

    def __post_init__(self) -> None:
        if not self.phrase.strip():
            raise ConfigError(f"character {self.id!r} has an empty phrase", hint="describe it, e.g. 'a red cat'")
        if self.box is not None:
            check_box(self.box, self.id)
        if self.reference is not None:
            check_image(self.reference, f"the reference of {self.id!r}")
        if self.reference_mask is not None:
            if self.reference is None or self.reference_mask.shape != self.reference.shape[:2]:
                raise ShapeError(
                    f"the reference mask of {self.id!r} is {self.reference_mask.shape}, expected its reference's shape"
                )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LatentGuidance:
    """A sketch that sampling follows inside a mask, for painters that can (``PainterLimits.guidance``).

    Attributes:
        canvas: the sketch, of the picture's size.
        masks: bool (N, height, width), one per character drawn in the sketch; outside them sampling is free.
        way: "hold" holds the first steps to the sketch, "set_in" sets it into the picture after them.
        fraction: share of the steps that are guided, or after which it is set in, counted from the noisiest; set in
            after all of them, its pixels are the picture's, blended at their rim.
        weight: 1 replaces the held latents, less blends them with the sampler's own.
    """

    canvas: Image
    masks: npt.NDArray[np.bool_]
    way: GuidanceWay = "hold"
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
        if self.way not in get_args(GuidanceWay):
            raise ConfigError(f"guidance way {self.way!r} is unknown", hint="use 'hold' or 'set_in'")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PaintRequest:
    """Everything that decides a picture.

    Attributes:
        prompt: the whole picture in words.
        negative: what to keep out.
        size: (height, width) in pixels; what a painter takes is in its limits.
        seed: from 0 to 2**63 - 1.
        steps: denoising steps.
        guidance_scale: strength of the prompt; 1 switches classifier-free guidance off.
        characters: back to front.
        guidance: a sketch that sampling follows; None samples freely.
        previous: the picture of the page before, for painters that edit; of any size.
        instruction: what to change in ``previous``, in the user's words; empty where the prompt says it all.
        mask: bool (height, width), True where the picture may change; None means everywhere.
        edge_map: uint8 (height, width), 255 on the edges that the picture shall have.
    """

    prompt: str
    negative: str = ""
    size: tuple[int, int] = (256, 256)
    seed: int = 0
    steps: int = 20
    guidance_scale: float = 3.0
    characters: tuple[PaintCharacter, ...] = field(default=())
    guidance: LatentGuidance | None = None
    previous: Image | None = None
    instruction: str = ""
    mask: npt.NDArray[np.bool_] | None = None
    edge_map: npt.NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ConfigError("the prompt is empty", hint="say what to draw, e.g. 'a red cat on the beach'")
        check_seed(self.seed)
        check_size(self.size)
        check_steps(self.steps)
        check_guidance_scale(self.guidance_scale)
        if self.guidance is not None and self.guidance.canvas.shape[:2] != tuple(self.size):
            raise ShapeError(
                f"the guidance canvas is {self.guidance.canvas.shape[:2]}, the picture {tuple(self.size)}",
                hint="draw the canvas at the picture's size",
            )
        if self.previous is not None:
            check_image(self.previous, "the previous picture")
        for name, dtype in (("mask", np.bool_), ("edge_map", np.uint8)):
            array = getattr(self, name)
            if array is not None and (array.shape != tuple(self.size) or array.dtype != dtype):
                raise ShapeError(
                    f"{name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {tuple(self.size)}",
                    hint="scale it to the picture's size",
                )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Painting:
    """A finished picture.

    Attributes:
        image: the picture, of exactly the size asked for.
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
        draw: makes the preview; None where the painter has none.
    """

    step: int
    steps: int
    draw: Callable[[], Image] | None = None

    @property
    def preview(self) -> Image | None:
        """A picture of what is expected, made when it is asked for; None where the painter has none."""
        return None if self.draw is None else self.draw()


OnStep = Callable[[Progress], None]
ShouldCancel = Callable[[], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class PainterLimits(Config):
    """What a painter can paint, and what of a request it uses.

    Attributes:
        size, steps, guidance_scale: what it paints best with; used where nobody says otherwise.
        min_side, max_side, multiple: bounds of each side in pixels, and what it must be a multiple of.
        max_pixels: height times width at most; None has no further bound.
        sizes: if not empty, the only (height, width) it paints.
        max_steps: the most steps it takes.
        max_characters: characters it can tell apart in one picture; more belong into the prompt.
        boxes: characters stand where their boxes say.
        references: characters look like their reference crops.
        masks: paints only where ``mask`` says, the rest is kept from ``previous``.
        edge_map: follows edges.
        negative: knows what to leave out.
        seed: the same request twice gives the same bytes on one device.
        previous: takes the page before as its input and changes only what was asked for.
        previews: shows what is expected while it paints.
        guidance: follows a sketch while sampling (:class:`LatentGuidance`).
        sketch: a character's first picture is better with a drawn reference.
    """

    size: tuple[int, int] = (1024, 1024)
    steps: int = 20
    guidance_scale: float = 5.0
    min_side: int = 64
    max_side: int = 2048
    multiple: int = 16
    max_pixels: int | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    max_steps: int = 200
    max_characters: int = 4
    boxes: bool = False
    references: bool = False
    masks: bool = False
    edge_map: bool = False
    negative: bool = False
    seed: bool = True
    previous: bool = False
    previews: bool = False
    guidance: bool = False
    sketch: bool = False

    def __post_init__(self) -> None:
        check_size(self.size)
        check_steps(self.steps)
        check_guidance_scale(self.guidance_scale)
        if not 1 <= self.min_side <= self.max_side <= MAX_SIDE or self.multiple < 1:
            raise ConfigError(f"sides from {self.min_side} to {self.max_side} in multiples of {self.multiple}")

    def takes(self, size: tuple[int, int]) -> bool:
        """Return whether it paints a picture of (height, width)."""
        if self.sizes:
            return tuple(size) in self.sizes
        sides = all(self.min_side <= side <= self.max_side and side % self.multiple == 0 for side in size)
        return sides and (self.max_pixels is None or size[0] * size[1] <= self.max_pixels)

    def nearest_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size it takes that is nearest in shape and area."""
        if self.sizes:

            def distance(other: tuple[int, int]) -> float:
                shape = abs(np.log(other[0] / other[1]) - np.log(size[0] / size[1]))
                return float(2 * shape + abs(np.log(other[0] * other[1]) - np.log(size[0] * size[1])))

            return min(self.sizes, key=distance)
        scale = 1.0
        if self.max_pixels is not None:
            scale = min(1.0, (self.max_pixels / (size[0] * size[1])) ** 0.5)
        sides = [self._nearest_side(side * scale) for side in size]
        while self.max_pixels is not None and sides[0] * sides[1] > self.max_pixels and max(sides) > self.min_side:
            sides[int(sides[1] >= sides[0])] -= self.multiple
        return sides[0], sides[1]

    def _nearest_side(self, side: float) -> int:
        """Return the nearest side length a picture can have."""
        low = -(-self.min_side // self.multiple) * self.multiple
        high = self.max_side // self.multiple * self.multiple
        return min(max(round(side / self.multiple) * self.multiple, low), high)

    def check(self, size: tuple[int, int], steps: int) -> None:
        """Raise ConfigError, with what works instead, for a size or a number of steps it does not take."""
        check_size(size)
        if not self.takes(size):
            found, near = (f"{side[0]}x{side[1]}" for side in (size, self.nearest_size(size)))
            if self.sizes:
                wanted = f"one of {', '.join(f'{h}x{w}' for h, w in self.sizes)}"
            else:
                wanted = f"two multiples of {self.multiple} from {self.min_side} to {self.max_side}"
                if self.max_pixels is not None:
                    wanted += f" of at most {self.max_pixels:,} pixels"
            raise ConfigError(f"size {found} (height x width) is not {wanted}", hint=f"use {near}")
        if not 1 <= steps <= self.max_steps:
            raise ConfigError(f"steps={steps} is not from 1 to {self.max_steps}", hint=f"{self.steps} is a good number")

    def unused(self, request: PaintRequest) -> tuple[Notice, ...]:
        """Return an announcement for everything in a request that this painter makes no use of."""
        given = {
            "boxes": any(character.box is not None for character in request.characters),
            "references": any(character.reference is not None for character in request.characters),
            "masks": request.mask is not None,
            "edge_map": request.edge_map is not None,
            "negative": bool(request.negative),
        }
        return tuple(notice(f"painter_no_{name}") for name, said in given.items() if said and not getattr(self, name))


@runtime_checkable
class Painter(Protocol):
    """Anything that turns a request into a picture.

    ``paint`` returns a picture of exactly ``request.size``; the same request twice gives the same bytes where
    ``limits.seed`` says so; ``on_step`` is called once a step, in order; ``should_cancel`` is asked at least once a
    step and, once true, ends painting with :class:`~huaben.errors.Cancelled`. A request that the limits do not allow
    is a ConfigError; what of it is not used is left to the caller to announce (:meth:`PainterLimits.unused`).
    """

    @property
    def limits(self) -> PainterLimits:
        """What it can paint, known without loading weights where that is possible."""
        ...

    def paint(
        self, request: PaintRequest, *, on_step: OnStep | None = None, should_cancel: ShouldCancel | None = None
    ) -> Painting:
        """Return the picture; raises GenerationError where none can be made."""
        ...


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return ``size`` if it is (height, width) in whole pixels.

    Raises:
        ConfigError: for anything else, and for sides beyond :data:`MAX_SIDE`.
    """
    ok = len(size) == 2 and all(isinstance(side, int) and not isinstance(side, bool) for side in size)
    if ok and all(1 <= side <= MAX_SIDE for side in size):
        return size
    found = "x".join(map(str, size))
    raise ConfigError(
        f"size {found} (height x width) is not two whole numbers from 1 to {MAX_SIDE}", hint="use 512x768, for example"
    )


def check_steps(steps: int) -> int:
    """Return a number of denoising steps, or raise ConfigError."""
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise ConfigError(f"steps={steps!r} is not from 1 to {MAX_STEPS}", hint="20 is a good number")
    return steps


def check_guidance_scale(scale: float) -> float:
    """Return a guidance scale, or raise ConfigError."""
    if not 0.0 <= scale <= 30.0:
        raise ConfigError(f"guidance_scale={scale} is not in [0, 30]", hint="3 is a good value")
    return scale


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
