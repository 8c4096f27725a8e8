"""Ways to map a scene with a network in overlapping windows, each in a process of its own.

Every contender reads the scene from the same GeoTIFFs, uses the same network, windows, overlap and Gaussian
blend, and writes classes and confidence. What differs is how windows are read, added up and kept.
"""

import argparse
import resource
import shutil
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import rasterio
import torch

from glacier_nb.config.training import TrainConfig
from glacier_nb.data.stats import fit_stats
from glacier_nb.demo.tiles import make_scene
from glacier_nb.landsat import BANDS, CLASSES, LABEL_CODES
from glacier_nb.models.build import predict_logits
from glacier_nb.prediction.maps import map_scene
from glacier_nb.prediction.members import Member
from glacier_nb.prediction.scenes import Scene, open_scene
from glacier_nb.training.recipe import empty_network

CONTENDERS = {"ours": None, "MONAI": "monai", "torchgeo": "torchgeo"}  # and the package that each needs
MODULES = {"ours": (), "MONAI": ("monai.inferers",), "torchgeo": ("torchgeo.datasets", "torchgeo.samplers")}
NODATA = 254  # of the classes that are written


def make_scene_folder(
    folder: Path,
    size: int,  # pixels
) -> Path:  # of one product
    "A Landsat product of demo terrain without fill in the corners, so that every window is computed."
    return make_scene(folder, (size, size), landscapes=2, tilt=0)


def make_member(
    scene: Scene,
    options: argparse.Namespace,
) -> Member:
    "A network with random weights, the same in every process."
    cfg = TrainConfig(encoder=options.encoder, include_glcm=False, decoder_attention="scse")
    torch.manual_seed(0)
    starts = [max(n // 2 - 256, 0) for n in scene.shape]  # in the middle: the corners of a product are empty
    box = [at for n, start in zip(scene.shape, starts, strict=True) for at in (start, min(start + 512, n))]
    stats = fit_stats([scene.tile(tuple(box))])
    device = torch.device("cuda" if options.gpu else "cpu")
    net = empty_network(cfg, len(stats.names), len(CLASSES)).eval()
    net = net.to(device, memory_format=torch.channels_last)
    return Member(Path("net/model.pt"), net, cfg, stats, CLASSES, LABEL_CODES, device, torch.float32)


def resident() -> float:  # MB
    "The memory that this process has in use."
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize() / 1e6


class Peak:
    "The most resident memory between `with` and its end, looked at every 20 ms."

    def __enter__(self):
        self.most, self.end = resident(), threading.Event()
        self.watch = threading.Thread(target=self._watch, daemon=True)
        self.watch.start()
        return self

    def _watch(self) -> None:
        while not self.end.wait(0.02):
            self.most = max(self.most, resident())

    def __exit__(self, *args):
        self.end.set()
        self.watch.join()
        self.most = max(self.most, resident())


def logits(member: Member) -> Callable[[torch.Tensor], torch.Tensor]:
    "The network as the peers call it: (B, C, H, W) normalised -> (B, n, H, W) probabilities."

    @torch.no_grad()
    def run(x: torch.Tensor) -> torch.Tensor:
        x = x.to(member.device, memory_format=torch.channels_last)
        return predict_logits(member.model, x).softmax(1)

    return run


def write(
    path: Path,
    probs: np.ndarray,  # (n, H, W)
    valid: np.ndarray,  # (H, W) bool
    scene: Scene,
) -> np.ndarray:  # (H, W) uint8 codes
    "Classes and confidence as compressed GeoTIFFs."
    codes = np.where(valid, np.array(LABEL_CODES, np.uint8)[probs.argmax(0)], np.uint8(NODATA))
    percent = np.where(valid, np.rint(100 * probs.max(0)), 255).astype(np.uint8)
    profile = {"driver": "COG", "count": 1, "dtype": "uint8", "compress": "deflate", "crs": scene.crs}
    profile |= {"height": codes.shape[0], "width": codes.shape[1], "transform": scene.transform}
    for name, plane in (("classes", codes), ("confidence", percent)):
        with rasterio.open(
            path.with_name(f"{name}.tif"), "w", **profile, nodata=255 - (name == "classes")
        ) as f:
            f.write(plane, 1)
    return codes


def ours(member: Member, scene: Scene, options: argparse.Namespace, out: Path) -> np.ndarray:
    "This library."
    sizes = {"window": options.window, "overlap": options.overlap, "blend": "gaussian"}
    result = map_scene([member], scene, out / "map.tif", **sizes, progress=False)
    with rasterio.open(result.classes) as f:
        return f.read(1)


def monai(member: Member, scene: Scene, options: argparse.Namespace, out: Path) -> np.ndarray:
    "MONAI's inferer on the whole scene, one window at a time as ours."
    from monai.inferers import sliding_window_inference

    tile = scene.tile()
    image = torch.from_numpy(member.stats.normalise(tile, cache=False))[None]
    probs = sliding_window_inference(
        image,
        options.window,
        1,
        logits(member),
        overlap=options.overlap / options.window,
        mode="gaussian",
        sigma_scale=0.125,
        sw_device=member.device,
        device="cpu",
    )
    return write(out / "map.tif", probs[0].numpy(), tile.valid, scene)


def torchgeo(member: Member, scene: Scene, options: argparse.Namespace, out: Path) -> np.ndarray:
    "torchgeo's dataset, GridGeoSampler and loader; windows are added up with the same weights as MONAI's."
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    class Product(RasterDataset):
        filename_glob = "*_SR_B2.TIF"
        filename_regex = r"LC08_L2SP_\d{6}_(?P<date>\d{8})_.*_(?P<band>[SR]{2}_B2|ST_B10|SR_B\d+)\.TIF"
        date_format = "%Y%m%d"
        all_bands = ("SR_B2", "SR_B3", "SR_B4", "SR_B6", "ST_B10")
        separate_files = True

    n, folder = options.window, scene.files.bands[0].parent
    dataset = Product(paths=folder, bands=Product.all_bands)
    grid = GridGeoSampler(dataset, n, n - options.overlap)
    (height, width), transform = scene.shape, ~scene.transform
    total = np.zeros((len(CLASSES) + 1, height, width), np.float32)
    valid, run = np.zeros((height, width), bool), logits(member)
    at = (np.arange(n) - (n - 1) / 2) / (n / 8)
    bell = np.exp(-np.add.outer(at**2, at**2) / 2).astype(np.float32).clip(1e-3)
    center, scale = (
        np.array(v, np.float32)[:, None, None] for v in (member.stats.center, member.stats.scale)
    )
    for batch in DataLoader(dataset, batch_size=1, sampler=grid, collate_fn=stack_samples):
        across, up, _when = batch["bounds"][0]
        left, top = transform @ (across.start, up.stop)
        left, top = round(left), round(top)
        image = batch["image"][0].numpy()
        seen = (image != 0).all(0)
        x = np.where(seen, (image - center) / scale, 0).astype(np.float32)
        probs = run(torch.from_numpy(x)[None])[0].cpu().numpy()
        rows, columns = slice(max(top, 0), min(top + n, height)), slice(max(left, 0), min(left + n, width))
        part = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
        total[:-1, rows, columns] += (probs * bell)[:, *part]
        total[-1, rows, columns] += bell[part]
        valid[rows, columns] |= seen[part]
    return write(out / "map.tif", total[:-1] / total[-1].clip(1e-6), valid, scene)


def run(
    options: argparse.Namespace,
    name: str,  # of `CONTENDERS`
    folder: Path,  # of the scene
) -> dict:  # seconds, peak and above (MB), pixels, classes
    "One contender: warmed up with a window, then timed."
    torch.set_num_threads(options.threads)
    scene = open_scene(folder)
    member, out = make_member(scene, options), folder.parent / name
    out.mkdir(exist_ok=True)
    n, channels = options.window, len(BANDS)
    logits(member)(torch.zeros(1, channels, n, n))
    for module in MODULES[name]:
        import_module(module)
    rest = resident()
    with Peak() as peak:
        start = time.perf_counter()
        codes = {"ours": ours, "MONAI": monai, "torchgeo": torchgeo}[name](member, scene, options, out)
        seconds = time.perf_counter() - start
    reference = folder.parent / "classes.npy"
    if not reference.exists():
        np.save(reference, codes)
    differs = float((codes != np.load(reference)).mean())
    shutil.rmtree(out)
    memory = {"peak": peak.most, "above": peak.most - rest}
    return memory | {"seconds": seconds, "differs": differs, "pixels": codes.size}
