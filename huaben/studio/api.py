"""``/api/v1``: stories, turns, characters, jobs, events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, File, Header, HTTPException, Path, Query, Request, Response, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ..errors import DataError
from .export import KINDS, export_character, export_story, import_character
from .models import Happening
from .service import Studio
from .trust import COOKIE
from .work import Order

PING_S = 15.0


def clean(text: str) -> str:
    """Refuse what no database keeps."""
    if "\x00" in text:
        raise ValueError("the text has a NUL character")
    return text


Text = Annotated[str, AfterValidator(clean)]
Id = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]
Sha = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
TurnId = Annotated[str, Field(pattern="^([0-9a-f]{32}|head)$")]
Unit = Annotated[float, Field(ge=0.0, le=1.0)]
Seed = Annotated[int, Field(ge=0, le=2**53 - 1)]
Side = Annotated[int, Field(ge=64, le=2048, multiple_of=16)]


class Body(BaseModel):
    """A request's body; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class NewStory(Body):
    """A story to begin."""

    title: Annotated[Text, Field(max_length=200)] = ""
    seed: Seed | None = None


class StoryChange(Body):
    """What to change of a story; what is left out stays."""

    title: Annotated[Text, Field(max_length=200)] | None = None
    favourite: bool | None = None
    head: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None


class WantedCharacter(Body):
    """A character as it should be: one on the page by ``id``, one of the library, or a new one."""

    id: Annotated[Text, Field(max_length=40)] | None = None
    instance: Annotated[int, Field(ge=0, le=1000)] | None = None
    name: Annotated[Text, Field(max_length=80)] | None = None
    prompt: Annotated[Text, Field(max_length=400)] | None = None
    box: tuple[Unit, Unit, Unit, Unit] | None = None
    library: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None


class WantedPage(Body):
    """The page as arranged by hand; what is left out stays, and characters that are not listed leave."""

    background: Annotated[Text, Field(max_length=400)] | None = None
    style: Annotated[Text, Field(max_length=200)] | None = None
    negative: Annotated[Text, Field(max_length=400)] | None = None
    characters: Annotated[list[WantedCharacter], Field(max_length=12)] | None = None


class NewTurn(Body):
    """A message, or changes made by hand."""

    text: Annotated[Text, Field(max_length=4000)] = ""
    upload: Sha | None = None
    parent: TurnId | None = "head"
    mode: Literal["auto", "picture", "text"] = "auto"
    language: Literal["en", "zh"] = "en"
    page: WantedPage | None = None
    redraw: bool = False
    prompt: Annotated[Text, Field(max_length=2000)] | None = None
    seed: Seed | None = None
    size: tuple[Side, Side] | None = None
    steps: Annotated[int, Field(ge=1, le=200)] | None = None
    attempts: Annotated[int, Field(ge=1, le=8)] | None = None
    guidance_scale: Annotated[float, Field(ge=0.0, le=30.0)] | None = None
    variants: Annotated[int, Field(ge=1, le=4)] = 1


class Keep(Body):
    """A character of a story to keep in the library."""

    turn: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    id: Annotated[Text, Field(max_length=40)]
    name: Annotated[Text, Field(max_length=80)] = ""


class Named(Body):
    """A new name."""

    name: Annotated[Text, Field(min_length=1, max_length=80)]


class Login(Body):
    """A token."""

    token: Annotated[Text, Field(min_length=1, max_length=200)]


def api_routes(studio: Studio) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/api/v1")

    def account(request: Request) -> str | None:
        return request.scope.get("account")

    @routes.get("/studio", tags=["studio"])
    def about(request: Request) -> dict[str, Any]:
        """Say what this studio is and can do."""
        return studio.about(account(request), request.scope.get("account_name"))

    @routes.post("/login", tags=["studio"], status_code=204)
    def login(request: Request, body: Login, response: Response) -> None:
        """Sign in with a token; it is kept in a cookie that scripts cannot read."""
        if request.app.state.gate().who(body.token) is None:
            raise HTTPException(401, "that token is not known")
        secure = request.url.scheme == "https"
        response.set_cookie(
            COOKIE, body.token, max_age=90 * 86400, httponly=True, samesite="strict", secure=secure, path="/"
        )

    @routes.post("/logout", tags=["studio"], status_code=204)
    def logout(response: Response) -> None:
        """Sign out."""
        response.delete_cookie(COOKIE, path="/")

    @routes.get("/stories", tags=["stories"])
    def stories(
        request: Request, search: Annotated[Text, Query(max_length=200)] = "", deleted: bool = False
    ) -> list[dict[str, Any]]:
        """List stories, newest first."""
        return studio.stories(account(request), search=search, deleted=deleted)

    @routes.post("/stories", tags=["stories"], status_code=201)
    def new_story(request: Request, body: NewStory) -> dict[str, Any]:
        """Begin a story."""
        return studio.new_story(account(request), title=body.title, seed=body.seed)

    @routes.get("/stories/{id}", tags=["stories"])
    def story(request: Request, id: Id) -> dict[str, Any]:
        """Return a story with its tree of turns and its latest jobs."""
        return studio.story(account(request), id)

    @routes.patch("/stories/{id}", tags=["stories"])
    def change_story(request: Request, id: Id, body: StoryChange) -> dict[str, Any]:
        """Rename, favour, or go on from another turn."""
        return studio.change_story(account(request), id, **body.model_dump(exclude_none=True))

    @routes.delete("/stories/{id}", tags=["stories"])
    def remove_story(request: Request, id: Id) -> dict[str, Any]:
        """Delete a story; it can be restored for a week."""
        return studio.remove_story(account(request), id)

    @routes.post("/stories/{id}/restore", tags=["stories"])
    def restore_story(request: Request, id: Id) -> dict[str, Any]:
        """Bring a deleted story back."""
        return studio.remove_story(account(request), id, restore=True)

    @routes.post("/stories/{id}/turns", tags=["turns"], status_code=202)
    def say(request: Request, id: Id, body: NewTurn) -> dict[str, Any]:
        """Say something, or change the page by hand; answered by jobs, one a variant."""
        values = body.model_dump(exclude={"variants"}, exclude_none=True)
        values["parent"] = body.parent
        return {"jobs": studio.say(account(request), id, Order(**values), variants=body.variants)}

    @routes.get("/stories/{id}/export", tags=["stories"])
    def export(
        request: Request,
        id: Id,
        format: Literal["html", "pdf", "cbz", "png", "json", "zip"] = "html",
        turn: Annotated[str | None, Query(pattern="^[0-9a-f]{32}$")] = None,
    ) -> Response:
        """Return the story as a file: web page, document, comic book, sheet of pictures, JSON, session folder."""
        data, name = export_story(studio, account(request), id, format, turn=turn)
        headers = {"content-disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}"}
        return Response(data, media_type=KINDS[format][0], headers=headers)

    @routes.get("/turns/{id}", tags=["turns"])
    def turn(request: Request, id: Id) -> dict[str, Any]:
        """Return one turn."""
        return studio.turn(account(request), id)

    @routes.post("/uploads", tags=["turns"], status_code=201)
    def upload(image: Annotated[UploadFile, File()]) -> dict[str, Any]:
        """Upload a picture for a message; settings inside a huaben PNG are returned."""
        return studio.upload(image.file.read())

    @routes.get("/gallery", tags=["turns"])
    def gallery(
        request: Request,
        search: Annotated[Text, Query(max_length=200)] = "",
        before: Annotated[float | None, Query(ge=0, le=1e12)] = None,
    ) -> list[dict[str, Any]]:
        """List drawn pictures of all stories, newest first; search looks into prompts and messages."""
        return studio.gallery(account(request), search=search, before=before)

    @routes.get("/jobs", tags=["jobs"])
    def jobs(request: Request, active: bool = True) -> list[dict[str, Any]]:
        """List jobs, newest first."""
        return studio.jobs(account(request), active=active)

    @routes.get("/jobs/{id}", tags=["jobs"])
    def job(request: Request, id: Id) -> dict[str, Any]:
        """Return one job; a waiting one with its place in the queue."""
        return studio.job(account(request), id)

    @routes.post("/jobs/cancel", tags=["jobs"])
    def cancel_all(request: Request) -> dict[str, Any]:
        """Stop everything that waits or runs."""
        return {"cancelled": studio.cancel(account(request))}

    @routes.post("/jobs/{id}/cancel", tags=["jobs"])
    def cancel(request: Request, id: Id) -> dict[str, Any]:
        """Stop one job."""
        return {"cancelled": studio.cancel(account(request), id)}

    @routes.post("/jobs/{id}/repeat", tags=["jobs"], status_code=202)
    def repeat(request: Request, id: Id) -> dict[str, Any]:
        """Ask for an ended job again."""
        return studio.repeat(account(request), id)

    @routes.get("/characters", tags=["characters"])
    def characters(request: Request) -> list[dict[str, Any]]:
        """List the library of characters."""
        return studio.characters(account(request))

    @routes.post("/characters", tags=["characters"], status_code=201)
    def keep(request: Request, body: Keep) -> dict[str, Any]:
        """Keep a character of a story in the library."""
        return studio.keep_character(account(request), body.turn, body.id, name=body.name)

    @routes.post("/characters/import", tags=["characters"], status_code=201)
    def take_in(request: Request, archive: Annotated[UploadFile, File()]) -> dict[str, Any]:
        """Take a character in from its zip."""
        return studio.character_values(import_character(studio.store, account(request), archive.file.read()))

    @routes.get("/characters/{id}/export", tags=["characters"])
    def give_out(request: Request, id: Id) -> Response:
        """Return a character as a zip."""
        data, name = export_character(studio.store, account(request), id)
        headers = {"content-disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}"}
        return Response(data, media_type="application/zip", headers=headers)

    @routes.patch("/characters/{id}", tags=["characters"])
    def rename(request: Request, id: Id, body: Named) -> dict[str, Any]:
        """Rename a character."""
        return studio.change_character(account(request), id, name=body.name)

    @routes.delete("/characters/{id}", tags=["characters"], status_code=204)
    def remove(request: Request, id: Id) -> None:
        """Take a character out of the library; stories keep theirs."""
        studio.remove_character(account(request), id)

    @routes.get("/events", tags=["events"], response_class=StreamingResponse)
    async def events(
        request: Request,
        story: Annotated[str | None, Query(pattern="^[0-9a-f]{32}$")] = None,
        after: Annotated[int | None, Query(ge=0, le=2**53)] = None,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> StreamingResponse:
        """Stream events as they happen (text/event-stream); resumes after ``Last-Event-ID`` or ``after``."""
        start = int(last_event_id) if last_event_id and last_event_id.isdecimal() and len(last_event_id) < 16 else after
        if start is None:
            start = await asyncio.to_thread(studio.store.last_event)
        return event_stream(stream_events(studio, account(request), start, story))

    return routes


def event_stream(chunks: AsyncIterator[str]) -> StreamingResponse:
    """Return a response of server-sent events that no proxy holds back."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(chunks, media_type="text/event-stream", headers=headers)


async def stream_events(studio: Studio, account: str | None, after: int, story: str | None) -> AsyncIterator[str]:
    """Yield events in the wire's form, and a ping where there are none."""
    yield ": hello\n\n"
    async for event in follow(studio, account, after, story=story, ping=True):
        if event is None:
            yield ": ping\n\n"
            continue
        data = {"story": event.story_id, "job": event.job_id, **event.data}
        if event.kind == "job" and event.data.get("turn"):
            try:
                data["value"] = await asyncio.to_thread(studio.turn, account, event.data["turn"])
            except DataError:
                continue
        yield f"id: {event.id}\nevent: {event.kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


async def follow(
    studio: Studio, account: str | None, after: int, *, story: str | None = None, ping: bool = False
) -> AsyncIterator[Happening | None]:
    """Yield events after an id as they come; None now and then if pings are wanted."""
    loop = asyncio.get_running_loop()
    said = looked = loop.time()
    count = -1
    every = 30.0 if studio.store.dialect == "sqlite" and studio.threads else 0.4
    while not studio.runner._closing.is_set():
        if studio.bell.count != count or loop.time() - looked > every:
            count, looked = studio.bell.count, loop.time()
            for event in await asyncio.to_thread(studio.store.events, account, after, story=story):
                after, said = event.id, loop.time()
                yield event
        elif ping and loop.time() - said > PING_S:
            said = loop.time()
            yield None
        else:
            await asyncio.sleep(0.05)
