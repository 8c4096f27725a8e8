"""Schedules against those of torch, step by step; resumed to the bit; each reads the parameters listed."""

import io
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.optim import lr_scheduler as peer

from glacier_nb.config.fields import ConfigError
from glacier_nb.training.schedules import _SCHEDULES, _Plateau, schedule

LR, LR_MIN = 1e-3, 1e-5
CLOSE = {"rtol": 1e-9, "atol": 1e-18}  # LinearLR multiplies its factors one by one


def torch_rates(make, steps, lr=LR):
    "The learning rate of each step as torch has it."
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def our_rates(name, steps, **kwargs):
    rate = schedule(name, LR, LR_MIN, steps, **kwargs)
    return [rate(i) for i in range(steps)]


@pytest.mark.parametrize(("steps", "warmup_steps"), [(256, 16), (48, 0), (10, 9), (1, 0)])
def test_default_cosine_is_that_of_earlier_versions(steps, warmup_steps):
    "To the bit, so that runs made before the other schedules came can be repeated."
    for step, found in enumerate(our_rates("cosine", steps, warmup_steps=warmup_steps)):
        done = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
        fallen = LR_MIN + (LR - LR_MIN) * (1 + math.cos(math.pi * min(done, 1.0))) / 2
        assert found == (LR * (step + 1) / (warmup_steps + 1) if step < warmup_steps else fallen)


@pytest.mark.parametrize(("steps", "warmup_steps"), [(40, 8), (2, 1), (300, 299)])
def test_linear_warmup_is_linear_lr(steps, warmup_steps):
    def make(optimizer):
        return peer.LinearLR(optimizer, start_factor=1 / (warmup_steps + 1), total_iters=warmup_steps)

    found = our_rates("linear_warmup", steps, warmup_steps=warmup_steps)
    assert_allclose(found, torch_rates(make, steps), **CLOSE)


@pytest.mark.parametrize("warmup_steps", [1, 31, 255])
def test_cosine_behind_its_warmup_is_cosine_annealing(warmup_steps):
    steps = 256

    def make(optimizer):
        return peer.CosineAnnealingLR(optimizer, T_max=steps - 1 - warmup_steps or 1, eta_min=LR_MIN)

    found = our_rates("cosine", steps, warmup_steps=warmup_steps)[warmup_steps:]
    assert_allclose(found, torch_rates(make, steps - warmup_steps), **CLOSE)


@pytest.mark.parametrize(("T_0", "T_mult"), [(10, 1), (7, 2), (1, 1), (3, 3), (100, 2)])
def test_warm_restarts_is_cosine_annealing_warm_restarts(T_0, T_mult):
    def make(optimizer):
        return peer.CosineAnnealingWarmRestarts(optimizer, T_0, T_mult, eta_min=LR_MIN)

    found = our_rates("warm_restarts", 100, cycle_steps=T_0, cycle_mult=T_mult)
    assert_allclose(found, torch_rates(make, 100), **CLOSE)


@pytest.mark.parametrize(("warmup_steps", "T_0", "T_mult"), [(5, 10, 1), (16, 20, 2), (1, 99, 1)])
def test_warmup_restarts_is_linear_then_warm_restarts(warmup_steps, T_0, T_mult):
    def make(optimizer):
        ramp = peer.LinearLR(optimizer, start_factor=LR_MIN / LR, total_iters=warmup_steps)
        cycles = peer.CosineAnnealingWarmRestarts(optimizer, T_0, T_mult, eta_min=LR_MIN)
        return peer.SequentialLR(optimizer, [ramp, cycles], milestones=[warmup_steps])

    kwargs = {"warmup_steps": warmup_steps, "cycle_steps": T_0, "cycle_mult": T_mult}
    assert_allclose(our_rates("warmup_restarts", 100, **kwargs), torch_rates(make, 100), **CLOSE)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 10, 99, 256])
def test_one_cycle_is_one_cycle_lr(steps):
    def make(optimizer):
        end = LR / 25 / LR_MIN
        return peer.OneCycleLR(optimizer, LR, steps, final_div_factor=end, cycle_momentum=False)

    assert_allclose(our_rates("one_cycle", steps), torch_rates(make, steps), **CLOSE)


def scores(seed, epochs=120):
    "Validation scores that rise, stall and fall; negative at first, some exactly equal, one not a number."
    rng = np.random.default_rng(seed)
    values = np.round(
        np.minimum.accumulate(rng.normal(0.01, 0.03, (2, epochs)).cumsum(1), axis=0)[0] - 0.1, 3
    )
    values[40] = float("nan")
    return values.tolist()


@pytest.mark.parametrize(("factor", "patience"), [(0.5, 3), (0.1, 0), (0.9, 1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_plateau_is_reduce_lr_on_plateau(factor, patience, seed):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    theirs = peer.ReduceLROnPlateau(
        optimizer,
        mode="max",
        factor=factor,
        patience=patience,
        threshold=_Plateau.THRESHOLD,
        threshold_mode="abs",
        min_lr=LR_MIN,
        eps=0,
    )
    ours, rates = schedule("plateau", LR, LR_MIN, 120, factor=factor, patience=patience), set()
    for epoch, score in enumerate(scores(seed)):
        assert ours(epoch) == optimizer.param_groups[0]["lr"]
        theirs.step(score)
        ours.after_epoch(score, epoch + 1)
        rates.add(ours(epoch + 1))
    assert len(rates) > 2


def test_plateau_ignores_scores_of_the_warmup():
    rate = schedule("plateau", LR, LR_MIN, 40, warmup_steps=8, patience=0)
    untouched = rate.state_dict()
    for step in (4, 8):
        rate.after_epoch(0.9, step)
    assert rate.state_dict() == untouched
    assert [rate(0), rate(7), rate(8)] == [LR / 9, LR * 8 / 9, LR]
    rate.after_epoch(0.1, 12)
    assert rate(12) == LR
    rate.after_epoch(0.1, 16)
    assert rate(16) == LR / 2


@pytest.mark.parametrize("name", _SCHEDULES)
def test_resumed_after_any_epoch_it_continues_to_the_bit(name):
    def fresh():
        return schedule(name, LR, LR_MIN, 120, warmup_steps=2, cycle_steps=20, patience=2)

    values = scores(3)
    whole, rates, states = fresh(), [], []
    for epoch, score in enumerate(values):
        states.append(whole.state_dict())
        rates.append(whole(epoch))
        whole.after_epoch(score, epoch + 1)
    for start in range(0, 120, 7):
        file = io.BytesIO()
        torch.save(states[start], file)
        file.seek(0)
        resumed = fresh()
        resumed.load_state_dict(torch.load(file, weights_only=True))
        for epoch in range(start, 120):
            assert resumed(epoch) == rates[epoch]
            resumed.after_epoch(values[epoch], epoch + 1)


def test_state_of_another_schedule_is_refused():
    plateau, cosine = schedule("plateau", LR, 0, 9), schedule("cosine", LR, 0, 9)
    with pytest.raises(ConfigError, match=r"expected \[\]: resume with the same `schedule`"):
        cosine.load_state_dict(plateau.state_dict())
    with pytest.raises(ConfigError, match=r"holds \[\], expected \['bad_epochs', 'best', 'lr'\]"):
        plateau.load_state_dict({})


BASE = {"warmup_steps": 8, "cycle_steps": 20, "cycle_mult": 1, "factor": 0.5, "patience": 3, "lr_min": 1e-5}
CHANGED = {
    "warmup_epochs": {"warmup_steps": 12},
    "lr_min": {"lr_min": 1e-4},
    "restart_epochs": {"cycle_steps": 30},
    "restart_mult": {"cycle_mult": 2},
    "plateau_factor": {"factor": 0.01},
    "plateau_patience": {"patience": 1},
}


def rates_of_run(name, **kwargs):
    "The learning rate of each step of 50 epochs of 2 steps whose score never rises."
    rate, rates = schedule(name, LR, steps=100, **kwargs), []
    for step in range(100):
        rates.append(rate(step))
        if step % 2:
            rate.after_epoch(0.0, step + 1)
    return rates


@pytest.mark.parametrize("parameter", CHANGED)
@pytest.mark.parametrize("name", _SCHEDULES)
def test_a_schedule_reads_its_listed_parameters_alone(name, parameter):
    before, after = (rates_of_run(name, **BASE | change) for change in ({}, CHANGED[parameter]))
    assert (before != after) == (parameter in _SCHEDULES[name])


@pytest.mark.parametrize("name", _SCHEDULES)
def test_rates_lie_between_zero_and_the_peak_and_calls_have_no_side_effect(name):
    rate = schedule(name, LR, steps=100, **BASE)
    first = [rate(i) for i in range(150)]
    assert first == [rate(i) for i in range(150)]
    assert all(0 < r <= LR * (1 + 1e-12) for r in first)
    assert all(schedule(name, 0.0, steps=100, **BASE | {"lr_min": 0.0})(i) == 0 for i in range(100))


@pytest.mark.parametrize("name", _SCHEDULES)
@pytest.mark.parametrize("cycle_mult", [1, 2])
def test_restart_steps_are_where_the_rate_jumps_up(name, cycle_mult):
    rate = schedule(name, LR, steps=100, **BASE | {"cycle_mult": cycle_mult})
    jumps = tuple(i for i in range(1, 100) if rate(i) > 2 * rate(i - 1) and rate(i) == LR)
    assert rate.restart_steps == jumps
    assert bool(jumps) == ("restart_epochs" in _SCHEDULES[name])


def test_a_cycle_as_long_as_the_run_never_restarts():
    assert schedule("warm_restarts", LR, 0, 30, cycle_steps=30).restart_steps == ()
    assert schedule("warmup_restarts", LR, 0, 30, 5, cycle_steps=25).restart_steps == ()


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        (
            "cosin",
            {},
            "schedule = 'cosin' is unknown: expected one of constant, linear_warmup, cosine",
        ),
        ("cosine", {"warmup_steps": 100}, "a warm-up of 100 steps: expected 0 to 99"),
        ("cosine", {"warmup_steps": -1}, "a warm-up of -1 steps"),
        ("plateau", {"warmup_steps": 100}, "schedule = 'plateau': a warm-up of 100 steps"),
        ("warm_restarts", {"cycle_steps": 101}, "a first cycle of 101 steps: expected 1 to 100"),
        ("warm_restarts", {"cycle_steps": 0}, "a first cycle of 0 steps"),
        ("warmup_restarts", {"cycle_steps": 93}, "a first cycle of 93 steps: expected 1 to 92"),
        ("warm_restarts", {"cycle_mult": 0}, "restart_mult = 0: expected a whole number"),
        ("warm_restarts", {"cycle_mult": 1.5}, "restart_mult = 1.5: expected a whole number"),
        ("plateau", {"factor": 1.0}, "plateau_factor = 1.0"),
        ("plateau", {"factor": float("nan")}, "plateau_factor = nan"),
        ("plateau", {"patience": -1}, "plateau_patience = -1"),
        ("one_cycle", {"lr_min": 2 * LR}, r"lr_min = 0.002: expected 0 to lr = 0.001"),
        ("constant", {"lr": float("nan")}, "lr = nan: expected a finite number"),
    ],
)
def test_impossible_values_are_errors(name, wrong, message):
    with pytest.raises(ConfigError, match=message):
        schedule(name, **{"lr": LR, "steps": 100, **BASE, **wrong})


def test_constant_ignores_parameters_that_it_does_not_read():
    assert schedule("constant", LR, 2 * LR, 5, warmup_steps=50, cycle_steps=-3)(3) == LR
