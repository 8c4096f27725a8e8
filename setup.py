"""Build the package from the metadata in settings.ini, where each fact stands once."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser()
parser.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
meta = parser["DEFAULT"]
low, high = (tuple(map(int, meta[key].split("."))) for key in ("min_python", "max_python"))

setup(
    name=meta["lib_name"],
    version=meta["version"],
    description=meta["description"],
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=meta["author"],
    license=meta["license"],
    keywords=meta["keywords"].split(),
    python_requires=f">={low[0]}.{low[1]},<{high[0]}.{high[1] + 1}",
    packages=find_packages(include=[meta["lib_name"], f"{meta['lib_name']}.*"]),
    entry_points={"console_scripts": meta["console_scripts"].split()},
    install_requires=meta["requirements"].split(),
    extras_require={
        name: meta[f"{name}_requirements"].split() for name in ("dask", "stac", "dev", "docs", "bench")
    },
)
