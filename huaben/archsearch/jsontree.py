"""Reading JSON written by people: every complaint starts with the JSON pointer (RFC 6901) of the value it is about."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ConfigError


@dataclass(frozen=True, slots=True)
class Node:
    """A value of a JSON document and its pointer; the pointer of the whole document is empty."""

    value: Any
    pointer: str = ""

    def fail(self, message: str, *, hint: str = "") -> NoReturn:
        raise ConfigError(f"{self.pointer or '/'}: {message}", hint=hint)

    def child(self, key: str | int) -> Node:
        """Return a member of an object or an item of an array that is known to have it."""
        escaped = str(key).replace("~", "~0").replace("/", "~1")
        return Node(self.value[key], f"{self.pointer}/{escaped}")

    def members(self, required: Collection[str] = (), optional: Collection[str] | None = None) -> dict[str, Node]:
        """Return an object's members; with ``optional``, those and ``required`` are all that may occur."""
        if not isinstance(self.value, dict):
            self.fail(f"found {_kind(self.value)}, expected an object")
        for key in required:
            if key not in self.value:
                self.fail(f"lacks {key!r}", hint=f"an object here has {', '.join(required)}")
        if optional is not None:
            known = [*required, *optional]
            for key in self.value:
                if key not in known:
                    near = difflib.get_close_matches(key, known, n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                    self.child(key).fail("unknown field", hint=hint)
        return {key: self.child(key) for key in self.value}

    def items(self, count: int | None = None) -> list[Node]:
        if not isinstance(self.value, list):
            self.fail(f"found {_kind(self.value)}, expected an array")
        if count is not None and len(self.value) != count:
            self.fail(f"has {len(self.value)} items, expected {count}")
        return [self.child(place) for place in range(len(self.value))]

    def text(self) -> str:
        if not isinstance(self.value, str):
            self.fail(f"found {_kind(self.value)}, expected a string")
        return self.value

    def integer(self, low: int | None = None) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            self.fail(f"found {_kind(self.value)}, expected a whole number")
        if low is not None and self.value < low:
            self.fail(f"{self.value} is below {low}")
        return self.value

    def number(self) -> float:
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)) or not math.isfinite(self.value):
            self.fail(f"found {_kind(self.value)}, expected a finite number")
        return float(self.value)

    def boolean(self) -> bool:
        if not isinstance(self.value, bool):
            self.fail(f"found {_kind(self.value)}, expected true or false")
        return self.value

    def one_of(self, allowed: Collection[str]) -> str:
        if self.text() not in allowed:
            near = difflib.get_close_matches(self.value, list(allowed), n=1)
            self.fail(
                f"{self.value!r} is none of {', '.join(allowed)}", hint=f"did you mean {near[0]!r}?" if near else ""
            )
        return self.value


def read_json(path: Path) -> Node:
    """Return the document of a file.

    Raises:
        ConfigError: if it cannot be read, is not JSON, or has an object with the same name twice.
    """
    try:
        return Node(json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique, parse_constant=_constant))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    except (ValueError, RecursionError) as error:
        reason = error.message if isinstance(error, ConfigError) else error
        raise ConfigError(f"{path} is not valid JSON: {reason}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ConfigError(f"the name {key!r} occurs twice in one object")
        found[key] = value
    return found


def _constant(name: str) -> NoReturn:
    raise ConfigError(f"{name} is not a JSON number")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value)) or f"the number {value!r}"
