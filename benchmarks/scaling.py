"""Step time and memory at 25 and at 2,000 tiles on disk, with one process and with two at equal threads.

    python benchmarks/scaling.py --quick     # a smoke run: 9 and 36 small tiles
    python benchmarks/scaling.py             # the measurement; makes outputs/scaling (8 GB) in some minutes

Every measurement is a start of its own: the tiles are opened and split, their arrays are found in the cache,
and some steps are taken. The first start of a set fills the cache and is shown apart. Sets and numbers of
processes take turns.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from glacier_nb.bands import read_tiles
from glacier_nb.config import TrainConfig, load_config, save_config
from glacier_nb.demo import grid_shape, make_demo, write_tile
from glacier_nb.device import seed_everything
from glacier_nb.distributed import launch
from glacier_nb.learner import Learner
from glacier_nb.paths import project_root
from glacier_nb.recipe import prepare_data, run_network
from glacier_nb.tilestore import run_tiles

THREADS = 2  # of all processes together
WARM_UP = 3  # steps that are not counted


def make_tiles(folder: Path, n: int, size: int) -> Path:
    "A folder of `n` tiles: 25 demo tiles, again and again, each with a place and digital numbers of its own."
    if folder.exists():
        return folder
    source = folder.parent / f"source-{size}"
    if not source.exists():
        make_demo(source, 25, size)
    tiles, part = read_tiles(source), folder.with_name(f".{folder.name}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for k in range(n):
        row, column = divmod(k, grid_shape(n)[1])
        tile = tiles[row % 5 * 5 + column % 5]
        write_tile(part, row, column, (tile.bands + k) * tile.valid, tile.label)
    part.rename(folder)
    return folder


class Memory(threading.Thread):
    "Watches the memory of this process: the peak of all, and of what it shares with nobody, in MiB."

    def __init__(self):
        super().__init__(daemon=True)
        self.private, self.done = 0.0, threading.Event()
        self.start()

    def run(self):
        while not self.done.wait(0.02):
            self.private = max(self.private, status("RssAnon"))

    def peaks(self) -> dict[str, float]:
        self.done.set()
        return {"peak RSS": status("VmHWM"), "peak private": max(self.private, status("RssAnon"))}


def status(name: str) -> float:
    "A line of /proc/self/status, in MiB."
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def measure(cfg: TrainConfig, steps: int) -> dict[str, float]:
    "Start a run and take some steps, as one of the processes that share it."
    memory, start = Memory(), time.perf_counter()
    seed_everything(cfg.seed)
    data = prepare_data(cfg, run_tiles(cfg))
    started = time.perf_counter() - start
    learner = Learner(cfg, data, run_network(cfg, data)[0])
    learner.make_ready()
    learner.model.train()
    batches, times = learner.batches(0), []
    for _ in range(WARM_UP + steps):
        start = time.perf_counter()
        learner.train_step(list(islice(batches, 1)))
        times.append(time.perf_counter() - start)
    step = statistics.median(times[WARM_UP:])
    return {"start": started, "ms a step": 1000 * step, **memory.peaks(), "loss": learner.last["train_loss"]}


def alone(cfg: TrainConfig, steps: int) -> list[dict]:
    "Measure in one or more processes that start from nothing."
    torch.set_num_threads(THREADS)
    if cfg.devices == "cpu":
        return [measure(cfg, steps)]
    return launch(measure, cfg, steps)


def in_new_process(cfg: TrainConfig, steps: int, folder: Path) -> dict[str, float]:
    "A measurement that shares nothing with the ones before; of several processes, the largest memory of one."
    save_config(cfg, folder / "cfg.json")
    command = [sys.executable, __file__, "--measure", str(folder / "cfg.json"), "--steps", str(steps)]
    subprocess.run(command, check=True)
    ranks = pd.read_json(folder / "measured.json", orient="records")
    return ranks.max().to_dict()


def compare(rows: pd.DataFrame, sizes: list[int]) -> pd.DataFrame:
    "Medians of the starts from the cache, and what the larger set costs in units of the smaller."
    middle = rows.groupby(["processes", "tiles"]).median().unstack("tiles")
    ratio = {name: middle[name][sizes[-1]] / middle[name][sizes[0]] for name in rows.columns[3:]}
    table = middle.stack("tiles", future_stack=True)
    for processes in middle.index:
        label = f"{sizes[-1]} / {sizes[0]}"
        table.loc[(processes, label), list(ratio)] = [ratio[name][processes] for name in ratio]
    return table.sort_index(level="processes", sort_remaining=False)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiles", type=int, nargs=2, default=(25, 2000), help="tiles of the two sets")
    parser.add_argument("--size", type=int, default=256, help="edge of a tile, pixels")
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed in each start")
    parser.add_argument("--repeat", type=int, default=3, help="starts of each set and number of processes")
    parser.add_argument(
        "--encoder", default="resnet18", help="a small one leaves the tiles less room to hide in"
    )
    parser.add_argument("--crop", type=int, default=128, help="edge of a crop, pixels")
    parser.add_argument("--batch", type=int, default=8, help="crops a step, over all processes")
    parser.add_argument(
        "--folder", type=Path, default=project_root() / "outputs" / "scaling", help="made if missing"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        found = alone(load_config(options.measure), options.steps)
        pd.DataFrame(found).to_json(options.measure.with_name("measured.json"), orient="records")
        return
    if options.quick:
        vars(options).update(tiles=(9, 36), size=64, steps=2, repeat=1, crop=32, batch=8)
    run_all(options)


def run_all(options: argparse.Namespace) -> None:
    "Make the sets, measure, print the tables."
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ["GLACIER_NB_CACHE"] = str(options.folder / "cache")
    cfg = TrainConfig(
        tile_store="disk",
        encoder=options.encoder,
        encoder_weights=None,
        crop_size=options.crop,
        batch_size=options.batch,
        samples_per_epoch=options.batch * (WARM_UP + options.steps),
        precision="fp32",
        memory_format="channels_last",
        devices="cpu",
    )
    rows, firsts = [], {}
    for n in options.tiles:
        data = make_tiles(options.folder / f"tiles-{n}-{options.size}", n, options.size)
        firsts[n] = in_new_process(replace(cfg, data_dir=str(data)), options.steps, options.folder)
    for _ in range(options.repeat):
        for devices, processes in (("cpu", 1), ("2", 2)):
            for n in options.tiles:
                data = options.folder / f"tiles-{n}-{options.size}"
                run = replace(cfg, data_dir=str(data), devices=devices)
                found = in_new_process(run, options.steps, options.folder)
                rows.append({"processes": processes, "tiles": n} | found)
                print({k: round(v, 1) for k, v in rows[-1].items()}, flush=True)
    table = pd.DataFrame(rows)
    same = table.groupby("tiles")["loss"].agg(np.ptp)
    print(f"\nFirst starts, which fill the cache\n{pd.DataFrame(firsts).T.drop(columns='loss').round(1)}")
    compared = compare(table.drop(columns="loss"), options.tiles)
    print(f"\nStarts from the cache; memory of one process, MiB\n{compared.round(2)}")
    print(f"\nLargest difference of the last loss between starts: {same.max():.1e}")


if __name__ == "__main__":
    from scaling import main  # so that what other processes run has a module's name

    main()
