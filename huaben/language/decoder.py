"""A causal language model that takes any position scheme of :mod:`huaben.attention.scheme`.

Pre-norm blocks of attention and feed-forward; RMSNorm or LayerNorm, SwiGLU or GELU, grouped-query attention, tied or
untied embeddings. One :class:`~huaben.attention.scheme.Scheme` a layer (or one for all) places the tokens.

Legend: B batch, T new tokens, P cached tokens, H query heads, G key/value heads, d head width, D width, V vocabulary.

Source: the models of Zheng et al. 2024 (arXiv:2405.14722; arXiv:2410.04798), section 4: the presets "125m" and "350m"
are theirs, as are the initial weights ("small_init": variance 2/(5 D); layers that write to the residual stream,
"wang_init": deviation 2/(layers sqrt(D))).
Differs: the feed-forward runs after the attention, never beside it; dropout is left out (the papers train with 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention.dape import Implementation
from ..attention.scheme import Scheme, SchemeConfig, scheme_config
from ..config import Config
from ..errors import CheckpointError, ConfigError, ShapeError
from ..pretrained import PretrainedModel
from .encoder import RMSNorm


def _default_scheme() -> SchemeConfig:
    return scheme_config("v2-kerple")


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig(Config):
    """Shape of a decoder.

    Attributes:
        vocab_size: V; 256 reads bytes.
        width: D.
        layers: number of blocks.
        heads: H; divides ``width``.
        kv_heads: G, keys and values shared by ``heads / kv_heads`` queries; None for as many as ``heads``.
        ffn: "swiglu" (three matrices) or "gelu" (two).
        ffn_width: inner width of the feed-forward; None for 4 D ("gelu") or 8/3 D rounded up to a multiple of 32.
        norm: "rmsnorm" or "layernorm".
        norm_eps: of every norm.
        bias: whether linear layers have biases.
        tie_embeddings: whether the output matrix is the embedding.
        scheme: how positions enter the scores; ``scheme.train_length`` is the length trained at.
        share_scheme: one scheme for all layers (KERPLE's own code, T5's table) instead of one a layer.
    """

    vocab_size: int = 256
    width: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int | None = None
    ffn: Literal["swiglu", "gelu"] = "swiglu"
    ffn_width: int | None = None
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float = 1e-5
    bias: bool = False
    tie_embeddings: bool = True
    scheme: SchemeConfig = field(default_factory=_default_scheme)
    share_scheme: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}, expected at least 1", hint="use a preset of PRESETS")
        if self.width % self.heads:
            raise ConfigError(
                f"heads={self.heads} does not divide width={self.width}", hint="use 4 heads, or a preset of PRESETS"
            )
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise ConfigError(
                f"kv_heads={self.kv_heads} does not divide heads={self.heads}", hint=f"use {self.heads} or 1"
            )
        if self.ffn not in ("swiglu", "gelu"):
            raise ConfigError(f"ffn={self.ffn!r} is neither 'swiglu' nor 'gelu'", hint="use 'swiglu'")
        if self.norm not in ("rmsnorm", "layernorm"):
            raise ConfigError(f"norm={self.norm!r} is neither 'rmsnorm' nor 'layernorm'", hint="use 'rmsnorm'")
        if self.ffn_width is not None and self.ffn_width < 1:
            raise ConfigError(f"ffn_width={self.ffn_width}, expected at least 1", hint="leave it out")

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.width // self.heads

    @property
    def num_kv_heads(self) -> int:
        """Number of key/value heads."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def inner_width(self) -> int:
        """Inner width of the feed-forward."""
        if self.ffn_width is not None:
            return self.ffn_width
        return 4 * self.width if self.ffn == "gelu" else math.ceil(8 * self.width / 3 / 32) * 32

    @property
    def base_parameters(self) -> int:
        """Number of weights without those of the schemes."""
        matrices, bias = (3 if self.ffn == "swiglu" else 2), int(self.bias)
        norm = self.width * (1 if self.norm == "rmsnorm" else 2)
        qkv = (self.heads + 2 * self.num_kv_heads) * self.head_dim
        attention = self.width * (qkv + self.width) + bias * (qkv + self.width)
        ffn = matrices * self.width * self.inner_width + bias * ((matrices - 1) * self.inner_width + self.width)
        tables = self.vocab_size * self.width * (1 if self.tie_embeddings else 2)
        return tables + self.layers * (attention + ffn + 2 * norm) + norm


class Cache:
    """Keys and values of the tokens read so far, for one batch.

    Buffers are (B, G, capacity, d) per layer and double when full; keys are stored rotated where the scheme rotates.
    A call that fails half-way leaves the cache as it was: lengths move only after the last layer.

    Attributes:
        length: tokens held.
        mask: bool (B, length), True for a real token; None if all are.
        documents: int64 (B, length), or None.
    """

    def __init__(self, config: DecoderConfig, batch: int, *, capacity: int = 64) -> None:
        if batch < 1 or capacity < 1:
            raise ConfigError(f"a cache for {batch} rows and {capacity} tokens", hint="both are at least 1")
        self.batch, self.capacity = batch, capacity
        self.length = 0
        self.mask: Tensor | None = None
        self.documents: Tensor | None = None
        self._heads, self._head_dim = config.num_kv_heads, config.head_dim
        self._keys: list[Tensor | None] = [None] * config.layers
        self._values: list[Tensor | None] = [None] * config.layers

    def __len__(self) -> int:
        return self.length

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(buffer.nbytes for buffer in (*self._keys, *self._values) if buffer is not None)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new keys and values (B, G, T, d) of a layer; return all of them, (B, G, P + T, d)."""
        return self._write(self._keys, layer, k), self._write(self._values, layer, v)

    def _write(self, buffers: list[Tensor | None], layer: int, new: Tensor) -> Tensor:
        buffer, end = buffers[layer], self.length + new.shape[2]
        if new.requires_grad or (buffer is not None and buffer.requires_grad):  # no writing under autograd's feet
            buffer = new if buffer is None else torch.cat([buffer[:, :, : self.length], new], dim=2)
            buffers[layer] = buffer
            return buffer
        if buffer is None or buffer.shape[2] < end:
            while self.capacity < end:
                self.capacity *= 2
            grown = new.new_empty(self.batch, self._heads, self.capacity, self._head_dim)
            if buffer is not None:
                grown[:, :, : self.length] = buffer[:, :, : self.length]
            buffers[layer] = buffer = grown
        buffer[:, :, self.length : end] = new
        return buffer[:, :, :end]

    def joined(self, mask: Tensor | None, documents: Tensor | None, count: int) -> tuple[Tensor | None, Tensor | None]:
        """Return mask and documents, (B, P + T) or None, of the cached tokens and the ``count`` new ones.

        Raises:
            ShapeError: if documents start in the middle of a cached text.
        """
        if mask is not None or self.mask is not None:
            old = self.mask
            if old is None:
                assert mask is not None
                old = mask.new_ones(self.batch, self.length)
            mask = torch.cat([old, old.new_ones(self.batch, count) if mask is None else mask], dim=1)
        if self.documents is not None:
            last = self.documents[:, -1:].expand(-1, count)
            documents = torch.cat([self.documents, last if documents is None else documents], dim=1)
        elif documents is not None and self.length:
            raise ShapeError("documents came after tokens without any", hint="pass documents from the first call on")
        return mask, documents

    def advance(self, count: int, mask: Tensor | None = None, documents: Tensor | None = None) -> None:
        """Count ``count`` tokens, just written in every layer, as held; ``mask`` and ``documents`` are (B, P + T)."""
        self.length += count
        self.mask, self.documents = mask, documents

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens.

        Raises:
            ConfigError: if fewer are held.
        """
        if not 0 <= length <= self.length:
            raise ConfigError(f"cannot keep {length} of {self.length} tokens", hint="truncate only shortens")
        self.length = length
        self.mask = None if self.mask is None else self.mask[:, :length]
        self.documents = None if self.documents is None or not length else self.documents[:, :length]

    def select(self, rows: Tensor) -> None:
        """Keep ``rows`` (int64, in order, repeats allowed): for beams, and for dropping finished rows."""
        self.batch = len(rows)
        for buffers in (self._keys, self._values):
            buffers[:] = [None if buffer is None else buffer.index_select(0, rows) for buffer in buffers]
        self.mask = None if self.mask is None else self.mask.index_select(0, rows)
        self.documents = None if self.documents is None else self.documents.index_select(0, rows)


@dataclass(frozen=True, slots=True)
class Tokens:
    """What every layer needs to know of the tokens at hand: P cached ones, then T new ones.

    Attributes:
        offset: P, the index of the first new token.
        positions: of the new tokens, (T,) or (B, T), counted from each row's first real token (or its document's).
        mask, documents: (B, P + T) or None.
        start: index of each row's first real token, (B,), or None.
        impl: of the attention.
    """

    offset: int
    positions: Tensor
    mask: Tensor | None
    documents: Tensor | None
    start: Tensor | None
    impl: Implementation


def first_tokens(mask: Tensor) -> Tensor:
    """Return the index of each row's first True, (B,) int64, of a bool (B, T); T where there is none."""
    return (mask.cumsum(1) == 0).sum(1)


def document_positions(documents: Tensor) -> Tensor:
    """Return the position of each token in its run of equal ids, int64 (B, T), of ``documents`` (B, T)."""
    steps = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    first = torch.ones_like(documents, dtype=torch.bool)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return steps - torch.where(first, steps, 0).cummax(1).values


class DecoderAttention(nn.Module):
    """Causal self-attention with grouped keys and values; the scheme comes with each call."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.num_kv_heads, config.head_dim
        self.qkv = nn.Linear(config.width, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor, tokens: Tokens, scheme: Scheme, cache: Cache | None, layer: int) -> Tensor:
        q, k, v = (
            self.qkv(x)
            .unflatten(-1, (-1, self.head_dim))
            .transpose(1, 2)
            .split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        )  # (B, H, T, d), (B, G, T, d) twice
        q, k = scheme.rotate(q, tokens.positions), scheme.rotate(k, tokens.positions)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        y = scheme(
            q,
            k,
            v,
            causal=True,
            q_offset=tokens.offset,
            key_mask=tokens.mask,
            documents=tokens.documents,
            start=tokens.start,
            impl=tokens.impl,
        )
        return self.out(y.transpose(1, 2).flatten(2))


class DecoderFeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202) or a two-layer GELU."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.inner_width, bias=config.bias) if config.ffn == "swiglu" else None
        self.up = nn.Linear(config.width, config.inner_width, bias=config.bias)
        self.down = nn.Linear(config.inner_width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.up(x)) if self.gate is None else F.silu(self.gate(x)) * self.up(x)
        return self.down(hidden)


def _norm(config: DecoderConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return RMSNorm(config.width, config.norm_eps)
    return nn.LayerNorm(config.width, eps=config.norm_eps)


class DecoderBlock(nn.Module):
    """Attention and feed-forward, each pre-normed and added back."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = _norm(config)
        self.attention = DecoderAttention(config)
        self.ffn_norm = _norm(config)
        self.ffn = DecoderFeedForward(config)

    def forward(self, x: Tensor, tokens: Tokens, scheme: Scheme, cache: Cache | None, layer: int) -> Tensor:
        x = x + self.attention(self.attention_norm(x), tokens, scheme, cache, layer)
        return x + self.ffn(self.ffn_norm(x))


class Decoder(PretrainedModel):
    """Token ids to the logits of each next token.

    Attributes:
        gradient_checkpointing: whether training recomputes each block in the backward pass instead of keeping its
            activations; off at first, never saved.
    """

    config_class = DecoderConfig
    model_type = "decoder"
    config: DecoderConfig

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.layers))
        self.schemes = nn.ModuleList(
            Scheme(config.scheme, config.heads, config.head_dim)
            for _ in range(1 if config.share_scheme else config.layers)
        )
        self.norm = _norm(config)
        self.head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the papers' initial weights; schemes keep the ones of their constructors."""
        config = self.config
        small = math.sqrt(2 / (5 * config.width))
        nn.init.normal_(self.embedding.weight, std=small)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=small)
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear):
                writes = name.endswith((".out", ".down"))
                nn.init.normal_(module.weight, std=2 / config.layers / math.sqrt(config.width) if writes else small)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def new_cache(self, batch: int, *, capacity: int = 64) -> Cache:
        """Return an empty cache for ``batch`` rows; it grows past ``capacity`` tokens by itself."""
        return Cache(self.config, batch, capacity=capacity)

    def forward(
        self,
        ids: Tensor,
        *,
        mask: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        impl: Implementation = "auto",
    ) -> Tensor:
        """Return logits (B, T, V).

        Args:
            ids: int64 (B, T): the whole text, or what follows the cached tokens.
            mask: bool (B, T), True for a real token; padding is never attended to and its logits mean nothing.
                Positions count from each row's first real token, so left-padded rows compute what they would alone.
            documents: int64 (B, T); tokens attend only within their document, whose positions start at 0.
            cache: from :meth:`new_cache`; the new tokens are appended to it.
            impl: of the attention: "auto", "naive", "rows" or "triton".

        Raises:
            ShapeError: for ids, a mask or documents that do not fit.
        """
        return self.unembed(self.states(ids, mask=mask, documents=documents, cache=cache, impl=impl))

    def states(
        self,
        ids: Tensor,
        *,
        mask: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        impl: Implementation = "auto",
    ) -> Tensor:
        """Return the states (B, T, D) after the final norm; arguments as for :meth:`forward`."""
        self._check(ids, mask, documents, cache)
        count = ids.shape[1]
        mask = None if mask is None else mask.bool()
        if cache is not None:
            mask, documents = cache.joined(mask, documents, count)
        tokens = self._tokens(0 if cache is None else cache.length, count, mask, documents, impl, ids.device)
        x = self.embedding(ids)
        for layer, block in enumerate(self.blocks):
            scheme = self.schemes[layer % len(self.schemes)]
            if self.gradient_checkpointing and cache is None and torch.is_grad_enabled():
                x = checkpoint(block, x, tokens, scheme, None, layer, use_reentrant=False)
            else:
                x = block(x, tokens, scheme, cache, layer)
        if cache is not None:
            cache.advance(count, mask, documents)
        return self.norm(x)

    def unembed(self, states: Tensor) -> Tensor:
        """Return the logits (..., V) of states (..., D)."""
        return F.linear(states, self.embedding.weight if self.head is None else self.head.weight)

    @staticmethod
    def _tokens(
        offset: int,
        count: int,
        mask: Tensor | None,
        documents: Tensor | None,
        impl: Implementation,
        device: torch.device,
    ) -> Tokens:
        positions, start = torch.arange(offset, offset + count, device=device), None
        if mask is not None:
            start = first_tokens(mask)
            positions = (positions - start[:, None]).clamp(min=0)
        if documents is not None:
            positions = document_positions(documents)[:, offset:]
        return Tokens(offset, positions, mask, documents, start, impl)

    def _check(self, ids: Tensor, mask: Tensor | None, documents: Tensor | None, cache: Cache | None) -> None:
        if ids.ndim != 2 or ids.is_floating_point() or not ids.shape[1]:
            raise ShapeError(
                f"ids are {ids.dtype} {tuple(ids.shape)}, expected int64 (B, T) with at least one token",
                hint="add a batch axis: ids[None]",
            )
        for name, given in (("mask", mask), ("documents", documents)):
            if given is not None and given.shape != ids.shape:
                raise ShapeError(
                    f"{name} is {tuple(given.shape)}, ids are {tuple(ids.shape)}",
                    hint="pass it for the new tokens only; the cache remembers the others",
                )
        if cache is not None and cache.batch != ids.shape[0]:
            raise ShapeError(f"the cache holds {cache.batch} rows, ids have {ids.shape[0]}", hint="make a new cache")
        if ids.device.type == "cpu" and (ids.min() < 0 or ids.max() >= self.config.vocab_size):
            raise ShapeError(
                f"ids run from {int(ids.min())} to {int(ids.max())}, the vocabulary from 0 to "
                f"{self.config.vocab_size - 1}",
                hint="the text was encoded by another tokenizer",
            )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = torch.float32,
        device: str | torch.device = "cpu",
        scheme: str | SchemeConfig | None = None,
    ) -> Self:
        """Load a saved folder, strictly, in eval mode.

        Args:
            folder: as written by :meth:`save_pretrained`.
            dtype: of floating-point weights; None keeps the stored one.
            device: where to put the model.
            scheme: what the folder is expected to hold; a name of SCHEMES is compared by position and adapter.

        Raises:
            CheckpointError: for anything but a complete, matching folder, or another scheme than expected.
        """
        model = super().from_pretrained(folder, dtype=dtype, device=device)
        if scheme is not None:
            found = model.config.scheme
            expected = scheme_config(scheme) if isinstance(scheme, str) else scheme
            same = found == expected if isinstance(scheme, SchemeConfig) else _kind(found) == _kind(expected)
            if not same:
                raise CheckpointError(
                    f"{folder} holds a decoder with {_describe(found)}, expected {_describe(expected)}",
                    hint="load it without scheme=, or train one with the scheme you want",
                )
        return model

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load weights; those of another scheme are refused by name.

        Raises:
            CheckpointError: if they were trained with another scheme.
        """
        expected = {name for name in self.state_dict() if name.startswith("schemes.")}
        found = {name for name in state_dict if name.startswith("schemes.")}
        if strict and expected != found:
            raise CheckpointError(
                f"the weights belong to another position scheme than {_describe(self.config.scheme)}: they "
                f"{_differences(expected, found)}",
                hint="build the decoder from the config.json beside the weights",
            )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def _kind(scheme: SchemeConfig) -> tuple[Any, ...]:
    return scheme.position, scheme.adapter, scheme.kernel_size if scheme.adapter == "conv" else 1


def _describe(scheme: SchemeConfig) -> str:
    adapter = {"none": "no adapter", "mlp": "a DAPE MLP", "conv": f"a DAPE 1x{scheme.kernel_size} convolution"}
    return f"position {scheme.position!r} and {adapter[scheme.adapter]}"


def _differences(expected: set[str], found: set[str]) -> str:
    missing, extra = sorted(expected - found), sorted(found - expected)
    parts = [f"lack {missing[0]!r}"] if missing else []
    return " and ".join(parts + ([f"have {extra[0]!r}"] if extra else []))


def next_token_loss(
    logits: Tensor, ids: Tensor, *, mask: Tensor | None = None, documents: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy, in nats, of each next token of the same document.

    Args:
        logits: (B, T, V) of ``ids``.
        ids: int64 (B, T).
        mask: bool (B, T); pairs with padding on either side do not count.
        documents: int64 (B, T); the first token of a document is not predicted.

    Raises:
        ShapeError: if the shapes differ or no pair is left.
    """
    if logits.shape[:2] != ids.shape:
        raise ShapeError(f"logits are {tuple(logits.shape)}, ids {tuple(ids.shape)}", hint="expected (B, T, V), (B, T)")
    targets = ids[:, 1:]
    if mask is not None:
        targets = targets.masked_fill(~(mask[:, 1:].bool() & mask[:, :-1].bool()), -100)
    if documents is not None:
        targets = targets.masked_fill(documents[:, 1:] != documents[:, :-1], -100)
    if not targets.numel() or ((mask is not None or documents is not None) and bool((targets == -100).all())):
        raise ShapeError(f"ids {tuple(ids.shape)} hold no pair of neighbours to learn", hint="use longer texts")
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten())


_PAPER: dict[str, Any] = {
    "vocab_size": 50304,  # GPT-2's byte pairs, rounded up to a multiple of 128
    "ffn": "gelu",
    "norm": "layernorm",
    "bias": True,
    "tie_embeddings": False,
}

PRESETS: dict[str, DecoderConfig] = {
    # base_parameters; without the output matrix in brackets, where it is not tied
    "tiny": DecoderConfig(),  # 0.84 million: minutes on a CPU
    "15m": DecoderConfig(width=384, layers=8, heads=6),  # 14.3 million
    "125m": DecoderConfig(width=768, layers=12, heads=12, **_PAPER),  # 162.3 million (123.7)
    "350m": DecoderConfig(width=1024, layers=24, heads=16, **_PAPER),  # 405.3 million (353.8)
}
