"""Batches: the right pixels, in the right types and order, whatever the number of workers."""

import os
import threading
import time

import numpy as np
import pytest
import torch

from glacier_nb.data.stats import BandStats
from glacier_nb.data.tileset import TileSet
from glacier_nb.sampling.loader import CropLoader, cut


def make_set(with_distance):
    "A set of three tiles of different sizes."
    rng = np.random.default_rng(0)
    shapes = [(40, 50), (64, 64), (33, 90)]
    return TileSet(
        ("a", "b", "c"),
        ("background", "glacier"),
        BandStats(("x", "y"), (0.0, 0.0), (1.0, 1.0)),
        tuple(rng.normal(size=(2, *s)).astype(np.float32) for s in shapes),
        tuple(rng.choice([0, 1, 255], s).astype(np.uint8) for s in shapes),
        tuple(rng.random(s) > 0.2 for s in shapes),
        tuple(rng.normal(size=(2, *s)).astype(np.float16) for s in shapes) if with_distance else None,
    )


@pytest.fixture
def positions():
    rng = np.random.default_rng(1)
    return np.column_stack([rng.integers(0, 3, 37), rng.integers(-10, 40, (37, 2))])


@pytest.mark.parametrize("with_distance", [False, True])
def test_a_batch_holds_the_crops_in_order(positions, with_distance):
    tileset = make_set(with_distance)
    batch = cut(tileset, positions, 24)
    types = {"image": torch.float32, "label": torch.int64, "valid": torch.bool}
    assert {k: v.dtype for k, v in batch.items()} == types | (
        {"distance": torch.float32} if with_distance else {}
    )
    for k, (i, row, col) in enumerate(positions.tolist()):
        for name, array in tileset.crop(i, row, col, 24).items():
            np.testing.assert_array_equal(batch[name][k].numpy(), array)


def in_parts(positions, n):
    "The positions of each batch of up to n crops."
    return [positions[k : k + n] for k in range(0, len(positions), n)]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 8, 37, 100])
def test_workers_change_nothing(positions, workers, batch_size):
    tileset, parts = make_set(True), in_parts(positions, batch_size)
    alone, helped = (list(CropLoader(tileset, parts, 24, w)) for w in (0, workers))
    assert len(alone) == len(helped) == len(CropLoader(tileset, parts, 24))
    assert sum(len(b["label"]) for b in alone) == 37
    for a, b in zip(alone, helped, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_batches_may_differ_in_size(positions):
    parts = [positions[:3], positions[3:10], positions[10:11]]
    assert [len(b["label"]) for b in CropLoader(make_set(False), parts, 24, workers=2)] == [3, 7, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_reaches_the_loop(workers):
    parts = [np.array([[0, 0, 0]]), np.array([[7, 0, 0]]), *[np.array([[0, 0, 0]])] * 5]
    with pytest.raises(IndexError):
        list(CropLoader(make_set(False), parts, 8, workers))


def test_threads_stay_between_epochs(positions):
    loader = CropLoader(make_set(False), in_parts(positions, 2), 24, workers=3)
    list(loader)
    first = set(threading.enumerate())
    for _ in range(5):
        list(loader)
    assert set(threading.enumerate()) == first


class Slow:
    "A set whose crops take a while, and that counts them."

    classes, shapes = ("a",), [(8, 8)]

    def __init__(self):
        self.started, self.busy = 0, 0

    def crop(self, *_):
        self.started, self.busy = self.started + 1, self.busy + 1
        time.sleep(0.02)
        self.busy -= 1
        return {"valid": np.ones((8, 8), bool)}


def test_no_crop_is_cut_after_leaving_early():
    tileset, parts = Slow(), [np.zeros((1, 3), int)] * 50
    for _ in CropLoader(tileset, parts, 8, workers=2):
        break
    started = tileset.started
    assert tileset.busy == 0
    time.sleep(0.1)
    assert tileset.started == started < 6  # no more is cut ahead than there are threads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_forked_process_has_threads_of_its_own(positions):
    loader = CropLoader(make_set(False), in_parts(positions, 4), 24, workers=2)
    list(loader)
    child = os.fork()
    if child == 0:
        os._exit(0 if sum(len(b["label"]) for b in loader) == 37 else 1)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the forked process waits for threads of its parent")
    assert os.waitstatus_to_exitcode(status) == 0


def test_batches_do_not_share_memory_with_the_tiles(positions):
    tileset = make_set(False)
    before = [image.copy() for image in tileset.images]
    for batch in CropLoader(tileset, in_parts(positions, 8), 24):
        batch["image"].zero_()
    assert all(np.array_equal(a, b) for a, b in zip(before, tileset.images, strict=True))
