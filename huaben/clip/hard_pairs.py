"""The list of hard pairs: for each pair of a data set, the rows of its nearest other pairs, with how it was made.

A list is saved with its settings and, if the data set has them, with its keys, because row numbers alone do not
survive another download or another reading order (HELIP's released code joins by row and so trains on other pairs
than it mined). Join by key with :meth:`HardPairs.matched`.

Legend: N pairs, k hard pairs kept for each.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError, ShapeError
from ..files import replacing, store_error, sync_folder

FORMAT_VERSION = 1
_ARRAYS = {"pairs": np.int64, "scores": np.float32, "certified": np.bool_, "outlier": np.bool_}
_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class HardPairs:
    """Each pair's hard pairs.

    Attributes:
        pairs: (N, k) int64, row numbers by (-score, row); -1 where fewer than k exist.
        scores: (N, k) float32, above 0; -inf beside -1.
        certified: (N,), whether the list is provably the true top k.
        outlier: (N,), whether fewer than k other pairs agree with this one in image and caption: a sign that its
            caption belongs to another image, or just that it is unlike the rest.
        keys: N names that survive shuffling and loss of samples, or None.
        settings: JSON values: how the list was made, from what features, with which versions.

    Raises:
        ShapeError: if the arrays do not fit together.
        DataError: for a wrong dtype, or keys that repeat or cannot be saved.
    """

    pairs: NDArray[np.int64]
    scores: NDArray[np.float32]
    certified: NDArray[np.bool_]
    outlier: NDArray[np.bool_]
    keys: list[str] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.pairs.ndim != 2 or not self.pairs.shape[1]:
            raise ShapeError(f"pairs has shape {self.pairs.shape}, expected (N, k)")
        num = len(self.pairs)
        shapes = {"pairs": self.pairs.shape, "scores": self.pairs.shape, "certified": (num,), "outlier": (num,)}
        for name, dtype in _ARRAYS.items():
            array = getattr(self, name)
            if array.shape != shapes[name]:
                raise ShapeError(f"{name} has shape {array.shape}, expected {shapes[name]} for {num} pairs")
            if array.dtype != dtype:
                raise DataError(f"{name} has dtype {array.dtype}, expected {np.dtype(dtype)}", hint="convert it")
        if self.keys is not None:
            if len(self.keys) != num:
                raise ShapeError(f"{len(self.keys)} keys for {num} pairs", hint="give one key for each pair")
            _check_keys(self.keys, "keys")

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def k(self) -> int:
        return self.pairs.shape[1]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,): how many hard pairs each pair has."""
        return (self.pairs >= 0).sum(axis=1)

    @property
    def agreement(self) -> NDArray[np.float32]:
        """(N,): mean score over the k places, empty ones counting 0; low where image and caption disagree.

        Source: HELIP section 3.2, equation 5, divided by k.
        """
        return np.where(self.pairs >= 0, self.scores, 0).mean(axis=1, dtype=np.float64).astype(np.float32)

    def usable(self, k_use: int = 1) -> NDArray[np.int64]:
        """Return the rows that have at least ``k_use`` hard pairs."""
        if not 1 <= k_use <= self.k:
            raise ConfigError(f"k_use={k_use}, expected from 1 to k={self.k}", hint="mine with a larger k")
        return np.flatnonzero(self.pairs[:, k_use - 1] >= 0)

    def check(self, num_pairs: int) -> None:
        """Refuse lists that cannot belong to a data set of ``num_pairs`` pairs.

        Raises:
            DataError: if the number differs, or a list holds an impossible row, its own row, a row twice, or a gap.
        """
        if len(self) != num_pairs:
            raise DataError(
                f"the hard pairs are for {len(self)} pairs, the data has {num_pairs}",
                hint="join them by key with HardPairs.matched, or mine again",
            )
        for start in range(0, len(self), _ROWS_AT_ONCE):
            pairs = np.asarray(self.pairs[start : start + _ROWS_AT_ONCE])
            own = np.arange(start, start + len(pairs))[:, None]
            ordered = np.sort(pairs, axis=1)
            wrong = {
                f"a row outside 0 to {num_pairs - 1}": (pairs < -1) | (pairs >= num_pairs),
                "its own row": pairs == own,
                "a row twice": (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0),
                "a gap": (pairs[:, 1:] >= 0) & (pairs[:, :-1] < 0),
            }
            for what, where in wrong.items():
                if where.any():
                    row = start + int(np.flatnonzero(where.any(axis=1))[0])
                    raise DataError(f"the hard pairs of row {row} hold {what}", hint="mine again")

    def matched(self, keys: Sequence[str], *, minimum: float = 0.999) -> HardPairs:
        """Return the lists for a data set that holds these keys in this order.

        A partner that the data set lacks leaves its list, which then ends in -1 and is no longer certified; a pair
        that was not mined has an empty list and counts as an outlier.

        Args:
            keys: the data set's keys, each once.
            minimum: the least share of ``keys`` that must have been mined.

        Raises:
            DataError: if this list has no keys, a key repeats, or too few are known.
        """
        if self.keys is None:
            raise DataError("these hard pairs have no keys to join by", hint="mine with keys=, or use check()")
        keys = list(keys)
        _check_keys(keys, "the data set's keys")
        place = {key: row for row, key in enumerate(self.keys)}
        old = np.fromiter((place.get(key, -1) for key in keys), np.int64, len(keys))
        known = old >= 0
        if not len(keys) or known.mean() < minimum:
            missing = [keys[row] for row in np.flatnonzero(~known)[:3]]
            raise DataError(
                f"{int(known.sum())} of the data set's {len(keys)} keys were mined, expected at least "
                f"{100 * minimum:g} %" + (f"; unknown: {', '.join(map(repr, missing))}" if missing else ""),
                hint="mine this data set, or check that both read the same keys",
            )
        new = np.full(len(self) + 1, -1, np.int64)  # the last entry answers for -1
        new[old[known]] = np.flatnonzero(known)
        pairs = np.full((len(keys), self.k), -1, np.int64)
        scores = np.full((len(keys), self.k), -np.inf, np.float32)
        before, own = np.asarray(self.pairs[old[known]]), np.asarray(self.scores[old[known]])
        after = new[before]
        order = np.argsort(after < 0, axis=1, kind="stable")
        after = np.take_along_axis(after, order, axis=1)
        pairs[known] = after
        scores[known] = np.where(after >= 0, np.take_along_axis(own, order, axis=1), -np.inf)
        # the join may change which of two equal scores comes first
        order = np.lexsort((np.where(pairs >= 0, pairs, len(keys)), -scores), axis=1)
        pairs, scores = np.take_along_axis(pairs, order, axis=1), np.take_along_axis(scores, order, axis=1)
        certified = np.zeros(len(keys), bool)
        if known.all():
            certified = self.certified[old] & ((after >= 0).all(axis=1) | (before[:, -1] < 0))
        outlier = np.ones(len(keys), bool)
        outlier[known] = self.outlier[old[known]]
        settings = self.settings | {"matched": {"mined": len(self), "keys": len(keys), "known": int(known.sum())}}
        return HardPairs(pairs=pairs, scores=scores, certified=certified, outlier=outlier, keys=keys, settings=settings)

    def statistics(self) -> dict[str, Any]:
        """Return JSON values that describe the lists.

        Returns:
            ``num_pairs``, ``k``; shares ``certified``, ``outlier``, ``short`` (fewer than k) and ``empty``;
            ``in_degree`` (how often a pair stands in others' lists: ``mean``, ``p99``, ``max``, and ``never``, the
            share of pairs in no list); ``reciprocity`` (share of listed pairs that list the lister too, over at most
            100,000 evenly spaced rows); ``score`` (quantiles of the first, middle and last place); ``bands`` (share
            of all entries by score: likely false negatives are at the top).
        """
        num, k = self.pairs.shape
        degree = np.zeros(num, np.int64)
        bands = np.zeros(10, np.int64)
        for start in range(0, num, _ROWS_AT_ONCE):
            pairs = np.asarray(self.pairs[start : start + _ROWS_AT_ONCE])
            listed = pairs >= 0
            degree += np.bincount(pairs[listed], minlength=num)
            band = (self.scores[start : start + _ROWS_AT_ONCE][listed] * 10).astype(np.int64)
            bands += np.bincount(np.clip(band, 0, 9), minlength=10)
        lengths, total = self.lengths, max(1, int(bands.sum()))
        return {
            "num_pairs": num,
            "k": k,
            "certified": float(self.certified.mean()),
            "outlier": float(self.outlier.mean()),
            "short": float((lengths < k).mean()),
            "empty": float((lengths == 0).mean()),
            "in_degree": {
                "mean": float(degree.mean()),
                "p99": float(np.percentile(degree, 99)),
                "max": int(degree.max()),
                "never": float((degree == 0).mean()),
            },
            "reciprocity": self._reciprocity(),
            "score": {
                name: _quantiles(self.scores[:, place])
                for name, place in (("first", 0), ("middle", (k - 1) // 2), ("last", k - 1))
            },
            "bands": {f"{i / 10:.1f}-{(i + 1) / 10:.1f}": float(count / total) for i, count in enumerate(bands)},
        }

    def _reciprocity(self) -> float:
        num, k = self.pairs.shape
        rows = np.unique(np.linspace(0, num - 1, min(num, 100_000)).astype(np.int64))
        step = max(1, (1 << 22) // (k * k))
        listed = mutual = 0
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            partners = np.asarray(self.pairs[some])
            valid = partners >= 0
            back = (np.asarray(self.pairs[partners]) == some[:, None, None]).any(axis=2)
            listed += int(valid.sum())
            mutual += int((back & valid).sum())
        return mutual / max(1, listed)

    def save(self, path: str | Path) -> Path:
        """Write the lists, whole or not at all.

        Args:
            path: a ``.npz`` file; or, without that suffix, a folder of ``.npy`` files that :meth:`load` maps instead
                of reading. An existing list there is replaced.

        Raises:
            StoreError: if it cannot be written.
            DataError: if ``path`` is a folder or file that is not a saved list.
        """
        path = Path(path)
        arrays = {name: np.asarray(getattr(self, name)) for name in _ARRAYS}
        settings = json.dumps({"format_version": FORMAT_VERSION, **self.settings}, sort_keys=True, ensure_ascii=False)
        if path.suffix == ".npz":
            texts = {"settings": np.array(settings)} | ({} if self.keys is None else {"keys": np.array(self.keys)})
            _write_npz(path, arrays | texts)
            return path
        if path.exists() and not (path / "settings.json").is_file():
            raise DataError(f"{path} exists and is not a folder of hard pairs", hint="choose another path, or .npz")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
        except OSError as error:
            raise store_error("written", path, error) from error
        try:
            for name, array in arrays.items():
                np.save(fresh / f"{name}.npy", array)
            if self.keys is not None:
                (fresh / "keys.json").write_text(json.dumps(self.keys, ensure_ascii=False), encoding="utf-8")
            (fresh / "settings.json").write_text(settings, encoding="utf-8")
            fresh.chmod(0o755)
            if path.exists():
                old = fresh.with_suffix(".old")
                path.rename(old)
                fresh.rename(path)
                shutil.rmtree(old)
            else:
                fresh.rename(path)
            sync_folder(path.parent)
        except OSError as error:
            raise store_error("written", path, error) from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return path

    @classmethod
    def load(cls, path: str | Path) -> HardPairs:
        """Read what :meth:`save` wrote; a folder's arrays are memory-mapped, read-only.

        Raises:
            DataError: if it is absent, damaged, of a later format, or lacks a part.
        """
        path = Path(path)
        try:
            values = _read_folder(path) if path.is_dir() else _read_npz(path)
            settings = json.loads(values.pop("settings"))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{path} cannot be read as hard pairs ({error})", hint="check the path, or mine again"
            ) from error
        version = settings.pop("format_version", None) if isinstance(settings, dict) else None
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path} has format {version!r}, expected {FORMAT_VERSION}", hint="save it again with this version"
            )
        return cls(**values, settings=settings)


def _check_keys(keys: Sequence[str], what: str) -> None:
    if not all(isinstance(key, str) and key and not key.endswith("\0") for key in keys):
        raise DataError(f"{what}: found one that is empty or not text", hint="give each pair a name")
    if len(set(keys)) != len(keys):
        seen: set[str] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DataError(f"{what}: {twice!r} stands for more than one pair", hint="give each pair its own key")


def _quantiles(scores: NDArray[np.float32]) -> dict[str, float | None]:
    """Return quantiles of the finite scores; None where there are none."""
    finite = scores[np.isfinite(scores)]
    names = ("p01", "p10", "p50", "p90", "p99")
    if not len(finite):
        return dict.fromkeys(names)
    return {name: round(float(np.percentile(finite, int(name[1:]))), 6) for name in names}


def _write_npz(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Stream the arrays into a file beside ``path`` and rename it into place."""
    try:
        with replacing(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise store_error("written", path, error) from error


def _read_npz(path: Path) -> dict[str, Any]:
    with path.open("rb") as opened:  # numpy leaves a damaged file open
        file = np.load(opened, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("a single array, not an .npz file")
        _check_parts(set(file.files), {*_ARRAYS, "settings"}, {"keys"})
        values: dict[str, Any] = {name: file[name] for name in _ARRAYS}
        values["settings"] = str(file["settings"])
        if "keys" in file.files:
            values["keys"] = file["keys"].tolist()
    return values


def _read_folder(path: Path) -> dict[str, Any]:
    names = {file.stem for file in path.iterdir() if file.suffix in (".npy", ".json")}
    _check_parts(names, {*_ARRAYS, "settings"}, {"keys"})
    values: dict[str, Any] = {name: np.load(path / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    values["settings"] = (path / "settings.json").read_text(encoding="utf-8")
    if "keys" in names:
        values["keys"] = json.loads((path / "keys.json").read_text(encoding="utf-8"))
    return values


def _check_parts(found: set[str], needed: set[str], allowed: set[str]) -> None:
    if needed - found:
        raise ValueError(f"it lacks {', '.join(sorted(needed - found))}")
    if found - needed - allowed:
        raise ValueError(f"it holds unknown {', '.join(sorted(found - needed - allowed))}")
