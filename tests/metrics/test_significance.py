"""Paired tests over tiles against their definitions, and every user of the paired bootstrap against it."""

from itertools import product

import numpy as np
import pytest
from made_up import random_confusions

from glacier_nb.checks.scores import paired
from glacier_nb.metrics.scores import bootstrap_mcc, mcc
from glacier_nb.metrics.significance import holm, paired_bootstrap, paired_permutation_p
from glacier_nb.prediction.evaluate import paired_gain
from glacier_nb.runs.compare import compare_runs


def metrics(cms: np.ndarray) -> dict:
    "The part of metrics.json that comparisons read."
    return {"tile_confusions": {f"t{i:02}": {"all": m.tolist()} for i, m in enumerate(cms)}}


def test_permutation_p_is_the_share_of_all_swaps():
    a, b = random_confusions(6, seed=1), random_confusions(6, seed=2)
    found = abs(mcc(a.sum(0)) - mcc(b.sum(0)))
    changes = []
    for swap in product([0, 1], repeat=6):
        one = sum((b if s else a)[t] for t, s in enumerate(swap))
        other = sum((a if s else b)[t] for t, s in enumerate(swap))
        changes.append(abs(mcc(one) - mcc(other)) >= found - 1e-12)
    assert paired_permutation_p(a, b) == np.mean(changes)
    assert paired_permutation_p(a, b) == paired_permutation_p(b, a)
    assert paired_permutation_p(a, a) == 1


def test_random_swaps_are_close_to_all_swaps():
    a, b = random_confusions(10, seed=3), random_confusions(10, seed=4)
    assert abs(paired_permutation_p(a, b, n=1023) - paired_permutation_p(a, b, n=1024)) < 0.05


def test_holm_is_its_definition():
    p = np.random.default_rng(0).uniform(size=12) ** 3
    adjusted = holm(p)
    for level in (0.01, 0.05, 0.2, 0.5):
        rejected = set()
        for rank, k in enumerate(np.argsort(p)):  # step down until the first that is not small enough
            if p[k] > level / (len(p) - rank):
                break
            rejected.add(k)
        assert rejected == set(np.flatnonzero(adjusted <= level))
    assert holm([]).size == 0
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("tiles", [1, 2, 12])
def test_every_user_of_the_paired_bootstrap_agrees_with_it_to_the_bit(tiles):
    a, b = random_confusions(tiles, seed=5), random_confusions(tiles, seed=6)
    if mcc(a.sum(0)) < mcc(b.sum(0)):
        a, b = b, a
    found = np.array(paired_bootstrap(a, b, n=500, seed=3))
    draws = bootstrap_mcc(a, 500, 3) - bootstrap_mcc(b, 500, 3)
    ends = np.quantile(draws, [0.025, 0.975]) if tiles > 1 else [np.nan, np.nan]
    np.testing.assert_array_equal(found, [mcc(a.sum(0)) - mcc(b.sum(0)), *ends])
    by_id = [{str(i): m for i, m in enumerate(cms)} for cms in (b, a)]
    np.testing.assert_array_equal(paired_gain(*by_id, n=500, seed=3), found)
    columns = ["difference", "low", "high"]
    pair = compare_runs({"a": metrics(a), "b": metrics(b)}, n=500, seed=3).pairs.loc[0, columns]
    np.testing.assert_array_equal(pair.astype(float), found)
    checked = paired(metrics(b), metrics(a), n=500, seed=3)
    np.testing.assert_array_equal([checked[c] for c in columns], found)
