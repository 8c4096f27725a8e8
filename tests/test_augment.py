"""Augmentation: light only on valid pixels, turns for all arrays alike, both repeatable."""

import pytest
import torch

from glacier_nb.augment import Photometric, batch_generator, dihedral, make_augment, turn
from glacier_nb.data import DataError

NAMES = ("none", "photometric", "photometric+dihedral")


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    label = torch.randint(0, 4, (32, 12, 12), generator=g)
    valid = torch.rand(32, 12, 12, generator=g) > 0.3
    image = torch.randn(32, 5, 12, 12, generator=g) * valid[:, None]
    image[:, 0] = label * valid  # so that a label can be told from its pixel
    distance = torch.stack([label == c for c in range(4)], 1).float()
    return {"image": image, "label": label, "valid": valid, "distance": distance}


def test_gain_and_offset_are_one_line_per_band_and_crop_within_bounds(batch):
    out = Photometric(0.2, 0.3)(batch, batch_generator(0, 0, 0))
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
    out = Photometric(0.5, 0.5)(batch, batch_generator(0, 0, 0))
    assert (out["image"].permute(1, 0, 2, 3)[:, ~batch["valid"]] == 0).all()
    assert all(out[k] is batch[k] for k in ("label", "valid", "distance"))


def test_no_strength_is_the_identity(batch):
    assert torch.equal(Photometric(0, 0)(batch, batch_generator(0, 0, 0))["image"], batch["image"])


@pytest.mark.parametrize("name", NAMES)
def test_the_input_is_never_changed(batch, name):
    before = {k: v.clone() for k, v in batch.items()}
    make_augment(name)(batch, 0, 0)
    assert all(torch.equal(batch[k], before[k]) for k in before)


@pytest.mark.parametrize("name", NAMES)
def test_seed_epoch_and_number_decide_and_global_state_does_not(batch, name):
    torch.manual_seed(1)
    first = make_augment(name, seed=5)(batch, 3, 7)
    torch.manual_seed(2)
    again = make_augment(name, seed=5)(batch, 3, 7)
    assert all(torch.equal(first[k], again[k]) for k in first)
    others = [
        make_augment(name, seed=s)(batch, e, n)["image"]
        for s, e, n in ((6, 3, 7), (5, 4, 7), (5, 3, 8), (5, 7, 3))
    ]
    assert all(torch.equal(first["image"], o) == (name == "none") for o in others)


def test_global_generator_is_not_advanced(batch):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    make_augment("photometric+dihedral")(batch, 0, 0)
    assert torch.equal(torch.rand(3), expected)


def test_labels_move_with_their_pixels(batch):
    out = dihedral(batch, batch_generator(0, 0, 0))
    assert not torch.equal(out["label"], batch["label"])
    valid, label = out["valid"], out["label"]
    assert torch.equal(out["image"][:, 0][valid], label[valid].float())
    assert (out["image"].permute(1, 0, 2, 3)[:, ~valid] == 0).all()
    assert torch.equal(out["distance"].argmax(1), label)


def test_eight_views_are_the_dihedral_group(batch):
    x = batch["image"][0]
    views = [turn(x, v) for v in range(8)]
    assert all(not torch.equal(views[a], views[b]) for a in range(8) for b in range(a))
    for v in range(8):  # each view of a view is one of the eight
        assert all(any(torch.equal(turn(views[v], w), u) for u in views) for w in range(8))
    drawn = [dihedral({"image": x[None]}, batch_generator(0, 0, n))["image"][0] for n in range(200)]
    counts = [sum(torch.equal(d, v) for d in drawn) for v in views]
    assert sum(counts) == 200
    assert min(counts) > 8


def test_turns_need_squares():
    with pytest.raises(DataError, match="8 x 12 pixels"):
        dihedral({"image": torch.zeros(1, 5, 8, 12)}, batch_generator(0, 0, 0))


@pytest.mark.parametrize(
    "bad", [{"gain": -0.1}, {"gain": 1.0}, {"offset": -1.0}, {"offset": float("inf")}, {"gain": float("nan")}]
)
def test_strengths_that_make_no_sense_are_refused(bad):
    with pytest.raises(DataError, match="expected 0 <= gain < 1"):
        Photometric(**bad)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(DataError, match="'flips' is unknown: expected none, photometric, photometric"):
        make_augment("flips")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_image_keeps_its_type(batch, dtype):
    assert (
        make_augment("photometric")(batch | {"image": batch["image"].to(dtype)}, 0, 0)["image"].dtype == dtype
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_gives_the_same(batch, name):
    there = {k: v.cuda() for k, v in batch.items()}
    here, moved = make_augment(name)(batch, 1, 2), make_augment(name)(there, 1, 2)
    torch.testing.assert_close(moved["image"].cpu(), here["image"])
    assert torch.equal(moved["label"].cpu(), here["label"])
