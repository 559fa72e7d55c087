"""What every reader of captioned pictures shares: the row, the reader's contract, and telling columns by their names.

A reader knows files, columns and bytes; it decodes no picture and judges no caption. :mod:`huaben.clip.dataset` turns
what it yields into checked pairs. ``scan`` passes over everything once, in order; ``encoded`` fetches one picture again
by the row number ``scan`` gave it.

A row's key names it for good: a key column, the path of the picture, or shard and key of a tar member. Where the data
has none of these the content is the key, so that shuffled or thinned data keeps its keys. A row number is never a key.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError

EXTRA = "clip"  # pyarrow and datasets
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")

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


def columns_report(image: str, captions: Sequence[str], key: str | None, otherwise: str) -> dict[str, str]:
    return {"image": image, "captions": ", ".join(captions), "key": key or otherwise}


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


def joined(folder: Path, written: str) -> Path:
    """Return a path as written in a table: web addresses stay what they are."""
    return Path(written) if "://" in written else folder / written
