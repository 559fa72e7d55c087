"""The detector: shapes, geometry, matching, saving; nothing here needs trained weights."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from huaben.errors import CheckpointError, ConfigError, DataError, ShapeError
from huaben.world.detector import (
    PRESETS,
    Detector,
    DetectorConfig,
    Found,
    ReadCharacter,
    Reading,
    apply_correction,
    correction_to,
    crop,
    enlarged,
    grow,
    letterbox,
    paste_mask,
    pick_peaks,
    suppress,
    unletterbox,
)
from huaben.world.matching import mask_iou, match, match_boxes, pairwise_iou, score_reading
from huaben.world.scene import SceneCharacter, SceneGraph
from huaben.world.vocabulary import KEYS

TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector(TINY).eval()


def seen(species: str, colour: str, box: tuple[float, float, float, float], **changes: object) -> ReadCharacter:
    values: dict[str, object] = {
        "accessory": "none",
        "expression": "happy",
        "facing": "left",
        "score": 0.9,
        "probabilities": {name: np.full(len(KEYS[name]), 1 / len(KEYS[name])) for name in ("species", "colour")},
        "identity": np.eye(32, dtype=np.float32)[0],
    }
    return ReadCharacter(species=species, colour=colour, box=box, **(values | changes))


def test_forward_shapes(detector: Detector) -> None:
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.6], [0.4, 0.4, 0.9, 0.9], [0.0, 0.2, 0.3, 0.8]])
    found, read = detector(torch.zeros(2, 3, 64, 64), boxes, torch.tensor([0, 0, 1]))
    assert found.heat.shape == (2, 8, 8)
    assert found.boxes.shape == (2, 8, 8, 4)
    assert found.pictures["background"].shape == (2, len(KEYS["background"]))
    assert found.pictures["style"].shape == (2, len(KEYS["style"]))
    for name in ("species", "colour", "accessory", "expression", "facing"):
        assert read.characters[name].shape == (3, len(KEYS[name]))
    assert read.masks.shape == (3, 12, 12)
    torch.testing.assert_close(read.identity.norm(dim=-1), torch.ones(3))


def test_every_preset_reads_a_box() -> None:
    for config in PRESETS.values():
        model = Detector(config).eval()
        read = model.read(torch.zeros(1, 3, config.image_size, config.image_size), torch.tensor([[0.1, 0.1, 0.5, 0.6]]),
                          torch.tensor([0]))  # fmt: skip
        assert read.masks.shape == (1, config.mask_size, config.mask_size)
        assert read.identity.shape == (1, config.identity_size)


def test_detect_takes_arrays_of_any_size_and_tensors(detector: Detector) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((64, 64, 3), (40, 90, 3), (200, 120, 3))]
    readings = detector.detect(arrays, masks=True)
    assert len(readings) == 3
    assert len(detector.detect(arrays[0])) == 1
    one = detector.detect(torch.from_numpy(arrays[0]).permute(2, 0, 1)[None].float() / 127.5 - 1)
    assert one[0].to_dict() == detector.detect(arrays[0])[0].to_dict()


@pytest.mark.parametrize(
    "images",
    [torch.zeros(3, 64, 64), torch.zeros(1, 3, 64, 64, dtype=torch.uint8), [np.zeros((64, 64), np.uint8)],
     [np.zeros((64, 64, 3), np.float32)]],
)  # fmt: skip
def test_detect_refuses_what_is_not_a_picture(detector: Detector, images: object) -> None:
    with pytest.raises(ShapeError, match="expected"):
        detector.detect(images)  # type: ignore[arg-type]


def test_batching_does_not_change_readings(detector: Detector) -> None:
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(5)]
    loose = Detector(TINY.replace(score_threshold=0.001)).eval()
    loose.load_state_dict(detector.state_dict())
    together, apart = loose.detect(images), loose.detect(images, batch_size=2)
    assert any(reading.characters for reading in together)
    for a, b in zip(together, apart, strict=True):
        assert [c.species for c in a.characters] == [c.species for c in b.characters]
        np.testing.assert_allclose([c.box for c in a.characters], [c.box for c in b.characters], atol=1e-5)


def test_a_cold_heatmap_means_no_characters(detector: Detector) -> None:
    empty = Detector(TINY).eval()
    empty.load_state_dict(detector.state_dict())
    with torch.no_grad():
        empty.finder.head[-1].bias[0] = -20.0
    reading = empty.detect(np.zeros((64, 64, 3), np.uint8))[0]
    assert reading.characters == ()
    assert reading.to_scene().characters == ()
    assert reading.to_scene().background in KEYS["background"]


def synthetic(boxes: list[tuple[float, float, float, float]], scores: list[float]) -> Found:
    """A finder's output with one sharp peak per box, each proposing exactly that box."""
    size = TINY.grid_size
    heat, table = torch.full((1, size, size), -9.0), torch.zeros(1, size, size, 4)
    for box, score in zip(boxes, scores, strict=True):
        x, y = int((box[0] + box[2]) / 2 * size), int((box[1] + box[3]) / 2 * size)
        heat[0, y, x] = torch.logit(torch.tensor(score))
        table[0, y, x] = torch.tensor(box)
    return Found(heat, table, {})


def test_peaks_give_back_the_boxes_exactly() -> None:
    wanted = [(0.1, 0.2, 0.4, 0.7), (0.5, 0.3, 0.95, 0.8)]
    boxes, scores, index = pick_peaks(synthetic(wanted, [0.9, 0.6]), TINY)
    np.testing.assert_allclose(boxes.numpy(), wanted, atol=1e-7)
    np.testing.assert_allclose(scores.numpy(), [0.9, 0.6], atol=1e-6)
    assert index.tolist() == [0, 0]
    assert len(pick_peaks(synthetic(wanted, [0.9, 0.1]), TINY)[0]) == 1


def test_finder_boxes_are_centred_in_their_cells(detector: Detector) -> None:
    raw = torch.zeros(1, 4, 8, 8)
    raw[:, 2:] = float(np.log(0.25))
    raw[0, 0, 2, 5] = 0.5
    boxes = detector.finder.boxes(raw)
    np.testing.assert_allclose(boxes[0, 2, 5].numpy(), [6 / 8 - 0.125, 2.5 / 8 - 0.125, 6 / 8 + 0.125, 2.5 / 8 + 0.125])


def test_suppress_keeps_the_stronger_of_a_pair_and_other_pictures() -> None:
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.12, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9]])
    kept = suppress(boxes, torch.tensor([0.5, 0.9, 0.4, 0.8]), torch.tensor([0, 0, 1, 0]), 0.5)
    assert kept == [1, 3, 2]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 128), (300, 100), (32, 20)])
def test_letterbox_maps_a_drawn_box_to_the_canvas_and_back(height: int, width: int) -> None:
    box = torch.tensor([0.25, 0.5, 0.75, 1.0])
    picture = torch.zeros(3, height, width)
    picture[:, height // 2 :, width // 4 : 3 * width // 4] = 1.0
    canvas, scale = letterbox(picture, 64)
    assert canvas.shape == (3, 64, 64)
    on_canvas = box * torch.tensor([*scale, *scale])
    ys, xs = (canvas[0] > 0.5).nonzero(as_tuple=True)
    drawn = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / 64
    assert (drawn - on_canvas).abs().max() <= 1.01 / 64
    torch.testing.assert_close(unletterbox(on_canvas, scale), box)


def test_crop_of_a_linear_picture_is_linear() -> None:
    x = (torch.arange(64) + 0.5) / 64
    picture = x[None, None, None, :].expand(1, 1, 64, 64).contiguous()
    view = crop(picture, torch.tensor([[0.25, 0.25, 0.75, 0.5]]), torch.tensor([0]), 16)
    expected = 0.25 + 0.5 * (torch.arange(16) + 0.5) / 16
    torch.testing.assert_close(view[0, 0], expected.expand(16, 16), atol=1e-5, rtol=0)
    outside = crop(picture, torch.tensor([[-1.0, -1.0, -0.5, -0.5]]), torch.tensor([0]), 16)
    assert outside.abs().max() == 0
    assert crop(picture, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 16).shape == (0, 1, 16, 16)


def test_correction_is_undone_by_its_inverse() -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(20, 2, generator=generator) * 0.5
    true = torch.cat([low, low + 0.2 + 0.2 * torch.rand(20, 2, generator=generator)], 1)
    guess = true + 0.03 * (torch.rand(20, 4, generator=generator) - 0.5)
    torch.testing.assert_close(apply_correction(guess, correction_to(guess, true)), true)
    torch.testing.assert_close(apply_correction(guess, torch.zeros(20, 4)), guess)


def test_paste_mask_fills_the_view_and_nothing_else() -> None:
    mask = paste_mask(torch.full((12, 12), 9.0), torch.tensor([0.25, 0.5, 0.75, 0.75]), (80, 40))
    wanted = np.zeros((80, 40), dtype=bool)
    wanted[40:60, 10:30] = True
    assert mask.shape == (80, 40)
    assert mask_iou(mask, wanted) > 0.9
    assert not paste_mask(torch.full((12, 12), -9.0), torch.tensor([0.0, 0.0, 1.0, 1.0]), (8, 8)).any()


def test_grow_adds_its_share_on_every_side() -> None:
    grown = grow(torch.tensor([[0.2, 0.2, 0.4, 0.6]]), 0.5)
    torch.testing.assert_close(grown, torch.tensor([[0.1, 0.0, 0.5, 0.8]]))


def test_save_and_load_change_nothing(detector: Detector, tmp_path: Path) -> None:
    detector.save_pretrained(tmp_path)
    again = Detector.from_pretrained(tmp_path)
    image = np.random.default_rng(2).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    boxes = [[(0.1, 0.1, 0.6, 0.7)]]
    np.testing.assert_array_equal(again.embed([image], boxes)[0], detector.embed([image], boxes)[0])
    with pytest.raises(CheckpointError):
        Detector.from_pretrained(tmp_path / "nowhere")


def test_embed_wants_boxes_for_every_picture(detector: Detector) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    assert detector.embed([image], [[]])[0].shape == (0, 32)
    with pytest.raises(ShapeError, match="1 pictures"):
        detector.embed([image], [])


@pytest.mark.parametrize(
    "changes", [{"image_size": 100}, {"crop_size": 20}, {"reader_widths": (12, 16)}, {"score_threshold": 1.5}]
)
def test_config_refuses_impossible_sizes(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        TINY.replace(**changes)
    assert DetectorConfig.from_dict(TINY.to_dict()) == TINY


def test_reading_becomes_a_scene_and_json() -> None:
    reading = Reading((seen("cat", "red", (0.1, 0.2, 0.5, 0.9)),), "snow", "ink")
    scene = reading.to_scene()
    assert scene.characters[0] == SceneCharacter(
        species="cat", colour="red", facing="left", box=(0.1, 0.2, 0.5, 0.9), identity=0
    )
    assert (scene.background, scene.style) == ("snow", "ink")
    values = json.loads(json.dumps(reading.to_dict()))
    assert values["characters"][0]["species"] == "cat"
    assert len(values["characters"][0]["identity"]) == 32
    many = Reading(tuple(seen("cat", "red", (0.1, 0.2, 0.5, 0.9)) for _ in range(8)), "snow", "ink")
    assert len(many.to_scene().characters) == 6


# -- matching ----------------------------------------------------------------------------------------------------


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    low = rng.random((count, 2)) * 0.6
    return np.concatenate([low, low + 0.2 + 0.3 * rng.random((count, 2))], 1)


def test_match_equals_brute_force() -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        found, wanted = random_boxes(rng, int(rng.integers(0, 5))), random_boxes(rng, int(rng.integers(0, 5)))
        overlap = pairwise_iou(wanted, found)
        overlap[overlap < 0.2] = 0
        slots = list(range(len(found))) + [None] * len(wanted)
        best = max(
            (sum(overlap[i, j] for i, j in enumerate(chosen) if j is not None)
             for chosen in itertools.permutations(slots, len(wanted))),
            default=0,
        )  # fmt: skip
        result = match_boxes(found, wanted)
        taken = [j for j in result if j is not None]
        assert len(taken) == len(set(taken))
        assert all(overlap[i, j] > 0 for i, j in enumerate(result) if j is not None)
        assert sum(overlap[i, j] for i, j in enumerate(result) if j is not None) == pytest.approx(best)


def test_match_follows_permutations_and_finds_itself() -> None:
    rng = np.random.default_rng(4)
    boxes = random_boxes(rng, 4)
    assert match_boxes(boxes, boxes) == (0, 1, 2, 3)
    order = [2, 0, 3, 1]
    assert match_boxes(boxes[order], boxes) == (1, 3, 0, 2)
    assert match_boxes([], boxes) == (None,) * 4
    assert match_boxes(boxes, []) == ()
    with pytest.raises(ShapeError):
        match_boxes([[0, 0, 1]], boxes)


def test_score_counts_missing_wrong_and_extra_characters() -> None:
    scene = SceneGraph(
        background="snow",
        characters=(
            SceneCharacter(species="cat", colour="red", box=(0.1, 0.2, 0.5, 0.9), facing="left"),
            SceneCharacter(species="dog", colour="blue", box=(0.55, 0.2, 0.9, 0.9), facing="left"),
        ),
    )
    half = np.zeros((2, 10, 10), dtype=bool)
    half[:, :, :5] = True
    cat = seen("cat", "red", (0.1, 0.2, 0.5, 0.9), mask=half[0])
    reading = Reading((cat, seen("fox", "red", (0.0, 0.0, 0.1, 0.1))), "snow", "flat")
    score = score_reading(reading, scene, masks=half)
    assert [c.recognised for c in score.characters] == [True, False]
    assert [c.found for c in score.characters] == [True, False]
    assert (score.extra, score.background, score.style, score.exact) == (1, True, True, False)
    assert score.characters[0].mask_iou == 1.0
    assert score.characters[1].mask_iou == 0.0
    assert match(reading, [(0.55, 0.2, 0.9, 0.9)]) == (None,)
    exact = Reading((cat, seen("dog", "blue", (0.55, 0.2, 0.9, 0.9))), "snow", "flat")
    assert score_reading(exact, scene).exact
    with pytest.raises(DataError):
        exact.to_scene().characters[0].replace(species="dragon")


def test_a_finder_may_look_at_a_smaller_canvas() -> None:
    torch.manual_seed(0)
    small = Detector(TINY).eval()
    large = Detector(TINY.replace(image_size=128, finder_size=64)).eval()
    large.load_state_dict(small.state_dict())
    canvas = torch.rand(2, 3, 128, 128) * 2 - 1
    found, shrunk = large.find(canvas), small.find(torch.nn.functional.avg_pool2d(canvas, 2))
    assert torch.equal(found.heat, shrunk.heat) and torch.equal(found.boxes, shrunk.boxes)


def test_an_enlarged_detector_summarises_an_even_view_much_as_before() -> None:
    torch.manual_seed(0)
    small = Detector(TINY).eval()
    for name in ("kind", "who"):
        torch.nn.init.normal_(getattr(small.reader, name)[0].weight)
    large = enlarged(small, TINY.replace(image_size=128, finder_size=64, crop_size=32)).eval()
    even = torch.rand(1, small.config.reader_widths[1] // 2, 1, 1)
    extent = torch.rand(1, 2)
    for name in ("kind", "who"):
        sums = [
            getattr(model.reader, name)[0](torch.cat([even.expand(-1, -1, cells, cells).flatten(1), extent], 1))
            for model, cells in ((small, 3), (large, 4))
        ]
        assert torch.corrcoef(torch.stack([part[0] for part in sums]))[0, 1] > 0.9


def test_a_finder_that_does_not_divide_the_canvas_is_refused() -> None:
    with pytest.raises(ConfigError, match="finder_size=48"):
        TINY.replace(image_size=128, finder_size=48)
