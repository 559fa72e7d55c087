"""How well a language model predicts the same tokens with more and more context before them.

Fixed target windows are drawn once from the documents; every length T shows the model the T tokens before a window's
last token and scores the last of them. So a difference between two lengths is the context's, never the text's. The
states of the context are computed exactly, by one forward pass a window and length, but for nothing that is not needed:
no logits, and in the last layer no queries of the context.

Source: Zheng et al. 2024 (arXiv:2405.14722), section 4: perplexity of the last 256 tokens (all of them at T = 128) of
sequences of length T. Differs: there each length scores other text, here all score the same; intervals are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..attention.dape import Implementation
from ..attention.scheme import Scheme
from ..errors import ConfigError, DataError
from ..rng import check_seed, numpy_stream
from .corpus import Corpus
from .decoder import Decoder, DecoderBlock

WINDOWS, SCORED = 256, 256
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
BATCH_TOKENS = 8192
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over independent windows with its 95 % bootstrap interval.

    Attributes:
        mean, low, high: of the quantity.
        n: number of windows.
    """

    mean: float
    low: float
    high: float
    n: int

    def to_dict(self, digits: int = 4) -> dict[str, Any]:
        return {
            "mean": round(self.mean, digits),
            "low": round(self.low, digits),
            "high": round(self.high, digits),
            "n": self.n,
        }

    def exp(self) -> Interval:
        """Return the interval of the exponential: perplexity of a loss."""
        return Interval(math.exp(self.mean), math.exp(self.low), math.exp(self.high), self.n)


def mean_interval(values: NDArray[Any] | Sequence[float], seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Return mean and bootstrap interval of one number a window; equal seeds draw the same windows.

    Raises:
        DataError: without a value.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise DataError(f"values of shape {array.shape}", hint="pass one number a window")
    rng = numpy_stream(check_seed(seed), "mean interval", array.size)
    means = array[rng.integers(0, array.size, (resamples, array.size))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(array.mean()), float(low), float(high), int(array.size))


@dataclass(frozen=True, slots=True)
class LengthScore:
    """One length.

    Attributes:
        length: T, the tokens the model saw.
        losses: nats of each scored token, float64 (windows, scored); the last column is the window's last token.
    """

    length: int
    losses: NDArray[np.float64]

    @property
    def scored(self) -> int:
        return int(self.losses.shape[1])

    def loss(self, last: int | None = None, seed: int = 0) -> Interval:
        """Return the mean loss of the last ``last`` tokens (all scored ones if None) over windows."""
        return mean_interval(self.losses[:, -(last or self.scored) :].mean(1), seed)

    def perplexity(self, last: int | None = None, seed: int = 0) -> Interval:
        """Return the exponential of :meth:`loss`."""
        return self.loss(last, seed).exp()


@dataclass(frozen=True, slots=True)
class Extrapolation:
    """Scores of one model at several lengths.

    Attributes:
        ends: position behind each window's last token in the corpus, int64 (windows,).
        scores: in order of length.
    """

    ends: NDArray[np.int64]
    scores: tuple[LengthScore, ...]

    @property
    def shared(self) -> int:
        """Number of tokens a window that every length scores."""
        return min(score.scored for score in self.scores)

    def to_dict(self, seed: int = 0) -> dict[str, Any]:
        """Return JSON values: by length, loss and perplexity of the tokens that all lengths score, and of all scored."""
        return {
            "windows": len(self.ends),
            "shared": self.shared,
            "lengths": {
                str(score.length): {
                    "loss": score.loss(self.shared, seed).to_dict(),
                    "perplexity": score.perplexity(self.shared, seed).to_dict(),
                    "scored": score.scored,
                    "perplexity_scored": score.perplexity(None, seed).to_dict(),
                }
                for score in self.scores
            },
        }


def check_lengths(lengths: Sequence[int]) -> tuple[int, ...]:
    """Return lengths in order, each once; raises ConfigError if there is none or one is below 1."""
    found = tuple(sorted(set(lengths)))
    if not found or found[0] < 1:
        raise ConfigError(f"lengths={list(lengths)}, expected numbers from 1", hint="use 128,256,512")
    return found


def target_windows(
    corpus: Corpus,
    *,
    windows: int = WINDOWS,
    longest: int = LENGTHS[-1],
    scored: int = SCORED,
    seed: int = 0,
    within_documents: bool = True,
) -> NDArray[np.int64]:
    """Draw the windows that every length is scored on, without overlap.

    Args:
        corpus: to draw from.
        windows: how many.
        longest: tokens of context before each window's last token.
        scored: tokens a window.
        seed: of the draw.
        within_documents: whether the longest context must lie in the window's own document. Off, the stream counts as
            one document: for texts that are shorter than ``longest``.

    Returns:
        The position behind each window's last token, int64 (windows,), rising.

    Raises:
        ConfigError: for an impossible number.
        DataError: if the corpus has too few such windows.
    """
    if windows < 1 or scored < 1 or longest < 1:
        raise ConfigError(
            f"windows={windows}, scored={scored}, longest={longest}: nothing to score", hint="use 256, 256 and 8192"
        )
    borders = corpus.starts if within_documents else np.asarray([0, len(corpus) + 1])
    slots = [  # a window's last token is not <eos>; its first context token is in the document
        np.arange(first + longest + 1, behind, scored)
        for first, behind in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True)
    ]
    ends = np.concatenate(slots)
    if len(ends) < windows:
        raise DataError(
            f"found {len(ends)} windows of {scored} tokens with {longest} tokens before their end, expected {windows}",
            hint="ask for fewer windows or a shorter length, or add longer documents",
        )
    chosen = numpy_stream(seed, "target windows").choice(len(ends), windows, replace=False)
    return np.sort(ends[chosen]).astype(np.int64)


def last_states(model: Decoder, ids: Tensor, count: int, *, impl: Implementation = "auto") -> Tensor:
    """Return the final states (B, count, D) of the last tokens of ``ids`` (B, T): what ``model.states`` gives for them.

    The last layer computes keys and values of all tokens, but queries of these alone.
    """
    if count >= ids.shape[1]:
        return model.states(ids, impl=impl)
    tokens = model._tokens(0, ids.shape[1], None, None, impl, ids.device)
    skipped = ids.shape[1] - count
    x = model.embedding(ids)
    for layer, block in enumerate(model.blocks[:-1]):
        x = block(x, tokens, model.schemes[layer % len(model.schemes)], None, layer)
    block = cast(DecoderBlock, model.blocks[-1])
    scheme = cast(Scheme, model.schemes[-1])
    attention = block.attention
    q, k, v = (
        attention.qkv(block.attention_norm(x))
        .unflatten(-1, (-1, attention.head_dim))
        .transpose(1, 2)
        .split([attention.heads, attention.kv_heads, attention.kv_heads], dim=1)
    )  # (B, H, T, d), (B, G, T, d) twice
    q = scheme.rotate(q[:, :, skipped:], tokens.positions[skipped:])
    k = scheme.rotate(k, tokens.positions)
    y = scheme(q, k, v, causal=True, q_offset=skipped, impl=impl)
    x = x[:, skipped:] + attention.out(y.transpose(1, 2).flatten(2))
    return model.norm(x + block.ffn(block.ffn_norm(x)))


@torch.no_grad()
def score_length(
    model: Decoder,
    corpus: Corpus,
    ends: NDArray[np.int64],
    length: int,
    *,
    scored: int = SCORED,
    batch_tokens: int = BATCH_TOKENS,
    impl: Implementation = "auto",
    bf16: bool = False,
    on_window: Callable[[int], object] | None = None,
) -> LengthScore:
    """Score every window with ``length`` tokens of context, its own included.

    Args:
        model: is run in eval mode on its device.
        corpus: the windows are in.
        ends: from :func:`target_windows`.
        length: T.
        scored: tokens a window; all of them if T is shorter.
        batch_tokens: tokens computed at once: ``batch_tokens // length`` windows, at least one.
        impl: of the attention; "auto" needs memory in proportion to T wherever T is long.
        bf16: compute under bfloat16 autocast.
        on_window: called with the number of windows done; may raise to stop.

    Raises:
        DataError: if a window has fewer than ``length`` tokens before its end, or the model's vocabulary is too small.
    """
    if length < 1 or scored < 1 or batch_tokens < 1:
        raise ConfigError(f"length={length}, scored={scored}, batch_tokens={batch_tokens}", hint="all are at least 1")
    if len(ends) and int(ends.min()) < length + 1:
        raise DataError(
            f"a window ends at token {int(ends.min())}, length {length} needs {length + 1}",
            hint="draw the windows with longest= the longest length",
        )
    known = int(corpus.facts.get("vocab_size", 0))
    if known > model.config.vocab_size:
        raise DataError(
            f"the corpus has a vocabulary of {known}, the model one of {model.config.vocab_size}",
            hint="build the corpus with the model's own tokenizer",
        )
    count = min(scored, length)
    rows = max(1, batch_tokens // length)
    found: list[NDArray[np.float64]] = []
    training = model.training
    model.eval()
    try:
        for first in range(0, len(ends), rows):
            part = ends[first : first + rows]
            ids = torch.from_numpy(corpus.slices(part - length - 1, length + 1)).to(model.device)
            with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16):
                logits = model.unembed(last_states(model, ids[:, :-1], count, impl=impl))
            targets = ids[:, -count:]
            losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
            found.append(losses.view(len(part), count).double().cpu().numpy())
            if on_window is not None:
                on_window(first + len(part))
    finally:
        model.train(training)
    return LengthScore(length, np.concatenate(found) if found else np.empty((0, count)))


def evaluate_lengths(
    model: Decoder,
    corpus: Corpus,
    *,
    lengths: Sequence[int] = LENGTHS,
    windows: int = WINDOWS,
    scored: int = SCORED,
    seed: int = 0,
    within_documents: bool = True,
    batch_tokens: int = BATCH_TOKENS,
    impl: Implementation = "auto",
    bf16: bool = False,
    on_progress: Callable[[int, int], object] | None = None,
) -> Extrapolation:
    """Score a model at every length on the same windows.

    Args:
        model: on its device.
        corpus: to draw windows from, made with the model's tokenizer.
        lengths: tokens of context, the scored ones included.
        windows, scored, seed, within_documents: see :func:`target_windows`.
        batch_tokens, impl, bf16: see :func:`score_length`.
        on_progress: called with length and windows done; may raise to stop.

    Raises:
        ConfigError: for an impossible length.
        DataError: if the corpus has too few windows with the longest context.
    """
    wanted = check_lengths(lengths)
    ends = target_windows(
        corpus,
        windows=windows,
        longest=wanted[-1],
        scored=min(scored, wanted[-1]),
        seed=seed,
        within_documents=within_documents,
    )

    def report(length: int) -> Callable[[int], object] | None:
        return None if on_progress is None else lambda done: on_progress(length, done)

    scores = tuple(
        score_length(
            model,
            corpus,
            ends,
            length,
            scored=scored,
            batch_tokens=batch_tokens,
            impl=impl,
            bf16=bf16,
            on_window=report(length),
        )
        for length in wanted
    )
    return Extrapolation(ends, scores)
