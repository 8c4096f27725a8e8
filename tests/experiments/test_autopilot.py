"""The autopilot with made-up diagnoses and runs: it ends, continues, and repeats nothing."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from glacier_nb.config.fields import ConfigError
from glacier_nb.config.training import TrainConfig
from glacier_nb.experiments.autopilot import _Budget, _steps_table, autopilot, read_steps
from glacier_nb.experiments.jobs import FailureCause, JobStopped
from glacier_nb.files.locks import LockError, run_lock
from glacier_nb.report.findings import Finding
from glacier_nb.runs.folder import RunError


def finding(cause, severity="warning", **change):
    return Finding(cause, severity, f"Measured {cause}.", f"Fix {cause}.", change=change)


class World:
    "A project whose runs score as their epochs say, and whose diagnosis sees starvation and runs that rise."

    def __init__(self, root, monkeypatch):
        self.root, self.diagnosed, self.ran, self.fails, self.sentences = root, [], [], {}, []
        self.findings = {}  # by cause, over those below
        self.cause = FailureCause.OTHER  # of the runs in `fails`
        self.put(root / "start.yaml", {"run": "start", "samples_per_epoch": 16, "epochs": 2})
        monkeypatch.chdir(root)

    def put(self, path, values):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values))
        return path

    def diagnose(self, cfg, run=None, live=True):
        self.diagnosed.append((run.name if run else None, live))
        found = list(self.findings.values())
        if cfg.samples_per_epoch < 256:
            found.append(finding("starved", "fatal", samples_per_epoch=256))
        elif run:
            found.append(finding("still-rising"))

        def save(folder):
            (Path(folder) / "diagnosis.json").write_text("{}")

        return SimpleNamespace(findings=found, save=save)

    def finish(self, name, cfg, **metrics):
        folder = self.root / "outputs" / name
        folder.mkdir(parents=True, exist_ok=True)
        values = {"mcc": 1 - 2 / cfg.epochs, "baseline_mcc": 0.5, "parameters": asdict(cfg)} | metrics
        (folder / "metrics.json").write_text(json.dumps(values))
        return folder

    def run(self, job, root, stop):
        self.ran.append(job.run)
        assert Path(job.source).is_file()
        error = self.fails.pop(len(self.ran), None)
        if isinstance(error, BaseException):
            raise error
        if error:
            (self.root / "outputs" / job.run).mkdir(parents=True, exist_ok=True)
            failed = {"error": error, "cause": self.cause, "parameters": job.parameters}
            (self.root / "outputs" / job.run / "failed.json").write_text(json.dumps(failed))
        else:
            self.finish(job.run, TrainConfig(**job.parameters))
        return {
            "run": job.run,
            "status": "failed" if error else "done",
            "MCC": 0,
            "seconds": 0,
            "error": error or "",
        }

    def fly(self, start="start.yaml", **how):
        how = {"root": self.root, "progress": False, "say": self.sentences.append, "folder": "a"} | how
        return autopilot(start, diagnose=self.diagnose, run=self.run, **how)

    @property
    def steps(self):
        return read_steps(self.root / "outputs/a")


@pytest.fixture
def world(tmp_path, monkeypatch):
    return World(tmp_path, monkeypatch)


def test_it_fixes_the_start_without_running_it_and_stops_at_the_target(world):
    table = world.fly(target=0.85)
    assert list(table.index) == ["start", "a-01-fix", "a-02-longer"]
    assert list(table["status"]) == ["not run", "done", "done"]
    assert table["MCC"].tolist()[1:] == [0.75, 0.875]
    assert table["best"].tolist()[1:] == [0.75, 0.875]
    assert table["based on"].tolist() == ["", "start", "a-01-fix"]
    why, chosen = table.attrs["why"].split(", the highest of ")
    assert why == "a-02-longer reached MCC 0.875 (target 0.85)"
    assert chosen == "2 runs on its tiles: expect less on others"
    assert world.diagnosed == [(None, True), ("a-01-fix", False)], "live checks only before the first run"
    assert world.ran == ["a-01-fix", "a-02-longer"]
    assert [step["event"] for step in world.steps] == [
        "start", "diagnosed", "proposed", "ended", "diagnosed", "proposed", "ended",
    ]  # fmt: skip
    saved = yaml.safe_load((world.root / "outputs/a/a-02-longer.yaml").read_text())
    assert (saved["run"], saved["epochs"]) == ("a-02-longer", 16)
    assert (world.root / "outputs/a-01-fix/diagnosis.json").is_file()
    assert any("fatal: starved" in line for line in world.sentences)


def test_the_budget_counts_over_all_calls_and_nothing_is_done_twice(world):
    first = world.fly(target=1, max_runs=1)
    assert first.attrs["why"].startswith("max_runs = 1 is used up; the next proposal is\na-02-longer")
    again = world.fly(target=1, max_runs=1)
    assert again.attrs["why"] == first.attrs["why"]
    assert world.ran == ["a-01-fix"]
    assert len(world.diagnosed) == 2
    third = world.fly(target=1, max_runs=3)
    assert world.ran == ["a-01-fix", "a-02-longer", "a-03-longer"]
    configs = [tuple(sorted(s["parameters"].items())) for s in world.steps if s["event"] == "proposed"]
    assert len(set(configs)) == 3
    assert list(third.index)[1:] == world.ran


@pytest.mark.parametrize("how", [KeyboardInterrupt(), JobStopped("stopped")])
def test_an_interrupted_run_is_continued(world, how):
    world.fails[1] = how
    if isinstance(how, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            world.fly(target=0.7)
    else:
        assert "call again with a larger budget" in world.fly(target=0.7).attrs["why"]
    assert [s["event"] for s in world.steps] == ["start", "diagnosed", "proposed", "cut"]
    table = world.fly(target=0.7)
    assert world.ran == ["a-01-fix", "a-01-fix"]
    assert len(world.diagnosed) == 1, "the start's diagnosis is not repeated"
    assert "reached" in table.attrs["why"]


def test_the_end_of_the_minutes_interrupts_the_run(world, monkeypatch):
    clock = iter(range(0, 100_000, 40))  # every reading of the clock takes 40 s
    monkeypatch.setattr("glacier_nb.experiments.autopilot.time.monotonic", lambda: next(clock))

    def run(job, root, stop):
        if stop():
            raise JobStopped("stopped")
        return World.run(world, job, root, stop)

    world.run = run
    table = world.fly(target=1, minutes=1.0)
    assert "the minutes are used up; a-01-fix is not finished" in table.attrs["why"]
    assert world.ran == []
    assert "minutes = 1 is used up; a-01-fix is not finished" in world.fly(target=1, minutes=1).attrs["why"]
    table = world.fly(target=1, minutes=5.0)
    assert world.ran == ["a-01-fix"]
    assert table.loc["a-01-fix", "minutes"] == pytest.approx(4 / 3 + 4 / 3, rel=0.6)


def test_a_failed_run_is_followed_by_a_proposal_or_by_advice(world):
    world.fails[1], world.cause = "FloatingPointError: the loss is not finite", FailureCause.NOT_FINITE
    table = world.fly(target=0.7)
    assert list(table["status"]) == ["not run", "failed", "done"]
    assert table.loc["a-01-fix", "error"].startswith("FloatingPointError")
    assert table.loc["a-02-retry", "based on"] == "a-01-fix"
    world.fails[3], world.cause = "KeyError: 'x'", FailureCause.OTHER
    table = world.fly(target=0.7, folder="b")
    assert "a-01" not in table.index[1]
    assert "with an error that no rule covers" in table.attrs["why"]
    assert "KeyError: 'x'" in table.attrs["why"]


def test_a_finding_that_no_parameter_fixes_ends_it_before_a_run(world):
    world.findings["x"] = finding("label-turned", "fatal")
    table = world.fly()
    assert world.ran == []
    assert "Fix label-turned" in table.attrs["why"]
    world.findings.clear()
    assert "Fix label-turned" in world.fly().attrs["why"], "the findings are stored"


def test_it_starts_from_a_finished_run(world):
    folder = world.finish("old", TrainConfig(run="old"))
    table = world.fly("outputs/old", target=0.8)
    assert list(table.index) == ["old", "a-01-longer"]
    assert table["MCC"].tolist() == [0.75, 0.875]
    assert world.diagnosed == [("old", False)]
    assert not (world.root / "outputs/a/diagnosis.json").exists()
    assert (folder / "diagnosis.json").is_file()
    elsewhere = world.root / "archive/old"
    shutil.copytree(folder, elsewhere)
    shutil.rmtree(folder)
    table = world.fly("archive/old", target=0.8, folder="b")
    assert list(table.index) == ["../archive/old", "b-01-longer"]
    assert world.fly(elsewhere, target=0.7, folder="c").attrs["why"].startswith("../archive/old reached")


def test_a_file_whose_run_is_finished_counts_as_that_run(world):
    world.put(world.root / "old.yaml", {"run": "old", "lr": 2e-3})
    world.finish("old", TrainConfig(lr=2e-3))
    assert world.fly("old.yaml", target=0.7).attrs["why"].startswith("old reached")
    world.put(world.root / "old.yaml", {"run": "old", "lr": 3e-3})
    assert world.fly("old.yaml", target=0.7, folder="b").loc["old", "status"] == "not run"
    assert world.ran == ["b-01-first"]


def test_invalid_starts_folders_and_budgets(world):
    with pytest.raises(ConfigError, match="does not exist: expected a parameter file or a run folder"):
        world.fly("nothing.yaml")
    (world.root / "outputs/empty").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds no run: expected the folder of a finished run"):
        world.fly("outputs/empty")
    with pytest.raises(ConfigError, match="expected a plain folder name"):
        world.fly(folder="../b")
    for bad in ({"target": 1.5}, {"max_runs": 0}, {"minutes": 0.0}):
        with pytest.raises(ConfigError, match="is not allowed"):
            _Budget(**bad)
    world.fly(target=0.7)
    world.put(world.root / "other.yaml", {"lr": 0.5})
    with pytest.raises(RunError, match=r"has another start: .*lr \(saved 0.001, requested 0.5\)"):
        world.fly("other.yaml")
    with run_lock(world.root / "outputs/a"), pytest.raises(LockError, match="is in use"):
        world.fly(target=0.7)
    path = world.root / "outputs/a/steps.jsonl"
    path.write_text(path.read_text() + '{"event": "en')
    with pytest.raises(RunError, match=r"steps.jsonl, line \d+: no step"):
        world.fly(target=0.7)


def test_a_run_whose_folder_is_gone_still_counts(world):
    world.fly(target=1, max_runs=2)
    before = _steps_table(world.steps)
    shutil.rmtree(world.root / "outputs/a-01-fix")
    world.fly(target=1, max_runs=3)
    assert world.ran == ["a-01-fix", "a-02-longer", "a-03-longer"]
    assert _steps_table(world.steps).loc["a-01-fix", "MCC"] == before.loc["a-01-fix", "MCC"]


def test_the_bar_shows_run_score_best_and_time(world, monkeypatch):
    shown = []

    class Bar:
        n = 0

        def __init__(self, total, unit):
            assert total == 4

        def set_postfix_str(self, text, refresh):
            shown.append(text)

        def refresh(self):
            pass

        close = refresh

    def run(job, root, stop):
        folder = world.finish(job.run, TrainConfig(**job.parameters))
        (folder / "history.jsonl").write_text(json.dumps({"epoch": 1, "step": 2, "mcc": 0.123}) + "\n")
        assert not stop()
        return World.run(world, job, root, stop)

    monkeypatch.setattr("glacier_nb.experiments.autopilot.progress_bar", Bar)
    world.run = run
    world.fly(target=0.85, minutes=60, progress=True)
    assert shown == ["a-01-fix MCC 0.123, 60 min left", "a-02-longer MCC 0.123, best 0.750, 60 min left"]
    monkeypatch.setattr("glacier_nb.experiments.autopilot.progress_bar", lambda **_: pytest.fail("a bar"))
    world.fly(target=0.85, minutes=60, progress=False)


@pytest.mark.parametrize("progress", [True, False])
def test_its_diagnosis_shows_a_bar_when_it_does(world, monkeypatch, progress):
    class DiagnosedError(Exception):
        pass

    def diagnose(cfg, run, live, progress):
        raise DiagnosedError(progress)

    monkeypatch.setattr("glacier_nb.checks.diagnosis.diagnose", diagnose)
    with pytest.raises(DiagnosedError) as error:
        autopilot("start.yaml", root=world.root, folder="a", run=world.run, progress=progress)
    assert error.value.args == (progress,)
