"""HKH patches: their format, hostile files, splits, the class without labels, a run that starts from it."""

import json
import pickle
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_projects import run_cells, small_project

from glacier_nb.checks.diagnosis import diagnose
from glacier_nb.config.fields import ConfigError
from glacier_nb.config.training import TrainConfig
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.experiments.run import load_run
from glacier_nb.files.arrays import DiskArray
from glacier_nb.files.errors import TileError
from glacier_nb.hkh.patches import (
    HkhReading,
    Patch,
    _hkh_bands,
    _hkh_label,
    _ndwi,
    _overlapping,
    hkh_patches,
    hkh_run_data,
    hkh_split,
)
from glacier_nb.hkh.synthetic import write_hkh_like
from glacier_nb.landsat import BANDS, CLASSES, IGNORE
from glacier_nb.models.build import build_unet, leave_out
from glacier_nb.models.weights import init_from
from glacier_nb.report.findings import Status
from glacier_nb.tiles.read import read_tiles
from glacier_nb.training.callbacks import make_learner
from glacier_nb.training.checkpoints import read_checkpoint
from glacier_nb.training.learner import Learner
from glacier_nb.training.recipe import prepare_data

ROOT = Path(__file__).parents[2]
SIZE = 64
READING = HkhReading(SIZE, min_glacier=0)
ENCODER = "tu-test_resnet"
TINY = {
    **{
        "encoder": ENCODER,
        "encoder_weights": None,
        "decoder_attention": "scse",
        "crop_size": 32,
        "samples_per_epoch": 8,
        "batch_size": 4,
        "epochs": 1,
    },
    **{"n_folds": 3, "precision": "fp32", "devices": "cpu", "warmup_epochs": 0.0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Six scenes of two patches."
    root = tmp_path_factory.mktemp("project") / "data/hkh"
    write_hkh_like(root, size=SIZE, scenes=6, grid=(1, 2), seed=1)
    return root


@pytest.fixture
def copy(folder, tmp_path):
    "A copy of the patches, to be damaged."
    shutil.copytree(folder, tmp_path / "hkh")
    return tmp_path / "hkh"


@pytest.fixture(scope="module")
def patches(folder):
    "All patches."
    return hkh_patches(folder)


def damage(copy, kind, change):
    "Replace an array of the first patch by a changed one; the patch."
    patch = hkh_patches(copy)[0]
    path = getattr(patch, kind)
    np.save(path, change(np.load(path)))
    return patch


# the format


def test_same_seed_same_patches(folder, tmp_path):
    again = write_hkh_like(tmp_path / "again", size=SIZE, scenes=1, grid=(1, 2), seed=1)
    for path in again.glob("*.npy"):
        np.testing.assert_array_equal(np.load(path), np.load(folder / "slices" / path.name))


def test_synthetic_patches_have_the_published_format(patches):
    image, mask = np.load(patches[0].image), np.load(patches[0].mask)
    assert (image.shape, image.dtype) == ((SIZE, SIZE, 15), np.float32)
    assert (mask.shape, mask.dtype) == ((SIZE, SIZE, 3), np.uint8)
    np.testing.assert_array_equal(mask[..., 0], mask[..., 1] + mask[..., 2])
    void = np.isnan(image[..., 0])
    assert void.any()
    assert not mask[void].any()
    left, right = (np.load(p.image) for p in patches[:2])
    np.testing.assert_array_equal(left[:, -Patch.OVERLAP :], right[:, : Patch.OVERLAP])


def test_entry_of_the_published_metadata_is_read(tmp_path):
    "Names and values as in the public example of slices.geojson, with absolute paths of another machine."
    facts = {
        "img_source": "/datadrive/glaciers/unique_tiles/LE07_148036_20050902.tif",
        "img_slice": "/datadrive/glaciers/processed/slices/slice_14_img_062.npy",
        **{"mask_mean_0": 0.000125885009765625, "mask_mean_1": 0.000125885009765625, "mask_mean_2": 0.0},
    }
    (tmp_path / "slices.geojson").write_text(json.dumps({"features": [{"properties": facts}]}))
    for kind in ("img", "mask"):
        (tmp_path / f"slice_14_{kind}_062.npy").touch()
    (patch,) = hkh_patches(tmp_path)
    assert (patch.id, patch.scene, patch.path_row) == ("14_062", "LE07_148036_20050902", (148, 36))
    assert patch.glacier * 512 * 512 == 33


def test_folder_is_found_however_it_was_unpacked(folder, tmp_path):
    shutil.copytree(folder / "slices", tmp_path / "glacier_data/slices")
    ids = [p.id for p in hkh_patches(folder)]
    assert ids == [p.id for p in hkh_patches(folder / "slices")] == [p.id for p in hkh_patches(tmp_path)]


def test_a_part_of_the_archive_is_enough(copy):
    for kind in ("img", "mask"):
        (copy / f"slices/slice_2_{kind}_001.npy").unlink()
    assert len(hkh_patches(copy)) == 11


def test_min_glacier_selects(patches, folder):
    limit = sorted(p.glacier for p in patches)[6]
    assert {p.id for p in hkh_patches(folder, limit)} == {p.id for p in patches if p.glacier >= limit}


# bands and classes


def test_bands_are_the_matching_channels(patches):
    image, tile = np.load(patches[0].image), patches[0].read(READING)
    for k, channel in enumerate(("B1", "B2", "B3", "B5", "B6_VCID_1")):
        plane = image[..., Patch.CHANNELS.index(channel)]
        np.testing.assert_array_equal(tile.bands[k][tile.valid], plane[tile.valid], err_msg=BANDS[k])
    high = patches[0].read(replace(READING, thermal="B6_VCID_2"))
    np.testing.assert_array_equal(high.bands[4][tile.valid], image[tile.valid, 6])
    assert not tile.bands[:, ~tile.valid].any()
    assert tile.bands.dtype == np.float32


@pytest.mark.parametrize(
    ("channel", "matters"), [(0, True), (4, True), (5, True), (6, False), (3, False), (13, False)]
)
def test_pixel_is_valid_where_our_five_bands_are(patches, channel, matters):
    image = np.load(patches[0].image)
    image[5:9, 40:44, channel] = np.nan
    before = _hkh_bands(np.load(patches[0].image))[1]
    assert (_hkh_bands(image)[1] != before).sum() == 16 * matters


def test_three_mask_layouts_give_one_label():
    kind = np.random.default_rng(0).integers(0, 3, (16, 16))
    clean, debris = kind == 1, kind == 2
    layouts = [(clean | debris, clean, debris), (clean, debris, kind == 0), (clean, debris)]
    for planes in layouts:
        np.testing.assert_array_equal(_hkh_label(np.stack(planes, -1).astype(np.uint8)), kind)


def test_pixels_of_both_kinds_are_ignored_up_to_a_share():
    mask = np.zeros((20, 20, 3), np.uint8)
    mask[:4, :, :2] = 1
    mask[0, :4, 2] = 1
    label = _hkh_label(mask)
    assert (label[0, :4] == IGNORE).all()
    assert (label == IGNORE).sum() == 4
    assert (label == 1).sum() == 76
    with pytest.raises(TileError, match=r"1\.0% of the pixels clean and debris.*at most 0\.5%"):
        _hkh_label(mask, both=0.005)


def test_water_is_ignored_in_the_background_alone(patches):
    for patch in patches[:3]:
        image = np.load(patch.image)
        plain, dry = patch.read(replace(READING, water=None)), patch.read(READING)
        green, nir = (image[..., k].clip(min=0) for k in (1, 3))
        with np.errstate(invalid="ignore", divide="ignore"):
            wet = (green - nir) / (green + nir) > 0.3
        np.testing.assert_array_equal(dry.label, np.where(wet & (plain.label == 0), IGNORE, plain.label))
        assert not np.isin(3, dry.label)
    assert _ndwi(np.zeros((2, 2, 15), np.float32)).max() == 0


# hostile files

HOSTILE = [
    ("image", lambda a: a[:40], r"img_000\.npy: found \(40, 64, 15\) of float32.*\(64, 64, 15\)"),
    ("image", lambda a: a[..., :14], r"found \(64, 64, 14\)"),
    ("image", lambda a: np.moveaxis(a, -1, 0), r"found \(15, 64, 64\)"),
    ("image", lambda a: a.astype(np.float64), "of float64.*of float32"),
    ("image", lambda a: np.full_like(a, np.nan), "no pixel with data in all five bands.*min_glacier"),
    ("image", lambda a: np.zeros_like(a), "no pixel with data in all five bands"),
    ("image", lambda a: (a - 120) / 80, "values from .* 8-bit DN"),
    ("image", lambda a: a * 100, "values from .* 8-bit DN"),
    ("image", lambda a: np.where(a == a[30, 60, 0], np.float32(np.inf), a), "to inf.* 8-bit DN"),
    ("mask", lambda a: a[..., :1], r"mask_000\.npy: found \(64, 64, 1\)"),
    ("mask", lambda a: a.astype(bool), "of bool.*of uint8"),
    ("mask", lambda a: a * 255, r"mask_000\.npy: found values 255\. Expected 0 and 1"),
    ("mask", lambda a: np.ones_like(a), "100.0% of the pixels clean and debris"),
    ("mask", lambda a: a[..., [1, 0, 2]], "three channels of unknown layout"),
]


@pytest.mark.parametrize(("kind", "change", "message"), HOSTILE)
def test_files_that_are_not_as_published_are_errors(copy, kind, change, message):
    patch = damage(copy, kind, change)
    with pytest.raises(TileError, match=message):
        patch.read(READING)


@pytest.mark.parametrize("n_bytes", [0, 60, 5000])
@pytest.mark.parametrize("kind", ["image", "mask"])
def test_truncated_file_is_named(copy, kind, n_bytes):
    path = getattr(hkh_patches(copy)[0], kind)
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(TileError, match=rf"{path.name}: found {n_bytes} bytes.*a complete \.npy file"):
        hkh_patches(copy)[0].read(READING)


def test_pickled_objects_are_not_loaded(copy):
    patch = hkh_patches(copy)[0]
    np.save(patch.image, np.array([{"code": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(TileError, match="allow_pickle"):
        patch.read(READING)


@pytest.mark.parametrize("kind", ["img", "mask"])
def test_unpaired_file_is_named(copy, kind):
    (copy / f"slices/slice_3_{kind}_000.npy").unlink()
    with pytest.raises(TileError, match=r"no partner for slice_3_\w+_000\.npy"):
        hkh_patches(copy)


def test_damaged_metadata_is_named(copy):
    path = copy / "slices/slices.geojson"
    whole = path.read_text()
    path.write_text(whole[:500])
    with pytest.raises(TileError, match=r"slices\.geojson: found JSONDecodeError"):
        hkh_patches(copy)
    path.write_text(whole.replace("LE07_149035", "LC08_149035"))
    with pytest.raises(TileError, match=r"slices\.geojson: found TypeError.*LE07_PPPRRR_YYYYMMDD"):
        hkh_patches(copy)
    path.write_text(whole.replace("slice_2_img_001", "slice_2_img_009"))
    with pytest.raises(TileError, match=r"no entry in slices\.geojson for slice_2_img_001\.npy"):
        hkh_patches(copy)


def test_folder_without_patches_says_where_they_are(tmp_path, copy):
    (tmp_path / "empty").mkdir()
    for name, found in (("none", "no such folder"), ("empty", r"no slices\.geojson")):
        with pytest.raises(TileError, match=rf"{found}.*lila\.science/datasets/hkh-.*write_hkh_like"):
            hkh_patches(tmp_path / name)
    with pytest.raises(TileError, match=r"none with 99\.0% of ice.*lower min_glacier"):
        hkh_patches(copy, 0.99)
    with pytest.raises(TileError, match="delete it, or name another"):
        write_hkh_like(copy, size=SIZE)


def test_unknown_thermal_band(patches):
    with pytest.raises(TileError, match=r"'B6'.*B6_VCID_1 or B6_VCID_2"):
        patches[0].read(replace(READING, thermal="B6"))


# splits


@pytest.mark.parametrize("fold", [0, 1, 2])
def test_no_training_scene_overlaps_with_a_validation_scene(patches, fold):
    train, val = hkh_split(patches, fold, 3)
    assert train
    assert val
    assert not {p.id for p in train} & {p.id for p in val}
    assert not [1 for a in train for b in val if _overlapping(a.path_row, b.path_row)]


def test_every_patch_is_validated_once(patches):
    held = [p.id for fold in range(3) for p in hkh_split(patches, fold, 3)[1]]
    assert sorted(held) == sorted(p.id for p in patches)


def test_impossible_splits(patches):
    for fold, n_folds in ((0, 7), (3, 3), (0, 1)):
        with pytest.raises(TileError, match=f"fold {fold} of {n_folds}"):
            hkh_split(patches, fold, n_folds)
    with pytest.raises(TileError, match="all scenes overlap with validation scenes"):
        hkh_split([p for p in patches if p.path_row[0] > 148], 0, 2)


# training


@pytest.fixture(scope="module")
def cfg(folder):
    "A config of one fold, with texture as in training."
    return TrainConfig(**TINY, data_dir=str(folder), tile_store="memory")


@pytest.fixture(scope="module")
def data(cfg):
    "Run data of one fold."
    return hkh_run_data(cfg, READING)


def test_statistics_are_those_of_training_patches_alone(data, patches):
    train, _ = hkh_split(patches, 0, 3)
    pixels = np.concatenate([t.bands[:, t.valid] for t in (p.read(READING) for p in train)], axis=1)
    np.testing.assert_allclose(data.stats.center[:5], pixels.mean(1, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(data.stats.scale[:5], pixels.std(1, dtype=np.float64), rtol=1e-5)
    assert data.classes == CLASSES
    assert data.train.images[0].shape == (7, SIZE, SIZE)


def test_cached_arrays_are_the_same(cfg, data):
    cached = hkh_run_data(*pickle.loads(pickle.dumps((replace(cfg, tile_store="auto"), READING))))
    for a, b in zip(cached.train.images, data.train.images, strict=True):
        np.testing.assert_array_equal(a, b)
    assert isinstance(cached.train.images[0], DiskArray)
    assert cached.stats == data.stats
    assert [t.id for t in cached.train_tiles[:2]] == [t.id for t in data.train_tiles][:2]


def test_diagnosis_reads_patches_when_they_are_used(cfg, tmp_path, monkeypatch):
    write_hkh_like(tmp_path, size=32, scenes=6, grid=(2, 4), seed=1)
    cfg, reading = replace(cfg, data_dir=str(tmp_path)), replace(READING, patch_size=32)
    alive, most, read = [], [0], Patch.read

    def counted(patch, reading):
        alive[:] = [ref for ref in alive if ref() is not None]
        most[0] = max(most[0], len(alive) + 1)
        tile = read(patch, reading)
        alive.append(weakref.ref(tile))
        return tile

    monkeypatch.setattr(Patch, "read", counted)
    data = hkh_run_data(cfg, reading)
    both = data.train_tiles + data.val_tiles
    assert [t.id for t in both] == [t.id for side in data.split for t in side]
    model = build_unet(7, 4, ENCODER, None, "scse", seed=0)
    leave_out(model, data.left_out, data.classes)
    most[0] = 0
    report = diagnose(cfg, learner=Learner(cfg, data, model), live=False)
    assert len(both) >= 40
    assert most[0] <= 25  # the band check samples 24 tiles and shows them
    assert [c.name for c in report.checks if c.status == Status.SKIPPED] == ["history", "classes in the maps"]
    assert not any(f.cause.startswith("split") for f in report.findings)


def test_lake_weights_change_by_weight_decay_alone(data):
    cfg = TrainConfig(**TINY | {"epochs": 2})
    model = build_unet(7, 4, ENCODER, None, "scse", seed=0)
    before = model.segmentation_head[0].weight.detach().clone()
    leave_out(model, data.left_out, data.classes)
    learner = Learner(cfg, data, model)
    history = learner.fit()
    after = model.segmentation_head[0].weight.detach()
    decay = float(np.prod([1 - learner.rate(s) * cfg.weight_decay for s in range(learner.step)]))
    torch.testing.assert_close(after[3], decay * before[3], rtol=1e-4, atol=0)
    for k in range(3):
        assert (after[k] / before[k] - decay).abs().max() > 1e-3
    lakes = [record.pop("class_mcc_lake") for record in history]
    assert lakes == [None] * len(history)  # neither labels nor maps have any
    assert all(np.isfinite(list(record.values())).all() for record in history)
    assert not any(pair[0][:, 3].any() for pair in learner.matrices.values())


def test_left_out_class_is_restored(data):
    model = build_unet(7, 4, ENCODER, None, "scse", seed=0).eval()
    x = torch.from_numpy(data.train.images[0])[None]
    with torch.no_grad():
        plain = model(x)
        handle = leave_out(model, data.left_out, data.classes)
        masked = model(x)
        torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x), masked)
        handle.remove()
        torch.testing.assert_close(model(x), plain)
    torch.testing.assert_close(masked.softmax(1)[:, :3], plain[:, :3].softmax(1))
    assert masked.softmax(1)[:, 3].max() == 0


@pytest.fixture(scope="module")
def project(folder):
    "The project's root with both notebooks, the patches, and a finished pre-training."
    root = small_project(folder.parents[1] / "root", "pretrain.ipynb", "train.ipynb")
    (root / "data/hkh").symlink_to(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run_cells(root / "nbs/pretrain.ipynb", **TINY, patch_size=SIZE, min_glacier=0.0)
    return root


def test_pretraining_leaves_a_run_folder(project, run_files):
    folder = project / "outputs/hkh"
    assert {p.name for p in folder.iterdir()} == run_files | {"diagnosis.json", "diagnosis.md"}
    found = json.loads((folder / "metrics.json").read_text())
    assert found["parameters"]["patch_size"] == SIZE
    assert found["pixels"]["lake"] == 0
    assert sum(found["pixels"].values()) == 6 * SIZE**2
    assert read_checkpoint(folder / "model.pt")["classes"] == list(CLASSES)


def test_pretraining_makes_the_checks_and_uses_all_devices(project, run_files, forked_ranks, monkeypatch):
    monkeypatch.chdir(project)
    given = TINY | {"patch_size": SIZE, "min_glacier": 0.0, "run": "two", "devices": 2, "checks": "report"}
    run_cells(project / "nbs/pretrain.ipynb", **given)
    run = load_run("two")
    assert {p.name for p in run.folder.iterdir()} == run_files | {"diagnosis.json", "diagnosis.md"}
    assert {"starved"} <= {f.cause for f in run.report.findings}
    assert run.metrics["parameters"]["devices"] == 2
    assert not any(np.array(cm["all"])[:, 3].any() for cm in run.metrics["tile_confusions"].values())
    alone = load_run("hkh").history["train_loss"]
    np.testing.assert_allclose(run.history["train_loss"].iloc[0], alone.iloc[0], rtol=1e-2)


def test_training_starts_from_pretraining(project, monkeypatch):
    monkeypatch.chdir(project)
    given = {"init_from": "outputs/hkh/model.pt", "run": "started", "checks": "off"}
    run_cells(project / "nbs/train.ipynb", **TINY, **given, data_dir=str(cached_demo(4, 64, 3)))
    assert json.loads((project / "outputs/started/metrics.json").read_text())["parameters"]["init_from"]


def test_every_tensor_of_pretraining_is_loaded(project, tmp_path, monkeypatch):
    monkeypatch.chdir(project)
    cfg = TrainConfig(**TINY | {"init_from": "outputs/hkh/model.pt"})
    learner = make_learner(
        cfg, prepare_data(cfg, read_tiles(cached_demo(4, 64, 3))), tmp_path / "run", progress=False
    )
    stored = read_checkpoint(project / "outputs/hkh/model.pt")["weights"]
    for name, tensor in learner.model.state_dict().items():
        torch.testing.assert_close(tensor, stored[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    ("channels", "classes", "lacking"),
    [
        (7, 4, set()),
        (5, 4, {"encoder.model.conv1.0.weight"}),
        (7, 2, {"segmentation_head.0.weight", "segmentation_head.0.bias"}),
    ],
)
def test_report_names_the_layers_that_do_not_fit(project, channels, classes, lacking):
    model = build_unet(channels, classes, ENCODER, None, "scse", seed=0)
    path = project / "outputs/hkh/model.pt"
    report, stored = init_from(model, path), read_checkpoint(path)["weights"]
    fits = {name: v.shape == stored[name].shape for name, v in model.state_dict().items()}
    assert {name for name, same in fits.items() if not same} == lacking
    assert all(torch.equal(v, stored[name]) for name, v in model.state_dict().items() if fits[name])
    why = dict(getattr(report, "why", report))  # a table, or words by name
    assert {name for name, words in why.items() if words.startswith("shape (")} == lacking


def test_unknown_parameter_stops_before_anything_is_written(project, monkeypatch):
    monkeypatch.chdir(project)
    with pytest.raises(ConfigError, match="did you mean 'crop_size'"):
        run_cells(project / "nbs/pretrain.ipynb", **TINY, crop_sise=32, run="wrong")
    assert not (project / "outputs/wrong").exists()


def test_an_inner_block_of_scenes_chooses_the_epoch(cfg, tmp_path):
    write_hkh_like(tmp_path, size=32, scenes=8, grid=(1, 2), seed=1)
    cfg, reading = replace(cfg, data_dir=str(tmp_path), n_folds=4), replace(READING, patch_size=32)
    plain, data = (hkh_run_data(replace(cfg, select=s), reading) for s in ("last", "inner"))
    train, inner, val = (set(side.ids) for side in (data.train, data.inner, data.val))
    assert val == set(plain.val.ids)
    assert min(map(len, (train, inner, val))) > 0
    assert not train & inner
    assert train | inner < set(plain.train.ids)  # scenes that overlap with the block are in neither
    assert data.watched is data.inner
    assert [t.id for t in data.split.train + data.inner_split.val] == [*data.train.ids, *data.inner.ids]
