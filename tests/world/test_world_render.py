"""The renderer: determinism, exact boxes and masks, sizes, styles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from huaben.errors import ConfigError, DataError, ShapeError
from huaben.rng import numpy_stream
from huaben.world.render import extent, render
from huaben.world.sample import (
    HELD_OUT_COLOURS,
    is_held_out,
    rebox,
    sample_scene,
)
from huaben.world.scene import SIZE_HEIGHTS, SceneCharacter, SceneGraph, place_key, size_key
from huaben.world.sprites import BUILDERS, individual, sprite, tint
from huaben.world.vocabulary import ATTRIBUTES, KEYS, SPECIES

seeds = st.integers(0, 10**6)


def cat(**changes):
    values = {"species": "cat", "colour": "red", "box": (0.25, 0.3, 0.75, 0.9)}
    return SceneCharacter(**{**values, **changes})


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_render_same_scene_gives_same_bytes(seed):
    scene = sample_scene(numpy_stream(seed, "t"))
    assert np.array_equal(render(scene, 64).image, render(scene, 64).image)


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(0, 4), st.sampled_from([(64, 64), (128, 128), (96, 160), (200, 120), (512, 64)]))
def test_render_boxes_hold_all_visible_pixels_and_are_tight(seed, count, size):
    scene = sample_scene(numpy_stream(seed, "t"), num_characters=count, aspect=size[1] / size[0])
    drawn = render(scene, size, masks=True)
    assert drawn.image.shape == (*size, 3) and drawn.image.dtype == np.uint8
    assert drawn.masks.shape == (count, *size)
    assert not (drawn.masks.sum(0) > 1).any()
    for box, mask in zip(drawn.boxes, drawn.masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert len(rows), "every sampled character is visible"
        assert columns[0] >= box[0] * size[1] - 1.01 and columns[-1] + 1 <= box[2] * size[1] + 1.01
        assert rows[0] >= box[1] * size[0] - 1.01 and rows[-1] + 1 <= box[3] * size[0] + 1.01
    if count:
        front, box = drawn.masks[-1], drawn.boxes[-1]  # nothing hides the front one: its box is tight
        columns = np.flatnonzero(front.any(0))
        assert columns[0] <= box[0] * size[1] + 1.5 and columns[-1] + 1 >= box[2] * size[1] - 1.5


def test_mask_pixels_are_what_the_character_changes():
    empty = SceneGraph(background="meadow")
    scene = empty.replace(characters=(cat(),))
    with_cat, without = render(scene, 128, masks=True), render(empty, 128)
    changed = (with_cat.image != without.image).any(-1)
    assert not (changed & ~_grown(with_cat.masks[0])).any()
    assert (changed & with_cat.masks[0]).sum() > 0.9 * with_cat.masks[0].sum()


def _grown(mask):
    grown = mask.copy()
    for dy in (-2, -1, 0, 1, 2):
        for dx in (-2, -1, 0, 1, 2):
            grown |= np.roll(mask, (dy, dx), (0, 1))
    return grown


def test_facing_mirrors_the_character():
    mirror = SceneGraph(background="room", characters=(cat(box=(0.2, 0.2, 0.8, 0.8)),))
    right = render(mirror, 128, masks=True).masks[0]
    left = render(mirror.replace(characters=(cat(box=(0.2, 0.2, 0.8, 0.8), facing="left"),)), 128, masks=True).masks[0]
    assert (right[:, ::-1] == left).mean() > 0.98
    assert (right == left).mean() < 0.98


def test_individuals_differ_and_an_individual_does_not():
    assert individual(3) == individual(3)
    assert len({individual(k) for k in range(100)}) == 100
    a, b = (sprite("cat", "red", "none", "happy", k) for k in (1, 2))
    assert any(x.fill != y.fill or not np.array_equal(x.points, y.points) for x, y in zip(a, b, strict=False))


def test_every_species_and_style_draws_something_of_its_colour():
    assert set(BUILDERS) == {term.key for term in SPECIES}
    for species in BUILDERS:
        for style in KEYS["style"]:
            scene = SceneGraph(background="sky", style=style, characters=(cat(species=species, colour="purple"),))
            drawn = render(scene, 96, masks=True)
            pixels = drawn.image[drawn.masks[0]].astype(int)
            target = np.array(tint("purple", individual(0)))
            near = (np.abs(pixels - target).sum(1) < 130).mean()
            assert near > 0.1, (species, style, near)


def test_later_characters_are_in_front():
    scene = SceneGraph(background="room", characters=(cat(), cat(species="bear", colour="blue")))
    assert render(scene, 64, masks=True).masks[0].sum() < render(scene, 64, masks=True).masks[1].sum() * 0.5


def test_extent_equals_rendered_box():
    character = rebox(cat(species="whale"), (0.1, 0.2, 0.7, 0.6))
    drawn = render(SceneGraph(background="sea", characters=(character,)), 128)
    assert np.allclose(drawn.boxes[0], extent(character), atol=1e-4)
    assert np.allclose(character.box, extent(character), atol=1e-3)


@pytest.mark.parametrize("size", [0, 16, (64, 5000), -1])
def test_render_refuses_impossible_sizes(size):
    with pytest.raises(ShapeError, match=r"32\.\.2048"):
        render(SceneGraph(background="sea"), size)


def test_scene_refuses_what_is_not_in_the_world():
    with pytest.raises(DataError, match="dragon"):
        cat(species="dragon")
    with pytest.raises(DataError, match="at most 6"):
        SceneGraph(background="sea", characters=(cat(),) * 7)
    with pytest.raises(ConfigError):
        sample_scene(numpy_stream(0, "t"), num_characters=7)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_splits_never_meet(seed):
    rng = numpy_stream(seed, "split")
    assert not any(is_held_out(c) for c in sample_scene(rng).characters)
    assert all(is_held_out(c) for c in sample_scene(rng, split="composition").characters)


def test_held_out_pairs_leave_every_species_and_colour_in_training():
    for species in KEYS["species"]:
        assert any((species, colour) not in HELD_OUT_COLOURS for colour in KEYS["colour"])
    for colour in KEYS["colour"]:
        assert sum((species, colour) in HELD_OUT_COLOURS for species in KEYS["species"]) < len(KEYS["species"]) / 2


def test_scene_graph_round_trips_through_json():
    scene = sample_scene(numpy_stream(5, "t"), num_characters=3)
    assert SceneGraph.from_dict(scene.to_dict()) == scene


def test_size_and_place_keys_cover_their_vocabulary():
    for size, height in SIZE_HEIGHTS.items():
        assert size_key((0.1, 0.4, 0.4, 0.4 + height)) == size
    places = {place_key((x, y, x + 0.2, y + 0.2)) for x in (0.05, 0.4, 0.75) for y in (0.05, 0.6)}
    assert places == set(KEYS["place"])


def test_vocabulary_has_enough_of_everything_in_both_languages():
    sizes = {name: len(terms) for name, terms in ATTRIBUTES.items()}
    assert sizes["species"] >= 24 and sizes["colour"] >= 10 and sizes["background"] >= 10 and sizes["style"] >= 4
    for terms in ATTRIBUTES.values():
        for term in terms:
            assert term.en and term.zh and all(name.isascii() for name in term.en)
            assert not any(name.isascii() for name in term.zh)
