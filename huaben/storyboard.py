"""A conversation as one page and one picture, from the files of a session folder.

``storyboard.html`` is a single file with its pictures inside, readable on a phone and at a desk, light and dark.
``storyboard.png`` is a contact sheet. Its captions are drawn with a font that comes with huaben; a character that it does
not have is drawn with a font of the system, and as 〓 where there is none.
"""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from .errors import DataError
from .files import write_bytes
from .pictures import png_bytes, read_picture
from .session import read_turns

HTML_NAME, SHEET_NAME = "storyboard.html", "storyboard.png"

LABELS: dict[str, tuple[str, str]] = {
    "title": ("A picture story", "画本"),
    "you": ("You", "你"),
    "huaben": ("huaben", "话本"),
    "characters": ("Characters", "角色"),
    "background": ("Background", "背景"),
    "prompt": ("Drawing prompt", "作画提示"),
    "seed": ("Seed", "种子"),
    "seconds": ("Seconds", "用时（秒）"),
    "warnings": ("Notes", "说明"),
    "turn": ("Turn", "回合"),
    "draw": ("drawn", "作画"),
    "recall": ("shown again", "重看"),
    "chat": ("talk", "聊天"),
    "ask": ("question", "询问"),
    "refuse": ("declined", "婉拒"),
    "picture": ("Picture of turn {turn}", "第 {turn} 回合的画"),
}

_STYLE = """
:root { color-scheme: light dark; --ink: #2a211c; --paper: #f7f1e3; --card: #fffdf7; --line: #d9cbb0; --red: #a63a2b; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #efe6d6; --paper: #1d1916; --card: #29231f; --line: #4a4038; --red: #e58a76; }
}
* { box-sizing: border-box; }
body { margin: 0; padding: 1rem; background: var(--paper); color: var(--ink); line-height: 1.55;
  font-family: system-ui, "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "WenQuanYi Micro Hei", sans-serif; }
header, main { max-width: 72rem; margin: 0 auto; }
h1 { font-size: 1.6rem; margin: 0.5rem 0 1.2rem; border-bottom: 3px double var(--red); padding-bottom: 0.4rem; }
h1 span { color: var(--red); margin-left: 0.6rem; }
ol { list-style: none; padding: 0; margin: 0; display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
li { background: var(--card); border: 1px solid var(--line); border-radius: 0.6rem; overflow: hidden;
  display: flex; flex-direction: column; }
img { width: 100%; height: auto; display: block; }
.talk { padding: 0.8rem 1rem; overflow-wrap: anywhere; }
.talk p { margin: 0.3rem 0; }
.who { color: var(--red); font-weight: 600; }
.meta { margin-top: auto; padding: 0 1rem 0.8rem; font-size: 0.85rem; overflow-wrap: anywhere; }
summary { cursor: pointer; padding: 0.3rem 0; }
dl { margin: 0; } dt { font-weight: 600; margin-top: 0.3rem; } dd { margin: 0; }
.note { border-left: 3px solid var(--red); padding-left: 0.6rem; }
"""

SHEET_CELL, SHEET_CAPTION, SHEET_GAP = 256, 64, 12

_FONTS = (
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "NotoSansSC-Regular.otf",
    "NotoSansSC-Regular.ttf",
    "SourceHanSansSC-Regular.otf",
    "DroidSansFallbackFull.ttf",
    "DroidSansFallback.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "STHeiti Light.ttc",
    "msyh.ttc",
    "simhei.ttf",
    "simsun.ttc",
    "uming.ttc",
    "ukai.ttc",
)
_FONT_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.fonts",
    "~/.local/share/fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "C:/Windows/Fonts",
)


@dataclass(frozen=True, slots=True)
class Storyboard:
    """The two files."""

    html: Path
    sheet: Path


def write_storyboard(folder: str | Path) -> Storyboard:
    """Write ``storyboard.html`` and ``storyboard.png`` into a session folder.

    Raises:
        DataError: if the folder has no turns, or a picture it names cannot be read.
        StoreError: if they cannot be written.
    """
    folder = Path(folder)
    turns = read_turns(folder)
    if not turns:
        raise DataError(f"{folder} has no turns yet", hint="say something first: huaben chat --out DIR")
    write_bytes(folder / SHEET_NAME, png_bytes(contact_sheet(folder, turns)))
    write_bytes(folder / HTML_NAME, page_html(folder, turns).encode("utf-8"))
    return Storyboard(folder / HTML_NAME, folder / SHEET_NAME)


def page_html(folder: Path, turns: Sequence[dict[str, Any]]) -> str:
    """Return the self-contained page; every text of the conversation is escaped."""
    cards = "\n".join(_card(folder, turn) for turn in turns)
    english, chinese = LABELS["title"]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{english} · {chinese}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{english}<span lang="zh">{chinese}</span></h1></header>\n'
        f"<main><ol>\n{cards}\n</ol></main>\n</body>\n</html>\n"
    )


def contact_sheet(folder: Path, turns: Sequence[dict[str, Any]]) -> Any:
    """Return uint8 (H, W, 3) with every drawn picture and its caption."""
    import numpy as np

    drawn = [turn for turn in turns if turn.get("image")] or list(turns[:1])
    columns = min(len(drawn), 4)
    rows = -(-len(drawn) // columns)
    step_x, step_y = SHEET_CELL + SHEET_GAP, SHEET_CELL + SHEET_CAPTION + SHEET_GAP
    sheet = PillowImage.new("RGB", (columns * step_x + SHEET_GAP, rows * step_y + SHEET_GAP), (247, 241, 227))
    pen = ImageDraw.Draw(sheet)
    for number, turn in enumerate(drawn):
        x = SHEET_GAP + number % columns * step_x
        y = SHEET_GAP + number // columns * step_y
        file = _picture_file(folder, turn)
        if file is not None:
            picture = PillowImage.fromarray(read_picture(file))
            scale = SHEET_CELL / max(picture.size)
            size = tuple(max(1, round(side * scale)) for side in picture.size)
            picture = picture.resize((size[0], size[1]), PillowImage.Resampling.LANCZOS)
            sheet.paste(picture, (x + (SHEET_CELL - size[0]) // 2, y + (SHEET_CELL - size[1]) // 2))
        caption = f"{turn['turn']}. {turn.get('message') or turn.get('reply', '')}"
        caption, font = readable(caption)
        pen.multiline_text((x, y + SHEET_CELL + 4), _wrap(caption, font, SHEET_CELL), (42, 33, 28), font, spacing=3)
    return np.asarray(sheet)


MISSING = "〓"
"""The geta mark, which stands for a character that a printer's case does not hold."""


def readable(text: str) -> tuple[str, Any]:
    """Return a caption and a font that has all of it: huaben's own, else one of the system, else 〓 for what lacks."""
    own = _font(str(font_file()))
    lacking = {character for character in text if not _has(own, character)}
    if not lacking:
        return text, own
    path = system_font()
    if path is not None:
        return text, _font(path)
    return "".join(MISSING if character in lacking else character for character in text), own


@lru_cache(maxsize=4)
def _font(path: str) -> Any:
    return ImageFont.truetype(path, 15)


@lru_cache(maxsize=8192)
def _has(font: Any, character: str) -> bool:
    """Return whether a font has a glyph; one it lacks looks like any other it lacks."""
    return character.isspace() or bytes(font.getmask(character)) != bytes(font.getmask("\U0010ffff"))


@lru_cache(maxsize=1)
def system_font() -> str | None:
    """Return the file of a font with Chinese characters: HUABEN_FONT, or one that the system has."""
    wanted = os.environ.get("HUABEN_FONT")
    if wanted and Path(wanted).is_file():
        return wanted
    found: dict[str, str] = {}
    for folder in _FONT_FOLDERS:
        for root, _, names in os.walk(os.path.expanduser(folder)):
            for name in names:
                if name in _FONTS:
                    found.setdefault(name, os.path.join(root, name))
    return next((found[name] for name in _FONTS if name in found), None)


def font_file() -> Path:
    """Return the package's own font: Latin and the common Chinese characters."""
    return Path(__file__).parent / "fonts" / "huaben-cjk.ttf"


def _picture_file(folder: Path, turn: dict[str, Any]) -> Path | None:
    """Return the file of a turn's picture; None where it has none, or somebody deleted it."""
    file = folder / _plain_name(turn["image"]) if turn.get("image") else None
    return file if file is not None and file.is_file() else None


def _card(folder: Path, turn: dict[str, Any]) -> str:
    """Return one turn as a list item."""
    picture = ""
    file = _picture_file(folder, turn)
    if file is not None:
        data = base64.b64encode(file.read_bytes()).decode("ascii")
        alt = html.escape(" · ".join(LABELS["picture"]).format(turn=turn["turn"]))
        picture = f'<img src="data:image/png;base64,{data}" alt="{alt}">\n'
    said = html.escape(str(turn.get("message") or ""))
    talk = f'<p><span class="who">{_label("you")}</span> {said}</p>' if said else ""
    action = str(turn.get("action", "chat"))
    label = _label(action) if action in LABELS else html.escape(action)
    talk += f'<p><span class="who">{_label("huaben")}</span> {html.escape(str(turn.get("reply", "")))}</p>'
    page = turn.get("page") or {}
    facts = [
        ("characters", "; ".join(f"{c['name']} ({c['id']}): {c['prompt']}" for c in page.get("characters", []))),
        ("background", page.get("background")),
        ("prompt", turn.get("prompt")),
        ("seed", turn.get("seed")),
        ("seconds", turn.get("seconds")),
        ("warnings", " ".join(map(str, turn.get("warnings") or []))),
    ]
    rows = "".join(
        f"<dt>{_label(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in facts if value not in (None, "")
    )
    summary = f"{_label('turn')} {turn['turn']} · {label}"
    return (
        f'<li>{picture}<div class="talk">{talk}</div>'
        f'<details class="meta"><summary>{summary}</summary><dl>{rows}</dl></details></li>'
    )


def _label(name: str, between: str = " · ") -> str:
    """Return a label in both languages, the Chinese marked as such."""
    english, chinese = LABELS[name]
    return f'{html.escape(english)}{between}<span lang="zh">{html.escape(chinese)}</span>'


def _plain_name(name: str) -> str:
    """Return a file name that cannot leave the folder."""
    if Path(name).name != name:
        raise DataError(f"picture {name!r} is not a plain file name", hint="restore turns.jsonl from a copy")
    return name


def _wrap(text: str, font: Any, width: int, lines: int = 3) -> str:
    """Break a caption into at most three lines, at spaces or between Chinese characters."""
    words = text.replace("\n", " ")
    result: list[str] = []
    line = ""
    for part in _pieces(words):
        if font.getlength(line + part) <= width:
            line += part
            continue
        result.append(line.rstrip())
        line = part.lstrip()
        if len(result) == lines:
            result[-1] = result[-1][:-1] + "…" if font.getlength(result[-1] + "…") > width else result[-1] + "…"
            return "\n".join(result)
    return "\n".join([*result, line.rstrip()])


def _pieces(text: str) -> list[str]:
    """Return words with their spaces; each Chinese character alone."""
    pieces: list[str] = []
    for character in text:
        if pieces and ord(character) < 0x2E80 and pieces[-1] and ord(pieces[-1][-1]) < 0x2E80 and pieces[-1][-1] != " ":
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces
