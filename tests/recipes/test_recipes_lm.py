"""The language model's recipe: what a step sees, what it costs, and that a killed run ends with the same weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from huaben.errors import ConfigError, DataError
from huaben.language.bpe import BytePairTokenizer, load_tokenizer
from huaben.language.bytes import ByteTokenizer
from huaben.language.corpus import Corpus, build_corpus
from huaben.language.decoder import Decoder, DecoderConfig, next_token_loss
from huaben.recipes.lm import LMRecipe, lm_fit, named_scheme
from huaben.training import FitEvent, Recipe, fit, read_checkpoint

TOKENIZER = ByteTokenizer()
FIT: dict[str, Any] = {"log_every": 2, "checkpoint_every_s": 1e9, "prefetch": "none"}


def config(scheme: str = "v2-kerple", **changes: Any) -> DecoderConfig:
    small: dict[str, Any] = {"vocab_size": TOKENIZER.vocab_size, "width": 16, "layers": 1, "heads": 2}
    return DecoderConfig(**small | changes, scheme=named_scheme(scheme, hidden=4, train_length=16))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    texts = ["the cat and the dog. " * 30, "x", "一只猫和一只狗。" * 20]
    return build_corpus(texts, TOKENIZER, tmp_path_factory.mktemp("lm") / "c")


def recipe(corpus: Corpus, scheme: str = "v2-kerple", **changes: Any) -> LMRecipe:
    values: dict[str, Any] = {"length": 16, "batch_size": 4, "fit": lm_fit(steps=8, **FIT)}
    return LMRecipe(corpus, TOKENIZER, config(scheme), **values | changes)


def test_it_is_a_recipe_and_lowers_the_loss(corpus: Corpus, tmp_path: Path) -> None:
    made = recipe(corpus, valid=corpus, fit=lm_fit(steps=30, learning_rate=2e-2, **FIT))
    assert isinstance(made, Recipe)
    result = fit(made, tmp_path, steps=30, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert result.terms["loss"] < 0.8 * lines[0]["loss"]
    scores = result.scores
    assert scores["valid_perplexity"] == pytest.approx(math.exp(scores["valid_loss"]))
    assert scores["valid_bits_per_byte"] == pytest.approx(scores["valid_loss"] / math.log(2), rel=0.02)  # but for <eos>
    model = Decoder.from_pretrained(result.folder)
    assert model.config == made.model
    assert isinstance(load_tokenizer(result.folder), ByteTokenizer)
    card = json.loads((result.folder / "card.json").read_text())
    assert card["settings"]["corpus"]["fingerprint"] == corpus.fingerprint


def test_bits_per_byte_count_the_bytes_behind_tokens(tmp_path: Path) -> None:
    texts = ["the cat and the dog. " * 40]
    pairs = BytePairTokenizer.train(texts, vocab_size=280)
    corpus = build_corpus(texts, pairs, tmp_path / "c")
    made = LMRecipe(corpus, pairs, config(vocab_size=280), length=8, batch_size=2, valid=corpus)
    torch.manual_seed(0)
    scores = made.evaluate(made.build().eval())
    assert made.valid_batches is not None
    rows = [
        made.valid_batches(step)[0][:, 1:].numpy()
        for step in range(math.ceil(made.valid_batches.windows_per_epoch / 2))
    ]
    size, tokens = sum(len(pairs.decode_bytes(row.ravel())) for row in rows), sum(row.size for row in rows)
    assert size > 2 * tokens
    assert scores["valid_bits_per_byte"] == pytest.approx(scores["valid_loss"] * tokens / size / math.log(2))


@pytest.mark.parametrize("documents", [True, False])
def test_the_loss_is_the_cross_entropy_of_the_same_document(documents: bool, corpus: Corpus) -> None:
    made = recipe(corpus, length=64, batch_size=8, documents=documents)
    model = made.build()
    crossing = [step for step in range(20) if made.batches(step)[1].any()]
    step = crossing[0]
    batch = made.batch(step)
    ids, numbers = made.batches(step)
    assert (batch["documents"] is not None) == documents
    logits = model(ids, documents=numbers if documents else None)
    expected = next_token_loss(logits, ids, documents=numbers if documents else None)
    assert torch.allclose(made.loss(model, batch)["loss"], expected, atol=1e-5)
    if documents:
        inside = next(step for step in range(20) if not made.batches(step)[1].any())
        assert made.batch(inside)["documents"] is None


def test_shares_of_a_batch_average_to_its_loss_and_gradient(corpus: Corpus) -> None:
    made = recipe(corpus, length=64, batch_size=6)
    model = made.build()
    step = next(step for step in range(20) if made.batches(step)[1].any())
    batch = made.batch(step)
    whole = made.loss(model, batch)["loss"]
    gradients = torch.autograd.grad(whole, list(model.parameters()))
    parts = [made.loss(model, made.share(batch, rank, 3))["loss"] for rank in range(3)]
    mean = torch.stack(parts).mean()
    assert torch.allclose(mean, whole, atol=1e-6)
    for ours, theirs in zip(torch.autograd.grad(mean, list(model.parameters())), gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    with pytest.raises(ConfigError, match="batch_size=6 cannot be divided among 4"):
        made.share(batch, 0, 4)


def test_a_killed_run_resumes_to_the_same_bits(corpus: Corpus, tmp_path: Path) -> None:
    def kill(event: FitEvent) -> None:
        if event.kind == "log" and event.step == 6:
            raise MemoryError  # no checkpoint is written on the way out: step 6 is lost

    whole = fit(recipe(corpus), tmp_path / "whole", steps=8, progress=False)
    often = lm_fit(steps=8, **FIT | {"checkpoint_every_s": 0})
    with pytest.raises(MemoryError):
        fit(recipe(corpus, fit=often), tmp_path / "parts", steps=8, progress=False, on_event=kill)
    assert read_checkpoint(tmp_path / "parts")[0]["step"] == 5
    parts = fit(recipe(corpus), tmp_path / "parts", steps=8, resume=True, progress=False)
    left, right = (load_file(result.folder / "model.safetensors") for result in (whole, parts))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_the_name_tells_runs_apart(corpus: Corpus, tmp_path: Path) -> None:
    other = build_corpus(["other text " * 20], TOKENIZER, tmp_path / "c")
    names = {
        made.name
        for made in (
            recipe(corpus),
            recipe(corpus, "kerple"),
            recipe(corpus, "alibi"),
            recipe(corpus, "nope"),
            recipe(corpus, length=8),
            recipe(other),
        )
    }
    assert len(names) == 6
    assert recipe(corpus).name == recipe(corpus).name


def test_parts_that_do_not_fit_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vocab_size=256, the tokenizer has 258"):
        LMRecipe(corpus, TOKENIZER, config(vocab_size=256))
    pairs = BytePairTokenizer.train(["text"] * 9, vocab_size=262)
    with pytest.raises(ConfigError, match="do not belong together"):
        LMRecipe(corpus, pairs, config(vocab_size=300))
    with pytest.raises(DataError, match="one window"):
        recipe(corpus, length=10_000)


def test_schemes_go_by_either_name() -> None:
    assert named_scheme("dape2-kerple") == named_scheme("v2-kerple")
    with pytest.raises(ConfigError, match="did you mean"):
        named_scheme("dape2-kerpel")


def test_the_papers_schedule_is_the_default() -> None:
    made = lm_fit(steps=50_000)
    assert (made.betas, made.weight_decay, made.grad_clip, made.warmup_steps) == ((0.9, 0.95), 0.1, 1.0, 500)
    assert (made.decay, made.decay_share, made.lr_floor) == ("cosine", 1.0, 0.1)
    assert lm_fit(steps=10).warmup_steps == 1


def test_without_averaging_the_saved_model_is_the_last_one(corpus: Corpus, tmp_path: Path) -> None:
    result = fit(recipe(corpus), tmp_path, steps=3, progress=False)
    saved = load_file(result.folder / "model.safetensors")
    state = load_file(tmp_path / "checkpoint.safetensors")
    assert all(np.array_equal(saved[name].numpy(), state[f"model.{name}"].numpy()) for name in saved)
