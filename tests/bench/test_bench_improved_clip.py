"""The embedded CLIP's further training: its data, what it writes, and how old and new weights are judged."""

from __future__ import annotations

import json
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from huaben.bench import improved_clip
from huaben.bench.improved_clip import ImprovedRecipe, run, text_probe
from huaben.bench.scene_families import FAMILY_SIZE
from huaben.clip.margin import MarginConfig
from huaben.clip.model import PRESETS, Clip
from huaben.errors import CheckpointError
from huaben.language.encoder import TextEncoder
from huaben.language.tokenizer import PAD, Tokenizer
from huaben.recipes.clip import ClipRecipe
from huaben.recipes.readout import CHARACTER_ATTRIBUTES, NUM_CLASSES
from huaben.stations import WEIGHTS
from huaben.world.vocabulary import INDEX

SMALL: dict[str, Any] = {"num_scenes": 16, "families": 2, "batch_size": 8}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny CLIP with fresh weights."""
    folder, tokenizer = tmp_path_factory.mktemp("tiny"), Tokenizer.from_pretrained(WEIGHTS / "text")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = Clip(PRESETS["tiny"].replace(vocab_size=tokenizer.vocab_size, text_length=32))
    clip.save_pretrained(folder, dtype=torch.float16)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def recipe(start: Path) -> ImprovedRecipe:
    return ImprovedRecipe(start=start, k=2, margin=MarginConfig(), seed=3, **SMALL)


def test_the_recipes_own_pictures_stay_and_families_join_them(recipe: ImprovedRecipe, start: Path) -> None:
    own = ClipRecipe(seed=3, tokenizer=start, num_scenes=16)
    own.preset = recipe.preset
    for name, values in own._data.items():
        assert np.array_equal(recipe._data[name][:16], values), name
        assert recipe._data[name].dtype == values.dtype
        assert len(recipe._data[name]) == recipe.num_rows == 16 + 2 * FAMILY_SIZE
    slots = recipe._data["slots"][16:]
    there = slots[..., 0] < NUM_CLASSES["species"] - 1
    for name in ("species", "colour", "expression", "facing", "place"):
        said = slots[..., CHARACTER_ATTRIBUTES.index(name)][there]
        assert said.max() < NUM_CLASSES[name] - 1, name  # families' captions say all of it
        assert said.min() >= 0
    worn = slots[..., CHARACTER_ATTRIBUTES.index("accessory")][there]
    assert INDEX["accessory"]["none"] not in worn  # nothing worn is nothing said
    assert (slots[..., CHARACTER_ATTRIBUTES.index("size")][there] == NUM_CLASSES["size"] - 1).all()


def test_batches_are_seeds_and_their_hard_pairs(recipe: ImprovedRecipe) -> None:
    batch, again = recipe.batch(5), recipe.batch(5)
    assert all(torch.equal(value, again[name]) for name, value in batch.items())
    rows = batch["rows"].numpy()
    assert len(set(rows)) == 8
    lists = np.asarray(recipe.pairs.pairs)
    assert all(partner in lists[seed] for seed, partner in zip(rows[:4], rows[4:], strict=True))
    texts = [recipe._data["ids"][row].tolist() for row in rows]
    for row, ids in zip(texts, batch["ids"], strict=True):
        padded = torch.nn.functional.pad(ids, (0, 32 - len(ids)), value=PAD).tolist()
        assert padded in row
    model = recipe.build()
    terms = recipe.loss(model, batch)
    terms["loss"].backward()
    values = {name: float(value.detach()) for name, value in terms.items()}
    assert values["margin"] > 0
    weighted = sum(weight * values[name] for name, weight in recipe.weights.items())
    assert values["loss"] == pytest.approx(weighted + values["margin"], rel=1e-5)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_training_begins_with_the_given_weights(recipe: ImprovedRecipe, start: Path) -> None:
    given = Clip.from_pretrained(start).state_dict()
    assert all(torch.equal(value, given[name]) for name, value in recipe.build().clip.state_dict().items())


def test_new_weights_are_written_like_the_old_and_judged(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClipRecipe, "evaluate", partialmethod(ClipRecipe.evaluate, count=8))
    asked: dict[str, Any] = {
        "start": str(start), "text": str(start), "cache": str(tmp_path), "steps": 2, "k": 2, **SMALL,
        "judged_families": 2, "unrelated": 4, "probe_steps": 3, "probe_captions": 60,
    }  # fmt: skip
    found = json.loads(json.dumps(run(**asked)))
    new = Path(found["folder"])
    assert {path.name for path in new.iterdir()} == {path.name for path in start.iterdir()} | {"card.json"}
    assert (new / "config.json").read_bytes() == (start / "config.json").read_bytes()
    assert (new / "model.safetensors").stat().st_size == (start / "model.safetensors").stat().st_size
    assert found["clip"]["old"].keys() == found["clip"]["new"].keys()
    assert {"family", "family_colour", "global", "image_to_text_en", "text_to_image_composition_zh"} <= found["clip"][
        "new"
    ].keys()
    assert set(found["text_states"]) == {"old", "new", "text"}
    assert found["text_states"]["old"] == found["text_states"]["text"]  # the same folder
    assert found["steps"] == 2

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(improved_clip, "fit", never)
    assert json.loads(json.dumps(run(**asked))) == found
    with pytest.raises(CheckpointError, match="other settings"):
        run(**{**asked, "gamma": 1.0})


def test_the_probe_reads_states_and_not_itself(tmp_path: Path, start: Path) -> None:
    good = text_probe(WEIGHTS / "text", captions=300, steps=40)
    assert all(0 <= value <= 1 for value in good.values())
    encoder = TextEncoder.from_pretrained(WEIGHTS / "text")
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    encoder.save_pretrained(tmp_path)
    Tokenizer.from_pretrained(WEIGHTS / "text").save(tmp_path)
    empty = text_probe(tmp_path, captions=300, steps=40)
    assert good["attributes_en"] > empty["attributes_en"] + 0.1
    with pytest.raises(CheckpointError, match="expected a CLIP or a text encoder"):
        text_probe(WEIGHTS / "detector")
