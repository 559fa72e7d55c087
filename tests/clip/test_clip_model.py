from __future__ import annotations

import math

import pytest
import torch

from huaben.clip.model import MAX_LOGIT_SCALE, PRESETS, Clip
from huaben.errors import CheckpointError, ConfigError, ShapeError

TINY = PRESETS["tiny"]


def make() -> Clip:
    torch.manual_seed(0)
    return Clip(TINY).eval()


def texts(rows: int = 3, length: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, TINY.vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))
    return ids, torch.ones_like(ids, dtype=torch.bool)


def pictures(rows: int = 3) -> torch.Tensor:
    return torch.rand(rows, 3, TINY.image_size, TINY.image_size, generator=torch.Generator().manual_seed(2)) * 2 - 1


@torch.no_grad()
def test_shapes_and_unit_length() -> None:
    model, (ids, mask) = make(), texts()
    assert model.text_states(ids, mask).shape == (3, 10, 32)
    assert model.image_tokens(pictures()).shape == (3, TINY.num_image_tokens, 32) == (3, 16, 32)
    for features in (model.text_features(ids, mask), model.image_features(pictures())):
        assert features.shape == (3, 32)
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(3))


@torch.no_grad()
def test_padding_changes_neither_states_nor_features() -> None:
    model, (ids, mask) = make(), texts()
    more = torch.cat([ids, torch.full((3, 8), 9)], 1), torch.cat([mask, torch.zeros(3, 8, dtype=torch.bool)], 1)
    torch.testing.assert_close(model.text_states(*more)[:, :10], model.text_states(ids, mask), rtol=0, atol=1e-5)
    torch.testing.assert_close(model.text_features(*more), model.text_features(ids, mask), rtol=0, atol=1e-5)


@torch.no_grad()
def test_image_tokens_keep_their_place() -> None:
    model, plain = make(), pictures(1)
    changed = plain.clone()
    changed[..., 12:14, 28:30] += 0.5  # inside the patch of row 1, column 3
    before, after = (model.image.stem(image).flatten(2).transpose(1, 2) for image in (plain, changed))
    assert int((after - before).abs().sum(-1)[0].argmax()) == 1 * 4 + 3


def test_the_logit_scale_is_bounded() -> None:
    model = make()
    assert model.logit_scale.item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        model.log_scale.fill_(math.log(1e4))
    assert model.logit_scale.item() == MAX_LOGIT_SCALE


@torch.no_grad()
def test_save_and_load_change_nothing(tmp_path) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    again = Clip.from_pretrained(tmp_path)
    assert torch.equal(again.image_features(pictures()), model.image_features(pictures()))
    assert torch.equal(again.text_features(*texts()), model.text_features(*texts()))
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(CheckpointError):
        Clip.from_pretrained(tmp_path)


def test_wrong_shapes_are_refused() -> None:
    model, (ids, mask) = make(), texts(1, 30)
    with pytest.raises(ShapeError, match="at most 24"):
        model.text_features(ids, mask)
    with pytest.raises(ShapeError, match="preprocess"):
        model.image_features(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    "change", [{"image_num_heads": 5}, {"patch_size": 6}, {"image_size": 36}, {"text_length": 0}, {"embedding_size": 0}]
)
def test_impossible_configs_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        TINY.replace(**change)
