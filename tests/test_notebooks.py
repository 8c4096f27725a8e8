"""Every lesson runs as in `nbdev-test`, one notebook a test, so that notebooks and tests share the cores."""

import multiprocessing
import os
import signal
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LESSONS = sorted((ROOT / "nbs").glob("*/[0-9]*.ipynb"))
SKIPPED = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["nbdev"]["tst_flags"].split()

_SERVER = multiprocessing.get_context("forkserver")  # see `fork_server` in conftest.py


def _run(path: Path, environment: dict[str, str], log: Path) -> None:
    "The process itself: exit status 1 when a cell fails, its traceback in `log`."
    os.setsid()  # what the notebook starts can be ended with it
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ |= environment
    from nbdev.test import test_nb

    from glacier_nb.parallel import launch

    start = launch.start_processes  # new interpreters, seconds each, start in tests/parallel/test_launch.py
    launch.start_processes = lambda *args, **options: start(*args, **options | {"start_method": "fork"})
    passed, _seconds = test_nb(path, skip_flags=SKIPPED, basepath=ROOT)
    raise SystemExit(not passed)


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_notebook(path, tmp_path):
    process = _SERVER.Process(target=_run, args=(path, dict(os.environ), tmp_path / "log"))
    process.start()
    process.join(900)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.exitcode == 0, (tmp_path / "log").read_text()
