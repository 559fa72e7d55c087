"""Prompt to picture: the embedded painter, which keeps the contract of :mod:`huaben.painting`.

:class:`EmbeddedPainter` joins the text encoders, the diffusion transformer and the autoencoder of a pipeline folder.

Shapes: B batch, S text tokens, C h w latent.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..config import Config
from ..errors import CheckpointError, ConfigError, DeviceMemoryError
from ..notices import Notice, notice
from ..painting import (
    CROP_MARGIN,
    Image,
    LatentGuidance,
    OnStep,
    PaintCharacter,
    PainterLimits,
    Painting,
    PaintRequest,
    Progress,
    ShouldCancel,
)
from ..rng import torch_stream
from .latent_guidance import hold_to, set_in, token_mask

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..clip.model import Clip
    from ..language.encoder import TextEncoder
    from ..language.tokenizer import Tokenizer
    from .autoencoder import Autoencoder
    from .dit import TextState
    from .grounding import GroundedDiT, Grounding
    from .samplers import Sampler
    from .schedule import ScheduleConfig

EMBEDDED_LIMITS = PainterLimits(
    size=(256, 256),
    steps=20,
    guidance_scale=3.0,
    min_side=64,
    max_side=512,
    multiple=16,
    max_steps=200,
    max_characters=6,
    boxes=True,
    references=True,
    negative=True,
    previews=True,
    guidance=True,
    sketch=True,
)
"""What the painter of the package paints: sides from 64 to 512 pixels, up to four characters in their boxes."""


def _turned(character: PaintCharacter) -> Image | None:
    """Return a character's reference, mirrored if the character turns round."""
    pixels = character.reference
    if pixels is not None and {character.facing, character.reference_facing} == {"left", "right"}:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    return pixels


def compose_canvas(size: tuple[int, int], crops: Sequence[Image | None], boxes: Sequence[Sequence[float]]) -> Image:
    """Paste each crop into its box on a grey canvas, later ones over earlier ones.

    Args:
        size: (height, width) of the picture.
        crops: uint8 (h, w, 3) with a margin of :data:`CROP_MARGIN` around the character; None pastes nothing.
        boxes: x0, y0, x1, y1 in [0, 1] that the characters, without the margin, are to fill.

    Returns:
        uint8 (height, width, 3).
    """
    from PIL import Image as PillowImage

    height, width = size
    canvas = PillowImage.new("RGB", (width, height), (128, 128, 128))
    for crop, box in zip(crops, boxes, strict=True):
        if crop is None:
            continue
        x0, y0, x1, y1 = box[0] * width, box[1] * height, box[2] * width, box[3] * height
        pad = CROP_MARGIN * max(x1 - x0, y1 - y0)
        left, top = round(x0 - pad), round(y0 - pad)
        shape = max(1, round(x1 + pad) - left), max(1, round(y1 + pad) - top)
        canvas.paste(
            PillowImage.fromarray(crop).resize(shape, PillowImage.Resampling.BICUBIC, reducing_gap=2.0), (left, top)
        )
    return np.asarray(canvas)


def blended(image: Image, guidance: LatentGuidance) -> Image:
    """Return the picture with the sketch's pixels inside its masks, half of each along their rim."""
    inside = np.any(guidance.masks, axis=0)
    padded = np.pad(inside, 1, mode="edge").astype(np.float32)
    height, width = inside.shape
    share = sum(padded[y : y + height, x : x + width] for y in range(3) for x in range(3)) / 9.0
    alpha = (inside * share)[..., None]
    return np.round(image + alpha * (guidance.canvas.astype(np.float32) - image)).astype(np.uint8)


# ------------------------------------------------------------------------------------------------ the embedded painter

INDEX_NAME = "model_index.json"
PARTS = ("text", "clip", "autoencoder", "painter")
"""Sub-folders of a pipeline; the tokenizer lies in ``text``, and in ``clip`` if that has its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineConfig(Config):
    """What a pipeline's parts do not say themselves.

    Attributes:
        sampler: name of :data:`~huaben.diffusion.samplers.SAMPLERS`.
        previews: pictures of what is expected that are shown while sampling.
        slots: places for characters the painter was trained with; fewer are filled up with nobody.
    """

    sampler: str = "dpmpp_2m"
    previews: int = 5
    slots: int = 4


class EmbeddedPainter:
    """Hunyuan-DiT with boxes and references, its two text encoders and its autoencoder.

    What does not change during sampling is computed once per picture: both texts, the characters, and every step's
    modulation. Noise is drawn on the CPU from the request's seed alone.

    Args:
        painter, autoencoder, clip, text: the models, in eval mode on one device.
        tokenizer: of ``text``.
        clip_tokenizer: of ``clip``; the same one by default.
        schedule: the noise schedule of the painter's weights.
        config: further settings.
        fingerprint: names the weights in reports.
    """

    limits = EMBEDDED_LIMITS

    def __init__(
        self,
        *,
        painter: GroundedDiT,
        autoencoder: Autoencoder,
        clip: Clip,
        text: TextEncoder,
        tokenizer: Tokenizer,
        clip_tokenizer: Tokenizer | None = None,
        schedule: ScheduleConfig | None = None,
        config: PipelineConfig | None = None,
        fingerprint: str = "",
    ) -> None:
        from .schedule import PRESETS, NoiseSchedule

        self.painter, self.autoencoder, self.clip, self.text = painter, autoencoder, clip, text
        self.tokenizer, self.clip_tokenizer = tokenizer, clip_tokenizer or tokenizer
        self.schedule = NoiseSchedule(schedule or PRESETS["embedded"])
        self.config = config or PipelineConfig()
        self.fingerprint = fingerprint
        self._check_parts()

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: str | torch.device = "cpu") -> Self:
        """Load a pipeline folder.

        Raises:
            CheckpointError: naming the part that is missing, damaged or does not fit the others.
        """
        folder = Path(folder)
        missing = [name for name in PARTS if not (folder / name).is_dir()]
        if missing:
            raise CheckpointError(
                f"{folder} is not a complete pipeline: it lacks {', '.join(missing)}",
                hint=f"a pipeline has the folders {', '.join(PARTS)}; train them with huaben train",
            )
        from ..clip.model import Clip
        from ..language.encoder import TextEncoder
        from ..language.tokenizer import TOKENIZER_NAME, Tokenizer
        from .autoencoder import Autoencoder
        from .grounding import GroundedDiT

        values = _read_index(folder)
        has_own = (folder / "clip" / TOKENIZER_NAME).is_file()
        return cls(
            painter=GroundedDiT.from_pretrained(folder / "painter", device=device),
            autoencoder=Autoencoder.from_pretrained(folder / "autoencoder", device=device),
            clip=Clip.from_pretrained(folder / "clip", device=device),
            text=TextEncoder.from_pretrained(folder / "text", device=device),
            tokenizer=Tokenizer.from_pretrained(folder / "text"),
            clip_tokenizer=Tokenizer.from_pretrained(folder / "clip") if has_own else None,
            schedule=_read_schedule(folder, values),
            config=PipelineConfig.from_dict(values.get("pipeline", {})),
            fingerprint=weights_fingerprint(folder),
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the whole pipeline."""
        from ..pretrained import write_atomic

        folder = Path(folder)
        for name in PARTS:
            getattr(self, name).save_pretrained(folder / name)
        self.tokenizer.save(folder / "text")
        if self.clip_tokenizer is not self.tokenizer:
            self.clip_tokenizer.save(folder / "clip")
        values = {
            "format_version": 1,
            "parts": list(PARTS),
            "pipeline": self.config.to_dict(),
            "schedule": self.schedule.config.to_dict(),
        }
        write_atomic(folder / INDEX_NAME, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.painter.device

    def paint(
        self, request: PaintRequest, *, on_step: OnStep | None = None, should_cancel: ShouldCancel | None = None
    ) -> Painting:
        """Return the picture; see :class:`~huaben.painting.Painter`.

        Raises:
            Cancelled: if ``should_cancel`` said so.
            ConfigError: for a size, steps or more characters than the painter knows.
            DeviceMemoryError: if the device has not enough memory.
            GenerationError: if the result is not finite.
        """
        import torch

        self.limits.check(request.size, request.steps)
        started = time.perf_counter()
        try:
            with torch.inference_mode():
                image, warnings = self._paint(request, on_step, should_cancel)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"not enough memory on {self.device} for a picture of {request.size[0]}x{request.size[1]}",
                hint="use a smaller size, or the CPU",
            ) from error
        seconds = time.perf_counter() - started
        return Painting(
            image=image, seed=request.seed, seconds=seconds, model=self.fingerprint, warnings=tuple(warnings)
        )

    def _paint(
        self, request: PaintRequest, on_step: OnStep | None, should_cancel: ShouldCancel | None
    ) -> tuple[Image, list[Notice]]:
        """Texts and characters to a text state, noise to latents, latents to pixels."""
        from .samplers import draw_noise, guided_batch, make_sampler, noise_streams, sample
        from .schedule import split_variance

        shape = self._latent_shape(request.size)
        free = request.guidance_scale == 1.0
        state, warnings = self._conditions(request, shape, free)
        sampler = make_sampler(self.config.sampler, self.schedule, request.steps)
        table = self.painter.dit.plan(sampler.timesteps.float(), state)

        def denoise(latents: Tensor, i: int) -> Tensor:
            """Predict with and without the prompt at once."""
            batch = latents if free else latents.repeat(2, 1, 1, 1)
            output, _ = split_variance(self.painter.dit.step(batch, i, state, table), shape[0])
            return output if free else guided_batch(output, request.guidance_scale)

        generators = noise_streams([request.seed])
        noise = draw_noise((1, *shape), generators, device=self.device)
        inject = self._inject(request, sampler, denoise, shape)
        latents = sample(
            denoise,
            noise,
            sampler,
            generator=generators,
            on_step=None if on_step is None else functools.partial(self._report, on_step),
            should_cancel=should_cancel,
            inject=inject,
        )
        guidance = request.guidance
        if guidance is not None and guidance.way == "set_in" and guidance.fraction >= 1.0:
            return blended(self._decode(latents), guidance), warnings
        if inject is not None:
            latents = inject(latents, len(sampler))
        return self._decode(latents), warnings

    def _conditions(
        self, request: PaintRequest, shape: tuple[int, int, int], free: bool
    ) -> tuple[TextState, list[Notice]]:
        """Encode the prompt (after the negative one, unless sampling is free) with its characters."""
        warnings: list[Notice] = []
        if free and request.negative:
            warnings.append(notice("negative_ignored"))
        prompts = [request.prompt] if free else [request.negative, request.prompt]
        dit = self.painter.config.dit
        clip_tokens = self.clip_tokenizer.encode(prompts, dit.clip_len)
        text_tokens = self.tokenizer.encode(prompts, dit.t5_len)
        if clip_tokens.truncated[-1] and text_tokens.truncated[-1]:
            warnings.append(notice("prompt_cut"))
        clip_ids, clip_mask = (part.to(self.device) for part in clip_tokens)
        text_ids, text_mask = (part.to(self.device) for part in text_tokens)
        state = self.painter.encode_text(
            self.clip.text_states(clip_ids, clip_mask),
            clip_mask,
            self.text(text_ids, text_mask),
            text_mask,
            grounding=self._grounding(self._grounded(request), request.size, free),
            grid=(shape[1] // dit.patch_size, shape[2] // dit.patch_size),
        )
        return state, warnings

    def _grounded(self, request: PaintRequest) -> tuple[PaintCharacter, ...]:
        """Return the characters the painter itself places: the nearest ones where a sketch sets everybody in anyway."""
        most = self.painter.config.grounding.max_characters
        set_in = request.guidance is not None and request.guidance.way == "set_in"
        return request.characters[-most:] if set_in else request.characters

    def _grounding(self, characters: Sequence[PaintCharacter], size: tuple[int, int], free: bool) -> Grounding:
        """Return the characters as tensors, after an empty picture's unless sampling is free."""
        import torch

        from .grounding import Grounding, nobody

        config = self.painter.config.grounding
        if len(characters) > config.max_characters:
            raise ConfigError(
                f"{len(characters)} characters, this painter places at most {config.max_characters}",
                hint="describe the others in the prompt",
            )
        slots = min(max(self.config.slots, len(characters), 1), config.max_characters)
        step = self.autoencoder.factor * self.painter.config.dit.patch_size
        grid = (size[0] // step, size[1] // step)
        empty = nobody(1, config, self.painter.config.dit, slots, grid=grid).to(self.device)
        placed = [character for character in characters if character.box is not None]
        full = Grounding(*(getattr(empty, name).clone() for name in Grounding.__slots__))
        if placed:
            count = len(placed)
            full.phrases[0, :count] = self._phrases([character.phrase for character in placed])
            full.boxes[0, :count] = torch.tensor([character.box for character in placed])
            full.present[0, :count] = True
            full.has_phrase[0, :count] = True
            crops = [_turned(character) for character in placed]
            for index, crop in enumerate(crops):
                if crop is not None:
                    full.references[0, index] = self._reference(crop)
                    full.has_reference[0, index] = True
            if any(crop is not None for crop in crops):
                boxes = [character.box for character in placed if character.box is not None]
                full.canvas[0] = self.autoencoder.encode_latents(self._tensor(compose_canvas(size, crops, boxes)))[0]
        if free:
            return full
        return Grounding(*(torch.cat([getattr(empty, name), getattr(full, name)]) for name in Grounding.__slots__))

    def _phrases(self, phrases: Sequence[str]) -> Tensor:
        """Return pooled phrase embeddings (K, P)."""
        ids, mask = (
            part.to(self.device) for part in self.tokenizer.encode(list(phrases), self.painter.config.dit.t5_len)
        )
        return self.text.pool(self.text(ids, mask), mask)

    def _reference(self, pixels: Image) -> Tensor:
        """Return a reference's scaled latents (C, r, r)."""
        side = self.painter.config.grounding.reference_size * self.autoencoder.factor
        return self.autoencoder.encode_latents(self._tensor(resized(pixels, (side, side))))[0]

    def _inject(
        self,
        request: PaintRequest,
        sampler: Sampler,
        denoise: Callable[[Tensor, int], Tensor],
        shape: tuple[int, int, int],
    ) -> Callable[[Tensor, int], Tensor] | None:
        """Return the guidance by a sketch, if the request has one."""
        import torch

        guidance = request.guidance
        if guidance is None or guidance.fraction <= 0 or not guidance.masks.any():
            return None
        if guidance.way == "set_in" and guidance.fraction >= 1.0:
            return None  # after the last step nothing follows that could blend them better than pixels
        if guidance.way == "set_in":
            pixels, inside = guidance.canvas, np.any(guidance.masks, axis=0)[..., None]

            def compose(clean: Tensor) -> Tensor:
                """Decode, set the characters in, encode."""
                picture = np.where(inside, pixels, self._decode(clean))
                return self.autoencoder.encode_latents(self._tensor(picture))

            return set_in(sampler, denoise, compose, fraction=guidance.fraction)
        patch = self.painter.config.dit.patch_size
        cells, _ = token_mask(guidance.masks, (shape[1] // patch, shape[2] // patch))
        mask = torch.from_numpy(cells.repeat(patch, 0).repeat(patch, 1)).to(self.device)
        sketch = self.autoencoder.encode_latents(self._tensor(guidance.canvas))
        generator = torch_stream(request.seed, "guidance")
        noise = torch.randn(sketch.shape, generator=generator).to(self.device)
        return hold_to(sampler, sketch, noise, mask, fraction=guidance.fraction, weight=guidance.weight)

    def _report(self, on_step: OnStep, i: int, steps: int, predicted: Callable[[], Tensor]) -> None:
        """Tell the caller about one step, with a preview every few."""
        every = max(1, -(-steps // max(1, self.config.previews)))
        shown = self.config.previews > 0 and (i + 1) % every == 0
        draw = functools.cache(lambda: self._decode(predicted())) if shown else None
        on_step(Progress(step=i + 1, steps=steps, draw=draw))

    def _latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Return (C, h, w) of a picture's latents."""
        factor, dit = self.autoencoder.factor, self.painter.config.dit
        step = factor * dit.patch_size
        if size[0] % step or size[1] % step:
            raise ConfigError(
                f"size {size[0]}x{size[1]} is not in multiples of {step}, which this painter needs",
                hint=f"use {max(step, round(size[0] / step) * step)}x{max(step, round(size[1] / step) * step)}",
            )
        return dit.in_channels, size[0] // factor, size[1] // factor

    def _tensor(self, image: Image) -> Tensor:
        """Return a picture as (1, 3, H, W) in [-1, 1]."""
        import torch

        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        return pixels.to(self.device, torch.float32) / 127.5 - 1.0

    def _decode(self, latents: Tensor) -> Image:
        """Return the picture of scaled latents (1, C, h, w)."""
        pixels = self.autoencoder.decode(latents)[0].float().clamp(-1, 1)
        return ((pixels + 1.0) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy().copy()

    def _check_parts(self) -> None:
        """Raise CheckpointError unless the models' widths and lengths fit each other."""
        dit, grounding = self.painter.config.dit, self.painter.config.grounding
        facts = {
            "clip text width": (self.clip.config.text_hidden_size, dit.clip_dim),
            "text encoder width": (self.text.config.hidden_size, dit.t5_dim),
            "phrase width": (self.text.config.hidden_size, grounding.phrase_dim),
            "latent channels": (self.autoencoder.config.latent_channels, dit.in_channels),
        }
        for name, (found, expected) in facts.items():
            if found != expected:
                raise CheckpointError(
                    f"{name} is {found}, the painter expects {expected}", hint="these parts are of different pipelines"
                )
        if self.clip.config.text_length < dit.clip_len:
            raise CheckpointError(
                f"clip reads {self.clip.config.text_length} tokens, the painter expects {dit.clip_len}",
                hint="these parts are of different pipelines",
            )


def resized(image: Image, size: tuple[int, int]) -> Image:
    """Return a picture scaled to (height, width)."""
    from PIL import Image as PillowImage

    if image.shape[:2] == size:
        return image
    picture = PillowImage.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((size[1], size[0]), PillowImage.Resampling.BICUBIC))


def weights_fingerprint(folder: str | Path) -> str:
    """Return ten characters that change with any of a pipeline's weights."""
    digest = hashlib.sha256()
    for name in PARTS:
        for path in sorted((Path(folder) / name).glob("*.safetensors")):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:10]


def _read_index(folder: Path) -> dict[str, Any]:
    """Return ``model_index.json``; empty if there is none."""
    path = folder / INDEX_NAME
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}", hint="copy or download it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, expected an object")
    return values


def _read_schedule(folder: Path, index: dict[str, Any]) -> ScheduleConfig:
    """Return the noise schedule: from the index, from ``painter/schedule.json``, else that of the embedded painter."""
    from .schedule import PRESETS, ScheduleConfig

    path = folder / "painter" / "schedule.json"
    try:
        if "schedule" in index:
            return ScheduleConfig.from_dict(index["schedule"])
        return ScheduleConfig.load(path) if path.is_file() else PRESETS["embedded"]
    except ConfigError as error:
        raise CheckpointError(f"the noise schedule of {folder} cannot be used: {error.message}") from error
