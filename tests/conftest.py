"""What all tests share."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    "Computed arrays are kept in a folder of the tests' own, also by processes that they start."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLACIER_NB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
