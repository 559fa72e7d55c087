"""What a clause says about its noun phrases: attributes, places and relations, bound to the right noun."""

from __future__ import annotations

from .draft import Sheet
from .grammar import Item, Noun, Token
from .references import OBJECT_KEYS, refers
from .scenery import SMALL_KINDS

ATTRIBUTE_KINDS = ("COLOUR", "ACCESSORY", "EXPRESSION", "FACING", "SIZE", "PLACE", "VARIED")
_PLACE_RELATIONS = {"left": "left", "right": "right", "top": "above", "bottom": "below"}


def gather(clause: list[Item]) -> list[Item]:
    """Make "one of them" one phrase, and let 都 make the nouns before it mean all of them."""
    result: list[Item] = []
    for index, item in enumerate(clause):
        last = result[-1] if result else None
        if isinstance(item, Token) and item.kind == "DE" and isinstance(last, Token) and _names_by_place(clause, index):
            result[-1] = Noun(
                "one", None, last.start, item.end, last.text, det="def", attrs={"place": last.key}, han=True
            )
            continue
        if isinstance(item, Token) and item.text.lower() in ("on", "onto") and _stands_on(clause, index):
            item = Token("REL", "above", item.text, item.start, item.end, item.han)
        if isinstance(item, Noun) and item.attrs.get("facing") == "flip":
            item.attrs["facing"] = "left"
        if isinstance(item, Noun) and item.kind == "all" and item.han and item.text in ("都", "全", "全都", "全部"):
            for noun in result:
                if isinstance(noun, Noun):
                    noun.every = True
                    noun.det = "bare" if noun.det == "indef" else noun.det
        if (
            isinstance(item, Noun)
            and isinstance(last, Noun)
            and item.kind == "one"
            and item.han
            and item.number
            and not item.attrs
            and last.kind == "noun"
            and last.number is None
            and last.end == item.start
        ):
            last.number, last.det, last.plural, last.end = item.number, "indef", item.number > 1, item.end
            continue
        if (
            isinstance(item, Noun)
            and isinstance(last, Token)
            and last.text.lower() == "of"
            and len(result) > 1
            and isinstance(result[-2], Noun)
            and result[-2].kind == "one"
        ):
            one = result[-2]
            result[-2:] = []
            item.number, item.det, item.plural = one.number or 1, "indef", False
            item.kind = "one" if item.kind == "pron" else item.kind
            item.attrs = one.attrs | item.attrs
            item.text = "one of " + item.text
        if (
            isinstance(item, Token)
            and item.kind == "SIZE"
            and isinstance(last, Token)
            and last.text.lower() in ("too", "太")
        ):
            sign = {"large": "-", "small": "+"}.get(item.key)
            if sign is not None:
                item = Token("COMP", sign, item.text, item.start, item.end, item.han)
        result.append(item)
    return result


def _names_by_place(clause: list[Item], index: int) -> bool:
    """Return whether a Chinese place and 的 name somebody ("最左边的戴个耳机")."""
    place, following = clause[index - 1], clause[index + 1] if index + 1 < len(clause) else None
    before = clause[index - 2] if index > 1 else None
    opens = before is None or (isinstance(before, Token) and before.kind in ("WEAK", "CONJ", "FUNC"))
    acts = isinstance(following, Token) and following.kind in ("CMD", "COLOUR", "COMP", "FACING", "EXPRESSION")
    return isinstance(place, Token) and place.kind == "PLACE" and place.han and opens and acts


def _stands_on(clause: list[Item], index: int) -> bool:
    """Return whether "on" says that somebody is on top of a thing ("an owl on a tree")."""
    at = next_noun(clause, index)
    below = clause[at] if at is not None else None
    if not isinstance(below, Noun) or below.species not in OBJECT_KEYS:
        return False
    before = next(
        (item for item in reversed(clause[:index]) if isinstance(item, Noun) or item.kind not in (*SMALL_KINDS, "OUT")),
        None,
    )
    return isinstance(before, Noun) and before.kind != "unknown"


def deny_colours(clause: list[Item]) -> list[Item]:
    """Drop colours that are only said not to be ("not red")."""
    result: list[Item] = []
    index = 0
    while index < len(clause):
        item = clause[index]
        if isinstance(item, Token) and item.kind == "NEG":
            at = index + 1
            while at < len(clause) and clause[at].kind in ("FUNC", "BE", "DE", "CMD"):
                at += 1
            denied = clause[at] if at < len(clause) else None
            if isinstance(denied, Token) and denied.kind in ("COLOUR", "SIZE"):
                index = at + 1
                continue
        result.append(item)
        index += 1
    return result


def pin_down(clause: list[Item], sheet: Sheet) -> list[Item]:
    """Let what follows a noun tell which one is meant ("the cat on the left", "the one with the hat")."""
    moves = any(
        isinstance(item, Token)
        and item.kind == "CMD"
        and item.key in ("move", "put", "take")
        and item.text.lower() not in ("give", "gives", "gave", "给")
        for item in clause
    )
    result: list[Item] = []
    index = 0
    while index < len(clause):
        item = clause[index]
        result.append(item)
        index += 1
        if (
            not isinstance(item, Noun)
            or item.det not in ("def", "other")
            or item.kind not in ("noun", "one", "generic")
        ):
            continue
        rivals = [draft for draft in sheet.drafts if item.species in (None, draft.species)]
        if len(rivals) < 2:
            continue
        following = clause[index] if index < len(clause) else None
        later = clause[index + 1 :]
        goes = any(isinstance(i, Token) and i.kind in ("PLACE", "REL", "BACKGROUND") for i in later)
        if isinstance(following, Token) and following.kind == "PLACE" and not following.han and (goes or not moves):
            stated = any(
                isinstance(i, Token) and i.kind in (*ATTRIBUTE_KINDS, "COMP", "CMD", "NEG")
                for i in [*result[:-1], *later]
            )
            if stated:
                item.attrs.setdefault("place", following.key)
                index += 1
        elif isinstance(following, Token) and following.kind == "WITH":
            at = index + 1
            while at < len(clause) and isinstance(clause[at], Token) and clause[at].kind == "DET":
                at += 1
            worn_item = clause[at] if at < len(clause) else None
            if isinstance(worn_item, Token) and worn_item.kind == "ACCESSORY":
                if any(draft.attrs["accessory"] == worn_item.key for draft in rivals):
                    item.attrs.setdefault("accessory", worn_item.key)
                    index = at + 1
    return result


def describe_nouns(clause: list[Item], sheet: Sheet) -> tuple[list[Noun], list[Noun]]:
    """Bind what a creating clause says to its noun phrases.

    Returns:
        The noun phrases in order, their ``attrs`` filled in ("place" among them), and those said not to be there.
    """
    group: list[Noun] = []
    current: list[Noun] = []
    excluded: list[Noun] = []
    pending: dict[str, str] = {}
    waiting: tuple[str, Noun] | None = None
    negated = False
    skip: set[int] = set()
    for index, item in enumerate(clause):
        if index in skip:
            continue
        if isinstance(item, Noun):
            if negated:
                excluded.append(item)
                negated, current = False, [Noun("unknown", None, item.start, item.end, item.text)]
                continue
            relation = relation_after(clause, index)
            if relation is not None:
                key, end, subject = relation
                skip.update(range(index + 1, end))
                anchor = _antecedent(item, group, current)
                if anchor is not item:
                    item = anchor
                elif (
                    item.kind == "noun"
                    and item not in group
                    and (item.det in ("indef", "another") or not refers(item, sheet))
                ):
                    group.append(item)
                if subject == "next":
                    waiting = (key, anchor)
                elif current and current[-1] is not item:
                    for noun in current:
                        noun.relation, noun.anchor = key, anchor
                elif len(group) > 1 and subject == "previous":
                    group[-2].relation, group[-2].anchor = key, anchor
                continue
            if item.kind in ("pron", "all") and group:
                current = list(group) if item.plural else group[-1:]
                continue
            whole = next((noun for noun in reversed(group) if noun.kind == "noun"), None)
            if item.kind == "one" and current and item.det in ("bare", "indef") and (whole is None or not whole.plural):
                for noun in current:
                    _apply(noun, item.attrs)
                continue
            if item.kind == "one" and whole is not None and whole.plural:
                item.species, item.kind = whole.species, "member"
                group.append(item)
                current = [item]
                _apply(item, pending)
                pending = {}
                continue
            again = _antecedent(item, group, []) if item.kind == "noun" and waiting is None and not pending else item
            if again is not item and again.attrs.get("colour") == item.attrs.get("colour", again.attrs.get("colour")):
                for name, value in item.attrs.items():
                    again.attrs.setdefault(name, value)
                current = [again]
                continue
            if waiting is not None:
                item.relation, item.anchor = waiting
                waiting = None
            _apply(item, pending)
            pending = {}
            if item.kind != "unknown":
                group.append(item)
            current = [item]
            continue
        if item.kind == "NEG":
            negated = True
        elif item.kind == "REL":
            anchor_at = next_noun(clause, index)
            if anchor_at is None:
                if current and item.han and len(group) > 1:
                    continue
                if item.key == "beside" and group:
                    waiting = (item.key, group[-1])
                continue
            named = clause[anchor_at]
            assert isinstance(named, Noun)
            skip.add(anchor_at)
            anchor = _antecedent(named, group, current)
            if anchor.kind == "noun" and anchor not in group and (anchor.det == "indef" or not refers(anchor, sheet)):
                _apply(anchor, pending)
                pending = {}
                group.append(anchor)
            if current:
                for noun in current:
                    noun.relation, noun.anchor = item.key, anchor
            else:
                waiting = (item.key, anchor)
        elif item.kind == "LOOKAT" and item.key == "each other":
            if len(group) > 1:
                group[-2].gaze, group[-1].gaze = group[-1], group[-2]
        elif item.kind == "LOOKAT":
            seen_at = next_noun(clause, index)
            seen = clause[seen_at] if seen_at is not None else None
            if isinstance(seen, Noun) and current:
                for noun in current:
                    noun.gaze = _antecedent(seen, group, current)
                if seen.kind == "pron" or seen.det in ("def", "bare"):
                    skip.add(int(seen_at or 0))
        elif item.kind in ATTRIBUTE_KINDS:
            name, key = item.kind.lower(), "left" if item.key == "flip" else item.key
            if negated and item.kind == "ACCESSORY":
                for noun in current:
                    noun.lacks.add(item.key)
                negated = False
                continue
            if negated:
                negated = False
                continue
            if item.kind == "PLACE" and _places_next(clause, index):
                pending["place"] = item.key
                continue
            targets = group if item.plural and len(group) > 1 and item.kind == "ACCESSORY" else current
            if not targets:
                pending.setdefault(name, key)
            for noun in targets:
                if noun.kind != "unknown":
                    if name == "accessory" and noun.attrs.get(name, item.key) != item.key:
                        sheet.note("one_accessory", "everyone wears one thing at a time", "每个角色一次只戴一样")
                    noun.attrs.setdefault(name, key)
        elif item.kind == "COMP":
            for noun in current:
                noun.attrs.setdefault("size", "large" if item.key == "+" else "small")
    if len(group) > 2 and group[0].number == len(group) - 1 and not group[0].attrs:
        kind = group[0].species
        if all(noun.kind == "noun" and noun.species == kind and noun.number in (None, 1) for noun in group[1:]):
            group = group[1:]
    if pending and group:
        for noun in group[:1]:
            _apply(noun, pending)
    return group, excluded


def _antecedent(noun: Noun, group: list[Noun], current: list[Noun]) -> Noun:
    """Return the noun phrase of the same clause that a pronoun or "the boat" goes back to, or the noun itself."""
    earlier = [other for other in group if other not in current] or group
    if noun.kind == "pron" and earlier:
        return earlier[-1]
    if noun.kind == "noun" and noun.det in ("def", "bare"):
        same = [other for other in group if other.species == noun.species]
        return same[-1] if same else noun
    return noun


def _apply(noun: Noun, values: dict[str, str]) -> None:
    """Set what was said before a noun, unless the noun says otherwise."""
    for name, value in values.items():
        noun.attrs.setdefault(name, value)


def next_noun(clause: list[Item], index: int) -> int | None:
    """Return where the noun phrase right after an item is."""
    for at in range(index + 1, len(clause)):
        item = clause[at]
        if isinstance(item, Noun):
            return at
        if item.kind not in (*SMALL_KINDS, "DET"):
            return None
    return None


def _places_next(clause: list[Item], index: int) -> bool:
    """Return whether a place word belongs to the noun after it ("左边一只猫", "on the left a cat")."""
    at = next_noun(clause, index)
    if at is None or any(isinstance(item, Token) and item.kind in ("WEAK", "CONJ") for item in clause[index:at]):
        return False
    noun = clause[at]
    if isinstance(noun, Noun) and noun.kind in ("pron",):
        return False
    for item in reversed(clause[:index]):
        if isinstance(item, Noun):
            return False
        if item.kind in ("WEAK", "CONJ", "CMD", "STRONG"):
            return True
        if item.kind in ATTRIBUTE_KINDS:
            return False
    return True


def relation_after(clause: list[Item], index: int) -> tuple[str, int, str] | None:
    """Return relation, end and subject of a Chinese "noun + place" ("猫的左边", "在房子旁边").

    The subject is ``next`` when the relation says where something else is, ``previous`` when the noun before it is.
    """
    at = index + 1
    item = clause[at] if at < len(clause) else None
    if isinstance(item, Token) and item.kind == "DE":
        at += 1
        item = clause[at] if at < len(clause) else None
    if not isinstance(item, Token) or not item.han or item.gap:
        return None
    if item.kind == "REL":
        key = item.key
    elif item.kind == "FUNC" and item.text in ("上", "下") and at == index + 1:
        key = "above" if item.text == "上" else "below"
    elif item.kind == "PLACE" and item.key in _PLACE_RELATIONS:
        key = _PLACE_RELATIONS[item.key]
    else:
        return None
    before = next(
        (part for part in reversed(clause[:index]) if isinstance(part, Noun) or part.kind not in ("FUNC", "DEGREE")),
        None,
    )
    is_at = isinstance(before, Token) and (before.kind in ("BE", "CMD"))
    has_prior = any(isinstance(part, Noun) for part in clause[:index])
    following = _after_relation(clause, at + 1)
    if following and not (is_at and has_prior and _joined_prior(clause, index)):
        return key, at + 1, "next"
    return key, at + 1, "previous"


def _joined_prior(clause: list[Item], index: int) -> bool:
    """Return whether the noun before belongs to this relation: no punctuation in between."""
    for item in reversed(clause[:index]):
        if isinstance(item, Noun):
            return True
        if item.kind in ("WEAK", "CONJ"):
            return False
    return False


def _after_relation(clause: list[Item], at: int) -> bool:
    """Return whether a noun follows within the same breath."""
    for item in clause[at:]:
        if isinstance(item, Noun):
            return True
        if item.kind not in (*SMALL_KINDS, "CMD", "DET", "ADVERB"):
            return False
    return False
