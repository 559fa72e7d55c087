"""Every kind of file captioned pictures come in, good and bad."""

import copy
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from huaben.clip.dataset import StoredPairs, open_pairs
from huaben.clip.dataset_readers import expand_braces
from huaben.clip.dataset_rows import TextColumn
from huaben.errors import DataError


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def values(data: StoredPairs) -> dict[str, int]:
    """Grey value by key."""
    return {data.key(row): int(data.image(row)[0, 0, 0]) for row in range(len(data))}


def texts(data: StoredPairs) -> dict[str, list[str]]:
    return {data.key(row): [caption.text for caption in data.captions(row)] for row in range(len(data))}


def write(root: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def tar(path: Path, members: list[tuple[str, bytes | str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


# --- folders --------------------------------------------------------------------------------------------------------


def test_folder_with_text_and_json_beside(tmp_path: Path) -> None:
    root = write(
        tmp_path / "set",
        {
            "a.png": png(1),
            "a.txt": "a cat\n一只猫\n",
            "sub/b.png": png(2),
            "sub/b.json": json.dumps({"caption_en": "a dog", "caption_zh": ["狗", "小狗"], "id": 7}),
            "c.JPG": png(3),
            "c.json": json.dumps("a fox"),
            "d.png": png(4),
            "stray.txt": "nobody",
            ".hidden.png": b"",
        },
    )
    data = open_pairs(root)
    assert values(data) == {"a.png": 1, "c.JPG": 3, "sub/b.png": 2}
    assert texts(data)["sub/b.png"] == ["a dog", "狗", "小狗"]
    assert dict(data.report.skipped) == {"d.png": "no .txt or .json beside it", "stray.txt": "no picture beside it"}


def test_folder_json_fields_can_be_named(tmp_path: Path) -> None:
    files = {"a.png": png(1), "a.json": json.dumps({"caption": "no", "mine": "yes"})}
    root = write(tmp_path / "set", files)
    assert texts(open_pairs(root, caption_columns="mine")) == {"a.png": ["yes"]}
    with pytest.raises(DataError, match="found fields: caption, mine"):
        open_pairs(root, caption_columns="other")


def test_folder_sidecars_that_cannot_be_read_are_listed(tmp_path: Path) -> None:
    files = {
        "a.png": png(1),
        "a.txt": b"\xc4\xe3\xba\xc3",
        "b.png": png(2),
        "b.json": "{",
        "c.png": png(3),
        "c.txt": "c",
    }
    data = open_pairs(write(tmp_path / "set", files))
    skipped = dict(data.report.skipped)
    assert "not UTF-8" in skipped["a.png"] and "not valid JSON" in skipped["b.png"] and values(data) == {"c.png": 3}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_folder_with_metadata(tmp_path: Path, kind: str) -> None:
    rows = [
        {"file_name": "a.png", "text": "a cat"},
        {"file_name": "x/b.png", "text": "狗"},
        {"file_name": "no.png", "text": "n"},
    ]
    if kind == "csv":
        content = "file_name,text\n" + "".join(f"{row['file_name']},{row['text']}\n" for row in rows)
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows) + "{broken\n"
    root = write(tmp_path / "set", {f"metadata.{kind}": content, "a.png": png(1), "x/b.png": png(2), "x/c.png": png(3)})
    data = open_pairs(root)
    assert values(data) == {"a.png": 1, "x/b.png": 2}
    skipped = dict(data.report.skipped)
    assert "cannot read" in skipped["no.png"] and skipped["x/c.png"] == "no line names it"
    assert kind == "csv" or "not valid JSON" in skipped["metadata.jsonl line 4"]


def test_folder_splits_are_never_mixed(tmp_path: Path) -> None:
    files = {f"{part}/a.png": png(n) for n, part in enumerate(("train", "test"))}
    root = write(tmp_path / "set", {**files, "train/a.txt": "a", "test/a.txt": "b"})
    with pytest.raises(DataError, match="several splits: test, train"):
        open_pairs(root)
    assert texts(open_pairs(root, split="test")) == {"a.png": ["b"]}
    with pytest.raises(DataError, match=r"no split 'dev'; found: test, train"):
        open_pairs(root, split="dev")


def test_empty_folder_and_missing_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pictures"):
        open_pairs(tmp_path)
    with pytest.raises(DataError, match="no file or folder"):
        open_pairs(tmp_path / "nowhere")
    write(tmp_path, {"notes.docx": "x"})
    with pytest.raises(DataError, match="no known kind"):
        open_pairs(tmp_path / "notes.docx")
    with pytest.raises(DataError, match="found a int"):
        open_pairs(3)


# --- CSV and TSV ----------------------------------------------------------------------------------------------------


def test_csv_names_pictures_by_path(tmp_path: Path) -> None:
    table = '\ufeffimage_path,caption_en,caption_zh,extra\np/a.png,"a cat, black",黑猫,1\np/b.png,a dog,,2\n'
    root = write(tmp_path, {"t.csv": table, "p/a.png": png(1), "p/b.png": png(2)})
    data = open_pairs(root / "t.csv")
    assert values(data) == {"p/a.png": 1, "p/b.png": 2}
    assert texts(data) == {"p/a.png": ["a cat, black", "黑猫"], "p/b.png": ["a dog"]}
    assert data.report.captions_skipped == (("p/b.png", "empty caption"),)
    assert data.report.columns == {"image": "image_path", "captions": "caption_en, caption_zh", "key": "path"}


@pytest.mark.parametrize("name", ["t.tsv", "t.csv"])  # open_clip writes tabs into .csv
def test_tabs_are_understood(tmp_path: Path, name: str) -> None:
    root = write(tmp_path, {name: "filepath\ttitle\na.png\ta cat\n", "a.png": png(1)})
    assert texts(open_pairs(root / name)) == {"a.png": ["a cat"]}


def test_csv_columns_that_cannot_be_told_are_listed(tmp_path: Path) -> None:
    root = write(tmp_path, {"t.csv": "one,two,image\na.png,a cat,z.png\n", "a.png": png(1)})
    with pytest.raises(
        DataError, match=r"no column looks like captions; found columns: one, two, image.*caption_columns"
    ):
        open_pairs(root / "t.csv")
    with pytest.raises(DataError, match=r"no column 'three'; found columns: one, two, image"):
        open_pairs(root / "t.csv", caption_columns=["two", "three"])
    data = open_pairs(root / "t.csv", image_column="one", caption_columns="two")
    assert values(data) == {"a.png": 1}


def test_csv_lines_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    table = "path,caption\na.png,a cat\nb.png\n,nothing\nhttps://example.org/x.png,far away\nc.png,a cow,more\n"
    root = write(tmp_path, {"t.csv": table, "a.png": png(1), "b.png": png(2), "c.png": png(3)})
    data = open_pairs(root / "t.csv")
    skipped = dict(data.report.skipped)
    assert values(data) == {"a.png": 1}
    assert skipped["t.csv line 3"] == "1 fields, the header has 2"
    assert skipped["t.csv line 4"] == "path is empty"
    assert "web address" in skipped["https://example.org/x.png"]
    assert skipped["t.csv line 6"] == "3 fields, the header has 2"


def test_csv_in_another_encoding_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path, {"t.csv": "path,caption\na.png,黑猫\n".encode("gb18030"), "a.png": png(1)})
    with pytest.raises(DataError, match=r"not UTF-8.*save it as UTF-8"):
        open_pairs(root / "t.csv")


def test_csv_with_open_quotes_names_the_line(tmp_path: Path) -> None:
    root = write(tmp_path, {"t.csv": 'path,caption\na.png,"a cat\n', "a.png": png(1)})
    with pytest.raises(DataError, match=r"t\.csv line"):
        open_pairs(root / "t.csv")


def test_duplicate_keys_are_named_or_merged(tmp_path: Path) -> None:
    table = "image,caption\na.png,a cat\nb.png,a dog\na.png,一只猫\n"
    root = write(tmp_path, {"t.csv": table, "a.png": png(1), "b.png": png(2)})
    with pytest.raises(DataError, match=r"1 keys name more than one pair: 'a\.png'"):
        open_pairs(root / "t.csv")
    data = open_pairs(root / "t.csv", duplicates="merge")
    assert texts(data) == {"a.png": ["a cat", "一只猫"], "b.png": ["a dog"]} and values(data) == {
        "a.png": 1,
        "b.png": 2,
    }


def test_one_key_for_two_pictures_is_never_merged(tmp_path: Path) -> None:
    root = write(tmp_path, {"t.csv": "id,image,caption\n1,a.png,a\n1,b.png,b\n", "a.png": png(1), "b.png": png(2)})
    for duplicates in ("error", "merge"):
        with pytest.raises(DataError, match="'1'"):
            open_pairs(root / "t.csv", duplicates=duplicates)  # type: ignore[arg-type]


# --- Parquet --------------------------------------------------------------------------------------------------------


def parquet(path: Path, columns: dict[str, list[object]], *, group: int = 2) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), path, row_group_size=group)
    return path


def test_parquet_bytes_structs_and_paths(tmp_path: Path) -> None:
    write(tmp_path, {"p/0.png": png(10), "p/1.png": png(11), "p/2.png": png(12)})
    captions = [["one", "一"], ["two"], ["three", None]]
    stored = parquet(
        tmp_path / "b.parquet", {"id": [7, 8, 9], "jpg": [png(n) for n in (10, 11, 12)], "captions": captions}
    )
    structs: list[object] = [
        {"bytes": png(10), "path": "x"},
        {"bytes": None, "path": "p/1.png"},
        {"bytes": png(12), "path": None},
    ]
    for path in (
        stored,
        parquet(tmp_path / "s.parquet", {"id": [7, 8, 9], "image": structs, "captions": captions}),
        parquet(
            tmp_path / "p.parquet", {"id": [7, 8, 9], "path": [f"p/{n}.png" for n in range(3)], "captions": captions}
        ),
    ):
        data = open_pairs(path)
        assert values(data) == {"7": 10, "8": 11, "9": 12}
        assert texts(data) == {"7": ["one", "一"], "8": ["two"], "9": ["three"]}


def test_parquet_rows_that_cannot_be_used_keep_the_others_in_place(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {
        "key": ["a", "b", None, "d", "e"],
        "image": [png(1), b"junk", png(3), None, png(5)],
        "text": ["one", "two", "three", "four", "five"],
    }
    data = open_pairs(parquet(tmp_path / "t.parquet", columns))
    assert values(data) == {"a": 1, "e": 5} and texts(data) == {"a": ["one"], "e": ["five"]}
    skipped = dict(data.report.skipped)
    assert skipped["t.parquet row 2"] == "key is empty" and skipped["d"] == "image is empty" and "b" in skipped


def test_parquet_without_keys_is_named_by_content(tmp_path: Path) -> None:
    rows = [(png(n), f"number {n} a") for n in (1, 2, 3, 3)]
    names = ("image", "caption")
    first = open_pairs(
        parquet(tmp_path / "1.parquet", dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    )
    turned = rows[::-1][:-1]
    second = open_pairs(
        parquet(tmp_path / "2.parquet", dict(zip(names, map(list, zip(*turned, strict=True)), strict=True)))
    )
    assert len(first) == 4 and set(second.keys()) < set(first.keys())
    assert {key: values(first)[key] for key in second.keys()} == values(second)


def test_parquet_reads_groups_again_within_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 40
    columns: dict[str, list[object]] = {
        "key": [f"k{n}" for n in range(rows)],
        "image": [png(n) + bytes(200_000) for n in range(rows)],
        "text": [f"number {n} a" for n in range(rows)],
    }
    path = parquet(tmp_path / "t.parquet", columns, group=3)
    small, large = open_pairs(path, memory_mb=1), open_pairs(path)
    assert small.report.notes and "memory_mb=1" in small.report.notes[0] and not large.report.notes
    order = random.Random(0).sample(range(rows), rows)
    assert [int(small.image(row)[0, 0, 0]) for row in order] == order
    assert [int(large.image(row)[0, 0, 0]) for row in order] == order
    kept = small._reader._kept  # type: ignore[attr-defined]
    assert sum(column.nbytes for column in kept.values()) <= 2 * 2**20
    twin = copy.deepcopy(small)  # takes the state that pickle takes
    assert int(twin.image(7)[0, 0, 0]) == 7


def test_parquet_folder_splits_and_mixed_columns(tmp_path: Path) -> None:
    def part(name: str, start: int, **more: list[object]) -> None:
        columns: dict[str, list[object]] = {
            "id": [start, start + 1],
            "image": [png(start), png(start + 1)],
            "text": ["a", "b"],
        }
        parquet(tmp_path / "data" / name, {**columns, **more})

    part("train-00000-of-00002.parquet", 10)
    part("train-00001-of-00002.parquet", 20)
    part("test-00000-of-00001.parquet", 30)
    with pytest.raises(DataError, match="several splits: test, train"):
        open_pairs(tmp_path)
    assert values(open_pairs(tmp_path, split="train")) == {"10": 10, "11": 11, "20": 20, "21": 21}
    assert values(open_pairs(tmp_path / "data" / "te*.parquet")) == {"30": 30, "31": 31}
    part("train-00001-of-00002.parquet", 20, more=[1, 2])
    with pytest.raises(DataError, match="has columns id, image, text, more"):
        open_pairs(tmp_path, split="train")


def test_parquet_of_the_wrong_kind(tmp_path: Path) -> None:
    write(tmp_path, {"x.parquet": "no"})
    with pytest.raises(DataError, match="not a readable Parquet file"):
        open_pairs(tmp_path / "x.parquet")
    path = parquet(tmp_path / "n.parquet", {"image": [1, 2], "text": ["a", "b"]})
    with pytest.raises(DataError, match="column 'image' is int64"):
        open_pairs(path)
    path = parquet(tmp_path / "m.parquet", {"image": [png(1)], "text": [3]})
    with pytest.raises(DataError, match="column 'text' is int64"):
        open_pairs(path)


def test_emoji(shared_data: Callable[[str], Path]) -> None:
    pytest.importorskip("pyarrow")
    data = open_pairs(shared_data("emoji/emoji.parquet"))
    assert len(data) == 1403 == data.report.transparent and not data.report.skipped
    assert data.languages() == {"en": 1403, "zh": 1403, "other": 0}
    row = data.keys().index("1f34d")
    assert [caption.text for caption in data.captions(row)] == ["pineapple", "菠萝"]
    assert data.image(row).shape == (64, 64, 3) and (data.image(row)[0, 0] == 255).all()
    keywords = open_pairs(shared_data("emoji/emoji.parquet"), caption_columns=["keywords_en"], check="none")
    assert len(keywords.captions(row)) == 5


# --- webdataset -----------------------------------------------------------------------------------------------------


def shards(root: Path, seed: int | None = None) -> str:
    for shard in range(3):
        samples = [
            [
                (f"{n:03}.png", png(10 * shard + n)),
                (f"{n:03}.en.txt", f"number {n} a"),
                (f"{n:03}.zh.txt", f"数 {n}"),
                (f"{n:03}.cls", "1"),
            ]
            for n in range(4)
        ]
        if seed is not None:
            random.Random(seed + shard).shuffle(samples)
        tar(root / f"part-{shard:02}.tar", [member for sample in samples for member in sample])
    return str(root / "part-{00..02}.tar")


def test_tars_are_read_in_any_order(tmp_path: Path) -> None:
    data = open_pairs(shards(tmp_path))
    assert len(data) == 12 and data.key(5) == "part-01/001" and data.languages() == {"en": 12, "zh": 12, "other": 0}
    order = random.Random(1).sample(range(12), 12)
    assert [int(data.image(row)[0, 0, 0]) for row in order] == [10 * (row // 4) + row % 4 for row in order]
    twin = copy.deepcopy(data)  # takes the state that pickle takes
    assert int(twin.image(5)[0, 0, 0]) == 11


def test_tar_keys_do_not_depend_on_order(tmp_path: Path) -> None:
    plain = open_pairs(shards(tmp_path / "a"))
    shuffled = open_pairs(shards(tmp_path / "b", seed=5))
    folder = open_pairs(tmp_path / "b")
    assert plain.keys() != shuffled.keys() and values(plain) == values(shuffled) == values(folder)
    assert texts(plain) == texts(shuffled)


def test_webdataset_writes_what_is_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "w.tar")) as sink:
        for n in range(3):
            image = np.full((8, 8, 3), n, np.uint8)
            sink.write({"__key__": f"s{n}", "png": image, "json": {"caption": f"number {n} a", "uid": f"u{n}"}})
    assert values(open_pairs(tmp_path / "w.tar")) == {"w/s0": 0, "w/s1": 1, "w/s2": 2}
    assert values(open_pairs(tmp_path / "w.tar", key_column="uid")) == {"u0": 0, "u1": 1, "u2": 2}
    with pytest.raises(DataError, match="no JSON field 'nope'"):
        open_pairs(tmp_path / "w.tar", key_column="nope")


def test_tar_members_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "x.tar",
        [
            ("a.png", png(1)), ("a.txt", "a cat"),
            ("b.png", b"junk"), ("b.txt", "b"),
            ("c.txt", "no picture"),
            ("d.png", png(4)),
            ("e.png", png(5)), ("e.mask.png", png(6)), ("e.txt", "two pictures"),
            ("f.png", png(7)), ("f.txt", b"\xff\xfe"),
            ("README", "hello"),
            ("a.png", png(9)),
        ],
    )  # fmt: skip
    data = open_pairs(path)
    assert values(data) == {"x/a": 1}
    skipped = dict(data.report.skipped)
    assert set(skipped) == {"x/b", "x/c", "x/d", "x/e", "x/f", "x/README", "x/a.png"}
    assert "no picture" in skipped["x/c"] and "no caption" in skipped["x/d"] and "several pictures" in skipped["x/e"]
    chosen = open_pairs(path, image_column="mask.png", caption_columns="txt")
    assert values(chosen) == {"x/e": 6}


def test_tar_that_ends_early_keeps_what_is_whole(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", [("a.txt", "a"), ("a.png", png(1)), ("b.txt", "b"), ("b.png", png(2) + bytes(4000))])
    path.write_bytes(path.read_bytes()[: 512 * 4 + 512 * 3 + 200])
    data = open_pairs(path)
    assert values(data) == {"x/a": 1}
    assert any("ends inside" in reason or "damaged" in reason for _, reason in data.report.skipped)


def test_tar_kinds_that_cannot_be_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "z.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    with pytest.raises(DataError, match="not an uncompressed tar"):
        open_pairs(tmp_path / "z.tar")
    with pytest.raises(DataError, match="no file at"):
        open_pairs(str(tmp_path / "no-{0..3}.tar"))


def test_tars_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for n, part in enumerate(("x", "y")):
        tar(tmp_path / part / "0.tar", [("k.png", png(n)), ("k.txt", "words")])
    assert values(open_pairs(tmp_path)) == {"x/0/k": 0, "y/0/k": 1}


def test_braces_expand_as_in_a_shell() -> None:
    assert expand_braces("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert expand_braces("{x,y{1..2}}-{3..2}") == ["x-3", "x-2", "y1-3", "y1-2", "y2-3", "y2-2"]
    assert expand_braces("plain") == ["plain"] and expand_braces("{one}") == ["{one}"]


# --- Hugging Face datasets ------------------------------------------------------------------------------------------


def test_hugging_face_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {
        "image": [{"bytes": png(n), "path": None} for n in range(3)],
        "text": ["one", "two", "3"],
        "uid": list("abc"),
    }
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "uid": datasets.Value("string")}
    )
    train = datasets.Dataset.from_dict(rows, features=features)
    data = open_pairs(train)
    assert values(data) == {"a": 0, "b": 1} and dict(data.report.skipped)["c"].startswith("caption in no known script")
    both = datasets.DatasetDict({"train": train, "test": train.select([1])})
    with pytest.raises(DataError, match="several splits; found: train, test"):
        open_pairs(both)
    assert values(open_pairs(both, split="test")) == {"b": 1}
    both.save_to_disk(str(tmp_path / "saved"))
    assert values(open_pairs(tmp_path / "saved", split="train")) == {"a": 0, "b": 1}
    with pytest.raises(DataError, match="without streaming"):
        open_pairs(train.to_iterable_dataset())
    with pytest.raises(DataError, match=r"no column 'words'; found columns: image, text, uid"):
        open_pairs(train, caption_columns=["words"])


def test_hugging_face_names_are_found_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    source = tmp_path / "source"
    parquet(
        source / "train-00000-of-00001.parquet", {"id": ["a", "b"], "image": [png(1), png(2)], "caption": ["x", "y"]}
    )
    builder = datasets.load_dataset_builder("parquet", data_files=str(source / "*.parquet"), cache_dir=str(cache))
    builder.download_and_prepare()
    prepared = Path(builder.cache_dir)
    target = cache / "owner___fine_set" / "default" / "0.0.0" / "abc"
    target.parent.mkdir(parents=True)
    prepared.rename(target)
    for arrow in target.glob("*.arrow"):
        arrow.rename(target / arrow.name.replace("parquet", "fine_set", 1))
    info = json.loads((target / "dataset_info.json").read_text())
    (target / "dataset_info.json").write_text(
        json.dumps({**info, "config_name": "default", "dataset_name": "fine_set"})
    )
    data = open_pairs("hf:owner/fine_set")
    assert values(data) == {"a": 1, "b": 2} and data.name == "hf:owner/fine_set"
    with pytest.raises(DataError, match=r"hf:owner/absent is not on this machine.*hf download"):
        open_pairs("hf:owner/absent")


def test_downloaded_hugging_face_data_are_found_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets, hub = pytest.importorskip("datasets"), pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository, commit = tmp_path / "datasets--owner--set", "a" * 40
    columns: dict[str, list[object]] = {"id": ["a"], "image": [png(1)], "caption": ["x"]}
    parquet(repository / "snapshots" / commit / "data" / "train-00000-of-00001.parquet", columns)
    write(repository, {"refs/main": commit})
    data = open_pairs("hf:owner/set", split="train")
    assert values(data) == {"a": 1} and data.name == "hf:owner/set"


def test_text_columns_hold_any_text() -> None:
    column = TextColumn()
    stored = ["", "a", "狐狸", "\ud800", "x" * 1000]
    for text in stored:
        column.append(text)
    assert [column[index] for index in range(len(column))] == stored
