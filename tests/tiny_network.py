"""A network of two convolutions for tests: quick to compile, and quick in emulated half precision."""

from collections import OrderedDict

import torch
from torch import nn


def tiny_network(cfg, data):
    "As `glacier_nb.training.recipe.run_network`, which a test replaces with it."
    torch.manual_seed(cfg.seed)
    body = nn.Sequential(nn.Conv2d(len(data.stats.names), 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    head = nn.Sequential(nn.Conv2d(8, len(data.classes), 1))
    return nn.Sequential(OrderedDict(body=body, segmentation_head=head)), None
