"""Training of the world's detector: endless fresh pictures, every label known.

A batch is made of groups of four pictures. The second shows the individuals of the first again (other accessories,
expressions, facing, places, background, style); the third and fourth show other individuals of the same species and
colours. So the identity embedding always has a rival that only markings and build tell apart. Pictures are blurred,
compressed, made noisy, or encoded and decoded part of the time, because what the detector will read is mostly painted.

The detector is an instrument: unlike the models it measures, it is trained on held-out combinations and on pictures
with as many characters as a scene may hold, so that it is not worse on what a score is about.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.autoencoder import Autoencoder
from ..rng import numpy_stream, stream_seed
from ..stations import WEIGHTS as WEIGHTS_FOLDER
from ..training import FitConfig
from ..world.detector import (
    CHARACTER_ATTRIBUTES,
    PICTURE_ATTRIBUTES,
    PRESETS,
    Detector,
    DetectorConfig,
    Found,
    Read,
    correction_to,
    crop,
    enlarged,
    grow,
    letterbox,
)
from ..world.distort import random_distortion
from ..world.render import render
from ..world.sample import IDENTITIES, sample_look, sample_scene
from ..world.scene import MAX_CHARACTERS, TRAINED_CHARACTERS, SceneCharacter, SceneGraph
from ..world.sprites import ACCENTS, EYES, MARKINGS, individual
from ..world.trial import fit_to_place, measure
from ..world.vocabulary import INDEX
from .autoencoder import to_images, to_tensor

AUTOENCODED = 0.3
"""Share of pictures that go through the autoencoder."""
GROUP = 4
"""Pictures that share species and colours; pairs of them share individuals."""


def traits_of(identity: int) -> np.ndarray:
    """Return what makes an individual, float32, each entry in [-1, 1]: training targets beside the embedding."""
    who = individual(identity)
    plain = [
        who.hue / 0.018,
        (who.value - 1.0) / 0.05,
        np.cos(2 * np.pi * who.phase),
        np.sin(2 * np.pi * who.phase),
        2 * who.phase - 1,
        (who.ear - 1.03) / 0.31,
        (who.ear_width - 1.03) / 0.25,
        (who.eye_scale - 1.05) / 0.25,
        (who.eye_gap - 1.02) / 0.2,
        (who.stretch - 1.01) / 0.13,
        (who.head - 1.0) / 0.08,
        1.0 if who.blush else -1.0,
    ]
    kinds = [
        [1.0 if value == chosen else -1.0 for value in values]
        for values, chosen in ((MARKINGS, who.marking), (EYES, who.eye), (ACCENTS, who.accent))
    ]
    return np.array([*plain, *kinds[0], *kinds[1], *kinds[2]], dtype=np.float32)


NUM_TRAITS = len(traits_of(0))

Role = tuple[str, str, int]
"""Species, colour and identity of a character."""


def roles_of(scene: SceneGraph) -> list[Role]:
    return [(character.species, character.colour, character.identity) for character in scene.characters]


def cast(scene: SceneGraph, roles: list[Role], rng: np.random.Generator) -> SceneGraph:
    """Give the characters of a scene other roles, in random order; places stay, widths follow the drawings."""
    order = rng.permutation(len(roles))
    characters = []
    for character, number in zip(scene.characters, order, strict=True):
        species, colour, identity = roles[number]
        characters.append(fit_to_place(character.replace(species=species, colour=colour, identity=identity)))
    return scene.replace(characters=tuple(characters))


def group_scenes(rng: np.random.Generator) -> list[SceneGraph]:
    """Return four scenes with the same species and colours: twice the same individuals, twice others."""
    share = rng.random()
    number = None if share < 0.86 else int(rng.integers(TRAINED_CHARACTERS + 1, MAX_CHARACTERS + 1))
    first = sample_scene(rng, num_characters=number)
    number = len(first.characters)
    roles = roles_of(first)
    if rng.random() < 0.12:  # combinations the painter never sees: the instrument has to read them as well
        for i in range(number):
            look = sample_look(rng, "composition")
            roles[i] = (look["species"], look["colour"], roles[i][2])
    rivals = [(species, colour, int(rng.integers(IDENTITIES))) for species, colour, _ in roles]
    scenes = [first] + [sample_scene(rng, num_characters=number) for _ in range(GROUP - 1)]
    return [cast(scene, chosen, rng) for scene, chosen in zip(scenes, (roles, roles, rivals, rivals), strict=True)]


def jitter(boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move and stretch boxes as an unsure finder would: mostly a little, sometimes by a tenth."""
    size = boxes[:, 2:] - boxes[:, :2]
    amount = rng.choice([0.02, 0.045, 0.08], size=(len(boxes), 1))
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + rng.standard_normal(size.shape) * amount * size
    half = size / 2 * np.exp(rng.standard_normal(size.shape) * amount)
    return np.concatenate([centre - half, centre + half], 1).astype(np.float32)


@functools.lru_cache(maxsize=1)
def _autoencoder(folder: Path) -> Autoencoder:
    return Autoencoder.from_pretrained(folder)


@torch.inference_mode()
def autoencoded(image: np.ndarray, autoencoder: Autoencoder) -> np.ndarray:
    """Return a picture ``(H, W, 3)`` encoded and decoded again; one the autoencoder cannot take comes back as it was."""
    if image.shape[0] % autoencoder.factor or image.shape[1] % autoencoder.factor:
        return image
    return to_images(autoencoder.decode(autoencoder.encode_latents(to_tensor(image[None]))))[0]


class DetectorRecipe:
    """How the detector is trained.

    Args:
        seed: of pictures and weights.
        preset: a key of ``huaben.world.detector.PRESETS``.
        batch_size: pictures per step, a multiple of four.
        start_from: folder of a detector to begin with instead of fresh weights.
        autoencoder: folder of an autoencoder through which some pictures go, as every painted one does; None for none.
    """

    name = "detector"

    def __init__(
        self,
        seed: int = 0,
        *,
        preset: str = "embedded",
        batch_size: int = 24,
        start_from: Path | None = None,
        autoencoder: Path | None = WEIGHTS_FOLDER / "autoencoder",
    ) -> None:
        self.seed = seed
        self.start_from, self.autoencoder = start_from, autoencoder
        self.batch_size = batch_size
        self.config: DetectorConfig = PRESETS[preset].replace(num_traits=NUM_TRAITS)
        self.fit = FitConfig(
            learning_rate=1.5e-3,
            weight_decay=0.02,
            warmup_steps=100,
            grad_clip=5.0,
            ema_decay=0.997,
            bf16=True,
            decay="cosine",
            decay_share=0.5,
            lr_floor=0.01,
            default_minutes=25.0,
            seed=seed,
            prefetch="process",
        )
        self.settings: dict[str, Any] = {
            "preset": preset,
            "batch_size": batch_size,
            "config": self.config.to_dict(),
            "started_from": None if start_from is None else start_from.name,
            "autoencoded": 0.0 if autoencoder is None else AUTOENCODED,
        }

    def build(self) -> Detector:
        if self.start_from is not None:
            known = Detector.from_pretrained(self.start_from)
            return (known if known.config == self.config else enlarged(known, self.config)).train()
        return Detector(self.config)

    def _distorted(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the picture as it might reach the detector."""
        if self.autoencoder is not None and rng.random() < AUTOENCODED:
            return autoencoded(image, _autoencoder(self.autoencoder))
        return random_distortion(image, rng)

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return pictures and every label of them.

        ``images`` uint8 (B, 3, S, S); per character, with N of them in all: ``boxes`` and ``seen`` (jittered, what the
        reader is shown) (N, 4) on the canvas, ``index`` (N,) of its picture, ``labels`` (N, 5), ``who`` and ``rival``
        (N,) numbers that are equal for the same individual and for the same species and colour, ``traits`` (N, T),
        ``masks`` uint8 (N, M, M) over the reader's view; per picture: ``pictures`` (B, 2).
        """
        rng = numpy_stream(self.seed, "detector", step)
        size = self.config.image_size
        images: list[Tensor] = []
        boxes: list[np.ndarray] = []
        index: list[int] = []
        characters: list[SceneCharacter] = []
        masks: list[Tensor] = []
        pictures: list[list[int]] = []
        scenes: list[SceneGraph] = []
        for number in range(self.batch_size):
            if number % GROUP == 0:
                scenes = group_scenes(rng)
            scene = scenes[number % GROUP]
            if rng.random() < 0.03:
                scene = scene.replace(characters=())
            shape = self._shape(rng)
            rendered = render(scene, shape, masks=True)
            image = torch.from_numpy(self._distorted(rendered.image, rng).copy()).permute(2, 0, 1)
            visible = torch.from_numpy(rendered.masks).float() if rendered.masks is not None else torch.zeros(0)
            share = (1.0, 1.0)
            if shape != (size, size):
                # 0 in [-1, 1] is 127.5: the padding the detector sees when it letterboxes
                canvas, share = letterbox(image.float() - 127.5, size)
                image = (canvas + 127.5).round().to(torch.uint8)
                visible = visible if not len(visible) else letterbox(visible, size)[0]
            images.append(image)
            boxes.append(rendered.boxes * np.array([*share, *share], dtype=np.float32))
            index += [number] * len(scene.characters)
            characters += scene.characters
            masks.append(visible)
            pictures.append([INDEX[name][getattr(scene, name)] for name in PICTURE_ATTRIBUTES])
        true = np.concatenate(boxes).astype(np.float32).reshape(-1, 4)
        seen = torch.from_numpy(jitter(true, rng))
        identities = [character.identity for character in characters]
        traits = np.array([traits_of(identity) for identity in identities], dtype=np.float32)
        kinds = [(character.species, character.colour) for character in characters]
        return {
            "images": torch.stack(images),
            "boxes": torch.from_numpy(true),
            "seen": seen,
            "index": torch.tensor(index, dtype=torch.long),
            "labels": torch.tensor(
                [[INDEX[name][getattr(c, name)] for name in CHARACTER_ATTRIBUTES] for c in characters], dtype=torch.long
            ).reshape(-1, len(CHARACTER_ATTRIBUTES)),
            "who": _numbered(list(zip(identities, kinds, strict=True))),
            "rival": _numbered(kinds),
            "traits": torch.from_numpy(traits.reshape(-1, NUM_TRAITS)),
            "masks": self._mask_views(masks, seen),
            "pictures": torch.tensor(pictures, dtype=torch.long),
        }

    def _shape(self, rng: np.random.Generator) -> tuple[int, int]:
        """Return height and width to render at: mostly the canvas, sometimes another shape or size."""
        size, share = self.config.image_size, rng.random()
        if share < 0.85:
            return size, size
        longest = int(size * (0.6 + 0.9 * rng.random())) if share < 0.92 else size
        short = max(32, int(longest * (0.62 + 0.38 * rng.random())))
        return (short, longest) if rng.random() < 0.5 else (longest, short)

    def _mask_views(self, masks: list[Tensor], seen: Tensor) -> Tensor:
        """Return the visible share of every pixel of the reader's views, ``(N, M, M)`` uint8."""
        size = self.config.image_size
        planes = [plane.reshape(-1, 1, size, size) for plane in masks if plane.numel()]
        if not planes:
            return torch.zeros(0, self.config.mask_size, self.config.mask_size, dtype=torch.uint8)
        views = grow(seen, self.config.crop_margin)
        cut = crop(torch.cat(planes), views, torch.arange(len(views)), self.config.mask_size)
        return (cut[:, 0] * 255).round().to(torch.uint8)

    def loss(self, model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the sum of what is wrong with finding and reading, and each part."""
        canvas = batch["images"].float() / 127.5 - 1
        if not len(batch["boxes"]):
            terms = find_terms(model.find(canvas), batch)
            return {"loss": _weighed(terms), **_detached(terms)}
        found, read = model(canvas, batch["seen"], batch["index"])
        terms = find_terms(found, batch) | read_terms(read, batch)
        species, colour = (read.characters[name].argmax(-1) for name in ("species", "colour"))
        right = (species == batch["labels"][:, 0]) & (colour == batch["labels"][:, 1])
        return {"loss": _weighed(terms), **_detached(terms), "recognised": right.float().mean()}

    def evaluate(self, model: Any) -> dict[str, float]:
        """Return the scores on fresh pictures that no training step has seen."""
        return measure(model, count=400, groups=8, seed=stream_seed(self.seed, "detector", "evaluate"))

    def save(self, model: Any, folder: Path) -> None:
        """Write the detector in 16 bits."""
        model.save_pretrained(folder, dtype=torch.float16)


LOSS_WEIGHTS: dict[str, float] = {
    "heat": 1.0,
    "box": 2.0,
    "background": 0.3,
    "style": 0.3,
    "species": 1.0,
    "colour": 1.0,
    "accessory": 1.0,
    "expression": 1.0,
    "facing": 0.3,
    "correction": 10.0,
    "traits": 12.0,
    "identity": 0.5,
    "rivals": 1.0,
    "mask": 1.0,
}
"""How much each part of the loss counts. Traits are a mean over thirty numbers and corrections are small numbers: both
need a large weight to be learned at all."""

TEMPERATURE = 0.1
"""Of the identity embedding's contrastive losses."""


def _weighed(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([LOSS_WEIGHTS[name] * term for name, term in terms.items()]).sum()


def _detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: term.detach() for name, term in terms.items()}


def _numbered(values: list[Any]) -> Tensor:
    """Return numbers ``(N,)`` that are equal where the values are."""
    numbers: dict[Any, int] = {}
    return torch.tensor([numbers.setdefault(value, len(numbers)) for value in values], dtype=torch.long)


def heat_targets(boxes: Tensor, index: Tensor, pictures: int, size: int) -> tuple[Tensor, Tensor]:
    """Return bumps ``(N, S, S)`` around each box's centre, 1 in its cell, and the highest per picture ``(B, S, S)``."""
    cells = (torch.arange(size, device=boxes.device) + 0.5) / size
    centre = ((boxes[:, :2] + boxes[:, 2:]) / 2 * size).clamp(0, size - 1e-3).floor()
    middle = (centre + 0.5) / size
    spread = 0.1 * (boxes[:, 2:] - boxes[:, :2]) + 0.25 / size
    x = ((cells[None] - middle[:, :1]) / spread[:, :1]) ** 2
    y = ((cells[None] - middle[:, 1:]) / spread[:, 1:]) ** 2
    bumps = torch.exp(-0.5 * (y[:, :, None] + x[:, None, :]))
    heat = boxes.new_zeros(pictures, size, size)
    if len(boxes):
        heat = heat.scatter_reduce(0, index[:, None, None].expand_as(bumps), bumps, "amax")
    return bumps, heat


def find_terms(found: Found, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the finder's losses: focal loss of the heatmap, boxes, background and style."""
    boxes, index = batch["boxes"], batch["index"]
    bumps, heat = heat_targets(boxes, index, len(found.heat), found.heat.shape[-1])
    positive = heat >= 1 - 1e-6
    p = found.heat.sigmoid()
    hit = -F.logsigmoid(found.heat) * (1 - p) ** 2
    miss = -F.logsigmoid(-found.heat) * p**2 * (1 - heat) ** 4
    terms = {"heat": torch.where(positive, hit, miss).sum() / max(1, len(boxes))}
    if len(boxes):
        weight = bumps * ((bumps > 0.5) & (bumps >= heat[index] - 1e-6))  # (N, S, S)
        rows, ys, xs = weight.nonzero(as_tuple=True)
        weight = weight[rows, ys, xs]
        guess, true = found.boxes[index[rows], ys, xs], boxes[rows]
        size = (true[:, 2:] - true[:, :2]).repeat(1, 2)
        wrong = ((guess - true).abs() / size).sum(-1) + (1 - generalised_iou(guess, true))
        terms["box"] = (wrong * weight).sum() / weight.sum()
    for column, name in enumerate(PICTURE_ATTRIBUTES):
        terms[name] = F.cross_entropy(found.pictures[name], batch["pictures"][:, column])
    return terms


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the generalised intersection over union of boxes ``(N, 4)``, in (-1, 1].

    Source: Rezatofighi et al. 2019 (arXiv:1902.09630).
    """
    area = (a[:, 2:] - a[:, :2]).prod(-1) + (b[:, 2:] - b[:, :2]).prod(-1)
    common = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(-1)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(-1)
    union = area - common
    return common / union.clamp(min=1e-9) - (hull - union) / hull.clamp(min=1e-9)


def read_terms(read: Read, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the reader's losses: attributes, box correction, mask, traits, and identity against all and rivals."""
    terms = {
        name: F.cross_entropy(read.characters[name], batch["labels"][:, column])
        for column, name in enumerate(CHARACTER_ATTRIBUTES)
    }
    terms["correction"] = (read.correction - correction_to(batch["seen"], batch["boxes"])).abs().sum(-1).mean()
    terms["traits"] = F.mse_loss(read.traits, batch["traits"])
    terms["mask"] = F.binary_cross_entropy_with_logits(read.masks, batch["masks"].float() / 255)
    same, rival = (batch[name][:, None] == batch[name][None] for name in ("who", "rival"))
    likeness = read.identity @ read.identity.T / TEMPERATURE
    terms["identity"] = contrast(likeness, same, torch.ones_like(same))
    terms["rivals"] = contrast(likeness, same, rival)
    return terms


def contrast(likeness: Tensor, same: Tensor, among: Tensor) -> Tensor:
    """Return how hard it is to pick the same individual out of others.

    Args:
        likeness: ``(N, N)`` scaled cosines.
        same: ``(N, N)`` whether two show the same individual.
        among: ``(N, N)`` who has to be told apart; contains ``same``.

    Returns:
        Mean cross-entropy over those that have a second view; 0 if none has.
    """
    others = ~torch.eye(len(likeness), dtype=torch.bool, device=likeness.device)
    positive = same & others
    pool = likeness.masked_fill(~(among & others), -1e4)
    has = positive.any(1)
    if not bool(has.any()):
        return likeness.sum() * 0
    log_share = likeness[has] - pool[has].logsumexp(1, keepdim=True)
    return -(log_share * positive[has]).sum(1).div(positive[has].sum(1)).mean()


RECIPE = DetectorRecipe
