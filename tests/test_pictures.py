"""Picture files: labels that survive, limits that hold."""

import io

import numpy as np
import pytest
from PIL import Image
from PIL import Image as PillowImage

from huaben import pictures
from huaben.errors import DataError
from huaben.pictures import decode_picture, infotext, read_metadata, read_picture, write_picture

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_pixels_and_metadata_survive(tmp_path):
    values = {"prompt": "海滩上的猫 <&>", "seed": 7, "size": [20, 30], "steps": 4, "negative": "a dog"}
    write_picture(tmp_path / "a.png", IMAGE, values)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), IMAGE)
    assert read_metadata(tmp_path / "a.png") == {"version": 1, **values}


def test_no_metadata_writes_no_chunk(tmp_path):
    write_picture(tmp_path / "a.png", IMAGE)
    assert read_metadata(tmp_path / "a.png") == {}
    assert b"huaben" not in (tmp_path / "a.png").read_bytes()


def test_infotext_is_what_other_programs_read():
    text = infotext({"prompt": "a cat", "negative": "a dog", "seed": 7, "size": [96, 128], "steps": 20})
    assert text == "a cat\nNegative prompt: a dog\nSteps: 20, Seed: 7, Size: 128x96"


def test_transparency_lies_on_white_and_exif_turns_upright(tmp_path):
    clear = np.zeros((4, 6, 4), np.uint8)
    Image.fromarray(clear).save(tmp_path / "a.png")
    assert (read_picture(tmp_path / "a.png") == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(IMAGE).save(tmp_path / "b.jpg", exif=exif)
    assert read_picture(tmp_path / "b.jpg").shape == (30, 20, 3)


def test_longer_side_is_limited(tmp_path):
    Image.new("RGB", (300, 100), (255, 0, 0)).save(tmp_path / "a.webp")
    assert read_picture(tmp_path / "a.webp", max_side=60).shape == (20, 60, 3)


def test_too_many_bytes_or_pixels_are_refused(tmp_path, monkeypatch):
    write_picture(tmp_path / "a.png", IMAGE)
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "MAX_PIXELS", 599)
        with pytest.raises(DataError, match="30x20 pixels"):
            read_picture(tmp_path / "a.png")
    monkeypatch.setattr(pictures, "MAX_FILE_BYTES", 100)
    with pytest.raises(DataError, match="20 MB"):
        read_picture(tmp_path / "a.png")


def test_sixteen_bit_grey_keeps_its_256_levels():
    ramp = np.linspace(0, 65535, 16 * 256).astype(np.uint16).reshape(16, 256)
    buffer = io.BytesIO()
    PillowImage.fromarray(ramp).save(buffer, "PNG")
    found = decode_picture(buffer.getvalue())
    assert np.array_equal(found, np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, axis=2))
