"""The browser that looks at pages: that of the variable CHROMIUM, the machine's, or Playwright's own."""

import os
import shutil
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (  # Chromium has no sandbox for root, as in containers; and asks nobody on the network
    "--no-sandbox",
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
NONE = "No browser: `apt-get install chromium` or `.venv/bin/playwright install chromium` installs one."


def browser_path() -> str | None:
    "Path of the browser; None: there is none, or no Playwright to drive it."
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if named := os.environ.get("CHROMIUM"):
        if not shutil.which(named):
            raise FileNotFoundError(f"CHROMIUM={named}: no such program; name one, or unset CHROMIUM")
        return named
    if found := next(filter(None, map(shutil.which, NAMES)), None):
        return found
    with sync_playwright() as p:
        own = p.chromium.executable_path
    return own if Path(own).exists() else None


if __name__ == "__main__":
    found = browser_path()
    print(found or NONE)
    sys.exit(found is None)
