from __future__ import annotations

import json

import pytest

from huaben.clip import load_dual_encoder
from huaben.errors import CheckpointError

pytest.importorskip("transformers")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_a_folder_with_code_of_its_own_is_refused_and_nothing_runs(tmp_path, name):
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w')\n", encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}), encoding="utf-8")
    values = {"model_type": "clip", "auto_map": {"AutoConfig": "own.Config"}}
    (tmp_path / name).write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(CheckpointError, match="auto_map"):
        load_dual_encoder(str(tmp_path))
    assert not ran.exists()
