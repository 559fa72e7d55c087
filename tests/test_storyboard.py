"""Storyboards: one self-contained page, one sheet, nothing that runs."""

import re

import numpy as np
import pytest
from PIL import Image

from huaben import storyboard
from huaben.errors import DataError
from huaben.session import Session, run_turn
from huaben.stages.embedded.oracle import RendererPainter
from huaben.stations import Stations
from huaben.storyboard import write_storyboard
from huaben.theater.performance import PerformanceConfig


@pytest.fixture
def folder(tmp_path):
    painter = RendererPainter()
    stations = Stations(make_painter=lambda: painter, make_reader=lambda: None)
    config = PerformanceConfig(size=(64, 96), steps=1)
    with Session.open(tmp_path / "s", seed=1, config=config, stations=stations) as session:
        run_turn(session, "a red cat on the beach")
        run_turn(session, "把背景换成雪地")
        run_turn(session, 'hello <script>alert("x")</script>')
    return tmp_path / "s"


def test_page_holds_every_turn_and_needs_nothing_else(folder):
    board = write_storyboard(folder)
    text = board.html.read_text(encoding="utf-8")
    assert text.count("<li>") == 3
    assert text.count("data:image/png;base64,") == 2
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "把背景换成雪地" in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_labels_come_in_both_languages():
    assert all(len(label) == 2 and all(label) for label in storyboard.LABELS.values())


def test_sheet_shows_every_picture(folder):
    board = write_storyboard(folder)
    with Image.open(board.sheet) as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape[1] > 2 * storyboard.SHEET_CELL
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_chinese_captions_are_drawn_without_any_system_font(folder, monkeypatch):
    monkeypatch.setattr(storyboard, "system_font", lambda: None)
    text, font = storyboard.readable("1. 画一只戴眼镜的鲸鱼，在海里。")
    assert text == "1. 画一只戴眼镜的鲸鱼，在海里。"
    marks = {bytes(font.getmask(character)) for character in "画只戴眼镜鲸鱼海"}
    assert len(marks) == 8  # every character has its own glyph, none is the empty box


def test_a_character_that_no_font_has_is_a_geta_mark(monkeypatch):
    monkeypatch.setattr(storyboard, "system_font", lambda: None)
    assert storyboard.readable("猫\U0002a6a5狗")[0] == "猫〓狗"


def test_a_system_font_is_asked_for_what_the_shipped_one_lacks(monkeypatch):
    monkeypatch.setattr(storyboard, "system_font", lambda: str(storyboard.font_file()))
    assert storyboard.readable("猫\U0002a6a5")[0] == "猫\U0002a6a5"


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="no turns"):
        write_storyboard(tmp_path)


def test_long_captions_are_wrapped_and_cut():
    font = storyboard._font(str(storyboard.font_file()))
    text = storyboard._wrap("word " * 60 + "猫" * 60, font, 120)
    lines = text.split("\n")
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert all(font.getlength(line) <= 130 for line in lines)
