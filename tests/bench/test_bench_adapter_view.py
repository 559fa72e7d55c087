"""The view of adapters: maps that are the model's own, sums by distance, heads told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from huaben.attention.scheme import Scheme, scheme_config
from huaben.bench import adapter_view
from huaben.errors import ConfigError, DataError
from huaben.language.bytes import ByteTokenizer
from huaben.language.decoder import Decoder, DecoderConfig
from huaben.rng import torch_stream

LENGTH = 48


def _save(folder: Path, name: str, **changes: Any) -> str:
    torch.manual_seed(0)
    scheme = scheme_config(name, hidden=4, **changes)
    tokenizer = ByteTokenizer()
    config = DecoderConfig(vocab_size=tokenizer.vocab_size, layers=2, width=16, heads=4, kv_heads=2, scheme=scheme)
    Decoder(config).save_pretrained(folder)
    tokenizer.save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(f"word{number}" for number in range(400)))
    return str(path)


@pytest.fixture(scope="module")
def found(text: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    schemes = {"kerple": {}, "rope": {}, "v2-kerple": {}, "zero": {"init": "zero"}}
    models = [
        f"{name}={_save(folder / name, 'v2-kerple' if name == 'zero' else name, **changes)}"
        for name, changes in schemes.items()
    ]
    return adapter_view.run(models=",".join(models), text=text, length=LENGTH, windows=2)


def test_every_head_is_measured(found: dict[str, Any]) -> None:
    assert json.loads(json.dumps(found)) == found
    assert found["distances"] == [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    assert found["octaves"] == [0, 1, 2, 4, 8, 16, 32]
    assert found["uniform_near"] == pytest.approx(sum(8 / n for n in range(25, 49)) / 24, abs=1e-4)
    for model in found["models"].values():
        assert [len(layer) for layer in model["layers"]] == [4, 4]
        assert sum(model["kinds"].values()) == 8
        assert model["error"] < 1e-5  # the maps give the model's own attention
        assert len(model["example"]["f"]) == 4
        assert {len(row) for row in model["example"]["f"]} == {len(model["example"]["characters"])}
        for head in (head for layer in model["layers"] for head in layer):
            assert len(head["mass"]) == 7
            assert sum(head["mass"]) == pytest.approx(1, abs=1e-4)
            assert sum(head["mass"][:4]) == pytest.approx(head["near"], abs=1e-4)
            for values in (head["bias"], head["net"], head["f"]["mean"], head["f"]["spread"]):
                assert len(values) == 11


def test_an_adapter_that_does_nothing_has_no_correction(found: dict[str, Any]) -> None:
    for name in ("zero", "kerple"):
        for head in (head for layer in found["models"][name]["layers"] for head in layer):
            assert set(head["f"]["mean"]) == {0.0} and head["f"]["std"] == 0 and head["f"]["explained"] is None
            assert head["near"] == head["near_without"]
    active = [head["f"] for layer in found["models"]["v2-kerple"]["layers"] for head in layer]
    assert all(f["std"] > 0 and 0 <= f["explained"] <= 1 for f in active)


def test_bias_is_the_scheme_s_own(found: dict[str, Any]) -> None:
    for layer in found["models"]["kerple"]["layers"]:
        for head in layer:
            assert head["bias"][0] == 0 and head["bias"] == sorted(head["bias"], reverse=True)
            assert head["net"] == head["bias_centred"]
            assert head["net"][0] > 0 > head["net"][-1]
    assert not any(any(head["bias"]) for layer in found["models"]["rope"]["layers"] for head in layer)


@pytest.mark.parametrize("edge", ["virtual", "masked", "array"])
@pytest.mark.parametrize("mode", ["concat_residual", "concat", "add_residual"])
def test_maps_give_the_scheme_s_attention(edge: str, mode: str) -> None:
    torch.manual_seed(0)
    scheme = Scheme(scheme_config("v2-kerple", hidden=4, edge=edge, mode=mode), 4, 8)
    q = torch.randn(1, 4, 20, 8, generator=torch_stream(0, "q"))
    k, v = torch.randn(2, 1, 2, 20, 8, generator=torch_stream(0, "kv")).unbind()
    weights = adapter_view.score_maps(scheme, q, k, first=5).weights()
    expected = scheme(q, k, v, impl="naive")[:, :, 5:]
    assert torch.allclose(weights @ v.repeat_interleave(2, 1), expected, atol=1e-5)


def test_kinds_follow_the_mass() -> None:
    length, queries = 64, 32
    for wanted, near in (("local", 0.9), ("broad", 0.4), ("anti-local", 0.01)):
        head = adapter_view._Head(length)
        for i in range(length - queries, length):
            delta = i - torch.arange(i + 1).numpy()
            mass = torch.where(torch.from_numpy(delta) < 8, near / 8, (1 - near) / (i - 7)).double().numpy()
            for name in ("count", "uniform", "mass", "mass_without", "bias", "bias_centred", "f", "net", "scores"):
                value = {"mass": mass, "mass_without": mass, "count": 1 + 0 * mass, "uniform": 0 * mass + 1 / (i + 1)}
                head.add(name, value.get(name, -0.5 * delta), delta)
            head.add("f_squared", (0.5 * delta) ** 2, delta)
        result = head.result([0, 8], [0, 8])
        assert result["kind"] == wanted
        assert result["near"] == pytest.approx(near, abs=1e-4)
        assert result["f"]["explained"] == pytest.approx(1)  # a function of the distance


def test_a_folder_of_models_is_read(text: str, tmp_path: Path) -> None:
    _save(tmp_path / "kerple-0123abcd-0" / "final", "kerple")
    (tmp_path / "train").mkdir()
    results = adapter_view.run(models=str(tmp_path), text=text, length=32, windows=1)
    assert list(results["models"]) == ["kerple"]
    with pytest.raises(ConfigError, match="no decoder"):
        adapter_view.run(models=str(tmp_path / "train"), text=text)
    with pytest.raises(ConfigError, match="length=8"):
        adapter_view.run(models=str(tmp_path), text=text, length=8)
    with pytest.raises(DataError, match="expected 1"):
        adapter_view.run(models=str(tmp_path), text=text, length=100_000, windows=1)


@pytest.mark.slow
def test_a_picture_is_drawn(found: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    adapter_view.plot({"results": found}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
