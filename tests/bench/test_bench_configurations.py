"""The table of our own configurations: trained on tiny budgets, kept, gone on with, and searched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from huaben.archsearch.space import load_space
from huaben.bench.configurations import CLIPS, FAMILIES, PAINTERS, Family, search_table, step_cost, train_table
from huaben.errors import DataError
from huaben.recipes.clip import ClipRecipe


def family(calls: list[str]) -> Family:
    """Return a family whose trainings are a formula."""
    return Family(PAINTERS, {"words": "min", "boxes": "min"}, lambda values, seed, settings: (calls, 0.0))


@pytest.fixture
def formula(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []

    def point(kind: Family, space: object, arch: tuple[int, ...], **settings: object) -> dict[str, float]:
        calls.append(space.format(arch))  # type: ignore[attr-defined]
        worth = 1.0 / (1 + arch[0] + arch[1])
        return {"words": worth, "boxes": worth + 0.1 * arch[2], "steps": 10, "params": 100, "seconds": 1.0}

    monkeypatch.setattr("huaben.bench.configurations.train_point", point)
    return calls


def test_a_table_is_kept_and_gone_on_with(tmp_path: Path, formula: list[str]) -> None:
    space, path = load_space(PAINTERS), tmp_path / "painters.csv"
    common = {"tera": 1.0, "seed": 0, "settings": {}}
    first = train_table(family(formula), space, path, points=4, **common)
    assert len(formula) == 4
    again = train_table(family(formula), space, path, points=6, **common)
    assert len(formula) == 6  # the four are kept
    assert [row["arch"] for row in again[:4]] == [row["arch"] for row in first]
    assert len({row["arch"] for row in again}) == 6


def test_a_table_of_other_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "painters.csv"
    path.write_text("arch,loss\na,1\n", encoding="utf-8")
    with pytest.raises(DataError, match="columns"):
        train_table(FAMILIES["painters"], load_space(PAINTERS), path, points=1, tera=1.0, seed=0, settings={})


def test_the_search_beats_chance_on_a_table_with_an_order(tmp_path: Path, formula: list[str]) -> None:
    space = load_space(PAINTERS)
    rows = train_table(family(formula), space, tmp_path / "t.csv", points=24, tera=1.0, seed=0, settings={})
    found = search_table(space, family(formula), rows, budget=6, start=3, seeds=2, seed=0)
    assert found["points"] == 24
    assert set(found["percent_rank"]) == {"random", "evolution", "single", "full", "utility"}
    assert found["percent_rank"]["full"]["mean"] <= found["random_expected"]


def test_every_point_of_both_spaces_is_a_recipe() -> None:
    settings = {"cache": Path("nowhere"), "shards": 1, "scenes": 8}
    for name, definition in (("painters", PAINTERS), ("clips", CLIPS)):
        space = load_space(definition)
        for arch in space.sample_distinct(5, np.random.default_rng(0)):
            values = space.values(arch)
            recipe, rate = FAMILIES[name].recipe(values, 0, settings)
            assert rate == values["learning_rate"]
            assert recipe.settings["seed"] == 0


def test_a_step_costs_more_with_a_larger_batch() -> None:
    small, large = (ClipRecipe(preset="tiny", num_scenes=8, batch_size=size) for size in (2, 4))
    (more, parameters), (less, same) = step_cost(large), step_cost(small)
    assert more > 1.8 * less > 0
    assert parameters == same == sum(weight.numel() for weight in small.build().clip.parameters())
