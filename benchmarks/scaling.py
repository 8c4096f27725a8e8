"""Step time and memory at 25 and at 2,000 tiles on disk, with one process and with two at equal threads.

    python benchmarks/scaling.py --quick     # a smoke run: 9 and 36 small tiles
    python benchmarks/scaling.py             # the measurement; makes outputs/scaling (8 GB) in some minutes

Memory is measured in starts of their own: the tiles are opened and split, their arrays are found in the
cache, and some steps are taken. The start that fills the cache is shown apart. Times are those of steps on
both sets in turns.
"""

import argparse
import json
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

from glacier_nb.config.files import read_config
from glacier_nb.config.training import TrainConfig
from glacier_nb.data.storage import run_tiles
from glacier_nb.demo.tiles import _grid_shape, _write_tile, make_demo
from glacier_nb.files.paths import project_root
from glacier_nb.parallel.device import seed_everything
from glacier_nb.parallel.launch import launch
from glacier_nb.tiles.read import read_tiles
from glacier_nb.training.learner import Learner
from glacier_nb.training.recipe import prepare_data, run_network

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
        row, column = divmod(k, _grid_shape(n)[1])
        tile = tiles[row % 5 * 5 + column % 5]
        _write_tile(part, row, column, (tile.bands + k) * tile.valid, tile.label)
    part.rename(folder)
    return folder


class Memory(threading.Thread):
    "Watches the memory of this process: the peak of all, and of what no other process shares, in MiB."

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


def ready(cfg: TrainConfig) -> Learner:
    "The learner of a run, before its first step."
    seed_everything(cfg.seed)
    data = prepare_data(cfg, run_tiles(cfg))
    learner = Learner(cfg, data, run_network(cfg, data)[0])
    learner.prepare_network()
    learner.model.train()
    return learner


def one_step(learner: Learner, batches) -> tuple[float, float]:
    "A step; its milliseconds, and those of it until its batch was there."
    start = time.perf_counter()
    group = list(islice(batches, 1))
    cut = time.perf_counter()
    learner.train_step(group)
    return 1000 * (time.perf_counter() - start), 1000 * (cut - start)


def memory_of(cfg: TrainConfig, folders: list[str], steps: int) -> list[dict]:
    "A run on one set of tiles and some steps: seconds until it starts, peaks of memory, the last loss."
    memory, start = Memory(), time.perf_counter()
    learner = ready(replace(cfg, data_dir=folders[0]))
    started, batches = time.perf_counter() - start, learner.batches(0)
    for _ in range(WARM_UP + steps):
        one_step(learner, batches)
    return [{"start": started, **memory.peaks(), "loss": learner.last["train_loss"]}]


def time_of(cfg: TrainConfig, folders: list[str], steps: int) -> list[dict]:
    "Steps on several sets of tiles in turns, so that whatever else runs here slows all alike: their medians."
    learners = [ready(replace(cfg, data_dir=folder)) for folder in folders]
    batches, taken = [learner.batches(0) for learner in learners], [[] for _ in folders]
    for _ in range(WARM_UP + steps):
        for learner, source, rows in zip(learners, batches, taken, strict=True):
            rows.append(one_step(learner, source))
    middle = [[statistics.median(column) for column in zip(*rows[WARM_UP:], strict=True)] for rows in taken]
    return [{"ms a step": step, "ms of it data": data} for step, data in middle]


MEASURES = {"memory": memory_of, "time": time_of}


def in_new_process(what: str, cfg: TrainConfig, folders: list[Path], steps: int, scratch: Path) -> list[dict]:
    "A measurement that shares nothing with the ones before; of several processes, the largest numbers."
    cfg.save(scratch / "cfg.json")
    command = [sys.executable, __file__, "--measure", what, str(scratch), "--steps", str(steps), "--sets"]
    subprocess.run([*command, *map(str, folders)], check=True)
    ranks = json.loads((scratch / "measured.json").read_text())
    return [pd.DataFrame(rows).max().to_dict() for rows in zip(*ranks, strict=True)]


def measured(options: argparse.Namespace) -> None:
    "The other end of `in_new_process`."
    what, scratch = options.measure
    torch.set_num_threads(THREADS)
    cfg, arguments = read_config(Path(scratch) / "cfg.json"), (options.sets, options.steps)
    alone = cfg.devices == "cpu"
    ranks = [MEASURES[what](cfg, *arguments)] if alone else launch(MEASURES[what], cfg, *arguments)
    (Path(scratch) / "measured.json").write_text(json.dumps(ranks))


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
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--sets", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measured(options)
        return
    if options.quick:
        vars(options).update(tiles=(9, 36), size=64, steps=2, repeat=1, crop=32, batch=8)
    run_all(options)


def run_all(options: argparse.Namespace) -> None:
    "Make the sets, measure, print the tables."
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ["GLACIER_NB_CACHE"] = str(options.folder / "cache")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave the cores to others
    cfg = TrainConfig(
        tile_store="disk",
        encoder=options.encoder,
        encoder_weights=None,
        decoder_attention="scse",
        augment="photometric",
        ema=0.0,
        crop_size=options.crop,
        batch_size=options.batch,
        samples_per_epoch=options.batch * (WARM_UP + options.steps),
        precision="fp32",
        memory_format="channels_last",
        devices="cpu",
    )
    folders = [options.folder / f"tiles-{n}-{options.size}" for n in options.tiles]
    rest, rows = (options.steps, options.folder), []
    for n, folder in zip(options.tiles, folders, strict=True):
        make_tiles(folder, n, options.size)
        first = in_new_process("memory", cfg, [folder], *rest)[0]
        print(f"{n} tiles, the start that fills the cache (if it was empty): {rounded(first)}", flush=True)
    for _ in range(options.repeat):
        for devices, processes in (("cpu", 1), (2, 2)):
            run = replace(cfg, devices=devices)
            times = in_new_process("time", run, folders, *rest)
            for n, folder, taken in zip(options.tiles, folders, times, strict=True):
                found = taken | in_new_process("memory", run, [folder], *rest)[0]
                rows.append({"processes": processes, "tiles": n} | found)
                print(rounded(rows[-1]), flush=True)
    table = pd.DataFrame(rows)
    spread = np.ptp(table["loss"].to_numpy().reshape(-1, len(options.tiles)), axis=0).max()
    print(
        f"\nStarts from the cache; memory of one process, MiB\n{compare(table, list(options.tiles)).round(3)}"
    )
    print(f"\nLargest difference of the last loss on one set, over all starts and processes: {spread:.1e}")


def rounded(row: dict[str, float]) -> dict[str, float]:
    "For reading."
    return {name: round(value, 2) for name, value in row.items()}


def compare(rows: pd.DataFrame, sizes: list[int]) -> pd.DataFrame:
    "Medians over the repeats, and what the larger set costs in units of the smaller."
    table = rows.drop(columns="loss").groupby(["processes", "tiles"]).median()
    for processes in rows["processes"].unique():
        small, large = (table.loc[(processes, n)] for n in sizes)
        table.loc[(processes, f"{sizes[1]} / {sizes[0]}"), :] = (large / small).drop("start")
    return table.sort_index(level="processes", sort_remaining=False)


if __name__ == "__main__":
    from scaling import main  # so that what other processes run has a module's name

    main()
