"""Length generalisation on Chomsky-hierarchy tasks: trained on short strings, scored on longer ones, scheme by scheme.

Every run (a task, a scheme, a seed) is one JSON file in the cache folder as soon as it is done, and is read back instead
of trained again: a measurement that was interrupted goes on, and several processes may share one folder. Seeds come
first, then tasks, then schemes, so that whatever is complete can be compared.

Source: DAPE (arXiv:2405.14722), the Chomsky-hierarchy experiment; Delétang et al. 2023 (arXiv:2207.02098) for the protocol.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..attention.scheme import scheme_config
from ..config import Config
from ..errors import ConfigError, DataError
from ..files import write_bytes
from ..language.chomsky import constant_accuracy, find_task
from ..language.sequence_training import SequenceFit, task_accuracy, task_model_config, train_on_task
from ..optional import probe
from .experiment import bootstrap

TASKS = ("even_pairs", "missing_duplicate", "odds_first", "bucket_sort", "parity_check")
SCHEMES = ("kerple", "dape-kerple", "v2-kerple", "rope", "alibi", "nope")
FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ChePreset(Config):
    """What every run shares.

    Attributes:
        width, layers, heads: of the model.
        hidden: width of the score adapter.
        longest: training strings have 1 to ``longest`` symbols.
        test_to: test strings have more, up to this many.
        test_every: step between test lengths.
        test_strings: strings a test length.
        causal: whether a place sees only those before it.
        fit: how to train.
    """

    width: int = 64
    layers: int = 3
    heads: int = 4
    hidden: int = 16
    longest: int = 20
    test_to: int = 60
    test_every: int = 1
    test_strings: int = 64
    causal: bool = True
    fit: SequenceFit = field(default_factory=lambda: SequenceFit(steps=5000, batch=32))

    def __post_init__(self) -> None:
        for name in ("longest", "test_every", "test_strings"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}, expected at least 1", hint=f"raise {name}")
        if self.test_to <= self.longest:
            raise ConfigError(
                f"test_to={self.test_to}, expected more than longest={self.longest}",
                hint="test beyond the training lengths",
            )


PRESETS: dict[str, ChePreset] = {
    "mini": ChePreset(),
    "small": ChePreset(
        width=256,
        layers=5,
        heads=8,
        hidden=64,
        longest=40,
        test_to=500,
        test_every=9,
        fit=SequenceFit(steps=20_000, batch=128),
    ),
}
"""``mini``: minutes a run on one core. ``small``: the published size with a tenth of its steps, for a GPU."""


def run(
    *,
    seed: int = 0,
    tasks: Sequence[str] | str = TASKS,
    schemes: Sequence[str] | str = SCHEMES,
    seeds: int = 3,
    preset: str = "mini",
    steps: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    causal: bool = True,
    cache: str | Path = "runs/che",
    minutes: float | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train and test every task with every scheme and seed that is not in the cache yet.

    Args:
        seed: of the first run; run ``i`` of a task and scheme uses ``seed + i``.
        tasks: names of :data:`~huaben.language.chomsky.TASKS`, or one text with commas.
        schemes: names of :data:`~huaben.attention.scheme.SCHEMES`, or one text with commas.
        seeds: runs of a task and scheme.
        preset: "mini" or "small", see :data:`PRESETS`.
        steps, batch, learning_rate: instead of the preset's.
        causal: whether a place sees only those before it.
        cache: folder of the finished runs.
        minutes: begin no run after this time; the results are those of the finished runs.
        device: to train on.

    Returns:
        ``tasks``: name -> ``guess`` (what needs no reading, see
        :func:`~huaben.language.chomsky.constant_accuracy`) and ``schemes``: name -> ``accuracy`` beyond the training
        lengths and ``seen`` within them, each mean over seeds with its interval, and ``by_length``. ``mean``: scheme ->
        accuracy over all tasks. ``gain``: adapted scheme -> that mean less its static bias's, of the same seeds.
        ``missing``: runs not done.

    Raises:
        ConfigError: for an unknown task, scheme or preset.
        DataError: for a file in the cache that is not one of these runs.
    """
    settings = _settings(preset, steps, batch, learning_rate, causal)
    task_names, scheme_names = _names(tasks), _names(schemes)
    if seeds < 1 or not task_names or not scheme_names:
        raise ConfigError(
            f"{len(task_names)} tasks, {len(scheme_names)} schemes and {seeds} seeds, expected at least one of each",
            hint="leave them out for the defaults",
        )
    for name in task_names:
        find_task(name)
    for name in scheme_names:
        scheme_config(name)
    todo = [(task, scheme, seed + i) for i in range(seeds) for task in task_names for scheme in scheme_names]
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    started = time.perf_counter()
    for task, scheme, run_seed in todo:
        path = run_path(Path(cache), task, scheme, run_seed, settings)
        record = read_run(path)
        if record is None:
            if minutes is not None and time.perf_counter() - started >= 60 * minutes:
                continue
            record = one_run(task, scheme, run_seed, settings, device=device)
            write_bytes(path, (json.dumps(record, indent=2, sort_keys=True) + "\n").encode())
            sys.stderr.write(
                f"che {len(found) + 1}/{len(todo)} {task} {scheme} seed {run_seed}: "
                f"{100 * record['accuracy']:.1f} % beyond, {100 * record['seen']:.1f} % within the training lengths, "
                f"{record['seconds']:.0f} s\n"
            )
        found[task, scheme, run_seed] = record
    return summarise(found, task_names, scheme_names, seed, seeds, settings)


def one_run(task_name: str, scheme: str, seed: int, settings: ChePreset, *, device: str = "cpu") -> dict[str, Any]:
    """Train one model and return its scores: ``accuracy`` beyond the training lengths, ``seen`` within, ``by_length``."""
    task = find_task(task_name)
    config = task_model_config(
        task,
        scheme_config(scheme, hidden=settings.hidden),
        longest=settings.longest,
        width=settings.width,
        layers=settings.layers,
        heads=settings.heads,
        causal=settings.causal,
    )
    started = time.perf_counter()
    trained = train_on_task(task, config, settings.fit, longest=settings.longest, seed=seed, device=device)
    train_seconds = time.perf_counter() - started
    within = task.lengths(1, settings.longest)
    beyond = _test_lengths(task_name, settings)
    scores = task_accuracy(trained.model, task, [*within, *beyond], batch=settings.test_strings)
    return {
        "format": FORMAT,
        "task": task_name,
        "scheme": scheme,
        "seed": seed,
        "settings": settings.to_dict(),
        "accuracy": float(np.mean([scores[length] for length in beyond])),
        "seen": float(np.mean([scores[length] for length in within])),
        "by_length": {str(length): round(score, 5) for length, score in scores.items()},
        "loss": float(trained.losses[-200:].mean()),
        "skipped": trained.skipped,
        "parameters": trained.model.num_parameters(),
        "train_seconds": round(train_seconds, 1),
        "seconds": round(time.perf_counter() - started, 1),
    }


def run_path(cache: Path, task: str, scheme: str, seed: int, settings: ChePreset) -> Path:
    """Return the file of one run; other settings have other files."""
    digest = hashlib.blake2b(settings.to_json().encode(), digest_size=4).hexdigest()
    return cache / f"{task}.{scheme}.{seed}.{digest}.json"


def read_run(path: Path) -> dict[str, Any] | None:
    """Return a finished run, or None.

    Raises:
        DataError: for a file that is not one.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="remove it; the run will be trained again") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DataError(f"{path} is not a run of format {FORMAT}", hint="remove it; the run will be trained again")
    return record


def summarise(
    found: dict[tuple[str, str, int], dict[str, Any]],
    tasks: Sequence[str],
    schemes: Sequence[str],
    seed: int,
    seeds: int,
    settings: ChePreset,
) -> dict[str, Any]:
    """Return the results of :func:`run` from its finished runs, by (task, scheme, seed)."""
    run_seeds = range(seed, seed + seeds)
    table: dict[str, Any] = {}
    for task in tasks:
        rows = {}
        for scheme in schemes:
            records = [found[task, scheme, s] for s in run_seeds if (task, scheme, s) in found]
            rows[scheme] = {
                "accuracy": bootstrap([record["accuracy"] for record in records], seed, "che", task, scheme),
                "seen": bootstrap([record["seen"] for record in records], seed, "che seen", task, scheme),
                "by_length": _mean_curve([record["by_length"] for record in records]),
                "seconds": round(float(np.mean([record["seconds"] for record in records])), 1) if records else None,
            }
        beyond = _test_lengths(task, settings)
        guess = constant_accuracy(find_task(task), beyond, batch=settings.test_strings)
        table[task] = {"guess": {name: round(value, 4) for name, value in guess.items()}, "schemes": rows}
    # A scheme's score over all tasks, for the seeds that are complete.
    overall = {
        scheme: {
            s: float(np.mean([found[task, scheme, s]["accuracy"] for task in tasks]))
            for s in run_seeds
            if all((task, scheme, s) in found for task in tasks)
        }
        for scheme in schemes
    }
    gain = {}
    for scheme in schemes:
        base = scheme.partition("-")[2]
        if base in overall:
            both = [s for s in overall[scheme] if s in overall[base]]
            gain[scheme] = bootstrap([overall[scheme][s] - overall[base][s] for s in both], seed, "che gain", scheme)
    return {
        "tasks": table,
        "mean": {scheme: bootstrap(list(overall[scheme].values()), seed, "che mean", scheme) for scheme in schemes},
        "gain": gain,
        "missing": len(tasks) * len(schemes) * seeds - len(found),
        "settings": settings.to_dict(),
    }


def plot(record: dict[str, Any], path: Path) -> None:
    """Draw accuracy over length, a panel a task; nothing without matplotlib."""
    if not probe("matplotlib").works:
        sys.stderr.write("che: no picture, matplotlib is not installed\n")
        return
    from matplotlib.figure import Figure

    results = record["results"]
    tasks = results["tasks"]
    figure = Figure(figsize=(4 * len(tasks), 3.2), layout="constrained")
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for panel, (task, part) in zip(panels, tasks.items(), strict=True):
        for scheme, row in part["schemes"].items():
            curve = {int(length): 100 * score for length, score in row["by_length"].items()}
            panel.plot(list(curve), list(curve.values()), label=scheme, linewidth=1)
        panel.axvline(results["settings"]["longest"] + 0.5, color="grey", linestyle=":", linewidth=1)
        panel.axhline(100 * part["guess"]["constant"], color="grey", linestyle="--", linewidth=1)
        panel.set_title(task)
        panel.set_xlabel("length")
    panels[0].set_ylabel("accuracy, %")
    panels[-1].legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _settings(
    preset: str, steps: int | None, batch: int | None, learning_rate: float | None, causal: bool
) -> ChePreset:
    """Return a preset with what was asked for instead."""
    if preset not in PRESETS:
        raise ConfigError(f"there is no preset {preset!r}", hint=f"use one of {', '.join(PRESETS)}")
    changes = {"steps": steps, "batch": batch, "learning_rate": learning_rate}
    fit = PRESETS[preset].fit.replace(**{name: value for name, value in changes.items() if value is not None})
    return PRESETS[preset].replace(fit=fit, causal=causal)


def _test_lengths(task: str, settings: ChePreset) -> list[int]:
    """Return every ``test_every``-th length beyond those of training that the task has strings of."""
    return find_task(task).lengths(settings.longest + 1, settings.test_to)[:: settings.test_every]


def _names(values: Sequence[str] | str) -> list[str]:
    """Return names from a list or from one text with commas, each once."""
    names = values.split(",") if isinstance(values, str) else list(values)
    return list(dict.fromkeys(name.strip() for name in names if name.strip()))


def _mean_curve(curves: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of several curves over the same lengths."""
    if not curves:
        return {}
    return {length: round(float(np.mean([curve[length] for curve in curves])), 4) for length in curves[0]}
