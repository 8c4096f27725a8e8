"""Metrics against scikit-learn and exact fractions, on degenerate and invalid input."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from glacier_nb.landsat import CLASSES, IGNORE
from glacier_nb.metrics.scores import (
    _class_table,
    _mcc_defined,
    bootstrap_ci,
    bootstrap_mcc,
    class_mccs,
    confusion,
    macro_mcc,
    mcc,
    summary,
    tile_confusion,
    tile_table,
)

SHARES = (0.6955, 0.25, 0.05, 0.0045)


def random_pair(seed, n=5000, skill=0.7, n_classes=4):
    "Prediction and truth with realistic class shares; a fraction `skill` of the pixels is correct."
    rng = np.random.default_rng(seed)
    p = np.array(SHARES[:n_classes]) / sum(SHARES[:n_classes])
    truth = rng.choice(n_classes, size=n, p=p)
    pred = np.where(rng.random(n) < skill, truth, rng.choice(n_classes, size=n, p=p))
    return pred, truth


def cases():
    "Name -> (prediction, truth), random and degenerate."
    zeros, mixed = np.zeros(50, int), np.arange(50) % 4
    binary = np.arange(50) % 2
    return {
        **{f"random {seed}": random_pair(seed, skill=seed / 5) for seed in range(5)},
        "perfect": (mixed, mixed),
        "shifted": ((mixed + 1) % 4, mixed),
        "inverted": (1 - binary, binary),
        "one class in truth": (mixed, zeros),
        "one class predicted": (zeros, mixed),
        "one class in both": (zeros, zeros),
        "one class each, not the same": (zeros, zeros + 1),
        "class missing": (np.where(mixed == 3, 0, mixed), np.where(mixed == 3, 1, mixed)),
        "one pixel": (zeros[:1], zeros[:1]),
    }


def exact_mcc(cm):
    "R_K as the root of an exact fraction, with the sign of its numerator."
    cm = [[int(v) for v in row] for row in cm]
    k = range(len(cm))
    t, p = [sum(cm[i]) for i in k], [sum(cm[i][j] for i in k) for j in k]
    s, c = sum(t), sum(cm[i][i] for i in k)
    top = s * c - sum(t[i] * p[i] for i in k)
    bottom = (s * s - sum(v * v for v in t)) * (s * s - sum(v * v for v in p))
    return math.copysign(math.sqrt(Fraction(top * top, bottom)), top)


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize(("pred", "truth"), cases().values(), ids=cases().keys())
def test_sklearn(pred, truth):
    cm = confusion(pred, truth, 4)
    labels = range(4)
    np.testing.assert_array_equal(cm, sk.confusion_matrix(truth, pred, labels=labels))
    assert mcc(cm) == pytest.approx(sk.matthews_corrcoef(truth, pred), rel=0, abs=1e-12)
    table = _class_table(cm, CLASSES)
    options = {"labels": labels, "average": None}
    zero = {"zero_division": np.nan}
    np.testing.assert_allclose(table["precision"], sk.precision_score(truth, pred, **options, **zero))
    np.testing.assert_allclose(table["recall"], sk.recall_score(truth, pred, **options, **zero))
    np.testing.assert_allclose(table["f1"], sk.f1_score(truth, pred, **options, **zero))
    iou = sk.jaccard_score(truth, pred, **options, zero_division=0)  # it does not return NaN
    np.testing.assert_allclose(table["iou"].fillna(0), iou)
    for k, name in enumerate(CLASSES):
        one_vs_rest = sk.matthews_corrcoef(truth == k, pred == k)
        assert table.loc[name, "mcc"] == pytest.approx(one_vs_rest, rel=0, abs=1e-12)
        assert table.loc[name, "support"] == (truth == k).sum()
        assert np.isnan(table.loc[name, "iou"]) == (not (truth == k).any() and not (pred == k).any())


@pytest.mark.parametrize(("pred", "truth"), cases().values(), ids=cases().keys())
def test_defined_means_two_classes_on_both_sides(pred, truth):
    cm = confusion(pred, truth, 4)
    defined = len(set(pred.tolist())) > 1 and len(set(truth.tolist())) > 1
    assert _mcc_defined(cm) is defined
    if not defined:
        assert mcc(cm) == 0.0


def test_known_values():
    mixed = np.arange(40) % 4
    assert mcc(confusion(mixed, mixed, 4)) == 1.0
    binary = np.arange(40) % 2
    assert mcc(confusion(1 - binary, binary, 2)) == -1.0
    assert mcc(np.array([[6, 1], [2, 3]])) == pytest.approx(16 / math.sqrt(4 * 5 * 7 * 8), rel=1e-15)
    nothing = np.zeros((4, 4), np.int64)
    assert mcc(nothing) == 0.0
    assert not _mcc_defined(nothing)
    assert _class_table(nothing, CLASSES)[["iou", "f1", "precision", "recall"]].isna().all(axis=None)


@pytest.mark.parametrize("seed", range(20))
def test_exact_at_ten_billion_pixels(seed):
    rng = np.random.default_rng(seed)
    n_classes = 2 + seed % 3
    shares = rng.dirichlet(np.full(n_classes**2, 0.3))
    cm = rng.multinomial(10**10, shares).reshape(n_classes, n_classes).astype(np.int64)
    cm += np.eye(n_classes, dtype=np.int64)
    assert cm.sum() >= 10**10
    assert mcc(cm) == pytest.approx(exact_mcc(cm), rel=1e-12, abs=1e-300)


def test_exact_where_float64_cancels():
    "One wrong pixel on each side of 10^10: s^2 - sum of squares loses most of its digits in float64."
    cm = np.array([[10**10, 1], [1, 1]], np.int64)
    assert mcc(cm) == pytest.approx(exact_mcc(cm), rel=1e-12)
    assert mcc(cm) == pytest.approx(0.5, rel=1e-9)
    chance = np.array([[9 * 10**9, 9 * 10**8], [10**8, 10**7 + 1]], np.int64)  # chance, but for one pixel
    assert mcc(chance) == pytest.approx(exact_mcc(chance), rel=1e-12)
    assert 0 < mcc(chance) < 1e-8


def test_many_matrices_at_once():
    cms = np.array([[confusion(*random_pair(5 * i + k), 4) for k in range(5)] for i in range(2)])
    found = mcc(np.concatenate([cms, np.zeros_like(cms[:1])]))
    assert found.shape == (3, 5)
    np.testing.assert_allclose(found[:2], [[mcc(cm) for cm in row] for row in cms], rtol=1e-12)
    assert not found[2].any()


def test_ten_billion_pixels_in_the_tables():
    cm = np.array([[7 * 10**9, 10**8], [2 * 10**8, 27 * 10**8]], np.int64)
    table = _class_table(cm, ("background", "glacier"))
    assert table["mcc"].tolist() == pytest.approx([exact_mcc(cm)] * 2, rel=1e-12)
    assert table.loc["glacier", "iou"] == pytest.approx(27 / 30)
    low, high = bootstrap_ci([cm] * 5)
    assert low == pytest.approx(exact_mcc(cm), rel=1e-12)
    assert high == pytest.approx(exact_mcc(cm), rel=1e-12)


def test_counts_of_parts_add_up():
    pred, truth = random_pair(1)
    truth = np.where(np.arange(truth.size) % 11 == 0, IGNORE, truth)
    mask = np.arange(truth.size) % 7 != 0
    once = confusion(pred, truth, 4, mask)
    parts = np.array_split(np.arange(truth.size), 13)
    np.testing.assert_array_equal(sum(confusion(pred[i], truth[i], 4, mask[i]) for i in parts), once)
    keep = mask & (truth != IGNORE)
    np.testing.assert_array_equal(once, sk.confusion_matrix(truth[keep], pred[keep], labels=range(4)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.int32])
def test_tensors_and_small_types(dtype):
    "In uint8, 200 * 201 + 200 would wrap around."
    values = torch.tensor([[0, 200], [200, 7]], dtype=dtype)
    cm = confusion(values, values, 201)
    assert cm.dtype == np.int64
    assert cm.sum() == 4
    assert cm[200, 200] == 2
    masked = confusion(values, values, 201, torch.tensor([[True, False], [True, True]]))
    assert masked[200, 200] == 1


def test_bool_predictions_of_a_binary_task():
    pred, truth = np.array([True, False, True]), np.array([1, 0, 0])
    np.testing.assert_array_equal(confusion(pred, truth, 2), [[1, 1], [0, 1]])


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (([0.1, 0.9], [0, 1], 2), "pred: found float64"),
        (([0, 1], [0.0, 1.0], 2), "target: found float64"),
        (([0, 2], [0, 1], 2), r"pred: found class indices \[2\]"),
        (([0, -1], [0, 1], 2), r"pred: found class indices \[-1\]"),
        (([0, 255], [0, 1], 2), r"pred: found class indices \[255\]"),
        (([0, 1], [0, 85], 4), r"target: found class indices \[85\], expected 0 to 3 or 255"),
        (([0, 1], [0, -1], 4), r"target: found class indices \[-1\]"),
        (([0, 1], [0, 1, 1], 4), "one shape"),
        (([[0, 1]], [0, 1], 4), "one shape"),
        (([0, 1], [0, 1], 4, [True]), "one shape"),
        (([0, 1], [0, 1], 4, [0.0, 1.0]), "bool mask"),
        (([0, 1], [0, 1], 4, [0, 1]), "bool mask"),
    ],
)
def test_confusion_errors(args, match):
    arrays = [np.asarray(a) if isinstance(a, list) else a for a in args]
    with pytest.raises(ValueError, match=match):
        confusion(*arrays)


@pytest.mark.parametrize("n_classes", [0, 1, 256])
def test_number_of_classes(n_classes):
    with pytest.raises(ValueError, match="n_classes"):
        confusion(np.zeros(2, int), np.zeros(2, int), n_classes)


@pytest.mark.parametrize(
    "cm", [np.ones((2, 3), int), np.ones(4, int), np.ones((2, 2)), np.array([[1, -1], [0, 2]])]
)
def test_matrix_errors(cm):
    tables = (lambda m: _class_table(m, ("a", "b"))), (lambda m: tile_table({"t": m}))
    for function in (mcc, _mcc_defined, *tables):
        with pytest.raises(ValueError, match="expected \\(C, C\\) counts"):
            function(cm)


def test_class_names_must_fit():
    with pytest.raises(ValueError, match="2 names"):
        _class_table(np.eye(4, dtype=int), ("background", "glacier"))


def test_tile_confusion_predicts_background_at_nodata():
    pred, truth = (v.reshape(50, 100) for v in random_pair(3))
    valid = np.random.default_rng(0).random(truth.shape) < 0.7
    pred_outside = np.where(valid, pred, 99)  # invalid values at nodata pixels are ignored
    cm_all, cm_valid = tile_confusion(torch.from_numpy(pred_outside), truth, torch.from_numpy(valid), 4)
    np.testing.assert_array_equal(cm_all, confusion(np.where(valid, pred, 0), truth, 4))
    np.testing.assert_array_equal(cm_valid, confusion(pred, truth, 4, valid))
    assert cm_all.sum() == truth.size
    assert cm_valid.sum() == valid.sum()
    with pytest.raises(ValueError, match="class indices \\[99\\]"):
        tile_confusion(pred_outside, truth, np.ones_like(valid), 4)


def tiles(n=12, seed=0, pixels=2000):
    "Tile id -> counts, with a skill that differs from tile to tile."
    rng = np.random.default_rng(seed)
    return {
        f"{i:02d}_00": confusion(*random_pair(1000 * seed + i, pixels, rng.uniform(0.3, 0.9)), 4)
        for i in range(n)
    }


def test_tile_table():
    cms = tiles() | {"empty": np.zeros((4, 4), np.int64)}
    table = tile_table(cms)
    assert list(table.index) == list(cms)
    for tile, cm in cms.items():
        assert table.loc[tile, "mcc"] == mcc(cm)
        assert table.loc[tile, "pixels"] == cm.sum()
        assert table.loc[tile, "mcc_defined"] == _mcc_defined(cm)
    assert np.isnan(table.loc["empty", "accuracy"])
    assert "mcc_valid" not in table
    assert (tile_table(cms, cms)["mcc_valid"] == table["mcc"]).all()
    with pytest.raises(ValueError, match=r"differ: \['empty'\]"):
        tile_table(cms, tiles())


def test_bootstrap_equals_a_loop():
    "The matrix product gives what drawing and pooling tile by tile gives."
    cms = list(tiles().values())
    weights = np.random.default_rng(7).multinomial(12, np.full(12, 1 / 12), size=50)
    loop = [mcc(sum(int(w) * cm for w, cm in zip(row, cms, strict=True))) for row in weights]
    np.testing.assert_allclose(bootstrap_mcc(cms, 50, seed=7), loop, rtol=0, atol=1e-12)


def test_bootstrap_is_deterministic_and_ordered():
    cms = list(tiles().values())
    low, high = bootstrap_ci(cms)
    assert (low, high) == bootstrap_ci(cms)
    assert (low, high) != bootstrap_ci(cms, seed=1)
    assert low < mcc(sum(cms)) < high
    narrow = bootstrap_ci(cms, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    draws = bootstrap_mcc(cms)
    for level, (start, end) in ((0.95, (low, high)), (0.5, narrow)):
        assert np.mean(draws < start) == pytest.approx((1 - level) / 2, abs=1e-3)
        assert np.mean(draws > end) == pytest.approx((1 - level) / 2, abs=1e-3)
    assert isinstance(low, float)


def test_bootstrap_covers():
    "Of 200 sets of 20 tiles from one population, about 95 % of the intervals contain its MCC."
    rng = np.random.default_rng(0)

    def draw(n):
        skill = rng.uniform(0.3, 0.9, n)[:, None, None]
        p = np.array(SHARES)
        cells = skill * np.diag(p) + (1 - skill) * np.outer(p, p)
        return np.stack([rng.multinomial(4000, c.ravel()).reshape(4, 4) for c in cells])

    truth = mcc(draw(20_000).sum(0))
    intervals = [bootstrap_ci(list(draw(20)), n=500) for _ in range(200)]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.86 <= covered <= 0.99  # percentile intervals of 20 tiles are a little too narrow


def test_bootstrap_without_variation():
    cm = next(iter(tiles().values()))
    assert all(math.isnan(v) for v in bootstrap_ci([cm]))
    assert all(math.isnan(v) for v in bootstrap_ci([]))
    constant = np.array([[5, 0], [0, 0]])
    assert bootstrap_ci([constant] * 3) == (0.0, 0.0)


@pytest.mark.parametrize("kwargs", [{"level": 0}, {"level": 1}, {"level": 95}, {"n": 0}])
def test_bootstrap_errors(kwargs):
    with pytest.raises(ValueError, match="expected 0 < level < 1"):
        bootstrap_ci(list(tiles().values()), **kwargs)


def test_summary_is_json_and_complete():
    cms_all, cms_valid = tiles(), tiles(seed=1)
    report = summary(cms_all, cms_valid, CLASSES, seed=3)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert {"mcc", "mcc_valid", "ci95", "per_class", "per_tile"} <= set(report)
    assert report["mcc"] == mcc(sum(cms_all.values()))
    assert report["mcc_valid"] == mcc(sum(cms_valid.values()))
    assert tuple(report["ci95"]) == bootstrap_ci(list(cms_all.values()), seed=3)
    assert list(report["per_class"]) == list(CLASSES)
    assert list(report["per_tile"]) == list(cms_all)
    assert report["per_tile"]["03_00"]["mcc_valid"] == mcc(cms_valid["03_00"])
    assert report["confusion"] == sum(cms_all.values()).tolist()


def test_summary_of_one_undefined_tile():
    one = {"00_00": np.array([[9, 0], [0, 0]])}
    report = summary(one, one, ("background", "glacier"))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["mcc"] == 0.0
    assert report["mcc_defined"] is False
    assert report["ci95"] == [None, None]
    assert report["per_class"]["glacier"]["recall"] is None
    with pytest.raises(ValueError, match="found no tile"):
        summary({}, {}, CLASSES)


# the mean of the classes


@pytest.mark.parametrize("seed", range(3))
def test_the_mcc_of_each_class_is_that_of_sklearn_against_the_rest(seed):
    pred, truth = random_pair(seed)
    cm = confusion(pred, truth, 4)
    expected = [sk.matthews_corrcoef(truth == k, pred == k) for k in range(4)]
    np.testing.assert_allclose(class_mccs(cm), expected, atol=1e-12)
    assert class_mccs(cm).dtype == np.float64
    assert macro_mcc(cm) == pytest.approx(np.mean(expected), abs=1e-12)
    assert class_mccs(cm).tolist() == _class_table(cm, CLASSES)["mcc"].tolist()
    assert macro_mcc(confusion(pred > 0, truth > 0, 2)) == mcc(confusion(pred > 0, truth > 0, 2))


def test_a_class_that_nothing_has_is_left_out_and_one_on_a_single_side_counts_as_0():
    cm = np.array([[50, 5, 0], [6, 40, 0], [0, 0, 0]])
    assert np.isnan(class_mccs(cm)).tolist() == [False, False, True]
    assert macro_mcc(cm) == pytest.approx(mcc(cm[:2, :2]))
    for at in ((2, 0), (0, 2)):  # not found, and found where it is not
        one = cm.copy()
        one[at] = 3
        first, second, third = class_mccs(one)
        assert third == 0
        assert macro_mcc(one) == (first + second) / 3
    assert macro_mcc(np.zeros((3, 3), int)) == macro_mcc([[9, 0], [0, 0]]) == 0
    with pytest.raises(ValueError, match="expected"):
        macro_mcc([[0.5, 1], [2, 3]])


def test_the_mean_of_many_matrices_and_of_ten_billion_pixels():
    cms = np.array([confusion(*random_pair(k, n_classes=3), 4) for k in range(4)])
    many = np.concatenate([cms, np.zeros_like(cms[:1])])
    np.testing.assert_allclose(macro_mcc(many), [*(macro_mcc(cm) for cm in cms), 0], rtol=1e-12)
    assert np.isnan(class_mccs(many)[:, 3]).all()  # leaving out holds for each matrix
    assert macro_mcc(cms[0] * 10**7) == pytest.approx(macro_mcc(cms[0]), rel=1e-12)
