"""What every database keeps: one suite for SQLite and a real PostgreSQL."""

import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from huaben.errors import DataError, StoreError
from huaben.studio.models import Base
from huaben.studio.store import open_store

from .conftest import png

SESSION = json.dumps({"format_version": 1, "seed": 3, "performance": {"size": [64, 64], "steps": 2}})


@pytest.fixture(scope="session")
def postgres(tmp_path_factory):
    """Return the address of a server of our own; skips where there is none to start."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = shutil.which("initdb") or (str(programs[-1]) if programs else None)
    if found is None:
        pytest.skip("no PostgreSQL server is installed: apt-get install postgresql")
    pytest.importorskip("psycopg")
    place, before = Path(found).parent, []
    folder = tmp_path_factory.mktemp("pg")
    if os.geteuid() == 0:
        if shutil.which("runuser") is None:
            pytest.skip("PostgreSQL does not start as root, and there is no runuser")
        before = ["runuser", "-u", "postgres", "--"]
        folder = Path(
            subprocess.run([*before, "mktemp", "-d"], check=True, capture_output=True, text=True).stdout.strip()
        )
    data = folder / "data"
    settings = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c max_connections=80"
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
    subprocess.run([*before, found, "-D", data, "-A", "trust", "-U", "huaben", "-E", "UTF8", "--no-locale"], **quiet)
    pg_ctl = [*before, place / "pg_ctl", "-D", data, "-w", "-t", "60"]
    subprocess.run([*pg_ctl, "-l", folder / "log", "-o", settings, "start"], **quiet)
    yield f"postgresql://huaben@/postgres?host={folder}"
    subprocess.run([*pg_ctl, "-m", "immediate", "stop"], **quiet)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def open_again(request, tmp_path):
    """Return a function that opens the same store, as another process would."""
    database = None
    if request.param == "postgresql":
        address = request.getfixturevalue("postgres")
        engine = sa.create_engine(address.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text("drop schema public cascade"))
            connection.execute(sa.text("create schema public"))
        engine.dispose()
        database = address
    opened = []

    def again():
        opened.append(open_store(data=tmp_path, database=database))
        return opened[-1]

    yield again
    for store in opened:
        store.close()


@pytest.fixture
def store(open_again):
    return open_again()


def commit(store, story, parent=None, number=1, colour=(1, 2, 3), **more):
    line = json.dumps({"turn": number, "prompt": "a cat_100%", "image": f"turn-{number:04d}.png"})
    files = {f"turn-{number:04d}.png": png(colour)}
    values = {"message": f"消息 {number}", "image": f"turn-{number:04d}.png", **more}
    return store.commit_turn(story.id, parent, line=line, state="{}", files=files, **values)


def test_the_tables_are_what_the_migrations_make(store):
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_turns_are_a_tree_and_survive(store, open_again):
    story = store.add_story(None, SESSION)
    first = commit(store, story)
    snow = commit(store, story, first.id, 2, (9, 9, 9))
    night = commit(store, story, first.id, 2, (8, 8, 8), move_head=False)
    again = open_again()
    assert [turn.id for turn in again.path(snow.id)] == [first.id, snow.id]
    assert [turn.id for turn in again.path(night.id)] == [first.id, night.id]
    assert {turn.id for turn in again.tree(story.id)} == {first.id, snow.id, night.id}
    assert again.story(None, story.id).head_id == snow.id
    assert again.pictures.get(snow.image) == png((9, 9, 9))
    assert again.turn(None, first.id).message == "消息 1"
    assert again.story(None, story.id).title == "消息 1"


def test_a_turn_that_fails_leaves_nothing(store):
    story = store.add_story(None, SESSION)
    with pytest.raises(Exception, match=r"(?i)foreign key"):
        commit(store, story, "0" * 32)
    assert store.tree(story.id) == []
    assert store.story(None, story.id).head_id is None


def test_a_recalled_picture_is_the_ancestors(store):
    story = store.add_story(None, SESSION)
    first = commit(store, story)
    line = json.dumps({"turn": 2, "image": "turn-0001.png"})
    recalled = store.commit_turn(story.id, first.id, line=line, state="{}", files={}, image="turn-0001.png")
    assert recalled.image == first.image


def test_searches_take_signs_literally(store):
    story = store.add_story(None, SESSION, title="100% 猫_猫")
    commit(store, story)
    for text, found in (("100%", True), ("猫_", True), ("消息", True), ("100_", False), ("%%", False), ("\\", False)):
        assert bool(store.stories(None, search=text)) is found, text
    assert len(store.gallery(None, search="CAT_100%")) == 1
    assert store.gallery(None, search="cat%") == []


def test_jobs_are_claimed_once_and_one_a_story(store, open_again):
    stories = [store.add_story(None, SESSION) for _ in range(6)]
    for story in stories:
        store.add_jobs(None, story.id, [{"text": "a"}, {"text": "b"}])
    others = [open_again() for _ in range(3)]
    claimed, lock = [], threading.Lock()

    def take(one):
        while (job := one.claim("w")) is not None:
            with lock:
                claimed.append(job)

    threads = [threading.Thread(target=take, args=(one,)) for one in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({job.id for job in claimed}) == len(claimed)
    assert {job.request["text"] for job in claimed} == {"a"}
    for job in claimed:
        store.finish(job.id, "done")
    take(store)
    assert len({job.id for job in claimed}) == len(claimed) == 12


def test_cancel_reaches_waiting_and_running_jobs_of_the_account_alone(store):
    for name in ("ann", "bob"):
        store.add_account(name)
    ann, bob = (account.id for account in store.accounts())
    mine, theirs = store.add_story(ann, SESSION), store.add_story(bob, SESSION)
    first, second = store.add_jobs(ann, mine.id, [{}, {}])
    (other,) = store.add_jobs(bob, theirs.id, [{}])
    assert store.claim("w").id == first.id
    assert set(store.cancel(ann)) == {first.id, second.id}
    assert store.wants_cancel(first.id)
    assert store.job(ann, second.id).status == "cancelled"
    assert store.job(bob, other.id).status == "queued"
    with pytest.raises(DataError):
        store.job(ann, other.id)


def test_events_go_on_after_a_number_and_steps_go_when_a_job_ends(store):
    story = store.add_story(None, SESSION)
    (job,) = store.add_jobs(None, story.id, [{}])
    store.claim("w")
    store.tell(job, "step", {"step": 1}, preview="data:x")
    seen = store.events(None, 0)
    assert [event.kind for event in seen] == ["job", "job", "step"]
    assert store.job(None, job.id).preview == "data:x"
    store.finish(job.id, "cancelled")
    assert [event.data["status"] for event in store.events(None, seen[1].id)] == ["cancelled"]
    assert store.job(None, job.id).preview == "data:x"


def test_an_account_goes_with_its_stories_and_tokens_are_not_kept(store):
    token = store.add_account("ann")
    with pytest.raises(DataError, match="already"):
        store.add_account("ann")
    (account,) = store.accounts()
    assert token not in account.token_hash
    commit(store, store.add_story(account.id, SESSION))
    store.remove_account("ann")
    assert store.stories(None) == []
    assert store.accounts() == []


def test_deleted_stories_go_after_a_week_with_their_files(store):
    story = store.add_story(None, SESSION)
    turn = commit(store, story)
    store.change_story(None, story.id, deleted=time.time() - 8 * 86400)
    assert store.sweep(alone=True)["stories"] == 1
    with pytest.raises(StoreError):
        store.pictures.get(turn.image)


def test_changed_bytes_of_a_picture_are_noticed(store):
    story = store.add_story(None, SESSION)
    turn = commit(store, story)
    Path(store.pictures.path(turn.image)).write_bytes(png((0, 0, 0)))
    with pytest.raises(StoreError, match="changed"):
        store.pictures.get(turn.image)


def test_an_address_that_cannot_be_used_says_so(tmp_path):
    for address in ("mysql://x/y", "nonsense", "postgresql://nobody@127.0.0.1:1/none"):
        with pytest.raises(StoreError):
            open_store(data=tmp_path, database=address)
