"""The commands of README.md and docs/ as they stand there, in a folder with tiny tiles at their paths.

Only `-p trial True` is added to what trains or diagnoses, as a reader may: without it the runs would take
hours. papermill's own command line parses each command and injects its cell; the cells then run in this
process instead of a kernel, which takes seconds to start. What runs for minutes even so (`make demo`,
`make iterations`, `make autopilot`, the five runs of a sweep, two hosts of torchrun) is checked as far as its
arguments, and a run that another command makes as well as far as its config."""

import ast
import importlib.util
import re
import shlex
import shutil
import subprocess
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import papermill.cli
import pytest
from click.testing import CliRunner
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from small_projects import run_cells

from glacier_nb.config.fields import ConfigError
from glacier_nb.config.files import read_config
from glacier_nb.config.training import TrainConfig
from glacier_nb.demo.tiles import cached_demo, make_demo
from glacier_nb.experiments.command import _config, _parser, main
from glacier_nb.experiments.cross_validate import CrossValidation, _pooled
from glacier_nb.experiments.sweep import _plan
from glacier_nb.prediction.members import load_member
from glacier_nb.runs.folder import RunError, read_metrics, run_state

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("docs/howto/*.md"))]
BLOCKS = [
    (path.stem, kind, text)
    for path in PAGES
    for kind, text in re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), flags=re.M | re.S)
]
COMMANDS = [line for _page, kind, text in BLOCKS if not kind for line in text.splitlines()]
PYTHON = {}
for page, _kind, text in (block for block in BLOCKS if block[1] == "python"):
    PYTHON[page] = PYTHON.get(page, "") + text


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A copy of what the commands need, with tiny tiles; the working directory."
    root = tmp_path_factory.mktemp("readme")
    (root / "nbs").mkdir()
    files = ("settings.ini", "setup.py", "pyproject.toml", "constraints.txt", "Makefile", "configs")
    for path in [*(ROOT / name for name in files), *(ROOT / "nbs").glob("*.ipynb")]:
        target = root / path.relative_to(ROOT)
        shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)
    make_demo(root / "data/demo", 9, 64)
    shutil.copytree(root / "data/demo", root / "data/competition")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(papermill.cli, "execute_notebook", _execute)
        yield root


def _execute(input_path: str, output_path: str, parameters: dict, **options) -> None:
    "papermill's function, but for the kernel: the cells run here, with Jupyter's history of them."
    run_cells(parameterize_notebook(load_notebook_node(input_path), parameters))


def run(command: str) -> None:
    "Run a command of papermill or of ours; raises its error."
    program, *arguments = shlex.split(command)
    if program == "papermill":
        found = CliRunner().invoke(papermill.cli.papermill, [*arguments, "--no-progress-bar"])
        if found.exception:
            raise found.exception
    else:
        assert program == "glacier-nb"
        assert main(arguments) in (0, 1), command  # 1: a diagnosis has an error


def test_every_command_is_tested_here():
    "A new command in README.md or docs/ needs a test."
    tested = (
        r"make (demo|best|compare|lab|autopilot)",
        r"papermill nbs/train\.ipynb outputs/mine(-trial)?\.ipynb -p",
        r"papermill nbs/train\.ipynb out\.ipynb -(p mcc_wieght|p init_from|f)",
        r"papermill nbs/(diagnose_run|cross_validate|pretrain|autopilot|predict|explore|label_check)\.ipynb",
        r"glacier-nb (train|diagnose|next|predict|sweep|cross-validate|--help)",
        r"torchrun .*( -m glacier_nb train|\\$)|    -m glacier_nb train",
        r"ConfigError: ",
    )
    shell = (
        r"\. \.venv/bin/activate",
        r"ln -s ",
        r"python -c .*write_hkh_like",
        r"!papermill nbs/train\.ipynb",
    )
    known = (*tested, *shell)
    assert [line for line in COMMANDS if not any(re.match(pattern, line) for pattern in known)] == []
    elsewhere = ["many_machines"]  # needs a cluster: tests/prediction/test_workers.py
    assert sorted(PYTHON) == sorted(
        ["cross_validation", "label_errors", "own_labels", "python", "scenes", "texture", *elsewhere]
    )


def lines(beginning: str) -> list[str]:
    "The commands that begin so; at least one."
    found = [line for line in COMMANDS if line.startswith(beginning)]
    assert found, beginning
    return found


def test_a_run_its_resumption_and_its_diagnosis(project):
    start, resume = dict.fromkeys(lines("papermill nbs/train.ipynb outputs/mine.ipynb"))
    assert lines("papermill nbs/train.ipynb outputs/mine-trial.ipynb") == [
        start.replace("mine.ipynb", "mine-trial.ipynb") + " -p trial True"
    ]
    run(f"{start} -p trial True")
    folder = project / "outputs/mine-trial"
    assert run_state(folder) == "trial"
    first = read_metrics(folder)
    assert first["trial"]
    assert first["parameters"]["data_dir"] == "data/competition"
    (folder / "metrics.json").unlink()  # as when it was cut off
    run(f"{resume} -p trial True")
    assert read_metrics(folder)["mcc"] == first["mcc"]
    shutil.copytree(folder, project / "outputs/demo")
    reports = lines("papermill nbs/diagnose_run.ipynb") + lines("glacier-nb diagnose --config")
    for command in dict.fromkeys(reports):
        run(command if "-p run" in command else f"{command} -p trial True")
    assert (project / "outputs/demo/diagnosis.md").is_file()
    run(*lines("glacier-nb next demo"))
    torchrun = lines("torchrun --nnodes 2 --nproc-per-node 8")[0]
    shutil.copy(folder / "config.json", project / "run.json")
    assert main(shlex.split(torchrun.partition("-m glacier_nb ")[2])) == 0


class _Folds(CrossValidation):
    "A finished cross-validation of one run."

    def __init__(self, cfg: TrainConfig, run):
        assert (cfg.run, cfg.epochs) == ("twelve", 12)
        record = _pooled(cfg, [run.folder]) | {"runs": [run.name], "parameters": asdict(cfg)}
        super().__init__(run.folder, record)

    members = property(lambda self: [load_member(self.folder)])

    def held_out_maps(self, tiles):
        held_out = [t for t in tiles if t.id in self.held_out]
        return super().held_out_maps(held_out[:0])


def test_python_and_the_command(project, monkeypatch):
    code, folds, texture = (PYTHON[page] for page in ("python", "cross_validation", "texture"))
    names = {"band": np.full((32, 32), 9000.0), "valid": np.ones((32, 32), bool)}
    exec(code.replace("TrainConfig(", "TrainConfig(trial=True, "), names)
    assert names["pred"].shape == (64, 64)
    exec(texture, names)
    exec(PYTHON["own_labels"], names)
    assert len(names["tiles"]) == 9
    with monkeypatch.context() as patch:  # its folds would take minutes: what is read of the result is there
        patch.setattr("glacier_nb.cross_validate", lambda cfg: _Folds(cfg, names["run"]), raising=False)
        exec(folds, names)
    assert names["maps"] == {}
    assert names["contrast"].shape == (32, 32)
    shutil.move(project / "outputs/pure-mcc-trial", project / "outputs/pure-mcc")
    run(*lines("glacier-nb diagnose pure-mcc"))
    (train,) = lines("glacier-nb train -p data_dir data/competition -p mcc_weight")
    assert _config(_parser().parse_args(shlex.split(train)[1:])) == eval(
        re.search(r"TrainConfig\(.*?\)", code)[0], names
    ), "the same run as that of the Python code"


def test_an_unknown_parameter_gets_the_message_that_is_shown(project):
    (command,) = lines("papermill nbs/train.ipynb out.ipynb -p mcc_wieght")
    (shown,) = lines("ConfigError: ")
    with pytest.raises(ConfigError) as error:
        run(command)
    assert f"ConfigError: {error.value}" == shown


def test_parameter_files_and_sweeps_are_read(project):
    "Their runs take minutes each: their arguments are read, and the runs are planned."
    (command,) = lines("papermill nbs/train.ipynb out.ipynb -f")
    with pytest.raises(
        ConfigError, match=r"epochs = 0 is not allowed"
    ):  # the last parameter, all others are right
        run(f"{command} -p epochs 0")
    (folds,) = lines("papermill nbs/cross_validate.ipynb")
    for beginning in ("papermill nbs/train.ipynb out.ipynb -p init_from", "papermill nbs/pretrain.ipynb"):
        for command in lines(beginning):
            with pytest.raises(ConfigError, match=r"epochs = 0 is not allowed"):
                run(f"{command} -p epochs 0")
    with pytest.raises(ConfigError, match=r"batch_size = 0 is not allowed"):
        run(f"{folds} -p batch_size 0")
    found = [_parser().parse_args(shlex.split(c)[1:]) for c in lines("glacier-nb cross-validate")]
    assert [(_config(options).epochs, options.n_jobs) for options in found] == [(8, 2), (12, 2), (8, 1)]
    (sweep,) = lines("glacier-nb sweep")
    words = [sorted(map(str, Path().glob(w))) if "*" in w else [w] for w in shlex.split(sweep)[1:]]
    options = _parser().parse_args([*chain.from_iterable(words)])
    jobs = _plan(options.files, dict(options.parameters), options.prefix, options.suffix, project)
    assert [job.run for job in jobs] == [f"real-{Path(file).stem}" for file in options.files]
    assert len(jobs) == 5


def test_the_best_recipe_is_planned_and_its_maps_named(project):
    command = next(line for line in lines("make best") if line.endswith("data/mine"))
    text = subprocess.run(
        [*command.split(), "-n", "--no-print-directory", "SEEDS=3 4", "INSTALLED="],
        cwd=project,
        capture_output=True,
        text=True,
    ).stdout
    loop, _, named = text.replace("\\\n", "").partition("done\n")
    assert loop.startswith("for seed in 3 4; do")
    sweep = re.search(r"glacier-nb (sweep .*?) \|\|", loop)[1].replace("$seed", "3")
    options = _parser().parse_args(shlex.split(sweep))
    (project / "data/mine").symlink_to(project / "data/demo")
    (job,) = _plan(options.files, dict(options.parameters), options.prefix, options.suffix, project)
    cfg = TrainConfig(**job.parameters)
    assert (job.run, cfg.seed, cfg.fold, cfg.data_dir) == ("best-3", 3, None, "data/mine")
    said = subprocess.run(named, cwd=project, shell=True, capture_output=True, text=True).stdout
    maps = "glacier-nb predict best-3,best-4 SCENE outputs/maps\n"
    assert said == maps
    seeds = maps.replace("best-3,best-4", "best-0,best-1,best-2").split(" SCENE ")
    assert any(all(part.strip() in command for part in seeds) for command in lines("glacier-nb predict"))


def test_four_classes_go_on_with_the_network_of_the_best_recipe(project):
    (command,) = (line for line in lines("glacier-nb train") if "four_classes" in line)
    cfg, best = _config(_parser().parse_args(shlex.split(command)[1:])), read_config("configs/best.yaml")
    assert (cfg.fold, cfg.init_from) == (None, "outputs/best-0/model.pt")
    network = ("architecture", "encoder", "decoder_attention", "decoder_channels", "include_glcm")
    assert [getattr(cfg, name) for name in network] == [getattr(best, name) for name in network]


def test_commands_for_maps_are_read():
    "What they do is tested with the command itself; here, that each option and the call exist."
    for command in lines("glacier-nb predict"):
        assert _parser().parse_args(shlex.split(command)[1:]).command == "predict"
    (notebook,) = lines("papermill nbs/predict.ipynb")
    given = {shlex.split(notebook)[i + 1] for i, word in enumerate(shlex.split(notebook)) if word == "-p"}
    parameters = load_notebook_node(str(ROOT / "nbs/predict.ipynb")).cells[1].source
    assert all(re.search(rf"^{name} = ", parameters, flags=re.M) for name in given)
    names = set()
    for node in ast.walk(ast.parse(PYTHON["scenes"])):
        if isinstance(node, ast.ImportFrom):
            names |= {hasattr(importlib.import_module(node.module), alias.name) for alias in node.names}
    assert names == {True}


def test_the_commands_for_pictures_and_labels(project):
    (labels,) = lines("papermill nbs/label_check.ipynb")
    (command,) = lines("papermill nbs/explore.ipynb")
    for needed in (labels, command):
        with pytest.raises(RunError, match="no run 'mine-cv'"):
            run(needed)
    run(f"{command} -p runs '' -r tile 03_01 -p compare none")


def test_labels_are_checked_in_python(project, monkeypatch):
    "With the labels of the demo tiles as maps."
    classes = np.arange(4)[:, None, None]
    found = SimpleNamespace(
        config=TrainConfig(data_dir=str(cached_demo(4, 64, 5))),
        held_out_probabilities=lambda tiles: {t.id: np.float32(t.label == classes) for t in tiles},
    )
    monkeypatch.setattr(CrossValidation, "read", lambda name: found)
    names = {}
    exec(PYTHON["label_errors"].replace("plant(40)", "plant(4)"), names)
    assert len(names["errors"]) == 4
    assert (project / "outputs/mine-cv/label_check/patches.csv").is_file()


@pytest.mark.parametrize("target", ["demo", "best", "compare", "iterations", "autopilot", "test", "lab"])
def test_make_knows_its_targets(project, target):
    assert any(f"make {target}" in path.read_text() for path in PAGES)
    found = subprocess.run(["make", "-n", target], cwd=project, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    for notebook in re.findall(r"papermill .*?(nbs/\w+\.ipynb)", found.stdout):
        assert (project / notebook).is_file()
