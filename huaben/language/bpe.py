"""Byte-pair tokens for language models: trained on a text, any text comes back exactly.

Unlike :class:`~huaben.language.tokenizer.Tokenizer`, which folds prompts, nothing is normalised: pieces are merged from
UTF-8 bytes (GPT-2's way), so spaces, line ends and unknown scripts survive. Both are saved as ``tokenizer.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from ..errors import CheckpointError, ConfigError, DataError
from ..pretrained import write_atomic
from .bytes import EOS_TOKEN, NUM_BYTES, PAD_TOKEN, ByteTokenizer, TextTokenizer, byte_symbol, check_ids, utf8
from .bytes import fingerprint as text_fingerprint
from .corpus import JSON_FIELD, file_hash, read_documents
from .tokenizer import TOKENIZER_NAME

SPECIALS = (PAD_TOKEN, EOS_TOKEN)
MIN_VOCAB = NUM_BYTES + len(SPECIALS) + 1
PIECE = 1 << 16
"""Characters handed to the trainer at once: a document is cut at line ends into parts of about this size."""


class BytePairTokenizer:
    """Text to ids and back; build one with :meth:`train` or :func:`load_tokenizer`. ``<pad>`` is 0, ``<eos>`` 1."""

    pad_id, eos_id = range(len(SPECIALS))

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # "<eos>" in a text is text, never the end of it
        self._backend = backend

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int = 8192) -> BytePairTokenizer:
        """Learn merges; the same texts in the same order give the same tokenizer.

        Args:
            texts: documents.
            vocab_size: upper bound, 256 bytes and two special tokens included.

        Raises:
            ConfigError: if ``vocab_size`` leaves no room for a merge.
            DataError: if there is no text.
        """
        if vocab_size < MIN_VOCAB:
            raise ConfigError(f"vocab_size={vocab_size} is below {MIN_VOCAB}", hint="use 8192, or the byte tokenizer")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIALS),
            initial_alphabet=[byte_symbol(value) for value in range(NUM_BYTES)],
            show_progress=False,
        )
        seen = 0

        def pieces() -> Iterable[str]:
            nonlocal seen
            for text in texts:
                utf8(text)
                seen += len(text)
                yield from _pieces(text)

        backend.train_from_iterator(pieces(), trainer)
        if seen == 0:
            raise DataError("no text to learn a tokenizer from", hint="give at least one document that is not empty")
        return cls(backend)

    @property
    def vocab_size(self) -> int:
        return int(self._backend.get_vocab_size())

    @cached_property
    def fingerprint(self) -> str:
        return text_fingerprint(self.to_json())

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the ids (L,) of a text.

        Raises:
            DataError: if it is not text, or holds half a surrogate pair.
        """
        utf8(text)
        return np.asarray(self._backend.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the exact bytes behind ``ids``, special ones left out.

        Raises:
            DataError: for an id outside of the vocabulary.
        """
        numbers = [int(index) for index in ids]
        check_ids(numbers, self.vocab_size)
        symbols = "".join(str(self._backend.id_to_token(index)) for index in numbers if index >= len(SPECIALS))
        return bytes(self._values[symbol] for symbol in symbols)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text behind ``ids``; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def to_json(self) -> str:
        """Return the text of ``tokenizer.json``."""
        return str(self._backend.to_str(pretty=True)) + "\n"

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` into ``folder``."""
        write_atomic(Path(folder) / TOKENIZER_NAME, self.to_json().encode())

    @cached_property
    def _values(self) -> dict[str, int]:
        return {byte_symbol(value): value for value in range(NUM_BYTES)}


def tokenizer_from_files(
    paths: Sequence[str | Path], folder: str | Path, *, vocab_size: int = 8192, field: str = JSON_FIELD
) -> BytePairTokenizer:
    """Return the tokenizer learned from some files; ``folder`` keeps it, so that the same files are learned from once.

    Raises:
        ConfigError: if ``vocab_size`` is too small.
        DataError: if a file cannot be used.
    """
    key = text_fingerprint(json.dumps([vocab_size, field, *(file_hash(path) for path in paths)]))
    kept = Path(folder) / f"bpe-{key}"
    if (kept / TOKENIZER_NAME).is_file():
        found = load_tokenizer(kept)
        if isinstance(found, BytePairTokenizer):
            return found
    texts = (text for path in paths for text in read_documents(path, field=field))
    tokenizer = BytePairTokenizer.train(texts, vocab_size=vocab_size)
    tokenizer.save(kept)
    return tokenizer


def load_tokenizer(folder: str | Path) -> TextTokenizer:
    """Load the ``tokenizer.json`` of a language model: bytes or byte pairs.

    Raises:
        CheckpointError: if the file is absent, broken, or of another kind of model.
    """
    path = Path(folder) / TOKENIZER_NAME
    if not path.is_file():
        raise CheckpointError(f"no {TOKENIZER_NAME} in {folder}", hint="point to a folder saved with its tokenizer")
    try:
        text = path.read_text(encoding="utf-8")
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises plain Exception for whatever its parser dislikes
        raise CheckpointError(
            f"{path} is not a complete tokenizer ({error})", hint="copy or download the file again"
        ) from error
    byte_ids = [backend.token_to_id(byte_symbol(value)) for value in range(NUM_BYTES)]
    specials = [backend.token_to_id(token) for token in SPECIALS]
    if byte_ids == list(range(NUM_BYTES)) and backend.get_vocab_size() == ByteTokenizer.vocab_size:
        return ByteTokenizer()
    whole = backend.normalizer is None and None not in byte_ids and isinstance(backend.decoder, decoders.ByteLevel)
    if not whole or specials != list(range(len(SPECIALS))):
        raise CheckpointError(
            f"{path} is no byte-level tokenizer with {' and '.join(SPECIALS)} at 0 and 1",
            hint="this file belongs to another kind of model",
        )
    return BytePairTokenizer(backend)


def _pieces(text: str) -> Iterable[str]:
    """Yield a text in parts that end at line ends where they can."""
    start = 0
    while start < len(text):
        end = min(start + PIECE, len(text))
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end
