"""Checks before the first step: steps, crops, inputs and augmentation, healthy and faulty."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from glacier_nb.checks.augmentation import _explained_variance, check_augment
from glacier_nb.checks.crops import _exposure_table, check_exposure
from glacier_nb.checks.inputs import check_inputs, check_sets
from glacier_nb.checks.steps import _better_budget, budget, check_budget, check_norm_batches
from glacier_nb.config.files import read_config
from glacier_nb.config.training import TrainConfig
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.files.paths import project_root
from glacier_nb.tiles.read import read_tiles
from glacier_nb.training.callbacks import make_learner
from glacier_nb.training.ema import _decay_at
from glacier_nb.training.recipe import prepare_data, run_optimizer, run_schedule

TINY = TrainConfig(
    encoder="resnet18",
    encoder_weights=None,
    crop_size=32,
    samples_per_epoch=16,
    batch_size=4,
    n_folds=3,
    precision="fp32",
    devices="cpu",
    include_glcm=False,
)
STEPS = {"batch_size": 16, "epochs": 16}  # 256


@pytest.fixture(scope="module")
def tiles():
    return read_tiles(cached_demo(9, 96, 3))


@pytest.fixture(scope="module")
def data(tiles):
    return prepare_data(TINY, tiles)


@pytest.fixture
def learner(data, tmp_path):
    return make_learner(TINY, data, tmp_path / "run", progress=False)


def causes(found):
    return {f.cause: f.severity for f in found}


def other_images(tileset, f):
    pairs = zip(tileset.images, tileset.valids, strict=True)
    return replace(tileset, images=tuple(np.where(v, f(x), 0).astype(np.float32) for x, v in pairs))


def test_defaults_have_no_finding(data):
    cfg = TrainConfig()
    assert check_budget(cfg, data.train) == []
    facts = budget(cfg, data.train)
    assert facts["steps"] == 512
    assert facts["images"] == 2048
    assert 0.25 < facts["lr sum"] < 0.27


def test_one_step_an_epoch_is_starved(data):
    cfg = TrainConfig(samples_per_epoch=20, batch_size=32, epochs=30, lr=1e-4)
    found = check_budget(cfg, data.train)
    assert causes(found) == {"starved": "fatal", "lr-low": "warning"}
    fixed = TrainConfig(**(asdict(cfg) | found[0].change))
    assert check_budget(fixed, data.train) == []


def test_pretrained_network_needs_fewer_steps(data):
    cfg = TrainConfig(samples_per_epoch=32, batch_size=8, epochs=20, init_from="outputs/a/model.pt")
    assert causes(check_budget(cfg, data.train))["starved"] == "warning"


@pytest.mark.parametrize(
    ("lr", "expected"),
    [
        (0.0, {"lr-low": "fatal"}),
        (1e-7, {"lr-low": "fatal"}),
        (1e-4, {"lr-low": "warning"}),
        (3e-4, {}),
        (3e-3, {}),
        (3e-2, {"lr-high": "warning"}),
        (10.0, {"lr-high": "fatal"}),
    ],
)
def test_learning_rates(data, lr, expected):
    found = check_budget(TrainConfig(lr=lr, lr_min=0.0, **STEPS), data.train)
    assert causes(found) == expected
    assert all(f.change["lr"] == 1e-3 for f in found)


PURE = {"focal_weight": 0.0, "dice_weight": 0.0, "boundary_weight": 0.0}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"weight_decay": 10.0}, {"decay-high": "warning"}),
        ({"weight_decay": 3.0, "epochs": 60}, {"decay-high": "warning"}),
        ({"weight_decay": 1.0}, {}),
        ({"weight_decay": 0.3, "epochs": 1000}, {}),
        ({"clip": 1e-7}, {"gradient-small": "fatal"}),
        ({"clip": 1e-6}, {"gradient-small": "warning"}),
        ({"clip": 1e-3}, {}),
        ({"clip": 0.0}, {}),
        ({"mcc_weight": 1e-9, **PURE}, {"gradient-small": "fatal"}),
        ({"mcc_weight": 1e-3, **PURE}, {}),
        ({"schedule": "plateau", "select": "best", "plateau_factor": 1e-4}, {"lr-low": "warning"}),
        ({"schedule": "plateau", "select": "best", "plateau_factor": 0.1}, {}),
        ({"schedule": "plateau", "select": "best", "plateau_factor": 1e-4, "lr_min": 1e-4}, {}),
        ({"ema": 0.999999}, {}),
    ],
)
def test_parameters_that_undo_the_steps(data, changes, expected):
    cfg = TrainConfig(**STEPS | changes)
    found = check_budget(cfg, data.train)
    assert causes(found) == expected
    fixed = replace(cfg, **{k: v for f in found for k, v in f.change.items()})
    assert check_budget(fixed, data.train) == []


def test_weights_left_are_those_of_the_optimizer(data):
    cfg = TrainConfig(weight_decay=10.0, **STEPS)
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer, rate = run_optimizer(cfg, nn.ParameterList([weight])), run_schedule(cfg, 16)
    for step in range(256):
        optimizer.param_groups[0]["lr"] = rate(step)
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    assert weight[0, 0].item() == pytest.approx(budget(cfg, data.train)["weights left"], rel=1e-4)
    assert weight[0, 0].item() < 0.3


def test_the_highest_decay_of_averaged_weights_leaves_nothing_of_the_first():
    left, highest = 1.0, TrainConfig.__dataclass_fields__["ema"].metadata["high"]
    for step in range(2, 61):  # the first is copied
        left *= _decay_at(step, highest)
    assert left < 1e-6


@pytest.mark.parametrize("path", sorted((project_root() / "configs/iterations").glob("*.yaml")), ids=str)
def test_no_iteration_undoes_its_steps(data, path):
    cfg = read_config(path)
    assert not {"decay-high", "gradient-small"} & set(causes(check_budget(cfg, data.train)))


def test_restarts(data):
    short = TrainConfig(schedule="warm_restarts", restart_epochs=1.0, **STEPS)
    cut_off = TrainConfig(schedule="warm_restarts", restart_epochs=10.0, **STEPS)
    whole = TrainConfig(schedule="warm_restarts", restart_epochs=8.0, **STEPS)
    assert [list(causes(check_budget(c, data.train))) for c in (short, cut_off, whole)] == [
        ["restarts"],
        ["restarts"],
        [],
    ]


@pytest.mark.parametrize("changes", [{}, {"lr_min": 1e-2, "lr": 1e-1}, {"batch_size": 30, "accumulate": 3}])
def test_better_budget_is_a_config(data, changes):
    cfg = TrainConfig(crop_size=0, samples_per_epoch=0, epochs=1, warmup_epochs=0.0, **changes)
    better = TrainConfig(**(asdict(cfg) | _better_budget(cfg, data.train)))
    assert budget(better, data.train)["steps"] >= 256
    assert 0 < better.crop_size <= 96


@pytest.mark.parametrize("sampler", ["random", "weighted", "pixel"])
def test_samplers_have_no_finding(data, sampler):
    cfg = replace(TINY, sampler=sampler, samples_per_epoch=64)
    assert check_exposure(cfg, data.train) == []
    assert (_exposure_table(cfg, data.train)["shown"] > 0).all()


def test_whole_tiles_show_every_pixel_alike(data):
    cfg = replace(TINY, sampler="random", crop_size=0, samples_per_epoch=len(data.train) * 4)
    table = _exposure_table(cfg, data.train)
    assert check_exposure(cfg, data.train) == []
    assert math.isclose(table["share shown"].sum(), 1)


class Fixed:
    def __init__(self, crops):
        self.crops = np.array(crops)

    def positions(self, epoch):
        return self.crops


def test_sampler_that_never_shows_a_class(data):
    label = np.full((96, 96), 0, np.uint8)
    label[64:, 64:] = 1
    train = replace(
        data.train,
        labels=tuple(label for _ in data.train.labels),
        valids=tuple(np.ones((96, 96), bool) for _ in data.train.labels),
    )
    hidden = Fixed([(i, 0, 0) for i in range(len(train))] * 10)
    (found,) = check_exposure(TINY, train, hidden)
    assert (found.cause, found.severity) == ("sampler-blind", "fatal")
    assert train.classes[1] in found.evidence
    assert check_exposure(TINY, train, Fixed([(i, r, r) for i in range(len(train)) for r in (0, 64)])) == []


def test_one_tile_only(data):
    corners = [(0, r, c) for r in (0, 32, 64) for c in (0, 32, 64)]
    assert check_exposure(TINY, data.train, Fixed(corners))


def test_norms(data):
    norm = nn.Sequential(nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4))
    few = replace(TINY, batch_size=2)
    assert check_norm_batches(TINY, norm, data.train) == [] == check_norm_batches(few, nn.ReLU(), data.train)
    assert causes(check_norm_batches(few, norm, data.train)) == {"norm-small": "warning"}
    assert check_norm_batches(replace(TINY, sync_batchnorm=False), norm, data.train, size=2)


@pytest.mark.parametrize(
    "changes", [{}, {"normalisation": "robust"}, {"include_glcm": True}, {"tile_store": "disk"}]
)
def test_healthy_inputs(tiles, changes):
    data = prepare_data(replace(TINY, **changes), tiles)
    assert check_inputs(data) == [] == check_sets(data)


def test_broken_inputs(data):
    def broken(f, side="train"):
        return causes(check_inputs(replace(data, **{side: other_images(getattr(data, side), f)})))

    assert broken(lambda x: (x + 3) / 5.3) == {"inputs": "warning"}
    assert broken(lambda x: 9000 + 2000 * x) == {"inputs": "fatal"}
    assert broken(lambda x: 3000 + 2000 * x, "val") == {"inputs": "fatal"}
    assert broken(lambda x: np.where(x > 1, np.nan, x), "val")["not-finite"] == "fatal"
    assert "not-finite" in broken(lambda x: x * np.nan)


def test_shared_sets(data):
    assert causes(check_sets(replace(data, val=data.train))) == {"set-shared": "fatal"}
    views = replace(data.val, images=(data.train.images[2][:], *data.val.images[1:]))
    assert data.train.ids[2] in check_sets(replace(data, val=views))[0].evidence


def mirror(*names):
    def augment(batch, epoch, number, shard=None):
        return {k: x.flip(-1) if k in names else x for k, x in batch.items()}

    return augment


ALL = ("image", "label", "valid", "distance")


@pytest.mark.parametrize("left", ["image", "label", "valid", "distance"])
def test_what_is_left_behind(learner, left):
    learner.augment = mirror(*ALL)
    assert check_augment(learner) == []
    learner.augment = mirror(*(name for name in ALL if name != left))
    found = check_augment(learner)
    assert causes(found) == {"label-left-behind": "fatal"}


@pytest.mark.parametrize("policy", ["none", "photometric", "photometric+dihedral", "geometric", "strong"])
def test_policies_have_no_finding_and_change_nothing(learner, policy):
    learner = make_learner(replace(TINY, augment=policy), learner.data, "unused", progress=False)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert check_augment(learner) == []
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # noqa: NPY002


def test_augmentation_without_effect(learner):
    learner.augment = mirror()
    assert causes(check_augment(learner)) == {"augmentation-off": "warning"}


def test_validation_that_changes(learner):
    plain = learner.whole_tile
    learner.whole_tile = lambda i: (
        (b := plain(i)) | {"image": b["image"] + 0.1 * torch.randn(b["image"].shape)}
    )
    assert causes(check_augment(learner)) == {"validation-changed": "fatal"}


def test_explained():
    groups = torch.tensor([[0, 0, 1, 1]])
    image = torch.tensor([[[1.0, 1.0, 2.0, 2.0]], [[1.0, 2.0, 1.0, 2.0]], [[1.0, 1.0, 1.0, 1.0]]])
    np.testing.assert_allclose(_explained_variance(image, groups), [1, 0, np.nan])


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"samples_per_epoch": 64, "epochs": 2}, "Take more steps: the learning rate is usual."),
        ({"lr": 1e-4}, "Raise lr, for example to 0.001."),
    ],
)
def test_the_advice_for_small_movements_names_what_is_unusual(data, changes, fix):
    cfg = TrainConfig(**STEPS | changes)
    found = [f for f in check_budget(cfg, data.train) if f.cause == "lr-low"]
    assert [f.fix.startswith(fix) for f in found] == [True]
    assert check_budget(TrainConfig(**(asdict(cfg) | found[0].change)), data.train) == []
