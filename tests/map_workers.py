"""A small scene, a small network, a map that is killed: helpers of prediction/test_windows and test_maps."""

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rasterio.crs import CRS
from rasterio.transform import Affine
from torch import nn

from glacier_nb.config.training import TrainConfig
from glacier_nb.data.stats import fit_stats
from glacier_nb.landsat import CLASSES, LABEL_CODES
from glacier_nb.prediction.maps import map_scene
from glacier_nb.prediction.members import Member
from glacier_nb.texture.channels import GlcmConfig
from glacier_nb.tiles.read import Tile

OPTIONS = {"window": 64, "overlap": 32, "probabilities": True, "progress": False}


@dataclass
class ArrayScene:
    "Arrays as a scene; the process is killed at a given read."

    bands: np.ndarray
    valid: np.ndarray
    name: str = "scene"
    crs: CRS | None = field(default_factory=lambda: CRS.from_epsg(32643))
    transform: Affine = field(default_factory=lambda: Affine(30, 0, 5e5, 0, -30, 3.7e6))
    date: str = "2020-10-31"
    killed_at: int = -1
    reads: int = 0

    @property
    def shape(self):
        return self.valid.shape

    @property
    def tile(self):
        return Tile(self.name, self.bands, self.valid, None, self.crs, self.transform, ())

    def read(self, box):
        self.reads += 1
        if self.reads == self.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        top, bottom, left, right = box
        return self.bands[:, top:bottom, left:right].copy(), self.valid[top:bottom, left:right].copy()


def make_scene(height: int = 150, width: int = 170, **options) -> ArrayScene:
    "DN that look like Landsat's, smooth with some noise; a corner and a line of nodata."
    rng = np.random.default_rng(0)
    slope = np.add.outer(np.sin(np.arange(height) / 9), np.cos(np.arange(width) / 7))
    bands = 12000 + 2000 * slope + rng.normal(0, 400, (5, height, width))
    bands[4] += 28000
    valid = np.ones((height, width), bool)
    valid[: height // 2, : width // 2] = valid[height // 2 + 3] = False
    return ArrayScene(np.where(valid, bands, 0).astype(np.float32), valid, **options)


class SmallUNet(nn.Module):
    "A U-Net that halves its input twice and looks 16 pixels far, padded with zeros; any size that 4 divides."

    def __init__(self, channels: int):
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(n, 8, 3, padding=1) for n in (channels, 8, 8))
        self.up = nn.ModuleList(nn.Conv2d(16, 8, 3, padding=1) for _ in range(2))
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        a = self.down[0](x).relu()
        b = self.down[1](F.max_pool2d(a, 2)).relu()
        c = self.down[2](F.max_pool2d(b, 2)).relu()
        b = self.up[0](torch.cat([b, F.interpolate(c, scale_factor=2)], 1)).relu()
        return self.head(self.up[1](torch.cat([a, F.interpolate(b, scale_factor=2)], 1)).relu())


@torch.no_grad()
def make_member(scene, seed: int = 0, texture: bool = False) -> Member:
    "A network with random weights whose classes are about equally frequent."
    cfg = TrainConfig(glcm_window=5)
    stats = fit_stats([scene.tile], glcm=GlcmConfig.fit([scene.tile], cfg) if texture else None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = SmallUNet(len(stats.names)).eval()
    name, cpu = Path(f"runs/net-{seed}-{texture}/model.pt"), torch.device("cpu")
    member = Member(name, net, cfg, stats, CLASSES, LABEL_CODES, cpu, torch.float32)
    logits = member(member.image(scene.tile))[0][:, torch.from_numpy(scene.valid)]
    scale = 2 / logits.std(1)
    net.head.weight.mul_(scale[:, None, None, None])
    net.head.bias.copy_((net.head.bias - logits.mean(1)) * scale)
    return member


def map_until_killed(out: Path, killed_at: int, at_rename: int = 0) -> None:
    "Map the scene; the process is killed at a read of the scene, or when a file gets its name."
    torch.set_num_threads(1)
    replace, renamed = Path.replace, []

    def killing(self, target):
        renamed.extend([target] if str(target).endswith(".tif") else [])
        if len(renamed) == at_rename > 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = killing
    map_scene([make_member(make_scene())], make_scene(killed_at=killed_at), out, **OPTIONS)
