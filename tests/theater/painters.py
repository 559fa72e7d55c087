"""Stand-ins shared by the tests of this room: painters, readers and pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from huaben.diffusion.pipeline import Painting, PaintRequest
from huaben.promptbook.book import Character, Page, sorted_attributes
from huaben.theater.oracle import RendererPainter, RendererReader


def character(id="1", phrase="a red cat", box=(0.1, 0.4, 0.4, 0.9), **look: str) -> Character:
    look = {"species": "cat", "colour": "red", "accessory": "none"} | look
    return Character(
        id=id,
        name=look["species"],
        prompt=phrase,
        category=look["species"],
        box=box,
        attributes=sorted_attributes(look),
    )


def page(*characters: Character) -> Page:
    return Page(background="beach", style="flat", characters=tuple(characters))


@dataclass
class Recorder:
    """Passes requests on and keeps them."""

    painter: Any = field(default_factory=RendererPainter)
    requests: list[PaintRequest] = field(default_factory=list)

    def paint(self, request: PaintRequest, **kwargs: Any) -> Painting:
        self.requests.append(request)
        return self.painter.paint(request, **kwargs)


class BlindReader:
    """Sees nothing the first ``failures`` times, then reads like the oracle."""

    def __init__(self, painter: RendererPainter, failures: int) -> None:
        self.reader, self.failures, self.calls = RendererReader(painter), failures, 0

    def detect(self, images: Sequence[Any], *, masks: bool = False) -> list[Any]:
        from huaben.world.detector import Reading

        self.calls += 1
        if self.calls <= self.failures:
            return [Reading(characters=(), background="beach", style="flat") for _ in images]
        return self.reader.detect(images, masks=masks)
