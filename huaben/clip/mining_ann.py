"""Approximate hard-pair mining over one index of both modalities: an inverted-file self-join with exact scores.

Pairs are put into lists by k-means on their joint vectors (:mod:`~huaben.clip.mining_lists`). Queries are taken a block
of neighbouring pairs at a time; each looks into the ``probes`` lists whose centroids score best for it. The work is done
the other way round: each list that some query of the block looks into is multiplied densely with all the queries that
do, in bfloat16 where the processor has it. The best ``candidates`` of every query are then scored again from the float32
features in float64, so scores are exact and only membership is approximate.

What is known of every pair (the scan is rounded, but its error is bounded):

- *Scan bound*. Nothing a query scanned and left out can score more than its cut-off plus the rounding bound. If that is
  below the k-th exact score, the result is exact among the lists looked into; else ``candidates`` is doubled for it if
  that can complete a proof, or if the cut-off is really near.
  For backends that scan by inner product of joint vectors, hence by the sum of the cosines, the bound is AM-GM:
  ``a * b <= ((a + b) / 2) ** 2``, with the cut-off clamped at 0.
- *List bound*. Rows of a list lie within an angle of its centroid in each modality, so a list not looked into can offer
  at most ``cos(angle(query, centroid) - reach)``, multiplied over modalities. If that too is below the k-th score for
  every such list the pair is **certified**: its k hard pairs are exactly those of an exhaustive search. On features
  that fill their space this bound proves little; a flat index certifies nearly everything.
- *Late finds*. If too many of a query's k pairs came from the second half of its lists, more are likely in the next
  ones: ``probes`` is doubled for it.

Doubling stops after ``doublings`` rounds; what is still unproven is reported as uncertified.

Legend: N pairs, q queries of a block, k kept, K candidates, P lists looked into, L lists.
Source: HELIP (arXiv:2305.05208) for the score; inverted files: Jegou et al. 2011 (TPAMI 33:1).
Differs: the paper's FastHPM scores a random subset, whose recall is the subset's share; this looks where near pairs are.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from ..files import folder_lock, write_bytes
from ..optional import is_available
from ..rng import check_seed
from .mining_core import FloatArray, IntArray, Scoring, scores_of
from .mining_lists import (
    PAD_ROWS,
    Features,
    Lists,
    Precision,
    Report,
    Space,
    build_lists,
    each,
    flat_lists,
    release,
    scan_dtype,
)

Backend = Literal["auto", "torch", "faiss"]
Index = Literal["auto", "flat", "ivf"]
Scan = Literal["product", "sum"]

FLAT_LIMIT = 20_000
"""Up to this many pairs "auto" scans everything: building lists would cost more than it saves."""
GROUPS = 32
"""The scan's maxima are taken over this many strided parts before any sorting."""
LATE_SHARE = 0.2
DOUBLINGS = 2
WORK_NAME, LISTS_NAME = "work.json", "lists.npz"
EXACT_QUERIES = 16


@dataclass(frozen=True, slots=True)
class AnnResult:
    """What :func:`mine_ann` found.

    Attributes:
        pairs: (N, k) int64 by (-score, row), -1 where fewer were found.
        scores: (N, k) float32, exact; -inf where there is none.
        certified: (N,) bool: proven equal to an exhaustive search.
        settings: what was chosen and counted: ``backend``, ``index``, ``precision``, ``lists``, ``probes``,
            ``candidates``, ``scan_certified`` and ``certified`` (shares), ``doubled`` (queries per round), ``scanned``
            (mean share of pairs a query was compared with), ``announced`` (choices the caller did not make).
    """

    pairs: NDArray[np.int64]
    scores: NDArray[np.float32]
    certified: NDArray[np.bool_]
    settings: dict[str, Any] = field(default_factory=dict)


def mine_ann(
    image: Any,
    text: Any,
    k: int,
    *,
    scoring: Scoring | None = None,
    candidates: int | None = None,
    ids: IntArray | None = None,
    seed: int = 0,
    memory_mb: float = 4096,
    backend: Backend = "auto",
    index: Index = "auto",
    lists: int | None = None,
    probes: int | None = None,
    doublings: int = DOUBLINGS,
    late_share: float = LATE_SHARE,
    scan: Scan = "product",
    precision: Precision = "auto",
    threads: int | None = None,
    work: Path | None = None,
    image_mean: NDArray[np.float64] | None = None,
    text_mean: NDArray[np.float64] | None = None,
    report: Report | None = None,
) -> AnnResult:
    """Find nearly all of each pair's k hardest other pairs, far faster than comparing everything.

    Args:
        image, text: (N, E) floating features, need not be unit; the two widths may differ. Memory maps are read a
            block at a time.
        k: how many to keep, below N.
        scoring: the score; the default has no lower threshold and drops cosines above 0.98.
        candidates: exactly scored for each query; default 1.5 k (at least k + 16) for a product scan, 4 k for a sum.
        ids: (N,): equal ids never meet.
        seed: of the centroids. The same seed, settings and processor give the same result, whatever the threads.
        memory_mb: bound on the arrays held at a time; larger ones lie in files, whose mapped pages and the result come
            on top (measured: 767 MB more in all for 200,000 pairs and 512, 4,253 for a million and 4,096).
        backend: "torch" is our own; "faiss" searches with that package (inner product, so a sum scan with the AM-GM
            bound), all vectors in memory as float32; "auto" is torch: only its lists can be proven, and only it
            keeps to ``memory_mb``.
        index: "flat" compares with everything (certified but for rounding), "ivf" with some lists; "auto" is flat up
            to 20,000 pairs.
        lists, probes: lists trained, and lists each query looks into at first; defaults grow with N.
        doublings: rounds of doubling for queries that fail; 0 for none.
        late_share: a query fails if more than this share of its k came from the second half of its lists.
        scan: rank by the product of cosines itself, or by their sum.
        precision: of the scan; "auto" is bfloat16 where the processor multiplies it natively.
        threads: blocks worked on at once; default torch's number of threads.
        work: folder that keeps the index, the finished blocks and the result's arrays; an interrupted run with the same
            features and settings goes on from there. The caller removes it.
        image_mean, text_mean: subtracted from the features first.
        report: called with ("lists" or "search", done, to do).

    Raises:
        ConfigError: for impossible settings.
        ShapeError, DataError: for features that do not match or have NaN, infinite or zero rows.
        MissingDependencyError: for backend "faiss" without faiss.
    """
    scoring = scoring or Scoring()
    features = Features(image, text, image_mean, text_mean, budget=int(memory_mb * 2**20) // 8)
    settings = _settings(
        len(features), k, candidates, backend, index, lists, probes, doublings, late_share, scan, precision, memory_mb
    )
    check_seed(seed)
    if ids is not None and len(ids) != len(features):
        raise ConfigError(f"{len(ids)} ids for {len(features)} pairs", hint="give every pair one id")
    settings["seed"] = seed
    workers = torch.get_num_threads() if threads is None else threads
    if workers < 1:
        raise ConfigError(f"threads={threads}, expected 1 or more")
    memory = int(memory_mb * 2**20)
    if settings["backend"] == "faiss":
        from .mining_faiss import mine_faiss

        return mine_faiss(
            features, k, scoring=scoring, ids=ids, settings=settings, memory=memory, threads=workers, report=report
        )
    total = len(features)
    with nullcontext() if work is None else folder_lock(work, "mining"), _one_thread_each():
        space = Space(memory // 2, work)
        if work is not None:
            _check_work(work, features, k, scoring, ids, settings, image_mean, text_mean)
        index_lists = _prepare(features, space, settings, scoring, memory // 4, workers, report)
        pairs = space.array("pairs", (total, k), np.int64)
        scores = space.array("scores", (total, k), np.float32)
        state = space.array("state", (total,), np.uint8)
        search = _Search(features, index_lists, ids, k, scoring, settings, pairs, scores, state)
        bounds = search.blocks(memory // (4 * workers))
        search.run(bounds, space.array("done", (len(bounds) - 1,), np.bool_), workers, report)
    certified = (state & 2).astype(bool)
    settings |= {
        "lists": index_lists.count,
        "scan_certified": round(float((state & 1).mean()), 6),
        "certified": round(float(certified.mean()), 6),
        "doubled": search.doubled,
        "scanned": round(search.scanned / max(1, search.queries) / total, 6),
    }
    return AnnResult(pairs, scores, certified, settings)


def _settings(
    total: int,
    k: int,
    candidates: int | None,
    backend: Backend,
    index: Index,
    lists: int | None,
    probes: int | None,
    doublings: int,
    late_share: float,
    scan: Scan,
    precision: Precision,
    memory_mb: float,
) -> dict[str, Any]:
    """Check what the caller asked for, choose the rest, and say what was chosen."""
    announced = []
    if not isinstance(k, int) or not 0 < k < total:
        raise ConfigError(f"k={k}, expected from 1 to {total - 1}", hint="each of the other pairs can be kept once")
    for name, value, options in (
        ("backend", backend, ("auto", "torch", "faiss")),
        ("index", index, ("auto", "flat", "ivf")),
        ("scan", scan, ("product", "sum")),
    ):
        if value not in options:
            raise ConfigError(f"{name}={value!r}", hint=f"use one of {', '.join(options)}")
    if memory_mb < 64:
        raise ConfigError(f"memory_mb={memory_mb}, expected at least 64", hint="blocks of queries need some room")
    if doublings < 0 or not 0 <= late_share <= 1:
        raise ConfigError(f"doublings={doublings}, late_share={late_share}", hint="from 0, and a share from 0 to 1")
    if backend == "auto":
        backend = "torch"
        note = "installed, backend='faiss' uses it" if is_available("faiss") else "not installed"
        announced.append(f"backend: torch, whose lists can be proven (faiss is {note})")
    if backend == "faiss":
        if scan != "sum":
            announced.append("scan: sum, since faiss searches by inner product")
        scan = "sum"
    if index == "auto":
        index = "flat" if total <= FLAT_LIMIT else "ivf"
        announced.append(f"index: {index} for {total} pairs")
    keep = candidates
    if keep is None:
        keep = k + max(16, k // 2) if scan == "product" else 4 * k
    if keep < k:
        raise ConfigError(f"candidates={keep}, expected at least k={k}", hint="2 k or more leaves room for rounding")
    num_lists, num_probes = lists, probes
    if index == "ivf":
        if num_lists is None:
            num_lists = default_lists(total)
        if not 1 <= num_lists <= total:
            raise ConfigError(f"lists={num_lists}, expected from 1 to {total}")
        if num_probes is None:
            num_probes = default_probes(num_lists)
        if num_probes < 1:
            raise ConfigError(f"probes={num_probes}, expected 1 or more")
    elif lists is not None or probes is not None:
        raise ConfigError("lists and probes belong to index='ivf'", hint="leave them out, or choose index='ivf'")
    chosen = str(scan_dtype(precision)).removeprefix("torch.") if backend == "torch" else "float32"
    if backend == "torch" and precision == "auto":
        announced.append(f"precision: {chosen}, by what the processor multiplies natively")
    return {
        "method": "ann",
        "backend": backend,
        "index": index,
        "scan": scan,
        "precision": chosen,
        "candidates": min(keep, total - 1),
        "lists_asked": num_lists,
        "probes": num_probes,
        "doublings": doublings,
        "late_share": late_share,
        "announced": announced,
    }


def default_lists(total: int) -> int:
    """Return how many lists to train: about 2 sqrt(N), a power of 2."""
    return 2 ** max(2, round(float(np.log2(max(total, 4)) / 2 + 1)))


def default_probes(num_lists: int) -> int:
    """Return how many lists a query looks into at first."""
    return min(num_lists, 48)


class _Search:
    """The self-join: blocks of queries against the lists they look into."""

    def __init__(
        self,
        features: Features,
        lists: Lists,
        ids: IntArray | None,
        k: int,
        scoring: Scoring,
        settings: dict[str, Any],
        pairs: NDArray[np.int64],
        scores: NDArray[np.float32],
        state: NDArray[np.uint8],
    ) -> None:
        self.features, self.lists, self.ids, self.k, self.scoring = features, lists, ids, k, scoring
        self.pairs, self.scores, self.state = pairs, scores, state
        self.product = settings["scan"] == "product"
        self.dtype = getattr(torch, settings["precision"])
        self.keep, self.doublings, self.late = settings["candidates"], settings["doublings"], settings["late_share"]
        self.probes = lists.count if settings["probes"] is None else min(settings["probes"], lists.count)
        self.sizes = torch.from_numpy(np.diff(lists.starts))
        self.cap = -(-lists.longest // GROUPS) * GROUPS
        self.error = scan_error(lists.rounding, max(features.image.shape[1], features.text.shape[1]), self.dtype)
        self.floor = score_floor(scoring)
        self.doubled = [0] * self.doublings
        self.scanned, self.queries = 0, 0
        self._lock = threading.Lock()
        self._local = threading.local()
        self._touched = 0
        self.directions = self._centroid_directions()

    def blocks(self, memory: int) -> IntArray:
        """Return the bounds of blocks of positions that are worked on together in about ``memory`` bytes."""
        row = self.probes * self.cap * self.dtype.itemsize * 1.3 + self.lists.count * 32 + self.keep * 1024
        self.block = int(min(2048, max(16, memory / row)))
        return np.append(np.arange(0, len(self.features), self.block), len(self.features))

    def run(self, bounds: IntArray, done: NDArray[np.bool_], workers: int, report: Report | None) -> None:
        """Work on every block that is not done."""
        total = len(self.features)
        finished = int(np.diff(bounds)[done].sum())

        def one(number: int) -> int:
            self._work(int(bounds[number]), int(bounds[number + 1]))
            done[number] = True
            return int(bounds[number + 1] - bounds[number])

        for count in each(workers, one, np.flatnonzero(~done).tolist()):
            finished += count
            if report is not None:
                report("search", finished, total)

    def _work(self, first: int, last: int) -> None:
        """Find the pairs of the queries at positions [first, last)."""
        rows = self.lists.order[first:last]
        query = self.features.read(rows)
        rank, reach = self._centroid_scores(first, last)
        count = last - first
        found = np.full((count, self.k), -1, np.int64)
        scores = np.full((count, self.k), -np.inf, np.float32)
        state = np.zeros(count, np.uint8)
        probes = np.full(count, self.probes)
        keep = np.full(count, self.keep)
        open_queries = np.arange(count)
        scanned = 0
        for round_number in range(self.doublings + 1):
            failed = [open_queries[:0]]
            for chosen in _same(open_queries, probes, keep):
                size = max(1, self.block * self.probes // int(probes[chosen[0]]))
                for start in range(0, len(chosen), size):
                    part = chosen[start : start + size]
                    part_t = torch.from_numpy(part)
                    lists, uncovered = self._choose(rank, reach, part_t, int(probes[part[0]]))
                    position, slot, cutoff = self._scan(first, part_t, lists, int(keep[part[0]]))
                    candidate = np.where(position >= 0, self.lists.order[position], -1)
                    exact = exact_scores(
                        self.features, self.ids, rows[part], (query[0][part], query[1][part]), candidate, self.scoring
                    )
                    best, best_rows, best_slot = best_of(exact, candidate, slot, self.k)
                    found[part], scores[part] = best_rows, best
                    worst = np.maximum(best[:, -1], self.floor) * (1 - 1e-6)
                    dropped = left_out(cutoff, self.error, product=self.product, modality=self.scoring.modality)
                    settled = dropped < worst
                    state[part] = settled | ((settled & (uncovered < worst)) << 1)
                    scanned += int(self.sizes[lists].sum())
                    # what to try again
                    num = (best_rows >= 0).sum(1)
                    late = ((best_slot >= lists.shape[1] // 2) & (best_rows >= 0)).sum(1)
                    more = (lists.shape[1] < self.lists.count) & ((num < self.k) | (late > self.late * self.k))
                    more &= state[part] < 3
                    # More candidates where they can complete a proof, or where the cut-off is too near the k-th score.
                    # (The error bound is a worst case; a quarter of it is many standard deviations.)
                    near = cutoff_score(cutoff, product=self.product, modality=self.scoring.modality) + self.error / 4
                    short = ((~settled & (uncovered < worst)) | (near >= worst)) & (candidate[:, -1] >= 0)
                    probes[part[more]] = np.minimum(2 * probes[part[more]], self.lists.count)
                    keep[part[short]] = np.minimum(2 * keep[part[short]], len(self.features) - 1)
                    failed.append(part[more | short])
            open_queries = np.sort(np.concatenate(failed))
            if not len(open_queries) or round_number == self.doublings:
                break
            with self._lock:
                self.doubled[round_number] += len(open_queries)
        self.pairs[rows], self.scores[rows], self.state[rows] = found, scores, state
        with self._lock:
            self.scanned += scanned
            self.queries += count
            self._give_back(count)

    def _give_back(self, count: int) -> None:
        """Unmap what was touched, now and then."""
        lists_of_a_query = self.probes * self.cap * (self.lists.image.shape[1] + self.lists.text.shape[1])
        self._touched += lists_of_a_query * self.lists.image.itemsize * 8 + count * 3 * 4096
        if self._touched > self.features.budget:
            self._touched = 0
            release(self.lists.image, self.lists.text, self.pairs, self.scores, self.state)

    def _centroid_directions(self) -> list[tuple[str, torch.Tensor, torch.Tensor | None]]:
        """Return, for each modality used, the centroids' unit directions (L, E) and their lists' reach."""
        if self.lists.centroids is None:
            return []
        sides = [("image", self.lists.image_bound), ("text", self.lists.text_bound)]
        sides = [side for side in sides if self.scoring.modality in ("both", side[0])]
        widths = [self.lists.image.shape[1] if name == "image" else self.lists.text.shape[1] for name, _ in sides]
        parts = self.lists.centroids.split(widths, 1)
        return [
            (name, torch.nn.functional.normalize(part, dim=1).to(self.dtype), bound)
            for (name, bound), part in zip(sides, parts, strict=True)
        ]

    def _centroid_scores(self, first: int, last: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the centroids' scores (q, L), and a bound on the score of any row of their lists (q, L)."""
        rank: torch.Tensor | None = None
        reach: torch.Tensor | None = None
        error = 1e-5 if self.dtype == torch.float32 else self.lists.rounding + 2.0**-7
        for name, directions, bound in self.directions:
            assert bound is not None
            cosine = torch.mm(self.lists.tensor(name, first, last), directions.T).float()
            highest = (cosine + error).clamp(-1.0, 1.0)
            # cos(angle - reach); 1 where the query itself lies within the reach
            near = highest * bound[:, 0] + (1 - highest.square()).sqrt() * bound[:, 1]
            near = torch.where(highest >= bound[:, 0], 1.0, near + 1e-6).clamp_(min=0)
            cosine.clamp_(min=0)
            rank = cosine if rank is None else rank.mul_(cosine)
            reach = near if reach is None else reach.mul_(near)
        return rank, reach

    def _choose(
        self, rank: torch.Tensor | None, reach: torch.Tensor | None, part: torch.Tensor, probes: int
    ) -> tuple[torch.Tensor, FloatArray]:
        """Return the lists (m, P) each query looks into, best first, and a bound (m,) on what the others offer."""
        if rank is None or reach is None:
            return torch.arange(self.lists.count).expand(len(part), -1), np.zeros(len(part), np.float32)
        lists = rank[part].topk(probes, 1).indices
        others = reach[part].scatter_(1, lists, 0.0)
        return lists, others.amax(1).numpy()

    def _scan(
        self, first: int, part: torch.Tensor, lists: torch.Tensor, keep: int
    ) -> tuple[IntArray, IntArray, NDArray[np.float64]]:
        """Return for the queries ``first + part`` the ``keep`` best positions, their slots in ``lists``, the cut-off.

        The cut-off is the lowest score kept: everything looked into and left out scored no more. 0 if nothing was left
        out but what scored 0.
        """
        num, probes = lists.shape
        width = probes * self.cap
        buffer = self._buffer(num * width).view(num * probes, self.cap)
        sides = [name for name in ("image", "text") if self.scoring.modality in ("both", name)]
        query = {name: self.lists.tensor(name, first, first + int(part.max()) + 1)[part] for name in sides}
        flat = lists.reshape(-1)
        by_list = flat.argsort(stable=True)
        numbers, counts = flat[by_list].unique_consecutive(return_counts=True)
        start = 0
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            slots = by_list[start : start + count]
            start += count
            low, high = int(self.lists.starts[number]), int(self.lists.starts[number + 1])
            # Products come in few shapes: their set-up, kept by shape, can cost more than a small product. So the
            # list runs on into the next one, the queries repeat, and what is too much is cut off.
            until = low + -(-(high - low) // PAD_ROWS) * PAD_ROWS
            here = torch.zeros(_padded(count), dtype=torch.int64)
            torch.div(slots, probes, rounding_mode="floor", out=here[:count])
            score: torch.Tensor | None = None
            for name, side in query.items():
                cosine = torch.mm(side.index_select(0, here), self.lists.tensor(name, low, until).T)
                if self.scoring.duplicate < 1:
                    limit = self.scoring.duplicate + self.error
                    if float(cosine.max()) > limit:
                        cosine.masked_fill_(cosine > limit, 0.0 if self.product else -2.0)
                if score is None:
                    score = cosine.clamp_(min=0) if self.product else cosine
                else:
                    score = score.mul_(cosine) if self.product else score.add_(cosine)
            assert score is not None
            buffer[slots, : high - low] = score[:count, : high - low]
        return self._top(buffer.view(num, width), lists, keep)

    def _top(
        self, scores: torch.Tensor, lists: torch.Tensor, keep: int
    ) -> tuple[IntArray, IntArray, NDArray[np.float64]]:
        """Return the ``keep`` best of each row, by way of the maxima of strided groups, which hold them all."""
        num, width = scores.shape
        groups = width // GROUPS
        keep = min(keep, width)
        if keep < groups:
            grouped = scores.view(num, GROUPS, groups)
            best_groups = grouped.amax(1).float().topk(keep, 1, sorted=False).indices
            members = grouped.gather(2, best_groups[:, None, :].expand(num, GROUPS, keep)).reshape(num, -1).float()
            values, which = members.topk(keep, 1)
            part, group = torch.div(which, keep, rounding_mode="floor"), best_groups.gather(1, which % keep)
            place = part * groups + group
        else:
            values, place = scores.float().topk(keep, 1)
        slot = torch.div(place, self.cap, rounding_mode="floor")
        number = lists.gather(1, slot)
        position = torch.from_numpy(self.lists.starts)[number] + place % self.cap
        position[values <= 0] = -1
        cutoff = values[:, -1].clamp(min=0) if keep < width else torch.zeros(num)
        return position.numpy(), slot.numpy(), cutoff.double().numpy()

    def _buffer(self, elements: int) -> torch.Tensor:
        """Return zeros, in memory that this thread uses again."""
        held: torch.Tensor | None = getattr(self._local, "buffer", None)
        if held is None or len(held) < elements:
            held = torch.empty(elements, dtype=self.dtype)
            self._local.buffer = held
        return held[:elements].zero_()


def _padded(count: int) -> int:
    """Return a number of queries to multiply instead of ``count``: one of few."""
    step = 64 if count > 64 else 16
    return -(-count // step) * step


def exact_scores(
    features: Features,
    ids: IntArray | None,
    rows: IntArray,
    query: tuple[FloatArray, FloatArray],
    candidates: IntArray,
    scoring: Scoring,
) -> FloatArray:
    """Return the exact scores (q, K) of candidate rows: float32 unit features, float64 sums; -inf where there is none.

    Args:
        features: of all pairs.
        ids: (N,) or None.
        rows: (q,), the queries.
        query: their unit features (q, E).
        candidates: (q, K) rows, -1 for none.
        scoring: the score.
    """
    present, place = np.unique(candidates, return_inverse=True)
    image, text = features.read(np.maximum(present, 0))
    place_t = torch.from_numpy(place.reshape(candidates.shape))
    cosines: list[NDArray[np.float64] | None] = []
    for side, own, used in ((image, query[0], scoring.uses_image), (text, query[1], scoring.uses_text)):
        if not used:
            cosines.append(None)
            continue
        side_t, own_t = torch.from_numpy(side), torch.from_numpy(own)
        values = torch.empty(candidates.shape, dtype=torch.float64)
        for start in range(0, len(rows), EXACT_QUERIES):
            some = place_t[start : start + EXACT_QUERIES]
            gathered = side_t.index_select(0, some.reshape(-1)).double().view(*some.shape, -1)
            gathered.mul_(own_t[start : start + EXACT_QUERIES, None].double())
            torch.sum(gathered, -1, out=values[start : start + EXACT_QUERIES])
        cosines.append(values.numpy())
    scores = scores_of(cosines[0], cosines[1], scoring)
    excluded = (candidates < 0) | (candidates == rows[:, None])
    if ids is not None:
        excluded |= ids[np.maximum(candidates, 0)] == ids[rows][:, None]
    scores[excluded] = -np.inf
    return scores


def score_floor(scoring: Scoring) -> float:
    """Return what every score above 0 reaches at least."""
    return scoring.low ** (2 if scoring.modality == "both" else 1)


def scan_error(rounding: float, width: int, dtype: torch.dtype) -> float:
    """Return how far a scanned cosine can be from that of the unit float32 rows.

    Rounded rows differ from unit rows by at most ``rounding``, which moves a product by ``2 rounding + rounding^2``;
    the float32 sum of ``width`` terms and the format of the result add theirs.
    """
    result = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-23
    return 2 * rounding + rounding**2 + 1.1 * (width + 8) * 2.0**-24 + result


def left_out(cutoff: NDArray[np.float64], error: float, *, product: bool, modality: str) -> NDArray[np.float64]:
    """Return the most that a pair scanned and left out can score, from the lowest score kept and the cosines' error."""
    rounded = cutoff * (1 + 2.0**-7)  # the format the scan's result is kept in
    if modality != "both":
        return rounded + error
    if product:
        # (a + e)(b + e) with ab <= cutoff and both at most 1: e (a + b) is largest at (1, cutoff)
        return rounded + error * (1 + rounded) + error**2
    return cutoff_score(rounded + 2 * error, product=False, modality=modality)


def cutoff_score(cutoff: NDArray[np.float64], *, product: bool, modality: str) -> NDArray[np.float64]:
    """Return the most that a pair with this scanned value scores if the scan is exact: of a sum, by AM-GM."""
    return cutoff if product or modality != "both" else (cutoff / 2) ** 2


def best_of(scores: FloatArray, rows: IntArray, slots: IntArray, k: int) -> tuple[FloatArray, IntArray, IntArray]:
    """Return the k best of each row by (-score, row), with their slots; -inf and -1 pad."""
    by_row = np.argsort(rows, axis=1, kind="stable")
    by_score = np.argsort(-np.take_along_axis(scores, by_row, 1), axis=1, kind="stable")[:, :k]
    chosen = np.take_along_axis(by_row, by_score, 1)
    best = np.full((len(scores), k), -np.inf, np.float32)
    best_rows = np.full((len(scores), k), -1, np.int64)
    best_slots = np.full((len(scores), k), -1, np.int64)
    width = chosen.shape[1]
    best[:, :width] = np.take_along_axis(scores, chosen, 1)
    best_rows[:, :width] = np.take_along_axis(rows, chosen, 1)
    best_slots[:, :width] = np.take_along_axis(slots, chosen, 1)
    best_rows[best == -np.inf] = -1
    return best, best_rows, best_slots


def _same(queries: IntArray, probes: IntArray, keep: IntArray) -> Iterator[IntArray]:
    """Yield queries in groups of equal settings."""
    if not len(queries):
        return
    _, group = np.unique(np.stack([probes[queries], keep[queries]]), axis=1, return_inverse=True)
    group = group.reshape(-1)
    for number in range(int(group.max()) + 1):
        yield queries[group == number]


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let torch use one thread within each block, as blocks are what runs in parallel."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _prepare(
    features: Features,
    space: Space,
    settings: dict[str, Any],
    scoring: Scoring,
    memory: int,
    workers: int,
    report: Report | None,
) -> Lists:
    """Build the lists, or open those that a work folder keeps."""
    dtype = getattr(torch, settings["precision"])
    path = None if space.folder is None else space.folder / LISTS_NAME
    if path is not None and path.exists():
        return Lists.load(path, features, space, dtype)
    if settings["index"] == "flat":
        lists = flat_lists(features, space, dtype, workers=workers, report=report)
    else:
        lists = build_lists(
            features,
            space,
            dtype,
            num_lists=settings["lists_asked"],
            modality=scoring.modality,
            seed=settings["seed"],
            memory=memory,
            workers=workers,
            report=report,
        )
    if path is not None:
        lists.save(path)
    return lists


def _check_work(
    folder: Path,
    features: Features,
    k: int,
    scoring: Scoring,
    ids: IntArray | None,
    settings: dict[str, Any],
    image_mean: NDArray[np.float64] | None,
    text_mean: NDArray[np.float64] | None,
) -> None:
    """Refuse a work folder of other features or settings; note ours in a new one.

    Raises:
        DataError: if it holds anything else.
    """
    digest = hashlib.blake2b(digest_size=16)
    rows = np.unique(np.linspace(0, len(features) - 1, 4096).astype(np.int64))
    for side in (features.image, features.text):
        digest.update(f"{side.dtype} {side.shape}".encode())
        digest.update(np.ascontiguousarray(side[rows]).data.cast("B"))
    for extra in (ids, image_mean, text_mean):
        digest.update(b"-" if extra is None else np.ascontiguousarray(extra).data.cast("B"))
    wanted = {key: value for key, value in settings.items() if key != "announced"}
    wanted |= {"k": k, "low": scoring.low, "duplicate": scoring.duplicate, "modality": scoring.modality}
    wanted["features"] = digest.hexdigest()
    path = folder / WORK_NAME
    if not path.exists():
        strange = sorted(item.name for item in folder.iterdir() if item.name != ".lock")
        if strange:
            raise DataError(f"{folder} holds other files: {', '.join(strange[:3])}", hint="name a new or empty folder")
        write_bytes(path, json.dumps(wanted, sort_keys=True).encode())
        return
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error})", hint="remove the folder and start again") from error
    differ = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if differ:
        raise DataError(
            f"{folder} holds mining of other features or settings: "
            + "; ".join(f"{name} was {found.get(name)!r}, is {wanted.get(name)!r}" for name in differ),
            hint="repeat the call that began it, or name another folder",
        )
