"""Arrays on disk: the numbers of NumPy, no open files, clear errors for damaged files."""

import errno
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from glacier_nb.files.arrays import CacheError, DiskArray
from glacier_nb.files.errors import TileCause
from glacier_nb.files.paths import atomic_write, cached_json


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8, bool])
@pytest.mark.parametrize("shape", [(7, 33, 50), (33, 50), (5,)])
def test_indexing_equals_numpy(tmp_path, dtype, shape):
    array = (np.random.default_rng(0).random(shape) * 9).astype(dtype)
    disk = DiskArray.store(tmp_path / "a.npy", array)
    assert (disk.shape, disk.dtype, disk.nbytes, disk.ndim, len(disk)) == (
        array.shape,
        array.dtype,
        array.nbytes,
        array.ndim,
        len(array),
    )
    keys = [np.s_[...], np.s_[1:4], np.s_[::-1], np.s_[-1], np.s_[[3, 0, 0]]]
    keys += [np.s_[..., 3:9, 40:50], np.s_[..., np.arange(5)[:, None], np.arange(7)]] * (len(shape) > 1)
    for key in keys:
        np.testing.assert_array_equal(disk[key], array[key])
        assert disk[key].dtype == array.dtype
    np.testing.assert_array_equal(np.asarray(disk), array)
    np.testing.assert_array_equal(np.asarray(disk, np.float64), array.astype(np.float64))
    np.testing.assert_array_equal(disk == 3, array == 3)
    np.testing.assert_array_equal(disk != 3, array != 3)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(disk))[...], array)


def test_what_was_read_is_a_copy(tmp_path):
    disk = DiskArray.store(tmp_path / "a.npy", np.zeros((4, 4)))
    part = disk[1:3]
    part += 1
    assert not disk[...].any()


@pytest.mark.parametrize("size", [0, 5, 60, 128, 500, 10_000])
def test_a_truncated_or_too_long_file_is_refused(tmp_path, size):
    path = tmp_path / "a.npy"
    DiskArray.store(path, np.zeros((10, 20)))
    path.write_bytes((path.read_bytes() + b"0" * 10_000)[:size])
    with pytest.raises(CacheError, match=r"a\.npy: found .* To fix"):
        DiskArray.open(path)


def test_files_that_are_no_plain_array_are_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}, "x"], object), allow_pickle=True)
    np.savez(tmp_path / "several.npz", np.zeros(3), np.zeros(4))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    (tmp_path / "text.npy").write_text("no array at all, but some text that is long enough to be one")
    for name in ("objects", "several", "text", "missing"):
        with pytest.raises(CacheError, match=name) as error:
            DiskArray.open(tmp_path / f"{name}.npy")
        assert error.value.cause is TileCause.CACHE


def test_a_file_that_shrinks_or_disappears_during_a_run_is_an_error_and_not_a_crash(tmp_path):
    disk = DiskArray.store(tmp_path / "a.npy", np.zeros((100, 100)))
    os.truncate(disk.path, 5000)
    with pytest.raises(CacheError, match="found 5000 bytes"):
        disk[90]
    np.save(disk.path, np.zeros((100, 50)))
    with pytest.raises(CacheError, match=r"found \(100, 50\) float64\. Expected \(100, 100\) float64"):
        disk[90]
    os.unlink(disk.path)
    with pytest.raises(CacheError, match="No such file"):
        disk[90]


def test_a_pickle_holds_no_numbers(tmp_path):
    disk = DiskArray.store(tmp_path / "a.npy", np.random.default_rng(0).random((300, 300)))
    disk[5]
    assert len(pickle.dumps(disk)) < 1000


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch, code):
    def full(file, array):
        file.write(b"half")
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(CacheError, match=r"MB free.*Expected 0\.1 MB.*GLACIER_NB_CACHE"):
        DiskArray.store(tmp_path / "new" / "a.npy", np.zeros((100, 125)))
    assert not list((tmp_path / "new").iterdir())


def test_other_errors_of_the_disk_pass_as_they_are(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        DiskArray.store(tmp_path / "file" / "a.npy", np.zeros(3))


def test_temporary_names_are_new_each_time(tmp_path):
    with atomic_write(tmp_path / "a") as one, atomic_write(tmp_path / "a") as two:
        one.write_text("one")
        two.write_text("two")
        assert one != two
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("text", ["", "{", "\x00\x00"])
def test_cached_json_computes_again_what_cannot_be_read(tmp_path, text):
    path, calls = tmp_path / "cache" / "a.json", []

    def compute():
        calls.append(1)
        return {"x": [0.1, 1e300, -0.0]}

    first = cached_json(path, compute)
    path.write_text(text)
    assert cached_json(path, compute) == cached_json(path, compute) == first
    assert len(calls) == 2


def _store_often(folder: str, value: int):
    "Write the same file again and again."
    for _ in range(30):
        DiskArray.store(Path(folder) / "a.npy", np.full((50, 50), value))


def test_processes_that_write_one_file_never_show_a_part_of_it(tmp_path):
    context = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    writers = [context.Process(target=_store_often, args=(str(tmp_path), k)) for k in range(3)]
    DiskArray.store(tmp_path / "a.npy", np.full((50, 50), 9))
    for w in writers:
        w.start()
    seen = set()
    while any(w.is_alive() for w in writers):
        values = set(DiskArray.open(tmp_path / "a.npy")[...].ravel().tolist())
        assert len(values) == 1
        seen |= values
    assert all(w.exitcode == 0 for w in writers)
    assert seen <= {0, 1, 2, 9}
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]
