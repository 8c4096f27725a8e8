"""The first page of `make lab`, in a browser."""

import re
from urllib.parse import unquote, urlsplit

from lab_page import TAB

DOCUMENT = "#jp-main-dock-panel .lm-DockPanel-widget:not(.lm-mod-hidden)"


def test_the_first_page_leads_to_notebooks_and_documents(lab, project):
    lab.open()
    assert lab.tab == "lab/nbs/index.ipynb"
    assert not lab.page.locator(f"{TAB}.jp-mod-dirty").count(), "who only looks is not asked to save"
    links = {}
    for link in lab.panel.locator(".jp-RenderedMarkdown a:not([href^='#'])").all():
        url = link.get_attribute("href")
        if url.startswith(lab.url):
            links[unquote(urlsplit(url).path).removeprefix("/files/")] = link
    missing = [path for path in links if not (project / path).is_file()]
    assert not missing
    assert len(links) > 10
    for path, heading in {"lab/nbs/train.ipynb": "train", "lab/docs/start.md": "Start"}.items():
        links[path].click()
        lab.page.locator(f"{DOCUMENT} h1", has_text=re.compile(f"^{heading}")).wait_for()
        assert lab.tab == path
        lab.close_tab()
    assert len(lab.page.context.pages) == 1
