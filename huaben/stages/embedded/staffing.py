"""Who is on the page: create, bring back, add, count, remove, and take accessories off."""

from __future__ import annotations

from ...world.scene import place_key, size_key
from ...world.vocabulary import term
from .describing import describe_nouns
from .draft import Draft, Sheet, Stuck
from .grammar import Item, Noun, Token
from .references import OBJECT_KEYS, fits_look, nobody, refers, resolve
from .words import NUMBERS_EN, NUMBERS_ZH, people, worn

_UNDRESSING = frozenset("摘掉 摘 摘了 脱掉 脱 脱了 摘下 摘下来 脱下 off".split()) | {"take off", "takes off"}
_VARIETY = ("red", "blue", "yellow", "green", "purple", "white", "pink", "black", "orange", "teal", "brown", "gray")


def draw(clause: list[Item], sheet: Sheet) -> None:
    """Start a new scene from a clause."""
    nouns, excluded = describe_nouns(clause, sheet)
    kept: dict[int, list[Draft]] = {}
    for noun in nouns:
        if refers(noun, sheet):
            kept[id(noun)] = resolve(noun, sheet)
        elif noun.kind == "noun" and noun.det in ("def", "bare") and noun.species:
            back = sheet.absent(noun.species)
            if back and not noun.plural and fits_look(noun, back[0].attribute("colour")):
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
        attrs = _looks(noun)
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
        if noun.gaze is not None and made.get(id(noun)):
            seen = made[id(noun.gaze)] if id(noun.gaze) in made else landmark(noun.gaze, sheet)
            sheet.gazes.extend((draft, seen[0]) for draft in made[id(noun)] if seen and seen[0] is not draft)
        if noun.relation is None or noun.anchor is None or not made.get(id(noun)):
            continue
        anchors = made[id(noun.anchor)] if id(noun.anchor) in made else landmark(noun.anchor, sheet)
        for draft in made[id(noun)]:
            if anchors and anchors[0] is not draft:
                sheet.relate(draft, noun.relation, anchors[0])


def _looks(noun: Noun) -> dict[str, str]:
    """Return the attributes a new character gets from its noun phrase."""
    attrs = {"species": noun.species or ""}
    attrs |= {k: v for k, v in noun.attrs.items() if k in ("colour", "accessory", "expression", "facing", "size")}
    if noun.hint:
        attrs.setdefault("size", noun.hint)
    return attrs


def landmark(noun: Noun, sheet: Sheet) -> list[Draft]:
    """Return who a relation is with; a thing ("the tree"), or a newcomer ("a dog"), comes in where it is not there yet.

    Empty, with a note, when the picture is full.

    Raises:
        Stuck: when it is not clear who is meant.
    """
    there = any(draft.species == noun.species for draft in sheet.drafts)
    if noun.kind != "noun" or noun.species is None or (there and noun.det not in ("indef", "another")):
        return resolve(noun, sheet)
    if noun.det not in ("indef", "another") and noun.species not in OBJECT_KEYS:
        return resolve(noun, sheet)
    back = [] if noun.det in ("indef", "another") else sheet.absent(noun.species)
    draft = sheet.bring_back(back[0]) if back else sheet.new(_looks(noun))
    if draft is None:
        return []
    _say_added([draft], sheet)
    return [draft]


def _exclude(noun: Noun, sheet: Sheet) -> None:
    """Remember what must not be there."""
    for draft in [draft for draft in sheet.drafts if draft.species == noun.species]:
        sheet.drop(draft)
    if noun.species is not None:
        name = term("species", noun.species).name(sheet.language)
        if name not in sheet.negative:
            sheet.negative.append(name)
        sheet.say(f"there is no {noun.species}", f"没有{term('species', noun.species).zh[0]}")


def add(clause: list[Item], sheet: Sheet) -> None:
    """Add characters to the scene; somebody who was there before comes back as they were."""
    nouns, excluded = describe_nouns(clause, sheet)
    made: dict[int, list[Draft]] = {}
    fresh: list[Noun] = []
    for noun in nouns:
        if noun.kind == "one" and noun.det in ("indef", "another"):
            _copy_focus(noun, made, sheet)
        elif refers(noun, sheet) and noun.det != "another":
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
    _make(nouns, made, sheet)
    new = sheet.drafts[before:]
    for noun in excluded:
        _exclude(noun, sheet)
    if new:
        _say_added(new, sheet)
        sheet.look_at(new)
    elif fresh or nouns:
        sheet.look_at([draft for noun in nouns for draft in made.get(id(noun), [])])


def _say_added(new: list[Draft], sheet: Sheet) -> None:
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


def remove(clause: list[Item], sheet: Sheet) -> None:
    """Take characters off the page, or accessories off characters."""
    worn_keys = [item.key for item in clause if isinstance(item, Token) and item.kind == "ACCESSORY"]
    nouns = [item for item in clause if isinstance(item, Noun) and item.kind != "unknown"]
    if len(nouns) > 1:
        nouns = [noun for noun in nouns if not (noun.kind == "all" and noun.han)]
    undresses = any(isinstance(item, Token) and item.text.lower() in _UNDRESSING for item in clause)
    generic = undresses or any(
        isinstance(item, Token) and item.kind == "PROP" and item.key == "accessory" for item in clause
    )
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
            if opens_negated(clause):
                _exclude(noun, sheet)
                continue
            raise nobody(noun, sheet)
        reference = noun
        if (
            noun.det == "indef"
            and noun.number is None
            and any(isinstance(item, Token) and item.kind == "NEG" for item in clause)
        ):
            reference.plural = True
        if noun.det == "bare" and not noun.han and noun.plural is False and opens_negated(clause):
            reference.plural = True
        gone.extend(draft for draft in resolve(reference, sheet) if draft not in gone)
    for draft in gone:
        sheet.say(f"{draft.the('en')} is gone", f"去掉了{draft.the('zh')}")
        sheet.drop(draft)
    sheet.focus = [id for id in sheet.focus if id not in {draft.id for draft in gone}]


def opens_negated(clause: list[Item]) -> bool:
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
    sheet.handed = None
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
            sheet.handed = had
            entry = term("accessory", had)
            sheet.say(f"{draft.the('en')} has no {entry.en[0]} any more", f"{draft.the('zh')}不戴{entry.zh[0]}了")
    sheet.changed = True
    sheet.look_at(targets)


def keep_or_count(clause: list[Item], sheet: Sheet) -> None:
    """Keep only what is named, or only so many of them."""
    nouns = [item for item in clause if isinstance(item, Noun) and item.kind != "unknown"]
    if not nouns:
        raise Stuck("ask", "What should stay?", "要留下哪一个？")
    stay: list[Draft] = []
    for noun in nouns:
        if noun.kind == "one" and noun.number is not None and noun.species is None:
            recent = [draft for id in sheet.focus for draft in sheet.drafts if draft.id == id] or sheet.drafts
            noun.kind, noun.species = "noun", recent[-1].species
            stay.extend(draft for draft in sheet.drafts if draft.species != noun.species)
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


def count(clause: list[Item], sheet: Sheet) -> None:
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
