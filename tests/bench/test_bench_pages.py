"""The fixed pages and the labelled crops: what is counted, and that the files that ship are whole."""

import json
from pathlib import Path

import numpy as np
import pytest

from huaben.bench import labels, pages
from huaben.stages.embedded.oracle import RendererPainter, RendererReader
from huaben.stages.embedded.screenwriter import Screenwriter

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "pictures"


def test_pages_drawn_exactly_are_all_right(monkeypatch, tmp_path):
    painter = RendererPainter()
    monkeypatch.setattr(pages, "load_painter", lambda folder: painter)
    monkeypatch.setattr(pages, "load_detector", lambda: RendererReader(painter))
    results = pages.run(size=64, steps=1, out=tmp_path)
    assert results["pages"]["mean"] == results["characters"]["mean"] == 1.0
    assert results["warned"]["mean"] == 0.0
    assert [row["message"] for row in results["rows"]] == list(pages.PAGES)
    assert (tmp_path / "sheet.jpg").stat().st_size > 10_000


def test_every_page_is_understood():
    for message in pages.PAGES:
        assert Screenwriter().read(message).page is not None, message


def test_a_sheet_has_six_in_a_row():
    sheet = pages.contact_sheet([np.full((4, 5, 3), number, np.uint8) for number in range(7)])
    assert sheet.shape == (8, 30, 3)
    assert sheet[0, 29, 0] == 5 and sheet[4, 0, 0] == 6 and sheet[4, 5, 0] == 255


@pytest.mark.parametrize("size", [[40, 80], [80, 40], [30, 30]])
def test_a_crop_comes_back_without_the_empty_part_of_its_cell(size):
    grid = np.zeros((2 * labels.CELL, labels.COLUMNS * labels.CELL, 3), np.uint8)
    number = labels.COLUMNS + 3
    scale = labels.CELL / max(size)
    width, height = (round(side * scale) for side in size)
    grid[labels.CELL : labels.CELL + height, 3 * labels.CELL : 3 * labels.CELL + width] = 200
    crop = labels.cell(grid, number, size)
    assert crop.shape == (height, width, 3) and crop.min() == 200


def test_the_labels_are_two_passes_over_every_crop():
    entries = json.loads((FOLDER / "labels.json").read_text(encoding="utf-8"))
    assert len(entries) >= 300
    assert all(len(entry["seen"]) == 2 and min(entry["size"]) > 0 for entry in entries)
