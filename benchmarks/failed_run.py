"""Repeat iteration 4 with faults that occur in public code for this task, one by one and together.

python benchmarks/failed_run.py            # all of them, on data/demo and data/competition
python benchmarks/failed_run.py flat_mcc   # one of them

Writes configs/failed_run/record.json for nbs/studies/01_failed_run.ipynb; recorded runs are not repeated.
Crops and tiles are smaller than in the original, to suit two cores; the number of optimizer steps is the
same, 30.
"""

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import yaml

from glacier_nb.checks.faults import FAULTS
from glacier_nb.config.training import TrainConfig
from glacier_nb.data.storage import run_tiles
from glacier_nb.files.paths import project_root, write_text
from glacier_nb.metrics.scores import summary
from glacier_nb.tiles.read import Tile
from glacier_nb.training.learner import Learner
from glacier_nb.training.recipe import prepare_data, run_network

SIZE = 256  # pixels of a tile that are used, from its middle
LITE0 = {"encoder": "tu-tf_efficientnet_lite0", "weights_dir": "data/weights"}
CAUSES = {  # changed parameters, and switches of `run`
    "as_it_was": {},
    "labels_clamped": {"clamp": True},
    "flat_mcc": {"flat": True},
    "one_data_set": {"shared": True},
    "shuffled_apart": {"shuffle": True},
    "lite0_imagenet": LITE0 | {"encoder_weights": "imagenet"},
    "lite0_random": LITE0 | {"encoder_weights": None},
    "no_glcm": {"include_glcm": False},
    "clamped_flat_shared": {"clamp": True, "flat": True, "shared": True},
    "all_together": {"clamp": True, "flat": True, "shared": True, "shuffle": True},
    "fixed": {
        **{"sampler": "pixel", "samples_per_epoch": 128, "batch_size": 16, "lr": 1e-3},
        **{"schedule": "linear_warmup", "warmup_epochs": 1.0},
    },
}
CURVES = ("epoch", "step", "lr", "train_loss", "val_loss", "mcc", "mcc_valid")


def middle(tile: Tile) -> Tile:
    "The middle of a tile."
    top, left = (max(0, (n - SIZE) // 2) for n in tile.shape)
    cut = (slice(top, top + SIZE), slice(left, left + SIZE))
    return replace(tile, bands=tile.bands[:, *cut], valid=tile.valid[cut], label=tile.label[cut])


def short(numbers: Iterable[float]) -> list[float]:
    "Numbers rounded to four significant digits."
    return [float(f"{number:.4g}") for number in numbers]


def run(cause: str, data_dir: str) -> dict:
    "One run: its curves, and its last confusion matrix."
    changes = dict(CAUSES[cause])
    done = {word: changes.pop(word, False) for word in ("clamp", "flat", "shared", "shuffle")}
    four = yaml.safe_load((project_root() / "configs/iterations/04_heavy_mcc.yaml").read_text())
    given = {"run": "", "crop_size": 64, "data_dir": data_dir, "precision": "fp32"}
    cfg = TrainConfig(**four | given | changes)
    tiles = [middle(tile) for tile in run_tiles(cfg)]
    tiles = FAULTS["clamped labels"](tiles) if done["clamp"] else tiles
    tiles = FAULTS["shuffled labels"](tiles, cfg.seed) if done["shuffle"] else tiles
    data = FAULTS["random split"](cfg, tiles, cfg.seed) if done["shared"] else prepare_data(cfg, tiles)
    learner = Learner(cfg, data, run_network(cfg, data)[0])
    if done["flat"]:
        FAULTS["flat MCC"](learner)
    if done["shared"]:
        FAULTS["augmented validation"](learner)
    start = time.perf_counter()
    history = learner.fit()
    cms = [{i: pair[k] for i, pair in learner.matrices.items()} for k in (0, 1)]
    return {
        "curves": {name: short(epoch[name] for epoch in history) for name in CURVES},
        "ci95": short(summary(*cms, data.classes, seed=cfg.seed)["ci95"]),
        "classes": list(data.classes),
        "confusion": sum(cms[0].values()).tolist(),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main():
    path = project_root() / "configs/failed_run/record.json"
    path.parent.mkdir(exist_ok=True)
    for cause in sys.argv[1:] or CAUSES:
        for tiles in ("demo", "competition"):
            record = json.loads(path.read_text()) if path.is_file() else {}
            if cause in record.get(tiles, {}):
                continue
            found = run(cause, f"data/{tiles}")
            record = json.loads(path.read_text()) if path.is_file() else {}  # another process may have added
            record.setdefault(tiles, {})[cause] = found
            write_text(path, json.dumps(record) + "\n")
            mcc, loss = (np.array(found["curves"][name]) for name in ("mcc", "val_loss"))
            result = f"MCC best {mcc.max():.3f}, last {mcc[-1]:.3f}; val loss {loss[0]:.2f} to {loss[-1]:.2f}"
            print(f"{tiles} {cause}: {result}; {found['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
