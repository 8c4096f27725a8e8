"""A project with four labelled tiles, two runs with random weights, and their cross-validation."""

import json

import numpy as np
import pytest
from made_runs import save_run
from small_projects import small_project
from tiny_network import TinyUNet

from glacier_nb.demo.tiles import cached_demo
from glacier_nb.files.paths import write_text
from glacier_nb.landsat import CLASSES
from glacier_nb.metrics.scores import tile_confusion
from glacier_nb.prediction import members
from glacier_nb.prediction.evaluate import tile_probs
from glacier_nb.tiles.read import read_tiles


def _finish(folder, held, others) -> dict:
    "Counts of the held-out tiles of a run and its split; what metrics.json says of them."
    (member,) = members.load_ensemble(str(folder))
    counts = {}
    for tile in held:
        pair = tile_confusion(tile_probs([member], tile).argmax(0), tile.label, tile.valid, len(CLASSES))
        counts[tile.id] = dict(zip(("all", "valid"), (c.tolist() for c in pair), strict=True))
    record = {"train": [t.id for t in others], "val": [t.id for t in held]}
    write_text(folder / "splits.json", json.dumps(record))
    metrics = json.loads((folder / "metrics.json").read_text()) | {"tile_confusions": counts}
    write_text(folder / "metrics.json", json.dumps(metrics))
    return counts


@pytest.fixture(scope="session")
def explored(tmp_path_factory, cache):
    "The root of the project, with runs cv-fold0, cv-fold1 and the cross-validation cv."
    source = cached_demo(4, 48, 3)
    root = small_project(tmp_path_factory.mktemp("explore") / "project", "explore.ipynb", tiles=source)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(members, "empty_network", lambda cfg, channels, n: TinyUNet(channels, n))
        tiles = read_tiles(source)
        halves, folds, counts = (tiles[:2], tiles[2:]), [], {}
        for k, held in enumerate(halves):
            folder = save_run(f"cv-fold{k}", tiles[0], 0.5, seed=k, data_dir="data/demo", n_folds=2, fold=k)
            counts |= _finish(folder, held, halves[1 - k])
            folds.append({"tiles": [t.id for t in held], "mcc": 0.5, "seconds": 1.0})
        (root / "outputs/cv").mkdir()
        parameters = json.loads((root / "outputs/cv-fold0/config.json").read_text()) | {"run": "cv"}
        record = {"runs": ["cv-fold0", "cv-fold1"], "parameters": parameters, "mcc": 0.5, "folds": folds}
        write_text(
            root / "outputs/cv/cross_validation.json", json.dumps(record | {"tile_confusions": counts})
        )
    return root  # and the tests of other files are in their own folder again


@pytest.fixture
def here(explored, monkeypatch):
    "The tests run in the project's root; its networks can be loaded."
    monkeypatch.chdir(explored)
    monkeypatch.setattr(members, "empty_network", lambda cfg, channels, n: TinyUNet(channels, n))
    return explored


@pytest.fixture
def bare_tiles(tmp_path):
    "A folder of two tiles without label and CRS, one of them all nodata."
    from tile_folders import write

    rng = np.random.default_rng(0)
    for k in range(2):
        for n, band in enumerate(("B2", "B3", "B4", "B6", "B10"), 1):
            pixels = rng.integers(8000, 40000, (40, 56)).astype("float32") * (k == 0)
            write(tmp_path / f"Band{n}/{band}_0{k}_00.tif", pixels, nodata=0)
    return tmp_path
