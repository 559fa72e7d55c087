"""The picture verbs as they are typed: draw, chat, world, bench."""

import json

import numpy as np
import pytest
from PIL import Image

from huaben import stations
from huaben.cli.chat import read_script
from huaben.cli.main import main
from huaben.cli.sizes import parse_size
from huaben.cli.texts import TEXTS
from huaben.cli.thumbnail import protocol, thumbnail
from huaben.errors import UsageError
from huaben.notices import placeholders
from huaben.pictures import read_metadata
from huaben.stages.embedded.oracle import RendererPainter, RendererReader

PICTURE = np.random.default_rng(0).integers(0, 256, (13, 10, 3), dtype=np.uint8)


@pytest.fixture
def renderer(monkeypatch):
    """Draw exactly instead of painting, so that no weights are needed."""
    painter = RendererPainter()
    monkeypatch.setattr(stations, "load_painter", lambda folder=None: painter)
    monkeypatch.setattr(stations, "load_reader", lambda: RendererReader(painter))
    return painter


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_both_languages_have_the_same_words_and_placeholders():
    assert TEXTS["en"].keys() == TEXTS["zh"].keys()
    for key in TEXTS["en"]:
        assert placeholders(TEXTS["en"][key]) == placeholders(TEXTS["zh"][key]), key


# ------------------------------------------------------------------------------------------------------------- draw


def test_draw_prints_one_json_object(renderer, capsys, tmp_path):
    path = tmp_path / "cat.png"
    code, out, _ = run(
        capsys, "draw", "a red cat on the beach", "--seed", 7, "--size", "64x96", "--steps", 2, "--out", path, "--json"
    )
    assert code == 0
    values = json.loads(out)
    assert values["path"] == str(path)
    assert values["seed"] == 7
    assert values["seconds"] > 0
    assert values["page"]["characters"][0]["name"] == "cat"
    with Image.open(path) as picture:
        assert picture.size == (96, 64)
    assert read_metadata(path)["seed"] == 7


def test_draw_twice_with_one_seed_gives_the_same_file(renderer, capsys, tmp_path):
    for name in ("a.png", "b.png"):
        run(capsys, "draw", "雪地里的一只蓝色的狗", "--seed", 3, "--size", "64", "--steps", 1, "--out", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["draw a spaceship"], "spaceship"),
        (["画一艘宇宙飞船"], ""),
        ([""], "no words"),
        (["a red cat", "--size", "100x128"], "96x128"),
        (["a red cat", "--size", "big"], "HEIGHTxWIDTH"),
        (["a red cat", "--seed", "-1"], "seed=-1"),
        (["a red cat", "--steps", "0"], "steps=0"),
        (["a red cat", "--attempts", "0"], "attempts=0"),
    ],
)
def test_draw_refuses_what_it_cannot_do(renderer, capsys, tmp_path, arguments, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "draw", *arguments, "--json")
    assert code == 2
    assert out == ""
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_draw_says_which_model_is_missing(capsys, tmp_path):
    code, _, err = run(capsys, "draw", "a red cat", "--model", tmp_path / "none", "--out", tmp_path / "x.png")
    assert code == 1
    assert "not a complete pipeline" in err
    assert "hint" in err


# ------------------------------------------------------------------------------------------------------------- chat


def script(tmp_path, *lines):
    path = tmp_path / "script.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_chat_plays_a_script(renderer, capsys, tmp_path):
    path = script(tmp_path, {"text": "a red cat on the beach"}, "", {"text": "把背景换成雪地"}, {"text": "hello"})
    folder = tmp_path / "story"
    code, out, _ = run(capsys, "chat", "--script", path, "--out", folder, "--size", 64, "--steps", 1, "--json")
    assert code == 0
    values = json.loads(out)
    assert [turn["action"] for turn in values["turns"]] == ["draw", "draw", "chat"]
    lines = [json.loads(line) for line in (folder / "turns.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == values["turns"]
    assert (folder / "storyboard.html").is_file()
    assert (folder / "storyboard.png").is_file()


def test_chat_goes_on_in_an_existing_folder(renderer, capsys, tmp_path):
    folder = tmp_path / "story"
    for text in ("a red cat on the beach", "make it blue"):
        path = script(tmp_path, {"text": text})
        code, out, _ = run(capsys, "chat", "--script", path, "--out", folder, "--size", 64, "--steps", 1, "--json")
        assert code == 0
    values = json.loads(out)
    assert [turn["turn"] for turn in values["turns"]] == [2]
    assert "blue" in values["turns"][0]["prompt"]


def test_chat_shows_the_story_in_words(renderer, capsys, tmp_path):
    path = script(tmp_path, {"text": "a red cat on the beach"})
    code, out, _ = run(capsys, "chat", "--script", path, "--out", tmp_path / "s", "--size", 64, "--steps", 1)
    assert code == 0
    assert out.startswith("huaben: ")
    assert "turn-0001.png" in out


def test_chat_demo_draws_every_page(renderer, capsys, tmp_path):
    code, out, _ = run(capsys, "chat", "--demo", "--out", tmp_path / "s", "--size", 64, "--steps", 1, "--json")
    assert code == 0
    turns = json.loads(out)["turns"]
    assert [turn["action"] for turn in turns] == ["draw"] * 4
    assert all(turn["warnings"] == [] for turn in turns)
    assert {c["id"] for c in turns[0]["page"]["characters"]} <= {c["id"] for c in turns[3]["page"]["characters"]}


def test_chat_reads_what_is_typed(renderer, capsys, tmp_path, monkeypatch):
    import io

    typed = ["/help", "a red cat", "", "draw a spaceship", "/image nowhere.png", "hi", "/quit"]
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in typed)))
    code, out, err = run(capsys, "chat", "--out", tmp_path / "s", "--size", 64, "--steps", 1)
    assert code == 0
    assert out.count("huaben: ") == 2
    assert "/image" in err
    assert "nowhere.png" in err


@pytest.mark.parametrize("word", ["exit", "quit", "Q", "bye", "/exit", "/quit", "退出"])
def test_chat_is_left_by_any_usual_word(renderer, capsys, tmp_path, monkeypatch, word):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(f"/seed\n{word}\na red cat\n"))
    code, out, err = run(capsys, "chat", "--out", tmp_path / "s", "--size", 64, "--steps", 1, "--seed", 5)
    assert (code, out) == (0, "")
    assert "/quit" in err
    assert "seed of the story: 5" in err
    assert not (tmp_path / "s" / "turns.jsonl").exists()


def test_undo_takes_the_last_change_back(renderer, capsys, tmp_path, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("a red cat on the beach\nmake it blue\n/undo\n"))
    code, out, _ = run(capsys, "chat", "--out", tmp_path / "s", "--size", 64, "--steps", 1, "--json")
    assert code == 0
    turns = json.loads(out)["turns"]
    assert len(turns) == 3
    colours = [turn["page"]["characters"][0]["prompt"] for turn in turns]
    assert colours[0] == colours[2] != colours[1]


def test_an_interrupted_drawing_does_not_end_the_chat(renderer, capsys, tmp_path, monkeypatch):
    import io

    real = renderer.paint

    def paint(request, **kwargs):
        if "blue" in request.prompt:
            raise KeyboardInterrupt
        return real(request, **kwargs)

    monkeypatch.setattr(renderer, "paint", paint)
    monkeypatch.setattr("sys.stdin", io.StringIO("a red cat on the beach\nmake it blue\nmake it green\n"))
    code, out, err = run(capsys, "chat", "--out", tmp_path / "s", "--size", 64, "--steps", 1, "--json")
    assert code == 0
    assert "the story goes on" in err
    assert [turn["turn"] for turn in json.loads(out)["turns"]] == [1, 2]


def test_an_interrupted_script_goes_on_at_its_first_unplayed_line(renderer, capsys, tmp_path, monkeypatch):
    lines = [{"text": "a red cat on the beach"}, {"text": "make it blue"}, {"text": "hello"}]
    real = renderer.paint

    def paint(request, **kwargs):
        if "blue" in request.prompt:
            raise KeyboardInterrupt
        return real(request, **kwargs)

    command = ("chat", "--script", script(tmp_path, *lines), "--out", tmp_path / "s", "--size", 64, "--steps", 1)
    with monkeypatch.context() as patch:
        patch.setattr(renderer, "paint", paint)
        code, out, _ = run(capsys, *command, "--json")
    assert code == 130
    values = json.loads(out)
    assert [turn["turn"] for turn in values["turns"]] == [1]
    assert (tmp_path / "s" / "storyboard.html").is_file()
    for _ in range(2):  # once more changes nothing
        code, out, _ = run(capsys, *command, "--json")
        assert code == 0
        assert [turn["action"] for turn in json.loads(out)["turns"]] == ["draw", "draw", "chat"]


def test_draw_says_that_it_made_a_folder(renderer, capsys, tmp_path):
    path = tmp_path / "new" / "x.png"
    code, _, err = run(capsys, "draw", "a red cat", "--size", 64, "--steps", 1, "--out", path)
    assert code == 0
    assert str(path.parent) in err
    assert "made the folder" not in run(capsys, "draw", "a red cat", "--size", 64, "--steps", 1, "--out", path)[2]


@pytest.mark.parametrize("option", ["--steps", "--attempts"])
def test_chat_checks_its_options_before_it_begins(capsys, tmp_path, option):
    code, _, err = run(capsys, "chat", "--demo", "--out", tmp_path / "s", option, 0)
    assert code == 2
    assert option in err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{broken", "not JSON"),
        ('["a cat"]', "list"),
        ('{"text": 5}', "'text'"),
        ('{"text": "a", "picture": "b"}', "'picture'"),
        ('{"text": "  "}', "neither"),
        ('{"text": "a", "image": 3}', "'image'"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_drawn(capsys, tmp_path, line, words):
    path = script(tmp_path, {"text": "a red cat"}, "", line)
    code, out, err = run(capsys, "chat", "--script", path, "--out", tmp_path / "s")
    assert code == 2
    assert "line 3" in err
    assert words in err
    assert out == ""
    assert not (tmp_path / "s").exists()


def test_pictures_of_a_script_may_lie_beside_it(tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "cat.png")
    (message,) = read_script(script(tmp_path, {"image": "cat.png"}))
    assert message.image == str(tmp_path / "cat.png")
    assert message.text == ""


def test_an_absent_script_and_both_sources_are_refused(capsys, tmp_path):
    assert run(capsys, "chat", "--script", tmp_path / "no.jsonl")[0] == 1
    assert run(capsys, "chat", "--script", tmp_path / "no.jsonl", "--demo")[0] == 2


def test_interrupting_a_picture_exits_130_and_keeps_earlier_turns(renderer, capsys, tmp_path, monkeypatch):
    folder = tmp_path / "s"
    real = renderer.paint

    def paint(request, **kwargs):
        if "blue" in request.prompt:
            raise KeyboardInterrupt
        return real(request, **kwargs)

    monkeypatch.setattr(renderer, "paint", paint)
    path = script(tmp_path, {"text": "a red cat on the beach"}, {"text": "make it blue"})
    code, _, _ = run(capsys, "chat", "--script", path, "--out", folder, "--size", 64, "--steps", 1)
    assert code == 130
    assert len((folder / "turns.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    assert not (folder / "turn-0002.png").exists()


# ------------------------------------------------------------------------------------------------------------ world


def test_world_render_writes_pictures_and_scenes(capsys, tmp_path):
    for name in ("a", "b"):
        code, out, _ = run(
            capsys, "world", "render", "--seed", 5, "--count", 3, "--size", "64x96", "--out", tmp_path / name, "--json"
        )
        assert code == 0
        assert json.loads(out)["count"] == 3
    lines = (tmp_path / "a" / "scenes.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    for line in lines:
        record = json.loads(line)
        with Image.open(tmp_path / "a" / record["image"]) as picture:
            assert picture.size == (96, 64)
        assert len(record["boxes"]) == len(record["scene"]["characters"])
        assert record["captions"].keys() == {"en", "zh"}
        assert (tmp_path / "a" / record["image"]).read_bytes() == (tmp_path / "b" / record["image"]).read_bytes()
    assert (tmp_path / "a" / "scenes.jsonl").read_bytes() == (tmp_path / "b" / "scenes.jsonl").read_bytes()


@pytest.mark.parametrize("arguments", [["--count", "0"], ["--seed", "-1"], ["--size", "x"], ["--size", "8"]])
def test_world_render_refuses_impossible_numbers(capsys, tmp_path, arguments):
    assert run(capsys, "world", "render", "--out", tmp_path / "w", *arguments)[0] == 2
    assert not (tmp_path / "w").exists()


def test_world_read_reads_any_picture(capsys, tmp_path, monkeypatch):
    painter = RendererPainter()
    monkeypatch.setattr(stations, "load_detector", lambda folder=None: RendererReader(painter))
    Image.fromarray(PICTURE).save(tmp_path / "x.png")
    code, out, _ = run(capsys, "world", "read", tmp_path / "x.png", tmp_path / "x.png", "--json")
    assert code == 0
    assert [record["image"] for record in json.loads(out)["images"]] == [str(tmp_path / "x.png")] * 2
    assert run(capsys, "world", "read", tmp_path / "absent.png", "--json")[0] == 1


# ------------------------------------------------------------------------------------------------------------ bench


def test_bench_lists_what_can_be_measured(capsys):
    code, out, _ = run(capsys, "bench", "--json")
    assert code == 0
    assert {"painter", "story"} <= json.loads(out)["benches"].keys()


@pytest.mark.parametrize(
    "arguments", [["stroy"], ["story", "--set", "stories"], ["story", "--set", "nothing=1"], ["story", "--seed", "-1"]]
)
def test_bench_refuses_unknown_names_and_settings(capsys, tmp_path, arguments):
    assert run(capsys, "bench", *arguments, "--out", tmp_path / "b")[0] == 2


# ----------------------------------------------------------------------------------------------------- small parts


@pytest.mark.parametrize(("text", "size"), [("128x192", (128, 192)), ("64", (64, 64)), (" 96 X 128 ", (96, 128))])
def test_sizes_are_height_then_width(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "a", "12x", "x12", "1x2x3", "-5x6", "1.5x2"])
def test_other_sizes_are_refused(text):
    with pytest.raises(UsageError):
        parse_size(text)


class Terminal:
    encoding = "utf-8"

    def __init__(self, is_a_terminal=True):
        self.is_a_terminal = is_a_terminal

    def isatty(self):
        return self.is_a_terminal


@pytest.mark.parametrize(
    ("environment", "how"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "blocks"),
        ({"TERM": "xterm-256color"}, "none"),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, "none"),
        ({"TERM": "xterm-kitty", "NO_COLOR": "1"}, "none"),
        ({"TERM": "screen", "KITTY_WINDOW_ID": "1", "COLORTERM": "truecolor"}, "blocks"),
        ({"HUABEN_THUMBNAIL": "sixel"}, "sixel"),
    ],
)
def test_the_terminal_decides_how_pictures_are_shown(environment, how):
    assert protocol(Terminal(), environment) == how


def test_no_thumbnail_outside_a_terminal():
    assert protocol(Terminal(False), {"TERM": "xterm-kitty"}) == "none"
    assert thumbnail(PICTURE, "none") == ""


def test_thumbnails_have_the_form_their_protocol_asks_for():
    big = np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    kitty = thumbnail(big, "kitty").strip().split("\x1b\\")[:-1]
    assert len(kitty) > 1
    assert kitty[0].startswith("\x1b_Ga=T,f=100,m=1;")
    assert kitty[-1].startswith("\x1b_Gm=0;")
    assert all(len(part.partition(";")[2]) <= 4096 for part in kitty)
    assert thumbnail(PICTURE, "iterm").startswith("\x1b]1337;File=inline=1;size=")
    sixel = thumbnail(PICTURE, "sixel")
    assert sixel.startswith('\x1bPq"1;1;10;13')
    assert sixel.count("-") == 3
    assert sixel.endswith("\x1b\\\n")
    blocks = thumbnail(PICTURE, "blocks").splitlines()
    assert len(blocks) == 6 or len(blocks) == 7
    assert all(line.count("▀") == 10 for line in blocks)
