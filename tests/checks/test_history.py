"""Checks of a run's history and scores: synthetic faults, real runs of the record, odd input."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from glacier_nb.checks import scores
from glacier_nb.checks.history import (
    _collapse_epoch,
    _history_table,
    _last_slope,
    _loss_jumps,
    _restart_effect,
    _restarts_of,
    _turning_point,
    check_history,
)
from glacier_nb.checks.scores import (
    _ablations,
    _check_ablations,
    _check_noise,
    _largest_share,
    _one_change,
    _paired,
    check_baselines,
    check_runs,
)
from glacier_nb.config.training import TrainConfig
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.metrics import baseline
from glacier_nb.runs.compare import comparable, compare_runs
from glacier_nb.tiles.read import read_tiles
from glacier_nb.tiles.splits import Split

FOLDER = Path(__file__).parents[2] / "configs/iterations"
RECORD = json.loads((FOLDER / "record.json").read_text())
RUNS = [(tiles, name) for tiles, runs in RECORD.items() for name in runs]
E = np.arange(1, 31)
RISE = 1 - np.exp(-E / 5)
CALM = {"epochs": 30, "schedule": "linear_warmup"}


def parameters(name: str) -> dict:
    return asdict(TrainConfig(**yaml.safe_load((FOLDER / f"{name}.yaml").read_text())))


def history(seed: int = 0, **columns) -> list[dict]:
    "30 records of a run without a fault, with noise; some columns replaced."
    rng = np.random.default_rng(seed)
    found = {"train_loss": 0.7 - 0.4 * RISE, "val_loss": 0.8 - 0.4 * RISE, "mcc_valid": 0.7 * RISE}
    found = {k: v + rng.normal(0, 0.004, 30) for k, v in found.items()} | columns
    found["val_loss"][0] = 5.0  # batch norm settles
    return pd.DataFrame(found | {"epoch": E, "step": 9 * E}).to_dict("records")


def causes(records: list[dict], **changes) -> list[str]:
    return [f.cause for f in check_history(records, CALM | changes)]


@pytest.mark.parametrize(("tiles", "name"), RUNS)
def test_runs_of_the_record_have_nothing_fatal(tiles, name):
    run = RECORD[tiles][name]
    found = check_history(pd.DataFrame(run["curves"]).to_dict("records"), parameters(name))
    found += check_baselines(run)
    assert not [f for f in found if f.severity == "fatal"]
    for f in found:
        json.dumps(dict(f.numbers), allow_nan=False)
        TrainConfig(**parameters(name) | dict(f.change))
    if name[:2] in ("01", "02", "03", "04"):
        flat = (tiles, name) == ("demo", "02_mcc_added")  # its MCC stays at 0.38 to 0.39 from epoch 24 on
        assert {f.cause for f in found} == {"below-baseline"} | (set() if flat else {"still-rising"})


@pytest.mark.parametrize("seed", range(20))
def test_no_finding_without_a_fault(seed):
    assert causes(history(seed)) == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("cause", "columns"),
    [
        ("diverged", {"train_loss": 0.7 + 0.1 * np.maximum(E - 5, 0)}),
        ("unstable", {"val_loss": 0.4 + 2.0 * (E % 7 == 0) + 0.001 * E}),
        ("unstable", {"val_loss": 0.5 + 0.2 * (-1.0) ** E}),
        ("peaked", {"mcc_valid": 0.7 * RISE - 0.02 * np.maximum(E - 14, 0)}),
        ("still-rising", {"mcc_valid": 0.02 * E}),
        ("collapsed", {"mcc_valid": np.where(E < 12, 0.5 * RISE, 0.0)}),
        (
            "overfitting",
            {
                "train_loss": 0.7 - 0.02 * E,
                "val_loss": 0.5 + 0.02 * np.abs(E - 12),
                "mcc_valid": 0.7 * RISE - 0.008 * np.maximum(E - 12, 0),
            },
        ),
    ],
)
def test_each_fault_is_found_alone(cause, columns, seed):
    assert causes(history(seed, **{k: v.copy() for k, v in columns.items()})) == [cause]


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_loss_that_is_not_finite(bad):
    records = history()
    records[4]["loss_mcc"] = bad
    (found,) = check_history(records, TrainConfig(lr=1e-2, clip=0))
    assert (found.cause, found.numbers["epoch"]) == ("diverged", 5)
    assert found.change == {"lr": 1e-3, "clip": 1.0}
    assert found.evidence == "In epoch 5, loss_mcc is NaN or infinite; usual: finite in every epoch."


def restarting(end: float) -> list[dict]:
    score = np.concatenate([0.6 * RISE[:10], np.linspace(0.1, 0.5, 10), np.linspace(0.05, end, 10)])
    return history(mcc_valid=score)


def test_restarts_that_destroy():
    p = {"epochs": 30, "schedule": "warm_restarts", "restart_epochs": 10.0}
    (found,) = check_history(restarting(0.45), p)
    assert (found.cause, found.severity) == ("restarts", "warning")
    assert found.change == {"schedule": "linear_warmup"}
    assert found.numbers["not_regained"] == 2
    (found,) = check_history(restarting(0.2), p)
    assert (found.cause, found.severity) == ("restarts", "fatal")
    assert list(found.picture.args[-1].values()) == [10, 20]
    effect = _restart_effect(_history_table(restarting(0.2)), _restarts_of(restarting(0.2), p))
    np.testing.assert_allclose(effect["change"], [0.1 - 0.6 * RISE[9], -0.45])
    assert "restarts" not in causes(restarting(0.45))  # same curve, schedule without restarts


def test_proposals_are_allowed_and_change_something():
    peaked = {"mcc_valid": 0.7 * RISE - 0.02 * np.maximum(E - 14, 0)}
    assert [f.change for f in check_history(history(**peaked), CALM)] == [
        {"schedule": "plateau", "select": "inner"}
    ]
    swings = {"val_loss": 0.5 + 0.2 * (-1.0) ** E}
    for batch, accumulate in ((1, 1), (8, 1), (16, 2), (20, 1), (48, 3)):
        cfg = TrainConfig(epochs=30, batch_size=batch, accumulate=accumulate)
        (found,) = check_history(history(val_loss=swings["val_loss"].copy()), cfg)
        assert found.change
        assert TrainConfig(**asdict(cfg) | dict(found.change)) != cfg


@pytest.mark.parametrize("n", [0, 1, 2])
def test_short_histories_give_no_finding(n):
    assert causes(history()[:n]) == []
    assert check_history(history(mcc_valid=np.zeros(30))[:n], {}) == []


def test_odd_histories():
    empty = [{"epoch": e} for e in range(1, 31)]
    assert causes(empty) == []
    table = _history_table(empty)
    assert _loss_jumps(table) == _turning_point(table) == _last_slope(table) == {}
    assert _collapse_epoch(table) is None
    assert causes([{"epoch": e, "mcc": None, "lr": "x", "grad_norm": math.inf} for e in E]) == []
    records = history()
    for r in records[::3]:
        r["mcc_valid"] = None
    assert causes(records) == []
    assert causes([r | {"mcc": r.pop("mcc_valid")} for r in history(mcc_valid=0.02 * E)]) == ["still-rising"]
    assert _restarts_of(history(), {"schedule": "warm_restarts", "restart_epochs": 500.0, "new": 1}) == []
    before = json.dumps(records)
    check_history(records, CALM)
    assert json.dumps(records) == before


def test_zero_in_the_first_epochs_is_no_collapse():
    assert causes(history(mcc_valid=np.where(E < 5, 0, 0.7 * RISE))) == []
    assert _collapse_epoch(_history_table(history(mcc_valid=np.where(E < 29, RISE, 0)))) is None


def run(*cms, **more) -> dict:
    kinds = {f"t{i}": {"all": m, "valid": m} for i, m in enumerate(cms)}
    return {"tile_confusions": kinds, "confusion_valid": np.sum(cms, 0).tolist(), **more}


def test_baselines_of_tiles(monkeypatch):
    tiles = read_tiles(cached_demo(6, 64, 0))
    sides = Split(tiles[:4], tiles[4:])
    monkeypatch.setitem(baseline._QUICK, "max_iter", 3)
    counts = scores._count_baselines(*sides)
    found = scores._pooled_mcc(counts, 0)
    assert list(found) == ["constant", "valid mask", "NDSI > 0.4", "boosting", "boosting with context"]
    assert scores._pooled_mcc(counts, 1)["constant"] == 0
    monkeypatch.setattr(scores, "_count_baselines", lambda *args: counts)
    (bad,) = check_baselines({"mcc": found["valid mask"] - 0.01}, sides)
    assert (bad.cause, bad.severity) == ("below-baseline", "fatal")
    assert check_baselines({"mcc": max(found.values()) + 0.01}, sides) == []


def test_check_baselines_severities():
    rules = {"valid mask": 0.3, "NDSI > 0.4": 0.2, "boosting": 0.6}
    severity = {
        m: [f.severity for f in check_baselines({"mcc": m, "baselines": rules})]
        for m in (0.01, 0.29, 0.5, 0.7)
    }
    assert severity == {0.01: ["fatal"], 0.29: ["fatal"], 0.5: ["warning"], 0.7: []}
    assert [f.severity for f in check_baselines({"mcc": 0.04})] == ["fatal"]
    assert check_baselines({}) == check_baselines({"mcc": None}) == []
    (found,) = check_baselines({"mcc": 0.5, "baselines": rules, "ci95": [0.4, 0.65]})
    assert "boosting 0.600, 0.100 better" in found.evidence
    assert "includes the best" in found.evidence
    assert check_baselines({"mcc": 0.5, "ci95": [None, None]}) == []


def test_maps_of_one_class():
    assert _largest_share(run([[0, 50], [0, 50]])) == 1
    assert [f.cause for f in check_baselines(run([[0, 50], [0, 50]], mcc=0.0))] == [
        "collapsed",
        "below-baseline",
    ]
    assert _largest_share(run([[0, 0], [0, 50]])) is None  # the labels have one class


def test_paired_is_that_of_compare_runs():
    runs = {n: RECORD["competition"][n] for n in ("04_heavy_mcc", "05_enough_steps")}
    pair, table = _paired(*comparable(runs)[0].values()), compare_runs(runs, n=2000).pairs.iloc[0]
    for name in ("difference", "low", "high", "p"):
        assert math.isclose(pair[name], table[name])
    one = _paired(*({"t0": np.array(m)} for m in ([[5, 5], [1, 9]], [[9, 1], [1, 9]])))
    assert math.isnan(one["low"])
    assert one["tiles"] == 1


def test_noise():
    same = RECORD["demo"]
    (found,) = _check_noise({n: same[n] for n in ("10_reference", "11_encoder_from_scratch")})
    assert found.severity == "note"
    assert found.numbers["next"]["difference"] == 0
    assert "0.062, so it cannot tell" in found.evidence
    assert _check_noise({n: same[n] for n in ("01_focal_dice", "10_reference")}) == []
    assert _check_noise({}) == check_runs({"a": {}, "b": {"mcc": 1.0}}) == []


def test_ablations():
    names = ("10_reference", "12_no_glcm", "28_linear_warmup")
    runs = {n: RECORD["demo"][n] | {"parameters": parameters(n)} for n in names}
    table = _ablations(runs)
    assert table["parameter"].tolist() == ["include_glcm"]  # 28 changes two parameters
    assert math.isclose(table["difference"][0], runs["12_no_glcm"]["mcc"] - runs["10_reference"]["mcc"])
    (found,) = _check_ablations(runs)
    assert [f.cause for f in check_runs(runs)][-1] == found.cause
    json.dumps(dict(found.numbers), allow_nan=False)
    assert "include_glcm True -> False: -0.016" in found.evidence
    assert _check_ablations({n: RECORD["demo"][n] for n in names}) == []  # parameters are unknown
    assert _one_change({"run": "a", "workers": 1}, {"run": "b", "lr": 0.1}) == "lr"
    assert _one_change({"lr": 0.2, "seed": 1}, {}) is _one_change({}, {}) is None


def test_run_that_ends_soon_after_a_restart_is_not_reported_as_overfitting():
    found = pd.DataFrame(RECORD["demo"]["13_longer_cycle"]["curves"]).to_dict("records")
    assert _turning_point(_history_table(found))["val_rise"] > 0.1  # three epochs after a restart
    assert check_history(found, parameters("13_longer_cycle")) == []
    assert check_history(found, CALM | {"epochs": 9})[0].cause == "overfitting"


def test_large_gradient_norm_alone_is_no_divergence():
    assert causes(history(grad_norm=np.where(E == 9, 1e6, 1.0))) == []
    worse = {"grad_norm": np.where(E == 9, 1e6, 1.0), "train_loss": 0.7 + 0.001 * E}
    assert causes(history(**worse)) == ["diverged"]
