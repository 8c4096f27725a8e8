"""The library as users meet it: installed from its wheel, in an empty folder, imported by name."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import glacier_nb

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    ".".join(p.relative_to(ROOT).with_suffix("").parts)
    for p in (ROOT / "glacier_nb").rglob("*.py")
    if not p.name.startswith("_")
)
FRONT_DOOR = """
from glacier_nb import (
    TrainConfig, autopilot, compare_runs, describe, diagnose, glcm, load_run, make_demo, next_run, read_tiles,
    runs_table, sweep, train,
)

make_demo("data/demo", 6, 64)
tiny = dict(
    data_dir="data/demo", n_folds=3, crop_size=32, samples_per_epoch=8, batch_size=4, epochs=1,
    encoder="tu-test_resnet", encoder_weights=None, decoder_attention="none", include_glcm=False,
    warmup_epochs=0.0, precision="fp32", checks="report",
)
run = train(TrainConfig(run="first", **tiny))
tile = read_tiles("data/demo")[0]
assert run.predict(tile).shape == tile.shape == (64, 64)
assert load_run("first").metrics["mcc"] == run.metrics["mcc"] and len(run.history) == 1
assert run.report.findings and diagnose(run, live=False).findings
jobs = [tiny | {"run": "second", "seed": 1}, tiny | {"run": "bad", "data_dir": "data/nothing"}]
table = sweep(jobs, n_jobs=2, progress=False, threads=1)
assert table.loc["second", "status"] == "done", table.loc["second", "error"]
assert table.loc["bad", "error"].startswith("TileError: ") and "data/nothing" in table.loc["bad", "error"]
assert set(runs_table().index) == {"first", "second", "bad"} and len(describe("data/demo")) == 6
assert len(compare_runs(["first", "second"]).pairs) == 1
print(next_run(run))
files = [importlib.import_module(name).__file__ for name in modules]
print("", *files, sep="\\n")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    "An environment that has the requirements and the wheel, and no checkout; its site-packages."
    folder = tmp_path_factory.mktemp("wheel")
    source, environment = folder / "source", folder / "venv"
    shutil.copytree(ROOT / "glacier_nb", source / "glacier_nb", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *offline, "--wheel-dir", folder, source], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--target", site, wheel], check=True)
    # a path file adds a folder without running the path files in it, so not the checkout either
    (site / "requirements.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return site


def run_installed(site: Path, folder: Path, *arguments: str) -> str:
    "What the environment's Python prints in a folder, with the settings of a user."
    own = ("GLACIER_NB_CACHE", "PYTHONPATH")
    environment = {k: v for k, v in os.environ.items() if k not in own} | {"OMP_NUM_THREADS": "1"}
    command = [site.parents[2] / "bin/python", "-P", *arguments]
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def test_the_front_door_works_from_an_empty_folder(installed, tmp_path):
    "Everything is written below the working directory, nothing beside the installed package."
    package = installed / "glacier_nb"
    before = {p for p in package.rglob("*") if p.suffix != ".pyc"}
    code = f"import importlib\nmodules = {MODULES}\n{FRONT_DOOR}"
    *shown, files = run_installed(installed, tmp_path, "-c", code).rsplit("\n\n", 1)
    assert "next-" in shown[0], "the proposal"
    found = files.split()
    assert [Path(line).is_relative_to(installed) for line in found] == [True] * len(MODULES)
    assert {p.name for p in tmp_path.iterdir()} == {"data", "outputs"}
    assert {p.name for p in (tmp_path / "outputs").iterdir()} <= {"first", "second", "bad", ".cache"}
    assert (tmp_path / "outputs/second/train.log").is_file(), "without a notebook, the command trains"
    assert {p for p in package.rglob("*") if p.suffix != ".pyc" and p.name != "__pycache__"} <= before


def test_importing_the_package_loads_no_torch(installed, tmp_path):
    "Configs, descriptions of tiles and tables of runs need none either; quick, because little is loaded."
    code = """
import sys, glacier_nb
first = len(sys.modules)
assert not {"numpy", "pandas", "torch"} & set(sys.modules)
from glacier_nb import TrainConfig, describe, runs_table
TrainConfig(mcc_weight=1.0), runs_table()
assert "torch" not in sys.modules
print(first)
"""
    assert int(run_installed(installed, tmp_path, "-c", code)) < 300, (
        "modules of Python itself, and lazy_loader"
    )


def test_the_front_door_lists_its_names():
    assert {"train", "TrainConfig", "cross_validate", "diagnose", "load_run", "read_tiles"} <= set(
        dir(glacier_nb)
    )
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = glacier_nb.no_such_name
