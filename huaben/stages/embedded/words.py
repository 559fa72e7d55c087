"""Wording: attributes as phrases in both languages, and what huaben says."""

from __future__ import annotations

from collections.abc import Sequence

from ...world.captions import BACKGROUND_PHRASES
from ...world.vocabulary import TERMS, Language, term

UNCOUNTED = frozenset({"glasses", "headphones"})

WHERE = BACKGROUND_PHRASES
"""Where a page is, in the words that the painter was trained on."""

NUMBERS_ZH = ("零", "一", "两", "三", "四", "五", "六", "七", "八", "九", "十")
NUMBERS_EN = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def article(noun: str) -> str:
    """Return "a" or "an"."""
    return "an" if noun[:1].lower() in "aeiou" else "a"


def worn(accessory: str, language: Language) -> str:
    """Return "a hat", "glasses", "帽子"."""
    name = term("accessory", accessory).name(language)
    return name if language == "zh" or accessory in UNCOUNTED else f"{article(name)} {name}"


def wear_verb(accessory: str) -> str:
    """Return the Chinese verb for wearing it."""
    return "围着" if accessory == "scarf" else "戴着"


def describe(attributes: dict[str, str], language: Language, *, count: int = 1, definite: bool = False) -> str:
    """Return the canonical phrase, such as "a small red cat wearing a hat" or "一只戴着帽子的红色小猫".

    Args:
        attributes: keys of the vocabulary; size only where it was said, no accessory as "none". A happy face and
            facing right go without saying.
        language: of the phrase.
        count: how many of them.
        definite: "the", or no number in Chinese.
    """
    accessory = attributes.get("accessory", "none")
    size = attributes.get("size", "medium")
    mood = attributes.get("expression", "happy")
    left = attributes.get("facing") == "left"
    species, colour = term("species", attributes["species"]), attributes.get("colour", "")
    if language == "en":
        noun = species.plural if count > 1 else species.en[0]
        core = " ".join(
            word for word in (size if size != "medium" else "", mood if mood != "happy" else "", colour, noun) if word
        )
        lead = "the" if definite else NUMBERS_EN[min(count, 10)] if count > 1 else article(core)
        text = f"{lead} {core}" + (f" wearing {_worn_plural(accessory, count)}" if accessory != "none" else "")
        return text + (" and facing left" if left and accessory != "none" else " facing left" if left else "")
    noun = species.zh[0]
    if size in ("small", "large"):
        sized = "小" if size == "small" else "大"
        noun = noun if noun.startswith("小") and size == "small" else sized + noun.removeprefix("小").removeprefix("大")
    parts = []
    if mood != "happy":
        parts.append(f"{term('expression', mood).zh[0]}的")
    if left:
        parts.append("面朝左的")
    if accessory != "none":
        parts.append(f"{wear_verb(accessory)}{worn(accessory, 'zh')}的")
    tint = term("colour", colour).zh[0] if colour else ""
    of = "的" if tint and size not in ("small", "large") and (len(noun) == 1 or not parts) else ""
    lead = "" if definite else f"{NUMBERS_ZH[min(count, 10)]}{species.measure}"
    return lead + "".join(parts) + tint + of + noun


def _worn_plural(accessory: str, count: int) -> str:
    """Return "a hat", or "hats" for several."""
    if count == 1 or accessory in UNCOUNTED:
        return worn(accessory, "en")
    return {"scarf": "scarves"}.get(accessory, f"{term('accessory', accessory).en[0]}s")


def join(parts: Sequence[str], language: Language, *, last: str = "") -> str:
    """Return "a, b and c" or "a、b和c"; ``last`` replaces the final conjunction."""
    if len(parts) < 2:
        return "".join(parts)
    if language == "en":
        return f"{', '.join(parts[:-1])} {last or 'and'} {parts[-1]}"
    return f"{'、'.join(parts[:-1])}{last or '和'}{parts[-1]}"


def people(characters: Sequence[dict[str, str]], language: Language) -> str:
    """Return the phrase for several characters; equal ones are counted."""
    order: list[dict[str, str]] = []
    counts: list[int] = []
    for attributes in characters:
        if attributes in order:
            counts[order.index(attributes)] += 1
        else:
            order.append(attributes)
            counts.append(1)
    return join([describe(a, language, count=n) for a, n in zip(order, counts, strict=True)], language)


def names(attribute: str, language: Language, keys: Sequence[str] | None = None, *, last: str = "") -> str:
    """Return a list of first names of an attribute's values."""
    entries = TERMS[attribute]
    chosen = [entries[key].name(language) for key in (keys or entries) if key != "none"]
    return join(chosen, language, last=last)


def pick(en: str, zh: str, language: Language) -> str:
    """Return the text of one language."""
    return en if language == "en" else zh
