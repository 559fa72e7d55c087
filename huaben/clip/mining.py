"""Hard-pair mining: for each image-caption pair, the other pairs that are near in both image and caption.

``exact`` compares all with all, in tiles; ``fast`` compares with a random subset (the paper's FastHPM); ``ann`` asks
one index over joined features and scores its answers exactly (:mod:`.mining_ann`).

Source: HELIP (arXiv:2305.05208), section 3.2.
Differs: cosines are clamped at 0 before they are multiplied; the pair itself and its duplicates are excluded by row
and by id; everything random is seeded; features may be larger than memory (:mod:`.mining_core` says more).

Legend: N pairs, k hard pairs kept for each, C candidates.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ConfigError, DataError, ShapeError
from ..files import folder_lock, store_error, write_bytes
from ..rng import check_seed, numpy_stream
from .hard_pairs import HardPairs
from .mining_core import (
    SPARE,
    FloatArray,
    IntArray,
    Modality,
    Scoring,
    as_array,
    normalise,
    search_pieces,
)

Method = Literal["exact", "fast", "ann"]
Progress = Callable[[int, int], None]
Lists = tuple[FloatArray, IntArray, NDArray[np.bool_]]

RELEASED_CANDIDATES = 3_000_000
"""FastHPM's subset in the released code."""

RELEASED_ROUND = 300_000
"""How many queries share one subset in the released code."""

MAX_BLOCK = 4096
_SCAN_ROWS = 4096


def mine_hard_pairs(
    image_features: Any,
    text_features: Any,
    k: int,
    *,
    method: Method = "exact",
    candidates: int | None = None,
    seed: int = 0,
    ids: Any = None,
    low: float = 0.0,
    duplicate: float = 0.98,
    center: bool = False,
    skip_top: int = 0,
    rank_stride: int = 1,
    modality: Modality = "both",
    round_size: int = RELEASED_ROUND,
    block: int | None = None,
    memory_mb: float = 1024.0,
    threads: int | None = None,
    progress: Progress | None = None,
    resume: str | Path | None = None,
    keys: Sequence[str] | None = None,
) -> HardPairs:
    """Return each pair's k hard pairs, by (-score, row).

    The score is ``cosine(image, image) * cosine(caption, caption)``. A cosine that is negative, below ``low`` or
    above ``duplicate`` counts as 0, and only scores above 0 are listed, so a list may be shorter than k (its pair is
    then marked an outlier). The result depends on the features and settings alone, never on ``block``,
    ``memory_mb``, ``threads`` or an interruption.

    Args:
        image_features: (N, width) of float16, float32 or float64: an array, a memory map, a tensor, or the path of
            a ``.npy`` file, which is then mapped. Rows need not have length 1.
        text_features: (N, any width), likewise; row i is the caption of image i.
        k: how many to keep, below N.
        method: "exact"; "fast" for FastHPM; "ann" for an index.
        candidates: "fast": size C of the random subset (by default the released 3,000,000, or N if smaller); its
            expected recall is C / N, so it is a dial of hardness rather than an approximation. "ann": how many
            candidates are scored exactly for each pair. Not for "exact".
        seed: what "fast" and "ann" draw from.
        ids: (N,) integers; pairs with equal ids (several captions of one image, copies) are never listed together.
        low: a cosine below it counts as 0 (the paper's noise mitigation).
        duplicate: a cosine above it counts as 0, in either modality; 1 turns this off.
        center: subtract each modality's mean feature first.
        skip_top: leave out this many of the best, where false negatives are likeliest.
        rank_stride: keep every so-many-th rank after that; what a subset of N / rank_stride would have given,
            without its noise.
        modality: "both", or "image" or "text" alone (the ablations).
        round_size: "fast": how many queries share a subset before it is drawn again.
        block: how many queries are finished, and kept by ``resume``, at a time.
        memory_mb: bound of the working memory, beside the features as given and the result (12 * N * k bytes).
        threads: CPU threads; by default what torch is set to.
        progress: called with (pairs done, N) after each block.
        resume: a folder for finished blocks. If the call is interrupted, the same call goes on where it stopped; the
            folder is removed at the end, except that "ann" keeps its index there.
        keys: N names, saved with the list so that it can be joined to reordered data.

    Raises:
        ShapeError: if the features, ids or keys do not fit together.
        DataError: for NaN, infinite or zero rows, a file that cannot be read, or a ``resume`` folder of other features
            or settings.
        ConfigError: for an impossible setting.
        StoreError: if the ``resume`` folder cannot be used.

    Source: HELIP section 3.2, equation 5; the fast method is its FastHPM.
    """
    scoring = Scoring(low=low, duplicate=duplicate, modality=modality)
    image, text = _open(image_features, "image_features"), _open(text_features, "text_features")
    if len(image) != len(text):
        raise ShapeError(
            f"{len(image)} image rows and {len(text)} text rows", hint="row i of both must be the same pair"
        )
    num = len(image)
    depth = _check_depth(num, k, skip_top, rank_stride)
    check_seed(seed)
    subset = _check_candidates(method, candidates, num, depth)
    for name, value, least in (("round_size", round_size, 1), ("block", block, 1), ("threads", threads, 1)):
        if value is not None and value < least:
            raise ConfigError(f"{name}={value}, expected at least {least}", hint="leave it out for the default")
    if not (math.isfinite(memory_mb) and memory_mb >= 16):
        raise ConfigError(f"memory_mb={memory_mb}, expected at least 16", hint="1024 suits most machines")
    groups = None if ids is None else _check_ids(ids, num)
    if keys is not None and len(keys) != num:
        raise ShapeError(f"{len(keys)} keys for {num} pairs", hint="give one key for each pair")

    with _threads(threads):
        features = Features(image, text, groups, center=center, memory_mb=0 if method == "ann" else memory_mb)
        settings: dict[str, Any] = {
            "method": method,
            "k": int(k),
            "candidates": subset,
            "seed": seed,
            "low": low,
            "duplicate": duplicate,
            "modality": modality,
            "center": center,
            "skip_top": int(skip_top),
            "rank_stride": int(rank_stride),
            "num_pairs": num,
            "image_width": image.shape[1],
            "text_width": text.shape[1],
            "fingerprint": features.fingerprint,
        }
        if method == "fast":
            settings["round_size"] = round_size
        if method == "ann":
            lists = _mine_ann(features, depth, scoring, subset, seed, memory_mb, settings, progress, resume)
        else:
            queries = Blocks(num, block or _default_block(features, depth, memory_mb), round_size)
            lists = _mine_blocks(features, queries, depth, scoring, subset, seed, settings, progress, resume)
    scores, rows, certified = lists
    settings["versions"] = _versions()
    ranks = slice(skip_top, depth, rank_stride)
    scores, rows = np.ascontiguousarray(scores[:, ranks]), np.ascontiguousarray(rows[:, ranks])
    return HardPairs(
        pairs=rows,
        scores=scores,
        certified=certified,
        outlier=rows[:, -1] < 0,
        keys=None if keys is None else list(keys),
        settings=settings,
    )


class Features:
    """Both modalities' unit rows, converted as they are needed and kept if they fit the memory.

    Args:
        image, text: (N, width) floating arrays, perhaps memory maps.
        ids: (N,) or None.
        center: subtract each modality's mean.
        memory_mb: working memory; half of it may go to kept rows (0 keeps none).

    Raises:
        DataError: for NaN, infinite or zero rows.
    """

    def __init__(
        self,
        image: NDArray[Any],
        text: NDArray[Any],
        ids: IntArray | None,
        *,
        center: bool = False,
        memory_mb: float = 1024.0,
    ) -> None:
        self.ids, self.memory_mb = ids, memory_mb
        self.raw = {"image_features": image, "text_features": text}
        self.mean = {name: _mean(raw) if center else None for name, raw in self.raw.items()}
        row_bytes = 4 * (image.shape[1] + text.shape[1])
        budget = memory_mb * 2**20
        self.cached = len(image) * row_bytes <= budget / 2
        self.piece_rows = max(256, int(budget / 4) // row_bytes)
        self.row_bytes = row_bytes
        self._unit: dict[str, FloatArray] = {}
        self._held: tuple[IntArray, FloatArray, FloatArray] | None = None
        self._digest = {}
        for name, raw in self.raw.items():
            self._digest[name] = self._scan(name, raw)

    def __len__(self) -> int:
        return len(self.raw["image_features"])

    def _scan(self, name: str, raw: NDArray[Any]) -> str:
        """Check every row, keep its unit form if there is room, and return a digest of the features."""
        digest = hashlib.blake2b(f"{raw.dtype.name} {raw.shape}".encode(), digest_size=16)
        kept = np.empty(raw.shape, np.float32) if self.cached else None
        for start in range(0, len(raw), _SCAN_ROWS):
            piece = np.ascontiguousarray(raw[start : start + _SCAN_ROWS])
            digest.update(piece.data.cast("B"))
            unit = normalise(piece, name=name, first_row=start, mean=self.mean[name])
            if kept is not None:
                kept[start : start + len(piece)] = unit
        if kept is not None:
            self._unit[name] = kept
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> dict[str, str | None]:
        """Digests of the features as given, and of the ids."""
        ids = None if self.ids is None else hashlib.blake2b(self.ids.tobytes(), digest_size=16).hexdigest()
        return {"image": self._digest["image_features"], "text": self._digest["text_features"], "ids": ids}

    def rows(self, which: IntArray | slice) -> tuple[FloatArray, FloatArray]:
        """Return the unit image and text features of some rows."""
        image, text = (
            self._unit[name][which] if self.cached else normalise(raw[which], name=name, mean=self.mean[name])
            for name, raw in self.raw.items()
        )
        return image, text

    def ids_of(self, which: IntArray | slice) -> IntArray | None:
        return None if self.ids is None else self.ids[which]

    def pieces(self, base: IntArray | None) -> Iterator[tuple[FloatArray, FloatArray, IntArray | None, IntArray]]:
        """Give the base (chosen rows, or all) piece by piece: image, text, ids, row numbers."""
        num = len(self) if base is None else len(base)
        held = self._hold(base)
        for start in range(0, num, self.piece_rows):
            piece = slice(start, min(start + self.piece_rows, num))
            rows = np.arange(piece.start, piece.stop) if base is None else base[piece]
            which = piece if base is None else rows
            image, text = self.rows(which) if held is None else (held[0][piece], held[1][piece])
            yield image, text, self.ids_of(which), rows

    def _hold(self, base: IntArray | None) -> tuple[FloatArray, FloatArray] | None:
        """Keep chosen rows for the blocks that share them, if not all rows are kept and these fit."""
        if base is None or self.cached or len(base) * self.row_bytes > self.memory_mb * 2**19:
            return None
        if self._held is None or self._held[0] is not base:
            self._held = None
            self._held = (base, *self.rows(base))
        return self._held[1:]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Queries cut into blocks that never cross a round.

    Attributes:
        num: number of queries.
        size: the most of them in a block.
        round_size: queries in a round.
    """

    num: int
    size: int
    round_size: int

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Give (round, start, stop) of every block."""
        for first in range(0, self.num, self.round_size):
            last = min(first + self.round_size, self.num)
            for start in range(first, last, self.size):
                yield first // self.round_size, start, min(start + self.size, last)


def subset_of_round(seed: int, number: int, num: int, candidates: int) -> IntArray:
    """Return FastHPM's candidates for one round: sorted rows, drawn uniformly without repetition."""
    drawn = numpy_stream(seed, "fast-hpm", number).choice(num, candidates, replace=False, shuffle=False)
    return np.sort(drawn).astype(np.int64)


def search_block(
    features: Features, start: int, stop: int, base: IntArray | None, k: int, scoring: Scoring
) -> tuple[FloatArray, IntArray]:
    """Return the exact k best of the chosen base rows (None: all) for the queries from ``start`` to ``stop``."""
    rows = np.arange(start, stop)
    image, text = features.rows(slice(start, stop))
    ids = features.ids_of(slice(start, stop))
    return search_pieces(image, text, ids, rows, k, scoring, lambda: features.pieces(base), features.rows)


def _mine_blocks(
    features: Features,
    blocks: Blocks,
    k: int,
    scoring: Scoring,
    subset: int | None,
    seed: int,
    settings: dict[str, Any],
    progress: Progress | None,
    resume: str | Path | None,
) -> Lists:
    """Mine block by block, through a work folder if there is one."""
    num = len(features)
    scores, rows = np.empty((num, k), np.float32), np.empty((num, k), np.int64)
    whole = subset is None or subset == num
    with nullcontext(None) if resume is None else _work(Path(resume), settings, blocks.size) as work:
        if work is not None:
            blocks = Blocks(num, work.block, blocks.round_size)
        drawn: tuple[int, IntArray | None] = (-1, None)
        for number, start, stop in blocks:
            found = None if work is None else work.read(start, stop, k)
            if found is None:
                if not whole and drawn[0] != number:
                    assert subset is not None  # the whole base otherwise
                    drawn = (number, subset_of_round(seed, number, num, subset))
                found = search_block(features, start, stop, drawn[1], k, scoring)
                if work is not None:
                    work.write(start, stop, *found)
            scores[start:stop], rows[start:stop] = found
            if progress is not None:
                progress(stop, num)
        if work is not None:
            work.finish()
    return scores, rows, np.full(num, whole)


def _mine_ann(
    features: Features,
    k: int,
    scoring: Scoring,
    candidates: int | None,
    seed: int,
    memory_mb: float,
    settings: dict[str, Any],
    progress: Progress | None,
    resume: str | Path | None,
) -> Lists:
    """Mine through an index, and note its settings."""
    from .mining_ann import mine_ann

    def report(what: str, done: int, total: int) -> None:
        if progress is not None and what == "search":
            progress(done, total)

    found = mine_ann(
        features.raw["image_features"],
        features.raw["text_features"],
        k,
        scoring=scoring,
        candidates=candidates,
        ids=features.ids,
        seed=seed,
        memory_mb=memory_mb,
        work=None if resume is None else Path(resume),
        image_mean=features.mean["image_features"],
        text_mean=features.mean["text_features"],
        report=report,
    )
    settings["index"] = found.settings
    return found.scores, found.pairs, found.certified


class _Work:
    """A folder of finished blocks."""

    def __init__(self, folder: Path, block: int) -> None:
        self.folder, self.block = folder, block

    def _path(self, start: int, stop: int) -> Path:
        return self.folder / f"block-{start:012d}-{stop:012d}.npz"

    def read(self, start: int, stop: int, k: int) -> tuple[FloatArray, IntArray] | None:
        """Return a finished block, or None if it must be mined."""
        path = self._path(start, stop)
        if not path.exists():
            return None
        try:
            with path.open("rb") as opened:  # numpy leaves a damaged file open
                file = np.load(opened, allow_pickle=False)
                scores, rows = file["scores"], file["rows"]
        except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):
            return None  # damaged on the disk: mined again
        if scores.shape != (stop - start, k) or rows.shape != scores.shape:
            return None
        return scores, rows

    def write(self, start: int, stop: int, scores: FloatArray, rows: IntArray) -> None:
        data = BytesIO()
        np.savez(data, scores=scores, rows=rows)
        write_bytes(self._path(start, stop), data.getvalue())

    def finish(self) -> None:
        """Remove what this wrote, and nothing else."""
        for pattern in ("block-*.npz", ".block-*.part", ".work.json.*.part", "work.json"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)


@contextmanager
def _work(folder: Path, settings: dict[str, Any], block: int) -> Iterator[_Work]:
    """Open the work folder for these settings, holding it against other processes.

    Raises:
        DataError: if it holds blocks of other features or settings, or other files.
    """
    if folder.is_dir():
        strange = sorted(
            path.name
            for path in folder.iterdir()
            if path.name not in ("work.json", ".lock") and not path.name.startswith(("block-", ".block-", ".work.json"))
        )
        if strange:
            raise DataError(
                f"{folder} holds other files: {', '.join(strange[:3])}", hint="name a new or empty folder for resume"
            )
    with folder_lock(folder, "mining"):
        path = folder / "work.json"
        wanted = json.loads(json.dumps(settings))
        if path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                old, block = dict(found["settings"]), int(found["block"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path} cannot be read ({error})", hint="remove the folder and start again") from error
            differ = sorted(name for name in old.keys() | wanted.keys() if old.get(name) != wanted.get(name))
            if differ:
                raise DataError(
                    f"{folder} holds unfinished mining of other features or settings: "
                    + "; ".join(f"{name} was {old.get(name)!r}, is {wanted.get(name)!r}" for name in differ),
                    hint="repeat the call that began it, or name another folder",
                )
        else:
            write_bytes(path, json.dumps({"settings": wanted, "block": block}, sort_keys=True).encode())
        yield _Work(folder, block)
    try:
        (folder / ".lock").unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        raise store_error("removed", folder, error) from error


def _open(features: Any, name: str) -> NDArray[Any]:
    """Return a floating (N, width) array; a path is mapped."""
    if isinstance(features, (str, os.PathLike)):
        path = Path(features)
        try:
            features = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{name}: {path} cannot be read ({error})", hint="give a .npy file") from error
        if not isinstance(features, np.ndarray):
            features.close()
            raise DataError(f"{name}: {path} holds several arrays", hint="give a .npy file of one array")
    return as_array(features, name)


def _mean(raw: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean row, added up in pieces of fixed size so that it never depends on the memory."""
    total = np.zeros(raw.shape[1])
    for start in range(0, len(raw), _SCAN_ROWS):
        total += raw[start : start + _SCAN_ROWS].astype(np.float64).sum(axis=0)
    return total / max(1, len(raw))


def _check_depth(num: int, k: int, skip_top: int, rank_stride: int) -> int:
    """Return how many must be mined for k to remain."""
    for name, value, least in (("k", k, 1), ("skip_top", skip_top, 0), ("rank_stride", rank_stride, 1)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ConfigError(f"{name}={value!r}, expected an integer of at least {least}")
    depth = int(skip_top + (k - 1) * rank_stride + 1)
    if depth >= num:
        ranks = f"k={k}" if depth == k else f"k={k} with skip_top={skip_top} and rank_stride={rank_stride}"
        raise ConfigError(
            f"{ranks} needs {depth} other pairs, found {max(num - 1, 0)}", hint="lower k, or mine more pairs"
        )
    return depth


def _check_candidates(method: str, candidates: int | None, num: int, depth: int) -> int | None:
    """Return the number of candidates the method will use, or None where it decides itself."""
    if method not in ("exact", "fast", "ann"):
        raise ConfigError(f"method={method!r}", hint="use 'exact', 'fast' or 'ann'")
    if method == "exact":
        if candidates is not None:
            raise ConfigError(f"candidates={candidates} with the exact method", hint="leave it out, or use 'fast'")
        return None
    if method == "fast" and candidates is None:
        candidates = min(num, RELEASED_CANDIDATES)
    if candidates is None:
        return None
    if not depth < candidates <= num:
        raise ConfigError(
            f"candidates={candidates}, expected from {depth + 1} (so that a list can be filled) to {num}",
            hint="the hardness grows with candidates / pairs",
        )
    return int(candidates)


def _check_ids(ids: Any, num: int) -> IntArray:
    values = np.asarray(ids.detach().cpu() if isinstance(ids, torch.Tensor) else ids)
    if values.shape != (num,):
        raise ShapeError(f"ids has shape {values.shape}, expected ({num},)", hint="give one id for each pair")
    if values.dtype.kind not in "iu":
        raise DataError(f"ids has dtype {values.dtype}, expected integers", hint="number the groups")
    return np.ascontiguousarray(values.astype(np.int64))


def _default_block(features: Features, k: int, memory_mb: float) -> int:
    """Return a block whose own features and candidates take a quarter of the memory."""
    query_bytes = features.row_bytes + 48 * (k + SPARE)
    return max(64, min(MAX_BLOCK, int(memory_mb * 2**20 / 4) // query_bytes))


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if threads is not None:
            torch.set_num_threads(before)


def _versions() -> dict[str, str]:
    from .. import __version__

    return {"huaben": __version__, "numpy": np.__version__, "torch": str(torch.__version__)}
