"""Sampling text from a :class:`~huaben.language.decoder.Decoder`: greedy, temperature, top-k, top-p, stop tokens.

Each row draws from its own named seed stream on the CPU, one number a token, so a row's text depends on the seed, its
index and its prompt alone: neither on the batch around it, nor on when other rows stop, nor on the device's generator.

Source: Fan et al. 2018 (arXiv:1805.04833) for top-k; Holtzman et al. 2020 (arXiv:1904.09751) for top-p.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention.dape import Implementation
from ..config import Config
from ..errors import ConfigError, ShapeError
from ..rng import check_seed, torch_stream
from .decoder import Decoder, first_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig(Config):
    """How the next token is chosen.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: keep the k likeliest tokens; None keeps all.
        top_p: then keep the fewest tokens whose probabilities reach p, in (0, 1]; None keeps all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(
                f"temperature={self.temperature}, expected a finite number from 0", hint="0 is greedy, 0.8 is usual"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k={self.top_k}, expected at least 1", hint="leave it out to keep every token")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p}, expected in (0, 1]", hint="0.9 is usual; leave it out to keep all")


@dataclass(frozen=True, slots=True)
class Step:
    """One new token for every row.

    Attributes:
        index: 0 for the first new token.
        tokens: int64 (B,) on the CPU; a row that had already stopped repeats ``pad_id``.
        running: bool (B,) on the CPU: rows that will get another token.
    """

    index: int
    tokens: Tensor
    running: Tensor


def next_probabilities(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """Return the probabilities (B, V), fp64 on the CPU, that a next token is drawn with; temperature above 0.

    Args:
        logits: (B, V).
        sampling: temperature, then top-k, then top-p on what top-k left. Of equal logits the lower id is kept.
    """
    scaled = logits.double().cpu() / sampling.temperature
    order = scaled.argsort(dim=-1, descending=True, stable=True)
    sorted_probabilities = scaled.gather(-1, order).softmax(-1)
    if sampling.top_k is not None:
        sorted_probabilities[:, sampling.top_k :] = 0
        sorted_probabilities /= sorted_probabilities.sum(-1, keepdim=True)
    if sampling.top_p is not None:
        before = sorted_probabilities.cumsum(-1) - sorted_probabilities
        sorted_probabilities[before >= sampling.top_p] = 0
        sorted_probabilities /= sorted_probabilities.sum(-1, keepdim=True)
    return torch.zeros_like(scaled).scatter_(-1, order, sorted_probabilities)


def choose(logits: Tensor, sampling: SamplingConfig, numbers: Tensor) -> Tensor:
    """Return the next tokens, int64 (B,) on the CPU.

    Args:
        logits: (B, V).
        sampling: see there.
        numbers: fp64 (B,) uniform in [0, 1), inverted through the cumulative probabilities; unused when greedy.
    """
    if sampling.temperature == 0:
        return logits.float().argmax(-1).cpu()
    heights = next_probabilities(logits, sampling).cumsum(-1)
    chosen = torch.searchsorted(heights, (numbers * heights[:, -1])[:, None], right=True)[:, 0]
    return chosen.clamp(max=logits.shape[-1] - 1)


def stream(
    model: Decoder,
    ids: Tensor,
    *,
    mask: Tensor | None = None,
    max_new_tokens: int = 64,
    max_length: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    pad_id: int | None = None,
    impl: Implementation = "auto",
) -> Iterator[Step]:
    """Yield one :class:`Step` a token until every row has stopped or the limit is reached.

    Arguments and errors are :func:`generate`'s; errors are raised here, before the first step is asked for.
    """
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    check_seed(seed)
    ids, mask = _checked_prompts(model, ids, mask)
    stops = _checked_ids(model, "stop_ids", stop_ids)
    pad = _checked_ids(model, "pad_id", [pad_id])[0] if pad_id is not None else (stops[0] if stops else 0)
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens={max_new_tokens}, expected at least 1", hint="64 is the default")
    if max_length is not None:
        if max_length <= ids.shape[1]:
            raise ConfigError(
                f"max_length={max_length} leaves no room after prompts of {ids.shape[1]} tokens",
                hint="max_length counts the prompt; raise it or use max_new_tokens",
            )
        max_new_tokens = min(max_new_tokens, max_length - ids.shape[1])
    return _stream(model, ids, mask, max_new_tokens, sampling, seed, stops, pad, impl)


@torch.no_grad()  # not inference mode: tables that a scheme caches on the way must stay usable in training
def _stream(
    model: Decoder,
    ids: Tensor,
    mask: Tensor | None,
    limit: int,
    sampling: SamplingConfig,
    seed: int,
    stops: list[int],
    pad: int,
    impl: Implementation,
) -> Iterator[Step]:
    rows, device = ids.shape[0], model.device
    generators = [torch_stream(seed, "generate", row) for row in range(rows)]
    stop_table = torch.tensor(stops, dtype=torch.int64)
    cache = model.new_cache(rows, capacity=ids.shape[1] + min(limit, 256))
    running = torch.ones(rows, dtype=torch.bool)
    new = ids.to(device)
    new_mask = None if mask is None else mask.to(device)
    for index in range(limit):
        training = model.training
        model.eval()
        try:
            states = model.states(new, mask=new_mask if index == 0 else None, cache=cache, impl=impl)
            logits = model.unembed(states[:, -1])
        finally:
            model.train(training)
        numbers = torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])
        tokens = torch.where(running, choose(logits, sampling, numbers), pad)
        running = running & ~torch.isin(tokens, stop_table)
        yield Step(index, tokens, running.clone())
        if not running.any():
            return
        new = tokens[:, None].to(device)


def generate(
    model: Decoder,
    ids: Tensor,
    *,
    mask: Tensor | None = None,
    max_new_tokens: int = 64,
    max_length: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    pad_id: int | None = None,
    on_token: Callable[[Step], object] | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    """Return prompts and what follows, int64 (B, T + new tokens) on the CPU.

    Args:
        model: is run in eval mode, with a key/value cache.
        ids: int64 (B, T), the prompts.
        mask: bool (B, T), True for a real token. Shorter prompts are padded on the left (:func:`pad_left`).
        max_new_tokens: at most so many new tokens.
        max_length: at most so many tokens with the prompt and its padding.
        temperature, top_k, top_p: see :class:`SamplingConfig`; temperature 0 is greedy.
        seed: in [0, 2**63).
        stop_ids: a row ends with the first of these, which is kept.
        pad_id: fills rows that ended before others; by default the first of ``stop_ids``.
        on_token: called after each token; raise from it to stop early, or use :func:`stream`.
        impl: of the attention.

    Raises:
        ConfigError: for a setting outside its range.
        ShapeError: for an empty prompt, ids outside the vocabulary, or padding that is not on the left.
    """
    steps = stream(
        model,
        ids,
        mask=mask,
        max_new_tokens=max_new_tokens,
        max_length=max_length,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_ids=stop_ids,
        pad_id=pad_id,
        impl=impl,
    )
    columns = []
    for step in steps:
        columns.append(step.tokens)
        if on_token is not None:
            on_token(step)
    return torch.cat([ids.cpu(), torch.stack(columns, dim=1)], dim=1)


def pad_left(prompts: Sequence[Sequence[int]], *, pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """Return ids, int64 (B, T), and mask, bool (B, T), of prompts of different lengths.

    Raises:
        ShapeError: if there is no prompt or one is empty.
    """
    if not prompts or not all(prompts):
        raise ShapeError("a prompt has no tokens", hint="start with a separator token or a space")
    length = max(map(len, prompts))
    ids = torch.full((len(prompts), length), pad_id, dtype=torch.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[length - len(prompt) :] = torch.as_tensor(list(prompt), dtype=torch.int64)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return ids, torch.arange(length) >= length - lengths[:, None]


def _checked_prompts(model: Decoder, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if ids.ndim != 2 or ids.is_floating_point() or not ids.numel():
        raise ShapeError(
            f"prompts are {ids.dtype} {tuple(ids.shape)}, expected int64 (B, T) with at least one token each",
            hint="start with a separator token or a space",
        )
    if mask is not None:
        mask = mask.bool()
        if mask.shape != ids.shape:
            raise ShapeError(f"mask is {tuple(mask.shape)}, prompts are {tuple(ids.shape)}", hint="use pad_left")
        if not mask.any(1).all():
            row = int((~mask.any(1)).nonzero()[0])
            raise ShapeError(f"prompt {row} has no tokens", hint="start with a separator token or a space")
        if not (mask.sum(1) == mask.shape[1] - first_tokens(mask)).all():
            raise ShapeError("padding is not on the left only", hint="use pad_left")
        ids = ids.masked_fill(~mask, 0)  # a pad id may lie outside the vocabulary
        mask = None if bool(mask.all()) else mask
    _checked_ids(model, "prompts", [int(ids.min()), int(ids.max())])
    return ids, mask


def _checked_ids(model: Decoder, name: str, ids: Sequence[int]) -> list[int]:
    for value in ids:
        if not 0 <= value < model.config.vocab_size:
            raise ShapeError(
                f"{name} hold {value}, the vocabulary runs from 0 to {model.config.vocab_size - 1}",
                hint="the text was encoded by another tokenizer",
            )
    return [int(value) for value in ids]
