"""Tiles and confusion matrices of noise, for tests where their content teaches nothing."""

import numpy as np
from rasterio.transform import Affine

from glacier_nb.landsat import CLASSES
from glacier_nb.tiles.read import Tile


def noise_tile(
    name: str = "00_00",
    seed: int = 0,
    shape: tuple[int, int] = (40, 56),
    nodata: float = 0.2,
    classes: tuple[str, ...] = CLASSES,
) -> Tile:
    "A tile of noise, a fraction of it nodata."
    rng = np.random.default_rng(seed)
    valid = rng.random(shape) > nodata
    bands = rng.normal(20000, 4000, (5, *shape)).astype(np.float32) * valid
    label = rng.integers(0, len(classes), shape).astype(np.uint8)
    return Tile(name, bands, valid, label, None, Affine.identity(), classes)


def random_confusions(tiles: int, classes: int = 3, seed: int = 0) -> np.ndarray:
    "Confusion matrices (tiles, classes, classes) whose rows sum to 100."
    rng = np.random.default_rng(seed)
    return np.stack(
        [rng.multinomial(100, rng.dirichlet([4, *[1] * (classes - 1)]), classes) for _ in range(tiles)]
    )
