"""The mining measurement: its data is as described, its figures are true, and it says what it extrapolates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from huaben.bench.mining import measure, measure_apart, pair_source, plot, recall, run, write_pairs
from huaben.errors import ConfigError
from huaben.optional import is_available

TASK: dict[str, Any] = {
    "k": 10,
    "seed": 0,
    "queries": 40,
    "threads": 1,
    "memory_mb": 256,
    "fast_candidates": 200,
    "ann": {"index": "ivf", "lists": 16, "probes": 8},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder, 1500, 32, "strong", 0)
    return folder


def test_pairs_are_unit_repeatable_and_coupled_as_named(place: Path) -> None:
    image = np.load(place / "image.npy")
    assert image.shape == (1500, 32) and image.dtype == np.float16
    assert np.linalg.norm(image.astype(np.float32), axis=1) == pytest.approx(np.ones(1500), abs=2e-3)
    assert torch.equal(pair_source(32, "strong", 0)(0, 1500)[0].half(), torch.from_numpy(image))
    agreement = []
    for coupling in ("strong", "weak", "none"):
        sides = [side - side.mean(0) for side in pair_source(64, coupling, 1)(0, 600)]
        first, second = ((side @ side.T)[~torch.eye(600, dtype=torch.bool)] for side in sides)
        agreement.append(float(torch.corrcoef(torch.stack([first, second]))[0, 1]))
    assert agreement[0] > agreement[1] + 0.1 > agreement[2] + 0.15
    assert abs(agreement[2]) < 0.05


def test_every_method_is_measured_and_recall_is_against_exact(place: Path) -> None:
    task = TASK | {"folder": str(place)}
    exact, reference = measure(task | {"method": "exact"})
    assert exact["extrapolated"] and reference.shape == (40, 10)
    ann, rows = measure(task | {"method": "ann"})
    assert not ann["extrapolated"] and recall(rows, reference) > 0.9
    assert ann["settings"]["index"] == "ivf" and ann["pairs_per_s"] > 0
    fast, rows = measure(task | {"method": "fast"})
    assert fast["expected_recall"] == pytest.approx(200 / 1500, abs=1e-4)
    assert recall(rows, reference) == pytest.approx(200 / 1500, abs=0.08)
    assert all(record["peak_mb"] is None or record["peak_mb"] > 0 for record in (exact, ann, fast))
    if is_available("faiss"):
        for peer in ("faiss_flat", "faiss_ivf", "faiss_hnsw"):
            record, rows = measure(task | {"method": peer})
            assert recall(rows, reference) > (0.99 if peer == "faiss_flat" else 0.5)
            assert record["setup_s"] >= 0


def test_run_measures_apart_and_draws(tmp_path: Path) -> None:
    results = run(
        3,
        sizes=(700,),
        dims=16,
        k=5,
        methods=("exact", "ann"),
        peers=("faiss_hnsw",),
        peer_limit=100,
        queries=30,
        threads=1,
        memory_mb=128,
    )
    methods = results["cases"][0]["methods"]
    assert methods["exact"]["recall"] == 1 and methods["exact"]["speedup"] == 1
    assert methods["ann"]["recall"] == 1, "so few pairs are scanned whole"
    assert "skipped" in methods["faiss_hnsw"]
    assert methods["ann"]["cpu_speedup"] > 0
    if is_available("matplotlib"):
        plot({"results": results, "config": {"k": 5}}, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").stat().st_size > 1000


def test_recall_counts_entries() -> None:
    assert recall(np.array([[1, 2, -1]]), np.array([[2, 3, -1]])) == 0.5
    assert recall(np.array([[4, 5]]), np.array([[5, 4]])) == 1


def test_run_refuses_what_cannot_be_measured(tmp_path: Path) -> None:
    for wrong in (
        {"sizes": (100,), "queries": 200},
        {"methods": ("ann",)},
        {"methods": ("exact", "guess")},
        {"couplings": ("some",)},
        {"sizes": ()},
    ):
        with pytest.raises(ConfigError):
            run(0, **wrong)  # type: ignore[arg-type]
    from huaben.errors import GenerationError

    with pytest.raises(GenerationError, match="status"):
        measure_apart(TASK | {"folder": str(tmp_path), "method": "exact"})
