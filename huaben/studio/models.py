"""The tables: accounts, stories, turns as a tree, pictures by hash, characters, jobs and events.

A turn is what a session folder has of it: its line, its state, and the files they name. So a story goes from a folder
into the database and back byte for byte.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Double, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

BIG = BigInteger().with_variant(Integer, "sqlite")


def new_id() -> str:
    """Return a fresh id: 32 hexadecimal digits."""
    return uuid.uuid4().hex


class Base(DeclarativeBase):
    """Base of every table."""


class Account(Base):
    """A person with a token; stories of a studio without tokens belong to no account."""

    __tablename__ = "accounts"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(80), unique=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    created: Mapped[float] = mapped_column(Double, default=time.time)


class Story(Base):
    """One story; ``head_id`` is the turn that the next message goes on from."""

    __tablename__ = "stories"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    account_id: Mapped[str | None] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    title: Mapped[str] = mapped_column(String(200), default="")
    favourite: Mapped[bool] = mapped_column(Boolean, default=False)
    origin: Mapped[str] = mapped_column(String(16), default="page")
    session: Mapped[str] = mapped_column(Text)
    head_id: Mapped[str | None] = mapped_column(String(32))
    created: Mapped[float] = mapped_column(Double, default=time.time)
    updated: Mapped[float] = mapped_column(Double, default=time.time, index=True)
    deleted: Mapped[float | None] = mapped_column(Double)


class Turn(Base):
    """One finished turn. ``line`` and ``state`` are the session folder's texts."""

    __tablename__ = "turns"
    __table_args__ = (Index("turns_of_story", "story_id", "created"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    story_id: Mapped[str] = mapped_column(ForeignKey("stories.id", ondelete="CASCADE"))
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("turns.id", ondelete="CASCADE"), index=True)
    number: Mapped[int] = mapped_column(Integer)
    message: Mapped[str] = mapped_column(Text)
    line: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    prompt: Mapped[str] = mapped_column(Text, default="")
    image: Mapped[str | None] = mapped_column(ForeignKey("pictures.sha256"), index=True)
    upload: Mapped[str | None] = mapped_column(ForeignKey("pictures.sha256"))
    chain: Mapped[str | None] = mapped_column(String(64), index=True)
    more: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    created: Mapped[float] = mapped_column(Double, default=time.time)


class Picture(Base):
    """A stored picture file, under the hash of its bytes."""

    __tablename__ = "pictures"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    num_bytes: Mapped[int] = mapped_column(Integer)
    width: Mapped[int] = mapped_column(Integer)
    height: Mapped[int] = mapped_column(Integer)
    created: Mapped[float] = mapped_column(Double, default=time.time)


class TurnFile(Base):
    """A file that came with a turn, by its name in the session folder."""

    __tablename__ = "turn_files"
    turn_id: Mapped[str] = mapped_column(ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(120), primary_key=True)
    sha256: Mapped[str] = mapped_column(ForeignKey("pictures.sha256"), index=True)


class Person(Base):
    """A character of the library, beyond any story."""

    __tablename__ = "characters"
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    account_id: Mapped[str | None] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(80))
    prompt: Mapped[str] = mapped_column(Text)
    category: Mapped[str] = mapped_column(String(80))
    attributes: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    references: Mapped[list[Any]] = mapped_column(JSON, default=list)
    picture: Mapped[str | None] = mapped_column(ForeignKey("pictures.sha256"))
    created: Mapped[float] = mapped_column(Double, default=time.time)


class Job(Base):
    """One message to answer: queued, running, done, failed, cancelled or interrupted."""

    __tablename__ = "jobs"
    __table_args__ = (Index("jobs_in_order", "status", "position"),)
    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    position: Mapped[float] = mapped_column(Double, default=time.time)
    account_id: Mapped[str | None] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    story_id: Mapped[str] = mapped_column(ForeignKey("stories.id", ondelete="CASCADE"), index=True)
    status: Mapped[str] = mapped_column(String(12), default="queued")
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    turn_id: Mapped[str | None] = mapped_column(String(32))
    cancel: Mapped[bool] = mapped_column(Boolean, default=False)
    worker: Mapped[str] = mapped_column(String(80), default="")
    alive: Mapped[float | None] = mapped_column(Double)
    preview: Mapped[str | None] = mapped_column(Text)
    created: Mapped[float] = mapped_column(Double, default=time.time)
    started: Mapped[float | None] = mapped_column(Double)
    finished: Mapped[float | None] = mapped_column(Double)


class Happening(Base):
    """One event of a job, in order, for streams that resume."""

    __tablename__ = "events"
    __table_args__ = ({"sqlite_autoincrement": True},)
    id: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=True)
    account_id: Mapped[str | None] = mapped_column(String(32), index=True)
    story_id: Mapped[str] = mapped_column(ForeignKey("stories.id", ondelete="CASCADE"), index=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    created: Mapped[float] = mapped_column(Double, default=time.time)


class Secret(Base):
    """Keys of the studio itself, such as the one that signs picture addresses."""

    __tablename__ = "secrets"
    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    value: Mapped[str] = mapped_column(String(200))
