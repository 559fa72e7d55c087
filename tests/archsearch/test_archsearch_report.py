"""Reports: complete without a finished trial, with pictures, in both languages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from huaben.archsearch.baselines import RandomSearch
from huaben.archsearch.candidates import Candidates
from huaben.archsearch.cells import CellSpace
from huaben.archsearch.relation import RelationConfig
from huaben.archsearch.report import REPORT_WORDS, write_report
from huaben.archsearch.search import ArchGraph, ArchGraphConfig
from huaben.archsearch.searcher import SearchConfig
from huaben.archsearch.task import TaskSpec
from huaben.errors import ConfigError, MissingDependencyError
from huaben.notices import placeholders
from huaben.optional import Probe, is_available

SPACE = CellSpace(nodes=3, ops=("none", "skip", "conv"), edges=[(0, 1), (0, 2), (1, 2)], null_op="none")
CANDIDATES = Candidates(SPACE)
TASK = TaskSpec("a <b> & c|d", "min")


def random_search(told: int) -> RandomSearch:
    search = RandomSearch(SPACE, TASK, config=SearchConfig(budget=6, max_retries=0), candidates=CANDIDATES)
    for number, trial in enumerate(search.ask(told) if told else []):
        search.tell(trial.id, None if number == 1 else float(number))
    return search


def arch_graph() -> ArchGraph:
    quick = RelationConfig(layers=1, width=8, head_width=8, task_dim=0, target_steps=5, restart="source")
    config = ArchGraphConfig(variant="single", budget=8, start=4, round_size=4, explore=1, members=2, predictor=quick)
    search = ArchGraph(SPACE, TASK, config=config, candidates=CANDIDATES)
    for trial in search.ask(8):
        search.tell(trial.id, float(sum(trial.arch)))
    return search


def test_both_languages_have_the_same_words() -> None:
    assert REPORT_WORDS["en"].keys() == REPORT_WORDS["zh"].keys()
    for key, text in REPORT_WORDS["en"].items():
        assert placeholders(text) == placeholders(REPORT_WORDS["zh"][key]), key


@pytest.mark.parametrize("language", ["en", "zh"])
def test_html_says_what_was_found_and_escapes_it(tmp_path: Path, language: Any) -> None:
    path = write_report(random_search(4), tmp_path, language=language, pictures=False)
    text = path.read_text(encoding="utf-8")
    assert "a &lt;b&gt; &amp; c|d" in text and "<b>" not in text
    assert REPORT_WORDS[language]["ranking"] in text
    assert "no value" in text
    assert f'lang="{language}"' in text
    assert list(tmp_path.iterdir()) == [path]


def test_markdown_keeps_its_columns(tmp_path: Path) -> None:
    text = write_report(random_search(3), tmp_path, form="md", pictures=False).read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows and all(line.endswith("|") for line in rows)
    assert text.startswith("# ")


def test_a_search_without_results_has_a_report(tmp_path: Path) -> None:
    text = write_report(random_search(0), tmp_path, pictures=False).read_text(encoding="utf-8")
    assert REPORT_WORDS["en"]["none"] in text


def test_relations_and_curve_are_drawn(tmp_path: Path) -> None:
    if not is_available("matplotlib"):
        pytest.skip("no Matplotlib")
    text = write_report(arch_graph(), tmp_path, top=6, optimum=0.0).read_text(encoding="utf-8")
    for name in ("curve.png", "relations.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert name in text
    assert "±" in text


def test_pictures_need_matplotlib_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huaben.optional.probe", lambda name: Probe(name, None))
    with pytest.raises(MissingDependencyError, match="matplotlib"):
        write_report(random_search(2), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_impossible_reports_are_refused(tmp_path: Path) -> None:
    for values in ({"form": "pdf"}, {"language": "de"}, {"top": 0}):
        with pytest.raises(ConfigError):
            write_report(random_search(1), tmp_path, **values)  # type: ignore[arg-type]
