"""Answers that draw nothing: about the picture, about huaben, and about what it cannot draw."""

from __future__ import annotations

import difflib
import re

from ...world.scene import place_key, size_key
from ...world.vocabulary import ANIMALS, OBJECTS, PLACES, STYLES, TERMS, term
from .draft import Draft, Sheet, Stuck
from .grammar import Item, Noun, Token
from .lexicon import lexicon
from .references import ANIMAL_KEYS, resolve
from .words import NUMBERS_EN, NUMBERS_ZH, WHERE, join, names, people, worn

Answer = tuple[str, str]

HELLO: Answer = (
    "Hello! I draw small scenes and keep the same characters from picture to picture. What would you like to see?",
    "你好！我会画小场景，而且每张画里的角色都是同一个。想画什么？",
)
THANKS: Answer = ("I'm glad you like it! What shall we draw next?", "很高兴你喜欢！接下来画什么？")
WHO: Answer = (
    "I'm huaben, a picture storyteller. You talk, I draw, and I remember every character.",
    "我是话本，一个会画画的讲故事的人。你说，我画，每个角色我都记得。",
)
NOTHING_DRAWN: Answer = (
    'Nothing is drawn yet. Try "a red cat with a hat on the beach".',
    "还什么都没画呢。试试“海滩上一只戴帽子的红色小猫”。",
)
FINE: Answer = ("All right, I leave it as it is.", "好的，那就保持原样。")
WILL_NOT_DRAW: Answer = ("All right, I won't draw anything for now.", "好的，先不画。")
FIRST: Answer = ("This is the first picture; there is nothing before it.", "这已经是第一张了，前面没有了。")
NO_REDO: Answer = ("There is nothing to redo.", "没有可以重做的。")
SMALL_TALK: Answer = (
    "I only know about drawing. Tell me what you would like to see, or ask me about the picture.",
    "我只懂画画。告诉我想看什么，或者问我画里的事吧。",
)
CLEARED: Answer = ("The page is empty again. What shall I draw?", "已经清空了。接下来画什么？")


def helping() -> Answer:
    """Return what huaben can draw."""
    animals = (
        names("species", "en", [entry.key for entry in ANIMALS]),
        names("species", "zh", [entry.key for entry in ANIMALS]),
    )
    objects = (
        names("species", "en", [entry.key for entry in OBJECTS]),
        names("species", "zh", [entry.key for entry in OBJECTS]),
    )
    return (
        f"I can draw animals ({animals[0]}) and things ({objects[0]}), in any colour, wearing "
        f"{names('accessory', 'en', last='or')}, on these backgrounds: {names('background', 'en')}. "
        f"Styles: {names('style', 'en')}. You can add, remove, recolour, move or replace anything, and undo.",
        f"我会画动物（{animals[1]}）和东西（{objects[1]}），颜色随你选，可以戴{names('accessory', 'zh', last='或')}；"
        f"背景有{names('background', 'zh')}；风格有{names('style', 'zh')}。可以添加、去掉、换颜色、移动、替换，也可以撤销。",
    )


def is_question(items: list[Item], text: str) -> bool:
    """Return whether a message asks something instead of asking for something."""
    tokens = [item for item in items if isinstance(item, Token)]
    mark = text.rstrip().endswith(("?", "？"))
    asks = [item for item in tokens if item.kind == "Q" and (mark or not _is_relative(items, item))]
    commands = [item for item in tokens if item.kind == "CMD" and item.key not in ("dress",)]
    polite = any(item.kind == "MODAL" for item in tokens)
    if re.match(r"\s*(what we see|what if|what about|how about)\b", text.lower()):
        return False
    worldly = any(item.kind in ("BACKGROUND", "STYLE", "CMD") for item in tokens)
    if worldly and any(item.text in ("怎么样", "怎样") for item in asks) and len(asks) == 1:
        return False
    strong = [item for item in asks if item.key not in ("yesno", "why")]
    if strong:
        if any(item.text.lower() in ("what", "what's", "how", "how's") for item in strong) and re.match(
            r"\s*(what|how) about", text.lower()
        ):
            return False
        return True
    if commands and (polite or not asks):
        return False
    if asks and asks[0].key == "yesno":
        return not commands or not polite
    starts = re.match(r"\s*(is|are|does|do|did|was|were|has|have|am|why|when)\b", text.lower())
    if starts and (mark or not commands):
        return not re.match(r"\s*(do|have)\s+(the|a|an|it)\b", text.lower()) or mark
    return mark and not polite and not commands and any(item.kind == "BE" for item in tokens)


def _is_relative(items: list[Item], word: Token) -> bool:
    """Return whether a question word goes on about the noun before it ("a turtle who lived on the beach")."""
    at = items.index(word)
    return at > 0 and isinstance(items[at - 1], Noun) and word.text.lower() in ("who", "which", "where")


def answer(items: list[Item], sheet: Sheet) -> Answer:
    """Return the answer to a question about the picture."""
    tokens = [item for item in items if isinstance(item, Token)]
    asks = {item.key for item in tokens if item.kind == "Q"}
    props = {item.key for item in tokens if item.kind == "PROP"}
    nouns = [item for item in items if isinstance(item, Noun) and item.kind != "unknown"]
    if sheet.page is None:
        return NOTHING_DRAWN
    if "background" in asks or ("background" in props and not nouns):
        where = WHERE[sheet.background] if sheet.background in WHERE else (sheet.background, sheet.background)
        return f"The scene is {where[0]}.", f"场景在{where[1]}。"
    if "style" in asks or "style" in props:
        return f"The style is {term('style', sheet.style).en[0]}.", f"是{term('style', sheet.style).zh[0]}风格。"
    if "how many" in asks or "count" in props:
        return _how_many(nouns, tokens, sheet)
    generic = bool(nouns) and all(noun.kind in ("generic", "one", "all") for noun in nouns)
    if "who" in asks or (asks & {"what", "which"} and (not nouns or generic) and not props):
        return _who(tokens, sheet)
    attrs = [item for item in tokens if item.kind in ("COLOUR", "ACCESSORY", "EXPRESSION", "FACING", "SIZE", "PLACE")]
    scene = [item for item in tokens if item.kind in ("BACKGROUND", "STYLE")]
    if scene and not (asks - {"yesno"}):
        return _is_scene(scene[0], sheet)
    try:
        return _about(nouns, asks, props, attrs, tokens, sheet)
    except Stuck as stuck:
        return stuck.en.replace(" Which one do you mean?", "").replace(
            " Shall I draw one? Tell me how it looks.", ""
        ), stuck.zh.replace("你指的是哪一个？", "").replace("要我画一个吗？说说它的样子吧。", "")


def _how_many(nouns: list[Noun], tokens: list[Token], sheet: Sheet) -> Answer:
    """Count characters."""
    found = list(sheet.drafts)
    what: tuple[str, str, str] | None = None
    noun = next((noun for noun in nouns if noun.kind == "noun"), None)
    if noun is not None and noun.species is not None:
        entry = term("species", noun.species)
        found = [draft for draft in found if draft.species == noun.species]
        what = (entry.en[0], entry.plural, f"{entry.measure}{entry.zh[0]}")
    elif any(noun.kind == "generic" for noun in nouns) or any("动物" in token.text for token in tokens):
        found = [draft for draft in found if draft.species in ANIMAL_KEYS]
        what = ("animal", "animals", "只动物")
    colour = (noun.attrs if noun is not None else {}).get("colour") or next(
        (token.key for token in tokens if token.kind == "COLOUR"), None
    )
    accessory = (noun.attrs if noun is not None else {}).get("accessory") or next(
        (token.key for token in tokens if token.kind == "ACCESSORY"), None
    )
    if colour:
        found = [draft for draft in found if draft.attrs["colour"] == colour]
    if accessory:
        found = [draft for draft in found if draft.attrs["accessory"] == accessory]
    count = len(found)
    en = (what[0] if count == 1 else what[1]) if what else ("character" if count == 1 else "characters")
    zh = what[2] if what else "个角色"
    extra_en = (f"{colour} " if colour else "") + en + (f" wearing {worn(accessory, 'en')}" if accessory else "")
    extra_zh = (f"戴{worn(accessory, 'zh')}的" if accessory else "") + (term("colour", colour).zh[0] if colour else "")
    zh = zh[0] + extra_zh + zh[1:] if extra_zh else zh
    verb = "is" if count == 1 else "are"
    number_zh = "没有" if count == 0 else f"有{NUMBERS_ZH[min(count, 10)]}"
    return (
        f"There {verb} {NUMBERS_EN[min(count, 10)]} {extra_en} in the picture.",
        f"画面里{number_zh}{zh[1:] if count == 0 else zh}。",
    )


def _who(tokens: list[Token], sheet: Sheet) -> Answer:
    """Say who is there, or who looks a certain way."""
    found = sheet.drafts
    for token in tokens:
        name = {"COLOUR": "colour", "ACCESSORY": "accessory", "EXPRESSION": "expression", "FACING": "facing"}.get(
            token.kind
        )
        if name:
            found = [draft for draft in found if draft.attrs[name] == token.key]
        if token.kind == "PLACE" and token.key != "bottom":
            found = [draft for draft in found if draft.box and place_key(draft.box) == token.key]
    narrowed = found != sheet.drafts
    if not found:
        return ("Nobody, as far as I see.", "没有谁。") if sheet.drafts else (
            f"Only the background: {WHERE[sheet.background][0]}.", f"只有背景：{WHERE[sheet.background][1]}。"
        )  # fmt: skip
    if narrowed:
        en, zh = join([draft.the("en") for draft in found], "en"), join([draft.the("zh") for draft in found], "zh")
        return f"{en[:1].upper()}{en[1:]}.", f"{zh}。"
    looks = [draft.attrs for draft in found]
    where = WHERE.get(sheet.background, ("", ""))
    return (
        f"In the picture there {'is' if len(found) == 1 else 'are'} {people(looks, 'en')} {where[0]}.",
        f"画面里，{where[1]}有{people(looks, 'zh')}。",
    )


def _is_scene(token: Token, sheet: Sheet) -> Answer:
    """Say whether the scene is what was asked."""
    kind = "background" if token.kind == "BACKGROUND" else "style"
    now = sheet.background if kind == "background" else sheet.style
    entry = term(kind, now)
    if now == token.key:
        return f"Yes, it is {entry.en[0]}.", f"是的，是{entry.zh[0]}。"
    return f"No, it is {entry.en[0]}.", f"不是，是{entry.zh[0]}。"


def _about(
    nouns: list[Noun], asks: set[str], props: set[str], attrs: list[Token], tokens: list[Token], sheet: Sheet
) -> Answer:
    """Answer about particular characters."""
    noun = nouns[0] if nouns else None
    wh = asks - {"yesno"}
    if noun is not None and noun.kind == "noun" and not wh and not attrs and len(nouns) == 1:
        return _exists(noun, sheet)
    if noun is not None and noun.kind == "noun" and not wh and attrs and not noun.plural:
        there = [draft for draft in sheet.drafts if draft.species == noun.species]
        if not there:
            return _exists(noun, sheet)
    if noun is not None:
        noun.plural = True
        targets = resolve(noun, sheet)
    else:
        recent = [draft for id in sheet.focus for draft in sheet.drafts if draft.id == id]
        targets = recent or sheet.drafts
    if not targets:
        return NOTHING_DRAWN
    if "where" in asks or "place" in props:
        return _each(targets, _where)
    if "facing" in asks or "direction" in props:
        return _each(targets, lambda d: (f"{d.the('en')} faces {d.attrs['facing']}",
                                         f"{d.the('zh')}面朝{'左' if d.attrs['facing'] == 'left' else '右'}"))  # fmt: skip
    if "colour" in asks or "colour" in props:
        return _each(targets, _colour)
    if "accessory" in asks or "accessory" in props or ("what" in asks and any(_wears(token) for token in tokens)):
        return _each(targets, _wearing)
    if "expression" in asks or "expression" in props or ("how" in asks and "size" not in props):
        return _each(targets, _mood)
    if "size" in asks or "size" in props:
        return _each(targets, _size)
    if not wh and attrs:
        return _check(targets, attrs[0])
    looks = [draft.attrs for draft in targets]
    return f"I see {people(looks, 'en')}.", f"我看到{people(looks, 'zh')}。"


def _wears(token: Token) -> bool:
    return token.kind in ("WITH",) or (token.kind == "CMD" and token.key == "dress") or token.text.lower() == "wearing"


def _exists(noun: Noun, sheet: Sheet) -> Answer:
    """Say whether there is one."""
    found = [draft for draft in sheet.drafts if draft.species == noun.species]
    if "colour" in noun.attrs:
        found = [draft for draft in found if draft.attrs["colour"] == noun.attrs["colour"]]
    if found:
        return (
            f"Yes, there {'is' if len(found) == 1 else 'are'} {people([d.attrs for d in found], 'en')}.",
            f"有，有{people([d.attrs for d in found], 'zh')}。",
        )
    name = term("species", noun.species or "cat")
    return f"No, there is no {name.en[0]} in the picture.", f"没有，画面里没有{name.zh[0]}。"


def _each(targets: list[Draft], say: object) -> Answer:
    """Say one thing about each."""
    assert callable(say)
    parts = [say(draft) for draft in targets]
    en = join(list(dict.fromkeys(part[0] for part in parts)), "en")
    zh = "，".join(dict.fromkeys(part[1] for part in parts))
    return f"{en[:1].upper()}{en[1:]}.", f"{zh}。"


def _colour(draft: Draft) -> Answer:
    entry = term("species", draft.species)
    colour = term("colour", draft.attrs["colour"])
    return f"the {entry.en[0]} is {colour.en[0]}", f"{entry.zh[0]}是{colour.zh[0]}的"


def _where(draft: Draft) -> Answer:
    place = TERMS["place"][place_key(draft.box)] if draft.box else PLACES[1]
    return f"{draft.the('en')} is {place.en[0]}", f"{draft.the('zh')}在{place.zh[0]}"


def _wearing(draft: Draft) -> Answer:
    key = draft.attrs["accessory"]
    if key == "none":
        return f"{draft.the('en')} wears nothing special", f"{draft.the('zh')}什么都没戴"
    verb = "围着" if key == "scarf" else "戴着"
    return f"{draft.the('en')} wears {worn(key, 'en')}", f"{draft.the('zh')}{verb}{worn(key, 'zh')}"


def _mood(draft: Draft) -> Answer:
    entry = term("expression", draft.attrs["expression"])
    return f"{draft.the('en')} looks {entry.en[0]}", f"{draft.the('zh')}看起来很{entry.zh[0]}"


def _size(draft: Draft) -> Answer:
    size = term("size", size_key(draft.box)) if draft.box else term("size", "medium")
    return f"{draft.the('en')} is {size.en[0]}", f"{draft.the('zh')}是{size.zh[0]}的"


def _check(targets: list[Draft], token: Token) -> Answer:
    """Say yes or no about an attribute."""
    draft = targets[0]
    name = token.kind.lower()
    now = draft.attrs.get(name, "")
    if name == "place":
        now = place_key(draft.box) if draft.box else ""
    if name == "size":
        now = size_key(draft.box) if draft.box else ""
    tell = {"colour": _colour, "accessory": _wearing, "expression": _mood, "place": _where, "size": _size}.get(name)
    en, zh = (
        tell(draft)
        if tell
        else (f"{draft.the('en')} faces {now}", f"{draft.the('zh')}面朝{'左' if now == 'left' else '右'}")
    )
    right = now == token.key
    return f"{'Yes' if right else 'No'}, {en}.", f"{'是的' if right else '不是'}，{zh}。"


# ------------------------------------------------------------------------------------------------------------ refusals


def suggestion(kinds: set[str]) -> Answer:
    """Return what can be drawn instead, near what was asked for."""
    if kinds & {"animal", "person"}:
        keys = ["cat", "dog", "rabbit", "bear", "fox", "lion", "elephant", "bird", "penguin", "turtle", "whale"]
        return (f"I can draw animals such as {names('species', 'en', keys, last='or')}.",
                f"我可以画{names('species', 'zh', keys)}等动物。")  # fmt: skip
    if "vehicle" in kinds:
        keys = ["car", "boat", "balloon"]
        return (
            f"I can draw a {names('species', 'en', keys, last='or a')}.",
            f"我可以画{names('species', 'zh', keys, last='或')}。",
        )
    if "place" in kinds:
        return f"The places I know: {names('background', 'en')}.", f"我会画的地方有{names('background', 'zh')}。"
    if "style" in kinds:
        styles = [entry.key for entry in STYLES]
        return f"The styles I know: {names('style', 'en', styles)}.", f"我会的风格有{names('style', 'zh', styles)}。"
    if "action" in kinds:
        return ("Characters stand or sit; they can look happy, sad, surprised, angry or sleepy, and face left or right.",
                "角色会站着或坐着，可以开心、难过、惊讶、生气或困倦，面朝左或右。")  # fmt: skip
    keys = [entry.key for entry in OBJECTS]
    return (
        f"I can draw animals (a cat, a dog, a fox …), things ({names('species', 'en', keys)}), and "
        f"{names('accessory', 'en', last='or')} for them to wear.",
        f"我可以画动物（猫、狗、狐狸……）、东西（{names('species', 'zh', keys)}），"
        f"还能让它们戴{names('accessory', 'zh', last='或')}。",
    )


def nearest_word(word: str) -> str | None:
    """Return the known English word a misspelt one probably is, or None."""
    word = word.lower()
    if not re.fullmatch(r"[a-z]{4,}", word):
        return None
    wanted = ("SPECIES", "COLOUR", "ACCESSORY", "BACKGROUND", "STYLE", "EXPRESSION", "SIZE")
    known = [
        phrase for phrase, (kind, _) in lexicon().items() if kind in wanted and phrase.isascii() and " " not in phrase
    ]
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.79)
    return near[0] if near else None
