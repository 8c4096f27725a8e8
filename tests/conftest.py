"""What all tests share: their order, a cache, signals, the loopback interface."""

import gc
import json
import multiprocessing
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
from few_trees import few_trees

sys.modules.setdefault("rfc3987_syntax", None)  # see `quick_imports`
SECONDS = Path(__file__).with_name("seconds.json")  # of each group of tests, see `group_of`


def pytest_addoption(parser):
    parser.addoption("--write-seconds", action="store_true", help=f"write {SECONDS.name} anew after the run")
    parser.addoption(
        "--need-browser", action="store_true", help="tests in a browser fail where there is none, not skipped"
    )


def group_of(nodeid: str) -> str:
    "What runs as a whole on one worker: a notebook, a test file, or all that share a browser."
    file, _, name = nodeid.partition("::")
    if file.startswith("tests/lab/"):
        return "tests/lab"
    return name if name.startswith("test_notebook[") else file


def pytest_collection_modifyitems(items):
    "The slowest group first, so that no core is idle at the end."
    seconds = json.loads(SECONDS.read_text())
    items.sort(key=lambda item: -seconds.get(group_of(item.nodeid), 1))


def pytest_collection_finish():
    "The garbage collector leaves out what was imported and collected, which makes its passes cheap."
    gc.collect()
    gc.freeze()


def pytest_xdist_make_scheduler(config, log):
    "Workers take whole groups, in the order of the items."
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return GroupScheduling(config, log)


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("write_seconds"):
        seconds = Counter()
        for phase in ("passed", ""):  # calls; set-ups and clean-ups
            for report in terminalreporter.getreports(phase):
                seconds[group_of(report.nodeid)] += getattr(report, "duration", 0)
        slow = {group: round(value) for group, value in seconds.most_common() if value >= 1}
        SECONDS.write_text(json.dumps(slow, indent=1) + "\n")


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    "Computed arrays and demo tiles are cached in a folder of the tests' own, by all workers together."
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLACIER_NB_CACHE", str(folder))
        yield


@pytest.fixture(autouse=True, scope="module")
def quick_baselines(request):
    "Only modules with `WHOLE_BASELINES` need more than a few trees."
    with pytest.MonkeyPatch.context() as patch:
        if not getattr(request.module, "WHOLE_BASELINES", False):
            few_trees(patch)
        yield


@pytest.fixture(autouse=True, scope="module")
def unmoved(pytestconfig):
    "No module of tests leaves its worker in another folder than it found it in."
    before = Path.cwd()
    yield
    assert Path.cwd() == before == pytestconfig.invocation_params.dir


@pytest.fixture(autouse=True, scope="session")
def quick_imports(tmp_path_factory):
    "Processes skip a parser of URLs, optional for nbformat, that takes seconds to import."
    folder = tmp_path_factory.mktemp("stubs")
    (folder / "rfc3987_syntax.py").write_text("raise ImportError\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield


@pytest.fixture
def interruptible():
    "Python's own answer to SIGINT, also where a background job inherits that it is ignored."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="session")
def loopback():
    "Processes find each other on the machine itself, whatever its name is."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        yield


@pytest.fixture(scope="session")
def run_files():
    "The names in the folder of a finished run."
    files = {"config.json", "splits.json", "history.jsonl", "model.pt", "last.pt", "metrics.json"}
    return files | {".lock", "figures"}


@pytest.fixture(autouse=True, scope="session")
def fork_server():
    "A server that has imported everything forks a process in milliseconds; a new interpreter takes seconds."
    modules = ["glacier_nb.experiments.command", "glacier_nb.experiments.train", "cut_runs"]
    modules += ["glacier_nb.plot.curves", "nbdev.test", "sklearn.ensemble"]
    multiprocessing.set_forkserver_preload(modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            multiprocessing, "set_forkserver_preload", lambda modules: None
        )  # `run_ranks` needs fewer
        yield


@pytest.fixture(scope="module")
def forked_ranks():
    "`launch` forks its processes from that server."
    from glacier_nb.parallel import launch

    def forked(*args, start_method):
        return start_processes(*args, start_method="forkserver")

    start_processes = launch.start_processes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "start_processes", forked)
        yield
