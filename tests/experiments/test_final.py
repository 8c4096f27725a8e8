"""A final model in one command: all tiles for training, tiles of another folder scored once."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from made_up import noise_tile
from small_projects import run_cells, small_project
from tile_folders import rewrite

from glacier_nb.checks.diagnosis import diagnose
from glacier_nb.config.fields import ConfigError
from glacier_nb.config.training import TrainConfig
from glacier_nb.data.storage import run_tiles
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.experiments.autopilot import autopilot
from glacier_nb.experiments.proposals import NoProposal, next_run
from glacier_nb.experiments.run import load_run
from glacier_nb.experiments.train import train
from glacier_nb.files.errors import TileCause, TileError
from glacier_nb.landsat import BANDS
from glacier_nb.plot.curves import curves_of_runs, training_curves
from glacier_nb.prediction.members import CodingError
from glacier_nb.report.findings import Status
from glacier_nb.runs.compare import compare_runs
from glacier_nb.runs.folder import RunError, class_scores, read_history, runs_table, verdict
from glacier_nb.runs.score import evaluation_members
from glacier_nb.tiles.read import read_tiles
from glacier_nb.tiles.splits import LeakageError
from glacier_nb.training.callbacks import make_learner, run_path
from glacier_nb.training.recipe import prepare_data

ROOT = Path(__file__).parents[2]
SMALL = {
    **{
        "encoder": "tu-test_resnet",
        "encoder_weights": None,
        "decoder_attention": "none",
        "include_glcm": False,
    },
    **{"crop_size": 32, "samples_per_epoch": 16, "batch_size": 8, "epochs": 1, "n_folds": 3},
    **{"precision": "fp32", "devices": "cpu", "checks": "off"},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "Six tiles to train on and three further south, the working directory."
    root = small_project(tmp_path_factory.mktemp("new") / "project", "train.ipynb")
    shutil.copytree(cached_demo(9, 64, 3), root / "data/north")
    for path in (root / "data/north").rglob("*_03_0*.tif"):
        south = root / "data/south" / path.relative_to(root / "data/north")
        south.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, south)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield root


def config(**changed):
    "A config of the six tiles."
    return TrainConfig(**{**SMALL, "data_dir": "data/north", **changed})


@pytest.fixture(scope="module")
def final(project):
    "The notebook, as with `-p fold none -p test_dir data/south`."
    given = SMALL | {"run": "final", "fold": "none", "test_dir": "data/south", "data_dir": "data/north"}
    run_cells(project / "nbs/train.ipynb", **given)
    return load_run("final")


def test_the_final_model_is_scored_on_the_test_alone(final):
    found = final.metrics
    assert (found["mcc"], found["ci95"], found["tile_confusions"]) == (None, [None, None], {})
    assert {"mcc", "mcc_valid", "val_loss"}.isdisjoint(final.history.columns)
    test = found["test"]
    assert (test["folder"], test["tiles"], sorted(test["tile_confusions"])) == (
        "data/south", 3, ["03_01", "03_02", "03_03"],
    )  # fmt: skip
    pooled = sum(np.array(cm["all"]) for cm in test["tile_confusions"].values())
    assert pooled.tolist() == test["confusion"]
    assert test["baseline_mcc"] == max(test["baselines"].values()) > 0
    assert test["unchecked"] == []
    figures = {p.stem for p in (final.folder / "figures").iterdir()}
    assert {"curves", "test_per_tile", "test_panels"} <= figures
    assert not {"confusion", "per_tile", "panels"} & figures


def test_its_map_is_the_one_that_was_scored(project, final):
    for tile in read_tiles("data/south"):
        cm = np.zeros((4, 4), int)
        np.add.at(cm, (tile.label, final.predict(tile)), 1)
        assert cm.tolist() == final.metrics["test"]["tile_confusions"][tile.id]["all"]


def test_its_split_is_recorded(final):
    record = json.loads((final.folder / "splits.json").read_text())
    assert (len(record["train"]), record["val"]) == (6, [])
    assert (record["test"], record["test_dir"]) == (["03_01", "03_02", "03_03"], "data/south")


def test_everything_that_reads_runs_reads_it(final):
    found = final.metrics
    assert class_scores(found).loc["all classes", "MCC"] == found["test"]["mcc"]
    assert verdict(found).startswith("On the 3 test tiles of data/south: The network's MCC of ")
    assert "chosen on the tiles" not in verdict(found) + str(final)
    assert f"test MCC {found['test']['mcc']:.3f}" in repr(final)
    assert "data/south" in str(final)
    assert "data/south" in final._repr_html_()
    row = runs_table().loc["final"]
    assert (row["test_mcc"], row["state"]) == (found["test"]["mcc"], "finished")
    assert np.isnan(row["mcc"])
    history = read_history(final.folder)
    assert [ax.get_label() for ax in training_curves(history).axes] == ["loss", "lr"]
    curves_of_runs({"final": history})


def test_the_diagnosis_says_what_it_cannot_check(final):
    report = diagnose(final.folder, live=False)
    by_name = {c.name: c for c in report.checks}
    assert (by_name["split"].status, by_name["split"].reason) == (
        Status.SKIPPED, "no tile is held out (fold = none)",
    )  # fmt: skip
    for name in ("network inputs", "augmentation", "history", "loss"):
        assert by_name[name].status is not Status.SKIPPED, by_name[name].reason
    assert "6 training, none held out, 3 for the test" in report.facts["tiles"]


def test_a_run_without_held_out_tiles_chooses_nothing(final, tmp_path):
    with pytest.raises(RunError, match=r"final held out no tile \(fold = none\)"):
        compare_runs({"final": final.metrics, "other": final.metrics})
    found = next_run(["final"])
    assert isinstance(found, NoProposal)
    assert "holds out no tile" in found.why
    with pytest.raises(ConfigError, match="fold = none, and no score to raise: set fold = 0"):
        autopilot(final.folder, progress=False)


def test_with_a_fold_there_are_both_scores(project, monkeypatch):
    monkeypatch.setattr("glacier_nb.runs.score._baselines", lambda *tiles: {})  # they take seconds
    run = train(config(run="both", fold=1, test_dir="data/south", tta="flips", trial=True), progress=False)
    found = run.metrics
    assert found["mcc"] is not None
    assert found["test"]["tiles"] == 2  # of a trial
    assert found["evaluation"]["asked"] == found["test"]["evaluation"]["asked"] == "tta"
    assert "On the test tiles of data/south" in str(run)


def test_without_a_test_there_is_no_score(project):
    run = train(config(run="bare", fold=None), progress=False)
    assert "test" not in run.metrics
    assert "this run has no score" in str(run)
    assert "all classes" not in str(run) + run._repr_html_()
    assert repr(run).endswith("finished)")
    table = runs_table()
    assert table.loc["bare", "test_mcc"] != table.loc["bare", "test_mcc"]


@pytest.fixture
def south(project, tmp_path):
    "A copy of the test tiles, to be changed."
    return shutil.copytree(project / "data/south", tmp_path / "south")


def test_a_missing_folder_and_labels_are_named_before_training(project, south):
    with pytest.raises(TileError, match="no such folder"):
        run_tiles(config(fold=None, test_dir="data/nothing"))
    shutil.rmtree(south / "label")
    with pytest.raises(TileError, match=r"cannot be scored: 03_01 \(no label\), .*add a folder label/") as e:
        run_tiles(config(fold=None, test_dir=str(south)))
    assert e.value.cause is TileCause.UNLABELLED


def test_other_classes_are_named_and_the_fix_works(project, south):
    for path in (south / "label").iterdir():
        rewrite(path, lambda a: np.where(a > 0, 255, 0).astype(a.dtype))
    with pytest.raises(
        TileError, match=r"labels of background/glacier\. Expected background/glacier/debris/lake"
    ) as e:
        run_tiles(config(fold=None, test_dir=str(south)))
    assert 'set classes = "binary"' in str(e.value)
    for folder in (south, project / "data/south"):
        tiles = run_tiles(config(fold=None, test_dir=str(folder), classes="binary"))
        assert {t.classes for t in tiles.test} == {("background", "glacier")}


def test_a_run_is_not_resumed_with_other_test_tiles(project, south):
    "Its training labels depend on them."
    cfg = config(run="cut", fold=None, test_dir=str(south))
    make_learner(cfg, prepare_data(cfg, run_tiles(cfg)), run_path(cfg), progress=False).fit()
    for path in south.rglob("*_03_01.tif"):
        path.unlink()
    again = replace(cfg, resume=True)
    learner = make_learner(again, prepare_data(again, run_tiles(again)), run_path(again), progress=False)
    with pytest.raises(
        ConfigError, match=r"is from other tiles than those in .*north and .*south: resume with"
    ):
        learner.fit()


def test_another_coding_is_named_before_training(project, south):
    for path in south.glob("Band[1-4]/*.tif"):
        rewrite(path, lambda a: np.where(a > 0, a * 2.75e-5 - 0.2, 0).astype("float32"), dtype="float32")
    cfg = config(fold=None, test_dir=str(south))
    data = prepare_data(cfg, run_tiles(cfg))
    with pytest.raises(CodingError, match="another coding than the training tiles of this run") as e:
        evaluation_members(cfg, data)
    assert set(e.value.bands) <= set(BANDS)


def test_a_test_tile_that_is_trained_on_is_an_error(project, south):
    for path in Path("data/north").rglob("*_01_02.tif"):
        copy = south / path.relative_to("data/north")
        shutil.copy(path, copy.with_name(copy.name.replace("01_02", "09_09")))
    cfg = config(fold=None, test_dir=str(south))
    with pytest.raises(LeakageError, match="same pixels of 01_02 and 09_09") as e:
        prepare_data(cfg, run_tiles(cfg))
    assert e.value.fix == "move the files of 09_09 out of the folder of test tiles"
    for path in south.rglob("*_09_09.tif"):
        path.unlink()
    assert len(prepare_data(cfg, run_tiles(cfg)).test_tiles) == 3


def test_regions_of_the_config():
    places = [Affine(30, 0, 1200 * (k % 5), 0, -30, -1200 * (k // 5)) for k in range(25)]
    tiles = [replace(noise_tile(f"t{k:02}", k, (40, 40)), transform=at) for k, at in enumerate(places)]
    data = prepare_data(config(split="regions", n_folds=5, boundary_weight=0.0), tiles)
    assert data.split.regions
    assert data.split.buffer == 40
    assert len(data.split.dropped) + len(data.train) + len(data.val) == 25
    assert "not used, within 40 pixels of these: " in repr(data)
