"""Captioned pictures in memory and in files: what is kept, what is left out and why, and that rows never shift."""

import copy
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from huaben.clip.dataset import ArrayPairs, Caption, open_pairs
from huaben.clip.dataset_captions import judge_caption, language_of
from huaben.clip.dataset_pictures import decode_image, probe_image
from huaben.errors import ConfigError, DataError, ShapeError


def plain(value: int, size: int = 8) -> np.ndarray:
    return np.full((size, size, 3), value, np.uint8)


def encoded(picture: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


def png(value: int, size: int = 8) -> bytes:
    return encoded(Image.fromarray(plain(value, size)))


def folder_of(root: Path, pictures: dict[str, bytes], captions: dict[str, str]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, data in pictures.items():
        (root / name).write_bytes(data)
    for name, text in captions.items():
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a red fox", "en"),
        ("火红的狐狸", "zh"),
        ("OK手势", "zh"),
        ("T恤衫", "zh"),
        ("a door with the sign 福", "en"),
        ("don't look", "en"),
        ("кошка", "other"),
        ("قطة", "other"),
        ("ネコ", "other"),
        ("赤い狐", "other"),  # kana among Han: Japanese
        ("고양이", "other"),
        ("ＡＢＣ", "en"),  # full width
        ("café", "en"),
        ("123 45%", None),
        ("🦊🦊", None),
        ("…!?", None),
        ("", None),
    ],
)
def test_language_is_told_by_script(text: str, language: str | None) -> None:
    assert language_of(text) == language


@given(st.text(max_size=60))
def test_every_text_gets_a_caption_or_a_reason(text: str) -> None:
    caption, problem = judge_caption(text)
    assert (caption is None) == bool(problem)
    if caption is not None:
        assert caption.text and caption.text == " ".join(text.split())


def test_latin_letters_in_a_chinese_column_are_chinese() -> None:
    assert judge_caption("DVD", "name_zh")[0] == Caption("DVD", "zh")
    assert judge_caption("DVD", "name_en")[0] == Caption("DVD", "en")
    assert judge_caption("狐狸", "name_en")[0] == Caption("狐狸", "zh")
    assert judge_caption("DVD", "zhanghao")[0] == Caption("DVD", "en")
    assert judge_caption("лиса", "zh.txt")[0] == Caption("лиса", "other")


def test_transparency_is_composed_over_the_background() -> None:
    data = encoded(Image.new("RGBA", (8, 8), (200, 0, 0, 0)))
    assert probe_image(data)
    assert (decode_image(data) == 255).all()
    assert (decode_image(data, (10, 20, 30)) == (10, 20, 30)).all()
    half = encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 128)))
    assert np.abs(decode_image(half, (0, 0, 0))[0, 0].astype(int) - (128, 0, 0)).max() <= 1


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    picture = (
        Image.fromarray(np.full((8, 9), 128 * 256, np.uint16))
        if mode == "I;16"
        else Image.new("RGB", (9, 8), (128, 128, 128)).convert(mode, palette=Image.Palette.ADAPTIVE)
    )
    image = decode_image(encoded(picture, kind))
    assert image.shape == (8, 9, 3) and image.dtype == np.uint8
    assert mode == "1" or np.abs(image.astype(int) - 128).max() <= 4


def test_palette_transparency_is_seen() -> None:
    picture = Image.new("P", (8, 8), 0)
    picture.putpalette([255, 0, 0] * 256)
    data = encoded(picture, transparency=0)
    assert probe_image(data, decode=False)
    assert (decode_image(data) == 255).all()


def test_pictures_are_turned_upright() -> None:
    picture = Image.new("RGB", (16, 8), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    assert decode_image(encoded(picture, "JPEG", exif=exif)).shape == (16, 8, 3)
    assert decode_image(encoded(picture, "JPEG")).shape == (8, 16, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "not a PNG"),
        (encoded(Image.effect_noise((64, 64), 80).convert("RGB"))[:2000], "damaged"),
        (encoded(Image.effect_noise((64, 64), 80).convert("RGB"), "JPEG")[:900], "damaged"),
        (png(3, 4), "4x4 pixels"),
    ],
)
def test_bad_pictures_have_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        probe_image(data)


def test_bad_pictures_are_skipped_counted_and_listed(tmp_path: Path) -> None:
    noise = encoded(Image.effect_noise((64, 64), 80).convert("RGB"))
    pictures = {"a.png": png(1), "b.png": b"junk", "c.png": png(3), "d.png": noise[:2000], "e.png": png(5)}
    captions = {f"{name}.txt": f"picture {name}" for name in "abcde"}
    data = open_pairs(folder_of(tmp_path / "set", pictures, captions))
    assert data.keys() == ["a.png", "c.png", "e.png"]
    assert [int(data.image(row)[0, 0, 0]) for row in range(3)] == [1, 3, 5]
    assert [data.captions(row)[0].text for row in range(3)] == ["picture a", "picture c", "picture e"]
    skipped = dict(data.report.skipped)
    assert set(skipped) == {"b.png", "d.png"} and "not a PNG" in skipped["b.png"] and "damaged" in skipped["d.png"]
    assert data.report.read == 3 and data.report.found == 5
    lines = "\n".join(data.report.lines())
    assert "3 of 5" in lines and "b.png" in lines and "d.png" in lines


def test_header_check_leaves_damage_for_the_moment_of_reading(tmp_path: Path) -> None:
    noise = encoded(Image.effect_noise((64, 64), 80).convert("RGB"))
    pictures = {"a.png": noise[:2000], "b.png": b"junk", "c.png": png(3)}
    root = folder_of(tmp_path / "set", pictures, {f"{name}.txt": name for name in "abc"})
    header = open_pairs(root, check="header")
    assert header.keys() == ["a.png", "c.png"]
    with pytest.raises(DataError, match=r"'a\.png'.*damaged"):
        header.image(0)
    unchecked = open_pairs(root, check="none")
    assert len(unchecked) == 3 and unchecked.image(2)[0, 0, 0] == 3
    with pytest.raises(DataError, match=r"b\.png"):
        unchecked.image(1)


def test_captions_without_words_are_left_out_and_listed(tmp_path: Path) -> None:
    captions = {"a.txt": "one\n123\n二\n", "b.txt": "\n \n", "c.txt": "🦊\n", "d.txt": "four"}
    root = folder_of(tmp_path / "set", {f"{name}.png": png(index) for index, name in enumerate("abcd")}, captions)
    data = open_pairs(root)
    assert data.captions(0) == (Caption("one", "en"), Caption("二", "zh"))
    assert data.keys() == ["a.png", "d.png"]
    assert data.report.captions_skipped == (("a.png", "caption in no known script: '123'"),)
    assert dict(data.report.skipped)["c.png"] == "caption in no known script: '🦊'"
    assert "b.png" in dict(data.report.skipped)
    assert data.languages() == {"en": 2, "zh": 1, "other": 0}


def test_nothing_usable_is_an_error_with_reasons(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", {"a.png": b"x", "b.png": png(1)}, {"a.txt": "a", "b.txt": "1"})
    with pytest.raises(DataError, match=r"none of 2 pairs.*not a PNG.*no known script"):
        open_pairs(root)


def test_transparent_pictures_are_counted(tmp_path: Path) -> None:
    pictures = {"a.png": encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0))), "b.png": png(1)}
    root = folder_of(tmp_path / "set", pictures, {"a.txt": "a", "b.txt": "b"})
    data = open_pairs(root, background=(1, 2, 3))
    assert data.report.transparent == 1 and any("transparency" in line for line in data.report.lines())
    assert (data.image(0) == (1, 2, 3)).all()
    assert open_pairs(root, check="none").report.transparent == 0


@pytest.mark.parametrize(
    "settings",
    [{"check": "all"}, {"background": (0, 0, 256)}, {"background": (0, 0)}, {"duplicates": "keep"}, {"threads": 0}],
)
def test_impossible_settings_are_refused(tmp_path: Path, settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        open_pairs(tmp_path, **settings)  # type: ignore[arg-type]


def test_progress_counts_rows(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", {f"{n}.png": png(n) for n in range(5)}, {f"{n}.txt": f"n {n}" for n in range(5)})
    seen: list[int] = []
    open_pairs(root, progress=seen.append, threads=2)
    assert seen == [5]


def test_stored_pairs_can_be_sent_to_other_processes(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", {"a.png": png(1)}, {"a.txt": "one\n二"})
    data = open_pairs(root)
    twin = copy.deepcopy(data)  # takes the state that pickle takes
    assert twin.key(0) == "a.png" and twin.captions(0) == data.captions(0)
    assert (twin.image(0) == data.image(0)).all()


def test_array_pairs_hold_what_they_are_given() -> None:
    data = ArrayPairs([plain(1), plain(2, 9)], ["one", ["two", Caption("2", "other")]], ["x", "y"])
    assert len(data) == 2 and data.keys() == ["x", "y"] and data.report.read == 2
    assert data.captions(0) == (Caption("one", "en"),)
    assert data.captions(1) == (Caption("two", "en"), Caption("2", "other"))
    assert data.image(1).shape == (9, 9, 3)
    with pytest.raises(IndexError):
        data.key(2)


def test_array_pairs_are_named_by_content() -> None:
    first = ArrayPairs([plain(1), plain(2), plain(2)], ["one", "two", "two"])
    turned = ArrayPairs([plain(2), plain(1)], ["two", "one"])
    assert first.key(0) == turned.key(1) and first.key(1) == turned.key(0)
    assert len(set(first.keys())) == 3  # twins are told apart
    assert ArrayPairs([plain(1)], ["other words"]).key(0) != first.key(0)


def test_array_pairs_refuse_bad_input() -> None:
    with pytest.raises(DataError, match="2 images, 1 captions"):
        ArrayPairs([plain(1), plain(2)], ["one"])
    with pytest.raises(DataError, match="'x'"):
        ArrayPairs([plain(1), plain(2)], ["one", "two"], ["x", "x"])
    with pytest.raises(DataError, match="no known script"):
        ArrayPairs([plain(1)], ["123"])
    with pytest.raises(DataError, match="no caption"):
        ArrayPairs([plain(1)], [[]])
    with pytest.raises(ShapeError, match="picture 1"):
        ArrayPairs([plain(1), np.zeros((8, 8), np.uint8)], ["one", "two"])
    with pytest.raises(DataError):
        ArrayPairs([], [])


def test_fingerprint_follows_keys_and_captions() -> None:
    images = [plain(1), plain(2)]
    base = ArrayPairs(images, ["one", "two"], ["x", "y"]).fingerprint()
    assert ArrayPairs(images, ["one", "two"], ["x", "y"], name="other").fingerprint() == base
    assert ArrayPairs(images, ["one", "too"], ["x", "y"]).fingerprint() != base
    assert ArrayPairs(images, ["one", "two"], ["x", "z"]).fingerprint() != base
    assert ArrayPairs(images[::-1], ["two", "one"], ["y", "x"]).fingerprint() != base
    assert ArrayPairs(images, [["one", "more"], "two"], ["x", "y"]).fingerprint() != base


def test_subset_keeps_keys() -> None:
    data = ArrayPairs([plain(n) for n in range(5)], [f"number {n} a" for n in range(5)], list("abcde"))
    part = data.subset([3, 1])
    assert part.keys() == ["d", "b"] and part.image(0)[0, 0, 0] == 3 and len(part) == 2
    assert part.subset([1]).keys() == ["b"]
    for rows in ([], [5], [-1], [1, 1]):
        with pytest.raises(DataError):
            data.subset(rows)


def test_split_goes_by_key_alone() -> None:
    keys = [f"k{n}" for n in range(200)]
    data = ArrayPairs([plain(1)] * 200, ["words"] * 200, keys)
    train, held = data.split(0.25, seed=3)
    assert set(train.keys()) | set(held.keys()) == set(keys) and not set(train.keys()) & set(held.keys())
    assert 25 <= len(held) <= 75
    less = data.subset(range(199, 20, -1)).split(0.25, seed=3)[1]
    assert set(less.keys()) == {key for key in held.keys() if int(key[1:]) > 20}
    assert set(data.split(0.25, seed=4)[1].keys()) != set(held.keys())
    with pytest.raises(ConfigError):
        data.split(1.0)
