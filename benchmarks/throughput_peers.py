"""The same network trained by torchgeo's SemanticSegmentationTask on a Lightning Trainer."""

import logging
import warnings
from collections.abc import Callable

import lightning
import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from throughput_clock import Clock
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchgeo.trainers import SemanticSegmentationTask

from glacier_nb.data.tileset import TileSet
from glacier_nb.landsat import IGNORE

PLAIN = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
PLAIN |= {"enable_model_summary": False, "limit_val_batches": 0, "num_sanity_val_steps": 0}


def version() -> str:
    "Of Lightning."
    return lightning.__version__


class Task(SemanticSegmentationTask):
    "torchgeo's task with its network, its optimizer and its augmentation given from outside."

    augment: Callable | None = None  # as `run_augment` gives it; None: batches come ready
    optimizer: torch.optim.Optimizer | None = None  # None: torchgeo's own; the same in all blocks
    seen = 0  # batches of the epoch so far

    def on_train_epoch_start(self):
        self.seen = 0

    def on_after_batch_transfer(self, batch, dataloader_idx):
        "Where torchgeo augments."
        if self.augment is None:
            return batch
        self.seen += 1
        batch = self.augment(batch, 0, self.seen - 1)
        return batch | {"image": batch["image"].to(memory_format=torch.channels_last)}

    def configure_optimizers(self):
        "torchgeo's AdamW; its schedule waits for a validation loss and is left out."
        if self.optimizer is None:
            self.optimizer = super().configure_optimizers()["optimizer"]
        return self.optimizer


class Crops(Dataset):
    "Crops of a tile set at given places, as torchgeo's samples: image and mask."

    def __init__(
        self,
        tileset: TileSet,  # tiles to cut from
        positions: np.ndarray,  # (n, 3) tile, top row, left column
        crop_size: int,  # pixels
    ):
        self.tileset, self.positions, self.crop_size = tileset, positions, crop_size

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, k: int) -> dict[str, torch.Tensor]:
        crop = self.tileset.crop(*self.positions[k].tolist(), self.crop_size)
        mask = np.where(crop["valid"], crop["label"], IGNORE).astype(np.int64)
        image, valid = (torch.from_numpy(np.ascontiguousarray(crop[name])) for name in ("image", "valid"))
        return {"image": image, "mask": torch.from_numpy(mask), "valid": valid}


class Timed(Callback):
    "Counts from the start of training to the end of the epoch: the fetching of the first batch is in it."

    def __init__(self, clock: Clock):
        self.clock = clock

    def on_train_start(self, trainer, task):
        self.clock.start()

    def on_train_epoch_end(self, trainer, task):
        self.clock.stop()


def make_task(
    network: nn.Module,  # the same as ours
    channels: int,
    n_classes: int,
    lr: float,
) -> Task:
    "torchgeo's task, with cross-entropy, its default loss."
    task = Task("unet", "resnet34", in_channels=channels, num_classes=n_classes, ignore_index=IGNORE, lr=lr)
    task.model = network
    return task


def in_memory(
    batches: list[dict[str, torch.Tensor]],  # image and mask
) -> DataLoader:
    "Batches that are handed on as they are; a bare list would mean several loaders to Lightning."
    return DataLoader(batches, batch_size=None)


def loader(
    tileset: TileSet,  # tiles to cut from
    positions: np.ndarray,  # (n, 3) of the epoch
    crop_size: int,  # pixels
    batch_size: int,  # crops
) -> DataLoader:
    "PyTorch's loader in this process: on as many threads as cores, workers would only compete."
    return DataLoader(Crops(tileset, positions, crop_size), batch_size=batch_size)


def block(
    task: Task,
    batches: DataLoader,  # of one epoch
    clip: float,  # largest norm of the gradient
    barebones: bool,  # Lightning's own switch for measuring its least cost: nothing is logged
) -> Callable[[Clock], None]:
    "One epoch by a Trainer with everything off that can be."
    options = {"barebones": True, "limit_val_batches": 0} if barebones else PLAIN

    def run(clock: Clock) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in ("lightning.pytorch", "lightning.fabric"):
                logging.getLogger(name).setLevel(logging.ERROR)
            trainer = Trainer(
                accelerator="cpu",
                devices=1,
                precision="32-true",
                max_epochs=1,
                gradient_clip_val=clip,
                callbacks=[Timed(clock)],
                **options,
            )
            trainer.fit(task, batches)

    return run
