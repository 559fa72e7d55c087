"""What single messages mean: utterance in, facts of the page out, in English, Chinese and both."""

from __future__ import annotations

import functools

import pytest

from huaben.dialogue import Conversation, Message
from huaben.stages.embedded import Screenwriter
from huaben.world.scene import place_key, size_key
from huaben.world.vocabulary import KEYS

WRITER = Screenwriter()
ATTRIBUTES = ("species", "colour", "accessory", "expression", "size", "place")
EN = "Draw a red cat with a hat on the left and a blue dog on the right in the forest"
ZH = "在森林里，左边画一只戴帽子的红猫，右边画一只蓝狗"


@functools.cache
def talk(messages):
    """Return the conversation after some messages."""
    if not messages:
        return Conversation()
    before = talk(messages[:-1])
    return before.add(Message(text=messages[-1]), WRITER.read(messages[-1], before))


def converse(*messages):
    return talk(messages).turns[-1].reply


def facts(text):
    """Read "red cat hat @left, dog | beach ink" into checks: characters, then background and style."""
    cast, _, scene = text.partition("|")
    people = []
    for part in (part.split() for part in cast.split(",") if part.strip()):
        person = {}
        for word in part:
            key = word.lstrip("@<>").replace("_", " ")
            if word.startswith("@"):
                person["place"] = key
            elif word in ("<", ">"):
                person["facing"] = "left" if word == "<" else "right"
            else:
                person[next(name for name in ATTRIBUTES if key in KEYS[name])] = key
        people.append(person)
    return people, scene.split()


def check(page, text):
    people, scene = facts(text)
    found = [dict(c.attributes) | {"size": size_key(c.box), "place": place_key(c.box)} for c in page.characters]
    assert len(found) == len(people), found
    for person in people:
        match = next((f for f in found if all(f[k] == v for k, v in person.items())), None)
        assert match is not None, (person, found)
        found.remove(match)
    for key in scene:
        assert key in (page.background, page.style), (key, page.background, page.style)


CREATE = [
    ("Draw a red cat with a hat and a blue dog on the beach", "red cat hat, blue dog none | beach flat"),
    ("red cat, beach, ink", "red cat | beach ink"),
    ("two small white rabbits", "small white rabbit, small white rabbit"),
    ("a cat", "orange cat medium happy none | meadow flat"),
    ("Could you paint an angry lion with a crown in the desert?", "angry lion crown | desert"),
    ("a cat and a dog wearing hats", "cat hat, dog hat"),
    ("two cats, one red and one blue", "red cat, blue cat"),
    (
        "Draw two dogs: one small and black with a scarf, the other large and white",
        "small black dog scarf, large white dog",
    ),
    ("a house on the left and three stars above it in the city", "house @left, star, star, star | city"),
    ("a boat in the sea with a whale to the right of the boat", "boat, whale | sea"),
    ("a cat without a hat", "cat none"),
    ("draw an owl, no hat, not angry", "owl none happy"),
    ("a dog at the top left", "dog @top_left"),
    ("on the left a red fox and on the right a green frog", "red fox @left, green frog @right"),
    ("a large turtle in the middle", "large turtle @middle"),
    ("a bird flying over the sea", "bird | sea"),
    ("fish swimming in the ocean", "fish | sea"),
    ("a sleepy sheep facing left", "sleepy sheep <"),
    ("a cat that is sad and wears glasses", "sad cat glasses"),
    ("a cat with a red hat", "cat orange hat"),
    ("in shadow puppet style, a lonely penguin at night", "penguin | night puppet"),
    ("draw some flowers", "flower, flower, flower"),
    ("a couple of ducks on the water", "duck, duck | sea"),
    ("birds of different colours", "red bird, blue bird"),
    ("a teddy bear with headphones in my bedroom", "bear headphones | room"),
    ("A GREEN MOUSE!!!", "green mouse"),
    ("draw a cat. the cat is red. it wears a crown", "red cat crown"),
    ("a cat and a dog, the cat wears a hat and the dog is sad", "cat hat happy, dog none sad"),
    ("🐱🎩🏖", "cat hat | beach"),
    ("a cat on the beach with three stars in the sky", "cat, star, star, star | beach"),
    ("a happy, small and purple pig", "happy small purple pig"),
    ("what we see in the snow is a bear in brown", "brown bear | snow"),
    ("在海边画一只戴帽子的红色小猫", "small red cat hat | beach"),
    ("在海边画一只戴帽子的红色小猫和一条蓝色的狗", "red cat hat, blue dog none | beach"),
    ("画三颗星星", "star, star, star"),
    ("两只白色的小兔子", "small white rabbit, small white rabbit"),
    ("红猫，海滩，线描", "red cat | beach ink"),
    ("左边一只红猫，右边一只蓝狗", "red cat @left, blue dog @right"),
    ("画一只猫和一只狗，猫在左边，狗在右边", "cat @left, dog @right"),
    ("猫的右边有一只狗", "cat, dog"),
    ("海里有一艘小船，小船的右边是一头鲸鱼", "boat, whale | sea"),
    ("两只猫，一只红色一只蓝色", "red cat, blue cat"),
    ("猫和狗都戴着帽子", "cat hat, dog hat"),
    ("画四只不同颜色的猫", "red cat, blue cat, yellow cat, green cat"),
    ("从前，草地上有一只戴眼镜的灰色小象", "small gray elephant glasses | meadow"),
    ("夜晚，一座房子，天上有三颗星星", "house, star, star, star | night"),
    ("画一头困倦的狮子，面朝左", "sleepy lion <"),
    ("一条鱼在海里游泳", "fish | sea"),
    ("剪纸风格的狐狸，雪地背景", "fox | snow papercut"),
    ("一只戴着红色帽子的猫", "cat orange hat"),
    ("我想看中间一只大的绿色乌龟，左边一朵粉色的花", "large green turtle @middle, pink flower @left"),
    ("猫一只，颜色是红色，表情开心", "red cat happy"),
    ("畫一隻紅色的貓在雪地裡", "red cat | snow"),
    ("能不能画三个蘑菇在树林里呀", "mushroom, mushroom, mushroom | forest"),
    ("画一只熊好吗", "bear"),
    ("画三只动物：猫、狗和兔子", "cat, dog, rabbit"),
    ("下雪天，三只企鹅，都戴着围巾", "penguin scarf, penguin scarf, penguin scarf | snow"),
    ("不戴帽子的猫", "cat none"),
    ("画一只red的猫 wearing a hat", "red cat hat"),
    ("A 猫头鹰 with 王冠 at night，水墨风格", "owl crown | night ink"),
    ("两只 ducks on the 海滩, one yellow one white", "yellow duck, white duck | beach"),
]

EDIT_EN = [
    ("make the cat blue", "blue cat hat, blue dog | forest"),
    ("make it green", "red cat, green dog"),
    ("paint the dog purple", "red cat, purple dog"),
    ("the dog should be white", "red cat, white dog"),
    ("turn everything black", "black cat, black dog"),
    ("make the red one yellow", "yellow cat, blue dog"),
    ("make the one on the left pink", "pink cat, blue dog"),
    ("Not red, make the cat green", "green cat, blue dog"),
    ("I'd prefer a purple cat", "purple cat hat, blue dog"),
    ("make the cat green and the dog yellow", "green cat, yellow dog"),
    ("remove the dog", "cat"),
    ("get rid of the cat", "dog"),
    ("take the hat off the cat", "cat none, dog none"),
    ("no hat", "cat none, dog"),
    ("the cat has no hat", "cat none, dog"),
    ("keep only the dog", "dog"),
    ("without the dog", "cat"),
    ("I don't like the dog", "cat"),
    ("replace the dog with a fox", "red cat, fox"),
    ("change the dog into a green frog", "red cat, green frog"),
    ("make the dog a bear", "red cat, bear"),
    ("a purple fox instead of the dog", "red cat, purple fox"),
    ("replace the hat with a crown", "cat crown, dog none"),
    ("give the dog a scarf", "cat hat, dog scarf"),
    ("put glasses on the dog", "cat hat, dog glasses"),
    ("put a crown on the cat and a scarf on the dog", "cat crown, dog scarf"),
    ("dress them both in scarves", "cat scarf, dog scarf"),
    ("move the cat to the right", "cat @right, dog"),
    ("put the dog at the top left", "cat, dog @top_left"),
    ("swap the cat and the dog", "cat @right, dog @left"),
    ("swap them", "cat @right, dog @left"),
    ("make the cat bigger", "large cat, medium dog"),
    ("make the dog small", "medium cat, small dog"),
    ("the cat is too big", "small cat, dog"),
    ("make them smaller", "small cat, small dog"),
    ("make it three cats", "cat, cat, cat, dog"),
    ("add another dog", "cat, blue dog, blue dog"),
    ("two more dogs please", "cat, blue dog, blue dog, blue dog"),
    ("add a yellow bird above the dog", "cat, dog, yellow bird"),
    ("and a mouse next to the cat", "cat, dog, mouse"),
    ("add a star in the sky", "cat, dog, star | forest"),
    ("at night", "cat, dog | night"),
    ("change the background to the beach", "cat, dog | beach"),
    ("replace the forest with the desert", "cat, dog | desert"),
    ("in crayon style", "cat, dog | forest crayon"),
    ("they go to the sea", "cat, dog | sea"),
    ("let the cat look to the left", "cat <, dog >"),
    ("make the dog look at the cat", "cat, dog <"),
    ("turn the cat to the left", "cat <, dog >"),
    ("the cat is angry now", "angry cat, happy dog"),
    ("The cat cries", "sad cat, dog"),
    ("everyone should look sleepy", "sleepy cat, sleepy dog"),
    ("make the cat white, remove the dog and add a tree", "white cat, tree"),
    ("Draw a fox in the snow", "fox | snow"),
    ("a pink elephant", "pink elephant | forest"),
    ("draw the cat on the beach", "red cat hat | beach"),
    ("把狗变成绿色", "red cat, green dog"),
]

EDIT_ZH = [
    ("把猫变成蓝色", "blue cat hat, blue dog"),
    ("猫应该是白色的", "white cat, blue dog"),
    ("把红色的变成黄色", "yellow cat, blue dog"),
    ("左边那只变成粉色", "pink cat, blue dog"),
    ("把它们都变成黑色", "black cat, black dog"),
    ("把猫改成紫色，狗改成黄色", "purple cat, yellow dog"),
    ("猫红色，狗绿色", "red cat, green dog"),
    ("不要红色，猫要绿色的", "green cat, blue dog"),
    ("把狗去掉", "cat"),
    ("不要狗了", "cat"),
    ("狗走了", "cat"),
    ("不要帽子了", "cat none, dog"),
    ("把猫的帽子摘掉", "cat none, dog"),
    ("只留下狗", "dog"),
    ("把狗换成狐狸", "red cat, fox"),
    ("用紫色的狐狸代替狗", "red cat, purple fox"),
    ("把帽子换成皇冠", "cat crown, dog"),
    ("给小狗戴上眼镜", "cat hat, dog glasses"),
    ("狗也戴帽子", "cat hat, dog hat"),
    ("让狗围上围巾", "cat hat, dog scarf"),
    ("给它俩都围上围巾", "cat scarf, dog scarf"),
    ("把猫移到右边", "cat @right, dog"),
    ("猫和狗交换位置", "cat @right, dog @left"),
    ("它们换个位置", "cat @right, dog @left"),
    ("把猫变大一点", "large cat, dog"),
    ("猫太大了", "small cat, dog"),
    ("猫变大，狗变小", "large cat, small dog"),
    ("再来两只狗", "cat, dog, dog, dog"),
    ("变成三只猫", "cat, cat, cat, dog"),
    ("在猫旁边加一只老鼠", "cat, dog, mouse"),
    ("再画一只鸟在天上", "cat, dog, bird | forest"),
    ("换成雪地", "cat, dog | snow"),
    ("背景改成夜晚", "cat, dog | night"),
    ("它们去了海边", "cat, dog | beach"),
    ("用剪纸风格", "cat, dog | forest papercut"),
    ("让猫朝左", "cat <, dog >"),
    ("让狗看着猫", "cat, dog <"),
    ("猫哭了", "sad cat, happy dog"),
    ("让狗生气，戴上领结", "cat happy hat, angry dog bowtie"),
    ("全部都很困", "sleepy cat, sleepy dog"),
    ("画一只狐狸在雪地里", "fox | snow"),
    ("去掉狗，再加一棵树", "cat, tree"),
    ("make the dog green", "red cat, green dog"),
]


@pytest.mark.parametrize(("text", "expected"), CREATE)
def test_creation(text, expected):
    reply = converse(text)
    assert reply.action == "draw", reply.text
    check(reply.page, expected)


@pytest.mark.parametrize(("text", "expected"), EDIT_EN)
def test_english_edit(text, expected):
    reply = converse(EN, text)
    assert reply.action == "draw", reply.text
    check(reply.page, expected)


@pytest.mark.parametrize(("text", "expected"), EDIT_ZH)
def test_chinese_edit(text, expected):
    reply = converse(ZH, text)
    assert reply.action == "draw", reply.text
    check(reply.page, expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("draw a dragon", "dragon"),
        ("a spaceship over Paris", "spaceship over Paris"),
        ("a cat playing the piano", "playing the piano"),
        ("A horse in the forest", "a horse"),
        ("Can you draw people?", "people"),
        ("画一条龙", "龙"),
        ("巴黎上空的宇宙飞船", "宇宙飞船"),
        ("画一只弹钢琴的猫", "弹钢琴"),
        ("asdfgh qwerty", "asdfgh qwerty"),
    ],
)
def test_what_is_outside_the_world_is_refused_by_name(text, said):
    reply = converse(text)
    assert reply.action == "refuse"
    assert said in reply.text
    assert reply.page is None


@pytest.mark.parametrize(
    ("text", "yes", "said", "expected"),
    [
        ("a red cat and a dragon", "yes", "dragon", "red cat"),
        ("a girl and a cat", "sure, go ahead", "girl", "cat"),
        ("a striped cat", "ok", "striped", "cat"),
        ("a wooden house on the beach", "yes please", "wooden", "house | beach"),
        ("红色的猫和龙", "好的", "龙", "red cat"),
        ("油画风格的猫", "可以", "油画", "cat"),
        ("draw a rabit", "yes", "rabbit", "rabbit"),
    ],
)
def test_what_is_partly_known_is_offered_and_drawn_on_yes(text, yes, said, expected):
    assert converse(text).action == "ask"
    assert said in converse(text).text
    reply = converse(text, yes)
    assert reply.action == "draw"
    check(reply.page, expected)
    assert converse(text, "no").action == "chat"


@pytest.mark.parametrize(
    ("first", "text", "answer", "expected"),
    [
        ("a red cat and a white cat", "make the cat blue", "the left one", "blue cat @left, white cat"),
        ("a red cat and a white cat", "make the cat blue", "both", "blue cat, blue cat"),
        ("a red cat and a white cat", "make the cat blue", "the white one", "red cat, blue cat"),
        ("一只红猫和一只白猫", "把猫变成蓝色", "右边那只", "red cat, blue cat @right"),
        ("一只红猫和一只白猫", "给猫戴上帽子", "都要", "cat hat, cat hat"),
    ],
)
def test_an_ambiguous_name_is_asked_about(first, text, answer, expected):
    asked = converse(first, text)
    assert asked.action == "ask"
    assert asked.page == converse(first).page.replace(
        characters=tuple(c.replace(status=s.status) for c, s in zip(
            converse(first).page.characters, asked.page.characters, strict=True))
    )  # fmt: skip
    reply = converse(first, text, answer)
    assert reply.action == "draw"
    check(reply.page, expected)


@pytest.mark.parametrize(
    "text", ["make it nicer", "change it", "make the cat a different colour", "改一下", "换个颜色", "better"]
)
def test_a_vague_wish_is_asked_about(text):
    assert converse("a cat", text).action == "ask"


@pytest.mark.parametrize("text", ["make it blue", "把猫变成蓝色", "remove the dog", "draw", "画"])
def test_nothing_to_work_on_is_asked_about(text):
    assert converse(text).action == "ask"


def test_the_colour_of_an_accessory_is_refused_and_not_given_to_its_wearer():
    for text in ("make the hat blue", "帽子改成蓝色"):
        reply = converse(EN, text)
        assert reply.action == "refuse"
        check(reply.page, "red cat hat, blue dog")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("what colour is the dog?", "blue"),
        ("what color is it", "blue"),
        ("how many cats are there?", "one cat"),
        ("how many animals are there?", "two"),
        ("where is the cat?", "left"),
        ("what is the cat wearing?", "hat"),
        ("is there a bird?", "no bird"),
        ("is the dog red?", "No"),
        ("does the cat wear a hat?", "Yes"),
        ("what is in the picture?", "cat"),
        ("who is on the right?", "dog"),
        ("what is the background?", "forest"),
        ("which style is it?", "flat"),
        ("which way does the cat look?", "right"),
        ("how does the dog feel?", "happy"),
        ("狗是什么颜色？", "蓝色"),
        ("图里有几只猫？", "一只猫"),
        ("猫在哪里？", "左边"),
        ("猫戴着什么？", "帽子"),
        ("有没有鸟？", "没有鸟"),
        ("狗是红色的吗？", "不是"),
        ("画里有什么？", "猫"),
        ("右边是什么动物？", "狗"),
        ("背景是什么？", "森林"),
        ("是什么风格？", "扁平"),
        ("你会画什么？", "猫"),
        ("what can you draw?", "cat"),
        ("Who are you?", "huaben"),
        ("你是谁？", "话本"),
        ("thanks!", "glad"),
        ("谢谢你", "喜欢"),
        ("Hello!", "Hello"),
        ("what's the weather today?", "drawing"),
        ("don't draw anything", "won't"),
        ("先别画", "先不画"),
    ],
)
def test_questions_and_small_talk_are_answered_without_drawing(text, said):
    reply = converse(EN, text)
    assert reply.action == "chat", reply.text
    assert said in reply.text
    assert reply.edits == ()


@pytest.mark.parametrize(
    ("messages", "index", "expected"),
    [
        ((EN, "make the cat blue", "undo"), 0, "red cat, dog"),
        ((EN, "make the cat blue", "撤销"), 0, "red cat, dog"),
        ((EN, "at night", "bigger dog", "go back to the first one"), 0, "red cat, dog | forest"),
        ((EN, "at night", "make the dog red", "Show me the second picture again"), 1, "red cat, blue dog | night"),
        ((EN, "at night", "make the dog red", "回到第二张"), 1, "red cat, blue dog | night"),
        ((EN, "at night", "make the dog red", "undo the last two changes"), 0, "red cat, blue dog | forest"),
        ((EN, "at night", "undo", "redo"), 1, "cat, dog | night"),
        ((EN, "at night", "what colour is the dog?", "回到上一张"), 0, "cat, dog | forest"),
    ],
)
def test_earlier_pictures_are_recalled(messages, index, expected):
    reply = converse(*messages)
    assert reply.action == "recall"
    assert reply.recalled == index
    check(reply.page, expected)


def test_there_is_nothing_before_the_first_picture():
    assert converse(EN, "undo").action == "chat"
    assert converse("undo").action == "chat"
    assert converse(EN, "show me the seventh picture").action == "ask"


def test_the_reply_is_in_the_language_of_the_message():
    assert converse("a red cat").language == "en"
    assert converse("画一只red的猫 wearing a hat").language == "zh"
    assert converse("a red cat", "🐶").language == "en"
    assert converse("红猫", "🐶").language == "zh"
