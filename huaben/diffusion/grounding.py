"""Where each character goes and what it looks like: box tokens and reference tokens for Hunyuan-DiT.

A character of a picture comes with a phrase, a box, and perhaps a reference: latents of a crop from an earlier page. All
of it is computed once per prompt and enters the transformer at two places:

- *Context tokens*, appended to the text in every cross-attention: one box token per character, placed at the centre of
  its box, and the reference cut into patches, each placed where it will lie when the reference is mapped linearly onto
  the box. Image queries are rotated by their own position, so a query and the reference patch that belongs under it
  meet at the same rotary position.
- *A token offset*, added to the image tokens after patch embedding: for every token inside a box, what the character
  shows at that relative place (phrase, relative position, the reference's latents resampled into the box), and latents
  of a *canvas* on which the references were pasted into their boxes as pixels. Latents do not survive scaling; pixels do,
  so the canvas shows each reference at the size and on the grid of the picture to come.

A character without box, phrase or reference uses learned vectors instead, and one that is not there leaves its slots to a
learned "nobody": like the text, these are attended to and never masked. Without any grounding the model is plain text to
image.

Source: grounding tokens as in GLIGEN (arXiv:2301.07093); reference tokens at target positions as in ContextGen; TheaterGen
(arXiv:2404.18919) section 3, whose composed canvas this is.
Differs: all three add these to other networks; here they join Hunyuan-DiT's cross-attention, whose keys can be cached, and
the canvas is a learned condition of every step instead of replacing latents in some.

Letters: B batch, K characters, N = h w image tokens, R = r r reference patches, D width, P phrase width, C latent channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.rope import point_positions
from ..config import Config
from ..errors import ConfigError, ShapeError
from ..pretrained import PretrainedModel
from .blocks import patchify
from .dit import PRESETS as DIT_PRESETS
from .dit import HunyuanDiT, HunyuanDiTConfig, TextState

BOX_FREQUENCIES = 6
PLACE_FREQUENCIES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class GroundingConfig(Config):
    """Sizes of the grounding.

    Attributes:
        phrase_dim: of a pooled phrase embedding.
        max_characters: K; more are an error.
        reference_size: side of a reference in latent cells.
        hidden_dim: of the per-token features.
    """

    phrase_dim: int = 128
    max_characters: int = 4
    reference_size: int = 8
    hidden_dim: int = 256

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for name in ("phrase_dim", "max_characters", "reference_size", "hidden_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}, expected at least 1")


@dataclass(frozen=True, eq=False, slots=True)
class Grounding:
    """The characters of a batch of pictures.

    Attributes:
        phrases: (B, K, P) pooled phrase embeddings.
        boxes: (B, K, 4) as x0, y0, x1, y1 in [0, 1].
        references: (B, K, C, r, r) scaled latents of the crops.
        canvas: (B, C, H, W) scaled latents of the canvas that the crops are pasted on (:func:`.pipeline.compose_canvas`); used
            inside the boxes of characters that have a reference.
        present: (B, K) bool; an absent character's other values are ignored.
        has_phrase, has_reference: (B, K) bool.
    """

    phrases: Tensor
    boxes: Tensor
    references: Tensor
    canvas: Tensor
    present: Tensor
    has_phrase: Tensor
    has_reference: Tensor

    def to(self, device: torch.device | str) -> Grounding:
        """Return the same on another device."""
        return Grounding(*(getattr(self, name).to(device) for name in self.__slots__))


@dataclass(frozen=True, eq=False, slots=True)
class GroundingState:
    """What a grounding contributes to a prompt.

    Attributes:
        context: (B, K + K R, width of the text).
        positions: (B, K + K R, 2) rotary (y, x).
        token_offset: (B, N, D).
        grid: (h, w) that positions and offset belong to.
    """

    context: Tensor
    positions: Tensor
    token_offset: Tensor
    grid: tuple[int, int]


def fourier(values: Tensor, frequencies: int) -> Tensor:
    """Return (..., n * 2 * frequencies) sines and cosines of values in about [0, 1], octave by octave."""
    scales = math.pi * 2.0 ** torch.arange(frequencies, dtype=values.dtype, device=values.device)
    angles = (values[..., None] * scales).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def box_coverage(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return (B, K, N): the share of each token's cell that lies inside each box."""
    height, width = grid

    def axis(low: Tensor, high: Tensor, count: int) -> Tensor:
        edges = torch.arange(count + 1, dtype=boxes.dtype, device=boxes.device) / count
        inside = torch.minimum(edges[1:], high[..., None]) - torch.maximum(edges[:-1], low[..., None])
        return (inside * count).clamp(0, 1)

    columns, rows = axis(boxes[..., 0], boxes[..., 2], width), axis(boxes[..., 1], boxes[..., 3], height)
    return (rows[..., :, None] * columns[..., None, :]).flatten(-2)


def cell_centres(grid: tuple[int, int], like: Tensor) -> Tensor:
    """Return (N, 2): x, y of each token's centre in [0, 1], rows first."""
    height, width = grid
    y = (torch.arange(height, dtype=like.dtype, device=like.device) + 0.5) / height
    x = (torch.arange(width, dtype=like.dtype, device=like.device) + 0.5) / width
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flip(-1).reshape(-1, 2)


class Grounder(nn.Module):
    """Phrases, boxes and references to context tokens and a token offset."""

    def __init__(self, config: GroundingConfig, dit: HunyuanDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.dit_config = dit
        text, hidden, width = dit.clip_dim, config.hidden_dim, dit.hidden_size
        patch = dit.in_channels * dit.patch_size**2
        box = 4 * 2 * BOX_FREQUENCIES
        self.no_phrase = nn.Parameter(torch.randn(config.phrase_dim) * 0.5)
        self.nobody = nn.Parameter(torch.randn(text))
        self.no_reference = nn.Parameter(torch.randn(text))
        # What a character is: phrase and box, as one vector that both ways in start from.
        self.describe = nn.Sequential(nn.Linear(config.phrase_dim + box, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.box_token = nn.Linear(hidden, text)
        self.reference_patch = nn.Linear(patch, text)
        self.reference_place = nn.Parameter(torch.randn((config.reference_size // dit.patch_size) ** 2, text) * 0.5)
        self.reference_owner = nn.Linear(hidden, text)
        # What it shows at a place inside its box.
        self.at_place = nn.Linear(2 * 2 * PLACE_FREQUENCIES + 2, hidden)
        self.from_reference = nn.Linear(patch, hidden)
        self.reference_flag = nn.Parameter(torch.zeros(hidden))
        self.from_canvas = nn.Linear(patch, width)
        self.show = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.offset = nn.Linear(hidden, width)
        for linear in (self.offset, self.from_canvas):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, grounding: Grounding, grid: tuple[int, int]) -> GroundingState:
        """Return the context tokens, their places, and the token offset for a grid of (h, w) tokens.

        Raises:
            ShapeError: if a tensor does not fit the config.
        """
        self._check(grounding, grid)
        present, has_reference = grounding.present, grounding.has_reference & grounding.present
        boxes = grounding.boxes
        phrases = torch.where((grounding.has_phrase & present)[..., None], grounding.phrases, self.no_phrase)
        who = self.describe(torch.cat([phrases, fourier(boxes, BOX_FREQUENCIES).to(phrases.dtype)], dim=-1))
        context, positions = self._context(grounding, who, present, has_reference, grid)
        return GroundingState(context, positions, self._offset(grounding, who, present, has_reference, grid), grid)

    def _context(
        self, grounding: Grounding, who: Tensor, present: Tensor, has_reference: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        batch, count = present.shape
        boxes, base = grounding.boxes, self.dit_config.rope_base
        box_tokens = torch.where(present[..., None], self.box_token(who), self.nobody)
        patches = patchify(grounding.references.flatten(0, 1), self.dit_config.patch_size)  # (B K, R, patch)
        tokens = self.reference_patch(patches).unflatten(0, (batch, count)) + self.reference_place
        tokens = tokens + self.reference_owner(who)[:, :, None]
        tokens = torch.where(has_reference[..., None, None], tokens, self.no_reference)
        side = self.config.reference_size // self.dit_config.patch_size
        inside = cell_centres((side, side), boxes)  # (R, 2) in the reference, x then y
        low, size = boxes[..., None, :2], (boxes[..., 2:] - boxes[..., :2])[..., None, :]
        points = torch.cat([low + 0.5 * size, low + inside * size], dim=-2)  # (B, K, 1 + R, 2): centre first
        places = point_positions(points.flip(-1), *grid, base=base)
        context = torch.cat([box_tokens, tokens.flatten(1, 2)], dim=1)
        return context, torch.cat([places[:, :, 0], places[:, :, 1:].flatten(1, 2)], dim=1)

    def _offset(
        self, grounding: Grounding, who: Tensor, present: Tensor, has_reference: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        boxes = grounding.boxes
        size = (boxes[..., 2:] - boxes[..., :2]).clamp_min(1e-3)
        inside = (cell_centres(grid, boxes) - boxes[..., None, :2]) / size[..., None, :]  # (B, K, N, 2)
        cell = torch.stack([1 / (grid[1] * size[..., 0]), 1 / (grid[0] * size[..., 1])], dim=-1)
        place = torch.cat(
            [fourier(inside.clamp(-1, 2) * 0.5, PLACE_FREQUENCIES), cell[..., None, :].expand_as(inside)], -1
        )
        shown = who[..., None, :] + self.at_place(place.to(who.dtype))
        under = self._resample(grounding.references, boxes, grid)  # (B, K, N, patch)
        seen = self.from_reference(under) + self.reference_flag
        shown = shown + torch.where(has_reference[..., None, None], seen, torch.zeros_like(seen))
        cover = box_coverage(boxes, grid)
        mixed = torch.einsum("bkn,bknd->bnd", (cover * present[..., None]).to(shown.dtype), self.show(shown))
        pasted = (cover * has_reference[..., None]).amax(1)[..., None]
        canvas = self.from_canvas(patchify(grounding.canvas, self.dit_config.patch_size))
        return self.offset(mixed) + pasted.to(canvas.dtype) * canvas

    def _resample(self, references: Tensor, boxes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return (B, K, N, patch): the reference as it lies in the picture when it fills the box; zeros outside."""
        batch, count = boxes.shape[:2]
        p = self.dit_config.patch_size
        fine = (grid[0] * p, grid[1] * p)
        points = cell_centres(fine, boxes)
        inside = (points - boxes[..., None, :2]) / (boxes[..., 2:] - boxes[..., :2]).clamp_min(1e-3)[..., None, :]
        places = (inside * 2 - 1).reshape(batch * count, *fine, 2)
        with torch.autocast(boxes.device.type, enabled=False):
            canvas = F.grid_sample(
                references.flatten(0, 1).float(), places.float(), padding_mode="zeros", align_corners=False
            )
        return patchify(canvas, p).unflatten(0, (batch, count))

    def _check(self, grounding: Grounding, grid: tuple[int, int]) -> None:
        c, d = self.config, self.dit_config
        batch, count = grounding.present.shape if grounding.present.ndim == 2 else (0, 0)
        if not 1 <= count <= c.max_characters:
            raise ShapeError(
                f"grounding is for {count} characters, expected 1 to {c.max_characters}",
                hint="describe further characters in the background",
            )
        expected = {
            "phrases": (batch, count, c.phrase_dim),
            "boxes": (batch, count, 4),
            "references": (batch, count, d.in_channels, c.reference_size, c.reference_size),
            "canvas": (batch, d.in_channels, grid[0] * d.patch_size, grid[1] * d.patch_size),
            "has_phrase": (batch, count),
            "has_reference": (batch, count),
        }
        for name, shape in expected.items():
            found = tuple(getattr(grounding, name).shape)
            if found != shape:
                raise ShapeError(f"grounding.{name} is {found}, expected {shape}")


def nobody(
    batch: int, config: GroundingConfig, dit: HunyuanDiTConfig, count: int = 1, *, grid: tuple[int, int]
) -> Grounding:
    """Return the grounding of pictures of (h, w) tokens about which nothing is known."""
    no = torch.zeros(batch, count, dtype=torch.bool)
    boxes = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(batch, count, 4)
    side = config.reference_size
    p = dit.patch_size
    return Grounding(
        phrases=torch.zeros(batch, count, config.phrase_dim),
        boxes=boxes,
        references=torch.zeros(batch, count, dit.in_channels, side, side),
        canvas=torch.zeros(batch, dit.in_channels, grid[0] * p, grid[1] * p),
        present=no,
        has_phrase=no,
        has_reference=no,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class GroundedDiTConfig(Config):
    """A Hunyuan-DiT and its grounding."""

    dit: HunyuanDiTConfig
    grounding: GroundingConfig

    def __post_init__(self) -> None:
        """Refuse a reference that is not whole patches."""
        if self.grounding.reference_size % self.dit.patch_size:
            raise ConfigError(
                f"reference_size={self.grounding.reference_size} is not a multiple of patch_size={self.dit.patch_size}"
            )


class GroundedDiT(PretrainedModel):
    """Hunyuan-DiT with characters that have a place and a face."""

    config_class: ClassVar[type[Config]] = GroundedDiTConfig
    model_type: ClassVar[str] = "grounded_dit"
    config: GroundedDiTConfig

    def __init__(self, config: GroundedDiTConfig) -> None:
        super().__init__(config)
        self.dit = HunyuanDiT(config.dit)
        self.grounder = Grounder(config.grounding, config.dit)

    def forward(self, latents: Tensor, timesteps: Tensor, *text: Tensor, grounding: Grounding, **extras: Any) -> Tensor:
        """Return (B, out_channels, h, w); ``text`` as for :meth:`HunyuanDiT.forward`."""
        state = self.grounder(grounding, self.token_grid(latents))
        return self.dit(
            latents,
            timesteps,
            *text,
            context=state.context,
            context_positions=state.positions,
            token_offset=state.token_offset,
            **extras,
        )

    def encode_text(self, *text: Tensor, grounding: Grounding, grid: tuple[int, int], **extras: Any) -> TextState:
        """Return :meth:`HunyuanDiT.encode_text` of prompt and grounding together, for a grid of (h, w) tokens."""
        state = self.grounder(grounding, grid)
        return self.dit.encode_text(
            *text,
            context=state.context,
            context_positions=state.positions,
            token_offset=state.token_offset,
            grid=grid,
            **extras,
        )

    def token_grid(self, latents: Tensor) -> tuple[int, int]:
        """Return (h, w) in tokens of latents (B, C, H, W)."""
        p = self.config.dit.patch_size
        return latents.shape[-2] // p, latents.shape[-1] // p


PRESETS: dict[str, GroundedDiTConfig] = {
    "embedded": GroundedDiTConfig(dit=DIT_PRESETS["embedded"], grounding=GroundingConfig()),
    "tiny": GroundedDiTConfig(
        dit=HunyuanDiTConfig(
            num_heads=2,
            head_dim=16,
            num_layers=4,
            in_channels=4,
            learn_sigma=False,
            clip_dim=16,
            clip_len=6,
            t5_dim=16,
            t5_len=8,
            pooled_dim=16,
            pooler_heads=2,
        ),
        grounding=GroundingConfig(phrase_dim=16, hidden_dim=32, reference_size=4),
    ),
}
