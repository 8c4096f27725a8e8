"""From checkpoints to scores: exact views, checkpoints that do not fit, leakage, gain and cost."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from rasterio.crs import CRS
from torch.testing import assert_close

from glacier_nb.config.fields import ConfigError
from glacier_nb.config.training import TrainConfig
from glacier_nb.data.stats import fit_stats
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.landsat import BANDS, REFLECTANCE, TEMPERATURE
from glacier_nb.metrics.scores import mcc
from glacier_nb.models.weights import WeightsError
from glacier_nb.prediction.evaluate import (
    _choices,
    evaluate,
    evaluation_record,
    tile_probs,
    tta_table,
)
from glacier_nb.prediction.members import (
    CodingError,
    PredictError,
    _check_coding,
    _checkpoint_path,
    check_leakage,
    load_ensemble,
    load_member,
)
from glacier_nb.prediction.views import (
    _TTA,
    PLAIN,
    View,
    _resize,
    _resize_valid,
    _view_probs,
    make_views,
    mean_probs,
)
from glacier_nb.tiles.read import read_tiles
from glacier_nb.tiles.splits import LeakageError
from glacier_nb.training.callbacks import make_learner
from glacier_nb.training.checkpoints import read_checkpoint, save_checkpoint
from glacier_nb.training.recipe import prepare_data

TINY = {
    "encoder": "tu-test_resnet",
    "encoder_weights": None,
    "decoder_attention": "scse",
    "crop_size": 32,
    "samples_per_epoch": 4,
    "batch_size": 4,
    "epochs": 1,
}


@pytest.fixture(scope="module")
def demo():
    return cached_demo(n_tiles=9, size=96, seed=3)


@pytest.fixture(scope="module")
def tiles(demo):
    return read_tiles(demo)


@pytest.fixture(scope="module")
def learners(tiles, demo, tmp_path_factory):
    "Runs `a` with texture and `b` without, both with fold 0 held out, and `c` with fold 1 held out."
    cfg = TrainConfig(
        run="a", data_dir=str(demo), n_folds=3, warmup_epochs=0, precision="fp32", devices="cpu", **TINY
    )
    cfgs = [cfg, replace(cfg, run="b", include_glcm=False, seed=1, decoder_attention="none")]
    cfgs += [replace(cfg, run="c", include_glcm=False, fold=1)]
    outputs, made = tmp_path_factory.mktemp("outputs"), {}
    for c in cfgs:
        made[c.run] = make_learner(c, prepare_data(c, tiles), outputs / c.run, progress=False)
        made[c.run].fit()
    return outputs, made


@pytest.fixture(scope="module")
def outputs(learners):
    return learners[0]


@pytest.fixture(scope="module")
def held_out(learners):
    return learners[1]["a"].data.val_tiles


@pytest.fixture(scope="module")
def members(outputs):
    return load_ensemble("a, b", "cpu", outputs)


# views


@pytest.mark.parametrize("turned", range(8))
@pytest.mark.parametrize("shape", [(5, 5), (4, 7), (1, 3)], ids=str)
def test_every_turn_is_undone_to_the_bit(turned, shape):
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(View(turned).undo(View(turned).apply(x), shape), x)


def test_the_eight_views_are_eight():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    views = {tuple(View(k).apply(x).flatten().tolist()) for k in range(8)}
    assert len(views) == 8
    assert torch.equal(View(4).apply(x), x.flip(-1))
    flips = {tuple(v.apply(x).flatten().tolist()) for v in make_views("flips")}
    expected = [x, x.flip(-1), x.flip(-2), x.flip(-1, -2)]
    assert flips == {tuple(e.flatten().tolist()) for e in expected}


def row_index(image):
    "Logits whose softmax puts log-odds of the row shown on class 1."
    rows = torch.arange(float(image.shape[-2]))[:, None].expand(image.shape[0], 1, *image.shape[-2:])
    return torch.cat([torch.zeros_like(rows), rows / 4], 1)


def test_predictions_of_a_view_return_to_their_pixels():
    image, (h, w) = torch.zeros(1, 2, 5, 3), (5, 3)
    rows, cols = (x.float() for x in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    up, left = h - 1 - rows, w - 1 - cols
    # row index in the view of each pixel; views are mirrored left-right first, then turned counter-clockwise
    expected = [rows, left, up, cols, rows, cols, up, left]
    for turned, row in enumerate(expected):
        probs = _view_probs(row_index, image, View(turned))[0, 1]
        assert_close(probs, torch.sigmoid(row / 4), rtol=0, atol=1e-6)


def conv1x1(image):
    "An equivariant network."
    weight = torch.randn(4, image.shape[1], 1, 1, generator=torch.Generator().manual_seed(1))
    return F.conv2d(image, weight)


@pytest.mark.parametrize("tta", list(_TTA))
def test_for_an_equivariant_network_the_mean_is_the_plain_prediction(tta):
    image = torch.randn(1, 5, 40, 33, generator=torch.Generator().manual_seed(2))
    probs = mean_probs(conv1x1, image, make_views(tta))
    assert_close(probs, conv1x1(image).softmax(1), rtol=0, atol=2e-7)
    assert_close(probs.sum(1), torch.ones(1, 40, 33), rtol=0, atol=1e-6)


def test_the_mean_is_of_probabilities_over_exactly_these_views():
    image = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    views = make_views("dihedral", "1,1.5")
    each = torch.stack([_view_probs(row_index, image, v) for v in views])
    assert len(views) == 16
    assert_close(mean_probs(row_index, image, views), each.mean(0))
    assert (each[0] - each[2]).abs().max() > 0.1


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.25, 2])
@pytest.mark.parametrize("turned", [0, 1, 6])
def test_a_scaled_view_has_its_size_and_is_undone_in_place(scale, turned):
    ramp = torch.linspace(1, 2, 40)[:, None].expand(1, 1, 40, 24).contiguous()
    view = View(turned, scale)
    size = (round(40 * scale), round(24 * scale))
    assert view.apply(ramp).shape[-2:] == (size if turned % 2 == 0 else size[::-1])
    back = view.undo(view.apply(ramp), (40, 24))
    inner = slice(4, -4)
    assert_close(back[..., inner, inner], ramp[..., inner, inner], rtol=0, atol=2e-3)


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.25, 2])
def test_scaled_probabilities_still_sum_to_one(scale):
    image = torch.randn(1, 5, 33, 21, generator=torch.Generator().manual_seed(4))
    probs = mean_probs(conv1x1, image, make_views("flips", f"1,{scale}"))
    assert_close(probs.sum(1), torch.ones(1, 33, 21), rtol=0, atol=1e-6)
    assert probs.min() >= 0


@pytest.mark.parametrize("size", [(24, 24), (40, 40), (17, 50)], ids=str)
def test_resizing_valid_pixels_preserves_a_constant_up_to_the_nodata_edge(size):
    x = torch.full((1, 2, 32, 32), -1.7)
    x[..., 10:20, 5:21] = 0
    x[:, 1, :, :3] = 0
    out = _resize_valid(x, size)
    assert_close(out[out != 0], torch.full_like(out[out != 0], -1.7))
    share = _resize((x != 0).float(), size)
    assert torch.equal(out == 0, share < 0.5)
    assert _resize_valid(x, (32, 32)) is x
    assert _resize_valid(torch.zeros(1, 2, 32, 32), size).abs().max() == 0


def test_views_are_checked():
    assert make_views() == PLAIN
    assert make_views("flips", "0.75, 1")[0] == View(0, 0.75)
    with pytest.raises(ConfigError, match="did you mean 'flips'"):
        make_views("flip")
    for bad in ("", "1,x", "0", "-1", "nan", "5", "1,1", "inf"):
        with pytest.raises(ConfigError, match="tta_scales"):
            make_views("none", bad)


# members


def test_a_run_is_found_by_name_folder_and_file(outputs):
    best = (outputs / "a/model.pt").resolve()
    for source in ("a", outputs / "a", best, "a/model.pt"):
        assert _checkpoint_path(source, outputs) == best
    assert load_member("a/last.pt", outputs=outputs).name == "a/last.pt"
    assert load_member("a", outputs=outputs).name == "a"


def test_a_missing_run_is_named_with_similar_ones(outputs, tmp_path):
    shutil.copytree(outputs / "a", tmp_path / "texture")
    with pytest.raises(PredictError, match=r"'textur' is not a checkpoint.*Existing runs: texture"):
        _checkpoint_path("textur", tmp_path)
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(PredictError, match=r"unfinished/model\.pt"):
        _checkpoint_path("unfinished", tmp_path)


def test_a_member_predicts_what_the_learner_validated(learners, held_out, demo):
    outputs, made = learners
    for name in ("a", "b"):
        learner = made[name]
        learner.model.load_state_dict(read_checkpoint(outputs / name / "model.pt")["weights"])
        learner.validate()
        matrices, seconds = evaluate([load_member(name, "cpu", "", outputs)], held_out, demo, progress=False)
        assert list(matrices) == list(learner.matrices)
        for tile_id, pair in learner.matrices.items():
            np.testing.assert_array_equal(matrices[tile_id], pair)
        assert seconds > 0


def test_pretrained_weights_are_not_read(outputs, tmp_path):
    state = read_checkpoint(outputs / "b/model.pt")
    state["config"] |= {"encoder_weights": "no/such/file.pt", "init_from": "gone.pt"}
    save_checkpoint(state, tmp_path / "m.pt")
    member, own = load_member(tmp_path / "m.pt"), load_member("b", outputs=outputs)
    for k, v in own.model.state_dict().items():
        assert torch.equal(member.model.state_dict()[k], v)
    assert not member.model.training


def test_precision_is_that_of_the_config_unless_given(outputs):
    assert load_member("b", "cpu", outputs=outputs).dtype == torch.float32
    half = load_member("b", "cpu", "bf16", outputs)
    image = torch.randn(1, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    logits, exact = half(image), load_member("b", "cpu", outputs=outputs)(image)
    assert logits.dtype == torch.float32
    assert 0 < (logits - exact).abs().max() < 0.2 * exact.abs().max()


def drop(key):
    return lambda state: {k: v for k, v in state.items() if k != key}


def change(key, **values):
    return lambda state: state | {key: state[key] | values}


def wider(state):
    stats = state["stats"]
    more = {k: [*stats[k], extra] for k, extra in (("names", "B7"), ("center", 0.0), ("scale", 1.0))}
    return state | {"stats": stats | more}


STEM, HEAD = "encoder.model.conv1.0.weight", "segmentation_head.0.bias"
BROKEN = {
    "no weights": (drop("weights"), PredictError, "weights missing"),
    "no statistics": (drop("stats"), PredictError, "stats missing"),
    "bare weights": (lambda s: s["weights"], PredictError, "not a checkpoint of this project"),
    "a list": (lambda s: [1, 2], PredictError, "found list"),
    "unknown field": (change("config", encodr="resnet18"), PredictError, "did you mean 'encoder'"),
    "bad value": (change("config", decoder_attention="cbam"), PredictError, "cbam"),
    "config is a number": (lambda s: s | {"config": 3}, PredictError, "does not know"),
    "statistics lack a part": (lambda s: s | {"stats": {"names": []}}, PredictError, "does not know"),
    "codes do not fit": (lambda s: s | {"codes": [0, 255]}, PredictError, "codes"),
    "other encoder": (change("config", encoder="resnet34"), WeightsError, "not in the file"),
    "unknown encoder": (change("config", encoder="resnet19"), WeightsError, "cannot be built.*resnet18"),
    "other attention": (change("config", decoder_attention="scse"), WeightsError, "not in the file"),
    "other channels": (wider, WeightsError, r"shape \(16, 5, 3, 3\) in the file, \(16, 6, 3, 3\) here"),
    "other classes": (
        lambda s: s | {"classes": ["a", "b"], "codes": [0, 255]},
        WeightsError,
        r"segmentation_head.*shape \(4, ",
    ),
    "too many": (change("weights", extra=torch.zeros(1)), WeightsError, "extra: not in the network"),
    "not finite": (change("weights", **{HEAD: torch.tensor([0, 1, float("nan"), 2])}), WeightsError, "NaN"),
    "not tensors": (lambda s: s | {"weights": {"a": 1}}, WeightsError, "expected tensors by name"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_checkpoint_that_does_not_fit_is_an_error_with_its_name(outputs, tmp_path, case):
    damage, error, match = BROKEN[case]
    torch.save(damage(read_checkpoint(outputs / "b/model.pt")), tmp_path / "damaged.pt")
    with pytest.raises(error, match=match) as e:
        load_member(tmp_path / "damaged.pt")
    assert "damaged.pt" in str(e.value)


def test_other_files_are_an_error(tmp_path):
    for name, content in {"text.pt": b"hello", "empty.pt": b"", "zip.pt": b"PK\x03\x04" + bytes(50)}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=name):
            load_member(tmp_path / name)


def test_an_rgb_network_is_an_error(outputs, tmp_path):
    state = read_checkpoint(outputs / "b/model.pt")
    state["weights"][STEM] = state["weights"][STEM][:, :3].clone()
    torch.save(state, tmp_path / "rgb.pt")
    with pytest.raises(WeightsError, match=rf"{re.escape(STEM)}: adapted"):
        load_member(tmp_path / "rgb.pt")


def test_members_with_other_classes_and_duplicates_are_an_error(outputs, tmp_path):
    state = read_checkpoint(outputs / "b/model.pt")
    torch.save(state | {"classes": ["background", "ice", "debris", "lake"]}, tmp_path / "other.pt")
    with pytest.raises(PredictError, match=r"a/model\.pt has .*'glacier'.*other\.pt has .*'ice'"):
        load_ensemble(f"a,{tmp_path}/other.pt", outputs=outputs)
    with pytest.raises(PredictError, match="twice"):
        load_ensemble("a, b, a", outputs=outputs)
    with pytest.raises(PredictError, match="'' is not a checkpoint"):
        load_ensemble("b,", outputs=outputs)
    assert [m.name for m in load_ensemble(" ", outputs=outputs)] == []


# probabilities


def test_the_ensemble_is_the_mean_of_its_members(members, held_out):
    tile, views = held_out[0], make_views("flips")
    each = [tile_probs([m], tile, views) for m in members]
    probs = tile_probs(members, tile, views)
    np.testing.assert_allclose(probs, np.mean(each, 0), atol=1e-6)
    assert np.abs(each[0] - each[1]).max() > 1e-3
    assert (probs.dtype, probs.shape) == (np.float32, (4, 96, 96))
    np.testing.assert_allclose(probs.sum(0), 1, atol=1e-6)
    assert not tile.valid.all()
    assert (probs[:, ~tile.valid] == np.array([1, 0, 0, 0])[:, None]).all()


@pytest.mark.parametrize("shape", [(50, 41), (7, 64)], ids=str)
def test_tiles_of_any_size_and_without_label(members, tiles, shape):
    t, cut = tiles[0], (slice(shape[0]), slice(shape[1]))
    small = replace(t, bands=t.bands[:, *cut], valid=t.valid[cut], label=None, classes=())
    probs = tile_probs(members[1:], small, make_views("dihedral", "0.75,1"))
    assert probs.shape == (4, *shape)
    np.testing.assert_allclose(probs.sum(0), 1, atol=1e-6)


def test_a_nodata_tile_is_background(members, tiles):
    t = tiles[0]
    blank = replace(t, bands=np.zeros_like(t.bands), valid=np.zeros_like(t.valid))
    assert (tile_probs(members[1:], blank, make_views("flips", "0.5,1"))[0] == 1).all()
    with pytest.raises(PredictError, match="no member"):
        tile_probs([], t)


# leakage


def test_a_member_trained_on_the_tiles_is_an_error(outputs, held_out, demo):
    leaky = load_ensemble("a,c", outputs=outputs)
    trained = json.loads((outputs / "c/splits.json").read_text())["train"]
    leaks = sorted({t.id for t in held_out} & set(trained))
    assert leaks
    for call in (check_leakage, evaluate, tta_table):
        with pytest.raises(LeakageError, match=rf"^c .*trained on {len(leaks)} of the 3.*{leaks[0]}"):
            call(leaky, held_out, demo)


def test_checks_that_are_not_possible_are_notes(outputs, members, held_out, demo, tmp_path):
    assert check_leakage(members, held_out, demo) == []
    assert check_leakage(members, held_out, demo / ".." / demo.name) == []
    assert check_leakage(members, held_out, tmp_path) == []  # the pixels are compared
    old = shutil.copytree(outputs / "a", tmp_path / "old")
    ids = json.loads((old / "splits.json").read_text())
    (old / "splits.json").write_text(json.dumps({side: ids[side] for side in ("train", "val")}))
    (note,) = check_leakage([load_member(old)], held_out, tmp_path)
    assert note.startswith("old: trained on tiles of another folder")
    with pytest.warns(UserWarning, match="may be too high: old: trained on tiles of another folder"):
        evaluate([load_member(old)], held_out[:1], tmp_path, progress=False)
    with pytest.warns(UserWarning, match="may be too high: old"):
        tta_table([load_member(old)], held_out[:2], tmp_path, progress=False)
    state = read_checkpoint(outputs / "c/model.pt")
    state["config"]["init_from"] = "outputs/old/model.pt"
    save_checkpoint(state, tmp_path / "alone.pt")
    notes = check_leakage([load_member(tmp_path / "alone.pt")], held_out, demo)
    assert ["no splits.json" in notes[0], "began from outputs/old/model.pt" in notes[1]] == [True, True]
    for text in ("[1, 2]", "{", '{"val": []}'):
        (tmp_path / "splits.json").write_text(text)
        with pytest.raises(PredictError, match=r"splits\.json is damaged: expected lists of tile ids"):
            check_leakage([load_member(tmp_path / "alone.pt")], held_out, demo)


def part(tile, rows, **changes):
    return replace(
        tile, **{n: getattr(tile, n)[rows] for n in ("valid", "label")}, bands=tile.bands[:, rows], **changes
    )


def hidden(tile):
    "The tile with other nodata."
    valid = tile.valid.copy()
    valid[:20] = False
    return replace(tile, id="new", valid=valid, bands=np.where(valid, tile.bands, 0))


@pytest.mark.parametrize(
    "copy",
    [
        lambda t: replace(t, id="new"),
        lambda t: replace(t, id="new", bands=t.bands[:, ::-1], valid=t.valid[::-1], label=t.label[::-1]),
        hidden,
        lambda t: part(t, np.s_[48:], id="new"),
        lambda t: replace(t, id="new", crs=None, transform=t.transform.identity()),
    ],
    ids=["renamed", "mirrored", "other nodata", "half", "no georeference"],
)
def test_pixels_of_training_tiles_are_known_in_any_folder(copy, members, tiles, held_out, tmp_path):
    trained = next(t for t in tiles if t.id not in {h.id for h in held_out})
    test_tiles = [*held_out, copy(trained)]
    for call in (check_leakage, evaluate, tta_table):
        with pytest.raises(
            LeakageError, match=rf"^a .*pixels of 1 of the 4 .*new \(\d+% of {trained.id}\)"
        ) as error:
            call(members, test_tiles, tmp_path)
    assert (error.value.cause, error.value.fix) == ("split-shared", "leave these tiles out")
    assert check_leakage(members, held_out, tmp_path) == []  # left out


def test_tiles_at_the_places_of_training_tiles_are_noted(members, tiles, held_out, tmp_path):
    later = [replace(t, bands=t.bands + 1) for t in tiles]
    notes = check_leakage(members[:1], later, tmp_path)
    assert ["a: 6 tiles lie where training tiles of" in notes[0], len(notes)] == [True, 1]
    degrees = CRS.from_epsg(4326)
    (west, south), (east, north) = [(78.0, 34.0), (78.1, 34.1)]
    scale = later[0].transform.scale((east - west) / 96, (south - north) / 96)
    place = later[0].transform.translation(west, north) @ scale
    assert check_leakage(members[:1], [replace(later[0], crs=degrees, transform=place)], tmp_path) == []


# coding

CODINGS = {
    "reflectance": lambda dn: np.concatenate([REFLECTANCE(dn[:4]), TEMPERATURE(dn[4:])]),
    "reflectance x 10000": lambda dn: np.concatenate([1e4 * REFLECTANCE(dn[:4]), dn[4:]]),
    "8 bit": lambda dn: dn // 257,
    "0 to 1": lambda dn: dn / 65535,
    "tenth": lambda dn: dn / 10,
    "half": lambda dn: dn / 2,
}


def recode(tile, coding):
    return replace(tile, bands=CODINGS[coding](tile.bands).astype(np.float32))


@pytest.mark.parametrize("method", ["standard", "robust"])
def test_tiles_in_the_coding_of_the_training_are_accepted(method, tiles):
    stats = fit_stats(tiles[:4], method)
    for tile in tiles:
        _check_coding(stats, tile)
    texture = tiles[0].bands % 500
    for reflectance, kelvin in (
        (0.9, 215),
        (-0.08, 240),
        (0.02, 300),
        (0.55, 325),
    ):  # cloud, shadow, lake, desert
        dn = [REFLECTANCE.dn(reflectance)] * 4 + [TEMPERATURE.dn(kelvin)]
        _check_coding(stats, replace(tiles[0], bands=texture + np.float32(dn)[:, None, None]))
    _check_coding(stats, replace(tiles[0], valid=np.zeros_like(tiles[0].valid)))  # nothing to compare


@pytest.mark.parametrize("coding", CODINGS)
def test_a_tile_in_another_coding_is_refused(coding, tiles, members):
    with pytest.raises(CodingError, match="in another coding than the training tiles of a: found B") as error:
        tile_probs(members, recode(tiles[0], coding))
    assert error.value.cause == "dn-scale"
    assert error.value.bands.keys() <= set(BANDS)
    with pytest.raises(PredictError):
        evaluate(members, [recode(t, coding) for t in tiles[:1]], "elsewhere", progress=False)


def test_the_formulas_of_the_message_lead_back_to_dn(tiles, members):
    with pytest.raises(CodingError, match=r"predict from files in DN") as error:
        tile_probs(members, recode(tiles[0], "reflectance"))
    r, t = re.search(r"DN: (\(r.*?) for reflectance r, (\(T.*?) for kelvin T$", str(error.value)).groups()
    found = CODINGS["reflectance"](tiles[0].bands)
    back = np.concatenate([eval(r, {"r": found[:4]}), eval(t, {"T": found[4:]})]).astype(np.float32)
    np.testing.assert_allclose(back[:, tiles[0].valid], tiles[0].bands[:, tiles[0].valid], rtol=1e-4)
    assert tile_probs(members, replace(tiles[0], bands=back)).shape == (4, 96, 96)


@pytest.mark.parametrize("trained", ["reflectance", "8 bit"])
def test_a_network_trained_on_another_coding_refuses_dn(trained, tiles):
    stats = fit_stats([recode(t, trained) for t in tiles[:4]])
    for tile in tiles:
        _check_coding(stats, recode(tile, trained))
        with pytest.raises(CodingError, match="give it tiles in the coding of its training tiles"):
            _check_coding(stats, tile)


def test_tiles_that_cannot_be_scored_are_an_error(members, held_out, demo):
    t = held_out[0]
    for bad, match in (
        ([], "no tile"),
        ([t, t], "duplicate tiles"),
        ([replace(t, label=None)], "has no label"),
        ([replace(t, classes=("background", "glacier"))], "read the tiles with the run's `classes`"),
    ):
        with pytest.raises(PredictError, match=match):
            evaluate(members, bad, demo, progress=False)


# gain and cost


def test_only_the_given_views_and_members_are_compared(members):
    flips = make_views("flips")
    assert list(_choices(members[:1], PLAIN)) == ["plain"]
    assert list(_choices(members[:1], flips)) == ["plain", "tta"]
    assert list(_choices(members, PLAIN)) == ["plain", "ensemble"]
    assert _choices(members, flips)["both"] == (members, flips)
    assert list(_choices(members[:1], make_views("none", "0.75"))) == ["plain", "tta"]


def test_the_table_has_gain_and_cost(members, held_out, demo):
    views = make_views("none", "1,1.25")
    table = tta_table(members, held_out, demo, views, progress=False)
    assert table["passes"].to_dict() == {"plain": 1, "tta": 2, "ensemble": 2, "both": 4}
    for choice, (networks, transforms) in _choices(members, views).items():
        matrices, _ = evaluate(networks, held_out, demo, transforms, progress=False)
        pooled = [sum(pair[k] for pair in matrices.values()) for k in (0, 1)]
        assert table.loc[choice, ["mcc", "mcc_valid"]].tolist() == [mcc(p) for p in pooled]
    np.testing.assert_allclose(table["gain"], table["mcc"] - table.loc["plain", "mcc"], atol=1e-15)
    assert table.loc["plain", ["gain", "low", "high", "cost"]].tolist() == [0, 0, 0, 1]
    assert (table["seconds"] > 0).all()
    np.testing.assert_allclose(table["cost"], table["seconds"] / table.loc["plain", "seconds"])
    scores = ["mcc", "mcc_valid", "gain", "low", "high", "passes"]
    again = tta_table(members, held_out, demo, views, progress=False)
    pd.testing.assert_frame_equal(table[scores], again[scores], check_exact=True)


def test_the_record_is_plain_json(members, held_out, demo):
    table = tta_table(members[:1], held_out[:1], demo, make_views("flips"), progress=False)
    record = evaluation_record(table, ["a note"])
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert (record["asked"], record["mcc"]) == ("tta", table.loc["tta", "mcc"])
    assert record["choices"]["tta"]["low"] is None
    assert type(record["choices"]["tta"]["passes"]) is int
    assert record["unchecked"] == ["a note"]


def test_the_weights_of_an_older_run_are_found_and_an_old_name_gets_the_new_one(outputs, tmp_path):
    for name in ("new", "old"):
        shutil.copytree(outputs / "a", tmp_path / name)
    (tmp_path / "old/model.pt").rename(tmp_path / "old/best.pt")
    for source in ("old", "old/model.pt", "old/best.pt"):
        assert _checkpoint_path(source, tmp_path) == tmp_path / "old/best.pt"
    assert load_member("old", outputs=tmp_path).name == "old"
    with pytest.raises(WeightsError, match=r"weights of a run are in model\.pt\. To fix: name (.*)") as error:
        _checkpoint_path("new/best.pt", tmp_path)
    named = str(error.value).rsplit(" ", 1)[1]
    assert _checkpoint_path(named, tmp_path) == tmp_path / "new/model.pt"
    with pytest.raises(PredictError, match=r"Existing runs: new, old"):
        _checkpoint_path("nothing", tmp_path)
    (tmp_path / "new-cv").mkdir()
    (tmp_path / "new-cv/cross_validation.json").write_text("{}")
    with pytest.raises(PredictError, match=r"Existing runs: new-cv"):
        _checkpoint_path("new_cv", tmp_path)
