"""Figures of tiles: distinct colours, the same image in any unit, errors for shapes that do not fit."""

from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.colors import to_rgb
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from rasterio.crs import CRS
from rasterio.transform import Affine
from skimage.color import deltaE_ciede2000, rgb2lab

from glacier_nb.landsat import BINARY_CLASSES, CLASSES, IGNORE
from glacier_nb.plot.colours import ERROR_PALETTE, PALETTE, colours, handles
from glacier_nb.plot.tiles import (
    NotebookFigure,
    _round_length,
    _round_places,
    _stretch_limits,
    class_image,
    composite,
    error_map,
    overlay,
    show_predictions,
    show_tiles,
)
from glacier_nb.tiles.georeference import Georeference
from glacier_nb.tiles.read import Tile

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def make_tile(name="01_01", seed=0, size=24, classes=CLASSES):
    "A tile of noise with all classes, nodata and ignored pixels."
    rng = np.random.default_rng(seed)
    valid = np.ones((size, size), bool)
    valid[:3] = False
    label = rng.integers(0, len(classes), (size, size)).astype(np.uint8)
    label[-1] = IGNORE
    bands = rng.uniform(7_000, 60_000, (5, size, size)).astype(np.float32) * valid
    return Tile(name, bands, valid, label, None, Affine.identity(), classes)


# colours


@pytest.mark.parametrize("palette", [PALETTE, ERROR_PALETTE])
def test_colours_differ_with_colour_vision_deficiency_too(palette):
    deuteranopia = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
    rgb = colours(palette, palette)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ deuteranopia.T, 0, 1)
    seen = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
    for vision in (rgb, seen):
        lab = rgb2lab(vision[None])[0]
        apart = deltaE_ciede2000(lab[:, None], lab[None])[~np.eye(len(lab), dtype=bool)]
        assert apart.min() > 12


def test_every_class_has_a_colour_and_a_legend_entry():
    assert set(CLASSES) < set(PALETTE)
    assert [h.get_label() for h in handles(CLASSES)] == list(CLASSES)
    np.testing.assert_allclose(handles(["lake"])[0].get_facecolor()[:3], to_rgb(PALETTE["lake"]))
    assert colours([]).shape == (0, 3)
    with pytest.raises(ValueError, match="no colour for 'rock', 'sea'"):
        colours(["rock", "lake", "sea"])


# composites


@pytest.mark.parametrize("kind", ["natural", "swir"])
def test_composite_shows_the_right_bands(kind):
    tile = make_tile()
    rgb = composite(tile, kind=kind)
    assert rgb.shape == (24, 24, 3)
    assert rgb.dtype == np.float32
    assert 0 <= rgb.min() <= rgb.max() <= 1
    np.testing.assert_allclose(rgb[~tile.valid], np.tile(to_rgb(PALETTE["no data"]), (72, 1)), rtol=1e-6)
    for channel, band in enumerate({"natural": (2, 1, 0), "swir": (3, 2, 1)}[kind]):
        assert np.corrcoef(rgb[tile.valid][:, channel], tile.bands[band, tile.valid])[0, 1] > 0.99


def test_composite_is_the_same_in_any_unit():
    tile = make_tile()
    scale, offset = np.array([1e-5, 2, 3, 4, 5])[:, None, None], np.array([0, -9, 1, 2, 3])[:, None, None]
    np.testing.assert_allclose(composite(tile.bands * scale + offset, tile.valid), composite(tile), atol=1e-4)


def test_composite_ignores_the_values_of_invalid_pixels():
    tile = make_tile()
    odd = tile.bands.copy()
    odd[:, ~tile.valid] = np.nan
    np.testing.assert_array_equal(composite(odd, tile.valid), composite(tile))


def test_common_limits_make_tiles_comparable():
    dark = make_tile("01_01", 0)
    bright = replace(dark, id="01_02", bands=dark.bands * 1.5)
    assert np.allclose(composite(dark), composite(bright), atol=1e-5)
    limits = _stretch_limits([dark, bright])
    assert (
        composite(dark, limits=limits)[dark.valid].mean()
        < composite(bright, limits=limits)[dark.valid].mean()
    )


def test_composite_without_valid_or_varying_pixels():
    tile = make_tile()
    nodata = composite(tile, np.zeros_like(tile.valid))
    np.testing.assert_allclose(nodata, np.tile(to_rgb(PALETTE["no data"]), (24, 24, 1)), rtol=1e-6)
    assert np.isfinite(composite(np.full((5, 4, 4), 3.0))).all()


@pytest.mark.parametrize(
    ("bands", "valid", "message"),
    [
        (np.zeros((3, 8, 8)), None, r"found bands \(3, 8, 8\)"),
        (np.zeros((8, 8)), None, r"found bands \(8, 8\)"),
        (np.zeros((5, 8, 8)), np.ones((8, 9), bool), r"valid \(8, 9\), expected"),
    ],
)
def test_composite_refuses_wrong_shapes(bands, valid, message):
    with pytest.raises(ValueError, match=message):
        composite(bands, valid)


def test_unknown_kind_is_an_error():
    for draw in (composite, lambda t, kind: _stretch_limits([t], kind)):
        with pytest.raises(ValueError, match="kind = 'rgb': expected one of natural, swir"):
            draw(make_tile(), kind="rgb")


# labels


def test_class_image_shows_classes_ignored_and_nodata():
    label = np.array([[0, 1, 2], [3, IGNORE, 1]], np.uint8)
    valid = np.array([[True] * 3, [True, True, False]])
    expected = [[0, 1, 2], [3, 4, 4]]
    np.testing.assert_array_equal(
        class_image(label, CLASSES, valid), colours([*CLASSES, "no data"])[expected]
    )
    with pytest.raises(ValueError, match=r"found class indices \[2, 3\], expected 0 to 1 or 255"):
        class_image(label, BINARY_CLASSES)


def test_overlay_leaves_background_and_ignored_pixels_untouched():
    tile, (_, ax) = make_tile(), plt.subplots()
    assert overlay(ax, composite(tile), tile.label, CLASSES, alpha=0.5) is ax
    fill = ax.images[1].get_array()
    bare = (tile.label == 0) | (tile.label == IGNORE)
    assert (fill[bare][:, 3] == 0).all()
    assert (fill[~bare][:, 3] == 0.5).all()
    assert len(ax.collections) == 3  # outlines of glacier, debris and lake
    with pytest.raises(ValueError, match="expected one height and width"):
        overlay(ax, composite(tile), tile.label[1:], CLASSES)


def test_overlay_of_one_class_everywhere_has_no_outline():
    _, ax = plt.subplots()
    overlay(ax, np.zeros((6, 6, 3)), np.ones((6, 6), np.uint8), CLASSES)
    assert len(ax.collections) == 0


# figures


def test_show_tile_with_and_without_label():
    tile = make_tile()
    fig = show_tiles(tile)
    assert [ax.get_title() for ax in fig.axes] == [
        "01_01: natural colours",
        "01_01: SWIR, red, green",
        "label",
    ]
    names = [t.get_text() for t in fig.legends[0].get_texts()]
    assert names == ["glacier", "debris", "lake", "no data"]
    assert len(show_tiles(replace(tile, label=None, classes=())).axes) == 2


def test_show_tiles_has_every_id_and_no_empty_frames():
    tiles = [make_tile(f"01_{k:02}", k) for k in range(5)]
    fig = show_tiles(tiles, ncols=3)
    drawn = [ax for ax in fig.axes if ax.axison]
    assert [ax.get_title()[:5] for ax in drawn] == [t.id for t in tiles]
    assert len(fig.axes) == 6
    assert len(show_tiles(tiles[:2], ncols=9).axes) == 2
    assert len(show_tiles([replace(tiles[0], label=None, classes=())]).axes[0].images) == 1
    with pytest.raises(ValueError, match="found no tile"):
        show_tiles([])


def test_error_map_separates_the_errors():
    truth = np.array([0, 1, 0, 2, 1, IGNORE, 1], np.uint8)[None]
    pred = np.array([0, 1, 1, 0, 2, 1, 1], np.uint8)[None]
    valid = np.array([True] * 6 + [False])[None]
    names = [list(ERROR_PALETTE)[k] for k in error_map(truth, pred, valid)[0]]
    assert names == [*list(ERROR_PALETTE), "no data"]
    with pytest.raises(ValueError, match="expected one shape"):
        error_map(truth, pred, valid[:, 1:])


def test_predictions_have_a_row_for_each_tile():
    tiles = [make_tile(f"01_{k:02}", k) for k in range(2)]
    preds = {"01_00": np.where(tiles[0].valid & (tiles[0].label < 4), tiles[0].label, 0)}
    preds["01_01"] = np.zeros_like(tiles[1].label)
    fig = show_predictions(tiles, preds)
    titles = [ax.get_title() for ax in fig.axes]
    assert titles[:3] == titles[4:7] == ["image", "truth", "prediction"]
    assert [fig.axes[k].get_ylabel() for k in (0, 4)] == ["tile 01_00", "tile 01_01"]
    assert titles[3].endswith("(valid pixels 1.00)")
    assert titles[7] == "errors: MCC 0.00\n(valid pixels 0.00)"
    legend = [t.get_text() for t in fig.legends[0].get_texts()]
    assert set(legend) - {""} == {*CLASSES[1:], *ERROR_PALETTE}
    confident = {i: np.full(p.shape, 0.7) for i, p in preds.items()}
    assert len(show_predictions(tiles, preds, confident).axes) == 2 * 5 + 2


@pytest.mark.parametrize("classes", [CLASSES, BINARY_CLASSES])
def test_the_legend_of_predictions_names_the_classes_of_the_tile(classes):
    tile = make_tile(classes=classes)
    fig = show_predictions([tile], {tile.id: np.zeros_like(tile.label)})
    legend = [t.get_text() for t in fig.legends[0].get_texts()]
    assert [n for n in legend if n in CLASSES] == list(classes[1:])


def test_predictions_are_checked_before_drawing():
    tile = make_tile()
    preds = {tile.id: np.zeros_like(tile.label)}
    cases = [
        ([tile], {}, "tile 01_01 has no prediction"),
        ([replace(tile, label=None)], preds, "tile 01_01 has no label"),
        ([tile], {tile.id: np.zeros((3, 3), np.uint8)}, "expected one shape"),
        ([], {}, "found no tile"),
    ]
    for tiles, given, message in cases:
        with pytest.raises(ValueError, match=message):
            show_predictions(tiles, given)
    assert plt.get_fignums() == []


def test_no_figure_sets_a_global_style():
    before = dict(mpl.rcParams)
    tile = make_tile()
    show_tiles(tile)
    show_predictions([tile], {tile.id: np.zeros_like(tile.label)})
    assert dict(mpl.rcParams) == before


# small objects, confidence, notebooks


def lake_tile(**patches):
    "A tile of background with patches: name -> (class, rows, columns)."
    tile = make_tile(size=64)
    label = np.zeros((64, 64), np.uint8)
    for k, rows, cols in patches.values():
        label[slice(*rows), slice(*cols)] = k
    return replace(tile, label=label, valid=np.ones((64, 64), bool))


def test_a_close_up_shows_the_largest_patch_of_the_smallest_class():
    tile = lake_tile(ice=(1, (0, 30), (0, 60)), pond=(3, (40, 42), (5, 7)), lake=(3, (58, 62), (58, 63)))
    fig = show_predictions([tile], {tile.id: tile.label})
    close = fig.axes[4]
    assert close.get_title() == "lake: 24 px,\nmapped 24"
    (frame,) = fig.axes[0].patches
    assert (frame.get_xy(), frame.get_width()) == ((47.5, 47.5), 16)
    assert close.images[0].get_array().shape == (16, 16, 3)
    only_mapped = replace(tile, label=np.minimum(tile.label, 1) * (np.arange(64)[:, None] < 30))
    assert (
        show_predictions([only_mapped], {tile.id: tile.label}).axes[4].get_title() == "lake: 0 px,\nmapped 24"
    )


def test_no_close_up_without_a_small_class_or_with_zoom_off():
    large = lake_tile(ice=(1, (0, 30), (0, 60)))
    assert len(show_predictions([large], {large.id: large.label}).axes) == 4
    small = replace(lake_tile(lake=(3, (0, 4), (0, 4))), id="02_01")
    preds = {t.id: t.label for t in (large, small)}
    assert len(show_predictions([small], preds, zoom=False).axes) == 4
    both = show_predictions([large, small], preds)
    assert [ax.axison for ax in both.axes] == [True] * 4 + [False] + [True] * 5


@pytest.mark.parametrize("classes", [CLASSES, BINARY_CLASSES])
def test_confidence_begins_at_that_of_a_guess(classes):
    tile = make_tile(classes=classes)
    fig = show_predictions([tile], {tile.id: np.zeros_like(tile.label)}, {tile.id: np.full((24, 24), 0.7)})
    (shown,) = (ax for ax in fig.axes if ax.get_title() == "confidence")
    assert shown.images[0].get_clim() == (1 / len(classes), 1)


def test_a_notebook_shows_a_figure_once():
    fig = show_tiles([make_tile()])
    assert plt.get_fignums() == [fig.number]
    formatter = DisplayFormatter()
    assert not formatter.ipython_display_formatter(fig)  # goes on to the picture
    assert plt.get_fignums() == []
    fig.canvas.draw()  # it can still be drawn and saved


def test_false_positives_have_the_colour_of_no_class():
    lab = rgb2lab(colours(list(PALETTE)))
    red = rgb2lab(colours(["false positive"], ERROR_PALETTE))
    assert deltaE_ciede2000(lab, red).min() > 12


# scale


def test_lengths_of_bars_are_round():
    found = [_round_length(x) for x in (1, 1.9, 2, 4.99, 5, 9.99, 10, 0.3, 12345)]
    assert found == [1, 1, 2, 2, 5, 5, 10, 0.2, 10000]


def test_round_degrees_lie_where_an_edge_meets_them():
    at, values = _round_places(np.linspace(75.9, 77.1, 121))
    np.testing.assert_allclose(values, [76, 76.2, 76.4, 76.6, 76.8, 77])
    np.testing.assert_allclose(at, [10, 30, 50, 70, 90, 110])
    at, values = _round_places(np.linspace(34, 33, 101))  # rows count downwards
    np.testing.assert_allclose(at[values == 33.4], [60])
    turns = np.array([179.9, 180, -179.9])
    assert not _round_places(turns)[0].size, "none across the date line"


@pytest.mark.parametrize("placed", [True, False])
def test_a_bar_only_where_the_place_is_known(placed):
    "300 pixels of 30 m: three tenths are 2.7 km, so the bar is 2 km long."
    ax = plt.subplots()[1]
    ax.imshow(np.zeros((200, 300)))
    place = Georeference(CRS.from_epsg(32643) if placed else None, Affine(30, 0, 5e5, 0, -30, 3.66e6))
    NotebookFigure.add_scale(ax, place, (200, 300))
    NotebookFigure.add_degrees(ax, place, (200, 300))
    bars = [x for x in ax.artists if isinstance(x, AnchoredSizeBar)]
    assert [bar.txt_label.get_text() for bar in bars] == ["2 km"] * placed
    assert [text.get_text() for text in ax.texts] == ["", "N"] * placed
    labels = [text.get_text() for text in (*ax.get_xticklabels(), *ax.get_yticklabels())]
    assert ("33.06° N" in labels) == placed
