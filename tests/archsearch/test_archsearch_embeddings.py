"""Task embeddings: Fisher information against closed forms, kinds of output, caching, and the ones without samples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from huaben.archsearch.embeddings import (
    IGNORED,
    ConvProbe,
    GivenEmbedding,
    LearnedTaskEmbedding,
    NullEmbedding,
    ResponseEmbedding,
    Task2VecConfig,
    Task2VecEmbedder,
    TaskData,
    TransformerProbe,
    default_probe,
    fisher_distance,
    spearman,
)
from huaben.archsearch.space import SequenceSpace
from huaben.archsearch.task import TaskSpec, TaskTable
from huaben.errors import ConfigError, DataError, ShapeError

FAST = Task2VecConfig(epochs=2, per_sample="loop", batch=4)
LINE = SequenceSpace(ops=tuple("abcdefgh"), length=(1, 1), separator="")


def pictures(count: int = 6, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def tasks() -> list[TaskData]:
    x = pictures()
    tiles = x.unfold(2, 4, 4).unfold(3, 4, 4).flatten(2, 3).transpose(1, 2)  # N tiles C 4 4
    labels = torch.arange(6)
    return [
        TaskData("classes", x, labels % 3, "classification", 3),
        TaskData("tags", x, torch.stack([labels % 2, labels % 3 % 2], 1).float(), "multilabel"),
        TaskData("mean", x, x.mean((1, 2, 3)), "regression"),
        TaskData("means", x, x.mean((2, 3)), "laplace"),
        TaskData("copy", x, x.clone(), "laplace", kind="self-supervised"),
        TaskData("normals", x, x.flip(1), "regression"),
        TaskData("segments", x, (x[:, 0] > 0.5).long(), "segmentation", 2),
        TaskData("jigsaw", tiles, labels % 4, "jigsaw", 4),
    ]


@pytest.fixture(scope="module")
def embedder() -> Task2VecEmbedder:
    return Task2VecEmbedder(ConvProbe(widths=(8,)), config=FAST)


class Linear(nn.Module):
    """Features w * x of a number x, for closed forms."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(1, len(weight), bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(weight[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_fisher_of_a_gaussian_output_is_its_closed_form() -> None:
    weight = torch.tensor([0.5, -1.0, 2.0])
    x = torch.linspace(-1, 1, 40)[:, None]
    data = TaskData("line", x, x[:, 0], "regression")
    found = Task2VecEmbedder(Linear(weight), config=Task2VecConfig(epochs=0, passes=300, per_sample="loop", batch=40))
    head, _ = found._fit_head(data, x)
    # log p = -(y - h.w x)^2 / 2 with y ~ N(h.w x, 1): d/dw_k = n h_k x, whose square has the mean (h_k x)^2.
    expected = (head[0] ** 2 * (x**2).mean()).numpy()
    vmapped = Task2VecEmbedder(Linear(weight), config=Task2VecConfig(epochs=0, passes=300, batch=40))
    assert vmapped.fisher(data) == pytest.approx(expected, rel=0.05)


def test_fisher_of_a_bernoulli_and_a_laplace_output_is_its_closed_form() -> None:
    weight = torch.tensor([1.0, -0.5])
    x = torch.linspace(-2, 2, 40)[:, None]
    settings_ = Task2VecConfig(epochs=0, passes=300, batch=40)
    for likelihood in ("multilabel", "laplace"):
        data = TaskData("line", x, (x > 0).float(), likelihood)  # type: ignore[arg-type]
        found = Task2VecEmbedder(Linear(weight), config=settings_)
        head, bias = found._fit_head(data, x)
        p = torch.sigmoid(x * (weight @ head[0]) + bias)
        information = p * (1 - p) if likelihood == "multilabel" else torch.ones_like(p)
        expected = (head[0][:, None] ** 2 * (information * x**2).mean()).numpy()[:, 0]
        assert found.fisher(data) == pytest.approx(expected, rel=0.06), likelihood


def test_labels_are_sampled_from_the_model_not_taken_from_the_data() -> None:
    x = pictures(8)
    settings_ = FAST.replace(epochs=0)  # the head does not see the labels either
    first = TaskData("a", x, torch.zeros(8, dtype=torch.long), "classification", 3)
    second = TaskData("b", x, torch.arange(8) % 3, "classification", 3)
    embed = Task2VecEmbedder(ConvProbe(widths=(8,)), config=settings_)
    assert np.array_equal(embed.fisher(first), embed.fisher(second))


def test_gradients_one_by_one_and_all_at_once_agree(embedder: Task2VecEmbedder) -> None:
    together = Task2VecEmbedder(ConvProbe(widths=(8,)), config=FAST.replace(per_sample="vmap"))
    for task in tasks():
        assert together.fisher(task) == pytest.approx(embedder.fisher(task), rel=1e-3, abs=1e-9), task.name


def test_every_kind_of_output_has_its_fisher_vector(embedder: Task2VecEmbedder) -> None:
    # 3x3 filters: 8 down, 8 block; scales: 8 + 8. The head has no part.
    assert embedder.num_filters == 32
    for task in tasks():
        vector = embedder.fisher(task)
        assert vector.shape == (32,) and vector.dtype == np.float64
        assert (vector >= 0).all() and vector.sum() > 0, task.name
    plain = Task2VecEmbedder(ConvProbe(widths=(8,)), config=FAST.replace(include_norms=False))
    assert plain.num_filters == 16
    filters = [place for place, name in enumerate(n for n in embedder.filters for _ in range(8)) if "norm" not in name]
    assert plain.fisher(tasks()[0]) == pytest.approx(embedder.fisher(tasks()[0])[filters])


def test_distances_are_a_normalised_cosine(embedder: Task2VecEmbedder) -> None:
    found = embedder.distances(tasks())
    assert np.array_equal(found, found.T) and not found.diagonal().any()
    assert (found[~np.eye(len(found), dtype=bool)] > 0).all() and (found <= 1).all()
    a, b = np.array([1.0, 3.0]), np.array([3.0, 1.0])
    assert fisher_distance(a, b) == pytest.approx(1 - (2 * 0.25 * 0.75) / (0.25**2 + 0.75**2))
    assert fisher_distance(a, a) == 0 and fisher_distance(a, 2 * a) == pytest.approx(0, abs=1e-12)


def test_embeddings_are_reduced_with_type_and_sizes(embedder: Task2VecEmbedder) -> None:
    every = tasks()
    fresh = Task2VecEmbedder(ConvProbe(widths=(8,)), config=FAST)
    with pytest.raises(ConfigError, match="no task was fitted"):
        fresh.embed(every[0])
    with pytest.raises(DataError, match="at least 2"):
        fresh.fit(every[:1])
    vectors = embedder.fit(every).embed_all(every)
    assert vectors.shape == (8, 16) and vectors.dtype == np.float32
    components = vectors[:, :7]  # 8 tasks span 7 dimensions
    assert np.allclose(components.mean(0), 0, atol=1e-5) and np.allclose(components.std(0), 1, atol=1e-4)
    assert not vectors[:, 7:10].any()
    kinds = ["classification", "classification", "regression", "regression", "self-supervised", "dense", "dense"]
    order = ["classification", "dense", "regression", "self-supervised"]
    assert vectors[:7, 10:14].argmax(1).tolist() == [order.index(kind) for kind in kinds]
    assert vectors[0, 14] == pytest.approx(math.log10(3 * 8 * 8) / 6)
    assert embedder.vectors({"mine": every[0]})["mine"] == pytest.approx(vectors[0].tolist())
    unseen = TaskData("new", pictures(seed=5), torch.arange(6) % 2, "classification", 2)
    assert np.isfinite(embedder.embed(unseen)).all()


def test_a_random_projection_needs_no_other_task() -> None:
    settings_ = FAST.replace(reduce="random", dim=9)
    embed = Task2VecEmbedder(ConvProbe(widths=(8,)), config=settings_)
    again = Task2VecEmbedder(ConvProbe(widths=(8,)), config=settings_)
    task = tasks()[0]
    assert embed.embed(task).shape == (9,) and np.array_equal(embed.embed(task), again.embed(task))


def test_fisher_vectors_are_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tasks()[0]
    probe = ConvProbe(widths=(8,))
    first = Task2VecEmbedder(probe, config=FAST, cache=tmp_path).fisher(task)
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) == 1
    second = Task2VecEmbedder(probe, config=FAST, cache=tmp_path)

    def refuse(data: TaskData) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr(second, "_compute", refuse)
    renamed = TaskData("another name", task.inputs, task.targets, task.likelihood, task.num_classes)
    assert np.array_equal(second.fisher(renamed), first)
    changed = TaskData("classes", task.inputs + 0.01, task.targets, task.likelihood, task.num_classes)
    with pytest.raises(AssertionError, match="computed again"):
        second.fisher(changed)
    other = Task2VecEmbedder(ConvProbe(widths=(8,), seed=1), config=FAST, cache=tmp_path)
    monkeypatch.setattr(other, "_compute", refuse)
    with pytest.raises(AssertionError, match="computed again"):
        other.fisher(task)
    files[0].write_bytes(b"half")
    third = Task2VecEmbedder(probe, config=FAST, cache=tmp_path)
    assert np.array_equal(third.fisher(task), first)


def test_results_say_which_probe_was_used() -> None:
    assert Task2VecEmbedder(ConvProbe(widths=(8,), seed=3)).describe()["probe"].startswith("random conv")
    assert Task2VecEmbedder(nn.Linear(2, 2)).describe()["probe"] == "user's probe"
    assert Task2VecEmbedder(nn.Linear(2, 2), label="ResNet-34").describe()["probe"] == "ResNet-34"


def test_the_users_probe_is_left_alone() -> None:
    probe = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()).train()
    before = {name: tensor.clone() for name, tensor in probe.state_dict().items()}
    found = Task2VecEmbedder(probe, config=FAST).fisher(tasks()[0])
    assert found.shape == (16,)  # 8 filters and 8 batch-norm scales
    assert probe.training and all(p.requires_grad and p.grad is None for p in probe.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in probe.state_dict().items())


def test_probes_may_leave_parts_out_and_need_filters() -> None:
    probe = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1))
    assert Task2VecEmbedder(probe, exclude=["1"]).num_filters == 8
    with pytest.raises(ConfigError, match="no weights that count"):
        Task2VecEmbedder(nn.Flatten())
    transposed = nn.Sequential(nn.ConvTranspose2d(3, 8, 2))
    assert Task2VecEmbedder(transposed, config=FAST).fisher(tasks()[0]).shape == (8,)


def test_text_tasks_with_padding() -> None:
    tokens = torch.arange(30).view(6, 5) % 11
    mask = torch.ones(6, 5, dtype=torch.bool)
    mask[:, 3:] = False
    probe = TransformerProbe(vocab_size=11, width=8, num_layers=1, num_heads=2)
    embed = Task2VecEmbedder(probe, config=FAST)
    noise = tokens.clone()
    noise[:, 3:] = 7  # padding may hold anything
    for likelihood, targets in (("classification", tokens[:, 0] % 3), ("segmentation", tokens % 3)):
        task = TaskData("text", tokens, targets, likelihood, 3, mask=mask)  # type: ignore[arg-type]
        same = TaskData("text", noise, targets, likelihood, 3, mask=mask)  # type: ignore[arg-type]
        assert embed.fisher(task) == pytest.approx(embed.fisher(same), rel=1e-4, abs=1e-12)
        together = Task2VecEmbedder(probe, config=FAST.replace(per_sample="vmap"))
        assert together.fisher(task) == pytest.approx(embed.fisher(task), rel=1e-3, abs=1e-9)
    # 24 qkv, 8 out, 32 up, 8 down; three norms of 8: the table of tokens does not count.
    assert embed.num_filters == 96


def test_probes_are_seeded_whatever_the_global_state() -> None:
    torch.manual_seed(1)
    first = ConvProbe(widths=(8,), seed=4)
    torch.manual_seed(2)
    second = default_probe("image", seed=4)
    again = ConvProbe(widths=(8,), seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert second(pictures(2)).shape == (2, 128, 1, 1)
    assert default_probe("text", vocab_size=9)(torch.zeros(2, 4, dtype=torch.long)).shape == (2, 4, 64)
    with pytest.raises(ShapeError, match="the probe expects"):
        first(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ConfigError, match="multiples of 8"):
        ConvProbe(widths=(7,))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda x: TaskData("t", x, torch.arange(6), "classes", 6), ConfigError, "likelihood='classes' is none of"),
        (lambda x: TaskData("t", x, torch.arange(5), "classification", 6), DataError, "6 inputs and 5 targets"),
        (lambda x: TaskData("t", x, torch.arange(6), "classification", 5), DataError, "label 5 is none of 0 to 4"),
        (lambda x: TaskData("t", x, torch.arange(6), "classification", 1), ConfigError, "num_classes=1"),
        (lambda x: TaskData("t", x, torch.rand(6), "classification", 3), DataError, "expected whole numbers"),
        (lambda x: TaskData("t", x, torch.rand(6, 2), "multilabel"), DataError, "not all 0 or 1"),
        (lambda x: TaskData("t", x, torch.rand(6, 2, 2), "regression"), ShapeError, "1 or 2 or 4 dimensions"),
        (lambda x: TaskData("t", x, torch.arange(6), "regression"), DataError, "expected floating point"),
        (lambda x: TaskData("t", x, torch.arange(6) % 2, "jigsaw", 2), ShapeError, r"\(N, tiles, C, H, W\)"),
        (lambda x: TaskData("t", x / 0, torch.arange(6), "classification", 6), DataError, "inputs of sample 0"),
        (
            lambda x: TaskData("t", x, torch.full((6,), math.nan), "regression"),
            DataError,
            "targets of sample 0 are not finite",
        ),
        (
            lambda x: TaskData("t", x, torch.arange(6), "classification", 6, mask=torch.ones(6, 9).bool()),
            ShapeError,
            "mask is",
        ),
    ],
)
def test_task_data_is_checked(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(pictures())


def test_dense_tasks_need_feature_maps() -> None:
    pooled = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ShapeError, match="do not fit the probe's features"):
        Task2VecEmbedder(pooled, config=FAST).fisher(tasks()[6])
    assert Task2VecEmbedder(pooled, config=FAST).fisher(tasks()[0]).shape == (8,)
    labels = torch.full((6, 8, 8), IGNORED)
    labels[:, :4] = 1
    segments = TaskData("part", pictures(), labels, "segmentation", 2)
    assert (Task2VecEmbedder(ConvProbe(widths=(8,)), config=FAST).fisher(segments) > 0).any()


@pytest.mark.parametrize(
    "change", [{"dim": 6}, {"batch": 0}, {"epochs": -1}, {"learning_rate": 0.0}, {"max_samples": 0}]
)
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Task2VecConfig(**change)


def table(values: list[float], spec: TaskSpec) -> TaskTable:
    return TaskTable(LINE, spec, {(place + 1,): value for place, value in enumerate(values)})


def test_responses_are_rank_correlations_with_the_sources() -> None:
    up = table([1, 2, 3, 4, 5, 6], TaskSpec("up", "max"))
    loss = table([1, 2, 3, 4, 5, 6], TaskSpec("loss", "min"))
    few = table([1, 2], TaskSpec("few", "max"))
    embed = ResponseEmbedding([up, loss, few], min_common=3)
    assert embed.embed(up).tolist() == [1, -1, 0]
    assert embed.embed({(1,): 0.0, (2,): 5.0, (4,): 7.0}).tolist() == [1, -1, 0]
    assert embed.embed({(1,): 0.0}).tolist() == [0, 0, 0]
    assert embed.embed({(1,): 2.0, (2,): 2.0, (3,): 2.0}).tolist() == [0, 0, 0]  # constant: no opinion
    assert embed.dim == 3 and embed.describe()["sources"] == ["up", "loss", "few"]
    with pytest.raises(ConfigError, match="no source task"):
        ResponseEmbedding([])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=3, max_size=12))
def test_spearman_equals_scipys(pairs: list[tuple[int, int]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    first, second = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    if len(set(first)) < 2 or len(set(second)) < 2:
        assert spearman(first, second) == 0
    else:
        assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)


def test_given_vectors_by_name_specification_or_table() -> None:
    embed = GivenEmbedding({"up": [1, 2], "down": np.array([0.5, 1.0])})
    spec = TaskSpec("up", "max")
    for task in ("up", spec, table([1.0], spec)):
        assert embed.embed(task).tolist() == [1, 2]
    assert embed.embed_all([]).shape == (0, 2)
    with pytest.raises(DataError, match="'dawn' has no vector; hint: did you mean 'down'"):
        embed.embed("dawn")
    for bad in ({}, {"a": [1], "b": [1, 2]}, {"a": [math.nan]}, {"a": [[1.0]]}, {"a": ["x"]}):
        with pytest.raises(ConfigError):
            GivenEmbedding(bad)  # type: ignore[arg-type]


def test_learned_vectors_start_small_and_a_new_task_at_their_mean() -> None:
    learned = LearnedTaskEmbedding(dim=8)
    start = learned.initial(6, np.random.default_rng(0))
    assert start.shape == (6, 8) and start.dtype == np.float32 and 0.05 < start.std() < 0.2
    assert np.allclose(learned.unseen(start), start.mean(0))
    assert not learned.unseen(start[:0]).any()
    with pytest.raises(ConfigError, match="dim=0"):
        LearnedTaskEmbedding(dim=0)


def test_null_vectors_tell_nothing_apart() -> None:
    embed = NullEmbedding(5)
    assert embed.embed("a").tolist() == embed.embed("b").tolist() == [0] * 5
    assert embed.describe() == {"embedding": "NullEmbedding", "dim": 5}
