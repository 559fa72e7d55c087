"""One job: the path of a story laid out as a session folder, one turn of it, and what came of that in the store.

The session sees a folder in memory that ends where the new turn begins, so every turn, on whatever branch, is made by
:func:`huaben.session.run_turn` and nothing else.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image as PillowImage
from pydantic import BaseModel, ConfigDict

from ..dialogue.message import Message, Reply
from ..pictures import decode_picture, png_bytes, read_metadata
from ..session import Session, run_turn
from ..stations import Stations
from ..theater.cast import Cast
from ..theater.performance import MAX_PICTURE_SEED, PerformanceConfig
from .direction import DirectedPainter, DirectedScreenwriter, SharedReader, page_edits, sentence
from .models import Job, Story, Turn
from .store import Store

PREVIEW_SIDE = 256
STEP_EVERY_S = 0.25


class Order(BaseModel):
    """What a job is asked for.

    Attributes:
        text: the message.
        upload: hash of the user's picture.
        parent: the turn to go on from; ``head`` is where the story stands, None the beginning.
        mode: whether the answer may be a picture, must try to be one, or is text.
        language: of words that the studio itself says.
        page: the page as arranged by hand; see :func:`huaben.studio.direction.page_edits`.
        redraw: draw the page as it is.
        prompt: the drawing prompt, instead of the page's words.
        negative: what to keep out of a picture that is asked for in words.
        seed: of the picture; None derives one from the story.
        size, steps, attempts, guidance_scale: of this picture; None takes the story's.
        move_head: whether the story goes on from the new turn.
        chain: see :class:`~huaben.studio.models.Turn`.
    """

    model_config = ConfigDict(extra="forbid")
    text: str = ""
    upload: str | None = None
    parent: str | None = "head"
    mode: Literal["auto", "picture", "text"] = "auto"
    language: Literal["en", "zh"] = "en"
    page: dict[str, Any] | None = None
    redraw: bool = False
    prompt: str | None = None
    negative: str | None = None
    seed: int | None = None
    size: tuple[int, int] | None = None
    steps: int | None = None
    attempts: int | None = None
    guidance_scale: float | None = None
    move_head: bool = True
    chain: str | None = None


@dataclass(slots=True)
class Crew:
    """The stage's parts, loaded once and shared by every job.

    Attributes:
        stations: who does what.
        painters: how many pictures are painted at once.
    """

    stations: Stations
    painters: int = 1
    painting: threading.Semaphore = field(init=False)
    reading: threading.Semaphore = field(init=False)
    loading: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.painting, self.reading = threading.Semaphore(self.painters), threading.Semaphore(1)

    def warm(self) -> None:
        """Load painter and reader."""
        self._part("screenwriter")
        self._part("painter")
        self._part("reader")

    def _part(self, name: str) -> Any:
        """Return a part, loaded by one thread."""
        with self.loading:
            return getattr(self.stations, name)

    def directed(self, order: Order, heard: Callable[[Reply], None]) -> Stations:
        """Return the parts for one job."""

        def painter() -> Any:
            return DirectedPainter(self._part("painter"), self.painting, seed=order.seed, prompt=order.prompt)

        def reader() -> Any:
            found = self._part("reader")
            return None if found is None else SharedReader(found, self.reading)

        def screenwriter() -> Any:
            return DirectedScreenwriter(
                self._part("screenwriter"),
                wanted=order.page,
                redraw=order.redraw,
                mode=order.mode,
                negative=order.negative,
                language=order.language,
                heard=heard,
            )

        return Stations(make_screenwriter=screenwriter, make_painter=painter, make_reader=reader)


def new_session(seed: int, performance: PerformanceConfig) -> str:
    """Return the ``session.json`` of a new story."""
    with tempfile.TemporaryDirectory(prefix=work_prefix(), dir=work_place()) as folder:
        Session.open(folder, seed=seed, config=performance).close()
        return (Path(folder) / "session.json").read_text(encoding="utf-8")


def work_place() -> str | None:
    """Return where working folders lie: in memory where the system has such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - a fresh folder of ours in it


def work_prefix() -> str:
    """Return how working folders of this process begin."""
    return f"huaben-studio-{os.getpid()}-"


def do_job(store: Store, crew: Crew, job: Job, *, should_cancel: Callable[[], bool], told: Callable[[], None]) -> Turn:
    """Make the turn a job asks for, and commit it.

    Raises:
        HuabenError: as :func:`huaben.session.run_turn` does; the story is then as it was.
    """
    order = Order.model_validate(job.request)
    if order.prompt and order.attempts is None:
        order = order.model_copy(update={"attempts": 1})  # the page is no measure of a picture of other words
    story = store.story(None, job.story_id)
    parent_id = story.head_id if order.parent == "head" else order.parent
    path = store.path(parent_id)
    order = _seeded(store, story, parent_id, order)
    with tempfile.TemporaryDirectory(prefix=work_prefix(), dir=work_place()) as name:
        folder = Path(name)
        lay_out(store, story, path, folder, order)
        before = {file for file in folder.rglob("*") if file.is_file()}
        given = _given(store, folder, order)
        news = _News(store, job, told)
        crew_for_job = crew.directed(order, news.understood)
        with Session.open(folder, stations=crew_for_job) as session:
            order = _arrange(store, job, session, order)
            crew_for_job.screenwriter.wanted = order.page
            _check_edits(session, crew_for_job.screenwriter, order)
            text = order.text or _stand_in(session, crew_for_job.screenwriter, order)
            message = Message(text=text, image=None if given is None else str(given))
            run_turn(session, message, on_event=news.event, should_cancel=should_cancel)
        if given is not None:
            given.unlink()
        return _commit(store, story, parent_id, path, folder, before, order, text, job)


def lay_out(store: Store, story: Story, path: list[Turn], folder: Path, order: Order | None = None) -> None:
    """Write what a session needs to go on after the last turn of ``path``."""
    values = json.loads(story.session)
    if order is not None:
        for key in ("size", "steps", "attempts", "guidance_scale"):
            if getattr(order, key) is not None:
                wanted = getattr(order, key)
                values["performance"][key] = list(wanted) if isinstance(wanted, tuple) else wanted
    (folder / "session.json").write_text(json.dumps(values), encoding="utf-8")
    if not path:
        return
    lines = "".join(f"{turn.line}\n" for turn in path)
    (folder / "turns.jsonl").write_text(lines, encoding="utf-8")
    state = store.state(path[-1].id)
    (folder / "state").mkdir()
    (folder / "state" / f"{path[-1].number:04d}.json").write_text(state, encoding="utf-8")
    wanted_files = {f"cast/{entry['file']}" for entry in json.loads(state).get("cast", [])}
    for file, sha in store.files(turn.id for turn in path).items():
        if file in wanted_files:
            (folder / "cast").mkdir(exist_ok=True)
            (folder / file).write_bytes(store.pictures.get(sha))


def _seeded(store: Store, story: Story, parent_id: str | None, order: Order) -> Order:
    """Give a second answer to the same turn another seed than the first had."""
    if order.seed is None and any(turn.parent_id == parent_id for turn in store.tree(story.id)):
        return order.model_copy(update={"seed": random.SystemRandom().randint(0, 2**31 - 1)})
    return order


def _given(store: Store, folder: Path, order: Order) -> Path | None:
    """Write the user's picture where the session reads it."""
    if order.upload is None:
        return None
    path = folder / "given.png"
    path.write_bytes(store.pictures.get(order.upload))
    return path


def _arrange(store: Store, job: Job, session: Session, order: Order) -> Order:
    """Give ids to new characters, and the cast of the library to those that come from it."""
    if order.page is None or order.page.get("characters") is None:
        return order
    entries = [dict(entry) for entry in order.page["characters"]]
    ids = iter(session.conversation.book.fresh_ids(2 * len(entries)))
    cast = session.cast
    for entry in entries:
        entry["new"] = entry.get("id") is None
        entry["spare"] = next(ids)
        if not entry["new"]:
            continue
        entry["id"] = next(ids)
        if entry.get("library") is None:
            continue
        person = store.person(job.account_id, entry.pop("library"))
        entry["record"] = {
            "name": person.name,
            "prompt": person.prompt,
            "category": person.category,
            "attributes": person.attributes,
        }
        place = session.folder / "cast"
        place.mkdir(exist_ok=True)
        for reference in person.references:
            (place / reference["file"]).write_bytes(store.pictures.get(reference["sha256"]))
        known, _ = Cast.load(place, [{**reference, "id": entry["id"]} for reference in person.references])
        for known_entry in known.entries:
            cast = cast.add(replace(known_entry, turn=len(session.turns) + 1))
    if cast is not session.cast:
        session._memory = replace(session._memory, cast=cast)
    return order.model_copy(update={"page": {**order.page, "characters": entries}})


def _check_edits(session: Session, screenwriter: DirectedScreenwriter, order: Order) -> None:
    """Refuse impossible arrangements before anything is drawn."""
    if order.page is not None and session.page is not None:
        page_edits(session.page, order.page, screenwriter._phrase)


def _stand_in(session: Session, screenwriter: DirectedScreenwriter, order: Order) -> str:
    """Return the message that hand-made edits stand for; empty when a picture came without words."""
    if order.page is None and not order.redraw:
        return ""
    from ..promptbook import Page

    page = session.page or Page()
    edits = page_edits(page, order.page or {}, screenwriter._phrase)
    return sentence(edits, page, order.language)


def _commit(
    store: Store,
    story: Story,
    parent_id: str | None,
    path: list[Turn],
    folder: Path,
    before: set[Path],
    order: Order,
    text: str,
    job: Job,
) -> Turn:
    """Read the new turn out of the folder and write it."""
    line = (folder / "turns.jsonl").read_text(encoding="utf-8").rstrip("\n").rsplit("\n", 1)[-1]
    values = json.loads(line)
    number = int(values["turn"])
    state_path = folder / "state" / f"{number:04d}.json"
    state = state_path.read_text(encoding="utf-8")
    files = {
        str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.png")) if file not in before
    }
    image = values.get("image")
    if order.prompt and image in files and values.get("prompt"):
        values["prompt"] = order.prompt
        line = json.dumps(values, ensure_ascii=False)
        metadata = {**read_metadata(folder / image), "prompt": order.prompt}
        files[image] = png_bytes(decode_picture(files[image]), metadata)
    upload = f"upload-{number:04d}.png"
    return store.commit_turn(
        story.id,
        parent_id,
        line=line,
        state=state,
        files=files,
        message=text,
        image=image,
        upload=upload if upload in files else None,
        more={"checks": checks_of(state, values.get("seed")), "order": _kept_order(order)},
        chain=order.chain,
        move_head=order.move_head,
        job=job,
    )


def checks_of(state: str, seed: int | None) -> list[dict[str, Any]]:
    """Return how each character of the kept picture was read back."""
    for attempt in json.loads(state).get("attempts", []):
        if attempt.get("seed") == seed:
            return list(attempt.get("characters", []))
    return []


def _kept_order(order: Order) -> dict[str, Any]:
    """Return what the page shows of an order later."""
    return order.model_dump(
        include={"mode", "size", "steps", "attempts", "guidance_scale", "prompt"}, exclude_none=True, mode="json"
    )


class _News:
    """Turns a session's events into events of the job."""

    def __init__(self, store: Store, job: Job, told: Callable[[], None]) -> None:
        self.store, self.job, self.told = store, job, told
        self.last = 0.0

    def understood(self, reply: Reply) -> None:
        """Say what was meant before anything is drawn."""
        page = None if reply.page is None else reply.page.to_public()
        self._tell("understood", {"action": reply.action, "reply": reply.text, "page": page})

    def event(self, event: Any) -> None:
        """Say that a step is done: those with a preview, and a few a second."""
        if event.kind != "step" or event.progress is None:
            return
        now, progress = time.monotonic(), event.progress
        if progress.preview is None and now - self.last < STEP_EVERY_S and progress.step > 1:
            return
        self.last = now
        preview = None if progress.preview is None else preview_url(progress.preview)
        data = {"attempt": event.attempt, "step": progress.step, "steps": progress.steps, "preview": preview}
        self._tell("step", data, preview)

    def _tell(self, kind: str, data: dict[str, Any], preview: str | None = None) -> None:
        self.store.tell(self.job, kind, data, preview=preview)
        self.told()


def preview_url(pixels: Any) -> str:
    """Return a preview as a small JPEG in a data URL."""
    picture = PillowImage.fromarray(pixels)
    picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def roll() -> int:
    """Return a random seed."""
    return random.SystemRandom().randint(0, min(2**31 - 1, MAX_PICTURE_SEED))
