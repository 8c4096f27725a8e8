"""Checks of the network: faults are found, correct set-ups give no findings, and the learner is unchanged."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from bitwise import same
from torch import nn

from glacier_nb.checks import network, trial
from glacier_nb.checks.network import (
    _check_frozen,
    _check_learning,
    _check_norm_lag,
    _check_terms,
    check_network,
)
from glacier_nb.checks.trial import (
    _CROPS,
    FirstStep,
    Overfit,
    _first_crops,
    _peak_lr,
    fixed_batch,
    gradient_shares,
    norm_lag,
)
from glacier_nb.config.training import TrainConfig
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.models.weights import InitialWeights, WeightKind
from glacier_nb.tiles.read import read_tiles
from glacier_nb.training.learner import Learner
from glacier_nb.training.recipe import prepare_data, run_network

TINY = TrainConfig(
    crop_size=32,
    samples_per_epoch=32,
    batch_size=4,
    epochs=8,
    n_folds=3,
    precision="fp32",
    memory_format="contiguous",
    devices="cpu",
)


class Small(nn.Module):
    "A network of two levels."

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.encoder = nn.Sequential(*self.block(7, 32, norm), *self.block(32, 64, norm, 2))
        self.decoder = nn.Sequential(nn.Upsample(scale_factor=2), *self.block(64, 32, norm))
        self.head = nn.Conv2d(32, 4, 1)
        self.started_from = InitialWeights(WeightKind.RANDOM, seed=0)

    @staticmethod
    def block(n, m, norm, stride=1):
        return nn.Conv2d(n, m, 3, stride, 1), norm(m), nn.ReLU()

    def forward(self, x):
        return self.head(self.decoder(self.encoder(x)))


@pytest.fixture(scope="module")
def data():
    return prepare_data(TINY, read_tiles(cached_demo(9, 64, 3)))


@pytest.fixture
def make(data):
    "A function that makes a learner with a norm and changes of the config."

    def learner(norm=nn.BatchNorm2d, **changes):
        torch.manual_seed(0)
        return Learner(replace(TINY, **changes), data, Small(norm))

    return learner


def states(learner):
    "The states of the parameters after the first step, by part."
    table = FirstStep.take(learner).parameters
    return {part: set(rows) for part, rows in table.groupby("part")["state"]}


def frozen(learner):
    return _check_frozen(learner, FirstStep.take(learner))


def causes(findings):
    return {(f.severity, f.cause) for f in findings}


def with_momentum(learner, momentum):
    for module in learner.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    return learner


def state(learner):
    "Everything that training changes, in the learner and in the global generators."
    parts = (learner.model, learner.optimizer, learner.scaler)
    modes = [m.training for m in learner.model.modules()]
    grads = [None if p.grad is None else p.grad.clone() for p in learner.model.parameters()]
    random = (torch.get_rng_state(), np.random.get_state()[1].tolist())  # noqa: NPY002
    held = [id(v) for v in vars(learner).values() if not isinstance(v, int | float | bool)]
    rest = learner.step, learner.loss.weights, sorted(learner.loss.terms), sorted(vars(learner))
    return copy.deepcopy(([p.state_dict() for p in parts], modes, grads, random, held, rest))


class Drawing:
    "A sampler that counts its calls and draws random numbers."

    def __init__(self, sampler):
        self.sampler, self.calls, self.rng = sampler, 0, np.random.default_rng(0)

    def positions(self, epoch):
        self.calls += 1
        return self.rng.permutation(self.sampler.positions(epoch))


@pytest.mark.parametrize(
    ("changes", "trained"), [({}, True), ({"accumulate": 2}, False), ({"precision": "bf16"}, False)], ids=str
)
def test_learner_is_the_same_to_the_bit(make, changes, trained):
    learner = with_momentum(make(**changes), 1e-4)
    learner.model.head = nn.Sequential(nn.Dropout(0.2), learner.model.head)
    if trained:
        learner.train_epoch()
    learner.sampler, augment = Drawing(learner.sampler), learner.augment
    learner.augment = lambda batch, *rest: (np.random.rand(), augment(batch, *rest))[1]  # noqa: NPY002
    learner.model.eval()
    before, drawn = state(learner), learner.sampler.rng.bit_generator.state
    check_network(learner, steps=1)
    assert same(state(learner), before)
    assert (learner.sampler.calls, learner.sampler.rng.bit_generator.state) == (0, drawn)


def test_two_trials_are_the_same(make):
    learner = make()
    one, two = (Overfit.of(learner, steps=3).table for _ in range(2))
    assert one.equals(two)


@pytest.mark.parametrize(
    "changes",
    [{}, {"lr": 3e-3}]
    + [{f"{k}_weight": float(k == w) for k in ("focal", "dice", "mcc", "boundary")} for w in ["focal"]],
    ids=str,
)
def test_no_findings_without_a_fault(make, changes):
    assert not check_network(make(**changes), steps=40)


@pytest.mark.parametrize(
    ("lr", "cause"), [(1e-7, ("fatal", "lr-low")), (100.0, ("fatal", "lr-high"))], ids=str
)
def test_learning_rates_that_fail(make, lr, cause):
    (found,) = check_network(make(lr=lr, lr_min=0.0), steps=30)
    assert (found.severity, found.cause) == cause
    assert found.change == {"lr": 1e-3}
    assert found.numbers["mcc"][1] > 0.6 > found.numbers["mcc"][0]
    assert len(found.picture().axes[0].lines) >= 2


@pytest.mark.parametrize("factor", [0.0, -1.0])
def test_a_wrong_loss_shows_as_a_symptom(make, factor):
    learner = make()
    loss = learner.loss
    learner.loss = lambda *batch: (loss(*batch)[0] * factor, {})
    assert causes(check_network(learner, steps=50)) == {("fatal", "cannot-overfit")}


def test_few_steps_are_no_evidence(make):
    assert not check_network(make(), seconds=0.0)


def test_frozen_parts(make):
    assert set(FirstStep.take(make()).parameters["state"]) == {"trains"}
    for part, start, severity in [
        ("encoder", WeightKind.RANDOM, "fatal"),
        ("encoder", WeightKind.RUN, "warning"),
        ("encoder", WeightKind.UNKNOWN, "warning"),
        ("head", WeightKind.RUN, "fatal"),
    ]:
        learner = make()
        learner.model.get_submodule(part).requires_grad_(False)
        learner.model.started_from = InitialWeights(start)
        (found,) = frozen(learner)
        assert (found.severity, list(found.numbers["parts"])) == (severity, [part])
    everything = make()
    everything.model.requires_grad_(False)
    assert ("fatal", "frozen") in causes(frozen(everything))


def test_parameters_that_the_optimizer_does_not_hold(make):
    learner = make()
    learner.optimizer = torch.optim.AdamW(learner.model.head.parameters())
    assert states(learner)["encoder"] == {"not in the optimizer"}
    learner = make()
    learner.network = copy.deepcopy(learner.model)
    assert set.union(*states(learner).values()) == {"not in the network that is trained"}
    assert causes(frozen(learner)) == {("fatal", "frozen")}


def test_an_unused_layer_is_no_fault(make):
    learner = make()
    learner.model.encoder[0].unused = nn.Conv2d(7, 8, 3)  # forward does not call it
    assert states(learner)["encoder"] == {"trains", "not in the optimizer"}
    assert not frozen(learner)


def test_norm_lag_is_the_fraction_that_is_left(make):
    table = norm_lag(with_momentum(make(), 0.01))
    assert table["steps"].tolist() == [64] * 3
    np.testing.assert_allclose(table["left"], 0.99**64)
    assert norm_lag(with_momentum(make(), None))["left"].eq(0).all()


@pytest.mark.parametrize(
    ("momentum", "found"),
    [(0.1, set()), (0.03, {("warning", "norm-lag")}), (1e-4, {("fatal", "norm-lag")}), (None, set())],
)
def test_norms_that_lag(make, momentum, found):
    assert causes(_check_norm_lag(with_momentum(make(), momentum))) == found


def test_the_effect_of_the_lag_is_measured(make):
    learner = with_momentum(make(), 1e-4)
    (found,) = _check_norm_lag(learner, Overfit.of(learner, steps=40))
    assert found.numbers["train"] > 0.6
    assert found.numbers["eval"] < found.numbers["train"] - 0.2
    assert "in train mode" in found.evidence


@pytest.mark.parametrize(
    "norm",
    [
        lambda n: nn.GroupNorm(4, n),
        lambda n: nn.Identity(),
        lambda n: nn.BatchNorm2d(n, momentum=1e-4, track_running_stats=False),
    ],
    ids=["group norm", "none", "no running statistics"],
)
def test_other_norms_do_not_lag(make, norm):
    assert not check_network(make(norm), trials=False)
    assert norm_lag(make(norm)).empty


def test_gradient_shares_agree_with_autograd(make):
    learner = make()
    table = gradient_shares(learner).set_index("term")
    assert table["share"].drop("total").sum() == pytest.approx(1)
    assert table["norm"]["total"] <= table["norm"].drop("total").sum() * (1 + 1e-6)
    learner.model.train()
    learner.batch_loss(next(learner.batches(0)))[0].backward()
    norm = torch.stack([p.grad.norm() for p in learner.model.parameters()]).norm()
    assert table["norm"]["total"] == pytest.approx(float(norm), rel=1e-4)


def test_steps_that_fail(make):
    short = make()
    short.model.head = nn.Conv2d(32, 3, 1)
    (found,) = check_network(short, trials=False)
    assert found.cause == "cannot-overfit"
    assert "(4, 3, 32, 32), expected (4, 4, 32, 32)" in found.evidence
    broken = make()
    nn.init.constant_(broken.model.head.bias, float("nan"))
    assert causes(check_network(broken, trials=False)) == {("fatal", "diverged")}
    nans, augment = make(), broken.augment
    nans.augment = lambda *args: augment(*args) | {"image": torch.full((4, 7, 32, 32), float("nan"))}
    assert causes(check_network(nans, trials=False)) == {("fatal", "not-finite")}
    narrow = make()
    narrow.model.encoder[0] = nn.Conv2d(5, 32, 3, padding=1)
    (found,) = check_network(narrow)
    assert "raises RuntimeError" in found.evidence


def test_a_nan_loss_and_logits_in_a_dict(make):
    learner = make()
    loss = learner.loss
    learner.loss = lambda *batch: (loss(*batch)[0] * float("nan"), {})
    assert causes(check_network(learner, trials=False)) == {("fatal", "diverged")}
    several = make()
    several.model.head = Several(several.model.head)
    assert causes(check_network(several, trials=False)) == {("fatal", "cannot-overfit")}


class Several(nn.Module):
    "A head that returns more than logits, as some networks do."

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, x):
        return {"logits": self.head(x)}


def test_batches_that_cannot_be_made(make):
    learner = make()
    learner.augment = lambda *args: {}["image"]
    (found,) = check_network(learner)
    assert found.cause == "cannot-overfit"
    assert "raises KeyError" in found.evidence


def test_the_network_takes_one_step_before_a_run(make):
    learner, calls = make(), []
    loss = learner.loss
    learner.loss = lambda *batch: (calls.append(len(batch[0])), loss(*batch))[1]
    assert not check_network(learner, trials=False)
    assert calls == [_CROPS]


def test_wide_crops_are_fewer():
    wide = {"image": torch.zeros(8, 7, 256, 256), "label": torch.zeros(8, 256, 256)}
    assert {len(v) for v in _first_crops(wide).values()} == {2}


def test_a_network_of_one_width_is_tried_at_that_width(make):
    learner = make(crop_size=96)
    learner.model.head = nn.Sequential(learner.model.head, OnlyOf(96))
    assert not check_network(learner, steps=1)
    with pytest.raises(ValueError, match="64 pixels"):
        Overfit.of(learner, steps=1)


class OnlyOf(nn.Module):
    "A layer that accepts a single width."

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, x):
        if x.shape[-1] != self.width:
            raise ValueError(f"{x.shape[-1]} pixels, expected {self.width}")
        return x


def test_a_term_that_dominates_the_gradient(make):
    learner = make()
    focal = learner.loss.terms["focal"]
    mean = focal.term
    assert not _check_terms(learner)
    focal.term = lambda pixels: 4096 * mean(pixels)
    (found,) = _check_terms(learner)
    assert (found.severity, found.cause, found.numbers["term"]) == ("warning", "loss-drowned", "focal")
    assert not _check_terms(make(**{f"{k}_weight": 0.0 for k in ("dice", "mcc", "boundary")}))


class Clock:
    "A clock that advances by a second at each call."

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 1
        return self.now


def test_both_trials_share_the_seconds(make, monkeypatch):
    clock = Clock()
    for module in (network, trial):
        monkeypatch.setattr(module, "time", clock)
    (found,) = check_network(make(lr=1e-7, lr_min=0.0, dice_weight=0.0), seconds=24, steps=10_000)
    assert 10 < found.numbers["steps"][0] < 14
    assert sum(found.numbers["steps"]) < 24


@pytest.mark.parametrize("lr", [1e-4, 1e-2])
def test_a_rate_within_a_hundred_of_the_usual_is_at_most_a_warning(make, lr):
    learner, table = make(lr=lr), pd.DataFrame({"step": range(60), "loss": 1.0, "mcc": 0.1})
    slow = Overfit(table, lr, 9.0, "all 60 steps were taken", learner.model, fixed_batch(learner))
    assert {s for s, _ in causes(_check_learning(learner, slow, steps=40))} <= {"warning"}


def test_crops_are_mixed_and_of_several_tiles(make):
    batch = fixed_batch(make())
    assert batch["image"].shape == (_CROPS, 7, 32, 32)
    pairs = zip(batch["label"], batch["valid"], strict=True)
    assert all(len(label[valid].unique()) > 1 for label, valid in pairs)


def test_the_peak_learning_rate(make):
    assert _peak_lr(make(lr=2e-3)) == pytest.approx(2e-3)


def test_blocks_that_begin_with_a_factor_of_0_are_not_frozen(data):
    "The first step of timm's residual networks changes the last norm of each block, the second the rest."
    cfg = replace(TINY, encoder="tu-test_resnet", decoder_attention="none")
    learner = Learner(cfg, data, run_network(cfg, data)[0])
    zero = [m for m in learner.model.modules() if isinstance(m, nn.BatchNorm2d) and not m.weight.any()]
    assert zero
    assert _check_frozen(learner, FirstStep.take(learner)) == []
