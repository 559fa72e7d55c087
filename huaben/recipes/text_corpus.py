"""Captions and phrases of the world in both languages, made once from a seed, as token ids and labels.

The scenes are only described, never drawn, so sizes and places are drawn evenly and nothing is kept from overlapping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..language.tokenizer import EOS, PAD, SPECIALS, Tokenizer
from ..rng import numpy_stream
from ..world.captions import BACKGROUND_PHRASES, Caption, CaptionSplit, caption, phrase
from ..world.sample import Split, sample_look
from ..world.scene import SIZE_HEIGHTS, TRAINED_CHARACTERS, SceneCharacter, SceneGraph
from ..world.vocabulary import ATTRIBUTES, KEYS, Language
from .readout import CHARACTER_ATTRIBUTES, SCENE_ATTRIBUTES, labels_of, slot_labels

LANGUAGES: tuple[Language, ...] = ("en", "zh")

_PLACE_CENTRES = {
    "left": (0.2, 0.7), "middle": (0.5, 0.7), "right": (0.8, 0.7),
    "top left": (0.2, 0.28), "top": (0.5, 0.28), "top right": (0.8, 0.28),
}  # fmt: skip
_JOINTS = (*",.;:!?-'、。", "and", "和", "还有", "a", "an", "一")
_FUNCTION_WORDS = (
    "戴着 围着 风格 还有 一只 一个 一条 一头 一棵 一座 一辆 一颗 一朵 一艘 一幅 从前 住着 看到 我们 位置 "
    "表情 个头 身上 颜色 样子 个子 位于 画成 面朝 向左 向右 地点 呈现 空空 地方 海滩上 雪地里 森林里 "
    "草地上 大海里 沙漠里 城市里 房间里 山里 天空中"
).split()


def chinese_words() -> list[str]:
    """Return the words inside which the tokenizer may merge characters.

    A name that is another one behind 小 or 大 is left out: "小猫" is "小" and "猫", whatever follows.
    """
    names = {name for terms in ATTRIBUTES.values() for term in terms for name in term.zh}
    bare = {name for name in names if not (name[0] in "小大" and name[1:] in names)}
    return sorted(bare | set(_FUNCTION_WORDS))


def described_character(rng: np.random.Generator, split: Split = "train") -> SceneCharacter:
    """Return a random character whose size and place are drawn evenly."""
    size = tuple(SIZE_HEIGHTS)[rng.integers(len(SIZE_HEIGHTS))]
    x, y = _PLACE_CENTRES[KEYS["place"][rng.integers(len(KEYS["place"]))]]
    half = SIZE_HEIGHTS[size] / 2
    return SceneCharacter.from_dict({**sample_look(rng, split), "box": (x - 0.1, y - half, x + 0.1, y + half)})


def described_scene(rng: np.random.Generator, split: Split = "train") -> SceneGraph:
    """Return a random scene to talk about: 1 to 3 characters, now and then none."""
    count = 0 if rng.random() < 0.02 else int(rng.integers(TRAINED_CHARACTERS)) + 1
    return SceneGraph(
        background=KEYS["background"][rng.integers(len(KEYS["background"]))],
        style=KEYS["style"][rng.integers(len(KEYS["style"]))],
        characters=tuple(described_character(rng, split) for _ in range(count)),
    )


def phrase_pair(rng: np.random.Generator, split: Split = "train", words: CaptionSplit = "train") -> list[Caption]:
    """Return an English and a Chinese phrase about one character that say the same."""
    character = described_character(rng, split)
    place, rich = bool(rng.random() < 0.4), float(rng.choice((0.2, 0.6, 1.0)))
    english = phrase(character, rng, "en", words, place=place, rich=rich)
    said = {name: english.facts[0].get(name) for name in CHARACTER_ATTRIBUTES}
    while True:
        chinese = phrase(character, rng, "zh", words, place=place, rich=rich)
        if all(chinese.facts[0].get(name) == value for name, value in said.items()):
            return [english, chinese]


def random_caption(rng: np.random.Generator, language: Language, split: CaptionSplit = "train") -> Caption:
    """Return a caption of a random described scene; a tenth of them say everything."""
    scene = described_scene(rng)
    return caption(scene, rng, language, split, rich=1.0 if rng.random() < 0.1 else None)


def pad_ids(rows: Sequence[Sequence[int]], length: int) -> NDArray[np.int16]:
    """Return (N, length), each row cut to ``length - 1``, ended and padded."""
    ids = np.full((len(rows), length), PAD, np.int16)
    for target, row in zip(ids, rows, strict=True):
        kept = [*row[: length - 1], EOS]
        target[: len(kept)] = kept
    return ids


class UnknownWords:
    """Puts words that mean nothing into texts, so that an encoder learns to read past what it does not know.

    Only tokens that no name of the vocabulary is made of are replaced or left out; punctuation and words that join
    characters stay, because they say where one ends.

    Args:
        tokenizer: of the texts.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        names = [name for terms in ATTRIBUTES.values() for term in terms for name in (*term.en, *term.zh)]
        places = [words for phrases in BACKGROUND_PHRASES.values() for words in phrases]
        kept = {token for row in tokenizer.encode_ragged([*names, *places, *_JOINTS]) for token in row}
        first = len(SPECIALS) + 256
        free = [token for token in range(first, tokenizer.vocab_size) if token not in kept]
        self._free = np.zeros(tokenizer.vocab_size, bool)
        self._free[free] = True
        self._words = np.array(free)

    def __call__(self, row: Sequence[int], rng: np.random.Generator, limit: int) -> list[int]:
        """Return a changed copy, or an unchanged one where it would be longer than ``limit``."""
        draws = rng.random((len(row) + 1, 2))
        changed: list[int] = self._word(rng) if draws[-1, 0] < 0.2 else []
        for token, (change, insert) in zip(row, draws[:-1], strict=True):
            if not self._free[token] or change >= 0.25:
                changed.append(int(token))
            elif change < 0.15:
                changed += self._word(rng)
            if insert < 0.05:
                changed += self._word(rng)
        return changed if len(changed) <= limit else list(row)

    def _word(self, rng: np.random.Generator) -> list[int]:
        """Return one or two Chinese characters in bytes, or a few tokens that mean nothing."""
        count = int(rng.integers(1, 3))
        if len(self._words) and rng.random() < 0.5:
            return [int(token) for token in rng.choice(self._words, count)]
        lead, first = rng.integers(0xE4, 0xEA, count), len(SPECIALS)
        tail = rng.integers(0x80, 0xC0, (count, 2))
        return [first + int(byte) for byte in np.column_stack([lead, tail]).ravel()]


@dataclass(frozen=True, slots=True)
class TextCorpus:
    """Token ids and labels.

    Attributes:
        captions: int16 (N, L); even rows are English, odd rows Chinese.
        slots: int16 (N, 4, 7), classes of the mentioned characters.
        scenes: int16 (N, 2), classes of background and style.
        phrases: int16 (M, 2, P); an English and a Chinese phrase that say the same.
        phrase_labels: int16 (M, 7).
    """

    captions: NDArray[np.int16]
    slots: NDArray[np.int16]
    scenes: NDArray[np.int16]
    phrases: NDArray[np.int16]
    phrase_labels: NDArray[np.int16]


def make_corpus(
    seed: int,
    num_captions: int,
    num_phrases: int,
    length: int,
    tokenizer: Tokenizer | None = None,
    *,
    vocab_size: int = 1500,
    words: CaptionSplit = "train",
    split: Split = "train",
    purpose: str = "train",
) -> tuple[TextCorpus, Tokenizer]:
    """Return a corpus and its tokenizer, trained on the corpus itself unless one is given.

    Args:
        seed, purpose: name the stream of random numbers.
        num_captions, num_phrases: captions in all, and phrases a language.
        length: of a row of captions.
        tokenizer: None trains one.
        vocab_size: of a new tokenizer, at most.
        words: templates, those of training or those held out.
        split: characters of the phrases, those of training or the combinations held out.
    """
    rng = numpy_stream(seed, "text corpus", purpose)
    captions = [random_caption(rng, LANGUAGES[i % 2], words) for i in range(num_captions)]
    pairs = [phrase_pair(rng, split, words) for _ in range(num_phrases)]
    texts = [said.text for said in captions], [said.text for pair in pairs for said in pair]
    if tokenizer is None:
        tokenizer = Tokenizer.train([*texts[0], *texts[1]], vocab_size=vocab_size, words=chinese_words())
    rows = tokenizer.encode_ragged(texts[1])
    phrase_length = min(length, max((len(row) + 1 for row in rows), default=1))
    corpus = TextCorpus(
        captions=pad_ids(tokenizer.encode_ragged(texts[0]), length),
        slots=np.stack([slot_labels(said.facts) for said in captions]),
        scenes=np.array([labels_of(said.scene_facts, SCENE_ATTRIBUTES) for said in captions], np.int16),
        phrases=pad_ids(rows, phrase_length).reshape(num_phrases, 2, phrase_length),
        phrase_labels=np.array([labels_of(pair[0].facts[0], CHARACTER_ATTRIBUTES) for pair in pairs], np.int16),
    )
    return corpus, tokenizer
