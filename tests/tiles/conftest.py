"""A valid tile folder, as it is and to be changed."""

import shutil

import pytest
from tile_folders import IDS, band_file, geo, label_file, pixels, write

from glacier_nb.landsat import BANDS
from glacier_nb.tiles.read import read_tiles


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """A valid folder in the competition's layout, which no test changes."""
    path = tmp_path_factory.mktemp("original")
    for k, tile in enumerate(IDS):
        bands, label = pixels(k)
        for band, dn in zip(BANDS, bands, strict=True):
            write(band_file(path, band, tile), dn, nodata=0, **geo(k))
        write(label_file(path, tile), label.astype("float32"), nodata=0, **geo(k))
    return path


@pytest.fixture(scope="session")
def original_tiles(original):
    """What that folder holds."""
    return read_tiles(original)


@pytest.fixture
def folder(original, tmp_path):
    """A copy of the valid folder, to be changed."""
    return shutil.copytree(original, tmp_path / "tiles")
