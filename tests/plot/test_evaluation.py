"""Figures of an evaluation: the numbers they draw, which tiles and patches they choose, what they refuse."""

from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_up import noise_tile
from rasterio.crs import CRS
from rasterio.transform import Affine

from glacier_nb.landsat import REFLECTANCE, TEMPERATURE
from glacier_nb.metrics.calibration import Calibration
from glacier_nb.metrics.causes import errors_by_cause
from glacier_nb.plot.evaluation import (
    _spectra,
    _three,
    _window,
    _worst,
    show_calibration,
    show_causes,
    show_errors,
    show_result,
    show_spectra,
)

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def flat(name, size=64):
    "A tile of 30 m without nodata: background, and glacier in its right half."
    tile = noise_tile(name, shape=(size, size), nodata=0)
    label = np.zeros((size, size), np.uint8)
    label[:, size // 2 :] = 1
    return replace(tile, label=label, crs=CRS.from_epsg(32643), transform=Affine(30, 0, 5e5, 0, -30, 3.66e6))


@pytest.fixture(scope="module")
def tiles():
    return [flat(f"01_{k:02}") for k in range(4)]


@pytest.fixture(scope="module")
def maps(tiles):
    "Errors that grow with the number of the tile: a square of 0, 4, 8 and 12 pixels."
    found = {}
    for k, t in enumerate(tiles):
        found[t.id] = t.label.copy()
        found[t.id][10 : 10 + 4 * k, 10 : 10 + 4 * k] = 1
    found["01_03"][40:45, 50:60] = 0
    return found


def titles(fig):
    return [ax.get_title() for ax in fig.axes if ax.get_title()]


def test_all_tiles_are_shown_worst_first(tiles, maps):
    found = titles(show_errors(tiles, maps))
    assert [t.split(":")[0] for t in found] == ["01_03", "01_02", "01_01", "01_00"]
    assert found[-1] == "01_00: MCC 1.00"
    assert len(show_errors(tiles[:1], maps).axes) == 1


def test_the_largest_patches_come_first(tiles, maps):
    chosen = _worst(tiles, maps, 9)
    assert [(t.id, kind, pixels) for t, _, kind, pixels in chosen] == [
        ("01_03", "false positive", 144),
        ("01_02", "false positive", 64),
        ("01_03", "false negative", 50),
        ("01_01", "false positive", 16),
    ]
    assert titles(show_errors(tiles, maps, close_ups=2)) == [
        *("01_03, row 0, column 0", "false positive: 144 pixels"),
        *("01_02, row 0, column 0", "false positive: 64 pixels"),
    ]


def test_thin_errors_are_no_patches_and_none_is_said(tiles):
    thin = {tiles[0].id: tiles[0].label.copy()}
    thin[tiles[0].id][:, 31] = 1
    assert _worst(tiles[:1], thin, 3) == []
    fig = show_errors(tiles[:1], thin, close_ups=3)
    assert fig.axes[0].texts[0].get_text().startswith("No patch of errors")


def test_one_window_does_not_show_two_patches(tiles):
    "Two squares nine pixels apart: the window of the larger one shows both."
    pred = tiles[0].label.copy()
    pred[10:18, 10:18] = 1
    pred[10:14, 22:26] = 1
    assert [n for *_, n in _worst(tiles[:1], {tiles[0].id: pred}, 5)] == [64]


def test_windows_lie_inside_the_tile(tiles):
    for row, col, side, expected in ((2, 60, 5, (0, 48, 16, 64)), (32, 32, 40, (0, 64, 0, 64))):
        rows, cols = _window(tiles[0], row, col, side)
        assert (rows.start, rows.stop, cols.start, cols.stop) == expected


def test_bars_are_shares_and_rates(tiles, maps):
    table = errors_by_cause(tiles, maps)
    left, right = show_causes(table).axes
    assert [t.get_text() for t in left.get_yticklabels()] == [
        name for name in table.index if table.loc[name, "pixels"] and name != "all"
    ]
    assert len(left.containers) == 3, "no bars for a wrong class, which does not occur"
    edge = [t.get_text() for t in left.get_yticklabels()].index("tile edge")
    share = table.loc["tile edge", "false positive"] / table.loc["all", "false positive"]
    assert left.containers[1][edge].get_width() == pytest.approx(share)
    wrong = table[["false positive", "false negative"]].sum(axis=1) / table["pixels"]
    assert right.texts[edge].get_text() == f"{wrong['tile edge']:.1%}"
    assert right.get_xlabel().endswith(f"{wrong['all']:.1%}")


def test_a_table_of_something_else_is_refused(tiles, maps):
    table = errors_by_cause(tiles, maps)
    for wrong in (table.drop("all"), table.drop(columns="pixels")):
        with pytest.raises(ValueError, match="expected those of errors_by_cause, and a row all"):
            show_causes(wrong)


def test_reliability_is_drawn_where_there_are_pixels():
    "Forty pixels of 0.9, of which 30 are right, and two of 0.6, too few for a point."
    p = np.array([[0.9] * 40 + [0.6] * 2])
    label = np.array([[1] * 30 + [0] * 10 + [1] * 2], np.uint8)
    found = Calibration.of(np.stack([1 - p, p]), label, np.ones(p.shape, bool), ("background", "glacier"))
    left, right = show_calibration(found).axes
    np.testing.assert_allclose(left.lines[1].get_xydata(), [[0.9005, 0.75]], atol=1e-6)
    assert left.get_title() == "expected calibration error 0.162"
    names = [line.get_label().split(":")[0] for line in right.lines]
    assert [name for name in names if not name.startswith("_")] == ["background", "glacier"]
    with pytest.raises(ValueError, match="found no pixel"):
        show_calibration(replace(found, top=found.top * 0))


@pytest.mark.parametrize("physical", [False, True])
def test_spectra_are_quartiles_in_physical_units(tiles, physical):
    tile = tiles[0]
    values = np.zeros((5, 64, 64))
    values[:4, :, 32:] = np.linspace(0.2, 0.6, 5).repeat([1, 15, 16, 16, 16])[:64, None]
    values[4] = 250 + 20 * (tile.label == 1)
    bands = values if physical else np.concatenate([REFLECTANCE.dn(values[:4]), TEMPERATURE.dn(values[4:])])
    table = _spectra([replace(tile, bands=bands.astype(np.float32))])
    expected = np.quantile(values[0, :, 32:], [0.25, 0.5, 0.75])
    np.testing.assert_allclose(table.loc["glacier", "B3"], expected, atol=1e-5)
    assert table.loc[("background", 0.5), "B10"] == pytest.approx(250, abs=1e-3)
    assert table.loc[("glacier", 0.5), "pixels"] == 64 * 32
    assert not {"debris", "lake"} & set(table.index.get_level_values(0)), "classes without a pixel"


def test_spectra_of_both_panels_name_the_classes(tiles):
    fig = show_spectra(iter(tiles[:2]))
    assert [t.get_text() for t in fig.legends[0].get_texts()] == [
        "background (4,096 pixels)",
        "glacier (4,096 pixels)",
    ]
    with pytest.raises(ValueError, match="found no valid pixel with a label"):
        show_spectra([])


def test_the_result_shows_worst_middle_and_best(tiles, maps):
    assert [t.id for t in _three(tiles, maps, 3)] == ["01_03", "01_01", "01_00"]
    scores = {"mcc": 0.93, "ci95": (0.9, 0.95), "baselines": {"boosting": 0.5, "valid mask": 0.3}}
    history = [{"epoch": 1, "mcc": 0.4}, {"epoch": 2, "mcc": 0.93}]
    fig = show_result(tiles, maps, scores, history, "a run")
    head = fig.get_suptitle().split("\n")
    assert head == ["a run", "MCC 0.930 (95 % interval over tiles 0.90 to 0.95) on 4 held-out tiles"]
    bars = next(ax for ax in fig.axes if ax.get_xlabel() == "MCC")
    assert [t.get_text() for t in bars.get_yticklabels()] == ["valid mask", "boosting", "this network"]
    assert [p.get_width() for p in bars.patches] == [0.3, 0.5, 0.93]


def test_the_result_of_one_tile_without_interval_curve_and_baselines(tiles, maps):
    fig = show_result(tiles[:1], maps, {"mcc": 1.0, "ci95": (None, None)}, of="test")
    assert fig.get_suptitle() == "MCC 1.000 on 1 test tile"
    assert len(fig.axes) == 5
    unscored = show_result(tiles[:1], maps, {"mcc": 1.0, "ci95": (None, None)}, [{"epoch": 1, "mcc": None}])
    assert not unscored.axes[-1].axison


@pytest.mark.parametrize("draw", [show_errors, lambda t, m: show_result(t, m, {})])
def test_tiles_without_label_or_map_are_refused(draw, tiles, maps):
    for some, message in (
        ([], "found no tile"),
        ([tiles[0], replace(tiles[1], label=None)], "no label or no map of 01_01"),
        ([flat("07_07")], "no label or no map of 07_07"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(some, maps)
