"""Captioned pictures in Arrow columns: Parquet files and Hugging Face datasets."""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..optional import require
from .dataset_rows import (
    EXTRA,
    RawPair,
    Reader,
    ReaderOptions,
    caption_texts,
    choose_columns,
    columns_report,
    joined,
    read_file,
)


class ParquetReader(Reader):
    """Parquet files: picture bytes, ``{bytes, path}`` structs or paths; captions as texts or lists of texts.

    Picture bytes are read a row group at a time and kept up to ``memory_mb``. Without a key column the path of the
    struct or the content is the key.
    """

    def __init__(self, files: Sequence[Path], options: ReaderOptions) -> None:
        self._files = tuple(files)
        self.name = files[0].name if len(files) == 1 else files[0].parent.name
        self._budget = options.memory_mb * 2**20
        opened = [_parquet(path) for path in files]
        schema = opened[0].schema_arrow
        for path, other in zip(files[1:], opened[1:], strict=True):
            if other.schema_arrow.names != schema.names:
                raise DataError(
                    f"{path} has columns {', '.join(other.schema_arrow.names)}; {files[0].name} has "
                    f"{', '.join(schema.names)}",
                    hint="open data of one kind at a time",
                )
        likely = [item.name for item in schema if _holds_bytes(item.type)]
        chosen = choose_columns(schema.names, options, str(files[0]), likely_images=likely)
        self._image, self._captions, self._key = chosen
        _check_types(schema, self._image, self._captions, str(files[0]))
        self.columns = columns_report(self._image, self._captions, self._key, "path or content")
        self._starts: list[int] = [0]  # first row of every row group, over all files
        self._groups: list[tuple[int, int]] = []
        size = 0
        for number, file in enumerate(opened):
            for group in range(file.metadata.num_row_groups):
                meta = file.metadata.row_group(group)
                self._groups.append((number, group))
                self._starts.append(self._starts[-1] + meta.num_rows)
                parts = [meta.column(index) for index in range(meta.num_columns)]
                size += sum(
                    part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == self._image
                )
        if size > self._budget:
            self.notes = (
                f"{size / 2**20:.0f} MiB of pictures, more than memory_mb={options.memory_mb}: read in random order, "
                f"row groups are read again and again; raise memory_mb or use webdataset shards",
            )
        self._reset()

    def _reset(self) -> None:
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_kept", "_kept_bytes", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def scan(self) -> Iterator[RawPair]:
        names = list(dict.fromkeys([self._image, *self._captions, *([self._key] if self._key else [])]))
        for start, (number, group) in zip(self._starts, self._groups, strict=False):
            table = self._read_group(number, group, names)
            row = start
            for batch in table.to_batches(max_chunksize=256):
                for values in batch.to_pylist():
                    where = f"{self._files[number].name} row {row}"
                    yield raw_from_values(row, where, values, self._image, self._captions, self._key)
                    row += 1

    def encoded(self, row: int) -> bytes:
        index = bisect.bisect_right(self._starts, row) - 1
        column = self._group(index)
        value = column[row - self._starts[index]].as_py()
        return picture_bytes(value, self._files[self._groups[index][0]].parent)

    def _group(self, index: int) -> Any:
        """Return the picture column of a row group, kept while the budget allows."""
        with self._lock:
            if index in self._kept:
                self._kept.move_to_end(index)
                return self._kept[index]
            column = self._read_group(*self._groups[index], [self._image]).column(0).combine_chunks()
            self._kept[index] = column
            self._kept_bytes += column.nbytes
            while self._kept_bytes > self._budget and len(self._kept) > 1:
                self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
            return column

    def _read_group(self, number: int, group: int, columns: list[str]) -> Any:
        arrow = require("pyarrow", extra=EXTRA)
        try:
            with _parquet(self._files[number]) as file:
                return file.read_row_group(group, columns=columns)
        except (OSError, arrow.ArrowException) as error:
            raise DataError(f"{self._files[number]} is damaged: {error}", hint="copy the file again") from error


def _parquet(path: Path) -> Any:
    """Open a Parquet file.

    Raises:
        DataError: if it cannot be read.
    """
    arrow = require("pyarrow", extra=EXTRA)
    require("pyarrow.parquet", extra=EXTRA)
    try:
        return arrow.parquet.ParquetFile(path)
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}", hint="copy the file again") from error


def _holds_bytes(kind: Any) -> bool:
    """Return whether an Arrow type is bytes or a struct with bytes in it."""
    types = require("pyarrow", extra=EXTRA).types
    if types.is_struct(kind):
        return any(kind.field(index).name == "bytes" for index in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)


def _check_types(schema: Any, image: str, captions: Sequence[str], where: str) -> None:
    """Check the types of an Arrow schema's chosen columns."""
    types = require("pyarrow", extra=EXTRA).types

    def text(kind: Any) -> bool:
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind)

    kind = schema.field(image).type
    if not (_holds_bytes(kind) or text(kind)):
        raise DataError(
            f"{where}: column {image!r} is {kind}, expected picture bytes, a struct of bytes and path, or a path",
            hint=f"name another with image_column; found columns: {', '.join(schema.names)}",
        )
    for name in captions:
        kind = schema.field(name).type
        listed = types.is_list(kind) or types.is_large_list(kind)
        if not text(kind.value_type if listed else kind):
            raise DataError(
                f"{where}: column {name!r} is {kind}, expected text or a list of texts",
                hint=f"name others with caption_columns; found columns: {', '.join(schema.names)}",
            )


def raw_from_values(
    row: int, where: str, values: Mapping[str, Any], image: str, captions: Sequence[str], key: str | None
) -> RawPair:
    """Return a row of a typed table, with its picture bytes where the row holds them."""
    value = values[image]
    path = value.get("path") if isinstance(value, dict) else value if isinstance(value, str) else None
    encoded = value.get("bytes") if isinstance(value, dict) else value if isinstance(value, bytes) else None
    path = None if encoded else path  # beside bytes it is only a label, often the same in many rows
    raw = RawPair(row, where, path or None, encoded=encoded, picture=path or "")
    if key is not None:
        raw.key = None if values[key] is None or values[key] == "" else str(values[key])
        if raw.key is None:
            raw.problem = f"{key} is empty"
    try:
        raw.texts = [text for column in captions for text in caption_texts(column, values[column])]
    except DataError as error:
        raw.problem = error.message
    if encoded is None and not path:
        raw.problem = f"{image} is empty"
    return raw


def picture_bytes(value: Any, folder: Path) -> bytes:
    """Return the bytes of a picture cell: bytes, a ``{bytes, path}`` struct, or a path below ``folder``.

    Raises:
        DataError: if the cell is empty or its file cannot be read.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value:
        return read_file(joined(folder, value))
    raise DataError(f"no picture: found {type(value).__name__}, expected bytes or a path")


class HuggingFaceReader(Reader):
    """A ``datasets.Dataset``; its picture column is an Image feature, bytes or paths. Pictures are decoded by huaben."""

    def __init__(self, data: Any, options: ReaderOptions, name: str = "") -> None:
        datasets = require("datasets", extra=EXTRA)
        data = _one_split(data, options.split, name)
        if not isinstance(data, datasets.Dataset):
            raise DataError(
                f"found a {type(data).__name__}, expected a datasets.Dataset, which can be read in any order",
                hint="load it without streaming",
            )
        self.name = name or str(data.info.dataset_name or data.builder_name or "dataset")
        for column, feature in data.features.items():
            if isinstance(feature, datasets.Image):
                data = data.cast_column(column, datasets.Image(decode=False))
        schema = data.features.arrow_schema
        likely = [item.name for item in schema if _holds_bytes(item.type)]
        chosen = choose_columns(schema.names, options, self.name, likely_images=likely)
        self._image, self._captions, self._key = chosen
        _check_types(schema, self._image, self._captions, self.name)
        self.columns = columns_report(self._image, self._captions, self._key, "path or content")
        names = dict.fromkeys([self._image, *self._captions, *([self._key] if self._key else [])])
        self._data = data.with_format(None).select_columns(list(names))
        self._pictures = self._data.select_columns([self._image])

    def scan(self) -> Iterator[RawPair]:
        for row, values in enumerate(self._data):
            yield raw_from_values(row, f"row {row}", values, self._image, self._captions, self._key)

    def encoded(self, row: int) -> bytes:
        return picture_bytes(self._pictures[row][self._image], Path())


def _one_split(data: Any, split: str | None, name: str) -> Any:
    """Return the split asked for, or the only one there is."""
    if not isinstance(data, dict):
        if split is not None and str(getattr(data, "split", None)) != split:
            raise DataError(f"{name or 'the dataset'} is one split ({getattr(data, 'split', None)}), not {split!r}")
        return data
    if split is None and len(data) == 1:
        return next(iter(data.values()))
    if split not in data:
        asked = "several splits" if split is None else f"no split {split!r}"
        raise DataError(f"{name or 'the dataset'} has {asked}; found: {', '.join(data)}", hint="name one with split")
    return data[split]
