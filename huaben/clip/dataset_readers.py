"""Where captioned pictures are kept: folders, CSV, Parquet, webdataset tars, Hugging Face datasets.

A reader knows files, columns and bytes; it decodes no picture and judges no caption. :mod:`huaben.clip.dataset` turns
what it yields into checked pairs. ``scan`` passes over everything once, in order; ``encoded`` fetches one picture again
by the row number ``scan`` gave it.

A row's key names it for good: a key column, the path of the picture, or shard and key of a tar member. Where the data
has none of these the content is the key, so that shuffled or thinned data keeps its keys. A row number is never a key.
"""

from __future__ import annotations

import bisect
import csv
import itertools
import json
import re
import threading
from abc import ABC, abstractmethod
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..optional import require

EXTRA = "data"  # pyarrow and datasets
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
METADATA_NAMES = ("metadata.csv", "metadata.jsonl")

# Column names by which data is understood without being told, best first; case does not matter.
IMAGE_NAMES = (
    "image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "image_path", "img_path",
    "filepath", "file_path", "image_file", "file_name", "filename", "file", "path",
)  # fmt: skip
CAPTION_NAMES = (
    ("caption", "captions"), ("text", "texts", "txt"), ("title", "titles"), ("sentence", "sentences"),
    ("description", "descriptions"), ("alt", "alt_text"), ("comment", "comments"), ("prompt",), ("name", "names"),
    ("en", "zh"),
)  # fmt: skip
KEY_NAMES = ("key", "__key__", "id", "uid", "image_id", "sample_id", "codepoints")
_LANGUAGE_SUFFIX = re.compile(r"[._-](en|zh|cn|english|chinese)([_-](us|gb|cn|tw|hans|hant))?$")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderOptions:
    """What the caller says about the data; None leaves it to be found out.

    Attributes:
        image_column: column, or extension inside a tar, of the picture.
        caption_columns: columns of captions, or extensions and JSON fields inside a tar.
        key_column: column of a row's name.
        split: part of a Hugging Face dataset, sub-folder of a folder, start of the file names in a Parquet folder.
        memory_mb: encoded pictures of Parquet files kept in memory, in MiB.
    """

    image_column: str | None = None
    caption_columns: tuple[str, ...] | None = None
    key_column: str | None = None
    split: str | None = None
    memory_mb: int = 1024


@dataclass(slots=True)
class RawPair:
    """One row as it stands in the data.

    Attributes:
        row: number by which :meth:`Reader.encoded` finds the picture again.
        where: for people: file and line, row or member.
        key: name of the row; None names it by its content.
        texts: (column, text) of every caption, unjudged.
        encoded: the picture file's bytes where the pass has them anyway.
        problem: why the row cannot be used; empty if nothing is known against it.
        picture: what the picture is read from, where two rows may share one; empty otherwise.
    """

    row: int
    where: str
    key: str | None
    texts: list[tuple[str, str]] = field(default_factory=list)
    encoded: bytes | None = None
    problem: str = ""
    picture: str = ""


class TextColumn:
    """Many texts in one block of memory, appended once and read by number; a tenth of the size of a list of them."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends = array("q", [0])

    def append(self, text: str) -> None:
        self._data += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._data))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return self._data[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogatepass")


class Reader(ABC):
    """Captioned pictures in one kind of file.

    Attributes:
        name: of the data, for reports.
        columns: which column was taken for what, for reports.
        notes: what the user should know about this data.
    """

    name: str
    columns: dict[str, str]
    notes: tuple[str, ...] = ()

    @abstractmethod
    def scan(self) -> Iterator[RawPair]:
        """Yield every row in the order of the data; rows that cannot be used carry a ``problem``."""

    @abstractmethod
    def encoded(self, row: int) -> bytes:
        """Return the bytes of a row's picture file; safe to call from several threads and after a fork.

        Raises:
            DataError: if it cannot be read.
        """


# --- columns --------------------------------------------------------------------------------------------------------


def choose_columns(
    found: Sequence[str], options: ReaderOptions, where: str, *, likely_images: Sequence[str] = ()
) -> tuple[str, tuple[str, ...], str | None]:
    """Return the columns of the picture, the captions and the key (None where there is none).

    Args:
        found: names of the columns.
        options: what the caller asked for.
        where: name of the data, for errors.
        likely_images: columns whose type says that they hold pictures.

    Raises:
        DataError: naming the columns found, if one that was asked for is absent or none can be told.
    """
    listed = f"found columns: {', '.join(found) or 'none'}"
    for asked in (options.image_column, options.key_column, *(options.caption_columns or ())):
        if asked is not None and asked not in found:
            raise DataError(f"{where} has no column {asked!r}; {listed}", hint="name one of the columns found")
    if options.caption_columns is not None and not options.caption_columns:
        raise DataError("caption_columns is empty, expected one name or more", hint=listed)
    lowered = {name.lower(): name for name in reversed(found)}
    image = options.image_column or next((lowered[name] for name in IMAGE_NAMES if name in lowered), None)
    if image is None and len(likely_images) == 1:
        image = likely_images[0]
    if image is None:
        raise DataError(f"{where}: no column looks like pictures; {listed}", hint="name it with image_column")
    captions = options.caption_columns or infer_captions([name for name in found if name != image])
    if not captions:
        raise DataError(f"{where}: no column looks like captions; {listed}", hint="name them with caption_columns")
    key = options.key_column
    if key is None:
        key = next((lowered[name] for name in KEY_NAMES if name in lowered), None)
    return image, captions, key


def infer_captions(found: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of the best known caption name, in every language it comes in (``name_en``, ``name_zh``)."""
    for names in CAPTION_NAMES:
        captions = tuple(name for name in found if _LANGUAGE_SUFFIX.sub("", name.lower()) in names)
        if captions:
            return captions
    return ()


def caption_texts(column: str, value: Any) -> list[tuple[str, str]]:
    """Return the captions a cell holds: a text, a list of texts, or nothing.

    Raises:
        DataError: for a cell of another kind.
    """
    if value is None:
        return []
    if isinstance(value, str):
        return [(column, value)]
    if isinstance(value, (list, tuple)) and all(item is None or isinstance(item, str) for item in value):
        return [(column, item) for item in value if item is not None]
    raise DataError(
        f"column {column!r} holds a {type(value).__name__}, expected text or a list of texts",
        hint="name other columns with caption_columns",
    )


def read_file(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        DataError: if it cannot be read; a web address is named as such, and nothing is fetched.
    """
    if re.match(r"(https?|s3|gs):/", str(path)):
        raise DataError(f"{path} is a web address", hint="download the pictures first")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _columns_report(image: str, captions: Sequence[str], key: str | None, otherwise: str) -> dict[str, str]:
    return {"image": image, "captions": ", ".join(captions), "key": key or otherwise}


# --- paths: folders and CSV -----------------------------------------------------------------------------------------


class _PathReader(Reader):
    """Pictures that are files of their own."""

    def __init__(self) -> None:
        self._paths: list[str] = []

    def encoded(self, row: int) -> bytes:
        return read_file(Path(self._paths[row]))

    def _row(self, path: Path) -> int:
        self._paths.append(str(path))
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
        self._paths = []
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


def decode_text(data: bytes, name: str) -> str:
    """Return UTF-8 text.

    Raises:
        DataError: if it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 text (byte {error.start})", hint="save it as UTF-8") from error


def json_captions(text: str, name: str, fields: Sequence[str] | None) -> list[tuple[str, str]]:
    """Return the captions of a JSON file: a text, a list of texts, or an object with caption fields.

    Raises:
        DataError: if it is not JSON, or no field can be taken for captions.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        return caption_texts("json", value)
    chosen = tuple(fields) if fields is not None else infer_captions(list(value))
    present = [field for field in chosen if field in value]
    if not present:
        raise DataError(f"{name} has no caption field; found fields: {', '.join(map(str, value)) or 'none'}")
    return [text for field in present for text in caption_texts(field, value[field])]


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
        self._image, self._captions, self._key = choose_columns(found, options, where)
        self.columns = _columns_report(self._image, self._captions, self._key, "path")

    def scan(self) -> Iterator[RawPair]:
        self._paths = []
        named: set[Path] = set()
        for table in self._tables:
            for line, values, problem in _lines(table):
                where = f"{table.name} line {line}"
                written = values.get(self._image)
                if problem or not isinstance(written, str) or not written:
                    yield RawPair(-1, where, None, problem=problem or f"{self._image} is empty")
                    continue
                path = _joined(table.parent, written)
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


def _joined(folder: Path, written: str) -> Path:
    """Return a path as written in a table: web addresses stay what they are."""
    return Path(written) if "://" in written else folder / written


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
        except csv.Error as error:
            raise DataError(f"{path} is not a readable table: {error}") from error


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
    for values in rows:
        if not values:
            continue
        problem = "" if len(values) == len(header) else f"{len(values)} fields, the header has {len(header)}"
        yield rows.line_num, dict(zip(header, values, strict=False)), problem


# --- Parquet --------------------------------------------------------------------------------------------------------


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
        self.columns = _columns_report(self._image, self._captions, self._key, "path or content")
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
    raw = RawPair(row, where, str(path) if path else None, encoded=encoded, picture="" if encoded else str(path or ""))
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
        return read_file(_joined(folder, value))
    raise DataError(f"no picture: found {type(value).__name__}, expected bytes or a path")


# --- choosing a reader ----------------------------------------------------------------------------------------------


def open_reader(source: Any, options: ReaderOptions) -> Reader:
    """Return the reader of a source (see :func:`huaben.clip.dataset.open_pairs`).

    Raises:
        DataError: if there is no such file, or it is of no known kind.
    """
    if not isinstance(source, (str, Path)):
        raise DataError(f"found a {type(source).__name__}, expected a path, a pattern or a datasets.Dataset")
    path = Path(source)
    if not path.exists():
        raise DataError(f"no file or folder at {path}", hint="check the path")
    if path.suffix == ".parquet":
        return ParquetReader([path], options)
    if path.suffix.lower() in (".csv", ".tsv"):
        return TableReader([path], options)
    return FolderReader(path, options)
