"""The documentation site, without building it: its contents, its links, its stored outputs."""

import json
import re
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
from api_pages import all_names, entries, module_of, modules, parameter_groups
from lesson_pages import defined, name_links, page_cells
from site_map import (
    ABOUT,
    NBS,
    PAGES,
    ROOT,
    SECTIONS,
    STORED,
    BrokenLink,
    first_cell,
    linked,
    packages,
    page_of,
    sources,
)

from glacier_nb.config.training import TrainConfig


@cache
def cells(path: Path) -> list[dict]:
    "The cells of a notebook, each source as one text."
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in found]


def written(path: Path) -> str:
    "The Markdown of a page or notebook."
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(c["source"] for c in cells(path) if c["cell_type"] == "markdown")


def in_contents() -> set[str]:
    "Pages that a table of contents of the site has, apart from those that are written by the build alone."
    how_to = re.findall(r"\]\((\w+)\.md\)", (ROOT / "docs/howto/index.md").read_text())
    run = re.findall(r"\]\(\.\./nbs/(\w+)\.ipynb\)", (ROOT / "docs/lessons.md").read_text())
    lessons = [page_of(path) for _about, notebooks in packages().values() for path in notebooks]
    own = ["reference/parameters", "reference/tile_folders", "reference/run_folders", "benchmark_scripts"]
    pages = [*SECTIONS, *ABOUT, *(f"howto/{name}" for name in how_to), *(f"notebooks/{n}" for n in run)]
    return {"index", *pages, *lessons, *own} - {"citation"}  # made of CITATION.cff


def test_every_notebook_and_page_is_in_the_contents():
    pages = [page_of(path) for path in sources()]
    assert None not in pages
    assert set(pages) == in_contents()
    assert len(pages) == len(set(pages)) + 1, (
        "README.md and nbs/index.ipynb are one page, all others their own"
    )
    assert [first_cell(p) for p in NBS.rglob("*.ipynb")], "each notebook begins with a heading and a line"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_pages(path):
    "Anchors too: those of headings."
    text = written(path)
    linked(re.sub(r"\[?!\[[^\]]*\]\([^)]*\)(\]\([^)]*\))?", "", text), path, page_of(path))
    for link, anchor in re.findall(r"\]\(([^)\s#:]*)#([^)\s]+)\)", text):
        target = (path.parent / link).resolve() if link else path
        headings = re.findall(r"^#+ (.+)$", written(target), flags=re.M)
        slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
        assert anchor in slugs, f"{link}#{anchor}"


def test_a_link_without_a_page_is_refused():
    with pytest.raises(BrokenLink, match=r"Makefile leads to no page"):
        linked("see [this](../Makefile)", ROOT / "docs/start.md", "start")
    code = "`[a](../Makefile)` and\n```\n[b](nowhere.md)\n```\n"
    assert linked(code, ROOT / "docs/start.md", "start") == code


@pytest.mark.parametrize("path", [p for p in sources() if p.suffix == ".md"], ids=lambda p: p.stem)
def test_stored_outputs_exist(path):
    "Each figure, table and text that a page shows is an output of the notebook and cell that it names."
    for kind, notebook, cell, caption in STORED.findall(written(path)):
        (found,) = [c for c in cells(NBS / f"{notebook}.ipynb") if c["id"] == cell]
        keys = [
            key for output in found["outputs"] for key in output.get("data", {"text": output.get("text")})
        ]
        assert keys.count({"figure": "image/png", "table": "text/html", "text": "text"}[kind]) == 1, cell
        assert bool(caption) == (kind == "figure"), cell


def test_the_page_on_failed_runs_has_their_figures():
    found = STORED.findall(written(ROOT / "docs/mcc_003.md"))
    assert [kind for kind, *_ in found].count("figure") == 4
    assert {notebook for _, notebook, *_ in found} == {"studies/00_iterations", "studies/01_failed_run"}


def test_reference_has_every_exported_name():
    for module in modules():
        assert [e.name for e in entries(module)] == sorted(
            all_names(module), key=[e.name for e in entries(module)].index
        )
    (read,) = [e for e in entries("glacier_nb.tiles.read") if e.name == "read_raster"]
    assert read.signature.startswith("(path: str | Path, box: ")
    assert read.parameters[0] == ("path", "str | Path", "", "a GeoTIFF, or a VRT of some")
    assert {module_of(p) for p in NBS.glob("*/*.ipynb")} - {None} == set(modules())


def test_every_parameter_is_in_the_table():
    groups = parameter_groups()
    assert [n for names in groups.values() for n in names] == [f.name for f in fields(TrainConfig)]
    assert list(groups) == ["run", "data", "network", "loss", "sampling", "optimisation", "evaluation"]


def test_code_in_a_text_links_to_the_reference():
    found = name_links(
        "`mcc_weight`, `mcc_weight`, `read_tiles`, `loss`, [`glcm`](x) and ```\n`seed`\n```", "a/b"
    )
    assert found.startswith(
        "[`mcc_weight`](../reference/parameters.md#param-mcc_weight), `mcc_weight`, {py:obj}"
    )
    assert "`loss`, [`glcm`](x)" in found
    assert defined("A = 1\ndef f(): ...\nclass B: ...\n") == ["A", "f", "B"]


def test_lessons_show_code_without_directives(tmp_path):
    path, page = NBS / "tiles/01_labels.ipynb", "lessons/tiles/labels"
    found = page_cells(path, page, tmp_path)
    code = [cell for cell in found if cell["cell_type"] == "code"]
    assert not [cell for cell in code if "#|" in cell["source"]]
    exported = [cell for cell in code if "export" in cell["metadata"]["tags"]]
    assert "hide-input" in exported[0]["metadata"]["tags"], "imports are folded"
    assert exported[1]["source"].startswith("@dataclass")
    assert found[0]["source"].startswith("# tiles.labels\n\n{.subtitle}\nWhat the codes")
    before = found[found.index(exported[1]) - 1]["source"]
    assert before.endswith("{py:obj}`LabelCodes <glacier_nb.tiles.labels.LabelCodes>`")
    html = [
        o["data"]["text/html"] for cell in code for o in cell["outputs"] if "text/html" in o.get("data", {})
    ]
    assert '<td class="short">85</td>' in html[0], "stored outputs are shown, short cells in one line"


def test_pages_named_elsewhere_exist():
    assert all((ROOT / name).is_file() for name in PAGES)
