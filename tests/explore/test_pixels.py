"""Channels, pictures, classes and pixels of a folder of tiles."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from glacier_nb.explore.pixels import ExploredTiles, _quantiles, _rows
from glacier_nb.landsat import REFLECTANCE, TEMPERATURE
from glacier_nb.texture.channels import GlcmConfig


@pytest.fixture(scope="module")
def data(explored):
    return ExploredTiles(explored / "data/demo")


def test_channels_have_physical_units_and_nan_at_nodata(data):
    name = data.ids[0]
    tile = data[name]
    for k, band, scale in ((1, "B3", REFLECTANCE), (4, "B10", TEMPERATURE)):
        found = data.channel(name, band)
        assert_allclose(found[tile.valid], scale(tile.bands[k])[tile.valid], rtol=1e-5)
        assert np.isnan(found[~tile.valid]).all()
    green, swir = data.channel(name, "B3"), data.channel(name, "B6")
    index = data.channel(name, "NDSI")
    lit = (green > 0) & (swir > 0)
    assert_allclose(index[lit], ((green - swir) / (green + swir))[lit], rtol=1e-5)
    assert np.isnan(index[~lit]).all()
    with pytest.raises(ValueError, match="no channel 'B5': expected one of B2, B3, B4, B6, B10"):
        data.channel(name, "B5")


def test_texture_is_that_of_a_run(explored):
    glcm = GlcmConfig("B4", 5, 16, ("homogeneity",), 5000, 40000)
    found = ExploredTiles(explored / "data/demo", glcm)
    assert found.channels[5:] == ("B4_homogeneity",)
    texture = found.channel(found.ids[0], "B4_homogeneity")
    expected = glcm.channels(found[found.ids[0]])[0]
    known = np.isfinite(texture)
    assert_allclose(texture[known], expected[known])
    assert known.any()


@pytest.mark.parametrize("stretch", [("tile", 10, 90), ("all", 10, 90), ("fixed", 0.1, 0.7)])
@pytest.mark.parametrize("picture", ["true colour", "B6", "NDSI", "B6_energy"])
def test_a_picture_is_stretched_between_its_limits(data, picture, stretch):
    name = data.ids[1]
    limits, rgb = data.limits(name, picture, stretch), data.picture(name, picture, stretch)
    red = data.channel(name, data.pictures[picture][0])
    low, high = limits[0]
    assert low < high
    known = np.isfinite(sum(data.channel(name, c) for c in data.pictures[picture]))
    middle = known & (red > low) & (red < high)
    expected = (red[middle] - low) / (high - low) * 255
    assert_allclose(rgb[middle, 0], expected, atol=1.01)
    assert not rgb[known & (red < low), 0].any()
    assert (rgb[known & (red >= high), 0] == 255).all()
    if stretch[0] == "fixed":
        assert limits.tolist() == [[0.1, 0.7]] * len(limits)


def test_percentiles_of_all_tiles_are_the_same_in_each(data):
    first, second = (data.limits(name, "B10", ("all", 5, 95)) for name in data.ids[:2])
    assert (first == second).all()
    pixels = np.concatenate([data.channel(name, "B10")[data[name].valid] for name in data.ids])
    assert_allclose(first[0], np.percentile(pixels, (5, 95)), atol=0.5)  # kelvin


@pytest.mark.parametrize("stretch", [("tile", 98, 2), ("tile", -1, 98), ("all", 2, 101), ("some", 2, 98)])
def test_impossible_limits_are_refused(data, stretch):
    with pytest.raises(ValueError, match="expected"):
        data.picture(data.ids[0], "B2", stretch)


def test_classes_have_their_median_and_middle_half(data):
    assert set(data.spectra) <= set(data.classes)
    for k, name in enumerate(data.classes):
        values = [data.channel(t, "B4")[(data[t].label == k) & data[t].valid] for t in data.ids]
        values = np.concatenate(values)
        if len(values) > 50:  # all pixels of these small tiles are drawn
            expected = np.percentile(values, (25, 50, 75))
            assert_allclose(data.spectra[name][:, 2], expected, atol=0.03)


def test_drawn_pixels_stand_for_all_of_their_class(data):
    name = data.ids[0]
    table, tile = _rows(data, name, 20), data[name]
    for k in np.unique(tile.label[tile.valid]):
        own = table[table[:, 0] == k]
        assert len(own) <= 20
        assert_allclose(own[:, 1].sum(), (tile.valid & (tile.label == k)).sum(), rtol=1e-5)


def test_samples_come_from_the_cache(data, monkeypatch):
    first, again = data.samples, ExploredTiles(data.folder)
    monkeypatch.setattr("glacier_nb.explore.pixels._rows", None)  # cannot be computed
    assert (again.samples == first).all() or np.isnan(first).any()
    assert again.samples.shape == first.shape


def test_weighted_quantiles():
    values, weights = np.array([1.0, 2, 3, np.nan]), np.array([1.0, 1, 1, 9])
    assert_allclose(_quantiles(values, weights, (0.5,)), [2])
    assert_allclose(_quantiles(values, np.array([1.0, 1, 98, 1]), (0.5,)), [2.98], atol=0.03)
    assert np.isnan(_quantiles(values[3:], weights[3:], (0.5,))).all()


def test_a_pixel_knows_its_place(data):
    name = data.ids[2]
    tile = data[name]
    found = data.pixel(name, 3, 7)
    assert (found.x, found.y) == tile.transform @ (7.5, 3.5)
    assert found.label == (tile.classes[tile.label[3, 7]] if tile.label[3, 7] != 255 else None)
    assert found.valid == tile.valid[3, 7]
    assert 60 < found.lon < 90
    assert 20 < found.lat < 45
    with pytest.raises(ValueError, match=r"found row 48, column 0, expected 0 to 47"):
        data.pixel(name, 48, 0)


def test_tiles_without_label_crs_or_data(bare_tiles):
    data = ExploredTiles(bare_tiles)
    assert data.classes == ()
    assert data.spectra == {}
    found = data.pixel("00_00", 10, 50)
    assert (found.label, found.crs, found.lon, found.valid) == (None, "", None, True)
    empty = data.picture("01_00", "true colour", ("tile", 2, 98))
    assert len(np.unique(empty.reshape(-1, 3), axis=0)) == 1
    assert not data.pixel("01_00", 0, 0).valid


def test_values_that_are_no_digital_numbers_stay(data, monkeypatch):
    monkeypatch.setattr("glacier_nb.explore.pixels._is_dn", lambda tile: False)
    own = ExploredTiles(data.folder)
    assert_allclose(np.nanmax(own.channel(own.ids[0], "B3")), own[own.ids[0]].bands[1].max())


def test_the_spectrum_grows_for_a_pixel_outside(data):
    before = [ax.get_ylim() for _names, ax, _line in data.spectrum.lines]
    values = dict.fromkeys(data.channels, 0.0) | {"B2": 9.0}
    data.spectrum.png(values)
    after = data.spectrum.lines[0][1].get_ylim()
    assert before[0][1] < 9 < after[1]
    plain, drawn = data.spectrum.image(), data.spectrum.image(values)
    assert (plain != drawn).any()


def test_the_stretch_of_shadow_is_that_of_dark_pixels(explored, monkeypatch):
    data = ExploredTiles(explored / "data/demo")
    name, bands = data.ids[0], {b: data.channel(data.ids[0], b) for b in ("B2", "B3", "B4", "B6")}
    half = np.arange(bands["B2"].shape[0])[:, None] < 10
    shaded = {b: np.where(half, v * 0.02, v + 0.5).astype("float32") for b, v in bands.items()}
    monkeypatch.setattr(data, "channel", lambda _, channel: shaded[channel], raising=False)
    dark = np.mean([shaded[b] for b in ("B2", "B3", "B4")], 0) < 0.1
    assert dark[:10].any()
    assert not dark[10:].any()
    found = data.limits(name, "B6", ("shadow", 5, 95))[0]
    assert found == pytest.approx(np.percentile(shaded["B6"][dark], (5, 95)))
    shaded |= {b: v + 1 for b, v in shaded.items()}
    with pytest.raises(ValueError, match=r"expected shadow\. To fix"):
        data.limits(name, "B6", ("shadow", 5, 95))


def test_the_figure_of_the_classes_says_what_its_bars_are(explored):
    data = ExploredTiles(explored / "data/demo")
    tiles = [data[name] for name in data.ids]
    n = sum(int((t.valid & (t.label != 255)).sum()) for t in tiles)
    (legend,) = data.spectrum.figure.legends
    assert legend.get_title().get_text().endswith(f"over {n:,} labelled pixels of all tiles")
