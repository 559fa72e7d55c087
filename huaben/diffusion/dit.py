"""Hunyuan-DiT: a diffusion transformer with long skips, conditioned on two text encoders.

Sampling computes what does not change only once: :meth:`HunyuanDiT.encode_text` turns the text features of a prompt
into every block's cross-attention keys and values, :meth:`HunyuanDiT.plan` turns all time steps into shifts, and
:meth:`HunyuanDiT.step` runs the image tokens. :meth:`HunyuanDiT.forward` composes the three.

Letters: B batch, N image tokens, S text tokens, E context tokens, D width, L depth, H heads, d head width.

Source: Li et al. 2024 (arXiv:2405.08748), section 2.1.
Differs: no attention mask exists. Text under mask 0 is overwritten by a learned vector per position and attended to;
the pooled text vector averages all T5 positions, padding included. Both as in the released model.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention.layers import MLP, sinusoidal_embedding
from ..attention.multihead import AttentionPooler
from ..attention.rope import Rope, as_rotation, rotary_at, rotary_table
from ..config import Config
from ..errors import CheckpointError, ConfigError, GenerationError, ShapeError
from ..pretrained import WEIGHTS_NAME, PretrainedModel, check_state, read_config, read_weights
from .blocks import DiTBlock, FinalLayer, patchify, unpatchify
from .convert import (
    LAYOUTS,
    Layout,
    config_from_state,
    from_layout,
    is_ours,
    read_checkpoint,
    to_layout,
    write_checkpoint,
)

SINUSOID_DIM = 256
NUM_META_SIZES = 6

_serials = itertools.count(1)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HunyuanDiTConfig(Config):
    """Shape of the model.

    Attributes:
        num_heads, head_dim: their product is the width.
        num_layers: even, so that the halves mirror each other.
        mlp_ratio: hidden width of a block's perceptron over the model's width; the product is cut to an integer.
        in_channels, patch_size: of the latents.
        learn_sigma: whether the output has a second half, the parameter of the variance.
        clip_dim, clip_len: width and length of the CLIP features; the width is that of all text tokens.
        t5_dim, t5_len: width and length of the T5 features.
        pooled_dim, pooler_heads: of the pooled T5 vector.
        use_style_and_size: whether image sizes and a style are conditions (releases up to 1.1).
        rope_base: side of the square, in rotary positions, that a picture is fitted to.
    """

    num_heads: int
    head_dim: int
    num_layers: int
    mlp_ratio: float = 4.0
    in_channels: int = 4
    patch_size: int = 2
    learn_sigma: bool = True
    clip_dim: int = 1024
    clip_len: int = 77
    t5_dim: int = 2048
    t5_len: int = 256
    pooled_dim: int = 1024
    pooler_heads: int = 8
    use_style_and_size: bool = False
    rope_base: int = 32

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, bool) and value <= 0:
                raise ConfigError(f"{field.name}={value} is not positive", hint="start from one of PRESETS")
        if self.num_layers % 2:
            raise ConfigError(
                f"num_layers={self.num_layers} is odd, expected an even depth",
                hint=f"long skips pair block j with block L-1-j: use {self.num_layers + 1}",
            )
        if self.head_dim % 4:
            raise ConfigError(
                f"head_dim={self.head_dim} is not a multiple of 4",
                hint="rotary position embedding turns channel pairs along two axes; use 64",
            )
        if self.t5_dim % self.pooler_heads:
            raise ConfigError(
                f"pooler_heads={self.pooler_heads} does not divide t5_dim={self.t5_dim}",
                hint="choose a divisor of t5_dim",
            )

    @property
    def hidden_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def mlp_dim(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def out_channels(self) -> int:
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def text_len(self) -> int:
        return self.clip_len + self.t5_len

    @property
    def extra_dim(self) -> int:
        """Width of the pooled text and, if used, of sizes and style beside it."""
        sizes = NUM_META_SIZES * SINUSOID_DIM + self.hidden_size if self.use_style_and_size else 0
        return self.pooled_dim + sizes

    @property
    def num_skips(self) -> int:
        return self.num_layers // 2 - 1


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class TextState:
    """All that a batch of prompts contributes, computed once.

    Attributes:
        keys, values: of every block's cross-attention, ``(B, H, S + E, d)`` each.
        extra: ``(B, D)``, the text's share of the conditioning vector.
        token_offset: ``(B, N, D)`` added to the image tokens after patch embedding, or None.
        grid: the ``(h, w)`` token grid that places and offset belong to, or None for any.
        model_key: which model with which weights made it.
        serial: number of the state; a table planned for another number is stale.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    extra: Tensor
    token_offset: Tensor | None
    grid: tuple[int, int] | None
    model_key: tuple[int, ...]
    serial: int

    @property
    def batch_size(self) -> int:
        return self.extra.shape[0]

    @property
    def fingerprint(self) -> str:
        """What the state was made from: model, weights, number."""
        return "-".join(f"{part:x}" for part in (*self.model_key, self.serial))

    @classmethod
    def join(cls, states: Sequence[TextState]) -> TextState:
        """Stack states along the batch, for instance the negative prompt's before the prompt's.

        Raises:
            ShapeError: if there is none, or they come from different models, lengths or grids.
        """
        if not states:
            raise ShapeError("no text states to join, expected at least one")
        first = states[0]
        for state in states[1:]:
            same_layout = state.keys[0].shape[1:] == first.keys[0].shape[1:] and state.grid == first.grid
            if state.model_key != first.model_key or not same_layout:
                raise ShapeError(
                    f"text states {first.fingerprint} and {state.fingerprint} differ in model, length or grid",
                    hint="encode both with the same model, the same number of context tokens and the same grid",
                )
        if len({state.token_offset is None for state in states}) > 1:
            raise ShapeError("some text states have a token_offset and some have none", hint="give zeros to the others")
        offsets = [state.token_offset for state in states if state.token_offset is not None]
        return cls(
            keys=tuple(torch.cat(parts) for parts in zip(*(state.keys for state in states), strict=True)),
            values=tuple(torch.cat(parts) for parts in zip(*(state.values for state in states), strict=True)),
            extra=torch.cat([state.extra for state in states]),
            token_offset=torch.cat(offsets) if offsets else None,
            grid=first.grid,
            model_key=first.model_key,
            serial=next(_serials),
        )


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class ModulationTable:
    """The conditioning of every block at every planned time step.

    Attributes:
        shifts: ``(steps, B, L, D)``.
        final: ``(steps, B, 2 D)``, shift then scale of the final layer.
        model_key, serial: of the text state it was planned for.
    """

    shifts: Tensor
    final: Tensor
    model_key: tuple[int, ...]
    serial: int

    @property
    def num_steps(self) -> int:
        return self.shifts.shape[0]


class SkipCache:
    """Reuse the deep blocks of an earlier step: only ``depth`` blocks at either end run in between.

    A full step stores what entered block ``L - depth``. The following ``interval - 1`` steps run blocks ``0`` to
    ``depth - 1``, then the last ``depth`` blocks on the stored tensor and fresh skips. One cache serves one sampling.

    Args:
        interval: one full step every so many; 1 never reuses.
        depth: blocks at each end that always run.

    Source: Ma et al. 2024, DeepCache (arXiv:2312.00858), on the long skips as in arXiv:2411.17616.
    """

    def __init__(self, interval: int = 2, depth: int = 1) -> None:
        if interval < 1 or depth < 1:
            raise ConfigError(f"interval={interval} and depth={depth}, expected both at least 1", hint="use 2 and 1")
        self.interval, self.depth = interval, depth
        self._hidden: Tensor | None = None
        self._owner: tuple[int, ...] = ()
        self._uses = 0

    def reset(self) -> None:
        """Forget the stored step, so that the next one is full."""
        self._hidden, self._owner, self._uses = None, (), 0

    def recall(self, owner: tuple[int, ...]) -> Tensor | None:
        """Return what entered block ``L - depth``, or None if this step has to be full."""
        if self._hidden is None or owner != self._owner or self._uses + 1 >= self.interval:
            return None
        self._uses += 1
        return self._hidden

    def store(self, hidden: Tensor, owner: tuple[int, ...]) -> None:
        """Keep the tensor of a full step."""
        self._hidden, self._owner, self._uses = hidden, owner, 0


class HunyuanDiT(PretrainedModel):
    """The painter's network: noisy latents, time and text to the predicted velocity (and variance parameter)."""

    config_class: ClassVar[type[Config]] = HunyuanDiTConfig
    model_type: ClassVar[str] = "hunyuan_dit"
    config: HunyuanDiTConfig

    def __init__(self, config: HunyuanDiTConfig) -> None:
        super().__init__(config)
        dim, c = config.hidden_size, config
        self.patch_embed = nn.Linear(c.in_channels * c.patch_size**2, dim)
        self.t5_mlp = MLP(c.t5_dim, 4 * c.t5_dim, c.clip_dim)
        self.text_padding = nn.Parameter(torch.empty(c.text_len, c.clip_dim))
        self.pooler = AttentionPooler(c.t5_len, c.t5_dim, c.pooled_dim, c.pooler_heads)
        if c.use_style_and_size:
            self.style_embedding = nn.Embedding(1, dim)
        self.timestep_mlp = MLP(SINUSOID_DIM, dim, dim)
        self.extra_mlp = MLP(c.extra_dim, 4 * dim, dim)
        # One matrix for the shifts of all blocks, so that all of them are one product; rows of block 0 first.
        self.shifts = nn.Linear(dim, c.num_layers * dim)
        self.blocks = nn.ModuleList(
            DiTBlock(dim, c.num_heads, c.mlp_dim, c.clip_dim, has_skip=index > c.num_layers // 2)
            for index in range(c.num_layers)
        )
        self.final = FinalLayer(dim, c.patch_size**2 * c.out_channels)
        self._gradient_checkpointing = False
        self._number = next(_serials)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as the released model; a new model predicts exactly zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for linear in (self.timestep_mlp.fc1, self.timestep_mlp.fc2, self.extra_mlp.fc1, self.extra_mlp.fc2):
            nn.init.normal_(linear.weight, std=0.02)
        for linear in (self.shifts, self.final.modulation, self.final.linear):
            nn.init.zeros_(linear.weight)
        nn.init.normal_(self.text_padding)
        nn.init.normal_(self.pooler.position_embedding, std=self.config.t5_dim**-0.5)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: torch.dtype | None = torch.float32, device: str | torch.device = "cpu"
    ) -> Self:
        """Load a saved model, strictly, in eval mode.

        Args:
            folder: our own folder; diffusers' transformer folder; an official ``pytorch_model_*.pt`` or a
                ``.safetensors`` file in any of the three layouts; or a folder with one such file.
            dtype: of floating-point weights; None keeps the stored one.
            device: where to put the model.

        Raises:
            CheckpointError: for anything but a complete, matching checkpoint; missing and extra weights are named.
        """
        if is_ours(folder):
            values: dict[str, Any] | None = read_config(folder, cls.model_type)
            where = str(Path(folder) / WEIGHTS_NAME)
            layout: Layout = "huaben"
            state = read_weights(where)
        else:
            values, state, layout, where = read_checkpoint(folder)
        if values is None and layout == "huaben":
            raise CheckpointError(
                f"{where} holds weights in our layout without their config", hint="point to the folder with config.json"
            )
        try:
            config = HunyuanDiTConfig.from_dict(values or config_from_state(state, layout, where))
        except ConfigError as error:
            raise CheckpointError(f"{where}: {error.message}", hint=error.hint) from error
        with torch.device("meta"):
            model = cls(config)
        check_state(to_layout(model.state_dict(), config, layout), state, where)
        model.load_state_dict(from_layout(state, config, layout), assign=True)
        return model.to(device=device, dtype=dtype).requires_grad_(True).eval()

    def save_pretrained(
        self, folder: str | Path, *, dtype: torch.dtype | None = None, layout: Layout = "huaben"
    ) -> None:
        """Write config and weights.

        Args:
            folder: made if absent.
            dtype: converts floating-point weights on the way.
            layout: ``"huaben"``, ``"diffusers"`` (transformer folder) or ``"official"`` (``pytorch_model_module.pt``).

        Raises:
            ConfigError: for an unknown layout, or one that cannot express the config.
        """
        if layout not in LAYOUTS:
            raise ConfigError(f"layout={layout!r} is none of {', '.join(map(repr, LAYOUTS))}", hint="use 'huaben'")
        if layout == "huaben":
            super().save_pretrained(folder, dtype=dtype)
            return
        state = {name: tensor.to(dtype) if dtype is not None else tensor for name, tensor in self.state_dict().items()}
        write_checkpoint(folder, state, self.config, layout)

    def gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass of training instead of keeping them."""
        self._gradient_checkpointing = enabled

    # --- the three parts of sampling -------------------------------------------------------------------------------

    def encode_text(
        self,
        clip_states: Tensor,
        clip_mask: Tensor,
        t5_states: Tensor,
        t5_mask: Tensor,
        *,
        image_meta_size: Tensor | None = None,
        style: Tensor | None = None,
        context: Tensor | None = None,
        context_positions: Tensor | None = None,
        token_offset: Tensor | None = None,
        grid: tuple[int, int] | None = None,
    ) -> TextState:
        """Compute once per prompt what every step needs from the text.

        Args:
            clip_states: ``(B, clip_len, clip_dim)``.
            clip_mask: ``(B, clip_len)``, non-zero where a token counts.
            t5_states: ``(B, t5_len, t5_dim)``.
            t5_mask: ``(B, t5_len)``.
            image_meta_size: ``(B, 6)``, only with ``use_style_and_size``: original width and height, target width and
                height, left and top of the crop, in pixels.
            style: ``(B,)`` zeros, only with ``use_style_and_size``; None means style 0.
            context: ``(B, E, clip_dim)`` further tokens that every block attends to after the text.
            context_positions: ``(B, E, 2)`` rotary ``(y, x)`` of the context tokens, fractions allowed; None leaves
                their keys unrotated, as those of the text.
            token_offset: ``(B, N, D)`` added to the image tokens after patch embedding.
            grid: ``(h, w)`` token grid that positions and offset were computed for; a step on another grid is refused.

        Raises:
            ShapeError: if a tensor does not fit the config, or a condition is missing or unused.
        """
        self._check_text(clip_states, clip_mask, t5_states, t5_mask, context, context_positions)
        text, index = self._text_tokens(clip_states, clip_mask, t5_states, t5_mask)
        context_rotation = None
        if context is not None and context_positions is not None:
            y, x = context_positions.unbind(-1)
            context_rotation = as_rotation(rotary_at(y, x, self.config.head_dim)).unsqueeze(-2)
        pairs = [
            cast(DiTBlock, block).cross_attention.keys_values(text, context, context_rotation, index=index)
            for block in self.blocks
        ]
        return TextState(
            keys=tuple(keys for keys, _ in pairs),
            values=tuple(values for _, values in pairs),
            extra=self._extra_vector(t5_states, image_meta_size, style),
            token_offset=token_offset,
            grid=None if grid is None else (int(grid[0]), int(grid[1])),
            model_key=self._key(),
            serial=next(_serials),
        )

    def plan(self, timesteps: Tensor, text_state: TextState) -> ModulationTable:
        """Compute every block's shift at every time step in one product.

        Args:
            timesteps: ``(steps,)``, or ``(steps, B)`` where the pictures of a batch differ.
            text_state: from :meth:`encode_text` of this model.

        Raises:
            GenerationError: if ``text_state`` belongs to another model or to older weights.
            ShapeError: if ``timesteps`` has another shape.
        """
        if text_state.model_key != self._key():
            raise GenerationError(
                f"text state {text_state.fingerprint} was made by another model or before the weights changed",
                hint="call encode_text of this model again",
            )
        if timesteps.dim() not in (1, 2) or (timesteps.dim() == 2 and timesteps.shape[1] != text_state.batch_size):
            raise ShapeError(
                f"timesteps are {tuple(timesteps.shape)}, expected (steps,) or (steps, {text_state.batch_size})",
                hint="pass a 1-D tensor",
            )
        if timesteps.dim() == 1:
            timesteps = timesteps[:, None]
        sinusoid = sinusoidal_embedding(timesteps.to(text_state.extra.device), SINUSOID_DIM)
        time = self.timestep_mlp(sinusoid.to(self.timestep_mlp.fc1.weight.dtype))
        condition = F.silu(time + text_state.extra)  # (steps, B, D)
        return ModulationTable(
            shifts=self.shifts(condition).unflatten(-1, (self.config.num_layers, self.config.hidden_size)),
            final=self.final.modulation(condition),
            model_key=text_state.model_key,
            serial=text_state.serial,
        )

    def step(
        self,
        latents: Tensor,
        i: int,
        text_state: TextState,
        table: ModulationTable,
        *,
        rope: Rope | None = None,
        control: Sequence[Tensor] | None = None,
        cache: SkipCache | None = None,
    ) -> Tensor:
        """Predict at the ``i``-th planned time step.

        Args:
            latents: ``(B, in_channels, h, w)``.
            i: index into the table's time steps.
            text_state, table: from :meth:`encode_text` and :meth:`plan`.
            rope: cosine and sine ``(N, head_dim)`` for the image tokens; None takes the official table of the grid.
            control: one ``(B, N, D)`` residual per long skip, added to it.
            cache: reuses deep blocks of earlier steps.

        Returns:
            ``(B, out_channels, h, w)`` in the type of ``latents``.

        Raises:
            GenerationError: if state and table do not belong together or to this model.
            ShapeError: if a tensor does not fit.
        """
        if table.serial != text_state.serial or table.model_key != text_state.model_key:
            raise GenerationError(
                f"the table was planned for text state number {table.serial}, found number {text_state.serial}",
                hint="call plan again after encode_text",
            )
        if text_state.model_key[:2] != self._key()[:2]:
            raise GenerationError(
                f"text state {text_state.fingerprint} was made by another model", hint="call encode_text of this model"
            )
        if not 0 <= i < table.num_steps:
            raise ShapeError(f"step {i} is not planned, the table has {table.num_steps} steps", hint="plan all steps")
        grid = self._check_latents(latents, text_state)
        rotation = as_rotation(self._check_rope(rope, grid, latents.device)).unsqueeze(-2)  # (N, 1, d / 2)
        if control is not None and len(control) != self.config.num_skips:
            raise ShapeError(
                f"control has {len(control)} residuals, expected {self.config.num_skips}", hint="one per long skip"
            )
        shifts = table.shifts[i].unbind(1)

        hidden = self.patch_embed(patchify(latents.to(self.patch_embed.weight.dtype), self.config.patch_size))
        if text_state.token_offset is not None:
            hidden = hidden + text_state.token_offset
        hidden = self._run_blocks(hidden, shifts, text_state, rotation, control, cache)
        tokens = self.final(hidden, table.final[i])
        output = unpatchify(tokens, latents.shape[2], latents.shape[3], self.config.patch_size)
        return output.to(latents.dtype)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        clip_states: Tensor,
        clip_mask: Tensor,
        t5_states: Tensor,
        t5_mask: Tensor,
        *,
        image_meta_size: Tensor | None = None,
        style: Tensor | None = None,
        rope: Rope | None = None,
        context: Tensor | None = None,
        context_positions: Tensor | None = None,
        token_offset: Tensor | None = None,
        control: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Predict for a batch whose pictures may differ in time step ``(B,)``; arguments as in the three parts."""
        if timesteps.shape != latents.shape[:1]:
            raise ShapeError(
                f"timesteps are {tuple(timesteps.shape)}, expected ({latents.shape[0]},)", hint="one per picture"
            )
        state = self.encode_text(
            clip_states,
            clip_mask,
            t5_states,
            t5_mask,
            image_meta_size=image_meta_size,
            style=style,
            context=context,
            context_positions=context_positions,
            token_offset=token_offset,
        )
        return self.step(latents, 0, state, self.plan(timesteps[None], state), rope=rope, control=control)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _run_blocks(
        self,
        hidden: Tensor,
        shifts: Sequence[Tensor],
        state: TextState,
        rotation: Tensor,
        control: Sequence[Tensor] | None,
        cache: SkipCache | None,
    ) -> Tensor:
        """Run the stack; block j in the second half receives the output of block L-1-j."""
        depth = self.config.num_layers
        resume, owner, stored = depth, (), None
        if cache is not None:
            if cache.depth > self.config.num_skips:
                raise ConfigError(
                    f"cache depth {cache.depth} exceeds the {self.config.num_skips} long skips", hint="use depth 1"
                )
            resume = depth - cache.depth
            owner = (*state.model_key, state.serial, *hidden.shape)
            stored = cache.recall(owner)
        skips: list[Tensor] = []
        for j, block in enumerate(self.blocks):
            if j == resume and cache is not None:
                if stored is None:
                    cache.store(hidden, owner)
                else:
                    hidden = stored
            elif stored is not None and depth - resume <= j < resume:
                continue
            skip = None
            if j > depth // 2:
                skip = skips.pop()
                if control is not None:
                    skip = skip + control[len(skips)]
            hidden = self._run_block(block, hidden, shifts[j], state.keys[j], state.values[j], rotation, skip)
            if j < self.config.num_skips:
                skips.append(hidden)
        return hidden

    def _run_block(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self._gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _text_tokens(
        self, clip_states: Tensor, clip_mask: Tensor, t5_states: Tensor, t5_mask: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return CLIP then projected T5 tokens, with a learned vector wherever the mask is 0.

        In training, ``(B, S, clip_dim)`` and None. Otherwise distinct rows ``(R, clip_dim)`` and their places
        ``(B, S)``: a learned vector stands at the same place in every prompt, and what it replaces is never projected.
        """
        dtype, clip_mask, t5_mask = self.text_padding.dtype, clip_mask.bool(), t5_mask.bool()
        mask = torch.cat([clip_mask, t5_mask], dim=1)
        if torch.is_grad_enabled():
            projected = self.t5_mlp(t5_states.to(dtype))
            text = torch.cat([clip_states.to(projected.dtype), projected], dim=1)
            return torch.where(mask[..., None], text, self.text_padding.to(text.dtype)), None
        projected = self.t5_mlp(t5_states[t5_mask].to(dtype))
        padded = ~mask.all(dim=0)
        padding, clip = self.text_padding[padded].to(projected.dtype), clip_states[clip_mask].to(projected.dtype)
        index = (padded.cumsum(0) - 1).repeat(mask.shape[0], 1)
        numbers = torch.arange(len(clip) + len(projected), device=index.device) + len(padding)
        index[:, : self.config.clip_len][clip_mask] = numbers[: len(clip)]
        index[:, self.config.clip_len :][t5_mask] = numbers[len(clip) :]
        return torch.cat([padding, clip, projected]), index

    def _extra_vector(self, t5_states: Tensor, image_meta_size: Tensor | None, style: Tensor | None) -> Tensor:
        """Return ``(B, D)``, the share of pooled text, sizes and style in the conditioning vector."""
        pooled = self.pooler(t5_states.to(self.text_padding.dtype))
        if not self.config.use_style_and_size:
            if image_meta_size is not None or style is not None:
                raise ShapeError(
                    "image_meta_size and style were given, but this model has no such conditions",
                    hint="leave them out: use_style_and_size is False",
                )
            return self.extra_mlp(pooled)
        batch = pooled.shape[0]
        if image_meta_size is None or image_meta_size.shape != (batch, NUM_META_SIZES):
            found = None if image_meta_size is None else tuple(image_meta_size.shape)
            raise ShapeError(
                f"image_meta_size is {found}, expected ({batch}, {NUM_META_SIZES})",
                hint="original width and height, target width and height, left and top of the crop",
            )
        if style is None:
            style = torch.zeros(batch, dtype=torch.long, device=pooled.device)
        sizes = sinusoidal_embedding(image_meta_size, SINUSOID_DIM).flatten(1).to(pooled.dtype)
        return self.extra_mlp(torch.cat([pooled, sizes, self.style_embedding(style).to(pooled.dtype)], dim=-1))

    def _key(self) -> tuple[int, ...]:
        """Name this model object and the version of its weights."""
        version = sum(0 if weight.is_inference() else weight._version for weight in self.parameters())
        return id(self), self._number, version

    def _check_text(
        self,
        clip_states: Tensor,
        clip_mask: Tensor,
        t5_states: Tensor,
        t5_mask: Tensor,
        context: Tensor | None,
        context_positions: Tensor | None,
    ) -> None:
        c, batch = self.config, clip_states.shape[0]
        expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
            "clip_states": (clip_states, (batch, c.clip_len, c.clip_dim)),
            "clip_mask": (clip_mask, (batch, c.clip_len)),
            "t5_states": (t5_states, (batch, c.t5_len, c.t5_dim)),
            "t5_mask": (t5_mask, (batch, c.t5_len)),
        }
        if context is not None:
            expected["context"] = (context, (batch, context.shape[1] if context.dim() > 1 else 1, c.clip_dim))
        if context_positions is not None:
            if context is None:
                raise ShapeError("context_positions were given without context", hint="pass the tokens they place")
            expected["context_positions"] = (context_positions, (batch, context.shape[1], 2))
        for name, (tensor, shape) in expected.items():
            if tuple(tensor.shape) != shape:
                raise ShapeError(
                    f"{name} is {tuple(tensor.shape)}, expected {shape}", hint="pad the text to the model's lengths"
                )

    def _check_latents(self, latents: Tensor, state: TextState) -> tuple[int, int]:
        """Return the token grid."""
        c, p = self.config, self.config.patch_size
        shape = tuple(latents.shape)
        if len(shape) != 4 or shape[1] != c.in_channels or shape[2] % p or shape[3] % p or 0 in shape:
            raise ShapeError(
                f"latents are {shape}, expected (B, {c.in_channels}, h, w) with h and w multiples of {p}",
                hint="choose a picture size that the autoencoder and the patches divide",
            )
        if shape[0] != state.batch_size:
            raise ShapeError(
                f"latents hold {shape[0]} pictures, the text state {state.batch_size}",
                hint="join text states to the batch: with guidance, the negative ones first",
            )
        grid = (shape[2] // p, shape[3] // p)
        if state.grid is not None and state.grid != grid:
            raise ShapeError(
                f"the token grid is {grid}, the text state was made for {state.grid}", hint="encode the text again"
            )
        offset = state.token_offset
        if offset is not None and tuple(offset.shape) != (shape[0], grid[0] * grid[1], c.hidden_size):
            raise ShapeError(
                f"token_offset is {tuple(offset.shape)}, expected {(shape[0], grid[0] * grid[1], c.hidden_size)}"
            )
        return grid

    def _check_rope(self, rope: Rope | None, grid: tuple[int, int], device: torch.device) -> Rope:
        head_dim = self.config.head_dim
        if rope is None:
            return rotary_table(*grid, head_dim, base=self.config.rope_base, device=device)
        if any(tuple(part.shape) != (math.prod(grid), head_dim) for part in rope):
            raise ShapeError(
                f"rope tables are {[tuple(part.shape) for part in rope]}, expected {(math.prod(grid), head_dim)}",
                hint="use attention.rotary_table of this grid",
            )
        return rope


def check_finite(model: nn.Module) -> Callable[[], None]:
    """Watch every block of ``model``; the first output that is not finite raises an error naming the block.

    Returns:
        A function that removes the watch.

    Raises:
        GenerationError: from within a forward pass, naming the block.
    """

    def watch(name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        if not torch.isfinite(output).all():
            raise GenerationError(
                f"the output of {name} holds values that are not finite ({output.dtype})",
                hint="use bfloat16 or float32 instead of float16",
            )

    watched = {name: part for name, part in model.named_modules() if isinstance(part, DiTBlock | FinalLayer)}
    handles = [part.register_forward_hook(functools.partial(watch, name)) for name, part in watched.items()]

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


_GIANT = HunyuanDiTConfig(num_heads=16, head_dim=88, num_layers=40, mlp_ratio=4.3637)
_EXTRA_LARGE = HunyuanDiTConfig(num_heads=16, head_dim=72, num_layers=28, mlp_ratio=4.0)

PRESETS: dict[str, HunyuanDiTConfig] = {
    "DiT-g/2": _GIANT,
    "DiT-g/2-v1.1": _GIANT.replace(use_style_and_size=True),
    "DiT-XL/2": _EXTRA_LARGE,
    "DiT-XL/2-v1.1": _EXTRA_LARGE.replace(use_style_and_size=True),
    "tiny": HunyuanDiTConfig(
        num_heads=2,
        head_dim=16,
        num_layers=4,
        clip_dim=32,
        clip_len=8,
        t5_dim=16,
        t5_len=12,
        pooled_dim=16,
    ),
    "embedded": HunyuanDiTConfig(
        num_heads=4,
        head_dim=48,
        num_layers=6,
        in_channels=12,
        learn_sigma=False,
        clip_dim=128,
        clip_len=32,
        t5_dim=128,
        t5_len=64,
        pooled_dim=128,
        pooler_heads=4,
    ),
}
