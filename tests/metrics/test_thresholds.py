"""MCC by threshold and smallest patch: equal to maps made one by one; thresholds chosen on other tiles."""

from dataclasses import replace

import numpy as np
import pytest
from made_up import noise_tile
from numpy.testing import assert_array_equal
from scipy.ndimage import gaussian_filter, label

from glacier_nb.landsat import IGNORE
from glacier_nb.metrics.scores import confusion, mcc
from glacier_nb.metrics.thresholds import MapThresholds, _ice_sizes

CLASSES = ("background", "glacier", "debris")
STEPS, SIZES = (0.2, 0.5, 0.8), (1, 5, 30)


def pair(name, seed, bias):
    "A tile of smooth classes with ignored pixels, and probabilities of ice that are too low by a factor."
    rng = np.random.default_rng(seed)
    fields = gaussian_filter(rng.standard_normal((3, 40, 40)), (0, 4, 4)) * 12
    tile = noise_tile(name, seed, (40, 40), 0.0, CLASSES)
    truth = fields.argmax(0).astype(np.uint8)
    truth[:2] = IGNORE
    odds = np.exp(fields + gaussian_filter(rng.standard_normal((3, 40, 40)), (0, 1, 1)) * 2)
    odds[0] *= bias
    return replace(tile, label=truth), (odds / odds.sum(0)).astype(np.float32)


@pytest.fixture(scope="module")
def pairs():
    return [pair(f"t{k}", k, bias) for k, bias in enumerate((4, 4, 4, 0.3))]


@pytest.fixture(scope="module")
def found(pairs):
    return MapThresholds.of([t for t, _ in pairs], {t.id: p for t, p in pairs}, STEPS, SIZES)


def test_counts_are_those_of_maps_made_one_by_one(pairs, found):
    for k, (tile, probs) in enumerate(pairs):
        for i, t in enumerate(STEPS):
            ice = 1 - probs[0] >= t
            numbers, n = label(ice, np.ones((3, 3)))
            for j, size in enumerate(SIZES):
                small = [m for m in range(1, n + 1) if (numbers == m).sum() < size]
                expected = np.where(ice & ~np.isin(numbers, small), 1 + probs[1:].argmax(0), 0)
                assert_array_equal(found.counts[k, i, j], confusion(expected, tile.label, 3))
                assert_array_equal(MapThresholds.map_at(probs, t, size), expected)


def test_the_usual_map_takes_the_most_probable_class(pairs, found):
    assert_array_equal(found.usual, sum(confusion(p.argmax(0), t.label, 3) for t, p in pairs))
    table = found.table
    assert found.best == table.stack().idxmax()
    assert table.loc[found.best] == pytest.approx(table.to_numpy().max())
    assert table.loc[0.2, 1] > mcc(found.usual), "ice is too improbable in most tiles: a low threshold helps"


def test_a_tile_does_not_choose_its_own_threshold(found):
    honest, chosen = found.elsewhere()
    own = found.counts[:, STEPS.index(0.2), SIZES.index(1)]
    assert honest <= found.table.to_numpy().max()
    for k, tile in enumerate(found.tiles):
        others = np.delete(found.counts, k, 0).sum(0)
        grid = np.array([[mcc(cm) for cm in row] for row in others])
        i, j = np.unravel_index(grid.argmax(), grid.shape)
        assert chosen.loc[tile].tolist() == [STEPS[i], SIZES[j]]
    assert chosen.loc["t3", "threshold"] == 0.2, "the others need a low one, which this tile does not"
    assert mcc(own[3]) < mcc(found.counts[3].sum(0)[0]) or honest < found.table.loc[found.best]


def test_groups_are_left_out_together(found):
    groups = dict(zip(found.tiles, (0, 0, 1, 1), strict=True))
    _, chosen = found.elsewhere(groups)
    assert chosen.loc["t0"].equals(chosen.loc["t1"])
    assert chosen.loc["t2"].equals(chosen.loc["t3"])
    with pytest.raises(ValueError, match="expected two groups"):
        found.elsewhere(dict.fromkeys(found.tiles, 0))


def test_patches_that_touch_at_a_corner_are_one():
    ice = np.zeros((5, 5), bool)
    ice[0, 0] = ice[1, 1] = ice[3, 4] = True
    assert _ice_sizes(ice)[[0, 1, 3, 2], [0, 1, 4, 2]].tolist() == [2, 2, 1, 0]


def test_it_shows_which_number_is_honest(found):
    page = found._repr_html_()
    assert "too high" in page
    assert "chosen on other tiles" in page
    assert "MCC" in repr(found)


def test_wrong_input_is_named(pairs):
    tiles = [t for t, _ in pairs]
    for args, words in (
        (([], {}), "no tile"),
        ((tiles, {}), "t0, t1"),
        ((tiles, {t.id: p for t, p in pairs}, (0.0,)), "thresholds"),
        ((tiles, {t.id: p for t, p in pairs}, STEPS, ()), "1 pixel or more"),
    ):
        with pytest.raises(ValueError, match=words):
            MapThresholds.of(*args)
