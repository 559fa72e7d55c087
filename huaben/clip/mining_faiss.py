"""Candidates from FAISS, where it is installed: inner product over joint vectors, scored again exactly.

The inner product of two joint vectors is the sum of the two cosines, and for cosines that are not negative
``a * b <= ((a + b) / 2) ** 2`` (AM-GM). So with K candidates by the sum, whose last has sum s, no other pair compared
can score more than ``(max(s, 0) / 2) ** 2``; if that is below the k-th exact score, the result is exact. With a flat
index everything was compared, which certifies the pair; with an inverted file only the lists looked into were.

All joint vectors are in memory as float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ConfigError
from ..optional import require
from .mining_ann import AnnResult, best_of, exact_scores, left_out, score_floor
from .mining_core import FloatArray, IntArray, Scoring
from .mining_lists import READ_ROWS, Features, Report

QUERY_ROWS = 1024
FLOAT_ERROR = 1e-5
"""More than float32 sums of some thousand terms of unit vectors err by, added up with their rounding."""


def mine_faiss(
    features: Features,
    k: int,
    *,
    scoring: Scoring,
    ids: IntArray | None,
    settings: dict[str, Any],
    memory: int,
    threads: int,
    report: Report | None = None,
) -> AnnResult:
    """Return what :func:`~huaben.clip.mining_ann.mine_ann` says, with FAISS's flat or inverted-file index.

    Raises:
        MissingDependencyError: without faiss.
        ConfigError: if the vectors do not fit the memory.
    """
    faiss = require("faiss", extra="clip")
    total = len(features)
    sides = [side for side, used in ((features.image, scoring.uses_image), (features.text, scoring.uses_text)) if used]
    width = sum(side.shape[1] for side in sides)
    if total * width * 4 > memory:
        raise ConfigError(
            f"backend='faiss' holds {total * width * 4 / 2**20:.0f} MB of vectors, memory_mb={memory / 2**20:.0f}",
            hint="raise memory_mb, or use backend='torch', which keeps within any bound",
        )
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        index = _build(faiss, features, scoring, width, settings, report)
        pairs = np.full((total, k), -1, np.int64)
        scores = np.full((total, k), -np.inf, np.float32)
        state = np.zeros(total, np.uint8)
        keep = np.full(total, min(settings["candidates"] + 1, total))  # one more: the pair itself is found too
        open_rows = np.arange(total)
        doubled = [0] * settings["doublings"]
        for number in range(settings["doublings"] + 1):
            failed = [open_rows[:0]]
            for size in np.unique(keep[open_rows]):
                same = open_rows[keep[open_rows] == size]
                for start in range(0, len(same), QUERY_ROWS):
                    rows = same[start : start + QUERY_ROWS]
                    query = features.read(rows)
                    found, cutoff = _search(index, query, int(size), scoring)
                    exact = exact_scores(features, ids, rows, query, found, scoring)
                    scores[rows], pairs[rows], _ = best_of(exact, found, found, k)
                    worst = np.maximum(scores[rows, -1], score_floor(scoring)) * (1 - 1e-6)
                    if size < total:
                        bound = left_out(cutoff, FLOAT_ERROR, product=False, modality=scoring.modality)
                    else:
                        bound = np.full(len(rows), -np.inf)
                    settled = bound < worst
                    state[rows] = settled
                    failed.append(rows[~settled & (found[:, -1] >= 0)])
                    if report is not None and number == 0:
                        report("search", int(rows[-1]) + 1, total)
            open_rows = np.sort(np.concatenate(failed))
            if not len(open_rows) or number == settings["doublings"]:
                break
            doubled[number] = len(open_rows)
            keep[open_rows] = np.minimum(2 * keep[open_rows], total)
    finally:
        faiss.omp_set_num_threads(before)
    flat = settings["index"] == "flat"
    certified = state.astype(bool) if flat else np.zeros(total, np.bool_)
    settings |= {
        "lists": settings["lists_asked"],
        "scan_certified": round(float(state.mean()), 6),
        "certified": round(float(certified.mean()), 6),
        "doubled": doubled,
        "scanned": 1.0 if flat else None,
        "faiss": str(faiss.__version__),
    }
    return AnnResult(pairs, scores, certified, settings)


def _build(
    faiss: Any, features: Features, scoring: Scoring, width: int, settings: dict[str, Any], report: Report | None
) -> Any:
    """Return the index, holding every joint vector."""
    total = len(features)
    index = faiss.IndexFlatIP(width)
    if settings["index"] == "ivf":
        lists = settings["lists_asked"]
        index = faiss.IndexIVFFlat(index, width, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = settings["seed"] % 2**31
        index.cp.min_points_per_centroid = 1  # fewer is the caller's choice, and FAISS would print a warning
        index.nprobe = min(settings["probes"], lists)
        rows = np.unique(np.linspace(0, total - 1, min(total, 64 * lists)).astype(np.int64))
        index.train(_joint(features.read(rows), scoring))
    for first in range(0, total, READ_ROWS):
        last = min(first + READ_ROWS, total)
        index.add(_joint(features.read(slice(first, last)), scoring))
        if report is not None:
            report("lists", last, total)
    return index


def _joint(sides: tuple[FloatArray, FloatArray], scoring: Scoring) -> FloatArray:
    used = [side for side, wanted in zip(sides, (scoring.uses_image, scoring.uses_text), strict=True) if wanted]
    return np.ascontiguousarray(np.concatenate(used, 1))


def _search(
    index: Any, query: tuple[FloatArray, FloatArray], keep: int, scoring: Scoring
) -> tuple[IntArray, np.ndarray[Any, np.dtype[np.float64]]]:
    """Return rows (q, keep), -1 where there are fewer, and the lowest sum kept, clamped at 0."""
    sums, found = index.search(_joint(query, scoring), keep)
    cutoff = np.where(found[:, -1] >= 0, np.maximum(sums[:, -1], 0), 0).astype(np.float64)
    return found.astype(np.int64), cutoff
