"""Other ways to a texture map: each peer takes grey levels and gives feature maps that can be compared.

Every peer computes all that it can at once, on one thread: `scikit_image` and `mahotas` window by window,
`fast_glcm` plane by plane, `itk_pooled` and `itk_four` with ITK's own filter. Maps with one of the names
of `glacier_nb.texture.glcm.FEATURES` are that feature by definition; the others have names of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import xlogy
from skimage.feature import graycomatrix, graycoprops

from glacier_nb.config.combinations import GLCM_FEATURES as FEATURES

STEPS = {0: (0, 1), 45: (1, 1), 90: (1, 0), 135: (1, -1)}  # degrees to (rows, columns), as in scikit-image
# where mahotas keeps those of its thirteen features that are ours too
HARALICK = {"ASM": 0, "contrast": 1, "correlation": 2, "variance": 3, "homogeneity": 4, "entropy": 8}

Maps = dict[str, np.ndarray]  # feature to (h, w) map


def scikit_image(
    grey: np.ndarray,  # (H, W) uint8 levels
    window: int,  # pixels, odd
    levels: int,  # grey levels
) -> Maps:  # of the windows that lie inside
    "graycomatrix and graycoprops of every window, averaged over the four angles."
    views = sliding_window_view(grey, (window, window))
    maps = np.empty((len(FEATURES), *views.shape[:2]))
    angles = np.deg2rad(list(STEPS))
    for at in np.ndindex(views.shape[:2]):
        matrix = graycomatrix(views[at], [1], angles, levels=levels, symmetric=True, normed=True)
        maps[:, *at] = [graycoprops(matrix, feature).mean() for feature in FEATURES]
    return dict(zip(FEATURES, maps, strict=True))


def mahotas(
    grey: np.ndarray,  # (H, W) uint8 levels
    window: int,  # pixels, odd
    levels: int,  # unused: mahotas takes the largest level of a window
) -> Maps:  # of the windows that lie inside
    "Haralick's thirteen features of every window; six of them are ours too."
    from mahotas.features import haralick

    views = sliding_window_view(grey, (window, window))
    every = np.empty((13, *views.shape[:2]))
    for at in np.ndindex(views.shape[:2]):
        every[:, *at] = haralick(views[at], return_mean=True)
    every[HARALICK["entropy"]] *= np.log(2)  # bits to nats
    return {feature: every[k] for feature, k in HARALICK.items()}


def itk_maps(
    grey: np.ndarray,  # (H, W) uint8 levels
    window: int,  # pixels, odd
    levels: int,  # grey levels
    steps: list[tuple[int, int]],  # (rows, columns), counted into one matrix as they are
) -> np.ndarray:  # (H, W, 8) ITK's features; an edge repeats its pixels
    "ITK's co-occurrence filter on one thread."
    import itk

    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(1)
    image = itk.image_from_array(grey.astype(np.float32))
    offsets = itk.VectorContainer[itk.UC, itk.Offset[2]].New()
    for index, (row, column) in enumerate(steps):
        offsets.InsertElement(index, itk.Offset[2]((column, row)))
    run = itk.CoocurrenceTextureFeaturesImageFilter[type(image), itk.VectorImage[itk.F, 2]].New(image)
    run.SetNumberOfBinsPerAxis(levels)
    run.SetHistogramMinimum(0)
    run.SetHistogramMaximum(levels)
    run.SetNeighborhoodRadius(itk.Size[2]([window // 2] * 2))
    run.SetOffsets(offsets)
    run.Update()
    return itk.array_from_image(run.GetOutput())


def itk_pooled(
    grey: np.ndarray,  # (H, W) uint8 levels
    window: int,  # pixels, odd
    levels: int,  # grey levels
) -> Maps:
    "ITK's eight features of one matrix that pools the four directions: a quarter of the matrices."
    every = itk_maps(grey, window, levels, list(STEPS.values()))
    return {f"pooled {k}": every[..., k] for k in range(8)}


def itk_four(
    grey: np.ndarray,  # (H, W) uint8 levels
    window: int,  # pixels, odd
    levels: int,  # grey levels
) -> Maps:
    "A symmetric matrix per angle and the mean of the four: four of ITK's features are then ours."
    runs = [itk_maps(grey, window, levels, [(a, b), (-a, -b)]) for a, b in STEPS.values()]
    asm, entropy, _, homogeneity, contrast, *_ = np.moveaxis(np.mean(runs, 0), -1, 0)
    return {"ASM": asm, "entropy": entropy * np.log(2), "homogeneity": homogeneity, "contrast": contrast}


def pair_planes(
    grey: np.ndarray,  # (H, W) uint8 levels
    window: int,  # pixels, odd
    levels: int,  # grey levels
    angle: int,  # degrees, a key of STEPS
) -> np.ndarray:  # (levels * (levels + 1) / 2, H, W) share of each unordered pair of levels
    "fast_glcm's matrices of a whole image: an indicator mask per pair of levels, then a box filter."
    import cv2

    cv2.setNumThreads(1)
    (rows, columns), (height, width) = STEPS[angle], grey.shape
    left, right = max(0, -columns), max(0, columns)
    first = grey[: height - rows, left : width - right]
    second = grey[rows:, right : width - left]
    pair = np.full(grey.shape, -1, np.int32)
    low, high = np.minimum(first, second), np.maximum(first, second)
    pair[: low.shape[0], : low.shape[1]] = low * np.int32(levels) + high
    # a pair lies at the top left of its box, so windows of pairs are narrower by the step
    box = {"ksize": (window - abs(columns), window - rows), "anchor": (window // 2, window // 2)}
    box |= {"ddepth": cv2.CV_32F, "normalize": False, "borderType": cv2.BORDER_CONSTANT}
    i, j = np.triu_indices(levels)
    planes = np.empty((len(i), *grey.shape), np.float32)
    for plane, code in zip(planes, i * levels + j, strict=True):
        cv2.boxFilter((pair == code).view(np.uint8), dst=plane, **box)
    planes /= cv2.boxFilter((pair >= 0).view(np.uint8), **box)
    return planes


def plane_features(
    planes: np.ndarray,  # (levels * (levels + 1) / 2, H, W) from pair_planes
    levels: int,  # grey levels
) -> np.ndarray:  # (9, H, W) in the order of FEATURES
    "Every feature as a sum over planes; those with constant weights as one matrix product."
    i, j = np.triu_indices(levels)
    gap = j - i
    weights = np.stack([gap**2, gap, 1 / (1 + gap**2), (i + j) / 2]).astype(np.float32)
    contrast, dissimilarity, homogeneity, mean = np.tensordot(weights, planes, 1)
    asm, entropy, variance, covariance = np.zeros((4, *mean.shape), np.float32)
    off = np.arange(levels, dtype=np.float32)[:, None, None] - mean
    for plane, a, b in zip(planes, i, j, strict=True):
        share = plane if a == b else plane / 2
        asm += plane * share
        entropy -= xlogy(plane, share)
        variance += share * (off[a] ** 2 + off[b] ** 2) if a != b else share * off[a] ** 2
        covariance += plane * off[a] * off[b]
    flat = variance < 1e-9
    correlation = np.where(flat, 1, covariance / np.where(flat, 1, variance))
    return np.stack(
        [contrast, dissimilarity, homogeneity, asm, np.sqrt(asm), entropy, correlation, mean, variance]
    )


def fast_glcm(
    grey: np.ndarray,  # (H, W) uint8 levels
    window: int,  # pixels, odd
    levels: int,  # grey levels
) -> Maps:
    """The approach of fast_glcm (Taka Izumi, github.com/tzm030329/GLCM), in its fastest fair form.

    Each angle's matrix is made once for all nine features, and symmetry halves the planes.
    """
    total = sum(plane_features(pair_planes(grey, window, levels, angle), levels) for angle in STEPS)
    return dict(zip(FEATURES, total / len(STEPS), strict=True))


@dataclass(frozen=True)
class Peer:
    "A contender beside ours."

    name: str  # as printed
    run: Callable[[np.ndarray, int, int], Maps]  # (grey, window, levels) to maps
    module: str  # what it needs
    package: str  # where the module comes from
    by_window: bool  # True: loops over the windows that lie inside; False: filters all pixels
    side: int  # pixels along the edge of its crop


PEERS = (
    Peer("scikit-image", scikit_image, "skimage", "scikit-image", True, 48),
    Peer("mahotas", mahotas, "mahotas", "mahotas", True, 64),
    Peer("fast_glcm", fast_glcm, "cv2", "opencv-python-headless", False, 256),
    Peer("ITK, pooled", itk_pooled, "itk.TextureFeaturesPython", "itk-texturefeatures", False, 128),
    Peer("ITK, four angles", itk_four, "itk.TextureFeaturesPython", "itk-texturefeatures", False, 96),
)


def installed(
    peer: Peer,
) -> bool:
    "Whether the module of a peer can be imported."
    return all(find_spec(module) for module in (peer.module.split(".")[0], peer.module))


def crop_side(
    peer: Peer,
    window: int,  # pixels, odd
) -> int:  # pixels
    "The edge of the crop that a peer is timed on."
    return peer.side + (window - 1) * peer.by_window
