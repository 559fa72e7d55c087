"""Pictures that are files of their own: folders with captions beside them, and tables that name them by path."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from .dataset_rows import (
    IMAGE_SUFFIXES,
    RawPair,
    Reader,
    ReaderOptions,
    TextColumn,
    caption_texts,
    choose_columns,
    columns_report,
    decode_text,
    joined,
    json_captions,
    read_file,
)

METADATA_NAMES = ("metadata.csv", "metadata.jsonl")


class _PathReader(Reader):
    """Pictures that are files of their own."""

    def __init__(self) -> None:
        self._paths = TextColumn()

    def encoded(self, row: int) -> bytes:
        return read_file(Path(self._paths[row]))

    def _row(self, path: Path) -> int:
        self._paths.append(os.fspath(path))
        return len(self._paths) - 1


class FolderReader(_PathReader):
    """Pictures with captions beside them: ``a.png`` with ``a.txt`` (a caption a line) or ``a.json``.

    ``a.json`` is a text, a list of texts, or an object whose caption fields are one of these. The key is the picture's
    path below the folder. Pictures without captions and captions without a picture are problems, never passed over.
    """

    def __init__(self, folder: Path, options: ReaderOptions) -> None:
        super().__init__()
        self.name, self._folder = folder.name, folder
        self._fields = options.caption_columns
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        self._images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
        if not self._images:
            raise DataError(f"no pictures in {folder}", hint=f"expected files ending in {', '.join(IMAGE_SUFFIXES)}")
        if options.image_column is not None or options.key_column is not None:
            raise DataError(
                f"{folder} has no columns: its captions stand beside its pictures",
                hint="leave image_column and key_column out, or write a metadata.csv",
            )
        stems = {path.with_suffix("") for path in self._images}
        sidecars = [path for path in files if path.suffix.lower() in (".txt", ".json")]
        self._strays = [path for path in sidecars if path.with_suffix("") not in stems]
        self.columns = {"image": "files", "captions": "files beside them", "key": "path"}

    def scan(self) -> Iterator[RawPair]:
        self._paths = TextColumn()
        for path in self._images:
            key = path.relative_to(self._folder).as_posix()
            raw = RawPair(self._row(path), key, key)
            try:
                sidecars = [path.with_suffix(suffix) for suffix in (".txt", ".json")]
                found = [sidecar for sidecar in sidecars if sidecar.is_file()]
                raw.texts = [text for sidecar in found for text in self._read(sidecar)]
                raw.problem = "" if found else "no .txt or .json beside it"
            except DataError as error:
                raw.problem = error.message
            yield raw
        for path in self._strays:
            key = path.relative_to(self._folder).as_posix()
            yield RawPair(-1, key, key, problem="no picture beside it")

    def _read(self, path: Path) -> list[tuple[str, str]]:
        text = decode_text(read_file(path), path.name)
        if path.suffix == ".txt":
            return [("txt", line) for line in text.splitlines() if line.strip()]
        return json_captions(text, path.name, self._fields)


class TableReader(_PathReader):
    """Rows of text that name pictures by path: CSV, TSV, and ``metadata.csv`` or ``metadata.jsonl`` in image folders.

    Paths are relative to the table's folder. The key is a key column or the path as written. A ``.csv`` whose header
    holds tabs and no comma is read as tab-separated. Below ``root``, pictures that no line names are problems.
    """

    def __init__(self, tables: Sequence[Path], options: ReaderOptions, *, root: Path | None = None) -> None:
        super().__init__()
        self._tables, self._root = tuple(tables), root
        self.name = root.name if root is not None else tables[0].name
        found: list[str] = []
        for table in tables:
            found += [column for column in _header(table) if column not in found]
        where = str(tables[0])
        if root is not None and options.image_column is None and "file_name" in found:
            options = dataclasses.replace(options, image_column="file_name")
        self._image, self._captions, self._key = choose_columns(found, options, where)
        self.columns = columns_report(self._image, self._captions, self._key, "path")

    def scan(self) -> Iterator[RawPair]:
        self._paths = TextColumn()
        named: set[Path] = set()
        for table in self._tables:
            for line, values, problem in _lines(table):
                where = f"{table.name} line {line}"
                written = values.get(self._image)
                if problem or not isinstance(written, str) or not written:
                    yield RawPair(-1, where, None, problem=problem or f"{self._image} is empty")
                    continue
                path = joined(table.parent, written)
                if self._root is not None:
                    named.add(path)
                raw = RawPair(self._row(path), where, self._name(table, path, written, values), picture=str(path))
                try:
                    for column in self._captions:
                        raw.texts += caption_texts(column, values.get(column))
                except DataError as error:
                    raw.problem = error.message
                if self._key is not None and not raw.key:
                    raw.key, raw.problem = None, f"{self._key} is empty"
                yield raw
        if self._root is not None:
            for path in sorted(self._root.rglob("*")):
                if path.suffix.lower() in IMAGE_SUFFIXES and path not in named:
                    key = path.relative_to(self._root).as_posix()
                    yield RawPair(-1, key, key, problem="no line names it")

    def _name(self, table: Path, path: Path, written: str, values: Mapping[str, Any]) -> str:
        if self._key is not None:
            value = values.get(self._key)
            return "" if value is None else str(value)
        if self._root is not None and path.is_relative_to(self._root):
            return path.relative_to(self._root).as_posix()
        return written


def _header(path: Path) -> list[str]:
    """Return the column names of a table; of a ``.jsonl``, the fields of its objects."""
    if path.suffix == ".jsonl":
        found: dict[str, None] = {}
        for _, values, problem in itertools.islice(_lines(path), 1000):
            found.update(dict.fromkeys(values) if not problem else {})
        return list(found)
    with _open_text(path) as file:
        return next(csv.reader(file, delimiter=_delimiter(path)), [])


def _open_text(path: Path) -> Any:
    try:
        return path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="check the path") from error


def _delimiter(path: Path) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    with _open_text(path) as file:
        try:
            first = file.readline()
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text (byte {error.start})", hint="save it as UTF-8") from error
    return "\t" if "\t" in first and "," not in first else ","


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Yield (line number from 1, values by column, problem) of every row."""
    with _open_text(path) as file:
        try:
            yield from _json_lines(file) if path.suffix == ".jsonl" else _csv_lines(file, _delimiter(path))
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text ({error.reason})", hint="save it as UTF-8") from error


def _json_lines(file: Any) -> Iterator[tuple[int, dict[str, Any], str]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            yield number, {}, f"not valid JSON: {error}"
            continue
        yield (number, values, "") if isinstance(values, dict) else (number, {}, "not a JSON object")


def _csv_lines(file: Any, delimiter: str) -> Iterator[tuple[int, dict[str, Any], str]]:
    rows = csv.reader(file, delimiter=delimiter, strict=True)
    header = next(rows, [])
    while True:
        try:
            values = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{file.name} line {rows.line_num}: {error}", hint="check the quotes") from error
        if not values:
            continue
        problem = "" if len(values) == len(header) else f"{len(values)} fields, the header has {len(header)}"
        yield rows.line_num, dict(zip(header, values, strict=False)), problem
