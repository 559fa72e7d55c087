"""Retrieval both ways, with any number of captions a picture, in bounded memory.

Legend: N pictures, M texts, E width of the shared space.

Source: the protocol of Karpathy & Fei-Fei 2015 (arXiv:1412.2306), section 4.2: the rank of the first right answer.
Differs: a wrong answer that scores as high as the right one counts as ahead of it, so that equal vectors earn nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..errors import ConfigError, DataError, ShapeError

CLOSE = 1e-6
"""Scores nearer than this are ties: as near as rounding brings two equal ones."""


@torch.inference_mode()
def retrieval(
    image_features: NDArray[Any] | Tensor,
    text_features: NDArray[Any] | Tensor,
    image_of_text: ArrayLike | None = None,
    ks: Sequence[int] = (1, 5, 10),
    *,
    memory_mb: float = 64.0,
) -> dict[str, Any]:
    """Return recall at k and the median rank in both directions.

    Args:
        image_features: (N, E) and
        text_features: (M, E), of length 1; arrays (memory-mapped ones, too) or tensors on one device.
        image_of_text: (M,), the picture of each text; None if text i belongs to picture i.
        ks: cut-offs of the recall.
        memory_mb: bound on the scores held at a time.

    Returns:
        ``image_to_text``, ``text_to_image`` and ``mean`` (of the two), each with ``r1``, ``r5``... (shares in [0, 1])
        and ``median_rank`` (1 is best); and the numbers of ``images``, ``texts`` and ``images_without_text``, which
        are never searched with but can be found. A picture's rank is that of its best caption among the captions of
        others; its own other captions are neither right twice nor in the way.

    Raises:
        ConfigError: for a k or a memory below what can be used.
        DataError: for vectors that are not finite or not of length 1, or numbers of pictures that do not exist.
        ShapeError: if shapes do not fit together.
    """
    if not ks or min(ks) < 1:
        raise ConfigError(f"ks={tuple(ks)}, expected numbers from 1", hint="use (1, 5, 10)")
    if memory_mb <= 0:
        raise ConfigError(f"memory_mb={memory_mb}, expected more than 0", hint="use 64")
    images, texts = _checked(image_features, "pictures"), _checked(text_features, "texts")
    if images.shape[1] != texts.shape[1]:
        raise ShapeError(
            f"pictures are {images.shape[1]} wide, texts {texts.shape[1]}", hint="encode both with the same model"
        )
    owner = _owners(image_of_text, len(images), len(texts))
    forward = _summary(_image_ranks(images, texts, owner, memory_mb), ks)
    backward = _summary(_text_ranks(images, texts, owner, memory_mb), ks)
    return {
        "image_to_text": forward,
        "text_to_image": backward,
        "mean": {key: (forward[key] + backward[key]) / 2 for key in forward},
        "images": len(images),
        "texts": len(texts),
        "images_without_text": len(images) - len(np.unique(owner)),
    }


def _text_ranks(images: Tensor, texts: Tensor, owner: NDArray[np.int64], memory_mb: float) -> NDArray[np.int64]:
    """Return the rank of each text's picture among all pictures, from 1."""
    ranks = np.empty(len(texts), np.int64)
    owners = torch.from_numpy(owner).to(images.device)
    block = _block(len(images), memory_mb)
    for start in range(0, len(texts), block):
        rows = slice(start, start + block)
        scores = texts[rows].float() @ images.T  # (b, N)
        own = scores.gather(1, owners[rows, None])
        ranks[rows] = (scores >= own - CLOSE).sum(1).cpu().numpy()  # the picture itself counts once
    return ranks


def _image_ranks(images: Tensor, texts: Tensor, owner: NDArray[np.int64], memory_mb: float) -> NDArray[np.int64]:
    """Return, for each picture with texts, the rank of its best text among the texts of others, from 1."""
    order = np.argsort(owner, kind="stable")  # texts by picture
    searched, starts, counts = np.unique(owner[order], return_index=True, return_counts=True)
    ranks = np.empty(len(searched), np.int64)
    block = _block(len(texts), memory_mb)
    for start in range(0, len(searched), block):
        rows = slice(start, start + block)
        scores = images[torch.from_numpy(searched[rows]).to(images.device)].float() @ texts.T  # (b, M)
        first, last = int(starts[rows][0]), int(starts[rows][-1] + counts[rows][-1])
        own_row = torch.from_numpy(np.repeat(np.arange(len(searched[rows])), counts[rows])).to(images.device)
        own_text = torch.from_numpy(order[first:last]).to(images.device)
        best = torch.full((len(scores),), -torch.inf, device=images.device)
        best.scatter_reduce_(0, own_row, scores[own_row, own_text], "amax")
        scores[own_row, own_text] = -torch.inf
        ranks[rows] = 1 + (scores >= best[:, None] - CLOSE).sum(1).cpu().numpy()
    return ranks


def _summary(ranks: NDArray[np.int64], ks: Sequence[int]) -> dict[str, float]:
    return {**{f"r{k}": float((ranks <= k).mean()) for k in ks}, "median_rank": float(np.median(ranks))}


def _block(columns: int, memory_mb: float) -> int:
    """Return how many rows of scores fit; scores and their comparison take 5 bytes each."""
    return max(1, int(memory_mb * 2**20 / (5 * columns)))


def _checked(features: NDArray[Any] | Tensor, what: str) -> Tensor:
    """Return float32 (n, E) after the checks; a float32 array is not copied."""
    if isinstance(features, Tensor):
        tensor = features.detach()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a memory map may be read-only, and is only read
            tensor = torch.from_numpy(np.asarray(features))
    if tensor.ndim != 2 or len(tensor) == 0 or not tensor.is_floating_point():
        raise ShapeError(
            f"{what} of shape {tuple(tensor.shape)} and {tensor.dtype}, expected floats (rows, width)",
            hint="pass unit vectors, one row each",
        )
    tensor = tensor.float()
    lengths = tensor.norm(dim=1)
    wrong = ~((lengths - 1).abs() < 1e-2)  # NaN is wrong, too; 16-bit features are about 1e-3 off
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise DataError(
            f"{int(wrong.sum())} {what} are not of length 1, the first is row {row} of length {float(lengths[row]):.4g}",
            hint="divide each row by its length; look for NaN and rows of zeros",
        )
    return tensor


def _owners(image_of_text: ArrayLike | None, num_images: int, num_texts: int) -> NDArray[np.int64]:
    if image_of_text is None:
        if num_images != num_texts:
            raise ShapeError(
                f"{num_images} pictures and {num_texts} texts", hint="pass image_of_text, the picture of each text"
            )
        return np.arange(num_images)
    owner = np.asarray(image_of_text)
    if owner.shape != (num_texts,) or not np.issubdtype(owner.dtype, np.integer):
        raise ShapeError(
            f"image_of_text is {owner.dtype} {owner.shape}, expected whole numbers ({num_texts},)",
            hint="give the picture of each text",
        )
    if owner.min() < 0 or owner.max() >= num_images:
        raise DataError(
            f"image_of_text names pictures {owner.min()} to {owner.max()} of {num_images}", hint="number them from 0"
        )
    return owner.astype(np.int64)
