"""Which earlier picture a description means: "go back to the version with the red hat", "回到有狗的那张"."""

from __future__ import annotations

import re

from ...promptbook import Character, Page, PromptBook
from ...promptbook.layout import centre
from ...world.scene import place_key, size_key
from ...world.vocabulary import Language
from .describing import deny_colours, describe_nouns, gather
from .draft import Sheet
from .grammar import Item, Noun, Token, chunk, tokenize
from .references import ANIMAL_KEYS
from .scenery import skip_accessory_looks

_LEAD = (
    r"(?:(?:please|now|can you|could you|can we|could we|can i|could i|let's|let us|i want to|i'd like to|i would like to"
    r"|i want you to|actually|oops|no|sorry|ok|okay) )*"
)
_PICTURE = r"(?:picture|image|page|drawing|version|scene|painting|illustration)"
_OLD = r"(?:the |that |my |our )(?:old |older |earlier |previous |last )?"
_LINK = r"(?:with|without|where|in which|when|that|which|of|on|in|at|from|before)\b"
_BACK_EN = r"(?:go back|go|return|revert|switch back|jump back|take me back|take us back|back)(?: again)? to"
_SHOW_EN = (
    r"(?:restore|bring back|recall|show me|show us|show|see|let me see|let's see|display|i want|i prefer|i preferred|i liked)"
    r"(?: again)?"
)
_ENGLISH = tuple(
    re.compile(_LEAD + pattern + r"(?: again| please| better| more| back| instead)*")
    for pattern in (
        rf"{_BACK_EN} {_OLD}(?:{_PICTURE}|one)(?: again)? (?P<what>{_LINK} .+?)",
        rf"(?:{_BACK_EN}|{_SHOW_EN}) {_OLD}{_PICTURE}(?: again)? (?P<what>{_LINK} .+?)",
        rf"(?:{_BACK_EN}|{_SHOW_EN}(?: it| this| that)?(?: better| more)?)(?: how it was| what it was like)? (?P<what>when .+?)",
        rf"(?:{_BACK_EN}|{_SHOW_EN})(?: how it was)? (?P<what>before .+?)",
        rf"(?:{_BACK_EN}|{_SHOW_EN}) {_OLD}(?P<what>.+?) (?:version|picture|image|page|drawing)",
    )
)
_CHINESE = re.compile(
    r"(?:请|再|麻烦|你|帮|给|让|我们|咱们|我|想要|想|要|能不能|能|可以|还是|那就|那|就|先)*"
    r"(?:回到|返回到|返回|恢复到|恢复成|恢复|退回到|退到|还原到|还原成|切回到|切回|换回到|换回|调回|翻回|找回|找出|调出|看一看|看一下|看看|看|显示|拿出)"
    r"(?:一下|到)?(?:之前|刚才|以前|原来|上次|前面)?的?(?P<what>.+?)的?"
    r"(?:(?:[那这]一?个?(?:张|幅|版|版本|次)|[那这]个?时候?|时候|版本|那一?页)的?(?:图片|图画|画面|图|画|样子)?|(?<=的)(?:图片|图画|图|画))"
    r"(?:吧|了|好吗|吗|看看|再看看|给我看|一下|呢|啊)*"
)
_TRAITS = ("colour", "accessory", "expression", "facing")


def described_picture(plain: str) -> tuple[str, bool] | None:
    """Return how an earlier picture is described in a request to see it again, or None where none is asked for.

    The second value is whether nothing but an earlier picture can be meant ("go back to …", not "show me …").

    Args:
        plain: the message without punctuation and politeness, in lower case.
    """
    for pattern in _ENGLISH:
        match = pattern.fullmatch(plain)
        if match is not None:
            return match["what"], re.match(_LEAD + _BACK_EN, plain) is not None
    match = _CHINESE.fullmatch(plain)
    return (
        None
        if match is None
        else (match["what"], re.search(r"[回退]|恢复|还原", plain[: match.start("what")]) is not None)
    )


def find_described(
    what: str, book: PromptBook, indices: tuple[int, ...], focus: tuple[str, ...], language: Language
) -> int | None:
    """Return the first of some pages of which a description is true.

    "Before the dog came", "有狗之前" is true of the last page that was drawn before one with a dog.

    Args:
        what: the description.
        book: the pages.
        indices: the pages to look at, in this order.
        focus: ids that "it" means.
        language: of the message.
    """
    before = re.match(r"before\b|(?=.*[之以]前$)", what)
    if before is not None:
        first = next(
            (index for index in sorted(indices) if _is_true(what, book.pages[index], book, focus, language)), -1
        )
        return max((index for index in indices if index < first), default=None)
    return next((index for index in indices if _is_true(what, book.pages[index], book, focus, language)), None)


def is_understood(what: str) -> bool:
    """Return whether a description has no unknown words in it."""
    return not any(_is_unknown(item) for item in chunk(tokenize(what)))


def _is_unknown(item: Item) -> bool:
    return item.kind == "unknown" if isinstance(item, Noun) else item.kind in ("UNKNOWN", "OUT")


def _is_true(what: str, page: Page, book: PromptBook, focus: tuple[str, ...], language: Language) -> bool:
    """Return whether a description says something about a page, and all of it is true."""
    sheet = Sheet.open(book, page, language, focus)
    clause = deny_colours(gather(skip_accessory_looks(chunk(tokenize(what)), sheet)))
    scene = [item for item in clause if isinstance(item, Token) and item.kind in ("BACKGROUND", "STYLE")]
    if any(item.key not in (page.background, page.style) for item in scene):
        return False
    nouns, excluded = describe_nouns([item for item in clause if item not in scene], sheet)
    if any(character.category == noun.species for noun in excluded for character in page.characters):
        return False
    facts = len(scene) + len(excluded)
    for noun in nouns:
        fits = [character for character in page.characters if _fits(noun, character, focus)]
        if len(fits) < (noun.number or 1) or (noun.number is not None and noun.number > 1 and len(fits) > noun.number):
            return False
        if noun.anchor is not None and not _stands(fits, noun, page, focus):
            return False
        facts += noun.species is not None or bool(noun.attrs) or bool(noun.lacks)
    loose = {} if nouns else {item.kind.lower(): item.key for item in clause if isinstance(item, Token)}
    traits = {name: loose[name] for name in _TRAITS if name in loose}
    if traits:
        facts += 1
        fits = [c for c in page.characters if all(c.attribute(name) == value for name, value in traits.items())]
        if bool(fits) == ("neg" in loose):
            return False
    return facts > 0


def _fits(noun: Noun, character: Character, focus: tuple[str, ...]) -> bool:
    """Return whether a character is as a noun phrase says."""
    if noun.species is not None and character.category != noun.species:
        return False
    if noun.kind == "pron" and focus and not noun.plural and character.id not in focus:
        return False
    if noun.kind == "generic" and noun.text.lower().endswith(("animal", "animals", "动物")):
        if character.category not in ANIMAL_KEYS:
            return False
    found = {name: character.attribute(name) for name in _TRAITS}
    found |= {"size": size_key(character.box), "place": place_key(character.box)}
    if found["accessory"] in noun.lacks:
        return False
    return all(found[name] == value for name, value in noun.attrs.items() if name in found)


def _stands(fits: list[Character], noun: Noun, page: Page, focus: tuple[str, ...]) -> bool:
    """Return whether one of the characters is where a noun phrase says, next to whom it says."""
    assert noun.anchor is not None
    anchors = [character for character in page.characters if _fits(noun.anchor, character, focus)]
    for anchor in anchors:
        for character in fits:
            (x, y), (ax, ay) = centre(character.box), centre(anchor.box)
            holds = {"left": x < ax, "right": x > ax, "above": y < ay, "below": y > ay}
            if character is not anchor and holds.get(noun.relation or "", True):
                return True
    return False
