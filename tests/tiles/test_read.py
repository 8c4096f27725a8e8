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
from tile_folders import (
    IDS,
    SIZE,
    band_file,
    geo,
    label_file,
    pixels,
    put,
    refusal,
    rewrite,
    set_labels,
    write,
)

from glacier_nb.files.errors import TileError
from glacier_nb.landsat import BANDS, BINARY_CLASSES, CLASSES, LABEL_CODES
from glacier_nb.tiles.index import TileFiles, _tile_id
from glacier_nb.tiles.lazy import open_tiles
from glacier_nb.tiles.read import describe, read_raster, read_tiles

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


@pytest.mark.parametrize(
    ("band", "scale", "offset", "unit", "dn"),
    [
        ("B4", 2.75e-5, -0.2, "", [[9000, 30000]]),  # of Collection 2: unchanged
        ("B4", 5.5e-5, -0.2, "", [[18000, 60000]]),
        ("B10", 0.00683604, 149.0, "", [[18000, 60000]]),
        ("B4", 1.0, 0.0, "reflectance", [[9000, 30000]]),  # a unit counts for floating-point numbers alone
        ("B4", 1e-4, 0.0, "%", [[7600, 8364]]),
    ],
)
def test_tags_of_a_band_bring_it_to_dn(folder, band, scale, offset, unit, dn):
    integers = unit != "%"
    for tile in IDS:
        path = band_file(folder, band, tile)
        kind = "uint16" if integers else "float32"
        rewrite(path, lambda a: np.where(np.arange(SIZE) < 16, 9000, 30000) + 0 * a, dtype=kind, nodata=0)
        with rasterio.open(path, "r+") as f:
            f.scales, f.offsets, f.units = [scale], [offset], [unit]
    for tiles in (read_tiles(folder), open_tiles(folder)):
        plane = tiles[0].bands[BANDS.index(band)][10, [5, 20]]
        np.testing.assert_array_equal(plane[None], dn)


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
    refusal("label4", "no label for tile 02_07, 02_08", "ids='03_07'", folder=folder, label_dir="label4")
    refusal("no such folder", "label5", folder=folder, label_dir="label5")
    refusal("no tile 3_7", "such as 03_07", folder=folder, ids=["3_7", "02_07"])
    refusal("no tile 207", folder=folder, ids=[207])
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
    refusal("no label for tile 02_08", "ids='02_07,03_07'", folder=folder)
    assert len(read_tiles(folder, ids="02_07,03_07")) == 2
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


# Names of bands


def described(folder, names, order=None):
    """A tile of one file with these descriptions, its bands in an order of `BANDS`, then more bands."""
    path = folder / "images" / "a.tif"
    bands = pixels(0)[0]
    order = [*(range(5) if order is None else order), *[0] * (len(names) - 5)]
    write(path, bands[order], nodata=0, **geo())
    describe_bands(path, names)
    return path


def describe_bands(path, names):
    """Set the descriptions of a file."""
    with rasterio.open(path, "r+") as f:
        f.descriptions = names


RGB = (2, 1, 0, 3, 4)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (("SR_B4", "SR_B3", "SR_B2", "SR_B6", "ST_B10"), RGB),
        (("sr_b4", "sr_b3", "sr_b2", "sr_b6", "st_b10"), RGB),
        (("Band 1: B4", "Band 2: B3", "Band 3: B2", "Band 4: B6", "Band 5: B10"), RGB),
        (("red", "green", "blue", "swir1", "lwir"), RGB),
        (("Red", "Green", "Blue", "SWIR 1", "Thermal"), RGB),
        (("B04", "B03", "B02", "B06", "B10"), RGB),
        (("Band 4", "Band 3", "Band 2", "Band 6", "Band 10"), RGB),
        (("0_SR_B4", "1_SR_B3", "2_SR_B2", "3_SR_B6", "4_ST_B10"), RGB),
        (("LE07_SR_B3", "LE07_SR_B2", "LE07_SR_B1", "LE07_SR_B5", "LE07_ST_B6"), RGB),
        (("Band 1", "Band 2", "Band 3", "Band 4", "Band 5"), None),
        (("b1", "b2", "b3", "b4", "b5"), None),
        (("B2", "", "", "", ""), None),
        (("first", "second", "third", "fourth", "fifth"), None),
        (("SR_B4", "SR_B3", "SR_B2", "SR_B6", "ST_B10", "SR_B5", "QA_PIXEL"), RGB),
    ],
)
def test_band_names_are_understood(tmp_path, names, order):
    described(tmp_path, names, order)
    [tile] = read_tiles(tmp_path)
    np.testing.assert_array_equal(tile.bands, pixels(0)[0])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("B2", "B3", "B4", "B5", "B10"), "bands B2, B3, B4, B5, B10"),
        (("SR_B1", "SR_B2", "SR_B3", "SR_B5", "ST_B6"), "bands SR_B1,"),  # Landsat 7
        (("B2", "B3", "B4", "B11", "B12"), "bands B2, B3, B4, B11, B12"),  # Sentinel-2
        (("S2A_B02", "S2A_B03", "S2A_B04", "S2A_B06", "S2A_B10"), "bands S2A_B02,"),
        (("blue", "green", "red", "nir", "swir1"), "bands blue, green, red, nir, swir1"),
        (("B2", "B3", "B4", "B6", "QA_PIXEL"), "bands B2, B3, B4, B6, QA_PIXEL"),
        (("SR_B4", "", "", "", ""), "bands SR_B4, no name"),
        (("B2", "B3", "B4", "B4", "B10"), "bands B2, B3, B4, B4, B10"),
        (("B1", "B2", "B3", "B4", "B5"), "bands B1, B2, B3, B4, B5"),
    ],
)
def test_other_bands_are_refused(tmp_path, names, words):
    """After the fix of the message, descriptions by colour, the file is read."""
    path = described(tmp_path, names)
    refusal(path, words, "B2, B3, B4, B6, B10", folder=tmp_path)
    describe_bands(path, ("blue", "green", "red", "swir1", "thermal"))
    np.testing.assert_array_equal(read_tiles(tmp_path)[0].bands, pixels(0)[0])


def test_a_description_that_contradicts_itself(tmp_path):
    path = described(tmp_path, ("Band 1 (blue)", "Band 2 (green)", "Band 3 (red)", "Band 5 (SWIR)", "Band 6"))
    refusal(path, "B1 and B2 in the description 'Band 1 (blue)'", folder=tmp_path)
    describe_bands(path, BANDS)
    assert len(read_tiles(tmp_path)) == 1


def test_the_description_of_a_single_band_contradicts_its_folder(folder, original_tiles):
    for band, name in zip(BANDS, ("SR_B2", "green", "Band 3", "Band 1", "b1"), strict=True):
        describe_bands(band_file(folder, band), (name,))  # the folder's band, the folder, or a place
    np.testing.assert_array_equal(read_tiles(folder)[1].bands, original_tiles[1].bands)
    path = band_file(folder, "B2")
    describe_bands(path, ("SR_B4",))
    refusal(path, "described as 'SR_B4'", "B2, which is what Band1/ holds", folder=folder)
    describe_bands(path, ("B2",))
    assert len(read_tiles(folder)) == 3


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


# Between processes


def test_errors_survive_pickling():
    error = TileError("a.tif", "b", "c", "d")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "a.tif: found b. Expected c. To fix: d."
    assert str(TileError("plain")) == "plain"


def test_find_takes_a_string(folder):
    assert [tile.id for tile in TileFiles.find(str(folder))] == list(IDS)
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
