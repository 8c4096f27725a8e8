"""Comparing runs: differences and groups, invalid input, and compare.ipynb on tiny runs."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import papermill
import pytest
from made_up import random_confusions
from small_projects import small_project

from glacier_nb.config.fields import ConfigError
from glacier_nb.config.training import TrainConfig
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.files.paths import write_text
from glacier_nb.metrics.scores import block_confusions, bootstrap_mcc, mcc, summary, tile_confusion
from glacier_nb.metrics.significance import ComparisonError, Outcome
from glacier_nb.plot.curves import critical_difference, curves_of_runs
from glacier_nb.runs.compare import _tile_confusions, comparable, compare_runs, restart_epochs
from glacier_nb.runs.folder import RunError
from glacier_nb.tiles.read import read_tiles
from glacier_nb.training.callbacks import make_learner
from glacier_nb.training.recipe import prepare_data, run_schedule

ROOT = Path(__file__).parents[2]


def metrics(cms: np.ndarray) -> dict:
    "The part of metrics.json that compare_runs reads."
    kinds = [{"all": m.tolist(), "valid": (m // 2).tolist()} for m in cms]
    return {"tile_confusions": {f"t{i:02}": pair for i, pair in enumerate(kinds)}}


def test_differences_are_paired_and_groups_have_no_pair_that_differs():
    base = random_confusions(12, seed=5)
    worse = base.copy()
    worse[:, 0, 0] -= 5
    worse[:, 0, 1] += 5
    runs = {"base": metrics(base), "worse": metrics(worse), "same": metrics(base)}
    found = compare_runs(runs, n=2000)
    assert list(found.scores.index) == ["base", "same", "worse"]
    assert found.scores["worse"] == mcc(worse.sum(0))
    assert found.differences.loc["base", "worse"] == found.scores["base"] - found.scores["worse"]
    pair = found.pairs.set_index(["better", "worse"])
    change = bootstrap_mcc(base, 2000, 0) - bootstrap_mcc(worse, 2000, 0)
    np.testing.assert_allclose(
        pair.loc[("base", "worse"), ["low", "high"]].astype(float), np.quantile(change, [0.025, 0.975])
    )
    assert pair.loc[("base", "same"), ["low", "high", "difference"]].tolist() == [0, 0, 0]
    assert pair["outcome"].to_dict() == {
        ("base", "same"): Outcome.CANNOT_TELL,
        ("base", "worse"): Outcome.BETTER,
        ("same", "worse"): Outcome.BETTER,
    }
    assert found.groups == [("base", "same")]
    assert compare_runs(runs, n=2000).pairs.equals(found.pairs)


def test_few_tiles_are_not_significant():
    good, bad = (np.array([[[90, k], [k, 10]]] * 5) for k in (0, 9))
    bad[:, 0, 0], bad[:, 1, 1] = 81, 1
    found = compare_runs({"good": metrics(good), "bad": metrics(bad)})
    assert found.pairs["low"].item() > 0.3
    assert list(found.pairs["outcome"]) == [Outcome.CANNOT_TELL]
    assert found.pairs["p"].item() == 2 / 2**5
    assert (found.units, found.enough_tiles) == (5, False)


def blocked(error, seed=0, tiles=5, size=32, turned=None):
    "Metrics with blocks of a run with this fraction of random pixels; without errors in the tile `turned`."
    rng, whole, blocks = np.random.default_rng(seed), {}, {}
    for i in range(tiles):
        truth = np.random.default_rng(i).integers(0, 3, (size, size))
        wrong = rng.random(truth.shape) < error * (i != turned)
        pred = np.where(wrong, rng.integers(0, 3, truth.shape), truth)
        counts = block_confusions(pred, truth, truth >= 0, 3)
        assert np.array_equal(counts.sum(0), tile_confusion(pred, truth, truth >= 0, 3))
        kinds = (("all", 0), ("valid", 1))
        whole[f"t{i}"] = {kind: counts[:, k].sum(0).tolist() for kind, k in kinds}
        blocks[f"t{i}"] = {kind: [" ".join(map(str, cm.ravel())) for cm in counts[:, k]] for kind, k in kinds}
    return {"tile_confusions": whole, "block_confusions": blocks}


def test_blocks_of_pixels_tell_apart_what_five_tiles_cannot():
    good, bad, twin = blocked(0.1), blocked(0.8, 1), blocked(0.1, 2)
    found = compare_runs({"bad": bad, "good": good, "twin": twin}, n=2000)
    assert (found.units, found.tiles, found.enough_tiles) == (20, 5, True)  # quarters of the tiles
    pair = found.pairs.set_index(["better", "worse"])["outcome"].to_dict()
    assert {frozenset(names): str(word) for names, word in pair.items()} == {
        frozenset({"good", "bad"}): "better",
        frozenset({"twin", "bad"}): "better",
        frozenset({"good", "twin"}): "cannot tell",
    }
    assert len(found.groups) == 1
    assert "5 held-out tiles in 20 blocks" in critical_difference(found).axes[0].get_title("left")
    old = {"tile_confusions": bad["tile_confusions"]}  # of an older version
    found = compare_runs({"good": good, "old": old})
    assert list(found.pairs["outcome"]) == [Outcome.CANNOT_TELL]
    assert found.units == 5
    one = compare_runs({"a": blocked(0.1, 0, 1), "b": blocked(0.8, 1, 1)})
    assert (one.units, str(one.pairs["outcome"].item())) == (16, "better")


def test_blocks_need_the_agreement_of_all_tiles():
    (row,) = compare_runs({"a": blocked(0.1), "b": blocked(0.8, 1, turned=4)}).pairs.to_dict("records")
    assert row["p_holm"] < 0.05
    assert row["outcome"] is Outcome.CANNOT_TELL


@pytest.mark.parametrize(
    "change",
    [
        lambda blocks: blocks.pop("t0"),
        lambda blocks: blocks["t0"]["all"].pop(),
        lambda blocks: blocks["t0"].update(all=["1 0 0 0 0 0 0 0 0"] * 16),
        lambda blocks: blocks["t0"].update(all=["a"] * 16),
        lambda blocks: blocks.update(t0=[1]),
    ],
)
def test_damaged_blocks_are_named(change):
    run = blocked(0.8, 1)
    change(run["block_confusions"])
    with pytest.raises(RunError, match=r"^b: block_confusions of metrics.json is damaged: .*train this run"):
        compare_runs({"a": blocked(0.1), "b": run})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({}, "other: metrics.json has no tile_confusions"),
        (
            {"tile_confusions": {"t0": {"valid": [[1, 0], [0, 1]]}}},
            "other: tile_confusions of metrics.json is damaged",
        ),
        ({"tile_confusions": {"t0": {"all": [[1, 0], [0, -1]]}}}, "is damaged"),
        ({"tile_confusions": {"t0": {"all": [[1, 0, 3], [0, 1, 3]]}}}, "is damaged"),
        ({"tile_confusions": {"t0": {"all": [[1, 0.5], [0, 1]]}}}, "is damaged"),
        ({"tile_confusions": {"t0": {"all": [[1, 0], [0]]}}}, "is damaged"),
        ({"tile_confusions": [1, 2]}, "is damaged"),
        (
            metrics(random_confusions(3)),
            "own and other were scored on different tiles (only own: t03; only other: none)",
        ),
        (metrics(random_confusions(4, 2)), "own and other were scored on different labels"),
        (metrics(random_confusions(4) + 1), "tile t00 has [100, 100, 100] and [103, 103, 103] pixels"),
    ],
)
def test_runs_that_cannot_be_compared_are_named(other, message):
    with pytest.raises((RunError, ComparisonError)) as error:
        compare_runs({"own": metrics(random_confusions(4)), "other": other})
    assert message in str(error.value)


def test_one_run_or_too_few_draws_are_an_error():
    with pytest.raises(RunError, match="at least two"):
        compare_runs({"one": metrics(random_confusions(4))})
    with pytest.raises(ValueError, match=r"draws.*expected more than 60"):
        compare_runs({str(k): metrics(random_confusions(6)) for k in range(3)}, n=50)


def test_too_few_tiles_for_many_runs_are_not_an_error():
    found = compare_runs({str(k): metrics(random_confusions(5)) for k in range(33)}, n=500)
    assert not found.enough_tiles
    assert set(found.pairs["outcome"]) == {Outcome.CANNOT_TELL}
    ax = critical_difference(found).axes[0]
    assert ax.get_title("left") == "5 held-out tiles are too few to compare 33 runs"
    assert not [line for line in ax.lines if line.get_linewidth() == 4]
    for tiles, runs, able in ((5, 2, False), (6, 2, True), (6, 3, False), (7, 3, True)):
        assert (
            compare_runs({str(k): metrics(random_confusions(tiles)) for k in range(runs)}, n=500).enough_tiles
            == able
        )


def test_one_tile_has_no_interval():
    found = compare_runs({"a": metrics(random_confusions(1)), "b": metrics(random_confusions(1))}, n=100)
    assert found.intervals.isna().all(axis=None)
    assert found.pairs[["low", "high"]].isna().all(axis=None)
    title = critical_difference(found).axes[0].get_title("left")
    assert title == "1 held-out tile is too few to compare 2 runs"


def test_a_wrong_kind_of_pixels_is_named():
    with pytest.raises(ValueError, match="pixels = 'vaild' is not allowed: expected all or valid"):
        _tile_confusions(metrics(random_confusions(4)), pixels="vaild")


def test_comparable_sets_keep_folds_apart():
    runs = {
        "a": metrics(random_confusions(4)),
        "b": metrics(random_confusions(3)),
        "c": metrics(random_confusions(4, seed=9)),
        "old": {},
    }
    assert [list(names) for names in comparable(runs)] == [["a", "c"], ["b"]]
    assert comparable({"b": runs["b"]}, "valid")[0]["b"]["t00"].sum() < 300


@pytest.mark.parametrize("name", ["warm_restarts", "warmup_restarts", "cosine", "one_cycle", "plateau"])
def test_restarts_are_those_of_the_schedule(name):
    given = {"epochs": 20, "restart_epochs": 3.0, "restart_mult": 2, "warmup_epochs": 1.5}
    cfg = TrainConfig(schedule=name, select="best", **given)
    history = [{"epoch": e, "step": 7 * e} for e in range(1, 21)]
    marks = restart_epochs(asdict(cfg) | {"gone": 1}, history)
    assert marks == [s / 7 for s in run_schedule(cfg, 7).restart_steps]
    if "restarts" in name:
        rates = [run_schedule(cfg, 7)(s) for s in range(140)]
        assert [7 * m for m in marks] == [s for s in range(12, 140) if rates[s] > 2 * rates[s - 1]]
    else:
        assert marks == []
    assert restart_epochs({"schedule": name}, []) == []


def test_figures_name_a_run_without_epochs():
    with pytest.raises(ValueError, match="found no epoch of b"):
        curves_of_runs({"a": [{"epoch": 1}], "b": []})
    found = compare_runs({"only": metrics(random_confusions(6)), "twin": metrics(random_confusions(6))})
    ax = critical_difference(found).axes[0]
    assert [t.get_text().split()[0] for t in ax.get_yticklabels()] == ["only", "twin"]
    assert len([line for line in ax.lines if line.get_linewidth() == 4]) == 1


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A project: two finished runs on the same tiles, one on another fold, one failed, one interrupted."
    root = small_project(tmp_path_factory.mktemp("new") / "project", "compare.ipynb", tiles=cached_demo())
    tiles = read_tiles(root / "data/demo")
    small = {
        "encoder": "tu-test_resnet",
        "encoder_weights": None,
        "decoder_attention": "none",
        "include_glcm": False,
    }
    small |= {"crop_size": 32, "samples_per_epoch": 8, "batch_size": 8, "epochs": 1, "warmup_epochs": 0}
    for run, fold in (("one", 0), ("fold1", 1)):
        cfg = TrainConfig(run=run, n_folds=3, fold=fold, precision="fp32", **small)
        data, folder = prepare_data(cfg, tiles), root / "outputs" / run
        learner = make_learner(cfg, data, folder, progress=False)
        learner.fit()
        cms = [{i: pair[k] for i, pair in learner.matrices.items()} for k in (0, 1)]
        matrices = {i: {"all": cms[0][i].tolist(), "valid": cms[1][i].tolist()} for i in cms[0]}
        extra = {"baseline_mcc": 0.5, "selected_epoch": 1, "seconds": 9.0, "tile_confusions": matrices}
        parameters = json.loads((folder / "config.json").read_text())
        content = summary(*cms, data.classes) | extra | {"parameters": parameters}
        write_text(folder / "metrics.json", json.dumps(content))
    shutil.copytree(root / "outputs/one", root / "outputs/two")
    shutil.copytree(root / "outputs/one", root / "outputs/interrupted")
    (root / "outputs/interrupted/metrics.json").unlink()
    (root / "outputs/failed").mkdir()
    failed = {"error": "Boom: it broke", "parameters": {"lr": 0.5}}
    write_text(root / "outputs/failed/failed.json", json.dumps(failed))
    return root


def text_of(notebook) -> str:
    "All text that an executed notebook shows."
    outputs = [o for c in notebook.cells for o in c.get("outputs", []) if "data" in o]
    return "\n".join(str(v) for o in outputs for k, v in o["data"].items() if k.startswith("text/"))


def test_compare_notebook(project):
    notebook, out = project / "nbs/compare.ipynb", project / "out.ipynb"
    shown = text_of(papermill.execute_notebook(notebook, out, cwd=project, progress_bar=False))
    assert "3 finished runs. Left out below: interrupted (unfinished), failed (failed)." in shown
    assert "Boom: it broke" in shown
    assert "Not compared: fold1" in shown
    assert "3 held-out tiles are too few to compare 2 runs" in shown
    files = {p.name for p in (project / "outputs/compare").iterdir()}
    assert files == {"runs.csv", "pairs.csv", "curves.png", "critical_difference.png", "maps.png"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pixel": "all"}, "did you mean 'pixels'"),
        ({"pixels": "vaild"}, "pixels .expected all or valid. 'vaild'"),
    ],
)
def test_compare_notebook_checks_its_parameters(given, message):
    cells = [c for c in nbformat.read(ROOT / "nbs/compare.ipynb", 4).cells if c.cell_type == "code"]
    assert cells[0].metadata.tags == ["parameters"]
    names = {}
    exec(cells[0].source, names)
    with pytest.raises(ConfigError, match=message):
        exec(cells[1].source, names | given)  # papermill inserts the given values between the two


def test_a_best_epoch_is_not_silently_compared_with_a_last_one():
    cms = random_confusions(12, seed=5)
    last, best = metrics(cms) | {"chosen_on": []}, metrics(cms) | {"chosen_on": ["t03"]}
    found = compare_runs({"a": last, "b": best, "old": metrics(cms)}, n=500)
    assert (found.chosen, found.mixed) == (("b", "old"), True)
    assert found.note.startswith("Epochs chosen on the tiles they are scored on: b, old.")
    assert "too high beside the others" in found.note
    labels = [t.get_text() for t in critical_difference(found).axes[0].get_yticklabels()]
    assert [label.startswith("* ") for label in labels] == [False, True, True]
    alike = compare_runs({"a": last, "b": last}, n=500)
    assert (alike.chosen, alike.mixed, alike.note) == ((), False, "")
    chosen = compare_runs({"a": best, "b": best}, n=500)
    assert (chosen.mixed, chosen.note) == (False, "Epochs chosen on the tiles they are scored on: all runs.")
    plt.close("all")
