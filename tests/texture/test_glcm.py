"""Texture features against scikit-image, window by window; nodata, blocks, threads, memory, hostile input."""

import math
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import platformdirs
import pytest
import torch
from numba.core.registry import CPUDispatcher
from scipy.ndimage import gaussian_filter
from skimage import data as pictures
from skimage.feature import graycomatrix, graycoprops

from glacier_nb.config.combinations import GLCM_FEATURES as FEATURES
from glacier_nb.texture import numba_kernels
from glacier_nb.texture.glcm import GlcmError, _in_parts, _quantise, glcm, glcm_blocks
from glacier_nb.texture.numba_kernels import pair_offsets

ANGLES = (0, 45, 90, 135)


def pair_matrices(grey, known, levels, distance, angles):
    "Symmetric counts (levels, levels, 1, n) of one window, from its valid pairs only, one pair at a time."
    height, width = grey.shape
    counts = np.zeros((levels, levels, 1, len(angles)))
    for a, angle in enumerate(np.deg2rad(angles)):
        dr, dc = round(math.sin(angle) * distance), round(math.cos(angle) * distance)
        for r, c in np.ndindex(height, width):
            r2, c2 = r + dr, c + dc
            if 0 <= r2 < height and 0 <= c2 < width and known[r, c] and known[r2, c2]:
                counts[grey[r, c], grey[r2, c2], 0, a] += 1
                counts[grey[r2, c2], grey[r, c], 0, a] += 1
    return counts


def oracle(grey, known, r, c, window, levels, distance, angles):
    "All features at one pixel; NaN where fewer than a quarter of the window's pairs are valid."
    half = window // 2
    pad = ((half, half), (half, half))
    part = slice(r, r + window), slice(c, c + window)
    counts = pair_matrices(np.pad(grey, pad)[part], np.pad(known, pad)[part], levels, distance, angles)
    everywhere = np.ones((window, window), bool)
    most = pair_matrices(np.zeros((window, window), int), everywhere, 1, distance, angles).sum()
    if not known[r, c] or counts.sum() < most / 4:
        return np.full(len(FEATURES), np.nan)
    used = counts[..., counts.sum((0, 1, 2)) > 0]
    return np.array([graycoprops(used, name).mean() for name in FEATURES])


def compare(band, valid, points, window=7, levels=32, distance=1, angles=ANGLES, vmin=0.0, vmax=1.0):
    "Both results, in float64, at some pixels; the float32 result is checked on the way."
    grey = np.clip(np.floor((band.astype(np.float64) - vmin) / (vmax - vmin) * levels), 0, levels - 1).astype(
        int
    )
    grey = np.where(valid, grey, 0)
    options = {"window": window, "levels": levels, "distance": distance, "angles": angles}
    options |= {"features": FEATURES, "vmin": vmin, "vmax": vmax}
    exact, single = (glcm(band, valid, dtype=dtype, **options) for dtype in ("float64", "float32"))
    rows, cols = np.transpose(points)
    found = exact[:, rows, cols].T
    expected = np.array([oracle(grey, valid, r, c, window, levels, distance, angles) for r, c in points])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)
    size = np.maximum(1, np.abs(expected))
    np.testing.assert_allclose(single[:, rows, cols].T / size, expected / size, rtol=0, atol=2e-7)
    return found


def holes(shape, seed=0, fraction=0.3):
    "A valid mask with blobs of nodata."
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    return noise > np.quantile(noise, fraction)


def images(size=48):
    "Random, constant, chequered and real images."
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    gravel = pictures.gravel()[100 : 100 + size, 100 : 100 + size] / 256
    return {
        "random": rng.random((size, size)),
        "flat": np.full((size, size), 0.4),
        "chequered": (x + y) % 2 * 0.9,
    } | {"real": gravel}


POINTS = [(0, 0), (0, 47), (47, 20), (24, 24), (10, 31), (31, 3), (40, 40)]


@pytest.mark.parametrize("kind", images())
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "nodata"])
@pytest.mark.parametrize(
    ("window", "levels"), [(3, 2), (3, 256), (5, 8), (7, 32), (11, 64), (21, 256), (31, 16), (31, 2)]
)
def test_all_features_equal_scikit_image(kind, masked, window, levels):
    band = images()[kind]
    valid = holes(band.shape) if masked else np.ones(band.shape, bool)
    found = compare(band, valid, POINTS, window, levels)
    assert np.isfinite(found).any()


@pytest.mark.parametrize("distance", [1, 2, 5, 10])
@pytest.mark.parametrize("angles", [(0,), (45,), (90,), (135,), (35, 60), (-45, 200.0), ANGLES])
def test_distances_and_angles(distance, angles):
    band = images()["real"]
    compare(band, holes(band.shape, 1, 0.2), POINTS, 11, 16, distance, angles)


def test_offsets_are_those_of_scikit_image():
    for distance in (1, 2, 3, 7, 30):
        for angle in range(0, 360, 5):
            single = np.zeros((61, 61), np.uint8)
            single[30, 30] = 1
            matrix = graycomatrix(single, [distance], [np.deg2rad(angle)], levels=2, symmetric=False)
            assert matrix[1, 0, 0, 0] == 1
            dr, dc = pair_offsets(distance, (angle,))[0]
            marked = single.copy()
            marked[30 + dr, 30 + dc] = marked[30 - dr, 30 - dc] = 2
            matrix = graycomatrix(marked, [distance], [np.deg2rad(angle)], levels=3, symmetric=False)
            assert matrix[1, 2, 0, 0] == matrix[2, 1, 0, 0] == 1, (distance, angle)


def test_a_sum_that_slides_far_does_not_drift():
    band = np.random.default_rng(0).random((2000, 64)) ** 3
    compare(band, np.ones(band.shape, bool), [(1999, 0), (1990, 33), (1000, 63)], 7, 64)


def test_pixels_without_data_are_in_no_pair_and_no_range():
    band, valid = images()["real"], holes((48, 48))
    changed = np.where(valid, band, -1e9)
    changed[~valid] = np.where(np.arange((~valid).sum()) % 2, np.nan, np.inf)
    expected = glcm(band, valid, features=FEATURES, vmin=band[valid].min(), vmax=band[valid].max())
    np.testing.assert_array_equal(glcm(changed, valid, features=FEATURES), expected)
    assert np.isnan(expected[:, ~valid]).all()


def test_an_angle_without_pairs_is_left_out_of_the_mean():
    stripes = np.zeros((9, 9), bool)
    stripes[::2] = True
    band = np.random.default_rng(0).random((9, 9))
    both, across = (
        glcm(band, stripes, window=5, angles=a, features=FEATURES, vmin=0, vmax=1) for a in ((0, 90), (0,))
    )
    np.testing.assert_array_equal(both[:, 4, 4], across[:, 4, 4])
    assert np.isfinite(both[:, 4, 4]).all()


def test_masked_arrays_and_every_number_type():
    valid, dn = holes((40, 40)), np.random.default_rng(0).integers(1, 200, (40, 40))
    expected = glcm(dn.astype(float), valid)
    for dtype in ("uint8", "int16", ">u2", "uint32", "int64", "float16", "float32", ">f4"):
        np.testing.assert_array_equal(glcm(dn.astype(dtype), valid), expected)
    np.testing.assert_array_equal(glcm(np.ma.array(dn, mask=~valid)), expected)
    np.testing.assert_array_equal(glcm(np.ma.array(dn, mask=~valid)[:, ::-1])[:, :, ::-1], expected)


def test_constant_bands_and_empty_masks_are_defined():
    flat = glcm(np.full((9, 9), 5), features=FEATURES, dtype="float64")
    expected = {"homogeneity": 1, "ASM": 1, "energy": 1, "correlation": 1}
    assert {n: np.unique(v).tolist() for n, v in zip(FEATURES, flat, strict=True)} == {
        n: [expected.get(n, 0)] for n in FEATURES
    }
    np.testing.assert_array_equal(
        flat, glcm(np.full((9, 9), 5), features=FEATURES, vmin=5, vmax=5, dtype="float64")
    )
    assert np.isnan(glcm(np.full((9, 9), 5.0), np.zeros((9, 9), bool))).all()


def test_quantise_clips_at_both_ends():
    x = np.array([[-5.0, 0, 0.49, 0.5, 1, 99]])
    assert _quantise(x, np.ones(x.shape, bool), 2, 0, 1).tolist() == [[0, 0, 0, 1, 1, 1]]


def test_any_number_of_threads_gives_the_same_bits():
    band, valid = np.random.default_rng(0).random((300, 200)), holes((300, 200))
    one, two, five = (glcm(band, valid, features=FEATURES, threads=n) for n in (1, 2, 5))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, five)


def test_calls_from_several_threads_at_once():
    band = np.random.default_rng(0).random((200, 100))
    expected, found = glcm(band, threads=1), {}
    _in_parts(lambda top, *_: found.update({top: glcm(band, threads=3)}), 400, 9, threads=4)
    assert len(found) == 7
    assert all(np.array_equal(f, expected) for f in found.values())


@pytest.mark.parametrize("block", [1, 17, 64, 100])
def test_blocks_give_the_same_bits(block):
    band, valid = np.random.default_rng(0).random((90, 130)) ** 2, holes((90, 130))
    if block == 1:
        band, valid = band[:12, :15], valid[:12, :15]
    options = {"features": FEATURES, "window": 11, "vmin": 0.1, "vmax": 0.8}
    whole = glcm(band, valid, **options)
    pieces = np.full_like(whole, -1)
    for rows, cols, values in glcm_blocks(band, valid, block=block, **options):
        pieces[:, rows, cols] = values
    np.testing.assert_array_equal(pieces, whole)


def test_a_large_scene_in_blocks_gives_the_same_bits(tmp_path):
    path = tmp_path / "band.npy"
    scene = np.lib.format.open_memmap(path, "w+", np.uint16, (2100, 2100))
    tile = pictures.gravel().astype(np.uint16)
    for r in range(0, 2100, 512):
        for c in range(0, 2100, 512):
            scene[r : r + 512, c : c + 512] = (tile * (1 + r // 512) + c)[: 2100 - r, : 2100 - c]
    options = {"vmin": 0, "vmax": 5000}
    whole, count = glcm(scene, scene != 0, **options), 0
    for rows, cols, values in glcm_blocks(scene, scene != 0, block=450, **options):
        np.testing.assert_array_equal(values, whole[:, rows, cols])
        count += values[0].size
    assert count == 2100 * 2100


MEMORY = """
import resource, numpy as np
from glacier_nb.texture.glcm import FEATURES, glcm
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
band = np.random.default_rng(0).random((2000, 2000), np.float32)
valid = band > 0.1
glcm(band[:200, :200], valid[:200, :200], features=FEATURES)
before = peak()
out = glcm(band, valid, features=FEATURES)
print((peak() - before - out.nbytes) / band.size)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in kilobytes on Linux only")
def test_peak_memory_is_16_bytes_a_pixel_beside_the_outputs():
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=root, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) <= 16


@pytest.mark.parametrize("window", [3, 7, 31])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tensors_give_the_same_numbers(window, dtype):
    band, valid = images()["real"], holes((48, 48))
    for distance, angles in ((1, ANGLES), (2, (0, 30))):
        options = {
            "window": window,
            "distance": distance,
            "angles": angles,
            "features": FEATURES,
            "dtype": dtype,
        }
        expected = glcm(band, valid, **options)
        found = glcm(torch.tensor(band), torch.tensor(valid), **options)
        assert found.dtype == getattr(torch, dtype)
        size = np.maximum(1, np.nan_to_num(np.abs(expected)))
        tolerance = 1e-12 if dtype == "float64" else 2e-7
        np.testing.assert_allclose(found.numpy() / size, expected / size, rtol=0, atol=tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_tensors_on_a_gpu_stay_there():
    band, valid = np.random.default_rng(0).random((300, 400)), holes((300, 400))
    found = glcm(torch.tensor(band).cuda(), torch.tensor(valid).cuda(), features=FEATURES, dtype="float64")
    assert found.is_cuda
    expected = glcm(band, valid, features=FEATURES, dtype="float64")
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=1e-9, atol=1e-9)


def test_tensors_raise_the_errors_of_arrays():
    band = torch.rand(20, 20)
    with pytest.raises(GlcmError, match="NaN or infinite valid pixels = 1 "):
        glcm(band.clone().index_put_((torch.tensor(3), torch.tensor(3)), torch.tensor(torch.nan)))
    with pytest.raises(GlcmError, match="vmin below vmax"):
        glcm(band, vmin=2, vmax=1)
    with pytest.raises(GlcmError, match="that of the band"):
        glcm(band, torch.ones(3, 3, dtype=torch.bool))
    assert glcm(torch.full((9, 9), 5)).unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 8}, "window = 8 .*odd number of pixels from 3 to 31"),
        ({"window": 1}, "odd number"),
        ({"window": 33}, "odd number"),
        ({"window": 7.0}, "odd number"),
        ({"window": True}, "odd number"),
        ({"window": 31}, "at most the tile's smaller side \\(20 pixels\\)"),
        ({"levels": 1}, "levels = 1 .*2 to 256"),
        ({"levels": 257}, "2 to 256"),
        ({"features": ("contrst",)}, "did you mean 'contrast'"),
        ({"features": "contrast,xyz"}, "the features are contrast, "),
        ({"features": ()}, "at least one"),
        ({"features": ("ASM", "ASM")}, "each feature once"),
        ({"distance": 0}, "1 to 6 pixels"),
        ({"distance": 7}, "1 to 6 pixels"),
        ({"angles": ()}, "angles in degrees"),
        ({"angles": (0, math.nan)}, "angles in degrees"),
        ({"vmin": math.nan}, "vmin = nan .*finite"),
        ({"vmax": math.inf}, "finite"),
        ({"vmin": 5, "vmax": 4}, "vmin below vmax"),
        ({"vmin": 5, "vmax": 5}, "vmin below vmax"),
        ({"dtype": "int16"}, "float32 or float64"),
        ({"threads": 0}, "at least 1"),
    ],
)
def test_options_that_are_not_allowed(options, message):
    with pytest.raises(GlcmError, match=message):
        glcm(np.random.default_rng(0).random((20, 30)), **options)


def test_bands_and_masks_that_do_not_fit():
    band = np.random.default_rng(0).random((20, 30))
    with pytest.raises(GlcmError, match=r"\(3, 20, 30\).*one band"):
        glcm(np.stack([band] * 3))
    with pytest.raises(GlcmError, match=r"\(20, 29\).*that of the band"):
        glcm(band, np.ones((20, 29), bool))
    with pytest.raises(GlcmError, match="bool"):
        glcm(band, np.ones((20, 30), np.uint8))
    band[3, 4:7] = np.nan, np.inf, -np.inf
    with pytest.raises(GlcmError, match=r"infinite valid pixels = 3 .*mark them invalid"):
        glcm(band)
    with pytest.raises(GlcmError, match="infinite valid pixels = 3 "):
        list(glcm_blocks(band, vmin=0, vmax=1))
    assert np.isfinite(glcm(band, np.isfinite(band))).any()


def test_blocks_check_their_options_at_once():
    band = np.zeros((20, 30))
    for options, message in (
        ({"block": 0}, "block = 0"),
        ({"vmax": None}, "one range"),
        ({"window": 4}, "odd"),
    ):
        with pytest.raises(GlcmError, match=message):
            glcm_blocks(band, **({"vmin": 0, "vmax": 1} | options))


@pytest.mark.filterwarnings("error")
def test_nothing_warns():
    glcm(np.full((9, 9), 5.0), features=FEATURES)
    glcm(np.full((9, 9), np.nan), np.zeros((9, 9), bool), features=FEATURES)
    glcm(np.random.default_rng(0).random((20, 20)), holes((20, 20)), features=FEATURES)


def test_compiled_loops_are_cached_for_the_user_and_not_beside_the_module(monkeypatch, tmp_path):
    glcm(np.eye(9, dtype=np.float32), np.ones((9, 9), bool))
    user = Path(platformdirs.user_cache_dir("glacier-nb", appauthor=False)) / "numba"
    found = {name: f for name, f in vars(numba_kernels).items() if isinstance(f, CPUDispatcher)}
    assert len(found) == 10
    for name, function in found.items():
        folder = Path(function.stats.cache_path)
        assert user in folder.parents
        assert list(folder.glob(f"numba_kernels.{name}-*.nbi"))  # the next process need not compile it
    assert numba.config.CACHE_DIR == ""
    numba_kernels._compiled_folder.cache_clear()
    monkeypatch.setattr(
        platformdirs, "user_cache_dir", lambda *args, **kwargs: str(tmp_path / "file" / "sub")
    )
    (tmp_path / "file").write_text("")
    uncached = numba_kernels._kernel()(lambda x: x + 1)
    numba_kernels._compiled_folder.cache_clear()
    assert uncached(1) == 2
    assert uncached.stats.cache_path is None
