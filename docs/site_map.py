"""Which page a file of the project becomes, the order of pages, and links between them."""

import json
import os
import re
import shutil
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
NBS = ROOT / "nbs"
SECTIONS = ("start", "mcc_003", "howto/index", "lessons/index", "reference/index", "benchmarks")
ABOUT = ("changelog", "citation")
PAGES = {  # Markdown that lies elsewhere, and the page that it becomes
    "CHANGELOG.md": "changelog",
    "README.md": "index",
    "benchmarks/README.md": "benchmark_scripts",
    "data/README.md": "reference/tile_folders",
    "docs/lessons.md": "lessons/index",
    "nbs/index.ipynb": "index",
    "outputs/README.md": "reference/run_folders",
}
LINK = re.compile(r"((?<!!)\[(?:[^\[\]]|!?\[[^\]]*\](?:\([^)]*\))?)*\]\()([^)\s]+)(\))")
IMAGE = re.compile(r"(!\[[^\]]*\]\()([^)\s]+)(\))")
STORED = re.compile(r"^<!-- (figure|table|text): (\S+)#(\S+)(?: \| (.+))? -->$", flags=re.M)
CODE = re.compile(r"^(```+|~~~+).*?^\1|`+[^`\n]+`+", flags=re.M | re.S)


def sources() -> list[Path]:
    "Every file that becomes a page: notebooks and Markdown."
    docs = [path for path in (ROOT / "docs").rglob("*.md") if path.name != "README.md"]
    others = [ROOT / name for name in PAGES if name.endswith(".md") and not name.startswith("docs/")]
    return [*sorted(NBS.rglob("*.ipynb")), *sorted(docs), *others]


def page_of(path: Path) -> str | None:
    "The page that a file becomes, without suffix: `lessons/tiles/read`; None for a file without a page."
    name = path.relative_to(ROOT).as_posix()
    if name in PAGES:
        return PAGES[name]
    if path.suffix == ".ipynb" and path.parent == NBS:
        return f"notebooks/{path.stem}"
    if path.suffix == ".ipynb":
        return f"lessons/{path.parent.name}/{path.stem[3:]}"
    if name.startswith("docs/") and path.suffix == ".md" and path.name != "README.md":
        return name.removeprefix("docs/").removesuffix(".md")
    return None


@cache
def packages() -> dict[str, tuple[str, list[Path]]]:
    "Packages in the order of docs/lessons.md: what is in each, and its notebooks in order."
    text = (ROOT / "docs/lessons.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", text, flags=re.M)
    link = re.compile(r"\]\(\.\./nbs/([\w/]+\.ipynb)\)")
    return {name: (about, [NBS / found for found in link.findall(cell)]) for name, about, cell in rows}


def first_cell(path: Path) -> tuple[str, str]:
    "Heading and the line below it (`> ...`) of a notebook."
    text = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    heading, line = re.match(r"# (.+)\n\n> (.+)", text).groups()
    return heading, line


def stored_output(
    kind: str,  # figure, table, text
    notebook: str,  # below nbs/, without suffix
    cell: str,  # its id
) -> str:  # of a figure: its PNG as base64
    "The stored output of a cell, which a page names."
    cells = json.loads((NBS / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    (found,) = [c for c in cells if c["id"] == cell]
    if kind == "text":
        return "".join(t for o in found["outputs"] for t in o.get("text", [])).strip()
    key = {"figure": "image/png", "table": "text/html"}[kind]
    (data,) = ["".join(o["data"][key]) for o in found["outputs"] if key in o.get("data", {})]
    return data


def relative(page: str, target: str) -> str:
    "The path from one page to another file of the site."
    return os.path.relpath(target, Path(page).parent).replace(os.sep, "/")


class BrokenLink(ValueError):
    "A link leads to a file that has no page."


def linked(text: str, path: Path, page: str, suffix: str = "") -> str:
    "Markdown of a file whose links to other files are links to their pages; code is left as it is."

    def move(match: re.Match) -> str:
        before, link, after = match.groups()
        target, _, anchor = link.partition("#")
        if not target or "://" in link or link.startswith("mailto:"):
            return match[0]
        file = Path(os.path.normpath(path.parent / target))
        found = page_of(file) if file.is_file() else None
        if found is None:
            raise BrokenLink(f"{path}: the link to {target} leads to no page: write the path as code instead")
        ending = suffix or (".ipynb" if file.suffix == ".ipynb" else ".md")
        return f"{before}{relative(page, found)}{ending}{'#' + anchor if anchor else ''}{after}"

    return outside_code(text, lambda part: LINK.sub(move, part))


def outside_code(text: str, change) -> str:
    "Text with everything but its code changed."
    parts, end = [], 0
    for match in CODE.finditer(text):
        linked_code = (
            text[match.start() - 1 : match.start()] == "[" or text[match.end() : match.end() + 2] == "]("
        )
        if linked_code:
            continue
        parts += [change(text[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*parts, change(text[end:])])


def copy_images(text: str, path: Path, page: str, target: Path) -> str:
    "Pictures of a page, copied beside it."

    def copied(match: re.Match) -> str:
        file = (path.parent / match[2]).resolve()
        shutil.copy(file, target / file.name)
        return f"{match[1]}{relative(page, file.name)}{match[3]}"

    return IMAGE.sub(copied, text)
