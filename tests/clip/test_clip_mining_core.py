"""Scores, top-k blocks and merging: bit-equal to brute force whatever the cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from huaben.clip.mining_core import (
    GRID,
    CarefulSearch,
    Scoring,
    TileSearch,
    cosines,
    matches,
    merge_topk,
    normalise,
    rescore,
    scores_of,
    topk_block,
)
from huaben.errors import ConfigError, DataError, ShapeError


def features(num: int, seed: int = 0, *, copies: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Unit features around a shared latent; with copies, a third of the captions and of whole pairs repeat."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(num, 8))
    image = latent @ rng.normal(size=(8, 24)) + rng.normal(size=(num, 24))
    text = latent @ rng.normal(size=(8, 17)) + rng.normal(size=(num, 17))
    if copies:
        to, of = rng.integers(0, num, (2, num // 3))
        text[to] = text[of]
        to, of = rng.integers(0, num, (2, num // 3))
        image[to], text[to] = image[of], text[of]
    return normalise(image, name="image"), normalise(text, name="text")


def brute(image, text, ids, k, scoring):
    scores = scores_of(
        image.astype(np.float64) @ image.T.astype(np.float64),
        text.astype(np.float64) @ text.T.astype(np.float64),
        scoring,
    )
    np.fill_diagonal(scores, -np.inf)
    if ids is not None:
        scores[ids[:, None] == ids] = -np.inf
    rows = np.broadcast_to(np.arange(len(image)), scores.shape)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    return best, np.where(best > -np.inf, order, -1)


def block(image, text, ids, base, k, scoring):
    rows = np.arange(len(image))
    base_ids = None if ids is None else ids[base]
    return topk_block(image, text, ids, rows, image[base], text[base], base_ids, base, k, scoring)


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize(
    "scoring",
    [
        Scoring(),
        Scoring(modality="text"),
        Scoring(modality="image", duplicate=1.0),
        Scoring(low=0.3, duplicate=0.9),
    ],
    ids=["both", "text", "image", "thresholds"],
)
def test_topk_block_equals_brute_force_bit_for_bit(scoring, copies):
    image, text = features(300, copies=copies)
    for ids in (None, np.random.default_rng(1).integers(0, 150, 300)):
        scores, rows = block(image, text, ids, np.arange(300), 15, scoring)
        expected, expected_rows = brute(image, text, ids, 15, scoring)
        assert np.array_equal(rows, expected_rows)
        assert np.array_equal(scores, expected)


def test_tile_search_does_not_depend_on_tiles():
    image, text = features(400, copies=True)
    rows = np.arange(400)
    found = []
    for query_tile, base_tile in ((400, 400), (7, 33), (128, 5)):
        search = TileSearch(
            image, text, None, rows, 10, Scoring(duplicate=1.0), query_tile=query_tile, base_tile=base_tile
        )
        search.update(image, text, None, rows)
        scores, best, still_open = search.result(lambda some: (image[some], text[some]))
        settled = np.setdiff1d(rows, still_open)
        expected, expected_rows = brute(image, text, None, 10, Scoring(duplicate=1.0))
        assert np.array_equal(scores[settled], expected[settled])
        assert np.array_equal(best[settled], expected_rows[settled])
        found.append(len(settled))
    assert min(found) > 100  # copies leave some open; most are settled in float32


def test_careful_search_is_exact_from_nothing():
    image, text = features(150, copies=True)
    rows = np.arange(150)
    unknown = np.full((150, 12), -np.inf, np.float32)
    search = CarefulSearch(image, text, None, rows, 12, Scoring(), scores=unknown, query_tile=40, base_tile=31)
    search.update(image, text, None, rows)
    scores, best = search.result()
    expected, expected_rows = brute(image, text, None, 12, Scoring())
    assert np.array_equal(best, expected_rows)
    assert np.array_equal(scores, expected)


def test_many_ties_are_broken_by_row():
    basis = np.eye(4, dtype=np.float32)
    image = normalise(np.repeat(basis + 0.2, 50, axis=0))
    scores, rows = block(image, image, None, np.arange(200), 60, Scoring(duplicate=0.98))
    assert np.array_equal(rows[0, :50], np.arange(50, 100))  # the own fifty are duplicates, the rest all tie
    assert np.array_equal(rows[60, :60], np.concatenate([np.arange(50), np.arange(100, 110)]))
    assert len(np.unique(scores[0])) == 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(1, 119), min_size=1, max_size=4))
def test_pieces_merge_into_the_whole_in_any_order(seed, cuts):
    image, text = features(120, seed, copies=True)
    order = np.random.default_rng(seed).permutation(120)
    pieces = [block(image, text, None, base, 9, Scoring()) for base in np.split(order, sorted(cuts)) if len(base)]
    left = pieces[0]
    for piece in pieces[1:]:
        left = merge_topk(*left, *piece, 9)
    right = pieces[-1]
    for piece in pieces[-2::-1]:
        right = merge_topk(*piece, *right, 9)
    whole = block(image, text, None, np.arange(120), 9, Scoring())
    for merged in (left, right):
        assert np.array_equal(merged[0], whole[0])
        assert np.array_equal(merged[1], whole[1])


def test_merge_keeps_a_row_in_both_lists_once():
    scores, rows = merge_topk(
        np.array([[0.5, 0.2]], np.float32),
        np.array([[4, 7]]),
        np.array([[0.5, -np.inf]], np.float32),
        np.array([[4, -1]]),
        3,
    )
    assert rows.tolist() == [[4, 7, -1]]
    assert scores[0, 2] == -np.inf


def test_rescore_gives_the_same_scores_and_excludes_self_ids_and_padding():
    image, text = features(100)
    ids = np.arange(100) // 2
    rows = np.arange(100)
    scores, best = block(image, text, ids, rows, 8, Scoring())
    assert np.array_equal(rescore(image, text, ids, rows, best, image, text, ids, Scoring()), scores)
    never = np.stack([rows, rows ^ 1, np.full(100, -1)], axis=1)
    assert np.all(rescore(image, text, ids, rows, never, image, text, ids, Scoring()) == -np.inf)


def test_two_negative_cosines_never_score():
    image = normalise(np.array([[1.0, 0.1], [-1.0, 0.0], [1.0, 1.0]]))
    text = normalise(np.array([[1.0, 0.0], [-1.0, 0.1], [1.0, 1.0]]))
    scores, rows = block(image, text, None, np.arange(3), 2, Scoring())
    assert rows[0].tolist() == [2, -1]
    assert scores[0, 0] > 0


def test_a_duplicate_caption_with_an_opposite_image_is_not_selected():
    image = normalise(np.array([[1.0, 0.1], [-1.0, 0.1], [1.0, 1.0]]))
    text = normalise(np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]))
    _, rows = block(image, text, None, np.arange(3), 2, Scoring())
    assert 1 not in rows[0]


def test_the_duplicate_threshold_decides_about_near_copies():
    image = normalise(np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.5]]))  # cosines 0.995 and 0.894
    for duplicate, expected in ((0.98, [2, -1]), (1.0, [1, 2]), (0.999, [1, 2]), (0.85, [-1, -1])):
        _, rows = block(image, image, None, np.arange(3), 2, Scoring(duplicate=duplicate))
        assert rows[0].tolist() == expected


def test_orthogonal_features_have_no_candidates():
    image = np.eye(40, dtype=np.float32)
    scores, rows = block(image, image, None, np.arange(40), 5, Scoring())
    assert np.all(rows == -1)
    assert np.all(scores == -np.inf)


def test_cosines_are_exact_in_any_order_of_addition():
    image, _ = features(64)
    order = np.random.default_rng(0).permutation(image.shape[1])
    flipped = image[::-1]
    assert np.array_equal(cosines(image, flipped), cosines(image[:, order], flipped[:, order]))
    product = np.array(
        [sum(float(a) * float(b) for a, b in zip(x, y, strict=True)) for x, y in zip(image, flipped, strict=True)]
    )
    assert np.array_equal(cosines(image, flipped), product)


def test_normalise_is_row_by_row_and_close_to_length_one():
    raw = np.random.default_rng(0).normal(size=(50, 31)) * 1e3
    unit = normalise(raw)
    assert unit.dtype == np.float32
    assert np.array_equal(unit[17:18], normalise(raw[17:18]))
    assert np.abs(np.linalg.norm(unit.astype(np.float64), axis=1) - 1).max() < 31 * GRID
    assert np.array_equal(unit / GRID, np.rint(unit / GRID))
    assert np.array_equal(normalise(torch.from_numpy(raw)), unit)
    assert np.abs(normalise(torch.from_numpy(raw).bfloat16()) - unit).max() < 0.01
    centred = normalise(raw, mean=raw.mean(axis=0))
    assert np.abs(centred - normalise(raw - raw.mean(axis=0))).max() <= GRID


def test_normalise_names_the_bad_rows():
    raw = np.ones((9, 3), np.float32)
    raw[4, 1] = np.nan
    raw[7] = np.inf
    with pytest.raises(DataError, match="rows 104, 107 are NaN or infinite"):
        normalise(raw, first_row=100)
    raw = np.ones((9, 3), np.float16)
    raw[:7] = 0
    with pytest.raises(DataError, match=r"rows 0, 1, 2, 3, 4 \.\.\. are all zero"):
        normalise(raw)
    with pytest.raises(ShapeError, match="expected \\(pairs, width\\)"):
        normalise(np.ones(4, np.float32))
    with pytest.raises(DataError, match="dtype int64"):
        normalise(np.ones((2, 2), np.int64))
    with pytest.raises(DataError, match="found list"):
        normalise([[1.0]])


@pytest.mark.parametrize("wrong", [{"low": -0.1}, {"low": 1.0}, {"duplicate": 0.0}, {"low": 0.5, "duplicate": 0.4}])
def test_scoring_refuses_impossible_thresholds(wrong):
    with pytest.raises(ConfigError):
        Scoring(**wrong)


def test_scoring_refuses_an_unknown_modality():
    with pytest.raises(ConfigError, match="modality"):
        Scoring(modality="sound")  # type: ignore[arg-type]


def test_matches_finds_every_equal_pair():
    query, base = matches(np.array([3, 5, 3]), np.array([5, 3, 9, 3]))
    assert sorted(zip(query.tolist(), base.tolist(), strict=True)) == [(0, 1), (0, 3), (1, 0), (2, 1), (2, 3)]


def test_read_only_features_and_lowered_precision_change_nothing():
    image, text = features(200)
    expected = block(image, text, None, np.arange(200), 7, Scoring())
    image.flags.writeable = text.flags.writeable = False
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        rows = np.arange(200)
        found = topk_block(image, text, None, rows, image, text, None, rows, 7, Scoring())
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])
