from __future__ import annotations

import numpy as np
import pytest
import torch

from huaben.language import TextEncoder, Tokenizer
from huaben.language.tokenizer import MASK, PAD
from huaben.recipes.readout import CHARACTER_ATTRIBUTES, IGNORED, NUM_CLASSES, attribute_losses, labels_of, slot_labels
from huaben.recipes.text import TextRecipe
from huaben.recipes.text_corpus import UnknownWords, chinese_words, described_scene, phrase_pair
from huaben.rng import numpy_stream
from huaben.world.vocabulary import KEYS


@pytest.fixture(scope="module")
def recipe() -> TextRecipe:
    return TextRecipe(preset="tiny", num_captions=300, num_phrases=100, batch_size=24, phrase_pairs=8)


def test_labels_name_what_is_said_and_what_is_not() -> None:
    said = {"species": "cat", "colour": "red", "place": "top"}
    labels = labels_of(said, CHARACTER_ATTRIBUTES)
    assert KEYS["species"][labels[0]] == "cat"
    assert KEYS["place"][labels[-1]] == "top"
    assert labels[2] == NUM_CLASSES["accessory"] - 1 == len(KEYS["accessory"])
    slots = slot_labels([said])
    assert slots[0].tolist() == labels
    assert slots[1].tolist() == [len(KEYS["species"])] + [IGNORED] * 6


def test_attribute_losses_ignore_and_average() -> None:
    names = ("facing", "size")
    logits = torch.zeros(2, 3 + 4)
    logits[0, 0] = 50.0
    labels = torch.tensor([[0, IGNORED], [IGNORED, IGNORED]])
    facing, size = attribute_losses(logits, labels, names).tolist()
    assert facing == pytest.approx(0.0, abs=1e-6)
    assert size == 0.0
    labels[1, 1] = 3
    assert attribute_losses(logits, labels, names)[1].item() == pytest.approx(np.log(4))


def test_corpus_labels_belong_to_the_texts(recipe: TextRecipe) -> None:
    corpus, tokenizer = recipe.corpus, recipe.tokenizer
    for row in (0, 1, 2, 3):
        text = tokenizer.decode(corpus.captions[row])
        assert (row % 2 == 1) == any("一" <= letter for letter in text)
    said = (corpus.slots[..., 1] >= 0).sum(1)
    assert set(said.tolist()) <= {0, 1, 2, 3}


def test_phrase_pairs_say_the_same() -> None:
    rng = numpy_stream(0, "pairs")
    for _ in range(20):
        english, chinese = phrase_pair(rng)
        assert english.facts == chinese.facts
        assert english.language == "en"
        assert chinese.language == "zh"


def test_described_scenes_are_even_and_trained_ones_only() -> None:
    rng = numpy_stream(0, "scenes")
    scenes = [described_scene(rng) for _ in range(200)]
    assert {len(scene.characters) for scene in scenes} <= {0, 1, 2, 3}


def test_words_leave_out_small_and_big() -> None:
    words = chinese_words()
    assert {"猫头鹰", "帽子", "大海"} <= set(words)
    assert not {"小猫", "小船", "大象"} & set(words)


def test_unknown_words_leave_what_is_said_alone(recipe: TextRecipe) -> None:
    rng, tokenizer = numpy_stream(0, "unknown"), recipe.tokenizer
    texts = ["a small red cat, with a hat; and a blue dog", "一只小小的红色的猫，戴着帽子；还有一只狗"]
    said = [[t for word in words for t in tokenizer.encode_ids(word)] for words in (
        ["small", "red", "cat", ",", "hat", ";", "and", "blue", "dog"], ["红色", "猫", "，", "帽子", "；", "还有", "狗"]
    )]  # fmt: skip
    unknown = UnknownWords(tokenizer)
    for row, kept in zip(tokenizer.encode_ragged(texts), said, strict=True):
        changed = [unknown(row, rng, 63) for _ in range(20)]
        assert sum(one != row for one in changed) > 10
        assert all(len(one) <= 63 for one in changed)
        for one in changed:
            rest = iter(one)
            assert all(token in rest for token in kept)  # in the same order
        assert len(unknown(row, rng, 2)) == len(row)


def test_unknown_words_come_late(recipe: TextRecipe) -> None:
    assert [recipe.unknown_share(step) for step in (0, 1500, 1800, 2100, 9000)] == pytest.approx([0, 0, 0.2, 0.4, 0.4])
    known = {tuple(row[row != PAD].tolist()) for row in recipe.corpus.captions}
    for step, low, high in ((0, 1.0, 1.0), (3000, 0.4, 0.95)):
        chunks = [chunk for more in range(4) for chunk in recipe.batch(step + more)["captions"]]
        rows = [tuple(row[row != PAD].tolist()) for chunk in chunks for row in chunk["targets"]]
        assert low <= np.mean([row in known for row in rows]) <= high


def test_a_batch_is_a_pure_function_of_the_step(recipe: TextRecipe) -> None:
    first, again, other = recipe.batch(2500), recipe.batch(2500), recipe.batch(2501)
    for one, two in zip(first["captions"], again["captions"], strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(first["phrases"], again["phrases"])
    assert not torch.equal(first["phrase_labels"], other["phrase_labels"])


def test_masked_rows_are_not_read_out(recipe: TextRecipe) -> None:
    for chunk in recipe.batch(0)["captions"]:
        hidden_rows = (chunk["ids"] == MASK).any(1)
        assert not (hidden_rows & chunk["read"]).any()
        assert torch.equal(chunk["ids"] != chunk["targets"], chunk["hidden"])
        assert ((chunk["ids"] != PAD).sum(1) > 0).all()


def test_the_loss_falls_in_a_few_steps(recipe: TextRecipe) -> None:
    torch.manual_seed(0)
    model = recipe.build().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(12):
        terms = recipe.loss(model, recipe.batch(0))
        terms["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append({name: float(term.detach()) for name, term in terms.items()})
    for name in recipe.weights:
        assert losses[-1][name] < losses[0][name], name
    assert losses[-1]["loss"] < 0.9 * losses[0]["loss"]


def test_every_weight_is_trained(recipe: TextRecipe) -> None:
    model = recipe.build()
    recipe.loss(model, recipe.batch(0))["loss"].backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_scores_are_shares_and_the_saved_folder_loads(recipe: TextRecipe, tmp_path) -> None:
    torch.manual_seed(0)
    model = recipe.build().eval()
    scores = recipe.evaluate(model)
    assert {"slots_en", "slots_zh", "slots_colour_zh", "phrase_paraphrase_en", "phrase_composition_zh"} <= set(scores)
    assert all(0 <= score <= 1 for score in scores.values())
    recipe.save(model, tmp_path)
    encoder, tokenizer = TextEncoder.from_pretrained(tmp_path), Tokenizer.from_pretrained(tmp_path)
    ids, mask = tokenizer.encode(["a red cat", "一只红色的猫"], encoder.config.max_length)
    with torch.no_grad():
        torch.testing.assert_close(encoder(ids, mask), model.encoder(ids, mask), rtol=0, atol=2e-2)
