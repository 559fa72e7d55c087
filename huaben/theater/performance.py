"""One page to one picture: paint, read the picture back, paint again where it went wrong, remember who was recognised.

Source: TheaterGen (arXiv:2404.18919), sections 1.3 and 1.4 of its method: rehearsal with detection and up to three
attempts, then the final performance.
Differs: what is checked is the whole finished picture, not a character drawn alone; every retry uses a new derived
seed; the best attempt is kept and what is wrong with it is said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from ..config import Config
from ..errors import ConfigError
from ..notices import Notice, notice
from ..painting import (
    Facing,
    GuidanceWay,
    LatentGuidance,
    PaintCharacter,
    Painter,
    Painting,
    PaintRequest,
    Progress,
    ShouldCancel,
    check_size,
)
from ..promptbook.book import Character, Page
from ..rng import stream_seed
from ..world.vocabulary import TERMS
from .cast import Cast, CastEntry, Policy, cut_out
from .rehearsal import Placement, set_stage, standing_box
from .sketch import Sketch, sketch

if TYPE_CHECKING:
    from ..world.detector import ReadCharacter, Reading

MAX_PICTURE_SEED = 2**53 - 1
"""Seeds of pictures are kept small enough for every JSON reader."""
CHANGEABLE = (("colour", ""), ("accessory", "none"), ("expression", ""))
"""What is sketched anew when the page wants it otherwise, and what counts where the page says nothing."""
GUIDED_FRACTION = 1.0
Guidance = Literal[GuidanceWay, "off"]
MIN_MATCH = 0.2
"""A seen character that scores less is not taken for a planned one."""


class Reader(Protocol):
    """Anything that reads a picture back: the world's detector, or a stand-in."""

    def detect(self, images: Any, *, masks: bool = False) -> list[Reading]:
        """Return one reading per uint8 (H, W, 3) picture."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PerformanceConfig(Config):
    """How a page is painted.

    Attributes:
        size: (height, width) of the picture.
        steps, guidance_scale: of sampling.
        attempts: pictures painted at most before the best one is kept.
        tolerance: how far a character's centre may lie from the planned one, as a share of the picture.
        policy: which earlier picture of a character is its reference.
        use_references: False paints from words and boxes alone.
        sketch: draw whoever has no picture yet, or another look since, for painters that want it (:mod:`.sketch`).
        guidance: how sketches and earlier pictures guide painting beside being references: "set_in" after a share of
            the steps, "hold" for that share (the paper's way), "off" not at all.
        guided_fraction: the share of the steps.
        guidance_weight: with "hold", 1 replaces the guided latents, less blends.
        max_characters: more than these are left out, farthest back and smallest first.
    """

    size: tuple[int, int] = (256, 256)
    steps: int = 20
    guidance_scale: float = 3.0
    attempts: int = 3
    tolerance: float = 0.15
    policy: Policy = "canonical"
    use_references: bool = True
    sketch: bool = True
    guidance: Guidance = "set_in"
    guided_fraction: float = GUIDED_FRACTION
    guidance_weight: float = 0.8
    max_characters: int = 6

    def __post_init__(self) -> None:
        check_size(self.size)
        if self.attempts < 1:
            raise ConfigError(f"attempts={self.attempts} is less than 1", hint="use 1 to paint once")
        if not 0 < self.tolerance <= 1:
            raise ConfigError(f"tolerance={self.tolerance} is not in (0, 1]", hint="0.15 is a good value")
        if self.guidance not in get_args(Guidance):
            raise ConfigError(
                f"guidance={self.guidance!r} is none of {', '.join(get_args(Guidance))}", hint="use 'set_in'"
            )
        if not 0.0 <= self.guided_fraction <= 1.0:
            raise ConfigError(
                f"guided_fraction={self.guided_fraction} is not in [0, 1]", hint=f"{GUIDED_FRACTION} is a good value"
            )
        if self.max_characters < 1:
            raise ConfigError(f"max_characters={self.max_characters} is less than 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """How one planned character was read back.

    Attributes:
        id, instance: the character.
        seen: index into the reading's characters; None if it was not found.
        species_right, colour_right, place_right: True also where the page does not say.
        accessory_right, expression_right, facing_right: likewise; they do not decide whether a picture is kept.
        distance: from the planned centre, as a share of the picture.
        similarity: cosine of its identity with the cast's canonical entry; None without one.
    """

    id: str
    instance: int = 0
    seen: int | None = None
    species_right: bool = False
    colour_right: bool = False
    place_right: bool = False
    accessory_right: bool = False
    expression_right: bool = False
    facing_right: bool = False
    distance: float = 1.0
    similarity: float | None = None

    @property
    def right(self) -> bool:
        """Found where it should be, as what it should be, in its colour."""
        return self.seen is not None and self.species_right and self.colour_right and self.place_right

    @property
    def all_right(self) -> bool:
        """Right in everything the page says of it."""
        return self.right and self.accessory_right and self.expression_right and self.facing_right

    @property
    def score(self) -> float:
        """Return how good it is, from 0 (absent) to about 1."""
        if self.seen is None:
            return 0.0
        parts = 0.4 * self.species_right + 0.3 * self.colour_right + 0.2 * self.place_right
        return parts + 0.05 * self.accessory_right + 0.05 * (self.similarity or 0.0) - 0.02 * self.distance


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One painted picture: its seed, its score and what was found in it; the background is right if nobody asked."""

    seed: int
    score: float
    seconds: float
    extra: int = 0
    findings: tuple[Finding, ...] = ()
    background_right: bool = True

    @property
    def right(self) -> bool:
        """Every planned character is right, and so is the background."""
        return self.background_right and all(finding.right for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "seed": self.seed,
            "score": round(self.score, 4),
            "seconds": round(self.seconds, 3),
            "extra": self.extra,
            "background": self.background_right,
            "characters": [
                {
                    "id": finding.id,
                    "found": finding.seen is not None,
                    "species": finding.species_right,
                    "colour": finding.colour_right,
                    "place": finding.place_right,
                    "accessory": finding.accessory_right,
                    "expression": finding.expression_right,
                    "facing": finding.facing_right,
                    "similarity": None if finding.similarity is None else round(finding.similarity, 4),
                }
                for finding in self.findings
            ],
        }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Performance:
    """The kept picture, how it came about, and the cast after it."""

    image: npt.NDArray[np.uint8]
    seed: int
    seconds: float
    cast: Cast
    request: PaintRequest
    attempts: tuple[Attempt, ...]
    reading: Reading | None = None
    model: str = ""
    warnings: tuple[Notice, ...] = field(default=())

    @property
    def kept(self) -> Attempt:
        """The attempt whose picture was kept."""
        return next(attempt for attempt in self.attempts if attempt.seed == self.seed)


def attempt_seed(seed: int, attempt: int) -> int:
    """Return the seed of one attempt: ``seed`` itself first, then independent ones."""
    return seed if attempt == 0 else stream_seed(seed, "attempt", attempt) & MAX_PICTURE_SEED


def perform(
    page: Page,
    cast: Cast,
    *,
    prompt: str,
    painter: Painter,
    reader: Reader | None,
    seed: int,
    story_seed: int | None = None,
    turn: int = 0,
    config: PerformanceConfig | None = None,
    on_step: Callable[[int, Progress], None] | None = None,
    should_cancel: ShouldCancel | None = None,
) -> Performance:
    """Paint a page.

    Args:
        page: who is in the picture, and where.
        cast: who has been seen before.
        prompt: the whole page in words.
        painter: paints a request.
        reader: reads the picture back; None keeps the first picture unchecked and the cast as it is.
        seed: of the first attempt.
        story_seed: decides which individuals are sketched; ``seed`` by default.
        turn: recorded with new cast entries.
        config: how to paint.
        on_step: called with the attempt, from 0, and its progress.
        should_cancel: asked during painting.

    Raises:
        GenerationError: if the painter fails; Cancelled if the caller asked to stop.
    """
    config = config or PerformanceConfig()
    painter.limits.check(config.size, config.steps)
    started = time.perf_counter()
    characters, warnings = _limit(page.back_to_front(), config)
    sketches: dict[tuple[str, int | None], Sketch] = {}
    if config.sketch and config.use_references and painter.limits.sketch:
        sketches = _sketches(characters, page, cast, seed if story_seed is None else story_seed, config)
    warnings += _choose_warnings(characters, cast, sketches, config)
    tried: list[tuple[Attempt, Painting, PaintRequest, Reading | None]] = []
    for number in range(config.attempts if reader is not None else 1):
        request = build_request(
            characters,
            cast,
            prompt=prompt,
            negative=page.negative,
            seed=attempt_seed(seed, number),
            config=config,
            sketches=sketches,
        )
        step = None if on_step is None else _bind(on_step, number)
        painting = painter.paint(request, on_step=step, should_cancel=should_cancel)
        reading = reader.detect([painting.image], masks=True)[0] if reader is not None else None
        attempt = _judge(characters, page.background, reading, painting, cast, config)
        tried.append((attempt, painting, request, reading))
        if attempt.right:
            break
    attempt, painting, request, reading = max(tried, key=lambda item: item[0].score)
    warnings += painting.warnings + painter.limits.unused(request)
    if reading is None:
        warnings += (notice("unverified"),) if characters else ()
    else:
        warnings += _verdict(characters, page.background, attempt, reading, len(tried))
        cast = remember(cast, characters, attempt, reading, painting.image, turn, sketches)
    return Performance(
        image=painting.image,
        seed=painting.seed,
        seconds=time.perf_counter() - started,
        cast=cast,
        request=request,
        attempts=tuple(item[0] for item in tried),
        reading=reading,
        model=painting.model,
        warnings=warnings,
    )


def build_request(
    characters: Sequence[Character],
    cast: Cast,
    *,
    prompt: str,
    negative: str,
    seed: int,
    config: PerformanceConfig,
    sketches: Mapping[tuple[str, int | None], Sketch] = MappingProxyType({}),
) -> PaintRequest:
    """Return what the painter is asked for: phrases, boxes, and each character's reference: its sketch or its cast."""
    requests, placements = [], []
    for character in characters:
        facing = _facing(character)
        drawn = sketches.get((character.id, character.instance))
        if drawn is not None:
            requests.append(
                PaintCharacter(
                    id=character.id,
                    phrase=character.prompt,
                    box=drawn.box,
                    facing=drawn.facing,
                    reference=drawn.crop,
                    reference_facing=drawn.facing,
                )
            )
            placements.append(Placement(drawn, drawn.box))
            continue
        entry = _reference(character, cast, config)
        box = character.box if entry is None else standing_box(entry, character.box, config.size)
        requests.append(
            PaintCharacter(
                id=character.id,
                phrase=character.prompt,
                box=box,
                facing=facing,
                reference=None if entry is None else entry.crop,
                reference_facing=None if entry is None else entry.facing,
            )
        )
        if entry is not None and entry.colour == character.attribute("colour", entry.colour):
            placements.append(Placement(entry, box, facing))
    guidance = None
    if config.guidance != "off" and config.guided_fraction > 0 and placements:
        stage = set_stage(placements, config.size)
        guidance = LatentGuidance(
            canvas=stage.canvas,
            masks=stage.masks,
            way=config.guidance,
            fraction=config.guided_fraction,
            weight=config.guidance_weight,
        )
    return PaintRequest(
        prompt=prompt,
        negative=negative,
        size=config.size,
        seed=seed,
        steps=config.steps,
        guidance_scale=config.guidance_scale,
        characters=tuple(requests),
        guidance=guidance,
    )


def find_characters(
    characters: Sequence[Character], reading: Reading, cast: Cast, tolerance: float = 0.15
) -> tuple[Finding, ...]:
    """Match planned with seen characters, one to one, so that the summed score is greatest.

    Of more than eight seen characters only the eight most confident are considered.
    """
    seen = reading.characters[:8]
    table = [[_compare(c, s, index, cast, tolerance) for index, s in enumerate(seen)] for c in characters]
    best: dict[int, tuple[float, tuple[Finding, ...]]] = {0: (0.0, ())}  # bits of the seen ones in use -> best so far
    for character, row in zip(characters, table, strict=True):
        absent = Finding(id=character.id, instance=character.instance or 0)
        grown = {used: (total, (*findings, absent)) for used, (total, findings) in best.items()}
        for used, (total, findings) in best.items():
            for column, finding in enumerate(row):
                key, score = used | 1 << column, finding.score
                if used >> column & 1 or score < MIN_MATCH:
                    continue
                if key not in grown or total + score > grown[key][0]:
                    grown[key] = (total + score, (*findings, finding))
        best = grown
    return max(best.values(), key=lambda item: item[0])[1]


def remember(
    cast: Cast,
    characters: Sequence[Character],
    attempt: Attempt,
    reading: Reading,
    image: npt.NDArray[np.uint8],
    turn: int,
    sketches: Mapping[tuple[str, int | None], Sketch] = MappingProxyType({}),
) -> Cast:
    """Return the cast with every character that was found right and cut out cleanly.

    Whoever was painted after a sketch is kept as sketched: each page is then one generation from the same picture,
    where a cut-out of a page loses something with every further page.
    """
    for character, finding in zip(characters, attempt.findings, strict=True):
        if not finding.right or finding.seen is None:
            continue
        entry = entry_of(reading.characters[finding.seen], image, id=character.id, prompt=character.prompt, turn=turn)
        if entry is not None:
            drawn = sketches.get((character.id, character.instance))
            if drawn is not None:
                look = (entry.species, *_wanted_look(character))
                entry = replace(entry, look=look, crop=drawn.crop, mask=drawn.mask, facing=drawn.facing)
            cast = cast.add(entry)
    return cast


def entry_of(seen: ReadCharacter, image: npt.NDArray[np.uint8], *, id: str, prompt: str, turn: int) -> CastEntry | None:
    """Return the cast entry of a recognised character; None if its mask is empty or covers the picture."""
    mask = seen.mask
    if mask is not None and not 0.0 < float(mask.mean()) < 0.95:
        return None
    crop, crop_mask = cut_out(image, seen.box, mask)
    facing: Facing = "left" if seen.facing == "left" else "right"
    return CastEntry(
        id=id,
        turn=turn,
        prompt=prompt,
        look=(seen.species, seen.colour, seen.accessory),
        facing=facing,
        box=seen.box,
        crop=crop,
        mask=crop_mask,
        embedding=np.asarray(seen.identity, np.float32).copy(),
    )


def _sketches(
    characters: Sequence[Character], page: Page, cast: Cast, story_seed: int, config: PerformanceConfig
) -> dict[tuple[str, int | None], Sketch]:
    """Return the sketch of every character that the cast does not show as the page wants it."""
    sketches = {}
    for character in characters:
        entry = _reference(character, cast, config)
        if entry is None or entry.look[1:] != _wanted_look(character)[: len(entry.look) - 1]:
            drawn = sketch(character, page, story_seed, config.size)
            if drawn is not None:
                sketches[character.id, character.instance] = drawn
    return sketches


def _wanted_look(character: Character) -> tuple[str, ...]:
    """Return colour, accessory and expression as the page wants them."""
    return tuple(character.attribute(name, default) for name, default in CHANGEABLE)


def _bind(on_step: Callable[[int, Progress], None], number: int) -> Callable[[Progress], None]:
    """Return a callback that adds the attempt's number."""
    return lambda progress: on_step(number, progress)


def _limit(
    characters: tuple[Character, ...], config: PerformanceConfig
) -> tuple[tuple[Character, ...], tuple[Notice, ...]]:
    """Keep the nearest and largest characters; say who was left out."""
    if len(characters) <= config.max_characters:
        return characters, ()

    def importance(character: Character) -> tuple[int, float]:
        x0, y0, x1, y1 = character.box
        return character.z, (x1 - x0) * (y1 - y0)

    kept = sorted(characters, key=importance)[-config.max_characters :]
    names = ", ".join(character.name for character in characters if character not in kept)
    return tuple(c for c in characters if c in kept), (
        notice("too_many_characters", limit=config.max_characters, names=names),
    )


def _reference(character: Character, cast: Cast, config: PerformanceConfig) -> CastEntry | None:
    """Return the cast entry a character is painted after."""
    if not config.use_references:
        return None
    return cast.choose(character.id, config.policy, species=character.attribute("species") or None)


def _choose_warnings(
    characters: Sequence[Character],
    cast: Cast,
    sketches: Mapping[tuple[str, int | None], Sketch],
    config: PerformanceConfig,
) -> tuple[Notice, ...]:
    """Say which known characters neither an earlier picture nor a sketch guides, because their colour changed."""
    if config.guidance == "off" or config.guided_fraction <= 0:
        return ()
    changed = []
    for character in characters:
        entry = _reference(character, cast, config)
        traced = entry is None or entry.colour == character.attribute("colour", entry.colour)
        if not traced and (character.id, character.instance) not in sketches:
            changed.append(notice("guidance_off", name=character.name))
    return tuple(changed)


def _facing(character: Character) -> Facing | None:
    """Return the way the page says a character faces."""
    value = character.attribute("facing")
    return "left" if value == "left" else "right" if value == "right" else None


def _compare(character: Character, seen: ReadCharacter, index: int, cast: Cast, tolerance: float) -> Finding:
    """Say how well one seen character is one planned character."""
    x = (character.box[0] + character.box[2] - seen.box[0] - seen.box[2]) / 2
    y = (character.box[1] + character.box[3] - seen.box[1] - seen.box[3]) / 2
    distance = float(np.hypot(x, y))
    return Finding(
        id=character.id,
        instance=character.instance or 0,
        seen=index,
        species_right=seen.species == character.attribute("species", seen.species),
        colour_right=seen.colour == character.attribute("colour", seen.colour),
        place_right=distance <= tolerance,
        accessory_right=seen.accessory == character.attribute("accessory", "none"),
        expression_right=seen.expression == character.attribute("expression", seen.expression),
        facing_right=seen.facing == character.attribute("facing", seen.facing),
        distance=distance,
        similarity=_similarity(cast.choose(character.id), seen),
    )


def _similarity(entry: CastEntry | None, seen: ReadCharacter) -> float | None:
    """Return the cosine of two identity embeddings; None where one is missing."""
    if entry is None or entry.embedding.size == 0 or entry.embedding.shape != np.shape(seen.identity):
        return None
    norm = float(np.linalg.norm(entry.embedding) * np.linalg.norm(seen.identity))
    return float(entry.embedding @ np.asarray(seen.identity, np.float32)) / norm if norm else None


def _judge(
    characters: Sequence[Character],
    background: str,
    reading: Reading | None,
    painting: Painting,
    cast: Cast,
    config: PerformanceConfig,
) -> Attempt:
    """Score one picture: the mean over its characters, less for each uninvited one and for another background."""
    if reading is None:
        return Attempt(seed=painting.seed, score=0.0, seconds=painting.seconds)
    findings = find_characters(characters, reading, cast, config.tolerance)
    extra = len(reading.characters) - sum(finding.seen is not None for finding in findings)
    mean = sum(finding.score for finding in findings) / len(findings) if findings else 1.0
    background_right = background not in TERMS["background"] or reading.background == background
    return Attempt(
        seed=painting.seed,
        score=mean - 0.05 * extra - 0.15 * (not background_right),
        seconds=painting.seconds,
        extra=extra,
        findings=findings,
        background_right=background_right,
    )


def _verdict(
    characters: Sequence[Character], background: str, attempt: Attempt, reading: Reading, tries: int
) -> tuple[Notice, ...]:
    """Say how often it was painted, and what is still wrong."""
    notices = [notice("attempts_used" if attempt.right else "best_of_attempts", count=tries)] if tries > 1 else []
    for character, finding in zip(characters, attempt.findings, strict=True):
        if finding.seen is None:
            notices.append(notice("character_absent", name=character.name))
            continue
        seen = reading.characters[finding.seen]
        for attribute, right in (
            ("species", finding.species_right),
            ("colour", finding.colour_right),
            ("accessory", finding.accessory_right or not _sure(seen, "accessory")),
            ("expression", finding.expression_right or not _sure(seen, "expression")),
            ("facing", finding.facing_right or not _sure(seen, "facing")),
        ):
            if not right:
                notices.append(
                    notice(
                        f"character_{attribute}",
                        name=character.name,
                        expected=_both(attribute, character.attribute(attribute, "none")),
                        found=_both(attribute, getattr(seen, attribute)),
                    )
                )
        if not finding.place_right:
            notices.append(notice("character_misplaced", name=character.name))
    if not attempt.background_right:
        wanted, found = _both("background", background), _both("background", reading.background)
        notices.append(notice("background_wrong", expected=wanted, found=found))
    return tuple(notices)


SURE = 0.9
"""How likely the reader must find a wrong accessory, expression or facing before the user is told."""


def _sure(seen: ReadCharacter, attribute: str) -> bool:
    """Return whether the reader is sure of what it saw; a reader that does not say how likely is taken at its word."""
    likely = seen.probabilities.get(attribute)
    return likely is None or float(np.max(likely)) >= SURE


def _both(attribute: str, key: str) -> tuple[str, str]:
    """Return a value's name in both languages; the key itself where the world has no word for it."""
    term = TERMS[attribute].get(key)
    return (term.name("en"), term.name("zh")) if term is not None else (key, key)
