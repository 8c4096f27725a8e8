"""Scores by distance: distances are those measured pixel by pixel, and every labelled pixel counts once."""

from dataclasses import replace

import numpy as np
import pytest
from affine import Affine
from made_up import noise_tile

from glacier_nb.landsat import CLASSES, IGNORE
from glacier_nb.metrics.distance import _CELL, _distances, confusion_by_distance
from glacier_nb.metrics.scores import confusion
from glacier_nb.tiles.splits import Split, SplitError


def placed(name, row, col, shape=(30, 34), size=30):
    tile = noise_tile(name, row + col, shape)
    return replace(tile, transform=Affine(size, 0, 30 * col, 0, -size, -30 * row))


@pytest.fixture(scope="module")
def sides():
    train = [placed("a", 0, 0), placed("b", 40, 0, size=60)]
    train[0].label[:, 20:] = IGNORE
    return Split(train, [placed("c", 0, 50), placed("d", 60, 150)])


def test_distances_are_those_between_pixels(sides):
    used = []
    for tile, (row, col), size in zip(sides.train, ((0, 0), (40, 0)), (1, 2), strict=True):
        rows, cols = np.nonzero(tile.valid & (tile.label != IGNORE))
        used.append(np.stack([row + (rows + 0.5) * size, col + (cols + 0.5) * size], 1))
    used = np.concatenate(used)
    for found, (row, col) in zip(_distances(sides), ((0, 50), (60, 150)), strict=True):
        at = np.stack(np.mgrid[row : row + 30, col : col + 34], -1) + 0.5
        exact = np.sqrt(((at[:, :, None] - used) ** 2).sum(-1)).min(-1)
        assert found.shape == (30, 34)
        assert np.abs(found - exact).max() < 2 * _CELL
        assert abs((found - exact).mean()) < _CELL / 2


def test_every_labelled_valid_pixel_counts_once(sides):
    rng = np.random.default_rng(0)
    maps = {t.id: rng.integers(0, 4, t.shape).astype(np.uint8) for t in sides.val}
    counts = confusion_by_distance(maps, sides, (0, 40, 80, 1000))
    assert counts.shape == (4, len(CLASSES), len(CLASSES))
    whole = sum(confusion(maps[t.id], t.label, 4, t.valid) for t in sides.val)
    np.testing.assert_array_equal(counts.sum(0), whole)
    assert counts[:3].any((1, 2)).all()
    assert not counts[3].any()


def test_unknown_places_are_refused(sides):
    bare = Split([replace(t, transform=Affine.identity()) for t in sides.train], sides.val)
    with pytest.raises(SplitError, match="no georeference: a, b"):
        _distances(bare)
