"""Correct set-ups of many seeds, sizes and kinds: nothing fatal, and no warning about files and tiles."""

import shutil
from dataclasses import replace

import pytest
from fault_setups import setup

from glacier_nb.checks import faults as f
from glacier_nb.checks.diagnosis import diagnose
from glacier_nb.report.findings import CAUSES, Status

OF_TILES = tuple(CAUSES)[: list(CAUSES).index("split-impossible")]
CORRECT = (
    {"seed": 0, "n_tiles": 9, "size": 128},
    {"seed": 2, "n_tiles": 12, "size": 96},
    {"seed": 3, "n_tiles": 6, "size": 256, "crop_size": 128, "samples_per_epoch": 64},
    {"seed": 4, "n_tiles": 25, "size": 64, "n_folds": 5, "crop_size": 32, "samples_per_epoch": 256},
    {"seed": 5, "n_tiles": 16, "size": 128, "sampler": "random", "augment": "strong"},
    {"seed": 6, "n_tiles": 9, "size": 160, "include_glcm": True, "normalisation": "robust"},
    {"seed": 7, "n_tiles": 12, "size": 128, "encoder": "resnet18", "encoder_weights": None}
    | {"focal_weight": 0.0, "dice_weight": 0.0, "mcc_weight": 1.0},
    {"seed": 8, "n_tiles": 9, "size": 128, "sampler": "weighted", "lr": 3e-3}
    | {"schedule": "plateau", "select": "inner"},
    {
        "seed": 9,
        "n_tiles": 12,
        "size": 128,
        "architecture": "scratch",
        "class_fractions": "0.25,0.25,0.25,0.25",
    },
    {"seed": 10, "n_tiles": 12, "size": 128, "binary": True, "mixup": 0.2, "batch_size": 16},
)
LIVE = (0, 7, 10)  # seeds of those that also train a hundred steps


@pytest.mark.parametrize("given", CORRECT, ids=lambda given: f"seed {given['seed']}")
def test_a_correct_set_up_has_nothing_fatal(given, tmp_path):
    given = dict(given)
    binary = given.pop("binary", False)
    cfg = setup(**given)
    if binary:
        folder = shutil.copytree(cfg.data_dir, tmp_path / "demo")
        f._rewrite_rasters(folder / "label", lambda label: 255 * (label > 0))
        cfg = replace(cfg, data_dir=str(folder))
    report = diagnose(cfg, live=given["seed"] in LIVE)
    assert not report.fatal, str(report)
    warnings = [x.cause for x in report.findings if x.severity == "warning" and x.cause in OF_TILES]
    assert not warnings, str(report)
    assert len([c for c in report.checks if c.status is not Status.SKIPPED]) >= 11


def test_seeds_differ():
    assert len({given["seed"] for given in CORRECT}) == len(CORRECT) >= 10
