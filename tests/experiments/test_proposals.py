"""Proposals: the rules on made-up runs, no proposal twice, findings that no parameter fixes, files."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from glacier_nb.checks.scores import check_classes
from glacier_nb.config.files import read_parameters
from glacier_nb.config.training import TrainConfig
from glacier_nb.experiments.jobs import FailureCause
from glacier_nb.experiments.proposals import NoProposal, Proposal, next_run
from glacier_nb.experiments.rules import (
    _BEST,
    _BEST_RESULT,
    _CONTEXT_RESULT,
    _MEASURED,
    _RECIPE,
    _SEED_SPREAD,
    _SUN_RESULT,
    RULES,
    RunRecord,
    _measured,
    _rule_table,
    read_findings,
    read_record,
)
from glacier_nb.experiments.sweep import _plan
from glacier_nb.landsat import CLASSES
from glacier_nb.metrics.scores import mcc, summary
from glacier_nb.report.findings import Finding
from glacier_nb.runs.folder import RunError

ROOT = Path(__file__).parents[2]
FOURTH = {
    k: v for k, v in read_parameters(ROOT / "configs/iterations/04_heavy_mcc.yaml").items() if k != "run"
}
PER_CLASS = {n: {"mcc": 0.5, "support": 9} for n in ("background", "glacier", "debris", "lake")}


def finding(cause, severity="warning", **change):
    return Finding(cause, severity, f"Measured {cause}.", f"Fix {cause}.", change=change)


def record(name="base", mcc=0.6, findings=(), error="", cause=FailureCause.OTHER, **parameters):
    "A run that ended with this MCC; None: it was not finished."
    metrics = {} if mcc is None else {"mcc": mcc, "per_class": PER_CLASS, "seconds": 600.0}
    return RunRecord(name, parameters, (), metrics, findings, error, cause)


def proposed(*runs, root=Path("/nonexistent"), **how) -> Proposal:
    found = next_run(runs, root=root, **how)
    assert isinstance(found, Proposal), str(found)
    return found


def changes(found: Proposal) -> dict:
    return {name: after for name, (_, after) in found.changed.items()}


def test_measured_figures_are_those_of_the_record():
    runs = json.loads((ROOT / "configs/iterations/record.json").read_text())["demo"]
    assert {n: round(runs[n]["mcc"], 3) for n in _MEASURED} == pytest.approx(_MEASURED, abs=6e-4)
    assert runs["26_ensemble"]["mcc"] - runs["10_reference"]["mcc"] == pytest.approx(_SEED_SPREAD, abs=0.005)
    for name in _MEASURED:
        small = abs(_MEASURED[name] - _MEASURED["10_reference"]) <= _SEED_SPREAD
        assert ("no effect was shown" in _measured(name)) == small, name


def test_the_table_names_each_rule_once():
    assert list(_rule_table().index) == [rule.name for rule in RULES]
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_a_starved_start_gets_everything_at_once_without_being_run():
    starved = finding("starved", "fatal", samples_per_epoch=256)
    low = finding("lr-low", lr=1e-3)
    start = RunRecord("04_heavy_mcc", FOURTH, findings=[low, starved, finding("still-rising")])
    found = proposed(start)
    assert found.rule == "fix"
    cfg = TrainConfig(**found.parameters)
    assert {k: getattr(cfg, k) for k in _RECIPE} == _RECIPE
    assert (cfg.mcc_weight, cfg.first_conv, cfg.crop_size) == (0.5, "cycle", 128)
    assert found.reasons == ("Measured starved. Fix starved.", "Measured lr-low. Fix lr-low.")
    assert "0.87" in found.expected
    assert "0.433" in found.expected


def test_a_starved_finding_that_requires_more_than_the_recipe_is_followed():
    starved = finding("starved", "fatal", samples_per_epoch=2048)
    found = proposed(record(findings=[starved], samples_per_epoch=0))
    assert changes(found) == {"samples_per_epoch": 2048}


def test_fatal_findings_win_over_warnings_and_the_upstream_one_over_the_later():
    findings = [
        finding("lr-low", lr=0.5),
        finding("diverged", "fatal", lr=1e-4),
        finding("lr-high", "fatal", lr=3e-4),
    ]
    assert changes(proposed(record(findings=findings))) == {"lr": 3e-4}


@pytest.mark.parametrize("also", [[], [finding("starved", "fatal", samples_per_epoch=256)]])
def test_findings_that_no_parameter_fixes_come_first(also):
    found = next_run([RunRecord("start", FOURTH, findings=[*also, finding("label-turned", "fatal")])])
    assert isinstance(found, NoProposal)
    assert found.advice == ("Measured label-turned. Fix label-turned.",)
    assert "fix the data or code" in str(found)
    assert "Fix label-turned" in found._repr_html_()


def test_a_symptom_blocks_only_when_no_parameter_explains_it():
    stuck = finding("cannot-overfit", "fatal")
    assert isinstance(next_run([record(findings=[stuck])]), NoProposal)
    assert proposed(record(findings=[stuck, finding("lr-low", "fatal", lr=1e-2)])).rule == "fix"
    assert proposed(record(mcc=0.3, findings=[finding("below-baseline", "fatal")])).rule == "measured"


def test_a_start_without_fatal_findings_is_run_as_it_is():
    found = proposed(
        RunRecord("start", {"lr": 2e-3}, findings=[finding("augmentation-off", augment="strong")])
    )
    assert (found.rule, found.changed, found.parameters) == ("first", {}, {"lr": 2e-3})


@pytest.mark.parametrize(
    ("run", "rule", "change"),
    [
        (record(mcc=0.02), "simplify", {"encoder_weights": None, "include_glcm": False}),
        (record(findings=[finding("still-rising")]), "longer", {"epochs": 16}),
        (record(findings=[finding("unstable")], batch_size=32), "stabilise", {"accumulate": 4}),
        (record(findings=[finding("unstable")], batch_size=20), "stabilise", {"batch_size": 8}),
        (
            record(findings=[finding("restarts")], schedule="warm_restarts"),
            "schedule",
            {"schedule": "linear_warmup"},
        ),
        (
            record(findings=[finding("peaked")], schedule="linear_warmup"),
            "schedule",
            {"schedule": "plateau", "select": "inner"},
        ),
        (
            record(findings=[finding("peaked")], schedule="linear_warmup", select="best"),
            "schedule",
            {"schedule": "plateau"},
        ),
        (
            record(findings=[finding("overfitting")], augment="photometric"),
            "regularise",
            {"augment": "auto"},
        ),
        (record(findings=[finding("overfitting")], augment="strong", ema=0.0), "regularise", {"ema": 0.99}),
        (record(findings=[finding("norm-lag", ema=0.9)]), "warnings", {"ema": 0.9}),
        (record(findings=[finding("noise", "note", ema=0.9)]), "measured", None),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_one_finding_one_rule(run, rule, change):
    found = proposed(run)
    assert found.rule == rule
    assert change is None or changes(found) == change
    assert found.reasons
    assert found.expected


def test_rules_apply_in_the_order_of_the_table():
    causes = ("still-rising", "unstable", "peaked", "overfitting")
    findings = [finding(c) for c in reversed(causes)] + [finding("class-shares", n_folds=4)]
    run = record(batch_size=16, augment="photometric", ema=0.0, findings=findings)
    done, seen = [run], []
    for number in range(7):
        found = proposed(*done)
        seen.append(found.rule)
        done.append(record(f"r{number}", 0.1, **found.parameters))
        assert found.based_on == "base"
    assert (
        seen == ["longer", "stabilise", "stabilise", "schedule", "schedule", "regularise", "regularise"][:7]
    )


def missing_lakes(pixels=300, findings=(), **parameters):
    "A run whose maps show no lake."
    cm = np.array([[6900, 60, 40, 0], [100, 2200, 100, 0], [60, 40, 400, 0], [pixels, 0, 0, 0]])
    metrics = summary({"01_01": cm}, {"01_01": cm}, CLASSES) | {"seconds": 600.0}
    return RunRecord("base", parameters, (), metrics, findings)


def test_a_missed_class_is_proposed_what_its_finding_says():
    run = missing_lakes(sampler="weighted")
    (found,) = check_classes({**run.metrics, "parameters": dict(run.parameters)})
    for given in (run, missing_lakes(sampler="weighted", findings=[found])):
        first = proposed(given)
        assert first.rule == "balance"
        assert changes(first).items() >= found.change.items()
        assert "lake: 300 valid pixels" in first.reasons[0]
    again = proposed(run, record("next", 0.1, **first.parameters))
    assert (again.rule, changes(again)) == ("balance", {"epochs": 16})


def test_no_proposal_for_a_class_without_training_tiles_or_with_a_handful_of_pixels():
    for run in (missing_lakes(findings=[finding("class-missing")]), missing_lakes(40)):
        assert proposed(run).rule == "measured"


@pytest.mark.parametrize(
    ("side", "crop", "wider"), [(512, 128, True), (256, 128, False), (512, 256, False), (512, 0, True)]
)
def test_large_tiles_are_proposed_wider_crops(side, crop, wider):
    run = record(mcc=0.6, crop_size=crop, sampler="random")
    run.metrics["tile_confusions"] = {"02_07": {"all": [[side**2 - 5, 3], [1, 1]]}}
    sizes, asked = set(), [run]
    while isinstance(found := next_run(asked, root=Path("/nonexistent")), Proposal):
        sizes.add(changes(found).get("crop_size"))
        asked.append(record(f"next{len(asked)}", 0.1, **found.parameters))
    assert sizes == ({None, 256} if wider else {None})


def test_large_tiles_are_first_proposed_the_best_recipe():
    run = record(mcc=0.6, encoder="resnet34", schedule="warm_restarts", accumulate=2, augment="none")
    run.metrics["tile_confusions"] = {"02_07": {"all": [[512**2 - 5, 3], [1, 1]]}}
    found = proposed(run)
    assert found.rule == "measured"
    assert "0.733" in str(found)
    cfg = TrainConfig(**found.parameters)
    assert all(getattr(cfg, k) == v for k, v in _BEST.items())


def test_the_defaults_are_nearly_the_best_recipe():
    known = read_parameters(ROOT / "configs/best.yaml")
    defaults, best = vars(TrainConfig()), vars(TrainConfig(**known))
    assert {k: best[k] for k in _BEST} == _BEST
    assert known.keys() - {"run", "data_dir"} <= set(_BEST)
    differing = {name for name, value in best.items() if value != defaults[name]}
    assert differing == {"run", "data_dir", "encoder_weights", "augment"}


def test_the_worth_of_the_best_recipe_is_that_of_the_record():
    runs = json.loads((ROOT / "configs/recipe/record.json").read_text())["runs"]
    tiles = [
        np.array(cm) for fold in runs["full, seed 0"]["regions"].values() for cm in fold["tiles"].values()
    ]
    assert len(tiles) == 20
    assert f"{mcc(sum(tiles)):.3f}" in _BEST_RESULT
    known = {
        k: v for k, v in read_parameters(ROOT / "configs/best.yaml").items() if k not in ("run", "data_dir")
    }
    assert runs["full, seed 0"]["parameters"] == known | {"seed": 0}


def test_the_worth_of_mirroring_is_that_of_the_record():
    runs = json.loads((ROOT / "configs/recipe/record.json").read_text())["runs"]
    for name in ("full, seed 0", "no mirroring, full"):
        folds = [runs[name]["regions"][fold] for fold in "12"]
        tiles = [np.array(cm) for fold in folds for cm in fold["tiles"].values()]
        assert len(tiles) == 8
        assert f"{mcc(sum(tiles)):.3f}" in _SUN_RESULT


def test_the_worth_of_context_is_that_of_the_record():
    runs = json.loads((ROOT / "configs/context/record.json").read_text())
    for split in ("regions", "blocks"):
        for name in ("crops of 128 pixels", "crops of 256 pixels"):
            tiles = [np.array(cm) for fold in runs[name][split].values() for cm in fold["tiles"].values()]
            assert len(tiles) == 20
            assert f"{mcc(sum(tiles)):.3f}" in _CONTEXT_RESULT


def test_nothing_is_tried_twice_until_nothing_is_left(tmp_path):
    findings = [finding("overfitting"), finding("still-rising")]
    runs = [record(schedule="warm_restarts", augment="photometric", ema=0.0, findings=findings)]
    for number in range(60):
        found = next_run(runs, root=tmp_path)
        if isinstance(found, NoProposal):
            break
        cfg = TrainConfig(**found.parameters)
        assert all(cfg.differences(r.parameters) for r in runs), found.name
        runs.append(record(f"r{number}", 0.5, **found.parameters))
    assert isinstance(found, NoProposal)
    assert 8 <= len(runs) < 30
    assert "tried" in found.why
    assert runs[-1].parameters["architecture"] == "scratch"


def test_parameters_of_the_machine_make_no_new_config():
    first = proposed(record(findings=[finding("still-rising")]))
    again = record(
        "elsewhere", 0.1, **first.parameters | {"workers": 3, "devices": "cpu", "save_minutes": 0.0}
    )
    assert proposed(record(findings=[finding("still-rising")]), again).rule == "measured"


def test_the_best_run_is_the_base_and_a_report_counts_for_it():
    runs = [record("a", 0.5), record("b", 0.7, lr=2e-3), record("c", float("nan"), lr=3e-3), record("d", 0.6)]
    found = proposed(*runs, report=record(findings=[finding("still-rising")]))
    assert (found.based_on, found.rule, found.parameters) == ("b", "longer", {"lr": 2e-3, "epochs": 16})
    assert found.name == "next-04-longer"


def test_a_change_that_is_no_valid_config_is_skipped():
    bad = finding("norm-small", batch_size=6, accumulate=4)
    assert proposed(record(findings=[bad])).rule == "measured"


def test_failed_runs():
    def failed(error, cause=FailureCause.OTHER):
        return next_run([record("f", None, error=error, cause=cause)])

    assert changes(failed("killed", FailureCause.MEMORY)) == {"accumulate": 2}
    lower = changes(failed("step 7", FailureCause.NOT_FINITE))
    assert lower == {"lr": pytest.approx(1e-3 / 3), "precision": "fp32"}
    unknown = failed("KeyError: 'x'")
    assert isinstance(unknown, NoProposal)
    assert unknown.advice == ("KeyError: 'x'",)
    cut = RunRecord("cut", {}, ({"epoch": 1, "step": 2},))
    assert "resume" in str(next_run([cut]))


def test_runs_with_different_held_out_tiles_are_rejected():
    with pytest.raises(RunError, match=r"a \(fold = 0\) and b \(1\) were scored on different tiles"):
        next_run([record("a"), record("b", fold=1)])
    with pytest.raises(RunError, match="found no run"):
        next_run([])


def test_weights_are_proposed_only_if_their_file_exists(tmp_path):
    assert "init_from" not in proposed(record(), root=tmp_path).parameters
    folder = tmp_path / "outputs/hkh-demo"
    folder.mkdir(parents=True)
    (folder / "model.pt").touch()
    (folder / "config.json").write_text(json.dumps({"patch_size": 128}))
    assert changes(proposed(record(), root=tmp_path)) == {"init_from": "outputs/hkh-demo/model.pt"}
    assert "init_from" not in proposed(record(encoder="resnet34"), root=tmp_path).parameters
    (tmp_path / "data/weights").mkdir(parents=True)
    (tmp_path / "data/weights/tf_efficientnet_lite0.pth").touch()
    found = proposed(record(encoder="resnet34"), root=tmp_path)
    assert found.parameters == {"encoder_weights": "imagenet", "weights_dir": "data/weights"}
    (tmp_path / "data/weights/tf_efficientnet_lite0.pt").touch()  # which of the two?
    assert "encoder" not in changes(proposed(record(encoder="resnet34"), root=tmp_path))


def test_a_saved_proposal_is_a_parameter_file(tmp_path):
    odd = Finding("starved", "fatal", "Line one:\nline # two <b>", "Do.", change={"samples_per_epoch": 256})
    found = proposed(RunRecord("04_heavy_mcc", FOURTH | {"lr_min": 1e-6}, findings=[odd]), prefix="x")
    path = found.save(tmp_path / "new")
    assert [p.name for p in path.parent.iterdir()] == ["x-01-fix.yaml"]
    (job,) = _plan([path], root=tmp_path)
    assert job.run == "x-01-fix"
    assert vars(TrainConfig(**job.parameters)) == vars(TrainConfig(**found.parameters))
    text = path.read_text()
    assert "samples_per_epoch: 256  # was 0" in text
    assert "lr: 0.001  # was 0.0001" in text
    assert max(map(len, text.splitlines())) <= 110
    assert "Why: Line one: line # two <b> Do." in str(found)
    assert "&lt;b&gt;" in found._repr_html_()
    assert yaml.safe_load(text)["run"] == "x-01-fix"


def test_a_record_is_read_from_its_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"lr": 2e-3}))
    (tmp_path / "history.jsonl").write_text(json.dumps({"epoch": 1, "step": 4, "mcc": 0.1}) + "\n")
    plain = {"cause": "restarts", "severity": "warning", "evidence": "e", "fix": "f", "change": {"lr": 1.0}}
    (tmp_path / "diagnosis.json").write_text(json.dumps({"findings": [plain | {"picture": None}]}))
    found = read_record(tmp_path)
    assert (found.cfg.lr, found.score, found.tried) == (2e-3, float("-inf"), True)
    assert found.findings[0].change == {"lr": 1.0}
    (tmp_path / "failed.json").write_text(json.dumps({"error": "boom", "parameters": {}}))
    assert (read_record(tmp_path).error, read_record(tmp_path).cause) == ("boom", FailureCause.OTHER)
    (tmp_path / "failed.json").write_text(json.dumps({"error": "boom", "cause": "memory", "parameters": {}}))
    assert read_record(tmp_path).cause is FailureCause.MEMORY
    with pytest.raises(RunError, match="not a run folder"):
        read_record(tmp_path / "none")
    with pytest.raises(RunError, match="damaged"):
        read_findings([plain | {"cause": "bad luck"}])


def test_runs_whose_epochs_were_chosen_differently_are_not_mixed():
    tiles = {"tile_confusions": {"t": {}}}
    last, best = record("a", 0.5), record("b", 0.6, lr=2e-3)
    last.metrics.update(tiles | {"chosen_on": []})
    best.metrics.update(tiles | {"chosen_on": ["t"]})
    with pytest.raises(RunError, match=r"epochs of b were chosen on the tiles .*, those of a "):
        next_run([last, best])
    best.metrics["chosen_on"] = ["elsewhere"]
    assert proposed(last, best).based_on == "b"
