"""JupyterLab in a browser: what a person does there, and what the page then shows."""

import re
from pathlib import Path

import nbformat

TAB = "#jp-main-dock-panel .lm-TabBar-tab.jp-mod-current"
PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"
# what appears in the outputs of a notebook while it runs: text -> how often at once at most
WATCH = """(panel) => {
  const seen = window.seen = {bars: [], curves: [], most: 0};
  const note = (list, text) => text && list.at(-1) !== text && list.push(text);
  new MutationObserver(() => {
    for (const area of panel.querySelectorAll('.jp-OutputArea')) {
      const lines = [...area.querySelectorAll('pre')].map((e) => e.textContent);
      const bars = lines.filter((text) => /\\d+%\\|/.test(text));
      bars.forEach((text) => note(seen.bars, text));
      const curves = [...area.querySelectorAll('svg[role=img]')].map((e) => e.getAttribute('aria-label'));
      curves.forEach((text) => note(seen.curves, text));
      seen.most = Math.max(seen.most, bars.length, curves.length);
    }
  }).observe(panel, {subtree: true, childList: true, characterData: true, attributes: true});
}"""
RED = "[data-mime-type='application/vnd.jupyter.stderr']"  # warnings and tracebacks
# the last code cell has shown something, or one has warned or failed
ENDED = f"""(panel) => panel.querySelector("{RED}")
  || [...panel.querySelectorAll('.jp-CodeCell')].at(-1).querySelector('.jp-OutputArea-output')"""


class LabPage:
    "A window of the browser on a JupyterLab; `complaints` are errors of scripts and calls of the network."

    def __init__(self, page, url: str, root: Path):
        self.page, self.url, self.root, self.complaints = page, url, root, []
        page.on("pageerror", lambda e: self.complaints.append(f"script: {e}"))
        page.on("request", self.note_request)

    def note_request(self, request) -> None:
        "Nothing is asked of another machine."
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.complaints.append(f"asks the network for {request.url}")

    def open(self, path: str = "") -> None:
        "Open a file in a JupyterLab of its own; by default the first page."
        self.page.goto(f"{self.url}lab/workspaces/{Path(path).stem}/tree/{path}" if path else self.url)
        self.wait_for_notebook()

    @property
    def panel(self):
        "The notebook that is shown."
        return self.page.locator(PANEL)

    @property
    def tab(self) -> str:
        "Path of the document that is shown, from the root of the server."
        title = self.page.locator(f"{TAB}[title*='Path: ']").get_attribute("title")
        return re.search(r"^Path: (.+)$", title, flags=re.M)[1]

    def wait_for_notebook(self) -> None:
        "Until its first heading is shown and its kernel is ready."
        self.panel.locator("h1").first.wait_for()
        self.page.locator(".jp-StatusBar-TextItem").get_by_text("| Idle").wait_for()

    def menu(self, name: str, item: str) -> None:
        "Choose from a menu."
        self.page.locator(".lm-MenuBar-itemLabel").get_by_text(name, exact=True).click()
        self.page.locator(".lm-Menu-itemLabel").get_by_text(item, exact=True).click()

    def close_tab(self) -> None:
        "Close the document that is shown."
        self.menu("File", "Close Tab")

    def set_parameters(self, **values) -> None:
        "Change lines of the first code cell, and type the new text there."
        cells = nbformat.read(self.root / self.tab, 4).cells
        text = next(cell.source for cell in cells if cell.cell_type == "code")
        for name, value in values.items():
            text, found = re.subn(rf"^{name} = .+?(?=  #|$)", f"{name} = {value!r}", text, flags=re.M)
            assert found == 1, name
        self.panel.locator(".jp-CodeCell .cm-content").first.click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(text)

    def run_all(self) -> dict:
        "Run all cells, from the menu, without warnings; the texts of bars and curves, each when it changed."
        self.panel.evaluate(WATCH)
        self.menu("Run", "Run All Cells")
        self.page.wait_for_function(f"() => ({ENDED})(document.querySelector('{PANEL}'))")
        assert self.panel.locator(RED).all_text_contents() == []
        return self.page.evaluate("window.seen")

    def save(self) -> nbformat.NotebookNode:
        "Save the notebook, and what the file then holds."
        self.menu("File", "Save Notebook")
        self.page.locator(f"{TAB}:not(.jp-mod-dirty)").wait_for()
        return nbformat.read(self.root / self.tab, 4)
