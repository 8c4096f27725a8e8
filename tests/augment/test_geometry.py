"""Geometry: exact turns, warps as in torchvision, labels that stay with their pixels, nodata."""

from functools import cache

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.testing import assert_close
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from glacier_nb.augment.geometry import (
    SunWarp,
    Warp,
    _affine_field,
    _bend_field,
    _resample,
    dihedral,
    sun_axis,
    turn,
)
from glacier_nb.data.stats import DataError
from glacier_nb.landsat import IGNORE
from glacier_nb.losses.terms import signed_distance

STILL = {"degrees": 0, "zoom": 1, "shear": 0, "shift": 0, "bend": 0}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def scene(n=8, size=64, seed=0):
    "Contiguous classes and clouds; band 0 is the label, band 1 the column, band 2 the row."
    rng = np.random.default_rng(seed)
    fields = gaussian_filter(rng.normal(size=(2, n, size, size)), (0, 0, 4, 4), mode="wrap")
    label = np.digitize(fields[0], np.quantile(fields[0], [0.5, 0.75, 0.95]))
    label[rng.random(label.shape) < 0.01] = IGNORE
    valid = fields[1] < np.quantile(fields[1], 0.75)
    distance = [signed_distance(y, 4, valid=v) for y, v in zip(label, valid, strict=True)]
    y, x = np.broadcast_arrays(*np.ogrid[:size, :size])
    image = np.stack([label % 255, *(np.broadcast_to(a, label.shape) for a in (x, y))], 1) * valid[:, None]
    return {
        "image": torch.from_numpy(image).float(),
        "label": torch.from_numpy(label),
        "valid": torch.from_numpy(valid),
        "distance": torch.from_numpy(np.stack(distance)),
    }


@pytest.fixture
def batch():
    return scene()


def one(batch, k=0):
    return {name: x[k] for name, x in batch.items()}


def field_of(degrees=0.0, zoom=1.0, shear=0.0, shift=(0.0, 0.0), size=(64, 64)):
    return _affine_field(*(torch.tensor([v]) for v in (degrees, zoom, shear, shift)), size)[0]


def test_labels_move_with_their_pixels(batch):
    out = dihedral(batch, seeded())
    assert not torch.equal(out["label"], batch["label"])
    known = out["valid"] & (out["label"] != IGNORE)
    assert torch.equal(out["image"][:, 0][known], out["label"][known].float())
    assert (out["image"].movedim(1, -1)[~out["valid"]] == 0).all()


def test_eight_views_are_the_dihedral_group(batch):
    x = batch["image"][0]
    views = [turn(x, v) for v in range(8)]
    assert all(not torch.equal(views[a], views[b]) for a in range(8) for b in range(a))
    for v in range(8):  # each view of a view is one of the eight
        assert all(any(torch.equal(turn(views[v], w), u) for u in views) for w in range(8))
    drawn = [dihedral({"image": x[None]}, seeded(n))["image"][0] for n in range(200)]
    counts = [sum(torch.equal(d, v) for d in drawn) for v in views]
    assert sum(counts) == 200
    assert min(counts) > 8


def test_views_are_torchvisions_flips_and_turns(batch):
    x = batch["image"][0]
    assert torch.equal(turn(x, 4), tv.horizontal_flip(x))
    assert torch.equal(turn(x, 6), tv.vertical_flip(x))
    for k in range(4):
        assert torch.equal(turn(x, k), tv.rotate(x, 90.0 * k))


@pytest.mark.parametrize("view", range(8))
def test_distances_of_a_view_are_those_of_the_turned_label(batch, view):
    label, valid, distance = (turn(batch[k][0], view) for k in ("label", "valid", "distance"))
    fresh = signed_distance(label.numpy(), 4, valid=valid.numpy())
    assert torch.equal(distance, torch.from_numpy(fresh))


def test_turns_need_squares():
    with pytest.raises(DataError, match="8 x 12 pixels"):
        dihedral({"image": torch.zeros(1, 5, 8, 12)}, seeded())


@pytest.mark.parametrize("size", [(64, 64), (40, 96)])
@pytest.mark.parametrize(
    ("degrees", "zoom", "shear", "shift"),
    [
        (30.0, 1, 0, (0, 0)),
        (0.0, 0.73, 0, (0, 0)),
        (0.0, 1, 20, (0, 0)),
        (0.0, 1, 0, (7, -4)),
        (-75.0, 1.4, 9, (3, 5)),
    ],
)
@pytest.mark.parametrize("mode", [InterpolationMode.NEAREST, InterpolationMode.BILINEAR])
def test_affine_is_torchvisions(size, degrees, zoom, shear, shift, mode):
    x = torch.randn((3, *size), generator=seeded())
    field = field_of(degrees, float(zoom), float(shear), tuple(map(float, shift)), size)
    ours = tv.elastic(x, (field / torch.tensor([size[1] / 2, size[0] / 2]))[None], mode)
    theirs = tv.affine(x, degrees, shift, zoom, [float(shear), 0.0], mode)
    differs = ~torch.isclose(ours, theirs, rtol=0, atol=1e-4)
    assert differs.float().mean() < (0.001 if mode is InterpolationMode.NEAREST else 1e-9)


def test_bends_pass_through_their_nodes_and_are_smooth():
    nodes = torch.randn((2, 2, 3, 5), generator=seeded())
    field = _bend_field(nodes, (33, 65))
    assert_close(field[:, ::16, ::16].movedim(-1, 1), nodes, rtol=0, atol=1e-5)
    assert field.diff(dim=1).abs().max() < 2 * nodes.diff(dim=2).abs().max() / 16


@pytest.mark.parametrize("view", range(1, 4))
def test_a_quarter_turn_by_field_is_the_exact_one(batch, view):
    moved = _resample(one(batch), field_of(-90.0 * view))
    exact = {name: turn(x, view) for name, x in one(batch).items()}
    assert torch.equal(moved["label"], exact["label"])
    assert torch.equal(moved["valid"], exact["valid"])
    assert_close(moved["image"], exact["image"], rtol=0, atol=2e-3)
    assert_close(moved["distance"], exact["distance"], rtol=0, atol=1e-4)


def test_whole_pixels_shift_exactly_and_what_comes_from_outside_is_unknown(batch):
    moved, crop = _resample(one(batch), field_of(shift=(10.0, -6.0))), one(batch)
    for name in ("label", "valid"):
        assert torch.equal(moved[name][:-6, 10:], crop[name][6:, :-10])
    assert_close(moved["image"][:, :-6, 10:], crop["image"][:, 6:, :-10], rtol=0, atol=2e-3)
    outside = torch.ones(64, 64, dtype=torch.bool)
    outside[:-6, 10:] = False
    assert (moved["label"][outside] == IGNORE).all()
    assert not moved["valid"][outside].any()
    assert (moved["image"][:, outside] == 0).all()
    assert (moved["distance"][:, outside] == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_a_marker_lands_at_one_place_in_all_arrays(seed):
    size = 64
    label, image = torch.zeros(1, size, size, dtype=torch.int64), torch.zeros(1, 1, size, size)
    label[:, 30:33, 38:41], image[:, :, 30:33, 38:41] = 3, 1
    batch = {"image": image, "label": label, "valid": torch.ones(1, size, size, dtype=torch.bool)}
    out = Warp(p=1)(batch, seeded(seed))
    y, x = np.mgrid[:size, :size]
    there = [
        (a * w).sum() / w.sum()
        for w in (out["image"][0, 0].numpy(), out["label"][0].numpy() == 3)
        for a in (x, y)
    ]
    np.testing.assert_allclose(there[:2], there[2:], atol=0.4)
    assert np.hypot(there[0] - 39, there[1] - 31) > 1


@pytest.mark.parametrize("seed", range(5))
def test_coordinates_in_the_image_are_where_the_label_came_from(batch, seed):
    "Bands 1 and 2 hold column and row: the source of each pixel, at rims the mean of its valid neighbours."
    out = Warp(p=1)(batch, seeded(seed))
    field, _, _ = Warp(p=1).draw((8, 64, 64), seeded(seed))
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    wanted = field + torch.stack([x, y], -1)
    found = out["image"][:, 1:].movedim(1, -1)
    assert ((found - wanted).abs()[out["valid"]] < 1).all()
    column, row = wanted.round().long().clamp(0, 63).unbind(-1)
    source = batch["label"][torch.arange(8)[:, None, None], row, column]
    assert (source == out["label"])[out["valid"]].float().mean() > 0.9999


def test_nodata_does_not_bleed(batch):
    "Whatever invalid pixels hold, the result is the same to the bit, and lies between the valid values."
    for filler in (1e6, float("nan"), float("inf")):
        dirty = batch | {"image": torch.where(batch["valid"][:, None], batch["image"], filler)}
        for b in range(8):
            field = Warp(p=1).draw((1, 64, 64), seeded(b))[0][0]
            clean, from_dirty = _resample(one(batch, b), field), _resample(one(dirty, b), field)
            assert all(torch.equal(clean[k], from_dirty[k]) for k in clean)
    ones = batch | {"image": batch["valid"][:, None].float()}
    out = Warp(p=1)(ones, seeded())
    assert (out["image"][:, 0][~out["valid"]] == 0).all()
    assert_close(out["image"][:, 0][out["valid"]], torch.ones(int(out["valid"].sum())))


def test_unknown_labels_do_not_bleed_into_distances(batch):
    known = batch["valid"] & (batch["label"] != IGNORE)
    flat = batch | {"distance": torch.where(known[:, None], 0.5, 0.0).expand(-1, 4, -1, -1).contiguous()}
    for b in range(8):
        out = _resample(one(flat, b), Warp(p=1).draw((1, 64, 64), seeded(b))[0][0])
        known = out["valid"] & (out["label"] != IGNORE)
        assert_close(out["distance"][:, known], torch.full((4, int(known.sum())), 0.5))
        assert (out["distance"][:, ~known] == 0).all()


def test_all_invalid_stays_all_invalid(batch):
    nothing = batch | {"valid": torch.zeros_like(batch["valid"]), "image": torch.zeros_like(batch["image"])}
    out = Warp(p=1)(nothing, seeded())
    assert not out["valid"].any()
    assert (out["image"] == 0).all()
    assert (out["distance"] == 0).all()


@cache
def large_scene(size):
    "Four scenes, made once; they are only read."
    return scene(4, size)


def distance_errors(field, zoom, size=192, rim=40):
    "Errors in pixels of moved distances against recomputed ones, away from the rim; and the recomputed ones."
    whole = large_scene(size)
    moved = [_resample(one(whole, b), field, zoom) for b in range(4)]
    errors, fresh = [], []
    for out in moved:
        again = torch.from_numpy(signed_distance(out["label"].numpy(), 4, valid=out["valid"].numpy()))
        known = (out["valid"] & (out["label"] != IGNORE))[rim:-rim, rim:-rim]
        ours, theirs = (d[:, rim:-rim, rim:-rim][:, known] * 32 for d in (out["distance"], again))
        errors.append((ours - theirs).abs())
        fresh.append(theirs)
    return torch.cat(errors, 1), torch.cat(fresh, 1)


@pytest.mark.parametrize(("degrees", "zoom"), [(12.0, 1.0), (0.0, 1.25), (0.0, 0.8), (-9.0, 1.2)])
def test_distances_grow_with_the_zoom(degrees, zoom):
    field = field_of(degrees, zoom, size=(192, 192))
    scaled, fresh = distance_errors(field, zoom)
    near = fresh.abs() < 8
    assert scaled[near].mean() < 0.5
    if zoom != 1:
        left, _ = distance_errors(field, 1.0)
        assert left[fresh.abs() > 4].mean() > scaled[fresh.abs() > 4].mean()


def test_identity_changes_nothing(batch):
    out = Warp(**STILL, p=1)(batch, seeded())
    assert torch.equal(out["label"], batch["label"])
    assert torch.equal(out["valid"], batch["valid"])
    assert_close(out["image"], batch["image"], rtol=0, atol=1e-3)
    assert_close(out["distance"], batch["distance"], rtol=0, atol=1e-4)


def test_p_is_the_share_of_warped_crops_and_the_others_stay_as_they_are():
    batch = {"image": torch.randn((400, 1, 16, 16), generator=seeded())}
    batch |= {"label": torch.zeros(400, 16, 16, dtype=torch.int64), "valid": torch.ones(400, 16, 16).bool()}
    for p in (0.0, 0.3, 1.0):
        out = Warp(p=p)(batch, seeded())
        same = (out["image"] == batch["image"]).flatten(1).all(1)
        assert abs((~same).float().mean() - p) < 0.06


@pytest.mark.parametrize(
    ("option", "value", "spread"),
    [("degrees", 20.0, 1), ("zoom", 1.5, 1), ("shear", 10.0, 1), ("shift", 0.2, 2)],
)
def test_each_strength_is_a_bound_that_is_reached(option, value, spread):
    field, zoom, _ = Warp(**STILL | {option: value}).draw((500, 32, 32), seeded())
    step = field.diff(dim=2)[:, 0, 0] + torch.tensor([1.0, 0.0])  # source of one pixel to the right
    down = field.diff(dim=1)[:, 0, 0] + torch.tensor([0.0, 1.0])
    found = {
        "degrees": torch.rad2deg(torch.atan2(-step[:, 1], step[:, 0])),
        "zoom": torch.tensor(zoom).log() / np.log(1.5) * 1.5,
        "shear": torch.rad2deg(torch.atan(down[:, 0])),
        "shift": -field[:, 0, 0] / 32,
    }[option]
    assert found.abs().max() <= value * 1.001
    assert found.max() > 0.95 * value
    assert found.min() < -0.95 * value


def test_bends_within_the_limit_do_not_fold():
    field, _, _ = Warp(**STILL | {"bend": 4.0, "spacing": 32.0}).draw((300, 128, 128), seeded())
    (yx, yy), (xx, xy) = (torch.gradient(field, dim=d)[0].unbind(-1) for d in (1, 2))
    assert ((1 + xx) * (1 + yy) - xy * yx > 0).all()


def test_crops_need_not_be_square_nor_have_distances():
    batch = {k: v[:, ..., :40, :] for k, v in scene().items() if k != "distance"}
    out = Warp(p=1)(batch, seeded())
    assert {k: (v.shape, v.dtype, type(v)) for k, v in out.items()} == {
        k: (v.shape, v.dtype, torch.Tensor) for k, v in batch.items()
    }


@pytest.mark.parametrize("step", [dihedral, Warp(p=1)])
def test_the_generator_decides_and_global_state_does_not(batch, step):
    before = {k: v.clone() for k, v in batch.items()}
    torch.manual_seed(1)
    first, state = step(batch, seeded(3)), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = step(batch, seeded(3)), step(batch, seeded(4))
    assert all(torch.equal(first[k], again[k]) for k in batch)
    assert not torch.equal(first["image"], other["image"])
    assert all(torch.equal(batch[k], before[k]) for k in batch)


@pytest.mark.parametrize(
    "bad",
    [
        {"degrees": -1}, {"degrees": 181}, {"zoom": 0.9}, {"zoom": 5}, {"shear": 46}, {"shift": -0.1},
        {"shift": 1.1}, {"p": 1.1}, {"p": -0.1}, {"bend": -1}, {"bend": 4.1}, {"spacing": float("inf")},
        {"spacing": 0, "bend": 0}, {"zoom": float("nan")}, {"degrees": float("nan")}, {"bend": float("nan")},
    ],
)  # fmt: skip
def test_strengths_are_checked(bad):
    with pytest.raises(DataError, match="expected degrees of 0 to 180, a zoom of 1 to 4"):
        Warp(**bad)


def mirrored(batch, azimuth):
    "All crops mirrored about the sun's axis, without turns and zooms."
    warp = SunWarp(azimuth, degrees=0, zoom=1)
    zero = torch.zeros(len(batch["label"]))
    mirror = warp._mirror(torch.ones(len(zero), dtype=torch.bool))
    field = _affine_field(zero, zero + 1, zero, torch.zeros(len(zero), 2), batch["label"].shape[1:], mirror)
    return [_resample({k: x[b] for k, x in batch.items()}, field[b]) for b in range(len(zero))]


@pytest.mark.parametrize(
    ("azimuth", "exact"),
    [
        (0, lambda x: x.flip(-1)),  # sun in the north: east and west change sides
        (180, lambda x: x.flip(-1)),
        (90, lambda x: x.flip(-2)),
        (135, lambda x: x.transpose(-1, -2)),  # south-east: the main diagonal of the image stays
        (45, lambda x: x.transpose(-1, -2).flip(-1, -2)),
    ],
)
def test_mirrors_about_the_suns_axis_are_exact_flips(batch, azimuth, exact):
    for crop, k in zip(mirrored(batch, azimuth), range(len(batch["label"])), strict=True):
        assert torch.equal(crop["label"], exact(batch["label"][k]))
        assert torch.equal(crop["valid"], exact(batch["valid"][k]))
        assert_close(crop["image"], exact(batch["image"][k]), rtol=0, atol=1e-3)


def shaded(azimuth, n=96, seed=0):
    "Slopes of a random landscape lit from one side, and from straight above."
    z = gaussian_filter(np.random.default_rng(seed).normal(size=(n, n)), 4, mode="wrap")
    gy, gx = np.gradient(z / z.std())
    a = np.radians(azimuth)
    return np.stack([gx * np.sin(a) - gy * np.cos(a), np.hypot(gx, gy)])


@pytest.mark.parametrize("azimuth", [0, 30, 90, 157, 179, 337])
def test_axis_of_a_shaded_landscape(azimuth):
    images = [shaded(azimuth, seed=seed) for seed in range(4)]
    found = sun_axis(images, [np.ones((96, 96), bool)] * 4, channel=0)
    assert abs((found - azimuth + 90) % 180 - 90) < 8


def test_axis_ignores_nodata_and_scale():
    image, valid = shaded(157), np.ones((96, 96), bool)
    valid[20:50, 30:80] = False
    holes = np.where(valid, image, 1e6)
    one = sun_axis([image * 40 + 7], [valid], channel=0)
    assert one == pytest.approx(sun_axis([holes], [valid], channel=0), abs=1e-6)


@pytest.mark.parametrize("valid", [True, False])
def test_axis_needs_a_direction(valid):
    noise = np.random.default_rng(0).normal(size=(1, 96, 96))
    with pytest.raises(DataError, match="Set sun_azimuth to SUN_AZIMUTH"):
        sun_axis([noise], [np.full((96, 96), valid)], channel=0)


def test_half_of_the_crops_are_mirrored_and_none_is_turned_far():
    warp, eye = SunWarp(157, degrees=0, zoom=1), torch.eye(2)
    n = 2000
    label = torch.arange(4).reshape(1, 2, 2).expand(n, 2, 2).clone()
    crops = {"image": torch.rand(n, 1, 2, 2), "label": label, "valid": torch.ones(n, 2, 2, dtype=torch.bool)}
    out = warp(crops, seeded())
    assert 0.45 < (out["label"] != label).flatten(1).any(1).float().mean() < 0.55
    mirror = warp._mirror(torch.tensor([True, False]))
    assert_close(mirror[0] @ mirror[0], eye)
    assert torch.linalg.det(mirror[0]).item() == pytest.approx(-1)
    assert torch.equal(mirror[1], eye)


@pytest.mark.parametrize("bad", [{"azimuth": -1}, {"azimuth": 361}, {"degrees": 200}, {"zoom": 0.5}])
def test_sun_warps_are_checked(bad):
    with pytest.raises(DataError, match="expected azimuth of 0 to 360"):
        SunWarp(**bad)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same(batch):
    here = Warp(p=1)(batch, seeded())
    there = Warp(p=1)({k: v.cuda() for k, v in batch.items()}, seeded())
    assert (there["label"].cpu() == here["label"]).float().mean() > 0.999
    same = (there["valid"].cpu() == here["valid"])[:, None]
    assert same.float().mean() > 0.999
    assert_close(there["image"].cpu() * same, here["image"] * same, rtol=0, atol=1e-2)
