"""Inverted lists over pairs: k-means on the joint vectors, every list stored in one piece, lengths kept within a bound.

A pair's joint vector is the concatenation of its unit image and unit caption features, ``w_i = [u_i ; v_i]``, so
``w_i . w_j`` is the sum of the two cosines (HELIP specification of the joint space: one index over both modalities).
Centroids are trained on a sample; each list longer than a bound is cut in two along its main direction until it fits,
so that no query pays for one huge list. Rows are then copied in list order in the number format of the scan.

Everything read or written is read and written a block at a time. What does not fit the memory given lies in files and
is unmapped again as the work goes on, so that the process stays within its bound.

Legend: N pairs, E width of one modality, L lists.
"""

from __future__ import annotations

import mmap
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ConfigError, DataError, ShapeError
from ..files import write_bytes
from ..rng import numpy_stream, torch_stream
from .mining_core import FloatArray, IntArray, Modality, as_array, normalise

Item = TypeVar("Item")
Found = TypeVar("Found")
Report = Callable[[str, int, int], object]
"""Called with what is done, how much of it, and of how much."""

Precision = Literal["auto", "bfloat16", "float32"]
READ_ROWS = 4096
PAD_ROWS = 64
"""Rows stored after the last list, so that a list can be read as a multiple of this many."""
SAMPLE_PER_LIST = 48
ITERATIONS = 8
SMALL_LIST = 0.125
"""A list below this share of the mean length gives its centroid to a long one while training."""
MAX_LIST = 2.0
"""No list is longer than this many times the mean length."""


def scan_dtype(precision: Precision) -> torch.dtype:
    """Return the number format of the scan; "auto" takes bfloat16 where the processor multiplies it natively."""
    if precision not in ("auto", "bfloat16", "float32"):
        raise ConfigError(f"precision={precision!r}", hint="use 'auto', 'bfloat16' or 'float32'")
    if precision == "auto":
        found = torch.cpu.get_capabilities()
        return torch.bfloat16 if found.get("avx512_bf16") or found.get("amx_bf16") else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def release(*arrays: NDArray[Any]) -> None:
    """Give the pages of memory-mapped arrays back to the system; what they hold stays in the file.

    Only shared maps are touched: a private (copy-on-write) one would lose what was written to it.
    """
    for array in arrays:
        held = _map_of(array)
        if held is not None and hasattr(mmap, "MADV_DONTNEED"):
            held.madvise(mmap.MADV_DONTNEED)


def is_mapped(array: NDArray[Any]) -> bool:
    """Return whether the array's pages can be given back."""
    return _map_of(array) is not None


def _map_of(array: NDArray[Any]) -> mmap.mmap | None:
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        if isinstance(base, np.memmap) and base.mode == "c":
            return None
        base = base.base if isinstance(base, np.ndarray) else None
    return base


def each(workers: int, call: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
    """Yield ``call(item)`` in order, from threads of which each lets torch use one: the same bits for any number."""
    if workers == 1:
        yield from map(call, items)
        return
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield from pool.map(call, items)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@dataclass(slots=True)
class Space:
    """Where large arrays live: in memory up to a bound, else in files of a folder.

    Attributes:
        budget: bytes that arrays may still take in memory.
        folder: kept files live here; None for nameless temporary ones.
    """

    budget: int
    folder: Path | None = None

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return an array of zeros, or what a kept file of this name, shape and type holds."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self.folder is not None:
            path = self.folder / f"{name}.npy"
            if path.exists():
                kept = np.load(path, mmap_mode="r+")
                if kept.shape == shape and kept.dtype == np.dtype(dtype):
                    return kept
            return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if size <= self.budget or not size:
            self.budget -= size
            return np.zeros(shape, dtype)
        with tempfile.TemporaryFile(prefix="huaben-mining-") as file:
            return np.memmap(file, dtype=dtype, mode="w+", shape=shape)


class Features:
    """Unit rows of both modalities, made from the arrays a block at a time; each row's bits depend on it alone.

    Args:
        image, text: (N, E) floating arrays, memory maps or tensors; the two widths may differ.
        image_mean, text_mean: (E,), subtracted first; or None.
        budget: bytes of mapped pages that may stay mapped.
    """

    def __init__(
        self,
        image: Any,
        text: Any,
        image_mean: NDArray[np.float64] | None = None,
        text_mean: NDArray[np.float64] | None = None,
        *,
        budget: int = 1 << 28,
    ) -> None:
        self.image, self.text = as_array(image, "image features"), as_array(text, "text features")
        if len(self.image) != len(self.text):
            raise ShapeError(
                f"{len(self.image)} images and {len(self.text)} captions", hint="row i of both must be pair i"
            )
        self.image_mean, self.text_mean = image_mean, text_mean
        self.mapped = is_mapped(self.image) or is_mapped(self.text)
        self.budget, self._touched = budget, 0
        self._page_bytes = sum(max(mmap.PAGESIZE, side.shape[1] * side.itemsize) for side in (self.image, self.text))

    def __len__(self) -> int:
        return len(self.image)

    def read(self, rows: slice | IntArray) -> tuple[FloatArray, FloatArray]:
        """Return float32 unit rows (n, E) of both modalities.

        Raises:
            DataError: for NaN, infinite or zero rows.
        """
        first = rows.start if isinstance(rows, slice) else 0
        image = normalise(self.image[rows], name="image features", first_row=first, mean=self.image_mean)
        text = normalise(self.text[rows], name="text features", first_row=first, mean=self.text_mean)
        if self.mapped:
            self._touched += len(image) * self._page_bytes
            if self._touched > self.budget:
                self._touched = 0
                release(self.image, self.text)
        return image, text

    def joint(self, rows: slice | IntArray, modality: Modality, dtype: torch.dtype) -> torch.Tensor:
        """Return joint vectors (n, E_image + E_text), or of one modality alone, in the scan's number format."""
        image, text = self.read(rows)
        sides = [side for side, name in ((image, "text"), (text, "image")) if modality != name]
        return torch.cat([torch.from_numpy(side) for side in sides], 1).to(dtype)


@dataclass(slots=True)
class Lists:
    """Pairs in list order.

    Attributes:
        order: (N,), the row at each position.
        starts: (L + 1,), where each list begins.
        image, text: (N + padding, E), unit rows in list order, in the scan's format (bfloat16 kept as its 16 bits).
        centroids: (L, E_image + E_text) float32; None if there is nothing to choose between (a flat scan).
        rounding: the largest distance of a row from its unit float32 row, over both modalities.
        image_bound, text_bound: (L,), cosine and sine of the largest angle between the list's rows and its centroid's
            direction in that modality, as (L, 2) float32.
    """

    order: IntArray
    starts: IntArray
    image: NDArray[Any]
    text: NDArray[Any]
    centroids: torch.Tensor | None
    rounding: float
    image_bound: torch.Tensor | None = None
    text_bound: torch.Tensor | None = None

    @property
    def count(self) -> int:
        return len(self.starts) - 1

    @property
    def longest(self) -> int:
        return int(np.diff(self.starts).max())

    def save(self, path: Path) -> None:
        """Write what the stored rows do not hold."""
        values: dict[str, NDArray[Any]] = {"order": self.order, "starts": self.starts}
        values["rounding"] = np.array(self.rounding)
        for name in ("centroids", "image_bound", "text_bound"):
            tensor = getattr(self, name)
            if tensor is not None:
                values[name] = tensor.numpy()
        data = BytesIO()
        np.savez(data, **values)  # type: ignore[arg-type]
        write_bytes(path, data.getvalue())

    @classmethod
    def load(cls, path: Path, features: Features, space: Space, dtype: torch.dtype) -> Lists:
        """Open what :meth:`save` wrote, with the rows kept beside it.

        Raises:
            DataError: if the file cannot be read.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                values = {name: file[name] for name in file.files}
            order, starts, rounding = values.pop("order"), values.pop("starts"), float(values.pop("rounding"))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} cannot be read ({error})", hint="remove the folder and start again") from error
        tensors = {name: torch.from_numpy(value) for name, value in values.items()}
        image, text = _stored_arrays(features, space, dtype)
        return cls(order, starts, image, text, tensors.pop("centroids", None), rounding, **tensors)

    def tensor(self, side: str, first: int, last: int) -> torch.Tensor:
        """Return unit rows at positions [first, last) of one modality, in the scan's format."""
        return as_tensor((self.image if side == "image" else self.text)[first:last])


def as_tensor(stored: NDArray[Any]) -> torch.Tensor:
    """Return stored rows as a tensor; 16-bit integers hold bfloat16."""
    tensor = torch.from_numpy(stored)
    return tensor.view(torch.bfloat16) if stored.dtype == np.int16 else tensor


def flat_lists(
    features: Features,
    space: Space,
    dtype: torch.dtype,
    *,
    length: int = 2048,
    workers: int = 1,
    report: Report | None = None,
) -> Lists:
    """Return pairs in their own order, cut into pieces: every query scans all of them."""
    total = len(features)
    starts = np.append(np.arange(0, total, length), total).astype(np.int64)
    order = np.arange(total, dtype=np.int64)
    image, text, rounding = _store(features, order, space, dtype, workers, report)
    return Lists(order, starts, image, text, None, rounding)


def build_lists(
    features: Features,
    space: Space,
    dtype: torch.dtype,
    *,
    num_lists: int,
    modality: Modality,
    seed: int,
    memory: int,
    workers: int = 1,
    report: Report | None = None,
) -> Lists:
    """Train centroids, give every pair to its nearest, cut long lists, and store the pairs in list order.

    Args:
        features: the pairs.
        space: where the stored rows live.
        dtype: format of the scan.
        num_lists: centroids trained; cutting long lists adds some.
        modality: what the joint vector holds.
        seed: of the sample and the first centroids.
        memory: bytes for the training sample.
        workers: threads; the result does not depend on them.
        report: called with ("lists", rows done, rows to do).
    """
    total = len(features)
    width = features.image.shape[1] + features.text.shape[1]
    most = max(num_lists, memory // (width * (dtype.itemsize + 4)))
    size = min(total, SAMPLE_PER_LIST * num_lists, most)
    rows = np.sort(numpy_stream(seed, "mining", "sample").choice(total, size, replace=False))
    sample = torch.cat(
        [features.joint(piece, modality, dtype) for piece in np.array_split(rows, -(-size // READ_ROWS))]
    )
    centroids = k_means(sample, num_lists, seed=seed, workers=workers)
    del sample
    labels = np.empty(total, np.int64)

    def assign(first: int) -> int:
        piece = slice(first, min(first + READ_ROWS, total))
        labels[piece] = nearest(features.joint(piece, modality, dtype), centroids).numpy()
        return piece.stop

    for done in each(workers, assign, range(0, total, READ_ROWS)):
        if report is not None:
            report("lists", done, 2 * total)
    longest = max(64, int(MAX_LIST * total / num_lists))
    labels, centroids = _cut(features, labels, centroids, longest, modality, dtype)
    labels, centroids = _neighbours_adjacent(labels, centroids, seed)
    order = np.argsort(labels, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=len(centroids)))]).astype(np.int64)
    image, text, rounding = _store(features, order, space, dtype, workers, report)
    lists = Lists(order, starts, image, text, centroids, rounding)
    _bound(lists, features.image.shape[1], modality)
    return lists


def k_means(
    rows: torch.Tensor, count: int, *, seed: int, iterations: int = ITERATIONS, workers: int = 1
) -> torch.Tensor:
    """Return (count, W) float32 centroids of (n, W) rows: Lloyd's iterations from random rows.

    Clusters that are nearly empty start again beside a random row of one of the longest.
    """
    generator = torch_stream(seed, "mining", "centroids")
    centroids = rows[torch.randperm(len(rows), generator=generator)[:count]].float()
    for iteration in range(iterations):
        labels = nearest(rows, centroids, workers)
        sizes = torch.bincount(labels, minlength=len(centroids))
        sums = torch.zeros_like(centroids)
        for first in range(0, len(rows), READ_ROWS):
            sums.index_add_(0, labels[first : first + READ_ROWS], rows[first : first + READ_ROWS].float())
        centroids = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centroids)
        small = (sizes < SMALL_LIST * len(rows) / len(centroids)).nonzero()[:, 0]
        if iteration < iterations - 2 and len(small):
            donors = sizes.argsort(descending=True, stable=True)[: len(small)]
            chosen = torch.randperm(len(rows), generator=generator)
            is_donor = torch.zeros(len(centroids), dtype=torch.bool)
            is_donor[donors] = True
            chosen = chosen[is_donor[labels[chosen]]][: len(small)]
            centroids[small[: len(chosen)]] = rows[chosen].float()
    return centroids


def nearest(rows: torch.Tensor, centroids: torch.Tensor, workers: int = 1) -> torch.Tensor:
    """Return for each of (n, W) rows the index of the nearest of (L, W) centroids."""
    scan = centroids.to(rows.dtype).T
    half = centroids.square().sum(1) / 2
    step = READ_ROWS // 4

    def some(first: int) -> torch.Tensor:
        return (torch.mm(rows[first : first + step], scan).float() - half).argmax(1)

    return torch.cat(list(each(workers, some, range(0, len(rows), step))))


def _cut(
    features: Features,
    labels: IntArray,
    centroids: torch.Tensor,
    longest: int,
    modality: Modality,
    dtype: torch.dtype,
) -> tuple[IntArray, torch.Tensor]:
    """Cut every list longer than ``longest`` at the median of its main direction, again and again."""
    added: list[torch.Tensor] = []
    sizes = np.bincount(labels, minlength=len(centroids))
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(sizes)
    for number in np.flatnonzero(sizes > longest):
        members = order[ends[number] - sizes[number] : ends[number]]
        # read at most 64 lists' worth at once, in place order; a huge list is first cut without looking
        pieces = np.array_split(members, -(-len(members) // (64 * longest)))
        first = True
        for piece in pieces:
            joint = features.joint(piece, modality, dtype)
            for part in _halves(joint, longest):
                label = number if first else len(centroids) + len(added)
                mean = joint[part].float().mean(0)
                if first:
                    centroids[number] = mean
                    first = False
                else:
                    added.append(mean)
                labels[piece[part.numpy()]] = label
    return labels, torch.cat([centroids, torch.stack(added)]) if added else centroids


def _halves(joint: torch.Tensor, longest: int) -> list[torch.Tensor]:
    """Return indices of the parts: cut at the median along the main direction while too long."""
    parts = []
    open_parts = [torch.arange(len(joint))]
    while open_parts:
        part = open_parts.pop()
        if len(part) <= longest:
            parts.append(part)
            continue
        rows = joint[part].float()
        rows -= rows.mean(0)
        direction = rows[rows.square().sum(1).argmax()]
        for _ in range(4):  # power iterations; the cut need not be exact
            direction = rows.T @ (rows @ direction)
            direction = direction / direction.norm().clamp(min=1e-20)
        ranked = (rows @ direction).argsort(stable=True)
        middle = len(part) // 2
        open_parts += [part[ranked[middle:].sort().values], part[ranked[:middle].sort().values]]
    return parts


def _neighbours_adjacent(labels: IntArray, centroids: torch.Tensor, seed: int) -> tuple[IntArray, torch.Tensor]:
    """Drop empty lists and number the others so that near ones stand together: a block of queries shares its lists."""
    used = np.bincount(labels, minlength=len(centroids)) > 0
    groups = max(1, int(len(centroids) ** 0.5))
    group = nearest(centroids, k_means(centroids, groups, seed=seed)).numpy()
    ranked = np.lexsort((np.arange(len(centroids)), group))
    ranked = ranked[used[ranked]]
    number = np.full(len(centroids), -1, np.int64)
    number[ranked] = np.arange(len(ranked))
    return number[labels], centroids[torch.from_numpy(ranked)]


def _store(
    features: Features, order: IntArray, space: Space, dtype: torch.dtype, workers: int, report: Report | None
) -> tuple[NDArray[Any], NDArray[Any], float]:
    """Copy unit rows in list order; return them and the largest rounding error of a row."""
    total = len(features)
    stored = _stored_arrays(features, space, dtype)
    place = np.empty(total, np.int64)
    place[order] = np.arange(total)

    def copy(first: int) -> tuple[int, float]:
        piece = slice(first, min(first + READ_ROWS, total))
        rounding = 0.0
        for target, side in zip(stored, features.read(piece), strict=True):
            unit = torch.from_numpy(side)
            rounded = unit.to(dtype)
            if dtype != torch.float32:
                rounding = max(rounding, float((rounded.float() - unit).norm(dim=1).max()))
            target[place[piece]] = (rounded.view(torch.int16) if dtype == torch.bfloat16 else rounded).numpy()
        return piece.stop, rounding

    largest, mapped = 0.0, 0
    for done, rounding in each(workers, copy, range(0, total, READ_ROWS)):
        largest = max(largest, rounding)
        mapped += READ_ROWS * sum(max(mmap.PAGESIZE, side.shape[1] * side.itemsize) for side in stored)
        if mapped > features.budget:
            mapped = 0
            release(*stored)
        if report is not None:
            report("lists", total + done, 2 * total)
    release(*stored)
    return stored[0], stored[1], largest


def _stored_arrays(features: Features, space: Space, dtype: torch.dtype) -> tuple[NDArray[Any], NDArray[Any]]:
    kind: Any = np.int16 if dtype == torch.bfloat16 else np.float32
    rows = len(features) + PAD_ROWS
    image, text = (side.shape[1] for side in (features.image, features.text))
    return space.array("image", (rows, image), kind), space.array("text", (rows, text), kind)


def _bound(lists: Lists, width: int, modality: Modality) -> None:
    """Measure how far, in angle, each list reaches from its centroid's direction, in each modality used."""
    assert lists.centroids is not None
    sides = [name for name in ("image", "text") if modality in ("both", name)]
    offset = 0
    for name in sides:
        joint = lists.centroids.shape[1]
        span = joint if len(sides) == 1 else (width if name == "image" else joint - width)
        direction = torch.nn.functional.normalize(lists.centroids[:, offset : offset + span], dim=1)
        offset += span
        lowest = torch.empty(lists.count)
        for number in range(lists.count):
            rows = lists.tensor(name, int(lists.starts[number]), int(lists.starts[number + 1])).float()
            lowest[number] = (rows @ direction[number]).min()
            if number % 64 == 63:
                release(lists.image, lists.text)
        lowest = (lowest - lists.rounding - 1e-5).clamp(-1, 1)  # a lower bound for the unrounded rows
        bound = torch.stack([lowest, (1 - lowest.square()).clamp(min=0).sqrt()], 1)
        if name == "image":
            lists.image_bound = bound
        else:
            lists.text_bound = bound
