"""The command line: verbs found late, errors as two lines and a number, both languages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from huaben.cli import main as cli
from huaben.cli import words
from huaben.errors import (
    Cancelled,
    CheckpointError,
    ConfigError,
    DialogueError,
    GenerationError,
    HuabenError,
    ReplyFormatError,
    StoreError,
    UsageError,
)
from huaben.notices import placeholders


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUABEN_LANG", raising=False)
    monkeypatch.setattr(words, "_language", "en")


def add_verb(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    """Make ``huaben NAME`` run a module made here."""
    module = ModuleType(f"huaben.cli.{name}")
    for key, value in members.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.VERBS, name, module.__name__)
    monkeypatch.setitem(words.WORDS["en"], name, f"what {name} does")
    monkeypatch.setattr(cli, "verbs", lambda: list(cli.VERBS))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("u"), 2),
        (ConfigError("c"), 2),
        (DialogueError("d"), 2),
        (ReplyFormatError("r"), 1),
        (CheckpointError("k"), 1),
        (StoreError("s"), 1),
        (GenerationError("g"), 1),
        (Cancelled("x"), 130),
    ],
)
def test_every_error_has_its_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: HuabenError, code: int
) -> None:
    def command() -> None:
        error.hint = "do this"
        raise error

    add_verb(monkeypatch, "fail", command=command)
    assert cli.main(["fail"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: {error.message}\nhint: do this\n"


def test_a_traceback_is_shown_on_request_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise RuntimeError("lost")

    add_verb(monkeypatch, "fail", command=command)
    assert cli.main(["fail"]) == 1
    err = capsys.readouterr().err
    assert "unexpected RuntimeError: lost" in err
    assert "Traceback" not in err
    assert "--debug" in err
    assert cli.main(["fail", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise KeyboardInterrupt

    add_verb(monkeypatch, "fail", command=command)
    assert cli.main(["fail"]) == 130


def test_a_module_may_hold_several_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()

    @app.command()
    def render(count: int = 1) -> None:
        cli.print_json({"count": count, "说": "好"})

    @app.command()
    def read() -> None:
        raise typer.Exit(1)

    add_verb(monkeypatch, "worlds", app=app)
    assert cli.main(["worlds", "render", "--count", "3"]) == 0
    assert capsys.readouterr().out == '{"count": 3, "说": "好"}\n'
    assert cli.main(["worlds", "read"]) == 1
    assert cli.main(["worlds", "write"]) == 2


def test_a_verb_whose_module_is_absent_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.VERBS, "gone", "huaben.cli.gone")
    assert cli.main(["--help"]) == 0
    assert "gone" not in capsys.readouterr().out
    assert cli.main(["version"]) == 0
    assert cli.main(["gone"]) == 2


def test_a_verb_whose_package_is_absent_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "needs_more.py").write_text("import no_such_package_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.VERBS, "more", "needs_more")
    monkeypatch.setitem(words.WORDS["en"], "more", "more")
    assert cli.main(["more"]) == 1
    assert "no_such_package_here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "painte"], "did you mean 'painter'"),
        (["train", "--no-such-option"], "No such option"),
        (["train", "text", "--minutes", "many"], "--minutes"),
        (["--lang", "fr", "version"], "expected en or zh"),
    ],
)
def test_wrong_command_lines_are_explained(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "\nhint: " in err
    assert said in err


def test_it_speaks_chinese(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--lang", "zh", "--help"]) == 0
    assert words.WORDS["zh"]["about"] in capsys.readouterr().out
    assert cli.main(["train", "nope", "--lang=zh"]) == 2
    assert capsys.readouterr().err.startswith("错误: ")
    monkeypatch.setenv("HUABEN_LANG", "zh")
    assert cli.main(["train", "--help"]) == 0
    assert words.WORDS["zh"]["train_resume"] in capsys.readouterr().out


def test_both_catalogues_have_the_same_entries() -> None:
    english, chinese = words.WORDS["en"], words.WORDS["zh"]
    assert english.keys() == chinese.keys()
    for key, text in english.items():
        assert placeholders(text) == placeholders(chinese[key]), key
    assert set(cli.VERBS) <= english.keys()


def test_options_behind_two_dashes_are_left_alone() -> None:
    assert cli.global_options(["draw", "--debug", "--", "--debug", "--lang"]) == (
        ["draw", "--", "--debug", "--lang"],
        True,
        None,
    )


def test_version_is_json_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    from huaben import __version__

    assert cli.main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["huaben"] == __version__
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_the_module_runs_as_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "huaben", "nope"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "no command 'nope'" in done.stderr
