"""Captions say what they claim to say, in both languages, and the held-out templates stay apart."""

from hypothesis import given, settings
from hypothesis import strategies as st

from huaben.rng import numpy_stream
from huaben.world.captions import attributes, caption, describe, describe_character, phrase
from huaben.world.sample import sample_scene
from huaben.world.vocabulary import term

languages = st.sampled_from(["en", "zh"])
splits = st.sampled_from(["train", "paraphrase"])


def _names(attribute, key, language):
    entry = term(attribute, key)
    return entry.en if language == "en" else entry.zh


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), languages, splits)
def test_caption_contains_a_name_of_every_fact(seed, language, split):
    rng = numpy_stream(seed, "c")
    scene = sample_scene(rng)
    said = caption(scene, rng, language, split)
    assert sorted(said.mentions) == list(range(len(scene.characters)))
    for index, facts in zip(said.mentions, said.facts, strict=True):
        truth = attributes(scene.characters[index])
        for name, value in facts.items():
            assert truth[name] == value
            words = [w.removesuffix("的") for w in _names(name, value, language)]
            assert any(w in said.text or w.removeprefix("小") in said.text for w in words), (name, value, said.text)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), languages)
def test_phrase_is_in_its_language(seed, language):
    rng = numpy_stream(seed, "p")
    scene = sample_scene(rng, num_characters=1)
    for split in ("train", "paraphrase"):
        text = phrase(scene.characters[0], rng, language, split).text
        assert text.isascii() == (language == "en")


def test_describe_says_everything_once_in_order():
    scene = sample_scene(numpy_stream(4, "d"), num_characters=3)
    for language in ("en", "zh"):
        text = describe(scene, language)
        at = [text.find(term("species", c.species).name(language).removeprefix("小")) for c in scene.characters]
        assert all(i >= 0 for i in at)


def test_describe_character_leaves_out_nothing_and_no_accessory():
    facts = {"species": "cat", "colour": "red", "accessory": "none"}
    assert describe_character(facts, "en") == "a red cat"
    assert describe_character(facts, "zh") == "一只红色猫"
    facts["accessory"] = "glasses"
    assert describe_character(facts, "en") == "a red cat wearing glasses"
    assert describe_character({**facts, "accessory": "scarf", "size": "small"}, "zh") == "一只围着围巾的红色小猫"


def test_paraphrases_are_not_training_sentences():
    rng = numpy_stream(0, "x")
    scenes = [sample_scene(rng) for _ in range(300)]
    openings = {caption(s, rng, "en").text.split(" ")[0] for s in scenes}
    held = {caption(s, rng, "en", "paraphrase").text.split(" ")[0] for s in scenes}
    assert not openings & held
