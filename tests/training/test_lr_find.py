"""The range test: it trains on batches of the run, leaves the learner unchanged, and suggests good rates."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from bitwise import same
from numpy.testing import assert_allclose
from tiny_network import tiny_network
from torch import nn

from glacier_nb.config.fields import ConfigError
from glacier_nb.config.training import TrainConfig
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.tiles.read import read_tiles
from glacier_nb.training.callbacks import make_learner
from glacier_nb.training.learner import TrainingError
from glacier_nb.training.lr_find import LrFind, _smoothed, lr_find
from glacier_nb.training.recipe import prepare_data

TINY = TrainConfig(
    crop_size=32,
    samples_per_epoch=8,
    batch_size=4,
    epochs=2,
    n_folds=3,
    precision="fp32",
    devices="cpu",
)


@pytest.fixture(scope="module")
def data():
    return prepare_data(TINY, read_tiles(cached_demo(9, 96, 3)))


@pytest.fixture
def make(data, tmp_path, monkeypatch):
    "A function of the config that makes a learner of a tiny network."
    monkeypatch.setattr("glacier_nb.training.callbacks.run_network", tiny_network)
    return lambda cfg=TINY: make_learner(cfg, data, tmp_path / "run", progress=False)


def state(learner):
    "Everything that training changes, of the learner and around it."
    parts = (learner.model, learner.optimizer, learner.scaler, learner.loss)
    counters = (learner.step, learner.epoch, learner.history, learner.stop, learner.interrupted)
    modes = [m.training for m in learner.model.modules()]
    grads = [None if p.grad is None else p.grad.clone() for p in learner.model.parameters()]
    random = (torch.get_rng_state(), np.random.get_state()[1].tolist())  # noqa: NPY002
    attributes = sorted(vars(learner))
    return copy.deepcopy(([p.state_dict() for p in parts], counters, modes, grads, random, attributes))


def with_dropout(learner):
    "The learner, its network now drawing from torch's global generator."
    learner.model.segmentation_head.insert(0, nn.Dropout(0.5))
    return learner


@pytest.mark.parametrize(
    ("changes", "epochs_before"),
    [({}, 0), ({"accumulate": 2}, 1), ({"workers": 2}, 0), ({"precision": "fp16"}, 1)],
    ids=str,
)
def test_learner_is_the_same_to_the_bit(make, changes, epochs_before):
    learner = with_dropout(make(replace(TINY, **changes)))
    for _ in range(epochs_before):
        learner.train_epoch()
    before, rate = state(learner), learner.rate
    lr_find(learner, low=1e-5, high=1, steps=10)
    assert same(state(learner), before)
    assert learner.rate is rate


def test_the_second_time_it_finds_the_same(make):
    learner = with_dropout(make())
    one, two = (lr_find(learner, low=1e-5, high=1, steps=10) for _ in range(2))
    pd.testing.assert_frame_equal(one.table, two.table, check_exact=True)


def test_a_run_after_it_is_the_run_without_it(data, tmp_path):
    runs = []
    for name in ("without", "after"):
        learner = make_learner(TINY, data, tmp_path / name, progress=False)
        if name == "after":
            lr_find(learner, steps=10)
        learner.fit()
        records = [{k: v for k, v in r.items() if k != "seconds"} for r in learner.history]
        runs.append((learner.model.state_dict(), records))
    assert same(*runs)


def test_an_error_in_the_middle_leaves_the_learner_unchanged(make):
    learner = make()
    batches = learner.batches

    def broken(epoch):
        yield from batches(epoch)
        raise OSError("disk is gone")

    learner.batches = broken
    before = state(learner)
    with pytest.raises(OSError, match="disk is gone"):
        lr_find(learner, steps=10)
    assert same(state(learner), before)


def test_it_trains_as_the_learner_does(make):
    learner, low, high = make(), 1e-4, 1e-2
    found = lr_find(learner, low, high, steps=10)
    learner.rate, losses = lambda step: low * (high / low) ** (step / 9), []
    learner.model.train()
    for epoch in range(5):
        losses += [learner.train_step([batch])["train_loss"] for batch in learner.batches(epoch)]
    assert_allclose(found.table["loss"], losses, rtol=1e-4)
    assert found.table["loss"][0] == losses[0]
    assert found.ended == "all 10 rates were tried"


def test_rates_have_a_constant_ratio(make):
    lr = lr_find(make(), 1e-6, 1e-3, steps=12).table["lr"]
    assert_allclose(np.diff(np.log(lr)), np.log(1e3) / 11)
    assert (lr.iloc[0], lr.iloc[11]) == pytest.approx((1e-6, 1e-3), rel=1e-12)


def test_it_begins_with_the_next_epoch(make):
    learner, epochs = make(), []
    batches = learner.batches
    learner.batches = lambda epoch: epochs.append(epoch) or batches(epoch)
    learner.epoch = 3
    lr_find(learner, steps=10)
    assert epochs == [3, 4, 5, 6, 7]


def fake(make, losses):
    "A learner whose steps have these losses; None raises TrainingError."
    learner, values = make(), iter(losses)

    def train_step(group):
        value = next(values)
        if value is None:
            raise TrainingError("not finite")
        return {"train_loss": value}

    learner.train_step, learner.batches = train_step, lambda epoch: iter([{}, {}])
    return learner


def test_it_ends_when_the_loss_is_four_times_its_minimum(make):
    losses = [1.0] * 30 + [0.5] * 20 + [50.0] * 50
    found = lr_find(fake(make, losses), steps=100)
    assert found.ended.startswith("the loss was 4 times its minimum at 0.00")
    assert 51 <= len(found.table) <= 53
    assert len(lr_find(fake(make, losses), steps=100, blow_up=1000).table) == 100


def test_a_negative_minimum_does_not_end_the_test(make):
    sinking = np.linspace(0.5, -0.05, 60).tolist()
    noise = np.random.default_rng(0).normal(-0.05, 0.01, 40).tolist()
    assert len(lr_find(fake(make, sinking + noise), steps=100).table) == 100
    rising = lr_find(fake(make, sinking + [1.0] * 40), steps=100)
    assert 60 < len(rising.table) < 65


def test_it_ends_when_the_loss_is_not_finite(make):
    found = lr_find(fake(make, [1.0] * 12 + [None]), low=1e-6, high=1e-1, steps=26)
    assert (len(found.table), found.ended) == (12, "the loss or its gradient was no longer finite at 0.00025")
    assert np.isfinite(found.table).all(axis=None)


def test_a_network_that_cannot_take_one_step_is_an_error(make):
    learner = make()
    with torch.no_grad():
        learner.model.segmentation_head[0].bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match="focal = nan"):
        lr_find(learner)


@pytest.mark.parametrize(
    ("low", "high", "steps"),
    [(0, 1, 100), (-1e-3, 1, 100), (1, 1, 100), (1, 0.1, 100), (1e-7, float("inf"), 100), (1e-7, 1, 9)],
)
def test_an_impossible_range_is_an_error(make, low, high, steps):
    with pytest.raises(ConfigError, match="expected 0 < low < high and at least 10 steps"):
        lr_find(make(), low, high, steps)


def curve(seed=None, scale=1.0):
    "An LrFind whose loss falls fastest at 1e-3 and is lowest at about 3e-2, noisy with a seed."
    lr = np.geomspace(1e-7, 1, 100)
    x = np.log10(lr)
    loss = 0.3 + 0.7 / (1 + np.exp(4 * (x + 3))) + 0.0017 * np.exp(6 * (x + 1.5))
    if seed is not None:
        loss = _smoothed(loss + np.random.default_rng(seed).normal(0, 0.05, 100), 3.5)
    return LrFind(pd.DataFrame({"lr": lr, "loss": loss * scale, "smooth": loss * scale}), "")


def test_suggestions_without_noise_are_exact_to_one_step():
    step = 1e7 ** (1 / 99)
    assert 1 / step < curve().steepest / 1e-3 < step
    assert 1 / step < curve().tenth / 2.83e-3 < step
    assert (curve(scale=7.0).steepest, curve(scale=7.0).tenth) == (curve().steepest, curve().tenth)


@pytest.mark.parametrize("seed", range(20))
def test_suggestions_with_noise_are_good_to_a_factor_of_three(seed):
    assert 1 / 3 < curve(seed).steepest / 1e-3 < 3
    assert 1 / 3 < curve(seed).tenth / 2.83e-3 < 3


def test_a_loss_that_never_fell_suggests_nothing():
    lr = np.geomspace(1e-3, 10, 20)
    never = LrFind(pd.DataFrame({"lr": lr, "loss": lr, "smooth": lr}), "")
    for name in ("steepest", "tenth"):
        with pytest.raises(ValueError, match=r"the loss never fell below the 0\.001 .* learning rate 0\.001"):
            getattr(never, name)


def test_smoothing_has_no_lag_and_preserves_the_mean():
    spike = np.zeros(41)
    spike[20] = 1
    out = _smoothed(spike, 3)
    assert_allclose(out, out[::-1], atol=1e-15)
    assert out.argmax() == 20
    assert out.sum() == pytest.approx(1)
    assert_allclose(_smoothed([2.5] * 10, 3), 2.5)
