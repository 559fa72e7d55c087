"""Box and reference tokens: positions, coverage, neutrality of what is absent, folder round trip."""

import dataclasses

import numpy as np
import pytest
import torch

from huaben.attention.rope import point_positions, rotary_table
from huaben.diffusion.grounding import (
    PRESETS,
    GroundedDiT,
    Grounder,
    Grounding,
    box_coverage,
    cell_centres,
    fourier,
    nobody,
)
from huaben.diffusion.pipeline import compose_canvas
from huaben.errors import CheckpointError, ConfigError, ShapeError

TINY = PRESETS["tiny"]
DIT, G = TINY.dit, TINY.grounding


def random_model():
    torch.manual_seed(0)
    model = GroundedDiT(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.15 + (parameter.ndim == 1) * 0.5)
    return model.eval()


def random_grounding(batch=2, count=3, seed=1, cells=8):
    g = torch.Generator().manual_seed(seed)
    low = torch.rand(batch, count, 2, generator=g) * 0.5
    return Grounding(
        torch.randn(batch, count, G.phrase_dim, generator=g),
        torch.cat([low, low + 0.2 + 0.3 * torch.rand(batch, count, 2, generator=g)], -1),
        torch.randn(batch, count, DIT.in_channels, G.reference_size, G.reference_size, generator=g),
        torch.randn(batch, DIT.in_channels, cells, cells, generator=g),
        torch.ones(batch, count, dtype=torch.bool),
        torch.ones(batch, count, dtype=torch.bool),
        torch.ones(batch, count, dtype=torch.bool),
    )


def inputs(batch=2, side=8, seed=2):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, DIT.in_channels, side, side, generator=g),
        torch.full((batch,), 300.0),
        torch.randn(batch, DIT.clip_len, DIT.clip_dim, generator=g),
        torch.ones(batch, DIT.clip_len),
        torch.randn(batch, DIT.t5_len, DIT.t5_dim, generator=g),
        torch.ones(batch, DIT.t5_len),
    )


def test_box_coverage_sums_to_the_box_area():
    boxes = torch.tensor([[[0.13, 0.2, 0.71, 0.9], [0.0, 0.0, 1.0, 1.0]]])
    cover = box_coverage(boxes, (6, 10))
    assert torch.allclose(cover.mean(-1), torch.tensor([[0.58 * 0.7, 1.0]]), atol=1e-6)
    assert cover.min() >= 0 and cover.max() <= 1


def test_reference_over_the_whole_picture_lies_on_the_picture_s_own_tokens():
    """A reference mapped to the full picture gets exactly the rotary positions of a grid of its own size."""
    side = G.reference_size // DIT.patch_size
    grounding = random_grounding(1, 1, cells=side * DIT.patch_size)
    grounding = dataclasses.replace(grounding, boxes=torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]))
    state = random_model().grounder(grounding, (side, side))
    y, x = state.positions[0, 1:].unbind(-1)
    cos, _ = rotary_table(side, side, DIT.head_dim, base=DIT.rope_base)
    step = DIT.rope_base / side
    rows = torch.arange(side).repeat_interleave(side) * step
    assert torch.allclose(y, rows, atol=1e-5) and torch.allclose(x, torch.arange(side).repeat(side) * step, atol=1e-5)
    assert cos.shape[0] == side * side


def test_equal_boxes_get_equal_positions_and_a_shift_shifts_them():
    grounding = random_grounding(1, 2)
    same = dataclasses.replace(grounding, boxes=grounding.boxes[:, :1].expand(1, 2, 4).clone())
    places = random_model().grounder(same, (4, 4)).positions[0]
    assert torch.equal(places[0], places[1])
    side = G.reference_size // DIT.patch_size
    first, second = places[2 : 2 + side**2], places[2 + side**2 :]
    assert torch.equal(first, second)
    moved = dataclasses.replace(same, boxes=same.boxes + torch.tensor([0.1, 0.0, 0.1, 0.0]))
    shift = random_model().grounder(moved, (4, 4)).positions[0] - places
    unit = point_positions(torch.tensor([0.0, 0.1]), 4, 4, base=DIT.rope_base) - point_positions(
        torch.zeros(2), 4, 4, base=DIT.rope_base
    )
    assert torch.allclose(shift, unit.expand_as(shift), atol=1e-4)


def test_what_is_absent_has_no_effect():
    model, args, grounding = random_model(), inputs(), random_grounding()
    grounding.present[:, 2] = False
    grounding.has_reference[:, 0] = False
    grounding.has_phrase[:, 1] = False
    before = model(*args, grounding=grounding)
    changed = dataclasses.replace(
        grounding,
        phrases=grounding.phrases.clone(),
        references=grounding.references.clone(),
        boxes=grounding.boxes.clone(),
    )
    changed.phrases[:, 1:] += 1
    changed.references[:, 0] += 1
    changed.references[:, 2] += 1
    after = model(*args, grounding=changed)
    assert torch.equal(before, after)


@pytest.mark.parametrize("name", ["phrases", "references", "boxes", "canvas"])
def test_what_is_present_has_an_effect(name):
    model, args, grounding = random_model(), inputs(), random_grounding()
    before = model(*args, grounding=grounding)
    changed = dataclasses.replace(grounding, **{name: getattr(grounding, name) * 0.7})
    assert (model(*args, grounding=changed) - before).abs().max() > 1e-4


def test_token_offset_stays_inside_the_boxes():
    model, grounding = random_model(), random_grounding(1, 1)
    inside = dataclasses.replace(grounding, boxes=torch.tensor([[[0.0, 0.0, 0.5, 0.5]]]))
    offset = model.grounder(inside, (4, 4)).token_offset[0].unflatten(0, (4, 4))
    outside = offset[2:].reshape(-1, offset.shape[-1])
    assert torch.allclose(outside, outside[:1].expand_as(outside))
    assert (offset[:2, :2] - outside[0]).abs().max() > 1e-3


def test_grounding_state_once_equals_forward():
    model, args, grounding = random_model(), inputs(), random_grounding()
    whole = model(*args, grounding=grounding)
    state = model.encode_text(*args[2:], grounding=grounding, grid=model.token_grid(args[0]))
    table = model.dit.plan(args[1][None, :1].expand(1, 2), state)
    assert torch.allclose(model.dit.step(args[0], 0, state, table), whole, atol=1e-5)


def test_nobody_is_the_same_for_any_number_of_slots_of_a_batch():
    model, args = random_model(), inputs()
    one = model(*args, grounding=nobody(2, G, DIT, 2, grid=(4, 4)))
    assert torch.isfinite(one).all()
    assert torch.equal(one, model(*args, grounding=nobody(2, G, DIT, 2, grid=(4, 4))))


def test_untrained_grounding_offset_is_zero():
    torch.manual_seed(0)
    state = Grounder(G, DIT)(random_grounding(), (4, 4))
    assert not state.token_offset.any()


def test_too_many_characters_and_wrong_shapes_are_refused():
    model, args = random_model(), inputs()
    with pytest.raises(ShapeError, match="1 to 4"):
        model(*args, grounding=nobody(2, G, DIT, 5, grid=(4, 4)))
    with pytest.raises(ShapeError, match="phrases"):
        model(*args, grounding=dataclasses.replace(random_grounding(), phrases=torch.zeros(2, 3, 5)))
    with pytest.raises(ConfigError, match="multiple"):
        TINY.replace(grounding=G.replace(reference_size=3))


def test_folder_round_trip_and_a_missing_weight(tmp_path):
    model, args, grounding = random_model(), inputs(), random_grounding()
    model.save_pretrained(tmp_path)
    again = GroundedDiT.from_pretrained(tmp_path)
    assert torch.equal(model(*args, grounding=grounding), again(*args, grounding=grounding))
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "model.safetensors")
    del state["grounder.nobody"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"grounder\.nobody"):
        GroundedDiT.from_pretrained(tmp_path)


def test_fourier_and_centres_have_their_shapes():
    assert fourier(torch.rand(2, 4), 3).shape == (2, 24)
    assert cell_centres((2, 3), torch.zeros(1)).tolist()[1] == pytest.approx([0.5, 0.25])


def test_canvas_is_seen_under_referenced_characters_only():
    model = random_model()
    grounding = random_grounding(1, 2)
    grounding.boxes[:] = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    grounding.has_reference[0, 1] = False
    before = model.grounder(grounding, (4, 4)).token_offset[0].unflatten(0, (4, 4))
    changed = dataclasses.replace(grounding, canvas=grounding.canvas + 1)
    difference = (model.grounder(changed, (4, 4)).token_offset[0].unflatten(0, (4, 4)) - before).abs().amax(-1)
    assert (difference[:2, :2] > 1e-4).all()
    difference[:2, :2] = 0
    assert not difference.any()


def test_compose_canvas_pastes_each_crop_over_its_box():
    red = np.full((20, 20, 3), (255, 0, 0), np.uint8)
    blue = np.full((30, 10, 3), (0, 0, 255), np.uint8)
    canvas = compose_canvas((64, 128), [red, None, blue], [(0.25, 0.25, 0.5, 0.75), (0, 0, 1, 1), (0.7, 0.2, 0.9, 0.9)])
    assert canvas.shape == (64, 128, 3)
    assert (canvas[16:48, 32:64] == (255, 0, 0)).all() and (canvas[15:55, 92:112] == (0, 0, 255)).all()
    assert (canvas[:, :24] == 128).all()
