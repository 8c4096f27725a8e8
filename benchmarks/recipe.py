"""What each part of the best recipe is worth on the competition's tiles, in valleys new to the network.

python benchmarks/recipe.py data/competition                    # all runs, every fold
python benchmarks/recipe.py data/competition "random weights"   # one; several processes may take one each
python benchmarks/recipe.py data/competition --studies          # ensembles, rules, edges of finished runs
python benchmarks/recipe.py data/competition --four pretrained-cv imagenet-cv   # cross-validations to record

Writes configs/recipe/record.json for nbs/studies/04_recipe.ipynb and nbs/studies/05_ceiling.ipynb. A
finished fold is saved in outputs/recipe with its network and its maps, and is not repeated. On one core a
fold of a short run takes three minutes, one of the full recipe seven.
"""

import argparse
import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from context import train
from scipy.ndimage import binary_dilation, binary_erosion, distance_transform_edt, gaussian_filter
from scipy.ndimage import label as patches
from torch import nn

from glacier_nb.augment.geometry import SunWarp
from glacier_nb.config.files import read_parameters
from glacier_nb.config.training import TrainConfig
from glacier_nb.data.storage import run_tiles
from glacier_nb.data.tileset import TileSet
from glacier_nb.experiments.cross_validate import CrossValidation
from glacier_nb.files.paths import project_root, write_text
from glacier_nb.landsat import IGNORE
from glacier_nb.metrics.baseline import baseline_counts, baselines
from glacier_nb.metrics.scores import mcc, tile_confusion
from glacier_nb.models.build import predict_logits
from glacier_nb.prediction.views import PLAIN, make_views, mean_probs
from glacier_nb.tiles.read import Tile
from glacier_nb.training.recipe import RunData, empty_network, prepare_data

SIZES = "0.75,1,1.25"  # of the views that are averaged
SUN = 157.0  # azimuth in the competition's tiles, degrees clockwise from north
FULL = read_parameters(project_root() / "configs/best.yaml")
FULL = {k: v for k, v in FULL.items() if k not in ("run", "data_dir")}
SHORT = FULL | {"samples_per_epoch": 208, "epochs": 4, "ema": 0.98}  # 0.4 of the crops
ONLY_FOCAL = {f"{term}_weight": float(term == "focal") for term in TrainConfig.LOSS_WEIGHTS}


def fewer_tiles(data: RunData, n: int, fold: int) -> RunData:
    "The same data with some of the training tiles, drawn by the number of the fold."
    keep = sorted(np.random.default_rng(100 + fold).permutation(len(data.train))[:n])
    train, arrays = data.train, ("ids", "images", "labels", "valids", "distances")
    taken = {name: tuple(getattr(train, name)[k] for k in keep) for name in arrays}
    return replace(data, train=replace(train, **taken))


def edges_ignored(data: RunData, *_) -> RunData:
    "The same data without the training labels beside an outline."
    labels = []
    for codes in data.train.labels:
        ice, codes = codes == 1, np.array(codes)
        codes[binary_dilation(ice) & ~binary_erosion(ice)] = IGNORE
        labels.append(codes)
    return replace(data, train=replace(data.train, labels=tuple(labels)))


def terrain(tile: Tile) -> np.ndarray:  # (10, H, W) float32
    "What stands for terrain: temperature and brightness against their surroundings, slope to the sun."
    valid, bands = tile.valid, np.asarray(tile.bands, np.float32)
    share = {s: gaussian_filter(valid.astype(np.float32), s) for s in (2, 4, 8, 24)}

    def smooth(band, s):
        return gaussian_filter(np.where(valid, band, 0), s) / np.maximum(share[s], 1e-3)

    green, thermal, found = bands[1], bands[4], []
    for s in (8, 24):
        means = smooth(thermal, s), np.maximum(smooth(green, s), 1)
        found += [means[0], thermal - means[0], np.log(np.maximum(green, 1) / means[1])]
    azimuth = np.radians(SUN)
    for s in (2, 4, 8):
        down, right = np.gradient(smooth(green, s))
        found.append((right * np.sin(azimuth) - down * np.cos(azimuth)) * s)
    return np.stack([*found, np.minimum(distance_transform_edt(valid), 64)]).astype(np.float32)


def with_terrain(data: RunData, *_) -> RunData:
    "The same data with the channels of `terrain`."
    more = {t.id: terrain(t) for t in (*data.train_tiles, *data.val_tiles)}
    seen = np.concatenate([more[t.id][:, t.valid] for t in data.train_tiles], 1)
    centre, scale = seen.mean(1)[:, None, None], seen.std(1)[:, None, None] + 1e-6

    def widened(tiles: TileSet) -> TileSet:
        channels = (np.clip((more[i] - centre) / scale, -5, 5) for i in tiles.ids)
        triples = zip(tiles.images, channels, tiles.valids, strict=True)
        images = (np.concatenate([a, b * v]).astype(np.float32) for a, b, v in triples)
        return replace(tiles, images=tuple(images))

    return replace(data, train=widened(data.train), val=widened(data.val))


def learning_curve(n: int) -> tuple[dict, Callable]:
    "A short run with n training tiles."
    return SHORT, lambda data, fold: fewer_tiles(data, n, fold)


# name -> parameters, and perhaps a function that changes the data of a fold
RUNS = {
    "short": (SHORT, None),
    "random weights": (SHORT | {"encoder_weights": None}, None),
    "without texture": (SHORT | {"include_glcm": False}, None),
    "random crops": (SHORT | {"sampler": "random"}, None),
    "focal loss alone": (SHORT | ONLY_FOCAL, None),
    "warm restarts": (SHORT | {"schedule": "warm_restarts", "restart_epochs": 1.0}, None),
    "whole tiles": (SHORT | {"crop_size": 512, "batch_size": 2, "samples_per_epoch": 52}, None),
    "terrain channels": (SHORT, with_terrain),
    "edges ignored": (SHORT, edges_ignored),
    "learning rate 0.002": (SHORT | {"lr": 2e-3}, None),
    "learning rate 0.0005": (SHORT | {"lr": 5e-4}, None),
    "whole decoder": (SHORT | {"decoder_channels": "256,128,64,32,16"}, None),
    "decoder whole at its finest levels": (SHORT | {"decoder_channels": "128,64,32,32,16"}, None),
    "no mirroring": (SHORT | {"augment": "photometric"}, None),
    "no mirroring, full": (FULL | {"augment": "photometric"}, None),
    "CutMix, full": (FULL | {"cutmix": 1.0}, None),
    "4 tiles": learning_curve(4),
    "8 tiles": learning_curve(8),
    "12 tiles": learning_curve(12),
    **{f"full, seed {seed}": (FULL | {"seed": seed}, None) for seed in (0, 1, 2)},
}
SEEDS = [name for name in RUNS if name.startswith("full")]
BLOCKS = ("short", "4 tiles", "8 tiles", "12 tiles", *SEEDS)


def stem(name: str, split: str, fold: int) -> Path:
    "Where a fold is saved, without the end of the name."
    return project_root() / f"outputs/recipe/{name.replace(' ', '-').replace(',', '')}-{split}-{fold}"


@torch.no_grad()
def ice(model: nn.Module, image: np.ndarray | torch.Tensor, sizes: str = "1") -> np.ndarray:  # (H, W) float16
    "The probability of ice, averaged over views of several sizes."
    views = make_views("none", sizes) if sizes != "1" else PLAIN
    found = mean_probs(lambda x: predict_logits(model, x), torch.tensor(np.asarray(image))[None], views)
    return found[0, 1].numpy().astype(np.float16)


def run(name: str, split: str, fold: int, **where) -> None:
    "Train a fold, map its held-out tiles, save both."
    parameters, change = RUNS[name]
    cfg = TrainConfig(**where, **parameters, threads=1, classes="binary", split=split, fold=fold)
    data = prepare_data(cfg, run_tiles(cfg))
    data = change(data, fold) if change else data
    learner, record = train(cfg, data)
    model, path = learner.eval_model.eval(), stem(name, split, fold)
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = list(zip(data.val.ids, data.val.images, strict=True))
    maps = {tile: ice(model, image) for tile, image in pairs}
    maps |= {f"{tile} {SIZES}": ice(model, image, SIZES) for tile, image in pairs}
    torch.save(model.state_dict(), f"{path}.pt")
    np.savez_compressed(f"{path}.npz", **maps)
    write_text(f"{path}.json", json.dumps(record))
    print(f"{name}, {split}, fold {fold}: MCC {record['mcc'][-1]:.3f}", flush=True)


def full_runs(split: str) -> list[str]:
    "The seeds of the full recipe whose folds are all finished."
    return [name for name in SEEDS if all(Path(f"{stem(name, split, k)}.npz").is_file() for k in range(5))]


def read_maps(names: Sequence[str], split: str, sizes: str = "1") -> dict[str, np.ndarray]:
    "Tile id -> probability of ice by the fold that held the tile out, the mean over runs."
    found = {}
    for name in names:
        for fold in range(5):
            with np.load(f"{stem(name, split, fold)}.npz") as maps:
                own = {t.split()[0]: maps[t].astype(np.float32) for t in maps if (" " in t) == (sizes != "1")}
            found |= {t: found.get(t, 0) + p / len(names) for t, p in own.items()}
    return found


def confusions(maps: Mapping[str, np.ndarray], tiles: Mapping[str, Tile]) -> dict[str, list]:
    "Tile id -> counts on all pixels of maps of ice, which are true or above one half."
    return {
        t: tile_confusion(np.asarray(p > 0.5).astype(int), tiles[t].label, tiles[t].valid, 2)[0].tolist()
        for t, p in maps.items()
    }


def together(tiles: Mapping[str, Tile]) -> dict:  # name -> split -> tile id -> counts
    "Seeds and sizes on their own and averaged."
    found = {}
    for split in ("regions", "blocks"):
        seeds = full_runs(split)
        groups = {f"{name}, three sizes": ([name], SIZES) for name in seeds}
        if (n := len(seeds)) > 1:
            groups |= {f"{n} seeds": (seeds, "1"), f"{n} seeds, three sizes": (seeds, SIZES)}
        for name, (runs, sizes) in groups.items():
            found.setdefault(name, {})[split] = confusions(read_maps(runs, split, sizes), tiles)
    return found


def sun_mirror(image: torch.Tensor) -> torch.Tensor:  # (1, C, H, W)
    "The image mirrored about the sun's axis, or mirrored back."
    matrix = F.pad(SunWarp(SUN)._mirror(torch.tensor([True])), (0, 1))
    grid = F.affine_grid(matrix, image.shape, align_corners=False)
    return F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)


@torch.no_grad()
def with_statistics(model: nn.Module, images: Sequence[np.ndarray], share: float) -> nn.Module:
    "The network whose batch-norm statistics are in part those of the images."
    own = copy.deepcopy(model)
    norms = [m for m in own.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [(m.running_mean.clone(), m.running_var.clone()) for m in norms]
    for norm in norms:
        norm.momentum = None  # the plain mean over the images
        norm.reset_running_stats()
        norm.train()
    for image in images:
        own(torch.tensor(np.asarray(image))[None])
    for norm, (mean, var) in zip(norms, before, strict=True):
        norm.running_mean.mul_(share).add_((1 - share) * mean)
        norm.running_var.mul_(share).add_((1 - share) * var)
    return own.eval()


def as_mosaic(model: nn.Module, tiles: TileSet) -> dict[str, np.ndarray]:
    "Tile id -> probability of ice, all held-out tiles of one size mapped as one image in their places."
    place = {t: tuple(map(int, t.split("_"))) for t in tiles.ids}  # row and column on the grid of tiles
    top, left = (min(p[k] for p in place.values()) for k in (0, 1))
    rows, cols = (max(p[k] for p in place.values()) + 1 for k in (0, 1))
    (height, width), channels = tiles.shapes[0], len(tiles.images[0])
    whole = np.zeros((channels, (rows - top) * height, (cols - left) * width), np.float32)
    parts = {
        t: np.s_[(r - top) * height : (r - top + 1) * height, (c - left) * width : (c - left + 1) * width]
        for t, (r, c) in place.items()
    }
    for t, image in zip(tiles.ids, tiles.images, strict=True):
        whole[:, *parts[t]] = image
    found = ice(model, whole)
    return {t: found[part] for t, part in parts.items()}


@torch.no_grad()
def at_prediction(data_dir: str, tiles: Mapping[str, Tile]) -> dict:  # way -> tile id -> counts
    "Other ways to map the held-out tiles with the networks of the short runs."
    maps = {}
    for fold in range(5):
        cfg = TrainConfig(**SHORT, data_dir=data_dir, classes="binary", split="regions", fold=fold)
        val = prepare_data(cfg, run_tiles(cfg)).val
        model = empty_network(cfg, len(val.images[0]), 2).eval()
        model.load_state_dict(torch.load(f"{stem('short', 'regions', fold)}.pt"))
        shifted = {share: with_statistics(model, val.images, share) for share in (0.3, 1.0)}
        for t, image in zip(val.ids, val.images, strict=True):
            plain = ice(model, image).astype(np.float32)
            wide = F.pad(torch.tensor(np.asarray(image))[None], (128,) * 4, mode="reflect")
            mirrored = torch.tensor(ice(model, sun_mirror(wide)[0])[None, None], dtype=torch.float32)
            mirrored = sun_mirror(mirrored)[0, 0, 128:-128, 128:-128].numpy()
            sized = ice(model, image, SIZES).astype(np.float32)
            ways = {"plain": plain, "sun mirror": (plain + mirrored) / 2, "three sizes": sized}
            ways["three sizes and sun mirror"] = (3 * sized + mirrored) / 4
            for size in ("0.75", "1.25"):
                ways[f"size {size} alone"] = ice(model, image, size)
            for share, other in shifted.items():
                ways[f"batch-norm statistics, {share:.0%} of the held-out tiles"] = ice(other, image)
            for threshold in (0.3, 0.4, 0.6, 0.7):
                ways[f"threshold {threshold}"] = plain > threshold
            for way, found in ways.items():
                maps.setdefault(way, {})[t] = found
        maps.setdefault("held-out tiles as one mosaic", {}).update(as_mosaic(model, val))
    return {way: confusions(found, tiles) for way, found in maps.items()}


def rules(data_dir: str) -> dict:  # rule -> split -> tile id -> counts
    "The baselines, trained and scored on the same folds."
    found = {}
    for split in ("blocks", "regions"):
        for fold in range(5):
            cfg = TrainConfig(data_dir=data_dir, classes="binary", split=split, fold=fold)
            data = prepare_data(cfg, run_tiles(cfg))
            counts = baseline_counts(baselines(data.train_tiles, data.val_tiles), data.val_tiles)
            for rule, tiles in counts.items():
                known = found.setdefault(rule, {}).setdefault(split, {})
                known |= {t: pair[0].tolist() for t, pair in tiles.items()}
    return found


def from_outline(ice: np.ndarray) -> np.ndarray:  # (H, W) bool -> (H, W) pixels
    "Distance to the nearest pixel on the other side of an outline; infinite without an outline."
    if ice.all() or not ice.any():
        return np.full(ice.shape, np.inf)
    return np.where(ice, distance_transform_edt(ice), distance_transform_edt(~ice))


DISTANCES = (1, 2, 3, 5, 8, 12, 20, 40)  # pixels
AREAS = (10, 30, 100, 300, 1000, 3000)  # pixels


def errors(maps: Mapping[str, np.ndarray], tiles: Mapping[str, Tile]) -> dict:
    "Wrong pixels by distance to the outline and by the size of their patch; MCC if those near it were right."
    near, sizes, corrected = np.zeros((len(DISTANCES) + 1, 3), int), np.zeros(len(AREAS) + 1, int), {}
    for t, p in maps.items():
        truth, guess = tiles[t].label == 1, (p > 0.5) & tiles[t].valid
        known = tiles[t].label != IGNORE
        kind = np.searchsorted(DISTANCES, from_outline(truth), side="left")
        wrong = (guess != truth) & known
        for k in range(len(near)):
            here = (kind == k) & known
            near[k] += [
                int(here.sum()),
                int((wrong & guess & here).sum()),
                int((wrong & ~guess & here).sum()),
            ]
        for side in (wrong & guess, wrong & ~guess):
            area = np.bincount(patches(side)[0][side])[1:]
            sizes += np.bincount(np.searchsorted(AREAS, area), area, len(sizes)).astype(int)
        for d in (0, *DISTANCES):
            right = np.where(from_outline(truth) <= d, truth, guess) if d else guess
            corrected.setdefault(str(d), {})[t] = right
    scores = {d: mcc(sum(map(np.array, confusions(m, tiles).values()))) for d, m in corrected.items()}
    return {
        "distances": DISTANCES,
        "areas": AREAS,
        "pixels, false positives, false negatives": near.tolist(),
        "wrong pixels by patch": sizes.tolist(),
        "mcc if right up to": scores,
    }


def agreement(tiles: Mapping[str, Tile]) -> dict:  # pair of maps -> tile id -> counts
    "Networks of different seeds as each other's truth, and both beside the label."
    seeds = {name: read_maps([name], "regions") for name in full_runs("regions")}
    found = {f"{name} and label": confusions(maps, tiles) for name, maps in seeds.items()}
    for a, b in combinations(seeds, 2):
        as_truth = {
            t: replace(tiles[t], label=((p > 0.5) & tiles[t].valid).astype(np.uint8))
            for t, p in seeds[a].items()
        }
        found[f"{a} and {b}"] = confusions(seeds[b], as_truth)
    return found


def moved(truth: np.ndarray, std: float, generator: np.random.Generator) -> np.ndarray:
    "A map whose outline is wrong by a smooth error with this standard deviation, in pixels."
    noise = gaussian_filter(generator.standard_normal(truth.shape), 5, mode="wrap")
    distance = from_outline(truth)
    signed = np.where(truth, distance - 0.5, 0.5 - distance)
    return signed + std * noise / noise.std() > 0


def edges(tiles: Mapping[str, Tile]) -> dict:  # kind of error -> tile id -> counts
    "A perfect map with outlines that are a little wrong."
    kinds: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "none, but no ice at nodata": lambda m: m,
        "one pixel to the east": lambda m: np.roll(m, 1, 1),
        "one pixel wider": binary_dilation,
        "one pixel narrower": binary_erosion,
        "without patches below 100 pixels": lambda m: (
            m & (np.bincount(patches(m)[0].ravel()) >= 100)[patches(m)[0]]
        ),
    }
    found = {
        kind: confusions({t: f(x.label == 1) for t, x in tiles.items()}, tiles) for kind, f in kinds.items()
    }
    for std in (0.5, 1, 2, 3, 4):
        draws = np.random.default_rng(0)
        found[f"smooth, {std:g} pixels"] = confusions(
            {t: moved(x.label == 1, std, draws) for t, x in tiles.items()}, tiles
        )
        draws = np.random.default_rng(1)
        one, other = ({t: moved(x.label == 1, std, draws) for t, x in tiles.items()} for _ in range(2))
        as_truth = {t: replace(tiles[t], label=m.astype(np.uint8)) for t, m in one.items()}
        found[f"smooth, {std:g} pixels, in the label too"] = confusions(other, as_truth)
    return found


def of_cross_validations(names: Sequence[str]) -> dict:  # run -> classes, counts of each tile, baselines
    "What is recorded of cross-validations on tiles with four classes, see docs/howto/best.md."
    found = {}
    for name in names:
        scores = CrossValidation.read(name).scores
        tiles = {tile: counts["all"] for tile, counts in scores["tile_confusions"].items()}
        own = {"classes": list(scores["per_class"]), "tiles": tiles, "baselines": scores["baselines"]}
        found[name] = own
    return found


def finished() -> Iterator[tuple[str, str, int, dict]]:
    "Name, split, fold and record of the folds that are done."
    for name in RUNS:
        for split in ("blocks", "regions"):
            for fold in range(5):
                path = Path(f"{stem(name, split, fold)}.json")
                if path.is_file():
                    yield name, split, fold, json.loads(path.read_text(encoding="utf-8"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", help="folder of the tiles")
    parser.add_argument("runs", nargs="*", help="names of runs; none: all")
    parser.add_argument("--devices", default="auto", help="as the parameter of a run")
    parser.add_argument("--weights-dir", default="", help="folder of the ImageNet weights; empty: the hub")
    parser.add_argument("--four", nargs="*", metavar="RUN", help="record these cross-validations instead")
    parser.add_argument("--studies", action="store_true", help="evaluate finished runs, train none")
    args = parser.parse_args()
    where = {"data_dir": args.data_dir, "devices": args.devices, "weights_dir": args.weights_dir}
    path = project_root() / "configs/recipe/record.json"
    path.parent.mkdir(exist_ok=True)
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name in () if args.studies or args.four else args.runs or RUNS:
        for split in ("regions", "blocks") if name in BLOCKS else ("regions",):
            for fold in range(5):
                if not Path(f"{stem(name, split, fold)}.json").is_file():
                    run(name, split, fold, **where)
    if args.four:
        record["four classes"] = of_cross_validations(args.four)
    if args.studies:
        cfg = TrainConfig(data_dir=args.data_dir, classes="binary")
        tiles = {tile.id: tile for tile in run_tiles(cfg)}
        for part, study in {
            "rules": lambda: rules(args.data_dir),
            "edges": lambda: edges(tiles),
            "at prediction": lambda: at_prediction(args.data_dir, tiles),
        }.items():
            record.setdefault(part, {})
            record[part] = record[part] or study()
        best = read_maps(full_runs("regions"), "regions")
        record |= {"together": together(tiles), "errors": errors(best, tiles), "agreement": agreement(tiles)}
    runs = record.setdefault("runs", {})
    for name, split, fold, found in finished():
        own = runs.setdefault(name, {"parameters": RUNS[name][0]})
        own.setdefault(split, {})[str(fold)] = found
    write_text(path, json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
