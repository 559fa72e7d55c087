"""Announcements: what happened that the user should know, in English and Chinese.

A room that falls back, retries or leaves something out returns a :class:`Notice`; the text is chosen where it is shown.
One catalogue holds both languages, with the same keys and the same placeholders.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from typing import Literal

from .errors import ConfigError

Language = Literal["en", "zh"]
"""The languages that huaben itself speaks."""

NOTICES: dict[str, dict[str, str]] = {
    "en": {
        "attempts_used": "The picture was painted {count} times before it was kept.",
        "background_wrong": "The background should be {expected} but looks like {found}.",
        "best_of_attempts": "None of {count} attempts shows everything as asked; the best one is kept.",
        "character_absent": "{name} was not found in the picture.",
        "character_accessory": "{name} should have {expected} but seems to have {found}.",
        "character_colour": "{name} should be {expected} but looks {found}.",
        "character_expression": "{name} should look {expected} but looks {found}.",
        "character_facing": "{name} should be {expected} but seems to be {found}.",
        "character_misplaced": "{name} is not where it was planned.",
        "character_species": "{name} should be a {expected} but looks like a {found}.",
        "cuda_missing": "No GPU was found; painting on the CPU.",
        "guidance_off": "{name} changed too much to be traced from the earlier picture, so it was drawn freely.",
        "negative_ignored": "The painter works without guidance here, so what to leave out was not used.",
        "picture_empty": "Nothing of the embedded world was recognised in the picture.",
        "painter_no_boxes": "This painter cannot place characters, so they stand where it likes.",
        "painter_no_edge_map": "This painter cannot follow edges, so they were not used.",
        "painter_no_masks": "This painter cannot keep parts of a picture, so all of it may change.",
        "painter_no_negative": "This painter cannot be told what to leave out, so that was not used.",
        "painter_no_references": "This painter cannot follow earlier pictures, so characters may look different.",
        "picture_missing": "The picture {name} is no longer in the story's folder.",
        "picture_partly": "Only the {count} characters that were recognised with confidence are listed.",
        "prompt_cut": "The description is longer than the painter reads; its end was left out.",
        "reference_unreadable": "The earlier picture of {name} cannot be read; it is drawn as a new individual.",
        "torn_line": "The last line of turns.jsonl was incomplete and was removed; all earlier turns are kept.",
        "too_many_characters": "At most {limit} characters fit in one picture; {names} were left out.",
        "unverified": "The picture was not read back, so the characters in it are unchecked.",
    },
    "zh": {
        "attempts_used": "这张图画了 {count} 次才定稿。",
        "background_wrong": "背景应该是{expected}，看起来却是{found}。",
        "best_of_attempts": "{count} 次尝试都没有完全符合要求，保留了最好的一张。",
        "character_absent": "画面里没有找到{name}。",
        "character_accessory": "{name}应该戴着：{expected}，看起来却是：{found}。",
        "character_colour": "{name}应该是{expected}，看起来却是{found}。",
        "character_expression": "{name}应该是{expected}的样子，看起来却是{found}的样子。",
        "character_facing": "{name}应该{expected}，看起来却是{found}。",
        "character_misplaced": "{name}不在计划的位置。",
        "character_species": "{name}应该是{expected}，看起来却像{found}。",
        "cuda_missing": "没有找到 GPU，改用 CPU 作画。",
        "guidance_off": "{name}变化太大，无法沿用之前的画面，因此重新画了。",
        "negative_ignored": "此时画师不使用引导，“不要画什么”没有起作用。",
        "picture_empty": "没有在图里认出画本世界里的东西。",
        "painter_no_boxes": "这位画师不能安排位置，角色站在哪里由它决定。",
        "painter_no_edge_map": "这位画师不能沿着线稿画，线稿没有用上。",
        "painter_no_masks": "这位画师不能只改一部分，整张图都可能变。",
        "painter_no_negative": "这位画师不能听从“不要画什么”，这一项没有用上。",
        "painter_no_references": "这位画师不能参照之前的画面，角色的样子可能会变。",
        "picture_missing": "图片 {name} 已经不在故事文件夹里了。",
        "picture_partly": "只列出了有把握认出的 {count} 个角色。",
        "prompt_cut": "描述太长，超出画师能读的长度，结尾部分没有用上。",
        "reference_unreadable": "读不出{name}之前的样子，只能当作新的个体来画。",
        "torn_line": "turns.jsonl 的最后一行不完整，已经删去；之前的回合都在。",
        "too_many_characters": "一张图最多画 {limit} 个角色，没有画：{names}。",
        "unverified": "没有检查画面，因此不能确认画里的角色。",
    },
}


@dataclass(frozen=True, slots=True)
class Notice:
    """One announcement.

    Attributes:
        code: key of :data:`NOTICES`.
        values: what its placeholders stand for, as pairs; a value may be one text or a text per language.
    """

    code: str
    values: tuple[tuple[str, str | int | tuple[str, str]], ...] = field(default=())

    def text(self, language: Language) -> str:
        """Return the announcement in ``language``."""
        index = 0 if language == "en" else 1
        values = {name: value[index] if isinstance(value, tuple) else value for name, value in self.values}
        return NOTICES[language][self.code].format(**values)


def notice(code: str, **values: str | int | tuple[str, str]) -> Notice:
    """Return a checked announcement.

    Args:
        code: key of :data:`NOTICES`.
        **values: the placeholders; a pair of texts means (English, Chinese).

    Raises:
        ConfigError: for an unknown code or other placeholders than the text has.
    """
    if code not in NOTICES["en"]:
        raise ConfigError(f"notice {code!r} is not in the catalogue", hint=f"one of {', '.join(sorted(NOTICES['en']))}")
    expected = placeholders(NOTICES["en"][code])
    if expected != set(values):
        raise ConfigError(f"notice {code!r} takes {sorted(expected)}, found {sorted(values)}")
    return Notice(code, tuple(sorted(values.items())))


def placeholders(text: str) -> set[str]:
    """Return the names of a format string's placeholders."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}
