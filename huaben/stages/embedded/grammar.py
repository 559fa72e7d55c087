"""From text to tokens to noun phrases: English, Chinese, or both in one sentence.

Longest match against the lexicon. A word that is not in it becomes an UNKNOWN token, never nothing. Noun phrases
collect what stands before their noun ("two small white rabbits", "一只戴帽子的红色小猫"); what follows is bound by the
screenwriter, which knows what the sentence is for.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache

from .lexicon import EMOJI, ORDINALS, PLURAL_ACCESSORIES, PLURAL_SPECIES, TRADITIONAL, lexicon

_HAN = re.compile(r"[㐀-鿿]")
_STRONG = ".!?\n。！？"
_WEAK = ",;；:、，：()（）\"'“”‘’《》[]-—~/"
_SMILEYS = re.compile(
    "[\U0001f600-\U0001f637\U0001f641-\U0001f64f\U0001f440-\U0001f4ab\u2764\u2728\U0001f389\U0001f90d-\U0001f92f\U0001f970-\U0001f97a\ufe0f\u200d\U0001f3fb-\U0001f3ff]"
)
_WANTS = frozenset("want wants would wanted likes 想 想要 想看 要 希望 喜欢 要看 要求".split())
_COMPOUND = frozenset("车船花鱼山雪树海星鸟")


@dataclass(slots=True)
class Token:
    """A known phrase, a punctuation mark, or a run of unknown text.

    Attributes:
        kind: SPECIES, COLOUR, ..., CMD, FUNC, STRONG, WEAK, UNKNOWN.
        key: what it means within its kind.
        text: as written.
        start: where it begins in the text.
        end: where it ends.
        han: whether it is Chinese.
        plural: whether an English noun is plural; None when it could be both.
        gap: whether a space precedes it.
    """

    kind: str
    key: str
    text: str
    start: int
    end: int
    han: bool
    plural: bool | None = False
    gap: bool = False


@dataclass(slots=True)
class Noun:
    """A noun phrase.

    Attributes:
        kind: noun, pron, one, all, generic or unknown.
        species: key, or None.
        start: position of its first character in the text.
        end: position after its last one.
        text: as written.
        number: how many, if said.
        det: def, indef, another, other or bare.
        plural: whether several are meant.
        every: whether all that fit are meant (都).
        attrs: what stands before the noun: colour, size, expression, facing, place, accessory.
        ordinal: which one in the order of coming ("the second dog", "第二只"), or None.
        lacks: accessories it is said not to have.
        hint: size that a Chinese prefix suggests (小猫); too weak to tell characters apart.
        relation: left, right, ... of ``anchor``.
        anchor: the noun phrase the relation is with.
        gaze: the noun phrase it looks at.
        han: whether its head is Chinese.
    """

    kind: str
    species: str | None
    start: int
    end: int
    text: str
    number: int | None = None
    det: str = "bare"
    plural: bool = False
    every: bool = False
    ordinal: int | None = None
    attrs: dict[str, str] = field(default_factory=dict)
    lacks: set[str] = field(default_factory=set)
    hint: str | None = None
    relation: str | None = None
    anchor: Noun | None = None
    gaze: Noun | None = None
    han: bool = False


Item = Token | Noun


def normalise(text: str) -> str:
    """Return text with full-width forms and traditional characters folded, of the same length where possible."""
    text = "".join(
        unicodedata.normalize("NFKC", letter) if "\uff00" <= letter <= "\uffef" else letter for letter in text
    )
    return text.replace("’", "'").replace("‘", "'").translate(TRADITIONAL)


@lru_cache(maxsize=1)
def _index() -> tuple[dict[str, list[tuple[str, ...]]], dict[str, int]]:
    """Return English phrases by first word, longest first, and the longest Chinese phrase by first character."""
    english: dict[str, list[tuple[str, ...]]] = {}
    chinese: dict[str, int] = {}
    for phrase in lexicon():
        if _HAN.search(phrase):
            chinese[phrase[0]] = max(chinese.get(phrase[0], 0), len(phrase))
        else:
            words = tuple(phrase.split())
            english.setdefault(words[0], []).append(words)
    for phrases in english.values():
        phrases.sort(key=len, reverse=True)
    return english, chinese


def tokenize(text: str) -> list[Token]:
    """Return the tokens of a normalised text."""
    table, (english, chinese) = lexicon(), _index()
    tokens: list[Token] = []
    words = [(m.group().lower(), m.start(), m.end()) for m in re.finditer(r"[A-Za-z]+(?:'[A-Za-z]+)?|\d+", text)]
    starts = {start: index for index, (_, start, _) in enumerate(words)}
    at, gap = 0, False
    while at < len(text):
        letter = text[at]
        if letter == " ":
            at, gap = at + 1, True
            continue
        end, kind, key = at + 1, "", ""
        if letter in EMOJI:
            kind, key = EMOJI[letter]
        elif _SMILEYS.match(letter):
            kind, key = "FLUFF", letter
        elif letter in _STRONG:
            kind, key = "STRONG", letter
        elif letter in _WEAK:
            kind, key = "WEAK", letter
        elif at in starts:
            end, kind, key = _english(text, words, starts[at], english, table)
        elif _HAN.match(letter):
            for size in range(min(chinese.get(letter, 0), len(text) - at), 0, -1):
                if text[at : at + size].lower() in table:
                    end = at + size
                    kind, key = table[text[at:end].lower()]
                    break
        if kind == "DROP":
            at = end
            continue
        if not kind:
            kind = "UNKNOWN"
            last = tokens[-1] if tokens else None
            if last is not None and last.kind == "UNKNOWN" and last.end == at and last.han == bool(_HAN.match(letter)):
                last.text, last.end = text[last.start : end], end
                at, gap = end, False
                continue
        token = Token(kind, key, text[at:end], at, end, bool(_HAN.search(text[at:end])), gap=gap)
        token.plural = _is_plural(token)
        tokens.append(token)
        at, gap = end, False
    return _settle(_without_asker(tokens))


def _without_asker(tokens: list[Token]) -> list[Token]:
    """Return the tokens without people who only ask for something ("my daughter wants …", "老师想要…")."""
    result: list[Token] = []
    for token in tokens:
        if token.kind == "MODAL" and token.text.lower() in _WANTS:
            begin = len(result)
            while begin and (result[begin - 1].kind == "UNKNOWN" or result[begin - 1].key == "person"):
                begin -= 1
            owned = begin > 0 and (
                result[begin - 1].key == "def" or result[begin - 1].text in ("我", "我们", "家", "我家")
            )
            named = any(part.key == "person" for part in result[begin:])
            before = begin - 1 if owned else begin
            opens = before == 0 or result[before - 1].kind in ("STRONG", "WEAK", "FUNC", "CONJ", "THEN")
            if begin < len(result) and opens and (owned or (named and result[begin].han)):
                del result[begin - owned :]
        result.append(token)
    return result


def _english(
    text: str,
    words: list[tuple[str, int, int]],
    index: int,
    english: dict[str, list[tuple[str, ...]]],
    table: dict[str, tuple[str, str]],
) -> tuple[int, str, str]:
    """Return end, kind and key of the longest phrase that starts at a word."""
    word, start, end = words[index]
    if word.isdigit():
        return end, "NUM", str(min(int(word[:6]), 1000))
    for form in (word, word.removesuffix("'s")):
        for phrase in english.get(form, ()):
            last = index + len(phrase) - 1
            if last >= len(words):
                continue
            spoken = [words[i][0] for i in range(index + 1, last + 1)]
            gaps = all(re.fullmatch(r"[ \-]+", text[words[i][2] : words[i + 1][1]]) for i in range(index, last))
            if gaps and tuple([form, *spoken]) == phrase:
                return words[last][2], *table[" ".join(phrase)]
    del start
    return end, "UNKNOWN", word


def _is_plural(token: Token) -> bool | None:
    """Return whether an English noun is plural."""
    word = token.text.lower().removesuffix("'s")
    if token.han:
        return False
    if token.kind == "ACCESSORY":
        return word in PLURAL_ACCESSORIES
    if token.kind == "GENERIC":
        return word.endswith("s")
    if token.kind != "SPECIES":
        return False
    if word in ("fish", "sheep"):
        return None
    return word in PLURAL_SPECIES or word in ("mice", "foxes") or (word.endswith("s"))


def _settle(tokens: list[Token]) -> list[Token]:
    """Resolve what depends on the neighbours: measure words, compounds, Chinese numbers in requests."""
    wants = any(token.kind == "CMD" and token.key in ("draw", "add") for token in tokens)
    result: list[Token] = []
    for index, token in enumerate(tokens):
        last = result[-1] if result else None
        following = tokens[index + 1] if index + 1 < len(tokens) else None
        if token.text == "只" and last is not None and last.kind in ("NUM", "DET", "Q"):
            token.kind, token.key = "MEAS", "只"
        if token.kind == "Q" and token.key == "how many" and token.han and wants and token.text.startswith("几"):
            token.kind, token.key = "NUM", "3"
        if token.kind == "NUM" and token.han and last is not None and last.text == "第" and last.end == token.start:
            last.kind, last.key, last.text, last.end = "DET", f"nth {token.key}", last.text + token.text, token.end
            continue
        if last is not None and last.key == "def" and not token.han and token.text.lower() in ORDINALS:
            if following is not None and following.kind in ("SPECIES", "ONE", "GENERIC", *_ADJECTIVES):
                token.kind, token.key = "DET", f"nth {ORDINALS[token.text.lower()]}"
        if token.kind == "ONE" and following is not None and following.kind in ("MEAS",):
            token.kind, token.key = "NUM", "1"
        if token.text in EMOJI and last is not None and (last.kind, last.key) == (token.kind, token.key):
            continue
        if (
            token.text.lower() == "a little"
            and following is not None
            and following.kind in ("SPECIES", *_ADJECTIVES, "FLUFF")
        ):
            middle = token.start + 1
            result.append(Token("DET", "indef", token.text[:1], token.start, middle, False, gap=token.gap))
            result.append(Token("SIZE", "small", token.text[2:], middle + 1, token.end, False, gap=True))
            continue
        touching = last is not None and last.end == token.start
        if (
            last is not None
            and touching
            and token.han
            and last.han
            and (
                (token.kind == "UNKNOWN" and len(token.text) == 1 and last.text in _COMPOUND)
                or (last.kind == "UNKNOWN" and token.kind == "SPECIES" and token.text in _COMPOUND)
            )
        ):
            last.kind, last.key, last.end = "UNKNOWN", "", token.end
            last.text += token.text
            continue
        result.append(token)
    return result


# ------------------------------------------------------------------------------------------------------ noun phrases

_ADJECTIVES = ("COLOUR", "SIZE", "EXPRESSION", "VARIED")
_WEARS = frozenset("戴着 戴 戴上 围着 围 系着 系 穿着 穿 戴了 带着 带 有着 配着 顶着 佩戴 头戴 有 wearing with".split())


def chunk(tokens: list[Token]) -> list[Item]:
    """Return the tokens with noun phrases gathered."""
    owner: dict[int, int] = {}
    spans: dict[int, tuple[int, int]] = {}
    used = 0
    for index, token in enumerate(tokens):
        if index < used or not _is_head(tokens, index):
            continue
        begin = _phrase_start(tokens, index, used)
        spans[begin] = (index, index + 1)
        used = index + 1
        owner.update(dict.fromkeys(range(begin, index + 1), begin))
        del token
    items: list[Item] = []
    index = 0
    while index < len(tokens):
        if index in spans:
            head, end = spans[index]
            items.append(_noun(tokens, index, head))
            items.extend(token for token in tokens[index:head] if token.kind in ("UNKNOWN", "OUT"))
            index = end
        else:
            items.append(tokens[index])
            index += 1
    return items


def _is_head(tokens: list[Token], index: int) -> bool:
    """Return whether a token heads a noun phrase."""
    token = tokens[index]
    before = tokens[index - 1] if index else None
    after = tokens[index + 1] if index + 1 < len(tokens) else None
    if token.kind == "SPECIES":
        return True
    if token.kind in ("PRON", "GENERIC"):
        return True
    if token.kind == "ONE":
        return not _leads_to_noun(tokens, index + 1)
    if token.kind == "ALL":
        return not _leads_to_noun(tokens, index + 1)
    if token.kind in ("UNKNOWN", "OUT"):
        return (
            before is not None
            and not _leads_to_noun(tokens, index + 1)
            and not (after is not None and after.kind in ("UNKNOWN", "OUT"))
            and (
                before.kind in ("NUM", "MEAS", *_ADJECTIVES, "UNKNOWN", "OUT", "SHADE")
                or before.kind == "DET"
                or (before.kind == "DE" and index > 1 and tokens[index - 2].kind in (*_ADJECTIVES, "ACCESSORY"))
            )
        )
    if token.kind == "MEAS":
        counted = before is not None and before.kind in ("NUM", "DET", "PLACE", "DE")
        return counted and not _leads_to_noun(tokens, index + 1) and not _measures_thing(tokens, index + 1)
    if token.kind == "NUM" and not token.han:
        return before is not None and before.key == "def" and not _leads_to_noun(tokens, index + 1)
    if token.kind == "DET" and token.text.lower() in ("other", "another"):
        return not _leads_to_noun(tokens, index + 1) and not _measures_thing(tokens, index + 1)
    if token.kind == "DET" and token.han and token.text[-1] in "只条头棵座辆颗朵艘个些":
        return not _leads_to_noun(tokens, index + 1)
    return False


def _leads_to_noun(tokens: list[Token], index: int) -> bool:
    """Return whether modifiers alone lie between here and a noun."""
    counted = index > 0 and tokens[index - 1].kind == "ONE"
    while index < len(tokens):
        token = tokens[index]
        if token.kind == "ONE" and counted:
            return False
        if token.kind in ("SPECIES", "GENERIC", "ONE"):
            return True
        if token.kind in ("UNKNOWN", "OUT"):
            return _continues(tokens, index)
        wears = token.han and token.kind in ("CMD", "FUNC", "BE") and token.text in _WEARS
        if token.kind == "ACCESSORY" and token.han:
            if index + 1 < len(tokens) and tokens[index + 1].kind in ("DE", "CONJ"):
                index += 1
                continue
            return False
        if wears or token.kind in (*_ADJECTIVES, "MEAS", "FLUFF", "SHADE", "NUM") or token.kind == "DEGREE":
            index += 1
            continue
        if (
            token.kind == "DE"
            or (token.kind == "DET" and not token.han)
            or token.text in ("很", "非常", "very", "really")
        ):
            index += 1
            continue
        if token.kind == "FACING" and index + 1 < len(tokens) and tokens[index + 1].kind == "DE":
            index += 1
            continue
        return False
    return False


def _measures_thing(tokens: list[Token], index: int) -> bool:
    """Return whether a measure word counts an accessory or a place ("一顶红帽子", "一片森林")."""
    while index < len(tokens) and tokens[index].kind in ("COLOUR", "SIZE", "DE", "FLUFF", "SHADE"):
        index += 1
    return index < len(tokens) and tokens[index].kind in ("ACCESSORY", "BACKGROUND", "STYLE", "UNKNOWN", "OUT")


def _continues(tokens: list[Token], index: int) -> bool:
    """Return whether unknown words only modify a noun that follows at once."""
    while index < len(tokens) and tokens[index].kind in ("UNKNOWN", "OUT", "DE", *_ADJECTIVES, "FLUFF"):
        if tokens[index].kind == "OUT" and tokens[index].key == "action":
            return False
        if tokens[index].kind == "OUT" and tokens[index].key == "activity" and not _modifies_at_once(tokens, index):
            return False
        index += 1
    return index < len(tokens) and tokens[index].kind in ("SPECIES", "GENERIC", "ONE")


def _modifies_at_once(tokens: list[Token], index: int) -> bool:
    """Return whether an activity stands right before its noun ("a dancing cat", "跳舞的猫")."""
    index += 1 + (index + 1 < len(tokens) and tokens[index + 1].kind == "DE")
    return index < len(tokens) and tokens[index].kind in ("SPECIES", "GENERIC", "ONE")


def _phrase_start(tokens: list[Token], head: int, floor: int) -> int:
    """Return where the phrase of a head begins; never before ``floor``."""
    begin = head
    if tokens[head].kind == "ONE" and 0 < floor < head and tokens[floor - 1].kind == "ONE":
        if all(token.kind in _ADJECTIVES for token in tokens[floor:head]):
            return head
    seen_det = False
    index = head - 1
    while index >= floor:
        token, after = tokens[index], tokens[index + 1]
        ok = False
        if token.kind in ("DET", "NUM", "MEAS", "ALL", "ONE"):
            if token.kind == "MEAS" and seen_det:
                break
            ok = True
            seen_det = token.kind in ("DET", "NUM", "ONE") or seen_det
        elif seen_det and not (token.kind in ("DE", "PLACE") and token.han):
            break
        elif token.kind in _ADJECTIVES or token.kind in ("FLUFF", "SHADE"):
            ok = token.kind != "EXPRESSION" or not _is_verb_like(tokens, index)
        elif token.kind == "DEGREE":
            ok = token.text in ("一些", "些") or after.kind in _ADJECTIVES
        elif token.kind in ("UNKNOWN", "OUT"):
            ok = not (token.kind == "OUT" and token.key == "action") and _modifies(tokens, index)
            if token.kind == "OUT" and token.key == "activity":
                ok = _is_before_noun(tokens, index, floor)
        elif token.kind == "FUNC":
            ok = token.text.lower() in ("很", "非常", "very", "really", "quite", "特别", "十分", "最", "另外") or (
                token.text in _WEARS and after.kind in ("ACCESSORY", *_ADJECTIVES) and begin <= head - 1
            )
        elif token.kind == "DE":
            ok = index > floor and tokens[index - 1].kind in (
                *_ADJECTIVES, "ACCESSORY", "FACING", "PLACE", "FLUFF", "UNKNOWN", "OUT", "DE", "NUM",
            )  # fmt: skip
            if tokens[index - 1].kind == "PLACE" and index - 1 > floor:
                ok = ok and not _has_owner(tokens, index - 1)
        elif token.kind == "FACING":
            ok = after.kind == "DE"
        elif token.kind == "ACCESSORY":
            ok = token.han and (after.kind == "DE" or (after.kind == "CONJ" and _accessory_list(tokens, index + 2)))
        elif token.kind == "CMD" and token.key == "dress" and token.han:
            ok = after.kind in ("ACCESSORY", *_ADJECTIVES, "NUM", "MEAS") and begin == index + 1
        elif token.kind == "NEG":
            ok = token.han and after.kind == "ACCESSORY" and begin == index + 1
        elif token.kind == "BE" and token.text == "有":
            ok = after.kind == "ACCESSORY" and begin == index + 1 and index > floor and tokens[index - 1].kind == "MEAS"
        elif token.kind == "PLACE":
            follows = after.kind == "DE" or (after.kind in ("DET", "NUM", "MEAS") and token.han and begin == index + 1)
            single = not token.han and token.text.lower() in ("left", "right", "middle", "leftmost", "rightmost", "top")
            ok = (token.han and follows and not _has_owner(tokens, index) and _is_defining(tokens, index)) or (
                single and not token.han and index > floor and tokens[index - 1].kind == "DET"
            )
        elif token.kind == "CONJ" or (token.kind == "WEAK" and token.key in ",、，"):
            ok = (
                index > floor
                and tokens[index - 1].kind in _ADJECTIVES
                and after.kind in _ADJECTIVES
                and _starts_with_determiner(tokens, index - 1, floor)
            ) or (token.kind == "CONJ" and after.kind == "ACCESSORY" and index > floor
                  and tokens[index - 1].kind == "ACCESSORY" and begin == index + 1 and after.han)  # fmt: skip
        if not ok:
            break
        begin = index
        index -= 1
    while begin < head and tokens[begin].kind in ("DE", "CONJ", "WEAK"):
        begin += 1
    return begin


def _is_verb_like(tokens: list[Token], index: int) -> bool:
    """Return whether an expression belongs to the noun before it ("猫 睡觉 狗...")."""
    return index > 0 and tokens[index - 1].kind in ("SPECIES", "PRON") and tokens[index].han


def _modifies(tokens: list[Token], index: int) -> bool:
    """Return whether an unknown word stands between a determiner and the noun."""
    after = tokens[index + 1]
    return after.kind in ("SPECIES", "DE", "GENERIC", "ONE", *_ADJECTIVES, "UNKNOWN", "OUT", "FLUFF")


def _is_before_noun(tokens: list[Token], index: int, floor: int) -> bool:
    """Return whether an activity is an adjective here: right before its noun, after a determiner or with 的."""
    counted = index > floor and tokens[index - 1].kind in ("DET", "NUM", "MEAS", *_ADJECTIVES, "FLUFF")
    return _modifies_at_once(tokens, index) and (counted or tokens[index + 1].kind == "DE")


def _has_owner(tokens: list[Token], index: int) -> bool:
    """Return whether a Chinese place word belongs to the noun before it ("猫左边的狗")."""
    before = tokens[index - 1] if index else None
    if before is not None and before.kind == "DE" and index > 1:
        before = tokens[index - 2]
    return before is not None and before.kind in ("SPECIES", "PRON") and not tokens[index].gap


def _is_defining(tokens: list[Token], index: int) -> bool:
    """Return whether a Chinese place word picks a noun out ("左边那只", "左边的猫") and does not place a new one."""
    after = tokens[index + 1]
    return after.kind == "DE" or after.kind == "DET"


def _accessory_list(tokens: list[Token], index: int) -> bool:
    """Return whether an accessory and 的 follow."""
    return index + 1 < len(tokens) and tokens[index].kind == "ACCESSORY" and tokens[index + 1].kind == "DE"


def _starts_with_determiner(tokens: list[Token], index: int, floor: int) -> bool:
    """Return whether adjectives back to a determiner precede ("a small, red and happy cat")."""
    while index >= floor and (
        tokens[index].kind in _ADJECTIVES or tokens[index].kind in ("CONJ", "WEAK", "DE", "FUNC")
    ):
        index -= 1
    return index >= floor and tokens[index].kind in ("DET", "NUM", "MEAS")


def _noun(tokens: list[Token], begin: int, head: int) -> Noun:
    """Build the noun phrase of a span."""
    token = tokens[head]
    kinds = {"SPECIES": "noun", "PRON": "pron", "ONE": "one", "ALL": "all", "GENERIC": "generic"}
    noun = Noun(
        kind=kinds.get(token.kind, "unknown" if token.kind in ("UNKNOWN", "OUT") else "one"),
        species=token.key if token.kind == "SPECIES" else None,
        start=tokens[begin].start,
        end=token.end,
        text=" ".join(part.text for part in tokens[begin : head + 1]),
        plural=bool(token.plural),
        han=token.han,
    )
    if token.kind == "SPECIES" and token.han and len(token.text) > 1:
        noun.hint = {"小": "small", "大": "large"}.get(token.text[0])
        if token.text in ("小船", "大象", "大笨象", "小汽车", "小车", "小屋"):
            noun.hint = None
    if token.kind == "PRON":
        noun.plural, noun.det = token.key == "them", "def"
    dets: list[str] = []
    for index in range(begin, head + (1 if token.kind in ("MEAS", "DET", "ONE", "ALL", "NUM") else 0)):
        part = tokens[index]
        if part.kind == "DET":
            dets.append("def" if part.key.startswith("nth ") else part.key)
            if part.key.startswith("nth "):
                noun.ordinal = int(part.key.removeprefix("nth "))
            if part.text.lower() == "some" and noun.plural:
                noun.number = 3
            if part.text.lower() in ("一只", "a second"):
                noun.number = 1
            if part.text in ("这些", "那些"):
                noun.plural = True
        elif part.kind == "ALL":
            noun.plural = True
            dets.append("def")
        elif part.kind == "NUM":
            noun.number = int(part.key)
        elif part.kind == "ONE" and index < head:
            noun.number = 1
        elif part.kind == "DEGREE" and part.text in ("一些", "些"):
            noun.number = 3
        elif part.kind in ("COLOUR", "SIZE", "EXPRESSION", "FACING", "PLACE"):
            if part.kind == "COLOUR" and _colours_accessory(tokens, index, head):
                noun.attrs.setdefault("accessory colour", part.key)
            else:
                name = part.kind.lower()
                if noun.attrs.setdefault(name, part.key) != part.key and name == "colour":
                    noun.attrs["extra colour"] = part.key
        elif part.kind == "VARIED":
            noun.attrs["varied"] = part.key
        elif part.kind == "ACCESSORY":
            denied = index > begin and tokens[index - 1].kind == "NEG"
            noun.attrs["accessory"] = "none" if denied else part.key
    if "another" in dets:
        noun.det = "other" if "def" in dets else "another"
    elif "def" in dets:
        noun.det = "def"
    elif "indef" in dets or noun.number is not None:
        noun.det = "indef"
    if noun.kind == "unknown":
        first = next(i for i in range(begin, head + 1) if tokens[i].kind in ("UNKNOWN", "OUT"))
        noun.start = tokens[first].start if token.han else noun.start
    if noun.kind == "all":
        noun.plural, noun.det = True, "def"
    if noun.number is not None and noun.number > 1:
        noun.plural = True
    return noun


def _colours_accessory(tokens: list[Token], index: int, head: int) -> bool:
    """Return whether a colour belongs to the accessory that follows it."""
    after = index + 1
    while after < head and tokens[after].kind in ("DE", "SIZE", "FLUFF"):
        after += 1
    return after < head and tokens[after].kind == "ACCESSORY"


def split_clauses(items: list[Item]) -> list[list[Item]]:
    """Return the items as clauses: at full stops, and where a new instruction begins."""
    clauses: list[list[Item]] = [[]]
    for index, item in enumerate(items):
        if isinstance(item, Token):
            if item.kind == "STRONG":
                clauses.append([])
                continue
            if (
                item.kind in ("WEAK", "CONJ", "THEN")
                and clauses[-1]
                and (_opens(items, index + 1) or (item.kind == "WEAK" and _goes_on(items, index + 1, clauses[-1])))
            ):
                clauses.append([item] if item.kind == "CONJ" else [])
                continue
            if item.kind == "CMD" and item.han and clauses[-1] and _is_late_command(items, index, clauses[-1]):
                clauses.append([])
        clauses[-1].append(item)
    return [clause for clause in clauses if any(isinstance(i, Noun) or i.kind not in ("WEAK", "FUNC") for i in clause)]


def _opens(items: list[Item], index: int) -> bool:
    """Return whether a new instruction begins here: a command, with nothing but small words before it."""
    while index < len(items):
        item = items[index]
        if isinstance(item, Noun):
            return False
        if item.kind == "CMD":
            return item.key != "dress"
        if item.text in ("把", "将", "让", "给"):
            return True
        if item.kind in ("FUNC", "THEN", "MODAL", "ADVERB", "FLUFF", "CONJ") and item.text != "的":
            index += 1
            continue
        return False
    return False


def _goes_on(items: list[Item], index: int, clause: list[Item]) -> bool:
    """Return whether a noun with a command of its own follows ("把猫改成紫色，花改成黄色")."""
    if any(isinstance(item, Token) and item.kind == "CMD" and item.key in ("draw", "add") for item in clause):
        return False
    noun = items[index] if index < len(items) else None
    command = items[index + 1] if index + 1 < len(items) else None
    acts = any(isinstance(item, Token) and item.kind in ("CMD", "EXPRESSION") for item in clause)
    went = any(isinstance(item, Token) and (item.kind, item.key) == ("CMD", "remove") for item in clause)
    return (
        acts
        and isinstance(noun, Noun)
        and noun.han
        and noun.det in ("bare", "def")
        and isinstance(command, Token)
        and ((command.kind == "CMD" and command.key != "draw") or (command.kind == "EXPRESSION" and went))
    )


def _is_late_command(items: list[Item], index: int, clause: list[Item]) -> bool:
    """Return whether a Chinese command without punctuation before it starts another clause (画猫再画狗)."""
    item = items[index]
    if not isinstance(item, Token):
        return False
    if item.key in ("put", "dress", "move") and any(isinstance(part, Noun) for part in items[index + 1 :]):
        taken = [part.kind if part.kind != "CMD" else part.key for part in clause if isinstance(part, Token)]
        if "remove" in taken and "ACCESSORY" in taken:
            return True
    if item.text not in ("再画", "再加", "再来", "再添"):
        return False
    return any(isinstance(part, Noun) for part in clause)
