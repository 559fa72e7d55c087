"""The time of a picture: how it is divided, and that a watched process is measured by itself."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from huaben.bench import draw_speed
from huaben.diffusion.pipeline import PipelineConfig
from huaben.errors import CheckpointError, ConfigError, GenerationError
from huaben.painting import Painting, PaintRequest, Progress


@dataclass
class Clock:
    """Time that passes only when told."""

    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now


@dataclass
class SlowPainter:
    """Takes 2 s for the words, half a second a step (a whole one with a preview), and 1 s to decode, a thread."""

    clock: Clock
    config: PipelineConfig = field(default_factory=PipelineConfig)
    seen: list[tuple[int, int, int]] = field(default_factory=list)

    def paint(self, request: PaintRequest, *, on_step: Any = None, should_cancel: Any = None) -> Painting:
        threads = torch.get_num_threads()
        self.seen.append((threads, request.seed, self.config.previews))
        self.clock.now += 2 / threads
        for step in range(request.steps):
            self.clock.now += (0.5 if self.config.previews == 0 else 1.0) / threads
            on_step(Progress(step=step + 1, steps=request.steps))
        self.clock.now += 1 / threads
        return Painting(image=np.zeros((*request.size, 3), np.uint8), seed=request.seed, seconds=0.0)


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> SlowPainter:
    clock = Clock()
    monkeypatch.setattr(draw_speed, "time", clock)
    slow = SlowPainter(clock)
    monkeypatch.setattr(draw_speed, "load_painter", lambda folder: slow)
    return slow


def test_a_picture_is_words_sampling_and_decoding(painter: SlowPainter) -> None:
    painter.config = PipelineConfig(previews=0)
    parts = draw_speed.time_picture(painter, PaintRequest(prompt="a cat", steps=8))
    assert parts == pytest.approx({"total": 7.0, "text": 2.0, "sampling": 4.0, "decode": 1.0})


def test_run_measures_in_turns_and_leaves_everything_as_it_was(painter: SlowPainter) -> None:
    before = torch.get_num_threads()
    found = json.loads(json.dumps(draw_speed.run(repeats=2, cold_repeats=0, threads=(2, 1), steps=4, size=64, seed=5)))
    assert torch.get_num_threads() == before
    assert painter.config == PipelineConfig()
    assert painter.seen == [(2, 5, 0), (1, 5, 0), (2, 6, 0), (1, 6, 0), (2, 7, 0), (1, 7, 0)]
    assert set(found["warm"]) == {"2", "1"}
    assert found["warm"]["1"]["total"]["median"] == pytest.approx(5.0)
    assert found["warm"]["2"]["sampling"]["median"] == pytest.approx(1.0)
    assert found["warm"]["1"]["decode"]["n"] == 2
    assert (found["steps"], found["size"]) == (4, 64)
    assert "cold" not in found


def test_a_painter_that_reports_nothing_is_refused(painter: SlowPainter) -> None:
    with pytest.raises(GenerationError, match="reported 1 steps"):
        draw_speed.time_picture(painter, PaintRequest(prompt="a cat", steps=1))


def test_settings_that_measure_nothing_are_refused() -> None:
    for settings in ({"repeats": 0}, {"steps": 1}, {"threads": ()}, {"threads": (0,)}, {"cold_repeats": -1}):
        with pytest.raises(ConfigError, match="cannot be measured"):
            draw_speed.run(**settings)  # type: ignore[arg-type]


def test_absent_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="lacks text"):
        draw_speed.run(model=str(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted by the system")
def test_a_watched_process_does_not_inherit_memory(tmp_path: Path) -> None:
    ballast = np.ones(16 << 20)  # 128 MB here
    small = draw_speed.watch([sys.executable, "-c", "print('hello')"], tmp_path)
    large = draw_speed.watch([sys.executable, "-c", "x = b'1' * (96 << 20)"], tmp_path)
    assert ballast.nbytes > 100e6 > small["memory"] > 1e6
    assert 90e6 < large["memory"] - small["memory"] < 120e6
    assert small["stdout"] == "hello\n"
    assert small["seconds"] > 0
    assert small["cpu"] > 0


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    code = "import sys; print('no paint left', file=sys.stderr); sys.exit(3)"
    with pytest.raises(CheckpointError, match=r"status 3.*no paint left"):
        draw_speed.watch([sys.executable, "-c", code], tmp_path)


def test_cold_starts_are_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def watch(command: list[str], folder: Path) -> dict[str, Any]:
        commands.append(list(command))
        seconds = float(len(commands))
        record = {"seconds": seconds / 2, "attempts": [{}, {}]}
        return {"seconds": seconds, "memory": 5e8, "cpu": 1.5, "status": 0, "stdout": json.dumps(record), "stderr": ""}

    monkeypatch.setattr(draw_speed, "watch", watch)
    found = json.loads(json.dumps(draw_speed.cold_start(3, seed=4)))
    assert [command[1:6] for command in commands[:3]] == [["-m", "huaben", "draw", draw_speed.PROMPT, "--json"]] * 3
    assert found["seconds"] == {"median": 2.0, "mean": 2.0, "low": 1.0, "high": 3.0, "n": 3}
    assert found["first_s"] == 1.0
    assert found["inside_s"]["median"] == 1.0
    assert found["peak_memory_mb"]["high"] == 500.0
    assert found["attempts"] == [2, 2, 2]
    assert found["import_torch_s"]["low"] == 4.0
