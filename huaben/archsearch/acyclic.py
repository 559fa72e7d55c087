"""Acyclic subgraphs of a relation graph: greedy, complete, and sorted topologically.

A relation graph is one antisymmetric matrix ``net`` (n, n): ``net[i, j] > 0`` is an edge from winner i to loser j of
that weight, 0 is no edge. Nodes are in the order of their keys, so the lower index is the tie rule throughout.

Source: Arch-Graph (arXiv:2204.05941) keeps a maximal weighted acyclic subgraph of the relation graph; its algorithm
could not be read, the ones here are ours.
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError

GREEDY_LIMIT = 2048
"""Most nodes for :func:`greedy_acyclic`."""
BLOCK = 8192
"""Edges looked at together."""

NetMatrix = npt.NDArray[np.floating]
BoolMatrix = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]


class Reachability:
    """Which nodes can be reached from which: one bit a pair, kept up to date as edges are added.

    Args:
        reached: bool (n, n), the reflexive transitive closure to start from; None is no edge.
        size: n, where ``reached`` is None.
    """

    def __init__(self, size: int, reached: BoolMatrix | None = None) -> None:
        words = (size + 63) // 64
        padded = np.zeros((size, words * 64), dtype=bool)
        padded[:, :size] = np.eye(size, dtype=bool) if reached is None else reached
        self.bits = np.packbits(padded, axis=1, bitorder="little").view(np.uint64)

    def reaches(self, sources: Places, targets: Places) -> npt.NDArray[np.bool_]:
        """Return, pair by pair, whether there is a path (a node reaches itself)."""
        words = self.bits[sources, targets >> 6]
        return (words >> (targets & 63).astype(np.uint64)) & np.uint64(1) == 1

    def _column(self, node: int) -> npt.NDArray[np.uint64]:
        return self.bits[:, node >> 6] & np.uint64(1 << (node & 63))

    def has(self, source: int, target: int) -> bool:
        """Return whether there is a path from source to target."""
        return bool(int(self.bits[source, target >> 6]) >> (target & 63) & 1)

    def add(self, source: int, target: int) -> None:
        """Add an edge that closes no cycle."""
        # Only those that reach the source and not yet the target learn anything.
        rows = np.flatnonzero((self._column(source) != 0) & (self._column(target) == 0))
        self.bits[rows] |= self.bits[target]


def forward_edges(net: NetMatrix, order: Places) -> BoolMatrix:
    """Return (n, n), the edges that run forward in ``order``."""
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    return (net > 0) & (position[:, None] < position[None, :])


def sorted_edges(net: NetMatrix) -> tuple[Places, Places]:
    """Return winners and losers of all edges, heaviest first, ties by winner, then by loser."""
    winners, losers = np.nonzero(net > 0)
    rank = np.argsort(-net[winners, losers], kind="stable")
    return winners[rank], losers[rank]


def greedy_acyclic(net: NetMatrix) -> BoolMatrix:
    """Keep edges, heaviest first, that close no cycle with those kept before: (n, n).

    The result is maximal: adding back any dropped edge closes a cycle. O(m log m) for the sort, then one reachability
    update for every edge that is not yet implied or contradicted.

    Raises:
        ConfigError: for more than ``GREEDY_LIMIT`` nodes, where it takes minutes.
    """
    size = len(net)
    if size > GREEDY_LIMIT:
        raise ConfigError(
            f"greedy MWAS on {size} nodes, the limit is {GREEDY_LIMIT}",
            hint="use solver='mwas', which is maximal too and takes seconds, or rank the best 256 only",
        )
    winners, losers = sorted_edges(net)
    kept = np.zeros(len(winners), dtype=bool)
    reach = Reachability(size)
    for start in range(0, len(winners), BLOCK):
        u, v = winners[start : start + BLOCK], losers[start : start + BLOCK]
        implied = reach.reaches(u, v)
        kept[start : start + BLOCK] = implied
        # Reachability only grows: what is contradicted or implied now stays so.
        for place in np.flatnonzero(~implied & ~reach.reaches(v, u)):
            kept[start + place] = _offer(reach, int(u[place]), int(v[place]))
    edges = np.zeros((size, size), dtype=bool)
    edges[winners[kept], losers[kept]] = True
    return edges


def _offer(reach: Reachability, u: int, v: int) -> bool:
    """Add the edge unless it closes a cycle; return whether it may stay."""
    if reach.has(v, u):
        return False
    if not reach.has(u, v):
        reach.add(u, v)
    return True


def closure(edges: BoolMatrix, order: Places) -> BoolMatrix:
    """Return the reflexive transitive closure (n, n) of edges that all run forward in ``order``.

    From the last node to the first, each joins what its nearest successors reach and skips those it reaches already: on
    a dense graph one or two joins a node.
    """
    size = len(order)
    by_place = edges[np.ix_(order, order)]
    reached = np.zeros((size, size), dtype=bool)
    for place in range(size - 1, -1, -1):
        row = reached[place]
        row[place] = True
        todo = by_place[place].copy()
        while True:
            nearest = int(todo.argmax()) if size else 0
            if not todo[nearest]:
                break
            row |= reached[nearest]
            todo &= ~row
    result = np.empty_like(reached)
    result[np.ix_(order, order)] = reached
    return result


def complete(net: NetMatrix, order: Places) -> BoolMatrix:
    """Return the forward edges of ``order`` and, heaviest first, every other edge that closes no cycle: maximal."""
    edges = forward_edges(net, order)
    winners, losers = np.nonzero((net > 0) & ~edges)
    if not len(winners):
        return edges
    reached = closure(edges, order)
    open_ = ~reached[losers, winners]
    winners, losers = winners[open_], losers[open_]
    if not len(winners):
        return edges
    rank = np.argsort(-net[winners, losers], kind="stable")
    reach = Reachability(len(net), reached)
    for u, v in zip(winners[rank].tolist(), losers[rank].tolist(), strict=True):
        if _offer(reach, u, v):
            edges[u, v] = True
    return edges


def topological_order(edges: BoolMatrix, scores: npt.NDArray[np.floating]) -> Places:
    """Return a topological order: of the nodes that are free to come next, the one with the highest score does.

    Ties go to the lower index. Kahn's algorithm with a heap.

    Raises:
        ConfigError: if the edges hold a cycle.
    """
    size = len(edges)
    waiting = edges.sum(0, dtype=np.int64)
    heap = [(-float(scores[node]), int(node)) for node in np.flatnonzero(waiting == 0)]
    heapq.heapify(heap)
    order = np.empty(size, dtype=np.int64)
    count = 0
    while heap:
        _, node = heapq.heappop(heap)
        order[count] = node
        count += 1
        row = edges[node]
        waiting -= row
        for freed in np.flatnonzero(row & (waiting == 0)):
            heapq.heappush(heap, (-float(scores[freed]), int(freed)))
    if count < size:
        raise ConfigError(f"{size - count} of {size} nodes lie on a cycle or behind one", hint="drop edges first")
    return order


def strong_components(net: NetMatrix) -> list[Places]:
    """Return the strongly connected components, those that win first; nodes ascend within each.

    Single nodes are peeled from both ends first; what is left is split by forward and backward search from a node.
    """
    edges = net > 0
    front: list[Places] = []
    back: list[Places] = []
    alive = np.ones(len(net), dtype=bool)
    waiting_in, waiting_out = edges.sum(0, dtype=np.int64), edges.sum(1, dtype=np.int64)
    while True:
        sources = np.flatnonzero(alive & (waiting_in == 0))
        sinks = np.flatnonzero(alive & (waiting_out == 0))
        if not len(sources) and not len(sinks):
            break
        node, ends = (sources[0], front) if len(sources) else (sinks[0], back)
        ends.append(np.array([node]))
        alive[node] = False
        waiting_in -= edges[node]
        waiting_out -= edges[:, node]
    middle: list[Places] = []
    todo = [np.flatnonzero(alive)]
    while todo:
        part = todo.pop()
        if not len(part):
            continue
        inside = edges[np.ix_(part, part)]
        ahead, behind = _search(inside), _search(inside.T)
        both = ahead & behind
        # What only reaches the component comes before it, what it only reaches after; the rest has no path to it.
        if both.all():
            middle.append(part)
            continue
        todo += [part[ahead & ~both], part[both], part[~ahead]]
    return [*front, *middle, *back[::-1]]


def _search(edges: BoolMatrix) -> npt.NDArray[np.bool_]:
    """Return what the first node reaches, itself included."""
    seen = np.zeros(len(edges), dtype=bool)
    frontier = np.zeros(len(edges), dtype=bool)
    frontier[0] = True
    while frontier.any():
        seen |= frontier
        frontier = edges[frontier].any(0) & ~seen
    return seen
