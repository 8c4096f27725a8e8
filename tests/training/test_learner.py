"""Training: repeatable, resumable, interruptible; ends with a clear error when it cannot continue."""

import json
import math
import os
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from affine import Affine
from made_up import noise_tile
from tiny_network import tiny_network
from torch import nn

from glacier_nb.config.fields import ConfigError
from glacier_nb.config.training import TrainConfig
from glacier_nb.data.stats import BandStats
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.metrics.scores import macro_mcc
from glacier_nb.models.build import _ARCHITECTURES, build_unet, predict_logits
from glacier_nb.models.weights import WeightsError, init_from
from glacier_nb.parallel.device import pick_device
from glacier_nb.tiles.read import read_tiles
from glacier_nb.training.callbacks import (
    EarlyStop,
    Progress,
    _epoch_line,
    _rng_state,
    _set_rng_state,
    drop_optimizer,
    make_learner,
)
from glacier_nb.training.checkpoints import read_checkpoint
from glacier_nb.training.learner import Callback, Learner, TrainingError
from glacier_nb.training.recipe import empty_network, prepare_data

TINY = TrainConfig(
    **{
        "encoder": "tu-test_resnet",
        "encoder_weights": None,
        "crop_size": 32,
        "samples_per_epoch": 8,
        "batch_size": 4,
        "epochs": 3,
        "n_folds": 3,
        "ema": 0.0,
    },
    precision="fp32",
    memory_format="channels_last",
    devices="cpu",
)

CPU = torch.device("cpu")
FIRST = "encoder.model.conv1.0.weight"  # of the first convolution


@pytest.fixture(scope="module")
def data():
    return prepare_data(TINY, read_tiles(cached_demo(9, 96, 3)))


def run(data, folder, cfg=TINY, callback=None):
    "A finished run without progress."
    learner = make_learner(cfg, data, folder, progress=False)
    learner.callbacks += [callback] * (callback is not None)
    learner.fit()
    return learner


def weights_equal(one, other):
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    "A run without interruption."
    return run(data, tmp_path_factory.mktemp("runs") / "whole")


def without_seconds(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def test_same_seed_same_run_and_another_seed_another(data, whole, tmp_path):
    again, other = run(data, tmp_path / "again"), run(data, tmp_path / "other", replace(TINY, seed=1))
    assert weights_equal(whole, again)
    assert without_seconds(whole.history) == without_seconds(again.history)
    assert not weights_equal(whole, other)


def test_threads_that_cut_crops_change_nothing(data, whole, tmp_path):
    assert weights_equal(whole, run(data, tmp_path / "threads", replace(TINY, workers=2)))


class CtrlC(Callback):
    "A real SIGINT in the middle of the given step."

    def __init__(self, step):
        self.step = step

    def after_step(self, learner):
        if learner.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("step", [1, 3, 5])
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_saves_and_the_resumed_run_ends_with_the_same_weights(data, whole, tmp_path, step):
    cut = run(data, tmp_path / "cut", callback=CtrlC(step))
    assert cut.interrupted
    assert read_checkpoint(tmp_path / "cut/last.pt")["progress"]["epoch"] == cut.epoch == (step - 1) // 2
    resumed = run(data, tmp_path / "cut", replace(TINY, run="cut", resume=True))
    assert weights_equal(whole, resumed)
    assert without_seconds(resumed.history) == without_seconds(whole.history)
    lines = (tmp_path / "cut/history.jsonl").read_text().splitlines()
    assert without_seconds(map(json.loads, lines)) == without_seconds(whole.history)
    assert not list((tmp_path / "cut").glob("*.tmp"))


@pytest.mark.usefixtures("interruptible")
def test_resume_refuses_another_config(data, tmp_path):
    run(data, tmp_path / "cut", callback=CtrlC(3))
    with pytest.raises(
        ConfigError, match=r"last\.pt belongs to another config: lr \(saved 0\.001, requested 0\.01\)"
    ):
        run(data, tmp_path / "cut", replace(TINY, run="cut", resume=True, lr=0.01))


def test_two_runs_cannot_share_a_folder(data, whole, tmp_path):
    run(data, tmp_path / "one")
    before = (tmp_path / "one/last.pt").read_bytes()
    with pytest.raises(ConfigError, match="one already holds a run"):
        run(data, tmp_path / "one", replace(TINY, seed=4))
    assert (tmp_path / "one/last.pt").read_bytes() == before


def test_checkpoint_is_all_that_prediction_needs(data, whole, tmp_path):
    learner = run(data, tmp_path / "one")
    state = torch.load(tmp_path / "one/last.pt", weights_only=True)
    stats, tile = BandStats.from_dict(state["stats"]), data.val_tiles[0]
    model = empty_network(TrainConfig(**state["config"]), len(stats.names), len(state["classes"]))
    model.load_state_dict(state["weights"])
    image = stats.normalise(tile)
    np.testing.assert_array_equal(image, data.val.images[0])
    image = torch.from_numpy(image)[None]
    torch.testing.assert_close(predict_logits(model.eval(), image), learner.predict({"image": image}))
    assert stats == data.stats
    assert stats.names == ("B2", "B3", "B4", "B6", "B10", "B6_contrast", "B6_energy")
    assert state["codes"] == [0, 85, 170, 255]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(data, tmp_path, precision):
    small = {"decoder_attention": "none"}  # half precision is emulated on a CPU
    cfg = replace(
        TINY, **small, precision=precision, epochs=1, warmup_epochs=0, samples_per_epoch=4, batch_size=2
    )
    learner = run(data, tmp_path / precision, cfg)
    assert all(np.isfinite(r["train_loss"]) and np.isfinite(r["val_loss"]) for r in learner.history)
    assert next(learner.model.parameters()).dtype == torch.float32


def test_without_glcm_the_network_sees_five_bands(data, tmp_path):
    cfg = replace(TINY, include_glcm=False, epochs=2)
    bands = prepare_data(cfg, [*data.train_tiles, *data.val_tiles])
    assert bands.stats.glcm is None
    assert run(bands, tmp_path / "five", cfg).model.get_parameter(FIRST).shape[1] == 5


def test_nan_loss_names_step_and_term(data, tmp_path):
    learner = make_learner(TINY, data, tmp_path / "nan", progress=False)
    learner.train_step([next(learner.batches(0))])
    with torch.no_grad():
        learner.model.segmentation_head[0].bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"step 1 \(epoch 1\): the loss is not finite: focal = nan"):
        learner.fit()


def test_infinite_gradient_is_an_error(data, tmp_path):
    learner = make_learner(TINY, data, tmp_path / "inf", progress=False)
    learner.model.get_parameter(FIRST).register_hook(lambda g: g * float("inf"))
    with pytest.raises(TrainingError, match="gradient's norm is"):
        learner.fit()


def test_accumulated_gradient_is_that_of_the_whole_batch(data, tmp_path):
    "With batch norm frozen and every pixel counted, the mean of two focal losses is that of both halves."
    grads = []
    for parts in (1, 2):
        cfg = replace(TINY, focal_weight=1.0, accumulate=parts, augment="none", lr=0.0, lr_min=0.0)
        learner = make_learner(cfg, data, tmp_path / str(parts), progress=False)
        learner.model.eval()
        group = [batch for batch, _ in zip(learner.batches(0), range(parts), strict=False)]
        for batch in group:
            batch["valid"], batch["label"] = torch.ones_like(batch["valid"]), batch["label"] % 4
        grads.append(learner.train_step(group)["grad_norm"])
    assert grads[0] == pytest.approx(grads[1], rel=1e-4)


def test_early_stopping_after_patience_epochs(data, tmp_path):
    learner = make_learner(
        replace(TINY, epochs=20, lr=0.0, lr_min=0.0, patience=2, select="best"),
        data,
        tmp_path / "p",
        progress=False,
    )
    learner.train_epoch = lambda: {"train_loss": 0.0, "lr": 0.0}
    learner.validate = lambda: {"val_loss": 0.0, "mcc": 0.1, "mcc_valid": 0.1}
    learner.fit()
    assert learner.epoch == 3
    assert any(isinstance(c, EarlyStop) for c in learner.callbacks)


def test_tiles_of_any_size_are_predicted_whole(data):
    model = build_unet(5, 4, "resnet18").eval()
    assert predict_logits(model, torch.randn(1, 5, 70, 33)).shape == (1, 4, 70, 33)


def test_init_from_starts_with_the_weights_of_another_run(data, whole, tmp_path):
    run(data, tmp_path / "first")
    cfg = replace(TINY, init_from=str(tmp_path / "first/last.pt"), seed=5)
    started = make_learner(cfg, data, tmp_path / "second", progress=False)
    assert weights_equal(started, whole)


def test_init_from_a_file_without_a_fitting_tensor(tmp_path):
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"other\.pt: none of the network's"):
        init_from(build_unet(5, 4, "resnet18"), tmp_path / "other.pt")


def test_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"PK\x03\x04 half a zip")
    with pytest.raises(WeightsError, match=r"last\.pt: not a checkpoint"):
        read_checkpoint(tmp_path / "last.pt")


def test_a_missing_cuda_device_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="finds no CUDA device"):
        pick_device("cuda")


MORE = {
    "everything mixed": {
        **{"augment": "strong", "mixup": 0.4, "tversky_weight": 0.2, "lovasz_weight": 0.1},
        **{"class_weights": "effective", "schedule": "one_cycle"},
    },
    "boxes along interfaces": {
        **{"augment": "geometric", "cutmix": 1.0, "interface_fraction": 0.5},
        **{"schedule": "warmup_restarts", "restart_epochs": 1.0},
    },
    "plateau": {"schedule": "plateau", "select": "best", "plateau_patience": 0, "plateau_factor": 0.1},
    "averaged weights": {"ema": 0.9, "memory_format": "contiguous"},
}


@pytest.mark.parametrize("name", MORE)
def test_other_recipes_train_and_resume_to_the_bit(data, tmp_path, name):
    cfg = replace(TINY, **MORE[name])
    whole = run(data, tmp_path / "whole", cfg)
    assert all(np.isfinite(r["train_loss"]) for r in whole.history)

    class Stop(Callback):
        def after_epoch(self, learner):
            learner.stop = learner.epoch == 2

    run(data, tmp_path / "cut", cfg, Stop())
    again = run(data, tmp_path / "cut", replace(cfg, run="cut", resume=True))
    assert weights_equal(whole, again)
    assert [r["lr"] for r in whole.history] == [r["lr"] for r in again.history]


@pytest.mark.parametrize("values", [{"batch_size": 1}, {"samples_per_epoch": 9}, {"accumulate": 4}])
@pytest.mark.parametrize(
    ("architecture", "size", "trains"),
    [("Unet", 32, False), ("Unet", 64, True), ("DeepLabV3Plus", 64, False), ("scratch", 64, True)],
)
def test_a_single_crop_in_a_batch(data, tmp_path, values, architecture, size, trains):
    cfg = replace(TINY, architecture=architecture, crop_size=size, epochs=2, **values)
    if trains:
        assert len(run(data, tmp_path / "run", cfg).history) == 2
    else:
        with pytest.raises(ConfigError, match="cannot train on one crop"):
            make_learner(cfg, data, tmp_path / "run", progress=False)


def test_a_run_that_ended_early_does_not_train_on_when_resumed(data, tmp_path):
    cfg = replace(TINY, run="early", patience=1, select="best", epochs=9, lr=0.0, lr_min=0.0)
    first = run(data, tmp_path / "early", cfg)
    again = run(data, tmp_path / "early", replace(cfg, resume=True))
    assert len(first.history) < 9
    assert again.history == first.history
    assert weights_equal(first, again)


@pytest.mark.usefixtures("interruptible")
def test_resuming_does_not_load_initial_weights(data, tmp_path, monkeypatch):
    requested = []

    def unreachable(encoder, patient=True):
        requested.append(encoder)
        raise WeightsError("no connection")

    monkeypatch.setattr("glacier_nb.models.weights._hub_state", unreachable)
    cfg = replace(TINY, run="run", encoder="resnet18", epochs=2, encoder_weights="imagenet-if-found")
    first = run(data, tmp_path / "run", cfg, CtrlC(step=3))
    again = run(data, tmp_path / "run", replace(cfg, resume=True))
    assert requested == ["resnet18"]
    assert "no connection" in again.model.started_from.missing
    assert again.model.started_from == first.model.started_from


@pytest.mark.parametrize("architecture", ["UnetPlusPlus", "DeepLabV3Plus", "SegFormer", "scratch"])
def test_every_architecture_trains_from_a_config(data, tmp_path, architecture):
    cfg = replace(TINY, architecture=architecture, crop_size=64, epochs=2)
    learner = run(data, tmp_path / "run", cfg)
    assert learner.step == 4
    assert architecture in learner.model.network
    assert str(learner.model.started_from) == "random weights (seed 0)"


def test_init_from_reports_every_tensor(data, whole, tmp_path):
    wide = replace(TINY, decoder_channels="256,128,64,32,16")
    run(data, tmp_path / "scse", replace(wide, decoder_attention="scse", epochs=1))
    cfg = replace(wide, init_from=str(tmp_path / "scse/model.pt"))
    report = make_learner(cfg, data, tmp_path / "run", progress=False).init_report
    assert set(report["result"]) == {"loaded", "unused"}  # the attention does not exist there
    assert whole.init_report is None


def test_averaged_weights_are_validated_and_saved(data, tmp_path):
    learner = run(data, tmp_path / "run", replace(TINY, ema=0.5, select="best"))
    best, last = (read_checkpoint(tmp_path / f"run/{name}.pt") for name in ("model", "last"))
    raw, averaged = learner.model.state_dict(), learner.average.model.state_dict()
    name = FIRST
    assert torch.equal(last["weights"][name], averaged[name])
    assert torch.equal(last["trained"][name], raw[name])
    assert not torch.equal(averaged[name], raw[name])
    learner.eval_model.load_state_dict(best["weights"])
    assert learner.validate()["mcc_valid"] == best["metrics"]["mcc_valid"]
    assert best["blocks"].keys() == learner.blocks.keys()
    for tile, counts in learner.blocks.items():  # the scores are those of the best weights
        np.testing.assert_array_equal(best["blocks"][tile].numpy(), counts)


def test_the_average_follows_its_formula(data, tmp_path):
    seen, name = [], FIRST

    class Record(Callback):
        def after_step(self, learner):
            seen.append(learner.model.get_parameter(name).detach().double().clone())

    learner = run(data, tmp_path / "run", replace(TINY, ema=0.9), Record())
    mean = seen[0]
    for step, weight in enumerate(seen[1:], start=2):
        mean = torch.lerp(weight, mean, min(0.9, (1 + step) / (10 + step)))
    found = learner.average.model.get_parameter(name).double()
    torch.testing.assert_close(found, mean, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("select", "followed"), [("inner", 1), ("last", 0)])
def test_without_held_out_tiles_the_plateau_follows_the_inner_block(tmp_path, monkeypatch, select, followed):
    monkeypatch.setattr("glacier_nb.training.callbacks.run_network", tiny_network)
    schedule = "plateau" if select == "inner" else "cosine"
    cfg = replace(TINY, fold=None, select=select, schedule=schedule, epochs=1, warmup_epochs=0.0)
    learner = make_learner(cfg, prepare_data(cfg, read_tiles(cached_demo(9, 96, 3))), tmp_path, False)
    seen = []
    monkeypatch.setattr(learner.rate, "after_epoch", lambda score, step: seen.append(score))
    learner.fit()
    assert seen == [r["mcc_valid"] for r in learner.history if "mcc_valid" in r]
    assert len(seen) == followed


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_network_trains_alike_with_the_same_names(data, tmp_path, monkeypatch):
    def small(cfg, data):  # each kernel is compiled for seconds
        torch.manual_seed(cfg.seed)
        return nn.Sequential(nn.Conv2d(len(data.stats.names), 4, 1), nn.BatchNorm2d(4)), None

    monkeypatch.setattr("glacier_nb.training.callbacks.run_network", small)
    cfg = replace(TINY, fold=None, epochs=1, warmup_epochs=0.0)
    data = prepare_data(cfg, [*data.train_tiles, *data.val_tiles])
    eager, compiled = (run(data, tmp_path / str(c), replace(cfg, compile=c)) for c in (False, True))
    assert type(compiled.network).__name__ == "OptimizedModule"
    assert list(compiled.model.state_dict()) == list(eager.model.state_dict())
    assert compiled.history[0]["train_loss"] == pytest.approx(eager.history[0]["train_loss"], abs=1e-3)
    pairs = zip(compiled.model.parameters(), eager.model.parameters(), strict=True)
    assert not all(torch.equal(*pair) for pair in pairs)  # computed by other kernels


# random state


def test_random_state_is_restored():
    state = _rng_state(CPU)
    drawn = torch.rand(3), nn.functional.dropout(torch.ones(9))
    _set_rng_state(state, CPU)
    assert torch.equal(drawn[0], torch.rand(3))
    assert torch.equal(drawn[1], nn.functional.dropout(torch.ones(9)))
    assert {k: v.dtype for k, v in state.items()} == {"cpu": torch.uint8}


def test_random_state_of_a_gpu(monkeypatch, tmp_path):
    there = {1: torch.arange(16, dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: there[device.index].clone())
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: there.update({device.index: state})
    )
    device = torch.device("cuda", 1)
    torch.save(_rng_state(device), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    before, there[1] = there[1], torch.zeros(16, dtype=torch.uint8)
    _set_rng_state({"cpu": state["cpu"]}, device)  # of a run on a CPU: the GPU's generator stays
    assert there[1].sum() == 0
    _set_rng_state(state, device)
    assert torch.equal(there[1], before)
    _set_rng_state(state, CPU)  # a run that resumes without a GPU


@pytest.mark.parametrize(
    "wrong", [None, {}, {"cuda": torch.zeros(1)}, {"cpu": torch.zeros(1), "mps": 0}, [1]]
)
def test_wrong_random_states(wrong):
    with pytest.raises(ConfigError, match=r"random generators: found .* expected cpu"):
        _set_rng_state(wrong, CPU)


def test_whole_tiles_of_any_size_train_in_every_network(tmp_path):
    places = [Affine(30, 0, 3000 * k, 0, -30, 0) for k in range(3)]
    tiles = [noise_tile(f"t{k}", k, shape) for k, shape in enumerate([(40, 40), (24, 56), (40, 33)])]
    tiles = [replace(t, crs="EPSG:32643", transform=at) for t, at in zip(tiles, places, strict=True)]
    cfg = replace(TINY, crop_size=0, samples_per_epoch=2, batch_size=2, augment="strong")
    cfg = replace(cfg, include_glcm=False, decoder_attention="none")
    data = prepare_data(cfg, tiles)
    for architecture in _ARCHITECTURES:
        cfg = replace(cfg, architecture=architecture)
        learner = make_learner(cfg, data, tmp_path / "none", progress=False)
        (batch,) = learner.batches(0)
        assert math.isfinite(learner.train_step([batch])["train_loss"])


def test_the_bar_shows_the_score_by_which_the_best_epoch_is_chosen():
    cfg = replace(TINY, select="best")
    learner = SimpleNamespace(history=[], last={"train_loss": 1.0}, cfg=cfg, step=0, steps_per_epoch=1)
    bar, shown = Progress(), []
    bar.bar = SimpleNamespace(set_postfix=lambda values, refresh: shown.append(values))
    for mcc, mcc_valid in ((0.9, 0.5), (0.2, 0.6), (0.95, 0.55), (0.1, 0.7)):
        learner.history.append({"mcc": mcc, "mcc_valid": mcc_valid})
        learner.best = Learner.best.fget(learner)
        bar._show(learner)
    assert [values["valid MCC"] for values in shown] == ["0.500", "0.600", "0.550", "0.700"]
    assert [values["best"] for values in shown] == ["0.500", "0.600", "0.600", "0.700"]
    for select, names in (("last", {"valid MCC"}), ("inner", {"inner valid MCC", "best"})):
        learner.cfg = replace(TINY, select=select)
        bar._show(learner)
        assert shown[-1].keys() == {"loss"} | names


def test_a_finished_run_needs_no_optimizer(data, tmp_path):
    cfg = replace(TINY, ema=0.9, epochs=2, samples_per_epoch=4)
    first = run(data, tmp_path / "done", cfg)
    path, scores = tmp_path / "done/last.pt", first.validate()
    before, weights = path.stat().st_size, read_checkpoint(path)["weights"]
    drop_optimizer(path.parent)
    small = path.read_bytes()
    assert len(small) < 0.45 * before
    drop_optimizer(path.parent)
    assert path.read_bytes() == small  # not written again
    again = run(data, path.parent, replace(cfg, run="done", resume=True))
    assert (again.history, again.validate()) == (first.history, scores)
    for name, value in again.eval_model.state_dict().items():
        assert torch.equal(value, weights[name])
    longer = replace(cfg, run="done", resume=True, epochs=4)
    with pytest.raises(ConfigError, match=r"another config: epochs \(saved 2, requested 4\)"):
        run(data, path.parent, longer)
    with pytest.raises(ConfigError, match=r"finished after 2 epochs.*init_from"):
        make_learner(longer, data, path.parent, progress=False).restore(read_checkpoint(path))
    fresh = replace(cfg, init_from=str(path), ema=0.0)
    started = make_learner(fresh, data, tmp_path / "new", progress=False)
    assert all(torch.equal(v, weights[k]) for k, v in started.model.state_dict().items())


def test_a_last_pt_that_cannot_be_read_or_written_stays(data, tmp_path, monkeypatch):
    drop_optimizer(tmp_path)
    (tmp_path / "last.pt").write_bytes(b"no checkpoint")
    drop_optimizer(tmp_path)
    assert (tmp_path / "last.pt").read_bytes() == b"no checkpoint"


# what chose the epoch


@pytest.mark.parametrize(("select", "epoch"), [("last", 3), ("best", 2)])
def test_the_weights_of_the_selected_epoch_are_saved(data, tmp_path, select, epoch):
    learner, scores = make_learner(replace(TINY, select=select), data, tmp_path / "r", False), [0.3, 0.5, 0.4]
    learner.train_epoch = lambda: {"train_loss": 0.0, "lr": 0.0}
    learner.validate = lambda: {"val_loss": 0.0, "mcc": 0.1, "mcc_valid": scores[learner.epoch]}
    learner.fit()
    assert read_checkpoint(tmp_path / "r/model.pt")["metrics"]["epoch"] == epoch == learner.selected["epoch"]
    assert not (tmp_path / "r/best.pt").exists()


def test_history_has_the_mcc_of_each_class(data, whole):
    record = whole.history[-1]
    own = {k.removeprefix("class_mcc_"): v for k, v in record.items() if k.startswith("class_mcc_")}
    assert tuple(own) == data.classes
    pooled = sum(counts.sum(0)[0] for counts in whole.blocks.values())
    known = [v for v in own.values() if v is not None]
    assert record["macro_mcc"] == macro_mcc(pooled) == pytest.approx(np.mean(known))
    for k, value in enumerate(own.values()):
        assert (value is None) == (pooled[k].sum() + pooled[:, k].sum() == 0)
    assert f"macro {record['macro_mcc']:.3f}" in _epoch_line(record, 3)
    assert " inner MCC " in _epoch_line(record, 3, "inner ")
