"""Optional packages: asked for late, with an answer even where an installed one is broken.

A broken package does not always raise ImportError (a mismatched torchvision raises RuntimeError), so a probe survives
any exception and keeps its text.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType

from .errors import MissingDependencyError


@dataclass(frozen=True, slots=True)
class Probe:
    """What importing a package showed.

    Attributes:
        name: import name.
        version: None if it is absent or broken.
        problem: why it cannot be used; empty if it is absent or works.
    """

    name: str
    version: str | None
    problem: str = ""

    @property
    def works(self) -> bool:
        return self.version is not None


def probe(name: str) -> Probe:
    """Import a package and report, whatever happens."""
    try:
        if importlib.util.find_spec(name) is None:
            return Probe(name, None)
        module = importlib.import_module(name)
    except Exception as error:  # any: a broken package may raise anything
        return Probe(name, None, f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
    return Probe(name, str(getattr(module, "__version__", "unknown")))


def is_available(name: str) -> bool:
    """Return whether a package is installed and loads."""
    return probe(name).works


def require(name: str, *, extra: str) -> ModuleType:
    """Import an optional package.

    Args:
        name: import name.
        extra: huaben's extra that installs it.

    Raises:
        MissingDependencyError: if it is absent or broken.
    """
    found = probe(name)
    if not found.works:
        reason = f"does not load ({found.problem})" if found.problem else "is not installed"
        raise MissingDependencyError(
            f"package {name!r} {reason}", hint=f"pip install 'huaben[{extra}]', or run huaben doctor"
        )
    return importlib.import_module(name)
