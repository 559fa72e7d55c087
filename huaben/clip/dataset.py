"""Captioned pictures for dual encoders: one interface over memory, folders, tables, tars and Hugging Face datasets.

:func:`open_pairs` passes over the data once, checks every picture and caption, and keeps what can be used. What cannot
is counted and listed with its reason in ``report``; no pair is ever given another's picture, and row numbers stay put.
A pair is known by its key, which does not change when data is shuffled, thinned or split over other shards.

Pictures are decoded when asked for: turned upright by their EXIF mark, transparency composed over a background colour
(white unless told otherwise), 16-bit grey scaled to 8 bits. Captions carry a language told by their script.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError, ShapeError
from .dataset_captions import LANGUAGES, Caption, Language, judge_caption
from .dataset_pictures import WHITE, decode_image, probe_image
from .dataset_readers import open_reader
from .dataset_rows import RawPair, Reader, ReaderOptions, TextColumn
from .preprocess import check_image

__all__ = [
    "ArrayPairs", "Caption", "Check", "Language", "PairDataset", "PairReport", "StoredPairs", "SubsetPairs", "open_pairs",
]  # fmt: skip

Check = Literal["decode", "header", "none"]
CHUNK = 256  # pairs checked together


@dataclass(frozen=True, slots=True)
class PairReport:
    """What the pass over the data found.

    Attributes:
        read: pairs that can be used.
        skipped: (key or place, reason) of every row that cannot.
        captions_skipped: (key, reason) of captions left out of pairs that keep others.
        transparent: pictures with an alpha channel, which is composed over the background; 0 if nothing was checked.
        columns: which column was taken for what.
        notes: what else the user should know.
    """

    read: int
    skipped: tuple[tuple[str, str], ...] = ()
    captions_skipped: tuple[tuple[str, str], ...] = ()
    transparent: int = 0
    columns: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def found(self) -> int:
        """Rows the data has: used and skipped."""
        return self.read + len(self.skipped)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "found": self.found,
            "read": self.read,
            "skipped": [list(item) for item in self.skipped],
            "captions_skipped": [list(item) for item in self.captions_skipped],
            "transparent": self.transparent,
            "columns": dict(self.columns),
            "notes": list(self.notes),
        }

    def lines(self, limit: int = 10) -> list[str]:
        """Return the report as lines of English, with at most ``limit`` skipped rows of each kind spelled out."""
        lines = [f"{self.read} of {self.found} pairs can be used"]
        if self.transparent:
            lines.append(f"{self.transparent} pictures with transparency, composed over the background")
        for name, skips in (("skipped", self.skipped), ("captions left out", self.captions_skipped)):
            if skips:
                lines.append(f"{len(skips)} {name}:")
                lines += [f"  {key}: {reason}" for key, reason in skips[:limit]]
                if len(skips) > limit:
                    lines.append(f"  and {len(skips) - limit} more")
        return [*lines, *self.notes]


class PairDataset(ABC):
    """N captioned pictures, by row number; rows stay where they are for the life of the object.

    Attributes:
        name: for reports and saved settings.
        report: what was read and what was left out.
    """

    name: str
    report: PairReport

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def key(self, row: int) -> str:
        """Return the pair's lasting name, unique in the data."""

    @abstractmethod
    def image(self, row: int) -> NDArray[np.uint8]:
        """Return the picture, uint8 (height, width, 3).

        Raises:
            DataError: naming the pair, if the picture cannot be read any more (or was never checked).
        """

    @abstractmethod
    def captions(self, row: int) -> tuple[Caption, ...]:
        """Return the captions, at least one, in the order of the data."""

    def keys(self) -> list[str]:
        """Return the keys of all rows."""
        return [self.key(row) for row in range(len(self))]

    def fingerprint(self) -> str:
        """Return a short hash of all keys and captions in order; pictures stand behind their keys unread."""
        digest = hashlib.sha256()
        for row in range(len(self)):
            for text in (self.key(row), *(caption.text for caption in self.captions(row))):
                data = text.encode("utf-8", "surrogatepass")
                digest.update(len(data).to_bytes(8, "little") + data)
            digest.update(b"\xff" * 8)
        return digest.hexdigest()[:32]

    def languages(self) -> dict[Language, int]:
        """Return how many captions there are in each language."""
        counts = Counter(caption.language for row in range(len(self)) for caption in self.captions(row))
        return {language: counts[language] for language in LANGUAGES}

    def subset(self, rows: Iterable[int], name: str = "") -> SubsetPairs:
        """Return a view of some rows, in the order given.

        Raises:
            DataError: for an empty list, a row out of range, or one named twice.
        """
        return SubsetPairs(self, rows, name or f"{self.name}, a part")

    def split(self, held_out: float, seed: int = 0) -> tuple[SubsetPairs, SubsetPairs]:
        """Return (training, held-out) views; a key falls on the same side whatever else the data holds.

        Args:
            held_out: expected share of the second part, between 0 and 1.
            seed: of the division.

        Raises:
            ConfigError: for a share outside (0, 1).
            DataError: if a part would be empty.
        """
        if not 0 < held_out < 1:
            raise ConfigError(f"held_out={held_out}, expected a share between 0 and 1", hint="for example 0.1")
        out = [_share(self.key(row), seed) < held_out for row in range(len(self))]
        return (
            self.subset([row for row, away in enumerate(out) if not away], f"{self.name}, training"),
            self.subset([row for row, away in enumerate(out) if away], f"{self.name}, held out"),
        )

    def _check_row(self, row: int) -> int:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {self.name}, which has {len(self)} pairs")
        return int(row)


def _share(key: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on key and seed alone."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


class SubsetPairs(PairDataset):
    """Some rows of other data, renumbered from 0; keys stay."""

    def __init__(self, data: PairDataset, rows: Iterable[int], name: str) -> None:
        self.name, self.data = name, data
        self.rows = np.asarray(list(rows), dtype=np.int64)
        if self.rows.size == 0:
            raise DataError(f"no row of {data.name} chosen, expected at least one", hint="choose other rows")
        if self.rows.min() < 0 or self.rows.max() >= len(data):
            raise DataError(f"rows {self.rows.min()} to {self.rows.max()} of {data.name}, which has {len(data)} pairs")
        if np.unique(self.rows).size != self.rows.size:
            raise DataError(f"a row of {data.name} is chosen twice", hint="name every row once")
        self.report = PairReport(read=len(self.rows), columns=data.report.columns)

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, row: int) -> str:
        return self.data.key(int(self.rows[self._check_row(row)]))

    def image(self, row: int) -> NDArray[np.uint8]:
        return self.data.image(int(self.rows[self._check_row(row)]))

    def captions(self, row: int) -> tuple[Caption, ...]:
        return self.data.captions(int(self.rows[self._check_row(row)]))


class ArrayPairs(PairDataset):
    """Pairs in memory.

    Args:
        images: N pictures, uint8 (height, width, 3), 8 pixels or more each way; one array or a sequence.
        captions: for every picture a text, a :class:`Caption`, or several of them.
        keys: lasting names; None names every pair by its content (a hash of pixels and captions).
        name: for reports.

    Raises:
        DataError: for lists of different lengths, duplicate keys, empty captions or captions in no known script.
        ShapeError: for anything that is not such a picture.
    """

    def __init__(
        self,
        images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
        captions: Sequence[str | Caption | Sequence[str | Caption]],
        keys: Sequence[str] | None = None,
        name: str = "arrays",
    ) -> None:
        self.name = name
        lengths = {"images": len(images), "captions": len(captions)} | ({} if keys is None else {"keys": len(keys)})
        if len(set(lengths.values())) > 1 or not len(images):
            found = ", ".join(f"{count} {what}" for what, count in lengths.items())
            raise DataError(f"found {found}, expected as many of each, and one at least")
        for row, image in enumerate(images):
            try:
                check_image(image)
            except ShapeError as error:
                raise ShapeError(f"picture {row} of {name}: {error.message}", hint=error.hint) from error
        self._images = images
        self._captions = [self._read(row, value) for row, value in enumerate(captions)]
        if keys is None:
            names = _ContentKeys()
            self._keys = [
                names.key(str(image.shape).encode() + image.tobytes(), [caption.text for caption in texts])
                for image, texts in zip(images, self._captions, strict=True)
            ]
        else:
            self._keys = [str(key) for key in keys]
        _check_keys(self._keys, name)
        self.report = PairReport(read=len(images))

    def _read(self, row: int, value: str | Caption | Sequence[str | Caption]) -> tuple[Caption, ...]:
        values = [value] if isinstance(value, (str, Caption)) else list(value)
        captions = []
        for item in values:
            if isinstance(item, Caption):
                captions.append(item)
                continue
            caption, problem = judge_caption(item)
            if caption is None:
                raise DataError(f"caption {row} of {self.name}: {problem}", hint="leave the pair out, or caption it")
            captions.append(caption)
        if not captions:
            raise DataError(f"pair {row} of {self.name} has no caption", hint="leave the pair out, or caption it")
        return tuple(captions)

    def __len__(self) -> int:
        return len(self._images)

    def key(self, row: int) -> str:
        return self._keys[self._check_row(row)]

    def image(self, row: int) -> NDArray[np.uint8]:
        return self._images[self._check_row(row)]

    def captions(self, row: int) -> tuple[Caption, ...]:
        return self._captions[self._check_row(row)]


class StoredPairs(PairDataset):
    """Pairs in files, as :func:`open_pairs` returns them: keys and captions in memory, pictures read when asked for."""

    def __init__(self, reader: Reader, background: tuple[int, int, int]) -> None:
        self.name, self.report = reader.name, PairReport(read=0)
        self._reader, self._background = reader, background
        self._rows = array("q")  # row of the reader
        self._keys = TextColumn()
        self._starts = array("q", [0])  # of the captions of each pair
        self._texts = TextColumn()
        self._languages = array("b")

    def _append(self, row: int, key: str, captions: Sequence[Caption]) -> None:
        self._rows.append(row)
        self._keys.append(key)
        for caption in captions:
            self._texts.append(caption.text)
            self._languages.append(LANGUAGES.index(caption.language))
        self._starts.append(len(self._texts))

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, row: int) -> str:
        return self._keys[self._check_row(row)]

    def image(self, row: int) -> NDArray[np.uint8]:
        key = self.key(row)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged marks in files that decode well
            try:
                return decode_image(self._reader.encoded(self._rows[row]), self._background)
            except DataError as error:
                raise DataError(
                    f"pair {key!r} of {self.name}: {error.message}", hint="open the data again, with check='decode'"
                ) from error

    def captions(self, row: int) -> tuple[Caption, ...]:
        self._check_row(row)
        span = range(self._starts[row], self._starts[row + 1])
        return tuple(Caption(self._texts[index], LANGUAGES[self._languages[index]]) for index in span)


# --- opening --------------------------------------------------------------------------------------------------------


def open_pairs(
    source: Any,
    *,
    image_column: str | None = None,
    caption_columns: str | Sequence[str] | None = None,
    key_column: str | None = None,
    split: str | None = None,
    check: Check = "decode",
    background: tuple[int, int, int] = WHITE,
    duplicates: Literal["error", "merge"] = "error",
    memory_mb: int = 1024,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> StoredPairs:
    """Open captioned pictures, check them, and report what was left out.

    Args:
        source: a folder (pictures with ``.txt`` or ``.json`` beside them, or a ``metadata.csv``/``metadata.jsonl``;
            Parquet files; tars; a saved Hugging Face dataset), a ``.csv``, ``.tsv``, ``.parquet`` or ``.tar`` file, a
            pattern of files (``shard-{0000..0009}.tar``, ``part-*.parquet``), ``hf:NAME`` or ``hf:NAME:CONFIG`` for a
            Hugging Face dataset already on this machine, or a ``datasets.Dataset``.
        image_column: column (in a tar: extension) of the picture; found by name or type if None.
        caption_columns: columns (in a tar: extensions or JSON fields) of the captions; found by name if None.
        key_column: column of a pair's lasting name; a known name, the path, or the content if None.
        split: part of the data: of a Hugging Face dataset, a sub-folder, or the start of Parquet file names.
        check: ``decode`` reads every picture, ``header`` only its format and size (a file cut short then fails when it
            is asked for), ``none`` opens none.
        background: colour (red, green, blue) under transparent pictures.
        duplicates: ``merge`` joins the captions of rows with the same key and the same picture file, as tables with a
            caption a line have them; ``error`` refuses them. Equal keys with other pictures are always an error.
        memory_mb: encoded pictures of Parquet files kept in memory, in MiB.
        threads: that check pictures; None takes up to four.
        progress: called with the number of rows passed.

    Raises:
        DataError: if the source cannot be read, a column cannot be told, keys repeat, or no pair can be used.
        ConfigError: for an impossible setting.
        MissingDependencyError: without pyarrow (Parquet) or datasets (Hugging Face).
    """
    if check not in ("decode", "header", "none"):
        raise ConfigError(f"check={check!r} is none of decode, header, none")
    if duplicates not in ("error", "merge"):
        raise ConfigError(f"duplicates={duplicates!r} is none of error, merge")
    if len(background) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in background):
        raise ConfigError(f"background={background!r}, expected three whole numbers from 0 to 255")
    if memory_mb < 1 or (threads is not None and threads < 1):
        raise ConfigError(f"memory_mb={memory_mb}, threads={threads}, expected 1 or more")
    columns = (caption_columns,) if isinstance(caption_columns, str) else caption_columns
    options = ReaderOptions(
        image_column=image_column,
        caption_columns=None if columns is None else tuple(columns),
        key_column=key_column,
        split=split,
        memory_mb=memory_mb,
    )
    reader = open_reader(source, options)
    pairs = StoredPairs(reader, (background[0], background[1], background[2]))
    builder = _Builder(pairs, check, merge=duplicates == "merge")
    with warnings.catch_warnings(), ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # about damaged marks in files that decode well; filters hold for all threads
        passed = 0
        for chunk in _chunks(reader.scan()):
            examine = map if check == "none" else pool.map  # nothing to read: threads would only cost time
            for raw, transparent in examine(builder.examine, chunk):
                builder.add(raw, transparent)
            passed += len(chunk)
            if progress is not None:
                progress(passed)
    return builder.finish()


def _chunks(rows: Iterator[RawPair]) -> Iterator[list[RawPair]]:
    while chunk := list(islice(rows, CHUNK)):
        yield chunk


class _Builder:
    """The pass that fills a :class:`StoredPairs`."""

    def __init__(self, pairs: StoredPairs, check: Check, *, merge: bool) -> None:
        self.pairs, self.check, self.merge = pairs, check, merge
        self.skipped: list[tuple[str, str]] = []
        self.captions_skipped: list[tuple[str, str]] = []
        self.transparent = 0
        self.contents = _ContentKeys()
        self.merging: dict[str, tuple[RawPair, list[Caption]]] = {}

    def examine(self, raw: RawPair) -> tuple[RawPair, bool]:
        """Read and check one picture; its bytes are dropped unless they must name the pair. Runs in threads."""
        transparent = False
        if not raw.problem:
            try:
                if self.check != "none" or raw.key is None:
                    data = raw.encoded if raw.encoded is not None else self.pairs._reader.encoded(raw.row)
                    if self.check != "none":
                        transparent = probe_image(data, decode=self.check == "decode")
                    if raw.key is None:
                        raw.key = self.contents.digest(data, [text for _, text in raw.texts])
                        raw.picture = "content"
            except DataError as error:
                raw.problem = error.message
        raw.encoded = None
        return raw, transparent

    def add(self, raw: RawPair, transparent: bool) -> None:
        """Judge a row's captions and keep or skip it. Runs in order."""
        label = raw.key or raw.where
        if raw.problem:
            self.skipped.append((label, raw.problem))
            return
        captions, problems = [], []
        for column, text in raw.texts:
            caption, problem = judge_caption(text, column)
            if caption is not None:
                captions.append(caption)
            else:
                problems.append(problem)
        if not captions:
            self.skipped.append((label, "; ".join(dict.fromkeys(problems)) or "no caption"))
            return
        self.captions_skipped += [(label, problem) for problem in problems]
        self.transparent += transparent
        key = raw.key or raw.where
        if raw.picture == "content":
            key = self.contents.numbered(key)
        if not self.merge:
            self.pairs._append(raw.row, key, captions)
            return
        first = self.merging.setdefault(key, (raw, captions))
        if first[1] is not captions:
            if not raw.picture or first[0].picture != raw.picture:
                raise DataError(
                    f"key {key!r} names two different pictures of {self.pairs.name}: {first[0].where} and {raw.where}",
                    hint="choose another key_column",
                )
            first[1].extend(captions)

    def finish(self) -> StoredPairs:
        """Return the data with its report."""
        pairs, reader = self.pairs, self.pairs._reader
        for key, (raw, captions) in self.merging.items():
            pairs._append(raw.row, key, captions)
        if not len(pairs):
            reasons = Counter(reason for _, reason in self.skipped).most_common(3)
            listed = "; ".join(f"{count}x {reason}" for reason, count in reasons)
            raise DataError(
                f"{pairs.name}: none of {len(self.skipped)} pairs can be used" + (f": {listed}" if listed else ""),
                hint="check the columns and the folder the pictures are in",
            )
        _check_keys(pairs._keys, pairs.name)
        pairs.report = PairReport(
            read=len(pairs),
            skipped=tuple(self.skipped),
            captions_skipped=tuple(self.captions_skipped),
            transparent=self.transparent,
            columns=reader.columns,
            notes=reader.notes,
        )
        return pairs


class _ContentKeys:
    """Names pairs by what they hold; bit-identical pairs are told apart by a count, which loses nothing."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    @staticmethod
    def digest(data: bytes, texts: Sequence[str]) -> str:
        digest = hashlib.blake2b(data, digest_size=16)
        for text in texts:
            digest.update(b"\0" + text.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def numbered(self, digest: str) -> str:
        self._seen[digest] += 1
        return digest if self._seen[digest] == 1 else f"{digest}#{self._seen[digest]}"

    def key(self, data: bytes, texts: Sequence[str]) -> str:
        return self.numbered(self.digest(data, texts))


def _check_keys(keys: TextColumn | Sequence[str], name: str) -> None:
    """Raise DataError naming keys that occur twice; 8 bytes a key of memory."""
    hashes = np.fromiter((hash(keys[row]) for row in range(len(keys))), np.int64, len(keys))
    order = np.argsort(hashes, kind="stable")
    close = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    twice = [
        keys[int(order[at])]
        for at in close
        if keys[int(order[at])] == keys[int(order[at + 1])]  # equal hashes alone prove nothing
    ]
    if twice:
        named = list(dict.fromkeys(twice))
        more = f" and {len(named) - 5} more" if len(named) > 5 else ""
        raise DataError(
            f"{name}: {len(named)} keys name more than one pair: {', '.join(map(repr, named[:5]))}{more}",
            hint="choose another key_column; duplicates='merge' joins the captions of rows with the same picture",
        )
