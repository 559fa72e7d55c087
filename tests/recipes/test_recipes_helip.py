"""HELIP's recipe: what a batch is, what its loss is, and that several processes train as one."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from huaben.clip.dataset import ArrayPairs, Caption
from huaben.clip.dual_encoder import DualEncoder, DualOutput, HuabenDualEncoder, load_dual_encoder
from huaben.clip.hard_pairs import HardPairs
from huaben.clip.loss import contrastive_loss
from huaben.clip.margin import MarginConfig
from huaben.clip.model import PRESETS, Clip
from huaben.errors import CheckpointError, ConfigError, DataError
from huaben.language.tokenizer import Tokenizer
from huaben.recipes.distributed import fit_distributed
from huaben.recipes.helip import HelipRecipe, HelipTraining, helip_fit, retrieval_scores
from huaben.recipes.views import AUGMENTS, named_augment, strong_view
from huaben.training import fit, load_ema

COLOURS = {"red": ("红", (220, 40, 40)), "green": ("绿", (40, 200, 40)), "blue": ("蓝", (40, 60, 220)),
           "white": ("白", (240, 240, 240))}  # fmt: skip
PLACES = {"left": ("左", slice(0, 16), slice(0, 32)), "right": ("右", slice(16, 32), slice(0, 32)),
          "top": ("上", slice(0, 32), slice(0, 16)), "bottom": ("下", slice(0, 32), slice(16, 32))}  # fmt: skip
N = len(COLOURS) ** 2 * len(PLACES) - len(COLOURS) * len(PLACES)


@cache
def data() -> ArrayPairs:
    """48 pictures: half of one colour, half of another."""
    images, captions, keys = [], [], []
    for (one, (one_zh, inside)), (other, (other_zh, outside)) in itertools.permutations(COLOURS.items(), 2):
        for place, (place_zh, columns, rows) in PLACES.items():
            image = np.full((32, 32, 3), outside, np.uint8)
            image[rows, columns] = inside
            images.append(image)
            captions.append(
                [
                    Caption(f"{one} on the {place} of {other}", "en"),
                    Caption(f"{other} with {one} on its {place}", "en"),
                    Caption(f"{other_zh}色的{place_zh}边是{one_zh}色", "zh"),
                ]
            )
            keys.append(f"{one}-{other}-{place}")
    return ArrayPairs(np.stack(images), captions, keys, name="halves")


@cache
def encoder() -> DualEncoder:
    texts = [caption.text for row in range(N) for caption in data().captions(row)]
    tokenizer = Tokenizer.train(texts, vocab_size=340)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = Clip(PRESETS["tiny"].replace(vocab_size=tokenizer.vocab_size))
    return HuabenDualEncoder(clip, tokenizer, name="tiny")


def lists(k: int = 6) -> HardPairs:
    """Pairs of the same two colours, then of the same first colour."""
    keys = [data().key(row).split("-") for row in range(N)]
    score = np.array([[(a[0] == b[0]) + (a[1] == b[1]) + 0.5 * (a[2] == b[2]) for b in keys] for a in keys])
    np.fill_diagonal(score, -1)
    order = np.argsort(-score, axis=1, kind="stable")[:, :k]
    return HardPairs(
        pairs=order.astype(np.int64),
        scores=np.take_along_axis(score, order, axis=1).astype(np.float32),
        certified=np.ones(N, bool),
        outlier=np.zeros(N, bool),
        keys=data().keys(),
        settings={"method": "by hand"},
    )


QUICK: dict[str, Any] = {"log_every": 1, "checkpoint_every_s": 1e9, "prefetch": "none", "threads": 1}


def recipe(**changes: Any) -> HelipRecipe:
    values: dict[str, Any] = {
        "pairs": lists() if changes.get("partners", "mined") == "mined" else None,
        "batch_size": 12,
        "fit": helip_fit(steps=4, learning_rate=1e-3, **QUICK),
        "alarm": False,  # an untrained encoder knows no hard pairs
    }
    return HelipRecipe(encoder, data(), **(values | changes))


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[name], right[name]) for name in left)
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


# -- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_holds_seeds_and_then_their_partners() -> None:
    one = recipe(hard_per_seed=2, k_use=4)
    batch = one.batch(3)
    rows = batch["ids"].numpy()
    assert batch["pixels"].shape == (12, 3, 32, 32) and len(np.unique(rows)) == 12
    for index, seed in enumerate(rows[:4]):
        partners = rows[4 + 2 * index : 6 + 2 * index]
        assert set(partners) <= set(lists().pairs[seed, :4])


@pytest.mark.parametrize("changes", [{}, {"partners": "none"}, {"partners": "random"}])
def test_a_batch_is_a_pure_function_of_seed_and_step(changes: dict[str, Any]) -> None:
    settings = {"augment": AUGMENTS["crop"], "objective": "slip", **changes}
    one, other = recipe(**settings), recipe(**settings)
    later = one.batch(2)
    one.batch(7)
    assert equal(one.batch(2), later) and equal(other.batch(2), later)
    assert not equal(recipe(**settings, seed=1).batch(2), later)
    assert not torch.equal(one.batch(3)["ids"], later["ids"])


def test_the_cache_changes_nothing() -> None:
    for augment in (None, strong_view):
        full, none = recipe(augment=augment), recipe(augment=augment, cache_mb=0.0)
        full.batch(0)
        assert equal(full.batch(0), none.batch(0))
        assert full._cached_bytes and not none._cached_bytes


def test_captions_are_drawn_over_languages_first() -> None:
    one = recipe(partners="none", batch_size=48)
    chinese = sum(one._caption(row, *chance).isascii() for row in range(N) for chance in [(0.3, 0.9), (0.7, 0.1)])
    assert chinese == N  # one of two languages each, though two of three captions are English
    assert recipe(languages=("zh",))._caption(0, 0.9, 0.9) == data().captions(0)[2].text


def test_lists_are_matched_by_key() -> None:
    order = np.random.default_rng(0).permutation(N)
    back = np.argsort(order)
    original = lists()
    shuffled = HardPairs(
        pairs=back[original.pairs[order]],
        scores=original.scores[order],
        certified=original.certified[order],
        outlier=original.outlier[order],
        keys=[original.keys[row] for row in order],
        settings=original.settings,
    )
    assert np.array_equal(recipe(pairs=shuffled).pairs.pairs, original.pairs)


@pytest.mark.parametrize("objective", ["contrastive", "slip"])
@pytest.mark.parametrize("ssl_on_hard", [True, False])
def test_shares_are_the_batch(objective: str, ssl_on_hard: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    one = recipe(objective=objective, ssl_on_hard=ssl_on_hard, augment=AUGMENTS["shift"], hard_per_seed=2)
    whole = one.batch(5)
    parts = [one.share(whole, rank, 2) for rank in range(2)]
    seeds, partners = ([part["ids"][cut] for part in parts] for cut in (slice(0, 2), slice(2, None)))
    assert torch.equal(torch.cat([*seeds, *partners]), whole["ids"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert set(one.batch(5)) == {"step"}  # pictures are read by the process that needs them
    for rank, part in enumerate(parts):
        drawn = one.share(one.batch(5), rank, 2)
        longest = drawn["tokens"]["ids"].shape[1]
        assert equal({**part, "tokens": {k: v[:, :longest] for k, v in part["tokens"].items()}}, drawn)
    with pytest.raises(ConfigError, match="4 seeds a step cannot be divided among 3"):
        one.share(whole, 0, 3)


# -- losses ----------------------------------------------------------------------------------------------------------


def test_continued_training_is_the_plain_contrastive_loss() -> None:
    one = recipe(partners="none")
    model, batch = one.build(), one.batch(0)
    terms = one.loss(model, batch)
    out: DualOutput = model.encoder(batch["pixels"], batch["tokens"])
    expected = contrastive_loss(out.image_features, out.text_features, out.logit_scale)
    assert terms["loss"].item() == pytest.approx(expected["loss"].item(), abs=1e-6)
    assert set(terms) == {"loss", "contrastive", "accuracy", "scale"}


def test_terms_are_named_and_sum_to_the_loss() -> None:
    one = recipe(objective="slip", margin=MarginConfig(gamma=0.5), ssl_weight=0.25)
    terms = {name: term.item() for name, term in one.loss(one.build(), one.batch(0)).items()}
    expected = {"loss", "contrastive", "ssl", "margin", "margin_raw", "margin_active", "scale", "accuracy"}
    assert set(terms) == expected
    assert terms["loss"] == pytest.approx(terms["contrastive"] + terms["ssl"] + terms["margin"], abs=1e-5)
    assert terms["margin"] == pytest.approx(0.5 * terms["margin_raw"], rel=1e-5) and terms["margin"] > 0
    assert 0 < terms["margin_active"] < 1


def test_without_margin_its_terms_are_looked_at_only() -> None:
    left, right = recipe(), recipe(margin=MarginConfig(gamma=0.0))
    model, batch = left.build(), left.batch(0)
    ours, theirs = left.loss(model, batch), right.loss(model, batch)
    assert ours["margin_raw"].item() > 0 and ours["margin"].item() == 0
    assert torch.equal(ours["loss"], theirs["loss"]) and torch.equal(ours["loss"], ours["contrastive"])


def test_seeds_alone_can_be_contrasted() -> None:
    one = recipe(contrast="seeds", margin=MarginConfig())
    model, batch = one.build(), one.batch(0)
    out: DualOutput = model.encoder(batch["pixels"], batch["tokens"])
    expected = contrastive_loss(out.image_features[:6], out.text_features[:6], out.logit_scale)["loss"]
    terms = one.loss(model, batch)
    assert terms["contrastive"].item() == pytest.approx(expected.item(), abs=1e-6)
    assert terms["margin"].item() > 0


def test_siglip_fits_a_bias_where_there_is_none() -> None:
    one = recipe(objective="siglip", margin=MarginConfig())
    model, batch = one.build(), one.batch(0)
    out, _, _ = model(batch["pixels"], batch["tokens"])
    held = torch.sigmoid(out.logit_scale * out.image_features @ out.text_features.T + model.bias).sum()
    assert held.item() == pytest.approx(12, rel=0.05)
    terms = one.loss(model, batch)
    terms["loss"].backward()
    assert {"siglip", "margin"} <= set(terms) and model.bias.grad is not None


def test_groups_are_no_negatives_of_each_other() -> None:
    groups = np.arange(N) // 4
    one = recipe(partners="none", batch_size=48, groups=groups)
    model, batch = one.build(), one.batch(0)
    assert sorted(batch["ids"].tolist()) == sorted(groups.tolist())
    plain = recipe(partners="none", batch_size=48)
    assert one.loss(model, batch)["loss"] < plain.loss(model, plain.batch(0))["loss"]


def test_bf16_stays_close() -> None:
    one = recipe(margin=MarginConfig())
    model, batch = one.build(), one.batch(0)
    plain = one.loss(model, batch)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = one.loss(model, batch)["loss"]
    assert low.dtype == torch.float32 and low.item() == pytest.approx(plain.item(), rel=0.02)


# -- the alarm -------------------------------------------------------------------------------------------------------


def test_random_partners_sound_the_alarm(tmp_path: Path) -> None:
    steps = {"fit": helip_fit(steps=20, learning_rate=1e-6, **QUICK)}
    with pytest.raises(DataError, match="closer than the hard pairs"):
        fit(recipe(partners="random", margin=MarginConfig(), alarm=True, **steps), tmp_path / "a", steps=20)
    with pytest.warns(UserWarning, match="closer than the hard pairs"):  # switched off, it still warns
        fit(recipe(partners="random", margin=MarginConfig(), **steps), tmp_path / "b", steps=12, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert np.mean([line["margin_active"] for line in lines]) == pytest.approx(0.5, abs=0.1)


def test_partners_it_knows_do_not_sound_it() -> None:
    one = recipe(alarm=True, margin=MarginConfig(), hard_per_seed=1, k_use=1)
    model = one.build()
    watch = one.watch
    assert watch is not None
    one.loss(model, one.batch(0))
    one.loss(model, one.batch(100))  # a run that goes on is not watched again
    assert watch.steps == 1


# -- training --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*closer than the hard pairs")
def test_training_learns_saves_and_resumes(tmp_path: Path) -> None:
    settings = helip_fit(steps=30, learning_rate=3e-3, **QUICK)
    one = recipe(fit=settings, valid=data(), margin=MarginConfig(), augment=AUGMENTS["shift"])
    before = retrieval_scores(encoder(), data())
    result = fit(one, tmp_path / "run", steps=30, progress=False)
    assert set(result.scores) == {
        f"{way}_r{k}_{language}"
        for way in ("image_to_text", "text_to_image") for k in (1, 5, 10) for language in ("en", "zh")
    }  # fmt: skip
    assert sum(result.scores.values()) > sum(before.values()) + 0.5
    saved = load_dual_encoder(result.folder)
    assert retrieval_scores(saved, data()) == pytest.approx(result.scores, abs=1e-6)
    with torch.no_grad():
        pixels = saved.prepare_images([data().image(0)])
        mean = load_ema(one, tmp_path / "run").encoder.encode_images(pixels)
        assert torch.allclose(saved.encode_images(pixels), mean, atol=1e-6)  # without averaging: the last weights

    # Killed half way, the run ends with the same bits.
    from huaben.errors import Cancelled

    def stop(event: Any) -> None:
        if event.kind == "log" and event.step == 13:
            raise Cancelled("enough")

    again = recipe(fit=settings, valid=data(), margin=MarginConfig(), augment=AUGMENTS["shift"])
    with pytest.raises(Cancelled):
        fit(again, tmp_path / "half", steps=30, on_event=stop, progress=False)
    fit(again, tmp_path / "half", resume=True, progress=False)
    left, right = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("run", "half"))
    assert all(torch.equal(left[name], right[name]) for name in left)
    # ... and other lists are another run.
    with pytest.raises(CheckpointError, match="recipe"):
        fit(recipe(fit=settings, pairs=lists(4)), tmp_path / "half", resume=True, progress=False)


def test_the_first_encoder_is_never_trained() -> None:
    one = recipe()
    before = {name: value.clone() for name, value in encoder().state_dict().items()}
    model = one.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    one.loss(model, one.batch(0))["loss"].backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in encoder().state_dict().items())
    fresh = one.build().encoder.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in fresh.items())


# -- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"batch_size": 13}, ConfigError, "one seed and 1 partners"),
        ({"batch_size": 96}, DataError, "batch_size=96 of 48 pairs"),
        ({"partners": "none", "margin": MarginConfig()}, ConfigError, "needs partners"),
        ({"partners": "nearest"}, ConfigError, "none of mined, random, none"),
        ({"objective": "triplet"}, ConfigError, "objective"),
        ({"pairs": None}, ConfigError, "without mined pairs"),
        ({"hard_per_seed": 0}, ConfigError, "hard_per_seed=0"),
        ({"ssl_weight": -1.0}, ConfigError, "negative"),
        ({"languages": ()}, ConfigError, "languages is empty"),
        ({"groups": np.zeros(3, np.int64)}, DataError, "groups"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        recipe(**changes)


def test_missing_captions_and_short_lists_are_refused() -> None:
    with pytest.raises(DataError, match="48 of 48 pairs have no caption in other"):
        recipe(languages=("other",)).build()
    short = lists()
    short.pairs[5, 3:] = -1
    with pytest.raises(DataError, match="fewer than k_use=6"):
        recipe(pairs=short).build()
    kept = recipe(pairs=short, drop_short=True)
    kept.build()
    assert 5 not in np.concatenate([kept.batch(step)["ids"][:6].numpy() for step in range(10)])
    recipe(pairs=short, k_use=3).build()


def test_augmentations_keep_shape_and_kind() -> None:
    image = data().image(0)
    for augment in (*AUGMENTS.values(), strong_view):
        if augment is None:
            continue
        one, other = (augment(image, np.random.default_rng(0)) for _ in range(2))
        assert one.shape == image.shape and one.dtype == np.uint8 and np.array_equal(one, other)
    with pytest.raises(ConfigError, match="no augmentation is called 'flip'"):
        named_augment("flip")


# -- several processes -----------------------------------------------------------------------------------------------

ARMS: dict[str, dict[str, Any]] = {
    "helip": {"margin": MarginConfig(directions="both", detach_scale=False), "hard_per_seed": 2},
    "slip": {"margin": MarginConfig(), "objective": "slip", "ssl_on_hard": False, "contrast": "seeds"},
    "siglip": {"margin": MarginConfig(), "objective": "siglip"},
    "plain": {"partners": "none"},
}


def child(arm: str, out: str) -> None:
    """One process of several."""
    fit_distributed(recipe(**ARMS[arm]), out, steps=2, progress=False)


def without_key_bias(name: str, value: torch.Tensor) -> torch.Tensor:
    """Softmax does not see a bias of the keys: its gradient is rounding alone, which Adam magnifies."""
    if not name.endswith("qkv.bias"):
        return value
    query, _, value = value.chunk(3)
    return torch.cat([query, value])


@pytest.mark.parametrize(
    "arm", ["helip", "slip", *(pytest.param(arm, marks=pytest.mark.slow) for arm in ("siglip", "plain"))]
)
def test_two_processes_train_as_one(arm: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    code = f"import test_recipes_helip as t; t.child({arm!r}, {str(tmp_path / 'two')!r})"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**environment, **group, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONWARNINGS": "ignore"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    fit(recipe(**ARMS[arm]), tmp_path / "one", steps=2, progress=False)
    ours, theirs = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("two", "one"))
    weights = [name for name in ours if name.startswith("model.")]
    assert weights and ours.keys() == theirs.keys()
    for name in weights:
        left, right = (without_key_bias(name, state[name]) for state in (ours, theirs))
        assert torch.allclose(left, right, atol=1e-5), name
    moments = [name for name in ours if ".exp_avg." in name]  # the gradients themselves
    assert len(moments) == len(weights)
    for name in moments:
        assert torch.allclose(ours[name], theirs[name], atol=1e-6), name
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("two", "one")
    ]
    for one, other in zip(*lines, strict=True):
        for term in ("loss", "grad_norm", *(("margin_raw", "margin_active") if arm != "plain" else ())):
            assert one[term] == pytest.approx(other[term], rel=2e-4, abs=1e-5), term


def test_the_model_is_a_module_of_one_forward() -> None:
    """All parameters take part in forward's output, so that wrappers for several processes see their gradients."""
    one = recipe(objective="slip", margin=MarginConfig())
    model = one.build()
    assert isinstance(model, HelipTraining)
    one.loss(model, one.batch(0))["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
