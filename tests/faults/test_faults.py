"""Each fault in a correct set-up: the diagnosis names its cause first."""

import shutil
import time
from dataclasses import replace

import pytest
from fault_setups import FAULTS, setup, shared_checks

from glacier_nb.checks import diagnosis
from glacier_nb.checks.diagnosis import diagnose
from glacier_nb.config.training import TrainConfig
from glacier_nb.training.learner import Learner

ROWS: list[str] = []  # of the table


@pytest.fixture(scope="module")
def correct():
    "The config of a set-up without a fault."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnosis, "_CHECKS", shared_checks())
        yield setup()
    print("\n\nfault | cause | named first | severity | seconds", *ROWS, sep="\n")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_named_first(fault, correct, tmp_path):
    cfg = correct
    if fault.files:
        cfg = replace(cfg, data_dir=str(shutil.copytree(correct.data_dir, tmp_path / "demo")))
    changed = fault.spoil(cfg)
    cfg, learner = (changed.cfg, changed) if isinstance(changed, Learner) else (changed, None)
    start = time.perf_counter()
    report = diagnose(cfg, learner=learner, live=fault.live)
    seconds = time.perf_counter() - start
    cause, severity = (report.first.cause, report.first.severity) if report.first else ("nothing", "")
    named = "yes" if cause == fault.cause else f"no: {cause}"
    ROWS.append(f"{fault.name} | {fault.cause} | {named} | {severity} | {seconds:.1f}")
    assert cause == fault.cause, str(report)
    for finding in report.findings:
        TrainConfig.check_names(finding.change)


def test_there_are_twenty_faults_of_all_parts():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 20
    assert len({fault.cause for fault in FAULTS}) >= 20
