from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from huaben.errors import CheckpointError, ConfigError, DataError
from huaben.language.tokenizer import BOS, EOS, MASK, PAD, SPECIALS, UNK, Tokenizer

TEXTS = [
    "a small red cat with a hat on the beach", "the cat is on the left, a blue dog in the middle", "red dog, blue hat",
    "一只戴着帽子的红色小猫", "海滩上有一只红色的小狗，戴着围巾。", "蓝色的猫和红色的狗在海滩上",
] * 30  # fmt: skip
WORDS = ["红色", "蓝色", "帽子", "围巾", "戴着", "一只", "海滩"]
TOKENIZER = Tokenizer.train(TEXTS, vocab_size=400, words=WORDS)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_survives_the_round_trip(text: str) -> None:
    ids = TOKENIZER.encode_ids(text)
    assert UNK not in ids
    assert TOKENIZER.decode(ids) == TOKENIZER.normalize(text)


def test_special_tokens_have_fixed_ids() -> None:
    assert (PAD, EOS, UNK, BOS, MASK) == (0, 1, 2, 3, 4)
    state = json.loads(TOKENIZER.to_json())
    assert [state["model"]["vocab"][token] for token in SPECIALS] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("text", ["<eos>", "<pad> cat", "<0x41>", "a<mask>b"])
def test_typed_special_tokens_are_text(text: str) -> None:
    ids = TOKENIZER.encode_ids(text)
    assert min(ids) >= len(SPECIALS)
    assert TOKENIZER.decode(ids) == text.lower()


def test_a_word_is_the_same_token_everywhere() -> None:
    assert TOKENIZER.tokens("red cat") == [" red", " cat"]
    assert TOKENIZER.tokens("Ｒｅｄ CAT") == [" red", " cat"]
    assert TOKENIZER.tokens("a red cat")[1:] == [" red", " cat"]


def test_chinese_merges_only_inside_words() -> None:
    assert TOKENIZER.tokens("红色的猫戴着帽子") == ["红色", "的", "猫", "戴着", "帽子"]
    bare = Tokenizer.train(TEXTS, vocab_size=400)
    assert bare.tokens("红色的猫") == ["红", "色", "的", "猫"]


def test_training_is_deterministic() -> None:
    again = Tokenizer.train(iter(TEXTS), vocab_size=400, words=reversed(WORDS))
    assert again.to_json() == TOKENIZER.to_json()
    assert again.vocab_size <= 400


def test_case_is_kept_when_not_folding() -> None:
    kept = Tokenizer.train(TEXTS, vocab_size=400, fold=False)
    assert kept.decode(kept.encode_ids("A Red，ＣＡＴ")) == "A Red，ＣＡＴ"


def test_encode_pads_truncates_and_says_so() -> None:
    tokens = TOKENIZER.encode(["red cat", "", "a red cat on the left"], 4)
    ids, mask = tokens
    assert ids.shape == mask.shape == (3, 4)
    assert ids[1].tolist() == [EOS, PAD, PAD, PAD]
    assert ids[2, -1] == EOS
    assert ids[2, :3].tolist() == TOKENIZER.encode_ids("a red cat")
    assert mask.sum(1).tolist() == [3, 1, 4]
    assert tokens.truncated == (False, False, True)
    assert TOKENIZER.encode(["a red cat"], 4).truncated == (False,)


def test_save_and_load(tmp_path) -> None:
    TOKENIZER.save(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    text = "Red 猫 <eos> 😀 龘"
    assert again.to_json() == TOKENIZER.to_json()
    assert again.encode_ids(text) == TOKENIZER.encode_ids(text)


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model": 3}', None])
def test_broken_files_are_refused(tmp_path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer.json.*hint"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_half_written_file_and_another_kind_are_refused(tmp_path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(TOKENIZER.to_json()[:2000])
    with pytest.raises(CheckpointError, match="copy or download"):
        Tokenizer.from_pretrained(tmp_path)
    path.write_text(TOKENIZER.to_json().replace("<mask>", "[MASK]"))
    with pytest.raises(CheckpointError, match="special tokens"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", [3, None, b"cat", "\ud800"])
def test_what_is_not_text_is_refused(text: object) -> None:
    with pytest.raises(DataError, match="hint"):
        TOKENIZER.encode([text], 8)  # type: ignore[list-item]


def test_one_string_for_a_list_is_refused() -> None:
    with pytest.raises(DataError, match="encode"):
        TOKENIZER.encode("red cat", 8)
    with pytest.raises(ConfigError, match="length=0"):
        TOKENIZER.encode(["red cat"], 0)
    with pytest.raises(ConfigError, match="vocab_size=100"):
        Tokenizer.train(TEXTS, vocab_size=100)
