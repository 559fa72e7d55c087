"""``huaben doctor``: broken packages and changed weights are named, with their repair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from huaben.cli import doctor
from huaben.cli.main import main
from huaben.errors import MissingDependencyError
from huaben.optional import is_available, probe, require
from huaben.training import file_hashes


def write_broken(folder: Path, name: str, body: str) -> None:
    (folder / f"{name}.py").write_text(body)


def test_a_package_may_break_in_any_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_broken(tmp_path, "breaks_badly", "raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = probe("breaks_badly")
    assert not found.works
    assert "nms" in found.problem
    assert not is_available("breaks_badly")
    with pytest.raises(MissingDependencyError, match="does not load"):
        require("breaks_badly", extra="hf")
    assert probe("no_such_package_at_all") == type(found)("no_such_package_at_all", None)
    with pytest.raises(MissingDependencyError, match="not installed"):
        require("no_such_package_at_all", extra="hf")
    assert is_available("json")


def test_doctor_names_the_repair_of_a_broken_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_broken(tmp_path, "broken_vision", "raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "OPTIONAL", ("broken_vision",))
    monkeypatch.setitem(doctor.REPAIR, "broken_vision", "remove it")
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {"what": found["problems"][0]["what"], "repair": "remove it"} in found["problems"]
    assert any("nms" in problem["what"] for problem in found["problems"])
    assert main(["doctor"]) == 1
    assert "remove it" in capsys.readouterr().out


def test_doctor_checks_the_weights_against_their_card(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    (folder / "card.json").write_text(json.dumps({"files": file_hashes(folder), "scores": {"error": 0.5}}))
    assert doctor.look_at_weights(tmp_path)["tiny"] == {
        "files": 2,
        "megabytes": 0.0,
        "scores": {"error": 0.5},
        "problems": [],
    }
    (folder / "model.safetensors").write_bytes(b"other")
    (folder / "config.json").unlink()
    assert doctor.look_at_weights(tmp_path)["tiny"]["problems"] == [
        "config.json is absent",
        "model.safetensors is not the file its card describes",
    ]
    (folder / "card.json").write_text("{")
    assert doctor.look_at_weights(tmp_path)["tiny"]["problems"]


def test_doctor_says_where_it_stands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "OPTIONAL", ())
    main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["torch"]["build"].startswith(("CPU", "CUDA"))
    assert found["torch"]["threads"] >= 1
    assert found["disk_free_gb"] > 0
    assert {"python", "memory_gb", "terminal", "weights", "packages", "chinese_font"} <= found.keys()
