"""Frozen configuration records that round-trip through JSON and TOML and refuse unknown fields."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Self

from .errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Base of every config: a frozen, keyword-only dataclass of JSON values, tuples and nested configs.

    Subclasses are decorated with ``@dataclass(frozen=True, kw_only=True, slots=True)`` and refuse impossible values
    in ``__post_init__``. Device, dtype, seed, paths and batch size belong to a run, never to a model's config.
    """

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; tuples become lists."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build the config.

        Raises:
            ConfigError: for an unknown or missing field, with the nearest known name, or a value of the wrong type.
        """
        if not isinstance(values, dict):
            raise ConfigError(f"{cls.__name__} expects an object, found {type(values).__name__}")
        hints = typing.get_type_hints(cls)
        known = {field.name: field for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(sorted(known))}"
                raise ConfigError(f"{cls.__name__} has no field {name!r}", hint=hint)
        missing = [
            name
            for name, field in known.items()
            if name not in values
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ConfigError(f"{cls.__name__} lacks {', '.join(missing)}", hint="add the missing fields")
        return cls(**{name: _typed(hints[name], value, f"{cls.__name__}.{name}") for name, value in values.items()})

    def replace(self, **changes: Any) -> Self:
        """Return a copy with ``changes``, checked again."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """Return sorted, indented JSON ending in a newline."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a ``.json`` or ``.toml`` file."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
        except ValueError as error:
            raise ConfigError(f"{path} is not valid {path.suffix or 'JSON'}: {error}") from error
        return cls.from_dict(values)


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Return ``value`` as the annotated type: nested configs, tuples, unions and scalars."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        errors: list[ConfigError] = []
        for option in args:
            if option is type(None):
                continue
            try:
                return _typed(option, value, where)
            except ConfigError as error:
                errors.append(error)
        raise errors[0]
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f"{where}={value!r} is none of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}={value!r} is not a list")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_typed(args[0], item, where) for item in value)
        if len(args) != len(value):
            raise ConfigError(f"{where} has {len(value)} values, expected {len(args)}")
        return tuple(_typed(arg, item, where) for arg, item in zip(args, value, strict=True))
    if isinstance(hint, type) and issubclass(hint, Config):
        return value if isinstance(value, hint) else hint.from_dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise ConfigError(f"{where}={value!r} is a {type(value).__name__}, expected {hint.__name__}")
    return value
