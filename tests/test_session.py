"""Sessions: what a turn does, what a folder survives, what a failure leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from huaben import files
from huaben.dialogue import Message
from huaben.errors import Cancelled, ConfigError, DataError, DialogueError, GenerationError, StoreError
from huaben.pictures import read_metadata, read_picture
from huaben.session import Session, read_turns, run_turn
from huaben.stages.embedded.oracle import RendererPainter, RendererReader
from huaben.stations import WEIGHTS, Stations
from huaben.storyboard import write_storyboard
from huaben.theater.performance import PerformanceConfig

CONFIG = PerformanceConfig(size=(64, 64), steps=2)
STORY = [
    "Draw a red cat wearing a hat on the left and a blue dog on the right, on the beach",
    "把背景换成雪地",
    "make the dog face left",
    "show me the first picture",
    "hello",
]


class Broken:
    """A painter that fails in a chosen way."""

    limits = RendererPainter.limits

    def __init__(self, error):
        self.error = error

    def paint(self, request, **_):
        raise self.error


def oracle(painter=None, reader=True):
    painter = painter or RendererPainter()
    return Stations(
        make_painter=lambda: painter, make_reader=(lambda: RendererReader(painter)) if reader else lambda: None
    )


def open_session(folder, **changes):
    return Session.open(folder, **({"seed": 3, "config": CONFIG, "stations": oracle()} | changes))


def play(folder, messages, **changes):
    with open_session(folder, **changes) as session:
        return [run_turn(session, message) for message in messages]


def test_a_story_in_two_languages(tmp_path):
    painter = RendererPainter()
    turns = play(tmp_path, STORY, stations=oracle(painter))
    assert [turn.action for turn in turns] == ["draw", "draw", "draw", "recall", "chat"]
    assert [turn.image for turn in turns] == [f"turn-000{n}.png" for n in (1, 2, 3)] + ["turn-0001.png", None]
    pages = [turn.page for turn in turns]
    assert [page["background"] for page in pages] == ["beach", "snow", "snow", "beach", "beach"]
    assert all({c["id"] for c in page["characters"]} == {"1", "2"} for page in pages)
    assert all("一" not in warning for turn in turns for warning in turn.warnings)
    identities = []
    for name in ("turn-0001.png", "turn-0002.png", "turn-0003.png"):
        drawn = painter.drawn(read_picture(tmp_path / name))
        identities.append(sorted((c.species, c.identity) for c in drawn.scene.characters))
    assert identities[0] == identities[1] == identities[2]


def test_turn_lines_have_the_public_form(tmp_path):
    play(tmp_path, STORY[:2] + STORY[-1:])
    lines = (tmp_path / "turns.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    for number, line in enumerate(lines, start=1):
        turn = json.loads(line)
        assert list(turn) == ["turn", "action", "reply", "prompt", "page", "image", "seed", "seconds", "warnings"]
        assert turn["turn"] == number
        assert set(turn["page"]) == {"background", "style", "negative", "characters"}
        for character in turn["page"]["characters"]:
            assert set(character) == {"id", "name", "prompt", "box"}
            assert len(character["box"]) == 4
    assert json.loads(lines[2])["image"] is None
    assert "雪地" in json.loads(lines[1])["prompt"]


def test_pictures_carry_what_made_them(tmp_path):
    (turn,) = play(tmp_path, STORY[:1])
    values = read_metadata(tmp_path / turn.image)
    assert values["seed"] == turn.seed
    assert values["prompt"] == turn.prompt
    assert [c["id"] for c in values["characters"]] == ["1", "2"]
    assert values["size"] == [64, 64]
    with Image.open(tmp_path / turn.image) as picture:
        assert f"Seed: {turn.seed}" in picture.text["parameters"]
        assert "AIGC" in picture.text["XML:com.adobe.xmp"]


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        play(tmp_path / name, STORY[:2], seed=seed)
    a, b, c = ((tmp_path / name / "turn-0002.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_reopening_goes_on_with_book_cast_and_seed(tmp_path):
    whole = play(tmp_path / "whole", STORY[:3])
    painter = RendererPainter()
    parts = []
    for message in STORY[:3]:
        with Session.open(tmp_path / "parts", seed=None if parts else 3, config=CONFIG, stations=oracle(painter)) as s:
            assert s.config.seed == 3
            parts.append(run_turn(s, message))
    assert [t.replace(seconds=0.0) for t in whole] == [t.replace(seconds=0.0) for t in parts]
    assert [t["message"] for t in read_turns(tmp_path / "parts")] == STORY[:3]
    for name in ("turn-0001.png", "turn-0003.png"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_canonical_cast_is_the_same_after_many_turns(tmp_path):
    with open_session(tmp_path) as session:
        run_turn(session, STORY[0])
        first = session.cast.choose("1").crop.tobytes()
        for message in ("make the cat blue", "给猫戴上眼镜", "move them to the city"):
            run_turn(session, message)
        assert session.cast.choose("1").crop.tobytes() == first
        assert session.cast.choose("1", "latest").look == ("cat", "blue", "glasses")
    with open_session(tmp_path) as session:
        assert session.cast.choose("1").crop.tobytes() == first
        assert [entry.look[1] for entry in session.cast.versions("1")] == ["red", "blue", "blue"]


def test_unreadable_reference_is_announced_and_the_story_goes_on(tmp_path):
    play(tmp_path, STORY[:1])
    for path in (tmp_path / "cast").iterdir():
        path.write_bytes(b"not a picture")
    with open_session(tmp_path) as session:
        assert [note.code for note in session.notices] == ["reference_unreadable"] * 2
        turn = run_turn(session, STORY[1])
    assert turn.image is not None
    assert {c["id"] for c in turn.page["characters"]} == {"1", "2"}


def test_two_processes_cannot_hold_one_folder(tmp_path):
    with open_session(tmp_path):
        with pytest.raises(StoreError, match="in use"):
            open_session(tmp_path)
    open_session(tmp_path).close()


def test_other_seed_and_missing_session_are_refused(tmp_path):
    with pytest.raises(StoreError, match="no session"):
        Session.open(tmp_path / "new", create=False)
    open_session(tmp_path).close()
    with pytest.raises(ConfigError, match="seed 3"):
        open_session(tmp_path, seed=4)
    open_session(tmp_path).close()


def folder_state(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize(
    "error", [GenerationError("no picture"), Cancelled("stopped"), KeyboardInterrupt(), MemoryError()]
)
def test_a_failed_turn_leaves_everything_as_it_was(tmp_path, error):
    play(tmp_path, STORY[:1])
    before = folder_state(tmp_path)
    with open_session(tmp_path, stations=oracle(Broken(error), reader=False)) as session:
        with pytest.raises(type(error)):
            run_turn(session, STORY[1])
        assert len(session.turns) == 1
        assert session.page.background == "beach"
    assert folder_state(tmp_path) == before
    assert play(tmp_path, STORY[1:2])[0].turn == 2


@pytest.mark.parametrize("text", ["", "   \n", "x" * 3000])
def test_messages_that_cannot_be_read_are_refused_before_anything_happens(tmp_path, text):
    with open_session(tmp_path) as session, pytest.raises(DialogueError):
        run_turn(session, text)
    assert not (tmp_path / "turns.jsonl").exists()


def test_full_disk_is_said_and_earlier_turns_are_kept(tmp_path, monkeypatch):
    import errno

    play(tmp_path, STORY[:1])
    before = folder_state(tmp_path)
    for step in ("picture", "state", "line"):
        with open_session(tmp_path) as session:
            with monkeypatch.context() as patch:

                def fail(*_, **__):
                    raise OSError(errno.ENOSPC, "No space left on device")

                if step == "line":
                    patch.setattr(files.os, "fsync", _fail_for(str(tmp_path / "turns.jsonl"), fail))
                else:
                    name = "turn-0002.png" if step == "picture" else "0002.json"
                    patch.setattr(files.os, "replace", _fail_when(name))
                with pytest.raises(StoreError, match="no space"):
                    run_turn(session, STORY[1])
            assert len(session.turns) == 1
        after = folder_state(tmp_path)
        assert {name: after[name] for name in before} == before
        assert not (tmp_path / "turn-0002.png").exists()
        assert not list(tmp_path.rglob("*.part"))
    assert play(tmp_path, STORY[1:2])[0].turn == 2


def _fail_when(name):
    import errno

    real = os.replace

    def replace(source, target):
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(source, target)

    return replace


def _fail_for(path, fail):
    real = os.fsync

    def fsync(descriptor):
        if os.path.realpath(f"/proc/self/fd/{descriptor}") == os.path.realpath(path):
            fail()
        return real(descriptor)

    return fsync


@pytest.mark.parametrize("tail", ['{"turn": 2, "act', '{"turn": 2, "act\n', "\x00\x00\x00"])
def test_a_torn_last_line_is_cut_off_and_announced(tmp_path, tail):
    play(tmp_path, STORY[:1])
    path = tmp_path / "turns.jsonl"
    good = path.read_bytes()
    path.write_bytes(good + tail.encode())
    assert len(read_turns(tmp_path)) == 1
    with open_session(tmp_path) as session:
        assert [note.code for note in session.notices] == ["torn_line"]
        assert len(session.turns) == 1
    assert path.read_bytes() == good


def test_a_whole_last_line_without_its_end_is_kept(tmp_path):
    play(tmp_path, STORY[:2])
    path = tmp_path / "turns.jsonl"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    with open_session(tmp_path) as session:
        assert len(session.turns) == 2
        assert session.notices == ()
    assert path.read_bytes() == good


@pytest.mark.parametrize("harm", ["middle", "order", "settings", "state"])
def test_damage_is_named_and_nothing_is_overwritten(tmp_path, harm):
    play(tmp_path, STORY[:3])
    path = {"settings": "session.json", "state": "state/0003.json"}.get(harm, "turns.jsonl")
    path = tmp_path / path
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if harm == "middle":
        lines[1] = lines[1][: len(lines[1]) // 2] + "\n"
    elif harm == "order":
        lines[1], lines[2] = lines[2], lines[1]
    else:
        lines = ["{broken"]
    path.write_text("".join(lines), encoding="utf-8")
    before = folder_state(tmp_path)
    with pytest.raises(StoreError, match=r"line 2|session\.json|0003\.json"):
        open_session(tmp_path)
    assert folder_state(tmp_path) == before


KILLED = """
import sys
from huaben.session import Session, run_turn
from huaben.stations import WEIGHTS, Stations
from huaben.stages.embedded.oracle import RendererPainter
from huaben.theater.performance import PerformanceConfig
painter = RendererPainter()
stations = Stations(make_painter=lambda: painter, make_reader=lambda: None)
session = Session.open(sys.argv[1], seed=1, config=PerformanceConfig(size=(64, 64), steps=1), stations=stations)
names = ["beach", "snow", "forest", "city", "desert"]
while True:
    turn = run_turn(session, f"a red cat and a blue dog in the {names[len(session.turns) % 5]}")
    print(turn.turn, flush=True)
"""


@pytest.mark.slow
def test_killing_at_any_moment_loses_no_finished_turn(tmp_path):
    rng = np.random.default_rng(0)
    finished = 0
    for _ in range(4):
        command = [sys.executable, "-c", KILLED, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()) as process:
            for _ in range(3):
                finished = int(process.stdout.readline())
            time.sleep(float(rng.uniform(0, 0.3)))
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split()
        finished = max([finished, *map(int, rest)])
        with Session.open(tmp_path, create=False, stations=oracle()) as session:
            assert len(session.turns) >= finished
            assert len(session.turns) <= finished + 1
            for turn in session.turns:
                assert read_picture(tmp_path / turn.image).shape == (64, 64, 3)
            finished = len(session.turns)


# ------------------------------------------------------------------------------------------------- the user's pictures


def uploaded(tmp_path, painter):
    """Draw a picture in another session and give its file."""
    with Session.open(tmp_path / "other", seed=9, config=CONFIG, stations=oracle(painter)) as session:
        turn = run_turn(session, "a green frog wearing a crown in the forest")
    return str(tmp_path / "other" / turn.image)


def test_what_is_in_this_picture_is_answered_and_later_edits_apply(tmp_path):
    painter = RendererPainter()
    path = uploaded(tmp_path, painter)
    with Session.open(tmp_path / "mine", seed=1, config=CONFIG, stations=oracle(painter)) as session:
        turn = run_turn(session, Message(text="what is in this picture?", image=path))
        assert turn.action == "chat"
        assert turn.image is None
        assert "frog" in turn.reply
        assert [c["name"] for c in turn.page["characters"]] == ["frog"]
        assert (tmp_path / "mine" / "upload-0001.png").is_file()
        assert session.cast.choose("1").species == "frog"
        edited = run_turn(session, "move it to the beach")
        assert edited.action == "draw"
        frogs = [painter.drawn(read_picture(p)) for p in (path, tmp_path / "mine" / edited.image)]
        assert frogs[0].scene.characters[0].identity == frogs[1].scene.characters[0].identity
    with Session.open(tmp_path / "mine", config=CONFIG, stations=oracle(painter)) as session:
        assert session.page.background == "beach"


def test_a_picture_with_an_edit_is_drawn_at_once(tmp_path):
    painter = RendererPainter()
    path = uploaded(tmp_path, painter)
    with Session.open(tmp_path / "mine", seed=1, config=CONFIG, stations=oracle(painter)) as session:
        turn = run_turn(session, Message(text="把背景换成雪地", image=path))
    assert turn.action == "draw"
    assert turn.page["background"] == "snow"
    assert [c["id"] for c in turn.page["characters"]] == ["1"]


def test_a_picture_without_words_is_described(tmp_path):
    painter = RendererPainter()
    path = uploaded(tmp_path, painter)
    with Session.open(tmp_path / "mine", seed=1, config=CONFIG, stations=oracle(painter)) as session:
        turn = run_turn(session, Message(text="", image=path))
    assert turn.action == "chat"
    assert "frog" in turn.reply


def test_an_unknown_picture_is_answered_honestly(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)).save(tmp_path / "x.jpg")
    with open_session(tmp_path / "s") as session:
        for text, words in (("what is this?", "recognised nothing"), ("这是什么？", "没有认出")):
            turn = run_turn(session, Message(text=text, image=str(tmp_path / "x.jpg")))
            assert turn.action == "chat"
            assert words in turn.reply
            assert turn.warnings
            assert turn.page["characters"] == []


@pytest.mark.parametrize("kind", ["absent", "text", "gif", "cut", "folder"])
def test_pictures_that_cannot_be_read_change_nothing(tmp_path, kind):
    path = tmp_path / "x.png"
    if kind == "text":
        path.write_text("hello")
    elif kind == "gif":
        Image.new("RGB", (8, 8)).save(path, "GIF")
    elif kind == "cut":
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "folder":
        path.mkdir()
    with open_session(tmp_path / "s") as session:
        with pytest.raises(DataError):
            run_turn(session, Message(text="what is this?", image=str(path)))
        assert session.turns == ()


@pytest.mark.skipif(not (WEIGHTS / "painter").is_dir(), reason="the painter's weights are not here")
def test_the_shipped_painter_plays_a_turn(tmp_path):
    config = PerformanceConfig(steps=4, attempts=1)
    with Session.open(tmp_path, seed=1, config=config) as session:
        turn = run_turn(session, STORY[0])
        run_turn(session, STORY[1])
    assert read_picture(tmp_path / turn.image).shape == (256, 256, 3)
    assert len(read_metadata(tmp_path / turn.image)["model"]) == 10


def test_a_deleted_picture_is_only_a_note_and_the_story_goes_on(tmp_path):
    play(tmp_path, STORY[:2])
    (tmp_path / "turn-0001.png").unlink()
    with open_session(tmp_path) as session:
        assert [note.code for note in session.notices] == ["picture_missing"]
        assert run_turn(session, STORY[2]).image == "turn-0003.png"
    assert write_storyboard(tmp_path).html.read_text(encoding="utf-8").count("<img") == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 99}, "format version"),
        ({"turn": 1}, "state of turn 1, expected turn 2"),
        ({"pictures": [[7, "turn-0001.png"]]}, "names page 7"),
    ],
)
def test_a_state_that_does_not_belong_there_is_refused(tmp_path, change, words):
    play(tmp_path, STORY[:2])
    path = tmp_path / "state" / "0002.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(StoreError, match=words) as caught:
        open_session(tmp_path)
    assert caught.value.hint


def test_a_lost_list_of_turns_is_not_taken_for_a_new_story(tmp_path):
    play(tmp_path, STORY[:2])
    (tmp_path / "turns.jsonl").unlink()
    before = folder_state(tmp_path)
    with pytest.raises(StoreError, match="state of turn 2"):
        open_session(tmp_path)
    assert folder_state(tmp_path) == before


def test_a_folder_where_the_picture_should_go_leaves_no_turn(tmp_path):
    play(tmp_path, STORY[:1])
    (tmp_path / "turn-0002.png").mkdir()
    with open_session(tmp_path) as session:
        with pytest.raises(StoreError):
            run_turn(session, STORY[1])
        assert len(session.turns) == 1


def test_an_interrupt_after_the_line_is_written_leaves_a_finished_turn(tmp_path, monkeypatch):
    from huaben import session as module

    def interrupted(path, line):
        files.append_line(path, line)
        raise KeyboardInterrupt

    with open_session(tmp_path) as session:
        monkeypatch.setattr(module, "append_line", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_turn(session, STORY[0])
        monkeypatch.undo()
        assert (tmp_path / "turn-0001.png").is_file()
        assert run_turn(session, "make the dog face left").turn == 2
    assert [turn["turn"] for turn in read_turns(tmp_path)] == [1, 2]


def test_a_deleted_lock_lets_nobody_in_and_parts_are_swept(tmp_path):
    with open_session(tmp_path):
        (tmp_path / ".lock").unlink()
        with pytest.raises(StoreError, match="in use"):
            open_session(tmp_path)
    (tmp_path / ".turn-0001.png.x.part").write_bytes(b"half")
    open_session(tmp_path).close()
    assert not list(tmp_path.glob(".*.part"))
