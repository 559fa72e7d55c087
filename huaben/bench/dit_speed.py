"""Sampling speed of our Hunyuan-DiT beside diffusers' on the same weights, side by side in one process.

Both run the whole of a guided sampling: text features in, latents out. Ours computes the text state and the shift table
first and then takes steps; diffusers' model gets the same tensors in every step. Features are random, with as many real
tokens as a sentence has; the text encoders are no part of it.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.rope import Rope, rotary_table
from ..diffusion.convert import config_to_diffusers, to_layout
from ..diffusion.dit import HunyuanDiT, HunyuanDiTConfig
from ..errors import ConfigError
from ..optional import require
from ..rng import torch_stream

GUIDANCE_SCALE = 5.0
Predict = Callable[[Tensor, int], Tensor]


def run(
    *,
    steps: int = 25,
    grids: Sequence[tuple[int, int]] = ((8, 8), (16, 16)),
    num_heads: int = 6,
    head_dim: int = 64,
    num_layers: int = 12,
    clip_tokens: int = 24,
    t5_tokens: int = 32,
    rounds: int = 3,
    threads: int | None = None,
    seed: int = 0,
    reference: bool = True,
) -> dict[str, Any]:
    """Measure on the CPU in fp32; text widths and lengths are those of the released models.

    Args:
        steps: of the sampling; with guidance each runs a batch of two.
        grids: token grids, ``(h, w)`` each.
        num_heads, head_dim, num_layers: of the model.
        clip_tokens, t5_tokens: real tokens of the prompt; the negative prompt has two of each.
        rounds: samplings of either side, taken in turns after one warm-up step.
        threads: of torch; None leaves them.
        seed: of weights, features and noise.
        reference: also run diffusers' model; without it there is no ratio.

    Returns:
        Settings and, per grid: the seconds of each round of either side, the ratio of their medians (diffusers over
        ours), of every round, the seconds before our first step, and the largest difference of the final latents.

    Raises:
        MissingDependencyError: if diffusers is wanted and absent.
    """
    if steps < 1 or rounds < 1:
        raise ConfigError(f"steps={steps} and rounds={rounds}, expected both at least 1", hint="use 25 and 3")
    config = HunyuanDiTConfig(num_heads=num_heads, head_dim=head_dim, num_layers=num_layers)
    model = _random_model(config, seed)
    peer = _diffusers_peer(model) if reference else None
    text = _text_features(config, clip_tokens, t5_tokens, seed)
    with _torch_threads(threads) as used:
        cases = [_measure(model, peer, text, grid, steps, rounds, seed) for grid in grids]
    return {
        "steps": steps,
        "rounds": rounds,
        "threads": used,
        "dtype": "float32",
        "batch": 2,
        "guidance_scale": GUIDANCE_SCALE,
        "parameters": model.num_parameters(),
        "model": config.to_dict(),
        "real_tokens": {"prompt": [clip_tokens, t5_tokens], "negative": [2, 2]},
        "cases": cases,
    }


def _measure(
    model: HunyuanDiT,
    peer: nn.Module | None,
    text: dict[str, Tensor],
    grid: tuple[int, int],
    steps: int,
    rounds: int,
    seed: int,
) -> dict[str, Any]:
    """Sample in turns with both models."""
    h, w = grid
    rope = rotary_table(h, w, model.config.head_dim, base=model.config.rope_base)
    noise = torch.randn(1, model.config.in_channels, 2 * h, 2 * w, generator=torch_stream(seed, "noise"))
    timesteps = torch.linspace(999, 999 / steps, steps).round()
    seconds: dict[str, list[float]] = {"huaben": [], "diffusers": []}
    first_step: list[float] = []
    results: dict[str, Tensor] = {}
    with torch.inference_mode():
        for timed in [False] + [True] * rounds:
            planned = timesteps if timed else timesteps[:1]
            start = time.perf_counter()
            predict = _our_predict(model, text, planned, rope)
            ready = time.perf_counter()
            results["huaben"] = _sample(predict, noise, planned)
            if timed:
                seconds["huaben"].append(time.perf_counter() - start)
                first_step.append(ready - start)
            if peer is not None:
                start = time.perf_counter()
                results["diffusers"] = _sample(_peer_predict(peer, text, planned, rope), noise, planned)
                if timed:
                    seconds["diffusers"].append(time.perf_counter() - start)
    case: dict[str, Any] = {
        "grid": [h, w],
        "tokens": h * w,
        "huaben_s": seconds["huaben"],
        "before_first_step_s": statistics.median(first_step),
    }
    if peer is not None:
        difference = (results["huaben"] - results["diffusers"]).abs().max()
        case |= {
            "diffusers_s": seconds["diffusers"],
            "ratio": statistics.median(seconds["diffusers"]) / statistics.median(seconds["huaben"]),
            "ratios": [theirs / ours for theirs, ours in zip(seconds["diffusers"], seconds["huaben"], strict=True)],
            "max_difference": float(difference),
            "max_latent": float(results["diffusers"].abs().max()),
        }
    return case


def _our_predict(model: HunyuanDiT, text: dict[str, Tensor], timesteps: Tensor, rope: Rope) -> Predict:
    state = model.encode_text(text["clip_states"], text["clip_mask"], text["t5_states"], text["t5_mask"])
    table = model.plan(timesteps, state)
    return lambda latents, i: model.step(latents, i, state, table, rope=rope)


def _peer_predict(peer: nn.Module, text: dict[str, Tensor], timesteps: Tensor, rope: Rope) -> Predict:
    def predict(latents: Tensor, i: int) -> Tensor:
        return peer(
            latents,
            timesteps[i].expand(len(latents)),
            encoder_hidden_states=text["clip_states"],
            text_embedding_mask=text["clip_mask"],
            encoder_hidden_states_t5=text["t5_states"],
            text_embedding_mask_t5=text["t5_mask"],
            image_rotary_emb=rope,
            return_dict=False,
        )[0]

    return predict


def _sample(predict: Predict, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Take deterministic steps with guidance, the negative prompt first in the batch."""
    betas = torch.linspace(0.00085**0.5, 0.018**0.5, 1000, dtype=torch.float64).square()
    abar = torch.cumprod(1 - betas, dim=0)
    latents, channels = noise, noise.shape[1]
    for i, t in enumerate(timesteps):
        negative, positive = predict(latents.expand(2, -1, -1, -1), i)[:, :channels].chunk(2)
        v = negative + GUIDANCE_SCALE * (positive - negative)
        alpha, sigma = abar[int(t)].sqrt().item(), (1 - abar[int(t)]).sqrt().item()
        x0, epsilon = alpha * latents - sigma * v, alpha * v + sigma * latents
        after = abar[int(timesteps[i + 1])] if i + 1 < len(timesteps) else torch.ones((), dtype=abar.dtype)
        latents = after.sqrt().item() * x0 + (1 - after).sqrt().item() * epsilon
    return latents


def _random_model(config: HunyuanDiTConfig, seed: int) -> HunyuanDiT:
    """Return a model whose every part takes part: weights that start at zero get small noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = HunyuanDiT(config).eval()
        for linear in (model.shifts, model.final.modulation, model.final.linear):
            nn.init.normal_(linear.weight, std=0.02)
    return model


def _diffusers_peer(model: HunyuanDiT) -> nn.Module:
    """Return diffusers' model with the same weights."""
    diffusers = require("diffusers", extra="hf")
    fields = {name: value for name, value in config_to_diffusers(model.config).items() if not name.startswith("_")}
    peer: nn.Module = diffusers.HunyuanDiT2DModel(**fields).eval()
    peer.load_state_dict(to_layout(model.state_dict(), model.config, "diffusers"))
    return peer


def _text_features(config: HunyuanDiTConfig, clip_tokens: int, t5_tokens: int, seed: int) -> dict[str, Tensor]:
    generator = torch_stream(seed, "text")
    lengths = {"clip": (2, clip_tokens), "t5": (2, t5_tokens)}
    text: dict[str, Tensor] = {}
    for name, length, width in (("clip", config.clip_len, config.clip_dim), ("t5", config.t5_len, config.t5_dim)):
        text[f"{name}_states"] = torch.randn(2, length, width, generator=generator)
        text[f"{name}_mask"] = torch.arange(length) < torch.tensor(lengths[name])[:, None]
    return text


@contextlib.contextmanager
def _torch_threads(threads: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
