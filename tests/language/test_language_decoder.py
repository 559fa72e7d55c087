from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from huaben.attention.scheme import SCHEMES, Scheme, scheme_config
from huaben.errors import CheckpointError, ConfigError, ShapeError
from huaben.language.decoder import (
    PRESETS,
    Decoder,
    DecoderConfig,
    document_positions,
    first_tokens,
    next_token_loss,
)

V = 50


def config(scheme: str = "v2-kerple", **changes: object) -> DecoderConfig:
    values = {"vocab_size": V, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, **changes}
    return DecoderConfig(scheme=scheme_config(scheme, train_length=8, hidden=8), **values)  # type: ignore[arg-type]


def make(scheme: str = "v2-kerple", seed: int = 0, **changes: object) -> Decoder:
    torch.manual_seed(seed)
    model = Decoder(config(scheme, **changes)).eval()
    with torch.no_grad():  # livelier than at the start of training, so that mistakes show
        for parameter in model.blocks.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    return model


def ids(rows: int = 2, length: int = 12, seed: int = 1) -> torch.Tensor:
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", sorted(SCHEMES))
@torch.no_grad()
def test_cached_decoding_equals_the_full_pass_in_any_splits(name: str) -> None:
    model, tokens = make(name), ids(2, 9)
    full = model(tokens)
    for splits in ([1] * 9, [4, 1, 4]):
        cache, parts = model.new_cache(2, capacity=2), []
        for part in tokens.split(splits, dim=1):
            parts.append(model(part, cache=cache))
        assert len(cache) == 9
        torch.testing.assert_close(torch.cat(parts, 1), full, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(SCHEMES))
@torch.no_grad()
def test_left_padded_rows_compute_what_they_would_alone(name: str) -> None:
    model, tokens = make(name), ids(3, 11)
    lengths = [11, 7, 1]
    mask = torch.arange(11) >= 11 - torch.tensor(lengths)[:, None]
    padded = model(tokens.masked_fill(~mask, 3), mask=mask)
    assert padded.isfinite().all()
    cache = model.new_cache(3)
    stepwise = [model(tokens[:, :6], mask=mask[:, :6], cache=cache)]
    stepwise += [model(tokens[:, t : t + 1], mask=mask[:, t : t + 1], cache=cache) for t in range(6, 11)]
    for row, length in enumerate(lengths):
        alone = model(tokens[row : row + 1, 11 - length :])[0]
        torch.testing.assert_close(padded[row, 11 - length :], alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.cat(stepwise, 1)[row, 11 - length :], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(SCHEMES))
@torch.no_grad()
def test_packed_documents_equal_separate_runs(name: str) -> None:
    model, tokens = make(name), ids(1, 12)
    documents = torch.tensor([[4] * 5 + [7] * 1 + [1] * 6])
    packed = model(tokens, documents=documents)
    alone = torch.cat([model(part) for part in tokens.split([5, 1, 6], dim=1)], 1)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)
    cache = model.new_cache(1)
    parts = [model(tokens[:, :7], documents=documents[:, :7], cache=cache)]
    parts += [model(tokens[:, t : t + 1], cache=cache) for t in range(7, 12)]  # goes on with the last document
    torch.testing.assert_close(torch.cat(parts, 1), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["rope", "v2-fire", "v2-kerple"])
@torch.no_grad()
def test_later_tokens_never_change_earlier_logits(name: str) -> None:
    model, tokens = make(name), ids(1, 10)
    changed = tokens.clone()
    changed[0, 6] = (changed[0, 6] + 1) % V
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6], after[:, 6], atol=1e-4)
    torch.testing.assert_close(model(tokens[:, :6]), before[:, :6], rtol=0, atol=1e-5)


@torch.no_grad()
def test_right_padding_is_never_seen() -> None:
    model, tokens = make(), ids(1, 9)
    mask = torch.ones(1, 9, dtype=torch.bool)
    mask[:, 6:] = False
    torch.testing.assert_close(model(tokens, mask=mask)[:, :6], model(tokens[:, :6]), rtol=0, atol=1e-5)


def test_a_fully_padded_row_keeps_gradients_finite() -> None:
    model, tokens = make(), ids(2, 6)
    mask = torch.tensor([[True] * 6, [False] * 6])
    next_token_loss(model(tokens, mask=mask), tokens, mask=mask).backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("changes", [{"kv_heads": None}, {"ffn": "gelu", "norm": "layernorm", "bias": True}])
@torch.no_grad()
def test_grouped_keys_and_other_layers_cache_alike(changes: dict[str, object]) -> None:
    model, tokens = make(**changes), ids()
    cache = model.new_cache(2)
    torch.testing.assert_close(
        torch.cat([model(part, cache=cache) for part in tokens.split(4, 1)], 1), model(tokens), rtol=0, atol=1e-5
    )
    heads = model.config.num_kv_heads
    assert cache.nbytes == 2 * 2 * 2 * heads * cache.capacity * 8 * 4  # layers, k and v, rows, G, capacity, d, bytes


@torch.no_grad()
def test_a_cache_can_be_shortened_and_its_rows_chosen() -> None:
    model, tokens = make("v2-rope"), ids(3, 8)
    mask = torch.ones(3, 8, dtype=torch.bool)
    mask[1, :3] = False
    full = model(tokens, mask=mask)
    cache = model.new_cache(3, capacity=1)
    model(tokens, mask=mask, cache=cache)
    cache.truncate(5)
    cache.select(torch.tensor([1, 1, 0]))
    again = model(tokens[[1, 1, 0], 5:], cache=cache)
    torch.testing.assert_close(again, full[[1, 1, 0], 5:], rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="cannot keep 9 of 8"):
        cache.truncate(9)


@torch.no_grad()
def test_a_failed_call_leaves_the_cache_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = make(), ids(1, 6)
    cache = model.new_cache(1)
    model(tokens[:, :4], cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr(model.blocks[1].ffn, "forward", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(tokens[:, 4:], cache=cache)
    assert len(cache) == 4
    torch.testing.assert_close(model(tokens[:, 4:], cache=cache), model(tokens)[:, 4:], rtol=0, atol=1e-5)


def test_gradients_flow_through_a_cache() -> None:
    model, tokens = make().double(), ids(1, 6)
    model(tokens).square().sum().backward()
    expected = model.blocks[0].attention.qkv.weight.grad.clone()
    model.zero_grad()
    cache = model.new_cache(1)
    torch.cat([model(part, cache=cache) for part in tokens.split([2, 4], 1)], 1).square().sum().backward()
    torch.testing.assert_close(model.blocks[0].attention.qkv.weight.grad, expected)


@pytest.mark.parametrize("name", ["randomized_rope", "v2-kerple"])
def test_checkpointing_changes_no_gradient(name: str) -> None:
    model, tokens = make(name).train(), ids(2, 10)
    grads = []
    for switch in (False, True):
        model.gradient_checkpointing = switch
        model.zero_grad()
        torch.manual_seed(5)
        next_token_loss(model(tokens), tokens).backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=0, atol=1e-6)


def test_a_tiny_model_learns_by_heart() -> None:
    model, tokens = make("v2-alibi").train(), ids(2, 24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = next_token_loss(model(tokens), tokens)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] > math.log(V) * 0.8
    assert losses[-1] < 0.3


def test_loss_skips_padding_and_first_tokens_of_documents() -> None:
    logits, tokens = torch.randn(1, 5, V), ids(1, 5)
    each = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="none")
    documents = torch.tensor([[0, 0, 1, 1, 1]])
    mask = torch.tensor([[True, True, True, True, False]])
    found = next_token_loss(logits, tokens, mask=mask, documents=documents)
    torch.testing.assert_close(found, (each[0] + each[2]) / 2)
    with pytest.raises(ShapeError, match="no pair"):
        next_token_loss(logits[:, :1], tokens[:, :1])


def test_initial_weights_are_the_papers() -> None:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(width=256, layers=3, heads=4, ffn="gelu", bias=True, tie_embeddings=False))
    block = model.blocks[1]
    for weight in (model.embedding.weight, model.head.weight, block.attention.qkv.weight, block.ffn.up.weight):
        assert float(weight.detach().std()) == pytest.approx(math.sqrt(2 / (5 * 256)), rel=0.03)
    for weight in (block.attention.out.weight, block.ffn.down.weight):
        assert float(weight.detach().std()) == pytest.approx(2 / 3 / math.sqrt(256), rel=0.03)
    assert not block.attention.out.bias.any()


def test_presets_have_the_documented_sizes() -> None:
    sizes = {name: preset.base_parameters for name, preset in PRESETS.items()}
    assert sizes == {"tiny": 836_736, "15m": 14_260_608, "125m": 162_322_944, "350m": 405_334_016}
    assert sizes["125m"] - 50304 * 768 == 123_689_472
    assert sizes["350m"] - 50304 * 1024 == 353_822_720


@pytest.mark.parametrize("ffn", ["swiglu", "gelu"])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize(("bias", "tied", "kv_heads"), [(True, False, 2), (False, True, None)])
def test_sizes_are_counted_right(ffn: str, norm: str, bias: bool, tied: bool, kv_heads: int | None) -> None:
    model = make("v2-fire", ffn=ffn, norm=norm, bias=bias, tie_embeddings=tied, kv_heads=kv_heads)
    scheme = sum(parameter.numel() for parameter in model.schemes.parameters())
    assert model.num_parameters() == model.config.base_parameters + scheme


def test_adapters_cost_what_the_paper_says() -> None:
    def size(name: str) -> int:
        return sum(parameter.numel() for parameter in Scheme(scheme_config(name), 12, 64).parameters())

    assert size("dape-kerple") - size("kerple") == 1_196
    assert size("v2-kerple") - size("kerple") == 3_500
    assert size("v2-rope") == 2_348


@torch.no_grad()
def test_a_shared_scheme_is_one_for_all_layers() -> None:
    model, tokens = make("t5", share_scheme=True), ids()
    assert len(model.schemes) == 1
    before = model(tokens)
    model.schemes[0].bias.weight.mul_(3)
    assert not torch.allclose(model(tokens), before, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False, "bias": True, "norm": "layernorm"}])
@torch.no_grad()
def test_saving_and_loading_changes_nothing(tmp_path: Path, changes: dict[str, object]) -> None:
    model = make("v2-fire", **changes)
    model.save_pretrained(tmp_path)
    again = Decoder.from_pretrained(tmp_path, scheme=model.config.scheme)
    assert again.config == model.config
    assert torch.equal(again(ids()), model(ids()))
    assert Decoder.from_pretrained(tmp_path, scheme="v2-fire").config.scheme.hidden == 8


def test_another_scheme_is_refused(tmp_path: Path) -> None:
    model = make("dape-kerple")
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"'kerple' and a DAPE MLP, expected position 'kerple' and a DAPE 1x3"):
        Decoder.from_pretrained(tmp_path, scheme="v2-kerple")
    with pytest.raises(CheckpointError, match="expected position 'rope'"):
        Decoder.from_pretrained(tmp_path, scheme="rope")
    with pytest.raises(CheckpointError, match=r"another position scheme than position 'rope'.*have 'schemes"):
        make("rope").load_state_dict(model.state_dict())
    values = json.loads((tmp_path / "config.json").read_text())
    values["scheme"]["position"] = "fire"
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"schemes\.0\.bias"):
        Decoder.from_pretrained(tmp_path)


def test_half_precision_runs() -> None:
    model, tokens = make("v2-kerple").to(torch.bfloat16), ids()
    logits = model(tokens)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), make("v2-kerple")(tokens), rtol=0, atol=0.2)
    with torch.autocast("cpu", torch.bfloat16):
        assert make("v2-rope")(tokens).isfinite().all()


def test_positions_of_padding_and_documents() -> None:
    mask = torch.tensor([[0, 0, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
    assert first_tokens(mask).tolist() == [2, 0, 5]
    assert document_positions(torch.tensor([[3, 3, 1, 1, 1, 2]])).tolist() == [[0, 1, 0, 1, 2, 0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "heads=5 does not divide width=32"),
        ({"kv_heads": 3}, "kv_heads=3 does not divide heads=4"),
        ({"layers": 0}, "layers=0"),
        ({"ffn": "relu"}, "ffn='relu'"),
        ({"norm": "batch"}, "norm='batch'"),
        ({"ffn_width": 0}, "ffn_width=0"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_inputs_that_do_not_fit_are_refused() -> None:
    model, tokens = make(), ids()
    with pytest.raises(ShapeError, match="add a batch axis"):
        model(tokens[0])
    with pytest.raises(ShapeError, match="at least one token"):
        model(tokens[:, :0])
    with pytest.raises(ShapeError, match="vocabulary from 0 to 49"):
        model(tokens + V)
    with pytest.raises(ShapeError, match="mask is"):
        model(tokens, mask=torch.ones(2, 5, dtype=torch.bool))
    cache = model.new_cache(3)
    with pytest.raises(ShapeError, match="holds 3 rows"):
        model(tokens, cache=cache)
    cache = model.new_cache(2)
    model(tokens, cache=cache)
    with pytest.raises(ShapeError, match="from the first call on"):
        model(tokens, documents=torch.zeros_like(tokens), cache=cache)
