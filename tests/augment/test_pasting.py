"""Copy-paste: which objects, where they come to lie, and draws that depend on seed, epoch and batch alone."""

import numpy as np
import pytest
import torch

from glacier_nb.augment.pasting import PasteObjects, _rare_objects
from glacier_nb.config.training import TrainConfig
from glacier_nb.data.stats import BandStats, DataError
from glacier_nb.data.tileset import TileSet
from glacier_nb.landsat import BINARY_CLASSES, CLASSES, IGNORE
from glacier_nb.parallel.ranks import Shard
from glacier_nb.tiles.read import Tile
from glacier_nb.training.recipe import run_paste

STATS = BandStats(tuple("abcde"), (0.0,) * 5, (1.0,) * 5)


def tileset(label, valid=None, classes=CLASSES):
    "One tile whose first band counts the pixels."
    valid = np.ones(label.shape, bool) if valid is None else valid
    bands = np.ones((5, *label.shape), np.float32)
    bands[0] = np.arange(1, label.size + 1).reshape(label.shape)
    return TileSet.build([Tile("t", bands, valid, label, None, None, classes)], STATS)


@pytest.fixture
def lakes():
    "Glacier with a lake of 3 x 5 pixels, one of 2 x 2, and one without data."
    label, valid = np.ones((64, 64), np.uint8), np.ones((64, 64), bool)
    label[20:23, 30:35] = label[40:42, 40:42] = label[50:54, 10:14] = 3
    valid[50:54, 10:14] = False
    return tileset(label, valid)


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    label, valid = torch.ones(8, 32, 32, dtype=torch.int64), torch.ones(8, 32, 32, dtype=torch.bool)
    image = torch.randn(8, 5, 32, 32, generator=g)
    return {"image": image, "label": label, "valid": valid, "distance": torch.ones(8, 4, 32, 32)}


def test_objects_are_the_parts_of_rare_classes(lakes):
    (found,) = _rare_objects(lakes)  # the others are too small, and without data
    assert (found.code, found.around, int(found.inside.sum()), int(found.copied.sum())) == (3, 1, 15, 7 * 9)
    np.testing.assert_array_equal(found.image, lakes.images[0][:, 18:25, 28:37])


@pytest.mark.parametrize("share", [0.005, 0.02])
def test_a_class_is_rare_below_one_percent(share):
    label = np.zeros((50, 50), np.uint8)
    label.flat[: round(share * label.size)] = 2
    assert len(_rare_objects(tileset(label))) == (share < 0.01)


def test_binary_labels_have_no_rare_class(batch):
    label = np.zeros((64, 64), np.uint8)
    label[:, :20] = 1
    paste = run_paste(TrainConfig(copy_paste=1.0), tileset(label, classes=BINARY_CLASSES))
    assert paste(batch, 0, 0) is batch


def test_pixels_label_and_distance_are_pasted_together(lakes, batch):
    before = {name: x.clone() for name, x in batch.items()}
    out = PasteObjects.of(lakes, 1.0)(batch, 0, 0)
    assert all(torch.equal(batch[name], x) for name, x in before.items())
    lake = out["label"] == 3
    assert lake.sum((1, 2)).tolist() == [15] * 8
    changed = (out["image"] != batch["image"]).all(1) & (out["distance"] == 0).all(1)
    assert changed.sum((1, 2)).tolist() == [63] * 8
    assert not (lake & ~changed).any()
    wanted = torch.from_numpy(lakes.images[0][0, 20:23, 30:35]).flatten()
    for k in range(8):
        assert torch.equal(out["image"][k, 0][lake[k]].sort()[0], wanted)
    shapes = {tuple(int(np.ptp(x)) + 1 for x in torch.where(one)) for one in lake}
    assert shapes == {(3, 5), (5, 3)}  # turned


def test_a_lake_on_ice_is_pasted_on_ice(lakes, batch):
    batch["label"][:] = 0
    paste = PasteObjects.of(lakes, 1.0)
    assert torch.equal(paste(batch, 0, 0)["label"], batch["label"])
    batch["label"][:, 9, 20] = 1
    lake = paste(batch, 0, 0)["label"] == 3
    assert lake[:, 9, 20].all()


def test_nothing_is_pasted_where_pixels_are_unknown_or_room_is_missing(lakes, batch):
    paste = PasteObjects.of(lakes, 1.0)
    unlabelled = batch | {"label": torch.full_like(batch["label"], IGNORE)}
    small = {name: x[..., :6, :6] for name, x in batch.items()}
    for unfit in (unlabelled, batch | {"valid": ~batch["valid"]}, small):
        out = paste(unfit, 0, 0)
        assert all(torch.equal(out[name], unfit[name]) for name in unfit)


def test_draws_depend_on_seed_epoch_and_number_alone(lakes, batch):
    paste = PasteObjects.of(lakes, 0.5, 7)
    first = paste(batch, 3, 2)["label"]
    torch.manual_seed(1)
    assert torch.equal(paste(batch, 3, 2)["label"], first)
    for other in (PasteObjects.of(lakes, 0.5, 8)(batch, 3, 2), paste(batch, 4, 2), paste(batch, 3, 1)):
        assert not torch.equal(other["label"], first)
    shards = [Shard(0, 3, 8), Shard(3, 8, 8)]
    parts = [paste({n: x[s.start : s.stop] for n, x in batch.items()}, 3, 2, s)["label"] for s in shards]
    assert torch.equal(torch.cat(parts), first)
    assert 0 < (first == 3).any(2).any(1).sum() < 8


def test_a_probability_outside_0_to_1_is_refused(lakes):
    with pytest.raises(DataError, match="expected a number from 0 to 1"):
        PasteObjects.of(lakes, 1.5)
