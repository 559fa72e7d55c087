"""Captions and the language their script tells."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Language = Literal["en", "zh", "other"]
LANGUAGES: tuple[Language, ...] = ("en", "zh", "other")


@dataclass(frozen=True, slots=True)
class Caption:
    """One caption: its text, and the language its script tells (see :func:`language_of`)."""

    text: str
    language: Language


def judge_caption(text: str, column: str = "") -> tuple[Caption | None, str]:
    """Return the caption, or None and why it cannot be used: it is empty, or has letters of no script.

    Runs of white space become one space. A text in Latin letters counts as Chinese in a column that says so
    (``name_zh``: "DVD"), since written Chinese borrows them; otherwise the script alone decides.
    """
    clean = " ".join(text.split())
    if not clean:
        return None, "empty caption"
    language = language_of(clean)
    if language is None:
        shown = clean if len(clean) <= 40 else clean[:40] + "…"
        return None, f"caption in no known script: {shown!r}"
    return Caption(clean, "zh" if language == "en" and is_chinese_column(column) else language), ""


def is_chinese_column(column: str) -> bool:
    """Return whether a column's name ends in a mark of Chinese: ``caption_zh``, ``zh.txt``, ``text-zh-cn``."""
    return bool({"zh", "cn", "chinese", "hans", "hant"} & set(re.split(r"[^a-z]+", column.lower())))


def language_of(text: str) -> Language | None:
    """Return the language a text's script tells: "zh" for Han, "en" for Latin, "other" for any other script.

    Mixed texts go by the larger part, Han characters against words in other scripts; kana or hangul among Han make it
    "other". None for a text without letters: digits, punctuation, emoji. The script is all that is looked at: French is
    "en" here.
    """
    han = east = 0
    latin = other = 0
    previous = ""
    for character in unicodedata.normalize("NFKC", text):
        script = script_of(character)
        if script == "han":
            han += 1
        elif script == "east":
            east += 1
        elif script == "latin":
            latin += previous != "latin"
        elif script == "other":
            other += previous != "other"
        if script != "mark":  # an accent or apostrophe does not end a word
            previous = script
    if not (han or east or latin or other):
        return None
    if 3 * east > han:
        other, han = other + east + han, 0
    if han and han >= max(latin, other):
        return "zh"
    return "en" if latin and latin >= other else "other"


@lru_cache(maxsize=4096)
def script_of(character: str) -> str:
    """Return "han", "east" (kana, hangul), "latin", "other", "mark" (inside words) or "" of one character."""
    if not character.isalpha():
        return "mark" if unicodedata.category(character).startswith("M") or character in "'’-" else ""
    name = unicodedata.name(character, "")
    if name.startswith("CJK"):
        return "han"
    if name.startswith(("HIRAGANA", "KATAKANA", "HANGUL")):
        return "east"
    return "latin" if name.startswith("LATIN") else "other"
