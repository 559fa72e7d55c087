"""The transformer for strings of symbols, its training, and what guards it from looking ahead."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from huaben.attention.scheme import SCHEMES, Scheme, scheme_config
from huaben.errors import ConfigError, ShapeError
from huaben.language.chomsky import TASKS
from huaben.language.sequence_model import SequenceModel, SequenceModelConfig, answer_loss
from huaben.language.sequence_training import (
    SequenceFit,
    build_model,
    task_accuracy,
    task_model_config,
    train_on_task,
    train_steps,
)


def config(name: str = "nope", **changes: object) -> SequenceModelConfig:
    values = {"input_size": 5, "output_size": 3, "width": 16, "layers": 2, "heads": 2, **changes}
    return SequenceModelConfig(scheme=scheme_config(name, hidden=4, train_length=12), **values)  # type: ignore[arg-type]


def symbols(batch: int = 3, length: int = 9, high: int = 5) -> Tensor:
    return torch.randint(high, (batch, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", SCHEMES)
def test_an_answer_is_the_output_at_its_placeholders(name: str, causal: bool) -> None:
    if name in ("cope", "transformer_xl") and not causal:
        pytest.skip("defined for causal attention")
    model = build_model(config(name, causal=causal, norm="pre" if causal else "post"), 0).double().eval()
    ids = symbols()
    whole = model(torch.cat([ids, torch.full((3, 4), model.placeholder)], dim=1))
    assert whole.shape == (3, 13, 3)
    torch.testing.assert_close(model.answer(ids, 4), whole[:, -4:], rtol=0, atol=1e-9)
    torch.testing.assert_close(model(ids, last=2), model(ids)[:, -2:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["nope", "rope", "kerple", "fire", "dape-kerple", "v2-kerple", "v2-nope"])
def test_a_causal_model_ignores_what_comes_later(name: str) -> None:
    ids = symbols(1, 10)
    other = ids.clone()
    other[:, 6:] = (other[:, 6:] + 1) % 5
    for causal in (True, False):
        model = build_model(config(name, causal=causal), 0).double().eval()
        changed = (model(ids) - model(other)).abs().amax((0, 2)) > 1e-12
        assert changed[6:].all()
        assert changed[:6].any() == (not causal)


def score_map(scheme: Scheme, q: Tensor, k: Tensor, *, guarded: bool) -> Tensor:
    """Return V2's scores (B, H, L, L), with or without the zeros at later keys that come before the first convolution."""
    assert scheme.score is not None and scheme.bias is not None
    length = q.shape[2]
    places = torch.arange(length)
    scores = q @ k.mT * q.shape[-1] ** -0.5
    bias = scheme.bias.rows(places, places, dtype=q.dtype).expand_as(scores)
    z = torch.cat([scores, bias], dim=1)
    if guarded:
        z = z.tril()
    return scores + bias + scheme.score(F.pad(z, (0, 2)))[..., :length]


class Leaky(Scheme):
    """V2 without the guard."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **_: object) -> Tensor:  # type: ignore[override]
        hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
        scores = score_map(self, q, k, guarded=False).masked_fill(hidden, -math.inf)
        return scores.softmax(-1) @ v


def test_the_zeros_before_the_first_convolution_are_what_keeps_v2_causal() -> None:
    torch.manual_seed(0)
    scheme = Scheme(scheme_config("v2-kerple", hidden=16), 4, 8).double()
    q, k = torch.randn(2, 1, 4, 12, 8, dtype=torch.float64)
    other = k.clone()
    other[:, :, 7:] += 1.0
    seen = torch.ones(12, 12).tril().bool()[:7]
    for guarded in (True, False):
        before, after = (score_map(scheme, q, keys, guarded=guarded)[:, :, :7] for keys in (k, other))
        change = ((before - after).abs() * seen).max()
        assert change == 0 if guarded else change > 0.05
    # The guarded map is the one the layer attends with.
    scores = score_map(scheme, q, k, guarded=True).masked_fill(torch.ones(12, 12).triu(1).bool(), -math.inf)
    torch.testing.assert_close(scheme(q, k, q), scores.softmax(-1) @ q, rtol=0, atol=1e-10)


def test_without_the_guard_a_model_predicts_random_symbols() -> None:
    """The next symbol of a random string cannot be known: a loss below log 2 is a look at the answer."""
    losses = {}
    for guarded in (True, False):
        model = build_model(
            config("v2-kerple", input_size=2, output_size=2, layers=1, norm="pre", heads=4, width=32), 0
        )
        if not guarded:
            for block in model.blocks:
                leaky = Leaky(block.attention.scheme.config, 4, 8)
                leaky.load_state_dict(block.attention.scheme.state_dict())
                block.attention.scheme = leaky
        generator = torch.Generator().manual_seed(0)

        def loss_at(step: int, model: SequenceModel = model, generator: torch.Generator = generator) -> Tensor:
            ids = torch.randint(2, (64, 13), generator=generator)
            return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

        fit = SequenceFit(steps=120, learning_rate=1e-2, warmup_steps=5)
        losses[guarded] = float(train_steps(model, loss_at, fit, seed=0).losses[-20:].mean())
    assert losses[True] == pytest.approx(math.log(2), abs=0.02)
    assert losses[False] < math.log(2) - 0.1


def test_training_repeats_itself_and_learns() -> None:
    task = TASKS["bucket_sort"]
    shape = task_model_config(task, scheme_config("kerple"), longest=4, width=32, layers=1, heads=2)
    assert shape.scheme.train_length == 8
    fit = SequenceFit(steps=60, batch=32, learning_rate=3e-3, warmup_steps=5)
    runs = [train_on_task(task, shape, fit, longest=4, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(runs[0].losses, runs[1].losses)
    assert not torch.equal(runs[0].losses, runs[2].losses)
    assert runs[0].losses.shape == (60,) and runs[0].skipped == 0
    assert not runs[0].model.training
    scores = task_accuracy(runs[0].model, task, [2, 3, 4], batch=64)
    assert set(scores) == {2, 3, 4}
    assert min(scores.values()) > 0.35  # guessing: 0.2
    untrained = task_accuracy(build_model(shape, 0).eval(), task, [2, 3, 4], batch=64)
    assert sum(untrained.values()) < sum(scores.values()) - 0.3


def test_accuracy_counts_symbols_up_to_the_terminator() -> None:
    task = TASKS["stack_manipulation"]
    model = build_model(task_model_config(task, scheme_config("nope"), longest=6, width=16, layers=1, heads=2), 0)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))  # always the terminator
    batch = task_accuracy(model.eval(), task, [6], batch=256)[6]
    from huaben.language.chomsky import held_out_batch

    mask = held_out_batch(task, 6, batch=256).mask
    assert batch == pytest.approx(256 / mask.sum())  # one terminator a string


def test_the_answer_loss_is_a_sum_over_symbols_and_a_mean_over_strings() -> None:
    assert float(answer_loss(torch.zeros(4, 7, 3), torch.zeros(4, 7, dtype=torch.long))) == pytest.approx(
        7 * math.log(3)
    )


def test_a_gradient_that_is_not_finite_is_left_out() -> None:
    model = build_model(config(), 0)
    before = model.head.weight.detach().clone()
    fit = SequenceFit(steps=3, warmup_steps=0, decay_share=0.0)
    done = train_steps(model, lambda step: model.head.weight.sum() * math.inf, fit, seed=0)
    assert done.skipped == 3
    assert torch.equal(model.head.weight, before)


def test_the_learning_rate_climbs_stays_and_falls() -> None:
    fit = SequenceFit(steps=100, learning_rate=1.0, warmup_steps=10, decay_share=0.2)
    assert [fit.rate(step) for step in (0, 9, 50, 80, 90, 99)] == pytest.approx([0.1, 1, 1, 1, 0.5, 0.05])
    assert SequenceFit(decay_share=0.0, warmup_steps=0).rate(4999) == pytest.approx(1e-3)


def test_two_way_schemes_tell_past_from_future() -> None:
    task = TASKS["parity_check"]
    shape = task_model_config(task, scheme_config("alibi"), longest=5, causal=False)
    assert (shape.scheme.alibi_past_bonus, shape.scheme.t5_bidirectional, shape.scheme.train_length) == (0.5, True, 6)
    assert task_model_config(task, scheme_config("alibi"), longest=5).scheme.alibi_past_bonus == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers=0"),
        ({"heads": 3}, "num_heads=3"),
        ({"norm": "none"}, "norm='none'"),
        ({"output_size": 0}, "output_size=0"),
    ],
)
def test_an_impossible_shape_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_impossible_inputs_and_fits_are_refused() -> None:
    model = build_model(config(), 0)
    with pytest.raises(ShapeError, match="expected \\(batch, length\\)"):
        model(symbols()[0])
    with pytest.raises(ShapeError, match="0 symbols"):
        model.answer(symbols(), 0)
    for name, value in (("steps", 0), ("learning_rate", 0.0), ("decay_share", 2.0)):
        with pytest.raises(ConfigError, match=name):
            SequenceFit(**{name: value})  # type: ignore[arg-type]
