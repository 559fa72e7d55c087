"""``huaben train``: flags reach the loop, results reach stdout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from huaben.cli.main import main
from huaben.recipes import RECIPES, recipe_names
from huaben.training import FitConfig


class Dot:
    """Learns one number."""

    name = "dot"

    def __init__(self, *, seed: int = 0) -> None:
        self.fit = FitConfig(seed=seed, log_every=2)

    def build(self) -> nn.Module:
        return nn.Linear(1, 1)

    def batch(self, step: int) -> Any:
        return torch.full((2, 1), float(step))

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {"loss": (model(batch) - 1).square().mean()}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"error": 0.25}

    def save(self, model: nn.Module, folder: Path) -> None:
        save_file(model.state_dict(), folder / "model.safetensors")


@pytest.fixture(autouse=True)
def _dot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huaben.cli.train.load_recipe", lambda name, seed: Dot(seed=seed))


def test_train_prints_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = ["train", "dot", "--steps", "6", "--out", str(out), "--seed", "5", "--threads", "1", "--device", "cpu"]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 6
    assert result["scores"] == {"error": 0.25}
    card = json.loads((Path(result["folder"]) / "card.json").read_text())
    assert card["seed"] == 5
    assert card["fit"]["threads"] == 1
    assert main(arguments) == 2
    assert "already holds" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    assert "error: 0.25" in capsys.readouterr().out


def test_without_a_name_it_lists_what_can_be_trained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in recipe_names())
    assert main(["train", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipes"] == RECIPES
