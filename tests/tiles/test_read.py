"""Unusual and damaged tile folders: each is read correctly or refused with a helpful message."""

import base64
import pickle
import re
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning

from glacier_nb.files.errors import TileError
from glacier_nb.landsat import BANDS, BINARY_CLASSES, CLASSES, IGNORE, LABEL_CODES
from glacier_nb.tiles.index import TileFiles, _find_bands, _tile_id
from glacier_nb.tiles.lazy import open_tiles
from glacier_nb.tiles.read import LabelCodes, describe, read_raster, read_tiles

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


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A valid folder in the competition's layout, which no test changes."""
    path = tmp_path_factory.mktemp("original")
    for k, tile in enumerate(IDS):
        bands, label = pixels(k)
        for band, dn in zip(BANDS, bands, strict=True):
            write(band_file(path, band, tile), dn, nodata=0, **geo(k))
        write(label_file(path, tile), label.astype("float32"), nodata=0, **geo(k))
    return path


@pytest.fixture(scope="module")
def original_tiles(original):
    """What that folder holds."""
    return read_tiles(original)


@pytest.fixture
def folder(original, tmp_path):
    """A copy of the valid folder, to be changed."""
    return shutil.copytree(original, tmp_path / "tiles")


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


def set_labels(folder, change, **profile):
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


# Valid folders


def test_read(folder):
    tiles = read_tiles(folder)
    assert [t.id for t in tiles] == list(IDS)
    for k, tile in enumerate(tiles):
        bands, label = pixels(k)
        np.testing.assert_array_equal(tile.bands, bands)
        np.testing.assert_array_equal(tile.valid, bands[0] != 0)
        np.testing.assert_array_equal(np.array(LABEL_CODES)[tile.label], label)
        assert (tile.bands.dtype, tile.valid.dtype, tile.label.dtype) == (np.float32, bool, np.uint8)
        assert (tile.crs, tile.transform) == (rasterio.CRS.from_epsg(32643), geo(k)["transform"])
        assert tile.classes == CLASSES


def test_describe(folder):
    table = describe(folder)
    assert list(table) == ["id", "size", "crs", "valid", *CLASSES]
    assert table.id.tolist() == list(IDS)
    np.testing.assert_allclose(table.valid, 1 - 32 / SIZE**2)
    np.testing.assert_allclose(table.lake, 3 / SIZE**2)
    np.testing.assert_allclose(table[list(CLASSES)].sum(axis=1), 1)


def plain_names(folder):
    """The same folder named img001.tif, img002.TIFF, ... with labels/."""
    for path in sorted(folder.glob("*/*.tif")):
        k = IDS.index(_tile_id(path)) + 1
        path.rename(path.with_name(f"img{k:03}" + (".TIFF" if k == 2 else ".tif")))
    (folder / "label").rename(folder / "labels")


def multi_band(folder):
    """The same folder with five-band files, stored in reverse and named."""
    for tile in IDS:
        stack = np.concatenate([read_raster(band_file(folder, b, tile)).data for b in BANDS])
        path = folder / "images" / f"scene_{tile}.tif"
        write(path, stack[::-1], nodata=0, **geo(IDS.index(tile)))
        with rasterio.open(path, "r+") as f:
            f.descriptions = BANDS[::-1]
    for k in range(1, 6):
        shutil.rmtree(folder / f"Band{k}")


def lower_case(folder):
    """Folder and file names in other letter cases."""
    for path in list(folder.iterdir()):
        path.rename(folder / "x").rename(folder / path.name.swapcase())


def clutter(folder):
    """Add other files that real folders hold."""
    band_file(folder, "B2").with_name("._B2_B2_masked_02_08.tif").write_bytes(b"\0\5\x16\7")
    band_file(folder, "B2").with_suffix(".tif.aux.xml").write_text("<PAMDataset></PAMDataset>")
    label_file(folder).with_suffix(".tif.ovr").write_bytes(b"")
    (folder / "Band1" / "thumbs.tif").mkdir()
    (folder / "README.txt").write_text("from the organisers")
    (folder / "label4").mkdir()


@pytest.mark.parametrize("change", [plain_names, multi_band, lower_case, clutter])
def test_same_tiles_in_other_layouts(folder, original_tiles, change):
    change(folder)
    after = read_tiles(folder)
    assert len(original_tiles) == len(after) == 3
    for a, b in zip(original_tiles, after, strict=True):
        np.testing.assert_array_equal(a.bands, b.bands)
        np.testing.assert_array_equal(a.valid, b.valid)
        np.testing.assert_array_equal(a.label, b.label)
        assert (a.crs, a.transform, a.classes) == (b.crs, b.transform, b.classes)


def test_multi_band_without_names_has_the_order_of_bands(folder):
    bands, _ = pixels(0)
    other = folder.parent / "other"
    write(other / "images" / "a.tif", bands, nodata=0, **geo())
    [tile] = read_tiles(other)
    np.testing.assert_array_equal(tile.bands, bands)
    assert tile.label is None
    assert tile.classes == ()
    assert list(describe(other)) == ["id", "size", "crs", "valid"]


def test_matched_by_id_not_by_order(folder):
    """Names that sort differently in each folder still find their tile."""
    for k, band in enumerate(BANDS):
        for j, tile in enumerate(IDS):
            path = band_file(folder, band, tile)
            path.rename(path.with_name(f"{'xyz'[(j * (k + 1)) % 3]}{j}_{tile}.tif"))
    orders = {tuple(_tile_id(p) for p in sorted((folder / f"Band{k}").iterdir())) for k in (1, 2)}
    assert len(orders) == 2
    for k, tile in enumerate(read_tiles(folder)):
        np.testing.assert_array_equal(tile.bands, pixels(k)[0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("B2_B2_masked_02_07.tif", "02_07"),
        ("Y_output_resized_02_07.tif", "02_07"),
        ("B10_10_12.tif", "10_12"),
        ("B2_001.tif", "001"),
        ("img001.tif", "img001"),
        ("b6_img001.TIFF", "img001"),
        ("BY_1.tif", "BY_1"),
    ],
)
def test_tile_id(name, expected):
    assert _tile_id(name) == expected


def test_integer_bands_and_other_nodata(folder):
    for band in BANDS:
        rewrite(band_file(folder, band), lambda a: np.where(a == 0, 65535, a), dtype="uint16", nodata=65535)
    tile = read_tiles(folder)[1]
    np.testing.assert_array_equal(tile.bands, pixels(1)[0])


def test_declared_nan_is_nodata(folder):
    rewrite(band_file(folder, "B4"), lambda a: put(np.nan)(np.where(a == 0, np.nan, a)), nodata=np.nan)
    tile = read_tiles(folder)[1]
    assert tile.valid.sum() == SIZE**2 - 33
    assert not tile.valid[25, 7]
    assert not tile.bands[:, 25, 7].any()


def test_nodata_in_one_band_makes_the_pixel_invalid(folder):
    rewrite(band_file(folder, "B10"), put(0))
    tile = read_tiles(folder)[1]
    assert not tile.valid[25, 7]
    assert not tile.bands[:, ~tile.valid].any()
    assert tile.label[25, 7] == read_tiles(folder)[0].label[25, 7]


def test_no_georeference_at_all(folder):
    for path in folder.glob("*/*.tif"):
        rewrite(path, crs=None, transform=rasterio.Affine.identity())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiles = read_tiles(folder)
    assert {t.crs for t in tiles} == {None}


def test_label_without_georeference_is_accepted(folder):
    before = read_tiles(folder)[1].label
    rewrite(label_file(folder), crs=None, transform=rasterio.Affine.identity())
    np.testing.assert_array_equal(read_tiles(folder)[1].label, before)


def test_rounded_transform_is_accepted(folder):
    moved = rasterio.Affine.translation(0.01, -0.01) @ geo(1)["transform"]
    rewrite(band_file(folder, "B6"), transform=moved)
    assert read_tiles(folder)[1].transform == geo(1)["transform"]


# Selected tiles


def test_ids_and_label_dir(folder):
    (folder / "label4").mkdir()
    shutil.copy(label_file(folder, "03_07"), folder / "label4" / "Y_four_class_03_07.tif")
    set_labels(folder, lambda a: np.where(a > 0, 255, 0))
    assert read_tiles(folder)[0].classes == BINARY_CLASSES
    [tile] = read_tiles(folder, label_dir="label4", ids=["03_07"])
    assert tile.classes == CLASSES
    assert describe(folder, label_dir="label4", ids="03_07").id.tolist() == ["03_07"]
    refusal("label4", "no label for tile 02_07, 02_08", "ids=[...]", folder=folder, label_dir="label4")
    refusal("no such folder", "label5", folder=folder, label_dir="label5")
    refusal("no tile 3_7", "such as 03_07", folder=folder, ids=["3_7", "02_07"])
    refusal("empty list of ids", folder=folder, ids=[])


def test_incomplete_tiles_can_be_left_out(folder):
    band_file(folder, "B2", "02_07").unlink()
    assert [t.id for t in read_tiles(folder, ids=["03_07", "02_08"])] == ["02_08", "03_07"]


# Refused folders


def test_no_such_folder(folder):
    refusal("nowhere", "no such folder", folder=folder / "nowhere")
    refusal("a file", folder=band_file(folder, "B2"))


def test_no_bands(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    refusal("no bands", "Band1 ... Band5", folder=tmp_path / "empty")
    refusal("no bands", f"use {folder} as the tile folder", folder=tmp_path)
    for path in folder.glob("Band*/*"):
        path.unlink()
    refusal("no .tif or .tiff file in Band1/", folder=folder)


@pytest.mark.parametrize("extra", ["images", "Band6", "Band0", "band1"])
def test_ambiguous_band_folders(folder, extra):
    (folder / extra).mkdir(exist_ok=True)
    if len({p.name for p in folder.iterdir()}) == 6:
        pytest.skip("a file system that does not know letter case")
    refusal(extra + "/", "Band1 ... Band5", folder=folder)


def test_band_missing_for_some_tiles(folder):
    band_file(folder, "B4", "02_08").unlink()
    band_file(folder, "B10", "02_08").unlink()
    band_file(folder, "B10", "03_07").unlink()
    refusal("no B4 (Band3/) for tile 02_08; no B10 (Band5/) for tile 02_08, 03_07", folder=folder)


def test_band_folder_missing(folder):
    shutil.rmtree(folder / "Band4")
    refusal("no B6 (Band4/) for tile 02_07, 02_08, 03_07", folder=folder)


def test_swapped_band_folders(folder):
    (folder / "Band1").rename(folder / "x").rename(folder / "y")
    (folder / "Band2").rename(folder / "Band1")
    (folder / "y").rename(folder / "Band2")
    refusal("B3 in the name", "B2, which is what Band1/ holds", folder=folder)


@pytest.mark.parametrize("which", ["band", "label"])
def test_two_files_claim_one_tile(folder, which):
    path = band_file(folder, "B3") if which == "band" else label_file(folder)
    shutil.copy(path, path.with_name("copy_02_08.tiff"))
    refusal("second file for tile 02_08", path.name, "copy_02_08.tiff", folder=folder)


def test_label_and_labels(folder):
    shutil.copytree(folder / "label", folder / "labels")
    refusal("label/ and labels/", folder=folder)
    assert len(read_tiles(folder, label_dir="labels")) == 3


def test_label_missing_for_some_tiles(folder):
    label_file(folder).unlink()
    refusal("no label for tile 02_08", "ids=[...]", folder=folder)
    for path in (folder / "label").iterdir():
        path.unlink()
    refusal("no .tif or .tiff file", folder / "label", folder=folder)


def test_label_without_bands(folder):
    shutil.copy(label_file(folder), label_file(folder, "09_09"))
    refusal("labels without bands: Y_output_resized_09_09.tif", folder=folder)
    assert len(read_tiles(folder, ids=IDS)) == 3


# Refused files


def test_truncated(folder):
    path = band_file(folder, "B3")
    raw = path.read_bytes()
    for n in (0, 1, 8, 100, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:n])
        refusal(path, f"{n} bytes that GDAL cannot read", "copy or download", folder=folder)


@pytest.mark.parametrize("which", ["band", "label"])
def test_not_a_tiff(folder, which):
    path = band_file(folder, "B3") if which == "band" else label_file(folder)
    path.write_text("<html>404 Not Found</html>")
    refusal(path, "GDAL cannot read", folder=folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="PNG", width=SIZE, height=SIZE, count=1, dtype="uint8") as f:
            f.write(np.ones((1, SIZE, SIZE), "uint8"))
    refusal(path, "GDAL cannot read", folder=folder)


def test_wrong_band_count(folder):
    rewrite(band_file(folder, "B3"), lambda a: np.concatenate([a, a]))
    refusal(band_file(folder, "B3"), "2 bands", "one band", folder=folder)
    other = folder.parent / "other"
    write(other / "images" / "a.tif", pixels(0)[0][:4], nodata=0, **geo())
    refusal("a.tif", "4 bands", "the 5 bands B2, B3, B4, B6, B10", folder=other)


def test_wrong_band_names(folder):
    path = folder.parent / "other" / "images" / "a.tif"
    write(path, pixels(0)[0], nodata=0, **geo())
    with rasterio.open(path, "r+") as f:
        f.descriptions = ("B2", "B3", "B4", "B5", "B10")
    refusal(path, "bands B2, B3, B4, B5, B10", "B2, B3, B4, B6, B10", folder=folder.parent / "other")


def test_colour_label(folder):
    rewrite(label_file(folder), lambda a: np.concatenate([a, a, a]))
    refusal(label_file(folder), "3 bands", "a label of one band", folder=folder)


@pytest.mark.parametrize("which", ["band", "label"])
@pytest.mark.parametrize(
    ("change", "profile", "words"),
    [
        (lambda a: a[:, 1:], {}, ("31 x 32 pixels", "32 x 32 pixels as in B2_B2_masked_02_08.tif")),
        (lambda a: a, {"crs": "EPSG:32644"}, ("CRS EPSG:32644", "CRS EPSG:32643")),
        (lambda a: a, {"transform": geo(0)["transform"]}, ("transform", "32 pixels away")),
        (lambda a: a, {"transform": rasterio.Affine(30, 0, 568905, 0, 30, 3770895)}, ("transform", "away")),
        (
            lambda a: a,
            {"transform": rasterio.Affine(29.9, 0, 568905, 0, -30, 3771855)},
            ("transform", "away"),
        ),
    ],
    ids=["size", "crs", "shift", "upside down", "scale"],
)
def test_grid_differs(folder, which, change, profile, words):
    path = band_file(folder, "B6") if which == "band" else label_file(folder)
    rewrite(path, change, **profile)
    refusal(path, *words, folder=folder)


def test_band_without_georeference_differs(folder):
    rewrite(band_file(folder, "B6"), crs=None, transform=rasterio.Affine.identity())
    refusal("found no CRS", "EPSG:32643", folder=folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(folder, value):
    rewrite(band_file(folder, "B10"), put(value))
    refusal(band_file(folder, "B10"), "1 pixels with NaN or infinity", "nodata", folder=folder)


def test_infinity_is_no_nodata_even_where_nan_is(folder):
    rewrite(band_file(folder, "B10"), lambda a: put(np.inf)(np.where(a == 0, np.nan, a)), nodata=np.nan)
    refusal("1 pixels with NaN or infinity", folder=folder)


def test_too_large_for_float32(folder):
    rewrite(band_file(folder, "B10"), lambda a: put(1e300)(a.astype("float64")), dtype="float64")
    refusal("1 pixels with NaN or infinity", folder=folder)


def test_undeclared_nodata(folder):
    for band in BANDS:
        rewrite(band_file(folder, band), nodata=None)
    refusal("0 in all bands on 3.1% of the pixels", "rio edit-info --nodata 0", folder=folder)


def test_all_nodata(folder):
    rewrite(band_file(folder, "B6"), np.zeros_like)
    refusal("no valid pixel in tile 02_08", "B6 is all nodata", folder=folder)
    assert len(read_tiles(folder, ids=["02_07", "03_07"])) == 2


# Label schemes


def recode(*codes):
    """A change from 0/85/170/255 to other codes."""
    return lambda a: np.array(codes, dtype="float64")[np.searchsorted(LABEL_CODES, a)]


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
    scheme = LabelCodes.count([f.label for f in files]).scheme()
    rewrite(label_file(folder), put(85))
    with pytest.raises(TileError, match=r"label codes 85"):
        files[1].read(scheme)


def test_unknown_scheme(folder):
    for labelled in (True, False):
        with pytest.raises(ValueError, match=r'classes: found .fuor.*"auto", "four" or "binary"'):
            read_tiles(folder, "fuor")
        if labelled:
            shutil.rmtree(folder / "label")


# Between processes


def test_errors_survive_pickling():
    error = TileError("a.tif", "b", "c", "d")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "a.tif: found b. Expected c. To fix: d."
    assert str(TileError("plain")) == "plain"


def test_find_bands_takes_a_string(folder):
    assert list(_find_bands(str(folder))) == list(IDS)
    assert [t.id for t in read_tiles(str(folder))] == list(IDS)


def test_a_tile_shows_itself(folder):
    held, lazy = read_tiles(folder)[0], open_tiles(folder)[0]
    bare = replace(held, id="<b>", label=None, classes=(), crs=None, transform=Affine.identity())
    for tile in (held, lazy, bare):
        line, page = repr(tile), tile._repr_html_()
        assert "\n" not in line
        assert len(line) < 120
        assert not re.search(r"#[0-9a-f]{3}|black|white", re.sub('base64,[^"]*', "", page))
        png = base64.b64decode(re.search('base64,([^"]*)', page)[1])
        with rasterio.MemoryFile(png).open() as picture:
            assert picture.count == 4
            assert max(picture.shape) <= 128
            assert (picture.read(4) > 0).mean() == pytest.approx(tile.valid_fraction)
    assert "32 x 32 pixels, 960 x 960 m<" in held._repr_html_()
    degrees = replace(held, crs=CRS.from_epsg(4326), transform=Affine(0.001, 0, 75, 0, -0.001, 35))
    assert "0.032 x 0.032 degree<" in degrees._repr_html_()
    assert "no georeference" in bare._repr_html_()
    assert "&lt;b&gt;" in bare._repr_html_()
    lazy = open_tiles(folder)[1]
    lazy.files.bands[0].unlink()
    assert "<img" not in lazy._repr_html_()
