"""Folds, buffers and the audit on synthetic grids, with invalid input."""

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform

from glacier_nb.landsat import CLASSES, IGNORE
from glacier_nb.tiles.overlaps import find_overlaps
from glacier_nb.tiles.read import Tile
from glacier_nb.tiles.splits import (
    LeakageError,
    Split,
    SplitCause,
    SplitError,
    _adjacency,
    _leakage_audit,
    _pixel_box,
    fold_table,
    spatial_folds,
    split,
)

SIDE = 24
UTM = CRS.from_epsg(32643)


def make_tile(row, col, name=None, crs=UTM, side=SIDE, seed=None, classes=CLASSES):
    "A tile of noise at a place on a 30 m grid."
    rng = np.random.default_rng(100 * row + col if seed is None else seed)
    place = Affine(30, 0, 567945 + 30 * side * col, 0, -30, 3771855 - 30 * side * row)
    label = rng.integers(0, len(classes), (side, side)).astype(np.uint8)
    bands = rng.normal(20000, 4000, (5, side, side)).astype(np.float32)
    return Tile(name or f"{row:02}_{col:02}", bands, np.ones((side, side), bool), label, crs, place, classes)


def grid(rows=5, cols=5, **kwargs):
    return [make_tile(r, c, **kwargs) for r, c in product(range(rows), range(cols))]


def components(tiles):
    "Number of connected groups, corners included."
    touch = _adjacency(np.array([_pixel_box(tiles[0], t) for t in tiles])) > 0
    group = list(range(len(tiles)))
    for a, b in zip(*np.nonzero(touch), strict=True):
        group = [group[a] if g == group[b] else g for g in group]
    return len(set(group))


def nearest(train, val):
    "By brute force: the least number of pixels between a used training pixel and any validation pixel."
    best = np.inf
    for t, v in product(train, val):
        shift = np.round([(t.transform.f - v.transform.f) / 30, (v.transform.c - t.transform.c) / 30]).astype(
            int
        )
        rows, cols = np.nonzero(t.valid & (t.label != IGNORE))
        h, w = v.valid.shape
        dc = np.maximum(np.maximum(shift[1] - cols - 1, cols - (shift[1] + w)), -1)
        dr = np.maximum(np.maximum(shift[0] - rows - 1, rows - (shift[0] + h)), -1)
        best = min(best, np.maximum(dr, dc).min(initial=10**9))
    return best


@pytest.mark.parametrize(
    ("rows", "cols", "n_folds"), [(5, 5, 5), (4, 5, 5), (3, 3, 3), (2, 7, 4), (6, 6, 5), (1, 9, 2)]
)
def test_folds_are_balanced_connected_and_complete(rows, cols, n_folds):
    tiles = grid(rows, cols)
    folds = spatial_folds(tiles, n_folds)
    sizes = np.bincount([folds[t.id] for t in tiles], minlength=n_folds)
    assert sizes.sum() == len(tiles)
    assert sizes.max() - sizes.min() <= 1
    assert all(components([t for t in tiles if folds[t.id] == k]) == 1 for k in range(n_folds))


def test_folds_cut_few_edges():
    tiles = grid()
    cut = fold_table(tiles, spatial_folds(tiles, 5)).edges.sum() / 2
    strips = fold_table(tiles, {t.id: int(t.id[:2]) for t in tiles}).edges.sum() / 2
    by_turns = fold_table(tiles, {t.id: k % 5 for k, t in enumerate(tiles)}).edges.sum() / 2
    assert cut <= 17 < strips == 20 <= by_turns


def test_folds_depend_neither_on_order_nor_on_the_source_of_the_place():
    tiles = grid()
    folds = spatial_folds(tiles, 5)
    shuffled = [tiles[k] for k in np.random.default_rng(0).permutation(25)]
    bare = [replace(t, crs=None, transform=Affine.identity()) for t in tiles]
    assert spatial_folds(shuffled, 5) == spatial_folds(bare, 5) == folds


def test_a_rare_class_is_spread_over_the_folds_where_it_can_be():
    tiles = [replace(t, label=t.label % 3) for t in grid(4, 4)]
    for k in (0, 3, 12, 15):  # lakes in the four corners
        tiles[k].label[:3] = 3
    table = fold_table(tiles, spatial_folds(tiles, 4))
    assert (table.lake > 0).all()


def test_tiles_of_two_dates_stay_in_one_fold():
    tiles = grid(3, 4)
    second = [replace(t, id=f"later_{t.id}", bands=t.bands + 1) for t in tiles]
    folds = spatial_folds(tiles + second, 4)
    assert all(folds[t.id] == folds[f"later_{t.id}"] for t in tiles)


@pytest.mark.parametrize("buffer", [1, 5, 8])
@pytest.mark.parametrize("fold", range(4))
def test_no_used_training_pixel_is_within_the_buffer(fold, buffer):
    tiles = grid(4, 4)
    train, val = split(tiles, fold, 4, buffer)
    assert nearest(train, val) == buffer
    assert _leakage_audit(train, val, buffer).empty
    Split(train, val, buffer).check()
    assert (
        _leakage_audit(train, val, buffer + 1).gap.min() == buffer
    )  # not a pixel more than necessary is ignored


def test_split_changes_neither_its_input_nor_the_images():
    tiles = grid(3, 3)
    before = [t.label.copy() for t in tiles]
    train, val = split(tiles, 0, 3, 6)
    assert all(np.array_equal(t.label, b) for t, b in zip(tiles, before, strict=True))
    own = {t.id: t for t in tiles}
    assert all(t.bands is own[t.id].bands and t.valid is own[t.id].valid for t in train)
    assert all(t is own[t.id] for t in val)
    assert {t.id for t in train} | {t.id for t in val} == set(own)


@pytest.mark.parametrize("seed", range(5))
def test_random_split_fails_the_audit(seed):
    tiles = grid()
    order = np.random.default_rng(seed).permutation(25)
    folds = {tiles[k].id: int(i % 5) for i, k in enumerate(order)}
    for k in range(5):
        found = _leakage_audit(*split(tiles, k, buffer=0, folds=folds), 4)
        assert "shared edge" in set(found.kind)
        assert found.gap.min() == 0
    with pytest.raises(LeakageError, match="shared edge of"):
        Split(*split(tiles, 0, buffer=0, folds=folds), 4).check()


def test_contiguous_folds_without_buffer_fail_the_audit_too():
    train, val = split(grid(), 2, 5, buffer=0)
    assert not _leakage_audit(train, val, 0).empty
    assert not _leakage_audit(train, val, 4).empty


def test_a_shared_corner_counts_as_a_shared_edge():
    a, b = make_tile(0, 0), make_tile(1, 1)
    found = _leakage_audit([a], [b], 4)
    assert found.to_dict("records") == [
        {"train": "00_00", "val": "01_01", "kind": "shared edge", "gap": 0.0, "pixels": 16}
    ]


def test_audit_counts_only_what_training_uses():
    a, b = make_tile(0, 0), make_tile(0, 1)
    assert _leakage_audit([a], [b], 4).pixels.tolist() == [4 * SIDE]
    valid, label = a.valid.copy(), a.label.copy()
    valid[:, -4:-2], label[:, -2:] = False, IGNORE
    assert _leakage_audit([replace(a, valid=valid, label=label)], [b], 4).empty


def test_audit_finds_same_id_same_pixels_and_overlap():
    a, b = make_tile(0, 0), make_tile(0, 9)
    moved = replace(
        make_tile(0, 8, seed=5), transform=Affine(30, 0, b.transform.c - 300, 0, -30, b.transform.f - 60)
    )
    far = replace(b, id="elsewhere", transform=make_tile(9, 0).transform)
    kinds = {(r.train, r.kind) for r in _leakage_audit([a, moved, far], [replace(a), b], 2).itertuples()}
    assert kinds == {("00_00", "same id"), ("00_08", "overlap"), ("elsewhere", "same pixels")}


def test_overlap_is_removed_by_the_split():
    tiles = grid(2, 4)
    place = tiles[3].transform
    moved = Affine(*place[:2], place.c - 9 * place.a, *place[3:6])  # nine pixels to the left of the last tile
    shifted = replace(make_tile(0, 0, name="shifted", seed=7), transform=moved)
    folds = {t.id: int(t.id[-1]) // 2 for t in tiles} | {"shifted": 0}
    train, val = split([*tiles, shifted], 1, folds=folds, buffer=3)
    assert _leakage_audit(train, val, 3).empty
    assert "shifted" not in {t.id for t in train}


def test_places_are_compared_across_coordinate_systems():
    a, east = make_tile(0, 0), make_tile(0, 1)
    corners = np.array(
        [(east.transform.c, east.transform.f), (east.transform.c + 720, east.transform.f - 720)]
    )
    (west, right), (top, bottom) = transform(UTM, CRS.from_epsg(4326), *corners.T)
    degrees = Affine((right - west) / SIDE, 0, west, 0, (bottom - top) / SIDE, top)
    geographic = replace(east, crs=CRS.from_epsg(4326), transform=degrees)
    np.testing.assert_allclose(_pixel_box(a, geographic), _pixel_box(a, east), atol=0.6)
    assert _leakage_audit([a], [geographic], 4).kind.tolist() in (["shared edge"], ["overlap"])
    far = replace(east, crs=CRS.from_epsg(4326), transform=Affine(degrees.a, 0, west + 1, 0, degrees.e, top))
    assert _leakage_audit([a], [far], 4).empty


def test_tiles_of_different_size_and_resolution():
    coarse = make_tile(0, 0, name="coarse", seed=1)
    coarse = replace(coarse, transform=Affine(60, 0, 567945 + 30 * SIDE, 0, -60, 3771855))
    fine = make_tile(0, 0)
    assert _pixel_box(fine, coarse) == (0, SIDE, 2 * SIDE, 3 * SIDE)
    assert _pixel_box(coarse, fine) == (0, -SIDE / 2, SIDE / 2, 0)
    found = _leakage_audit([coarse], [fine], 4)
    assert found.pixels.tolist() == [4 * (SIDE // 2 + 4)]


def test_tiles_that_cannot_be_split_are_refused():
    tiles = grid(2, 3)
    nameless = [replace(t, id=f"img{k}", transform=Affine.identity()) for k, t in enumerate(tiles)]
    for bad in (
        nameless,
        [*tiles[:5], nameless[5]],
        [
            *(replace(t, transform=Affine.identity()) for t in tiles[:5]),
            replace(make_tile(1, 2, side=30), transform=Affine.identity()),
        ],
    ):
        with pytest.raises(SplitError, match="no georeference: "):
            spatial_folds(bad, 2)
    with pytest.raises(SplitError, match="occur twice: 00_00"):
        spatial_folds([*tiles, tiles[0]], 2)
    with pytest.raises(SplitError, match="fold 2 does not exist"):
        split(tiles, 2, 2)
    with pytest.raises(SplitError, match="leaves no training label"):
        split(tiles, 0, 2, buffer=3 * SIDE)
    with pytest.raises(SplitError, match="without a label cannot be split: 00_01"):
        split([tiles[0], replace(tiles[1], label=None), *tiles[2:]], 0, 2)


# places against pixels


def scene(side=128, n=5):
    "A landscape: neighbouring pixels are alike."
    noise = np.random.default_rng(n).normal(size=(5, side + 16, side + 16))
    smooth = noise.cumsum(1).cumsum(2)
    smooth = smooth[:, 16:, 16:] - smooth[:, :-16, 16:] - smooth[:, 16:, :-16] + smooth[:, :-16, :-16]
    return (20000 + 300 * smooth).astype(np.float32)


def cut(size, step, named=True, **kwargs):
    "Chips of one landscape, one every `step` pixels, placed or named by row and column."
    bands = scene()
    for r, c in product(range((128 - size) // step + 1), repeat=2):
        tile = make_tile(r, c, side=size, **kwargs)
        place = Affine(30, 0, 500000 + 30 * step * c, 0, -30, 4000000 - 30 * step * r)
        part = bands[:, r * step : r * step + size, c * step : c * step + size]
        yield replace(tile, bands=part, transform=Affine.identity() if named else place)


def refused(call, cause):
    "The error of a call."
    with pytest.raises(SplitError) as found:
        call()
    assert found.value.cause is cause
    return found.value


@pytest.mark.parametrize("step", [16, 24])
def test_names_of_overlapping_chips_are_refused_and_the_given_places_are_right(step):
    chips = list(cut(32, step))
    error = refused(lambda: split(chips, 0), SplitCause.NAMES)
    assert refused(lambda: split(chips, 0, folds={t.id: 0 for t in chips}), SplitCause.NAMES)
    assert f"rows are {step} pixels apart, not 32, and columns {step}" in str(error)
    given, tile_id = re.search(r'"\[(.*)\]"', error.fix)[1], re.search(r"for (\d+_\d+)", error.fix)[1]
    row, col = map(int, tile_id.split("_"))
    assert list(map(int, given.split(", "))) == [1, 0, col * step, 0, -1, -row * step]
    at = {t.id: Affine(1, 0, int(t.id[3:]) * step, 0, -1, -int(t.id[:2]) * step) for t in chips}
    placed = split([replace(t, transform=at[t.id], crs=None) for t in chips], 0, 5, 4)
    placed.check()
    assert not placed.named
    assert placed.audit.empty


def test_names_of_tiles_side_by_side_are_accepted():
    sides = split(list(cut(32, 32)), 0, 4, 8)
    assert (sides.named, sides.overlap, sides.dropped) == (True, 0, [])
    assert 0.5 < sides.left < 1
    sides.check()


def test_names_of_tiles_that_are_no_neighbours_are_refused():
    tiles = list(cut(32, 32))
    order = np.random.default_rng(0).permutation(16)
    mixed = [replace(tiles[k], id=t.id) for k, t in zip(order, tiles, strict=True)]
    error = refused(lambda: spatial_folds(mixed, 4), SplitCause.NAMES)
    assert "across their common edges the bands change" in str(error)
    spatial_folds([replace(t, id=tiles[k].id) for k, t in zip(order, mixed, strict=True)], 4)  # as it says


@pytest.mark.parametrize("name", ["2020_{i}", "20200715_{i}", "{x}_{y}"])
def test_numbers_that_are_no_rows_and_columns_are_refused(name):
    tiles = list(cut(32, 32))
    ids = [name.format(i=k + 1, x=32 * (k // 4), y=32 * (k % 4)) for k in range(16)]
    error = refused(
        lambda: spatial_folds([replace(t, id=i) for t, i in zip(tiles, ids, strict=True)], 4),
        SplitCause.NAMES,
    )
    assert "rename them by row and column" in error.fix
    spatial_folds(tiles, 4)  # renamed


def test_a_copy_under_another_name_is_refused():
    tiles = list(cut(32, 32))
    error = refused(lambda: spatial_folds([*tiles, replace(tiles[5], id="09_09")], 4), SplitCause.NAMES)
    assert "1 pairs share pixels, such as 01_01 and 09_09" in str(error)
    assert error.fix.startswith("keep one tile of each pair")


def test_tiles_with_one_transform_are_refused_with_a_fix_that_works():
    tiles = list(cut(32, 32, named=False))
    same = [replace(t, transform=tiles[0].transform) for t in tiles]
    error = refused(lambda: split(same, 0, 4), SplitCause.FOOTPRINT)
    assert "16 tiles have 1 footprint, too few for n_folds = 4: 16 of them" in str(error)
    assert "16 different contents" in str(error)
    values = re.search(r'--transform "\[(.*)\]"', error.fix)[1]
    named = [replace(t, transform=Affine(*map(float, values.split(", ")))) for t in same]
    assert spatial_folds(named, 4) == spatial_folds(tiles, 4)
    nameless = [replace(t, id=f"img{k}") for k, t in enumerate(same)]
    assert (
        "write the transform of each tile" in refused(lambda: split(nameless, 0, 4), SplitCause.FOOTPRINT).fix
    )
    copies = [replace(same[0], id=f"img{k}") for k in range(9)]
    assert refused(lambda: split(copies, 0, 4), SplitCause.FOOTPRINT).fix == "keep one of the copies"
    two = [replace(t, transform=tiles[15 * (k % 2)].transform) for k, t in enumerate(tiles)]
    assert "have 2 footprints, too few for n_folds = 3" in str(
        refused(lambda: split(two, 0, 3), SplitCause.FOOTPRINT)
    )


@pytest.mark.parametrize("change", ["part", "turned"])
def test_shared_pixels_at_different_places_are_a_leak(change):
    tiles = list(cut(32, 32, named=False))
    folds = spatial_folds(tiles, 4)
    own = next(t for t in tiles if folds[t.id] == 0)
    bands = own.bands[:, ::-1] if change == "turned" else scene()[:, 8:40, :32]
    far = replace(own, id="99_99", bands=bands, transform=Affine(30, 0, 900000, 0, -30, 4000000))
    sides = split([*tiles, far], 0, 4, 4, folds | {"99_99": 1})
    assert sides.audit.kind.tolist()[0] == {"turned": "turned copy", "part": "shared pixels"}[change]
    with pytest.raises(LeakageError, match="remove one of 99_99 and 00_00") as error:
        sides.check()
    assert error.value.cause is SplitCause.SHARED
    split(tiles, 0, 4, 4, folds).check()  # removed


def test_counts_of_tiles_and_folds():
    tiles = grid(2, 3)
    for n, n_folds, fix in ((3, 5, 3), (2, 5, 2), (6, 1, 2), (6, 0, 2), (6, 7, 6)):
        error = refused(lambda n=n, k=n_folds: split(tiles[:n], 0, k, 4), SplitCause.IMPOSSIBLE)
        assert f"n_folds = {n_folds} is not possible with {n} tiles" in str(error)
        assert f"set n_folds = {fix}," in error.fix
        split(tiles[:n], 0, fix, 4)
    assert "1 tile: expected at least 2" in str(refused(lambda: split(tiles[:1], 0), SplitCause.IMPOSSIBLE))
    assert refused(lambda: split(tiles, 5, 3), SplitCause.IMPOSSIBLE).fix == "set fold = 0"
    error = refused(lambda: split(tiles, 0, 2), SplitCause.IMPOSSIBLE)  # a buffer of 32 pixels
    assert "cut tiles of more than 64 rows and columns" in error.fix
    split(grid(2, 3, side=66), 0, 2)


def test_overlapping_chips_with_places_leave_few_labels():
    sides = split(list(cut(64, 16, named=False)), 0, 5, 16)
    assert sides.overlap == 0.75
    assert sides.left < 0.6
    assert len(sides.dropped) == 25 - len(sides.train) - len(sides.val) > 0
    assert split(list(cut(64, 64, named=False)), 0, 2, 16).left > 0.6


def test_transforms_without_a_coordinate_system_beside_others_are_refused():
    tiles = list(cut(32, 32, named=False))
    some = [replace(t, crs=t.crs if k % 2 else None) for k, t in enumerate(tiles)]
    error = refused(lambda: spatial_folds(some, 4), SplitCause.IMPOSSIBLE)
    assert "no coordinate system (CRS): 00_00, 00_02" in str(error)
    none = [replace(t, crs=None) for t in tiles]
    assert spatial_folds([replace(t, crs=UTM) for t in some], 4) == spatial_folds(none, 4)


def test_recorded_marks_are_those_of_used_labels():
    sides = split(list(cut(32, 16, named=False)), 0, 3, 4)  # chips that overlap with validation tiles
    recorded = sides.training_marks()
    assert recorded.keys() == sides.training_places().keys() == {t.id for t in sides.train}
    assert max(len(m.hashes) for m in recorded.values()) == 256
    assert find_overlaps([t.marks for t in sides.train], [t.marks for t in sides.val])
    assert find_overlaps(list(recorded.values()), [t.marks for t in sides.val]) == []
    seen = find_overlaps([t.marks for t in sides.train], list(recorded.values()))
    assert {o.a for o in seen} == set(range(len(sides.train)))
