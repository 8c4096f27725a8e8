"""Label codes: each folder is read correctly or refused with a helpful message."""

import shutil

import numpy as np
import pytest
import rasterio
from rasterio.rio.main import main_group
from tile_folders import SIZE, geo, label_file, pixels, put, recode, refusal, rewrite, set_labels, write

from glacier_nb.files.errors import TileError
from glacier_nb.landsat import BINARY_CLASSES, CLASSES, IGNORE
from glacier_nb.tiles.index import TileFiles
from glacier_nb.tiles.labels import LabelCodes
from glacier_nb.tiles.lazy import open_tiles
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
    set_labels(folder, recode(*disk), dtype=dtype, nodata=None if disk == (0, 1, 2, 3) else 0)
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


def test_declared_nodata_of_a_label_is_ignored(folder):
    set_labels(folder, lambda a: put(99, np.s_[:, 0, 0])(recode(0, 1, 2, 3)(a)), nodata=99)
    for tile in read_tiles(folder):
        assert (tile.label == IGNORE).sum() == 1
        assert tile.label[0, 0] == IGNORE
    np.testing.assert_allclose(describe(folder)[list(CLASSES)].sum(axis=1), 1)
    set_labels(folder, lambda a: put(255, np.s_[:, 0, 0])(a), nodata=255)
    assert read_tiles(folder)[0].label[0, 0] == IGNORE


@pytest.mark.parametrize("lazy", [False, True])
def test_a_code_declared_as_nodata_is_no_class(folder, original_tiles, lazy):
    """255 is lake and a common nodata value; 85 is declared by one file alone."""
    set_labels(folder, nodata=255, dtype="uint8")
    rewrite(label_file(folder), nodata=85)
    for before, after in zip(original_tiles, (open_tiles if lazy else read_tiles)(folder), strict=True):
        gone = 1 if after.id == "02_08" else 3
        assert after.classes == CLASSES
        np.testing.assert_array_equal(after.label, np.where(before.label == gone, IGNORE, before.label))


def test_a_mask_of_a_label_is_its_nodata(folder, original_tiles):
    """Where some 0 are valid, masked ones are nobody's class; where none is, 0 is background."""
    for tile, masked in (("02_07", np.s_[:8]), ("02_08", np.s_[:, :16])):
        rewrite(label_file(folder, tile), nodata=None, dtype="uint8")
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(label_file(folder, tile), "r+") as f:
            mask = np.full((SIZE, SIZE), 255, np.uint8)
            mask[masked] = 0
            f.write_mask(mask)
    first, second, _ = read_tiles(folder)
    assert (first.label[:8] == IGNORE).all()
    np.testing.assert_array_equal(first.label[8:], original_tiles[0].label[8:])
    assert (second.label[:20, :16] == 0).all()
    assert (second.label[30, :3] == IGNORE).all()


def test_all_classes_declared_as_nodata(folder):
    """The fix that the message proposes is done: after it the folder is read."""
    set_labels(folder, recode(0, 255, 255, 255), nodata=255, dtype="uint8")
    refusal("255 declared as nodata on 50.3% of the pixels", "rio edit-info --unset-nodata", folder=folder)
    for path in (folder / "label").iterdir():
        assert main_group.main(["edit-info", "--unset-nodata", str(path)], standalone_mode=False) is None
    assert read_tiles(folder)[0].classes == BINARY_CLASSES


@pytest.mark.parametrize("classes", ["auto", "binary"])
@pytest.mark.parametrize("nodata", [None, 0])
@pytest.mark.parametrize("codes", [(1, 2, 3, 4), (1, 2, 3, 3), (1, 2, 2, 2)])
def test_classes_counted_from_one(folder, original_tiles, codes, nodata, classes):
    """Refused; after the fix of the message the folder is read."""
    set_labels(folder, recode(*codes), nodata=nodata, dtype="uint8")
    refusal(
        f"label codes {', '.join(map(str, sorted(set(codes))))}, and no 0",
        "from 1",
        folder=folder,
        classes=classes,
    )
    set_labels(folder, lambda a: a - 1, nodata=None)
    inside = np.array(codes) - 1
    for before, after in zip(original_tiles, read_tiles(folder), strict=True):
        np.testing.assert_array_equal(after.label, inside[before.label])


def test_classes_counted_from_one_beside_a_declared_zero(folder, original_tiles):
    """Both ways out of the message, each for its case."""

    def with_holes(a):
        return put(0, np.s_[:, 0, :5])(recode(1, 2, 3, 4)(a))

    set_labels(folder, with_holes, nodata=0, dtype="uint8")
    refusal("label codes 1, 2, 3, 4, with 0 declared as nodata", "from 1", folder=folder)
    set_labels(folder, lambda a: np.where(a == 0, 255, a - 1.0), nodata=255)
    for before, after in zip(original_tiles, read_tiles(folder), strict=True):
        assert (after.label[0, :5] == IGNORE).all()
        np.testing.assert_array_equal(after.label[1:], before.label[1:])
    set_labels(folder, lambda a: np.where(a == 255, 0, a), nodata=0)
    refusal("label codes 1, 2, 3, with 0 declared as nodata", folder=folder)
    set_labels(folder, nodata=None)
    assert read_tiles(folder)[0].classes == CLASSES


def test_grey_levels_without_background(folder, original_tiles):
    """85 land, 170 ice, 255 debris; after the fix of the message it is read."""
    set_labels(folder, recode(85, 170, 255, 255), nodata=None, dtype="uint8")
    refusal("label codes 85, 170, 255, and no 0", "recode 85, 170, 255 to 0, 85, 170", folder=folder)
    set_labels(folder, lambda a: a - 85)
    for before, after in zip(original_tiles, read_tiles(folder), strict=True):
        np.testing.assert_array_equal(after.label, np.minimum(before.label, 2))


def test_one_tile_without_background_is_no_other_coding(folder):
    set_labels(folder, recode(0, 1, 2, 3), nodata=None, dtype="uint8")
    rewrite(label_file(folder), lambda a: np.maximum(a, 1))
    assert read_tiles(folder)[1].label.min() == 1
    assert read_tiles(folder, ids=["02_08"])[0].label.min() == 1


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
