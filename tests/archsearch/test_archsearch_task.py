"""Tables of evaluated architectures: orientation, ranks, regret, and rows that cannot be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from huaben.archsearch.space import Axis, MixedSpace, SequenceSpace, TransNASMicro
from huaben.archsearch.task import TRANSNAS_TASKS, TaskSpec, TaskTable
from huaben.errors import ConfigError, DataError

LINE = SequenceSpace(ops=tuple("abcdefgh"), length=(1, 1), separator="")
UP = TaskSpec("accuracy", "max")
DOWN = TaskSpec("loss", "min")


def table(values: list[float], spec: TaskSpec = UP) -> TaskTable:
    return TaskTable(LINE, spec, {(place + 1,): value for place, value in enumerate(values)})


def test_a_task_needs_a_direction() -> None:
    with pytest.raises(TypeError, match="direction"):
        TaskSpec("accuracy")  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="direction='up' is none of max, min"):
        TaskSpec("accuracy", "up")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is empty"):
        TaskSpec(" ", "max")
    with pytest.raises(ConfigError, match="lacks direction"):
        TaskSpec.from_dict({"name": "accuracy"})
    assert TaskSpec.from_dict(UP.to_dict()) == UP and UP.metric_mode == "final"
    assert len(TRANSNAS_TASKS) == 7 and {spec.direction for spec in TRANSNAS_TASKS.values()} == {"max"}


def test_ranks_are_competition_ranks_in_percent() -> None:
    found = table([1.0, 3.0, 3.0, 2.0])
    assert [found.best_rank_percent((place,)) for place in (1, 2, 3, 4)] == [100.0, 25.0, 25.0, 75.0]
    assert found.best_rank_percent([(1,), (4,)]) == 75.0
    assert found.best == (2,)
    assert found.rank_percent(9.0) == 25.0 and found.rank_percent(0.0) == 125.0  # below all of them


def test_regret_is_zero_at_the_best_and_one_at_the_median() -> None:
    found = table([0.0, 1.0, 2.0, 4.0, 5.0])
    assert [found.regret((place,)) for place in (5, 3, 1)] == [0.0, 1.0, pytest.approx(5 / 3)]
    flat = table([1.0, 1.0, 0.0])
    assert flat.regret((1,)) == 0.0 and math.isinf(flat.regret((3,)))
    with pytest.raises(DataError, match="no architecture given"):
        found.regret([])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=8))
def test_flipping_direction_and_sign_changes_nothing(values: list[int]) -> None:
    up, down = table([float(value) for value in values]), table([-float(value) for value in values], DOWN)
    assert np.array_equal(up.oriented_values(), down.oriented_values())
    for arch in up:
        assert up.best_rank_percent(arch) == down.best_rank_percent(arch)
        assert up.regret(arch) == down.regret(arch)
    assert up.best == down.best


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=8), st.integers(-20, 20))
def test_increasing_transforms_keep_ranks(values: list[int], shift: int) -> None:
    plain, bent = table([float(v) for v in values]), table([math.exp(v / 20) * 3 + shift for v in values])
    assert [plain.best_rank_percent(a) for a in plain] == [bent.best_rank_percent(a) for a in bent]


def test_values_are_kept_as_measured_and_compared_oriented() -> None:
    found = table([0.5, 0.25], DOWN)
    assert found.value((1,)) == 0.5 and found.oriented((1,)) == -0.5 and found.best == (2,)
    assert found.oriented_values([(2,), (1,)]).tolist() == [-0.25, -0.5]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_numbers_that_are_not_finite_name_their_row_or_fail(value: float) -> None:
    rows = [("a", 1.0), ("b", value)]
    with pytest.raises(DataError, match=r"accuracy, row 1: value .* is not finite"):
        TaskTable.from_rows(LINE, UP, rows)
    found = TaskTable.from_rows(LINE, UP, rows, nonfinite="failed")
    assert [found.state(LINE.parse(name)) for name in "abc"] == ["complete", "failed", "missing"]
    assert len(found) == 1 and found.best_rank_percent((1,)) == 100.0
    with pytest.raises(DataError, match="no value for b: it is failed"):
        found.value((2,))
    with pytest.raises(DataError, match="no value for c: it is missing"):
        found.oriented((3,))


@pytest.mark.parametrize("value", ["1.0", True, [1.0]])
def test_values_that_are_no_numbers_are_refused(value: object) -> None:
    with pytest.raises(DataError, match=r"row 0: value .* is not a number"):
        TaskTable.from_rows(LINE, UP, [("a", value)])  # type: ignore[list-item]


def test_repeated_rows_must_agree() -> None:
    assert len(TaskTable.from_rows(LINE, UP, [("a", 1.0), ("a", 1.0), ("b", None)])) == 1
    with pytest.raises(DataError, match="accuracy, row 2: a is 2, but row 0 has it with 1"):
        TaskTable.from_rows(LINE, UP, [("a", 1.0), ("b", 1.0), ("a", 2.0)])
    with pytest.raises(DataError, match="row 1: a is failed, but row 0 has it with 1"):
        TaskTable.from_rows(LINE, UP, [("a", 1.0), ("a", None)])
    with pytest.raises(DataError, match="has a value and failed"):
        TaskTable(LINE, UP, {(1,): 1.0}, failed=[(1,)])


def test_repeats_under_another_spelling_are_found() -> None:
    space = MixedSpace([Axis(name="x", choices=("p", "q")), Axis(name="y", choices=(1, 2), parent="x", when=("q",))])
    with pytest.raises(DataError, match="row 1"):  # y does not exist under p, so both rows are one architecture
        TaskTable(space, UP, {(0, 0): 1.0, (0, 1): 2.0})


def test_architectures_outside_the_space_name_their_row() -> None:
    with pytest.raises(DataError, match="accuracy, row 1: sequence: position 0 of 'z'"):
        TaskTable.from_rows(LINE, UP, [("a", 1.0), ("z", 1.0)])
    with pytest.raises(DataError, match=r"accuracy, row 0: .*has 2 positions"):
        TaskTable(LINE, UP, {(1, 2): 1.0})


def test_an_empty_table_has_no_rank() -> None:
    empty = TaskTable(LINE, UP, {})
    assert len(empty) == 0 and len(empty.oriented_values()) == 0
    for ask in (lambda: empty.best, lambda: empty.rank_percent(1.0)):
        with pytest.raises(DataError, match="has no value"):
            ask()


def test_twins_count_as_one_with_their_mean() -> None:
    space = TransNASMicro()
    twins = {(3, 0, 0, 0, 2, 0): 1.0, (0, 3, 0, 0, 0, 2): 2.0, (3, 1, 0, 0, 2, 0): 6.0, (1, 0, 0, 1, 0, 0): 5.0}
    found = TaskTable(space, UP, twins).class_means()
    assert sorted(found.values()) == [3.0, 5.0]
    assert found[space.canonical((3, 0, 0, 0, 2, 0))] == 3.0


def test_subsets_and_samples_keep_values_and_features() -> None:
    whole = TaskTable(
        LINE,
        DOWN,
        {(place,): float(place) for place in range(1, 9)},
        features={"params": {(place,): 2.0**place for place in range(1, 9)}},
    )
    drawn = whole.sample(3, np.random.default_rng(0))
    assert len(drawn) == 3 and all(drawn.value(arch) == whole.value(arch) for arch in drawn)
    assert len(whole.sample(100, np.random.default_rng(0))) == 8
    extra = whole.log_features(whole.archs, ["params"])
    assert extra.shape == (8, 1) and extra.dtype == np.float32
    assert extra.mean() == pytest.approx(0, abs=1e-6) and extra.std() == pytest.approx(1, abs=1e-5)
    assert np.allclose(np.diff(extra[:, 0]), np.diff(extra[:, 0])[0])  # logarithms of powers of two
    assert np.array_equal(drawn.log_features(drawn.archs, ["params"]), whole.log_features(drawn.archs, ["params"]))
    with pytest.raises(DataError, match="has no feature 'flops'"):
        whole.log_features(whole.archs)
    bad = TaskTable(LINE, UP, {(1,): 1.0}, features={"params": {(1,): 0.0}})
    with pytest.raises(DataError, match="not positive"):
        bad.log_features([(1,)], ["params"])
    with pytest.raises(DataError, match="feature 'params' lacks b"):
        bad.log_features([(2,)], ["params"])
    with pytest.raises(DataError, match="it is missing"):
        drawn.subset([arch for arch in whole if arch not in drawn])
