"""Text as UTF-8 bytes: 256 tokens and two special ones, nothing to train, and every text comes back exactly.

It is saved as a ``tokenizer.json`` that the `tokenizers` and `transformers` libraries read, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from ..errors import DataError
from ..pretrained import write_atomic
from .tokenizer import TOKENIZER_NAME

PAD_TOKEN, EOS_TOKEN = "<pad>", "<eos>"
NUM_BYTES = 256


class TextTokenizer(Protocol):
    """What a language model needs of a tokenizer; ids of a text never contain special ones.

    Attributes:
        vocab_size: number of ids, special ones included.
        pad_id: fills the shorter rows of a batch.
        eos_id: stands behind every document.
        fingerprint: differs between tokenizers that give different ids.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def pad_id(self) -> int: ...

    @property
    def eos_id(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the ids (L,) of a text; raises DataError for something that is not valid Unicode text."""
        ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the exact bytes behind ``ids``, special ones left out."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text behind ``ids``; bytes that are no UTF-8 become U+FFFD."""
        ...

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` into ``folder``."""
        ...


class ByteTokenizer:
    """A byte is its own id; ``<pad>`` is 256 and ``<eos>`` 257."""

    pad_id = NUM_BYTES
    eos_id = NUM_BYTES + 1
    vocab_size = NUM_BYTES + 2

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the ids (L,) of a text.

        Raises:
            DataError: if it is not text, or holds half a surrogate pair.
        """
        return np.frombuffer(utf8(text), dtype=np.uint8).astype(np.int64)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the exact bytes behind ``ids``, special ones left out.

        Raises:
            DataError: for an id outside of the vocabulary.
        """
        numbers = [int(index) for index in ids]
        check_ids(numbers, self.vocab_size)
        return bytes(index for index in numbers if index < NUM_BYTES)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text behind ``ids``; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def to_json(self) -> str:
        """Return the text of ``tokenizer.json``."""
        vocab = {byte_symbol(value): value for value in range(NUM_BYTES)}
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([AddedToken(token, special=True) for token in (PAD_TOKEN, EOS_TOKEN)])
        return str(backend.to_str(pretty=True)) + "\n"

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.to_json())

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` into ``folder``."""
        write_atomic(Path(folder) / TOKENIZER_NAME, self.to_json().encode())


def utf8(text: str) -> bytes:
    """Return the bytes of a text; raises DataError for anything but valid Unicode text."""
    if not isinstance(text, str):
        raise DataError(f"found a {type(text).__name__}, expected text", hint="pass strings")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"text that is not valid Unicode ({error})", hint="decode the text as UTF-8") from error


def check_ids(ids: list[int], vocab_size: int) -> None:
    """Raise DataError for the first id outside of a vocabulary."""
    for index in ids:
        if not 0 <= index < vocab_size:
            raise DataError(
                f"id {index} is not in the vocabulary of {vocab_size}", hint="use the tokenizer saved with the model"
            )


def byte_symbol(value: int) -> str:
    """Return the visible character that stands for a byte in a byte-level vocabulary.

    Printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100 and on, in order.

    Source: Radford et al. 2019 (GPT-2), the convention of every byte-level ``tokenizer.json``.
    """
    return chr(_SYMBOLS[value])


def _symbols() -> tuple[int, ...]:
    hidden = [value for value in range(NUM_BYTES) if not (33 <= value <= 126 or 161 <= value <= 172 or value >= 174)]
    return tuple(NUM_BYTES + hidden.index(value) if value in hidden else value for value in range(NUM_BYTES))


_SYMBOLS = _symbols()


def fingerprint(text: str) -> str:
    """Return 16 hexadecimal digits that differ between different texts."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
