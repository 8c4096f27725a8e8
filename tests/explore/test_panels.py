"""Panels beside the explorer: tiles in place, thresholds, doubtful labels, a run that trains elsewhere."""

import io
import json
import os
import re
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from small_projects import run_cells

from glacier_nb import progress
from glacier_nb.config.fields import ConfigError
from glacier_nb.config.training import TrainConfig
from glacier_nb.explore import panels
from glacier_nb.explore.panels import Explorer, _look, _pace, _Sheet, _State, _Watch
from glacier_nb.files.locks import run_lock
from glacier_nb.metrics.scores import confusion, mcc
from glacier_nb.runs.folder import RunError

ROOT = Path(__file__).parents[2]
EPOCH = {"step": 1, "train_loss": 0.5, "val_loss": 0.6, "mcc": 0.2, "mcc_valid": 0.25, "seconds": 20.0}


@pytest.fixture
def explorer(here):
    return Explorer("data/demo", "cv")


@pytest.fixture
def page(monkeypatch):
    "As if somebody looked at the notebook."
    monkeypatch.setattr(progress, "_has_page", lambda: True)


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))


def test_each_point_of_the_overview_is_a_pixel_of_a_tile(explorer):
    tiles = [explorer.data.tiles[i] for i in explorer.data.ids]
    sheet = _Sheet(tiles, 1000)
    assert sheet.shape == (96, 96)
    images = {t.id: np.asarray(t.read().label)[..., None].repeat(3, 2) for t in tiles}
    whole = sheet.assemble(images, (9, 9, 9))
    for row, col in ((0, 0), (47, 48), (95, 95), (50, 3)):
        name, at = sheet.at(row, col)
        assert (whole[row, col] == explorer.data[name].label[at]).all()
    assert sheet.at(96, 0) is None
    half = _Sheet(tiles, 48)
    assert half.at(30, 30) == ("02_02", (13, 13))


def test_a_click_in_the_overview_opens_the_tile(explorer, page):
    box = explorer.overview().widget
    (left, right), view, key = box.children[0].children, box.children[1], box.children[3]
    assert left.value == ("label",)
    label = opened(view.left)
    tile = explorer.data["02_01"]
    assert_array_equal(label[48:, :48, 3] > 0, (tile.label > 0) & tile.valid)
    assert not view.right
    view.pixel = [60, 10]
    assert (explorer.tile, explorer.pixel) == ("02_01", (12, 10))
    right.value = ("errors", "cv")
    errors = opened(view.right)
    wrong = (explorer.runs["cv"].map(tile) != tile.label) & tile.valid
    assert (errors[48:, :48, 3] > 0)[wrong].all()
    assert all(name in key.value for name in ("debris", "false positive", "wrong class"))
    assert "image/png" not in explorer.overview()._repr_mimebundle_()


def test_thresholds_show_what_a_slider_asks_for(explorer, page):
    box = explorer.thresholds().widget
    threshold, size, text, pictures, _keys = box.children
    maps = explorer.runs["cv"]
    assert threshold.value == 0.5
    before = pictures.children[0].value
    threshold.value, size.value = 0.3, 12
    counts = 0
    for name in explorer.data.ids:
        tile = explorer.data[name]
        probs = maps.probabilities(tile)
        ice = 1 - probs[0] >= 0.3
        found = np.where(panels.MapThresholds.map_at(probs, 0.3, 12) > 0, 1 + probs[1:].argmax(0), 0)
        counts = counts + confusion(found * ice, tile.label, 4)
    assert f"MCC {mcc(counts):.3f}" in text.value
    assert "too high because it is chosen" in text.value
    assert "all pixels of 4 held-out tiles (nodata counted as background" in text.value
    assert "false negative" in pictures.children[1].children[2].value
    assert pictures.children[0].value != before
    picture = pictures.children[1].children[1].value
    explorer.step(1)
    assert pictures.children[1].children[1].value != picture, "errors of the explorer's tile"


def test_thresholds_need_held_out_tiles(here):
    with pytest.raises(RunError, match="found 'other', expected cv"):
        Explorer("data/demo", "cv").thresholds("other")
    note = Explorer("data/demo").thresholds()
    assert "nothing to choose on" in note._repr_mimebundle_()["text/html"]


def test_doubtful_labels_of_a_checked_run_open_at_a_click(explorer, page, monkeypatch):
    monkeypatch.setattr(progress, "_has_page", lambda: False)
    assert "papermill nbs/label_check.ipynb out.ipynb -p run cv" in repr(explorer.doubts())
    space = run_cells(ROOT / "nbs/label_check.ipynb", run="cv", planted=4, closeups=1, threshold=0.26)
    table = pd.read_csv("outputs/cv/label_check/patches.csv", dtype={"tile": str})
    assert len(table) == len(space["check"].patches) > 0
    figures = Path("outputs/cv/label_check/figures")
    assert {p.name for p in figures.iterdir()} == {"planted.png", "patches.png"}
    assert "planted errors are among" in space["trust"](space["errors"], len(space["changed"].patches))
    assert "<table" in explorer.doubts()._repr_mimebundle_()["text/html"]
    monkeypatch.setattr(progress, "_has_page", lambda: True)
    explorer.widget  # noqa: B018
    _text, chosen, buttons, _keys = explorer.doubts("cv").widget.children
    chosen.index = len(table) - 1
    last = table.iloc[-1]
    assert (explorer.tile, explorer.pixel) == (last["tile"], (last["row"], last["col"]))
    assert (explorer.left, explorer.right) == (("outline", "cv"), ("none",))
    assert explorer.view.place[:2] == [last["row"], last["col"]]
    previous, following = buttons.children
    following.click()
    assert chosen.index == 0
    assert explorer.tile == table.iloc[0]["tile"]
    previous.click()
    assert chosen.index == len(table) - 1


def test_the_label_check_takes_a_single_run_and_names_wrong_parameters(here):
    space = run_cells(
        ROOT / "nbs/label_check.ipynb", run="cv-fold1", planted=0, closeups=0, out="outputs/elsewhere"
    )
    assert [t.id for t in space["tiles"]] == ["02_01", "02_02"]
    assert "errors" not in space
    assert Path("outputs/elsewhere/label_check.gpkg").is_file()
    wrong = (({"planted": -1}, "0 or more"), ({"run": "cw"}, "no run 'cw'"), ({"rnu": "cv"}, "rnu"))
    for given, words in wrong:
        with pytest.raises((ConfigError, RunError), match=words):
            run_cells(ROOT / "nbs/label_check.ipynb", **given)


def begin(name: str, epochs: int = 4) -> Path:
    "A run that has begun."
    folder = Path("outputs", name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(asdict(TrainConfig(run=name, epochs=epochs))))
    return folder


def write_epochs(folder: Path, n: int) -> None:
    lines = [json.dumps(EPOCH | {"epoch": k}) + "\n" for k in range(1, n + 1)]
    (folder / "history.jsonl").write_text("".join(lines))


def test_the_state_of_a_run_comes_from_its_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    now = time.time()
    assert _look("a", now)[0] is _State.NOT_BEGUN
    folder = begin("a")
    with run_lock(folder):
        assert _look("a", now)[0] is _State.STARTING
        write_epochs(folder, 2)
        state, text, history = _look("a", now)
        assert (state, len(history)) == (_State.TRAINING, 2)
        assert text.startswith("epoch 2 of 4; an epoch takes 20 s")
        os.utime(folder / "history.jsonl", (now - 3600, now - 3600))
        assert _look("a", now)[0] is _State.STILL
    state, text, _ = _look("a", now)
    assert state is _State.INTERRUPTED
    assert "glacier-nb train --config outputs/a/config.json -p resume True" in text
    (folder / "failed.json").write_text(json.dumps({"error": "Traceback\nMemoryError: no memory"}))
    assert _look("a", now)[:2] == (_State.FAILED, "MemoryError: no memory")
    scores = {"mcc": 0.5, "ci95": [None, None], "per_class": {}, "chosen_on": []}
    (folder / "metrics.json").write_text(json.dumps(scores))
    state, text, _ = _look("a", now)
    assert state is _State.FINISHED
    assert "MCC of 0.500" in text


def test_the_pace_of_short_and_long_epochs():
    quick = [EPOCH | {"seconds": 2.0}] * 3
    assert _pace(9, quick, 200)[0] is _State.TRAINING, "a few minutes are no standstill"
    assert _pace(9, [EPOCH | {"seconds": 600.0}], 2000)[0] is _State.TRAINING
    assert _pace(9, [EPOCH | {"seconds": 600.0}], 4000)[0] is _State.STILL
    assert _pace(3, quick, 1)[1].endswith("about 0 minutes left")


def test_watching_a_run_does_not_block_and_ends_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = begin("b")
    with run_lock(folder):
        write_epochs(folder, 1)
        watch = _Watch("b", 0.02)
        assert "epoch 1 of 4" in watch.text.value
        assert "<svg" in watch.picture.value
        write_epochs(folder, 3)
        until(lambda: "epoch 3 of 4" in watch.text.value)
        assert not watch.button.disabled
        (folder / "history.jsonl").write_text('{"epoch": 1')  # while it is written
        until(lambda: "history.jsonl" in watch.text.value)
        write_epochs(folder, 4)
    until(watch.ended.is_set)
    assert "interrupted" in watch.text.value
    assert watch.button.disabled
    begin("c")
    with run_lock(Path("outputs/c")):
        stopped = _Watch("c", 0.02)
        stopped.button.click()
        assert stopped.ended.is_set()


def until(what, seconds: float = 5.0) -> None:
    "Wait until something is so."
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_without_a_page_a_run_is_shown_once(here, tmp_path, monkeypatch):
    explorer = Explorer("data/demo")
    monkeypatch.chdir(tmp_path)
    write_epochs(begin("d"), 2)
    shown = explorer.watch("d")._repr_mimebundle_()
    assert "interrupted" in shown["text/html"]
    assert re.search(r"<svg .*polyline", shown["text/html"])
    assert explorer.watch("new")._repr_mimebundle_()["text/plain"].startswith("new not begun")
    for bad in ({"run": ""}, {"run": "d", "seconds": 0}):
        with pytest.raises(RunError, match="expected a name under outputs"):
            explorer.watch(**bad)
