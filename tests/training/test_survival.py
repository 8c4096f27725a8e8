"""Runs that are killed, stopped, out of disk space or given damaged files: what is saved, how they resume."""

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from cut_runs import (
    PER_EPOCH,
    TINY,
    Process,
    Started,
    can_mount,
    history,
    hold_steps,
    last_step,
    make_project,
    mount_disk,
    same_weights,
    wait_for_saves,
    wait_for_step,
    weights,
    write_config,
)

from glacier_nb.experiments.command import main
from glacier_nb.files.locks import _VARIABLE, run_lock
from glacier_nb.parallel import launch
from glacier_nb.runs.folder import run_state

STEPS = PER_EPOCH * TINY["epochs"]
FINAL = {"config.json", "splits.json", "history.jsonl", "model.pt", "last.pt", "metrics.json"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A project's root with tiles."
    return make_project(tmp_path_factory.mktemp("survival") / "project")


@pytest.fixture(scope="module")
def whole(project):
    "The folder of a run without interruption, made by the command itself."
    process = Started(project, command_line(write_config(project, run="whole")))
    assert process.end() == 0, process.said
    assert process.said.count("\n") < 60
    return project / "outputs/whole"


@pytest.fixture
def cut(project, whole, tmp_path):
    "A copy of the project in which the run `whole` lacks its end and can be resumed."
    root = tmp_path / "project"
    shutil.copytree(project, root, ignore=shutil.ignore_patterns("log-*", "outputs"))
    shutil.copytree(whole, root / "outputs/whole", ignore=shutil.ignore_patterns("metrics.json"))
    return root


def assert_one_line_error(capsys, status: int, *words: str) -> None:
    "The command ended with 2 and one line of error that holds all these words."
    out, err = capsys.readouterr()
    assert status == 2, out + err
    assert err.count("\n") == 1, err
    assert "Traceback" not in out + err
    assert not [word for word in words if word not in err], err


def command(root: Path, monkeypatch, *arguments: str, **parameters) -> int:
    "The command in this process; its exit status."
    monkeypatch.chdir(root)
    return main(["train", "--config", write_config(root, "this.json", **parameters), *arguments])


# a whole run, and its config


def test_a_run_is_trained_validated_and_leaves_its_files(whole):
    assert {p.name for p in whole.iterdir()} - {"figures", ".lock"} == FINAL
    metrics = json.loads((whole / "metrics.json").read_text())
    records = history(whole)
    assert len(records) == TINY["epochs"]
    assert (metrics["select"], metrics["chosen_on"]) == ("last", [])
    assert (metrics["selected_epoch"], last_step(whole)) == (TINY["epochs"], STEPS)
    assert [metrics[k] for k in ("mcc", "macro_mcc")] == [records[-1][k] for k in ("mcc", "macro_mcc")]
    assert metrics["parameters"]["lr"] == 1e-3
    assert run_state(whole) == "finished"


def test_yaml_and_the_config_of_another_run_are_configs_too(project, whole, monkeypatch):
    lines = [f"{key}: {json.dumps(value)}" for key, value in (TINY | {"run": "yaml"}).items()]
    (project / "run.yaml").write_text("\n".join(lines) + "\n")
    processes = [Process(project, "--config", "run.yaml")]
    again = json.loads((whole / "config.json").read_text()) | {"run": "again"}
    (project / "again.json").write_text(json.dumps(again))
    processes.append(Process(project, "--config", str(project / "again.json")))
    for process, run in zip(processes, ("yaml", "again"), strict=True):
        assert process.end() == 0, process.said
        assert same_weights(weights(project / "outputs" / run, "last.pt"), weights(whole, "last.pt"))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("missing.json", None, ["missing.json"]),
        ("half.json", '{"lr": ', ["half.json"]),
        ("list.json", "[1]", ["list.json"]),
        ("typo.json", '{"run": "typo", "mcc_wieght": 1}', ["typo.json", "did you mean 'mcc_weight'"]),
        ("typo.yaml", "run: typo\nepoch: 3\n", ["typo.yaml", "did you mean 'epochs'"]),
        ("text.json", '{"run": "typo", "lr": "fast"}', ["lr = 'fast' is not allowed"]),
        ("nothing.json", '{"run": "typo", "data_dir": "data/nothing"}', ["data/nothing"]),
        ("run.json", '{"run": "whole"}', ["already holds a run", "resume"]),
    ],
)
def test_an_error_that_the_user_can_fix_is_one_line(project, whole, monkeypatch, capsys, name, text, words):
    before = sorted(p.name for p in (project / "outputs").iterdir())
    if text is not None:
        (project / name).write_text(text)
    monkeypatch.chdir(project)
    assert_one_line_error(capsys, main(["train", "--config", name]), *words)
    assert sorted(p.name for p in (project / "outputs").iterdir()) == before


# interrupted


def test_a_run_interrupted_five_times_ends_like_one_that_was_not(project, whole):
    folder, config = project / "outputs/cut", write_config(project, "cut.json", run="cut")
    cuts = [(signal.SIGKILL, -9), (signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
    steps = [0]
    for number, status in [*cuts, (signal.SIGTERM, 0)]:
        process = Process(project, "--config", config, *["--resume"] * (len(steps) > 1))
        wait_for_saves(process, folder, 2)
        process.send(number)
        assert process.end() == status, process.said
        assert "Traceback" not in process.said
        if number != signal.SIGKILL:
            assert signal.Signals(number).name in process.said
            assert "resume" in process.said
            assert not list(folder.glob(".*.tmp"))
        steps.append(last_step(folder))
        assert steps[-2] < steps[-1] < STEPS
        assert run_state(folder) == "unfinished"
    assert any(step % PER_EPOCH for step in steps), "no cut was in the middle of an epoch"
    process = Process(project, "--config", config, "--resume")
    assert process.end() == 0, process.said
    for name in ("last.pt", "model.pt"):
        assert same_weights(weights(folder, name), weights(whole, name))
    assert history(folder) == history(whole)
    metrics = [json.loads((f / "metrics.json").read_text()) for f in (folder, whole)]
    assert metrics[0]["mcc"] == metrics[1]["mcc"]
    assert metrics[0]["tile_confusions"] == metrics[1]["tile_confusions"]


def check_files(folder: Path) -> None:
    "Every file under its final name is complete."
    for path in folder.glob("*.json"):
        json.loads(path.read_text())
    for path in folder.glob("*.pt"):
        torch.load(path, weights_only=True)
    if (folder / "history.jsonl").exists():
        assert all("epoch" in record for record in history(folder))


def test_sigkill_at_any_moment_leaves_a_checkpoint_that_loads(project):
    "Half of the signals arrive at any time, half while a checkpoint is being written."
    rng, half_written, step = np.random.default_rng(0), 0, 0
    folder, config = project / "outputs/killed", write_config(project, run="killed", epochs=200)
    for i in range(8):
        process = Process(project, "--config", config, *["--resume"] * (folder / "last.pt").exists())
        end = time.monotonic() + 120
        while not any(folder.glob(f".last.pt.*{process.pid}.tmp")):
            assert process.is_alive(), process.said
            assert time.monotonic() < end, process.said
            time.sleep(0.001)
        assert not [p for p in folder.glob(".*.tmp") if f".{process.pid}." not in p.name], "left behind"
        time.sleep(rng.uniform(0, 0.8 if i % 2 else 0.02))
        process.send(signal.SIGKILL)
        assert process.end() == -9
        half_written += any(folder.glob(".*.tmp"))
        check_files(folder)
        assert last_step(folder) >= step
        step = last_step(folder)
    assert half_written, "no kill met a checkpoint that was being written"
    assert step


def test_a_run_killed_before_anything_was_saved_starts_again(project):
    "With the same command, killed between the lock and the first checkpoint."
    folder, config = project / "outputs/early", write_config(project, "early.json", run="early", epochs=1)
    killed_before = 0
    for name in (".lock", "config.json", "splits.json"):
        process = Process(project, "--config", config)
        while not (folder / name).exists():
            assert process.is_alive(), process.said
            time.sleep(0.0005)
        process.send(signal.SIGKILL)
        assert process.end() == -9, process.said
        check_files(folder)
        killed_before += not (folder / "last.pt").exists()
        if name == "splits.json" or (folder / "last.pt").exists():
            shutil.rmtree(folder)
    assert killed_before
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))  # the last of these states, with certainty
    process = Process(project, "--config", config)
    assert process.end() == 0, process.said


def test_several_sigterms_are_one(project, whole):
    "torchrun and Slurm both send one; the step is still finished and saved."
    folder = project / "outputs/twice"
    process = Process(project, "--config", write_config(project, run="twice"))
    wait_for_saves(process, folder, 2)
    for _ in range(3):
        process.send(signal.SIGTERM)
        time.sleep(0.003)
    assert process.end() == 0, process.said
    step = last_step(folder)
    assert 0 < step < STEPS
    assert not list(folder.glob(".*.tmp"))


# the disk


def limit_5mb(project: Path) -> None:
    "Files that grow larger fail."
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))


def no_space(project: Path) -> None:
    "The disk is full when half of a checkpoint is written."
    save = torch.save

    def half(state, file, *args, **kwargs):
        save(state, file, *args, **kwargs)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    torch.save = half


def small_disk(project: Path) -> None:
    "A disk with space for the run, filled by another file once the run has begun."
    mount_disk(project / "outputs", 120)

    def fill():
        while not (project / "outputs/small/last.pt").exists():
            time.sleep(0.001)
        with open(project / "outputs/other", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(2**20)):
                pass

    threading.Thread(target=fill, daemon=True).start()


def read_only_disk(project: Path) -> None:
    mount_disk(project / "outputs", 1, read_only=True)


def one_line(text: str) -> str:
    "The last line, which is the message; the rest is progress."
    assert "Traceback" not in text, text
    return text.strip().splitlines()[-1]


@pytest.mark.parametrize(("full", "reason"), [(limit_5mb, "File too large"), (no_space, "No space left")])
def test_a_full_disk_is_reported_and_the_old_checkpoint_stays(cut, full, reason):
    folder = cut / "outputs/whole"
    state = torch.load(folder / "last.pt", weights_only=True)
    config = write_config(cut, run="whole", **{"epochs": TINY["epochs"]})
    shortened(folder, state)
    before = (folder / "last.pt").read_bytes()
    process = Process(cut, "--config", config, "--resume", before=full)
    assert process.end() == 2, process.said
    line = one_line(process.said)
    assert not [w for w in ("last.pt", reason, "MB free", "needs") if w not in line], line
    assert (folder / "last.pt").read_bytes() == before
    assert not list(folder.glob(".*.tmp"))
    process = Process(cut, "--config", config, "--resume")  # once there is space
    assert process.end() == 0, process.said


def shortened(folder: Path, state: dict) -> None:
    "Make a checkpoint of a finished run look as if its last epoch were missing."
    state.pop("finished")
    state["progress"]["epoch"] -= 1
    state["progress"]["step"] -= PER_EPOCH
    state["progress"]["history"] = state["progress"]["history"][:-1]
    torch.save(state, folder / "last.pt")


def leave_listing(project: Path) -> None:
    "Write the names of the files on the small disk to a file outside of it."
    folder = project / "outputs/small"
    check_files(folder)
    names = [p.name for p in folder.iterdir()] if folder.exists() else []
    (project / "listing.json").write_text(json.dumps(names))


def test_a_disk_that_is_really_full_or_read_only(cut, tmp_path):
    if not can_mount(tmp_path):
        pytest.skip("this user may not mount a disk")
    config = write_config(cut, run="small")
    process = Process(cut, "--config", config, before=small_disk, after=leave_listing)
    assert process.end() == 2, process.said
    assert "last.pt cannot be written (No space left on device)" in one_line(process.said)
    left = json.loads((cut / "listing.json").read_text())
    assert "last.pt" in left
    assert not [name for name in left if name.endswith(".tmp")]
    process = Process(cut, "--config", config, before=read_only_disk)
    assert process.end() == 2, process.said
    assert "Read-only file system" in one_line(process.said)


def test_outputs_that_cannot_be_written_to(cut, monkeypatch, capsys):
    shutil.rmtree(cut / "outputs")
    (cut / "outputs").write_text("a file")
    assert_one_line_error(capsys, command(cut, monkeypatch, run="below"), "outputs")
    (cut / "outputs").unlink()
    (cut / "outputs").symlink_to("/proc/1")
    assert_one_line_error(capsys, command(cut, monkeypatch, run="below"), "below")


# damaged files


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    "The directory at the end of the file is what is read first."
    return data[:-4000] + bytes(255 - b for b in data[-4000:])


def empty(data: bytes) -> bytes:
    return b""


def text(data: bytes) -> bytes:
    return b"no checkpoint"


@pytest.mark.parametrize("damage", [truncated, flipped, empty, text])
def test_a_damaged_checkpoint_is_reported_and_not_changed(cut, monkeypatch, capsys, damage):
    path = cut / "outputs/whole/last.pt"
    path.write_bytes(damage(path.read_bytes()))
    before = {p.name: p.read_bytes() for p in path.parent.glob("[!.]*")}
    assert_one_line_error(capsys, command(cut, monkeypatch, "--resume", run="whole"), "last.pt", "checkpoint")
    assert {p.name: p.read_bytes() for p in path.parent.glob("[!.]*")} == before


class Trap:
    "Code that an unsafe reader would run."

    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_a_checkpoint_with_code_in_it_is_not_run(cut, monkeypatch, capsys):
    torch.save({"weights": Trap()}, cut / "outputs/whole/last.pt")
    assert_one_line_error(capsys, command(cut, monkeypatch, "--resume", run="whole"), "last.pt")
    assert not (cut / "trapped").exists()


def test_model_pt_cannot_be_resumed(cut, monkeypatch, capsys):
    "It has the weights, but no state to resume from."
    folder = cut / "outputs/whole"
    shutil.copy(folder / "model.pt", folder / "last.pt")
    assert_one_line_error(capsys, command(cut, monkeypatch, "--resume", run="whole"), "last.pt")


def test_last_pt_of_an_older_version_cannot_be_resumed(cut, monkeypatch, capsys):
    path = cut / "outputs/whole/last.pt"
    state = torch.load(path, weights_only=True)
    state["arithmetic"] = state.pop("precision")  # its name before
    torch.save(state, path)
    status = command(cut, monkeypatch, "--resume", run="whole")
    assert_one_line_error(capsys, status, "last.pt has no precision: an older version", "init_from")


def test_the_checkpoint_of_another_config_is_reported_and_not_changed(cut, monkeypatch, capsys):
    before = (cut / "outputs/whole/last.pt").read_bytes()
    status = command(cut, monkeypatch, "--resume", run="whole", lr=0.5, save_minutes=3.0)
    assert_one_line_error(capsys, status, "outputs/whole", "lr (saved 0.001, requested 0.5)")
    assert (cut / "outputs/whole/last.pt").read_bytes() == before


def test_a_run_is_not_resumed_with_other_tiles(cut, monkeypatch, capsys):
    "The same folder name with a tile more: the split, and so the run, is another."
    for band in (cut / "data/demo").glob("*/"):
        for path in sorted(band.iterdir())[:1]:
            path.unlink()
    assert command(cut, monkeypatch, "--resume", run="whole") == 2
    assert "Traceback" not in capsys.readouterr().err


# one run, one folder


def test_two_runs_that_start_at_once_do_not_use_one_folder(project):
    config = write_config(project, run="shared", epochs=2)
    both = [Process(project, "--config", config) for _ in range(2)]
    ends = [process.end() for process in both]
    assert sorted(ends) == [0, 2], [process.said for process in both]
    message = one_line(both[ends.index(2)].said)
    assert "in use" in message or "already holds a run" in message
    assert [r["epoch"] for r in history(project / "outputs/shared")] == [1, 2]
    check_files(project / "outputs/shared")


def test_a_locked_folder_is_an_error_except_for_child_processes_of_the_owner(project, monkeypatch, capsys):
    "A job of a sweep is such a child."
    folder = project / "outputs/swept"
    with run_lock(folder) as lock:
        status = command(project, monkeypatch, run="swept")
        assert_one_line_error(capsys, status, "swept is in use", f"process {os.getpid()}")
        assert [p.name for p in folder.iterdir()] == [".lock"]
        monkeypatch.setenv(_VARIABLE, lock.environment[_VARIABLE])
        assert command(project, monkeypatch, run="swept", epochs=1) == 0
        assert run_state(folder) == "finished"


def test_the_state_of_a_run_that_trains_is_running(project):
    folder = project / "outputs/seen"
    process = Process(project, "--config", write_config(project, run="seen"))
    wait_for_saves(process, folder, 1)
    assert run_state(folder) == "running"
    process.send(signal.SIGKILL)
    process.end()
    assert run_state(folder) == "unfinished"


# two processes


def held_forked_ranks(project: Path) -> None:
    "Ranks are forked, and wait for a signal after three steps."
    hold_steps(project, 3)
    start = launch.start_processes
    launch.start_processes = lambda *args, **kwargs: start(*args, **kwargs | {"start_method": "fork"})


def in_background(project: Path) -> None:
    "The same as a shell script starts it with `&`: SIGINT is ignored."
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    held_forked_ranks(project)


def command_line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "glacier_nb", "train", "--config", *arguments]


@pytest.mark.slow
def test_two_ranks_stop_together_end_with_their_parent_and_resume(project):
    "`kill` and Kaggle's time limit reach the launching process alone; its ranks end with it."
    small = {"lr": 3e-6, "save_minutes": 1e-9}  # differences of rounding grow with the learning rate
    alone = Process(project, "--config", write_config(project, "alone.json", run="alone", **small))
    folder, step = project / "outputs/ranks", 0
    config = write_config(project, "ranks.json", run="ranks", devices=2, **small)
    starts = (signal.SIGTERM, 0, held_forked_ranks), (signal.SIGKILL, -9, in_background)
    for number, status, before in starts:
        process = Process(project, "--config", config, "--resume", before=before)
        wait_for_step(process, folder, step + 3)  # where the ranks wait for a signal
        ranks = psutil.Process(process.pid).children(recursive=True)
        assert len(ranks) == 2
        process.send(number)
        assert process.end(60) == status, process.said
        _, left = psutil.wait_procs(ranks, timeout=60)
        assert not [rank.kill() for rank in left]
        check_files(folder)
        held, step = step + 3, last_step(folder)
        assert step in (held, held + 1)  # the step in progress is finished, or lost with the parent
        assert run_state(folder) == "unfinished"
    assert "Traceback" not in process.said
    config = write_config(
        project, "rest.json", run="ranks", devices="cpu", **small
    )  # the rest by one process
    rest = Process(project, "--config", config, "--resume")
    assert (rest.end(), alone.end()) == (0, 0), rest.said + alone.said
    losses = [[r["train_loss"] for r in history(f)] for f in (folder, project / "outputs/alone")]
    np.testing.assert_allclose(*losses, atol=1e-4, rtol=0)
