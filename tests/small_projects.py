"""Projects for tests: a root with notebooks and tiles, and notebooks whose cells run in the process."""

import shutil
from pathlib import Path

import nbformat
from matplotlib import pyplot as plt
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

ROOT = Path(__file__).parents[1]


def small_project(root: Path, *notebooks: str, tiles: Path | None = None) -> Path:
    "A new project's root with these notebooks of nbs/, and with tiles as data/demo."
    for folder in ("nbs", "data"):
        (root / folder).mkdir(parents=True)
    for name in notebooks:
        shutil.copy(ROOT / "nbs" / name, root / "nbs")
    shutil.copy(ROOT / "settings.ini", root)
    if tiles:
        (root / "data/demo").symlink_to(tiles, target_is_directory=True)
    return root


def run_cells(notebook: Path | nbformat.NotebookNode, **parameters) -> dict:
    "Run a notebook's cells, with papermill's parameters; its variables, and in `shown` what it displays."
    if not isinstance(notebook, nbformat.NotebookNode):
        notebook = parameterize_notebook(load_notebook_node(str(notebook)), parameters)
    shown = []
    names = {"__name__": "notebook", "display": lambda *values: shown.extend(values), "In": []}
    try:
        for cell in notebook.cells:
            if cell.cell_type == "code":
                names["In"].append(cell.source)
                exec(compile(cell.source, f"cell {cell.id}", "exec"), names)
    finally:
        plt.close("all")
    return names | {"shown": shown}
