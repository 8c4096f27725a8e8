"""Losses against peers and exact formulas, on hostile input, under masks, in every precision."""

import math
from itertools import chain, combinations

import numpy as np
import pytest
import segmentation_models_pytorch.losses as smp
import torch
import torch.nn.functional as F
from rank_losses import ALL, NAMES, batches, ddp_step, every_step, mixed, noise, onehot_of, scene
from segmentation_models_pytorch.losses._functional import softmax_focal_loss_with_logits
from sklearn.metrics import f1_score, jaccard_score, matthews_corrcoef
from torch.testing import assert_close

from glacier_nb.landsat import IGNORE
from glacier_nb.losses import pixels as pixels_module
from glacier_nb.losses.combined import CombinedLoss, class_weights
from glacier_nb.losses.pixels import _CLASS_FRACTIONS, soft_confusion
from glacier_nb.losses.terms import (
    BoundaryLoss,
    DiceLoss,
    FocalLoss,
    LovaszLoss,
    MCCLoss,
    TverskyLoss,
    _jaccard_growth,
    boundary_loss,
    dice_loss,
    focal_loss,
    lovasz_loss,
    mcc_loss,
    signed_distance,
    soft_mcc,
    tversky_loss,
)
from glacier_nb.parallel.launch import run_ranks
from glacier_nb.parallel.ranks import Ranks

AREAS = ("dice", "mcc", "tversky", "lovasz")  # 0 for a prediction that equals a soft target


def loss_functions(distance):
    "The losses as functions of logits, target and valid."
    return {
        "focal": focal_loss,
        "dice": dice_loss,
        "mcc": mcc_loss,
        "boundary": lambda logits, target, valid: boundary_loss(logits, target, valid, distance),
        "tversky": tversky_loss,
        "lovasz": lovasz_loss,
    }


def with_gradient(loss, logits, *args):
    "Value and gradient of one call."
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, *args)
    value.backward()
    return value.detach(), logits.grad


def exact_mcc(cm):
    "Textbook binary MCC of [[tn, fp], [fn, tp]]."
    (tn, fp), (fn, tp) = cm
    return (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_classes", [2, 3, 4])
def test_scalar_and_order(name, n_classes):
    target, valid, distance = scene(1, n_classes)
    onehot = F.one_hot(target, n_classes).movedim(-1, 1).float()
    quality = [
        12 * onehot,
        4 * onehot.roll((1, 1), (2, 3)),
        noise(onehot.shape),
        -12 * onehot,
    ]
    values = [loss_functions(distance)[name](logits, target, valid) for logits in quality]
    assert all(v.shape == () and v.dtype == torch.float32 for v in values)
    assert values == sorted(values)
    assert len(set(map(float, values))) == 4
    limits = {"focal": (0, math.inf), "mcc": (0, 2), "boundary": (-1, 1)}.get(name, (0, 1))
    assert all(limits[0] - 1e-6 <= v <= limits[1] + 1e-6 for v in values)


def test_focal_is_cross_entropy_at_gamma_zero():
    target, valid, _ = scene(2)
    logits = 3 * noise((2, 4, 96, 96))
    ours = with_gradient(lambda x: focal_loss(x, target, valid, 0), logits)
    masked = target.masked_fill(~valid, IGNORE)
    theirs = with_gradient(lambda x: F.cross_entropy(x, masked, ignore_index=IGNORE), logits)
    assert_close(ours, theirs)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_is_smp(gamma):
    target, valid, _ = scene(3)
    logits = 3 * noise((2, 4, 96, 96))
    everywhere = torch.ones_like(valid)
    theirs = softmax_focal_loss_with_logits(logits, target, gamma=gamma)
    assert_close(focal_loss(logits, target, everywhere, gamma), theirs)
    # two classes: softmax of two logits is the sigmoid of their difference
    binary = (target > 0).long()
    two = logits[:, :2]
    theirs = smp.FocalLoss("binary", gamma=gamma)(two[:, 1] - two[:, 0], binary)
    assert_close(focal_loss(two, binary, everywhere, gamma), theirs)


def test_focal_gamma_per_class_is_looked_up_by_the_true_class():
    target, valid, _ = scene(4)
    logits = noise((2, 4, 96, 96))
    gammas = (2.0, 1.0, 0.5, 0.0)
    share = [(valid & (target == k)).sum() / valid.sum() for k in range(4)]
    parts = [focal_loss(logits, target, valid & (target == k), g) for k, g in enumerate(gammas)]
    together = focal_loss(logits, target, valid, gammas)
    assert_close(together, sum(s * p for s, p in zip(share, parts, strict=True)))
    assert_close(focal_loss(logits, target, valid, [2.0]), focal_loss(logits, target, valid, 2.0))


@pytest.mark.parametrize("gamma", [-1, math.nan, (1, 2), (1, 2, 3, -4), ()])
def test_focal_gamma_errors(gamma):
    target, valid, _ = scene(4)
    with pytest.raises(ValueError, match="gamma"):
        focal_loss(noise((2, 4, 96, 96)), target, valid, gamma)


@pytest.mark.parametrize("seed", range(4))
def test_dice_is_smp_when_all_classes_are_there(seed):
    target, valid, _ = scene(seed)
    logits = noise((2, 4, 96, 96), seed)
    masked = target.masked_fill(~valid, IGNORE)
    theirs = smp.DiceLoss("multiclass", ignore_index=IGNORE)
    assert len(target[valid].unique()) == 4
    assert_close(dice_loss(logits, target, valid), theirs(logits, masked), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_hard_predictions_give_sklearn(seed):
    rng = np.random.default_rng(seed)
    truth = rng.choice(4, size=(1, 40, 40), p=(0.7, 0.25, 0.03, 0.02))
    guess = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 4, truth.shape))
    target, valid = torch.from_numpy(truth), torch.ones(1, 40, 40, dtype=torch.bool)
    hard = 1e4 * F.one_hot(torch.from_numpy(guess), 4).movedim(-1, 1).double()
    expected = 1 - matthews_corrcoef(truth.ravel(), guess.ravel())
    assert_close(mcc_loss(hard, target, valid).item(), expected, rtol=1e-12, atol=1e-12)
    expected = 1 - f1_score(truth.ravel(), guess.ravel(), average="macro")
    assert_close(dice_loss(hard, target, valid).item(), expected, rtol=1e-12, atol=1e-12)


def test_dice_averages_over_present_classes_and_counts_false_alarms_of_absent_ones():
    target = torch.zeros(1, 8, 8, dtype=torch.int64)
    target[:, :, 4:] = 1
    valid = torch.ones_like(target, dtype=torch.bool)
    right = 1e4 * F.one_hot(target, 4).movedim(-1, 1).double()
    assert dice_loss(right, target, valid) == 0
    false_alarm = right.clone()
    false_alarm[:, 1, :, 4:6], false_alarm[:, 3, :, 4:6] = 0, 1e4  # half of class 1 called class 3
    assert_close(dice_loss(false_alarm, target, valid).item(), (0 + (1 - 2 * 16 / (32 + 16))) / 2)


@pytest.mark.parametrize("seed", range(5))
def test_mcc_of_two_classes_is_the_textbook_formula(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 2, 16, 16, generator=generator, dtype=torch.float64)
    target = (torch.rand(2, 16, 16, generator=generator) < 0.1).long()
    valid = torch.rand(2, 16, 16, generator=generator) < 0.8
    p, t = logits.softmax(1)[:, 1][valid], target[valid].double()
    cm = (((1 - t) * (1 - p)).sum(), ((1 - t) * p).sum()), ((t * (1 - p)).sum(), (t * p).sum())
    assert_close(mcc_loss(logits, target, valid).item(), 1 - float(exact_mcc(cm)), rtol=1e-12, atol=1e-12)
    single = mcc_loss(logits.float(), target, valid)
    assert_close(single.item(), 1 - float(exact_mcc(cm)), rtol=1e-5, atol=1e-6)


def test_mcc_is_smp_for_two_classes():
    target, valid, _ = scene(5, n_classes=2)
    logits = noise((2, 2, 96, 96))
    theirs = smp.MCCLoss(eps=0.0)(logits.softmax(1)[:, 1][valid][None], target[valid][None].float())
    assert_close(mcc_loss(logits, target, valid), theirs, rtol=1e-5, atol=1e-5)


def test_mcc_is_accurate_for_one_rare_pixel():
    "In float32 the usual formula subtracts nearly equal squares; the reference here is float64."
    cm = torch.tensor([[4e6, 3.0], [1.0, 2.0]], dtype=torch.float64)
    expected = exact_mcc(cm.tolist())
    assert_close(soft_mcc(cm.float()).item(), expected, rtol=1e-5, atol=0)
    assert_close(soft_mcc(cm).item(), expected, rtol=1e-12, atol=0)


def test_mcc_undefined_predictions_cost_one():
    target, valid, _ = scene(6)
    logits = torch.zeros(2, 4, 96, 96)
    logits[:, 0] = 1e4
    loss, gradient = with_gradient(mcc_loss, logits, target, valid)
    assert loss == 1
    assert gradient.isfinite().all()


@pytest.mark.parametrize("n_classes", [2, 4])
def test_mcc_of_a_one_class_target_has_a_gradient_towards_it(n_classes):
    target = torch.ones(1, 8, 8, dtype=torch.int64)
    valid = torch.ones_like(target, dtype=torch.bool)
    losses = []
    for gap in (8.0, 2.0, 0.0, -2.0):
        logits = torch.zeros(1, n_classes, 8, 8)
        logits[:, 1] = gap
        loss, gradient = with_gradient(mcc_loss, logits, target, valid)
        losses.append(loss.item())
        assert (gradient[:, 1] < 0).all()
        assert (gradient[:, 0] > 0).all()
    assert losses == sorted(losses)
    assert 0 <= losses[0] < 0.01 < losses[-1] <= 1


def test_mcc_descends_from_chance_and_from_collapse():
    target, valid, _ = scene(7)
    logits = torch.zeros(2, 4, 96, 96)
    logits[:, 0] = 5.0
    logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(40):
        optimizer.zero_grad()
        loss = mcc_loss(logits, target, valid)
        loss.backward()
        optimizer.step()
    assert loss < 0.05


def test_soft_confusion_adds_up():
    target, valid, _ = scene(8)
    probs = noise((2, 4, 96, 96)).softmax(1)
    whole = soft_confusion(probs, target, valid)
    parts = [soft_confusion(probs[i : i + 1], target[i : i + 1], valid[i : i + 1]) for i in range(2)]
    assert_close(whole, sum(parts))
    rows = [(valid & (target == k)).sum().float() for k in range(4)]
    assert_close(whole.sum(1), torch.stack(rows))
    assert_close(soft_confusion(probs, target.masked_fill(~valid, IGNORE), torch.ones_like(valid)), whole)


@pytest.mark.parametrize("name", NAMES)
def test_masked_pixels_change_nothing(name):
    target, valid, distance = scene(9)
    logits = noise((2, 4, 96, 96))
    loss = loss_functions(distance)[name]
    value, gradient = with_gradient(loss, logits, target, valid)
    assert not gradient.masked_select(~valid[:, None]).any()
    assert gradient.masked_select(valid[:, None]).any()
    hole = ~valid[:, None]
    dirty = loss_functions(distance.masked_fill(hole, torch.nan))[name]
    for filling in (torch.nan, torch.inf, -1e30):
        x = logits.masked_fill(hole, filling)
        for label, mask in ((3, valid), (IGNORE, torch.ones_like(valid))):
            found = with_gradient(dirty, x, target.masked_fill(~valid, label), mask)
            assert_same(found, value, gradient)


def assert_same(found, value, gradient):
    "To the bit: the same sums are formed in the same order."
    assert torch.equal(found[0], value)
    assert torch.equal(found[1], gradient)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_pixels_that_count_has_loss_zero(name):
    target, valid, distance = scene(10)
    logits = noise((2, 4, 96, 96))
    loss = loss_functions(distance)[name]
    nothing = torch.zeros_like(valid)
    cases = (target, nothing), (torch.full_like(target, IGNORE), valid), (mixed(target, valid)[0], nothing)
    for t, v in cases:
        value, gradient = with_gradient(loss, logits, t, v)
        assert value == 0
        assert not gradient.any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("soft", [False, True])
def test_finite_at_saturation(name, dtype, sign, soft):
    target, valid, distance = scene(11)
    logits = sign * 1e4 * (2 * F.one_hot(target, 4).movedim(-1, 1) - 1)
    if soft:
        target, valid = mixed(target, valid)
    value, gradient = with_gradient(loss_functions(distance)[name], logits.to(dtype), target, valid)
    assert value.isfinite()
    assert value.dtype == torch.float32
    assert gradient.isfinite().all()
    assert gradient.dtype == dtype


@pytest.mark.parametrize("gamma", [0.25, 0.5, 1.0, (0.0, 0.5, 1.0, 2.0)])
def test_focal_gradient_is_finite_at_saturation_for_small_gamma(gamma):
    target, valid, _ = scene(11)
    logits = 40 * F.one_hot(target, 4).movedim(-1, 1).float()
    value, gradient = with_gradient(focal_loss, logits, target, valid, gamma)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_focal_is_finite_for_a_class_of_probability_zero():
    target, valid, _ = scene(11)
    logits = noise((2, 4, 96, 96))
    logits[:, 3] = -torch.inf
    value, gradient = with_gradient(focal_loss, logits, target, valid & (target != 3))
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("soft", [False, True])
def test_autocast_changes_nothing(name, soft):
    target, valid, distance = scene(12)
    if soft:
        target, valid = mixed(target, valid)
    logits = noise((2, 4, 96, 96))
    loss = loss_functions(distance)[name]
    plain = with_gradient(loss, logits, target, valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = with_gradient(loss, logits, target, valid)
    assert_same(cast, *plain)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("soft", [False, True])
def test_gradcheck(name, n_classes, soft):
    generator = torch.Generator().manual_seed(n_classes)
    shape = (2, n_classes, 3, 4)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, n_classes, (2, 3, 4), generator=generator)
    valid = torch.rand(2, 3, 4, generator=generator) < 0.8
    distance = torch.randn(shape, generator=generator, dtype=torch.float64)
    if soft:
        target = torch.rand(shape, generator=generator).softmax(1)
    loss = loss_functions(distance)[name]
    assert loss(logits, target, valid).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: loss(x, target, valid), (logits,))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("soft", [False, True])
def test_float32_sums_are_accurate_over_many_pixels(name, soft):
    "A batch of a million pixels; the reference is the same loss in float64."
    generator = torch.Generator().manual_seed(0)
    shape = (4, 4, 512, 512)
    target = torch.multinomial(torch.tensor(_CLASS_FRACTIONS), 4 * 512 * 512, True, generator=generator)
    target = target.view(4, 512, 512)
    valid = torch.ones_like(target, dtype=torch.bool)
    if soft:
        target, valid = mixed(target, valid)
    logits, distance = noise(shape), noise(shape, 1).clamp(-1, 1)
    loss = loss_functions(distance)[name]
    expected = loss(logits.double(), target, valid)
    assert_close(loss(logits, target, valid).double(), expected, rtol=1e-5, atol=1e-6)


# --- signed distance


def brute_force(label, n_classes, clip, valid):
    "Signed distance pixel by pixel: to the nearest known pixel on the other side, less half a pixel."
    known = valid & (label != IGNORE)
    rows, cols = np.indices(label.shape)
    maps = np.zeros((n_classes, *label.shape))
    for k in range(n_classes):
        for r, c in zip(*np.nonzero(known), strict=True):
            inside = label[r, c] == k
            there = known & ((label == k) != inside)
            d = np.hypot(rows[there] - r, cols[there] - c).min(initial=np.inf) - 0.5
            maps[k, r, c] = (-1 if inside else 1) * min(d, clip) / clip
    return maps


@pytest.mark.parametrize("seed", range(4))
def test_signed_distance_is_brute_force(seed):
    rng = np.random.default_rng(seed)
    label = rng.choice([0, 1, 2, IGNORE], size=(11, 14), p=[0.5, 0.3, 0.15, 0.05]).astype(np.uint8)
    valid = rng.random(label.shape) < 0.8
    found = signed_distance(label, 4, clip=3.0, valid=valid)
    assert found.dtype == np.float32
    assert found.shape == (4, 11, 14)
    np.testing.assert_allclose(found, brute_force(label, 4, 3.0, valid), rtol=0, atol=1e-6)


def test_signed_distance_limits():
    nothing, everything = signed_distance(np.full((6, 7), 1, np.uint8), 2)
    assert (nothing == 1).all()
    assert (everything == -1).all()
    assert not signed_distance(np.full((6, 7), IGNORE, np.uint8), 2).any()
    label = np.ones((6, 7), np.uint8)
    hole = np.zeros((6, 7), bool)
    hole[2:4, 2:4] = True
    label[hole] = 0  # the label under a cloud says background, but makes no edge
    assert (signed_distance(label, 2, valid=~hole)[1][~hole] == -1).all()
    assert (signed_distance(label, 2)[1][~hole] > -1).all()


def test_signed_distance_of_a_cropped_tile_includes_edges_outside_the_crop():
    label = np.zeros((64, 64), np.uint8)
    label[:, 40:] = 1
    whole = signed_distance(label, 2)[:, :32, :32]
    assert (signed_distance(label[:32, :32], 2)[1] == 1).all()
    assert whole[1].min() == pytest.approx(8.5 / 32)


@pytest.mark.parametrize(
    "kwargs", [{"label": np.zeros((1, 4, 4), np.uint8)}, {"clip": 0.0}, {"valid": np.ones((4, 5), bool)}]
)
def test_signed_distance_errors(kwargs):
    with pytest.raises(ValueError, match="expected one"):
        signed_distance(**{"label": np.zeros((4, 4), np.uint8), "n_classes": 2} | kwargs)


def test_boundary_is_the_mean_of_probability_times_distance():
    target, valid, distance = scene(13)
    logits = noise((2, 4, 96, 96))
    expected = (logits.softmax(1) * distance).sum(1)[valid].mean()
    assert_close(boundary_loss(logits, target, valid, distance), expected)


def test_boundary_is_larger_for_distant_errors():
    target = torch.zeros(1, 64, 64, dtype=torch.int64)
    target[:, 24:40, 24:40] = 1
    valid = torch.ones_like(target, dtype=torch.bool)
    distance = torch.from_numpy(signed_distance(target[0].numpy(), 2))[None]
    costs = []
    for column in (40, 48, 60):
        guess = target.clone()
        guess[:, 30:34, column : column + 4] = 1
        logits = 20 * F.one_hot(guess, 2).movedim(-1, 1).float()
        costs.append(boundary_loss(logits, target, valid, distance).item())
    assert costs[0] < costs[1] < costs[2]


# --- modules and hostile input


@pytest.mark.parametrize("soft", [False, True])
def test_modules_are_the_functions(soft):
    target, valid, distance = scene(14)
    if soft:
        target, valid = mixed(target, valid)
    logits = noise((2, 4, 96, 96))
    args = (logits, target, valid)
    assert FocalLoss(1.5)(*args) == focal_loss(*args, 1.5)
    assert FocalLoss(1.5, (1, 2, 3, 4))(*args) == focal_loss(*args, 1.5, (1, 2, 3, 4))
    assert DiceLoss()(*args) == dice_loss(*args)
    assert MCCLoss()(*args) == mcc_loss(*args)
    assert TverskyLoss(0.2, 0.6, 0.75)(*args) == tversky_loss(*args, 0.2, 0.6, 0.75)
    assert LovaszLoss()(*args) == lovasz_loss(*args)
    assert BoundaryLoss()(*args, distance) == boundary_loss(*args, distance)


@pytest.mark.parametrize("soft", [False, True])
def test_combined_is_the_weighted_sum(soft):
    target, valid, distance = scene(15)
    if soft:
        target, valid = mixed(target, valid)
    logits = noise((2, 4, 96, 96)).requires_grad_()
    weights = {"focal": 0.1, "dice": 0.2, "mcc": 0.3, "boundary": 0.4, "tversky": 0.5, "lovasz": 0.6}
    rarity = class_weights((700, 250, 49, 1), "inverse")
    loss = CombinedLoss(weights, 4, (2, 2, 1, 0), rarity, (0.2, 0.6, 0.75))
    total, terms = loss(logits, target, valid, distance)
    assert list(terms) == list(weights)
    assert not any(v.requires_grad for v in terms.values())
    assert terms["focal"] == focal_loss(logits, target, valid, (2, 2, 1, 0), rarity)
    assert terms["dice"] == dice_loss(logits, target, valid)
    assert terms["tversky"] == tversky_loss(logits, target, valid, 0.2, 0.6, 0.75)
    assert_close(total, sum(w * terms[n] for n, w in weights.items()))
    total.backward()
    assert logits.grad.any()


def reference_terms(logits, target, valid, distance):
    "Each term from the probabilities (B, C, H, W) by a plain formula, without the shared code."
    hard = target.ndim == 3
    mask = valid & (target != IGNORE) if hard else valid
    truth = onehot_of(target.masked_fill(~mask, 0)) if hard else target
    y, p, d = (x.movedim(1, -1)[mask].to(logits.dtype) for x in (truth, logits.softmax(1), distance))
    log_p = logits.movedim(1, -1)[mask].log_softmax(1).masked_fill(y == 0, 0)
    agreed, n = torch.minimum(y, p).sum(0), max(len(y), 1)
    truths, guesses = y.sum(0), p.sum(0)
    there, tiny = truths > 0, torch.finfo(logits.dtype).tiny
    both = (truths - agreed, guesses - agreed)
    tversky = 1 - agreed / (agreed + 0.7 * both[0] + 0.3 * both[1]).clamp_min(tiny)
    dice = 1 - 2 * agreed / (truths + guesses).clamp_min(tiny)
    matrix = y.T @ p if hard else torch.diag(agreed) + rest_in_proportion(y, p)
    errors, order = (y - p).abs().sort(dim=0, descending=True, stable=True)
    ranked = y.gather(0, order).T
    growth = _jaccard_growth(ranked, 1 - ranked).T
    present = there.sum().clamp_min(1)
    return {
        "focal": -(y * -torch.expm1(log_p) * -torch.expm1(log_p) * log_p).sum() / n,
        "dice": dice[there].sum() / present,
        "mcc": (1 - soft_mcc(matrix)) * bool(len(y)),
        "boundary": (p * d).sum() / n,
        "tversky": tversky[there].sum() / present,
        "lovasz": (errors * growth).sum(0)[there].sum() / present,
    }


def rest_in_proportion(y, p):
    "What is left of truth and prediction after their agreement, (pixels, C) each: summed outer products."
    missed, extra = (y - p).relu(), (p - y).relu()
    return torch.einsum("nk,nj->kj", missed / missed.sum(1, keepdim=True).clamp_min(1e-15), extra)


def shared_batches():
    "Targets of each kind with their valid pixels and distances."
    target, valid, distance = scene(24)
    holes = target.masked_fill(noise(target.shape, 3) > 1, IGNORE)
    soft, both = mixed(target, valid)
    return {
        "index": (target, valid, distance),
        "ignored": (holes, valid, distance),
        "one-hot": (onehot_of(target), valid, distance),
        "soft": (soft, both, distance),
        "one class": (torch.ones_like(target), valid, distance),
        "nothing": (target, torch.zeros_like(valid), distance),
    }


@pytest.mark.parametrize("kind", list(shared_batches()))
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_terms_computed_together_are_those_of_plain_formulas(kind, layout):
    "Values and gradients, alone and together, against plain float64 formulas; float32 to its rounding."
    target, valid, distance = shared_batches()[kind]
    x = noise((2, 4, 96, 96), 25, torch.float64).mul(2).contiguous(memory_format=layout)
    for name in (*NAMES, "combined"):
        weights = ALL if name == "combined" else {name: 1.0}

        def reference(z, weights=weights):
            terms = reference_terms(z, target, valid, distance.double())
            return sum(w * terms[k] for k, w in weights.items())

        def ours(z, weights=weights):
            return CombinedLoss(weights, 4)(z, target, valid, distance)[0]

        value, gradient = with_gradient(reference, x)
        largest = float(gradient.abs().max())
        for dtype, share in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
            found, found_gradient = with_gradient(ours, x.to(dtype))
            assert_close(found.double(), value, rtol=share, atol=share / 10)
            assert_close(found_gradient.double(), gradient, rtol=0, atol=share * largest)


@pytest.mark.parametrize("scale", [40, 1e4])
@pytest.mark.parametrize("kind", list(shared_batches()))
def test_combined_is_finite_at_saturation(kind, scale):
    target, valid, distance = shared_batches()[kind]
    for sign in (1, -1):
        logits = sign * scale * noise((2, 4, 96, 96), 26).sign()
        (total, gradient) = with_gradient(
            lambda z: CombinedLoss(ALL, 4)(z, target, valid, distance)[0], logits
        )
        assert total.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("n_classes", [2, 4])
def test_product_is_accurate_where_probabilities_repeat(n_classes):
    "A quarter of a million pixels with few different values, as of a confident network."
    target = torch.multinomial(
        torch.ones(n_classes), 16 * 128 * 128, True, generator=torch.Generator().manual_seed(0)
    )
    onehot = onehot_of(target.view(16, 128, 128), n_classes)
    probs, valid = (4 * onehot.roll(1, 3)).softmax(1), torch.ones(16, 128, 128, dtype=torch.bool)
    expected = soft_confusion(probs.double(), onehot, valid)  # by agreement
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = soft_confusion(probs, onehot.argmax(1), valid)
    assert found.dtype == torch.float32
    assert_close(found.double(), expected, rtol=1e-6, atol=0)


def test_combined_prepares_once_and_sums_one_matrix_over_ranks(monkeypatch):
    target, valid, distance = scene(15)
    calls = {"softmax": 0, "check": 0, "matrix": 0}
    log_softmax, check, add = torch.Tensor.log_softmax, pixels_module._check, Ranks.sum

    def counting(what, function, when=lambda *args: True):
        def inner(*args):
            calls[what] += when(*args)
            return function(*args)

        return inner

    monkeypatch.setattr(torch.Tensor, "log_softmax", counting("softmax", log_softmax))
    monkeypatch.setattr(torch.Tensor, "softmax", lambda *args: pytest.fail("a second softmax"))
    monkeypatch.setattr(pixels_module, "_check", counting("check", check))
    monkeypatch.setattr(Ranks, "sum", counting("matrix", add, lambda ranks, x: x.shape == (4, 4)))
    CombinedLoss(ALL, 4)(noise((2, 4, 96, 96)), target, valid, distance)
    assert calls == {"softmax": 1, "check": 1, "matrix": 1}


def test_combined_leaves_out_terms_without_weight(monkeypatch):
    target, valid, _ = scene(15)
    logits = noise((2, 4, 96, 96))
    monkeypatch.setattr(DiceLoss, "term", lambda *args: pytest.fail("a term with weight 0 was computed"))
    total, terms = CombinedLoss({"mcc": 1.0, "dice": 0.0, "boundary": 0}, 4)(logits, target, valid)
    assert set(terms) == {"mcc"}
    assert total == mcc_loss(logits, target, valid)


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ({"mmc": 1.0}, "did you mean 'mcc'"),
        ({"lovas": 1.0}, "did you mean 'lovasz'"),
        ({"mcc": -0.1, "dice": 1.0}, "mcc = -0.1"),
        ({"mcc": math.nan}, "finite"),
        ({"mcc": math.inf}, "finite"),
        ({"mcc": 0.0, "dice": 0}, "at least one"),
        ({}, "at least one"),
    ],
)
def test_combined_weight_errors(weights, match):
    with pytest.raises(ValueError, match=match):
        CombinedLoss(weights, 4)


def test_combined_input_errors():
    target, valid, distance = scene(16)
    logits = noise((2, 4, 96, 96))
    with pytest.raises(ValueError, match="no distance came with the batch"):
        CombinedLoss({"boundary": 0.5}, 4)(logits, target, valid)
    with pytest.raises(ValueError, match="distance: found"):
        CombinedLoss({"boundary": 0.5}, 4)(logits, target, valid, distance[:, :3])
    with pytest.raises(ValueError, match="found 4 classes, expected 2"):
        CombinedLoss({"mcc": 1.0}, 2)(logits, target, valid)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x, t, v: (x[0], t, v), "logits"),
        (lambda x, t, v: (x[:, :1], t, v), "C >= 2"),
        (lambda x, t, v: (x.long(), t, v), "floating point"),
        (lambda x, t, v: (x, t[:, None], v), "target: found"),
        (lambda x, t, v: (x, t[:1], v), "target: found"),
        (lambda x, t, v: (x, t.to(torch.uint8), v), "target: found torch.uint8"),
        (lambda x, t, v: (x, t, v.float()), "valid: found torch.float32"),
        (lambda x, t, v: (x, t, v[:, :5]), "valid: found"),
        (lambda x, t, v: (x, 85 * t, v), "class indices \\[85"),
        (lambda x, t, v: (x, t - 1, v), "class indices \\[-1\\]"),
    ],
)
def test_input_errors(name, change, match):
    target, valid, distance = scene(16)
    with pytest.raises(ValueError, match=match):
        loss_functions(distance)[name](*change(noise((2, 4, 96, 96)), target, valid))


# --- soft targets


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_classes", [2, 4])
def test_index_and_onehot_are_the_same_to_the_bit(name, n_classes):
    target, valid, distance = scene(17, n_classes)
    logits = 5 * noise((2, n_classes, 96, 96))
    loss = loss_functions(distance)[name]
    onehot = onehot_of(target, n_classes)
    plain = with_gradient(loss, logits, target, valid)
    assert_same(with_gradient(loss, logits, onehot, valid), *plain)
    ignored = target.masked_fill(~valid, IGNORE)
    assert_same(with_gradient(loss, logits, ignored, torch.ones_like(valid)), *plain)


@pytest.mark.parametrize("name", AREAS)
@pytest.mark.parametrize("share", [0.5, 0.7, 0.99])
def test_a_soft_target_is_its_own_best_prediction(name, share):
    target, valid, distance = scene(18)
    target, valid = mixed(target, valid, share=share)
    loss = loss_functions(distance)[name]
    perfect = target.clamp_min(1e-30).log()
    blurred = (0.8 * target + 0.2 * target.roll(3, 3)).clamp_min(1e-30).log()
    larger = 20 * onehot_of(target.argmax(1))
    answers = (perfect, blurred, noise((2, 4, 96, 96)), -12 * target)
    values = [loss(logits, target, valid).item() for logits in answers]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert 0.03 < values[1] < 0.5 < min(values[2:])
    assert loss(larger, target, valid) > (1 - share) / 4


@pytest.mark.parametrize("name", ["focal", "boundary"])
def test_the_loss_of_a_mix_is_the_mix_of_losses(name):
    target, valid, distance = scene(18)
    soft, both = mixed(target, valid)
    logits = noise((2, 4, 96, 96))
    ends = (target, distance), (target.flip(0), distance.flip(0))
    parts = [loss_functions(d)[name](logits, t, both) for t, d in ends]
    found = loss_functions(0.7 * distance + 0.3 * distance.flip(0))[name](logits, soft, both)
    assert_close(found, 0.7 * parts[0] + 0.3 * parts[1])


def test_focal_of_soft_targets_is_cross_entropy_at_gamma_zero():
    target, valid = mixed(*scene(19)[:2])
    logits, weight = 3 * noise((2, 4, 96, 96)), torch.tensor([0.5, 1.0, 2.0, 4.0])
    theirs = F.cross_entropy(logits, target, weight=weight, reduction="none")[valid].mean()
    assert_close(focal_loss(logits, target, valid, 0, weight), theirs)
    theirs = F.cross_entropy(logits, target, reduction="none")[valid].mean()
    assert_close(focal_loss(logits, target, valid, 0), theirs)


def test_focal_gammas_of_a_mix():
    target, valid = mixed(*scene(19)[:2])
    logits, gammas = noise((2, 4, 96, 96)), torch.tensor([2.0, 1.0, 0.5, 0.0])[:, None, None]
    p = logits.double().softmax(1)
    expected = -(target * (1 - p) ** gammas * p.log()).sum(1)[valid].mean()
    assert_close(focal_loss(logits, target, valid, gammas.flatten()).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_dice_and_tversky_of_soft_targets_are_smp(seed):
    "smp computes the agreement as half of both sums less their distance, which is min(y, p)."
    target, valid = mixed(*scene(seed)[:2])
    logits = noise((2, 4, 96, 96), seed)
    flat_p, flat_y = (x.movedim(1, 0)[:, valid][None] for x in (logits.softmax(1), target))
    dice = smp.DiceLoss("multilabel", from_logits=False)(flat_p, flat_y)
    assert_close(dice_loss(logits, target, valid), dice, rtol=1e-5, atol=1e-6)
    tversky = smp.TverskyLoss("multilabel", from_logits=False, alpha=0.3, beta=0.7)(flat_p, flat_y)
    assert_close(tversky_loss(logits, target, valid), tversky, rtol=1e-5, atol=1e-6)


def test_soft_confusion_of_a_mix():
    target, valid = mixed(*scene(20)[:2])
    probs = noise((2, 4, 96, 96)).double().softmax(1)
    found = soft_confusion(probs, target, valid)
    p, y = (x.double().movedim(1, -1)[valid] for x in (probs, target))
    assert_close(found.sum(1), y.sum(0), rtol=1e-6, atol=1e-6)
    assert_close(found.sum(0), p.sum(0), rtol=1e-6, atol=1e-6)
    assert_close(found.diagonal(), torch.minimum(p, y).sum(0), rtol=1e-6, atol=1e-6)
    assert (found >= 0).all()
    parts = [soft_confusion(probs[i : i + 1], target[i : i + 1], valid[i : i + 1]) for i in range(2)]
    assert_close(found, sum(parts))
    itself = soft_confusion(target.double(), target, valid)
    assert_close(itself, y.sum(0).diag())


@pytest.mark.parametrize("name", NAMES)
def test_masked_pixels_of_a_soft_target_change_nothing(name):
    target, valid, distance = scene(9)
    target, valid = mixed(target, valid)
    logits = noise((2, 4, 96, 96))
    loss = loss_functions(distance)[name]
    plain = with_gradient(loss, logits, target, valid)
    hole = ~valid[:, None]
    assert not plain[1].masked_select(hole).any()
    for filling in (torch.nan, torch.inf, 0.0):
        found = with_gradient(
            loss, logits.masked_fill(hole, filling), target.masked_fill(hole, filling), valid
        )
        assert_same(found, *plain)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda y: 0.9 * y, "sums \\[0.9"),
        (lambda y: y + torch.tensor([0.5, -0.5, 0, 0])[:, None, None], "below 0"),
        (lambda y: y * torch.nan, "nan"),
        (lambda y: y[:, :3], "target: found torch.float32 \\(2, 3"),
        (lambda y: y.double(), "target: found torch.float64"),
        (lambda y: y[:, :, 1:], "or torch.float32 \\(2, 4, 96, 96\\)"),
    ],
)
def test_soft_target_errors(name, change, match):
    target, valid, distance = scene(16)
    soft, both = mixed(target, valid)
    with pytest.raises(ValueError, match=match):
        loss_functions(distance)[name](noise((2, 4, 96, 96)), change(soft), both)


# --- Tversky and Lovász


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("alpha", "beta", "gamma"), [(0.3, 0.7, 1.0), (0.7, 0.3, 0.75), (0.5, 0.5, 2.0)])
def test_tversky_is_smp(seed, alpha, beta, gamma):
    "smp raises the mean to gamma, the paper each class: one class at a time they agree."
    target, valid, _ = scene(seed)
    logits = noise((2, 4, 96, 96), seed)
    masked = target.masked_fill(~valid, IGNORE)
    assert len(target[valid].unique()) == 4
    settings = {"ignore_index": IGNORE, "alpha": alpha, "beta": beta, "gamma": gamma}
    theirs = [smp.TverskyLoss("multiclass", classes=[k], **settings)(logits, masked) for k in range(4)]
    found = tversky_loss(logits, target, valid, alpha, beta, gamma)
    assert_close(found, sum(theirs) / 4, rtol=1e-5, atol=1e-6)
    if gamma == 1:
        assert_close(found, smp.TverskyLoss("multiclass", **settings)(logits, masked), rtol=1e-5, atol=1e-6)


def test_tversky_of_halves_is_dice():
    target, valid, _ = scene(21)
    logits = noise((2, 4, 96, 96))
    ours = with_gradient(lambda x: tversky_loss(x, target, valid, 0.5, 0.5), logits)
    assert_close(ours, with_gradient(dice_loss, logits, target, valid))


@pytest.mark.parametrize("gamma", [0.5, 0.75, 1.0, 2.0])
def test_tversky_of_a_perfect_map_is_zero_with_a_finite_gradient(gamma):
    target, valid, _ = scene(21)
    for size in (10, 20, 1e4):
        logits = size * onehot_of(target)
        value, gradient = with_gradient(tversky_loss, logits, target, valid, 0.3, 0.7, gamma)
        assert value < 0.1
        assert gradient.isfinite().all()
    assert value == 0


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [({"alpha": 0}, "alpha 0"), ({"beta": -1}, "beta -1"), ({"gamma": math.nan}, "gamma nan")],
)
def test_tversky_errors(kwargs, match):
    target, valid, _ = scene(21)
    with pytest.raises(ValueError, match=match):
        tversky_loss(noise((2, 4, 96, 96)), target, valid, **kwargs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("present", [4, 2, 1])
def test_lovasz_is_smp(seed, present):
    target, valid, _ = scene(seed)
    target = target.clamp_max(present - 1)
    logits = 2 * noise((2, 4, 96, 96), seed)
    masked = target.masked_fill(~valid, IGNORE)
    value, gradient = with_gradient(lovasz_loss, logits, target, valid)
    theirs, its_gradient = with_gradient(smp.LovaszLoss("multiclass", ignore_index=IGNORE), logits, masked)
    assert_close(value, theirs, rtol=1e-5, atol=0)
    # smp's growth of the Jaccard loss is a difference of float32 numbers near 1
    assert_close(gradient, its_gradient, rtol=0, atol=1e-3 * float(gradient.abs().max()))


@pytest.mark.parametrize("seed", range(3))
def test_lovasz_of_hard_predictions_is_sklearn(seed):
    target, valid, _ = scene(seed)
    guess = target.roll((2, 1), (1, 2))
    hard = 1e4 * onehot_of(guess)
    for mask, present in ((valid, [0, 1, 2, 3]), (valid & (target != 3), [0, 1, 2])):
        expected = 1 - jaccard_score(target[mask], guess[mask], average="macro", labels=present)
        assert_close(lovasz_loss(hard, target, mask).item(), expected, rtol=1e-5, atol=0)


def set_loss(y, chosen):
    "Jaccard loss of a set of wrong pixels: each takes its y from the intersection, adds 1 - y to the union."
    return 1 - (y.sum() - y[chosen].sum()) / (y.sum() + (1 - y[chosen]).sum())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("soft", [False, True])
def test_lovasz_extends_a_submodular_set_loss(seed, soft):
    "All sets of five pixels: the growth is that of the set loss, and less for a larger set."
    rng = np.random.default_rng(seed)
    y = rng.random(5) if soft else rng.permutation([1.0, 1.0, 0.0, 0.0, rng.integers(2)])
    growth = {}
    for chosen in chain.from_iterable(combinations(range(5), r) for r in range(5)):
        for i in set(range(5)) - set(chosen):
            ranked = torch.tensor(y[[*chosen, i, *(set(range(5)) - {*chosen, i})]])[None]
            found = _jaccard_growth(ranked, 1 - ranked)[0, len(chosen)].item()
            np.testing.assert_allclose(
                found, set_loss(y, [*chosen, i]) - set_loss(y, list(chosen)), rtol=0, atol=1e-12
            )
            growth[frozenset(chosen), i] = found
    assert all(g >= -1e-12 for g in growth.values())
    pairs = [(a, b) for a in growth for b in growth if a[1] == b[1] and a[0] < b[0]]
    assert len(pairs) == 5 * (3**4 - 2**4)
    assert all(growth[small] >= growth[large] - 1e-12 for small, large in pairs)


def test_lovasz_is_convex_in_the_probabilities_of_a_soft_target():
    target = torch.rand(1, 4, 6, 6, generator=torch.Generator().manual_seed(0)).mul(4).softmax(1)
    valid = torch.ones(1, 6, 6, dtype=torch.bool)
    for seed in range(50):
        ends = [noise((1, 4, 6, 6), 2 * seed + i, torch.float64).mul(2).softmax(1) for i in (0, 1)]
        a, b, middle = (lovasz_loss(p.log(), target, valid) for p in (*ends, sum(ends) / 2))
        assert middle <= (a + b) / 2 + 1e-12


def test_jaccard_growth_is_accurate_in_float32():
    "Among a million pixels a step is 1e-6 of a number near 1; the reference is float64."
    inside = torch.rand(1, 1_000_000, generator=torch.Generator().manual_seed(0)) < 0.3
    inside = inside.float()
    expected = _jaccard_growth(inside.double(), 1 - inside.double())
    assert_close(_jaccard_growth(inside, 1 - inside).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["tversky", "lovasz"])
def test_absent_classes_count_only_as_false_alarms(name):
    target = torch.zeros(1, 8, 8, dtype=torch.int64)
    target[:, :, 4:] = 1
    valid = torch.ones_like(target, dtype=torch.bool)
    loss = loss_functions(None)[name]
    right = 1e4 * onehot_of(target)
    assert loss(right, target, valid) == 0
    guess = target.clone()
    guess[:, :, 6:] = 3  # half of class 1 called class 3, which is not there
    lost = {"tversky": 0.7 * 16 / (16 + 0.7 * 16), "lovasz": 0.5}[name]
    assert_close(loss(1e4 * onehot_of(guess), target, valid).item(), lost / 2)
    value, gradient = with_gradient(loss, noise((1, 4, 8, 8)), torch.zeros_like(target), valid)
    assert 0 < value < 1
    assert gradient.isfinite().all()
    assert (gradient[:, 0] < 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_single_pixel_that_counts(name):
    target, valid, distance = scene(22)
    one = torch.zeros_like(valid)
    one[0, 3, 4] = True
    value, gradient = with_gradient(loss_functions(distance)[name], noise((2, 4, 96, 96)), target, one)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient[0, :, 3, 4].any()


# --- class weights

COUNTS = (698_000, 251_000, 50_100, 900)


@pytest.mark.parametrize("method", ["none", "inverse", "effective"])
@pytest.mark.parametrize("counts", [COUNTS, (5, 0, 1, 0), (3, 7), (0, 1, 0)])
def test_class_weights_have_mean_one_over_pixels(method, counts):
    weights = class_weights(counts, method)
    assert weights.dtype == torch.float32
    assert weights.shape == (len(counts),)
    share = np.array(counts) / sum(counts)
    np.testing.assert_allclose((weights.numpy() * share).sum(), 1, rtol=1e-6)
    assert all(w == 1 for w, n in zip(weights, counts, strict=True) if n == 0)
    assert (weights > 0).all()


def test_class_weights_by_method():
    assert class_weights(COUNTS).tolist() == [1, 1, 1, 1]
    inverse, effective = (class_weights(COUNTS, m).double().numpy() for m in ("inverse", "effective"))
    np.testing.assert_allclose(inverse * COUNTS, sum(COUNTS) / 4, rtol=1e-6)
    ratio = inverse[3] / inverse[0], effective[3] / effective[0]
    assert ratio[0] > ratio[1] > 10
    assert (np.diff(effective) > 0).all()
    np.testing.assert_allclose(class_weights(np.array(COUNTS) * 7, "effective"), effective, rtol=1e-6)
    np.testing.assert_allclose(class_weights(np.array(COUNTS) / 1e6, "effective"), effective, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.9, 0.999, 0.99999, 0.9999999])
def test_effective_weights_are_those_of_the_paper(beta):
    counts = np.array(COUNTS)
    expected = (1 - beta) / (1 - np.float64(beta) ** counts)
    expected *= counts.sum() / (counts * expected).sum()
    np.testing.assert_allclose(class_weights(counts, "effective", beta), expected, rtol=1e-6)


def test_effective_weights_lie_between_none_and_inverse():
    assert_close(class_weights(COUNTS, "effective", 0.9), class_weights(COUNTS))
    assert_close(
        class_weights(COUNTS, "effective", 1 - 1e-10), class_weights(COUNTS, "inverse"), rtol=1e-3, atol=0
    )
    geometric = np.exp(np.log(COUNTS).mean())
    near = class_weights(COUNTS, "effective", 1 - 1 / geometric)
    assert_close(near, class_weights(COUNTS, "effective"), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (((0, 0),), "not all 0"),
        (((1, -1),), "counts: found"),
        (((1, math.nan),), "counts: found"),
        ((((1, 2), (3, 4)),), "counts: found"),
        (((1, 2), "square"), "expected none, inverse, effective"),
        (((1, 2), "effective", 1.0), "beta = 1.0"),
        (((1, 2), "effective", 0), "beta = 0"),
    ],
)
def test_class_weights_errors(args, match):
    with pytest.raises(ValueError, match=match):
        class_weights(*args)


def test_focal_weights_are_those_of_cross_entropy():
    "As PyTorch's with reduction sum, over the pixels that count: its mean divides by the weights instead."
    target, valid, _ = scene(23)
    logits, weight = noise((2, 4, 96, 96)), class_weights(COUNTS, "effective")
    masked = target.masked_fill(~valid, IGNORE)
    theirs = (
        F.cross_entropy(logits, masked, weight=weight, ignore_index=IGNORE, reduction="sum") / valid.sum()
    )
    assert_close(focal_loss(logits, target, valid, 0, weight), theirs)
    assert focal_loss(logits, target, valid, 2, torch.ones(4)) == focal_loss(logits, target, valid, 2)
    parts = [focal_loss(logits, target, valid & (target == k)) for k in range(4)]
    share = [(valid & (target == k)).sum() / valid.sum() for k in range(4)]
    expected = sum(w * s * p for w, s, p in zip(weight, share, parts, strict=True))
    assert_close(focal_loss(logits, target, valid, class_weights=weight), expected)


@pytest.mark.parametrize("weight", [(1, 2, 3), (1, 2, 3, -1), (1, 2, 3, math.inf), ()])
def test_focal_weight_errors(weight):
    target, valid, _ = scene(23)
    with pytest.raises(ValueError, match="class_weights: found"):
        focal_loss(noise((2, 4, 96, 96)), target, valid, class_weights=weight)


@pytest.fixture(scope="module")
def of_two():
    "The results of two processes."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        return run_ranks(every_step, 2)


@pytest.mark.parametrize("kind", list(batches()))
@pytest.mark.parametrize("name", [*NAMES, "combined"])
def test_two_processes_have_the_loss_of_one(of_two, kind, name):
    total, terms, gradients = ddp_step(Ranks(), ALL if name == "combined" else {name: 1.0}, batches()[kind])
    for steps in of_two:
        found_total, found_terms, found_gradients = steps[kind, name]
        assert_close((found_total, found_terms), (total, terms), atol=1e-6, rtol=1e-5)
        assert_close(found_gradients, gradients, atol=1e-6, rtol=1e-5)
    assert torch.equal(of_two[0][kind, name][0], of_two[1][kind, name][0])  # the ranks agree to the bit
    empty = kind == "no pixels"
    assert (total == 0) == empty
    assert any(g.any() for g in gradients) != empty


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_of_two_losses_is_another_number(name):
    "The tests above would fail if the ranks did not communicate."
    whole, parts = batches()["uneven"], []
    for rows in (slice(0, 5), slice(5, 8)):
        parts.append(ddp_step(Ranks(), {name: 1.0}, [x[rows] for x in whole]))
    total, _, gradients = ddp_step(Ranks(), {name: 1.0}, whole)
    mean = [sum(g) / 2 for g in zip(*(part[2] for part in parts), strict=True)]
    assert abs(sum(part[0] for part in parts) / 2 - total) > 1e-4
    assert max(float((a - b).abs().max()) for a, b in zip(mean, gradients, strict=True)) > 1e-4
