"""Architecture search: learn from the architectures of other tasks which one to train for yours.

Names are imported when first asked for, so that a space or a table needs no predictor.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .baselines import FlopsRanker, OptunaTPE, RandomSearch, RegularisedEvolution, SourceRanker
    from .embeddings import (
        ConvProbe,
        GivenEmbedding,
        LearnedTaskEmbedding,
        NullEmbedding,
        ResponseEmbedding,
        Task2VecConfig,
        Task2VecEmbedder,
        TaskData,
        TaskEmbedder,
        TransformerProbe,
    )
    from .ensemble import RelationEnsemble
    from .order import Dag, Ranking, mwas, top_k
    from .readers import read_csv, read_nasbench201, read_transnas_pth
    from .regressor import GCNRegressor
    from .relation import RelationConfig, RelationPredictor
    from .runner import Pruned, run_search
    from .search import ArchGraph, ArchGraphConfig
    from .searcher import Searcher, SearchResult
    from .space import (
        Arch,
        Axis,
        CellSpace,
        Count,
        GraphBatch,
        MixedSpace,
        NASBench201,
        SearchSpace,
        SequenceSpace,
        TransNASMacro,
        TransNASMicro,
        load_space,
    )
    from .task import TRANSNAS_TASKS, TaskSpec, TaskTable
    from .trials import Trial
    from .variants import PairwiseBRP, UtilityRanker

_HOMES = {
    "baselines": ("FlopsRanker", "OptunaTPE", "RandomSearch", "RegularisedEvolution", "SourceRanker"),
    "embeddings": (
        "ConvProbe",
        "GivenEmbedding",
        "LearnedTaskEmbedding",
        "NullEmbedding",
        "ResponseEmbedding",
        "Task2VecConfig",
        "Task2VecEmbedder",
        "TaskData",
        "TaskEmbedder",
        "TransformerProbe",
    ),
    "ensemble": ("RelationEnsemble",),
    "order": ("Dag", "Ranking", "mwas", "top_k"),
    "readers": ("read_csv", "read_nasbench201", "read_transnas_pth"),
    "regressor": ("GCNRegressor",),
    "relation": ("RelationConfig", "RelationPredictor"),
    "runner": ("Pruned", "run_search"),
    "search": ("ArchGraph", "ArchGraphConfig"),
    "searcher": ("SearchResult", "Searcher"),
    "space": (
        "Arch",
        "Axis",
        "CellSpace",
        "Count",
        "GraphBatch",
        "MixedSpace",
        "NASBench201",
        "SearchSpace",
        "SequenceSpace",
        "TransNASMacro",
        "TransNASMicro",
        "load_space",
    ),
    "task": ("TRANSNAS_TASKS", "TaskSpec", "TaskTable"),
    "trials": ("Trial",),
    "variants": ("PairwiseBRP", "UtilityRanker"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "TRANSNAS_TASKS",
    "Arch",
    "ArchGraph",
    "ArchGraphConfig",
    "Axis",
    "CellSpace",
    "ConvProbe",
    "Count",
    "Dag",
    "FlopsRanker",
    "GCNRegressor",
    "GivenEmbedding",
    "GraphBatch",
    "LearnedTaskEmbedding",
    "MixedSpace",
    "NASBench201",
    "NullEmbedding",
    "OptunaTPE",
    "PairwiseBRP",
    "Pruned",
    "RandomSearch",
    "Ranking",
    "RegularisedEvolution",
    "RelationConfig",
    "RelationEnsemble",
    "RelationPredictor",
    "ResponseEmbedding",
    "SearchResult",
    "SearchSpace",
    "Searcher",
    "SequenceSpace",
    "SourceRanker",
    "Task2VecConfig",
    "Task2VecEmbedder",
    "TaskData",
    "TaskEmbedder",
    "TaskSpec",
    "TaskTable",
    "TransNASMacro",
    "TransNASMicro",
    "TransformerProbe",
    "Trial",
    "UtilityRanker",
    "load_space",
    "mwas",
    "read_csv",
    "read_nasbench201",
    "read_transnas_pth",
    "run_search",
    "top_k",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
