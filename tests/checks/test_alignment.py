"""Labels that are flipped, rotated, shifted or of another tile are found; healthy ones give no finding."""

from dataclasses import replace

import numpy as np
import pytest

from glacier_nb.checks.alignment import (
    _SYMMETRIES,
    _agreement,
    _pooled,
    _ReducedTile,
    _register,
    _registration_table,
    _shifted_label,
    _shifted_moments,
    _views,
    check_registration,
)
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.landsat import IGNORE
from glacier_nb.tiles.read import read_tiles


@pytest.fixture(scope="module")
def tiles():
    return read_tiles(cached_demo(9, 128, 6))


def relabelled(tiles, change):
    return [replace(t, label=np.ascontiguousarray(change(t.label))) for t in tiles]


@pytest.mark.parametrize(("n", "size", "seed"), [(9, 64, 0), (6, 64, 9), (6, 96, 3), (6, 128, 10)])
def test_healthy_tiles_have_no_finding(n, size, seed):
    assert check_registration(read_tiles(cached_demo(n, size, seed))) == []


@pytest.mark.parametrize("name", list(_SYMMETRIES)[1:])
def test_common_symmetry_is_found(tiles, name):
    (found,) = check_registration(relabelled(tiles, _SYMMETRIES[name]))
    back = {
        "rotated by 90 degrees": "rotated by 270 degrees",
        "rotated by 270 degrees": "rotated by 90 degrees",
    }
    assert (found.cause, found.severity) == ("label-turned", "fatal")
    assert found.numbers["by"] == back.get(name, name)
    assert found.numbers["tiles"] >= 8


@pytest.mark.parametrize(("row", "col"), [(8, 0), (0, -8)])
def test_shift_of_eight_is_found(tiles, row, col):
    (found,) = check_registration(relabelled(tiles, lambda a: _shifted_label(a, row, col)))
    assert found.cause == "label-shifted"
    assert abs(found.numbers["rows"] + row) <= 4
    assert abs(found.numbers["columns"] + col) <= 4


def test_exchanged_labels_are_named(tiles):
    mixed = [replace(t, label=tiles[{0: 8, 8: 0}.get(i, i)].label) for i, t in enumerate(tiles)]
    (found,) = check_registration(mixed)
    assert found.cause == "label-elsewhere"
    assert found.severity == "warning"
    assert found.numbers["labels"] == {tiles[0].id: tiles[8].id, tiles[8].id: tiles[0].id}


def test_shuffled_labels_are_fatal(tiles):
    order = np.random.default_rng(1).permutation(9)
    (found,) = check_registration(
        [replace(t, label=tiles[j].label) for t, j in zip(tiles, order, strict=True)]
    )
    assert (found.cause, found.severity) == ("label-elsewhere", "fatal")


def test_moments_equal_numpy():
    rng = np.random.default_rng(0)
    valid = (rng.random((20, 24)) > 0.2).astype(np.float32)
    e, label = (rng.random((20, 24)).astype(np.float32) for _ in range(2))
    view, known = _ReducedTile("a", e[None], valid, label, np.ones_like(valid)), np.ones_like(valid)
    a = _agreement(_shifted_moments(view, e, [(label, known)], 5))[0]
    inside = (valid * _shifted_label(known, -3, 4)) > 0
    expected = np.corrcoef(e[inside], _shifted_label(label, -3, 4)[inside])[0, 1]
    np.testing.assert_allclose(a[5 - 3, 5 + 4], expected, atol=1e-4)


def test_nothing_is_changed_and_order_does_not_matter(tiles):
    before = [t.label.copy() for t in tiles]
    a, b = _registration_table(tiles), _registration_table(tiles[::-1])
    assert a.equals(b)
    assert all((x == t.label).all() for x, t in zip(before, tiles, strict=True))
    assert _pooled(_register(tiles))["by"] == "as it is"


def test_odd_input_has_no_finding(tiles):
    bands = tiles[0].bands.copy()
    bands[1, :40] = np.nan
    odd = [replace(tiles[0], bands=bands), replace(tiles[1], label=np.zeros_like(tiles[1].label)), *tiles[2:]]
    odd[2] = replace(odd[2], label=np.full_like(odd[2].label, IGNORE))
    odd[3] = replace(odd[3], label=None)
    assert check_registration(odd) == []
    assert len(_views(odd)) == 6
    assert check_registration([]) == check_registration(tiles[:3]) == []
    assert _registration_table([]).empty
    assert check_registration([replace(t, label=t.valid.astype(np.uint8)) for t in tiles]) == []
