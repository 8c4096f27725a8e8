"""Band checks: healthy tiles pass, each fault gives one finding of its own cause, odd input is accepted."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from glacier_nb.checks.bands import _MIN_PIXELS, _detect_order, _order_scores, _sample_bands, check_bands
from glacier_nb.config.training import TrainConfig
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.landsat import BANDS, REFLECTANCE, TEMPERATURE
from glacier_nb.tiles.lazy import open_tiles
from glacier_nb.tiles.read import read_tiles

REAL = TrainConfig(data_dir="data/competition").data_path
SCALE, OFFSET = np.array([*[REFLECTANCE] * 4, TEMPERATURE]).T[:, :, None, None]


@pytest.fixture(scope="module", params=[0, "real"])
def tiles(request):
    if request.param == "real":
        if not REAL.is_dir():
            pytest.skip("the competition's tiles are not in data/")
        return read_tiles(REAL, ids=["02_07", "04_10", "06_09", "08_14"])
    return read_tiles(cached_demo(9, 128, request.param))


def changed(tiles, change, only=None):
    "The tiles with changed bands, still 0 at nodata."

    def new(tile):
        return np.where(tile.valid, change(tile.bands.copy()), 0).astype("float32")

    return [replace(t, bands=new(t)) if only in (None, k) else t for k, t in enumerate(tiles)]


def put(k, change):
    "A change of one band."

    def put_in(bands):
        bands[k] = change(bands)[k]
        return bands

    return put_in


def order(*places):
    return lambda b: b[list(places)]


def swap(i, j):
    places = list(range(5))
    places[i], places[j] = j, i
    return order(*places)


def physical(b):
    return b * SCALE + OFFSET


FAULTS = {
    f"{BANDS[i]} and {BANDS[j]}": (swap(i, j), "band-order") for i, j in combinations(range(5), 2) if j > 2
}
FAULTS |= {
    "reversed": (order(4, 3, 2, 1, 0), "band-order"),
    "rotated": (order(4, 0, 1, 2, 3), "band-order"),
    "x 100": (lambda b: b * 100, "dn-scale"),
    "B6 x 100": (put(3, lambda b: b * 100), "dn-scale"),
    "x 1e-4": (lambda b: b * 1e-4, "dn-scale"),
    "physical": (physical, "dn-scale"),
    "kelvin": (put(4, physical), "dn-scale"),
    "8 bit": (lambda b: np.rint(b / 257), "dn-scale"),
    "B2 -9999": (
        put(0, lambda b: np.where(np.arange(b[0].size).reshape(b[0].shape) % 20, b, -9999)),
        "nodata-as-data",
    ),
    "B10 0": (
        put(4, lambda b: np.where(np.arange(b[0].size).reshape(b[0].shape) % 20, b, 0)),
        "nodata-as-data",
    ),
    "NaN": (put(3, lambda b: np.where(b > 25000, np.nan, b)), "not-finite"),
    "infinite": (put(4, lambda b: np.where(b == b[4].max(), np.inf, b)), "not-finite"),
    "B3 copied": (put(1, lambda b: b[[0, 0, 2, 3, 4]]), "band-duplicate"),
    "B10 copied, rounded": (put(4, lambda b: np.rint(b[[0, 1, 2, 3, 2]] * 0.5 + 50)), "band-duplicate"),
    "B10 constant": (put(4, lambda b: np.full_like(b, 30000)), "band-constant"),
    "B2 constant": (put(0, lambda b: np.full_like(b, 7)), "band-constant"),
    "B6 clipped": (put(3, lambda b: np.minimum(b, 8000)), "band-saturated"),
    "B2 clipped": (put(0, lambda b: np.minimum(b, 30000)), "band-saturated"),
    "B4 at its end": (put(2, lambda b: np.where(b > np.quantile(b[b > 0], 0.4), 65454, b)), "band-saturated"),
    "B10 at its end": (put(4, lambda b: np.where(b > 31000, 65454, b)), "band-saturated"),
}


def test_each_fault_and_no_other(tiles):
    wrong = {}
    for name, (change, cause) in FAULTS.items():
        found = [f.cause for f in check_bands(changed(tiles, change))]
        if found != [cause]:
            wrong[name] = found
    assert wrong == {}


@pytest.mark.parametrize("fill", [0, -9999, 65535, -32768])
def test_lost_nodata(tiles, fill):
    filled = [replace(t, bands=np.where(t.valid, t.bands, fill), valid=np.ones_like(t.valid)) for t in tiles]
    (finding,) = check_bands(filled)
    share = 1 - np.mean([t.valid.mean() for t in tiles])
    assert finding.cause == "nodata-as-data"
    assert finding.numbers["values"] == {t.id: dict.fromkeys(BANDS, fill) for t in tiles}
    assert finding.fix.endswith(f"rio edit-info --nodata {fill} FILE.")
    assert abs(finding.numbers["share"] - share) < 0.02


def test_healthy(tiles):
    assert check_bands(tiles) == []


def test_visible_bands_cannot_be_told_apart(tiles):
    for i, j in combinations(range(3), 2):
        assert check_bands(changed(tiles, swap(i, j))) == []


def test_one_tile_of_many_is_fatal(tiles):
    for change, cause in ((swap(3, 4), "band-order"), (lambda b: b * 1e-4, "dn-scale")):
        (finding,) = check_bands(changed(tiles, change, only=1))
        assert (finding.cause, finding.severity) == (cause, "fatal")
        assert tiles[1].id in finding.evidence
        assert check_bands(changed(tiles, change))[0].severity == "warning"


@pytest.mark.parametrize(("n", "size", "seed"), [(25, 64, 4), (4, 256, 7), (16, 32, 10)])
def test_healthy_sizes(n, size, seed):
    assert check_bands(open_tiles(cached_demo(n, size, seed))) == []


def test_named_order_and_unit(tiles):
    (finding,) = check_bands(changed(tiles, order(4, 3, 2, 1, 0)))
    assert finding.numbers["order"] == ["B10", "B6", "visible", "visible", "visible"]
    (finding,) = check_bands(changed(tiles, put(4, physical)))
    assert finding.numbers["B10"]["unit"] == "kelvin"
    assert list(finding.numbers) == ["B10"]
    for change, unit in ((lambda b: b * 100, "DN x 100"), (lambda b: b * 1e-4, "DN / 10000")):
        (finding,) = check_bands(changed(tiles, change))
        assert {n["unit"] for n in finding.numbers.values()} == {unit}


def test_all_120_orders_score_as_20(tiles):
    pixels = _sample_bands(tiles[0]).pixels
    scores = _order_scores(pixels)
    assert len(scores) == 20
    assert scores.score.idxmax() == (3, 4)
    shuffled = _order_scores(pixels[[2, 0, 1, 3, 4]])
    np.testing.assert_allclose(shuffled.score[3, 4], scores.score[3, 4])


def test_odd_input(tiles):
    tile, rng = tiles[0], np.random.default_rng(0)
    assert check_bands([]) == []
    assert check_bands([replace(tile, valid=np.zeros_like(tile.valid))]) == []
    few = np.zeros_like(tile.valid)
    few[tuple(np.argwhere(tile.valid)[: _MIN_PIXELS - 1].T)] = True
    assert check_bands([replace(tile, valid=few)]) == []
    nothing = replace(tile, bands=np.full_like(tile.bands, np.nan))
    assert [f.cause for f in check_bands([nothing])] == ["not-finite"]
    noise = rng.uniform(8000, 60000, (5, 1000))
    assert _detect_order(noise) is None


def test_changes_nothing(tiles):
    before = [t.bands.copy() for t in tiles]
    check_bands(tiles)
    assert all(np.array_equal(b, t.bands) for b, t in zip(before, tiles, strict=True))
