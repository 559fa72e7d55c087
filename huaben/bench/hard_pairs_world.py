"""HELIP among near-identical scenes: fine-grained retrieval, and which part of the method brings what.

The pairs are families of scenes of the embedded world whose members differ in one attribute (:mod:`.scene_families`),
so hard pairs are the whole difficulty. A base is trained on them to convergence with plain contrast, once; its own
embeddings mine the hard pairs. Every arm then continues from this base, with the same restarted schedule and the same
number of pairs a step, and is judged on families that training never shows. Differences are paired by seed.

Runs are kept one by one in ``cache``: a killed measurement goes on, and several processes with the same settings share
the work. All runs start from one base: the intervals say how sure a difference is for this base, not for others.

Source: Wang et al. 2025 (arXiv:2305.05208); arms after the ablations that the method needs, plain continued training
first of all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..clip.dataset import ArrayPairs
from ..clip.dataset import Caption as PairCaption
from ..clip.dual_encoder import (
    DualEncoder,
    HuabenDualEncoder,
    encode_all_images,
    encode_all_texts,
    load_dual_encoder,
)
from ..clip.hard_pairs import HardPairs
from ..clip.margin import MarginConfig
from ..clip.mining import mine_hard_pairs
from ..config import Config
from ..errors import DataError, StoreError, UsageError
from ..files import folder_lock, write_bytes
from ..optional import probe
from ..recipes.helip import HelipRecipe, HelipTraining, helip_fit
from ..training import FINAL_NAME, FitConfig, FitEvent, fit
from .experiment import interval
from .scene_families import (
    CHANGES,
    FAMILY_SIZE,
    LANGUAGES,
    Families,
    family_scores,
    global_scores,
    make_families,
    make_scenes,
)

VERSION = 1
"""Raised when runs kept earlier no longer mean the same."""
WAIT_S = 2.0
BATCH = 128
"""Pictures or texts encoded together where nothing is trained."""
MAX_SHIFT = 2
PRIMARY = "family"
SHOWN = ("family", "seen_family", "global")
TERMS = ("contrastive", "accuracy", "scale", "margin", "margin_raw", "margin_active")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan(Config):
    """What every run depends on.

    Attributes:
        data_seed: of the scenes.
        families: of training; ``test_families`` and ``unrelated`` scenes are those judged on, and half as many families
            of training, which show what was learned by heart.
        test_families, unrelated: see there.
        split: name of the scenes judged on; another one than the reported "test" to choose settings by.
        base_steps, base_learning_rate: of the base, from the embedded weights.
        steps, learning_rate: of every arm.
        batch_size: pairs a step, hard ones included.
        k, hard_per_seed: hard pairs mined for each pair, and how many of them join the batch for each seed.
        gamma: weight of the margin loss.
        bf16: compute losses in bfloat16.
    """

    data_seed: int = 0
    families: int = 700
    test_families: int = 120
    unrelated: int = 1000
    split: str = "test"
    base_steps: int = 1200
    base_learning_rate: float = 1e-3
    steps: int = 120
    learning_rate: float = 3e-4
    batch_size: int = 64
    k: int = FAMILY_SIZE - 1
    hard_per_seed: int = 1
    gamma: float = 0.3
    bf16: bool = True


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to go on from the base.

    Attributes:
        about: for the results.
        partners: what fills a batch beside its seeds; None trains nothing.
        margin: changes to the margin loss; None leaves it out.
        contrast: which pairs take part in the contrastive loss.
        modality: what hard pairs are mined by.
    """

    about: str
    partners: Literal["mined", "random", "none"] | None
    margin: Mapping[str, Any] | None = None
    contrast: Literal["all", "seeds"] = "all"
    modality: Literal["both", "image", "text"] = "both"


ARMS: dict[str, Arm] = {
    "untrained": Arm("the base as it is", None),
    "continued": Arm("plain continued training, the schedule restarted", "none"),
    "random": Arm("random partners, contrastive loss alone", "random"),
    "random_margin": Arm("random partners and the margin loss", "random", {}),
    "hpm": Arm("mined hard pairs, contrastive loss alone", "mined"),
    "hnml": Arm("mined hard pairs seen by the margin loss alone; contrast among seeds", "mined", {}, "seeds"),
    "helip": Arm("mined hard pairs and the margin loss", "mined", {}),
    "helip_both": Arm("helip, the margin in both directions", "mined", {"directions": "both"}),
    "seeds": Arm("as hnml, without the margin loss: contrast among half the batch", "mined", contrast="seeds"),
    "hpm_image": Arm("hpm, mined by pictures alone", "mined", modality="image"),
    "hpm_text": Arm("hpm, mined by captions alone", "mined", modality="text"),
}
EXTRA = ("seeds", "hpm_image", "hpm_text")
"""Arms that run only where they are named."""
COMPARED = (
    ("continued", "untrained"),
    ("random", "continued"),
    ("random_margin", "random"),
    ("hpm", "continued"),
    ("hpm", "random"),
    ("hnml", "continued"),
    ("hnml", "seeds"),
    ("helip", "continued"),
    ("helip", "hpm"),
    ("helip_both", "continued"),
    ("helip_both", "helip"),
    ("hpm_image", "hpm"),
    ("hpm_text", "hpm"),
)
"""Pairs of arms whose difference is reported, first minus second."""


def moved(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the picture moved by up to two pixels each way; never mirrored, as captions say where one faces."""
    height, width = image.shape[:2]
    y, x = rng.integers(0, 2 * MAX_SHIFT + 1, 2)
    edge = ((MAX_SHIFT, MAX_SHIFT), (MAX_SHIFT, MAX_SHIFT), (0, 0))
    return np.pad(image, edge, mode="edge")[y : y + height, x : x + width]


def as_pairs(families: Families, name: str) -> ArrayPairs:
    """Return families as data to train on, keyed by family and member."""
    captions = [
        [PairCaption(text, language) for text, language in zip(said, LANGUAGES, strict=True)]
        for said in families.captions
    ]
    keys = [f"{row // FAMILY_SIZE}.{row % FAMILY_SIZE}" for row in range(len(families))]
    return ArrayPairs(families.pictures, captions, keys, name=name)


def embeddings(encoder: DualEncoder, families: Families) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """Return unit vectors of the pictures (N, E), and by language of the captions (N, E)."""
    texts: dict[str, NDArray[np.float32]] = {
        language: encode_all_texts(encoder, [said[column] for said in families.captions], BATCH)
        for column, language in enumerate(LANGUAGES)
    }
    return encode_all_images(encoder, families.pictures, BATCH), texts


def mine(encoder: DualEncoder, families: Families, k: int, modality: Literal["both", "image", "text"]) -> HardPairs:
    """Return the hard pairs of all rows by the encoder's own embeddings, those of both captions averaged.

    The usual filter of near-duplicates is off: members of a family are near-duplicates, and no two rows are the same.
    """
    image, texts = embeddings(encoder, families)
    text = np.mean(list(texts.values()), axis=0)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    keys = [f"{row // FAMILY_SIZE}.{row % FAMILY_SIZE}" for row in range(len(families))]
    mined = mine_hard_pairs(image, text, k, method="exact", duplicate=1.0, modality=modality)
    return dataclasses.replace(mined, keys=keys)


def mined_statistics(pairs: NDArray[np.int64]) -> dict[str, Any]:
    """Return how many of the mined hard pairs are of the row's own family.

    Args:
        pairs: int64 (N, k) of families, row by row; -1 where there is none.

    Returns:
        ``own_family``: share of the mined pairs; ``found``: share of family members that are among them; ``first``:
        share of rows whose first hard pair is of the family; ``found_by_change``: share of the changed members found
        by the unchanged one.
    """
    rows = np.arange(len(pairs))
    own = (pairs // FAMILY_SIZE == rows[:, None] // FAMILY_SIZE) & (pairs >= 0)
    plain = rows % FAMILY_SIZE == 0
    by_change = {
        change: round(float((own[plain] & (pairs[plain] % FAMILY_SIZE == member)).any(1).mean()), 4)
        for member, change in enumerate(CHANGES, 1)
    }
    return {
        "k": pairs.shape[1],
        "own_family": round(float(own.sum() / max(1, (pairs >= 0).sum())), 4),
        "found": round(float(own.sum(1).mean() / (FAMILY_SIZE - 1)), 4),
        "first": round(float(own[:, 0].mean()), 4),
        "found_by_change": by_change,
    }


class ArmRecipe(HelipRecipe):
    """Continued training that is scored by families."""

    judge: Callable[[DualEncoder], dict[str, float]]

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the scores of :meth:`Bench.judge`."""
        assert isinstance(model, HelipTraining)
        return self.judge(model.encoder)


class Bench:
    """The scenes, the base, what it mined, and the runs kept.

    Args:
        plan: what everything depends on.
        cache: folder of data, base and runs.
        start: weights the base is trained from.
    """

    def __init__(self, plan: Plan, cache: Path, start: str | Path = "embedded") -> None:
        self.plan, self.cache, self.start = plan, cache, start

    # -- what all runs share -----------------------------------------------------------------------------------------

    @cached_property
    def first(self) -> HuabenDualEncoder:
        """The encoder that the base is trained from."""
        encoder = load_dual_encoder(self.start)
        if not isinstance(encoder, HuabenDualEncoder):
            raise UsageError(f"{self.start!r} is no CLIP of huaben's", hint="use 'embedded', or a folder of one")
        return encoder

    @cached_property
    def train(self) -> Families:
        return self._drawn("train", self.plan.families)

    @cached_property
    def test(self) -> Families:
        return self._drawn(self.plan.split, self.plan.test_families)

    @cached_property
    def unrelated(self) -> Families:
        return self._drawn(f"{self.plan.split} unrelated", self.plan.unrelated)

    def _drawn(self, purpose: str, count: int) -> Families:
        """Return scenes, drawn now or before."""
        config = self.first.clip.config
        facts = [VERSION, self.plan.data_seed, purpose, count, config.image_size, config.text_length]
        path = self.cache / f"scenes-{purpose.replace(' ', '-')}-{_digest(facts)}.npz"
        if path.exists():
            return Families.load(path)
        make = make_scenes if purpose.endswith("unrelated") else make_families
        made = make(
            self.plan.data_seed,
            purpose,
            count,
            self.first.tokenizer,
            size=config.image_size,
            length=config.text_length,
        )
        made.save(path)
        return made

    @cached_property
    def data(self) -> ArrayPairs:
        return as_pairs(self.train, "scene families")

    @cached_property
    def _base_facts(self) -> list[Any]:
        names = ("data_seed", "families", "base_steps", "base_learning_rate", "batch_size", "bf16")
        return [VERSION, str(self.start), *(getattr(self.plan, name) for name in names)]

    @property
    def base_folder(self) -> Path:
        return self.cache / f"base-{_digest(self._base_facts)}"

    def make_base(self) -> None:
        """Train the base, or go on where its training stopped; nothing if it is there.

        Raises:
            StoreError: if another process is at it.
        """
        if (self.base_folder / "base.json").exists():
            return
        with folder_lock(self.base_folder / "lock", "measurement"):
            plan = self.plan
            recipe = HelipRecipe(
                lambda: self.first,
                self.data,
                partners="none",
                batch_size=plan.batch_size,
                augment=moved,
                seed=plan.data_seed,
            )
            config = FitConfig(
                learning_rate=plan.base_learning_rate,
                betas=(0.9, 0.98),
                weight_decay=0.02,
                warmup_steps=min(100, plan.base_steps // 10),
                decay_share=0.5,
                ema_decay=0.0,
                bf16=plan.bf16,
                checkpoint_every_s=60.0,
                seed=plan.data_seed,
            )
            lines: list[dict[str, float]] = []

            def note(event: FitEvent) -> None:
                if event.kind == "log":
                    kept = {name: round(float(event.values[name]), 5) for name in TERMS if name in event.values}
                    lines.append({"step": event.step, **kept})

            result = fit(
                recipe,
                self.base_folder / "run",
                steps=plan.base_steps,
                resume=True,
                config=config,
                on_event=note,
                progress=False,
            )
            record = {"steps": result.steps, "seconds": round(result.seconds, 1), "log": lines}
            write_bytes(self.base_folder / "base.json", json.dumps(record, sort_keys=True).encode())

    @cached_property
    def base(self) -> DualEncoder:
        """The trained base."""
        return load_dual_encoder(self.base_folder / "run" / FINAL_NAME)

    def mined(self, modality: Literal["both", "image", "text"]) -> HardPairs:
        """Return the base's hard pairs, mined now or before."""
        path = self.base_folder / f"pairs-{self.plan.k}-{modality}.npz"
        if path.exists():
            return HardPairs.load(path)
        found = mine(self.base, self.train, self.plan.k, modality)
        found.save(path)
        return found

    def judge(self, encoder: DualEncoder) -> dict[str, float]:
        """Return shares found first: among fresh families, training families, and fresh unrelated scenes."""
        image, texts = embeddings(encoder, self.test)
        scores = family_scores(image, texts)
        shown = min(self.plan.families, (self.plan.test_families + 1) // 2) * FAMILY_SIZE
        seen = Families(self.train.scenes[:shown], self.train.pictures[:shown], self.train.captions[:shown])
        image, texts = embeddings(encoder, seen)
        scores["seen_family"] = family_scores(image, texts)["family"]
        scores["seen_global"] = global_scores(image, texts)["global"]
        image, texts = embeddings(encoder, self.unrelated)
        return {name: round(value, 5) for name, value in (scores | global_scores(image, texts)).items()}

    # -- runs --------------------------------------------------------------------------------------------------------

    def run(self, name: str, arm: Arm, seed: int) -> dict[str, Any]:
        """Continue from the base in one way, and return the record."""
        started = time.process_time()
        record: dict[str, Any] = {"arm": name, "seed": seed}
        if arm.partners is None:
            return record | {"scores": self.judge(self.base), "cpu_seconds": round(time.process_time() - started, 1)}
        plan = self.plan
        margin = None if arm.margin is None else MarginConfig.from_dict({"gamma": plan.gamma, **arm.margin})
        recipe = ArmRecipe(
            lambda: self.base,
            self.data,
            pairs=self.mined(arm.modality) if arm.partners == "mined" else None,
            partners=arm.partners,
            hard_per_seed=plan.hard_per_seed,
            margin=margin,
            contrast=arm.contrast,
            batch_size=plan.batch_size,
            augment=moved,
            alarm=False,
            seed=seed,
        )
        recipe.judge = self.judge
        config = helip_fit(
            steps=plan.steps,
            learning_rate=plan.learning_rate,
            bf16=plan.bf16,
            checkpoint_every_s=3600.0,
            log_every=max(1, plan.steps // 10),
            seed=seed,
        )
        lines: list[dict[str, float]] = []

        def note(event: FitEvent) -> None:
            if event.kind == "log":
                lines.append({key: float(value) for key, value in event.values.items()})

        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the alarm's: random partners are one of the arms
            result = fit(recipe, folder, steps=plan.steps, config=config, on_event=note, progress=False)
        terms = {
            key: round(float(np.mean([line[key] for line in lines])), 5) for key in TERMS if lines and key in lines[0]
        }
        return record | {
            "scores": result.scores,
            "terms": terms,
            "alarm": bool(recipe.watch is not None and terms.get("margin_active", 0.0) > recipe.watch.warn),
            "cpu_seconds": round(time.process_time() - started, 1),
        }

    def path(self, name: str, arm: Arm, seed: int) -> Path:
        """Return the file of one run, named by everything it depends on."""
        facts: list[Any] = [self._base_facts, self.plan.split, self.plan.test_families, self.plan.unrelated]
        if arm.partners is not None:
            facts += [self.plan.steps, self.plan.learning_rate]
            facts += [arm.partners, arm.contrast, arm.modality]
            facts += [None if arm.partners == "none" else self.plan.hard_per_seed]
            facts += [self.plan.k if arm.partners == "mined" else None]
            facts += [None if arm.margin is None else [self.plan.gamma, dict(arm.margin)]]
        return self.cache / "runs" / f"{name}-{seed:03d}-{_digest(facts)}.json"

    def kept(self, name: str, arm: Arm, seed: int) -> dict[str, Any] | None:
        """Return a run that was made before."""
        path = self.path(name, arm, seed)
        if not path.exists():
            return None
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is not a run: {error}", hint="remove it to run it again") from error
        return record

    def all_runs(self, arms: Mapping[str, Arm], seeds: Sequence[int]) -> list[dict[str, Any]]:
        """Return every run, made now or before; one that another process works on is left to it."""
        while True:
            try:
                self.make_base()
                break
            except StoreError as error:
                if "in use" not in error.message:
                    raise
                time.sleep(WAIT_S)
        left = [
            (name, seed) for seed in seeds for name, arm in arms.items() if arm.partners is not None or seed == seeds[0]
        ]
        records: dict[tuple[str, int], dict[str, Any]] = {}
        while left:
            waiting = []
            for name, seed in left:
                try:
                    records[name, seed] = self._one(name, arms[name], seed)
                except StoreError as error:
                    if "in use" not in error.message:
                        raise
                    waiting.append((name, seed))
            if len(waiting) == len(left):
                time.sleep(WAIT_S)
            left = waiting
        return [records[key] for key in sorted(records)]

    def _one(self, name: str, arm: Arm, seed: int) -> dict[str, Any]:
        found = self.kept(name, arm, seed)
        if found is not None:
            return found
        path = self.path(name, arm, seed)
        with folder_lock(self.cache / "locks" / path.stem, "measurement"):
            found = self.kept(name, arm, seed)
            if found is not None:
                return found
            record = self.run(name, arm, seed)
            write_bytes(path, (json.dumps(record, sort_keys=True) + "\n").encode())
            sys.stderr.write(f"hard_pairs_world  {name} {seed}  {record['scores'][PRIMARY]:.4f}\n")
            return record


def _digest(facts: Any) -> str:
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=5).hexdigest()


# -- statistics ------------------------------------------------------------------------------------------------------


def summarise(records: Sequence[Mapping[str, Any]], seeds: Sequence[int], arms: Mapping[str, Arm]) -> dict[str, Any]:
    """Return every arm's scores in per cent, and the paired differences in points."""
    by_arm: dict[str, dict[int, Mapping[str, float]]] = {name: {} for name in arms}
    for record in records:
        by_arm[record["arm"]][record["seed"]] = record["scores"]
    for name, arm in arms.items():
        if arm.partners is None:  # one result for all seeds
            by_arm[name] = dict.fromkeys(seeds, by_arm[name][seeds[0]])
    names = list(next(iter(by_arm.values()))[seeds[0]])
    terms = {
        name: [record["terms"] for record in records if record["arm"] == name and record.get("terms")] for name in arms
    }
    table = {
        name: {
            "about": arm.about,
            "scores": {
                key: interval([100 * runs[seed][key] for seed in (seeds[:1] if arm.partners is None else seeds)])
                for key in names
            },
            "terms": {
                key: round(float(np.mean([line[key] for line in terms[name]])), 5)
                for key in TERMS
                if terms[name] and key in terms[name][0]
            },
        }
        for (name, arm), runs in zip(arms.items(), by_arm.values(), strict=True)
    }
    differences = {
        f"{left} - {right}": {
            key: interval([100 * (by_arm[left][seed][key] - by_arm[right][seed][key]) for seed in seeds])
            for key in names
        }
        for left, right in COMPARED
        if left in arms and right in arms
    }
    return {"arms": table, "differences": differences}


def run(
    seed: int = 0,
    seeds: int = 6,
    arms: Sequence[str] | str | None = None,
    start: str = "embedded",
    cache: str | None = None,
    data_seed: int = Plan().data_seed,
    families: int = Plan().families,
    test_families: int = Plan().test_families,
    unrelated: int = Plan().unrelated,
    split: str = Plan().split,
    base_steps: int = Plan().base_steps,
    base_learning_rate: float = Plan().base_learning_rate,
    steps: int = Plan().steps,
    learning_rate: float = Plan().learning_rate,
    batch_size: int = Plan().batch_size,
    k: int = Plan().k,
    hard_per_seed: int = Plan().hard_per_seed,
    gamma: float = Plan().gamma,
    bf16: bool = Plan().bf16,
    *,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure.

    Args:
        seed: the first of ``seeds`` continuations of every arm.
        seeds: see there.
        arms: keys of :data:`ARMS`, a list or with commas between; default all but :data:`EXTRA`.
        start: weights the base is trained from: "embedded" or a folder.
        cache: folder of scenes, base and runs; default ``cache`` below ``out``.
        data_seed, families, test_families, unrelated, split, base_steps, base_learning_rate, steps, learning_rate,
            batch_size, k, hard_per_seed, gamma, bf16: as in :class:`Plan`.
        out: folder of the results.

    Returns:
        ``arms``: scores in per cent (mean and interval over seeds) and mean loss terms; ``differences``, paired by
        seed, in points; ``mined``: whether the families were found; ``base``; and the settings.

    Raises:
        UsageError: for an unknown arm, fewer than two seeds, or nowhere to keep runs.
    """
    names = list(ARMS) if arms is None else arms.split(",") if isinstance(arms, str) else list(arms)
    for name in names:
        if name not in ARMS:
            raise UsageError(f"there is no arm {name!r}", hint=f"use some of {', '.join(ARMS)}")
    chosen = {name: ARMS[name] for name in names if arms is not None or name not in EXTRA}
    if seeds < 2:
        raise UsageError(f"seeds={seeds}, an interval needs 2", hint="use 6")
    if cache is None and out is None:
        raise UsageError("neither cache nor out is given, runs must be kept", hint="name a folder")
    plan = Plan(
        data_seed=data_seed,
        families=families,
        test_families=test_families,
        unrelated=unrelated,
        split=split,
        base_steps=base_steps,
        base_learning_rate=base_learning_rate,
        steps=steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        k=k,
        hard_per_seed=hard_per_seed,
        gamma=gamma,
        bf16=bf16,
    )
    bench = Bench(plan, Path(cache) if cache is not None else Path(out or ".") / "cache", start)
    numbers = list(range(seed, seed + seeds))
    records = bench.all_runs(chosen, numbers)
    base = json.loads((bench.base_folder / "base.json").read_text(encoding="utf-8"))
    modalities = sorted({arm.modality for arm in chosen.values() if arm.partners == "mined"})
    return {
        **summarise(records, numbers, chosen),
        "mined": {modality: mined_statistics(np.asarray(bench.mined(modality).pairs)) for modality in modalities},
        "base": {"steps": base["steps"], "log": base["log"]},
        "chance": round(100 / FAMILY_SIZE, 4),
        "seeds": numbers,
        "plan": plan.to_dict(),
        "pairs_a_run": plan.steps * plan.batch_size,
        "cpu_seconds": round(sum(record["cpu_seconds"] for record in records), 1),
    }


def plot(record: dict[str, Any], path: Path) -> None:
    """Draw paired differences to continued training, and each arm by changed attribute; nothing without matplotlib."""
    if not probe("matplotlib").works:
        sys.stderr.write("hard_pairs_world: no picture, matplotlib is not installed\n")
        return
    from matplotlib.figure import Figure

    results = record["results"]
    shown = {name: part for name, part in results["differences"].items() if name.endswith(" - continued")}
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for offset, key in enumerate(SHOWN):
        places = np.arange(len(shown)) + 0.25 * (offset - 1)
        means = np.array([part[key]["mean"] for part in shown.values()])
        low = np.array([part[key]["low"] for part in shown.values()])
        high = np.array([part[key]["high"] for part in shown.values()])
        left.errorbar(means, places, xerr=(means - low, high - means), fmt="o", capsize=3, label=key.replace("_", " "))
    left.axvline(0, color="grey", linewidth=1)
    left.set_yticks(np.arange(len(shown)), [name.removesuffix(" - continued") for name in shown])
    left.set_xlabel("R@1 beside continued training, points")
    left.legend(fontsize="small")
    for name, part in results["arms"].items():
        right.plot(
            ("none", *CHANGES),
            [part["scores"][f"family_{change}"]["mean"] for change in ("none", *CHANGES)],
            marker="o",
            linewidth=1,
            label=name,
        )
    right.axhline(results["chance"], color="grey", linestyle=":", linewidth=1)
    right.tick_params(axis="x", rotation=45)
    right.set_ylabel("R@1 within the family, %")
    right.legend(fontsize="x-small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
