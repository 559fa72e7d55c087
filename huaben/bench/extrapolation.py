"""Does a language model trained on short windows stay good on long ones? Every position scheme at equal steps and data.

A small byte-level decoder is trained per scheme and seed on windows of ``train_length`` and scored with contexts of
every length on the same target windows (:mod:`huaben.language.extrapolation`). A cache folder keeps checkpoints, models
and scores: a run that was stopped goes on, and changing what is reported trains nothing again.

Source: Zheng et al. 2024 (arXiv:2405.14722, arXiv:2410.04798), section 4. Differs: a model of minutes on one core, bytes
instead of byte pairs, and other long documents.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..files import write_bytes
from ..language.bytes import ByteTokenizer
from ..language.corpus import Corpus, corpus_from_files
from ..language.decoder import Decoder, DecoderConfig
from ..language.extrapolation import check_lengths, mean_interval, score_length, target_windows
from ..optional import probe
from ..recipes.lm import LMRecipe, lm_fit, named_scheme
from ..training import CARD_NAME, FINAL_NAME, fit, pick_device

TRAIN = "../shared/data/text/stacks_train.txt.xz"
VALID = "../shared/data/text/stacks_valid.txt.xz"
SCHEMES = "rope,alibi,kerple,dape-kerple,v2-kerple,v2-nope"
ONE_SEED = "alibi,v2-nope"
LENGTHS = "128,256,512,1024,2048,4096,8192"
V1, V2, BASE = "dape-kerple", "v2-kerple", "kerple"
EXPLODES = "rope"
BESIDE_THE_POINT = (
    "checkpoint_every_s", "log_every", "preview_every", "default_minutes", "threads", "prefetch", "workers", "queue",
)  # fmt: skip
"""Fields of a FitConfig that change no number of a training."""
Losses = dict[int, NDArray[np.float64]]
"""By length: nats of each scored token, (windows, scored)."""


def run(
    seed: int = 0,
    *,
    train: str = TRAIN,
    valid: str = VALID,
    schemes: str | Sequence[str] = SCHEMES,
    seeds: int = 3,
    one_seed: str | Sequence[str] = ONE_SEED,
    steps: int = 900,
    train_length: int = 128,
    lengths: str | int | Sequence[int] = LENGTHS,
    windows: int = 48,
    scored: int = 256,
    batch_size: int = 16,
    learning_rate: float = 2e-3,
    layers: int = 2,
    width: int = 96,
    heads: int = 4,
    hidden: int = 16,
    bf16: bool = False,
    device: str = "cpu",
    cache: str = "runs/extrapolation",
    limit_minutes: float | None = None,
) -> dict[str, Any]:
    """Train and score every scheme.

    Args:
        seed: of the target windows, and the first of the trainings' seeds.
        train, valid: text files; see :func:`~huaben.language.corpus.read_documents`.
        schemes: names of :data:`~huaben.attention.scheme.SCHEMES`, separated by commas.
        seeds: trainings a scheme, with seeds from ``seed`` on.
        one_seed: schemes of which one training is enough.
        steps, train_length, batch_size, learning_rate: of every training.
        lengths: contexts to score; the shortest decides how many tokens all lengths share.
        windows: target windows a length.
        scored: tokens a window, as far as the length reaches.
        layers, width, heads, hidden: of the decoder; ``hidden`` is the adapters' inner width.
        bf16, device: how to compute.
        cache: folder of corpora, checkpoints and scores.
        limit_minutes: begin no training after so many minutes; None finishes everything.

    Returns:
        ``schemes``: by name and length, loss and perplexity with 95 % intervals over windows; ``paired``: differences
        of two schemes on the same windows; ``checks``: what the papers claim, and whether it was measured.

    Raises:
        ConfigError: for an unknown scheme or impossible numbers.
        DataError: if a text cannot be read or is too short for the longest context.
    """
    names, single = _names(schemes), _names(one_seed)
    wanted = check_lengths(_numbers(lengths))
    if seeds < 1 or not names:
        raise ConfigError(
            f"seeds={seeds}, schemes={names}: nothing to train", hint="use seeds=3 and schemes=rope,kerple"
        )
    folder = Path(cache)
    tokenizer = ByteTokenizer()
    models = {
        name: DecoderConfig(
            vocab_size=tokenizer.vocab_size,
            layers=layers,
            width=width,
            heads=heads,
            scheme=named_scheme(name, train_length=train_length, hidden=hidden),
        )
        for name in names
    }
    train_corpus = corpus_from_files([train], tokenizer, folder / "train")
    valid_corpus = corpus_from_files([valid], tokenizer, folder / "valid")
    ends = target_windows(valid_corpus, windows=windows, longest=wanted[-1], scored=min(scored, wanted[-1]), seed=seed)
    recipe_settings: dict[str, Any] = {"length": train_length, "batch_size": batch_size, "valid": valid_corpus}
    deadline = math.inf if limit_minutes is None else time.perf_counter() + 60 * limit_minutes
    found: dict[str, dict[int, Losses]] = {}
    trained: dict[str, list[dict[str, Any]]] = {}
    # Seed by seed, so that a run stopped early has every scheme.
    for number in range(seeds):
        for name in names:
            if (number and name in single) or (found and time.perf_counter() > deadline):
                continue
            recipe = LMRecipe(
                train_corpus,
                tokenizer,
                models[name],
                fit=lm_fit(
                    steps=steps, learning_rate=learning_rate, seed=seed + number, bf16=bf16, checkpoint_every_s=60
                ),
                **recipe_settings,
            )
            run_folder = folder / f"{name}-{_key(recipe, steps)}-{seed + number}"
            model, card = _trained(recipe, run_folder, steps, device)
            _say(f"{name}, seed {seed + number}: loss {card['scores']['valid_loss']:.4f} at length {train_length}")
            trained.setdefault(name, []).append(card)
            found.setdefault(name, {})[seed + number] = {
                length: _scored(model, valid_corpus, ends, length, scored, run_folder, bf16) for length in wanted
            }
    return summary(found, trained, seed=seed, lengths=wanted, train_length=train_length, steps=steps)


def _key(recipe: LMRecipe, steps: int) -> str:
    """Return what decides a training's result, as eight hexadecimal digits."""
    deciding = {name: value for name, value in recipe.fit.to_dict().items() if name not in BESIDE_THE_POINT}
    text = json.dumps([recipe.name, deciding, steps], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _trained(recipe: LMRecipe, folder: Path, steps: int, device: str) -> tuple[Decoder, dict[str, Any]]:
    """Return the trained model and its card: from the cache, or trained, or trained on."""
    final = folder / FINAL_NAME
    if not (final / CARD_NAME).is_file():
        fit(recipe, folder, steps=steps, resume=True, device=device)
    card = json.loads((final / CARD_NAME).read_text(encoding="utf-8"))
    return Decoder.from_pretrained(final, device=pick_device(device)), card


def _scored(
    model: Decoder, corpus: Corpus, ends: NDArray[np.int64], length: int, scored: int, folder: Path, bf16: bool
) -> NDArray[np.float64]:
    """Return the losses at one length: from the cache, or computed."""
    key = hashlib.sha256(f"{corpus.fingerprint} {ends.tolist()} {scored} {bf16}".encode()).hexdigest()[:8]
    path = folder / f"losses-{key}-{length}.f64"
    columns = min(scored, length)
    if path.is_file():
        losses = np.fromfile(path, dtype="<f8")
        if losses.size == len(ends) * columns:
            return losses.reshape(len(ends), columns)
    begun = time.perf_counter()
    result = score_length(model, corpus, ends, length, scored=scored, bf16=bf16).losses
    _say(f"  {len(ends)} windows at length {length}: {time.perf_counter() - begun:.1f} s")
    write_bytes(path, result.astype("<f8").tobytes())
    return result


# -- what was found ----------------------------------------------------------------------------------------------


def summary(
    found: dict[str, dict[int, Losses]],
    trained: dict[str, list[dict[str, Any]]],
    *,
    seed: int,
    lengths: Sequence[int],
    train_length: int,
    steps: int,
) -> dict[str, Any]:
    """Return the table, the paired differences and the checks.

    Args:
        found: by scheme and training seed, the losses.
        trained: by scheme, the cards of its trainings.
        seed: of the intervals.
        lengths: in order.
        train_length, steps: for the record.
    """
    shared = min(array.shape[1] for runs in found.values() for losses in runs.values() for array in losses.values())
    tail = max(1, shared // 4)
    table = {
        name: {
            "seeds": sorted(runs),
            "parameters": trained[name][0]["parameters"],
            "minutes": round(float(np.mean([card["minutes"] for card in trained[name]])), 2),
            "lengths": {str(length): _row(runs, length, shared, tail, seed) for length in lengths},
        }
        for name, runs in found.items()
    }

    pairs = [pair for pair in ((V2, V1), (V1, BASE), (V2, BASE)) if found.keys() >= set(pair)]
    paired = {
        f"{left} - {right}": {
            str(length): _difference((found[left], length), (found[right], length), shared, seed) for length in lengths
        }
        for left, right in pairs
    }
    return {
        "lengths": list(lengths),
        "train_length": train_length,
        "steps": steps,
        "shared": shared,
        "tail": tail,
        "schemes": table,
        "paired": paired,
        "checks": _checks(found, paired, lengths, train_length, shared, tail, seed),
    }


def _windows(runs: dict[int, Losses], length: int, last: int) -> NDArray[np.float64]:
    """Return the mean loss of the last tokens of each window, over seeds: (windows,)."""
    return np.mean([losses[length][:, -last:].mean(1) for losses in runs.values()], axis=0)


def _row(runs: dict[int, Losses], length: int, shared: int, tail: int, seed: int) -> dict[str, Any]:
    loss = mean_interval(_windows(runs, length, shared), seed)
    everything = max(losses[length].shape[1] for losses in runs.values())
    means = [float(losses[length][:, -shared:].mean()) for losses in runs.values()]
    return {
        "loss": loss.to_dict(),
        "perplexity": loss.exp().to_dict(),
        "by_seed": [round(math.exp(mean), 4) for mean in means],
        "seed_std": round(float(np.std(np.exp(means), ddof=1)), 4) if len(means) > 1 else None,
        "scored": everything,
        "perplexity_scored": mean_interval(_windows(runs, length, everything), seed).exp().to_dict(),
        "perplexity_tail": mean_interval(_windows(runs, length, tail), seed).exp().to_dict(),
    }


def _checks(
    found: dict[str, dict[int, Losses]],
    paired: dict[str, dict[str, dict[str, Any]]],
    lengths: Sequence[int],
    train_length: int,
    shared: int,
    tail: int,
    seed: int,
) -> dict[str, Any]:
    """Return the papers' claims: ``holds`` is the sign of the mean difference in loss, beside its interval and by seed.

    ``*_tail`` takes the last quarter of the shared tokens alone: at the shortest length they have context, too.
    """
    checks: dict[str, Any] = {}
    for name in (V1, V2):
        if name in found and len(lengths) > 1:
            for last, suffix in ((shared, ""), (tail, "_tail")):
                checks[f"{name} at {lengths[-1]} no worse than at {lengths[0]}{suffix}"] = _check(
                    _difference((found[name], lengths[-1]), (found[name], lengths[0]), last, seed)
                )
    for pair, by_length in paired.items():
        left, right = pair.split(" - ")
        for length in lengths:
            checks[f"{left} no worse than {right} at {length}"] = _check(by_length[str(length)])
    if EXPLODES in found and lengths[-1] > train_length:
        inside = min(lengths, key=lambda length: abs(length - train_length))
        checks[f"{EXPLODES} at {lengths[-1]} worse than at {inside}"] = _check(
            _difference((found[EXPLODES], inside), (found[EXPLODES], lengths[-1]), shared, seed)
        )
    return checks


def _difference(
    left: tuple[dict[int, Losses], int], right: tuple[dict[int, Losses], int], last: int, seed: int
) -> dict[str, Any]:
    """Return the difference in loss of two (runs, length) on the same windows: over common seeds, and by seed."""
    seeds = sorted(left[0].keys() & right[0].keys())
    first, second = (_windows({key: runs[key] for key in seeds}, length, last) for runs, length in (left, right))
    by_seed = [
        float(left[0][key][left[1]][:, -last:].mean() - right[0][key][right[1]][:, -last:].mean()) for key in seeds
    ]
    return {**mean_interval(first - second, seed).to_dict(), "by_seed": [round(value, 4) for value in by_seed]}


def _check(difference: dict[str, Any]) -> dict[str, Any]:
    return {"holds": difference["mean"] <= 0, "difference": difference}


def plot(record: dict[str, Any], path: Path) -> None:
    """Draw perplexity over context length, one line a scheme with its interval.

    Args:
        record: as written to ``results.json``, or its ``results``.
        path: a PNG file; not written without matplotlib.
    """
    if not probe("matplotlib").works:
        _say("extrapolation: no picture, matplotlib is not installed")
        return
    from matplotlib.figure import Figure

    results = record.get("results", record)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, scheme in results["schemes"].items():
        rows = [scheme["lengths"][str(length)]["perplexity"] for length in results["lengths"]]
        (line,) = axes.plot(results["lengths"], [row["mean"] for row in rows], marker="o", markersize=4, label=name)
        axes.fill_between(
            results["lengths"],
            [row["low"] for row in rows],
            [row["high"] for row in rows],
            color=line.get_color(),
            alpha=0.15,
            linewidth=0,
        )
    axes.axvline(results["train_length"], color="grey", linestyle=":", linewidth=1, label="trained at")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(results["lengths"], [str(length) for length in results["lengths"]])
    axes.set_xlabel("tokens of context")
    axes.set_ylabel(f"perplexity of the same last {results['shared']} bytes")
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _names(value: str | Sequence[str]) -> list[str]:
    parts = value.split(",") if isinstance(value, str) else list(value)
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _numbers(value: str | int | Sequence[int]) -> list[int]:
    parts = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int) else list(value)
    try:
        return [int(part) for part in parts]
    except ValueError as error:
        raise ConfigError(f"lengths={value!r} are not numbers", hint="use 128,256,512") from error


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
