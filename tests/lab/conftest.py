"""One JupyterLab, as `make lab` starts it, and one browser for all tests of this folder."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
from browser import NONE, OPTIONS, browser_path
from lab_page import LabPage
from small_projects import ROOT, small_project

from glacier_nb.demo.tiles import cached_demo

PATIENCE = 300  # seconds for one thing to happen on a busy machine; nothing here is timed
SMALL = {
    "run": "small",
    "trial": True,
    "n_folds": 3,
    "include_glcm": False,
    "encoder": "tu-test_resnet",
    "encoder_weights": None,
}


@pytest.fixture(scope="session")
def browser(pytestconfig):
    "Chromium without a window."
    path = browser_path()
    if path is None:
        (pytest.fail if pytestconfig.getoption("need_browser") else pytest.skip)(NONE)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=path, args=OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    "A new project with nine small tiles and nothing else; its lab/ is what `make lab` copies from this one."
    return small_project(
        tmp_path_factory.mktemp("lab") / "project", tiles=cached_demo(n_tiles=9, size=96, seed=3)
    )


def wait_for_server(process: subprocess.Popen, folder: Path, log: Path) -> str:
    "The address that a server has written to its runtime folder, once it answers."
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        try:
            (found,) = folder.glob("jpserver-*.json")
            url = json.loads(found.read_text())["url"]
            with urlopen(f"{url}api"):
                return url
        except (ValueError, OSError):
            time.sleep(0.1)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()}")


@pytest.fixture(scope="session")
def server(project, browser, tmp_path_factory):
    "Address of a JupyterLab that knows nothing of the user's own settings."
    home = tmp_path_factory.mktemp("jupyter")
    own = {f"JUPYTER_{name}_DIR": str(home / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"IPYTHONDIR": str(home / "ipython"), "JUPYTER_CONFIG_PATH": ""}
    own["PYTHONPATH"] = os.pathsep.join((str(ROOT), os.environ["PYTHONPATH"]))
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTERLAB_", "JPY_"))} | own
    options = ["--no-browser", "--allow-root", "--port=0", "--ip=127.0.0.1", "--IdentityProvider.token="]
    command = [sys.executable, ROOT / "docs/lab.py", "--root", project, *options]
    log = home / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=env, stdout=file, stderr=file, start_new_session=True)
    try:
        yield wait_for_server(process, home / "RUNTIME", log)
    finally:
        process.terminate()  # ends its kernels, too
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def new_lab(browser, server, project, tmp_path_factory):
    "Makes a new window of the browser, which ends with a picture in the folder of the tests."

    @contextmanager
    def opened():
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        context.set_default_timeout(1000 * PATIENCE)
        page = LabPage(context.new_page(), server, project)
        try:
            yield page
            assert page.complaints == []
        finally:
            page.page.screenshot(path=tmp_path_factory.mktemp("page") / "page.png")
            context.close()

    return opened


@pytest.fixture
def lab(new_lab):
    "A new window of the browser."
    with new_lab() as page:
        yield page


@pytest.fixture(scope="session")
def trained(new_lab, project):
    "nbs/train.ipynb, run by hand: what its page showed, what was saved, and files that are new in the root."
    before = {path.name for path in project.iterdir()}
    with new_lab() as lab:
        lab.open("lab/nbs/train.ipynb")
        lab.set_parameters(**SMALL)
        seen = lab.run_all()
        return seen, lab.save(), {path.name for path in project.iterdir()} - before
