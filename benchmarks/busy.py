"""Seconds of a training step, a map and its texture while other programs keep the cores busy.

    python benchmarks/busy.py --quick     # a smoke run, two minutes
    python benchmarks/busy.py             # the measurement, about 20 minutes

Each row is a process of its own beside 0, 1, 2 and 4 processes that do nothing but count. `auto` is what a
run does by itself; the numbers are fixed by the parameter `threads`. The bare loop is a plain PyTorch loop
with the same network, which never imports glacier_nb.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

LOADS = (0, 1, 2, 4)
SHAPE = {"encoder": "resnet34", "batch": 16, "crop": 128, "tile": 256}
SMALL = {"encoder": "resnet18", "batch": 4, "crop": 64, "tile": 128}


@contextmanager
def busy(n: int):
    "Other processes that each keep a core busy."
    with ExitStack() as stack:
        for _ in range(n):
            other = subprocess.Popen([sys.executable, "-c", "while True: hash(1)"])
            stack.callback(other.wait)
            stack.callback(other.kill)
        time.sleep(0.5)
        yield


def median_seconds(call, times: int, budget: float, warm_up: int = 2) -> float:
    "The median of some calls, of fewer when the budget is used up."
    taken, start = [], time.perf_counter()
    for k in range(warm_up + times):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
        if k > warm_up and time.perf_counter() - start > budget:
            break
    return statistics.median(taken[warm_up:])


def ours(threads: str, shape: dict, times: int, budget: float) -> dict[str, float]:
    "The learner's step and map, and the texture of a tile."
    import numpy as np
    import torch

    from glacier_nb.config.training import TrainConfig
    from glacier_nb.demo.tiles import cached_demo
    from glacier_nb.parallel.threads import fit_threads
    from glacier_nb.texture.glcm import glcm
    from glacier_nb.tiles.read import read_tiles
    from glacier_nb.training.learner import Learner
    from glacier_nb.training.recipe import prepare_data, run_network

    number = None if threads == "auto" else int(threads)
    tiles = read_tiles(cached_demo(9, 128, 0))
    cfg = TrainConfig(
        encoder=shape["encoder"], batch_size=shape["batch"], crop_size=shape["crop"], devices="cpu",
        samples_per_epoch=shape["batch"] * (times + 2), threads=number or "auto", n_folds=3,
        class_weights="none", lovasz_weight=0.0, encoder_weights=None, decoder_attention="scse",
        augment="photometric", ema=0.0,
    )  # fmt: skip
    data = prepare_data(cfg, tiles)
    learner = Learner(cfg, data, run_network(cfg, data)[0])
    learner.model.train()
    steps = learner.batches(0)
    found = {"step": median_seconds(lambda: learner.train_step([next(steps)]), times, budget)}
    image = torch.zeros(1, data.train.images[0].shape[0], shape["tile"], shape["tile"])
    with torch.no_grad():
        found["map"] = median_seconds(lambda: learner.predict({"image": image}), times, budget)
    band = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
    found["texture"] = median_seconds(lambda: glcm(band, threads=number), times, budget)
    return found | {"threads": fit_threads()}


def bare(threads: str, shape: dict, times: int, budget: float) -> dict[str, float]:
    "A plain loop with the same network."
    import segmentation_models_pytorch as smp
    import torch

    if threads != "auto":
        torch.set_num_threads(int(threads))
    network = smp.Unet(
        shape["encoder"], encoder_weights=None, in_channels=7, classes=4, decoder_attention_type="scse"
    )
    network = network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters())
    images = torch.randn(shape["batch"], 7, shape["crop"], shape["crop"]).to(
        memory_format=torch.channels_last
    )
    target = torch.randint(0, 4, (shape["batch"], shape["crop"], shape["crop"]))

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), target).backward()
        optimizer.step()

    found = {"step": median_seconds(step, times, budget)}
    network.eval()
    image = torch.zeros(1, 7, shape["tile"], shape["tile"]).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        found["map"] = median_seconds(lambda: network(image), times, budget)
    return found | {"threads": torch.get_num_threads()}


KINDS = {"ours": ours, "bare loop": bare}


def in_new_process(kind: str, threads: str, options: argparse.Namespace) -> dict[str, float]:
    "One row, measured by this script in a process of its own."
    asked = json.dumps([kind, threads, options.shape, options.times, options.budget])
    command = [sys.executable, __file__, "--measure", asked]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    "Measure all rows beside all loads and print the table."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--times", type=int, default=10, help="calls that are timed")
    parser.add_argument("--budget", type=float, default=40.0, help="seconds for the calls of a row")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        kind, *rest = json.loads(options.measure)
        print(json.dumps(KINDS[kind](*rest)))
        return
    options.shape = SMALL if options.quick else SHAPE
    if options.quick:
        options.times, options.budget = 3, 3.0
    most = str(os.cpu_count())
    rows = [("ours", "auto"), ("ours", "1"), ("ours", most), ("bare loop", "1"), ("bare loop", "auto")]
    print(f"{os.cpu_count()} cores; seconds of a step / a map / its texture, medians; threads at the end")
    for load in LOADS:
        with busy(load):
            for kind, threads in rows:
                found = in_new_process(kind, threads, options)
                shown = " / ".join(f"{found[k]:.3f}" for k in ("step", "map", "texture") if k in found)
                print(f"{load} busy | {kind}, {threads} | {shown} | {found['threads']}", flush=True)


if __name__ == "__main__":
    main()
