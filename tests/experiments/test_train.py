"""train.ipynb as papermill and JupyterLab run it, on a project folder of its own with tiny tiles."""

import json
import shutil
from pathlib import Path

import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from glacier_nb.config.fields import ConfigError
from glacier_nb.config.training import load_config
from glacier_nb.demo.tiles import make_demo
from glacier_nb.experiments.train import main
from glacier_nb.files.locks import holds_run

ROOT = Path(__file__).parents[2]
TINY = {
    **{
        "encoder": "tu-mobilenetv3_small_050",
        "crop_size": 32,
        "samples_per_epoch": 16,
        "batch_size": 8,
        "epochs": 2,
    },
    **{"n_folds": 3, "precision": "fp32", "checks": "off"},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A project's root with train.ipynb and nine small tiles."
    root = tmp_path_factory.mktemp("project")
    (root / "nbs").mkdir()
    shutil.copy(ROOT / "nbs/train.ipynb", root / "nbs")
    shutil.copy(ROOT / "settings.ini", root)
    make_demo(root / "data/demo", n_tiles=9, size=96, seed=3)
    return root


def train(root: Path, cwd: Path, **parameters) -> Path:
    "Run the notebook; its output file."
    out = root / f"{parameters.get('run', 'out')}.ipynb"
    papermill.execute_notebook(
        root / "nbs/train.ipynb", out, {**TINY, **parameters}, cwd=cwd, progress_bar=False
    )
    return out


def metrics(root: Path, run: str) -> dict:
    "The metrics of a run without its duration, its name and what was looked at before it."
    found = json.loads((root / "outputs" / run / "metrics.json").read_text())
    assert found["parameters"].pop("run") == run
    assert found["parameters"].pop("checks") in ("off", "report")
    return {k: v for k, v in found.items() if k != "seconds"}


@pytest.fixture(scope="module")
def first(project):
    "The first run, from the project's root as papermill runs it."
    return train(project, project, run="first")


def test_run_folder_is_complete(project, first, run_files):
    folder = project / "outputs/first"
    assert run_files == {p.name for p in folder.iterdir()}
    keys = {"mcc", "mcc_valid", "ci95", "per_class", "per_tile", "baseline_mcc", "seconds"}
    assert keys <= set(json.loads((folder / "metrics.json").read_text()))
    assert len((folder / "history.jsonl").read_text().splitlines()) == TINY["epochs"]
    assert load_config(folder / "config.json").epochs == TINY["epochs"]


@pytest.fixture(scope="module")
def second(project):
    "The second run, as JupyterLab runs it, with the checks before it."
    return train(project, project / "nbs", run="second", checks="report")


def test_same_seed_same_metrics_from_jupyterlab(project, first, second):
    assert metrics(project, "first") == metrics(project, "second")


def test_the_checks_before_a_run_are_shown_and_kept(project, second):
    folder = project / "outputs/second"
    found = json.loads((folder / "diagnosis.json").read_text())
    fatal = {f["cause"] for f in found["findings"] if f["severity"] == "fatal"}
    assert "starved" in fatal
    assert found["verdict"] in (folder / "diagnosis.md").read_text()
    assert found["verdict"] in second.read_text()


def test_a_starved_run_is_not_begun(project, monkeypatch, capsys):
    "With the default of `checks`; the note stays, a run is not left behind."
    asked = {k: v for k, v in TINY.items() if k != "checks"} | {"run": "starved"}
    (project / "starved.json").write_text(json.dumps(asked))
    monkeypatch.chdir(project)
    assert main(["--config", "starved.json"]) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert "4 optimizer steps" in err
    folder = project / "outputs/starved"
    assert not holds_run(folder)
    assert (folder / "diagnosis.md").is_file()
    assert not (folder / "history.jsonl").exists()


def test_output_is_not_flooded(first):
    assert first.stat().st_size < 5e6
    cells = json.loads(first.read_text())["cells"]
    streams = [
        "".join(o["text"]) for c in cells for o in c.get("outputs", []) if o["output_type"] == "stream"
    ]
    assert sum(text.count("\n") for text in streams) < 40
    assert not [text for text in streams if "\r" in text]


def test_unknown_parameter_stops_with_the_nearest_name(project):
    with pytest.raises(PapermillExecutionError, match="did you mean 'mcc_weight'"):
        train(project, project, mcc_wieght=1)
    assert not (project / "outputs/demo").exists()


def test_run_that_exists_is_not_overwritten(project, first):
    before = metrics(project, "first")
    with pytest.raises(PapermillExecutionError, match=r"already holds a run.*resume=True"):
        train(project, project, run="first", seed=5)
    assert metrics(project, "first") == before


def test_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"lr": ')
    with pytest.raises(ConfigError, match=r"config\.json is not a config"):
        load_config(tmp_path / "config.json")
