"""The service: the tree, hand-made changes, the queue, stopping, what survives."""

import json
import sqlite3
import time

import pytest

from huaben.errors import DataError
from huaben.pictures import read_metadata
from huaben.session import Session, run_turn
from huaben.stages.embedded.oracle import RendererPainter, RendererReader
from huaben.stations import Stations
from huaben.studio.export import export_story, read_folder, write_folder
from huaben.studio.work import Order

from .conftest import CONFIG, FIRST, SlowPainter, make_studio, png, tell, wait


def test_a_story_branches_and_loses_nothing(studio):
    story = studio.new_story(None, seed=3)["id"]
    first = tell(studio, story, text=FIRST)
    snow = tell(studio, story, text="把背景换成雪地")
    night = tell(studio, story, text="draw them at night", parent=first["id"])
    turns = studio.story(None, story)["turns"]
    assert [(turn["number"], turn["parent"]) for turn in turns] == [(1, None), (2, first["id"]), (2, first["id"])]
    assert [turn["page"]["background"] for turn in turns] == ["beach", "snow", "night"]
    assert studio.story(None, story)["head"] == night["id"]
    studio.change_story(None, story, head=snow["id"])
    later = tell(studio, story, text="make the dog green")
    assert later["parent"] == snow["id"]
    assert later["page"]["background"] == "snow"
    assert all(turn["checks"] for turn in turns)


def test_the_first_branch_is_what_the_session_alone_draws(studio, tmp_path):
    story = studio.new_story(None, seed=3)["id"]
    ours = [tell(studio, story, text=text) for text in (FIRST, "把背景换成雪地")]
    painter = RendererPainter()
    stations = Stations(make_painter=lambda: painter, make_reader=lambda: RendererReader(painter))
    with Session.open(tmp_path / "alone", seed=3, config=CONFIG, stations=stations) as session:
        alone = [run_turn(session, text) for text in (FIRST, "把背景换成雪地")]
    for mine, theirs in zip(ours, alone, strict=True):
        assert studio.store.pictures.get(mine["image"]["sha256"]) == (tmp_path / "alone" / theirs.image).read_bytes()
        assert mine["seed"] == theirs.seed


def test_changes_by_hand_are_an_ordinary_turn(studio):
    story = studio.new_story(None, seed=3)["id"]
    first = tell(studio, story, text=FIRST)
    page = {
        "background": "forest",
        "characters": [{"id": "1", "box": [0.1, 0.4, 0.45, 0.9]}, {"prompt": "a green frog"}],
    }
    turn = tell(studio, story, page=page, language="en")
    assert turn["message"] == "Background forest, remove dog, resize cat, add a green frog"
    assert turn["page"]["background"] == "forest"
    assert [c["prompt"] for c in turn["page"]["characters"]] == ["a red cat wearing a hat", "a green frog"]
    assert turn["page"]["characters"][0]["box"] == [0.1, 0.4, 0.45, 0.9]
    x0, _, x1, _ = turn["page"]["characters"][1]["box"]
    assert x0 >= 0.45 or x1 <= 0.1
    black = tell(studio, story, page={"characters": [{"id": "1", "prompt": "a black cat"}]}, parent=first["id"])
    assert [c["prompt"] for c in black["page"]["characters"]] == ["a black cat"]
    undone = tell(studio, story, text="undo that")
    assert [c["id"] for c in undone["page"]["characters"]] == ["1", "2"]


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ({"characters": [{"id": "77"}]}, "no character"),
        ({"characters": [{"id": "1", "box": [0.5, 0.5, 0.5, 0.9]}]}, "empty"),
        ({"characters": [{"id": "1"}, {"prompt": "justice and peace"}]}, "cannot be drawn"),
    ],
)
def test_an_impossible_change_says_why_and_changes_nothing(studio, page, words):
    story = studio.new_story(None, seed=3)["id"]
    first = tell(studio, story, text=FIRST)
    (job,) = wait(studio, studio.say(None, story, Order(page=page)))
    assert job["status"] == "failed"
    assert words in job["error"]["message"]
    assert studio.story(None, story)["head"] == first["id"]


def test_seed_prompt_size_and_steps_chosen_by_hand_are_used(studio):
    story = studio.new_story(None, seed=3)["id"]
    turn = tell(studio, story, text=FIRST, seed=41, prompt="a red cat at sea", size=(64, 96), steps=2)
    assert (turn["seed"], turn["prompt"]) == (41, "a red cat at sea")
    assert (turn["image"]["width"], turn["image"]["height"]) == (96, 64)
    studio_path = studio.store.pictures.path(turn["image"]["sha256"])
    metadata = read_metadata(studio_path)
    assert (metadata["seed"], metadata["prompt"], metadata["steps"]) == (41, "a red cat at sea", 2)


def test_variants_are_siblings_with_their_own_seeds(studio):
    story = studio.new_story(None, seed=3)["id"]
    jobs = wait(studio, studio.say(None, story, Order(text=FIRST, seed=7), variants=3))
    turns = studio.story(None, story)["turns"]
    assert [job["status"] for job in jobs] == ["done"] * 3
    assert {turn["parent"] for turn in turns} == {None}
    assert sorted(turn["seed"] for turn in turns) == [7, 8, 9]
    again = tell(studio, story, text=FIRST, parent=None)
    assert again["seed"] not in (7, 8, 9)


def test_modes_decide_between_talk_and_picture(studio):
    story = studio.new_story(None, seed=3)["id"]
    assert tell(studio, story, text=FIRST, mode="text")["action"] == "chat"
    assert tell(studio, story, text="a red cat", mode="picture")["action"] == "draw"
    assert tell(studio, story, text="hello")["action"] == "chat"


def test_stopping_leaves_the_story_and_keeps_the_last_preview(tmp_path):
    painter = SlowPainter(20)
    studio = make_studio(tmp_path, painter)
    studio.start()
    try:
        story = studio.new_story(None)["id"]
        jobs = studio.say(None, story, Order(text=FIRST)) + studio.say(None, story, Order(text="hello"))
        deadline = time.monotonic() + 30
        while not studio.job(None, jobs[0]["id"])["preview"] and time.monotonic() < deadline:
            time.sleep(0.05)
        assert jobs[1]["place"] >= 1
        assert set(studio.cancel(None)) == {job["id"] for job in jobs}
        first, second = wait(studio, jobs)
        assert (first["status"], second["status"]) == ("cancelled", "cancelled")
        assert first["preview"].startswith("data:image/jpeg")
        assert studio.story(None, story)["turns"] == []
    finally:
        studio.close()


def test_a_job_that_takes_too_long_fails(tmp_path):
    studio = make_studio(tmp_path, SlowPainter(30), timeout_s=0.5)
    studio.start()
    try:
        (job,) = wait(studio, studio.say(None, studio.new_story(None)["id"], Order(text=FIRST)))
        assert (job["status"], job["error"]["code"]) == ("failed", "timeout")
    finally:
        studio.close()


def test_one_picture_is_painted_at_a_time_and_talk_does_not_wait(tmp_path):
    painter = SlowPainter(1.0)
    studio = make_studio(tmp_path, painter)
    studio.start()
    try:
        stories = [studio.new_story(None)["id"] for _ in range(3)]
        drawing = [job for story in stories for job in studio.say(None, story, Order(text=FIRST))]
        talk = studio.say(None, studio.new_story(None)["id"], Order(text="hello"))
        assert wait(studio, talk)[0]["status"] == "done"
        assert studio.job(None, drawing[-1]["id"])["status"] in ("queued", "running")
        assert [job["status"] for job in wait(studio, drawing)] == ["done"] * 3
        assert painter.most == 1
    finally:
        studio.close()


def test_queued_jobs_run_after_a_restart_and_the_running_one_is_interrupted(tmp_path):
    studio = make_studio(tmp_path, threads=0)
    story = studio.new_story(None)["id"]
    jobs = studio.say(None, story, Order(text=FIRST)) + studio.say(None, story, Order(text="hello"))
    assert studio.store.claim("a process that dies").id == jobs[0]["id"]
    studio.store.close()
    again = make_studio(tmp_path)
    again.start()
    try:
        first, second = wait(again, jobs[1:]) and [again.job(None, job["id"]) for job in jobs]
        assert (first["status"], second["status"]) == ("interrupted", "done")
        repeated = wait(again, [again.repeat(None, first["id"])])
        assert repeated[0]["status"] == "done"
    finally:
        again.close()


def test_what_no_turn_has_is_swept_at_the_start(tmp_path):
    studio = make_studio(tmp_path)
    studio.start()
    turn = tell(studio, studio.new_story(None, seed=1)["id"], text=FIRST)
    loose = studio.upload(png())["sha256"]
    studio.close()
    again = make_studio(tmp_path, threads=0)
    again.start()
    assert again.store.pictures.get(turn["image"]["sha256"])
    with pytest.raises(Exception, match="missing"):
        again.store.pictures.get(loose)
    with sqlite3.connect(tmp_path / "studio.db") as rows:
        assert rows.execute("select count(*) from pictures where sha256=?", (loose,)).fetchone() == (0,)
    again.close()


def test_a_folder_goes_in_and_out_byte_for_byte(studio, tmp_path):
    painter = RendererPainter()
    stations = Stations(make_painter=lambda: painter, make_reader=lambda: RendererReader(painter))
    folder = tmp_path / "chat"
    with Session.open(folder, seed=5, config=CONFIG, stations=stations) as session:
        for text in (FIRST, "把背景换成雪地", "show me the first picture", "hello"):
            run_turn(session, text)
    story = read_folder(studio.store, None, folder)
    assert write_folder(studio.store, story, story.head_id, tmp_path / "out") == 4
    files = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
    back = {p.relative_to(tmp_path / "out"): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert back == files
    assert tell(studio, story.id, text="make the dog green")["number"] == 5
    with Session.open(tmp_path / "out", stations=stations) as session:
        assert run_turn(session, "make the dog green").turn == 5


def test_a_story_is_exported_in_every_form(studio):
    story = studio.new_story(None, seed=3)["id"]
    tell(studio, story, text=FIRST)
    tell(studio, story, text="把背景换成雪地")
    starts = {"html": b"<!doctype", "pdf": b"%PDF", "cbz": b"PK", "png": b"\x89PNG", "json": b"{", "zip": b"PK"}
    for kind, start in starts.items():
        if kind == "pdf":
            pytest.importorskip("reportlab")
        data, name = export_story(studio, None, story, kind)
        assert data.startswith(start)
        assert name.endswith(f".{kind}")
    document = json.loads(export_story(studio, None, story, "json")[0])
    assert [turn["message"] for turn in document["turns"]] == [FIRST, "把背景换成雪地"]


def test_a_character_of_the_library_keeps_its_face_in_another_story(studio):
    story = studio.new_story(None, seed=3)["id"]
    first = tell(studio, story, text=FIRST)
    person = studio.keep_character(None, first["id"], "1", name="Mimi")
    assert person["picture"]
    other = studio.new_story(None, seed=99)["id"]
    tell(studio, other, text="draw a blue dog in the forest")
    turn = tell(studio, other, page={"characters": [{"id": "1"}, {"library": person["id"]}]})
    mimi = next(c for c in turn["page"]["characters"] if c["name"] == "Mimi")
    assert mimi["prompt"] == "a red cat wearing a hat"
    painter = studio.crew.stations.painter
    from huaben.pictures import decode_picture

    def cat(value):
        image = decode_picture(studio.store.pictures.get(value["image"]["sha256"]))
        return next(c.identity for c in painter.drawn(image).scene.characters if c.species == "cat")

    assert cat(first) == cat(turn)


def test_deleting_can_be_taken_back(studio):
    story = studio.new_story(None, title="故事")["id"]
    studio.remove_story(None, story)
    assert studio.stories(None) == []
    studio.remove_story(None, story, restore=True)
    assert [one["title"] for one in studio.stories(None, search="故")] == ["故事"]


def test_wrong_orders_are_refused_at_once(studio):
    story, other = (studio.new_story(None)["id"] for _ in range(2))
    turn = tell(studio, other, text="hello")
    for order in (Order(), Order(text="hi", upload="0" * 64), Order(text="hi", parent=turn["id"])):
        with pytest.raises(DataError):
            studio.say(None, story, order)
