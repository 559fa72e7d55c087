"""Fixed windows, growing context: what is drawn, what is scored, and that shortcuts change no number."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from huaben.attention.scheme import SCHEMES, scheme_config
from huaben.errors import ConfigError, DataError
from huaben.language.bytes import ByteTokenizer
from huaben.language.corpus import Corpus, build_corpus
from huaben.language.decoder import Decoder, DecoderConfig
from huaben.language.extrapolation import (
    LengthScore,
    evaluate_lengths,
    last_states,
    mean_interval,
    score_length,
    target_windows,
)

TOKENIZER = ByteTokenizer()


def decoder(scheme: str = "kerple", layers: int = 2, **changes: object) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=TOKENIZER.vocab_size,
        width=16,
        layers=layers,
        heads=2,
        scheme=scheme_config(scheme, hidden=4, train_length=8),
        **changes,  # type: ignore[arg-type]
    )
    return Decoder(config).eval()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    rng = np.random.default_rng(0)
    texts = ["".join(chr(97 + value) for value in rng.integers(0, 26, size)) for size in (300, 20, 500)]
    return build_corpus(texts, TOKENIZER, tmp_path_factory.mktemp("corpus") / "c")


# -- windows -------------------------------------------------------------------------------------------------------


def test_windows_lie_in_one_document_and_do_not_overlap(corpus: Corpus) -> None:
    ends = target_windows(corpus, windows=30, longest=64, scored=16, seed=1)
    assert len(ends) == 30 and (np.diff(ends) >= 16).all()
    first, last = corpus.documents_at(ends - 65), corpus.documents_at(ends - 1)
    assert (first == last).all() and set(last.tolist()) == {0, 2}
    assert not np.isin(corpus.tokens[ends - 1], TOKENIZER.eos_id).any()
    assert (target_windows(corpus, windows=30, longest=64, scored=16, seed=1) == ends).all()
    assert (target_windows(corpus, windows=30, longest=64, scored=16, seed=2) != ends).any()


def test_the_last_possible_window_is_used(tmp_path: Path) -> None:
    exact = build_corpus(["abcdefghi"], TOKENIZER, tmp_path / "c")  # 9 tokens and <eos>
    assert target_windows(exact, windows=1, longest=8, scored=8).tolist() == [9]
    with pytest.raises(DataError, match="found 0 windows of 9 tokens with 9"):
        target_windows(exact, windows=1, longest=9, scored=9)
    assert target_windows(exact, windows=1, longest=9, scored=9, within_documents=False).tolist() == [10]


def test_impossible_windows_are_refused(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match="windows=0"):
        target_windows(corpus, windows=0)
    with pytest.raises(DataError, match="hint: ask for fewer windows"):
        target_windows(corpus, windows=1, longest=600)
    with pytest.raises(DataError, match="length 64 needs 65"):
        score_length(decoder(), corpus, np.asarray([60]), 64)
    with pytest.raises(ConfigError, match="lengths"):
        evaluate_lengths(decoder(), corpus, lengths=[0, 8])


# -- scores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_last_states_are_the_models_own(name: str) -> None:
    ids = torch.randint(0, 256, (2, 21), generator=torch.Generator().manual_seed(1))
    for layers, changes in ((1, {}), (3, {"share_scheme": True, "kv_heads": 1})):
        model = decoder(name, layers, **changes).double()
        for count in (1, 5, 21, 30):
            expected = model.states(ids)[:, -count:]
            assert torch.allclose(last_states(model, ids, count), expected, atol=1e-10), (layers, count)


@pytest.mark.parametrize("name", ["v2-kerple", "rope"])
def test_losses_are_those_of_the_whole_models_logits(name: str, corpus: Corpus) -> None:
    model = decoder(name).double()
    ends = target_windows(corpus, windows=5, longest=40, scored=12, seed=3)
    for length in (8, 12, 40):
        score = score_length(model, corpus, ends, length, scored=12)
        assert score.losses.shape == (5, min(12, length))
        for end, losses in zip(ends, score.losses, strict=True):
            ids = torch.from_numpy(corpus.tokens[end - length - 1 : end].astype(np.int64))[None]
            scores = model(ids[:, :-1])[0].log_softmax(-1)
            expected = -scores.gather(-1, ids[0, 1:, None])[-len(losses) :, 0]
            assert np.allclose(losses, expected.detach().numpy(), atol=1e-5)


def test_every_length_scores_the_same_tokens_and_batches_change_nothing(corpus: Corpus) -> None:
    model = decoder("dape-kerple")
    seen: list[tuple[int, int]] = []
    found = evaluate_lengths(
        model, corpus, lengths=[40, 8, 16, 8], windows=7, scored=12, on_progress=lambda *at: seen.append(at)
    )
    assert [score.length for score in found.scores] == [8, 16, 40]
    assert [score.scored for score in found.scores] == [8, 12, 12]
    assert found.shared == 8
    assert seen[-1] == (40, 7)
    alone = score_length(model, corpus, found.ends, 16, scored=12, batch_tokens=1)
    assert np.allclose(alone.losses, found.scores[1].losses, atol=1e-5)
    record = found.to_dict()
    assert record["lengths"]["16"]["scored"] == 12
    by_hand = math.exp(found.scores[1].losses[:, -8:].mean())
    assert record["lengths"]["16"]["perplexity"]["mean"] == pytest.approx(by_hand, abs=1e-4)
    assert not model.training


def test_a_model_that_needs_only_the_last_token_does_not_care_about_context(corpus: Corpus) -> None:
    model = decoder("nope", layers=1)
    with torch.no_grad():
        model.blocks[0].attention.out.weight.zero_()  # type: ignore[union-attr,operator]
    found = evaluate_lengths(model, corpus, lengths=[4, 64], windows=6, scored=4)
    assert np.allclose(found.scores[0].losses, found.scores[1].losses, atol=1e-5)


def test_a_corpus_of_another_tokenizer_is_refused(corpus: Corpus) -> None:
    small = Decoder(DecoderConfig(vocab_size=200, width=16, layers=1, heads=2, scheme=scheme_config("nope")))
    with pytest.raises(DataError, match="vocabulary of 258, the model one of 200"):
        evaluate_lengths(small, corpus, lengths=[8], windows=2, scored=8)


# -- intervals -----------------------------------------------------------------------------------------------------


def test_intervals_cover_the_mean_and_narrow() -> None:
    rng = np.random.default_rng(0)
    few, many = (mean_interval(rng.normal(2.0, 1.0, count)) for count in (20, 2000))
    for interval in (few, many):
        assert interval.low < interval.mean < interval.high
    width = many.high - many.low
    assert width == pytest.approx(2 * 1.96 / math.sqrt(2000), rel=0.1)
    assert few.high - few.low > 5 * width
    assert few.exp().high == pytest.approx(math.exp(few.high))
    assert mean_interval([1.0, 2.0, 3.0], 4) == mean_interval([1.0, 2.0, 3.0], 4)
    with pytest.raises(DataError, match="shape"):
        mean_interval([])


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for trial in range(200):
        interval = mean_interval(rng.normal(0.0, 1.0, 60), seed=trial, resamples=300)
        inside += interval.low <= 0 <= interval.high
    assert 176 <= inside <= 199


def test_a_score_can_be_read_for_fewer_tokens() -> None:
    score = LengthScore(4, np.asarray([[9.0, 1.0, 2.0], [9.0, 3.0, 4.0]]))
    assert score.loss(2).mean == 2.5
    assert score.perplexity(1).mean == pytest.approx(math.exp(3))
    assert score.loss().mean == pytest.approx(28 / 6)
