"""Position schemes by name: what they are made of, and cached decoding with each of them."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from huaben.attention.adaptive import ScoreConv, ScoreMLP
from huaben.attention.positions import RandomizedRope
from huaben.attention.scheme import SCHEMES, Position, Scheme, SchemeConfig, scheme_config
from huaben.errors import ConfigError

HEADS, WIDTH, LENGTH = 4, 8, 14


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make(name: str) -> Scheme:
    """A scheme in fp64 whose parameters are all away from zero."""
    made = Scheme(scheme_config(name, hidden=6, train_length=5), HEADS, WIDTH).double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def states() -> list[Tensor]:
    return [torch.randn(3, n, LENGTH, WIDTH, dtype=torch.float64) for n in (HEADS, 2, 2)]


class Cache:
    """Keys and values of what was read so far, keys already turned."""

    def __init__(self, made: Scheme, start: Tensor | None) -> None:
        self.made, self.start, self.length = made, start, 0
        self.k, self.v = torch.zeros(2, 3, 2, 0, WIDTH, dtype=torch.float64).unbind()

    def read(self, q: Tensor, k: Tensor, v: Tensor, impl: str) -> Tensor:
        end = self.length + q.shape[2]
        positions = torch.arange(self.length, end)
        if self.start is not None:
            positions = (positions - self.start[:, None]).clamp(min=0)
        self.k = torch.cat((self.k, self.made.rotate(k, positions)), dim=2)
        self.v = torch.cat((self.v, v), dim=2)
        q = self.made.rotate(q, positions)
        out: Tensor = self.made(q, self.k, self.v, q_offset=self.length, start=self.start, impl=impl)
        self.length = end
        return out


@pytest.mark.parametrize("impl", ["naive", "rows"])
@pytest.mark.parametrize("name", SCHEMES)
def test_cached_decoding_equals_one_pass(name: str, impl: str) -> None:
    made, (q, k, v) = make(name), states()
    for start in (None, torch.tensor([0, 3, 6])):
        full = Cache(made, start).read(q, k, v, "naive")
        for split in (0, 1, 6, 13):
            cache = Cache(made, start)
            steps = [slice(0, split), *(slice(t, t + 1) for t in range(split, LENGTH))]
            parts = [cache.read(*(x[:, :, step] for x in (q, k, v)), impl) for step in steps if step.stop > step.start]
            torch.testing.assert_close(torch.cat(parts, dim=2), full, rtol=0, atol=1e-11)
    for row, begin in enumerate((0, 3, 6)):
        alone = [x[row : row + 1, :, begin:] for x in (q, k, v)]
        positions = torch.arange(LENGTH - begin)
        out = made(made.rotate(alone[0], positions), made.rotate(alone[1], positions), alone[2], impl=impl)
        torch.testing.assert_close(full[row : row + 1, :, begin:], out, rtol=0, atol=1e-11)


def test_every_position_has_a_name_and_adapters_theirs() -> None:
    assert set(get_args(Position)) < set(SCHEMES)
    assert len(SCHEMES) == len(get_args(Position)) + 12
    for name, config in SCHEMES.items():
        made = Scheme(config, HEADS, WIDTH)
        assert isinstance(made.score, ScoreMLP) == name.startswith("dape-")
        assert isinstance(made.score, ScoreConv) == name.startswith("v2-")
        assert (made.rotary is not None) == name.endswith(("rope", "yarn"))
        if made.score is not None:
            assert made.score.with_bias == (made.bias is not None)


@pytest.mark.parametrize("position", ["cope", "transformer_xl", "yarn", "randomized_rope", "kerple_power"])
@pytest.mark.parametrize("adapter", ["mlp", "conv"])
def test_any_position_takes_any_adapter(position: str, adapter: str) -> None:
    made = Scheme(SchemeConfig.from_dict({"position": position, "adapter": adapter}), HEADS, WIDTH).double().eval()
    q, k, v = states()
    positions = torch.arange(LENGTH)
    q, k = made.rotate(q, positions), made.rotate(k, positions)
    full = made(q, k, v, impl="rows")
    torch.testing.assert_close(made(q[:, :, :9], k[:, :, :9], v[:, :, :9]), full[:, :, :9], rtol=0, atol=1e-12)
    plain = Scheme(SchemeConfig.from_dict({"position": position}), HEADS, WIDTH).double().eval()
    plain.load_state_dict({n: x for n, x in made.state_dict().items() if not n.startswith("score")})
    assert float((plain(q, k, v) - full).detach().abs().max()) > 1e-6


def test_a_config_survives_json_and_refuses_nonsense() -> None:
    config = scheme_config("v2-kerple", kernel_size=5, hidden=10)
    assert SchemeConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="did you mean 'v2-kerple'"):
        scheme_config("v2-kerpel")
    with pytest.raises(ConfigError, match="no field 'kernel'"):
        scheme_config("v2-kerple", kernel=3)
    with pytest.raises(ConfigError, match="position='ropee'"):
        SchemeConfig(position="ropee")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="kernel_size=4"):
        scheme_config("v2-nope", kernel_size=4)
    with pytest.raises(ConfigError, match="hidden=0"):
        scheme_config("v2-nope", hidden=0)


def test_a_state_of_another_scheme_does_not_load() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        make("v2-kerple").load_state_dict(make("dape-kerple").state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        make("kerple").load_state_dict(make("dape-kerple").state_dict())


def test_randomised_positions_change_with_each_training_pass_and_survive_checkpointing() -> None:
    made = Scheme(scheme_config("randomized_rope", randomized_max=64), HEADS, WIDTH).double()
    assert isinstance(made.rotary, RandomizedRope)
    positions = torch.arange(LENGTH)

    def layer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = made(made.rotate(q, positions), made.rotate(k, positions), v)
        return out

    q, k, v = (x.requires_grad_() for x in states())
    assert float((layer(q, k, v) - layer(q, k, v)).detach().abs().max()) > 1e-6
    grads = []
    for call in (layer, lambda *x: checkpoint(layer, *x, use_reentrant=False)):
        torch.manual_seed(7)
        grads.append(torch.autograd.grad(call(q, k, v).square().sum(), (q, k, v)))
    for ours, again in zip(*grads, strict=True):
        torch.testing.assert_close(ours, again, rtol=0, atol=0)
    made.eval()
    torch.testing.assert_close(layer(q, k, v), layer(q, k, v), rtol=0, atol=0)
