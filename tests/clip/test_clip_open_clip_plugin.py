"""The parts for open_clip's loop: the loss under its calling convention, and rows in the order the loss expects.

Where open_clip cannot be imported, a small loop with the same convention stands in for it.
"""

from __future__ import annotations

import math
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torch.utils.data.distributed import DistributedSampler

from huaben.clip.margin import MARGINS, MarginAlarm, MarginConfig, hard_mask, hard_negative_margin_loss
from huaben.clip.open_clip_plugin import HelipLoss, HelipSampler, helip_data, train_one_epoch
from huaben.errors import ConfigError, DataError, MissingDependencyError, ShapeError
from huaben.optional import is_available

NUM_PAIRS = 50


def lists(num_pairs: int = NUM_PAIRS, k: int = 6) -> np.ndarray:
    keys = np.random.default_rng(0).random((num_pairs, num_pairs))
    np.fill_diagonal(keys, 2.0)
    return np.argsort(keys, axis=1)[:, :k]


class Model(nn.Module):
    """Two linear towers that answer as open_clip's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(6, 4), nn.Linear(5, 4)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(14.0)))

    def forward(self, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
        return {
            "image_features": F.normalize(self.image(images), dim=-1),
            "text_features": F.normalize(self.text(texts.float()), dim=-1),
            "logit_scale": self.logit_scale.exp(),
        }


def dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(NUM_PAIRS, 6, generator=generator)
    return TensorDataset(images, torch.randint(0, 9, (NUM_PAIRS, 5), generator=generator))


def features(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = (F.normalize(torch.randn(rows, 8, generator=generator), dim=-1) for _ in range(2))
    return first.requires_grad_(), second.requires_grad_()


def arguments(**changes: Any) -> SimpleNamespace:
    known: dict[str, Any] = {
        "device": "cpu",
        "precision": "fp32",
        "distill": False,
        "accum_freq": 1,
        "skip_scheduler": False,
        "horovod": False,
        "grad_clip_norm": None,
        "batch_size": 8,
        "world_size": 1,
        "rank": 0,
        "local_rank": 0,
        "log_local": False,
        "log_every_n_steps": 1,
        "wandb": False,
    }
    return SimpleNamespace(**{**known, **changes})


def test_gamma_zero_is_clip_loss_bit_for_bit() -> None:
    results = []
    for ours in (True, False):
        images, texts = features(16)
        scale = torch.tensor(17.0, requires_grad=True)
        if ours:
            terms = HelipLoss(MARGINS["released"])(images, texts, logit_scale=scale, output_dict=True)
            assert terms["hnml_loss"].item() == 0
            loss = sum(terms.values())
        else:  # ClipLoss of one process
            own = torch.arange(16)
            loss = (F.cross_entropy(scale * images @ texts.T, own) + F.cross_entropy(scale * texts @ images.T, own)) / 2
        loss.backward()
        results.append((loss, images.grad, texts.grad, scale.grad))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_the_terms_are_weighted_and_summed() -> None:
    images, texts = features(24)
    scale = torch.tensor(9.0)
    margin = MarginConfig(gamma=0.7)
    loss = HelipLoss(margin, p=2, block=6).eval()
    terms = loss(images, texts, scale, output_dict=True)
    seeds, hard = hard_mask(4, 2, 2)
    raw = hard_negative_margin_loss(images, texts, hard, seeds, torch.arange(24), margin, scale)
    assert terms["hnml_loss"].item() == pytest.approx(0.7 * raw["loss"].item())
    assert loss.margin_raw.item() == pytest.approx(raw["loss"].item())
    assert loss.active.item() == pytest.approx(raw["active"].item())
    assert loss(images, texts, scale).item() == pytest.approx(sum(terms.values()).item())
    # The softmax does not see a bias; ids leave copies out.
    assert torch.equal(loss(images, texts, scale, torch.tensor(-3.0)), loss(images, texts, scale))
    twins = loss(images, texts, scale, ids=torch.arange(24) % 20, output_dict=True)
    assert twins["contrastive_loss"] < terms["contrastive_loss"]


def test_siglip_is_an_objective() -> None:
    images, texts = features(12)
    loss = HelipLoss(MarginConfig(sim="cosine"), objective="siglip").eval()
    terms = loss(images, texts, torch.tensor(10.0), torch.tensor(-10.0), output_dict=True)
    logits = 10 * images @ texts.T - 10
    expected = -F.logsigmoid(logits * (2 * torch.eye(12) - 1)).sum() / 12
    torch.testing.assert_close(terms["contrastive_loss"], expected)
    with pytest.raises(ConfigError, match="logit_bias"):
        loss(images, texts, torch.tensor(10.0))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="local_loss without gather_with_grad"):
        HelipLoss(gather_with_grad=False)
    with pytest.raises(ConfigError, match="no multiple of 1 \\+ p = 3"):
        HelipLoss(p=2, block=8)
    with pytest.raises(ConfigError, match="objective"):
        HelipLoss(objective="triplet")
    with pytest.raises(ShapeError, match="10 rows, expected blocks of 4"):
        HelipLoss(block=4)(*features(10), torch.tensor(1.0))
    with pytest.raises(ConfigError, match="accum_freq"):
        HelipSampler(dataset(), lists(), batch_size=8, accum_freq=0)
    with pytest.raises(ConfigError, match="no length"):
        helip_data(iter(()), lists(), batch_size=8)


def test_training_on_random_partners_stops() -> None:
    loss = HelipLoss(alarm=MarginAlarm(window=5))
    for seed in range(4):
        loss(*features(32, seed), torch.tensor(1.0))
    with pytest.raises(DataError, match="does not belong to this data"):
        loss(*features(32, 9), torch.tensor(1.0))
    for quiet in (HelipLoss(alarm=None), HelipLoss(MARGINS["released"]), HelipLoss().eval()):
        for seed in range(12):
            quiet(*features(32, seed), torch.tensor(1.0))


@pytest.mark.parametrize(("world", "accum_freq"), [(1, 1), (2, 1), (2, 3), (3, 1)])
def test_ranks_share_an_epoch_in_blocks(world: int, accum_freq: int) -> None:
    table = lists(97)
    samplers = [
        HelipSampler(range(97), table, batch_size=4, accum_freq=accum_freq, rank=rank, world=world, seed=5, k_use=4)
        for rank in range(world)
    ]
    assert all(isinstance(sampler, DistributedSampler) for sampler in samplers)
    orders = []
    for epoch in range(2):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        rows = np.array([list(sampler) for sampler in samplers]).reshape(world, -1, accum_freq, 4)
        assert rows.size == samplers[0].total_size == world * len(samplers[0])
        seeds, partners = rows[..., :2], rows[..., 2:]
        assert len(np.unique(seeds)) == seeds.size  # a partition: nothing twice over all ranks
        assert seeds.size > 97 - 2 * world * accum_freq
        assert (partners[..., None] == table[seeds, :4]).any(-1).all()
        for step in range(rows.shape[1]):
            assert len(np.unique(rows[:, step])) == rows[:, step].size  # no row twice in a step
        # After gathering, blocks lie by rank and then by accumulated part: the layout of the batch sampler.
        first = samplers[0].batches.first_step(epoch)
        for step in range(rows.shape[1]):
            assert np.array_equal(rows[:, step].reshape(-1), samplers[0].batches.batch(first + step))
        orders.append(seeds.reshape(-1))
    assert not np.array_equal(orders[0], orders[1])


def test_rows_reach_the_loss_as_seeds_and_their_partners() -> None:
    table = lists()
    rows = TensorDataset(torch.arange(NUM_PAIRS))
    loader = helip_data(rows, table, batch_size=8)["train"].dataloader
    batches = [batch[0].numpy() for batch in loader]
    assert len(batches) == loader.num_batches == NUM_PAIRS // 4
    assert loader.num_samples == 8 * len(batches)
    seeds, hard = hard_mask(1, 4, 1)
    for batch in batches:
        for seed, mask in zip(seeds.numpy(), hard.numpy(), strict=True):
            assert np.isin(batch[mask], table[batch[seed]]).all()


def loop(
    model: nn.Module,
    data: dict[str, Any],
    loss: nn.Module,
    epoch: int,
    optimizer: torch.optim.Optimizer,
    scaler: Any,
    scheduler: Any,
    dist_model: Any,
    args: Any,
    tb_writer: Any = None,
) -> None:
    """Train as open_clip does, as far as loss and data can tell."""
    data["train"].set_epoch(epoch)
    loader, parts = data["train"].dataloader, []
    steps = loader.num_batches // args.accum_freq
    for number, (images, texts) in enumerate(loader):
        scheduler(steps * epoch + number // args.accum_freq)
        parts.append((images, texts))
        if len(parts) < args.accum_freq:
            continue
        optimizer.zero_grad()
        with torch.no_grad():
            cached = [model(*part) for part in parts]
        for index, part in enumerate(parts):
            out = model(*part)
            inputs = {
                key: torch.cat([*(c[key] for c in cached[:index]), out[key], *(c[key] for c in cached[index + 1 :])])
                for key in ("image_features", "text_features")
            }
            losses = loss(**inputs, logit_scale=out["logit_scale"], output_dict=True)
            total = sum(losses.values())
            total.backward()
        optimizer.step()
        for key, value in {**losses, "loss": total}.items():
            if tb_writer is not None:
                tb_writer.add_scalar(f"train/{key}", value.item(), number)
        parts = []


class Writer:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.values.setdefault(name, []).append(float(value))


@pytest.fixture
def open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use open_clip's loop, or a stand-in."""
    if is_available("open_clip_train.train"):
        return
    package, train = ModuleType("open_clip_train"), ModuleType("open_clip_train.train")
    package.__path__ = []
    for module in (package, train):
        module.__spec__ = SimpleNamespace(name=module.__name__)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    train.train_one_epoch = loop


@pytest.mark.usefixtures("open_clip")
@pytest.mark.parametrize("accum_freq", [1, 2])
def test_its_loop_trains_with_both(accum_freq: int) -> None:
    torch.manual_seed(0)
    model = Model()
    data = helip_data(dataset(), lists(), batch_size=8, accum_freq=accum_freq)
    loss = HelipLoss(block=8, alarm=None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    writer, seen = Writer(), []
    for epoch in range(6):
        train_one_epoch(
            model, data, loss, epoch, optimizer, None, seen.append, arguments(accum_freq=accum_freq), writer
        )
    logged = writer.values
    steps = NUM_PAIRS // (4 * accum_freq) * 6
    assert len(logged["train/loss"]) == steps
    total = np.array(logged["train/contrastive_loss"]) + np.array(logged["train/hnml_loss"])
    assert logged["train/loss"] == pytest.approx(total.tolist(), rel=1e-5)
    assert np.mean(logged["train/loss"][-4:]) < 0.8 * np.mean(logged["train/loss"][:4])
    assert seen[-1] == steps - 1


@pytest.mark.usefixtures("open_clip")
@pytest.mark.parametrize(
    ("changes", "loss", "said"),
    [
        ({"batch_size": 16}, HelipLoss(), "batch_size: 16, 8, 16"),
        ({"accum_freq": 2}, HelipLoss(block=8), "accum_freq: 2, 1"),
        ({}, HelipLoss(block=4), "batch_size: 8, 8, 4"),
        ({}, HelipLoss(p=3), "hard pairs for each seed: 1, 3"),
        ({"distill": True}, HelipLoss(), "distill"),
    ],
)
def test_settings_that_differ_are_refused(changes: dict[str, Any], loss: HelipLoss, said: str) -> None:
    data = helip_data(dataset(), lists(), batch_size=8)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ConfigError, match=said):
        train_one_epoch(model, data, loss, 0, optimizer, None, print, arguments(**changes))


def test_without_open_clip_the_loop_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip_train", None)
    monkeypatch.delitem(sys.modules, "open_clip_train.train", raising=False)
    data, model = helip_data(dataset(), lists(), batch_size=8), Model()
    with pytest.raises(MissingDependencyError, match="training package"):
        train_one_epoch(model, data, HelipLoss(), 0, torch.optim.AdamW(model.parameters()), None, print, arguments())
