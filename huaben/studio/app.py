"""The application: page, API and pictures on one port."""

from __future__ import annotations

import logging
import mimetypes
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from .. import __version__
from ..errors import (
    Cancelled,
    ConfigError,
    DataError,
    DialogueError,
    GenerationError,
    HuabenError,
    PromptBookError,
    StoreError,
)
from .api import api_routes
from .openai_api import openai_routes
from .service import Studio, picture_file
from .trust import BodyTooLarge, Gate, envelope

PAGE = Path(__file__).with_name("page")
LOG = logging.getLogger("huaben.studio")


def make_app(studio: Studio, *, hosts: Iterable[str] = (), rate: int = 240) -> Any:
    """Return the ASGI application of a studio; it starts the workers and closes the studio at its end.

    Args:
        studio: the service behind it.
        hosts: see :class:`~huaben.studio.trust.Gate`.
        rate: writes an account may begin a minute.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        import anyio.to_thread

        anyio.to_thread.current_default_thread_limiter().total_tokens = 128
        studio.start()
        yield
        studio.close()

    app = FastAPI(
        title="huaben studio",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
    )
    gate = Gate(app, studio.store, hosts=hosts, rate=rate)
    app.state.gate = lambda: gate
    app.state.studio = studio
    app.include_router(api_routes(studio))
    app.include_router(openai_routes(studio))
    _errors(app)
    _files(app, studio)
    return gate


def _errors(app: FastAPI) -> None:
    """Say every error in one form."""

    @app.exception_handler(HuabenError)
    def known(_: Request, error: HuabenError) -> JSONResponse:
        status = status_of(error)
        return JSONResponse(envelope(status, error.message, code=error.code, hint=error.hint), status)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        message = f"{where}: {first['msg']}" if where else str(first["msg"])
        return JSONResponse(envelope(422, message, code="validation", param=where or None), 422)

    @app.exception_handler(StarletteHTTPException)
    def http(_: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse(envelope(error.status_code, str(error.detail)), error.status_code, error.headers)

    @app.exception_handler(BodyTooLarge)
    def large(_: Request, error: BodyTooLarge) -> JSONResponse:
        return JSONResponse(envelope(413, "the request is too large, at most 26 MB", code="too_large"), 413)

    @app.exception_handler(Exception)
    def unexpected(_: Request, error: Exception) -> JSONResponse:
        LOG.error("unexpected", exc_info=error)
        return JSONResponse(envelope(500, "something went wrong in the studio", code="unexpected"), 500)


def status_of(error: HuabenError) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, DataError):
        return 404 if error.message.startswith("there is no such") else 400
    if isinstance(error, (ConfigError, DialogueError, PromptBookError)):
        return 400
    if isinstance(error, Cancelled):
        return 409
    if isinstance(error, (StoreError, GenerationError)):
        return 503
    return 500


def _files(app: FastAPI, studio: Studio) -> None:
    """Serve pictures, the page and its files."""
    files = {path.relative_to(PAGE).as_posix(): path for path in PAGE.rglob("*") if path.is_file()}
    mimetypes.add_type("text/javascript", ".js")

    @app.get("/pictures/{sha256}.png", tags=["pictures"])
    def picture(
        sha256: str,
        until: Annotated[int, Query(ge=0, le=2**53)],
        key: Annotated[str, Query(max_length=64)],
        name: Annotated[str, Query(max_length=200)] = "",
        format: Literal["png", "jpeg", "webp"] = "png",
        metadata: bool = True,
    ) -> Response:
        """Return a picture by its signed address; with ``name`` as a download."""
        if not studio.signer.allows(sha256, until, key):
            raise HTTPException(403, "this address of the picture is no longer valid")
        data = picture_file(studio.store.pictures.get(sha256), kind=format, metadata=metadata)
        headers = {"cache-control": "private, max-age=43200, immutable"}
        if name:
            plain = name.replace("/", "_").replace("\\", "_").strip() or "picture"
            headers["content-disposition"] = f"attachment; filename*=UTF-8''{quote(plain, safe='')}"
        return Response(data, media_type=f"image/{format}", headers=headers)

    @app.get("/healthz", tags=["studio"])
    def health() -> dict[str, str]:
        """Say that the studio is up."""
        return {"status": "ok"}

    @app.get("/", include_in_schema=False)
    def index() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    @app.get("/page/{name:path}", include_in_schema=False)
    def page(name: str) -> FileResponse:
        if name not in files:
            raise HTTPException(404, "there is no such file")
        return FileResponse(files[name], headers={"cache-control": "no-cache"})
