"""Texture maps side by side: ours, scikit-image, fast_glcm, ITK and mahotas.

    python benchmarks/glcm.py            about ten minutes on two cores
    python benchmarks/glcm.py --quick    a smoke run

The contenders take turns within each repetition, so that a slow minute of the machine hits all alike.
"""

import argparse
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from glcm_machine import THREADS, busy_times, memory_table
from glcm_peers import PEERS, Maps, crop_side, installed, scikit_image
from scipy import ndimage
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from glacier_nb.config.combinations import GLCM_FEATURES as FEATURES
from glacier_nb.demo.landscape import fractal
from glacier_nb.texture.glcm import glcm
from glacier_nb.tiles.read import read_raster

SIX = ("contrast", "dissimilarity", "homogeneity", "mean", "variance", "correlation")
WINDOWS, LEVELS = (5, 7, 11, 21), (16, 32, 64)
WINDOW, LEVEL = 7, 32  # where the other is varied
SIDE = 1024  # pixels, edge of the image for ours
BUSY_PIXELS = 2**23  # per measurement on busy cores: about a second
INVALID = 0.26  # share of nodata pixels in the tiles of the competition
OURS = "ours"
PACKAGES = ("numpy", "numba", "scikit-image", "mahotas", "opencv-python-headless", "itk-texturefeatures")
NOTES = """
scikit-image, mahotas, fast_glcm and ITK are timed on small crops and scaled per pixel; all on one thread.
scikit-image, fast_glcm and ours give the nine features, mahotas its thirteen, ITK its eight.
"ITK, pooled" makes one matrix of all four directions: a quarter of the others' matrices, and other values.
"ITK, four angles" makes one symmetric matrix per angle and averages, as all the others do.
"the six": contrast, dissimilarity, homogeneity, mean, variance and correlation, whose cost per pixel does
not depend on the window."""


def ours(
    grey: np.ndarray,  # (H, W) uint8 levels
    window: int,  # pixels, odd
    levels: int,  # grey levels
    features: tuple[str, ...] = FEATURES,
    threads: int = 1,
    valid: np.ndarray | None = None,  # (H, W) bool
) -> Maps:
    "The library's maps from the levels that the peers get; bins of width 1 leave the levels as they are."
    band = grey.astype(np.float32)
    settings = {"window": window, "levels": levels, "features": features, "vmin": 0, "vmax": levels}
    return dict(zip(features, glcm(band, valid, threads=threads, **settings), strict=True))


@dataclass(frozen=True)
class Contender:
    "One row of the table."

    name: str
    run: Callable[[np.ndarray, int, int], Maps]  # (grey, window, levels) to maps
    side: Callable[[int], int]  # window to pixels along the edge of its crop


def contenders(
    side: int,  # pixels along the edge of the whole image
    shrink: int,  # the peers' crops are smaller by this factor
) -> list[Contender]:
    "Ours in its variants and every peer that is installed; a line for each that is not."
    found = []
    for peer in PEERS:
        if installed(peer):
            small = replace(peer, side=peer.side // shrink)
            found.append(Contender(peer.name, peer.run, partial(crop_side, small)))
        else:
            print(f"{peer.name} skipped: {peer.package} is not installed (pip install -e .[bench])")
    variants = {OURS: {}, f"{OURS}, {THREADS} threads": {"threads": THREADS}}
    variants |= {f"{OURS}, the six": {"features": SIX}}
    variants |= {f"{OURS}, contrast and energy": {"features": ("contrast", "energy")}}
    found += [Contender(name, partial(ours, **extra), lambda _: side) for name, extra in variants.items()]
    return found


def synthetic(
    side: int,  # pixels
) -> np.ndarray:  # (side, side) float32
    "A band with structures of all sizes, as rugged ground has."
    return fractal((side, side), 2.0, 256, 2, np.random.default_rng(0))


def real(
    folder: Path,  # has Band4/*.tif, the SWIR band; 0 is nodata
    side: int,  # pixels
) -> np.ndarray:  # (side, side) float32
    "The most complete tiles side by side; a pixel without data repeats the nearest one with."
    bands = [read_raster(path).data[0] for path in sorted((folder / "Band4").glob("*.tif"))]
    bands.sort(key=lambda band: np.count_nonzero(band), reverse=True)
    n = -(-side // min(bands[0].shape))
    if len(bands) < n * n:
        raise SystemExit(f"{folder}: found {len(bands)} tiles in Band4, expected {n * n} or more")
    band = np.block([bands[row * n : (row + 1) * n] for row in range(n)])[:side, :side]
    nearest = ndimage.distance_transform_edt(band == 0, return_distances=False, return_indices=True)
    return band[tuple(nearest)]


def quantised(
    band: np.ndarray,  # (H, W)
    levels: int,  # grey levels
) -> np.ndarray:  # (H, W) uint8
    "Equal steps between the band's first and last percentile."
    low, high = np.percentile(band, (1, 99))
    return np.clip((band - low) / (high - low) * levels, 0, levels - 1).astype(np.uint8)


def cut(
    image: np.ndarray,  # (H, W)
    side: int,  # pixels
) -> np.ndarray:  # (side, side), contiguous
    "The middle of an image."
    top, left = (n - side for n in image.shape)
    return np.ascontiguousarray(image[top // 2 : top // 2 + side, left // 2 : left // 2 + side])


def milliseconds(
    run: Callable[[], Maps],
) -> float:  # ms per megapixel of map
    "Time of one run, scaled by the pixels that it gives."
    start = time.perf_counter()
    maps = run()
    return (time.perf_counter() - start) * 1e9 / next(iter(maps.values())).size


def grid(
    full: bool,  # the cross product
) -> list[tuple[int, int]]:  # (window, levels)
    "What is timed: every window and every number of levels, or one of them varied at a time."
    pairs = product(WINDOWS, LEVELS)
    return [(window, levels) for window, levels in pairs if full or window == WINDOW or levels == LEVEL]


def timings(
    image: np.ndarray,  # (H, W)
    group: list[Contender],
    settings: list[tuple[int, int]],  # (window, levels)
    repeat: int,  # repetitions, contenders in turn
) -> pd.DataFrame:  # contenders by settings, median ms per megapixel
    "The contest; a first turn on a few pixels imports and compiles."
    greys = {levels: quantised(image, levels) for _, levels in settings}
    times = defaultdict(list)
    for (window, levels), turn, rival in tqdm(list(product(settings, range(-1, repeat), group)), "timing"):
        grey = cut(greys[levels], rival.side(window) if turn >= 0 else window + 8)
        spent = milliseconds(partial(rival.run, grey, window, levels))
        if turn >= 0:
            times[rival.name, window, levels].append(spent)
    table = pd.Series({key: statistics.median(spent) for key, spent in times.items()}).unstack([1, 2])
    columns = pd.MultiIndex.from_tuples(settings, names=["window", "levels"])
    return table.reindex(index=[rival.name for rival in group], columns=columns)


def agreement(
    image: np.ndarray,  # (H, W)
    group: list[Contender],
) -> pd.DataFrame:  # features by contenders
    "Largest difference from scikit-image on a small crop, for the features that coincide by definition."
    grey = cut(quantised(image, LEVEL), 24 + WINDOW - 1)
    reference = scikit_image(grey, WINDOW, LEVEL)
    table = pd.DataFrame(index=FEATURES, dtype=float)
    for rival in group:
        for feature, values in rival.run(grey, WINDOW, LEVEL).items():
            if feature in FEATURES:
                difference = cut(values, len(reference[feature])) - reference[feature]
                table.loc[feature, rival.name] = np.abs(difference).max()
    return table


def nodata_ratio(
    image: np.ndarray,  # (H, W)
    repeat: int,  # repetitions, in turn
) -> float:
    "Time of ours with blobs of invalid pixels over time without, medians."
    grey = quantised(image, LEVEL)
    noise = fractal(grey.shape, 3.0, 100, 8, np.random.default_rng(1))
    masks = (None, noise > np.quantile(noise, INVALID))
    times = ([], [])
    for _ in tqdm(range(repeat + 1), "nodata"):
        for mask, spent in zip(masks, times, strict=True):
            spent.append(milliseconds(partial(ours, grey, WINDOW, LEVEL, valid=mask)))
    without, with_blobs = (statistics.median(spent[1:]) for spent in times)  # the first turn compiles
    return with_blobs / without


def draw(
    table: pd.DataFrame,  # contenders by (window, levels)
    path: Path,  # where the figure goes
) -> None:
    "Growth of time with the window and with the number of levels."
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    panels = (("window", "levels", LEVEL), ("levels", "window", WINDOW))
    for axis, (name, other, fixed) in zip(axes, panels, strict=True):
        for rival, times in table.xs(fixed, axis=1, level=other).sort_index(axis=1).iterrows():
            axis.plot(times.index, times, marker="o", label=rival)
        axis.set(yscale="log", xlabel=f"{name} ({other} = {fixed})", xticks=times.index)
    axes[0].set_ylabel("ms per megapixel")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def versions() -> list[str]:
    "The packages that are compared, with their versions."
    found = []
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return found


def arguments() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one repetition")
    parser.add_argument("--repeat", type=int, help="repetitions (default 5)")
    parser.add_argument("--full", action="store_true", help="every window at every number of levels")
    parser.add_argument("--tiles", type=Path, help="folder with Band4/*.tif, instead of synthetic ground")
    parser.add_argument("--figure", type=Path, default=Path("outputs/glcm_benchmark.png"))
    return parser.parse_args()


def show(
    title: str,
    table: pd.DataFrame | pd.Series,
    digits: str,  # format of a number
) -> None:
    "Print a table under its title."
    print(f"\n{title}\n{table.to_string(float_format=lambda x: format(x, digits), na_rep='-')}")


def show_busy(
    image: np.ndarray,  # (H, W)
    side: int,  # pixels along the edge of a tile
    pixels: int,  # per measurement, in as many calls as it takes
    repeat: int,  # repetitions, in turn
) -> None:
    "Print what busy cores cost each way to share them."
    grey = cut(quantised(image, LEVEL), side)
    times = busy_times(grey, WINDOW, LEVEL, pixels // grey.size, repeat)
    medians = pd.DataFrame({name: np.median(spent, 0) for name, spent in times.items()}).T
    medians.columns = ["idle s", "busy s"]
    medians["busy / idle"] = medians["busy s"] / medians["idle s"]
    fair = max(1, 2 * THREADS / os.cpu_count())
    title = f"{THREADS} threads beside {THREADS} busy processes (a fair share: {fair:.1f})"
    show(f"{title}, {pixels // grey.size} calls of {side} x {side} pixels", medians, ".2f")


def main() -> None:
    "Run everything and print it."
    options = arguments()
    repeat = options.repeat or (1 if options.quick else 5)
    side = 256 if options.quick else SIDE
    image = real(options.tiles, side) if options.tiles else synthetic(side)
    print(platform.python_version(), f"{os.cpu_count()} cores", *versions(), sep=", ")
    group = contenders(side, 4 if options.quick else 1)
    memory = memory_table(1000 if options.quick else 4000)
    show("peak memory beside the outputs, bytes per pixel", pd.Series(memory), ".1f")
    rivals = [rival for rival in group if not rival.name.startswith(f"{OURS},")]
    show("largest difference from scikit-image", agreement(image, rivals), ".0e")
    table = timings(image, group, grid(options.full), repeat)
    show("ms per megapixel", table, ",.0f")
    show(f"times {OURS}", table / table.loc[OURS], ",.2f")
    print(NOTES)
    print(f"\n{INVALID:.0%} of pixels invalid: {nodata_ratio(image, repeat):.2f} of the time without")
    for tile in (side // 8, side // 2):
        show_busy(image, tile, BUSY_PIXELS // (8 if options.quick else 1), repeat)
    draw(table, options.figure)


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
