"""Saved lists of hard pairs: round trips, joins by key, checks and statistics."""

from __future__ import annotations

import json

import numpy as np
import pytest

from huaben.clip.hard_pairs import HardPairs
from huaben.errors import ConfigError, DataError, ShapeError


def lists(num: int = 200, k: int = 4, *, keys: bool = True, seed: int = 0) -> HardPairs:
    """Random but valid lists; the last two rows are short."""
    rng = np.random.default_rng(seed)
    pairs = np.stack([rng.choice(np.delete(np.arange(num), row), k, replace=False) for row in range(num)])
    scores = -np.sort(-rng.random((num, k)).astype(np.float32), axis=1)
    pairs[-2:, -1] = -1
    scores[-2:, -1] = -np.inf
    return HardPairs(
        pairs=pairs,
        scores=scores,
        certified=np.ones(num, bool),
        outlier=pairs[:, -1] < 0,
        keys=[f"shard-{row % 7}/图{row}" for row in range(num)] if keys else None,
        settings={"method": "exact", "k": k, "note": "汉字"},
    )


def same(first: HardPairs, second: HardPairs) -> None:
    for name in ("pairs", "scores", "certified", "outlier"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
    assert first.keys == second.keys
    assert first.settings == second.settings


@pytest.mark.parametrize("name", ["pairs.npz", "pairs"])
@pytest.mark.parametrize("keys", [True, False])
def test_a_saved_list_reads_back_the_same(tmp_path, name, keys):
    saved = lists(keys=keys)
    path = tmp_path / "deep" / name
    lists(seed=1).save(path)
    saved.save(path)  # replaces
    loaded = HardPairs.load(path)
    same(loaded, saved)
    loaded.check(200)
    assert isinstance(loaded.pairs, np.memmap) == (name == "pairs")
    assert [child.name for child in path.parent.iterdir()] == [name]


def test_the_npz_can_be_read_with_numpy_alone(tmp_path):
    saved = lists()
    saved.save(tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz", allow_pickle=False) as file:
        assert file["pairs"].dtype == np.int64
        assert file["pairs"].shape == (200, 4)
        assert file["keys"][3] == "shard-3/图3"
        assert json.loads(str(file["settings"]))["method"] == "exact"


def test_saving_twice_gives_the_same_bytes(tmp_path):
    lists().save(tmp_path / "a.npz")
    lists().save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match="not a folder of hard pairs"):
        lists().save(tmp_path / "photos")


def test_load_refuses_what_is_not_a_whole_list(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        HardPairs.load(tmp_path / "absent.npz")
    path = tmp_path / "p.npz"
    lists().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        HardPairs.load(path)
    np.savez(path, pairs=lists().pairs)
    with pytest.raises(DataError, match="it lacks certified, outlier, scores, settings"):
        HardPairs.load(path)
    np.save(tmp_path / "one.npy", lists().pairs)
    with pytest.raises(DataError, match="a single array"):
        HardPairs.load(tmp_path / "one.npy")
    lists().save(tmp_path / "folder")
    (tmp_path / "folder" / "scores.npy").unlink()
    with pytest.raises(DataError, match="it lacks scores"):
        HardPairs.load(tmp_path / "folder")
    lists().save(tmp_path / "other")
    settings = tmp_path / "other" / "settings.json"
    settings.write_text(json.dumps({"format_version": 99}))
    with pytest.raises(DataError, match="format 99, expected 1"):
        HardPairs.load(tmp_path / "other")


def test_matched_follows_the_keys_through_a_shuffle():
    before = lists()
    assert before.keys is not None
    order = np.random.default_rng(1).permutation(200)
    after = before.matched([before.keys[row] for row in order])
    for new, old in enumerate(order):
        partners = [after.keys[row] if row >= 0 else None for row in after.pairs[new]]  # type: ignore[index]
        assert partners == [before.keys[row] if row >= 0 else None for row in before.pairs[old]]
    assert np.array_equal(after.scores, before.scores[order])
    assert after.certified.all()
    after.check(200)


def test_matched_drops_partners_that_are_gone():
    before = lists()
    assert before.keys is not None
    kept = np.sort(np.random.default_rng(2).permutation(200)[:180])
    after = before.matched([before.keys[row] for row in kept])
    after.check(180)
    gone = ~np.isin(before.pairs[kept], kept)
    gone &= before.pairs[kept] >= 0
    assert np.array_equal(after.lengths, before.lengths[kept] - gone.sum(axis=1))
    assert np.array_equal(after.certified, ~gone.any(axis=1) | (before.pairs[kept, -1] < 0))
    for new, old in enumerate(kept):
        partners = [before.keys[row] for row in before.pairs[old] if row in kept]
        assert [after.keys[row] for row in after.pairs[new] if row >= 0] == partners  # type: ignore[index]
    assert after.settings["matched"] == {"mined": 200, "keys": 180, "known": 180}


def test_matched_breaks_ties_by_the_new_rows():
    before = HardPairs(
        pairs=np.array([[1, 2], [0, 2], [0, 1]]),
        scores=np.full((3, 2), 0.5, np.float32),
        certified=np.ones(3, bool),
        outlier=np.zeros(3, bool),
        keys=["a", "b", "c"],
    )
    assert before.matched(["c", "b", "a"]).pairs.tolist() == [[1, 2], [0, 2], [0, 1]]


def test_matched_refuses_too_few_keys():
    before = lists(2000, 2)
    assert before.keys is not None
    after = before.matched([*before.keys[:1999], "new"])
    assert after.pairs[1999].tolist() == [-1, -1]
    assert after.outlier[1999]
    assert not after.certified.any()  # the new pair might belong in any list
    with pytest.raises(DataError, match=r"1997 of the data set's 2000 keys were mined.*'new-0'"):
        before.matched([*before.keys[:1997], *(f"new-{row}" for row in range(3))])
    with pytest.raises(DataError, match="more than one pair"):
        before.matched(["a", "a"])
    with pytest.raises(DataError, match="0 of the data set's 0 keys"):
        before.matched([])
    with pytest.raises(DataError, match="no keys to join by"):
        lists(keys=False).matched(["a"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((5, 0, 5), "row 5 hold its own row"),
        ((6, 0, 200), "row 6 hold a row outside 0 to 199"),
        ((7, 3, -2), "row 7 hold a row outside"),
        ((8, 1, -1), "row 8 hold a gap"),
    ],
)
def test_check_finds_impossible_lists(change, message):
    wrong = lists()
    wrong.check(200)
    row, column, value = change
    wrong.pairs[row, column] = value
    with pytest.raises(DataError, match=message):
        wrong.check(200)


def test_check_finds_repeats_and_another_length():
    wrong = lists()
    with pytest.raises(DataError, match="for 200 pairs, the data has 201"):
        wrong.check(201)
    wrong.pairs[3, 1] = wrong.pairs[3, 0]
    with pytest.raises(DataError, match="row 3 hold a row twice"):
        wrong.check(200)


def test_statistics_count_hubs_reciprocity_and_bands():
    pairs = np.array([[1, 2], [0, 2], [0, -1], [0, -1]])
    scores = np.array([[0.95, 0.35], [0.95, 0.3], [0.35, -np.inf], [0.05, -np.inf]], np.float32)
    found = HardPairs(
        pairs=pairs, scores=scores, certified=np.array([1, 1, 1, 0], bool), outlier=np.array([0, 0, 1, 1], bool)
    )
    values = found.statistics()
    json.dumps(values, allow_nan=False)
    assert values["in_degree"] == {"mean": 1.5, "p99": pytest.approx(2.97), "max": 3, "never": 0.25}
    assert values["reciprocity"] == pytest.approx(4 / 6)  # 0-1, 1-0, 0-2, 2-0 of six
    assert values["short"] == 0.5
    assert values["empty"] == 0.0
    assert values["certified"] == 0.75
    assert values["outlier"] == 0.5
    assert values["bands"]["0.9-1.0"] == pytest.approx(2 / 6)
    assert values["bands"]["0.0-0.1"] == pytest.approx(1 / 6)
    assert values["score"]["first"]["p50"] == pytest.approx(0.65)
    assert found.agreement == pytest.approx([0.65, 0.625, 0.175, 0.025])
    assert found.usable(2).tolist() == [0, 1]


def test_statistics_of_empty_lists():
    nothing = HardPairs(
        pairs=np.full((3, 2), -1),
        scores=np.full((3, 2), -np.inf, np.float32),
        certified=np.ones(3, bool),
        outlier=np.ones(3, bool),
    )
    values = nothing.statistics()
    json.dumps(values, allow_nan=False)
    assert values["empty"] == 1.0
    assert values["reciprocity"] == 0.0
    assert values["score"]["first"]["p50"] is None
    with pytest.raises(ConfigError, match="k_use=3"):
        nothing.usable(3)


def test_arrays_that_do_not_fit_are_refused():
    good = lists()
    parts = {name: getattr(good, name) for name in ("pairs", "scores", "certified", "outlier")}
    with pytest.raises(ShapeError, match="scores has shape"):
        HardPairs(**parts | {"scores": good.scores[:, :2]})
    with pytest.raises(DataError, match="pairs has dtype int32"):
        HardPairs(**parts | {"pairs": good.pairs.astype(np.int32)})
    with pytest.raises(ShapeError, match="1 keys for 200 pairs"):
        HardPairs(**parts, keys=["a"])
    with pytest.raises(DataError, match="'a' stands for more than one pair"):
        HardPairs(**parts, keys=["a"] * 200)
    with pytest.raises(DataError, match="empty or not text"):
        HardPairs(**parts, keys=["", *map(str, range(199))])
