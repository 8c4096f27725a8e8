"""Write README.md from nbs/index.ipynb: the same text, with links that hold from the root."""

import re
from pathlib import Path

from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]


def readme() -> str:
    "The front page as Markdown; links to notebooks and folders are relative to the root."
    text, _ = MarkdownExporter().from_filename(str(ROOT / "nbs/index.ipynb"))
    text = re.sub(r"\]\((?=[\w/]+\.ipynb\))", "](nbs/", text)
    return text.replace("](../", "](").strip() + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
