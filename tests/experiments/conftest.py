"""What the tests of experiments share."""

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def quick_papermill(tmp_path_factory):
    "Processes skip a parser of URLs that papermill never uses and that takes half of its start to import."
    folder = tmp_path_factory.mktemp("stubs")
    (folder / "rfc3987_syntax.py").write_text("raise ImportError\n")  # optional for jsonschema
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield
