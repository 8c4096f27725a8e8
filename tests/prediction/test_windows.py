"""Scenes in windows: weights, the same numbers as a tile, no seams, nodata, rows that are continued."""

import numpy as np
import pytest
import torch
from map_workers import make_member

from glacier_nb.prediction.evaluate import tile_probs
from glacier_nb.prediction.views import PLAIN, make_views
from glacier_nb.prediction.windows import MapCause, MapError, SceneWindows, _Axis

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def members(scene):
    return make_member(scene, 0, texture=True), make_member(scene, 1)


def classes_and_valid(windows):
    probs, valid, _ = (np.concatenate(parts, -2) for parts in zip(*windows.strips(), strict=True))
    return probs.argmax(0), valid


@pytest.mark.parametrize("blend", ["hann", "gaussian"])
@pytest.mark.parametrize("overlap", [0, 32, 64])
@pytest.mark.parametrize("n", [1, 63, 128, 129, 160, 161, 300, 1000])
def test_weights_of_all_windows_sum_to_one(n, overlap, blend):
    axis, total, covered = _Axis(n, 128, overlap, blend), np.zeros(n), np.zeros(n, int)
    for (start, stop), weight in zip(axis.spans, axis.weights, strict=True):
        assert start % 32 == 0
        assert 0 < stop - start <= 128
        assert (weight >= 0).all()
        total[start:stop] += weight
        covered[start:stop] += 1
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert covered.min() >= 1
    for (start, stop), weight in zip(axis.spans, axis.weights, strict=True):
        assert (weight[covered[start:stop] == 1] == 1).all()  # the network's numbers to the bit
    assert axis.spans[-1][1] == n


def test_the_outer_quarter_of_an_overlap_is_not_used():
    weights = _Axis(1000, 128, 64, "hann").weights
    assert (weights[1][:16] == 0).all()
    assert (weights[1][16:48] > 0).all()
    assert (weights[0][:48] == 1).all()  # the scene begins there
    assert (weights[0][-16:] == 0).all()


def test_weights_rise_over_the_whole_of_a_larger_overlap():
    "The last two windows of 384 pixels in 512 overlap by 256."
    first, last = _Axis(512, 384, 128, "hann").weights
    assert (first[-64:] == 0).all()
    assert (np.diff(last[64:192]) > 0).all()


def test_a_scene_in_one_window_is_the_tile_to_the_bit(scene, members):
    views = make_views("flips")
    expected = tile_probs(members, scene.tile, views)
    ((probs, valid, carry),) = SceneWindows(members, scene, views, 192, 96).strips()
    np.testing.assert_array_equal(probs, expected)
    np.testing.assert_array_equal(valid, scene.valid)
    assert carry.shape[1] == 0


def test_texture_of_a_window_is_that_of_the_tile(scene, members):
    windows, image = SceneWindows(members, scene, PLAIN, 64, 32), members[0].image(scene.tile)
    assert windows.halo == 2
    for box in ((0, 64, 0, 64), (32, 96, 64, 128), (96, 150, 128, 170)):
        tile, inside = windows.tile(box)
        top, bottom, left, right = box
        torch.testing.assert_close(
            members[0].part(tile, inside), image[:, :, top:bottom, left:right], rtol=0, atol=0
        )


def test_the_size_of_the_windows_changes_few_pixels(scene, members):
    whole = tile_probs(members, scene.tile).argmax(0)
    for window, overlap in ((96, 32), (128, 64)):
        classes, valid = classes_and_valid(SceneWindows(members, scene, PLAIN, window, overlap))
        assert (classes != whole)[valid].mean() <= 0.001
    rough, valid = classes_and_valid(SceneWindows(members, scene, PLAIN, 64, 0))
    assert (rough != whole)[valid].mean() > 0.001  # without an overlap there are seams


def test_windows_without_a_valid_pixel_are_not_predicted(scene, members):
    seen = []
    hook = members[1].model.register_forward_hook(lambda *_: seen.append(1))
    windows = SceneWindows(members[1:], scene, PLAIN, 64, 0)
    down, across = windows.axes
    boxes = [(*rows, *cols) for rows in down.spans for cols in across.spans]
    empty = [b for b in boxes if not scene.valid[b[0] : b[1], b[2] : b[3]].any()]
    _, valid = classes_and_valid(windows)
    hook.remove()
    assert empty
    assert len(boxes) - len(empty) == len(seen)
    np.testing.assert_array_equal(valid, scene.valid)


def test_rows_go_on_from_the_carry(scene, members):
    windows = SceneWindows(members[1:], scene, PLAIN, 64, 32)
    rows = list(windows.strips())
    again = list(windows.strips(2, rows[1][2]))
    assert len(again) == len(rows) - 2
    for a, b in zip(rows[2:], again, strict=True):
        np.testing.assert_array_equal(a[0], b[0])


@pytest.mark.parametrize(
    "options",
    [{"window": 500}, {"window": 32}, {"overlap": 100}, {"overlap": 288}, {"overlap": -32}, {"blend": "hat"}],
)
def test_sizes_that_do_not_fit(scene, members, options):
    with pytest.raises(MapError, match="To fix: window = 512, overlap = 128, blend = 'hann'") as e:
        SceneWindows(members, scene, **options)
    assert e.value.cause is MapCause.OPTIONS
    SceneWindows(members, scene, window=512, overlap=128, blend="hann")
