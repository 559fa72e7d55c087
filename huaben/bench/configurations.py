"""The search on our own models: small painters and CLIPs of equal compute, trained for real, and the table searched.

Two spaces of configurations, one of painters and one of CLIPs (depth, width, learning rate and so on). Every point is
trained with the same number of multiply-adds (so a smaller model takes more steps) and scored on several tasks, which
are then the target in turn with the others as sources. Points are appended to a CSV as they finish: a killed
measurement goes on, and the tables are kept beside the results.

The trainings are short; the tables say which configurations learn fastest at this compute, not which are best in the
end.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..archsearch.base import Arch, SearchSpace
from ..archsearch.baselines import EvolutionConfig, RandomSearch, RegularisedEvolution
from ..archsearch.candidates import Candidates
from ..archsearch.relation import RelationConfig
from ..archsearch.search import ArchGraph, ArchGraphConfig
from ..archsearch.searcher import SearchConfig, Searcher
from ..archsearch.space import load_space
from ..archsearch.task import TaskSpec, TaskTable
from ..archsearch.variants import UtilityRanker
from ..clip.model import PRESETS as CLIP_PRESETS
from ..clip.model import ClipConfig
from ..diffusion.grounding import PRESETS as PAINTER_PRESETS
from ..diffusion.grounding import GroundedDiT
from ..errors import DataError
from ..files import write_bytes
from ..recipes.clip import ClipRecipe
from ..recipes.painter import CACHE, PainterRecipe
from ..rng import numpy_stream
from ..training import fit
from .experiment import bootstrap

EVALUATED = 2
"""Batches a painter is scored on."""

PAINTERS: dict[str, Any] = {
    "version": 1,
    "type": "mixed",
    "name": "painters",
    "axes": [
        {"name": "num_layers", "type": "ordinal", "choices": [2, 4, 6]},
        {"name": "num_heads", "type": "ordinal", "choices": [2, 3, 4]},
        {"name": "mlp_ratio", "type": "ordinal", "choices": [2.0, 4.0]},
        {"name": "batch_size", "type": "ordinal", "choices": [8, 16, 32]},
        {"name": "learning_rate", "type": "ordinal", "choices": [0.0006, 0.0012, 0.0024]},
    ],
}
CLIPS: dict[str, Any] = {
    "version": 1,
    "type": "mixed",
    "name": "clips",
    "axes": [
        {"name": "image_num_layers", "type": "ordinal", "choices": [1, 2, 4]},
        {"name": "image_hidden_size", "type": "ordinal", "choices": [64, 96, 128]},
        {"name": "patch_size", "type": "ordinal", "choices": [8, 16]},
        {"name": "text_num_layers", "type": "ordinal", "choices": [1, 2, 3]},
        {"name": "learning_rate", "type": "ordinal", "choices": [0.0008, 0.0015, 0.003]},
    ],
}


class PainterPoint(PainterRecipe):
    """A painter that is scored under three conditions: words alone, boxes and phrases, references as well."""

    @torch.inference_mode()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the error of the velocity on fresh batches: of the whole picture for words, else under characters."""
        sums = {"words": 0.0, "boxes": 0.0, "references": 0.0}
        batch_size, self.batch_size = self.batch_size, 32
        for step in range(EVALUATED):
            batch = self.batch(2**40 + step)
            everyone = batch["weight_present"]
            nobody = torch.zeros_like(everyone)
            for name in sums:
                batch["present"] = nobody if name == "words" else everyone
                batch["has_reference"] = everyone if name == "references" else nobody
                terms = self.loss(model, batch)
                sums[name] += float(terms["v" if name == "words" else "v_character"]) / EVALUATED
        self.batch_size = batch_size
        return sums

    def save(self, model: nn.Module, folder: Path) -> None:
        """Keep nothing: only the scores matter."""
        folder.mkdir(parents=True, exist_ok=True)


class ClipPoint(ClipRecipe):
    """A CLIP of any shape, whose pictures are drawn once per grid of patches."""

    def __init__(self, config: ClipConfig, **settings: Any) -> None:
        super().__init__(**settings)
        self.preset = config

    @property
    def _data(self) -> dict[str, Any]:  # type: ignore[override]
        return _clip_data(self.model.patch_size, self.seed, self.num_scenes)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Keep nothing: only the scores matter."""
        folder.mkdir(parents=True, exist_ok=True)


@cache
def _clip_data(patch_size: int, seed: int, num_scenes: int) -> dict[str, Any]:
    recipe = ClipRecipe(seed=seed, num_scenes=num_scenes)
    recipe.preset = recipe.preset.replace(patch_size=patch_size)
    return recipe._data


@dataclass(frozen=True)
class Family:
    """One space of configurations.

    Attributes:
        space: its definition.
        tasks: column to direction.
        recipe: configuration, seed and settings to what is trained, and its learning rate.
    """

    space: Mapping[str, Any]
    tasks: Mapping[str, str]
    recipe: Callable[[Mapping[str, Any], int, Mapping[str, Any]], tuple[Any, float]]


def _painter(values: Mapping[str, Any], seed: int, settings: Mapping[str, Any]) -> tuple[Any, float]:
    base = PAINTER_PRESETS["embedded"]
    shape = {name: values[name] for name in ("num_layers", "num_heads", "mlp_ratio")}
    model = base.replace(dit=base.dit.replace(**shape))
    recipe = PainterPoint(
        seed=seed, batch_size=values["batch_size"], shards=settings["shards"], model=model, cache=settings["cache"]
    )
    return recipe, values["learning_rate"]


def _clip(values: Mapping[str, Any], seed: int, settings: Mapping[str, Any]) -> tuple[Any, float]:
    names = ("image_num_layers", "image_hidden_size", "patch_size", "text_num_layers")
    config = CLIP_PRESETS["embedded"].replace(**{name: values[name] for name in names})
    return ClipPoint(config, seed=seed, num_scenes=settings["scenes"], batch_size=64), values["learning_rate"]


FAMILIES: dict[str, Family] = {
    "painters": Family(PAINTERS, {"words": "min", "boxes": "min", "references": "min"}, _painter),
    "clips": Family(
        CLIPS,
        {
            "text_to_image_en": "max",
            "text_to_image_zh": "max",
            "text_to_image_composition_en": "max",
            "text_to_image_composition_zh": "max",
        },
        _clip,
    ),
}


def run(
    *,
    seed: int = 0,
    points: int = 32,
    tera: float = 1.0,
    budget: int = 8,
    start: int = 4,
    seeds: int = 10,
    tables: str = "experiments/configurations",
    cache: str = str(CACHE),
    shards: int = 2,
    scenes: int = 4000,
) -> dict[str, Any]:
    """Train what the tables lack, then search them.

    Args:
        seed: of the sampled configurations, the trainings and the searches.
        points: configurations per family.
        tera: tera multiply-adds of one training, forward and backward.
        budget: evaluations of one search; ``start`` random ones first where no source helps.
        start: see there.
        seeds: searches per method and task.
        tables: folder of the CSV files.
        cache: folder of the painter's shards.
        shards: shards the painters are trained on.
        scenes: pictures the CLIPs are trained on.

    Returns:
        Per family: the size of the table, the spread of every task, and per method the mean percent rank of the best
        found (1 is the best of 100).
    """
    settings = {"cache": Path(cache), "shards": shards, "scenes": scenes}
    trained: dict[str, tuple[SearchSpace, list[dict[str, str]]]] = {}
    for name, family in FAMILIES.items():
        space = load_space(dict(family.space))
        path = Path(tables) / f"{name}.csv"
        write_bytes(path.with_suffix(".json"), (json.dumps(family.space, indent=2) + "\n").encode())
        trained[name] = space, train_table(family, space, path, points=points, tera=tera, seed=seed, settings=settings)
    results: dict[str, Any] = {}
    for name, (space, rows) in trained.items():
        results[name] = search_table(space, FAMILIES[name], rows, budget=budget, start=start, seeds=seeds, seed=seed)
        results[name]["seconds_a_point"] = round(float(np.median([float(row["seconds"]) for row in rows])), 1)
    return results


def train_table(
    family: Family,
    space: SearchSpace,
    path: Path,
    *,
    points: int,
    tera: float,
    seed: int,
    settings: Mapping[str, Any],
) -> list[dict[str, str]]:
    """Train the configurations that the CSV lacks, and return all its rows."""
    columns = ["arch", *family.tasks, "steps", "params", "seconds"]
    rows = _read(path, columns)
    known = {row["arch"] for row in rows}
    everyone = list(space.enumerate())
    for index in numpy_stream(seed, "configurations", space.name).permutation(len(everyone))[:points]:
        arch = everyone[int(index)]
        text = space.format(arch)
        if text in known:
            continue
        row = train_point(family, space, arch, tera=tera, seed=seed, settings=settings)
        rows.append({"arch": text, **{column: f"{row[column]:.6g}" for column in columns[1:]}})
        text_file = io.StringIO()
        writer = csv.DictWriter(text_file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(path, text_file.getvalue().encode())
    return rows


def train_point(
    family: Family, space: SearchSpace, arch: Arch, *, tera: float, seed: int, settings: Mapping[str, Any]
) -> dict[str, float]:
    """Train one configuration with ``tera`` multiply-adds and return its scores."""
    recipe, rate = family.recipe(space.values(arch), seed, settings)
    cost, params = step_cost(recipe)
    steps = max(10, round(tera * 1e12 / cost))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = recipe.fit.replace(
            learning_rate=rate,
            warmup_steps=max(1, steps // 10),
            ema_decay=0.98,
            checkpoint_every_s=3600.0,
            preview_every=0,
        )
        done = fit(recipe, Path(folder), steps=steps, config=config)
    scores = {name: done.scores[name] for name in family.tasks}
    return {**scores, "steps": steps, "params": params, "seconds": time.perf_counter() - started}


def step_cost(recipe: Any) -> tuple[float, int]:
    """Return the multiply-adds of one training step, forward and backward, and the parameters of the model it keeps."""
    model = recipe.build()
    with FlopCounterMode(display=False) as counter:
        loss: Tensor = recipe.loss(model, recipe.batch(0))["loss"]
        loss.backward()
    kept = model if isinstance(model, GroundedDiT) else model.clip
    return counter.get_total_flops() / 2, sum(weight.numel() for weight in kept.parameters())


def search_table(
    space: SearchSpace,
    family: Family,
    rows: Sequence[Mapping[str, str]],
    *,
    budget: int,
    start: int,
    seeds: int,
    seed: int,
) -> dict[str, Any]:
    """Search a trained table: every task as target, the others as sources, several methods at equal budget."""
    tables = {
        task: TaskTable.from_rows(
            space,
            TaskSpec(task, direction=direction),  # type: ignore[arg-type]
            [(row["arch"], float(row[task])) for row in rows],
        )
        for task, direction in family.tasks.items()
    }
    archs = next(iter(tables.values())).archs
    candidates = Candidates(space, archs=archs)
    predictor = RelationConfig(width=32, head_width=32, source_steps=100, target_steps=60)
    found: dict[str, list[float]] = {}
    for task, target in tables.items():
        for number in range(seed, seed + seeds):
            # A source knows half of the table, another half for every seed, as an earlier study would.
            order = numpy_stream(number, "configurations", "sources", task).permutation(len(archs))
            half = [archs[i] for i in order[: len(archs) // 2]]
            sources = [table.subset(half) for name, table in tables.items() if name != task]
            common: dict[str, Any] = {"seed": number, "candidates": candidates}
            graph = ArchGraphConfig(
                budget=budget, start=start, round_size=2, explore=0, members=3, predictor=predictor, use_features=False
            )
            plain = SearchConfig(budget=budget)
            evolving = EvolutionConfig(budget=budget, population=4, tournament=2)
            searchers: dict[str, Searcher] = {
                "random": RandomSearch(space, target.spec, config=plain, **common),
                "evolution": RegularisedEvolution(space, target.spec, config=evolving, **common),
                "single": ArchGraph(space, target.spec, config=graph.replace(variant="single"), **common),
                "full": ArchGraph(space, target.spec, sources=sources, config=graph, **common),
                "utility": UtilityRanker(
                    space, target.spec, sources=sources, config=_as(UtilityRanker.config_class, graph), **common
                ),
            }
            for name, searcher in searchers.items():
                found.setdefault(name, []).append(_best(searcher, target))
    spread = {
        task: {"best": max(values), "median": float(np.median(values)), "worst": min(values)}
        for task, table in tables.items()
        for values in [[table.oriented(arch) for arch in archs]]
    }
    ranks = {name: bootstrap(values, seed, space.name, name) for name, values in found.items()}
    expected = 100 * (len(archs) + 1) / (budget + 1) / len(archs)
    return {
        "points": len(archs),
        "budget": budget,
        "tasks": spread,
        "percent_rank": ranks,
        "random_expected": round(expected, 2),
    }


def _as(kind: Any, config: ArchGraphConfig) -> Any:
    """Return the settings that a variant's configuration shares with ours."""
    names = {each.name for each in dataclasses.fields(kind)}
    own = kind()
    values = {name: value for name, value in config.to_dict().items() if name in names and name != "orderer"}
    return kind.from_dict({**own.to_dict(), **values})


def _best(searcher: Searcher, table: TaskTable) -> float:
    """Run a search to its end on a table; return the percent rank of the best found."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a small table may give a search nothing to learn from
        while trials := searcher.ask(1):
            searcher.tell(trials[0].id, table.value(trials[0].arch))
    best = max(table.oriented(trial.arch) for trial in searcher.log.trials)
    return table.rank_percent(float(best))


def _read(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a table that was begun before."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or ()) != list(columns):
            raise DataError(
                f"{path} has the columns {reader.fieldnames}, expected {list(columns)}",
                hint="move it away to train anew",
            )
        return list(reader)
