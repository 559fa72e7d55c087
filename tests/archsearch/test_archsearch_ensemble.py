"""Fitting: it learns, transfers, holds out architectures, resumes exactly, and reads no global random state."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from huaben.archsearch.base import Arch
from huaben.archsearch.calibration import Calibration, calibrate, expected_calibration_error
from huaben.archsearch.ensemble import RelationEnsemble
from huaben.archsearch.pairs import Observations, PairSampler, bag, observed
from huaben.archsearch.relation import RelationConfig
from huaben.archsearch.space import TransNASMacro, TransNASMicro
from huaben.archsearch.task import TaskSpec, TaskTable
from huaben.errors import CheckpointError, ConfigError, DataError

SPACE = TransNASMicro()
TINY = RelationConfig(
    layers=2, width=12, head_width=12, task_dim=4, dropout=0.0, source_steps=60, target_steps=30, pairs_per_task=96
)


def draw(count: int, seed: int) -> list[Arch]:
    return SPACE.sample_distinct(count, np.random.default_rng(seed))


def worth(archs: Sequence[Arch], seed: int = 0, sign: float = 1.0) -> list[float]:
    """A made-up task: each operation is worth something, a little more or less at each edge and for each seed."""
    table = np.array([-1.0, 0.0, 0.7, 1.3]) + 0.2 * np.random.default_rng(seed).normal(size=(6, 4))
    return [sign * float(sum(table[edge, code] for edge, code in enumerate(arch))) for arch in archs]


def sources(count: int = 40, tasks: int = 3) -> list[tuple[list[Arch], list[float]]]:
    archs = draw(count, 0)
    return [(archs, worth(archs, seed)) for seed in range(1, tasks + 1)]


def accuracy(ensemble: RelationEnsemble, archs: Sequence[Arch], values: Sequence[float]) -> float:
    p, _ = ensemble.probabilities(SPACE.encode(archs))
    first, second = np.triu_indices(len(archs), 1)
    gap = np.asarray(values)[first] - np.asarray(values)[second]
    return float(((p[first, second] > 0.5) == (gap > 0)).mean())


@pytest.fixture(scope="module")
def fitted() -> RelationEnsemble:
    return RelationEnsemble(SPACE, TINY, members=3, seed=1).fit_sources(sources())


def test_sources_transfer_and_target_values_help(fitted: RelationEnsemble) -> None:
    seen, unseen = draw(20, 5), draw(60, 6)
    zero = accuracy(fitted, unseen, worth(unseen, sign=-1.0))
    assert accuracy(fitted, unseen, worth(unseen)) > 0.75  # zero-shot, a task like the sources
    ensemble = fitted.clone()
    for _ in range(2):
        ensemble.fit_target(seen, worth(seen, sign=-1.0))  # a task unlike them
    assert accuracy(ensemble, unseen, worth(unseen, sign=-1.0)) > zero + 0.3
    assert accuracy(fitted, unseen, worth(unseen, sign=-1.0)) == zero  # the original is untouched


def test_target_alone_is_learned() -> None:
    seen, unseen = draw(30, 5), draw(60, 6)
    ensemble = RelationEnsemble(SPACE, TINY.replace(restart="source", target_steps=80), members=2, seed=0)
    ensemble.fit_sources([])
    report = ensemble.fit_target(seen, worth(seen))
    assert accuracy(ensemble, unseen, worth(unseen)) > 0.7
    assert report.steps <= 80
    assert len(report.held_out_loss) == 2
    before, _ = ensemble.probabilities(SPACE.encode(unseen))
    ensemble.rounds = 0
    ensemble.fit_target(seen, worth(seen))  # from scratch again: the same
    assert (ensemble.probabilities(SPACE.encode(unseen))[0] == before).all()


def test_the_same_seed_gives_the_same_bits_and_no_global_state_is_touched(fitted: RelationEnsemble) -> None:
    state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    torch.manual_seed(123)
    moved = torch.random.get_rng_state()
    twin = RelationEnsemble(SPACE, TINY, members=3, seed=1).fit_sources(sources())
    other = RelationEnsemble(SPACE, TINY, members=3, seed=2).fit_sources(sources())
    graphs = SPACE.encode(draw(10, 3))
    expected = fitted.probabilities(graphs)
    assert all((a == b).all() for a, b in zip(twin.probabilities(graphs), expected, strict=True))
    assert not (other.probabilities(graphs)[0] == expected[0]).all()
    assert torch.equal(torch.random.get_rng_state(), moved)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    torch.random.set_rng_state(state)


def test_probabilities_are_antisymmetric_and_members_differ(fitted: RelationEnsemble) -> None:
    p, std = fitted.probabilities(SPACE.encode(draw(30, 7)))
    assert np.abs(p + p.T - 1).max() <= 1e-6
    assert (np.diagonal(p) == 0.5).all()
    assert std == pytest.approx(std.T, abs=1e-5)
    assert (std[~np.eye(30, dtype=bool)] > 0).mean() > 0.9
    with pytest.raises(DataError, match="pairs"):
        fitted.probabilities(SPACE.encode(draw(30, 7)), max_pairs=100)


@pytest.mark.parametrize("restart", ["previous", "source"])
def test_saved_ensembles_go_on_as_if_not_interrupted(tmp_path: Path, restart: str) -> None:
    config = TINY.replace(restart=restart, target_steps=10, source_steps=10, eval_every=5)
    ensemble = RelationEnsemble(SPACE, config, members=2, seed=3).fit_sources(sources(20, 2))
    seen = draw(12, 4)
    ensemble.fit_target(seen[:6], worth(seen[:6]))
    ensemble.save(tmp_path / "saved")
    loaded = RelationEnsemble.load(tmp_path / "saved", SPACE)
    assert loaded.calibration == ensemble.calibration
    assert loaded.sources.archs == ensemble.sources.archs
    graphs = SPACE.encode(draw(8, 1))
    for _ in range(2):
        for one, other in zip(ensemble.probabilities(graphs), loaded.probabilities(graphs), strict=True):
            assert (one == other).all()
        ensemble.fit_target(seen, worth(seen))
        loaded.fit_target(seen, worth(seen))
    assert not list((tmp_path / "saved").glob("*.pkl"))


def test_broken_folders_are_refused(tmp_path: Path, fitted: RelationEnsemble) -> None:
    fitted.save(tmp_path / "whole")
    with pytest.raises(CheckpointError, match="another search space"):
        RelationEnsemble.load(tmp_path / "whole", TransNASMacro())
    with pytest.raises(CheckpointError):
        RelationEnsemble.load(tmp_path / "absent", SPACE)
    for name, change in (("config.json", b"{}"), ("model.safetensors", b"none")):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        (tmp_path / name / name).write_bytes(change)
        with pytest.raises(CheckpointError):
            RelationEnsemble.load(tmp_path / name, SPACE)
    shutil.copytree(tmp_path / "whole", tmp_path / "other")
    values = json.loads((tmp_path / "other" / "config.json").read_text())
    values["members"] = 2
    (tmp_path / "other" / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="not a complete ensemble"):
        RelationEnsemble.load(tmp_path / "other", SPACE)


def test_the_cache_returns_the_same_weights_without_fitting(tmp_path: Path) -> None:
    config = TINY.replace(source_steps=5, eval_every=0)
    graphs = SPACE.encode(draw(9, 2))
    first = RelationEnsemble(SPACE, config, members=2).fit_sources(sources(10, 2), cache=tmp_path)
    second = RelationEnsemble(SPACE, config.replace(target_steps=3), members=2).fit_sources(
        sources(10, 2), cache=tmp_path
    )
    assert len(list(tmp_path.iterdir())) == 1
    assert first.reports
    assert not second.reports
    assert (first.probabilities(graphs)[0] == second.probabilities(graphs)[0]).all()
    seen = draw(8, 3)
    first.fit_target(seen, worth(seen))
    fresh = RelationEnsemble(SPACE, config, members=2).fit_sources(sources(10, 2), cache=tmp_path)
    fresh.fit_target(seen, worth(seen))
    assert (first.probabilities(graphs)[0] == fresh.probabilities(graphs)[0]).all()
    RelationEnsemble(SPACE, config, members=2).fit_sources(sources(11, 2), cache=tmp_path)
    RelationEnsemble(SPACE, config, members=2, seed=1).fit_sources(sources(10, 2), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_given_task_vectors_stay_as_given() -> None:
    config = TINY.replace(source_steps=5, target_steps=5)
    given = [[1.0, 0, 0, 0], [0, 1.0, 0, 0]]
    ensemble = RelationEnsemble(SPACE, config, members=2).fit_sources(sources(10, 2), task_vectors=given)
    seen = draw(8, 3)
    assert ensemble.target_task == pytest.approx(torch.tensor([[0.5, 0.5, 0, 0]] * 2))
    ensemble.fit_target(seen, worth(seen), task_vector=[0.0, 0.0, 1.0, 0.5])
    assert torch.equal(ensemble._tasks, torch.tensor(given).expand(2, -1, -1))
    assert torch.equal(ensemble.target_task, torch.tensor([[0.0, 0.0, 1.0, 0.5]] * 2))
    ensemble.fit_target(seen, worth(seen))  # learned from there on
    assert torch.equal(ensemble._tasks, torch.tensor(given).expand(2, -1, -1))
    assert not torch.equal(ensemble.target_task, torch.tensor([[0.0, 0.0, 1.0, 0.5]] * 2))
    with pytest.raises(DataError, match="task vectors"):
        RelationEnsemble(SPACE, config).fit_sources(sources(10, 2), task_vectors=[[1.0, 2.0]] * 2)


def test_sources_that_mislead_get_no_weight() -> None:
    archs, seen = draw(50, 0), draw(25, 8)
    tables = [(archs, worth(archs, 1)), (archs, worth(archs, 1, -1.0))]
    ensemble = RelationEnsemble(SPACE, TINY.replace(source_steps=120), members=2).fit_sources(tables)
    weights = ensemble.source_weights(seen, worth(seen))
    assert weights[0] == 1.0
    assert weights[1] == 0.0
    before, _ = ensemble.probabilities(SPACE.encode(seen))
    assert ensemble.source_weights(seen, [1.0] * 25).tolist() == [1.0, 1.0]
    assert (ensemble.probabilities(SPACE.encode(seen))[0] == before).all()
    ensemble.fit_target(seen, worth(seen), source_weights=weights.tolist())
    for wrong in ([1.0], [1.0, -1.0], [1.0, float("nan")]):
        with pytest.raises(DataError, match="source_weights"):
            ensemble.fit_target(seen, worth(seen), source_weights=wrong)


def test_useless_values_change_nothing_or_are_refused(fitted: RelationEnsemble) -> None:
    graphs = SPACE.encode(draw(6, 2))
    ensemble, seen = fitted.clone(), draw(5, 3)
    assert ensemble.fit_target(seen, [1.0] * 5).steps > 0  # sources are rehearsed; equal values make no pair
    assert np.isfinite(ensemble.probabilities(graphs)[0]).all()
    ensemble.fit_target(seen, [float("nan")] * 4 + [1.0])
    lonely = RelationEnsemble(SPACE, TINY, members=1).fit_sources([(seen[:1], [2.0])])
    assert lonely.reports[0].steps == 0
    assert lonely.probabilities(graphs)[1].max() == 0
    with pytest.raises(DataError, match="come with values"):
        ensemble.fit_target(seen, [1.0, 2.0])
    with pytest.raises(DataError, match="nothing to fit"):
        RelationEnsemble(SPACE, TINY).fit_target([], [])
    with pytest.raises(ConfigError):
        RelationEnsemble(SPACE, TINY, members=0)


def test_extra_features_of_architectures_are_used() -> None:
    def encode(archs: Sequence[Arch]) -> object:
        return SPACE.encode(archs, extra=np.array([[float(sum(arch))] for arch in archs]).reshape(len(archs), 1))

    ensemble = RelationEnsemble(SPACE, TINY.replace(source_steps=3), members=1, encode=encode)  # type: ignore[arg-type]
    ensemble.fit_sources(sources(10, 1))
    assert ensemble.probabilities(encode(draw(4, 1)))[0].shape == (4, 4)  # type: ignore[arg-type]


# -- pairs


def test_bags_depend_on_seed_and_architecture_alone() -> None:
    archs = draw(300, 0)
    counts = bag(archs, 4, 7, TINY)
    assert (bag(archs[::-1], 4, 7, TINY)[:, ::-1] == counts).all()
    assert (bag(archs[:10], 4, 7, TINY) == counts[:, :10]).all()
    assert (bag(archs, 4, 8, TINY) != counts).any()
    assert abs(float((counts == 0).mean()) - np.exp(-1)) < 0.05
    held = bag(archs, 4, 7, TINY.replace(bootstrap=False)) == 0
    assert abs(float(held.mean()) - 0.1) < 0.04


def test_pairs_are_drawn_from_the_bag_and_judged_outside_it() -> None:
    archs = draw(30, 0)
    data = Observations.of([(archs, worth(archs)), (archs[:20], worth(archs[:20], 2))])
    counts = bag(archs, 2, 0, TINY)
    sampler = PairSampler(data, counts, TINY)
    subset = torch.arange(30).expand(2, -1)
    places, labels, weights = sampler.draw(subset, torch.Generator().manual_seed(0))
    for member in range(2):
        drawn = places[member][weights[member] > 0]
        assert (counts[member][drawn] > 0).all()
    used, truth, _ = places[:, 1], labels[:, 1], weights[:, 1]
    values = np.asarray(data.values[1])
    valid = weights[:, 1].numpy() > 0
    first, second = used[..., 0].numpy(), used[..., 1].numpy()
    assert ((values[first] > values[second])[valid] == (truth.numpy() > 0.5)[valid]).all()
    assert np.isfinite(values[first][valid]).all()
    judged, _, judged_weights = sampler.held_out(10_000, 0)
    for member in range(2):
        pairs = judged[member, 0][judged_weights[member, 0] > 0]
        zero = int((counts[member] == 0).sum())
        assert (counts[member][pairs] == 0).all()
        assert len(pairs) == zero * (zero - 1) // 2
    assert sampler.held_out(5, 0)[0].shape[2] == 5


def test_labels_ignore_increasing_transforms_and_skip_ties_and_close_pairs() -> None:
    archs = draw(6, 0)
    values = np.array([1.0, 2.0, 2.0, 5.0, 1.0 + 1e-12, np.nan])
    everything = torch.cartesian_prod(torch.arange(6), torch.arange(6)).view(1, 1, 36, 2)

    def label(values: np.ndarray, **changes: object) -> tuple[torch.Tensor, torch.Tensor]:
        config = TINY.replace(**changes)
        data = Observations.of([(archs, values), (archs, np.arange(6.0))])  # a second task keeps all six
        data = Observations(data.archs, data.values[:1])
        sampler = PairSampler(data, np.ones((1, 6), dtype=np.int64), config)
        found = sampler.label(everything)
        return found[0].view(6, 6), found[1].view(6, 6)

    plain, weight = label(values)
    assert weight.tolist() == [
        [0, 1, 1, 1, 1, 0],
        [1, 0, 0, 1, 1, 0],
        [1, 0, 0, 1, 1, 0],
        [1, 1, 1, 0, 1, 0],
        [1, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    assert plain[4, 0] == 1
    for transformed in (values + 1000, values * 3):
        other, other_weight = label(transformed)
        if (other_weight == weight).all():
            assert torch.equal(other * weight, plain * weight)
    cubed, cubed_weight = label(np.exp(values))
    assert torch.equal(cubed * weight, plain * weight)
    assert torch.equal(cubed_weight, weight)
    assert label(values, margin=1.0)[1].sum() == 8  # only 5.0 stands out
    soft, _ = label(values, soft=True)
    assert soft[3, 0] == pytest.approx(1 / (1 + np.exp(-1)))
    _, top = label(values, top_weight=2.0)
    assert top[3, 0] == 3
    assert top[1, 0] == 1


def test_observations_join_tables_and_drop_unusable_values() -> None:
    archs = draw(4, 0)
    table = TaskTable(SPACE, TaskSpec("loss", "min"), {archs[0]: 1.0, archs[1]: 3.0})
    assert observed(table)[1] == [-1.0, -3.0]
    data = Observations.of([observed(table), (archs[1:], [5.0, float("inf"), 6.0])])
    assert data.archs == (archs[0], archs[1], archs[3])
    assert np.array_equal(data.values, [[-1, -3, np.nan], [np.nan, 5, 6]], equal_nan=True)
    both = data.join(Observations.of([(archs[:1], [9.0])]))
    assert both.values.shape[0] == 3
    assert both.values[2, both.archs.index(archs[0])] == 9.0
    with pytest.raises(DataError, match="expected a TaskTable"):
        observed([1, 2])


# -- calibration


def test_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(0)
    true_logits = rng.normal(size=4000) * 1.5
    labels = rng.random(4000) < 1 / (1 + np.exp(-true_logits))
    found = calibrate(true_logits * 3, labels, "sources")
    assert found.temperature == pytest.approx(3.0, rel=0.15)
    assert found.ece < 0.03 < found.ece_before
    assert found.pairs == sum(found.counts) == 4000
    assert Calibration.from_dict(found.to_dict()) == found
    assert 0 < found.tau(0.7) < found.tau(0.9) < 0.5
    assert found.tau(1.01) == 0.5
    assert Calibration().tau(0.7) == 0.02


def test_expected_calibration_error_is_the_weighted_gap() -> None:
    p = np.array([0.9, 0.9, 0.1, 0.6])
    labels = np.array([True, False, False, True])
    assert expected_calibration_error(p, labels) == pytest.approx((3 * abs(0.9 - 2 / 3) + 0.4) / 4)
    assert expected_calibration_error(np.zeros(0), np.zeros(0, dtype=bool)) == 0.0
