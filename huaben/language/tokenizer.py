"""A bilingual byte-pair tokenizer, saved as ``tokenizer.json``.

Text is normalised (NFKC, lower case, outer whitespace dropped), then cut into English words with the space before
them, single digits and punctuation marks, and Chinese pieces. A Chinese piece is a word of the ``words`` given at
training or a single character, and byte-pair merges never cross a piece: a token means one thing, and a combination
never seen in training still falls apart into known tokens. Whatever the vocabulary lacks is written in bytes, so every
text can be encoded and decoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from ..errors import CheckpointError, ConfigError, DataError
from ..pretrained import write_atomic

TOKENIZER_NAME = "tokenizer.json"
SPECIALS = ("<pad>", "<eos>", "<unk>", "<bos>", "<mask>")
PAD, EOS, UNK, BOS, MASK = range(len(SPECIALS))

_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_HAN = r"\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{323AF}"
_REST = rf" ?[^\s\d\p{{P}}\p{{S}}{_HAN}]+| ?\d| ?[\p{{P}}\p{{S}}]|\s"
_STARTS_WORD = re.compile(r"[0-9a-zA-Z]")


@dataclass(frozen=True, slots=True)
class Tokens:
    """A padded batch; unpacks as ``ids, mask``.

    Attributes:
        ids: int64 (B, L); every row ends in ``<eos>`` and is padded with ``<pad>``.
        mask: bool (B, L), True where there is a token.
        truncated: per text, whether its end did not fit.
    """

    ids: Tensor
    mask: Tensor
    truncated: tuple[bool, ...]

    def __iter__(self) -> Iterator[Tensor]:
        yield self.ids
        yield self.mask


class Tokenizer:
    """Text to ids and back; build one with :meth:`train` or :meth:`from_pretrained`."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # "<eos>" typed by a user is text, never the end of it
        self._backend = backend
        self._first_byte = backend.token_to_id(_BYTES[0])

    @classmethod
    def train(
        cls, texts: Iterable[str], *, vocab_size: int = 1500, words: Iterable[str] = (), fold: bool = True
    ) -> Tokenizer:
        """Learn a vocabulary; the same texts in the same order give the same tokenizer.

        Args:
            texts: sentences in both languages.
            vocab_size: upper bound of the vocabulary, special tokens and 256 bytes included.
            words: Chinese words inside which merges are allowed; all other Chinese is one token a character.
            fold: NFKC and lower case; off (NFC only) for text that is written back to people.

        Raises:
            ConfigError: if ``vocab_size`` leaves no room for words.
        """
        if vocab_size <= len(SPECIALS) + len(_BYTES):
            raise ConfigError(
                f"vocab_size={vocab_size}, but special tokens and bytes take {len(SPECIALS) + len(_BYTES)}",
                hint="use 1500",
            )
        backend = tokenizers.Tokenizer(models.BPE(unk_token=SPECIALS[UNK]))
        folding = [normalizers.NFKC(), normalizers.Lowercase(), normalizers.NFKC()]
        backend.normalizer = normalizers.Sequence(folding) if fold else normalizers.NFC()
        backend.pre_tokenizer = _pre_tokenizer(words)
        wrapped = cls(backend)
        normalized = [_with_space(wrapped.normalize(text)) for text in texts]  # training locks the normaliser
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(_BYTES), special_tokens=list(SPECIALS), show_progress=False
        )
        backend.train_from_iterator(normalized, trainer)
        return cls(_with_bytes(backend))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Tokenizer:
        """Load ``tokenizer.json`` from a folder.

        Raises:
            CheckpointError: if the file is absent, broken, or not a tokenizer of this kind.
        """
        path = Path(folder) / TOKENIZER_NAME
        if not path.is_file():
            raise CheckpointError(f"no {TOKENIZER_NAME} in {folder}", hint="point to a folder saved with its tokenizer")
        try:
            backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises plain Exception for whatever its parser dislikes
            raise CheckpointError(
                f"{path} is not a complete tokenizer ({error})", hint="copy or download the file again"
            ) from error
        found = [backend.token_to_id(token) for token in (*SPECIALS, _BYTES[0])]
        if backend.normalizer is None or found[:-1] != list(range(len(SPECIALS))) or found[-1] is None:
            raise CheckpointError(
                f"{path} has other special tokens than {', '.join(SPECIALS)} at 0 to {len(SPECIALS) - 1}",
                hint="this file belongs to another kind of model",
            )
        return cls(backend)

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` into ``folder``."""
        write_atomic(Path(folder) / TOKENIZER_NAME, self.to_json().encode())

    def to_json(self) -> str:
        """Return the text of ``tokenizer.json``."""
        return self._backend.to_str(pretty=True) + "\n"

    @property
    def vocab_size(self) -> int:
        return int(self._backend.get_vocab_size())

    def normalize(self, text: str) -> str:
        """Return what :meth:`decode` gives back for ``text``.

        Raises:
            DataError: if it is not text, or holds half a surrogate pair.
        """
        if not isinstance(text, str):
            raise DataError(f"found a {type(text).__name__}, expected text", hint="pass strings")
        try:
            return str(self._backend.normalizer.normalize_str(text)).strip()
        except (UnicodeEncodeError, TypeError) as error:
            raise DataError(f"text that is not valid Unicode ({error})", hint="decode the text as UTF-8") from error

    def encode_ids(self, text: str) -> list[int]:
        """Return the ids of one text: no ``<eos>``, no padding, no truncation."""
        return self.encode_ragged([text])[0]

    def encode_ragged(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without ``<eos>`` and padding.

        Raises:
            DataError: if something is not text, or holds half a surrogate pair.
        """
        wrapped = [_with_space(self.normalize(text)) for text in texts]
        encodings = self._backend.encode_batch_fast(wrapped, add_special_tokens=False)
        return [list(encoding.ids) for encoding in encodings]

    def encode(self, texts: Sequence[str], length: int) -> Tokens:
        """Return a batch padded to ``length``; longer texts lose their end but keep ``<eos>``.

        Raises:
            ConfigError: if ``length`` has no room for ``<eos>``.
            DataError: if something is not text.
        """
        if length < 1:
            raise ConfigError(f"length={length}, expected at least 1", hint="use the text encoder's max_length")
        if isinstance(texts, str):
            raise DataError("found one string, expected a list of texts", hint="write encode([text], length)")
        rows = self.encode_ragged(texts)
        ids = torch.full((len(rows), length), PAD, dtype=torch.int64)
        for row, tokens in zip(ids, rows, strict=True):
            kept = [*tokens[: length - 1], EOS]
            row[: len(kept)] = torch.tensor(kept)
        return Tokens(ids, ids != PAD, tuple(len(tokens) >= length for tokens in rows))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``, special tokens left out; bytes that are no UTF-8 become U+FFFD."""
        text = str(self._backend.decode([int(token) for token in ids], skip_special_tokens=True))
        return text[1:] if text[:1] == " " and _STARTS_WORD.match(text[1:2]) else text

    def tokens(self, text: str) -> list[str]:
        """Return the tokens of ``text`` as written in the vocabulary."""
        return [str(self._backend.id_to_token(token)) for token in self.encode_ids(text)]


def _with_space(text: str) -> str:
    """Give a first word the space it would have anywhere else, so that it is the same token."""
    return f" {text}" if _STARTS_WORD.match(text) else text


def _pre_tokenizer(words: Iterable[str]) -> pre_tokenizers.PreTokenizer:
    known = sorted({word for word in words if len(word) > 1}, key=lambda word: (-len(word), word))
    pattern = "|".join([*(re.escape(word) for word in known), f"[{_HAN}]", _REST])
    return pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")


def _with_bytes(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Insert the 256 byte tokens after the special ones and switch byte fallback on."""
    state: dict[str, Any] = json.loads(backend.to_str())
    learned = sorted(state["model"]["vocab"].items(), key=lambda item: item[1])
    order = [*SPECIALS, *_BYTES, *(token for token, _ in learned if token not in SPECIALS)]
    state["model"]["vocab"] = {token: index for index, token in enumerate(order)}
    state["model"]["byte_fallback"] = True
    result = tokenizers.Tokenizer.from_str(json.dumps(state))
    result.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return result
