"""``huaben clip``: pictures to hard pairs, to a better model, to numbers and a page; files, flags and errors."""

from __future__ import annotations

import itertools
import json
import os
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from huaben.cli import main as cli
from huaben.cli.clip_gallery import likely_false_negatives
from huaben.cli.clip_words import TEXTS
from huaben.clip.dual_encoder import HuabenDualEncoder, load_dual_encoder
from huaben.clip.hard_pairs import HardPairs
from huaben.clip.model import PRESETS, Clip
from huaben.language.tokenizer import Tokenizer

COLOURS = {"red": ("红", (220, 40, 40)), "green": ("绿", (40, 200, 40)), "blue": ("蓝", (40, 60, 220)),
           "white": ("白", (240, 240, 240))}  # fmt: skip
PLACES = {"left": ("左", (0, 0, 16, 32)), "right": ("右", (16, 0, 32, 32)), "top": ("上", (0, 0, 32, 16))}
QUIET = ["--device", "cpu", "--threads", "1"]


@pytest.fixture(autouse=True)
def _verb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.VERBS, "clip", "huaben.cli.clip")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 36 pictures with captions and classes, one of them broken, and a small untrained model."""
    home = tmp_path_factory.mktemp("clip")
    pictures = home / "pictures"
    pictures.mkdir()
    rows, texts = ["file_name,caption_en,caption_zh,colour"], []
    for (one, (one_zh, inside)), (other, (other_zh, outside)) in itertools.permutations(COLOURS.items(), 2):
        for place, (place_zh, box) in PLACES.items():
            image = Image.new("RGB", (32, 32), outside)
            image.paste(inside, box)
            name = f"{one}-{other}-{place}.png"
            image.save(pictures / name)
            english, chinese = f"{one} on the {place} of {other}", f"{other_zh}色的{place_zh}边是{one_zh}色"
            texts += [english, chinese]
            rows.append(f"{name},{english},{chinese},{one}")
    (pictures / "broken.png").write_bytes(b"no picture")
    rows.append("broken.png,a broken one,坏的,red")
    (pictures / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    tokenizer = Tokenizer.train(texts, vocab_size=340)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = Clip(PRESETS["tiny"].replace(vocab_size=tokenizer.vocab_size))
    HuabenDualEncoder(clip, tokenizer).save(home / "model")
    return home


COLUMNS = ["--caption-columns", "caption_en,caption_zh"]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """Return the one object a command prints."""
    status = cli.main(["clip", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    assert captured.out.count("\n") == 1
    return json.loads(captured.out)


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Return the status and the message of a command that cannot do its work."""
    status = cli.main(["clip", *map(str, arguments)])
    return status, capsys.readouterr().err


@pytest.fixture(scope="module")
def mined(home: Path) -> Path:
    out = home / "pairs.npz"
    arguments = [
        "mine",
        "--data",
        home / "pictures",
        "--model",
        home / "model",
        "--k",
        6,
        "--out",
        out,
        *COLUMNS,
        *QUIET,
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cli.VERBS, "clip", "huaben.cli.clip")
        assert cli.main(["clip", *map(str, arguments)]) == 0
    return out


def test_pictures_become_features_and_hard_pairs(home: Path, mined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists = HardPairs.load(mined)
    assert lists.pairs.shape == (36, 6) and lists.keys is not None and "broken" not in "".join(lists.keys)
    features = home / "pairs.features.npz"
    with np.load(features) as arrays:
        assert arrays["image"].shape == arrays["text"].shape == (36, 32)
    for method, more in (("exact", []), ("fast", ["--candidates", 36]), ("ann", [])):
        out = home / f"{method}.npz"
        found = run(capsys, "mine", features, "--k", 6, "--method", method, "--out", out, *more)
        assert found["num_pairs"] == 36 and found["settings"]["method"] == method
        again = HardPairs.load(out)
        assert np.array_equal(again.pairs, lists.pairs) and again.keys == lists.keys
    assert not list(home.glob(".*.mining"))


def test_skipped_pictures_are_counted_and_listed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = home / "again.npz"
    arguments = ["mine", "--data", home / "pictures", "--model", home / "model", "--k", 3, "--out", out, *COLUMNS]
    status = cli.main(["clip", *map(str, arguments), *QUIET])
    captured = capsys.readouterr()
    assert status == 0
    assert "36 pairs read, 1 skipped" in captured.err and "broken.png" in captured.err
    assert "in_degree: mean 3, p99" in captured.out
    assert run(capsys, *arguments, *QUIET)["skipped"] == 1


def test_training_resumes_and_is_judged(home: Path, mined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = home / "run"
    train = ["finetune", home / "pictures", "--model", home / "model", "--pairs", mined, "--out", out, "--batch", 12]
    train += [*COLUMNS, *QUIET, "--no-alarm", "--augment", "shift", "--valid", home / "pictures"]
    first = run(capsys, *train, "--steps", 6, "--learning-rate", 3e-3, "--control")
    assert (first["steps"], first["samples"], first["pairs"], first["skipped"]) == (6, 72, 36, 1)
    assert {"contrastive", "margin", "margin_raw", "margin_active", "scale", "accuracy"} <= set(first["terms"])
    assert set(first["before"]) == set(first["scores"]) == set(first["control"]["scores"])
    assert "image_to_text_r1_zh" in first["scores"]
    card = json.loads((Path(first["control"]["folder"]) / "card.json").read_text())
    assert (card["settings"]["partners"], card["settings"]["margin"], card["steps"]) == ("none", None, 6)
    assert card["fit"] == json.loads((Path(first["folder"]) / "card.json").read_text())["fit"]

    status, said = fails(capsys, *train, "--steps", 8)
    assert status == 2 and "already holds" in said
    assert run(capsys, *train, "--steps", 2, "--learning-rate", 3e-3, "--resume")["steps"] == 8  # lengthened

    judged = run(capsys, "eval", out, home / "pictures", "--classes", "colour", *COLUMNS, *QUIET)
    assert judged["pairs"] == 36 and judged["retrieval"].keys() == first["scores"].keys()
    assert judged["zero_shot"]["num_classes"] == 4 and 0 <= judged["zero_shot"]["en"]["top1"] <= 1
    load_dual_encoder(first["folder"])


def test_it_mines_before_it_trains(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = home / "mined-run"
    train = ["finetune", home / "pictures", "--model", home / "model", "--mine", "exact", "--k", 6, "--out", out]
    found = run(capsys, *train, "--batch", 12, "--steps", 2, "--no-alarm", "--gamma", 0, *COLUMNS, *QUIET)
    assert found["settings"]["mined"]["k"] == 6 and found["settings"]["margin"] is None
    assert HardPairs.load(out / "pairs.npz").k == 6


@pytest.mark.slow
def test_torchrun_trains_with_all_its_processes(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    script = tmp_path / "script.py"
    script.write_text("from huaben.cli.clip import app; app()")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, "finetune"]
    words += [home / "pictures", "--model", home / "model", "--mine", "exact", "--k", 6, "--out", tmp_path / "run"]
    words += ["--batch", 12, "--steps", 2, "--no-alarm", "--valid", home / "pictures", *COLUMNS, *QUIET, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    said = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=environment, check=False)
    assert said.returncode == 0, said.stderr[-3000:]
    found = json.loads(said.stdout)
    assert found["steps"] == 2 and found["scores"] and found["before"]
    card = json.loads((Path(found["folder"]) / "card.json").read_text())
    assert card["settings"]["processes"] == 2


def test_the_alarm_is_told_once_and_in_words(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["finetune", home / "pictures", "--model", home / "model", "--partners", "random", "--batch", 12]
    train += ["--steps", 12, "--learning-rate", 1e-6, *COLUMNS, *QUIET, "--out"]
    status, said = fails(capsys, *train, home / "stopped")
    assert status == 1 and "closer than the hard pairs" in said and "switch the alarm off" in said
    status, said = fails(capsys, *train, home / "warned", "--no-alarm")
    assert status == 0 and said.count("warning: the hard pairs look random") == 1


def test_a_probe_learns_from_other_data(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    probe = ["--classes", "colour", "--train", home / "pictures"]
    found = run(capsys, "eval", home / "model", home / "pictures", *probe, *COLUMNS, *QUIET)
    assert found["linear_probe"]["num_classes"] == 4 and found["linear_probe"]["accuracy"] > 0.5
    assert cli.main(["clip", "eval", str(home / "model"), str(home / "pictures"), *COLUMNS, *QUIET]) == 0
    assert "image_to_text_r1_en: " in capsys.readouterr().out


def test_a_page_shows_what_to_doubt(home: Path, mined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "inspect", mined, "--data", home / "pictures", "--count", 4, *COLUMNS)
    page = (home / "pairs.html").read_text(encoding="utf-8")
    assert found["html"] == str(home / "pairs.html") and len(found["doubtful"]) == 4
    scores = [doubt["score"] for doubt in found["doubtful"]]
    assert scores == sorted(scores, reverse=True)
    assert page.count("data:image/webp;base64,") == 8 + len(found["mispaired"]) and "色的" in page
    assert "<script" not in page and "http" not in page
    plain = home / "plain.html"
    assert cli.main(["clip", "inspect", str(mined), "--html", str(plain)]) == 0
    assert "reciprocity: " in capsys.readouterr().out
    assert "data:image" not in plain.read_text(encoding="utf-8")


def test_doubtful_pairs_are_the_highest_scores_each_once() -> None:
    lists = HardPairs(
        pairs=np.array([[1, 2], [0, 2], [0, -1], [2, 0]]),
        scores=np.array([[0.9, 0.5], [0.9, 0.4], [0.5, -np.inf], [0.7, 0.1]], np.float32),
        certified=np.ones(4, bool),
        outlier=np.zeros(4, bool),
    )
    found = likely_false_negatives(lists, 3)
    assert [(doubt.row, doubt.partner, doubt.mutual) for doubt in found] == [(0, 1, True), (3, 2, False), (0, 2, True)]
    assert [doubt.score for doubt in found] == [0.9, 0.7, 0.5]
    assert likely_false_negatives(lists, 0) == []


@pytest.mark.parametrize(
    ("words", "status", "match"),
    [
        (["mine"], 2, "expected features or --data"),
        (["mine", "x.npz", "--method", "exac"], 2, "did you mean 'exact'?"),
        (["mine", "no.npz"], 1, "no features at no.npz"),
        (["finetune", "no", "--partners", "mined"], 2, "expected --pairs or --mine"),
        (["finetune", "no", "--partners", "none", "--pairs", "p.npz"], 2, "uses no mined pairs"),
        (["finetune", "no", "--partners", "none", "--gamma", "0.3"], 2, "without partners"),
        (["finetune", "no", "--mine", "exact", "--margin", "mine"], 2, "--margin 'mine' is none of"),
        (["eval", "embedded", "no", "--train", "no"], 2, "add --classes"),
        (["eval", "embedded", "no"], 1, "no"),
        (["inspect", "no.npz"], 1, "no.npz"),
        (["inspect", "no.npz", "--count", "-1"], 2, "is negative"),
    ],
)
def test_wrong_words_are_explained(
    words: list[str], status: int, match: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    found, said = fails(capsys, *words)
    assert found == status and match in said and "error: " in said


def test_wrong_data_is_explained(home: Path, mined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = home / "other.npz"
    HardPairs(
        pairs=np.array([[1], [0]]),
        scores=np.ones((2, 1), np.float32),
        certified=np.ones(2, bool),
        outlier=np.zeros(2, bool),
        keys=["a", "b"],
    ).save(other)
    train = ["finetune", home / "pictures", "--model", home / "model", *COLUMNS, *QUIET, "--out", home / "no"]
    status, said = fails(capsys, *train, "--pairs", other, "--batch", 12)
    assert status == 1 and "0 of the data set's 36 keys were mined" in said
    status, said = fails(capsys, *train, "--pairs", mined, "--batch", 13)
    assert status == 2 and "hint: use 12" in said
    status, said = fails(capsys, "mine", home / "pairs.features.npz", "--k", 36)
    assert status == 2 and "36" in said
    status, said = fails(capsys, "eval", home / "no-model", home / "pictures", *COLUMNS)
    assert status == 2 and "is no folder" in said


def test_both_languages_have_the_same_words() -> None:
    assert TEXTS["en"].keys() == TEXTS["zh"].keys()
    for key, text in TEXTS["en"].items():
        names = [
            {name for _, name, _, _ in string.Formatter().parse(said) if name} for said in (text, TEXTS["zh"][key])
        ]
        assert names[0] == names[1], key


def test_help_speaks_chinese() -> None:
    code = "from huaben.cli.words import choose_language as c; c('zh'); import huaben.cli.clip as v; v.app()"
    said = subprocess.run([sys.executable, "-c", code, "mine", "--help"], capture_output=True, text=True, check=True)
    assert "难样本对" in said.stdout and "torch" not in said.stderr
