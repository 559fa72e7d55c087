from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from huaben.attention.scheme import SCHEMES, scheme_config
from huaben.errors import ConfigError, ShapeError
from huaben.language.decoder import Decoder, DecoderConfig
from huaben.language.generate import generate, pad_left

transformers = pytest.importorskip("transformers")
hub: Any = pytest.importorskip("huaben.language.transformers_decoder")

V = 40


def config(scheme: str = "v2-kerple", **changes: Any) -> DecoderConfig:
    values = {"vocab_size": V, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, **changes}
    return DecoderConfig(scheme=scheme_config(scheme, hidden=8, train_length=8), **values)


def make(scheme: str = "v2-kerple", **changes: Any) -> Any:
    torch.manual_seed(0)
    decoder = Decoder(config(scheme, **changes)).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(2)
    return hub.DecoderForCausalLM.from_decoder(decoder)


def ids(rows: int = 2, length: int = 6) -> torch.Tensor:
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(3))


def test_the_auto_classes_know_the_model(tmp_path: Path) -> None:
    hub.register()
    hub.register()
    model = make()
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is hub.DecoderForCausalLM
    assert again.decoder.config == model.decoder.config
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "huaben_decoder"
    found = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (found.vocab_size, found.hidden_size, found.num_hidden_layers) == (V, 32, 2)
    assert (found.num_attention_heads, found.num_key_value_heads, found.head_dim) == (4, 2, 8)
    fresh = transformers.AutoModelForCausalLM.from_config(found)
    assert fresh.decoder.config == model.decoder.config


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
@torch.no_grad()
def test_a_saved_model_comes_back_with_every_scheme(tmp_path: Path, scheme: str) -> None:
    model = make(scheme, tie_embeddings=False)
    model.save_pretrained(tmp_path)
    again, info = hub.DecoderForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(again.eval()(ids()).logits, model(ids()).logits, rtol=0, atol=0)


@torch.no_grad()
def test_our_folder_and_theirs_hold_the_same_model(tmp_path: Path) -> None:
    model = make()
    model.decoder.save_pretrained(tmp_path / "ours")
    wrapped = hub.DecoderForCausalLM.from_decoder(Decoder.from_pretrained(tmp_path / "ours"), eos_token_id=7)
    assert wrapped.config.eos_token_id == 7
    wrapped.save_pretrained(tmp_path / "theirs")
    back = hub.DecoderForCausalLM.from_pretrained(tmp_path / "theirs")
    back.decoder.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@torch.no_grad()
def test_weights_that_a_folder_lacks_are_drawn_as_ours(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = make("v2-kerple", norm="layernorm", bias=True)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    lost = [name for name in state if "blocks.1" in name or "schemes.1" in name or name.endswith("norm.weight")]
    save_file(
        {name: state[name] for name in state if name not in lost}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    again, info = hub.DecoderForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == set(lost)
    assert again(ids()).logits.isfinite().all()
    own = again.decoder.state_dict()
    assert torch.equal(own["embedding.weight"], model.decoder.embedding.weight)
    assert float(own["blocks.1.attention.qkv.weight"].std()) == pytest.approx((2 / (5 * 32)) ** 0.5, rel=0.15)
    assert float(own["blocks.1.ffn.down.weight"].std()) == pytest.approx(32**-0.5, rel=0.15)
    assert (own["norm.weight"] == 1).all()
    assert 0 < float(own["schemes.1.score.weight1"].std()) < 1


@torch.no_grad()
def test_generation_equals_our_own() -> None:
    model = make("v2-rope")
    prompts, mask = pad_left([[1, 2, 3, 4, 5], [6, 7]])
    ours = generate(model.decoder, prompts, mask=mask, max_new_tokens=7, temperature=0)
    settings: dict[str, Any] = {"max_new_tokens": 7, "do_sample": False, "pad_token_id": 0}
    theirs = model.generate(prompts, attention_mask=mask.long(), **settings)
    assert torch.equal(theirs, ours)
    assert torch.equal(model.generate(prompts, attention_mask=mask.long(), use_cache=False, **settings), ours)
    static = model.generate(prompts, attention_mask=mask.long(), cache_implementation="static", **settings)
    assert torch.equal(static, ours)


@torch.no_grad()
def test_beams_reorder_the_cache() -> None:
    model = make("v2-alibi")
    settings: dict[str, Any] = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids(), **settings), model.generate(ids(), use_cache=False, **settings))


@torch.no_grad()
def test_cached_logits_equal_the_full_pass() -> None:
    model = make("v2-fire")
    full = model(ids(), use_cache=False)
    assert full.past_key_values is None
    first = model(ids()[:, :4], use_cache=True)
    second = model(ids()[:, 4:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(second.logits, full.logits[:, 4:], rtol=0, atol=1e-5)
    torch.testing.assert_close(model(ids(), logits_to_keep=2).logits, full.logits[:, -2:], rtol=0, atol=1e-6)
    picked = model(ids(), logits_to_keep=torch.tensor([0, 3])).logits
    torch.testing.assert_close(picked, full.logits[:, [0, 3]], rtol=0, atol=1e-6)
    as_tuple = model(ids(), return_dict=False, use_cache=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], full.logits)


@torch.no_grad()
def test_positions_that_start_anew_tell_packed_texts_apart() -> None:
    model = make("v2-kerple")
    packed = model(ids(1, 7), position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3]]), use_cache=False).logits
    alone = torch.cat([model(part).logits for part in ids(1, 7).split([3, 4], 1)], 1)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        model(ids(1, 7), position_ids=torch.arange(7)[None], use_cache=False).logits, model(ids(1, 7)).logits
    )


def test_loss_and_checkpointing() -> None:
    model = make().train()
    tokens = ids(2, 10)
    labels = tokens.masked_fill(torch.arange(10) < 3, -100)
    plain = model(tokens, labels=labels)
    expected = torch.nn.functional.cross_entropy(plain.logits[:, 2:-1].flatten(0, 1), tokens[:, 3:].flatten())
    torch.testing.assert_close(plain.loss, expected)
    assert plain.past_key_values is None  # not while training
    plain.loss.backward()
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.activation_checkpointing_enable()
    assert model.decoder.gradient_checkpointing
    model(tokens, labels=labels).loss.backward()
    for found, before in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(found.grad, before, rtol=0, atol=1e-6)


def test_what_is_not_supported_is_refused() -> None:
    model = make()
    with pytest.raises(ConfigError, match="output_attentions"):
        model(ids(), output_attentions=True)
    with pytest.raises(ConfigError, match="fixed"):
        model.resize_token_embeddings(50)
    with pytest.raises(ShapeError, match=r"attention_mask is \(2, 5\), expected \(2, 6\)"):
        model(ids(), attention_mask=torch.ones(2, 5))
    with pytest.raises(ConfigError, match="no field 'depth'"):
        hub.DecoderAutoConfig(shape={"depth": 3})


def test_without_transformers_the_import_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "sys.modules['transformers'] = None\n"
        "from huaben.errors import MissingDependencyError\n"
        "import huaben.language\n"
        "try:\n"
        "    import huaben.language.transformers_decoder\n"
        "except MissingDependencyError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "huaben[hf]" in done.stdout
