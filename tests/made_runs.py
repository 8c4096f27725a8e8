"""Run folders with a small network of random weights: helpers of tests that only predict."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from tiny_network import TinyUNet

from glacier_nb.config.training import TrainConfig
from glacier_nb.data.stats import fit_stats
from glacier_nb.files.paths import write_text
from glacier_nb.landsat import CLASSES, LABEL_CODES
from glacier_nb.training.checkpoints import save_checkpoint


def save_run(name, tile, mcc, seed=0, **config):
    "A finished run whose network has random weights."
    cfg = TrainConfig(run=name, include_glcm=False, precision="fp32", seed=seed, **config)
    stats = fit_stats([tile])
    torch.manual_seed(seed)
    net = TinyUNet(len(stats.names), len(CLASSES))
    with torch.no_grad():
        [w.mul_(3) for w in net.parameters()]
    state = {"weights": net.state_dict(), "config": asdict(cfg), "stats": stats.to_dict()}
    folder = Path("outputs", name)
    folder.mkdir(parents=True)
    save_checkpoint(state | {"classes": CLASSES, "codes": LABEL_CODES}, folder / "model.pt")
    write_text(folder / "config.json", json.dumps(asdict(cfg)))
    scores = {"mcc": mcc, "mcc_valid": mcc, "selected_epoch": 1, "ci95": [None, None], "baseline_mcc": 0.4}
    write_text(folder / "metrics.json", json.dumps(scores))
    return folder
