"""Batches: the right pixels, in the right types and order, whatever the number of workers."""

import threading

import numpy as np
import pytest
import torch

from glacier_nb.data import BandStats, TileSet
from glacier_nb.loader import CropLoader, cut


def make_set(with_distance, cache=None):
    "Three sets of arrays of different sizes."
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


def batches(positions, size):
    "The positions of each batch."
    return [positions[k : k + size] for k in range(0, len(positions), size)]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 8, 37, 100])
def test_workers_change_nothing(positions, workers, batch_size):
    tileset = make_set(True)
    parts = batches(positions, batch_size)
    alone, helped = (list(CropLoader(tileset, parts, 24, w)) for w in (0, workers))
    assert len(alone) == len(helped) == len(CropLoader(tileset, parts, 24)) == len(parts)
    assert sum(len(b["label"]) for b in alone) == 37
    for a, b in zip(alone, helped, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_reaches_the_loop(workers):
    with pytest.raises(IndexError):
        list(CropLoader(make_set(False), np.array([[[0, 0, 0]], [[7, 0, 0]]]), 8, workers))


def test_leaving_early_ends_the_threads(positions):
    before = threading.active_count()
    for _ in CropLoader(make_set(False), batches(positions, 2), 24, workers=3):
        break
    assert threading.active_count() == before


def test_batches_do_not_share_memory_with_the_tiles(positions):
    tileset = make_set(False)
    before = [image.copy() for image in tileset.images]
    for batch in CropLoader(tileset, batches(positions, 8), 24):
        batch["image"].zero_()
    assert all(np.array_equal(a, b) for a, b in zip(before, tileset.images, strict=True))
