"""Sentences about scenes, in English and Chinese, from terse tags to full sentences.

Each caption comes with what it says (:class:`Caption`), so that a text encoder can be trained to bind attributes to
characters and a test can tell what a reader may expect. Families of templates are split once and for all: those of
``split="paraphrase"`` are never trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .scene import SceneCharacter, SceneGraph, place_key, size_key
from .vocabulary import Language, Term, term

CaptionSplit = Literal["train", "paraphrase"]
Facts = dict[str, str]

BACKGROUND_PHRASES: dict[str, tuple[str, str]] = {
    "beach": ("on the beach", "海滩上"),
    "snow": ("in the snow", "雪地里"),
    "forest": ("in the forest", "森林里"),
    "night": ("at night", "夜晚"),
    "meadow": ("on the meadow", "草地上"),
    "sea": ("in the sea", "大海里"),
    "desert": ("in the desert", "沙漠里"),
    "city": ("in the city", "城市里"),
    "room": ("in the room", "房间里"),
    "mountain": ("in the mountains", "山里"),
    "sky": ("in the sky", "天空中"),
}
_UNCOUNTED = frozenset({"glasses", "headphones"})


@dataclass(frozen=True, slots=True)
class Caption:
    """A sentence and what it says.

    Attributes:
        text: the sentence.
        language: en or zh.
        mentions: for each character in the order it is mentioned, its index in the scene.
        facts: per mention, the attributes that are said (values are keys of the vocabulary).
        scene_facts: background and style, if said.
    """

    text: str
    language: Language
    mentions: tuple[int, ...]
    facts: tuple[Facts, ...]
    scene_facts: Facts


def attributes(character: SceneCharacter) -> Facts:
    """Return everything describable about a character, size and place included."""
    return {
        "species": character.species,
        "colour": character.colour,
        "accessory": character.accessory,
        "expression": character.expression,
        "facing": character.facing,
        "size": size_key(character.box),
        "place": place_key(character.box),
    }


def article(noun: str) -> str:
    return "an" if noun[:1] in "aeiou" else "a"


def accessory_words(key: str, language: Language) -> str:
    """Return "a hat", "glasses"; or "帽子"."""
    name = term("accessory", key).name(language)
    return name if language == "zh" or key in _UNCOUNTED else f"{article(name)} {name}"


def _said(character: SceneCharacter, rng: np.random.Generator, *, place: bool, rich: float) -> Facts:
    """Choose which attributes to mention; what is worn and the colour nearly always are."""
    everything = attributes(character)
    chance = {"species": 1.0, "colour": 0.96, "accessory": 0.97, "expression": rich, "facing": rich * 0.8,
              "size": rich, "place": rich if place else 0.0}  # fmt: skip
    draws = rng.random(len(chance))
    said = {name: everything[name] for (name, p), u in zip(chance.items(), draws, strict=True) if u < p}
    if said.get("accessory") == "none":
        del said["accessory"]
    return said


def _name(attribute: str, key: str, language: Language, rng: np.random.Generator | None, chance: float) -> str:
    entry: Term = term(attribute, key)
    names = entry.en if language == "en" else entry.zh
    if rng is None or len(names) == 1 or rng.random() >= chance:
        return names[0]
    return names[int(rng.integers(len(names)))]


def _character_en(f: Facts, kind: int, rng: np.random.Generator | None, chance: float) -> str:
    def word(attribute: str) -> str:
        return _name(attribute, f[attribute], "en", rng, chance) if attribute in f else ""

    size, mood, colour, species = word("size"), word("expression"), word("colour"), word("species")
    facing, place = word("facing"), word("place")
    worn = accessory_words(f["accessory"], "en") if "accessory" in f else ""
    core = " ".join(w for w in (size, mood, colour, species) if w)
    if kind == 1:
        return " ".join(w for w in (core, f"with {worn}" if worn else "", facing, place) if w)
    if kind == 2:
        looks = " ".join(w for w in (size, colour, species) if w)
        tail = [f"is {mood}" if mood else "", f"wears {worn}" if worn else "", f"is {facing}" if facing else ""]
        tail = [part for part in tail if part]
        text = f"{article(looks)} {looks}" + (f" that {' and '.join(tail)}" if tail else "")
        return f"{text} {place}".strip()
    if kind == 3:
        text = ", ".join(w for w in (core, worn.removeprefix("a ").removeprefix("an "), facing, place) if w)
        return text
    if kind == 4:  # paraphrase only
        text = f"{article(species)} {species}" + (f" in {colour}" if colour else "")
        extra = [f"{worn} on" if worn else "", f"{mood} looking" if mood else "", f"{size} in size" if size else ""]
        extra = [e for e in extra if e]
        return ", ".join(w for w in (text, *extra, facing, place) if w)
    if kind == 5:
        clauses = [colour, f"with {worn}" if worn else "", mood, f"{size} one" if size else "", facing, place]
        return ", ".join([f"{article(species)} {species}", *_shuffled(clauses, rng)])
    if kind == 6:
        clauses = [f"it is {colour}" if colour else "", f"it wears {worn}" if worn else "",
                   f"it looks {mood}" if mood else "", f"it is {size}" if size else "",
                   f"it is {facing}" if facing else "", f"it is {place}" if place else ""]  # fmt: skip
        return ", ".join([f"there is {article(species)} {species}", *_shuffled(clauses, rng)])
    text = f"{article(core)} {core}" + (f" wearing {worn}" if worn else "")
    if facing:
        text += f", {facing}"
    return f"{text} {place}" if place else text


def _character_zh(f: Facts, kind: int, rng: np.random.Generator | None, chance: float) -> str:
    def word(attribute: str) -> str:
        return _name(attribute, f[attribute], "zh", rng, chance) if attribute in f else ""

    size, mood, colour, species = word("size"), word("expression"), word("colour"), word("species")
    facing, place = word("facing"), word("place")
    if len(colour) == 1:
        colour += "色"
    size = size.removesuffix("的")
    if size[:1] in ("小", "大") and size:  # 红色小猫, not 小红色小猫
        noun = colour + size[0] + species.removeprefix("小").removeprefix("大")
    else:
        noun = (f"{size}的" if size else "") + colour + species
    measure = term("species", f["species"]).measure
    verb = "围着" if f.get("accessory") == "scarf" else "戴着"
    worn = accessory_words(f["accessory"], "zh") if "accessory" in f else ""
    mood_word = f"{mood}的" if mood else ""
    if kind == 1:
        text = (f"{verb}{worn}的" if worn else "") + mood_word + noun
        return "，".join(w for w in (text, facing, f"在{place}" if place else "") if w)
    if kind == 2:
        text = (f"{place}有" if place else "") + f"一{measure}{noun}"
        return "，".join(w for w in (text, f"{mood}" if mood else "", f"{verb}{worn}" if worn else "", facing) if w)
    if kind == 3:
        return " ".join(w for w in (size, mood, colour + species, worn, facing, place) if w)
    if kind == 4:  # paraphrase only
        text = f"{species}一{measure}" + (f"，颜色是{colour}" if colour else "")
        return "，".join(
            w for w in (text, f"身上有{worn}" if worn else "", f"表情{mood}" if mood else "",
                        f"个头{size}" if size else "", facing, f"位置在{place}" if place else "") if w
        )  # fmt: skip
    if kind == 5:
        clauses = [colour, f"{verb}{worn}" if worn else "", mood, size, facing, f"在{place}" if place else ""]
        return "，".join([f"一{measure}{species}", *_shuffled(clauses, rng)])
    if kind == 6:
        clauses = [f"颜色{colour}" if colour else "", f"有{worn}" if worn else "", f"样子很{mood}" if mood else "",
                   f"个子{size}" if size else "", facing, f"位于{place}" if place else ""]  # fmt: skip
        return "，".join([f"有{measure}{species}", *_shuffled(clauses, rng)])
    text = f"一{measure}{mood_word}" + (f"{verb}{worn}的" if worn else "") + noun
    return "，".join(w for w in (text, facing, f"在{place}" if place else "") if w)


def _shuffled(clauses: list[str], rng: np.random.Generator | None) -> list[str]:
    said = [clause for clause in clauses if clause]
    return said if rng is None else [said[i] for i in rng.permutation(len(said))]


_TRAIN_KINDS, _HELD_KIND = (0, 1, 2, 3, 5, 6), 4


def describe_character(facts: Facts, language: Language, kind: int = 0) -> str:
    """Return the canonical phrase for a set of attributes; absent ones and ``accessory="none"`` are not said."""
    said = {name: value for name, value in facts.items() if not (name == "accessory" and value == "none")}
    return (_character_en if language == "en" else _character_zh)(said, kind, None, 0.0)


def phrase(
    character: SceneCharacter,
    rng: np.random.Generator,
    language: Language,
    split: CaptionSplit = "train",
    *,
    rich: float = 0.6,
    place: bool = False,
) -> Caption:
    """Return a phrase about one character, such as "a small red cat wearing a hat" / "一只戴着帽子的红色小猫"."""
    kind = int(rng.choice(_TRAIN_KINDS)) if split == "train" else _HELD_KIND
    said = _said(character, rng, place=place, rich=rich)
    build = _character_en if language == "en" else _character_zh
    return Caption(build(said, kind, rng, 0.25), language, (0,), (said,), {})


def _join_en(parts: list[str]) -> str:
    if len(parts) > 1 and any(", " in part for part in parts):
        return f"{'; '.join(parts[:-1])}; and {parts[-1]}"
    if len(parts) < 3:
        return " and ".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _frame_en(kind: int, people: list[str], where: str, style: str) -> str:
    joined = _join_en(people)
    if kind == 1:
        head = f"{style} picture of " if style else "a picture of "
        return f"{head}{joined}{' ' + where if where else ''}."
    if kind == 2:
        text = "; ".join(people)
        return f"{where + ': ' if where else ''}{text}." + (f" style: {style}." if style else "")
    if kind == 3:
        text = "; ".join(people)
        return ", ".join(w for w in (where.split(" ")[-1] if where else "", style) if w) + (", " if where or style else "") + text
    if kind == 4:
        opening = f"once upon a time {where} there lived " if where else "once upon a time there lived "
        return f"{opening}{joined}." + (f" drawn in {style} style." if style else "")
    if kind == 5:  # paraphrase only
        text = f"what we see {where} is {joined}" if where else f"what we see is {joined}"
        return text + (f", made as {style}" if style else "")
    if kind == 6:
        place = f" the place: {where}." if where else ""
        return f"look, {joined}.{place}" + (f" it is done as {style} art." if style else "")
    return joined + (f" {where}" if where else "") + (f", {style} style" if style else "")


def _frame_zh(kind: int, people: list[str], where: str, style: str) -> str:
    if len(people) > 1 and any("，" in part for part in people):
        joined = "；".join(people[:-1]) + "；还有" + people[-1]
    else:
        joined = "和".join(people) if len(people) < 3 else "、".join(people[:-1]) + "和" + people[-1]
    if kind == 1:
        return (f"{style}风格的画，" if style else "一幅画，") + (f"在{where}，" if where else "") + joined + "。"
    if kind == 2:
        return (f"{where}：" if where else "") + "；".join(people) + "。" + (f"风格：{style}。" if style else "")
    if kind == 3:
        return "，".join(w for w in (where.rstrip("上里中"), style, *people) if w)
    if kind == 4:
        return f"从前，{'在' + where if where else ''}住着{joined}。" + (f"用{style}风格来画。" if style else "")
    if kind == 5:  # paraphrase only
        return f"我们看到的是{joined}" + (f"，地点是{where}" if where else "") + (f"，以{style}呈现" if style else "")
    if kind == 6:
        return f"看，{joined}。" + (f"地方是{where}。" if where else "") + (f"画成{style}的样子。" if style else "")
    return (f"{where}有" if where else "") + joined + (f"，{style}风格" if style else "")


_TRAIN_FRAMES, _HELD_FRAME = (0, 1, 2, 3, 4, 6), 5


def caption(
    scene: SceneGraph,
    rng: np.random.Generator,
    language: Language,
    split: CaptionSplit = "train",
    *,
    rich: float | None = None,
) -> Caption:
    """Return a random sentence about the whole scene.

    Args:
        scene: what to describe.
        rng: source of all randomness.
        language: en or zh.
        split: ``paraphrase`` uses only templates that training never shows.
        rich: chance of each optional attribute; random by default.
    """
    rich = float(rng.choice((0.1, 0.4, 0.8))) if rich is None else rich
    kind, frame = (
        (int(rng.choice(_TRAIN_KINDS)), int(rng.choice(_TRAIN_FRAMES))) if split == "train" else (_HELD_KIND, _HELD_FRAME)
    )
    scene_facts: Facts = {}
    if rng.random() < 0.95:
        scene_facts["background"] = scene.background
    if rng.random() < 0.85:
        scene_facts["style"] = scene.style
    order = tuple(int(i) for i in rng.permutation(len(scene.characters)))
    facts = tuple(_said(scene.characters[i], rng, place=True, rich=rich) for i in order)
    build = _character_en if language == "en" else _character_zh
    people = [build(said, kind, rng, 0.25) for said in facts]
    where = _where(scene_facts, language, rng)
    style = _name("style", scene_facts["style"], language, rng, 0.25) if "style" in scene_facts else ""
    text = _compose(people, where, style, language, frame)
    return Caption(text, language, order, facts, scene_facts)


def _where(facts: Facts, language: Language, rng: np.random.Generator | None) -> str:
    if "background" not in facts:
        return ""
    return BACKGROUND_PHRASES[facts["background"]][0 if language == "en" else 1]


def _compose(people: list[str], where: str, style: str, language: Language, frame: int) -> str:
    if not people:
        empty = "an empty place" if language == "en" else "空空的地方"
        people = [empty]
    return (_frame_en if language == "en" else _frame_zh)(frame, people, where, style)


def describe(scene: SceneGraph, language: Language, *, place: bool = True) -> str:
    """Return the canonical, complete sentence about a scene: what a painter is asked for by default."""
    said = [attributes(c) for c in scene.characters]
    if not place:
        said = [{k: v for k, v in facts.items() if k != "place"} for facts in said]
    people = [describe_character(facts, language) for facts in said]
    facts = {"background": scene.background, "style": scene.style}
    return _compose(people, _where(facts, language, None), term("style", scene.style).name(language), language, 0)
