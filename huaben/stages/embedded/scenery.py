"""Background and style: what a clause says about the scene and not about anybody in it."""

from __future__ import annotations

from ...world.vocabulary import term
from .draft import Sheet, Stuck
from .grammar import Item, Noun, Token
from .layout import HIGH_SPECIES
from .words import WHERE, join, names

SMALL_KINDS = ("FUNC", "BE", "DE", "MODAL", "FLUFF", "ADVERB", "DEGREE", "THEN", "SHADE", "ONLY", "POSE")


def skip_accessory_looks(clause: list[Item], sheet: Sheet) -> list[Item]:
    """Drop colours and sizes of accessories, and the words that count them, with a note."""
    result: list[Item] = []
    for index, item in enumerate(clause):
        if isinstance(item, Noun):
            if item.attrs.pop("accessory colour", None):
                _note_accessory(sheet)
            if item.attrs.pop("extra colour", None):
                sheet.note("one_colour", "everyone has one main colour", "每个角色只有一种主色")
        elif item.kind in ("COLOUR", "SIZE"):
            after = index + 1
            while after < len(clause) and _is_between(clause[after]):
                after += 1
            following = clause[after] if after < len(clause) else None
            if isinstance(following, Token) and following.kind == "ACCESSORY" and _touches(clause, index, after):
                _note_accessory(sheet)
                continue
        elif item.kind == "SHADE":
            sheet.note("shade", "each colour comes in one shade", "每种颜色只有一种深浅")
        result.append(item)
    return result


def _note_accessory(sheet: Sheet) -> None:
    sheet.note("accessory_look", "accessories come in one look", "配饰只有一种样子")


def _is_between(item: Item) -> bool:
    return isinstance(item, Token) and item.kind in ("DE", "SIZE", "COLOUR", "FLUFF", "SHADE")


def _touches(clause: list[Item], index: int, after: int) -> bool:
    """Return whether a colour stands directly before an accessory, as its adjective."""
    following = clause[after]
    before = clause[index - 1] if index else None
    if isinstance(following, Token) and following.han:
        return not (
            isinstance(before, Noun) or (isinstance(before, Token) and before.kind == "BE" and before.text == "是")
        )
    return True


def take_scene(clause: list[Item], sheet: Sheet) -> list[Item]:
    """Set background and style from a clause; return what is left of it."""
    commands = {item.key for item in clause if isinstance(item, Token) and item.kind == "CMD"}
    backgrounds: list[int] = []
    styles: list[int] = []
    rest: list[Item] = []
    scenes = sum(isinstance(item, Token) and item.kind == "BACKGROUND" for item in clause)
    for index, item in enumerate(clause):
        if isinstance(item, Token) and item.kind == "HOUR":
            if _before(clause, index) not in ("NEG", "FROM"):
                sheet.hours.append((item.key, item.text))
            continue
        if not isinstance(item, Token) or item.kind not in ("BACKGROUND", "STYLE"):
            if isinstance(item, Token) and item.kind == "PROP" and item.key in ("background", "style"):
                continue
            rest.append(item)
            continue
        before = _before(clause, index)
        if before == "FROM" or (_instead(clause, index) and scenes > 1):
            continue
        if (before == "NEG" or "remove" in commands) and item.kind == "BACKGROUND":
            raise Stuck(
                "ask",
                f"A picture needs a background. What should it be instead of the {item.key}?",
                f"画面总得有个背景。不要{term('background', item.key).zh[0]}的话，换成什么？",
            )
        if item.kind == "BACKGROUND" and item.key == "sky" and _is_up(clause, index, scenes, commands, sheet):
            rest.append(Token("PLACE", "top", item.text, item.start, item.end, item.han))
            continue
        (backgrounds if item.kind == "BACKGROUND" else styles).append(index)
    changes = bool(commands & {"replace", "change"})
    for kind, found in (("background", backgrounds), ("style", styles)):
        if not found:
            continue
        keys = list(dict.fromkeys(_key(clause[i]) for i in found))
        chosen = keys[-1] if changes else keys[0]
        if len(keys) > 1 and not changes:
            left = [key for key in keys if key != chosen]
            _note_one(kind, chosen, left, sheet)
        _set_scene(kind, chosen, sheet)
    return rest


def _key(item: Item) -> str:
    return item.key if isinstance(item, Token) else ""


def _before(clause: list[Item], index: int) -> str:
    """Return the kind of what stands before an item, small words skipped."""
    for item in reversed(clause[:index]):
        if isinstance(item, Noun):
            return "NOUN"
        if item.kind not in (*SMALL_KINDS, "DET", "PROP"):
            return item.kind
    return ""


def _instead(clause: list[Item], index: int) -> bool:
    """Return whether an item is what something else takes the place of ("instead of the beach")."""
    return any(
        isinstance(item, Token) and item.text.lower() == "instead of" for item in clause[max(0, index - 2) : index]
    )


def _is_up(clause: list[Item], index: int, scenes: int, commands: set[str], sheet: Sheet) -> bool:
    """Return whether "in the sky" says where somebody is rather than where the scene is."""
    if any(isinstance(item, Token) and item.kind == "PROP" and item.key == "background" for item in clause):
        return False
    if commands & {"replace", "change"}:
        return False
    nouns = [item for item in clause if isinstance(item, Noun) and item.kind == "noun"]
    flies = any(noun.species in HIGH_SPECIES for noun in nouns)
    if scenes > 1:
        return bool(nouns)
    other = bool(sheet.background) and (bool(commands & {"add", "put", "move"}) or bool(sheet.added))
    return bool(nouns) and other and (flies or bool(commands & {"add", "put", "move"}))


def _note_one(kind: str, chosen: str, left: list[str], sheet: Sheet) -> None:
    """Say that a picture has one background and one style."""
    entry = term(kind, chosen)
    others_en = join([term(kind, key).name("en") for key in left], "en")
    others_zh = join([term(kind, key).name("zh") for key in left], "zh")
    what = ("backdrop", "背景") if kind == "background" else ("style", "风格")
    sheet.note(
        f"one_{kind}",
        f"a picture has one {what[0]}, so {entry.en[0]} is used and {others_en} left out",
        f"一张画只有一种{what[1]}，用了{entry.zh[0]}，没有用{others_zh}",
    )


def settle_hours(sheet: Sheet) -> None:
    """Take the nearest backdrop for a time of day, unless another one was asked for; say what is not drawn."""
    for key, text in sheet.hours:
        if key in WHERE and (not sheet.scene_said or sheet.background == key):
            _set_scene("background", key, sheet)
            sheet.note(
                "hour",
                f"{key} is the nearest I have to {text}",
                f"“{text}”最接近的背景是{term('background', key).zh[0]}",
            )
        elif sheet.changed:
            sheet.note("hour", f"I can't draw {text}", f"“{text}”画不出来")
        else:
            sheet.doubt = Stuck(
                "ask",
                f"I can't draw {text}. Which background would you like: {names('background', 'en', last='or')}?",
                f"我画不了“{text}”。背景要哪一种：{names('background', 'zh', last='还是')}？",
            )


def _set_scene(kind: str, key: str, sheet: Sheet) -> None:
    """Set background or style."""
    entry = term(kind, key)
    if kind == "background":
        sheet.scene_said = True
        if sheet.background != key:
            sheet.background = key
            sheet.changed = True
        sheet.say(f"the scene is now {WHERE[key][0]}", f"场景换到了{WHERE[key][1]}")
    else:
        if sheet.style != key:
            sheet.style = key
        sheet.say(f"the style is now {entry.en[0]}", f"风格换成了{entry.zh[0]}")
