"""The embedded CLIP, improved by HELIP: trained on from given weights, and judged beside them.

What the embedded CLIP learns from stays as it is (:mod:`huaben.recipes.clip`: its pictures, captions in both languages
and read-outs); families of near-identical scenes join it, and every batch holds seeds and their hard pairs, mined by
the starting weights. Old and new weights are judged alike: by the recipe's own scores, by retrieval within families,
and by how well the states of the text tower tell who has which attribute, beside the embedded text encoder's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..clip.dual_encoder import HuabenDualEncoder
from ..clip.hard_pairs import HardPairs
from ..clip.loss import contrastive_loss
from ..clip.margin import MarginConfig, hard_mask, hard_negative_margin_loss
from ..clip.mining import mine_hard_pairs
from ..clip.model import Clip
from ..clip.preprocess import to_float
from ..clip.sampler import HardPairBatchSampler
from ..errors import CheckpointError
from ..files import write_bytes
from ..language.encoder import TextEncoder
from ..language.tokenizer import PAD, Tokenizer
from ..recipes.clip import CAPTIONS, PATCH_ATTRIBUTES, ClipRecipe, ClipTraining, patch_labels
from ..recipes.readout import (
    CHARACTER_ATTRIBUTES,
    SCENE_ATTRIBUTES,
    SlotReadout,
    attribute_losses,
    labels_of,
    predicted,
    slot_labels,
)
from ..recipes.text_corpus import make_corpus, pad_ids
from ..rng import numpy_stream
from ..stations import WEIGHTS
from ..training import FINAL_NAME, fit
from .hard_pairs_world import embeddings, mined_statistics, moved
from .scene_families import (
    FAMILY_SIZE,
    KINDS,
    LANGUAGES,
    Families,
    family_scores,
    full_caption,
    full_facts,
    global_scores,
    make_families,
    make_scenes,
)

PROBE_BATCH = 64


class ImprovedRecipe(ClipRecipe):
    """The embedded CLIP's recipe from given weights, with families and hard pairs.

    Args:
        start: folder of the weights to begin with; its tokenizer is kept.
        families: added to the recipe's own pictures.
        partners: "mined" hard pairs in every batch, or "none" (the control).
        k, hard_per_seed: hard pairs mined for each picture, and how many join the batch for each seed.
        margin: of the margin loss; None leaves it out.
        pairs_file: mined pairs are kept there.
        settings: of the recipe.
    """

    def __init__(
        self,
        *,
        start: str | Path = WEIGHTS / "clip",
        families: int = 500,
        partners: Literal["mined", "none"] = "mined",
        k: int = FAMILY_SIZE - 1,
        hard_per_seed: int = 1,
        margin: MarginConfig | None = None,
        pairs_file: Path | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(tokenizer=start, **settings)
        self.start = Path(start)
        self.preset = Clip.from_pretrained(self.start).config
        self.families, self.partners, self.k, self.hard_per_seed = families, partners, k, hard_per_seed
        self.margin, self.pairs_file = margin, pairs_file
        self._mask = hard_mask(1, self.batch_size // (1 + hard_per_seed), hard_per_seed) if self.helps else None

    @property
    def helps(self) -> bool:
        """Whether batches hold hard pairs."""
        return self.partners == "mined"

    @property
    def settings(self) -> dict[str, Any]:
        return {
            **super().settings,
            "families": self.families,
            "partners": self.partners,
            "k": self.k,
            "hard_per_seed": self.hard_per_seed if self.helps else 0,
            "margin": None if self.margin is None else self.margin.to_dict(),
        }

    @property
    def num_rows(self) -> int:
        """Pictures in all: the recipe's own first, then the families'."""
        return self.num_scenes + self.families * FAMILY_SIZE

    @cached_property
    def _data(self) -> dict[str, NDArray[Any]]:
        own = ClipRecipe._data.func(self)  # type: ignore[attr-defined]
        drawn = make_families(
            self.seed,
            "improved clip",
            self.families,
            self.tokenizer,
            size=self.model.image_size,
            length=self.model.text_length,
        )
        added = self._labelled(drawn)
        return {name: np.concatenate([values, added[name].astype(values.dtype)]) for name, values in own.items()}

    def _labelled(self, drawn: Families) -> dict[str, NDArray[Any]]:
        """Return families as the recipe keeps its own pictures; captions say everything, two a language."""
        rng, length = numpy_stream(self.seed, "improved clip", "captions"), self.model.text_length
        grid = self.model.image_size // self.model.patch_size
        ids, slots, scenes = [], [], []
        for scene in drawn.scenes:
            for which in range(CAPTIONS):
                language = LANGUAGES[which * len(LANGUAGES) // CAPTIONS]
                order = rng.permutation(len(scene.characters))
                for kind in rng.permutation(KINDS):
                    tokens = self.tokenizer.encode_ids(full_caption(scene, language, order, int(kind)))
                    if len(tokens) < length:
                        break
                ids.append(tokens)
                slots.append(slot_labels(full_facts(scene, order)))
                scenes.append(labels_of({"background": scene.background}, SCENE_ATTRIBUTES))
        count = len(drawn)
        looks = [
            labels_of({"background": scene.background, "style": scene.style}, SCENE_ATTRIBUTES)
            for scene in drawn.scenes
        ]
        return {
            "pictures": drawn.pictures,
            "patches": np.stack([patch_labels(scene, grid) for scene in drawn.scenes]),
            "image_scene": np.array(looks),
            "ids": pad_ids(ids, length).reshape(count, CAPTIONS, -1),
            "slots": np.stack(slots).reshape(count, CAPTIONS, *slots[0].shape),
            "scene": np.array(scenes).reshape(count, CAPTIONS, -1),
        }

    @cached_property
    def pairs(self) -> HardPairs:
        """Hard pairs of all pictures by the starting weights, the captions of each averaged."""
        if self.pairs_file is not None and self.pairs_file.exists():
            return HardPairs.load(self.pairs_file)
        clip, data = Clip.from_pretrained(self.start), self._data
        image, text = [], []
        with torch.inference_mode():
            for first in range(0, self.num_rows, 128):
                pictures = torch.from_numpy(data["pictures"][first : first + 128]).permute(0, 3, 1, 2)
                ids = torch.from_numpy(data["ids"][first : first + 128].astype(np.int64)).flatten(0, 1)
                image.append(clip.image_features(to_float(pictures)))
                mean = clip.text_features(ids, ids != PAD).unflatten(0, (-1, CAPTIONS)).mean(1)
                text.append(nn.functional.normalize(mean, dim=-1))
        found = mine_hard_pairs(
            torch.cat(image).numpy(), torch.cat(text).numpy(), self.k, method="exact", duplicate=1.0
        )
        if self.pairs_file is not None:
            found.save(self.pairs_file)
        return found

    @cached_property
    def sampler(self) -> HardPairBatchSampler:
        hard = np.asarray(self.pairs.pairs) if self.helps else None
        return HardPairBatchSampler(
            self.num_rows, hard, batch_size=self.batch_size, hard_per_seed=self.hard_per_seed, seed=self.seed
        )

    def build(self) -> ClipTraining:
        _ = self.sampler  # drawn and mined before the clock runs
        model = ClipTraining(self.model)
        model.clip = Clip.from_pretrained(self.start).float().train()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return model

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the recipe's batch for the sampler's rows: seeds, then their hard pairs."""
        rng, data = numpy_stream(self.seed, "improved clip", "batch", step), self._data
        rows = np.asarray(self.sampler.batch(step))
        which = rng.integers(CAPTIONS, size=self.batch_size)
        pictures = np.stack([moved(data["pictures"][row], rng) for row in rows])
        ids = data["ids"][rows, which].astype(np.int64)
        labels = {
            "patches": data["patches"][rows],
            "image_scene": data["image_scene"][rows],
            "slots": data["slots"][rows, which],
            "scene": data["scene"][rows, which],
        }
        return {
            "pictures": torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()),
            "ids": torch.from_numpy(ids[:, : (ids != PAD).sum(1).max()]),
            "rows": torch.from_numpy(rows.astype(np.int64)),
            **{name: torch.from_numpy(values.astype(np.int64)) for name, values in labels.items()},
        }

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the recipe's terms and, with hard pairs, the margin loss's."""
        assert isinstance(model, ClipTraining)
        clip, mask = model.clip, batch["ids"] != PAD
        tokens = clip.image_tokens(to_float(batch["pictures"]))
        states = clip.text_states(batch["ids"], mask)
        image, text = clip.project_image(tokens), clip.project_text(states, mask)
        contrast = contrastive_loss(image, text, clip.logit_scale, ids=batch["rows"])
        terms = {
            "contrastive": contrast["loss"],
            "patches": attribute_losses(model.patches(tokens), batch["patches"], PATCH_ATTRIBUTES).mean(),
            "image_scene": attribute_losses(model.scene(tokens.mean(1)), batch["image_scene"], SCENE_ATTRIBUTES).mean(),
            **model.readout.losses(states, mask, batch["slots"], batch["scene"]),
        }
        total = torch.stack([weight * terms[name] for name, weight in self.weights.items()]).sum()
        if self._mask is not None and self.margin is not None:
            seeds, hard = self._mask
            found = hard_negative_margin_loss(image, text, hard, seeds, batch["rows"], self.margin, clip.logit_scale)
            total = total + found["weighted"]
            terms |= {"margin": found["weighted"], "margin_active": found["active"]}
        logged = {name: term.detach() for name, term in terms.items()}
        return {"loss": total, **logged, "accuracy": contrast["accuracy"], "scale": clip.logit_scale.detach()}


# -- judging -----------------------------------------------------------------------------------------------------


def clip_scores(folder: str | Path, families: Families, unrelated: Families) -> dict[str, float]:
    """Return the recipe's own scores of a CLIP, and shares found first within families and among unrelated scenes."""
    clip, tokenizer = Clip.from_pretrained(folder), Tokenizer.from_pretrained(folder)
    recipe = ClipRecipe(tokenizer=folder)
    recipe.preset = clip.config
    model = ClipTraining(clip.config)
    model.clip = clip
    scores = recipe.evaluate(model.eval())
    encoder = HuabenDualEncoder(clip, tokenizer)
    scores |= family_scores(*embeddings(encoder, families))
    scores |= global_scores(*embeddings(encoder, unrelated))
    return {name: round(value, 5) for name, value in scores.items()}


def text_states(folder: str | Path) -> tuple[Callable[[Tensor, Tensor], Tensor], int, Tokenizer]:
    """Return the states of a folder's text tower or text encoder, their width, and its tokenizer.

    Raises:
        CheckpointError: if the folder holds neither.
    """
    path = Path(folder) / "config.json"
    kind = json.loads(path.read_text(encoding="utf-8")).get("model_type") if path.is_file() else None
    if kind == Clip.model_type:
        clip = Clip.from_pretrained(folder).eval()
        return clip.text_states, clip.config.text_hidden_size, Tokenizer.from_pretrained(folder)
    if kind == TextEncoder.model_type:
        encoder = TextEncoder.from_pretrained(folder).eval()
        return encoder, encoder.config.hidden_size, Tokenizer.from_pretrained(folder)
    raise CheckpointError(f"{folder} holds a {kind!r}, expected a CLIP or a text encoder", hint="name its folder")


def text_probe(
    folder: str | Path,
    *,
    seed: int = 0,
    captions: int = 6000,
    steps: int = 600,
    length: int = 32,
) -> dict[str, float]:
    """Return how well a probe reads attributes out of frozen text states.

    The probe is the small network that also teaches text towers (:class:`~huaben.recipes.readout.SlotReadout`), trained
    anew on training captions of at most ``length`` tokens and scored on fresh ones: ``slots`` is the share of mentioned
    characters of which everything is read right, ``attributes`` the share of attributes, by language, and on templates
    that no training shows.

    Args:
        folder: of a CLIP or a text encoder.
        seed: of captions and probe.
        captions: to train on; ``steps`` batches of them.
        steps: see there.
        length: longest caption; CLIP's towers read no more than 32 tokens.
    """
    states_of, width, tokenizer = text_states(folder)

    def frozen(purpose: str, count: int, words: Literal["train", "paraphrase"]) -> dict[str, Tensor]:
        corpus, _ = make_corpus(seed, count, 0, 64, tokenizer, words=words, purpose=purpose)
        short = np.flatnonzero((corpus.captions != PAD).sum(1) <= length)
        ids = torch.from_numpy(corpus.captions[short, :length].astype(np.int64))
        with torch.inference_mode():
            states = torch.cat([states_of(part, part != PAD).half() for part in ids.split(128)])
        return {
            "states": states.clone(),
            "mask": ids != PAD,
            "slots": torch.from_numpy(corpus.slots[short].astype(np.int64)),
            "scene": torch.from_numpy(corpus.scenes[short].astype(np.int64)),
            "language": torch.from_numpy(short % 2),
        }

    data = frozen("probe", captions, "train")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        probe = SlotReadout(width)
    centre = data["states"][data["mask"]].float()
    shift, spread = centre.mean(0), centre.std(0).clamp(min=1e-4)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    rng = numpy_stream(seed, "text probe")
    for _ in range(steps):
        rows = torch.from_numpy(rng.integers(len(data["slots"]), size=PROBE_BATCH))
        states = (data["states"][rows].float() - shift) / spread
        terms = probe.losses(states, data["mask"][rows], data["slots"][rows], data["scene"][rows])
        optimizer.zero_grad(set_to_none=True)
        (terms["slots"] + terms["scene"]).backward()
        optimizer.step()
        schedule.step()
    scores: dict[str, float] = {}
    for words in ("train", "paraphrase"):
        fresh = frozen(f"probe fresh {words}", max(400, captions // 5), words)
        with torch.inference_mode():
            parts = [
                probe((states.float() - shift) / spread, mask)
                for states, mask in zip(fresh["states"].split(200), fresh["mask"].split(200), strict=True)
            ]
        slots = predicted(torch.cat([part[0] for part in parts]), CHARACTER_ATTRIBUTES) == fresh["slots"]
        scene = predicted(torch.cat([part[1] for part in parts]), SCENE_ATTRIBUTES) == fresh["scene"]
        there = fresh["slots"][..., 1] >= 0
        prefix = "" if words == "train" else "paraphrase_"
        for code, language in enumerate(LANGUAGES):
            of = fresh["language"] == code
            right = slots[of][there[of]]
            scores[f"slots_{prefix}{language}"] = round(float(right.all(-1).float().mean()), 5)
            scores[f"attributes_{prefix}{language}"] = round(float(right.float().mean()), 5)
            scores[f"scene_{prefix}{language}"] = round(float(scene[of].float().mean()), 5)
    return scores


def run(
    seed: int = 0,
    start: str = str(WEIGHTS / "clip"),
    text: str = str(WEIGHTS / "text"),
    cache: str | None = None,
    partners: Literal["mined", "none"] = "mined",
    gamma: float = 0.3,
    directions: Literal["i2t", "both"] = "i2t",
    k: int = FAMILY_SIZE - 1,
    hard_per_seed: int = 1,
    families: int = 500,
    num_scenes: int = 12_000,
    batch_size: int = 96,
    minutes: float | None = None,
    steps: int | None = None,
    learning_rate: float = 1e-3,
    judged_families: int = 120,
    unrelated: int = 1000,
    probe_captions: int = 6000,
    probe_steps: int = 600,
    *,
    out: Path | None = None,
) -> dict[str, Any]:
    """Train on, and judge old and new weights.

    Args:
        seed: of pictures, batches and heads.
        start: folder of the weights to improve.
        text: folder of the text encoder that the text states are compared with.
        cache: folder of the training, which goes on there after a kill; default ``cache`` below ``out``. The new
            weights are its ``final``.
        partners: "mined" hard pairs, or "none": the same training without HELIP.
        gamma, directions: of the margin loss; a weight of 0 leaves it out.
        k, hard_per_seed, families, num_scenes, batch_size: as in :class:`ImprovedRecipe`.
        minutes, steps: length of the training; 10 minutes by default.
        learning_rate: the highest one.
        judged_families, unrelated: fresh scenes to judge on.
        probe_captions, probe_steps: as ``captions`` and ``steps`` of :func:`text_probe`.
        out: folder of the results.

    Returns:
        ``clip``: scores of ``old`` and ``new`` weights; ``text_states``: the probe's scores of both text towers and of
        the text encoder; ``mined``: of the families' rows; ``folder`` of the new weights.
    """
    folder = Path(cache) if cache is not None else Path(out or ".") / "cache"
    margin = MarginConfig(gamma=gamma, directions=directions) if partners == "mined" and gamma > 0 else None
    recipe = ImprovedRecipe(
        start=start,
        families=families,
        partners=partners,
        k=k,
        hard_per_seed=hard_per_seed,
        margin=margin,
        pairs_file=folder / "pairs.npz" if partners == "mined" else None,
        seed=seed,
        num_scenes=num_scenes,
        batch_size=batch_size,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config = ClipRecipe.fit.replace(learning_rate=learning_rate, decay_share=0.5, checkpoint_every_s=60.0, seed=seed)
    done = _finished(folder, recipe.settings)
    if done is None:
        if minutes is None and steps is None:
            minutes = 10.0
        result = fit(recipe, folder, minutes=minutes, steps=steps, resume=True, config=config)
        done = {"steps": result.steps, "seconds": round(result.seconds, 1), "settings": recipe.settings}
        write_bytes(folder / "done.json", json.dumps(done, sort_keys=True).encode())
    new = folder / FINAL_NAME
    tokenizer, model = recipe.tokenizer, recipe.model
    shape: Mapping[str, int] = {"size": model.image_size, "length": model.text_length}
    fresh = make_families(seed, "judged families", judged_families, tokenizer, **shape)
    others = make_scenes(seed, "judged unrelated", unrelated, tokenizer, **shape)
    towers = {"old": Path(start), "new": new, "text": Path(text)}
    results: dict[str, Any] = {
        "clip": {name: clip_scores(towers[name], fresh, others) for name in ("old", "new")},
        "text_states": {
            name: text_probe(path, seed=seed, captions=probe_captions, steps=probe_steps, length=model.text_length)
            for name, path in towers.items()
        },
        "settings": recipe.settings,
        "steps": done["steps"],
        "seconds": done["seconds"],
        "folder": str(new),
    }
    if partners == "mined":
        pairs = np.asarray(recipe.pairs.pairs)[recipe.num_scenes :] - recipe.num_scenes
        results["mined"] = mined_statistics(np.maximum(pairs, -1))
    return results


def _finished(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what is known of a training that is over; None if there is none.

    Raises:
        CheckpointError: if it was made with other settings.
    """
    path = folder / "done.json"
    if not path.exists():
        return None
    done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if done["settings"] != json.loads(json.dumps(dict(settings))):
        raise CheckpointError(f"{folder} holds weights of other settings", hint="use another cache")
    return done
