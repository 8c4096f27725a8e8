"""Checks of a finished run: classes that its maps miss, or that a baseline maps better."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from made_up import noise_tile

from glacier_nb.checks.diagnosis import _distinct
from glacier_nb.checks.scores import _RARE_STEPS, _missed_window, check_baselines, check_classes
from glacier_nb.config.training import TrainConfig
from glacier_nb.landsat import CLASSES
from glacier_nb.losses.combined import CombinedLoss, class_weights
from glacier_nb.metrics.scores import confusion, missed_classes, summary
from glacier_nb.report.findings import CheckResult, Finding, Status
from glacier_nb.report.report import Report


def scored(found, pixels=(7000, 2400, 500, 20)):
    "Metrics of maps in which a fraction of each class is found, the rest is background."
    cm = [[0] * 4 for _ in range(4)]
    for k, (share, n) in enumerate(zip(found, pixels, strict=True)):
        cm[k][k] += round(share * n)
        cm[k][0] += n - round(share * n)
    return summary({"01_01": cm}, {"01_01": cm}, CLASSES)


DONE = CheckResult("history", Status.PASSED)
CASES = {  # fractions found: classes named
    "all": ((1, 0.9, 0.5, 0.5), []),
    "no lake": ((1, 0.9, 0.5, 0), ["lake"]),
    "one lake pixel in twenty": ((1, 0.9, 0.5, 0.05), ["lake"]),
    "no debris, no lake": ((1, 0.9, 0, 0), ["debris", "lake"]),
    "nothing but background": ((1, 0, 0, 0), []),  # collapsed, which is another finding
}
PIXELS = (7000, 2400, 500, 80)


@pytest.mark.parametrize("name", CASES)
def test_classes_that_the_maps_miss(name):
    shares, named = CASES[name]
    found = check_classes(scored(shares, PIXELS))
    assert [(f.cause, f.severity, list(f.numbers)) for f in found] == (
        [("class-missed", "warning", named)] if named else []
    )
    for f in found:
        verdict = Report("Diagnosis of a run", findings=[f], checks=[DONE], trained=True).verdict
        assert "the maps miss a class" in verdict
        assert f.png()[:4] == b"\x89PNG"


def test_evidence_names_counts_and_what_the_maps_show_instead():
    (found,) = check_classes(scored((1, 0.9, 0.5, 0.05), PIXELS))
    lake = found.numbers["lake"]
    assert {k: lake[k] for k in ("truth", "predicted", "found")} == {"truth": 80, "predicted": 4, "found": 4}
    assert lake["instead"] == {"background": 76}
    for part in ("80 valid pixels", "4 are found (recall 0.05, precision 1.00)", "background (76)"):
        assert part in found.evidence


def test_far_less_than_the_truth_is_missed_and_half_of_it_is_not():
    cm = np.array([[9000, 0, 0, 0], [0, 2000, 0, 0], [300, 0, 100, 0], [0, 0, 0, 90]])
    assert missed_classes(cm, CLASSES) == {}
    cm[2] = 310, 0, 90, 0
    assert list(missed_classes(cm, CLASSES)) == ["debris"]
    cm[2], cm[0] = (300, 0, 100, 0), (5000, 0, 4000, 0)  # as much as before, and all of the rest elsewhere
    assert list(missed_classes(cm, CLASSES)) == ["debris"]


def test_a_handful_of_pixels_is_no_finding():
    assert check_classes(scored((1, 0.9, 0.5, 0), (7000, 2400, 500, 49))) == []
    assert len(check_classes(scored((1, 0.9, 0.5, 0), (7000, 2400, 500, 50)))) == 1


def test_no_labels_of_a_class_no_metrics_and_a_trial():
    assert check_classes({}) == []
    assert check_classes(scored((1, 0.9, 0.5, 0), (7000, 2400, 500, 0))) == []
    assert check_classes(scored((1, 0.9, 0, 0), PIXELS) | {"trial": True}) == []


OLD = {"class_weights": "none", "lovasz_weight": 0.0}  # parameters before there was a recipe for rare classes


def test_each_fix_is_the_next_step_of_the_recipe_and_a_run_accepts_it():
    metrics, cfg, seen = (
        scored((1, 0.9, 0, 0), (7000, 2400, 500, 0)),
        TrainConfig(sampler="random", **OLD),
        [],
    )
    for _ in range(9):
        (found,) = check_classes(metrics | {"parameters": asdict(cfg)})
        if not found.change:
            break
        assert all(f"{k} = {v!r}" in found.fix for k, v in found.change.items())
        seen.append(found.change)
        cfg = replace(cfg, **found.change)
    assert "has the recipe for rare classes already" in found.fix
    assert tuple(seen) == _RARE_STEPS


def test_class_weights_are_proposed_where_there_is_a_focal_loss_without():
    metrics = scored((1, 0.9, 0, 0), (7000, 2400, 500, 0))
    others = {"focal_weight": 0.0, "dice_weight": 0.0, "boundary_weight": 0.0}
    for own, more in (({"mcc_weight": 1.0}, others), ({"class_weights": "inverse"}, {})):
        cfg = TrainConfig(**OLD | own)
        (found,) = check_classes(metrics | {"parameters": asdict(cfg)})
        assert found.change == {"lovasz_weight": 0.3, **more}
        assert replace(cfg, **found.change).loss_weights()["lovasz"] == 0.3


def learned(cfg, label, image):
    "Metrics of a linear network that learns four tiles with the loss of a config."
    counts = torch.bincount(label.ravel(), minlength=4)
    weights = None if cfg.class_weights == "none" else class_weights(counts.tolist(), cfg.class_weights)
    loss, model = CombinedLoss(cfg.loss_weights(), 4, cfg.focal_gamma, weights), torch.nn.Conv2d(2, 4, 1)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    optimizer, valid = torch.optim.Adam(model.parameters(), lr=0.1), torch.ones_like(label, dtype=torch.bool)
    for _ in range(300):
        optimizer.zero_grad()
        loss(model(image), label, valid)[0].backward()
        optimizer.step()
    maps = model(image).argmax(1)
    cms = {f"01_{k:02}": confusion(pred, label[k], 4) for k, pred in enumerate(maps)}
    return summary(cms, cms, CLASSES) | {"parameters": asdict(cfg)}


def test_the_finding_is_gone_after_its_advice_was_followed():
    rng = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.6, 0.3, 0.09, 0.01])
    label = torch.multinomial(shares, 4 * 48 * 48, True, generator=rng).view(4, 48, 48)
    colour = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 1.5]])  # a lake looks much like ice
    image = colour[label].movedim(-1, 1) + torch.randn((4, 2, 48, 48), generator=rng)
    cfg = TrainConfig(focal_weight=1.0, dice_weight=0.0, mcc_weight=0.0, boundary_weight=0.0, **OLD)
    (found,) = check_classes(before := learned(cfg, label, image))
    assert list(found.numbers) == ["lake"]
    after = learned(replace(cfg, **found.change), label, image)
    assert check_classes(after) == []
    assert after["per_class"]["lake"]["recall"] > 5 * before["per_class"]["lake"]["recall"]
    assert after["mcc"] > before["mcc"] - 0.06


LAKE = np.array([[6900, 60, 40, 0], [100, 2200, 100, 0], [60, 40, 400, 0], [40, 30, 10, 0]])


def with_baseline(lake, tiles=3, total=LAKE):
    "Metrics of a run that misses all lakes, beside a baseline that finds some of them in each tile."
    ids = [f"01_{k:02}" for k in range(tiles)]
    rule = np.array([[6000, 800, 200, 0], [800, 1400, 200, 0], [200, 100, 200, 0], [0, 0, 0, 0]])
    rule[3] = 80 - lake, 0, 0, lake
    mine, its = ({i: {"all": cm.tolist(), "valid": cm.tolist()} for i in ids} for cm in (total, rule))
    found = summary(dict.fromkeys(ids, rule), dict.fromkeys(ids, rule), CLASSES)["per_class"]
    more = {"tile_confusions": mine, "baseline_confusions": {"boosting": its}}
    more["baseline_classes"] = {"boosting": {c: v | {"mcc_valid": v["mcc"]} for c, v in found.items()}}
    return summary(dict.fromkeys(ids, total), dict.fromkeys(ids, total), CLASSES) | more


def test_a_class_on_which_a_baseline_is_better():
    missed, below = check_classes(with_baseline(50))
    assert (missed.cause, below.cause) == ("class-missed", "class-below-baseline")
    assert "The baseline boosting finds 62% of it" in missed.evidence
    assert list(below.numbers) == ["lake"]
    assert below.numbers["lake"] | {"mcc": 0, "recall": 0, "truth": 240} == below.numbers["lake"]
    assert "it finds 62% of 240 valid pixels, the network 0%" in below.evidence
    assert below.png()[:4] == b"\x89PNG"
    assert [f.cause for f in check_classes(with_baseline(0))] == ["class-missed"]


def test_a_better_baseline_in_one_tile_of_many_may_be_chance():
    metrics = with_baseline(50, 5)
    for tile in list(metrics["baseline_confusions"]["boosting"])[1:]:
        worse = np.array(metrics["baseline_confusions"]["boosting"][tile]["valid"])
        worse[3], worse[0] = (80, 0, 0, 0), (4500, 800, 200, 1500)
        metrics["baseline_confusions"]["boosting"][tile] = {"all": worse.tolist(), "valid": worse.tolist()}
    assert [f.cause for f in check_classes(metrics)] == ["class-missed"]


def test_below_a_baseline_as_a_whole_is_the_other_finding():
    poor = np.array([[5000, 1500, 500, 0], [1500, 600, 300, 0], [200, 200, 100, 0], [40, 30, 10, 0]])
    metrics = with_baseline(50, total=poor)
    assert {f.cause for f in check_classes(metrics)} == {"class-missed"}
    assert [f.cause for f in check_baselines(metrics | {"baselines": {"boosting": 0.5}})] == [
        "below-baseline"
    ]


def test_two_classes_have_one_score():
    cm = np.array([[900, 100], [100, 900]])
    better = np.array([[950, 50], [50, 950]])
    kinds = {"a": {"all": cm.tolist(), "valid": cm.tolist()}}
    rule = {"boosting": {"a": {"all": better.tolist(), "valid": better.tolist()}}}
    metrics = summary({"a": cm}, {"a": cm}, CLASSES[:2])
    assert check_classes(metrics | {"tile_confusions": kinds, "baseline_confusions": rule}) == []


def test_the_picture_shows_the_largest_missed_piece_of_the_worst_tile():
    tile = noise_tile("01_02", shape=(96, 96), nodata=0.0)
    label = np.zeros((96, 96), np.uint8)
    label[20:30, 40:60], label[80, 80] = 3, 3
    tile = replace(tile, label=label)
    asked = []
    metrics = with_baseline(50)
    metrics["tile_confusions"]["01_02"]["valid"][3] = [200, 0, 0, 0]
    del metrics["baseline_confusions"]
    (missed,) = check_classes(metrics, lambda name: asked.append(name) or (tile, np.zeros_like(label)))
    assert asked == []  # drawn when it is shown
    assert missed.png()[:4] == b"\x89PNG"
    assert asked == ["01_02"]
    assert "tile 01_02" in missed.caption
    assert _missed_window(label == 3) == np.s_[0:54, 16:84]


def finding(cause, severity="warning", fix="Fix it."):
    return Finding(cause, severity, f"Evidence of {severity} {cause}.", fix)


def causes(*findings):
    return [(f.cause, f.severity) for f in _distinct(findings)]


def test_consequences_of_misplaced_labels_and_of_exchanged_codes_are_left_out():
    assert causes(finding("label-exchanged", "fatal"), finding("label-turned", "fatal")) == [
        ("label-turned", "fatal")
    ]
    assert causes(finding("label-exchanged"), finding("label-elsewhere", "fatal")) == [
        ("label-elsewhere", "fatal")
    ]
    assert causes(finding("label-exchanged", "fatal"), finding("label-turned")) == [
        ("label-exchanged", "fatal")
    ]
    assert causes(finding("label-turned"), finding("label-coarse")) == [
        ("label-turned", "warning"),
        ("label-coarse", "warning"),
    ]
    for cause in ("nodata-as-data", "band-order", "band-elsewhere"):  # bands not as the ground
        assert causes(finding("label-exchanged", "fatal"), finding(cause, "fatal")) == [(cause, "fatal")]
        assert len(causes(finding("label-exchanged"), finding(cause))) == 2


def test_the_fix_of_a_check_comes_before_that_of_the_error():
    check, error = finding("label-codes", "fatal", "Resample."), finding("label-codes", "fatal", "Recode.")
    assert _distinct([check, error])[0].fix == "Resample."
