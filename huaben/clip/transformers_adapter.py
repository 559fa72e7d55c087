"""transformers' CLIP, Chinese-CLIP and SigLIP behind the interface of :mod:`.dual_encoder`.

Pictures are prepared here and not by transformers' processors: those want torchvision for their fast path. The steps
and numbers are read from the model's own processor config, and resizing is Pillow's, as in the reference.

Legend: B batch, S image side, L text length, E width of the shared space.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image as PillowImage
from torch import Tensor

from ..config import Config
from ..errors import CheckpointError, ConfigError, ShapeError
from ..optional import require
from ..pretrained import refuse_code, write_atomic
from .dual_encoder import DualEncoder, check_texts, limited_scale
from .preprocess import check_image

MODEL_TYPES = ("clip", "chinese_clip", "siglip")
PROCESSOR_NAME = "preprocessor_config.json"
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_TOKEN_NAMES = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSteps(Config):
    """What happens to a picture, in this order; sizes are (height, width) in pixels.

    Attributes:
        shortest: the shorter side is resized to this and the shape kept; None for ``size``.
        size: what a picture is squeezed to; None with ``shortest``; both None for no resizing.
        crop: the middle that is kept, black where the picture is smaller; None for all of it.
        resample: Pillow's filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming.
        rescale: factor of the uint8 values.
        mean, std: taken off and divided by, per channel, after rescaling.
    """

    shortest: int | None = 224
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = (224, 224)
    resample: int = 3
    rescale: float = 1 / 255
    mean: tuple[float, float, float] = _CLIP_MEAN
    std: tuple[float, float, float] = _CLIP_STD

    def __post_init__(self) -> None:
        if self.shortest is not None and self.size is not None:
            raise ConfigError(f"shortest={self.shortest} and size={self.size}, expected one", hint="set one to None")
        sides = [side for side in (self.shortest, *(self.size or ()), *(self.crop or ())) if side is not None]
        if any(side < 1 for side in sides):
            raise ConfigError(f"found a side of {min(sides)} pixels, expected at least 1", hint="use 224")
        if self.resample not in range(6):
            raise ConfigError(f"resample={self.resample} is no filter of Pillow", hint="use 3, bicubic")
        if min(self.std) <= 0:
            raise ConfigError(f"std={self.std}, expected positive numbers", hint="use the processor's image_std")

    @classmethod
    def from_processor(cls, values: Mapping[str, Any], model_type: str) -> ImageSteps:
        """Read transformers' ``preprocessor_config.json``; what it leaves out has the defaults of ``model_type``.

        Raises:
            ConfigError: for a size or a step that is not read here.
        """
        siglip = model_type == "siglip"
        for step in ("do_pad", "do_thumbnail", "do_reduce_labels"):
            if values.get(step):
                raise ConfigError(f"{step} is on in {PROCESSOR_NAME}", hint="resize, crop, rescale, normalise are read")
        shortest, size, crop = None, None, None
        if _on(values, "do_resize", True):
            named = values.get("size", {"height": 224, "width": 224} if siglip else {"shortest_edge": 224})
            if isinstance(named, int) and not siglip:
                shortest = named
            elif isinstance(named, Mapping) and set(named) == {"shortest_edge"}:
                shortest = int(named["shortest_edge"])
            else:
                size = _height_width(named, "size")
        if _on(values, "do_center_crop", not siglip):
            crop = _height_width(values.get("crop_size", 224), "crop_size")
        normalised = _on(values, "do_normalize", True)
        mean, std = ((0.5,) * 3, (0.5,) * 3) if siglip else (_CLIP_MEAN, _CLIP_STD)
        return cls(
            shortest=shortest,
            size=size,
            crop=crop,
            resample=int(values.get("resample", 3)),
            rescale=float(values.get("rescale_factor", 1 / 255)) if _on(values, "do_rescale", True) else 1.0,
            mean=_triple(values.get("image_mean", mean)) if normalised else (0.0, 0.0, 0.0),
            std=_triple(values.get("image_std", std)) if normalised else (1.0, 1.0, 1.0),
        )

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Return float32 (B, 3, height, width).

        Raises:
            ShapeError: for an empty batch, something that is no picture, or pictures that end up of different sizes.
        """
        if len(images) == 0:
            raise ShapeError("found no picture, expected at least one", hint="pass a list of pictures")
        rows = []
        for image in images:
            check_image(image)
            rows.append(self._crop(self._resize(np.asarray(image))))
        if len({row.shape for row in rows}) > 1:
            raise ShapeError(
                f"pictures end up as {sorted({row.shape[:2] for row in rows})}, expected one size",
                hint="the model's processor neither crops nor squeezes: pass pictures of one size",
            )
        pixels = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float()  # (B, 3, height, width)
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (pixels * self.rescale - mean[:, None, None]) / std[:, None, None]

    def _resize(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = image.shape[:2]
        if self.shortest is not None:
            long = int(self.shortest * max(height, width) / min(height, width))
            wanted = (long, self.shortest) if width <= height else (self.shortest, long)
        elif self.size is not None:
            wanted = self.size
        else:
            return image
        if (height, width) == wanted:
            return image
        picture = PillowImage.fromarray(np.ascontiguousarray(image))
        return np.asarray(picture.resize((wanted[1], wanted[0]), PillowImage.Resampling(self.resample)))

    def _crop(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.crop is None:
            return image
        height, width = self.crop
        down, right = max(height - image.shape[0], 0), max(width - image.shape[1], 0)
        if down or right:
            before = (math.ceil(down / 2), math.ceil(right / 2))
            image = np.pad(image, ((before[0], down - before[0]), (before[1], right - before[1]), (0, 0)))
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        return image[top : top + height, left : left + width]


def _on(values: Mapping[str, Any], name: str, default: bool) -> bool:
    value = values.get(name)
    return default if value is None else bool(value)


def _height_width(value: Any, name: str) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if isinstance(value, Mapping) and set(value) == {"height", "width"}:
        return int(value["height"]), int(value["width"])
    raise ConfigError(
        f"{name}={value!r} in {PROCESSOR_NAME}, expected a height and a width", hint="write them as height and width"
    )


def _triple(value: Any) -> tuple[float, float, float]:
    numbers = (value,) * 3 if isinstance(value, (int, float)) else tuple(value)
    if len(numbers) != 3:
        raise ConfigError(f"found {numbers} for three channels in {PROCESSOR_NAME}", hint="give three numbers")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


class TransformersDualEncoder(DualEncoder):
    """A CLIPModel, ChineseCLIPModel or SiglipModel with its tokenizer and its picture steps.

    Args:
        model: transformers' model, with both towers.
        tokenizer: transformers' tokenizer.
        steps: what happens to pictures.
        processor: the processor's config as it was read, written back by :meth:`save`; None to write ``steps``.
        name: as :func:`.dual_encoder.load_dual_encoder` reads it.

    Raises:
        ConfigError: if the model is of another kind, or ``steps`` end in another size than it reads.

    Differs: SigLIP gets no attention mask, whatever its tokenizer offers: it was trained to read its padding.
    """

    def __init__(
        self, model: Any, tokenizer: Any, steps: ImageSteps, processor: Mapping[str, Any] | None = None, *, name: str
    ) -> None:
        super().__init__()
        self.model_type = str(model.config.model_type)
        if self.model_type not in MODEL_TYPES:
            raise ConfigError(f"a {self.model_type!r} model", hint=f"one of {', '.join(MODEL_TYPES)}")
        side = int(model.config.vision_config.image_size)
        wanted = steps.crop or steps.size
        if wanted is not None and wanted != (side, side):
            raise ConfigError(
                f"pictures are prepared as {wanted[0]} x {wanted[1]}, the model reads {side} x {side}",
                hint=f"take {PROCESSOR_NAME} and the weights from the same model",
            )
        limit = min(int(model.config.text_config.max_position_embeddings), int(tokenizer.model_max_length))
        self.model, self.tokenizer, self.steps, self.name = model, tokenizer, steps, name
        self.processor = dict(processor) if processor is not None else _as_processor(steps, self.model_type)
        self.text_length = limit

    def prepare_images(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        return self.steps(images)

    def prepare_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        check_texts(texts)
        siglip = self.model_type == "siglip"
        tokens = self.tokenizer(
            list(texts),
            padding="max_length" if siglip else "longest",
            truncation=True,
            max_length=self.text_length,
            return_tensors="pt",
        )
        names = _TOKEN_NAMES[:1] if siglip else _TOKEN_NAMES[:2] if self.model_type == "clip" else _TOKEN_NAMES
        return {name: tokens[name] for name in names if name in tokens}

    def encode_images(self, pixels: Tensor) -> Tensor:
        return _unit(self.model.get_image_features(pixel_values=pixels))

    def encode_texts(self, tokens: Mapping[str, Tensor]) -> Tensor:
        return _unit(self.model.get_text_features(**tokens))

    @property
    def logit_scale(self) -> Tensor:
        if self.model_type == "siglip":  # released weights stand above CLIP's limit of 100
            return self.model.logit_scale.float().exp().reshape(())
        return limited_scale(self.model.logit_scale)

    @property
    def logit_bias(self) -> Tensor | None:
        return self.model.logit_bias.float().reshape(()) if self.model_type == "siglip" else None

    def save(self, folder: str | Path) -> None:
        """Write a folder that transformers loads, too: model, tokenizer and processor config."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        text = json.dumps(self.processor, indent=2, sort_keys=True) + "\n"
        write_atomic(Path(folder) / PROCESSOR_NAME, text.encode())


def _unit(output: Any) -> Tensor:
    """Return unit rows in float32; transformers 5 wraps the projected vectors."""
    vectors: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return F.normalize(vectors.float(), dim=-1)


def _as_processor(steps: ImageSteps, model_type: str) -> dict[str, Any]:
    """Return transformers' form of ``steps``."""
    name = {"clip": "CLIP", "chinese_clip": "ChineseCLIP", "siglip": "Siglip"}[model_type]
    values: dict[str, Any] = {
        "image_processor_type": f"{name}ImageProcessor",
        "do_resize": steps.shortest is not None or steps.size is not None,
        "do_center_crop": steps.crop is not None,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": steps.resample,
        "rescale_factor": steps.rescale,
        "image_mean": list(steps.mean),
        "image_std": list(steps.std),
    }
    if steps.shortest is not None:
        values["size"] = {"shortest_edge": steps.shortest}
    elif steps.size is not None:
        values["size"] = {"height": steps.size[0], "width": steps.size[1]}
    if steps.crop is not None:
        values["crop_size"] = {"height": steps.crop[0], "width": steps.crop[1]}
    return values


def load_transformers(
    source: str | Path, device: str | torch.device = "cpu", *, download: bool = False, name: str | None = None
) -> TransformersDualEncoder:
    """Load a model of transformers as a dual encoder, in float32 and eval mode.

    Args:
        source: a folder, or a name of the Hugging Face hub.
        device: where to put it.
        download: allow the hub to be asked; otherwise only folders and earlier downloads are read.
        name: what the encoder calls itself; None for ``source``.

    Raises:
        CheckpointError: if something is absent, does not fit, or is not in safetensors.
        ConfigError: if it is no CLIP, Chinese-CLIP or SigLIP, or its pictures are prepared in a way not known here.
        MissingDependencyError: if transformers is not installed.
    """
    transformers: Any = require("transformers", extra="hf")
    where = str(source)
    advice = "check the folder" if Path(where).is_dir() else "check the name, and pass download=True to fetch it"
    options: dict[str, Any] = {"local_files_only": not download, "trust_remote_code": False}
    refuse_code(Path(where))
    try:
        config = transformers.AutoConfig.from_pretrained(where, **options)
        if config.model_type not in MODEL_TYPES:
            raise ConfigError(f"{where} is a {config.model_type!r} model", hint=f"one of {', '.join(MODEL_TYPES)}")
        values, _ = transformers.ImageProcessingMixin.get_image_processor_dict(where, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
        model, info = transformers.AutoModel.from_pretrained(
            where,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # named below, in one error with what is missing
            **options,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"cannot load {where} with transformers: {line}", hint=advice) from error
    absent = sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])
    if absent:
        raise CheckpointError(
            f"{where} lacks {len(absent)} weights of its model or has them in other shapes: {', '.join(absent[:5])}",
            hint="copy or download the folder again",
        )
    steps = ImageSteps.from_processor(values, config.model_type)
    encoder = TransformersDualEncoder(model, tokenizer, steps, values, name=name or where)
    return encoder.to(device).eval()
