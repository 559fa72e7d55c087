"""Search spaces in one place: the interface, the kinds of space, and the ones that benchmarks use."""

from .base import ENUMERATION_LIMIT, Arch, Axis, Rule, SearchSpace, Value
from .cells import CellSpace, NASBench201, TransNASMicro
from .graphs import GraphBatch
from .mixed import MixedSpace
from .sequences import Count, SequenceSpace, TransNASMacro
from .spaces_json import SPACES, load_space

__all__ = [
    "ENUMERATION_LIMIT",
    "SPACES",
    "Arch",
    "Axis",
    "CellSpace",
    "Count",
    "GraphBatch",
    "MixedSpace",
    "NASBench201",
    "Rule",
    "SearchSpace",
    "SequenceSpace",
    "TransNASMacro",
    "TransNASMicro",
    "Value",
    "load_space",
]
