"""Orders of greatest kept weight: dynamic programming for a few nodes, an integer program for dozens.

Both split the graph into strongly connected components first, which loses nothing: no edge between two components lies
on a cycle. ``net`` is as in :mod:`.acyclic`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..optional import require
from .acyclic import NetMatrix, Places, strong_components
from .linear_order import eades_lin_smyth, insertion, kept_weight

DP_LIMIT = 16
MILP_LIMIT = 60
CUTS_PER_ROUND = 2000


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """An order, and how much weight any order keeps at most."""

    order: Places
    value: float
    bound: float

    @property
    def optimal(self) -> bool:
        return self.bound <= self.value + 1e-6 * max(1.0, abs(self.value))


def dynamic_programming(net: NetMatrix) -> Solved:
    """Return an order of greatest kept weight by dynamic programming over subsets, O(2^n n) for each component.

    Raises:
        ConfigError: if a strongly connected component has more than ``DP_LIMIT`` nodes.
    """
    parts = _components(net, DP_LIMIT, "exact_dp", "use solver='exact_milp' or 'insertion'")
    order = np.concatenate([part[_subsets(net[np.ix_(part, part)])] for part in parts])
    value = kept_weight(net, order)
    return Solved(order, value, value)


def _components(net: NetMatrix, limit: int, solver: str, hint: str) -> list[Places]:
    parts = strong_components(net) or [np.zeros(0, dtype=np.int64)]
    largest = max(len(part) for part in parts)
    if largest > limit:
        raise ConfigError(f"{solver} met a component of {largest} nodes, the limit is {limit}", hint=hint)
    return parts


def _subsets(net: NetMatrix) -> Places:
    size = len(net)
    if size <= 1:
        return np.arange(size)
    weight = np.maximum(net, 0).astype(np.float64)
    # gain[i][S]: weight of edges from the nodes in S to node i, which comes right after them
    gain = np.zeros((size, 1 << size))
    for node in range(size):
        gain[:, 1 << node : 2 << node] = gain[:, : 1 << node] + weight[node][:, None]
    subsets = np.arange(1 << size)
    counts = np.zeros(1 << size, dtype=np.int8)
    for node in range(size):
        counts[1 << node : 2 << node] = counts[: 1 << node] + 1
    value = np.full(1 << size, -np.inf)
    value[0] = 0.0
    last = np.zeros(1 << size, dtype=np.int8)
    for count in range(1, size + 1):
        layer = subsets[counts == count]
        for node in range(size):
            chosen = layer[layer >> node & 1 == 1]
            before = chosen ^ (1 << node)
            found = value[before] + gain[node, before]
            better = found > value[chosen]
            value[chosen[better]] = found[better]
            last[chosen[better]] = node
    order: list[int] = []
    rest = (1 << size) - 1
    while rest:
        order.append(int(last[rest]))
        rest ^= 1 << order[-1]
    return np.array(order[::-1], dtype=np.int64)


def integer_program(net: NetMatrix, *, time_limit_s: float | None = None) -> Solved:
    """Return an order of greatest kept weight by HiGHS.

    The linear ordering problem with one binary variable a pair and ``0 <= x_ij + x_jk - x_ik <= 1`` for every triple;
    triples enter when they are violated. A good order from local search is tried first: where the relaxation shows that
    nothing is better, no branching happens.

    Args:
        net: (n, n).
        time_limit_s: for all components; at the limit the best order so far is returned with the bound reached.

    Raises:
        MissingDependencyError: without highspy.
        ConfigError: if a strongly connected component has more than ``MILP_LIMIT`` nodes.
    """
    highspy = require("highspy", extra="search")
    parts = _components(net, MILP_LIMIT, "exact_milp", "use solver='insertion'")
    deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
    orders: list[Places] = []
    slack = 0.0
    for part in parts:
        inside = np.asarray(net[np.ix_(part, part)], dtype=np.float64)
        order, _ = insertion(inside, eades_lin_smyth(inside))
        if len(part) > 2:
            order, bound = _solve(highspy, inside, order, deadline)
            slack += max(0.0, bound - kept_weight(inside, order))
        orders.append(part[order])
    order = np.concatenate(orders)
    value = kept_weight(net, order)
    return Solved(order, value, value + slack)


def _solve(highspy: Any, net: npt.NDArray[np.float64], start: Places, deadline: float | None) -> tuple[Places, float]:
    """Return the best order found and an upper bound, for one component."""
    size = len(net)
    first, second = np.triu_indices(size, 1)
    column = np.zeros((size, size), dtype=np.int64)
    column[first, second] = np.arange(len(first))
    costs = net[first, second]
    constant = float(np.maximum(-costs, 0).sum())  # kept by x = 0
    model = highspy.Highs()
    model.setOptionValue("output_flag", False)
    model.setOptionValue("threads", 1)
    model.setOptionValue("random_seed", 0)
    model.setOptionValue("mip_rel_gap", 0.0)
    model.setOptionValue("mip_abs_gap", 1e-7)
    model.changeObjectiveSense(highspy.ObjSense.kMaximize)
    for cost in costs:
        model.addVar(0.0, 1.0)
        model.changeColCost(model.getNumCol() - 1, float(cost))
    triples = np.array([(i, j, k) for i in range(size) for j in range(i + 1, size) for k in range(j + 1, size)])
    inside = np.stack([column[triples[:, a], triples[:, b]] for a, b in ((0, 1), (1, 2), (0, 2))], axis=1)
    added = np.zeros(len(triples), dtype=bool)
    best, value = start, kept_weight(net, start)
    bound, integer = float(np.abs(costs).sum()), False
    while True:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                return best, bound
            model.setOptionValue("time_limit", model.getRunTime() + left)
        model.run()
        status = model.getModelStatus()
        info = model.getInfo()
        if status != highspy.HighsModelStatus.kOptimal:
            if integer and np.isfinite(info.mip_dual_bound):
                bound = min(bound, constant + float(info.mip_dual_bound))
            return best, bound
        found = constant + float(info.mip_dual_bound if integer else info.objective_function_value)
        bound = min(bound, found)
        if bound <= value + 1e-7 * max(1.0, value):
            return best, bound
        x = np.array(model.getSolution().col_value)
        sums = x[inside[:, 0]] + x[inside[:, 1]] - x[inside[:, 2]]
        violation = np.maximum(sums - 1, -sums)
        violated = np.flatnonzero((violation > 1e-6) & ~added)
        # A fractional solution still says who mostly wins: round it and polish.
        wins = np.zeros((size, size))
        wins[first, second], wins[second, first] = x, 1 - x
        rounded, _ = insertion(net, np.argsort(-wins.sum(1), kind="stable"))
        rounded_value = kept_weight(net, rounded)
        if rounded_value > value:
            best, value = rounded, rounded_value
        if not len(violated):
            if integer or bound <= value + 1e-7 * max(1.0, value):
                return best, bound
            integer = True
            for place in range(len(costs)):
                model.changeColIntegrality(place, highspy.HighsVarType.kInteger)
            continue
        worst = violated[np.argsort(-violation[violated], kind="stable")[:CUTS_PER_ROUND]]
        added[worst] = True
        for row in inside[worst]:
            model.addRow(0.0, 1.0, 3, row.astype(np.int32), np.array([1.0, 1.0, -1.0]))
