"""Samplers against brute force, on sets with holes, odd sizes and missing classes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import WeightedRandomSampler

from glacier_nb.data.stats import BandStats
from glacier_nb.data.tileset import TileSet
from glacier_nb.landsat import BINARY_CLASSES, CLASSES, IGNORE
from glacier_nb.sampling.index import InterfaceIndex, PixelIndex, SamplerError
from glacier_nb.sampling.loader import cut
from glacier_nb.sampling.samplers import (
    PixelCrops,
    RandomCrops,
    WeightedTiles,
    _crop_shares,
    _draw_fractions,
    _draw_from,
    _draw_integers,
    _spread,
    crop_classes,
    crop_shape,
)
from glacier_nb.tiles.read import Tile

SAMPLERS = {"random": RandomCrops, "weighted": WeightedTiles, "pixel": PixelCrops}
STATS = BandStats(tuple("abcde"), (0.0,) * 5, (1.0,) * 5)


def make_tile(name, seed=0, shape=(48, 64), classes=CLASSES):
    "A tile of noise: few lakes, holes, and ignored labels."
    rng = np.random.default_rng(seed)
    label = rng.choice(4, shape, p=(0.7, 0.25, 0.045, 0.005)).astype(np.uint8) % len(classes)
    label[rng.random(shape) < 0.05] = IGNORE
    bands = rng.normal(size=(5, *shape)).astype(np.float32)
    return Tile(name, bands, rng.random(shape) > 0.3, label, None, None, classes)


@pytest.fixture
def tiles():
    return [make_tile(f"t{k}", k, shape) for k, shape in enumerate([(48, 64), (64, 64), (80, 50)])]


@pytest.fixture
def tileset(tiles):
    return TileSet.build(tiles, STATS)


@pytest.mark.parametrize("kind", ["random", "weighted", "pixel"])
@pytest.mark.parametrize("size", [8, 33, 64, 100])
def test_positions_repeat_and_differ_by_epoch_and_seed(tileset, kind, size):
    sampler = SAMPLERS[kind](tileset, size, n=40, seed=3)
    first = sampler.positions(2)
    assert first.shape == (40, 3)
    assert np.issubdtype(first.dtype, np.integer)
    np.testing.assert_array_equal(SAMPLERS[kind](tileset, size, n=40, seed=3).positions(2), first)
    assert (sampler.positions(1) != first).any()
    assert (SAMPLERS[kind](tileset, size, n=40, seed=4).positions(2) != first).any()


@pytest.mark.parametrize("kind", ["random", "weighted", "pixel"])
def test_crops_lie_inside_where_they_fit_and_always_show_a_label(tileset, kind):
    for size in (8, 48):
        for i, row, col in SAMPLERS[kind](tileset, size, n=300).positions(0).tolist():
            height, width = tileset.shapes[i]
            assert 0 <= row <= height - size
            assert 0 <= col <= width - size
            view = tileset.crop(i, row, col, size)
            assert (view["valid"] & (view["label"] != IGNORE)).any()


def test_a_crop_larger_than_its_tile_is_centred(tileset):
    for i, row, col in RandomCrops(tileset, 100, 30).positions(0).tolist():
        height, width = tileset.shapes[i]
        assert (row, col) == ((height - 100) // 2, (width - 100) // 2)


def test_random_crops_visit_tiles_by_their_labelled_pixels(tiles, tileset):
    used = np.array([(t.valid & (t.label != IGNORE)).sum() for t in tiles])
    drawn = np.bincount(RandomCrops(tileset, 8, 500).positions(0)[:, 0], minlength=3)
    np.testing.assert_allclose(drawn, 500 * used / used.sum(), atol=1.01)


def test_no_crop_count_means_one_a_tile(tileset):
    assert len(RandomCrops(tileset, 16).positions(0)) == 3


def test_whole_tiles_come_once_each_whatever_their_sizes(tiles, tileset):
    equal = TileSet.build([replace(tiles[0], id=f"t{k}") for k in range(7)], STATS)
    positions = RandomCrops(equal, 0).positions(5)
    assert sorted(positions[:, 0]) == list(range(7))
    assert not positions[:, 1:].any()
    for kind in ("weighted", "pixel"):
        assert not SAMPLERS[kind](equal, 0, 9).positions(0)[:, 1:].any()
    mixed = RandomCrops(tileset, 0)
    positions = mixed.positions(5)
    assert sorted(positions[:, 0]) == list(range(len(tileset)))
    assert crop_shape(tileset, 0) == (80, 80)
    batch = cut(tileset, positions, 0)
    for k, (i, row, col) in enumerate(positions.tolist()):
        h, w = tileset.shapes[i]
        inside = batch["valid"][k, -row : h - row, -col : w - col]
        assert np.array_equal(inside.numpy(), tileset.valids[i])
        assert batch["valid"][k].sum() == inside.sum()
        assert not batch["image"][k, :, ~batch["valid"][k]].any()
    counted = crop_classes(tileset, positions, 0).sum(0)
    assert counted.tolist() == PixelIndex(tileset).per_tile()[:, :-1].sum(0).tolist()


def test_pixel_crops_draw_classes_by_their_fractions_and_contain_them(tileset):
    fractions = (0.1, 0.2, 0.3, 0.4)
    for c, share in enumerate(fractions):
        only = tuple(float(k == c) for k in range(4))
        sampler = PixelCrops(tileset, 9, 50, class_fractions=only, jitter=1.0)
        crops = [tileset.crop(*p, 9) for p in sampler.positions(0).tolist()]
        assert all(((v["label"] == c) & v["valid"]).any() for v in crops)
        centred = PixelCrops(tileset, 1, 200, class_fractions=fractions, jitter=0.0)
        shown = [tileset.crop(*p, 1)["label"].item() for p in centred.positions(0).tolist()]
        assert shown.count(c) == round(200 * share)


def test_jitter_moves_the_pixel_over_the_given_part_of_the_crop(tiles):
    label = np.zeros_like(tiles[1].label)
    label[32, 32] = 1
    lone = TileSet.build([replace(tiles[1], label=label, valid=np.ones_like(tiles[1].valid))], STATS)
    for jitter, reach in ((0.0, 0), (0.5, 4), (1.0, 8)):
        sampler = PixelCrops(lone, 16, 400, class_fractions=(0, 1, 0, 0), jitter=jitter)
        shift = 32 - 8 - sampler.positions(0)[:, 1:]
        assert max(reach - 1, 0) <= abs(shift).max() <= reach


def test_default_fractions_follow_the_square_root_and_skip_absent_classes(tiles):
    dry = TileSet.build(
        [replace(t, label=np.where(t.label == 3, 0, t.label).astype(np.uint8)) for t in tiles], STATS
    )
    sampler = PixelCrops(dry, 16, 64)
    pixels, fractions = sampler.index.ends[-1, :-1], _draw_fractions(sampler.index)
    np.testing.assert_allclose(fractions, np.sqrt(pixels) / np.sqrt(pixels).sum())
    assert fractions[3] == 0
    assert len(sampler.positions(0)) == 64
    with pytest.raises(SamplerError, match="no training pixel of lake"):
        PixelCrops(dry, 16, 64, class_fractions=(0.2, 0.2, 0.2, 0.4))
    assert len(PixelCrops(dry, 16, 64, class_fractions=(0.5, 0.25, 0.25, 0)).positions(0)) == 64


@pytest.mark.parametrize("bad", [(1.0,), (0.5, 0.5, 0.5, 0.5), (1.5, -0.5, 0, 0), (np.nan, 0.5, 0.5, 0)])
def test_wrong_fractions_are_refused(tileset, bad):
    with pytest.raises(SamplerError, match="class_fractions"):
        PixelCrops(tileset, 16, 64, class_fractions=bad)


@pytest.mark.parametrize("jitter", [-0.1, 1.1, float("nan")])
def test_jitter_out_of_range_is_refused(tileset, jitter):
    with pytest.raises(SamplerError, match="jitter"):
        PixelCrops(tileset, 16, 64, jitter=jitter)


def test_weights_are_the_product_of_the_boosts(tiles):
    labels = [np.zeros_like(tiles[0].label) for _ in range(4)]
    labels[1][0, 0], labels[2][0, 0] = 2, 3
    labels[3][0, :2] = 2, 3
    full = np.ones_like(tiles[0].valid)
    tileset = TileSet.build(
        [replace(tiles[0], id=f"t{k}", label=x, valid=full) for k, x in enumerate(labels)], STATS
    )
    np.testing.assert_allclose(WeightedTiles(tileset, 16, 9).weights(), np.array([1, 8, 15, 120]) / 144)
    sampler = WeightedTiles(tileset, 16, 300, boosts={"debris": 2, "lake": 0})
    np.testing.assert_array_equal(np.bincount(sampler.positions(0)[:, 0], minlength=4), [100, 200, 0, 0])


def test_tiles_without_a_used_pixel_are_never_drawn(tiles):
    blank = replace(tiles[0], id="blank", label=np.full_like(tiles[0].label, IGNORE))
    tileset = TileSet.build([blank, *tiles, replace(blank, id="also")], STATS)
    for kind in ("random", "weighted", "pixel"):
        assert set(SAMPLERS[kind](tileset, 16, 200).positions(0)[:, 0]) <= {1, 2, 3}
    with pytest.raises(SamplerError, match="no labelled valid pixel"):
        RandomCrops(TileSet.build([blank], STATS), 16, 4)


def test_weighting_needs_a_class_to_weight_by(tiles):
    binary = TileSet.build(
        [make_tile("b", classes=BINARY_CLASSES), make_tile("c", classes=BINARY_CLASSES)], STATS
    )
    alike = WeightedTiles(binary, 16, 4)  # no tile can hold a lake or debris
    np.testing.assert_array_equal(alike.weights(), [0.5, 0.5])
    for boosts in ({}, {"lake": 15, "debri": 8}):
        with pytest.raises(SamplerError, match="no class to weight tiles by"):
            WeightedTiles(TileSet.build(tiles, STATS), 16, 4, boosts=boosts)
    for boosts in ({"debris": -1.0}, {"background": 0}, {"background": np.inf}, {"background": np.nan}):
        with pytest.raises(SamplerError, match="leave no tile"):
            WeightedTiles(TileSet.build(tiles, STATS), 16, 4, boosts=boosts)


def test_spread_puts_one_point_in_each_stratum():
    points = _spread(np.random.default_rng(0), 50)
    np.testing.assert_array_equal(np.sort((points * 50).astype(int)), np.arange(50))
    assert _spread(np.random.default_rng(0), 0).size == 0


def test_a_share_of_zero_at_the_end_changes_no_draw():
    shares = np.random.default_rng(1).dirichlet(np.ones(4), 50)
    for k, share in enumerate(shares):
        plain, longer = (_draw_from(np.random.default_rng(k), 200, s) for s in (share, np.append(share, 0.0)))
        np.testing.assert_array_equal(plain, longer)


def test_pixels_of_the_crops_are_counted(tileset):
    positions = np.array([[0, 0, 0], [2, -5, 20], [1, 40, 40]])
    views = [tileset.crop(*p, 30) for p in positions.tolist()]
    used = np.stack([np.where(v["valid"], v["label"], IGNORE) for v in views])
    counts = crop_classes(tileset, positions, 30)
    np.testing.assert_array_equal(counts, np.stack([(used == c).sum((1, 2)) for c in range(4)], 1))
    expected = [*(np.mean(used[used != IGNORE] == c) for c in range(4)), np.mean(used == IGNORE)]
    np.testing.assert_allclose(_crop_shares(tileset, positions, 30), expected)


def test_whole_tiles_show_what_the_tiles_hold(tiles):
    tileset = TileSet.build([make_tile(f"t{k}", k) for k in range(3)], STATS)
    index, whole = PixelIndex(tileset), np.array([[k, 0, 0] for k in range(3)])
    np.testing.assert_array_equal(crop_classes(tileset, whole, 0), index.per_tile()[:, :-1])
    shares = _crop_shares(tileset, whole, 0)
    np.testing.assert_allclose(shares["no label"], 1 - index.ends[-1, -1] / (3 * 48 * 64))
    assert not _crop_shares(tileset, whole[:0], 0).any()


def weighted_set(tiles):
    "Eight tiles of one size: neither lake nor debris, one of them, both; and one without any label."
    labels = [np.full((48, 64), k % 2, np.uint8) for k in range(8)]
    for k, label in enumerate(labels):
        label[5, 5 : 5 + k % 3], label[20, 7 : 7 + k // 4] = 2, 3
    labels[7][:] = IGNORE
    valid = np.ones((48, 64), bool)
    return TileSet.build(
        [replace(tiles[0], id=f"t{k}", label=x, valid=valid) for k, x in enumerate(labels)], STATS
    )


@pytest.mark.parametrize("size", [0, 16])
def test_tiles_come_as_often_as_from_the_sampler_of_pytorch(tiles, size):
    tileset, epochs, n = weighted_set(tiles), 600, 20
    counts = PixelIndex(tileset).per_tile()
    factors = np.where(counts[:, 3] > 0, 15.0, 1) * np.where(counts[:, 2] > 0, 8.0, 1) * (counts[:, -1] > 0)
    assert set(factors) == {0, 1, 8, 15, 120}
    generator = torch.Generator().manual_seed(0)
    peer = list(WeightedRandomSampler(factors, epochs * n, replacement=True, generator=generator))
    expected = epochs * n * factors / factors.sum()
    sampler = WeightedTiles(tileset, size, n, boosts={"lake": 15, "debris": 8})
    ours = np.concatenate([sampler.positions(k)[:, 0] for k in range(epochs)])
    for drawn in (peer, ours):  # within four standard deviations of independent draws
        scatter = 4 * np.sqrt(np.maximum(expected * (1 - factors / factors.sum()), 0))
        assert (abs(np.bincount(drawn, minlength=8) - expected) <= scatter).all()


def test_whole_tiles_are_drawn_with_replacement(tiles):
    tileset = weighted_set(tiles)
    positions = WeightedTiles(tileset, 0, 20).positions(0)
    assert len(set(positions[:, 0])) < len(positions) == 20
    assert not positions[:, 1:].any()


def reference_pixel_crops(sampler, epoch):
    "The crops of the pixel sampler without interfaces."
    tileset, index = sampler.tileset, sampler.index
    rng, n, size = np.random.default_rng((sampler.seed, epoch)), sampler.n, sampler.crop_size
    drawn = _draw_from(rng, n, _draw_fractions(index, sampler.class_fractions))
    pixels = np.empty((n, 3), int)
    for c in np.unique(drawn):
        numbers = _draw_integers(rng, (drawn == c).sum(), index.ends[-1, c])
        pixels[drawn == c] = index.locate(c, numbers)
    pixels[:, 1:] += ((rng.random((n, 2)) - 0.5) * sampler.jitter * size).astype(int)
    room = np.array(tileset.shapes)[pixels[:, 0]] - size
    corner = np.clip(pixels[:, 1:] - size // 2, 0, np.maximum(room, 0))
    return np.column_stack([pixels[:, 0], np.where(room < 0, room // 2, corner)])


@pytest.mark.parametrize("fractions", [None, (0.1, 0.2, 0.3, 0.4), (0, 0, 1, 0), (0.5, 0.5, 0, 0)])
@pytest.mark.parametrize("size", [8, 33, 64])
def test_interface_fraction_0_changes_nothing(tileset, fractions, size):
    sampler = PixelCrops(tileset, size, 150, 3, fractions, interface_fraction=0.0)
    for epoch in range(3):
        np.testing.assert_array_equal(sampler.positions(epoch), reference_pixel_crops(sampler, epoch))
    assert "interface" not in vars(sampler)  # nor is its index built


@pytest.mark.parametrize("fraction", [0.1, 0.25, 1.0])
@pytest.mark.parametrize("pair", [None, ("lake", "background")])
def test_fraction_of_the_crops_lies_along_the_interface(tileset, fraction, pair):
    sampler = PixelCrops(
        tileset, 16, 400, 0, (1, 0, 0, 0), 0.0, fraction, interface_classes=pair, interface_width=1
    )
    pixels = sampler.draw(np.random.default_rng(0), 400)
    along = {tuple(p) for p in sampler.interface.locate(-1, np.arange(sampler.interface.ends[-1, -1]))}
    assert sum(tuple(p) in along for p in pixels) >= 400 * fraction - 1
    known = [sampler.index.known(i)[row, col] for i, row, col in pixels]
    if pair is None:  # the rest is drawn for the background
        assert abs(np.mean(np.isin(known, [1, 2])) - fraction) <= 1 / 400
    np.testing.assert_array_equal(pixels, sampler.draw(np.random.default_rng(0), 400))


def test_interface_crops_show_both_classes_and_visit_every_tile(tileset):
    sampler = PixelCrops(tileset, 16, 300, interface_fraction=1.0)
    for view in (tileset.crop(*p, 16) for p in sampler.positions(0).tolist()):
        shown = view["label"][view["valid"]]
        assert (shown == 1).any()
        assert (shown == 2).any()
    pixels = InterfaceIndex(tileset).per_tile()[:, 0]
    drawn = np.bincount(sampler.positions(0)[:, 0], minlength=3)
    assert (abs(drawn - 300 * pixels / pixels.sum()) < 2).all()  # two strata are cut at its ends


def test_interface_crops_of_binary_and_whole_tiles():
    binary = TileSet.build([make_tile(f"b{k}", k, classes=BINARY_CLASSES) for k in range(3)], STATS)
    assert len(PixelCrops(binary, 16, 20, interface_fraction=0.5).positions(0)) == 20
    assert not PixelCrops(binary, 0, 20, interface_fraction=0.5).positions(0)[:, 1:].any()
    with pytest.raises(SamplerError, match="expected two different ones of background, glacier"):
        PixelCrops(binary, 16, 20, interface_fraction=0.5, interface_classes=("glacier", "debris"))


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_interface_fraction_out_of_range_is_refused(tileset, fraction):
    with pytest.raises(SamplerError, match="interface_fraction"):
        PixelCrops(tileset, 16, 64, interface_fraction=fraction)


def test_interface_fraction_needs_an_interface(tiles):
    dry = TileSet.build(
        [replace(t, label=np.where(t.label == 2, 0, t.label).astype(np.uint8)) for t in tiles], STATS
    )
    assert len(PixelCrops(dry, 16, 64).positions(0)) == 64
    with pytest.raises(SamplerError, match=r"glacier and debris touch .* debris 0, .* background-glacier \("):
        PixelCrops(dry, 16, 64, interface_fraction=0.1)
