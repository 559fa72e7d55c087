"""Does HELIP improve a converged bilingual CLIP on real pictures? Every arm beside plain continued training.

A base model is trained on emoji with names and keywords in English and Chinese, then continued for a tenth of its steps:
plainly, with random partners, with mined hard pairs in the batches (HPM), with the margin loss (HNML), with both, and
with the margin loss on random partners. All arms of a pair (base, continuation) share the weights they begin with, the
schedule (restarted), the number of pictures and captions seen, and the code; the comparison is paired.

*Trained concepts* are judged on new views of the training pictures, *held-out concepts* on pictures that no model saw.
Runs are kept one by one in ``cache``: a measurement that was stopped goes on, several processes share the work.

Source: Wang et al. 2025 (arXiv:2305.05208). Differs: a model of minutes on one core, mined by its own features.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..clip.dataset import ArrayPairs, Caption
from ..clip.dual_encoder import (
    DualEncoder,
    HuabenDualEncoder,
    encode_all_images,
    encode_all_texts,
    load_dual_encoder,
)
from ..clip.hard_pairs import HardPairs
from ..clip.loss import contrastive_loss
from ..clip.margin import MarginConfig, hard_negative_margin_loss
from ..clip.mining import mine_hard_pairs
from ..clip.model import Clip, ClipConfig
from ..clip.retrieval import retrieval
from ..clip.zero_shot import zero_shot
from ..errors import ConfigError, DataError, StoreError, UsageError
from ..files import folder_lock, write_bytes
from ..language.tokenizer import Tokenizer
from ..optional import is_available, require
from ..recipes.helip import HelipRecipe, HelipTraining, helip_fit
from ..rng import numpy_stream, stream_seed
from ..training import CARD_NAME, FINAL_NAME, METRICS_NAME, FitConfig, fit
from .emoji_pairs import LANGUAGES, TEMPLATES, Emoji, fingerprint, read_emoji, split_concepts, view
from .experiment import bootstrap, interval

DATA = "../shared/data/emoji/emoji.parquet"
VERSION = 1
"""Raised when runs kept earlier no longer mean the same."""
PLAIN, HPM, HELIP, RANDOM_MARGIN, BASE = "plain", "hpm", "helip", "random+hnml", "base"
POOLS = ("seen", "held")
WAYS = ("image_to_text", "text_to_image")
MINING_VIEWS = 4
ALARM_STEPS = 50
WAIT_S = 1.0


@dataclass(frozen=True)
class Arm:
    """How a base is continued.

    Attributes:
        about: what it is, for the results.
        partners: "mined", "random" or "none"; "chance" takes plain batches and lets the margin loss use the mined pairs
            that happen to be in them.
        gamma: weight of the margin loss; 0 leaves it out.
        k: length of the mined lists.
        p: partners for each seed.
        candidates: size of FastHPM's random subset; None mines exactly.
        margin: other settings of the margin loss.
    """

    about: str
    partners: str = "none"
    gamma: float = 0.0
    k: int = 10
    p: int = 1
    candidates: int | None = None
    margin: Mapping[str, Any] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Return what decides a run."""
        mined = self.partners in ("mined", "chance")
        return {
            "partners": self.partners,
            "gamma": self.gamma,
            "k": self.k if mined else None,
            "p": self.p if self.partners in ("mined", "random") else None,
            "candidates": self.candidates if mined else None,
            "margin": dict(self.margin) if self.gamma else None,
        }


def main_arms(k: int, gamma: float, harder: tuple[int, int] | None = None) -> dict[str, Arm]:
    """Return the arms of the main table.

    Args:
        k, gamma: of all arms, with one partner a seed.
        harder: k and p of two more arms, chosen on a base of another seed that is not reported, after the ablation of p
            had shown where to look; None leaves them out.
    """
    found = {
        PLAIN: Arm("continued training, restarted schedule"),
        "random": Arm("random partners in the batches, contrastive loss only", "random"),
        HPM: Arm("mined hard pairs in the batches, contrastive loss only", "mined", k=k),
        "hnml": Arm(
            "plain batches, and the margin loss wherever a batch happens to hold mined hard pairs of a row",
            "chance", gamma, k=k,
        ),
        HELIP: Arm("mined hard pairs in the batches, and the margin loss", "mined", gamma, k=k),
        RANDOM_MARGIN: Arm("random partners, and the margin loss as if they were hard", "random", gamma),
    }  # fmt: skip
    if harder is not None:
        size, p = harder
        said = "fewer seeds with more hard pairs each: suggested by the ablation of p, chosen on a base that is not reported"
        found[f"{HPM}-harder"] = Arm(f"{said}; contrastive loss only", "mined", k=size, p=p)
        found[f"{HELIP}-harder"] = Arm(f"{said}; and the margin loss", "mined", gamma, k=size, p=p)
    return found


def ablation_arms(k: int, gamma: float, pairs: int) -> dict[str, dict[str, Arm]]:
    """Return the arms of each panel by what they vary; the arms with the main table's values are among them.

    Args:
        k, gamma: of the main table.
        pairs: N, for the sizes of candidate sets.
    """
    both = functools.partial(Arm, partners="mined")
    panels: dict[str, dict[str, Arm]] = {
        "k": {f"k={size}": both("", gamma=gamma, k=size) for size in sorted({2, k, 50, 100}) if size < pairs},
        "p": {f"p={count}": both("", gamma=gamma, k=k, p=count) for count in (1, 3, 7) if count <= k},
        "weight": {f"gamma={value:g}": both("", gamma=value, k=k) for value in sorted({0.0, gamma, 1.0, 3.0})},
        "margin": {
            "as main": both("", gamma=gamma, k=k),
            "cosine": both("", gamma=gamma, k=k, margin={"sim": "cosine"}),
            "both ways": both("", gamma=gamma, k=k, margin={"directions": "both"}),
            "by batch": both("", gamma=gamma, k=k, margin={"denom": "batch"}),
            "push only": both("", gamma=gamma, k=k, margin={"detach_margin": True}),
        },
        "candidates": {
            "all" if size is None else f"{size}": both("", gamma=gamma, k=k, candidates=size)
            for size in (max(k + 2, pairs // 10), max(k + 2, pairs // 3), None)
        },
    }
    return panels


class ChanceMargin(HelipRecipe):
    """Plain batches, with the margin loss over rows whose mined hard pairs are in the batch by chance.

    Args:
        lists: (N, k) rows of mined hard pairs, -1 where fewer exist.
        chance_margin: of the margin loss.
        arguments: of :class:`~huaben.recipes.helip.HelipRecipe`, without partners and margin.
    """

    def __init__(self, *arguments: Any, lists: NDArray[np.int64], chance_margin: MarginConfig, **named: Any) -> None:
        super().__init__(*arguments, partners="none", **named)
        self.lists = torch.from_numpy(np.array(lists, dtype=np.int64))
        self.chance_margin = chance_margin

    @property
    def settings(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.lists.numpy().tobytes()).hexdigest()[:12]
        return {**super().settings, "chance_margin": self.chance_margin.to_dict(), "lists": digest}

    def loss(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        assert isinstance(model, HelipTraining)
        out, ids = model.encoder(batch["pixels"], batch["tokens"]), batch["ids"]
        terms = contrastive_loss(out.image_features, out.text_features, out.logit_scale, ids=ids)
        logged = {"contrastive": terms["loss"].detach(), "accuracy": terms["accuracy"]}
        hard = (self.lists[ids][:, :, None] == ids).any(1)  # (B, B)
        seeds = hard.any(1).nonzero().flatten()
        total = terms["loss"]
        if len(seeds):
            found = hard_negative_margin_loss(
                out.image_features, out.text_features, hard[seeds], seeds, ids, self.chance_margin, out.logit_scale
            )
            # Rows without a hard pair in the batch add nothing: the mean is over all rows.
            weighted = self.chance_margin.gamma * found["loss"] * (len(seeds) / len(ids))
            total = total + weighted
            logged |= {
                "margin": weighted.detach(), "margin_raw": found["loss"].detach(), "margin_active": found["active"],
            }  # fmt: skip
        else:
            logged |= {name: torch.zeros(()) for name in ("margin", "margin_raw", "margin_active")}
        logged["seeds"] = torch.tensor(len(seeds) / len(ids))
        return {"loss": total, **logged, "scale": out.logit_scale.detach()}


class Bench:
    """The data of one measurement, and the runs kept for it.

    Args:
        data: Parquet file of :func:`~huaben.bench.emoji_pairs.read_emoji`.
        seed: of the split, the bases and the continuations.
        cache: folder of bases and runs.
        base_steps, base_learning_rate: of a base.
        steps, learning_rate: of a continuation.
        batch_size: pairs a step, everywhere.
        size: side of the pictures that models see, in pixels.
        width, image_layers, text_layers, embedding_size: of the model.
        vocab_size: of the tokenizer, trained on the training captions.
        strength: of the changes that make a view, in training and judging.
        held_share: of the emoji, in whole concepts, that are held out.
        views: fixed views of every picture that judge a model.
        limit: rows of the file; None takes all.
        bf16: whether continuations and bases compute in it.
    """

    def __init__(
        self,
        data: str | Path,
        *,
        seed: int,
        cache: str | Path,
        base_steps: int,
        base_learning_rate: float,
        steps: int,
        learning_rate: float,
        batch_size: int,
        size: int,
        width: int,
        image_layers: int,
        text_layers: int,
        embedding_size: int,
        vocab_size: int,
        strength: float,
        held_share: float,
        views: int,
        limit: int | None,
        bf16: bool,
    ) -> None:
        if min(base_steps, steps, views) < 1:
            raise ConfigError(f"base_steps={base_steps}, steps={steps}, views={views}, expected at least 1 each")
        self.seed, self.cache = seed, Path(cache)
        emoji = read_emoji(data, size + size // 2, limit)
        self.seen, self.held = split_concepts(emoji, held_share, seed)
        self.steps, self.learning_rate, self.batch_size = steps, learning_rate, batch_size
        self.base_steps, self.base_learning_rate = base_steps, base_learning_rate
        self.size, self.views, self.bf16, self.strength = size, views, bf16, strength
        self.vocab_size = vocab_size
        self.model: dict[str, Any] = {
            "text_length": 24,
            "text_hidden_size": width,
            "text_num_layers": text_layers,
            "image_size": size,
            "patch_size": 8,
            "image_hidden_size": width,
            "image_num_layers": image_layers,
            "embedding_size": embedding_size,
        }
        split = [fingerprint(self.seen), fingerprint(self.held)]
        self.base_facts = [
            VERSION, split, self.model, vocab_size, strength, base_steps, base_learning_rate, batch_size, bf16,
        ]  # fmt: skip
        self.run_facts = [self.base_facts, steps, learning_rate, views, MINING_VIEWS]
        self.recipe_name = f"emoji {self.digest(self.base_facts)}"

    @staticmethod
    def digest(facts: Any) -> str:
        return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=5).hexdigest()

    # -- data --------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def pairs(self) -> ArrayPairs:
        """The training pairs; pictures are sheets."""
        captions = [
            tuple(Caption(text, language) for language in LANGUAGES for text in one.captions(language))
            for one in self.seen
        ]
        return ArrayPairs([one.sheet for one in self.seen], captions, [one.key for one in self.seen])

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        texts = [text for one in self.seen for language in LANGUAGES for text in one.captions(language)]
        return Tokenizer.train(texts, vocab_size=self.vocab_size)

    def pool(self, name: str) -> list[Emoji]:
        return self.seen if name == "seen" else self.held

    @functools.lru_cache(maxsize=16)  # noqa: B019  # lives as long as one measurement
    def pictures(self, pool: str, purpose: str, draw: int) -> NDArray[np.uint8]:
        """Return one view of every picture of a pool, the same in every run: (N, size, size, 3)."""
        return np.stack(
            [
                view(one.sheet, numpy_stream(0, "emoji", purpose, draw, one.key), self.size, strength=self.strength)
                for one in self.pool(pool)
            ]
        )

    # -- models ------------------------------------------------------------------------------------------------------

    def augment(self, sheet: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        return view(sheet, rng, self.size, strength=self.strength)

    def base_seed(self, base: int) -> int:
        return stream_seed(self.seed, "emoji", "base", base)

    def new_encoder(self) -> HuabenDualEncoder:
        """Return a model with fresh weights, from torch's random numbers."""
        clip = Clip(ClipConfig(vocab_size=self.tokenizer.vocab_size, **self.model))
        return HuabenDualEncoder(clip, self.tokenizer, name=self.recipe_name)

    def base_folder(self, base: int) -> Path:
        return self.cache / "bases" / f"{base}-{self.digest([self.base_facts, self.base_seed(base)])}"

    def base_ready(self, base: int) -> bool:
        return (self.base_folder(base) / FINAL_NAME / CARD_NAME).is_file()

    def train_base(self, base: int) -> None:
        """Train a base, or go on with it; a finished one stays as it is."""
        if self.base_ready(base):
            return
        seed = self.base_seed(base)
        recipe = HelipRecipe(
            lambda: _seeded(self.new_encoder, seed),
            self.pairs,
            partners="none",
            batch_size=self.batch_size,
            augment=self.augment,
            languages=LANGUAGES,
            fit=FitConfig(
                learning_rate=self.base_learning_rate,
                optimizer="muon",
                betas=(0.95, 0.98),
                weight_decay=0.05,
                warmup_steps=min(100, max(1, self.base_steps // 10)),
                ema_decay=0.0,
                bf16=self.bf16,
                decay="cosine",
                decay_share=0.9,
                lr_floor=0.0,
                checkpoint_every_s=60,
                log_every=50,
                seed=seed,
                prefetch="none",
            ),
            seed=seed,
        )
        fit(recipe, self.base_folder(base), steps=self.base_steps, resume=True, progress=False)

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def base(self, base: int) -> DualEncoder:
        return load_dual_encoder(self.base_folder(base) / FINAL_NAME)

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def features(self, base: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return a base's features of the training pairs: means over views and over both names, of length 1."""
        encoder = self.base(base)
        images = np.mean(
            [encode_all_images(encoder, self.pictures("seen", "mine", draw), 128) for draw in range(MINING_VIEWS)],
            axis=0,
        )
        texts = np.mean([encode_all_texts(encoder, self.names("seen", language)) for language in LANGUAGES], axis=0)
        return _unit(images), _unit(texts)

    def names(self, pool: str, language: str) -> list[str]:
        return [one.names[language] for one in self.pool(pool)]

    def mined(self, base: int, k: int, candidates: int | None = None) -> HardPairs:
        """Return the hard pairs of the training pairs, by a base's own features."""
        images, texts = self.features(base)
        keys, seed = [one.key for one in self.seen], self.base_seed(base)
        if candidates is None:
            return mine_hard_pairs(images, texts, k, method="exact", seed=seed, keys=keys)
        # Subsets are drawn anew every few pairs: one for all would leave most pairs without a chance to be partners.
        every = max(1, len(keys) // 20)
        return mine_hard_pairs(
            images, texts, k, method="fast", candidates=candidates, round_size=every, seed=seed, keys=keys
        )

    def recipe(
        self, base: int, seed: int, arm: Arm, pairs: HardPairs | None = None, *, alarm: bool = False
    ) -> HelipRecipe:
        """Return how an arm continues a base; ``pairs`` instead of the base's own.

        Pairs whose list is shorter than k are partners only.

        The alarm only warns in the runs of the tables; whether it stops training is measured apart (:meth:`alarm`).
        """
        margin = MarginConfig(gamma=arm.gamma, **arm.margin) if arm.gamma else None
        if pairs is None and arm.partners in ("mined", "chance"):
            pairs = self.mined(base, arm.k, arm.candidates)
        arguments: dict[str, Any] = {
            "batch_size": self.batch_size,
            "augment": self.augment,
            "languages": LANGUAGES,
            "fit": helip_fit(
                steps=self.steps, learning_rate=self.learning_rate, weight_decay=0.05, bf16=self.bf16, seed=seed,
                checkpoint_every_s=math.inf, prefetch="none",
            ),
            "seed": seed,
        }  # fmt: skip
        start = functools.partial(self.base, base)
        if arm.partners == "chance":
            assert pairs is not None
            assert margin is not None
            return ChanceMargin(start, self.pairs, lists=pairs.pairs, chance_margin=margin, **arguments)
        return HelipRecipe(
            start,
            self.pairs,
            pairs=pairs if arm.partners == "mined" else None,
            partners=arm.partners,  # type: ignore[arg-type]
            hard_per_seed=arm.p,
            margin=margin,
            drop_outliers=pairs is not None and bool(pairs.outlier.any()),
            alarm=alarm,
            **arguments,
        )

    # -- scores ------------------------------------------------------------------------------------------------------

    def judge(self, encoder: DualEncoder) -> dict[str, dict[str, float]]:
        """Return a model's scores by pool, in percent: recall by direction, language and rank, and zero-shot by name."""
        return {pool: self._judge_pool(encoder, pool) for pool in POOLS}

    def _judge_pool(self, encoder: DualEncoder, pool: str) -> dict[str, float]:
        own = np.arange(len(self.pool(pool)))
        names: dict[str, list[str]] = {language: self.names(pool, language) for language in LANGUAGES}
        texts = {language: encode_all_texts(encoder, names[language]) for language in LANGUAGES}
        views = [encode_all_images(encoder, self.pictures(pool, "judge", draw), 128) for draw in range(self.views)]
        named = zero_shot(
            encoder, np.concatenate(views), np.tile(own, self.views), names, templates=TEMPLATES, ks=(1, 5)
        )
        found = {f"zero_shot_{language}": [100 * named[language]["top1"]] for language in LANGUAGES}
        for images in views:
            for language in LANGUAGES:
                match = retrieval(images, texts[language], own, ks=(1, 5))
                for way in WAYS:
                    for rank in ("r1", "r5"):
                        found.setdefault(f"{way}_{rank}_{language}", []).append(100 * match[way][rank])
        scores = {name: float(np.mean(values)) for name, values in found.items()}

        def mean(*parts: str) -> float:
            return float(np.mean([scores[name] for name in found if all(part in name for part in parts)]))

        scores |= {
            "r1": mean("_r1_"), "r5": mean("_r5_"), "zero_shot": mean("zero_shot"),
            **{f"{way}_r1": mean(way, "_r1_") for way in WAYS},
            **{f"r1_{language}": mean("_r1_", f"_{language}") for language in LANGUAGES},
        }  # fmt: skip
        return {name: round(value, 4) for name, value in sorted(scores.items())}

    # -- runs --------------------------------------------------------------------------------------------------------

    def continue_base(self, base: int, continuation: int, arm: Arm) -> dict[str, Any]:
        """Continue a base and judge the result."""
        seed = stream_seed(self.base_seed(base), "continuation", continuation)
        folder = self.cache / "fits" / f"{base}-{continuation}-{self.digest([self.run_facts, arm.facts()])}"
        shutil.rmtree(folder, ignore_errors=True)
        started = time.process_time()
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always", UserWarning)
            fit(self.recipe(base, seed, arm), folder, steps=self.steps, progress=False)
        spent = time.process_time() - started
        lines = [json.loads(line) for line in (folder / METRICS_NAME).read_text(encoding="utf-8").splitlines()]
        scores = self.judge(load_dual_encoder(folder / FINAL_NAME))
        shutil.rmtree(folder, ignore_errors=True)
        return {
            "arm": arm.facts(),
            "scores": scores,
            "terms": _terms(lines),
            "cpu_seconds": round(spent, 2),
            "warnings": sorted({str(one.message) for one in noted if issubclass(one.category, UserWarning)}),
        }

    def alarm(self, base: int, gamma: float, k: int) -> dict[str, Any]:
        """Return whether training stops: with mined lists, with random partners, with lists that belong to other rows."""
        mined = self.mined(base, k)
        rows = np.arange(len(mined.pairs))
        order = numpy_stream(self.base_seed(base), "emoji", "wrong rows").permutation(len(rows))
        wrong = dataclasses.replace(mined, pairs=_other_rows(mined.pairs, order), keys=None)
        found: dict[str, Any] = {}
        cases = (("mined", "mined", mined), ("random", "random", None), ("wrong rows", "mined", wrong))
        for name, partners, pairs in cases:
            arm = Arm("", partners, gamma, k=k)
            folder = self.cache / "fits" / f"alarm-{base}-{self.digest([self.run_facts, name, gamma, k])}"
            shutil.rmtree(folder, ignore_errors=True)
            said = ""
            with warnings.catch_warnings(record=True) as noted:
                warnings.simplefilter("always", UserWarning)
                try:
                    fit(
                        self.recipe(base, self.base_seed(base), arm, pairs, alarm=True),
                        folder, steps=min(ALARM_STEPS, self.steps), progress=False,
                    )  # fmt: skip
                except DataError as error:
                    said = error.message
            shutil.rmtree(folder, ignore_errors=True)
            found[name] = {"stopped": bool(said), "message": said, "warnings": [str(one.message) for one in noted]}
        return found

    def path(self, kind: str, facts: Any) -> Path:
        return self.cache / "runs" / f"{kind}-{self.digest([self.run_facts, facts])}.json"

    def tasks(
        self, runs: Sequence[tuple[int, int, str, Arm]], bases: int, gamma: float, k: int, alarm: bool
    ) -> dict[str, Task]:
        """Return what must be kept before the results can be written, by name."""
        found: dict[str, Task] = {}
        for base in range(bases):
            seed = self.base_seed(base)
            found[f"base {base}"] = Task(
                self.path(f"{base}-base", [seed]), functools.partial(self._judged_base, base), base, trains=True
            )
        for base, continuation, name, arm in runs:
            facts = [self.base_seed(base), continuation, arm.facts()]
            found[f"{base} {continuation} {name}"] = Task(
                self.path(f"{base}-{continuation}", facts),  # arms of several tables that are the same run once
                functools.partial(self.continue_base, base, continuation, arm),
                base,
            )
        for base in range(bases if alarm else 0):
            facts = [self.base_seed(base), "alarm", gamma, k]
            found[f"{base} alarm"] = Task(
                self.path(f"{base}-alarm", facts), functools.partial(self.alarm, base, gamma, k), base
            )
        return found

    def _judged_base(self, base: int) -> dict[str, Any]:
        self.train_base(base)
        encoder = self.base(base)
        images, texts = self.features(base)
        card = json.loads((self.base_folder(base) / FINAL_NAME / CARD_NAME).read_text(encoding="utf-8"))
        return {
            "scores": self.judge(encoder),
            "terms": card["terms"],
            "parameters": card["parameters"],
            "minutes": card["minutes"],
            "hard": _hardness(images, texts, self.mined(base, 10)),
        }

    def do(self, tasks: Mapping[str, Task], deadline: float) -> dict[str, dict[str, Any]]:
        """Return the records of tasks, done now or before; what another process works on is left to it."""
        done: dict[str, dict[str, Any]] = {}
        while True:
            waiting = False
            for name, task in tasks.items():
                if name in done:
                    continue
                record = task.kept()
                if record is None and time.perf_counter() < deadline:
                    if not task.trains and not self.base_ready(task.base):
                        waiting = True
                        continue
                    with _alone(self.cache / "locks" / task.path.stem) as mine:
                        if not mine:
                            waiting = True
                            continue
                        record = task.kept()
                        if record is None:
                            begun = time.perf_counter()
                            record = task.make()
                            text = json.dumps(record, ensure_ascii=False, sort_keys=True)
                            write_bytes(task.path, text.encode("utf-8"))
                            _say(f"{name}: {_brief(record)} ({time.perf_counter() - begun:.0f} s)")
                if record is not None:
                    done[name] = record
            if not waiting or time.perf_counter() > deadline:
                return done
            time.sleep(WAIT_S)


@dataclass(frozen=True)
class Task:
    """One record: where it is kept, how it is made, and the base it needs (or ``trains``)."""

    path: Path
    make: Callable[[], dict[str, Any]]
    base: int
    trains: bool = False

    def kept(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            record: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path} is not a run: {error}", hint="remove it to run it again") from error
        return record


def run(
    seed: int = 0,
    *,
    data: str = DATA,
    bases: int = 3,
    continuations: int = 2,
    arms: str | Sequence[str] | None = None,
    ablations: bool = False,
    ablation_continuations: int = 1,
    base_steps: int = 1200,
    base_learning_rate: float = 3e-3,
    steps: int = 120,
    learning_rate: float = 3e-4,
    batch_size: int = 128,
    k: int = 10,
    gamma: float = 0.3,
    harder_k: int | None = 10,
    harder_p: int = 7,
    size: int = 32,
    width: int = 96,
    image_layers: int = 3,
    text_layers: int = 1,
    embedding_size: int = 128,
    vocab_size: int = 4000,
    strength: float = 0.6,
    held_share: float = 0.1,
    views: int = 3,
    limit: int | None = None,
    bf16: bool = True,
    cache: str = "runs/hard_pairs_emoji",
    limit_minutes: float | None = None,
) -> dict[str, Any]:
    """Train bases, continue each of them in every arm, and compare.

    Args:
        seed: of everything; other seeds share nothing, so that a protocol can be chosen on one and reported on another.
        data: the emoji file.
        bases: trained from scratch, each with other weights and batches.
        continuations: of each base and arm.
        arms: names from the main table, separated by commas; all by default. "plain" is always among them.
        ablations: vary k, p, weight, kind of margin and candidates, too.
        ablation_continuations: of each base in an ablation.
        base_steps, base_learning_rate: of a base's training.
        steps, learning_rate: of a continuation: a restarted cosine.
        batch_size: pairs a step; partners count.
        k, gamma: of the main table.
        harder_k, harder_p: of its two arms with harder batches; harder_k=null leaves them out.
        size: side of the pictures in pixels.
        width, image_layers, text_layers, embedding_size, vocab_size: of the model.
        strength: of the changes that make a view, from 0 to 1.
        held_share: of the emoji that is held out.
        views: fixed views of each picture that models are judged on.
        limit: rows of the file; all by default.
        bf16: train in bfloat16 autocast.
        cache: folder of bases and runs.
        limit_minutes: begin nothing after so many minutes; None finishes everything.

    Returns:
        ``arms``: by name, mean scores, differences to "plain" (per pair of base and continuation, with intervals over
        pairs and means by base) and training terms; ``alarm``; ``ablations``; and the settings.

    Raises:
        UsageError: for an unknown arm.
        ConfigError: for impossible numbers.
        DataError: if the file cannot be read or holds too little.
    """
    if min(bases, continuations, ablation_continuations) < 1:
        raise ConfigError(
            f"bases={bases}, continuations={continuations}: nothing to compare", hint="use bases=3, continuations=2"
        )
    known = main_arms(k, gamma, None if harder_k is None else (harder_k, harder_p))
    names = list(known) if arms is None else _names(arms)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"unknown arm {', '.join(unknown)}", hint=f"use some of {', '.join(known)}")
    chosen = {name: arm for name, arm in known.items() if name in names or name == PLAIN}
    bench = Bench(
        data, seed=seed, cache=cache, base_steps=base_steps, base_learning_rate=base_learning_rate, steps=steps,
        learning_rate=learning_rate, batch_size=batch_size, size=size, width=width, image_layers=image_layers,
        text_layers=text_layers, embedding_size=embedding_size, vocab_size=vocab_size, strength=strength, held_share=held_share,
        views=views, limit=limit, bf16=bf16,
    )  # fmt: skip
    panels = ablation_arms(k, gamma, len(bench.seen)) if ablations else {}
    # Continuation by continuation, so that a run stopped early has every arm.
    wanted = [
        (base, continuation, name, arm)
        for continuation in range(continuations)
        for base in range(bases)
        for name, arm in chosen.items()
    ]
    varied = [
        (base, continuation, f"{panel}: {name}", arm)
        for continuation in range(ablation_continuations)
        for base in range(bases)
        for panel, some in panels.items()
        for name, arm in some.items()
    ]
    tasks = bench.tasks([*wanted, *varied], bases, gamma, k, RANDOM_MARGIN in chosen)
    deadline = math.inf if limit_minutes is None else time.perf_counter() + 60 * limit_minutes
    records = bench.do(tasks, deadline)
    return {
        **summary(records, chosen, panels, bases, max(continuations, ablation_continuations), seed),
        "missing": [name for name in tasks if name not in records],
        "data": {
            "seen": len(bench.seen),
            "held": len(bench.held),
            "concepts": len({one.concept for one in (*bench.seen, *bench.held)}),
            "fingerprint": [fingerprint(bench.seen), fingerprint(bench.held)],
        },
        "unit": "a pair: one base and one continuation seed; all arms of it begin with the same weights",
        "samples": {"base": base_steps * batch_size, "continuation": steps * batch_size},
        "model": bench.model,
    }


# -- what was found --------------------------------------------------------------------------------------------------

Records = Mapping[str, Mapping[str, Any]]


def summary(
    records: Records,
    chosen: Mapping[str, Arm],
    panels: Mapping[str, Mapping[str, Arm]],
    bases: int,
    continuations: int,
    seed: int,
) -> dict[str, Any]:
    """Return tables of records by name ("base 0", "0 1 helip", "0 1 k: k=50", "0 alarm").

    Args:
        records: what was kept.
        chosen, panels: arms of the main table and of the ablations.
        bases, continuations: how many at most.
        seed: of the bootstrap.
    """
    units = [(base, number) for base in range(bases) for number in range(continuations)]

    def of(name: str) -> dict[tuple[int, int], Mapping[str, Any]]:
        found = {unit: records.get(f"{unit[0]} {unit[1]} {name}") for unit in units}
        return {unit: record for unit, record in found.items() if record is not None}

    plain = of(PLAIN)
    base = {unit: records[f"base {unit[0]}"] for unit in plain if f"base {unit[0]}" in records}
    table = {BASE: {"about": "the base itself, not continued", **_row(base, plain, seed, BASE)}}
    for name, arm in chosen.items():
        table[name] = {"about": arm.about, "settings": arm.facts(), **_row(of(name), plain, seed, name)}
    results: dict[str, Any] = {
        "arms": table,
        "against": {},
        "bases": [dict(records[name]) for name in sorted(records) if name.startswith("base ")],
        "alarm": [records[name] for name in sorted(records) if name.endswith(" alarm")],
        "ablations": {
            panel: {
                name: {"settings": arm.facts(), **_row(of(f"{panel}: {name}"), plain, seed, panel, name)}
                for name, arm in some.items()
            }
            for panel, some in panels.items()
        },
    }
    harder = [(f"{HELIP}-harder", f"{HPM}-harder"), (f"{HELIP}-harder", HELIP)] if f"{HELIP}-harder" in chosen else []
    asked = ((HELIP, HPM), (HPM, "random"), (RANDOM_MARGIN, "random"), (PLAIN, BASE), *harder)
    for left, right in asked:
        first, second = of(left), base if right == BASE else of(right)
        if first.keys() & second.keys():
            results["against"][f"{left} - {right}"] = _differences(first, second, seed, left, right)
    return results


REPORTED = tuple(f"{pool}.{name}" for pool in POOLS for name in ("r1", "r5", "zero_shot"))
"""Scores with an interval for every arm; the first is the primary one."""


def _row(
    runs: Mapping[tuple[int, int], Mapping[str, Any]],
    plain: Mapping[tuple[int, int], Mapping[str, Any]],
    seed: int,
    *names: str,
) -> dict[str, Any]:
    """Return an arm's means, its differences to plain continued training, and what its training looked like."""
    if not runs:
        return {"n": 0}
    every = list(runs.values())
    scores = {
        pool: {
            name: round(float(np.mean([run["scores"][pool][name] for run in every])), 3)
            for name in every[0]["scores"][pool]
        }
        for pool in POOLS
    }
    terms = {
        name: round(float(np.mean([run["terms"][name] for run in every if name in run["terms"]])), 5)
        for name in sorted({name for run in every for name in run["terms"]})
    }
    row = {
        "n": len(every),
        "scores": scores,
        "terms": terms,
        "cpu_seconds": round(float(np.mean([run.get("cpu_seconds", 0.0) for run in every])), 1),
        "warned": sum(bool(run.get("warnings")) for run in every),
    }
    if runs.keys() & plain.keys():
        row["difference"] = _differences(runs, plain, seed, *names)
    return row


def _differences(
    left: Mapping[tuple[int, int], Mapping[str, Any]],
    right: Mapping[tuple[int, int], Mapping[str, Any]],
    seed: int,
    *names: str,
) -> dict[str, Any]:
    """Return by score: paired mean, bootstrap and t intervals over pairs, the pairs themselves, and means by base."""
    units = sorted(left.keys() & right.keys())
    found: dict[str, Any] = {}
    for score in REPORTED:
        pool, name = score.split(".")
        if any(name not in side[unit]["scores"][pool] for side in (left, right) for unit in units):
            continue
        values = np.array([left[unit]["scores"][pool][name] - right[unit]["scores"][pool][name] for unit in units])
        by_base = {
            str(base): round(float(np.mean([v for v, unit in zip(values, units, strict=True) if unit[0] == base])), 3)
            for base in sorted({unit[0] for unit in units})
        }
        found[score] = {
            **bootstrap(values, seed, *names, score),
            "sd": round(float(values.std(ddof=1)), 4) if len(values) > 1 else None,
            "t_interval": _t_interval(values),
            "pairs": [round(float(value), 3) for value in values],
            "by_base": by_base,
        }
    return found


def _t_interval(values: NDArray[np.float64]) -> list[float] | None:
    """Return the 95 % interval of the mean by Student's t: wider than the bootstrap's where pairs are few."""
    found = interval(values)
    return None if found["low"] is None else [found["low"], found["high"]]


def _terms(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return what the training looked like: means of the last third, and the active share of the first steps."""
    last = lines[-max(1, len(lines) // 3) :]
    found = {
        name: float(np.mean([line[name] for line in last]))
        for name in ("loss", "contrastive", "accuracy", "scale", "margin", "margin_raw", "margin_active", "seeds")
        if all(name in line for line in last)
    }
    first = [line["margin_active"] for line in lines if "margin_active" in line and line["step"] <= ALARM_STEPS]
    if first:
        found["margin_active_first"] = float(np.mean(first))
    return {name: round(value, 6) for name, value in found.items()}


def _hardness(images: NDArray[np.float32], texts: NDArray[np.float32], pairs: HardPairs) -> dict[str, float]:
    """Return how close mined pairs are beside random ones: mean cosines of pictures, of names, and across."""
    rows = np.repeat(np.arange(len(images)), pairs.pairs.shape[1])
    partners = pairs.pairs.ravel()
    rows, partners = rows[partners >= 0], partners[partners >= 0]
    return {
        "image_cosine": round(float((images[rows] * images[partners]).sum(1).mean()), 4),
        "text_cosine": round(float((texts[rows] * texts[partners]).sum(1).mean()), 4),
        "across_cosine": round(float((images[rows] * texts[partners]).sum(1).mean()), 4),
        "own_cosine": round(float((images * texts).sum(1).mean()), 4),
        "short_lists": int(pairs.outlier.sum()),
        "random_image_cosine": round(float((images @ images.mean(0)).mean()), 4),
    }


def _other_rows(lists: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return lists that belong to other rows: row i gets the list of row order[i], without i itself."""
    moved = np.array(lists)[order]
    for row, place in np.argwhere(moved == np.arange(len(moved))[:, None]):
        free = np.setdiff1d(np.arange(len(moved)), [row, *moved[row]])
        moved[row, place] = free[0]
    return moved


def _seeded(make: Callable[[], HuabenDualEncoder], seed: int) -> HuabenDualEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "emoji", "weights"))
        return make()


def _unit(values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Give True while this process alone holds the folder, False if another one does."""
    try:
        with folder_lock(folder, "measurement"):
            yield True
    except StoreError as error:
        if "in use" not in error.message:
            raise
        yield False


def _brief(record: Mapping[str, Any]) -> str:
    if "scores" not in record:
        return ", ".join(f"{name} stopped: {found['stopped']}" for name, found in record.items())
    parts = [f"{pool} R@1 {record['scores'][pool]['r1']:.2f}" for pool in POOLS]
    if "margin_active_first" in record["terms"]:
        parts.append(f"active {record['terms']['margin_active_first']:.3f}")
    return ", ".join(parts)


def _names(value: str | Sequence[str]) -> list[str]:
    parts = value.split(",") if isinstance(value, str) else list(value)
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


# -- picture ---------------------------------------------------------------------------------------------------------


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw the difference of every arm to plain continued training, and a panel for each ablation.

    Args:
        record: as written to ``results.json``, or its ``results``.
        path: a PNG file; not written without matplotlib.
    """
    if not is_available("matplotlib"):
        return
    results = record.get("results", record)
    panels = {"arms": {name: row for name, row in results["arms"].items() if name != PLAIN}, **results["ablations"]}
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = require("matplotlib.figure", extra="search").Figure(
        figsize=(4.6 * columns, 0.6 + 3.1 * rows), layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (title, entries) in zip(grid.flat, panels.items(), strict=False):
        _panel(axes, title, entries)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    grid.flat[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _panel(axes: Any, title: str, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw mean differences with intervals, one line an arm and one mark a pool."""
    shown = [(name, row["difference"]) for name, row in entries.items() if "difference" in row]
    for offset, (pool, colour, label) in enumerate(
        (("seen", "C0", "trained concepts"), ("held", "C1", "held-out concepts"))
    ):
        values = [difference[f"{pool}.r1"] for _, difference in shown]
        means = np.array([value["mean"] for value in values])
        low, high = (np.array([value[side] for value in values]) for side in ("low", "high"))
        axes.errorbar(
            means, np.arange(len(shown)) + 0.15 * (2 * offset - 1), xerr=[means - low, high - means],
            fmt="o", markersize=4, color=colour, label=label, capsize=2,
        )  # fmt: skip
    axes.axvline(0, color="grey", linewidth=1, linestyle=":")
    axes.set_yticks(range(len(shown)), [name for name, _ in shown])
    axes.invert_yaxis()
    axes.set_xlabel("R@1 against plain continued training, points")
    axes.set_title(title, fontsize=10)
