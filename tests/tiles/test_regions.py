"""Regions as folds: how far the sides are apart, on grids, on the competition's layout, on few tiles."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from affine import Affine
from made_up import noise_tile

from glacier_nb.landsat import IGNORE
from glacier_nb.tiles.regions import _check_left, _strips, region_folds, region_split
from glacier_nb.tiles.splits import SplitError, spatial_folds, split, tile_boxes

SIDE = 40
ROWS = {2: (7, 8), 3: (7, 9, 11), 4: (8, 9, 10), 5: (8, 9, 10)}
ROWS |= {6: (9, 11, 12), 7: (10, 11, 13), 8: (12, 13, 14)}


def placed(row, col):
    "A tile of noise on a grid, without a coordinate system."
    tile = noise_tile(f"{row:02}_{col:02}", 100 * row + col, (SIDE, SIDE))
    return replace(tile, transform=Affine(30, 0, 30 * SIDE * col, 0, -30, -30 * SIDE * row))


def grid(rows, cols):
    return [placed(r, c) for r, c in product(range(rows), range(cols))]


def gap(tile, other):
    "Pixels between the used labels of a tile and another tile, measured one by one."
    (top, left, *_), (up, west, down, east) = tile_boxes([tile, other])
    rows, cols = np.nonzero(tile.valid & (tile.label != IGNORE))
    high = np.maximum(up - top - rows - 1, rows + top - down)
    wide = np.maximum(west - left - cols - 1, cols + left - east)
    return np.maximum(high, wide).min()


@pytest.mark.parametrize(("rows", "cols", "n"), [(6, 5, 5), (5, 5, 5), (1, 9, 3), (9, 2, 4)])
def test_training_labels_lie_a_whole_tile_from_the_region(rows, cols, n):
    tiles = grid(rows, cols)
    for fold in range(n):
        sides = region_split(tiles, fold, n)
        sides.check()
        assert sides.regions
        assert sides.buffer == SIDE
        assert min(gap(t, v) for t in sides.train for v in sides.val) >= SIDE
        ids = [t.id for t in (*sides.train, *sides.val)]
        assert sorted(ids + sides.dropped) == [t.id for t in tiles]
        assert 0 < sides.left < 1


def test_the_competitions_band_leaves_tiles_to_train_on():
    tiles = [placed(row, col) for row, cols in ROWS.items() for col in cols]
    sides = [region_split(tiles, k, 5) for k in range(5)]
    assert min(len(s.train) for s in sides) >= 9
    assert sorted(t.id for s in sides for t in s.val) == [t.id for t in tiles]
    assert {len(split(tiles, k, 5).train) for k in range(5)} == {16}


def test_folds_depend_neither_on_order_nor_on_the_source_of_the_place():
    tiles = grid(6, 4)
    folds = region_folds(tiles, 4)
    assert region_folds(tiles[::-1], 4) == folds
    assert region_folds([replace(t, transform=Affine.identity()) for t in tiles], 4) == folds
    assert folds["00_00"] == 0


def test_a_class_in_one_tile_is_left_where_it_can_be():
    "Every fold but its own trains on it: a cut that surrounds the tile is worse than one that does not."
    tiles = [replace(t, label=t.label % 3) for t in grid(6, 6)]
    tiles[14].label[:] = 3
    sides = [region_split(tiles, k, 4) for k in range(4)]
    without = [k for k, s in enumerate(sides) if not sum(t.class_counts() for t in s.train)[3]]
    assert region_folds(tiles, 4)["02_02"] in without
    assert len(without) < 4


def test_strips_are_whole_lines():
    assert _strips(np.array([0.0, 0, 2, 2, 2, 4, 6]), 3).tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert _strips(np.arange(5.0), 5).tolist() == [0, 1, 2, 3, 4]
    assert _strips(np.array([0.0] * 9 + [2, 4]), 3).tolist() == [0] * 9 + [1, 2]
    assert _strips(np.zeros(4), 2) is None


def test_too_few_tiles_for_regions_and_the_fix_works():
    three = grid(3, 3)
    with pytest.raises(SplitError, match=r"3 regions of 9 tiles cannot lie a whole tile \(40 pixels\)") as e:
        region_split(three, 0, 3)
    assert e.value.fix == 'set split = "blocks"'
    split(three, 0, 3).check()
    with pytest.raises(SplitError) as e:
        _check_left(grid(4, 4), False, 7)
    n = int(e.value.fix.split("n_folds = ")[1].split(",")[0])
    assert all(region_split(grid(4, 4), k, n).train for k in range(n))


def test_tiles_without_a_place_get_one_fix_that_works():
    tiles = grid(4, 4)
    nameless = [replace(t, id=f"img{k:02}", transform=Affine.identity()) for k, t in enumerate(tiles)]
    for cut in (region_folds, spatial_folds):
        with pytest.raises(SplitError, match="no georeference: img00, img01") as e:
            cut(nameless, 4)
        assert e.value.fix == "rename the files by row and column on their grid, such as 02_07"
        cut([replace(t, id=own.id) for t, own in zip(nameless, tiles, strict=True)], 4)
        mixed = [nameless[0], *tiles[1:]]
        with pytest.raises(SplitError, match=r"no georeference: img00\. Expected every tile") as e:
            cut(mixed, 4)
        assert e.value.fix.startswith("write the transform of each tile into its files")
        cut([replace(nameless[0], transform=tiles[0].transform), *tiles[1:]], 4)


def test_nothing_held_out_needs_no_place():
    tiles = [replace(t, id=f"img{k}", transform=Affine.identity()) for k, t in enumerate(grid(2, 2))]
    for sides in (split(tiles, None), region_split(tiles, None)):
        sides.check()
        assert (len(sides.train), sides.val, sides.left, sides.dropped, sides.folds) == (4, [], 1, [], {})
    assert (split(tiles, None).buffer, region_split(tiles, None).buffer) == (32, SIDE)
    with pytest.raises(SplitError, match="without a label cannot be split: img1"):
        split([tiles[0], replace(tiles[1], label=None)], None)


def test_small_tiles_keep_the_buffer_of_blocks():
    assert region_split([noise_tile(str(k), k, (8, 8)) for k in range(3)], None).buffer == 32
