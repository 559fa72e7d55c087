"""Train the tokenizer and the painter's text encoder on the world's captions and phrases.

Four objectives, whose heads are dropped when the encoder is saved:

- *slots*: queries that attend once over a caption's states name every attribute of the k-th mentioned character, and
  the scene's background and style (:mod:`.readout`);
- *phrase*: a linear map of the mean state of a one-character phrase names every attribute, those not said included;
- *denoising*: masked tokens are guessed with the embedding as output layer;
- *alignment*: an English and a Chinese phrase that say the same have the same mean state.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..language.encoder import PRESETS, TextEncoder, TextEncoderConfig
from ..language.tokenizer import MASK, PAD, Tokenizer
from ..rng import check_seed, numpy_stream
from ..training import FitConfig
from ..world.captions import CaptionSplit
from ..world.sample import Split
from .readout import CHARACTER_ATTRIBUTES, NUM_CLASSES, SCENE_ATTRIBUTES, SlotReadout, attribute_losses, predicted
from .text_corpus import LANGUAGES, TextCorpus, UnknownWords, make_corpus, pad_ids

NAME = "text"
CHUNKS = 3
"""Parts of a batch, by length: each is padded to its own longest text."""
MASKED_SHARE = 0.15
UNKNOWN_FROM, UNKNOWN_FULL = 1500, 2100
"""Steps. Earlier, unknown words delay the point where the encoder finds out which attribute is whose."""


class TextTraining(nn.Module):
    """The encoder and the heads that teach it."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.encoder = TextEncoder(config)
        self.readout = SlotReadout(config.hidden_size)
        self.phrase = nn.Linear(config.hidden_size, sum(NUM_CLASSES[name] for name in CHARACTER_ATTRIBUTES))

    def guess(self, states: Tensor) -> Tensor:
        """Return logits over the vocabulary."""
        return F.linear(states, self.encoder.embedding.weight) * self.encoder.config.hidden_size**-0.5


class TextRecipe:
    """Captions and phrases in both languages; see the module.

    Args:
        seed: of the corpus and of what each step takes from it.
        preset: of the encoder; its vocabulary size is an upper bound.
        num_captions, num_phrases: size of the corpus: captions in all, and phrases a language.
        batch_size: captions a step.
        phrase_pairs: phrases a step and language.
        unknown_words: share of texts into which words that mean nothing are put, once binding has been learned: from
            :data:`UNKNOWN_FROM` on, rising to this share at :data:`UNKNOWN_FULL`.
    """

    name = NAME
    fit = FitConfig(
        learning_rate=2e-3,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        warmup_steps=100,
        ema_decay=0.998,
        bf16=True,
        default_minutes=12,
        decay_share=0.4,
        log_every=50,
    )
    weights: ClassVar[dict[str, float]] = {
        "slots": 1.0, "scene": 0.3, "phrase": 0.5, "denoising": 0.05, "alignment": 0.1,
    }  # fmt: skip

    def __init__(
        self,
        *,
        seed: int = 0,
        preset: str = "embedded",
        num_captions: int = 60_000,
        num_phrases: int = 20_000,
        batch_size: int = 64,
        phrase_pairs: int = 24,
        unknown_words: float = 0.4,
    ) -> None:
        self.seed = check_seed(seed)
        self.model = PRESETS[preset]
        self.num_captions, self.num_phrases = num_captions, num_phrases
        self.batch_size, self.phrase_pairs = batch_size, phrase_pairs
        self.unknown_words = unknown_words

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "num_captions": self.num_captions,
            "num_phrases": self.num_phrases,
            "batch_size": self.batch_size,
            "phrase_pairs": self.phrase_pairs,
            "unknown_words": self.unknown_words,
            "weights": self.weights,
        }

    @cached_property
    def _made(self) -> tuple[TextCorpus, Tokenizer]:
        model = self.model
        return make_corpus(
            self.seed, self.num_captions, self.num_phrases, model.max_length, vocab_size=model.vocab_size
        )

    @property
    def corpus(self) -> TextCorpus:
        return self._made[0]

    @property
    def tokenizer(self) -> Tokenizer:
        """Trained on the corpus: the same seed gives the same one."""
        return self._made[1]

    @cached_property
    def _unknown(self) -> UnknownWords:
        return UnknownWords(self.tokenizer)

    def unknown_share(self, step: int) -> float:
        """Return the share of texts with unknown words in a step's batch."""
        return self.unknown_words * min(1.0, max(0.0, (step - UNKNOWN_FROM) / (UNKNOWN_FULL - UNKNOWN_FROM)))

    def _varied(self, ids: NDArray[np.int16], share: float, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return rows (N, L), a share of them with unknown words put in, trimmed to the longest."""
        limit = self.model.max_length - 1
        rows = [row[: (row != PAD).sum() - 1].tolist() for row in ids]
        rows = [
            self._unknown(row, rng, limit) if change else row
            for row, change in zip(rows, rng.random(len(rows)) < share, strict=True)
        ]
        return pad_ids(rows, max(len(row) for row in rows) + 1).astype(np.int64)

    def build(self) -> TextTraining:
        return TextTraining(self.model.replace(vocab_size=self.tokenizer.vocab_size))

    def batch(self, step: int) -> dict[str, Any]:
        """Return chunks of captions (shortest first) and phrase pairs, with their labels."""
        rng, corpus = numpy_stream(self.seed, NAME, "batch", step), self.corpus
        rows = rng.integers(len(corpus.captions), size=self.batch_size)
        captions = self._varied(corpus.captions[rows], self.unknown_share(step), rng)
        lengths = (captions != PAD).sum(1)
        masked = np.zeros(self.batch_size, bool)
        masked[::5] = True
        order = np.argsort(lengths, kind="stable")
        chunks = []
        for part in np.array_split(order, CHUNKS):
            ids = captions[part, : lengths[part].max()]
            hidden = (rng.random(ids.shape) < MASKED_SHARE) & (ids > MASK) & masked[part][:, None]
            chunks.append(
                {
                    "ids": torch.from_numpy(np.where(hidden, MASK, ids)),
                    "targets": torch.from_numpy(ids),
                    "hidden": torch.from_numpy(hidden),
                    "read": torch.from_numpy(~masked[part]),
                    "slots": torch.from_numpy(corpus.slots[rows[part]].astype(np.int64)),
                    "scene": torch.from_numpy(corpus.scenes[rows[part]].astype(np.int64)),
                }
            )
        pairs = rng.integers(len(corpus.phrases), size=self.phrase_pairs)
        phrases = self._varied(
            corpus.phrases[pairs].reshape(2 * self.phrase_pairs, -1), self.unknown_share(step), rng
        )
        return {
            "captions": chunks,
            "phrases": torch.from_numpy(phrases.reshape(self.phrase_pairs, 2, -1)),
            "phrase_labels": torch.from_numpy(corpus.phrase_labels[pairs].astype(np.int64)),
        }

    def loss(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        assert isinstance(model, TextTraining)
        states, masks, slots, scenes, guesses, targets = [], [], [], [], [], []
        longest = max(chunk["ids"].shape[1] for chunk in batch["captions"])
        for chunk in batch["captions"]:
            mask = chunk["ids"] != PAD
            found = model.encoder(chunk["ids"], mask)
            guesses.append(found[chunk["hidden"]])
            targets.append(chunk["targets"][chunk["hidden"]])
            missing = longest - mask.shape[1]
            states.append(F.pad(found, (0, 0, 0, missing))[chunk["read"]])
            masks.append(F.pad(mask, (0, missing))[chunk["read"]])
            slots.append(chunk["slots"][chunk["read"]])
            scenes.append(chunk["scene"][chunk["read"]])
        terms = model.readout.losses(torch.cat(states), torch.cat(masks), torch.cat(slots), torch.cat(scenes))
        logits, target = model.guess(torch.cat(guesses)).float(), torch.cat(targets)
        terms["denoising"] = F.cross_entropy(logits, target, reduction="sum") / max(1, len(target))
        terms |= self._phrase_terms(model, batch["phrases"], batch["phrase_labels"])
        total = torch.stack([weight * terms[name] for name, weight in self.weights.items()]).sum()
        return {"loss": total, **{name: term.detach() for name, term in terms.items()}}

    @staticmethod
    def _phrase_terms(model: TextTraining, phrases: Tensor, labels: Tensor) -> dict[str, Tensor]:
        mask = phrases.flatten(0, 1) != PAD
        pooled = model.encoder.pool(model.encoder(phrases.flatten(0, 1), mask), mask)  # (2P, D)
        both = labels[:, None].expand(-1, 2, -1).flatten(0, 1)
        english, chinese = pooled.float().unflatten(0, (-1, 2)).unbind(1)
        centre = pooled.detach().float().mean(0)  # what all phrases share is no agreement
        return {
            "phrase": attribute_losses(model.phrase(pooled), both, CHARACTER_ATTRIBUTES).mean(),
            "alignment": (1 - F.cosine_similarity(english - centre, chinese - centre)).mean(),
        }

    @torch.inference_mode()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return accuracies on texts that training never shows, by language.

        ``slots_*`` is the share of mentioned characters of which all attributes are read right, ``slots_COLOUR_*`` and
        so on of which one is; ``phrase_*`` the share of phrases all of whose attributes the linear map reads from the
        mean state. ``paraphrase`` uses templates held out, ``composition`` combinations held out.
        """
        assert isinstance(model, TextTraining)
        model = model.float()
        scores: dict[str, float] = {}
        trials: tuple[tuple[str, CaptionSplit, Split], ...] = (
            ("", "train", "train"),
            ("paraphrase_", "paraphrase", "train"),
            ("composition_", "train", "composition"),
        )
        for purpose, words, split in trials:
            corpus, _ = make_corpus(
                0, 800, 400, self.model.max_length, self.tokenizer, words=words, split=split, purpose=f"fresh {purpose}"
            )
            if split == "train":
                scores |= self._caption_scores(model, corpus, purpose, detailed=not purpose)
            scores |= self._phrase_scores(model, corpus, purpose)
        return scores

    @staticmethod
    def _caption_scores(model: TextTraining, corpus: TextCorpus, purpose: str, detailed: bool) -> dict[str, float]:
        ids = torch.from_numpy(corpus.captions.astype(np.int64)).to(model.encoder.device)
        logits = [model.readout(model.encoder(part, part != PAD), part != PAD) for part in ids.split(100)]
        slots = predicted(torch.cat([part[0] for part in logits]), CHARACTER_ATTRIBUTES).cpu().numpy() == corpus.slots
        scene = predicted(torch.cat([part[1] for part in logits]), SCENE_ATTRIBUTES).cpu().numpy() == corpus.scenes
        there = corpus.slots[..., 1] >= 0
        scores = {}
        for offset, language in enumerate(LANGUAGES):
            right = slots[offset::2][there[offset::2]]
            scores[f"slots_{purpose}{language}"] = float(right.all(-1).mean())
            scores[f"scene_{purpose}{language}"] = float(scene[offset::2].mean())
            if detailed:
                means = right.mean(0)
                scores |= {f"slots_{n}_{language}": float(v) for n, v in zip(CHARACTER_ATTRIBUTES, means, strict=True)}
        return scores

    @staticmethod
    def _phrase_scores(model: TextTraining, corpus: TextCorpus, purpose: str) -> dict[str, float]:
        ids = torch.from_numpy(corpus.phrases.astype(np.int64)).flatten(0, 1).to(model.encoder.device)
        pooled = model.encoder.pool(model.encoder(ids, ids != PAD), ids != PAD)
        right = predicted(model.phrase(pooled), CHARACTER_ATTRIBUTES).cpu().unflatten(0, (-1, 2)).numpy()
        exact = (right == corpus.phrase_labels[:, None]).all(-1).mean(0)
        return {f"phrase_{purpose}{language}": float(v) for language, v in zip(LANGUAGES, exact, strict=True)}

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the encoder, without its heads, and ``tokenizer.json``."""
        assert isinstance(model, TextTraining)
        model.encoder.save_pretrained(folder, dtype=torch.float16)
        self.tokenizer.save(folder)


RECIPE = TextRecipe
