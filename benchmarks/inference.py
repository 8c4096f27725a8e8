"""Map a scene beside MONAI's sliding_window_inference and torchgeo's GridGeoSampler: speed and peak memory.

benchmarks/.venv/bin/python benchmarks/inference.py [--quick] [--size 1750] [--rounds 3] [--threads 2] [--gpu]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from inference_peers import CONTENDERS, make_scene_folder, run

PACKAGES = ("torch", "segmentation-models-pytorch", "monai", "torchgeo")
NOTES = """
All: the same network and weights, float32, windows of {window} pixels that overlap by {overlap}, a Gaussian
blend with a deviation of an eighth of the window, the same scene on disk, classes and confidence as GeoTIFFs.
seconds: from the first read to the last file, without imports, the network, and one window to warm up.
peak MB: of the resident memory of the process, and how much of it came on top of imports and network.
ours reads, blends and writes window by window, and reads its files back to compare them. MONAI is given the
whole scene, which has to be read and normalised first. torchgeo has a sampler and a reader of windows; adding
them up is left to its user, here in one array of the scene."""


def arguments() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a scene of 320 pixels, once")
    parser.add_argument("--size", type=int, default=1750, help="rows and columns of the scene")
    parser.add_argument("--rounds", type=int, default=3, help="each contender once in each")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--encoder", default="resnet34")
    parser.add_argument("--gpu", action="store_true", help="compute on a GPU")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a contender, in a process of its own
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(
    options: argparse.Namespace,
    name: str,  # of a contender
    folder: Path,  # of the scene
) -> dict:  # seconds, memory, digest of the classes
    "A contender in a process of its own, whose peak memory is therefore its own."
    line = [sys.executable, __file__, "--one", name, "--folder", str(folder), *sys.argv[1:]]
    threads = {"OMP_NUM_THREADS": str(options.threads), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(line, env=os.environ | threads, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def versions() -> list[str]:
    "The packages that are compared, with their versions."
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return found


def table(
    rows: pd.DataFrame,  # of all rounds
    megapixels: float,  # of the scene
) -> pd.DataFrame:  # a row a contender
    "Medians over rounds, and the median of the ratios within a round."
    seconds = rows.pivot(index="round", columns="name", values="seconds")
    medians = rows.groupby("name", sort=False)[["seconds", "peak", "above"]].median()
    medians["MP/s"] = megapixels / medians["seconds"]
    medians["times ours"] = seconds.div(seconds["ours"], axis=0).median()
    medians["other classes"] = rows.groupby("name", sort=False)["differs"].max()
    names = {"peak": "peak MB", "above": "of it for the scene"}
    return medians.rename(columns=names)


def main() -> None:
    "Run everything and print it."
    options = arguments()
    if options.quick:
        options.size, options.rounds, options.window, options.overlap = 320, 1, 128, 64
        options.encoder = "resnet18"
    if options.one:
        print(json.dumps(run(options, options.one, Path(options.folder))))
        return
    names = [name for name, module in CONTENDERS.items() if module is None or find_spec(module)]
    missing = [name for name in CONTENDERS if name not in names]
    print(platform.python_version(), f"{os.cpu_count()} cores", *versions(), sep=", ")
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_scene_folder(Path(scratch), options.size)
        rows = []
        for number in range(options.rounds):
            turn = names[number % len(names) :] + names[: number % len(names)]
            rows += [{"round": number, "name": name} | measured(options, name, folder) for name in turn]
        pixels = rows[0]["pixels"]
    rows = pd.DataFrame(rows)
    print(f"\n{options.size} x {options.size} pixels, {options.threads} threads, {options.encoder}")
    print(table(rows, pixels / 1e6).loc[names].to_string(float_format=lambda x: format(x, ",.3g")))
    print(NOTES.format(window=options.window, overlap=options.overlap))
    for name in missing:
        print(f"{name} left out: {CONTENDERS[name]} is not installed (make bench)")


if __name__ == "__main__":
    main()
