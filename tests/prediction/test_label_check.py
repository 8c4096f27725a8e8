"""Labels beside out-of-fold maps: patches and edges, their order, planted errors, files."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyogrio
import pytest
import shapely
from made_up import noise_tile
from numpy.testing import assert_allclose, assert_array_equal
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform

from glacier_nb.landsat import IGNORE
from glacier_nb.prediction.label_check import LabelCheck, _class_means, _Kind, _pixel_km2, _to_outline
from glacier_nb.prediction.members import PredictError

CLASSES = ("background", "glacier", "debris")
SHAPE = (64, 64)


def tile_with(label, name="00_00", at=(0, 0), epsg=32643):
    "A tile of this label, without nodata, in UTM at a place in pixels."
    place = Affine(30, 0, 5e5 + 30 * at[1], 0, -30, 3.8e6 - 30 * at[0])
    tile = noise_tile(name, 0, label.shape, 0.0, CLASSES)
    return replace(tile, label=label, crs=CRS.from_epsg(epsg), transform=place)


def sure_of(values, p=0.9):
    "Probabilities that give p to one class in each pixel."
    return np.where(np.arange(3)[:, None, None] == values, p, (1 - p) / 2).astype(np.float32)


@pytest.fixture(scope="module")
def truth():
    "Glacier left, debris in its middle."
    label = np.zeros(SHAPE, np.uint8)
    label[:, :40] = 1
    label[24:40, 10:26] = 2
    return label


@pytest.fixture(scope="module")
def wrong(truth):
    "A label with a glacier deleted, one added, and debris called glacier at a corner."
    label = truth.copy()
    label[4:14, 4:14] = 0
    label[50:58, 50:60] = 1
    label[34:40, 10:16] = 1
    return label


@pytest.fixture(scope="module")
def check(truth, wrong):
    tiles = [tile_with(wrong), tile_with(truth, "00_01", (0, 64))]
    return LabelCheck.of(tiles, {t.id: sure_of(truth) for t in tiles})


def test_each_error_is_a_patch_with_its_pixels_and_kind(check, truth, wrong):
    found = check.patches.set_index("kind")
    assert sorted(found.index) == sorted(_Kind)
    assert found["pixels"].to_dict() == {"not in label": 100, "not in map": 80, "other class": 36}
    assert (found.loc["not in label", ["label", "map"]] == ["background", "glacier"]).all()
    assert (found.loc["not in map", ["label", "map"]] == ["glacier", "background"]).all()
    assert (found.loc["other class", ["label", "map"]] == ["glacier", "debris"]).all()
    assert_array_equal(check.numbers["00_00"] > 0, truth != wrong)
    for rank, row in check.patches.iterrows():
        assert check.numbers[row["tile"]][row["row"], row["col"]] == rank
    assert_allclose(found["confidence"], 0.9, atol=1e-3)
    assert_allclose(found["margin"], 0.85, atol=1e-3)


def test_places_are_those_of_the_pixels(check):
    row = check.patches.iloc[0]
    tile = check.tile(row["tile"])
    assert_allclose((row["x"], row["y"]), tile.transform @ (row["col"] + 0.5, row["row"] + 0.5))
    degrees = transform(tile.crs, "EPSG:4326", [row["x"]], [row["y"]])
    assert_allclose((row["lon"], row["lat"]), np.ravel(degrees), atol=1e-9)
    assert_allclose(check.patches["km2"], check.patches["pixels"] * 9e-4, rtol=2e-3)


def test_tiles_with_most_disagreement_come_first(check, truth, wrong):
    assert list(check.by_tile.index) == ["00_00", "00_01"]
    first, other = check.by_tile.iloc[0], check.by_tile.iloc[1]
    assert first["contradicts"] == pytest.approx((truth != wrong).mean())
    assert (other["mcc_valid"], other["sure"], other["patches"]) == (1, 0, 0)
    assert check.joint.to_numpy().sum() == 2 * truth.size - first_edges(check)
    assert check.joint.loc["background", "glacier"] < 100  # beyond the edges


def first_edges(check):
    "Pixels within `edge` of an outline."
    return sum((_to_outline(t.label, t.valid) <= check.edge).sum() for t in check.tiles)


def test_a_shifted_outline_is_an_edge_and_no_patch(truth):
    shifted = np.roll(truth, 1, 1)
    shifted[:, 0] = truth[:, 0]
    tile = tile_with(shifted)
    found = LabelCheck.of([tile], {tile.id: sure_of(truth)}, edge=1)
    assert found.patches.empty
    assert found.by_tile["at_outline"].item() == found.by_tile["contradicts"].item() > 0
    assert len(LabelCheck.of([tile], {tile.id: sure_of(truth)}, edge=0).patches) > 0
    assert "LabelCheck" in found._repr_html_()


def test_nodata_and_ignored_pixels_say_nothing(truth, wrong):
    tile = tile_with(wrong.copy())
    tile.label[50:58, 50:60] = IGNORE
    tile = replace(tile, valid=tile.valid.copy())
    tile.valid[4:14, 4:14] = False
    found = LabelCheck.of([tile], {tile.id: sure_of(truth)})
    assert list(found.patches["kind"]) == ["other class"]
    assert not np.isfinite(_to_outline(tile.label, np.zeros(SHAPE, bool))).any()


def test_a_class_needs_its_own_mean_and_an_absent_class_is_never_sure(truth):
    probs = {"00_00": sure_of(truth, 0.9) * np.array([1, 0.6, 1])[:, None, None]}
    means = _class_means([tile_with(truth)], probs)
    assert_allclose(means, [0.9, 0.54, 0.9], atol=1e-6)
    without = np.where(truth == 2, 1, truth).astype(np.uint8)
    assert _class_means([tile_with(without)], probs)[2] == np.inf
    found = LabelCheck.of([tile_with(without)], probs)
    assert found.patches.empty, "no label has debris: nobody knows how sure a map of it must be"
    assert len(LabelCheck.of([tile_with(without)], probs, threshold=0.5).patches) == 1


def test_a_patch_amid_agreement_comes_before_one_amid_errors(truth):
    label, found = truth.copy(), truth.copy()
    label[4:12, 4:12], label[44:52, 4:12] = 0, 0  # two equal patches
    found[40:64:3, :40] = 0  # the map fails around the second
    tile = tile_with(label)
    rows = LabelCheck.of([tile], {tile.id: sure_of(found)}).patches
    rows = rows[rows["kind"] == "not in label"]
    assert rows["row"].iloc[0] < 20
    assert rows["around"].iloc[0] > 0.8


def test_planted_errors_are_found_by_maps_that_know_better(truth):
    tiles = [tile_with(np.rot90(truth, k).copy(), f"0{k}_00", (64 * k, 0)) for k in range(4)]
    check = LabelCheck.of(tiles, {t.id: sure_of(t.label) for t in tiles})
    changed, errors = check.plant(10, seed=1, pixels=(40, 120))
    assert len(errors) == 10
    assert sorted(errors["rank"]) == list(range(1, 11)), "all of them, and nothing else"
    assert (errors["label"] != errors["planted"]).all()
    assert {"background", "glacier"} <= set(errors["label"]) & set(errors["planted"])
    assert check.patches.empty
    differ = [a.label != b.label for a, b in zip(tiles, changed.tiles, strict=True)]
    assert np.sum(differ) == errors["pixels"].sum()
    assert check.plant(10, seed=1, pixels=(40, 120))[1].equals(errors)
    few = check.plant(12, pixels=(800, 900))[1]
    assert 0 < len(few) < 12, "as many as there is place for"
    blind = LabelCheck.of(tiles, {t.id: sure_of(np.zeros(SHAPE, int)) for t in tiles})
    added = blind.plant(10, seed=1, pixels=(40, 120))[1]
    assert added.loc[added["label"] == "background", "rank"].notna().mean() < 1


def test_files_have_the_polygons_of_the_patches(check, tmp_path):
    paths = check.write(tmp_path / "new")
    assert [p.name for p in paths] == ["patches.csv", "tiles.csv", "label_check.gpkg"]
    table = pd.read_csv(paths[0], index_col="rank", dtype={"tile": str})
    assert table["pixels"].tolist() == check.patches["pixels"].tolist()
    meta, _, shapes, columns = pyogrio.raw.read(paths[2], layer="patches")
    found = dict(zip(meta["fields"], columns, strict=True))
    assert found["rank"].tolist() == [1, 2, 3]
    assert found["kind"].tolist() == list(check.patches["kind"])
    polygons = shapely.from_wkb(shapes)
    assert_allclose(shapely.area(polygons) / 900, check.patches["pixels"])
    assert shapely.contains_xy(polygons, check.patches["x"], check.patches["y"]).all()
    assert len(pyogrio.raw.read(paths[2], layer="tiles")[2]) == 2
    check.write(tmp_path / "new")  # replaces them
    assert [name for name, _ in pyogrio.list_layers(paths[2])] == ["patches", "tiles"]


def test_tiles_of_several_zones_and_without_a_place(check, truth, wrong, tmp_path):
    near = tile_with(wrong)
    other = replace(tile_with(wrong, "00_09", epsg=32644), transform=Affine(30, 0, 2e5, 0, -30, 3.8e6))
    lost = replace(tile_with(wrong, "lost"), crs=None, transform=Affine.identity())
    tiles = [near, other, lost]
    found = LabelCheck.of(tiles, {t.id: sure_of(truth) for t in tiles})
    areas = pyogrio.raw.read(found.write(tmp_path)[2], layer="patches")
    assert areas[0]["crs"] == "EPSG:32643"
    assert len(areas[2]) == 6
    area = shapely.area(shapely.from_wkb(areas[2])).sum()
    assert_allclose(area, 2 * (truth != wrong).sum() * 900, rtol=0.02)
    assert found.patches.loc[found.patches["tile"] == "lost", ["km2", "x", "lon"]].isna().all().all()
    alone = LabelCheck.of([lost], {"lost": sure_of(truth)})
    assert [p.name for p in alone.write(tmp_path)] == ["patches.csv", "tiles.csv"]
    assert not (tmp_path / "label_check.gpkg").exists(), "that of the check before is gone"
    assert "km²" not in alone._repr_html_().split("<p>")[1]


def test_the_area_of_a_pixel_follows_the_projection(truth):
    utm = tile_with(truth)
    assert _pixel_km2(utm) == pytest.approx(9e-4, rel=2e-3)
    mercator = replace(utm, crs=CRS.from_epsg(3857), transform=Affine(30, 0, 8.3e6, 0, -30, 4.1e6))
    lat = np.radians(34.5)
    assert _pixel_km2(mercator) == pytest.approx(9e-4 * np.cos(lat) ** 2, rel=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edge": -1}, "edge = -1: expected a whole number of pixels, 0 or more"),
        ({"edge": True}, "edge = True"),
        ({"min_pixels": 0}, "min_pixels = 0"),
        ({"threshold": 90}, "threshold = 90: expected 0 to 1"),
    ],
)
def test_options_are_checked(truth, change, message):
    tile = tile_with(truth)
    with pytest.raises(PredictError, match=message):
        LabelCheck.of([tile], {tile.id: sure_of(truth)}, **change)


def test_what_cannot_be_compared_is_named(check, truth):
    tile = tile_with(truth)
    for tiles, probs, words in (
        ([], {}, "no tile"),
        ([tile], {}, "00_00: no label or no probabilities"),
        ([replace(tile, label=None)], {"00_00": sure_of(truth)}, "00_00: no label"),
        ([tile], {"00_00": sure_of(truth)[:2]}, r"found probabilities \(2, 64, 64\)"),
    ):
        with pytest.raises(PredictError, match=words):
            LabelCheck.of(tiles, probs)
    with pytest.raises(PredictError, match="n = 0"):
        check.plant(0)
    with pytest.raises(PredictError, match="smallest and a largest"):
        check.plant(3, pixels=(50, 20))
