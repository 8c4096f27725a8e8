"""Texture channels of a run: fitting the range, the cache, effect sizes, hostile input."""

from dataclasses import replace

import numpy as np
import pytest
from made_up import noise_tile
from scipy.stats import mannwhitneyu

import glacier_nb.texture.channels as texture
from glacier_nb.config.training import TrainConfig
from glacier_nb.landsat import IGNORE
from glacier_nb.texture.channels import GlcmConfig, _effect_sizes, _superiority
from glacier_nb.texture.glcm import GlcmError, glcm


@pytest.fixture
def tiles():
    return [noise_tile(f"00_{k:02}", seed=k) for k in range(4)]


def test_the_range_is_that_of_the_valid_training_pixels(tiles):
    cfg = GlcmConfig.fit(
        tiles, TrainConfig(glcm_band="B3", glcm_window=9, glcm_levels=64, glcm_features="ASM, mean")
    )
    pooled = np.concatenate([t.bands[1][t.valid] for t in tiles])
    assert (cfg.vmin, cfg.vmax) == pytest.approx(np.percentile(pooled, [0.1, 99.9]))
    assert (cfg.band, cfg.window, cfg.levels, cfg.features) == ("B3", 9, 64, ("ASM", "mean"))
    changed = [replace(t, bands=np.where(t.valid, t.bands, 1e6).astype(np.float32)) for t in tiles]
    assert GlcmConfig.fit(changed, TrainConfig()) == GlcmConfig.fit(tiles, TrainConfig())


def test_without_glcm_or_without_pixels(tiles):
    assert GlcmConfig.fit(tiles, TrainConfig(include_glcm=False)) is None
    empty = [replace(t, valid=np.zeros_like(t.valid)) for t in tiles]
    with pytest.raises(GlcmError, match="no valid pixel in 4 training tiles"):
        GlcmConfig.fit(empty, TrainConfig())


def test_channels_are_those_of_the_band_with_one_range(tiles):
    cfg = GlcmConfig("B3", 5, 16, ("energy", "contrast"), 12000, 28000)
    expected = glcm(
        tiles[0].bands[1],
        tiles[0].valid,
        window=5,
        levels=16,
        features=("energy", "contrast"),
        vmin=12000,
        vmax=28000,
    )
    np.testing.assert_array_equal(cfg.channels(tiles[0]), expected)


def test_the_cache_goes_by_content(tiles, tmp_path, monkeypatch):
    cfg, tile, calls = GlcmConfig(vmin=12000, vmax=28000), tiles[0], []
    monkeypatch.setattr(texture, "glcm", lambda *a, **k: calls.append(1) or glcm(*a, **k))
    first = cfg.channels(tile, tmp_path)
    same = replace(tile, id="renamed", bands=tile.bands.copy(), label=None)
    np.testing.assert_array_equal(cfg.channels(same, tmp_path), first)
    assert len(calls) == 1
    brighter = replace(tile, bands=tile.bands + 1000 * tile.valid)
    hole = replace(tile, valid=tile.valid & (np.arange(56) > 9))
    for t, c in (
        (brighter, cfg),
        (hole, cfg),
        (tile, replace(cfg, levels=8)),
        (tile, replace(cfg, vmax=29000)),
    ):
        assert not np.array_equal(c.channels(t, tmp_path), first, equal_nan=True)
    assert len(calls) == len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("damage", [b"", b"no array", None])
def test_a_damaged_cache_file_is_written_again(tiles, tmp_path, damage):
    cfg = GlcmConfig(vmin=12000, vmax=28000)
    first = cfg.channels(tiles[0], tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    np.testing.assert_array_equal(cfg.channels(tiles[0], tmp_path), first)
    np.testing.assert_array_equal(np.load(path), first)


def test_errors_name_the_tile(tiles, tmp_path):
    small = replace(tiles[1], bands=tiles[1].bands[:, :20], valid=tiles[1].valid[:20])
    with pytest.raises(GlcmError, match=r"tile 00_01: window = 31 .*smaller side \(20 pixels\)"):
        GlcmConfig(window=31).channels(small, tmp_path)
    assert not list(tmp_path.iterdir())


def test_superiority_is_mann_whitney():
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(0, 9, 40) + 1.0, rng.integers(0, 9, 70) * 1.0) for _ in range(6)]
    a, b = (np.concatenate(v) for v in zip(*pairs, strict=True))
    value, low, high = _superiority(pairs)
    assert value == pytest.approx(mannwhitneyu(a, b).statistic / len(a) / len(b), abs=1e-12)
    assert low < value < high
    assert _superiority(pairs) == (value, low, high)
    assert _superiority(pairs, seed=1)[1:] != (low, high)
    assert _superiority([(b, a) for a, b in pairs])[0] == pytest.approx(1 - value)
    assert _superiority([(np.ones(3), np.zeros(3))]) == (1, 1, 1)


def test_effect_sizes_leave_ignored_undefined_and_outside_pixels_out(tiles):
    rng = np.random.default_rng(0)
    maps = {t.id: (t.label[None] + rng.normal(0, 0.01, (1, *t.label.shape))) for t in tiles}
    plain = _effect_sizes(tiles, maps, ("m",), stride=1)
    assert plain.effect.to_numpy() == pytest.approx(1, abs=1e-4)
    changed = {i: np.where(np.arange(56) < 9, -9.0, m) for i, m in maps.items()}
    ignored = [replace(t, label=np.where(np.arange(56) < 9, IGNORE, t.label).astype(np.uint8)) for t in tiles]
    undefined = {i: np.where(np.arange(56) < 9, np.nan, m) for i, m in changed.items()}
    inside = {t.id: np.broadcast_to(np.arange(56) >= 9, t.label.shape) for t in tiles}
    for case in ((ignored, changed, None), (tiles, undefined, None), (tiles, changed, inside)):
        assert _effect_sizes(*case[:2], ("m",), case[2], stride=1).effect.to_numpy() == pytest.approx(
            1, abs=1e-4
        )
    assert _effect_sizes(tiles, changed, ("m",), stride=1).effect.max() < 0.95
