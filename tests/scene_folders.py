"""Small Landsat products and other scenes, and rasters of any kind."""

import json
import warnings

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

from glacier_nb.landsat import BANDS, REFLECTANCE, TEMPERATURE

ID = "LC08_L2SP_147036_20201031_20201106_02_T1"
SIZE = 24
PLACE = {"crs": "EPSG:32643", "transform": from_origin(567945, 3771855, 30, 30)}
NAMES = [f"{'ST' if band == 'B10' else 'SR'}_{band}" for band in BANDS]


def write(path, data, **profile):
    "One raster of (H, W) or (C, H, W)."
    data = data if data.ndim == 3 else data[None]
    shape = dict(zip(("count", "height", "width"), data.shape, strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", dtype=data.dtype, **PLACE | shape | profile) as f:
            f.write(data)
    return path


def numbers():
    "Five bands of snow and rock, with fill in the first three columns, and their quality band."
    rng = np.random.default_rng(0)
    sr = REFLECTANCE.dn(rng.uniform(0.1, 0.9, (4, SIZE, SIZE)))
    bands = np.rint([*sr, TEMPERATURE.dn(rng.uniform(250, 270, (SIZE, SIZE)))]).astype("uint16")
    quality = np.full((SIZE, SIZE), 21824, "uint16")
    bands[:, :, :3], quality[:, :3] = 0, 1
    quality[:4, 4:8], quality[4:8, 4:8], quality[8:12, 4:8] = 22280, 23888, 54596
    return bands, quality


def product(folder, name=ID, metadata=True, **profile):
    "A product folder."
    bands, quality = numbers()
    for k, band in enumerate(NAMES):
        write(folder / name / f"{name}_{band}.TIF", bands[k], **{"nodata": 0} | profile)
    place = {key: profile[key] for key in PLACE.keys() & profile.keys()}
    write(folder / name / f"{name}_QA_PIXEL.TIF", quality, nodata=1, **place)
    for other in ("SR_B1", "SR_B5", "ST_QA", "QA_RADSAT", "SR_QA_AEROSOL"):
        write(folder / name / f"{name}_{other}.TIF", quality)
    if metadata:
        contents = {"LANDSAT_PRODUCT_ID": name, "PROCESSING_LEVEL": "L2SP"}
        groups = {"LANDSAT_METADATA_FILE": {"PRODUCT_CONTENTS": contents}}
        (folder / name / f"{name}_MTL.json").write_text(json.dumps(groups))
    return folder / name
