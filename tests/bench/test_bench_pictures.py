"""The measurements of painter and story: exact drawing scores 1, chance is chance, results files are complete."""

import json

import numpy as np
import pytest

from huaben import bench
from huaben.bench import experiment, painter, story
from huaben.bench.experiment import bootstrap, check_settings, run_experiment
from huaben.errors import UsageError
from huaben.stages.embedded.oracle import RendererPainter, RendererReader
from huaben.theater.performance import PerformanceConfig


class Forgetful:
    """Draws everything right, but never the individual of a reference."""

    def __init__(self):
        self.renderer = RendererPainter()
        self.limits = self.renderer.limits

    def paint(self, request, **kwargs):
        from dataclasses import replace

        characters = tuple(replace(character, reference=None) for character in request.characters)
        return self.renderer.paint(replace(request, characters=characters), **kwargs)


CONFIG = PerformanceConfig(size=(96, 96), steps=1)


def test_story_scores_the_renderer_one_and_its_baseline_near_chance():
    drawer = RendererPainter()
    results = story.measure(drawer, RendererReader(drawer), config=CONFIG, seed=1, kinds=1, individuals=6)
    assert results["reference"]["right"]["mean"] == 1.0
    assert results["first_page_recognised"]["mean"] == 1.0
    assert results["baseline"]["right"]["mean"] < 0.6
    assert results["gain"]["mean"] > 0.4
    assert results["reference"]["recognised"]["mean"] == results["baseline"]["recognised"]["mean"] == 1.0
    assert results["reference"]["right"]["n"] == results["stories"] == 6


def test_story_finds_a_painter_out_that_ignores_references():
    drawer = Forgetful()
    results = story.measure(drawer, RendererReader(drawer.renderer), config=CONFIG, seed=1, kinds=1, individuals=6)
    assert results["gain"]["mean"] == 0.0
    assert results["reference"]["right"]["mean"] < 0.6


def test_stories_keep_species_and_colour_and_change_the_rest():
    pages = story.make_story(5, 0, 3)
    looks = [page.page.characters[0] for page in pages]
    assert len({(c.attribute("species"), c.attribute("colour")) for c in looks}) == 1
    assert len({page.page.background for page in pages}) == 4
    assert len({page.seed for page in pages}) == 4
    other = story.make_story(5, 0, 4)[0].page.characters[0]
    assert other.attribute("species") == looks[0].attribute("species")


class Exact:
    """Draws the very scenes of an arm and knows them."""

    def __init__(self, arm, numbers, count):
        self.painter = RendererPainter()
        self.reader = RendererReader(self.painter)
        self.scenes = {}
        for number in numbers:
            for case in painter.cases(arm, number, seed=2, count=count, size=96, steps=1, scale=1.0):
                self.scenes[case.request.seed] = case.scene

    def paint(self, request, **_):
        from huaben.painting import Painting
        from huaben.world.render import render

        scene = self.scenes[request.seed]
        drawn = render(scene, request.size, masks=True)
        self.painter._remember(scene, drawn)
        return Painting(image=drawn.image, seed=request.seed, seconds=0.0)


@pytest.mark.parametrize("arm", painter.ARMS, ids=lambda arm: arm.name)
def test_painter_scores_exact_pictures_one(arm):
    exact = Exact(arm, (1, 2), 4)
    results = painter.measure(exact, exact.reader, seed=2, count=4, size=96, steps=1, numbers=(1, 2), arms=(arm,))
    scores = results[arm.name]
    assert scores["1"]["recognised"]["mean"] == 1.0
    assert scores["all"]["right"]["mean"] == 1.0
    assert scores["all"]["recognised"]["n"] == 8
    assert scores["en"]["recognised"]["n"] == scores["zh"]["recognised"]["n"] == 4
    assert ("placed" in scores["all"]) is arm.boxes


def test_painter_scores_other_pictures_low():
    arm = painter.ARMS[0]
    exact = Exact(arm, (2,), 6)
    seeds = sorted(exact.scenes)
    exact.scenes = dict(zip(seeds, [exact.scenes[s] for s in (*seeds[1:], seeds[0])], strict=True))
    results = painter.measure(exact, exact.reader, seed=2, count=6, size=96, steps=1, numbers=(2,), arms=(arm,))
    assert results[arm.name]["all"]["right"]["mean"] < 0.3


def test_prompts_say_every_colour_and_hold_to_their_split():
    for arm in painter.ARMS:
        for case in painter.cases(arm, 3, seed=0, count=4, size=128, steps=1, scale=1.0):
            assert len(case.request.characters) == (3 if arm.boxes else 0)
            if arm.scenes == "composition":
                from huaben.world.sample import is_held_out

                assert all(is_held_out(character) for character in case.scene.characters)


def test_bootstrap_surrounds_the_mean_and_repeats():
    values = list(np.random.default_rng(0).random(40))
    a, b = bootstrap(values, 1, "x"), bootstrap(values, 1, "x")
    assert a == b
    assert a["low"] < a["mean"] < a["high"]
    assert a["n"] == 40
    assert bootstrap([1.0, 1.0], 0) == {"mean": 1.0, "n": 2, "low": 1.0, "high": 1.0}
    assert bootstrap([], 0)["mean"] is None


def test_results_file_says_how_it_came_about(tmp_path, monkeypatch):
    class Fake:
        @staticmethod
        def run(*, seed=0, count=3, name="x"):
            return {"score": bootstrap([0.0, 1.0] * count, seed), "seen": np.float32(0.5), "name": name}

    monkeypatch.setattr(experiment, "load_bench", lambda name: Fake)
    record = run_experiment("fake", seed=4, settings={"count": "5", "name": "y"}, out=tmp_path)
    written = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert written == record
    assert record["config"] == {"count": 5, "name": "y"}
    assert record["results"]["score"]["n"] == 10
    assert {"seed", "seconds", "versions", "hardware", "commit", "date"} <= record.keys()


def test_unknown_names_and_settings_are_refused_with_the_nearest():
    with pytest.raises(UsageError, match="story"):
        bench.load_bench("stroy")
    with pytest.raises(UsageError, match="stories"):
        check_settings("story", story.run, {"stories": 3})
