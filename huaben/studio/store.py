"""Where stories are kept: SQLite or PostgreSQL by SQLAlchemy, pictures under their hash in any fsspec file system.

A finished turn is one transaction; its pictures are written before, and swept at the next start if the transaction
never came.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import sqlalchemy as sa
from PIL import Image as PillowImage
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session as Rows

from ..errors import DataError, StoreError
from .models import Account, Base, Happening, Job, Person, Picture, Secret, Story, Turn, TurnFile, new_id

MIGRATIONS = Path(__file__).with_name("migrations")
T = TypeVar("T", bound=Base)
KEEP_DELETED_S = 7 * 86400.0
SWEEP_AFTER_S = 3600.0
ALIVE_S = 60.0
"""A running job of another process that has not been heard of for so long is taken for interrupted."""


class Pictures:
    """Picture files under the hash of their bytes; writing is atomic, and the same bytes are kept once.

    Args:
        url: of an fsspec folder, such as ``file:///var/lib/huaben`` or ``s3://bucket/stories``; a plain path is a folder.
    """

    def __init__(self, url: str) -> None:
        self.fs, self.root = fsspec.core.url_to_fs(url)
        self.fs.makedirs(self.root, exist_ok=True)

    def path(self, sha256: str) -> str:
        """Return where a picture is kept."""
        return f"{self.root.rstrip('/')}/{sha256[:2]}/{sha256}.png"

    def put(self, data: bytes) -> str:
        """Write bytes, whole or not at all, and return their hash."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        if self.fs.exists(path):
            return digest
        part = f"{path}.{secrets.token_hex(4)}.part"
        try:
            self.fs.makedirs(self.fs._parent(path), exist_ok=True)
            self.fs.pipe_file(part, data)
            self.fs.mv(part, path)
        except OSError as error:
            raise StoreError(
                f"a picture cannot be written: {error}", hint="check free space and permissions"
            ) from error
        return digest

    def get(self, sha256: str) -> bytes:
        """Return a picture's bytes.

        Raises:
            StoreError: if it is missing, or its bytes changed.
        """
        try:
            data: bytes = self.fs.cat_file(self.path(sha256))
        except OSError as error:
            raise StoreError(f"picture {sha256[:12]} is missing", hint="restore the data folder from a copy") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise StoreError(f"picture {sha256[:12]} changed on the disk", hint="restore the data folder from a copy")
        return data

    def sweep(self, known: set[str], *, older_than: float = SWEEP_AFTER_S) -> int:
        """Remove files that no row knows and that are older than so many seconds; return how many."""
        removed, now = 0, time.time()
        for path in self.fs.find(self.root):
            name = path.rsplit("/", 1)[-1]
            if name.endswith(".png") and name[:-4] in known:
                continue
            if not (name.endswith((".png", ".part"))) or now - _modified(self.fs, path) < older_than:
                continue
            self.fs.rm_file(path)
            removed += 1
        return removed


def _modified(fs: Any, path: str) -> float:
    """Return when a file was written, in seconds since 1970; now where the file system cannot say."""
    try:
        return float(fs.modified(path).timestamp())
    except (NotImplementedError, OSError):
        return time.time()


class Store:
    """Stories, turns, characters, jobs and events; safe for threads, and for several processes over PostgreSQL.

    Args:
        url: an SQLAlchemy URL; see :func:`open_store`.
        pictures: where picture files go.
    """

    def __init__(self, url: str, pictures: Pictures) -> None:
        self.pictures = pictures
        self.engine = _engine(url)
        self.dialect = self.engine.dialect.name
        try:
            self._upgrade()
        except sa.exc.SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise StoreError(f"the database cannot be opened: {reason}", hint="check its address and rights") from error
        self._writer = self.engine.execution_options(write=True)

    def close(self) -> None:
        """Let go of every connection."""
        self.engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Rows]:
        """Give rows to look at."""
        with Rows(self.engine, expire_on_commit=False) as rows:
            yield rows

    @contextmanager
    def write(self) -> Iterator[Rows]:
        """Give one transaction: everything in the block happens, or nothing."""
        try:
            with Rows(self._writer, expire_on_commit=False) as rows, rows.begin():
                yield rows
        except sa.exc.OperationalError as error:
            raise StoreError(f"the database cannot be written: {error.orig}", hint="check free space") from error

    def _upgrade(self) -> None:
        """Bring the tables to the newest form."""
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with self.engine.connect() as connection:
            if self.dialect == "postgresql":
                connection.execute(sa.text("select pg_advisory_lock(7231)"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
            if self.dialect == "postgresql":
                connection.execute(sa.text("select pg_advisory_unlock(7231)"))

    # ------------------------------------------------------------------------------------------------------- stories

    def add_story(self, account: str | None, session: str, *, title: str = "", origin: str = "page") -> Story:
        """Begin a story with the text of its ``session.json``."""
        story = Story(id=new_id(), account_id=account, session=session, title=title[:200], origin=origin)
        with self.write() as rows:
            rows.add(story)
        return story

    def story(self, account: str | None, id: str) -> Story:
        """Return a story of an account.

        Raises:
            DataError: if there is none, or it is someone else's.
        """
        with self.read() as rows:
            return _own(rows, Story, account, id)

    def stories(
        self,
        account: str | None,
        *,
        search: str = "",
        deleted: bool = False,
        origin: str | None = "page",
        limit: int = 200,
    ) -> list[Story]:
        """Return stories, newest first; ``search`` looks into titles and messages."""
        query = sa.select(Story).where(_mine(Story, account))
        query = query.where(Story.deleted.is_not(None) if deleted else Story.deleted.is_(None))
        if origin is not None:
            query = query.where(Story.origin == origin)
        if search:
            like = _like(search)
            said = sa.select(Turn.id).where(Turn.story_id == Story.id, Turn.message.ilike(like, escape="\\")).exists()
            query = query.where(sa.or_(Story.title.ilike(like, escape="\\"), said))
        with self.read() as rows:
            return list(rows.scalars(query.order_by(Story.updated.desc()).limit(limit)))

    def change_story(self, account: str | None, id: str, **values: Any) -> Story:
        """Set fields of a story."""
        with self.write() as rows:
            story = _own(rows, Story, account, id)
            if values.get("head_id") is not None:
                turn = rows.get(Turn, values["head_id"])
                if turn is None or turn.story_id != id:
                    raise DataError("the story has no such turn", hint="use an id from its tree")
            for name, value in values.items():
                setattr(story, name, value)
            story.updated = time.time()
        return story

    # --------------------------------------------------------------------------------------------------------- turns

    def commit_turn(
        self,
        story_id: str,
        parent_id: str | None,
        *,
        line: str,
        state: str,
        files: dict[str, bytes],
        message: str = "",
        image: str | None = None,
        upload: str | None = None,
        more: dict[str, Any] | None = None,
        chain: str | None = None,
        move_head: bool = True,
        job: Job | None = None,
    ) -> Turn:
        """Write one finished turn: its files first, then everything else in one transaction.

        Args:
            story_id, parent_id: where it hangs; None is a first turn.
            line, state: texts of the session folder.
            files: bytes by name in the session folder; ``image`` and ``upload`` name two of them.
            message: what was said.
            image: file name of its picture, among ``files`` or an ancestor's.
            upload: file name of the user's picture.
            more: further facts for the page.
            chain: a hash that finds the turn again by what was said so far.
            move_head: whether the story goes on from it.
            job: the job that is done with it.
        """
        digests = {name: self.pictures.put(data) for name, data in files.items()}
        values = json.loads(line)
        turn = Turn(
            id=new_id(),
            story_id=story_id,
            parent_id=parent_id,
            number=int(values["turn"]),
            message=message,
            line=line,
            state=state,
            prompt=str(values.get("prompt") or ""),
            upload=digests.get(upload or ""),
            chain=chain,
            more=more or {},
            created=time.time(),
        )
        with self.write() as rows:
            story = rows.get(Story, story_id)
            if story is None:
                raise DataError("the story is gone", hint="begin another one")
            self._add_pictures(rows, {digests[name]: data for name, data in files.items()})
            turn.image = digests.get(image or "") or self._inherited(rows, parent_id, image)
            rows.add(turn)
            rows.flush()
            rows.add_all(TurnFile(turn_id=turn.id, name=name, sha256=sha) for name, sha in digests.items())
            if move_head:
                story.head_id = turn.id
            story.updated = time.time()
            if not story.title:
                story.title = message.strip().split("\n")[0][:80]
            if job is not None:
                self._finish(rows, job.id, "done", turn_id=turn.id)
        return turn

    def _inherited(self, rows: Rows, parent_id: str | None, name: str | None) -> str | None:
        """Return the hash of an ancestor's file."""
        if name is None or parent_id is None:
            return None
        path = [turn.id for turn in _path(rows, parent_id)]
        found = rows.scalars(sa.select(TurnFile).where(TurnFile.turn_id.in_(path), TurnFile.name == name)).first()
        return None if found is None else found.sha256

    def _add_pictures(self, rows: Rows, files: dict[str, bytes]) -> None:
        """Record picture files; those already known stay."""
        insert = postgresql.insert if self.dialect == "postgresql" else sqlite.insert
        for digest, data in sorted(files.items()):
            with PillowImage.open(io.BytesIO(data), formats=["PNG"]) as picture:
                width, height = picture.size
            values = {
                "sha256": digest,
                "num_bytes": len(data),
                "width": width,
                "height": height,
                "created": time.time(),
            }
            rows.execute(insert(Picture).values(**values).on_conflict_do_nothing())

    def turn(self, account: str | None, id: str) -> Turn:
        """Return a turn of an account's story.

        Raises:
            DataError: if there is none.
        """
        with self.read() as rows:
            turn = rows.get(Turn, id)
            if turn is None:
                raise DataError("there is no such turn", hint="use an id from a story's tree")
            _own(rows, Story, account, turn.story_id)
            return turn

    def tree(self, story_id: str) -> list[Turn]:
        """Return every turn of a story, without states, oldest first."""
        with self.read() as rows:
            query = sa.select(Turn).where(Turn.story_id == story_id).order_by(Turn.created, Turn.id)
            return list(rows.scalars(query.options(sa.orm.defer(Turn.state))))

    def path(self, turn_id: str | None) -> list[Turn]:
        """Return the turns from the first to ``turn_id``, without states."""
        if turn_id is None:
            return []
        with self.read() as rows:
            return _path(rows, turn_id)

    def state(self, turn_id: str) -> str:
        """Return the state after a turn."""
        with self.read() as rows:
            return rows.scalars(sa.select(Turn.state).where(Turn.id == turn_id)).one()

    def files(self, turn_ids: Iterable[str]) -> dict[str, str]:
        """Return hashes by file name, for all turns given; later ones win."""
        ids = list(turn_ids)
        with self.read() as rows:
            found = list(rows.scalars(sa.select(TurnFile).where(TurnFile.turn_id.in_(ids))))
        order = {id: index for index, id in enumerate(ids)}
        return {file.name: file.sha256 for file in sorted(found, key=lambda file: order[file.turn_id])}

    def add_picture(self, data: bytes) -> str:
        """Keep a PNG that no turn has yet, such as an upload; the next sweep removes it if none ever does."""
        digest = self.pictures.put(data)
        with self.write() as rows:
            self._add_pictures(rows, {digest: data})
        return digest

    def picture_rows(self, digests: Iterable[str]) -> dict[str, Picture]:
        """Return sizes of pictures by hash."""
        with self.read() as rows:
            query = sa.select(Picture).where(Picture.sha256.in_(list(digests)))
            return {picture.sha256: picture for picture in rows.scalars(query)}

    def covers(self, story_ids: Sequence[str]) -> dict[str, str]:
        """Return the newest picture of each story."""
        newest = sa.select(Turn.story_id, sa.func.max(Turn.created).label("created"))
        newest = newest.where(Turn.story_id.in_(story_ids), Turn.image.is_not(None)).group_by(Turn.story_id)
        found = newest.subquery()
        query = sa.select(Turn.story_id, Turn.image).join(
            found, sa.and_(Turn.story_id == found.c.story_id, Turn.created == found.c.created)
        )
        with self.read() as rows:
            return {story: image for story, image in rows.execute(query) if image is not None}

    def usual_seconds(self) -> float:
        """Return how long the last few jobs took on average; 3 where there were none."""
        query = sa.select(Job.started, Job.finished).where(Job.status == "done").order_by(Job.position.desc()).limit(8)
        with self.read() as rows:
            spans = [finished - started for started, finished in rows.execute(query) if started and finished]
        return sum(spans) / len(spans) if spans else 3.0

    def gallery(
        self, account: str | None, *, search: str = "", limit: int = 60, before: float | None = None
    ) -> list[Turn]:
        """Return turns that drew a picture, newest first; ``search`` looks into prompts and messages."""
        query = sa.select(Turn).join(Story, Story.id == Turn.story_id).where(_mine(Story, account))
        query = query.where(Story.deleted.is_(None), Turn.prompt != "", Turn.image.is_not(None))
        if search:
            like = _like(search)
            query = query.where(sa.or_(Turn.prompt.ilike(like, escape="\\"), Turn.message.ilike(like, escape="\\")))
        if before is not None:
            query = query.where(Turn.created < before)
        with self.read() as rows:
            query = query.order_by(Turn.created.desc(), Turn.id).limit(limit).options(sa.orm.defer(Turn.state))
            return list(rows.scalars(query))

    def find_chain(self, account: str | None, chain: str) -> Turn | None:
        """Return the newest turn of an account that ends a conversation with this hash."""
        query = sa.select(Turn).join(Story, Story.id == Turn.story_id).where(_mine(Story, account), Turn.chain == chain)
        with self.read() as rows:
            return rows.scalars(query.where(Story.deleted.is_(None)).order_by(Turn.created.desc()).limit(1)).first()

    # ---------------------------------------------------------------------------------------------------------- jobs

    def add_jobs(self, account: str | None, story_id: str, requests: Sequence[dict[str, Any]]) -> list[Job]:
        """Queue jobs, in order."""
        now = time.time()
        jobs = [
            Job(id=new_id(), position=now + index * 1e-6, account_id=account, story_id=story_id, request=request)
            for index, request in enumerate(requests)
        ]
        with self.write() as rows:
            rows.add_all(jobs)
            rows.flush()
            for job in jobs:
                _tell(rows, job, "job", {"status": "queued"})
        return jobs

    def claim(self, worker: str) -> Job | None:
        """Take the first queued job whose story is at rest; None if there is none."""
        busy = sa.orm.aliased(Job)
        working = sa.select(busy.id).where(busy.story_id == Job.story_id, busy.status == "running").exists()
        query = sa.select(Job).join(Story, Story.id == Job.story_id).where(Job.status == "queued", ~working)
        query = query.order_by(Job.position).limit(1)
        if self.dialect == "postgresql":
            query = query.with_for_update(of=[Job, Story], skip_locked=True)
        passed: list[str] = []
        with self.write() as rows:
            while (job := rows.scalars(query.where(Job.story_id.not_in(passed))).first()) is not None:
                # Another process may have begun this story's job since the query looked; the story is locked now.
                if rows.scalars(
                    sa.select(busy.id).where(busy.story_id == job.story_id, busy.status == "running")
                ).first():
                    passed.append(job.story_id)
                    continue
                job.status, job.worker, job.started, job.alive = "running", worker, time.time(), time.time()
                _tell(rows, job, "job", {"status": "running"})
                return job
        return None

    def tell(self, job: Job, kind: str, data: dict[str, Any], *, preview: str | None = None) -> None:
        """Record one event of a running job, and that it is alive."""
        with self.write() as rows:
            _tell(rows, job, kind, data)
            values: dict[str, Any] = {"alive": time.time()}
            if preview is not None:
                values["preview"] = preview
            rows.execute(sa.update(Job).where(Job.id == job.id).values(**values))

    def beat(self, job_ids: list[str]) -> None:
        """Record that running jobs are alive."""
        if job_ids:
            with self.write() as rows:
                rows.execute(sa.update(Job).where(Job.id.in_(job_ids)).values(alive=time.time()))

    def finish(self, job_id: str, status: str, *, error: dict[str, Any] | None = None) -> None:
        """End a job without a turn."""
        with self.write() as rows:
            self._finish(rows, job_id, status, error=error)

    def _finish(
        self, rows: Rows, job_id: str, status: str, *, turn_id: str | None = None, error: dict[str, Any] | None = None
    ) -> None:
        """Set a job's end and drop its step events."""
        job = rows.get(Job, job_id)
        if job is None:
            return
        job.status, job.turn_id, job.error, job.finished = status, turn_id, error, time.time()
        if status == "done":
            job.preview = None
        rows.execute(sa.delete(Happening).where(Happening.job_id == job_id, Happening.kind == "step"))
        _tell(rows, job, "job", {"status": status, "turn": turn_id, "error": error})

    def wants_cancel(self, job_id: str) -> bool:
        """Return whether someone asked to stop a job."""
        with self.read() as rows:
            return bool(rows.scalars(sa.select(Job.cancel).where(Job.id == job_id)).first())

    def cancel(self, account: str | None, job_id: str | None = None) -> list[str]:
        """Stop one job of an account, or all: queued ones at once, running ones at their next step."""
        query = sa.select(Job).where(_mine(Job, account), Job.status.in_(("queued", "running")))
        if job_id is not None:
            query = query.where(Job.id == job_id)
        with self.write() as rows:
            jobs = list(rows.scalars(query))
            for job in jobs:
                job.cancel = True
                if job.status == "queued":
                    self._finish(rows, job.id, "cancelled")
        return [job.id for job in jobs]

    def job(self, account: str | None, id: str) -> Job:
        """Return a job of an account.

        Raises:
            DataError: if there is none.
        """
        with self.read() as rows:
            return _own(rows, Job, account, id)

    def jobs(
        self, account: str | None, *, story: str | None = None, active: bool = False, limit: int = 100
    ) -> list[Job]:
        """Return jobs, newest first."""
        query = sa.select(Job).where(_mine(Job, account))
        if story is not None:
            query = query.where(Job.story_id == story)
        if active:
            query = query.where(Job.status.in_(("queued", "running")))
        with self.read() as rows:
            return list(rows.scalars(query.order_by(Job.position.desc()).limit(limit)))

    def ahead(self, job: Job) -> int:
        """Return how many jobs of anyone come before a queued one."""
        query = sa.select(sa.func.count()).select_from(Job)
        query = query.where(
            sa.or_(Job.status == "running", sa.and_(Job.status == "queued", Job.position < job.position))
        )
        with self.read() as rows:
            return int(rows.scalar(query) or 0)

    def recover(self, *, alone: bool) -> int:
        """Mark jobs that were running when their process ended; ``alone`` means no other process can be at work."""
        query = sa.select(Job).where(Job.status == "running")
        if not alone:
            query = query.where(Job.alive < time.time() - ALIVE_S)
        with self.write() as rows:
            jobs = list(rows.scalars(query))
            for job in jobs:
                self._finish(rows, job.id, "interrupted")
        return len(jobs)

    def events(
        self, account: str | None, after: int, *, story: str | None = None, job: str | None = None
    ) -> list[Happening]:
        """Return events after an id, oldest first."""
        query = sa.select(Happening).where(Happening.id > after)
        if account is not None:
            query = query.where(Happening.account_id == account)
        if story is not None:
            query = query.where(Happening.story_id == story)
        if job is not None:
            query = query.where(Happening.job_id == job)
        with self.read() as rows:
            return list(rows.scalars(query.order_by(Happening.id).limit(500)))

    def last_event(self) -> int:
        """Return the newest event's id."""
        with self.read() as rows:
            return int(rows.scalar(sa.select(sa.func.max(Happening.id))) or 0)

    # ------------------------------------------------------------------------------------- characters, accounts, keys

    def add_person(self, account: str | None, files: dict[str, bytes], **values: Any) -> Person:
        """Put a character into the library; ``files`` are its reference pictures by name."""
        digests = {name: self.pictures.put(data) for name, data in files.items()}
        person = Person(id=new_id(), account_id=account, **values)
        with self.write() as rows:
            self._add_pictures(rows, {digests[name]: data for name, data in files.items()})
            person.references = [{**entry, "sha256": digests[entry["file"]]} for entry in person.references]
            person.picture = person.references[0]["sha256"] if person.references else None
            rows.add(person)
        return person

    def persons(self, account: str | None) -> list[Person]:
        """Return the library, newest first."""
        with self.read() as rows:
            query = sa.select(Person).where(_mine(Person, account)).order_by(Person.created.desc())
            return list(rows.scalars(query))

    def person(self, account: str | None, id: str) -> Person:
        """Return one character of the library."""
        with self.read() as rows:
            return _own(rows, Person, account, id)

    def change_person(self, account: str | None, id: str, **values: Any) -> Person:
        """Set fields of a character."""
        with self.write() as rows:
            person = _own(rows, Person, account, id)
            for name, value in values.items():
                setattr(person, name, value)
        return person

    def remove_person(self, account: str | None, id: str) -> None:
        """Take a character out of the library; stories keep theirs."""
        with self.write() as rows:
            rows.delete(_own(rows, Person, account, id))

    def add_account(self, name: str) -> str:
        """Return the token of a new account; only its hash is kept.

        Raises:
            DataError: if the name is taken.
        """
        token = f"hb-{secrets.token_urlsafe(32)}"
        try:
            with self.write() as rows:
                rows.add(Account(id=new_id(), name=name, token_hash=hashlib.sha256(token.encode()).hexdigest()))
        except sa.exc.IntegrityError as error:
            raise DataError(f"there is an account {name!r} already", hint="revoke it, or use another name") from error
        return token

    def accounts(self) -> list[Account]:
        """Return all accounts by name."""
        with self.read() as rows:
            return list(rows.scalars(sa.select(Account).order_by(Account.name)))

    def remove_account(self, name: str) -> None:
        """Remove an account, with its stories.

        Raises:
            DataError: if there is none.
        """
        with self.write() as rows:
            account = rows.scalars(sa.select(Account).where(Account.name == name)).first()
            if account is None:
                raise DataError(f"there is no account {name!r}", hint="list them: huaben studio token list")
            rows.delete(account)

    def secret(self, name: str) -> str:
        """Return a key of the studio, made when first asked for."""
        with self.read() as rows:
            found = rows.get(Secret, name)
        if found is None:
            insert = postgresql.insert if self.dialect == "postgresql" else sqlite.insert
            with self.write() as rows:
                rows.execute(insert(Secret).values(name=name, value=secrets.token_hex(32)).on_conflict_do_nothing())
            with self.read() as rows:
                found = rows.get(Secret, name)
            assert found is not None
        return found.value

    def sweep(self, *, alone: bool) -> dict[str, int]:
        """Remove what was deleted long ago, old events, and files no row knows; return counts."""
        now = time.time()
        with self.write() as rows:
            old = sa.select(Story.id).where(Story.deleted < now - KEEP_DELETED_S)
            stories = len(rows.scalars(old).all())
            rows.execute(sa.delete(Story).where(Story.id.in_(old)))
            rows.execute(sa.delete(Happening).where(Happening.created < now - 86400.0))
            used = [
                sa.select(column).where(column.is_not(None))
                for column in (TurnFile.sha256, Turn.image, Turn.upload, Person.picture)
            ]
            kept = set(rows.scalars(sa.union(*used)))
            waiting = rows.scalars(sa.select(Job.request).where(Job.status == "queued"))
            kept |= {request["upload"] for request in waiting if request.get("upload")}
            kept |= {e["sha256"] for refs in rows.scalars(sa.select(Person.references)) for e in refs}
            age = now if alone else now - SWEEP_AFTER_S
            loose = [
                sha for sha in rows.scalars(sa.select(Picture.sha256).where(Picture.created <= age)) if sha not in kept
            ]
            for sha in loose:
                rows.execute(sa.delete(Picture).where(Picture.sha256 == sha))
            known = set(rows.scalars(sa.select(Picture.sha256)))
        files = self.pictures.sweep(known, older_than=0.0 if alone else SWEEP_AFTER_S)
        return {"stories": stories, "files": files}


def open_store(*, data: Path | None = None, database: str | None = None, storage: str | None = None) -> Store:
    """Open the store of a data folder, or of a database address.

    Args:
        data: folder for ``studio.db`` and ``pictures/``.
        database: an address such as ``postgresql://user@host/name`` instead of ``studio.db``.
        storage: an fsspec address for picture files instead of ``data/pictures``.

    Raises:
        StoreError: if it cannot be opened.
    """
    if data is None and (database is None or storage is None):
        raise StoreError("there is no data folder", hint="give --data DIR, or both --database and --storage")
    if data is not None:
        try:
            data.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{data} cannot be made: {error.strerror}", hint="use another folder") from error
    if database is None:
        assert data is not None
        database = f"sqlite:///{data.resolve() / 'studio.db'}"
    elif database.startswith(("postgres://", "postgresql://")):
        database = f"postgresql+psycopg://{database.split('://', 1)[1]}"
    return Store(database, Pictures(storage or str((data or Path()).resolve() / "pictures")))


def _engine(url: str) -> sa.Engine:
    """Return the engine of an address, set up for short transactions."""
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise StoreError(f"database {parsed.get_backend_name()!r} is not served", hint="use SQLite or PostgreSQL")
        if parsed.get_backend_name() == "postgresql":
            return sa.create_engine(parsed, pool_size=8, max_overflow=24, pool_pre_ping=True)
        engine = sa.create_engine(parsed, pool_size=8, max_overflow=120, connect_args={"timeout": 30})
    except (sa.exc.ArgumentError, ModuleNotFoundError) as error:
        raise StoreError(
            f"the database address cannot be used: {error}", hint="pip install 'huaben[studio]'"
        ) from error

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {setting}").close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        write = connection.get_execution_options().get("write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _tell(rows: Rows, job: Job, kind: str, data: dict[str, Any]) -> None:
    """Add one event."""
    rows.add(Happening(account_id=job.account_id, story_id=job.story_id, job_id=job.id, kind=kind, data=data))


def _path(rows: Rows, turn_id: str) -> list[Turn]:
    """Return the turns from the first to this one."""
    start = sa.select(Turn.id, Turn.parent_id).where(Turn.id == turn_id).cte("path", recursive=True)
    ids = start.union_all(sa.select(Turn.id, Turn.parent_id).join(start, Turn.id == start.c.parent_id))
    query = sa.select(Turn).where(Turn.id.in_(sa.select(ids.c.id))).order_by(Turn.number)
    return list(rows.scalars(query.options(sa.orm.defer(Turn.state))))


def _own(rows: Rows, kind: type[T], account: str | None, id: str) -> T:
    """Return a row of an account; of anyone when there are no accounts."""
    found: Any = rows.get(kind, id)
    if found is None or (account is not None and found.account_id != account):
        noun = {"Story": "story", "Job": "job", "Person": "character"}[kind.__name__]
        raise DataError(f"there is no such {noun}", hint="it may have been deleted")
    return found


def _mine(kind: Any, account: str | None) -> Any:
    """Return the condition that a row is an account's; no condition when there are no accounts."""
    return sa.true() if account is None else kind.account_id == account


def _like(text: str) -> str:
    """Return a pattern that finds ``text`` anywhere, taken literally."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"
