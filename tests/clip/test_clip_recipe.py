from __future__ import annotations

import numpy as np
import pytest
import torch

from huaben.clip import Clip
from huaben.errors import CheckpointError, DataError
from huaben.language import Tokenizer
from huaben.recipes.clip import PATCH_ATTRIBUTES, ClipRecipe, fitting_caption, patch_labels
from huaben.recipes.readout import IGNORED
from huaben.recipes.text_corpus import make_corpus
from huaben.rng import numpy_stream
from huaben.world.sample import sample_scene
from huaben.world.scene import SceneCharacter, SceneGraph
from huaben.world.vocabulary import INDEX, KEYS


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("text")
    make_corpus(0, 300, 100, 48)[1].save(folder)
    return folder


@pytest.fixture(scope="module")
def recipe(tokenizer_folder) -> ClipRecipe:
    return ClipRecipe(preset="tiny", tokenizer=tokenizer_folder, num_scenes=24, batch_size=16)


def test_patch_labels_show_the_front_most_character() -> None:
    cat = SceneCharacter(species="cat", colour="red", box=(0.0, 0.0, 0.5, 0.5), accessory="hat")
    dog = SceneCharacter(species="dog", colour="blue", box=(0.25, 0.25, 0.5, 0.5))
    labels = patch_labels(SceneGraph(background="beach", characters=(cat, dog)), 8).reshape(8, 8, -1)
    species, accessory = (PATCH_ATTRIBUTES.index(name) for name in ("species", "accessory"))
    assert labels[0, 0, species] == INDEX["species"]["cat"]
    assert labels[0, 0, accessory] == INDEX["accessory"]["hat"]
    assert labels[2, 3, species] == INDEX["species"]["dog"]
    assert labels[2, 3, accessory] == INDEX["accessory"]["none"]
    assert labels[5, 5].tolist() == [len(KEYS["species"])] + [IGNORED] * 5


def test_captions_fit_into_the_text_tower(recipe: ClipRecipe) -> None:
    rng, kept = numpy_stream(0, "captions"), 0
    for _ in range(30):
        _, ids = fitting_caption(sample_scene(rng), rng, "en", recipe.tokenizer, 32, rich=1.0)
        kept += len(ids) < 32
    assert kept >= 27


def test_a_batch_is_a_pure_function_of_the_step(recipe: ClipRecipe) -> None:
    first, again, other = recipe.batch(1), recipe.batch(1), recipe.batch(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pictures"], other["pictures"])


def test_pictures_are_moved_and_never_mirrored(recipe: ClipRecipe) -> None:
    pictures = recipe._data["pictures"].transpose(0, 3, 1, 2)
    for moved in recipe.batch(0)["pictures"].numpy():
        inner = moved[:, 4:-4, 4:-4]
        size = inner.shape[1]
        assert any(
            (picture[:, y : y + size, x : x + size] == inner).all()
            for picture in pictures
            for y in range(2, 7)
            for x in range(2, 7)
        )


def test_the_loss_falls_in_a_few_steps(recipe: ClipRecipe) -> None:
    torch.manual_seed(0)
    model = recipe.build().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        terms = recipe.loss(model, recipe.batch(0))
        terms["loss"].backward()
        assert all(weight.grad is not None for weight in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append({name: float(term.detach()) for name, term in terms.items()})
    for name in recipe.weights:
        assert losses[-1][name] < losses[0][name], name


def test_scores_are_shares_and_the_saved_folder_loads(recipe: ClipRecipe, tmp_path) -> None:
    torch.manual_seed(0)
    model = recipe.build().eval()
    scores = recipe.evaluate(model, count=12)
    assert {"image_to_text_en", "text_to_image_zh", "text_to_image_paraphrase_en"} <= set(scores)
    assert all(0 <= score <= 1 for score in scores.values())
    recipe.save(model, tmp_path)
    clip, tokenizer = Clip.from_pretrained(tmp_path), Tokenizer.from_pretrained(tmp_path)
    ids, mask = tokenizer.encode(["a red cat", "一只红色的猫"], clip.config.text_length)
    with torch.no_grad():
        torch.testing.assert_close(
            clip.text_features(ids, mask), model.clip.text_features(ids, mask), rtol=0, atol=1e-2
        )


def test_a_missing_tokenizer_and_too_few_pictures_are_named(tokenizer_folder, tmp_path) -> None:
    with pytest.raises(CheckpointError, match="train text first"):
        ClipRecipe(tokenizer=tmp_path).build()
    with pytest.raises(DataError, match="draw more"):
        ClipRecipe(preset="tiny", tokenizer=tokenizer_folder, num_scenes=4, batch_size=16).build()


def test_pictures_do_not_depend_on_how_many_are_drawn(tokenizer_folder) -> None:
    few, more = (
        ClipRecipe(preset="tiny", tokenizer=tokenizer_folder, num_scenes=count, batch_size=2)._data for count in (2, 3)
    )
    assert np.array_equal(few["pictures"], more["pictures"][:2])
