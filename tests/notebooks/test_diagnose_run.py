"""diagnose_run.ipynb in a project folder with small tiles, by papermill and in this process."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import nbformat
import papermill
import pytest
from small_projects import run_cells, small_project

from glacier_nb.config.files import read_parameters
from glacier_nb.config.training import TrainConfig
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.files.paths import write_text
from glacier_nb.report.report import Report

ROOT = Path(__file__).parents[2]
TINY = {
    **{
        "encoder": "tu-mobilenetv3_small_050",
        "encoder_weights": None,
        "crop_size": 32,
        "samples_per_epoch": 16,
        "batch_size": 8,
    },
    **{"epochs": 2, "n_folds": 3, "precision": "fp32", "include_glcm": False, "decoder_attention": "none"},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A project's root with diagnose_run.ipynb and nine small tiles."
    root = small_project(
        tmp_path_factory.mktemp("new") / "project", "diagnose_run.ipynb", tiles=cached_demo(9, 96, 3)
    )
    write_text(root / "tiny.yaml", "".join(f"{name}: {value}\n" for name, value in TINY.items()))
    return root


def diagnosed(root: Path, **parameters) -> list[dict]:
    "The outputs of the notebook."
    out = root / "out.ipynb"
    parameters = {"live": False, **parameters}
    papermill.execute_notebook(root / "nbs/diagnose_run.ipynb", out, parameters, cwd=root, progress_bar=False)
    return [output for cell in nbformat.read(out, 4).cells for output in cell.get("outputs", [])]


def html(outputs: list[dict]) -> str:
    "All that is shown as HTML."
    return "".join(o["data"].get("text/html", "") for o in outputs if "data" in o)


def test_parameter_file_gets_report_and_next_run(project):
    shown = html(diagnosed(project, parameters="tiny.yaml"))
    folder = project / "outputs/diagnosis-tiny"
    record = json.loads((folder / "diagnosis.json").read_text())
    causes = [f["cause"] for f in record["findings"]]
    assert causes[0] == "starved"  # four steps
    assert "Diagnosis of tiny" in shown
    assert "Do not train yet: too few optimizer steps." in shown
    assert (folder / "figures/diagnosis-starved.png").read_bytes().startswith(b"\x89PNG")
    text = (folder / "diagnosis.md").read_text()
    assert "figures/diagnosis-starved.png" in text
    assert text.count("samples_per_epoch = 256  # was 16") == 1  # however many findings ask for it
    (proposed,) = folder.glob("*.yaml")
    parameters = read_parameters(proposed)
    assert parameters["samples_per_epoch"] == 256
    assert parameters["run"] == proposed.stem
    evidence = record["findings"][0]["evidence"]
    assert shown.count(evidence) == 1
    assert "\n# Why: " in proposed.read_text()


def executed(root: Path, monkeypatch, **parameters) -> dict:
    "Run the notebook's cells in this process; returns their variables."
    monkeypatch.chdir(root)
    return run_cells(root / "nbs/diagnose_run.ipynb", **{"live": False} | parameters)


def test_the_diagnosis_of_a_run_is_saved_in_its_folder(project, monkeypatch):
    folder = project / "outputs/cut"
    folder.mkdir(parents=True)
    write_text(folder / "config.json", json.dumps(asdict(TrainConfig(run="cut", **TINY))))
    report = executed(project, monkeypatch, run="cut")["report"]
    assert report.title == "Diagnosis of cut"
    assert Report.read(folder).to_dict() == report.to_dict()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"run": "cut", "parameters": "tiny.yaml"}, "run = 'cut' together with parameters or data_dir"),
        ({"run": "cut", "data_dir": "data/demo"}, "run = 'cut' together with parameters or data_dir"),
        ({"run": "nowhere"}, "has no run 'nowhere'"),
        ({"parameters": "tin.yaml"}, "tin.yaml does not exist (looked for"),
        ({"rum": "cut"}, "unknown parameter 'rum': did you mean 'run'"),
    ],
)
def test_errors_say_what_was_expected(project, monkeypatch, given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        executed(project, monkeypatch, **given)
