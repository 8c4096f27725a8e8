"""Errors by circumstance: masks of a few pixels by hand, every pixel counted, tables that add up."""

from dataclasses import replace

import numpy as np
import pytest
from made_up import noise_tile
from rasterio.crs import CRS
from rasterio.transform import Affine

from glacier_nb.landsat import IGNORE, REFLECTANCE
from glacier_nb.metrics.causes import (
    _borders,
    _in_small_patches,
    _shadow,
    _smallest,
    _within,
    errors_by_cause,
)


def bright(size=48, **changes):
    "A sunlit tile without nodata: glacier in columns 24 and more."
    tile = noise_tile(shape=(size, size), nodata=0)
    bands = np.full((5, size, size), REFLECTANCE.dn(0.8), np.float32)
    label = np.zeros((size, size), np.uint8)
    label[:, size // 2 :] = 1
    return replace(tile, bands=bands, label=label, **changes)


def test_shadow_is_dark_in_all_bands_in_either_coding():
    tile = bright(4)
    values = np.full((5, 4, 4), 0.8)
    values[:, 0] = 0.05
    values[3, 0, 0] = 0.2  # sunlit rock
    values[:4, 1, 1] = 0.31, 0.29, 0.29, 0.0
    expected = np.zeros((4, 4), bool)
    expected[0, 1:] = expected[1, 1] = True
    for bands in (values, REFLECTANCE.dn(values)):
        np.testing.assert_array_equal(_shadow(replace(tile, bands=bands.astype(np.float32))), expected)


def test_borders_have_two_sides_and_none_to_ignored_pixels():
    label = np.array([[0, 0, 1, 1, IGNORE, 0]], np.uint8)
    assert _borders(label).tolist() == [[False, True, True, False, False, False]]
    assert _within(_borders(label), 1).tolist() == [[True, True, True, True, False, False]]
    assert not _within(np.zeros((3, 3), bool), 5).any()


def test_small_patches_of_any_class_and_diagonal_neighbours():
    label = np.zeros((5, 6), np.uint8)
    label[0, 0] = label[1, 1] = 1  # one patch of two
    label[3:, 2:] = 2
    assert np.argwhere(_in_small_patches(label, 3)).tolist() == [[0, 0], [1, 1]]
    assert _in_small_patches(label, 9).sum() == 10
    assert not _in_small_patches(label, 2).any()


def test_the_smallest_object_is_one_on_the_ground():
    tile = bright(8)
    assert _smallest(tile) == pytest.approx(50_000 / 900), "30 m where the tile does not say"
    ten = replace(tile, crs=CRS.from_epsg(32643), transform=Affine(10, 0, 5e5, 0, -10, 3.66e6))
    assert _smallest(ten) == pytest.approx(500, rel=2e-3)


def test_each_error_is_counted_where_it_lies():
    tile = bright()
    tile.label[20, 2] = IGNORE
    tile.valid[0, :3] = False
    pred = tile.label.copy()
    pred[pred == IGNORE] = 0
    pred[20, 22:24] = 1  # false positives at the outline
    pred[20, 30] = 0  # a false negative inside
    pred[24, 44] = 2  # a wrong class, at the edge of the tile, and a small object
    pred[0, 0] = 3  # on nodata: counts as background
    table = errors_by_cause([tile], {tile.id: pred})
    assert table.loc["all"].tolist() == [48 * 48 - 4, 2, 1, 1]
    assert table.loc["outline"].tolist() == [4 * 48, 2, 0, 0]
    assert table.loc["tile edge", "wrong class"] == 1
    assert table.loc["small object"].tolist() == [1, 0, 0, 1]
    assert table.loc["none of these"].tolist() == [16 * (16 - 4), 0, 1, 0]
    assert table.loc["shadow", "pixels"] == 0
    assert table.loc["near nodata", "pixels"] == 2 + 4 + 3
    assert table.dtypes.eq(np.int64).all()


def test_tables_add_up_and_classes_that_are_missing_have_no_row():
    tiles = [noise_tile("a", 0, (40, 40)), noise_tile("b", 1, (36, 44))]
    maps = {t.id: np.roll(t.label, 1, 0) for t in tiles}
    both = errors_by_cause(tiles, maps)
    assert both.equals(sum(errors_by_cause([t], maps) for t in tiles))
    assert {"debris", "lake"} < set(both.index)
    binary = noise_tile("c", 2, classes=("background", "glacier"))
    assert not {"debris", "lake"} & set(errors_by_cause([binary], {"c": binary.label}).index)


def test_what_cannot_be_counted_is_named():
    tile = bright()
    for tiles, maps, message in (
        ([], {}, "found no tile"),
        ([tile], {}, f"no map of {tile.id}"),
        ([replace(tile, label=None)], {tile.id: tile.label}, f"no label or no map of {tile.id}"),
        ([tile], {tile.id: tile.label[1:]}, r"found a map \(47, 48\), expected the shape \(48, 48\)"),
    ):
        with pytest.raises(ValueError, match=message):
            errors_by_cause(tiles, maps)
