"The same pixels in two tiles: every shift and turn is found, and nothing else."

from itertools import combinations

import numpy as np
import pytest

from glacier_nb.tiles.overlaps import _KEEP, Marks, find_overlaps

SCENE = np.random.default_rng(0).integers(7000, 40000, (5, 128, 128)).astype(np.float32)
ALL = np.ones((128, 128), bool)


def chips(size, step):
    starts = range(0, 128 - size + 1, step)
    return {(r, c): SCENE[:, r : r + size, c : c + size] for r in starts for c in starts}


def marks(chips):
    return [Marks.of(chip, np.ones(chip.shape[1:], bool)) for chip in chips]


@pytest.mark.parametrize(("size", "step"), [(32, 16), (64, 16), (32, 27), (16, 12)])
def test_all_pairs_with_common_pixels_and_no_others_are_found(size, step):
    cut = chips(size, step)
    at = list(cut)
    found = {(o.a, o.b): o for o in find_overlaps(marks(cut.values()))}
    moves = {(i, j): np.subtract(at[j], at[i]) for i, j in combinations(range(len(at)), 2)}
    assert set(found) == {pair for pair, move in moves.items() if (abs(move) < size).all()}
    assert all(found[pair].shift == tuple(moves[pair]) and found[pair].upright for pair in found)


def test_tiles_side_by_side_share_nothing():
    assert find_overlaps(marks(chips(32, 32).values())) == []


@pytest.mark.parametrize("k", range(8))
def test_mirrored_and_turned_copies_are_found(k):
    turned = np.rot90(SCENE[:, :, ::-1] if k >= 4 else SCENE, k % 4, (1, 2))
    (found,) = find_overlaps(marks([SCENE]), marks([turned]))
    assert found.share == 1
    assert found.upright == (k == 0)


def test_a_copy_with_other_nodata_is_found_and_one_in_another_coding_is_not():
    valid = np.random.default_rng(1).random((128, 128)) > 0.1
    (found,) = find_overlaps(marks([SCENE]), [Marks.of(np.where(valid, SCENE, 0), valid)])
    assert found.share > 0.9
    assert find_overlaps(marks([SCENE]), marks([SCENE * np.float32(2.75e-5)])) == []


def test_constant_and_repeated_pixels_are_no_overlap():
    flat, steps = np.full_like(SCENE, 7), np.tile(np.arange(4, dtype=np.float32), (5, 128, 32))
    assert [len(m.hashes) for m in marks([flat, steps])] == [0, 0]
    assert find_overlaps([]) == find_overlaps(marks([flat, flat, SCENE[:, :2]])) == []


def test_marks_survive_as_text_and_some_of_them_are_enough():
    (own,) = marks([SCENE])
    again = Marks.of_text(own.to_text())
    assert len(own.hashes) == _KEEP
    np.testing.assert_array_equal(again.hashes, own.hashes)
    np.testing.assert_array_equal(again.places, own.places)
    (found,) = find_overlaps([own.first(64)], marks([SCENE[:, 40:]]))
    assert found.shift == (40, 0)
    assert 0.5 < found.share <= 1
    half = own.select(r < 64 for r, _c in own.places)
    (found,) = find_overlaps([half], marks([SCENE]))
    assert found.box[1] <= 65


def test_a_window_in_many_tiles_is_no_explosion():
    found = find_overlaps(marks([SCENE[:, :16, :16]] * 60))
    assert {o.b - o.a for o in found} >= {1, 2, 3}
    assert len(found) < 60 * 32
