"""A trial says nothing about scores: it is no start, no member, no evidence for a next run."""

import pytest
import torch

from glacier_nb.checks.split import _check_places
from glacier_nb.config.fields import ConfigError
from glacier_nb.config.training import TrainConfig
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.experiments.autopilot import _read_start
from glacier_nb.experiments.command import main
from glacier_nb.experiments.proposals import NoProposal, next_run
from glacier_nb.experiments.rules import RunRecord
from glacier_nb.experiments.sweep import _plan
from glacier_nb.files.paths import write_text
from glacier_nb.models.weights import WeightsError, init_from
from glacier_nb.report.report import CheckResult, Report
from glacier_nb.runs.compare import compare_runs
from glacier_nb.runs.folder import RunError, run_state, verdict
from glacier_nb.tiles.read import read_tiles
from glacier_nb.tiles.splits import split
from glacier_nb.training.recipe import _few_tiles


def test_the_state_and_the_verdict_of_a_run_name_it(tmp_path):
    TrainConfig(trial=True).save(tmp_path / "config.json")
    write_text(tmp_path / "metrics.json", "{}")
    assert run_state(tmp_path) == "trial"
    assert verdict({"trial": True}).startswith("This is a trial")


def test_it_is_not_compared():
    with pytest.raises(RunError, match="a is a trial"):
        compare_runs({"a": {"trial": True}, "b": {}})


def test_it_gives_no_proposal():
    trial = RunRecord("a-trial", {"trial": True}, metrics={"mcc": 0.9})
    found = next_run([trial])
    assert isinstance(found, NoProposal)
    assert "a-trial is a trial" in found.why
    whole = RunRecord("whole", {}, metrics={"mcc": 0.1})
    assert str(next_run([trial, whole])) == str(next_run([whole])), "the score of the trial does not count"


def test_the_autopilot_does_not_start_from_one(tmp_path):
    path = write_text(tmp_path / "start.yaml", "trial: True")
    with pytest.raises(ConfigError, match="trial = True is not allowed"):
        _read_start(path, tmp_path)


def test_no_other_run_starts_from_its_weights(tmp_path):
    model = torch.nn.Conv2d(3, 2, 3)
    torch.save({"config": {"trial": True}, "weights": model.state_dict()}, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="is from a trial"):
        init_from(model, tmp_path / "model.pt")


def test_a_sweep_of_trials_names_their_folders(tmp_path):
    files = [{"run": "a"}, {"run": "b", "ensemble": "a"}]
    jobs = _plan(files, {"trial": "True"}, "x-", root=tmp_path)
    assert [(job.run, job.needs) for job in jobs] == [("x-a-trial", ()), ("x-b-trial", ("x-a-trial",))]


def test_tiles_that_it_does_without_are_not_lost_to_the_buffer():
    sides = split(read_tiles(cached_demo(16, 64, 3)), 0, 4, buffer=4)
    few = _few_tiles(sides)
    assert len(few.train) < len(sides.train)
    assert few.dropped == sides.dropped
    assert few.left == pytest.approx(sides.left, abs=1e-3)
    assert [f.cause for f in _check_places(few)] == [f.cause for f in _check_places(sides)]


def test_the_verdict_of_its_diagnosis_does_not_call_it_usable():
    checks = [CheckResult("bands", "passed")]
    assert Report("Diagnosis", checks=checks, facts={"trial": ""}, trained=True).verdict.startswith(
        "The trial works"
    )
    assert Report("Diagnosis", checks=checks, trained=True).verdict.startswith("The run is usable")


def test_the_command_says_that_it_compares_none(tmp_path, capsys):
    (tmp_path / "a-trial").mkdir()
    TrainConfig(trial=True).save(tmp_path / "a-trial" / "config.json")
    write_text(
        tmp_path / "a-trial" / "metrics.json",
        '{"mcc": 0.5, "mcc_valid": 0.5, "selected_epoch": 1, "ci95": [0.4, 0.6], "trial": true}',
    )
    main(["compare", "--outputs", str(tmp_path)])
    assert "Not compared: a-trial" in capsys.readouterr().out
