"""The files every room stands on: configs, errors, seed streams, saved models."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import huaben.errors
from huaben.config import Config
from huaben.errors import CheckpointError, ConfigError, HuabenError, PromptBookParseError, ReplyFormatError
from huaben.pretrained import PretrainedModel, read_weights, write_atomic
from huaben.rng import numpy_stream, stream_seed, torch_stream


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Inner(Config):
    width: int = 4
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Outer(Config):
    inner: Inner
    rate: float = 0.5
    limit: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LinearConfig(Config):
    width: int = 3


class Linear(PretrainedModel):
    config_class = LinearConfig
    model_type = "test_linear"

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.Linear(config.width, config.width)
        self.register_buffer("table", torch.arange(3.0), persistent=False)


@given(st.integers(), st.lists(st.text()), st.floats(allow_nan=False), st.none() | st.integers())
def test_config_round_trips(width, names, rate, limit):
    config = Outer(inner=Inner(width=width, names=tuple(names)), rate=rate, limit=limit)
    assert Outer.from_dict(config.to_dict()) == config


def test_config_reads_json_and_toml(tmp_path):
    config = Outer(inner=Inner(width=7, names=("a",)), rate=2.0)
    (tmp_path / "c.json").write_text(config.to_json())
    (tmp_path / "c.toml").write_text('rate = 2\n[inner]\nwidth = 7\nnames = ["a"]\n')
    assert Outer.load(tmp_path / "c.json") == Outer.load(tmp_path / "c.toml") == config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"inner": {}, "rat": 1.0}, "did you mean 'rate'"),
        ({"rate": 1.0}, "lacks inner"),
        ({"inner": {"width": "wide"}}, "expected int"),
        ({"inner": {"width": True}}, "expected int"),
        ({"inner": {"names": "abc"}}, "is not a list"),
        ([], "expects an object"),
    ],
)
def test_config_refuses_and_names_the_field(values, words):
    with pytest.raises(ConfigError) as error:
        Outer.from_dict(values)
    assert words in str(error.value)


def test_config_file_errors_name_the_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        Outer.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match=r"bad\.json"):
        Outer.load(tmp_path / "bad.json")


def test_every_error_is_a_huaben_error_with_its_own_code_and_shows_its_hint():
    classes = [c for c in vars(huaben.errors).values() if isinstance(c, type) and issubclass(c, HuabenError)]
    assert len({c.code for c in classes}) == len(classes) > 10
    assert str(ConfigError("found x", hint="use y")) == "found x; hint: use y"
    assert PromptBookParseError("p", line=3).line == 3 and ReplyFormatError("r", raw="abc").raw == "abc"


def test_streams_are_independent_and_stable():
    assert stream_seed(0, "noise") == stream_seed(0, "noise")
    seeds = {stream_seed(s, *n) for s in (0, 1) for n in (("a",), ("b",), ("a", "b"), ("a", 1), ("a", "1"), ("ab",))}
    assert len(seeds) == 12
    assert np.array_equal(numpy_stream(3, "x").random(4), numpy_stream(3, "x").random(4))
    assert torch.equal(torch.rand(4, generator=torch_stream(3, "x")), torch.rand(4, generator=torch_stream(3, "x")))


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "7"])
def test_impossible_seeds_are_refused(seed):
    with pytest.raises(ConfigError, match="not an integer from 0"):
        numpy_stream(seed, "x")


def test_model_folder_round_trips_bit_for_bit(tmp_path):
    model = Linear(LinearConfig(width=5))
    model.save_pretrained(tmp_path)
    again = Linear.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert again.config == model.config and not again.training and torch.equal(again.table, model.table)


def test_model_keeps_the_stored_type_if_asked(tmp_path):
    Linear(LinearConfig()).save_pretrained(tmp_path, dtype=torch.float16)
    assert Linear.from_pretrained(tmp_path, dtype=None).dtype == torch.float16
    assert Linear.from_pretrained(tmp_path).dtype == torch.float32


def test_loading_names_what_is_wrong(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        Linear.from_pretrained(tmp_path)
    model = Linear(LinearConfig())
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    with pytest.raises(CheckpointError, match="'other' model"):
        Linear.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "test_linear", "widht": 3}')
    with pytest.raises(CheckpointError, match="did you mean 'width'"):
        Linear.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "test_linear", "width": 4}')
    with pytest.raises(CheckpointError, match=r"\(3, 3\), the model expects \(4, 4\)"):
        Linear.from_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_weights(weights)


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_diffusion_exports_without_importing_torch_for_the_contract():
    import subprocess
    import sys

    code = (
        "import sys, huaben.diffusion as d, huaben.diffusion.pipeline; assert 'torch' not in sys.modules; d.HunyuanDiT"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
