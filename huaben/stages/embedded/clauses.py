"""What a clause is for: the choice between creating, adding, removing, replacing, counting and changing."""

from __future__ import annotations

from collections.abc import Callable

from .changing import change, names_new_first, prefer, replace, swap
from .describing import ATTRIBUTE_KINDS, deny_colours, describe_nouns, gather, pin_down
from .draft import Sheet
from .grammar import Item, Noun, Token
from .handing import exchange, hand_over, name_handed, only_wearer
from .references import refers
from .scenery import skip_accessory_looks, take_scene
from .staffing import add, count, draw, keep_or_count, opens_negated, remove


def interpret(clause: list[Item], sheet: Sheet, *, first: bool) -> None:
    """Apply one clause to the sheet.

    Args:
        clause: its items.
        sheet: changed in place.
        first: whether no clause of this message drew or added anything yet.

    Raises:
        Stuck: when something has to be asked.
    """
    clause = skip_accessory_looks(_without_no(clause), sheet)
    clause = pin_down(deny_colours(gather(clause)), sheet)
    told = len(sheet.did)
    whole = clause
    clause = take_scene(clause, sheet)
    if not _has_content(clause, scene=len(sheet.did) > told):
        return
    clause = name_handed(clause, sheet)
    if any(isinstance(item, Token) and item.kind == "CMD" and item.key == "add" for item in clause):
        clause = [item for item in clause if isinstance(item, Noun) or item.text.lower() != "instead"]
    if hand_over(clause, sheet) or exchange(clause, sheet):
        return
    commands = [item.key for item in clause if isinstance(item, Token) and item.kind == "CMD"]
    if "take" in commands:
        away = _takes_accessory(clause) or any(
            isinstance(i, Token) and i.text.lower() in ("off", "away", "out", "down", "from") for i in clause
        )
        commands.append("remove" if away else "move")
    nouns = [item for item in clause if isinstance(item, Noun)]
    handler = _choose(clause, commands, nouns, sheet, first)
    dresses = any(isinstance(item, Token) and item.kind == "ACCESSORY" for item in clause)
    if handler is add and (not nouns or (dresses and all(refers(noun, sheet) for noun in nouns))):
        handler = change
    edits = bool({"change", "replace"} & set(commands)) and sheet.page is not None
    if edits and handler in (replace, draw) and len(sheet.did) > told and _goes_on_after_scene(whole, nouns, sheet):
        handler = add
    handler(clause, sheet)
    if handler is change:
        only_wearer(clause, sheet)


def _without_no(clause: list[Item]) -> list[Item]:
    """Drop the "no" that only contradicts ("no, only the cat", "no the dog should be red")."""
    if len(clause) < 2 or not isinstance(clause[0], Token) or clause[0].text.lower() != "no":
        return clause
    following = clause[1]
    contradicts = following.det == "def" if isinstance(following, Noun) else following.kind in ("ONLY", "WEAK", "CMD")
    return clause[1:] if contradicts else clause


def _goes_on_after_scene(clause: list[Item], nouns: list[Noun], sheet: Sheet) -> bool:
    """Return whether somebody new is named after the scene was changed ("背景换成晚上，要有星星")."""
    scene = next((i for i, item in enumerate(clause) if item.kind in ("BACKGROUND", "STYLE")), len(clause))
    first = clause.index(nouns[0]) if nouns and nouns[0] in clause else -1
    apart = any(isinstance(item, Token) and item.kind in ("WEAK", "CONJ") for item in clause[scene:first])
    return scene < first and apart and not any(refers(noun, sheet) for noun in nouns)


def _takes_accessory(clause: list[Item]) -> bool:
    """Return whether "take" is said of what somebody wears, and of nobody it should go to."""
    worn = any(isinstance(item, Token) and item.kind == "ACCESSORY" for item in clause)
    return worn and not any(
        isinstance(item, Token) and item.text.lower() in ("to", "on", "onto", "给") for item in clause
    )


def _choose(
    clause: list[Item], commands: list[str], nouns: list[Noun], sheet: Sheet, first: bool
) -> Callable[[list[Item], Sheet], None]:
    """Return what a clause is for."""
    here = bool(sheet.drafts) or sheet.page is not None
    negated = opens_negated(clause)
    if "keep" in commands or _only_known(clause, nouns, sheet):
        return keep_or_count
    if "remove" in commands or negated:
        return remove
    pair = [item for item in clause if isinstance(item, Token) and item.kind == "ACCESSORY"]
    if "swap" in commands and here and len(pair) == 2 and not nouns:
        return replace
    if here and any(isinstance(item, Token) and item.kind == "PREFER" for item in clause):
        there = [draft.species for draft in sheet.drafts]
        if len(nouns) == 1 and nouns[0].attrs and there.count(nouns[0].species or "") == 1:
            return prefer
    if here and len(nouns) == 2 and not commands and all(refers(noun, sheet) for noun in nouns):
        if any(isinstance(item, Token) and item.text == "换一下" for item in clause):
            return swap
    if "swap" in commands and here and not _exchanges_for_new(clause, nouns, sheet):
        return swap
    if here and _is_count(clause, commands, nouns, sheet):
        return count
    if (
        here
        and ("replace" in commands or "swap" in commands or "change" in commands)
        and _is_replacement(clause, nouns, sheet)
    ):
        return replace
    known = [noun for noun in nouns if refers(noun, sheet)]
    values = [item for item in clause if isinstance(item, Token) and item.kind in (*ATTRIBUTE_KINDS, "COMP", "UPDOWN")]
    if "add" in commands and here:
        return add
    if "draw" in commands:
        if here and any(noun.det == "another" for noun in nouns):
            return add
        if here and known and known[0] is nouns[0] and any(item.kind in ("COMP", "COLOUR") for item in values):
            return change
        if here and "put" in commands and known and values and len(nouns) == 1:
            return change
        if here and known and len(known) < len(nouns) and _anchors_known(clause, sheet):
            return add
        return add if not first else draw
    if not here:
        edits = {"change", "replace", "move", "swap", "enlarge", "shrink", "put"} & set(commands)
        named = [noun for noun in nouns if noun.kind in ("noun", "unknown")]
        return draw if named and not (edits and all(noun.det in ("def", "bare") for noun in named)) else change
    if not nouns:
        return change
    if not first and nouns[0].kind == "noun" and nouns[0] not in known and not commands:
        return add
    if not first and not known:
        return add
    if commands:
        if "put" in commands or "move" in commands:
            fresh = [noun for noun in nouns if noun.kind == "noun" and noun.det in ("indef", "another")]
            fresh += [noun for noun in nouns[:1] if noun.kind == "noun" and noun not in known and noun.det == "bare"]
            if fresh and not (known and known[0] is nouns[0] and fresh[0] is not nouns[0] and "move" in commands):
                return add
        if "change" in commands and nouns[0].kind == "noun" and nouns[0] not in known:
            return draw if nouns[0].det in ("indef", "bare") and not values else change
        if set(commands) == {"dress"} and nouns[0] not in known and nouns[0].kind == "noun" and first:
            return draw
        return change
    if _starts_with_and(clause) and nouns[0] not in known:
        return add
    if known and nouns[0] not in known and _anchors_known(clause, sheet):
        return add
    if known and nouns[0] in known:
        fresh = [noun for noun in nouns if noun not in known and noun.kind == "noun"]
        if fresh:
            return add
        return change
    if any(
        isinstance(item, Token) and item.kind in ("ADVERB", "MODAL") and item.key in ("too", "can") for item in clause
    ):
        return add
    return draw if first else add


def _has_content(clause: list[Item], *, scene: bool) -> bool:
    """Return whether a clause still says something, once its background and style are taken."""
    return any(
        isinstance(item, Noun)
        or item.kind in (*ATTRIBUTE_KINDS, "COMP", "UPDOWN", "VAGUE")
        or (item.kind == "CMD" and item.key in ("remove", "enlarge", "shrink"))
        or (item.kind == "CMD" and item.key in ("replace", "change", "move", "swap") and not scene)
        for item in clause
    )


def _starts_with_and(clause: list[Item]) -> bool:
    """Return whether a clause goes on from the one before ("and a dog")."""
    return isinstance(clause[0], Token) and clause[0].kind in ("CONJ", "WITH", "THEN", "ADVERB")


def _only_known(clause: list[Item], nouns: list[Noun], sheet: Sheet) -> bool:
    """Return whether a clause says "only the cat", "just one cat"."""
    only = any(isinstance(item, Token) and item.kind == "ONLY" and item.text.lower() != "just" for item in clause)
    there = {draft.species for draft in sheet.drafts}
    edits = any(isinstance(item, Token) and item.kind in ("CMD", *ATTRIBUTE_KINDS) for item in clause)
    return bool(only and not edits and sheet.drafts and nouns and all(noun.species in there for noun in nouns))


def _exchanges_for_new(clause: list[Item], nouns: list[Noun], sheet: Sheet) -> bool:
    """Return whether "swap the dog for a fox" means a replacement."""
    return len(nouns) == 2 and not refers(nouns[1], sheet) and nouns[1].kind == "noun"


def _is_count(clause: list[Item], commands: list[str], nouns: list[Noun], sheet: Sheet) -> bool:
    """Return whether a clause sets how many there are."""
    counted = [
        noun for noun in nouns if noun.number is not None and noun.det == "indef" and noun.kind in ("noun", "one")
    ]
    if len(counted) != 1 or "draw" in commands or "add" in commands:
        return False
    if any(isinstance(item, Token) and item.text in ("再", "又", "多") for item in clause):
        return False
    noun = counted[0]
    if noun is not nouns[-1]:
        return False
    there = {draft.species for draft in sheet.drafts}
    others = [other for other in nouns if other is not noun]
    if any(other.kind == "noun" and other.species != noun.species and noun.kind == "noun" for other in others):
        return False
    makes = "change" in commands or "replace" in commands
    wants = any(isinstance(item, Token) and (item.kind in ("MODAL", "BE", "ONLY")) for item in clause)
    if noun.kind == "one":
        return makes and (noun.han or bool(others))
    return noun.species in there and (makes or (wants and not commands))


def _is_replacement(clause: list[Item], nouns: list[Noun], sheet: Sheet) -> bool:
    """Return whether a clause puts one thing in another's place."""
    things = [noun for noun in nouns if noun.kind in ("noun", "pron", "one", "unknown")]
    worn_things = [item for item in clause if isinstance(item, Token) and item.kind == "ACCESSORY"]
    if len(things) >= 2 and things[1].kind == "noun":
        if names_new_first(clause):
            return not refers(things[0], sheet) or things[0].det == "indef"
        between = clause[clause.index(things[0]) + 1 : clause.index(things[1])]
        if any(
            isinstance(item, Token) and item.kind in ("WEAK", "REL", "LOOKAT", *ATTRIBUTE_KINDS) for item in between
        ):
            return False
        turns = any(isinstance(item, Token) and item.kind in ("TO", "WITH") for item in between) or any(
            isinstance(item, Token) and item.kind == "CMD" and item.key == "replace" for item in clause
        )
        if things[1].han and not turns:
            return False
        return things[1].det != "def" and not _conjoined(clause, things[0], things[1])
    if len(things) == 1 and things[0].kind == "noun" and not refers(things[0], sheet):
        return any(isinstance(item, Token) and item.kind == "CMD" and item.key == "replace" for item in clause)
    return len(worn_things) >= 2 and not things


def _conjoined(clause: list[Item], a: Noun, b: Noun) -> bool:
    """Return whether two nouns are joined by "and"."""
    between = clause[clause.index(a) + 1 : clause.index(b)]
    return bool(between) and all(isinstance(item, Token) and item.kind in ("CONJ", "WEAK", "DET") for item in between)


def _anchors_known(clause: list[Item], sheet: Sheet) -> bool:
    """Return whether a relation in the clause is with somebody who is already there."""
    described, _ = describe_nouns(clause, sheet)
    return any(noun.anchor is not None and refers(noun.anchor, sheet) for noun in described)
