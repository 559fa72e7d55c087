from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from huaben.errors import CheckpointError, ConfigError
from huaben.language.retrofit import (
    adapter_parameters,
    adapters_of,
    load_adapters,
    read_mask,
    remove_adapters,
    retrofit,
    save_adapters,
)

transformers = pytest.importorskip("transformers")

V = 40
COMMON = {"vocab_size": V, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0}
NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
ROTARY = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "max_position_embeddings": 64}


def configs() -> dict[str, Any]:
    made = {
        "gpt2": transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **NO_DROPOUT, **COMMON),
        "llama": transformers.LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **ROTARY, **COMMON),
        "bloom": transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **COMMON),
        "mpt": transformers.MptConfig(
            d_model=36, n_layers=2, n_heads=6, max_seq_len=64, attn_config={"clip_qkv": 3.0}, **COMMON
        ),
        "qwen2": transformers.Qwen2Config(num_attention_heads=4, num_key_value_heads=2, **ROTARY, **COMMON),
        "gpt_neox": transformers.GPTNeoXConfig(
            num_attention_heads=4, attention_dropout=0.0, hidden_dropout=0.0, **ROTARY, **COMMON
        ),
    }
    return {name: config for name, config in made.items() if config is not None}


KINDS = sorted(configs())


def make(kind: str = "llama") -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(configs()[kind])
    with torch.no_grad():  # random weights whose scores differ from key to key
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model.eval()


def shake(model: Any, size: float = 0.3) -> None:
    """Move the adapters away from zero, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def ids(rows: int = 2, length: int = 11) -> torch.Tensor:
    return torch.randint(1, V, (rows, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapter", ["mlp", "conv"])
@torch.no_grad()
def test_logits_are_unchanged_at_the_start_and_after_removal(kind: str, adapter: Any) -> None:
    model, tokens = make(kind), ids()
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    before, masked = model(tokens).logits, model(tokens, attention_mask=mask).logits
    adapters = retrofit(model, adapter, hidden=8)
    assert len(adapters) == 2
    assert adapters == adapters_of(model)
    torch.testing.assert_close(model(tokens).logits, before, rtol=0, atol=1e-6 * float(before.abs().max()))
    found = model(tokens, attention_mask=mask).logits
    torch.testing.assert_close(found[0], masked[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1, 4:], masked[1, 4:], rtol=0, atol=1e-5)
    shake(model)
    assert not torch.allclose(model(tokens).logits, before, atol=1e-2)
    remove_adapters(model)
    assert not adapters_of(model)
    assert torch.equal(model(tokens).logits, before)


@pytest.mark.parametrize("kind", KINDS)
def test_training_the_adapters_alone_lowers_the_loss(kind: str) -> None:
    model, tokens = make(kind).train(), ids(4, 16)
    frozen = {name: parameter.clone() for name, parameter in model.named_parameters()}
    retrofit(model, hidden=8)
    parameters = adapter_parameters(model)
    assert [id(p) for p in parameters] == [id(p) for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=3e-2)
    losses = []
    for _ in range(12):
        loss = model(tokens, labels=tokens).loss
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] * 0.97
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_cached_generation_equals_the_full_pass(kind: str) -> None:
    model, tokens = make(kind), ids()
    retrofit(model, kernel_size=5, hidden=8)
    shake(model)
    full = model(tokens).logits
    cache, parts = transformers.DynamicCache(config=model.config), []
    for part in tokens.split([4, 1, 1, 5], 1):
        parts.append(model(part, past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(parts, 1), full, rtol=0, atol=2e-5 * float(full.abs().max()))
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    mask = torch.ones_like(tokens)
    mask[1, :5] = 0
    assert torch.equal(
        model.generate(tokens, attention_mask=mask, **settings),
        model.generate(tokens, attention_mask=mask, use_cache=False, **settings),
    )


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_padding_and_later_tokens_are_never_seen(kind: str) -> None:
    model, tokens = make(kind), ids(1)
    retrofit(model, hidden=8)
    shake(model)
    full = model(tokens).logits
    scale = float(full.abs().max())
    changed = tokens.clone()
    changed[0, 7] = changed[0, 7] % (V - 1) + 1
    assert torch.equal(model(changed).logits[:, :7], full[:, :7])
    assert not torch.allclose(model(changed).logits[:, 7:], full[:, 7:], atol=1e-3)
    padded = torch.cat([torch.full((1, 3), 9), tokens], 1)
    mask = torch.tensor([[0] * 3 + [1] * 11])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    extra = {} if kind in ("bloom", "mpt") else {"position_ids": positions}
    found = model(padded, attention_mask=mask, **extra).logits[:, 3:]
    torch.testing.assert_close(found, full, rtol=0, atol=2e-5 * scale)


@torch.no_grad()
def test_packed_texts_equal_separate_ones() -> None:
    model, tokens = make("llama"), ids(1, 9)
    retrofit(model, hidden=8)
    shake(model)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    packed = model(tokens, position_ids=positions, use_cache=False).logits
    alone = torch.cat([model(part).logits for part in tokens.split([4, 5], 1)], 1)
    torch.testing.assert_close(packed, alone, rtol=0, atol=2e-5 * float(alone.abs().max()))


@torch.no_grad()
def test_a_static_cache_works() -> None:
    model, tokens = make("llama"), ids()
    retrofit(model, hidden=8)
    shake(model)
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    static = model.generate(tokens, cache_implementation="static", disable_compile=True, **settings)
    assert torch.equal(static, model.generate(tokens, **settings))


@pytest.mark.parametrize("kind", ["gpt2", "bloom"])
def test_checkpointing_changes_no_gradient(kind: str) -> None:
    model, tokens = make(kind).train(), ids()
    retrofit(model, hidden=8)
    shake(model)
    grads = []
    for switch in (False, True):
        if switch:
            model.activation_checkpointing_enable()
        model.zero_grad()
        model(tokens, labels=tokens, use_cache=False).loss.backward()
        grads.append([parameter.grad.clone() for parameter in adapter_parameters(model)])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_a_copy_keeps_its_own_adapters() -> None:
    model, tokens = make("bloom"), ids()
    retrofit(model, hidden=8)
    twin = copy.deepcopy(model)
    before = model(tokens).logits
    shake(twin)
    assert not torch.allclose(twin(tokens).logits, before, atol=1e-2)
    assert torch.equal(model(tokens).logits, before)


@torch.no_grad()
def test_another_model_of_the_same_config_is_left_alone() -> None:
    config, tokens = configs()["llama"], ids()
    one, two = (transformers.AutoModelForCausalLM.from_config(config).eval() for _ in range(2))
    before = two(tokens).logits
    retrofit(one)
    torch.testing.assert_close(two(tokens).logits, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "mpt"])
@torch.no_grad()
def test_adapters_are_saved_and_loaded(tmp_path: Path, kind: str) -> None:
    model, tokens = make(kind), ids()
    retrofit(model, kernel_size=5, hidden=6)
    shake(model)
    save_adapters(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again = make(kind)
    loaded = load_adapters(again, tmp_path)
    assert [adapter.kernel_size for adapter in loaded] == [5, 5]
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    with torch.no_grad():
        for parameter in adapter_parameters(again):
            parameter.zero_()
    load_adapters(again, tmp_path)
    assert torch.equal(again(tokens).logits, model(tokens).logits)


@torch.no_grad()
def test_adapters_of_another_model_are_refused(tmp_path: Path) -> None:
    model = make("gpt2")
    retrofit(model, hidden=6)
    save_adapters(model, tmp_path)
    other = make("llama")
    with pytest.raises(CheckpointError, match="gpt2 with 2 layers of 4 heads, the model is llama with 2 layers of 4"):
        load_adapters(other, tmp_path)
    assert not adapters_of(other)
    same = make("gpt2")
    retrofit(same, "mlp", hidden=6)
    with pytest.raises(CheckpointError, match="other adapters than the model has"):
        load_adapters(same, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "hidden": 7}))
    fresh = make("gpt2")
    with pytest.raises(CheckpointError, match=r"weight1 is \(6, 4, 3\)"):
        load_adapters(fresh, tmp_path)
    assert not adapters_of(fresh)
    (tmp_path / "config.json").write_text(json.dumps({**values, "colour": "red"}))
    with pytest.raises(CheckpointError, match="no field 'colour'"):
        load_adapters(fresh, tmp_path)


def test_models_that_cannot_take_adapters_are_refused() -> None:
    with pytest.raises(ConfigError, match="Linear is not a transformers model"):
        retrofit(torch.nn.Linear(2, 2))
    falcon = transformers.FalconConfig(
        vocab_size=V, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, alibi=True
    )
    with pytest.raises(ConfigError, match="'falcon' models does not go through"):
        retrofit(transformers.AutoModelForCausalLM.from_config(falcon))
    t5 = transformers.T5Config(vocab_size=V, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    with pytest.raises(ConfigError, match="'t5' attends to an encoder"):
        retrofit(transformers.T5ForConditionalGeneration(t5))
    bert = transformers.BertConfig(
        vocab_size=V, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32
    )
    with pytest.raises(ConfigError, match="found 0 causal self-attentions in 1 layers"):
        retrofit(transformers.BertModel(bert))
    with pytest.raises(ConfigError, match="no adapters"):
        adapter_parameters(make())


def test_settings_that_cannot_work_are_refused() -> None:
    model = make()
    with pytest.raises(ConfigError, match="adapter='lora'"):
        retrofit(model, "lora")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="kernel_size=4"):
        retrofit(model, kernel_size=4)
    assert all(parameter.requires_grad for parameter in model.parameters())  # nothing was touched
    retrofit(model)
    with pytest.raises(ConfigError, match="adapters already"):
        retrofit(model)
    with pytest.raises(ConfigError, match="output_attentions"):
        model(ids(), output_attentions=True)


def test_sliding_windows_are_refused() -> None:
    config = transformers.MistralConfig(
        num_attention_heads=4, num_key_value_heads=2, sliding_window=4, **ROTARY, **COMMON
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    retrofit(model)
    with pytest.raises(ConfigError, match="sliding windows"):
        model(ids())


def test_dropout_that_is_not_applied_is_named() -> None:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=1, n_head=4, **COMMON))
    with pytest.warns(UserWarning, match=re.escape("attention dropout (0.1) is not applied")):
        retrofit(model)


def test_masks_are_read_right() -> None:
    causal = torch.ones(5, 5).tril().bool()
    assert read_mask(causal[None, None], 5).key_mask is None
    late = read_mask(causal[None, None, 3:], 5)
    assert (late.offset, late.key_mask) == (3, None)
    room = torch.nn.functional.pad(causal[None, None, 3:], (0, 7))  # a static cache with room for seven more
    assert read_mask(room, 12).offset == 3
    padded = causal & torch.tensor([False, False, True, True, True])
    found = read_mask(torch.stack([causal, padded])[:, None], 5)
    assert found.start is not None
    assert found.start.tolist() == [0, 2]
    texts = torch.tensor([0, 0, 0, 1, 1])
    packed = read_mask((causal & (texts[:, None] == texts))[None, None], 5)
    assert packed.documents is not None
    assert packed.documents.tolist() == [[0, 0, 0, 3, 3]]
    window = causal & ~torch.ones(5, 5).tril(-2).bool()
    for strange in (window, torch.ones(5, 5).bool(), causal.flip(1)):
        with pytest.raises(ConfigError, match="neither causal"):
            read_mask(strange[None, None], 5)
