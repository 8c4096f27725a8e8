"""The project itself: exported modules, clean notebooks, README, the parameters of train.ipynb."""

import ast
import filecmp
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import nbformat
import pytest
import yaml
from nbconvert import MarkdownExporter

from glacier_nb.config import TrainConfig, check_names

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
MODULES = (
    "paths params locks rules config tilefiles diskarray quantiles bands lazytiles glcm_rows glcm_torch "
    "glcm texture terrain glaciers demo data tilestore splits pixelindex samplers ranks loader exposure "
    "geometry augment mixing overlaps losses metrics baseline scratch weights unet syncnorm schedules "
    "stopping checkpoints device arithmetic ema recipe validation moments learner callbacks lr_find "
    "distributed members views predict runs compare evidence plot_findings findings report_text "
    "report_html report bandphysics labelchecks bandchecks alignment registration splitchecks lossmaps "
    "losschecks pipechecks cropchecks inputchecks augmentchecks livesteps livechecks historycurves "
    "historychecks runchecks faults diagnose jobs sweep train records decisions proposals steps autopilot "
    "hkh hkh_like"
)
ORDER = MODULES.split()  # a module imports only from those before it
PLOTS = ["pictures", "plot", "plot_runs"]  # imported by notebooks only


def test_export_and_clean_change_nothing(tmp_path):
    for name in ("nbs", "glacier_nb"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb*"))
    for name in ("pyproject.toml", "settings.ini", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    for command in ("nbdev-export", "nbdev-clean"):
        subprocess.run([Path(sys.executable).parent / command], cwd=tmp_path, check=True)
    for name in ("nbs", "glacier_nb"):
        found = filecmp.dircmp(ROOT / name, tmp_path / name, ignore=["__pycache__", ".ipynb_checkpoints"])
        _same, *different = filecmp.cmpfiles(ROOT / name, tmp_path / name, found.common_files, shallow=False)
        assert (*different, found.left_only, found.right_only) == ([], [], [], []), (
            f"run nbdev-export and nbdev-clean: {name}"
        )


def test_readme_is_index():
    text, _ = MarkdownExporter().from_filename(str(ROOT / "nbs/index.ipynb"))
    assert (ROOT / "README.md").read_text().strip() == text.strip(), (
        "README.md is not index.ipynb: run make readme"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_holds_no_machine_path(path):
    text = path.read_text()
    assert not [word for word in ("/work/", "/home/", "/root/", "site-packages") if word in text]


def imported(module: str) -> set[str]:
    "Modules of this package that a module imports."
    tree = ast.parse((ROOT / f"glacier_nb/{module}.py").read_text())
    froms = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    own = [n.module for n in froms if n.level == 1 or n.module.startswith("glacier_nb.")]
    return {name.removeprefix("glacier_nb.") for name in own}


@pytest.mark.parametrize("module", sorted(p.stem for p in (ROOT / "glacier_nb").glob("[a-z]*.py")))
def test_imports_go_down(module):
    above = ORDER[: ORDER.index(module)] if module in ORDER else ORDER
    assert module in [*ORDER, *PLOTS], f"{module} has no place in the order of the modules"
    assert imported(module) <= set(above)


def parameters() -> dict[str, tuple[object, str]]:
    "Name, default and comment of each parameter of train.ipynb."
    notebook = nbformat.read(ROOT / "nbs/train.ipynb", 4)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    rows = [line for line in cell.source.splitlines() if "=" in line.split("#")[0]]
    split = [(*line.split("#")[0].split("="), line.partition("#")[2].strip()) for line in rows]
    return {name.strip(): (ast.literal_eval(value.strip()), comment) for name, value, comment in split}


def test_parameters_cell_is_the_config():
    found = parameters()
    assert [f.name for f in fields(TrainConfig)] == list(found)
    for f in fields(TrainConfig):
        value, comment = found[f.name]
        assert (value, type(value)) == (f.default, type(f.default)), f.name
        assert comment.startswith(f.metadata["meaning"]), f.name


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_iteration_is_a_config(path):
    values = yaml.safe_load(path.read_text())
    check_names(values)
    assert TrainConfig(**values).run == path.stem
