"""``huaben nas``: search architectures from a shell, one evaluation at a time or to the end of the budget."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DataError, UsageError
from .main import print_json
from .nas_texts import nas_text
from .words import say

if TYPE_CHECKING:
    from ..archsearch.base import SearchSpace
    from ..archsearch.searcher import Searcher
    from ..archsearch.task import Direction, TaskTable
    from ..archsearch.trials import Trial

METHOD_NAMES = "full, single, zero, utility, brp, regressor, random, evolution, tpe, source_rank"
SPACE_NAMES = "transnas-micro, transnas-macro, nasbench201"

KEPT_BYTES = 65_536
"""Of an evaluation's output: the metric is in its last line."""
SHOWN_CHARACTERS = 200
"""Of a last line that is no metric."""

app = typer.Typer(help=nas_text("nas"), no_args_is_help=True, add_completion=False, rich_markup_mode=None)

Folder = Annotated[Path, typer.Argument(help=nas_text("folder"))]
Space = Annotated[str, typer.Option(help=nas_text("space_option", names=SPACE_NAMES))]
Task = Annotated[str, typer.Option(help=nas_text("task"))]
DirectionOption = Annotated[str, typer.Option(metavar="max|min", help=nas_text("direction"))]
Sources = Annotated[Path | None, typer.Option(help=nas_text("sources"))]
Method = Annotated[str, typer.Option(help=nas_text("method", methods=METHOD_NAMES))]
Budget = Annotated[int, typer.Option(help=nas_text("budget"))]
Seed = Annotated[int, typer.Option(help=nas_text("seed"))]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help=nas_text("set"))]
AsJson = Annotated[bool, typer.Option("--json", help=say("json"))]


@app.command("search", help=nas_text("search"))
def search_command(
    folder: Folder,
    space: Space = "transnas-micro",
    task: Task = "task",
    direction: DirectionOption = "max",
    table: Annotated[Path | None, typer.Option(help=nas_text("table"))] = None,
    command: Annotated[str, typer.Option(help=nas_text("command"))] = "",
    sources: Sources = None,
    method: Method = "full",
    budget: Budget = 50,
    seed: Seed = 0,
    parallel: Annotated[int, typer.Option(help=nas_text("parallel"))] = 1,
    timeout: Annotated[float | None, typer.Option(help=nas_text("timeout"))] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Run a search to its end."""
    if (table is None) == (not command):
        raise UsageError("give either --table or --command", hint="huaben nas search --help")
    from ..archsearch.runner import SearchProgress, run_search

    def show(progress: SearchProgress) -> None:
        trial = progress.trial
        value = trial.error if trial.value is None else f"{trial.value:.6g}"
        typer.echo(f"{progress.used}/{progress.budget} {trial.text} {trial.state} {value}", err=True)

    with _held(folder):
        search = _open(folder, space, task, direction, sources, method, budget, seed, settings, table)
        known = None if table is None else _target(search, table)
        evaluate = _command(search, command, timeout) if known is None else _replay(known)
        result = run_search(search, evaluate, parallel=parallel, on_trial=show)
    _notes(search)
    if as_json:
        print_json({**result.to_dict(), **({} if known is None else _standing(known, result.best))})
    else:
        _print_best(search)
        if known is not None and result.best is not None:
            typer.echo(nas_text("standing", count=len(known), **_standing(known, result.best)))


@app.command("ask", help=nas_text("ask"))
def ask_command(
    folder: Folder,
    count: Annotated[int, typer.Option("--count", "-n", help=nas_text("count"))] = 1,
    space: Space = "transnas-micro",
    task: Task = "task",
    direction: DirectionOption = "max",
    sources: Sources = None,
    method: Method = "full",
    budget: Budget = 50,
    seed: Seed = 0,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Hand out architectures; the folder is made by the first call, which alone reads the settings."""
    with _held(folder):
        search = _open(folder, space, task, direction, sources, method, budget, seed, settings)
        trials = search.ask(count)
        done = search.done()
    _notes(search)
    if as_json:
        asked = [{**trial.to_dict(), "values": search.space.values(trial.arch)} for trial in trials]
        print_json({"trials": asked, "done": done, "left": search.left})
        return
    for trial in trials:
        typer.echo(f"{trial.id}\t{trial.text}")
    if not trials:
        typer.echo(nas_text("done"), err=True)


@app.command("tell", help=nas_text("tell"))
def tell_command(
    folder: Folder,
    trial: Annotated[int | None, typer.Argument(help=nas_text("id"))] = None,
    value: Annotated[float | None, typer.Option(help=nas_text("value"))] = None,
    state: Annotated[str, typer.Option(help=nas_text("state"))] = "complete",
    error: Annotated[str, typer.Option(help=nas_text("error"))] = "",
    as_json: AsJson = False,
) -> None:
    """Take one outcome from the command line, or one JSON object a line from stdin: id, value or state, error."""
    from ..archsearch.methods import load_search

    if trial is not None and state == "complete" and value is None:
        raise UsageError(f"trial {trial} has no value", hint="add --value VALUE, or say --state failed, pruned or lost")
    outcomes = [(trial, value, state, error)] if trial is not None else _outcomes(sys.stdin.read())
    with _held(folder):
        search = load_search(folder)
        told = [search.tell(i, v, state=s, error=e) for i, v, s, e in outcomes]  # type: ignore[arg-type]
        done = search.done()
    _notes(search)
    if as_json:
        print_json({"trials": [each.to_dict() for each in told], "done": done, "left": search.left})
        return
    for each in told:
        typer.echo(nas_text("told", id=each.id, state=each.state), err=True)


@app.command("report", help=nas_text("report"))
def report_command(
    folder: Folder,
    out: Annotated[Path | None, typer.Option(help=nas_text("folder"))] = None,
    form: Annotated[str, typer.Option(metavar="html|md", help=nas_text("form"))] = "html",
    top: Annotated[int, typer.Option(help=nas_text("count"))] = 12,
    pictures: Annotated[bool, typer.Option(help=nas_text("pictures"))] = True,
    as_json: AsJson = False,
) -> None:
    """Write a report of a search at any time."""
    from ..archsearch.methods import load_search
    from ..archsearch.report import write_report
    from .words import language

    with _held(folder):
        search = load_search(folder)
        path = write_report(
            search,
            out or folder / "report",
            form=form,  # type: ignore[arg-type]
            language=language(),
            top=top,
            pictures=pictures,
        )
        result = search.result().to_dict() if as_json else {}
    _notes(search)
    if as_json:
        print_json({"report": str(path), "result": result})
        return
    typer.echo(nas_text("report_written", path=path), err=True)
    _print_best(search)


@app.command("space", help=nas_text("space", names=SPACE_NAMES))
def space_command(
    space: Annotated[str, typer.Argument(help=nas_text("space_option", names=SPACE_NAMES))],
    sample: Annotated[int, typer.Option(help=nas_text("space_sample"))] = 3,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Show size, axes and examples."""
    from ..archsearch.spaces_json import load_space
    from ..rng import numpy_stream

    if sample < 0:
        raise UsageError(f"--sample {sample} is below 0", hint="use --sample 3")
    found = load_space(space)
    rng = numpy_stream(seed, "nas space")
    archs = [found.sample(rng) for _ in range(sample)]
    examples = [
        {"text": found.format(arch), "values": found.values(arch), "canonical": found.canonical(arch)} for arch in archs
    ]
    if as_json:
        axes = [{"name": axis.name, "kind": axis.kind, "choices": list(axis.choices)} for axis in found.axes]
        values = {"name": found.name, "size": found.size, "axes": axes, "examples": examples}
        print_json({**values, "definition": found.definition()})
        return
    typer.echo(f"{found.name}: {found.size}")
    for axis in found.axes:
        typer.echo(f"  {axis.name}: {', '.join(map(str, axis.choices))}")
    for example in examples:
        typer.echo(example["text"])


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder, and warnings off stderr: notes are printed by themselves."""
    from ..files import folder_lock

    with folder_lock(folder, "search"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _open(
    folder: Path,
    space: str,
    task: str,
    direction: str,
    sources: Path | None,
    method: str,
    budget: int,
    seed: int,
    settings: list[str] | None,
    table: Path | None = None,
) -> Searcher:
    """Load the folder's search, or start one in it."""
    from ..archsearch.candidates import Candidates
    from ..archsearch.methods import load_search, make_search, uses_sources
    from ..archsearch.readers import read_csv, read_header
    from ..archsearch.searcher import MANIFEST_NAME
    from ..archsearch.spaces_json import load_space
    from ..archsearch.task import TRANSNAS_TASKS, TaskSpec

    if (folder / MANIFEST_NAME).exists():
        return load_search(folder)
    if direction not in ("max", "min"):
        raise UsageError(f"--direction {direction!r}, expected max or min", hint="is a higher metric better?")
    where = load_space(space)
    known = TRANSNAS_TASKS.get(task)
    spec = known if known is not None and known.direction == direction else TaskSpec(task, direction)  # type: ignore[arg-type]
    values = {**_settings(settings or []), "budget": budget}
    tables: list[TaskTable] = []
    candidates = None
    if sources is not None:
        tables = [found for name, found in read_csv(sources, where).items() if name != task]
    if table is not None:
        target = _evaluated(table, where, task, spec.direction)
        candidates = Candidates(where, seed=seed, archs=target.archs)
        others = [name for name in read_header(table) if name in TRANSNAS_TASKS and name != task]
        if sources is None and others and uses_sources(method, values):
            tables = [found for found in read_csv(table, where, tasks=others).values() if len(found)]
    search = make_search(method, where, spec, sources=tables, settings=values, seed=seed, candidates=candidates)
    search.save(folder)
    return search


def _settings(texts: list[str]) -> dict[str, Any]:
    """Return NAME=VALUE texts as nested settings; values are read as JSON where they are JSON."""
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--set {text!r} is not NAME=VALUE", hint="e.g. --set predictor.width=32")
        *parents, last = name.strip().split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        try:
            place[last] = json.loads(value)
        except ValueError:
            place[last] = value
    return values


def _evaluated(path: Path, space: SearchSpace, task: str, direction: Direction) -> TaskTable:
    """Return one column of a table that has at least one value in it."""
    from ..archsearch.readers import read_csv

    found = read_csv(path, space, tasks=[task], directions=direction)[task]
    if not len(found):
        raise DataError(
            f"{path} has no value of {task!r}", hint="a replay needs rows with an architecture and its metric"
        )
    return found


def _target(search: Searcher, path: Path) -> TaskTable:
    """Return the column that a search replays; refuses a search that may propose what the table lacks."""
    table = _evaluated(path, search.space, search.task.name, search.task.direction)
    lacking = sum(arch not in table for arch in search.candidates.archs)
    if lacking or not search.candidates.listed:
        raise UsageError(
            f"the search in this folder may propose architectures that {path} lacks",
            hint="replay the table that it began with, or use a new folder",
        )
    return table


def _replay(table: TaskTable) -> Callable[[Trial], float]:
    """Return an evaluation that looks the metric up."""
    return lambda trial: table.value(trial.arch)


def _standing(table: TaskTable, best: Trial | None) -> dict[str, Any]:
    """Return the best trial's place in the table, from 1, and that in percent of its rows; ties share the better."""
    if best is None:
        return {"rank": None, "percentile": None}
    percent = table.best_rank_percent(best.arch)
    return {"rank": round(percent * len(table) / 100), "percentile": round(percent, 4)}


def _command(search: Searcher, template: str, timeout: float | None) -> Callable[[Trial], float]:
    """Return an evaluation that runs a command, without a shell, and reads the last line it prints."""
    from ..archsearch.runner import Lost

    words = shlex.split(template)
    if not words:
        raise UsageError("--command is empty", hint="e.g. --command 'python train.py {arch}'")

    def evaluate(trial: Trial) -> float:
        values = json.dumps(search.space.values(trial.arch), ensure_ascii=False)
        fills = {"{arch}": trial.text, "{id}": str(trial.id), "{values}": values}
        line = [_filled(word, fills) for word in words]
        try:
            code, output = _last_output(line, timeout)
        except subprocess.TimeoutExpired as error:
            raise Lost(f"no answer within {timeout:g} s") from error
        if code != 0:
            raise DataError(f"{words[0]} ended with exit code {code}")
        printed = output.strip().splitlines()
        if not printed:
            raise DataError(f"{words[0]} printed no metric")
        last = printed[-1]
        try:
            return float(last)
        except ValueError as error:
            shown = repr(last if len(last) <= SHOWN_CHARACTERS else last[:SHOWN_CHARACTERS] + "…")
            raise DataError(f"the last line of {words[0]} is no number: {shown}") from error

    return evaluate


def _last_output(line: list[str], timeout: float | None) -> tuple[int, str]:
    """Run a command and return its exit code and the end of what it prints; it is killed if it is late."""
    kept = bytearray()

    def read(stream: IO[bytes]) -> None:
        while chunk := stream.read1(KEPT_BYTES):  # type: ignore[attr-defined]  # a buffered reader
            kept.extend(chunk)
            del kept[:-KEPT_BYTES]

    with subprocess.Popen(line, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=read, args=(process.stdout,), daemon=True)
        reader.start()
        try:
            code = process.wait(timeout)
        except BaseException:
            process.kill()
            raise
        reader.join()
    return code, kept.decode("utf-8", errors="replace")


def _filled(word: str, fills: dict[str, str]) -> str:
    for name, text in fills.items():
        word = word.replace(name, text)
    return word


def _outcomes(text: str) -> list[tuple[int, float | None, str, str]]:
    """Read outcomes, one JSON object a line."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            outcome = (entry["id"], entry.get("value"), entry.get("state", "complete"), entry.get("error", ""))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"stdin, line {number} is not an outcome ({error})", hint='e.g. {"id": 0, "value": 0.5}'
            ) from error
        found.append(outcome)
    if not found:
        raise UsageError("no trial and nothing on stdin", hint="huaben nas tell FOLDER ID --value VALUE")
    return found


def _notes(search: Searcher) -> None:
    """Say on stderr what the user should know."""
    for text in search.notes:
        typer.echo(text, err=True)


def _print_best(search: Searcher) -> None:
    rows = [row for row in search.labels() if row[0].state == "complete"]
    counts = {"used": search.used, "budget": search.config.budget}
    if not rows:
        typer.echo(nas_text("no_best", **counts))
        return
    best = max(rows, key=lambda row: (row[1], -row[0].id))[0]
    typer.echo(nas_text("best", arch=best.text, value=best.value, **counts))
