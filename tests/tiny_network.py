"""A U-Net of two levels for tests: quick to compile, and quick in emulated half precision."""

import torch
from torch import Tensor, nn


def _block(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())


class TinyUNet(nn.Module):
    "Convolution, pooling, upsampling and a skip connection."

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.down, self.bottom, self.up = _block(channels, 8), _block(8, 8), _block(16, 8)
        self.segmentation_head = nn.Sequential(nn.Conv2d(8, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        high = self.down(x)
        low = self.bottom(nn.functional.max_pool2d(high, 2))
        wide = nn.functional.interpolate(low, scale_factor=2, mode="nearest")
        return self.segmentation_head(self.up(torch.cat([high, wide], 1)))


def tiny_network(cfg, data):
    "As `glacier_nb.training.recipe.run_network`, which a test replaces with it."
    torch.manual_seed(cfg.seed)
    return TinyUNet(len(data.stats.names), len(data.classes)), None
