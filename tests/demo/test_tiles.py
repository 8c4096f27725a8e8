"""The synthetic tile folder: same bytes, right layout, plausible content, clear errors."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import rasterio

from glacier_nb.config.fields import ConfigError
from glacier_nb.demo import tiles as demo
from glacier_nb.demo.landscape import _accumulate, _cast_shadow, _erode, _receivers, landscape
from glacier_nb.demo.tiles import _grid_shape, _inside, make_demo, make_scene
from glacier_nb.files.errors import TileError
from glacier_nb.landsat import BANDS, LABEL_CODES
from glacier_nb.tiles.read import read_tiles


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "tiles", n_tiles=4, size=128, seed=3)


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def read(path):
    with rasterio.open(path) as file:
        return file.read(1)


def test_same_seed_same_bytes_whatever_the_global_state(folder, tmp_path):
    np.random.seed(99)  # noqa: NPY002 the global state must not matter
    again = make_demo(str(tmp_path / "again"), n_tiles=4, size=128, seed=3)
    assert contents(again) == contents(folder)
    other = make_demo(tmp_path / "other", n_tiles=4, size=128, seed=4)
    mine, theirs = contents(folder), contents(other)
    assert mine.keys() == theirs.keys()
    assert all(mine[name] != theirs[name] for name in mine)


def test_layout_of_the_competition(folder):
    ids = ["01_01", "01_02", "02_01", "02_02"]
    wanted = {f"Band{k}/{b}_{b}_masked_{i}.tif" for k, b in enumerate(BANDS, start=1) for i in ids}
    wanted |= {f"label/Y_output_resized_{i}.tif" for i in ids}
    assert contents(folder).keys() == wanted


def test_files_have_the_format_of_the_competition(folder):
    for path in folder.rglob("*.tif"):
        with rasterio.open(path) as file:
            assert (file.count, file.shape, file.dtypes[0], file.nodata) == (1, (128, 128), "float32", 0.0)
            assert file.crs.to_epsg() == 32643
            assert file.res == (30.0, 30.0)


def test_adjacent_tiles_touch(folder):
    def bounds(tile):
        with rasterio.open(folder / "Band3" / f"B4_B4_masked_{tile}.tif") as file:
            return file.bounds

    first, right, below = bounds("01_01"), bounds("01_02"), bounds("02_01")
    assert (right.left, right.top) == (first.right, first.top)
    assert (below.left, below.top) == (first.left, first.bottom)


def test_land_and_ice_continue_across_tiles(folder):
    left, right = (read(folder / "Band3" / f"B4_B4_masked_01_0{c}.tif") for c in (1, 2))
    both = (left[:, -1] > 0) & (right[:, 0] > 0)
    seam = np.abs(left[:, -1] - right[:, 0])[both].mean()
    inside = np.abs(left[:, -2] - left[:, -1])[both & (left[:, -2] > 0)].mean()
    assert seam < 1.6 * inside  # haze differs, the land does not
    labels = [read(folder / "label" / f"Y_output_resized_01_0{c}.tif") for c in (1, 2)]
    assert (labels[0][:, -1] == labels[1][:, 0]).mean() > 0.85


def test_codes_and_digital_numbers(folder):
    codes = {float(c) for p in (folder / "label").iterdir() for c in np.unique(read(p))}
    assert codes <= set(map(float, LABEL_CODES))
    assert {0.0, 85.0, 170.0} <= codes
    for k, low, high in ((1, 1, 65454), (4, 1, 65454), (5, 22000, 45000)):
        dn = np.concatenate([read(p).ravel() for p in (folder / f"Band{k}").iterdir()])
        assert (dn == np.rint(dn)).all()
        assert low <= dn[dn > 0].min() <= dn.max() <= high


def test_all_bands_share_nodata_and_labels_end_there(folder):
    for tile in read_tiles(folder):
        holes = (tile.bands == 0).all(0)
        assert np.array_equal(holes, ~tile.valid)
        core = holes & ~np.pad(tile.valid, 1)[2:, 1:-1] & ~np.pad(tile.valid, 1)[:-2, 1:-1]
        core &= ~np.pad(tile.valid, 1)[1:-1, 2:] & ~np.pad(tile.valid, 1)[1:-1, :-2]
        core[[0, -1]] = core[:, [0, -1]] = False  # the neighbour's pixels are not seen here
        assert not tile.label[core].any()


@pytest.mark.parametrize(
    ("n", "shape"), [(1, (1, 1)), (2, (1, 2)), (3, (2, 2)), (7, (3, 3)), (12, (3, 4)), (25, (5, 5))]
)
def test_grid_holds_all_tiles_without_an_empty_row(n, shape):
    assert _grid_shape(n) == shape
    assert shape[0] * shape[1] >= n > (shape[0] - 1) * shape[1]


@pytest.mark.parametrize(("n", "size"), [(1, 32), (2, 33), (3, 50), (6, 40)])
def test_other_numbers_and_sizes(tmp_path, n, size):
    tiles = read_tiles(make_demo(tmp_path / "deep" / "er", n_tiles=n, size=size), classes="four")
    assert len(tiles) == n
    assert {t.label.shape for t in tiles} == {(size, size)}


@pytest.mark.parametrize("seed", range(3))
def test_shares_hold_for_other_seeds(seed):
    label = landscape((512, 512), np.random.default_rng(seed)).label
    ice, debris = (label > 0).mean(), (label == 2).mean()
    assert 0.22 < ice < 0.42
    assert 0.03 < debris < 0.07
    assert (label == 3).any()


def test_existing_folder_is_an_error_and_unchanged(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(TileError, match=r"exists already: delete it"):
        make_demo(tmp_path, n_tiles=1, size=32)
    assert (tmp_path / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize(
    ("wrong", "least"),
    [
        ({"n_tiles": 0}, 1),
        ({"n_tiles": -3}, 1),
        ({"n_tiles": 2.5}, 1),
        ({"n_tiles": True}, 1),
        ({"size": 31}, 32),
        ({"size": "256"}, 32),
        ({"seed": -1}, 0),
        ({"seed": None}, 0),
    ],
)
def test_bad_arguments_leave_nothing_behind(tmp_path, wrong, least):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ConfigError) as error:
        make_demo(tmp_path / "demo", **wrong)
    assert f"{name}={value!r}: expected a whole number of at least {least}" in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_interrupted_writing_leaves_nothing_behind(tmp_path, monkeypatch, error):
    def fail(path, array, transform):
        Path(path).parent.mkdir(exist_ok=True)
        raise error

    monkeypatch.setattr(demo, "_write_band", fail)
    with pytest.raises(type(error)):
        make_demo(tmp_path / "demo", n_tiles=1, size=32)
    assert not list(tmp_path.iterdir())


def test_erosion_leaves_no_pit_and_drains_all_land():
    height, rec = _erode((40, 60), 180.0, np.random.default_rng(5))
    ends = rec == np.arange(rec.size)
    assert (height.ravel()[ends] == 0).all()
    order = np.argsort(height.ravel(), kind="stable")
    assert _accumulate(rec, order, np.ones(rec.size))[ends].sum() == rec.size


def test_receivers_go_down_the_steepest_slope():
    nb, dist = np.array([[1, 0, 1], [2, 2, 0]]), np.array([1.0, 2.0])
    rec, length = _receivers(np.array([4.0, 3.0, 0.0]), nb, dist)
    assert rec.tolist() == [2, 2, 2]  # cell 0 falls 1 in 1 to cell 1, 4 in 2 to cell 2
    assert length[:2].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("azimuth", [0, 90, 180, 270])
def test_shadow_falls_away_from_the_sun(azimuth):
    land = np.zeros((61, 61))
    land[30, 30] = 300.0  # a tower; 45° sun: 10 pixels of shadow
    rows, columns = np.nonzero(_cast_shadow(land, (45.0, float(azimuth))))
    away = {0: (1, 0), 90: (0, -1), 180: (-1, 0), 270: (0, 1)}[azimuth]
    far = (rows - 30) * away[0] + (columns - 30) * away[1]
    assert far.min() >= 1
    assert 9 <= far.max() <= 10


def test_import_has_no_side_effect_on_random_numbers():
    state = hashlib.sha256(repr(np.random.get_state()).encode()).hexdigest()  # noqa: NPY002
    landscape((64, 64), np.random.default_rng(0))
    assert hashlib.sha256(repr(np.random.get_state()).encode()).hexdigest() == state  # noqa: NPY002


def test_product_has_the_files_and_coding_of_usgs(tmp_path):
    product = make_scene(tmp_path, (96, 64), landscapes=1)
    assert product.name == "LC08_L2SP_147036_20201031_20201106_02_T1"
    planes = {p.stem.removeprefix(f"{product.name}_"): read(p) for p in product.glob("*.TIF")}
    assert sorted(planes) == ["QA_PIXEL", "SR_B2", "SR_B3", "SR_B4", "SR_B6", "ST_B10"]
    fill = planes["QA_PIXEL"] == 1
    for name, plane in planes.items():
        assert (plane.shape, plane.dtype) == ((96, 64), np.uint16)
        np.testing.assert_array_equal(plane == (name == "QA_PIXEL"), fill)
    assert 0.25 < fill.mean() < 0.5
    with pytest.raises(TileError, match="exists already"):
        make_scene(tmp_path, (96, 64), landscapes=1)
    for wrong in ({"shape": (16, 64)}, {"landscapes": 0}, {"tilt": 30}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            make_scene(tmp_path / "none", **wrong)
    assert not (tmp_path / "none").exists()


def test_scene_in_patches_repeats_its_landscapes(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_PATCH", 32)
    one, again = (make_scene(tmp_path / name, (80, 72), landscapes=2, tilt=0) for name in ("one", "again"))
    assert contents(one) == contents(again)
    plane = read(next(one.glob("*SR_B4.TIF")))
    assert plane.all()
    np.testing.assert_array_equal(plane[:32, :32], plane[32:64, :32])
    np.testing.assert_array_equal(plane[:32, :8], plane[:32, 64:])
    assert (plane[:32, :32] != plane[:32, 32:64]).any()


def test_patches_of_the_tilted_edge_fit_together():
    whole = _inside((90, 110), (0, 90, 0, 110), 12)
    np.testing.assert_array_equal(_inside((90, 110), (20, 60, 30, 110), 12), whole[20:60, 30:])
    np.testing.assert_array_equal(whole, whole[::-1, ::-1])
    assert _inside((90, 110), (0, 90, 0, 110), 0).all()
    assert whole.any(0)[1:-1].all()  # a corner is a point
    assert whole.any(1)[1:-1].all()
