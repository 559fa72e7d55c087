"""Exact mining in shards on a Ray cluster: the same lists as on one machine, bit for bit.

Queries and base are cut into the same shards. A task takes one shard of queries and one of the base, reads both from
their files, and returns the queries' k best there (:func:`~huaben.clip.mining_core.topk_block`); lists of one shard of
queries are merged as they arrive (:func:`~huaben.clip.mining_core.merge_topk`, associative, ties by row), so neither
the number of shards nor the order in which tasks end shows in the result. A task holds two shards; the driver sends
row bounds and receives lists, never features.

Every machine must see the feature files under the same path (a shared folder). Finished shards of queries can be kept
in a folder, from which an interrupted run goes on.

Legend: N pairs, k hard pairs kept for each.
Source: HELIP (arXiv:2305.05208), section 3.2, equation 5.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError, HuabenError, ShapeError
from ..files import folder_lock, write_bytes
from ..optional import require
from .hard_pairs import HardPairs
from .mining_core import FloatArray, IntArray, Modality, Scoring, as_array, merge_topk, normalise, topk_block

DIGEST_ROWS = 4096
WORK_NAME = "work.json"
LISTS = "lists-{start:012d}-{stop:012d}.npz"


def mine_sharded(
    image_path: str | Path,
    text_path: str | Path,
    k: int,
    *,
    shards: int,
    address: str | None = None,
    ids: IntArray | None = None,
    low: float = 0.0,
    duplicate: float = 0.98,
    modality: Modality = "both",
    keys: Sequence[str] | None = None,
    cpus_per_task: float = 1,
    in_flight: int | None = None,
    resume: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> HardPairs:
    """Return each pair's k hard pairs, as ``mine_hard_pairs(..., method="exact")`` does, mined by a cluster.

    Args:
        image_path, text_path: ``.npy`` files of (N, E) floating features, seen by every machine.
        k: how many to keep, below N.
        shards: how many parts queries and base are cut into; a task holds two parts (4 E bytes a row and modality).
        address: of a Ray cluster ("auto", "ray://..."); None uses the one this process is connected to, or starts one
            here, which is stopped at the end.
        ids: (N,): pairs with equal ids never meet.
        low, duplicate, modality: the score, as in :class:`~huaben.clip.mining_core.Scoring`.
        keys: N names, saved with the list.
        cpus_per_task: CPUs that Ray reserves for a task, and threads it uses.
        in_flight: tasks handed to Ray at a time; by default twice its CPUs.
        resume: a folder for finished shards of queries, seen by this process; an interrupted call goes on from it. What
            this wrote there is removed at the end.
        progress: called with (pairs done, N) after each shard of queries.

    Raises:
        MissingDependencyError: without ray.
        DataError, ShapeError: for files that cannot be read or do not match, features with NaN, infinite or zero rows,
            or a ``resume`` folder of other features or settings.
        ConfigError: for an impossible setting.
    """
    ray = require("ray", extra="ray")
    scoring = Scoring(low=low, duplicate=duplicate, modality=modality)
    paths = (str(Path(image_path).resolve()), str(Path(text_path).resolve()))
    image, text = (open_features(path, name) for path, name in zip(paths, ("image", "text"), strict=True))
    total = len(image)
    if len(text) != total:
        raise ShapeError(f"{total} image rows and {len(text)} text rows", hint="row i of both must be the same pair")
    if isinstance(k, bool) or not 0 < k < total:
        raise ConfigError(f"k={k}, expected from 1 to {total - 1}", hint="lower k, or mine more pairs")
    if not 1 <= shards <= total:
        raise ConfigError(f"shards={shards}, expected from 1 to {total}", hint="two shards must fit one task's memory")
    if in_flight is not None and in_flight < 1:
        raise ConfigError(f"in_flight={in_flight}, expected 1 or more")
    if ids is not None and np.shape(ids) != (total,):
        raise ShapeError(f"ids has shape {np.shape(ids)}, expected ({total},)", hint="give one id for each pair")
    if keys is not None and len(keys) != total:
        raise ShapeError(f"{len(keys)} keys for {total} pairs", hint="give one key for each pair")
    groups = None if ids is None else np.ascontiguousarray(ids, np.int64)
    bounds = np.linspace(0, total, shards + 1).astype(np.int64)
    settings: dict[str, Any] = {
        "method": "exact",
        "k": int(k),
        "low": low,
        "duplicate": duplicate,
        "modality": modality,
        "num_pairs": total,
        "image_width": image.shape[1],
        "text_width": text.shape[1],
        "fingerprint": {
            "image": _digest(image),
            "text": _digest(text),
            "ids": None if groups is None else hashlib.blake2b(groups.tobytes(), digest_size=16).hexdigest(),
        },
        "shards": shards,
    }
    pairs = np.full((total, k), -1, np.int64)
    scores = np.full((total, k), -np.inf, np.float32)
    with nullcontext() if resume is None else _work(Path(resume), settings), _cluster(ray, address):
        pending = []
        for start, stop in pairwise(bounds.tolist()):
            kept = None if resume is None else _read(Path(resume), start, stop, k)
            if kept is None:
                pending.append((start, stop))
            else:
                scores[start:stop], pairs[start:stop] = kept
        done = total - sum(stop - start for start, stop in pending)
        limit = in_flight or max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
        bases = list(pairwise(bounds.tolist()))
        for start, stop in pending:
            lists = _mine_shard(ray, paths, (start, stop), bases, k, scoring, groups, cpus_per_task, limit)
            scores[start:stop], pairs[start:stop] = lists
            if resume is not None:
                data = BytesIO()
                np.savez(data, scores=lists[0], rows=lists[1])
                write_bytes(Path(resume) / LISTS.format(start=start, stop=stop), data.getvalue())
            done += stop - start
            if progress is not None:
                progress(done, total)
        if resume is not None:
            for start, stop in bases:
                (Path(resume) / LISTS.format(start=start, stop=stop)).unlink(missing_ok=True)
            (Path(resume) / WORK_NAME).unlink(missing_ok=True)
    return HardPairs(
        pairs=pairs,
        scores=scores,
        certified=np.ones(total, np.bool_),
        outlier=pairs[:, -1] < 0,
        keys=None if keys is None else list(keys),
        settings=settings,
    )


def score_shard(
    paths: tuple[str, str],
    queries: tuple[int, int],
    base: tuple[int, int],
    k: int,
    scoring: Scoring,
    ids: tuple[IntArray, IntArray] | None,
    threads: int,
) -> tuple[FloatArray, IntArray]:
    """Return the k best rows of one shard of the base for one shard of queries: what a task does, wherever it runs.

    Args:
        paths: feature files.
        queries, base: [first, last) rows.
        k, scoring: as in :func:`mine_sharded`.
        ids: of the queries and of the base, or None.
        threads: of this process.

    Raises:
        DataError: for a file that cannot be read or wrong rows.
    """
    import torch

    torch.set_num_threads(threads)
    sides = []
    for path, name in zip(paths, ("image features", "text features"), strict=True):
        features = open_features(path, name)
        own, other = (normalise(features[first:last], name=name, first_row=first) for first, last in (queries, base))
        sides.append((own, other))
    return topk_block(
        sides[0][0],
        sides[1][0],
        None if ids is None else ids[0],
        np.arange(*queries),
        sides[0][1],
        sides[1][1],
        None if ids is None else ids[1],
        np.arange(*base),
        k,
        scoring,
    )


def open_features(path: str, name: str) -> NDArray[Any]:
    """Map a ``.npy`` file of (N, E) floating features.

    Raises:
        DataError, ShapeError: if it is not that.
    """
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{name}: {path} cannot be read ({error})", hint="every machine must see the .npy file under this path"
        ) from error
    if not isinstance(features, np.ndarray):
        features.close()
        raise DataError(f"{name}: {path} holds several arrays", hint="give a .npy file of one array")
    return as_array(features, name)


def _mine_shard(
    ray: Any,
    paths: tuple[str, str],
    queries: tuple[int, int],
    bases: list[tuple[int, int]],
    k: int,
    scoring: Scoring,
    ids: IntArray | None,
    cpus: float,
    limit: int,
) -> tuple[FloatArray, IntArray]:
    """Send one shard of queries against every shard of the base; merge lists as they arrive."""
    task = ray.remote(score_shard).options(num_cpus=cpus)
    num = queries[1] - queries[0]
    scores, rows = np.full((num, k), -np.inf, np.float32), np.full((num, k), -1, np.int64)
    waiting = list(bases)
    running: list[Any] = []
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                base = waiting.pop()
                pair = None if ids is None else (ids[slice(*queries)], ids[slice(*base)])
                running.append(task.remote(paths, queries, base, k, scoring, pair, max(1, int(cpus))))
            ready, running = ray.wait(running, num_returns=1)
            piece_scores, piece_rows = ray.get(ready[0])
            scores, rows = merge_topk(scores, rows, piece_scores, piece_rows, k)
    except ray.exceptions.RayTaskError as error:
        for other in running:
            ray.cancel(other)
        if isinstance(error.cause, HuabenError):
            raise error.cause from error
        raise
    return scores, rows


@contextmanager
def _cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one here; leave as it was what was there before."""
    ours = not ray.is_initialized()
    if ours:
        if address is None:
            ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
        else:
            ray.init(address=address, log_to_driver=False)
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _work(folder: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Hold the work folder, which must be empty or of the same features and settings."""
    with folder_lock(folder, "mining"):
        path = folder / WORK_NAME
        wanted = json.loads(json.dumps(settings))
        if path.exists():
            try:
                found = dict(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError) as error:
                raise DataError(f"{path} cannot be read ({error})", hint="remove the folder and start again") from error
            differ = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
            if differ:
                raise DataError(
                    f"{folder} holds unfinished mining that differs in {', '.join(differ)}",
                    hint="repeat the call that began it, or name another folder",
                )
        else:
            strange = sorted(item.name for item in folder.iterdir() if item.name != ".lock")
            if strange:
                raise DataError(
                    f"{folder} holds other files: {', '.join(strange[:3])}", hint="name a new or empty folder"
                )
            write_bytes(path, json.dumps(wanted, sort_keys=True).encode())
        yield


def _read(folder: Path, start: int, stop: int, k: int) -> tuple[FloatArray, IntArray] | None:
    """Return a finished shard's lists, or None if it must be mined."""
    try:
        with np.load(folder / LISTS.format(start=start, stop=stop), allow_pickle=False) as file:
            scores, rows = file["scores"], file["rows"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return (scores, rows) if scores.shape == rows.shape == (stop - start, k) else None


def _digest(features: NDArray[Any]) -> str:
    """Return a digest of all features, read a piece at a time."""
    digest = hashlib.blake2b(f"{features.dtype.name} {features.shape}".encode(), digest_size=16)
    for start in range(0, len(features), DIGEST_ROWS):
        digest.update(np.ascontiguousarray(features[start : start + DIGEST_ROWS]).data.cast("B"))
    return digest.hexdigest()
