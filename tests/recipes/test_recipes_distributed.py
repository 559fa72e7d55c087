"""Several processes: the same weights as one process with the whole batch, one folder, one end for all."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from huaben.errors import ConfigError
from huaben.language.bytes import ByteTokenizer
from huaben.language.corpus import Corpus, build_corpus
from huaben.language.decoder import DecoderConfig
from huaben.recipes.distributed import fit_distributed
from huaben.recipes.lm import LMRecipe, lm_fit, named_scheme
from huaben.training import fit

pytest.importorskip("accelerate")
TEXTS = ["the cat and the dog. " * 30, "x", "a bird. " * 40]


def make_recipe(corpus: Corpus) -> LMRecipe:
    model = DecoderConfig(
        vocab_size=ByteTokenizer.vocab_size, width=16, layers=1, heads=2, scheme=named_scheme("v2-kerple", hidden=4)
    )
    config = lm_fit(steps=6, log_every=1, checkpoint_every_s=1e9, prefetch="none", threads=1)
    return LMRecipe(corpus, ByteTokenizer(), model, length=64, batch_size=4, fit=config, valid=corpus)


def child(corpus: str, out: str, steps: int, resume: bool) -> None:
    """One process of several."""
    from huaben.errors import Cancelled

    recipe = make_recipe(Corpus.open(corpus))
    try:
        result = fit_distributed(recipe, out, steps=steps or None, resume=resume, progress=False)
    except Cancelled:
        sys.exit(9)
    print(json.dumps({"steps": result.steps, "scores": result.scores}))  # noqa: T201


def start(corpus: Path, out: Path, steps: int, *, resume: bool = False, torchrun: bool = False) -> list[Any]:
    """Start two processes on this machine: by hand, or by one torchrun."""
    code = f"import test_recipes_distributed as t; t.child({str(corpus)!r}, {str(out)!r}, {steps}, {resume})"
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    if torchrun:
        script = out.parent / "script.py"
        script.write_text(code)
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
        return [subprocess.Popen(words, env=environment, **pipes)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**environment, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            **pipes,
        )
        for rank in range(2)
    ]


def end(processes: list[Any], status: int = 0) -> list[str]:
    """Wait for all of them and return what they printed."""
    said = [process.communicate(timeout=240) for process in processes]
    for process, (_, errors) in zip(processes, said, strict=True):
        assert process.returncode == status, errors[-3000:]
    return [out for out, _ in said]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed") / "corpus"
    build_corpus(TEXTS, ByteTokenizer(), folder)
    return folder


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    fit(make_recipe(Corpus.open(corpus)), folder, steps=6, progress=False)
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(left: Path, right: Path) -> None:
    ours, theirs = (load_file(folder / "final" / "model.safetensors") for folder in (left, right))
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name.endswith("bias2"):  # softmax does not see it: its gradient is rounding alone, which Adam magnifies
            continue
        assert torch.allclose(ours[name], theirs[name], atol=1e-5), name
    assert len(lines(left)) == len(lines(right))
    for one, other in zip(lines(left), lines(right), strict=True):
        assert one["step"] == other["step"]
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_two_processes_train_as_one(corpus: Path, alone: Path, tmp_path: Path) -> None:
    recipe = make_recipe(Corpus.open(corpus))
    assert any(recipe.batches(step)[1].any() for step in range(6))  # shares of unequal numbers of targets, too
    out = tmp_path / "two"
    first, second = (json.loads(text) for text in end(start(corpus, out, 6)))
    assert first["steps"] == second["steps"] == 6
    assert first["scores"] and not second["scores"]
    assert_same_run(out, alone)
    card = json.loads((out / "final" / "card.json").read_text())
    assert card["settings"]["processes"] == 2
    # One process goes on where two ended: the folder is the same kind.
    assert fit(recipe, out, resume=True, progress=False).steps == 6


@pytest.mark.slow
def test_torchrun_runs_it_and_resumes_it(corpus: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    end(start(corpus, out, 6, torchrun=True))
    assert_same_run(out, alone)
    end(start(corpus, out, 0, resume=True, torchrun=True))
    assert lines(out)[-1]["step"] == 6


@pytest.mark.slow
def test_a_signal_to_one_process_ends_all_after_the_same_step(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    processes = start(corpus, out, 1_000_000)
    deadline = time.monotonic() + 200
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    end(processes, status=9)
    last = lines(out)[-1]["step"]
    assert 0 < last < 1_000_000
    end(start(corpus, out, last + 2, resume=True))
    assert lines(out)[-1]["step"] == last + 2


def test_one_process_is_the_plain_loop(
    corpus: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    fit_distributed(make_recipe(Corpus.open(corpus)), tmp_path, steps=6, progress=False)
    left, right = (load_file(folder / "final" / "model.safetensors") for folder in (tmp_path, alone))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_several_processes_need_steps(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = make_recipe(Corpus.open(corpus))
    for length in ({"minutes": 1.0}, {}):
        with pytest.raises(ConfigError, match="needs its length in steps"):
            fit_distributed(recipe, tmp_path, **length)
