"""Accessories that go from one character to another: "give the cat's hat to the dog", "把猫的帽子给狗戴上"."""

from __future__ import annotations

from itertools import pairwise

from ...world.vocabulary import term
from .describing import ATTRIBUTE_KINDS
from .draft import Draft, Sheet, Stuck
from .grammar import Item, Noun, Token
from .references import refers, resolve
from .words import worn

_GIVES = frozenset(
    "give gives gave pass passes lend lends 给 送给 递给 借给 还给 让给 交给 传给 拿给 戴到 戴在 put puts move".split()
)
_HANDING = frozenset({"put", "take", "move", "dress", "change", "goto"})


def name_handed(clause: list[Item], sheet: Sheet) -> list[Item]:
    """Say again what was just taken off ("…and put it on the dog", "…给狗戴上")."""
    commands = {item.key for item in clause if isinstance(item, Token) and item.kind == "CMD"}
    if sheet.handed is None or not commands & {"put", "dress", "move"} or commands & {"draw", "add", "remove"}:
        return clause
    if any(isinstance(item, Token) and item.kind in (*ATTRIBUTE_KINDS, "COMP", "REL", "NEG") for item in clause):
        return clause
    nouns = [item for item in clause if isinstance(item, Noun)]
    if not nouns or not all(refers(noun, sheet) for noun in nouns):
        return clause
    for index, item in enumerate(clause):
        if isinstance(item, Noun) and item.text.lower() in ("it", "that", "它") and len(nouns) > 1:
            thing = Token("ACCESSORY", sheet.handed, item.text, item.start, item.end, item.han)
            return [*clause[:index], thing, *clause[index + 1 :]]
    if nouns[-1].text.lower() == "it":
        return clause
    end = clause[-1].end
    return [*clause, Token("ACCESSORY", sheet.handed, "", end, end, nouns[-1].han)]


def hand_over(clause: list[Item], sheet: Sheet) -> bool:
    """Give what one character wears to another, if that is what a clause says.

    Raises:
        Stuck: when the giver does not wear it.
    """
    commands = {item.key for item in clause if isinstance(item, Token) and item.kind == "CMD"}
    things = [index for index, item in enumerate(clause) if isinstance(item, Token) and item.kind == "ACCESSORY"]
    nouns = [item for item in clause if isinstance(item, Noun)]
    if len(things) != 1 or not commands or commands - _HANDING or not all(refers(noun, sheet) for noun in nouns):
        return False
    if any(isinstance(item, Token) and item.kind in ("NEG", "REL", "LOOKAT", "EXPRESSION") for item in clause):
        return False
    at = things[0]
    thing = clause[at]
    key = thing.key if isinstance(thing, Token) else ""
    gives = any(isinstance(item, Token) and item.text.lower() in _GIVES for item in clause)
    owner = _owner(clause, at) or _source(clause)
    if owner is not None:
        receivers = [noun for noun in nouns if noun is not owner]
        if len(receivers) != 1:
            return False
        givers = resolve(owner, sheet)[:1]
        if givers[0].attrs["accessory"] != key:
            raise Stuck(
                "ask",
                f"{givers[0].the('en').capitalize()} wears no {key} to give away. What should I change?",
                f"{givers[0].the('zh')}没有戴{worn(key, 'zh')}，给不了。要改什么？",
            )
        return _give(givers[0], resolve(receivers[0], sheet), key, sheet)
    if not gives or not nouns:
        return False
    first = next(item for item in clause if isinstance(item, Noun) or item.kind == "CMD")
    if len(nouns) == 2 and first is nouns[0] and (not nouns[0].han or _is_moved(clause, at)):
        givers = [draft for draft in resolve(nouns[0], sheet) if draft.attrs["accessory"] == key]
        return len(givers) == 1 and _give(givers[0], resolve(nouns[1], sheet), key, sheet)
    if len(nouns) == 1 and _is_moved(clause, at):
        receivers_now = resolve(nouns[0], sheet)
        givers = [draft for draft in sheet.drafts if draft.attrs["accessory"] == key]
        return len(givers) == 1 and givers[0] not in receivers_now and _give(givers[0], receivers_now, key, sheet)
    return False


def _owner(clause: list[Item], at: int) -> Noun | None:
    """Return whose accessory it is ("the cat's red hat", "猫头上的帽子")."""
    possessive = False
    for item in reversed(clause[:at]):
        if isinstance(item, Noun):
            return item if possessive or item.text.lower().endswith("'s") else None
        if item.kind == "DE":
            possessive = True
        elif item.kind not in ("COLOUR", "SIZE", "FLUFF", "SHADE") and item.text not in (
            "头上",
            "身上",
            "脖子上",
            "上",
        ):
            return None
    return None


def _source(clause: list[Item]) -> Noun | None:
    """Return who something is taken from ("from the dog to the cat")."""
    goes_on = any(isinstance(item, Token) and item.text.lower() in ("to", "onto", "给") for item in clause)
    for item, following in pairwise(clause):
        if goes_on and isinstance(item, Token) and item.text.lower() in ("from", "从") and isinstance(following, Noun):
            return following
    return None


def _is_moved(clause: list[Item], at: int) -> bool:
    """Return whether it is the accessory that is there already: "the hat", "把帽子"."""
    before = clause[at - 1] if at else None
    return isinstance(before, Token) and (
        before.text in ("把", "将") or before.text.lower() in ("the", "its", "his", "her")
    )


def _give(giver: Draft, receivers: list[Draft], key: str, sheet: Sheet) -> bool:
    """Move an accessory; return whether there was somebody to take it."""
    if len(receivers) != 1 or receivers[0] is giver:
        return False
    receiver = receivers[0]
    giver.attrs["accessory"], receiver.attrs["accessory"] = "none", key
    sheet.dressed.add(receiver.id)
    sheet.say(
        f"{giver.the('en')} gave {worn(key, 'en')} to {receiver.the('en')}",
        f"{giver.the('zh')}把{worn(key, 'zh')}给了{receiver.the('zh')}",
    )
    sheet.look_at([receiver])
    return True


def only_wearer(clause: list[Item], sheet: Sheet) -> None:
    """Take an accessory off everybody else, where a clause says that only somebody wears it."""
    only = next((i for i, item in enumerate(clause) if isinstance(item, Token) and item.kind == "ONLY"), None)
    keys = [item.key for item in clause if isinstance(item, Token) and item.kind == "ACCESSORY"]
    nouns = [item for item in clause[(only or 0) :] if isinstance(item, Noun)]
    if only is None or len(keys) != 1 or not nouns or clause.index(nouns[0]) > only + 2:
        return
    wearers = [draft for noun in nouns for draft in resolve(noun, sheet)]
    for draft in sheet.drafts:
        if draft not in wearers and draft.attrs["accessory"] == keys[0]:
            draft.attrs["accessory"] = "none"
            name = term("accessory", keys[0])
            sheet.say(f"{draft.the('en')} has no {name.en[0]} any more", f"{draft.the('zh')}不戴{name.zh[0]}了")


def exchange(clause: list[Item], sheet: Sheet) -> bool:
    """Let two characters change what they wear ("swap their hats"), if that is what a clause says."""
    commands = {item.key for item in clause if isinstance(item, Token) and item.kind == "CMD"}
    things = [item for item in clause if isinstance(item, Token) and item.kind in ("ACCESSORY", "PROP")]
    nouns = [item for item in clause if isinstance(item, Noun)]
    again = any(isinstance(item, Token) and item.text == "换一下" for item in clause) and len(nouns) == 2
    if not (commands == {"swap"} or (again and not commands)):
        return False
    if not any(item.kind == "ACCESSORY" or item.key == "accessory" for item in things):
        return False
    if not all(refers(noun, sheet) for noun in nouns) or (len(things) == 2 and len(nouns) < 2):
        return False
    pair = [draft for noun in nouns for draft in resolve(noun, sheet)] if nouns else list(sheet.drafts)
    pair = pair if len(pair) == 2 else [draft for draft in sheet.drafts if draft.attrs["accessory"] != "none"]
    if len(pair) != 2 or pair[0] is pair[1]:
        return False
    a, b = pair
    a.attrs["accessory"], b.attrs["accessory"] = b.attrs["accessory"], a.attrs["accessory"]
    sheet.say(f"{a.the('en')} and {b.the('en')} exchanged what they wear", f"{a.the('zh')}和{b.the('zh')}交换了配饰")
    sheet.look_at(pair)
    return True
