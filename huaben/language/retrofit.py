"""DAPE for a model that is already trained: a score adapter in each layer that starts at zero and learns alone.

:func:`retrofit` puts a :class:`~huaben.attention.adaptive.ScoreMLP` (DAPE) or
:class:`~huaben.attention.adaptive.ScoreConv` (DAPE V2) into each self-attention of a causal transformers model. With
its last layer at zero the model computes what it did before; training then moves the adapters alone, and
:func:`save_adapters` keeps a few hundred kilobytes. No model code is copied:

- models that go through transformers' attention interface (GPT-2, Llama, Qwen, Mistral, GPT-NeoX, OPT, ...) get another
  attention function. Their positions are learned embeddings or rotary, so the adapter sees scores alone;
- BLOOM and MPT, whose attention is written out and carries ALiBi, get another attention ``forward``. The adapter sees
  scores and ALiBi.

Every mask must be causal attention with padding or packed texts; sliding windows, attention sinks, score caps and
encoder-decoders are refused, as is Falcon, whose attention offers no place to enter.

Source: Zheng et al. 2024 (arXiv:2405.14722; arXiv:2410.04798) for the adapters.
Differs: the papers train adapters from the start with PyTorch's initial weights; adding them at zero to a trained model
is an extension. Attention dropout is not applied where an adapter works.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from ..attention.adaptive import AdapterMode, ScoreAdapter, ScoreConv, ScoreMLP
from ..attention.bias import ALiBi
from ..attention.dape import dape_attention
from ..config import Config
from ..errors import CheckpointError, ConfigError
from ..optional import require
from ..pretrained import CONFIG_NAME, FORMAT_VERSION, WEIGHTS_NAME, check_state, read_config, read_weights, write_atomic

INTERFACE = "huaben_dape"
"""Name of the attention function in transformers' registry."""

_ATTRIBUTE = "dape"
_REFUSED = ("softcap", "s_aux", "position_bias", "cache")


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrofitConfig(Config):
    """What was added to which kind of model.

    Attributes:
        base_model_type: transformers' name of the model's architecture.
        layers, heads: of that model.
        adapter: "mlp" or "conv".
        kernel_size: keys a convolution spans; 1 for "mlp".
        hidden: width of the adapters.
        mode: how the correction is used, see :mod:`huaben.attention.adaptive`.
    """

    base_model_type: str
    layers: int
    heads: int
    adapter: Literal["mlp", "conv"] = "conv"
    kernel_size: int = 3
    hidden: int = 32
    mode: AdapterMode = "concat_residual"


def retrofit(
    model: Any,
    adapter: Literal["mlp", "conv"] = "conv",
    *,
    kernel_size: int = 3,
    hidden: int = 32,
    mode: AdapterMode = "concat_residual",
    freeze: bool = True,
) -> list[ScoreAdapter]:
    """Add one zero-initialised adapter to each self-attention of ``model``, in place; logits stay what they were.

    ``model.set_attn_implementation`` with another name would leave the adapters out, except in BLOOM and MPT.

    Args:
        model: a causal transformers model.
        adapter: "conv" for DAPE V2, "mlp" for DAPE.
        kernel_size: keys the convolution spans, odd.
        hidden: width of the adapters; the papers use 32.
        mode: how the correction is used. "concat" leaves ALiBi out of the sum and so changes BLOOM and MPT at once.
        freeze: whether to stop gradients to everything else.

    Returns:
        The adapters, first layer first, in fp32 on the device of their layer.

    Raises:
        MissingDependencyError: without transformers.
        ConfigError: for a model that cannot take adapters or has them already.
    """
    sites = _sites(model)
    if any(hasattr(site.module, _ATTRIBUTE) for site in sites):
        raise ConfigError("the model has adapters already", hint="remove_adapters(model) takes them out")
    if adapter not in ("mlp", "conv"):
        raise ConfigError(f"adapter={adapter!r} is neither 'mlp' nor 'conv'", hint="use 'conv'")
    if adapter == "mlp":
        kernel_size = 1
    adapters: list[ScoreAdapter] = []
    for site in sites:
        with_bias = site.slopes is not None
        made: ScoreAdapter = (
            ScoreMLP(site.heads, hidden, with_bias=with_bias, mode=mode, init="zero")
            if adapter == "mlp"
            else ScoreConv(site.heads, hidden, kernel_size=kernel_size, with_bias=with_bias, mode=mode, init="zero")
        )
        adapters.append(made.to(next(site.module.parameters()).device))
    if any(site.dropout > 0 for site in sites):
        warnings.warn(
            f"attention dropout ({max(site.dropout for site in sites)}) is not applied in layers with adapters",
            stacklevel=2,
        )
    if freeze:
        model.requires_grad_(False)
    for site, made in zip(sites, adapters, strict=True):
        setattr(site.module, _ATTRIBUTE, made)
        if site.slopes is not None:
            bias = ALiBi(site.heads)
            bias.slopes = site.slopes
            object.__setattr__(site.module, "dape_bias", bias)  # no weights: kept out of the model's modules
        if site.forward is not None:
            object.__setattr__(site.module, "forward", MethodType(site.forward, site.module))
    if any(site.forward is None for site in sites):
        _register()
        object.__setattr__(model, "dape_before", model.config._attn_implementation)
        model.set_attn_implementation(INTERFACE)
    return adapters


def adapters_of(model: nn.Module) -> list[ScoreAdapter]:
    """Return the adapters of a retrofitted model, first layer first; empty for any other."""
    return [found for module in model.modules() if isinstance(found := getattr(module, _ATTRIBUTE, None), ScoreAdapter)]


def adapter_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return what an optimizer should train.

    Raises:
        ConfigError: if the model has no adapters.
    """
    adapters = adapters_of(model)
    if not adapters:
        raise ConfigError("the model has no adapters", hint="call retrofit(model) first")
    return [parameter for adapter in adapters for parameter in adapter.parameters()]


def remove_adapters(model: Any) -> None:
    """Take the adapters out again: the model computes what it did before; frozen weights stay frozen.

    Raises:
        ConfigError: if the model has none.
    """
    adapter_parameters(model)
    for module in list(model.modules()):
        if isinstance(getattr(module, _ATTRIBUTE, None), ScoreAdapter):
            delattr(module, _ATTRIBUTE)
            for name in ("dape_bias", "forward"):
                module.__dict__.pop(name, None)
    before = model.__dict__.pop("dape_before", None)
    if before is not None:
        model.set_attn_implementation(before)


def save_adapters(model: Any, folder: str | Path) -> None:
    """Write the adapters alone: ``config.json`` and ``model.safetensors``.

    Raises:
        ConfigError: if the model has none.
        CheckpointError: if the folder cannot be written.
    """
    config, state = _config_of(model), _adapter_state(model)
    tensors = {name: tensor.detach().float().contiguous().cpu() for name, tensor in state.items()}
    write_atomic(Path(folder) / WEIGHTS_NAME, save(tensors))
    values = {"model_type": "dape_adapters", "format_version": FORMAT_VERSION, **config.to_dict()}
    write_atomic(Path(folder) / CONFIG_NAME, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())


def load_adapters(model: Any, folder: str | Path, *, freeze: bool = True) -> list[ScoreAdapter]:
    """Read saved adapters into ``model``, which is retrofitted first if it is not yet.

    Args:
        model: of the architecture the adapters were trained for.
        folder: as written by :func:`save_adapters`.
        freeze: as for :func:`retrofit`.

    Raises:
        CheckpointError: if the folder is incomplete or belongs to another model; ``model`` is unchanged then.
        ConfigError: if the model cannot take adapters.
    """
    where = Path(folder) / CONFIG_NAME
    try:
        config = RetrofitConfig.from_dict(read_config(folder, "dape_adapters"))
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error.message}", hint=error.hint) from error
    state = read_weights(Path(folder) / WEIGHTS_NAME)
    sites = _sites(model)
    found = (model.config.model_type, len(sites), sites[0].heads)
    expected = (config.base_model_type, config.layers, config.heads)
    if found != expected:
        raise CheckpointError(
            f"{where} holds adapters for {_named(expected)}, the model is {_named(found)}",
            hint="load the model that the adapters were trained with",
        )
    fresh = not adapters_of(model)
    if fresh:
        retrofit(
            model,
            config.adapter,
            kernel_size=config.kernel_size,
            hidden=config.hidden,
            mode=config.mode,
            freeze=freeze,
        )
    try:
        if _config_of(model) != config:
            raise CheckpointError(
                f"{where} holds other adapters than the model has", hint="remove_adapters(model), then load"
            )
        own = _adapter_state(model)
        check_state(own, state, str(Path(folder) / WEIGHTS_NAME))
    except CheckpointError:
        if fresh:
            remove_adapters(model)
        raise
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
    return adapters_of(model)


def _named(values: tuple[str, int, int]) -> str:
    return f"{values[0]} with {values[1]} layers of {values[2]} heads"


def _config_of(model: Any) -> RetrofitConfig:
    adapter_parameters(model)
    adapters = adapters_of(model)
    first = adapters[0]
    return RetrofitConfig(
        base_model_type=model.config.model_type,
        layers=len(adapters),
        heads=first.heads,
        adapter="mlp" if isinstance(first, ScoreMLP) else "conv",
        kernel_size=first.kernel_size,
        hidden=first.hidden,
        mode=first.mode,
    )


def _adapter_state(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"layers.{layer}.{name}": tensor
        for layer, adapter in enumerate(adapters_of(model))
        for name, tensor in adapter.state_dict().items()
    }


# Where adapters go


@dataclass(frozen=True, slots=True)
class _Site:
    """A self-attention: its query heads, ALiBi slopes if it has them, dropout, and a new forward if it needs one."""

    module: nn.Module
    heads: int
    dropout: float
    slopes: tuple[float, ...] | None = None
    forward: Callable[..., Any] | None = None


def _sites(model: Any) -> list[_Site]:
    transformers = require("transformers", extra="hf")
    if not isinstance(model, transformers.PreTrainedModel):
        raise ConfigError(
            f"{type(model).__name__} is not a transformers model", hint="huaben's own decoder takes scheme='v2-rope'"
        )
    config, kind = model.config, model.config.model_type
    if kind == "bloom":
        sites = _alibi_sites(model, "BloomAttention", _bloom_slopes, _bloom_forward)
    elif kind == "mpt":
        sites = _alibi_sites(model, "MptAttention", _mpt_slopes, _mpt_forward)
    else:
        if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
            raise ConfigError(f"{kind!r} attends to an encoder", hint="adapters are for decoders alone")
        if not (getattr(model, "_supports_attention_backend", False) and model._can_set_attn_implementation()):
            raise ConfigError(
                f"the attention of {kind!r} models does not go through transformers' attention interface",
                hint="GPT-2, Llama, Qwen, Mistral, GPT-NeoX, OPT, BLOOM and MPT work",
            )
        sites = [
            _Site(module, config.num_attention_heads, _dropout_of(module))
            for module in model.modules()
            if getattr(module, "is_causal", False) is True and isinstance(getattr(module, "layer_idx", None), int)
        ]
    if len(sites) != config.num_hidden_layers:
        raise ConfigError(
            f"found {len(sites)} causal self-attentions in {config.num_hidden_layers} layers of a {kind!r} model",
            hint="adapters are for models whose layers all attend",
        )
    return sites


def _dropout_of(module: nn.Module) -> float:
    for name in ("attn_dropout", "attention_dropout", "attn_dropout_p", "dropout"):
        found = getattr(module, name, None)
        if isinstance(found, nn.Dropout):
            return float(found.p)
        if isinstance(found, (int, float)):
            return float(found)
    return 0.0


def _alibi_sites(
    model: Any, name: str, slopes: Callable[[nn.Module, Any], Sequence[float]], forward: Callable[..., Any]
) -> list[_Site]:
    heads = model.config.num_attention_heads
    return [
        _Site(module, heads, _dropout_of(module), tuple(slopes(module, model.config)), forward)
        for module in model.modules()
        if type(module).__name__ == name
    ]


def _bloom_slopes(module: nn.Module, config: Any) -> Sequence[float]:
    return ALiBi(config.num_attention_heads).slopes


def _mpt_slopes(module: nn.Module, config: Any) -> Sequence[float]:
    """Return MPT's slopes, which for other counts than powers of two are not ALiBi's."""
    heads = config.num_attention_heads
    if not config.attn_config.alibi:
        raise ConfigError("this MPT model does without ALiBi", hint="only MPT with attn_config.alibi works")
    power = 1 << (heads - 1).bit_length()
    slopes = [2.0 ** (-config.attn_config.alibi_bias_max * (h + 1) / power) for h in range(power)]
    return slopes if power == heads else (slopes[1::2] + slopes[::2])[:heads]


# Attention with an adapter


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a mask says: the first query's index, which keys are real, and where each text begins."""

    offset: int
    key_mask: Tensor | None = None  # bool (B, K)
    start: Tensor | None = None  # int64 (B,)
    documents: Tensor | None = None  # int64 (B, K)


def read_mask(visible: Tensor, keys: int) -> _Layout:
    """Return the layout that a mask ``visible``, bool (B, 1, Q, K), describes.

    Raises:
        ConfigError: if it is not causal attention with padding or, without cached keys, packed texts.
    """
    if visible.shape[1] != 1:
        raise ConfigError(f"the mask has {visible.shape[1]} heads, expected one for all", hint="adapters mix the heads")
    seen = visible[:, 0, :, :keys]
    queries = seen.shape[1]
    columns = torch.arange(seen.shape[2], device=seen.device)
    rows = torch.arange(queries, device=seen.device)
    last = torch.where(seen, columns, -1).amax(-1)  # (B, Q): a real query's last key is its own
    offset = max(int((last - rows).amax()), 0)
    strange = ConfigError(
        "the attention mask is neither causal with padding nor packed texts",
        hint="sliding windows and hand-made masks are not supported with adapters",
    )
    if offset + queries > len(columns):  # the first query sees keys after its own
        raise strange
    seen = seen[:, :, : offset + queries]
    columns = columns[: offset + queries]
    causal = columns <= offset + rows[:, None]  # (Q, K)
    if bool((seen == causal).all()):
        return _Layout(offset)
    first = torch.where(seen, columns, len(columns)).amin(-1)  # (B, Q)
    key_mask = seen.any(1)
    layout = _Layout(offset, key_mask, (key_mask.cumsum(1) == 0).sum(1))
    if bool((seen == (causal & key_mask[:, None])).all()):
        return layout
    if offset == 0 and queries == len(columns):
        same = first[:, :, None] == first[:, None, :]  # texts are told apart by where they begin
        if bool((seen == (causal & same & key_mask[:, None])).all()):
            return _Layout(0, key_mask, None, first)
    raise strange


def _attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, scale: float) -> Tensor:
    """Return (B, H, Q, d); the layout is worked out once per mask and kept on it for the other layers."""
    if visible is None:
        layout = _Layout(k.shape[2] - q.shape[2])
    else:
        layout = getattr(visible, "dape_layout", None) or read_mask(visible, k.shape[2])
        visible.dape_layout = layout  # type: ignore[attr-defined]
    end = layout.offset + q.shape[2]  # a static cache holds room that nothing was written to yet
    k, v, width = k[:, :, :end], v[:, :, :end], v.shape[-1]
    if width != q.shape[-1]:  # zeros change neither the scores nor the first values
        most = max(width, q.shape[-1])
        q, k, v = (F.pad(states, (0, most - states.shape[-1])) for states in (q, k, v))
    y = dape_attention(
        q,
        k,
        v,
        bias=getattr(module, "dape_bias", None),
        score=getattr(module, _ATTRIBUTE),
        causal=True,
        q_offset=layout.offset,
        key_mask=layout.key_mask,
        documents=layout.documents,
        start=layout.start,
        scale=scale,
    )
    return y[..., :width]


def _interface(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Compute attention as transformers asks for it: (B, H, Q, d) in, (B, Q, H, d) out."""
    if not hasattr(module, _ATTRIBUTE):  # another model that shares this one's config
        plain = require("transformers.integrations.sdpa_attention", extra="hf").sdpa_attention_forward
        result: tuple[Tensor, None] = plain(module, query, key, value, attention_mask, **kwargs)
        return result
    refused = [name for name in _REFUSED if kwargs.get(name) is not None]
    if refused or kwargs.get("output_attentions"):
        raise ConfigError(
            f"{' and '.join(refused) or 'output_attentions'} cannot be combined with adapters",
            hint="choose another model, or leave the option out",
        )
    scaling = kwargs.get("scaling")
    visible = _once(attention_mask, hidden_when_true=False)
    y = _attend(module, query, key, value, visible, query.shape[-1] ** -0.5 if scaling is None else scaling)
    return y.transpose(1, 2), None


def _mask(*args: Any, **kwargs: Any) -> Tensor:
    """Return the whole boolean mask, True to attend, even where it is plainly causal."""
    kwargs["allow_is_causal_skip"] = False
    made: Tensor = require("transformers.masking_utils", extra="hf").sdpa_mask(*args, **kwargs)
    return made


def _register() -> None:
    require("transformers", extra="hf").AttentionInterface.register(INTERFACE, _interface)
    require("transformers.masking_utils", extra="hf").ALL_MASK_ATTENTION_FUNCTIONS.register(INTERFACE, _mask)


def _merge(y: Tensor) -> Tensor:
    return y.transpose(1, 2).flatten(2)


def _bloom_forward(
    self: Any,
    hidden_states: Tensor,
    residual: Tensor,
    alibi: Tensor,
    attention_mask: Tensor | None,
    layer_past: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """BLOOM's attention, by its own projections; distances replace the key indices of its ALiBi, alike in softmax."""
    q, k, v = self._reshape(self.query_key_value(hidden_states))
    if layer_past is not None:
        k, v = layer_past.update(k, v, self.layer_idx)
    y = _attend(self, q, k, v, _once(attention_mask, hidden_when_true=False), self.inv_norm_factor)
    return residual + F.dropout(self.dense(_merge(y)), self.hidden_dropout, self.training), None


def _mpt_forward(
    self: Any,
    hidden_states: Tensor,
    position_bias: Tensor,
    past_key_values: Any = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """MPT's attention, by its own projections; its mask is True where a key is hidden."""
    mixed = self.Wqkv(hidden_states)
    if self.clip_qkv:
        mixed = mixed.clamp(-self.clip_qkv, self.clip_qkv)
    q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in mixed.chunk(3, dim=-1))
    if past_key_values is not None:
        k, v = past_key_values.update(k, v, self.layer_idx)
    y = _attend(self, q, k, v, _once(attention_mask, hidden_when_true=True), self.softmax_scale)
    return self.out_proj(_merge(y)), None


def _once(mask: Tensor | None, *, hidden_when_true: bool) -> Tensor | None:
    """Return a mask (booleans, or 0 to attend and very negative to hide) as booleans, True to attend; kept on it."""
    if mask is None or (mask.dtype == torch.bool and not hidden_when_true):
        return mask
    found: Tensor | None = getattr(mask, "dape_visible", None)
    if found is None:
        found = ~mask if mask.dtype == torch.bool else mask >= 0
        mask.dape_visible = found  # type: ignore[attr-defined]
    return found
