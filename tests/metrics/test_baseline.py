"""Invalid input and guarantees of the baselines."""

from dataclasses import replace

import numpy as np
import pytest
from rasterio.transform import Affine
from sklearn.metrics import matthews_corrcoef
from threadpoolctl import threadpool_limits

from glacier_nb.landsat import CLASSES, IGNORE, REFLECTANCE
from glacier_nb.metrics.baseline import (
    _baseline_table,
    _context,
    _fit_pixels,
    _ndsi_prediction,
    _pixel_baseline,
    _predict_pixels,
    _sample_pixels,
    _valid_mask_prediction,
    _Windows,
    baseline_counts,
    baselines,
    ndsi,
)
from glacier_nb.metrics.scores import mcc
from glacier_nb.tiles.read import Tile

WHOLE_BASELINES = True
# one band level per class, so that the bands of a pixel nearly determine its class
LEVELS = np.array([[9, 30, 15, 22], [9, 30, 15, 22], [9, 30, 15, 25], [12, 8, 9, 10], [31, 29, 30, 32]]) * 1e3


def make_tile(name, seed, classes=CLASSES, size=48, noise=2500.0, shares=(0.6, 0.3, 0.09, 0.01)):
    "A tile whose classes differ in brightness, with nodata and ignored pixels."
    rng = np.random.default_rng(seed)
    shares = np.array(shares[: len(classes)]) / sum(shares[: len(classes)])
    label = rng.choice(len(classes), p=shares, size=(size, size)).astype(np.uint8)
    bands = (LEVELS[:, label] + rng.normal(0, noise, (5, size, size))).clip(1).astype(np.float32)
    valid = np.ones((size, size), bool)
    valid[:, :6] = False
    label[:4] = IGNORE
    return Tile(name, np.where(valid, bands, np.float32(0)), valid, label, None, Affine.identity(), classes)


@pytest.fixture(scope="module")
def train():
    return [make_tile(f"01_{k:02}", k) for k in range(4)]


@pytest.fixture(scope="module")
def val():
    return [make_tile(f"02_{k:02}", 10 + k) for k in range(2)]


@pytest.fixture(scope="module")
def nodata_tile(val):
    "A tile without a valid pixel."
    tile = val[0]
    return replace(tile, id="nodata", bands=np.zeros_like(tile.bands), valid=np.zeros_like(tile.valid))


@pytest.fixture(scope="module")
def model(train):
    "Boosted trees of 1,000 pixels and seed 3."
    return _fit_pixels(*_sample_pixels(train, 1_000, seed=3), seed=3)


@pytest.fixture(scope="module")
def maps(model, val):
    "Their maps: what `pixel_baseline(train, val, 1_000, seed=3)` gives."
    return {t.id: _predict_pixels(model, t) for t in val}


@pytest.fixture(scope="module")
def all_maps(train, val, nodata_tile):
    "The maps of all baselines, trained on every pixel."
    return baselines(train, [*val, nodata_tile])


def same(a, b):
    "Whether two sets of maps are equal pixel by pixel."
    return a.keys() == b.keys() and all((a[i] == b[i]).all() for i in a)


# sample_pixels


def test_ignored_and_invalid_pixels_are_not_sampled(train):
    poisoned = []
    for tile in train:
        bands = tile.bands.copy()
        bands[:, (tile.label == IGNORE) | ~tile.valid] = 1e9
        poisoned.append(replace(tile, bands=bands))
    x, y, _ = _sample_pixels(poisoned, 2_000, min_per_class=50)
    assert x.max() < 1e6
    assert set(np.unique(y)) <= {0, 1, 2, 3}
    for drawn, clean in zip(_sample_pixels(poisoned, 2_000), _sample_pixels(train, 2_000), strict=True):
        np.testing.assert_array_equal(drawn, clean)


def test_weights_sum_to_the_labelled_pixels(train):
    _, y, weight = _sample_pixels(train, 1_000, min_per_class=5)
    used = np.concatenate([t.label[t.valid & (t.label != IGNORE)] for t in train])
    np.testing.assert_allclose(np.bincount(y, weight), np.bincount(used))
    assert len(y) < len(used) / 4


def test_rare_classes_are_sampled(train):
    lakes = sum(int((t.valid & (t.label == 3)).sum()) for t in train)
    _, y, _ = _sample_pixels(train, 100, min_per_class=10_000 // len(train))
    assert (y == 3).sum() == lakes > 0


def test_each_tile_contributes_the_same_number(train):
    big = make_tile("03_01", 3, size=96)
    x, _, _ = _sample_pixels([train[0], big], 1_000, min_per_class=1)
    of_big = np.isin(x[:, 0], big.bands[0]).mean()
    assert 0.45 < of_big < 0.55


@pytest.mark.parametrize("wrong", [{"n_pixels": 0}, {"min_per_class": 0}])
def test_at_least_one_pixel_must_be_sampled(train, wrong):
    with pytest.raises(ValueError, match="at least 1"):
        _sample_pixels(train, **wrong)


def test_tiles_without_labelled_pixels_are_an_error(train):
    ignored = [replace(t, label=np.full_like(t.label, IGNORE)) for t in train]
    with pytest.raises(ValueError, match="no training pixel: found 4 tiles"):
        _sample_pixels(ignored)
    with pytest.raises(ValueError, match="no tile"):
        _sample_pixels([])


def test_a_nodata_tile_contributes_nothing(train):
    empty = replace(train[0], id="00_00", valid=np.zeros_like(train[0].valid))
    n = len(_sample_pixels(train, 400, min_per_class=1)[1])
    assert 0 < len(_sample_pixels([empty, *train], 400, min_per_class=1)[1]) <= n


@pytest.mark.parametrize(
    "broken",
    [
        {"label": np.zeros((3, 3), np.uint8)},
        {"valid": np.ones((3, 3), bool)},
        {"bands": np.zeros((4, 48, 48), np.float32)},
    ],
)
def test_wrong_shapes_are_an_error(train, broken):
    with pytest.raises(ValueError, match=r"tile 01_00: found bands .* expected \(5, H, W\)"):
        _sample_pixels([replace(train[0], **broken)])


def test_a_tile_without_label_is_an_error(train):
    with pytest.raises(ValueError, match="tile 01_02 has no label"):
        _sample_pixels([*train[:2], replace(train[2], label=None)])


# boosting


def test_same_seed_same_maps_in_any_order(train, val, maps):
    assert same(maps, _pixel_baseline(train[::-1], val[::-1], 1_000, seed=3))
    assert not same(maps, _pixel_baseline(train, val, 1_000, seed=4))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_maps_with_any_number_of_threads(train, val, maps, threads):
    with threadpool_limits(threads, user_api="openmp"):
        assert same(maps, _pixel_baseline(train, val, 1_000, seed=3))


def test_the_global_random_state_is_unchanged(train, val):
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    _pixel_baseline(train, val, 500)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_uses_single_pixels_only(model, val):
    tile = val[0]
    order = np.random.default_rng(0).permutation(tile.valid.size)

    def shuffle(array):
        return array.reshape(*array.shape[:-2], -1)[..., order].reshape(array.shape)

    mixed = replace(tile, bands=shuffle(tile.bands), valid=shuffle(tile.valid))
    np.testing.assert_array_equal(_predict_pixels(model, mixed), shuffle(_predict_pixels(model, tile)))


def test_learns_the_class_of_a_pixel(all_maps, val):
    table = _baseline_table({"boosting": all_maps["boosting"]}, val)
    assert table.loc["boosting", "mcc_valid"] > 0.9


def test_a_class_missing_in_training_is_never_predicted(val):
    train = [make_tile(f"01_{k:02}", k, shares=(0.6, 0.3, 0.1, 0.0)) for k in range(3)]
    maps = _pixel_baseline(train, val)
    assert {int(k) for m in maps.values() for k in np.unique(m)} == {0, 1, 2}


def test_a_single_class_in_training_is_an_error(train, val):
    single = [replace(t, label=np.ones_like(t.label)) for t in train]
    with pytest.raises(ValueError, match="all training pixels have class index 1"):
        _pixel_baseline(single, val)


def test_binary_labels(val):
    two = CLASSES[:2]
    train = [make_tile(f"01_{k:02}", k, classes=two) for k in range(3)]
    maps = _pixel_baseline(train, [make_tile("02_00", 9, classes=two)])
    assert set(np.unique(maps["02_00"])) == {0, 1}


def test_invalid_pixels_are_background(all_maps, val):
    for rule, predicted in all_maps.items():
        assert not predicted["nodata"].any(), rule
        for tile in val:
            assert predicted[tile.id].dtype == np.uint8
            assert not predicted[tile.id][~tile.valid].any(), rule


def test_tiles_to_map_need_no_label(train, val, maps):
    unlabelled = [replace(t, label=None) for t in val]
    assert same(maps, _pixel_baseline(train, unlabelled, 1_000, seed=3))


def test_other_classes_in_validation_are_an_error(train):
    with pytest.raises(ValueError, match=r"tile 01_03; .* in tile 02_00: expected one set of classes"):
        _pixel_baseline(train, [make_tile("02_00", 9, classes=CLASSES[:2])])


def test_balance_is_checked_and_works(train):
    noisy = [make_tile(t.id, k, noise=9000.0) for k, t in enumerate(train)]
    drawn = _sample_pixels(noisy)
    called = [(_predict_pixels(_fit_pixels(*drawn, balance=b), noisy[0]) == 2).sum() for b in (0, 0.5, 1)]
    assert called[0] < called[1] < called[2]
    with pytest.raises(ValueError, match=r"balance = 1\.5"):
        _fit_pixels(*drawn, balance=1.5)


# rules


def test_ndsi_by_hand(val):
    reflectance = np.array([[0.9, 0.1], [0.3, 0.3], [0.5, -0.1], [-0.1, 0.4], [-0.1, -0.1], [0.004, 0.004]])
    bands = np.full((5, 1, 7), 20_000, np.float32)
    bands[1, 0, :6], bands[3, 0, :6] = REFLECTANCE.dn(reflectance).T
    valid = np.array([[True] * 6 + [False]])
    tile = replace(val[0], bands=bands, valid=valid, label=None)
    np.testing.assert_allclose(ndsi(tile)[0], [0.8, 0, 1, -1, np.nan, np.nan, np.nan], rtol=1e-4, atol=1e-4)
    assert _ndsi_prediction(tile).tolist() == [[1, 0, 1, 0, 0, 0, 0]]
    assert _ndsi_prediction(tile, 0.9).tolist() == [[0, 0, 1, 0, 0, 0, 0]]


def test_rules_need_a_class_named_glacier(val):
    for rule in (_valid_mask_prediction, _ndsi_prediction):
        with pytest.raises(ValueError, match="tile 02_00 has the classes"):
            rule(replace(val[0], classes=("water", "land")))


# the table


def test_table_agrees_with_scikit_learn(all_maps, val):
    table = _baseline_table(all_maps, val)
    assert list(table.index) == ["valid mask", "NDSI > 0.4", "boosting", "boosting with context"]
    for rule, predicted in all_maps.items():
        for column, valid_only in (("mcc", False), ("mcc_valid", True)):
            counted = [(t.label != IGNORE) & (t.valid | (not valid_only)) for t in val]
            truth = np.concatenate([t.label[k] for t, k in zip(val, counted, strict=True)])
            pred = np.concatenate([predicted[t.id][k] for t, k in zip(val, counted, strict=True)])
            assert table.loc[rule, column] == pytest.approx(matthews_corrcoef(truth, pred), abs=1e-12)
    assert not table.loc["valid mask", "mcc_valid_defined"]


def test_table_needs_every_prediction_and_label(train, val):
    maps = {"valid mask": {t.id: _valid_mask_prediction(t) for t in val}}
    with pytest.raises(ValueError, match="valid mask: no prediction or no label for tile 02_01"):
        _baseline_table({"valid mask": {"02_00": maps["valid mask"]["02_00"]}}, val)
    with pytest.raises(ValueError, match="for tile 02_00"):
        _baseline_table(maps, [replace(val[0], label=None), val[1]])


@pytest.fixture(scope="module")
def patchy():
    "A small tile with nodata in patches."
    rng = np.random.default_rng(5)
    valid = rng.random((17, 23)) > 0.25
    valid[3:9, 5:12] = False
    bands = rng.normal(20000, 4000, (5, 17, 23)).astype(np.float32) * valid
    return Tile("patchy", bands, valid, None, None, Affine.identity(), CLASSES)


def test_windows_are_means_spreads_and_regressions_over_the_valid_pixels_inside_the_tile(patchy):
    values, radius = REFLECTANCE(patchy.bands[1]), 4
    windows = _Windows(patchy.valid, radius)
    mean = windows.mean(values)
    texture, share = windows.texture(values, mean), windows.share
    slopes = [windows.slope(values, mean, axis) for axis in (0, 1)]
    rows, columns = np.indices(values.shape)
    for r, c in [(0, 0), (16, 22), (2, 11), (8, 12), (5, 8)]:
        at = np.s_[max(0, r - radius) : r + radius + 1, max(0, c - radius) : c + radius + 1]
        seen = patchy.valid[at]
        known = values[at][seen]
        np.testing.assert_allclose(share[r, c], seen.mean(), rtol=1e-5)
        np.testing.assert_allclose(mean[r, c], known.mean(), rtol=1e-4)
        np.testing.assert_allclose(texture[r, c], known.std(), rtol=2e-3)
        for slope, place in zip(slopes, (rows, columns), strict=True):
            np.testing.assert_allclose(slope[r, c], np.polyfit(place[at][seen], known, 1)[0], atol=1e-5)


def test_context_does_not_depend_on_the_values_of_nodata(patchy):
    filled = replace(patchy, bands=np.where(patchy.valid, patchy.bands, np.float32(60000)))
    one, other = (_context(tile)[:, patchy.valid] for tile in (patchy, filled))
    assert (one == other).all()
    assert np.isfinite(one).all()


def test_context_of_tiles_without_nodata_or_without_data(patchy, nodata_tile):
    whole = _context(replace(patchy, valid=np.ones_like(patchy.valid)))
    assert (whole[-1] == 100).all()
    assert np.isfinite(_context(nodata_tile)).all()


def test_distance_to_nodata_in_pixels():
    valid = np.ones((5, 9), bool)
    valid[2, 0] = False
    tile = Tile(
        "near", np.full((5, 5, 9), 9000, np.float32) * valid, valid, None, None, Affine.identity(), CLASSES
    )
    assert _context(tile)[-1, 2].tolist() == list(range(9))


def test_context_tells_classes_apart_that_differ_in_their_surroundings_alone():
    def textured(name, seed):
        rng = np.random.default_rng(seed)
        rough = np.kron(rng.random((4, 4)) > 0.5, np.ones((12, 12))).astype(bool)
        noise = rng.normal(0, 4000, (5, 48, 48))
        smooth = np.repeat(np.repeat(rng.normal(0, 4000, (5, 4, 4)), 12, 1), 12, 2)
        bands = (20000 + np.where(rough, noise, smooth)).astype(np.float32)
        label = np.where(rough, 0, 1).astype(np.uint8)
        return Tile(name, bands, np.ones((48, 48), bool), label, None, Affine.identity(), CLASSES[:2])

    tiles = [textured(f"00_{k:02}", k) for k in range(5)]
    found = _baseline_table(baselines(tiles[:4], tiles[4:], n_pixels=4_000), tiles[4:])["mcc"]
    assert found["boosting"] < 0.3
    assert found["boosting with context"] > 0.7


def test_counts_of_every_rule_and_tile_sum_to_the_table(all_maps, val):
    counts, table = baseline_counts(all_maps, val), _baseline_table(all_maps, val)
    assert list(counts) == list(table.index)
    for rule, tiles in counts.items():
        assert tiles.keys() == {t.id for t in val}
        assert mcc(sum(pair[0] for pair in tiles.values())) == table.loc[rule, "mcc"]
        assert mcc(sum(pair[1] for pair in tiles.values())) == table.loc[rule, "mcc_valid"]
