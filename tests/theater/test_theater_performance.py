"""A page to a picture: checks, retries, announcements and the cast (invariants 2, 5, 6, 14 and 17)."""

from dataclasses import replace

import numpy as np
import pytest
from painters import BlindReader, Recorder, character, page

from huaben.errors import Cancelled, ConfigError
from huaben.stages.embedded.oracle import RendererPainter, RendererReader
from huaben.theater.cast import Cast
from huaben.theater.performance import PerformanceConfig, attempt_seed, find_characters, perform

CONFIG = PerformanceConfig(size=(96, 96), steps=2)


def play(book_page, cast=None, painter=None, reader=None, seed=7, config=CONFIG, turn=1, **kwargs):
    painter = painter or Recorder()
    reader = reader or RendererReader(painter.painter)
    return painter, perform(
        book_page,
        cast or Cast(),
        prompt="on the beach",
        painter=painter,
        reader=reader,
        seed=seed,
        config=config,
        turn=turn,
        **kwargs,
    )


def test_the_renderer_is_always_right():
    painter, result = play(
        page(character(), character("2", "a blue dog", (0.6, 0.4, 0.9, 0.9), species="dog", colour="blue"))
    )
    assert len(painter.requests) == 1
    assert result.kept.right
    assert result.warnings == ()
    assert result.cast.ids == ("1", "2")
    assert all(finding.score > 0.9 for finding in result.kept.findings)


def test_two_failures_then_success_paint_three_times_and_join_the_cast_once():
    painter = Recorder()
    reader = BlindReader(painter.painter, failures=2)
    _, result = play(page(character()), painter=painter, reader=reader)
    seeds = [request.seed for request in painter.requests]
    assert len(seeds) == 3
    assert len(set(seeds)) == 3
    assert seeds == [attempt_seed(7, number) for number in range(3)]
    assert len(result.cast.entries) == 1
    assert result.seed == seeds[2]
    assert [note.code for note in result.warnings] == ["attempts_used"]


def test_a_character_that_never_appears_is_announced_and_not_remembered():
    painter = Recorder()
    _, result = play(page(character()), painter=painter, reader=BlindReader(painter.painter, failures=9))
    assert len(painter.requests) == 3
    assert result.cast.entries == ()
    assert [note.code for note in result.warnings] == ["best_of_attempts", "character_absent"]
    assert all(note.text(language) for note in result.warnings for language in ("en", "zh"))


def test_a_wrong_colour_is_named_in_both_languages():
    _, result = play(page(character(phrase="a blue cat")))
    note = result.warnings[-1]
    assert "red" in note.text("en")
    assert "blue" in note.text("en")
    assert "蓝色" in note.text("zh")
    assert result.cast.entries == ()


def test_known_characters_are_painted_after_their_reference_and_stay_the_same_individual():
    painter, first = play(page(character()))
    moved = page(character(phrase="a red cat with a hat", box=(0.5, 0.3, 0.9, 0.9), accessory="hat"))
    painter, second = play(moved, first.cast, painter, seed=99, turn=2)
    request = painter.requests[-1].characters[0]
    assert request.reference.tobytes() == first.cast.choose("1").crop.tobytes()
    assert second.kept.findings[0].similarity == pytest.approx(1.0, abs=1e-5)
    assert second.cast.choose("1").crop.tobytes() == first.cast.choose("1").crop.tobytes()
    assert second.cast.choose("1", "latest").look == ("cat", "red", "hat")


def test_without_references_the_individual_is_another_one():
    painter, first = play(page(character()))
    config = CONFIG.replace(use_references=False)
    _, second = play(page(character()), first.cast, painter, seed=99, config=config)
    assert abs(second.kept.findings[0].similarity) < 0.9


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    a, b, c = (play(page(character()), seed=seed)[1] for seed in (3, 3, 4))
    assert a.image.tobytes() == b.image.tobytes()
    assert a.image.tobytes() != c.image.tobytes()


def test_listing_characters_in_another_order_changes_nothing():
    one = character().replace(z=1)
    two = character("2", "a blue dog", (0.2, 0.4, 0.6, 0.9), species="dog", colour="blue").replace(z=2)
    a, b = (play(page(*order))[1].image.tobytes() for order in ((one, two), (two, one)))
    assert a == b


def test_without_a_reader_the_picture_is_unchecked_and_says_so():
    painter = RendererPainter()
    result = perform(page(character()), Cast(), prompt="x", painter=painter, reader=None, seed=1, config=CONFIG)
    assert [note.code for note in result.warnings] == ["unverified"]
    assert result.cast.entries == ()


def test_an_empty_page_is_a_valid_picture():
    painter, result = play(page())
    assert result.image.shape == (96, 96, 3)
    assert result.warnings == ()
    assert len(painter.requests) == 1


def test_guidance_is_off_at_zero_and_without_known_characters():
    painter, first = play(page(character()), config=CONFIG.replace(guided_fraction=0.2))
    assert painter.requests[0].guidance is None
    for config in (CONFIG.replace(guidance="off"), CONFIG.replace(guided_fraction=0.0)):
        play(page(character()), first.cast, painter, config=config)
        assert painter.requests[-1].guidance is None
    play(page(character()), first.cast, painter, config=CONFIG.replace(guided_fraction=0.2))
    guidance = painter.requests[-1].guidance
    assert guidance.fraction == 0.2
    assert guidance.way == "set_in"
    assert guidance.masks.any(axis=(1, 2)).all()


def test_a_recoloured_character_is_not_traced_and_says_so():
    painter, first = play(page(character()))
    blue = page(character(phrase="a blue cat", colour="blue"))
    _, second = play(blue, first.cast, painter, config=CONFIG.replace(guided_fraction=0.2))
    assert painter.requests[-1].guidance is None
    assert [note.code for note in second.warnings] == ["guidance_off"]
    assert [e.colour for e in second.cast.versions("1")] == ["red", "blue"]


def test_more_characters_than_fit_are_left_out_by_depth_and_named():
    many = [character(str(i), box=(0.1 * i, 0.5, 0.1 * i + 0.09, 0.9)).replace(z=i, name=f"cat {i}") for i in range(8)]
    painter, result = play(page(*many))
    assert [c.id for c in painter.requests[0].characters] == ["2", "3", "4", "5", "6", "7"]
    assert "cat 0, cat 1" in result.warnings[0].text("en")


def test_two_equal_characters_are_matched_by_place():
    left, right = character(), character("2", box=(0.6, 0.4, 0.9, 0.9))
    painter = RendererPainter()
    result = perform(
        page(left, right), Cast(), prompt="x", painter=painter, reader=RendererReader(painter), seed=1, config=CONFIG
    )
    swapped = find_characters((right, left), result.reading, Cast())
    assert [f.seen for f in result.kept.findings] == [f.seen for f in swapped][::-1]
    assert all(f.right for f in swapped)


def test_progress_names_the_attempt_and_cancelling_stops():
    painter = Recorder()
    seen = []
    play(
        page(character()),
        painter=painter,
        reader=BlindReader(painter.painter, 1),
        on_step=lambda attempt, progress: seen.append((attempt, progress.step)),
    )
    assert seen == [(0, 1), (0, 2), (1, 1), (1, 2)]
    with pytest.raises(Cancelled):
        play(page(character()), should_cancel=lambda: True)


def test_attempts_are_plain_json_values():
    import json

    _, result = play(page(character()))
    record = json.loads(json.dumps(result.kept.to_dict()))
    assert record["characters"][0] == {
        "id": "1",
        "found": True,
        "species": True,
        "colour": True,
        "place": True,
        "accessory": True,
        "expression": True,
        "facing": True,
        "similarity": None,
    }
    assert isinstance(result.reading.characters[0].identity, np.ndarray)


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="attempts=0"):
        PerformanceConfig(attempts=0)
    with pytest.raises(ConfigError, match="100x128"):
        play(page(character()), config=CONFIG.replace(size=(100, 128)))


def test_an_unknown_way_of_guidance_is_refused():
    with pytest.raises(ConfigError, match="guidance='trace'"):
        CONFIG.replace(guidance="trace")
    with pytest.raises(ConfigError, match="guided_fraction"):
        CONFIG.replace(guided_fraction=1.5)


class Elsewhere(BlindReader):
    """Reads like the oracle, but sees another background the first ``failures`` times."""

    def detect(self, images, *, masks=False):
        self.calls += 1
        readings = self.reader.detect(images, masks=masks)
        if self.calls <= self.failures:
            return [replace(reading, background="snow") for reading in readings]
        return readings


def test_another_background_is_painted_again_and_said():
    painter = Recorder()
    _, once = play(page(character()), painter=painter, reader=Elsewhere(painter.painter, 1))
    assert [attempt.background_right for attempt in once.attempts] == [False, True]
    assert [note.code for note in once.warnings] == ["attempts_used"]
    _, always = play(page(character()), painter=painter, reader=Elsewhere(painter.painter, 9))
    assert [note.code for note in always.warnings] == ["best_of_attempts", "background_wrong"]


class Sketching(Recorder):
    """A painter that wants sketches."""

    limits = RendererPainter.limits.replace(sketch=True, guidance=True)


def test_the_cast_keeps_the_sketch_until_the_look_changes():
    painter = Sketching()
    _, first = play(page(character()), painter=painter)
    entry = first.cast.choose("1")
    drawn = painter.requests[0].characters[0].reference
    np.testing.assert_array_equal(entry.crop, drawn)
    play(page(character()), first.cast, painter)
    np.testing.assert_array_equal(painter.requests[-1].characters[0].reference, drawn)
    for look in ({"expression": "sad"}, {"accessory": "crown"}):
        play(page(character(**look)), first.cast, painter)
        assert not np.array_equal(painter.requests[-1].characters[0].reference, drawn), look


class Moody:
    """Reads everything right but takes everyone for angry, with a stated certainty."""

    def __init__(self, painter, certainty):
        self.reader, self.certainty = RendererReader(painter), certainty

    def detect(self, images, *, masks=False):
        def angry(seen):
            likely = np.full(5, (1 - self.certainty) / 4, np.float32)
            likely[3] = self.certainty
            return replace(seen, expression="angry", probabilities={**seen.probabilities, "expression": likely})

        readings = self.reader.detect(images, masks=masks)
        return [replace(reading, characters=tuple(map(angry, reading.characters))) for reading in readings]


@pytest.mark.parametrize(("certainty", "told"), [(0.97, True), (0.6, False)])
def test_another_expression_is_told_if_the_reader_is_sure_and_keeps_the_picture(certainty, told):
    painter = Recorder()
    _, result = play(page(character(expression="happy")), painter=painter, reader=Moody(painter.painter, certainty))
    assert len(painter.requests) == 1
    assert result.kept.right and not result.kept.findings[0].all_right
    assert [note.code for note in result.warnings] == (["character_expression"] if told else [])
    if told:
        assert "angry" in result.warnings[0].text("en") and "生气" in result.warnings[0].text("zh")
