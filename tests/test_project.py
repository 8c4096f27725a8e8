"""The project itself: exported modules, clean notebooks, README, the parameters of train.ipynb."""

import ast
import filecmp
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from runpy import run_path

import nbformat
import pytest
import yaml

from glacier_nb.config.training import TrainConfig

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
# bottom to top: a package imports only from those before it
PACKAGES = [
    "landsat",
    "progress",
    "files",
    "config",
    "tiles",
    "texture",
    "demo",
    "metrics",
    "parallel",
    "data",
    "losses",
    "sampling",
    "augment",
    "models",
    "training",
    "prediction",
    "runs",
    "hkh",
    "plot",
    "report",
    "checks",
    "experiments",
    "explore",
]
MODULES = sorted(p for p in (ROOT / "glacier_nb").rglob("[a-z]*.py"))
LESSONS = sorted((ROOT / "nbs").glob("*/[0-9]*.ipynb"))


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
    readme = run_path(str(ROOT / "docs/readme.py"))["readme"]
    assert (ROOT / "README.md").read_text() == readme(), "README.md is not index.ipynb: run make readme"


def test_links_between_files_lead_somewhere():
    "Relative links of notebooks, README and documents, and those of the picture of the packages."
    pages = [*ROOT.glob("[a-z]*/*.md"), *ROOT.glob("docs/*/*.md")]
    markdown = {path: path.read_text() for path in [ROOT / "README.md", *pages]}
    for path in NOTEBOOKS:
        cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown"]
        markdown[path] = "\n".join(cells)
    links = {path: re.findall(r"\]\(([^)#\s]+)", text) for path, text in markdown.items()}
    picture = ROOT / "docs/data_flow.svg"
    links[picture] = re.findall(r'href="([^"]+)"', picture.read_text())
    own = [(path, link) for path, found in links.items() for link in found if "://" not in link]
    assert not [f"{path}: {link}" for path, link in own if not (path.parent / link).exists()]
    assert len(own) > 150


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_holds_no_machine_path(path):
    text = path.read_text()
    assert not [word for word in ("/work/", "/home/", "/root/", "/tmp/", "site-packages") if word in text]


def dotted(path: Path) -> str:
    "The name of a module below glacier_nb: `tiles.read`."
    return ".".join(path.relative_to(ROOT / "glacier_nb").with_suffix("").parts)


def imported(path: Path) -> set[str]:
    "Modules of this package that a module imports, also inside functions."
    own, found = dotted(path).split("."), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = own[: len(own) - node.level] if node.level else []
            name = ".".join([*base, node.module or ""]).strip(".")
            if node.level or name.split(".")[0] == "glacier_nb":
                found.add(name.removeprefix("glacier_nb."))
    return found


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_packages_import_only_from_those_below(path):
    package = dotted(path).split(".")[0]
    assert package in PACKAGES
    plots = {name for name in imported(path) if name.startswith("plot.")} - {"plot.colours"}
    assert package in ("plot", "explore") or not plots, (
        "figures of tiles and curves are drawn in notebooks only"
    )
    above = [name for name in imported(path) if PACKAGES.index(name.split(".")[0]) > PACKAGES.index(package)]
    assert not above, f"{dotted(path)} imports {above}, which lie above {package}"


def test_modules_import_in_reading_order():
    "No circle among modules: within a package a module imports only from notebooks with a lower number."
    number = {f"{p.parent.name}.{p.stem[3:]}": int(p.stem[:2]) for p in LESSONS}
    for path in MODULES:
        name = dotted(path)
        same = [m for m in imported(path) if m.split(".")[0] == name.split(".")[0] and "." in name]
        assert all(number[m] < number[name] for m in same), f"{name} imports {same}"


def test_few_names_are_public_and_none_twice():
    "`__all__` of a module is what users and other modules import."
    public = {}
    for path in MODULES:
        (names,) = [
            ast.literal_eval(node.value)
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ] or [[]]
        for name in names:
            public.setdefault(name, []).append(dotted(path))
    assert not {name: modules for name, modules in public.items() if len(modules) > 1}
    assert len(public) < 395


def test_each_module_has_its_notebook():
    exports = {}
    for path in LESSONS:
        cells = nbformat.read(path, 4).cells
        named = [c.source.split()[2] for c in cells if c.source.startswith("#| default_exp ")]
        exports |= dict.fromkeys(named, path)
        assert named in ([], [path.parent.name], [f"{path.parent.name}.{path.stem[3:]}"]), path
    assert sorted(exports) == sorted(map(dotted, MODULES))


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_size_of_modules_and_functions(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 600
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    assert not {f.name for f in functions if f.end_lineno - f.lineno >= 40}


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
    TrainConfig.check_names(values)
    assert TrainConfig(**values).run == path.stem


def test_papermill_reads_each_line_of_the_parameters():
    "It skips a line with a second equals sign, also where that is in the comment."
    found = {}
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        for cell in nbformat.read(path, 4).cells:
            if "parameters" in cell.metadata.get("tags", []):
                lines = [line for line in cell.source.splitlines() if line and not line.startswith("#")]
                found[path.name] = [line for line in lines if line.count("=") != 1]
    assert len(found) > 8
    assert not any(found.values()), found
