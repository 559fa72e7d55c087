"""Pixels to latents and back: a convolutional variational autoencoder.

The layout (names, shapes, arithmetic) is that of diffusers' ``AutoencoderKL``, so the folders of its users, SDXL's
among them, load without conversion. One thing is added: with ``pixel_unshuffle`` above 1 the picture is folded into
channels before the encoder and unfolded after the decoder, which makes a small network on a CPU many times cheaper.

Source: Hunyuan-DiT (arXiv:2405.08748) section 2.1 uses SDXL's autoencoder: four channels, factor 8.

Legend: B batch, C channels, H W picture, h w latent. Pictures are floats in [-1, 1].
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from ..config import Config
from ..errors import CheckpointError, ConfigError, ShapeError
from ..pretrained import CONFIG_NAME, PretrainedModel, check_state, read_config, read_weights, write_atomic

DIFFUSERS_CLASS = "AutoencoderKL"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model"
NORM_EPS = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderConfig(Config):
    """Sizes of an autoencoder.

    Args:
        in_channels: of the picture given to :meth:`Autoencoder.encode`, before unfolding.
        out_channels: of the picture that :meth:`Autoencoder.decode` returns.
        latent_channels: of one latent cell.
        block_out_channels: width per resolution; every entry but the last halves the resolution.
        layers_per_block: residual blocks per resolution in the encoder (one more in the decoder).
        norm_num_groups: of every GroupNorm; divides every width.
        mid_block_add_attention: one self-attention over all cells at the lowest resolution.
        use_quant_conv: a 1x1 convolution after the encoder.
        use_post_quant_conv: a 1x1 convolution before the decoder.
        scaling_factor: latents given to a diffusion model are ``(z - shift) * scaling_factor``.
        shift_factor: subtracted before scaling; None is 0.
        latent_mean: per channel, subtracted before scaling; needs ``latent_std``.
        latent_std: per channel, divided by before scaling; needs ``latent_mean``.
        pixel_unshuffle: side of the pixel square that is folded into channels around the network.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latent_mean: tuple[float, ...] | None = None
    latent_std: tuple[float, ...] | None = None
    pixel_unshuffle: int = 1

    def __post_init__(self) -> None:
        """Refuse impossible sizes."""
        for name in ("in_channels", "out_channels", "latent_channels", "layers_per_block", "pixel_unshuffle"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}, expected at least 1")
        if not self.block_out_channels:
            raise ConfigError("block_out_channels is empty", hint="give one width per resolution, such as (64, 96)")
        if self.norm_num_groups < 1:
            raise ConfigError(f"norm_num_groups={self.norm_num_groups}, expected at least 1")
        for width in self.block_out_channels:
            if width < 1 or width % self.norm_num_groups:
                raise ConfigError(
                    f"norm_num_groups={self.norm_num_groups} does not divide block_out_channels entry {width}",
                    hint="choose widths that are multiples of norm_num_groups",
                )
        if self.scaling_factor <= 0:
            raise ConfigError(f"scaling_factor={self.scaling_factor}, expected above 0")
        if (self.latent_mean is None) != (self.latent_std is None):
            raise ConfigError("latent_mean and latent_std come together", hint="give both or neither")
        for name in ("latent_mean", "latent_std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.latent_channels:
                raise ConfigError(f"{name} has {len(values)} values, expected latent_channels={self.latent_channels}")
        if self.latent_std is not None and min(self.latent_std) <= 0:
            raise ConfigError(f"latent_std={self.latent_std}, expected values above 0")

    @property
    def factor(self) -> int:
        """Picture pixels per latent cell, along one side."""
        return int(self.pixel_unshuffle * 2 ** (len(self.block_out_channels) - 1))


PRESETS: dict[str, AutoencoderConfig] = {
    "sdxl": AutoencoderConfig(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32, scaling_factor=0.13025
    ),
    "embedded": AutoencoderConfig(
        block_out_channels=(64, 96),
        layers_per_block=1,
        latent_channels=12,
        norm_num_groups=16,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        pixel_unshuffle=4,
    ),
    "tiny": AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, scaling_factor=0.5),
}


class Autoencoder(PretrainedModel):
    """The autoencoder; see the module's docstring."""

    config_class: ClassVar[type[Config]] = AutoencoderConfig
    model_type: ClassVar[str] = "autoencoder"
    config: AutoencoderConfig

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        folded, latent = config.pixel_unshuffle**2, config.latent_channels
        self.encoder = Encoder(config, config.in_channels * folded, 2 * latent)
        self.decoder = Decoder(config, latent, config.out_channels * folded)
        if config.use_quant_conv:
            self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        if config.use_post_quant_conv:
            self.post_quant_conv = nn.Conv2d(latent, latent, 1)

    @property
    def factor(self) -> int:
        """Picture pixels per latent cell, along one side."""
        return self.config.factor

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the posterior, each (B, C, h, w), not scaled.

        Args:
            images: (B, in_channels, H, W) in [-1, 1]; H and W are multiples of :attr:`factor`.

        Raises:
            ShapeError: for another rank, channel count or size.
        """
        self._check_images(images)
        hidden = self.encoder(F.pixel_unshuffle(images, self.config.pixel_unshuffle))
        if self.config.use_quant_conv:
            hidden = self.quant_conv(hidden)
        mean, logvar = hidden.chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def decode_raw(self, latents: Tensor) -> Tensor:
        """Return pictures (B, out_channels, H, W) of unscaled latents."""
        self._check_latents(latents)
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return F.pixel_shuffle(self.decoder(latents), self.config.pixel_unshuffle)

    def encode_latents(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return scaled latents, as a diffusion model takes them.

        Args:
            images: as for :meth:`encode`.
            generator: a CPU generator that draws from the posterior; without one the mean is returned.
        """
        mean, logvar = self.encode(images)
        return self.scale(mean if generator is None else sample_posterior(mean, logvar, generator))

    def decode(self, latents: Tensor) -> Tensor:
        """Return pictures of scaled latents; values can leave [-1, 1] slightly."""
        self._check_latents(latents)
        return self.decode_raw(self.unscale(latents))

    def scale(self, latents: Tensor) -> Tensor:
        """Return raw latents shifted and scaled for a diffusion model."""
        shift, gain = self._affine(latents)
        return (latents - shift) * gain

    def unscale(self, latents: Tensor) -> Tensor:
        """Undo :meth:`scale`."""
        shift, gain = self._affine(latents)
        return latents / gain + shift

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the reconstruction, the posterior's mean and its log-variance."""
        mean, logvar = self.encode(images)
        latents = mean if generator is None else sample_posterior(mean, logvar, generator)
        return self.decode_raw(latents), mean, logvar

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        layout: Literal["huaben", "diffusers"] = "huaben",
    ) -> None:
        """Write the folder, in our layout or in that of diffusers' ``AutoencoderKL``.

        Raises:
            ConfigError: if ``layout`` is unknown, or diffusers cannot express the model.
        """
        if layout == "huaben":
            super().save_pretrained(folder, dtype=dtype)
            return
        if layout != "diffusers":
            raise ConfigError(f"layout={layout!r}, expected 'huaben' or 'diffusers'")
        values = _to_diffusers_config(self.config)
        state = {
            name: (tensor if dtype is None else tensor.to(dtype)).contiguous().cpu()
            for name, tensor in self.state_dict().items()
        }
        folder = Path(folder)
        write_atomic(folder / f"{DIFFUSERS_WEIGHTS}.safetensors", save(state))
        write_atomic(folder / CONFIG_NAME, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = torch.float32,
        device: str | torch.device = "cpu",
        variant: str | None = None,
    ) -> Self:
        """Load our folder or one of diffusers' ``AutoencoderKL``, strictly, in eval mode.

        Args:
            folder: holds ``config.json`` and the weights.
            dtype: of the weights; None keeps the stored one.
            device: where to put the model.
            variant: of a diffusers file name, such as "fp16".

        Raises:
            CheckpointError: for anything but a complete, matching folder.
        """
        folder = Path(folder)
        values = read_config(folder)
        if "_class_name" not in values:
            if variant is not None:
                raise CheckpointError(f"variant={variant!r} belongs to diffusers folders, {folder} is not one")
            return super().from_pretrained(folder, dtype=dtype, device=device)
        try:
            config = _from_diffusers_config(values)
        except ConfigError as error:
            raise CheckpointError(f"{folder / CONFIG_NAME}: {error.message}", hint=error.hint) from error
        path = folder / ".".join(filter(None, [DIFFUSERS_WEIGHTS, variant, "safetensors"]))
        if not path.is_file():
            others = sorted(file.name for file in folder.glob("*.safetensors"))
            hint = f"the folder holds {', '.join(others)}: give variant" if others else "only safetensors are read"
            raise CheckpointError(f"no weights file at {path}", hint=hint)
        state = {_current_name(name): tensor for name, tensor in read_weights(path).items()}
        with torch.device("meta"):
            model = cls(config)
        check_state(model.state_dict(), state, str(path))
        # copies: what was read may be a view of the file, which someone can overwrite
        model.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
        return model.to(device=device, dtype=dtype).eval()

    def _affine(self, latents: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Return what is subtracted and what is then multiplied by."""
        config = self.config
        shift: Tensor | float = config.shift_factor or 0.0
        gain: Tensor | float = config.scaling_factor
        if config.latent_mean is not None and config.latent_std is not None:
            shift = shift + latents.new_tensor(config.latent_mean).view(1, -1, 1, 1)
            gain = gain / latents.new_tensor(config.latent_std).view(1, -1, 1, 1)
        return shift, gain

    def _check_images(self, images: Tensor) -> None:
        channels, factor = self.config.in_channels, self.factor
        if images.ndim != 4 or images.shape[1] != channels:
            raise ShapeError(f"images are {tuple(images.shape)}, expected (B, {channels}, H, W)")
        height, width = images.shape[2:]
        if height % factor or width % factor or not height or not width:
            near = [max(factor, round(side / factor) * factor) for side in (height, width)]
            raise ShapeError(
                f"picture of {height}x{width}, expected sides divisible by {factor}",
                hint=f"resize or crop it to {near[0]}x{near[1]}",
            )

    def _check_latents(self, latents: Tensor) -> None:
        channels = self.config.latent_channels
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise ShapeError(f"latents are {tuple(latents.shape)}, expected (B, {channels}, h, w)")


class Encoder(nn.Module):
    """Picture to posterior: convolutions that halve the resolution between widths."""

    def __init__(self, config: AutoencoderConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(before, width, config.layers_per_block, groups, downsample=i < len(widths) - 1)
            for i, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.mid_block = MidBlock(widths[-1], groups, attention=config.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, 2*latent, h, w)."""
        hidden = self.conv_in(hidden)
        for block in self.down_blocks:
            hidden = block(hidden)
        hidden = self.mid_block(hidden)
        return self.conv_out(F.silu(self.conv_norm_out(hidden)))


class Decoder(nn.Module):
    """Latents to picture: the encoder mirrored, with one residual block more per width."""

    def __init__(self, config: AutoencoderConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups, attention=config.mid_block_add_attention)
        self.up_blocks = nn.ModuleList(
            UpBlock(before, width, config.layers_per_block + 1, groups, upsample=i < len(widths) - 1)
            for i, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, latent, h, w) to (B, C, H, W)."""
        hidden = self.mid_block(self.conv_in(hidden))
        for block in self.up_blocks:
            hidden = block(hidden)
        return self.conv_out(F.silu(self.conv_norm_out(hidden)))


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, added to the input (through a 1x1 convolution where the width changes)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W)."""
        residual = self.conv1(F.silu(self.norm1(hidden)))
        residual = self.conv2(F.silu(self.norm2(residual)))
        return residual + (hidden if self.conv_shortcut is None else self.conv_shortcut(hidden))


class MidBlock(nn.Module):
    """Two residual blocks with an optional attention between them."""

    def __init__(self, channels: int, groups: int, *, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([SpatialAttention(channels, groups)] if attention else [])

    def forward(self, hidden: Tensor) -> Tensor:
        """Keep the shape."""
        hidden = self.resnets[0](hidden)
        for attention in self.attentions:
            hidden = attention(hidden)
        return self.resnets[1](hidden)


class SpatialAttention(nn.Module):
    """One head of self-attention over all cells, added to the input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, hidden: Tensor) -> Tensor:
        """Keep the shape."""
        cells = self.group_norm(hidden).flatten(2).transpose(1, 2)  # (B, h*w, C)
        mixed = F.scaled_dot_product_attention(
            self.to_q(cells)[:, None], self.to_k(cells)[:, None], self.to_v(cells)[:, None]
        )[:, 0]
        return hidden + self.to_out[0](mixed).transpose(1, 2).unflatten(2, hidden.shape[2:])


class DownBlock(nn.Module):
    """Residual blocks of one width, then half the resolution."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, *, downsample: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(in_channels if i == 0 else out_channels, out_channels, groups) for i in range(layers)
        )
        self.downsamplers = nn.ModuleList([Downsample(out_channels)] if downsample else [])

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H/2, W/2), or the same size in the last block."""
        for resnet in self.resnets:
            hidden = resnet(hidden)
        for downsample in self.downsamplers:
            hidden = downsample(hidden)
        return hidden


class UpBlock(nn.Module):
    """Residual blocks of one width, then twice the resolution."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, *, upsample: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(in_channels if i == 0 else out_channels, out_channels, groups) for i in range(layers)
        )
        self.upsamplers = nn.ModuleList([Upsample(out_channels)] if upsample else [])

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, in, h, w) to (B, out, 2h, 2w), or the same size in the last block."""
        for resnet in self.resnets:
            hidden = resnet(hidden)
        for upsample in self.upsamplers:
            hidden = upsample(hidden)
        return hidden


class Downsample(nn.Module):
    """A strided convolution, padded on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        """Halve height and width."""
        return self.conv(F.pad(hidden, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Double height and width."""
        return self.conv(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))


def sample_posterior(mean: Tensor, logvar: Tensor, generator: torch.Generator) -> Tensor:
    """Draw from the posterior, with noise drawn on the CPU."""
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    return mean + torch.exp(0.5 * logvar) * noise


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderLossConfig(Config):
    """Weights of the terms of :func:`autoencoder_loss`.

    Args:
        l1_weight: of the mean absolute error.
        gradient_weight: of the error of neighbouring pixels' differences, which keeps edges.
        multiscale_weight: of the absolute errors at half and quarter size, averaged.
        kl_weight: of the divergence from a standard normal, in nats a picture.
    """

    l1_weight: float = 1.0
    gradient_weight: float = 0.5
    multiscale_weight: float = 0.5
    kl_weight: float = 1e-6


def autoencoder_loss(
    model: Autoencoder,
    images: Tensor,
    generator: torch.Generator,
    config: AutoencoderLossConfig | None = None,
) -> dict[str, Tensor]:
    """Return the training loss and its terms for one batch: ``loss``, ``l1``, ``gradient``, ``multiscale``, ``kl``.

    Args:
        model: in train mode or not, nothing here depends on it.
        images: (B, C, H, W) in [-1, 1].
        generator: a CPU generator that draws the posterior's sample.
        config: weights of the terms.
    """
    config = config or AutoencoderLossConfig()
    output, mean, logvar = model(images, generator)
    error = output - images
    l1 = error.abs().mean()
    gradient = 0.5 * (error.diff(dim=3).abs().mean() + error.diff(dim=2).abs().mean())
    half = F.avg_pool2d(error, 2)
    multiscale = 0.5 * (half.abs().mean() + F.avg_pool2d(half, 2).abs().mean())
    kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).sum(dim=(1, 2, 3)).mean()
    loss = (
        config.l1_weight * l1
        + config.gradient_weight * gradient
        + config.multiscale_weight * multiscale
        + config.kl_weight * kl
    )
    return {"loss": loss, "l1": l1, "gradient": gradient, "multiscale": multiscale, "kl": kl}


_SAME_FIELDS = (
    "in_channels",
    "out_channels",
    "latent_channels",
    "block_out_channels",
    "layers_per_block",
    "norm_num_groups",
    "scaling_factor",
    "shift_factor",
    "mid_block_add_attention",
    "use_quant_conv",
    "use_post_quant_conv",
)
_RENAMED_FIELDS = {"latents_mean": "latent_mean", "latents_std": "latent_std"}
_RUN_FIELDS = {"sample_size", "force_upcast"}  # how diffusers runs the model, not what it is
_FIXED_FIELDS = {"act_fn": "silu", "down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_PATTERN = re.compile(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)\.")


def _from_diffusers_config(values: dict[str, Any]) -> AutoencoderConfig:
    """Translate the config of diffusers' ``AutoencoderKL``; other classes, blocks and fields are errors."""
    found = values["_class_name"]
    if found != DIFFUSERS_CLASS:
        raise ConfigError(f"_class_name is {found!r}, expected {DIFFUSERS_CLASS!r}", hint="point to a vae folder")
    ours: dict[str, Any] = {}
    for name, value in values.items():
        if name in _FIXED_FIELDS:
            items = value if isinstance(value, list) else [value]
            if any(item != _FIXED_FIELDS[name] for item in items):
                raise ConfigError(f"{name} is {value!r}, expected only {_FIXED_FIELDS[name]!r}")
        elif name in _RENAMED_FIELDS:
            ours[_RENAMED_FIELDS[name]] = value
        elif not name.startswith("_") and name not in _RUN_FIELDS:
            if name not in _SAME_FIELDS:
                raise ConfigError(f"{DIFFUSERS_CLASS} field {name!r} is not known", hint="remove it if it is unused")
            ours[name] = value
    return AutoencoderConfig.from_dict(ours)


def _to_diffusers_config(config: AutoencoderConfig) -> dict[str, Any]:
    """Translate to the config of diffusers' ``AutoencoderKL``."""
    if config.pixel_unshuffle != 1:
        raise ConfigError(
            f"pixel_unshuffle={config.pixel_unshuffle} cannot be saved in the diffusers layout",
            hint="save with layout='huaben'",
        )
    ours, levels = config.to_dict(), len(config.block_out_channels)
    values: dict[str, Any] = {"_class_name": DIFFUSERS_CLASS, "act_fn": "silu"}
    values |= {name: ours[name] for name in _SAME_FIELDS}
    values |= {theirs: ours[name] for theirs, name in _RENAMED_FIELDS.items()}
    for name in ("down_block_types", "up_block_types"):
        values[name] = [_FIXED_FIELDS[name]] * levels
    return values


def _current_name(name: str) -> str:
    """Return today's name of an attention weight that old diffusers files call otherwise."""
    return _OLD_PATTERN.sub(lambda match: f"{match[1]}{_OLD_NAMES[match[2]]}.", name)
