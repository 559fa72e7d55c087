"""Canonical forms: the known classes of the micro space, and exactness on random cells."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from huaben.archsearch.isomorphism import Edge, certificate
from huaben.archsearch.space import CellSpace, Rule, TransNASMicro

MICRO = TransNASMicro()
ARCHS = list(MICRO.enumerate())


@pytest.mark.parametrize(
    ("rule", "isomorphic", "classes"),
    [
        ("none", False, 4096),
        ("strict", False, 2980),
        ("strict", True, 2668),
        ("loose", False, 2128),
        ("loose", True, 1948),
    ],
)
def test_micro_has_the_known_number_of_classes(rule: Rule, isomorphic: bool, classes: int) -> None:
    assert len({MICRO.canonical(arch, rule=rule, isomorphic=isomorphic) for arch in ARCHS}) == classes


def test_micro_has_169_disconnected_cells() -> None:
    lost = [arch for arch in ARCHS if not MICRO.is_connected(arch)]
    assert len(lost) == 169
    assert len({MICRO.canonical(arch, rule="loose") for arch in lost}) == 1
    assert not any(arch[3] for arch in lost)


def test_strict_is_the_default() -> None:
    assert MICRO.canonical((1, 2, 0, 0, 3, 0)) == MICRO.canonical((1, 0, 0, 0, 3, 0))  # 0->2 never reaches the output
    assert MICRO.canonical((0, 0, 0, 1, 3, 0)) != MICRO.canonical((0, 0, 0, 1, 0, 0))  # 1->3 adds a constant
    assert MICRO.canonical((0, 0, 0, 1, 3, 0), rule="loose") == MICRO.canonical((0, 0, 0, 1, 0, 0), rule="loose")
    assert TransNASMicro(rule="none").canonical((1, 2, 0, 0, 3, 0)) == "64-41414-1_20_030"


def test_swapping_inner_nodes_without_an_edge_between_them_changes_nothing() -> None:
    for a, b, d, e, f in itertools.product(range(4), repeat=5):
        assert MICRO.canonical((a, b, 0, d, e, f)) == MICRO.canonical((b, a, 0, d, f, e))


@settings(max_examples=80, deadline=None)
@given(st.tuples(*[st.integers(0, 3)] * 6), st.sampled_from(["strict", "loose"]))
def test_canonical_form_is_idempotent(arch: tuple[int, ...], rule: Rule) -> None:
    simple = MICRO.simplify(arch, rule=rule)
    assert MICRO.simplify(simple, rule=rule) == simple
    assert MICRO.canonical(simple, rule=rule) == MICRO.canonical(arch, rule=rule)


def function_of(arch: tuple[int, ...]) -> float:
    """Run a stand-in for the cell: each operation its own non-linear function that keeps 0 from being 0."""
    ops = [lambda x: 0 * x, lambda x: x, lambda x: np.tanh(1.3 * x) + 0.31, lambda x: np.sin(2.1 * x) + 0.17]
    a, b, c, d, e, f = (ops[code] for code in arch)
    x = 0.7
    one = a(x)
    two = b(x) + c(one)
    return float(d(x) + e(one) + f(two))


def test_one_class_computes_one_function_and_two_classes_two() -> None:
    values: dict[str, float] = {}
    for arch in ARCHS:
        found = function_of(arch)
        assert values.setdefault(MICRO.canonical(arch), found) == pytest.approx(found, abs=1e-12)
    # The identity makes some different wirings equal (skip after skip), so classes may share a value, never the reverse.
    assert len({round(value, 9) for value in values.values()}) <= 2668


@st.composite
def cells(draw: st.DrawFn) -> list[Edge]:
    """A random labelled cell over nodes 0 (input) to 5 (output)."""
    every = list(itertools.combinations(range(6), 2))
    pairs = draw(st.lists(st.sampled_from(every), max_size=12, unique=True))
    return [(tail, head, draw(st.integers(1, 2))) for tail, head in pairs]


@settings(max_examples=80, deadline=None)
@given(cells(), st.permutations([1, 2, 3, 4]))
def test_renaming_inner_nodes_keeps_the_certificate(edges: list[Edge], order: list[int]) -> None:
    names = [0, *order, 5]
    renamed = sorted((names[tail], names[head], op) for tail, head, op in edges)
    assert certificate(edges, 0, 5) == certificate(renamed, 0, 5)


@settings(max_examples=60, deadline=None)
@given(cells(), cells())
def test_certificates_agree_with_brute_force(first: list[Edge], second: list[Edge]) -> None:
    def key(edges: list[Edge]) -> Any:
        orders = itertools.permutations([1, 2, 3, 4])
        return min(
            tuple(sorted(((0, *order, 5)[tail], (0, *order, 5)[head], op) for tail, head, op in edges))
            for order in orders
        )

    assert (certificate(first, 0, 5) == certificate(second, 0, 5)) == (key(first) == key(second))


def test_certificates_of_every_small_cell_agree_with_brute_force() -> None:
    every = list(itertools.combinations(range(5), 2))
    swaps = [(0, *order, 4) for order in itertools.permutations([1, 2, 3])]
    partition: dict[str, Any] = {}
    seen: dict[Any, str] = {}
    for bits in range(1 << len(every)):
        edges = [(t, h, 1) for place, (t, h) in enumerate(every) if bits >> place & 1]
        best = min(tuple(sorted((names[t], names[h], op) for t, h, op in edges)) for names in swaps)
        found = certificate(edges, 0, 4)
        assert partition.setdefault(found, best) == best
        assert seen.setdefault(best, found) == found


def test_interchangeable_nodes_cost_no_factorial() -> None:
    wide = [edge for node in range(1, 20) for edge in ((0, node, 1), (node, 20, 2))]
    assert certificate(wide, 0, 20).count(" ") == len(wide) - 1


def test_certificates_agree_with_networkx() -> None:
    networkx = pytest.importorskip("networkx")
    rng = np.random.default_rng(0)
    space = CellSpace(
        nodes=5,
        ops=("none", "a", "b"),
        edges=list(itertools.combinations(range(5), 2)),
        null_op="none",
        rule="strict",
    )

    def graph(arch: tuple[int, ...]) -> Any:
        found = networkx.DiGraph()
        found.add_node(0, role="input")
        found.add_node(4, role="output")
        for tail, head, op in space.active_edges(arch):
            found.add_edge(tail, head, op=op)
        return found

    sample = [space.sample(rng) for _ in range(20)]
    sample += [space.mutate(arch, rng) for arch in sample]
    for first, second in zip(sample, reversed(sample), strict=True):
        same = networkx.is_isomorphic(
            graph(first),
            graph(second),
            node_match=lambda a, b: a.get("role") == b.get("role"),
            edge_match=lambda a, b: a["op"] == b["op"],
        )
        assert same == (space.canonical(first) == space.canonical(second))
