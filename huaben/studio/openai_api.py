"""The OpenAI-compatible routes: models, images, chat completions, responses.

A picture asked for alone is a story of one turn. A chat is found again by a hash of what was said so far; a response by
its id, so ``previous_response_id`` is the point where a branch begins.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import io
import json
import re
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image as PillowImage
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from ..errors import DataError, GenerationError
from .api import Seed, Text, event_stream, follow
from .models import Happening, Job
from .service import Studio, picture_file
from .trust import envelope
from .work import Order

ENDED = ("done", "failed", "cancelled", "interrupted")
MAX_REPLAYED = 6
WAIT_S = 1800.0
PICTURE_LINK = re.compile(r"!\[[^\]]*\]\([^)]*\)")


class Asked(BaseModel):
    """A request's body; fields that others' clients send are let through."""

    model_config = ConfigDict(extra="ignore")
    model: Annotated[Text, Field(max_length=200)] | None = None
    stream: bool | None = False


class ImageAsked(Asked):
    """``/v1/images/generations``; ``seed``, ``steps``, ``cfg``, ``negative_prompt`` are huaben's own."""

    prompt: Annotated[Text, Field(min_length=1, max_length=2000)]
    n: Annotated[int, Field(ge=1, le=4)] | None = 1
    size: Annotated[str, Field(pattern=r"^(auto|\d{2,4}x\d{2,4})$")] | None = "auto"
    response_format: Literal["b64_json", "url"] | None = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] | None = "png"
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = 0
    seed: Seed | None = None
    steps: Annotated[int, Field(ge=1, le=200)] | None = None
    cfg: Annotated[float, Field(ge=0.0, le=30.0)] | None = None
    negative_prompt: Annotated[Text, Field(max_length=400)] | None = None


class EditAsked(ImageAsked):
    """``/v1/images/edits`` as JSON: pictures as data URLs."""

    image: str | list[str] | None = None
    images: list[dict[str, Any] | str] | None = None
    mask: Any = None


class ChatAsked(Asked):
    """``/v1/chat/completions``."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=400)]
    modalities: list[str] | None = None
    seed: Seed | None = None


class ResponseAsked(Asked):
    """``/v1/responses``."""

    input: str | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=400)]
    previous_response_id: Annotated[str, Field(pattern="^resp_[0-9a-f]{32}$")] | None = None


def openai_routes(studio: Studio) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/v1")
    desk = Desk(studio)
    name = f"huaben-{studio.stage}"

    @routes.get("/models", tags=["openai"])
    def models() -> dict[str, Any]:
        """List the models: one, the stage."""
        return {"object": "list", "data": [model_values()]}

    @routes.get("/models/{id:path}", tags=["openai"])
    def model(id: str) -> dict[str, Any]:
        """Return one model."""
        if id != name:
            raise DataError("there is no such model", hint=f"use {name}")
        return model_values()

    def model_values() -> dict[str, Any]:
        return {"id": name, "object": "model", "created": int(studio.started), "owned_by": "huaben"}

    @routes.post("/images/generations", tags=["openai"])
    async def generations(request: Request, body: ImageAsked) -> Response:
        """Draw pictures from a prompt."""
        return await desk.pictures(request, body, [], "image_generation")

    @routes.post("/images/edits", tags=["openai"])
    async def edits(request: Request) -> Response:
        """Change a picture: multipart ``image`` or ``image[]`` and ``prompt``, or JSON with data URLs."""
        body, files = await read_edit(request)
        if body.mask is not None:
            message = "this painter cannot repaint a region"
            return JSONResponse(envelope(400, message, code="mask", param="mask", hint="leave the mask out"), 400)
        if not files:
            return JSONResponse(envelope(400, "there is no picture to change", code="data", param="image"), 400)
        return await desk.pictures(request, body, files, "image_edit")

    @routes.post("/chat/completions", tags=["openai"])
    async def chat(request: Request, body: ChatAsked) -> Response:
        """Talk; pictures come in the reply, as addresses that work for some hours."""
        return await desk.chat(request, body, name)

    @routes.post("/responses", tags=["openai"])
    async def responses(request: Request, body: ResponseAsked) -> Response:
        """Talk; pictures come as ``image_generation_call`` items."""
        return await desk.respond(request, body, name)

    return routes


class Desk:
    """Turns requests into jobs, and their events into what clients of the OpenAI API read."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    # ------------------------------------------------------------------------------------------------------ pictures

    async def pictures(self, request: Request, body: ImageAsked, files: Sequence[bytes], kind: str) -> Response:
        """Answer with pictures, at once or as a stream."""
        account = request.scope.get("account")
        order = Order(
            text=body.prompt,
            mode="picture",
            parent="head" if files else None,
            seed=body.seed,
            steps=body.steps,
            guidance_scale=body.cfg,
            negative=body.negative_prompt,
            size=parse_size(body.size),
        )
        count = body.n or 1
        after = await asyncio.to_thread(self.studio.store.last_event)
        jobs = await asyncio.to_thread(self._draw, account, order, files, count)
        format = body.output_format or "png"
        if body.stream:
            return event_stream(self._picture_events(account, jobs, after, kind, format, body.partial_images or 0))
        failed = None
        async for event in self._answers(account, jobs, after):
            if event.kind == "job" and event.data.get("error"):
                failed = event.data["error"]
        values = [await asyncio.to_thread(self._value, account, id) for id in jobs]
        drawn = [value for value in values if value is not None and value["action"] == "draw" and value["image"]]
        if len(drawn) < len(values):
            raise _not_drawn(failed, values)
        base = str(request.base_url).rstrip("/")
        data = []
        for value in drawn:
            entry: dict[str, Any] = {"revised_prompt": value["prompt"]}
            if body.response_format == "url":
                entry["url"] = f"{base}{value['image']['url']}&format={format}"
            else:
                entry["b64_json"] = await asyncio.to_thread(self._base64, value, format)
            data.append(entry)
        size = f"{drawn[0]['image']['width']}x{drawn[0]['image']['height']}"
        return JSONResponse({"created": int(time.time()), "data": data, "output_format": format, "size": size})

    def _draw(self, account: str | None, order: Order, files: Sequence[bytes], count: int) -> list[str]:
        """Queue the pictures; earlier pictures of several are looked at first. Return the jobs that draw."""
        story = self.studio.new_story(account, title=order.text[:80], origin="api")["id"]
        uploads = [self.studio.upload(data)["sha256"] for data in files]
        for upload in uploads[:-1]:
            self.studio.say(account, story, Order(upload=upload))
        if uploads:
            order = order.model_copy(update={"upload": uploads[-1]})
            if count > 1 and len(uploads) == 1:
                order = order.model_copy(update={"parent": None})
        if count > 1 and order.parent == "head":
            raise DataError("several pictures with several variants are too much", hint="use n=1")
        return [job["id"] for job in self.studio.say(account, story, order, variants=count)]

    async def _picture_events(
        self, account: str | None, jobs: list[str], after: int, kind: str, format: str, partials: int
    ) -> AsyncIterator[str]:
        """Yield partial pictures as they come, and each finished one."""
        shown = dict.fromkeys(jobs, 0)
        async for event in self._answers(account, jobs, after):
            if event.kind == "step" and event.data.get("preview") and shown[event.job_id] < partials:
                number = shown[event.job_id]
                shown[event.job_id] += 1
                preview = await asyncio.to_thread(recode, event.data["preview"], format)
                yield sse({"type": f"{kind}.partial_image", "b64_json": preview, "partial_image_index": number})
            elif event.kind == "job" and event.data["status"] in ENDED:
                value = await asyncio.to_thread(self._value, account, event.job_id)
                if value is None or value["action"] != "draw":
                    yield sse({"type": "error", **_failure(_not_drawn(event.data.get("error"), [value]))})
                    continue
                yield sse(
                    {
                        "type": f"{kind}.completed",
                        "b64_json": await asyncio.to_thread(self._base64, value, format),
                        "created_at": int(time.time()),
                        "output_format": format,
                        "size": f"{value['image']['width']}x{value['image']['height']}",
                        "background": "opaque",
                        "quality": "auto",
                        "usage": None,
                    }
                )

    # ---------------------------------------------------------------------------------------------------------- chat

    async def chat(self, request: Request, body: ChatAsked, model: str) -> Response:
        """Answer the last message of a conversation."""
        account = request.scope.get("account")
        said = spoken(body.messages)
        after = await asyncio.to_thread(self.studio.store.last_event)
        job = await asyncio.to_thread(self._go_on, account, said, body.seed)
        base = str(request.base_url).rstrip("/")
        frame = {"id": f"chatcmpl-{job}", "created": int(time.time()), "model": model}
        if body.stream:
            return event_stream(self._chat_events(account, job, after, frame, base))
        error = await self._end(account, job, after)
        value = await asyncio.to_thread(self._value, account, job)
        if value is None:
            raise _not_drawn(error, [])
        message: dict[str, Any] = {"role": "assistant", "content": content_of(value, base), "refusal": None}
        if value["image"]:
            message["images"] = [_image_part(value, base)]
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        return JSONResponse({**frame, "object": "chat.completion", "choices": [choice]})

    async def _chat_events(
        self, account: str | None, job: str, after: int, frame: dict[str, Any], base: str
    ) -> AsyncIterator[str]:
        """Yield the reply's text when it is known, its picture when it is drawn."""

        def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
            return sse({**frame, "object": "chat.completion.chunk", "choices": [choice]}, named=False)

        yield chunk({"role": "assistant", "content": ""})
        told = ""
        async for event in self._answers(account, [job], after):
            if event.kind == "understood" and not told:
                told = event.data["reply"]
                yield chunk({"content": told})
            elif event.kind == "job" and event.data["status"] in ENDED:
                value = await asyncio.to_thread(self._value, account, job)
                if value is None:
                    yield sse(_failure(_not_drawn(event.data.get("error"), [])), named=False)
                    break
                rest = content_of(value, base)[len(told) :] if told else content_of(value, base)
                if rest:
                    yield chunk({"content": rest})
                if value["image"]:
                    yield chunk({"images": [_image_part(value, base)]})
                yield chunk({}, "stop")
        yield "data: [DONE]\n\n"

    def _go_on(self, account: str | None, said: list[Said], seed: int | None) -> str:
        """Queue the last message where the conversation stood; one never seen is said again from its beginning."""
        earlier = [index for index, one in enumerate(said[:-1]) if one.role == "user"]
        parent = self.studio.store.find_chain(account, chain_of(said[: earlier[-1] + 1])) if earlier else None
        last = said[-1]
        upload = self.studio.upload(last.image)["sha256"] if last.image else None
        order = Order(text=last.text, upload=upload, seed=seed, chain=chain_of(said))
        if parent is not None:
            order = order.model_copy(update={"parent": parent.id})
            return str(self.studio.say(account, parent.story_id, order)[0]["id"])
        story = self.studio.new_story(account, origin="chat")["id"]
        for index in earlier[-MAX_REPLAYED:]:
            if said[index].text.strip():
                again = Order(text=said[index].text, chain=chain_of(said[: index + 1]))
                self.studio.say(account, story, again)
        return str(self.studio.say(account, story, order)[0]["id"])

    # ----------------------------------------------------------------------------------------------------- responses

    async def respond(self, request: Request, body: ResponseAsked, model: str) -> Response:
        """Answer an input, from an earlier response on or from the beginning."""
        account = request.scope.get("account")
        entries = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
        said = spoken(entries)
        after = await asyncio.to_thread(self.studio.store.last_event)
        if body.previous_response_id is None:
            job = await asyncio.to_thread(self._go_on, account, said, None)
        else:
            job = await asyncio.to_thread(self._branch, account, said[-1], body.previous_response_id[5:])
        frame = {
            "id": f"resp_{job}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "previous_response_id": body.previous_response_id,
            "parallel_tool_calls": False,
            "tool_choice": "auto",
            "tools": [],
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "temperature": None,
            "top_p": None,
        }
        if body.stream:
            return event_stream(self._response_events(account, job, after, frame))
        error = await self._end(account, job, after)
        value = await asyncio.to_thread(self._value, account, job)
        if value is None:
            raise _not_drawn(error, [])
        output = await asyncio.to_thread(self._output, job, value)
        return JSONResponse({**frame, "status": "completed", "output": output})

    def _branch(self, account: str | None, last: Said, previous: str) -> str:
        """Queue a message that goes on from an earlier response."""
        job = self.studio.store.job(account, previous)
        if job.turn_id is None:
            raise DataError("that response has no turn to go on from", hint="it failed, or is not finished")
        upload = self.studio.upload(last.image)["sha256"] if last.image else None
        order = Order(text=last.text, upload=upload, parent=job.turn_id)
        return str(self.studio.say(account, job.story_id, order)[0]["id"])

    def _output(self, job: str, value: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a turn as output items."""
        items: list[dict[str, Any]] = []
        if value["image"]:
            result = self._base64(value, "png")
            items.append({"type": "image_generation_call", "id": f"ig_{job}", "status": "completed", "result": result})
        content = [{"type": "output_text", "text": value["reply"], "annotations": []}]
        items.append(
            {"type": "message", "id": f"msg_{job}", "role": "assistant", "status": "completed", "content": content}
        )
        return items

    async def _response_events(
        self, account: str | None, job: str, after: int, frame: dict[str, Any]
    ) -> AsyncIterator[str]:
        """Yield the events of a response."""
        number = 0

        def event(kind: str, **values: Any) -> str:
            nonlocal number
            number += 1
            return sse({"type": kind, "sequence_number": number - 1, **values})

        yield event("response.created", response={**frame, "status": "in_progress", "output": []})
        partial = 0
        async for happened in self._answers(account, [job], after):
            if happened.kind == "understood":
                text = happened.data["reply"]
                place = {"item_id": f"msg_{job}", "output_index": 0, "content_index": 0}
                yield event("response.output_text.delta", delta=text, logprobs=[], **place)
            elif happened.kind == "step" and happened.data.get("preview"):
                preview = await asyncio.to_thread(recode, happened.data["preview"], "png")
                yield event(
                    "response.image_generation_call.partial_image",
                    item_id=f"ig_{job}",
                    output_index=0,
                    partial_image_index=partial,
                    partial_image_b64=preview,
                )
                partial += 1
            elif happened.kind == "job" and happened.data["status"] in ENDED:
                value = await asyncio.to_thread(self._value, account, job)
                if value is None:
                    failure = _failure(_not_drawn(happened.data.get("error"), []))["error"]
                    error = {"code": "server_error", "message": failure["message"]}
                    yield event("response.failed", response={**frame, "status": "failed", "output": [], "error": error})
                    return
                output = await asyncio.to_thread(self._output, job, value)
                for index, item in enumerate(output):
                    yield event("response.output_item.done", output_index=index, item=item)
                yield event("response.completed", response={**frame, "status": "completed", "output": output})

    # -------------------------------------------------------------------------------------------------------- shared

    async def _answers(self, account: str | None, jobs: Sequence[str], after: int) -> AsyncIterator[Happening]:
        """Yield the events of some jobs until all have ended; a client that leaves stops them."""
        left = set(jobs)
        try:
            async for event in follow(self.studio, account, after):
                if event is None or event.job_id not in jobs:
                    continue
                yield event
                if event.kind == "job" and event.data["status"] in ENDED:
                    left.discard(event.job_id)
                    if not left:
                        return
        finally:
            for id in left:
                self.studio.cancel(account, id)

    async def _end(self, account: str | None, job: str, after: int) -> dict[str, Any] | None:
        """Wait for one job; return its error."""
        error = None
        async for event in self._answers(account, [job], after):
            if event.kind == "job":
                error = event.data.get("error")
        return error

    def _value(self, account: str | None, job_id: str) -> dict[str, Any] | None:
        """Return the turn a job made; None if it made none."""
        job: Job = self.studio.store.job(account, job_id)
        return None if job.turn_id is None else self.studio.turn(account, job.turn_id)

    def _base64(self, value: dict[str, Any], format: str) -> str:
        """Return a turn's picture in base64."""
        data = self.studio.store.pictures.get(value["image"]["sha256"])
        return base64.b64encode(picture_file(data, kind=format)).decode("ascii")


class Said(BaseModel):
    """One message of a conversation: who, what, and the picture with it."""

    role: str
    text: str
    image: bytes | None = None


def spoken(entries: Sequence[dict[str, Any]]) -> list[Said]:
    """Return the messages of user and assistant, the last one the user's.

    Raises:
        DataError: for messages that cannot be read.
    """
    said = [_said(entry) for entry in entries if entry.get("role") in ("user", "assistant")]
    while said and said[-1].role != "user":
        said.pop()
    if not said or not (said[-1].text.strip() or said[-1].image):
        raise DataError("there is no user message with words or a picture", hint="add one to the messages")
    return said


def _said(entry: dict[str, Any]) -> Said:
    """Read one message: text, or parts of text and pictures."""
    content = entry.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    texts, image = [], None
    for part in parts:
        if not isinstance(part, dict):
            raise DataError("a part of a message is not an object", hint='{"type": "text", "text": "…"}')
        kind = part.get("type")
        if kind in ("text", "input_text", "output_text"):
            if not isinstance(part.get("text"), str):
                raise DataError("a text part has no text", hint='{"type": "text", "text": "…"}')
            texts.append(part["text"])
        elif kind in ("image_url", "input_image"):
            address = part.get("image_url")
            image = read_data_url(address.get("url") if isinstance(address, dict) else address)
    text = "\n".join(texts)
    if "\x00" in text or len(text) > 20_000:
        raise DataError("a message has a NUL character or more than 20,000 characters", hint="shorten it")
    return Said(role=str(entry["role"]), text=text, image=image if entry["role"] == "user" else None)


def chain_of(said: Sequence[Said]) -> str:
    """Return the hash of a conversation; addresses of pictures, which change, do not count."""
    words = [[one.role, " ".join(PICTURE_LINK.sub("", one.text).split())] for one in said]
    return hashlib.sha256(json.dumps(words, ensure_ascii=False).encode("utf-8", "replace")).hexdigest()


def read_data_url(address: Any) -> bytes:
    """Return the bytes of a data URL; nothing is ever fetched.

    Raises:
        DataError: for any other address.
    """
    if not isinstance(address, str) or not address.startswith("data:image/") or ";base64," not in address[:64]:
        raise DataError("a picture is not a data URL, and no address is fetched", hint="data:image/png;base64,…")
    try:
        return base64.b64decode(address.split(",", 1)[1], validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError("a picture's base64 is damaged", hint="encode it again") from error


async def read_edit(request: Request) -> tuple[EditAsked, list[bytes]]:
    """Return the body of an edit and its pictures, from a form or from JSON.

    Raises:
        DataError: if it cannot be read.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    try:
        if kind == "multipart/form-data":
            form = await request.form(max_files=16, max_fields=64)
            fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
            uploads = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
            mask = any(name == "mask" for name, _ in uploads)
            body = EditAsked.model_validate({**fields, "mask": True if mask else None, "image": None, "images": None})
            files = [await value.read() for name, value in uploads if name in ("image", "image[]")]
            await form.close()
            return body, files
        body = EditAsked.model_validate(await request.json())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{where}: {first['msg']}", hint="see /api/v1/openapi.json") from error
    except (ValueError, RuntimeError) as error:
        raise DataError(
            "the body is neither a form nor JSON", hint="multipart/form-data with image and prompt"
        ) from error
    given: list[Any] = body.image if isinstance(body.image, list) else [body.image] if body.image else []
    given += [one.get("image_url") if isinstance(one, dict) else one for one in body.images or []]
    return body, [read_data_url(address) for address in given]


def parse_size(size: str | None) -> tuple[int, int] | None:
    """Return (height, width) of "WxH"; None for "auto".

    Sizes of the big models (1024x1024, …) mean "of this shape", at the size this painter draws best.
    """
    if size in (None, "auto"):
        return None
    assert size is not None
    width, height = (int(side) for side in size.split("x"))
    if width >= 768 or height >= 768:
        return (128, 192) if width > height else (192, 128) if height > width else None
    return height, width


def content_of(value: dict[str, Any], base: str) -> str:
    """Return a turn as Markdown: the reply, and its picture by address."""
    if not value["image"]:
        return str(value["reply"])
    alt = re.sub(r"[\[\]\n]", " ", value["prompt"] or "picture")
    return f"{value['reply']}\n\n![{alt}]({base}{value['image']['url']})"


def _image_part(value: dict[str, Any], base: str) -> dict[str, Any]:
    """Return a turn's picture as a part of a message."""
    return {"type": "image_url", "index": 0, "image_url": {"url": f"{base}{value['image']['url']}"}}


def recode(data_url: str, format: str) -> str:
    """Return a preview's picture in base64, in another format."""
    with PillowImage.open(io.BytesIO(read_data_url(data_url))) as picture:
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, format.upper())
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _not_drawn(error: dict[str, Any] | None, values: Sequence[dict[str, Any] | None]) -> DataError | GenerationError:
    """Return the error for what was not drawn: what went wrong, or what was answered instead."""
    if error is not None:
        kind = DataError if error.get("code") in ("data", "dialogue", "config", "promptbook") else GenerationError
        return kind(error["message"], hint=error.get("hint", ""))
    reply = next((value["reply"] for value in values if value is not None), "it was stopped")
    return DataError(str(reply), hint="describe a picture")


def _failure(error: DataError | GenerationError) -> dict[str, Any]:
    """Return an error in the envelope."""
    return envelope(400 if isinstance(error, DataError) else 503, error.message, code=error.code, hint=error.hint)


def sse(values: dict[str, Any], *, named: bool = True) -> str:
    """Return one server-sent event."""
    name = f"event: {values['type']}\n" if named and "type" in values else ""
    return f"{name}data: {json.dumps(values, ensure_ascii=False)}\n\n"
