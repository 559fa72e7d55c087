"""A small transformer from strings of symbols to answers, for tasks that ask how far a position scheme carries.

The whole answer is written in one pass: ``y`` placeholder symbols follow the input, and the model's outputs at their
places are the answer. Causal or not, every layer has its own position scheme.

Letters: B batch, n input length, y answer length, L = n + y, D width, H heads, d = D / H.

Source: Delétang et al. 2023 (arXiv:2207.02098), appendix B: an encoder of 5 layers, 8 heads, width 64, post-norm, ReLU, no
biases in attention; placeholders as in DAPE (arXiv:2405.14722), which has width 256 and a score MLP of 64.
Differs: no dropout, which DAPE's configs set to 0; ``causal=True`` by default, the only form DAPE's code has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.multihead import head_width
from ..attention.scheme import Scheme, SchemeConfig
from ..config import Config
from ..errors import ConfigError, ShapeError
from ..pretrained import PretrainedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceModelConfig(Config):
    """Shape of a sequence model.

    Attributes:
        input_size: number of different input symbols; the placeholder comes on top.
        output_size: number of different output symbols.
        scheme: how positions enter the attention; its ``train_length`` is the longest L in training.
        width: D.
        layers, heads: of the transformer.
        ffn_ratio: inner width of the feed-forward over D; 0 leaves the feed-forward out.
        causal: whether a place sees only those before it.
        norm: "post" normalises each sum (as the Chomsky-hierarchy reference), "pre" each branch's input and the end.
    """

    input_size: int
    output_size: int
    scheme: SchemeConfig
    width: int = 64
    layers: int = 5
    heads: int = 8
    ffn_ratio: int = 4
    causal: bool = True
    norm: Literal["pre", "post"] = "post"

    def __post_init__(self) -> None:
        for name, low in (("input_size", 1), ("output_size", 1), ("layers", 1), ("ffn_ratio", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name}={getattr(self, name)}, expected at least {low}", hint=f"raise {name}")
        if self.norm not in ("pre", "post"):
            raise ConfigError(f"norm={self.norm!r}, expected 'pre' or 'post'", hint="the reference uses 'post'")
        head_width(self.width, self.heads)


class SequenceModel(PretrainedModel):
    """Symbols in, one distribution over output symbols a place."""

    config_class = SequenceModelConfig
    model_type = "sequence_model"
    config: SequenceModelConfig

    def __init__(self, config: SequenceModelConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.input_size + 1, config.width)  # N(0, 1), of the order of a normed state
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width) if config.norm == "pre" else nn.Identity()
        self.head = _linear(config.width, config.output_size)

    @property
    def placeholder(self) -> int:
        """The symbol that asks for an output."""
        return self.config.input_size

    def forward(self, ids: Tensor, last: int | None = None) -> Tensor:
        """Return logits (B, L, output_size) for symbols (B, L), placeholders included.

        Args:
            ids: int64 (B, L).
            last: only the logits (B, last, output_size) of the last places, at less cost.

        Raises:
            ShapeError: if ``ids`` is not (B, L).
        """
        return self.head(self._states(ids, ids.shape[-1] if last is None else last))

    def answer(self, inputs: Tensor, length: int) -> Tensor:
        """Return logits (B, y, output_size) of answers of y = ``length`` symbols to inputs (B, n).

        Raises:
            ShapeError: if ``inputs`` is not (B, n), or no symbol is asked for.
        """
        if length < 1:
            raise ShapeError(f"an answer of {length} symbols", hint="ask for task.output_length(n)")
        asked = inputs.new_full((inputs.shape[0], length), self.placeholder)
        return self.head(self._states(torch.cat([inputs, asked], dim=1), length))

    def _states(self, ids: Tensor, last: int) -> Tensor:
        """Return the states (B, last, D) of the last places after the last block, which computes no others."""
        if ids.ndim != 2:
            raise ShapeError(
                f"symbols of shape {tuple(ids.shape)}, expected (batch, length)", hint="add the batch axis"
            )
        states = self.embedding(ids)
        positions = torch.arange(ids.shape[1], device=ids.device)
        for index, block in enumerate(self.blocks, 1):
            states = block(states, positions, last if index == len(self.blocks) else ids.shape[1])
        return self.norm(states)


class Block(nn.Module):
    """Attention and, unless left out, a feed-forward, each added to its input."""

    def __init__(self, config: SequenceModelConfig) -> None:
        super().__init__()
        self.post = config.norm == "post"
        inner = config.ffn_ratio * config.width
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.width)
        self.ffn = (
            nn.Sequential(_linear(config.width, inner), nn.ReLU(), _linear(inner, config.width)) if inner else None
        )
        self.ffn_norm = nn.LayerNorm(config.width) if inner else nn.Identity()

    def forward(self, states: Tensor, positions: Tensor, last: int) -> Tensor:
        """Return (B, last, D), the last places, from states (B, L, D) at positions (L,)."""
        kept = states[:, -last:]
        if self.post:
            kept = self.attention_norm(kept + self.attention(states, positions, last))
            return kept if self.ffn is None else self.ffn_norm(kept + self.ffn(kept))
        kept = kept + self.attention(self.attention_norm(states), positions, last)
        return kept if self.ffn is None else kept + self.ffn(self.ffn_norm(kept))


class Attention(nn.Module):
    """Multi-head attention without biases; the scheme rotates, biases and adapts the scores."""

    def __init__(self, config: SequenceModelConfig) -> None:
        super().__init__()
        self.heads, self.causal = config.heads, config.causal
        self.qkv = _linear(config.width, 3 * config.width, bias=False)
        self.out = _linear(config.width, config.width, bias=False)
        self.scheme = Scheme(config.scheme, config.heads, config.width // config.heads)

    def forward(self, states: Tensor, positions: Tensor, last: int) -> Tensor:
        """Return (B, last, D), the last places, from states (B, L, D) at positions (L,)."""
        q, k, v = self.qkv(states).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, L, d) each
        q, k = self.scheme.rotate(q[:, :, -last:], positions[-last:]), self.scheme.rotate(k, positions)
        mixed = self.scheme(q, k, v, causal=self.causal, q_offset=states.shape[1] - last)
        return self.out(mixed.transpose(1, 2).flatten(2))


def _linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """Return a layer with weights N(0, 1 / inputs) and biases 0."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def answer_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy in nats, summed over the answer (padding after a terminator included), batch mean."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / targets.shape[0]
