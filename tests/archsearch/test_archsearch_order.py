"""Ordering a relation graph: acyclic, maximal, exact where it says so, and the same whatever the order of candidates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from huaben.archsearch import order as ordering
from huaben.archsearch.acyclic import (
    Reachability,
    closure,
    complete,
    forward_edges,
    greedy_acyclic,
    strong_components,
    topological_order,
)
from huaben.archsearch.exact import dynamic_programming, integer_program
from huaben.archsearch.linear_order import eades_lin_smyth, insertion, kept_weight, kwiksort
from huaben.archsearch.order import Ranking, mwas, order, top_k, trusted_relations, win_scores
from huaben.errors import ConfigError, DataError, ShapeError

ALL = [solver for solver in ordering.SOLVERS if solver != "exact_milp"]


def graph(size: int, seed: int, density: float = 1.0) -> np.ndarray:
    """A random relation graph as net weights; some weights are equal."""
    rng = np.random.default_rng(seed)
    net = np.triu(np.round(rng.normal(size=(size, size)), 1) * (rng.random((size, size)) < density), 1)
    return net - net.T


def probabilities(size: int, seed: int, noise: float = 1.0, dtype: type = np.float64) -> np.ndarray:
    """Noisy relations of a hidden order."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=size)
    logits = np.triu(truth[:, None] - truth[None, :] + noise * rng.normal(size=(size, size)), 1)
    return (0.5 + 0.5 * np.tanh((logits - logits.T) / 2)).astype(dtype)


def best_of_all(net: np.ndarray) -> float:
    return max(kept_weight(net, np.array(p)) for p in itertools.permutations(range(len(net))))


def is_acyclic(edges: np.ndarray) -> bool:
    """Peel nodes without incoming edges: an independent check."""
    alive = np.ones(len(edges), dtype=bool)
    while alive.any():
        free = alive & (edges[alive].sum(0) == 0)
        if not free.any():
            return False
        alive &= ~free
    return True


def reach(edges: np.ndarray) -> np.ndarray:
    """Reflexive transitive closure by Warshall."""
    found = edges | np.eye(len(edges), dtype=bool)
    for k in range(len(edges)):
        found |= found[:, k : k + 1] & found[k : k + 1]
    return found


def is_maximal(net: np.ndarray, edges: np.ndarray) -> bool:
    found = reach(edges)
    return all(found[j, i] for i, j in np.argwhere((net > 0) & ~edges))


# -- acyclic subgraphs


@pytest.mark.parametrize("density", [0.15, 0.5, 1.0])
def test_greedy_and_completion_are_acyclic_and_maximal(density: float) -> None:
    for seed in range(12):
        net = graph(14, seed, density)
        rng = np.random.default_rng(seed)
        for edges in (greedy_acyclic(net), complete(net, rng.permutation(14))):
            assert is_acyclic(edges)
            assert is_maximal(net, edges)
            assert not (edges & (net <= 0)).any()


def test_greedy_keeps_the_heaviest_edges_of_a_cycle() -> None:
    net = np.zeros((3, 3))
    net[0, 1], net[1, 2], net[2, 0] = 3, 2, 1
    edges = greedy_acyclic(net - net.T)
    assert edges.tolist() == [[False, True, False], [False, False, True], [False, False, False]]


def test_greedy_agrees_with_the_plain_definition() -> None:
    for seed in range(8):
        net = graph(11, seed, 0.7)
        pairs = sorted(np.argwhere(net > 0).tolist(), key=lambda e: (-net[e[0], e[1]], e[0], e[1]))
        kept = np.zeros(net.shape, dtype=bool)
        for u, v in pairs:
            if not reach(kept)[v, u]:
                kept[u, v] = True
        assert (greedy_acyclic(net) == kept).all()


def test_greedy_refuses_thousands_of_nodes() -> None:
    with pytest.raises(ConfigError, match="limit is 2048"):
        greedy_acyclic(np.zeros((2049, 2049), dtype=np.float32))


def test_reachability_and_closure_agree_with_warshall() -> None:
    for seed in range(6):
        net = graph(70, seed, 0.06)  # more than one word of bits
        path = np.random.default_rng(seed).permutation(70)
        edges = forward_edges(net, path)
        expected = reach(edges)
        assert (closure(edges, path) == expected).all()
        bits = Reachability(70)
        for u, v in np.argwhere(edges):
            bits.add(int(u), int(v))
        first, second = (index.ravel() for index in np.indices((70, 70)))
        assert (bits.reaches(first, second).reshape(70, 70) == expected).all()
        assert (Reachability(70, expected).bits == bits.bits).all()


def test_topological_order_takes_the_highest_free_score_and_breaks_ties_by_index() -> None:
    edges = np.zeros((5, 5), dtype=bool)
    edges[3, 0] = True
    assert topological_order(edges, np.array([0.9, 0.5, 0.5, 0.1, 0.7])).tolist() == [4, 1, 2, 3, 0]
    edges[0, 3] = True
    with pytest.raises(ConfigError, match="2 of 5 nodes"):
        topological_order(edges, np.zeros(5))


def test_strong_components_are_those_of_the_closure_in_topological_order() -> None:
    for seed in range(20):
        net = graph(15, seed, 0.15)
        found = reach(net > 0)
        parts = strong_components(net)
        assert sorted(np.concatenate(parts).tolist()) == list(range(15))
        same = found & found.T
        assert all((same[part[0]] == np.isin(np.arange(15), part)).all() for part in parts)
        path = np.concatenate(parts)
        where = np.empty(15, dtype=int)
        where[path] = np.arange(15)
        part_of = np.empty(15, dtype=int)
        for number, part in enumerate(parts):
            part_of[part] = number
        assert all(part_of[i] <= part_of[j] for i, j in np.argwhere(net > 0))


# -- orders


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_exact_solvers_equal_brute_force(size: int) -> None:
    pytest.importorskip("highspy")
    for seed in range(3 if size == 7 else 8):
        net = graph(size, seed, 0.9 if seed % 2 else 0.5)
        best = best_of_all(net)
        for solved in (dynamic_programming(net), integer_program(net)):
            assert solved.optimal
            assert solved.value == pytest.approx(best, abs=1e-9)
            assert kept_weight(net, solved.order) == pytest.approx(best, abs=1e-9)


def test_dynamic_programming_and_the_integer_program_agree() -> None:
    pytest.importorskip("highspy")
    for seed in range(4):
        net = graph(12, seed)
        assert integer_program(net).value == pytest.approx(dynamic_programming(net).value, abs=1e-9)


def test_the_integer_program_stops_at_its_time_limit_with_a_bound() -> None:
    pytest.importorskip("highspy")
    net = graph(40, 0)
    solved = integer_program(net, time_limit_s=0.0)
    assert sorted(solved.order.tolist()) == list(range(40))
    assert not solved.optimal
    assert solved.value < solved.bound


def test_exact_solvers_refuse_large_components() -> None:
    with pytest.raises(ConfigError, match="17 nodes, the limit is 16"):
        dynamic_programming(ring(17))


def ring(size: int) -> np.ndarray:
    net = np.zeros((size, size))
    net[np.arange(size), (np.arange(size) + 1) % size] = 1
    return net - net.T


def test_insertion_never_lowers_the_weight_and_ends_where_no_move_helps() -> None:
    for seed in range(10):
        net = graph(12, seed, 0.8)
        start = np.random.default_rng(seed).permutation(12)
        found, settled = insertion(net, start)
        value = kept_weight(net, found)
        assert settled
        assert value >= kept_weight(net, start) - 1e-9
        assert value <= dynamic_programming(net).value + 1e-9
        for node, place in itertools.product(range(12), range(12)):
            other = np.insert(np.delete(found, np.flatnonzero(found == node)), place, node)
            assert kept_weight(net, other) <= value + 1e-9


def test_insertion_beyond_the_reversal_limit_improves_too() -> None:
    net = probabilities(600, 3, 2.0, np.float32) - 0.5
    start = np.arange(600)
    found, _ = insertion(net, start, max_passes=3)
    assert kept_weight(net, found) > 1.5 * kept_weight(net, start)


def test_every_heuristic_keeps_all_of_an_acyclic_graph() -> None:
    truth = np.random.default_rng(0).permutation(20)
    rank = np.argsort(truth)
    net = np.sign(rank[None, :] - rank[:, None]).astype(float)
    for found in (
        eades_lin_smyth(net),
        insertion(net, np.arange(20))[0],
        kwiksort(net, np.random.default_rng(1)),
        dynamic_programming(net).order,
    ):
        assert found.tolist() == truth.tolist()


def test_eades_lin_smyth_drops_at_most_its_bound_without_weights() -> None:
    for seed in range(20):
        net = np.sign(graph(15, seed))
        edges = (net > 0).sum()
        dropped = edges - kept_weight(net, eades_lin_smyth(net))
        assert dropped <= edges / 2 - 15 / 6


def test_kept_weight_is_the_forward_sum_in_any_block_size() -> None:
    net = graph(9, 1)
    path = np.random.default_rng(2).permutation(9)
    expected = np.maximum(net, 0)[forward_edges(net, path)].sum()
    assert kept_weight(net, path) == pytest.approx(expected)
    assert kept_weight(net, path, block=2) == pytest.approx(expected)
    assert kept_weight(net, path) + kept_weight(net, path[::-1]) == pytest.approx(np.maximum(net, 0).sum())


# -- the interface


@pytest.mark.parametrize("solver", ALL)
@pytest.mark.parametrize("size", [0, 1, 2, 13])
def test_order_is_a_permutation_with_true_accounts(solver: str, size: int) -> None:
    p = probabilities(size, 5, 2.0)
    found = order(p, solver=solver, tau=0.05)  # type: ignore[arg-type]
    assert sorted(found.order.tolist()) == list(range(size))
    assert found.scores == pytest.approx(win_scores(p))
    net = trusted_relations(p, tau=0.05)
    forward = forward_edges(net, found.order)
    assert found.kept_weight == pytest.approx(net[forward].sum())
    assert found.total_weight == pytest.approx(np.maximum(net, 0).sum())
    assert {tuple(e) for e in found.dropped_edges.tolist()} == {
        tuple(e) for e in np.argwhere((net > 0) & ~forward).tolist()
    }
    assert found.guarantee
    assert (found.ranks[found.order] == np.arange(size)).all()
    assert 0 <= found.kept_share <= 1


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10_000), st.sampled_from([0.0, 0.02, 0.2, 0.5]), st.sampled_from(ALL))
def test_order_keeps_half_the_weight_one_way_round_and_never_beats_the_optimum(
    size: int, seed: int, tau: float, solver: str
) -> None:
    p = np.round(probabilities(size, seed, 3.0), 1)
    p = np.triu(p, 1) + np.tril(1 - p.T, -1) + 0.5 * np.eye(size)
    found = order(p, solver=solver, tau=tau)  # type: ignore[arg-type]
    net = trusted_relations(p, tau=tau)
    reverse = kept_weight(net, found.order[::-1])
    assert max(found.kept_weight, reverse) >= found.total_weight / 2 - 1e-9
    assert found.kept_weight <= dynamic_programming(net).value + 1e-9
    if tau == 0.5:
        by_score = order(p, solver="win_score").order
        assert found.order.tolist() == by_score.tolist()
        assert found.total_weight == 0


@pytest.mark.parametrize("solver", ALL)
def test_order_does_not_depend_on_the_order_candidates_come_in(solver: str) -> None:
    p = np.round(probabilities(12, 7, 2.0), 2)  # with ties
    p = np.triu(p, 1) + np.tril(1 - p.T, -1) + 0.5 * np.eye(12)
    keys = [f"arch-{place:02d}" for place in range(12)]
    mixed = np.random.default_rng(0).permutation(12)
    values = np.full(12, np.nan)
    values[:4] = [0.3, 0.1, 0.3, 0.9]
    first = order(p, solver=solver, keys=keys, observed=values)  # type: ignore[arg-type]
    second = order(
        p[np.ix_(mixed, mixed)],
        solver=solver,  # type: ignore[arg-type]
        keys=[keys[i] for i in mixed],
        observed=values[mixed],
    )
    assert [keys[i] for i in first.order] == [keys[mixed[i]] for i in second.order]
    assert (first.scores[mixed] == second.scores).all()
    assert first.kept_weight == pytest.approx(second.kept_weight)
    assert {(keys[u], keys[v]) for u, v in first.dropped_edges} == {
        (keys[mixed[u]], keys[mixed[v]]) for u, v in second.dropped_edges
    }


@pytest.mark.parametrize("solver", ALL)
def test_observed_values_are_never_contradicted(solver: str) -> None:
    p = probabilities(14, 3, 3.0)
    values = np.full(14, np.nan)
    values[[2, 5, 6, 9, 13]] = [1.0, 4.0, 4.0, -2.0, 0.5]
    found = order(p, solver=solver, observed=values)  # type: ignore[arg-type]
    seen = [value for value in values[found.order] if np.isfinite(value)]
    assert seen == sorted(seen, reverse=True)


def test_ties_go_to_the_win_score_then_to_the_key() -> None:
    even = np.full((4, 4), 0.5)
    assert order(even).order.tolist() == [0, 1, 2, 3]
    assert order(even, keys=["d", "b", "c", "a"]).order.tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize("solver", ["greedy_mwas", "insertion", "mwas", "exact_dp"])
def test_mwas_is_acyclic_maximal_and_sorted_as_the_ranking(solver: str) -> None:
    for seed in range(5):
        p = probabilities(10, seed, 3.0)
        dag = mwas(p, tau=0.1, solver=solver, keys=[str(9 - k) for k in range(10)])  # type: ignore[arg-type]
        net = trusted_relations(p, tau=0.1)
        assert is_acyclic(dag.edges)
        assert is_maximal(net, dag.edges)
        assert dag.kept_weight == pytest.approx(net[dag.edges].sum())
        assert len(dag.dropped_edges) + dag.edges.sum() == (net > 0).sum()
        assert all(net[u, v] > 0 and not dag.edges[u, v] for u, v in dag.dropped_edges)
        ranking = order(p, tau=0.1, solver=solver, keys=[str(9 - k) for k in range(10)])  # type: ignore[arg-type]
        assert dag.order().tolist() == ranking.order.tolist()


def test_auto_orders_the_best_ones_and_leaves_the_rest_to_the_win_score() -> None:
    p = probabilities(40, 2, 2.0)
    found = order(p, top=10)
    scores = order(p, solver="win_score")
    assert set(found.order[:10].tolist()) == set(scores.order[:10].tolist())
    assert found.order[10:].tolist() == scores.order[10:].tolist()
    best = np.sort(scores.order[:10])
    part = mwas(p[np.ix_(best, best)], solver="greedy_mwas")
    assert is_maximal(trusted_relations(p[np.ix_(best, best)]), part.edges)
    assert "best 10" in found.guarantee
    assert order(p, top=40).solver == "greedy_mwas"


def test_trust_takes_off_the_ensembles_spread_and_log_odds_weigh_more() -> None:
    p = np.array([[0.5, 0.8, 0.55], [0.2, 0.5, 0.9], [0.45, 0.1, 0.5]])
    std = np.array([[0, 0.3, 0.0], [0.3, 0, 0.1], [0.0, 0.1, 0]])
    net = trusted_relations(p, std=std, kappa=1.0)
    assert net == pytest.approx(np.array([[0, 0, 0.05], [0, 0, 0.3], [-0.05, -0.3, 0]]))
    odds = trusted_relations(p, weight="log_odds")
    assert odds[1, 2] == pytest.approx(np.log(9))
    given = trusted_relations(p, weights=np.full((3, 3), 2.0), tau=0.1)
    assert given.tolist() == [[0, 2, 0], [-2, 0, 2], [0, -2, 0]]


def test_relations_of_a_utility_drop_nothing() -> None:
    utility = np.random.default_rng(4).normal(size=30)
    p = 0.5 + 0.5 * np.tanh(utility[:, None] - utility[None, :])
    for solver in ALL:
        if solver != "exact_dp":
            found = order(p, solver=solver, tau=0.0)  # type: ignore[arg-type]
            assert found.order.tolist() == np.argsort(-utility).tolist()
            assert found.kept_share == pytest.approx(1.0)
            assert not len(found.dropped_edges)


@pytest.mark.parametrize(
    ("broken", "error", "text"),
    [
        (np.zeros((2, 3)), ShapeError, "shape"),
        (np.array([[0.5, np.nan], [0.5, 0.5]]), DataError, r"\[0, 1\] is nan"),
        (np.array([[0.5, 1.5], [-0.5, 0.5]]), DataError, "is 1.5"),
        (np.array([[0.5, 0.9], [0.3, 0.5]]), DataError, "sum to 1"),
    ],
)
def test_order_refuses_broken_probabilities(broken: np.ndarray, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        order(broken)


@pytest.mark.parametrize(
    "arguments",
    [
        {"tau": -0.1},
        {"tau": float("nan")},
        {"kappa": 1.0},
        {"solver": "best"},
        {"top": 0},
        {"weight": "square"},
        {"keys": ["a", "a", "b"]},
        {"keys": ["a"]},
        {"observed": [1.0, np.inf, 0.0]},
        {"std": np.zeros((2, 2)), "kappa": 1.0},
        {"weights": -np.ones((3, 3))},
    ],
)
def test_order_refuses_unusable_settings(arguments: dict[str, object]) -> None:
    with pytest.raises((ConfigError, DataError, ShapeError)):
        order(np.full((3, 3), 0.5), **arguments)  # type: ignore[arg-type]


# -- many candidates


def test_top_k_finds_the_best_of_many_with_bounded_blocks() -> None:
    count = 20_000
    utility = np.random.default_rng(0).normal(size=count)
    largest = 0

    def relations(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        nonlocal largest
        largest = max(largest, len(rows) * len(columns))
        return 0.5 + 0.5 * np.tanh(utility[rows][:, None] - utility[columns][None, :])

    found = top_k(relations, count, 20, references=64, max_pairs=100_000)
    assert found.order.tolist() == np.argsort(-utility)[:20].tolist()
    assert largest <= 100_000
    assert found.scores.shape == (count,)
    again = top_k(relations, count, 20, references=64, max_pairs=100_000)
    assert (again.scores == found.scores).all()
    given = top_k(relations, count, 3, references=[1, 5, 7], dense=50)
    assert given.order.tolist() == np.argsort(-utility)[:3].tolist()


def test_top_k_reads_uncertainty_and_refuses_too_much() -> None:
    def relations(rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        spread = np.where(rows == 7, 0.4, 0.0)[:, None] + np.zeros(len(columns))
        return np.full((len(rows), len(columns)), 0.5), spread

    assert 7 in top_k(relations, 100, 1, dense=5, confidence=1.0).candidates
    assert 7 not in top_k(relations, 100, 1, dense=5).candidates
    for arguments in ({"k": 0}, {"k": 101}, {"k": 50, "max_pairs": 100}, {"k": 1, "references": 0}):
        with pytest.raises(ConfigError):
            top_k(relations, 100, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="from 0 to 99"):
        top_k(relations, 100, 1, references=[100])
    with pytest.raises(ShapeError, match="returned shape"):
        top_k(lambda rows, columns: np.zeros((1, 1)), 100, 1)


@pytest.mark.slow
def test_thousands_of_candidates_are_made_acyclic_in_seconds() -> None:
    p = probabilities(4096, 0, 2.0, np.float32)
    found: Ranking = order(p, solver="mwas")
    edges = forward_edges(trusted_relations(p), found.order)
    reached = closure(edges, found.order)
    assert all(reached[v, u] for u, v in found.dropped_edges[:: max(1, len(found.dropped_edges) // 1000)])
    assert found.kept_weight >= order(p, solver="win_score").kept_weight
