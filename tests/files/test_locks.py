"""The lock of a run folder: file systems without locks, stale files, processes that start at one moment."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glacier_nb.files.locks import LOCK_VARIABLE, LockError, is_locked, run_lock

ROOT = Path(__file__).parents[2]


def unable(number: int):
    "A `flock` that the file system refuses."

    def flock(file, how):
        raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_cannot_lock_is_named(tmp_path, monkeypatch, number):
    with run_lock(tmp_path):
        pass
    monkeypatch.setattr(fcntl, "flock", unable(number))
    with pytest.raises(LockError, match=r"cannot lock files .*put outputs/ on another"), run_lock(tmp_path):
        pass
    assert not is_locked(tmp_path)  # no process can hold a lock there


def test_another_error_of_flock_is_raised(tmp_path, monkeypatch):
    with run_lock(tmp_path):
        pass
    monkeypatch.setattr(fcntl, "flock", unable(errno.EIO))
    with pytest.raises(LockError, match="Input/output error"), run_lock(tmp_path):
        pass
    with pytest.raises(OSError, match="Input/output error"):
        is_locked(tmp_path)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(LockError, match=r"file/run cannot be used as a run folder: Not a directory"):
        run_lock(tmp_path / "file/run").__enter__()

    def read_only(file, *args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))

    monkeypatch.setattr("glacier_nb.files.locks.open", read_only, raising=False)
    with pytest.raises(LockError, match=r"cannot be used as a run folder: Read-only file system"):
        run_lock(tmp_path / "run").__enter__()


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "ftruncate", lambda file, size: None)
    monkeypatch.setattr(os, "write", lambda file, data: unable(errno.ENOSPC)(file, 0))
    with pytest.raises(LockError, match=r"cannot be used as a run folder: No space left"):
        run_lock(tmp_path).__enter__()
    assert not is_locked(tmp_path)


def test_only_files_of_dead_processes_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "figures").mkdir()
    stale = [f".last.pt.{dead.pid}.tmp", f"figures/.map.png.{dead.pid}.tmp", f".x.{10**30}.tmp"]
    others = ["last.pt", f".best.pt.{os.getpid()}.tmp", ".notes.tmp", "mine.tmp", f"last.pt.{dead.pid}.tmp"]
    for name in (*stale, *others):
        (tmp_path / name).write_text("half")
    with run_lock(tmp_path):
        there = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert there == {".lock", *others}


def test_a_child_of_one_run_may_not_use_another_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the attempts of `run_lock`
    monkeypatch.setenv(LOCK_VARIABLE, str(tmp_path / "one"))
    with run_lock(tmp_path / "two"):
        with pytest.raises(LockError, match="in use"):
            run_lock(tmp_path / "two").__enter__()
        with run_lock(tmp_path / "one") as lock:  # no process holds it: the variable is not enough
            assert lock.files
            (tmp_path / "link").symlink_to(tmp_path / "one")
            with run_lock(tmp_path / "link") as again:
                assert again.file is None
                assert again.files == ()
            assert is_locked(tmp_path / "one")
    assert not is_locked(tmp_path / "one")
    assert not is_locked(tmp_path / "nowhere")


RACE = """
import sys, time
from glacier_nb.files.locks import LockError, run_lock
print("ready", flush=True)
sys.stdin.readline()
try:
    with run_lock(sys.argv[1]):
        print("mine", flush=True)
        sys.stdin.readline()
except LockError as e:
    print(e, flush=True)
"""


def test_of_processes_that_start_at_the_same_moment_one_gets_the_folder(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    command = [sys.executable, "-c", RACE, str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    racers = [subprocess.Popen(command, env=environment, **pipes) for _ in range(5)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
    answers = [racer.stdout.readline().strip() for racer in racers]
    winner = racers[answers.index("mine")]
    winner.communicate("end\n", timeout=10)
    for racer in racers:
        racer.communicate(timeout=10)
    assert answers.count("mine") == 1
    assert all(f"in use: process {winner.pid} on" in text for text in answers if text != "mine")
    with run_lock(tmp_path / "run"):
        pass
