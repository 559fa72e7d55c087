"""The ``huaben`` command: finds the verb, imports its module alone, and turns errors into two lines and a number.

A verb's module has either ``command``, a function with Typer annotations, or ``app``, a ``typer.Typer`` of several.
Results go to stdout, everything else to stderr. Exit status: 0, 1 failed, 2 a wrong command line or message,
130 interrupted.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from .. import __version__
from ..errors import (
    Cancelled,
    ConfigError,
    DialogueError,
    HuabenError,
    MissingDependencyError,
    ReplyFormatError,
    UsageError,
)
from .words import choose_language, say

VERBS: dict[str, str] = {
    "draw": "huaben.cli.draw",
    "chat": "huaben.cli.chat",
    "studio": "huaben.cli.studio",
    "mcp": "huaben.cli.mcp",
    "world": "huaben.cli.world",
    "train": "huaben.cli.train",
    "clip": "huaben.cli.clip",
    "lm": "huaben.cli.lm",
    "nas": "huaben.cli.nas",
    "bench": "huaben.cli.bench",
    "doctor": "huaben.cli.doctor",
    "version": "huaben.cli.version",
}

FAILED, WRONG, INTERRUPTED = 1, 2, 130

# Typer carries click's exceptions under its own name; the base is found through an exported class.
_CommandLineError: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


def verbs() -> list[str]:
    """Return the verbs of this installation."""
    return [name for name, module in VERBS.items() if importlib.util.find_spec(module) is not None]


def load_verb(name: str) -> Any:
    """Import a verb's module and return its command.

    Raises:
        MissingDependencyError: if a package it needs is not installed.
    """
    try:
        module = importlib.import_module(VERBS[name])
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"huaben {name} needs the module {error.name!r}, which is not installed",
            hint="install huaben again, or run huaben doctor",
        ) from error
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name, help=say(name))(module.command)
    command = typer.main.get_command(app)
    command.name = name
    return command


class LazyGroup(TyperGroup):
    """Lists verbs from a table and imports the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return verbs()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return TyperCommand(cmd_name, help=say(cmd_name)) if cmd_name in verbs() else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name not in verbs():
            near = difflib.get_close_matches(name, verbs(), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(verbs())}"
            raise UsageError(f"huaben has no command {name!r}", hint=hint)
        return name, load_verb(name), args[1:]


def build_app() -> Any:
    """Return the root command in the language chosen."""
    app = typer.Typer(cls=LazyGroup, add_completion=False, rich_markup_mode=None, help=say("about"))

    @app.callback(invoke_without_command=True)
    def root(
        ctx: typer.Context,
        version: bool = typer.Option(False, "--version", help=say("version")),
        debug: bool = typer.Option(False, "--debug", help=say("debug")),
        lang: str = typer.Option("", "--lang", metavar="en|zh", help=say("lang")),
    ) -> None:
        if version:
            typer.echo(__version__)
        elif ctx.invoked_subcommand is None:
            typer.echo(ctx.get_help())

    return typer.main.get_command(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and (stream.encoding or "").lower() not in ("utf-8", "utf8"):
            stream.reconfigure(errors="backslashreplace")
    arguments, debug, asked = global_options(list(sys.argv[1:] if argv is None else argv))
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if os.environ.get("HUABEN_OFFLINE", "") not in ("", "0"):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        choose_language(asked)
        result = build_app()(args=arguments, prog_name="huaben", standalone_mode=False)
    except KeyboardInterrupt:
        return complain(say("interrupted"), "", INTERRUPTED, debug)
    except typer.Abort:
        return complain(say("interrupted"), "", INTERRUPTED, debug)
    except HuabenError as error:
        return complain(error.message, error.hint, status(error), debug)
    except _CommandLineError as error:
        return complain(*usage_text(error), WRONG, debug)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # the reader is gone; keep the exit quiet
        return FAILED
    except Exception as error:
        return complain(say("unexpected", kind=type(error).__name__, text=error), say("use_debug"), FAILED, debug)
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def global_options(arguments: list[str]) -> tuple[list[str], bool, str | None]:
    """Take ``--debug`` and ``--lang`` from anywhere before ``--``: they may stand before or behind the verb."""
    rest: list[str] = []
    debug, lang = False, None
    while arguments:
        argument = arguments.pop(0)
        if argument == "--":
            return [*rest, argument, *arguments], debug, lang
        if argument == "--debug":
            debug = True
        elif argument == "--lang":
            lang = arguments.pop(0) if arguments else "?"
        elif argument.startswith("--lang="):
            lang = argument.partition("=")[2] or "?"
        else:
            rest.append(argument)
    return rest, debug, lang


def status(error: HuabenError) -> int:
    """Return the exit status of an error: 2 if what was typed is wrong, 130 if it was stopped, else 1."""
    if isinstance(error, Cancelled):
        return INTERRUPTED
    if isinstance(error, ReplyFormatError):
        return FAILED
    return WRONG if isinstance(error, (UsageError, ConfigError, DialogueError)) else FAILED


def usage_text(error: Exception) -> tuple[str, str]:
    """Return what is wrong with a command line, and where its help is."""
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "huaben"
    return message.rstrip("."), f"{path} --help"


def complain(message: str, hint: str, code: int, debug: bool) -> int:
    """Say what went wrong on stderr and return ``code``."""
    if debug and sys.exc_info()[0] is not None:
        traceback.print_exc()
    typer.echo(f"{say('error')}: {message}", err=True)
    if hint:
        typer.echo(f"{say('hint')}: {hint}", err=True)
    return code


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout, Chinese as it is."""
    typer.echo(json.dumps(value, ensure_ascii=False))
