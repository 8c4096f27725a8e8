"""Augmentation: only valid pixels of training batches, reproducible whatever the global state."""

import hashlib

import pytest
import torch

from glacier_nb.augment.photometric import (
    _POLICIES,
    Augmentation,
    _BandDropout,
    _Noise,
    _Photometric,
    batch_generator,
)
from glacier_nb.config.training import TrainConfig
from glacier_nb.data.stats import DataError
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.parallel.ranks import Ranks
from glacier_nb.tiles.read import read_tiles
from glacier_nb.training.callbacks import make_learner
from glacier_nb.training.recipe import prepare_data

NAMES = tuple(_POLICIES)


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    label = torch.randint(0, 4, (32, 12, 12), generator=g)
    valid = torch.rand(32, 12, 12, generator=g) > 0.3
    image = torch.randn(32, 5, 12, 12, generator=g) * valid[:, None]
    image[:, 0] = label * valid  # so that every label can be checked at its pixel
    distance = torch.stack([label == c for c in range(4)], 1).float()
    return {"image": image, "label": label, "valid": valid, "distance": distance}


def test_gain_and_offset_are_one_line_per_band_and_crop_within_bounds(batch):
    out = _Photometric(0.2, 0.3)(batch, batch_generator(0, 0, 0))
    x, y, valid = batch["image"].double(), out["image"].double(), batch["valid"]
    lines = []
    for b in range(32):
        for c in range(1, 5):
            p, q = x[b, c][valid[b]], y[b, c][valid[b]]
            gain = ((p - p.mean()) * (q - q.mean())).sum() / ((p - p.mean()) ** 2).sum()
            offset = (q - gain * p).mean()
            torch.testing.assert_close(q, gain * p + offset, rtol=1e-5, atol=1e-5)
            lines.append((gain, offset))
    gain, offset = torch.tensor(lines).T
    assert (gain - 1).abs().max() <= 0.2001
    assert offset.abs().max() <= 0.3001
    assert len(set(gain.tolist())) == len(gain)  # its own for each band of each crop
    assert (gain - 1).abs().max() > 0.18
    assert offset.abs().max() > 0.27
    assert abs(gain.mean() - 1) < 0.05
    assert abs(offset.mean()) < 0.08


def test_nodata_stays_exactly_neutral_and_the_rest_is_untouched(batch):
    out = _Photometric(0.5, 0.5)(batch, batch_generator(0, 0, 0))
    assert (out["image"].permute(1, 0, 2, 3)[:, ~batch["valid"]] == 0).all()
    assert all(out[k] is batch[k] for k in ("label", "valid", "distance"))


def test_no_strength_is_the_identity(batch):
    assert torch.equal(_Photometric(0, 0)(batch, batch_generator(0, 0, 0))["image"], batch["image"])


@pytest.mark.parametrize("name", NAMES)
def test_the_input_is_never_changed(batch, name):
    before = {k: v.clone() for k, v in batch.items()}
    Augmentation(name)(batch, 0, 0)
    assert all(torch.equal(batch[k], before[k]) for k in before)


@pytest.mark.parametrize("name", NAMES)
def test_seed_epoch_and_number_decide_and_global_state_does_not(batch, name):
    torch.manual_seed(1)
    first = Augmentation(name, seed=5)(batch, 3, 7)
    torch.manual_seed(2)
    again = Augmentation(name, seed=5)(batch, 3, 7)
    assert all(torch.equal(first[k], again[k]) for k in first)
    others = [
        Augmentation(name, seed=s)(batch, e, n)["image"]
        for s, e, n in ((6, 3, 7), (5, 4, 7), (5, 3, 8), (5, 7, 3))
    ]
    assert all(torch.equal(first["image"], o) == (name == "none") for o in others)


@pytest.mark.parametrize("name", NAMES)
def test_global_generator_is_not_advanced(batch, name):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Augmentation(name)(batch, 0, 0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("name", "sha"),
    [
        ("none", "aa6ff9d991848277"),
        ("photometric", "1c9849a8c851f9a6"),
        ("photometric+dihedral", "3b50b7abf982c747"),
    ],
)
def test_policies_draw_the_numbers_of_earlier_runs(name, sha):
    "A resumed run continues with the augmentation that it started with."
    label = torch.arange(2 * 64).reshape(2, 8, 8) % 4
    image = torch.linspace(-2, 2, 2 * 3 * 64).reshape(2, 3, 8, 8)
    batch = {"image": image, "label": label, "valid": label != 3}
    out = Augmentation(name, seed=7)(batch, 2, 5)
    assert out["image"].dtype == torch.float32
    rounded = (out["image"].double() * 1e4).round().to(torch.int64)
    found = [t.contiguous().numpy().tobytes() for t in (rounded, out["label"], out["valid"])]
    assert hashlib.sha256(b"".join(found)).hexdigest()[:16] == sha


@pytest.mark.parametrize("name", NAMES)
def test_nodata_stays_exactly_neutral_under_every_policy(batch, name):
    for number in range(5):
        out = Augmentation(name)(batch, 0, number)
        assert (out["image"].movedim(1, -1)[~out["valid"]] == 0).all()
        assert out["valid"].any()
        assert {k: (v.shape, v.dtype) for k, v in out.items()} == {
            k: (v.shape, v.dtype) for k, v in batch.items()
        }


def test_noise_is_white_and_of_its_own_strength_in_each_crop():
    batch = {"image": torch.zeros(64, 5, 32, 32), "valid": torch.ones(64, 32, 32, dtype=torch.bool)}
    out = _Noise(0.4)(batch, batch_generator(0, 0, 0))["image"].double()
    std = out.flatten(1).std(1)
    assert std.max() < 0.42
    assert std.max() > 0.35
    assert std.min() < 0.05
    white = out / std[:, None, None, None]
    assert abs(white.mean()) < 0.01
    for shifted in (white.roll(1, 1), white.roll(1, 2), white.roll(1, 3)):
        assert abs((white * shifted).mean()) < 0.01
    assert abs((white**4).mean() - 3) < 0.1  # normal


def test_noise_changes_valid_pixels_of_the_image_alone(batch):
    out = _Noise(0.5)(batch, batch_generator(0, 0, 0))
    assert (out["image"].movedim(1, -1)[~batch["valid"]] == 0).all()
    assert ((out["image"] != batch["image"]).movedim(1, -1)[batch["valid"]]).float().mean() > 0.99
    assert all(out[k] is batch[k] for k in ("label", "valid", "distance"))
    assert torch.equal(_Noise(0)(batch, batch_generator(0, 0, 0))["image"], batch["image"])


def test_dropout_removes_one_whole_channel_of_some_crops():
    x = torch.rand(2000, 5, 4, 4, generator=torch.Generator().manual_seed(0)) + 1
    out = _BandDropout(0.3)({"image": x}, batch_generator(0, 0, 0))["image"]
    lost = (out == 0).flatten(2).all(2)
    assert torch.equal(out, x * ~lost[:, :, None, None])
    assert lost.sum(1).max() == 1
    assert abs(lost.any(1).float().mean() - 0.3) < 0.03
    assert lost.sum(0).min() > 80
    for p, share in ((0.0, 0.0), (1.0, 1.0)):
        out = _BandDropout(p)({"image": x}, batch_generator(0, 0, 0))["image"]
        assert (out == 0).flatten(2).all(2).any(1).float().mean() == share


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_strengths_of_noise_and_dropout_are_checked(bad):
    with pytest.raises(DataError, match="expected a finite number"):
        _Noise(bad)
    with pytest.raises(DataError, match="expected a number from 0 to 1"):
        _BandDropout(bad)


def test_streams_of_one_batch_differ():
    draws = [torch.rand(1, generator=batch_generator(0, 1, 2, *s)).item() for s in ((), (0,), (1,), (0, 1))]
    assert len(set(draws)) == 4


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    "A tiny learner without augmentation."
    folder = tmp_path_factory.mktemp("learner")
    sizes = {"crop_size": 32, "samples_per_epoch": 8, "batch_size": 4, "epochs": 2, "n_folds": 3}
    still = {"augment": "none", "lr": 0.0, "lr_min": 0.0, "precision": "fp32", "devices": "cpu"}
    cfg = TrainConfig(encoder="tu-mobilenetv3_small_050", encoder_weights=None, **sizes, **still)
    return make_learner(cfg, prepare_data(cfg, read_tiles(cached_demo())), folder / "run", progress=False)


@pytest.mark.parametrize("name", NAMES[1:])
def test_training_pixels_change_and_validation_pixels_do_not(learner, monkeypatch, name):
    "The tiles themselves, what validation reads and what it computes: all as without augmentation."
    tiles = [x.copy() for x in (*learner.data.train.images, *learner.data.val.images)]
    crops, whole, scores = list(learner.batches(0)), learner.whole_tile(0), learner.validate()
    monkeypatch.setattr(learner, "augment", Augmentation(name, learner.cfg.seed))
    changed = list(learner.batches(0))
    assert len(changed) == len(crops) == 2
    assert all(not torch.equal(a["image"], b["image"]) for a, b in zip(crops, changed, strict=True))
    same = learner.whole_tile(0)
    assert all(torch.equal(same[k], whole[k]) for k in whole)
    assert (same["image"][0].numpy() == learner.data.val.images[0]).all()
    assert learner.validate() == scores
    after = (*learner.data.train.images, *learner.data.val.images)
    assert all((a == b).all() for a, b in zip(tiles, after, strict=True))
    record = learner.train_step(changed)
    assert all(torch.isfinite(torch.tensor(v)) for v in record.values())


@pytest.mark.parametrize(
    "bad", [{"gain": -0.1}, {"gain": 1.0}, {"offset": -1.0}, {"offset": float("inf")}, {"gain": float("nan")}]
)
def test_gain_and_offset_are_checked(bad):
    with pytest.raises(DataError, match="expected 0 <= gain < 1"):
        _Photometric(**bad)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(DataError, match="'flips' is unknown: expected none, photometric, sun"):
        Augmentation("flips")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_image_keeps_its_type(batch, dtype):
    assert (
        Augmentation("photometric")(batch | {"image": batch["image"].to(dtype)}, 0, 0)["image"].dtype == dtype
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_gives_the_same(batch, name):
    there = {k: v.cuda() for k, v in batch.items()}
    here, moved = Augmentation(name)(batch, 1, 2), Augmentation(name)(there, 1, 2)
    assert (moved["label"].cpu() == here["label"]).float().mean() > 0.999
    same = (moved["valid"].cpu() == here["valid"])[:, None]
    torch.testing.assert_close(moved["image"].cpu() * same, here["image"] * same, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1, 2, 3, 32])
def test_shards_of_a_batch_are_the_batch(batch, name, size):
    augment = Augmentation(name, seed=5)
    whole, shards = augment(batch, 3, 7), [Ranks(rank, size).shard(32) for rank in range(size)]
    parts = [augment({k: s.take(x) for k, x in batch.items()}, 3, 7, s) for s in shards]
    assert all(torch.equal(torch.cat([p[k] for p in parts]), x) for k, x in whole.items())


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_batch_that_is_not_its_shard_is_an_error(batch, name):
    with pytest.raises(ValueError, match="found 32 rows, expected the 16 of Shard"):
        Augmentation(name)(batch, 0, 0, Ranks(0, 2).shard(32))
