"""Label checks: healthy folders pass, each fault is found under its own cause, odd input is accepted."""

from dataclasses import replace

import numpy as np
import pytest
import rasterio
from scipy import ndimage

from glacier_nb.checks.bands import spaced
from glacier_nb.checks.labels import check_label_files, check_labels
from glacier_nb.config.training import TrainConfig
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.files.errors import TileError
from glacier_nb.landsat import IGNORE, LABEL_CODES
from glacier_nb.report.findings import Finding
from glacier_nb.tiles.lazy import open_tiles
from glacier_nb.tiles.read import read_tiles

REAL = TrainConfig(data_dir="data/competition").data_path


def serious(found):
    "Causes of the errors and warnings."
    return [f.cause for f in found if f.severity != "note"]


@pytest.fixture(scope="module", params=[0, 1])
def demo(request):
    return cached_demo(9, 128, request.param)


def rewritten(demo, folder, change, dtype="float32"):
    "A copy of the demo with changed labels."
    (folder / "label").mkdir(parents=True)
    for path in demo.glob("Band*"):
        (folder / path.name).symlink_to(path)
    for path in sorted((demo / "label").iterdir()):
        with rasterio.open(path) as f:
            label, profile = f.read(1), f.profile | {"dtype": dtype, "nodata": None}
        with rasterio.open(folder / "label" / path.name, "w", **profile) as f:
            f.write(change(label).astype(dtype), 1)
    return folder


def bilinear(label):
    return ndimage.zoom(ndimage.zoom(label, 0.5, order=1), 2, order=1)


FAULTS = {
    "bilinear": (bilinear, "float32", "four", "label-codes"),
    "bilinear bytes": (bilinear, "uint8", "auto", "label-codes"),
    "one odd pixel": (
        lambda y: np.where(np.arange(y.size).reshape(y.shape) == 77, 13, y),
        "uint8",
        "auto",
        "label-codes",
    ),
    "negative": (lambda y: np.where(y == 0, -1, y), "int16", "auto", "label-codes"),
    "not a number": (lambda y: np.where(y == 170, np.nan, y), "float32", "auto", "label-codes"),
    "binary": (lambda y: np.where(y > 0, 255, 0), "uint8", "four", "label-binary"),
    "clamped": (lambda y: np.clip(y, 0, 3), "uint8", "auto", "label-clamped"),
}


def test_classes_counted_from_one_are_explained_by_the_reader(demo, tmp_path):
    "Four codes 1 to 4 are no unknown value 4, to be declared as nodata."
    folder = rewritten(demo, tmp_path / "tiles", lambda y: np.searchsorted(LABEL_CODES, y) + 1, "uint8")
    assert check_label_files(folder) == []
    with pytest.raises(TileError, match="counted from 0, in these files it seems from 1") as error:
        read_tiles(folder)
    assert Finding.of_error(error.value).fix.startswith("Subtract 1 from all labels")


@pytest.mark.parametrize("name", FAULTS)
def test_fault_on_disk(demo, tmp_path, name):
    change, dtype, classes, cause = FAULTS[name]
    found = check_label_files(rewritten(demo, tmp_path / "tiles", change, dtype), classes)
    assert [(f.cause, f.severity) for f in found] == [(cause, "fatal")]
    assert found[0].change == ({"classes": "binary"} if cause == "label-binary" else {})
    if name.startswith("bilinear"):
        assert "nearest neighbour" in found[0].fix
        assert found[0].numbers["between"] > 0.8


def test_interpolation_beside_whole_files(demo, tmp_path):
    first = sorted((demo / "label").iterdir())[0]
    with rasterio.open(first) as f:
        whole = f.read(1)
    folder = rewritten(demo, tmp_path / "tiles", lambda y: bilinear(y) if np.array_equal(y, whole) else y)
    (finding,) = check_label_files(folder)
    assert "1 of 9 files" in finding.evidence
    assert first.name in finding.evidence


@pytest.mark.parametrize("name", ["bilinear", "binary"])
def test_errors_of_the_reader_have_the_same_cause(demo, tmp_path, name):
    change, dtype, classes, cause = FAULTS[name]
    with pytest.raises(TileError) as error:
        read_tiles(rewritten(demo, tmp_path / "tiles", change, dtype), classes)
    assert Finding.of_error(error.value).cause == cause


def test_reader_errors_of_bands(demo, tmp_path):
    for name, value, cause in (("nan", np.nan, "not-finite"), ("zero", 0, "nodata-as-data")):
        folder = tmp_path / name
        for path in demo.rglob("*.tif"):
            out = folder / path.relative_to(demo)
            out.parent.mkdir(parents=True, exist_ok=True)
            with rasterio.open(path) as f:
                data, profile = f.read(), f.profile
            if path.parent.name != "label":
                data[:, :5, :5], profile["nodata"] = value, None
            with rasterio.open(out, "w", **profile) as f:
                f.write(data)
        with pytest.raises(TileError) as error:
            read_tiles(folder)
        assert Finding.of_error(error.value).cause == cause


def test_unreadable(demo, tmp_path):
    assert Finding.of_error(OSError("disk on fire")).evidence.endswith("OSError: disk on fire")
    folder = rewritten(demo, tmp_path / "tiles", lambda y: y)
    sorted((folder / "label").iterdir())[0].write_bytes(b"no raster")
    assert serious(check_label_files(folder)) == ["unreadable"]
    assert serious(check_label_files(tmp_path / "nowhere")) == ["unreadable"]


def test_healthy(demo):
    assert not check_label_files(demo)
    assert not check_label_files(demo, "four")
    assert not serious(check_labels(read_tiles(demo)))
    lazy = open_tiles(demo)
    assert not serious(check_labels(lazy, demo))


@pytest.mark.parametrize(("size", "seed"), [(64, 2), (64, 5), (32, 9)])
def test_healthy_sizes(size, seed):
    folder = cached_demo(16, size, seed)
    assert not serious(check_label_files(folder, "four") + check_labels(read_tiles(folder)))


def test_fault_in_memory(demo):
    tiles = read_tiles(demo)

    def relabelled(change):
        return [replace(t, label=change(t.label).astype(np.uint8)) for t in tiles]

    cases = {
        "label-clamped": relabelled(lambda y: np.where(y > 0, 3, 0)),
        "label-codes": relabelled(lambda y: np.array(LABEL_CODES)[y]),
        "label-on-nodata": [replace(t, valid=~t.valid) for t in tiles],
    }
    for cause, case in cases.items():
        assert serious(check_labels(case)) == [cause]
    two = relabelled(lambda y: np.where(y > 0, IGNORE, 0))
    assert serious(check_labels(two)) == ["label-codes"]
    assert [t.label.max() for t in cases["label-clamped"]] == [3] * 9


def test_odd_input(demo):
    tiles = read_tiles(demo)
    assert check_labels([]) == []
    assert check_labels([replace(t, label=None, classes=()) for t in tiles]) == []
    void = [replace(t, valid=np.zeros_like(t.valid)) for t in tiles]
    assert serious(check_labels(void)) == ["label-on-nodata"]
    bare = [replace(t, label=np.zeros_like(t.label)) for t in tiles]
    assert [(f.cause, f.severity) for f in check_labels(bare)] == [("class-missing", "note")]
    assert "and 4 more" in check_labels(bare)[0].evidence
    assert len(spaced(100)) == 24
    assert spaced(0) == []


@pytest.mark.skipif(not REAL.is_dir(), reason="the competition's tiles are not in data/")
def test_competition():
    assert not check_label_files(REAL)
    assert not check_label_files(REAL, label_dir="label4")
    assert [f.cause for f in check_label_files(REAL, "four")] == ["label-binary"]
    assert not serious(check_labels(read_tiles(REAL, ids=["03_11", "04_10", "06_12"])))
    assert not serious(check_labels(read_tiles(REAL, label_dir="label4", ids=["03_11", "04_10", "06_12"])))
