"""What a trained DAPE adapter has learned: its correction and the attention it makes, head by head and by distance.

Saved decoders read a few windows of text. For every layer and head: the position bias, the adapter's correction f and
the attention mass by distance, how much of f distance alone explains, and whether the head looks near.

Corrections are taken less their mean over the last ``length / 2`` keys of a query: softmax does not see it.

Source: Zheng et al. 2024 (arXiv:2405.14722), whose pictures of single queries show f; by distance and over whole windows
it is ours.
"""

from __future__ import annotations

import itertools
import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..attention.adaptive import LEAK, ScoreAdapter
from ..attention.content import ContentBias
from ..attention.dape_naive import Edge, visible_pairs
from ..attention.scheme import Scheme
from ..errors import ConfigError, DataError
from ..language.bpe import load_tokenizer
from ..language.bytes import TextTokenizer
from ..language.corpus import read_documents
from ..language.decoder import Decoder
from ..optional import probe
from ..rng import numpy_stream
from ..training import FINAL_NAME, pick_device
from .extrapolation import VALID

MODELS = "runs/extrapolation"
NEAR = 8
"""A key at a distance below this is near: the query itself and the tokens before it."""
LOCAL = 0.5
SHOWN = 56
"""Keys of the query that is shown as text."""
KINDS = {"local": "●", "anti-local": "○", "broad": ""}
_SUFFIX = re.compile(r"-[0-9a-f]{8}-\d+$")
Row = NDArray[np.float64]


def run(
    seed: int = 0,
    *,
    models: str = MODELS,
    text: str = VALID,
    length: int = 512,
    windows: int = 3,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure every layer and head of saved decoders on the same windows of a text.

    Queries are those of the second half of each window; every one of them sees more than ``length / 2`` keys.

    Args:
        seed: of the windows.
        models: a decoder's folder, a folder of such folders, or ``name=folder`` pairs separated by commas.
        text: a text file; see :func:`~huaben.language.corpus.read_documents`.
        length: tokens a window, at least 32.
        windows: how many.
        device: to compute on.

    Returns:
        ``uniform_near``: the attention mass within :data:`NEAR` tokens if all keys had the same; ``distances`` and
        ``octaves``: lower ends of the bins; ``models``: by name, per layer and head:

        - ``bias``, ``bias_centred``, ``net`` (what is added to the scores: bias and f), by ``distances``; all but the
          first less the mean of each query;
        - ``f``: ``mean`` and ``spread`` (deviation at equal distance) by ``distances``, ``std`` over all pairs, and
          ``explained``, the share of its variance that distance alone explains up to ``length / 2``;
        - ``scores_std``, ``bias_std``: for comparison;
        - ``mass`` of the attention by ``octaves``, ``near``, ``near_without`` (f left out), and ``kind``: "local" (over
          half of it near), "anti-local" (less than uniform) or "broad".

        ``strongest`` is the layer with the largest corrections, ``example`` what f gives one query of it for the
        characters before, less the mean of f at that distance; ``error``: how far the model's own attention is from
        the one measured.

    Raises:
        ConfigError: for impossible numbers, or a folder without a decoder.
        DataError: if the text is too short.
    """
    if length < 32 or windows < 1:
        raise ConfigError(f"length={length}, windows={windows}, expected 32 and 1 at least", hint="use 512 and 3")
    folders = _folders(models)
    documents = list(read_documents(text))
    distances = _bins(length, (1.0, 1.5))
    octaves = _bins(length, (1.0,))
    found: dict[str, Any] = {}
    for name, folder in folders.items():
        model = Decoder.from_pretrained(folder, device=pick_device(device))
        tokenizer = load_tokenizer(folder)
        ids = _windows(documents, tokenizer, model.config.vocab_size, length, windows, seed)
        heads, error = _measured(model, ids)
        layers = [[head.result(distances, octaves) for head in layer] for layer in heads]
        strongest = max(range(len(layers)), key=lambda layer: sum(head["f"]["std"] for head in layers[layer]))
        found[name] = {
            "scheme": {"position": model.config.scheme.position, "adapter": model.config.scheme.adapter},
            "layers": layers,
            "kinds": {kind: sum(head["kind"] == kind for layer in layers for head in layer) for kind in KINDS},
            "strongest": strongest,
            "example": {
                "characters": [_character(tokenizer, token) for token in ids[0, -SHOWN:].tolist()],
                "f": [_rounded(head.surprise()) for head in heads[strongest]],
            },
            "error": float(f"{error:.1e}"),
        }
        _say(f"{name}: {found[name]['kinds']}")
    queries = np.arange(length // 2, length)
    return {
        "length": length,
        "windows": windows,
        "queries": windows * len(queries),
        "near": NEAR,
        "uniform_near": round(float((NEAR / (queries + 1)).mean()), 4),
        "distances": distances,
        "octaves": octaves,
        "models": found,
    }


# -- maps of scores ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScoreMaps:
    """What one layer's attention is made of, each (B, H, Q, K); entries that may not be seen mean nothing.

    Attributes:
        scores: A, scaled products of queries and keys.
        bias: B, zeros without one.
        correction: f, zeros without an adapter.
        total: S, what goes to softmax.
        visible: bool (1, 1, Q, K).
    """

    scores: Tensor
    bias: Tensor
    correction: Tensor
    total: Tensor
    visible: Tensor

    def weights(self, *, corrected: bool = True) -> Tensor:
        """Return the attention; with ``corrected=False``, what it would be if f were zero."""
        total = self.total if corrected else self.total - self.correction
        return total.masked_fill(~self.visible, -math.inf).softmax(-1)

    def centred(self, values: Tensor, over: Tensor) -> Tensor:
        """Return values less their mean, for each query, over the keys that ``over``, bool (Q, K), names."""
        mean = values.masked_fill(~over, 0).sum(-1, keepdim=True) / over.sum(-1, keepdim=True)
        return values - mean


@torch.no_grad()
def score_maps(scheme: Scheme, q: Tensor, k: Tensor, *, first: int = 0) -> ScoreMaps:
    """Return the maps of causal attention, by the formulas.

    Args:
        scheme: of the layer.
        q, k: ``(B, H, T, d)`` and ``(B, G, T, d)`` after ``scheme.rotate``.
        first: the first query wanted.
    """
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    j = torch.arange(k.shape[2], device=k.device)
    i, q = j[first:], q[:, :, first:]
    visible = visible_pairs(i, j, causal=True)
    assert visible is not None
    scale = 1 / math.sqrt(q.shape[-1])
    if isinstance(scheme.bias, ContentBias):
        scores, bias = scheme.bias.scores(q, k, i, j, scale=scale, visible=visible)
    else:
        scores = q @ k.transpose(-1, -2) * scale
        bias = torch.zeros_like(scores) if scheme.bias is None else scheme.bias.rows(i, j).expand_as(scores)
    correction, total = torch.zeros_like(scores), scores + bias
    if scheme.score is not None:
        residual = scheme.bias is None or scheme.score.mode != "concat"
        single = scheme.bias is None or scheme.score.mode == "add_residual"
        z = total if single else torch.cat((scores, bias), dim=1)
        correction = _correction(z, scheme.score, visible, scheme.config.edge)
        total = (total if residual else scores) + correction
    return ScoreMaps(scores, bias, correction, total, visible)


def _correction(z: Tensor, score: ScoreAdapter, visible: Tensor, edge: Edge) -> Tensor:
    """Return f of (B, C, Q, K), by the edge rules of :mod:`huaben.attention.dape`."""
    z, p = z.masked_fill(~visible, 0), score.kernel_size // 2
    keys = z.shape[-1]
    if edge == "virtual":
        z = F.pad(z, (0, p))
    hidden = F.leaky_relu(F.conv2d(z, score.weight1[:, :, None], score.bias1, padding=(0, p)), LEAK)
    if edge == "masked":
        hidden = hidden.masked_fill(~visible, 0)
    return F.conv2d(hidden, score.weight2[:, :, None], score.bias2, padding=(0, p))[..., :keys]


# -- sums by distance --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Head:
    """Sums of one head over queries and windows, float64 by distance (T,)."""

    length: int
    sums: dict[str, Row] = field(default_factory=dict)
    squares: dict[str, float] = field(default_factory=dict)
    example: Row = field(default_factory=lambda: np.zeros(0))

    def add(self, name: str, values: Row, delta: NDArray[np.int64]) -> None:
        """Add values of visible pairs at their distances."""
        found = np.bincount(delta, weights=values, minlength=self.length).astype(np.float64)
        self.sums[name] = self.sums[name] + found if name in self.sums else found
        self.squares[name] = self.squares.get(name, 0.0) + float((values**2).sum())

    def surprise(self) -> Row:
        """Return f of the example's query less the mean at each key's distance: what the content did."""
        mean = (self.sums["f"] / self.sums["count"])[: len(self.example)]
        surprise = self.example - mean[::-1]
        return surprise - surprise.mean()

    def result(self, distances: list[int], octaves: list[int]) -> dict[str, Any]:
        """Return the head's part of the results."""
        sums, count = self.sums, self.sums["count"]
        queries, pairs = count[0], count.sum()
        by_bin = {
            name: _binned(sums[name], distances) / _binned(count, distances)
            for name in ("bias", "bias_centred", "f", "net")
        }
        # Distances every query has; beyond them each mean is of few pairs.
        full = slice(0, self.length // 2)
        mean = sums["f"][full] / queries
        within = np.maximum(sums["f_squared"] - sums["f"] ** 2 / count, 0)
        mean_square = sums["f_squared"][full].sum() / queries / len(mean)
        variance = float(mean_square - mean.mean() ** 2)
        mass = sums["mass"] / queries
        near, uniform = float(mass[:NEAR].sum()), float(sums["uniform"][:NEAR].sum() / queries)
        return {
            "bias": _rounded(by_bin["bias"]),
            "bias_centred": _rounded(by_bin["bias_centred"]),
            "net": _rounded(by_bin["net"]),
            "f": {
                "mean": _rounded(by_bin["f"]),
                "spread": _rounded(np.sqrt(_binned(within, distances) / _binned(count, distances))),
                "std": round(math.sqrt(self.squares["f"] / pairs), 4),
                "explained": round(float(mean.var()) / variance, 4) if variance > 1e-12 else None,
            },
            "scores_std": round(math.sqrt(self.squares["scores"] / pairs), 4),
            "bias_std": round(math.sqrt(self.squares["bias_centred"] / pairs), 4),
            "mass": _rounded(_binned(mass, octaves), 5),
            "near": round(near, 4),
            "near_without": round(float(sums["mass_without"][:NEAR].sum() / queries), 4),
            "kind": "local" if near > LOCAL else "anti-local" if near < uniform else "broad",
        }


@torch.no_grad()
def _measured(model: Decoder, ids: Tensor) -> tuple[list[list[_Head]], float]:
    """Return the sums per layer and head, and how far the maps' attention is from the model's own at most."""
    length, config = ids.shape[1], model.config
    first = length // 2
    heads = [[_Head(length) for _ in range(config.heads)] for _ in range(config.layers)]
    calls = itertools.count()
    errors: list[float] = []

    def look(scheme: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        call = next(calls)
        q, k, v = inputs
        maps = score_maps(cast(Scheme, scheme), q, k, first=first)
        weights = maps.weights()
        expected = weights @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        errors.append(float((output[:, :, first:] - expected).abs().max()))
        seen = maps.visible[0, 0]
        i, j = (part.cpu().numpy() for part in seen.nonzero(as_tuple=True))
        delta = i + first - j
        # The distances that every query has, so that no mean differs for a query that sees more keys.
        common = seen & seen.new_ones(seen.shape).triu(1)
        parts = {
            "scores": maps.centred(maps.scores, common),
            "bias": maps.bias,
            "bias_centred": maps.centred(maps.bias, common),
            "f": maps.centred(maps.correction, common),
            "net": maps.centred(maps.total - maps.scores, common),
            "mass": weights,
            "mass_without": maps.weights(corrected=False),
        }
        for number, head in enumerate(heads[call % config.layers]):
            values = {name: part[0, number][seen].double().cpu().numpy() for name, part in parts.items()}
            for name, value in values.items():
                head.add(name, value, delta)
            head.add("f_squared", values["f"] ** 2, delta)
            head.add("count", np.ones(len(delta)), delta)
            head.add("uniform", 1 / (i + first + 1), delta)
            if call < config.layers:  # the first window's last query
                head.example = parts["f"][0, number, -1, -SHOWN:].double().cpu().numpy()

    hooks = [scheme.register_forward_hook(look) for scheme in model.schemes]
    try:
        for row in ids:
            model.states(row[None].to(model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return heads, max(errors)


def _bins(length: int, steps: tuple[float, ...]) -> list[int]:
    """Return the lower ends of bins of distances: 0, and every power of two times the steps below ``length``."""
    ends = {int(step * 2**power) for power in range(length.bit_length()) for step in steps if 2**power * step % 1 == 0}
    return [0, *sorted(end for end in ends if end < length)]


def _binned(values: Row, bins: list[int]) -> Row:
    return np.add.reduceat(values, bins)


def _rounded(values: Row, digits: int = 4) -> list[float]:
    return [round(float(value), digits) + 0.0 for value in values]


# -- models and text ---------------------------------------------------------------------------------------------


def _folders(models: str) -> dict[str, Path]:
    """Return the decoders' folders by name."""
    if "=" in models:
        pairs = [part.partition("=") for part in models.split(",") if part.strip()]
        return {name.strip(): _decoder(Path(folder.strip())) for name, _, folder in pairs}
    folder = Path(models)
    if _has_decoder(folder):
        return {_SUFFIX.sub("", folder.resolve().name): _decoder(folder)}
    inside = sorted(path for path in folder.iterdir() if _has_decoder(path)) if folder.is_dir() else []
    if not inside:
        raise ConfigError(f"found no decoder in {folder}", hint="train some: huaben bench extrapolation")
    short = [_SUFFIX.sub("", path.name) for path in inside]
    names = [name if short.count(name) == 1 else path.name for name, path in zip(short, inside, strict=True)]
    return {name: _decoder(path) for name, path in zip(names, inside, strict=True)}


def _has_decoder(folder: Path) -> bool:
    return any((path / "config.json").is_file() for path in (folder, folder / FINAL_NAME))


def _decoder(folder: Path) -> Path:
    return folder / FINAL_NAME if (folder / FINAL_NAME / "config.json").is_file() else folder


def _windows(
    documents: list[str], tokenizer: TextTokenizer, vocab_size: int, length: int, windows: int, seed: int
) -> Tensor:
    """Draw windows of a text, int64 (windows, T), each inside a document: the same for every model of a tokenizer."""
    if tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model {vocab_size}",
            hint="keep the tokenizer.json that the model was saved with",
        )
    rng = numpy_stream(seed, "adapter view")
    order = [documents[index] for index in rng.permutation(len(documents))]
    rows: list[NDArray[np.int64]] = []
    for document in itertools.islice(itertools.cycle(order), max(windows, len(order))):
        # A piece that holds enough tokens, from a random word on.
        start = document.find(" ", int(rng.integers(0, max(1, len(document) - 16 * length)))) + 1
        ids = tokenizer.encode(document[start : start + 16 * length])
        if len(ids) >= length and len(rows) < windows:
            rows.append(ids[:length])
    if len(rows) < windows:
        raise DataError(
            f"found {len(rows)} documents of {length} tokens, expected {windows}", hint="use a longer text or length=64"
        )
    return torch.from_numpy(np.stack(rows))


def _character(tokenizer: TextTokenizer, token: int) -> str:
    """Return a token as text on one line."""
    text = tokenizer.decode([token]).replace("\n", "↵").replace(" ", "␣")
    return text if text.isprintable() and text != "\ufffd" else "·"


# -- the picture -------------------------------------------------------------------------------------------------


def plot(record: dict[str, Any], path: Path) -> None:
    """Draw bias and correction by distance, attention by distance, and f over text.

    The first and the last part show the layer with the largest corrections of the last model with an adapter.

    Args:
        record: as written to ``results.json``, or its ``results``.
        path: a PNG file; not written without matplotlib.
    """
    if not probe("matplotlib").works:
        _say("adapter_view: no picture, matplotlib is not installed")
        return
    from matplotlib.figure import Figure

    results = record.get("results", record)
    models = results["models"]
    adapted = [name for name, model in models.items() if model["scheme"]["adapter"] != "none"]
    columns = min(4, len(models))
    grid = math.ceil(len(models) / columns)
    rows = max(len(model["layers"]) * len(model["layers"][0]) for model in models.values())
    heights = [2.3, grid * (0.75 + 0.22 * rows), 1.75] if adapted else [grid * (0.75 + 0.22 * rows)]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if adapted:
        _draw_curves(parts[0], results, adapted[-1])
        _draw_example(parts[2], models[adapted[-1]], adapted[-1])
    _draw_mass(parts[1 if adapted else 0], results, grid, columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _draw_curves(part: Any, results: dict[str, Any], name: str) -> None:
    """Draw what is added to the scores with and without f, a panel a head."""
    model = results["models"][name]
    layer = model["layers"][model["strongest"]]
    near, count = results["distances"], len(layer)
    x = np.maximum(np.asarray(near, dtype=np.float64), 0.5)
    panels = part.subplots(1, count, squeeze=False, sharex=True, sharey=True)[0]
    for number, (axes, head) in enumerate(zip(panels, layer, strict=True)):
        net, spread = np.asarray(head["net"]), np.asarray(head["f"]["spread"])
        axes.plot(x, head["bias_centred"], color="0.45", linestyle="--", label="bias")
        axes.plot(x, net, color="C3", label="bias + f")
        axes.fill_between(x, net - spread, net + spread, color="C3", alpha=0.2, linewidth=0, label="spread of f")
        axes.set_xscale("log", base=2)
        ticks = [tick for tick in (1, 8, 64, 512, 4096) if tick < results["length"]]
        axes.set_xticks([0.5, *ticks], ["0", *map(str, ticks)], fontsize=8)
        axes.tick_params(axis="y", labelsize=8)
        axes.set_title(f"head {number + 1}", fontsize=9)
    panels[0].set_ylabel("added to the score", fontsize=9)
    panels[0].legend(fontsize=7, frameon=False, loc="upper right", handlelength=1.2)
    part.supxlabel("distance of the key (tokens, logarithmic)", fontsize=9)
    part.suptitle(f"{name}, layer {model['strongest'] + 1}: what the adapter makes of the bias", fontsize=10)


def _draw_mass(part: Any, results: dict[str, Any], grid: int, columns: int) -> None:
    """Draw the attention mass by distance, a map a model and a row a head."""
    models, octaves = results["models"], results["octaves"]
    panels = part.subplots(grid, columns, squeeze=False)
    for axes in panels.flat[len(models) :]:
        axes.axis("off")
    labels = ["0", "1", *(f"{low}–{min(2 * low, results['length']) - 1}" for low in octaves[2:])]
    for axes, (name, model) in zip(panels.flat, models.items(), strict=False):
        heads = [
            (f"{layer + 1}.{number + 1}", head)
            for layer, found in enumerate(model["layers"])
            for number, head in enumerate(found)
        ]
        image = axes.imshow([head["mass"] for _, head in heads], aspect="auto", cmap="magma_r", vmin=0, vmax=0.5)
        axes.set_xticks(range(len(octaves)), labels, fontsize=7, rotation=90)
        axes.set_yticks(range(len(heads)), [f"{label} {KINDS[head['kind']]}" for label, head in heads], fontsize=8)
        axes.axvline(octaves.index(NEAR) - 0.5 if NEAR in octaves else -0.5, color="C0", linewidth=1)
        axes.set_title(name, fontsize=9)
    panels[0, 0].set_ylabel("layer.head", fontsize=9)
    bar = part.colorbar(image, ax=list(panels.flat), shrink=0.9, pad=0.01)
    bar.set_label("share of attention", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    part.supxlabel("distance of the key (tokens)", fontsize=9)
    marks = "● local: over half within 8 tokens   ○ anti-local: less there than uniform attention"
    part.suptitle(f"Where each head looks    {marks}", fontsize=10)


def _draw_example(part: Any, model: dict[str, Any], name: str) -> None:
    """Draw what the text before one query does to f."""
    axes = part.subplots()
    values = np.asarray(model["example"]["f"])
    limit = max(1e-6, float(np.abs(values).max()))
    image = axes.imshow(values, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit)
    characters = model["example"]["characters"]
    axes.set_xticks(range(len(characters)), characters, fontsize=8, family="monospace")
    axes.tick_params(axis="x", length=0)
    axes.set_yticks(range(len(values)), [f"head {number + 1}" for number in range(len(values))], fontsize=8)
    axes.set_title(
        f"{name}, layer {model['strongest'] + 1}: f of the last character's query, beyond what distance explains",
        fontsize=10,
    )
    bar = part.colorbar(image, ax=axes, pad=0.01)
    bar.set_label("f", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
