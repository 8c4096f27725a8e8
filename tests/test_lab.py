"""The working copy that `make lab` opens."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from browser import browser_path
from lab import RECORD, environment, refresh, sources
from site_map import STORED

ROOT = Path(__file__).parents[1]
LINK, CODE = re.compile(r"\]\(([^)#\s]+)\)"), re.compile(r"`[^`\n]*`")


@pytest.fixture
def project(tmp_path):
    "A small project whose notebook has been copied once."
    (tmp_path / "nbs/tiles").mkdir(parents=True)
    for name in ("index", "train", "tiles/00_index"):
        (tmp_path / f"nbs/{name}.ipynb").write_text(f"{name} 1")
    assert refresh(tmp_path) == []
    return tmp_path


def test_the_copy_has_all_that_its_links_lead_to(tmp_path):
    assert refresh(lab=tmp_path) == []
    pages = {path: path.read_text() for path in tmp_path.rglob("*.md") if path.name != "README.md"}
    for path in tmp_path.rglob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        pages[path] = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    links = [(path, link) for path, text in pages.items() for link in LINK.findall(CODE.sub("", text))]
    own = [(path, link) for path, link in links if "://" not in link and not link.startswith("data:")]
    assert len(own) > 150
    assert not [f"{p}: {link}" for p, link in own if not (p.parent / link).exists()]


def test_pages_have_the_outputs_that_they_name(tmp_path):
    refresh(lab=tmp_path)
    pages = [path for path in sources(ROOT) if path.suffix == ".md"]
    named = {path: STORED.findall((ROOT / path).read_text()) for path in pages}
    assert sum(map(len, named.values())) > 10
    for path, outputs in named.items():
        text = (tmp_path / path).read_text()
        assert not STORED.search(text)
        assert text.count("](data:image/png;base64,iVBOR") == [kind for kind, *_ in outputs].count("figure")


def test_a_notebook_that_was_only_looked_at_follows_the_project(project):
    source, own = project / "nbs/train.ipynb", project / "lab/nbs/train.ipynb"
    notebook = {"cells": [{"cell_type": "markdown", "source": ["# a\n", "b"]}], "metadata": {}}
    source.write_text(json.dumps(notebook))
    assert refresh(project) == []
    copied = json.loads(own.read_text())
    assert copied["cells"] == notebook["cells"]
    assert copied["metadata"]["language_info"]["version"] == platform.python_version()
    own.write_text(json.dumps(copied | {"metadata": {"toc": 1}}))  # as Lab saves it
    notebook["cells"][0]["source"] = ["# c"]
    source.write_text(json.dumps(notebook))
    assert refresh(project) == []
    assert json.loads(own.read_text())["cells"] == notebook["cells"]


def test_git_ignores_the_copy_and_notebooks_in_the_root():
    names = ["lab/nbs/train.ipynb", "out.ipynb"]
    found = subprocess.run(["git", "check-ignore", *names, "nbs/train.ipynb"], cwd=ROOT, capture_output=True)
    assert found.stdout.decode().split() == names


def test_an_unchanged_copy_follows_the_project(project):
    (project / "nbs/train.ipynb").write_text("train 2")
    (project / "nbs/tiles/00_index.ipynb").unlink()
    assert refresh(project) == []
    assert (project / "lab/nbs/train.ipynb").read_text() == "train 2"
    assert not (project / "lab/nbs/tiles/00_index.ipynb").exists()
    assert sources(project) == [Path("nbs/index.ipynb"), Path("nbs/train.ipynb")]


def test_what_was_run_there_is_never_overwritten(project):
    own = project / "lab/nbs/train.ipynb"
    own.write_text("train, run")
    assert refresh(project) == []
    assert own.read_text() == "train, run"
    (project / "nbs/train.ipynb").write_text("train 2")
    (aside,) = refresh(project)
    assert (aside.name, aside.read_text(), own.read_text()) == ("train-mine-1.ipynb", "train, run", "train 2")
    own.write_text("run again")
    (project / "lab" / RECORD).unlink()  # without the record every difference is the user's
    (aside,) = refresh(project)
    assert (aside.name, aside.read_text(), own.read_text()) == ("train-mine-2.ipynb", "run again", "train 2")
    (project / "nbs/train.ipynb").unlink()
    own.write_text("changed")
    assert refresh(project) == []
    assert own.read_text() == "changed"


def test_terminals_and_kernels_find_our_commands_and_settings(monkeypatch):
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "/own")
    found = environment()
    assert found["JUPYTER_CONFIG_PATH"] == os.pathsep.join((str(ROOT / "docs/jupyter"), "/own"))
    assert shutil.which("papermill", path=found["PATH"]) == str(Path(sys.executable).with_name("papermill"))
    monkeypatch.delenv("JUPYTER_CONFIG_PATH")
    assert environment()["JUPYTER_CONFIG_PATH"] == str(ROOT / "docs/jupyter")


def test_a_browser_can_be_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CHROMIUM", sys.executable)
    assert browser_path() == sys.executable
    monkeypatch.setenv("CHROMIUM", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"none: no such program; name one, or unset CHROMIUM"):
        browser_path()


@pytest.mark.parametrize("path", sorted((ROOT / "nbs").glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_page_shows_parameters_and_results_first(path):
    "The source of all other cells is folded in JupyterLab."
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    folded = [c["metadata"].get("jupyter", {}).get("source_hidden", False) for c in cells]
    assert folded == ["parameters" not in c["metadata"].get("tags", []) for c in cells]
