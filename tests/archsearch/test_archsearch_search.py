"""The ask-and-tell contract, on every searcher; and Arch-Graph's own loop."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from huaben.archsearch.baselines import RandomSearch, RegularisedEvolution
from huaben.archsearch.candidates import Candidates
from huaben.archsearch.cells import CellSpace
from huaben.archsearch.searcher import SearchConfig, Searcher
from huaben.archsearch.task import TaskSpec
from huaben.archsearch.trials import Trial
from huaben.errors import CheckpointError, ConfigError, DataError, StoreError

SPACE = CellSpace(nodes=3, ops=("none", "skip", "conv"), edges=[(0, 1), (0, 2), (1, 2)], null_op="none", name="tiny")
CANDIDATES = Candidates(SPACE)
TASK = TaskSpec("toy", "max")


def metric(arch: tuple[int, ...]) -> float:
    return float(sum((place + 1) * choice for place, choice in enumerate(arch)))


def make(seed: int = 0, **values: Any) -> RandomSearch:
    return RandomSearch(SPACE, TASK, config=SearchConfig(**values), seed=seed, candidates=CANDIDATES)


def run(search: Searcher, score: Callable[[Trial], float | None] = lambda trial: metric(trial.arch)) -> list[str]:
    order = []
    while not search.done():
        for trial in search.ask(3):
            order.append(trial.text)
            search.tell(trial.id, score(trial))
    return order


def test_budget_is_spent_exactly_and_no_form_comes_twice() -> None:
    search = make(budget=7)
    order = run(search)
    assert len(order) == search.used == 7
    keys = [trial.key for trial in search.result().trials]
    assert len(set(keys)) == 7
    assert search.ask(5) == []


def test_twins_are_one_candidate() -> None:
    # An edge into node 1 does nothing where node 1 feeds nothing.
    assert SPACE.canonical((2, 1, 0)) == SPACE.canonical((0, 1, 0))
    assert len(CANDIDATES) == len({SPACE.canonical(arch) for arch in SPACE.enumerate()}) < SPACE.size
    assert all(
        min(a for a in SPACE.enumerate() if SPACE.canonical(a) == k) == arch
        for arch, k in zip(CANDIDATES.archs, CANDIDATES.keys, strict=True)
    )


def test_ask_beyond_the_space_returns_fewer() -> None:
    search = make(budget=1000)
    trials = search.ask(1000)
    assert len(trials) == len(CANDIDATES)
    assert search.ask(1) == []
    assert not search.done()
    for trial in trials:
        search.tell(trial.id, 0.0)
    assert search.done()
    assert search.left > 0


def test_pending_trials_are_not_proposed_again() -> None:
    search = make(budget=12)
    seen = [search.ask(1)[0].key for _ in range(12)]
    assert len(set(seen)) == 12
    assert len(search.pending()) == 12
    assert not search.done()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, np.float32("nan")])
def test_no_number_is_a_failure_and_never_a_label(value: float | None) -> None:
    search = make(max_retries=0)
    trial = search.ask(1)[0]
    told = search.tell(trial.id, value)
    assert told.state == "failed"
    assert told.error
    assert search.labels() == []
    assert search.tell(trial.id, value) == told
    assert search.result().best is None


@pytest.mark.parametrize("value", ["0.5", True, [1.0, 2.0], object()])
def test_something_else_than_a_number_is_refused(value: Any) -> None:
    search = make()
    trial = search.ask(1)[0]
    with pytest.raises(DataError, match="number"):
        search.tell(trial.id, value)
    assert search.pending() == [trial]


def test_telling_twice_is_the_same_and_telling_otherwise_is_an_error() -> None:
    search = make()
    first, second = search.ask(2)
    assert search.tell(first.id, 1.5) == search.tell(first.id, 1.5)
    with pytest.raises(DataError, match=r"complete with 1\.5"):
        search.tell(first.id, 2.0)
    with pytest.raises(DataError, match="complete"):
        search.tell(first.id, state="failed")
    with pytest.raises(DataError, match="no trial 99"):
        search.tell(99, 1.0)
    with pytest.raises(DataError, match="expected one of"):
        search.tell(second.id, 1.0, state="done")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="has value"):
        search.tell(second.id, 1.0, state="failed")
    with pytest.raises(ConfigError):
        search.ask(0)


def test_failures_are_tried_again_then_given_up() -> None:
    search = make(budget=10, max_retries=1)
    first = search.ask(1)[0]
    search.tell(first.id, state="failed", error="out of memory")
    again = search.ask(1)[0]
    assert (again.arch, again.attempt, again.origin) == (first.arch, 2, "retry")
    assert again.id != first.id
    search.tell(again.id, state="lost")
    rest = run(search)
    assert first.text not in rest
    assert search.used == 10
    assert [trial.text for trial in search.log.given_up()] == [first.text]


def test_a_trial_that_was_not_asked_for_cannot_be_told() -> None:
    search = make()
    first = search.ask(1)[0]
    with pytest.raises(DataError, match="not asked for"):
        search.tell(first.id + 1, 1.0)


def test_pruned_trials_are_neither_labels_nor_tried_again() -> None:
    search = make(budget=3)
    trial = search.ask(1)[0]
    search.tell(trial.id, state="pruned")
    assert trial.text not in run(search)
    assert len(search.labels()) == 2


def test_refunded_failures_cost_nothing_and_still_end() -> None:
    search = make(budget=4, max_retries=1, refund_failed=True)
    bad = {arch for arch in CANDIDATES.archs if arch[0] == 0}
    order = run(search, lambda trial: None if trial.arch in bad else metric(trial.arch))
    assert len(search.labels()) == 4 == search.used
    assert len(order) >= 4
    hopeless = make(budget=4, refund_failed=True)
    assert len(run(hopeless, lambda trial: None)) == 2 * len(CANDIDATES)


def test_failed_is_bad_labels_what_was_given_up_below_the_worst() -> None:
    search = make(budget=6, max_retries=0, failed_is_bad=True)
    for number, trial in enumerate(search.ask(6)):
        search.tell(trial.id, None if number == 0 else float(number))
    labels = {trial.id: value for trial, value in search.labels()}
    assert len(labels) == 6
    assert labels[0] < min(value for number, value in labels.items() if number)
    assert search.result().best is not None
    assert search.result().best.id == 5  # type: ignore[union-attr]


def test_direction_decides_the_best() -> None:
    for direction, expected in (("max", 5.0), ("min", 0.0)):
        search = RandomSearch(SPACE, TaskSpec("toy", direction), config=SearchConfig(budget=6))  # type: ignore[arg-type]
        for number, trial in enumerate(search.ask(6)):
            search.tell(trial.id, float(number))
        best = search.result().best
        assert best is not None
        assert best.value == expected
        assert search.result().best_so_far()[-1] == expected


def test_the_same_seed_proposes_the_same_and_another_one_differs() -> None:
    assert run(make(3)) == run(make(3))
    assert run(make(3)) != run(make(4))


def test_observed_results_are_learned_from_and_cost_nothing() -> None:
    search = make(budget=5)
    search.observe((2, 2, 2), 9.0)
    search.observe((1, 1, 1), math.nan)
    order = run(search)
    assert len(order) == 5
    assert SPACE.format((2, 2, 2)) not in order
    best = search.result().best
    assert best is not None and best.arch == (2, 2, 2)
    with pytest.raises(DataError):
        search.observe((9, 9, 9), 1.0)


# ------------------------------------------------------------------------------------------------------ persistence


def test_a_killed_search_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = run(make(5, budget=12))
    search = make(5, budget=12)
    search.save(tmp_path / "run")
    resumed: list[str] = []
    while True:
        trials = search.ask(1)
        if not trials:
            break
        resumed += [trial.text for trial in trials]
        if len(resumed) % 4 == 2:  # killed between ask and tell
            search = RandomSearch.load(tmp_path / "run")
            assert search.pending() == trials
        for trial in search.pending():
            search.tell(trial.id, metric(trial.arch))
        if len(resumed) % 4 == 3:
            search = RandomSearch.load(tmp_path / "run")
    assert resumed == whole
    assert search.done()


def test_the_log_only_grows_and_says_everything(tmp_path: Path) -> None:
    search = make(budget=3)
    search.save(tmp_path)
    before = b""
    for trial in search.ask(3):
        search.tell(trial.id, 1.0)
        data = (tmp_path / "trials.jsonl").read_bytes()
        assert data.startswith(before) and len(data) > len(before)
        before = data
    kinds = [json.loads(line)["event"] for line in before.splitlines()]
    assert kinds == ["round", "ask", "tell", "tell", "tell"]
    assert RandomSearch.load(tmp_path).result().to_dict()["trials"] == search.result().to_dict()["trials"]


@pytest.mark.parametrize("tail", [b'{"event": "tell", "id": 0, "sta', b'{"event": "te\n', b"\xff\xfe\n"])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    search = make(budget=3)
    search.save(tmp_path)
    trial = search.ask(1)[0]
    log = tmp_path / "trials.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + tail)
    with pytest.warns(UserWarning, match="incomplete"):
        again = RandomSearch.load(tmp_path)
    assert log.read_bytes() == whole
    assert again.pending() == [trial]
    again.tell(trial.id, 2.0)
    assert RandomSearch.load(tmp_path).labels()[0][1] == 2.0


def test_a_damaged_line_inside_is_an_error_with_its_number(tmp_path: Path) -> None:
    search = make(budget=3)
    search.save(tmp_path)
    for trial in search.ask(2):
        search.tell(trial.id, 1.0)
    log = tmp_path / "trials.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([lines[0], b'{"event": "dance"}\n', *lines[2:]]))
    with pytest.raises(DataError, match="line 2"):
        RandomSearch.load(tmp_path)


def test_folders_are_not_mixed_up(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no search\.json"):
        RandomSearch.load(tmp_path)
    make().save(tmp_path)
    with pytest.raises(CheckpointError, match="'random' search, expected 'evolution'"):
        RegularisedEvolution.load(tmp_path)
    with pytest.raises(DataError, match="holds a search already"):
        make().save(tmp_path)
    manifest = json.loads((tmp_path / "search.json").read_text())
    (tmp_path / "search.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(CheckpointError, match="format_version 99"):
        RandomSearch.load(tmp_path)
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        RandomSearch.load(tmp_path)


def test_what_cannot_be_written_has_not_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = make(budget=3)
    search.save(tmp_path)
    trial = search.ask(1)[0]

    def full(path: Path, line: str) -> None:
        raise StoreError("disk full")

    monkeypatch.setattr("huaben.archsearch.trials.append_line", full)
    with pytest.raises(StoreError):
        search.tell(trial.id, 1.0)
    with pytest.raises(StoreError):
        search.ask(1)
    monkeypatch.undo()
    assert search.pending() == [trial]
    search.tell(trial.id, 1.0)
    assert RandomSearch.load(tmp_path).result().used == 1


def test_a_version_1_folder_still_loads(tmp_path: Path) -> None:
    manifest: Mapping[str, Any] = {
        "format": "huaben search",
        "format_version": 1,
        "method": "random",
        "space": SPACE.definition(),
        "task": {"name": "toy", "direction": "min"},
        "seed": 7,
        "config": {"budget": 4},
    }
    arch = [0, 1, 0]
    trial = {"id": 0, "arch": arch, "text": "0 1 0", "key": SPACE.canonical((0, 1, 0)), "origin": "random", "round": 0}
    events = [
        {"event": "round", "round": 0, "trials": [trial]},
        {"event": "ask", "ids": [0]},
        {"event": "tell", "id": 0, "state": "complete", "value": 0.25, "error": ""},
    ]
    (tmp_path / "search.json").write_text(json.dumps(manifest))
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    search = RandomSearch.load(tmp_path)
    assert (search.config.budget, search.left, search.seed) == (4, 3, 7)
    best = search.result().best
    assert best is not None and best.value == 0.25


# ---------------------------------------------------------------------------------------------------------- threads


def test_eight_threads_keep_the_log_consistent(tmp_path: Path) -> None:
    search = make(budget=16, max_retries=0)
    search.save(tmp_path)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while trials := search.ask(1):
                for trial in trials:
                    search.tell(trial.id, metric(trial.arch))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert search.used == 16 and search.done()
    again = RandomSearch.load(tmp_path)
    assert again.log.trials == search.log.trials
    assert len({trial.key for trial in again.log.trials}) == 16


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["ask", "good", "bad", "lost", "pruned"]), st.integers(0, 5)), max_size=60
    ),
    budget=st.integers(1, 12),
    retries=st.integers(0, 2),
    refund=st.booleans(),
)
def test_any_interleaving_keeps_the_contract(
    steps: list[tuple[str, int]], budget: int, retries: int, refund: bool
) -> None:
    search = make(budget=budget, max_retries=retries, refund_failed=refund)
    states = {"bad": "failed", "lost": "lost", "pruned": "pruned"}
    for action, number in steps:
        running = search.pending()
        if action == "ask":
            handed = search.ask(number + 1)
            assert len(handed) <= number + 1
            assert not {trial.id for trial in handed} & {trial.id for trial in running}
        elif running:
            trial = running[number % len(running)]
            if action == "good":
                search.tell(trial.id, float(number))
            else:
                search.tell(trial.id, state=states[action])  # type: ignore[arg-type]
        assert search.used <= budget
        first = [trial.key for trial in search.log.trials if trial.attempt == 1]
        assert len(first) == len(set(first))
        assert all(trial.attempt <= retries + 1 for trial in search.log.trials)
        if search.done():
            assert not search.pending() and search.ask(1) == []
