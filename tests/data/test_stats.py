"""Streamed quantiles against NumPy, to the last bit."""

import numpy as np
import pytest

from glacier_nb.data.stats import from_keys, sort_keys, stream_quantiles

Q = [0, 0.001, 0.25, 1 / 3, 0.5, 0.75, 0.999, 1]


def numbers(kind, n, seed):
    rng = np.random.default_rng(seed)
    values = {
        "dn": rng.normal(30000, 5000, n).round(),
        "signed": rng.normal(0, 1, n),
        "wide": rng.normal(0, 1, n) * 10.0 ** rng.integers(-40, 38, n),
        "equal": np.full(n, 7.25),
        "zeros": rng.choice([-0.0, 0.0, 1.0], n),
    }
    return values[kind].astype(np.float32)


@pytest.mark.parametrize("kind", ["dn", "signed", "wide", "equal", "zeros"])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 997])
def test_equals_numpy(kind, n):
    values = numbers(kind, n, n)
    for pieces in (1, min(n, 4)):
        found = stream_quantiles(lambda p=pieces: ([part] for part in np.array_split(values, p)), Q)
        np.testing.assert_array_equal(found, [np.quantile(values.astype(np.float64), Q)])


def test_channels_may_differ_in_length_and_be_empty():
    a, b, empty = numbers("dn", 50, 0), numbers("signed", 31, 1), np.zeros(0, np.float32)
    found = stream_quantiles(lambda: iter([[a, b[:10], empty], [empty, b[10:], empty]]), [0.1, 0.5])
    np.testing.assert_array_equal(found[:2], [np.quantile(x.astype(np.float64), [0.1, 0.5]) for x in (a, b)])
    assert np.isnan(found[2]).all()


def test_no_parts_have_no_quantiles():
    assert stream_quantiles(lambda: iter([]), [0.5]).shape == (0, 1)


def test_keys_keep_the_order_and_come_back():
    values = np.sort(
        np.concatenate([numbers("wide", 2000, 2), np.float32([np.finfo("f4").max, -1e-45, 1e-45])])
    )
    keys = sort_keys(values)
    assert (np.diff(keys.astype(np.int64)) >= 0).all()
    np.testing.assert_array_equal(from_keys(keys), values)
