"""Does the painter draw what was asked for? Species, colour and place of every character, read back by the detector.

Arms: prompts like the training ones, combinations never trained, sentences never trained; each as the studio paints a
new character, after a sketch of it, and from phrases and planned boxes alone; and words alone without boxes. Beside
them the instrument's ceiling: the same scenes drawn exactly, read by the same detector.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import GenerationError
from ..painting import Painter, PaintRequest
from ..promptbook.book import Character, Page, sorted_attributes
from ..rng import numpy_stream, stream_seed
from ..stations import load_detector, load_painter
from ..theater.cast import Cast
from ..theater.performance import (
    MAX_PICTURE_SEED,
    Finding,
    Guidance,
    PerformanceConfig,
    Reader,
    build_request,
    find_characters,
)
from ..theater.sketch import LOOK, Sketch, sketch
from ..world.captions import Caption, CaptionSplit, caption, phrase
from ..world.render import render
from ..world.sample import Split, sample_scene
from ..world.scene import SceneGraph
from ..world.vocabulary import Language
from .experiment import bootstrap

TOLERANCE = 0.15
ANYWHERE = 10.0


@dataclass(frozen=True, slots=True)
class Arm:
    """One condition."""

    name: str
    scenes: Split = "train"
    sentences: CaptionSplit = "train"
    boxes: bool = True
    sketches: bool = False


ARMS = (
    Arm("sketched", sketches=True),
    Arm("sketched_composition", scenes="composition", sketches=True),
    Arm("sketched_paraphrase", sentences="paraphrase", sketches=True),
    Arm("fresh"),
    Arm("composition", scenes="composition"),
    Arm("paraphrase", sentences="paraphrase"),
    Arm("text_only", boxes=False),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One picture asked for."""

    number: int
    language: Language
    scene: SceneGraph
    request: PaintRequest


def run(
    *,
    seed: int = 0,
    count: int = 40,
    model: str | None = None,
    steps: int = 20,
    guidance_scale: float = 3.0,
    guidance: Guidance = "set_in",
    size: int = 256,
) -> dict[str, Any]:
    """Measure the painter of a pipeline.

    Args:
        seed: of scenes, sentences and pictures.
        count: pictures per arm and number of characters, half in each language.
        model: pipeline folder; the embedded one by default.
        steps, guidance_scale: of sampling.
        guidance: how sketches guide it; see :class:`~huaben.theater.performance.PerformanceConfig`.
        size: side of the pictures.
    """
    painter = load_painter(Path(model) if model else None)
    return measure(
        painter,
        load_detector(),
        seed=seed,
        count=count,
        steps=steps,
        guidance_scale=guidance_scale,
        guidance=guidance,
        size=size,
    )


def measure(
    painter: Painter,
    reader: Reader,
    *,
    seed: int = 0,
    count: int = 40,
    steps: int = 20,
    guidance_scale: float = 3.0,
    guidance: Guidance = "set_in",
    size: int = 256,
    numbers: Sequence[int] = (1, 2, 3),
    arms: Sequence[Arm] = ARMS,
) -> dict[str, Any]:
    """Return, per arm and number of characters, the share of characters and pictures that are right."""
    results: dict[str, Any] = {}
    for arm in arms:
        rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        ceiling: dict[str, list[float]] = defaultdict(list)
        for characters in numbers:
            asked = cases(
                arm,
                characters,
                seed=seed,
                count=count,
                size=size,
                steps=steps,
                scale=guidance_scale,
                guidance=guidance,
            )
            for case in asked:
                wanted = planned(case.scene)
                tolerance = TOLERANCE if arm.boxes else ANYWHERE
                scores = score(_read(reader, painter.paint(case.request).image), wanted, tolerance)
                for group in (str(characters), case.language, "all"):
                    for name, value in scores.items():
                        rows[group][name].append(value)
                exact = render(case.scene, (size, size)).image
                for name, value in score(_read(reader, exact), wanted, tolerance).items():
                    ceiling[name].append(value)
        results[arm.name] = {
            group: {name: bootstrap(values, seed, arm.name, group, name) for name, values in parts.items()}
            for group, parts in rows.items()
        }
        results[arm.name]["renderer"] = {
            name: bootstrap(values, seed, arm.name, "renderer", name) for name, values in ceiling.items()
        }
        if not arm.boxes:
            for part in results[arm.name].values():
                part.pop("placed", None)
    return results


def cases(
    arm: Arm,
    characters: int,
    *,
    seed: int,
    count: int,
    size: int,
    steps: int,
    scale: float,
    guidance: Guidance = "set_in",
) -> Iterator[Case]:
    """Yield the pictures of one arm; languages alternate."""
    for number in range(count):
        rng = numpy_stream(seed, "painter bench", arm.name, characters, number)
        language: Language = "en" if number % 2 == 0 else "zh"
        scene = sample_scene(rng, split=arm.scenes, num_characters=characters)
        said = caption_with_colours(scene, rng, language, arm.sentences)
        characters_said = tuple(
            character.replace(prompt=phrase_with_colour(scene, index, rng, language, arm.sentences).text)
            for index, character in enumerate(planned(scene))
        )
        page = Page(background=scene.background, style=scene.style, characters=characters_said)
        config = PerformanceConfig(size=(size, size), steps=steps, guidance_scale=scale, guidance=guidance)
        request = build_request(
            page.characters if arm.boxes else (),
            Cast(),
            prompt=said.text,
            negative="",
            seed=stream_seed(seed, "picture", arm.name, characters, number) & MAX_PICTURE_SEED,
            config=config,
            sketches=_sketched(page, stream_seed(seed, "sketches", arm.name, characters, number), size, arm),
        )
        yield Case(number, language, scene, request)


def _sketched(page: Page, story_seed: int, size: int, arm: Arm) -> dict[tuple[str, int | None], Sketch]:
    """Return the sketches that the studio would make for a first page; none in arms without."""
    drawn = {(c.id, c.instance): sketch(c, page, story_seed, (size, size)) for c in page.characters if arm.sketches}
    return {key: value for key, value in drawn.items() if value is not None}


def planned(scene: SceneGraph) -> tuple[Character, ...]:
    """Return the scene's characters as a page would hold them."""
    return tuple(
        Character(
            id=str(index),
            name=character.species,
            prompt=character.species,
            category=character.species,
            box=character.box,
            attributes=sorted_attributes({name: getattr(character, name) for name in LOOK}),
        )
        for index, character in enumerate(scene.characters)
    )


def score(reading: Any, wanted: Sequence[Character], tolerance: float) -> dict[str, float]:
    """Return the shares of one picture's characters that are right, and whether all are and nothing is added."""
    findings = find_characters(wanted, reading, Cast(), tolerance)

    def share(test: Any) -> float:
        return float(np.mean([test(finding) for finding in findings])) if findings else 1.0

    def recognised(finding: Finding) -> bool:
        return finding.seen is not None and finding.species_right and finding.colour_right

    extra = len(reading.characters) - sum(finding.seen is not None for finding in findings)
    return {
        "recognised": share(recognised),
        "species": share(lambda finding: finding.seen is not None and finding.species_right),
        "placed": share(lambda finding: finding.seen is not None and finding.place_right),
        "right": share(lambda finding: finding.right),
        "accessory": share(lambda finding: finding.seen is not None and finding.accessory_right),
        "expression": share(lambda finding: finding.seen is not None and finding.expression_right),
        "facing": share(lambda finding: finding.seen is not None and finding.facing_right),
        "all_attributes": share(lambda finding: finding.all_right),
        "whole_picture": float(all(finding.right for finding in findings) and extra == 0),
    }


def _read(reader: Reader, image: npt.NDArray[np.uint8]) -> Any:
    """Return one reading."""
    return reader.detect([image])[0]


def caption_with_colours(
    scene: SceneGraph, rng: np.random.Generator, language: Language, split: CaptionSplit = "train"
) -> Caption:
    """Return a sentence that says every species and colour, so that each can be asked back."""
    for _ in range(100):
        said = caption(scene, rng, language, split)
        if len(said.facts) == len(scene.characters) and all(
            {"species", "colour"} <= facts.keys() for facts in said.facts
        ):
            return said
    raise GenerationError("no sentence says every colour of the scene", hint="use another seed")


def phrase_with_colour(
    scene: SceneGraph, index: int, rng: np.random.Generator, language: Language, split: CaptionSplit = "train"
) -> Caption:
    """Return a phrase that says species and colour."""
    for _ in range(100):
        said = phrase(scene.characters[index], rng, language, split)
        if {"species", "colour"} <= said.facts[0].keys():
            return said
    raise GenerationError("no phrase says the character's colour", hint="use another seed")
