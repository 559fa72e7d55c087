"""One small interface for every dual encoder: our own CLIP, transformers' CLIP and SigLIP, open_clip's models.

Mining, training and judging see only this: pictures and texts are prepared on the CPU, encoded to unit vectors of one
space, and compared by dot products times a logit scale (plus a bias for SigLIP).

Legend: B batch, N all rows, L text length, E width of the shared space.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError, DataError
from ..language.tokenizer import Tokenizer
from ..pretrained import CONFIG_NAME
from .model import MAX_LOGIT_SCALE, Clip
from .preprocess import preprocess

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).resolve().parents[1] / "weights" / "clip"
OPEN_CLIP_CONFIG_NAME = "open_clip_config.json"

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class DualOutput:
    """What one forward pass gives a loss.

    Attributes:
        image_features, text_features: float32 (B, E), of length 1.
        logit_scale: scalar that multiplies the cosines, with gradient.
        logit_bias: scalar added to them; None unless the model was trained with SigLIP's loss.
    """

    image_features: Tensor
    text_features: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None = None


class DualEncoder(nn.Module, abc.ABC):
    """An image tower and a text tower that share a space.

    ``prepare_*`` are plain functions of their input, safe in data-loading processes; what they return has one row per
    input in every tensor, so that batches are cut by row. ``encode_*`` expect it on the encoder's device.
    """

    name: str
    """Where it came from, as :func:`load_dual_encoder` reads it."""

    @abc.abstractmethod
    def prepare_images(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Return pixels (B, 3, S, S) on the CPU.

        Args:
            images: uint8 (height, width, 3) each; sizes may differ.

        Raises:
            ShapeError: for an empty batch or anything that is not such a picture.
        """

    @abc.abstractmethod
    def prepare_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return named tensors (B, L) on the CPU; longer texts lose their end.

        Raises:
            DataError: for an empty batch, or something that is not text.
        """

    @abc.abstractmethod
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return the pictures' unit vectors, float32 (B, E)."""

    @abc.abstractmethod
    def encode_texts(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Return the texts' unit vectors, float32 (B, E)."""

    @property
    @abc.abstractmethod
    def logit_scale(self) -> Tensor:
        """The inverse temperature: a scalar, with gradient."""

    @property
    def logit_bias(self) -> Tensor | None:
        """SigLIP's bias: a scalar, with gradient; None for models trained with a softmax."""
        return None

    @abc.abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write everything :func:`load_dual_encoder` needs to load it again from ``folder``."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, pixels: Tensor, tokens: Mapping[str, Tensor]) -> DualOutput:
        """Encode one batch of pairs; both towers run, so that wrappers for many processes see every parameter."""
        return DualOutput(self.encode_images(pixels), self.encode_texts(tokens), self.logit_scale, self.logit_bias)


class HuabenDualEncoder(DualEncoder):
    """Our own CLIP with its tokenizer."""

    def __init__(self, clip: Clip, tokenizer: Tokenizer, *, name: str = EMBEDDED) -> None:
        super().__init__()
        if tokenizer.vocab_size > clip.config.vocab_size:
            raise CheckpointError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the text tower {clip.config.vocab_size}",
                hint="load both from the folder they were saved to together",
            )
        self.clip, self.tokenizer, self.name = clip, tokenizer, name

    def prepare_images(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        return preprocess(images, self.clip.config.image_size)

    def prepare_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        check_texts(texts)
        ids, mask = self.tokenizer.encode(texts, self.clip.config.text_length)
        longest = int(mask.sum(1).max())  # padding costs time and changes nothing
        return {"ids": ids[:, :longest], "mask": mask[:, :longest]}

    def encode_images(self, pixels: Tensor) -> Tensor:
        return self.clip.image_features(pixels)

    def encode_texts(self, tokens: Mapping[str, Tensor]) -> Tensor:
        return self.clip.text_features(tokens["ids"], tokens["mask"])

    @property
    def logit_scale(self) -> Tensor:
        return self.clip.logit_scale

    def save(self, folder: str | Path) -> None:
        self.clip.save_pretrained(folder)
        self.tokenizer.save(folder)


def load_dual_encoder(source: str | Path, device: str | torch.device = "cpu", *, download: bool = False) -> DualEncoder:
    """Load a dual encoder in eval mode.

    Args:
        source: ``"embedded"``; a folder written by :meth:`DualEncoder.save`, or any folder that transformers
            (CLIP, SigLIP) or open_clip wrote; ``"hf:OWNER/NAME"`` for a model of the Hugging Face hub;
            ``"open_clip:MODEL"`` or ``"open_clip:MODEL/PRETRAINED"`` for open_clip's names (a pretrained name may be
            a weights file, and MODEL its own ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER``).
        device: where to put it.
        download: allow the hub to be asked; otherwise ``hf:`` reads only what was downloaded before. open_clip
            downloads on its own whenever a pretrained name is given.

    Raises:
        CheckpointError: if the folder holds no such model.
        ConfigError: if ``source`` is none of these.
        MissingDependencyError: if the model's package is not installed.
    """
    # The adapters build on this file, so they are imported when one is asked for.
    text = str(source)
    if text.startswith("open_clip:"):
        from .open_clip_adapter import load_open_clip

        return load_open_clip(text.removeprefix("open_clip:"), device)
    if text.startswith("hf:"):
        from .transformers_adapter import load_transformers

        return load_transformers(text.removeprefix("hf:"), device, download=download, name=text)
    folder = EMBEDDED_FOLDER if text == EMBEDDED else Path(source)
    if not folder.is_dir():
        raise ConfigError(
            f"{text!r} is no folder", hint=f"use {EMBEDDED!r}, a model's folder, hf:OWNER/NAME or open_clip:MODEL"
        )
    if (folder / OPEN_CLIP_CONFIG_NAME).is_file():
        from .open_clip_adapter import load_open_clip

        return load_open_clip(f"local-dir:{folder}", device, name=text)
    if _is_ours(folder):
        clip = Clip.from_pretrained(folder, device=device)
        return HuabenDualEncoder(clip, Tokenizer.from_pretrained(folder), name=text).eval()
    from .transformers_adapter import load_transformers

    return load_transformers(folder, device, name=text)


def _is_ours(folder: Path) -> bool:
    """Return whether a folder was written by huaben; transformers' CLIP has the same ``model_type``."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"no {CONFIG_NAME} in {folder}", hint="point to a folder with a saved dual encoder")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}", hint="copy or download it again") from error
    return isinstance(values, dict) and "format_version" in values


def encode_all_images(
    encoder: DualEncoder, images: Iterable[NDArray[np.uint8]], batch: int = 64
) -> NDArray[np.float32]:
    """Return the unit vectors of all pictures, float32 (N, E), without gradients and in eval mode.

    Args:
        encoder: left in the mode it was in.
        images: uint8 (height, width, 3) each; read ``batch`` at a time.
        batch: pictures encoded together; changes speed and memory, and results only by rounding.

    Raises:
        DataError: if there are none.
        ShapeError: for anything that is not a picture.
    """
    with judging(encoder), torch.inference_mode():
        parts = [
            encoder.encode_images(encoder.prepare_images(part).to(encoder.device)).float().cpu().numpy()
            for part in _batches(images, batch)
        ]
    return _joined(parts, "picture")


def encode_all_texts(encoder: DualEncoder, texts: Iterable[str], batch: int = 256) -> NDArray[np.float32]:
    """Return the unit vectors of all texts, float32 (N, E); otherwise as :func:`encode_all_images`."""
    if isinstance(texts, str):
        raise DataError("found one string, expected a list of texts", hint="write [text]")
    parts: list[NDArray[np.float32]] = []
    with judging(encoder), torch.inference_mode():
        for part in _batches(texts, batch):
            tokens = {name: rows.to(encoder.device) for name, rows in encoder.prepare_texts(part).items()}
            parts.append(encoder.encode_texts(tokens).float().cpu().numpy())
    return _joined(parts, "text")


@contextmanager
def judging(encoder: nn.Module) -> Iterator[None]:
    """Put every part of ``encoder`` into eval mode, and back into its own afterwards."""
    before = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def limited_scale(log_scale: Tensor, limit: float = MAX_LOGIT_SCALE) -> Tensor:
    """Return ``exp(log_scale)``, at most ``limit``, as a scalar.

    The gradient passes where the limit holds, too: released CLIP weights sit on it, and must be able to come down.
    """
    scale = log_scale.float().exp().reshape(())
    return scale + (scale.clamp(max=limit) - scale).detach()


def check_texts(texts: Sequence[str]) -> None:
    """Check a batch of texts.

    Raises:
        DataError: unless it is a list of at least one string.
    """
    if isinstance(texts, str):
        raise DataError("found one string, expected a list of texts", hint="write [text]")
    if len(texts) == 0:
        raise DataError("found no text, expected at least one", hint="pass a list of texts")
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"found a {type(text).__name__}, expected text", hint="pass strings")


def _batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    if size < 1:
        raise ConfigError(f"batch={size}, expected at least 1", hint="use 64")
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part


def _joined(parts: list[NDArray[np.float32]], what: str) -> NDArray[np.float32]:
    if not parts:
        raise DataError(f"found no {what}, expected at least one", hint="check the data set and its split")
    return np.concatenate(parts)
