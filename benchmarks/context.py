"""What larger crops and ImageNet weights are worth on the competition's tiles, by blocks and by regions.

python benchmarks/context.py data/competition                       # all runs, every fold
python benchmarks/context.py data/competition "crops of 256 pixels" # one of them

Writes configs/context/record.json for nbs/studies/03_context.ipynb; recorded folds are not repeated. The
weights of the last epoch are scored. On a GPU a fold takes about a minute, on one core 5 to 30.
"""

import argparse
import json
import time

import numpy as np

from glacier_nb.config.training import TrainConfig
from glacier_nb.data.storage import run_tiles
from glacier_nb.files.paths import project_root, write_text
from glacier_nb.parallel.device import seed_everything
from glacier_nb.training.learner import Learner
from glacier_nb.training.recipe import RunData, prepare_data, run_network

COMMON = {  # the defaults when these runs were made
    **{"encoder": "resnet18", "encoder_weights": None, "decoder_attention": "scse", "crop_size": 128},
    **{"augment": "photometric", "epochs": 13, "batch_size": 8, "warmup_epochs": 1.0, "ema": 0.0},
}
LARGE = {"crop_size": 256}
LITE0 = LARGE | {"encoder": "tu-tf_efficientnet_lite0", "encoder_weights": "imagenet", "ema": 0.99}
RUNS = {  # parameters that differ from `COMMON`
    "crops of 128 pixels": {},
    "crops of 256 pixels, as many pixels": LARGE | {"batch_size": 2, "samples_per_epoch": 64},
    "crops of 256 pixels, four times the steps": LARGE | {"batch_size": 2},
    "crops of 256 pixels": LARGE,
    "crops of 256 pixels, lite0 with ImageNet weights": LITE0,
}


def train(cfg: TrainConfig, data: RunData) -> tuple[Learner, dict]:
    "One fold, trained: the counts of each held-out tile on all pixels, and the MCC of each epoch."
    seed_everything(cfg.seed)
    learner = Learner(cfg, data, run_network(cfg, data)[0])
    start = time.perf_counter()
    history = learner.fit()
    return learner, {
        "tiles": {tile: np.asarray(counts[0]).tolist() for tile, counts in learner.matrices.items()},
        "trained on": len(data.train),
        "mcc": [round(epoch["mcc"], 4) for epoch in history],
        "mcc_valid": [round(epoch["mcc_valid"], 4) for epoch in history],
        "seconds": round(time.perf_counter() - start, 1),
        "device": f"{learner.device.type}, {learner.precision}",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", help="folder of the tiles")
    parser.add_argument("runs", nargs="*", default=list(RUNS), help="names of runs; none: all")
    parser.add_argument("--devices", default="auto", help="as the parameter of a run")
    parser.add_argument("--weights-dir", default="", help="folder of the ImageNet weights; empty: the hub")
    args = parser.parse_args()
    path = project_root() / "configs/context/record.json"
    path.parent.mkdir(exist_ok=True)
    shared = {"data_dir": args.data_dir, "devices": args.devices, "weights_dir": args.weights_dir}
    for name in args.runs:
        for split in ("blocks", "regions"):
            for fold in range(5):
                record = json.loads(path.read_text()) if path.is_file() else {}
                folds = record.setdefault(name, {"parameters": RUNS[name]}).setdefault(split, {})
                if str(fold) in folds:
                    continue
                cfg = TrainConfig(threads=1, **shared, **COMMON | RUNS[name], split=split, fold=fold)
                folds[str(fold)] = found = train(cfg, prepare_data(cfg, run_tiles(cfg)))[1]
                write_text(path, json.dumps(record) + "\n")
                print(f"{name}, {split}, fold {fold}: MCC {found['mcc'][-1]:.3f}", flush=True)


if __name__ == "__main__":
    main()
