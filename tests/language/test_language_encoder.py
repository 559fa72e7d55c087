from __future__ import annotations

import json

import pytest
import torch

from huaben.errors import CheckpointError, ConfigError, ShapeError
from huaben.language.encoder import PRESETS, TextEncoder, position_buckets

TINY = PRESETS["tiny"]


def make(seed: int = 0) -> TextEncoder:
    torch.manual_seed(seed)
    return TextEncoder(TINY).eval()


def batch(rows: int = 3, length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, TINY.vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))
    return ids, torch.ones_like(ids, dtype=torch.bool)


@torch.no_grad()
def test_padding_never_changes_the_states_of_tokens() -> None:
    model, (ids, mask) = make(), batch()
    alone = model(ids, mask)
    padded_ids = torch.cat([ids, torch.full((3, 9), 7)], 1)
    padded = model(padded_ids, torch.cat([mask, torch.zeros(3, 9, dtype=torch.bool)], 1))
    torch.testing.assert_close(padded[:, :12], alone, rtol=0, atol=1e-5)
    assert not torch.allclose(model(padded_ids, torch.ones(3, 21, dtype=torch.bool))[:, :12], alone, atol=1e-3)


@torch.no_grad()
def test_states_depend_on_order_and_on_both_sides() -> None:
    model, (ids, mask) = make(), batch(1)
    states = model(ids, mask)
    assert not torch.allclose(model(ids.flip(1), mask).flip(1), states, atol=1e-3)
    changed = ids.clone()
    changed[0, 6] = 5 + (changed[0, 6] - 4) % 300
    moved = (model(changed, mask) - states).abs().amax(-1)[0]
    assert (moved > 1e-5).all()


@torch.no_grad()
def test_a_row_without_tokens_stays_finite() -> None:
    model, (ids, mask) = make(), batch()
    mask[1] = False
    states = model(ids, mask)
    assert states.isfinite().all()
    assert (model.pool(states, mask)[1] == 0).all()


@torch.no_grad()
def test_pool_is_the_mean_of_the_tokens() -> None:
    states = torch.randn(2, 5, 4)
    mask = torch.tensor([[True, True, False, False, False], [True] * 5])
    pooled = TextEncoder.pool(states, mask)
    torch.testing.assert_close(pooled[0], states[0, :2].mean(0))
    torch.testing.assert_close(pooled[1], states[1].mean(0))


def test_position_buckets_known_values() -> None:
    row = position_buckets(200, 32, 128)[100].tolist()
    assert row[100] == 0
    assert (row[99], row[93], row[101], row[107]) == (1, 7, 17, 23)
    assert row[92] == 8
    assert (row[0], row[199]) == (15, 31)
    assert row[:101] == sorted(row[:101], reverse=True)


def test_save_and_load_change_nothing(tmp_path) -> None:
    model, (ids, mask) = make(), batch()
    model.save_pretrained(tmp_path)
    again = TextEncoder.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(ids, mask), model(ids, mask))
    assert again.config == model.config


def test_shapes_that_differ_are_refused() -> None:
    ids, mask = batch()
    with pytest.raises(ShapeError, match="hint"):
        make()(ids, mask[:, :-1])


@pytest.mark.parametrize("change", [{"num_heads": 0}, {"num_buckets": 30}, {"max_distance": 4}])
def test_impossible_configs_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        TINY.replace(**change)


def peer(folder, *, feed_forward: str = "gated-gelu", model_type: str = "t5"):
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=90, d_model=24, d_kv=10, d_ff=40, num_layers=3, num_heads=2, feed_forward_proj=feed_forward,
        relative_attention_num_buckets=8, relative_attention_max_distance=20, dropout_rate=0.0,
    )  # fmt: skip
    torch.manual_seed(3)
    model = transformers.T5EncoderModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the untrained biases and norms are zeros and ones
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "model_type": model_type}))
    return model


@pytest.mark.parity
@pytest.mark.parametrize("model_type", ["t5", "mt5"])
def test_transformers_folder_gives_the_same_states(tmp_path, model_type: str) -> None:
    theirs = peer(tmp_path, model_type=model_type)
    ours = TextEncoder.from_pretrained(tmp_path)
    ids = torch.randint(0, 90, (3, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(40)[None] < torch.tensor([[40], [25], [1]])
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        torch.testing.assert_close(ours(ids, mask)[mask], expected[mask], rtol=1e-4, atol=2e-5)


@pytest.mark.parity
def test_transformers_folder_with_a_plain_feed_forward_is_refused(tmp_path) -> None:
    peer(tmp_path, feed_forward="relu")
    with pytest.raises(CheckpointError, match="gated-gelu"):
        TextEncoder.from_pretrained(tmp_path)
