"""Every searcher by name, and saved searches of any kind."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from .base import SearchSpace
from .baselines import FlopsRanker, OptunaTPE, RandomSearch, RegularisedEvolution, ScoreRanker, SourceRanker
from .candidates import Candidates
from .regressor import GCNRegressor
from .search import ArchGraph
from .searcher import Searcher, read_manifest
from .task import TaskSpec, TaskTable
from .variants import PairwiseBRP, UtilityRanker

SEARCHERS: dict[str, type[Searcher]] = {
    kind.method: kind
    for kind in (
        ArchGraph,
        UtilityRanker,
        PairwiseBRP,
        GCNRegressor,
        RandomSearch,
        RegularisedEvolution,
        OptunaTPE,
        SourceRanker,
        FlopsRanker,
        ScoreRanker,
    )
}
"""Method name to class: every kind of saved search."""

METHODS: dict[str, tuple[type[Searcher], dict[str, Any]]] = {
    "full": (ArchGraph, {"variant": "full"}),
    "single": (ArchGraph, {"variant": "single"}),
    "zero": (ArchGraph, {"variant": "zero"}),
    "utility": (UtilityRanker, {}),
    "brp": (PairwiseBRP, {}),
    "regressor": (GCNRegressor, {}),
    "random": (RandomSearch, {}),
    "evolution": (RegularisedEvolution, {}),
    "tpe": (OptunaTPE, {}),
    "source_rank": (SourceRanker, {}),
}
"""What can be asked for by name: class and settings."""


def make_search(
    method: str,
    space: SearchSpace,
    task: TaskSpec,
    *,
    sources: Sequence[TaskTable] = (),
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    candidates: Candidates | None = None,
) -> Searcher:
    """Return a new search.

    Args:
        method: a key of :data:`METHODS`.
        space, task, seed: as for every searcher.
        sources: for the methods that learn from other tasks; an error for those that do not.
        settings: of the method's config, nested.
        candidates: what may be proposed; the whole space by default.

    Raises:
        ConfigError: for an unknown method or setting, or sources that the method does not use.
    """
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(METHODS)}"
        raise ConfigError(f"there is no method {method!r}", hint=hint)
    kind, own = METHODS[method]
    config = kind.config_class.from_dict(_nested(kind.config_class().to_dict(), {**own, **(settings or {})}))
    extra: dict[str, Any] = {}
    if uses_sources(method, settings):
        extra["sources"] = tuple(sources)
    elif sources:
        raise ConfigError(f"method {method!r} uses no sources", hint="leave them out, or use method 'full'")
    return kind(space, task, config=config, seed=seed, candidates=candidates, **extra)


def uses_sources(method: str, settings: Mapping[str, Any] | None = None) -> bool:
    """Return whether a method of :data:`METHODS`, with these settings, learns from other tasks."""
    if method not in METHODS:
        return False
    kind, own = METHODS[method]
    variant = {**own, **(settings or {})}.get("variant")
    return issubclass(kind, SourceRanker) or (issubclass(kind, ArchGraph) and variant != "single")


def load_search(folder: str | Path, *, space: SearchSpace | None = None) -> Searcher:
    """Open a saved search of any kind; see :meth:`Searcher.load`.

    Raises:
        CheckpointError: if the folder holds no search that this huaben knows.
    """
    name = read_manifest(folder)["method"]
    if name not in SEARCHERS:
        raise CheckpointError(f"{folder} is a {name!r} search, which this huaben does not know")
    return SEARCHERS[name].load(folder, space=space)


def _nested(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with those of ``second`` on top."""
    result = dict(first)
    for key, value in second.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _nested(result[key], value) if both else value
    return result
