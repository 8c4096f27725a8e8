"""Names, messages and lessons use the terms of the field: words that were retired do not come back."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
RETIRED = [
    *["mend", "mends", "mended", "told", "kept", "judged", "ladder", "nobody"],
    *[
        "for oneself",
        "cannot be had",
        "without a word",
        "written whole",
        "less than nothing",
        "must not mind",
    ],
    *["stands in the way", "costs quality", "good to know", "the user's four"],
]
PATTERN = re.compile(rf"(?<![a-z])({'|'.join(RETIRED)})(?![a-z])", re.IGNORECASE)
TEXTS = [ROOT / "README.md", ROOT / "Makefile", *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")]
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))


def sources(path: Path) -> str:
    "What a person wrote in a file: all of a text, the cells of a notebook without their outputs."
    if path.suffix != ".ipynb":
        return path.read_text()
    return "\n".join(cell.source for cell in nbformat.read(path, 4).cells)


@pytest.mark.parametrize("path", [*TEXTS, *NOTEBOOKS], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_retired_word(path):
    found = [line for line in sources(path).splitlines() if PATTERN.search(line)]
    assert not found, "\n".join(found)
