"""``huaben nas`` as it is typed: ask and tell, search by table and by command, report, space."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from huaben.archsearch.methods import METHODS
from huaben.archsearch.spaces_json import SPACES, load_space
from huaben.cli import main as cli
from huaben.cli.nas import METHOD_NAMES, SPACE_NAMES
from huaben.cli.nas_texts import NAS_TEXTS
from huaben.cli.words import WORDS
from huaben.notices import placeholders

DEFINITION = {
    "version": 1,
    "type": "cell-dag",
    "nodes": 3,
    "ops": ["none", "skip", "conv"],
    "edges": [[0, 1], [0, 2], [1, 2]],
    "null_op": "none",
}


@pytest.fixture(autouse=True)
def _verb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.VERBS, "nas", "huaben.cli.nas")
    for language in WORDS:
        monkeypatch.setitem(WORDS[language], "nas", NAS_TEXTS[language]["nas"])


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.json"
    path.write_text(json.dumps(DEFINITION), encoding="utf-8")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["nas", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_names_in_the_help_are_those_there_are() -> None:
    assert METHOD_NAMES.split(", ") == list(METHODS)
    assert SPACE_NAMES.split(", ") == list(SPACES)


def test_both_languages_have_the_same_words_and_placeholders() -> None:
    assert NAS_TEXTS["en"].keys() == NAS_TEXTS["zh"].keys()
    for key in NAS_TEXTS["en"]:
        assert placeholders(NAS_TEXTS["en"][key]) == placeholders(NAS_TEXTS["zh"][key]), key


def test_a_shell_script_can_ask_and_tell(capsys: Any, tmp_path: Path, space: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "run"
    start = ("ask", folder, "--space", space, "--method", "random", "--budget", 4, "--direction", "min", "-n", 2)
    code, out, _ = run(capsys, *start, "--json")
    assert code == 0
    asked = json.loads(out)
    assert (len(asked["trials"]), asked["left"], asked["done"]) == (2, 2, False)
    assert set(asked["trials"][0]["values"]) == {"0->1", "0->2", "1->2"}
    code, out, _ = run(capsys, "tell", folder, 0, "--value", "-0.5", "--json")
    assert code == 0
    assert json.loads(out)["trials"][0]["value"] == -0.5
    lines = '{"id": 1, "state": "failed", "error": "diverged"}\n\n'
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert run(capsys, "tell", folder)[0] == 0
    code, out, _ = run(capsys, "ask", folder, "-n", 9)
    assert [line.split("\t")[0] for line in out.splitlines()] == ["4", "2"]  # 4 is the second attempt
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"id": 4, "value": 1}\n{"id": 2, "value": null}\n'))
    code, out, _ = run(capsys, "tell", folder, "--json")
    assert json.loads(out)["done"]
    code, out, err = run(capsys, "ask", folder)
    assert (code, out) == (0, "")
    assert "nothing is left" in err


def test_wrong_outcomes_are_refused(capsys: Any, tmp_path: Path, space: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "run"
    run(capsys, "ask", folder, "--space", space, "--method", "random")
    run(capsys, "tell", folder, 0, "--value", 1)
    assert run(capsys, "tell", folder, 0, "--value", 1)[0] == 0
    code, _, err = run(capsys, "tell", folder, 0, "--value", 2)
    assert code == 1 and "complete with 1" in err
    for text in ("", "not json", "[]", '{"value": 1}'):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        assert run(capsys, "tell", folder)[0] == 2, text
    code, _, err = run(capsys, "tell", tmp_path / "nowhere", 0, "--value", 1)
    assert code == 1 and "hint" in err


def test_search_runs_a_command_and_goes_on_where_it_stopped(capsys: Any, tmp_path: Path, space: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import json, sys\nvalues = json.loads(sys.argv[2])\nprint('training', sys.argv[1])\n"
        "if sys.argv[3] == '1': sys.exit(3)\nprint(sum(v == 'conv' for v in values.values()))\n"
    )
    arguments = ("search", tmp_path / "run", "--space", space, "--method", "random", "--budget", 4, "--set")
    command = f"{sys.executable} {script} '{{arch}}' {{values}} {{id}}"
    code, out, err = run(capsys, *arguments, "max_retries=0", "--command", command, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert [trial["state"] for trial in result["trials"]] == ["complete", "failed", "complete", "complete"]
    assert "exit code 3" in result["trials"][1]["error"]
    assert result["best"]["value"] == max(t["value"] for t in result["trials"] if t["value"] is not None)
    assert "4/4" in err
    code, out, _ = run(capsys, *arguments, "max_retries=0", "--command", "false")
    assert code == 0 and out.startswith("best: ")


def test_search_replays_a_table(capsys: Any, tmp_path: Path, space: Path) -> None:
    found = load_space(space)
    rows = [f"{found.format(arch)},{sum(arch)},{-sum(arch)}" for arch in found.enumerate()]
    table = tmp_path / "table.csv"
    table.write_text("arch,class_scene,jigsaw\n" + "\n".join(rows) + "\n", encoding="utf-8")
    arguments = ["search", tmp_path / "run", "--space", space, "--task", "class_scene", "--table", table]
    quick = ["predictor.width=8", "predictor.source_steps=5", "predictor.target_steps=5", "members=1", "round_size=3"]
    sets = [part for text in (*quick, "explore=1") for part in ("--set", text)]
    code, out, err = run(capsys, *arguments, "--sources", table, "--budget", 6, *sets, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["used"] == 6
    assert result["source_evaluations"] == 27  # the target's own column is no source
    assert result["best"]["value"] == max(t["value"] for t in result["trials"])


def test_a_replay_proposes_only_what_a_partial_table_has(capsys: Any, tmp_path: Path, space: Path) -> None:
    found = load_space(space)
    some = [arch for arch in found.enumerate() if sum(arch) % 2][:8]
    rows = [f"{found.format(arch)},{sum(arch)},{sum(arch)}" for arch in some]
    table = tmp_path / "table.csv"
    table.write_text("arch,class_scene,jigsaw\n" + "\n".join(rows) + "\n", encoding="utf-8")
    line = ["search", tmp_path / "run", "--space", space, "--task", "class_scene", "--table", table]
    line += ["--method", "random", "--json", "--budget"]
    code, out, err = run(capsys, *line, 20)
    assert code == 0, err
    result = json.loads(out)
    keys = {found.canonical(arch) for arch in some}
    assert {trial["key"] for trial in result["trials"]} == keys
    assert all(trial["state"] == "complete" for trial in result["trials"])
    assert result["rank"] == 1 and result["percentile"] == 12.5
    code, out, _ = run(capsys, *line, 20)  # the folder remembers what it may propose
    assert {trial["key"] for trial in json.loads(out)["trials"]} == keys


def test_other_columns_are_sources_and_rank_is_counted_from_the_best(capsys: Any, tmp_path: Path, space: Path) -> None:
    found = load_space(space)
    some = list(found.enumerate())[::3]
    rows = [f"{found.format(arch)},{-place},{place}" for place, arch in enumerate(some)]
    table = tmp_path / "table.csv"
    table.write_text("arch,class_scene,jigsaw\n" + "\n".join(rows) + "\n", encoding="utf-8")
    line = ["search", tmp_path / "run", "--space", space, "--task", "class_scene", "--table", table]
    code, out, err = run(capsys, *line, "--method", "source_rank", "--budget", 1, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["source_evaluations"] == len(some)
    value = -result["best"]["value"]  # its place from 0
    assert result["rank"] == value + 1


def test_a_table_without_rows_is_an_error_and_makes_no_search(capsys: Any, tmp_path: Path, space: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("arch,class_scene\n", encoding="utf-8")
    line = ["search", tmp_path / "run", "--space", space, "--task", "class_scene", "--table", table]
    code, out, err = run(capsys, *line, "--method", "random", "--json")
    assert (code, out) == (1, "")
    assert "no value of 'class_scene'" in err
    assert not (tmp_path / "run" / "search.json").exists()


def test_a_trial_without_a_value_is_no_failure(capsys: Any, tmp_path: Path, space: Path) -> None:
    run(capsys, "ask", tmp_path / "run", "--space", space, "--method", "random")
    code, _, err = run(capsys, "tell", tmp_path / "run", 0)
    assert code == 2 and "--value" in err
    assert run(capsys, "tell", tmp_path / "run", 0, "--value", 1)[0] == 0


def test_an_evaluation_that_prints_much_keeps_its_last_line(capsys: Any, tmp_path: Path, space: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("import sys\nfor _ in range(300): print('x' * 10_000)\nprint(sys.argv[1])\n")
    line = ["search", tmp_path / "run", "--space", space, "--method", "random", "--budget", 1, "--json", "--command"]
    code, out, _ = run(capsys, *line, f"{sys.executable} {script} 7")
    assert json.loads(out)["best"]["value"] == 7
    line[1] = tmp_path / "other"
    code, out, _ = run(capsys, *line, f"{sys.executable} {script} " + "y" * 9000)
    assert code == 0
    assert len(json.loads(out)["trials"][0]["error"]) < 1000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "RUN"], "--table or --command"),
        (["search", "RUN", "--command", "true", "--table", "x.csv"], "--table or --command"),
        (["search", "RUN", "--command", " "], "empty"),
        (["ask", "RUN", "--direction", "up"], "max or min"),
        (["ask", "RUN", "--method", "fulll"], "full"),
        (["ask", "RUN", "--set", "width"], "NAME=VALUE"),
        (["ask", "RUN", "--set", "widht=3"], "widht"),
        (["ask", "RUN", "--space", "nowhere"], "nowhere"),
        (["ask", "RUN", "-n", "0"], "at least 1"),
        (["space", "transnas-micro", "--sample", "-1"], "--sample"),
    ],
)
def test_wrong_command_lines_say_what_is_expected(
    capsys: Any, tmp_path: Path, space: Path, arguments: list[str], words: str
) -> None:
    line = [str(tmp_path / "run") if word == "RUN" else word for word in arguments]
    if "--space" not in line and "space" not in line:
        line += ["--space", str(space)]
    if "--method" not in line and line[0] != "space":
        line += ["--method", "random"]
    code, out, err = run(capsys, *line)
    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err


def test_report_in_chinese(capsys: Any, tmp_path: Path, space: Path) -> None:
    folder = tmp_path / "run"
    run(capsys, "ask", folder, "--space", space, "--method", "random", "-n", 2)
    run(capsys, "tell", folder, 0, "--value", 1)
    code, out, _ = run(capsys, "report", folder, "--no-pictures", "--form", "md", "--lang", "zh")
    assert code == 0
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    assert "架构搜索" in text
    assert re.search("最好", out)


def test_space_describes_itself(capsys: Any, space: Path) -> None:
    code, out, _ = run(capsys, "space", space, "--json")
    values = json.loads(out)
    assert code == 0
    assert values["size"] == 27
    assert len(values["examples"]) == 3
    code, out, _ = run(capsys, "space", "transnas-micro", "--sample", 2)
    assert code == 0
    assert "4096" in out
