"""From files to a stream, from the stream to batches: what is read, what is refused, what a step shows."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from huaben.errors import CheckpointError, ConfigError, DataError
from huaben.language import corpus as module
from huaben.language.bpe import BytePairTokenizer, load_tokenizer
from huaben.language.bytes import ByteTokenizer
from huaben.language.corpus import Corpus, PackedBatches, build_corpus, corpus_from_files, read_documents

TOKENIZER = ByteTokenizer()
EOS = TOKENIZER.eos_id


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz"])
@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_text_files_are_cut_at_nul(suffix: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    path = tmp_path / f"a.txt{suffix}"
    data = "\none\r\n两个\n\0\nthree\n\n\0\n\0四".encode()
    path.write_bytes({"": bytes, ".xz": lzma.compress, ".gz": gzip.compress}[suffix](data))
    assert list(read_documents(path)) == ["\none\r\n两个", "three\n", "四"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=9), min_size=1))
def test_joined_documents_come_back(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> None:
    path = tmp_path_factory.mktemp("joined") / "a.txt"
    path.write_bytes("\n\0\n".join(documents).encode())
    assert list(read_documents(path)) == documents


def test_json_lines_have_a_field(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.xz"
    lines = [json.dumps({"text": "一\n二", "body": "x"}), "", json.dumps({"text": "three", "body": "y"})]
    path.write_bytes(lzma.compress("\n".join(lines).encode()))
    assert list(read_documents(path)) == ["一\n二", "three"]
    assert list(read_documents(path, field="body")) == ["x", "y"]
    with pytest.raises(DataError, match="line 1: no text in field 'title'"):
        list(read_documents(path, field="title"))


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("absent.txt", None, "no file"),
        ("empty.txt", b"", "holds no text"),
        ("nul.txt", b"\n\0\n", "holds no text"),
        ("empty.jsonl", b"\n\n", "holds no text"),
        ("latin.txt", b"caf\xe9 au lait", "not UTF-8: byte 0xe9 at offset 3"),
        ("half.txt", "abc一".encode()[:-1], "not UTF-8: byte 0xe4 at offset 3"),
        ("broken.txt.xz", lzma.compress(b"long enough to be cut" * 9)[:-9], "not a complete .xz file"),
        ("plain.txt.gz", b"no gzip at all", "not a complete .gz file"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": ', "line 2: not JSON"),
        ("list.jsonl", b"[1]", "line 1: no text in field"),
    ],
)
def test_unusable_files_are_named(name: str, data: bytes | None, words: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        list(read_documents(tmp_path / name))
    assert words in caught.value.message
    assert name in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("block", [1, 2, 1 << 20])
def test_the_offset_of_a_bad_byte_is_counted_over_blocks(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    (tmp_path / "a.txt").write_bytes("一二".encode() + b"\xe4a")
    with pytest.raises(DataError, match="byte 0xe4 at offset 6"):
        list(read_documents(tmp_path / "a.txt"))


# -- the stream ----------------------------------------------------------------------------------------------------


def test_a_corpus_is_its_documents_with_ends(tmp_path: Path) -> None:
    built = build_corpus(["ab", "一"], TOKENIZER, tmp_path / "c")
    assert built.tokens.tolist() == [97, 98, EOS, 0xE4, 0xB8, 0x80, EOS]
    assert built.tokens.dtype == np.uint16
    assert built.starts.tolist() == [0, 3, 7]
    assert built.documents_at(np.asarray([[0, 2], [3, 6]])).tolist() == [[0, 0], [1, 1]]
    assert (len(built), built.num_documents) == (7, 2)
    again = Corpus.open(tmp_path / "c")
    assert isinstance(again.tokens, np.memmap)
    assert again.fingerprint == built.fingerprint
    assert isinstance(load_tokenizer(tmp_path / "c"), ByteTokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    class Wide(ByteTokenizer):
        vocab_size = 70_000
        eos_id = 69_999

    built = build_corpus(["a"], Wide(), tmp_path / "c")
    assert built.tokens.dtype == np.uint32
    assert built.tokens.tolist() == [97, 69_999]


def test_files_are_read_again_only_if_something_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, folder = tmp_path / "1.txt", tmp_path / "2.txt", tmp_path / "c"
    one.write_text("one one one")
    two.write_text("two")
    first = corpus_from_files([one, two], TOKENIZER, folder)
    assert first.num_documents == 2
    with monkeypatch.context() as patch:
        patch.setattr(module, "build_corpus", lambda *_, **__: pytest.fail("built again"))
        assert corpus_from_files([one, two], TOKENIZER, folder).fingerprint == first.fingerprint
    pairs = BytePairTokenizer.train(["one one one"], vocab_size=260)
    assert len(corpus_from_files([one, two], pairs, folder)) < len(first)
    two.write_text("three")
    assert corpus_from_files([one, two], TOKENIZER, folder).fingerprint != first.fingerprint


def test_a_failed_build_leaves_the_old_corpus(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    build_corpus(["good"], TOKENIZER, folder)
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        corpus_from_files([tmp_path / "bad.txt"], TOKENIZER, folder)
    with pytest.raises(DataError, match="no documents"):
        build_corpus([], TOKENIZER, folder)
    assert len(Corpus.open(folder)) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.txt", "c"]


def test_damage_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    with pytest.raises(CheckpointError, match="not a complete corpus"):
        Corpus.open(folder)
    build_corpus(["some text"], TOKENIZER, folder)
    with (folder / "tokens.bin").open("r+b") as file:
        file.truncate(6)
    with pytest.raises(CheckpointError, match="holds 3 tokens"):
        Corpus.open(folder)
    assert len(corpus_from_files([_file(tmp_path, "fresh")], TOKENIZER, folder)) == 6
    facts = json.loads((folder / "corpus.json").read_text()) | {"format": 99}
    (folder / "corpus.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="format 99"):
        Corpus.open(folder)


# -- batches -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    texts = ["abcdefghij" * 5, "0123456789" * 5, "x", "ABCDEFGHIJ" * 9]
    return build_corpus(texts, TOKENIZER, tmp_path_factory.mktemp("stream") / "c")


def test_a_batch_is_a_pure_function_of_seed_and_step(stream: Corpus) -> None:
    one, other = (PackedBatches(stream, length=8, batch_size=4, seed=3) for _ in range(2))
    ahead = [other(step) for step in (9, 30, 0)]
    for step, (ids, documents) in zip((9, 30, 0), ahead, strict=True):
        assert (one(step)[0] == ids).all() and (one(step)[1] == documents).all()
    assert not all((PackedBatches(stream, length=8, batch_size=4, seed=4)(s)[0] == one(s)[0]).all() for s in range(3))


def test_an_epoch_shows_every_window_once(stream: Corpus) -> None:
    batches = PackedBatches(stream, length=8, batch_size=3, seed=1)
    count = batches.windows_per_epoch
    starts = np.concatenate([batches.starts(step) for step in range(2 * count)])
    first, second = np.sort(starts[:count]), np.sort(starts[count : 2 * count])
    assert (np.diff(first) == 8).all() and (np.diff(second) == 8).all()
    assert starts.min() >= 0 and starts.max() + 9 <= len(stream)
    assert count >= (len(stream) - 1) // 8 - 1
    offsets = {int(batches.starts(step * count)[0]) % 8 for step in range(20)}
    assert len(offsets) > 1


def test_windows_are_slices_of_the_stream_with_their_documents(stream: Corpus) -> None:
    batches = PackedBatches(stream, length=40, batch_size=6, seed=2)
    crossing = 0
    for step in range(4):
        ids, documents = batches(step)
        assert ids.shape == documents.shape == (6, 41)
        for start, row, numbers in zip(batches.starts(step), ids, documents, strict=True):
            assert row.tolist() == stream.tokens[start : start + 41].tolist()
            ends = np.cumsum(row.numpy() == EOS)
            assert numbers.tolist() == [0, *ends[:-1]]  # a document's <eos> belongs to it
            crossing += int(numbers[-1] > 0)
    assert crossing


def test_the_shortest_corpus_is_one_window(tmp_path: Path) -> None:
    exact = build_corpus(["abcd"], TOKENIZER, tmp_path / "c")
    ids, _ = PackedBatches(exact, length=4, batch_size=2)(7)
    assert ids.tolist() == [[97, 98, 99, 100, EOS]] * 2
    with pytest.raises(DataError, match="has 5 tokens, one window of length 5 needs 6"):
        PackedBatches(exact, length=5, batch_size=1)
    with pytest.raises(ConfigError, match="batch_size=0"):
        PackedBatches(exact, length=4, batch_size=0)


def _file(folder: Path, text: str) -> Path:
    path = folder / "fresh.txt"
    path.write_text(text)
    return path
