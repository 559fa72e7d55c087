"""Attention against plain formulas, and what rotation promises."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from huaben.attention import (
    MLP,
    AttentionPooler,
    CrossAttention,
    LayerNorm,
    SelfAttention,
    apply_rotary,
    rotary_at,
    rotary_table,
    sinusoidal_embedding,
)
from huaben.attention.rope import as_rotation
from huaben.errors import ConfigError, ShapeError


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def max_abs(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


def turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotation as the paper writes it: (a, b) -> (a cos - b sin, a sin + b cos)."""
    out = torch.empty_like(states)
    out[..., 0::2] = states[..., 0::2] * cos[..., 0::2] - states[..., 1::2] * sin[..., 0::2]
    out[..., 1::2] = states[..., 0::2] * sin[..., 0::2] + states[..., 1::2] * cos[..., 0::2]
    return out


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head: (N, d), (S, d), (S, d)."""
    return torch.softmax(q @ k.T / math.sqrt(q.shape[-1]), dim=-1) @ v


def test_apply_rotary_equals_the_formula():
    states = torch.randn(2, 6, 3, 8)
    cos, sin = rotary_table(2, 3, 8)
    expected = turned(states, cos[None, :, None], sin[None, :, None])
    torch.testing.assert_close(apply_rotary(states, cos, sin), expected)
    assert apply_rotary(states.bfloat16(), cos, sin).dtype == torch.bfloat16
    with pytest.raises(ShapeError, match="do not fit"):
        apply_rotary(states, cos[:4], sin[:4])


@pytest.mark.parametrize("move", [(3.0, 0.0), (0.0, -2.5), (1.25, 7.0)])
def test_rotated_logits_depend_on_position_differences_only(move):
    q, k = torch.randn(1, 12, 2, 16), torch.randn(1, 12, 2, 16)
    y, x = torch.rand(1, 12) * 32, torch.rand(1, 12) * 32

    def logits(dy: float, dx: float) -> Tensor:
        rope = rotary_at(y + dy, x + dx, 16)
        return torch.einsum("bnhd,bmhd->bhnm", apply_rotary(q, *rope), apply_rotary(k, *rope))

    torch.testing.assert_close(logits(0, 0), logits(*move), rtol=0, atol=5e-5)
    rope = rotary_at(y, x, 16)
    other = rotary_at(y + 1, x, 16)
    moved = torch.einsum("bnhd,bmhd->bhnm", apply_rotary(q, *rope), apply_rotary(k, *other))
    assert max_abs(moved, logits(0, 0)) > 0.1


def test_self_attention_equals_the_formula():
    attention = SelfAttention(16, 2)
    for norm in (attention.q_norm, attention.k_norm):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    states, (cos, sin) = torch.randn(1, 6, 16), rotary_table(2, 3, 8)
    weights, biases = attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)
    q, k, v = (F.linear(states[0], w, b) for w, b in zip(weights, biases, strict=True))
    heads = []
    for head in range(2):
        part = slice(8 * head, 8 * head + 8)
        query, key = turned(attention.q_norm(q[:, part]), cos, sin), turned(attention.k_norm(k[:, part]), cos, sin)
        heads.append(softmax_attention(query, key, v[:, part]))
    expected = attention.out_proj(torch.cat(heads, dim=-1))
    found = attention(states, as_rotation((cos, sin)).unsqueeze(-2))
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-5)


def cross_case(num_text: int, num_context: int) -> tuple[CrossAttention, Tensor, Tensor, Tensor, Tensor]:
    attention = CrossAttention(16, 2, 10)
    for norm in (attention.q_norm, attention.k_norm):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    positions = torch.rand(1, num_context, 2) * 32
    return attention, torch.randn(1, 6, 16), torch.randn(1, num_text, 10), torch.randn(1, num_context, 10), positions


def run_cross(
    attention: CrossAttention,
    states: Tensor,
    text: Tensor,
    context: Tensor | None,
    positions: Tensor,
    move: float = 0.0,
) -> Tensor:
    y, x = torch.arange(6.0) + move, 2 * torch.arange(6.0)
    rotation = as_rotation(rotary_at(y, x, 8)).unsqueeze(-2)
    placed = as_rotation(rotary_at(positions[..., 0] + move, positions[..., 1], 8)).unsqueeze(-2)
    keys, values = attention.keys_values(text, context, placed)
    return attention(states, keys, values, rotation)


def test_cross_attention_with_context_equals_the_formula():
    attention, states, text, context, positions = cross_case(3, 2)
    cos, sin = rotary_at(torch.arange(6.0), 2 * torch.arange(6.0), 8)
    context_cos, context_sin = rotary_at(positions[0, :, 0], positions[0, :, 1], 8)
    tokens = torch.cat([text, context], dim=1)[0]
    k, v = attention.kv_proj(tokens).chunk(2, dim=-1)
    q = attention.q_proj(states[0])
    heads = []
    for head in range(2):
        part = slice(8 * head, 8 * head + 8)
        keys = attention.k_norm(k[:, part])
        keys = torch.cat([keys[:3], turned(keys[3:], context_cos, context_sin)])
        heads.append(softmax_attention(turned(attention.q_norm(q[:, part]), cos, sin), keys, v[:, part]))
    expected = attention.out_proj(torch.cat(heads, dim=-1))
    torch.testing.assert_close(run_cross(attention, states, text, context, positions)[0], expected, rtol=0, atol=1e-5)


def test_context_alone_sees_relative_positions_only():
    attention, states, _, context, positions = cross_case(3, 4)
    empty = torch.empty(1, 0, 10)
    at_home = run_cross(attention, states, empty, context, positions)
    torch.testing.assert_close(run_cross(attention, states, empty, context, positions, 5.5), at_home, rtol=0, atol=2e-5)
    elsewhere = positions + torch.tensor([3.0, 0.0])
    assert max_abs(run_cross(attention, states, empty, context, elsewhere), at_home) > 1e-3


def test_text_keys_are_not_rotated():
    attention, states, text, _, positions = cross_case(3, 0)
    found, moved = (run_cross(attention, states, text, None, positions, move) for move in (0.0, 4.0))
    assert max_abs(found, moved) > 1e-3
    keys, _ = attention.keys_values(text)
    expected = attention.k_norm(attention.kv_proj(text)[..., :16].unflatten(-1, (2, 8))).transpose(1, 2)
    torch.testing.assert_close(keys, expected)


def test_context_without_values_or_pull_only_dilutes():
    """A context token whose key and value are zero takes weight exp(0) of the softmax and adds nothing."""
    attention, states, text, context, positions = cross_case(3, 1)
    torch.nn.init.zeros_(attention.kv_proj.bias)
    torch.nn.init.zeros_(attention.k_norm.bias)
    torch.nn.init.zeros_(attention.out_proj.bias)
    torch.nn.init.zeros_(attention.q_norm.weight)  # all logits are 0: every token weighs the same
    torch.nn.init.zeros_(attention.q_norm.bias)
    plain = run_cross(attention, states, text, None, positions[:, :0])
    diluted = run_cross(attention, states, text, torch.zeros_like(context), positions)
    torch.testing.assert_close(diluted, plain * 3 / 4)


def test_pooler_equals_full_attention_from_the_mean():
    pooler = AttentionPooler(5, 12, 7, 3)
    torch.nn.init.normal_(pooler.position_embedding)
    states = torch.randn(2, 5, 12)
    tokens = torch.cat([states.mean(1, keepdim=True), states], dim=1) + pooler.position_embedding
    q, k, v = pooler.q_proj(tokens[:, :1]), pooler.k_proj(tokens), pooler.v_proj(tokens)
    split = [part.unflatten(-1, (3, 4)).transpose(1, 2) for part in (q, k, v)]
    mixed = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
    torch.testing.assert_close(pooler(states), pooler.out_proj(mixed)[:, 0], rtol=1e-5, atol=1e-6)


def test_training_in_bfloat16_gives_the_same_gradients():
    attention = SelfAttention(32, 2)
    rotation = as_rotation(rotary_table(4, 4, 16)).unsqueeze(-2)
    states = torch.randn(2, 16, 32)
    grads = []
    for autocast in (False, True):
        attention.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = attention(states, rotation)
        out.float().square().sum().backward()
        grads.append(attention.qkv.weight.grad.clone())
    error = (grads[0] - grads[1]).norm() / grads[0].norm()
    assert float(error) < 3e-2


def test_layer_norm_keeps_statistics_in_fp32():
    norm = LayerNorm(64)
    states = torch.randn(3, 64, dtype=torch.bfloat16) + 100
    assert norm(states).dtype == torch.float32  # fp32 weights widen the input
    torch.testing.assert_close(norm(states), F.layer_norm(states.float(), (64,), eps=1e-6))


def test_sinusoid_puts_cosine_first():
    found = sinusoidal_embedding(torch.tensor([0.0, 3.0]), 8)
    assert found[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    expected = [math.cos(3 * 10000 ** (-k / 4)) for k in range(4)] + [math.sin(3 * 10000 ** (-k / 4)) for k in range(4)]
    torch.testing.assert_close(found[1], torch.tensor(expected))


def test_mlp_activations():
    states = torch.randn(2, 4)
    for activation, function in (("silu", F.silu), ("gelu_tanh", lambda t: F.gelu(t, approximate="tanh"))):
        mlp = MLP(4, 8, 3, activation=activation)
        torch.testing.assert_close(mlp(states), mlp.fc2(function(mlp.fc1(states))))


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match="num_heads=3 does not divide width 16"):
        SelfAttention(16, 3)
