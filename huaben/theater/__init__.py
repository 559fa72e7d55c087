"""A page to one picture in which known characters look like themselves."""

from .cast import Cast, CastEntry, cut_out
from .performance import Attempt, Finding, Performance, PerformanceConfig, Reader, perform
from .rehearsal import Placement, Stage, paint_order, set_stage

__all__ = [
    "Attempt",
    "Cast",
    "CastEntry",
    "Finding",
    "Performance",
    "PerformanceConfig",
    "Placement",
    "Reader",
    "Stage",
    "cut_out",
    "paint_order",
    "perform",
    "set_stage",
]
