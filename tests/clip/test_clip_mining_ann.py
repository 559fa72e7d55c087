"""Approximate mining: certificates are sound, scores exact, recall high, and settings that only bound memory change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from huaben.clip.mining_ann import default_lists, exact_scores, left_out, mine_ann, scan_error
from huaben.clip.mining_core import Scoring, normalise, rescore, topk_block
from huaben.clip.mining_lists import Features, Space, build_lists, k_means, release
from huaben.errors import ConfigError, DataError, ShapeError
from huaben.optional import is_available

Array = NDArray[np.float32]
OFF = Scoring(duplicate=1.0)
needs_faiss = pytest.mark.skipif(not is_available("faiss"), reason="faiss is not installed")


def clustered(
    num: int, width: int = 24, *, concepts: int = 40, spread: float = 0.5, seed: int = 0
) -> tuple[Array, Array]:
    """Concepts that both modalities share, with their own noise."""
    rng = np.random.default_rng(seed)
    concept = rng.integers(concepts, size=num)
    shared = rng.normal(size=(num, 8)) * spread
    sides = []
    for _ in range(2):
        centres = rng.normal(size=(concepts, width))
        sides.append(centres[concept] + shared @ rng.normal(size=(8, width)) + rng.normal(size=(num, width)) * 0.3)
    return sides[0].astype(np.float32), sides[1].astype(np.float32)


def brute(image: Any, text: Any, k: int, scoring: Scoring, ids: Any = None) -> tuple[Array, NDArray[np.int64]]:
    u, v, rows = normalise(image), normalise(text), np.arange(len(image))
    return topk_block(u, v, ids, rows, u, v, ids, rows, k, scoring)


def recall(found: NDArray[np.int64], exact: NDArray[np.int64]) -> float:
    hits = sum(len(np.intersect1d(a[a >= 0], b[b >= 0])) for a, b in zip(found, exact, strict=True))
    return hits / max(1, int((exact >= 0).sum()))


def hostile(kind: str) -> tuple[Array, Array]:
    """Data that tempts a certificate into a wrong promise."""
    rng = np.random.default_rng(3)
    image, text = (rng.normal(size=(600, 12)).astype(np.float32) for _ in range(2))
    if kind == "opposed":  # what is near in one modality is far in the other: large sums, small products
        text = -image + 0.05 * text
    elif kind == "ties":  # few distinct rows: the k-th score is shared by many
        image, text = image[np.arange(600) % 20], text[np.arange(600) % 30]
    elif kind == "line":  # scores closer together than the scan's rounding
        t = np.linspace(0, 0.05, 600)[:, None]
        image = np.concatenate([np.cos(t), np.sin(t)], 1).astype(np.float32)
        text = np.concatenate([np.cos(2 * t), np.sin(2 * t)], 1).astype(np.float32)
    elif kind == "blobs":  # tight clusters far apart: lists not looked into can be ruled out
        image, text = clustered(600, 12, concepts=12, spread=0.0)
    return image, text


@pytest.mark.parametrize("kind", ["random", "opposed", "ties", "line", "blobs"])
@pytest.mark.parametrize("scan", ["product", "sum"])
@pytest.mark.parametrize("index", ["flat", "ivf"])
def test_every_certified_row_equals_brute_force(kind: str, scan: Any, index: Any) -> None:
    image, text = hostile(kind)
    for precision in ("float32", "bfloat16"):
        more = {"lists": 16, "probes": 4} if index == "ivf" else {}
        found = mine_ann(image, text, 10, scoring=OFF, index=index, scan=scan, precision=precision, threads=1, **more)  # type: ignore[arg-type]
        scores, rows = brute(image, text, 10, OFF)
        assert (found.pairs[found.certified] == rows[found.certified]).all()
        assert (found.scores[found.certified] == scores[found.certified]).all()
        assert found.settings["certified"] == pytest.approx(found.certified.mean(), abs=1e-6)
        if precision == "float32" and kind in ("random", "blobs") and index == "flat":
            assert found.certified.mean() > 0.95
        if precision == "float32" and kind == "blobs":
            assert found.certified.mean() > 0.5, "tight far clusters are what the list bound is for"


@needs_faiss
@pytest.mark.parametrize("kind", ["random", "opposed", "ties", "line"])
def test_the_certificate_of_sums_is_sound_with_faiss(kind: str) -> None:
    image, text = hostile(kind)
    found = mine_ann(image, text, 10, scoring=OFF, index="flat", backend="faiss", threads=1)
    scores, rows = brute(image, text, 10, OFF)
    assert (found.pairs[found.certified] == rows[found.certified]).all()
    assert (found.scores[found.certified] == scores[found.certified]).all()
    if kind == "random":
        assert found.certified.mean() > 0.95
    assert any("sum" in said for said in found.settings["announced"])


@needs_faiss
def test_faiss_lists_find_most_and_certify_nothing() -> None:
    image, text = clustered(2000, spread=0.3)
    found = mine_ann(image, text, 10, backend="faiss", index="ivf", lists=32, probes=8, threads=1)
    assert recall(found.pairs, brute(image, text, 10, Scoring())[1]) > 0.9
    assert not found.certified.any() and found.settings["scan_certified"] > 0.5
    with pytest.raises(ConfigError, match="holds"):
        mine_ann(
            np.ones((200_000, 64), np.float16), np.ones((200_000, 64), np.float16), 5, backend="faiss", memory_mb=64
        )


def test_recall_is_high_and_scores_are_exact_though_few_lists_are_seen() -> None:
    image, text = clustered(5000, concepts=120, spread=0.3)
    found = mine_ann(image, text, 20, index="ivf", lists=96, probes=16, threads=1)
    scores, rows = brute(image, text, 20, Scoring())
    assert recall(found.pairs, rows) >= 0.95
    assert found.settings["scanned"] < 0.35
    u, v = normalise(image), normalise(text)
    sample = np.arange(0, 5000, 50)
    again = rescore(u[sample], v[sample], None, sample, found.pairs[sample], u, v, None, Scoring())
    assert (again == found.scores[sample]).all()
    assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()
    assert (found.scores <= scores + 1e-7).all(), "no list can be better than the best one"


def test_doubling_raises_recall_where_late_lists_still_pay() -> None:
    image, text = clustered(3000, concepts=600, spread=1.0)
    rows = brute(image, text, 10, Scoring())[1]
    recalls = []
    for doublings in (0, 1, 3):
        found = mine_ann(image, text, 10, index="ivf", lists=64, probes=4, doublings=doublings, threads=1)
        recalls.append(recall(found.pairs, rows))
        assert len(found.settings["doubled"]) == doublings
    assert recalls[0] < recalls[1] < recalls[2]


def test_result_does_not_depend_on_memory_threads_or_where_features_lie(tmp_path: Path) -> None:
    image, text = (side.astype(np.float16) for side in clustered(3000))
    settings: dict[str, Any] = {"index": "ivf", "lists": 24, "probes": 5, "seed": 4}
    first = mine_ann(image, text, 8, threads=1, **settings)
    np.save(tmp_path / "i.npy", image)
    np.save(tmp_path / "t.npy", text)
    mapped = [np.load(tmp_path / name, mmap_mode="r") for name in ("i.npy", "t.npy")]
    for other in (
        mine_ann(image, text, 8, threads=3, memory_mb=64, **settings),
        mine_ann(*mapped, 8, threads=1, memory_mb=64, **settings),
        mine_ann(torch.from_numpy(image), torch.from_numpy(text), 8, threads=1, **settings),
    ):
        assert (other.pairs == first.pairs).all() and (other.scores == first.scores).all()
        assert (other.certified == first.certified).all()


def test_self_ids_and_duplicates_stay_out_and_their_places_are_filled() -> None:
    image, text = clustered(900, concepts=10)
    image[300:600], text[300:600] = image[:300], text[:300]  # copies
    ids = np.arange(900)
    ids[300:600] = ids[:300]
    ids[600:] = 600 + np.arange(300) // 3
    scoring = Scoring(low=0.1, duplicate=0.98)
    for index, more in (("flat", {}), ("ivf", {"lists": 8, "probes": 8})):
        found = mine_ann(image, text, 12, scoring=scoring, ids=ids, index=index, threads=1, **more)  # type: ignore[arg-type]
        kept = found.pairs >= 0
        assert not ((found.pairs == np.arange(900)[:, None]) & kept).any()
        assert not ((ids[found.pairs] == ids[:, None]) & kept).any()
        _, rows = brute(image, text, 12, scoring, ids)
        assert recall(found.pairs, rows) > 0.999
        assert (found.pairs[found.certified] == rows[found.certified]).all()


@pytest.mark.parametrize("modality", ["image", "text"])
def test_one_modality_never_looks_at_the_other(modality: Any) -> None:
    image, text = clustered(1500)
    scoring = Scoring(modality=modality)
    other = np.random.default_rng(9).normal(size=(1500, 24)).astype(np.float32)
    settings: dict[str, Any] = {"index": "ivf", "lists": 16, "probes": 6, "threads": 1, "scoring": scoring}
    first = mine_ann(image, text, 10, **settings)
    second = mine_ann(image, other, 10, **settings) if modality == "image" else mine_ann(other, text, 10, **settings)
    assert (first.pairs == second.pairs).all()
    assert recall(first.pairs, brute(image, text, 10, scoring)[1]) > 0.9


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    image, text = clustered(2500)
    settings: dict[str, Any] = {"index": "ivf", "lists": 16, "probes": 4, "threads": 1, "memory_mb": 64}
    whole = mine_ann(image, text, 8, **settings)
    seen: list[tuple[str, int]] = []

    def stop(stage: str, done: int, total: int) -> None:
        seen.append((stage, done))
        if stage == "search" and done < total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mine_ann(image, text, 8, work=tmp_path / "work", report=stop, **settings)
    after: list[tuple[str, int]] = []
    found = mine_ann(
        image, text, 8, work=tmp_path / "work", report=lambda stage, done, _: after.append((stage, done)), **settings
    )
    assert (found.pairs == whole.pairs).all() and (found.scores == whole.scores).all()
    assert {stage for stage, _ in after} == {"search"}, "the lists are kept"
    assert after[0][1] > seen[-1][1], "and so are finished blocks"
    with pytest.raises(DataError, match="probes was 4, is 5"):
        mine_ann(image, text, 8, work=tmp_path / "work", **settings | {"probes": 5})
    with pytest.raises(DataError, match="features"):
        mine_ann(image + 1, text, 8, work=tmp_path / "work", **settings)


def test_bad_input_is_refused_by_name() -> None:
    image, text = clustered(300)
    broken = image.copy()
    broken[7] = np.nan
    broken[9] = 0
    for bad, words in (((broken, text), "7"), ((image, np.where(np.arange(300)[:, None] == 5, 0, text)), "5")):
        with pytest.raises(DataError, match=words):
            mine_ann(*bad, 5)
    with pytest.raises(ShapeError):
        mine_ann(image, text[:-1], 5)
    for wrong in (
        {"k": 300},
        {"k": 5, "candidates": 4},
        {"k": 5, "index": "tree"},
        {"k": 5, "index": "flat", "probes": 4},
        {"k": 5, "index": "ivf", "lists": 301},
        {"k": 5, "memory_mb": 1},
        {"k": 5, "precision": "int8"},
        {"k": 5, "threads": 0},
        {"k": 5, "doublings": -1},
        {"k": 5, "ids": np.arange(5)},
    ):
        with pytest.raises(ConfigError):
            mine_ann(image, text, **wrong)  # type: ignore[arg-type]


def test_lists_are_a_partition_within_their_bounds() -> None:
    image, text = clustered(4000, concepts=5, spread=0.2)  # few concepts: some lists would be huge
    features = Features(image, text)
    lists = build_lists(features, Space(1 << 30), torch.float32, num_lists=32, modality="both", seed=0, memory=1 << 26)
    assert (np.sort(lists.order) == np.arange(4000)).all()
    assert lists.longest <= 2 * 4000 / 32 and (np.diff(lists.starts) > 0).all()
    u, v = features.read(lists.order)
    assert lists.centroids is not None and lists.image_bound is not None and lists.text_bound is not None
    for number in range(lists.count):
        place = slice(int(lists.starts[number]), int(lists.starts[number + 1]))
        for side, bound, part in ((u, lists.image_bound, slice(0, 24)), (v, lists.text_bound, slice(24, 48))):
            direction = torch.nn.functional.normalize(lists.centroids[number, part], dim=0).numpy()
            assert (side[place] @ direction).min() >= float(bound[number, 0])


def test_k_means_separates_what_is_separate_and_repeats_itself() -> None:
    centres = torch.eye(6) * 10
    rows = centres.repeat_interleave(50, 0) + torch.randn(300, 6, generator=torch.Generator().manual_seed(0)) * 0.1
    found = k_means(rows, 6, seed=1)
    assert torch.cdist(centres, found).min(1).values.max() < 8
    assert torch.equal(found, k_means(rows, 6, seed=1))
    assert default_lists(1_000_000) == 2048 and default_lists(100_000) in (512, 1024)


def test_the_error_bound_of_the_scan_holds() -> None:
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(normalise(rng.normal(size=(400, 64)).astype(np.float32) + 0.5))
    rounded = rows.to(torch.bfloat16)
    rounding = float((rounded.float() - rows).norm(dim=1).max())
    error = scan_error(rounding, 64, torch.bfloat16)
    scanned = torch.mm(rounded, rounded.T).double()
    exact = rows.double() @ rows.double().T
    assert float((scanned - exact).abs().max()) <= error < 0.02
    cutoffs = np.array([0.0, 0.25, 0.8])
    for product in (True, False):
        assert (
            left_out(cutoffs, error, product=product, modality="both") >= (cutoffs if product else cutoffs**2 / 4)
        ).all()


def test_exact_scores_agree_with_the_reference_to_the_bit() -> None:
    image, text = clustered(500)
    features, rows = Features(image, text), np.arange(40)
    candidates = np.random.default_rng(0).integers(-1, 500, (40, 30))
    ids = np.arange(500) // 2
    u, v = features.read(slice(0, 500))
    scoring = Scoring(low=0.05)
    own = exact_scores(features, ids, rows, (u[:40], v[:40]), candidates, scoring)
    assert (own == rescore(u[:40], v[:40], ids[:40], rows, candidates, u, v, ids, scoring)).all()


def test_release_keeps_what_was_written(tmp_path: Path) -> None:
    shared = np.lib.format.open_memmap(tmp_path / "a.npy", mode="w+", dtype=np.float32, shape=(4096,))
    shared[:] = 3
    release(shared)
    assert (shared == 3).all()
    np.save(tmp_path / "b.npy", np.zeros(4096, np.float32))
    private = np.load(tmp_path / "b.npy", mmap_mode="c")
    private[:] = 5
    release(private[10:])
    assert (private == 5).all(), "a private map would lose its changes"
