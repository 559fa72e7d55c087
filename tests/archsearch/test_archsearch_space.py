"""Search spaces: text, checking, drawing, graphs, and definitions in JSON."""

from __future__ import annotations

import copy
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from huaben.archsearch.space import (
    Axis,
    CellSpace,
    Count,
    GraphBatch,
    MixedSpace,
    NASBench201,
    SearchSpace,
    SequenceSpace,
    TransNASMacro,
    TransNASMicro,
    load_space,
)
from huaben.errors import ConfigError, DataError, ShapeError

MODEL: dict[str, Any] = {
    "version": 1,
    "type": "mixed",
    "name": "dit",
    "axes": [
        {"name": "depth", "type": "integer", "low": 4, "high": 12, "step": 2},
        {"name": "width", "type": "ordinal", "choices": [64, 128, 256]},
        {"name": "positions", "type": "categorical", "choices": ["rope", "dape"]},
        {"name": "kernel", "type": "integer", "low": 1, "high": 3, "when": {"positions": ["dape"]}},
        {"name": "skip", "type": "categorical", "choices": [True, False], "when": {"kernel": [2, 3]}},
    ],
}
CELL: dict[str, Any] = {
    "version": 1,
    "type": "cell-dag",
    "nodes": 4,
    "ops": ["none", "skip", "conv1x1", "conv3x3"],
    "edges": [[0, 1], [0, 2], [1, 2], [0, 3], [1, 3], [2, 3]],
    "null_op": "none",
    "input": 0,
    "output": 3,
    "encode": "64-41414-{0}_{1}{2}_{3}{4}{5}",
    "constraints": [{"reachable": True}],
}
SPACES: list[Callable[[], SearchSpace]] = [
    TransNASMicro,
    TransNASMacro,
    NASBench201,
    lambda: TransNASMicro(reachable=True),
    lambda: load_space(MODEL),
    lambda: SequenceSpace(ops=("conv", "pool"), length=(1, 5), counts=[Count(ops=("pool",), low=1, high=2)]),
]


@pytest.mark.parametrize("make", SPACES)
def test_every_kind_of_space_keeps_its_promises(make: Callable[[], SearchSpace]) -> None:
    space, rng = make(), np.random.default_rng(0)
    whole = list(space.enumerate())
    assert len(whole) == len(set(whole)) == space.size
    assert whole == sorted(whole) or not isinstance(space, CellSpace)
    inside = set(whole)
    for _ in range(50):
        arch = space.sample(rng)
        changed = space.mutate(arch, rng)
        assert arch in inside and changed in inside and changed != arch
        assert space.parse(space.format(arch)) == arch
        assert space.from_values(space.values(arch)) == arch
        assert space.canonical(arch) == space.canonical(space.parse(space.format(arch)))
    assert load_space(json.loads(json.dumps(space.definition()))) == space
    assert space.fingerprint() == make().fingerprint()


@pytest.mark.parametrize("make", SPACES)
def test_drawing_is_uniform_over_the_space(make: Callable[[], SearchSpace]) -> None:
    space = make()
    if space.size > 200:
        return
    counts = dict.fromkeys(space.enumerate(), 0)
    rng = np.random.default_rng(1)
    for _ in range(60 * space.size):
        counts[space.sample(rng)] += 1
    assert min(counts.values()) > 25 and max(counts.values()) < 110


@pytest.mark.parametrize("make", SPACES)
def test_encoding_all_at_once_equals_one_by_one(make: Callable[[], SearchSpace]) -> None:
    space, rng = make(), np.random.default_rng(2)
    archs = [space.sample(rng) for _ in range(12)]
    batch = space.encode(archs)
    assert batch.nodes.dtype == batch.adjacency.dtype == batch.extra.dtype == torch.float32
    assert batch.mask.dtype == torch.bool and batch.extra.shape == (12, 0)
    for place, arch in enumerate(archs):
        single = space.encode([arch])
        taken = batch.take([place])
        for name in ("nodes", "adjacency", "mask"):
            assert torch.equal(getattr(single, name), getattr(taken, name)), name
    # A graph has no cycle: powers of its adjacency vanish. Padding has no edges, and every node leads to the output.
    reach = torch.linalg.matrix_power(batch.adjacency.double(), batch.num_nodes)
    assert not reach.any()
    padding = ~batch.mask
    assert not batch.adjacency[padding].any() and not batch.adjacency.transpose(1, 2)[padding].any()
    assert batch.mask[:, batch.output].all() and not batch.adjacency[:, batch.output].any()
    assert space.encode([]).nodes.shape == (0, *batch.nodes.shape[1:])


def test_4096_cells_are_encoded_in_well_under_a_second() -> None:
    space = TransNASMicro()
    whole = list(space.enumerate())
    space.encode(whole[:1])
    start = time.process_time()
    batch = space.encode(whole)
    assert time.process_time() - start < 0.5
    assert batch.nodes.shape == (4096, 8, 6)
    assert len(set(map(tuple, batch.nodes.argmax(2).tolist()))) == 4096


def test_micro_text_is_the_benchmarks() -> None:
    space = TransNASMicro()
    assert space.parse("64-41414-1_02_333") == (1, 0, 2, 3, 3, 3)
    assert space.format((3, 1, 2, 0, 0, 1)) == "64-41414-3_12_001"


def paths_of_cell(codes: tuple[int, ...]) -> set[tuple[int, ...]]:
    """Return the operations met on each path of the real cell, by walking its nodes."""
    edges = dict(zip([(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)], codes, strict=True))
    found = set()
    for length in range(3):
        for inner in itertools.permutations((1, 2), length):
            nodes = (0, *inner, 3)
            steps = list(itertools.pairwise(nodes))
            if all(step in edges for step in steps):
                found.add(tuple(edges[step] for step in steps))
    return found


def paths_of_graph(batch: GraphBatch, place: int) -> set[tuple[int, ...]]:
    """Return the labels met on each path from the input to the output node of a line graph."""
    labels, follows = batch.nodes[place].argmax(1).tolist(), batch.adjacency[place]

    def walk(node: int) -> list[tuple[int, ...]]:
        if node == batch.output:
            return [()]
        rest = [path for after in follows[node].nonzero().flatten().tolist() for path in walk(after)]
        return [(labels[node], *path) for path in rest]

    return {path[1:] for path in walk(0)}


def test_line_graph_has_exactly_the_paths_of_the_real_cell() -> None:
    space = TransNASMicro()
    expected = np.zeros((8, 8))
    names = ["in", *"abcdef", "out"]
    for tail, heads in {"in": "abd", "a": "ce", "b": "f", "c": "f"}.items():
        for head in heads:
            expected[names.index(tail), names.index(head)] = 1
    for tail in "def":
        expected[names.index(tail), 7] = 1
    assert np.array_equal(space.line_graph, expected)
    archs = [(1, 2, 3, 0, 1, 2), (0, 1, 2, 3, 0, 3), (3, 2, 1, 1, 2, 0)]
    batch = space.encode(archs)
    for place, arch in enumerate(archs):
        assert paths_of_graph(batch, place) == paths_of_cell(arch)


def test_macro_is_a_chain_with_channels_and_resolution() -> None:
    space = TransNASMacro()
    assert space.size == 3256
    arch = space.parse("64-1242-basic")
    assert arch == (1, 2, 4, 2, 0, 0) and space.format(arch) == "64-1242-basic"
    batch = space.encode([arch])
    assert batch.mask[0].tolist() == [True] * 5 + [False] * 2 + [True]
    assert batch.nodes[0, :, :7].argmax(1)[batch.mask[0]].tolist() == [5, 1, 2, 4, 2, 6]
    assert batch.adjacency[0].nonzero().tolist() == [[0, 1], [1, 2], [2, 3], [3, 4], [4, 7]]
    assert batch.nodes[0, :, 7][batch.mask[0]].tolist() == [0, 0, 1, 2, 3, 3]  # log2 of channels over the stem's
    assert batch.nodes[0, :, 8][batch.mask[0]].tolist() == [0, 0, 0, -1, -1, -1]


def test_mixed_axes_that_do_not_exist_are_skipped() -> None:
    space = load_space(MODEL)
    assert isinstance(space, MixedSpace) and space.size == 5 * 3 * (1 + 1 + 2 * 2)
    arch = space.parse('{"depth": 8, "width": 64, "positions": "dape", "kernel": 1}')
    assert arch == (2, 0, 1, 0, 0)
    assert space.check((2, 0, 0, 2, 1)) == (2, 0, 0, 0, 0)  # what does not exist is 0
    batch = space.encode([arch, (0, 0, 1, 2, 1)])
    assert batch.mask.tolist() == [[True] * 5 + [False, True], [True] * 7]
    assert batch.adjacency[0].nonzero().tolist() == [[0, 1], [1, 2], [2, 3], [3, 4], [4, 6]]
    assert space.values(arch) == {"depth": 8, "width": 64, "positions": "dape", "kernel": 1}
    with pytest.raises(DataError, match="'kernel' is given, but exists only where 'positions'"):
        space.from_values({"depth": 8, "width": 64, "positions": "rope", "kernel": 1})
    with pytest.raises(DataError, match="did you mean 'depth'"):
        space.from_values({"dept": 8, "width": 64, "positions": "rope"})
    with pytest.raises(DataError, match=r"128\.5 is no choice of axis 'width'"):
        space.from_values({"depth": 8, "width": 128.5, "positions": "rope"})
    with pytest.raises(DataError, match="is not JSON"):
        space.parse("depth=8")


def test_true_is_not_one() -> None:
    space = MixedSpace([Axis(name="x", choices=(1, True, "1"))])
    assert [space.parse(space.format((code,))) for code in range(3)] == [(0,), (1,), (2,)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("64-41414-4_02_333", r"position 0 \(0->1\) of '64-41414-4_02_333' is the unknown operation '4'"),
        ("64-41414-1_0x_333", r"position 2 \(1->2\) .* unknown operation 'x'"),
        ("64-41414-1_02_33", "is not of the form"),
        ("64-41414-1_02_3333", "is not of the form"),
        ("64-41414-1_02_333\n", "is not of the form"),
        ("", "is not of the form"),
        ("64-41414-1_02_33٣", "unknown operation"),
    ],
)
def test_bad_micro_text_is_named(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TransNASMicro().parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("64-1252-basic", "position 2 of '64-1252-basic' is the unknown operation '5'"),
        ("64-124-basic", "has 3 operations, expected 4 to 6"),
        ("64-1111-basic", "has 0 of {2, 4}, expected 1 to 3"),
        ("64-2222-basic", "has 4 of {2, 4}, expected 1 to 3"),
        ("64-basic", "is not of the form 64-{}-basic"),
        ("64--basic", "has 0 operations"),
    ],
)
def test_bad_macro_text_is_named(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TransNASMacro().parse(text)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ((1, 2, 3), "has 3 positions, expected 6"),
        ((0, 0, 0, 0, 0, 4), r"position 5 \(2->3\) .* is 4, expected 0 to 3"),
        ((0, 0, 0, -1, 0, 0), r"position 3 \(0->3\)"),
        ((0, 0, True, 0, 0, 0), "position 2"),
        ((0, 0.5, 0, 0, 0, 0), "position 1"),
        ((0, "1", 0, 0, 0, 0), "position 1"),
    ],
)
def test_bad_codes_are_named(codes: Any, message: str) -> None:
    space = TransNASMicro()
    with pytest.raises(DataError, match=message):
        space.check(codes)
    with pytest.raises(DataError, match=f"architecture 1: .*{message}"):
        space.encode([(0,) * 6, codes])


def test_padding_belongs_to_the_end() -> None:
    with pytest.raises(DataError, match="padding before position 4"):
        TransNASMacro().check((1, 2, 0, 4, 2, 0))


def test_disconnected_cells_are_refused_where_asked() -> None:
    TransNASMicro().check((0, 0, 0, 0, 1, 1))
    with pytest.raises(DataError, match="not reached from its input"):
        TransNASMicro(reachable=True).parse("64-41414-0_00_011")
    assert TransNASMicro(reachable=True).size == 4096 - 169 == len(list(TransNASMicro(reachable=True).enumerate()))


def edited(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    *steps, last = path.split("/")
    at: Any = changed
    for step in steps:
        at = at[int(step)] if isinstance(at, list) else at[step]
    if isinstance(at, list):
        at.append(value) if last == "-" else at.__setitem__(int(last), value)
    else:
        at[last] = value
    return changed


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "^/: lacks 'version'"),
        ({"version": 2, "type": "cell-dag"}, "^/version: 2"),
        ({"version": 1, "type": "cell"}, "^/type: 'cell' is none of"),
        (edited(CELL, "nodez", 4), "^/nodez: unknown field.*did you mean 'nodes'"),
        (edited(CELL, "nodes", "4"), "^/nodes: found a string, expected a whole number"),
        (edited(CELL, "nodes", True), "^/nodes: found a truth value"),
        (edited(CELL, "ops/2", 7), "^/ops/2: found the number 7, expected a string"),
        (edited(CELL, "ops/2", "none"), "^/ops/2: 'none' occurs twice"),
        (edited(CELL, "edges/3", [0]), "^/edges/3: has 1 items, expected 2"),
        (edited(CELL, "edges/3/1", 4), "^/edges/3: 0->4 leaves the nodes"),
        (edited(CELL, "edges/5", [0, 1]), "^/edges/5: 0->1 occurs twice"),
        (edited(CELL, "edges/2", [2, 2]), "^/edges/2: 2->2 is a cycle"),
        (edited(CELL, "edges/0", [1, 0]), "^/edges/0: 1->0 ends in the input"),
        (edited(CELL, "edges/-", [2, 1]), r"^/edges/\d: the edges .*->.*->.* form a cycle"),
        (edited(CELL, "null_op", "zero"), "^/null_op: 'zero' is none of the ops"),
        (edited(CELL, "output", 0), "^/output: node 0 is the input, too"),
        (edited(CELL, "encode", "{0}_{1}{2}_{3}{4}"), "^/encode: .* expected each of 0 to 5 once"),
        (edited(CELL, "encode", "{0:op}{1:op}{2}{3}{4}{5}"), "^/encode: field 1 follows another"),
        (edited(CELL, "constraints/0/reachable", 1), "^/constraints/0/reachable: .*expected true or false"),
        (edited(MODEL, "axes/1/choices", []), "^/axes/1/choices: no choice"),
        (edited(MODEL, "axes/1/choices/2", None), "^/axes/1/choices/2: expected a text"),
        (edited(MODEL, "axes/1/choices/2", 64), "^/axes/1/choices/2: 64 occurs twice"),
        (edited(MODEL, "axes/1/name", "depth"), "^/axes/1/name: 'depth' is empty or repeated"),
        (edited(MODEL, "axes/0/high", 2), "^/axes/0/high: 2 is below low"),
        (edited(MODEL, "axes/0/step", 0), "^/axes/0/step: 0 is below 1"),
        (edited(MODEL, "axes/3/when", {"place": ["dape"]}), "^/axes/3/when: 'place' is no earlier axis"),
        (edited(MODEL, "axes/2/when", {"kernel": [1]}), "^/axes/2/when: 'kernel' is no earlier axis"),
        (edited(MODEL, "axes/3/when", {"positions": ["alibi"]}), "^/axes/3/when: 'alibi' is no choice"),
        (edited(MODEL, "axes/3/when", {}), "^/axes/3/when: names 0 axes"),
        ({"version": 1, "type": "sequence", "ops": ["a"], "length": [2, 1]}, "^/length"),
        ({"version": 1, "type": "sequence", "ops": ["a", "bb"], "length": [1, 2], "separator": ""}, "^/separator"),
        (
            {"version": 1, "type": "sequence", "ops": ["a"], "length": [1, 2], "counts": [{"ops": ["b"]}]},
            "^/counts/0/ops: 'b' is none of a",
        ),
        (
            {"version": 1, "type": "sequence", "ops": ["a"], "length": [1, 2], "counts": [{"ops": ["a"], "min": 3}]},
            "^/counts/0: min 3, max 2",
        ),
        (
            {"version": 1, "type": "sequence", "ops": ["a"], "length": [1, 2], "scale": {"c": {"a": -1}}},
            "^/scale/c/a: -1.0 is not a positive",
        ),
    ],
)
def test_bad_definitions_point_to_the_fault(document: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_space(document)


def test_spaces_from_files_and_names(tmp_path: Path) -> None:
    path = tmp_path / "cell.json"
    path.write_text(json.dumps(CELL), encoding="utf-8")
    space = load_space(path)
    assert isinstance(space, CellSpace) and space.size == 3927
    assert space.parse("64-41414-1_02_333") == TransNASMicro().parse("64-41414-1_02_333")
    assert load_space("transnas-macro") == TransNASMacro()
    path.write_text('{"version": 1, "version": 1}', encoding="utf-8")
    with pytest.raises(ConfigError, match="'version' occurs twice"):
        load_space(path)
    path.write_text('{"version": NaN}', encoding="utf-8")
    with pytest.raises(ConfigError, match="NaN is not a JSON number"):
        load_space(path)
    path.write_text(json.dumps(edited(CELL, "nodes", 1)), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"cell\.json: /nodes: 1 is below 2"):
        load_space(path)
    with pytest.raises(ConfigError, match="neither a file nor a known space"):
        load_space(tmp_path / "absent.json")


def test_large_spaces_are_sampled_not_enumerated() -> None:
    edges = [(tail, head) for head in range(1, 7) for tail in range(head)]
    space = CellSpace(nodes=7, ops=("none", "a", "b"), edges=edges, null_op="none", reachable=True)
    assert 10**9 < space.size < 3 ** len(edges)
    with pytest.raises(ConfigError, match="use sample and mutate"):
        space.enumerate()
    rng = np.random.default_rng(0)
    found = space.sample_distinct(20, rng)
    assert len({space.canonical(arch) for arch in found}) == 20
    assert space.encode(found).nodes.shape == (20, len(edges) + 2, 5)


def test_sample_distinct_stops_where_the_space_ends() -> None:
    space, rng = TransNASMicro(), np.random.default_rng(0)
    every = space.sample_distinct(5000, rng)
    assert len(every) == 2668
    keys = {space.canonical(arch) for arch in every}
    assert space.sample_distinct(3, rng, exclude=keys) == []


@st.composite
def wirings(draw: st.DrawFn) -> CellSpace:
    """A random cell space whose edges run from lower to higher nodes."""
    nodes = draw(st.integers(2, 5))
    every = [(tail, head) for tail, head in itertools.combinations(range(nodes), 2)]
    edges = draw(st.lists(st.sampled_from(every), min_size=1, max_size=6, unique=True))
    return CellSpace(nodes=nodes, ops=("none", "a", "b"), edges=edges, null_op="none")


@settings(max_examples=60, deadline=None)
@given(wirings())
def test_the_number_of_connected_cells_is_counted_right(space: CellSpace) -> None:
    counted = sum(space.is_connected(arch) for arch in space.enumerate())
    if not counted:
        with pytest.raises(ConfigError, match="no choice of operations connects"):
            CellSpace(nodes=space.num_nodes, ops=space.ops, edges=space.edges, null_op="none", reachable=True)
    else:
        connected = CellSpace(nodes=space.num_nodes, ops=space.ops, edges=space.edges, null_op="none", reachable=True)
        assert connected.size == counted == len(list(connected.enumerate()))


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(8)), st.lists(st.tuples(*[st.integers(0, 3)] * 6), min_size=1, max_size=4))
def test_relabelling_line_graph_nodes_commutes_with_a_graph_layer(
    order: list[int], archs: list[tuple[int, ...]]
) -> None:
    batch = TransNASMicro().encode(archs)
    moved = batch.relabel(order)

    def layer(graphs: GraphBatch) -> torch.Tensor:
        weight = torch.linspace(-1, 1, graphs.num_features * 3).view(graphs.num_features, 3)
        return torch.relu((graphs.adjacency + torch.eye(graphs.num_nodes)) @ graphs.nodes @ weight)

    assert torch.allclose(layer(moved), layer(batch)[:, order], atol=1e-6)
    assert torch.allclose(layer(moved)[:, moved.output], layer(batch)[:, batch.output], atol=1e-6)
    back = moved.relabel([order.index(place) for place in range(8)])
    assert torch.equal(back.nodes, batch.nodes) and torch.equal(back.adjacency, batch.adjacency)


def test_graph_batches_are_taken_extended_and_checked() -> None:
    batch = TransNASMicro().encode([(1,) * 6, (2,) * 6, (3,) * 6], extra=np.arange(6.0).reshape(3, 2))
    assert batch.num_extra == 2 and batch.extra.dtype == torch.float32
    assert batch.take([2, 0]).extra.tolist() == [[4, 5], [0, 1]]
    assert torch.equal(batch.take(torch.tensor([True, False, True])).nodes, batch.nodes[[0, 2]])
    assert len(batch.take([])) == 0
    wider = batch.with_global_node()
    assert wider.nodes.shape == (3, 9, 7) and wider.output == 8 and wider.num_extra == 2
    assert wider.adjacency[:, :8, 8].all() and not wider.adjacency[:, 8].any()
    macro = TransNASMacro()
    padded = macro.encode([macro.parse("64-1242-basic")]).with_global_node()
    assert padded.adjacency[0, :, padded.output].tolist() == [1, 1, 1, 1, 1, 0, 0, 1, 0]
    with pytest.raises(ShapeError, match=r"expected \(3, e\)"):
        batch.with_extra(np.zeros((2, 1)))
    with pytest.raises(ShapeError, match="cannot select"):
        batch.take([True, False])
    with pytest.raises(ShapeError, match="permutation"):
        batch.relabel([0, 0, 1, 2, 3, 4, 5, 6])
    with pytest.raises(ShapeError, match="expected"):
        GraphBatch(batch.nodes, batch.adjacency[:2], batch.mask, batch.output, batch.extra)


def test_the_rooms_names_lead_somewhere() -> None:
    import huaben.archsearch as room

    assert sorted(room.__all__) == sorted(room._HOME)
    assert all(getattr(room, name) is not None for name in room.__all__)
    assert set(room.__all__) <= set(dir(room))
    with pytest.raises(AttributeError, match="no attribute 'ArchGraf'"):
        room.ArchGraf  # noqa: B018
