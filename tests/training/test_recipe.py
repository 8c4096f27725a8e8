"""The parts of a run against what they are made of."""

import math
from dataclasses import replace

import numpy as np
import pytest

from glacier_nb.augment.photometric import Augmentation
from glacier_nb.config.fields import ConfigError
from glacier_nb.config.training import TrainConfig
from glacier_nb.data.stats import BandStats, DataError
from glacier_nb.data.tileset import TileSet
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.landsat import BINARY_CLASSES, CLASSES, IGNORE
from glacier_nb.sampling.index import SamplerError
from glacier_nb.sampling.samplers import PixelCrops, RandomCrops, WeightedTiles
from glacier_nb.tiles.read import Tile, read_tiles
from glacier_nb.tiles.splits import SplitError, split
from glacier_nb.training.recipe import _inner_split, prepare_data, run_augment, run_sampler

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


@pytest.mark.parametrize("kind", ["random", "weighted", "pixel"])
def test_config_makes_the_same_sampler(kind):
    tileset = make_set()
    cfg = TrainConfig(sampler=kind, crop_size=32, samples_per_epoch=70, seed=4, lake_boost=3.0)
    direct = {
        "random": RandomCrops(tileset, 32, 70, 4),
        "weighted": WeightedTiles(tileset, 32, 70, 4, {"lake": 3, "debris": 8}),
        "pixel": PixelCrops(tileset, 32, 70, 4),
    }[kind]
    sampler = run_sampler(cfg, tileset)
    assert type(sampler) is type(direct)
    np.testing.assert_array_equal(sampler.positions(1), direct.positions(1))


def test_defaults_are_those_of_the_config():
    tileset = make_set()
    weighted = run_sampler(TrainConfig(sampler="weighted", **CROPS), tileset)
    np.testing.assert_array_equal(weighted.weights(), WeightedTiles(tileset, 32).weights())


def test_config_reads_lists_and_the_interface():
    tileset = make_set()
    given = {"class_fractions": "0.5, 0.5, 0, 0", "crop_size": 32, "samples_per_epoch": 40}
    interface = {"interface_fraction": 0.3, "interface_classes": "lake, background", "interface_width": 2}
    direct = PixelCrops(tileset, 32, 40, 0, (0.5, 0.5, 0, 0), 0.5, 0.3, ("lake", "background"), 2)
    sampler = run_sampler(TrainConfig(**given | interface), tileset)
    np.testing.assert_array_equal(sampler.positions(0), direct.positions(0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"interface_fractions": 0.5}, "did you mean 'interface_fraction'"),
        ({"samplr": "pixel"}, "did you mean 'sampler'"),
        ({"sampler": "balanced"}, "one of 'random', 'weighted', 'pixel'"),
        ({"batch_size": 0}, "batch_size = 0 is not allowed"),
    ],
)
def test_parameters_are_checked(given, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_namespace(given)


def test_parameters_that_do_not_fit_the_tiles_are_refused():
    with pytest.raises(SamplerError, match="leave no tile"):
        run_sampler(TrainConfig(sampler="weighted", debris_boost=0, lake_boost=0, **CROPS), make_set())


def test_weighted_tiles_of_binary_labels_are_all_alike():
    positions = run_sampler(TrainConfig(sampler="weighted", **CROPS), make_set(BINARY_CLASSES)).positions(0)
    assert len(np.unique(positions[:, 0])) == 5


@pytest.mark.parametrize(("n", "batch"), [(20, 32), (256, 16), (257, 16), (0, 2), (1, 1)])
def test_steps_are_the_batches_of_an_epoch(n, batch):
    cfg, tileset = TrainConfig(samples_per_epoch=n, batch_size=batch, crop_size=32), make_set()
    crops = len(run_sampler(cfg, tileset).positions(0))
    assert cfg.steps_per_epoch(len(tileset)) == math.ceil(crops / batch) == math.ceil((n or 5) / batch)


# the block that chooses the epoch


@pytest.fixture(scope="module")
def nine():
    return read_tiles(cached_demo(9, 96, 3))


def labelled(tiles):
    return {t.id: t.class_counts().tolist() for t in tiles}


@pytest.mark.parametrize("n_folds", [2, 3])
def test_the_inner_block_is_split_off_the_training_tiles(nine, n_folds):
    cfg = TrainConfig(n_folds=n_folds, include_glcm=False, fold=n_folds - 1)
    plain, data = (prepare_data(replace(cfg, select=select), nine) for select in ("last", "inner"))
    train, inner, val = (set(side.ids) for side in (data.train, data.inner, data.val))
    assert val == set(plain.val.ids)
    assert train | inner == set(plain.train.ids)
    assert min(map(len, (train, inner, val))) >= 2
    assert not train & inner
    assert len(data.inner_split.audit) == len(data.split.audit) == 0
    before, after = labelled(plain.train_tiles), labelled(data.train_tiles)
    assert labelled(data.inner_split.val) == {i: before[i] for i in inner}  # nothing near held-out tiles
    assert sum(map(sum, after.values())) < sum(sum(before[i]) for i in train)  # nor near the block
    assert data.split.dropped == []
    assert 0.3 < data.split.left < plain.split.left < 1
    assert data.stats != plain.stats
    assert (data.watched, plain.watched) == (data.inner, plain.val)
    assert f"{len(inner)} choose the epoch" in repr(data)


def test_a_trial_has_a_small_inner_block(nine):
    data = prepare_data(TrainConfig(n_folds=3, include_glcm=False, select="inner", trial=True), nine)
    assert len(data.inner) == 2
    assert {t.id for t in data.inner_split.val} == set(data.inner.ids)
    assert data.split.dropped == []


def test_an_inner_block_that_is_impossible_is_an_error_with_a_way_out(nine):
    cfg = TrainConfig(n_folds=2, include_glcm=False, select="inner")
    with pytest.raises(SplitError, match=r"select = 'inner' splits the 1 .*To fix: set select = 'last'"):
        prepare_data(cfg, nine[:2])
    assert len(prepare_data(replace(cfg, select="last"), nine[:2]).train) == 1


def test_the_inner_block_has_classes_to_tell_apart(nine):
    cfg = TrainConfig(n_folds=3, include_glcm=False, select="inner", focal_weight=1.0, boundary_weight=0.0)
    usual = set(prepare_data(cfg, nine).inner.ids)
    poor = [replace(t, label=np.zeros_like(t.label)) if t.id in usual else t for t in nine]
    sides = split(nine, 0, 3)
    sides = replace(sides, train=[t for t in poor if sides.folds[t.id] != 0])
    chosen = _inner_split(sides, 3)
    assert not usual & {t.id for t in chosen.val}  # one class only: its MCC would be 0 in every epoch
    empty = [replace(t, label=np.zeros_like(t.label)) for t in sides.train]
    with pytest.raises(SplitError, match=r"no fold of them has labels of two classes.*set select = 'last'"):
        _inner_split(replace(sides, train=empty), 3)


def lit(azimuth, tiles=3):
    "Tiles of waves across the light from an azimuth; None: of noise."
    rng, (rows, columns) = np.random.default_rng(1), np.mgrid[:64, :64]
    tileset = make_set(shapes=((64, 64),) * tiles)
    waves = rng.normal(size=(tiles, 5, 64, 64))
    if azimuth is not None:
        a = math.radians(azimuth)
        waves = np.sin((columns * np.sin(a) - rows * np.cos(a)) / 4 + 0.05 * waves)
    every = tuple(np.ones((64, 64), bool) for _ in range(tiles))
    return replace(tileset, images=tuple(waves.astype(np.float32)), valids=every)


def test_auto_mirrors_about_the_suns_axis_where_the_tiles_show_one():
    found = run_augment(TrainConfig(), lit(70))
    assert found.name == "sun"
    assert found.azimuth == pytest.approx(70, abs=3)
    assert str(found) == "sun, axis at 70°"
    assert run_augment(TrainConfig(), lit(None)) == Augmentation("photometric")
    assert run_augment(TrainConfig(sun_azimuth=157.0), lit(None)) == Augmentation("sun", azimuth=157.0)
    assert run_augment(TrainConfig(augment="photometric", seed=3), lit(70)) == Augmentation("photometric", 3)
    with pytest.raises(DataError, match="azimuth cannot be estimated"):
        run_augment(TrainConfig(augment="sun"), lit(None))


def test_the_suns_axis_of_many_tiles_is_that_of_some(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "glacier_nb.training.recipe.sun_axis", lambda images, valids: seen.append(len(images)) or 1.0
    )
    for tiles in (20, 130):
        run_augment(TrainConfig(), lit(70, tiles))
    assert seen == [20, 65]
