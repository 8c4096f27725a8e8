"""The table of recipes against direct counts."""

import math

import numpy as np
import pytest

from glacier_nb.config.fields import ConfigError
from glacier_nb.config.training import TrainConfig
from glacier_nb.data.stats import BandStats
from glacier_nb.data.tileset import TileSet
from glacier_nb.landsat import BINARY_CLASSES, CLASSES, IGNORE
from glacier_nb.sampling.index import SamplerError, near_interface
from glacier_nb.sampling.samplers import config_sampler, interface_share, sampling_table
from glacier_nb.tiles.read import Tile

STATS = BandStats(tuple("abcde"), (0.0,) * 5, (1.0,) * 5)
CROPS = {"crop_size": 32, "samples_per_epoch": 40, "batch_size": 16}


def make_set(classes=CLASSES, shapes=((64, 96),) * 5):
    "Tiles of blocks with holes and ignored labels."
    rng, tiles = np.random.default_rng(0), []
    for k, shape in enumerate(shapes):
        blocks = rng.choice(len(classes), (13, 13))
        label = np.kron(blocks, np.ones((8, 8), int))[: shape[0], : shape[1]].astype(np.uint8)
        label[rng.random(shape) < 0.05] = IGNORE
        valid = rng.random(shape) > 0.2
        tiles.append(Tile(f"t{k}", np.ones((5, *shape), np.float32), valid, label, None, None, classes))
    return TileSet.build(tiles, STATS)


def test_a_row_is_the_content_of_the_crops():
    tileset, given = make_set(), {"sampler": "pixel"} | CROPS
    row = sampling_table(tileset, {"mine": given}, epoch=3).loc["mine"]
    positions = config_sampler(tileset, given).positions(3).tolist()
    views = [tileset.crop(*p, 32) for p in positions]
    labels = [np.where(v["valid"], v["label"], IGNORE) for v in views]
    known = np.concatenate([x[x != IGNORE] for x in labels])
    total = sum((v & (x != IGNORE)).sum() for v, x in zip(tileset.valids, tileset.labels, strict=True))
    assert (row.crops, row.batch, row.steps, row.tiles) == (40, 16, 3, len({p[0] for p in positions}))
    np.testing.assert_allclose(row[list(CLASSES)].astype(float), [np.mean(known == c) for c in range(4)])
    np.testing.assert_allclose(row["passes"], len(known) / total)
    np.testing.assert_allclose(row["no label"], 1 - len(known) / (40 * 32**2))
    interface = sum(near_interface(x, (1, 2), 3).sum() for x in labels)
    np.testing.assert_allclose(row["glacier-debris"], interface / len(known))


def test_whole_tiles_are_the_row_of_all_tiles():
    tileset = make_set()
    whole = {"sampler": "random", "crop_size": 0, "samples_per_epoch": 0, "batch_size": 32}
    table = sampling_table(tileset, {"whole": whole})
    assert table.loc["whole", ["crops", "steps", "tiles"]].tolist() == [5, 1, 5]
    same = [c for c in table if c not in ("crops", "batch", "steps")]
    np.testing.assert_allclose(*table[same].astype(float).to_numpy())


@pytest.mark.parametrize(("n", "batch"), [(20, 32), (256, 16), (257, 16), (0, 2), (1, 1)])
def test_steps_are_the_batches_of_an_epoch(n, batch):
    given = {"samples_per_epoch": n, "batch_size": batch, "crop_size": 32}
    table = sampling_table(make_set(), {"mine": given})
    assert table.loc["mine", "steps"] == math.ceil((n or 5) / batch)


def test_binary_tiles_of_any_size_and_another_interface():
    table = sampling_table(make_set(BINARY_CLASSES, ((64, 64), (90, 40))), {"mine": CROPS})
    assert list(table)[5:] == [*BINARY_CLASSES, "no label", "background-glacier"]
    table = sampling_table(make_set(), {"mine": CROPS}, interface=("lake", "glacier"))
    assert 0 < table.loc["mine", "lake-glacier"] < 1


def test_an_interface_that_does_not_exist_has_share_0():
    tileset = make_set(shapes=((64, 64),))
    tileset.labels[0][:] = 1
    table = sampling_table(tileset, {"mine": CROPS})
    assert table["glacier-debris"].tolist() == [0, 0]
    assert interface_share(tileset, np.zeros((0, 3), int), 32, (1, 2)) == 0


def test_config_and_parameters_give_the_same_row():
    cfg = TrainConfig(sampler="random", **CROPS)
    rows = sampling_table(make_set(), {"config": cfg, "parameters": {"sampler": "random"} | CROPS})
    assert rows.loc["config"].equals(rows.loc["parameters"])


def test_wrong_recipes_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'batch_size'"):
        sampling_table(make_set(), {"mine": {"batchsize": 3}})
    with pytest.raises(SamplerError, match="whole tiles"):
        sampling_table(make_set(shapes=((64, 64), (90, 40))), {"mine": {"crop_size": 0}})
    with pytest.raises(SamplerError, match="leave no tile"):
        sampling_table(
            make_set(), {"mine": {"sampler": "weighted", "debris_boost": 0, "lake_boost": 0} | CROPS}
        )


def test_weighted_tiles_of_binary_labels_are_all_alike():
    table = sampling_table(make_set(BINARY_CLASSES), {"mine": {"sampler": "weighted"} | CROPS})
    assert table.loc["mine", "tiles"] == table.loc["all tiles", "tiles"]
