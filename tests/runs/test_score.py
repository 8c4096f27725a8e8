"""Scoring a run: the baselines are cached by tiles, split, labels and seed."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from glacier_nb.config.training import TrainConfig
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.files.paths import write_text
from glacier_nb.metrics import baseline
from glacier_nb.metrics.scores import mcc
from glacier_nb.runs import score
from glacier_nb.runs.folder import read_json
from glacier_nb.tiles.read import read_tiles
from glacier_nb.tiles.splits import split


@pytest.fixture
def fits(monkeypatch, tmp_path):
    "How often baselines are fitted, with an empty cache."
    monkeypatch.setenv("GLACIER_NB_CACHE", str(tmp_path))
    monkeypatch.setitem(baseline._QUICK, "max_iter", 3)
    fit, calls = score.baselines, []
    monkeypatch.setattr(score, "baselines", lambda *args, **seed: calls.append(seed) or fit(*args, **seed))
    return calls


def test_baselines_are_fitted_once_for_the_same_tiles_split_and_seed(fits):
    tiles = read_tiles(cached_demo(4, 64, 3))

    def rules(tiles, fold=0, seed=0):
        sides = split(tiles, fold, 2, buffer=8)
        data = SimpleNamespace(split=sides, classes=tiles[0].classes)
        return score._baselines(SimpleNamespace(data=data, cfg=TrainConfig(seed=seed)))

    first = rules(tiles)
    assert first["baseline_mcc"] == max(first["baselines"].values())
    for rule, classes in first["baseline_classes"].items():
        for k, name in enumerate(tiles[0].classes):
            counts = [np.array(kinds["valid"]) for kinds in first["baseline_confusions"][rule].values()]
            pooled = sum(counts)
            one = [[0, pooled[:, k].sum() - pooled[k, k]], [pooled[k].sum() - pooled[k, k], pooled[k, k]]]
            one[0][0] = pooled.sum() - sum(map(sum, one))
            assert classes[name]["mcc_valid"] == mcc(np.array(one))
    assert rules(read_tiles(cached_demo(4, 64, 3))) == first
    assert len(fits) == 1
    assert rules(tiles, fold=1) != first
    without_debris = [replace(t, label=t.label * (t.label != 2).astype("uint8")) for t in tiles]
    assert rules(without_debris) != first
    rules(tiles, seed=1)
    assert len(fits) == 4


def test_a_resumed_run_reports_the_time_of_all_its_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr(score, "drop_optimizer", lambda folder: None)
    epochs = [{"epoch": k, "step": k, "seconds": 20.0} for k in range(2)]
    write_text(tmp_path / "history.jsonl", "".join(json.dumps(epoch) + "\n" for epoch in epochs))
    score.save_metrics(tmp_path, {"mcc": 0.5}, 30.0)
    assert read_json(tmp_path / "metrics.json")["seconds"] == 40
    score.save_metrics(tmp_path, {"mcc": 0.5}, 55.0)
    score.save_metrics(tmp_path, {"mcc": 0.5}, 2.0)
    assert read_json(tmp_path / "metrics.json")["seconds"] == 55, "a finished run was resumed"
