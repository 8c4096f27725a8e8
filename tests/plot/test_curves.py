"""Charts of a run: they show the given numbers, and missing columns are an error."""

import warnings

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from glacier_nb.landsat import CLASSES
from glacier_nb.metrics.scores import mcc, tile_table
from glacier_nb.plot.curves import confusion_heatmap, curves_of_runs, per_tile_bars, training_curves

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _clean():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    plt.close("all")


def record(epoch, mcc_valid=0.5, **more):
    "One epoch of a history."
    base = {"epoch": epoch, "step": 10 * epoch, "lr": 1e-3, "train_loss": 1 / epoch, "val_loss": 1.1 / epoch}
    return base | {"mcc": mcc_valid + 0.1, "mcc_valid": mcc_valid, "seconds": 3.0, "precision": "fp32"} | more


def by_label(ax):
    "The lines of axes by their label."
    return {line.get_label(): line for line in ax.lines}


# curves


def test_curves_show_the_history():
    history = [record(k, v, loss_focal=0.1 * k, loss_new=0.2) for k, v in ((1, 0.2), (2, 0.6), (3, 0.4))]
    fig = training_curves(history)
    axes = {ax.get_ylabel(): ax for ax in fig.axes}
    loss, score, lr = (axes[name] for name in ("loss", "validation MCC", "learning\nrate"))
    assert list(by_label(score)["valid pixels"].get_ydata()) == [0.2, 0.6, 0.4]
    np.testing.assert_allclose(by_label(score)["all pixels"].get_ydata(), [0.3, 0.7, 0.5])
    np.testing.assert_allclose(by_label(loss)["train"].get_ydata(), [1, 1 / 2, 1 / 3])
    assert {"validation", "focal (train)", "new (train)"} < set(by_label(loss))
    assert list(lr.lines[0].get_ydata()) == [1e-3] * 3
    assert score.get_title() == "best epoch 2 on these tiles:\nMCC 0.700 (valid pixels 0.600)"
    for ax in (loss, score, lr):
        assert ax.lines[-1].get_xdata()[0] == 2  # the mark of the best epoch
        assert ax.get_xlabel() == "epoch" or ax is loss


def test_curves_take_frames_and_another_monitor():
    history = pd.DataFrame([record(1, 0.6, mcc=0.1), record(2, 0.2, mcc=0.9)])
    titles = [
        "".join(ax.get_title() for ax in training_curves(history, m).axes) for m in ("mcc_valid", "mcc")
    ]
    assert titles[0].startswith("best epoch 1 ")
    assert titles[1].startswith("best epoch 2 ")
    assert history.columns[0] == "epoch"  # untouched


@pytest.mark.parametrize("n", [1, 2, 400])
def test_curves_of_any_length(n):
    fig = training_curves([record(k + 1) for k in range(n)])
    fig.canvas.draw()
    assert all(np.isfinite(ax.get_xlim()).all() for ax in fig.axes)


def test_curves_with_missing_values():
    fig = training_curves([record(1, np.nan), record(2, 0.3, val_loss=None), record(3, np.nan)])
    fig.canvas.draw()
    assert any(ax.get_title().startswith("best epoch 2") for ax in fig.axes)
    empty = training_curves([record(1, np.nan)])
    empty.canvas.draw()
    assert not any(ax.get_title() for ax in empty.axes)


def test_curves_check_the_history():
    with pytest.raises(ValueError, match="found no lr, mcc_valid among"):
        training_curves([{"epoch": 1, "train_loss": 1, "val_loss": 1, "mcc": 0.1}])
    with pytest.raises(ValueError, match="found no kappa among"):
        training_curves([record(1)], monitor="kappa")
    with pytest.raises(ValueError, match="history: found no"):
        training_curves([])
    assert plt.get_fignums() == []


# confusion


def test_confusion_shows_per_cent_and_counts():
    cm = np.array([[900_000, 100_000], [25, 75]])
    ax = confusion_heatmap(cm, CLASSES[:2]).axes[0]
    texts = [t.get_text() for t in ax.texts]
    assert texts == ["90.0%\n900,000", "10.0%\n100,000", "25.0%\n25", "75.0%\n75"]
    np.testing.assert_allclose(np.ravel(ax.collections[0].get_array()), [0.9, 0.1, 0.25, 0.75])
    assert [t.get_text() for t in ax.get_yticklabels()] == list(CLASSES[:2])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "truth")
    assert f"{mcc(cm):.3f}" in ax.get_title()


def test_confusion_of_a_class_that_does_not_occur():
    cm = np.diag([5, 5, 5, 0])
    texts = [t.get_text() for t in confusion_heatmap(cm, CLASSES).axes[0].texts]
    assert texts[-4:] == ["–\n0"] * 4
    assert not any("nan" in t for t in texts)


def test_confusion_draws_into_given_axes():
    fig, ax = plt.subplots()
    assert confusion_heatmap(np.eye(2, dtype=int), CLASSES[:2], ax) is fig
    assert plt.get_fignums() == [fig.number]


def test_confusion_checks_the_shape():
    with pytest.raises(ValueError, match=r"found a matrix \(3, 3\) for 4 classes"):
        confusion_heatmap(np.eye(3, dtype=int), CLASSES)


# per_tile_bars


def test_bars_are_sorted_and_named():
    cms = {f"t{k}": np.array([[50, 10 * k], [5, 20]]) for k in (3, 1, 2)}
    table = tile_table(cms, cms)
    ax = per_tile_bars(table, 0.5, (0.4, 0.6)).axes[0]
    heights = [bar.get_height() for bar in ax.patches[:3]]
    assert heights == sorted(table.mcc)
    assert [t.get_text() for t in ax.get_xticklabels()] == list(table.mcc.sort_values().index)
    labels = {t.get_text() for t in ax.figure.legends[0].get_texts()}
    assert labels == {"all pixels", "valid pixels", "pooled 0.500", "95 %: 0.40 to 0.60"}


def test_bars_mark_undefined_tiles():
    cms = {"good": np.array([[5, 1], [1, 5]]), "void": np.diag([9, 0])}
    ax = per_tile_bars(tile_table(cms, cms)).axes[0]
    assert list(by_label(ax)["undefined"].get_xdata()) == [0]
    assert len(by_label(ax)["valid pixels"].get_xdata()) == 1


def test_bars_of_one_tile_have_no_interval():
    table = pd.DataFrame({"mcc": [0.5]}, index=["03_11"])
    for ends in ((None, None), [np.nan, np.nan], None):
        assert not [text for text in by_label(per_tile_bars(table, 0.5, ends).axes[0]) if "95 %" in text]


def test_bars_of_many_tiles_have_readable_labels():
    table = pd.DataFrame({"mcc": np.linspace(0, 1, 400)}, index=[f"{k:03}" for k in range(400)])
    fig = per_tile_bars(table, ci=(np.nan, np.nan))
    assert fig.get_figwidth() == 10, "as wide as the page, however many"
    assert len(fig.axes[0].get_xticks()) <= 40


def test_bars_check_the_table():
    with pytest.raises(ValueError, match="found 1 rows with columns"):
        per_tile_bars(pd.DataFrame({"iou": [1]}))
    with pytest.raises(ValueError, match="found 0 rows"):
        per_tile_bars(pd.DataFrame({"mcc": []}))


def test_no_chart_sets_a_global_style():
    before = dict(mpl.rcParams)
    training_curves([record(1)])
    confusion_heatmap(np.eye(2, dtype=int), CLASSES[:2])
    per_tile_bars(pd.DataFrame({"mcc": [0.5]}, index=["a"]))
    assert dict(mpl.rcParams) == before


def test_curves_of_each_class_and_what_chose_the_epoch():
    more = [{"macro_mcc": 0.4, "class_mcc_glacier": 0.1 * k, "class_mcc_lake": None} for k in (1, 2, 3)]
    history = [record(k, v, **m) for k, v, m in zip((1, 2, 3), (0.2, 0.6, 0.4), more, strict=True)]
    axes = {ax.get_ylabel(): ax for ax in training_curves(history, select="last").axes}
    assert list(by_label(axes["MCC of each class"])["glacier"].get_ydata()) == [0.1, 0.2, pytest.approx(0.3)]
    assert "lake" not in by_label(axes["MCC of each class"])  # tiles and maps have none
    assert list(by_label(axes["validation MCC"])["mean of classes"].get_ydata()) == [0.4] * 3
    assert axes["validation MCC"].get_title().startswith("last epoch 3:")
    assert axes["loss"].lines[-1].get_xdata()[0] == 3
    inner = {ax.get_ylabel(): ax for ax in training_curves(history, select="inner").axes}
    assert inner["MCC of the inner block"].get_title().startswith("best epoch 2 on these tiles:")


# limits


def test_a_loss_that_would_flatten_the_others_is_cut_off_and_named():
    fig = training_curves([record(k, 0.1 * k, val_loss=189.0 if k == 1 else 0.5) for k in range(1, 7)])
    loss = next(ax for ax in fig.axes if ax.get_ylabel() == "loss")
    assert "validation 189 in epoch 1" in loss.get_title()
    assert loss.get_ylim()[1] == pytest.approx(1.08)  # 1 / epoch of the training loss is the largest left
    marks = [line for line in loss.lines if line.get_marker() == "^"]
    assert [line.get_xdata().tolist() for line in marks] == [[1]]
    fig.draw_without_rendering()
    assert loss.get_position().height > 0.4  # the marks leave the panel its size


def test_several_losses_beyond_the_axis_are_counted():
    losses = [53.0, 70e3, 15e3, 1.0, 0.9, 0.8]
    fig = training_curves([record(k, val_loss=v) for k, v in enumerate(losses, 1)])
    assert fig.axes[0].get_title() == "cut off at 1; above:\n3 values, up to validation 7e+04 in epoch 2"


def test_curves_that_fall_are_whole():
    fig = training_curves([record(k) for k in range(1, 7)])
    loss = next(ax for ax in fig.axes if ax.get_ylabel() == "loss")
    assert loss.get_title() == ""
    assert loss.get_ylim()[1] > 1.1


def test_runs_side_by_side_have_the_limit_too():
    history = [record(k, train_loss=40.0 if k == 1 else 1.0) for k in range(1, 7)]
    right = curves_of_runs({"a": history, "b": history[1:]}).axes[1]
    assert right.get_ylabel() == "training loss, cut off at 1"
    assert right.get_ylim()[1] == pytest.approx(1.08)
