"""``huaben bench NAME``: run one measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..bench import BENCHES, bench_names
from ..errors import UsageError
from .main import print_json
from .texts import tell
from .words import say

SHOWN = 80
"""Numbers printed; the rest is in the results file."""


def command(
    name: Annotated[str, typer.Argument(help=tell("bench_name"))] = "",
    out: Annotated[Path | None, typer.Option(help=tell("bench_out"))] = None,
    seed: Annotated[int, typer.Option(help=tell("bench_seed"))] = 0,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help=tell("bench_set"))] = None,
    as_json: Annotated[bool, typer.Option("--json", help=say("json"))] = False,
) -> None:
    """Run one measurement, or list them."""
    if not name:
        if as_json:
            print_json({"benches": {key: BENCHES[key] for key in bench_names()}})
            return
        typer.echo(tell("bench_list"))
        for key in bench_names():
            typer.echo(f"  {key:16} {BENCHES[key]}")
        return
    from ..bench.experiment import RESULTS_NAME, run_experiment

    values: dict[str, Any] = {}
    for text in settings or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {text!r} is not NAME=VALUE", hint="e.g. --set stories=20")
        values[key.strip()] = value.strip()
    folder = out or Path("experiments") / name
    record = run_experiment(name, seed=seed, settings=values, out=folder)
    typer.echo(tell("bench_written", path=folder / RESULTS_NAME), err=True)
    if as_json:
        print_json(record)
        return
    lines = _flat(record["results"])
    for key, value in lines[:SHOWN]:
        typer.echo(f"{key}: {value}")
    if len(lines) > SHOWN:
        typer.echo(tell("bench_more", count=len(lines) - SHOWN, path=folder / RESULTS_NAME))


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested results as dotted names; an interval in one line."""
    if isinstance(value, dict) and {"mean", "low", "high", "n"} <= value.keys():
        return [(prefix, f"{value['mean']} [{value['low']}, {value['high']}] n={value['n']}")]
    if isinstance(value, dict):
        return [item for key, part in value.items() for item in _flat(part, f"{prefix}.{key}" if prefix else str(key))]
    return [(prefix, value)]
