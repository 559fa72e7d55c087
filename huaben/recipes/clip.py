"""Train CLIP on pictures of the world at 64 pixels and captions in both languages.

The pictures are drawn once and kept in memory; a step takes some of them, moves each by a pixel or two (never mirrors
it: captions say where a character faces), and pairs it with one of its captions. Two read-outs speed up what
contrast alone learns slowly, and are dropped when the model is saved: the text states must say which attributes belong
to which mentioned character (:mod:`.readout`), and each image token what is drawn where it looks.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..clip.loss import contrastive_loss
from ..clip.model import PRESETS, Clip, ClipConfig
from ..clip.preprocess import to_float
from ..errors import CheckpointError, DataError
from ..language.tokenizer import PAD, TOKENIZER_NAME, Tokenizer
from ..rng import check_seed, numpy_stream
from ..stations import WEIGHTS
from ..training import FitConfig
from ..world.captions import Caption, CaptionSplit, caption
from ..world.render import render
from ..world.sample import sample_scene
from ..world.scene import SceneGraph, size_key
from ..world.vocabulary import Language
from .readout import IGNORED, NUM_CLASSES, SCENE_ATTRIBUTES, SlotReadout, attribute_losses, labels_of, slot_labels
from .text_corpus import LANGUAGES, pad_ids

NAME = "clip"
PATCH_ATTRIBUTES = ("species", "colour", "accessory", "expression", "facing", "size")
CAPTIONS = 4
"""Captions of a picture: two in each language, English first."""
MAX_SHIFT = 2


class ClipTraining(nn.Module):
    """CLIP and the heads that teach it."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.clip = Clip(config)
        self.readout = SlotReadout(config.text_hidden_size)
        self.patches = nn.Linear(config.image_hidden_size, sum(NUM_CLASSES[name] for name in PATCH_ATTRIBUTES))
        self.scene = nn.Linear(config.image_hidden_size, sum(NUM_CLASSES[name] for name in SCENE_ATTRIBUTES))


def patch_labels(scene: SceneGraph, grid: int) -> NDArray[np.int8]:
    """Return (grid * grid, 6): what the front-most character whose box holds a patch's centre looks like.

    Where there is none the species is "not said" and nothing else is asked; "no accessory" is asked like any other.
    """
    labels = np.full((grid, grid, len(PATCH_ATTRIBUTES)), IGNORED, np.int8)
    labels[..., 0] = NUM_CLASSES["species"] - 1
    centres = (np.arange(grid) + 0.5) / grid
    for character in scene.characters:
        x0, y0, x1, y1 = character.box
        inside = np.ix_((y0 < centres) & (centres < y1), (x0 < centres) & (centres < x1))
        looks = {**character.to_dict(), "size": size_key(character.box)}
        labels[inside] = labels_of({name: looks[name] for name in PATCH_ATTRIBUTES}, PATCH_ATTRIBUTES)
    return labels.reshape(grid * grid, -1)


def fitting_caption(
    scene: SceneGraph,
    rng: np.random.Generator,
    language: Language,
    tokenizer: Tokenizer,
    length: int,
    *,
    split: CaptionSplit = "train",
    rich: float | None = None,
) -> tuple[Caption, list[int]]:
    """Return a caption and its ids, said again more briefly while it is too long; the last try may be cut."""
    for attempt in range(4):
        said = caption(scene, rng, language, split, rich=rich if attempt == 0 else 0.4 if attempt == 1 else 0.1)
        ids = tokenizer.encode_ids(said.text)
        if len(ids) < length:
            break
    return said, ids


class ClipRecipe:
    """Pictures and captions; see the module.

    Args:
        seed: of the pictures, the captions, and what each step takes from them.
        preset: of the model; its vocabulary is the tokenizer's.
        tokenizer: folder with ``tokenizer.json``; the embedded text encoder's by default.
        num_scenes: pictures drawn before training.
        batch_size: pairs a step.
    """

    name = NAME
    fit = FitConfig(
        learning_rate=1.5e-3,
        betas=(0.9, 0.98),
        weight_decay=0.02,
        warmup_steps=100,
        ema_decay=0.998,
        bf16=True,
        default_minutes=8,
        decay_share=0.4,
        log_every=50,
    )
    weights: ClassVar[dict[str, float]] = {
        "contrastive": 1.0, "patches": 0.5, "image_scene": 0.1, "slots": 0.25, "scene": 0.05,
    }  # fmt: skip

    def __init__(
        self,
        *,
        seed: int = 0,
        preset: str = "embedded",
        tokenizer: str | Path = WEIGHTS / "text",
        num_scenes: int = 12_000,
        batch_size: int = 96,
    ) -> None:
        self.seed = check_seed(seed)
        self.preset = PRESETS[preset]
        self.tokenizer_folder = Path(tokenizer)
        self.num_scenes, self.batch_size = num_scenes, batch_size

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "num_scenes": self.num_scenes,
            "batch_size": self.batch_size,
            "weights": self.weights,
        }

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The text recipe's.

        Raises:
            CheckpointError: if there is none.
        """
        if not (self.tokenizer_folder / TOKENIZER_NAME).is_file():
            raise CheckpointError(
                f"no {TOKENIZER_NAME} in {self.tokenizer_folder}",
                hint="train text first, and keep its final folder there, or name its folder",
            )
        return Tokenizer.from_pretrained(self.tokenizer_folder)

    @cached_property
    def model(self) -> ClipConfig:
        return self.preset.replace(vocab_size=self.tokenizer.vocab_size)

    @cached_property
    def _data(self) -> dict[str, NDArray[Any]]:
        """Pictures (N, S, S, 3), captions' ids (N, 4, L), and labels."""
        rng, config = numpy_stream(self.seed, NAME, "scenes"), self.model
        size, count, grid = config.image_size, self.num_scenes, config.image_size // config.patch_size
        data: dict[str, NDArray[Any]] = {
            "pictures": np.empty((count, size, size, 3), np.uint8),
            "patches": np.empty((count, grid * grid, len(PATCH_ATTRIBUTES)), np.int8),
            "image_scene": np.empty((count, len(SCENE_ATTRIBUTES)), np.int8),
        }
        ids: list[list[int]] = []
        slots: list[NDArray[np.int16]] = []
        scenes: list[list[int]] = []
        for index in range(count):
            scene = sample_scene(rng)
            data["pictures"][index] = render(scene, size).image
            data["patches"][index] = patch_labels(scene, grid)
            data["image_scene"][index] = labels_of(
                {"background": scene.background, "style": scene.style}, SCENE_ATTRIBUTES
            )
            for which in range(CAPTIONS):
                language = LANGUAGES[which * len(LANGUAGES) // CAPTIONS]
                said, tokens = fitting_caption(scene, rng, language, self.tokenizer, config.text_length)
                ids.append(tokens)
                slots.append(slot_labels(said.facts))
                scenes.append(labels_of(said.scene_facts, SCENE_ATTRIBUTES))
        data["ids"] = pad_ids(ids, config.text_length).reshape(count, CAPTIONS, -1)
        data["slots"] = np.stack(slots).reshape(count, CAPTIONS, *slots[0].shape)
        data["scene"] = np.array(scenes, np.int16).reshape(count, CAPTIONS, -1)
        return data

    def build(self) -> ClipTraining:
        if self.batch_size > self.num_scenes:
            raise DataError(f"batch_size={self.batch_size} of {self.num_scenes} pictures", hint="draw more pictures")
        _ = self._data  # drawn before the clock runs
        return ClipTraining(self.model)

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return pictures (uint8, B 3 S S), one caption each, and the labels of both."""
        rng, data = numpy_stream(self.seed, NAME, "batch", step), self._data
        rows = rng.choice(self.num_scenes, self.batch_size, replace=False)
        which = rng.integers(CAPTIONS, size=self.batch_size)
        edge = ((0, 0), (MAX_SHIFT, MAX_SHIFT), (MAX_SHIFT, MAX_SHIFT), (0, 0))
        wide, size = np.pad(data["pictures"][rows], edge, mode="edge"), self.model.image_size
        shifts = rng.integers(0, 2 * MAX_SHIFT + 1, (self.batch_size, 2))
        moved = np.stack([picture[y : y + size, x : x + size] for picture, (y, x) in zip(wide, shifts, strict=True)])
        ids = data["ids"][rows, which].astype(np.int64)
        return {
            "pictures": torch.from_numpy(moved.transpose(0, 3, 1, 2).copy()),
            "ids": torch.from_numpy(ids[:, : (ids != PAD).sum(1).max()]),
            "patches": torch.from_numpy(data["patches"][rows].astype(np.int64)),
            "image_scene": torch.from_numpy(data["image_scene"][rows].astype(np.int64)),
            "slots": torch.from_numpy(data["slots"][rows, which].astype(np.int64)),
            "scene": torch.from_numpy(data["scene"][rows, which].astype(np.int64)),
        }

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        assert isinstance(model, ClipTraining)
        clip, mask = model.clip, batch["ids"] != PAD
        tokens = clip.image_tokens(to_float(batch["pictures"]))
        states = clip.text_states(batch["ids"], mask)
        contrast = contrastive_loss(clip.project_image(tokens), clip.project_text(states, mask), clip.logit_scale)
        terms = {
            "contrastive": contrast["loss"],
            "patches": attribute_losses(model.patches(tokens), batch["patches"], PATCH_ATTRIBUTES).mean(),
            "image_scene": attribute_losses(model.scene(tokens.mean(1)), batch["image_scene"], SCENE_ATTRIBUTES).mean(),
            **model.readout.losses(states, mask, batch["slots"], batch["scene"]),
        }
        total = torch.stack([weight * terms[name] for name, weight in self.weights.items()]).sum()
        logged = {name: term.detach() for name, term in terms.items()}
        return {"loss": total, **logged, "accuracy": contrast["accuracy"], "scale": clip.logit_scale.detach()}

    @torch.inference_mode()
    def evaluate(self, model: nn.Module, count: int = 256) -> dict[str, float]:
        """Return R@1 among ``count`` fresh pairs: text to image and back, by language and on held-out templates.

        The captions say most of what there is to say, as far as it fits into the text tower; pictures of the same
        content can still be confused with each other. ``composition`` shows held-out combinations only.
        """
        assert isinstance(model, ClipTraining)
        clip = model.clip.float()
        scores: dict[str, float] = {}
        for split in ("train", "composition"):
            rng = numpy_stream(0, NAME, "fresh", split)
            scenes = [sample_scene(rng, split="train" if split == "train" else "composition") for _ in range(count)]
            pictures = np.stack([render(scene, self.model.image_size).image for scene in scenes])
            pixels = to_float(torch.from_numpy(pictures).permute(0, 3, 1, 2)).to(clip.device)
            images = torch.cat([clip.image_features(part) for part in pixels.split(64)])
            purpose = "" if split == "train" else "composition_"
            for language in LANGUAGES:
                ids = self._fresh_ids(scenes, rng, language, "train").to(clip.device)
                match = (images @ clip.text_features(ids, ids != PAD).T).cpu()
                scores[f"image_to_text_{purpose}{language}"] = _recall(match)
                scores[f"text_to_image_{purpose}{language}"] = _recall(match.T)
                if split == "train":
                    ids = self._fresh_ids(scenes, rng, language, "paraphrase").to(clip.device)
                    match = (images @ clip.text_features(ids, ids != PAD).T).cpu()
                    scores[f"text_to_image_paraphrase_{language}"] = _recall(match.T)
        return scores

    def _fresh_ids(
        self, scenes: list[SceneGraph], rng: np.random.Generator, language: Language, words: CaptionSplit
    ) -> Tensor:
        length = self.model.text_length
        said = [
            fitting_caption(scene, rng, language, self.tokenizer, length, split=words, rich=0.8)[1] for scene in scenes
        ]
        return torch.from_numpy(pad_ids(said, length).astype(np.int64))

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the model, without the heads, and the tokenizer it was trained with."""
        assert isinstance(model, ClipTraining)
        model.clip.save_pretrained(folder, dtype=torch.float16)
        self.tokenizer.save(folder)


def _recall(match: Tensor) -> float:
    """Return the share of rows whose own column scores highest."""
    return float((match.argmax(1) == torch.arange(len(match))).float().mean())


RECIPE = ClipRecipe
