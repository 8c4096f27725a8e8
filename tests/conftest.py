"""What all tests share."""

import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    "Computed arrays are kept in a folder of the tests' own, also by processes that they start."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLACIER_NB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def interruptible():
    "Python's own answer to SIGINT, also where a background job inherits that it is ignored."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
