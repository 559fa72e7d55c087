"""Does a character stay the same individual from page to page?

A story is four pages with one character: an animal of one species and colour, on changing backgrounds, in changing
places, wearing changing things. What makes it an individual (markings, ears, eyes, hue) is never said in words; it can
only come from its first picture. Question, for every later page: among 20 individuals of the same species and colour,
is the one on this page closest to the one on page 1 of its own story? The others are the first pages of other stories.

Baseline: the same pages from the same seeds, from words and boxes alone. Beside both, the instrument's ceiling (the
same stories drawn exactly) and chance. A page on which the character is not recognised counts as wrong.

Source: TheaterGen (arXiv:2404.18919), average character-character similarity, made exact by a world with known
individuals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..painting import Painter
from ..promptbook.book import Character, Page, sorted_attributes
from ..rng import numpy_stream, stream_seed
from ..stages.embedded.oracle import RendererPainter
from ..stations import load_detector, load_painter
from ..theater.cast import Cast
from ..theater.performance import GUIDED_FRACTION, MAX_PICTURE_SEED, Guidance, PerformanceConfig, Reader, perform
from ..world.render import render
from ..world.sample import IDENTITIES, sample_scene
from ..world.scene import SceneCharacter, SceneGraph
from ..world.vocabulary import ANIMALS, KEYS, Language
from .experiment import bootstrap
from .painter import caption_with_colours, phrase_with_colour

PAGES = 4
Embedding = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StoryPage:
    """One page to paint: the prompt and the page."""

    prompt: str
    page: Page
    seed: int


def run(
    *,
    seed: int = 0,
    kinds: int = 3,
    individuals: int = 20,
    model: str | None = None,
    steps: int = 20,
    guidance_scale: float = 3.0,
    guidance: Guidance = "set_in",
    guided_fraction: float = GUIDED_FRACTION,
    size: int = 256,
    ceiling: bool = True,
) -> dict[str, Any]:
    """Measure identity with a pipeline's painter.

    Args:
        seed: of stories and pictures.
        kinds: pairs of species and colour.
        individuals: stories per kind, and so the size of the line-up.
        model: pipeline folder; the embedded one by default.
        steps, guidance_scale, guidance, guided_fraction: of painting.
        size: side of the pictures.
        ceiling: also draw the stories exactly.
    """
    config = PerformanceConfig(
        size=(size, size),
        steps=steps,
        guidance_scale=guidance_scale,
        guidance=guidance,
        guided_fraction=guided_fraction,
        attempts=3,
    )
    painter = load_painter(Path(model) if model else None)
    reader = load_detector()
    results = measure(painter, reader, config=config, seed=seed, kinds=kinds, individuals=individuals)
    if ceiling:
        drawn = measure(RendererPainter(), reader, config=config, seed=seed, kinds=kinds, individuals=individuals)
        results["renderer"] = drawn["reference"]
    return results


def measure(
    painter: Painter,
    reader: Reader,
    *,
    config: PerformanceConfig,
    seed: int = 0,
    kinds: int = 3,
    individuals: int = 20,
) -> dict[str, Any]:
    """Return, with and without references, how often the right individual is picked out of the line-up."""
    arms: dict[str, dict[str, list[Any]]] = {
        name: {"right": [], "recognised": [], "similarity": [], "pages": []} for name in ("reference", "baseline")
    }
    first_right: list[float] = []
    for kind in range(kinds):
        stories = [make_story(seed, kind, individual) for individual in range(individuals)]
        casts, line_up = _first_pages(painter, reader, stories, config, seed, kind)
        first_right += [float(cast.choose("1") is not None) for cast in casts]
        for number, (story, cast) in enumerate(zip(stories, casts, strict=True)):
            for name, values in arms.items():
                later = _later_pages(painter, reader, story, cast, config.replace(use_references=name == "reference"))
                picks = [None if seen is None else pick(seen, line_up) for seen in later]
                hits = [float(choice == number and cast.choose("1") is not None) for choice in picks]
                values["pages"].append(hits)
                values["right"].append(float(np.mean(hits)))
                values["recognised"].append(float(np.mean([seen is not None for seen in later])))
                first = line_up[number]
                if first is not None:
                    values["similarity"] += [float(seen @ first) for seen in later if seen is not None]
    results: dict[str, Any] = {
        name: {
            "right": bootstrap(values["right"], seed, name, "right"),
            "recognised": bootstrap(values["recognised"], seed, name, "recognised"),
            "similarity": bootstrap(values["similarity"], seed, name, "similarity"),
            "by_page": {
                str(page + 2): bootstrap([hits[page] for hits in values["pages"]], seed, name, "page", page)
                for page in range(PAGES - 1)
            },
        }
        for name, values in arms.items()
    }
    gains = np.subtract(arms["reference"]["right"], arms["baseline"]["right"])
    results["gain"] = bootstrap(gains, seed, "gain")
    results["first_page_recognised"] = bootstrap(first_right, seed, "first")
    results["chance"] = round(1 / individuals, 4)
    results["stories"] = kinds * individuals
    return results


def make_story(seed: int, kind: int, individual: int) -> list[StoryPage]:
    """Return four pages with one character of a kind; backgrounds, places, accessories and languages change."""
    rng = numpy_stream(seed, "story kind", kind)
    animals = [term.key for term in ANIMALS]
    species, colour = animals[int(rng.integers(len(animals)))], str(rng.choice(KEYS["colour"]))
    rng = numpy_stream(seed, "story", kind, individual)
    backgrounds = rng.permutation(KEYS["background"])
    pages = []
    for number in range(PAGES):
        scene = _scene(rng, species, colour, str(backgrounds[number]))
        language: Language = "en" if (individual + number) % 2 == 0 else "zh"
        who = scene.characters[0]
        looks = {"species": species, "colour": colour, "accessory": who.accessory, "facing": who.facing}
        character = Character(
            id="1",
            name=species,
            prompt=phrase_with_colour(scene, 0, rng, language).text,
            category=species,
            box=who.box,
            attributes=sorted_attributes(looks),
        )
        prompt = caption_with_colours(scene, rng, language).text
        page = Page(background=scene.background, style=scene.style, characters=(character,))
        picture_seed = stream_seed(seed, "story picture", kind, individual, number) & MAX_PICTURE_SEED
        pages.append(StoryPage(prompt, page, picture_seed))
    return pages


def pick(seen: Embedding, line_up: Sequence[Embedding | None]) -> int:
    """Return who of the line-up looks most like ``seen``; an empty place looks like nobody."""
    return int(np.argmax([-np.inf if one is None else float(seen @ one) for one in line_up]))


def _scene(rng: np.random.Generator, species: str, colour: str, background: str) -> SceneGraph:
    """Return a random one-character scene of a kind, in the flat style."""
    scene = sample_scene(rng, num_characters=1, style="flat")
    who = scene.characters[0].replace(species=species, colour=colour)
    return scene.replace(background=background, characters=(who,))


def _first_pages(
    painter: Painter,
    reader: Reader,
    stories: Sequence[list[StoryPage]],
    config: PerformanceConfig,
    seed: int,
    kind: int,
) -> tuple[list[Cast], list[Embedding | None]]:
    """Paint page 1 of every story; where its character was not recognised, a drawn individual fills the line-up."""
    casts: list[Cast] = []
    line_up: list[Embedding | None] = []
    for number, story in enumerate(stories):
        first = story[0]
        result = perform(
            first.page, Cast(), prompt=first.prompt, painter=painter, reader=reader, seed=first.seed, config=config
        )
        casts.append(result.cast)
        entry = result.cast.choose("1")
        line_up.append(_drawn(reader, first, seed, kind, number, config) if entry is None else entry.embedding)
    return casts, line_up


def _drawn(
    reader: Reader, story: StoryPage, seed: int, kind: int, number: int, config: PerformanceConfig
) -> Embedding | None:
    """Return the embedding of an exactly drawn individual of the same kind."""
    who = story.page.characters[0]
    rng = numpy_stream(seed, "filler", kind, number)
    character = SceneCharacter(
        species=who.attribute("species"),
        colour=who.attribute("colour"),
        box=who.box,
        identity=int(rng.integers(IDENTITIES)),
    )
    scene = SceneGraph(background=story.page.background, characters=(character,))
    reading = reader.detect([render(scene, config.size).image])[0]
    if not reading.characters:
        return None
    return np.asarray(reading.characters[0].identity, np.float32)


def _later_pages(
    painter: Painter, reader: Reader, story: list[StoryPage], cast: Cast, config: PerformanceConfig
) -> list[Embedding | None]:
    """Paint pages 2 to 4, once each, and return the character's embedding where it was recognised."""
    found: list[Embedding | None] = []
    for number, page in enumerate(story[1:], start=2):
        result = perform(
            page.page,
            cast,
            prompt=page.prompt,
            painter=painter,
            reader=reader,
            seed=page.seed,
            turn=number,
            config=config.replace(attempts=1, sketch=False),  # later pages know the individual from pictures only
        )
        finding = result.kept.findings[0]
        good = finding.seen is not None and finding.species_right and finding.colour_right
        reading = result.reading
        found.append(
            np.asarray(reading.characters[finding.seen].identity, np.float32)
            if good and reading is not None and finding.seen is not None
            else None
        )
    return found
