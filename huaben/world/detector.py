"""The world's detector: reads a picture back into a scene graph with boxes, masks and identity embeddings.

Two steps. The *finder* looks at the whole picture once and proposes boxes (a heatmap of centres, as CenterNet), and
names background and style. The *reader* then looks at each box at one canonical size, whatever the character's size
in the picture, and names species, colour, accessory, expression and facing, corrects the box, cuts the character out
and gives the individual's embedding.

Pictures of any size are letterboxed (top left) onto a square canvas; boxes and masks are mapped back.

Letters: B pictures, N boxes, C channels, H W pixels, S cells along the heatmap's side, D embedding width.

Source: heatmap and focal loss, Zhou et al. 2019 (arXiv:1904.07850). Differs: attributes come from a re-cropped box
instead of the centre cell, and boxes are regressed as logarithms of their size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Config
from ..errors import ConfigError, ShapeError
from ..pretrained import PretrainedModel
from .matching import as_boxes, pairwise_iou
from .scene import MAX_CHARACTERS, BoxTuple, SceneCharacter, SceneGraph
from .vocabulary import KEYS

CHARACTER_ATTRIBUTES = ("species", "colour", "accessory", "expression", "facing")
PICTURE_ATTRIBUTES = ("background", "style")
STRIDE = 8
"""Pixels of the canvas per cell of the heatmap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorConfig(Config):
    """Sizes of a :class:`Detector`.

    Attributes:
        image_size: side of the square canvas in pixels; a multiple of 16.
        finder_size: side of the finder's view of the canvas, which it divides; the canvas itself if None.
        finder_widths: channels at strides 4, 8 and 16.
        finder_blocks: residual blocks at each of those strides.
        crop_size: side of the reader's view of a box in pixels; a multiple of 8.
        crop_margin: how much of the box's size is added on each side of the view.
        reader_widths: channels at strides 4 and 8 of the view.
        reader_blocks: residual blocks at each of those strides.
        reader_stem: how the reader first looks at pixels: ``patch`` folds 4x4 of them, ``conv`` goes down in two steps
            of convolutions, which costs as much and sees thin lines sooner.
        normed_summary: whether the reader's summary is batch-normed.
        hidden_size: width of the reader's summary of a box.
        identity_size: width D of the identity embedding.
        num_traits: length of the vector of an individual's traits that the embedding is trained to tell; 0 for none.
        score_threshold: detections below it are not reported.
        nms_iou: of two detections that overlap more, the weaker is dropped.
        max_detections: most characters reported per picture.
    """

    image_size: int = 128
    finder_size: int | None = None
    finder_widths: tuple[int, int, int] = (32, 64, 96)
    finder_blocks: tuple[int, int, int] = (1, 2, 2)
    crop_size: int = 48
    crop_margin: float = 0.08
    reader_widths: tuple[int, int] = (80, 128)
    reader_blocks: tuple[int, int] = (2, 2)
    reader_stem: Literal["patch", "conv"] = "patch"
    normed_summary: bool = False
    hidden_size: int = 256
    identity_size: int = 32
    num_traits: int = 0
    score_threshold: float = 0.35
    nms_iou: float = 0.55
    max_detections: int = 8

    def __post_init__(self) -> None:
        if self.image_size < 32 or self.image_size % 16:
            raise ConfigError(f"image_size={self.image_size} is not a multiple of 16 from 32", hint="use 128")
        if self.finder_size is not None and (
            self.finder_size < 32 or self.finder_size % 16 or self.image_size % self.finder_size
        ):
            raise ConfigError(
                f"finder_size={self.finder_size} is not a multiple of 16 that divides image_size={self.image_size}",
                hint="use half of image_size",
            )
        if self.crop_size < 16 or self.crop_size % 8:
            raise ConfigError(f"crop_size={self.crop_size} is not a multiple of 8 from 16", hint="use 48")
        for width in (*self.finder_widths, *self.reader_widths):
            if width < 8 or width % 8:
                raise ConfigError(f"width {width} is not a positive multiple of 8", hint="use 32, 64 or 96")
        if min(*self.finder_blocks, *self.reader_blocks, self.num_traits) < 0:
            raise ConfigError("block counts and num_traits cannot be negative", hint="use 0 or more")
        if not 0 < self.score_threshold < 1:
            raise ConfigError(f"score_threshold={self.score_threshold} is not between 0 and 1", hint="use 0.35")
        if self.max_detections < 1:
            raise ConfigError(f"max_detections={self.max_detections} is below 1", hint="use 8")

    @property
    def grid_size(self) -> int:
        """Cells S along the heatmap's side."""
        return (self.finder_size or self.image_size) // STRIDE

    @property
    def mask_size(self) -> int:
        """Side of the mask the reader draws, in pixels of its view."""
        return self.crop_size // 2


@dataclass(frozen=True, slots=True, eq=False)
class ReadCharacter:
    """One character as the detector saw it.

    Attributes:
        species, colour, accessory, expression, facing: keys of :mod:`.vocabulary`.
        box: ``(x0, y0, x1, y1)`` in [0, 1] of the picture.
        score: confidence that a character is there, in [0, 1].
        probabilities: for every attribute, float32 in the order of ``vocabulary.KEYS``.
        identity: float32 ``(D,)`` of unit length; the cosine of two says whether they show the same individual.
        mask: bool ``(H, W)`` of visible pixels, if asked for.
    """

    species: str
    colour: str
    accessory: str
    expression: str
    facing: str
    box: BoxTuple
    score: float
    probabilities: Mapping[str, np.ndarray]
    identity: np.ndarray
    mask: np.ndarray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One picture as the detector saw it: characters by falling score, background and style."""

    characters: tuple[ReadCharacter, ...]
    background: str
    style: str

    def to_scene(self) -> SceneGraph:
        """Return the scene graph of what was seen; identities are unknown (0), at most ``MAX_CHARACTERS`` are kept."""
        kept = self.characters[:MAX_CHARACTERS]
        return SceneGraph(
            background=self.background,
            style=self.style,
            characters=tuple(
                SceneCharacter(box=character.box, **{name: getattr(character, name) for name in CHARACTER_ATTRIBUTES})
                for character in kept
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: boxes and scores rounded, embeddings as lists, masks left out."""
        return {
            "background": self.background,
            "style": self.style,
            "characters": [
                {
                    **{name: getattr(character, name) for name in CHARACTER_ATTRIBUTES},
                    "box": [round(value, 4) for value in character.box],
                    "score": round(character.score, 4),
                    "species_probability": round(float(character.probabilities["species"].max()), 4),
                    "colour_probability": round(float(character.probabilities["colour"].max()), 4),
                    "identity": [round(float(value), 4) for value in character.identity],
                }
                for character in self.characters
            ],
        }


class Found(NamedTuple):
    """What the finder says about the canvas.

    Attributes:
        heat: ``(B, S, S)`` logits of "a character's centre is in this cell".
        boxes: ``(B, S, S, 4)`` the box each cell would propose, on the canvas.
        pictures: picture attribute -> logits ``(B, values)``.
    """

    heat: Tensor
    boxes: Tensor
    pictures: dict[str, Tensor]


class Read(NamedTuple):
    """What the reader says about N boxes.

    Attributes:
        characters: character attribute -> logits ``(N, values)``.
        correction: ``(N, 4)`` shift of the centre in box sizes, and logarithm of the growth in width and height.
        identity: ``(N, D)`` of unit length.
        traits: ``(N, num_traits)`` guesses of the individual's traits.
        masks: ``(N, M, M)`` logits over the view.
    """

    characters: dict[str, Tensor]
    correction: Tensor
    identity: Tensor
    traits: Tensor
    masks: Tensor


class Detector(PretrainedModel):
    """Finds and reads the characters of a picture.

    Args:
        config: sizes.
    """

    config_class: ClassVar[type[Config]] = DetectorConfig
    model_type: ClassVar[str] = "huaben-detector"
    config: DetectorConfig

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__(config)
        self.finder = Finder(config)
        self.reader = Reader(config)

    def find(self, canvas: Tensor) -> Found:
        """Look for characters on square canvases ``(B, 3, image_size, image_size)`` in [-1, 1]."""
        return self.finder(canvas)

    def read(self, canvas: Tensor, boxes: Tensor, index: Tensor) -> Read:
        """Read boxes ``(N, 4)`` of the canvases they lie on, ``index`` ``(N,)``."""
        views = crop(canvas, grow(boxes, self.config.crop_margin), index, self.config.crop_size)
        return self.reader(views, boxes)

    def forward(self, canvas: Tensor, boxes: Tensor, index: Tensor) -> tuple[Found, Read]:
        """Find on the canvases, and read the given boxes (in training: the true ones, jittered)."""
        return self.find(canvas), self.read(canvas, boxes, index)

    @torch.inference_mode()
    def detect(
        self, images: Tensor | np.ndarray | Sequence[np.ndarray], *, masks: bool = False, batch_size: int = 64
    ) -> list[Reading]:
        """Read pictures of any size.

        Args:
            images: float ``(B, 3, H, W)`` in [-1, 1], or uint8 ``(H, W, 3)`` pictures (a list of any sizes, a stack,
                or a single one).
            masks: also cut every character out.
            batch_size: pictures looked at together.

        Returns:
            One reading per picture.

        Raises:
            ShapeError: for anything else than pictures.
        """
        readings: list[Reading] = []
        pictures = as_pictures(images)
        for start in range(0, len(pictures), batch_size):
            readings += self._detect(pictures[start : start + batch_size], masks=masks)
        return readings

    def _detect(self, pictures: list[Tensor], *, masks: bool) -> list[Reading]:
        """Read one batch of ``(3, H, W)`` pictures."""
        config = self.config
        placed = [letterbox(picture.to(self.device, self.dtype), config.image_size) for picture in pictures]
        canvas = torch.stack([canvas for canvas, _ in placed])
        found = self.find(canvas)
        proposed, scores, index = pick_peaks(found, config)
        characters: list[list[ReadCharacter]] = [[] for _ in pictures]
        if len(index):
            read = self.read(canvas, proposed, index)
            boxes = apply_correction(proposed, read.correction)
            views = grow(proposed, config.crop_margin)
            labels = {name: logits.argmax(-1).tolist() for name, logits in read.characters.items()}
            likely = {name: read.characters[name].float().softmax(-1).cpu().numpy() for name in CHARACTER_ATTRIBUTES}
            identity = read.identity.float().cpu().numpy()
            for row in suppress(boxes, scores, index, config.nms_iou):
                picture = int(index[row])
                scale = placed[picture][1]
                x0, y0, x1, y1 = unletterbox(boxes[row], scale).clamp(0, 1).tolist()
                if x1 - x0 < 1e-3 or y1 - y0 < 1e-3:
                    continue
                size = pictures[picture].shape[-2:]
                mask = paste_mask(read.masks[row], unletterbox(views[row], scale), size) if masks else None
                characters[picture].append(
                    ReadCharacter(
                        **{name: KEYS[name][labels[name][row]] for name in CHARACTER_ATTRIBUTES},
                        box=(x0, y0, x1, y1),
                        score=float(scores[row]),
                        probabilities={name: values[row] for name, values in likely.items()},
                        identity=identity[row],
                        mask=mask,
                    )
                )
        scenes = {name: logits.argmax(-1).tolist() for name, logits in found.pictures.items()}
        return [
            Reading(
                characters=tuple(characters[i][: config.max_detections]),
                background=KEYS["background"][scenes["background"][i]],
                style=KEYS["style"][scenes["style"][i]],
            )
            for i in range(len(pictures))
        ]

    @torch.inference_mode()
    def embed(self, images: Tensor | np.ndarray | Sequence[np.ndarray], boxes: Sequence[object]) -> list[np.ndarray]:
        """Return the identity embeddings ``(n, D)`` of known boxes, picture by picture, without looking for them.

        Args:
            images: as for :meth:`detect`.
            boxes: for each picture, ``(n, 4)`` boxes in [0, 1].

        Raises:
            ShapeError: if there is not one list of boxes per picture.
        """
        pictures = as_pictures(images)
        if len(pictures) != len(boxes):
            raise ShapeError(f"{len(boxes)} lists of boxes for {len(pictures)} pictures", hint="one list per picture")
        result = []
        for picture, known in zip(pictures, boxes, strict=True):
            canvas, scale = letterbox(picture.to(self.device, self.dtype), self.config.image_size)
            table = torch.from_numpy(as_boxes(known)).to(canvas) * canvas.new_tensor([*scale, *scale])
            if not len(table):
                result.append(np.zeros((0, self.config.identity_size), dtype=np.float32))
                continue
            read = self.read(canvas[None], table, torch.zeros(len(table), dtype=torch.long, device=self.device))
            result.append(read.identity.float().cpu().numpy())
        return result


class Finder(nn.Module):
    """Looks at the whole picture: strides 4, 8 and 16, then back to 8 for boxes.

    Args:
        config: sizes.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        fine, middle, coarse = config.finder_widths
        self.grid_size = config.grid_size
        self.shrink = config.image_size // (config.finder_size or config.image_size)
        self.stem = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, fine, 3, padding=1))
        self.fine = _stage(fine, config.finder_blocks[0])
        self.to_middle = nn.Conv2d(fine, middle, 3, stride=2, padding=1)
        self.middle = _stage(middle, config.finder_blocks[1])
        self.to_coarse = nn.Conv2d(middle, coarse, 3, stride=2, padding=1)
        self.coarse = _stage(coarse, config.finder_blocks[2])
        self.back = nn.Conv2d(coarse, middle, 1)
        last = nn.Conv2d(middle, 5, 1)
        self.head = nn.Sequential(Residual(middle), _norm(middle), nn.ReLU(), last)
        self.pictures = nn.ModuleDict(
            {name: nn.Linear(2 * (fine + coarse), len(KEYS[name])) for name in PICTURE_ATTRIBUTES}
        )
        nn.init.normal_(last.weight, std=0.01)
        if last.bias is not None:
            with torch.no_grad():  # rare centres; a third of the canvas wide
                last.bias.copy_(torch.tensor([-3.0, 0.0, 0.0, -1.1, -1.1]))

    def forward(self, canvas: Tensor) -> Found:
        if self.shrink > 1:
            canvas = F.avg_pool2d(canvas, self.shrink)
        fine = self.fine(self.stem(canvas))
        middle = self.middle(self.to_middle(fine))
        coarse = self.coarse(self.to_coarse(middle))
        back = F.interpolate(self.back(coarse), scale_factor=2.0, mode="nearest")
        out = self.head(middle + back).float()
        # (B, 2 (fine + coarse)): means and maxima of textures and of the whole
        pooled = torch.cat([part for level in (fine, coarse) for part in (level.mean((2, 3)), level.amax((2, 3)))], 1)
        return Found(
            heat=out[:, 0],
            boxes=self.boxes(out[:, 1:]),
            pictures={name: head(pooled).float() for name, head in self.pictures.items()},
        )

    def boxes(self, raw: Tensor) -> Tensor:
        """Return ``(B, S, S, 4)`` boxes from centre shifts in cells and logarithms of width and height."""
        cells = torch.arange(self.grid_size, device=raw.device, dtype=raw.dtype) + 0.5
        x = (cells[None, None, :] + raw[:, 0]) / self.grid_size
        y = (cells[None, :, None] + raw[:, 1]) / self.grid_size
        half = raw[:, 2:4].clamp(-5.0, 0.5).exp() / 2
        return torch.stack([x - half[:, 0], y - half[:, 1], x + half[:, 0], y + half[:, 1]], -1)


class Reader(nn.Module):
    """Looks at one box at a canonical size.

    Args:
        config: sizes.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        fine, coarse = config.reader_widths
        hidden = config.hidden_size
        cells = config.crop_size // 8
        if config.reader_stem == "patch":
            stem = [nn.PixelUnshuffle(4), nn.Conv2d(48, fine, 3, padding=1)]
        else:
            stem = [nn.PixelUnshuffle(2), *_conv(12, 32), *_conv(32, 32), nn.Conv2d(32, fine, 3, stride=2, padding=1)]
        self.fine = nn.Sequential(*stem, _stage(fine, config.reader_blocks[0]))
        self.coarse = nn.Sequential(
            nn.Conv2d(fine, coarse, 3, stride=2, padding=1),
            _stage(coarse, config.reader_blocks[1]),
            _norm(coarse),
            nn.ReLU(),
        )
        summary = coarse // 2 * cells * cells + 2
        normed = config.normed_summary
        self.squeeze = nn.Sequential(
            nn.Conv2d(coarse, coarse // 2, 1), *([_norm(coarse // 2)] if normed else []), nn.ReLU(), nn.Flatten()
        )
        self.kind, self.who = (
            nn.Sequential(nn.Linear(summary, hidden), *([nn.BatchNorm1d(hidden)] if normed else []), nn.ReLU())
            for _ in range(2)
        )
        self.characters = nn.ModuleDict({name: nn.Linear(hidden, len(KEYS[name])) for name in CHARACTER_ATTRIBUTES})
        self.correction = nn.Linear(hidden, 4)
        self.identity = nn.Linear(hidden, config.identity_size)
        self.traits = nn.Linear(hidden, config.num_traits) if config.num_traits else None
        self.mask_fine = nn.Conv2d(fine, 16, 1)
        self.mask_coarse = nn.Conv2d(coarse, 16 * 4, 1)
        self.mask = nn.Sequential(nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 1))
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def forward(self, views: Tensor, boxes: Tensor) -> Read:
        fine = self.fine(views)
        coarse = self.coarse(fine)
        extent = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-3).log()  # lost by the canonical size
        summary = torch.cat([self.squeeze(coarse), extent.to(coarse.dtype)], 1)
        kind, who = self.kind(summary), self.who(summary)
        mask = self.mask(self.mask_fine(fine) + F.pixel_shuffle(self.mask_coarse(coarse), 2))
        return Read(
            characters={name: head(kind).float() for name, head in self.characters.items()},
            correction=0.1 * self.correction(kind).float(),  # corrections are small: so is their unit
            identity=F.normalize(self.identity(who).float(), dim=-1),
            traits=who.new_zeros(len(who), 0) if self.traits is None else self.traits(who).float(),
            masks=F.pixel_shuffle(mask, 2)[:, 0].float(),
        )


class Residual(nn.Module):
    """Two 3x3 convolutions, each behind a batch norm, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = _norm(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(h)))


def _norm(width: int) -> nn.BatchNorm2d:
    """Batch norm: at equal cost it learned species in about two thirds of the pictures that group norm needed."""
    return nn.BatchNorm2d(width)


def _conv(width: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(width, out, 3, padding=1, bias=False), _norm(out), nn.ReLU()]


def _stage(width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(Residual(width) for _ in range(blocks)))


def enlarged(detector: Detector, config: DetectorConfig) -> Detector:
    """Return a detector of another canvas, finder or view size with the weights of a trained one.

    The layers that see the whole view are stretched with it; everything else is convolutional and taken as it is.
    """
    grown = Detector(config)
    state = detector.state_dict()
    channels = config.reader_widths[1] // 2
    for name in ("reader.kind.0.weight", "reader.who.0.weight"):
        weight = state[name]
        cells, wanted = detector.config.crop_size // 8, config.crop_size // 8
        maps, rest = weight[:, : channels * cells * cells], weight[:, channels * cells * cells :]
        maps = F.interpolate(maps.view(-1, channels, cells, cells), wanted, mode="bilinear", align_corners=False)
        state[name] = torch.cat([maps.flatten(1) * (cells / wanted) ** 2, rest], 1)
    grown.load_state_dict(state)
    return grown


def as_pictures(images: Tensor | np.ndarray | Sequence[np.ndarray]) -> list[Tensor]:
    """Return float ``(3, H, W)`` pictures in [-1, 1].

    Raises:
        ShapeError: for anything but float ``(B, 3, H, W)`` tensors and uint8 ``(H, W, 3)`` arrays.
    """
    if isinstance(images, Tensor):
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ShapeError(
                f"pictures of shape {tuple(images.shape)} and type {images.dtype}, expected float (B, 3, H, W)",
                hint="values in [-1, 1]; pass uint8 (H, W, 3) pictures as numpy arrays",
            )
        return list(images)
    if isinstance(images, np.ndarray) and images.ndim == 3:
        images = [images]
    pictures = []
    for image in images:
        array = np.asarray(image)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
            raise ShapeError(
                f"picture of shape {array.shape} and type {array.dtype}, expected uint8 (H, W, 3)",
                hint="convert it to RGB first",
            )
        pictures.append(torch.from_numpy(np.array(array)).permute(2, 0, 1).float() / 127.5 - 1)
    return pictures


def letterbox(picture: Tensor, size: int) -> tuple[Tensor, tuple[float, float]]:
    """Fit a ``(3, H, W)`` picture into the top left of a square canvas.

    Returns:
        The canvas ``(3, size, size)``, empty parts 0, and the share of its width and height that the picture fills.
    """
    height, width = picture.shape[-2:]
    longest = max(height, width)
    inner = (max(1, round(height * size / longest)), max(1, round(width * size / longest)))
    if inner != (height, width):
        if longest > size:
            picture = F.interpolate(picture[None], inner, mode="area")[0]
        else:
            picture = F.interpolate(picture[None], inner, mode="bilinear", align_corners=False)[0]
    canvas = F.pad(picture, (0, size - inner[1], 0, size - inner[0]))
    return canvas, (inner[1] / size, inner[0] / size)


def unletterbox(boxes: Tensor, scale: tuple[float, float]) -> Tensor:
    """Map boxes ``(..., 4)`` on the canvas to the picture that fills ``scale`` of it; not clipped."""
    return boxes / boxes.new_tensor([*scale, *scale])


def grow(boxes: Tensor, margin: float) -> Tensor:
    """Return boxes ``(N, 4)`` grown by ``margin`` of their size on every side."""
    size = (boxes[:, 2:] - boxes[:, :2]) * margin
    return torch.cat([boxes[:, :2] - size, boxes[:, 2:] + size], 1)


def crop(images: Tensor, boxes: Tensor, index: Tensor, size: int) -> Tensor:
    """Cut boxes out of pictures and resize each to a square, anti-aliased; zero outside the picture.

    Args:
        images: float ``(B, C, H, W)``.
        boxes: ``(N, 4)`` in [0, 1]; may reach outside.
        index: ``(N,)`` which picture each box lies in.
        size: side of a view in pixels.

    Returns:
        ``(N, C, size, size)``.
    """
    if not len(boxes):
        return images.new_zeros(0, images.shape[1], size, size)
    fine = 2 * size
    steps = (torch.arange(fine, device=images.device, dtype=images.dtype) + 0.5) / fine
    boxes = boxes.to(images.dtype)
    x = boxes[:, 0:1] + steps * (boxes[:, 2:3] - boxes[:, 0:1])  # (N, fine)
    y = boxes[:, 1:2] + steps * (boxes[:, 3:4] - boxes[:, 1:2])
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), -1) * 2 - 1
    with torch.autocast(images.device.type, enabled=False):
        views = F.grid_sample(images[index], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return F.avg_pool2d(views, 2)


def apply_correction(boxes: Tensor, correction: Tensor) -> Tensor:
    """Move and stretch boxes ``(N, 4)`` by the reader's correction."""
    size = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + correction[:, :2].clamp(-0.5, 0.5) * size
    half = size * correction[:, 2:].clamp(-0.5, 0.5).exp() / 2
    return torch.cat([centre - half, centre + half], 1)


def correction_to(boxes: Tensor, true: Tensor) -> Tensor:
    """Return the correction that turns ``boxes`` into ``true`` (the inverse of :func:`apply_correction`)."""
    size, true_size = boxes[:, 2:] - boxes[:, :2], true[:, 2:] - true[:, :2]
    shift = (true[:, :2] + true[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / (2 * size)
    return torch.cat([shift, (true_size / size).log()], 1)


def pick_peaks(found: Found, config: DetectorConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes ``(N, 4)``, scores ``(N,)`` and picture numbers ``(N,)`` of the heatmap's local maxima."""
    heat = found.heat.float().sigmoid()
    highest = F.max_pool2d(heat[:, None], 3, stride=1, padding=1)[:, 0]
    scores = torch.where((heat == highest) & (heat >= config.score_threshold), heat, torch.zeros_like(heat)).flatten(1)
    best, cells = scores.topk(min(2 * config.max_detections, scores.shape[1]), dim=1)
    index, rank = (best > 0).nonzero(as_tuple=True)
    boxes = found.boxes.flatten(1, 2)[index, cells[index, rank]]
    return boxes, best[index, rank], index


def suppress(boxes: Tensor, scores: Tensor, index: Tensor, max_iou: float) -> list[int]:
    """Return the rows to keep, by picture and falling score: the stronger of two that overlap more than ``max_iou``."""
    table, strength, pictures = boxes.float().cpu().numpy(), scores.tolist(), index.tolist()
    kept: list[int] = []
    for row in sorted(range(len(pictures)), key=lambda i: (pictures[i], -strength[i], i)):
        rivals = [other for other in kept if pictures[other] == pictures[row]]
        if not rivals or pairwise_iou(table[[row]], table[rivals]).max() <= max_iou:
            kept.append(row)
    return kept


def paste_mask(logits: Tensor, view: Tensor, size: Sequence[int]) -> np.ndarray:
    """Draw a mask ``(M, M)`` seen through ``view`` (a box in [0, 1]) onto a picture of ``size`` (height, width)."""
    height, width = size
    x0, y0, x1, y1 = view.tolist()
    x = ((torch.arange(width) + 0.5) / width - x0) / max(x1 - x0, 1e-6) * 2 - 1
    y = ((torch.arange(height) + 0.5) / height - y0) / max(y1 - y0, 1e-6) * 2 - 1
    grid = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), -1)[None]
    drawn = F.grid_sample(logits.float().cpu().sigmoid()[None, None], grid, padding_mode="zeros", align_corners=False)
    return (drawn[0, 0] > 0.5).numpy()


PRESETS: dict[str, DetectorConfig] = {
    "embedded": DetectorConfig(image_size=256, finder_size=128, crop_size=64),
    "sharp": DetectorConfig(crop_size=64, reader_stem="conv", normed_summary=True),
    "tiny": DetectorConfig(
        image_size=64,
        finder_widths=(16, 24, 32),
        finder_blocks=(0, 1, 1),
        crop_size=24,
        reader_widths=(24, 32),
        reader_blocks=(1, 1),
        hidden_size=64,
        identity_size=32,
    ),
}
"""The shipped detector, one that looks closer at half the speed, and a small one for tests."""
