"""What is shown: overlays, facts, controls, the picture that a notebook stores."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from small_projects import run_cells

from glacier_nb import progress
from glacier_nb.config.fields import ConfigError
from glacier_nb.explore.explorer import Explorer
from glacier_nb.explore.maps import RunMaps
from glacier_nb.explore.pixels import ExploredTiles
from glacier_nb.explore.view import _error_legend
from glacier_nb.metrics.scores import mcc
from glacier_nb.plot.colours import ERROR_PALETTE
from glacier_nb.plot.tiles import error_map
from glacier_nb.runs.folder import RunError

ALL = "All pixels, nodata counted as background (as in the thresholds): "


@pytest.fixture(scope="module")
def tiles(explored):
    "The tiles, whose figure of the classes is drawn once for all tests."
    return ExploredTiles(explored / "data/demo")


@pytest.fixture
def explorer(here, tiles):
    found = Explorer("data/demo", "cv, cv-fold1", compare="none")
    found.data = tiles
    return found


def opened(data: bytes) -> np.ndarray:
    "A PNG as RGBA."
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))


def test_it_begins_with_a_held_out_tile_and_its_label(explorer):
    assert (explorer.tile, explorer.left, explorer.right) == ("01_01", ("label",), ("none",))
    kinds = ("map", "errors", "confidence", "outline")
    assert list(explorer.layers.values())[3:] == [(k, run) for run in ("cv", "cv-fold1") for k in kinds]


def test_a_map_is_compared_with_the_label_at_first(here):
    explorer = Explorer("data/demo", "cv-fold1")
    assert (explorer.tile, explorer.left, explorer.right) == ("02_01", ("label",), ("map", "cv-fold1"))
    chosen = Explorer("data/demo", "cv", overlay="none", compare="cv: errors")
    assert (chosen.left, chosen.right) == (("none",), ("errors", "cv"))
    expected = "expected one of none, label, label: outline, cv: map"
    with pytest.raises(ValueError, match=f"no overlay 'cv: mistakes': {expected}"):
        Explorer("data/demo", "cv", compare="cv: mistakes")


def test_overlays_are_those_of_the_library(explorer):
    tile, maps = explorer.data[explorer.tile], explorer.runs["cv"]
    found = maps.map(tile)
    errors = explorer.layer(("errors", "cv"))
    assert_array_equal(errors.values, error_map(tile.label, found, tile.valid))
    rgba = opened(errors.png())
    wrong = errors.values == list(ERROR_PALETTE).index("false positive")
    assert wrong.any()
    assert np.unique(rgba[wrong], axis=0).tolist() == [[0xB2, 0x18, 0x2B, 255]]
    assert not rgba[~tile.valid, 3].any()
    shown = explorer.layer(("map", "cv"))
    assert_array_equal(shown.values[tile.valid], found[tile.valid])
    steps = explorer.layer(("confidence", "cv")).values
    assert ((steps == 64) == ~tile.valid).all()
    assert explorer.layer(("none",)) is None


def test_the_pixels_of_a_cell(explorer):
    tile, maps = explorer.data[explorer.tile], explorer.runs["cv"]
    for i, truth in enumerate(maps.classes):
        for j, mapped in enumerate(maps.classes):
            explorer.show_cell("cv", truth, mapped)
            assert explorer.layer(explorer.left).values.sum() == maps.count(tile)[i, j]
    assert f"cv: {truth} mapped as {mapped}" in explorer.layers
    with pytest.raises(ValueError, match="no cell cv, moss, ice: expected a run and two of its classes"):
        explorer.show_cell("cv", "moss", "ice")


def test_wrong_values_are_refused_by_name(explorer):
    with pytest.raises(ValueError, match=r"no tile '01_9'.*To fix: tile = '01_0"):
        explorer.tile = "01_9"
    with pytest.raises(ValueError, match=r"bands = 'B5' is not allowed: expected one of true colour"):
        explorer.bands = "B5"
    with pytest.raises(ValueError, match=r"no overlay \('map', 'other'\)"):
        explorer.left = ("map", "other")
    assert (explorer.tile, explorer.bands, explorer.left) == ("01_01", "true colour", ("label",))


def test_steps_go_around(explorer):
    ids = explorer.data.ids
    explorer.step(-1)
    assert explorer.tile == ids[-1]
    explorer.step(1)
    assert explorer.tile == ids[0]


def test_outlines_leave_the_pixels_inside_free(explorer):
    tile, found = explorer.data[explorer.tile], explorer.layer(("outline", "cv"))
    own, both = explorer.layer(("outline",)), list(found.legend)
    assert_array_equal((found.values & 1) > 0, own.values > 0)
    assert both == ["outline of the label", "outline of the map", "both outlines"]
    assert list(own.legend) == both[:1]
    known, label = tile.valid & (tile.label != 255), np.pad(tile.label, 1, mode="edge")
    sides = [np.s_[:-2, 1:-1], np.s_[2:, 1:-1], np.s_[1:-1, :-2], np.s_[1:-1, 2:]]
    near = np.pad(known, 1)
    expected = known & (tile.label > 0) & np.any([(label[s] != tile.label) & near[s] for s in sides], 0)
    assert_array_equal(own.values > 0, expected)
    assert 0 < expected.sum() < (tile.label > 0).sum()
    image = np.zeros((*tile.shape, 3), np.uint8)
    assert (own.over(image, 0.3)[expected] == (0xFF, 0x8C, 0)).all()  # the opacity is that of fills
    _ = explorer.widget
    explorer.left, explorer.right = ("label",), ("outline", "cv")
    assert explorer.view.opaque == ["right"]


def test_values_have_units_and_an_undefined_index_says_so(explorer, monkeypatch):
    explorer.pixel = (5, 9)
    text, pixel = explorer.facts(), explorer.data.pixel("01_01", 5, 9)
    assert f"B10 {pixel.values['B10']:.4g} K" in text
    dark = pixel._replace(values=pixel.values | {"NDSI": np.nan})
    monkeypatch.setattr(explorer.data, "pixel", lambda *_: dark, raising=False)
    assert "NDSI undefined (a reflectance ≤ 0)" in explorer.facts()
    assert "nan" not in explorer.facts()


def test_the_matrix_names_its_pixels_and_both_mccs(explorer):
    maps = explorer.runs["cv"]
    valid = mcc(maps.matrix.to_numpy())
    assert maps.about == f"Valid pixels of 4 held-out tiles: <b>MCC {valid:.3f}</b>. {ALL}<b>MCC 0.500</b>."
    ends = {"ci95": [0.3, 0.5], "ci95_valid": [None, None]}
    maps.scores = {"mcc": 0.4, "baselines": {"a": 0.1, "b": 0.2}} | ends
    assert maps.about.endswith("0.400</b> (95 % interval 0.300 to 0.500); best baseline, b: MCC 0.200.")
    assert f"<b>MCC {valid:.3f}</b>." in maps.about


def test_errors_that_cannot_occur_are_not_in_the_legend(explorer):
    assert "wrong class" in explorer.layer(("errors", "cv")).legend
    two = _error_legend(("background", "glacier"), ("no data",))
    assert list(two) == ["correct: background", "correct: glacier", "false positive", "false negative"]


def test_facts_of_a_pixel(explorer):
    assert "Click a pixel" in explorer.facts()
    explorer.pixel = (5, 9)
    text, tile = explorer.facts(), explorer.data[explorer.tile]
    probs = explorer.runs["cv"].probabilities(tile)[:, 5, 9]
    assert f"background {probs[0]:.2f}" in text
    assert "held out" in text
    assert "a training tile" in text  # of cv-fold1
    assert "row 5, column 9 of 01_01" in text


def test_controls_and_page_change_with_the_values(explorer):
    view = explorer.widget.children[-2].children[0].children[0]
    bands, left = view.bands, view.left
    assert opened(bands)[..., :3].tolist() == explorer.data.picture(explorer.tile).tolist()
    view.place = [10.0, 12.0, 4.0]
    explorer.left = ("errors", "cv")
    assert view.left not in (left, b"")
    assert (view.bands, view.place) == (bands, [10.0, 12.0, 4.0])  # another overlay leaves the place
    explorer.right = ("map", "cv-fold1")
    assert view.right != b""
    assert view.names == ["01_01", "cv: errors", "cv-fold1: map"]
    explorer.step(1)
    assert view.place == [24.0, 24.0, 1.0]
    assert view.names[0] == explorer.tile
    assert view.bands != bands


def test_a_click_in_the_page_shows_the_pixel(explorer):
    _ = explorer.widget
    before = explorer._image.value
    explorer.view.pixel = [7, 11]
    assert explorer.pixel == (7, 11)
    assert "row 7, column 11" in explorer._facts.value
    assert explorer._image.value != before
    explorer.view._handle_custom_msg({"step": 1}, [])
    assert explorer.tile == explorer.data.ids[1]
    assert explorer.view.pixel == []


def test_another_tile_has_no_pixel_yet(explorer):
    _ = explorer.widget
    tiles = controls(explorer)["glacier-tile"]
    for change in (lambda: setattr(tiles, "value", "02_02"), lambda: explorer.step(1)):
        explorer.pixel = (3, 4)
        change()
        assert (explorer.pixel, explorer.view.pixel) == ((), [])
        assert "Click a pixel" in explorer._facts.value


def controls(explorer) -> dict:
    "Controls by their CSS class."
    found, left = {}, [explorer.widget]
    while left:
        part = left.pop()
        left += getattr(part, "children", ())
        found |= dict.fromkeys(getattr(part, "_dom_classes", ()), part)
    return found


def test_stretch_controls(explorer):
    part = controls(explorer)
    part["glacier-limits"].value = (5, 90)
    assert explorer.stretch == ("tile", 5.0, 90.0)
    part["glacier-stretch"].value = "fixed"
    assert explorer.stretch == ("fixed", 0.0, 1.0)
    explorer.bands = "B10"
    assert explorer.stretch == ("fixed", 240.0, 290.0)
    assert explorer.data.limits(explorer.tile, "B10", explorer.stretch).tolist() == [[240, 290]]
    part["glacier-stretch"].value = "shadow"
    assert explorer.stretch == ("shadow", 2.0, 98.0)
    part["glacier-stretch"].value = "all"
    assert explorer.stretch == ("all", 2.0, 98.0)


def test_cells_of_the_matrix_lead_to_their_tiles(explorer):
    maps = explorer.runs["cv"]
    i, j = np.unravel_index(maps.matrix.to_numpy().argmax(), (4, 4))
    truth, mapped = maps.classes[i], maps.classes[j]
    cell = controls(explorer)[f"glacier-cell-{truth}-{mapped}"]
    assert cell.description.startswith(f"{maps.matrix.iloc[i, j]:,}\n")
    cell.click()
    assert explorer.left == ("cell", "cv", truth, mapped)
    most = next(iter(maps.tiles_with(truth, mapped)))
    controls(explorer)[f"glacier-tile-{most}"].click()
    assert explorer.tile == most
    assert explorer.view.place[2] > 1


def test_what_goes_wrong_is_said_below_the_picture(explorer, monkeypatch):
    _ = explorer.widget

    def fails(tile):
        raise RunError("<no network>")

    monkeypatch.setattr(explorer.runs["cv"], "map", fails, raising=False)
    explorer.left = ("map", "cv")
    assert "&lt;no network&gt;" in explorer.status.value
    assert explorer.view.left == b""
    explorer.pixel = (1, 1)
    assert "no network" in explorer.status.value  # the overlay is still missing
    explorer.left = ("label",)
    assert "no network" not in explorer.status.value


def test_a_training_tile_is_said_to_be_one(explorer):
    _ = explorer.widget
    explorer.right = ("map", "cv-fold1")
    assert "01_01: a training tile (cv-fold1): it knew the label" in explorer.status.value
    explorer.bands, explorer.pixel = "B6", (2, 2)
    assert "it knew the label" in explorer.status.value
    explorer.tile = "02_01"
    assert explorer.status.value == "02_01: held out (cv-fold1)"


def test_labels_are_read_with_the_classes_of_the_run(here, monkeypatch):
    source, found = Explorer("data/demo", "cv-fold0"), RunMaps.open("cv-fold0", "data/demo")
    member = found.members[0]
    found.members = [replace(member, cfg=replace(member.cfg, classes="binary"))]
    monkeypatch.setattr(RunMaps, "open_all", lambda *_: {"cv-fold0": found})
    binary = Explorer("data/demo", "cv-fold0")
    assert (source.data.classes[1:3], binary.data.classes) == (
        ("glacier", "debris"),
        ("background", "glacier"),
    )
    assert ("errors", "cv-fold0") not in binary.layers.values()  # the network has four


def test_nodata_has_neither_values_nor_probabilities(explorer):
    row, col = np.argwhere(~explorer.data[explorer.tile].valid)[0]
    explorer.pixel = (int(row), int(col))
    assert "no data" in explorer.facts()
    assert "nan" not in explorer.facts()
    assert "cv" not in explorer.facts()


def test_without_a_page_no_widget_is_made(explorer, monkeypatch):
    explorer.pixel, explorer.right = (5, 9), ("map", "cv")
    found = explorer._repr_mimebundle_()
    assert set(found) == {"text/plain", "text/html"}
    assert not hasattr(explorer, "_widget")
    assert len(found["text/html"]) < 300_000
    assert "data:image/jpeg" in found["text/html"]
    assert "row 5, column 9" in found["text/html"]
    monkeypatch.setattr(progress, "_has_page", lambda: True)
    assert "application/vnd.jupyter.widget-view+json" in explorer._repr_mimebundle_()


def test_tiles_without_labels_and_runs(bare_tiles):
    explorer = Explorer(bare_tiles)
    assert list(explorer.layers) == ["none", "label", "label: outline"]
    explorer.left = ("outline",)
    assert explorer.layer(explorer.left) is None
    explorer.left = ("none",)
    assert explorer.left == ("none",)
    _ = explorer.widget
    explorer.view.pixel = [3, 50]
    assert "no label" in explorer.facts()
    assert explorer.view.metres == 0
    assert explorer.view.shape == [40, 56]
    assert explorer.view.left == b""
    assert "<img" in explorer.page()


def test_the_notebook_with_and_without_runs(here, monkeypatch):
    found = run_cells(here / "nbs/explore.ipynb", runs="cv", tile="02_01", bands="NDSI")["explorer"]
    assert (found.tile, found.bands, list(found.runs)) == ("02_01", "NDSI", ["cv"])
    bare = run_cells(here / "nbs/explore.ipynb", runs="")["explorer"]
    assert (bare.runs, bare.right) == ({}, ("none",))
    with pytest.raises(RunError, match="no run 'demo'"):
        run_cells(here / "nbs/explore.ipynb")
    with pytest.raises(ConfigError, match=re.escape("tile = 201 is not allowed: expected text")):
        run_cells(here / "nbs/explore.ipynb", tile=201)
