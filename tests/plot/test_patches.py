"""Close-ups of patches: windows around them, outlines, titles, what is refused."""

from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_up import noise_tile
from rasterio.crs import CRS
from rasterio.transform import Affine

from glacier_nb.plot.patches import _wide, _window, show_patches
from glacier_nb.prediction.label_check import LabelCheck

mpl.use("Agg")
CLASSES = ("background", "glacier")


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def check():
    "Two patches: one that the label lacks, one that it adds."
    tile = noise_tile("03_04", 0, (80, 90), 0.1, CLASSES)
    truth = np.zeros(tile.shape, int)
    truth[:, :40] = 1
    label = truth.astype(np.uint8)
    label[10:20, 10:20], label[60:66, 70:80] = 0, 1
    place = Affine(30, 0, 5e5, 0, -30, 3.8e6)
    tile = replace(tile, label=label, crs=CRS.from_epsg(32643), transform=place)
    probs = np.where(np.arange(2)[:, None, None] == truth, 0.95, 0.05)
    probs[0, ~tile.valid], probs[1, ~tile.valid] = 1, 0
    return LabelCheck.of([tile], {"03_04": probs})


def test_a_window_holds_its_patch_and_lies_inside_the_tile():
    numbers = np.zeros((80, 90), np.int32)
    numbers[0:4, 86:90], numbers[30:60, 10:80] = 1, 2
    for rank in (1, 2):
        rows, cols = _window(numbers, rank)
        assert (numbers[rows, cols] == rank).sum() == (numbers == rank).sum()
        assert 0 <= rows.start < rows.stop <= 80
        assert 0 <= cols.start < cols.stop <= 90
    assert [s.stop - s.start for s in _window(numbers, 1)] == [48, 48]
    assert [s.stop - s.start for s in _window(numbers, 2)] == [80, 90]


def test_a_row_says_where_what_and_how_sure(check):
    fig = show_patches(check)
    titles = [ax.get_title() for ax in fig.axes[:8]]
    assert titles[:4] == [
        "1: 03_04, 1.4 km wide",
        "label: background",
        "map: glacier (0.95)",
        f"not in label, {check.patches['km2'][1]:.2f} km²",
    ]
    assert titles[5:7] == ["label: glacier", "map: background (0.95)"]
    plain, label = fig.axes[0], fig.axes[1]
    assert not plain.collections, "nothing is drawn over the first image"
    assert label.collections


def test_some_ranks_and_what_is_refused(check):
    assert show_patches(check, [2], kind="swir").axes[0].get_title().startswith("2: ")
    for ranks, words in (([0], "no patch 0"), ([1, 3], "no patch 3"), (0, "no patch to show")):
        with pytest.raises(ValueError, match=f"{words}, expected ranks from 1 to 2"):
            show_patches(check, ranks)


def test_the_width_of_a_window_without_metres_is_in_pixels(check):
    tile = check.tiles[0]
    assert _wide(tile, 50) == "1.5 km"
    assert _wide(replace(tile, crs=CRS.from_epsg(4326)), 50) == "50 pixels"
    assert _wide(replace(tile, crs=None), 50) == "50 pixels"
