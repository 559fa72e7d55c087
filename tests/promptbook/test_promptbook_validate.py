"""Repair of pages: every rule, idempotence, and valid boxes left alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from huaben.errors import PromptBookError, PromptBookParseError
from huaben.promptbook import (
    Character,
    Page,
    PromptBook,
    check_page,
    extract_json,
    head_noun,
    largest_free_rectangle,
    overlap_share,
    place_boxes,
    read_page,
    repair_page,
)
from huaben.promptbook.layout import area, intersection, is_inside


def entry(id="1", box=(0.1, 0.5, 0.4, 0.9), **changes):
    return {"id": id, "name": "cat", "prompt": "a red cat", "box": list(box)} | changes


def raw(*entries, **changes):
    return (
        {"background": "beach", "style": "flat", "negative": "", "caption": "a cat"}
        | changes
        | {"characters": list(entries)}
    )


def character(index, box, z=0):
    return Character(id=str(index + 1), name=f"n{index}", prompt=f"p{index}", category="cat", box=box, z=z)


def codes(said):
    return [warning.code for warning in said]


def test_valid_page_passes_without_a_word():
    page, said = read_page(raw(entry(), entry("2", (0.5, 0.5, 0.8, 0.9))))
    assert said == ()
    assert page.characters[0].box == (0.1, 0.5, 0.4, 0.9)
    assert check_page(page) is page


@pytest.mark.parametrize(
    "bad",
    [
        entry(box=(0.1, 0.2, 0.3)),
        entry(box=(0.1, 0.2, "0.3", 0.4)),
        entry(box=(0.1, 0.2, None, 0.4)),
        entry(box=(0.1, 0.2, float("nan"), 0.4)),
        entry(box=(0.1, 0.2, float("inf"), 0.4)),
        entry(box=(0.1, 0.2, 10**400, 0.4)),
        entry(box=(True, 0.2, 0.3, 0.4)),
        entry(prompt=3),
        entry(id=["1"]),
        {"id": "1", "name": "cat"},
        "a cat",
        None,
        7,
    ],
)
def test_unreadable_entry_is_rejected_and_siblings_are_kept(bad):
    page, said = read_page(raw(bad, entry("2")))
    assert [c.id for c in page.characters] == ["2"]
    assert codes(said) == ["entry_rejected"]
    assert said[0].message("zh") != said[0].message("en")


@pytest.mark.parametrize("value", [None, [], "x", 3])
def test_page_that_is_no_object_is_an_error(value):
    with pytest.raises(PromptBookParseError):
        read_page(value)


def test_characters_that_are_no_list_are_an_error():
    with pytest.raises(PromptBookParseError):
        read_page(raw() | {"characters": {"a": 1}})


def test_empty_character_list_is_a_valid_page():
    page, said = read_page(raw())
    assert page.characters == ()
    assert said == ()


@pytest.mark.parametrize(("unit", "scale"), [("1000", 1000), ("1024", 1024), ("100", 100)])
def test_other_units_are_rescaled_once(unit, scale):
    boxes = [(0.1, 0.5, 0.4, 0.9), (0.5, 0.5, 0.8, 1.0)]
    page, said = read_page(raw(*(entry(str(i), [v * scale for v in box]) for i, box in enumerate(boxes))))
    assert codes(said) == ["units"]
    assert unit in said[0].en
    for found, box in zip(page.characters, boxes, strict=True):
        assert found.box == pytest.approx(box)


@pytest.mark.parametrize(
    ("box", "code"),
    [
        ((0.8, 0.5, 1.1, 0.9), "box_shifted"),
        ((-0.2, 0.5, 1.3, 0.9), "box_scaled"),
        ((1.2, 0.5, 1.5, 0.9), "box_placed"),
        ((0.3, 0.5, 0.3, 0.9), "box_placed"),
        ((0.0, 0.0, 1.0, 1.0), "box_covers"),
        ((0.5, 0.5, 0.52, 0.52), "box_enlarged"),
        ((0.4, 0.9, 0.1, 0.5), "corners_swapped"),
    ],
)
def test_impossible_boxes_are_repaired(box, code):
    page, said = read_page(raw(entry(box=box)))
    assert codes(said) == [code]
    assert said[0].character == "1"
    assert is_inside(page.characters[0].box)


def test_shifted_box_keeps_its_size_and_scaled_one_its_aspect():
    page, _ = read_page(raw(entry(box=(0.8, 0.5, 1.1, 0.9))))
    assert page.characters[0].box == (0.7, 0.5, 1.0, 0.9)
    page, _ = read_page(raw(entry(box=(-0.5, 0.4, 1.5, 0.9))))
    x0, y0, x1, y1 = page.characters[0].box
    assert (x1 - x0) / (y1 - y0) == pytest.approx(4, rel=0.01)


def test_identical_boxes_are_separated_and_the_front_one_stays():
    page, said = read_page(raw(entry(z=1), entry("2", z=0)))
    assert codes(said) == ["overlap"]
    assert page.characters[0].box == (0.1, 0.5, 0.4, 0.9)
    assert overlap_share(page.characters[1].box, page.characters[0].box) <= 0.7


def test_moderate_overlap_is_allowed():
    page, said = read_page(raw(entry(), entry("2", (0.25, 0.5, 0.55, 0.9))))
    assert said == ()
    assert page.characters[1].box == (0.25, 0.5, 0.55, 0.9)


def test_canvas_covering_box_goes_behind_and_is_not_dropped():
    page, said = read_page(raw(entry(box=(0, 0, 1, 1), z=5), entry("2")))
    assert codes(said) == ["box_covers"]
    assert [c.id for c in page.back_to_front()] == ["1", "2"]


def test_too_many_characters_keep_the_nearest_and_mention_the_rest():
    entries = [entry(str(i), (0.16 * i, 0.5, 0.16 * i + 0.15, 0.9), z=i) for i in range(6)]
    page, said = read_page(raw(*entries), max_characters=4)
    assert [c.id for c in page.characters] == ["2", "3", "4", "5"]
    assert codes(said) == ["too_many", "too_many"]
    assert page.background == "beach, with a red cat, a red cat"
    page, said = read_page(raw(*entries))
    assert len(page.characters) == 6
    assert said == ()


def test_id_reused_for_another_category_gets_a_fresh_one():
    book = PromptBook().add(read_page(raw(entry(), entry("2", (0.5, 0.5, 0.8, 0.9))))[0])
    page, said = read_page(raw(entry(name="dog", prompt="a dog", category="dog")), book=book)
    assert codes(said) == ["id_reused"]
    assert page.characters[0].id == "3"
    book.add(page)


def test_repeated_ids_are_numbered():
    page, said = read_page(raw(entry(), entry("1", (0.5, 0.5, 0.8, 0.9))))
    assert [c.key for c in page.characters] == [("1", 0), ("1", 2)]
    assert codes(said) == ["id_duplicate"]


def test_missing_ids_are_given_without_clashing():
    page, said = read_page(raw(entry(None), entry("1", (0.5, 0.5, 0.8, 0.9))))
    assert [c.id for c in page.characters] == ["2", "1"]
    assert said == ()


def test_empty_background_falls_back():
    page, said = read_page(raw(entry(), background=" "))
    assert page.background == "plain background"
    assert codes(said) == ["empty_background"]
    book = PromptBook().add(read_page(raw(entry()))[0])
    page, _ = read_page(raw(entry(), background=None), book=book)
    assert page.background == "beach"


def test_negative_naming_a_present_character_is_dropped_unless_the_caption_asks():
    page, said = read_page(raw(entry(), negative="cat, rain"))
    assert page.negative == "rain"
    assert codes(said) == ["negative_dropped"]
    page, said = read_page(raw(entry(), negative="cat", caption="remove the cat"))
    assert page.characters == ()
    assert page.negative == "cat"
    assert codes(said) == ["negative_removed"]
    page, said = read_page(raw(entry(name="猫", prompt="红色的猫"), negative="猫", caption="把猫去掉"))
    assert page.characters == ()
    page, said = read_page(raw(entry(), negative="None"))
    assert page.negative == ""


def test_empty_caption_is_said():
    assert codes(read_page(raw(entry(), caption=""))[1]) == ["empty_caption"]


def test_wrong_types_of_side_fields_are_ignored_with_a_warning():
    page, said = read_page(raw(entry(z=True, instance=0, attributes=[1]), style=3))
    assert codes(said) == ["field_ignored"] * 4
    assert (page.style, page.characters[0].z, page.characters[0].instance) == ("", 0, None)


def test_check_page_names_the_first_repair():
    with pytest.raises(PromptBookError, match="outside"):
        check_page(Page(background="b", caption="c", characters=(character(0, (0.8, 0.5, 1.1, 0.9)),)))


coordinates = st.floats(-1.5, 2.0) | st.floats(-100, 1500) | st.sampled_from([0.0, 1.0, 0.5])
any_boxes = st.tuples(coordinates, coordinates, coordinates, coordinates)
any_pages = st.lists(st.tuples(any_boxes, st.integers(-1, 2)), max_size=6).map(
    lambda items: Page(
        background="b", caption="c", characters=tuple(character(i, box, z) for i, (box, z) in enumerate(items))
    )
)


@settings(max_examples=150, deadline=None)
@given(any_pages)
def test_repair_ends_inside_the_canvas_and_is_idempotent(page):
    repaired, _ = repair_page(page)
    assert len(repaired.characters) <= 6
    assert all(is_inside(c.box) for c in repaired.characters)
    assert repair_page(repaired)[0] == repaired


sides = st.floats(0.13, 0.45)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 0.55), st.floats(0, 0.55), sides, sides), max_size=4))
def test_valid_boxes_are_untouched(items):
    kept = []
    for x, y, w, h in items:
        box = (x, y, x + w, y + h)
        if all(max(overlap_share(box, o), overlap_share(o, box)) <= 0.7 for o in kept):
            kept.append(box)
    page = Page(background="b", caption="c", characters=tuple(character(i, box) for i, box in enumerate(kept)))
    assert repair_page(page) == (page, ())


unit_boxes = st.tuples(st.floats(0, 0.8), st.floats(0, 0.8), st.floats(0.05, 0.5), st.floats(0.05, 0.5)).map(
    lambda b: (b[0], b[1], min(1.0, b[0] + b[2]), min(1.0, b[1] + b[3]))
)


@settings(max_examples=60, deadline=None)
@given(st.lists(unit_boxes, max_size=4))
def test_largest_free_rectangle_is_free_and_order_free(boxes):
    found = largest_free_rectangle(boxes)
    assert found == largest_free_rectangle(reversed(boxes))
    if found is not None:
        assert all(intersection(found, box) == 0 for box in boxes)
    if len(boxes) == 1:
        assert found is not None
        x0, y0, x1, y1 = boxes[0]
        assert area(found) == pytest.approx(max(x0, 1 - x1, y0, 1 - y1))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0.15, 0.35), st.floats(0.15, 0.4)), min_size=1, max_size=4))
def test_placed_boxes_are_inside_and_apart(sizes):
    boxes = place_boxes(sizes)
    assert all(is_inside(box) for box in boxes)
    assert all(overlap_share(a, b) < 0.5 for i, a in enumerate(boxes) for b in boxes[:i])


def test_model_answers_are_read_through_fences_talk_and_trailing_commas():
    text = 'Sure! {here}\n```json\n{"a": [1, 2,], "b": "x,} \\" {",}\n```'
    assert extract_json(text.replace("{here}", "here:")) == {"a": [1, 2], "b": 'x,} " {'}
    for broken in ("no json", '{"a": ', "{a}"):
        with pytest.raises(PromptBookParseError):
            extract_json(broken)
    page, said = read_page(
        extract_json('{"caption": "c", "background": "b", "characters": [{"name": "x", "box": [NaN, 0, 1, 1]}]}')
    )
    assert page.characters == ()
    assert codes(said) == ["entry_rejected"]


@pytest.mark.parametrize(
    ("prompt", "noun"),
    [("boy with a red hat", "boy"), ("attentive lion", "lion"), ("戴着帽子的红色小猫", "红色小猫"), ("", "")],
)
def test_head_noun_stops_at_prepositions(prompt, noun):
    assert head_noun(prompt) == noun
