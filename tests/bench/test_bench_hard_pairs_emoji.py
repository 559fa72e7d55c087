"""The emoji measurement: a split by concept, every arm from the same weights, a cache that is used, checks that can fail."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from huaben.bench import emoji_pairs, hard_pairs_emoji
from huaben.bench.emoji_pairs import concepts_of, read_emoji, split_concepts, view
from huaben.errors import ConfigError, DataError, UsageError

pyarrow = pytest.importorskip("pyarrow")

DATA = Path(__file__).parents[3] / "shared" / "data" / "emoji" / "emoji.parquet"
COLOURS = ("red", "green", "blue", "grey")
THINGS = ("ship", "tower", "stone", "lamp", "coin", "drum", "kite", "leaf", "ring", "vase")
ARMS = {"plain", "random", "hpm", "hnml", "helip", "random+hnml", "hpm-harder", "helip-harder"}
SETTINGS: dict[str, Any] = {
    "bases": 1,
    "continuations": 1,
    "base_steps": 3,
    "steps": 10,
    "batch_size": 12,
    "k": 4,
    "harder_k": 4,
    "harder_p": 2,
    "size": 16,
    "width": 16,
    "image_layers": 1,
    "text_layers": 1,
    "embedding_size": 8,
    "vocab_size": 400,
    "held_share": 0.2,
    "views": 1,
    "bf16": False,
}


def write_table(path: Path, **changes: Any) -> Path:
    """Write ten things in four colours each; a thing is one concept."""
    rng = np.random.default_rng(0)
    rows = []
    for number, thing in enumerate(THINGS):
        for shade, colour in enumerate(COLOURS):
            pixels = np.zeros((20, 20, 4), np.uint8)
            pixels[2 + number : 10 + number, 4:16] = (*rng.integers(0, 255, 3), 255)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            rows.append(
                {
                    "codepoints": f"{0x30000 + 16 * number + shade:x}",
                    "image": file.getvalue(),
                    "name_en": f"{colour} {thing}",
                    "name_zh": f"{'红绿蓝灰'[shade]}{'船塔石灯币鼓筝叶环瓶'[number]}",
                    "keywords_en": [thing, colour],
                    "keywords_zh": ["物"],
                }
            )
    rows[0] |= changes
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pyarrow.parquet")
    return write_table(tmp_path_factory.mktemp("emoji") / "emoji.parquet")


@pytest.fixture(scope="module")
def found(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    cache = tmp_path_factory.mktemp("cache")
    return hard_pairs_emoji.run(seed=1, data=str(table), cache=str(cache), **SETTINGS), cache


def test_variants_are_one_concept() -> None:
    names = ["red heart", "blue heart", "man pilot", "woman pilot", "one o’clock", "six-thirty", "ship"]
    points = ["2764", "1f499", "1f468-200d-2708", "1f469-200d-2708", "1f550", "1f561", "1f6a2"]
    concepts = concepts_of(points, names)
    assert concepts[0] == concepts[1]
    assert concepts[2] == concepts[3]
    assert concepts[4] == concepts[5]
    assert len(set(concepts)) == 4


def test_no_concept_is_on_both_sides(table: Path) -> None:
    emoji = read_emoji(table, 24)
    seen, held = split_concepts(emoji, 0.2, 3)
    assert len(held) == 8
    assert len(seen) == 32
    assert not {one.concept for one in seen} & {one.concept for one in held}
    assert [one.key for one in split_concepts(emoji, 0.2, 3)[1]] == [one.key for one in held]
    assert [one.key for one in split_concepts(emoji, 0.2, 4)[1]] != [one.key for one in held]


def test_a_view_is_decided_by_its_stream_and_keeps_the_picture(table: Path) -> None:
    sheet = read_emoji(table, 24)[0].sheet
    assert sheet.shape == (48, 24, 3)
    first, again, other = (view(sheet, np.random.default_rng(seed), 16) for seed in (1, 1, 2))
    assert first.shape == (16, 16, 3)
    assert (first == again).all()
    assert (first != other).any()
    # With no change but the background, what is opaque is what was drawn.
    still = view(sheet, np.random.default_rng(3), 24, strength=0.0)
    opaque = sheet[24:, :, 0] == 255
    inside = opaque & np.roll(opaque, 2, 0) & np.roll(opaque, -2, 0) & np.roll(opaque, 2, 1) & np.roll(opaque, -2, 1)
    assert inside.any()
    assert np.abs(still[inside].astype(int) - sheet[:24][inside]).max() <= 2


def test_captions_name_the_picture_in_both_languages(table: Path) -> None:
    one = read_emoji(table, 24)[0]
    assert one.captions("en")[:3] == ["red ship", "a picture of red ship", "an emoji of red ship"]
    assert all("红船" in said for said in one.captions("zh"))


def test_a_broken_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_emoji(tmp_path / "absent.parquet", 24)
    with pytest.raises(DataError, match="picture of '30000'"):
        read_emoji(write_table(tmp_path / "broken.parquet", image=b"no picture"), 24)
    pyarrow.parquet.write_table(pyarrow.table({"codepoints": ["1"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="lacks the columns image"):
        read_emoji(tmp_path / "other.parquet", 24)


def test_every_arm_is_compared_with_plain_training(found: tuple[dict[str, Any], Path]) -> None:
    results = json.loads(json.dumps(found[0]))
    assert results["missing"] == []
    assert set(results["arms"]) == ARMS | {"base"}
    for name, row in results["arms"].items():
        assert row["n"] == 1
        assert row["scores"]["held"]["r1"] <= 100
        difference = row["difference"]["seen.r1"]
        assert difference["n"] == 1
        assert difference["low"] <= difference["mean"] <= difference["high"]
        plain = results["arms"]["plain"]["scores"]["seen"]["r1"]
        assert difference["mean"] == pytest.approx(row["scores"]["seen"]["r1"] - plain, abs=2e-3), name
        assert difference["by_base"] == {"0": pytest.approx(difference["mean"], abs=1e-3)}
    assert results["arms"]["plain"]["difference"]["seen.r1"]["pairs"] == [0.0]
    assert "margin_active_first" in results["arms"]["hpm"]["terms"]
    assert "margin_active_first" not in results["arms"]["plain"]["terms"]
    assert 0 < results["arms"]["hnml"]["terms"]["seeds"] <= 1


def test_differences_are_paired_by_base_and_continuation() -> None:
    def record(value: float) -> dict[str, Any]:
        scores = {"r1": value, "r5": value, "zero_shot": value}
        return {"scores": {"seen": scores, "held": scores}, "terms": {}, "cpu_seconds": 1.0}

    plain = {(0, 0): 10.0, (0, 1): 20.0, (1, 0): 30.0, (1, 1): 40.0}
    gains = {(0, 0): 1.0, (0, 1): 2.0, (1, 0): 3.0}  # one run is missing: its pair does not count
    records = {f"{base} {number} plain": record(value) for (base, number), value in plain.items()}
    records |= {f"{base} {number} helip": record(plain[base, number] + gain) for (base, number), gain in gains.items()}
    arms = {name: hard_pairs_emoji.main_arms(4, 0.3)[name] for name in ("plain", "helip")}
    row = hard_pairs_emoji.summary(records, arms, {}, 2, 2, 0)["arms"]["helip"]
    difference = row["difference"]["seen.r1"]
    assert difference["pairs"] == [1.0, 2.0, 3.0]
    assert difference["mean"] == 2.0
    assert difference["by_base"] == {"0": 1.5, "1": 3.0}
    assert 1.0 <= difference["low"] < 2.0 < difference["high"] <= 3.0
    if difference["t_interval"] is not None:  # Student's t with two degrees of freedom
        assert difference["t_interval"] == pytest.approx([2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5], abs=1e-3)


def test_the_alarm_stops_training_on_lists_of_other_rows(found: tuple[dict[str, Any], Path]) -> None:
    (alarm,) = found[0]["alarm"]
    assert set(alarm) == {"mined", "random", "wrong rows"}
    assert alarm["random"]["stopped"]
    assert "does not belong to this data" in alarm["random"]["message"]


def test_kept_runs_are_not_made_again(
    table: Path, found: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    results, cache = found
    assert not list((cache / "fits").iterdir())
    monkeypatch.setattr(hard_pairs_emoji, "fit", None)
    again = hard_pairs_emoji.run(seed=1, data=str(table), cache=str(cache), **SETTINGS)
    assert again == results
    helip = hard_pairs_emoji.main_arms(4, 0.3)["helip"].facts()
    one = next(path for path in (cache / "runs").iterdir() if json.loads(path.read_text()).get("arm") == helip)
    one.unlink()
    with pytest.raises(TypeError):
        hard_pairs_emoji.run(seed=1, data=str(table), cache=str(cache), **SETTINGS)
    less = hard_pairs_emoji.run(seed=1, data=str(table), cache=str(cache), **SETTINGS, limit_minutes=0)
    assert [name.split()[-1] for name in less["missing"]] == ["helip"]
    assert less["arms"]["helip"]["n"] == 0


def test_ablations_share_what_the_main_table_has(table: Path) -> None:
    panels = hard_pairs_emoji.ablation_arms(10, 0.3, 1263)
    assert set(panels) == {"k", "p", "weight", "margin", "candidates"}
    main = hard_pairs_emoji.main_arms(10, 0.3)
    for panel, arms in panels.items():
        assert main["helip"].facts() in [arm.facts() for arm in arms.values()], panel
    assert panels["weight"]["gamma=0"].facts() == main["hpm"].facts()


def test_bad_settings_are_refused(table: Path) -> None:
    with pytest.raises(UsageError, match="unknown arm magic"):
        hard_pairs_emoji.run(data=str(table), arms="plain,magic")
    with pytest.raises(ConfigError, match="nothing to compare"):
        hard_pairs_emoji.run(data=str(table), bases=0)
    with pytest.raises(DataError, match="nothing to hold out"):
        hard_pairs_emoji.run(data=str(table), limit=4, **{**SETTINGS, "held_share": 0.1})


def test_the_picture_has_a_panel_for_each_table(found: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    hard_pairs_emoji.plot({"results": found[0]}, tmp_path / "deep" / "plot.png")
    assert (tmp_path / "deep" / "plot.png").stat().st_size > 5000


@pytest.mark.skipif(not DATA.is_file(), reason="the emoji file is not here")
def test_the_real_file_splits_by_concept() -> None:
    emoji = read_emoji(DATA, 48)
    seen, held = split_concepts(emoji, 0.1, 0)
    assert len(seen) + len(held) == 1403
    assert 100 <= len(held) <= 141
    hearts = {one.concept for one in emoji if one.names["en"] in ("red heart", "blue heart", "orange heart")}
    assert len(hearts) == 1
    assert emoji_pairs.fingerprint(held) != emoji_pairs.fingerprint(seen)
