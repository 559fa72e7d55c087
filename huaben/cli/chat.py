"""``huaben chat``: a picture story by talking, or by a script of messages."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DataError, DialogueError, UsageError
from .main import complain, print_json, status
from .progress import Steps
from .sizes import parse_size
from .texts import tell
from .words import say

if TYPE_CHECKING:
    from ..dialogue import Message
    from ..session import Event, Session, Turn

DEMO = Path(__file__).with_name("demo.jsonl")
LEAVE = ("/quit", "/exit", "/q", "/bye", "quit", "exit", "q", "bye", "退出", "再见")
DEFAULT_FOLDER = Path("huaben-story")


def command(
    script: Annotated[Path | None, typer.Option(help=tell("chat_script"))] = None,
    out: Annotated[Path | None, typer.Option(help=tell("chat_out"))] = None,
    demo: Annotated[bool, typer.Option("--demo", help=tell("chat_demo"))] = False,
    seed: Annotated[int | None, typer.Option(help=tell("chat_seed"))] = None,
    size: Annotated[str, typer.Option(metavar="HxW", help=tell("size"))] = "256x256",
    steps: Annotated[int, typer.Option(help=tell("steps"))] = 20,
    attempts: Annotated[int, typer.Option(help=tell("draw_attempts"))] = 3,
    model: Annotated[Path | None, typer.Option(help=tell("draw_model"))] = None,
    as_json: Annotated[bool, typer.Option("--json", help=say("json"))] = False,
) -> None:
    """Talk, or play a script."""
    if demo and script is not None:
        raise UsageError("--demo and --script were both given", hint="use one of them")
    if steps < 1 or attempts < 1:
        name, value = ("steps", steps) if steps < 1 else ("attempts", attempts)
        raise UsageError(f"--{name} {value} is below 1", hint=f"use --{name} {20 if name == 'steps' else 3}")
    path = DEMO if demo else script
    messages = None if path is None else read_script(path)

    from ..session import Session
    from ..stations import Stations
    from ..storyboard import write_storyboard
    from ..theater.performance import PerformanceConfig

    folder = out or DEFAULT_FOLDER
    config = PerformanceConfig(size=parse_size(size), steps=steps, attempts=attempts)
    with Session.open(folder, seed=seed, config=config, stations=Stations(model=model)) as session:
        before = len(session.turns)
        for note in session.notices:
            _note(note.text(_shown_language()))
        screen = Screen(session, quiet=as_json)
        played = 0 if messages is None else _already_played(folder, messages)
        try:
            if messages is not None:
                if before:
                    typer.echo(tell("continued", folder=folder, turns=before, played=played), err=True)
                for message in messages[played:]:
                    screen.say(message)
            else:
                _talk(screen, before)
        finally:  # what is finished is shown, whatever happened after it
            turns = [turn.to_dict() for turn in session.turns[before - played :]]
            board = write_storyboard(folder) if session.turns else None
            if board is not None:
                typer.echo(tell("storyboard", html=board.html, sheet=board.sheet), err=True)
            if as_json and (turns or sys.exc_info()[0] is None):
                files = None if board is None else {"html": str(board.html), "png": str(board.sheet)}
                print_json({"folder": str(folder), "seed": session.config.seed, "turns": turns, "storyboard": files})


def _already_played(folder: Path, messages: list[Message]) -> int:
    """Return how many first lines of a script the story ends with: those that an interrupted run has played."""
    from ..dialogue.message import clean_text
    from ..session import read_turns

    told = [turn["message"] for turn in read_turns(folder)]
    script = [clean_text(message.text, has_image=message.image is not None) for message in messages]
    for count in range(min(len(told), len(script)), 0, -1):
        if told[-count:] == script[:count]:
            return count
    return 0


def read_script(path: Path) -> list[Message]:
    """Return the messages of a script.

    A picture's path may be absolute, relative to the script, or relative to the current folder.

    Raises:
        DataError: if the file cannot be read.
        UsageError: naming the line that is not a message.
    """
    from ..dialogue import Message

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise DataError(f"cannot read {path}: {reason}", hint="give a JSON-lines file") from error
    messages = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        values = _line(line, f"line {number} of {path}")
        image = values.get("image")
        if image is not None:
            image = str(next((place for place in (path.parent / image, Path(image)) if place.is_file()), Path(image)))
        messages.append(Message(text=values.get("text", ""), image=image))
    if not messages:
        raise UsageError(f"{path} has no messages", hint='write one {"text": "…"} a line')
    return messages


def _line(line: str, where: str) -> dict[str, Any]:
    """Return one line of a script, checked."""
    hint = 'write {"text": "a red cat"} or {"text": "…", "image": "cat.png"}'
    try:
        values = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where} is not JSON: {error}", hint=hint) from error
    if not isinstance(values, dict):
        raise UsageError(f"{where} is a {type(values).__name__}, expected an object", hint=hint)
    unknown = sorted(set(values) - {"text", "image"})
    if unknown:
        raise UsageError(f"{where} has the unknown field {unknown[0]!r}", hint=hint)
    for name in ("text", "image"):
        if values.get(name) is not None and not isinstance(values[name], str):
            raise UsageError(f"{name!r} in {where} is a {type(values[name]).__name__}, expected text", hint=hint)
    if not (values.get("text") or "").strip() and values.get("image") is None:
        raise UsageError(f"{where} has neither text nor image", hint=hint)
    return {name: value for name, value in values.items() if value is not None}


@dataclass(slots=True)
class Screen:
    """Shows a session in the terminal.

    Attributes:
        session: the open session.
        quiet: nothing on stdout.
    """

    session: Session
    quiet: bool = False

    def say(self, message: Message) -> Turn:
        """Send one message and show the turn."""
        from ..session import run_turn

        config = self.session.config.performance
        with Steps(attempts=config.attempts, loading=not self.session.stations.painter_is_loaded) as progress:

            def show(event: Event) -> None:
                """Show one denoising step."""
                if event.kind == "step" and event.progress is not None:
                    progress.step(event.attempt, event.progress)

            turn = run_turn(self.session, message, on_event=show)
        if not self.quiet:
            self._show(turn)
        return turn

    def _show(self, turn: Turn) -> None:
        """Print reply, notes and picture."""
        from .thumbnail import protocol, thumbnail

        typer.echo(f"huaben: {turn.reply}")
        for warning in turn.warnings:
            _note(warning)
        if turn.image is None:
            return
        how = protocol(sys.stdout)
        if how != "none":
            sys.stdout.write(thumbnail(self.session.picture(turn.image), how))
            sys.stdout.flush()
        typer.echo(str(self.session.folder / turn.image))


def _talk(screen: Screen, before: int) -> None:
    """Read messages until the end of input or /quit; an error ends its message, not the talk."""
    from ..dialogue import Message
    from ..errors import Cancelled, HuabenError

    folder = screen.session.folder
    greeting = tell("chat_resumed", folder=folder, turn=before) if before else tell("chat_ready", folder=folder)
    typer.echo(f"{greeting}\n{tell('chat_leave')}", err=True)
    image: str | None = None
    for line in _lines():
        word, _, rest = line.strip().partition(" ")
        if line.strip().lower() in LEAVE:
            break
        if word == "/seed":
            typer.echo(tell("chat_seeds", seed=screen.session.config.seed), err=True)
            continue
        if word == "/undo":
            line = tell("chat_undo")
        if word == "/help":
            typer.echo(f"{tell('chat_help')}\n{tell('chat_attach')}", err=True)
            continue
        if word == "/image":
            image = rest.strip().strip("'\"") or None
            if image is not None:
                typer.echo(tell("chat_attached"), err=True)
            continue
        if not line.strip() and image is None:
            continue
        try:
            screen.say(Message(text=line, image=image))
            image = None
        except (Cancelled, KeyboardInterrupt):
            typer.echo(tell("chat_cancelled"), err=True)
        except (DialogueError, DataError) as error:
            image = None
            complain(error.message, error.hint, status(error), False)
        except HuabenError as error:
            complain(error.message, error.hint, status(error), False)
    typer.echo(tell("bye", folder=folder), err=True)


def _lines() -> Iterator[str]:
    """Yield what is typed; a prompt is shown in a terminal."""
    if sys.stdin.isatty():
        try:
            import readline  # noqa: F401 - line editing and history
        except ImportError:
            pass
    while True:
        if sys.stdin.isatty():
            try:
                yield input(f"{tell('you')}: ")
            except EOFError:
                return
        else:
            line = sys.stdin.readline()
            if not line:
                return
            yield line


def _note(text: str) -> None:
    """Print an announcement on stderr."""
    typer.echo(f"{tell('warning')}: {text}", err=True)


def _shown_language() -> Any:
    """Return the language of the command line."""
    from .words import language

    return language()
