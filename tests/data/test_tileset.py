"""Statistics, crops and tile sets against numpy, with hostile input."""

import json
import pickle
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from made_up import noise_tile

from glacier_nb.data.stats import BandStats, DataError, fit_stats
from glacier_nb.data.tileset import TileSet, crop_array, reflect_index
from glacier_nb.files.arrays import DiskArray
from glacier_nb.landsat import BANDS, IGNORE
from glacier_nb.texture.channels import GlcmConfig


@pytest.fixture
def tiles():
    return [noise_tile(f"00_{k:02}", seed=k) for k in range(4)]


def distance(label):
    "Something that depends on the label and is exact in half precision."
    return np.stack([np.where(label == c, -2.0, 0.5 * c) for c in range(4)])


def same(a, b):
    "Whether two sets hold the same values."
    pairs = zip((*a.images, *a.labels, *a.valids), (*b.images, *b.labels, *b.valids), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs) and all(
        np.array_equal(x, y) for x, y in zip(a.distances or (), b.distances or (), strict=True)
    )


def test_statistics_equal_numpy_and_leave_nodata_out(tiles):
    pooled = np.concatenate([t.bands[:, t.valid] for t in tiles], axis=1).astype(np.float64)
    standard, robust = fit_stats(iter(tiles)), fit_stats(iter(tiles), "robust")
    np.testing.assert_allclose(standard.center, pooled.mean(1), rtol=1e-12)
    np.testing.assert_allclose(standard.scale, pooled.std(1), rtol=1e-12)
    low, median, high = np.percentile(pooled, [25, 50, 75], axis=1)
    np.testing.assert_allclose(robust.center, median)
    np.testing.assert_allclose(robust.scale, (high - low) / 1.349)


def test_a_tile_without_valid_pixels_changes_nothing(tiles):
    empty = replace(tiles[0], id="empty", valid=np.zeros_like(tiles[0].valid))
    np.testing.assert_allclose(fit_stats([empty, *tiles]).center, fit_stats(tiles).center, rtol=1e-12)
    np.testing.assert_allclose(fit_stats([empty, *tiles]).scale, fit_stats(tiles).scale, rtol=1e-12)


def test_quartiles_of_many_pixels_are_those_of_a_sample(tiles, monkeypatch):
    exact = fit_stats(tiles, "robust")
    monkeypatch.setattr("glacier_nb.data.stats._SAMPLE", 2000)
    found = fit_stats(tiles, "robust")
    assert found.center != exact.center
    assert found == fit_stats(iter(tiles), "robust")
    np.testing.assert_allclose(found.center, exact.center, rtol=0.05)


def test_large_numbers_lose_no_digits(tiles):
    far = [replace(t, bands=(t.bands / 4000 + 1e6 * t.valid).astype(np.float32)) for t in tiles]
    pooled = np.concatenate([t.bands[:, t.valid] for t in far], axis=1).astype(np.float64)
    np.testing.assert_allclose(fit_stats(far).scale, pooled.std(1), rtol=1e-9)


@pytest.mark.parametrize("method", ["standard", "robust"])
def test_constant_band_is_named(tiles, method):
    flat = [
        replace(t, bands=np.where(np.arange(5)[:, None, None] == 3, np.float32(7), t.bands)) for t in tiles
    ]
    with pytest.raises(DataError, match="channel B6 is constant"):
        fit_stats(flat, method)


@pytest.mark.parametrize("method", ["standard", "robust"])
def test_no_valid_pixel_is_an_error(tiles, method):
    blank = [replace(t, valid=np.zeros_like(t.valid)) for t in tiles]
    for nothing in (blank, []):
        with pytest.raises(DataError, match="no valid pixel in the training tiles"):
            fit_stats(nothing, method)


def test_unknown_method_is_an_error(tiles):
    with pytest.raises(DataError, match="expected standard or robust"):
        fit_stats(tiles, "minmax")


def test_statistics_as_json(tiles):
    stats = fit_stats(tiles)
    assert BandStats.from_dict(json.loads(json.dumps(stats.to_dict()))) == stats


def test_invalid_pixels_become_exactly_zero_whatever_they_hold(tiles):
    stats, t = fit_stats(tiles), tiles[0]
    bands = np.where(t.valid, t.bands, np.nan)
    z = stats.normalise(replace(t, bands=bands))
    assert z.dtype == np.float32
    assert (z[:, ~t.valid] == 0).all()
    assert np.isfinite(z).all()
    expected = (t.bands[:, t.valid] - np.array(stats.center)[:, None]) / np.array(stats.scale)[:, None]
    np.testing.assert_allclose(z[:, t.valid], expected, atol=1e-5)


def test_wrong_number_of_channels_is_an_error(tiles):
    with pytest.raises(DataError, match="4 channels"):
        fit_stats(tiles).normalise(replace(tiles[0], bands=tiles[0].bands[:4]))


def test_texture_channels_are_neutral_where_undefined_and_in_no_statistic(tiles):
    glcm = GlcmConfig(window=5, features=("contrast", "entropy"), vmin=10000, vmax=30000)
    stats = fit_stats(tiles, glcm=glcm)
    assert stats.names == (*BANDS, "B6_contrast", "B6_entropy")
    maps = [glcm.channels(t) for t in tiles]
    known = np.concatenate(
        [m[:, t.valid & np.isfinite(m).all(0)] for m, t in zip(maps, tiles, strict=True)], axis=1
    )
    np.testing.assert_allclose(stats.center[5:], known.mean(1, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(stats.scale[5:], known.std(1, dtype=np.float64), rtol=1e-6)
    image = TileSet.build(tiles, stats).images[0]
    assert image.shape == (7, *tiles[0].valid.shape)
    assert (image[5:, np.isnan(maps[0]).any(0)] == 0).all()
    np.testing.assert_array_equal(image[:5], TileSet.build(tiles, fit_stats(tiles)).images[0])
    assert BandStats.from_dict(json.loads(json.dumps(stats.to_dict()))) == stats


def test_constant_texture_is_refused_by_name(tiles):
    glcm = GlcmConfig(window=5, features=("energy",), vmin=1e6, vmax=2e6)
    with pytest.raises(DataError, match=r"channel B6_energy is constant .*glcm_.*include_glcm=False"):
        fit_stats(tiles, glcm=glcm)


def test_the_cache_of_a_set_depends_on_its_texture(tiles, tmp_path):
    coarse, fine = (
        fit_stats(tiles, glcm=GlcmConfig(window=5, levels=n, vmin=10000, vmax=30000)) for n in (8, 64)
    )
    sets = [TileSet.build(tiles, s, cache_dir=tmp_path) for s in (coarse, fine, coarse)]
    assert same(sets[0], sets[2])
    assert not same(sets[0], sets[1])


@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize(("start", "size"), [(0, 1), (-1, 3), (-40, 90), (5, 4), (33, 12)])
def test_mirror_equals_numpy(n, start, size):
    axis = np.arange(n)
    expected = np.pad(axis, 120, mode="reflect")[120 + start : 120 + start + size]
    np.testing.assert_array_equal(axis[reflect_index(start, size, n)], expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8, bool])
@pytest.mark.parametrize(
    ("row", "col", "size"), [(3, 4, 5), (-7, 2, 16), (30, 50, 24), (-50, -60, 150), (5, 5, (9, 64))]
)
def test_crops_equal_padding_for_every_type(dtype, row, col, size):
    array = (np.random.default_rng(0).random((2, 40, 56)) * 9).astype(dtype)
    h, w = (size, size) if isinstance(size, int) else size
    padded = np.pad(array, ((0, 0), (200, 200), (200, 200)), mode="reflect")
    out = crop_array(array, row, col, size)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, padded[:, 200 + row : 200 + row + h, 200 + col : 200 + col + w])


def test_image_label_valid_and_distance_are_cut_at_the_same_place(tiles):
    tileset = TileSet.build(tiles, fit_stats(tiles), distance)
    for row, col, size in [(0, 0, 16), (-9, 41, 33), (-80, -80, 200)]:
        view = tileset.crop(2, row, col, size)
        assert (view["image"][:, ~view["valid"]] == 0).all()
        known = np.where(view["valid"], view["label"], IGNORE)
        np.testing.assert_array_equal(view["distance"], distance(known))


def test_tiles_without_a_label_are_ignored_everywhere(tiles):
    bare = [replace(t, label=None, classes=()) for t in tiles]
    assert all((label == IGNORE).all() for label in TileSet.build(bare, fit_stats(bare)).labels)


def test_memory_mapped_equals_memory(tiles, tmp_path):
    tiles[1] = noise_tile("00_01", seed=9, shape=(33, 70))  # sizes may differ
    stats = fit_stats(tiles)
    memory, mapped = (TileSet.build(iter(tiles), stats, distance, c) for c in (None, tmp_path))
    assert isinstance(mapped.images[0], DiskArray)
    assert memory.shapes == mapped.shapes == [t.valid.shape for t in tiles]
    assert same(memory, mapped)
    assert memory.nbytes == mapped.nbytes > 0
    assert same(pickle.loads(pickle.dumps(mapped)), memory)


def test_second_build_reuses_and_any_change_writes_anew(tiles, tmp_path):
    stats = fit_stats(tiles)
    TileSet.build(tiles, stats, distance, tmp_path)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert len(before) == 16
    TileSet.build(tiles, stats, distance, tmp_path)
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before
    bands, valid, label = tiles[0].bands.copy(), tiles[0].valid.copy(), tiles[0].label.copy()
    bands[0, 0, 0] += 1
    valid[0, 0] ^= True
    label[0, 0] = (label[0, 0] + 1) % 4
    changed = [replace(tiles[0], bands=bands), replace(tiles[0], valid=valid), replace(tiles[0], label=label)]
    others = [(t, stats, distance) for t in changed]
    others += [
        (tiles[0], fit_stats(tiles, "robust"), distance),
        (tiles[0], stats, lambda label: 2 * distance(label)),
    ]
    for n, (tile, s, fn) in enumerate(others, 1):
        rebuilt = TileSet.build([tile], s, fn, tmp_path)
        assert len(list(tmp_path.iterdir())) == 16 + 4 * n
        assert same(rebuilt, TileSet.build([tile], s, fn))


def test_a_write_that_fails_leaves_nothing_behind(tiles, tmp_path, monkeypatch):
    stats, save = fit_stats(tiles), np.save

    def full_disk(file, array):
        save(file, array)
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        TileSet.build(tiles, stats, None, tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    assert same(TileSet.build(tiles, stats, None, tmp_path), TileSet.build(tiles, stats))


def test_a_set_larger_than_memory_streams(tmp_path):
    stats = fit_stats([noise_tile(shape=(128, 128))])
    TileSet.build([noise_tile("warm", shape=(128, 128))], stats, None, tmp_path)
    tracemalloc.start()
    tileset = TileSet.build(
        (noise_tile(f"00_{k:02}", k, (128, 128)) for k in range(30)), stats, None, tmp_path
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < tileset.nbytes / 3


def test_wrong_sets_are_refused(tiles):
    stats = fit_stats(tiles)
    with pytest.raises(DataError, match="no tiles"):
        TileSet.build([], stats)
    with pytest.raises(DataError, match="given twice: 00_02"):
        TileSet.build([*tiles, tiles[2]], stats)
    with pytest.raises(DataError, match="different classes"):
        TileSet.build([*tiles, noise_tile("09_09", classes=("background", "glacier"))], stats)
