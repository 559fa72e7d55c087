from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from huaben.clip.retrieval import retrieval
from huaben.errors import ConfigError, DataError, ShapeError


def unit(rows: int, width: int = 16, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_own_vectors_are_found_first_in_both_directions() -> None:
    vectors = unit(20)
    result = retrieval(vectors, vectors)
    for direction in ("image_to_text", "text_to_image", "mean"):
        assert result[direction] == {"r1": 1.0, "r5": 1.0, "r10": 1.0, "median_rank": 1.0}
    assert (result["images"], result["texts"], result["images_without_text"]) == (20, 20, 0)


def test_ranks_equal_a_plain_sort_with_several_captions() -> None:
    images, texts = unit(30), unit(90, seed=1)
    owner = np.random.default_rng(2).integers(0, 28, 90)  # pictures 28 and 29 have no text
    scores = images @ texts.T
    forward = [
        1 + sum(scores[i, t] >= scores[i, owner == i].max() for t in range(90) if owner[t] != i)
        for i in range(30)
        if (owner == i).any()
    ]
    backward = [1 + sum(scores[i, t] >= scores[owner[t], t] for i in range(30) if i != owner[t]) for t in range(90)]
    result = retrieval(images, texts, owner, ks=(1, 3, 10))
    for name, ranks in (("image_to_text", forward), ("text_to_image", backward)):
        for k in (1, 3, 10):
            assert result[name][f"r{k}"] == pytest.approx(np.mean(np.array(ranks) <= k))
        assert result[name]["median_rank"] == np.median(ranks)
    assert result["images_without_text"] == 30 - len(forward)


def test_other_captions_of_the_same_picture_are_not_in_the_way() -> None:
    images = np.eye(4, dtype=np.float32)[:3]
    texts = np.repeat(images, 2, axis=0)
    result = retrieval(images, texts, [0, 0, 1, 1, 2, 2], ks=(1,))
    assert result["image_to_text"]["r1"] == result["text_to_image"]["r1"] == 1.0


def test_ties_count_against_even_when_rounding_splits_them() -> None:
    vector = unit(1)
    same = np.repeat(vector, 5, axis=0)
    result = retrieval(same, same, ks=(1, 5))
    assert result["text_to_image"] == result["image_to_text"] == {"r1": 0.0, "r5": 1.0, "median_rank": 5.0}


@pytest.mark.parametrize("memory_mb", [1e-6, 1e-3, 0.01])
def test_memory_bound_changes_nothing(memory_mb: float) -> None:
    images, texts = unit(40), unit(70, seed=3)
    owner = np.random.default_rng(4).integers(0, 40, 70)
    assert retrieval(images, texts, owner, memory_mb=memory_mb) == retrieval(images, texts, owner)


def test_tensors_half_precision_and_read_only_maps_are_taken(tmp_path: Path) -> None:
    images = unit(12)
    expected = retrieval(images, images)
    assert retrieval(torch.from_numpy(images), torch.from_numpy(images)) == expected
    np.save(tmp_path / "image.npy", images)
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    assert retrieval(mapped, mapped) == expected
    assert retrieval(images.astype(np.float16), images)["mean"]["r1"] == 1.0


def test_bad_input_is_named() -> None:
    vectors = unit(6)
    broken = vectors.copy()
    broken[3, 2] = np.nan
    with pytest.raises(DataError, match="row 3"):
        retrieval(broken, vectors)
    zero = vectors.copy()
    zero[4] = 0
    with pytest.raises(DataError, match=r"1 texts .* row 4"):
        retrieval(vectors, zero)
    with pytest.raises(ShapeError, match="image_of_text"):
        retrieval(vectors, vectors[:5])
    with pytest.raises(ShapeError, match="wide"):
        retrieval(vectors, unit(6, 8))
    with pytest.raises(ShapeError, match=r"expected floats"):
        retrieval(vectors[0], vectors)
    with pytest.raises(DataError, match="1 to 6 of 6"):
        retrieval(vectors, vectors, [1, 2, 3, 4, 5, 6])
    with pytest.raises(ShapeError, match="whole numbers"):
        retrieval(vectors, vectors, np.arange(6.0))
    with pytest.raises(ConfigError, match="ks"):
        retrieval(vectors, vectors, ks=(0,))
    with pytest.raises(ConfigError, match="memory_mb"):
        retrieval(vectors, vectors, memory_mb=0)
