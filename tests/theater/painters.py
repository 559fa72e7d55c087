"""Stand-ins shared by the tests of this room: painters, readers and pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from huaben.painting import Painting, PaintRequest
from huaben.promptbook.book import Character, Page, sorted_attributes
from huaben.stages.embedded.oracle import RendererPainter, RendererReader


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
    limits = RendererPainter.limits.replace(guidance=True)

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


def tiny_painter(seed: int = 0) -> Any:
    """An untrained pipeline of a few thousand weights; its pictures are noise, its contract is not."""
    import torch

    from huaben.clip.model import PRESETS as CLIPS
    from huaben.clip.model import Clip
    from huaben.diffusion.autoencoder import PRESETS as AUTOENCODERS
    from huaben.diffusion.autoencoder import Autoencoder
    from huaben.diffusion.grounding import PRESETS as PAINTERS
    from huaben.diffusion.grounding import GroundedDiT
    from huaben.diffusion.pipeline import EmbeddedPainter
    from huaben.language.encoder import PRESETS as ENCODERS
    from huaben.language.encoder import TextEncoder
    from huaben.language.tokenizer import Tokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = Tokenizer.train(["a red cat on the beach", "海滩上的一只红色的猫", "a blue dog"], vocab_size=300)
        clip = Clip(CLIPS["tiny"].replace(text_hidden_size=16, vocab_size=tokenizer.vocab_size))
        text = TextEncoder(ENCODERS["tiny"].replace(hidden_size=16, vocab_size=tokenizer.vocab_size))
        autoencoder = Autoencoder(AUTOENCODERS["tiny"].replace(pixel_unshuffle=4))
        painter = GroundedDiT(PAINTERS["tiny"])
        for weight in painter.parameters():
            if weight.ndim > 1 and not weight.any():
                torch.nn.init.normal_(weight, std=0.05)
        parts = {"painter": painter, "autoencoder": autoencoder, "clip": clip, "text": text}
        return EmbeddedPainter(tokenizer=tokenizer, **{name: part.eval() for name, part in parts.items()})
