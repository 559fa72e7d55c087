"""Byte pairs: exact round trips, the same tokenizer again, and one loader for both kinds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from huaben.errors import CheckpointError, ConfigError, DataError
from huaben.language import bpe
from huaben.language.bpe import BytePairTokenizer, load_tokenizer, tokenizer_from_files
from huaben.language.bytes import ByteTokenizer
from huaben.language.tokenizer import TOKENIZER_NAME, Tokenizer

TEXTS = [
    "Let $X$ be a scheme. Then $X$ is quasi-compact.\n",
    "一个话本，一张图。\n",
    "\\begin{lemma}\n\\end{lemma}\n",
] * 20
TOKENIZER = BytePairTokenizer.train(TEXTS, vocab_size=400)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_survives_the_round_trip(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert not np.isin(ids, [TOKENIZER.pad_id, TOKENIZER.eos_id]).any()
    assert TOKENIZER.decode(ids) == text


def test_merges_were_learned() -> None:
    text = "Let $X$ be a scheme."
    assert len(TOKENIZER.encode(text)) < len(text) / 2
    assert TOKENIZER.vocab_size <= 400


def test_a_typed_special_token_is_text() -> None:
    ids = TOKENIZER.encode("a<eos>b")
    assert TOKENIZER.eos_id not in ids
    assert TOKENIZER.decode(ids) == "a<eos>b"
    assert TOKENIZER.decode([*ids, TOKENIZER.eos_id, TOKENIZER.pad_id]) == "a<eos>b"


def test_half_a_character_is_kept_as_bytes() -> None:
    ids = [TOKENIZER.encode("\x7f")[0]]
    assert TOKENIZER.decode_bytes(ids) == b"\x7f"
    half = TOKENIZER._backend.token_to_id("å")  # stands for the byte 0xE5
    assert TOKENIZER.decode_bytes([half]) == b"\xe5"
    assert TOKENIZER.decode([half]) == "\ufffd"


def test_training_is_deterministic_and_loading_keeps_it(tmp_path: Path) -> None:
    assert BytePairTokenizer.train(iter(TEXTS), vocab_size=400).to_json() == TOKENIZER.to_json()
    TOKENIZER.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert isinstance(again, BytePairTokenizer)
    assert again.fingerprint == TOKENIZER.fingerprint != ByteTokenizer().fingerprint
    assert again.encode(TEXTS[0]).tolist() == TOKENIZER.encode(TEXTS[0]).tolist()


def test_a_long_document_is_learned_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "PIECE", 7)
    assert list(bpe._pieces("ab\ncd\nefghijklm\nn")) == ["ab\ncd\n", "efghijk", "lm\nn"]
    assert BytePairTokenizer.train(["ab" * 50], vocab_size=300).encode("abab").size < 4


def test_impossible_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vocab_size=258"):
        BytePairTokenizer.train(TEXTS, vocab_size=258)
    with pytest.raises(DataError, match="no text"):
        BytePairTokenizer.train([], vocab_size=300)
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="id 400"):
        TOKENIZER.decode([400])


def test_other_files_are_refused(tmp_path: Path) -> None:
    Tokenizer.train(["a red cat"] * 9, vocab_size=300).save(tmp_path)
    with pytest.raises(CheckpointError, match="byte-level"):
        load_tokenizer(tmp_path)
    state = json.loads(TOKENIZER.to_json())
    (tmp_path / TOKENIZER_NAME).write_text(json.dumps(state)[:-40])
    with pytest.raises(CheckpointError, match="not a complete tokenizer"):
        load_tokenizer(tmp_path)


def test_files_are_learned_from_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, kept = tmp_path / "a.txt", tmp_path / "kept"
    path.write_text("a red cat, a blue dog. " * 20)
    first = tokenizer_from_files([path], kept, vocab_size=270)
    with monkeypatch.context() as patch:
        patch.setattr(BytePairTokenizer, "train", lambda *_, **__: pytest.fail("learned again"))
        assert tokenizer_from_files([path], kept, vocab_size=270).fingerprint == first.fingerprint
    assert tokenizer_from_files([path], kept, vocab_size=265).vocab_size == 265
    path.write_text("another text " * 20)
    assert tokenizer_from_files([path], kept, vocab_size=270).fingerprint != first.fingerprint
