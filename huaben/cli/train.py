"""``huaben train NAME``: train an embedded model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from ..recipes import RECIPES, load_recipe, recipe_names
from .main import print_json
from .words import say


def command(
    name: Annotated[str, typer.Argument(help=say("train_name"))] = "",
    minutes: Annotated[float | None, typer.Option(help=say("train_minutes"))] = None,
    steps: Annotated[int | None, typer.Option(help=say("train_steps"))] = None,
    out: Annotated[Path | None, typer.Option(help=say("train_out"))] = None,
    resume: Annotated[bool, typer.Option("--resume", help=say("train_resume"))] = False,
    device: Annotated[str, typer.Option(help=say("train_device"))] = "auto",
    threads: Annotated[int | None, typer.Option(help=say("train_threads"))] = None,
    workers: Annotated[int | None, typer.Option(help=say("train_workers"))] = None,
    seed: Annotated[int, typer.Option(help=say("train_seed"))] = 0,
    as_json: Annotated[bool, typer.Option("--json", help=say("json"))] = False,
) -> None:
    """Train one recipe, or list them."""
    if not name:
        list_recipes(as_json)
        return
    recipe = load_recipe(name, seed=seed)
    from ..training import fit

    changes: dict[str, Any] = {"seed": seed}
    if threads is not None:
        changes["threads"] = threads
    if workers is not None:
        changes |= {"workers": workers, "prefetch": "process"}
    result = fit(
        recipe,
        out or Path("runs") / name,
        minutes=minutes,
        steps=steps,
        resume=resume,
        device=device,
        config=recipe.fit.replace(**changes),
    )
    if as_json:
        print_json({"recipe": name, **dataclasses.asdict(result), "folder": str(result.folder)})
        return
    typer.echo(
        say("trained", name=name, steps=result.steps, minutes=result.seconds / 60, folder=result.folder), err=True
    )
    for key, value in result.scores.items():
        typer.echo(f"{key}: {value:.4g}")


def list_recipes(as_json: bool) -> None:
    if as_json:
        print_json({"recipes": RECIPES})
        return
    typer.echo(say("train_list"))
    for name in recipe_names():
        typer.echo(f"  {name:12} {RECIPES[name]}")
