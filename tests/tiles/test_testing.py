"""Test tiles apart from all tiles of a run: what is ignored, what is an error, and what its fix does."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from affine import Affine
from made_up import noise_tile

from glacier_nb.landsat import IGNORE
from glacier_nb.tiles.regions import region_split
from glacier_nb.tiles.splits import LeakageError, Split, SplitCause, SplitError, split
from glacier_nb.tiles.testing import apart_from

SIDE, BUFFER = 40, 6
NOWHERE = Affine.identity()
FAR = Affine(30, 0, 9e6, 0, -30, 9e6)


def placed(row, col, **changed):
    tile = noise_tile(f"{row:02}_{col:02}", 100 * row + col, (SIDE, SIDE))
    return replace(tile, transform=Affine(30, 0, 30 * SIDE * col, 0, -30, -30 * SIDE * row), **changed)


@pytest.fixture(scope="module")
def own():
    return [placed(r, c) for r, c in product(range(3), range(3))]


@pytest.fixture(scope="module")
def south():
    return [placed(3, c) for c in range(3)]


@pytest.fixture
def final(own):
    return replace(split(own, None), buffer=BUFFER)


def test_labels_beside_test_tiles_are_ignored_and_nothing_else(own, south, final):
    sides = apart_from(final, south)
    assert [t.id for t in sides.test] == ["03_00", "03_01", "03_02"]
    assert len(sides.train) == 9
    for before, after in zip(own, sides.train, strict=True):
        expected = before.label.copy()
        expected[SIDE - BUFFER :] = IGNORE if before.id.startswith("02") else expected[SIDE - BUFFER :]
        np.testing.assert_array_equal(after.label, expected)
    assert Split(sides.train, south, BUFFER).audit.empty
    assert not Split(sides.train, south, BUFFER + 1).audit.empty
    assert apart_from(final, []) is final


def test_a_training_tile_within_the_buffer_is_named(own, south):
    sides = apart_from(region_split(own, None), south)
    assert sides.dropped == ["02_00", "02_01", "02_02"]
    assert sides.left == pytest.approx(2 / 3, abs=0.02)
    with pytest.raises(SplitError, match="all 9 training tiles lie within 120 pixels of test tiles") as e:
        apart_from(replace(region_split(own, None), buffer=3 * SIDE), south)
    assert e.value.fix == 'set split = "blocks", whose buffer is narrower'
    assert e.value.cause is SplitCause.IMPOSSIBLE


def turned(tile):
    return replace(tile, bands=tile.bands[:, ::-1], valid=tile.valid[::-1])


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("same pixels", lambda t: replace(t, id="copy", transform=FAR)),
        ("turned copy", lambda t: replace(turned(t), id="turned", transform=FAR)),
        ("overlap", lambda t: replace(t, id="later", bands=t.bands + 7)),
        ("same id", lambda t: replace(t, bands=t.bands + 7, transform=NOWHERE)),
        ("same pixels", lambda t: replace(t, id="copy", transform=NOWHERE)),
    ],
)
@pytest.mark.parametrize("held", [False, True])
def test_known_test_tiles_are_an_error_whose_fix_works(own, south, final, kind, change, held):
    "Also where the run knows them as held-out tiles, which choose its epoch."
    sides = split(own, 0, 3, BUFFER) if held else final
    known = change((sides.val if held else sides.train)[1])
    far = replace(south[0], transform=FAR * Affine.translation(0, 9 * SIDE))
    with pytest.raises(LeakageError, match=rf"^1 of 2 test tiles are known .*{kind} of ") as e:
        apart_from(sides, [known, far])
    assert e.value.cause is SplitCause.SHARED
    assert e.value.fix == f"move the files of {known.id} out of the folder of test tiles"
    assert apart_from(sides, [far]).test == [far]
    with pytest.raises(LeakageError) as e:
        apart_from(sides, [known])
    assert e.value.fix == "name a folder of other tiles in test_dir"


def test_one_name_at_two_places_is_no_leak(own, south, final):
    sides = apart_from(final, [replace(south[1], id=own[4].id)])
    assert len(sides.train) == 9


def test_held_out_tiles_may_touch_test_tiles(own, south):
    "Nothing is learned from their labels beside the test."
    sides = split(
        own, 0, 3, BUFFER, {t.id: int(t.id.startswith("02")) for t in own} | {"00_00": 1, "02_00": 0}
    )
    sides = replace(sides, train=sides.val, val=sides.train)
    assert apart_from(sides, south).val == sides.val
