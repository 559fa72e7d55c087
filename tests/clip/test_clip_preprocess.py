from __future__ import annotations

import numpy as np
import pytest
import torch

from huaben.clip.preprocess import preprocess
from huaben.errors import ShapeError


def test_range_layout_and_order() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[:8, :, 0] = 255
    pixels = preprocess([image], 16)
    assert pixels.shape == (1, 3, 16, 16)
    assert pixels.dtype == torch.float32
    assert pixels[0, 0, 0, 0] == 1.0
    assert pixels[0, 0, 15, 0] == -1.0
    assert (pixels[0, 1:] == -1).all()


def test_an_array_and_a_list_agree_and_sizes_may_differ() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    torch.testing.assert_close(preprocess(images, 16), preprocess(list(images), 16))
    mixed = preprocess([images[0], rng.integers(0, 256, (50, 20, 3), dtype=np.uint8)], 16)
    assert mixed.shape == (2, 3, 16, 16)
    assert mixed.abs().max() <= 1


def test_shrinking_keeps_the_mean() -> None:
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mean = torch.tensor(image.mean((0, 1)) / 127.5 - 1, dtype=torch.float32)
    torch.testing.assert_close(preprocess([image], 16)[0].mean((1, 2)), mean, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((16, 16), np.uint8),
        np.zeros((16, 16, 4), np.uint8),
        np.zeros((16, 16, 3)),
        np.zeros((4, 16, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="RGB"):
        preprocess([image], 16)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ShapeError, match="no picture"):
        preprocess([], 16)


def test_pictures_that_must_not_be_written_are_read() -> None:
    picture = np.full((32, 32, 3), 255, np.uint8)
    picture.setflags(write=False)
    assert torch.equal(preprocess([picture], 16), torch.ones(1, 3, 16, 16))  # torch warns of read-only arrays
    assert torch.equal(preprocess(np.broadcast_to(picture, (2, 32, 32, 3)), 16), torch.ones(2, 3, 16, 16))
