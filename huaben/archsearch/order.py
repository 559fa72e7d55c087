"""From pairwise probabilities to a ranking: trust, an acyclic relation graph, a topological order.

::

    P (n, n)  --trust-->  relation graph  --solver-->  acyclic subgraph  --Kahn's sort-->  Ranking

Which solver when: up to 256 nodes ``"auto"`` is the greedy MWAS; beyond, all are ranked by win score and the greedy
MWAS orders the best 256. ``"mwas"`` takes every node: greedy up to 512, and beyond that (4,096 nodes take seconds) win
score, insertion local search and the completion to a maximal acyclic subgraph. For more candidates than fit a matrix
use :func:`top_k`.

More kept weight is not the same as a better ranking: under independent noise on the edges the plain win score recovers
the true order best, so rankings carry both.

Source: Arch-Graph (arXiv:2204.05941), relation graph, trusted edges, maximal weighted acyclic subgraph and topological
sort; the form of the trust rule, the solvers and the tie rule are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, DataError, ShapeError
from ..rng import numpy_stream
from .acyclic import BoolMatrix, NetMatrix, Places, complete, forward_edges, greedy_acyclic, topological_order
from .exact import Solved, dynamic_programming, integer_program
from .linear_order import by_score, eades_lin_smyth, insertion, kept_weight, kwiksort

Solver = Literal[
    "auto",
    "mwas",
    "greedy_mwas",
    "win_score",
    "eades_lin_smyth",
    "insertion",
    "kwiksort",
    "exact_dp",
    "exact_milp",
]
SOLVERS: tuple[Solver, ...] = Solver.__args__  # type: ignore[attr-defined]

TOP = 256
"""Candidates whose relations are made acyclic by ``solver="auto"``."""
GREEDY_UP_TO = 512
MAX_PAIRS = 20_000_000
HARD = 1e-6
"""An observed relation has probability ``1 - HARD``."""
ASYMMETRY = 1e-4

FloatMatrix = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """An order of n candidates and what it rests on.

    Attributes:
        order: (n,) places, best first.
        scores: (n,) win score of each candidate (not of each rank): its mean probability of beating another one.
        kept_weight: weight of the trusted relations that run forward in ``order``.
        total_weight: weight of all trusted relations.
        dropped_edges: (m, 2) winner and loser of the trusted relations that run backward.
        solver: what made it.
        guarantee: what is known about it, in words.
    """

    order: Places
    scores: npt.NDArray[np.float64]
    kept_weight: float
    total_weight: float
    dropped_edges: Places
    solver: str
    guarantee: str

    @property
    def ranks(self) -> Places:
        """(n,) rank of each candidate, 0 is best."""
        ranks = np.empty(len(self.order), dtype=np.int64)
        ranks[self.order] = np.arange(len(self.order))
        return ranks

    @property
    def kept_share(self) -> float:
        """Share of the trusted weight that is kept; 1 where no relation is trusted."""
        return self.kept_weight / self.total_weight if self.total_weight > 0 else 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Dag:
    """A maximal weighted acyclic subgraph of a relation graph.

    Attributes:
        edges: bool (n, n), the relations kept, winner to loser.
        dropped_edges: (m, 2) winner and loser of the trusted relations left out.
        scores: (n,) win scores.
        keys: (n,) rank of each candidate's key, for ties.
        kept_weight, total_weight: of kept and of all trusted relations.
        guarantee: what is known about it, in words.
    """

    edges: BoolMatrix
    dropped_edges: Places
    scores: npt.NDArray[np.float64]
    keys: Places
    kept_weight: float
    total_weight: float
    guarantee: str

    def order(self) -> Places:
        """Return the topological order, best first; free candidates by win score, ties by key."""
        by_key = np.argsort(self.keys, kind="stable")
        return by_key[topological_order(self.edges[np.ix_(by_key, by_key)], self.scores[by_key])]


@dataclass(frozen=True, slots=True, eq=False)
class TopK:
    """The best of many candidates.

    Attributes:
        order: (k,) candidates, best first.
        scores: (n,) mean probability of beating the references, for all candidates.
        candidates: (K,) those whose relations were compared all with all.
        ranking: of ``candidates``; its places point into them.
    """

    order: Places
    scores: npt.NDArray[np.float64]
    candidates: Places
    ranking: Ranking


@dataclass(frozen=True, slots=True, eq=False)
class _Graph:
    """A relation graph with candidates in the order of their keys."""

    places: Places  # key order to the caller's places
    scores: npt.NDArray[np.float64]
    net: NetMatrix  # trusted relations, signed
    observed: npt.NDArray[np.float64] | None

    def __len__(self) -> int:
        return len(self.places)

    def steep(self) -> NetMatrix:
        """Return ``net`` with observed relations heavier than all others together, for solvers that trade weight."""
        if self.observed is None:
            return self.net
        known = np.isfinite(self.observed)
        values = np.where(known, self.observed, 0)
        heavy = np.sign(values[:, None] - values[None, :]) * (1 + float(np.abs(self.net).sum(dtype=np.float64)))
        return self.net + np.where(known[:, None] & known[None, :], heavy, 0).astype(self.net.dtype)

    def settle(self, order: Places) -> Places:
        """Return ``order`` with the observed candidates sorted by value among the places they hold."""
        if self.observed is None:
            return order
        slots = np.flatnonzero(np.isfinite(self.observed[order]))
        settled = order.copy()
        settled[slots] = order[slots][np.argsort(-self.observed[order[slots]], kind="stable")]
        return settled


def win_scores(probabilities: FloatMatrix) -> npt.NDArray[np.float64]:
    """Return the mean probability (n,) of beating another candidate; 0.5 for a single one."""
    size = len(probabilities)
    if size < 2:
        return np.full(size, 0.5)
    return (probabilities.sum(1, dtype=np.float64) - np.diagonal(probabilities)) / (size - 1)


def trusted_relations(
    probabilities: FloatMatrix,
    *,
    std: FloatMatrix | None = None,
    tau: float = 0.02,
    kappa: float = 0.0,
    weight: Literal["margin", "log_odds"] = "margin",
    weights: FloatMatrix | None = None,
) -> NetMatrix:
    """Return signed weights (n, n): positive where the row is trusted to beat the column, 0 where nothing is trusted.

    A relation is trusted where ``abs(p - 0.5) - kappa * std > tau``. It weighs that margin, or the log-odds of p, or
    what ``weights`` says.

    Raises:
        DataError, ShapeError, ConfigError: for unusable arguments.
    """
    if not (tau >= 0 and kappa >= 0 and math.isfinite(tau) and math.isfinite(kappa)):
        raise ConfigError(f"tau={tau} and kappa={kappa}, expected finite numbers from 0", hint="use 0.02 and 0")
    size = len(probabilities)
    lean = probabilities - 0.5
    margin = np.abs(lean)
    if kappa > 0:
        if std is None:
            raise ConfigError(f"kappa={kappa} needs std", hint="pass an ensemble's standard deviations, or kappa=0")
        spread = _matrix(std, "std", size)
        margin = margin - kappa * np.maximum(spread, spread.T)
    trusted = margin > tau
    if weights is not None:
        given = _matrix(weights, "weights", size)
        if not (np.isfinite(given).all() and (given >= 0).all() and np.array_equal(given, given.T)):
            raise DataError("weights must be symmetric, finite and not negative")
        size_of = given
    elif weight == "log_odds":
        clipped = np.clip(probabilities.astype(np.float64), HARD, 1 - HARD)
        size_of = np.abs(np.log(clipped) - np.log1p(-clipped)).astype(probabilities.dtype)
    elif weight == "margin":
        size_of = margin
    else:
        raise ConfigError(f"weight={weight!r} is neither 'margin' nor 'log_odds'")
    # One half decides and the other mirrors it, so rounding cannot make a relation run both ways.
    net = np.triu(np.where(trusted, np.sign(lean) * size_of, 0), 1)
    return np.asarray(net - net.T)


def order(
    probabilities: Any,
    *,
    solver: Solver = "auto",
    std: Any = None,
    tau: float = 0.02,
    kappa: float = 0.0,
    weight: Literal["margin", "log_odds"] = "margin",
    weights: Any = None,
    observed: Any = None,
    keys: Sequence[str] | None = None,
    top: int = TOP,
    seed: int = 0,
    time_limit_s: float | None = None,
) -> Ranking:
    """Rank n candidates by their pairwise probabilities.

    Args:
        probabilities: (n, n) in [0, 1], row beats column, ``P + P.T == 1``.
        solver: see the module's text; "win_score" sorts by win score alone.
        std: (n, n), of an ensemble.
        tau: least margin ``abs(p - 0.5)`` of a trusted relation.
        kappa: standard deviations taken off the margin.
        weight: of a trusted relation: its margin or its log-odds.
        weights: (n, n) symmetric, instead of ``weight``.
        observed: (n,) values known for certain, higher better, NaN where unknown. Relations between known ones are hard:
            no ranking contradicts them.
        keys: n different texts (canonical forms) that decide ties, so that the order candidates come in does not matter.
        top: see ``solver="auto"``.
        seed: of "kwiksort".
        time_limit_s: of "exact_milp".

    Raises:
        ShapeError, DataError, ConfigError: for unusable arguments.
        MissingDependencyError: for "exact_milp" without highspy.
    """
    graph = _graph(probabilities, std, tau, kappa, weight, weights, observed, keys)
    if solver not in SOLVERS:
        raise ConfigError(f"solver={solver!r} is none of {', '.join(SOLVERS)}")
    if top < 1:
        raise ConfigError(f"top={top} is below 1", hint=f"use {TOP}")
    used: str = solver
    if solver == "auto" and len(graph) <= top:
        used = "greedy_mwas"
    if used == "auto":
        found, guarantee = _best_part(graph, top)
        used = f"greedy_mwas on the best {top}"
    else:
        found, guarantee = _solve(graph, used, seed, time_limit_s)
    found = graph.settle(found)
    kept, total, dropped = _account(graph, found)
    return Ranking(
        order=graph.places[found],
        scores=_back(graph, graph.scores),
        kept_weight=kept,
        total_weight=total,
        dropped_edges=graph.places[dropped],
        solver=used,
        guarantee=guarantee,
    )


def mwas(
    probabilities: Any,
    *,
    tau: float = 0.02,
    std: Any = None,
    kappa: float = 0.0,
    weights: Any = None,
    observed: Any = None,
    keys: Sequence[str] | None = None,
    solver: Literal["mwas", "greedy_mwas", "insertion", "exact_dp", "exact_milp"] = "mwas",
) -> Dag:
    """Return a maximal weighted acyclic subgraph of the trusted relations; arguments as for :func:`order`.

    Adding back any dropped relation closes a cycle, whatever the solver; the exact ones keep the greatest weight.
    """
    graph = _graph(probabilities, std, tau, kappa, "margin", weights, observed, keys)
    if solver not in ("mwas", "greedy_mwas", "insertion", "exact_dp", "exact_milp"):
        raise ConfigError(f"solver={solver!r} keeps no maximal subgraph", hint="use 'mwas' or 'exact_dp'")
    found, guarantee = _solve(graph, solver, 0, None)
    edges = forward_edges(graph.net, graph.settle(found))
    dropped = np.argwhere((graph.net > 0) & ~edges)
    kept, total, _ = _account(graph, found)
    back = np.empty_like(graph.places)
    back[graph.places] = np.arange(len(graph))
    return Dag(
        edges=edges[np.ix_(back, back)],
        dropped_edges=graph.places[dropped],
        scores=_back(graph, graph.scores),
        keys=back,
        kept_weight=kept,
        total_weight=total,
        guarantee=guarantee,
    )


def top_k(
    relations: Callable[[Any, Any], Any],
    count: int,
    k: int,
    *,
    references: int | Sequence[int] | npt.NDArray[np.integer] = 256,
    dense: int = TOP,
    confidence: float = 0.0,
    keys: Sequence[str] | None = None,
    max_pairs: int = MAX_PAIRS,
    seed: int = 0,
    **settings: Any,
) -> TopK:
    """Rank the best ``k`` of many candidates without ever holding all their relations.

    All are scored against a few references, whose error shrinks as one over the root of their number; the best of them
    are then compared all with all.

    Args:
        relations: called with two int64 arrays of candidates, returns probabilities (R, C) that row beats column, or
            those and their standard deviation, as :class:`~.relation.Relations` does.
        count: candidates.
        k: of them to rank.
        references: how many to draw at random, or which (a sample of the last ranking's strata, say).
        dense: candidates compared all with all; at least ``k``.
        confidence: standard deviations added to the score when choosing those.
        keys: of all candidates, for ties.
        max_pairs: most relations held at a time.
        seed: of the references.
        settings: of :func:`order`.

    Raises:
        ConfigError: for impossible numbers, or where ``k`` or ``dense`` squared exceeds ``max_pairs``.
    """
    if count < 1 or not 1 <= k <= count:
        raise ConfigError(f"k={k} of count={count}, expected 1 <= k <= count")
    dense = min(max(k, dense), count)
    if dense**2 > max_pairs:
        raise ConfigError(
            f"{dense} candidates compared all with all make {dense**2} pairs, more than max_pairs={max_pairs}",
            hint=f"ask for at most {math.isqrt(max_pairs)}, or raise max_pairs",
        )
    if isinstance(references, (int, np.integer)):
        if references < 1:
            raise ConfigError(f"references={references} is below 1", hint="use 256")
        size = min(int(references), count)
        chosen = np.sort(numpy_stream(seed, "references").choice(count, size, replace=False))
    else:
        chosen = np.unique(np.asarray(references, dtype=np.int64))
        if not len(chosen) or chosen[0] < 0 or chosen[-1] >= count:
            raise ConfigError(f"references are {len(chosen)} places, expected some from 0 to {count - 1}")
    block = max(1, max_pairs // (4 * len(chosen)))
    scores, spread = np.empty(count), np.zeros(count)
    for start in range(0, count, block):
        rows = np.arange(start, min(start + block, count))
        mean, std = _read(relations(rows, chosen), (len(rows), len(chosen)))
        scores[rows] = mean.mean(1, dtype=np.float64)
        if std is not None:
            spread[rows] = std.mean(1, dtype=np.float64)
    tie = np.argsort(np.asarray(keys), kind="stable") if keys is not None else np.arange(count)
    if len(tie) != count:
        raise ConfigError(f"{len(tie)} keys for {count} candidates")
    optimistic = scores + confidence * spread
    candidates = np.sort(tie[np.argsort(-optimistic[tie], kind="stable")[:dense]])
    mean, std = _read(relations(candidates, candidates), (dense, dense))
    chosen_keys = None if keys is None else [keys[place] for place in candidates]
    ranking = order(mean, std=std, keys=chosen_keys, **settings)
    return TopK(candidates[ranking.order[:k]], scores, candidates, ranking)


def _read(found: Any, shape: tuple[int, int]) -> tuple[FloatMatrix, FloatMatrix | None]:
    """Return mean and standard deviation as arrays of the expected shape."""
    mean, std = found if isinstance(found, tuple) else (found, None)
    mean = np.asarray(mean)
    std = None if std is None else np.asarray(std)
    if mean.shape != shape or (std is not None and std.shape != shape):
        raise ShapeError(f"relations returned shape {mean.shape}, expected {shape}")
    return mean, std


def _matrix(values: Any, name: str, size: int | None = None) -> FloatMatrix:
    array = np.asarray(values)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or (size is not None and len(array) != size):
        raise ShapeError(f"{name} has shape {array.shape}, expected {(size or 'n', size or 'n')}")
    return array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float64)


def _graph(
    probabilities: Any,
    std: Any,
    tau: float,
    kappa: float,
    weight: Literal["margin", "log_odds"],
    weights: Any,
    observed: Any,
    keys: Sequence[str] | None,
) -> _Graph:
    """Check everything and put candidates into the order of their keys."""
    p = _matrix(probabilities, "probabilities")
    size = len(p)
    if size**2 > MAX_PAIRS:
        raise DataError(f"{size} candidates make {size**2} pairs, more than {MAX_PAIRS}", hint="use top_k")
    if p.dtype == np.float16:
        p = p.astype(np.float32)
    wrong = ~((p >= 0) & (p <= 1))  # NaN too
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise DataError(f"probability [{row}, {column}] is {p[row, column]}, expected a number in [0, 1]")
    gap = p + p.T
    gap -= 1
    if size and (worst := float(np.abs(gap, out=gap).max())) > ASYMMETRY:
        row, column = np.unravel_index(int(gap.argmax()), gap.shape)
        raise DataError(
            f"probabilities [{row}, {column}] and [{column}, {row}] sum to 1 {'+' if p[row, column] > 0.5 else '-'}"
            f" {worst:.4g}, expected P + P.T == 1",
            hint="make them symmetric first: (P + 1 - P.T) / 2",
        )
    del gap, wrong
    places = np.arange(size)
    if keys is not None:
        if len(keys) != size or len(set(keys)) != size:
            raise DataError(
                f"{len(set(keys))} different keys for {size} candidates",
                hint="twins are one candidate: merge them first",
            )
        places = np.argsort(np.asarray(keys, dtype=str), kind="stable") if size else places
        p = p[np.ix_(places, places)]
        std = None if std is None else _matrix(std, "std", size)[np.ix_(places, places)]
        weights = None if weights is None else _matrix(weights, "weights", size)[np.ix_(places, places)]
    known = None
    if observed is not None:
        values = np.asarray(observed, dtype=np.float64)
        if values.shape != (size,) or np.isinf(values).any():
            raise DataError(f"observed has shape {values.shape}, expected ({size},) of finite values and NaN")
        values = values[places]
        if np.isfinite(values).sum() > 1:
            known = values
            p = p.copy()
            at = np.flatnonzero(np.isfinite(values))
            hard = 0.5 + (0.5 - HARD) * np.sign(values[at][:, None] - values[at][None, :])
            p[np.ix_(at, at)] = hard
            if std is not None:
                std = np.array(_matrix(std, "std", size))
                std[np.ix_(at, at)] = 0
    net = trusted_relations(p, std=std, tau=tau, kappa=kappa, weight=weight, weights=weights)
    return _Graph(places, win_scores(p), net, known)


def _solve(graph: _Graph, solver: str, seed: int, time_limit_s: float | None) -> tuple[Places, str]:
    """Return an order (in key order) by one solver, and its guarantee."""
    scores, size = graph.scores, len(graph)
    if solver == "mwas":
        solver = "greedy_mwas" if size <= GREEDY_UP_TO else "insertion"
    if solver == "greedy_mwas":
        kept = greedy_acyclic(graph.steep())
        return topological_order(kept, scores), "maximal: adding back any dropped relation closes a cycle"
    if solver == "win_score":
        return by_score(scores), "none on the kept weight; within a constant factor of the least dropped (Borda)"
    steep = graph.steep()
    if solver == "insertion":
        found, settled = insertion(steep, graph.settle(by_score(scores)))
        text = "local optimum under moving one candidate" if settled else "improved until the passes ran out"
        kept = complete(steep, found)
        return topological_order(kept, scores), f"{text}; maximal: adding back any dropped relation closes a cycle"
    if solver == "eades_lin_smyth":
        found, text = eades_lin_smyth(steep), "none on weights; drops at most m/2 - n/6 of m equal relations"
    elif solver == "kwiksort":
        found = kwiksort(steep, numpy_stream(seed, "kwiksort"))
        text = "expected constant factor of the least dropped where all relations are trusted"
    else:
        solved: Solved
        if solver == "exact_dp":
            solved = dynamic_programming(steep)
        else:
            solved = integer_program(steep, time_limit_s=time_limit_s)
        found, text = solved.order, "maximum: no order keeps more weight"
        if not solved.optimal:
            gap = (solved.bound - solved.value) / max(solved.bound, 1e-12)
            text = f"within {100 * gap:.2g} % of the maximum (time limit)"
    return topological_order(forward_edges(steep, found), scores), text


def _best_part(graph: _Graph, top: int) -> tuple[Places, str]:
    """Order the best ``top`` by greedy MWAS, the others after them by win score."""
    ranked = graph.settle(by_score(graph.scores))
    best = np.sort(ranked[:top])
    part = _Graph(
        places=best,
        scores=graph.scores[best],
        net=graph.net[np.ix_(best, best)],
        observed=None if graph.observed is None else graph.observed[best],
    )
    found, text = _solve(part, "greedy_mwas", 0, None)
    return np.concatenate(
        [best[found], ranked[top:]]
    ), f"on the best {top} by win score {text}; the others by win score"


def _account(graph: _Graph, found: Places) -> tuple[float, float, Places]:
    """Return kept and total weight, and the relations that run backward."""
    backward = (graph.net > 0) & ~forward_edges(graph.net, found)
    dropped = np.argwhere(backward)
    total = float(np.maximum(graph.net, 0).sum(dtype=np.float64))
    lost = float(graph.net[backward].sum(dtype=np.float64))
    return kept_weight(graph.net, found) if lost else total, total, dropped


def _back(graph: _Graph, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return values in key order at the caller's places."""
    result = np.empty_like(values)
    result[graph.places] = values
    return result
