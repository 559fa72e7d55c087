"""The prompt book: records, text forms, edits and the differ."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from huaben.errors import PromptBookError, PromptBookParseError
from huaben.promptbook import (
    AddCharacter,
    ChangeAttributes,
    Character,
    MoveCharacter,
    Page,
    PromptBook,
    RemoveCharacter,
    ReplaceCharacter,
    ResizeCharacter,
    RestorePage,
    SetBackground,
    SetCount,
    SetNegative,
    SetStyle,
    apply_edits,
    diff,
    edit_from_dict,
    edit_to_dict,
    merge_description,
    parse,
    parse_page,
    read_cmig_turn,
    read_labelled,
    render,
    sorted_attributes,
    write_cmig_turn,
    write_labelled,
)

texts = st.text(max_size=12) | st.sampled_from(["", '"', ": ", "：", "=", "a = b", "猫", "页：1", " x", "\n", "\u2028"])
words = st.text(min_size=1, max_size=6)
numbers = st.floats(-2, 2, allow_nan=False)
boxes = st.tuples(numbers, numbers, numbers, numbers)
attribute_sets = st.dictionaries(words, texts, max_size=3).map(sorted_attributes)


def characters(id=words):
    return st.builds(
        Character,
        id=id,
        name=texts,
        prompt=texts,
        category=texts,
        box=boxes,
        z=st.integers(-3, 9),
        status=st.sampled_from(["new", "kept", "edited"]),
        attributes=attribute_sets,
        instance=st.none() | st.integers(1, 9),
    )


pages = st.builds(
    Page,
    background=texts,
    style=texts,
    negative=texts,
    caption=texts,
    characters=st.lists(characters(), max_size=3, unique_by=lambda c: c.key).map(tuple),
    removed=st.lists(words, max_size=2).map(tuple),
    attributes=attribute_sets,
)
books = st.builds(
    PromptBook,
    pages=st.lists(pages, max_size=3).map(tuple),
    descriptions=attribute_sets,
    next_id=st.integers(1, 99),
)


def cat(id="1", **changes):
    values = {"id": id, "name": "cat", "prompt": "a red cat", "category": "cat", "box": (0.1, 0.5, 0.4, 0.9)}
    return Character(**values | {"attributes": (("colour", "red"), ("species", "cat"))} | changes)


def dog(id="2", **changes):
    return cat(id, name="dog", prompt="a dog", category="dog", box=(0.6, 0.5, 0.9, 0.9), z=1, **changes)


@settings(max_examples=60, deadline=None)
@given(pages, st.sampled_from(["en", "zh"]))
def test_page_text_round_trips(page, language):
    assert parse_page(render(page, language)) == page


@settings(max_examples=40, deadline=None)
@given(books, st.sampled_from(["en", "zh"]))
def test_book_text_and_json_round_trip(book, language):
    assert parse(render(book, language)) == book
    assert PromptBook.from_json(book.to_json()) == book


def test_json_is_strict():
    good = PromptBook(pages=(Page(background="beach", characters=(cat(),)),)).to_dict()
    with pytest.raises(PromptBookParseError, match="backgroun"):
        PromptBook.from_dict({**good, "pages": [{"backgroun": "beach"}]})
    with pytest.raises(PromptBookParseError) as error:
        PromptBook.from_json('{"pages": [],\n "next_id": NaN}')
    assert "NaN" in error.value.message
    with pytest.raises(PromptBookParseError) as error:
        PromptBook.from_json('{"pages": [],\n oops}')
    assert error.value.line == 2


@pytest.mark.parametrize("name", ['0"', '"', 'a"b', "a=b", '="', "="])
def test_attribute_names_with_quotes_and_equals_signs_round_trip(name):
    page = PAGE.replace(attributes=((name, ""),))
    assert parse_page(render(page, "en")) == page


def test_text_errors_name_the_line():
    text = render(Page(background="beach", characters=(cat(),)))
    with pytest.raises(PromptBookParseError) as error:
        parse(text.replace("box:", "bux:"))
    assert error.value.line == text.split("\n").index("  box: 0.1, 0.5, 0.4, 0.9") + 1
    with pytest.raises(PromptBookParseError):
        parse("hello")
    with pytest.raises(PromptBookParseError):
        parse(text + "  z: 3\n")


def test_public_page_has_exactly_the_documented_keys():
    page = Page(background="beach", style="ink", characters=(cat(),))
    assert page.to_public() == {
        "background": "beach",
        "style": "ink",
        "negative": "",
        "characters": [{"id": "1", "name": "cat", "prompt": "a red cat", "box": [0.1, 0.5, 0.4, 0.9]}],
    }


CMIG = {
    "caption": "A lion watches the eagle.",
    "objects": [["attentive lion", [40, 250, 180, 200], 3], ["soaring eagle", [300, 33, 129, 77], 4]],
    "background": "a quiet library",
    "negative": "None",
}


def test_cmig_turn_round_trips():
    page = read_cmig_turn(CMIG)
    assert write_cmig_turn(page) == CMIG
    assert page.negative == ""
    assert [character.category for character in page.characters] == ["lion", "eagle"]
    assert page.characters[0].z < page.characters[1].z, "the larger box is farther back"


@given(st.lists(st.tuples(*[st.integers(0, 512)] * 4), max_size=5), st.lists(st.integers(1, 3), min_size=5, max_size=5))
def test_cmig_boxes_and_shared_ids_round_trip(pixels, ids):
    objects = [["red apple", list(box), id] for box, id in zip(pixels, ids, strict=False)]
    turn = {**CMIG, "objects": objects, "negative": "worm"}
    assert write_cmig_turn(read_cmig_turn(turn)) == turn


def test_labelled_text_round_trips_and_executes_nothing():
    page = read_cmig_turn(CMIG)
    text = write_labelled(page)
    assert read_labelled(text, caption=page.caption) == page
    assert write_labelled(read_labelled(text)) == text
    assert read_labelled("Objects: there are no objects\nBackground prompt: sky").characters == ()
    with pytest.raises(PromptBookParseError) as error:
        read_labelled("Hello\nObjects: [__import__('os').getcwd()]")
    assert error.value.line == 2
    with pytest.raises(PromptBookParseError, match="twice"):
        read_labelled(text + "Background prompt: again")


def test_boy_with_a_red_hat_is_a_boy():
    turn = {**CMIG, "objects": [["boy with a red hat", [1, 2, 3, 4], 1], ["一只戴帽子的猫", [1, 2, 3, 4], 2]]}
    assert [character.category for character in read_cmig_turn(turn).characters] == ["boy", "猫"]


PAGE = Page(background="beach", style="flat", characters=(cat(), dog(), cat("3", box=(0.4, 0.1, 0.6, 0.3))))
EDITS = [
    AddCharacter(character=dog("9")),
    AddCharacter(character=dog("9"), index=0),
    RemoveCharacter(id="1"),
    ReplaceCharacter(id="2", character=cat("9")),
    ChangeAttributes(id="1", attributes=(("colour", "blue"), ("hat", "yes")), prompt="a blue cat", name="kitty"),
    ChangeAttributes(id="1", dropped=("colour",)),
    MoveCharacter(id="2", box=(0.0, 0.0, 0.3, 0.4)),
    MoveCharacter(id="2", box=(0.0, 0.0, 0.3, 0.4), z=7),
    ResizeCharacter(id="1", box=(0.0, 0.2, 0.5, 0.9), prompt="a big cat"),
    SetCount(category="cat", added=(cat("9"), cat("8"))),
    SetCount(category="cat", removed=("3", "1")),
    SetBackground(background="snow"),
    SetStyle(style="ink"),
    SetNegative(negative="rain"),
    RestorePage(page=Page(background="sea")),
]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.kind)
def test_edit_is_undone_by_its_inverse_and_survives_json(edit):
    after, inverse = edit.apply(PAGE)
    assert after != PAGE
    assert inverse.apply(after)[0] == PAGE
    assert edit_from_dict(edit_to_dict(edit)) == edit
    assert edit_from_dict(edit_to_dict(inverse)) == inverse


@pytest.mark.parametrize("edit", EDITS[:11], ids=lambda edit: edit.kind)
def test_edit_leaves_other_characters_untouched(edit):
    touched = {getattr(edit, "id", None), *getattr(edit, "removed", ())}
    after, _ = edit.apply(PAGE)
    for character in PAGE.characters:
        if character.id not in touched:
            assert character in after.characters


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_sequence_of_edits_is_undone(data):
    page = PAGE
    edits = []
    for step in range(data.draw(st.integers(0, 5))):
        options = [SetBackground(background=f"b{step}"), AddCharacter(character=dog(f"n{step}"), index=0)]
        for character in page.characters:
            options += [
                RemoveCharacter(id=character.id),
                MoveCharacter(id=character.id, box=(0.0, 0.0, 0.1 * (step + 1), 0.5)),
                ChangeAttributes(id=character.id, attributes=(("colour", "blue"),), dropped=("species",)),
                ReplaceCharacter(id=character.id, character=dog(f"r{step}")),
                SetCount(category=character.category, removed=(character.id,)),
            ]
        edits.append(data.draw(st.sampled_from(options)))
        page, _ = edits[-1].apply(page)
    after, inverses = apply_edits(PAGE, tuple(edits))
    assert after == page
    assert apply_edits(after, inverses)[0] == PAGE


def test_unknown_id_lists_the_known_ones():
    with pytest.raises(PromptBookError) as error:
        RemoveCharacter(id="7").apply(PAGE)
    assert "1 (cat)" in error.value.hint
    assert "2 (dog)" in error.value.hint


def test_replace_refuses_an_id_for_another_category():
    with pytest.raises(PromptBookError, match="reused"):
        ReplaceCharacter(id="1", character=dog("1")).apply(PAGE)


def test_diff_marks_new_kept_edited_and_removed():
    new = PAGE.replace(characters=(cat(prompt="a blue cat"), cat("3", box=(0.4, 0.1, 0.6, 0.3)), dog("4")))
    difference = diff(PAGE, new)
    assert difference.statuses == (("1", 0, "edited"), ("3", 0, "kept"), ("4", 0, "new"))
    assert difference.removed == ("2",)


def test_book_refuses_silent_id_reuse_even_after_a_gap():
    book = PromptBook().add(PAGE).add(PAGE.replace(characters=(dog(),)))
    with pytest.raises(PromptBookError, match="reused"):
        book.add(PAGE.replace(characters=(dog("1"),)))
    assert book.fresh_ids(2) == ("4", "5")
    back = book.add(PAGE)
    assert [character.status for character in back.pages[-1].characters] == ["kept", "kept", "kept"]


def test_canonical_description_is_stored_once_and_renewed_by_attribute_edits():
    book = PromptBook().add(PAGE)
    book = book.add(PAGE.replace(characters=(cat(prompt="the cat, running"), dog())))
    assert book.description("1") == "a red cat"
    assert book.described(book.pages[-1].characters[0]).prompt == "the cat, running, a red cat"
    book = book.add(PAGE.replace(characters=(cat(prompt="a blue cat").with_attributes(colour="blue"),)))
    assert book.description("1") == "a blue cat"
    assert merge_description("a blue cat on a mat", "a blue cat") == "a blue cat on a mat"


def test_page_refuses_duplicates_and_non_finite_boxes():
    with pytest.raises(PromptBookError, match="twice"):
        Page(characters=(cat(), cat()))
    with pytest.raises(PromptBookError, match="finite"):
        cat(box=(0.0, 0.0, float("nan"), 1.0))


def test_promptbook_and_dialogue_import_without_torch():
    code = "import sys, huaben.promptbook, huaben.dialogue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
