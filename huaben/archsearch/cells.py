"""Cells: a fixed wiring of nodes whose edges each carry one operation.

Graph networks label nodes while a cell labels edges, so a cell is encoded as its *line graph*: one graph node per edge
of the cell, between an input and an output node; an edge feeds the edges that start where it ends.

Source: TransNAS-Bench-101 (Duan et al., CVPR 2021, arXiv:2105.11871) for :class:`TransNASMicro`.
Differs: Arch-Graph (arXiv:2204.05941) encodes architectures with a graph network; its abstract does not say how cells
become graphs, the line graph is our choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .base import SAMPLE_TRIES, Arch, Axis, Rule, SearchSpace
from .graphs import GraphBatch, one_hot
from .isomorphism import certificate, prune, reachable
from .textforms import TextForm


class CellSpace(SearchSpace):
    """All ways to put one of ``ops`` on each of ``edges``.

    Canonical forms, by ``rule``:

    - "none": every architecture is its own;
    - "strict": edges that never reach the output do not count; the function is unchanged;
    - "loose": edges that the input does not feed do not count either; they add learned constants only.

    Both simplifications need ``null_op``. With ``isomorphic``, cells that differ by renaming inner nodes are the same.

    Args:
        nodes: number of cell nodes; each sums its incoming edges.
        ops: names of the operations; a code is an index into them.
        edges: pairs (tail, head), in the order of an architecture's positions.
        null_op: the operation that is no edge at all, if there is one.
        input: node that holds the cell's input; no edge may end there.
        output: node that holds its output (default: the last); no edge may start there.
        encode: template of the text form, see :mod:`~huaben.archsearch.textforms`; default codes joined by spaces.
        reachable: whether to refuse cells whose output the input does not reach.
        rule, isomorphic: the default canonical form.
        name: for reports.

    Raises:
        ConfigError: for edges that form a cycle, occur twice or leave the nodes, and for unknown or repeated names;
            messages start with the JSON pointer of the field.
    """

    def __init__(
        self,
        *,
        nodes: int,
        ops: Sequence[str],
        edges: Sequence[Sequence[int]],
        null_op: str | None = None,
        input: int = 0,
        output: int | None = None,
        encode: str | None = None,
        reachable: bool = False,
        rule: Rule = "strict",
        isomorphic: bool = True,
        name: str = "cell",
    ) -> None:
        self.name = name
        self.num_nodes = nodes
        self.ops = tuple(ops)
        self.edges: tuple[tuple[int, int], ...] = tuple((int(tail), int(head)) for tail, head in edges)
        self.input = input
        self.output = nodes - 1 if output is None else output
        self.rule = rule
        self.isomorphic = isomorphic
        self.refuse_disconnected = reachable
        _check_wiring(nodes, self.ops, self.edges, self.input, self.output)
        if null_op is not None and null_op not in self.ops:
            raise ConfigError(f"/null_op: {null_op!r} is none of the ops {', '.join(self.ops)}")
        if rule not in ("none", "strict", "loose"):
            raise ConfigError(f"/rule: {rule!r} is none of none, strict, loose")
        self.null = None if null_op is None else self.ops.index(null_op)
        self.axes = tuple(Axis(name=f"{tail}->{head}", choices=self.ops) for tail, head in self.edges)
        template = encode if encode is not None else " ".join(f"{{{place}}}" for place in range(len(self.edges)))
        self.text = TextForm(template, [self.ops] * len(self.edges), [axis.name for axis in self.axes])
        if reachable and not self.size:
            raise ConfigError("/edges: no choice of operations connects input and output", hint="add edges")

    @cached_property
    def size(self) -> int:  # type: ignore[override]
        total = len(self.ops) ** len(self.edges)
        return total - self._num_disconnected() if self.refuse_disconnected else total

    def _num_disconnected(self) -> int:
        """Count the cells without a path, node by node in topological order over the sets of reached nodes."""
        states: dict[frozenset[int], int] = {frozenset([self.input]): 1}
        every, other = len(self.ops), 1 if self.null is not None else 0
        for node in _topological(self.num_nodes, self.edges):
            tails = [tail for tail, head in self.edges if head == node]
            if node == self.input or not tails:
                continue
            following: dict[frozenset[int], int] = {}
            for reached, count in states.items():
                total = every ** len(tails)
                fed = sum(tail in reached for tail in tails)
                missed = other**fed * every ** (len(tails) - fed)
                for state, ways in ((reached, missed), (reached | {node}, total - missed)):
                    if ways:
                        following[state] = following.get(state, 0) + count * ways
            states = following
        return sum(count for reached, count in states.items() if self.output not in reached)

    def format(self, arch: Arch) -> str:
        return self.text.render(self.check(arch))

    def parse(self, text: str) -> Arch:
        return self.check(self.text.read(text, self.name))

    def _constrain(self, arch: Arch) -> Arch:
        if self.refuse_disconnected and not self.is_connected(arch):
            raise DataError(
                f"{self.name}: the output of {self.text.render(arch)!r} is not reached from its input",
                hint="give a path of operations, or a space without the constraint reachable",
            )
        return arch

    def is_connected(self, arch: Arch) -> bool:
        """Return whether a path of operations leads from input to output."""
        used = [edge for edge, op in zip(self.edges, arch, strict=True) if op != self.null]
        return self.output in reachable(used, self.input)

    def canonical(self, arch: Arch, *, rule: Rule | None = None, isomorphic: bool | None = None) -> str:
        """Return the canonical form as a text of its own, such as ``in>1:3 1>out:2`` (tail, head, code), or the
        architecture's text where nothing may be simplified.

        Raises:
            DataError: for an architecture outside the space.
        """
        arch, rule = self.check(arch), rule or self.rule
        if rule == "none":
            return self.text.render(arch)
        edges = self.active_edges(arch, rule=rule)
        if self.isomorphic if isomorphic is None else isomorphic:
            return certificate(edges, self.input, self.output)
        return " ".join(f"{tail}>{head}:{op}" for tail, head, op in edges)

    def active_edges(self, arch: Arch, *, rule: Rule | None = None) -> list[tuple[int, int, int]]:
        """Return the edges that count under ``rule``, as (tail, head, code)."""
        rule = rule or self.rule
        edges = [
            (tail, head, op) for (tail, head), op in zip(self.edges, self.check(arch), strict=True) if op != self.null
        ]
        return edges if rule == "none" else prune(edges, self.input, self.output, fed=rule == "loose")

    def simplify(self, arch: Arch, *, rule: Rule | None = None) -> Arch:
        """Return the architecture with the null operation on every edge that does not count."""
        kept = {(tail, head) for tail, head, _ in self.active_edges(arch, rule=rule)}
        if self.null is None:
            return arch
        return tuple(op if edge in kept else self.null for edge, op in zip(self.edges, arch, strict=True))

    def _walk(self) -> Iterator[Arch]:
        for arch in product(range(len(self.ops)), repeat=len(self.edges)):
            if not self.refuse_disconnected or self.is_connected(arch):
                yield arch

    def sample(self, rng: np.random.Generator) -> Arch:
        for _ in range(SAMPLE_TRIES):
            arch = tuple(int(code) for code in rng.integers(len(self.ops), size=len(self.edges)))
            if not self.refuse_disconnected or self.is_connected(arch):
                return arch
        raise ConfigError(
            f"{self.name}: none of {SAMPLE_TRIES} draws connects input and output", hint="give the cell more edges"
        )

    def mutate(self, arch: Arch, rng: np.random.Generator) -> Arch:
        arch = self.check(arch)
        count = len(self.ops)
        for move in rng.permutation(len(arch) * (count - 1)):
            place, step = divmod(int(move), count - 1)
            changed = (*arch[:place], (arch[place] + 1 + step) % count, *arch[place + 1 :])
            if not self.refuse_disconnected or self.is_connected(changed):
                return changed
        raise ConfigError(f"{self.name}: {arch} has no neighbour", hint="give the space more operations")

    @cached_property
    def line_graph(self) -> np.ndarray:
        """float32 (n, n) over input, edges in order, output: 1 at ``[i, j]`` where i feeds j."""
        tails = np.array([-1, *(tail for tail, _ in self.edges), self.output])
        heads = np.array([self.input, *(head for _, head in self.edges), -2])
        return (heads[:, None] == tails[None, :]).astype(np.float32)

    def encode(self, archs: Sequence[Arch], *, extra: np.ndarray | Tensor | None = None) -> GraphBatch:
        codes = self._codes(archs)
        count, size, ops = len(codes), len(self.edges) + 2, len(self.ops)
        labels = np.empty((count, size), dtype=np.int64)
        labels[:, 0], labels[:, 1:-1], labels[:, -1] = ops, codes, ops + 1
        batch = GraphBatch(
            nodes=torch.from_numpy(one_hot(labels, ops + 2)),
            adjacency=torch.from_numpy(self.line_graph).expand(count, size, size),
            mask=torch.ones(count, size, dtype=torch.bool),
            output=size - 1,
            extra=torch.zeros(count, 0),
        )
        return batch if extra is None else batch.with_extra(extra)

    def definition(self) -> dict[str, Any]:
        return {
            "version": 1,
            "type": "cell-dag",
            "name": self.name,
            "nodes": self.num_nodes,
            "ops": list(self.ops),
            "edges": [list(edge) for edge in self.edges],
            "null_op": None if self.null is None else self.ops[self.null],
            "input": self.input,
            "output": self.output,
            "encode": self.text.template,
            "constraints": [{"reachable": True}] if self.refuse_disconnected else [],
            "rule": self.rule,
            "isomorphic": self.isomorphic,
        }


class TransNASMicro(CellSpace):
    """The 4,096 cells of TransNAS-Bench-101, written ``64-41414-a_bc_def``.

    The cell has nodes 0 to 3; positions a to f are the edges 0->1, 0->2, 1->2, 0->3, 1->3, 2->3; codes 0 to 3 are no
    edge, skip, 1x1 and 3x3 convolution. 169 cells are disconnected; the benchmark trained them, so they are allowed
    unless ``reachable`` is set. Classes of :meth:`canonical`: strict 2,668 (2,980 without ``isomorphic``), loose 1,948
    (2,128).

    Differs: NASLib's ``OP_NAMES`` and ``EDGE_LIST`` order operations and edges otherwise; only this order reproduces
    the benchmark's parameter counts.
    """

    def __init__(self, *, reachable: bool = False, rule: Rule = "strict", isomorphic: bool = True) -> None:
        super().__init__(
            nodes=4,
            ops=("none", "skip", "conv1x1", "conv3x3"),
            edges=((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)),
            null_op="none",
            encode="64-41414-{0}_{1}{2}_{3}{4}{5}",
            reachable=reachable,
            rule=rule,
            isomorphic=isomorphic,
            name="transnas-micro",
        )


class NASBench201(CellSpace):
    """The 15,625 cells of NAS-Bench-201 (Dong and Yang, ICLR 2020, arXiv:2001.00326), in the benchmark's own text."""

    def __init__(self, *, reachable: bool = False, rule: Rule = "strict", isomorphic: bool = True) -> None:
        super().__init__(
            nodes=4,
            ops=("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"),
            edges=((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)),
            null_op="none",
            encode="|{0:op}~0|+|{1:op}~0|{2:op}~1|+|{3:op}~0|{4:op}~1|{5:op}~2|",
            reachable=reachable,
            rule=rule,
            isomorphic=isomorphic,
            name="nasbench201",
        )


def _check_wiring(nodes: int, ops: Sequence[str], edges: Sequence[tuple[int, int]], source: int, sink: int) -> None:
    """Refuse names, nodes and edges that do not make a cell."""
    if nodes < 2:
        raise ConfigError(f"/nodes: {nodes} nodes, expected at least 2")
    if not edges:
        raise ConfigError("/edges: no edge", hint="give pairs such as [0, 1]")
    if len(ops) < 1 or any(not op for op in ops):
        raise ConfigError("/ops: expected at least one operation, each with a name")
    for place, op in enumerate(ops):
        if op in ops[:place]:
            raise ConfigError(f"/ops/{place}: {op!r} occurs twice")
    for what, node in (("input", source), ("output", sink)):
        if not 0 <= node < nodes:
            raise ConfigError(f"/{what}: node {node} is none of 0 to {nodes - 1}")
    if source == sink:
        raise ConfigError(f"/output: node {sink} is the input, too")
    for place, (tail, head) in enumerate(edges):
        where = f"/edges/{place}"
        if not (0 <= tail < nodes and 0 <= head < nodes):
            raise ConfigError(f"{where}: {tail}->{head} leaves the nodes 0 to {nodes - 1}")
        if (tail, head) in edges[:place]:
            raise ConfigError(f"{where}: {tail}->{head} occurs twice", hint="one edge carries one operation")
        if tail == head:
            raise ConfigError(f"{where}: {tail}->{head} is a cycle", hint="a cell has no cycles")
        if head == source or tail == sink:
            raise ConfigError(f"{where}: {tail}->{head} ends in the input or starts at the output")
    _topological(nodes, edges)


def _topological(nodes: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Return the nodes, tails before heads; a cycle is an error that names one of its edges."""
    waiting, order = set(range(nodes)), []
    while waiting:
        ready = sorted(node for node in waiting if not any(h == node and t in waiting for t, h in edges))
        if not ready:
            # Walk backwards from anywhere until a node repeats: that node lies on a cycle.
            node, seen = min(waiting), []
            while node not in seen:
                seen.append(node)
                node = next(t for t, h in edges if h == node and t in waiting)
            ring = [node, *reversed(seen[seen.index(node) :])]
            place = list(edges).index((ring[0], ring[1]))
            raise ConfigError(
                f"/edges/{place}: the edges {'->'.join(map(str, ring))} form a cycle", hint="a cell has no cycles"
            )
        order += ready
        waiting -= set(ready)
    return order
