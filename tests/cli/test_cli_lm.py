"""``huaben lm``: a text to a model, a model to numbers and text; files, flags and errors."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest

from huaben.cli import main as cli
from huaben.cli.lm_words import TEXTS
from huaben.language.decoder import Decoder

SHAPE = {"vocab_size": 256, "width": 16, "layers": 1, "heads": 2}
SMALL = ["--length", "16", "--batch", "4", "--device", "cpu", "--seed", "3", "--threads", "1"]


@pytest.fixture(autouse=True)
def _verb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.VERBS, "lm", "huaben.cli.lm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm")
    (folder / "a.txt").write_text("the cat and the dog. " * 40 + "\n\0\n" + "一只猫和一只狗。" * 30)
    (folder / "shape.json").write_text(json.dumps(SHAPE))
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """Return the one object a command prints."""
    status = cli.main(["lm", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    assert captured.out.count("\n") == 1
    return json.loads(captured.out)


def test_a_text_becomes_a_model_numbers_and_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "run"
    train = ["train", folder / "a.txt", "--config", folder / "shape.json", "--position", "dape2-kerple", *SMALL]
    first = run(capsys, *train, "--steps", 4, "--valid", folder / "a.txt", "--out", out)
    assert (first["steps"], first["documents"]) == (4, 2)
    assert first["scheme"]["adapter"] == "conv" and first["scheme"]["train_length"] == 16
    assert set(first["scores"]) == {"valid_loss", "valid_perplexity", "valid_bits_per_byte"}
    model = Decoder.from_pretrained(first["folder"])
    assert (model.config.width, model.config.vocab_size) == (16, 258)

    assert cli.main(["lm", *map(str, [*train, "--steps", 6, "--out", out])]) == 2
    assert "already holds" in capsys.readouterr().err
    assert cli.main(["lm", *map(str, [*train, "--steps", 6, "--out", out, "--resume"])]) == 0
    assert "10 steps" in capsys.readouterr().err  # a finished run is lengthened
    assert run(capsys, *train, "--out", out, "--resume")["steps"] == 10  # unless no length is given

    measure = ["eval", out, folder / "a.txt", "--lengths", "16,64", "--windows", 3, "--scored", 32, "--device", "cpu"]
    found = run(capsys, *measure)
    assert set(found["lengths"]) == {"16", "64"}
    assert found["lengths"]["64"]["perplexity"]["n"] == 3
    assert found["shared"] == 16
    assert {**run(capsys, *measure), "seconds": 0} == {**found, "seconds": 0}
    assert cli.main(["lm", *map(str, measure)]) == 0
    assert "context 64: perplexity" in capsys.readouterr().out

    write = ["generate", out, "the c", "--tokens", 12, "--seed", 5, "--device", "cpu"]
    text = run(capsys, *write)
    assert text["tokens"] <= 12 and text["prompt"] == "the c"
    assert cli.main(["lm", *map(str, write)]) == 0
    assert capsys.readouterr().out == text["text"] + "\n"
    assert run(capsys, "generate", out, "--tokens", 3, "--temperature", 0, "--device", "cpu")["tokens"] <= 3


def test_byte_pairs_come_from_the_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "pairs"
    found = run(
        capsys, "train", folder / "a.txt", "--config", folder / "shape.json", "--tokenizer", "bpe",
        "--vocab-size", 280, "--steps", 1, "--stream", "--out", out, *SMALL,
    )  # fmt: skip
    assert Decoder.from_pretrained(found["folder"]).config.vocab_size <= 280
    assert found["tokens"] < len((folder / "a.txt").read_bytes())
    assert list(out.glob("bpe-*/tokenizer.json"))
    assert run(capsys, "generate", out, "the", "--tokens", 2, "--device", "cpu")["tokens"] <= 2


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["train", "absent.txt", *SMALL], 1, "absent.txt cannot be read"),
        (["train", "a.txt", "--position", "kerpel", *SMALL], 2, "did you mean 'kerple'?"),
        (["train", "a.txt", "--preset", "tyny", *SMALL], 2, "did you mean 'tiny'?"),
        (["train", "a.txt", "--tokenizer", "words", *SMALL], 2, "neither bytes nor bpe"),
        (["train", "a.txt", *SMALL, "--length", "99999"], 1, "one window of length 99999"),
        (["train", "a.txt", *SMALL, "--steps", "5", "--minutes", "1"], 2, "both given"),
        (["eval", "absent", "a.txt"], 1, "no config.json"),
        (["eval", "absent", "a.txt", "--lengths", "a,b"], 2, "not a list of numbers"),
        (["generate", "absent", "text"], 1, "no config.json"),
    ],
)
def test_mistakes_are_answered(
    arguments: list[str],
    status: int,
    words: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_bytes((folder / "a.txt").read_bytes())
    assert cli.main(["lm", *arguments]) == status
    error = capsys.readouterr().err
    assert words in error
    assert "hint:" in error


def test_too_few_windows_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = folder / "untrained"
    decoder = Decoder(Decoder.config_class.from_dict(SHAPE | {"vocab_size": 258}))
    decoder.save_pretrained(model)
    assert cli.main(["lm", "eval", str(model), str(folder / "a.txt")]) == 1
    assert "no tokenizer.json" in capsys.readouterr().err
    from huaben.language.bytes import ByteTokenizer

    ByteTokenizer().save(model)
    assert cli.main(["lm", "eval", str(model), str(folder / "a.txt"), "--lengths", "9999"]) == 1
    assert "found 0 windows" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["train", "eval", "generate"])
def test_help_is_there(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lm", verb, "--help"]) == 0
    assert "--json" in capsys.readouterr().out


def test_both_languages_say_the_same_things() -> None:
    def holes(text: str) -> set[str | None]:
        return {name for _, name, _, _ in string.Formatter().parse(text)} - {None}

    assert TEXTS["en"].keys() == TEXTS["zh"].keys()
    for key, text in TEXTS["en"].items():
        assert holes(text) == holes(TEXTS["zh"][key]), key


def test_a_folder_is_trained_in_by_one_process_at_a_time(capsys, tmp_path):
    from huaben.cli.main import main
    from huaben.files import folder_lock

    text = tmp_path / "text.txt"
    text.write_text("a red cat on the beach. " * 200, encoding="utf-8")
    line = ["lm", "train", str(text), "--out", str(tmp_path / "run"), "--steps", "1", "--length", "16", "--batch", "1"]
    with folder_lock(tmp_path / "run", "training"):
        assert main(line) == 1
    assert "in use by another training" in capsys.readouterr().err
    assert main(line) == 0
