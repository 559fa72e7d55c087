"""Tiny models, random inputs and diffusers' peer for the tests of the diffusion transformer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from huaben.diffusion.convert import config_to_diffusers, from_layout
from huaben.diffusion.dit import PRESETS, HunyuanDiT, HunyuanDiTConfig

TINY = PRESETS["tiny"]


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Fill every weight with noise: parts that start at zero hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=0.1, generator=generator)
            if "norm" in name and name.endswith("weight") and weight.dim() == 1:
                weight.add_(1.0)


def tiny_model(seed: int = 0, **changes: Any) -> HunyuanDiT:
    model = HunyuanDiT(TINY.replace(**changes)).eval()
    randomise(model, seed)
    return model


def make_inputs(
    config: HunyuanDiTConfig, *, batch: int = 2, grid: tuple[int, int] = (4, 4), seed: int = 0
) -> dict[str, Tensor]:
    """Return the positional arguments of ``forward`` by name."""
    g = torch.Generator().manual_seed(seed)
    h, w = grid[0] * config.patch_size, grid[1] * config.patch_size
    return {
        "latents": torch.randn(batch, config.in_channels, h, w, generator=g),
        "timesteps": torch.rand(batch, generator=g) * 999,
        "clip_states": torch.randn(batch, config.clip_len, config.clip_dim, generator=g),
        "clip_mask": torch.rand(batch, config.clip_len, generator=g) > 0.3,
        "t5_states": torch.randn(batch, config.t5_len, config.t5_dim, generator=g),
        "t5_mask": torch.rand(batch, config.t5_len, generator=g) > 0.3,
    }


def text_of(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in inputs.items() if name not in ("latents", "timesteps")}


def make_sizes(batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(64, 2048, (batch, 6), generator=g).float()
    return {"image_meta_size": sizes, "style": torch.zeros(batch, dtype=torch.long)}


def diffusers_peer(config: HunyuanDiTConfig, seed: int = 0) -> nn.Module:
    """Return diffusers' model of the same shape, with random weights."""
    diffusers = pytest.importorskip("diffusers")
    fields = {name: value for name, value in config_to_diffusers(config, sample_size=8).items() if name[0] != "_"}
    peer = diffusers.HunyuanDiT2DModel(**fields).eval()
    randomise(peer, seed)
    return peer


def twin_of(peer: nn.Module, config: HunyuanDiTConfig) -> HunyuanDiT:
    """Return our model with the peer's weights."""
    model = HunyuanDiT(config).eval()
    model.load_state_dict(from_layout(dict(peer.state_dict()), config, "diffusers"))
    return model


def run_peer(
    peer: nn.Module, inputs: dict[str, Tensor], rope: tuple[Tensor, Tensor], sizes: dict[str, Tensor] | None = None
) -> Tensor:
    """Run diffusers' model on the inputs of ours."""
    sizes = sizes or {}
    with torch.no_grad():
        return peer(
            inputs["latents"],
            inputs["timesteps"],
            encoder_hidden_states=inputs["clip_states"],
            text_embedding_mask=inputs["clip_mask"],
            encoder_hidden_states_t5=inputs["t5_states"],
            text_embedding_mask_t5=inputs["t5_mask"],
            image_meta_size=sizes.get("image_meta_size"),
            style=sizes.get("style"),
            image_rotary_emb=rope,
            return_dict=False,
        )[0]


def max_abs(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
