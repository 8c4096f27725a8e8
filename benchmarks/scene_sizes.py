"""Map Landsat products of growing size on one thread, two, and a dask cluster: seconds, and peak memory.

python benchmarks/scene_sizes.py [--quick] [--sizes 1750 3500 7000] [--ways one two dask] [--scenes FOLDER]
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from inference_peers import Peak, logits, make_member, resident
from torch import set_num_threads, zeros

from glacier_nb.demo.tiles import make_scene
from glacier_nb.landsat import BANDS
from glacier_nb.prediction.maps import map_scene
from glacier_nb.prediction.scenes import open_scene

SCENES = Path("outputs/scene_sizes")
WAYS = {"one": "one thread", "two": "two threads", "dask": "dask, two workers"}
NOTES = """
seconds: of map_scene, from opening the scene to the last file; starting the dask cluster is left out.
above MB: the most resident memory, less what imports and network take once a window was computed. Of the dask
cluster: that of the calling process / that of its fuller worker (imports and network included)."""


def arguments() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="scenes of 256 and 512 pixels")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1750, 3500, 7000], help="rows and columns")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument(
        "--scenes", type=Path, default=Path("outputs/scene_sizes"), help="made once; they stay"
    )
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--encoder", default="resnet34")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # a way and a size, in a process of its own
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.window, options.overlap, options.encoder = [256, 512], 128, 64, "resnet18"
    options.gpu, options.threads = False, 1
    return options


def scene_folder(
    options: argparse.Namespace,
    size: int,  # pixels
) -> Path:
    "A Landsat product of demo terrain, tilted as real ones, with fill in the corners."
    folder = options.scenes.resolve() / str(size)
    return next(folder.glob("LC08_*"), None) or make_scene(folder, (size, size))


def worker_peaks(client) -> list[float]:  # MB
    "The most resident memory that each worker has had."

    return [
        k * 1024 / 1e6
        for k in client.run(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss).values()
    ]


def run(
    options: argparse.Namespace,
    way: str,  # of `WAYS`
    size: int,  # pixels
) -> dict:  # seconds, above and worker (MB), windows
    "One way and one scene."
    set_num_threads(2 if way == "two" else 1)
    scene = open_scene(scene_folder(options, size))
    member, sizes = make_member(scene, options), {"window": options.window, "overlap": options.overlap}
    logits(member)(zeros(1, len(BANDS), options.window, options.window))

    def mapped(client=None) -> dict:
        rest = resident()
        with tempfile.TemporaryDirectory() as out, Peak() as peak:
            start = time.perf_counter()
            result = map_scene([member], scene, Path(out) / "map.tif", **sizes, progress=False, client=client)
            seconds = time.perf_counter() - start
        return {"seconds": seconds, "above": peak.most - rest, "windows": result.windows}

    if way != "dask":
        return mapped()
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as local,
        Client(local) as client,
    ):
        return mapped(client) | {"worker": max(worker_peaks(client))}


def measured(way: str, size: int) -> dict:
    "One way and one scene in a process of its own."
    line = [sys.executable, __file__, *sys.argv[1:], "--one", way, str(size)]
    threads = {"OMP_NUM_THREADS": "2" if way == "two" else "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(line, env=os.environ | threads, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{WAYS[way]}, {size} pixels failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    "Run everything and print it."
    options = arguments()
    if options.one:
        print(json.dumps(run(options, options.one[0], int(options.one[1]))))
        return
    for size in options.sizes:
        print(f"{scene_folder(options, size).name}, {size} pixels", flush=True)
    rows = []
    for size in options.sizes:
        for way in options.ways:
            found = measured(way, size)
            memory = f"{found['above']:,.0f}" + (f" / {found['worker']:,.0f}" if "worker" in found else "")
            pace = size**2 / 1e6 / found["seconds"]
            rows.append([WAYS[way], size, found["windows"], f"{found['seconds']:.1f}", f"{pace:.3f}", memory])
            print(*rows[-1], sep=", ", flush=True)
    names = ["way", "pixels", "windows", "seconds", "MP/s", "above MB"]
    print(
        f"\n{platform.python_version()}, {os.cpu_count()} cores, {options.encoder}, window {options.window}"
    )
    print(pd.DataFrame(rows, columns=names).sort_values(["way", "pixels"]).to_string(index=False))
    print(NOTES)


if __name__ == "__main__":
    main()
