"""Mixing: soft labels and hard boxes, pixels known in both, reproducible whatever the global state."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch.testing import assert_close
from torchvision.transforms import v2

from glacier_nb.augment.mixing import _boxes, _CutMix, _MixUp, _own_shares, _partners, _soft_label, make_mixer
from glacier_nb.augment.photometric import batch_generator
from glacier_nb.data.stats import DataError
from glacier_nb.landsat import IGNORE
from glacier_nb.losses.terms import boundary_loss

MIXERS = {"mixup": (0.4, 0), "cutmix": (0, 1.0), "both": (0.4, 1.0)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batch():
    g = seeded()
    label = torch.randint(0, 4, (12, 24, 24), generator=g)
    label[torch.rand(label.shape, generator=g) < 0.05] = IGNORE
    valid = torch.rand(12, 24, 24, generator=g) > 0.3
    return {
        "image": torch.randn(12, 5, 24, 24, generator=g) * valid[:, None],
        "label": label,
        "valid": valid,
        "distance": torch.rand(12, 4, 24, 24, generator=g) * (valid & (label != IGNORE))[:, None],
    }


def drawn(batch, alpha, seed=0):
    "The partners and shares that MixUp and CutMix of this seed use."
    generator, n = seeded(seed), len(batch["label"])
    return _partners(n, generator), _own_shares(n, alpha, generator)


@pytest.mark.parametrize("n", [2, 3, 16])
def test_every_crop_is_the_partner_of_one_other(n):
    for seed in range(50):
        other = _partners(n, seeded(seed))
        assert sorted(other.tolist()) == list(range(n))
        assert (other != torch.arange(n)).all()


def test_any_other_crop_may_be_the_partner():
    found = torch.stack([_partners(5, seeded(s)) for s in range(500)])
    counts = torch.stack([(found == k).sum(0) for k in range(5)])
    assert counts.diagonal().sum() == 0
    assert counts[~torch.eye(5, dtype=torch.bool)].min() > 80


@pytest.mark.parametrize("alpha", [0.4, 1.0, 8.0])
def test_shares_are_beta(alpha):
    assert kstest(_own_shares(5000, alpha, seeded()).numpy(), "beta", (alpha, alpha)).pvalue > 0.001


@pytest.mark.parametrize("alpha", [1e-6, 1e6])
def test_extreme_shares_are_still_shares(alpha):
    share = _own_shares(1000, alpha, seeded())
    assert ((share >= 0) & (share <= 1)).all()


def test_mixup_is_the_formula_of_the_paper(batch):
    out, (other, share) = _MixUp(0.4, 4)(batch, seeded()), drawn(batch, 0.4)
    for b in range(12):
        o, s = int(other[b]), float(share[b])
        known = [batch["valid"][k] & (batch["label"][k] != IGNORE) for k in (b, o)]
        assert torch.equal(out["valid"][b], known[0] & known[1])
        for name in ("image", "distance"):
            wanted = (s * batch[name][b] + (1 - s) * batch[name][o]) * out["valid"][b]
            assert_close(out[name][b], wanted, rtol=0, atol=1e-6)
        for k in range(4):
            wanted = s * (batch["label"][b] == k) + (1 - s) * (batch["label"][o] == k).float()
            assert_close(out["label"][b, k], wanted * out["valid"][b], rtol=0, atol=1e-6)


def test_mixup_of_images_and_classes_is_torchvisions():
    "With one label a picture and one share for the batch, and its order of partners."
    image, classes = torch.randn((6, 3, 8, 8), generator=seeded()), torch.tensor([0, 1, 2, 3, 1, 0])
    params = {"lam": 0.3, "labels": classes, "batch_size": 6}
    mixup = v2.MixUp(num_classes=4)
    wanted, wanted_label = mixup.transform(image.clone(), params), mixup.transform(classes, params)
    batch = {
        "image": image,
        "label": classes[:, None, None].expand(6, 8, 8),
        "valid": torch.ones(6, 8, 8).bool(),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glacier_nb.augment.mixing._partners", lambda n, g: torch.arange(n).roll(1))
        patch.setattr("glacier_nb.augment.mixing._own_shares", lambda n, a, g: torch.full((n,), 0.3))
        out = _MixUp(1.0, 4)(batch, seeded())
    assert_close(out["image"], wanted)
    assert_close(out["label"], wanted_label[:, :, None, None].expand(6, 4, 8, 8))


def test_soft_labels_are_probabilities_where_valid_and_0_elsewhere(batch):
    out = _MixUp(1.0, 4)(batch, seeded())
    assert out["label"].dtype == torch.float32
    assert_close(out["label"].sum(1), out["valid"].float())
    assert (out["label"] >= 0).all()
    assert 0.3 < out["valid"].float().mean() < 0.6
    for name in ("image", "label", "distance"):
        assert (out[name].movedim(1, -1)[~out["valid"]] == 0).all()


def test_the_boundary_loss_of_a_blend_is_the_blend_of_both(batch):
    out, (other, share) = _MixUp(1.0, 4)(batch, seeded()), drawn(batch, 1.0)
    logits = torch.randn((12, 4, 24, 24), generator=seeded(1))
    for b in range(12):
        args = logits[b : b + 1], batch["label"][b : b + 1], out["valid"][b : b + 1]
        own, partner, blend = (boundary_loss(*args, d[None]) for d in (
            batch["distance"][b], batch["distance"][other[b]], out["distance"][b]))  # fmt: skip
        assert_close(blend, share[b] * own + (1 - share[b]) * partner)


@pytest.mark.parametrize("unknown", [4, -1, 254])
def test_labels_that_are_not_classes_are_errors(batch, unknown):
    batch["label"][0, 0, 0], batch["valid"][0, 0, 0] = unknown, True
    with pytest.raises(DataError, match=rf"found class indices \[{unknown}\], expected 0 to 3 or 255"):
        _MixUp(1.0, 4)(batch, seeded())
    batch["valid"][0, 0, 0] = False
    assert _soft_label(batch["label"], batch["valid"] & (batch["label"] != IGNORE), 4)[0, :, 0, 0].sum() == 0


def test_cutmix_takes_every_pixel_whole_from_one_of_both(batch):
    out, (other, share) = _CutMix(1.0)(batch, seeded()), drawn(batch, 1.0)
    marked = batch | {"image": torch.arange(12.0)[:, None, None, None].expand(12, 1, 24, 24)}
    source = _CutMix(1.0)(marked, seeded())["image"][:, 0].long()
    assert {(b, int(s)) for b in range(12) for s in source[b].unique()} <= {
        (b, k) for b in range(12) for k in (b, int(other[b]))
    }
    assert (source != torch.arange(12)[:, None, None]).flatten(1).any(1).sum() > 8
    y, x = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    for name, moved in out.items():
        assert moved.dtype == batch[name].dtype
        for b in range(12):
            assert torch.equal(moved[b], batch[name][source[b], ..., y, x].movedim((0, 1), (-2, -1)))
    assert share.shape == (12,)


def test_pasted_pixels_are_one_rectangle(batch):
    marked = batch | {"image": torch.arange(12.0)[:, None, None, None].expand(12, 1, 24, 24)}
    inside = _CutMix(1.0)(marked, seeded())["image"][:, 0] != torch.arange(12.0)[:, None, None]
    for box in inside:
        rows, cols = box.any(1), box.any(0)
        assert torch.equal(box, rows[:, None] & cols)
        assert all(v.int().diff().abs().sum() <= 2 for v in (rows, cols))


@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_boxes_have_the_area_and_proportions_asked_for(size):
    share = torch.linspace(0, 1, 21)
    box = _boxes(share, torch.full((21, 2), 0.5), size)
    assert_close(box.float().mean((1, 2)), 1 - share, rtol=0, atol=0.05)
    assert_close(box.any(1).float().mean(1), (1 - share).sqrt(), rtol=0, atol=0.04)
    corner = _boxes(share, torch.zeros(21, 2), size)
    assert_close(corner.float().mean((1, 2)), (1 - share) / 4, rtol=0, atol=0.04)


@pytest.mark.parametrize("name", MIXERS)
def test_seed_epoch_and_number_decide_and_global_state_does_not(batch, name):
    before = {k: v.clone() for k, v in batch.items()}
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  the state that must not matter
    first, state = make_mixer(*MIXERS[name], 4, seed=5)(batch, 3, 7), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    np.random.seed(2)  # noqa: NPY002
    again = make_mixer(*MIXERS[name], 4, seed=5)(batch, 3, 7)
    assert all(torch.equal(first[k], again[k]) for k in batch)
    for s, e, n in ((6, 3, 7), (5, 4, 7), (5, 3, 8)):
        assert not torch.equal(make_mixer(*MIXERS[name], 4, seed=s)(batch, e, n)["image"], first["image"])
    assert all(torch.equal(batch[k], before[k]) for k in batch)


def test_no_mixing_returns_the_batch_itself(batch):
    assert make_mixer(0, 0, 4)(batch, 0, 0) is batch


def test_with_both_each_batch_draws_one(batch):
    mix = make_mixer(1.0, 1.0, 4)
    soft = [mix(batch, 0, n)["label"].ndim == 4 for n in range(200)]
    assert 70 < sum(soft) < 130


def test_the_mixer_does_not_repeat_the_numbers_of_the_augmentation():
    ours, theirs = (torch.rand(1000, generator=batch_generator(0, 0, 0, *s)) for s in ((1,), ()))
    assert not set(ours.tolist()) & set(theirs.tolist())


@pytest.mark.parametrize("name", MIXERS)
def test_a_batch_of_one_is_mixed_with_itself(batch, name):
    single = {k: v[:1] for k, v in batch.items()}
    out = make_mixer(*MIXERS[name], 4)(single, 0, 0)
    known = single["valid"] & (single["label"] != IGNORE)
    assert_close(out["image"].movedim(1, -1)[known], single["image"].movedim(1, -1)[known])
    label = out["label"] if out["label"].ndim == 3 else out["label"].argmax(1)
    assert torch.equal(label[known], single["label"][known])


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf")])
def test_alphas_out_of_range_are_errors(alpha):
    for alphas in ((alpha, 0), (0, alpha)):
        with pytest.raises(DataError, match="expected a finite number above 0"):
            make_mixer(*alphas, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", MIXERS)
def test_a_gpu_gives_the_same(batch, name):
    there = make_mixer(*MIXERS[name], 4)({k: v.cuda() for k, v in batch.items()}, 1, 2)
    here = make_mixer(*MIXERS[name], 4)(batch, 1, 2)
    for k in batch:
        torch.testing.assert_close(there[k].cpu(), here[k])


@pytest.mark.parametrize("name", MIXERS)
def test_ranks_draw_streams_of_their_own_but_the_same_kind(batch, name):
    mix = make_mixer(*MIXERS[name], 4, seed=5)
    for number in range(6):
        zero, *others = [mix(batch, 3, number, rank) for rank in range(3)]
        alone = mix(batch, 3, number)
        assert all(torch.equal(zero[k], x) for k, x in alone.items())  # rank 0 draws what one process draws
        assert len({out["image"].numpy().tobytes() for out in (zero, *others)}) == 3
        assert {out["label"].ndim for out in others} == {zero["label"].ndim}
        again = mix(batch, 3, number, 2)
        assert all(torch.equal(others[1][k], x) for k, x in again.items())
