"""The lock of a run folder: file systems without locks, stale files, processes that start at one moment."""

import errno
import fcntl
import importlib
import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import glacier_nb
from glacier_nb.files.locks import _VARIABLE, Lock, LockError, run_lock

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
    assert not Lock.is_held(tmp_path)  # no process can hold a lock there


def test_another_error_of_flock_is_raised(tmp_path, monkeypatch):
    with run_lock(tmp_path):
        pass
    monkeypatch.setattr(fcntl, "flock", unable(errno.EIO))
    with pytest.raises(LockError, match="Input/output error"), run_lock(tmp_path):
        pass
    with pytest.raises(OSError, match="Input/output error"):
        Lock.is_held(tmp_path)


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
    assert not Lock.is_held(tmp_path)


def test_only_files_of_dead_processes_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "figures").mkdir()
    stale = [f".last.pt.{dead.pid}.tmp", f"figures/.map.png.{dead.pid}.tmp", f".x.{10**30}.tmp"]
    others = ["last.pt", f".model.pt.{os.getpid()}.tmp", ".notes.tmp", "mine.tmp", f"last.pt.{dead.pid}.tmp"]
    for name in (*stale, *others):
        (tmp_path / name).write_text("half")
    with run_lock(tmp_path):
        there = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert there == {".lock", *others}


def test_a_child_of_one_run_may_not_use_another_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the attempts of `run_lock`
    monkeypatch.setenv(_VARIABLE, str(tmp_path / "one"))
    with run_lock(tmp_path / "two"):
        with pytest.raises(LockError, match="in use"):
            run_lock(tmp_path / "two").__enter__()
        with run_lock(tmp_path / "one") as lock:  # no process holds it: the variable is not enough
            assert lock.files
            (tmp_path / "link").symlink_to(tmp_path / "one")
            with run_lock(tmp_path / "link") as again:
                assert again.file is None
                assert again.files == ()
            assert Lock.is_held(tmp_path / "one")
    assert not Lock.is_held(tmp_path / "one")
    assert not Lock.is_held(tmp_path / "nowhere")


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


POSIX_MODULES = ("fcntl", "grp", "pwd", "pty", "resource", "syslog", "termios", "tty")
POSIX_NAMES = {
    os: [
        "fork",
        "forkpty",
        "getuid",
        "geteuid",
        "killpg",
        "mkfifo",
        "sched_getaffinity",
        "setsid",
        "sysconf",
        "uname",
        "wait4",
    ],
    signal: ["SIGHUP", "SIGKILL", "SIGALRM", "SIGUSR1", "alarm", "pthread_kill", "setitimer"],
}


def _without_posix(folder, out):
    "Import every module, and use a run folder, where all that only POSIX systems have is missing."
    names = [m.name for m in pkgutil.walk_packages(glacier_nb.__path__, "glacier_nb.")]
    for name in names:  # what other packages need of POSIX is imported before it goes
        importlib.import_module(name)
    for name in [n for n in sys.modules if n.split(".")[0] == "glacier_nb"]:
        del sys.modules[name]
    sys.modules.update(dict.fromkeys(POSIX_MODULES))
    for module, attributes in POSIX_NAMES.items():
        for attribute in attributes:
            delattr(module, attribute)
    try:
        for name in names:
            importlib.import_module(name)
        locks = importlib.import_module("glacier_nb.files.locks")
        (folder / f".last.pt.{os.getpid()}.tmp").write_text("half")
        with locks.run_lock(folder, inherit=True) as lock, locks.run_lock(folder) as again:
            out.send((len(names), locks.fcntl, lock.files, again.files, locks.Lock.is_held(folder)))
    except BaseException as error:
        out.send(f"{type(error).__name__}: {error}")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="shows on POSIX systems what happens on others")
def test_every_module_imports_where_posix_is_missing(tmp_path):
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_without_posix, args=(tmp_path, send))
    process.start()
    send.close()
    found = receive.recv()
    process.join()
    assert not isinstance(found, str), found
    n, module, files, again, locked = found
    assert n > 80
    assert module is None
    assert files == again == ()  # no descriptor can be passed to a child process
    assert not locked
