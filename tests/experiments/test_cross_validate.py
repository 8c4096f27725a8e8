"""Cross-validation: folds as runs, pooled scores, resumption, maps, and the folds as one model."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import nbformat
import numpy as np
import pandas as pd
import pytest
from small_projects import run_cells
from tiny_network import tiny_network

from glacier_nb.config.fields import ConfigError
from glacier_nb.config.training import TrainConfig
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.experiments.command import main
from glacier_nb.experiments.cross_validate import (
    CrossValidation,
    _by_pixel,
    _check_folds,
    _fold_names,
    _folder_for,
    _pooled,
    _together,
    cross_validate,
)
from glacier_nb.experiments.jobs import FailureCause, JobError
from glacier_nb.experiments.run import load_run
from glacier_nb.experiments.train import train
from glacier_nb.files.errors import TileError
from glacier_nb.files.paths import write_text
from glacier_nb.metrics.calibration import Calibration
from glacier_nb.metrics.causes import errors_by_cause
from glacier_nb.metrics.scores import bootstrap_ci, mcc, tile_confusion
from glacier_nb.metrics.significance import paired_gain
from glacier_nb.models.weights import InitialWeights, WeightKind
from glacier_nb.prediction.evaluate import check_evaluation, tile_probs
from glacier_nb.prediction.members import PredictError, load_ensemble
from glacier_nb.runs import score
from glacier_nb.runs.compare import compare_runs
from glacier_nb.runs.folder import RunError, read_metrics, runs_table
from glacier_nb.tiles.read import read_tiles
from glacier_nb.tiles.splits import LeakageError

mpl.use("Agg")
ROOT = Path(__file__).parents[2]
TINY = {
    **{
        "n_folds": 3,
        "crop_size": 32,
        "samples_per_epoch": 8,
        "batch_size": 8,
        "epochs": 2,
        "precision": "fp32",
    },
    **{
        "include_glcm": False,
        "boundary_weight": 0.0,
        "warmup_epochs": 0.0,
        "lr": 0.01,
        "checks": "off",
        "memory_format": "channels_last",
    },
}


def in_this_process(folder, parameters, cwd, lock=None, **how):
    "Train a run as the command does; fold 1 of a run with seed 9 runs out of memory once."
    cfg, mark = TrainConfig(**parameters), Path(folder) / "failed once"
    if (cfg.seed, cfg.fold) == (9, 1) and not mark.exists():
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        raise JobError("MemoryError: no memory left", FailureCause.MEMORY)
    before = dict(os.environ)
    os.environ.update(lock.environment)
    try:
        train(cfg, progress=False)
    finally:
        os.environ.clear()
        os.environ.update(before)


def network(cfg, data):
    "A network of two levels in place of that of the config."
    model, report = tiny_network(cfg, data)
    model.started_from = InitialWeights(WeightKind.RANDOM, seed=cfg.seed)
    return model, report


def empty_network(cfg, channels, classes):
    "The same with the channels and classes of a checkpoint."
    stats = SimpleNamespace(names=range(channels))
    return network(cfg, SimpleNamespace(stats=stats, classes=range(classes)))[0]


def bright_is_ice(train, val, seed):
    "Two quick rules in place of the baselines."
    maps = {t.id: (t.valid & (t.bands[1] > 20_000)).astype(np.uint8) for t in val}
    return {"valid mask": {t.id: t.valid.astype(np.uint8) for t in val}, "boosting": maps}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "An empty working directory with nine small tiles; runs train in this process, with a tiny network."
    root = tmp_path_factory.mktemp("anywhere")
    (root / "data").mkdir()
    (root / "data/demo").symlink_to(cached_demo())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("glacier_nb.experiments.jobs._run_command", in_this_process)
        patch.setattr("glacier_nb.training.callbacks.run_network", network)
        patch.setattr("glacier_nb.prediction.members.empty_network", empty_network)
        patch.setattr(score, "baselines", bright_is_ice)
        patch.setattr(score, "cached_json", lambda path, compute: compute())  # not for other tests to find
        yield root


@pytest.fixture(scope="module")
def tiles(project):
    return read_tiles("data/demo")


@pytest.fixture(scope="module")
def first(project):
    "A cross-validation without a name."
    return cross_validate(TrainConfig(**TINY), progress=False)


@pytest.fixture(scope="module")
def second(first):
    "Another one with two finished folds, copies of the first one's; the third fails at first."
    cfg = TrainConfig(**TINY, run="other", seed=9)
    for path in (first.runs[0], first.runs[2]):
        folder = path.with_name(path.name.replace("demo-cv", "other"))
        shutil.copytree(path, folder)
        found = read_metrics(path)
        write_text(
            folder / "metrics.json", json.dumps(found | {"parameters": found["parameters"] | {"seed": 9}})
        )
    with pytest.raises(JobError, match=r"1 of 3 folds failed: other-fold1 \(MemoryError: no") as error:
        cross_validate(cfg, progress=False)
    assert error.value.cause == FailureCause.MEMORY
    assert not CrossValidation.read("other").finished
    with pytest.raises(RunError, match="2 of 3 folds are finished"):
        _ = CrossValidation.read("other").scores
    with pytest.raises(PredictError, match=r"2 of 3 folds are finished.*other-fold0"):
        load_ensemble("other")
    with pytest.raises(RunError, match="not all folds are finished"):
        compare_runs(["other", "demo-cv"])
    before = read_metrics("outputs/other-fold2")
    found = cross_validate(cfg, progress=False)
    assert read_metrics("outputs/other-fold2") == before
    return found


def test_folds_are_runs_and_hold_out_each_tile_once(first, tiles):
    assert first.folder == Path.cwd() / "outputs/demo-cv"
    assert [path.name for path in first.runs] == [f"demo-cv-fold{k}" for k in range(3)]
    assert [load_run(path).config.fold for path in first.runs] == [0, 1, 2]
    assert sorted(first.held_out) == [t.id for t in tiles]
    assert set(runs_table().index) >= {path.name for path in first.runs}
    assert "demo-cv" not in runs_table().index
    with pytest.raises(
        RunError, match=r"is a cross-validation, not a run: name one of its folds \(demo-cv-fold0"
    ):
        load_run("demo-cv")


def test_scores_are_pooled_from_the_counts_of_all_folds(first):
    counts = [read_metrics(path)["tile_confusions"] for path in first.runs]
    own = {i: np.array(c["all"]) for part in counts for i, c in part.items()}
    assert first.scores["mcc"] == mcc(sum(own.values()))
    assert first.scores["ci95"] == list(bootstrap_ci(list(own.values()), seed=0))
    assert first.scores["per_class"].keys() == {"background", "glacier", "debris", "lake"}
    assert first.folds["mcc"].tolist() == [read_metrics(path)["mcc"] for path in first.runs]
    parts = [read_metrics(path)["baseline_confusions"]["boosting"] for path in first.runs]
    rule = {i: np.array(c["all"]) for part in parts for i, c in part.items()}
    row = first.baselines.loc["boosting"]
    assert row["mcc"] == mcc(sum(rule.values()))
    assert row[["gain", "low", "high"]].tolist() == list(paired_gain(rule, own))
    assert first.scores["baseline_mcc"] == first.baselines["mcc"].max()


def test_best_and_last_epoch_come_from_the_history(first):
    for path, row in zip(first.runs, first.folds.itertuples(), strict=True):
        history = load_run(path).history
        best = history.loc[history["mcc_valid"].idxmax()]
        assert (row.best_epoch, row.best, row.last) == (best["epoch"], best["mcc"], history["mcc"].iloc[-1])


def test_the_same_command_finds_it_and_other_parameters_get_a_number(first, monkeypatch):
    monkeypatch.setattr("glacier_nb.experiments.jobs._run_command", lambda *a, **k: pytest.fail("trained"))
    again = cross_validate(TrainConfig(**TINY), progress=False)
    assert again.record == CrossValidation.read("demo-cv").record
    assert {k: v for k, v in again.scores.items() if k != "runs"} == {
        k: v for k, v in json.loads(json.dumps(first.scores)).items() if k != "runs"
    }
    outputs = first.folder.parent
    assert _folder_for(TrainConfig(**TINY | {"workers": 2}), outputs).name == "demo-cv"
    assert _folder_for(TrainConfig(**TINY | {"seed": 4}), outputs).name == "demo-cv-2"
    assert _folder_for(TrainConfig(**TINY, trial=True), outputs).name == "demo-cv-trial"
    assert _fold_names("x-trial", 2) == ["x-fold0-trial", "x-fold1-trial"]
    with pytest.raises(ConfigError, match=r"demo-cv was begun with other parameters: seed \(saved 0, requ"):
        cross_validate(TrainConfig(**TINY | {"seed": 4}, run="demo-cv"), progress=False)
    with pytest.raises(ConfigError, match="demo-cv-fold0 holds a run"):
        cross_validate(TrainConfig(**TINY, run="demo-cv-fold0"), progress=False)


@pytest.fixture(scope="module")
def mixed(first):
    "Finished folds of which one has another learning rate."
    for k, path in enumerate(first.runs):
        found = read_metrics(path)
        parameters = found["parameters"] | {"lr": 0.5 if k == 1 else TINY["lr"]}
        folder = path.with_name(f"mixed-fold{k}")
        folder.mkdir()
        write_text(folder / "metrics.json", json.dumps(found | {"parameters": parameters}))
    return TrainConfig(**TINY, run="mixed")


def test_a_fold_with_other_parameters_is_an_error(mixed, monkeypatch):
    monkeypatch.setattr("glacier_nb.experiments.jobs._run_command", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(JobError, match=r"1 of 3 folds failed: mixed-fold1.*lr \(saved 0.5, requested 0.01"):
        cross_validate(mixed, progress=False)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"fold": 1}, "fold = 1 is not allowed in a cross-validation: leave it out"),
        ({"resume": True, "run": "x"}, "resume = True is not allowed in a cross-validation: leave it out"),
    ],
)
def test_what_contradicts_a_cross_validation(parameters, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        _check_folds(TrainConfig(**TINY | parameters))


def test_all_tiles_for_training_and_test_tiles_are_for_the_final_model():
    "Whether or not this version has the two parameters."

    class Asked:
        resume, n_folds = False, 3

    for fold, test_dir, words in (
        (None, "", "fold = None"),
        (0, "data/test", "scored once: by the final model"),
    ):
        asked = Asked()
        asked.fold, asked.test_dir = fold, test_dir
        with pytest.raises(ConfigError, match=words):
            _check_folds(asked)


def test_missing_tiles_stop_it_before_a_fold_starts(project):
    with pytest.raises(TileError, match="data/nothing"):
        cross_validate(TrainConfig(**TINY | {"data_dir": "data/nothing"}), progress=False)
    assert not list((project / "outputs").glob("nothing*"))


def test_a_tile_held_out_twice_is_an_error():
    counts = {"all": [[1, 0], [0, 1]], "valid": [[1, 0], [0, 1]]}
    with pytest.raises(RunError, match="02_07: held out by more than one fold"):
        _together([{"02_07": counts}, {"02_07": counts}])


def test_runs_without_counts_of_baselines_and_an_inner_block(first, tmp_path):
    "Of an older version; and of one whose history is that of other tiles."
    for k, path in enumerate(first.runs):
        metrics = read_metrics(path)
        del metrics["baseline_confusions"]
        (tmp_path / f"x{k}").mkdir()
        (tmp_path / f"x{k}/history.jsonl").write_bytes((path / "history.jsonl").read_bytes())
        metrics |= {
            "select": "inner",
            "chosen_on": ["somewhere", *metrics["tile_confusions"]][: 1 + (k == 1)],
        }
        write_text(tmp_path / f"x{k}/metrics.json", json.dumps(metrics))
    record = _pooled(first.config, [tmp_path / f"x{k}" for k in range(3)])
    found = CrossValidation(
        tmp_path, record | {"runs": ["x0", "x1", "x2"], "parameters": first.record["parameters"]}
    )
    assert found.baselines.empty
    assert record["chosen_on"] == [record["folds"][1]["tiles"][0]], "held out by the fold that it chose for"
    assert not {"best", "last"} & set(found.folds)
    assert "no " in str(found)
    assert "baseline to compare with" in str(found)


def test_two_cross_validations_are_compared_on_all_tiles(first, second):
    found = compare_runs(["demo-cv", second])
    assert found.tiles == 9
    assert found.scores.to_dict() == {"demo-cv": first.scores["mcc"], "other": second.scores["mcc"]}
    own = [{i: np.array(c["all"]) for i, c in x.scores["tile_confusions"].items()} for x in (first, second)]
    better, worse = sorted(own, key=lambda cms: -mcc(sum(cms.values())))
    pair = found.pairs.iloc[0]
    assert pair["difference"] == mcc(sum(better.values())) - mcc(sum(worse.values()))
    assert pair[["low", "high"]].tolist() == list(paired_gain(worse, better, 10_000)[1:])


def test_each_tile_is_mapped_by_the_network_that_held_it_out(first, tiles):
    maps = first.held_out_maps(tiles)
    for tile in tiles:
        counts = tile_confusion(maps[tile.id], tile.label, tile.valid, 4)[0]
        recorded = np.array(first.scores["tile_confusions"][tile.id]["all"])
        assert np.abs(counts - recorded).sum() <= 4, "two pixels for the rounding of sums"
    with pytest.raises(RunError, match="no fold held out elsewhere: expected tiles of data/demo"):
        first.held_out_maps([replace(tiles[0], id="elsewhere")])


def test_errors_by_circumstance_and_calibration_are_those_of_all_tiles(first, tiles):
    causes = errors_by_cause(tiles, first.held_out_maps(tiles))
    found = pd.DataFrame(first.scores["causes"]).T
    rows = [
        "shadow",
        "outline",
        "near nodata",
        "tile edge",
        "all",
    ]  # no pixel moves others, as in small objects
    assert (found - causes).loc[rows].abs().max().max() <= 8, "pixels, for the rounding of sums"
    assert found.loc["all", "pixels"] == causes.loc["all", "pixels"]
    counted = Calibration.from_dict(first.scores["calibration"])
    assert counted.top.sum() == sum(t.valid.sum() for t in tiles)
    metrics = [read_metrics(run) for run in first.runs]
    del metrics[0]["causes"]  # of an older version
    assert _by_pixel(metrics) == {}


def test_the_folds_are_one_model(first, tiles):
    new = read_tiles(cached_demo(4, 64, 5))[0]
    members = load_ensemble("demo-cv")
    assert [m.name for m in members] == [path.name for path in first.runs]
    mean = sum(tile_probs([m], new) for m in members) / 3
    np.testing.assert_allclose(first.probabilities(new), mean, atol=1e-6)
    assert (first.predict(new) == mean.argmax(0)).mean() > 0.999
    assert load_ensemble("outputs/demo-cv, demo-cv-fold0/last.pt")[-1].folds == ""
    with pytest.raises(PredictError, match="is a member twice"):
        load_ensemble("demo-cv, demo-cv-fold0")
    (first.folder / "copy").mkdir()
    write_text(first.folder / "copy/cross_validation.json", '{"runs": 3}')
    with pytest.raises(PredictError, match=r"copy/cross_validation\.json is damaged.*delete it and"):
        load_ensemble("demo-cv/copy")
    with pytest.raises(RunError, match=r"damaged: found no parameters, expected .* Delete this file"):
        CrossValidation.read("demo-cv/copy")


def test_scoring_a_tile_that_all_folds_but_one_trained_on_is_a_leak(first, tiles):
    for tile in tiles[:2]:
        with pytest.raises(
            LeakageError, match=r"It is a fold of demo-cv, and each tile is training data of all"
        ):
            check_evaluation(load_ensemble("demo-cv"), [tile], "data/demo")
        copy = replace(tile, id="renamed")
        with pytest.raises(LeakageError, match="trained on pixels of 1"):
            check_evaluation(load_ensemble("demo-cv"), [copy], "data/elsewhere")
    with pytest.raises(LeakageError, match="It is a fold of demo-cv"):
        train(TrainConfig(**TINY | {"ensemble": "demo-cv", "run": "leaky"}), progress=False)
    new = read_tiles(cached_demo(4, 64, 5))
    notes = check_evaluation(load_ensemble("demo-cv"), new, cached_demo(4, 64, 5))
    assert all("with other pixels" in note for note in notes), "another landscape at the same place"


def test_a_run_of_other_tiles_is_scored_with_the_folds_as_members(first, project):
    (project / "data/new").symlink_to(cached_demo(4, 64, 5))
    small = {"data_dir": "data/new", "n_folds": 2, "epochs": 1, "ensemble": "demo-cv", "run": "with-folds"}
    found = train(TrainConfig(**TINY | small), progress=False).metrics["evaluation"]
    assert found["asked"] == "ensemble"
    assert found["choices"]["ensemble"]["passes"] == 4


def test_display_and_reading(first, second):
    text, html = str(first), first._repr_html_()
    for words in ("3 folds, MCC", "interval over 9 tiles", "boosting by", "in the last epoch"):
        assert words in text
    assert "<table" in html
    assert "lake" in html
    assert repr(first) == f"CrossValidation('outputs/demo-cv', 3 folds, MCC {first.scores['mcc']:.3f})"
    with pytest.raises(RunError, match=r"no cross-validation 'non': found demo-cv, .*other"):
        CrossValidation.read("non")
    assert isinstance(first.folds, pd.DataFrame)


def test_the_command_prints_the_scores_and_tells_failures_apart(first, second, mixed, capsys):
    given = [word for k, v in TINY.items() for word in ("-p", k, str(v))]
    assert main(["cross-validate", *given]) == 0
    assert "interval over 9 tiles" in capsys.readouterr().out
    assert main(["cross-validate", *given, "-p", "run", "mixed"]) == 1
    assert "1 of 3 folds failed" in capsys.readouterr().err
    assert main(["compare", "demo-cv", "other"]) == 0
    assert "9 tiles, each held out once" in capsys.readouterr().out
    assert main(["cross-validate", *given, "-p", "fold", "2"]) == 2
    assert "fold = 2 is not allowed" in capsys.readouterr().err


def parameters(name: str) -> list[str]:
    "The lines of the parameters cell of a notebook."
    cells = nbformat.read(ROOT / "nbs" / name, 4).cells
    (cell,) = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    return cell.source.splitlines()


def test_the_notebook_has_the_parameters_of_train():
    "Without those that a cross-validation sets itself: copy the others from train.ipynb."
    its_own = ("fold", "resume", "test_dir")
    expected = [line for line in parameters("train.ipynb") if line.split(" = ")[0] not in its_own]
    assert parameters("cross_validate.ipynb")[3:] == expected
    assert [line.split(" = ")[0] for line in parameters("cross_validate.ipynb")[1:3]] == [
        "n_jobs",
        "compare_with",
    ]


def run_notebook(**given) -> dict:
    "Run the notebook's cells in this process; its variables."
    return run_cells(ROOT / "nbs/cross_validate.ipynb", **given)


def test_the_notebook_shows_scores_map_and_difference(first, second):
    space = run_notebook(**TINY, compare_with="other")
    assert space["found"].scores["mcc"] == first.scores["mcc"]
    for name in ("map", "tiles", "difference"):
        assert (first.folder / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
    assert set(space["pair"].scores.index) == {"demo-cv", "other"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"fold": 2}, "fold = 2 is not allowed in a cross-validation"),
        ({"n_job": 2}, "unknown parameter 'n_job': did you mean 'n_jobs'"),
        ({"compare_with": "nothing"}, "no cross-validation 'nothing'"),
    ],
)
def test_the_notebook_stops_at_wrong_parameters(project, given, words):
    with pytest.raises((ConfigError, RunError), match=words):
        run_notebook(**TINY | given)
