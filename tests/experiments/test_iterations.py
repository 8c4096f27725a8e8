"""configs/iterations: the four runs this project began with, and variants that change only what they name."""

import re
from pathlib import Path

import pytest
import yaml

from glacier_nb.config.training import TrainConfig

FOLDER = Path(__file__).parents[2] / "configs/iterations"
VARIANTS = sorted(FOLDER.glob("[1-3][0-9]_*.yaml"))


def parameters(name: str) -> dict:
    "The parameters of a file without its run's name."
    found = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return {k: v for k, v in found.items() if k != "run"}


@pytest.mark.parametrize(
    ("name", "weights", "boosts", "schedule", "lowest"),
    [
        ("01_focal_dice", (0.40, 0.40, 0.00, 0.20), (15, 8), "warmup_restarts", 1e-6),
        ("02_mcc_added", (0.25, 0.25, 0.30, 0.20), (15, 8), "warmup_restarts", 1e-6),
        ("03_more_boost", (0.25, 0.25, 0.30, 0.20), (30, 15), "warmup_restarts", 1e-6),
        ("04_heavy_mcc", (0.15, 0.15, 0.50, 0.20), (15, 8), "warm_restarts", 1e-5),
    ],
)
def test_the_four_iterations_are_as_recorded(name, weights, boosts, schedule, lowest):
    cfg = TrainConfig(**parameters(name))
    assert tuple(cfg.loss_weights().values()) == (*weights, 0.0)
    assert (cfg.lake_boost, cfg.debris_boost) == boosts
    assert (cfg.schedule, cfg.lr, cfg.lr_min, cfg.restart_epochs) == (schedule, 1e-4, lowest, 10)
    assert (cfg.sampler, cfg.samples_per_epoch, cfg.batch_size, cfg.epochs) == ("weighted", 0, 32, 30)
    assert (cfg.architecture, cfg.encoder, cfg.decoder_attention) == ("Unet", "resnet34", "scse")
    assert (cfg.include_glcm, cfg.first_conv) == (True, "cycle")
    assert cfg.warmup_epochs == 5 or schedule == "warm_restarts"


def test_enough_steps_changes_sampler_and_steps_alone():
    starved, enough = (TrainConfig(**parameters(name)) for name in ("04_heavy_mcc", "05_enough_steps"))
    changed = {k for k, v in vars(enough).items() if v != getattr(starved, k)}
    assert changed - set(TrainConfig.EXECUTION) == {"sampler", "samples_per_epoch"}


@pytest.mark.parametrize("path", VARIANTS[1:], ids=lambda p: p.stem)
def test_a_variant_changes_only_what_it_names(path):
    reference, variant = (TrainConfig(**parameters(name)) for name in (VARIANTS[0].stem, path.stem))
    (line,) = [line for line in path.read_text().splitlines() if line.startswith("# As 10_reference, but: ")]
    names = line.removeprefix("# As 10_reference, but: ").removesuffix(".").split(", ")
    changed = [k for k, v in vars(variant).items() if v != getattr(reference, k)]
    marked = [line.split(":")[0] for line in path.read_text().splitlines() if line.endswith(" # changed")]
    assert sorted(names) == sorted(changed) == sorted(marked)


def test_the_pretraining_of_make_has_the_network_of_the_run_that_starts_from_it():
    text = (
        (FOLDER.parents[1] / "Makefile").read_text().partition("pretrain.ipynb \\\n")[2].partition("\n\n")[0]
    )
    given = dict(re.findall(r"-p (\w+) (\S+)", text))
    assert given["run"] == "hkh-demo"
    given = {k: v for k, v in given.items() if k in vars(TrainConfig()) and k != "data_dir"}
    made, run = TrainConfig(**given), TrainConfig(**parameters("24_hkh"))
    network = ("architecture", "encoder", "decoder_attention", "decoder_channels")
    assert [getattr(made, k) for k in network] == [getattr(run, k) for k in network]
    assert (made.encoder_weights, made.warmup_epochs, made.ema) == (None, 1.0, 0.0)
