"""Associative recall with one attention layer: the sharpest difference between DAPE V2 and every scheme without it.

A string is eight pairs of a key and a value and then one of the keys: which value belonged to it? A value stands one
place after its key, so scores have to move by one key. The convolution of DAPE V2 does that; one layer of plain attention
cannot, whatever its positions, and neither can DAPE V1, whose perceptron sees one key at a time: they guess among the
values shown, which is right a quarter of the time.

Source: Zheng et al. 2024, DAPE V2 (arXiv:2410.04798), the proposition on associative recall without positions.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.scheme import scheme_config
from ..errors import ConfigError
from ..language.sequence_model import SequenceModel, SequenceModelConfig
from ..language.sequence_training import SequenceFit, Trained, build_model, train_steps
from ..rng import numpy_stream
from .experiment import bootstrap

SCHEMES = ("v2-nope", "dape-nope", "nope", "rope")
SYMBOLS = 16
"""Number of keys, and of values."""
PAIRS = 8
TEST_STRINGS = 4096

Strings = npt.NDArray[np.int64]


def run(
    *,
    seed: int = 0,
    schemes: Sequence[str] | str = SCHEMES,
    seeds: int = 3,
    steps: int = 2000,
    batch: int = 128,
    learning_rate: float = 3e-3,
    pairs: int = PAIRS,
) -> dict[str, Any]:
    """Train one layer a scheme and seed, and test it on new strings.

    Args:
        seed: of everything random; run ``i`` uses ``seed + i``.
        schemes: names of :data:`~huaben.attention.scheme.SCHEMES`, or one text with commas.
        seeds: runs a scheme.
        steps, batch, learning_rate: of the training; AdamW, constant rate.
        pairs: pairs a string, at most 16.

    Returns:
        ``schemes``: name -> ``accuracy`` (mean over seeds with its interval), one ``runs`` entry a seed, parameters;
        ``guess``: what the best guess among the values shown scores; and the settings.

    Raises:
        ConfigError: for an unknown scheme or an impossible setting.
    """
    names = schemes.split(",") if isinstance(schemes, str) else list(schemes)
    if seeds < 1 or not names:
        raise ConfigError(f"seeds={seeds} and {len(names)} schemes, expected at least one each", hint="use 3 seeds")
    configs = {name: recall_config(name) for name in names}
    fit = recall_fit(steps, batch, learning_rate)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for index in range(seeds):
        for name, config in configs.items():
            started = time.perf_counter()
            trained = train_recall(config, fit, seed=seed + index, pairs=pairs)
            accuracy = recall_accuracy(trained.model, seed=seed + index, pairs=pairs)
            seconds = time.perf_counter() - started
            loss = float(trained.losses[-100:].mean())
            runs[name].append({"accuracy": accuracy, "loss": round(loss, 4), "seconds": round(seconds, 1)})
            sys.stderr.write(f"recall {name} seed {seed + index}: {100 * accuracy:.1f} % in {seconds:.0f} s\n")
    return {
        "schemes": {
            name: {
                "accuracy": bootstrap([entry["accuracy"] for entry in entries], seed, "recall", name),
                "runs": entries,
                "parameters": build_model(configs[name], seed).num_parameters(),
            }
            for name, entries in runs.items()
        },
        "guess": guess_accuracy(seed=seed, pairs=pairs),
        "pairs": pairs,
        "fit": fit.to_dict(),
        "test_strings": TEST_STRINGS,
    }


def recall_config(scheme: str, **changes: Any) -> SequenceModelConfig:
    """Return one causal attention layer of width 64 with 4 heads and a score adapter of 16, without feed-forward."""
    return SequenceModelConfig(
        input_size=2 * SYMBOLS,
        output_size=SYMBOLS,
        scheme=scheme_config(scheme, hidden=16, train_length=2 * PAIRS + 1),
        **{"width": 64, "layers": 1, "heads": 4, "ffn_ratio": 0, "norm": "pre", **changes},
    )


def recall_fit(steps: int = 2000, batch: int = 128, learning_rate: float = 3e-3) -> SequenceFit:
    """Return plain AdamW with a constant rate."""
    return SequenceFit(
        steps=steps, batch=batch, learning_rate=learning_rate, weight_decay=0.01, warmup_steps=0, decay_share=0.0
    )


def recall_strings(rng: np.random.Generator, batch: int, pairs: int = PAIRS) -> tuple[Strings, Strings]:
    """Draw strings (B, 2 pairs + 1) and their answers (B,).

    Keys are the symbols 0 to 15, each at most once; values 16 to 31, drawn independently; an answer is a value less 16.

    Raises:
        ConfigError: for more pairs than keys.
    """
    if not 1 <= pairs <= SYMBOLS:
        raise ConfigError(f"pairs={pairs}, expected 1 to {SYMBOLS}", hint="every key is used once")
    keys = rng.permuted(np.tile(np.arange(SYMBOLS), (batch, 1)), axis=1)[:, :pairs]
    values = rng.integers(SYMBOLS, size=(batch, pairs))
    asked = rng.integers(pairs, size=(batch, 1))
    shown = np.stack([keys, values + SYMBOLS], axis=2).reshape(batch, 2 * pairs)
    query = np.take_along_axis(keys, asked, axis=1)
    return np.concatenate([shown, query], axis=1), np.take_along_axis(values, asked, axis=1)[:, 0]


def train_recall(config: SequenceModelConfig, fit: SequenceFit, *, seed: int, pairs: int = PAIRS) -> Trained:
    """Train a fresh model; every step draws new strings."""
    model = build_model(config, seed)

    def loss_at(step: int) -> Tensor:
        strings, answers = recall_strings(numpy_stream(seed, "recall", "train", step), fit.batch, pairs)
        return F.cross_entropy(model(torch.from_numpy(strings), last=1)[:, 0], torch.from_numpy(answers))

    return train_steps(model, loss_at, fit, seed=seed)


@torch.no_grad()
def recall_accuracy(model: SequenceModel, *, seed: int, pairs: int = PAIRS, strings: int = TEST_STRINGS) -> float:
    """Return the share of new strings that are answered rightly."""
    shown, answers = recall_strings(numpy_stream(seed, "recall", "test"), strings, pairs)
    said = [model(part, last=1)[:, 0].argmax(-1) for part in torch.from_numpy(shown).split(512)]
    return float((torch.cat(said).numpy() == answers).mean())


def guess_accuracy(*, seed: int, pairs: int = PAIRS, strings: int = TEST_STRINGS) -> float:
    """Return the share that answering with the value shown most often gets right."""
    shown, answers = recall_strings(numpy_stream(seed, "recall", "test"), strings, pairs)
    counts = (shown[:, 1:-1:2, None] == np.arange(SYMBOLS) + SYMBOLS).sum(1)  # (B, values)
    return float((counts.argmax(1) == answers).mean())
