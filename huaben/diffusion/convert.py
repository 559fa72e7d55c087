"""Hunyuan-DiT checkpoints in three layouts: our own, the official one, and diffusers'.

Each foreign layout is a list of :class:`Rule`; a rule says which of its weights make one of ours, and how. The same
list reads and writes, so both directions are exact inverses.

===============================  ==================================  ==========================================
ours                             official                            diffusers
===============================  ==================================  ==========================================
``self_norm`` (used first)       ``norm1``                           ``norm1.norm``
``cross_norm`` (used second)     ``norm3``                           ``norm2``
``mlp_norm`` (used third)        ``norm2``                           ``norm3``
``shifts`` (all blocks' rows)    ``default_modulation.1`` per block  ``norm1.linear`` per block
``self_attention.qkv``           ``attn1.Wqkv``                      ``attn1.to_q``, ``to_k``, ``to_v``
``cross_attention.kv_proj``      ``attn2.kv_proj``                   ``attn2.to_k``, ``to_v``
``final.modulation``             shift rows, then scale rows         scale rows, then shift rows
===============================  ==================================  ==========================================

This is the only file of the room that reads a pickle, with ``weights_only=True``.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from ..errors import CheckpointError, ConfigError
from ..pretrained import CONFIG_NAME, WEIGHTS_NAME, read_weights, write_atomic

if TYPE_CHECKING:
    from .dit import HunyuanDiTConfig

Layout = Literal["huaben", "diffusers", "official"]
State = dict[str, Tensor]

LAYOUTS: tuple[Layout, ...] = ("huaben", "diffusers", "official")
DIFFUSERS_CLASS = "HunyuanDiT2DModel"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
OFFICIAL_WEIGHTS = "pytorch_model_module.pt"
FOREIGN_POOLER_HEADS = 8
FOREIGN_ROPE_BASE = 32

_PATCH_WEIGHT: dict[Layout, str] = {
    "huaben": "patch_embed.weight",
    "official": "x_embedder.proj.weight",
    "diffusers": "pos_embed.proj.weight",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """One weight of ours and the foreign weights that make it.

    Attributes:
        ours: name in our layout.
        foreign: names in the other layout; several are stacked along the rows.
        kind: ``copy`` (stacking included), ``swap`` (exchange the two halves of the rows) or ``patch`` (our patch
            embedding is a linear map, theirs a convolution).
    """

    ours: str
    foreign: tuple[str, ...]
    kind: Literal["copy", "swap", "patch"] = "copy"


def rules(layout: Layout, *, num_layers: int, use_style_and_size: bool) -> list[Rule]:
    """Return the key map of a foreign layout.

    Raises:
        ConfigError: for a layout without a map.
    """
    if layout not in ("official", "diffusers"):
        raise ConfigError(f"layout={layout!r} is neither 'official' nor 'diffusers'", hint="choose one of them")
    diffusers = layout == "diffusers"
    extra = "time_extra_emb." if diffusers else ""
    pairs: dict[str, tuple[str, ...]] = {}  # module of ours -> modules of theirs

    def add(ours: str, official: str, *theirs: str) -> None:
        pairs[ours] = theirs if diffusers else (official,)

    add("t5_mlp.fc1", "mlp_t5.0", "text_embedder.linear_1")
    add("t5_mlp.fc2", "mlp_t5.2", "text_embedder.linear_2")
    add("timestep_mlp.fc1", "t_embedder.mlp.0", f"{extra}timestep_embedder.linear_1")
    add("timestep_mlp.fc2", "t_embedder.mlp.2", f"{extra}timestep_embedder.linear_2")
    add("extra_mlp.fc1", "extra_embedder.0", f"{extra}extra_embedder.linear_1")
    add("extra_mlp.fc2", "extra_embedder.2", f"{extra}extra_embedder.linear_2")
    for name in ("q_proj", "k_proj", "v_proj"):
        add(f"pooler.{name}", f"pooler.{name}", f"{extra}pooler.{name}")
    add("pooler.out_proj", "pooler.c_proj", f"{extra}pooler.c_proj")
    add("final.linear", "final_layer.linear", "proj_out")
    for j in range(num_layers):
        block = f"blocks.{j}"
        add(f"{block}.self_norm", f"{block}.norm1", f"{block}.norm1.norm")
        add(f"{block}.cross_norm", f"{block}.norm3", f"{block}.norm2")
        add(f"{block}.mlp_norm", f"{block}.norm2", f"{block}.norm3")
        ours, theirs = f"{block}.self_attention", f"{block}.attn1"
        add(f"{ours}.qkv", f"{theirs}.Wqkv", f"{theirs}.to_q", f"{theirs}.to_k", f"{theirs}.to_v")
        add(f"{ours}.q_norm", f"{theirs}.q_norm", f"{theirs}.norm_q")
        add(f"{ours}.k_norm", f"{theirs}.k_norm", f"{theirs}.norm_k")
        add(f"{ours}.out_proj", f"{theirs}.out_proj", f"{theirs}.to_out.0")
        ours, theirs = f"{block}.cross_attention", f"{block}.attn2"
        add(f"{ours}.q_proj", f"{theirs}.q_proj", f"{theirs}.to_q")
        add(f"{ours}.kv_proj", f"{theirs}.kv_proj", f"{theirs}.to_k", f"{theirs}.to_v")
        add(f"{ours}.q_norm", f"{theirs}.q_norm", f"{theirs}.norm_q")
        add(f"{ours}.k_norm", f"{theirs}.k_norm", f"{theirs}.norm_k")
        add(f"{ours}.out_proj", f"{theirs}.out_proj", f"{theirs}.to_out.0")
        add(f"{block}.mlp.fc1", f"{block}.mlp.fc1", f"{block}.ff.net.0.proj")
        add(f"{block}.mlp.fc2", f"{block}.mlp.fc2", f"{block}.ff.net.2")
        if j > num_layers // 2:
            add(f"{block}.skip_norm", f"{block}.skip_norm", f"{block}.skip_norm")
            add(f"{block}.skip_linear", f"{block}.skip_linear", f"{block}.skip_linear")
    shift = "norm1.linear" if diffusers else "default_modulation.1"
    pairs["shifts"] = tuple(f"blocks.{j}.{shift}" for j in range(num_layers))

    made = [
        Rule(f"{ours}.{part}", tuple(f"{name}.{part}" for name in theirs))
        for ours, theirs in pairs.items()
        for part in ("weight", "bias")
    ]
    patch = _PATCH_WEIGHT[layout].removesuffix(".weight")
    modulation = "norm_out.linear" if diffusers else "final_layer.adaLN_modulation.1"
    made += [
        Rule("patch_embed.weight", (f"{patch}.weight",), "patch"),
        Rule("patch_embed.bias", (f"{patch}.bias",)),
        Rule("text_padding", ("text_embedding_padding",)),
        Rule("pooler.position_embedding", (f"{extra}pooler.positional_embedding",)),
        Rule("final.modulation.weight", (f"{modulation}.weight",), "swap" if diffusers else "copy"),
        Rule("final.modulation.bias", (f"{modulation}.bias",), "swap" if diffusers else "copy"),
    ]
    if use_style_and_size:
        made.append(Rule("style_embedding.weight", (f"{extra}style_embedder.weight",)))
    return made


def to_layout(state: State, config: HunyuanDiTConfig, layout: Layout) -> State:
    """Return our weights under the names, and in the shapes, of ``layout``."""
    if layout == "huaben":
        return dict(state)
    converted: State = {}
    for rule in _rules_of(config, layout):
        tensor = state[rule.ours]
        if rule.kind == "patch":
            tensor = tensor.unflatten(1, (config.in_channels, config.patch_size, config.patch_size))
        elif rule.kind == "swap":
            tensor = torch.cat(tensor.chunk(2)[::-1])
        converted.update(zip(rule.foreign, tensor.chunk(len(rule.foreign)), strict=True))
    return converted


def from_layout(state: State, config: HunyuanDiTConfig, layout: Layout) -> State:
    """Return foreign weights in our layout; names and shapes were checked before."""
    if layout == "huaben":
        return dict(state)
    converted: State = {}
    for rule in _rules_of(config, layout):
        parts = [state[name] for name in rule.foreign]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        if rule.kind == "patch":
            tensor = tensor.flatten(1)
        elif rule.kind == "swap":
            tensor = torch.cat(tensor.chunk(2)[::-1])
        converted[rule.ours] = tensor
    return converted


def _rules_of(config: HunyuanDiTConfig, layout: Layout) -> list[Rule]:
    return rules(layout, num_layers=config.num_layers, use_style_and_size=config.use_style_and_size)


# --- what a state dict tells ---------------------------------------------------------------------------------------


def detect_layout(state: State, where: str = "the checkpoint") -> Layout:
    """Tell the layout by the name of the patch embedding.

    Raises:
        CheckpointError: if it has none of the known names.
    """
    for layout, name in _PATCH_WEIGHT.items():
        if name in state:
            return layout
    names = ", ".join(map(repr, _PATCH_WEIGHT.values()))
    raise CheckpointError(
        f"{where} has none of {names} among its {len(state)} weights", hint="this is not a Hunyuan-DiT checkpoint"
    )


def config_from_state(state: State, layout: Layout, where: str = "the checkpoint") -> dict[str, Any]:
    """Read the fields of a ``HunyuanDiTConfig`` off the shapes of a foreign state dict.

    Raises:
        CheckpointError: naming a weight that is needed for this and absent.
    """
    version = any(name.endswith("style_embedder.weight") for name in state)
    numbers = [int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name))]
    num_layers = max(numbers, default=-1) + 1
    names = {
        rule.ours: rule.foreign[0] for rule in rules(layout, num_layers=max(num_layers, 1), use_style_and_size=version)
    }

    def shape(ours: str) -> tuple[int, ...]:
        if names[ours] not in state:
            raise CheckpointError(
                f"{where} lacks {names[ours]}, which tells the model's size", hint="copy or download the file again"
            )
        return tuple(state[names[ours]].shape)

    hidden_size, in_channels, patch_size = shape("patch_embed.weight")[:3]
    head_dim = shape("blocks.0.self_attention.q_norm.weight")[0]
    mlp_dim = shape("blocks.0.mlp.fc1.weight")[0]
    text_len, clip_dim = shape("text_padding")
    t5_positions, t5_dim = shape("pooler.position_embedding")
    out_channels = shape("final.linear.weight")[0] // patch_size**2
    ratio = mlp_dim / hidden_size
    return {
        "num_heads": hidden_size // head_dim,
        "head_dim": head_dim,
        "num_layers": num_layers,
        "mlp_ratio": ratio if int(hidden_size * ratio) == mlp_dim else math.nextafter(ratio, math.inf),
        "in_channels": in_channels,
        "patch_size": patch_size,
        "learn_sigma": out_channels == 2 * in_channels,
        "clip_dim": clip_dim,
        "clip_len": text_len - (t5_positions - 1),
        "t5_dim": t5_dim,
        "t5_len": t5_positions - 1,
        "pooled_dim": shape("pooler.out_proj.weight")[0],
        "pooler_heads": FOREIGN_POOLER_HEADS,
        "use_style_and_size": version,
        "rope_base": FOREIGN_ROPE_BASE,
    }


# --- diffusers' config ---------------------------------------------------------------------------------------------

# Field of theirs: field of ours, and their default.
_DIFFUSERS_FIELDS: dict[str, tuple[str, Any]] = {
    "num_attention_heads": ("num_heads", 16),
    "attention_head_dim": ("head_dim", 88),
    "in_channels": ("in_channels", None),
    "patch_size": ("patch_size", None),
    "num_layers": ("num_layers", 28),
    "mlp_ratio": ("mlp_ratio", 4.0),
    "learn_sigma": ("learn_sigma", True),
    "cross_attention_dim": ("clip_dim", 1024),
    "cross_attention_dim_t5": ("t5_dim", 2048),
    "pooled_projection_dim": ("pooled_dim", 1024),
    "text_len": ("clip_len", 77),
    "text_len_t5": ("t5_len", 256),
    "use_style_cond_and_image_meta_size": ("use_style_and_size", True),
}
# Fields of theirs that we only check or that change nothing, and their default.
_DIFFUSERS_FIXED: dict[str, Any] = {
    "activation_fn": "gelu-approximate",
    "norm_type": "layer_norm",
    "hidden_size": 1152,
    "sample_size": 32,
}


def config_from_diffusers(values: dict[str, Any], where: str = CONFIG_NAME) -> dict[str, Any]:
    """Translate diffusers' ``config.json`` of a ``HunyuanDiT2DModel``.

    Raises:
        CheckpointError: for another class, an unknown field, or a setting this model does not have.
    """
    if values.get("_class_name") != DIFFUSERS_CLASS:
        raise CheckpointError(
            f"{where} is a {values.get('_class_name')!r}, expected {DIFFUSERS_CLASS!r}",
            hint="point to the transformer folder of a Hunyuan-DiT pipeline",
        )
    fields = {name: value for name, value in values.items() if not name.startswith("_")}
    unknown = sorted(fields.keys() - _DIFFUSERS_FIELDS.keys() - _DIFFUSERS_FIXED.keys())
    if unknown:
        raise CheckpointError(f"{where} has unknown fields {', '.join(unknown)}", hint="a newer version saved it")
    ours = {name: fields.get(theirs, default) for theirs, (name, default) in _DIFFUSERS_FIELDS.items()}
    absent = [theirs for theirs, (name, _) in _DIFFUSERS_FIELDS.items() if ours[name] is None]
    if absent:
        raise CheckpointError(f"{where} lacks {', '.join(absent)}", hint="copy or download the file again")
    width = fields.get("hidden_size", _DIFFUSERS_FIXED["hidden_size"])
    if width != ours["num_heads"] * ours["head_dim"]:
        raise CheckpointError(
            f"{where}: hidden_size={width}, expected heads times head width = {ours['num_heads'] * ours['head_dim']}",
            hint="the two must agree",
        )
    activation = fields.get("activation_fn", "gelu-approximate")
    if activation != "gelu-approximate":
        raise CheckpointError(f"{where}: activation_fn={activation!r}, expected 'gelu-approximate'")
    return {**ours, "pooler_heads": FOREIGN_POOLER_HEADS, "rope_base": FOREIGN_ROPE_BASE}


def config_to_diffusers(config: HunyuanDiTConfig, *, sample_size: int = 128) -> dict[str, Any]:
    """Return the ``config.json`` that diffusers reads.

    Raises:
        ConfigError: if the config has a setting that other layouts cannot express.
    """
    _check_exportable(config)
    fields = {theirs: getattr(config, ours) for theirs, (ours, _) in _DIFFUSERS_FIELDS.items()}
    fixed = {**_DIFFUSERS_FIXED, "hidden_size": config.hidden_size, "sample_size": sample_size}
    return {"_class_name": DIFFUSERS_CLASS, **fields, **fixed}


def _check_exportable(config: HunyuanDiTConfig) -> None:
    for name, expected in (("pooler_heads", FOREIGN_POOLER_HEADS), ("rope_base", FOREIGN_ROPE_BASE)):
        found = getattr(config, name)
        if found != expected:
            raise ConfigError(
                f"{name}={found} cannot be expressed in this layout, which fixes it at {expected}",
                hint="save with layout='huaben'",
            )


# --- files ---------------------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any] | None, State, Layout, str]:
    """Find and read the weights at ``path``.

    Args:
        path: a ``.safetensors`` or ``.pt`` file, or a folder: diffusers' transformer folder, or one with a single
            weights file.

    Returns:
        Config fields, or None if only the weights tell them; the weights; their layout; the file's name for errors.

    Raises:
        CheckpointError: if there is no such file, several, or one that cannot be read.
    """
    path = Path(path)
    if path.is_file():
        state = _read_file(path)
        return None, state, detect_layout(state, str(path)), str(path)
    if not path.is_dir():
        raise CheckpointError(f"no file or folder at {path}", hint="check the path")
    if (path / CONFIG_NAME).is_file():
        try:
            values = json.loads((path / CONFIG_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path / CONFIG_NAME} is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{path / CONFIG_NAME} holds a {type(values).__name__}, expected an object")
        config = config_from_diffusers(values, str(path / CONFIG_NAME))
        return config, _read_shards(path), "diffusers", str(path / DIFFUSERS_WEIGHTS)
    found = sorted(p for p in path.iterdir() if p.suffix == ".safetensors" or p.match("pytorch_model_*.pt"))
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise CheckpointError(
            f"{path} holds no {CONFIG_NAME} and {len(found)} weights files ({names}), expected one",
            hint="point to one file",
        )
    return read_checkpoint(found[0])


def _read_shards(folder: Path) -> State:
    index = folder / f"{DIFFUSERS_WEIGHTS}.index.json"
    if not index.is_file():
        return read_weights(folder / DIFFUSERS_WEIGHTS)
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not a weight index: {error}", hint="download it again") from error
    state: State = {}
    for name in files:
        if Path(name).name != name:
            raise CheckpointError(f"{index} points outside its folder: {name!r}", hint="download it again")
        state.update(read_weights(folder / name))
    return state


def _read_file(path: Path) -> State:
    if path.suffix == ".safetensors":
        return _keep_first_style(read_weights(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} does not load as plain weights ({str(error).splitlines()[0]})",
            hint="files with other objects inside are never executed; convert it to safetensors where you trust it",
        ) from error
    if isinstance(content, dict):
        # The trainer nests the weights; the averaged ones are meant for use.
        for part in ("ema", "module"):
            if isinstance(content.get(part), dict) and content[part]:
                content = content[part]
                break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds no plain dict of weights", hint="expected names to tensors")
    return _keep_first_style({str(name): tensor for name, tensor in content.items()})


def _keep_first_style(state: State) -> State:
    """Cut the style embedding to row 0, the only one that is ever used."""
    return {name: tensor[:1] if name.endswith("style_embedder.weight") else tensor for name, tensor in state.items()}


def write_checkpoint(folder: str | Path, state: State, config: HunyuanDiTConfig, layout: Layout) -> None:
    """Write our weights in a foreign layout: diffusers' transformer folder, or the official weights file.

    Raises:
        ConfigError: if the layout cannot express the config.
    """
    folder = Path(folder)
    _check_exportable(config)
    converted = {name: tensor.contiguous().cpu() for name, tensor in to_layout(state, config, layout).items()}
    if layout == "diffusers":
        # Slices of one stacked weight share its memory, which safetensors refuses.
        write_atomic(folder / DIFFUSERS_WEIGHTS, save({name: tensor.clone() for name, tensor in converted.items()}))
        text = json.dumps(config_to_diffusers(config), indent=2, sort_keys=True) + "\n"
        write_atomic(folder / CONFIG_NAME, text.encode())
        return
    buffer = io.BytesIO()
    torch.save({name: tensor.clone() for name, tensor in converted.items()}, buffer)
    write_atomic(folder / OFFICIAL_WEIGHTS, buffer.getvalue())


def is_ours(path: str | Path) -> bool:
    """Tell whether ``path`` is a folder that ``save_pretrained`` wrote in our own layout."""
    config = Path(path) / CONFIG_NAME
    if not config.is_file():
        return False
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return (Path(path) / WEIGHTS_NAME).is_file()
    return not (isinstance(values, dict) and "_class_name" in values)
