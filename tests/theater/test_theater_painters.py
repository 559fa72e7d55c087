"""The painter's contract, kept by every painter; and what only the embedded one does."""

import json

import numpy as np
import pytest
from painters import tiny_painter

from huaben.diffusion.pipeline import PARTS, EmbeddedPainter
from huaben.errors import Cancelled, CheckpointError, ConfigError, ShapeError
from huaben.painting import LatentGuidance, PaintCharacter, Painter, PaintRequest
from huaben.stages.embedded.oracle import RendererPainter, locate, read_words

CROP = np.random.default_rng(1).integers(0, 256, (30, 20, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tiny():
    return tiny_painter()


@pytest.fixture(params=["renderer", "embedded"])
def painter(request, tiny):
    return RendererPainter() if request.param == "renderer" else tiny


def cat(**changes):
    return PaintCharacter(**({"id": "1", "phrase": "a red cat", "box": (0.1, 0.3, 0.5, 0.9)} | changes))


def ask(**changes):
    values = {"prompt": "a red cat on the beach", "size": (64, 96), "seed": 5, "steps": 3, "characters": (cat(),)}
    return PaintRequest(**(values | changes))


def test_every_painter_is_one(painter):
    assert isinstance(painter, Painter)


def test_picture_has_the_size_asked_for(painter):
    painting = painter.paint(ask())
    assert painting.image.shape == (64, 96, 3)
    assert painting.image.dtype == np.uint8
    assert painting.seed == 5
    assert painting.seconds > 0


def test_same_request_same_bytes_other_seed_other_bytes(painter):
    a, b, c = (painter.paint(ask(seed=seed)).image.tobytes() for seed in (5, 5, 6))
    assert a == b
    assert a != c


def test_steps_are_reported_in_order(painter):
    seen = []
    painter.paint(ask(), on_step=seen.append)
    assert [(progress.step, progress.steps) for progress in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[-1].preview.shape == (64, 96, 3)


def test_cancelling_stops_before_the_end(painter):
    steps = []
    with pytest.raises(Cancelled):
        painter.paint(ask(steps=5), on_step=steps.append, should_cancel=lambda: len(steps) >= 2)
    assert len(steps) == 2


@pytest.mark.parametrize("count", [0, 1, 4])
def test_any_number_of_characters_up_to_four(painter, count):
    characters = tuple(cat(id=str(i), box=(0.1 + 0.2 * i, 0.3, 0.25 + 0.2 * i, 0.9)) for i in range(count))
    assert painter.paint(ask(characters=characters)).image.shape == (64, 96, 3)


def test_chinese_and_unknown_words_are_no_error(painter):
    painter.paint(ask(prompt="海滩上的一只红色的猫 \U0001f431 zxqv", characters=(cat(phrase="一只红色的猫"),)))


def test_reference_changes_the_picture(tiny):
    plain = tiny.paint(ask()).image
    known = tiny.paint(ask(characters=(cat(reference=CROP, reference_facing="left"),))).image
    assert not np.array_equal(plain, known)


def test_reference_is_mirrored_when_the_character_turns_round(tiny):
    turned = tiny.paint(ask(characters=(cat(reference=CROP, reference_facing="left", facing="right"),))).image
    flipped = cat(reference=CROP[:, ::-1], reference_facing="right", facing="right")
    mirrored = tiny.paint(ask(characters=(flipped,))).image
    same = tiny.paint(ask(characters=(cat(reference=CROP, reference_facing="right", facing="right"),))).image
    np.testing.assert_array_equal(turned, mirrored)
    assert not np.array_equal(turned, same)


def test_box_and_phrase_change_the_picture(tiny):
    plain = tiny.paint(ask()).image
    assert not np.array_equal(plain, tiny.paint(ask(characters=(cat(box=(0.5, 0.3, 0.9, 0.9)),))).image)
    assert not np.array_equal(plain, tiny.paint(ask(characters=(cat(phrase="a blue dog"),))).image)


def test_a_character_without_a_box_is_left_to_the_words(tiny):
    np.testing.assert_array_equal(
        tiny.paint(ask(characters=(cat(box=None),))).image, tiny.paint(ask(characters=())).image
    )


def test_negative_prompt_acts_only_with_guidance(tiny):
    assert not np.array_equal(tiny.paint(ask(negative="a blue dog")).image, tiny.paint(ask()).image)
    painting = tiny.paint(ask(negative="a blue dog", guidance_scale=1.0))
    assert "negative_ignored" in [note.code for note in painting.warnings]


def test_long_prompt_is_cut_and_says_so(tiny):
    painting = tiny.paint(ask(prompt="a red cat on the beach " * 30))
    assert [note.code for note in painting.warnings] == ["prompt_cut"]


def test_latent_guidance_off_changes_nothing_and_on_changes_the_picture(tiny):
    canvas = np.full((64, 96, 3), 200, np.uint8)
    masks = np.zeros((1, 64, 96), bool)
    plain = tiny.paint(ask()).image
    off = LatentGuidance(canvas=canvas, masks=masks | True, fraction=0.0)
    empty = LatentGuidance(canvas=canvas, masks=masks, fraction=0.5)
    masks = masks.copy()
    masks[0, 20:50, 20:60] = True
    on = LatentGuidance(canvas=canvas, masks=masks, fraction=0.5)
    np.testing.assert_array_equal(tiny.paint(ask(guidance=off)).image, plain)
    np.testing.assert_array_equal(tiny.paint(ask(guidance=empty)).image, plain)
    assert not np.array_equal(tiny.paint(ask(guidance=on)).image, plain)


def test_a_sketch_set_in_at_the_end_is_the_picture_inside_its_mask(tiny):
    canvas = np.full((64, 96, 3), (220, 30, 30), np.uint8)
    masks = np.zeros((1, 64, 96), bool)
    masks[0, 16:48, 32:64] = True
    way = {"canvas": canvas, "masks": masks, "way": "set_in"}
    plain = tiny.paint(ask()).image
    last = tiny.paint(ask(guidance=LatentGuidance(**way, fraction=1.0))).image
    middle = tiny.paint(ask(guidance=LatentGuidance(**way, fraction=0.5))).image
    np.testing.assert_array_equal(last[17:47, 33:63], canvas[17:47, 33:63])
    np.testing.assert_array_equal(last[:16], plain[:16])
    np.testing.assert_array_equal(last[:, 64:], plain[:, 64:])
    rim = last[16, 40].astype(int)
    assert np.abs(rim - (2 * canvas[16, 40].astype(int) + plain[16, 40]) / 3).max() <= 1
    assert not np.array_equal(middle, last)
    assert not np.array_equal(middle, plain)
    np.testing.assert_array_equal(middle, tiny.paint(ask(guidance=LatentGuidance(**way, fraction=0.5))).image)


def test_an_unknown_way_of_guidance_is_refused():
    with pytest.raises(ConfigError, match="trace"):
        LatentGuidance(canvas=np.zeros((32, 32, 3), np.uint8), masks=np.zeros((1, 32, 32), bool), way="trace")


def test_too_many_characters_are_refused(tiny):
    with pytest.raises(ConfigError, match="5 characters"):
        tiny.paint(ask(characters=tuple(cat(id=str(i)) for i in range(5))))


def test_saved_pipeline_paints_the_same(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    loaded = EmbeddedPainter.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded.paint(ask()).image, tiny.paint(ask()).image)
    assert loaded.schedule.config == tiny.schedule.config
    assert len(loaded.paint(ask()).model) == 10


@pytest.mark.parametrize("part", PARTS)
def test_missing_part_is_named(tiny, tmp_path, part):
    import shutil

    tiny.save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / part)
    with pytest.raises(CheckpointError, match=part):
        EmbeddedPainter.from_pretrained(tmp_path)


def test_truncated_weights_and_wrong_index_are_checkpoint_errors(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    weights = tmp_path / "painter" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match="painter"):
        EmbeddedPainter.from_pretrained(tmp_path)
    weights.write_bytes(data)
    (tmp_path / "model_index.json").write_text(json.dumps({"schedule": {"beta_end": 7.0}}))
    with pytest.raises(CheckpointError, match="beta_end"):
        EmbeddedPainter.from_pretrained(tmp_path)


def test_parts_of_different_pipelines_are_refused(tiny):
    from huaben.clip.model import PRESETS, Clip

    with pytest.raises(CheckpointError, match="clip text width is 32"):
        EmbeddedPainter(
            painter=tiny.painter,
            autoencoder=tiny.autoencoder,
            clip=Clip(PRESETS["tiny"]),
            text=tiny.text,
            tokenizer=tiny.tokenizer,
        )


@pytest.mark.parametrize("size", [(63, 64), (64, 65), (48, 64), (528, 64), (64.0, 64), (True, 64), (64,)])
def test_impossible_sizes_are_refused_with_one_that_works(size):
    with pytest.raises(ConfigError, match=r"use \d+x\d+"):
        RendererPainter.limits.check(size, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": "  "}, "prompt is empty"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": True}, "seed=True"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
    ],
)
def test_impossible_requests_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        ask(**changes)


@pytest.mark.parametrize("box", [(0.5, 0.1, 0.5, 0.9), (0.1, 0.2, 1.4, 0.9), (0.1, 0.2, float("nan"), 0.9), (0, 0, 1)])
def test_impossible_boxes_are_refused(box):
    with pytest.raises(ConfigError, match="box"):
        cat(box=box)


def test_impossible_pictures_are_refused():
    with pytest.raises(ShapeError, match="reference"):
        cat(reference=np.zeros((8, 8), np.uint8))
    with pytest.raises(ShapeError, match="reference"):
        cat(reference=np.zeros((8, 8, 3)))
    with pytest.raises(ShapeError, match="canvas"):
        ask(guidance=LatentGuidance(canvas=np.zeros((32, 32, 3), np.uint8), masks=np.zeros((1, 32, 32), bool)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a small red cat wearing a bow tie", {"species": "cat", "colour": "red", "accessory": "bowtie"}),
        ("一只戴着帽子的红色小猫头鹰", {"species": "owl", "colour": "red", "accessory": "hat"}),
        ("two foxes at night, facing left", {"species": "fox", "background": "night", "facing": "left"}),
        ("nothing known", {}),
    ],
)
def test_renderer_reads_the_worlds_words(text, expected):
    assert expected.items() <= read_words(text).items()


def test_locate_finds_exactly_where_a_crop_came_from():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert locate(image, image[10:20, 30:60]) == (0.5, 0.25, 1.0, 0.5)
    assert locate(image, 255 - image[10:20, 30:60]) is None
    assert locate(image[:8], image) is None
