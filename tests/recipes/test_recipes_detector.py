"""Training of the detector: batches that repeat, targets that are right, and a tiny net that learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from huaben.bench.detector import run, summarise, wilson_interval
from huaben.errors import ConfigError
from huaben.pretrained import WEIGHTS_NAME, read_weights
from huaben.recipes.detector import RECIPE, cast, contrast, generalised_iou, group_scenes, heat_targets, roles_of
from huaben.rng import numpy_stream
from huaben.training import Recipe
from huaben.world.detector import Detector
from huaben.world.distort import add_noise, blur, compress, lose_resolution, random_distortion
from huaben.world.matching import score_reading
from huaben.world.render import render
from huaben.world.sample import sample_scene
from huaben.world.trial import DISTORTIONS, reading_trial, recognition_trial


@pytest.fixture(scope="module")
def recipe() -> RECIPE:
    return RECIPE(seed=3, preset="tiny", batch_size=8)


@pytest.fixture(scope="module")
def batch(recipe: RECIPE) -> dict[str, torch.Tensor]:
    return recipe.batch(5)


def test_recipe_satisfies_the_protocol(recipe: RECIPE) -> None:
    assert isinstance(recipe, Recipe)


def test_batch_is_a_function_of_seed_and_step(recipe: RECIPE, batch: dict[str, torch.Tensor]) -> None:
    again, later = RECIPE(seed=3, preset="tiny", batch_size=8).batch(5), recipe.batch(6)
    assert batch.keys() == again.keys()
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert not torch.equal(batch["images"], later["images"])


def test_batch_labels_belong_together(batch: dict[str, torch.Tensor]) -> None:
    count = len(batch["index"])
    assert all(len(batch[name]) == count for name in ("boxes", "seen", "labels", "who", "rival", "traits", "masks"))
    same = batch["who"][:, None] == batch["who"][None]
    rival = batch["rival"][:, None] == batch["rival"][None]
    assert (rival | ~same).all()  # the same individual is of the same species and colour
    assert ((batch["traits"][:, None] == batch["traits"][None]).all(-1) | ~same).all()
    assert (same.sum(1) > 1).any()
    assert (rival & ~same).any()
    assert (batch["boxes"][:, 2:] > batch["boxes"][:, :2]).all()
    assert batch["boxes"].min() >= 0
    assert batch["boxes"].max() <= 1
    assert batch["masks"].amax((1, 2)).min() > 0


def test_groups_keep_individuals_and_bring_rivals() -> None:
    scenes = group_scenes(numpy_stream(0, "test"))
    first, second, third, fourth = (sorted(roles_of(scene)) for scene in scenes)
    assert first == second
    assert third == fourth
    assert [role[:2] for role in first] == [role[:2] for role in third]
    assert {role[2] for role in first}.isdisjoint(role[2] for role in third)


def test_cast_boxes_are_tight_and_inside() -> None:
    rng = numpy_stream(1, "test")
    for _ in range(10):
        scene, other = (sample_scene(rng, num_characters=2) for _ in range(2))
        acted = cast(scene, roles_of(other), rng)
        boxes = np.array([character.box for character in acted.characters])
        assert boxes.min() >= 0
        assert boxes.max() <= 1
        np.testing.assert_allclose(render(acted).boxes, boxes, atol=2e-3)


def test_heat_peaks_in_the_cell_of_the_centre() -> None:
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.3], [0.5, 0.5, 0.9, 0.9]])
    bumps, heat = heat_targets(boxes, torch.tensor([0, 1]), 3, 16)
    assert bumps[0, int(0.2 * 16), int(0.3 * 16)] == 1
    assert heat[1, int(0.7 * 16), int(0.7 * 16)] == 1
    assert (heat == 1).sum() == 2
    assert heat[2].max() == 0
    assert heat.max() <= 1


def test_generalised_iou_of_known_boxes() -> None:
    a = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.25, 1.0]])
    b = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.75, 0.0, 1.0, 1.0]])
    torch.testing.assert_close(generalised_iou(a, b), torch.tensor([1.0, -0.5, -0.5]))


def test_contrast_rewards_likeness_to_the_same_individual() -> None:
    same = torch.eye(2, dtype=torch.bool).repeat_interleave(2, 0).repeat_interleave(2, 1)
    everyone = torch.ones_like(same)
    assert contrast(10.0 * same, same, everyone) < 1e-3
    assert contrast(torch.zeros(4, 4), same, everyone) == pytest.approx(np.log(3), abs=1e-5)
    assert contrast(-10.0 * same, same, everyone) > 10
    lonely = torch.eye(4, dtype=torch.bool)
    assert contrast(torch.zeros(4, 4), lonely, everyone) == 0


def test_distortions_keep_shape_and_type_and_change_pictures() -> None:
    rng = np.random.default_rng(0)
    image = render(sample_scene(rng), 64).image
    for changed in (blur(image, 1.0), add_noise(image, 0.05, rng), compress(image, 40), lose_resolution(image, 0.5)):
        assert changed.shape == image.shape
        assert changed.dtype == np.uint8
        assert (changed != image).any()
    assert all(random_distortion(image, rng).shape == image.shape for _ in range(20))


def test_tiny_detector_learns_four_pictures_by_heart() -> None:
    torch.manual_seed(0)
    recipe = RECIPE(seed=1, preset="tiny", batch_size=4, autoencoder=None)
    rng = numpy_stream(0, "by heart")
    scenes = [sample_scene(rng, num_characters=1 + i % 2) for i in range(4)]
    batch = learnable(recipe, scenes)
    model = recipe.build().train()
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    for step in range(120):
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1.0, (step + 1) / 10, (120 - step) / 40)
        optimizer.zero_grad()
        recipe.loss(model, batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
    drawn = [render(scene, 64, masks=True) for scene in scenes]
    readings = model.eval().detect([picture.image for picture in drawn], masks=True)
    scores = [score_reading(r, s, p.boxes, p.masks) for r, s, p in zip(readings, scenes, drawn, strict=True)]
    characters = [character for score in scores for character in score.characters]
    assert all(character.right["species"] for character in characters)
    assert all(character.recognised for character in characters)
    assert np.mean([character.box_iou for character in characters]) > 0.7
    assert np.mean([character.mask_iou for character in characters]) > 0.6


def learnable(recipe: RECIPE, scenes: list) -> dict[str, torch.Tensor]:
    """A batch of given clean scenes."""
    import huaben.recipes.detector as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "group_scenes", lambda rng: scenes)
        patch.setattr(module, "random_distortion", lambda image, rng: image)
        patch.setattr(recipe, "_shape", lambda rng: (64, 64))
        for step in range(20):  # now and then a scene is emptied of its characters
            batch = recipe.batch(step)
            if len(batch["boxes"]) == sum(len(scene.characters) for scene in scenes):
                return batch
    raise AssertionError("no batch with every character")


def test_loss_of_pictures_without_characters_is_finite(recipe: RECIPE) -> None:
    rng = numpy_stream(2, "empty")
    torch.manual_seed(0)
    model = recipe.build()
    batch = learnable(recipe, [sample_scene(rng, num_characters=0) for _ in range(4)])
    terms = recipe.loss(model, batch)
    terms["loss"].backward()
    assert torch.isfinite(terms["loss"])
    assert "species" not in terms


def test_save_writes_sixteen_bits(recipe: RECIPE, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = recipe.build()
    recipe.save(model, tmp_path)
    stored = read_weights(tmp_path / WEIGHTS_NAME)
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {torch.float16}
    assert Detector.from_pretrained(tmp_path).config == recipe.config


def test_trials_count_every_character_of_an_untrained_detector(recipe: RECIPE) -> None:
    torch.manual_seed(0)
    model = recipe.build().eval()
    values = reading_trial(model, count=6, seed=0)
    assert len(values["recognised"]) == len(values["box_iou"]) == len(values["mask_iou"])
    assert len(values["extra"]) == len(values["style"]) == 6
    assert np.mean(values["recognised"]) < 0.5
    recognition = recognition_trial(model, groups=1, seed=0)
    assert len(recognition["top1"]) == 20
    with pytest.raises(ConfigError, match="no distortion"):
        reading_trial(model, count=1, distortion="fog")


def test_bench_gives_counts_and_intervals(recipe: RECIPE) -> None:
    torch.manual_seed(0)
    result = run(count=3, detector=recipe.build().eval(), groups=1)
    assert set(DISTORTIONS) <= set(result["reading"])
    clean = result["reading"]["clean"]["recognised"]
    assert clean["n"] > 0
    assert clean["interval"][0] <= clean["mean"] <= clean["interval"][1]
    assert result["recognition"]["clean"]["top1"]["n"] == 20
    assert result["chance"]["top1"] == 1 / 20


def test_wilson_interval_of_known_counts() -> None:
    low, high = wilson_interval(100, 100)
    assert high == 1.0
    assert low == pytest.approx(0.963, abs=1e-3)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert summarise({"extra": [0.0, 1.0]})["extra"]["mean"] == 0.5
