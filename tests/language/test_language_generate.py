from __future__ import annotations

import math

import pytest
import torch

from huaben.attention.scheme import scheme_config
from huaben.errors import ConfigError, ShapeError
from huaben.language.decoder import Decoder, DecoderConfig
from huaben.language.generate import SamplingConfig, Step, choose, generate, next_probabilities, pad_left, stream

V = 40


def make(scheme: str = "v2-kerple") -> Decoder:
    torch.manual_seed(0)
    model = Decoder(
        DecoderConfig(vocab_size=V, width=32, layers=2, heads=4, kv_heads=2, scheme=scheme_config(scheme, hidden=8))
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model.eval()


def prompts(rows: int = 2, length: int = 5) -> torch.Tensor:
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_greedy_takes_the_likeliest_token_each_time() -> None:
    model, ids = make(), prompts()
    found = generate(model, ids, max_new_tokens=8, temperature=0)
    expected = ids
    for _ in range(8):
        expected = torch.cat([expected, model(expected)[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(found, expected)


def test_the_same_seed_gives_the_same_text_and_another_another() -> None:
    model, ids = make(), prompts()
    first = generate(model, ids, max_new_tokens=12, seed=7)
    torch.rand(3)  # the global generator plays no part
    assert torch.equal(generate(model, ids, max_new_tokens=12, seed=7), first)
    assert not torch.equal(generate(model, ids, max_new_tokens=12, seed=8), first)
    assert not torch.equal(first[0, 5:], generate(model, ids[[0, 0]], max_new_tokens=12, seed=7)[1, 5:])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_does_not_depend_on_its_batch(temperature: float) -> None:
    model = make("v2-rope")
    texts = [[1, 2, 3, 4, 5, 6], [7, 8], [9]]
    ids, mask = pad_left(texts, pad_id=V + 5)  # a pad id outside the vocabulary never reaches the model
    together = generate(model, ids, mask=mask, max_new_tokens=6, temperature=temperature, seed=1)
    assert torch.equal(together[:, :6], ids)
    alone = generate(model, torch.tensor([texts[0]]), max_new_tokens=6, temperature=temperature, seed=1)
    assert torch.equal(together[0], alone[0])
    if temperature == 0:
        for row in (1, 2):
            alone = generate(model, torch.tensor([texts[row]]), max_new_tokens=6, temperature=0)
            assert torch.equal(together[row, 6:], alone[0, len(texts[row]) :])


def test_rows_stop_at_a_stop_token_and_are_padded() -> None:
    model, ids = make(), prompts(4)
    free = generate(model, ids, max_new_tokens=20, seed=2)[:, 5:]
    stop = int(free[0, 3])
    found = generate(model, ids, max_new_tokens=20, seed=2, stop_ids=[stop], pad_id=39)[:, 5:]
    for row in range(4):
        ends = (free[row] == stop).nonzero()
        end = int(ends[0]) + 1 if len(ends) else found.shape[1]
        assert torch.equal(found[row, :end], free[row, :end])
        assert (found[row, end:] == 39).all()
    by_default = generate(model, ids[:1], max_new_tokens=20, seed=2, stop_ids=[stop])
    assert by_default[0, -1] == stop
    assert by_default.shape[1] <= 5 + 4


def test_length_limits() -> None:
    model, ids = make(), prompts()
    assert generate(model, ids, max_new_tokens=3).shape == (2, 8)
    assert generate(model, ids, max_new_tokens=30, max_length=9).shape == (2, 9)


def test_steps_are_streamed_one_by_one() -> None:
    model, ids = make(), prompts()
    whole = generate(model, ids, max_new_tokens=5, seed=4)
    steps = list(stream(model, ids, max_new_tokens=5, seed=4))
    assert [step.index for step in steps] == [0, 1, 2, 3, 4]
    assert torch.equal(torch.stack([step.tokens for step in steps], 1), whole[:, 5:])
    seen: list[Step] = []
    generate(model, ids, max_new_tokens=5, seed=4, on_token=seen.append)
    assert [step.tokens.tolist() for step in seen] == [step.tokens.tolist() for step in steps]
    early = stream(model, ids, max_new_tokens=10**9, seed=4)
    assert torch.equal(next(early).tokens, steps[0].tokens)


def test_a_callback_can_stop_and_the_mode_is_left_alone() -> None:
    model = make().train()

    def stop(step: Step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, prompts(), on_token=stop)
    assert model.training
    assert torch.is_grad_enabled()
    assert not generate(model, prompts(), max_new_tokens=1).requires_grad


def test_training_works_after_generating() -> None:
    model = make("v2-rope")
    generate(model, prompts(), max_new_tokens=2)
    model(prompts()).sum().backward()
    assert model.embedding.weight.grad is not None


def test_probabilities_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.3, 0.2]]))

    def kept(**settings: float) -> list[float]:
        return next_probabilities(logits, SamplingConfig(**settings))[0].tolist()  # type: ignore[arg-type]

    assert kept() == pytest.approx([0.1, 0.4, 0.3, 0.2])
    assert kept(top_k=2) == pytest.approx([0, 4 / 7, 3 / 7, 0])
    assert kept(top_p=0.65) == pytest.approx([0, 4 / 7, 3 / 7, 0])
    assert kept(top_p=0.75) == pytest.approx([0, 4 / 9, 3 / 9, 2 / 9])
    assert kept(top_p=0.01) == pytest.approx([0, 1, 0, 0])
    assert kept(top_k=3, top_p=0.5) == pytest.approx([0, 4 / 7, 3 / 7, 0])  # of what top-k left
    assert kept(temperature=0.5) == pytest.approx([x / 0.30 for x in (0.01, 0.16, 0.09, 0.04)])
    assert kept(top_k=99, top_p=1.0) == pytest.approx([0.1, 0.4, 0.3, 0.2])
    equal = next_probabilities(torch.zeros(1, 4), SamplingConfig(top_k=2))
    assert equal[0].tolist() == pytest.approx([0.5, 0.5, 0, 0])


def test_draws_follow_the_probabilities() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.3, 0.2]])).expand(4000, -1)
    numbers = torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = choose(logits, SamplingConfig(), numbers).bincount(minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.4, 0.3, 0.2]), rtol=0, atol=0.03)
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    sharp = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]]).expand(2, -1)
    assert choose(sharp, SamplingConfig(), edges).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, r"top_p=0\.0"),
        ({"top_p": 1.5}, r"top_p=1\.5"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_length": 5}, "leaves no room after prompts of 5 tokens"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stream(make(), prompts(), **settings)  # type: ignore[arg-type]  # before the first step


def test_prompts_that_do_not_fit_are_refused() -> None:
    model, ids = make(), prompts()
    with pytest.raises(ShapeError, match="at least one token"):
        generate(model, ids[:, :0])
    with pytest.raises(ShapeError, match="expected int64"):
        generate(model, ids[0])
    with pytest.raises(ShapeError, match="prompts hold 45, the vocabulary runs from 0 to 39"):
        generate(model, torch.tensor([[1, 45]]))
    with pytest.raises(ShapeError, match="stop_ids hold 40"):
        generate(model, ids, stop_ids=[40])
    with pytest.raises(ShapeError, match="pad_id hold -1"):
        generate(model, ids, pad_id=-1)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(ShapeError, match="prompt 1 has no tokens"):
        generate(model, ids, mask=mask)
    mask[1, :3] = True
    with pytest.raises(ShapeError, match="not on the left"):
        generate(model, ids, mask=mask)
    for texts in ([], [[1], []]):
        with pytest.raises(ShapeError, match="has no tokens"):
            pad_left(texts)
