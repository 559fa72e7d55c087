"""Features of a data set: whole or absent, resumed exactly, matched by key."""

import hashlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from huaben.clip.dataset import ArrayPairs, Caption, PairDataset
from huaben.clip.dual_encoder import DualEncoder
from huaben.clip.features import (
    Features,
    extract_features,
    join_features,
    load_features,
    match_keys,
    mean_caption,
    read_settings,
    weights_fingerprint,
)
from huaben.errors import ConfigError, DataError

WIDTH = 6


class HashEncoder(DualEncoder):
    """Gives every picture and text a direction of its own; counts what it encodes."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.name = "hash"
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator))
        self.images = self.texts = 0
        self.stop_after: int | None = None

    def prepare_images(self, images: Sequence[np.ndarray]) -> Tensor:
        return torch.stack([self._vector(image.tobytes()) for image in images])

    def prepare_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return {"rows": torch.stack([self._vector(text.encode()) for text in texts])}

    def encode_images(self, pixels: Tensor) -> Tensor:
        self.images += len(pixels)
        if self.stop_after is not None and self.images > self.stop_after:
            raise KeyboardInterrupt
        return pixels @ self.weight

    def encode_texts(self, tokens: Mapping[str, Tensor]) -> Tensor:
        self.texts += len(tokens["rows"])
        features = tokens["rows"] @ self.weight
        return features / features.norm(dim=1, keepdim=True)

    @property
    def logit_scale(self) -> Tensor:
        return torch.ones(())

    def save(self, folder: str | Path) -> None:
        raise NotImplementedError

    @staticmethod
    def _vector(data: bytes) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(data).digest()[:4], "little")
        return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def pairs(count: int = 50, *, start: int = 0, prefix: str = "k") -> ArrayPairs:
    numbers = range(start, start + count)
    images = [np.full((8, 8, 3), number, np.uint8) for number in numbers]
    captions = [[f"number {number} a", f"数 {number}"][: 1 + number % 2] for number in numbers]
    return ArrayPairs(images, captions, [f"{prefix}{number}" for number in numbers])


@pytest.mark.parametrize("name", ["f.npz", "f"])
def test_features_are_written_and_read(tmp_path: Path, name: str) -> None:
    data, encoder = pairs(), HashEncoder()
    seen: list[tuple[int, int]] = []
    out = extract_features(
        encoder, data, tmp_path / name, batch=2, progress=lambda done, total: seen.append((done, total))
    )
    image, text, keys = load_features(out)
    assert out == tmp_path / name and image.shape == text.shape == (50, WIDTH) and image.dtype == np.float32
    assert keys is not None and keys.tolist() == data.keys()
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, atol=1e-6)
    expected = (HashEncoder._vector(data.image(7).tobytes()) @ encoder.weight).detach().numpy()
    np.testing.assert_allclose(image[7], expected / np.linalg.norm(expected), atol=1e-5)
    assert seen == [(16, 50), (32, 50), (48, 50), (50, 50)]
    assert isinstance(image, np.memmap) == (name == "f")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert read_settings(out)["captions"] == "mean" and read_settings(out)["weights"] == weights_fingerprint(encoder)


def test_captions_are_averaged_within_and_over_languages() -> None:
    encoded = np.eye(4, dtype=np.float32)
    captions = [Caption("a", "en"), Caption("b", "en"), Caption("c", "en"), Caption("四", "zh")]
    np.testing.assert_allclose(mean_caption(encoded, captions), [1 / 6, 1 / 6, 1 / 6, 1 / 2], rtol=1e-6)


def test_first_caption_alone(tmp_path: Path) -> None:
    data, encoder = pairs(4), HashEncoder()
    first = load_features(extract_features(encoder, data, tmp_path / "a.npz", captions="first"))
    mean = load_features(extract_features(encoder, data, tmp_path / "b.npz"))
    vectors = encoder.encode_texts(encoder.prepare_texts(["number 1 a", "数 1"])).detach().numpy()
    np.testing.assert_allclose(first.text[1], vectors[0], atol=1e-6)
    both = vectors.mean(0) / np.linalg.norm(vectors.mean(0))
    np.testing.assert_allclose(mean.text[1], both, atol=1e-6)
    np.testing.assert_allclose(first.text[0], mean.text[0], atol=1e-6)


@pytest.mark.parametrize("name", ["f.npz", "f"])
def test_work_cut_off_goes_on_where_it_stood(tmp_path: Path, name: str) -> None:
    whole = load_features(extract_features(HashEncoder(), pairs(), tmp_path / "whole.npz", batch=2))
    broken = HashEncoder()
    broken.stop_after = 33
    with pytest.raises(KeyboardInterrupt):
        extract_features(broken, pairs(), tmp_path / name, batch=2)
    assert not (tmp_path / name).exists()
    fresh = HashEncoder()
    image, text, keys = load_features(extract_features(fresh, pairs(), tmp_path / name, batch=2))
    assert fresh.images == 50 - 32
    assert (image == whole.image).all() and (text == whole.text).all() and (keys == whole.keys).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_process_leaves_work_to_go_on_with(tmp_path: Path) -> None:
    class Killed(HashEncoder):
        def encode_images(self, pixels: Tensor) -> Tensor:
            if self.images >= 32:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().encode_images(pixels)

    child = os.fork()
    if child == 0:
        try:
            extract_features(Killed(), pairs(), tmp_path / "f.npz", batch=2)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    fresh = HashEncoder()
    extract_features(fresh, pairs(), tmp_path / "f.npz", batch=2)
    assert fresh.images == 50 - 32 and [path.name for path in tmp_path.iterdir()] == ["f.npz"]


def test_work_of_other_data_is_not_taken_up(tmp_path: Path) -> None:
    def start(data: PairDataset) -> None:
        broken = HashEncoder()
        broken.stop_after = 33
        with pytest.raises(KeyboardInterrupt):
            extract_features(broken, data, tmp_path / "f.npz", batch=2)

    start(pairs())
    with pytest.raises(DataError, match=r"other features \(fingerprint"):
        extract_features(HashEncoder(), pairs(prefix="x"), tmp_path / "f.npz", batch=2)
    with pytest.raises(DataError, match="weights"):
        extract_features(HashEncoder(1), pairs(), tmp_path / "f.npz", batch=2)
    with pytest.raises(DataError, match="batch=2, found batch=4"):
        extract_features(HashEncoder(), pairs(), tmp_path / "f.npz", batch=4)
    fresh = HashEncoder(1)
    extract_features(fresh, pairs(), tmp_path / "f.npz", batch=4, resume=False)
    assert fresh.images == 50


@pytest.mark.parametrize("name", ["f.npz", "f"])
def test_finished_features_are_kept_or_replaced_on_request(tmp_path: Path, name: str) -> None:
    extract_features(HashEncoder(), pairs(), tmp_path / name)
    again = HashEncoder()
    extract_features(again, pairs(), tmp_path / name, batch=3)
    assert again.images == 0
    with pytest.raises(DataError, match="holds other features"):
        extract_features(HashEncoder(1), pairs(), tmp_path / name)
    extract_features(HashEncoder(1), pairs(), tmp_path / name, resume=False)
    assert read_settings(tmp_path / name)["weights"] == weights_fingerprint(HashEncoder(1))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_nothing_else_is_ever_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letters.txt").write_text("dear")
    for resume in (True, False):
        with pytest.raises(DataError):
            extract_features(HashEncoder(), pairs(), tmp_path / "mine", resume=resume)
    assert (tmp_path / "mine" / "letters.txt").read_text() == "dear"


def test_features_that_are_no_numbers_name_the_pair(tmp_path: Path) -> None:
    encoder = HashEncoder()
    with torch.no_grad():
        encoder.weight[0] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        extract_features(encoder, pairs(), tmp_path / "f.npz")
    with torch.no_grad():
        encoder.weight.zero_()
    with pytest.raises(DataError):
        extract_features(encoder, pairs(), tmp_path / "f.npz")
    assert not (tmp_path / "f.npz").exists()


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        extract_features(HashEncoder(), pairs(), tmp_path / "f.npz", captions="all")  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        extract_features(HashEncoder(), pairs(), tmp_path / "f.npz", batch=0)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    rows = np.ones((3, 2), np.float32)
    path = tmp_path / "f.npz"
    with pytest.raises(DataError, match="no features at"):
        load_features(path)
    path.write_bytes(b"junk")
    with pytest.raises(DataError, match="not a readable file"):
        load_features(path)
    for arrays, reason in (
        ({"image": rows}, "no array 'text'"),
        ({"image": rows, "text": rows[:2]}, "3 rows of image, 2 rows of text"),
        ({"image": rows, "text": rows.astype(int)}, "text is int64"),
        ({"image": rows, "text": rows[0]}, "shape"),
        ({"image": rows, "text": rows, "keys": np.array(["a", "b", "a"])}, "named twice: 'a'"),
        ({"image": rows, "text": rows, "keys": np.arange(3)}, "keys is int64"),
        ({"image": rows, "text": np.where(np.arange(6).reshape(3, 2) == 3, np.nan, rows)}, "row 1 are not finite"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(DataError, match=reason):
            load_features(path)
    np.save(tmp_path / "one.npy", rows)
    with pytest.raises(DataError, match="single array"):
        load_features(tmp_path / "one.npy")
    np.savez(path, image=rows, text=rows.astype(np.float16))
    assert load_features(path).keys is None and read_settings(path) == {}


def test_rows_are_joined_by_key_after_shuffling_and_thinning(tmp_path: Path) -> None:
    data = pairs(50)
    features = load_features(extract_features(HashEncoder(), data, tmp_path / "f.npz"))
    order = np.random.default_rng(0).permutation(50)[:45]
    joined, found = join_features(features, data.subset(order.tolist()).keys())
    assert (found == np.arange(45)).all() and (joined.image == features.image[order]).all()
    assert joined.keys is not None and joined.keys.tolist() == [f"k{row}" for row in order]


def test_fewer_than_999_in_a_thousand_matched_is_an_error() -> None:
    have = [f"k{n}" for n in range(2000)]
    want = [f"k{n}" for n in range(1, 2001)]  # one absent
    rows = match_keys(have, want)
    assert rows[-1] == -1 and (rows[:-1] == np.arange(1, 2000)).all()
    with pytest.raises(DataError, match=r"1997 of 2000 keys.*99\.9%.*'k2000'"):
        match_keys(have, [f"k{n}" for n in range(3, 2003)])
    with pytest.raises(DataError, match="occur twice"):
        match_keys(["a", "a"], ["a"])
    features = Features(np.ones((2, 2), np.float32), np.ones((2, 2), np.float32), None)
    with pytest.raises(DataError, match="no keys"):
        join_features(features, ["a", "b"])


def test_partly_matched_features_say_which_rows_they_are() -> None:
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    features = Features(rows, -rows, np.array(list("abcd")))
    joined, found = join_features(features, ["d", "x", "a"], minimum=0.5)
    assert found.tolist() == [0, 2] and joined.keys is not None and joined.keys.tolist() == ["d", "a"]
    assert (joined.image == rows[[3, 0]]).all() and (joined.text == -rows[[3, 0]]).all()
