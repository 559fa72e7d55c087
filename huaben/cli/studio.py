"""``huaben studio``: the page and the API on one port; accounts; stories in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from ..optional import require
from .main import print_json
from .sizes import parse_size
from .studio_words import tell
from .words import say

app = typer.Typer(add_completion=False, rich_markup_mode=None, invoke_without_command=True, help=say("studio"))
token_app = typer.Typer(add_completion=False, rich_markup_mode=None, help=tell("token"))
app.add_typer(token_app, name="token")

PACKAGES = ("fastapi", "uvicorn", "sqlalchemy", "alembic", "fsspec", "pydantic", "python_multipart")

Data = Annotated[Path | None, typer.Option("--data", metavar="DIR", help=tell("data"))]
Database = Annotated[
    str | None, typer.Option("--database", metavar="URL", help=tell("database"), envvar="HUABEN_DATABASE_URL")
]
Storage = Annotated[
    str | None, typer.Option("--storage", metavar="URL", help=tell("storage"), envvar="HUABEN_STORAGE_URL")
]


def check_packages() -> None:
    """Say what to install where something is missing."""
    for name in PACKAGES:
        require(name, extra="studio")


@app.callback()
def serve(
    ctx: typer.Context,
    host: Annotated[str, typer.Option(help=tell("host"))] = "127.0.0.1",
    port: Annotated[int, typer.Option(help=tell("port"), min=0, max=65535)] = 8600,
    data: Data = None,
    database: Database = None,
    storage: Storage = None,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", metavar="NAME", help=tell("allow_host"))
    ] = None,
    painters: Annotated[int, typer.Option(help=tell("painters"), min=1, max=64)] = 1,
    size: Annotated[str, typer.Option(metavar="HxW", help=tell("size"))] = "128x128",
    steps: Annotated[int, typer.Option(help=tell("steps"), min=1, max=200)] = 20,
    attempts: Annotated[int, typer.Option(help=tell("attempts"), min=1, max=8)] = 2,
    timeout: Annotated[float, typer.Option(help=tell("timeout"), min=1.0)] = 900.0,
    open_page: Annotated[bool, typer.Option("--open", help=tell("open"))] = False,
) -> None:
    """Serve the page and the API."""
    if ctx.invoked_subcommand is not None:
        return
    check_packages()
    import uvicorn

    from ..studio.app import make_app
    from ..studio.service import Studio, default_data
    from ..studio.store import open_store
    from ..studio.trust import is_loopback
    from ..theater.performance import PerformanceConfig

    store = open_store(
        data=data or (None if database and storage else default_data()), database=database, storage=storage
    )
    if not is_loopback(host) and not store.accounts():
        raise UsageError(tell("needs_token", host=host), hint="huaben studio token add NAME")
    config = PerformanceConfig(size=parse_size(size), steps=steps, attempts=attempts)
    studio = Studio(store, performance=config, painters=painters, timeout_s=timeout)
    application = make_app(studio, hosts=allow_host or ())
    settings = uvicorn.Config(
        application, host=host, port=port, log_level="warning", timeout_graceful_shutdown=5, server_header=False
    )
    server = uvicorn.Server(settings)
    shown = "127.0.0.1" if is_loopback(host) else host
    _greet(server, f"http://{shown}", port, open_page)
    server.run()


def _greet(server: object, address: str, port: int, open_page: bool) -> None:
    """Say where the studio is once it listens, and warm the painter up meanwhile."""
    import threading
    import time

    def watch() -> None:
        while not getattr(server, "started", False):
            if getattr(server, "should_exit", False):
                return
            time.sleep(0.05)
        sockets = [s for part in getattr(server, "servers", []) for s in part.sockets]
        where = f"{address}:{sockets[0].getsockname()[1] if sockets else port}/"
        typer.echo(tell("ready", where=where), err=True)
        if open_page:
            import webbrowser

            webbrowser.open(where)
        server.config.app.app.state.studio.crew.warm()  # type: ignore[attr-defined]

    threading.Thread(target=watch, daemon=True).start()


@token_app.command("add", help=tell("token_add"))
def token_add(name: str, data: Data = None, database: Database = None, storage: Storage = None) -> None:
    """Make an account."""
    store = open_data(data, database, storage)
    typer.echo(tell("token_made", name=name), err=True)
    typer.echo(store.add_account(name))


@token_app.command("list", help=tell("token_list"))
def token_list(
    data: Data = None,
    database: Database = None,
    storage: Storage = None,
    as_json: Annotated[bool, typer.Option("--json", help=say("json"))] = False,
) -> None:
    """List accounts."""
    names = [account.name for account in open_data(data, database, storage).accounts()]
    if as_json:
        print_json({"accounts": names})
    else:
        typer.echo("\n".join(names) or tell("token_none"))


@token_app.command("revoke", help=tell("token_revoke"))
def token_revoke(name: str, data: Data = None, database: Database = None, storage: Storage = None) -> None:
    """Remove an account."""
    open_data(data, database, storage).remove_account(name)
    typer.echo(tell("token_gone", name=name), err=True)


@app.command("import", help=tell("import"))
def take_in(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help=tell("import_folders"))],
    account: Annotated[str | None, typer.Option(help=tell("account"))] = None,
    data: Data = None,
    database: Database = None,
    storage: Storage = None,
    as_json: Annotated[bool, typer.Option("--json", help=say("json"))] = False,
) -> None:
    """Take session folders in as stories."""
    store = open_data(data, database, storage)
    from ..studio.export import read_folder

    owner = account_of(store, account)
    found = {str(folder): read_folder(store, owner, folder).id for folder in folders}
    if as_json:
        print_json({"stories": found})
    else:
        typer.echo("\n".join(f"{folder}  {id}" for folder, id in found.items()))


@app.command("export", help=tell("export"))
def give_out(
    story: Annotated[str, typer.Argument(help=tell("export_story"))],
    out: Annotated[Path, typer.Option(help=tell("export_out"))],
    turn: Annotated[str | None, typer.Option(help=tell("export_turn"))] = None,
    account: Annotated[str | None, typer.Option(help=tell("account"))] = None,
    data: Data = None,
    database: Database = None,
    storage: Storage = None,
    as_json: Annotated[bool, typer.Option("--json", help=say("json"))] = False,
) -> None:
    """Write a story as a session folder."""
    store = open_data(data, database, storage)
    from ..studio.export import write_folder

    found = store.story(account_of(store, account), story)
    count = write_folder(store, found, turn or found.head_id, out)
    if as_json:
        print_json({"folder": str(out), "turns": count})
    else:
        typer.echo(tell("exported", folder=out, turns=count), err=True)


@app.command("worker", help=tell("worker"))
def worker(
    data: Data = None,
    database: Database = None,
    storage: Storage = None,
    painters: Annotated[int, typer.Option(help=tell("painters"), min=1, max=64)] = 1,
    timeout: Annotated[float, typer.Option(help=tell("timeout"), min=1.0)] = 900.0,
) -> None:
    """Work on the queue of a PostgreSQL database until stopped."""
    store = open_data(data, database, storage)
    if store.dialect != "postgresql":
        raise UsageError(tell("worker_needs"), hint="--database postgresql://user@host/name")
    import time

    from ..studio.service import Studio

    studio = Studio(store, painters=painters, timeout_s=timeout)
    studio.start()
    typer.echo(tell("working", name=studio.runner.name), err=True)
    try:
        studio.crew.warm()
        while True:
            time.sleep(3600)
    finally:
        studio.close()


def account_of(store, name: str | None) -> str | None:  # type: ignore[no-untyped-def]
    """Return the id of an account.

    Raises:
        UsageError: if there is none of that name, or there are accounts and none was named.
    """
    accounts = {account.name: account.id for account in store.accounts()}
    if name is None and not accounts:
        return None
    if name not in accounts:
        raise UsageError(tell("which_account", names=", ".join(accounts) or "-"), hint="--account NAME")
    return accounts[name]


def open_data(data: Path | None, database: str | None, storage: str | None):  # type: ignore[no-untyped-def]
    """Open the store of the options."""
    check_packages()
    from ..studio.service import default_data
    from ..studio.store import open_store

    return open_store(
        data=data or (None if database and storage else default_data()), database=database, storage=storage
    )
