"""JupyterLab on a working copy of notebooks and documents in lab/: what is run there leaves git clean.

python docs/lab.py                              # what `make lab` does
python docs/lab.py --no-browser --port 9999     # options of `jupyter lab` are passed on"""

import argparse
import json
import os
import shutil
import sys
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("nbs/**/*.ipynb", "docs/**/*.md", "docs/**/*.svg", "docs/**/*.png", "*.md", "*/README.md")
RECORD = ".copied.json"  # file -> digest of what was copied last


def sources(
    root: Path,  # of the project
) -> list[Path]:  # relative to it
    "Notebooks, documents and the pictures in them, so that every link leads somewhere within the copy."
    found = (path.relative_to(root) for pattern in COPIED for path in root.glob(pattern))
    return sorted({p for p in found if p.parts[0] != "lab" and not any(x.startswith(".") for x in p.parts)})


def digest(path: Path) -> str:
    "What identifies the content of a file, of a notebook that of its cells; empty without the file."
    if not path.is_file():
        return ""
    content = path.read_bytes()
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


def copy(
    source: Path,
    goal: Path,
) -> None:
    "Copy a file; a notebook names its kernel, or Lab would ask whether to save what was only looked at."
    goal.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, goal)
    with suppress(ValueError, KeyError, TypeError):  # not a notebook
        notebook = json.loads(source.read_text(encoding="utf-8"))
        notebook["metadata"] |= kernel()
        goal.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


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
    found, aside = {str(path): digest(root / path) for path in sources(root)}, []
    for name in found | copied:
        own, mine, last, new = lab / name, digest(lab / name), copied.get(name), found.get(name)
        if mine == new or (mine and mine != last and last == new):
            continue  # up to date, or changed here and nowhere else
        if mine and mine != last:
            aside += [set_aside(own)] if new else []
        elif mine:
            own.unlink()
        if new:
            copy(root / name, own)
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
