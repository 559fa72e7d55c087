"""Storyboards: one self-contained page, one sheet, nothing that runs."""

import re

import numpy as np
import pytest
from PIL import Image, ImageFont

from huaben import storyboard
from huaben.errors import DataError
from huaben.session import Session, run_turn
from huaben.stages.embedded.oracle import RendererPainter
from huaben.stations import Stations
from huaben.storyboard import caption_font, write_storyboard
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


def test_chinese_captions_are_left_out_where_no_font_has_them(folder, monkeypatch):
    monkeypatch.setattr(storyboard, "chinese_font", lambda: None)
    board = write_storyboard(folder)
    assert board.captions_left_out
    assert "没有找到含中文的字体" in board.html.read_text(encoding="utf-8")
    assert caption_font("1. 猫") is None
    assert isinstance(caption_font("1. cat"), ImageFont.FreeTypeFont)


def test_latin_captions_need_no_font(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(storyboard, "chinese_font", lambda: None)
    turns = [turn for turn in storyboard.read_turns(folder) if turn["turn"] == 1]
    assert storyboard.contact_sheet(folder, turns)[1] is False


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="no turns"):
        write_storyboard(tmp_path)


def test_long_captions_are_wrapped_and_cut():
    font = ImageFont.load_default(15)
    text = storyboard._wrap("word " * 60 + "猫" * 60, font, 120)
    lines = text.split("\n")
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert all(font.getlength(line) <= 130 for line in lines)
