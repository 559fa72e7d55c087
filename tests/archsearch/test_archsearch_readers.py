"""Readers: CSV with every kind of bad row, and the official files, which may not run code."""

from __future__ import annotations

import os
import pickle  # noqa: TID251 - makes the harmful files that must be refused
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from huaben.archsearch.readers import read_csv, read_nasbench201, read_transnas_pth
from huaben.archsearch.space import NASBench201, TransNASMacro, TransNASMicro
from huaben.archsearch.task import TRANSNAS_TASKS
from huaben.errors import DataError

MICRO = TransNASMicro()
HEADER = "arch,ops,params,flops,class_scene,mine\n"
ROW = "64-41414-1_02_333,1 0 2 3 3 3,2.5,100,51.5,0.25\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_is_read_task_by_task(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeff" + HEADER + ROW + "64-41414-0_00_100,0 0 0 1 0 0,0.1,9,7.5,\n\n")
    found = read_csv(path, MICRO, directions={"mine": "min"})
    assert list(found) == ["class_scene", "mine"]
    assert found["class_scene"].spec == TRANSNAS_TASKS["class_scene"]
    assert found["class_scene"].value((1, 0, 2, 3, 3, 3)) == 51.5 and len(found["class_scene"]) == 2
    assert found["mine"].spec.direction == "min" and len(found["mine"]) == 1
    assert found["mine"].state((0, 0, 0, 1, 0, 0)) == "missing"  # an empty cell
    assert found["mine"].log_features([(0, 0, 0, 1, 0, 0)]).shape == (1, 2)
    assert list(read_csv(path, MICRO, tasks=["class_scene"])) == ["class_scene"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b\n", "neither a column arch nor ops"),
        ("arch,params\n", "has no task column"),
        ("arch,class_scene,class_scene\n", "column 3 is 'class_scene', empty or repeated"),
        (HEADER + ROW, "whether a higher or lower 'mine' is better is unknown"),
        (HEADER.replace(",mine", ""), None),
        ("arch,class_scene\n64-41414-1_02_333\n", "line 2: 1 cells, expected 2"),
        ("arch,class_scene\n64-41414-1_02_333,1\n64-41414-9_02_333,1\n", r"line 3: .* position 0 \(0->1\)"),
        ("arch,class_scene\n64-41414-1_02_333,x\n", "line 2, column 'class_scene': 'x' is not a number"),
        ("arch,class_scene\n64-41414-1_02_333,nan\n", "line 2: value nan is not finite"),
        (
            "arch,class_scene\n64-41414-1_02_333,1\n64-41414-1_02_333,2\n",
            "line 3: 64-41414-1_02_333 is 2, but .*line 2 has it with 1",
        ),
        ("ops,class_scene\n1 0 2 3 3,1\n", "line 2: .* has 5 positions"),
        ("ops,class_scene\n1 0 2 3 3 x,1\n", "line 2: ops '1 0 2 3 3 x' are not whole numbers"),
        ("arch,ops,class_scene\n64-41414-1_02_333,1 2 0 3 3 3,1\n", "line 2: arch is 64-41414-1_02_333, but ops are"),
    ],
)
def test_bad_csv_names_its_line(tmp_path: Path, text: str, message: str | None) -> None:
    path = write(tmp_path, text)
    if message is None:
        assert len(read_csv(path, MICRO)["class_scene"]) == 0
        return
    with pytest.raises(DataError, match=message):
        read_csv(path, MICRO)


def test_csv_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"arch,class_scene\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="is not UTF-8 CSV"):
        read_csv(path, MICRO)
    with pytest.raises(DataError, match="cannot read"):
        read_csv(tmp_path / "absent.csv", MICRO)
    with pytest.raises(DataError, match="no task column 'jigsaw'"):
        read_csv(write(tmp_path, "arch,class_scene\n"), MICRO, tasks=["jigsaw"])


def test_failed_rows_can_be_kept(tmp_path: Path) -> None:
    path = write(tmp_path, "arch,class_scene\n64-41414-1_02_333,nan\n64-41414-1_02_330,4\n")
    found = read_csv(path, MICRO, nonfinite="failed")["class_scene"]
    assert found.state((1, 0, 2, 3, 3, 3)) == "failed" and len(found) == 1


@pytest.mark.parametrize(("name", "rows"), [("micro", 4096), ("macro", 300)])
def test_the_benchmarks_tables_are_read_whole(shared_data: Callable[[str], Path], name: str, rows: int) -> None:
    space = MICRO if name == "micro" else TransNASMacro()
    found = read_csv(shared_data(f"transnas101/{name}.csv"), space)
    assert list(found) == list(TRANSNAS_TASKS)
    assert {len(table) for table in found.values()} == {rows}
    scene = found["class_scene"]
    assert scene.best_rank_percent(scene.best) == pytest.approx(100 / rows) and scene.regret(scene.best) == 0
    batch = space.encode(scene.archs, extra=scene.log_features(scene.archs))
    assert batch.extra.shape == (rows, 2) and bool(torch.isfinite(batch.extra).all())


def test_the_disconnected_cells_share_one_value(shared_data: Callable[[str], Path]) -> None:
    scene = read_csv(shared_data("transnas101/micro.csv"), MICRO, tasks=["class_scene"])["class_scene"]
    lost = {scene.value(arch) for arch in scene if not MICRO.is_connected(arch)}
    assert len(lost) == 1
    assert all(scene.value(arch) not in lost for arch in scene if MICRO.is_connected(arch))


def test_table_noise_is_no_larger_than_known_between_strict_twins(shared_data: Callable[[str], Path]) -> None:
    scene = read_csv(shared_data("transnas101/micro.csv"), MICRO, tasks=["class_scene"])["class_scene"]
    means = scene.class_means()
    assert len(means) == 2668
    gaps = [abs(scene.oriented(arch) - means[MICRO.canonical(arch)]) for arch in scene]
    assert np.median(gaps) < 0.3 < scene.oriented_values().std()  # twins agree far better than strangers do


def transnas_file(**changes: Any) -> dict[str, Any]:
    """Return the published layout with two architectures."""
    metric = {task: "top1" for task in ("class_scene", "class_object", "jigsaw")}
    metric |= {"room_layout": "neg_loss", "segmentsemantic": "acc", "normal": "ssim", "autoencoder": "ssim"}

    def result(task: str, base: float) -> dict[str, Any]:
        curve = [base, base + 2, base + 1]
        curves = {f"{split}_{metric[task]}": curve for split in ("train", "valid", "test")}
        curves[f"valid_{metric[task]}"] = [np.float64(value) for value in curve]  # NumPy's numbers occur in such files
        if task == "segmentsemantic":
            curves["valid_mIoU"] = [base / 2] * 3
        return {
            "total_epochs": 3,
            "metrics": curves,
            "model_info": {"model_params": 11.0 + base, "model_FLOPs": 900.0, "inference_time": 0.1},
        }

    data = {
        space: {arch: {task: result(task, base) for task in metric} for arch, base in archs}
        for space, archs in {
            "micro": [("64-41414-1_02_333", 30.0), ("64-41414-0_00_100", 10.0)],
            "macro": [("64-1242-basic", 20.0)],
        }.items()
    }
    names = {task: [f"valid_{name}"] for task, name in metric.items()}
    return {"data": data, "metrics_dict": names, "task_list": list(metric), "info_names": ["model_params"], **changes}


def test_the_official_transnas_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "transnas.pth"
    torch.save(transnas_file(), path)
    found = read_transnas_pth(path)
    assert list(found) == ["micro", "macro"] and list(found["micro"]) == list(TRANSNAS_TASKS)
    scene = found["micro"]["class_scene"]
    assert scene.value((1, 0, 2, 3, 3, 3)) == 31.0 and scene.spec.metric_mode == "final"
    assert scene.spec.metric == "valid_top1" and scene.space == MICRO
    assert scene.features["params"][(0, 0, 0, 1, 0, 0)] == 21.0
    best = read_transnas_pth(path, metric_mode="best", metrics={"segmentsemantic": "mIoU"})
    assert best["micro"]["class_scene"].value((1, 0, 2, 3, 3, 3)) == 32.0
    assert best["micro"]["segmentsemantic"].value((1, 0, 2, 3, 3, 3)) == 15.0
    assert best["macro"]["normal"].value((1, 2, 4, 2, 0, 0)) == 22.0


class Harm:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("reader", [read_transnas_pth, read_nasbench201])
def test_files_that_hold_code_are_refused_and_not_run(tmp_path: Path, legacy: bool, reader: Any) -> None:
    path, target = tmp_path / "harm.pth", tmp_path / "harmed"
    torch.save(transnas_file(extra=Harm(target)), path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(DataError, match="holds more than plain data and is refused"):
        reader(path)
    assert not target.exists()
    path.write_bytes(pickle.dumps(Harm(target)))
    with pytest.raises(DataError, match=r"harm\.pth"):
        reader(path)
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04" + b"0" * 40])
def test_files_that_are_no_torch_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.pth"):
        read_transnas_pth(path)
    with pytest.raises(DataError, match="no file at"):
        read_transnas_pth(tmp_path / "absent.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("data"), "lacks 'data'"),
        (lambda d: d["data"].update(nano={}), "search space 'nano'"),
        (lambda d: d["data"]["micro"].update({"64-41414-1_02_333": 3}), "micro/64-41414-1_02_333: found int"),
        (lambda d: d["data"]["micro"]["64-41414-1_02_333"].update(depth={}), "unknown task 'depth'"),
        (
            lambda d: d["data"]["micro"]["64-41414-1_02_333"]["normal"]["metrics"].pop("valid_ssim"),
            "micro/64-41414-1_02_333/normal/metrics: lacks 'valid_ssim'",
        ),
        (
            lambda d: d["data"]["micro"]["64-41414-1_02_333"]["normal"]["metrics"].update(valid_ssim=[]),
            "expected one number per epoch",
        ),
        (lambda d: d["data"]["micro"].update({"64-1-basic": {}}), None),
    ],
)
def test_other_layouts_of_the_transnas_file_are_named(tmp_path: Path, change: Any, message: str | None) -> None:
    document = transnas_file()
    change(document)
    path = tmp_path / "transnas.pth"
    torch.save(document, path)
    if message is None:  # an architecture without results has no row
        assert len(read_transnas_pth(path)["micro"]["normal"]) == 2
        return
    with pytest.raises(DataError, match=message):
        read_transnas_pth(path)


def test_the_official_nasbench201_file_is_read(tmp_path: Path) -> None:
    text = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|"

    def trial(name: str, seed: int, last: float) -> dict[str, Any]:
        evaluated = {f"x-valid@{epoch}": value for epoch, value in enumerate([10.0, last + 1, last])}
        evaluated |= {"ori-test@2": 1.0}
        return {"name": name, "seed": seed, "epochs": 3, "params": 1.5, "flop": 40.0, "eval_acc1es": evaluated}

    results = {
        (name, seed): trial(name, seed, 60.0 + seed) for name in ("cifar10-valid", "cifar100") for seed in (0, 2)
    }
    entry = OrderedDict(arch_index=0, arch_str=text, all_results=results, dataset_seed={"cifar100": [0, 2]})
    document = {"meta_archs": [text], "arch2infos": {0: {"full": entry, "less": entry}}, "evaluated_indexes": {0}}
    path = tmp_path / "nasbench201.pth"
    torch.save(document, path)
    found = read_nasbench201(path)
    assert list(found) == ["cifar10-valid", "cifar100"]
    arch = NASBench201().parse(text)
    assert arch == (3, 0, 1, 4, 0, 2)
    assert found["cifar100"].value(arch) == 61.0 and found["cifar100"].features["flops"][arch] == 40.0
    assert read_nasbench201(path, metric_mode="best")["cifar100"].value(arch) == 62.0
    document["arch2infos"][0].pop("full")
    torch.save(document, path)
    with pytest.raises(DataError, match="arch2infos/0/full: lacks 'full'"):
        read_nasbench201(path)
