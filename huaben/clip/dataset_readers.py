"""Which reader a source of captioned pictures gets: by its type, its ending, or what its folder holds."""

from __future__ import annotations

import dataclasses
import glob
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..optional import require
from .dataset_arrow import HuggingFaceReader, ParquetReader
from .dataset_files import METADATA_NAMES, FolderReader, TableReader
from .dataset_rows import EXTRA, IMAGE_SUFFIXES, Reader, ReaderOptions
from .dataset_tars import TarReader

_SPLIT_FOLDERS = frozenset({"train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval"})
_PARQUET_PART = re.compile(r"(.+?)[-_.]\d+(?:-of-\d+)?(?:-[0-9a-f]+)?")


def open_reader(source: Any, options: ReaderOptions) -> Reader:
    """Return the reader of a source (see :func:`huaben.clip.dataset.open_pairs`).

    Raises:
        DataError: if there is no such file, or it is of no known kind.
    """
    if not isinstance(source, (str, Path)):
        if isinstance(source, Mapping) or type(source).__module__.split(".")[0] == "datasets":
            return HuggingFaceReader(source, options)
        raise DataError(f"found a {type(source).__name__}, expected a path, a pattern or a datasets.Dataset")
    if str(source).startswith("hf:"):
        name, _, config = str(source)[3:].partition(":")
        return cached_dataset(name, config or None, options)
    path = Path(source)
    if path.is_dir():
        return _folder_reader(path, options)
    files = [path] if path.exists() else expand(str(source))
    if not files:
        raise DataError(f"no file or folder at {source}", hint="check the path or pattern")
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(f"no file at {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else ""))
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) > 1:
        raise DataError(f"{source} names files of several kinds: {', '.join(kinds)}", hint="open one kind at a time")
    if options.split is not None:
        raise DataError(
            f"{source} names files, which have no splits; found split={options.split!r}", hint="leave it out"
        )
    if kinds == [".parquet"]:
        return ParquetReader(files, options)
    if kinds == [".tar"]:
        return TarReader(files, options)
    if kinds[0] in (".csv", ".tsv", ".jsonl"):
        return TableReader(files, options)
    raise DataError(
        f"{source} is of no known kind ({kinds[0] or 'no extension'})",
        hint="a folder, .csv, .tsv, .jsonl, .parquet, uncompressed .tar, or hf:NAME",
    )


def expand(pattern: str) -> list[Path]:
    """Return the files of a pattern: ``{000..012}`` and ``{a,b}`` first, then ``*``, ``?`` and ``[]``, sorted."""
    return [
        path
        for part in expand_braces(pattern)
        for path in ([Path(name) for name in sorted(glob.glob(part))] if glob.has_magic(part) else [Path(part)])
        if path.exists() or "{" in pattern
    ]


def expand_braces(pattern: str) -> list[str]:
    """Return what a shell makes of braces: ``a{08..10}`` is a08, a09, a10; ``{x,y}`` is x, y; nested ones too."""
    depth, start, commas = 0, -1, []
    for at, character in enumerate(pattern):
        if character == "{":
            depth += 1
            if depth == 1:
                start, commas = at, [at]
        elif character == "," and depth == 1:
            commas.append(at)
        elif character == "}" and depth:
            depth -= 1
            if depth:
                continue
            inner = pattern[start + 1 : at]
            span = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
            if span is not None:
                first, last = int(span[1]), int(span[2])
                width = max(len(span[1]), len(span[2])) if "0" in (span[1][0], span[2][0]) else 0
                options = [str(n).zfill(width) for n in range(first, last + 1)] or [
                    str(n).zfill(width) for n in range(first, last - 1, -1)
                ]
            elif len(commas) > 1:
                options = [pattern[a + 1 : b] for a, b in itertools.pairwise([*commas, at])]
            else:
                continue
            tails = expand_braces(pattern[at + 1 :])
            return [
                pattern[:start] + middle + tail
                for option in options
                for middle in expand_braces(option)
                for tail in tails
            ]
    return [pattern]


def _folder_reader(folder: Path, options: ReaderOptions) -> Reader:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        datasets = require("datasets", extra=EXTRA)
        return HuggingFaceReader(datasets.load_from_disk(str(folder)), options, folder.name)
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name.lower() in _SPLIT_FOLDERS)
    split = options.split
    if split is not None and (folder / split).is_dir():
        return _folder_reader(folder / split, dataclasses.replace(options, split=None))
    if split is None and len(folders) > 1:
        raise DataError(f"{folder} has several splits: {', '.join(folders)}", hint="name one with split")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    kinds = {
        "Parquet files": [path for path in files if path.suffix.lower() == ".parquet"],
        "tars": [path for path in files if path.suffix.lower() == ".tar"],
        "pictures": [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES],
    }
    present = [kind for kind, paths in kinds.items() if paths]
    if len(present) > 1:
        raise DataError(f"{folder} holds {' and '.join(present)}", hint="name the files instead of the folder")
    if kinds["Parquet files"]:
        return ParquetReader(_parts_of_split(kinds["Parquet files"], split, folder), options)
    if split is not None:
        raise DataError(f"{folder} has no split {split!r}; found: {', '.join(folders) or 'none'}")
    if kinds["tars"]:
        return TarReader(kinds["tars"], options)
    metadata = [path for path in files if path.name in METADATA_NAMES]
    return TableReader(metadata, options, root=folder) if metadata else FolderReader(folder, options)


def _parts_of_split(files: list[Path], split: str | None, folder: Path) -> list[Path]:
    """Return the Parquet files of a split, told by their names: ``train-00000-of-00004.parquet``."""
    names: dict[str, list[Path]] = {}
    for path in files:
        match = _PARQUET_PART.fullmatch(path.stem)
        names.setdefault(match[1] if match else path.stem, []).append(path)
    if split is not None and split not in names:
        raise DataError(f"{folder} has no split {split!r}; found: {', '.join(names)}", hint="choose one of these")
    if split is None and len(names) > 1 and _SPLIT_FOLDERS & set(names):
        raise DataError(f"{folder} has several splits: {', '.join(names)}", hint="name one with split")
    return files if split is None else names[split]


def cached_dataset(name: str, config: str | None, options: ReaderOptions) -> Reader:
    """Open a Hugging Face dataset that is on this machine: prepared by ``load_dataset``, or downloaded. Never fetches.

    Raises:
        DataError: if it is neither.
    """
    require("datasets", extra=EXTRA)
    from datasets.packaged_modules.cache.cache import Cache

    label = f"hf:{name}" + (f":{config}" if config else "")
    try:
        builder = Cache(dataset_name=name.split("/")[-1], repo_id=name, config_name=config, version="auto", hash="auto")
        return HuggingFaceReader(builder.as_dataset(), options, label)
    except (ValueError, OSError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
    if config is None:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            folder = snapshot_download(name, repo_type="dataset", local_files_only=True)
        except (LocalEntryNotFoundError, HFValidationError):
            pass
        else:
            reader = _folder_reader(Path(folder), options)
            reader.name = label
            return reader
    raise DataError(
        f"{label} is not on this machine: {reason}",
        hint=f"hf download --repo-type dataset {name}; or load it with datasets and pass the Dataset",
    )
