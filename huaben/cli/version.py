"""``huaben version``."""

from __future__ import annotations

import platform
from typing import Annotated

import typer

from .. import __version__
from .main import print_json
from .words import say


def command(as_json: Annotated[bool, typer.Option("--json", help=say("json"))] = False) -> None:
    """Print the version."""
    if as_json:
        print_json({"huaben": __version__, "python": platform.python_version()})
    else:
        typer.echo(__version__)
