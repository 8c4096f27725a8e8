"One coordinate system in several spellings, compound ones, and ground control points."

import warnings

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_gcps
from rasterio.warp import reproject

from glacier_nb.files.errors import TileCause, TileError
from glacier_nb.landsat import BANDS
from glacier_nb.tiles.georeference import Georeference
from glacier_nb.tiles.lazy import open_tiles
from glacier_nb.tiles.read import read_tiles

UTM = CRS.from_epsg(32643)
PLACE = Affine(30, 0, 567945, 0, -30, 3771855)
SPELLINGS = {
    "no datum named": "+proj=utm +zone=43 +ellps=WGS84 +units=m",
    "proj": "+proj=utm +zone=43 +datum=WGS84 +units=m +no_defs",
    "transverse Mercator": "+proj=tmerc +lon_0=75 +k=0.9996 +x_0=500000 +datum=WGS84 +units=m",
    "ESRI": UTM.to_wkt(version="WKT1_ESRI"),
    "WKT 2": UTM.to_wkt(version="WKT2_2019"),
    "compound": "EPSG:32643+5773",
    "compound with another geoid": "EPSG:32643+3855",
}


DATA = np.random.default_rng(0).integers(8000, 30000, (1, 32, 32)).astype("float32")


def write(path, gcps=None, data=DATA, **profile):
    "One file of 32 pixels."
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        shape = {"width": 32, "height": 32, "count": 1, "dtype": "float32", "nodata": 0}
        with rasterio.open(path, "w", driver="GTiff", **shape | profile) as f:
            f.write(data)
            if gcps:
                f.gcps = gcps, UTM


def tile_folder(folder, odd=None, **others):
    "One tile whose third band is written otherwise."
    for k in range(len(BANDS)):
        write(folder / f"Band{k + 1}" / "a.tif", **(odd if odd and k == 2 else others))
    return folder


def points(bend=0.0, turn=0.0, n=4):
    "Ground control points of the corners, one of them moved by some pixels."
    place = PLACE @ Affine.rotation(turn)
    corners = [(0, 0), (0, 32), (32, 0), (32, 32)][:n]
    at = [place @ (c + bend * (r == c == 32), r) for r, c in corners]
    return [GroundControlPoint(r, c, x, y) for (r, c), (x, y) in zip(corners, at, strict=True)]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_other_spellings_of_a_crs_are_accepted(spelling, tmp_path):
    utm = {"crs": UTM, "transform": PLACE}
    for odd, others in ((utm | {"crs": SPELLINGS[spelling]}, utm), (utm, utm | {"crs": SPELLINGS[spelling]})):
        (tile,) = read_tiles(tile_folder(tmp_path / str(odd["crs"] == UTM), odd, **others))
        assert Georeference(tile.crs, PLACE).same_crs(Georeference(UTM, PLACE))


@pytest.mark.parametrize(
    ("crs", "found", "expected"),
    [
        ("EPSG:32644", "found CRS EPSG:32644", "Expected CRS EPSG:32643"),
        (
            UTM.to_wkt().replace("500000", "500100").replace(',AUTHORITY["EPSG","32643"]', ""),
            "False easting 500100",
            "False easting 500000",
        ),
        ("EPSG:32644+5773", "found CRS EPSG:32644", "Expected CRS EPSG:32643"),
        ("+proj=utm +zone=43 +ellps=intl +units=m", "semi_major_axis 6378388", "semi_major_axis 6378137"),
        (None, "found no CRS", "Expected CRS EPSG:32643"),
    ],
)
def test_what_differs_is_said(crs, found, expected, tmp_path):
    folder = tile_folder(tmp_path, {"crs": crs, "transform": PLACE}, crs=UTM, transform=PLACE)
    with pytest.raises(TileError) as error:
        read_tiles(folder)
    text = str(error.value)
    assert error.value.cause is TileCause.GRID
    assert found in text.split("Expected")[0], text
    assert expected.removeprefix("Expected ") in text.split("Expected")[1], text
    with rasterio.open(folder / "Band3/a.tif", "r+") as f:
        f.crs = UTM  # as it says: rio edit-info --crs
    assert len(read_tiles(folder)) == 1


@pytest.mark.parametrize("turn", [0, 20])
def test_ground_control_points_are_the_transform(turn, tmp_path):
    folder = tile_folder(tmp_path, gcps=points(turn=turn))
    for tile in (*read_tiles(folder), *open_tiles(folder)):
        assert tile.crs == UTM
        np.testing.assert_allclose(tile.transform[:6], (PLACE @ Affine.rotation(turn))[:6], rtol=1e-9)


def test_points_and_transforms_of_one_tile_may_mix(tmp_path):
    mixed = tile_folder(tmp_path / "a", {"gcps": points()}, crs=UTM, transform=PLACE)
    assert read_tiles(mixed)[0].transform.almost_equals(PLACE, 1e-3)
    with pytest.raises(TileError, match="pixels away"):
        read_tiles(tile_folder(tmp_path / "b", {"gcps": points(turn=9)}, crs=UTM, transform=PLACE))


def test_points_that_no_transform_fits_are_refused_until_the_files_are_warped(tmp_path):
    folder = tile_folder(tmp_path / "a", gcps=points(bend=6))
    with pytest.raises(
        TileError, match=r"4 ground control points that no transform fits \(up to 1.4 pixels"
    ) as error:
        read_tiles(folder)
    assert error.value.cause is TileCause.GRID
    assert "gdalwarp -tps" in str(error.value)
    for path in folder.glob("*/*.tif"):
        with rasterio.open(path) as f:
            data, warped = f.read(), np.zeros((1, 32, 32), "float32")
            reproject(data, warped, gcps=f.gcps[0], src_crs=UTM, dst_crs=UTM, dst_transform=PLACE)
        path.unlink()
        write(path, data=warped, crs=UTM, transform=PLACE)
    assert read_tiles(folder)[0].transform == PLACE
    few = tile_folder(tmp_path / "b", {"gcps": points(n=2)}, crs=UTM, transform=PLACE)
    with pytest.raises(TileError, match=r"2 ground control points, too few .*rio edit-info --transform"):
        read_tiles(few)
    write(few / "Band3/a.tif", crs=UTM, transform=PLACE)
    assert len(read_tiles(few)) == 1


def test_a_transform_counts_more_than_points(tmp_path):
    assert from_gcps(points()).almost_equals(PLACE, 1e-3)
    write(tmp_path / "a.tif", crs=UTM, transform=PLACE)
    with rasterio.open(tmp_path / "a.tif") as f:
        assert Georeference.of(f) == Georeference(UTM, PLACE)


# lengths, north and degrees

PLACES = {
    32643: (Affine(30, 0, 5e5, 0, -30, 3.66e6), 30, 30, 0),
    3857: (Affine(30, 0, 8.4e6, 0, -30, 3.9e6), 25.16, 25.16, 0),
    4326: (Affine(3e-4, 0, 75.5, 0, -3e-4, 33), 28.02, 33.27, 0),
    3031: (Affine(30, 0, 1e6, 0, -30, 1e6), 30.45, 30.45, 45),
}


@pytest.mark.parametrize("code", PLACES)
def test_lengths_and_north_in_any_projection(code):
    place, across, down, degrees = PLACES[code]
    found = Georeference(CRS.from_epsg(code), place)
    np.testing.assert_allclose(found.ground((200, 300)), (across, down), rtol=5e-3)
    right, up = found.north((200, 300))
    assert np.degrees(np.arctan2(right, up)) == pytest.approx(degrees, abs=0.6)
    assert np.hypot(right, up) == pytest.approx(1)


def test_a_grid_that_is_turned_has_north_elsewhere():
    "Columns run north."
    found = Georeference(CRS.from_epsg(32643), Affine(0, 30, 5e5, 30, 0, 3.66e6))
    np.testing.assert_allclose(found.north((200, 300)), (1, 0), atol=1e-3)


def test_no_arrow_at_a_pole_and_none_without_a_place():
    at_pole = Georeference(CRS.from_epsg(3031), Affine(30, 0, -3000, 0, -30, 3000))
    nowhere = Georeference(None, Affine.identity())
    assert np.isnan(
        [*at_pole.north((200, 200)), *nowhere.north((200, 200)), *nowhere.ground((200, 200))]
    ).all()
    assert np.isfinite(at_pole.ground((200, 200))).all()


def test_degrees_of_one_point_and_of_many():
    place = Georeference(CRS.from_epsg(4326), Affine(3e-4, 0, 75.5, 0, -3e-4, 33))
    assert place.degrees(100, 200) == pytest.approx((75.53, 32.94))
    lon, lat = place.degrees(np.arange(3), 0)
    np.testing.assert_allclose(lon, [75.5, 75.5003, 75.5006])
    assert lat.shape == (3,)
    assert np.isnan(Georeference(None, Affine.identity()).degrees(np.zeros((2, 2)), 1)).all()
