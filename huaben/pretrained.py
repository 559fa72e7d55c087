"""A saved model is a folder: ``config.json`` and ``model.safetensors``.

Loading is strict and safetensors-only: an unknown field, a missing or extra weight, a wrong shape or a truncated file
is an error that names it. Writing goes to a temporary name first and is renamed when complete.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from .config import Config
from .errors import CheckpointError, ConfigError
from .files import replacing

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
FORMAT_VERSION = 1


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path`` and rename it into place, so that a reader never sees half a file.

    Raises:
        CheckpointError: if the disk is full or the folder cannot be written.
    """
    path = Path(path)
    try:
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror}", hint="free some space or choose another folder"
        ) from error


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: if the file is absent, truncated, or not safetensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no weights file at {path}", hint="check the path")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file ({error})", hint="copy or download the file again"
        ) from error


def check_state(expected: dict[str, Tensor], found: dict[str, Tensor], where: str) -> None:
    """Compare names and shapes, both ways.

    Raises:
        CheckpointError: naming the missing, extra (with nearest match) or misshapen weights.
    """
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        parts = []
        if missing:
            parts.append(f"lacks {_some(missing)}")
        if extra:
            parts.append(f"has unknown {_some(extra)}")
        near = difflib.get_close_matches(extra[0], missing, n=1) if extra and missing else []
        hint = f"{extra[0]!r} may be {near[0]!r}" if near else "the file was saved by another model or version"
        raise CheckpointError(f"{where} {' and '.join(parts)}", hint=hint)
    for name, tensor in expected.items():
        if tensor.shape != found[name].shape:
            raise CheckpointError(
                f"{where}: {name} is {tuple(found[name].shape)}, the model expects {tuple(tensor.shape)}",
                hint="config.json and the weights belong to different models",
            )


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def read_config(folder: str | Path, model_type: str | None = None) -> dict[str, Any]:
    """Read ``config.json`` and check ``model_type``.

    Raises:
        CheckpointError: if the folder or file is absent, not JSON, or of another model.
    """
    path = Path(folder) / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"no {CONFIG_NAME} in {folder}", hint="point to a folder saved by save_pretrained")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, expected an object")
    found = values.pop("model_type", None)
    version = values.pop("format_version", FORMAT_VERSION)
    if model_type is not None and found != model_type:
        raise CheckpointError(f"{path} is a {found!r} model, expected {model_type!r}")
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path} has format_version {version}, this huaben reads {FORMAT_VERSION}")
    return values


class PretrainedModel(nn.Module):
    """A module built from one config, that saves to and loads from a folder.

    Subclasses set ``config_class`` and ``model_type``, take exactly ``config`` in their constructor, and keep derived
    tables in non-persistent buffers.
    """

    config_class: ClassVar[type[Config]]
    model_type: ClassVar[str]

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write config and weights; ``dtype`` converts floating-point weights on the way (16-bit for shipping)."""
        folder = Path(folder)
        state = {
            name: (tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor).contiguous().cpu()
            for name, tensor in self.state_dict().items()
        }
        values = {"model_type": self.model_type, "format_version": FORMAT_VERSION, **self.config.to_dict()}
        write_atomic(folder / WEIGHTS_NAME, save(state))
        text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        write_atomic(folder / CONFIG_NAME, text.encode())

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: torch.dtype | None = torch.float32, device: str | torch.device = "cpu"
    ) -> Self:
        """Load a saved folder, strictly, in eval mode.

        Args:
            folder: as written by :meth:`save_pretrained`.
            dtype: of floating-point weights; None keeps the stored one.
            device: where to put the model.

        Raises:
            CheckpointError: for anything but a complete, matching folder.
        """
        try:
            config = cls.config_class.from_dict(read_config(folder, cls.model_type))
        except ConfigError as error:
            raise CheckpointError(f"{Path(folder) / CONFIG_NAME}: {error.message}", hint=error.hint) from error
        state = read_weights(Path(folder) / WEIGHTS_NAME)
        stored = next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), None)
        # Not built on the meta device first: initialisers there import torch's compiler, which takes seconds.
        model = cls(config).to(dtype=dtype or stored)
        check_state(model.state_dict(), state, str(Path(folder) / WEIGHTS_NAME))
        model.load_state_dict(state)
        return model.to(device=device).eval()


def refuse_code(folder: Path) -> None:
    """Refuse a folder that names code of its own.

    Raises:
        CheckpointError: naming the file and what it would run.
    """
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue  # said by transformers, in the same error as other damage
        if isinstance(values, dict) and values.get("auto_map"):
            raise CheckpointError(
                f"{path} asks to run code of its own (auto_map: {values['auto_map']})",
                hint="code from model folders is never run; use a model that transformers itself knows",
            )
