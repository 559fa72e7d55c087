"""Train the autoencoder on crops of fresh renders: pixels to 12 channels at an eighth of the resolution, and back.

Crops of 64 pixels, most of them over a character, from scenes drawn at several sizes: the network is convolutional, so
what it learns on crops holds for whole pictures at a quarter of the cost. After training, the mean and spread of each
latent channel are measured and stored with the model, so that a diffusion model sees latents of unit variance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..diffusion.autoencoder import PRESETS, Autoencoder, AutoencoderConfig, AutoencoderLossConfig, autoencoder_loss
from ..errors import ConfigError
from ..rng import check_seed, numpy_stream, torch_stream
from ..training import FitConfig
from ..world.render import render
from ..world.sample import sample_scene

NAME = "autoencoder"
CROP = 64
RENDER_SIZES = (128, 192, 256, 256, 256, 256)
CROPS_PER_SCENE = 2


def to_tensor(images: np.ndarray) -> Tensor:
    """Return uint8 (B, H, W, 3) as float (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_images(tensor: Tensor) -> np.ndarray:
    """Return float (B, 3, H, W) in [-1, 1] as uint8 (B, H, W, 3)."""
    scaled = tensor.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).cpu().numpy()


class AutoencoderRecipe:
    """Crops in, L1 with gradient and coarse terms, a light KL.

    Args:
        seed: of the scenes.
        batch_size: crops a step.
        model: what to build.
        start_from: folder of an autoencoder to begin with instead of fresh weights.
        decoder_only: keep the encoder as it is, so that latents, and painters trained on them, stay valid.
    """

    name = NAME
    fit = FitConfig(
        learning_rate=2e-3,
        betas=(0.9, 0.99),
        weight_decay=1e-3,
        warmup_steps=100,
        ema_decay=0.999,
        bf16=True,
        default_minutes=15,
        decay_share=0.4,
        preview_every=1000,
        prefetch="thread",
    )

    def __init__(
        self,
        *,
        seed: int = 0,
        batch_size: int = 16,
        model: AutoencoderConfig = PRESETS["embedded"],
        start_from: Path | None = None,
        decoder_only: bool = False,
    ) -> None:
        if decoder_only and start_from is None:
            raise ConfigError("decoder_only needs an encoder to keep", hint="give start_from as well")
        self.seed = check_seed(seed)
        self.start_from, self.decoder_only = start_from, decoder_only
        self.batch_size = batch_size
        self.model = model
        self.loss_config = AutoencoderLossConfig(kl_weight=4e-6)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "crop": CROP,
            "loss": self.loss_config.to_dict(),
            "started_from": None if self.start_from is None else self.start_from.name,
            "decoder_only": self.decoder_only,
        }

    def build(self) -> Autoencoder:
        if self.start_from is None:
            return Autoencoder(self.model)
        model = Autoencoder.from_pretrained(self.start_from).float().train()
        if self.decoder_only:
            model.encoder.requires_grad_(False)
        return model

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return {"images": (B, 3, 64, 64), "step"}."""
        rng = numpy_stream(self.seed, NAME, step)
        crops: list[np.ndarray] = []
        while len(crops) < self.batch_size:
            size = int(rng.choice(RENDER_SIZES))
            scene = sample_scene(rng)
            rendered = render(scene, size)
            for k in range(CROPS_PER_SCENE):
                x, y = (int(v) for v in rng.integers(0, size - CROP + 1, 2))
                if k < CROPS_PER_SCENE - 1 or rng.random() < 0.5:
                    box = rendered.boxes[int(rng.integers(len(rendered.boxes)))]
                    centre = (box[:2] + rng.random(2) * (box[2:] - box[:2])) * size - CROP / 2
                    x, y = (int(np.clip(round(float(v)), 0, size - CROP)) for v in centre)
                crops.append(rendered.image[y : y + CROP, x : x + CROP])
        return {"images": to_tensor(np.stack(crops[: self.batch_size])), "step": torch.tensor(step)}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        assert isinstance(model, Autoencoder)
        noise = torch_stream(self.seed, NAME, "posterior", int(batch["step"]))
        return autoencoder_loss(model, batch["images"], noise, self.loss_config)

    @torch.inference_mode()
    def preview(self, model: nn.Module) -> np.ndarray:
        """Return originals above reconstructions."""
        assert isinstance(model, Autoencoder)
        images = _fresh(8, 128)
        again = to_images(model.decode_raw(model.encode(to_tensor(images))[0]))
        return np.concatenate([np.concatenate(list(images), 1), np.concatenate(list(again), 1)], 0)

    @torch.inference_mode()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return PSNR in dB on fresh whole scenes at three sizes."""
        assert isinstance(model, Autoencoder)
        scores = {}
        for size, count in ((64, 64), (128, 128), (256, 24)):
            errors = []
            for start in range(0, count, 8):
                images = _fresh(8, size, start)
                again = to_images(model.decode_raw(model.encode(to_tensor(images))[0]))
                errors += [float(((a.astype(float) - b) ** 2).mean()) for a, b in zip(images, again, strict=True)]
            scores[f"psnr_{size}_db"] = float(np.mean(10 * np.log10(255**2 / np.array(errors))))
        return scores

    def save(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(model, Autoencoder)
        scaled = model if self.decoder_only else with_latent_statistics(model)
        scaled.save_pretrained(folder, dtype=torch.float16)


@torch.inference_mode()
def with_latent_statistics(model: Autoencoder, count: int = 256) -> Autoencoder:
    """Return the same weights with ``latent_mean`` and ``latent_std`` measured on fresh scenes."""
    latents = torch.cat([model.encode(to_tensor(_fresh(16, 128, 10_000 + k)))[0] for k in range(0, count, 16)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    config = model.config.replace(
        scaling_factor=1.0,
        latent_mean=tuple(round(float(v), 6) for v in mean),
        latent_std=tuple(round(float(v), 6) for v in std),
    )
    with torch.inference_mode(False):
        scaled = Autoencoder(config)
    scaled.load_state_dict(model.state_dict())
    return scaled.eval()


def _fresh(count: int, size: int, start: int = 0) -> np.ndarray:
    """Return scenes that no training step draws."""
    pictures = [render(sample_scene(numpy_stream(0, NAME, "fresh", start + k)), size).image for k in range(count)]
    return np.stack(pictures)


RECIPE = AutoencoderRecipe
