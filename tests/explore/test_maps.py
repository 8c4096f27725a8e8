"""Maps of runs and cross-validations by networks that did not see the tile."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from glacier_nb.experiments.cross_validate import CrossValidation
from glacier_nb.explore import maps as module
from glacier_nb.explore.maps import RunMaps, _Seen
from glacier_nb.prediction.members import PredictError
from glacier_nb.runs.folder import RunError
from glacier_nb.tiles.read import read_tiles


@pytest.fixture
def tiles(here):
    return read_tiles("data/demo")


def test_a_cross_validation_maps_each_tile_by_the_fold_that_held_it_out(here, tiles):
    found = RunMaps.open("cv", "data/demo")
    expected = CrossValidation.read("cv").held_out_maps(tiles)
    for tile in tiles:
        assert_array_equal(found.map(tile), expected[tile.id])
        assert found.seen(tile.id) is _Seen.HELD_OUT
        assert_array_equal(found.count(tile), found.counts[tile.id])
    networks = [found.networks(t.id)[0].path.parent.name for t in tiles]
    assert networks == ["cv-fold0", "cv-fold0", "cv-fold1", "cv-fold1"]


def test_a_run_knows_its_training_tiles(here, tiles):
    found = RunMaps.open("cv-fold1", "data/demo")
    assert [found.seen(t.id) for t in tiles] == [_Seen.TRAINED] * 2 + [_Seen.HELD_OUT] * 2
    assert found.matrix.to_numpy().sum() == sum(found.count(t).sum() for t in tiles[2:])


def test_tiles_of_another_folder_are_unknown(here, tiles):
    for name, networks in (("cv", 2), ("cv-fold0", 1)):
        found = RunMaps.open(name, "data")
        assert found.seen(tiles[0].id) is _Seen.UNKNOWN
        assert len(found.networks(tiles[0].id)) == networks
        with pytest.raises(RunError, match=r"found no counts of held-out tiles. To fix: name a run"):
            _ = found.matrix


def test_a_tile_is_mapped_once_and_anew_when_it_or_the_network_changes(here, tiles, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "tile_probs", lambda m, t: calls.append(t.id) or np.full((4, *t.shape), 0.25))
    monkeypatch.setenv("GLACIER_NB_CACHE", str(here / "fresh"))
    found = RunMaps.open("cv-fold0", "data/demo")
    for _ in range(2):
        found.probabilities(tiles[0])
    RunMaps.open("cv-fold0", "data/demo").probabilities(tiles[0])  # from the disk
    assert calls == [tiles[0].id]
    found.members[0].path.touch()
    RunMaps.open("cv-fold0", "data/demo").probabilities(tiles[0])
    assert len(calls) == 2
    found.recent = 1
    for tile in tiles:
        found.probabilities(tile)
    assert len(found._memory) == 1


def test_tiles_with_most_pixels_of_a_cell_come_first(here, tiles):
    found = RunMaps.open("cv", "data/demo")
    i, j = np.unravel_index(found.matrix.to_numpy().argmax(), (4, 4))
    first = found.tiles_with(found.classes[i], found.classes[j], 2)
    pixels = sorted((int(c[i, j]) for c in found.counts.values()), reverse=True)
    assert list(first.values()) == pixels[:2]


def test_several_names_and_none(here):
    assert list(RunMaps.open_all("cv, cv-fold1", "data/demo")) == ["cv", "cv-fold1"]
    assert RunMaps.open_all("", "data/demo") == {}
    with pytest.raises(RunError, match="no run 'cv-fold9'"):
        RunMaps.open_all("cv,cv-fold9", "data/demo")


def test_a_run_without_network_is_refused(here):
    folder = here / "outputs/begun"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    try:
        with pytest.raises(PredictError):
            RunMaps.open("begun", "data/demo")
    finally:
        (folder / "config.json").unlink()
        folder.rmdir()
