"""The screenwriter as a whole: purity, limits, identities, edits, and anything at all as input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from huaben.bench.conversations import SCRIPTS, accuracy, conversations, run_script, score
from huaben.dialogue import (
    Conversation,
    Message,
    Reply,
    clean_text,
)
from huaben.errors import ConfigError, DialogueError
from huaben.promptbook import Page, apply_edits, check_page, overlap_share
from huaben.stages.embedded import Screenwriter, layout_characters, page_to_scene, scene_to_page
from huaben.stages.embedded.layout import ASPECTS, DEFAULT_COLOURS, Wish
from huaben.stages.embedded.lexicon import lexicon
from huaben.world.captions import caption
from huaben.world.sample import sample_scene
from huaben.world.scene import place_key, size_key
from huaben.world.vocabulary import KEYS, TERMS

WRITER = Screenwriter()


def converse(*messages):
    conversation = Conversation()
    for text in messages:
        conversation = conversation.add(Message(text=text), WRITER.read(text, conversation))
    return conversation


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\u200b\u200d", "\x00\x01"])
def test_empty_text_is_an_error_with_a_hint(text):
    with pytest.raises(DialogueError) as error:
        WRITER.read(text)
    assert error.value.hint


def test_overlong_text_is_an_error_that_says_both_lengths():
    with pytest.raises(DialogueError, match=r"20001.*2000"):
        WRITER.read("a" * 20_001)
    assert WRITER.read("a cat " + "!" * 1994).action == "draw"


def test_control_characters_are_dropped():
    assert clean_text("a\x00 red\u200b\tcat\r\n") == "a red cat"
    assert WRITER.read("a\x07 red\x1b cat").page == WRITER.read("a red cat").page.replace(caption="a red cat")


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=40) | st.lists(st.sampled_from(sorted(lexicon())), max_size=7).map(" ".join))
def test_any_text_gets_a_reply_or_the_error_for_empty_text(text):
    start = talk_of_two()
    try:
        reply = WRITER.read(text, start)
    except DialogueError:
        assert not clean_text(text, has_image=True)
        return
    assert reply.text
    assert reply == WRITER.read(text, start), "the same message gets the same reply"
    if reply.action in ("draw", "recall"):
        after = start.add(Message(text=text), reply)
        assert after.page is not None
        assert check_page(after.page) == after.page
        page_to_scene(after.page)
    else:
        assert reply.edits == ()
        assert reply.page == start.page


TWO = []


def talk_of_two():
    if not TWO:
        TWO.append(converse("a red cat with a hat and two white dogs in the snow"))
    return TWO[0]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_edits_lead_from_page_to_page(script):
    conversation = Conversation()
    for turn in script.turns:
        before = conversation.page or Page()
        reply = WRITER.read(turn.text, conversation)
        conversation = conversation.add(Message(text=turn.text), reply)
        if reply.action in ("draw", "recall"):
            after, inverses = apply_edits(before, reply.edits)
            assert bare(after) == bare(reply.page)
            assert bare(apply_edits(after, inverses)[0]) == bare(before)
    assert Conversation.from_dict(conversation.to_dict()) == conversation


def bare(page):
    """Return a page without what the book sets."""
    characters = tuple(character.replace(status="new") for character in page.characters)
    return page.replace(caption="", removed=(), characters=characters)


def test_scripts_of_the_first_batch_are_all_right():
    wrong = [
        (script.name, turn.text, result.wrong)
        for script in conversations(1)
        for turn, result in zip(script.turns, score(script, run_script(script, WRITER.read)), strict=True)
        if not result.right
    ]
    assert wrong == []


def test_scoring_notices_wrong_pages_actions_and_lost_identities():
    def lazy(message, conversation):
        return WRITER.read("a red cat")

    assert accuracy(conversations(2), lazy)["turns"] < 0.1
    script = next(script for script in SCRIPTS if script.name == "beach-cat")
    replies = list(run_script(script, WRITER.read))
    characters = replies[1].page.characters
    swapped = tuple(c.replace(id={"1": "2", "2": "1"}[c.id]) for c in characters)
    replies[1] = replies[1].replace(page=replies[1].page.replace(characters=swapped))
    assert not score(script, replies)[1].page


def test_untouched_characters_keep_everything():
    conversation = converse("a red cat and a blue dog", "make the dog green", "give the dog a hat", "at night")
    cats = {page.characters[0].replace(status="new") for page in conversation.book.pages}
    assert len(cats) == 1
    assert {page.characters[1].id for page in conversation.book.pages} == {"2"}


def test_somebody_who_left_comes_back_as_they_were():
    conversation = converse("a purple dog with a crown and a cat", "remove the dog", "add a bird", "bring the dog back")
    dogs = [c for c in conversation.page.characters if c.category == "dog"]
    assert [(dog.id, dog.attribute("colour"), dog.attribute("accessory")) for dog in dogs] == [("1", "purple", "crown")]


def test_ids_are_never_reused():
    conversation = converse(
        "a cat and a dog", "draw two birds", "replace one of the birds with a fox", "undo", "add a bear"
    )
    owners = {}
    for page in conversation.book.pages:
        for character in page.characters:
            assert owners.setdefault(character.id, character.category) == character.category


def test_background_and_style_carry_over_and_defaults_hold():
    conversation = converse("a cat", "draw a dog in the desert, ink", "draw a bear")
    assert [(page.background, page.style) for page in conversation.book.pages] == [
        ("meadow", "flat"), ("desert", "ink"), ("desert", "ink"),
    ]  # fmt: skip


def test_prompts_are_in_the_language_of_creation():
    assert WRITER.read("a small red cat wearing a hat").page.characters[0].prompt == "a small red cat wearing a hat"
    assert WRITER.read("画一只戴帽子的红色小猫").page.characters[0].prompt == "一只戴着帽子的红色小猫"
    assert converse("画一只红猫", "make it blue").page.characters[0].prompt == "一只蓝色的猫"


def test_removed_things_go_into_the_negative_prompt_and_come_out_again():
    assert converse("a cat and a dog", "remove the dog").page.negative == "dog"
    assert converse("a cat and a dog", "remove the dog", "add a dog").page.negative == ""
    assert WRITER.read("a beach with no cats").page.negative == "cat"


def test_more_than_six_are_reported():
    reply = WRITER.read("draw 12 cats")
    assert len(reply.page.characters) == 6
    assert [warning.code for warning in reply.warnings] == ["too_many"]
    assert "only 6" in reply.text
    with pytest.raises(ConfigError):
        Screenwriter(max_characters=9)


def test_two_backgrounds_are_reported():
    reply = WRITER.read("a cat on the beach in the forest")
    assert reply.page.background == "beach"
    assert [warning.code for warning in reply.warnings] == ["one_background"]


def test_a_picture_sent_along_becomes_the_page():
    scene = page_to_scene(WRITER.read("a red cat and a blue dog on the beach").page)
    seen = scene_to_page(scene)
    reply = WRITER.read(Message(text="make the cat green", image="x.png"), seen=seen)
    assert [c.attribute("colour") for c in reply.page.characters] == ["green", "blue"]
    assert reply.page.background == "beach"
    assert "red cat" in WRITER.read(Message(text="", image="x.png"), seen=seen).text
    assert WRITER.read(Message(text="", image="x.png")).action == "chat"


def test_page_to_scene_keeps_every_fact_and_uses_identities():
    page = WRITER.read("a small sad red cat with a crown facing left and a boat, on the beach, crayon").page
    scene = page_to_scene(page, {"1": 7})
    cat = scene.characters[[c.species for c in scene.characters].index("cat")]
    assert (cat.colour, cat.accessory, cat.expression, cat.facing, cat.identity) == ("red", "crown", "sad", "left", 7)
    assert (scene.background, scene.style, len(scene.characters)) == ("beach", "crayon", 2)
    assert page_to_scene(page) == page_to_scene(page)
    with pytest.raises(DialogueError, match="moon"):
        page_to_scene(page.replace(background="moon"))
    assert page_to_scene(page.replace(background="海滩, with a tree")).background == "beach"


def test_tables_cover_the_world():
    assert set(ASPECTS) == set(DEFAULT_COLOURS) == set(KEYS["species"])
    kinds = {
        "species": "SPECIES",
        "colour": "COLOUR",
        "background": "BACKGROUND",
        "style": "STYLE",
        "expression": "EXPRESSION",
    }
    for attribute, kind in kinds.items():
        for key, entry in TERMS[attribute].items():
            for name in (*entry.en, *entry.zh):
                assert lexicon()[name.replace("-", " ").lower()] == (kind, key), name


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_layout_gives_what_was_asked_for(data):
    count = data.draw(st.integers(1, 3))
    places = data.draw(st.permutations(["left", "middle", "right"]))[:count]
    species = [data.draw(st.sampled_from(["cat", "rabbit", "bear", "fox", "tree", "pig"])) for _ in range(count)]
    sizes = [data.draw(st.sampled_from([None, "small"])) for _ in range(count)]
    wishes = [Wish(species=s, size=z, place=p) for s, z, p in zip(species, sizes, places, strict=True)]
    boxes = layout_characters(wishes)
    assert boxes == layout_characters(wishes)
    for wish, box in zip(wishes, boxes, strict=True):
        assert place_key(box) == wish.place
        assert wish.size in (None, size_key(box))
        assert 0 <= box[0] < box[2] <= 1
        assert 0.6 <= box[3] <= 1
    for i, box in enumerate(boxes):
        assert all(overlap_share(box, other) < 0.15 for other in boxes[:i])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_unsaid_places_are_apart_and_on_the_ground(count):
    boxes = layout_characters([Wish(species=s) for s in ("cat", "dog", "fox", "bear", "frog", "pig")[:count]])
    assert all((0.85 if count < 4 else 0.7) <= box[3] <= 0.98 for box in boxes)
    assert all(max(overlap_share(a, b), overlap_share(b, a)) < 0.15 for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(box[3] - box[1] >= 0.17 for box in boxes)


def test_taken_boxes_are_avoided():
    taken = [(0.05, 0.55, 0.4, 0.92)]
    (box,) = layout_characters([Wish(species="dog")], taken)
    assert overlap_share(box, taken[0]) < 0.05


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("split", ["train", "paraphrase"])
def test_captions_of_the_world_are_understood(language, split):
    right = total = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng, num_characters=1 + seed % 3)
        said = caption(scene, rng, language, split)
        reply = WRITER.read(said.text)
        assert reply.action == "draw", said.text
        for name, key in said.scene_facts.items():
            total, right = total + 1, right + (getattr(reply.page, name) == key)
        for facts, character in zip(said.facts, reply.page.characters, strict=True):
            for name in ("species", "colour", "accessory", "expression", "facing"):
                if name in facts:
                    total, right = total + 1, right + (character.attribute(name) == facts[name])
    assert right / total > 0.97


def test_reply_round_trips_through_json():
    reply = converse("a cat and a dog", "replace the dog with a fox and swap them").turns[-1].reply
    assert Reply.from_dict(reply.to_dict()) == reply
