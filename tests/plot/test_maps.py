"""Pictures of maps: grids of one and several, bars and arrows in any projection, where classes meet."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import rasterio
from map_workers import make_member, make_scene
from rasterio.crs import CRS
from rasterio.transform import Affine, from_bounds

from glacier_nb.landsat import CLASSES, PALETTE
from glacier_nb.plot.maps import (
    _busy_windows,
    _Legend,
    _pictures,
    _thumbnail,
    show_scenes,
)
from glacier_nb.prediction.maps import map_scene

RGB = {name: np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) for name, colour in PALETTE.items()}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A map, that of a neighbour to the east, and one without a place."
    folder, scene = tmp_path_factory.mktemp("maps"), make_scene()
    beside = make_scene(name="east", transform=scene.transform @ Affine.translation(170, 0))
    nowhere = make_scene(name="nowhere", crs=None, transform=Affine.identity())
    options = {"window": 192, "overlap": 0, "progress": False}
    return [
        map_scene([make_member(scene)], s, folder / f"{s.name}.tif", **options)
        for s in (scene, beside, nowhere)
    ]


def test_one_map_is_drawn_pixel_by_pixel_and_smaller(made):
    with rasterio.open(made[0].classes) as f:
        codes, place = f.read(1), f.transform
    sheet, shown = _pictures([made[0].classes], 900)
    np.testing.assert_array_equal(shown, codes)
    assert (sheet.transform, sheet.crs.to_epsg()) == (place, 32643)
    sheet, small = _pictures([made[0].classes], 85)
    assert small.shape == (75, 85)
    assert set(np.unique(small)) <= set(np.unique(codes))
    corner = sheet.transform @ (85, 75)
    np.testing.assert_allclose(corner, place @ (170, 150))


def test_neighbours_are_drawn_in_place(made):
    parts = [rasterio.open(m.classes).read(1) for m in made[:2]]
    _, shown = _pictures([m.classes for m in made[:2]], 900)
    np.testing.assert_array_equal(shown, np.hstack(parts))
    with pytest.raises(ValueError, match=r"found no CRS in nowhere\.tif"):
        _pictures([m.classes for m in made], 900)


def test_maps_in_other_projections_are_drawn_in_that_of_the_first(made, tmp_path):
    west, south, east, north = rasterio.warp.transform_bounds(
        32643, 4326, *rasterio.open(made[1].classes).bounds
    )
    other = tmp_path / "other.tif"
    with rasterio.open(made[1].classes) as f:
        profile, codes, tags = f.profile, f.read(1), f.tags(1)
    profile |= {"crs": CRS.from_epsg(4326), "transform": from_bounds(west, south, east, north, 170, 150)}
    profile |= {"driver": "GTiff", "tiled": False, "blockysize": 1}
    profile.pop("blockxsize")
    with rasterio.open(other, "w", **profile) as f:
        f.write(codes, 1)
        f.update_tags(1, **tags)
    sheet, shown = _pictures([made[0].classes, other], 900)
    assert sheet.crs.to_epsg() == 32643
    np.testing.assert_array_equal(shown[:150, :170], rasterio.open(made[0].classes).read(1))
    right = shown[5:145, 175:335]
    assert (right == codes[5:145, 5:165]).mean() > 0.7  # the two grids are turned a little


def test_a_thumbnail_is_every_third_pixel_of_the_scene():
    scene = make_scene(150, 1200)
    found, place = _thumbnail(scene, 400)
    np.testing.assert_array_equal(found, scene.bands[:, 1::3, 1::3])
    assert place == scene.transform @ Affine.scale(3)


def test_windows_lie_where_classes_meet(made, tmp_path):
    codes = np.zeros((90, 120), np.uint8)
    codes[70:90:2, 100:] = 85
    codes[0:6, 0:6] = 254  # an edge of nodata is none between classes
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": 90, "width": 120, "nodata": 254}
    with rasterio.open(
        tmp_path / "a.tif", "w", **profile, crs="EPSG:32643", transform=made[0].scene.transform
    ) as f:
        f.write(codes, 1)
    assert _busy_windows([tmp_path / "a.tif"], 30, 1) == [(0, 60, 90)]
    found = _busy_windows([tmp_path / "a.tif"] * 2, 200, 3)
    assert found == [(0, 0, 0), (1, 0, 0)], "a window may be larger than the map"
    with rasterio.open(tmp_path / "a.tif") as f, pytest.raises(ValueError, match="found no names of classes"):
        _Legend.of(f)


def test_figures_show_bands_map_bar_and_legend(made):
    figure = show_scenes(made[:2])
    bands, shown = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["natural colours", "map"]
    codes = np.hstack([rasterio.open(m.classes).read(1) for m in made[:2]])
    image = np.asarray(shown.images[0].get_array())
    assert (np.rint(255 * image[codes == 85]) == RGB["glacier"]).all()
    assert bands.images[0].get_array().shape == image.shape
    (bar,) = shown.artists
    assert bar.txt_label.get_text() == "2 km"
    assert [t.get_text() for t in shown.texts] == ["", "N"]
    names = [t.get_text() for t in figure.legends[0].get_texts()]
    assert names == ["background", "glacier", "debris", "lake", "no data"]
    figure.canvas.draw()
    without = show_scenes(made[2:])
    assert not without.axes[0].artists


def test_confidence_and_details(made):
    left, right, _bar = show_scenes(made[:1], "confidence").axes
    assert left.images[0].get_array().mask.sum() == (~made[0].scene.valid).sum()
    assert [line.get_label().split(" (")[0] for line in right.lines] == list(CLASSES)
    assert all(line.get_ydata()[-1] == 1 for line in right.lines)
    figure = show_scenes(made, "details", n=2, size=64)
    titles = [ax.get_title() for ax in figure.axes[:6]]
    assert titles[1:3] == ["map", "confidence, per cent"]
    assert "° N" in titles[0] or titles[0] == "nowhere"
    for what in ("overview", "confidence", "details"):
        with pytest.raises(ValueError, match="found no map"):
            show_scenes([], what)
    with pytest.raises(ValueError, match="what = 'zooms': expected one of overview, confidence, details"):
        show_scenes(made, "zooms")
