"""Finished runs whose maps miss a class: the diagnosis names it first. Good maps and trials stay silent."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from fault_setups import setup

from glacier_nb.checks import diagnosis
from glacier_nb.checks.diagnosis import diagnose
from glacier_nb.files.paths import write_text
from glacier_nb.landsat import CLASSES
from glacier_nb.metrics.scores import summary
from glacier_nb.report.findings import Status

# valid pixels of the five held-out tiles of the full-size demo, after 256 steps with the defaults of 0.1.0
DEMO = [[153961, 4731, 884, 0], [4738, 75805, 1609, 0], [2818, 2594, 11273, 0], [80, 172, 71, 0]]
LAKES = {"01_01": [42, 4, 11, 0], "01_02": [26, 132, 53, 0], "02_01": [12, 36, 7, 0]}


def tiles(lakes):
    "Counts of three tiles that sum to the demo's, with these rows of lakes."
    rest = np.array(DEMO[:3]) // 3
    found = {name: np.vstack([rest, row]) for name, row in lakes.items()}
    found["01_01"][:3] += np.array(DEMO[:3]) - 3 * rest
    return found


@pytest.fixture(scope="module")
def subjects():
    "What was built for a config; the tiles of all runs here are the same."
    built = {}
    make = diagnosis._Subject.of

    def of(cfg, folder=None, learner=None):
        if "one" not in built:
            built["one"] = make(cfg)
        found = replace(built["one"], cfg=cfg, folder=folder)
        found.history, found.metrics = diagnosis.read_history(folder), diagnosis.read_metrics(folder)
        return found

    only = [c for c in diagnosis._CHECKS if c.needs in ("history", "scores")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnosis._Subject, "of", of)
        patch.setattr(diagnosis, "_CHECKS", only)
        yield


def finished(folder, lakes, **parameters):
    "A finished run with a calm history and these rows of lakes."
    cfg = setup(epochs=16, **parameters)
    cms = tiles(lakes)
    curve = [
        {"epoch": e, "step": 16 * e, "train_loss": 0.2 + 0.5 / e, "val_loss": 0.3 + 0.5 / e}
        for e in range(1, 17)
    ]
    curve = [
        row | {"mcc": 0.86 - 0.4 / row["epoch"] ** 2, "mcc_valid": 0.85 - 0.4 / row["epoch"] ** 2}
        for row in curve
    ]
    counts = {i: {"all": cm.tolist(), "valid": cm.tolist()} for i, cm in cms.items()}
    found = summary(cms, cms, CLASSES) | {"baselines": {"boosting": 0.49}, "baseline_mcc": 0.49}
    found |= {"tile_confusions": counts, "parameters": asdict(cfg), "seconds": 400.0, "best_epoch": 16}
    write_text(folder / "config.json", json.dumps(asdict(cfg)))
    write_text(folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in curve))
    write_text(folder / "metrics.json", json.dumps(found | ({"trial": True} if cfg.trial else {})))
    return diagnose(cfg, folder, live=False)


def test_the_missing_lakes_of_the_demo_come_first(subjects, tmp_path):
    report = finished(tmp_path, LAKES)
    assert report.first.cause == "class-missed", str(report)
    assert "the maps never show it; 0 are found" in report.first.evidence
    assert "glacier (172), background (80) and debris (71)" in report.first.evidence
    assert report.verdict.startswith("The run is usable. ")
    assert "the maps miss a class" in report.verdict
    assert report.change.items() >= report.first.change.items()
    assert report.first.png()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "lakes",
    [
        {name: [n - n // 2 for n in row[:3]] + [sum(n // 2 for n in row[:3])] for name, row in LAKES.items()},
        {name: [3, 4, 2, 0] for name in LAKES},  # a handful of pixels
        {name: [0, 0, 0, 0] for name in LAKES},
    ],
    ids=["half of them found", "27 pixels", "no lake"],
)
def test_healthy_runs_stay_silent(subjects, tmp_path, lakes):
    report = finished(tmp_path, lakes)
    assert report.findings == (), str(report)
    assert [c.status for c in report.checks if c.name == "classes in the maps"] == [Status.PASSED]


def test_a_trial_stays_silent(subjects, tmp_path):
    report = finished(tmp_path, LAKES, trial=True)
    assert report.findings == ()
    assert {c.reason for c in report.checks} == {"a trial is short by intent"}
