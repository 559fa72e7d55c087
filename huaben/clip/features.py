"""Features of a whole data set: encoded once, kept with their keys, resumed where the work broke off.

What mining reads: ``image`` and ``text``, float32 (N, E) of length 1, and ``keys``, N names. Rows of features are
matched to rows of data by key, never by number: data may have been shuffled, thinned or read again since.

Legend: N pairs, E width of the shared space.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from ..files import folder_lock, store_error, sync_folder, write_bytes
from .dataset import PairDataset
from .dataset_captions import Caption
from .dual_encoder import DualEncoder, encode_all_images, encode_all_texts

Captions = Literal["mean", "first"]
ARRAYS = ("image", "text", "keys")
SETTINGS_NAME = "settings.json"
PROGRESS_NAME = "progress.json"
READY_NAME = "ready"  # folder of the arrays inside the work in hand
FORMAT_VERSION = 1
MATCHED = 0.999  # share of keys that must be found
BATCHES_PER_STEP = 8  # batches between two marks of progress


class Features(NamedTuple):
    """Features of N pairs.

    Attributes:
        image, text: (N, E), of length 1 if huaben wrote them; memory-mapped if read from a folder.
        keys: (N,) names as text; None in a file that has none.
    """

    image: NDArray[np.floating[Any]]
    text: NDArray[np.floating[Any]]
    keys: NDArray[np.str_] | None


def extract_features(
    encoder: DualEncoder,
    data: PairDataset,
    out: str | Path,
    *,
    batch: int = 64,
    captions: Captions = "mean",
    resume: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Encode all pictures and captions, and write them whole or not at all.

    Work in hand stands beside ``out`` (``.NAME.part``) and is taken up again after a kill, with the same numbers as if
    it had never stopped. Finished features of the same data, encoder and settings are returned as they are.

    Args:
        encoder: on its device, left in the mode it is in.
        data: the pairs; pictures are read one batch at a time.
        out: ``NAME.npz``, one compact file; any other name is a folder of ``.npy`` files, for sets larger than memory.
        batch: pictures encoded together.
        captions: ``mean`` averages a pair's captions within each language, then the languages, and brings the result
            back to length 1; ``first`` takes the first caption.
        resume: take up unfinished work and keep finished features; otherwise start afresh and replace both.
        progress: called with (pairs done, N).

    Returns:
        ``out``.

    Raises:
        DataError: if a picture cannot be read, a feature is not a finite number, captions cancel out, or ``out`` holds
            the features of other data, of another encoder or of other settings.
        ConfigError: for an impossible setting.
        StoreError: if the disk is full, or another process is writing to ``out``.

    Source: averaging over languages and one id for all captions of a picture: HELIP (arXiv:2305.05208) leaves both
        open; this is ours.
    """
    out = Path(out)
    if captions not in ("mean", "first"):
        raise ConfigError(f"captions={captions!r} is none of mean, first")
    if batch < 1:
        raise ConfigError(f"batch={batch}, expected at least 1", hint="use 64")
    settings = {
        "format_version": FORMAT_VERSION,
        "encoder": encoder.name,
        "weights": weights_fingerprint(encoder),
        "data": data.name,
        "fingerprint": data.fingerprint(),
        "pairs": len(data),
        "captions": captions,
    }
    if resume and out.exists():
        _check_same(settings, read_settings(out), out)
        return out
    _check_place(out)
    work = out.parent / f".{out.name}.part"
    with folder_lock(work, "extraction of features"):
        _encode(encoder, data, work, settings, batch, resume, progress)
        try:
            if out.suffix == ".npz":
                _pack(work, out, settings)
            else:
                _move(work, out, settings)
        except OSError as error:
            raise store_error("written", out, error) from error
    shutil.rmtree(work, ignore_errors=True)
    return out


def load_features(path: str | Path, *, check: bool = True) -> Features:
    """Return features as (image, text, keys).

    Args:
        path: a ``.npz`` with arrays ``image``, ``text`` and, at best, ``keys``, read into memory; or a folder that
            :func:`extract_features` wrote, memory-mapped.
        check: whether to look for values that are no numbers and keys named twice, which reads everything once.

    Raises:
        DataError: if it cannot be read, an array is missing or misshapen, or a check fails.
    """
    path = Path(path)
    arrays = _read_arrays(path)
    for name in ("image", "text"):
        if name not in arrays:
            raise DataError(f"{path} has no array {name!r}; found: {', '.join(sorted(arrays)) or 'none'}")
        if arrays[name].ndim != 2 or arrays[name].dtype.kind != "f":
            raise DataError(
                f"{path}: {name} is {arrays[name].dtype} of shape {arrays[name].shape}, expected floats (N, E)"
            )
    image, text, keys = arrays["image"], arrays["text"], arrays.get("keys")
    if keys is not None and (keys.ndim != 1 or keys.dtype.kind != "U"):
        raise DataError(f"{path}: keys is {keys.dtype} of shape {keys.shape}, expected texts (N,)")
    counts = {name: len(array) for name, array in arrays.items() if name in ARRAYS}
    if len(set(counts.values())) > 1 or not len(image):
        found = ", ".join(f"{count} rows of {name}" for name, count in counts.items())
        raise DataError(f"{path} has {found}; expected as many of each, and one at least")
    if check:
        _check_finite(image, text, keys, str(path))
        if keys is not None and np.unique(keys).size != len(keys):
            values, times = np.unique(keys, return_counts=True)
            raise DataError(f"{path}: keys named twice: {', '.join(map(repr, values[times > 1][:5].tolist()))}")
    return Features(image, text, keys)


def read_settings(path: str | Path) -> dict[str, Any]:
    """Return the settings features were extracted with; empty for a file that another program wrote.

    Raises:
        DataError: if the file or folder cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / SETTINGS_NAME).is_file():
            raise DataError(f"no {SETTINGS_NAME} in {path}", hint="point to a folder that extract_features wrote")
        return _read_json(path / SETTINGS_NAME)
    settings = _read_arrays(path, only="settings").get("settings")
    try:
        values = {} if settings is None else json.loads(str(settings))
    except ValueError as error:
        raise DataError(f"{path}: its settings are not JSON: {error}") from error
    return values if isinstance(values, dict) else {}


def match_keys(have: Sequence[str], want: Sequence[str], *, minimum: float = MATCHED) -> NDArray[np.int64]:
    """Return, for every key in ``want``, its row in ``have``, or -1.

    Raises:
        DataError: if a key in ``have`` occurs twice, or less than the share ``minimum`` of ``want`` is found.
    """
    rows = {str(key): row for row, key in enumerate(have)}
    if len(rows) < len(have):
        raise DataError(f"{len(have) - len(rows)} of {len(have)} keys occur twice", hint="extract the features again")
    matched = np.fromiter((rows.get(str(key), -1) for key in want), np.int64, len(want))
    found = int((matched >= 0).sum())
    if not len(want) or found < minimum * len(want):
        absent = [str(want[int(row)]) for row in np.flatnonzero(matched < 0)[:3]]
        raise DataError(
            f"{found} of {len(want)} keys have features, expected {minimum:.1%} or more"
            + (f"; absent: {', '.join(map(repr, absent))}" if absent else ""),
            hint="these features belong to other data: extract them again",
        )
    return matched


def join_features(
    features: Features, keys: Sequence[str], *, minimum: float = MATCHED
) -> tuple[Features, NDArray[np.int64]]:
    """Return the features in the order of ``keys``, and the positions in ``keys`` that have any.

    Args:
        features: with keys.
        keys: of the data, as ``data.keys()`` gives them.
        minimum: share of ``keys`` that must be found.

    Raises:
        DataError: if the features have no keys, or too few are found.
    """
    if features.keys is None:
        raise DataError("these features have no keys to match", hint="extract them with extract_features")
    rows = match_keys(features.keys.tolist(), keys, minimum=minimum)
    found = np.flatnonzero(rows >= 0)
    rows = rows[found]
    return Features(features.image[rows], features.text[rows], features.keys[rows]), found


def weights_fingerprint(encoder: torch.nn.Module) -> str:
    """Return a short hash of the names, shapes and values of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


# --- work in hand ---------------------------------------------------------------------------------------------------


def _encode(
    encoder: DualEncoder,
    data: PairDataset,
    work: Path,
    settings: Mapping[str, Any],
    batch: int,
    resume: bool,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Fill ``work`` with image.npy and text.npy, from where its progress stands."""
    total, ready = len(data), work / READY_NAME
    state = _progress(work, settings, batch, resume)
    done = int(state["done"]) if state else 0
    arrays: dict[str, Any] = {}
    if state:
        arrays = {name: np.load(ready / f"{name}.npy", mmap_mode="r+") for name in ("image", "text")}
    else:
        ready.mkdir(exist_ok=True)
    while done < total:
        rows = range(done, min(total, done + batch * BATCHES_PER_STEP))
        found = dict(
            zip(("image", "text"), _encode_rows(encoder, data, rows, batch, settings["captions"]), strict=True)
        )
        try:
            if not arrays:
                arrays = {
                    name: np.lib.format.open_memmap(
                        ready / f"{name}.npy", mode="w+", dtype=np.float32, shape=(total, values.shape[1])
                    )
                    for name, values in found.items()
                }
            for name, values in found.items():
                arrays[name][rows.start : rows.stop] = values
                arrays[name].flush()
        except OSError as error:
            raise store_error("written", work, error) from error
        done = rows.stop
        text = json.dumps({"done": done, "batch": batch, "settings": dict(settings)})
        write_bytes(work / PROGRESS_NAME, text.encode())
        if progress is not None:
            progress(done, total)
    buffer = io.BytesIO()
    np.save(buffer, np.array(data.keys(), dtype=np.str_))
    write_bytes(ready / "keys.npy", buffer.getvalue())


def _progress(work: Path, settings: Mapping[str, Any], batch: int, resume: bool) -> dict[str, Any]:
    """Return the state of unfinished work, or nothing where there is none; work that is not resumed is removed."""
    path = work / PROGRESS_NAME
    whole = all((work / READY_NAME / f"{name}.npy").is_file() for name in ("image", "text"))
    if not (resume and whole and path.is_file()):
        path.unlink(missing_ok=True)
        return {}
    state = _read_json(path)
    found = state.get("settings")
    _check_same(settings, found if isinstance(found, dict) else {}, work)
    if state.get("batch") != batch:  # other batches round otherwise: the result must not depend on where work stopped
        raise DataError(
            f"{work} was begun with batch={state.get('batch')}, found batch={batch}",
            hint="use the same batch, or start afresh with resume=False",
        )
    return state


def _check_same(settings: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> None:
    """Raise DataError naming what differs; names of data and encoder may, what they hold may not."""
    compared = [name for name in settings if name not in ("encoder", "data")]
    different = [name for name in compared if found.get(name) != settings[name]]
    if different:
        listed = "; ".join(f"{name}: {found.get(name)!r}, expected {settings[name]!r}" for name in different)
        raise DataError(
            f"{path} holds other features ({listed})", hint="choose another path, or start afresh with resume=False"
        )


def _encode_rows(
    encoder: DualEncoder, data: PairDataset, rows: range, batch: int, captions: Captions
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the unit features of some rows: pictures and captions, (rows, E) each."""
    keys = np.array([data.key(row) for row in rows])
    image = encode_all_images(encoder, (data.image(row) for row in rows), batch)
    chosen = [data.captions(row) if captions == "mean" else data.captions(row)[:1] for row in rows]
    encoded = encode_all_texts(encoder, [caption.text for row in chosen for caption in row], batch)
    where = f"{encoder.name} on {data.name}"
    _check_finite(encoded, encoded, None, where)
    ends = np.cumsum([len(row) for row in chosen])
    text = np.stack(
        [mean_caption(encoded[end - len(row) : end], row) for end, row in zip(ends.tolist(), chosen, strict=True)]
    )
    _check_finite(image, text, keys, where)
    return _unit(image, keys, "picture"), _unit(text, keys, "caption")


def mean_caption(encoded: NDArray[np.float32], captions: Sequence[Caption]) -> NDArray[np.float32]:
    """Return the mean (E,) of captions (C, E): within each language first, so that none outweighs another."""
    languages = [caption.language for caption in captions]
    means = [
        encoded[[index for index, found in enumerate(languages) if found == language]].mean(0)
        for language in dict.fromkeys(languages)
    ]
    return np.mean(means, 0, dtype=np.float32)


def _unit(features: NDArray[np.float32], keys: NDArray[Any], what: str) -> NDArray[np.float32]:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    gone = np.flatnonzero(norms[:, 0] < 1e-6)
    if gone.size:
        named = ", ".join(map(repr, keys[gone[:5]].tolist()))
        raise DataError(
            f"{gone.size} {what} features have no length: {named}",
            hint="captions that cancel out: use captions='first'" if what == "caption" else "check the encoder",
        )
    return (features / norms).astype(np.float32)


def _check_finite(image: Any, text: Any, keys: Any, where: str) -> None:
    """Raise DataError naming rows with NaN or infinity; reads blocks, so that mapped arrays stay on the disk."""
    for name, array in (("image", image), ("text", text)):
        for start in range(0, len(array), 65536):
            bad = np.flatnonzero(~np.isfinite(array[start : start + 65536]).all(1)) + start
            if bad.size:
                named = ", ".join(repr(str(keys[row])) if keys is not None else f"row {row}" for row in bad[:5])
                raise DataError(
                    f"{where}: {name} features of {named} are not finite numbers", hint="check the encoder's weights"
                )


# --- files ----------------------------------------------------------------------------------------------------------


def _check_place(out: Path) -> None:
    """Check, before any work, that ``out`` may be written: it is free, or features that may be replaced."""
    packed = out.suffix == ".npz"
    if out.exists() and (out.is_dir() == packed or (not packed and not (out / SETTINGS_NAME).is_file())):
        kind = "a .npz file" if packed else "a folder of features"
        raise DataError(f"{out} is there and is not {kind}", hint="choose another name; nothing was replaced")


def _pack(work: Path, out: Path, settings: Mapping[str, Any]) -> None:
    """Write the arrays as one ``.npz``, streamed, then put it in its place."""
    packed = work / "packed.npz"
    arrays = {name: np.load(work / READY_NAME / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    with packed.open("wb") as file:
        np.savez(file, **arrays, settings=np.array(json.dumps(dict(settings), sort_keys=True)))
        file.flush()
        os.fsync(file.fileno())
    os.replace(packed, out)
    sync_folder(out.parent)


def _move(work: Path, out: Path, settings: Mapping[str, Any]) -> None:
    """Put the folder of arrays in the place of ``out``."""
    text = json.dumps(dict(settings), indent=2, sort_keys=True) + "\n"
    write_bytes(work / READY_NAME / SETTINGS_NAME, text.encode())
    old = work / "old"
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(work / READY_NAME, out)
    sync_folder(out.parent)


def _read_arrays(path: Path, only: str | None = None) -> dict[str, NDArray[Any]]:
    """Return the arrays of a ``.npz``, or map those of a folder."""
    try:
        if path.is_dir():
            names = [name for name in ARRAYS if (path / f"{name}.npy").is_file()]
            return {name: np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path} is a single array, expected a .npz with image and text")
        with archive:
            names = [name for name in (*ARRAYS, "settings") if name in archive.files]
            return {name: archive[name] for name in names if only is None or name == only}
    except FileNotFoundError as error:
        raise DataError(f"no features at {path}", hint="check the path") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable file of features: {error}", hint="extract them again") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="start afresh with resume=False") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} holds a {type(values).__name__}, expected an object")
    return values
