"""train.ipynb as papermill and JupyterLab run it, on a project folder of its own with tiny tiles."""

import html
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from small_projects import run_cells, small_project

from glacier_nb.checks.diagnosis import _maps, _Subject
from glacier_nb.config.fields import ConfigError
from glacier_nb.config.files import read_config
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.experiments.autopilot import autopilot
from glacier_nb.experiments.command import main
from glacier_nb.experiments.sweep import sweep
from glacier_nb.metrics.scores import tile_confusion
from glacier_nb.report.findings import Finding
from glacier_nb.report.report import Report
from glacier_nb.training.callbacks import _holds_run

ROOT = Path(__file__).parents[2]
TINY = {
    **{
        "encoder": "tu-test_resnet",
        "encoder_weights": None,
        "crop_size": 32,
        "samples_per_epoch": 16,
        "batch_size": 8,
        "epochs": 2,
    },
    **{"n_folds": 3, "precision": "fp32", "checks": "off"},
}
WHOLE_BASELINES = True  # a kernel of its own has no others
RUN = "autopilot-01-first"  # the run that papermill makes


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A project's root with train.ipynb and nine small tiles; the working directory."
    root = small_project(tmp_path_factory.mktemp("new") / "project", "train.ipynb", tiles=cached_demo())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        patch.chdir(root)
        yield root


def run_train(root: Path, cwd: Path, **parameters) -> list:
    "Run the notebook's cells in this process, from a working directory; the objects that it displays."
    before = Path.cwd()
    os.chdir(cwd)
    try:
        return run_cells(root / "nbs/train.ipynb", **TINY | parameters)["shown"]
    finally:
        os.chdir(before)


def metrics(root: Path, run: str) -> dict:
    "The metrics of a run without its duration, its name and the choice of checks before it."
    found = json.loads((root / "outputs" / run / "metrics.json").read_text())
    assert found["parameters"].pop("run") == run
    assert found["parameters"].pop("checks") in ("off", "report")
    return {k: v for k, v in found.items() if k != "seconds"}


@pytest.fixture(scope="module")
def table(project):
    "The only run by papermill: the autopilot starts it from the project's root."

    def diagnose(cfg, run=None, live=True):
        rising = Finding("still-rising", "warning", "The MCC still rose.", "Train longer.")
        return SimpleNamespace(findings=[rising] if run else [], save=lambda folder: None)

    (project / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    how = {"diagnose": diagnose, "progress": False, "say": lambda text: None}
    return autopilot("tiny.yaml", 1.0, max_runs=1, **how)


@pytest.fixture(scope="module")
def first(project, table):
    "The folder of that run."
    return project / "outputs" / RUN


def test_autopilot_runs_the_notebook(table, first):
    assert list(table.index) == ["tiny", RUN]
    assert list(table["status"]) == ["not run", "done"], table.get("error")
    assert json.loads((first / "metrics.json").read_text())["mcc"] == table["MCC"].iloc[1]
    assert "autopilot-02-longer" in table.attrs["why"], "the finding about the real run is used"


def test_sweep_skips_the_finished_run(table, first):
    again = sweep([TINY | {"run": RUN}], progress=False)
    assert again.loc[RUN, "status"] == "skipped"
    assert again.loc[RUN, "MCC"] == table.loc[RUN, "MCC"]


def test_run_folder_is_complete(first, run_files):
    assert {p.name for p in first.iterdir()} == run_files | {"train.ipynb", "train.log", "result.png"}
    keys = {"mcc", "mcc_valid", "ci95", "per_class", "per_tile", "baseline_mcc", "seconds"}
    assert keys <= set(json.loads((first / "metrics.json").read_text()))
    assert len((first / "history.jsonl").read_text().splitlines()) == TINY["epochs"]
    assert read_config(first / "config.json").epochs == TINY["epochs"]


@pytest.fixture(scope="module")
def second(project):
    "Objects that the second run displays: in the working directory of JupyterLab, with checks before it."
    return run_train(project, project / "nbs", run="second", checks="report")


def test_same_seed_same_metrics_from_jupyterlab(project, first, second):
    assert metrics(project, RUN) == metrics(project, "second")


def test_the_diagnosis_predicts_the_maps_that_were_scored(project, first):
    found = _maps(_Subject.of(read_config(first / "config.json"), first))
    for name, counts in metrics(project, RUN)["tile_confusions"].items():
        tile, pred = found(name)
        pairs = tile_confusion(pred, tile.label, tile.valid, len(tile.classes))
        assert [pair.tolist() for pair in pairs] == [counts["all"], counts["valid"]]


def test_notebook_and_command_write_the_same_metrics(project, first, capsys):
    "Key by key, with test-time augmentation, an ensemble and the baselines; only clocks differ."
    evaluated = {"tta": "flips", "tta_scales": "1,1.25", "ensemble": RUN}
    run_train(project, project, run="by-notebook", **evaluated)
    (project / "by-command.json").write_text(json.dumps(TINY | evaluated | {"run": "by-command"}))
    assert main(["train", "--config", "by-command.json"]) == 0
    assert "beat" in capsys.readouterr().out, "the command ends with the scores"
    by_notebook, by_command = metrics(project, "by-notebook"), metrics(project, "by-command")
    for found in (by_notebook, by_command):
        assert found["evaluation"]["asked"] == "both"
        assert list(found["evaluation"]["choices"]) == ["plain", "tta", "ensemble", "both"]
        assert max(found["baselines"].values()) == found["baseline_mcc"]
        for choice in found["evaluation"]["choices"].values():
            assert choice.pop("seconds") > 0
            assert choice.pop("cost") > 0
    assert by_notebook.keys() == by_command.keys()
    for key, value in by_notebook.items():
        assert value == by_command[key], key


def test_a_missing_member_stops_the_command_before_training(project, capsys):
    (project / "alone.json").write_text(json.dumps(TINY | {"run": "alone", "ensemble": "nothing-there"}))
    assert main(["train", "--config", "alone.json"]) == 2
    assert "nothing-there" in capsys.readouterr().err
    assert not _holds_run(project / "outputs/alone")


def test_the_checks_before_a_run_are_shown_and_saved(project, second):
    folder = project / "outputs/second"
    found = json.loads((folder / "diagnosis.json").read_text())
    fatal = {f["cause"] for f in found["findings"] if f["severity"] == "fatal"}
    assert "starved" in fatal
    assert found["verdict"] in (folder / "diagnosis.md").read_text()
    (report,) = [value for value in second if isinstance(value, Report)]
    assert report.verdict == found["verdict"]
    assert html.escape(found["verdict"]) in report._repr_html_()


def test_a_starved_run_does_not_start(project, capsys):
    "With the default of `checks`; the diagnosis is saved, no run is left behind."
    parameters = {k: v for k, v in TINY.items() if k != "checks"} | {"run": "starved"}
    (project / "starved.json").write_text(json.dumps(parameters))
    assert main(["train", "--config", "starved.json"]) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert "4 optimizer steps" in err
    folder = project / "outputs/starved"
    assert not _holds_run(folder)
    assert (folder / "diagnosis.md").is_file()
    assert not (folder / "history.jsonl").exists()


def test_output_is_not_flooded(first):
    notebook = first / "train.ipynb"
    assert notebook.stat().st_size < 5e6
    cells = json.loads(notebook.read_text())["cells"]
    streams = [
        "".join(o["text"]) for c in cells for o in c.get("outputs", []) if o["output_type"] == "stream"
    ]
    assert sum(text.count("\n") for text in streams) < 40
    assert not [text for text in streams if "\r" in text]


def test_unknown_parameter_stops_with_the_nearest_name(project):
    with pytest.raises(ConfigError, match="did you mean 'mcc_weight'"):
        run_train(project, project, mcc_wieght=1)
    assert not (project / "outputs/demo").exists()


def test_run_that_exists_is_not_overwritten(project, first):
    before = metrics(project, RUN)
    with pytest.raises(ConfigError, match=r"already holds a run.*resume=True"):
        run_train(project, project, run=RUN, seed=5)
    assert metrics(project, RUN) == before


def test_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"lr": ')
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        read_config(tmp_path / "config.json")
