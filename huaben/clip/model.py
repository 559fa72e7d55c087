"""A bilingual CLIP: one space for pictures and sentences.

The text tower is a bidirectional transformer over learned positions; its last hidden states are what the painter
reads, their masked mean is projected into the shared space. The image tower is a small vision transformer behind a
convolutional stem; the mean of its tokens is projected.

Legend: B batch, L text length, N image tokens, D hidden width, H heads, E width of the shared space.

Source: Radford et al. 2021 (arXiv:2103.00020); Li et al. 2024 (arXiv:2405.08748), section 2.1, for the use of a
bidirectional bilingual text tower; Xiao et al. 2021 (arXiv:2106.14881) for the convolutional stem.
Differs: norms before each sub-layer instead of after it, and a mean instead of a class token, in both towers.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Config
from ..errors import ConfigError, ShapeError
from ..pretrained import PretrainedModel

MAX_LOGIT_SCALE = 100.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig(Config):
    """Shape of both towers.

    Attributes:
        vocab_size: rows of the token embedding.
        text_length: what texts are padded and truncated to, and the number of text positions.
        text_hidden_size, text_num_layers, text_num_heads: of the text tower.
        image_size: side of the pictures in pixels.
        patch_size: pixels a token covers each way; a power of two, one stem convolution per doubling.
        image_hidden_size, image_num_layers, image_num_heads: of the image tower.
        mlp_ratio: inner width of a feed-forward, in hidden widths.
        embedding_size: E.
        norm_eps: of every norm.
    """

    vocab_size: int = 1500
    text_length: int = 32
    text_hidden_size: int = 128
    text_num_layers: int = 3
    text_num_heads: int = 4
    image_size: int = 64
    patch_size: int = 8
    image_hidden_size: int = 128
    image_num_layers: int = 4
    image_num_heads: int = 4
    mlp_ratio: float = 2.0
    embedding_size: int = 128
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("vocab_size", "text_length", "text_num_layers", "image_num_layers", "embedding_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}, expected at least 1", hint="use a preset of PRESETS")
        for tower in ("text", "image"):
            width, heads = getattr(self, f"{tower}_hidden_size"), getattr(self, f"{tower}_num_heads")
            if heads < 1 or width < 1 or width % heads:
                raise ConfigError(
                    f"{tower}_num_heads={heads} does not divide {tower}_hidden_size={width}",
                    hint="use 4 heads, or a preset of PRESETS",
                )
        if self.patch_size < 2 or self.patch_size & (self.patch_size - 1):
            raise ConfigError(f"patch_size={self.patch_size} is not a power of two", hint="use 8")
        if self.image_size < self.patch_size or self.image_size % self.patch_size:
            raise ConfigError(
                f"patch_size={self.patch_size} does not divide image_size={self.image_size}", hint="use 64 and 8"
            )
        if self.image_hidden_size * 2 < self.patch_size:
            raise ConfigError(
                f"image_hidden_size={self.image_hidden_size} is too small for patch_size={self.patch_size}",
                hint="the stem halves its channels once per doubling",
            )

    @property
    def num_image_tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2


class Attention(nn.Module):
    """Multi-head self-attention with biases."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, H, L, d)
        scores = (q * q.shape[-1] ** -0.5 @ k.mT).float()  # plain products: both towers read few tokens
        y = torch.softmax(scores if mask is None else scores + mask, dim=-1).to(v.dtype) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and feed-forward, each pre-normed and added back."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        inner = int(hidden_size * mlp_ratio)
        self.attention_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.attention = Attention(hidden_size, num_heads)
        self.mlp_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.up = nn.Linear(hidden_size, inner)
        self.down = nn.Linear(inner, hidden_size)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class TextTower(nn.Module):
    """Token ids to states (B, L, D)."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width = config.text_hidden_size
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Parameter(torch.empty(config.text_length, width))
        self.blocks = nn.ModuleList(
            Block(width, config.text_num_heads, config.mlp_ratio, config.norm_eps)
            for _ in range(config.text_num_layers)
        )
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embedding(ids) + self.positions[: ids.shape[1]]
        scores = torch.zeros(mask.shape, device=x.device).masked_fill(~mask.bool(), torch.finfo(torch.float32).min)
        for block in self.blocks:
            x = block(x, scores[:, None, None, :])
        return self.norm(x)


class ImageTower(nn.Module):
    """Pixels (B, 3, S, S) to tokens (B, N, D), row by row from the top left."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width = config.image_hidden_size
        steps = int(math.log2(config.patch_size))
        channels = [3, *(width >> (steps - 1 - step) for step in range(steps))]
        layers: list[nn.Module] = []
        for inside, outside in itertools.pairwise(channels):
            layers += [nn.Conv2d(inside, outside, 3, stride=2, padding=1), nn.GELU()]
        self.stem = nn.Sequential(*layers[:-1])
        self.positions = nn.Parameter(torch.empty(config.num_image_tokens, width))
        self.blocks = nn.ModuleList(
            Block(width, config.image_num_heads, config.mlp_ratio, config.norm_eps)
            for _ in range(config.image_num_layers)
        )
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.stem(pixels).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Clip(PretrainedModel):
    """Pictures and sentences in one space; compare them by the dot product of their features."""

    config_class = ClipConfig
    model_type = "clip"
    config: ClipConfig

    def __init__(self, config: ClipConfig) -> None:
        super().__init__(config)
        self.text = TextTower(config)
        self.image = ImageTower(config)
        self.text_projection = nn.Linear(config.text_hidden_size, config.embedding_size, bias=False)
        self.image_projection = nn.Linear(config.image_hidden_size, config.embedding_size, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw initial weights; residual branches start small."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for tower in (self.text, self.image):
            for block in tower.modules():
                if isinstance(block, Block):
                    block.attention.out.weight.mul_((2 * len(tower.blocks)) ** -0.5)
                    block.down.weight.mul_((2 * len(tower.blocks)) ** -0.5)
        nn.init.normal_(self.text.embedding.weight, std=0.5)
        nn.init.normal_(self.text.positions, std=0.2)
        nn.init.normal_(self.image.positions, std=0.2)

    @property
    def logit_scale(self) -> Tensor:
        """The inverse temperature, at most 100."""
        return self.log_scale.exp().clamp(max=MAX_LOGIT_SCALE)

    def text_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the text tower's last hidden states (B, L, D); they mean nothing where ``mask`` is False.

        Raises:
            ShapeError: if ids and mask differ in shape or are longer than ``text_length``.
        """
        if ids.ndim != 2 or ids.shape != mask.shape or ids.shape[1] > self.config.text_length:
            raise ShapeError(
                f"ids {tuple(ids.shape)} and mask {tuple(mask.shape)}, expected the same (batch, at most "
                f"{self.config.text_length})",
                hint=f"encode texts with Tokenizer.encode(texts, {self.config.text_length})",
            )
        return self.text(ids, mask)

    def text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the texts' unit vectors (B, E)."""
        return self.project_text(self.text_states(ids, mask), mask)

    def project_text(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return the unit vectors (B, E) of states already computed."""
        weights = mask.to(states.dtype)[..., None]
        pooled = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
        return F.normalize(self.text_projection(pooled).float(), dim=-1)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Return the image tower's tokens (B, N, D), row by row.

        Raises:
            ShapeError: unless pixels are (B, 3, image_size, image_size).
        """
        size = self.config.image_size
        if pixels.ndim != 4 or pixels.shape[1:] != (3, size, size):
            raise ShapeError(
                f"pixels of shape {tuple(pixels.shape)}, expected (batch, 3, {size}, {size})",
                hint=f"use huaben.clip.preprocess(images, {size})",
            )
        return self.image(pixels)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Return the pictures' unit vectors (B, E)."""
        return self.project_image(self.image_tokens(pixels))

    def project_image(self, tokens: Tensor) -> Tensor:
        """Return the unit vectors (B, E) of tokens already computed."""
        return F.normalize(self.image_projection(tokens.mean(1)).float(), dim=-1)


PRESETS: dict[str, ClipConfig] = {
    "embedded": ClipConfig(),
    "tiny": ClipConfig(
        vocab_size=400,
        text_length=24,
        text_hidden_size=32,
        text_num_layers=2,
        text_num_heads=2,
        image_size=32,
        image_hidden_size=32,
        image_num_layers=2,
        image_num_heads=2,
        embedding_size=32,
    ),
}
