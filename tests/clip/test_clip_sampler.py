"""Batches of hard pairs: every seed once an epoch, partners from the lists, nothing twice, the same for all."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from huaben.clip.margin import hard_mask
from huaben.clip.sampler import HardPairBatchSampler
from huaben.errors import ConfigError, DataError


def random_lists(num_pairs: int, k: int, seed: int = 0) -> np.ndarray:
    """Return (N, k) lists without repeats or the row itself."""
    keys = np.random.default_rng(seed).random((num_pairs, num_pairs))
    np.fill_diagonal(keys, 2.0)
    return np.argsort(keys, axis=1)[:, :k].astype(np.int64)


def clustered_lists(num_pairs: int, size: int, k: int) -> np.ndarray:
    """Return lists inside clusters of ``size`` successive rows."""
    rows = np.arange(num_pairs)
    return rows[:, None] // size * size + (rows[:, None] % size + np.arange(1, k + 1)) % size


def split(batch: np.ndarray, world: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    """Return seeds (S,) and partners (S, p) of a batch in blocks."""
    blocks = batch.reshape(world, -1)
    n = blocks.shape[1] // (1 + p)
    return blocks[:, :n].reshape(-1), blocks[:, n:].reshape(world * n, p)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("num_pairs", [480, 487])
def test_each_epoch_uses_every_seed_once_over_all_ranks(world: int, num_pairs: int) -> None:
    lists = random_lists(num_pairs, 6)
    samplers = [
        HardPairBatchSampler(num_pairs, lists, batch_size=96, world=world, rank=rank, seed=3) for rank in range(world)
    ]
    seeds, n = [], samplers[0].seeds_per_block
    for step in range(samplers[0].first_step(4)):
        blocks = [sampler.block(step) for sampler in samplers]
        assert np.array_equal(np.concatenate(blocks), samplers[0].batch(step))
        seeds.append(np.concatenate([block[:n] for block in blocks]))
    flat = np.concatenate(seeds)
    for epoch in range(3):
        assert np.array_equal(np.sort(flat[epoch * num_pairs : (epoch + 1) * num_pairs]), np.arange(num_pairs))
    assert not np.array_equal(flat[:num_pairs], flat[num_pairs : 2 * num_pairs])


@pytest.mark.parametrize("p", [1, 2])
def test_partners_are_in_their_seeds_list_and_no_row_comes_twice(p: int) -> None:
    lists = random_lists(600, 8)
    sampler = HardPairBatchSampler(600, lists, batch_size=120, hard_per_seed=p, k_use=6, world=2, seed=1)
    for step in range(40):
        batch = sampler.batch(step)
        seeds, partners = split(batch, 2, p)
        assert np.array_equal(seeds, sampler.seeds(step)[0])
        assert (partners[..., None] == lists[seeds, None, :6]).any(-1).all()
        assert len(np.unique(batch)) == 120
        assert sampler.repeats(step) == 0


def test_the_layout_is_the_mask_of_the_loss() -> None:
    lists = random_lists(300, 4)
    sampler = HardPairBatchSampler(300, lists, batch_size=36, hard_per_seed=2, world=3)
    batch = sampler.batch(5)
    rows, hard = hard_mask(3, sampler.seeds_per_block, 2)
    for row, mask in zip(rows.numpy(), hard.numpy(), strict=True):
        assert mask.sum() == 2
        assert np.isin(batch[mask], lists[batch[row]]).all()


def test_a_batch_is_the_same_for_any_world_and_after_a_resume() -> None:
    lists = clustered_lists(700, 10, 7)
    one = HardPairBatchSampler(700, lists, batch_size=48, seed=9)
    four = HardPairBatchSampler(700, lists, batch_size=48, seed=9, world=4, rank=2)
    later = HardPairBatchSampler(700, lists, batch_size=48, seed=9)
    for step in (37, 0, 29, 30):
        assert np.array_equal(later.batch(step), one.batch(step))
        a, b = (split(sampler.batch(step), sampler.world, 1) for sampler in (one, four))
        assert np.array_equal(a[0], b[0])
        assert np.array_equal(a[1], b[1])
    stream = four.stream(12)
    assert [next(stream) for _ in range(3)] == [four.block(step).tolist() for step in (12, 13, 14)]
    other = HardPairBatchSampler(700, lists, batch_size=48, seed=10)
    assert not np.array_equal(other.batch(0), one.batch(0))
    assert np.array_equal(copy.deepcopy(one).batch(3), one.batch(3))


def test_epochs_are_lists_of_this_rank() -> None:
    sampler = HardPairBatchSampler(100, random_lists(100, 5), batch_size=24, world=2, rank=1)
    lengths = []
    for epoch in range(6):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        lengths.append(len(batches))
        assert len(sampler) == len(batches)
        assert batches[0] == sampler.block(sampler.first_step(epoch)).tolist()
    assert sum(lengths) == sampler.first_step(6) == 50
    assert set(lengths) == {8, 9}
    dropping = HardPairBatchSampler(100, random_lists(100, 5), batch_size=24, drop_last=True)
    assert [(dropping.set_epoch(epoch), len(dropping))[1] for epoch in range(3)] == [8, 8, 8]
    seeds = np.concatenate([dropping.seeds(step)[0] for step in range(8)])
    assert len(np.unique(seeds)) == 96


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(24, 70), st.integers(2, 5), st.integers(1, 2))
def test_a_row_is_repeated_only_where_no_assignment_avoids_it(seed: int, num_pairs: int, k: int, p: int) -> None:
    lists = random_lists(num_pairs, k, seed)
    sampler = HardPairBatchSampler(num_pairs, lists, batch_size=24, hard_per_seed=p, seed=seed)
    for step in range(3):
        seeds = sampler.seeds(step)[0]
        free = ~np.isin(np.arange(num_pairs), seeds)
        graph = np.zeros((len(seeds) * p, num_pairs), np.int8)
        graph[np.arange(len(seeds) * p)[:, None], lists[np.repeat(seeds, p)]] = 1
        matched = maximum_bipartite_matching(csr_matrix(graph * free), perm_type="column")
        assert sampler.repeats(step) == (matched < 0).sum()


def test_copies_of_a_pair_count_as_the_pair() -> None:
    ids = np.arange(400) // 2
    lists = clustered_lists(400, 20, 12)
    lists = np.where(ids[lists] == ids[:, None], (lists + 6) % 400, lists)
    sampler = HardPairBatchSampler(400, lists, batch_size=40, ids=ids)
    for step in range(30):
        seeds, partners = split(sampler.batch(step), 1, 1)
        assert not np.isin(ids[partners], ids[seeds]).any()
        assert len(np.unique(ids[partners])) == 20


def test_partners_are_drawn_evenly_unless_popular_rows_are_capped() -> None:
    lists = random_lists(200, 4)
    lists[10:, 0] = np.arange(10, 200) % 10  # ten rows that everybody names
    keep = HardPairBatchSampler(200, lists, batch_size=20, seed=1)
    cap = HardPairBatchSampler(200, lists, batch_size=20, seed=1, in_degree_cap=6)
    popular, which = {}, np.zeros(4)
    for name, sampler in (("keep", keep), ("cap", cap)):
        batches = [split(sampler.batch(step), 1, 1) for step in range(1500)]
        seeds, partners = (np.concatenate(values) for values in zip(*batches, strict=True))
        popular[name] = (partners < 10).mean()
        if name == "keep":
            plain = seeds >= 10
            column = (lists[seeds] == partners).argmax(1)[plain]
            which = np.bincount(column, minlength=4) / plain.sum()
    assert which[1:] == pytest.approx(which[1:].mean(), rel=0.08)
    assert popular["cap"] < 0.6 * popular["keep"]


def test_random_partners_and_plain_batches() -> None:
    control = HardPairBatchSampler(90, "random", batch_size=60, hard_per_seed=2, seed=4)
    partners = []
    for step in range(300):
        assert len(np.unique(control.batch(step))) == 60
        partners.append(split(control.batch(step), 1, 2)[1].reshape(-1))
    counts = np.bincount(np.concatenate(partners), minlength=90)
    assert counts.min() > 0.75 * counts.mean()
    plain = HardPairBatchSampler(90, None, batch_size=30, seed=4)
    epoch = np.concatenate([plain.batch(step) for step in range(3)])
    assert np.array_equal(np.sort(epoch), np.arange(90))


def test_only_allowed_rows_are_seeds(tmp_path: Path) -> None:
    lists = random_lists(120, 6)
    allowed = np.ones(120, bool)
    allowed[::3] = False
    lists[::3, 2:] = -1  # short lists of rows that are no seeds do not matter
    np.save(tmp_path / "lists.npy", lists.astype(np.int32))
    mapped = np.load(tmp_path / "lists.npy", mmap_mode="r")
    sampler = HardPairBatchSampler(120, mapped, batch_size=20, seeds=allowed)
    by_rows = HardPairBatchSampler(120, lists, batch_size=20, seeds=np.flatnonzero(allowed))
    seeds = np.concatenate([sampler.seeds(step)[0] for step in range(8)])
    assert np.array_equal(np.sort(seeds), np.flatnonzero(allowed))
    assert np.array_equal(sampler.batch(2), by_rows.batch(2))
    partners = np.concatenate([split(sampler.batch(step), 1, 1)[1] for step in range(30)])
    assert (partners % 3 == 0).any()


def test_bad_lists_are_refused() -> None:
    lists = random_lists(50, 5)
    short = lists.copy()
    short[[7, 9], 3:] = -1
    with pytest.raises(DataError, match="2 seeds have fewer than k_use=5 hard pairs, the first is row 7"):
        HardPairBatchSampler(50, short, batch_size=10)
    HardPairBatchSampler(50, short, batch_size=10, k_use=3)
    far = lists.copy()
    far[8, 1] = 50
    with pytest.raises(DataError, match="row 8 names rows that are not among 50"):
        HardPairBatchSampler(50, far, batch_size=10)
    own = lists.copy()
    own[4, 2] = 4
    with pytest.raises(DataError, match="row 4 names that row itself"):
        HardPairBatchSampler(50, own, batch_size=10)
    with pytest.raises(ConfigError, match="matched"):
        HardPairBatchSampler(51, lists, batch_size=10)
    with pytest.raises(ConfigError, match="matched"):
        HardPairBatchSampler(50, lists.astype(float), batch_size=10)


@pytest.mark.parametrize(
    ("settings_", "said"),
    [
        ({"batch_size": 9}, "multiple"),
        ({"batch_size": 12, "world": 4}, "multiple"),
        ({"batch_size": 10, "hard_per_seed": 0}, "hard_per_seed"),
        ({"batch_size": 10, "k_use": 6}, "k_use=6"),
        ({"batch_size": 12, "hard_per_seed": 2, "k_use": 1}, "k_use=1"),
        ({"batch_size": 10, "rank": 1}, "rank=1"),
        ({"batch_size": 10, "epoch": -1}, "epoch"),
        ({"batch_size": 60}, "smaller"),
        ({"batch_size": 10, "seeds": np.array([3, 50])}, "rows below 50"),
        ({"batch_size": 10, "seeds": np.ones(49, bool)}, "mask of shape"),
        ({"batch_size": 10, "seeds": np.array([1, 2])}, "2 seeds"),
        ({"batch_size": 10, "in_degree_cap": 0}, "in_degree_cap"),
        ({"batch_size": 10, "ids": np.arange(49)}, "ids of shape"),
    ],
)
def test_impossible_settings_are_refused(settings_: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        HardPairBatchSampler(50, random_lists(50, 5), **settings_)


def test_other_partners_than_lists_and_random_are_refused() -> None:
    for hard in ("mined", [[1], [0]]):
        with pytest.raises(ConfigError, match="expected an array"):
            HardPairBatchSampler(2, hard, batch_size=2)
    with pytest.raises(ConfigError, match="step=-1"):
        HardPairBatchSampler(50, None, batch_size=2).batch(-1)
