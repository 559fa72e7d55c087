"""A T5-style text encoder: bidirectional, with one relative position bias shared by all layers.

Blocks are pre-normed by their root mean square, attention scores are not scaled, the feed-forward is a gated GELU, and
nothing has a bias term. The same class computes mT5's and T5 v1.1's encoder from a transformers folder.

Legend: B batch, L sequence, H heads, d head width, D hidden width.

Source: Raffel et al. 2020 (arXiv:1910.10683); Shazeer 2020 (arXiv:2002.05202) for the gated feed-forward.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Config
from ..errors import CheckpointError, ConfigError, ShapeError
from ..pretrained import CONFIG_NAME, WEIGHTS_NAME, PretrainedModel, check_state, read_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class TextEncoderConfig(Config):
    """Shape of a text encoder.

    Attributes:
        vocab_size: rows of the embedding.
        hidden_size: D, also the width of the returned states.
        num_layers, num_heads, head_dim: of the attention; ``num_heads * head_dim`` need not be D.
        ffn_size: inner width of the gated feed-forward.
        num_buckets, max_distance: of the relative position bias.
        max_length: what texts are padded and truncated to.
        norm_eps: of every norm.
    """

    vocab_size: int = 1500
    hidden_size: int = 128
    num_layers: int = 3
    num_heads: int = 4
    head_dim: int = 32
    ffn_size: int = 320
    num_buckets: int = 32
    max_distance: int = 128
    max_length: int = 64
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "head_dim", "ffn_size", "max_length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}, expected at least 1", hint="use a preset of PRESETS")
        if self.num_buckets < 4 or self.num_buckets % 4:
            raise ConfigError(f"num_buckets={self.num_buckets}, expected a multiple of 4", hint="T5 uses 32")
        if self.max_distance <= self.num_buckets // 4:
            raise ConfigError(
                f"max_distance={self.max_distance}, expected more than num_buckets/4", hint="T5 uses 128 for 32 buckets"
            )


class RMSNorm(nn.Module):
    """Divide by the root mean square in fp32, then scale; no mean, no bias."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight


def position_buckets(length: int, num_buckets: int, max_distance: int) -> Tensor:
    """Return (L, L) int64: the bucket of key position minus query position.

    Half of the buckets are for keys after the query; in each half, the first half of the buckets are exact distances
    and the others grow logarithmically up to ``max_distance``.
    """
    positions = torch.arange(length)
    relative = positions[None, :] - positions[:, None]
    half = num_buckets // 2
    distance, exact = relative.abs(), half // 2
    growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (growth * (half - exact)).long()).clamp(max=half - 1)
    return (relative > 0).long() * half + torch.where(distance < exact, distance, far)


class RelativePositionBias(nn.Module):
    """A learned score per head and bucket of relative position."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.num_buckets, self.max_distance = config.num_buckets, config.max_distance
        self.weight = nn.Parameter(torch.empty(config.num_buckets, config.num_heads))

    def forward(self, length: int) -> Tensor:
        """Return (1, H, L, L), to be added to the scores."""
        buckets = position_buckets(length, self.num_buckets, self.max_distance).to(self.weight.device)
        return self.weight[buckets].permute(2, 0, 1)[None]


class SelfAttention(nn.Module):
    """Unscaled multi-head attention without biases."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.hidden_size, inner, bias=False)
        self.k = nn.Linear(config.hidden_size, inner, bias=False)
        self.v = nn.Linear(config.hidden_size, inner, bias=False)
        self.out = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(self, x: Tensor, score_bias: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for projection in (self.q, self.k, self.v)
        )  # (B, H, L, d)
        # Plain products: texts are short, and the fused kernels' backward pass is slow with a learned bias.
        y = torch.softmax((q @ k.mT).float() + score_bias.float(), dim=-1).to(v.dtype) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Gated GELU."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.down = nn.Linear(config.ffn_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.gate(x), approximate="tanh") * self.up(x))


class EncoderBlock(nn.Module):
    """Self-attention and feed-forward, each pre-normed and added back."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = SelfAttention(config)
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn = FeedForward(config)

    def forward(self, x: Tensor, score_bias: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), score_bias)
        return x + self.ffn(self.ffn_norm(x))


class TextEncoder(PretrainedModel):
    """Token ids to one state a token."""

    config_class = TextEncoderConfig
    model_type = "text_encoder"
    config: TextEncoderConfig

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_bias = RelativePositionBias(config)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw T5's initial weights: queries carry the score scale, so that attention starts out soft."""
        config = self.config
        nn.init.normal_(self.embedding.weight)
        nn.init.normal_(self.position_bias.weight, std=config.hidden_size**-0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for module in self.modules():
            if isinstance(module, SelfAttention):
                nn.init.normal_(module.q.weight, std=(config.hidden_size * config.head_dim) ** -0.5)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the states (B, L, D) after the final norm.

        Args:
            ids: int64 (B, L); any L, not only ``max_length``.
            mask: bool (B, L), True where there is a token; states elsewhere mean nothing.

        Raises:
            ShapeError: if the two differ in shape.
        """
        if ids.ndim != 2 or ids.shape != mask.shape:
            raise ShapeError(
                f"ids {tuple(ids.shape)} and mask {tuple(mask.shape)}, expected the same (batch, length)",
                hint="pass both results of Tokenizer.encode",
            )
        x = self.embedding(ids)
        bias = self.position_bias(ids.shape[1])
        score_bias = bias.masked_fill(~mask[:, None, None, :].bool(), torch.finfo(bias.dtype).min)
        for block in self.blocks:
            x = block(x, score_bias)
        return self.norm(x)

    @staticmethod
    def pool(states: Tensor, mask: Tensor) -> Tensor:
        """Return the mean state (B, D) of each row's tokens; zeros for a row without any."""
        weights = mask.to(states.dtype)[..., None]
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: torch.dtype | None = torch.float32, device: str | torch.device = "cpu"
    ) -> Self:
        """Load a folder of ours, or a transformers folder of mT5 or T5 v1.1 (safetensors only), in eval mode.

        Raises:
            CheckpointError: for anything but a complete, matching folder.
        """
        values = _transformers_config(Path(folder))
        if values is None:
            return super().from_pretrained(folder, dtype=dtype, device=device)
        model = cls(config_from_transformers(values))
        state = state_from_transformers(_read_shards(Path(folder)), model.config.num_layers)
        check_state(model.state_dict(), state, str(folder))
        model.load_state_dict(state)
        return model.to(device=device, dtype=dtype).eval()


# --- transformers' T5EncoderModel -------------------------------------------------------------------------------------

_BLOCK_KEYS = {
    "layer.0.layer_norm.weight": "attention_norm.weight",
    "layer.0.SelfAttention.q.weight": "attention.q.weight",
    "layer.0.SelfAttention.k.weight": "attention.k.weight",
    "layer.0.SelfAttention.v.weight": "attention.v.weight",
    "layer.0.SelfAttention.o.weight": "attention.out.weight",
    "layer.1.layer_norm.weight": "ffn_norm.weight",
    "layer.1.DenseReluDense.wi_0.weight": "ffn.gate.weight",
    "layer.1.DenseReluDense.wi_1.weight": "ffn.up.weight",
    "layer.1.DenseReluDense.wo.weight": "ffn.down.weight",
}


def config_from_transformers(values: dict[str, Any]) -> TextEncoderConfig:
    """Return our config for a transformers T5 or mT5 ``config.json``.

    Raises:
        CheckpointError: for the plain ReLU feed-forward of T5 v1.0, or a missing field.
    """
    if values.get("feed_forward_proj", "relu") != "gated-gelu":
        raise CheckpointError(
            f"feed_forward_proj={values.get('feed_forward_proj', 'relu')!r}, expected 'gated-gelu'",
            hint="use mT5 or T5 v1.1, such as google/mt5-small",
        )
    try:
        return TextEncoderConfig(
            vocab_size=values["vocab_size"],
            hidden_size=values["d_model"],
            num_layers=values["num_layers"],
            num_heads=values["num_heads"],
            head_dim=values["d_kv"],
            ffn_size=values["d_ff"],
            num_buckets=values.get("relative_attention_num_buckets", 32),
            max_distance=values.get("relative_attention_max_distance", 128),
            max_length=256,
            norm_eps=values.get("layer_norm_epsilon", 1e-6),
        )
    except KeyError as error:
        raise CheckpointError(f"the T5 config lacks {error}", hint="copy config.json of the model again") from error


def state_from_transformers(state: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Return our names for transformers' encoder weights; a decoder and its head are left out."""
    names = {
        "shared.weight": "embedding.weight",
        "encoder.embed_tokens.weight": "embedding.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "position_bias.weight",
        "encoder.final_layer_norm.weight": "norm.weight",
    }
    for index in range(num_layers):
        names |= {f"encoder.block.{index}.{old}": f"blocks.{index}.{new}" for old, new in _BLOCK_KEYS.items()}
    return {
        names.get(name, name): tensor for name, tensor in state.items() if not name.startswith(("decoder.", "lm_head."))
    }


def _transformers_config(folder: Path) -> dict[str, Any] | None:
    """Return the config of a transformers T5 folder, None for any other folder."""
    try:
        values = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) and values.get("model_type") in ("t5", "mt5") else None


def _read_shards(folder: Path) -> dict[str, Tensor]:
    index = folder / f"{WEIGHTS_NAME}.index.json"
    if not index.is_file():
        return read_weights(folder / WEIGHTS_NAME)
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index} is not a weight index ({error})", hint="copy the file again") from error
    return {name: tensor for shard in shards for name, tensor in read_weights(folder / Path(shard).name).items()}


PRESETS: dict[str, TextEncoderConfig] = {
    "embedded": TextEncoderConfig(),
    "tiny": TextEncoderConfig(
        vocab_size=400, hidden_size=32, num_layers=2, num_heads=2, head_dim=16, ffn_size=64, max_length=48
    ),
}
