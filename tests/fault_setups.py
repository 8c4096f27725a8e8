"""A correct set-up, and the same with one fault each."""

import copy
import io
import json
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import rasterio
import torch

from glacier_nb.checks import diagnosis
from glacier_nb.checks import faults as f
from glacier_nb.config.training import TrainConfig
from glacier_nb.data.stats import BandStats
from glacier_nb.data.storage import run_stats
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.files.paths import project_root
from glacier_nb.losses.terms import signed_distance
from glacier_nb.tiles.read import Tile, read_raster, read_tiles
from glacier_nb.tiles.splits import split
from glacier_nb.training.learner import Learner
from glacier_nb.training.recipe import RunData, prepare_data, run_augment, run_network

SMALL = {
    **{
        "encoder": "tu-mobilenetv3_small_050",
        "encoder_weights": None,
        "decoder_attention": "none",
        "precision": "fp32",
        "n_folds": 3,
    },
    **{"include_glcm": False, "crop_size": 64, "samples_per_epoch": 128, "batch_size": 8, "epochs": 13},
}


def setup(n_tiles: int = 9, size: int = 128, seed: int = 0, **parameters) -> TrainConfig:
    "A correct config on cached demo tiles."
    return TrainConfig(data_dir=str(cached_demo(n_tiles, size, seed)), **SMALL | parameters)


@cache
def prepared(cfg: TrainConfig) -> tuple[RunData, torch.nn.Module]:
    "Data and network of a config, the same objects at each call."
    data = prepare_data(cfg, read_tiles(cfg.data_dir))
    return data, run_network(cfg, data)[0]


def learner_of(cfg: TrainConfig, data: RunData | None = None) -> Learner:
    "A new learner of a config, perhaps on other data."
    if data is not None:
        return Learner(cfg, data, run_network(cfg, data)[0])
    return Learner(cfg, *copy.deepcopy(prepared(cfg)))


def content(tiles: Iterable[Tile]) -> tuple:
    "A key that differs when a tile's arrays, id, place or classes differ."
    return tuple(
        (t.id, t.classes, str(t.transform), *(zlib.crc32(a.tobytes()) for a in (t.bands, t.valid, t.label)))
        for t in tiles
    )


def band_content(tiles: Iterable[Tile]) -> tuple:
    "A key that differs when a tile's bands or id differ."
    return tuple((t.id, zlib.crc32(t.bands.tobytes()), zlib.crc32(t.valid.tobytes())) for t in tiles)


def loss_content(learner: Learner) -> tuple:
    "A key that differs when anything differs that the check of the loss uses."
    pixels = sum(tile.class_counts() for tile in learner.data.train_tiles)
    shape, file = learner.batch_shape, io.BytesIO()
    torch.save(learner.loss, file)  # pickle alone writes the addresses of tensors
    return file.getvalue(), tuple(pixels.tolist()), tuple(learner.data.classes), tuple(shape)


KEYS = {"tiles": lambda s: (s.cfg.data_dir, s.cfg.classes, content(s.tiles))}
OWN_KEYS = {  # of checks that see less
    "loss": lambda s: loss_content(s.learner),
    "bands": lambda s: band_content(s.tiles),
    "alignment of bands": lambda s: band_content(s.tiles),
}


def once(check: diagnosis._Check, key: Callable, found: dict) -> diagnosis._Check:
    "The same check, run once for equal input: most faults leave tiles or loss as they are."

    def function(subject):
        at = check.name, key(subject)
        if at not in found:
            found[at] = check.function(subject)
        return found[at]

    return replace(check, function=function)


def shared_checks() -> tuple[diagnosis._Check, ...]:
    "All checks; those of the tiles and of the loss run once for equal input."
    found = {}
    keys = [OWN_KEYS.get(check.name) or KEYS.get(check.needs) for check in diagnosis._CHECKS]
    return tuple(once(c, key, found) if key else c for c, key in zip(diagnosis._CHECKS, keys, strict=True))


@dataclass(frozen=True)
class Fault:
    "A fault for a correct set-up."

    name: str
    cause: str  # that the diagnosis has to name first
    spoil: Callable[[TrainConfig], TrainConfig | Learner]  # changes files, config or learner
    live: bool = False  # only training steps show it
    files: bool = False  # the fault is on disk


def in_files(change: Callable[[Path], None]) -> Callable:
    "A fault on disk."

    def spoil(cfg):
        change(Path(cfg.data_dir))
        return cfg

    return spoil


def in_labels(change: Callable[[np.ndarray], np.ndarray]) -> Callable:
    "A fault of all label files."
    return in_files(lambda folder: f._rewrite_rasters(folder / "label", change))


def in_bands(change: Callable[[np.ndarray], np.ndarray], bands: str = "12345", **profile) -> Callable:
    "A fault of the files of some bands."

    def spoil(folder):
        for k in bands:
            f._rewrite_rasters(folder / f"Band{k}", change, **profile)

    return in_files(spoil)


def in_config(**changes) -> Callable:
    "A fault in the parameters."
    return lambda cfg: replace(cfg, **changes)


def in_tiles(change: Callable) -> Callable:
    "A fault of a custom reader."
    return lambda cfg: learner_of(cfg, prepare_data(cfg, change(read_tiles(cfg.data_dir))))


def in_learner(change: Callable[[Learner], None]) -> Callable:
    "A fault of the learner."

    def spoil(cfg):
        learner = learner_of(cfg)
        change(learner)
        return learner

    return spoil


def two_classes(label: np.ndarray) -> np.ndarray:
    "Binary codes: glacier, debris and lake are 255."
    return np.where(label > 0, 255, 0)


def mean_filled(dn: np.ndarray) -> np.ndarray:
    "Gaps filled with the mean of the band."
    return np.where(dn > 0, dn, dn[dn > 0].mean())


def exchanged(one: int, other: int, step: int = 1) -> Callable[[Path], None]:
    "Two codes exchanged in every `step`-th label file."

    def change(folder):
        for path in sorted((folder / "label").glob("*.tif"))[::step]:
            with rasterio.open(path, "r+") as file:
                label = file.read(1)
                file.write(np.select([label == one, label == other], [other, one], label), 1)

    return change


def band_of_next_tile(folder: Path, band: int = 5) -> None:
    "One band of each tile from the next tile, on the grid of its own tile."
    paths = sorted((folder / f"Band{band}").glob("*.tif"))
    pixels = [read_raster(path).data for path in paths]
    for path, data in zip(paths, pixels[1:] + pixels[:1], strict=True):
        with rasterio.open(path, "r+") as file:
            file.write(data)


def quarter(label: np.ndarray) -> np.ndarray:
    "A label at a quarter of its resolution, enlarged again with nearest neighbour."
    return np.kron(label[::4, ::4], np.ones((4, 4), label.dtype))


def split_learner(cfg: TrainConfig, train, val) -> Learner:
    "A learner on any two lists of tiles."
    distance = partial(signed_distance, n_classes=len(train[0].classes))
    return learner_of(cfg, f._unchecked_data(train, val, run_stats(cfg, train), distance))


def random_split(cfg):
    "Tiles split at random."
    return split_learner(cfg, *f._random_split(read_tiles(cfg.data_dir), 4, seed=2))


def leaked(cfg):
    "A validation tile that is also among the training tiles, under another name."
    train, val = split(read_tiles(cfg.data_dir), cfg.fold, cfg.n_folds)
    return split_learner(cfg, [*train, replace(val[0], id="copy")], val)


def statistics_with_nodata(cfg):
    "Statistics over all pixels, as `array.mean()` gives them."
    data = prepare_data(cfg, read_tiles(cfg.data_dir))
    pixels = np.concatenate([t.bands.reshape(5, -1) for t in data.train_tiles], axis=1)
    centre, scale = pixels.mean(1), pixels.std(1)
    stats = BandStats(data.stats.names, tuple(map(float, centre)), tuple(map(float, scale)))
    distance = partial(signed_distance, n_classes=len(data.classes))
    return learner_of(cfg, f._unchecked_data(data.train_tiles, data.val_tiles, stats, distance))


def not_a_number(learner):
    "A division by zero in a channel."
    images = learner.data.train.images
    images[0][2, 10:20, 10:20] = np.nan


def one_set(learner):
    "Training and validation are one object without augmentation."
    learner.data = replace(learner.data, val=learner.data.train)
    learner.augment = run_augment(replace(learner.cfg, augment="none"), learner.data.train)


def augment_image_only(learner):
    "Geometry for the image alone."
    geometric = run_augment(replace(learner.cfg, augment="geometric"), learner.data.train)
    learner.augment = f._augment_image_only(geometric)


def without_lake(learner):
    "Crops without any lake."
    learner.sampler = f._AvoidsClass(learner.sampler, learner.data.train, learner.cfg.crop_size, 3)


def wrong_sign(learner):
    "1 + MCC instead of 1 - MCC."
    learner.loss.terms["mcc"] = f._InvertedMCC(learner.loss.terms["mcc"])


def ignoring_image(learner):
    "A network whose input is set to 0."
    learner.model.encoder.register_forward_pre_hook(lambda _module, args: (args[0] * 0,))


def replacing_image_by_noise(learner):
    "A network whose input is replaced by noise."
    noise = torch.Generator().manual_seed(0)
    learner.model.encoder.register_forward_pre_hook(
        lambda _module, args: (torch.randn(args[0].shape, generator=noise),)
    )


def recorded(name: str) -> Callable:
    "A learner with the history of a real run on the demo tiles."

    def spoil(cfg):
        root = project_root()
        curves = json.loads((root / "configs/iterations/record.json").read_text())["demo"][name]["curves"]
        learner = learner_of(cfg)
        learner.history = [dict(zip(curves, row, strict=True)) for row in zip(*curves.values(), strict=True)]
        return learner

    return spoil


FAULTS = (
    # files
    Fault("labels upside down", "label-turned", in_labels(lambda label: label[::-1]), files=True),
    Fault(
        "labels turned by 90 degrees", "label-turned", in_labels(lambda label: np.rot90(label)), files=True
    ),
    Fault(
        "labels 8 pixels to the left",
        "label-shifted",
        in_labels(partial(f._shift, rows=0, columns=-8)),
        files=True,
    ),
    Fault("labels resized like an image", "label-codes", in_labels(f._interpolate_labels), files=True),
    Fault(
        "binary labels as four classes",
        "label-binary",
        lambda cfg: replace(in_labels(two_classes)(cfg), classes="four"),
        files=True,
    ),
    Fault(
        "SWIR and thermal swapped", "band-order", in_files(partial(f._swap_bands, one=4, other=5)), files=True
    ),
    Fault("red and SWIR swapped", "band-order", in_files(partial(f._swap_bands, one=3, other=4)), files=True),
    Fault("DN times 100", "dn-scale", in_bands(lambda dn: dn * 100), files=True),
    Fault("reflectance instead of DN", "dn-scale", in_bands(f._to_reflectance, "1234"), files=True),
    Fault("nodata without its tag", "nodata-as-data", in_bands(lambda dn: dn, nodata=None), files=True),
    Fault(
        "gaps filled with the mean of each band",
        "nodata-as-data",
        in_bands(mean_filled, nodata=None),
        files=True,
    ),
    Fault("thermal band of the next tile", "band-elsewhere", in_files(band_of_next_tile), files=True),
    Fault(
        "glacier and debris exchanged in half of the label files",
        "label-exchanged",
        in_files(exchanged(85, 170, 2)),
        files=True,
    ),
    Fault(
        "binary labels inverted",
        "label-exchanged",
        in_labels(lambda label: np.where(label > 0, 0, 255)),
        files=True,
    ),
    Fault("labels at a quarter of the resolution", "label-coarse", in_labels(quarter), files=True),
    Fault(
        "a constant band", "band-constant", in_bands(lambda dn: np.where(dn > 0, 9000, 0), "3"), files=True
    ),
    # readers
    Fault("label codes clamped to 0..3", "label-clamped", in_tiles(f._clamp_labels)),
    Fault("images and labels sorted separately", "label-elsewhere", in_tiles(f._shuffle_labels)),
    Fault("nodata in the statistics", "inputs", statistics_with_nodata),
    Fault("NaN in an image", "not-finite", in_learner(not_a_number)),
    # split
    Fault("a validation tile among the training", "split-shared", leaked),
    Fault("a random split", "split-touching", random_split),
    Fault("one data set for both sides", "set-shared", in_learner(one_set)),
    Fault(
        "augmented validation tiles",
        "validation-changed",
        in_learner(f._augment_validation),
    ),
    # training
    Fault("augmentation of the image alone", "label-left-behind", in_learner(augment_image_only)),
    Fault("a sampler that avoids lakes", "sampler-blind", in_learner(without_lake)),
    Fault("one optimizer step an epoch", "starved", in_config(samples_per_epoch=0, batch_size=32, epochs=30)),
    Fault("learning rate 1e-7", "lr-low", in_config(lr=1e-7, lr_min=0.0)),
    Fault("learning rate 10", "lr-high", in_config(lr=10.0)),
    Fault("weight decay 10", "decay-high", in_config(weight_decay=10.0)),
    Fault("gradients clipped to 1e-7", "gradient-small", in_config(clip=1e-7)),
    Fault(
        "a plateau factor of 1e-4",
        "lr-low",
        in_config(schedule="plateau", select="best", plateau_factor=1e-4),
    ),
    Fault("a frozen encoder", "frozen", in_learner(lambda learner: f._freeze(learner.model.encoder))),
    Fault(
        "batch norm momentum 1e-4", "norm-lag", in_learner(lambda lrn: f._set_norm_momentum(lrn.model, 1e-4))
    ),
    Fault("a network that ignores its input", "frozen", in_learner(ignoring_image)),
    Fault(
        "a network whose input is noise",
        "cannot-overfit",
        lambda cfg: in_learner(replacing_image_by_noise)(replace(cfg, crop_size=32)),
        live=True,
    ),
    # loss
    Fault("soft MCC with the wrong sign", "loss-sign", in_learner(wrong_sign)),
    Fault(
        "soft MCC that is always 1",
        "loss-flat",
        in_learner(f._flatten_mcc),
    ),
    # history
    Fault(
        "restarts after which the score falls",
        "restarts",
        lambda cfg: recorded("10_reference")(
            replace(cfg, schedule="warm_restarts", restart_epochs=3.0, epochs=9, samples_per_epoch=144)
        ),
    ),
)
