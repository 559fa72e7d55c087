"""Linear orders of a relation graph by heuristics: as much weight forward as possible, in little time.

``net`` is as in :mod:`.acyclic`; an order is best-first. The lower index wins ties.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .acyclic import NetMatrix, Places

MAX_PASSES = 60
REVERSAL_LIMIT = 512
"""Most nodes on which :func:`insertion` also tries the reversed order."""


def kept_weight(net: NetMatrix, order: Places, block: int = 512) -> float:
    """Return the weight of the edges that run forward in ``order``."""
    total = 0.0
    for start in range(0, len(order), block):
        rows = net[order[start : start + block]][:, order[start:]]
        total += float(np.triu(np.maximum(rows, 0), 1).sum(dtype=np.float64))
    return total


def by_score(scores: npt.NDArray[np.floating]) -> Places:
    """Return the order of falling score."""
    return np.argsort(-scores, kind="stable")


def eades_lin_smyth(net: NetMatrix) -> Places:
    """Peel sinks to the end and sources to the front; where neither is left, the node of greatest net weight leads.

    O(n^2) with vectorised updates. Without weights it drops at most m/2 - n/6 of m edges; with weights nothing of the
    kind is claimed. Source: Eades, Lin and Smyth 1993, here on net weights.
    """
    size = len(net)
    alive = np.ones(size, dtype=bool)
    balance = net.sum(1, dtype=np.float64)
    wins, losses = (net > 0).sum(1, dtype=np.int64), (net < 0).sum(1, dtype=np.int64)
    front: list[int] = []
    back: list[int] = []
    while len(front) + len(back) < size:
        sinks = np.flatnonzero(alive & (wins == 0) & (losses > 0))
        if len(sinks):
            node, ends = int(sinks[-1]), back
        else:
            sources = np.flatnonzero(alive & (losses == 0))
            if len(sources):
                node = int(sources[np.argmax(balance[sources])])
            else:
                node = int(np.argmax(np.where(alive, balance, -np.inf)))
            ends = front
        ends.append(node)
        alive[node] = False
        row = net[node]
        balance += row  # a loser no longer loses that much, a winner no longer wins it
        wins -= row < 0
        losses -= row > 0
    return np.array([*front, *back[::-1]], dtype=np.int64)


def insertion(net: NetMatrix, start: Places, *, max_passes: int = MAX_PASSES) -> tuple[Places, bool]:
    """Move one node at a time to its best place until no move helps; never lowers the kept weight.

    Up to ``REVERSAL_LIMIT`` nodes, the reversed result is improved too and the better one kept, until neither helps
    (Chanas and Kobylanski 1996). O(n^2) a pass.

    Args:
        net: (n, n).
        start: the order to improve.
        max_passes: over all nodes, for each descent.

    Returns:
        The order, and whether it is a local optimum (False where the passes ran out first).
    """
    best, settled = _descend(net, start, max_passes)
    if len(net) > REVERSAL_LIMIT or len(net) < 3:
        return best, settled
    value = kept_weight(net, best)
    while True:
        other, other_settled = _descend(net, best[::-1], max_passes)
        other_value = kept_weight(net, other)
        if other_value <= value + 1e-9 * max(value, 1.0):
            return best, settled
        best, settled, value = other, other_settled, other_value


def _descend(net: NetMatrix, start: Places, max_passes: int) -> tuple[Places, bool]:
    order = np.array(start, dtype=np.int64)
    size = len(order)
    position = np.empty(size, dtype=np.int64)
    position[order] = np.arange(size)
    sums = np.zeros(size + 1)
    scale = float(np.abs(net).max()) if size else 0.0
    for _ in range(max_passes):
        moved = False
        for node in order.tolist():
            here = position[node]
            # sums[k]: what the node gains over the k first ones by standing before them
            np.cumsum(net[node][order], dtype=np.float64, out=sums[1:])
            there = int(sums.argmin())
            if sums[here] - sums[there] <= 1e-9 * scale:
                continue
            moved = True
            if there <= here:
                order[there + 1 : here + 1] = order[there:here].copy()
                order[there] = node
                low, high = there, here + 1
            else:
                order[here : there - 1] = order[here + 1 : there].copy()
                order[there - 1] = node
                low, high = here, there
            position[order[low:high]] = np.arange(low, high)
        if not moved:
            return order, True
    return order, False


def kwiksort(net: NetMatrix, rng: np.random.Generator, *, repeats: int = 5) -> Places:
    """Split by a random pivot, losers behind it, as quicksort does; the best of ``repeats`` runs.

    Nodes without an edge to the pivot go to the side on which their net weight is larger than the pivot's. An expected
    constant factor of the optimum on tournaments with ``p_ij + p_ji = 1``. Source: Ailon, Charikar and Newman 2008.
    """
    balance = net.sum(1, dtype=np.float64)
    best = np.arange(len(net))
    best_value = -1.0
    for _ in range(repeats):
        order: list[int] = []
        stack = [np.arange(len(net))]
        while stack:
            part = stack.pop()
            if len(part) <= 1:
                order.extend(part.tolist())
                continue
            place = int(rng.integers(len(part)))
            pivot, rest = part[place], np.delete(part, place)
            against = net[pivot, rest]
            tie = np.where(balance[rest] == balance[pivot], rest < pivot, balance[rest] > balance[pivot])
            ahead = np.where(against == 0, tie, against < 0)
            stack += [rest[~ahead], np.array([pivot]), rest[ahead]]
        found = np.array(order, dtype=np.int64)
        value = kept_weight(net, found)
        if value > best_value:
            best, best_value = found, value
    return best
