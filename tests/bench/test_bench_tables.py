"""The READMEs' tables are those of the committed results, in both languages."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from huaben.bench import BENCHES, tables
from huaben.bench.tables import TABLES, WORDS, fill, main, read_results, stale_readmes
from huaben.cli.main import VERBS
from huaben.errors import DataError

ROOT = Path(__file__).resolve().parents[2]


def mean(value: float, n: int = 40) -> dict[str, Any]:
    return {"mean": value, "n": n, "low": value - 0.05, "high": value + 0.05}


def timing(value: float) -> dict[str, Any]:
    return {"median": value, "mean": value, "low": value - 0.1, "high": value + 0.1, "n": 5}


PAINTED = {name: mean(0.75) for name in ("recognised", "placed", "right", "whole_picture")}
SPOKEN = {"pages": 0.95, "turns": 0.9, "conversations": 0.85, "scripts": 20}
READ = {name: {"mean": 0.9, "n": 2000, "interval": [0.88, 0.92]} for name in ("recognised", "accessory", "box_iou")}
DRAWN = {part: timing(0.5) for part in ("total", "text", "sampling", "decode")}
EMOJI = {"seen": {"r1": 70.0}, "held": {"r1": 10.0}}
RESULTS: dict[str, dict[str, Any]] = {
    "detector": {
        "reading": {"clean": READ, "blur 1": READ, "noise 0.05": READ},
        "recognition": {"clean": {"top1": {"mean": 0.8, "n": 500, "interval": [0.76, 0.84]}}},
        "chance": {"recognised": 1 / 312, "accessory": 1 / 7, "top1": 0.05},
    },
    "painter": {
        "fresh": {key: PAINTED for key in ("1", "2", "3", "en", "zh", "all", "renderer")},
        "composition": {"all": PAINTED},
        "text_only": {"all": {name: value for name, value in PAINTED.items() if name != "placed"}},
    },
    "story": {
        "reference": {"right": mean(0.7), "recognised": mean(0.9), "similarity": mean(0.8)},
        "baseline": {"right": mean(0.1), "recognised": mean(0.9), "similarity": mean(0.3)},
        "gain": mean(0.6),
        "chance": 0.05,
    },
    "conversations": {"batch_1": SPOKEN, "batch_2": SPOKEN},
    "draw_speed": {
        "warm": {"2": DRAWN, "1": DRAWN},
        "cold": {
            "command": 'huaben draw "x" --json',
            "seconds": timing(3.0),
            "peak_memory_mb": timing(480.0),
            "import_torch_s": timing(1.4),
        },
        "size": 128,
        "steps": 20,
    },
    "dit_speed": {
        "cases": [
            {
                "grid": [8, 8],
                "tokens": 64,
                "huaben_s": [1.0, 1.1, 1.2],
                "diffusers_s": [2.0, 2.2, 2.4],
                "ratios": [2.0, 2.0, 2.0],
                "max_difference": 1e-6,
            }
        ],
        "parameters": 45_000_000,
        "steps": 25,
        "dtype": "float32",
        "threads": 2,
    },
    "world_speed": {"scenes": {"render": {"per_cpu_second": {"mean": 900.0, "low": 850.0, "high": 950.0, "n": 5}}}},
    "extrapolation": {
        "lengths": [128, 256],
        "schemes": {"kerple": {"seeds": [0], "lengths": {str(n): {"perplexity": mean(5.0)} for n in (128, 256)}}},
    },
    "recall": {"schemes": {"nope": {"accuracy": mean(0.25)}}},
    "transfer": {
        "methods": {
            "full": {
                "percent": mean(0.4),
                "curve": {"10": 4.0, "20": 2.0, "30": 1.0},
                "median": 0.2,
                "worst_task": {"task": "jigsaw", "mean": 1.0},
                "cpu_seconds": 10.0,
                "seeds": 10,
            }
        },
        "noise_limit": {"mean_percent": 0.1},
        "published": {"average_percent": [0.16, 0.29]},
        "rows": 4096,
        "budget": 50,
    },
    "hard_pairs_emoji": {
        "arms": {
            "base": {"n": 6, "scores": EMOJI, "difference": {"seen.r1": mean(-0.5)}},
            "plain": {"n": 6, "scores": EMOJI, "difference": {"seen.r1": mean(0.0)}},
            "helip": {
                "n": 6,
                "scores": EMOJI,
                "difference": {"seen.r1": mean(0.8), "held.r1": mean(0.1)},
                "terms": {"margin_active": 0.01},
            },
            "random": {"n": 0},
        },
        "data": {"seen": 1263},
    },
    "hard_pairs_world": {
        "arms": {name: {"scores": {"family": mean(50.0), "global": mean(80.0)}} for name in ("continued", "hpm")},
        "differences": {"hpm - continued": {"family": mean(3.0), "global": mean(-1.0)}},
        "chance": 12.5,
        "seeds": [0, 1],
    },
    "mining": {
        "cases": [
            {
                "pairs": 1_000_000,
                "methods": {"ann": {"pairs_per_s": 2500.0, "speedup": 25.0, "recall": 0.96, "grown_mb": 900.0}},
            }
        ],
        "settings": {"dims": 256, "k": 50, "threads": 2, "queries": 512},
    },
}
HARDWARE = {"cpu": "Test CPU", "cpus": 2, "gpu": None}


def record(results: dict[str, Any]) -> dict[str, Any]:
    return {"results": results, "hardware": HARDWARE, "versions": {"python": "3.11.7", "torch": "2.13.0"}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a repository with results of everything and two READMEs without tables."""
    for name, results in RESULTS.items():
        (tmp_path / "experiments" / name).mkdir(parents=True)
        (tmp_path / "experiments" / name / "results.json").write_text(json.dumps(record(results)), encoding="utf-8")
    places = "\n".join(f"<!-- results:{name} -->\n<!-- /results -->\n" for name in (*TABLES, "hardware"))
    for name in tables.READMES:
        (tmp_path / name).write_text(f"before\n\n{places}\nafter\n", encoding="utf-8")
    return tmp_path


def readmes(root: Path) -> dict[str, str]:
    return {name: (root / name).read_text(encoding="utf-8") for name in tables.READMES}


def test_the_readmes_hold_the_committed_results() -> None:
    stale = stale_readmes(ROOT)
    assert not stale, f"run python -m huaben.bench.tables: {', '.join(path.name for path in stale)}"


def test_tables_are_written_once_and_then_stay(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", "--root", str(root)]) == 1
    assert "README.md is out of date" in capsys.readouterr().err
    assert "75.0 %" not in readmes(root)["README.md"]
    assert main(["--root", str(root)]) == 0
    first = readmes(root)
    assert main(["--check", "--root", str(root)]) == 0
    assert main(["--root", str(root)]) == 0
    assert readmes(root) == first
    assert all(text.startswith("before\n") and text.endswith("\nafter\n") for text in first.values())


def test_a_changed_number_is_drift(root: Path) -> None:
    assert main(["--root", str(root)]) == 0
    path = root / "experiments" / "story" / "results.json"
    changed = json.loads(path.read_text(encoding="utf-8"))
    changed["results"]["reference"]["right"]["mean"] = 0.71
    path.write_text(json.dumps(changed), encoding="utf-8")
    assert main(["--check", "--root", str(root)]) == 1
    assert len(stale_readmes(root)) == 2


def test_both_languages_show_the_same_numbers(root: Path) -> None:
    main(["--root", str(root)])
    english, chinese = readmes(root).values()
    numbers = [
        re.findall(r"\d+\.\d+", line)
        for text in (english, chinese)
        for line in text.splitlines()
        if line.startswith("|") and "noise" not in line and "噪声" not in line
    ]
    assert numbers[: len(numbers) // 2] == numbers[len(numbers) // 2 :]
    assert "with the character's first picture" in english
    assert "带角色的第一张图" in chinese
    assert "| phrase and box only: 1 character | 75.0 % [70.0, 80.0] | 75.0 % [70.0, 80.0] |" in english
    assert "Measured on Test CPU, 2 CPU cores" in english
    assert english.count("Test CPU") == 1


def test_every_table_is_a_table(root: Path) -> None:
    main(["--root", str(root)])
    for text in readmes(root).values():
        for match in tables.BLOCK.finditer(text):
            rows = [line for line in match["body"].splitlines() if line.startswith("|")]
            widths = {line.count(" | ") for line in rows}
            if match["name"] != "hardware":
                assert len(rows) >= 3, match["name"]
                assert len(widths) == 1, match["name"]


def test_an_experiment_that_was_not_run_leaves_nothing(root: Path) -> None:
    main(["--root", str(root)])
    (root / "experiments" / "painter" / "results.json").unlink()
    main(["--root", str(root)])
    for text in readmes(root).values():
        assert "<!-- results:painter -->\n<!-- /results -->" in text
        assert "painter" not in text.split("results:hardware")[1]


def test_rows_and_columns_without_a_number_are_left_out() -> None:
    say = tables.Say("en")
    lines = tables.table_lines("painter", record({"text_only": RESULTS["painter"]["text_only"]}), say)
    assert len([line for line in lines if line.startswith("|")]) == 3
    assert not any("place |" in line for line in lines)
    assert tables.table_lines("painter", record({}), say) == []


def test_interval_of_either_kind_is_shown() -> None:
    assert tables.share({"mean": 0.5, "n": 4, "interval": [0.25, 0.75]}) == "50.0 % [25.0, 75.0]"
    assert tables.share(mean(0.5)) == "50.0 % [45.0, 55.0]"
    assert tables.share(0.05) == "5.0 %"
    assert tables.share({"mean": None, "n": 0, "low": None, "high": None}) is None
    assert tables.between(timing(1.0)) == "1.00 (0.90 – 1.10)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<!-- results:story -->\n", "do not pair"),
        ("<!-- results:nothing -->\n<!-- /results -->\n", "a place for 'nothing'"),
        ("no place at all\n", "no place for the results of story"),
    ],
)
def test_wrong_marks_are_errors(text: str, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        fill(text, {"story": record(RESULTS["story"])}, "en")


def test_damaged_results_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "experiments" / "story" / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="not valid JSON"):
        read_results(tmp_path / "experiments")
    path.write_text("[]", encoding="utf-8")
    assert main(["--root", str(tmp_path)]) == 1
    assert "has no results" in capsys.readouterr().err


def test_every_word_is_in_both_languages() -> None:
    for key, texts in WORDS.items():
        assert len(texts) == 2, key
        assert all(texts), key
        assert set(re.findall(r"{\w+}", texts[0])) == set(re.findall(r"{\w+}", texts[1])), key


def test_every_measurement_runs_with_a_seed_and_has_a_line() -> None:
    text = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    for name in BENCHES:
        assert importlib.util.find_spec(f"huaben.bench.{name}") is not None, name
        assert "seed" in inspect.signature(importlib.import_module(f"huaben.bench.{name}").run).parameters, name
        assert f"| `{name}` |" in text, name


def test_readmes_tell_the_demo_as_it_is() -> None:
    lines = (ROOT / "huaben" / "cli" / "demo.jsonl").read_text(encoding="utf-8").splitlines()
    told = "| " + " | ".join(json.loads(line)["text"] for line in lines) + " |"
    for text in readmes(ROOT).values():
        assert told in text
        assert [f"docs/images/demo-{turn}.png" in text for turn in range(1, len(lines) + 1)] == [True] * len(lines)


def test_readmes_show_commands_that_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for text in readmes(ROOT).values():
        blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
        assert set(re.findall(r"^make (\w+)", blocks, re.MULTILINE)) == {"demo", "test"} <= targets
        assert set(re.findall(r"^huaben (\w+)", blocks, re.MULTILINE)) == {"draw", "chat"} <= set(VERBS)


def test_the_readmes_detector_example_reads_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (ROOT / "huaben" / "weights" / "detector" / "model.safetensors").is_file():
        pytest.skip("there is no embedded detector")
    monkeypatch.chdir(tmp_path)
    for text in readmes(ROOT).values():
        names: dict[str, object] = {}
        for code in re.findall(r"^```py(?:thon)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            exec(code, names)  # noqa: S102 - our own documents
        assert "SceneGraph" in capsys.readouterr().out


def test_an_arm_stands_beside_its_control() -> None:
    say = tables.Say("en")
    lines = tables.table_lines("hard_pairs_emoji", record(RESULTS["hard_pairs_emoji"]), say)
    helip = next(line for line in lines if "HELIP" in line and line.startswith("|"))
    assert "+0.80 [" in helip
    assert helip.rstrip(" |").endswith("1.0 %")
    assert not any("random" in line for line in lines if line.startswith("|"))  # it was not run
    plain = next(line for line in lines if line.startswith("| plain"))
    assert "+0.00" not in plain
