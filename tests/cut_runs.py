"""Training as processes that can be killed: helpers of training/test_survival and parallel/test_launch."""

import contextlib
import ctypes
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from few_trees import few_trees

from glacier_nb.demo.tiles import cached_demo

ROOT = Path(__file__).parents[1]
TINY = {
    **{
        "encoder": "tu-test_resnet",
        "encoder_weights": None,
        "decoder_attention": "none",
        "include_glcm": False,
    },
    **{"crop_size": 32, "samples_per_epoch": 16, "batch_size": 4, "epochs": 4, "n_folds": 3},
    **{"devices": "cpu", "precision": "fp32", "memory_format": "contiguous", "save_minutes": 1e-4},
    **{"warmup_epochs": 0.0, "checks": "off"},  # these are far too few steps
}
PER_EPOCH = TINY["samples_per_epoch"] // TINY["batch_size"]  # steps

_SERVER = multiprocessing.get_context("forkserver")  # see `fork_server` in conftest.py


def make_project(root: Path) -> Path:
    "A project's root with six small tiles."
    (root / "nbs").mkdir(parents=True)
    shutil.copy(ROOT / "settings.ini", root)
    forkserver.ensure_running()  # its imports take their time: let them begin
    shutil.copytree(cached_demo(6, 64, 3), root / "data/demo")
    return root


def write_config(project: Path, name: str = "run.json", **parameters) -> str:
    "A config file in the project; its name."
    (project / name).write_text(json.dumps(TINY | parameters))
    return name


class Process(_SERVER.Process):
    "`glacier-nb train` in a project, forked; `said` is all that it printed."

    def __init__(self, project: Path, *arguments: str, before=None, after=None):
        self.log = project / f"log-{time.monotonic_ns()}"
        super().__init__(target=_train, args=(project, arguments, self.log, before, after))
        self.start()

    @property
    def said(self) -> str:
        return self.log.read_text()

    def end(self, seconds: float = 300) -> int:
        "Wait for its end; the exit status, negative after a signal."
        self.join(seconds)
        if self.exitcode is None:
            self.kill()
            raise TimeoutError(f"it has not ended in {seconds} s and said: {self.said}")
        return self.exitcode

    def send(self, number: int) -> None:
        "Send a signal."
        os.kill(self.pid, number)


def _train(project: Path, arguments: tuple[str, ...], log: Path, before, after) -> None:
    "The process itself: what the command line does."
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a background job may inherit that it is ignored
    torch.set_num_threads(1)
    os.chdir(project)
    from glacier_nb.experiments.command import main

    if before:
        before(project)
    few_trees(pytest.MonkeyPatch())
    try:
        status = main(["train", *arguments])
    finally:
        sys.stdout.flush()
        if after:
            after(project)
    sys.exit(status)


HELD = """
import os
import sys
import time

from glacier_nb.training.learner import Learner

STEPS = {steps}  # of this process, after which it waits for a signal
step = Learner.train_step


def held(learner, group):
    "A step; it waits before the one after STEPS until a signal asks the run to stop."
    learner.taken = getattr(learner, "taken", 0) + 1
    while learner.taken > STEPS and not learner.request:
        time.sleep(0.005)
    return step(learner, group)


Learner.train_step = held
if __name__ == "__main__":
    from glacier_nb.experiments.command import main

    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # torchrun lets a forked worker wait until its return value was read
"""


def held_command(project: Path, steps: int) -> str:
    "A script that is the command, but waits for a signal after so many steps, however fast the machine is."
    path = project / f"held{steps}.py"
    path.write_text(HELD.replace("{steps}", str(steps)))
    return str(path)


def hold_steps(project: Path, steps: int) -> None:
    "The same for a process that is forked, and for those that it forks."
    exec(compile(Path(held_command(project, steps)).read_text(), "held", "exec"), {"__name__": "held"})


class Started:
    "A command in a project, in a new interpreter; otherwise like `Process`."

    def __init__(self, project: Path, command: list[str]):
        self.log = project / f"log-{time.monotonic_ns()}"
        environment = os.environ | {"PYTHONPATH": f"{ROOT}", "OMP_NUM_THREADS": "1"}
        with open(self.log, "wb") as log:
            how = {"cwd": project, "stdout": log, "stderr": log, "start_new_session": True}
            self.process = subprocess.Popen(command, env=environment, **how)
        self.pid = self.process.pid

    @property
    def said(self) -> str:
        return self.log.read_text()

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def end(self, seconds: float = 300) -> int:
        "Wait for its end; the exit status, negative after a signal."
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            raise TimeoutError(f"it has not ended in {seconds} s and said: {self.said}") from None

    def send(self, number: int) -> None:
        "Send a signal to the process alone."
        os.kill(self.pid, number)


def last_step(folder: Path) -> int:
    "The optimizer steps in a run's last checkpoint, which must be readable; 0 without one."
    path = folder / "last.pt"
    return torch.load(path, weights_only=True)["progress"]["step"] if path.exists() else 0


def wait_for_saves(process: Process | Started, folder: Path, saves: int, seconds: float = 300) -> None:
    "Wait until the process has written this many new checkpoints."
    path, seen, end = folder / "last.pt", set(), time.monotonic() + seconds
    begun = path.stat().st_mtime_ns if path.exists() else None
    while len(seen) < saves:
        assert process.is_alive(), f"it ended early: {process.said}"
        assert time.monotonic() < end, f"no checkpoint was written: {process.said}"
        with contextlib.suppress(FileNotFoundError):
            seen |= {path.stat().st_mtime_ns} - {begun}
        time.sleep(0.001)


def wait_for_step(process: Process | Started, folder: Path, step: int, seconds: float = 300) -> None:
    "Wait until the last checkpoint is that of this step."
    end = time.monotonic() + seconds
    while last_step(folder) < step:
        assert process.is_alive(), f"it ended early: {process.said}"
        assert time.monotonic() < end, f"no checkpoint of step {step}: {process.said}"
        time.sleep(0.1)


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    "The weights in a checkpoint."
    return torch.load(folder / name, weights_only=True)["weights"]


def same_weights(one: dict, other: dict) -> bool:
    "Are two sets of weights equal to the bit?"
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def history(folder: Path) -> list[dict]:
    "The records of a run, without their seconds."
    records = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def mount_disk(folder: Path, megabytes: int, read_only: bool = False) -> None:
    "Mount a small disk over a folder, for this process alone. Raises OSError without the permission."
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private, read = 0x20000, 0x44000, 1
    calls = (
        lambda: libc.unshare(new_namespace),
        lambda: libc.mount(b"none", b"/", None, private, None),
        lambda: libc.mount(
            b"tmpfs", os.fsencode(folder), b"tmpfs", read * read_only, f"size={megabytes}m".encode()
        ),
    )
    for call in calls:
        if call():
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def can_mount(folder: Path) -> bool:
    "Whether this user may mount a disk."
    child = os.fork()
    if child == 0:
        try:
            mount_disk(folder, 1)
            os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0
