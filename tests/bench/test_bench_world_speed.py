"""Scenes a second: what is reported, and that nothing is drawn twice."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from huaben.bench import world_speed
from huaben.errors import ConfigError, ShapeError


def test_run_reports_every_measure_with_its_spread() -> None:
    found = json.loads(json.dumps(world_speed.run(seconds=0.01, size=64, seed=3, repeats=2)))
    assert set(found["scenes"]) == {"render", "render_with_masks", "sample", "sample_and_render"}
    for rates in found["scenes"].values():
        for rate in (rates["per_second"], rates["per_cpu_second"]):
            assert 0 < rate["low"] <= rate["mean"] <= rate["high"]
            assert rate["n"] == 2
    assert (found["size"], found["seed"], found["repeats"]) == (64, 3, 2)


def test_scenes_are_new_and_depend_on_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(seed: int) -> list[object]:
        seen: list[object] = []
        monkeypatch.setattr(world_speed, "render", lambda scene, size, masks=False: seen.append((masks, scene)))
        world_speed.run(seconds=1e-6, size=64, seed=seed, repeats=1)
        return seen

    first = drawn(1)
    assert first == drawn(1)
    assert first != drawn(2)
    scenes = [scene for masks, scene in first if not masks]  # type: ignore[misc]
    alone = scenes[: 2 * world_speed.BATCH]
    assert all(scene not in alone[:index] for index, scene in enumerate(alone))


def test_no_time_and_no_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="seconds"):
        world_speed.run(seconds=0)
    with pytest.raises(ConfigError, match="repeats"):
        world_speed.run(repeats=0)
    with pytest.raises(ShapeError):
        world_speed.run(size=8)


def test_no_torch_is_loaded() -> None:
    code = "import sys, huaben.bench.world_speed as w; w.run(0.01, 64, repeats=1); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
