"""Text files to one long stream of token ids on disk, and the stream to batches.

A corpus is a folder, read through a memory map, so that its size does not matter::

    tokens.bin       ids of all documents in order, each followed by <eos>; uint16, or uint32 for large vocabularies
    documents.bin    int64 offset of each document's first token, and the length of the whole
    corpus.json      what it was made from
    tokenizer.json   what it was made with
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import CheckpointError, ConfigError, DataError
from ..rng import check_seed, numpy_stream
from .bytes import TextTokenizer

TOKENS_NAME, DOCUMENTS_NAME, CORPUS_NAME = "tokens.bin", "documents.bin", "corpus.json"
CORPUS_FORMAT = 1
SEPARATOR = "\0"
BLOCK = 1 << 20
JSON_FIELD = "text"


# -- files to documents ------------------------------------------------------------------------------------------


def read_documents(path: str | Path, *, field: str = JSON_FIELD) -> Iterator[str]:
    """Yield the documents of one file, in order; those without a character are left out.

    A name ending in ``.jsonl`` has one JSON object a line; every other file is UTF-8 text, whose documents are
    separated by a NUL character (with the line ends on both sides of it), or one document if there is none. Either may
    be compressed: ``.xz`` or ``.gz``.

    Args:
        path: the file.
        field: of each JSON object, the text.

    Raises:
        DataError: if the file is absent, damaged, empty, not UTF-8, or not JSON lines with that field.
    """
    path = Path(path)
    plain = path.name.removesuffix(".xz").removesuffix(".gz")
    found = False
    texts = _json_texts(path, field) if plain.endswith(".jsonl") else _plain_texts(path)
    for text in texts:
        if text:
            found = True
            yield text
    if not found:
        raise DataError(f"{path} holds no text", hint="give a file with at least one document")


def _blocks(path: Path) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file."""
    try:
        with _open(path) as file:
            while block := file.read(BLOCK):
                yield block
    except FileNotFoundError as error:
        raise DataError(f"no file {path}", hint="check the path") from error
    except (lzma.LZMAError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path} is not a complete {path.suffix} file ({error})", hint="copy or download it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", hint="check the path") from error


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".xz":
        return cast(BinaryIO, lzma.open(path, "rb"))
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")


def _characters(path: Path) -> Iterator[str]:
    """Yield the text of a file in blocks; line ends stay as they are."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    for block in _blocks(path):
        waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, done - waiting + error.start, error.object[error.start]) from error
        done += len(block)
        if text:
            yield text
    rest = decoder.getstate()[0]
    if rest:
        raise _not_utf8(path, done - len(rest), rest[0])


def _not_utf8(path: Path, offset: int, value: int) -> DataError:
    return DataError(
        f"{path} is not UTF-8: byte 0x{value:02x} at offset {offset}", hint="convert the file to UTF-8, e.g. with iconv"
    )


def _plain_texts(path: Path) -> Iterator[str]:
    parts: list[str] = []
    behind = False  # a separator came before
    for text in _characters(path):
        *whole, rest = text.split(SEPARATOR)
        for piece in whole:
            parts.append(piece)
            yield _trimmed("".join(parts), behind, True)
            parts, behind = [], True
        parts.append(rest)
    yield _trimmed("".join(parts), behind, False)


def _trimmed(text: str, before: bool, after: bool) -> str:
    text = text.removeprefix("\n") if before else text
    return text.removesuffix("\n") if after else text


def _json_texts(path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})", hint="one JSON object a line") from error
        text = record.get(field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            known = ", ".join(sorted(record)) if isinstance(record, dict) else type(record).__name__
            raise DataError(f"{path}, line {number}: no text in field {field!r}", hint=f"found: {known or 'nothing'}")
        yield text


def _lines(path: Path) -> Iterator[str]:
    rest = ""
    for text in _characters(path):
        *whole, rest = (rest + text).split("\n")
        yield from whole
    if rest:
        yield rest


# -- documents to a stream ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Corpus:
    """A stream of tokens with the borders of its documents; make one with :func:`build_corpus` or :meth:`open`.

    Attributes:
        tokens: ids (N,), uint16 or uint32.
        starts: int64 (documents + 1,): where each document begins, and N.
        facts: what ``corpus.json`` says.
    """

    tokens: NDArray[Any]
    starts: NDArray[np.int64]
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | Path) -> Corpus:
        """Open a folder.

        Raises:
            CheckpointError: if it is absent, incomplete or of another format.
        """
        folder = Path(folder)
        try:
            facts = json.loads((folder / CORPUS_NAME).read_text(encoding="utf-8"))
            if facts["format"] != CORPUS_FORMAT:
                raise CheckpointError(
                    f"{folder} has corpus format {facts['format']!r}, this huaben reads {CORPUS_FORMAT}",
                    hint="remove the folder and build it again",
                )
            tokens = np.memmap(folder / TOKENS_NAME, dtype=np.dtype(facts["dtype"]).newbyteorder("<"), mode="r")
            starts = np.fromfile(folder / DOCUMENTS_NAME, dtype="<i8").astype(np.int64)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder} is not a complete corpus ({error})", hint="remove the folder and build it again"
            ) from error
        if len(tokens) != facts["tokens"] or len(starts) != facts["documents"] + 1 or starts[-1] != len(tokens):
            raise CheckpointError(
                f"{folder} holds {len(tokens)} tokens, {CORPUS_NAME} says {facts['tokens']}",
                hint="remove the folder and build it again",
            )
        return cls(tokens, starts, facts)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        return len(self.starts) - 1

    @property
    def fingerprint(self) -> str:
        """What decides the ids: the documents and the tokenizer."""
        return str(self.facts.get("fingerprint", ""))

    def documents_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of the document at each position, same shape."""
        return np.searchsorted(self.starts, positions, side="right") - 1

    def slices(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Return ids (B, length) from each of ``starts`` (B,) on."""
        return np.stack([self.tokens[start : start + length] for start in starts]).astype(np.int64)


def build_corpus(
    texts: Iterable[str], tokenizer: TextTokenizer, folder: str | Path, *, made_from: Sequence[Any] = ()
) -> Corpus:
    """Write documents into a corpus folder, replacing what is there; the folder appears when complete.

    Args:
        texts: documents, one at a time in memory.
        tokenizer: its ``<eos>`` is put behind each of them.
        folder: where to write.
        made_from: JSON values for ``corpus.json``: names and hashes of the sources.

    Raises:
        DataError: if there is no text.
        CheckpointError: if the folder cannot be written.
    """
    folder = Path(folder)
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    digest = hashlib.sha256(tokenizer.fingerprint.encode())
    starts = [0]
    fresh: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        fresh.chmod(0o755)
        with (fresh / TOKENS_NAME).open("wb") as file:
            for text in texts:
                ids = np.append(tokenizer.encode(text), tokenizer.eos_id).astype(dtype)
                data = ids.tobytes()
                digest.update(data)
                file.write(data)
                starts.append(starts[-1] + len(ids))
        if len(starts) == 1:
            raise DataError("no documents", hint="give at least one file with text")
        (fresh / DOCUMENTS_NAME).write_bytes(np.asarray(starts, dtype="<i8").tobytes())
        facts = {
            "format": CORPUS_FORMAT,
            "dtype": dtype.name,
            "tokens": starts[-1],
            "documents": len(starts) - 1,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer.fingerprint,
            "fingerprint": digest.hexdigest()[:16],
            "made_from": list(made_from),
        }
        tokenizer.save(fresh)
        (fresh / CORPUS_NAME).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        fresh.rename(folder)
        fresh = None
    except OSError as error:
        raise CheckpointError(
            f"cannot write {folder}: {error.strerror or error}", hint="free some space or choose another folder"
        ) from error
    finally:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)
    return Corpus.open(folder)


def corpus_from_files(
    paths: Sequence[str | Path], tokenizer: TextTokenizer, folder: str | Path, *, field: str = JSON_FIELD
) -> Corpus:
    """Return the corpus of some files: the one in ``folder`` if it was made from them with this tokenizer, else a new one.

    Raises:
        DataError: if a file cannot be used.
    """
    made_from = [{"name": Path(path).name, "sha256": file_hash(path), "field": field} for path in paths]
    if (Path(folder) / CORPUS_NAME).is_file():
        try:
            corpus = Corpus.open(folder)
        except CheckpointError:
            corpus = None
        if (
            corpus is not None
            and corpus.facts.get("made_from") == made_from
            and corpus.facts.get("tokenizer") == tokenizer.fingerprint
        ):
            return corpus
    texts = (text for path in paths for text in read_documents(path, field=field))
    return build_corpus(texts, tokenizer, folder, made_from=made_from)


def file_hash(path: str | Path) -> str:
    """Return the sha256 of a file as it lies on disk; raises DataError if it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", hint="check the path") from error


# -- the stream to batches ---------------------------------------------------------------------------------------


class PackedBatches:
    """Batches of windows cut from the stream without gaps; a pure function of seed and step.

    An epoch shows every window once, in an order of its own; where the first one starts moves from epoch to epoch, so
    the borders between windows do, too.

    Args:
        corpus: the stream.
        length: tokens a model sees, L.
        batch_size: windows a step, B.
        seed: of the order.

    Raises:
        ConfigError: for an impossible length or batch size.
        DataError: if the corpus is shorter than one window and its next token.
    """

    def __init__(self, corpus: Corpus, *, length: int, batch_size: int, seed: int = 0) -> None:
        if length < 1 or batch_size < 1:
            raise ConfigError(f"length={length}, batch_size={batch_size}: nothing to train on", hint="use 128 and 16")
        if len(corpus) < length + 1:
            raise DataError(
                f"the corpus has {len(corpus)} tokens, one window of length {length} needs {length + 1}",
                hint="add text, or use a shorter length",
            )
        self.corpus, self.length, self.batch_size, self.seed = corpus, length, batch_size, check_seed(seed)
        self.windows_per_epoch = max(1, (len(corpus) - 1) // length - 1)
        self._slack = len(corpus) - 1 - self.windows_per_epoch * length
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def starts(self, step: int) -> NDArray[np.int64]:
        """Return the position (B,) of each window's first token."""
        first = step * self.batch_size
        epochs, indices = np.divmod(np.arange(first, first + self.batch_size), self.windows_per_epoch)
        return np.asarray([self._epoch(int(e))[int(i)] for e, i in zip(epochs, indices, strict=True)], np.int64)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return ids and document numbers, both int64 (B, L + 1): inputs and, moved by one, their targets.

        Documents are numbered from 0 in every window.
        """
        starts = self.starts(step)
        ids = self.corpus.slices(starts, self.length + 1)
        documents = self.corpus.documents_at(starts[:, None] + np.arange(self.length + 1))
        return torch.from_numpy(ids), torch.from_numpy(documents - documents[:, :1])

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return where the windows of an epoch start, in their order; the last one asked for is kept."""
        kept, order = self._order
        if kept != epoch:
            rng = numpy_stream(self.seed, "packed batches", epoch)
            offset = int(rng.integers(0, self._slack + 1))
            order = offset + self.length * rng.permutation(self.windows_per_epoch)
            self._order = (epoch, order)
        return order
