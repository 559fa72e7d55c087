"""The Optuna sampler: suggests by Arch-Graph, and keeps nothing that the study does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from huaben.archsearch.candidates import Candidates
from huaben.archsearch.cells import CellSpace
from huaben.archsearch.optuna_sampler import archgraph_sampler
from huaben.archsearch.relation import RelationConfig
from huaben.archsearch.search import ArchGraphConfig
from huaben.errors import ConfigError, MissingDependencyError
from huaben.optional import Probe

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.WARNING)

SPACE = CellSpace(
    nodes=4,
    ops=("none", "skip", "conv"),
    edges=[(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)],
    null_op="none",
)
QUICK = RelationConfig(layers=1, width=8, head_width=8, task_dim=0, target_steps=10, dropout=0.0, restart="source")
CONFIG = ArchGraphConfig(variant="single", start=5, round_size=5, explore=1, members=2, top=16, predictor=QUICK)


def sampler(seed: int = 0) -> Any:
    return archgraph_sampler(SPACE, config=CONFIG, seed=seed)


def optimise(study: Any, count: int) -> None:
    def objective(trial: Any) -> float:
        arch = study.sampler.architecture(trial)
        if trial.number == 2:
            raise optuna.TrialPruned
        return float(sum(arch))

    study.optimize(objective, n_trials=count)


def archs(study: Any) -> list[tuple[Any, ...]]:
    return [tuple(trial.params[axis.name] for axis in SPACE.axes) for trial in study.trials]


def test_no_architecture_is_suggested_twice() -> None:
    study = optuna.create_study(direction="maximize", sampler=sampler())
    optimise(study, 15)
    keys = [SPACE.canonical(tuple(SPACE.ops.index(op) for op in arch)) for arch in archs(study)]
    assert len(set(keys)) == 15
    assert study.best_value > 6


def test_a_study_goes_on_after_a_restart_as_without(tmp_path: Path) -> None:
    whole = optuna.create_study(direction="maximize", sampler=sampler())
    optimise(whole, 12)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "log")))
    first = optuna.create_study(direction="maximize", sampler=sampler(), storage=storage, study_name="s")
    optimise(first, 7)
    second = optuna.load_study(study_name="s", sampler=sampler(), storage=storage)
    optimise(second, 5)
    assert archs(second) == archs(whole)


def test_running_trials_are_not_suggested_again() -> None:
    study = optuna.create_study(direction="minimize", sampler=sampler())
    asked = [study.ask() for _ in range(8)]
    seen = [study.sampler.architecture(trial) for trial in asked]
    assert len({SPACE.canonical(arch) for arch in seen}) == 8
    for trial, arch in zip(asked, seen, strict=True):
        study.tell(trial, float(sum(arch)))


def test_minimising_looks_for_small_values() -> None:
    found = {}
    for direction in ("minimize", "maximize"):
        study = optuna.create_study(direction=direction, sampler=sampler(1))
        optimise(study, 14)
        later = [trial.value for trial in study.trials[5:] if trial.value is not None]
        found[direction] = sum(later) / len(later)
    assert found["minimize"] < found["maximize"]


def test_the_end_of_the_space_is_an_error() -> None:
    tiny = CellSpace(nodes=2, ops=("none", "skip", "conv"), edges=[(0, 1)], null_op="none")
    config = CONFIG.replace(start=2, round_size=2, explore=0)
    study = optuna.create_study(direction="maximize", sampler=archgraph_sampler(tiny, config=config))
    optimise_tiny = lambda count: study.optimize(lambda t: float(sum(study.sampler.architecture(t))), n_trials=count)  # noqa: E731
    optimise_tiny(len(Candidates(tiny)))
    with pytest.raises(Exception, match="every architecture"):
        optimise_tiny(1)


def test_several_objectives_are_refused() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler())
    with pytest.raises(ConfigError, match="2 objectives"):
        study.sampler.architecture(study.ask())


def test_other_parameters_are_drawn_at_random() -> None:
    study = optuna.create_study(direction="maximize", sampler=sampler())
    study.optimize(lambda t: t.suggest_float("x", 0, 1) + sum(study.sampler.architecture(t)), n_trials=3)
    assert all(0 <= trial.params["x"] <= 1 for trial in study.trials)


def test_without_optuna_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huaben.optional.probe", lambda name: Probe(name, None))
    with pytest.raises(MissingDependencyError, match="optuna"):
        sampler()
