"""Ordering solvers on noisy relation graphs: kept weight, recovery of the true order, and processor seconds.

A hidden order gives each pair its log-odds, with independent noise on every pair; the solvers see the probabilities
only. Small graphs are compared with the exact optimum, large ones with each other. Graphs of ``whole`` sizes are held as
one matrix; larger ones are ranked by :func:`~huaben.archsearch.order.top_k`, which holds blocks: its figures are those
of the best 256, and it is not comparable with a solver that orders everything.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..archsearch.acyclic import GREEDY_LIMIT
from ..archsearch.order import Solver, order, top_k
from ..errors import ConfigError
from ..rng import numpy_stream

HEURISTICS: tuple[Solver, ...] = ("win_score", "eades_lin_smyth", "kwiksort", "greedy_mwas", "insertion")
PAIR_NOISE_BLOCK = 64


def run(
    seed: int = 0,
    *,
    small: Sequence[int] = (12, 20),
    large: Sequence[int] = (1024, 4096),
    many: Sequence[int] = (16384,),
    noises: Sequence[float] = (1.0, 3.0),
    graphs: int = 10,
) -> dict[str, Any]:
    """Compare the solvers.

    Args:
        seed: of the graphs.
        small: sizes solved exactly too: dynamic programming up to 16, HiGHS beyond where highspy is installed.
        large: sizes ordered whole; the greedy MWAS takes part up to 1,024 nodes.
        many: sizes ranked by ``top_k``.
        noises: standard deviations of the noise on log-odds; the hidden scores have standard deviation 1.
        graphs: of each small size; large ones are one graph each.

    Returns:
        ``small``, ``large``, ``many``: one record for each size and noise. ``kept_of_best`` is the kept weight as a
        share of the optimum (small) or of the best solver (large), ``kept`` as a share of all weight, ``tau`` Kendall's
        correlation with the hidden order, ``seconds`` of this process.

    Raises:
        ConfigError: for sizes or numbers that make no graph.
    """
    if graphs < 1 or not noises or min([*small, *large, *many, 2]) < 2:
        raise ConfigError(f"graphs={graphs}, sizes from 2 and some noise are needed")
    # Many first: a process's peak memory only grows, and the matrices of ``large`` are larger than its blocks.
    found_many = [_many(seed, size, noise) for size in many for noise in noises]
    return {
        "small": [_small(seed, size, noise, graphs) for size in small for noise in noises],
        "large": [_large(seed, size, noise) for size in large for noise in noises],
        "many": found_many,
        "unit": "seconds of process time on one thread",
    }


def hidden_order(
    size: int, noise: float, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Return probabilities (n, n) and the hidden scores (n,) behind them."""
    truth = rng.normal(size=size)
    logits = rng.normal(scale=noise, size=(size, size)).astype(np.float32)
    logits += (truth[:, None] - truth[None, :]).astype(np.float32)
    logits = np.triu(logits, 1)
    logits -= logits.T
    return 0.5 + 0.5 * np.tanh(0.5 * logits), truth


def kendall(path: npt.NDArray[np.integer], truth: npt.NDArray[np.float64]) -> float:
    """Return Kendall's tau of a best-first order with true scores that have no ties: merge sort, O(n log n)."""
    values = truth[path]
    size = len(values)
    if size < 2:
        return 1.0
    wrong, width = 0, 1
    while width < size:  # bottom-up: pairs of sorted (falling) runs are merged
        for start in range(0, size, 2 * width):
            left, right = values[start : start + width], values[start + width : start + 2 * width]
            # each of the right run overtakes those of the left run that are lower
            wrong += int((len(left) - np.searchsorted(-left, -right)).sum())
            values[start : start + 2 * width] = -np.sort(-values[start : start + 2 * width])
        width *= 2
    return 1 - 4 * wrong / (size * (size - 1))


def _timed(p: npt.NDArray[np.float32], solver: Solver) -> tuple[Any, float]:
    started = time.process_time()
    ranking = order(p, solver=solver, tau=0.0)
    return ranking, time.process_time() - started


def _small(seed: int, size: int, noise: float, graphs: int) -> dict[str, Any]:
    """Compare with the exact optimum."""
    from ..optional import is_available

    exact: Solver = "exact_dp" if size <= 16 else "exact_milp"
    if exact == "exact_milp" and not is_available("highspy"):
        return {"nodes": size, "noise": noise, "skipped": "highspy is not installed"}
    shares: dict[str, list[float]] = {solver: [] for solver in HEURISTICS}
    seconds: dict[str, float] = dict.fromkeys((*HEURISTICS, exact), 0.0)
    proven = 0
    for graph in range(graphs):
        p, _ = hidden_order(size, noise, numpy_stream(seed, "ordering", size, repr(noise), graph))
        best, spent = _timed(p, exact)
        seconds[exact] += spent
        proven += best.guarantee.startswith("maximum")
        for solver in HEURISTICS:
            found, spent = _timed(p, solver)
            seconds[solver] += spent
            shares[solver].append(found.kept_weight / best.kept_weight)
    return {
        "nodes": size,
        "noise": noise,
        "graphs": graphs,
        "exact": exact,
        "proven": proven,
        "kept_of_best": {
            solver: {"mean": round(float(np.mean(values)), 4), "min": round(min(values), 4)}
            for solver, values in shares.items()
        },
        "seconds": {solver: round(spent / graphs, 4) for solver, spent in seconds.items()},
    }


def _large(seed: int, size: int, noise: float) -> dict[str, Any]:
    """Compare the solvers with each other on one graph."""
    p, truth = hidden_order(size, noise, numpy_stream(seed, "ordering", size, repr(noise), 0))
    rows = {}
    for solver in HEURISTICS:
        if solver == "greedy_mwas" and size > GREEDY_LIMIT // 2:
            continue
        ranking, spent = _timed(p, solver)
        rows[solver] = {
            "kept": round(ranking.kept_share, 4),
            "tau": round(kendall(ranking.order, truth), 4),
            "seconds": round(spent, 2),
            "guarantee": ranking.guarantee,
        }
    best = max(row["kept"] for row in rows.values())
    for row in rows.values():
        row["kept_of_best"] = round(row["kept"] / best, 4)
    return {"nodes": size, "noise": noise, "solvers": rows}


def _many(seed: int, size: int, noise: float) -> dict[str, Any]:
    """Rank by references and blocks; the noise of a pair is drawn from a stream of its own, so no matrix is held."""
    truth = numpy_stream(seed, "ordering", size, "truth").normal(size=size)
    # Noise as a fixed random form of the pair: antisymmetric, normal, and computed for any block when asked.
    left, right = (
        numpy_stream(seed, "ordering", size, side).normal(size=(size, PAIR_NOISE_BLOCK)).astype(np.float32)
        for side in ("left", "right")
    )
    scale = noise / np.sqrt(2 * PAIR_NOISE_BLOCK)

    def relations(rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        form = left[rows] @ right[columns].T - right[rows] @ left[columns].T
        logits = (truth[rows][:, None] - truth[columns][None, :]).astype(np.float32) + scale * form
        return 0.5 + 0.5 * np.tanh(0.5 * logits)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    found = top_k(relations, size, 256, tau=0.0, seed=seed)
    spent = time.process_time() - started
    best = set(np.argsort(-truth)[:256].tolist())
    return {
        "nodes": size,
        "noise": noise,
        "solver": f"top_k, 256 references, {found.ranking.solver}",
        "guarantee": found.ranking.guarantee,
        "kept": round(found.ranking.kept_share, 4),
        "tau": round(kendall(found.order, truth), 4),
        "true_best_found": round(len(best & set(found.order.tolist())) / 256, 4),
        "seconds": round(spent, 2),
        "peak_memory_growth_mb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1),
    }


def plot(record: dict[str, Any], path: Path) -> None:
    """Draw kept weight against seconds for the large graphs.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    from ..optional import require

    require("matplotlib", extra="search")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for entry in record["results"]["large"]:
        rows = entry["solvers"]
        axes.plot(
            [max(row["seconds"], 0.01) for row in rows.values()],
            [row["kept_of_best"] for row in rows.values()],
            "o",
            label=f"{entry['nodes']} nodes, noise {entry['noise']:g}",
        )
        for name, row in rows.items():
            axes.annotate(name, (max(row["seconds"], 0.01), row["kept_of_best"]), fontsize=7)
    axes.set(xscale="log", xlabel="processor seconds", ylabel="kept weight, share of the best solver's")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
