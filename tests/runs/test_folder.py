"""The table of runs, from folders in every state, damaged files and concurrent access."""

import fcntl
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from glacier_nb.config.training import TrainConfig
from glacier_nb.experiments.run import load_run
from glacier_nb.files.locks import LockError, run_lock
from glacier_nb.files.paths import write_text
from glacier_nb.landsat import CLASSES
from glacier_nb.metrics.scores import summary
from glacier_nb.runs.folder import (
    RunError,
    _differing_parameters,
    chosen_on_scored,
    class_scores,
    find_runs,
    read_history,
    read_metrics,
    run_parameters,
    run_state,
    runs_table,
    verdict,
)


def metrics(right: int) -> dict:
    "Metrics of a run with `right` correct pixels in a hundred."
    matrix = np.full((4, 4), 0)
    np.fill_diagonal(matrix, right)
    matrix[:, 0] += 100 - right
    cms = {"a": matrix, "b": 2 * matrix}
    return summary(cms, cms, CLASSES) | {"baseline_mcc": 0.5, "selected_epoch": 2, "seconds": 60.0}


def run(outputs: Path, name: str, epochs: int = 3, right: int | None = None, **parameters) -> Path:
    "A run folder with this number of epochs; finished when `right` is given."
    folder = outputs / name
    folder.mkdir(parents=True)
    write_text(folder / "config.json", json.dumps({"run": name, **parameters}))
    lines = [json.dumps({"epoch": e, "step": 5 * e, "seconds": 30.0}) + "\n" for e in range(1, epochs + 1)]
    write_text(folder / "history.jsonl", "".join(lines))
    if right is not None:
        write_text(folder / "metrics.json", json.dumps(metrics(right)))
    return folder


@pytest.fixture
def outputs(tmp_path):
    "Runs in every state, and other files."
    base = tmp_path / "outputs"
    run(base, "02_low", right=60, lr=0.01, resume=True)
    run(base, "01_high", right=90, fold=2, data_dir="data/other")
    run(base, "03_interrupted", epochs=1)
    failed = run(base, "04_failed", epochs=0, class_weights="inverse")
    write_text(failed / "failed.json", json.dumps({"error": "Traceback\n ...\nTrainingError: loss is NaN\n"}))
    early = base / "05_early"
    early.mkdir()
    write_text(early / "failed.json", json.dumps({"error": "", "parameters": {"epochs": 99}}))
    (base / "figures").mkdir()
    write_text(base / "README.md", "no run")
    return base


def test_the_table_has_one_row_per_run_and_the_differences(outputs):
    table = runs_table(outputs)
    assert list(table.index) == ["01_high", "02_low", "03_interrupted", "04_failed", "05_early"]
    assert list(table["state"]) == ["finished", "finished", "unfinished", "failed", "failed"]
    assert list(table.columns[:4]) == ["state", "mcc", "low", "high"], "scores come first"
    names = list(table.columns)
    assert names[names.index("baseline_mcc") + 1 : names.index("select")] == [
        "fold",
        "class_weights",
        "epochs",
        "lr",
    ]
    assert table.loc["01_high", ["fold", "lr", "data_dir"]].tolist() == [2, 0.001, "data/other"]
    assert table.loc["05_early", "epochs"] == 99
    scores = table.loc["02_low"]
    expected = metrics(60)
    assert [scores[k] for k in ("mcc", "mcc_valid", "low", "high")] == [expected["mcc"]] * 2 + expected[
        "ci95"
    ]
    assert table.loc["01_high", ["epochs_done", "steps_done", "seconds", "selected_epoch"]].tolist() == [
        3,
        15,
        90.0,
        2,
    ]
    assert table.loc["03_interrupted", ["epochs_done", "steps_done", "seconds"]].tolist() == [1, 5, 30.0]
    assert table["mcc"].isna().tolist() == [False, False, True, True, True]
    assert table["error"].fillna("").tolist() == ["", "", "", "TrainingError: loss is NaN", "?"]


def test_metrics_show_scores_and_not_thousands_of_counts(outputs):
    found = read_metrics(outputs / "01_high")
    assert found == json.loads((outputs / "01_high/metrics.json").read_text())
    assert isinstance(found, dict)
    assert repr(found).startswith(f"Metrics(MCC {found['mcc']:.3f}, MCC valid {found['mcc_valid']:.3f}")
    assert len(repr(found)) < 220
    page = found._repr_html_()
    assert "<summary>" in page
    assert "glacier" in page
    assert len(page) < 12_000
    assert repr(type(found)({"seconds": 1})) == "Metrics(1 entries: seconds)"
    assert "seconds" in type(found)({"seconds": 1})._repr_html_()


def test_only_what_differs_between_the_chosen_runs(outputs):
    table = runs_table(outputs, "02*, 03_interrupted")
    assert list(table.index) == ["02_low", "03_interrupted"]
    assert "fold" not in table
    assert "error" not in table
    assert find_runs(outputs, ["0[12]*"]) == ["01_high", "02_low"]
    assert (
        find_runs(outputs, "")
        == find_runs(outputs)
        == sorted(table.index.union(["01_high", "04_failed", "05_early"]))
    )


def test_no_run_at_all(tmp_path):
    assert runs_table(tmp_path / "nothing").empty
    with pytest.raises(RunError, match="found none"):
        runs_table(tmp_path, "a*")


def test_an_unknown_name_gets_the_nearest(outputs):
    with pytest.raises(RunError, match="did you mean '01_high'"):
        runs_table(outputs, "01_hih")
    with pytest.raises(RunError, match="has no run 'figures'"):
        runs_table(outputs, "figures")


def test_a_run_in_its_first_seconds_has_a_row(outputs):
    (outputs / "06_new").mkdir()
    with run_lock(outputs / "06_new"):
        table = runs_table(outputs)
        assert table.loc["06_new", "state"] == "running"
        assert run_parameters(outputs / "06_new") == {}
        with pytest.raises(LockError, match="in use"), run_lock(outputs / "06_new"):
            pass
    assert run_state(outputs / "06_new") is None
    assert "06_new" not in runs_table(outputs).index


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", '{"mcc": ', "is not JSON"),
        ("metrics.json", "[1]", "holds list, expected an object"),
        ("metrics.json", '{"mcc": 0.5}', "has no mcc_valid, selected_epoch, ci95"),
        ("config.json", "", "is not JSON"),
        ("history.jsonl", '{"epoch": 1, "step": 5}\n{"epoch": 2', "line 2"),
        ("history.jsonl", '{"loss": 1}\n', "line 1"),
        ("history.jsonl", "3\n", "line 1"),
    ],
)
def test_a_damaged_file_is_named(outputs, name, content, message):
    write_text(outputs / "02_low" / name, content)
    with pytest.raises(RunError, match=rf"02_low.{name}") as error:
        runs_table(outputs)
    assert message in str(error.value)


def test_binary_files_are_named(outputs):
    for name, read in (("metrics.json", read_metrics), ("history.jsonl", read_history)):
        (outputs / "02_low" / name).write_bytes(b"\xff\xfe\x00")
        with pytest.raises(RunError, match=name):
            read(outputs / "02_low")


def test_parameters_of_another_version_are_read(outputs):
    write_text(outputs / "02_low/config.json", json.dumps({"gone": 7}))
    found = run_parameters(outputs / "02_low")
    assert found["gone"] == 7
    assert found["epochs"] == TrainConfig().epochs
    assert _differing_parameters([found, run_parameters(outputs / "03_interrupted"), {}]) == ["gone"]


def test_a_run_prints_what_is_there(outputs):
    shown = str(load_run(outputs / "01_high"))
    assert "all classes" in shown
    assert "beats" in shown
    assert "metrics.json" in shown
    assert "model.pt" not in shown


def test_the_sentence_names_the_strongest_baseline_and_missed_classes():
    cm = np.array([[700, 10, 0, 0], [20, 300, 0, 0], [5, 5, 90, 0], [30, 40, 0, 0]])
    found = summary({"a": cm}, {"a": cm}, CLASSES) | {"baseline_mcc": 0.5}
    rules = {"baselines": {"boosting": 0.4, "boosting with context": 0.5}}
    assert "beats the strongest baseline's 0.500 (boosting with context)" in verdict(found | rules)
    assert "beats the strongest baseline's 0.500 by" in verdict(found)
    assert "The maps miss lake (0 of 70 pixels found)." in verdict(found)
    assert "miss" not in verdict(metrics(70))


def test_a_pre_training_run_has_a_row_without_a_baseline(outputs):
    from glacier_nb.runs.compare import comparable

    reading = {"patch_size": 128, "min_glacier": 0.1, "thermal": True, "water": "none"}
    folder = run(outputs, "hkh-demo", lr=0.002)
    content = {k: v for k, v in metrics(70).items() if k not in ("baseline_mcc", "tile_confusions")}
    write_text(folder / "metrics.json", json.dumps(content | {"parameters": {"lr": 0.002, **reading}}))
    table = runs_table(outputs)
    assert list(table.index[:3]) == ["01_high", "hkh-demo", "02_low"]
    assert np.isnan(table.loc["hkh-demo", "baseline_mcc"])
    assert table.loc["02_low", "baseline_mcc"] == 0.5
    assert table.loc["hkh-demo", "mcc"] == content["mcc"]
    assert len(runs_table(outputs, "hkh-demo")) == 1
    assert "has no baseline" in verdict(read_metrics(folder))
    assert comparable({"hkh-demo": read_metrics(folder)}) == []
    write_text(folder / "pretrain.ipynb", "{}")
    shown = str(load_run(folder))
    assert "has no baseline" in shown
    assert "pretrain.ipynb" in shown
    write_text(folder / "config.json", json.dumps({"lr": 0.002, **reading}))  # extra names are columns
    assert runs_table(outputs).loc["hkh-demo", "patch_size"] == 128


def test_reading_the_state_does_not_block_a_job(tmp_path):
    with run_lock(tmp_path):
        pass
    with open(tmp_path / ".lock") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        assert run_state(tmp_path) is None  # while another process reads it
        threading.Timer(0.3, fcntl.flock, (reader, fcntl.LOCK_UN)).start()
        begun = time.monotonic()
        with run_lock(tmp_path):
            assert time.monotonic() - begun > 0.2
            assert run_state(tmp_path) == "running"


def test_reading_the_state_writes_nothing(tmp_path, monkeypatch):
    with run_lock(tmp_path):
        pass
    opened = []

    def read_only(file, mode="r", *args, **kwargs):
        opened.append(mode)
        if mode != "r":
            raise PermissionError(file)
        return open(file, mode, *args, **kwargs)

    monkeypatch.setattr("glacier_nb.files.locks.open", read_only, raising=False)
    assert run_state(tmp_path) is None
    assert opened == ["r"]


def test_the_table_has_the_mean_of_the_classes_and_what_chose_the_epoch(outputs):
    new = metrics(70) | {"select": "last", "selected_epoch": 3, "chosen_on": []}
    gone = ("macro_mcc", "selected_epoch")
    old = {k: v for k, v in metrics(80).items() if k not in gone} | {"best_epoch": 1}
    for name, content in (("07_new", new), ("08_old", old)):
        write_text(run(outputs, name) / "metrics.json", json.dumps(content))
        written = {k: v for k, v in vars(TrainConfig()).items() if name == "07_new" or k != "select"}
        write_text(outputs / name / "config.json", json.dumps(written))
    table = runs_table(outputs)
    assert table.loc[["07_new", "08_old"], "select"].tolist() == ["last", "best"]
    assert table.loc[["07_new", "08_old"], "selected_epoch"].tolist() == [3, 1]
    assert table.loc["08_old", "macro_mcc"] == metrics(80)["macro_mcc"]  # from its confusion matrix
    assert list(table.columns).count("select") == 1
    assert [chosen_on_scored(m) for m in (new, old)] == [False, True]
    assert "chosen on the tiles it is scored on" not in verdict(new)
    assert verdict(old).endswith("Its epoch was chosen on the tiles it is scored on.")
    assert chosen_on_scored(new | {"chosen_on": ["a"]})
    assert not chosen_on_scored(new | {"chosen_on": ["elsewhere"]})
    scores = class_scores(old)["MCC"]
    assert scores["mean of classes"] == pytest.approx(scores.iloc[2:].mean())
