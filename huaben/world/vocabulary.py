"""The words of the embedded world: everything a caption, a message or a scene graph can name, in both languages.

A value has a stable ``key`` (English, used in scene graphs and files), names and synonyms per language. The first
name of each language is the one huaben uses itself; the others are understood. No torch, no drawing: the screenwriter
and the renderer both read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Language = Literal["en", "zh"]


@dataclass(frozen=True, slots=True)
class Term:
    """One describable value.

    Attributes:
        key: stable identifier.
        en: English names, first one preferred; singular.
        zh: Chinese names, first one preferred.
        plural: English plural.
        measure: Chinese measure word ("只" in "一只猫"); empty where none is used.
    """

    key: str
    en: tuple[str, ...]
    zh: tuple[str, ...]
    plural: str = ""
    measure: str = ""

    def name(self, language: Language) -> str:
        return self.en[0] if language == "en" else self.zh[0]


def _species(key: str, en: str, zh: str, measure: str, plural: str = "") -> Term:
    return Term(key, tuple(en.split("|")), tuple(zh.split("|")), plural or f"{en.split('|')[0]}s", measure)


def _term(key: str, en: str, zh: str, measure: str = "") -> Term:
    return Term(key, tuple(en.split("|")), tuple(zh.split("|")), measure=measure)


ANIMALS: tuple[Term, ...] = (
    _species("cat", "cat|kitty|kitten", "猫|小猫|猫咪", "只"),
    _species("dog", "dog|puppy|doggy", "狗|小狗|狗狗", "只"),
    _species("rabbit", "rabbit|bunny|hare", "兔子|小兔子|小兔|兔", "只"),
    _species("bear", "bear|teddy", "熊|小熊", "只"),
    _species("fox", "fox", "狐狸|小狐狸", "只", "foxes"),
    _species("mouse", "mouse", "老鼠|小老鼠|鼠", "只", "mice"),
    _species("pig", "pig|piggy|piglet", "猪|小猪", "只"),
    _species("frog", "frog", "青蛙|小青蛙|蛙", "只"),
    _species("lion", "lion", "狮子|小狮子|狮", "只"),
    _species("elephant", "elephant", "大象|小象|象", "只"),
    _species("sheep", "sheep|lamb", "绵羊|小羊|羊", "只", "sheep"),
    _species("bird", "bird|birdie", "鸟|小鸟|鸟儿", "只"),
    _species("owl", "owl", "猫头鹰", "只"),
    _species("penguin", "penguin", "企鹅|小企鹅", "只"),
    _species("duck", "duck|duckling", "鸭子|小鸭子|小鸭|鸭", "只"),
    _species("turtle", "turtle|tortoise", "乌龟|小乌龟|海龟|龟", "只"),
    _species("fish", "fish", "鱼|小鱼", "条", "fish"),
    _species("whale", "whale", "鲸鱼|鲸", "头"),
)

OBJECTS: tuple[Term, ...] = (
    _species("tree", "tree", "树|小树|大树", "棵"),
    _species("house", "house|cottage", "房子|小屋|屋子", "座"),
    _species("car", "car", "汽车|小汽车|车|车子", "辆"),
    _species("star", "star", "星星", "颗"),
    _species("flower", "flower", "花|小花|花朵", "朵"),
    _species("mushroom", "mushroom|toadstool", "蘑菇", "朵"),
    _species("boat", "boat|ship", "小船|船", "艘"),
    _species("balloon", "balloon", "气球", "个"),
)

SPECIES: tuple[Term, ...] = ANIMALS + OBJECTS

COLOURS: tuple[Term, ...] = (
    _term("red", "red|crimson|scarlet", "红色|红"),
    _term("orange", "orange", "橙色|橘色|橙|橘"),
    _term("yellow", "yellow|golden|gold", "黄色|金色|黄"),
    _term("green", "green", "绿色|绿"),
    _term("teal", "teal|turquoise|cyan", "青色|青"),
    _term("blue", "blue", "蓝色|蓝"),
    _term("purple", "purple|violet", "紫色|紫"),
    _term("pink", "pink", "粉色|粉红色|粉红|粉"),
    _term("brown", "brown", "棕色|褐色|棕"),
    _term("white", "white", "白色|白"),
    _term("gray", "gray|grey", "灰色|灰"),
    _term("black", "black", "黑色|黑"),
)

# "none" is a value of the scene graph but never a word of its own.
ACCESSORIES: tuple[Term, ...] = (
    _term("none", "nothing", "无"),
    _term("hat", "hat|cap", "帽子", "顶"),
    _term("crown", "crown", "皇冠|王冠", "顶"),
    _term("scarf", "scarf", "围巾", "条"),
    _term("glasses", "glasses|spectacles", "眼镜", "副"),
    _term("bowtie", "bow tie|bowtie|bow", "领结|蝴蝶结", "个"),
    _term("headphones", "headphones|earphones", "耳机", "副"),
)

EXPRESSIONS: tuple[Term, ...] = (
    _term("happy", "happy|smiling|cheerful", "开心|高兴|快乐|微笑"),
    _term("sad", "sad|crying|unhappy", "难过|伤心|悲伤"),
    _term("surprised", "surprised|amazed|astonished", "惊讶|吃惊"),
    _term("angry", "angry|cross|mad", "生气|愤怒"),
    _term("sleepy", "sleepy|sleeping|tired", "困倦|困|瞌睡|想睡"),
)

FACINGS: tuple[Term, ...] = (
    _term("left", "facing left|looking left", "面朝左|朝左|向左看|面向左"),
    _term("right", "facing right|looking right", "面朝右|朝右|向右看|面向右"),
)

SIZES: tuple[Term, ...] = (
    _term("small", "small|little|tiny", "小|小小的"),
    _term("medium", "medium-sized|medium", "中等大小|中等"),
    _term("large", "large|big|huge", "大|大大的"),
)

PLACES: tuple[Term, ...] = (
    _term("left", "on the left", "左边|左侧|左面"),
    _term("middle", "in the middle|in the center|in the centre", "中间|中央|正中"),
    _term("right", "on the right", "右边|右侧|右面"),
    _term("top left", "at the top left|in the upper left", "左上方|左上角|左上"),
    _term("top", "at the top|in the upper middle", "上方|上面|上边|顶上"),
    _term("top right", "at the top right|in the upper right", "右上方|右上角|右上"),
)

BACKGROUNDS: tuple[Term, ...] = (
    _term("beach", "beach|seaside|shore", "海滩|沙滩|海边"),
    _term("snow", "snow|snowy field|snowfield|winter", "雪地|雪|冬天"),
    _term("forest", "forest|woods|wood", "森林|树林"),
    _term("night", "night|night sky|starry night", "夜晚|夜里|星空|夜空"),
    _term("meadow", "meadow|grass|grassland|field|lawn", "草地|草原|草坪"),
    _term("sea", "sea|ocean|underwater", "大海|海里|海底|海洋"),
    _term("desert", "desert", "沙漠"),
    _term("city", "city|street|town", "城市|街道|城里|街上"),
    _term("room", "room|bedroom|living room|indoors", "房间|屋里|室内|卧室"),
    _term("mountain", "mountains|mountain|hills", "山里|高山|大山|山上|山"),
    _term("sky", "sky|clouds", "天空|云端|天上|云朵"),
)

STYLES: tuple[Term, ...] = (
    _term("flat", "flat", "扁平"),
    _term("ink", "ink outline|ink|line art", "线描|勾线|水墨"),
    _term("papercut", "paper-cut|papercut|paper cut", "剪纸"),
    _term("crayon", "crayon|pencil", "蜡笔|彩铅"),
    _term("puppet", "shadow puppet|shadow-puppet|shadow play", "皮影|皮影戏|影戏"),
)

ATTRIBUTES: dict[str, tuple[Term, ...]] = {
    "species": SPECIES,
    "colour": COLOURS,
    "accessory": ACCESSORIES,
    "expression": EXPRESSIONS,
    "facing": FACINGS,
    "size": SIZES,
    "place": PLACES,
    "background": BACKGROUNDS,
    "style": STYLES,
}

KEYS: dict[str, tuple[str, ...]] = {name: tuple(term.key for term in terms) for name, terms in ATTRIBUTES.items()}
INDEX: dict[str, dict[str, int]] = {name: {key: i for i, key in enumerate(keys)} for name, keys in KEYS.items()}
TERMS: dict[str, dict[str, Term]] = {
    name: {term.key: term for term in terms} for name, terms in ATTRIBUTES.items()
}


def term(attribute: str, key: str) -> Term:
    """Return the term, e.g. ``term("colour", "red")``; KeyError if there is none."""
    return TERMS[attribute][key]
