"""A working copy of notebooks and documents in lab/: what is run there leaves git clean (`make lab`)."""

import json
import shutil
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
    "What identifies the content of a file; empty without the file."
    return sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


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
            own.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, own)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(found, indent=1))
    return aside


if __name__ == "__main__":
    for path in refresh():
        print(f"the project has a newer version; yours is now {path.relative_to(ROOT)}")
