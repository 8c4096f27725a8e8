"""Maps as GeoTIFFs: content, places, interruption at any moment, files in the way, disks, areas."""

import errno
import json
import os
import random
import re
import shutil
import signal
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from map_workers import OPTIONS, make_member, make_scene, map_until_killed
from rasterio._err import CPLE_AppDefinedError
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine, from_bounds
from rasterio.windows import Window

from glacier_nb.files.locks import run_lock
from glacier_nb.landsat import LABEL_CODES, PALETTE, REFLECTANCE
from glacier_nb.prediction import maps
from glacier_nb.prediction.evaluate import tile_probs
from glacier_nb.prediction.maps import _date, _nodata, _pixel_areas, map_areas, map_scene
from glacier_nb.prediction.members import CodingError
from glacier_nb.prediction.windows import MapCause, MapError
from glacier_nb.tiles.labels import LabelCodes
from glacier_nb.tiles.read import read_raster

pytestmark = pytest.mark.usefixtures("one_thread")


def pixels(folder, stem):
    "The pixels of the three files of a map."
    found = {}
    for name in (stem, f"{stem}_confidence", f"{stem}_probabilities"):
        with rasterio.open(folder / f"{name}.tif") as f:
            found[name.removeprefix(stem)] = f.read()
    return found


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# content


def test_one_window_gives_the_classes_of_the_tile(scene, member, tmp_path):
    result = map_scene([member], scene, tmp_path / "a.tif", window=192, overlap=96, progress=False)
    probs, valid = tile_probs([member], scene.tile), scene.valid
    with rasterio.open(result.classes) as f, rasterio.open(result.confidence) as g:
        classes, confidence = f.read(1), g.read(1)
    np.testing.assert_array_equal(classes[valid], np.array(LABEL_CODES)[probs.argmax(0)][valid])
    np.testing.assert_array_equal(confidence[valid], np.rint(100 * probs.max(0))[valid])
    assert (classes[~valid] == 254).all()
    assert (confidence[~valid] == 255).all()
    assert result.probabilities is None
    assert sorted(os.listdir(tmp_path)) == ["a.tif", "a.tif.aux.xml", "a_confidence.tif"]


def test_files_say_what_they_hold(written, scene, tmp_path):
    with rasterio.open(written.classes) as f:
        assert (f.nodata, f.dtypes, f.descriptions) == (254, ("uint8",), ("class",))
        assert f.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert {k: v for k, v in f.tags(1).items() if k.startswith("class")} == {
            "class_0": "background",
            "class_85": "glacier",
            "class_170": "debris",
            "class_255": "lake",
        }
        assert "#{:02X}{:02X}{:02X}".format(*f.colormap(1)[85][:3]) == PALETTE["glacier"]
        tags = {k.removeprefix("glacier_nb_"): v for k, v in f.tags().items()}
    assert json.loads(tags["runs"]) == [{"run": "net-0-False"}]
    assert (tags["scene"], tags["date"]) == ("scene", "2020-10-31")
    assert json.loads(tags["windows"]) == {"window": 64, "overlap": 32, "blend": "hann"}
    assert tags["TIFFTAG_SOFTWARE"] == f"glacier_nb {tags['version']}"
    with rasterio.open(written.probabilities) as f:
        assert f.descriptions == ("background", "glacier", "debris", "lake")
        assert set(f.units) == {"percent"}
        assert abs(f.read()[:, scene.valid].sum(0, dtype=int) - 100).max() <= 2  # each is rounded
    rasterio.shutil.copy(written.classes, tmp_path / "a.vrt", driver="VRT")
    table = (tmp_path / "a.vrt").read_text()  # what GDAL read from the auxiliary file
    assert re.search(r"<F>170</F>\s*<F>debris</F>\s*<F>213</F>", table)


def test_tags_hold_the_scores_of_the_run(scene, member, tmp_path):
    path = tmp_path / "run" / "model.pt"
    path.parent.mkdir()
    torch.save({"metrics": {"epoch": 3, "mcc": 0.5, "mcc_valid": float("nan"), "loss": 1.0}}, path)
    trained = replace(member, path=path)
    result = map_scene([trained], scene, tmp_path / "a.tif", window=192, overlap=0, progress=False)
    with rasterio.open(result.classes) as f:
        runs = json.loads(f.tags()["glacier_nb_runs"])
    assert runs == [{"run": "run", "epoch": 3, "mcc": 0.5, "mcc_valid": None}]


def test_overviews_hold_the_most_frequent_class(member, tmp_path):
    scene = make_scene(64, 1100)
    result = map_scene([member], scene, tmp_path / "a.tif", window=64, overlap=0, progress=False)
    with rasterio.open(result.classes) as f:
        assert f.overviews(1)[0] == 2
        small, full = f.read(1, out_shape=(32, 550)), f.read(1)
    assert set(np.unique(small)) <= {*LABEL_CODES, 254}
    uniform = (full.reshape(32, 2, 550, 2) == full[::2, None, ::2, None].reshape(32, 1, 550, 1)).all((1, 3))
    np.testing.assert_array_equal(small[uniform], full[::2, ::2][uniform])


def test_date_of_a_scene(scene):
    names = {"LC08_L2SP_147036_20201031_20201106_02_T1": "2020-10-31", "02_07": "", "LC08_tile_20201031": ""}
    assert {name: _date(SimpleNamespace(name=name)) for name in names} == names
    assert _date(scene) == "2020-10-31"


def test_nodata_is_no_code():
    assert [_nodata(codes) for codes in (LABEL_CODES, (0, 255), (0, 1, 2, 3))] == [254, 254, 255]


PLACES = {
    32643: from_bounds(5e5, 3.66e6, 5e5 + 170 * 30, 3.66e6 + 150 * 30, 170, 150),
    3857: from_bounds(8.4e6, 3.9e6, 8.4e6 + 170 * 30, 3.9e6 + 150 * 30, 170, 150),
    4326: from_bounds(75.5, 33, 75.5 + 170 * 3e-4, 33 + 150 * 3e-4, 170, 150),
    3031: from_bounds(-1e6, 1.2e6, -1e6 + 170 * 30, 1.2e6 + 150 * 30, 170, 150),
}


@pytest.mark.parametrize("code", PLACES)
def test_places_survive(member, tmp_path, code):
    scene = make_scene(crs=CRS.from_epsg(code), transform=PLACES[code])
    result = map_scene([member], scene, tmp_path / "a.tif", window=192, overlap=0, progress=False)
    for path in (result.classes, result.confidence):
        with rasterio.open(path) as f:
            assert f.crs == scene.crs
            assert f.crs.to_epsg() == code
            np.testing.assert_allclose(tuple(f.transform), tuple(scene.transform), rtol=1e-12)


def test_a_scene_without_a_place_is_mapped_without_areas(member, tmp_path):
    scene = make_scene(crs=None, transform=Affine.identity())
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotGeoreferencedWarning)
        result = map_scene([member], scene, tmp_path / "a.tif", window=192, overlap=0, progress=False)
        areas = map_areas(result.classes)
    assert areas["km2"].isna().all()
    assert areas["pixels"].sum() == scene.valid.size
    assert areas["share"].drop("no data").sum() == pytest.approx(1)


# interruption


def killed(out, killed_at, at_rename=0):
    "Map in a process that is killed."
    pid = os.fork()  # an interpreter of its own would take seconds to import
    if pid == 0:
        signal.alarm(60)
        try:
            map_until_killed(out, killed_at, at_rename)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_reads_a_map_ends_with_the_same_pixels(written, scene, member, tmp_path, seed):
    reads = 1 + written.windows  # a small scene is looked at first
    rng, out = random.Random(seed), tmp_path / "a.tif"
    killed(out, rng.randint(2 + 5, reads))  # after the first row of 5 windows
    assert not list(tmp_path.glob("*.tif"))
    result = map_scene([member], scene, out, **OPTIONS)
    assert 0 < result.computed < result.windows
    assert_same(pixels(tmp_path, "a"), pixels(written.classes.parent, "map"))
    assert not list(tmp_path.glob(".*"))


def test_killed_while_files_get_their_names(written, scene, member, tmp_path):
    out = tmp_path / "a.tif"
    killed(out, -1, at_rename=2)
    assert not out.exists()
    result = map_scene([member], scene, out, **OPTIONS)
    assert (result.computed, result.found) == (0, False)
    assert_same(pixels(tmp_path, "a"), pixels(written.classes.parent, "map"))


def stop_after(monkeypatch, n):
    "Maps end with an error after n rows of windows."
    append, rows = maps._Draft.append, []

    def stopping(self, *args):
        rows.append(1)
        if len(rows) > n:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return append(self, *args)

    monkeypatch.setattr(maps._Draft, "append", stopping)


def test_a_full_disk_is_one_error_and_the_map_goes_on(written, scene, member, tmp_path, monkeypatch):
    stop_after(monkeypatch, 2)
    with pytest.raises(MapError, match=r"No space left.* MB free.*free some space") as e:
        map_scene([member], scene, tmp_path / "a.tif", **OPTIONS)
    assert e.value.cause is MapCause.DISK
    assert not list(tmp_path.glob("*.tif"))
    monkeypatch.undo()
    result = map_scene([member], scene, tmp_path / "a.tif", **OPTIONS)
    assert result.computed == result.windows - 2 * 5
    assert_same(pixels(tmp_path, "a"), pixels(written.classes.parent, "map"))


def test_a_limit_on_the_size_of_files_is_named(tmp_path):
    resource = pytest.importorskip("resource", reason="POSIX only")
    draft, before = maps._Draft(tmp_path, {"classes": 1}, (4, 3)), resource.getrlimit(resource.RLIMIT_FSIZE)
    rows, carry = {"classes": np.ones((2, 1, 3), np.uint8)}, np.zeros((4, 100, 3), np.float32)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with (
            pytest.raises(MapError, match=r"File too large.*ulimit -f") as e,
            maps._writing(tmp_path, 1),
        ):
            draft.append(0, 0, rows, carry)  # the carry is too large
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert e.value.cause is MapCause.DISK
    assert draft.state() == (0, 0, None)


def test_the_half_map_of_another_network_is_not_continued(written, scene, member, tmp_path, monkeypatch):
    stop_after(monkeypatch, 2)
    with pytest.raises(MapError):
        map_scene([make_member(scene, seed=1)], scene, tmp_path / "a.tif", **OPTIONS)
    monkeypatch.undo()
    result = map_scene([member], scene, tmp_path / "a.tif", **OPTIONS)
    assert result.computed == result.windows
    assert_same(pixels(tmp_path, "a"), pixels(written.classes.parent, "map"))


def test_a_damaged_half_map_is_computed_again(written, scene, member, tmp_path, monkeypatch):
    stop_after(monkeypatch, 2)
    with pytest.raises(MapError):
        map_scene([member], scene, tmp_path / "a.tif", **OPTIONS)
    monkeypatch.undo()
    (rows,) = tmp_path.glob(".*/confidence.rows")
    rows.write_bytes(rows.read_bytes()[:-1])
    assert map_scene([member], scene, tmp_path / "a.tif", **OPTIONS).computed == written.windows
    assert_same(pixels(tmp_path, "a"), pixels(written.classes.parent, "map"))


# files in the way, disks


def test_a_finished_map_is_found(written, scene, member):
    before = written.classes.stat().st_mtime_ns
    again = map_scene([member], scene, written.classes, **OPTIONS)
    assert (again.found, again.computed) == (True, 0)
    assert "finished before" in repr(again)
    assert written.classes.stat().st_mtime_ns == before


def test_another_map_or_file_is_not_replaced_unless_asked(scene, member, tmp_path):
    small = OPTIONS | {"probabilities": False}
    out = tmp_path / "a.tif"
    map_scene([member], scene, out, **small)
    others = [([make_member(scene, 1)], scene, small), ([member], make_scene(name="b"), small)]
    others += [([member], scene, small | {"overlap": 0}), ([member], scene, OPTIONS)]
    changed, masked = make_scene(), make_scene()
    changed.bands[:, 100:] += 1
    masked.masked = ("cloud",)  # differs perhaps where the sample does not look
    others += [([member], masked, small)]
    for members, place, options in [*others, ([member], changed, small)]:
        with pytest.raises(MapError, match=r"a map of scene by .*net-0.*overwrite=True") as e:
            map_scene(members, place, out, **options)
        assert e.value.cause is MapCause.EXISTS
    result = map_scene([member], scene, out, **small | {"overlap": 0}, overwrite=True)
    assert not result.found
    assert map_scene([member], scene, out, **small | {"overlap": 0}).found
    (tmp_path / "b.tif").write_text("notes")
    with pytest.raises(MapError, match="no map of this package"):
        map_scene([member], scene, tmp_path / "b.tif", **small)


@pytest.mark.parametrize("name", ["map", "map.png", "."])
def test_a_name_that_is_no_geotiff(scene, member, tmp_path, name):
    with pytest.raises(MapError, match=r"ends in \.tif") as e:
        map_scene([member], scene, tmp_path / name, **OPTIONS)
    assert e.value.cause is MapCause.OPTIONS


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that root cannot write to")
def test_a_folder_that_cannot_be_written(scene, member):
    with pytest.raises(MapError, match="make the folder writable") as e:
        map_scene([member], scene, "/proc/maps/a.tif", **OPTIONS)
    assert e.value.cause is MapCause.DISK


def test_too_little_space_is_known_before_anything_is_computed(member, tmp_path, monkeypatch):
    scene, usage = make_scene(), shutil.disk_usage(tmp_path)
    monkeypatch.setattr(maps.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(MapError, match=r"needs 0\.\d MB, its disk has 0\.0 MB free.*free some space"):
        map_scene([member], scene, tmp_path / "a.tif", **OPTIONS)
    assert scene.reads == 1  # the sample


def test_pixels_that_cannot_be_read_back_are_no_map(written, scene, member, tmp_path, monkeypatch):
    copy = rasterio.shutil.copy

    def damaging(source, target, **options):
        copy(source, target, **options)
        with rasterio.open(target, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as f:
            f.write(np.zeros((1, 1), np.uint8), 1, window=Window(169, 149, 1, 1))

    monkeypatch.setattr(maps.rasterio.shutil, "copy", damaging)
    with pytest.raises(MapError, match="other pixels are read back"):
        map_scene([member], scene, tmp_path / "a.tif", **OPTIONS)
    assert not list(tmp_path.glob("*.tif"))
    monkeypatch.undo()
    assert map_scene([member], scene, tmp_path / "a.tif", **OPTIONS).computed == 0
    assert_same(pixels(tmp_path, "a"), pixels(written.classes.parent, "map"))


def test_an_error_of_gdal_is_one_of_the_disk(written, scene, member, tmp_path, monkeypatch):
    def failing(*args, **options):
        raise CPLE_AppDefinedError(3, 1, "TIFFAppendToStrip: write error")

    monkeypatch.setattr(maps.rasterio.shutil, "copy", failing)
    with pytest.raises(MapError, match=r"TIFFAppendToStrip.*free some space on its disk") as e:
        map_scene([member], scene, tmp_path / "a.tif", **OPTIONS)
    assert e.value.cause is MapCause.DISK
    assert not list(tmp_path.glob("*.tif"))


def test_one_process_at_a_time(scene, member, tmp_path, monkeypatch):
    stop_after(monkeypatch, 0)
    with pytest.raises(MapError):
        map_scene([member], scene, tmp_path / "a.tif", **OPTIONS)
    monkeypatch.undo()
    (draft,) = tmp_path.glob(".a.tif.*")
    with run_lock(draft), pytest.raises(MapError, match=r"is being written by process \d+") as e:
        map_scene([member], scene, tmp_path / "a.tif", **OPTIONS)
    assert e.value.cause is MapCause.IN_USE


# scenes


def test_a_scene_without_a_valid_pixel(member, tmp_path):
    scene = make_scene()
    scene.valid[:] = False
    with pytest.raises(MapError, match="no valid pixel among 150 x 170") as e:
        map_scene([member], scene, tmp_path / "a.tif", **OPTIONS)
    assert e.value.cause is MapCause.EMPTY
    assert not os.listdir(tmp_path)


def test_a_single_valid_pixel_between_the_sampled_ones_is_found(member, tmp_path):
    scene = make_scene(64, 4200)
    scene.valid[:] = False
    scene.valid[30, 200] = True
    result = map_scene([member], scene, tmp_path / "a.tif", window=64, overlap=0, progress=False)
    assert map_areas(result.classes)["pixels"].drop("no data").sum() == 1


def test_reflectance_for_a_network_of_dn(member, tmp_path):
    scene = make_scene()
    scene.bands[:4] = np.where(scene.valid, REFLECTANCE(scene.bands[:4]), 0)
    with pytest.raises(CodingError, match="scene is in another coding"):
        map_scene([member], scene, tmp_path / "a.tif", **OPTIONS)
    assert not os.listdir(tmp_path)


# areas


def authalic(degrees):
    "Area of the WGS 84 ellipsoid from the equator to a latitude, m² per radian (Snyder, 1987, eq. 3-12)."
    a, f = 6378137.0, 1 / 298.257223563
    e2, s = f * (2 - f), np.sin(np.radians(degrees))
    e = np.sqrt(e2)
    return a**2 * (1 - e2) * (s / (1 - e2 * s**2) + np.arctanh(e * s) / e) / 2


def test_areas_of_pixels_in_degrees(tmp_path):
    for size, south in ((3e-4, 33.0), (0.05, 70.0)):
        place = from_bounds(75, south, 75 + 170 * size, south + 150 * size, 170, 150)
        path = tmp_path / "a.tif"
        profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": 150, "width": 170}
        with rasterio.open(path, "w", **profile, crs="EPSG:4326", transform=place):
            pass
        with rasterio.open(path) as f:
            areas = _pixel_areas(f, Window(0, 0, 170, 150))
        edges = authalic(south + size * np.arange(150, -1, -1))
        expected = (edges[:-1] - edges[1:]) * np.radians(size)
        np.testing.assert_allclose(areas.sum(), expected.sum() * 170, rtol=1e-5)
        np.testing.assert_allclose(areas, np.repeat(expected[:, None], 170, 1), rtol=2e-3)


def test_areas_of_a_map(written, scene):
    table = map_areas(written.classes)
    with rasterio.open(written.classes) as f:
        classes = f.read(1)
    assert table.index.tolist() == ["background", "glacier", "debris", "lake", "no data"]
    assert table["pixels"].tolist() == [int((classes == code).sum()) for code in (*LABEL_CODES, 254)]
    # at the central meridian a length is 1 / 0.9996 of that of the coordinates
    np.testing.assert_allclose(table["km2"], table["pixels"] * 9e-4 / 0.9996**2, rtol=1e-5)
    assert table["share"].drop("no data").sum() == pytest.approx(1)


def test_areas_at_the_pole_and_across_the_date_line(tmp_path):
    "The scale of EPSG:3031 is 1 at 71°S: at the pole it is 0.9728."
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": 200, "width": 200}
    where = {
        "EPSG:3031": Affine(30, 0, -3000, 0, -30, 3000),
        "EPSG:32601": Affine(30, 0, 1.69e5, 0, -30, 7e6),
    }
    for crs, place in where.items():
        with rasterio.open(tmp_path / "a.tif", "w", **profile, crs=crs, transform=place):
            pass
        with rasterio.open(tmp_path / "a.tif") as f:
            total = _pixel_areas(f, Window(0, 0, 200, 200)).sum() / 200**2 / 900
        assert total == pytest.approx({"EPSG:3031": 1 / 0.97276901**2, "EPSG:32601": 0.998}[crs], rel=2e-3)


def test_areas_of_other_files(tmp_path):
    (tmp_path / "a.tif").write_text("notes")
    for name, why in (("a.tif", "no map of this package"), ("b.tif", "no such file")):
        with pytest.raises(MapError, match=why) as e:
            map_areas(tmp_path / name)
        assert e.value.cause is MapCause.UNREADABLE


def test_the_map_is_read_as_a_label(written, scene, tmp_path):
    "Its nodata is ignored, as declared."
    codes = LabelCodes.count([read_raster(written.classes)])
    assert codes.table.query("code == 254").nodata.all()
    assert codes.unknown[1].empty
