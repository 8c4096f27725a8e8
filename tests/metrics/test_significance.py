"""Paired tests over tiles against their definitions, and every user of the paired bootstrap against it."""

import math
import pickle
from itertools import product

import numpy as np
import pytest
from made_up import random_confusions

from glacier_nb.checks.scores import _paired
from glacier_nb.metrics.scores import bootstrap_mcc, mcc
from glacier_nb.metrics.significance import (
    ComparisonError,
    check_same_tiles,
    holm,
    paired_gain,
    paired_permutation_p,
    smallest_p,
)
from glacier_nb.runs.compare import compare_runs


def by_tile(cms: np.ndarray) -> dict[str, np.ndarray]:
    "Tile id -> counts, the ids in the order of the matrices."
    return {f"t{i:02}": m for i, m in enumerate(cms)}


def metrics(cms: np.ndarray) -> dict:
    "The part of metrics.json that comparisons read."
    return {"tile_confusions": {tile: {"all": m.tolist()} for tile, m in by_tile(cms).items()}}


def test_permutation_p_is_the_share_of_all_swaps():
    a, b = random_confusions(6, seed=1), random_confusions(6, seed=2)
    found = abs(mcc(a.sum(0)) - mcc(b.sum(0)))
    changes = []
    for swap in product([0, 1], repeat=6):
        one = sum((b if s else a)[t] for t, s in enumerate(swap))
        other = sum((a if s else b)[t] for t, s in enumerate(swap))
        changes.append(abs(mcc(one) - mcc(other)) >= found - 1e-12)
    a, b = by_tile(a), by_tile(b)
    assert paired_permutation_p(a, b) == np.mean(changes)
    assert paired_permutation_p(a, b) == paired_permutation_p(b, a)
    assert paired_permutation_p(a, a) == 1
    one = {"t00": a["t00"]}
    assert paired_permutation_p(one, {"t00": b["t00"]}) == 1  # both swaps give the same difference


def test_random_swaps_are_close_to_all_swaps():
    a, b = (by_tile(random_confusions(10, seed=seed)) for seed in (3, 4))
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
    found = np.array(paired_gain(by_tile(b), by_tile(a), n=500, seed=3))
    draws = bootstrap_mcc(a, 500, 3) - bootstrap_mcc(b, 500, 3)
    ends = np.quantile(draws, [0.025, 0.975]) if tiles > 1 else [np.nan, np.nan]
    np.testing.assert_array_equal(found, [mcc(a.sum(0)) - mcc(b.sum(0)), *ends])
    columns = ["difference", "low", "high"]
    pair = compare_runs({"a": metrics(a), "b": metrics(b)}, n=500, seed=3).pairs.loc[0, columns]
    np.testing.assert_array_equal(pair.astype(float), found)
    checked = _paired(by_tile(b), by_tile(a), n=500, seed=3)
    np.testing.assert_array_equal([checked[c] for c in columns], found)


def random_counts(rng, n=6):
    return {f"t{i}": rng.multinomial(500, rng.dirichlet(np.ones(3)), 3) for i in range(n)}


def test_the_bootstrap_is_paired():
    rng = np.random.default_rng(0)
    plain, other = random_counts(rng), random_counts(rng)
    gain, low, high = paired_gain(plain, other, n=500, seed=7)
    draws = []
    for times in np.random.default_rng(7).multinomial(6, np.full(6, 1 / 6), size=500):
        pools = [sum(k * cm for k, cm in zip(times, cms.values(), strict=True)) for cms in (plain, other)]
        draws.append(mcc(pools[1]) - mcc(pools[0]))
    np.testing.assert_allclose([low, high], np.quantile(draws, [0.025, 0.975]), atol=1e-12)
    assert gain == pytest.approx(mcc(sum(other.values())) - mcc(sum(plain.values())))
    assert paired_gain(plain, other, n=500, seed=7) == (gain, low, high)


def test_the_order_of_tiles_does_not_unpair_them():
    rng = np.random.default_rng(1)
    plain, other = random_counts(rng), random_counts(rng)
    assert paired_gain(plain, dict(reversed(other.items()))) == paired_gain(plain, other)
    assert paired_gain(dict(reversed(plain.items())), other) == paired_gain(plain, other)
    assert paired_gain(plain, plain) == (0, 0, 0)


def test_one_tile_has_no_interval():
    plain = random_counts(np.random.default_rng(2), 1)
    gain, low, high = paired_gain(plain, plain)
    assert gain == 0
    assert np.isnan([low, high]).all()


@pytest.mark.parametrize("test", [check_same_tiles, paired_gain, paired_permutation_p])
def test_runs_on_other_tiles_or_labels_are_not_compared(test):
    plain = random_counts(np.random.default_rng(2), 2)
    more = {**plain, "t1": plain["t1"] + np.eye(3, dtype=int)}
    causes = ComparisonError.Cause
    for other, cause, tiles in (
        ({"t0": plain["t0"]}, causes.TILES, ("t1",)),
        ({"t0": plain["t0"], "x": plain["t1"]}, causes.TILES, ("t1", "x")),
        (more, causes.LABELS, ("t1",)),
        ({"t0": plain["t0"], "t1": np.eye(2, dtype=int)}, causes.LABELS, ("t1",)),
    ):
        with pytest.raises(ComparisonError, match="scored on different") as error:
            test(plain, other)
        assert (error.value.cause, error.value.tiles) == (cause, tiles)
        assert pickle.loads(pickle.dumps(error.value)).cause is cause
    with pytest.raises(ComparisonError, match="different tiles"):
        test({}, {})


@pytest.mark.parametrize("tiles", [1, 3, 6, 7])
def test_smallest_p_is_reached_and_is_the_limit(tiles):
    good, bad = np.array([[[90, 10], [0, 100]]] * tiles), np.array([[[50, 50], [50, 50]]] * tiles)
    found = [paired_permutation_p(by_tile(bad), by_tile(good), n, seed=1) for n in (2**tiles, 2**tiles - 1)]
    assert found[0] == smallest_p(tiles, 2**tiles) == 2 / 2**tiles
    assert smallest_p(tiles, 2**tiles - 1) <= found[1]  # random swaps may repeat that of no tile
    assert math.isclose(smallest_p(100, 999), 0.001)
