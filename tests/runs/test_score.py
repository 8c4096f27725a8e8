"""Scoring a run: the baselines are cached by tiles, split, labels and seed."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from glacier_nb.config.training import TrainConfig
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.files.paths import write_text
from glacier_nb.metrics import baseline
from glacier_nb.metrics.scores import mcc
from glacier_nb.prediction.members import _trained_on
from glacier_nb.runs import score
from glacier_nb.runs.folder import chosen_on_scored, read_history, read_json
from glacier_nb.tiles.read import read_tiles
from glacier_nb.tiles.splits import split
from glacier_nb.training.callbacks import make_learner
from glacier_nb.training.checkpoints import read_checkpoint
from glacier_nb.training.learner import Callback
from glacier_nb.training.recipe import prepare_data


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
        return score._baselines(SimpleNamespace(data=data, cfg=TrainConfig(seed=seed)), sides.val)

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


# what chose the epoch

TINY = TrainConfig(
    **{
        "encoder": "tu-test_resnet",
        "encoder_weights": None,
        "include_glcm": False,
        "crop_size": 32,
        "samples_per_epoch": 8,
    },
    **{"batch_size": 4, "epochs": 3, "n_folds": 3, "precision": "fp32", "memory_format": "channels_last"},
    devices="cpu",
)


class Cut(Callback):
    "Ends a run after its second epoch, as a signal would."

    def after_epoch(self, learner):
        learner.stop = learner.epoch == 2


def scored(cfg, data, folder, *callbacks):
    "The metrics of a run, and how often it validated which tiles."
    learner = make_learner(cfg, data, folder, progress=False)
    learner.callbacks += callbacks
    validate, seen = learner.validate, []
    learner.validate = lambda tiles=None: seen.append(tiles or data.watched) or validate(tiles)
    learner.fit()
    return score.score_run(learner, folder, with_baselines=False, progress=False), seen


def test_an_inner_block_chooses_and_the_held_out_tiles_are_predicted_once(tmp_path):
    cfg = replace(TINY, select="inner", schedule="plateau", plateau_patience=0, plateau_factor=0.1)
    data = prepare_data(cfg, read_tiles(cached_demo(9, 96, 3)))
    whole, seen = scored(cfg, data, tmp_path / "whole")
    assert [tiles is data.val for tiles in seen] == [False, False, False, True]
    assert (whole["select"], whole["chosen_on"]) == ("inner", list(data.inner.ids))
    assert set(whole["per_tile"]) == set(data.val.ids)
    assert not chosen_on_scored(whole)
    history = read_history(tmp_path / "whole")
    assert whole["selected_epoch"] == max(history, key=lambda r: r["mcc_valid"])["epoch"]
    record = read_json(tmp_path / "whole/splits.json")
    assert record["inner"] == list(data.inner.ids)
    assert set(record["marks"]) == {*record["train"], *record["inner"]}
    member = SimpleNamespace(path=tmp_path / "whole/model.pt")
    assert _trained_on(member)["train"] == {*data.train.ids, *data.inner.ids}
    scored(cfg, data, tmp_path / "cut", Cut())
    again, _ = scored(replace(cfg, run="cut", resume=True), data, tmp_path / "cut")
    assert again | {"parameters": {}} == whole | {"parameters": {}}
    weights = [read_checkpoint(tmp_path / name / "model.pt")["weights"] for name in ("whole", "cut")]
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())


def test_last_and_best_train_alike_and_say_what_chose_them(tmp_path):
    data = prepare_data(TINY, read_tiles(cached_demo(9, 96, 3)))
    found = {s: scored(replace(TINY, select=s), data, tmp_path / s)[0] for s in ("last", "best")}
    histories = [[{**r, "seconds": 0} for r in read_history(tmp_path / s)] for s in found]
    assert histories[0] == histories[1]
    assert (found["last"]["selected_epoch"], found["last"]["chosen_on"]) == (3, [])
    assert found["best"]["chosen_on"] == list(data.val.ids)
    assert [chosen_on_scored(m) for m in found.values()] == [False, True]
    for metrics in found.values():
        record = histories[0][metrics["selected_epoch"] - 1]
        assert [metrics[k] for k in ("mcc", "macro_mcc")] == [record[k] for k in ("mcc", "macro_mcc")]
    assert found["best"]["mcc_valid"] >= found["last"]["mcc_valid"]


def test_a_run_of_an_older_version_is_scored_from_its_best_pt(tmp_path):
    cfg = replace(TINY, select="best", epochs=1, warmup_epochs=0.0)
    data = prepare_data(cfg, read_tiles(cached_demo(9, 96, 3)))
    first, _ = scored(cfg, data, tmp_path / "old")
    (tmp_path / "old/model.pt").rename(tmp_path / "old/best.pt")
    again, _ = scored(replace(cfg, run="old", resume=True), data, tmp_path / "old")
    assert again["mcc"] == first["mcc"]
