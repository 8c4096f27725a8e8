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
    names = Finding.of_error(SplitError("n_folds = 9 is not possible", "set n_folds = 3"))
    assert (names.evidence, names.fix) == ("n_folds = 9 is not possible.", "Set n_folds = 3.")
    assert check_sides(Split([], tiles))[0].cause == "split-impossible"


def chips(tile, size, step):
    for r in range(0, tile.shape[0] - size + 1, step):
        for c in range(0, tile.shape[1] - size + 1, step):
            at, place = np.s_[r : r + size, c : c + size], tile.transform @ tile.transform.translation(c, r)
            part = {n: getattr(tile, n)[at] for n in ("valid", "label")} | {"bands": tile.bands[:, *at]}
            yield replace(tile, id=f"{r:03}_{c:03}", transform=place, **part)


def places(sides):
    return [f for f in check_sides(sides) if f.cause in ("labels-lost", "split-names")]


def test_labels_lost_to_the_buffer():
    (tile,) = read_tiles(cached_demo(1, 256, 6))
    (lost,) = places(split(list(chips(tile, 128, 32)), 0, 5))
    assert lost.severity == "warning"
    assert lost.numbers["left"] < 0.3
    assert lost.numbers["overlap"] == 0.75
    assert len(lost.numbers["dropped"]) >= 5
    assert "75% of one" in lost.evidence
    assert lost.fix.startswith("Cut the tiles side by side")
    assert places(split(list(chips(tile, 128, 128)), 0, 2)) == []
    four = [t for t in chips(tile, 64, 64) if t.id in ("000_000", "000_064", "064_000", "064_064")]
    (small,) = places(split(four, 0, 2))
    assert small.fix.startswith("Cut larger tiles: of 64 x 64 pixels")


def test_places_from_names_are_noted(tiles):
    bare = [replace(t, crs=None, transform=t.transform.identity()) for t in tiles]
    (note,) = places(split(bare, 0, 3))
    assert (note.cause, note.severity) == ("split-names", "note")
    assert places(split(tiles, 0, 3)) == []


def test_errors_of_the_split_keep_their_fix(tiles):
    one = [replace(t, transform=tiles[0].transform) for t in tiles]
    try:
        split(one, 0, 3)
    except SplitError as error:
        found = Finding.of_error(error)
    assert (found.cause, found.severity) == ("split-footprint", "fatal")
    assert found.evidence.startswith("9 tiles have 1 footprint")
    assert found.fix.startswith("Remove this transform, so that the names")


def test_shared_pixels_at_other_places(tiles):
    train, val = split(tiles, 0, 3)
    far = replace(
        val[0], id="far", bands=np.roll(val[0].bands, 9, 1), transform=tiles[0].transform.translation(9e6, 0)
    )
    shared = [f for f in check_sides(Split([*train, far], val)) if f.cause == "split-shared"]
    assert "1 pairs of training and validation tiles share pixels: far and" in shared[0].evidence
