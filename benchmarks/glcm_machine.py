"""What a texture map asks of the machine: time on busy cores and peak memory, each in a fresh process.

A process is fresh because numba picks its threading layer once per process, and because the peak
memory of a process never falls. The functions here are importable, so that a spawned process finds them.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

import numba
import numpy as np
from tqdm import tqdm

from glacier_nb.config.combinations import GLCM_FEATURES as FEATURES
from glacier_nb.texture.glcm import glcm

THREADS = 2
STRIP = 16  # rows per task of the thread pool


@numba.njit(nogil=True)
def energy_row(
    grey,  # (H, W) uint8 levels
    window,  # pixels, odd
    levels,  # grey levels
    row,  # the row to fill
    out,  # (H, W) float32, filled
):
    "Sum of squared shares of the grey levels in the window of each pixel of a row: a stand-in for a GLCM."
    half, counts = window // 2, np.zeros(levels, np.int64)
    for column in range(grey.shape[1]):
        counts[:] = 0
        box = grey[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
        for level in box.flat:
            counts[level] += 1
        out[row, column] = (counts * counts).sum() / box.size**2


@numba.njit(nogil=True)
def energy_strip(
    grey,  # (H, W) uint8 levels
    window,  # pixels, odd
    levels,  # grey levels
    first,  # first row to fill
    out,  # (H, W) float32, filled
):
    "The stand-in for a strip of rows, on the thread that calls."
    for row in range(first, min(first + STRIP, grey.shape[0])):
        energy_row(grey, window, levels, row, out)


@numba.njit(parallel=True)
def energy_prange(
    grey,  # (H, W) uint8 levels
    window,  # pixels, odd
    levels,  # grey levels
    out,  # (H, W) float32, filled
):
    "The stand-in for all rows, on the threads of numba's layer."
    for row in numba.prange(grey.shape[0]):
        energy_row(grey, window, levels, row, out)


def run_glcm(
    grey: np.ndarray,  # (H, W) uint8 levels
    window: int,  # pixels, odd
    levels: int,  # grey levels
) -> None:
    "Our texture map, all features, on two threads."
    glcm(
        grey.astype(np.float32),
        window=window,
        levels=levels,
        features=FEATURES,
        vmin=0,
        vmax=levels,
        threads=THREADS,
    )


def run_pool(
    grey: np.ndarray,  # (H, W) uint8 levels
    window: int,  # pixels, odd
    levels: int,  # grey levels
) -> None:
    "The stand-in on strips of a thread pool."
    out = np.empty(grey.shape, np.float32)
    with ThreadPoolExecutor(THREADS) as pool:
        strips = range(0, len(grey), STRIP)
        list(pool.map(lambda first: energy_strip(grey, window, levels, first, out), strips))


def run_prange(
    grey: np.ndarray,  # (H, W) uint8 levels
    window: int,  # pixels, odd
    levels: int,  # grey levels
) -> None:
    "The stand-in under prange."
    numba.set_num_threads(min(THREADS, numba.config.NUMBA_NUM_THREADS))
    energy_prange(grey, window, levels, np.empty(grey.shape, np.float32))


SHARERS: dict[str, tuple[Callable, str]] = {  # name to (work, numba's threading layer)
    "ours": (run_glcm, "default"),
    "stand-in, thread pool": (run_pool, "default"),
    "stand-in, prange on OpenMP": (run_prange, "omp"),
    "stand-in, prange on workqueue": (run_prange, "workqueue"),
}


def set_layer(
    layer: str,  # default, omp or workqueue
) -> None:
    "Choose numba's threading layer for this process."
    numba.config.THREADING_LAYER = layer


def seconds(
    work: Callable,  # (grey, window, levels)
    grey: np.ndarray,  # (H, W) uint8 levels
    window: int,  # pixels, odd
    levels: int,  # grey levels
    calls: int,  # maps, one after the other; each ends with a wait for all threads
) -> float:
    "Wall time of some calls of `work`."
    start = time.perf_counter()
    for _ in range(calls):
        work(grey, window, levels)
    return time.perf_counter() - start


@contextmanager
def busy(
    count: int,  # processes; 0: none
) -> Iterator[None]:
    "Processes that keep a core busy each while the context lasts."
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.3 * bool(loops))  # until they loop
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def fresh_process(
    layer: str = "default",  # numba's threading layer
) -> ProcessPoolExecutor:
    "One spawned process that runs what is submitted."
    return ProcessPoolExecutor(1, get_context("spawn"), set_layer, (layer,))


def busy_times(
    grey: np.ndarray,  # (H, W) uint8 levels
    window: int,  # pixels, odd
    levels: int,  # grey levels
    calls: int,  # maps per measurement
    repeat: int,  # measurements, idle and busy in turn
    others: int = THREADS,  # processes that keep the cores busy
) -> dict[str, np.ndarray]:  # name to (repeat, 2) seconds: idle, busy
    "Time of each way to share cores, alone and beside busy processes, the ways in turn."
    pools = {name: fresh_process(layer) for name, (_, layer) in SHARERS.items()}
    times = {name: np.empty((repeat, 2)) for name in SHARERS}

    def measure(name: str, calls: int) -> float:
        return pools[name].submit(seconds, SHARERS[name][0], grey, window, levels, calls).result()

    try:
        for name in SHARERS:
            measure(name, 1)  # compiles
        for turn, state in tqdm(list(np.ndindex(repeat, 2)), "busy cores"):
            with busy(others * state):
                for name in SHARERS:
                    times[name][turn, state] = measure(name, calls)
    finally:
        for pool in pools.values():
            pool.shutdown()
    return times


def peak_rss() -> int:  # bytes
    "The most memory that this process ever had."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def extra_memory(
    side: int,  # pixels along the edge of the band
    features: tuple[str, ...],
    threads: int,
) -> float:  # bytes per pixel
    "Peak memory of one call above what was there before, without the outputs."
    settings = {"features": features, "vmin": 0.0, "vmax": 1.0, "threads": threads}
    rng = np.random.default_rng(0)
    glcm(rng.random((64, 64), dtype=np.float32), **settings)
    band = rng.random((side, side), dtype=np.float32)
    # lifts the process over its earlier peaks, its parent's included, so that the next one is the call's
    ballast = np.ones(peak_rss(), np.uint8)
    before = peak_rss()
    outputs = glcm(band, **settings)
    extra = peak_rss() - before - outputs.nbytes
    del ballast
    return extra / band.size


def memory_table(
    side: int,  # pixels along the edge of the band
) -> dict[str, float]:  # features and threads to bytes per pixel
    "Extra memory for the default features and for all, each in a fresh process."
    table = {}
    for name, features in {"contrast and energy": ("contrast", "energy"), "all nine": FEATURES}.items():
        for threads in (1, THREADS):
            with fresh_process() as pool:
                job = pool.submit(extra_memory, side, features, threads)
                table[f"{name}, threads={threads}"] = job.result()
    return table
