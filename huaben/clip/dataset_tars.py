"""Captioned pictures in webdataset shards: uncompressed tars whose members share a key."""

from __future__ import annotations

import json
import os
import re
import tarfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from .dataset_rows import IMAGE_SUFFIXES, RawPair, Reader, ReaderOptions, caption_texts, decode_text, json_captions

_MEMBER = re.compile(r"((?:.*/)?[^./][^.]*)\.([^/]+)", re.DOTALL)
_TEXT_MEMBERS = ("txt", "text", "caption", "captions")


class TarReader(Reader):
    """webdataset shards: members ``KEY.jpg``, ``KEY.txt`` (a caption a line), ``KEY.en.txt``, ``KEY.json``.

    One pass over the headers notes where every picture lies, so that any of them can be read alone; shards stay as they
    are. A pair's key is SHARD/KEY, whatever the order of shards and members. ``caption_columns`` are extensions or
    fields of the JSON member; without them the text members are taken, or else the JSON's caption fields.
    """

    def __init__(self, shards: Sequence[Path], options: ReaderOptions) -> None:
        self._shards, self._options = tuple(shards), options
        self.name = shards[0].name if len(shards) == 1 else f"{shards[0].name} and {len(shards) - 1} more"
        names = [shard.stem for shard in shards]
        if len(set(names)) < len(names):  # tell shards of one name apart by their folders
            names = [shard.resolve().with_suffix("").as_posix() for shard in shards]
            common = len(os.path.commonpath([str(Path(name).parent) for name in names]))
            names = [name[common:].lstrip("/") for name in names]
        self._names = names
        captions = ", ".join(options.caption_columns) if options.caption_columns else "text members, or JSON fields"
        image = options.image_column or "the picture member"
        self.columns = {"image": image, "captions": captions, "key": options.key_column or "shard/key"}
        self._reset()

    def _reset(self) -> None:
        self._places = (array("l"), array("q"), array("q"))  # shard, offset, size of the picture of every row

    def scan(self) -> Iterator[RawPair]:
        self._reset()
        for number, shard in enumerate(self._shards):
            samples: dict[str, dict[str, tuple[int, int]]] = {}
            problems: list[RawPair] = []
            for name, offset, size, problem in _members(shard):
                where = f"{self._names[number]}/{name}" if name else self._names[number]
                match = _MEMBER.fullmatch(name)
                if not problem and match is None:
                    problem = "no picture or caption: its name has no extension"
                if problem:
                    problems.append(RawPair(-1, where, None, problem=problem))
                    continue
                assert match is not None
                members = samples.setdefault(match[1], {})
                if match[2].lower() in members:
                    problems.append(RawPair(-1, where, None, problem="a second member of this name; the first is used"))
                    continue
                members[match[2].lower()] = (offset, size)
            with shard.open("rb") as file:
                for key, members in samples.items():
                    yield self._sample(number, key, members, file)
            yield from problems

    def encoded(self, row: int) -> bytes:
        number, offset, size = (column[row] for column in self._places)
        shard = self._shards[number]
        try:
            with shard.open("rb") as file:
                return _read_span(file, offset, size, shard.name)
        except OSError as error:
            raise DataError(f"cannot read {shard}: {error.strerror}") from error

    def _sample(self, number: int, key: str, members: dict[str, tuple[int, int]], file: Any) -> RawPair:
        where = f"{self._names[number]}/{key}"
        raw = RawPair(-1, where, where)
        try:
            raw.texts, found = self._texts(key, members, file)
            if self._options.key_column is not None:
                raw.key = found or None
            offset, size = members[self._picture(members)]
        except DataError as error:
            raw.problem = error.message
            return raw
        for column, value in zip(self._places, (number, offset, size), strict=True):
            column.append(value)
        raw.row, raw.picture = len(self._places[0]) - 1, where
        return raw

    def _picture(self, members: Mapping[str, Any]) -> str:
        """Return the extension of a sample's picture."""
        asked, listed = self._options.image_column, f"found members: {', '.join(members)}"
        if asked is not None:
            if asked.lower().lstrip(".") not in members:
                raise DataError(f"no member {asked!r}; {listed}")
            return asked.lower().lstrip(".")
        pictures = [name for name in members if "." + name.rsplit(".", 1)[-1] in IMAGE_SUFFIXES]
        if len(pictures) != 1:
            what = "no picture" if not pictures else "several pictures: name one with image_column"
            raise DataError(f"{what}; {listed}")
        return pictures[0]

    def _texts(self, key: str, members: dict[str, tuple[int, int]], file: Any) -> tuple[list[tuple[str, str]], str]:
        """Return a sample's captions, and the value of the key field if one was asked for."""
        asked = self._options.caption_columns
        listed = f"found members: {', '.join(members)}"
        content = {}

        def text(extension: str) -> str:
            name = f"{key}.{extension}"
            return decode_text(_read_span(file, *members[extension], name), name)

        if self._options.key_column is not None or any(name.lower() not in members for name in asked or ()):
            content = _json_object(text("json"), f"{key}.json") if "json" in members else {}
        name_of_key = self._options.key_column
        if name_of_key is not None and content.get(name_of_key) in (None, ""):
            raise DataError(f"no JSON field {name_of_key!r}; {listed}; fields: {', '.join(content) or 'none'}")
        found = str(content[name_of_key]) if name_of_key is not None else ""
        if asked is None:
            chosen = [name for name in members if name.rsplit(".", 1)[-1] in _TEXT_MEMBERS]
            if not chosen and "json" in members:
                return json_captions(text("json"), f"{key}.json", None), found
            if not chosen:
                raise DataError(f"no caption; {listed}")
            return [(name, line) for name in chosen for line in _caption_lines(text(name))], found
        texts: list[tuple[str, str]] = []
        for name in asked:
            if name.lower() in members:
                texts += [(name, line) for line in _caption_lines(text(name.lower()))]
            elif name in content:
                texts += caption_texts(name, content[name])
        if not texts and not any(name in content or name.lower() in members for name in asked):
            raise DataError(
                f"no caption {' or '.join(map(repr, asked))}; {listed}; fields: {', '.join(content) or 'none'}"
            )
        return texts, found


def _caption_lines(text: str) -> list[str]:
    """Return the captions of a text file: its lines; one empty caption if there is none."""
    return [line for line in text.splitlines() if line.strip()] or [""]


def _json_object(text: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{name} holds a {type(value).__name__}, expected an object")
    return value


def _members(shard: Path) -> Iterator[tuple[str, int, int, str]]:
    """Yield (name, offset, size, problem) of a tar's files; where it ends early, a nameless problem at the end.

    Raises:
        DataError: if it is no tar, or a compressed one, whose members cannot be read alone.
    """
    try:
        archive = tarfile.open(shard, "r:")
    except tarfile.ReadError as error:
        raise DataError(
            f"{shard} is not an uncompressed tar: {error}", hint="decompress it first: gunzip, xz -d or zstd -d"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {shard}: {error.strerror}", hint="check the path") from error
    end = shard.stat().st_size
    with archive:
        while True:
            try:
                member = archive.next()
            except (tarfile.TarError, OSError, ValueError) as error:
                yield "", 0, 0, f"the tar is damaged; what follows is lost: {error}"
                return
            if member is None:
                return
            archive.members = []  # type: ignore[attr-defined]  # or it remembers every header
            name = member.name.rsplit("/", 1)[-1]
            if member.isdir() or name.startswith((".", "__")):
                continue
            whole = member.offset_data + member.size <= end
            problem = "" if whole else "the tar ends inside this member"
            problem = problem if member.isreg() and not member.issparse() else "a link or sparse file"
            yield member.name, member.offset_data, member.size, problem


def _read_span(file: Any, offset: int, size: int, name: str) -> bytes:
    """Return ``size`` bytes from ``offset``.

    Raises:
        DataError: if the file ends before.
    """
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise DataError(f"{name} is cut short: {len(data)} of {size} bytes")
    return data
