"""Healthy set-ups, and the same with one fault each."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from glacier_nb.augment.photometric import make_augment
from glacier_nb.checks import faults as f
from glacier_nb.config.training import TrainConfig
from glacier_nb.data.stats import BandStats
from glacier_nb.data.storage import run_stats
from glacier_nb.demo.tiles import make_demo
from glacier_nb.files.paths import project_root
from glacier_nb.losses.terms import signed_distance
from glacier_nb.tiles.read import read_tiles
from glacier_nb.tiles.splits import split
from glacier_nb.training.learner import Learner
from glacier_nb.training.recipe import RunData, prepare_data, run_network

SMALL = {
    **{"encoder": "resnet18", "decoder_attention": "none", "precision": "fp32", "n_folds": 3},
    **{"include_glcm": False, "crop_size": 64, "samples_per_epoch": 128, "batch_size": 8},
}


def setup(folder: Path, n_tiles: int = 12, size: int = 128, seed: int = 1, **parameters) -> TrainConfig:
    "A healthy config on tiles of its own."
    return TrainConfig(data_dir=str(make_demo(folder, n_tiles, size, seed)), **SMALL | parameters)


def learner_of(cfg: TrainConfig, data: RunData | None = None) -> Learner:
    "The learner that a config asks for, perhaps on other data."
    data = data or prepare_data(cfg, read_tiles(cfg.data_dir))
    return Learner(cfg, data, run_network(cfg, data)[0])


@dataclass(frozen=True)
class Fault:
    "What is done to a healthy set-up."

    name: str
    cause: str  # that the diagnosis has to name first
    spoil: Callable[[TrainConfig], TrainConfig | Learner]  # changes files, config or learner
    live: bool = False  # only steps of training show it


def in_files(change: Callable[[Path], None]) -> Callable:
    "A fault on disk."

    def spoil(cfg):
        change(Path(cfg.data_dir))
        return cfg

    return spoil


def in_labels(change: Callable[[np.ndarray], np.ndarray]) -> Callable:
    "A fault of all label files."
    return in_files(lambda folder: f.rewrite(folder / "label", change))


def in_bands(change: Callable[[np.ndarray], np.ndarray], bands: str = "12345", **profile) -> Callable:
    "A fault of the files of some bands."

    def spoil(folder):
        for k in bands:
            f.rewrite(folder / f"Band{k}", change, **profile)

    return in_files(spoil)


def in_config(**changes) -> Callable:
    "A fault in the parameters."
    return lambda cfg: replace(cfg, **changes)


def in_tiles(change: Callable) -> Callable:
    "A fault of a reader of one's own."
    return lambda cfg: learner_of(cfg, prepare_data(cfg, change(read_tiles(cfg.data_dir))))


def in_learner(change: Callable[[Learner], None]) -> Callable:
    "A fault in what trains."

    def spoil(cfg):
        learner = learner_of(cfg)
        change(learner)
        return learner

    return spoil


def two_classes(label: np.ndarray) -> np.ndarray:
    "Binary codes: every ice is 255."
    return np.where(label > 0, 255, 0)


def sides(cfg: TrainConfig, train, val) -> Learner:
    "A learner on sides that nobody has checked."
    distance = partial(signed_distance, n_classes=len(train[0].classes))
    return learner_of(cfg, f.build_sides(train, val, run_stats(cfg, train), distance))


def random_split(cfg):
    "`random_split` of the tiles."
    return sides(cfg, *f.random_sides(read_tiles(cfg.data_dir), 4, seed=2))


def leaked(cfg):
    "A validation tile that is also among the training tiles, under another name."
    train, val = split(read_tiles(cfg.data_dir), cfg.fold, cfg.n_folds)
    return sides(cfg, [*train, replace(val[0], id="copy")], val)


def statistics_with_nodata(cfg):
    "Statistics over all pixels, as `array.mean()` gives them."
    data = prepare_data(cfg, read_tiles(cfg.data_dir))
    pixels = np.concatenate([t.bands.reshape(5, -1) for t in data.train_tiles], axis=1)
    centre, scale = pixels.mean(1), pixels.std(1)
    stats = BandStats(data.stats.names, tuple(map(float, centre)), tuple(map(float, scale)))
    distance = partial(signed_distance, n_classes=len(data.classes))
    return learner_of(cfg, f.build_sides(data.train_tiles, data.val_tiles, stats, distance))


def not_a_number(learner):
    "A division by zero in a channel of one's own."
    images = learner.data.train.images
    images[0][2, 10:20, 10:20] = np.nan


def one_set(learner):
    "Both sides are one object, and the transform that validation takes off is off for both."
    learner.data = replace(learner.data, val=learner.data.train)
    learner.augment = make_augment("none", 0)


def forget_labels(learner):
    "Geometry for the image alone."
    learner.augment = f.forget_labels(make_augment("geometric", 0))


def without_lake(learner):
    "Crops without any lake."
    learner.sampler = f.Avoiding(learner.sampler, learner.data.train, learner.cfg.crop_size, 3)


def wrong_sign(learner):
    "1 + MCC instead of 1 - MCC."
    f.replace_term(learner, "mcc", f.InvertedMCC(learner.loss.terms["mcc"]))


def blind(learner):
    "A network that gets nothing of its input."
    learner.model.encoder.register_forward_pre_hook(lambda _module, args: (args[0] * 0,))


def listening_to_noise(learner):
    "A network that gets noise instead of its input."
    noise = torch.Generator().manual_seed(0)
    learner.model.encoder.register_forward_pre_hook(
        lambda _module, args: (torch.randn(args[0].shape, generator=noise),)
    )


def recorded(name: str) -> Callable:
    "The history of a real run on the demo tiles, as if it were this one's."

    def spoil(cfg):
        root = project_root()
        curves = json.loads((root / "configs/iterations/record.json").read_text())["demo"][name]["curves"]
        learner = learner_of(cfg)
        learner.history = [dict(zip(curves, row, strict=True)) for row in zip(*curves.values(), strict=True)]
        return learner

    return spoil


FAULTS = (
    # files
    Fault("labels upside down", "label-turned", in_labels(lambda label: label[::-1])),
    Fault("labels turned by 90 degrees", "label-turned", in_labels(lambda label: np.rot90(label))),
    Fault("labels 8 pixels to the left", "label-shifted", in_labels(partial(f.shift, rows=0, columns=-8))),
    Fault("labels resized like an image", "label-codes", in_labels(f.soften)),
    Fault(
        "binary labels as four classes",
        "label-binary",
        lambda cfg: replace(in_labels(two_classes)(cfg), classes="four"),
    ),
    Fault("SWIR and thermal swapped", "band-order", in_files(partial(f.swap_bands, one=4, other=5))),
    Fault("red and SWIR swapped", "band-order", in_files(partial(f.swap_bands, one=3, other=4))),
    Fault("DN times 100", "dn-scale", in_bands(lambda dn: dn * 100)),
    Fault("reflectance instead of DN", "dn-scale", in_bands(f.to_reflectance, "1234")),
    Fault("nodata without its tag", "nodata-kept", in_bands(lambda dn: dn, nodata=None)),
    Fault("a band that is constant", "band-constant", in_bands(lambda dn: np.where(dn > 0, 9000, 0), "3")),
    # readers
    Fault("label codes clamped to 0..3", "label-clamped", in_tiles(f.clamp_labels)),
    Fault("images and labels sorted apart", "label-elsewhere", in_tiles(f.shuffle_labels)),
    Fault("nodata in the statistics", "inputs", statistics_with_nodata),
    Fault("values that are no numbers", "not-finite", in_learner(not_a_number)),
    # sides
    Fault("a validation tile among the training", "split-shared", leaked),
    Fault("tiles drawn at random", "split-touching", random_split),
    Fault("one data set for both sides", "set-shared", in_learner(one_set)),
    Fault(
        "validation that is augmented",
        "validation-changed",
        in_learner(lambda learner: f.augment_validation(learner, "photometric")),
    ),
    # training
    Fault("augmentation that leaves the label", "label-left-behind", in_learner(forget_labels)),
    Fault("a sampler that avoids lakes", "sampler-blind", in_learner(without_lake)),
    Fault("one optimizer step an epoch", "starved", in_config(samples_per_epoch=0, batch_size=32, epochs=30)),
    Fault("learning rate 1e-7", "lr-low", in_config(lr=1e-7, lr_min=0.0)),
    Fault("learning rate 10", "lr-high", in_config(lr=10.0)),
    Fault("a frozen encoder", "frozen", in_learner(lambda learner: f.freeze(learner.model.encoder))),
    Fault("batch norm momentum 1e-4", "norm-lag", in_learner(lambda lrn: f.slow_norms(lrn.model, 1e-4))),
    Fault("a network that sees nothing", "frozen", in_learner(blind)),
    Fault("a network that sees noise", "cannot-overfit", in_learner(listening_to_noise), live=True),
    # loss
    Fault("soft MCC with the wrong sign", "loss-sign", in_learner(wrong_sign)),
    Fault(
        "soft MCC that is always 1",
        "loss-flat",
        in_learner(lambda learner: f.replace_term(learner, "mcc", f.LeftoverMCC())),
    ),
    # history
    Fault(
        "restarts that destroy",
        "restarts",
        lambda cfg: recorded("10_reference")(
            replace(cfg, schedule="warm_restarts", restart_epochs=3.0, epochs=9, samples_per_epoch=144)
        ),
    ),
)
