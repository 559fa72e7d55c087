"""Families of near-identical scenes, the arms trained on them, and what is kept of the runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from huaben.bench import hard_pairs_world
from huaben.bench.experiment import interval, student_quantile
from huaben.bench.hard_pairs_world import (
    ARMS,
    COMPARED,
    Bench,
    Plan,
    as_pairs,
    mined_statistics,
    moved,
    plot,
    run,
    summarise,
)
from huaben.bench.scene_families import (
    CHANGES,
    FAMILY_SIZE,
    LANGUAGES,
    MIN_CHANGED,
    VISIBLE,
    Families,
    differences,
    family_scores,
    first_hits,
    full_caption,
    full_facts,
    global_scores,
    make_families,
    make_scenes,
)
from huaben.clip.model import PRESETS, Clip
from huaben.errors import DataError, ShapeError, UsageError
from huaben.language.tokenizer import Tokenizer
from huaben.stations import WEIGHTS
from huaben.world.sample import is_held_out

TINY: dict[str, Any] = {
    "families": 6,
    "test_families": 2,
    "unrelated": 6,
    "base_steps": 3,
    "steps": 2,
    "batch_size": 8,
    "k": 2,
    "bf16": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained(WEIGHTS / "text")


@pytest.fixture(scope="module")
def start(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny CLIP with fresh weights."""
    folder = tmp_path_factory.mktemp("tiny")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = Clip(PRESETS["tiny"].replace(vocab_size=tokenizer.vocab_size, text_length=32))
    clip.save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def families(tokenizer: Tokenizer) -> Families:
    return make_families(3, "test", 6, tokenizer)


# -- scenes ------------------------------------------------------------------------------------------------------


def test_members_differ_from_the_first_in_one_attribute(families: Families, tokenizer: Tokenizer) -> None:
    assert len(families) == 6 * FAMILY_SIZE
    assert {len(scene.characters) for scene in families.scenes} == {1, 2}
    for row, (scene, said) in enumerate(zip(families.scenes, families.captions, strict=True)):
        assert len(said) == len(LANGUAGES)
        assert all(len(tokenizer.encode_ids(text)) < 32 for text in said)
        assert not any(is_held_out(character) for character in scene.characters)
        plain, member = row - row % FAMILY_SIZE, row % FAMILY_SIZE
        if member == 0:
            continue
        assert differences(families.scenes[plain], scene) == {CHANGES[member - 1]}
        change = np.abs(families.pictures[row].astype(int) - families.pictures[plain]).max(-1) > VISIBLE
        assert change.sum() >= MIN_CHANGED
    for first in range(0, len(families), FAMILY_SIZE):
        for column in range(len(LANGUAGES)):
            assert len({said[column] for said in families.captions[first : first + FAMILY_SIZE]}) == FAMILY_SIZE


def test_the_same_template_tells_every_change(families: Families) -> None:
    for first in range(0, len(families), FAMILY_SIZE):
        order = range(len(families.scenes[first].characters))
        for language in LANGUAGES:
            texts = {
                full_caption(scene, language, list(order), 1) for scene in families.scenes[first : first + FAMILY_SIZE]
            }
            assert len(texts) == FAMILY_SIZE


def test_captions_leave_out_size_and_nothing_worn(families: Families) -> None:
    for scene in families.scenes:
        for said, character in zip(full_facts(scene, range(9)[: len(scene.characters)]), scene.characters, strict=True):
            assert "size" not in said
            assert ("accessory" in said) == (character.accessory != "none")
            assert {"species", "colour", "expression", "facing", "place"} <= said.keys()


def test_families_depend_on_seed_and_purpose_alone(families: Families, tokenizer: Tokenizer, tmp_path: Path) -> None:
    again = make_families(3, "test", 2, tokenizer)
    assert again.scenes == families.scenes[: 2 * FAMILY_SIZE]
    assert np.array_equal(again.pictures, families.pictures[: 2 * FAMILY_SIZE])
    assert make_families(3, "dev", 1, tokenizer).scenes != again.scenes[:FAMILY_SIZE]
    assert list(again.family) == [0] * FAMILY_SIZE + [1] * FAMILY_SIZE
    again.save(tmp_path / "scenes.npz")
    read = Families.load(tmp_path / "scenes.npz")
    assert read.scenes == again.scenes
    assert read.captions == again.captions
    assert np.array_equal(read.pictures, again.pictures)
    (tmp_path / "broken.npz").write_bytes((tmp_path / "scenes.npz").read_bytes()[:200])
    with pytest.raises(DataError, match="holds no families"):
        Families.load(tmp_path / "broken.npz")


def test_captions_that_cannot_fit_are_an_error(tokenizer: Tokenizer) -> None:
    for make in (make_families, make_scenes):
        with pytest.raises(DataError, match="fits into 4 tokens"):
            make(0, "test", 1, tokenizer, length=4)
    assert len(make_scenes(0, "test", 3, tokenizer)) == 3


def test_pictures_move_without_being_mirrored() -> None:
    picture = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    rng = np.random.default_rng(0)
    found = [moved(picture, rng) for _ in range(40)]
    assert all(one.shape == picture.shape for one in found)
    assert any(np.array_equal(one, picture) for one in found)
    inner = {tuple(one[8, 8]) for one in found}
    assert inner <= {tuple(picture[8 + y, 8 + x]) for y in range(-2, 3) for x in range(-2, 3)}
    assert len(inner) > 10


# -- scores ------------------------------------------------------------------------------------------------------


def test_first_hits_within_blocks() -> None:
    image = np.eye(4, dtype=np.float32)
    text = np.eye(4, dtype=np.float32)[[0, 1, 2, 2]]  # the last picture's caption describes the third
    to_text, to_image = first_hits(image, text, 4)
    assert to_text.tolist() == [True, True, False, False]  # equal scores count against
    assert to_image.tolist() == [True, True, True, False]
    swapped = np.eye(4, dtype=np.float32)[[1, 0, 3, 2]]
    assert not first_hits(image, swapped, 2)[0].any()
    crossed = np.eye(4, dtype=np.float32)[[2, 3, 0, 1]] + 0.1 * np.eye(4, dtype=np.float32)
    assert first_hits(image, crossed, 2)[0].all()  # the better match is in another block
    assert not first_hits(image, crossed, 4)[0].any()
    with pytest.raises(ShapeError):
        first_hits(image, text, 3)


def test_family_scores_are_told_by_change() -> None:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((3 * FAMILY_SIZE, 64)).astype(np.float32)
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    text = image.copy()
    colour = 1 + CHANGES.index("colour")
    text[colour::FAMILY_SIZE] = image[0::FAMILY_SIZE]  # captions that do not see the colour changed
    scores = family_scores(image, {"en": image, "zh": text})
    assert scores["family_image_to_text_en"] == scores["family_text_to_image_en"] == 1
    assert scores["family_colour"] == 0.5
    assert scores["family_species"] == 1
    assert scores["family_none"] == 0.75  # its picture has two captions in Chinese, equally good
    assert scores["family"] == pytest.approx((6 + 0.5 + 0.75) / 8)
    assert global_scores(image, {"en": image}) == {
        "global": 1,
        "global_image_to_text_en": 1,
        "global_text_to_image_en": 1,
    }


def test_mined_statistics_of_a_known_case() -> None:
    rows = np.arange(2 * FAMILY_SIZE)
    pairs = np.full((len(rows), 2), -1, np.int64)
    pairs[:, 0] = rows - rows % FAMILY_SIZE + (rows + 1) % FAMILY_SIZE  # the next of the family
    pairs[:, 1] = (rows + FAMILY_SIZE) % len(rows)  # of the other family
    found = mined_statistics(pairs)
    assert found["own_family"] == 0.5
    assert found["found"] == round(1 / (FAMILY_SIZE - 1), 4)
    assert found["first"] == 1
    assert found["found_by_change"] == {change: float(change == CHANGES[0]) for change in CHANGES}
    pairs[:, 1] = -1
    assert mined_statistics(pairs)["own_family"] == 1


def test_students_quantiles() -> None:
    known = {1: 12.7062, 2: 4.3027, 3: 3.1824, 5: 2.5706, 9: 2.2622, 30: 2.0423, 1000: 1.9623}
    for degrees, value in known.items():
        assert student_quantile(degrees) == pytest.approx(value, rel=2e-4)
    found = interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2
    assert found["sd"] == 1
    assert found["high"] - 2 == pytest.approx(4.3027 / 3**0.5, abs=1e-3)
    assert interval([5.0])["low"] is None


def test_differences_are_paired_by_seed() -> None:
    arms = {name: ARMS[name] for name in ("untrained", "continued", "hpm")}
    base = {name: 0.5 for name in ("family", "global")}
    records = [{"arm": "untrained", "seed": 4, "scores": base}]
    for seed, luck in ((4, 0.0), (5, 0.3)):
        records.append({"arm": "continued", "seed": seed, "scores": {name: 0.5 + luck for name in base}})
        records.append({"arm": "hpm", "seed": seed, "scores": {name: 0.51 + luck for name in base}})
    found = summarise(records, [4, 5], arms)
    assert set(found["differences"]) == {"continued - untrained", "hpm - continued"}
    gain = found["differences"]["hpm - continued"]["family"]
    assert gain["mean"] == pytest.approx(1)
    assert gain["low"] == pytest.approx(1)  # luck is shared, so it cancels
    assert found["arms"]["hpm"]["scores"]["family"]["sd"] == pytest.approx(100 * 0.3 / 2**0.5, abs=1e-3)
    assert found["arms"]["untrained"]["scores"]["family"]["n"] == 1
    assert found["differences"]["continued - untrained"]["family"]["mean"] == pytest.approx(15)


# -- runs --------------------------------------------------------------------------------------------------------


def test_arms_run_and_are_kept(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"seeds": 2, "start": str(start), "cache": str(tmp_path / "cache"), **TINY}
    arms = ("untrained", "continued", "random_margin", "hpm", "helip", "hpm_text")
    found = json.loads(json.dumps(run(arms=list(arms), **asked)))
    assert set(found["arms"]) == set(arms)
    assert len(list((tmp_path / "cache" / "runs").glob("*.json"))) == 1 + 2 * (len(arms) - 1)
    assert len(found["differences"]) == 5
    assert all(set(pair) <= set(ARMS) for pair in COMPARED)
    for name, entry in found["arms"].items():
        assert 0 <= entry["scores"]["family"]["mean"] <= 100
        partners = ARMS[name].partners
        assert ("margin_active" in entry["terms"]) == (partners in ("mined", "random"))
    assert found["arms"]["hpm"]["terms"]["margin"] == 0
    assert found["arms"]["helip"]["terms"]["margin"] > 0
    assert found["plan"]["steps"] == 2
    assert set(found["mined"]) == {"both", "text"}
    assert 0 <= found["mined"]["both"]["own_family"] <= 1
    plot({"results": found}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000

    def never(*_: Any) -> Any:
        raise AssertionError("ran again")

    monkeypatch.setattr(hard_pairs_world.Bench, "run", never)
    monkeypatch.setattr(hard_pairs_world, "fit", never)
    assert json.loads(json.dumps(run(arms=",".join(arms), **asked))) == found
    with pytest.raises(AssertionError, match="ran again"):
        run(**{**asked, "gamma": 1.0}, arms="helip")
    assert run(**{**asked, "gamma": 1.0}, arms="hpm")["arms"]["hpm"] == found["arms"]["hpm"]  # has no margin
    broken = next((tmp_path / "cache" / "runs").glob("hpm-000-*.json"))
    broken.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="is not a run"):
        run(**asked, arms="hpm")


def test_a_run_is_the_same_again_and_starts_from_the_base(start: Path, tmp_path: Path) -> None:
    bench = Bench(Plan(**TINY), tmp_path, start)
    bench.make_base()
    before = {name: value.clone() for name, value in bench.base.state_dict().items()}
    first, second = (bench.run("helip", ARMS["helip"], 1) for _ in range(2))
    del first["cpu_seconds"], second["cpu_seconds"]
    assert first == second
    assert all(torch.equal(value, before[name]) for name, value in bench.base.state_dict().items())
    assert bench.judge(bench.base) == bench.run("untrained", ARMS["untrained"], 0)["scores"]
    assert bench.data.key(FAMILY_SIZE + 2) == "1.2"
    assert [said.language for said in bench.data.captions(0)] == list(LANGUAGES)
    assert len(as_pairs(bench.test, "test")) == 2 * FAMILY_SIZE


def test_what_cannot_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no arm 'best'"):
        run(arms="best", cache=str(tmp_path))
    with pytest.raises(UsageError, match="needs 2"):
        run(seeds=1, cache=str(tmp_path))
    with pytest.raises(UsageError, match="runs must be kept"):
        run()
