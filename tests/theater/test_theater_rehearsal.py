"""Placement and masks: invariants 3 to 5 and 10 of the method."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from huaben.theater.cast import CastEntry
from huaben.theater.rehearsal import STAGE_COLOUR, Placement, paint_order, set_stage


def blob(id="1", colour=200, shape=(30, 20), facing="right"):
    crop = np.full((*shape, 3), colour, np.uint8)
    crop[:, : shape[1] // 2] //= 2
    return CastEntry(
        id=id,
        turn=1,
        prompt="x",
        look=("cat", "red"),
        facing=facing,
        box=(0, 0, 1, 1),
        crop=crop,
        mask=np.ones(shape, bool),
    )


@settings(max_examples=60, deadline=None)
@given(
    x0=st.floats(0, 0.7),
    y0=st.floats(0, 0.7),
    w=st.floats(0.1, 0.3),
    h=st.floats(0.1, 0.3),
    shape=st.tuples(st.integers(5, 60), st.integers(5, 60)),
)
def test_placed_mask_fits_its_box_and_keeps_its_aspect(x0, y0, w, h, shape):
    size = (96, 128)
    masks = set_stage([Placement(blob(shape=shape), (x0, y0, x0 + w, y0 + h))], size).masks
    ys, xs = np.nonzero(masks[0])
    top, bottom, left, right = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    by0, by1 = round(y0 * 96), round((y0 + h) * 96)
    bx0, bx1 = round(x0 * 128), round((x0 + w) * 128)
    assert top >= by0
    assert bottom == by1
    assert left >= bx0
    assert right <= bx1
    assert (top == by0) or (left == bx0 and right == bx1)
    scale = min((by1 - by0) / shape[0], (bx1 - bx0) / shape[1])
    assert abs((bottom - top) - max(shape[0] * scale, 1)) <= 1
    assert abs((right - left) - max(shape[1] * scale, 1)) <= 1


def test_order_decides_every_overlapped_pixel():
    box = (0.2, 0.2, 0.8, 0.8)
    stage = set_stage([Placement(blob(colour=100), box), Placement(blob("2", colour=220), box)], (64, 64))
    assert not stage.masks[0].any()
    front = set_stage([Placement(blob("2", colour=220), box)], (64, 64))
    np.testing.assert_array_equal(stage.canvas, front.canvas)
    assert not (stage.masks[0] & stage.masks[1]).any()
    assert (stage.canvas[~stage.masks.any(0)] == STAGE_COLOUR).all()


def test_turning_round_mirrors_the_cut_out():
    box = (0.0, 0.0, 1.0, 1.0)
    right = set_stage([Placement(blob(shape=(32, 32)), box, "right")], (32, 32)).canvas
    left = set_stage([Placement(blob(shape=(32, 32)), box, "left")], (32, 32)).canvas
    np.testing.assert_array_equal(left, right[:, ::-1])
    assert not np.array_equal(left, right)


def test_larger_boxes_are_farther_back():
    boxes = [(0.5, 0.5, 0.6, 0.6), (0, 0, 0.9, 0.9), (0.5, 0.3, 0.6, 0.4)]
    assert paint_order(boxes) == (1, 2, 0)
