"""Who is meant: noun phrases, pronouns and "the left one" against who is on the page."""

from __future__ import annotations

from ...dialogue.message import Pending
from ...promptbook.layout import centre, height
from ...world.scene import place_key, size_key
from ...world.vocabulary import ANIMALS, OBJECTS, term
from .draft import Draft, Sheet, Stuck
from .grammar import Noun
from .words import join

ANIMAL_KEYS = frozenset(entry.key for entry in ANIMALS)
OBJECT_KEYS = frozenset(entry.key for entry in OBJECTS)


def refers(noun: Noun, sheet: Sheet) -> bool:
    """Return whether a noun phrase names somebody who is already there."""
    if noun.kind in ("pron", "all", "generic"):
        return bool(sheet.drafts)
    if noun.kind == "one":
        return noun.det in ("def", "other") or (noun.number is None and bool(noun.attrs))
    if noun.kind != "noun" or noun.det in ("indef", "another"):
        return False
    colour = noun.attrs.get("colour") if noun.det == "bare" else None
    return any(draft.species == noun.species and colour in (None, draft.attrs["colour"]) for draft in sheet.drafts)


def resolve(noun: Noun, sheet: Sheet, *, among: list[Draft] | None = None) -> list[Draft]:
    """Return who a noun phrase names.

    Raises:
        Stuck: when nobody fits, or several do and one was meant.
    """
    pool = list(sheet.drafts if among is None else among)
    if not pool:
        raise nobody(noun, sheet)
    corrected = [draft for draft in pool if draft.id in sheet.instead]
    if corrected:
        return corrected
    if noun.text.startswith(("one of ", "其中")):
        recent = [draft for draft in pool if draft.id in sheet.focus] or pool
        fits = [draft for draft in recent if noun.species in (None, draft.species)] or recent
        return fits[: noun.number or 1]
    if noun.kind == "pron":
        return _pronoun(noun, sheet, pool)
    if noun.kind == "all" and noun.species is None:
        return pool
    fits = pool
    if noun.species is not None:
        fits = [draft for draft in pool if draft.species == noun.species]
    elif noun.kind == "generic" and noun.text.lower().split()[-1].rstrip("s") in (
        "animal",
        "动物",
        "小动物",
        "creature",
    ):
        fits = [draft for draft in pool if draft.species in ANIMAL_KEYS] or pool
    if not fits:
        raise nobody(noun, sheet)
    if noun.det in ("other", "another") and len(fits) > 1:
        fits = [draft for draft in fits if draft.id not in sheet.focus] or fits
    fits = _filter(noun, fits, sheet)
    if noun.ordinal is not None:
        if noun.ordinal > len(fits):
            raise nobody(noun, sheet)
        return fits[noun.ordinal - 1 : noun.ordinal]
    if len(fits) == 1 or noun.plural or noun.every or noun.kind == "all":
        if noun.number is not None and noun.number < len(fits) and noun.number > 1:
            return fits[: noun.number]
        return fits
    if sheet.forced:
        chosen = [draft for draft in fits if draft.id in sheet.forced]
        if chosen:
            return chosen
    if noun.det in ("indef",) and noun.number == 1:
        return fits[:1]
    recent = [draft for draft in fits if draft.id in sheet.focus]
    if len(recent) == 1 and len(sheet.focus) < len(sheet.drafts):
        return recent
    if noun.kind == "one" and not noun.attrs and noun.species is None and recent:
        return recent[-1:]
    if noun.han and noun.det == "bare" and all(_look(draft) == _look(fits[0]) for draft in fits):
        return fits
    if noun.kind == "generic" and noun.han and noun.det == "bare":
        return fits
    raise _which(fits, sheet)


def _look(draft: Draft) -> tuple[str, ...]:
    return tuple(draft.attrs[name] for name in ("species", "colour", "accessory", "expression"))


def _pronoun(noun: Noun, sheet: Sheet, pool: list[Draft]) -> list[Draft]:
    """Return who "it" or "them" is."""
    recent = [draft for id in sheet.focus for draft in pool if draft.id == id]
    if noun.plural:
        return recent if len(recent) > 1 else pool
    if len(pool) == 1:
        return pool
    if sheet.forced and any(draft.id in sheet.forced for draft in pool):
        return [draft for draft in pool if draft.id in sheet.forced]
    if noun.text.lower() in ("he", "him", "she", "her", "他", "她"):
        living = [draft for draft in pool if draft.species in ANIMAL_KEYS]
        recent = [draft for draft in recent if draft in living] or (living if len(living) == 1 else recent)
    if not recent:
        raise _which(pool, sheet)
    animals = [draft for draft in recent if draft.species in ANIMAL_KEYS]
    return (animals or recent)[-1:]


def _filter(noun: Noun, fits: list[Draft], sheet: Sheet) -> list[Draft]:
    """Return those of ``fits`` that the words before a noun describe."""
    attrs = noun.attrs
    for name in ("colour", "accessory", "expression", "facing"):
        if name in attrs:
            chosen = [draft for draft in fits if draft.attrs[name] == attrs[name]]
            if not chosen and name == "colour":
                raise nobody(noun, sheet)
            fits = chosen or fits
    if "size" in attrs and len(fits) > 1:
        tall = [height(draft.box) if draft.box else 0.38 for draft in fits]
        chosen = [draft for draft in fits if draft.box and size_key(draft.box) == attrs["size"]]
        if len(chosen) != 1:
            extreme = min(tall) if attrs["size"] == "small" else max(tall)
            chosen = [draft for draft, value in zip(fits, tall, strict=True) if value == extreme]
        fits = chosen
    if noun.hint and len(fits) > 1:
        chosen = [draft for draft in fits if draft.box and size_key(draft.box) == noun.hint]
        fits = chosen if len(chosen) == 1 else fits
    if "place" in attrs and len(fits) > 1:
        fits = _at_place(attrs["place"], fits, noun.number or 1)
    if noun.anchor is not None and len(fits) > 1:
        anchors = resolve(noun.anchor, sheet)
        x = centre(anchors[0].box)[0] if anchors[0].box else 0.5
        sides = {"left": lambda draft: draft.box and centre(draft.box)[0] < x,
                 "right": lambda draft: draft.box and centre(draft.box)[0] > x}  # fmt: skip
        if noun.relation in sides:
            fits = [draft for draft in fits if sides[noun.relation](draft)] or fits
    return fits


def _at_place(place: str, fits: list[Draft], count: int) -> list[Draft]:
    """Return who is at a place: by name, else whoever is nearest to it."""
    named = [draft for draft in fits if draft.box and place_key(draft.box) == place]
    if len(named) == 1 and count == 1:
        return named
    x = {"left": 0.0, "right": 1.0}.get(place.replace("top", "").strip(), 0.5)
    y = 0.0 if place.startswith("top") else None

    def distance(draft: Draft) -> float:
        if draft.box is None:
            return 9.0
        cx, cy = centre(draft.box)
        return cy if place == "top" else -cy if place == "bottom" else abs(cx - x) + (0.0 if y is None else cy)

    return sorted(named if len(named) >= count else fits, key=distance)[:count]


def nobody(noun: Noun, sheet: Sheet) -> Stuck:
    """Return the question when nobody fits a name."""
    if noun.species is not None:
        colour = noun.attrs.get("colour")
        en = f"{colour} " if colour else ""
        zh = f"{term('colour', colour).zh[0]}的" if colour else ""
        what = f"no {en}{noun.species}", f"没有{zh}{term('species', noun.species).zh[0]}"
    else:
        what = "nobody like that", "没有这样的角色"
    if not sheet.drafts:
        return Stuck("ask", f"There is {what[0]} in the picture yet. Shall I draw one? Tell me how it looks.",
                     f"画面里还{what[1]}。要我画一个吗？说说它的样子吧。")  # fmt: skip
    there_en = join([draft.the("en") for draft in sheet.drafts], "en")
    there_zh = join([draft.the("zh") for draft in sheet.drafts], "zh")
    return Stuck("ask", f"There is {what[0]} in the picture; I see {there_en}. Which one do you mean?",
                 f"画面里{what[1]}，只有{there_zh}。你指的是哪一个？")  # fmt: skip


def _which(fits: list[Draft], sheet: Sheet) -> Stuck:
    """Return the question when several fit."""
    names = [label(draft, fits) for draft in fits]
    both_en = "both" if len(fits) == 2 else "all of them"
    stuck = Stuck(
        "ask",
        f"Which one: {join([name[0] for name in names], 'en', last='or')}, or {both_en}?",
        f"是哪一个：{join([name[1] for name in names], 'zh', last='还是')}？还是全部？",
    )
    stuck.pending = Pending(kind="which", text=sheet.text, options=tuple(draft.id for draft in fits))
    return stuck


def label(draft: Draft, among: list[Draft]) -> tuple[str, str]:
    """Return what tells a draft from the others: its colour and name, and its place where those are shared."""
    the = draft.the("en"), draft.the("zh")
    if sum(_look(other)[:2] == _look(draft)[:2] for other in among) > 1 and draft.box is not None:
        order = sorted(among, key=lambda other: centre(other.box)[0] if other.box else 0.5)
        at = order.index(draft)
        side = ("left", "左边") if at == 0 else ("right", "右边") if at == len(order) - 1 else ("middle", "中间")
        return f"{the[0]} on the {side[0]}" if side[
            0
        ] != "middle" else f"{the[0]} in the middle", f"{side[1]}的{the[1]}"
    return the


def focused(sheet: Sheet) -> list[Draft]:
    """Return who is meant when nobody is named."""
    if len(sheet.drafts) == 1:
        return list(sheet.drafts)
    if sheet.instead or sheet.forced:
        meant = sheet.instead or sheet.forced
        return [draft for draft in sheet.drafts if draft.id in meant]
    recent = [draft for id in sheet.focus for draft in sheet.drafts if draft.id == id]
    if not recent or (len(recent) > 1 and len(recent) == len(sheet.drafts)):
        raise _which(list(sheet.drafts), sheet)
    return recent


def fits_look(noun: Noun, colour: str) -> bool:
    return noun.attrs.get("colour", colour) == colour
