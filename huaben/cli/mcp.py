"""``huaben mcp``: the studio for assistants, over stdio or streamable HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from ..optional import require
from .studio import Data, Database, Storage, account_of, open_data
from .studio_words import tell


def command(
    http: Annotated[int | None, typer.Option(metavar="PORT", help=tell("mcp_http"), min=1, max=65535)] = None,
    account: Annotated[str | None, typer.Option(help=tell("account"))] = None,
    data: Data = None,
    database: Database = None,
    storage: Storage = None,
) -> None:
    """Serve until the other side closes."""
    store = open_data(data, database, storage)
    require("mcp", extra="studio")
    from ..studio.mcp import make_server
    from ..studio.service import Studio

    studio = Studio(store)
    studio.start()
    server = make_server(studio, account_of(store, account))
    try:
        if http is None:
            server.run("stdio")
        else:
            server.run("streamable-http", host="127.0.0.1", port=http)
    finally:
        studio.close()
