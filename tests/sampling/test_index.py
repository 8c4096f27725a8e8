"""Indices of classes and interfaces against brute force, with holes, odd sizes and missing classes."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_cdt
from skimage.segmentation import find_boundaries

from glacier_nb.data.stats import BandStats
from glacier_nb.data.tileset import TileSet
from glacier_nb.landsat import BINARY_CLASSES, CLASSES, IGNORE
from glacier_nb.sampling.index import (
    InterfaceIndex,
    PixelIndex,
    SamplerError,
    _class_pair,
    _interface_pixels,
    _near_interface,
)
from glacier_nb.tiles.read import Tile

STATS = BandStats(tuple("abcde"), (0.0,) * 5, (1.0,) * 5)


def make_tile(name, seed=0, shape=(48, 64), classes=CLASSES):
    "A tile of blocks and noise: few lakes, holes, and ignored labels."
    rng = np.random.default_rng(seed)
    blocks = rng.choice(3, (shape[0] // 8 + 1, shape[1] // 8 + 1), p=(0.5, 0.3, 0.2))
    label = np.kron(blocks, np.ones((8, 8), int))[: shape[0], : shape[1]].astype(np.uint8)
    label[rng.random(shape) < 0.005] = 3
    label %= len(classes)
    label[rng.random(shape) < 0.05] = IGNORE
    bands = rng.normal(size=(5, *shape)).astype(np.float32)
    return Tile(name, bands, rng.random(shape) > 0.2, label, None, None, classes)


@pytest.fixture
def tiles():
    return [make_tile(f"t{k}", k, shape) for k, shape in enumerate([(48, 64), (300, 40), (80, 50)])]


@pytest.fixture
def tileset(tiles):
    return TileSet.build(tiles, STATS)


def touching(label, pair):
    "Pixels of one class with one of the other among their eight neighbours, one by one."
    found = np.zeros(label.shape, bool)
    for row, col in np.argwhere(np.isin(label, pair)):
        other = pair[0] if label[row, col] == pair[1] else pair[1]
        found[row, col] = (label[max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2] == other).any()
    return found


def test_index_lists_exactly_the_used_pixels_of_each_class(tiles, tileset):
    index = PixelIndex(tileset)
    for c in range(-1, 4):
        used = [t.valid & ((t.label != IGNORE) if c == -1 else (t.label == c)) for t in tiles]
        expected = np.concatenate([np.c_[np.full(u.sum(), i), np.argwhere(u)] for i, u in enumerate(used)])
        assert index.ends[-1, c] == len(expected)
        np.testing.assert_array_equal(index.locate(c, np.arange(len(expected))), expected)


@pytest.mark.parametrize("width", [1, 2, 3, 7])
@pytest.mark.parametrize("pair", [(1, 2), (0, 1), (3, 0)])
def test_interface_is_the_pixels_near_those_that_touch(tiles, pair, width):
    for tile in tiles:
        label = np.where(tile.valid, tile.label, IGNORE)
        touch = touching(label, pair)
        assert touch.any()
        near = distance_transform_cdt(~touch, "chessboard") < width
        np.testing.assert_array_equal(_near_interface(label, pair, width), near & np.isin(label, pair))


def test_width_one_is_the_inner_and_outer_boundary_of_scikit_image():
    label = np.kron(np.random.default_rng(0).integers(0, 2, (9, 11)), np.ones((5, 5), int)).astype(np.uint8)
    np.testing.assert_array_equal(_near_interface(label, (0, 1), 1), find_boundaries(label, connectivity=2))


def test_interface_does_not_cross_a_gap_or_use_unlabelled_pixels():
    label = np.array([[1, 1, IGNORE, 2, 2], [1, 1, 0, 2, 2]], np.uint8)
    assert not _near_interface(label, (1, 2), 9).any()
    label[1, 2] = 2
    np.testing.assert_array_equal(_near_interface(label, (1, 2), 9), label != IGNORE)


@pytest.mark.parametrize("width", [1, 3, 40])
def test_interface_index_lists_exactly_the_interface(tiles, tileset, width):
    interface = InterfaceIndex(tileset, ("glacier", "debris"), width)
    masks = [_near_interface(np.where(t.valid, t.label, IGNORE), (1, 2), width) for t in tiles]
    expected = np.concatenate([np.c_[np.full(m.sum(), i), np.argwhere(m)] for i, m in enumerate(masks)])
    np.testing.assert_array_equal(interface.locate(-1, np.arange(interface.ends[-1, -1])), expected)
    np.testing.assert_array_equal(interface.per_tile()[:, 0], [m.sum() for m in masks])


def test_interface_index_stores_eight_bytes_per_row(tileset):
    assert InterfaceIndex(tileset).ends.nbytes == 8 * (48 + 300 + 80)


def test_interface_does_not_depend_on_the_order_of_the_names(tileset):
    one, two = (InterfaceIndex(tileset, names) for names in (("lake", "background"), ("background", "lake")))
    np.testing.assert_array_equal(one.ends, two.ends)


def test_pair_is_given_or_chosen_by_the_classes():
    assert _class_pair(CLASSES) == (1, 2)
    assert _class_pair(BINARY_CLASSES) == (0, 1)
    assert _class_pair(CLASSES, ["lake", "glacier"]) == (3, 1)


@pytest.mark.parametrize(
    "names", [[], ["lake"], ["lake", "lake"], ["lake", "ice"], ["lake", "glacier", "debris"]]
)
def test_wrong_pairs_are_refused(names):
    with pytest.raises(SamplerError, match="expected two different ones of background"):
        _class_pair(CLASSES, names)
    with pytest.raises(SamplerError, match="interface_classes debris, lake are not allowed"):
        _class_pair(BINARY_CLASSES, ("debris", "lake"))


@pytest.mark.parametrize("width", [0, -1, 2.5, float("nan"), float("inf")])
def test_wrong_widths_are_refused(tileset, width):
    with pytest.raises(SamplerError, match="interface_width"):
        InterfaceIndex(tileset, width=width)


def test_interface_pixels_has_every_pair(tileset):
    found = _interface_pixels(tileset, 2)
    assert list(found) == [f"{a}-{b}" for a, b in combinations(CLASSES, 2)]
    assert found["debris-lake"] == InterfaceIndex(tileset, ("lake", "debris"), 2).ends[-1, 0]


def test_missing_interface_is_explained(tiles):
    label = np.zeros((48, 64), np.uint8)
    label[:10], label[20:30], label[40:] = 1, 2, IGNORE
    apart = TileSet.build([replace(tiles[0], label=label, valid=np.ones((48, 64), bool))], STATS)
    InterfaceIndex(apart, ("background", "debris")).check()
    with pytest.raises(SamplerError) as error:
        InterfaceIndex(apart).check()
    for part in (
        "of glacier and debris touch",
        "background 1280, glacier 640, debris 640, lake 0",
        "background-glacier (384), background-debris (768)",
        "interface_fraction to 0",
    ):
        assert part in str(error.value)
    plain = TileSet.build([replace(tiles[0], label=np.zeros((48, 64), np.uint8))], STATS)
    with pytest.raises(SamplerError, match=r"exist .*: none"):
        InterfaceIndex(plain).check()
