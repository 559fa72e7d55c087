"""Everyday wishes: landmarks, recalled versions, accessories that change hands, times of day and activities."""

from __future__ import annotations

import pytest

from huaben.dialogue import Conversation, Message
from huaben.promptbook import Page, apply_edits
from huaben.stages.embedded import Screenwriter

WRITER = Screenwriter()
PAIR_EN = "a cat with a hat and a dog"
PAIR_ZH = "画一只戴帽子的猫和一只狗"


def converse(*messages):
    """Return the conversation after some messages; every page must follow from its edits."""
    conversation = Conversation()
    for text in messages:
        reply = WRITER.read(text, conversation)
        if reply.action == "draw":
            after, _ = apply_edits(conversation.page or Page(), reply.edits)
            assert [c.replace(status="new") for c in after.characters] == [
                c.replace(status="new") for c in reply.page.characters
            ]
        conversation = conversation.add(Message(text=text), reply)
    return conversation


def last(*messages):
    return converse(*messages).turns[-1].reply


def who(page, species):
    """Return the only character of a species."""
    (found,) = [character for character in page.characters if character.category == species]
    return found


def worn(page):
    return {character.category: character.attribute("accessory") for character in page.characters}


def middle(character):
    return (character.box[0] + character.box[2]) / 2, (character.box[1] + character.box[3]) / 2


# ------------------------------------------------------------------------------------------------------- landmarks


@pytest.mark.parametrize(
    "messages",
    [
        ("draw an owl standing beside a tree",),
        ("an owl", "put the owl beside the tree"),
        ("an owl", "let it stand next to a tree"),
        ("画一只猫头鹰站在树旁边",),
        ("画一只猫头鹰", "让猫头鹰站在树旁边"),
        ("画一只猫头鹰", "让它站在一棵树旁边"),
        ("an owl and a tree", "remove the tree", "put the owl next to the tree"),
    ],
)
def test_a_thing_that_somebody_stands_beside_comes_in(messages):
    reply = last(*messages)
    assert reply.action == "draw", reply.text
    owl, tree = who(reply.page, "owl"), who(reply.page, "tree")
    assert 0.1 < abs(middle(owl)[0] - middle(tree)[0]) < 0.6


@pytest.mark.parametrize(
    ("messages", "species", "thing"),
    [
        (("draw a mouse sitting on a house",), "mouse", "house"),
        (("a mouse", "the mouse sits on a house"), "mouse", "house"),
        (("画一只老鼠坐在房子上",), "mouse", "house"),
        (("画一只老鼠", "老鼠坐在房子上面"), "mouse", "house"),
    ],
)
def test_on_a_thing_is_above_it(messages, species, thing):
    reply = last(*messages)
    assert reply.action == "draw", reply.text
    assert middle(who(reply.page, species))[1] < middle(who(reply.page, thing))[1] - 0.08


def test_on_still_names_a_place_and_what_is_worn():
    assert worn(last("a cat", "put a hat on the cat").page) == {"cat": "hat"}
    assert len(last("a cat on the left").page.characters) == 1


@pytest.mark.parametrize(
    ("first", "text"),
    [("a cat", "put the cat next to the lion"), ("画一只猫", "让猫站在狮子旁边")],
)
def test_an_animal_that_is_not_there_is_still_asked_about(first, text):
    assert last(first, text).action == "ask"


@pytest.mark.parametrize(
    ("first", "text", "said"),
    [
        ("a cat, a dog, a fox, a bear, a frog and a pig", "the cat sits next to a flower", "only 6"),
        ("画一只猫，一只狗，一只狐狸，一只熊，一只青蛙和一只猪", "猫坐在一朵花旁边", "6个"),
    ],
)
def test_a_full_picture_takes_no_landmark(first, text, said):
    reply = last(first, text)
    assert reply.action == "ask"
    assert said in reply.text.lower()


# --------------------------------------------------------------------------------------------------- recalled versions

HATS_EN = (
    "a red cat with a hat",
    "take the hat off",
    "change the background to the beach",
    "add a dog",
    "make the cat blue",
)
HATS_ZH = ("画一只戴帽子的红猫", "去掉帽子", "背景换成海滩", "加一只狗", "把猫变成蓝色")


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("go back to the version with the red hat", 0),
        ("Can you go back to the one with a hat?", 0),
        ("go back to when the cat was red", 3),
        ("I liked it better when it was on the grass", 1),
        ("return to the picture without the dog", 2),
        ("show me the beach picture again", 3),
        ("go back to before the dog came", 2),
        ("go back to when the cat had no hat and there was no dog", 2),
        ("go back to the picture with the blue cat", 4),
    ],
)
def test_english_descriptions_recall_the_latest_earlier_page(text, index):
    reply = last(*HATS_EN, text)
    assert (reply.action, reply.recalled) == ("recall", index), reply.text


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("回到戴红帽子那一版", 0),
        ("回到还有帽子的时候", 0),
        ("恢复到猫戴帽子的那个版本", 0),
        ("能不能回到红猫那张", 3),
        ("还是回到没有狗的那张吧", 2),
        ("回到草地那张", 1),
        ("回到有狗之前的那张", 2),
        ("看看海滩那张图", 3),
        ("回到 the dog 没来之前那张", None),
    ],
)
def test_chinese_descriptions_recall_the_latest_earlier_page(text, index):
    reply = last(*HATS_ZH, text)
    if index is None:
        assert reply.action in ("ask", "refuse", "recall")
    else:
        assert (reply.action, reply.recalled) == ("recall", index), reply.text


@pytest.mark.parametrize("text", ["go back to the version with the whale", "回到有鲸鱼的那张"])
def test_a_version_that_never_was_is_asked_about(text):
    reply = last("a cat", "add a dog", text)
    assert reply.action == "ask"
    assert reply.edits == ()


def test_undo_after_a_recalled_version_returns():
    reply = last(*HATS_EN, "go back to the version with the red hat", "undo")
    assert (reply.action, reply.recalled) == ("recall", 4)


def test_going_somewhere_is_not_a_recall():
    assert last("画一只猫", "它们回到海边").page.background == "beach"
    assert last("a cat", "go to the beach").action == "draw"


# ----------------------------------------------------------------------------------------------------- handing over


@pytest.mark.parametrize(
    "text",
    [
        "take the cat's hat and give it to the dog",
        "take the hat off the cat and put it on the dog",
        "give the cat's hat to the dog",
        "move the hat from the cat to the dog",
        "let the dog wear the cat's hat",
        "the dog borrows the cat's hat",
        "the cat gives the dog its hat",
        "give the hat to the dog",
        "swap their accessories",
        "去掉猫的帽子给狗戴上",
        "把猫的帽子给狗",
        "把猫的帽子摘下来，戴在狗头上",
        "把猫头上的帽子摘下来戴在狗头上",
        "猫把帽子送给了狗",
        "把帽子给狗戴上",
        "让狗戴上猫的帽子",
        "把猫和狗的帽子换一下",
        "把 cat 的 hat 给 dog",
    ],
)
@pytest.mark.parametrize("first", [PAIR_EN, PAIR_ZH])
def test_an_accessory_goes_from_one_to_the_other(first, text):
    reply = last(first, text)
    assert reply.action == "draw", reply.text
    assert worn(reply.page) == {"cat": "none", "dog": "hat"}
    assert [c.id for c in reply.page.characters] == ["1", "2"]


@pytest.mark.parametrize("text", ["give the dog's hat to the cat", "把狗的帽子给猫"])
def test_nobody_gives_what_is_not_worn(text):
    reply = last(PAIR_EN, text)
    assert reply.action == "ask"
    assert worn(reply.page) == {"cat": "hat", "dog": "none"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("give the dog a hat", {"cat": "hat", "dog": "hat"}),
        ("give the dog a hat too", {"cat": "hat", "dog": "hat"}),
        ("给狗戴上帽子", {"cat": "hat", "dog": "hat"}),
        ("take the cat's hat", {"cat": "none", "dog": "none"}),
        ("take off the hat and give the cat a scarf", {"cat": "scarf", "dog": "none"}),
        ("把帽子摘下来给它换上皇冠", {"cat": "crown", "dog": "none"}),
        ("only the dog wears a hat", {"cat": "none", "dog": "hat"}),
        ("no, only the dog wears a hat", {"cat": "none", "dog": "hat"}),
        ("只有狗戴帽子", {"cat": "none", "dog": "hat"}),
    ],
)
def test_other_wishes_about_accessories_stay_what_they_are(text, expected):
    reply = last(PAIR_EN, text)
    assert reply.action == "draw", reply.text
    assert worn(reply.page) == expected


# ------------------------------------------------------------------------------------------- times of day, activities


@pytest.mark.parametrize(
    ("messages", "background", "said"),
    [
        (("a cat at sunset",), "night", "sunset"),
        (("a cat on the beach at sunset",), "beach", "sunset"),
        (("a cat", "make it sunset"), "night", "sunset"),
        (("a cat in the forest at dawn",), "forest", "dawn"),
        (("日落时有一只猫",), "night", "日落"),
        (("日落时的海滩上有一只猫",), "beach", "日落"),
        (("画一只猫", "现在是黄昏"), "night", "黄昏"),
        (("清晨，森林里有一只猫",), "forest", "清晨"),
    ],
)
def test_times_of_day_take_the_nearest_backdrop_or_are_named(messages, background, said):
    reply = last(*messages)
    assert reply.action == "draw", reply.text
    assert reply.page.background == background
    assert said in reply.text
    assert [warning.code for warning in reply.warnings] == ["hour"]


@pytest.mark.parametrize("text", ["make it sunrise", "要日出"])
def test_a_time_of_day_without_a_backdrop_alone_is_asked_about(text):
    assert last("a cat", text).action == "ask"


@pytest.mark.parametrize(
    ("text", "cast", "background", "said"),
    [
        ("two dogs playing in the snow", ["dog", "dog"], "snow", "playing"),
        ("a dancing bear and a singing bird in the city", ["bear", "bird"], "city", "dancing and singing"),
        ("a dog chasing a cat on the beach", ["dog", "cat"], "beach", "chasing"),
        ("a mouse hiding behind a mushroom", ["mouse", "mushroom"], "meadow", "hiding"),
        ("两只小狗在雪地里玩耍", ["dog", "dog"], "snow", "玩耍"),
        ("森林里一只小兔子在玩", ["rabbit"], "forest", "玩"),
        ("一只跳舞的熊和一只唱歌的鸟", ["bear", "bird"], "meadow", "跳舞"),
        ("画一只猫和一只狗在海边散步", ["cat", "dog"], "beach", "散步"),
        ("a cat 和一只狗在 beach 上玩", ["cat", "dog"], "beach", "玩"),
    ],
)
def test_activities_are_named_once_and_the_rest_is_drawn(text, cast, background, said):
    reply = last(text)
    assert reply.action == "draw", reply.text
    assert [c.category for c in reply.page.characters] == cast
    assert reply.page.background == background
    assert reply.text.count(said) == 1
    assert [warning.code for warning in reply.warnings] == ["activity"]


@pytest.mark.parametrize("text", ["make the cat dance", "dance!", "让猫跳舞", "a cat playing the piano", "弹钢琴"])
def test_an_activity_alone_or_with_an_unknown_thing_is_refused(text):
    reply = last("a cat", text)
    assert reply.action == "refuse"
    assert reply.edits == ()


# --------------------------------------------------------------------------------------------------- ways of speaking


@pytest.mark.parametrize(
    ("text", "cast"),
    [
        ("My daughter wants a purple elephant", ["elephant"]),
        ("the children want two rabbits and a fox", ["rabbit", "rabbit", "fox"]),
        ("老师想要一只兔子", ["rabbit"]),
        ("我家宝宝想看一只企鹅", ["penguin"]),
        ("can u draw a dog n a cat pls", ["dog", "cat"]),
        ("There once was a turtle who lived on the beach.", ["turtle"]),
        ("three ducks in a row", ["duck", "duck", "duck"]),
        ("画三只鸭子排成一排", ["duck", "duck", "duck"]),
    ],
)
def test_those_who_ask_are_not_drawn(text, cast):
    reply = last(text)
    assert reply.action == "draw", reply.text
    assert [c.category for c in reply.page.characters] == cast


@pytest.mark.parametrize("text", ["a princess wants a cat", "画一个老师和一只猫"])
def test_people_in_the_picture_are_still_named(text):
    assert last(text).action in ("ask", "refuse")


@pytest.mark.parametrize(
    ("messages", "blue"),
    [
        (("three cats", "make the second cat blue"), "2"),
        (("three cats", "make the third one blue"), "3"),
        (("画三只猫", "把第二只变成蓝色"), "2"),
        (("画三只猫", "第三只猫变成蓝色"), "3"),
    ],
)
def test_ordinals_pick_one_in_the_order_of_coming(messages, blue):
    reply = last(*messages)
    assert reply.action == "draw", reply.text
    assert [c.id for c in reply.page.characters if c.attribute("colour") == "blue"] == [blue]


@pytest.mark.parametrize("text", ["make the fifth cat blue", "把第五只猫变成蓝色"])
def test_an_ordinal_beyond_the_last_is_asked_about(text):
    assert last("three cats", text).action == "ask"


@pytest.mark.parametrize(
    ("first", "text"),
    [("a cat", "change the background to night, and I want a star"), ("画一只猫", "背景换成晚上，要有星星")],
)
def test_a_newcomer_named_with_a_new_backdrop_replaces_nobody(first, text):
    reply = last(first, text)
    assert sorted(c.category for c in reply.page.characters) == ["cat", "star"]
    assert reply.page.background == "night"


@pytest.mark.parametrize(
    "messages",
    [
        ("a cat on the left and a dog on the right", "they should face each other"),
        ("a cat on the left and a dog on the right looking at each other",),
        ("左边一只猫，右边一只狗", "让它们面对面"),
        ("左边一只猫，右边一只狗", "猫和狗互相看着"),
    ],
)
def test_two_look_at_each_other(messages):
    reply = last(*messages)
    assert reply.action == "draw", reply.text
    assert who(reply.page, "cat").attribute("facing") == "right"
    assert who(reply.page, "dog").attribute("facing") == "left"


def test_each_part_of_a_story_has_its_own_subject():
    page = last("画一只困倦的猪和一个气球", "小猪醒了，气球不见了，小猪哭了").page
    assert [(c.category, c.attribute("expression")) for c in page.characters] == [("pig", "sad")]
