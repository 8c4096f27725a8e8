"""Made-up batches for the tests of losses, and the steps that their processes take; light to import."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from glacier_nb.landsat import IGNORE
from glacier_nb.losses.combined import CombinedLoss
from glacier_nb.losses.pixels import _CLASS_FRACTIONS
from glacier_nb.losses.terms import signed_distance

NAMES = ("focal", "dice", "mcc", "boundary", "tversky", "lovasz")
ALL = dict.fromkeys(NAMES, 0.15) | {"mcc": 0.25}


def scene(seed, n_classes=4, size=96):
    "Target (2, size, size), valid and signed distances of contiguous classes in realistic fractions."
    rng = np.random.default_rng(seed)
    fields = gaussian_filter(rng.normal(size=(4, size, size)), (0, 5, 5), mode="wrap")
    cuts = np.quantile(fields[:2], np.cumsum(_CLASS_FRACTIONS)[: n_classes - 1])
    label, valid = np.digitize(fields[:2], cuts), fields[2:] < np.quantile(fields[2:], 0.74)
    distance = [signed_distance(y, n_classes, valid=v) for y, v in zip(label, valid, strict=True)]
    return torch.from_numpy(label), torch.from_numpy(valid), torch.from_numpy(np.stack(distance))


def onehot_of(target, n_classes=4):
    "Probabilities (B, C, H, W) float32 of class indices."
    return F.one_hot(target, n_classes).movedim(-1, 1).float()


def mixed(target, valid, n_classes=4, share=0.7):
    "MixUp of a batch with itself in reverse: soft target and where both parts are valid."
    onehot = onehot_of(target, n_classes)
    return share * onehot + (1 - share) * onehot.flip(0), valid & valid.flip(0)


def noise(shape, seed=0, dtype=torch.float32):
    "Seeded normal logits."
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def eight_crops():
    "Logits of a small network's input, target, valid and distance of 8 crops; 5 go to rank 0, 3 to rank 1."
    scenes = [scene(seed, size=32) for seed in range(4)]
    target, valid, distance = (torch.cat(x) for x in zip(*scenes, strict=True))
    target[:5][target[:5] == 3] = 0  # lakes on rank 1 only
    target[6, :4] = IGNORE
    image = onehot_of(target.clamp(max=3)) + noise((8, 4, 32, 32), seed=1)
    return image, target, valid, distance


def batches():
    "Hard to divide: uneven, soft, one rank or both without a pixel that counts."
    image, target, valid, distance = eight_crops()
    soft, known = mixed(target.masked_fill(target == IGNORE, 0), valid)
    rows = torch.arange(8)[:, None, None]
    return {
        "uneven": (image, target, valid, distance),
        "soft": (image, soft, known, distance),
        "rank 1 without pixels": (image, target, valid & (rows < 5), distance),
        "rank 0 without pixels": (image, target, valid & (rows >= 5), distance),
        "no pixels": (image, target, torch.zeros_like(valid), distance),
        "two crops": (image[4:6], target[4:6], valid[4:6], distance[4:6]),
    }


class CutAt5:
    "Uneven parts of the batch: 5 and 3 crops."

    @staticmethod
    def of(ranks, x):
        "This rank's crops."
        cut = 5 if len(x) == 8 else 1
        return x if ranks.size == 1 else (x[:cut], x[cut:])[ranks.rank]


def ddp_step(ranks, weights, batch):
    "Loss, terms, and the gradients of a small network, averaged over ranks as DDP does."
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(4, 6, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(6, 4, 1)
    )
    image, target, valid, distance = (CutAt5.of(ranks, x) for x in batch)
    loss = CombinedLoss(weights, 4)
    total, terms = loss(model(image), target, valid, distance, ranks=ranks)
    total.backward()
    return total.detach(), terms, [ranks.sum(p.grad) / ranks.size for p in model.parameters()]


def every_step(ranks):
    "Each term alone and all together, on each batch, and each function with its own logits."
    steps = {}
    for kind, batch in batches().items():
        for name in (*NAMES, "combined"):
            steps[kind, name] = ddp_step(ranks, ALL if name == "combined" else {name: 1.0}, batch)
    return steps
