"""The fix that a finding or an error of files and tiles proposes is carried out, and the finding is gone."""

import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from fault_setups import band_of_next_tile, mean_filled, quarter, two_classes
from rasterio.rio.main import main_group
from scipy import ndimage

from glacier_nb.checks import alignment, bands, labels
from glacier_nb.checks.alignment import _SYMMETRIES, check_coregistration, check_registration
from glacier_nb.checks.bands import check_bands
from glacier_nb.checks.faults import (
    _interpolate_labels,
    _rewrite_rasters,
    _shift,
    _swap_bands,
    _to_reflectance,
)
from glacier_nb.checks.labels import check_label_files, check_labels
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.files.errors import TileError
from glacier_nb.landsat import BANDS, LABEL_CODES, REFLECTANCE
from glacier_nb.report.findings import Finding
from glacier_nb.tiles.read import read_tiles

DEMO = partial(cached_demo, 4, 96, 0)


@pytest.fixture
def folder(tmp_path):
    "A copy of the demo's files."
    return Path(shutil.copytree(DEMO(), tmp_path / "demo"))


def band_files(folder, bands="12345", tile="*"):
    return [path for k in bands for path in sorted((folder / f"Band{k}").glob(f"*_{tile}.tif"))]


def change_bands(folder, change, bands="12345", **profile):
    for k in bands:
        _rewrite_rasters(folder / f"Band{k}", change, **profile)


def change_labels(folder, change, **profile):
    _rewrite_rasters(folder / "label", change, **profile)


def follow(text, path, **values):
    "Run the rio command in a text on a file."
    words = re.search(r"rio [\w-]+ (?:(?![ ]NEW|[),]).)*FILE(?: NEW)?", text)[0].split()[1:]
    new = path.with_name("new.tif")
    names = {"FILE": str(path), "NEW": str(new)} | {name: f"{v:.17g}" for name, v in values.items()}
    done = CliRunner().invoke(main_group, [names.get(word, word) for word in words])
    assert done.exit_code == 0, (words, done.output, done.exception)
    if new.exists():
        new.replace(path)


def corner(value):
    "A change that sets a corner of a band."

    def change(dn):
        dn = dn.copy()
        dn[:20, :20] = value
        return dn

    return change


def valid_fraction(folder):
    return np.mean([t.valid_fraction for t in read_tiles(folder)])


FILLED = {  # change, bands, profile, fill in the message, command
    "-9999, no tag": (
        lambda dn: np.where(dn > 0, dn, -9999),
        "12345",
        {"nodata": None},
        "-9999",
        "edit-info",
    ),
    "mean, no tag": (mean_filled, "12345", {"nodata": None}, "VALUE", "edit-info"),
    "-9999 beside a declared 0": (corner(-9999), "12345", {}, "-9999", "warp"),
    "-9999 in B10 alone": (corner(-9999), "5", {}, "-9999", "warp"),
    "a value of B6 in its middle": (corner(9321.5), "4", {}, "9321.5", "warp"),
}


@pytest.mark.parametrize("name", FILLED)
def test_fill_is_declared_where_the_finding_names_it(name, folder):
    change, bands, profile, value, command = FILLED[name]
    change_bands(folder, change, bands, **profile | {"dtype": "float32"})
    (found,) = check_bands(read_tiles(folder))
    assert found.cause == "nodata-as-data"
    assert f"rio {command} " in found.fix
    assert f"nodata {value} " in found.fix
    assert {b for named in found.numbers["values"].values() for b in named} == {
        BANDS[int(k) - 1] for k in bands
    }
    for tile, named in found.numbers["values"].items():
        for band, fill in named.items():
            follow(found.fix, *band_files(folder, str(BANDS.index(band) + 1), tile), VALUE=fill)
    assert check_bands(read_tiles(folder)) == []
    lost = 1 - valid_fraction(folder) / valid_fraction(DEMO())
    assert abs(lost) < 0.001 if command == "edit-info" else 0.03 < lost < 0.12


def refused(folder, **options):
    with pytest.raises(TileError) as error:
        read_tiles(folder, **options)
    return error.value


@pytest.mark.parametrize("tag", [None, -9999.0])
def test_zeros_become_nodata_and_other_nodata_stays(tag, folder):
    before = valid_fraction(folder)
    if tag is None:
        change_bands(folder, lambda dn: dn, nodata=None)
    else:  # two kinds of gaps, one of them declared
        change_bands(
            folder,
            lambda dn: np.where((dn == 0) & (np.arange(96) < 48), tag, dn),
            nodata=tag,
            dtype="float32",
        )
    error = refused(folder)
    for path in band_files(folder):
        follow(str(error), path)
    assert valid_fraction(folder) == before


@pytest.mark.parametrize("tag", [None, 0.0])
def test_not_a_number_becomes_nodata_and_zeros_stay(tag, folder):
    before = valid_fraction(folder)
    if tag is None:
        change_bands(folder, lambda dn: np.where(dn > 0, dn, np.nan), nodata=None, dtype="float32")
    else:
        change_bands(folder, corner(np.nan), dtype="float32")
    error = refused(folder)
    assert "NaN" in str(error)
    for path in band_files(folder):
        follow(str(error), path)
    assert valid_fraction(folder) == before if tag is None else 0.9 * before < valid_fraction(folder) < before


def test_a_mask_that_is_valid_everywhere_does_not_hide_declared_nodata(folder):
    before = valid_fraction(folder)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        for path in band_files(folder):
            with rasterio.open(path, "r+") as file:
                file.write_mask(True)
    assert valid_fraction(folder) == before
    for path in band_files(folder):  # and without a tag the advice helps in spite of the mask
        with rasterio.open(path, "r+") as file:
            file.nodata = None
    error = refused(folder)
    for path in band_files(folder):
        follow(str(error), path)
    assert valid_fraction(folder) == before


def test_gaps_filled_with_other_pixels_become_gaps_again(tiles):
    at = [
        ndimage.distance_transform_edt(~t.valid, return_distances=False, return_indices=True) for t in tiles
    ]
    spoiled = [
        replace(t, bands=t.bands[:, *i], valid=np.ones_like(t.valid)) for t, i in zip(tiles, at, strict=True)
    ]
    (found,) = check_bands(spoiled)
    assert (found.cause, found.severity) == ("pixels-repeated", "warning")
    assert found.fix == "Leave gaps empty: write 0 there and declare it as nodata."
    empty = [replace(t, bands=t.bands * u.valid, valid=u.valid) for t, u in zip(spoiled, tiles, strict=True)]
    assert check_bands(empty) == []


def test_mirrored_and_enlarged_tiles(tiles):
    mirrored = [replace(t, bands=np.pad(t.bands, ((0, 0), (128, 0), (128, 0)), "symmetric")) for t in tiles]
    mirrored = [replace(t, valid=(t.bands > 0).all(0)) for t in mirrored]
    assert [f.cause for f in check_bands(mirrored)] == ["pixels-repeated"]
    large = [
        replace(t, bands=np.kron(t.bands, np.ones((1, 2, 2))), valid=np.kron(t.valid, np.ones((2, 2))) > 0)
        for t in tiles
    ]
    (found,) = check_bands(large)
    assert found.fix.startswith("Use the bands at the resolution of their source")
    assert check_bands([replace(t, bands=t.bands[:, ::2, ::2], valid=t.valid[::2, ::2]) for t in large]) == []


# labels


@pytest.fixture(scope="module")
def tiles():
    "Correct tiles in memory."
    return read_tiles(cached_demo(9, 128, 0))


def test_interpolated_labels_are_to_be_resampled_with_nearest_neighbour(folder):
    change_labels(folder, _interpolate_labels)
    (found,) = check_label_files(folder)
    for text in (str(refused(folder)), found.fix, Finding.of_error(refused(folder)).fix):
        assert "nearest neighbour (gdalwarp -r near)" in text
        assert "ecode" not in text
    shutil.copytree(DEMO() / "label", folder / "label", dirs_exist_ok=True)  # the source, on its grid
    assert check_label_files(folder) == []
    assert [f for f in check_labels(read_tiles(folder)) if f.severity != "note"] == []


@pytest.mark.parametrize("way", ["recode", "declare"])
def test_labels_of_another_coding(way, folder):
    other = {170: 7} if way == "declare" else {85: 1, 170: 2, 255: 77}
    change_labels(folder, lambda y: np.select([y == c for c in other], [*other.values()], y))
    (found,) = check_label_files(folder)
    assert (
        found.fix == f"Recode them to {LABEL_CODES}, or declare the value as nodata to ignore these pixels."
    )
    assert "recode these values, or declare one of them" in str(refused(folder))
    if way == "declare":
        change_labels(folder, lambda y: y, nodata=7)
    else:
        change_labels(folder, lambda y: np.select([y == new for new in other.values()], [*other], y))
    assert check_label_files(folder) == []
    read_tiles(folder)


def test_binary_labels_are_read_as_binary(folder):
    change_labels(folder, two_classes)
    (found,) = check_label_files(folder, "four")
    assert found.fix.startswith('Set classes="binary"')
    assert 'set classes="binary"' in str(refused(folder, classes="four"))
    assert check_label_files(folder, **found.change) == []
    assert read_tiles(folder, **found.change)[0].classes == ("background", "glacier")


def test_binary_labels_among_others_move_to_a_folder_of_their_own(folder):
    first = sorted((folder / "label").iterdir())[0]
    with rasterio.open(first, "r+") as file:
        file.write(two_classes(file.read(1)), 1)
    (found,) = check_label_files(folder)
    assert found.fix.startswith("Move the binary labels to a folder of their own")
    (folder / "binary").mkdir()
    first.rename(folder / "binary" / first.name)
    assert check_label_files(folder) == check_label_files(folder, label_dir="binary") == []


def relabelled(tiles, change):
    return [replace(t, label=np.ascontiguousarray(change(t)).astype(np.uint8)) for t in tiles]


def exchange(tiles, pair, ids):
    "Tiles of which some have two classes exchanged."
    one, other = (tiles[0].classes.index(c) for c in pair)
    table = np.arange(256)
    table[[one, other]] = other, one
    return [replace(t, label=table[t.label].astype(np.uint8)) if t.id in ids else t for t in tiles]


PAIRS = [("glacier", "debris"), ("background", "glacier"), ("glacier", "lake")]


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
@pytest.mark.parametrize("step", [1, 2])
def test_exchanged_codes_are_exchanged_back(pair, step, tiles):
    spoiled = exchange(tiles, pair, [t.id for t in tiles[::step]])
    (found,) = check_labels(spoiled, tiles)
    assert (found.cause, found.severity) == ("label-exchanged", "fatal" if step == 2 else "warning")
    assert found.numbers["pair"] == list(pair)
    named = " and ".join(f"{c} ({LABEL_CODES[tiles[0].classes.index(c)]})" for c in pair)
    assert f"exchange {named} in " in found.fix
    wrong, not_clear = {t.id for t in tiles[::step]}, set(found.numbers["not_clear"])
    where = {*found.numbers["tiles"], *(not_clear & wrong)} if step == 2 else wrong
    assert where == wrong  # none is left out: it is named, or said to be not clear
    assert step == 1 or all(i in found.fix for i in not_clear)
    assert check_labels(exchange(spoiled, pair, where)) == []


def test_inverted_binary_labels(tiles):
    binary = [
        replace(t, label=(t.label > 0).astype(np.uint8), classes=("background", "glacier")) for t in tiles
    ]
    assert check_labels(binary) == []
    spoiled = relabelled(binary, lambda t: 1 - t.label)
    (found,) = check_labels(spoiled)
    assert found.cause == "label-exchanged"
    assert found.fix.endswith("exchange background and glacier in all label files.")
    assert check_labels(exchange(spoiled, found.numbers["pair"], [t.id for t in tiles])) == []


def test_labels_in_memory(tiles):
    "Codes instead of indices, clipped codes, and ice on nodata."
    codes = relabelled(tiles, lambda t: np.array(LABEL_CODES)[t.label])
    assert check_labels(codes)[0].fix.startswith("Map the codes in the files to class indices")
    assert check_labels(relabelled(codes, lambda t: np.searchsorted(LABEL_CODES, t.label))) == []
    clipped = check_labels(relabelled(tiles, lambda t: np.clip(np.array(LABEL_CODES)[t.label], 0, 3)))
    assert clipped[0].fix.startswith("Map the original codes 0, 85, 170, 255 to 0, 1, 2, 3 one by one")
    half = [replace(t, valid=t.valid & (np.arange(128) < 50)) for t in tiles]
    (found,) = check_labels(half)
    assert found.fix.endswith("else set labels on nodata to background.")
    assert check_labels(relabelled(half, lambda t: np.where(t.valid, t.label, 0))) == []


COARSE = {
    4: quarter,
    3.3: lambda y: y[(i := (np.arange(128) // 3.3 * 3.3).astype(int))][:, i],
    2: lambda y: np.kron(y[::2, ::2], np.ones((2, 2), y.dtype)),
}


@pytest.mark.parametrize("step", COARSE)
def test_coarse_labels(step, tiles):
    (found,) = check_labels(relabelled(tiles, lambda t: COARSE[step](t.label)))
    assert (found.cause, found.severity) == ("label-coarse", "warning")
    assert abs(found.numbers["step"] - step) < 0.1
    assert found.numbers["tiles"] == [t.id for t in tiles]
    finer = relabelled(
        tiles, lambda t: np.kron(t.label, np.ones((2, 2)))[::2, ::2]
    )  # -r near from a finer source
    assert check_labels(finer) == []


# bands and places


def test_bands_are_put_right(folder):
    _swap_bands(folder, 4, 5)
    (found,) = check_bands(read_tiles(folder))
    assert found.cause == "band-order"
    assert found.numbers["order"][3:] == ["B10", "B6"]
    assert found.fix.startswith("Rename or export the files so that Band1 to Band5 are B2, B3, B4, B6, B10")
    _swap_bands(folder, 4, 5)
    change_bands(folder, _to_reflectance, "1234")
    (found,) = check_bands(read_tiles(folder))
    assert found.fix.startswith("Use the digital numbers (DN)")
    change_bands(folder, lambda x: np.where(x > 0, np.rint(REFLECTANCE.dn(x)), 0), "1234")
    assert check_bands(read_tiles(folder)) == []


def test_not_finite_pixels_of_a_custom_reader_become_invalid(tiles):
    bands = tiles[0].bands.copy()
    bands[3, 20:40, 20:40] = np.nan
    spoiled = replace(tiles[0], bands=bands)
    (found,) = check_bands([spoiled, *tiles[1:]])
    assert found.fix == "Set valid to False at these pixels where the tiles are read."
    assert check_bands([replace(spoiled, valid=spoiled.valid & np.isfinite(bands).all(0)), *tiles[1:]]) == []


@pytest.mark.parametrize("band", ["B3", "B10"])
def test_bands_of_other_tiles_move_to_where_they_fit(band, folder):
    band_of_next_tile(folder, BANDS.index(band) + 1)
    (found,) = check_coregistration(read_tiles(folder))
    rows = found.numbers["bands"]
    assert {r["band"] for r in rows} == {band}
    assert len(rows) == 4
    paths = {t.id: t.files.bands[BANDS.index(band)] for t in read_tiles(folder)}
    content = {}
    for tile, path in paths.items():
        with rasterio.open(path) as file:
            content[tile] = file.read()
    for row in rows:
        with rasterio.open(paths[row["fits"].removeprefix("tile ")], "r+") as file:
            file.write(content[row["tile"]])
    assert check_coregistration(read_tiles(folder)) == []
    assert valid_fraction(folder) == valid_fraction(DEMO())


@pytest.mark.parametrize("by", ["flipped up-down", "rotated by 90 degrees"])
def test_turned_labels(by, tiles):
    spoiled = relabelled(tiles, lambda t: _SYMMETRIES[by](t.label))
    (found,) = check_registration(spoiled)
    assert found.fix.endswith(f"write all label files again, {found.numbers['by']}.")
    right = relabelled(spoiled, lambda t: _SYMMETRIES[found.numbers["by"]](t.label))
    assert check_registration(right) == []


def test_shifted_labels(tiles):
    spoiled = relabelled(tiles, lambda t: _shift(t.label, 0, -8))
    (found,) = check_registration(spoiled)
    rows, columns = found.numbers["rows"], found.numbers["columns"]
    assert f"{columns} columns to the right" in found.fix
    assert check_registration(relabelled(spoiled, lambda t: _shift(t.label, rows, columns))) == []


def test_labels_of_other_tiles(tiles):
    spoiled = [replace(t, label=u.label) for t, u in zip(tiles, tiles[3:] + tiles[:3], strict=True)]
    (found,) = check_registration(spoiled)
    assert found.fix.startswith("Pair image and label files by the tile id in their names")
    labels, own = {t.id: t.label for t in spoiled}, {t.id: t.label for t in tiles}
    assert len(found.numbers["labels"]) >= 7
    assert all(np.array_equal(labels[tile], own[image]) for tile, image in found.numbers["labels"].items())
    assert check_registration([replace(t, label=own[t.id]) for t in spoiled]) == []


def test_all_tiles_are_named_not_only_those_of_the_first_look(tiles, monkeypatch):
    "Some tiles are checked; where something is found, all are, because the fix has to reach them."
    for module in (bands, labels, alignment):
        monkeypatch.setattr(module, "spaced", lambda n: list(range(0, n, 2)))
    ids = [t.id for t in tiles]
    (fill,) = check_bands(
        [replace(t, bands=np.where(t.valid, t.bands, -9999), valid=t.valid | True) for t in tiles]
    )
    assert list(fill.numbers["values"]) == ids
    (codes,) = check_labels(exchange(tiles, ("glacier", "debris"), ids[::2]))
    assert set(ids[::2]) <= {*codes.numbers["tiles"], *codes.numbers["not_clear"]}
    (coarse,) = check_labels(relabelled(tiles, lambda t: quarter(t.label)))
    assert coarse.numbers["tiles"] == ids
    turned = [
        replace(t, bands=np.stack([*t.bands[:4], t.bands[4, ::-1]]), valid=t.valid & t.valid[::-1])
        for t in tiles
    ]
    (ground,) = check_coregistration(turned)
    assert [r["tile"] for r in ground.numbers["bands"]] == ids
