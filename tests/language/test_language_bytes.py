"""Bytes as tokens: every text comes back, and other libraries read the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from huaben.errors import DataError
from huaben.language.bpe import load_tokenizer
from huaben.language.bytes import NUM_BYTES, ByteTokenizer, byte_symbol
from huaben.language.tokenizer import TOKENIZER_NAME

TOKENIZER = ByteTokenizer()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_survives_the_round_trip(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert ids.tolist() == list(text.encode())
    assert TOKENIZER.decode(ids) == text


def test_specials_are_left_out_and_broken_bytes_are_shown() -> None:
    assert TOKENIZER.decode([65, TOKENIZER.eos_id, 66, TOKENIZER.pad_id]) == "AB"
    assert TOKENIZER.decode_bytes([0xFF, 65]) == b"\xffA"
    assert TOKENIZER.decode([0xFF, 65]) == "\ufffdA"


@pytest.mark.parametrize("index", [-1, 258])
def test_an_id_outside_of_the_vocabulary_is_named(index: int) -> None:
    with pytest.raises(DataError, match=f"id {index} "):
        TOKENIZER.decode([65, index])


@pytest.mark.parametrize("text", [b"bytes", "\ud800"])
def test_what_is_no_text_is_refused(text: object) -> None:
    with pytest.raises(DataError):
        TOKENIZER.encode(text)  # type: ignore[arg-type]


def test_the_saved_file_gives_the_same_ids_in_the_tokenizers_library(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    backend = Backend.from_file(str(tmp_path / TOKENIZER_NAME))
    text = "One  two\n三\t\x00 ~é"
    assert backend.encode(text).ids == TOKENIZER.encode(text).tolist()
    assert backend.decode(TOKENIZER.encode(text).tolist()) == text
    assert backend.get_vocab_size() == TOKENIZER.vocab_size == NUM_BYTES + 2
    assert [backend.token_to_id(token) for token in ("<pad>", "<eos>")] == [TOKENIZER.pad_id, TOKENIZER.eos_id]
    again = load_tokenizer(tmp_path)
    assert isinstance(again, ByteTokenizer)
    assert again.fingerprint == TOKENIZER.fingerprint


def test_byte_symbols_are_gpt2s() -> None:
    assert [byte_symbol(value) for value in (0, 9, 10, 32, 65, 127, 160, 173, 255)] == list("ĀĉĊĠAġłŃÿ")
    assert len({byte_symbol(value) for value in range(NUM_BYTES)}) == NUM_BYTES
