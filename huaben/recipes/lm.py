"""A causal language model on a stream of tokens.

The optimizer is the papers': AdamW with betas 0.9 and 0.95, weight decay 0.1, gradients clipped at 1, a short climb and
a cosine fall to a tenth.

Source: Zheng et al. 2024 (arXiv:2405.14722, arXiv:2410.04798), the released configurations.
Differs: vectors and scalars (norms, biases, Kerple's p and a) do not decay; documents do not see each other.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.dape import Implementation
from ..attention.scheme import SCHEMES, SchemeConfig, scheme_config
from ..errors import ConfigError
from ..language.bytes import TextTokenizer
from ..language.corpus import Corpus, PackedBatches
from ..language.decoder import Decoder, DecoderConfig
from ..training import FitConfig

VALID_WINDOWS = 64
OLD_PREFIX, PREFIX = "dape2-", "v2-"


def named_scheme(name: str, **changes: Any) -> SchemeConfig:
    """Return a scheme by its name in :data:`~huaben.attention.scheme.SCHEMES`; ``dape2-X`` is ``v2-X``.

    Raises:
        ConfigError: for an unknown name, with the nearest known one.
    """
    if name.startswith(OLD_PREFIX) and name not in SCHEMES:
        name = PREFIX + name.removeprefix(OLD_PREFIX)
    return scheme_config(name, **changes)


def lm_fit(*, steps: int | None = None, **changes: Any) -> FitConfig:
    """Return the papers' way to train.

    Args:
        steps: length of the run, if known: the climb takes a hundredth of it.
        changes: to any other field of :class:`~huaben.training.FitConfig`.
    """
    values: dict[str, Any] = {
        "learning_rate": 2e-3,
        "betas": (0.9, 0.95),
        "weight_decay": 0.1,
        "warmup_steps": 50 if steps is None else max(1, min(1000, steps // 100)),
        "grad_clip": 1.0,
        "ema_decay": 0.0,  # the papers average nothing
        "decay": "cosine",
        "decay_share": 1.0,
        "lr_floor": 0.1,
        "log_every": 50,
    }
    return FitConfig(**(values | changes))


class LMRecipe:
    """Windows of a corpus, and the cross-entropy of each next token; see the module.

    Args:
        corpus: to train on.
        tokenizer: the corpus was made with; saved beside the model.
        model: shape of the decoder; its vocabulary must hold the tokenizer's.
        length: tokens a window.
        batch_size: windows a step, over all processes.
        fit: how to train; its seed is also the batches'.
        documents: whether a window's documents are hidden from each other; off, only the stream counts.
        valid: corpus that the finished model is scored on, at the training length.
        impl: of the attention.

    Raises:
        ConfigError: if the parts do not fit.
        DataError: if a corpus is shorter than a window.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: TextTokenizer,
        model: DecoderConfig,
        *,
        length: int = 128,
        batch_size: int = 16,
        fit: FitConfig | None = None,
        documents: bool = True,
        valid: Corpus | None = None,
        impl: Implementation = "auto",
    ) -> None:
        for part in (corpus, valid):
            if part is not None and part.facts.get("tokenizer", tokenizer.fingerprint) != tokenizer.fingerprint:
                raise ConfigError("corpus and tokenizer do not belong together", hint="build the corpus again")
        if model.vocab_size < tokenizer.vocab_size:
            raise ConfigError(
                f"vocab_size={model.vocab_size}, the tokenizer has {tokenizer.vocab_size} ids",
                hint=f"use vocab_size={tokenizer.vocab_size}",
            )
        self.fit = lm_fit() if fit is None else fit
        self.corpus, self.tokenizer, self.model, self.valid = corpus, tokenizer, model, valid
        self.length, self.batch_size, self.documents, self.impl = length, batch_size, documents, impl
        self.batches = PackedBatches(corpus, length=length, batch_size=batch_size, seed=self.fit.seed)
        self.valid_batches = (
            None
            if valid is None
            else PackedBatches(valid, length=length, batch_size=min(VALID_WINDOWS, batch_size), seed=0)
        )
        # A run goes on only with the same data, model and batches: they are part of its name.
        key = json.dumps([model.to_dict(), corpus.fingerprint, length, batch_size, documents], sort_keys=True)
        digest = hashlib.sha256(key.encode()).hexdigest()[:8]
        self.name = f"lm {model.scheme.position} {model.scheme.adapter} {digest}"

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "model": self.model.to_dict(),
            "corpus": dict(self.corpus.facts),
            "length": self.length,
            "batch_size": self.batch_size,
            "documents": self.documents,
        }

    def build(self) -> Decoder:
        return Decoder(self.model)

    def batch(self, step: int) -> dict[str, Any]:
        """Return ``ids`` (B, L + 1), ``documents`` like it or None, and ``count``, the number of targets."""
        return self._batch(*self.batches(step))

    def _batch(self, ids: Tensor, documents: Tensor) -> dict[str, Any]:
        if not self.documents or not documents.any():
            return {"ids": ids, "documents": None, "count": torch.tensor(float(ids[:, 1:].numel()))}
        same = documents[:, 1:] == documents[:, :-1]
        return {"ids": ids, "documents": documents, "count": same.sum().float().clamp(min=1)}

    def share(self, batch: dict[str, Any], rank: int, processes: int) -> dict[str, Any]:
        """Return one process's rows of a batch, scaled so that the mean over processes is the batch's own loss.

        Raises:
            ConfigError: if the rows cannot be divided.
        """
        rows, rest = divmod(len(batch["ids"]), processes)
        if rest:
            raise ConfigError(
                f"batch_size={len(batch['ids'])} cannot be divided among {processes} processes",
                hint=f"use {processes * max(1, rows)}",
            )
        part = slice(rank * rows, (rank + 1) * rows)
        documents = batch["documents"]
        return {
            "ids": batch["ids"][part],
            "documents": None if documents is None else documents[part],
            "count": batch["count"] / processes,
        }

    def loss(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        ids, documents = batch["ids"], batch["documents"]
        inputs, targets = ids[:, :-1], ids[:, 1:]
        if documents is not None:
            targets = targets.masked_fill(documents[:, 1:] != documents[:, :-1], -100)
            documents = documents[:, :-1]
        logits = model(inputs, documents=documents, impl=self.impl)
        total = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
        return {"loss": total / batch["count"]}

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return loss (nats a token), perplexity and bits a byte on windows of the validation corpus."""
        assert isinstance(model, Decoder)
        if self.valid_batches is None:
            return {}
        total, tokens, size = 0.0, 0.0, 0
        steps = math.ceil(min(VALID_WINDOWS, self.valid_batches.windows_per_epoch) / self.valid_batches.batch_size)
        for step in range(steps):
            batch = self._batch(*self.valid_batches(step))
            count = float(batch["count"])
            on_device = {k: v.to(model.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            total += float(self.loss(model, on_device)["loss"]) * count
            tokens += count
            size += sum(len(self.tokenizer.decode_bytes(row)) for row in np.asarray(batch["ids"][:, 1:]))
        mean = total / tokens
        return {
            "valid_loss": mean,
            "valid_perplexity": math.exp(mean),
            "valid_bits_per_byte": total / math.log(2) / max(1, size),
        }

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the decoder and ``tokenizer.json``."""
        assert isinstance(model, Decoder)
        model.save_pretrained(folder)
        self.tokenizer.save(folder)
