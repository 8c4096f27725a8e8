"""Processes that train together: launched here, or by two torchruns on loopback; and the death of one."""

import multiprocessing
import os
import signal
import socket
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import rank_workers
from cut_runs import (
    ROOT,
    Process,
    held_command,
    history,
    last_step,
    make_project,
    wait_for_step,
    write_config,
)
from torch.distributed.run import main
from torch.multiprocessing.spawn import start_processes

from glacier_nb.config.fields import ConfigError
from glacier_nb.config.training import TrainConfig
from glacier_nb.parallel.launch import RankDied, StopRequest, launch, send_message, under_torchrun

TWO = TrainConfig(devices=2)


def ranks_left() -> list[psutil.Process]:
    "Launched processes that still run: new interpreters, and children of the fork server."
    here = psutil.Process()
    alive = [p for p in here.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in alive if "spawn_main" in " ".join(p.cmdline()) or p.ppid() != here.pid]


def test_results_in_the_order_of_the_ranks_and_launches_do_not_mix(forked_ranks):
    "Two launches at once, from two threads: each has its own port, its own ranks and its own messages."
    received: dict[str, list] = {"a": [], "b": []}
    with ThreadPoolExecutor(2) as pool:
        begun = {
            n: pool.submit(launch, rank_workers.answer, TWO, n, on_message=received[n].append)
            for n in received
        }
        found = {name: future.result() for name, future in begun.items()}
    for name, results in found.items():
        assert [r["rank"] for r in results] == [0, 1]
        assert {(r["of"], r["counted"], r["name"], r["device"]) for r in results} == {(2, 2, name, "cpu")}
        assert [r["all"] for r in results] == [[0, 10], [0, 10]]
        for rank in (0, 1):
            assert [m for m in received[name] if m[1] == rank] == [(name, rank, i) for i in range(3)]
    assert len({r["pid"] for results in found.values() for r in results} | {os.getpid()}) == 5
    assert not ranks_left()


@pytest.mark.parametrize(
    ("worker", "parts"),
    [
        (rank_workers.fail_oddly, ["rank 1 of 2 failed", "in fail_oddly", "OddError: tile_3: odd"]),
        (rank_workers.be_killed, ["rank 1 of 2 was killed by signal SIGKILL", "lack of memory"]),
        (rank_workers.leave, ["rank 1 of 2 exited with code 3", "without an error message"]),
    ],
    ids=["raises", "SIGKILL", "os._exit"],
)
def test_when_a_rank_dies_all_end_and_it_is_named(forked_ranks, worker, parts):
    died: list[float] = []
    with pytest.raises(RankDied) as error:
        launch(worker, TWO, on_message=died.append)
    assert time.time() - died[0] < 15
    assert not [part for part in parts if part not in str(error.value)], str(error.value)
    assert not ranks_left()


def launch_in_background(folder: Path) -> None:
    "A launching process as a shell script starts it with `&`: SIGINT is ignored."
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    launch(rank_workers.wait_for_a_signal, TWO, on_message=lambda pid: (folder / str(pid)).touch())


def test_new_interpreters_end_with_the_process_that_launched_them(tmp_path):
    parent = multiprocessing.get_context("forkserver").Process(target=launch_in_background, args=(tmp_path,))
    parent.start()
    end = time.monotonic() + 300
    while len(pids := [int(path.name) for path in tmp_path.iterdir()]) < 2:
        assert parent.is_alive()
        assert time.monotonic() < end
        time.sleep(0.05)
    ranks = [psutil.Process(pid) for pid in pids]
    assert all("spawn_main" in " ".join(rank.cmdline()) for rank in ranks)
    parent.kill()
    _, left = psutil.wait_procs(ranks, timeout=60)
    assert not [rank.kill() for rank in left]


def test_an_error_has_its_type_and_its_traceback(monkeypatch):
    "In new interpreters, as in a run."
    monkeypatch.setattr("glacier_nb.parallel.launch.start_processes", start_processes)
    with pytest.raises(FileNotFoundError, match=r"tile\.tif") as error:
        launch(rank_workers.fail, TWO)
    assert isinstance(error.value.__cause__, RankDied)
    assert "rank 1 of 2 failed" in str(error.value.__cause__)
    assert "in fail\n" in str(error.value.__cause__)


def test_a_worker_that_no_other_process_can_import_is_refused(monkeypatch):
    def inside(cfg):
        return 1

    cell = types.FunctionType(rank_workers.answer.__code__, {}, "cell")
    cell.__module__, cell.__qualname__ = "__main__", "cell"
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))  # a notebook's has no file
    for worker in (inside, lambda cfg: 1, cell):
        with pytest.raises(ConfigError, match="put it at the top of a module"):
            launch(worker, TWO)
    assert not ranks_left()


def test_a_process_alone_sends_nothing_and_is_not_under_torchrun(monkeypatch):
    send_message("lost")
    assert not under_torchrun()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    assert under_torchrun()


# torchrun

# one step an epoch, with shards of 3 and 2 crops
STEPS = {"samples_per_epoch": 5, "batch_size": 5, "epochs": 8, "lr": 1e-5, "save_minutes": 0.0}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("distributed") / "project")


class Agent(Process):
    "torchrun in a project, forked; it starts its worker as a new interpreter."

    def __init__(self, project: Path, arguments: list[str]):
        self.log = project / f"log-{time.monotonic_ns()}"
        multiprocessing.get_context("forkserver").Process.__init__(
            self, target=torchrun, args=(project, arguments, self.log)
        )
        self.start()


def torchrun(project: Path, arguments: list[str], log: Path) -> None:
    "The process of an `Agent`: what the command `torchrun` does."
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(project)
    os.environ |= {"PYTHONPATH": f"{ROOT}", "OMP_NUM_THREADS": "1"}
    main(arguments)


def agents(project: Path, config: str, *arguments: str, held: int = 0) -> list[Agent]:
    "torchrun as on two hosts; with `held`, forked workers that wait for a signal after so many steps."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "test"]
    group += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    program = ["-m", "glacier_nb"]
    if held:
        program = ["--run-path", "--start-method", "fork", held_command(project, held)]
    line = [*group, *program, "train", "--config", config, *arguments]
    return [Agent(project, line) for _ in range(2)]


@pytest.mark.slow
def test_two_torchruns_are_one_run_and_resume_after_sigterm(project):
    """The loss of 8 steps on two ranks with shards of different sizes is that of one process.

    The steps are small: Adam's first ones move each weight by the learning rate, however small its gradient,
    so that differences of rounding grow with it.
    """
    one = Process(project, "--config", write_config(project, "one.json", run="one", **STEPS))
    folder, config = project / "outputs/two", write_config(project, "two.json", run="two", **STEPS)
    both = agents(project, config, held=4)
    wait_for_step(both[0], folder, 4)
    for agent in both:
        agent.send(signal.SIGTERM)
    for agent in both:
        agent.end(60)
    step = last_step(folder)
    assert step == 5, [agent.said for agent in both]  # the step in progress was finished
    assert not [
        agent.said for agent in both if "forcefully" in agent.said
    ]  # they ended in time, without being killed
    for agent in (both := agents(project, config, "--resume")):
        assert agent.end(300) == 0, agent.said
    assert sum("epoch   8/8" in agent.said for agent in both) == 1  # only rank 0 shows progress
    assert one.end() == 0, one.said
    alone, together = history(project / "outputs/one"), history(folder)
    assert [r["epoch"] for r in together] == list(range(1, STEPS["epochs"] + 1))
    for name in ("train_loss", "loss_dice", "loss_mcc", "loss_focal", "val_loss", "lr"):
        curves = [[r[name] for r in records] for records in (alone, together)]
        np.testing.assert_allclose(*curves, atol=1e-4, rtol=0, err_msg=name)


def test_a_kernel_whose_papermill_has_ended_is_stopped_after_its_step(monkeypatch):
    "ipykernel compares the numbers once a second and ends the kernel when they differ: not in the meantime."
    poller = types.SimpleNamespace(parent_pid=os.getppid())
    app = types.SimpleNamespace(_instance=types.SimpleNamespace(poller=poller))
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", types.SimpleNamespace(IPKernelApp=app))
    with StopRequest(verbose=False) as request:
        assert not request
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert not poller.parent_pid != 1  # noqa: SIM202 - as ipykernel compares
        for _ in range(100):
            if request:
                break
            time.sleep(0.02)
        assert request.name == "SIGTERM"
    assert poller.parent_pid != 1, "now ipykernel ends the kernel"
