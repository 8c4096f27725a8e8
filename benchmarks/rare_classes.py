"""What finds the lakes of the demo: the recipe before, and one change after the other.

python benchmarks/rare_classes.py          # all runs
python benchmarks/rare_classes.py lovasz   # one of them

Writes configs/rare_classes/record.json for nbs/studies/02_rare_classes.ipynb; recorded runs are not repeated.
One thread, and the weights of the last epoch are scored. A run takes 5 to 10 minutes.
"""

import json
import sys
import time

import numpy as np
from context import COMMON

from glacier_nb.config.training import TrainConfig
from glacier_nb.data.storage import run_tiles
from glacier_nb.data.tileset import TileSet
from glacier_nb.files.paths import project_root, write_text
from glacier_nb.metrics.scores import confusion
from glacier_nb.parallel.device import seed_everything
from glacier_nb.training.learner import Learner, _tile_batch
from glacier_nb.training.recipe import prepare_data, run_network

FOUR = {"focal_weight": 0.3, "dice_weight": 0.3, "mcc_weight": 0.3, "boundary_weight": 0.1}
OLD = FOUR | {"lovasz_weight": 0.0, "class_weights": "none"}
CHEAP = OLD | {"epochs": 10}
LOVASZ, EFFECTIVE = {"lovasz_weight": 0.3}, {"class_weights": "effective"}
LITE0 = {
    **{"encoder": "tu-tf_efficientnet_lite0", "encoder_weights": "imagenet", "decoder_attention": "none"},
    **{"epochs": 8, "samples_per_epoch": 512, "warmup_epochs": 0.5, "ema": 0.99},
}
FINE = {"decoder_channels": "128,64,32,32,16"}
RUNS = {  # parameters that differ from `COMMON`
    "before": OLD | {"encoder": "resnet34", "batch_size": 16, "epochs": 16},
    "effective": CHEAP | EFFECTIVE,
    "lovasz": CHEAP | LOVASZ,
    "both, without augmentation": CHEAP | EFFECTIVE | LOVASZ | {"augment": "none"},
    "both, 13 epochs": CHEAP | EFFECTIVE | LOVASZ | {"epochs": 13},
    "loss of the defaults, seed 1": {"seed": 1},
    "loss of the defaults, seed 2": {"seed": 2},
    "lite0, half of the decoder": LITE0 | {"decoder_channels": "128,64,32,16,8"},
    "lite0, whole at its finest levels": LITE0 | FINE,
    "lite0, the whole decoder": LITE0 | {"decoder_channels": "256,128,64,32,16"},
    "lite0, half of the decoder, mirrored": LITE0 | {"decoder_channels": "128,64,32,16,8", "augment": "sun"},
    **{f"lite0, whole at its finest levels, seed {s}": LITE0 | FINE | {"seed": s} for s in (1, 2)},
}
OFFSETS = (-4, -3, -2, -1, 0, 1, 2, 3, 4)  # taken from the logits of lakes


def side(learner: Learner, tiles: TileSet) -> dict:
    "Confusion matrices of all pixels, by the offset that is taken from the logit of the last class."
    counts = dict.fromkeys(OFFSETS, 0)
    for i in range(len(tiles)):
        logits = learner.predict(_tile_batch(tiles, i, learner.device))[0].numpy()
        for offset in OFFSETS:
            shifted = logits.copy()
            shifted[-1] -= offset
            pred = np.where(tiles.valids[i], shifted.argmax(0), 0)
            counts[offset] = counts[offset] + confusion(pred, tiles.labels[i], len(logits))
    return {str(offset): matrix.tolist() for offset, matrix in counts.items()}


def run(name: str) -> dict:
    "One run."
    cfg = TrainConfig(data_dir="data/demo", threads=1, **COMMON | RUNS[name])
    data = prepare_data(cfg, run_tiles(cfg))
    seed_everything(cfg.seed)
    learner = Learner(cfg, data, run_network(cfg, data)[0])
    Learner.validate = lambda self: {"val_loss": 0.0, "mcc": 0.0, "mcc_valid": 0.0}  # the last epoch alone
    start = time.process_time()
    learner.fit()
    seconds = time.process_time() - start
    return {
        "parameters": RUNS[name],
        "steps": learner.step,
        "seconds": round(seconds, 1),
        "training": side(learner, data.train),
        "held out": side(learner, data.val),
    }


def main():
    path = project_root() / "configs/rare_classes/record.json"
    path.parent.mkdir(exist_ok=True)
    for name in sys.argv[1:] or RUNS:
        record = json.loads(path.read_text()) if path.is_file() else {"runs": {}}
        if name in record["runs"]:
            continue
        found = run(name)
        record = json.loads(path.read_text()) if path.is_file() else record  # another process may have added
        record["runs"][name] = found
        write_text(path, json.dumps(record) + "\n")
        print(f"{name}: {found['steps']} steps, {found['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
