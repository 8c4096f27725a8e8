"""Calibration: counts of a few pixels by hand, parity with scikit-learn, sums, files, refusals."""

import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve

from glacier_nb.landsat import IGNORE
from glacier_nb.metrics.calibration import Calibration

NAMES = ("background", "glacier")


def counted(p, label, valid=None):
    "Counts of pixels with the probability p of glacier."
    p, label = np.atleast_2d(p), np.atleast_2d(label).astype(np.uint8)
    valid = np.ones(label.shape, bool) if valid is None else np.atleast_2d(valid)
    return Calibration.of(np.stack([1 - p, p]), label, valid, NAMES)


def test_counts_of_four_pixels():
    found = counted([0.9005, 0.9005, 0.2005, 1.0], [1, 0, 1, IGNORE])
    assert found.counts[1, :, [900, 200, 999]].tolist() == [[1, 1], [0, 1], [0, 0]]
    assert found.top[:, 900].tolist() == [1, 1]
    assert found.top.sum() == 3
    assert found.reliability(10)["accuracy"].to_dict() == {7: 0, 9: 0.5}
    assert found.error(10) == pytest.approx((2 * 0.4005 + 1 * 0.7995) / 3, abs=1e-3)


def test_pixels_that_are_invalid_do_not_count():
    found = counted([0.3, 0.6], [1, 0], [False, False])
    assert found.top.sum() == found.counts.sum() == 0
    assert np.isnan(found.error())
    assert np.isnan(found.average_precision("glacier"))
    assert found.precision_recall("glacier").empty


@pytest.mark.parametrize("share", [0.5, 0.02])
def test_curves_are_those_of_scikit_learn(share):
    rng = np.random.default_rng(0)
    truth = rng.random(4000) < share
    p = np.clip(rng.normal(0.3 + 0.3 * truth, 0.2), 0, 1).round(3) * 0.999 + 5e-4
    found = counted(p, truth)
    assert found.average_precision("glacier") == pytest.approx(average_precision_score(truth, p), abs=1e-3)
    table = found.precision_recall("glacier")
    precision, recall, thresholds = precision_recall_curve(truth, p)
    at = np.searchsorted(thresholds, 0.5)
    np.testing.assert_allclose(table.loc[0.5], [precision[at], recall[at]])


def test_sums_and_files_keep_every_count():
    a, b = counted([0.1, 0.7], [0, 1]), counted([0.7], [0])
    both = sum([a, b])
    assert both.counts.sum() == 6
    assert both.top[:, 700].tolist() == [1, 1]
    again = Calibration.from_dict(json.loads(json.dumps(both.to_dict())))
    np.testing.assert_array_equal(again.counts, both.counts)
    np.testing.assert_array_equal(again.top, both.top)
    assert again.classes == NAMES


def test_what_does_not_fit_is_named():
    label, valid = np.zeros((2, 2), np.uint8), np.ones((2, 2), bool)
    with pytest.raises(ValueError, match=r"found probs \(3, 2, 2\)"):
        Calibration.of(np.zeros((3, 2, 2)), label, valid, NAMES)
    with pytest.raises(ValueError, match="found values -3 to 4: expected probabilities"):
        Calibration.of(np.array([[[-3.0, 1], [1, 1]], [[4, 0], [0, 0]]]), label, valid, NAMES)
    found = counted([0.1], [0])
    with pytest.raises(ValueError, match="expected the same"):
        found + Calibration(("background", "ice"), found.counts, found.top)
    with pytest.raises(ValueError, match="bins = 7: expected a divisor of 1000"):
        found.reliability(7)
    damaged = found.to_dict()
    damaged["counts"] = damaged["counts"][:-1]
    with pytest.raises(ValueError, match="found 5 rows, expected 6 rows of 1000 counts"):
        Calibration.from_dict(damaged)
