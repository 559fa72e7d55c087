"""Train the painter: Hunyuan-DiT with grounded characters on latents of the embedded world.

Text encoders and autoencoder are frozen and come from their shipped folders. Every condition is dropped now and then,
so that one network is plain text to image, box-guided, reference-guided, and all of these at once, and has an
unconditional branch for guidance. Cells under a character weigh more than background.

Source: Li et al. 2024 (arXiv:2405.08748) section 2; v-prediction on the schedule of release 1.2.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..clip.model import Clip
from ..diffusion.autoencoder import Autoencoder
from ..diffusion.grounding import PRESETS, GroundedDiT, GroundedDiTConfig, Grounding, box_coverage, nobody
from ..diffusion.samplers import draw_noise, guided_batch, make_sampler, noise_streams, sample
from ..diffusion.schedule import PRESETS as SCHEDULES
from ..diffusion.schedule import NoiseSchedule
from ..language.encoder import TextEncoder
from ..language.tokenizer import Tokenizer
from ..rng import check_seed, numpy_stream, torch_stream
from ..stations import WEIGHTS
from ..training import FitConfig
from ..world.captions import caption, phrase
from ..world.scene import TRAINED_CHARACTERS
from ..world.vocabulary import Language
from .autoencoder import to_images
from .painter_data import Shard, ensure_shards, load_shard

NAME = "painter"
CACHE = Path("runs/painter-data")
PHRASE_LENGTH = 24
CHARACTER_WEIGHT = 3.0
"""How much more a latent cell under a character weighs than one of background."""

# Shares of pictures by what is known about them; the rest have everything.
NOTHING, TEXT_ONLY, GROUNDING_ONLY = 0.08, 0.12, 0.10
REFERENCE, PHRASE_DROPPED = 0.65, 0.03
CANVAS_GAIN = 0.5
BOX_JITTER = 0.01


class PainterRecipe:
    """Noised latents in, velocity out.

    Args:
        seed: of data order, captions, noise and what is dropped.
        batch_size: pictures a step.
        shards: how many shards of 1,000 scenes to train on.
        model: what to build.
        weights: folder with the text, clip and autoencoder folders.
        cache: where shards are kept.
        start_from: folder of a painter to begin with instead of fresh weights.
    """

    name = NAME
    fit = FitConfig(
        learning_rate=1.2e-3,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        warmup_steps=300,
        ema_decay=0.9985,
        bf16=True,
        default_minutes=60,
        decay_share=0.35,
        checkpoint_every_s=180,
        log_every=50,
        preview_every=1000,
        prefetch="thread",
    )

    def __init__(
        self,
        *,
        seed: int = 0,
        batch_size: int = 32,
        shards: int = 30,
        model: GroundedDiTConfig = PRESETS["embedded"],
        weights: Path = WEIGHTS,
        cache: Path = CACHE,
        start_from: Path | None = None,
    ) -> None:
        self.seed = check_seed(seed)
        self.batch_size, self.num_shards, self.model = batch_size, shards, model
        self.weights, self.cache = Path(weights), Path(cache)
        self.start_from = start_from
        self.schedule = NoiseSchedule(SCHEDULES["embedded"])

    @property
    def settings(self) -> dict[str, Any]:
        """What the card says."""
        started = None if self.start_from is None else self.start_from.name
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "shards": self.num_shards,
            "config": self.model.to_dict(),
            "started_from": started,
        }

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_pretrained(self.weights / "text")

    @functools.cached_property
    def text_encoder(self) -> TextEncoder:
        return TextEncoder.from_pretrained(self.weights / "text").requires_grad_(False)

    @functools.cached_property
    def clip(self) -> Clip:
        return Clip.from_pretrained(self.weights / "clip").requires_grad_(False)

    @functools.cached_property
    def autoencoder(self) -> Autoencoder:
        return Autoencoder.from_pretrained(self.weights / "autoencoder").requires_grad_(False)

    @functools.cached_property
    def shards(self) -> list[Shard]:
        paths = ensure_shards(self.cache, self.weights / "autoencoder", self.seed, self.num_shards)
        return [load_shard(path) for path in paths]

    def build(self) -> GroundedDiT:
        if self.start_from is not None:
            return GroundedDiT.from_pretrained(self.start_from).train()
        model = GroundedDiT(self.model)
        with torch.no_grad():  # the canvas starts as a faint copy of what latents look like to the transformer
            model.grounder.from_canvas.weight.copy_(CANVAS_GAIN * model.dit.patch_embed.weight)
            model.grounder.from_canvas.bias.zero_()
        return model

    def batch(self, step: int) -> dict[str, Any]:
        """Return latents, captions and phrases as token ids, and the grounding without its phrases."""
        rng = numpy_stream(self.seed, NAME, step)
        shard = self.shards[int(rng.integers(len(self.shards)))]
        rows = rng.integers(len(shard.counts), size=self.batch_size)
        k = TRAINED_CHARACTERS
        index = torch.from_numpy(rows)
        present = torch.from_numpy(np.arange(k) < shard.counts[rows][:, None])
        captions, phrases = [], []
        referenced = np.zeros((self.batch_size, k), bool)
        for b, row in enumerate(rows):
            known = rng.random()
            scene = shard.scene(int(row))
            language: Language = "en" if rng.random() < 0.5 else "zh"
            captions.append("" if known < NOTHING or known > 1 - GROUNDING_ONLY else caption(scene, rng, language).text)
            if known < NOTHING + TEXT_ONLY:
                present[b] = False
            referenced[b] = rng.random(k) < REFERENCE if rng.random() < 0.5 else rng.random() < REFERENCE
            phrases += [phrase(c, rng, language).text for c in scene.characters] + [""] * (k - len(scene.characters))
        boxes = shard.boxes[index] + BOX_JITTER * torch.from_numpy(
            rng.standard_normal((self.batch_size, k, 4)).astype(np.float32)
        )
        boxes = torch.cat([boxes[..., :2], torch.maximum(boxes[..., 2:], boxes[..., :2] + 0.05)], dim=-1)
        text, c = self.tokenizer, self.model.dit
        timesteps = torch.from_numpy(self._timesteps(rng))
        return {
            "latents": shard.latents[index].float(),
            "noise": torch.randn(
                (self.batch_size, *shard.latents.shape[1:]), generator=torch_stream(self.seed, NAME, "noise", step)
            ),
            "timesteps": timesteps,
            "weight_boxes": shard.boxes[index],
            "weight_present": torch.from_numpy(np.arange(k) < shard.counts[rows][:, None]),
            "t5": tuple(text.encode(captions, c.t5_len)),
            "clip": tuple(text.encode(captions, c.clip_len)),
            "phrases": tuple(text.encode(phrases, PHRASE_LENGTH)),
            "boxes": boxes,
            "references": shard.references[index].float(),
            "canvas": shard.canvas[index].float(),
            "present": present,
            "has_phrase": torch.from_numpy(rng.random((self.batch_size, k)) >= PHRASE_DROPPED),
            "has_reference": torch.from_numpy(referenced),
        }

    def _timesteps(self, rng: np.random.Generator) -> np.ndarray:
        """Return uniform timesteps, one from each part of the range, so that batches differ less."""
        n = self.batch_size
        spread = (rng.permutation(n) + rng.random(n)) / n
        return (spread * self.schedule.num_train_timesteps).astype(np.int64)

    def conditions(self, model: GroundedDiT, batch: dict[str, Any]) -> tuple[tuple[Tensor, ...], Grounding]:
        """Run the frozen text encoders: the four text tensors and the complete grounding."""
        with torch.no_grad():
            (t5_ids, t5_mask), (clip_ids, clip_mask) = batch["t5"], batch["clip"]
            ids, mask = batch["phrases"]
            text = (
                self.clip.text_states(clip_ids, clip_mask),
                clip_mask,
                self.text_encoder(t5_ids, t5_mask),
                t5_mask,
            )
            pooled = self.text_encoder.pool(self.text_encoder(ids, mask), mask)
        shape = batch["present"].shape
        grounding = Grounding(
            pooled.float().unflatten(0, shape),
            batch["boxes"],
            batch["references"],
            batch["canvas"],
            batch["present"],
            batch["has_phrase"],
            batch["has_reference"],
        )
        return tuple(t.float() if t.is_floating_point() else t for t in text), grounding

    def loss(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        assert isinstance(model, GroundedDiT)
        text, grounding = self.conditions(model, batch)
        x0, noise, timesteps = batch["latents"], batch["noise"], batch["timesteps"]
        noisy = self.schedule.add_noise(x0, noise, timesteps)
        output = model(noisy, timesteps.float(), *text, grounding=grounding)
        error = (output.float() - self.schedule.v_target(x0, noise, timesteps)).square().mean(1)  # (B, h, w)
        cover = box_coverage(batch["weight_boxes"], (error.shape[1], error.shape[2]))
        cover = (cover * batch["weight_present"][..., None]).amax(1).unflatten(1, error.shape[1:])
        weight = 1 + CHARACTER_WEIGHT * cover
        loss = (error * weight).sum() / weight.sum()
        with torch.no_grad():
            late = timesteps > 0.6 * self.schedule.num_train_timesteps
            terms = {
                "v": error.mean(),
                "v_character": (error * cover).sum() / cover.sum().clamp_min(1),
                "v_noisy": error[late].mean() if bool(late.any()) else error.mean(),
            }
        return {"loss": loss, **terms}

    @torch.inference_mode()
    def preview(self, model: nn.Module) -> np.ndarray:
        """Return training pictures decoded, painted with boxes only, and painted with references too."""
        assert isinstance(model, GroundedDiT)
        batch = {name: value for name, value in self._square_batch().items()}
        rows = [to_images(self.autoencoder.decode(batch["latents"][:8]))]
        for referenced in (False, True):
            batch["has_reference"] = torch.full_like(batch["has_reference"], referenced)
            text, grounding = self.conditions(model, batch)
            text = tuple(t[:8] for t in text)
            grounding = Grounding(*(getattr(grounding, n)[:8] for n in grounding.__slots__))
            rows.append(
                to_images(self.autoencoder.decode(self.paint(model, text, grounding, side=batch["latents"].shape[-1])))
            )
        return np.concatenate([np.concatenate(list(row), 1) for row in rows], 0)

    def _square_batch(self) -> dict[str, Any]:
        """Return the first batch of square pictures, everything known."""
        step = 0
        while (batch := self.batch(step))["latents"].shape[-1] != batch["latents"].shape[-2]:
            step += 1
        return batch

    def paint(
        self,
        model: GroundedDiT,
        text: tuple[Tensor, ...],
        grounding: Grounding,
        *,
        side: int,
        steps: int = 16,
        scale: float = 2.0,
    ) -> Tensor:
        """Sample square latents, ``side`` wide, for conditions; used to look at a run."""
        count = text[0].shape[0]
        sampler = make_sampler("dpmpp_2m", self.schedule, steps)
        empty = tuple(self.tokenizer.encode([""] * count, self.model.dit.t5_len))
        empty_clip = tuple(self.tokenizer.encode([""] * count, self.model.dit.clip_len))
        nothing = (self.clip.text_states(*empty_clip), empty_clip[1], self.text_encoder(*empty), empty[1])
        both = tuple(torch.cat(pair) for pair in zip(nothing, text, strict=True))
        k = grounding.present.shape[1]
        p = self.model.dit.patch_size
        grid = (side // p, side // p)
        none = nobody(count, self.model.grounding, self.model.dit, k, grid=grid)
        doubled = Grounding(*(torch.cat([getattr(none, n), getattr(grounding, n)]) for n in grounding.__slots__))
        state = model.encode_text(*both, grounding=doubled, grid=grid)
        table = model.dit.plan(sampler.timesteps.float(), state)
        streams = noise_streams(list(range(count)))
        noise = draw_noise((count, self.model.dit.in_channels, side, side), streams)

        def denoise(latents: Tensor, i: int) -> Tensor:
            return guided_batch(model.dit.step(torch.cat([latents, latents]), i, state, table), scale)

        return sample(denoise, noise, sampler, generator=streams)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the loss on batches that training did not draw."""
        sums: dict[str, float] = {}
        for step in range(8):
            for name, value in self.loss(model, self.batch(2**40 + step)).items():
                sums[name] = sums.get(name, 0.0) + float(value) / 8
        return sums

    def save(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(model, GroundedDiT)
        model.save_pretrained(folder, dtype=torch.float16)


RECIPE = PainterRecipe
