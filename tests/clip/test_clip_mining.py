"""mine_hard_pairs: exclusions, determinism, FastHPM, bounded memory, resuming and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from huaben.clip.mining import Blocks, Features, mine_hard_pairs, subset_of_round
from huaben.clip.mining_core import normalise
from huaben.errors import ConfigError, DataError, HuabenError, ShapeError, StoreError
from huaben.files import folder_lock


def features(num: int, seed: int = 0, *, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(num, 8))
    image = latent @ rng.normal(size=(8, 20)) + noise * rng.normal(size=(num, 20))
    text = latent @ rng.normal(size=(8, 16)) + noise * rng.normal(size=(num, 16))
    return image.astype(np.float32), text.astype(np.float32)


def brute(image, text, k, *, low=0.0, duplicate=0.98):
    """The definition, written without the room's code."""
    image = image / np.linalg.norm(image, axis=1, keepdims=True)
    text = text / np.linalg.norm(text, axis=1, keepdims=True)
    sides = [features @ features.T for features in (image.astype(np.float64), text.astype(np.float64))]
    a, b = (np.where((side > max(low, 0)) & (side <= duplicate), side, 0) for side in sides)
    scores = a * b
    np.fill_diagonal(scores, 0)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    return np.where(best > 0, order, -1), best


def same(first, second) -> None:
    for name in ("pairs", "scores", "certified", "outlier"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name


def test_exact_equals_the_definition_on_500_pairs():
    image, text = features(500)
    found = mine_hard_pairs(image, text, 20)
    rows, scores = brute(image, text, 20)
    assert np.array_equal(found.pairs, rows)
    assert np.abs(found.scores - scores).max() < 1e-5
    assert found.certified.all()
    assert not found.outlier.any()
    found.check(500)


def test_scores_are_symmetric():
    image, text = features(120)
    found = mine_hard_pairs(image, text, 119 // 2)
    seen = {(i, int(j)): s for i, row in enumerate(found.pairs) for j, s in zip(row, found.scores[i], strict=True)}
    both = [(pair, score) for pair, score in seen.items() if pair[::-1] in seen]
    assert len(both) > 1000
    assert all(seen[pair[::-1]] == score for pair, score in both)


def test_results_do_not_depend_on_blocks_memory_threads_or_container(tmp_path):
    image, text = (side.astype(np.float16) for side in features(700))
    expected = mine_hard_pairs(image, text, 9)
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "text.npy", text)
    same(mine_hard_pairs(image, text, 9, block=13), expected)
    same(mine_hard_pairs(tmp_path / "image.npy", str(tmp_path / "text.npy"), 9, threads=2), expected)
    same(mine_hard_pairs(torch.from_numpy(image), torch.from_numpy(text), 9, block=700), expected)
    same(mine_hard_pairs(image, text, 9, memory_mb=16), expected)
    assert expected.settings["fingerprint"] == mine_hard_pairs(image, text, 2).settings["fingerprint"]


def test_features_that_do_not_fit_are_converted_block_by_block():
    image, text = features(600)
    ids = np.arange(600)
    kept, passing = Features(image, text, ids, memory_mb=64), Features(image, text, ids, memory_mb=0)
    assert kept.cached
    assert not passing.cached
    for base in (None, np.arange(0, 600, 2)):
        for whole, pieces in zip(
            zip(*kept.pieces(base), strict=True), zip(*passing.pieces(base), strict=True), strict=True
        ):
            assert len(pieces) > 1
            assert np.array_equal(np.concatenate(whole), np.concatenate(pieces))
    assert kept.fingerprint == passing.fingerprint


def test_self_copies_and_equal_ids_are_never_listed():
    image, text = features(60)
    image[30:], text[30:] = image[:30], text[:30]  # row i and i + 30 are bit-identical
    found = mine_hard_pairs(image, text, 10, duplicate=1.0)
    own = np.arange(60)[:, None]
    assert not (found.pairs == own).any()
    assert (found.pairs[:, 0] == (own[:, 0] + 30) % 60).all()  # allowed: neither ids nor a threshold forbid it
    for settings in ({"duplicate": 0.98}, {"duplicate": 1.0, "ids": np.arange(60) % 30}):
        found = mine_hard_pairs(image, text, 10, **settings)
        assert not (found.pairs % 30 == own % 30).any()


def test_fast_with_all_candidates_is_exact():
    image, text = features(200)
    exact, fast = mine_hard_pairs(image, text, 5), mine_hard_pairs(image, text, 5, method="fast", candidates=200)
    same(fast, exact)
    same(mine_hard_pairs(image, text, 5, method="fast"), exact)  # by default 3,000,000 or all


def test_fast_depends_on_its_seed_alone_and_shares_a_subset_within_a_round():
    image, text = features(300)
    options = {"method": "fast", "candidates": 40, "round_size": 100}
    first = mine_hard_pairs(image, text, 5, seed=3, **options)
    same(mine_hard_pairs(image, text, 5, seed=3, block=17, memory_mb=16, **options), first)
    assert not np.array_equal(mine_hard_pairs(image, text, 5, seed=4, **options).pairs, first.pairs)
    assert not first.certified.any()
    for number in range(3):
        subset = subset_of_round(3, number, 300, 40)
        assert len(set(subset.tolist())) == 40
        listed = first.pairs[100 * number : 100 * number + 100]
        assert set(listed[listed >= 0].tolist()) <= set(subset.tolist())
    assert not np.array_equal(subset_of_round(3, 0, 300, 40), subset_of_round(3, 1, 300, 40))


def test_fast_recall_is_the_share_of_candidates():
    image, text = features(400)
    exact = mine_hard_pairs(image, text, 10).pairs
    recalls = []
    for seed in range(20):
        fast = mine_hard_pairs(image, text, 10, method="fast", candidates=100, seed=seed, round_size=40).pairs
        recalls.append(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), fast.tolist(), strict=True)]))
    assert abs(np.mean(recalls) - 0.25) < 3 * np.std(recalls, ddof=1) / np.sqrt(20)


def test_skip_top_and_rank_stride_pick_ranks_of_the_exact_list():
    image, text = features(150)
    whole = mine_hard_pairs(image, text, 40).pairs
    assert np.array_equal(mine_hard_pairs(image, text, 8, skip_top=4, rank_stride=5).pairs, whole[:, 4:40:5])
    with pytest.raises(ConfigError, match="needs 151 other pairs, found 149"):
        mine_hard_pairs(image, text, 16, rank_stride=10)


def test_center_subtracts_the_mean_first():
    image, text = features(200)
    shifted = mine_hard_pairs(image + 3, text - 2, 6, center=True)
    rows, _ = brute(image - image.mean(axis=0), text - text.mean(axis=0), 6)
    assert (shifted.pairs == rows).mean() > 0.999
    assert (mine_hard_pairs(image + 3, text - 2, 6).pairs == rows).mean() < 0.9


def test_one_modality_ignores_the_other():
    image, text = features(150)
    alone = mine_hard_pairs(image, text, 6, modality="image")
    assert np.array_equal(alone.pairs, mine_hard_pairs(image, text[::-1], 6, modality="image").pairs)
    unit = normalise(image)
    assert np.allclose(alone.scores[0], [unit[0] @ unit[j] for j in alone.pairs[0]], atol=1e-6)


def test_a_pair_unlike_the_rest_is_an_outlier_with_a_short_list():
    image, text = features(80)
    image, text = np.abs(image), np.abs(text)
    image[7] = -image[7]  # its cosines are all negative
    found = mine_hard_pairs(image, text, 5, duplicate=1.0)
    assert np.flatnonzero(found.outlier).tolist() == [7]
    assert (found.pairs[7] == -1).all()
    assert not (found.pairs == 7).any()
    assert 7 not in found.usable(5)


def test_mismatched_captions_have_little_agreement():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(25, 20))
    of = rng.integers(0, 25, 500)
    image = centres[of] + 0.5 * rng.normal(size=(500, 20))
    text = (centres @ rng.normal(size=(20, 16)))[of] + 1.5 * rng.normal(size=(500, 16))
    wrong = rng.permutation(500)[:100]
    text[wrong] = text[np.roll(wrong, 1)]
    found = mine_hard_pairs(image, text, 10, low=0.3)
    mismatched = np.isin(np.arange(500), wrong)
    pairs = found.agreement[~mismatched][:, None] - found.agreement[mismatched]
    assert ((pairs > 0) + 0.5 * (pairs == 0)).mean() > 0.8


class Stop(Exception):
    pass


@pytest.mark.parametrize("method", ["exact", "fast"])
def test_an_interrupted_call_goes_on_where_it_stopped(tmp_path, method):
    image, text = features(300)
    options = {"method": method, "seed": 5} | ({"candidates": 60, "round_size": 90} if method == "fast" else {})
    expected = mine_hard_pairs(image, text, 6, **options)
    work = tmp_path / "work"

    def stop(done, total):
        if done >= 150:
            raise Stop

    with pytest.raises(Stop):
        mine_hard_pairs(image, text, 6, block=50, resume=work, progress=stop, **options)
    finished = sorted(path.name for path in work.glob("block-*.npz"))
    assert finished
    times = {name: (work / name).stat().st_mtime_ns for name in finished}
    (work / ".block-torn.part").write_bytes(b"half")  # what a kill in the middle of a write leaves
    (work / finished[0]).write_bytes((work / finished[0]).read_bytes()[:300])  # is mined again

    seen = []

    def watch(done, total):
        seen.append((done, total))
        for name in finished[1:]:
            assert (work / name).stat().st_mtime_ns == times[name]

    same(mine_hard_pairs(image, text, 6, block=300, resume=work, progress=watch, **options), expected)
    assert seen[-1] == (300, 300)
    assert len(seen) >= 6  # the blocks of the call that began it
    assert not work.exists()


def test_resume_refuses_other_features_settings_and_folders(tmp_path):
    image, text = features(100)
    work = tmp_path / "work"

    def stop(done, total):
        raise Stop

    with pytest.raises(Stop):
        mine_hard_pairs(image, text, 6, block=50, resume=work, progress=stop)
    with pytest.raises(DataError, match="fingerprint was"):
        mine_hard_pairs(image + 1e-3, text, 6, resume=work)
    with pytest.raises(DataError, match=r"duplicate was 0\.98, is 0\.9"):
        mine_hard_pairs(image, text, 6, duplicate=0.9, resume=work)
    with folder_lock(work, "test"), pytest.raises(StoreError, match="in use by another mining"):
        mine_hard_pairs(image, text, 6, resume=work)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds other files: notes\.txt"):
        mine_hard_pairs(image, text, 6, resume=tmp_path)
    assert (tmp_path / "notes.txt").exists()


def test_blocks_never_cross_a_round():
    assert list(Blocks(10, 4, 5)) == [(0, 0, 4), (0, 4, 5), (1, 5, 9), (1, 9, 10)]


def test_settings_and_keys_are_kept():
    image, text = features(50)
    found = mine_hard_pairs(image, text, np.int64(3), keys=[f"a/{i}" for i in range(50)], ids=list(range(50)))
    assert found.keys is not None
    assert found.keys[7] == "a/7"
    assert found.settings["k"] == 3
    assert found.settings["num_pairs"] == 50
    assert set(found.settings["fingerprint"]) == {"image", "text", "ids"}
    assert {"huaben", "numpy", "torch"} <= set(found.settings["versions"])


def bad(change):
    image, text = features(40)
    image[11, 3], text[5] = change.get("image", image[11, 3]), change.get("text", 1)
    return image, text


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ({"image": np.nan}, {}, DataError, "image_features: rows 11 are NaN"),
        ({"image": np.inf}, {"method": "fast"}, DataError, "image_features: rows 11 are NaN or infinite"),
        ({"text": 0}, {}, DataError, "text_features: rows 5 are all zero"),
        ({}, {"k": 40}, ConfigError, "k=40 needs 40 other pairs, found 39"),
        ({}, {"k": 0}, ConfigError, "k=0"),
        ({}, {"k": 2.5}, ConfigError, "k=2.5"),
        ({}, {"method": "slow"}, ConfigError, "method='slow'"),
        ({}, {"candidates": 20}, ConfigError, "candidates=20 with the exact method"),
        ({}, {"method": "fast", "candidates": 5}, ConfigError, "candidates=5, expected from 6"),
        ({}, {"method": "fast", "candidates": 41}, ConfigError, "to 40"),
        ({}, {"ids": np.arange(39)}, ShapeError, "ids has shape"),
        ({}, {"ids": np.ones(40)}, DataError, "dtype float64"),
        ({}, {"keys": ["a"]}, ShapeError, "1 keys for 40 pairs"),
        ({}, {"memory_mb": 1}, ConfigError, "memory_mb=1"),
        ({}, {"threads": 0}, ConfigError, "threads=0"),
        ({}, {"block": 0}, ConfigError, "block=0"),
        ({}, {"seed": -1}, ConfigError, "seed=-1"),
        ({}, {"duplicate": float("nan")}, ConfigError, "duplicate=nan"),
    ],
)
def test_bad_input_is_refused_with_a_reason(change, options, error, message):
    image, text = bad(change)
    with pytest.raises(error, match=message) as caught:
        mine_hard_pairs(image, text, **{"k": 5} | options)
    assert isinstance(caught.value, HuabenError)


def test_rows_that_do_not_match_and_unreadable_files_are_refused(tmp_path):
    image, text = features(40)
    with pytest.raises(ShapeError, match="40 image rows and 39 text rows"):
        mine_hard_pairs(image, text[:-1], 5)
    with pytest.raises(ShapeError, match="expected \\(pairs, width\\)"):
        mine_hard_pairs(image[0], text, 5)
    with pytest.raises(DataError, match="cannot be read"):
        mine_hard_pairs(tmp_path / "absent.npy", text, 5)
    np.savez(tmp_path / "both.npz", image=image, text=text)
    with pytest.raises(DataError, match="several arrays"):
        mine_hard_pairs(tmp_path / "both.npz", text, 5)
    with pytest.raises(DataError, match="dtype int64"):
        mine_hard_pairs(image.astype(np.int64), text, 5)


def test_ann_gives_the_exact_lists_of_a_small_set():
    image, text = features(300)
    exact = mine_hard_pairs(image, text, 8, ids=np.arange(300) // 2, center=True)
    ann = mine_hard_pairs(image, text, 8, method="ann", ids=np.arange(300) // 2, center=True)
    settled = ann.certified
    assert np.array_equal(ann.pairs[settled], exact.pairs[settled])
    assert (ann.pairs == exact.pairs).mean() > 0.99
    assert ann.settings["index"]
