"""The rule-based screenwriter: one message in, one reply out, in English, Chinese or both.

It needs no model: a grammar over the words of the embedded world. It is pure (the same message and conversation give
the same reply), fast, and it never draws what it did not understand: words it does not know are named, and it asks or
refuses.

Source: the screenwriter's place is TheaterGen's (arXiv:2404.18919, section 3.1); talk or draw is DialogGen's
(arXiv:2403.08857).
"""

from __future__ import annotations

import re

from ...dialogue.message import Conversation, Memory, Message, Pending, Reply, clean_text, detect_language
from ...errors import ConfigError
from ...promptbook import Edit, Page, PageWarning, RestorePage
from ...promptbook.validate import MAX_CHARACTERS
from ...world.vocabulary import Language, term
from . import answers
from .clauses import interpret
from .draft import Sheet, Stuck
from .grammar import Item, Noun, Token, chunk, normalise, split_clauses, tokenize
from .lexicon import (
    AGAIN,
    DISLIKE,
    GREETINGS,
    HELP,
    IDENTITY,
    NO,
    NO_DRAWING,
    ORDINALS,
    POSES,
    REDO,
    RESTART,
    THANKS,
    UNDO,
    YES,
)
from .recalling import described_picture, find_described, is_understood
from .references import resolve
from .scenery import settle_hours
from .words import WHERE, join, people

_PICTURE_EN = r"(?:picture|pictures|image|page|drawing|version|scene|one|painting|illustration)"
_RECALL_EN = re.compile(
    r"(?:please )?(?:can you |could you |can we |can i |could i |let's |i want to |i'd like to |i would like to |now )?"
    r"(?:go back to|return to|show me|show|bring back|restore|back to|see|let me see|revert to|take me back to|"
    r"display|recall|i want|i liked)\s+(?:again )?(?:the )?(?:very )?"
    r"(?P<ordinal>first|second|third|fourth|fifth|sixth|seventh|eighth|1st|2nd|3rd|4th|5th|6th|original|initial|last|latest|"
    r"current|beginning|start)?"
    rf"\s*(?:{_PICTURE_EN})?(?:\s*(?:number|no\.?|#)?\s*(?P<number>\d+|one|two|three|four|five|six))?"
    r"(?: (?:again|please|once more|better|more|back))*"
)
_RECALL_ZH = re.compile(
    r"(?:请|再|麻烦|帮我|给我|让我|我想|我要|想|能不能|能|可以|还是|那就|那|我们|咱们|就|先|我)*(?:回到|返回|恢复到|恢复|看看|看一下|看一看|看|显示|退回到|还原到|还原|切回|"
    r"调出|找回|要|拿出|展示|翻回|回)?(?:一下|到)?"
    r"(?:第(?P<number>[一二两三四五六七八九十\d]+)(?:张|幅|页|版|个版本|次)(?:的)?(?:图|画|图片|图画|画面)?"
    r"|(?P<word>最初|最开始|一开始|开头|原来|最早|最后一|最近一|刚才|现在)(?:的)?(?:那)?(?:张|幅|版|个)?(?:的)?(?:图|画|图片|画面|样子|版本)?)"
    r"(?:吧|看看|再看看|一下|好吗|好了|吗|么|了|的样子|给我看|再给我看看|来看看)*"
)
_AGAIN = re.compile(
    r"(?:please )?(?:show|see|let me see)(?: me)? (?:the|this|that|it)(?: current)?(?: picture| image| one| drawing)?"
    r"(?: once more| again| please)*"
    r"|(?:再|给我|让我)*(?:看|显示)(?:一下|看|一眼)?(?:这|那|现在的)?(?:张|幅)?(?:图|画|图片)(?:吧)?"
)
_STEPS = re.compile(
    r"(?:please )?(?:undo|go back|take back|revert)(?: the)?(?: last)? (?P<en>two|three|four|five|2|3|4|5)"
    r"(?: steps?| changes?| edits?| times?| pictures?| turns?)?"
    r"|(?:撤销|退回|返回|回退|后退|撤回|倒退)(?:最近|前|上)?(?:的)?(?P<zh>[两二三四五2345])(?:步|次|张)(?:修改|改动|操作|编辑)?"
)
_CHANGED_MIND = re.compile(r"^(?:(?:hmm|no|nah|oh|ugh|wait|oops|sorry) )+|^(?:不对|算了|哎呀|唉) ?")
_CORRECTION = re.compile(
    r"(?:(?:no|nope|sorry|wait|oops|hmm|actually)[\s,.!]+)*i (?:meant|mean|was talking about|said) (?P<who>.+?)[.!\s]*"
    r"|(?:(?:不对|不是|错了|哎呀|等等|不)[\s，,。！]*)*(?:我说的是|我是说|我指的是|我的意思是)(?P<zh>.+?)[。！啊呀\s]*",
    re.IGNORECASE,
)
_ZH_DIGITS = {letter: index for index, letter in enumerate("零一二三四五六七八九十")} | {"两": 2}
_POLITE = re.compile(
    r"^(?:please|now|then|ok|okay|well|so|oh|hmm|and|but|actually|hey|hi|hello|oops|sorry|请|那|那么|嗯|哦|现在|然后|呃|好的|好)[\s,，]+|"
    r"[\s,，]*(?:please|thanks|thank you|for now|now|huaben|吧|啊|呀|呢|哦|啦|谢谢|一下)$"
)


def _number(word: str) -> int:
    """Return a small number written in either language."""
    words = {"two": 2, "three": 3, "four": 4, "five": 5} | _ZH_DIGITS
    return words.get(word) or int(word)


def _shown(text: str) -> str:
    """Return a passage of a message as it is quoted: one line, not too long, its article in lower case."""
    text = re.sub(r"^(A|An|The)(?= )", lambda match: match[1].lower(), " ".join(text.split()))
    return text if len(text) <= 48 else text[:45] + "…"


class Screenwriter:
    """Reads messages about the embedded world.

    Args:
        max_characters: the most a picture takes.
    """

    def __init__(self, *, max_characters: int = MAX_CHARACTERS) -> None:
        if not 1 <= max_characters <= MAX_CHARACTERS:
            raise ConfigError(f"max_characters={max_characters}", hint=f"from 1 to {MAX_CHARACTERS}")
        self.max_characters = max_characters

    def read(
        self, message: Message | str, conversation: Conversation | None = None, *, seen: Page | None = None
    ) -> Reply:
        """Return the reply to a message.

        Args:
            message: what the user said.
            conversation: everything before it.
            seen: the page an uploaded picture shows, if it was read; the message then starts from it.

        Raises:
            DialogueError: for empty or overlong text.
        """
        if isinstance(message, str):
            message = Message(text=message)
        text = clean_text(message.text, has_image=message.image is not None or seen is not None)
        return _Reading(self.max_characters, text, conversation or Conversation(), seen, message.image).reply()


class _Reading:
    """The reading of one message."""

    def __init__(self, limit: int, text: str, conversation: Conversation, seen: Page | None, image: str | None) -> None:
        self.limit = limit
        self.raw = text
        self.text = normalise(text)
        self.conversation = conversation
        self.memory = conversation.memory
        self.language: Language = detect_language(self.text, self.memory.language)
        self.page = seen if seen is not None else conversation.page
        self.seen = seen
        self.image = image
        self.forced: tuple[str, ...] = ()
        self.instead: tuple[str, ...] = ()
        self.ignore_unknown = False

    # ------------------------------------------------------------------------------------------------------ the order

    def reply(self) -> Reply:
        """Return the reply: small talk first, then questions, then what changes the page."""
        if not self.text:
            return self._see()
        plain = self._plain(self.text)
        answer = self._answer_pending(plain)
        if answer is not None:
            return answer
        simple = self._simple(plain)
        if simple is not None:
            return simple
        recall = self._recall(plain)
        if recall is not None:
            return recall
        corrected = self._correct()
        if corrected is not None:
            return corrected
        items = chunk(tokenize(self.text))
        if answers.is_question(items, self.text) and not self._asks_for_unknown(items):
            return self._question(items)
        return self._work(items)

    @staticmethod
    def _plain(text: str) -> str:
        """Return a message without case, punctuation and politeness, for comparison with whole phrases."""
        plain = re.sub(r"[.!?,;:。！？，；：~…、\"“”()（）]+", " ", text.lower())
        plain = " ".join(plain.split())
        for _ in range(3):
            shorter = _POLITE.sub("", plain).strip()
            if not shorter or shorter == plain:
                break
            plain = shorter
        return plain

    def _see(self) -> Reply:
        """Answer a picture that came without words."""
        if self.seen is None:
            en, zh = (
                "I got your picture, but I cannot read it here. Tell me in words what to draw.",
                "图片收到了，但这里读不了它。请用文字告诉我画什么。",
            )
            return self._talk("chat", en, zh)
        sheet = self._open()
        looks = [draft.attrs for draft in sheet.drafts]
        where = WHERE.get(sheet.background, ("", ""))
        en = f"I see {people(looks, 'en')} {where[0]}. What shall I change?" if looks else f"I see only {where[0]}."
        zh = f"我看到{where[1]}有{people(looks, 'zh')}。要改什么吗？" if looks else f"我只看到{where[1]}。"
        page, edits, said = sheet.finish("")
        return self._drawn(
            sheet, page, (RestorePage(page=page),) if self.conversation.page is None else edits, said, en, zh
        )

    # --------------------------------------------------------------------------------------------------- open questions

    def _answer_pending(self, plain: str) -> Reply | None:
        """Go on with what was asked, when this message answers it."""
        pending = self.memory.pending
        if pending is None:
            return None
        yes = plain in YES or self.text.strip().lower() in YES
        no = plain in NO
        if pending.kind in ("without", "meant"):
            if yes:
                return self._again(pending.text, ignore_unknown=True)
            if no:
                return self._talk("chat", *answers.FINE)
            rest = re.sub(
                r"^(?:yes|yeah|ok|okay|sure|好的?|可以|行|嗯)[\s,，。.!！]+(?:please[\s,]*)?", "", self.text.lower()
            )
            things = any(isinstance(item, Noun) and item.kind == "noun" for item in chunk(tokenize(rest)))
            if rest != self.text.lower() and rest and not things:
                first = self._again(pending.text, ignore_unknown=True)
                return self._go_on(first, rest)
            return None
        if no:
            return self._talk("chat", *answers.FINE)
        chosen = self._choose(pending)
        return self._again(pending.text, forced=chosen) if chosen else None

    def _choose(self, pending: Pending) -> tuple[str, ...]:
        """Return the ids that an answer to "which one?" names."""
        sheet = self._open()
        among = [draft for draft in sheet.drafts if draft.id in pending.options]
        items = [
            item for item in chunk(tokenize(self.text)) if isinstance(item, Noun) or item.kind not in ("WEAK", "STRONG")
        ]
        if any(isinstance(item, Token) and item.kind == "CMD" for item in items):
            return ()
        nouns = [item for item in items if isinstance(item, Noun)]
        attrs = {item.kind.lower(): item.key for item in items if isinstance(item, Token) and item.kind in
                 ("COLOUR", "PLACE", "ACCESSORY", "EXPRESSION", "SIZE", "FACING")}  # fmt: skip
        if re.search(r"\b(both|all)\b|都|全部|两个|俩|所有|一起", self.text.lower()):
            return tuple(draft.id for draft in among)
        if len(nouns) > 1 or (not nouns and not attrs) or not among:
            return ()
        noun = nouns[0] if nouns else Noun("one", None, 0, 0, "", det="def")
        noun.attrs = attrs | noun.attrs
        if noun.kind in ("pron", "generic") or (noun.kind == "one" and not noun.attrs):
            return ()
        if noun.det == "indef" and noun.kind == "noun":
            return ()
        sheet.focus = []
        try:
            return tuple(draft.id for draft in resolve(noun, sheet, among=among))
        except Stuck:
            return ()

    def _again(self, text: str, *, ignore_unknown: bool = False, forced: tuple[str, ...] = ()) -> Reply:
        """Read the message that was waiting."""
        reading = _Reading(self.limit, text, self.conversation, self.seen, None)
        reading.ignore_unknown, reading.forced = ignore_unknown, forced
        reading.language = self.language if not re.fullmatch(r"(?:ok|y|n)", self.text.lower()) else reading.language
        return reading._work(chunk(tokenize(reading.text)))

    def _go_on(self, first: Reply, rest: str) -> Reply:
        """Read what follows a yes on top of what the yes did."""
        if first.action != "draw" or first.page is None:
            return first
        reading = _Reading(self.limit, rest, self.conversation.replace(memory=first.memory), first.page, None)
        second = reading._work(chunk(tokenize(reading.text)))
        if second.action != "draw":
            return first
        start = self.conversation.page
        edits = (*first.edits, *second.edits) if start is not None else second.edits
        return second.replace(edits=edits, warnings=(*first.warnings, *second.warnings))

    # ----------------------------------------------------------------------------------------------------- whole phrases

    def _simple(self, plain: str) -> Reply | None:
        """Answer phrases that are a whole message."""
        if plain in UNDO or _CHANGED_MIND.sub("", plain) in UNDO:
            return self._undo()
        if plain in REDO:
            return self._redo()
        steps = _STEPS.fullmatch(plain.replace(" ", "") if self.language == "zh" else plain)
        if steps is not None:
            return self._undo(_number(steps["en"] or steps["zh"]))
        if plain in AGAIN and self.page is not None:
            return self._repaint()
        if plain in DISLIKE and self.page is not None:
            return self._talk(
                "ask",
                "Sorry! What should I change: a colour, a place, a size, or who is there?",
                "抱歉！要改什么：颜色、位置、大小，还是角色？",
            )
        if plain in NO_DRAWING:
            return self._talk("chat", *answers.WILL_NOT_DRAW)
        if plain in HELP:
            return self._talk("chat", *answers.helping())
        if plain in IDENTITY:
            return self._talk("chat", *answers.WHO)
        if plain in RESTART:
            return self._restart()
        whole = " ".join(re.sub(r"[.!?,;:。！？，；：~…]+", " ", self.text.lower()).split())
        if plain in GREETINGS or whole in GREETINGS:
            return self._talk("chat", *answers.HELLO)
        if plain in THANKS or whole in THANKS or self._all_thanks(whole):
            return self._talk("chat", *answers.THANKS)
        if re.match(
            r"(?:tell|sing|explain|translate|calculate|write)\b|讲|唱|写|解释|翻译|告诉我", plain
        ) and not re.search(r"draw|picture|画", plain):
            return self._talk("chat", *answers.SMALL_TALK)
        if re.match(r"(?:i (?:really |do )?(?:like|love) |我(?:很|好|真|最)?喜欢)", plain) and self.page is not None:
            tokens = tokenize(self.text)
            if not any(token.kind in ("CMD", "COLOUR", "ACCESSORY", "UNKNOWN", "OUT") for token in tokens):
                return self._talk("chat", *answers.THANKS)
        if plain in YES or plain in NO or whole in NO:
            return self._talk("chat", *(answers.SMALL_TALK if self.page is None else answers.FINE))
        return None

    def _all_thanks(self, whole: str) -> bool:
        """Return whether a message consists of thanks and praise only."""
        parts = [part.strip() for part in re.split(r"[.!?,;。！？，；~]+", self.text.lower()) if part.strip()]
        return bool(whole) and len(parts) > 1 and all(part in THANKS or part in GREETINGS for part in parts)

    def _restart(self) -> Reply:
        """Forget the scene; the next drawing starts from nothing."""
        if self.page is None:
            return self._talk("chat", *answers.NOTHING_DRAWN)
        sheet = self._open()
        sheet.restart()
        page, edits, said = sheet.finish(self.raw)
        return self._drawn(sheet, page, edits, said, *answers.CLEARED)

    def _correct(self) -> Reply | None:
        """Do the last message again for whoever was meant ("no, I meant the other one"); None for anything else."""
        match = _CORRECTION.fullmatch(self.text.strip())
        if match is None or self.page is None:
            return None
        items = [item for item in chunk(tokenize(match["who"] or match["zh"])) if isinstance(item, Noun)]
        if len(items) != 1 or items[0].kind not in ("noun", "one", "generic"):
            return None
        items[0].det = "other" if items[0].det == "other" else "def"
        sheet = self._open()
        try:
            meant = tuple(draft.id for draft in resolve(items[0], sheet))
        except Stuck as stuck:
            memory = self.memory.replace(language=self.language)
            return self._answer("ask", stuck.en, stuck.zh, memory)
        last = self.conversation.turns[-1] if self.conversation.turns else None
        trail = self.memory.trail
        if last is None or last.reply.action != "draw" or len(trail) < 2:
            return self._talk("ask", "What should I change about it?", "要改哪里呢？", focus=meant)
        before = self.conversation.book.pages[trail[-2]]
        reading = _Reading(self.limit, last.message.text, self.conversation, before, None)
        reading.instead, reading.language = meant, self.language
        again = reading._work(chunk(tokenize(reading.text)))
        there = set(self.page.ids)
        if again.action != "draw" or again.page is None or set(again.page.ids) != there:
            return self._talk("ask", "What should I change about it?", "要改哪里呢？", focus=meant)
        return again.replace(edits=(RestorePage(page=again.page),))

    # ------------------------------------------------------------------------------------------------------------ recall

    def _repaint(self) -> Reply:
        """Draw the same page once more."""
        sheet = self._open()
        page, edits, said = sheet.finish(self.raw)
        return self._drawn(sheet, page, edits, said, "Here is another try at the same page.", "同一页再画了一次。")

    def _undo(self, steps: int = 1) -> Reply:
        """Go back to the page before the last change, or several."""
        trail = self.memory.trail
        if not trail:
            return self._talk("chat", *answers.NOTHING_DRAWN)
        if len(trail) < 2:
            return self._talk("chat", *answers.FIRST)
        steps = min(max(steps, 1), len(trail) - 1)
        memory = self.memory.replace(trail=trail[:-steps], undone=(*self.memory.undone, *reversed(trail[-steps:])))
        return self._recalled(
            trail[-steps - 1], memory, ("Undone: here is the picture before.", "已撤销，回到了上一张。")
        )

    def _redo(self) -> Reply:
        """Undo an undo."""
        if not self.memory.undone:
            return self._talk("chat", *answers.NO_REDO)
        index = self.memory.undone[-1]
        memory = self.memory.replace(trail=(*self.memory.trail, index), undone=self.memory.undone[:-1])
        return self._recalled(index, memory, ("Redone.", "已重做。"))

    def _recall(self, plain: str) -> Reply | None:
        """Show an earlier picture again."""
        number = self._wanted_picture(plain)
        if number is None:
            return self._recall_described(plain)
        drawn = self.memory.drawn
        if not drawn:
            return self._talk("chat", *answers.NOTHING_DRAWN)
        if number == 0:
            index = self.memory.trail[-1] if self.memory.trail else drawn[-1]
            return self._recalled(index, self.memory, ("Here it is again.", "再看一次。"))
        if number > len(drawn) or number < -len(drawn):
            count = len(drawn)
            en = f"There {'is' if count == 1 else 'are'} only {count} picture{'s' if count > 1 else ''} so far."
            return self._talk("ask", f"{en} Which one would you like?", f"到现在只有{count}张画。要看哪一张？")
        index = drawn[number - 1] if number > 0 else drawn[number]
        memory = self.memory.replace(trail=(*self.memory.trail, index), undone=())
        place = number if number > 0 else len(drawn) + 1 + number
        ordinal = {1: "first", 2: "second", 3: "third"}.get(place, f"{place}th")
        return self._recalled(index, memory, (f"Here is the {ordinal} picture again.", f"这是第{place}张。"))

    def _recall_described(self, plain: str) -> Reply | None:
        """Show the latest earlier picture of which a description is true; None where there is no such picture."""
        described = described_picture(plain)
        drawn = self.memory.drawn
        if described is None or not drawn or not is_understood(described[0]):
            return None
        what, certain = described
        current = self.memory.trail[-1] if self.memory.trail else drawn[-1]
        earlier = tuple(dict.fromkeys(index for index in reversed(drawn) if index != current))
        index = find_described(what, self.conversation.book, (*earlier, current), self.memory.focus, self.language)
        if index is None and certain:
            en = f"I find no earlier picture like that among the {len(drawn)} so far. Which one would you like?"
            return self._talk("ask", en, f"到现在的{len(drawn)}张画里没有这样的。要看哪一张？")
        if index is None:
            return None
        if index == current:
            return self._recalled(index, self.memory, ("It is this one.", "就是这一张。"))
        memory = self.memory.replace(trail=(*self.memory.trail, index), undone=())
        number = drawn.index(index) + 1
        return self._recalled(index, memory, (f"Here is picture {number} again.", f"这是第{number}张。"))

    @staticmethod
    def _wanted_picture(plain: str) -> int | None:
        """Return the number of the picture asked for: 1 the first, -1 the newest, 0 the current one; None otherwise."""
        match = _RECALL_EN.fullmatch(plain)
        if match is not None and (match["ordinal"] or match["number"]):
            if match["ordinal"] in ("last", "latest"):
                return -1
            if match["ordinal"] == "current":
                return 0
            word = match["ordinal"] or match["number"]
            numbers = ORDINALS | {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
            return numbers.get(word) or (int(word) if word.isdigit() and int(word) > 0 else None)
        match = re.fullmatch(rf"{_PICTURE_EN} (?:number |no |#)?(\d+)", plain)
        if match is not None:
            return int(match[1]) or None
        match = _RECALL_ZH.fullmatch(plain.replace(" ", ""))
        if match is not None and match["number"]:
            digits = match["number"]
            return int(digits) if digits.isdigit() else _ZH_DIGITS.get(digits)
        if match is not None and match["word"]:
            return {"最后一": -1, "最近一": -1, "现在": 0, "刚才": -1}.get(match["word"], 1)
        return 0 if _AGAIN.fullmatch(plain) else None

    def _recalled(self, index: int, memory: Memory, text: tuple[str, str]) -> Reply:
        """Return the reply that restores a page."""
        page = self.conversation.book.pages[index]
        ids = tuple(character.id for character in page.characters)
        return Reply(
            action="recall",
            text=text[0] if self.language == "en" else text[1],
            language=self.language,
            edits=(RestorePage(page=page),),
            page=page,
            recalled=index,
            memory=memory.replace(pending=None, language=self.language, focus=ids),
        )

    # --------------------------------------------------------------------------------------------------------- questions

    def _asks_for_unknown(self, items: list[Item]) -> bool:
        """Return whether a question is really a request ("can you draw a dragon?")."""
        tokens = [item for item in items if isinstance(item, Token)]
        draws = any(item.kind == "CMD" and item.key in ("draw", "add", "change", "replace") for item in tokens)
        strong = any(item.kind == "Q" and item.key not in ("yesno", "why", "how") for item in tokens)
        return draws and not strong and any(item.kind == "MODAL" or item.text == "会" for item in tokens)

    def _question(self, items: list[Item]) -> Reply:
        """Answer from the page."""
        sheet = self._open()
        nouns = [item for item in items if isinstance(item, Noun)]
        worldly = [item for item in items if isinstance(item, Token) and item.kind in
                   ("COLOUR", "ACCESSORY", "BACKGROUND", "STYLE", "PROP", "PLACE", "EXPRESSION", "FACING", "SIZE")]  # fmt: skip
        unknown = self._unknown(items)
        pictures = re.search(
            r"\b(picture|image|scene|drawing|page|see|there)\b|图|画|里面|谁|看到|场景", self.text.lower()
        )
        if unknown and not any(noun.kind in ("noun", "pron") for noun in nouns):
            thing = unknown[0][0]
            if pictures and any(noun.kind == "unknown" for noun in nouns) and self.page is not None:
                return self._talk("chat", f"No, there is no {thing.removeprefix('a ').removeprefix('an ')} in the picture.",
                                  f"没有，画面里没有{thing}。")  # fmt: skip
            return self._talk("chat", *answers.SMALL_TALK)
        asks = any(isinstance(item, Token) and item.kind == "Q" and item.key not in ("what", "which", "how", "why", "yesno")
                   for item in items)  # fmt: skip
        if not nouns and not worldly and not pictures and not asks:
            return self._talk("chat", *answers.SMALL_TALK)
        en, zh = answers.answer(items, sheet)
        focus = self.memory.focus
        named = [noun for noun in nouns if noun.kind == "noun"]
        if named:
            found = [draft.id for draft in sheet.drafts if draft.species == named[0].species]
            focus = tuple(found) or focus
        return self._talk("chat", en, zh, focus=focus)

    # ------------------------------------------------------------------------------------------------------ edit and draw

    def _open(self) -> Sheet:
        """Return the sheet this message starts from."""
        sheet = Sheet.open(self.conversation.book, self.page, self.language, self.memory.focus, self.limit)
        sheet.forced, sheet.instead, sheet.text = self.forced, self.instead, self.text
        return sheet

    def _work(self, items: list[Item]) -> Reply:
        """Apply the clauses of a message, then report what was unknown, ask, or draw."""
        unknown = self._unknown(items)
        pastimes = [text for text, kind in unknown if kind == "activity"]
        unknown = [] if self.ignore_unknown else [(text, kind) for text, kind in unknown if kind != "activity"]
        sheet = self._open()
        stuck: Stuck | None = None
        drew = False
        try:
            for clause in split_clauses(items):
                before = len(sheet.added)
                try:
                    interpret(clause, sheet, first=not drew)
                except Stuck:
                    if any(isinstance(item, Noun) for item in clause) or self.page is not None:
                        raise
                    continue
                drew = drew or sheet.fresh or len(sheet.added) > before
        except Stuck as caught:
            stuck = caught
        settle_hours(sheet)
        if unknown:
            return self._report(unknown, sheet, stuck, items)
        if pastimes and (not sheet.changed or stuck is not None) and self._only_pastimes(sheet, stuck):
            return self._report([(text, "action") for text in pastimes], sheet, stuck, items)
        if pastimes:
            sheet.note(
                "activity",
                f"everyone stands or sits, so {join(pastimes, 'en')} is not drawn",
                f"角色只会站着或坐着，画不出{join([f'“{text}”' for text in pastimes], 'zh')}",
            )
        if stuck is not None:
            memory = self.memory.replace(pending=stuck.pending, language=self.language, focus=tuple(sheet.focus))
            action = "refuse" if stuck.action == "refuse" else "ask"
            text = stuck.en if self.language == "en" else stuck.zh
            return Reply(action=action, text=text, language=self.language, page=self.page, memory=memory)  # type: ignore[arg-type]
        full = next((note for note in sheet.notes if note[0] == "too_many"), None)
        if not sheet.changed and full is not None:
            en, zh = f"{full[1].capitalize()}. Who should make room?", f"{full[2]}。要去掉哪一个？"
            return self._talk("ask", en, zh, focus=tuple(sheet.focus))
        if not sheet.changed and sheet.doubt is not None:
            return self._talk("ask", sheet.doubt.en, sheet.doubt.zh, focus=tuple(sheet.focus))
        if not sheet.changed:
            return self._nothing(items)
        page, edits, said = sheet.finish(self.raw)
        en, zh = self._account(sheet, page)
        return self._drawn(sheet, page, edits, said, en, zh)

    @staticmethod
    def _only_pastimes(sheet: Sheet, stuck: Stuck | None) -> bool:
        """Return whether a message asked for an activity and for nothing else that has to be settled first."""
        return stuck is None or (stuck.pending is None and not sheet.did and not sheet.added)

    def _nothing(self, items: list[Item]) -> Reply:
        """Answer a message that changed nothing."""
        if any(isinstance(item, Noun) for item in items) and self.page is not None:
            return self._talk("ask", "What should I change about it?", "要改哪里呢？")
        wants = any(isinstance(item, Token) and item.kind in ("CMD", "VAGUE", "COMP", *("PROP",)) for item in items)
        if wants:
            if self.page is None:
                return self._talk("ask", "What would you like me to draw? An animal, a thing, a place?",
                                  "想画什么呢？动物、东西，还是地方？")  # fmt: skip
            return self._talk("ask", "What should I change: a colour, a place, a size, or who is there?",
                              "要改什么：颜色、位置、大小，还是角色？")  # fmt: skip
        return self._talk("chat", *answers.SMALL_TALK)

    def _account(self, sheet: Sheet, page: Page) -> tuple[str, str]:
        """Return what was done, in both languages."""
        looks = [draft.attrs for draft in sheet.drafts]
        where = WHERE.get(page.background, (page.background, page.background))
        if sheet.fresh or self.page is None:
            style = term("style", page.style)
            told = page.style != (self.page.style if self.page is not None else "flat")
            be = "are" if len(looks) > 1 else "is"
            en = f"Here {be} {people(looks, 'en')} {where[0]}" if looks else f"Here is an empty scene {where[0]}"
            zh = f"画好了：{where[1]}有{people(looks, 'zh')}" if looks else f"画好了：{where[1]}，还没有角色"
            en += f", {style.en[0]} style" if told else ""
            zh += f"，{style.zh[0]}风格" if told else ""
        else:
            did = list(dict.fromkeys(sheet.did))
            en = "; ".join(part[0] for part in did[:4]) or "changed as you asked"
            zh = "，".join(part[1] for part in did[:4]) or "按你说的改了"
            en, zh = f"Done: {en}", f"好了，{zh}"
        for _, note_en, note_zh in sheet.notes:
            en += f" ({note_en})"
            zh += f"（{note_zh}）"
        return f"{en}.", f"{zh}。"

    def _drawn(
        self,
        sheet: Sheet,
        page: Page,
        edits: tuple[Edit, ...],
        said: tuple[PageWarning, ...],
        en: str,
        zh: str,
    ) -> Reply:
        """Return the reply that draws a page."""
        index = len(self.conversation.book.pages)
        present = set(page.ids)
        focus = tuple(id for id in sheet.focus if id in present) or page.ids
        warnings = tuple(PageWarning(code=code, en=text, zh=zh_text) for code, text, zh_text in sheet.notes)
        quiet = tuple(warning for warning in said if warning.code != "empty_caption")
        return Reply(
            action="draw",
            text=en if self.language == "en" else zh,
            language=self.language,
            edits=edits,
            page=page,
            warnings=(*warnings, *quiet),
            memory=Memory(
                focus=focus,
                language=self.language,
                trail=(*self.memory.trail, index),
                drawn=(*self.memory.drawn, index),
            ),
        )

    def _talk(self, action: str, en: str, zh: str, *, focus: tuple[str, ...] | None = None) -> Reply:
        """Return a reply that leaves the page as it is."""
        memory = self.memory.replace(
            pending=None, language=self.language, focus=self.memory.focus if focus is None else focus
        )
        text = en if self.language == "en" else zh
        return Reply(action=action, text=text, language=self.language, page=self.conversation.page, memory=memory)  # type: ignore[arg-type]

    # ---------------------------------------------------------------------------------------------------------- unknown

    def _unknown(self, items: list[Item]) -> list[tuple[str, str]]:
        """Return the unknown passages as (text, kind); neighbours are joined ("playing the piano")."""
        spans: list[list[int | str]] = []
        subject: Noun | None = None
        joined = negated = False
        for item in items:
            if isinstance(item, Noun) and item.kind != "unknown":
                subject, joined, negated = item, False, False
                continue
            if isinstance(item, Noun) and negated:
                negated = False
                continue
            if isinstance(item, Token):
                no = item.kind == "NEG" or item.text.lower() in ("forget", "skip", "忘了", "别管")
                negated = no or (negated and item.kind in ("FUNC", "DET", "CMD", "UNKNOWN", "OUT"))
            kind = None
            if isinstance(item, Noun):
                kind = self._kind_at(item.start, item.end)
            elif item.kind in ("UNKNOWN", "OUT") and negated:
                negated = False
                continue
            elif item.kind in ("UNKNOWN", "OUT"):
                kind = item.key if item.kind == "OUT" else self._unknown_word(item)
            elif item.kind == "POSE" and subject is not None and subject.species not in POSES[item.key]:
                kind = "action" if subject.kind == "noun" else None
            if kind is None:
                small = isinstance(item, Token) and item.kind in (
                    "FUNC",
                    "DET",
                    "REL",
                    "WITH",
                    "DE",
                    "NUM",
                    "MEAS",
                    "FROM",
                    "TO",
                )
                joined = joined and small
                continue
            if spans and joined:
                spans[-1][1] = max(int(spans[-1][1]), item.end)
                if "activity" in (kind, spans[-1][2]) and kind != spans[-1][2]:
                    spans[-1][2] = "action"
            elif not spans or item.end > int(spans[-1][1]):
                spans.append([item.start, item.end, kind])
            joined = True
        return [(_shown(self.text[int(start) : int(end)]), str(kind)) for start, end, kind in spans]

    @staticmethod
    def _unknown_word(token: Token) -> str | None:
        """Return the kind of an unknown word that nothing counts or points at; None where it is only filler."""
        return "unknown" if answers.nearest_word(token.text) else None

    def _kind_at(self, start: int, end: int) -> str:
        """Return the kind of the unknown word in a passage."""
        for token in tokenize(self.text[start:end]):
            if token.kind == "OUT":
                return token.key
        return "unknown"

    def _report(self, unknown: list[tuple[str, str]], sheet: Sheet, stuck: Stuck | None, items: list[Item]) -> Reply:
        """Name what is unknown; offer the rest, or what can be drawn instead."""
        words = [text for text, _ in unknown]
        kinds = {kind for _, kind in unknown}
        what_en, what_zh = join(words, "en", last="or"), join([f"“{word}”" for word in words], "zh")
        near = {text: answers.nearest_word(text.split()[-1]) for text, kind in unknown if kind == "unknown"}
        fixed = {text: word for text, word in near.items() if word}
        if fixed and len(fixed) == len(unknown):
            text = self.text
            for passage, word in fixed.items():
                text = text.replace(passage.split()[-1], word)
            meant = join(list(fixed.values()), "en")
            memory = self.memory.replace(pending=Pending(kind="meant", text=text), language=self.language)
            reply = f"I don't know {what_en}. Did you mean {meant}?", f"我不认识{what_zh}。你是说 {meant} 吗？"
            return self._answer("ask", *reply, memory)
        hint_en, hint_zh = answers.suggestion(kinds)
        useful = stuck is None and sheet.changed and self._is_worth(sheet, items)
        if not useful:
            memory = self.memory.replace(pending=None, language=self.language)
            draws = not self._about_picture(items)
            verb = ("I can't draw", "我画不了") if draws else ("I don't understand", "我不明白")
            return self._answer("refuse", f"{verb[0]} {what_en}. {hint_en}", f"{verb[1]}{what_zh}。{hint_zh}", memory)
        memory = self.memory.replace(pending=Pending(kind="without", text=self.text), language=self.language)
        looks = [draft.attrs for draft in sheet.drafts]
        action = "refuse" if kinds == {"action"} else "ask"
        if sheet.fresh or self.page is None:
            en = f"I can draw {people(looks, 'en')}, but not {what_en}. Shall I draw it without? {hint_en}"
            zh = f"我可以画{people(looks, 'zh')}，但画不了{what_zh}。要不要不带它画？{hint_zh}"
        else:
            en = f"I can't draw {what_en}. Shall I do the rest without it? {hint_en}"
            zh = f"我画不了{what_zh}。要不要先改其余的部分？{hint_zh}"
        return self._answer(action, en, zh, memory)

    @staticmethod
    def _is_worth(sheet: Sheet, items: list[Item]) -> bool:
        """Return whether what was understood is more than a background."""
        named = any(isinstance(item, Noun) and item.kind == "noun" for item in items)
        values = any(isinstance(item, Token) and item.kind in ("ACCESSORY", "COLOUR", "EXPRESSION") for item in items)
        return named or (bool(sheet.did) and values and not sheet.fresh)

    @staticmethod
    def _about_picture(items: list[Item]) -> bool:
        """Return whether nothing at all in a message is about drawing."""
        return not any(
            isinstance(item, Noun)
            or item.kind
            in ("CMD", "COLOUR", "SIZE", "ACCESSORY", "EXPRESSION", "BACKGROUND", "STYLE", "OUT", "NUM", "DET")
            for item in items
        )

    def _answer(self, action: str, en: str, zh: str, memory: Memory) -> Reply:
        """Return a reply with a memory of its own."""
        text = en if self.language == "en" else zh
        return Reply(action=action, text=text, language=self.language, page=self.conversation.page, memory=memory)  # type: ignore[arg-type]
