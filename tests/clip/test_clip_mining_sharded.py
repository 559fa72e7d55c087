"""Mining in shards: the lists of one machine, whatever the number of shards, on a cluster of two workers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from huaben.clip.mining_core import Scoring, merge_topk, normalise, topk_block
from huaben.clip.mining_sharded import mine_sharded, open_features, score_shard
from huaben.errors import ConfigError, DataError, ShapeError
from huaben.optional import is_available

NUM, K = 400, 7
needs_ray = pytest.mark.skipif(not is_available("ray"), reason="ray is not installed")
# What ray itself raises while it starts and stops: a notice about a future default, and sockets it leaves to the
# collector.
ray_noise = (
    pytest.mark.filterwarnings("ignore:.*RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(NUM, 6))
    folder = tmp_path_factory.mktemp("features")
    for name in ("image", "text"):
        side = shared @ rng.normal(size=(6, 16)) + 0.3 * rng.normal(size=(NUM, 16))
        side[200:220] = side[:20]  # ties across shards
        np.save(folder / f"{name}.npy", side.astype(np.float16))
    return folder / "image.npy", folder / "text.npy"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        yield
    finally:
        ray.shutdown()


def whole(files: tuple[Path, Path], ids: Any = None, scoring: Scoring | None = None) -> tuple[Any, NDArray[np.int64]]:
    image, text = (normalise(np.load(path)) for path in files)
    rows = np.arange(NUM)
    return topk_block(image, text, ids, rows, image, text, ids, rows, K, scoring or Scoring(duplicate=1.0))


def test_a_task_and_the_merge_give_the_lists_of_one_machine(files: tuple[Path, Path]) -> None:
    paths = (str(files[0]), str(files[1]))
    scores, rows = whole(files)
    parts = [
        score_shard(paths, (100, 260), base, K, Scoring(duplicate=1.0), None, 1) for base in ((0, 210), (210, NUM))
    ]
    merged = merge_topk(*parts[1], *parts[0], K)
    assert (merged[0] == scores[100:260]).all() and (merged[1] == rows[100:260]).all()


@needs_ray
@pytest.mark.usefixtures("cluster")
class TestOnACluster:
    pytestmark: ClassVar = list(ray_noise)

    @pytest.mark.parametrize("shards", [1, 3])
    def test_lists_are_those_of_one_machine(self, files: tuple[Path, Path], shards: int) -> None:
        done: list[int] = []
        found = mine_sharded(
            *files, K, shards=shards, duplicate=1.0, progress=lambda number, total: done.append(number), in_flight=2
        )
        scores, rows = whole(files)
        assert (found.pairs == rows).all() and (found.scores == scores).all()
        assert found.certified.all() and len(done) == shards and done[-1] == NUM
        found.check(NUM)

    def test_ids_and_thresholds_are_kept(self, files: tuple[Path, Path]) -> None:
        ids = np.arange(NUM) // 4
        found = mine_sharded(*files, K, shards=2, ids=ids, low=0.2, duplicate=0.9, modality="text")
        scores, rows = whole(files, ids, Scoring(low=0.2, duplicate=0.9, modality="text"))
        assert (found.pairs == rows).all() and (found.scores == scores).all()
        assert found.settings["fingerprint"]["ids"]

    def test_an_interrupted_run_goes_on_from_its_folder(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        def stop(number: int, total: int) -> None:
            if number < total:
                raise KeyboardInterrupt

        folder = tmp_path / "work"
        with pytest.raises(KeyboardInterrupt):
            mine_sharded(*files, K, shards=2, duplicate=1.0, resume=folder, progress=stop)
        assert len(list(folder.glob("lists-*"))) == 1
        with pytest.raises(DataError, match="differs in k"):
            mine_sharded(*files, K + 1, shards=2, duplicate=1.0, resume=folder)
        done: list[int] = []
        found = mine_sharded(
            *files, K, shards=2, duplicate=1.0, resume=folder, progress=lambda number, total: done.append(number)
        )
        assert done == [NUM], "only the second shard is mined"
        assert (found.pairs == whole(files)[1]).all()
        assert not list(folder.glob("lists-*"))

    def test_wrong_rows_are_named_as_on_one_machine(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        broken = np.load(files[0])
        broken[321] = np.nan
        np.save(tmp_path / "broken.npy", broken)
        with pytest.raises(DataError, match="321"):
            mine_sharded(tmp_path / "broken.npy", files[1], K, shards=2)


@needs_ray
def test_impossible_settings_are_refused_before_any_cluster(files: tuple[Path, Path], tmp_path: Path) -> None:
    for wrong in ({"k": NUM}, {"k": 0}, {"shards": 0}, {"shards": NUM + 1}, {"in_flight": 0}):
        with pytest.raises(ConfigError):
            mine_sharded(*files, **({"k": K, "shards": 2} | wrong))  # type: ignore[arg-type]
    np.save(tmp_path / "short.npy", np.ones((3, 4), np.float32))
    with pytest.raises(ShapeError):
        mine_sharded(files[0], tmp_path / "short.npy", K, shards=2)
    with pytest.raises(ShapeError):
        mine_sharded(*files, K, shards=2, ids=np.arange(3))
    with pytest.raises(DataError):
        open_features(str(tmp_path / "none.npy"), "image")
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="other files"):
        mine_sharded(*files, K, shards=2, resume=tmp_path / "busy")
