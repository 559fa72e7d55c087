"""The cast: fixed canonical entries, versions per look, files that are checked when read."""

import numpy as np
import pytest

from huaben.errors import ConfigError, StoreError
from huaben.theater.cast import Cast, CastEntry, cut_out


def entry(id="1", look=("cat", "red", "none"), turn=1, seed=0):
    rng = np.random.default_rng(seed)
    return CastEntry(
        id=id,
        turn=turn,
        prompt="a red cat",
        look=look,
        facing="left",
        box=(0.1, 0.2, 0.5, 0.9),
        crop=rng.integers(0, 256, (20, 15, 3), dtype=np.uint8),
        mask=rng.random((20, 15)) > 0.4,
        embedding=rng.standard_normal(8).astype(np.float32),
    )


def test_canonical_entry_never_changes():
    first = entry(seed=1)
    cast = Cast().add(first)
    for turn in range(2, 9):
        cast = cast.add(entry(turn=turn, seed=turn))
    cast = cast.add(entry(look=("cat", "blue", "none"), turn=9, seed=9))
    assert len(cast.entries) == 2
    kept = cast.choose("1")
    assert kept.crop.tobytes() == first.crop.tobytes()
    assert kept.turn == 1


def test_policy_latest_follows_the_newest_look():
    cast = Cast().add(entry()).add(entry(look=("cat", "blue", "none"), turn=2, seed=2))
    assert cast.choose("1", "canonical").colour == "red"
    assert cast.choose("1", "latest").colour == "blue"
    assert cast.choose("1", "latest").version == 1
    assert cast.choose("2") is None
    with pytest.raises(ConfigError, match="newest"):
        cast.choose("1", "newest")


def test_choose_leaves_out_another_species():
    cast = Cast().add(entry(look=("frog", "green", "none")))
    assert cast.choose("1", species="frog") is not None
    assert cast.choose("1", species="lion") is None


def test_entries_cannot_be_written_to():
    kept = Cast().add(entry()).choose("1")
    with pytest.raises(ValueError, match="read-only"):
        kept.crop[0, 0] = 0


def test_save_and_load_change_nothing(tmp_path):
    cast = Cast().add(entry()).add(entry("2", seed=5)).add(entry(look=("cat", "blue", "hat"), turn=4, seed=6))
    loaded, notices = Cast.load(tmp_path, cast.save(tmp_path))
    assert notices == ()
    for a, b in zip(cast.entries, loaded.entries, strict=True):
        assert (a.id, a.version, a.turn, a.look, a.facing) == (b.id, b.version, b.turn, b.look, b.facing)
        assert a.crop.tobytes() == b.crop.tobytes()
        assert a.mask.tobytes() == b.mask.tobytes()
        assert a.embedding.tobytes() == b.embedding.tobytes()


def test_saving_again_writes_no_new_files(tmp_path):
    cast = Cast().add(entry())
    cast.save(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    cast.add(entry("2", seed=3)).save(tmp_path)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}.items()


@pytest.mark.parametrize("harm", ["delete", "truncate", "change"])
def test_damaged_reference_is_left_out_with_a_notice(tmp_path, harm):
    values = Cast().add(entry()).add(entry("2", seed=3)).save(tmp_path)
    path = tmp_path / values[0]["file"]
    data = path.read_bytes()
    if harm == "delete":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if harm == "truncate" else data[:-1] + b"x")
    cast, notices = Cast.load(tmp_path, values)
    assert cast.ids == ("2",)
    assert [note.code for note in notices] == ["reference_unreadable"]


def test_file_names_cannot_leave_the_folder(tmp_path):
    values = Cast().add(entry()).save(tmp_path / "cast")
    values[0]["file"] = "../" + values[0]["file"]
    with pytest.raises(StoreError, match="plain name"):
        Cast.load(tmp_path / "cast", values)


def test_cut_out_keeps_a_margin_inside_the_picture():
    image = np.arange(40 * 60 * 3, dtype=np.uint32).astype(np.uint8).reshape(40, 60, 3)
    crop, mask = cut_out(image, (0.0, 0.5, 0.5, 1.0), None, margin=0.1)
    assert crop.shape == (23, 33, 3)
    assert mask.sum() == 20 * 30
    np.testing.assert_array_equal(crop, image[17:40, 0:33])
