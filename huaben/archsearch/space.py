"""Search spaces in one place: the interface, the kinds of space, and the ones that benchmarks use."""

from .base import ENUMERATION_LIMIT, Arch, Axis, Rule, SearchSpace, Value
from .cells import CellSpace, NASBench201, TransNASMicro
from .graphs import GraphBatch
from .sequences import Count, SequenceSpace, TransNASMacro

__all__ = [
    "ENUMERATION_LIMIT",
    "Arch",
    "Axis",
    "CellSpace",
    "Count",
    "GraphBatch",
    "NASBench201",
    "Rule",
    "SearchSpace",
    "SequenceSpace",
    "TransNASMacro",
    "TransNASMicro",
    "Value",
]
