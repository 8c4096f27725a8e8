"""Write the pages of the site to _proc/: from the notebooks, docs/ and the source of the library."""

import base64
import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import yaml
from api_pages import module_of, module_page, modules, parameter_groups
from lesson_pages import lesson_target, name_links, short_cells, write_notebook
from site_map import (
    ABOUT,
    NBS,
    ROOT,
    SECTIONS,
    STORED,
    copy_images,
    first_cell,
    linked,
    packages,
    page_of,
    relative,
    sources,
    stored_output,
)

from glacier_nb.config.fields import allowed
from glacier_nb.config.training import TrainConfig

TARGET = ROOT / "_proc"
PICTURE = re.compile(r"^\[!\[[^\]]*\]\([^)]*data_flow\.svg\)\]\([^)]*\)$", flags=re.M)
SHORT = {"mcc_003": "Why MCC 0.03?", "citation": "Citation"}  # titles in the bar at the top
SEARCH = """```{raw} html
<input type="search" id="parameter-search" aria-label="Search the parameters"
  placeholder="Search, for example: interface">
<p id="parameter-count" role="status"></p>
```"""


def write(page: str, text: str) -> None:
    "A page of Markdown."
    file = TARGET / f"{page}.md"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.strip() + "\n", encoding="utf-8")


def toctree(pages: list[str], page: str, caption: str = "", hidden: bool = True) -> str:
    "A table of contents of a page."
    options = [f":caption: {caption}"] if caption else []
    options += [":hidden:"] if hidden else [":maxdepth: 1"]
    return "\n".join(["```{toctree}", *options, "", *(entry(page, p) for p in pages), "```"])


def entry(page: str, target: str) -> str:
    "A line of a table of contents, with a shorter title where there is one."
    path = relative(page, target)
    return f"{SHORT[target]} <{path}>" if target in SHORT else path


def picture(page: str) -> str:
    "The way of the data, drawn in the page so that its boxes are links."
    svg = (ROOT / "docs/data_flow.svg").read_text(encoding="utf-8")

    def link(match: re.Match) -> str:
        file = (ROOT / "docs" / match[1]).resolve()
        return f'href="{relative(page, page_of(file))}.html"'

    svg = re.sub(r'href="([^"]+)"', link, svg).replace(
        "<svg ", '<svg role="img" aria-label="The way of the data" '
    )
    return f'```{{raw}} html\n<div class="data-flow">{svg}</div>\n```'


def stored(kind: str, notebook: str, cell: str, caption: str | None) -> str:
    "The stored output of a notebook's cell: a figure with its caption, a table or a text."
    data = stored_output(kind, notebook, cell)
    if kind == "text":
        return f"```text\n{data}\n```"
    if kind == "table":
        return f'```{{raw}} html\n<div class="stored-table">{short_cells(data)}</div>\n```'
    file = TARGET / "figures" / f"{Path(notebook).stem}-{cell}.png"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(base64.b64decode(data))
    return f"```{{figure}} /figures/{file.name}\n:alt: {caption}\n\n{caption}\n```"


def write_markdown(path: Path, page: str) -> None:
    "A page that is written in Markdown."
    text = path.read_text(encoding="utf-8")
    text = PICTURE.sub(lambda m: picture(page), text)
    text = STORED.sub(lambda m: stored(*m.groups()), copy_images(text, path, page, TARGET))
    text = name_links(linked(text, path, page), page)
    if page == "benchmarks":
        text += "\n\n" + toctree(["benchmark_scripts"], page)
    write(page, text)


def how_to_contents() -> None:
    "The table of contents of the how-to pages: in the order in which their first page links to them."
    file = TARGET / "howto/index.md"
    text = file.read_text(encoding="utf-8")
    order = list(dict.fromkeys(re.findall(r"\]\(([\w]+)\.md\)", text)))
    file.write_text(text + "\n" + toctree([f"howto/{name}" for name in order], "howto/index") + "\n")


def lesson_contents() -> None:
    "A page for each package, and the table of contents of all lessons."
    run = [p for p in sorted(NBS.glob("*.ipynb")) if p.stem != "index"]
    lines = [f"- [{p.stem}]({p.stem}.ipynb): {first_cell(p)[1]}" for p in run]
    contents = toctree([page_of(p) for p in run], "notebooks/index")
    about = "Open them in JupyterLab, or run them with papermill: each parameter can be given with `-p`."
    write("notebooks/index", "\n\n".join(["# Notebooks to run", about, "\n".join(lines), contents]))
    for name, (about, notebooks) in packages().items():
        page = f"lessons/{name}"
        lines = [
            f"- [{(module_of(p) and module_of(p).removeprefix('glacier_nb.')) or p.stem[3:]}]"
            f"({name}/{p.stem[3:]}.ipynb): {first_cell(p)[1]}"
            for p in notebooks
        ]
        parts = [f"# {name}", f"{{.subtitle}}\n{about[0].upper()}{about[1:]}.", "\n".join(lines)]
        write(page, "\n\n".join([*parts, toctree([page_of(p) for p in notebooks], page)]))
    file = TARGET / "lessons/index.md"
    pages = ["notebooks/index", *(f"lessons/{name}" for name in packages())]
    file.write_text(file.read_text(encoding="utf-8") + "\n" + toctree(pages, "lessons/index") + "\n")


def reference() -> None:
    "Pages of the modules by package, the parameters, tile and run folders."
    lessons = {module_of(p): p for p in NBS.glob("*/*.ipynb") if module_of(p)}
    for module, path in lessons.items():
        write(
            f"reference/{module.removeprefix('glacier_nb.')}",
            module_page(module, path, page_of(path), lesson_target),
        )
    own = [f"reference/{name}" for name in ("parameters", "tile_folders", "run_folders")]
    contents = [toctree(own, "reference/index")]
    parts, ordered = [(TARGET / "reference/index.md").read_text(encoding="utf-8")], []
    for name, (about, notebooks) in packages().items():
        found = [module_of(p).removeprefix("glacier_nb.") for p in notebooks if module_of(p)]
        if found:
            contents.append(toctree([f"reference/{m}" for m in found], "reference/index", caption=name))
            parts.append(f"`{name}`: {about}\n: " + " · ".join(f"[{m}]({m}.md)" for m in found))
        ordered += found
    missing = {m.removeprefix("glacier_nb.") for m in modules()} - set(ordered)
    if missing:
        raise ValueError(f"modules whose notebook is not in docs/lessons.md: {missing}")
    write("reference/index", "\n\n".join([*parts, *contents]))


def mentions(name: str) -> list[Path]:
    "The lessons whose text names a parameter, those that name it most often first; at most three."
    found = {}
    for path in NBS.glob("*/*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        count = len(re.findall(rf"`{name}`", text))
        if count and path.parent.name != "config":
            found[path] = count
    return sorted(found, key=lambda p: (-found[p], p))[:3]


def parameters() -> None:
    "All parameters of a run in one table."
    known = {f.name: f for f in fields(TrainConfig)}
    head = (TARGET / "reference/parameters.md").read_text(encoding="utf-8")
    rows = ["- - Parameter\n  - Default\n  - Meaning\n  - Explained in"]
    for group, names in parameter_groups().items():
        for name in names:
            f = known[name]
            lessons = ", ".join(
                f"[{p.parent.name}.{p.stem[3:]}]({relative('reference/parameters', page_of(p))}.ipynb)"
                for p in mentions(name)
            )
            default = f"`{f.default!r}`" if f.default != "" else "*empty*"
            meaning = f.metadata["meaning"].replace("`", "").replace("*", r"\*").replace("<", r"\<")
            about = f"{meaning[0].upper()}{meaning[1:]}.\n\n    {{.where}}\n    {allowed(f)} · {group}"
            rows.append(
                f"- - (param-{name})=\n\n    `{name}`\n  - {default}\n  - {about}\n  - {lessons or '–'}"
            )
    table = (
        "````{list-table}\n:header-rows: 1\n:widths: 20 16 44 20\n:class: parameters\n\n"
        + "\n".join(rows)
        + "\n````"
    )
    write("reference/parameters", "\n\n".join([head, SEARCH, table]))


def citation() -> None:
    "The page of CITATION.cff."
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    authors = " and ".join(f"{{{a['name']}}}" for a in about["authors"])
    year = str(about["date-released"])[:4] if "date-released" in about else "2026"
    bibtex = "\n".join(
        [
            f"@software{{{about['title']},",
            f"  title   = {{{about['title']}: {about['abstract'].split('.')[0]}}},",
            f"  author  = {{{authors}}},",
            f"  version = {{{about['version']}}},",
            f"  year    = {{{year}}},",
            f"  license = {{{about['license']}}}",
            "}",
        ]
    )
    text = f"# Citation and licence\n\n{about['message']}\n\n```bibtex\n{bibtex}\n```\n\n"
    write(
        "citation",
        text + f"The licence is {about['license']}. `CITATION.cff` has the same for programs.",
    )


def front_page() -> None:
    "The contents of the whole site, out of sight, on the first page."
    file = TARGET / "index.ipynb"
    notebook = json.loads(file.read_text(encoding="utf-8"))
    source = toctree([*SECTIONS, *ABOUT], "index")
    cell = {"cell_type": "markdown", "metadata": {}, "source": source, "id": "contents"}
    notebook["cells"].append(cell)
    file.write_text(json.dumps(notebook, ensure_ascii=False, indent=1), encoding="utf-8")


def main() -> None:
    "Write all pages anew."
    shutil.rmtree(TARGET, ignore_errors=True)
    TARGET.mkdir()
    for path in sources():
        page = page_of(path)
        if path.suffix == ".ipynb":
            write_notebook(path, page, TARGET)
        elif path.name != "README.md" or path.parent != ROOT:
            write_markdown(path, page)
    how_to_contents()
    lesson_contents()
    reference()
    parameters()
    citation()
    front_page()


if __name__ == "__main__":
    main()
