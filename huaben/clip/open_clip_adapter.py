"""open_clip's models behind the interface of :mod:`.dual_encoder`.

open_clip stays optional: it imports torchvision, and one built for another torch breaks everything that looks for it.
Written against open_clip 3.3: ``create_model_and_transforms``, ``get_tokenizer``, ``get_model_config``, and models with
``encode_image``, ``encode_text``, ``logit_scale`` and, for SigLIP, ``logit_bias``.

Legend: B batch, L text length, E width of the shared space.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image as PillowImage
from safetensors.torch import save
from torch import Tensor

from ..errors import CheckpointError, ConfigError, MissingDependencyError, ShapeError
from ..optional import require
from ..pretrained import write_atomic
from .dual_encoder import OPEN_CLIP_CONFIG_NAME, DualEncoder, check_texts, limited_scale
from .preprocess import check_image

WEIGHTS_NAME = "open_clip_model.safetensors"
TOKENIZER_KEY = "huaben_tokenizer"
"""In a saved config: the name to ask ``get_tokenizer`` for, where the folder alone would give another tokenizer."""
_SCHEMAS = ("hf-hub:", "local-dir:")


class OpenClipDualEncoder(DualEncoder):
    """A model of open_clip with its evaluation transform and tokenizer.

    Args:
        model: as ``open_clip.create_model_and_transforms`` returns it.
        transform: its evaluation transform: a Pillow picture to (3, S, S).
        tokenizer: as ``open_clip.get_tokenizer`` returns it: texts to ids (B, L).
        model_config: the architecture as ``open_clip.get_model_config`` returns it, for :meth:`save`.
        tokenizer_name: what ``open_clip.get_tokenizer`` was asked for.
        name: as :func:`.dual_encoder.load_dual_encoder` reads it.
    """

    def __init__(
        self,
        model: Any,
        transform: Callable[[Any], Tensor],
        tokenizer: Callable[[list[str]], Tensor],
        *,
        model_config: Mapping[str, Any],
        tokenizer_name: str,
        name: str,
    ) -> None:
        super().__init__()
        self.model, self.transform, self.tokenizer, self.name = model, transform, tokenizer, name
        self.model_config, self.tokenizer_name = dict(model_config), tokenizer_name

    def prepare_images(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        if len(images) == 0:
            raise ShapeError("found no picture, expected at least one", hint="pass a list of pictures")
        for image in images:
            check_image(image)
        return torch.stack([self.transform(PillowImage.fromarray(np.ascontiguousarray(image))) for image in images])

    def prepare_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        check_texts(texts)
        return {"ids": self.tokenizer(list(texts))}  # full length: SigLIP reads its padding

    def encode_images(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.model.encode_image(pixels).float(), dim=-1)

    def encode_texts(self, tokens: Mapping[str, Tensor]) -> Tensor:
        return F.normalize(self.model.encode_text(tokens["ids"]).float(), dim=-1)

    @property
    def logit_scale(self) -> Tensor:
        if self.logit_bias is not None:  # released SigLIP weights stand above CLIP's limit of 100
            return self.model.logit_scale.float().exp().reshape(())
        return limited_scale(self.model.logit_scale)

    @property
    def logit_bias(self) -> Tensor | None:
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else bias.float().reshape(())

    def save(self, folder: str | Path) -> None:
        """Write a folder that open_clip loads as ``local-dir:FOLDER``, and so does ``load_dual_encoder``."""
        folder = Path(folder)
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.model.state_dict().items()}
        steps = getattr(self.model.visual, "preprocess_cfg", None) or {
            "mean": self.model.visual.image_mean,
            "std": self.model.visual.image_std,
        }
        values: dict[str, Any] = {"model_cfg": self.model_config, "preprocess_cfg": dict(steps)}
        if self.model_config.get("text_cfg", {}).get("hf_tokenizer_name"):
            # open_clip reads this tokenizer from the folder itself.
            self.tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
        elif "siglip" in self.tokenizer_name.lower() and not self.tokenizer_name.startswith(_SCHEMAS):
            values[TOKENIZER_KEY] = self.tokenizer_name  # chosen by the model's name, which the folder does not keep
        write_atomic(folder / WEIGHTS_NAME, save(state))
        write_atomic(folder / OPEN_CLIP_CONFIG_NAME, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())


def load_open_clip(source: str, device: str | torch.device = "cpu", *, name: str | None = None) -> OpenClipDualEncoder:
    """Load one of open_clip's models, in float32 and eval mode.

    Args:
        source: ``MODEL/PRETRAINED``, the second a tag or a weights file; ``MODEL`` alone for fresh random weights;
            ``hf-hub:OWNER/NAME``; or ``local-dir:FOLDER``.
        device: where to put it.
        name: what the encoder calls itself; None for ``open_clip:`` and ``source``.

    Raises:
        CheckpointError: if open_clip does not know it or cannot load it.
        ConfigError: if ``source`` names no model.
        MissingDependencyError: if open_clip is not installed or does not load.
    """
    open_clip = require_open_clip()
    model_name, pretrained = _split(source)
    try:
        model_config = open_clip.get_model_config(model_name)
        if model_config is None:
            raise CheckpointError(f"open_clip has no model {model_name!r}", hint="see open_clip.list_models()")
        model, _, transform = open_clip.create_model_and_transforms(
            model_name,
            pretrained=pretrained,
            require_pretrained=pretrained is not None or model_name.startswith(_SCHEMAS),
        )
        tokenizer_name = _tokenizer_name(model_name)
        tokenizer = open_clip.get_tokenizer(tokenizer_name)
    except (OSError, RuntimeError, ValueError, KeyError, AssertionError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"open_clip cannot load {source!r}: {line}", hint="see open_clip.list_pretrained() for names"
        ) from error
    encoder = OpenClipDualEncoder(
        model,
        transform,
        tokenizer,
        model_config=model_config,
        tokenizer_name=tokenizer_name,
        name=name or f"open_clip:{source}",
    )
    return encoder.to(device).eval()


def require_open_clip() -> Any:
    """Import open_clip.

    Raises:
        MissingDependencyError: if it is absent, or does not load (mostly for want of a fitting torchvision).
    """
    try:
        return require("open_clip", extra="clip")
    except MissingDependencyError as error:
        raise MissingDependencyError(
            error.message, hint="pip install open_clip_torch and the torchvision built for your torch"
        ) from error


def _split(source: str) -> tuple[str, str | None]:
    """Return the model and the pretrained weights, None for those that the model's name already implies."""
    if source.startswith(_SCHEMAS):
        model, pretrained = source, None
    else:
        model, _, weights = source.partition("/")
        pretrained = weights or None
    if not model.removeprefix("hf-hub:").removeprefix("local-dir:"):
        raise ConfigError(f"open_clip:{source} names no model", hint="write open_clip:ViT-B-32/laion2b_s34b_b79k")
    return model, pretrained


def _tokenizer_name(model_name: str) -> str:
    """Return the name of the model's tokenizer: its own, unless a folder saved here says otherwise."""
    if not model_name.startswith("local-dir:"):
        return model_name
    path = Path(model_name.removeprefix("local-dir:")) / OPEN_CLIP_CONFIG_NAME
    values = json.loads(path.read_text(encoding="utf-8"))
    return str(values.get(TOKENIZER_KEY, model_name))
