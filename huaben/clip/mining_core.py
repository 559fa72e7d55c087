"""The arithmetic of hard-pair mining: unit features, scores, and the top k of a block, free of files and settings.

The score of pair j for pair i is the product of two cosines, image with image and caption with caption:
``s_ij = a_ij * b_ij`` (HELIP, arXiv:2305.05208, section 3.2, equation 5, whose optimum is the plain top k of s_ij).
Cosines that are negative, below ``low`` or above ``duplicate`` count as 0, a pair with score 0 is no candidate, and
neither is the pair itself or any pair with the same id.

Two kinds of arithmetic meet here. Float32 matrix products find candidates fast, but their last bits depend on tile
sizes and threads. So the few best of them are scored again by :func:`cosines`, which is free of rounding, and an error
bound decides whether a pair left out could still belong in; if so the query is searched again in float64. Results
therefore depend on the features alone: not on tiles, threads, or how the base was cut into shards.

Legend: q queries, n base rows, k kept, E width of one modality.

Differs: the released code multiplies unclamped cosines (two negative ones look alike) and marks "self" by a text
cosine above 0.995, which lets duplicate captions in; here both are excluded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ConfigError, DataError, ShapeError

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
Fetch = Callable[[IntArray], tuple[FloatArray, FloatArray]]
Piece = tuple[FloatArray, FloatArray, "IntArray | None", IntArray]
Modality = Literal["both", "image", "text"]

SMALLEST_COSINE = 1e-9
"""A cosine below this is rounding error and counts as 0."""

GRID = 2.0**-26
"""Unit features are whole multiples of this; it is the precision of a float32 from 1/8 to 1/4."""

SPARE = 16
"""How many candidates beyond k the float32 pass keeps."""

QUERY_TILE, BASE_TILE = 512, 2048
_GATHER_ELEMENTS = 1 << 17


@dataclass(frozen=True, slots=True)
class Scoring:
    """How two pairs are scored.

    Attributes:
        low: a cosine below it counts as 0; in [0, 1).
        duplicate: a cosine above it counts as 0 (a near-duplicate, not a hard negative); 1 or more turns this off.
        modality: "both" multiplies the two cosines; "image" or "text" uses one alone and never looks at the other.
    """

    low: float = 0.0
    duplicate: float = 0.98
    modality: Modality = "both"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and 0 <= self.low < 1):
            raise ConfigError(f"low={self.low!r}, expected from 0 to below 1", hint="0 keeps every positive cosine")
        if not (math.isfinite(self.duplicate) and self.duplicate > self.low):
            raise ConfigError(
                f"duplicate={self.duplicate!r}, expected above low={self.low}", hint="0.98 as released; 1 turns it off"
            )
        if self.modality not in ("both", "image", "text"):
            raise ConfigError(f"modality={self.modality!r}", hint="use 'both', 'image' or 'text'")

    @property
    def uses_image(self) -> bool:
        return self.modality != "text"

    @property
    def uses_text(self) -> bool:
        return self.modality != "image"


def normalise(
    features: Any, *, name: str = "features", first_row: int = 0, mean: NDArray[np.float64] | None = None
) -> FloatArray:
    """Return rows of length 1 on the grid of :data:`GRID`, after subtracting ``mean`` if given.

    Each row's result depends on that row alone, to the last bit.

    Args:
        features: (n, E) of a floating dtype: an array, a memory map or a tensor.
        name: what to call them in an error.
        first_row: the row number of the first one, for errors.
        mean: (E,), the modality's mean.

    Raises:
        ShapeError: if they are not two-dimensional or have no columns.
        DataError: for another dtype, or for NaN, infinite or zero rows; the first few are named.
    """
    values = as_array(features, name)
    out = np.empty(values.shape, np.float32)
    step = max(1, _GATHER_ELEMENTS // values.shape[1])
    for start in range(0, len(values), step):
        block = values[start : start + step].astype(np.float64)
        if mean is not None:
            block -= mean
        with np.errstate(over="ignore", invalid="ignore"):
            length = np.sqrt(_row_sums(block * block))
        for wrong, what in ((~np.isfinite(length), "NaN or infinite"), (length == 0, "all zero")):
            if wrong.any():
                rows = (np.flatnonzero(wrong)[:5] + first_row + start).tolist()
                raise DataError(
                    f"{name}: rows {', '.join(map(str, rows))}{' ...' if wrong.sum() > 5 else ''} are {what}"
                    + (" after the mean is subtracted" if mean is not None else ""),
                    hint="drop these pairs, or extract their features again",
                )
        np.divide(block, length[:, None], out=block)
        block *= 1 / GRID
        np.rint(block, out=block)
        block *= GRID
        out[start : start + step] = block
    return out


def as_array(features: Any, name: str) -> NDArray[np.floating[Any]]:
    """Return a floating (n, E) array without copying where that can be avoided.

    Raises:
        ShapeError, DataError: as :func:`normalise` says.
    """
    if isinstance(features, torch.Tensor):
        features = features.detach().cpu()
        features = (features.float() if features.dtype == torch.bfloat16 else features).numpy()
    if not isinstance(features, np.ndarray):
        raise DataError(f"{name}: found {type(features).__name__}, expected an array", hint="pass numpy or torch")
    if features.ndim != 2 or not features.shape[1]:
        raise ShapeError(f"{name} has shape {features.shape}, expected (pairs, width)", hint="one row for each pair")
    if features.dtype not in (np.float16, np.float32, np.float64):
        raise DataError(f"{name} has dtype {features.dtype}, expected float16, float32 or float64", hint="convert it")
    return features


def cosines(first: FloatArray, second: FloatArray) -> NDArray[np.float64]:
    """Return the dot product of each row of ``first`` with the same row of ``second``, both (m, E).

    For the rows that :func:`normalise` gives the result is exact, whatever the order of addition: products are
    multiples of ``GRID ** 2 = 2 ** -52``, and no partial sum of unit rows reaches 2, so float64 holds all of them.
    """
    return np.einsum("me,me->m", first.astype(np.float64), second.astype(np.float64))


def _row_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add up each row by halves, elementwise, in place: one order whatever the layout or the vector width."""
    width = values.shape[1]
    while width > 16:
        half = (width + 1) // 2
        values[:, : width - half] += values[:, half:width]
        width = half
    columns = np.ascontiguousarray(values[:, :width].T)
    while width > 1:
        half = (width + 1) // 2
        columns[: width - half] += columns[half:width]
        width = half
    return columns[0]


def scores_of(image: NDArray[np.float64] | None, text: NDArray[np.float64] | None, scoring: Scoring) -> FloatArray:
    """Return float32 scores from cosines of any shape; -inf where the score is 0. An unused modality may be None."""
    product: NDArray[np.float64] | None = None
    allowed: Any = True
    for values, used in ((image, scoring.uses_image), (text, scoring.uses_text)):
        if not used:
            continue
        assert values is not None  # the caller computed what the scoring uses
        allowed = allowed & (values >= max(scoring.low, SMALLEST_COSINE))
        if scoring.duplicate < 1:
            allowed = allowed & (values <= scoring.duplicate)
        product = values if product is None else product * values
    return np.where(allowed, product, -np.inf).astype(np.float32)  # type: ignore[arg-type]


def rescore(
    query_image: FloatArray,
    query_text: FloatArray,
    query_ids: IntArray | None,
    query_rows: IntArray,
    candidate_rows: IntArray,
    image: FloatArray,
    text: FloatArray,
    ids: IntArray | None,
    scoring: Scoring,
) -> FloatArray:
    """Return the exact scores of chosen candidates.

    Args:
        query_image, query_text: (q, E), unit rows.
        query_ids: (q,), or None where every row is its own pair.
        query_rows: (q,), row numbers.
        candidate_rows: (q, K), row numbers into ``image``, ``text`` and ``ids``; negative ones are padding.
        image, text: (N, E), unit rows of the whole base.
        ids: (N,), or None.
        scoring: the score.

    Returns:
        (q, K); -inf for padding, for the query itself, for its id, and for a score of 0.
    """
    query, column = np.nonzero(candidate_rows >= 0)
    rows = candidate_rows[query, column]
    values = _pair_scores(query_image, query_text, query, rows, lambda some: (image[some], text[some]), scoring)
    excluded = rows == query_rows[query]
    if ids is not None and query_ids is not None:
        excluded |= ids[rows] == query_ids[query]
    values[excluded] = -np.inf
    scores = np.full(candidate_rows.shape, -np.inf, np.float32)
    scores[query, column] = values
    return scores


def _pair_scores(
    query_image: FloatArray, query_text: FloatArray, query: IntArray, rows: IntArray, fetch: Fetch, scoring: Scoring
) -> FloatArray:
    """Return the exact score of each (query, row), a cache-sized piece at a time."""
    scores = np.empty(len(rows), np.float32)
    step = max(1, _GATHER_ELEMENTS // max(query_image.shape[1], query_text.shape[1]))
    for start in range(0, len(rows), step):
        piece = slice(start, start + step)
        image, text = fetch(rows[piece])
        scores[piece] = scores_of(
            cosines(query_image[query[piece]], image) if scoring.uses_image else None,
            cosines(query_text[query[piece]], text) if scoring.uses_text else None,
            scoring,
        )
    return scores


def merge_topk(
    scores_a: FloatArray, rows_a: IntArray, scores_b: FloatArray, rows_b: IntArray, k: int
) -> tuple[FloatArray, IntArray]:
    """Return the k best of two lists for each query, by (-score, row); associative and commutative.

    Args:
        scores_a, rows_a: (q, any); -inf and -1 pad. A row that stands in both lists is kept once.
        scores_b, rows_b: likewise.

    Returns:
        scores (q, k) and rows (q, k), padded with -inf and -1.
    """
    scores = np.concatenate([scores_a, scores_b], axis=1)
    rows = np.concatenate([rows_a, rows_b], axis=1)
    query, column = np.nonzero((rows >= 0) & (scores > -np.inf))
    return _best(query, rows[query, column], scores[query, column], len(scores), k)


def _best(query: IntArray, rows: IntArray, scores: FloatArray, num: int, k: int) -> tuple[FloatArray, IntArray]:
    """Return (num, k) lists from loose (query, row, score) triples, by (-score, row), repeats dropped."""
    valid = scores > -np.inf
    query, rows, scores = query[valid], rows[valid], scores[valid]
    order = np.lexsort((rows, -scores, query))
    query, rows, scores = query[order], rows[order], scores[order]
    if len(rows):
        fresh = np.concatenate([[True], (query[1:] != query[:-1]) | (rows[1:] != rows[:-1])])
        query, rows, scores = query[fresh], rows[fresh], scores[fresh]
    rank = np.arange(len(query)) - np.searchsorted(query, np.arange(num))[query]
    kept = rank < k
    out_scores = np.full((num, k), -np.inf, np.float32)
    out_rows = np.full((num, k), -1, np.int64)
    out_scores[query[kept], rank[kept]] = scores[kept]
    out_rows[query[kept], rank[kept]] = rows[kept]
    return out_scores, out_rows


def matches(query_keys: IntArray, base_keys: IntArray) -> tuple[IntArray, IntArray]:
    """Return every (query index, base index) whose keys are equal."""
    order = np.argsort(base_keys, kind="stable")
    ordered = base_keys[order]
    first = np.searchsorted(ordered, query_keys, "left")
    count = np.searchsorted(ordered, query_keys, "right") - first
    query = np.repeat(np.arange(len(query_keys)), count)
    offset = np.arange(len(query)) - np.repeat(np.cumsum(count) - count, count)
    return query, order[np.repeat(first, count) + offset]


class TileSearch:
    """The top k of a set of queries over a base that arrives in pieces.

    Call :meth:`update` for every piece, then :meth:`result`; queries it reports as open need :class:`CarefulSearch`
    over the same pieces.

    Args:
        image, text: (q, E) float32, unit rows.
        ids: (q,) or None.
        rows: (q,), row numbers, never found as their own neighbours.
        k: how many to keep.
        scoring: the score.
        query_tile, base_tile: size of one float32 matrix product; only speed depends on them.
    """

    def __init__(
        self,
        image: FloatArray,
        text: FloatArray,
        ids: IntArray | None,
        rows: IntArray,
        k: int,
        scoring: Scoring,
        *,
        query_tile: int = QUERY_TILE,
        base_tile: int = BASE_TILE,
    ) -> None:
        self.image, self.text, self.ids, self.rows = image, text, ids, rows
        self.k, self.scoring = k, scoring
        self.query_tile, self.base_tile = min(query_tile, max(1, len(rows))), base_tile
        self.error = _error_bound(image, text, 2.0**-24)
        self._tiles = [
            _Candidates(min(self.query_tile, len(rows) - start), k + SPARE)
            for start in range(0, len(rows), self.query_tile)
        ]
        self._scorer = _TileScorer(scoring, self.query_tile * base_tile, torch.float32, self.error)

    def update(self, image: FloatArray, text: FloatArray, ids: IntArray | None, rows: IntArray) -> None:
        """Search one more piece of the base: (n, E), (n, E), (n,) or None, (n,)."""
        for base in range(0, len(rows), self.base_tile):
            these = slice(base, base + self.base_tile)
            image_t, text_t = _tensor(image[these]).T, _tensor(text[these]).T
            these_ids = None if ids is None else ids[these]
            for number, candidates in enumerate(self._tiles):
                queries = slice(number * self.query_tile, (number + 1) * self.query_tile)
                product = self._scorer.product(self.image[queries], self.text[queries], image_t, text_t)
                own_ids = None if self.ids is None else self.ids[queries]
                _exclude(product, own_ids, self.rows[queries], these_ids, rows[these])
                candidates.add(product, rows[these])

    def result(self, fetch: Fetch) -> tuple[FloatArray, IntArray, IntArray]:
        """Return scores (q, k), rows (q, k) and the queries (indices) that float32 could not settle.

        Args:
            fetch: gives the image and text features of base row numbers.
        """
        scores, found, open_queries = [], [], []
        for number, candidates in enumerate(self._tiles):
            start = number * self.query_tile
            query, rows = candidates.finish()
            exact = _pair_scores(self.image, self.text, query + start, rows, fetch, self.scoring)
            best, best_rows = _best(query, rows, exact, candidates.num, self.k)
            left_out = candidates.threshold + self.error  # no pair left out can score more
            open_queries.append(np.flatnonzero(best[:, -1] <= left_out) + start)
            scores.append(best)
            found.append(best_rows)
        if not scores:
            return np.empty((0, self.k), np.float32), np.empty((0, self.k), np.int64), np.empty(0, np.int64)
        return np.concatenate(scores), np.concatenate(found), np.concatenate(open_queries)


class CarefulSearch:
    """The exact top k of a few queries: float64 products, then :func:`cosines` for all that come near the k-th.

    Args:
        image, text, ids, rows, k, scoring: as in :class:`TileSearch`.
        scores: (q, k) known so far, as a lower bound; -inf where nothing is known.
    """

    def __init__(
        self,
        image: FloatArray,
        text: FloatArray,
        ids: IntArray | None,
        rows: IntArray,
        k: int,
        scoring: Scoring,
        *,
        scores: FloatArray,
        query_tile: int = 128,
        base_tile: int = BASE_TILE,
    ) -> None:
        self.image, self.text, self.ids, self.rows = image, text, ids, rows
        self.k, self.scoring, self.query_tile, self.base_tile = k, scoring, query_tile, base_tile
        self.error = _error_bound(image, text, 2.0**-53)
        self.bound = np.maximum(scores[:, -1].astype(np.float64), 0.0)
        self.scores = np.full((len(rows), k), -np.inf, np.float32)
        self.found = np.full((len(rows), k), -1, np.int64)
        self._scorer = _TileScorer(scoring, query_tile * base_tile, torch.float64, self.error)

    def update(self, image: FloatArray, text: FloatArray, ids: IntArray | None, rows: IntArray) -> None:
        """Search one more piece of the base."""
        for base in range(0, len(rows), self.base_tile):
            these = slice(base, base + self.base_tile)
            base_image, base_text, base_rows = image[these], text[these], rows[these]
            image_t = _tensor(base_image).double().T
            text_t = _tensor(base_text).double().T
            for start in range(0, len(self.rows), self.query_tile):
                queries = slice(start, start + self.query_tile)
                product = self._scorer.product(self.image[queries], self.text[queries], image_t, text_t)
                own_ids = None if self.ids is None else self.ids[queries]
                _exclude(product, own_ids, self.rows[queries], None if ids is None else ids[these], base_rows)
                # a score is rounded to float32 before it is compared, hence the relative slack
                floor = self.bound[queries] * (1 - 2.0**-22) - self.error
                query, position = np.nonzero((product.numpy() > floor[:, None]) & (product.numpy() > 0))
                if not len(query):
                    continue
                exact = _pair_scores(
                    self.image,
                    self.text,
                    query + start,
                    position,
                    lambda some, image=base_image, text=base_text: (image[some], text[some]),  # type: ignore[misc]
                    self.scoring,
                )
                piece = _best(query, base_rows[position], exact, product.shape[0], self.k)
                merged = merge_topk(self.scores[queries], self.found[queries], *piece, self.k)
                self.scores[queries], self.found[queries] = merged
                self.bound[queries] = np.maximum(self.bound[queries], merged[0][:, -1])

    def result(self) -> tuple[FloatArray, IntArray]:
        """Return scores (q, k) and rows (q, k)."""
        return self.scores, self.found


def search_pieces(
    image: FloatArray,
    text: FloatArray,
    ids: IntArray | None,
    rows: IntArray,
    k: int,
    scoring: Scoring,
    pieces: Callable[[], Iterable[Piece]],
    fetch: Fetch,
) -> tuple[FloatArray, IntArray]:
    """Return the queries' exact k best over a base that comes in pieces: in float32, then what that leaves open.

    Args:
        image, text, ids, rows, k, scoring: of the queries, as in :class:`TileSearch`.
        pieces: gives the whole base anew each time: image, text, ids, row numbers of every piece.
        fetch: gives the image and text features of base row numbers.
    """
    search = TileSearch(image, text, ids, rows, k, scoring)
    for piece in pieces():
        search.update(*piece)
    scores, found, still_open = search.result(fetch)
    if len(still_open):
        careful = CarefulSearch(
            image[still_open],
            text[still_open],
            None if ids is None else ids[still_open],
            rows[still_open],
            k,
            scoring,
            scores=scores[still_open],
        )
        for piece in pieces():
            careful.update(*piece)
        scores[still_open], found[still_open] = careful.result()
    return scores, found


def topk_block(
    query_image: FloatArray,
    query_text: FloatArray,
    query_ids: IntArray | None,
    query_rows: IntArray,
    base_image: FloatArray,
    base_text: FloatArray,
    base_ids: IntArray | None,
    base_rows: IntArray,
    k: int,
    scoring: Scoring,
) -> tuple[FloatArray, IntArray]:
    """Return each query's exact k best rows of one piece of the base.

    Pieces combine through :func:`merge_topk` into the result over the whole base, bit for bit.

    Args:
        query_image, query_text: (q, E) float32, unit rows (:func:`normalise`).
        query_ids, base_ids: (q,) and (n,): equal ids never meet; None where there are none.
        query_rows, base_rows: (q,) and (n,): global row numbers; a row never meets itself.
        base_image, base_text: (n, E) float32, unit rows.
        k: how many to keep.
        scoring: the score.

    Returns:
        scores float32 (q, k) and rows int64 (q, k), by (-score, row), padded with -inf and -1.
    """
    order = np.argsort(base_rows, kind="stable")
    ordered = base_rows[order]

    def fetch(rows: IntArray) -> tuple[FloatArray, FloatArray]:
        position = order[np.searchsorted(ordered, rows)]
        return base_image[position], base_text[position]

    base_image, base_text = np.ascontiguousarray(base_image), np.ascontiguousarray(base_text)
    whole = (base_image, base_text, base_ids, base_rows)
    return search_pieces(query_image, query_text, query_ids, query_rows, k, scoring, lambda: [whole], fetch)


def _error_bound(image: FloatArray, text: FloatArray, unit: float) -> float:
    """Return how far a product of two computed cosines of unit rows can be from the exact one.

    A dot product of E terms errs by at most E * unit * |x||y| in any order of addition (Higham 2002, section 3.1).
    """
    return 1.1 * (image.shape[1] + text.shape[1] + 8) * max(unit, 2.0**-53)


def _exclude(
    product: torch.Tensor,
    query_ids: IntArray | None,
    query_rows: IntArray,
    base_ids: IntArray | None,
    base_rows: IntArray,
) -> None:
    """Set the score of a query with itself and with its own id to 0."""
    pairs = [matches(query_rows, base_rows)]
    if query_ids is not None and base_ids is not None:
        pairs.append(matches(query_ids, base_ids))
    values = product.numpy()
    for query, base in pairs:
        values[query, base] = 0.0


def _tensor(array: FloatArray) -> torch.Tensor:
    """Return a tensor over the array; a read-only one is copied, as torch asks for."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _multiply(query: torch.Tensor, base: torch.Tensor, out: torch.Tensor) -> None:
    """Multiply in full precision, whatever the process allows elsewhere: the error bound relies on it."""
    allowed = torch.get_float32_matmul_precision()
    if allowed == "highest":
        torch.mm(query, base, out=out)
        return
    torch.set_float32_matmul_precision("highest")
    try:
        torch.mm(query, base, out=out)
    finally:
        torch.set_float32_matmul_precision(allowed)


class _TileScorer:
    """Scores of one tile, in buffers that are used again; thresholds give way by the error, so nothing is lost."""

    def __init__(self, scoring: Scoring, elements: int, dtype: torch.dtype, error: float) -> None:
        self.scoring, self.dtype = scoring, dtype
        self.low = max(scoring.low - error, 0.0)
        self.duplicate = scoring.duplicate + error
        self._buffers = [torch.empty(elements, dtype=dtype) for _ in range(2 if scoring.modality == "both" else 1)]
        self._flags = torch.empty(elements, dtype=torch.bool)

    def product(
        self, query_image: FloatArray, query_text: FloatArray, image_t: torch.Tensor, text_t: torch.Tensor
    ) -> torch.Tensor:
        """Return (q, n) scores; the next call overwrites them."""
        shape = (len(query_image), image_t.shape[1])
        sides = []
        if self.scoring.uses_image:
            sides.append((query_image, image_t))
        if self.scoring.uses_text:
            sides.append((query_text, text_t))
        views = [buffer[: shape[0] * shape[1]].view(shape) for buffer in self._buffers]
        flags = self._flags[: shape[0] * shape[1]].view(shape)
        for view, (query, base) in zip(views, sides, strict=True):
            _multiply(_tensor(query).to(self.dtype), base, view)
            torch.threshold_(view, self.low, 0.0)
            if self.scoring.duplicate < 1:
                torch.gt(view, self.duplicate, out=flags)
                if flags.any():
                    view.masked_fill_(flags, 0.0)
        if len(views) == 2:
            views[0].mul_(views[1])
        return views[0]


class _Candidates:
    """The best ``keep`` float32 scores of one tile of queries, as loose triples that are trimmed now and then."""

    def __init__(self, num: int, keep: int) -> None:
        self.num, self.keep = num, keep
        self.threshold = np.zeros(num, np.float32)
        self._query: list[NDArray[np.uint32]] = []
        self._row: list[IntArray] = []
        self._score: list[FloatArray] = []
        self._loose = 0

    def add(self, product: torch.Tensor, rows: IntArray) -> None:
        """Take what scores above its query's threshold; most tiles offer little once a few were seen."""
        above = torch.gt(product, torch.from_numpy(self.threshold)[:, None]).numpy()
        flat = np.flatnonzero(above)
        width = product.shape[1]
        if len(flat) > self.num * self.keep and width > self.keep:
            best = torch.topk(product, self.keep, dim=1, sorted=False)
            query = np.repeat(np.arange(self.num), self.keep)
            position, score = best.indices.numpy().ravel(), best.values.numpy().ravel()
            useful = score > self.threshold[query]
            query, position, score = query[useful], position[useful], score[useful]
            # what topk dropped scores no more than the smallest it kept; trimming sets that threshold
        else:
            query, position = np.divmod(flat, width)
            score = product.numpy().ravel()[flat]
        self._query.append(query.astype(np.uint32))
        self._row.append(rows[position])
        self._score.append(score)
        self._loose += len(query)
        if self._loose > self.num * self.keep:
            self._trim()

    def _trim(self) -> None:
        query, row, score = (np.concatenate(parts) for parts in (self._query, self._row, self._score))
        # positive floats sort like their bits: one integer key for (query, -score)
        key = (query.astype(np.uint64) << np.uint64(32)) | (np.uint64(0xFFFFFFFF) - score.view(np.uint32))
        order = np.argsort(key)
        query, row, score = query[order], row[order], score[order]
        start = np.searchsorted(query, np.arange(self.num + 1))
        rank = np.arange(len(query)) - start[query]
        last = rank == self.keep - 1
        self.threshold[query[last]] = score[last]
        kept = rank < self.keep
        self._query, self._row, self._score = [query[kept]], [row[kept]], [score[kept]]
        self._loose = 0

    def finish(self) -> tuple[IntArray, IntArray]:
        """Return the (query, row) of everything kept."""
        if not self._query:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        self._trim()
        return self._query[0].astype(np.int64), self._row[0]
