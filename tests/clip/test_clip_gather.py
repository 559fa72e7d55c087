"""Two processes with gathered features learn what one process with the whole batch learns, in the exact modes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from huaben.clip.gather import gather_features, gather_ids, own_rows, process_rank, world_size
from huaben.clip.loss import contrastive_loss, nt_xent_loss, siglip_loss
from huaben.clip.margin import MarginConfig, hard_mask, hard_negative_margin_loss
from huaben.clip.open_clip_plugin import HelipLoss
from huaben.errors import ShapeError

WORLD = 2
BLOCK = 6
MARGIN = MarginConfig(gamma=2.0, sim="cosine", directions="both")
MODES = {"own rows": (True, True), "all rows": (False, True), "all rows, no gradient": (False, False)}
ACCUMULATE = (1, 2, 4)


class Towers(torch.nn.Module):
    """Two linear towers and a scale."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.image = torch.nn.Parameter(torch.randn(5, 4, generator=generator, dtype=torch.float64))
        self.text = torch.nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.float64))
        self.scale = torch.nn.Parameter(torch.tensor(6.0, dtype=torch.float64))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(images @ self.image, dim=-1), F.normalize(texts @ self.text, dim=-1)


def data(blocks: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return the whole batch's pictures and texts."""
    generator = torch.Generator().manual_seed(1)
    shape = (blocks * BLOCK, 5)
    images, texts = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return images.to(dtype), texts[:, :3].to(dtype)


def step(loss: HelipLoss, accumulate: int, *, mixed: bool = False) -> dict[str, Tensor]:
    """Return one process's gradients of a step, as open_clip's loop accumulates them; mixed: in bf16 autocast."""
    dtype = torch.float32 if mixed else torch.float64
    towers = Towers().to(dtype)
    images, texts = (side[own_rows(accumulate * BLOCK)] for side in data(WORLD * accumulate, dtype))
    parts = list(zip(images.split(BLOCK), texts.split(BLOCK), strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed, cache_enabled=False):
        with torch.no_grad():
            cached = [towers(*part) for part in parts]
        for number, part in enumerate(parts):
            fresh = [*cached[:number], towers(*part), *cached[number + 1 :]]
            features = [torch.cat(side) for side in zip(*fresh, strict=True)]
            scale = towers.scale if number == len(parts) - 1 else towers.scale.detach()
            terms = loss(features[0], features[1], scale, output_dict=True)
            sum(terms.values()).backward()
    return {name: value.grad.double() for name, value in towers.named_parameters()}


def alone(accumulate: int) -> dict[str, Tensor]:
    """Return the gradients of the whole batch in one process and one pass."""
    towers = Towers()
    features = towers(*data(WORLD * accumulate))
    HelipLoss(MARGIN, block=BLOCK)(*features, towers.scale).backward()
    return {name: value.grad for name, value in towers.named_parameters()}


def other_losses() -> dict[str, Tensor]:
    """Return gradients of the other losses, each on this process's rows with ids gathered, too."""
    grads = {}
    for name in ("contrastive", "siglip", "nt_xent", "margin"):
        towers = Towers()
        images, texts = data(WORLD)
        ids = torch.arange(len(images)) % (len(images) - 2)
        rows = own_rows(BLOCK) if world_size() > 1 else None
        part = slice(None) if rows is None else rows
        own = towers(images[part], texts[part])
        features = [gather_features(side) for side in own]
        every = gather_ids(ids[part])
        assert torch.equal(every, ids)
        if name == "contrastive":
            loss = contrastive_loss(*features, towers.scale, ids=every, rows=rows)
        elif name == "siglip":
            loss = siglip_loss(*features, towers.scale, torch.tensor(-2.0), ids=every, rows=rows)
        elif name == "nt_xent":
            loss = nt_xent_loss(*features, ids=every, rows=rows)
        else:
            n = BLOCK // 2
            seeds, hard = hard_mask(WORLD, n, 1)
            mine = slice(process_rank() * n, (process_rank() + 1) * n) if rows is not None else slice(None)
            loss = hard_negative_margin_loss(*features, hard[mine], seeds[mine], every, MarginConfig(), towers.scale)
        loss["loss"].backward()
        for key, value in towers.named_parameters():
            grads[f"{name}/{key}"] = torch.zeros_like(value) if value.grad is None else value.grad
    return grads


def child(rank: int, folder: str) -> None:
    """One process of two: average gradients as data-parallel training does, and write them."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    found = {}
    for (mode, (local, with_grad)), accumulate in itertools.product(MODES.items(), ACCUMULATE):
        loss = HelipLoss(MARGIN, block=BLOCK, local_loss=local, gather_with_grad=with_grad)
        for key, value in step(loss, accumulate).items():
            found[f"{mode}/{accumulate}/double/{key}"] = value
    for key, value in step(HelipLoss(MARGIN, block=BLOCK), 2, mixed=True).items():
        found[f"own rows/2/bf16/{key}"] = value
    wrong = HelipLoss(MARGIN, block=BLOCK)
    wrong.gather_with_grad = False  # what the constructor refuses
    for key, value in step(wrong, 1).items():
        found[f"wrong/1/double/{key}"] = value
    found.update(other_losses())
    assert not gather_features(torch.ones(2, 3, requires_grad=False), with_grad=False).requires_grad
    for value in found.values():
        dist.all_reduce(value)
        value /= WORLD
    if rank == 0:
        save_file(found, Path(folder) / "found.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Return the averaged gradients of two processes."""
    folder = tmp_path_factory.mktemp("gather")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"import test_clip_gather as t; t.child({rank}, {str(folder)!r})"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]
    for process in processes:
        errors = process.communicate(timeout=240)[1]
        assert process.returncode == 0, errors[-3000:]
    return load_file(folder / "found.safetensors")


@pytest.mark.parametrize("accumulate", ACCUMULATE)
@pytest.mark.parametrize("mode", ["own rows", "all rows"])
def test_the_exact_modes_equal_one_process(found: dict[str, Tensor], mode: str, accumulate: int) -> None:
    whole = alone(accumulate)
    for name, value in whole.items():
        torch.testing.assert_close(found[f"{mode}/{accumulate}/double/{name}"], value, rtol=0, atol=1e-6)
        assert value.abs().max() > 1e-3


def test_the_cheap_mode_has_the_direction_and_a_part_of_the_length(found: dict[str, Tensor]) -> None:
    for accumulate in ACCUMULATE:
        whole = alone(accumulate)
        for name in ("image", "text"):
            got = found[f"all rows, no gradient/{accumulate}/double/{name}"]
            torch.testing.assert_close(got * WORLD, whole[name], rtol=0, atol=1e-6)


def test_the_refused_mode_is_wrong(found: dict[str, Tensor]) -> None:
    whole = torch.cat([value.flatten() for name, value in alone(1).items() if name != "scale"])
    got = torch.cat([found[f"wrong/1/double/{name}"].flatten() for name in ("image", "text")])
    assert F.cosine_similarity(whole, got, dim=0) < 0.999


def test_mixed_precision_is_close(found: dict[str, Tensor]) -> None:
    whole = torch.cat([value.flatten() for value in alone(2).values()])
    got = torch.cat([found[f"own rows/2/bf16/{name}"].flatten() for name in alone(2)])
    assert 0 < (got - whole).norm() < 1e-2 * whole.norm()


def test_every_loss_on_own_rows_equals_one_process(found: dict[str, Tensor]) -> None:
    for name, value in other_losses().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def test_one_process_gathers_nothing() -> None:
    features = torch.randn(3, 2)
    assert gather_features(features) is features
    assert gather_ids(features) is features
    assert (world_size(), process_rank(), own_rows(4)) == (1, 0, slice(0, 4))
    with pytest.raises(ShapeError, match="scalar"):
        gather_features(torch.tensor(1.0))
