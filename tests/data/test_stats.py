"""Quartiles from a sample of the pixels against NumPy; channels that are defined nowhere."""

from dataclasses import replace

import numpy as np
import pytest
from affine import Affine

from glacier_nb.config.training import TrainConfig
from glacier_nb.data.stats import DataError, _median_iqr, fit_stats
from glacier_nb.landsat import BANDS
from glacier_nb.texture.channels import GlcmConfig
from glacier_nb.tiles.read import Tile


def numbers(kind, n, seed):
    rng = np.random.default_rng(seed)
    values = {
        "dn": rng.normal(30000, 5000, n).round(),
        "signed": rng.normal(0, 1, n),
        "wide": rng.normal(0, 1, n) * 10.0 ** rng.integers(-40, 38, n),
        "equal": np.full(n, 7.25),
        "zeros": rng.choice([-0.0, 0.0, 1.0], n),
    }
    return values[kind]


def expected(values):
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return [median, (high - low) / 1.349]


@pytest.mark.parametrize("kind", ["dn", "signed", "wide", "equal", "zeros"])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 997])
def test_all_pixels_give_the_quartiles_of_numpy(kind, n):
    values = numbers(kind, n, n)
    for pieces in (1, min(n, 4)):
        found = _median_iqr([[part] for part in np.array_split(values, pieces)], share=1)
        np.testing.assert_array_equal(found[:, 0], expected(values))


def test_channels_may_differ_in_length_and_be_empty():
    a, b, empty = numbers("dn", 50, 0), numbers("signed", 31, 1), np.zeros(0)
    for share in (1, 0.5):
        found = _median_iqr([[a, b[:10], empty], [empty, b[10:], empty]], share)
        assert np.isnan(found[:, 2]).all()
        assert np.isfinite(found[:, :2]).all()
    assert _median_iqr([], 1).shape == (2, 0)


@pytest.mark.parametrize("kind", ["dn", "signed"])
def test_a_sample_is_close_and_always_the_same(kind):
    values = numbers(kind, 100_000, 3)
    parts = [[part] for part in np.array_split(np.sort(values), 7)]  # tiles that differ much
    found, exact = _median_iqr(parts, share=0.1), np.array(expected(values))
    np.testing.assert_allclose(found[:, 0], exact, rtol=0, atol=0.02 * exact[1])
    assert (found[:, 0] != exact).any()
    np.testing.assert_array_equal(_median_iqr(iter(parts), share=0.1), found)


@pytest.fixture
def tile():
    """Random bands, valid everywhere."""
    bands = np.random.default_rng(0).normal(30000, 3000, (5, 48, 48)).astype("float32")
    return Tile("a", bands, np.ones((48, 48), bool), None, None, Affine.identity(), ())


@pytest.mark.parametrize("method", ["standard", "robust"])
def test_texture_between_stripes(tile, method):
    """The channels without a value are named, and the way out works; where some are defined all is well."""
    rows = np.arange(48)[:, None]
    for valid_rows, defined in ((1, False), (2, False), (3, True)):
        striped = [replace(tile, valid=tile.valid & (rows % 6 < valid_rows))]
        glcm = GlcmConfig.fit(striped, TrainConfig())
        if defined:
            assert fit_stats(striped, method, glcm).names == (*BANDS, "B6_contrast", "B6_energy")
            continue
        with pytest.raises(DataError, match=r"texture channel B6_contrast, B6_energy .*include_glcm=False"):
            fit_stats(striped, method, glcm)
        assert (
            fit_stats(striped, method, GlcmConfig.fit(striped, TrainConfig(include_glcm=False))).names
            == BANDS
        )


@pytest.mark.parametrize("method", ["standard", "robust"])
def test_no_valid_pixel_at_all(tile, method):
    with pytest.raises(DataError, match=r"^no valid pixel in the training tiles"):
        fit_stats([replace(tile, valid=~tile.valid)], method)
