"""JupyterLab on a working copy of notebooks and documents in lab/: what is run there leaves git clean.

python docs/lab.py                              # what `make lab` does
python docs/lab.py --no-browser --port 9999     # options of `jupyter lab` are passed on"""

import argparse
import json
import os
import sys
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

from site_map import STORED, stored_output

ROOT = Path(__file__).parents[1]
COPIED = ("nbs/**/*.ipynb", "docs/**/*.md", "docs/**/*.svg", "docs/**/*.png", "*.md", "*/README.md")
RECORD = ".copied.json"  # file -> digest of what was copied last


def sources(
    root: Path,  # of the project
) -> list[Path]:  # relative to it
    "Notebooks, documents and the pictures in them, so that every link leads somewhere within the copy."
    found = (path.relative_to(root) for pattern in COPIED for path in root.glob(pattern))
    return sorted({p for p in found if p.parts[0] != "lab" and not any(x.startswith(".") for x in p.parts)})


def digest(content: bytes | None) -> str:
    "What identifies a file, a notebook by its cells alone; empty without a file."
    if content is None:
        return ""
    with suppress(ValueError, KeyError, TypeError):  # not a notebook
        cells = [cell | {"source": "".join(cell["source"])} for cell in json.loads(content)["cells"]]
        content = json.dumps(cells, sort_keys=True).encode()
    return sha256(content).hexdigest()


@cache
def kernel() -> dict:
    "What Lab writes into a notebook when it starts this environment's kernel."
    from ipykernel.ipkernel import IPythonKernel
    from ipykernel.kernelspec import get_kernel_dict

    spec = get_kernel_dict()
    names = {"display_name": spec["display_name"], "language": spec["language"], "name": "python3"}
    return {"kernelspec": names, "language_info": IPythonKernel.language_info}


def shown(kind: str, notebook: str, cell: str, caption: str | None) -> str:
    "A stored output in a page of Markdown."
    output = stored_output(kind, notebook, cell)
    if kind == "figure":
        return f"![{caption}](data:image/png;base64,{output.strip()})\n\n{caption}"
    return f"```\n{output}\n```" if kind == "text" else output


def content(path: Path) -> bytes:
    """What the copy of a file has.

    A notebook names its kernel, or Lab would ask whether to save what was only looked at; a page has the
    stored outputs that it names."""
    found = path.read_bytes()
    if path.suffix == ".md":
        return STORED.sub(lambda match: shown(*match.groups()), found.decode()).encode()
    with suppress(ValueError, KeyError, TypeError):  # not a notebook
        notebook = json.loads(found)
        notebook["metadata"] |= kernel()
        return (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode()
    return found


def set_aside(path: Path) -> Path:
    "Rename a file to the first free `NAME-mine-1`, `NAME-mine-2`, ..."
    names = (path.with_stem(f"{path.stem}-mine-{k}") for k in range(1, 10_000))
    return path.rename(next(name for name in names if not name.exists()))


def refresh(
    root: Path = ROOT,  # of the project
    lab: Path | None = None,  # the copy; None: lab/ below it
) -> list[Path]:  # changed files whose original is new: where they are now
    "Bring the copy up to date; a file that was run or changed there is never overwritten."
    lab = lab or root / "lab"
    record = lab / RECORD
    copied = json.loads(record.read_text()) if record.is_file() else {}
    files, aside = {str(path): content(root / path) for path in sources(root)}, []
    found = {name: digest(file) for name, file in files.items()}
    for name in found | copied:
        own, last, new = lab / name, copied.get(name), found.get(name)
        mine = digest(own.read_bytes() if own.is_file() else None)
        if mine == new or (mine and mine != last and last == new):
            continue  # up to date, or changed here and nowhere else
        if mine and mine != last:
            aside += [set_aside(own)] if new else []
        elif mine:
            own.unlink()
        if new:
            own.parent.mkdir(parents=True, exist_ok=True)
            own.write_bytes(files[name])
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(found, indent=1))
    return aside


def environment() -> dict[str, str]:
    "Variables of server, kernels and terminals: our settings, and the commands of this environment."
    before, commands = dict(os.environ), str(Path(sys.executable).parent)
    added = {"JUPYTER_CONFIG_PATH": str(ROOT / "docs/jupyter"), "PATH": commands}
    return before | {k: os.pathsep.join(filter(None, (v, before.get(k)))) for k, v in added.items()}


def main() -> None:
    "Bring the copy up to date and become the server, with the project's root as its root."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that gets the copy, data and outputs")
    options, passed = parser.parse_known_args()
    for path in refresh(lab=options.root / "lab"):
        print(f"the project has a newer version; yours is now {path.relative_to(options.root)}", flush=True)
    if hasattr(os, "geteuid") and not os.geteuid() and "--allow-root" not in passed:
        print("You are root: JupyterLab starts with `make lab LAB=--allow-root`", flush=True)
    os.chdir(options.root)  # data, configs and outputs are in reach
    first = "--LabApp.default_url=/lab/tree/lab/nbs/index.ipynb"
    os.execve(sys.executable, [sys.executable, "-m", "jupyterlab", first, *passed], environment())


if __name__ == "__main__":
    main()
