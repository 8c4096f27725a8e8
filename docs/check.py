"""Look at the built site as a reader does.

First links and anchors, then every page in headless Chromium, wide and narrow, light and dark:

python docs/check.py                                        # all pages
python docs/check.py --pages index,start --screenshots shots # some, with pictures"""

import argparse
import asyncio
import os
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from api_pages import exported_names, front_door
from browser import NONE, OPTIONS, browser_path
from site_map import ROOT

SITE = ROOT / "_docs"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
TALL = 4000  # pixels of one output on a desktop that a reader has to scroll past
QUESTIONS = {  # within two clicks of the first page
    "how to use two T4": "howto/kaggle.html",
    "what interface_fraction does": "reference/parameters.html",
    "why a run with MCC 0.03 fails": "mcc_003.html",
    "how to map a Landsat scene": "howto/scenes.html",
}
SCRIPT = """() => {
  const page = document.documentElement, found = [];
  if (page.scrollWidth > page.clientWidth + 1) {
    const wide = [...document.querySelectorAll('main *')].filter((e) => {
      for (let p = e.parentElement; p; p = p.parentElement)
        if (getComputedStyle(p).overflowX !== 'visible') return p === page;
      return e.getBoundingClientRect().right > page.clientWidth + 1; });
    const first = wide.slice(0, 2).map((e) => e.tagName + '.' + e.className);
    found.push(`scrolls sideways: ${page.scrollWidth} of ${page.clientWidth} pixels: ` + first);
  }
  for (const image of document.images)
    if (image.complete && !image.naturalWidth) found.push('image without pixels: ' + image.src.slice(0, 80));
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  // relative luminance of WCAG 2.1
  const linear = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > .5) return c;
    }
    return [255, 255, 255];
  };
  const pale = new Set();
  for (const e of document.querySelectorAll('article *')) {
    if (e.closest('svg, math, [hidden], .headerlink') || !e.checkVisibility()) continue;
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))];
    if ((Math.max(a, b) + .05) / (Math.min(a, b) + .05) < 3)
      pale.add(`${e.tagName}.${e.className} '${e.textContent.trim().slice(0, 30)}'`);
  }
  if (pale.size) found.push('text hardly differs from its ground: ' + [...pale].slice(0, 3).join('; '));
  return found;
}"""
TALL_SCRIPT = f"""() => [...document.querySelectorAll('.cell_output > *')]
  .filter((e) => e.offsetHeight > {TALL})
  .map((e) => `output of ${{e.offsetHeight}} pixels: ` + e.textContent.trim().slice(0, 40))"""


class Links(HTMLParser):
    "Anchors of a page, and where its links and pictures lead."

    def __init__(self, text: str):
        super().__init__()
        self.anchors, self.links = {""}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        "Note one element."
        found = dict(attrs)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        link = found.get("href") if tag in ("a", "link") else found.get("src")
        if link and not link.startswith(("data:", "mailto:", "javascript:")):
            self.links.append(link)


def read_site() -> dict[str, Links]:
    "All pages by their path."
    files = [p for p in sorted(SITE.rglob("*.html")) if p.relative_to(SITE).parts[0] != "_static"]
    return {p.relative_to(SITE).as_posix(): Links(p.read_text(encoding="utf-8")) for p in files}


def destination(page: str, link: str) -> tuple[str, str] | None:
    "File and anchor that a link leads to; None for another site."
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    path = os.path.normpath(Path(page).parent / unquote(parts.path)) if parts.path else page
    return Path(path).as_posix(), unquote(parts.fragment)


def broken_links(site: dict[str, Links]) -> list[str]:
    "Links to files or anchors that do not exist."
    found = []
    for page, content in site.items():
        for link in content.links:
            goal = destination(page, link)
            if goal is None:
                continue
            file, anchor = goal
            missing = not (SITE / file).exists()
            if missing or (anchor and file in site and anchor not in site[file].anchors):
                found.append(f"{page}: the link {link} leads nowhere")
    return found


def missing_names() -> list[str]:
    "Exported names that objects.inv, by which other projects link to them, does not have."
    from sphinx.util.inventory import InventoryFile

    with (SITE / "objects.inv").open("rb") as f:
        names = {name for kind in InventoryFile.load(f, "", os.path.join).values() for name in kind}
    wanted = [f"{module}.{name}" for name, module in exported_names().items()]
    wanted += [f"glacier_nb.{name}" for name in front_door()]
    return [f"objects.inv lacks {name}" for name in wanted if name not in names]


def clicks(site: dict[str, Links]) -> dict[str, list[str]]:
    "The shortest way from the first page to the answer of each question, page by page."
    ways, queue = {"index.html": ["index.html"]}, ["index.html"]
    for page in queue:
        for link in site[page].links:
            goal = destination(page, link)
            if goal and goal[0] in site and goal[0] not in ways:
                ways[goal[0]] = [*ways[page], goal[0]]
                queue.append(goal[0])
    return {question: ways.get(answer, []) for question, answer in QUESTIONS.items()}


class Quiet(SimpleHTTPRequestHandler):
    "A web server that says nothing."

    def log_message(self, *args):
        "Nothing."


async def look(context, queue: list[str], base: str, shots: Path | None, found: list[str]) -> None:
    "Visit pages until none is left; one visit serves both sizes and both colours."
    tab = await context.new_page()
    now = [""]
    tab.on(
        "console",
        lambda m: m.type in ("error", "warning") and found.append(f"{now[0]}: console: {m.text[:200]}"),
    )
    tab.on("pageerror", lambda e: found.append(f"{now[0]}: script: {e}"))
    tab.on(
        "request",
        lambda r: (
            r.url.startswith((base, "data:")) or found.append(f"{now[0]}: asks the network for {r.url[:80]}")
        ),
    )
    while queue:
        now[0] = page = queue.pop()
        await tab.set_viewport_size(dict(zip(("width", "height"), SIZES["desktop"], strict=True)))
        await tab.goto(f"{base}/{page}", wait_until="load")
        found += [f"{page}: {text}" for text in await tab.evaluate(TALL_SCRIPT)]
        for size, (width, height) in SIZES.items():
            await tab.set_viewport_size({"width": width, "height": height})
            for theme in ("light", "dark"):
                await tab.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
                found += [f"{page} ({size}, {theme}): {text}" for text in await tab.evaluate(SCRIPT)]
                if shots:
                    name = page.removesuffix(".html").replace("/", "-")
                    await tab.screenshot(path=shots / f"{name}-{size}-{theme}.png")
    await tab.close()


async def search_works(context, base: str) -> list[str]:
    "The search of the site and that of the parameters, over HTTP and from the disk."
    found, tab = [], await context.new_page()
    for start in (base, SITE.as_uri()):
        await tab.goto(f"{start}/search.html?q=interface_fraction")
        try:
            await tab.wait_for_selector("#search-results li a", timeout=20000)
        except Exception as e:
            found.append(
                f"{start.split(':')[0]} search for interface_fraction finds nothing ({type(e).__name__})"
            )
    await tab.goto(f"{base}/reference/parameters.html")
    await tab.fill("#parameter-search", "interface")
    shown = await tab.locator("table.parameters tbody tr:visible").count()
    if not 1 <= shown <= 10:
        found.append(f"the search of the parameters for 'interface' shows {shown} rows")
    await tab.close()
    return found


async def browse(path: str, pages: list[str], shots: Path | None) -> list[str]:
    "What is wrong with pages in the browser."
    from playwright.async_api import async_playwright

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base, found = f"http://127.0.0.1:{server.server_port}", []
    async with async_playwright() as p:
        browser = await p.chromium.launch(executable_path=path, args=OPTIONS)
        context = await browser.new_context()
        await context.add_init_script("localStorage.mode = localStorage.theme = 'light'")
        queue = list(reversed(pages))
        await asyncio.gather(*(look(context, queue, base, shots, found) for _ in range(3)))
        found += await search_works(context, base)
        await browser.close()
    server.shutdown()
    return found


def main() -> int:
    "Check the site; the exit status is 1 when something was found."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", default="", help="pages without suffix, comma-separated; empty: all")
    parser.add_argument("--screenshots", type=Path, help="folder for pictures of the pages")
    options = parser.parse_args()
    site = read_site()
    found = broken_links(site) + missing_names()
    for question, way in clicks(site).items():
        print(f"{question}: {' → '.join(way)}")
        if not 1 <= len(way) <= 3:
            found.append(f"{question}: not within two clicks")
    named = [f"{name}.html" for name in options.pages.split(",") if name]
    pages = named or [p for p in site if p not in ("genindex.html", "search.html")]
    if options.screenshots:
        options.screenshots.mkdir(parents=True, exist_ok=True)
    browser = browser_path()
    if browser is None:
        print(f"The pages were not looked at. {NONE}")
    else:
        found += asyncio.run(browse(browser, pages, options.screenshots))
    print(*found, f"{len(site)} pages, {len(found)} problems.", sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
