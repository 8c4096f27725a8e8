"""Checks of a finished run: classes that its maps do not show."""

import pytest

from glacier_nb.checks.diagnosis import _distinct
from glacier_nb.checks.scores import check_classes
from glacier_nb.config.training import TrainConfig
from glacier_nb.landsat import CLASSES
from glacier_nb.metrics.scores import summary
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
CASES = {  # fractions found: classes named, severity
    "all": ((1, 0.9, 0.5, 0.5), [], None),
    "no lake": ((1, 0.9, 0.5, 0), ["lake"], "note"),
    "no debris, no lake": ((1, 0.9, 0, 0), ["debris", "lake"], "warning"),
    "nothing but background": ((1, 0, 0, 0), [], None),  # collapsed, which is another finding
}


@pytest.mark.parametrize("name", CASES)
def test_classes_that_the_maps_do_not_show(name):
    shares, named, severity = CASES[name]
    found = check_classes(scored(shares))
    assert [(f.cause, f.severity, list(f.numbers)) for f in found] == (
        [("class-unmapped", severity, named)] if named else []
    )
    for f in found:
        verdict = Report("Diagnosis of a run", findings=[f], checks=[DONE], trained=True).verdict
        assert "the maps do not show every class" in verdict
        assert "-0.000" not in f.evidence


def test_no_labels_of_a_class_and_no_metrics():
    assert check_classes({}) == []
    assert check_classes(scored((1, 0.9, 0.5, 0), (7000, 2400, 500, 0))) == []


def test_the_fix_is_a_parameter_that_a_run_accepts():
    (found,) = check_classes(scored((1, 0.9, 0, 0), (7000, 2400, 500, 0)))
    fractions = found.fix.split('class_fractions = "')[1].split('"')[0]
    cfg = TrainConfig(sampler="pixel", class_fractions=fractions)
    assert cfg.class_fractions == fractions
    assert fractions.endswith(",0")


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
