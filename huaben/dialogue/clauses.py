"""What each clause of a message does to the sheet: create, add, remove, replace, change, move, count."""

from __future__ import annotations

from collections.abc import Callable

from ..promptbook.layout import centre, height
from ..world.scene import place_key, size_key
from ..world.vocabulary import ANIMALS, term
from .draft import Draft, Sheet, Stuck
from .grammar import Item, Noun, Token
from .lexicon import POSES
from .stage import HIGH_SPECIES
from .words import NUMBERS_EN, NUMBERS_ZH, WHERE, join, worn

ANIMAL_KEYS = frozenset(entry.key for entry in ANIMALS)
_ATTRS = ("COLOUR", "ACCESSORY", "EXPRESSION", "FACING", "SIZE", "PLACE", "VARIED")
_VARIETY = ("red", "blue", "yellow", "green", "purple", "white", "pink", "black", "orange", "teal", "brown", "gray")
_SMALL = ("FUNC", "BE", "DE", "MODAL", "FLUFF", "ADVERB", "DEGREE", "THEN", "SHADE", "ONLY", "POSE")
_PLACE_RELATIONS = {"left": "left", "right": "right", "top": "above", "bottom": "below"}


def interpret(clause: list[Item], sheet: Sheet, *, first: bool) -> None:
    """Apply one clause to the sheet.

    Args:
        clause: its items.
        sheet: changed in place.
        first: whether no clause of this message drew or added anything yet.

    Raises:
        Stuck: when something has to be asked.
    """
    clause = _skip_accessory_looks(clause, sheet)
    clause = _pin_down(_gather(clause), sheet)
    told = len(sheet.did)
    clause = _take_scene(clause, sheet)
    if not _has_content(clause, scene=len(sheet.did) > told):
        return
    commands = [item.key for item in clause if isinstance(item, Token) and item.kind == "CMD"]
    if "take" in commands:
        away = any(isinstance(i, Token) and i.text.lower() in ("off", "away", "out", "down", "from") for i in clause)
        commands.append("remove" if away else "move")
    nouns = [item for item in clause if isinstance(item, Noun)]
    handler = _choose(clause, commands, nouns, sheet, first)
    handler(clause, sheet)


def _choose(
    clause: list[Item], commands: list[str], nouns: list[Noun], sheet: Sheet, first: bool
) -> Callable[[list[Item], Sheet], None]:
    """Return what a clause is for."""
    here = bool(sheet.drafts) or sheet.page is not None
    negated = _opens_negated(clause)
    if "keep" in commands or _only_known(clause, nouns, sheet):
        return _keep_or_count
    if "remove" in commands or negated:
        return _remove
    if "swap" in commands and here and not _exchanges_for_new(clause, nouns, sheet):
        return _swap
    if here and _is_count(clause, commands, nouns, sheet):
        return _count
    if (
        here
        and ("replace" in commands or "swap" in commands or "change" in commands)
        and _is_replacement(clause, nouns, sheet)
    ):
        return _replace
    known = [noun for noun in nouns if _refers(noun, sheet)]
    values = [item for item in clause if isinstance(item, Token) and item.kind in (*_ATTRS, "COMP", "UPDOWN")]
    if "add" in commands and here:
        return _add
    if "draw" in commands:
        if here and known and known[0] is nouns[0] and any(item.kind in ("COMP", "COLOUR") for item in values):
            return _change
        if here and "put" in commands and known and values and len(nouns) == 1:
            return _change
        if here and known and len(known) < len(nouns) and _anchors_known(clause, sheet):
            return _add
        return _add if not first else _draw
    if not here:
        edits = {"change", "replace", "move", "swap", "enlarge", "shrink", "put"} & set(commands)
        named = [noun for noun in nouns if noun.kind in ("noun", "unknown")]
        return _draw if named and not (edits and all(noun.det in ("def", "bare") for noun in named)) else _change
    if not nouns:
        return _change
    if not first and nouns[0].kind == "noun" and nouns[0] not in known and not commands:
        return _add
    if not first and not known:
        return _add
    if commands:
        if "put" in commands or "move" in commands:
            fresh = [noun for noun in nouns if noun.kind == "noun" and noun.det in ("indef", "another")]
            fresh += [noun for noun in nouns[:1] if noun.kind == "noun" and noun not in known and noun.det == "bare"]
            if fresh and not (known and known[0] is nouns[0] and fresh[0] is not nouns[0] and "move" in commands):
                return _add
        if "change" in commands and nouns[0].kind == "noun" and nouns[0] not in known:
            return _draw if nouns[0].det in ("indef", "bare") and not values else _change
        if "dress" in commands and not known and first:
            return _draw
        return _change
    if _starts_with_and(clause) and nouns[0] not in known:
        return _add
    if known and nouns[0] not in known and _anchors_known(clause, sheet):
        return _add
    if known and nouns[0] in known:
        fresh = [noun for noun in nouns if noun not in known and noun.kind == "noun"]
        if fresh:
            return _add
        return _change
    if any(
        isinstance(item, Token) and item.kind in ("ADVERB", "MODAL") and item.key in ("too", "can") for item in clause
    ):
        return _add
    return _draw if first else _add


# ------------------------------------------------------------------------------------------------------ small questions


def _has_content(clause: list[Item], *, scene: bool) -> bool:
    """Return whether a clause still says something, once its background and style are taken."""
    return any(
        isinstance(item, Noun)
        or item.kind in (*_ATTRS, "COMP", "UPDOWN", "VAGUE")
        or (item.kind == "CMD" and item.key in ("remove", "swap", "enlarge", "shrink"))
        or (item.kind == "CMD" and item.key in ("replace", "change", "move") and not scene)
        for item in clause
    )


def _gather(clause: list[Item]) -> list[Item]:
    """Make "one of them" one phrase, and let 都 make the nouns before it mean all of them."""
    result: list[Item] = []
    for item in clause:
        last = result[-1] if result else None
        if isinstance(item, Noun) and item.kind == "all" and item.han and item.text in ("都", "全", "全都", "全部"):
            for noun in result:
                if isinstance(noun, Noun):
                    noun.plural = True
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


def _pin_down(clause: list[Item], sheet: Sheet) -> list[Item]:
    """Let what follows a noun tell which one is meant ("the cat on the left", "the one with the hat")."""
    moves = any(
        isinstance(item, Token) and item.kind == "CMD" and item.key in ("move", "put", "take") for item in clause
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
                isinstance(i, Token) and i.kind in (*_ATTRS, "COMP", "CMD", "NEG") for i in [*result[:-1], *later]
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


def _opens_negated(clause: list[Item]) -> bool:
    """Return whether a clause begins by saying no to what follows."""
    for index, item in enumerate(clause):
        if isinstance(item, Noun):
            rest = clause[index + 1 : index + 3]
            return bool(item.han and rest and isinstance(rest[0], Token) and rest[0].text in ("不要", "不要了"))
        if item.kind == "NEG":
            return True
        if item.kind == "ACCESSORY":
            return any(isinstance(other, Token) and other.kind == "NEG" and other.han for other in clause[index:])
        if item.kind in ("CMD", "VAGUE"):
            return False
    return False


def _starts_with_and(clause: list[Item]) -> bool:
    """Return whether a clause goes on from the one before ("and a dog")."""
    return isinstance(clause[0], Token) and clause[0].kind in ("CONJ", "WITH", "THEN", "ADVERB")


def _refers(noun: Noun, sheet: Sheet) -> bool:
    """Return whether a noun phrase names somebody who is already there."""
    if noun.kind in ("pron", "all", "generic"):
        return bool(sheet.drafts)
    if noun.kind == "one":
        return noun.det in ("def", "other") or (noun.number is None and bool(noun.attrs))
    if noun.kind != "noun" or noun.det in ("indef", "another"):
        return False
    colour = noun.attrs.get("colour") if noun.det == "bare" else None
    return any(draft.species == noun.species and colour in (None, draft.attrs["colour"]) for draft in sheet.drafts)


def _only_known(clause: list[Item], nouns: list[Noun], sheet: Sheet) -> bool:
    """Return whether a clause says "only the cat", "just one cat"."""
    only = any(isinstance(item, Token) and item.kind == "ONLY" and item.text.lower() != "just" for item in clause)
    there = {draft.species for draft in sheet.drafts}
    return bool(only and sheet.drafts and nouns and all(noun.species in there for noun in nouns))


def _exchanges_for_new(clause: list[Item], nouns: list[Noun], sheet: Sheet) -> bool:
    """Return whether "swap the dog for a fox" means a replacement."""
    return len(nouns) == 2 and not _refers(nouns[1], sheet) and nouns[1].kind == "noun"


def _is_count(clause: list[Item], commands: list[str], nouns: list[Noun], sheet: Sheet) -> bool:
    """Return whether a clause sets how many there are."""
    counted = [
        noun for noun in nouns if noun.number is not None and noun.det == "indef" and noun.kind in ("noun", "one")
    ]
    if len(counted) != 1 or "draw" in commands or "add" in commands:
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
        if _reversed(clause):
            return not _refers(things[0], sheet) or things[0].det == "indef"
        between = clause[clause.index(things[0]) + 1 : clause.index(things[1])]
        if any(isinstance(item, Token) and item.kind in ("WEAK", "REL", *_ATTRS) for item in between):
            return False
        return things[1].det != "def" and not _conjoined(clause, things[0], things[1])
    if len(things) == 1 and things[0].kind == "noun" and not _refers(things[0], sheet):
        return any(isinstance(item, Token) and item.kind == "CMD" and item.key == "replace" for item in clause)
    return len(worn_things) >= 2 and not things


def _conjoined(clause: list[Item], a: Noun, b: Noun) -> bool:
    """Return whether two nouns are joined by "and"."""
    between = clause[clause.index(a) + 1 : clause.index(b)]
    return bool(between) and all(isinstance(item, Token) and item.kind in ("CONJ", "WEAK", "DET") for item in between)


def _reversed(clause: list[Item]) -> bool:
    """Return whether the new thing is named first ("a fox instead of the dog", "用狐狸代替狗")."""
    return any(
        isinstance(item, Token) and (item.text.lower() == "instead of" or item.text in ("代替", "取代", "替代"))
        for item in clause
    ) and any(isinstance(item, Noun) for item in clause[:1] + clause[1:3])


def _anchors_known(clause: list[Item], sheet: Sheet) -> bool:
    """Return whether a relation in the clause is with somebody who is already there."""
    described, _ = describe_nouns(clause, sheet)
    return any(noun.anchor is not None and _refers(noun.anchor, sheet) for noun in described)


# -------------------------------------------------------------------------------------------------- background and style


def _skip_accessory_looks(clause: list[Item], sheet: Sheet) -> list[Item]:
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


def _take_scene(clause: list[Item], sheet: Sheet) -> list[Item]:
    """Set background and style from a clause; return what is left of it."""
    commands = {item.key for item in clause if isinstance(item, Token) and item.kind == "CMD"}
    backgrounds: list[int] = []
    styles: list[int] = []
    rest: list[Item] = []
    scenes = sum(isinstance(item, Token) and item.kind == "BACKGROUND" for item in clause)
    for index, item in enumerate(clause):
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
        if item.kind not in (*_SMALL, "DET", "PROP"):
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


def _set_scene(kind: str, key: str, sheet: Sheet) -> None:
    """Set background or style."""
    entry = term(kind, key)
    if kind == "background":
        if sheet.background != key:
            sheet.background = key
            sheet.changed = True
        sheet.say(f"the scene is now {WHERE[key][0]}", f"场景换到了{WHERE[key][1]}")
    else:
        if sheet.style != key:
            sheet.style = key
        sheet.say(f"the style is now {entry.en[0]}", f"风格换成了{entry.zh[0]}")


# ----------------------------------------------------------------------------------------------------------- describing


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
            relation = _relation_after(clause, index)
            if relation is not None:
                key, end, subject = relation
                skip.update(range(index + 1, end))
                anchor = _antecedent(item, group, current)
                if anchor is not item:
                    item = anchor
                elif item.kind == "noun" and item.det in ("indef", "another") and item not in group:
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
            anchor_at = _next_noun(clause, index)
            if anchor_at is None:
                if current and item.han and len(group) > 1:
                    continue
                if item.key == "beside" and group:
                    waiting = (item.key, group[-1])
                continue
            anchor = clause[anchor_at]
            assert isinstance(anchor, Noun)
            skip.add(anchor_at)
            anchor = _antecedent(anchor, group, current)
            if anchor.kind == "noun" and anchor not in group and (anchor.det == "indef" or not _refers(anchor, sheet)):
                _apply(anchor, pending)
                pending = {}
                group.append(anchor)
            if current:
                for noun in current:
                    noun.relation, noun.anchor = item.key, anchor
            else:
                waiting = (item.key, anchor)
        elif item.kind in _ATTRS:
            name = item.kind.lower()
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
                pending.setdefault(name, item.key)
            for noun in targets:
                if noun.kind == "pron" or noun.kind == "noun" or noun.kind in ("one", "member", "all", "generic"):
                    if name == "accessory" and noun.attrs.get(name, item.key) != item.key:
                        sheet.note("one_accessory", "everyone wears one thing at a time", "每个角色一次只戴一样")
                    noun.attrs.setdefault(name, item.key)
        elif item.kind == "POSE":
            _pose(item, current, sheet)
        elif item.kind == "COMP":
            for noun in current:
                noun.attrs.setdefault("size", "large" if item.key == "+" else "small")
        elif item.kind == "ADVERB" and item.key == "too":
            continue
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


def _pose(item: Token, current: list[Noun], sheet: Sheet) -> None:
    """Accept a verb that says what a species does anyway; report it otherwise."""
    suits = POSES[item.key]
    if current and all(noun.species in suits or noun.kind != "noun" for noun in current):
        if "fly" in item.text.lower() or "飞" in item.text or "float" in item.text.lower() or "飘" in item.text:
            for noun in current:
                if noun.species in HIGH_SPECIES:
                    continue
        return
    del sheet


def _next_noun(clause: list[Item], index: int) -> int | None:
    """Return where the noun phrase right after an item is."""
    for at in range(index + 1, len(clause)):
        item = clause[at]
        if isinstance(item, Noun):
            return at
        if item.kind not in (*_SMALL, "DET"):
            return None
    return None


def _places_next(clause: list[Item], index: int) -> bool:
    """Return whether a place word belongs to the noun after it ("左边一只猫", "on the left a cat")."""
    at = _next_noun(clause, index)
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
        if item.kind in _ATTRS:
            return False
    return True


def _relation_after(clause: list[Item], index: int) -> tuple[str, int, str] | None:
    """Return relation, end and subject of a Chinese "noun + place" ("猫的左边", "在房子旁边").

    The subject is ``next`` when the relation says where something else is, ``previous`` when the noun before it is.
    """
    at = index + 1
    if at < len(clause) and isinstance(clause[at], Token) and _kind(clause[at]) == "DE":
        at += 1
    if at >= len(clause):
        return None
    item = clause[at]
    if not isinstance(item, Token) or not item.han or item.gap:
        return None
    if item.kind == "REL":
        key = item.key
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


def _kind(item: Item) -> str:
    return item.kind


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
        if item.kind not in (*_SMALL, "CMD", "DET", "ADVERB"):
            return False
    return False


# ------------------------------------------------------------------------------------------------------------ references


def resolve(noun: Noun, sheet: Sheet, *, among: list[Draft] | None = None) -> list[Draft]:
    """Return who a noun phrase names.

    Raises:
        Stuck: when nobody fits, or several do and one was meant.
    """
    pool = list(sheet.drafts if among is None else among)
    if not pool:
        raise _nobody(noun, sheet)
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
        raise _nobody(noun, sheet)
    if noun.det in ("other", "another") and len(fits) > 1:
        fits = [draft for draft in fits if draft.id not in sheet.focus] or fits
    fits = _filter(noun, fits, sheet)
    if len(fits) == 1 or noun.plural or noun.kind == "all":
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
                raise _nobody(noun, sheet)
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


def _nobody(noun: Noun, sheet: Sheet) -> Stuck:
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
    from .message import Pending

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


# --------------------------------------------------------------------------------------------------------------- create


def _draw(clause: list[Item], sheet: Sheet) -> None:
    """Start a new scene from a clause."""
    nouns, excluded = describe_nouns(clause, sheet)
    kept: dict[int, list[Draft]] = {}
    for noun in nouns:
        if _refers(noun, sheet):
            kept[id(noun)] = resolve(noun, sheet)
        elif noun.kind == "noun" and noun.det in ("def", "bare") and noun.species:
            back = sheet.absent(noun.species)
            if back and not noun.plural and _fits_look(noun, back[0].attribute("colour")):
                kept[id(noun)] = []
    if not nouns and not excluded and sheet.drafts:
        return
    before = {draft.id: draft for draft in sheet.drafts}
    returning = {id(noun): sheet.absent(noun.species or "") for noun in nouns if kept.get(id(noun)) == []}
    stays = [draft for drafts in kept.values() for draft in drafts]
    sheet.restart()
    sheet.drafts = [draft for draft in before.values() if draft in stays]
    made: dict[int, list[Draft]] = {}
    for noun in nouns:
        if kept.get(id(noun)):
            made[id(noun)] = kept[id(noun)]
            _set_values(noun, kept[id(noun)], sheet)
        elif id(noun) in returning:
            draft = sheet.bring_back(returning[id(noun)][0])
            made[id(noun)] = [draft] if draft else []
            _set_values(noun, made[id(noun)], sheet)
    _make(nouns, made, sheet)
    for noun in excluded:
        _exclude(noun, sheet)
    sheet.look_at([draft for noun in nouns for draft in made.get(id(noun), [])])
    sheet.changed = True


def _fits_look(noun: Noun, colour: str) -> bool:
    return noun.attrs.get("colour", colour) == colour


def _make(nouns: list[Noun], made: dict[int, list[Draft]], sheet: Sheet) -> None:
    """Create the characters of noun phrases, then their relations and the members of groups."""
    group: list[Draft] = []
    member = 0
    for noun in nouns:
        if noun.kind == "member":
            for _ in range(noun.number or 1):
                if member < len(group):
                    _set_values(noun, [group[member]], sheet)
                    member += 1
            continue
        if id(noun) in made or noun.kind != "noun" or noun.species is None:
            continue
        count = (
            noun.number
            if noun.number is not None
            else 3
            if noun.det == "indef" and noun.plural
            else 2
            if noun.plural
            else 1
        )
        attrs = {"species": noun.species}
        attrs |= {k: v for k, v in noun.attrs.items() if k in ("colour", "accessory", "expression", "facing", "size")}
        if noun.hint and "size" not in attrs:
            attrs["size"] = noun.hint
        group, member = [], 0
        for turn in range(count):
            if "varied" in noun.attrs:
                attrs["colour"] = _VARIETY[turn % len(_VARIETY)]
            draft = sheet.new(dict(attrs))
            if draft is None:
                continue
            draft.place = noun.attrs.get("place")
            if draft.place == "top" and count > 1:
                draft.place = ("top left", "top right", "top", None)[min(len(group), 3)]
            group.append(draft)
        made[id(noun)] = group
    for noun in nouns:
        if noun.relation is None or noun.anchor is None or not made.get(id(noun)):
            continue
        anchors = made.get(id(noun.anchor)) or resolve(noun.anchor, sheet)
        for draft in made[id(noun)]:
            if anchors and anchors[0] is not draft:
                sheet.relate(draft, noun.relation, anchors[0])


def _exclude(noun: Noun, sheet: Sheet) -> None:
    """Remember what must not be there."""
    for draft in [draft for draft in sheet.drafts if draft.species == noun.species]:
        sheet.drop(draft)
    if noun.species is not None:
        name = term("species", noun.species).name(sheet.language)
        if name not in sheet.negative:
            sheet.negative.append(name)
        sheet.say(f"there is no {noun.species}", f"没有{term('species', noun.species).zh[0]}")


def _add(clause: list[Item], sheet: Sheet) -> None:
    """Add characters to the scene; somebody who was there before comes back as they were."""
    if not any(isinstance(item, Noun) for item in clause):
        _change(clause, sheet)
        return
    nouns, excluded = describe_nouns(clause, sheet)
    accessories = any(isinstance(item, Token) and item.kind == "ACCESSORY" for item in clause)
    if accessories and nouns and all(_refers(noun, sheet) for noun in nouns):
        _change(clause, sheet)
        return
    made: dict[int, list[Draft]] = {}
    fresh: list[Noun] = []
    for noun in nouns:
        if noun.kind == "one" and noun.det in ("indef", "another"):
            _copy_focus(noun, made, sheet)
        elif _refers(noun, sheet) and noun.det != "another":
            found = resolve(noun, sheet)
            made[id(noun)] = found
            _set_values(noun, found, sheet)
        elif (
            noun.kind == "noun" and noun.det in ("def", "bare") and not noun.plural and sheet.absent(noun.species or "")
        ):
            draft = sheet.bring_back(sheet.absent(noun.species or "")[0])
            made[id(noun)] = [draft] if draft else []
            if draft is not None:
                _set_values(noun, [draft], sheet)
                sheet.say(f"{draft.the('en')} is back", f"{draft.the('zh')}回来了")
                fresh.append(noun)
        elif noun.kind == "noun":
            if noun.det == "another" and not {"colour", "accessory"} & set(noun.attrs):
                _like_existing(noun, sheet)
            fresh.append(noun)
    before = len(sheet.drafts)
    told = len(sheet.did)
    _make(nouns, made, sheet)
    new = sheet.drafts[before:]
    for noun in excluded:
        _exclude(noun, sheet)
    if new:
        groups = [made[id(noun)] for noun in fresh if made.get(id(noun))]
        del groups
        sheet.did[told:] = sheet.did[told:]
        _say_added(new, sheet)
        sheet.look_at(new)
    elif fresh or nouns:
        sheet.look_at([draft for noun in nouns for draft in made.get(id(noun), [])])


def _say_added(new: list[Draft], sheet: Sheet) -> None:
    from .words import people

    sheet.say(f"added {people([d.attrs for d in new], 'en')}", f"加上了{people([d.attrs for d in new], 'zh')}")


def _like_existing(noun: Noun, sheet: Sheet) -> None:
    """Make another one look like the one that is there."""
    same = [draft for draft in sheet.drafts if draft.species == noun.species]
    if same:
        for name in ("colour", "accessory", "expression"):
            noun.attrs.setdefault(name, same[-1].attrs[name])


def _copy_focus(noun: Noun, made: dict[int, list[Draft]], sheet: Sheet) -> None:
    """Add "two more" of what was talked about last."""
    recent = [draft for id in sheet.focus for draft in sheet.drafts if draft.id == id] or sheet.drafts[-1:]
    kinds = {draft.species for draft in recent}
    if not recent or (len(kinds) > 1 and len(recent) > 1):
        raise Stuck("ask", "More of which one?", "再来哪一种？")
    model = recent[-1]
    new = []
    for _ in range(noun.number or 1):
        attrs = dict(model.attrs) | {k: v for k, v in noun.attrs.items() if k in ("colour", "accessory", "expression")}
        draft = sheet.new(attrs)
        if draft is not None:
            draft.place = noun.attrs.get("place")
            new.append(draft)
    made[id(noun)] = new


# ---------------------------------------------------------------------------------------------------------------- remove


def _remove(clause: list[Item], sheet: Sheet) -> None:
    """Take characters off the page, or accessories off characters."""
    worn_keys = [item.key for item in clause if isinstance(item, Token) and item.kind == "ACCESSORY"]
    nouns = [item for item in clause if isinstance(item, Noun) and item.kind != "unknown"]
    if len(nouns) > 1:
        nouns = [noun for noun in nouns if not (noun.kind == "all" and noun.han)]
    generic = any(isinstance(item, Token) and item.kind == "PROP" and item.key == "accessory" for item in clause)
    if worn_keys or generic:
        _undress(nouns, worn_keys, sheet)
        return
    marks = [
        item for item in clause if isinstance(item, Token) and item.kind in ("COLOUR", "EXPRESSION", "FACING", "COMP")
    ]
    if nouns and marks and any(isinstance(i, Token) and i.kind == "NEG" for i in clause):
        values = {"EXPRESSION": ("expression", "happy")}
        for item in marks:
            if item.kind in values:
                for draft in resolve(nouns[0], sheet):
                    name, value = values[item.kind]
                    draft.attrs[name] = value
                    sheet.say(f"{draft.the('en')} is happy again", f"{draft.the('zh')}又开心了")
                return
    if not nouns:
        if not any(isinstance(item, Token) and item.kind == "CMD" for item in clause) and not marks:
            return
        raise Stuck("ask", "What should I take away?", "要去掉哪一个？")
    gone: list[Draft] = []
    for noun in nouns:
        if noun.kind == "noun" and not any(draft.species == noun.species for draft in sheet.drafts):
            if _opens_negated(clause):
                _exclude(noun, sheet)
                continue
            raise _nobody(noun, sheet)
        reference = noun
        if (
            noun.det == "indef"
            and noun.number is None
            and any(isinstance(item, Token) and item.kind == "NEG" for item in clause)
        ):
            reference.plural = True
        if noun.det == "bare" and not noun.han and noun.plural is False and _opens_negated(clause):
            reference.plural = True
        gone.extend(draft for draft in resolve(reference, sheet) if draft not in gone)
    for draft in gone:
        sheet.say(f"{draft.the('en')} is gone", f"去掉了{draft.the('zh')}")
        sheet.drop(draft)
    sheet.focus = [id for id in sheet.focus if id not in {draft.id for draft in gone}]


def _undress(nouns: list[Noun], keys: list[str], sheet: Sheet) -> None:
    """Take accessories off."""
    wearers = [d for d in sheet.drafts if d.attrs["accessory"] != "none" and (not keys or d.attrs["accessory"] in keys)]
    if nouns:
        targets = [draft for noun in nouns for draft in resolve(noun, sheet, among=None)]
    else:
        targets = wearers
        if len(wearers) > 1:
            recent = [draft for draft in wearers if draft.id in sheet.focus]
            targets = recent if len(recent) == 1 else wearers
    if not targets:
        name = worn(keys[0], "en") if keys else "anything"
        zh = worn(keys[0], "zh") if keys else "配饰"
        raise Stuck(
            "ask", f"Nobody in the picture wears {name}. What should I change?", f"画面里没有谁戴着{zh}。要改什么？"
        )
    for draft in targets:
        had = draft.attrs["accessory"]
        if keys and had not in keys:
            en, zh = (
                f"{draft.the('en')} wears no {term('accessory', keys[0]).en[0]}",
                f"{draft.the('zh')}本来就没戴{worn(keys[0], 'zh')}",
            )
            sheet.note("not_worn", en, zh)
            continue
        draft.attrs["accessory"] = "none"
        if had != "none":
            name = term("accessory", had)
            sheet.say(f"{draft.the('en')} has no {name.en[0]} any more", f"{draft.the('zh')}不戴{name.zh[0]}了")
    sheet.changed = True
    sheet.look_at(targets)


def _keep_or_count(clause: list[Item], sheet: Sheet) -> None:
    """Keep only what is named, or only so many of them."""
    nouns = [item for item in clause if isinstance(item, Noun) and item.kind != "unknown"]
    if not nouns:
        raise Stuck("ask", "What should stay?", "要留下哪一个？")
    stay: list[Draft] = []
    for noun in nouns:
        if noun.kind == "noun" and noun.number is not None:
            _set_count(noun.species or "", noun.number, noun, sheet)
            stay.extend(draft for draft in sheet.drafts if draft.species == noun.species)
        else:
            stay.extend(resolve(noun, sheet))
    for draft in [draft for draft in sheet.drafts if draft not in stay]:
        sheet.say(f"{draft.the('en')} is gone", f"去掉了{draft.the('zh')}")
        sheet.drop(draft)
    sheet.look_at(stay)
    sheet.changed = True


def _count(clause: list[Item], sheet: Sheet) -> None:
    """Set how many of a species there are."""
    nouns = [item for item in clause if isinstance(item, Noun)]
    noun = nouns[-1]
    species = noun.species
    if species is None:
        others = [draft for other in nouns[:-1] for draft in resolve(_as_group(other), sheet)]
        recent = (
            others or [draft for id in sheet.focus for draft in sheet.drafts if draft.id == id] or sheet.drafts[-1:]
        )
        if not recent:
            raise Stuck("ask", "How many of what?", "要几只什么？")
        species = recent[-1].species
    _set_count(species, noun.number or 1, noun, sheet)


def _as_group(noun: Noun) -> Noun:
    noun.plural = True
    return noun


def _set_count(species: str, count: int, noun: Noun, sheet: Sheet) -> None:
    """Add or drop characters until there are ``count``."""
    same = [draft for draft in sheet.drafts if draft.species == species]
    values = {k: v for k, v in noun.attrs.items() if k in ("colour", "accessory", "expression", "facing", "size")}
    for draft in same[count:]:
        sheet.drop(draft, forbid=count == 0)
    for draft in same[:count]:
        draft.attrs.update(values)
    model = dict(same[0].attrs) if same else {"species": species}
    for _ in range(count - len(same)):
        sheet.new(model | values)
    now = [draft for draft in sheet.drafts if draft.species == species]
    sheet.counted.add(species)
    entry = term("species", species)
    word = entry.en[0] if len(now) == 1 else entry.plural
    zh = f"{NUMBERS_ZH[min(len(now), 10)]}{entry.measure}{entry.zh[0]}"
    sheet.say(f"there {'is' if len(now) == 1 else 'are'} now {NUMBERS_EN[min(len(now), 10)]} {word}", f"现在有{zh}")
    sheet.look_at(now)


# --------------------------------------------------------------------------------------------------------------- replace


def _replace(clause: list[Item], sheet: Sheet) -> None:
    """Put something else in somebody's place."""
    things = [item for item in clause if isinstance(item, Noun) and item.kind != "all"]
    if not things:
        _replace_accessory(clause, sheet)
        return
    if len(things) == 1:
        old_noun, new_noun = Noun("pron", None, 0, 0, "it", det="def"), things[0]
    else:
        old_noun, new_noun = (things[1], things[0]) if _reversed(clause) else (things[0], things[1])
    described, _ = describe_nouns(clause[clause.index(new_noun) :], sheet)
    targets = resolve(old_noun, sheet)
    if (
        new_noun.plural
        and old_noun.kind == "noun"
        and not old_noun.plural
        and len(targets) == 1
        and not new_noun.number
    ):
        new_noun.plural = False
    attrs = {k: v for k, v in new_noun.attrs.items() if k in ("colour", "accessory", "expression", "facing", "size")}
    if new_noun.hint:
        attrs.setdefault("size", new_noun.hint)
    news: list[Draft] = []
    for old in targets:
        index = sheet.drafts.index(old)
        draft = sheet.new({"species": new_noun.species or "cat"} | attrs) if len(sheet.drafts) < sheet.limit else None
        if draft is None:
            sheet.drafts.remove(old)
            draft = sheet.new({"species": new_noun.species or "cat"} | attrs)
            sheet.drafts.insert(index, old)
        assert draft is not None
        sheet.drafts.remove(draft)
        sheet.drafts[index] = draft
        draft.replaces = old.id if old.origin is not None else old.replaces
        draft.z, draft.place = old.z, new_noun.attrs.get("place", old.place)
        if old.box is not None and "place" not in new_noun.attrs:
            draft.x, draft.height = centre(old.box)[0], None if "size" in attrs else height(old.box)
            if place_key(old.box).startswith("top"):
                draft.place = place_key(old.box)
            elif draft.place is None:
                draft.place = place_key(old.box)
        for other in sheet.drafts:
            if other.anchor is old:
                other.anchor = draft
        news.append(draft)
        sheet.say(f"{old.the('en')} became {draft.a('en')}", f"{old.the('zh')}换成了{draft.a('zh')}")
    extra = (new_noun.number or 1) - len(news)
    for _ in range(extra if len(targets) == 1 else 0):
        more = sheet.new({"species": new_noun.species or "cat"} | attrs)
        if more is not None:
            news.append(more)
    del described
    sheet.look_at(news)


def _replace_accessory(clause: list[Item], sheet: Sheet) -> None:
    """Change what somebody wears ("replace the hat with a crown")."""
    keys = [item.key for item in clause if isinstance(item, Token) and item.kind == "ACCESSORY"]
    if _reversed(clause):
        keys.reverse()
    wearers = [draft for draft in sheet.drafts if draft.attrs["accessory"] == keys[0]]
    if not wearers:
        name = term("accessory", keys[0])
        raise Stuck("ask", f"Nobody wears {worn(keys[0], 'en')}. Who should wear {worn(keys[-1], 'en')}?",
                    f"没有谁戴着{name.zh[0]}。要给谁戴上{worn(keys[-1], 'zh')}？")  # fmt: skip
    for draft in wearers:
        _dress(draft, keys[-1], sheet)
    sheet.look_at(wearers)


def _swap(clause: list[Item], sheet: Sheet) -> None:
    """Let two characters change places."""
    nouns = [
        item for item in clause if isinstance(item, Noun) and item.kind in ("noun", "pron", "one", "all", "generic")
    ]
    if len(nouns) >= 2:
        first, second = resolve(nouns[0], sheet), resolve(nouns[1], sheet)
        pair = [first[0], second[0]]
    else:
        group = resolve(nouns[0], sheet) if nouns else sheet.drafts
        pair = list(group) if len(group) == 2 else list(sheet.drafts)
    if len(pair) != 2 or pair[0] is pair[1]:
        there = [draft.the("en") for draft in sheet.drafts], [draft.the("zh") for draft in sheet.drafts]
        raise Stuck("ask", f"Which two should change places: {join(there[0], 'en', last='or')}?",
                    f"要交换哪两个：{join(there[1], 'zh', last='还是')}？")  # fmt: skip
    a, b = pair
    if a.box is None or b.box is None:
        a.place, b.place = b.place, a.place
        sheet.changed = True
        return
    place_a, place_b = place_key(a.box), place_key(b.box)
    (xa, _), (xb, _) = centre(a.box), centre(b.box)
    feet = a.box[3], b.box[3]
    a.box, b.box = _stand(a, xb, feet[1], place_b), _stand(b, xa, feet[0], place_a)
    a.z, b.z = b.z, a.z
    sheet.say(f"{a.the('en')} and {b.the('en')} changed places", f"{a.the('zh')}和{b.the('zh')}交换了位置")
    sheet.look_at(pair)


def _stand(draft: Draft, x: float, foot: float, place: str) -> tuple[float, float, float, float]:
    """Return a draft's box with its feet at another place."""
    from ..promptbook.layout import round_box, shift_inside

    assert draft.box is not None
    w, h = draft.box[2] - draft.box[0], height(draft.box)
    if place.startswith("top"):
        foot = min(foot, 0.82 * 0.5 + h / 2)
    else:
        foot = max(foot, 0.44 + h / 2)
    return round_box(shift_inside((x - w / 2, foot - h, x + w / 2, foot)))


# ---------------------------------------------------------------------------------------------------------------- change


def _change(clause: list[Item], sheet: Sheet) -> None:
    """Change how characters look, where they are and how large they are."""
    commands = [item.key for item in clause if isinstance(item, Token) and item.kind == "CMD"]
    if not sheet.drafts:
        named = [item for item in clause if isinstance(item, Noun)]
        if named and named[0].kind == "noun" and all(noun.det in ("def", "bare") for noun in named):
            raise _nobody(named[0], sheet)
        named = [noun for noun in named if noun.kind == "noun"]
        if named:
            _draw(clause, sheet)
            return
        raise Stuck("ask", "Nothing is drawn yet. What would you like to see?", "还什么都没画呢。想画什么？")
    if _recolour_by_colour(clause, sheet):
        return
    _refuse_accessory_colour(clause, sheet)
    targets: list[Draft] = []
    pending: list[tuple[Token, bool]] = []
    assigned = False
    prefix = False
    acted = False
    negated = False
    little = any(isinstance(i, Token) and i.kind == "DEGREE" and i.key == "less" for i in clause)
    index = 0
    while index < len(clause):
        item = clause[index]
        if isinstance(item, Noun):
            relation = _relation_after(clause, index) if targets or _moves_later(clause, index) else None
            if relation is not None and targets:
                anchor = resolve(item, sheet)[0]
                _relate(targets, relation[0], anchor, sheet)
                acted, index = True, relation[1]
                continue
            if item.kind == "unknown":
                index += 1
                continue
            if item.kind in ("pron", "one") and item.number is not None and item.det == "indef" and targets:
                index += 1
                continue
            if item.kind in ("all",) and targets and assigned is False:
                index += 1
                continue
            if item.kind == "one" and item.det == "indef" and item.attrs and not targets:
                like = [d for d in sheet.drafts if all(d.attrs.get(k) == v for k, v in item.attrs.items())]
                if not like:
                    targets = _focused(sheet)
                    for name, value in item.attrs.items():
                        token = Token(name.upper(), value, value, item.start, item.end, item.han)
                        acted |= _set(token, targets, sheet, no=False, little=False, commands=commands)
                    index += 1
                    continue
            found = resolve(item, sheet)
            targets = found if assigned or not targets else [*targets, *(d for d in found if d not in targets)]
            assigned = False
            if pending and (prefix or not acted):
                for token, no in pending:
                    acted |= _set(token, targets, sheet, no=no, little=little, commands=commands)
                pending, assigned = [], True
            index += 1
            continue
        if item.kind == "NEG":
            negated = True
        elif item.kind == "REL":
            at = _next_noun(clause, index)
            noun = clause[at] if at is not None else None
            if at is not None and isinstance(noun, Noun):
                movers = targets or _focused(sheet)
                _relate(movers, item.key, resolve(noun, sheet)[0], sheet)
                acted, index = True, at
        elif item.kind in (*_ATTRS, "COMP", "UPDOWN"):
            if item.kind == "ACCESSORY" and not targets:
                prefix = True
            if targets and not (prefix and _noun_follows(clause, index)):
                acted |= _set(item, targets, sheet, no=negated, little=little, commands=commands)
                assigned = True
            else:
                pending.append((item, negated))
            negated = False
        elif item.kind == "CMD" and item.key in ("enlarge", "shrink"):
            token = Token("COMP", "+" if item.key == "enlarge" else "-", item.text, item.start, item.end, item.han)
            if targets:
                acted |= _set(token, targets, sheet, no=False, little=little, commands=commands)
                assigned = True
            else:
                pending.append((token, False))
        elif item.kind == "VAGUE":
            raise _what(targets, clause, sheet)
        index += 1
    if pending:
        targets = targets if targets and not acted else _focused(sheet)
        for token, no in pending:
            acted |= _set(token, targets, sheet, no=no, little=little, commands=commands)
    if not acted:
        if targets and sheet.changed:
            return
        raise _what(targets, clause, sheet)
    sheet.look_at(targets or _focused(sheet))


def _moves_later(clause: list[Item], index: int) -> bool:
    return any(isinstance(item, Noun) for item in clause[:index])


def _noun_follows(clause: list[Item], index: int) -> bool:
    """Return whether a noun phrase comes later in the clause, before another attribute."""
    for item in clause[index + 1 :]:
        if isinstance(item, Noun):
            return True
        if item.kind in ("ACCESSORY", "COLOUR"):
            return False
    return False


def _focused(sheet: Sheet) -> list[Draft]:
    """Return who is meant when nobody is named."""
    if len(sheet.drafts) == 1:
        return list(sheet.drafts)
    if sheet.forced:
        return [draft for draft in sheet.drafts if draft.id in sheet.forced]
    recent = [draft for id in sheet.focus for draft in sheet.drafts if draft.id == id]
    if not recent or (len(recent) > 1 and len(recent) == len(sheet.drafts)):
        raise _which(list(sheet.drafts), sheet)
    return recent


def _recolour_by_colour(clause: list[Item], sheet: Sheet) -> bool:
    """Handle "change red to blue" / "把红色换成蓝色"."""
    if any(isinstance(item, Noun) for item in clause):
        return False
    colours = [item.key for item in clause if isinstance(item, Token) and item.kind == "COLOUR"]
    if len(colours) != 2:
        return False
    found = [draft for draft in sheet.drafts if draft.attrs["colour"] == colours[0]]
    for draft in found:
        draft.attrs["colour"] = colours[1]
        sheet.say(f"{draft.the('en')} is {colours[1]} now", f"变成了{draft.the('zh')}")
    sheet.look_at(found)
    return bool(found)


def _refuse_accessory_colour(clause: list[Item], sheet: Sheet) -> None:
    """Refuse "make the hat blue": accessories come in one look."""
    kinds = [
        item.kind for item in clause if isinstance(item, Token) and item.kind in ("ACCESSORY", "COLOUR", "SIZE", "COMP")
    ]
    keys = {item.key for item in clause if isinstance(item, Token) and item.kind == "CMD"}
    if kinds[:1] == ["ACCESSORY"] and len(kinds) == 2 and kinds[1] != "ACCESSORY" and keys & {"change", "replace"}:
        if not keys & {"dress", "put"} and not any(isinstance(i, Token) and i.kind == "WITH" for i in clause):
            raise Stuck(
                "refuse",
                "Accessories come in one look, so I can't change that. I can change who wears it, or swap it for another.",
                "配饰只有一种样子，改不了。可以换人戴，或者换成别的配饰。",
            )
    del sheet


def _what(targets: list[Draft], clause: list[Item], sheet: Sheet) -> Stuck:
    """Return the question when it is not said what to change."""
    kinds = {item.key for item in clause if isinstance(item, Token) and item.kind == "PROP"}
    who_en = join([draft.the("en") for draft in targets], "en") if targets else "the picture"
    who_zh = join([draft.the("zh") for draft in targets], "zh") if targets else "画面"
    if targets:
        sheet.look_at(targets)
    vague = " ".join(item.text for item in clause if isinstance(item, Token) and item.kind == "VAGUE")
    if "colour" in kinds or "颜色" in vague:
        return Stuck("ask", f"Which colour should {who_en} be?", f"{who_zh}要什么颜色？")
    if "背景" in vague:
        return Stuck("ask", "Which background would you like?", "想换成什么背景？")
    if "风格" in vague:
        return Stuck("ask", "Which style would you like?", "想换成什么风格？")
    return Stuck(
        "ask",
        f"What should I change about {who_en}: the colour, the size, the place, or what is worn?",
        f"{who_zh}要改哪里：颜色、大小、位置，还是配饰？",
    )


def _relate(targets: list[Draft], relation: str, anchor: Draft, sheet: Sheet) -> None:
    """Move characters to a place next to another."""
    words = {
        "left": ("left of", "左边"), "right": ("right of", "右边"), "beside": ("next to", "旁边"),
        "above": ("above", "上方"), "below": ("below", "下方"), "behind": ("behind", "后面"),
        "front": ("in front of", "前面"),
    }  # fmt: skip
    for draft in targets:
        if draft is anchor:
            continue
        sheet.relate(draft, relation, anchor)
        en, zh = words[relation]
        sheet.say(
            f"{draft.the('en')} is now {en} {anchor.the('en')}", f"{draft.the('zh')}移到了{anchor.the('zh')}的{zh}"
        )


def _set_values(noun: Noun, drafts: list[Draft], sheet: Sheet) -> None:
    """Set what a creating clause says about somebody who is already there, where it is news."""
    for draft in drafts:
        for name in ("colour", "accessory", "expression", "facing"):
            if name in noun.attrs and draft.attrs[name] != noun.attrs[name]:
                draft.attrs[name] = noun.attrs[name]
                sheet.changed = True
        for key in noun.lacks:
            if draft.attrs["accessory"] == key:
                draft.attrs["accessory"] = "none"
                sheet.changed = True
        if "place" in noun.attrs and (draft.box is None or place_key(draft.box) != noun.attrs["place"]):
            sheet.move(draft, noun.attrs["place"])
        if (
            "size" in noun.attrs
            and noun.kind != "one"
            and (draft.box is None or size_key(draft.box) != noun.attrs["size"])
        ):
            sheet.resize(draft, size=noun.attrs["size"])


def _dress(draft: Draft, key: str, sheet: Sheet) -> None:
    """Put an accessory on."""
    if draft.id in sheet.dressed and draft.attrs["accessory"] != key:
        sheet.note("one_accessory", "everyone wears one thing at a time", "每个角色一次只戴一样")
        return
    sheet.dressed.add(draft.id)
    draft.attrs["accessory"] = key
    verb = "围上了" if key == "scarf" else "戴上了"
    sheet.say(f"{draft.the('en')} wears {worn(key, 'en')} now", f"{draft.the('zh')}{verb}{worn(key, 'zh')}")


def _set(token: Token, targets: list[Draft], sheet: Sheet, *, no: bool, little: bool, commands: list[str]) -> bool:
    """Set one attribute on characters; return whether anything was understood."""
    for draft in targets:
        the_en, the_zh = draft.the("en"), draft.the("zh")
        if token.kind == "COLOUR":
            if no:
                raise Stuck("ask", f"Which colour should {the_en} be instead?", f"{the_zh}要换成什么颜色？")
            draft.attrs["colour"] = token.key
            name = term("species", draft.species)
            sheet.say(f"the {name.en[0]} is {token.key} now", f"{name.zh[0]}变成了{term('colour', token.key).zh[0]}")
        elif token.kind == "ACCESSORY":
            if no:
                if draft.attrs["accessory"] == token.key:
                    draft.attrs["accessory"] = "none"
                    sheet.say(f"{the_en} has no {term('accessory', token.key).en[0]} any more",
                              f"{the_zh}不戴{worn(token.key, 'zh')}了")  # fmt: skip
                continue
            _dress(draft, token.key, sheet)
        elif token.kind == "EXPRESSION":
            value = "happy" if no else token.key
            draft.attrs["expression"] = value
            entry = term("expression", value)
            sheet.say(f"{the_en} looks {entry.en[0]} now", f"{the_zh}现在很{entry.zh[0]}")
        elif token.kind == "FACING":
            draft.attrs["facing"] = token.key
            sheet.say(f"{the_en} faces {token.key} now", f"{the_zh}面朝{'左' if token.key == 'left' else '右'}了")
        elif token.kind == "SIZE":
            sheet.resize(draft, size=token.key)
            sheet.say(f"{the_en} is {token.key} now", f"{the_zh}变成{term('size', token.key).zh[0]}的了")
        elif token.kind == "COMP":
            sheet.resize(
                draft, step=1 if token.key == "+" else -1, little=little or "一点" in token.text or "些" in token.text
            )
            sheet.say(f"{the_en} is {'larger' if token.key == '+' else 'smaller'} now",
                      f"{the_zh}变{'大' if token.key == '+' else '小'}了")  # fmt: skip
        elif token.kind in ("PLACE", "UPDOWN"):
            _move(draft, token, sheet, little=little, commands=commands)
    if token.kind not in ("PLACE", "UPDOWN", "COMP", "SIZE"):
        sheet.changed = True
    return bool(targets)


def _move(draft: Draft, token: Token, sheet: Sheet, *, little: bool, commands: list[str]) -> None:
    """Move or turn somebody towards a place."""
    turns = any(command == "change" for command in commands) and "turn" in sheet.text.lower()
    if turns and token.key in ("left", "right") and "move" not in commands:
        draft.attrs["facing"] = token.key
        sheet.say(
            f"{draft.the('en')} faces {token.key} now",
            f"{draft.the('zh')}面朝{'左' if token.key == 'left' else '右'}了",
        )
        sheet.changed = True
        return
    if little and draft.box is not None and token.key in ("left", "right"):
        from ..promptbook.layout import move_to, round_box

        x, y = centre(draft.box)
        draft.box = round_box(move_to(draft.box, x + (0.14 if token.key == "right" else -0.14), y))
        sheet.changed = True
    else:
        sheet.move(draft, token.key)
    names = {"left": ("to the left", "左边"), "right": ("to the right", "右边"), "middle": ("to the middle", "中间"),
             "top": ("up", "上方"), "bottom": ("down", "下方"), "top left": ("to the top left", "左上方"),
             "top right": ("to the top right", "右上方")}  # fmt: skip
    en, zh = names[token.key]
    sheet.say(f"{draft.the('en')} moved {en}", f"{draft.the('zh')}移到了{zh}")
