"""The training loop: resume after a kill, schedules, averages, broken losses, interrupts, full disks."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from huaben import training
from huaben.errors import Cancelled, CheckpointError, ConfigError, GenerationError
from huaben.rng import torch_stream
from huaben.training import FitConfig, FitEvent, averaged_model, fit, lr_factor, parameter_groups, read_checkpoint

QUICK = FitConfig(warmup_steps=4, log_every=5, checkpoint_every_s=0, seed=3)


class Line:
    """Learns a line with dropout, so that torch's random numbers matter."""

    name = "line"

    def __init__(self, config: FitConfig = QUICK, wait_s: float = 0.0) -> None:
        self.fit, self.wait_s = config, wait_s

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.BatchNorm1d(8), nn.Linear(8, 1))

    def batch(self, step: int) -> Any:
        time.sleep(self.wait_s)
        x = torch.randn(16, 4, generator=torch_stream(self.fit.seed, "line", step))
        return {"x": x, "y": x.sum(1, keepdim=True)}

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        error = model(batch["x"]) - batch["y"]
        return {"loss": error.square().mean(), "bias": error.detach().mean()}

    def save(self, model: nn.Module, folder: Path) -> None:
        save_file(model.state_dict(), folder / "model.safetensors")


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "final" / "model.safetensors")


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def train(folder: Path, recipe: Any = None, **options: Any) -> training.FitResult:
    return fit(recipe or Line(), folder, progress=False, **options)


def test_fit_lowers_the_loss_and_writes_a_card(tmp_path: Path) -> None:
    class Scored(Line):
        settings = {"width": 8}  # noqa: RUF012

        def evaluate(self, model: nn.Module) -> dict[str, float]:
            assert not model.training
            torch.rand(3)
            return {"error": float(self.loss(model, self.batch(10**6))["loss"])}

        def preview(self, model: nn.Module) -> np.ndarray[Any, Any]:
            return np.zeros((4, 6, 3), np.uint8)

    config = QUICK.replace(learning_rate=0.03, preview_every=50, checkpoint_every_s=100)
    result = train(tmp_path, Scored(config), steps=150)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(5, 151, 5))
    assert result.terms["loss"] < 0.5 * lines[0]["loss"]
    card = json.loads((result.folder / "card.json").read_text())
    assert card["steps"] == 150
    assert card["settings"] == {"width": 8}
    assert card["scores"] == result.scores
    assert result.scores["error"] < 1.0
    assert card["files"] == training.file_hashes(result.folder)
    assert {"parameters", "hardware", "minutes", "seed", "versions"} <= card.keys()
    assert sorted(path.name for path in (tmp_path / "previews").iterdir()) == [
        "00000050.png",
        "00000100.png",
        "00000150.png",
    ]


@pytest.mark.parametrize("prefetch", ["thread", "process"])
def test_resume_after_a_kill_ends_with_the_same_bits(tmp_path: Path, prefetch: str) -> None:
    config = QUICK.replace(prefetch=prefetch)
    train(tmp_path / "whole", Line(config), steps=60)
    script = f"""
        from test_training import Line, QUICK
        from huaben.training import fit
        fit(Line(QUICK.replace(prefetch={prefetch!r}), wait_s=0.02), {str(tmp_path / "killed")!r}, steps=60)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 90
    step = 0
    while step < 12 and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.02)
        if (tmp_path / "killed" / "checkpoint.safetensors").exists():
            step = read_checkpoint(tmp_path / "killed")[0]["step"]
    child.send_signal(signal.SIGKILL)
    child.wait()
    step = read_checkpoint(tmp_path / "killed")[0]["step"]
    assert 12 <= step < 60
    result = train(tmp_path / "killed", Line(config), steps=60, resume=True)
    assert result.steps == 60
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    assert_same(read_checkpoint(tmp_path / "whole")[1], read_checkpoint(tmp_path / "killed")[1])
    lines = [json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert lines == sorted(set(lines))


def test_prefetching_changes_no_number(tmp_path: Path) -> None:
    for prefetch in ("none", "thread", "process"):
        train(tmp_path / prefetch, Line(QUICK.replace(prefetch=prefetch, workers=2)), steps=12)
    assert_same(weights(tmp_path / "none"), weights(tmp_path / "thread"))
    assert_same(weights(tmp_path / "none"), weights(tmp_path / "process"))


def test_process_batches_keep_types(tmp_path: Path) -> None:
    class Typed(Line):
        def batch(self, step: int) -> Any:
            return (torch.full((2, 3), step, dtype=torch.bfloat16), [torch.tensor([True]), "text", np.int64(4)])

    batches = training._process_batches(Typed(), QUICK, 5)
    for step in (5, 6):
        first, (flag, text, number) = next(batches)
        assert first.dtype == torch.bfloat16
        assert torch.equal(first, torch.full((2, 3), step, dtype=torch.bfloat16))
        assert flag.dtype == torch.bool
        assert (text, number) == ("text", 4)
    batches.close()


def test_an_error_in_a_batch_reaches_the_caller(tmp_path: Path) -> None:
    class Broken(Line):
        def batch(self, step: int) -> Any:
            if step == 7:
                raise KeyError("no such picture")
            return super().batch(step)

    with pytest.raises(KeyError, match="no such picture"):
        train(tmp_path, Broken(), steps=20)
    assert read_checkpoint(tmp_path)[0]["step"] == 7


def test_average_follows_its_formula() -> None:
    model = nn.Linear(2, 1)
    average = averaged_model(model, 0.9)
    expected: Tensor | None = None
    for count in range(200):
        with torch.no_grad():
            model.weight.fill_(float(count % 7))
        average.update_parameters(model)
        decay = min(0.9, (1 + count) / (10 + count))
        now = model.weight.detach().clone()
        expected = now if expected is None else decay * expected + (1 - decay) * now
    assert expected is not None
    torch.testing.assert_close(average.module.weight.detach(), expected)
    assert training.ema_decay_at(0.9, 10**6) == 0.9


def test_average_copies_buffers() -> None:
    model = nn.BatchNorm1d(2)
    average = averaged_model(model, 0.9)
    for _ in range(3):
        model(torch.randn(5, 2) + 4)
        average.update_parameters(model)
    assert torch.equal(average.module.running_mean, model.running_mean)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_learning_rate_climbs_stays_and_falls(decay: str) -> None:
    config = FitConfig(warmup_steps=10, decay=decay, decay_share=0.25, lr_floor=0.1)
    rates = [lr_factor(config, step, total=1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:750] == [1.0] * 741
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[750:]))
    assert rates[875] == pytest.approx(0.55, abs=1e-9)
    assert lr_factor(config, 1000, total=1000) == pytest.approx(0.1)
    assert [lr_factor(config, 500 + step, start=500, total=1500) for step in range(1000)] == rates
    assert lr_factor(config, 10**6) == 1.0


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Conv2d(1, 2, 3))
    model[0].weight.requires_grad_(False)
    decayed, plain = parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(2, 1, 3, 3)]
    assert sorted(tuple(parameter.shape) for parameter in plain["params"]) == [(2,), (4,), (4,), (4,)]


def test_minutes_become_a_fixed_number_of_steps(tmp_path: Path) -> None:
    events: list[FitEvent] = []
    recipe = Line(QUICK.replace(checkpoint_every_s=100, prefetch="none"), wait_s=0.01)
    begun = time.perf_counter()
    result = train(tmp_path, recipe, minutes=1.5 / 60, on_event=events.append)
    took = time.perf_counter() - begun
    plans = [event for event in events if event.kind == "plan"]
    assert len(plans) == 1
    assert plans[0].step == training.SETTLE_STEPS + training.TIMED_STEPS
    assert plans[0].total_steps == result.steps
    assert result.steps > plans[0].step
    assert took < 15
    assert read_checkpoint(tmp_path)[0]["total_steps"] == result.steps


def test_a_budget_smaller_than_the_timed_steps_still_ends(tmp_path: Path) -> None:
    result = train(tmp_path, Line(QUICK.replace(prefetch="none"), wait_s=0.05), minutes=0.2 / 60)
    assert 1 <= result.steps <= training.SETTLE_STEPS + training.TIMED_STEPS
    assert (tmp_path / "final" / "card.json").exists()


def test_resume_keeps_the_plan_of_a_run_under_way(tmp_path: Path) -> None:
    def stop(event: FitEvent) -> None:
        if event.kind == "log" and event.step == 30:
            raise Cancelled("enough")

    recipe = Line(QUICK, wait_s=0.001)
    with pytest.raises(Cancelled, match="step 30"):
        train(tmp_path, recipe, minutes=0.1, on_event=stop)
    planned = read_checkpoint(tmp_path)[0]["total_steps"]
    assert planned > 30
    with pytest.raises(Cancelled):
        train(tmp_path, recipe, minutes=0.1, resume=True, on_event=lambda event: stop_at(event, 40))
    assert read_checkpoint(tmp_path)[0]["total_steps"] == planned
    assert train(tmp_path, recipe, steps=50, resume=True).steps == 50


def stop_at(event: FitEvent, step: int) -> None:
    if event.kind == "log" and event.step == step:
        raise Cancelled("enough")


def test_a_finished_run_is_lengthened(tmp_path: Path) -> None:
    train(tmp_path, steps=40)
    first = weights(tmp_path)
    again = train(tmp_path, resume=True)
    assert again.steps == 40
    assert_same(first, weights(tmp_path))
    longer = train(tmp_path, steps=20, resume=True)
    assert longer.steps == 60
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["lr"] for line in lines}
    assert rates[40] < 0.3 * QUICK.learning_rate
    assert rates[50] == QUICK.learning_rate
    assert rates[60] < 0.5 * QUICK.learning_rate
    assert not (tmp_path / ".final.old").exists()


def test_unusable_losses_are_skipped_and_counted(tmp_path: Path) -> None:
    class Rough(Line):
        def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
            terms = super().loss(model, batch)
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls in (3, 4):
                terms["loss"] = terms["loss"] * float("nan")
            return terms

    result = train(tmp_path, Rough(QUICK.replace(prefetch="none")), steps=10)
    assert result.skipped == 2
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path).values())


def test_a_loss_that_stays_unusable_is_an_error_naming_its_term(tmp_path: Path) -> None:
    class Hopeless(Line):
        def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
            terms = super().loss(model, batch)
            return {**terms, "bias": terms["bias"] / 0.0}

    with pytest.raises(GenerationError, match=r"bias of recipe 'line' was not finite 10 times"):
        train(tmp_path, Hopeless(), steps=50)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, steps=10)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        train(tmp_path, steps=10, resume=True)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".checkpoint*"))


def test_ctrl_c_writes_a_checkpoint_and_cancels(tmp_path: Path) -> None:
    def press(event: FitEvent) -> None:
        if event.kind == "log" and event.step == 15:
            os.kill(os.getpid(), signal.SIGINT)

    recipe = Line(QUICK.replace(checkpoint_every_s=100))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Cancelled, match="--resume") as caught:
        train(tmp_path, recipe, steps=40, on_event=press)
    assert "step 15" in caught.value.message
    assert signal.getsignal(signal.SIGINT) is handler
    assert read_checkpoint(tmp_path)[0]["step"] == 15
    train(tmp_path / "whole", recipe, steps=40)
    train(tmp_path, recipe, resume=True)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path))


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    train(tmp_path, steps=5)
    with pytest.raises(ConfigError, match="already holds"):
        train(tmp_path, steps=5)
    with pytest.raises(CheckpointError, match="seed 3"):
        train(tmp_path, Line(QUICK.replace(seed=4)), steps=9, resume=True)


def test_a_torn_checkpoint_is_an_error(tmp_path: Path) -> None:
    train(tmp_path, steps=5)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(tmp_path, steps=9, resume=True)


def test_the_average_of_a_run_under_way_loads(tmp_path: Path) -> None:
    train(tmp_path, steps=12)
    assert_same(dict(training.load_ema(Line(), tmp_path).state_dict()), weights(tmp_path))


def test_fit_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(tmp_path, steps=3)
    assert torch.equal(torch.rand(3), expected)


def test_bf16_computes_the_loss_in_bf16(tmp_path: Path) -> None:
    seen: set[torch.dtype] = set()

    class Watched(Line):
        def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
            seen.add(model[0](batch["x"]).dtype)
            return super().loss(model, batch)

    train(tmp_path, Watched(QUICK.replace(bf16=True)), steps=3)
    assert seen == {torch.bfloat16}


@pytest.mark.parametrize(
    "options", [{"minutes": 1, "steps": 1}, {"minutes": 0}, {"steps": 0}, {"steps": 1, "device": "abacus"}]
)
def test_impossible_lengths_and_devices_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        train(tmp_path, **options)


@pytest.mark.parametrize("change", [{"log_every": 0}, {"learning_rate": 0.0}, {"lr_floor": 2.0}, {"threads": 0}])
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        FitConfig(**change)


@pytest.mark.parametrize(
    ("found", "fast"), [({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({"avx2": True}, False)]
)
def test_bf16_is_used_on_processors_that_have_it(monkeypatch, found, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert training.has_fast_bf16(torch.device("cpu")) is fast
    assert training.has_fast_bf16(torch.device("cuda"))
