"""Notebooks as pages: nbdev reads and cleans the cells, this adds what Sphinx and myst-nb need."""

import ast
import json
import re
from dataclasses import fields
from pathlib import Path

from api_pages import exported_names, module_of
from nbdev.process import NBProcessor
from nbdev.processors import clean_magics, hide_, hide_line, rm_header_dash, strip_ansi
from site_map import NBS, ROOT, copy_images, first_cell, linked, relative

from glacier_nb.config.training import TrainConfig

PROCESSORS = [strip_ansi, hide_line, rm_header_dash, clean_magics, hide_]
PARAMETERS = frozenset(f.name for f in fields(TrainConfig))
NAME = re.compile(r"(?<![\[`])`([A-Za-z_][\w.]*)(\(\))?`(?![\]`])")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}


def markdown(source: str) -> dict:
    "A cell of Markdown."
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def only_imports(source: str) -> bool:
    "Whether a cell has nothing but imports, which a reader may skip."
    tree = ast.parse(source)
    return bool(tree.body) and all(isinstance(n, ast.Import | ast.ImportFrom) for n in tree.body)


def defined(source: str) -> list[str]:
    "Public functions, classes and constants that a cell defines, and methods it adds to a class."
    names = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [t.id for t in node.targets if isinstance(t, ast.Name)]
    return names


def name_links(source: str, page: str) -> str:
    "Code such as `read_tiles` or `mcc_weight` in a text becomes a link to the reference."
    seen = set()

    def link(match: re.Match) -> str:
        name, call = match.group(1), match.group(2) or ""
        if name in seen:
            return match[0]
        seen.add(name)
        if name in PARAMETERS and not call:
            return f"[`{name}`]({relative(page, 'reference/parameters')}.md#param-{name})"
        plain = name.islower() and "_" not in name and not call  # could be any word: `loss`, `index`
        full = exported_names().get(name)
        return match[0] if plain or full is None else f"{{py:obj}}`{name}{call} <{full}.{name}>`"

    fences = re.split(r"(^```.*?^```)", source, flags=re.M | re.S)
    return "".join(part if part.startswith("```") else NAME.sub(link, part) for part in fences)


def export_cells(cell: dict, module: str) -> list[dict]:
    "A cell of the library: which names of the reference it defines, then its code."
    source = cell["source"]
    if only_imports(source):
        return [cell | {"metadata": {"tags": ["hide-input", "export"]}}]
    own = exported_names()
    names = [n for n in dict.fromkeys(defined(source)) if own.get(n) == module]
    code = cell | {"metadata": {"tags": ["export"]}}
    if not names:
        return [code]
    targets = "\n".join(f"({lesson_target(module, name)})=" for name in names)
    links = " · ".join(f"{{py:obj}}`{name} <{module}.{name}>`" for name in names)
    return [markdown(f"{targets}\n{{.exports}}\n{links}"), code]


def lesson_target(module: str, name: str) -> str:
    "The anchor in a lesson of the cell that defines a name; case does not count in anchors."
    kind = "class-" if name[0].isupper() else ""
    return f"lesson-{module.removeprefix('glacier_nb.')}-{kind}{name}".lower().replace("_", "-")


def title(path: Path, page: str) -> str:
    "Heading of a page, the line below it, and where the notebook is."
    heading, line = first_cell(path)
    module = module_of(path)
    name = path.relative_to(ROOT).as_posix()
    if path == NBS / "index.ipynb":
        return f"# {heading}\n\n{{.subtitle}}\n{line}"
    if module:
        heading = module.removeprefix("glacier_nb.")
        reference = f"[reference]({relative(page, 'reference/' + heading)}.md) · "
    else:
        reference = ""
    return f"# {heading}\n\n{{.subtitle}}\n{line}\n\n{{.where}}\n{reference}`{name}`"


def short_cells(html: str) -> str:
    "Cells of a table with few characters do not break into lines."
    return re.sub(r"<(t[dh])>([^<]{1,20})</", r'<\1 class="short">\2</', html)


def shown(outputs: list[dict]) -> list[dict]:
    "Outputs without those that are empty, such as a figure that was closed."
    found = []
    for output in outputs:
        data = output.get("data", {})
        plain = "".join(data.get("text/plain", ""))
        if output["output_type"] == "display_data" and set(data) == {"text/plain"} and not plain.strip():
            continue
        if "text/html" in data:
            output = output | {"data": data | {"text/html": short_cells("".join(data["text/html"]))}}
        found.append(output)
    return found


def page_cells(path: Path, page: str, target: Path) -> list[dict]:
    "The cells of a notebook as cells of its page."
    processor = NBProcessor(path, procs=PROCESSORS, rm_directives=True)
    processor.process()
    module, cells = module_of(path), []
    for cell in processor.nb.cells:
        directives = cell.directives_ if cell.cell_type == "code" else {}
        source = cell.source.strip()
        if not source or {"hide", "default_exp"} & directives.keys():
            continue
        if cell.cell_type == "markdown":
            cells.append(
                markdown(name_links(linked(copy_images(source, path, page, target), path, page), page))
            )
            continue
        code = {"cell_type": "code", "execution_count": None, "metadata": {}, "source": source}
        code["outputs"] = shown(cell.get("outputs", []))
        if "export" in directives:
            cells += export_cells(code, module)
        else:
            tags = ["hide-input"] if only_imports(source) else []
            cells.append(code | {"metadata": {"tags": tags}})
    first = re.sub(r"\A# .+\n\n> .+\n*", "", cells[0]["source"])
    rest = [markdown(first)] if first.strip() else []
    return [markdown(title(path, page)), *rest, *cells[1:]]


def write_notebook(path: Path, page: str, target: Path) -> None:
    "The page of a notebook, with its stored outputs."
    cells = [cell | {"id": f"cell-{i}"} for i, cell in enumerate(page_cells(path, page, target))]
    notebook = {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}
    file = target / f"{page}.ipynb"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(notebook, ensure_ascii=False, indent=1), encoding="utf-8")
