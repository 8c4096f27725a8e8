"""Time our training epoch beside the bare PyTorch loop and torchgeo's task on Lightning.

benchmarks/.venv/bin/python benchmarks/train_throughput.py [--quick] [--tiles data/competition] [--compile]
"""

import argparse
import copy
import inspect
import os
import platform
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import psutil
import torch
import torch.nn.functional as F
from throughput_clock import Clock, Contender, contest, loads, quiet_rounds, summary
from torch import Tensor, nn

from glacier_nb.config.training import TrainConfig
from glacier_nb.demo.tiles import make_demo
from glacier_nb.landsat import IGNORE
from glacier_nb.parallel.device import seed_everything
from glacier_nb.tiles.read import read_tiles
from glacier_nb.training.learner import Learner
from glacier_nb.training.recipe import RunData, _parameter_groups, prepare_data, run_network

OURS, BARE, PLAIN = "ours", "bare loop, our loss", "bare loop, cross-entropy"
FOCAL = "ours, focal loss alone"
BEST, USUAL = "torchgeo on Lightning, crops ready, barebones", "torchgeo on Lightning, its loader and AdamW"
PACKAGES = ("torch", "segmentation-models-pytorch", "torchgeo", "lightning")
NOTES = f"""
{OURS}: sampling, cutting, augmentation, four loss terms, finite checks, clipping, records; no validation.
{BARE}: forward, loss, backward, clipping, step on batches that lie in memory, cut and augmented.
{BEST}: the same batches and optimizer; metrics are computed and not logged.
{USUAL}: cuts and augments the same crops, logs loss, accuracy and Jaccard.
All: the same network and first weights, the same crops, fp32, the same threads, channels_last, clip 1."""


class Timed(Learner):
    "The Learner with a clock around the steps of an epoch; validation is left out, as it is for the others."

    def train_epoch(self) -> dict[str, float]:
        with self.clock.running():
            return super().train_epoch()

    def validate(self) -> dict[str, float]:
        return {"val_loss": 0.0, "mcc": 0.0, "mcc_valid": 0.0}


def make_config(
    options: argparse.Namespace,
    steps: int,  # of an epoch
) -> TrainConfig:
    "The default recipe, with one epoch of a few steps at a constant learning rate."
    size, batch = (64, 4) if options.quick else (128, 16)
    return TrainConfig(
        data_dir=str(options.tiles),
        encoder="resnet34",
        encoder_weights=None,
        decoder_attention="scse",
        augment="photometric",
        ema=0.0,
        class_weights="none",
        lovasz_weight=0.0,
        devices="cpu",
        precision="fp32",
        memory_format="channels_last",
        crop_size=size,
        batch_size=batch,
        samples_per_epoch=steps * batch,
        epochs=1,
        schedule="constant",
        warmup_epochs=0,
    )


def make_learner(
    cfg: TrainConfig,
    data: RunData,
    network: nn.Module,  # is copied
) -> Timed:
    "A learner that writes nothing."
    return Timed(cfg, data, copy.deepcopy(network))


def ours(
    name: str,
    learner: Timed,
) -> Contender:
    "The first epoch of a run, again and again: the same crops each time, the weights go on."

    def block(clock: Clock) -> None:
        learner.clock, learner.epoch, learner.history = clock, 0, []
        learner.fit()

    return Contender(name, block)


def like(
    optimizer: torch.optim.Optimizer,  # of a learner
    network: nn.Module,  # another one
    weight_decay: float,
) -> torch.optim.Optimizer:
    "The same kind of optimizer, with the same settings, for another network."
    takes = inspect.signature(type(optimizer)).parameters
    settings = {name: value for name, value in optimizer.defaults.items() if name in takes}
    return type(optimizer)(_parameter_groups(network, weight_decay), **settings)


def masked(
    batch: dict[str, Tensor],  # label and valid
) -> Tensor:  # (B, h, w) int64, 255 where a pixel does not count
    "Label and validity in one."
    return torch.where(batch["valid"], batch["label"], IGNORE)


def bare(
    name: str,
    learner: Timed,  # its network, loss and optimizer are used; it is not run
    batches: list[dict[str, Tensor]],  # in memory, on the device, augmented
    plain: bool = False,  # cross-entropy instead of the learner's loss
) -> Contender:
    "The loop that a tutorial would write."
    network, optimizer = learner.model, learner.optimizer
    ready = [(b["image"].contiguous(memory_format=torch.channels_last), b, masked(b)) for b in batches]

    def loss(logits, batch, target):
        if plain:
            return F.cross_entropy(logits, target, ignore_index=IGNORE)
        return learner.loss(logits, batch["label"], batch["valid"], batch.get("distance"))[0]

    def block(clock: Clock) -> None:
        network.train()
        with clock.running():
            for image, batch, target in ready:
                loss(network(image), batch, target).backward()
                nn.utils.clip_grad_norm_(network.parameters(), learner.cfg.clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    return Contender(name, block)


def lightning(
    cfg: TrainConfig,
    data: RunData,
    learner: Timed,  # for its crops, augmentation and kind of optimizer
    network: nn.Module,  # is copied
    batches: list[dict[str, Tensor]],  # of the learner
) -> list[Contender]:
    "torchgeo at its least cost, and as it comes; raises ValueError when its crops are not ours."
    import throughput_peers as peers

    def task():
        model = copy.deepcopy(network).to(**layout)
        return peers.make_task(model, data.train.images[0].shape[0], len(data.classes), cfg.lr)

    layout = {"memory_format": torch.channels_last}
    ready = [{"image": b["image"].contiguous(**layout), "mask": masked(b)} for b in batches]
    best, usual = task(), task()
    best.optimizer, usual.augment = like(learner.optimizer, best.model, cfg.weight_decay), learner.augment
    loader = peers.loader(data.train, learner.sampler.positions(0), cfg.crop_size, cfg.batch_size)
    for number, (mine, theirs) in enumerate(zip(ready, loader, strict=True)):
        lit = learner.augment(theirs | {"label": theirs["mask"]}, 0, number)
        if not all(torch.equal(mine[name], lit[name]) for name in ("image", "mask")):
            raise ValueError(f"batch {number}: torchgeo's crops are not ours, the comparison would be void")
    return [
        Contender(BEST, peers.block(best, peers.in_memory(ready), cfg.clip, barebones=True)),
        Contender(USUAL, peers.block(usual, loader, cfg.clip, barebones=False)),
    ]


def rivals(
    cfg: TrainConfig,
    data: RunData,
    network: nn.Module,  # the weights that all start from
) -> list[Contender]:
    "Ours, the bare loops, and Lightning where it is installed."
    learner = make_learner(cfg, data, network)
    batches = list(learner.batches(0))
    alone = {f"{name}_weight": float(name == "focal") for name in ("focal", "dice", "mcc", "boundary")}
    group = [
        bare(BARE, make_learner(cfg, data, network), batches),
        bare(PLAIN, make_learner(cfg, data, network), batches, plain=True),
        ours(OURS, learner),
        ours(FOCAL, make_learner(replace(cfg, **alone), data, network)),
    ]
    if find_spec("torchgeo") and find_spec("lightning"):
        return group + lightning(cfg, data, learner, network, batches)
    print("torchgeo and lightning are not installed: left out (pip install -r benchmarks/requirements.txt)")
    return group


def variants(
    cfg: TrainConfig,
    data: RunData,
    network: nn.Module,  # the weights that all start from
    compiled: bool,  # torch.compile too
) -> list[Contender]:
    "Ours with one thing changed."
    changes = {
        OURS: {},
        "bf16": {"precision": "bf16"},
        "contiguous": {"memory_format": "contiguous"},
        "1 worker": {"workers": 1},
        "2 workers": {"workers": 2},
        "EMA": {"ema": 0.99},
        **({"torch.compile": {"compile": True}} if compiled else {}),
    }
    return [ours(name, make_learner(replace(cfg, **c), data, network)) for name, c in changes.items()]


def parts(
    learner: Timed,
    repeat: int,  # epochs; the first is not counted
) -> pd.DataFrame:  # a row a part of a step, medians
    "Where the time of our step goes."
    rows, clock, model, optimizer = [], Clock(), learner.model.train(), learner.optimizer
    params = [p for group in optimizer.param_groups for p in group["params"]]

    def timed(number, name, work, *args):
        with clock.running():
            result = work(*args)
        rows.append({"part": name, "turn": number, **clock.spent})
        return result

    for turn in range(repeat):
        batches = learner.batches(0)
        while (batch := timed(turn, "cut and augment", next, batches, None)) is not None:
            image = batch["image"].to(memory_format=torch.channels_last)
            logits = timed(turn, "forward", model, image)
            known = (batch["label"], batch["valid"], batch.get("distance"))
            leaf = logits.detach().requires_grad_()
            total = timed(turn, "loss", learner.loss, leaf, *known)[0]
            timed(turn, "backward of the loss", total.backward)
            timed(turn, "backward of the network", logits.backward, leaf.grad)
            timed(turn, "clipping", nn.utils.clip_grad_norm_, params, learner.cfg.clip)
            timed(turn, "optimizer", optimizer.step)
            optimizer.zero_grad(set_to_none=True)
    spent = pd.DataFrame(rows).query("turn > 0").groupby("part", sort=False)[["wall", "cpu"]].median() * 1e3
    return spent.add_suffix(" ms").assign(share=spent["cpu"] / spent["cpu"].sum())


def show(
    title: str,
    table: pd.DataFrame,
    digits: dict[str, str] | None = None,  # format of a column
) -> None:
    "Print a table under its title."
    formats = {name: (digits or {}).get(name, ".1f") for name in table.columns}
    texts = {name: [format(x, f) for x in table[name]] for name, f in formats.items()}
    print(f"\n{title}\n{pd.DataFrame(texts, index=list(table.index)).to_string()}", flush=True)


RATIOS = dict.fromkeys(("wall ratio", "lowest", "highest", "cpu ratio"), ".3f")


def run_contest(
    title: str,
    group: list[Contender],
    reference: str,  # what the others are divided by
    steps: int,  # optimizer steps in a block
    rounds: int,  # at most
    seconds: float,  # of the wall
) -> pd.DataFrame:
    "A contest, printed."
    blocks = contest(group, steps, rounds, seconds)
    table = summary(quiet_rounds(blocks), reference)
    show(f"{title}; ratios to {reference}: {loads(blocks)}", table, RATIOS)
    return table


def can_bf16() -> str:
    "What this processor can do in bfloat16, in words."
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = [name for name in ("avx512_bf16", "amx_bf16") if has.get(name)]
    if native:
        return f"bfloat16 products are native here ({', '.join(native)})"
    return (
        "this processor has neither avx512_bf16 nor amx_bf16: every bfloat16 product is made in float32, "
        "with a conversion before and after it"
    )


def machine(
    threads: int,
) -> str:
    "What the figures were measured on."
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = names[0].split(":")[1].strip() if names else platform.processor()
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    level = torch.backends.cpu.get_cpu_capability()
    return f"{model}, {os.cpu_count()} cores, {level}, {threads} threads\n{', '.join(found)}"


def verdicts(
    table: pd.DataFrame,  # of the contest
    changed: pd.DataFrame,  # of the variants
) -> None:
    "Print the figures that the project promises."
    wall, work = table["wall ratio"], table["cpu ratio"]
    print(f"\nours / {BARE}: {wall[OURS]:.3f} (cpu {work[OURS]:.3f}); wanted: at most 1.10")
    print(f"ours / {PLAIN}: {wall[OURS] / wall[PLAIN]:.3f} (cpu {work[OURS] / work[PLAIN]:.3f})")
    for name in table.index.intersection([BEST, USUAL]):
        quotient, processor = wall[OURS] / wall[name], work[OURS] / work[name]
        print(f"ours / {name}: {quotient:.3f} (cpu {processor:.3f}); wanted: below 1")
    speed = 1 / changed["wall ratio"]["bf16"]
    print(f"bf16 is {speed:.2f} times as fast as fp32; {can_bf16()}")


def arguments() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="crops of 64, batches of 4, about two minutes")
    parser.add_argument("--tiles", type=Path, default=Path("data/demo"), help="folder of labelled tiles")
    parser.add_argument("--threads", type=int, help="of PyTorch, for all (default 2; quick: 1)")
    parser.add_argument("--steps", type=int, help="optimizer steps in a block (default 4; quick: 2)")
    parser.add_argument("--rounds", type=int, default=9, help="turns at most (default 9)")
    parser.add_argument("--minutes", type=float, help="for the two contests (default 9; quick: 1)")
    parser.add_argument("--compile", action="store_true", help="torch.compile too: minutes of compilation")
    options = parser.parse_args()
    options.threads = options.threads or (1 if options.quick else 2)
    options.steps = options.steps or (2 if options.quick else 4)
    options.minutes = options.minutes or (1 if options.quick else 9)
    return options


def main() -> None:
    "Run everything and print it."
    options, begin = arguments(), time.perf_counter()
    seconds = 60 * options.minutes
    torch.set_num_threads(options.threads)
    print(machine(options.threads), f"load {psutil.getloadavg()[0]:.1f}", sep="\n", flush=True)
    if options.tiles == Path("data/demo") and not options.tiles.exists():
        make_demo(options.tiles)
    cfg = make_config(options, options.steps)
    seed_everything(cfg.seed)
    data = prepare_data(cfg, read_tiles(cfg.data_dir, cfg.classes))
    network, _ = run_network(cfg, data)
    what = f"{cfg.encoder} {cfg.architecture} on {cfg.data_dir}"
    title = f"crops of {cfg.crop_size}, batch {cfg.batch_size}, {what}"
    show(f"a step of ours: {title}", parts(make_learner(cfg, data, network), 2), {"share": ".1%"})
    group = rivals(cfg, data, network)
    table = run_contest(title, group, BARE, options.steps, options.rounds, seconds * 0.6)
    print(NOTES)
    few = max(options.steps // 2, 1)  # bf16 may be very slow
    group = variants(make_config(options, few), data, network, options.compile)
    changed = run_contest("ours with one thing changed", group, OURS, few, options.rounds, seconds * 0.4)
    verdicts(table, changed)
    print(f"took {(time.perf_counter() - begin) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
