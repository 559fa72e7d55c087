"""How characters change: replace, swap, recolour, dress, turn, move, resize."""

from __future__ import annotations

from ...promptbook.layout import centre, height, move_to, round_box, shift_inside
from ...world.scene import place_key
from ...world.vocabulary import term
from .describing import ATTRIBUTE_KINDS, describe_nouns, next_noun, relation_after
from .draft import Draft, Sheet, Stuck
from .grammar import Item, Noun, Token
from .references import focused, nobody, resolve
from .staffing import draw, landmark
from .words import join, worn


def replace(clause: list[Item], sheet: Sheet) -> None:
    """Put something else in somebody's place."""
    things = [item for item in clause if isinstance(item, Noun) and item.kind != "all"]
    if not things:
        _replace_accessory(clause, sheet)
        return
    if len(things) == 1:
        old_noun, new_noun = Noun("pron", None, 0, 0, "it", det="def"), things[0]
    else:
        old_noun, new_noun = (things[1], things[0]) if names_new_first(clause) else (things[0], things[1])
    describe_nouns(clause[clause.index(new_noun) :], sheet)
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
    sheet.look_at(news)


def names_new_first(clause: list[Item]) -> bool:
    """Return whether the new thing is named first ("a fox instead of the dog", "用狐狸代替狗")."""
    return any(
        isinstance(item, Token) and (item.text.lower() == "instead of" or item.text in ("代替", "取代", "替代"))
        for item in clause
    ) and any(isinstance(item, Noun) for item in clause[:1] + clause[1:3])


def _replace_accessory(clause: list[Item], sheet: Sheet) -> None:
    """Change what somebody wears ("replace the hat with a crown")."""
    keys = [item.key for item in clause if isinstance(item, Token) and item.kind == "ACCESSORY"]
    if names_new_first(clause):
        keys.reverse()
    wearers = [draft for draft in sheet.drafts if draft.attrs["accessory"] == keys[0]]
    if not wearers:
        name = term("accessory", keys[0])
        raise Stuck("ask", f"Nobody wears {worn(keys[0], 'en')}. Who should wear {worn(keys[-1], 'en')}?",
                    f"没有谁戴着{name.zh[0]}。要给谁戴上{worn(keys[-1], 'zh')}？")  # fmt: skip
    for draft in wearers:
        _dress(draft, keys[-1], sheet)
    sheet.look_at(wearers)


def swap(clause: list[Item], sheet: Sheet) -> None:
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
        if len(sheet.drafts) < 2:
            raise Stuck(
                "ask", "It takes two to change places. Who else should be there?", "要有两个才能交换。再加上谁？"
            )
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
    assert draft.box is not None
    w, h = draft.box[2] - draft.box[0], height(draft.box)
    if place.startswith("top"):
        foot = min(foot, 0.82 * 0.5 + h / 2)
    else:
        foot = max(foot, 0.44 + h / 2)
    return round_box(shift_inside((x - w / 2, foot - h, x + w / 2, foot)))


def change(clause: list[Item], sheet: Sheet) -> None:
    """Change how characters look, where they are and how large they are."""
    commands = [item.key for item in clause if isinstance(item, Token) and item.kind == "CMD"]
    if not sheet.drafts:
        named = [item for item in clause if isinstance(item, Noun)]
        if named and named[0].kind == "noun" and all(noun.det in ("def", "bare") for noun in named):
            raise nobody(named[0], sheet)
        named = [noun for noun in named if noun.kind == "noun"]
        if named:
            draw(clause, sheet)
            return
        raise Stuck("ask", "Nothing is drawn yet. What would you like to see?", "还什么都没画呢。想画什么？")
    if _recolour_by_colour(clause, sheet):
        return
    _refuse_accessory_colour(clause)
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
            relation = relation_after(clause, index) if targets or _moves_later(clause, index) else None
            if relation is not None and targets:
                _relate(targets, relation[0], item, sheet)
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
                    targets = focused(sheet)
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
            at = next_noun(clause, index)
            noun = clause[at] if at is not None else None
            if at is not None and isinstance(noun, Noun):
                movers = targets or focused(sheet)
                _relate(movers, item.key, noun, sheet)
                acted, index = True, at
        elif item.kind in (*ATTRIBUTE_KINDS, "COMP", "UPDOWN"):
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
        elif item.kind == "LOOKAT" and item.key == "each other":
            pair = targets if len(targets) == 2 else sheet.drafts
            if len(pair) == 2:
                sheet.gazes += [(pair[0], pair[1]), (pair[1], pair[0])]
                names = [draft.the("en") for draft in pair], [draft.the("zh") for draft in pair]
                sheet.say(f"{join(names[0], 'en')} look at each other", f"{join(names[1], 'zh')}互相看着")
                acted = assigned = True
        elif item.kind == "LOOKAT":
            at = next_noun(clause, index)
            noun = clause[at] if at is not None else None
            if at is not None and isinstance(noun, Noun):
                seen = resolve(noun, sheet)[0]
                for draft in [draft for draft in targets or focused(sheet) if draft is not seen]:
                    sheet.gazes.append((draft, seen))
                    sheet.say(f"{draft.the('en')} looks at {seen.the('en')}", f"{draft.the('zh')}看着{seen.the('zh')}")
                acted, assigned, index = True, True, at
        elif item.kind == "TOOMANY":
            sheet.look_at(targets)
            sheet.doubt = Stuck("ask", "How many should there be?", "要几个？")
            return
        elif item.kind == "VAGUE" and not sheet.did and not _says_value(clause):
            raise _what(targets, clause, sheet)
        index += 1
    if pending:
        targets = targets if targets and not acted else focused(sheet)
        for token, no in pending:
            acted |= _set(token, targets, sheet, no=no, little=little, commands=commands)
    if not acted:
        if sheet.did or sheet.hours or (targets and sheet.changed):
            return
        if targets and all(
            isinstance(i, Noun) or i.kind in ("FUNC", "BE", "WEAK", "DE", "ADVERB", "Q", "FLUFF") for i in clause
        ):
            sheet.doubt = _what(targets, clause, sheet)
            return
        raise _what(targets, clause, sheet)
    sheet.look_at(targets or focused(sheet))


def _says_value(clause: list[Item]) -> bool:
    """Return whether a clause says what to change to ("a different colour, yellow")."""
    return any(isinstance(item, Token) and item.kind in (*ATTRIBUTE_KINDS, "COMP", "UPDOWN") for item in clause)


def prefer(clause: list[Item], sheet: Sheet) -> None:
    """Give the one of a species the look that is preferred ("I'd prefer a purple cat")."""
    noun = next(item for item in clause if isinstance(item, Noun))
    targets = [draft for draft in sheet.drafts if draft.species == noun.species]
    for name, value in noun.attrs.items():
        if name.upper() in ATTRIBUTE_KINDS:
            token = Token(name.upper(), value, value, noun.start, noun.end, noun.han)
            _set(token, targets, sheet, no=False, little=False, commands=[])
    sheet.look_at(targets)


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


def _refuse_accessory_colour(clause: list[Item]) -> None:
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


def _relate(targets: list[Draft], relation: str, noun: Noun, sheet: Sheet) -> None:
    """Move characters to a place next to another, which comes in if it is a thing that is not there yet."""
    anchors = landmark(noun, sheet)
    if not anchors:
        raise Stuck("ask", f"Only {sheet.limit} fit in one picture. Who should make room?",
                    f"一张画最多放{sheet.limit}个。要去掉哪一个？")  # fmt: skip
    anchor = anchors[0]
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
            side = token.key if token.key != "flip" else "right" if draft.attrs["facing"] == "left" else "left"
            draft.attrs["facing"] = side
            sheet.say(f"{the_en} faces {side} now", f"{the_zh}面朝{'左' if side == 'left' else '右'}了")
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
