"""Small tile folders in the competition's layout, and changes to them."""

import warnings

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from glacier_nb.files.errors import TileError
from glacier_nb.landsat import BANDS, LABEL_CODES
from glacier_nb.tiles.read import describe, read_tiles

SIZE = 32
IDS = ("02_07", "02_08", "03_07")


def geo(k=0, crs="EPSG:32643"):
    """Tiles side by side."""
    return {"crs": crs, "transform": rasterio.Affine(30, 0, 567945 + 30 * SIZE * k, 0, -30, 3771855)}


def write(path, data, **profile):
    """Write (H, W) or (C, H, W) as GeoTIFF."""
    data = np.atleast_3d(data.T).T
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = dict(zip(("count", "height", "width"), data.shape, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", **{"dtype": data.dtype} | shape | profile) as f:
            f.write(data.astype(f.dtypes[0]))


def pixels(k):
    """Bands with a hole of nodata and a label of four codes, recognisable by tile."""
    bands = np.arange(5 * SIZE * SIZE, dtype="float32").reshape(5, SIZE, SIZE) + 1000 * (k + 1)
    bands[:, :8, :4] = 0
    label = np.zeros((SIZE, SIZE), np.uint8)
    label[:, 16:] = 85
    label[20:, 16:20] = 170
    label[30, 0:3] = 255
    return bands, label


def band_file(folder, band, tile="02_08"):
    """Path of a band file in the competition's layout."""
    return folder / f"Band{BANDS.index(band) + 1}" / f"{band}_{band}_masked_{tile}.tif"


def label_file(folder, tile="02_08"):
    """Path of a label in the competition's layout."""
    return folder / "label" / f"Y_output_resized_{tile}.tif"


def rewrite(path, change=lambda a: a, **profile):
    """Change the pixels or the profile of one file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as f:
            data, meta = f.read(), f.profile | profile
    path.unlink()
    data = change(data)
    meta = {k: meta[k] for k in ("dtype", "nodata", "crs", "transform")}
    write(path, data, **meta)


def put(value, where=np.s_[:, 25, 7]):
    """A change that sets some pixels."""

    def change(a):
        a[where] = value
        return a

    return change


def set_labels(folder, change=lambda a: a, **profile):
    """Change all labels."""
    for tile in IDS:
        rewrite(label_file(folder, tile), change, **profile)


def refusal(*words, folder, **kwargs):
    """`read_tiles` and `describe` both refuse, in the same words."""
    with pytest.raises(TileError) as e:
        read_tiles(folder, **kwargs)
    message = str(e.value)
    for word in (*words, ": found ", ". Expected ", ". To fix: "):
        assert str(word) in message, message
    with pytest.raises(TileError) as other:
        describe(folder, **kwargs)
    assert str(other.value) == message


def recode(*codes):
    """A change from 0/85/170/255 to other codes."""
    return lambda a: np.array(codes, dtype="float64")[np.searchsorted(LABEL_CODES, a)]
