"""The relation predictor: antisymmetric, the same for relabelled graphs, members apart, no global random state."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from huaben.archsearch.encoder import PreparedGraphs
from huaben.archsearch.graphs import GraphBatch
from huaben.archsearch.relation import PRESETS, RelationConfig, RelationPredictor
from huaben.errors import ConfigError, DataError, ShapeError

HEADS = ("antisym", "utility", "concat")
TINY = RelationConfig(layers=2, width=8, head_width=6, task_dim=3, dropout=0.2)


def batch(count: int, seed: int = 0, size: int = 5, features: int = 4, extra: int = 2) -> GraphBatch:
    """Random directed acyclic graphs; some nodes are padding."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(count, size, dtype=torch.bool)
    mask[::2, 1] = False
    adjacency = torch.triu((torch.rand(count, size, size, generator=generator) < 0.6).float(), 1)
    adjacency = adjacency * mask.unsqueeze(1) * mask.unsqueeze(2)
    labels = torch.randint(features, (count, size), generator=generator)
    nodes = torch.nn.functional.one_hot(labels, features).float() * mask.unsqueeze(2)
    return GraphBatch(nodes, adjacency, mask, size - 1, torch.randn(count, extra, generator=generator))


def predictor(head: str = "antisym", members: int = 2, seed: int = 0, **changes: object) -> RelationPredictor:
    return RelationPredictor(TINY.replace(head=head, **changes), 4, 2, members=members, seed=seed)


def vectors(members: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(members, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("head", HEADS)
def test_pair_matrix_is_antisymmetric(head: str) -> None:
    model = predictor(head)
    p = model.pair_matrix(batch(40), vectors())
    assert (p + p.T - 1).abs().max() <= 1e-6
    assert (p.diagonal() == 0.5).all()
    assert p.std() > 1e-3


@pytest.mark.parametrize("head", HEADS)
def test_pair_matrix_agrees_with_the_logits_that_are_trained(head: str) -> None:
    model, graphs, task = predictor(head, members=1), batch(9), vectors(1)
    first, second = (
        index.reshape(1, 1, -1) for index in torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    )
    with torch.no_grad():
        z = model.embed(graphs)
        there = torch.sigmoid(model.logits(z, torch.stack([first, second], 3), task.unsqueeze(1))).view(9, 9)
    expected = (there + 1 - there.T) / 2
    assert torch.allclose(model.pair_matrix(graphs, task), expected, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_permuting_candidates_permutes_the_relations(head: str) -> None:
    model, graphs, mixed = predictor(head), batch(30), torch.randperm(30, generator=torch.Generator().manual_seed(3))
    plain = model.relations(graphs, vectors()).matrix()
    other = model.relations(graphs.take(mixed), vectors()).matrix()
    for a, b in zip(plain, other, strict=True):
        assert torch.allclose(a[mixed][:, mixed], b, atol=1e-6)


@pytest.mark.parametrize("readout", ["mean_output", "global"])
@pytest.mark.parametrize("directions", ["both", "along"])
def test_relabelling_nodes_leaves_embeddings_alone(readout: str, directions: str) -> None:
    model, graphs = predictor(readout=readout, directions=directions), batch(12)
    for order in ([4, 2, 0, 1, 3], [1, 0, 2, 4, 3]):
        assert torch.allclose(model.embed(graphs), model.embed(graphs.relabel(order)), atol=1e-5)


def test_padding_leaves_embeddings_alone() -> None:
    model, graphs = predictor(), batch(6)
    wider = GraphBatch(
        nodes=torch.nn.functional.pad(graphs.nodes, (0, 0, 0, 2)),
        adjacency=torch.nn.functional.pad(graphs.adjacency, (0, 2, 0, 2)),
        mask=torch.nn.functional.pad(graphs.mask, (0, 2)),
        output=graphs.output,
        extra=graphs.extra,
    )
    assert torch.allclose(model.embed(graphs), model.embed(wider), atol=1e-5)


def test_messages_follow_the_arrows() -> None:
    """Along the data flow, the first node's label reaches the output; nothing flows back from output to input."""
    model = predictor(directions="along", readout="global", dropout=0.0)
    nodes = torch.zeros(2, 3, 4)
    nodes[:, :, 0] = 1
    nodes[1, 0] = torch.tensor([0.0, 1, 0, 0])
    chain = torch.zeros(2, 3, 3)
    chain[:, 0, 1] = chain[:, 1, 2] = 1
    prepared = PreparedGraphs.of(GraphBatch(nodes, chain, torch.ones(2, 3, dtype=torch.bool), 2, torch.zeros(2, 2)))
    assert prepared.along[0].tolist() == [[1, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5]]
    assert prepared.against[0].tolist() == [[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1]]
    embeddings = model.embed(GraphBatch(nodes, chain, torch.ones(2, 3, dtype=torch.bool), 2, torch.zeros(2, 2)))
    assert not torch.allclose(embeddings[:, 0], embeddings[:, 1])


def test_one_shared_adjacency_is_the_same_as_one_for_each() -> None:
    model, graphs = predictor(), batch(8)
    mask = torch.ones(8, 5, dtype=torch.bool)
    one = torch.triu(torch.ones(1, 5, 5), 1)
    shared = GraphBatch(graphs.nodes, one.expand(8, -1, -1), mask, 4, graphs.extra)
    apart = GraphBatch(graphs.nodes, one.repeat(8, 1, 1), mask, 4, graphs.extra)
    assert len(model.encoder.prepare(shared).along) == 1
    assert torch.allclose(model.embed(shared), model.embed(apart), atol=1e-6)


def test_members_choose_their_own_graphs() -> None:
    model, graphs = predictor(), batch(10)
    prepared = model.encoder.prepare(graphs)
    chosen = torch.tensor([[3, 1, 7], [0, 9, 9]])
    with torch.no_grad():
        found, whole = model.encoder(prepared.take(chosen)), model.encoder(prepared)
    assert torch.allclose(found, torch.stack([whole[0, chosen[0]], whole[1, chosen[1]]]), atol=1e-6)


def test_members_do_not_touch_each_other() -> None:
    model = predictor(members=3)
    prepared = model.encoder.prepare(batch(6))
    pairs = torch.randint(6, (3, 1, 20, 2), generator=torch.Generator().manual_seed(0))
    model(prepared, pairs, vectors(3).unsqueeze(1))[1].square().sum().backward()
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        assert grad is not None
        assert (grad[[0, 2]] == 0).all()
        if "shifts" in name or "item" in name:
            assert (grad[1] != 0).any()


def test_utility_has_no_cycles_and_only_concat_contradicts_itself() -> None:
    graphs = batch(25)
    p = predictor("utility", members=1).pair_matrix(graphs, vectors(1))
    wins = ((p > 0.5).sum(1)).sort().values
    assert wins.tolist() == list(range(25))
    for head in ("antisym", "utility"):
        assert predictor(head).relations(graphs, vectors()).inconsistency() == 0.0
    model = predictor("concat", members=1)
    relations = model.relations(graphs, vectors(1))
    raw = relations._raw(0, slice(None), slice(None))
    same = (raw > 0) == (raw.T > 0)
    expected = float((same.sum() - 25) / (25 * 24))
    assert relations.inconsistency(block=7) == pytest.approx(expected)
    assert expected > 0


@pytest.mark.parametrize("head", HEADS)
def test_blocks_of_relations_agree_with_the_matrix(head: str) -> None:
    relations = predictor(head, members=3).relations(batch(20), vectors(3))
    mean, std = relations.matrix()
    rows, columns = torch.tensor([3, 19, 0]), torch.tensor([1, 1, 5, 19])
    block_mean, block_std = relations(rows, columns)
    assert torch.allclose(block_mean, mean[rows][:, columns], atol=1e-6)
    assert torch.allclose(block_std, std[rows][:, columns], atol=1e-5)
    each = torch.stack([relations._probability(m, slice(None), slice(None)) for m in range(3)])
    assert torch.allclose(mean - 0.5, each.mean(0), atol=1e-6)
    assert torch.allclose(std, each.std(0, correction=0), atol=1e-5)
    scores = relations.member_scores(1, torch.arange(20), block=6)
    assert torch.allclose(scores, each[1].mean(1) + 0.5, atol=1e-6)
    relations.temperature = 3.0
    cooler = relations.matrix()[0]
    assert ((cooler - 0.5).abs() <= (mean - 0.5).abs() + 1e-6).all() or head == "concat"
    with pytest.raises(DataError, match="top_k"):
        relations.matrix(max_pairs=399)


def test_relations_take_numpy_places() -> None:
    relations = predictor().relations(batch(6), vectors())
    rows = np.array([0, 3])
    assert torch.equal(relations(rows, rows)[0], relations(torch.as_tensor(rows), torch.as_tensor(rows))[0])


def test_weights_and_dropout_come_from_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    first, second, third = predictor(seed=4), predictor(seed=4), predictor(seed=5)
    prepared = first.encoder.prepare(batch(5))
    pairs = torch.zeros(2, 1, 3, 2, dtype=torch.long)
    pairs[..., 1] = 1
    tasks = vectors().unsqueeze(1)
    a = first(prepared, pairs, tasks, torch.Generator().manual_seed(0))
    b = second(prepared, pairs, tasks, torch.Generator().manual_seed(0))
    c = second(prepared, pairs, tasks, torch.Generator().manual_seed(1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not torch.equal(a, third(prepared, pairs, tasks, torch.Generator().manual_seed(0)))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_no_task_vector_and_no_features_are_fine() -> None:
    model = RelationPredictor(TINY.replace(task_dim=0), 4, 0)
    graphs = batch(7, extra=0)
    assert model.pair_matrix(graphs, torch.zeros(1, 0)).shape == (7, 7)
    assert model.embed(graphs.take([])).shape == (1, 0, model.encoder.embedding_size)


def test_every_preset_predicts() -> None:
    graphs = batch(4)
    for config in PRESETS.values():
        small = config.replace(width=min(config.width, 32))
        p = RelationPredictor(small, 4, 2).pair_matrix(graphs, torch.zeros(1, config.task_dim))
        assert (p + p.T - 1).abs().max() < 1e-6


def test_config_round_trips_and_refuses_impossible_values() -> None:
    assert RelationConfig.from_dict(TINY.to_dict()) == TINY
    for changes in ({"layers": 0}, {"dropout": 1.0}, {"source_lr": 0.0}, {"margin": -1.0}, {"archs_per_step": 1}):
        with pytest.raises(ConfigError):
            RelationConfig(**changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        RelationPredictor(TINY, 4, members=0)


def test_other_features_and_task_vectors_are_refused() -> None:
    model = predictor()
    with pytest.raises(ShapeError, match="expects 4 and 2"):
        model.embed(batch(3, extra=1))
    with pytest.raises(ShapeError, match="task vector"):
        model.relations(batch(3), torch.zeros(2, 4))


@pytest.mark.slow
def test_all_pairs_of_thousands_take_seconds() -> None:
    import time

    config = RelationConfig()
    model = RelationPredictor(config, 4, 2, members=1)
    graphs = batch(4096, size=8)
    started = time.process_time()
    p = model.pair_matrix(graphs, torch.zeros(1, config.task_dim))
    assert time.process_time() - started < 20
    assert (p + p.T - 1).abs().max() <= 1e-6
