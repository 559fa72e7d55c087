"""What page, API, command line and MCP call: stories, turns, characters, jobs. It drives the session and adds nothing.

Everything returned is plain JSON values; ``account`` is None where the studio has no accounts.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image as PillowImage

from .. import __version__
from ..errors import DataError
from ..pictures import METADATA_CHUNK, decode_picture, png_bytes
from ..session import UPLOAD_SIDE
from ..stations import Stations
from ..theater.performance import PerformanceConfig
from .models import Job, Person, Picture, Story, Turn
from .runner import Bell, Runner
from .store import Store
from .trust import Signer
from .work import Crew, Order, new_session, roll

MAX_ACTIVE_JOBS = 200
EXAMPLES: tuple[tuple[str, str], ...] = (
    ("A red cat wearing a hat and a blue dog on the beach", "海滩上一只戴帽子的红猫和一只蓝狗"),
    ("A white rabbit and a yellow duck in the forest", "森林里一只白兔和一只黄鸭子"),
    ("An owl and a fox at night, in watercolour", "夜里的一只猫头鹰和一只狐狸，水彩风格"),
)


class Studio:
    """The service.

    Args:
        store: where everything is kept.
        stations: who does what; the embedded parts by default.
        performance: how pages of new stories are painted.
        painters: pictures painted at once.
        threads: jobs worked on at once; 0 leaves the work to other processes.
        timeout_s: longest job.
        stage: the name of the stage, as the models list shows it.
    """

    def __init__(
        self,
        store: Store,
        *,
        stations: Stations | None = None,
        performance: PerformanceConfig | None = None,
        painters: int = 1,
        threads: int = 4,
        timeout_s: float = 900.0,
        stage: str = "embedded",
    ) -> None:
        self.store, self.stage = store, stage
        self.performance = performance or PerformanceConfig()
        self.bell = Bell()
        self.crew = Crew(stations or Stations(), painters=painters)
        self.runner = Runner(store, self.crew, threads=threads, timeout_s=timeout_s, bell=self.bell)
        self.signer = Signer(store.secret("pictures"))
        self.threads = threads
        self.started = time.time()

    def start(self) -> None:
        """Pick up where the last process ended: interrupted jobs marked, leftovers swept, workers begun."""
        alone = self.store.dialect == "sqlite"
        self.store.recover(alone=alone)
        self.store.sweep(alone=alone)
        if self.threads:
            self.runner.start()

    def close(self) -> None:
        """End the workers and let go of the store."""
        self.runner.close()
        self.store.close()

    def about(self, account: str | None, name: str | None) -> dict[str, Any]:
        """Return what a page needs to know at its start."""
        config = self.performance
        return {
            "version": __version__,
            "stage": self.stage,
            "account": name,
            "defaults": {"size": list(config.size), "steps": config.steps, "attempts": config.attempts},
            "sizes": [[128, 128], [128, 192], [192, 128], [192, 192], [256, 256]],
            "max_steps": 100,
            "mask": False,
            "examples": [{"en": english, "zh": chinese} for english, chinese in EXAMPLES],
            "last_event": self.store.last_event(),
        }

    # ------------------------------------------------------------------------------------------------------- stories

    def new_story(
        self, account: str | None, *, title: str = "", seed: int | None = None, origin: str = "page"
    ) -> dict[str, Any]:
        """Begin a story."""
        text = new_session(roll() if seed is None else seed, self.performance)
        return self._story(self.store.add_story(account, text, title=title, origin=origin), {})

    def stories(self, account: str | None, *, search: str = "", deleted: bool = False) -> list[dict[str, Any]]:
        """Return the stories of an account, newest first, each with its cover."""
        stories = self.store.stories(account, search=search, deleted=deleted)
        covers = self.store.covers([story.id for story in stories])
        return [self._story(story, covers) for story in stories]

    def story(self, account: str | None, id: str) -> dict[str, Any]:
        """Return one story with its whole tree and its open jobs."""
        story = self.store.story(account, id)
        turns = self.store.tree(id)
        values = self._story(story, self.store.covers([id]))
        values["turns"] = self._turns(turns)
        values["jobs"] = [self.job_values(job) for job in reversed(self.store.jobs(account, story=id, limit=30))]
        return values

    def change_story(self, account: str | None, id: str, **values: Any) -> dict[str, Any]:
        """Rename, favour, or go on from another turn (``head``)."""
        if "head" in values:
            values["head_id"] = values.pop("head")
        return self._story(self.store.change_story(account, id, **values), self.store.covers([id]))

    def remove_story(self, account: str | None, id: str, *, restore: bool = False) -> dict[str, Any]:
        """Delete a story, or take that back; a deleted one is kept for a week."""
        if not restore:
            self.store.story(account, id)
            for job in self.store.jobs(account, story=id, active=True):
                self.store.cancel(account, job.id)
        return self._story(self.store.change_story(account, id, deleted=None if restore else time.time()), {})

    def _story(self, story: Story, covers: dict[str, str]) -> dict[str, Any]:
        """Return a story's facts."""
        config = json.loads(story.session)
        cover = covers.get(story.id)
        return {
            "id": story.id,
            "title": story.title,
            "favourite": story.favourite,
            "deleted": story.deleted is not None,
            "head": story.head_id,
            "seed": config["seed"],
            "size": config["performance"]["size"],
            "steps": config["performance"]["steps"],
            "created": story.created,
            "updated": story.updated,
            "cover": None if cover is None else self.signer.url(cover),
        }

    # --------------------------------------------------------------------------------------------------------- turns

    def say(self, account: str | None, story_id: str, order: Order, *, variants: int = 1) -> list[dict[str, Any]]:
        """Queue one message; ``variants`` of them begin at the same turn, each with its own seed.

        Raises:
            DataError: for an empty message, a parent of another story, or too many open jobs.
        """
        story = self.store.story(account, story_id)
        if not (order.text.strip() or order.upload or order.page is not None or order.redraw):
            raise DataError("the message is empty", hint="say what to draw, or change something on the page")
        if order.upload is not None and order.upload not in self.store.picture_rows([order.upload]):
            raise DataError("that picture was not uploaded", hint="upload it first: POST /api/v1/uploads")
        if order.parent == "head" and variants > 1:
            order = order.model_copy(update={"parent": story.head_id})
        if order.parent not in ("head", None):
            assert order.parent is not None
            if self.store.turn(account, order.parent).story_id != story_id:
                raise DataError("the turn to go on from is of another story", hint="use an id from this story's tree")
        if len(self.store.jobs(account, active=True, limit=MAX_ACTIVE_JOBS + 1)) + variants > MAX_ACTIVE_JOBS:
            raise DataError("too many messages wait for an answer", hint="wait, or stop some of them")
        orders = [order]
        if variants > 1:
            first = order.seed if order.seed is not None else roll()
            orders = [order.model_copy(update={"seed": (first + index) % 2**31}) for index in range(variants)]
        jobs = self.store.add_jobs(account, story_id, [one.model_dump(mode="json") for one in orders])
        self.bell.ring()
        return [self.job_values(job) for job in jobs]

    def turn(self, account: str | None, id: str) -> dict[str, Any]:
        """Return one turn."""
        return self._turns([self.store.turn(account, id)])[0]

    def _turns(self, turns: list[Turn]) -> list[dict[str, Any]]:
        """Return turns with addresses of their pictures."""
        wanted = {sha for turn in turns for sha in (turn.image, turn.upload) if sha}
        pictures = self.store.picture_rows(wanted)
        return [self._turn(turn, pictures) for turn in turns]

    def _turn(self, turn: Turn, pictures: dict[str, Picture]) -> dict[str, Any]:
        """Return one turn's facts."""
        line = json.loads(turn.line)
        return {
            "id": turn.id,
            "story": turn.story_id,
            "parent": turn.parent_id,
            "message": turn.message,
            **{name: line.get(name) for name in ("action", "reply", "prompt", "page", "seed", "seconds", "warnings")},
            "number": turn.number,
            "image": self._picture(pictures.get(turn.image or "")),
            "upload": self._picture(pictures.get(turn.upload or "")),
            "checks": turn.more.get("checks", []),
            "order": turn.more.get("order", {}),
            "created": turn.created,
        }

    def _picture(self, picture: Picture | None) -> dict[str, Any] | None:
        """Return a picture's address and size."""
        if picture is None:
            return None
        url = self.signer.url(picture.sha256)
        return {"sha256": picture.sha256, "url": url, "width": picture.width, "height": picture.height}

    def upload(self, data: bytes, name: str = "picture") -> dict[str, Any]:
        """Keep a user's picture, re-encoded and without its metadata; tell the settings a huaben PNG carries.

        Raises:
            DataError: if it is not a picture within the limits.
        """
        pixels = decode_picture(data, name, max_side=UPLOAD_SIDE)
        sha = self.store.add_picture(png_bytes(pixels))
        height, width = pixels.shape[:2]
        return {
            "sha256": sha,
            "url": self.signer.url(sha),
            "width": width,
            "height": height,
            "settings": _settings_inside(data),
        }

    def gallery(self, account: str | None, *, search: str = "", before: float | None = None) -> list[dict[str, Any]]:
        """Return drawn turns, newest first."""
        return self._turns(self.store.gallery(account, search=search, before=before))

    # ---------------------------------------------------------------------------------------------------------- jobs

    def job(self, account: str | None, id: str) -> dict[str, Any]:
        """Return one job."""
        return self.job_values(self.store.job(account, id))

    def jobs(self, account: str | None, *, active: bool = True) -> list[dict[str, Any]]:
        """Return jobs, newest first."""
        return [self.job_values(job) for job in self.store.jobs(account, active=active)]

    def cancel(self, account: str | None, id: str | None = None) -> list[str]:
        """Stop a job, or all."""
        if id is not None:
            self.store.job(account, id)
        stopped = self.store.cancel(account, id)
        self.bell.ring()
        return stopped

    def repeat(self, account: str | None, id: str) -> dict[str, Any]:
        """Queue an ended job again."""
        job = self.store.job(account, id)
        order = Order.model_validate(job.request)
        return self.say(account, job.story_id, order)[0]

    def job_values(self, job: Job) -> dict[str, Any]:
        """Return a job's facts; for a waiting one also its place and about how long it will take."""
        values: dict[str, Any] = {
            "id": job.id,
            "story": job.story_id,
            "status": job.status,
            "text": job.request.get("text", ""),
            "parent": job.request.get("parent"),
            "turn": job.turn_id,
            "error": job.error,
            "preview": job.preview if job.status != "done" else None,
            "created": job.created,
            "place": None,
            "wait_s": None,
        }
        if job.status == "queued":
            values["place"] = self.store.ahead(job) + 1
            values["wait_s"] = round(values["place"] * self.store.usual_seconds(), 1)
        return values

    def wait(self, account: str | None, ids: Iterable[str], timeout: float) -> list[Job]:
        """Wait until jobs have ended; return them."""
        deadline = time.monotonic() + timeout
        jobs = []
        for id in ids:
            while True:
                seen = self.bell.count
                job = self.store.job(account, id)
                if job.status not in ("queued", "running") or time.monotonic() > deadline:
                    break
                self.bell.wait(seen, 0.5)
            jobs.append(job)
        return jobs

    # ---------------------------------------------------------------------------------------------------- characters

    def characters(self, account: str | None) -> list[dict[str, Any]]:
        """Return the library."""
        return [self.character_values(person) for person in self.store.persons(account)]

    def keep_character(self, account: str | None, turn_id: str, id: str, *, name: str = "") -> dict[str, Any]:
        """Put a character of a story into the library, with its reference pictures.

        Raises:
            DataError: if it is not on the turn's page.
        """
        turn = self.store.turn(account, turn_id)
        state = json.loads(self.store.state(turn_id))
        pages = state["conversation"]["book"]["pages"]
        found = [c for c in (pages[-1]["characters"] if pages else []) if c["id"] == id]
        if not found:
            raise DataError(f"there is no character {id!r} on that page", hint="reload the page")
        references = [entry for entry in state.get("cast", []) if entry["id"] == id]
        names = self.store.files(turn.id for turn in self.store.path(turn.id))
        files = {e["file"]: self.store.pictures.get(names[f"cast/{e['file']}"]) for e in references}
        person = self.store.add_person(
            account,
            files,
            name=(name or found[0]["name"])[:80],
            prompt=found[0]["prompt"],
            category=found[0]["category"],
            attributes=dict(found[0]["attributes"]),
            references=references,
        )
        return self.character_values(person)

    def change_character(self, account: str | None, id: str, **values: Any) -> dict[str, Any]:
        """Rename a character of the library."""
        return self.character_values(self.store.change_person(account, id, **values))

    def remove_character(self, account: str | None, id: str) -> None:
        """Take a character out of the library."""
        self.store.remove_person(account, id)

    def character_values(self, person: Person) -> dict[str, Any]:
        """Return a character's facts."""
        return {
            "id": person.id,
            "name": person.name,
            "prompt": person.prompt,
            "category": person.category,
            "attributes": person.attributes,
            "picture": None if person.picture is None else self.signer.url(person.picture),
            "created": person.created,
        }


def picture_file(data: bytes, *, kind: str = "png", metadata: bool = True) -> bytes:
    """Return a stored PNG as it is, without what it carries, or in another format."""
    if kind == "png" and metadata:
        return data
    with PillowImage.open(io.BytesIO(data), formats=["PNG"]) as picture:
        buffer = io.BytesIO()
        options = {"png": {}, "jpeg": {"quality": 92}, "webp": {"quality": 90}}[kind]
        picture.convert("RGB").save(buffer, kind.upper(), **options)
    return buffer.getvalue()


def _settings_inside(data: bytes) -> dict[str, Any] | None:
    """Return prompt, seed, size and steps of a huaben PNG; None for any other picture."""
    try:
        with PillowImage.open(io.BytesIO(data), formats=["PNG"]) as picture:
            picture.load()
            values = json.loads(getattr(picture, "text", {}).get(METADATA_CHUNK, "null"))
    except (OSError, SyntaxError, ValueError):
        return None
    if not isinstance(values, dict):
        return None
    return {name: values.get(name) for name in ("prompt", "negative", "seed", "size", "steps", "guidance_scale")}


def default_data() -> Path:
    """Return the folder stories are kept in unless told otherwise."""
    import os

    home = os.environ.get("HUABEN_HOME")
    if home:
        return Path(home)
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "huaben"
