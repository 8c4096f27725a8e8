"""Jobs and sweeps with a notebook that stands in for training."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from joblib import cpu_count
from nbformat.v4 import new_code_cell, new_notebook

from glacier_nb.config.fields import ConfigError
from glacier_nb.config.files import read_parameters
from glacier_nb.experiments import jobs
from glacier_nb.experiments.command import main
from glacier_nb.experiments.jobs import Job, _end_processes, run_job
from glacier_nb.experiments.sweep import (
    _gpus,
    _plan,
    _rename_references,
    _shares,
    _threads_per_job,
    _with_bar,
    sweep,
)
from glacier_nb.files.locks import run_lock
from glacier_nb.files.paths import write_text
from glacier_nb.runs.folder import run_state

ROOT = Path(__file__).parents[2]
# the learning rate chooses what the stand-in does
FAKE = """
import json, os, pathlib, signal, time
folder = pathlib.Path("outputs", run)
if lr == 1.0:
    raise FloatingPointError("the loss is\\nnot finite")
if lr == 2.0:
    os.kill(os.getpid(), signal.SIGKILL)
if lr == 3.0 and not resume:
    (folder / "config.json").write_text(json.dumps({"lr": lr}))
    (folder / "last.pt").write_text("")
    (folder / "pid").write_text(f"{os.getpid()} {os.getppid()}")
    time.sleep(600)
if lr != 4.0:
    seen = {"resume": resume, "threads": os.environ.get("OMP_NUM_THREADS")}
    seen["config"] = (folder / "config.json").exists()
    metrics = {"mcc": 0.25, "parameters": {"lr": lr, "init_from": init_from}, "seen": seen}
    (folder / "metrics.json").write_text(json.dumps(metrics))
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A project's root with the stand-in; the working directory."
    first = new_code_cell(
        "run, resume, lr, init_from = '', False, 0.001, ''", metadata={"tags": ["parameters"]}
    )
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    (tmp_path / "nbs").mkdir()
    write_text(tmp_path / "settings.ini", "")
    path = tmp_path / "nbs/train.ipynb"
    nbformat.write(new_notebook(cells=[first, new_code_cell(FAKE)], metadata=kernel), path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(folder: Path, **files: dict) -> Path:
    "A run folder with JSON files; a file without content is empty."
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        name = name.replace("_", ".")
        write_text(folder / name, "" if content is None else json.dumps(content))
    return folder


def gone(pids, seconds=10) -> bool:
    "Have all these processes ended?"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(psutil.pid_exists(p) and psutil.Process(p).status() != "zombie" for p in pids):
            return True
        time.sleep(0.1)
    return False


def pids(*folders: Path) -> list[int]:
    "The processes of running stand-ins, as soon as they have written their ids."
    end = time.monotonic() + 60
    while not all((f / "pid").exists() and (f / "pid").read_text() for f in folders):
        assert time.monotonic() < end, "the stand-in has not started"
        time.sleep(0.1)
    return [int(p) for f in folders for p in (f / "pid").read_text().split()]


def test_a_sweep_survives_every_way_to_fail(project):
    outputs = project / "outputs"
    put(outputs / "cut", config_json={"lr": 0.5}, last_pt=None, failed_json={"error": "earlier"})
    put(outputs / "empty", config_json={"lr": 0.125}, splits_json={})
    put(outputs / "other", metrics_json={"mcc": 0.75, "parameters": {"lr": 0.25}})
    before = (outputs / "other/metrics.json").read_text()
    rates = {"raises": 1.0, "dies": 2.0, "silent": 4.0, "cut": 0.5, "empty": 0.125, "other": 0.5}
    files = [{"run": run, "lr": lr} for run, lr in rates.items()]
    files.insert(0, {"run": "after", "init_from": "outputs/raises/model.pt"})
    table = sweep(files, n_jobs=2, threads=1, progress=False)
    assert list(table.index) == ["after", *rates]
    assert table["status"].to_dict() == dict.fromkeys(["after", *rates], "failed") | {
        "cut": "resumed",
        "empty": "done",
    }
    errors = table["error"]
    assert errors["raises"] == "FloatingPointError: the loss is\nnot finite"
    assert "died" in errors["dies"].lower()
    assert "wrote no metrics.json" in errors["silent"]
    assert "lr (saved 0.25, requested 0.5)" in errors["other"]
    assert (outputs / "other/metrics.json").read_text() == before
    assert errors["after"] == "needs run raises, which failed"
    assert not (outputs / "after").exists()
    for run in ("raises", "dies", "silent"):
        record = json.loads((outputs / run / "failed.json").read_text())
        assert record["error"] == errors[run]
        assert record["parameters"]["lr"] == rates[run]
        assert record["time"]
        assert run_state(outputs / run) == "failed"
    assert not (outputs / "cut/failed.json").exists()
    assert not (outputs / "other/failed.json").exists()
    seen = {run: json.loads((outputs / run / "metrics.json").read_text())["seen"] for run in ("cut", "empty")}
    assert seen["cut"] == {"resume": True, "threads": "1", "config": True}
    assert seen["empty"] == {"resume": False, "threads": "1", "config": False}
    assert table.loc["cut", "MCC"] == 0.25
    assert table["MCC"].isna().sum() == 5


@pytest.mark.parametrize(
    ("written", "started", "starts"), [(True, None, 3), (True, "2026-11-28T01:00:00", 1), (False, None, 1)]
)
def test_a_kernel_that_ends_before_the_first_cell_is_started_again(
    tmp_path, monkeypatch, written, started, starts
):
    seen = []

    def process(command, log, cwd, **how):
        seen.append(command)
        log.write_text("Kernel died")
        cells = [new_code_cell("1", metadata={"papermill": {"start_time": started}})] * 2
        if written:
            nbformat.write(new_notebook(cells=cells), log.with_suffix(".ipynb"))
        return 1

    monkeypatch.setattr(jobs, "_run_process", process)
    with pytest.raises(jobs.JobError, match="Kernel died"):
        jobs._run_notebook("any.ipynb", tmp_path / "out.ipynb", {}, tmp_path)
    assert len(seen) == starts


@pytest.fixture
def restored_signals():
    "`main` in this process sets handlers; set them back."
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def with_root() -> str:
    "PYTHONPATH that finds the package first."
    return os.pathsep.join((str(ROOT), os.environ["PYTHONPATH"]))


def command(project: Path, *arguments: str) -> subprocess.Popen:
    "The command line of a sweep, in a process of its own."
    line = [sys.executable, "-m", "glacier_nb", "sweep", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, cwd=project, env=os.environ | {"PYTHONPATH": with_root()}, **pipes)


@pytest.mark.usefixtures("restored_signals")
def test_a_stopped_command_leaves_no_process_and_continues_later(project, capsys):
    for run, lr in (("one", "3.0"), ("two", "3.0"), ("three", "0.5")):
        write_text(project / f"{run}.yaml", f"lr: {lr}\n")
    line = ("one.yaml", "two.yaml", "three.yaml", "--n-jobs", "2", "--prefix", "x-")
    process = command(project, *line)
    folders = [project / "outputs/x-one", project / "outputs/x-two"]
    family = pids(*folders)
    assert [run_state(f) for f in folders] == ["running", "running"]
    assert "is in use" in run_job(Job("x-one", {"lr": 3.0}), project)["error"]
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "run the same command again to continue" in err
    assert len(family) == 4
    assert gone(family)
    assert [run_state(f) for f in folders] == ["unfinished", "unfinished"]
    assert not (project / "outputs/x-three").exists()
    assert main(["sweep", *line]) == 0
    out = capsys.readouterr().out
    status = {words[0]: words[1] for words in map(str.split, out.splitlines()) if words[0].startswith("x-")}
    assert status == {"x-one": "resumed", "x-two": "resumed", "x-three": "done"}


@pytest.mark.usefixtures("restored_signals")
def test_exit_status_and_output_of_the_command(project, capsys):
    for run, lr in (("good", "0.5"), ("bad", "1.0"), ("typo", "0.5\nepoch: 3")):
        write_text(project / f"{run}.yaml", f"lr: {lr}\n")
    put(project / "outputs/good-2", metrics_json={"mcc": 0.5, "parameters": {"lr": 0.5, "epochs": 3}})
    assert main(["sweep", "good.yaml", "bad.yaml", "--suffix", "-2", "-p", "epochs", "3"]) == 1
    out = capsys.readouterr().out
    assert "good-2  skipped 0.500" in out
    assert "bad-2 failed: FloatingPointError" in out
    assert main(["sweep", "good.yaml", "typo.yaml"]) == 2
    err = capsys.readouterr().err
    assert "typo.yaml: unknown parameter 'epoch': did you mean 'epochs'?" in err
    assert not (project / "outputs/good").exists()
    process = command(project, "good.yaml", "typo.yaml")
    assert process.wait(120) == 2


@pytest.mark.usefixtures("interruptible")
def test_the_same_on_a_dask_cluster(project, monkeypatch):
    distributed = pytest.importorskip("distributed")
    cluster = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**cluster) as local, distributed.Client(local) as client:
        after = {"run": "after", "init_from": "outputs/bad/model.pt"}
        files = [{"run": "bad", "lr": 1.0}, {"run": "good", "lr": 0.5}, after]
        table = sweep(files, client=client, progress=False)
        assert table["status"].to_dict() == {"bad": "failed", "good": "done", "after": "failed"}
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert _threads_per_job(9, client) is None
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert _threads_per_job(9, client) == max(1, cpu_count() // 2)
        assert _threads_per_job(cpu_count(), None) == 1
        family = []

        def interrupt():
            family.extend(pids(project / "outputs/long"))
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            sweep([{"run": "long", "lr": 3.0}], client=client, progress=False)
    assert len(family) == 2
    assert gone(family)
    assert run_state("outputs/long") == "unfinished"


def test_end_processes_kills_what_ignores_sigterm():
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    code = f"{deaf}; print(1, flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    _end_processes(process.pid, patience=0.2)
    assert gone([process.pid], seconds=1)
    process.wait(timeout=5)
    _end_processes(process.pid)


def test_a_lock_is_free_again_when_its_holder_is_gone(tmp_path):
    taken = f"from glacier_nb.files.locks import run_lock; run_lock({str(tmp_path)!r}).__enter__()"
    code = f"import os; {taken}; os._exit(7)"
    environment = os.environ | {"PYTHONPATH": with_root()}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 7
    with run_lock(tmp_path):
        assert run_state(tmp_path) == "running"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("encodr: resnet18", "did you mean 'encoder'"),
        ("epochs: 3.5", "epochs = 3.5 is not allowed"),
        ("epochs: yes", "epochs = 'yes' is not allowed"),
        ("lr: 1e-3 fast", "lr = '1e-3 fast' is not allowed"),
        ("epochs: 3\nlr: 0.1\nepochs: 4", "epochs is given twice"),
        ("run: {a: 1}", "run is a list or a mapping"),
        ("epochs: 2020-01-01", "epochs = '2020-01-01' is not allowed"),
        ("? [1, 2]\n: 3", "cannot be read"),
        ("3: 4", "unknown parameter '3'"),
        ("just words", "holds str"),
        ("", "holds NoneType"),
        ("lr: !!python/object:os.system x", "cannot be read"),
        ("crop_size: 33", "multiple of 32"),
    ],
)
def test_a_parameter_file_is_checked_and_named(tmp_path, text, words):
    path = write_text(tmp_path / "some.yaml", text)
    with pytest.raises(ConfigError, match=r"some\.yaml") as error:
        read_parameters(path)
    assert words in str(error.value)


def test_a_missing_or_binary_parameter_file_is_named(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name, found in (("missing", "does not exist"), ("binary", "cannot be read")):
        with pytest.raises(ConfigError, match=rf"{name}\.yaml {found}"):
            read_parameters(tmp_path / f"{name}.yaml")


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        ([], {}, "at least one"),
        ([{"run": "a"}, {"run": "a", "lr": 0.1}], {}, "run 'a' is named in"),
        ([{"lr": 0.1}], {}, "expected `run`"),
        ([{"run": "a", "resume": True}], {}, "no `resume`"),
        ([{"run": "a"}], {"prefix": "../"}, "plain folder name"),
        ([{"run": "a"}], {"overrides": {"resume": True}}, "resume cannot be set for all"),
        ([{"run": "a"}], {"overrides": {"lr": "fast"}}, "lr = 'fast' is not allowed"),
        ([{"run": "a", "init_from": "outputs/a/model.pt"}], {}, "circular references between runs: a -> a"),
        (
            [{"run": "a"}],
            {"overrides": {"init_from": "outputs/a/last.pt"}},
            "circular references between runs",
        ),
    ],
)
def test_a_wrong_sweep_does_not_start(project, files, options, words):
    with pytest.raises(ConfigError, match=r".") as error:
        sweep(files, progress=False, **options)
    assert words in str(error.value)
    assert not (project / "outputs").exists()


def test_references_get_the_new_names(project):
    files = [
        {"run": "c", "init_from": "outputs/b/model.pt"},
        {"run": "b", "init_from": str(project / "outputs/a/last.pt")},
        {"run": "a", "init_from": "elsewhere/b/model.pt"},
    ]
    c, b, a = _plan(files, prefix="p-", suffix="-s")
    assert (c.needs, b.needs, a.needs) == (("p-b-s",), ("p-a-s",), ())
    assert c.parameters["init_from"] == "outputs/p-b-s/model.pt"
    assert b.parameters["init_from"] == str(project / "outputs/p-a-s/last.pt")
    assert a.parameters["init_from"] == "elsewhere/b/model.pt"
    names = {"a": "x-a", "b": "x-b"}
    found = _rename_references("a, outputs/b/model.pt ,old,", names, project)
    assert found == ("x-a,outputs/x-b/model.pt,old,", ["x-a", "x-b"])


@pytest.mark.parametrize("prefix", ["", "x-"])
@pytest.mark.parametrize(
    "form",
    [
        "{b}",
        "outputs/{b}",
        "{b}/model.pt",
        "{b}/last.pt",
        "outputs/{b}/model.pt",
        "{root}/outputs/{b}",
        "{root}/outputs/{b}/model.pt",
    ],
)
def test_every_way_to_name_a_run_is_a_reference(project, form, prefix):
    text, new = (form.format(b=b, root=project) for b in ("b", f"{prefix}b"))
    job = _plan([{"run": "a", "ensemble": f"old, {text}"}, {"run": "b"}], prefix=prefix)[0]
    assert (job.parameters["ensemble"], job.needs) == (f"old,{new}", (f"{prefix}b",))
    job = _plan([{"run": "a", "init_from": text}, {"run": "b"}], prefix=prefix)[0]
    path = "outputs/" in form  # training looks for other text below the root
    assert job.parameters["init_from"] == (new if path else text)
    assert job.needs == ((f"{prefix}b",) if path else ())


@pytest.mark.parametrize(
    "text", ["b2", "b/c/model.pt", "outputs/b/c/model.pt", "/elsewhere/outputs/b/model.pt", ""]
)
def test_other_text_is_left_alone(project, text):
    for key in ("ensemble", "init_from"):
        job = _plan([{"run": "a", key: text}, {"run": "b"}], prefix="x-")[0]
        assert (job.parameters[key], job.needs) == (text, ())


def test_runs_at_the_same_time_share_the_gpus(project, monkeypatch):
    seen = {}

    def command(folder, parameters, cwd, gpus=None, **how):
        seen[parameters["run"]] = gpus
        write_text(folder / "metrics.json", json.dumps({"mcc": 0.5, "parameters": {}}))

    monkeypatch.setattr("glacier_nb.experiments.jobs._run_command", command)
    monkeypatch.setattr("glacier_nb.experiments.jobs._train_notebook", lambda root: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, 3,5")
    for n_jobs in (1, 2):
        sweep([{"run": f"{n_jobs}a"}, {"run": f"{n_jobs}b", "devices": 2}], n_jobs=n_jobs, progress=False)
    assert seen == {"1a": None, "1b": None, "2a": "0,5", "2b": None}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert _shares(2, _gpus()) is None
    shares = _shares(3, ["a", "b"])
    assert [shares.get() for _ in range(3)] == ["a", "b", "a"], "more runs than GPUs"


def test_the_bar_counts_epochs_as_parts_of_runs(project, monkeypatch):
    class Bar:
        def __init__(self, **options):
            shown.append(options)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def set_postfix_str(self, text, refresh):
            shown.append(text)

        def refresh(self):
            shown.append(self.n)

    shown, jobs = [], _plan([{"run": name, "epochs": 4} for name in "abc"])
    monkeypatch.setattr("glacier_nb.experiments.sweep.progress_bar", Bar)
    put(project / "outputs/a", metrics_json={})
    (put(project / "outputs/b") / "history.jsonl").write_text("{}\n")

    def rows():
        yield jobs[0].row("skipped", mcc=0.5)
        (project / "outputs/b/history.jsonl").write_text("{}\n{}\n{}\n")
        yield None
        yield jobs[1].row("resumed", mcc=0.25)
        yield jobs[2].row("failed")

    assert len(list(_with_bar(rows(), jobs, project))) == 4
    start = {"total": 3, "initial": 1.25, "unit": "run", "smoothing": 0}
    assert shown == [start, "last: a MCC 0.500", 1.25, 1.75, "last: b MCC 0.250", 2.0, "last: c failed", 3.0]


def test_a_scheduler_without_workers_is_named(monkeypatch):
    class Client:
        def nthreads(self):
            return {}

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with pytest.raises(ConfigError, match="no worker is connected"):
        _threads_per_job(1, Client())


def test_a_parameter_that_is_no_longer_known_is_a_difference():
    from glacier_nb.config.training import TrainConfig

    assert TrainConfig(run="a", workers=3).differences({"run": "b", "resume": True}) == ""
    assert "gone (saved 1, requested None)" in TrainConfig().differences({"gone": 1})
