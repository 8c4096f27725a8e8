"""Correct losses give no findings, for many class fractions and settings; each fault of a loss is found."""

import copy
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from glacier_nb.checks.loss import (
    _MAPS,
    _gradient_table,
    _loss_table,
    _reference_maps,
    _synthetic_targets,
    check_loss,
)
from glacier_nb.config.training import TrainConfig
from glacier_nb.losses.combined import CombinedLoss, class_weights
from glacier_nb.losses.pixels import soft_confusion
from glacier_nb.losses.terms import soft_mcc
from glacier_nb.metrics.scores import confusion, mcc

SHARES = {
    "demo": [0.55, 0.33, 0.10, 0.02],
    "rare": [0.9, 0.095, 0.004, 0.001],
    "two of four": [0.7, 0.3, 0, 0],
    "binary": [0.9, 0.1],
    "binary, rare": [0.995, 0.005],
    "largest last": [0.2, 0.3, 0, 0.5],
}
SINGLE = [{name: 1.0} for name in ("focal", "dice", "mcc", "boundary", "tversky", "lovasz")]


def found(loss, shares=SHARES["demo"], **more):
    "Cause, severity and term of each finding."
    return [(f.cause, f.severity, f.numbers.get("term")) for f in check_loss(loss, shares, **more)]


def settings(shares, many):
    "Correct losses for these class fractions."
    n = len(shares)
    for weights in (dict(TrainConfig.LOSS_WEIGHTS), *SINGLE):
        yield CombinedLoss(weights, n)
    if not many:
        return
    for kind in ("inverse", "effective"):
        yield CombinedLoss({"focal": 1.0}, n, 2.0, class_weights(shares, kind))
        yield CombinedLoss(TrainConfig.LOSS_WEIGHTS, n, 2.0, class_weights(shares, kind))
    for gamma in (0.0, 1.0, 4.0):
        yield CombinedLoss({"focal": 1.0}, n, gamma)
    for tversky in ((0.1, 0.9, 2.0), (0.7, 0.3, 0.75)):
        yield CombinedLoss({"tversky": 1.0}, n, tversky=tversky)
    yield CombinedLoss({"focal": 0.2, "lovasz": 1.0, "tversky": 1.0}, n)


@pytest.mark.parametrize("name", SHARES)
def test_correct_losses_give_no_findings(name):
    for loss in settings(SHARES[name], many=name in ("demo", "binary, rare")):
        for cause, severity, term in found(loss, SHARES[name], batch=2, size=48):
            alone = cause == "loss-saturated" and severity == "note" and "focal" not in loss.terms
            assert alone, (cause, severity, term, loss.weights)


@pytest.mark.parametrize(
    ("shape", "seed"), [((8, 64), 1), ((2, 32), 2), ((2, 32), 3), ((16, 256), 4), ((1, 64), 5)]
)
def test_the_default_gives_no_finding_at_any_size(shape, seed):
    for shares in (SHARES["demo"], SHARES["binary"]):
        assert (
            found(
                CombinedLoss(TrainConfig.LOSS_WEIGHTS, len(shares)),
                shares,
                batch=shape[0],
                size=shape[1],
                seed=seed,
            )
            == []
        )


def known(label, valid):
    return valid & (label != 255)


def soft(logits, label, valid):
    return soft_mcc(soft_confusion(logits.softmax(1), label, known(label, valid)))


def minimised_score(logits, label, valid):
    return soft(logits, label, valid)


def one_plus(logits, label, valid, distance):
    value = 1 + soft(logits, label, valid)
    return value, {"mcc": value.detach()}


def constant(logits, label, valid):
    return logits.sum() * 0 + 1


def detached(logits, label, valid):
    return 1 - soft(logits, label, valid).detach()


def hard(logits, label, valid):
    probs = F.one_hot(logits.argmax(1), logits.shape[1]).movedim(-1, 1).float()
    return 1 - soft_mcc(soft_confusion(probs, label, known(label, valid)))


def label_free(logits, label, valid):
    "Entropy alone, as in losses that read no label."
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)[known(label, valid)].mean()


def clamped_early(logits, label, valid):
    return 1 - soft(logits, label, valid).clamp(-1, 0.0)


def nan_below_chance(logits, label, valid):
    return 1 - soft(logits, label, valid).sqrt()


def majority_only(logits, label, valid):
    "The majority class alone has to be right."
    here = known(label, valid) & (label == 0)
    return -logits.log_softmax(1)[:, 0][here].mean()


@pytest.mark.parametrize(
    ("loss", "cause"),
    [
        (minimised_score, "loss-sign"),
        (one_plus, "loss-sign"),
        (constant, "loss-flat"),
        (detached, "loss-flat"),
        (hard, "loss-flat"),
        (label_free, "loss-flat"),
        (clamped_early, "loss-flat"),
        (nan_below_chance, "loss-flat"),
        (majority_only, "loss-majority"),
    ],
)
@pytest.mark.parametrize("shares", ["demo", "binary"])
def test_faults_are_found(loss, cause, shares):
    causes = found(loss, SHARES[shares])
    assert (cause, "fatal", "loss") == causes[0]


def test_a_loss_on_ignored_pixels_and_one_with_clamped_probabilities():
    def everywhere(logits, label, valid):
        return F.cross_entropy(logits, label.where(label != 255, 0))

    def cut(logits, label, valid):
        p = logits.softmax(1).clamp(0.01, 0.99)
        return F.nll_loss(p.log(), label.where(known(label, valid), -100))

    assert found(everywhere) == [("loss-direction", "warning", "loss")]
    assert found(cut) == [("loss-saturated", "warning", "loss")]


def test_a_step_down_that_lowers_mcc_is_fatal():
    class Backwards(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return -gradient

    def reversed_gradient(logits, label, valid):
        return 1 - soft(Backwards.apply(logits), label, valid)

    assert found(reversed_gradient)[0] == ("loss-direction", "fatal", "loss")


class Term(nn.Module):
    "A term from a function of the pixels."

    def __init__(self, value):
        super().__init__()
        self.value = value

    def term(self, pixels):
        return self.value(pixels)


def with_term(name, value, weights=TrainConfig.LOSS_WEIGHTS):
    loss = CombinedLoss(weights, 4)
    loss.terms[name] = Term(value)
    return loss


def test_a_broken_term_is_found_and_weighed():
    wrong = lambda p: 1 + soft_mcc(p.confusion)  # noqa: E731
    first = check_loss(with_term("mcc", wrong), SHARES["demo"])[0]
    assert (first.cause, first.severity, first.change) == ("loss-sign", "fatal", {"mcc_weight": 0.0})
    light = found(with_term("mcc", wrong, {"focal": 0.6, "dice": 0.35, "mcc": 0.05}))
    assert light == [("loss-sign", "warning", "mcc")]


def test_a_sum_over_pixels_dominates_the_gradient():
    loss = with_term("focal", lambda p: -(p.log_probs * p.truth).sum())
    (finding,) = check_loss(loss, SHARES["demo"])
    assert (finding.cause, finding.severity) == ("loss-drowned", "warning")
    assert finding.numbers["share"] > 0.99
    assert 0 < finding.change["focal_weight"] < 0.01


def test_signatures_that_a_user_may_write():
    def two(logits, label):
        return F.cross_entropy(logits, label, ignore_index=255)

    def any_number(*given):
        logits, label, valid, distance = given
        assert distance.shape == logits.shape
        value = F.cross_entropy(logits, label.where(valid, 255), ignore_index=255)
        return value, {"ce": value}

    assert found(any_number) == []
    assert found(two) == [("loss-direction", "warning", "loss")]  # not all pixels are valid


def test_a_loss_that_raises_is_reported():
    def never(logits, label, valid):
        raise RuntimeError("no such device")

    def not_with_255(logits, label):
        return F.cross_entropy(logits, label)

    (finding,) = check_loss(never, SHARES["demo"])
    assert finding.severity == "fatal"
    assert "no such device" in finding.evidence
    (finding,) = check_loss(not_with_255, SHARES["demo"])
    assert finding.severity == "warning"
    assert "255" in finding.evidence


def test_nothing_of_a_run_changes():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, logits, label, valid):
            self.calls += 1
            return F.cross_entropy(
                logits + 0.01 * torch.randn_like(logits), label.where(known(label, valid), -100)
            )

    loss, before = Counting(), (torch.get_rng_state(), copy.deepcopy(np.random.get_state()[1]))  # noqa: NPY002
    tables = [_loss_table(loss, _synthetic_targets(SHARES["demo"])) for _ in range(2)]
    check_loss(loss, SHARES["demo"])
    assert loss.calls == 0
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize("name", SHARES)
def test_reference_maps_have_the_quality_of_their_names(name):
    targets = _synthetic_targets(SHARES[name])
    maps, n = _reference_maps(targets), len(SHARES[name])
    scores = {k: mcc(confusion(v, targets.label, n, targets.known)) for k, v in maps.items()}
    assert scores["perfect"] == 1
    assert 0.8 < scores["good"] < 0.97
    assert abs(scores["random"]) < 0.05
    assert scores["majority"] == scores["constant"] == 0 > scores["inverted"]
    present = np.bincount(targets.label[targets.known], minlength=n) > 0
    assert present.tolist() == [share > 0 for share in SHARES[name]]


def test_invalid_fractions_and_a_single_class():
    default = CombinedLoss(TrainConfig.LOSS_WEIGHTS, 4)
    assert check_loss(default, [0, 5.0, 0, 0]) == []
    for shares in ([0, 0, 0, 0], [1, np.nan, 0, 0], [1, -1, 0, 0], [0, -1, 0, 0], [1.0]):
        with pytest.raises(ValueError, match="shares: found"):
            check_loss(default, shares)
    with pytest.raises(ValueError, match="4 shares for the classes a, b"):
        check_loss(default, [1, 1, 1, 1], ("a", "b"))


def test_tables_and_their_duration():
    loss, targets = CombinedLoss(TrainConfig.LOSS_WEIGHTS, 4), _synthetic_targets(SHARES["demo"])
    values, slopes = _loss_table(loss, targets), _gradient_table(loss, targets)
    assert values.columns.tolist() == list(_MAPS)
    assert values.index.tolist() == slopes.index.tolist() == ["loss", *TrainConfig.LOSS_WEIGHTS]
    weights = [loss.weights[name] for name in values.index[1:]]
    np.testing.assert_allclose(values.loc["loss", "perfect"], weights @ values["perfect"].iloc[1:], atol=1e-6)
    assert slopes.loc["mcc", "cosine"] == pytest.approx(1, abs=1e-4)
    began = time.process_time()
    check_loss(loss, SHARES["demo"])
    assert time.process_time() - began < 15  # seconds; measured 1.2
