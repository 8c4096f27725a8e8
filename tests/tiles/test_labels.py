"""Label codes: each folder is read correctly or refused with a helpful message."""

import shutil

import numpy as np
import pytest
from tile_folders import geo, label_file, pixels, put, recode, refusal, rewrite, set_labels, write

from glacier_nb.files.errors import TileError
from glacier_nb.landsat import BINARY_CLASSES, CLASSES, IGNORE
from glacier_nb.tiles.index import TileFiles
from glacier_nb.tiles.labels import LabelCodes
from glacier_nb.tiles.read import describe, read_raster, read_tiles


@pytest.mark.parametrize(
    ("disk", "classes", "inside"),
    [
        ((0, 85, 170, 255), "auto", (0, 1, 2, 3)),
        ((0, 85, 170, 255), "four", (0, 1, 2, 3)),
        ((0, 85, 170, 255), "binary", (0, 1, 1, 0)),
        ((0, 85, 85, 85), "auto", (0, 1, 1, 1)),
        ((0, 1, 2, 3), "auto", (0, 1, 2, 3)),
        ((0, 1, 2, 3), "four", (0, 1, 2, 3)),
        ((0, 1, 2, 3), "binary", (0, 1, 1, 0)),
        ((0, 255, 255, 0), "auto", (0, 1, 1, 0)),
        ((0, 255, 255, 0), "binary", (0, 1, 1, 0)),
        ((0, 1, 1, 0), "auto", (0, 1, 1, 0)),
        ((0, 1, 1, 0), "four", (0, 1, 1, 0)),
        ((0, 1, 1, 0), "binary", (0, 1, 1, 0)),
        ((0, 0, 0, 255), "four", (0, 0, 0, 3)),
        ((0, 0, 0, 0), "auto", (0, 0, 0, 0)),
        ((0, 0, 0, 0), "binary", (0, 0, 0, 0)),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_codes(folder, original_tiles, disk, classes, inside, dtype):
    set_labels(folder, recode(*disk), dtype=dtype)
    tiles = read_tiles(folder, classes)
    two = classes == "binary" or (classes == "auto" and disk in ((0, 255, 255, 0), (0, 1, 1, 0)))
    for a, b in zip(original_tiles, tiles, strict=True):
        np.testing.assert_array_equal(np.array(inside)[a.label], b.label)
        assert b.classes == (BINARY_CLASSES if two else CLASSES)


def test_the_folder_decides_not_the_tile(folder):
    """A tile with nothing but a lake, in a four-class folder, read alone or with the others."""
    rewrite(label_file(folder), lambda a: np.where(a == 255, 255, 0))
    for tiles in (read_tiles(folder), read_tiles(folder, ids=["02_07", "02_08"])):
        assert np.unique(tiles[1].label).tolist() == [0, 3]
    [alone] = read_tiles(folder, ids=["02_08"])
    assert np.unique(alone.label).tolist() == [0, 3]


def test_binary_phase_read_as_four(folder):
    set_labels(folder, recode(0, 255, 255, 255))
    refusal("255 on 50.3% of all pixels", "3 of 3 files", 'classes="binary"', folder=folder, classes="four")
    assert read_tiles(folder)[0].classes == BINARY_CLASSES


@pytest.mark.parametrize("classes", ["auto", "four", "binary"])
def test_phases_mixed(folder, classes):
    rewrite(label_file(folder), recode(0, 255, 255, 255))
    refusal("1 of 3 files", "separate folders", folder=folder, classes=classes)


@pytest.mark.parametrize("value", [7, 1, 84.5, -1, 256, np.nan])
def test_unknown_codes(folder, value):
    rewrite(label_file(folder), put(value))
    refusal(label_file(folder), f"unknown label codes {value:g} (1 pixels)", folder=folder)


def test_codings_mixed(folder):
    rewrite(label_file(folder), recode(0, 1, 2, 3))
    refusal(label_file(folder), "unknown label codes 1 (", "2 (", "3 (", folder=folder)


def test_many_unknown_codes(folder):
    write(label_file(folder), pixels(1)[0][0], **geo(1))
    refusal("unknown label codes", "more", folder=folder)


def test_declared_nodata_of_a_label_is_ignored_unless_a_code(folder):
    set_labels(folder, lambda a: put(99, np.s_[:, 0, 0])(recode(0, 1, 2, 3)(a)), nodata=99)
    for tile in read_tiles(folder):
        assert (tile.label == IGNORE).sum() == 1
        assert tile.label[0, 0] == IGNORE
    np.testing.assert_allclose(describe(folder)[list(CLASSES)].sum(axis=1), 1)
    set_labels(folder, lambda a: put(255, np.s_[:, 0, 0])(a), nodata=255)
    assert read_tiles(folder)[0].label[0, 0] == IGNORE


def test_scheme_of_another_folder(folder):
    files = TileFiles.find(folder)
    set_labels(folder, recode(0, 255, 255, 0))
    scheme = LabelCodes.count(read_raster(f.label) for f in files).scheme()
    rewrite(label_file(folder), put(85))
    with pytest.raises(TileError, match=r"label codes 85"):
        files[1].read(scheme)


def test_unknown_scheme(folder):
    for labelled in (True, False):
        with pytest.raises(ValueError, match=r'classes: found .fuor.*"auto", "four" or "binary"'):
            read_tiles(folder, "fuor")
        if labelled:
            shutil.rmtree(folder / "label")
