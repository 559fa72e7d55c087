"""The parts a conversation passes through, loaded when first needed: screenwriter, painter, reader.

The embedded ones come from the package's own weights; any part can be given instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError
from .theater.performance import Reader

if TYPE_CHECKING:
    from .painting import Painter

WEIGHTS = Path(__file__).resolve().parent / "weights"


@dataclass(slots=True)
class Stations:
    """Who does what in a session.

    Attributes:
        model: folder of the painter's pipeline; None takes the embedded one.
        make_screenwriter, make_painter, make_reader: called once each, when first needed.
    """

    model: Path | None = None
    make_screenwriter: Callable[[], Any] | None = None
    make_painter: Callable[[], Painter] | None = None
    make_reader: Callable[[], Reader | None] | None = None
    _made: dict[str, Any] = field(default_factory=dict)

    @property
    def screenwriter(self) -> Any:
        """Reads messages."""
        return self._part("screenwriter", self.make_screenwriter or load_screenwriter)

    @property
    def painter(self) -> Painter:
        """Paints requests."""
        return self._part("painter", self.make_painter or (lambda: load_painter(self.model)))

    @property
    def reader(self) -> Reader | None:
        """Reads pictures back; None leaves them unchecked."""
        return self._part("reader", self.make_reader or load_reader)

    @property
    def painter_is_loaded(self) -> bool:
        """Whether the painter was needed already."""
        return "painter" in self._made

    def _part(self, name: str, make: Callable[[], Any]) -> Any:
        """Make a part once."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


def load_screenwriter() -> Any:
    """Return the rule-based screenwriter."""
    from .stages.embedded.screenwriter import Screenwriter

    return Screenwriter()


def load_painter(folder: Path | None = None) -> Painter:
    """Return the painter of a pipeline folder; the embedded one by default.

    Raises:
        CheckpointError: if the folder is not a complete pipeline.
    """
    from .diffusion.pipeline import EmbeddedPainter

    return EmbeddedPainter.from_pretrained(folder or WEIGHTS)


def load_detector(folder: Path | None = None) -> Any:
    """Return the world's detector; the embedded one by default.

    Raises:
        CheckpointError: if the folder is not a detector.
    """
    path = folder or WEIGHTS / "detector"
    if not path.is_dir():
        raise CheckpointError(f"there is no detector at {path}", hint="train one: huaben train detector")
    from .world.detector import Detector

    return Detector.from_pretrained(path)


def load_reader() -> Reader | None:
    """Return the embedded detector, or None where none was trained yet; pictures are then left unchecked."""
    return load_detector() if (WEIGHTS / "detector").is_dir() else None
