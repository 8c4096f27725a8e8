"""Faults of a split are found; a split made by `split` has no error."""

from dataclasses import replace

import numpy as np
import pytest

from glacier_nb.checks.split import _content_key, _share_p, _shared_tiles, check_sides
from glacier_nb.data.stats import fit_stats
from glacier_nb.data.tileset import TileSet
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.report.findings import Finding
from glacier_nb.tiles.read import read_tiles
from glacier_nb.tiles.splits import LeakageError, Split, SplitError, split


@pytest.fixture(scope="module")
def tiles():
    return read_tiles(cached_demo(9, 96, 6))


def without(tiles, k):
    return [replace(t, label=np.where(t.label == k, 0, t.label).astype(np.uint8)) for t in tiles]


@pytest.mark.parametrize("fold", range(3))
def test_a_split_has_nothing_fatal(tiles, fold):
    found = check_sides(split(tiles, fold, 3))
    assert {f.severity for f in found} <= {"note", "warning"}
    assert {f.cause for f in found} <= {"class-missing"}


def test_copies_are_found(tiles):
    train, val = split(tiles, 0, 3)
    flipped = replace(val[0], id="b", bands=val[0].bands[:, ::-1], valid=val[0].valid[::-1])
    kinds = _shared_tiles(Split([*train, val[0], replace(val[0], id="a"), flipped], val)).kind
    assert list(kinds) == ["same tile", "same pixels", "flipped copy"]
    (first, *_) = check_sides(Split([*train, val[0]], val))
    assert (first.cause, first.severity) == ("split-shared", "fatal")
    assert val[0].id in first.evidence


def test_key_is_equal_for_all_symmetries():
    a = np.random.default_rng(0).random((8, 8))
    assert _content_key(a) == _content_key(a.T) == _content_key(np.rot90(a)) != _content_key(a + 1)


def test_sets_that_share_images(tiles):
    sides = split(tiles, 0, 3)
    stats = fit_stats(sides.train)
    sets = [TileSet.build(side, stats) for side in sides]
    causes = [f.cause for f in check_sides(sides, *sets)]
    assert "split-shared" not in causes
    assert check_sides(sides, sets[1], sets[1])[0].cause == "split-shared"


def test_touching_tiles(tiles):
    train, val = split(tiles, 0, 3)
    whole = [t for t in tiles if t.id in {u.id for u in train}]
    found = next(f for f in check_sides(Split(whole, val)) if f.cause == "split-touching")
    assert found.numbers["gap"] == 0
    assert found.numbers["buffer"] == 32
    assert found.severity == "warning"


def test_missing_classes(tiles):
    train, val = split(tiles, 0, 3)
    lacking = [f for f in check_sides(Split(without(train, 1), val), n_folds=3) if f.cause == "class-missing"]
    assert any(f.severity == "fatal" and f.numbers["classes"] == ["glacier"] for f in lacking)
    unseen = [f for f in check_sides(Split(train, without(val, 1)), n_folds=3) if f.cause == "class-missing"]
    (glacier,) = [f for f in unseen if "glacier" in f.numbers["classes"]]
    assert glacier.severity == "warning"
    assert set(glacier.change) == {"fold"}
    assert glacier.change["fold"] != 0


def test_uneven_shares_are_more_than_chance(tiles):
    many = [replace(t, id=f"{t.id}{i}") for i in range(3) for t in tiles]
    val = [replace(t, label=np.where(t.label == 1, 0, t.label).astype(np.uint8)) for t in many[:9]]
    for t in val:
        t.label[:4] = 1
    p = _share_p(Split(many[9:], val))
    assert p[1] < 0.01
    assert _share_p(Split(many[9:], many[:9]))[1] > 0.5


def test_errors_become_findings(tiles):
    assert Finding.of_error(SplitError("why")).cause == "split-impossible"
    assert Finding.of_error(LeakageError("why")).cause == "split-shared"
    assert check_sides(Split([], tiles))[0].cause == "split-impossible"
