"""Sixty bilingual four-turn conversations with the right outcome of every turn, and how to score a system on them.

The messages and the outcomes were written by hand, as facts of the embedded world that any system can be held to; they
do not come from the screenwriter. Its grammar was improved on batch 1 (fifty scripts). Batch 2 (ten scripts) was written
after that; in its first run 31 of 40 turns and 6 of 10 conversations were right, which is what to expect of phrasings
nobody has seen. Little was changed because of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..dialogue import Action, Conversation, Message, Reply
from ..errors import DataError
from ..promptbook import Character, Page
from ..stages.embedded import Screenwriter
from ..world.scene import place_key, size_key


@dataclass(frozen=True, slots=True)
class Who:
    """What must be true of one character; None is not checked.

    Attributes:
        species, colour, accessory, mood, face, place, size: keys of the vocabulary; mood is the expression.
        tag: characters with the same tag in several turns of a script must keep their id.
        side: ``"left of"`` or ``"right of"`` and a tag, compared by the centres of the boxes.
    """

    species: str
    colour: str | None = None
    accessory: str | None = None
    place: str | None = None
    size: str | None = None
    mood: str | None = None
    face: str | None = None
    tag: str | None = None
    side: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Expect:
    """The right outcome of a turn.

    Attributes:
        actions: any of these is right.
        cast: everybody on the page after the turn; None is not checked.
        background, style: of the page after the turn.
        says: one of these must be in the reply (case ignored).
    """

    actions: tuple[Action, ...]
    cast: tuple[Who, ...] | None = None
    background: str | None = None
    style: str | None = None
    says: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ScriptTurn:
    """A message and the right outcome."""

    text: str
    expect: Expect


@dataclass(frozen=True, slots=True)
class Script:
    """One conversation."""

    name: str
    language: Literal["en", "zh", "mixed"]
    turns: tuple[ScriptTurn, ...]
    batch: int = 1


@dataclass(frozen=True, slots=True)
class TurnScore:
    """How one turn went.

    Attributes:
        action: whether the action was right.
        page: whether every checked fact of the page holds, identities included.
        reply: whether the reply says what it must, in the right language.
        wrong: what was not right.
    """

    action: bool
    page: bool
    reply: bool
    wrong: tuple[str, ...] = ()

    @property
    def right(self) -> bool:
        """Whether everything was right."""
        return self.action and self.page and self.reply


def run_script(script: Script, read: Callable[[Message, Conversation], Reply]) -> tuple[Reply, ...]:
    """Return a system's replies to a script, each turn building on its own earlier ones."""
    conversation = Conversation()
    replies = []
    for turn in script.turns:
        message = Message(text=turn.text)
        reply = read(message, conversation)
        conversation = conversation.add(message, reply)
        replies.append(reply)
    return tuple(replies)


def score(script: Script, replies: Sequence[Reply]) -> tuple[TurnScore, ...]:
    """Return how each turn went.

    Raises:
        DataError: when there is not one reply per turn.
    """
    if len(replies) != len(script.turns):
        raise DataError(f"{len(replies)} replies for {len(script.turns)} turns", hint="one reply per turn")
    scores = []
    ids: dict[str, str] = {}
    for turn, reply in zip(script.turns, replies, strict=True):
        wrong: list[str] = []
        page_ok = _check_page(turn.expect, reply.page, ids, wrong)
        said = not turn.expect.says or any(word.lower() in reply.text.lower() for word in turn.expect.says)
        if not said:
            wrong.append(f"reply {reply.text!r} says none of {turn.expect.says}")
        action = reply.action in turn.expect.actions
        if not action:
            wrong.append(f"action {reply.action}, expected {' or '.join(turn.expect.actions)}")
        scores.append(TurnScore(action=action, page=page_ok, reply=said and bool(reply.text), wrong=tuple(wrong)))
    return tuple(scores)


def _check_page(expect: Expect, page: Page | None, ids: dict[str, str], wrong: list[str]) -> bool:
    """Return whether a page holds what is expected, and remember who is who."""
    before = len(wrong)
    for name in ("background", "style"):
        value = getattr(expect, name)
        if value is not None and (page is None or getattr(page, name) != value):
            wrong.append(f"{name} {getattr(page, name, None)}, expected {value}")
    if expect.cast is None:
        return len(wrong) == before
    there = page.characters if page is not None else ()
    if len(there) != len(expect.cast):
        wrong.append(f"{len(there)} characters, expected {len(expect.cast)}")
        return False
    best: list[str] | None = None
    for order in itertools.permutations(there):
        problems = [text for who, c in zip(expect.cast, order, strict=True) for text in _mismatches(who, c, ids)]
        tagged = {who.tag: c for who, c in zip(expect.cast, order, strict=True) if who.tag}
        for who, character in zip(expect.cast, order, strict=True):
            if who.side is not None:
                x, other = _x(character), _x(tagged[who.side[1]])
                if not (x < other if who.side[0] == "left of" else x > other):
                    problems.append(f"{who.species} is not {who.side[0]} {who.side[1]}")
        if best is None or len(problems) < len(best):
            best = problems
            chosen = tagged
        if not problems:
            break
    for tag, character in (chosen if expect.cast else {}).items():
        ids.setdefault(tag, character.id)
    wrong.extend(best or [])
    return len(wrong) == before


def _x(character: Character) -> float:
    return (character.box[0] + character.box[2]) / 2


def _mismatches(who: Who, character: Character, ids: dict[str, str]) -> list[str]:
    """Return what is not as expected about one character."""
    found = {
        "species": character.attribute("species") or character.category,
        "colour": character.attribute("colour"),
        "accessory": character.attribute("accessory", "none"),
        "mood": character.attribute("expression"),
        "face": character.attribute("facing"),
        "place": place_key(character.box),
        "size": size_key(character.box),
    }
    wrong = [
        f"{who.species}: {name} {value}, expected {getattr(who, name)}"
        for name, value in found.items()
        if getattr(who, name) is not None and getattr(who, name) != value
    ]
    if who.tag is not None and ids.get(who.tag, character.id) != character.id:
        wrong.append(f"{who.species} {who.tag}: id {character.id}, expected {ids[who.tag]}")
    return wrong


def accuracy(scripts: Sequence[Script], read: Callable[[Message, Conversation], Reply]) -> dict[str, float]:
    """Return the shares of turns and of whole conversations that went right, and of right actions and pages."""
    scores = [score(script, run_script(script, read)) for script in scripts]
    turns = [turn for conversation in scores for turn in conversation]
    return {
        "turns": sum(turn.right for turn in turns) / len(turns),
        "conversations": sum(all(turn.right for turn in conversation) for conversation in scores) / len(scores),
        "actions": sum(turn.action for turn in turns) / len(turns),
        "pages": sum(turn.page for turn in turns) / len(turns),
    }


def draws(text: str, *cast: Who, background: str | None = None, style: str | None = None, says: str = "") -> ScriptTurn:
    """Return a turn that must draw."""
    words = tuple(says.split("|")) if says else ()
    return ScriptTurn(text, Expect(("draw",), cast, background, style, words))


def recalls(text: str, *cast: Who, background: str | None = None, style: str | None = None) -> ScriptTurn:
    """Return a turn that must show an earlier picture."""
    return ScriptTurn(text, Expect(("recall",), cast, background, style))


def talks(text: str, says: str = "", *cast: Who, actions: tuple[Action, ...] = ("chat",)) -> ScriptTurn:
    """Return a turn that must only talk; ``cast``, if given, is still on the page."""
    return ScriptTurn(text, Expect(actions, cast or None, says=tuple(says.split("|")) if says else ()))


def asks(text: str, says: str = "", *cast: Who) -> ScriptTurn:
    """Return a turn that must ask back."""
    return talks(text, says, *cast, actions=("ask",))


def declines(text: str, says: str = "", *cast: Who) -> ScriptTurn:
    """Return a turn that must say what cannot be drawn, by asking or refusing."""
    return talks(text, says, *cast, actions=("ask", "refuse"))


def refuses(text: str, says: str = "", *cast: Who) -> ScriptTurn:
    """Return a turn that must refuse."""
    return talks(text, says, *cast, actions=("refuse",))


def conversations(batch: int | None = None) -> tuple[Script, ...]:
    """Return the scripts, all sixty or those of one batch."""
    return tuple(script for script in SCRIPTS if batch is None or script.batch == batch)


SCRIPTS: tuple[Script, ...] = (
    Script("beach-cat", "en", (
        draws("Draw a red cat with a hat and a blue dog on the beach.", Who("cat", "red", "hat", tag="c"), Who("dog", "blue", "none", tag="d"), background="beach"),
        draws("Make the dog green.", Who("cat", "red", "hat", tag="c"), Who("dog", "green", tag="d"), background="beach"),
        draws("Now take the hat off the cat.", Who("cat", "red", "none", tag="c"), Who("dog", "green", tag="d")),
        talks("What colour is the dog?", "green", Who("cat", tag="c"), Who("dog", tag="d")),
    )),
    Script("hai-bian", "zh", (
        draws("在海边画一只戴帽子的红色小猫和一条蓝色的狗", Who("cat", "red", "hat", tag="c"), Who("dog", "blue", "none", tag="d"), background="beach"),
        draws("把狗变成绿色", Who("cat", "red", "hat", tag="c"), Who("dog", "green", tag="d"), background="beach"),
        draws("不要帽子了", Who("cat", "red", "none", tag="c"), Who("dog", "green", tag="d")),
        talks("狗是什么颜色？", "绿", Who("cat", tag="c"), Who("dog", tag="d")),
    )),
    Script("rabbits", "en", (
        draws("two small white rabbits in the snow", Who("rabbit", "white", size="small"), Who("rabbit", "white", size="small"), background="snow"),
        draws("add a brown bear on the right", Who("rabbit", "white"), Who("rabbit", "white"), Who("bear", "brown", place="right", tag="b"), background="snow"),
        draws("give the bear a scarf", Who("rabbit"), Who("rabbit"), Who("bear", "brown", "scarf", tag="b")),
        draws("use crayon style please", Who("rabbit"), Who("rabbit"), Who("bear", accessory="scarf", tag="b"), style="crayon", background="snow"),
    )),
    Script("tu-zi", "zh", (
        draws("画两只白色的小兔子，雪地里", Who("rabbit", "white", size="small"), Who("rabbit", "white", size="small"), background="snow"),
        draws("右边再加一只棕色的熊", Who("rabbit"), Who("rabbit"), Who("bear", "brown", place="right", tag="b")),
        draws("给熊围上围巾", Who("rabbit"), Who("rabbit"), Who("bear", "brown", "scarf", tag="b")),
        draws("换成剪纸风格", Who("rabbit"), Who("rabbit"), Who("bear", accessory="scarf", tag="b"), style="papercut", background="snow"),
    )),
    Script("undo", "en", (
        draws("A yellow duck on the sea", Who("duck", "yellow", tag="d"), background="sea"),
        draws("make it night", Who("duck", "yellow", tag="d"), background="night"),
        recalls("undo", Who("duck", "yellow", tag="d"), background="sea"),
        draws("make it bigger", Who("duck", "yellow", size="large", tag="d"), background="sea"),
    )),
    Script("che-xiao", "zh", (
        draws("一只黄色的鸭子在大海里", Who("duck", "yellow", tag="d"), background="sea"),
        draws("换成夜晚", Who("duck", "yellow", tag="d"), background="night"),
        recalls("撤销", Who("duck", "yellow", tag="d"), background="sea"),
        draws("把它变大一点", Who("duck", "yellow", tag="d"), background="sea"),
    )),
    Script("replace-fox", "en", (
        draws("Please paint a happy pig and a sad frog in the forest", Who("pig", mood="happy", tag="p"), Who("frog", mood="sad", tag="f"), background="forest"),
        draws("replace the frog with a purple fox", Who("pig", tag="p"), Who("fox", "purple", tag="x"), background="forest"),
        draws("swap the pig and the fox", Who("pig", tag="p", side=("right of", "x")), Who("fox", tag="x")),
        recalls("go back to the first one", Who("pig", tag="p"), Who("frog", tag="f")),
    )),
    Script("huan-hu-li", "zh", (
        draws("请画一只开心的猪和一只难过的青蛙，在森林里", Who("pig", mood="happy", tag="p"), Who("frog", mood="sad", tag="f"), background="forest"),
        draws("把青蛙换成紫色的狐狸", Who("pig", tag="p"), Who("fox", "purple", tag="x")),
        draws("让猪和狐狸交换位置", Who("pig", tag="p", side=("right of", "x")), Who("fox", tag="x")),
        recalls("回到第一张", Who("pig", tag="p"), Who("frog", tag="f")),
    )),
    Script("dragon", "en", (
        refuses("draw a dragon", "dragon"),
        declines("a red cat and a dragon in the desert", "dragon"),
        draws("yes", Who("cat", "red", tag="c"), background="desert"),
        draws("put a crown on it", Who("cat", "red", "crown", tag="c"), background="desert"),
    )),
    Script("long", "zh", (
        refuses("画一条龙", "龙"),
        declines("在沙漠里画一只红色的猫和一条龙", "龙"),
        draws("好的", Who("cat", "red", tag="c"), background="desert"),
        draws("给它戴上皇冠", Who("cat", "red", "crown", tag="c"), background="desert"),
    )),
    Script("mixed-hat", "mixed", (
        draws("画一只red的猫 wearing a hat", Who("cat", "red", "hat", tag="c")),
        draws("add 一条蓝色的 fish", Who("cat", "red", tag="c"), Who("fish", "blue", tag="f")),
        draws("把 the fish 移到左边", Who("cat", tag="c"), Who("fish", "blue", place="left", tag="f")),
        talks("how many 猫 are there?", "one|1|一", Who("cat", tag="c"), Who("fish", tag="f")),
    )),
    Script("which-cat", "en", (
        draws("Draw a red cat on the left and a white cat on the right.", Who("cat", "red", place="left", tag="a"), Who("cat", "white", place="right", tag="b")),
        asks("make the cat blue", "which", Who("cat", "red", tag="a"), Who("cat", "white", tag="b")),
        draws("the left one", Who("cat", "blue", tag="a"), Who("cat", "white", tag="b")),
        draws("give the white one glasses", Who("cat", "blue", "none", tag="a"), Who("cat", "white", "glasses", tag="b")),
    )),
    Script("na-zhi-mao", "zh", (
        draws("左边画一只红色的猫，右边画一只白色的猫", Who("cat", "red", place="left", tag="a"), Who("cat", "white", place="right", tag="b")),
        asks("把猫变成蓝色", "哪", Who("cat", "red", tag="a"), Who("cat", "white", tag="b")),
        draws("左边那只", Who("cat", "blue", tag="a"), Who("cat", "white", tag="b")),
        draws("给白色的那只戴上眼镜", Who("cat", "blue", "none", tag="a"), Who("cat", "white", "glasses", tag="b")),
    )),
    Script("small-talk", "en", (
        talks("Hi there!"),
        talks("Who are you?", "huaben"),
        draws("red cat, beach, ink", Who("cat", "red", tag="c"), background="beach", style="ink"),
        talks("thank you, it's lovely", "", Who("cat", "red", tag="c")),
    )),
    Script("xian-liao", "zh", (
        talks("你好"),
        talks("你会画什么？", "猫"),
        draws("红猫，海滩，线描", Who("cat", "red", tag="c"), background="beach", style="ink"),
        talks("谢谢，真好看", "", Who("cat", "red", tag="c")),
    )),
    Script("stars", "en", (
        draws("a house in the city at the left with three stars above it", Who("house", place="left", tag="h"), Who("star"), Who("star"), Who("star"), background="city"),
        talks("how many stars are there?", "three|3"),
        draws("remove the stars", Who("house", tag="h"), background="city"),
        draws("at night, please", Who("house", tag="h"), background="night"),
    )),
    Script("xing-xing", "zh", (
        draws("夜晚，一座房子，天上有三颗星星", Who("house", tag="h"), Who("star"), Who("star"), Who("star"), background="night"),
        talks("有几颗星星？", "三|3"),
        draws("把星星去掉", Who("house", tag="h"), background="night"),
        draws("背景换成城市", Who("house", tag="h"), background="city"),
    )),
    Script("count", "en", (
        draws("Draw one orange cat in a room", Who("cat", "orange", tag="c"), background="room"),
        draws("make it three cats", Who("cat", "orange", tag="c"), Who("cat"), Who("cat"), background="room"),
        draws("only one cat please", Who("cat", "orange")),
        draws("and a mouse next to the cat", Who("cat", "orange"), Who("mouse")),
    )),
    Script("shu-liang", "zh", (
        draws("房间里有一只橙色的猫", Who("cat", "orange", tag="c"), background="room"),
        draws("再来两只", Who("cat", "orange", tag="c"), Who("cat"), Who("cat")),
        talks("现在有几只猫？", "三|3"),
        draws("只留一只猫，旁边加一只老鼠", Who("cat", "orange"), Who("mouse")),
    )),
    Script("story", "en", (
        draws("Once upon a time there was a small gray elephant with glasses on the meadow.", Who("elephant", "gray", "glasses", size="small", tag="e"), background="meadow"),
        draws("The elephant meets a penguin.", Who("elephant", "gray", "glasses", tag="e"), Who("penguin", tag="p"), background="meadow"),
        draws("Then they go to the beach together.", Who("elephant", tag="e"), Who("penguin", tag="p"), background="beach"),
        draws("Draw the elephant alone in the mountains.", Who("elephant", "gray", "glasses", tag="e"), background="mountain"),
    )),
    Script("gu-shi", "zh", (
        draws("从前，草地上有一只戴眼镜的灰色小象", Who("elephant", "gray", "glasses", size="small", tag="e"), background="meadow"),
        draws("它遇到了一只企鹅", Who("elephant", "gray", "glasses", tag="e"), Who("penguin", tag="p"), background="meadow"),
        draws("然后它们去了海边", Who("elephant", tag="e"), Who("penguin", tag="p"), background="beach"),
        draws("企鹅走了", Who("elephant", "gray", "glasses", tag="e"), background="beach"),
    )),
    Script("facing", "en", (
        draws("Create a picture of a sleepy lion facing left", Who("lion", mood="sleepy", face="left", tag="l")),
        draws("let him look to the right", Who("lion", mood="sleepy", face="right", tag="l")),
        draws("he should be angry and wear a bow tie", Who("lion", mood="angry", accessory="bowtie", tag="l")),
        talks("What is the lion wearing?", "bow tie"),
    )),
    Script("chao-xiang", "zh", (
        draws("画一头困倦的狮子，面朝左", Who("lion", mood="sleepy", face="left", tag="l")),
        draws("让它朝右", Who("lion", mood="sleepy", face="right", tag="l")),
        draws("让狮子生气，戴上领结", Who("lion", mood="angry", accessory="bowtie", tag="l")),
        talks("狮子戴着什么？", "领结"),
    )),
    Script("relative", "en", (
        draws("A boat in the sea with a whale to the right of the boat", Who("boat", tag="b"), Who("whale", tag="w", side=("right of", "b")), background="sea"),
        draws("add a yellow bird to the left of the boat", Who("boat", tag="b"), Who("whale", tag="w"), Who("bird", "yellow", tag="i", side=("left of", "b"))),
        talks("where is the whale?", "right"),
        draws("delete the boat", Who("whale", tag="w"), Who("bird", tag="i"), background="sea"),
    )),
    Script("xiang-dui", "zh", (
        draws("海里有一艘小船，小船的右边是一头鲸鱼", Who("boat", tag="b"), Who("whale", tag="w", side=("right of", "b")), background="sea"),
        draws("在船的左边加一只黄色的鸟", Who("boat", tag="b"), Who("whale", tag="w"), Who("bird", "yellow", tag="i", side=("left of", "b"))),
        talks("鲸鱼在哪里？", "右"),
        draws("删掉小船", Who("whale", tag="w"), Who("bird", tag="i"), background="sea"),
    )),
    Script("outside", "en", (
        refuses("a spaceship over Paris", "spaceship"),
        refuses("a cat playing the piano", "piano"),
        draws("ok, then a cat with headphones in the city", Who("cat", accessory="headphones", tag="c"), background="city"),
        asks("make it nicer", "", Who("cat", accessory="headphones", tag="c")),
    )),
    Script("hua-wai", "zh", (
        refuses("巴黎上空的宇宙飞船", "飞船"),
        refuses("画一只弹钢琴的猫", "钢琴"),
        draws("那就画一只戴耳机的猫，在城市里", Who("cat", accessory="headphones", tag="c"), background="city"),
        asks("改一下", "", Who("cat", accessory="headphones", tag="c")),
    )),
    Script("multi-edit", "en", (
        draws("I'd like to see a large green turtle in the middle and a pink flower on the left", Who("turtle", "green", size="large", place="middle", tag="t"), Who("flower", "pink", place="left", tag="f")),
        draws("make the turtle purple and the flower yellow", Who("turtle", "purple", tag="t"), Who("flower", "yellow", tag="f")),
        draws("remove the flower and add a mushroom", Who("turtle", "purple", tag="t"), Who("mushroom")),
        draws("make the turtle smaller", Who("turtle", "purple", size="medium", tag="t"), Who("mushroom")),
    )),
    Script("duo-bu", "zh", (
        draws("我想看中间一只大的绿色乌龟，左边一朵粉色的花", Who("turtle", "green", size="large", place="middle", tag="t"), Who("flower", "pink", place="left", tag="f")),
        draws("把乌龟改成紫色，花改成黄色", Who("turtle", "purple", tag="t"), Who("flower", "yellow", tag="f")),
        draws("去掉花，再加一个蘑菇", Who("turtle", "purple", tag="t"), Who("mushroom")),
        recalls("再看看第一张", Who("turtle", "green", tag="t"), Who("flower", "pink", tag="f")),
    )),
    Script("mixed-night", "mixed", (
        draws("A 猫头鹰 with 王冠 at night，水墨风格", Who("owl", accessory="crown", tag="o"), background="night", style="ink"),
        draws("旁边加 a sleepy sheep", Who("owl", tag="o"), Who("sheep", mood="sleepy", tag="s")),
        draws("no crown", Who("owl", accessory="none", tag="o"), Who("sheep", tag="s")),
        draws("background 换成 forest", Who("owl", tag="o"), Who("sheep", tag="s"), background="forest"),
    )),
    Script("second-farm", "en", (
        draws("Could you sketch a little black sheep standing next to a big tree in a meadow?", Who("sheep", "black", size="small", tag="s"), Who("tree", size="large", tag="t"), background="meadow"),
        draws("Paint the tree orange, and let the sheep wear headphones.", Who("sheep", "black", "headphones", tag="s"), Who("tree", "orange", tag="t")),
        talks("Is the sheep wearing a hat?", "no", Who("sheep", tag="s"), Who("tree", tag="t")),
        draws("Get rid of the tree and put a white owl in its place", Who("sheep", tag="s"), Who("owl", "white")),
    )),
    Script("second-city", "en", (
        draws("city street, yellow car, facing left, paper cut", Who("car", "yellow", face="left", tag="c"), background="city", style="papercut"),
        draws("turn the car around so it faces right", Who("car", "yellow", face="right", tag="c"), background="city"),
        draws("I think it should be snowing, so use a snowy background", Who("car", "yellow", tag="c"), background="snow"),
        recalls("Show me picture 1 again", Who("car", face="left", tag="c"), background="city"),
    )),
    Script("second-sea", "en", (
        draws("underwater scene: an angry orange fish, a happy green turtle and a surprised whale", Who("fish", "orange", mood="angry", tag="f"), Who("turtle", "green", mood="happy", tag="t"), Who("whale", mood="surprised", tag="w"), background="sea"),
        talks("Which one is angry?", "fish"),
        draws("Cheer up the fish and give the turtle a bow tie", Who("fish", mood="happy", tag="f"), Who("turtle", accessory="bowtie", tag="t"), Who("whale", tag="w")),
        draws("keep only the whale", Who("whale", mood="surprised", tag="w"), background="sea"),
    )),
    Script("second-refuse", "en", (
        refuses("Generate an image of two astronauts on Mars", "astronaut"),
        draws("Fine. Then just a penguin in the snow, please.", Who("penguin", tag="p"), background="snow"),
        declines("have it ride a bicycle", "bicycle|ride", Who("penguin", tag="p")),
        draws("forget the bicycle, put glasses on the penguin", Who("penguin", accessory="glasses", tag="p")),
    )),
    Script("di-er-nong", "zh", (
        draws("帮我画一幅画：沙漠里一只惊讶的橙色狐狸，旁边有一个紫色的气球", Who("fox", "orange", mood="surprised", tag="f"), Who("balloon", "purple", tag="b"), background="desert"),
        draws("气球换个颜色，要黄色的", Who("fox", "orange", tag="f"), Who("balloon", "yellow", tag="b")),
        draws("狐狸别惊讶了，开心一点", Who("fox", mood="happy", tag="f"), Who("balloon", tag="b")),
        talks("气球现在什么颜色", "黄", Who("fox", tag="f"), Who("balloon", tag="b")),
    )),
    Script("di-er-shan", "zh", (
        draws("山里有一座蓝色的小房子，房子左边站着一头大熊", Who("house", "blue", size="small", tag="h"), Who("bear", size="large", tag="b", side=("left of", "h")), background="mountain"),
        draws("熊太大了，缩小一些", Who("house", "blue", tag="h"), Who("bear", tag="b")),
        draws("再添两朵红花", Who("house", tag="h"), Who("bear", tag="b"), Who("flower", "red"), Who("flower", "red")),
        recalls("退回上一步吧", Who("house", tag="h"), Who("bear", tag="b")),
    )),
    Script("di-er-xue", "zh", (
        draws("下雪天，三只企鹅，都戴着围巾", Who("penguin", accessory="scarf"), Who("penguin", accessory="scarf"), Who("penguin", accessory="scarf"), background="snow"),
        draws("中间那只换成戴皇冠", Who("penguin", accessory="scarf"), Who("penguin", accessory="crown", place="middle"), Who("penguin", accessory="scarf")),
        draws("最右边的那只不要了", Who("penguin", accessory="scarf"), Who("penguin", accessory="crown")),
        draws("画风改成蜡笔画", Who("penguin", accessory="scarf"), Who("penguin", accessory="crown"), style="crayon", background="snow"),
    )),
    Script("di-er-ju", "zh", (
        refuses("给我画个孙悟空", "孙悟空"),
        draws("好吧，那画一只猪，戴着墨镜，在房间里", Who("pig", accessory="glasses", tag="p"), background="room"),
        asks("再好看一点", "", Who("pig", accessory="glasses", tag="p")),
        draws("让它变成粉色，朝左看", Who("pig", "pink", "glasses", face="left", tag="p")),
    )),
    Script("second-mixed-a", "mixed", (
        draws("Hi，请画 a big blue 大象 in the 森林", Who("elephant", "blue", size="large", tag="e"), background="forest"),
        draws("然后 give it 一副眼镜", Who("elephant", "blue", "glasses", tag="e")),
        draws("style 改成 shadow puppet", Who("elephant", "blue", "glasses", tag="e"), style="puppet"),
        talks("what's the background 是什么？", "forest|森林", Who("elephant", tag="e")),
    )),
    Script("second-mixed-b", "mixed", (
        draws("两只 ducks on the 海滩, one yellow one white", Who("duck", "yellow", tag="a"), Who("duck", "white", tag="b"), background="beach"),
        draws("把 the white one 移到 the left", Who("duck", "yellow", tag="a"), Who("duck", "white", place="left", tag="b")),
        draws("replace 黄色的那只 with a 青蛙", Who("frog"), Who("duck", "white", tag="b")),
        recalls("undo 一下", Who("duck", "yellow", tag="a"), Who("duck", "white", tag="b")),
    )),
    Script("third-a", "en", (
        draws("There's a sad brown bear wearing glasses in the city at the right side.", Who("bear", "brown", "glasses", mood="sad", place="right", tag="b"), background="city"),
        draws("On the left I want a green car.", Who("bear", "brown", tag="b"), Who("car", "green", place="left", tag="c")),
        draws("He shouldn't be sad, make him smile.", Who("bear", mood="happy", tag="b"), Who("car", tag="c")),
        talks("What is on the left?", "car", Who("bear", tag="b"), Who("car", tag="c")),
    )),
    Script("third-b", "en", (
        draws("pink rabbit, crown, night, shadow puppet style", Who("rabbit", "pink", "crown", tag="r"), background="night", style="puppet"),
        draws("Same rabbit but on the beach", Who("rabbit", "pink", "crown", tag="r"), background="beach"),
        draws("Swap the crown for headphones", Who("rabbit", "pink", "headphones", tag="r")),
        recalls("Actually, undo that", Who("rabbit", "pink", "crown", tag="r"), background="beach"),
    )),
    Script("third-c", "en", (
        draws("Two owls in a forest, a gray one and a purple one", Who("owl", "gray", tag="g"), Who("owl", "purple", tag="p"), background="forest"),
        asks("give the owl a scarf", "which", Who("owl", "gray", "none", tag="g"), Who("owl", "purple", "none", tag="p")),
        draws("the purple one", Who("owl", "gray", "none", tag="g"), Who("owl", "purple", "scarf", tag="p")),
        draws("Delete the gray owl and add a boat", Who("owl", "purple", "scarf", tag="p"), Who("boat")),
    )),
    Script("third-d", "en", (
        declines("A frog juggling three apples", "juggling|apples"),
        draws("Just the frog then", Who("frog", tag="f")),
        draws("Make it huge and put it in the desert", Who("frog", size="large", tag="f"), background="desert"),
        talks("Thanks! How big is the frog?", "large|big", Who("frog", tag="f")),
    )),
    Script("third-e", "zh", (
        draws("来一张图：草地中间有一只生气的白色绵羊，戴着领结", Who("sheep", "white", "bowtie", mood="angry", place="middle", tag="s"), background="meadow"),
        draws("羊的左边放一朵紫色的蘑菇", Who("sheep", tag="s"), Who("mushroom", "purple", tag="m", side=("left of", "s"))),
        draws("蘑菇和羊换个位置", Who("sheep", tag="s"), Who("mushroom", "purple", tag="m", side=("right of", "s"))),
        talks("绵羊是什么表情？", "生气", Who("sheep", tag="s"), Who("mushroom", tag="m")),
    )),
    Script("third-f", "zh", (
        draws("水墨风格，山里，两只鸟，一只蓝的，一只黑的", Who("bird", "blue", tag="a"), Who("bird", "black", tag="b"), background="mountain", style="ink"),
        draws("黑色那只去掉吧", Who("bird", "blue", tag="a"), background="mountain"),
        draws("给它配一顶帽子", Who("bird", "blue", "hat", tag="a")),
        recalls("还是回到第一张吧", Who("bird", "blue", "none", tag="a"), Who("bird", "black", tag="b")),
    )),
    Script("third-g", "zh", (
        refuses("画一个在月球上跳舞的宇航员", "宇航员"),
        draws("那画只青蛙好了，大大的，绿色", Who("frog", "green", size="large", tag="f")),
        draws("加上一只小老鼠在它旁边", Who("frog", "green", tag="f"), Who("mouse", tag="m")),
        talks("图上一共有几个动物？", "两|2|二", Who("frog", tag="f"), Who("mouse", tag="m")),
    )),
    Script("third-h", "zh", (
        draws("城市的夜里太黑了，就画白天的城市吧，一辆蓝色汽车", Who("car", "blue", tag="c"), background="city"),
        draws("车头朝左", Who("car", "blue", face="left", tag="c")),
        draws("再来一辆一样的", Who("car", "blue", tag="c"), Who("car", "blue")),
        draws("把其中一辆涂成红色", Who("car", "blue"), Who("car", "red")),
    )),
    Script("third-i", "mixed", (
        draws("我想要一只 sleepy 的狮子 on the snow", Who("lion", mood="sleepy", tag="l"), background="snow"),
        draws("wake it up, 让它 happy 一点", Who("lion", mood="happy", tag="l")),
        draws("右边 add 一棵 green tree", Who("lion", tag="l"), Who("tree", "green", place="right", tag="t")),
        talks("狮子 wearing 什么？", "没|nothing", Who("lion", tag="l"), Who("tree", tag="t")),
    )),
    Script("third-j", "mixed", (
        draws("draw 三颗 yellow stars 和 a house, crayon 风格", Who("star", "yellow"), Who("star", "yellow"), Who("star", "yellow"), Who("house", tag="h"), style="crayon"),
        draws("stars 太多了，只要一颗", Who("star", "yellow"), Who("house", tag="h")),
        draws("house 改成 blue", Who("star", "yellow"), Who("house", "blue", tag="h")),
        talks("谢谢 huaben!", "", Who("star"), Who("house", tag="h")),
    )),
    Script("held-out-a", "en", (
        draws("Draw me a brown dog with a scarf in the mountains, looking surprised", Who("dog", "brown", "scarf", mood="surprised", tag="d"), background="mountain"),
        draws("Give him a friend: a white rabbit on his right", Who("dog", "brown", "scarf", tag="d"), Who("rabbit", "white", tag="r", side=("right of", "d"))),
        draws("The rabbit would look great in a crown", Who("dog", accessory="scarf", tag="d"), Who("rabbit", "white", "crown", tag="r")),
        draws("Now both are sleepy and it is night", Who("dog", mood="sleepy", tag="d"), Who("rabbit", mood="sleepy", tag="r"), background="night"),
    ), 2),
    Script("held-out-b", "en", (
        draws("crayon drawing, beach, one small pink elephant, happy", Who("elephant", "pink", size="small", mood="happy", tag="e"), background="beach", style="crayon"),
        draws("Make it three elephants.", Who("elephant", "pink", tag="e"), Who("elephant", "pink"), Who("elephant", "pink"), background="beach"),
        talks("How many elephants do you see now?", "three|3"),
        recalls("Go back one step", Who("elephant", "pink", tag="e"), background="beach"),
    ), 2),
    Script("held-out-c", "en", (
        declines("a knight riding a lion in the desert", "knight"),
        draws("OK, only the lion", Who("lion", tag="l"), background="desert"),
        draws("recolor the lion to teal and move it to the left side", Who("lion", "teal", place="left", tag="l")),
        talks("Where is the lion standing?", "left", Who("lion", tag="l")),
    ), 2),
    Script("held-out-d", "en", (
        draws("I want a house, a tree and a car in the city", Who("house", tag="h"), Who("tree", tag="t"), Who("car", tag="c"), background="city"),
        draws("The car should be black", Who("house", tag="h"), Who("tree", tag="t"), Who("car", "black", tag="c")),
        draws("Take away the tree. Put a flower there.", Who("house", tag="h"), Who("car", "black", tag="c"), Who("flower")),
        draws("as a paper-cut please", Who("house", tag="h"), Who("car", tag="c"), Who("flower"), style="papercut", background="city"),
    ), 2),
    Script("held-out-e", "zh", (
        draws("我要一只在雪地里戴着耳机的蓝色企鹅", Who("penguin", "blue", "headphones", tag="p"), background="snow"),
        draws("帮它找个伙伴，一只白色的熊，站在它左边", Who("penguin", "blue", "headphones", tag="p"), Who("bear", "white", tag="b", side=("left of", "p"))),
        draws("把耳机拿下来给它换上皇冠", Who("penguin", "blue", tag="p"), Who("bear", "white", tag="b")),
        talks("熊在企鹅的哪边？", "左", Who("penguin", tag="p"), Who("bear", tag="b")),
    ), 2),
    Script("held-out-f", "zh", (
        declines("森林里一只生气的老虎和一只狐狸", "老虎"),
        draws("行，不要老虎", Who("fox", tag="f"), background="forest"),
        draws("狐狸变成灰色的，再大一号", Who("fox", "gray", size="large", tag="f")),
        draws("用皮影的方式画", Who("fox", "gray", tag="f"), style="puppet"),
    ), 2),
    Script("held-out-g", "zh", (
        draws("海里有三条小鱼，两条红的一条黄的", Who("fish", "red"), Who("fish", "red"), Who("fish", "yellow"), background="sea"),
        draws("黄的那条移到最左边", Who("fish", "red"), Who("fish", "red"), Who("fish", "yellow", place="left")),
        draws("红鱼都换成绿色", Who("fish", "green"), Who("fish", "green"), Who("fish", "yellow")),
        talks("有没有红色的鱼？", "没"),
    ), 2),
    Script("held-out-h", "zh", (
        draws("草地上一棵大树，树下有只睡着的兔子", Who("tree", size="large", tag="t"), Who("rabbit", mood="sleepy", tag="r"), background="meadow"),
        draws("天黑了", Who("tree", tag="t"), Who("rabbit", mood="sleepy", tag="r"), background="night"),
        draws("兔子醒了，很惊讶", Who("tree", tag="t"), Who("rabbit", mood="surprised", tag="r"), background="night"),
        recalls("给我看第一张图", Who("tree", tag="t"), Who("rabbit", mood="sleepy", tag="r"), background="meadow"),
    ), 2),
    Script("held-out-i", "mixed", (
        draws("来一张 papercut style 的 picture: 一头紫色 whale 在 sea 里", Who("whale", "purple", tag="w"), background="sea", style="papercut"),
        draws("加 two 小船 please", Who("whale", "purple", tag="w"), Who("boat"), Who("boat")),
        draws("delete 右边的小船", Who("whale", tag="w"), Who("boat")),
        draws("whale 要 happy 一点，戴 glasses", Who("whale", "purple", "glasses", mood="happy", tag="w"), Who("boat")),
    ), 2),
    Script("held-out-j", "mixed", (
        talks("hello 你好"),
        draws("draw 一只 orange 的 cat 和 gray 的 mouse，cat 在左 mouse 在右", Who("cat", "orange", place="left", tag="c"), Who("mouse", "gray", place="right", tag="m")),
        draws("让 mouse 变 bigger", Who("cat", "orange", tag="c"), Who("mouse", "gray", tag="m")),
        talks("cat 的颜色是 what?", "orange|橙", Who("cat", tag="c"), Who("mouse", tag="m")),
    ), 2),
)  # fmt: skip


def run(*, seed: int = 0) -> dict[str, Any]:
    """Measure the screenwriter on both batches of scripts; nothing in it is random, ``seed`` is not used."""
    screenwriter = Screenwriter()
    return {
        f"batch_{batch}": {**accuracy(conversations(batch), screenwriter.read), "scripts": len(conversations(batch))}
        for batch in (1, 2)
    }
