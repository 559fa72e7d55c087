"""The measurement of adapted attention: what it reports, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from huaben.bench import attention_speed
from huaben.errors import ConfigError, GenerationError


def test_it_reports_both_sides_and_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_speed, "peak_memory_mb", lambda *a, **k: 2.0 * a[2])
    found = attention_speed.run(
        lengths="16,32", kernel_sizes="1,3", heads=2, head_dim=8, hidden=4, rounds=1, decode_context=24, decode_tokens=2
    )
    assert [(case["kernel_size"], case["length"]) for case in found["cases"]] == [(1, 16), (1, 32), (3, 16), (3, 32)]
    for case in found["cases"]:
        assert case["time_ratio"] == pytest.approx(case["rows_s"][0] / case["naive_s"][0])
        assert case["memory_ratio"] == 1
    assert found["growth"]["3"]["rows"] == pytest.approx(1)
    for decoding in found["decoding"]:
        assert decoding["max_difference"] < 1e-5
        assert decoding["cached_over_plain"] > 0


def test_the_formulas_stop_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_speed, "peak_memory_mb", lambda *a, **k: 1.0)
    (case,) = attention_speed.run(
        lengths="64", kernel_sizes="3", heads=2, head_dim=8, rounds=1, memory_limit_mb=0, decode_context=0
    )["cases"]
    assert "naive_s" not in case
    assert "time_ratio" not in case
    assert case["naive_maps_mb"] > 0


def test_memory_is_measured_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = attention_speed._config("alibi", 1, 32)
    shape = {"heads": 4, "head_dim": 16, "hidden": 32, "batch": 1}
    grown = attention_speed.peak_memory_mb(config, shape, 512, "naive")
    if grown is None:
        pytest.skip("this system does not tell")
    assert grown > 512 * 512 * 4 * (4 + 32) / 1e6 / 2
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no memory >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(attention_speed.sys, "executable", str(broken))
    with pytest.raises(GenerationError, match="measuring naive at 16 ended with status 3: no memory"):
        attention_speed.peak_memory_mb(config, shape, 16, "naive")


def test_settings_that_measure_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="rounds=0"):
        attention_speed.run(rounds=0)
    with pytest.raises(ConfigError, match="lengths='a,b'"):
        attention_speed.run(lengths="a,b")
    with pytest.raises(ConfigError, match="kernel_sizes='0'"):
        attention_speed.run(kernel_sizes="0")
