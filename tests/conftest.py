"""What all tests share."""

import multiprocessing
import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    "Computed arrays are cached in a folder of the tests, also by processes that they start."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLACIER_NB_CACHE", str(tmp_path_factory.mktemp("cache")))
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
    files = {"config.json", "splits.json", "history.jsonl", "best.pt", "last.pt", "metrics.json"}
    return files | {".lock", "figures"}


@pytest.fixture(autouse=True, scope="session")
def fork_server():
    "A server that has imported everything forks a process in milliseconds; a new interpreter takes seconds."
    from glacier_nb.parallel.ranks import PRELOAD

    PRELOAD.append("glacier_nb.experiments.train")
    multiprocessing.set_forkserver_preload(PRELOAD)


@pytest.fixture(scope="module")
def forked_ranks():
    "`launch` forks its processes from that server."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glacier_nb.parallel.launch.START_METHOD", "forkserver")
        yield
