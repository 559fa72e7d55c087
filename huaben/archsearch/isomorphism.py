"""When two cells are the same: pruning of edges without effect, and a canonical text of what remains.

A cell is a set of labelled edges ``(tail, head, op)`` between an input and an output node; inner nodes have no label,
so two cells that differ by renaming inner nodes compute the same function.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

Edge = tuple[int, int, int]
"""Tail node, head node, operation."""


def reachable(edges: Iterable[tuple[int, int]], start: int) -> set[int]:
    """Return the nodes on a path from ``start``, itself included."""
    follows: dict[int, list[int]] = {}
    for tail, head in edges:
        follows.setdefault(tail, []).append(head)
    seen, stack = {start}, [start]
    while stack:
        for node in follows.get(stack.pop(), ()):
            if node not in seen:
                seen.add(node)
                stack.append(node)
    return seen


def prune(edges: Collection[Edge], source: int, sink: int, *, fed: bool) -> list[Edge]:
    """Return the edges that reach ``sink``; with ``fed`` only those that ``source`` feeds, too."""
    useful = reachable([(head, tail) for tail, head, _ in edges], sink)
    alive = reachable([(tail, head) for tail, head, _ in edges], source) if fed else None
    return [edge for edge in edges if edge[1] in useful and (alive is None or edge[0] in alive)]


def certificate(edges: Collection[Edge], source: int, sink: int) -> str:
    """Return a text that two cells share exactly when a renaming of inner nodes turns one into the other.

    Weisfeiler-Lehman colour refinement separates the nodes as far as it can; where it leaves several of one colour,
    each is singled out in turn and the smallest text wins, so the answer is exact and not a hash. Nodes with the same
    neighbours are interchangeable and only one of them is tried.
    """
    nodes = sorted({source, sink, *(node for edge in edges for node in edge[:2])})
    before: dict[int, list[tuple[int, int]]] = {node: [] for node in nodes}
    after: dict[int, list[tuple[int, int]]] = {node: [] for node in nodes}
    for tail, head, op in edges:
        after[tail].append((op, head))
        before[head].append((op, tail))
    first = {node: 1 for node in nodes} | {source: 0, sink: 2}

    def refine(colours: dict[int, int]) -> dict[int, int]:
        while True:
            marks = {
                node: (
                    colours[node],
                    tuple(sorted((op, colours[other]) for op, other in before[node])),
                    tuple(sorted((op, colours[other]) for op, other in after[node])),
                )
                for node in nodes
            }
            # Gaps are left so that a node that is singled out can take the place before its colour.
            rank = {mark: 2 * place for place, mark in enumerate(sorted(set(marks.values())))}
            refined = {node: rank[marks[node]] for node in nodes}
            if len(rank) == len(set(colours.values())):
                return refined
            colours = refined

    def search(colours: dict[int, int]) -> tuple[Edge, ...]:
        colours = refine(colours)
        classes: dict[int, list[int]] = {}
        for node in nodes:
            classes.setdefault(colours[node], []).append(node)
        open_class = next((classes[colour] for colour in sorted(classes) if len(classes[colour]) > 1), None)
        if open_class is None:
            place = {node: rank for rank, node in enumerate(sorted(nodes, key=colours.__getitem__))}
            return tuple(sorted((place[tail], place[head], op) for tail, head, op in edges))
        tried, best = set(), None
        for node in open_class:
            neighbours = (frozenset(before[node]), frozenset(after[node]))
            if neighbours in tried:
                continue
            tried.add(neighbours)
            found = search({**colours, node: colours[node] - 1})
            best = found if best is None or found < best else best
        assert best is not None
        return best

    if not edges:
        return "empty"
    names = {0: "in", len(nodes) - 1: "out"}  # colours keep the input first and the output last
    return " ".join(f"{names.get(tail, tail)}>{names.get(head, head)}:{op}" for tail, head, op in search(first))
