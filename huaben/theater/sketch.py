"""A new character's first picture: the world's renderer sketches it, and the painter paints after the sketch.

A painter trained for an hour on two cores copies and blends well but invents shapes poorly. So whoever has no picture in
the cast yet, or was given another look since, is drawn by the renderer at its place, with the page's background and
style: one individual per character and story, always the same. It is a reference like any other. Once the reader has
recognised it on a page, the cast keeps it, and later pages are painted after it too.

Source: TheaterGen (arXiv:2404.18919): the rehearsal draws every character alone before the performance.
Differs: the rehearsal is drawn, not generated. A painter says whether it wants sketches (``PainterLimits.sketch``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..painting import BoxTuple, Facing
from ..promptbook.book import Character, Page
from ..rng import stream_seed
from ..world.render import render
from ..world.sample import IDENTITIES, rebox
from ..world.scene import SceneCharacter, SceneGraph
from ..world.vocabulary import KEYS
from .cast import cut_out

DETAIL = 2
"""A sketch is drawn this many times as large as the picture, so that it can stand nearer on a later page."""
LOOK = ("species", "colour", "accessory", "expression", "facing")


@dataclass(frozen=True, slots=True, eq=False)
class Sketch:
    """A drawn reference.

    Attributes:
        crop: uint8 (h, w, 3) with a margin.
        mask: bool (h, w), which pixels are the character.
        box: what the drawing fills, inside the planned box.
        facing: the way it faces.
    """

    crop: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]
    box: BoxTuple
    facing: Facing


def sketch(character: Character, page: Page, seed: int, size: tuple[int, int] = (256, 256)) -> Sketch | None:
    """Draw one character alone at its place on the page; None if its look is not of the embedded world.

    Args:
        character: with at least species and colour among its attributes.
        page: for background and style.
        seed: of the story; with the character's id it decides the individual.
        size: (height, width) of the picture.
    """
    look = {name: character.attribute(name, "") for name in LOOK}
    look = {name: value for name, value in look.items() if value in KEYS[name]}
    if not {"species", "colour"} <= look.keys():
        return None
    identity = stream_seed(seed, "individual", character.id, character.instance or 0) % IDENTITIES
    drawn = SceneCharacter.from_dict({**look, "box": tuple(character.box), "identity": identity})
    drawn = rebox(drawn, drawn.box, size)
    scene = SceneGraph(
        background=page.background if page.background in KEYS["background"] else "room",
        style=page.style if page.style in KEYS["style"] else "flat",
        characters=(drawn,),
        backdrop=stream_seed(seed, "backdrop") % IDENTITIES,
    )
    rendered = render(scene, (DETAIL * size[0], DETAIL * size[1]), masks=True)
    assert rendered.masks is not None
    x0, y0, x1, y1 = (float(v) for v in rendered.boxes[0])
    facing: Facing = "left" if drawn.facing == "left" else "right"
    crop, mask = cut_out(rendered.image, (x0, y0, x1, y1), rendered.masks[0])
    return Sketch(crop, mask, (x0, y0, x1, y1), facing)
