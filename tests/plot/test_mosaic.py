"""All tiles in place: positions from georeference or names, each pixel where it lies, strips shortened."""

from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_up import noise_tile
from rasterio.crs import CRS
from rasterio.transform import Affine

from glacier_nb.plot.mosaic import _boxes, _pictures, _place, _sheet, _shortened, show_map
from glacier_nb.tiles.splits import SplitError

mpl.use("Agg")
SHAPE = (32, 32)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def tiles():
    "Four tiles of noise in a square, named by row and column, and one apart."
    names = ("02_01", "02_02", "03_01", "03_02", "03_09")
    return [noise_tile(name, k, SHAPE) for k, name in enumerate(names)]


@pytest.fixture(scope="module")
def maps(tiles):
    return {t.id: np.where(t.valid, t.label, 0) for t in tiles}


def placed(tile):
    "The same tile with a georeference, 30 m a pixel."
    row, col = map(int, tile.id.split("_"))
    place = Affine(30, 0, 5e5 + 960 * col, 0, -30, 4e6 - 960 * row)
    return replace(tile, crs=CRS.from_epsg(32643), transform=place)


def test_names_and_georeference_give_the_same_places(tiles):
    boxes = _boxes(tiles, 900)
    assert (boxes == _boxes([placed(t) for t in tiles], 900)).all()
    assert boxes[:4].tolist() == [[0, 0, 32, 32], [0, 32, 32, 64], [32, 0, 64, 32], [32, 32, 64, 64]]
    assert boxes[4].tolist() == [32, 72, 64, 104], "the empty strip is a quarter of a tile wide"


def test_long_strips_are_shortened_and_tiles_keep_their_size_and_order():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 20, 30) * 50.0
    low += 1e6 * (low > 500)
    high = low + 100
    a, b = _shortened(low, high)
    assert (b - a == 100).all()
    assert (np.sign(np.subtract.outer(low, low)) == np.sign(np.subtract.outer(a, a))).all()
    assert a.max() - a.min() <= 1000
    assert _shortened(low[:1], high[:1]) == (low[:1], high[:1])


def test_each_pixel_is_drawn_where_it_lies(tiles, maps):
    boxes = _boxes(tiles, 900)
    sheet = _sheet([t.label for t in tiles], boxes, empty=99)
    for tile, (top, left, bottom, right) in zip(tiles, boxes, strict=True):
        assert (sheet[top:bottom, left:right] == tile.label).all()
    assert (sheet[:32, 64:] == 99).all()
    half = _sheet([t.label for t in tiles], _boxes(tiles, 52), empty=99)
    assert (half[:16, :16] == tiles[0].label[::2, ::2]).all()
    pictures = _pictures(tiles, maps, boxes, "natural")
    assert all((picture[:32, 64:] == 1).all() for picture in pictures), "white where no tile lies"
    assert (pictures[1] == pictures[2]).all(), "a perfect map looks as the label"


def test_the_title_has_the_score_of_all_pixels_and_folds_are_numbered(tiles, maps):
    groups = {t.id: k // 2 for k, t in enumerate(tiles)}
    axes = show_map(tiles, maps, groups, kind="swir").axes
    assert axes[3].get_title().startswith("errors, MCC 0.")
    assert sorted(text.get_text() for text in axes[1].texts) == ["fold 0", "fold 1", "fold 2"]


@pytest.mark.parametrize("missing", ["map", "label", "tile"])
def test_what_is_missing_is_named(tiles, maps, missing):
    found = {"map": tiles, "label": [replace(tiles[0], label=None)], "tile": []}[missing]
    with pytest.raises(ValueError, match="no tile" if missing == "tile" else "02_01"):
        show_map(found, {} if missing == "map" else maps)


def test_unknown_places_are_an_error(tiles, maps):
    lost = [replace(t, id=f"tile{t.id[-1]}x") for t in tiles[:2]]
    with pytest.raises(SplitError, match="georeference"):
        show_map(lost, {t.id: t.label for t in lost})


def test_the_picture_lies_where_its_tiles_lie(tiles):
    here = [placed(t) for t in tiles[:4]]
    place, exact = _place(here, _boxes(here, 900))
    assert exact
    assert place.transform.almost_equals(here[0].transform, 1e-3)
    small, _ = _place(here, _boxes(here, 48))
    assert small.transform.a == pytest.approx(40), "64 pixels of 30 m on 48"


def test_no_degrees_where_a_strip_was_shortened_or_a_place_is_unknown(tiles, maps):
    apart = [placed(t) for t in tiles]
    assert not _place(apart, _boxes(apart, 900))[1]
    assert not _place(tiles, _boxes(tiles, 900))[1]
    assert not _place([*apart[:3], tiles[3]], _boxes(tiles[:4], 900))[1]
    for some, degrees, bars in ((apart[:4], True, 1), (apart, False, 1), (tiles, False, 0)):
        ax = show_map(some, maps).axes[0]
        assert bool(len(ax.get_xticks())) == degrees
        assert len(ax.artists) == bars
