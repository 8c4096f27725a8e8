"""One call from a run and a scene to maps: networks, scenes, folders, what is refused, several scenes."""

import errno
import io
import json
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from made_runs import save_run
from scene_folders import ID, PLACE, product, write
from tiny_network import TinyUNet
from tqdm import tqdm

import glacier_nb
from glacier_nb.config.fields import ConfigError
from glacier_nb.files.errors import TileError
from glacier_nb.files.paths import write_text
from glacier_nb.landsat import BANDS, LABEL_CODES, REFLECTANCE, TEMPERATURE
from glacier_nb.models.weights import WeightsError
from glacier_nb.prediction import members
from glacier_nb.prediction.members import CodingError, PredictError
from glacier_nb.prediction.scenes import open_scene
from glacier_nb.prediction.windows import MapCause, MapError
from glacier_nb.runs import predict as module
from glacier_nb.runs.folder import RunError
from glacier_nb.tiles.read import read_tiles

OTHER = ID.replace("20201031_20201106", "20201116_20201122")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "The working directory: two runs, two scenes of Landsat, the same pixels as tiles without labels."
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(members, "empty_network", lambda cfg, channels, n: TinyUNet(channels, n))
        scene = open_scene(product(root / "scenes"))
        product(root / "scenes", OTHER)
        tile = scene.tile()
        for k in (3, 4):
            for n, (band, pixels) in enumerate(zip(BANDS, tile.bands, strict=True), 1):
                write(root / f"tiles/Band{n}/{band}_00_0{k}.tif", np.roll(pixels, k), nodata=0)
        for seed, name in enumerate(("a", "b")):
            save_run(name, tile, 0.5 + seed / 10, seed, data_dir="tiles")
        (root / "outputs/cv").mkdir()
        record = {"runs": ["a", "b"], "parameters": {}, "mcc": 0.5}
        write_text(root / "outputs/cv/cross_validation.json", json.dumps(record))
        yield root


def predict(run, scene, out, **options):
    return glacier_nb.predict(run, scene, out, **{"progress": False, "confidence": False} | options)


def tags_of(path):
    with rasterio.open(path) as f:
        return {k.removeprefix("glacier_nb_"): v for k, v in f.tags().items()}


def names_of(run, scene):
    "The networks that map a scene."
    return [m.name for m in module._networks(run, module._sources(scene), "cpu")]


def read(path):
    with rasterio.open(path) as f:
        return f.read(1)


def test_tiles_have_the_pixels_of_predict_in_the_codes_of_the_labels(project, tmp_path):
    for run in (glacier_nb.load_run("a"), "cv"):
        maps = predict(run, "tiles", tmp_path / str(run == "cv"))
        predictor = run if run != "cv" else glacier_nb.CrossValidation(project / "outputs/cv", {"runs": "ab"})
        for tile, found in zip(read_tiles("tiles"), maps, strict=True):
            expected = np.array(LABEL_CODES)[predictor.predict(tile)]
            assert len(np.unique(expected)) > 1
            np.testing.assert_array_equal(read(found.classes), np.where(tile.valid, expected, 254))
            with rasterio.open(found.classes) as f:
                assert (f.crs, f.transform) == (tile.crs, tile.transform)
        assert [m.classes.name for m in maps] == ["00_03.tif", "00_04.tif"]


def test_every_way_to_name_networks(project):
    ways = {
        "a": ["a"],
        "outputs/a": ["a"],
        "outputs/a/model.pt": ["a"],
        "a, b": ["a", "b"],
        ("a", "outputs/b"): ["a", "b"],
        glacier_nb.load_run("b"): ["b"],
        "cv": ["a", "b"],
        "best": ["b"],
    }
    for run, names in ways.items():
        assert names_of(run, f"scenes/{ID}") == names


def test_networks_that_are_not_there(project, tmp_path):
    torch.save([print], tmp_path / "foreign.pt")  # a function: loading it would run code
    (tmp_path / "text.pt").write_text("notes")
    cases = {"aa": (PredictError, "Existing runs: "), (): (PredictError, "expected at least one checkpoint")}
    cases |= {tmp_path / name: (WeightsError, name) for name in ("foreign.pt", "text.pt")}
    for run, (kind, text) in cases.items():
        with pytest.raises(kind, match=text):
            predict(run, f"scenes/{ID}", tmp_path)
    with pytest.raises(ConfigError, match="devices"):
        predict("a", f"scenes/{ID}", tmp_path, device="tpu")


def test_the_best_run_has_the_highest_score_that_says_something(project, tmp_path, monkeypatch):
    scene, tile = project / "scenes" / ID, open_scene(project / "scenes" / ID).tile()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"found no finished run.*glacier-nb train"):
        predict("best", scene, "maps")
    save_run("c", tile, 0.5, data_dir="x")
    save_run("trial", tile, 0.9, data_dir="x", trial=True)
    save_run("all", tile, None, data_dir="x", fold=None)
    pretrained = save_run("pretrained", tile, 0.9, data_dir="hkh") / "metrics.json"
    pretrained.write_text(pretrained.read_text().replace('"baseline_mcc"', '"other"'))
    os.remove(save_run("gone", tile, 0.9, data_dir="x") / "model.pt")
    assert names_of("best", scene) == ["c"]
    save_run("d", tile, 0.4, data_dir=str(scene))
    assert names_of("best", scene) == ["d"]  # trained on what is mapped
    with pytest.raises(RunError, match=re.escape("c (x, MCC 0.500), d (")):
        predict("best", [scene, project / "scenes" / OTHER], "maps")
    save_run("best", tile, 0.1, data_dir="x")
    assert names_of("best", scene) == ["best"]


def test_every_kind_of_scene_is_read_the_same(project, monkeypatch):
    files = sorted((project / "scenes" / ID).glob(f"{ID}_S[RT]_*.TIF"))
    expected = open_scene(files).read()[0]
    ways = [files, open_scene(files), iter(files), [f"scenes/{ID}", f"scenes/{OTHER}"], "scenes"]
    for k, scene in enumerate(ways):
        found = module._open_all(module._sources(scene), module._AS_IT_IS)
        assert [s.name for s in found] == [ID, OTHER][: 1 + (k > 2)]
        for s in found:
            np.testing.assert_array_equal(s.read()[0], expected)
    write_text(project / "settings.ini", "")  # a checkout: paths are relative to its root, or to here
    (project / "nbs").mkdir(exist_ok=True)
    monkeypatch.chdir(project / "nbs")
    for scene in (f"scenes/{ID}", f"../scenes/{ID}"):
        assert module._sources(scene)[0].resolve() == project / "scenes" / ID
    assert module._sources("https://x.org/item.json") == ["https://x.org/item.json"]


def test_a_part_of_a_scene_with_clouds_as_nodata(project, tmp_path):
    x, y = PLACE["transform"] * (3, 2)
    part = {"bounds": (x, y - 300, x + 150, y), "bounds_crs": PLACE["crs"]}
    (clear,), (masked,) = (
        predict("a", f"scenes/{ID}", tmp_path / name, masked=name, **part) for name in ("fill", "cloud")
    )
    assert read(clear.classes).shape == (10, 5)
    assert (read(masked.classes) == 254).sum() > (read(clear.classes) == 254).sum() == 0
    polygon = {
        "type": "Polygon",
        "coordinates": [[[x, y], [x + 90, y], [x + 90, y - 90], [x, y - 90], [x, y]]],
    }
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32643"}}
    write_text(project / "part.geojson", json.dumps({"type": "FeatureCollection", "crs": crs, "features": [
        {"type": "Feature", "properties": {}, "geometry": polygon}]}))  # fmt: skip
    (inside,) = predict("a", f"scenes/{ID}", tmp_path / "polygon", polygon="part.geojson")
    assert read(inside.classes).shape == (3, 3)
    far = {"bounds": (0, 0, 1, 1)}
    with pytest.raises(TileError, match="correct bounds"):
        predict("a", [f"scenes/{ID}", f"scenes/{OTHER}"], tmp_path / "far", **far)


def test_scenes_outside_are_left_out(project, tmp_path):
    beside = PLACE["transform"] * rasterio.Affine.translation(1000, 0)
    (product(tmp_path, OTHER, transform=beside) / f"{OTHER}_QA_PIXEL.TIF").unlink()
    x, y = PLACE["transform"] * (3, 2)
    part = {"bounds": (x, y - 300, x + 150, y), "bounds_crs": PLACE["crs"]}
    (found,) = predict("a", [tmp_path / OTHER, f"scenes/{ID}"], tmp_path / "maps", **part)
    assert found.classes.stem == ID


def test_all_files_and_options(project, tmp_path):
    options = {
        "probabilities": True,
        "confidence": True,
        "tta": "flips",
        "batch": 4,
        "window": 64,
        "overlap": 32,
        "device": "cpu",
    }
    (found,) = predict("a", f"scenes/{ID}", tmp_path, **options)
    assert len(json.loads(tags_of(found.classes)["views"])) == 4
    assert found.probabilities.exists()
    assert found.confidence.exists()
    with pytest.raises(MapError, match="overwrite=True"):
        predict("a", f"scenes/{ID}", tmp_path)
    (found,) = predict("a", f"scenes/{ID}", tmp_path, overwrite=True)
    assert (found.confidence, found.probabilities) == (None, None)
    for wrong in ({"batch": 0}, {"window": 100}):
        with pytest.raises(MapError, match="To fix: ") as e:
            predict("a", f"scenes/{ID}", tmp_path, **wrong)
        assert e.value.cause is MapCause.OPTIONS


def test_maps_and_scenes_are_not_mixed(project, tmp_path):
    files = sorted((project / "scenes" / ID).glob(f"{ID}_S[RT]_*.TIF"))
    (tmp_path / "notes").write_text("notes")
    cases = [
        ("scenes", "scenes"),
        ("scenes", "scenes/maps"),
        ("tiles", "tiles/Band1"),
        (files, files[0].parent),
    ]
    cases += [("scenes", "map.tif"), ("scenes", tmp_path / "notes")]
    for scene, out in cases:
        with pytest.raises(MapError, match="To fix: out = ") as e:
            predict("a", scene, out)
        assert e.value.cause is MapCause.OPTIONS


def test_the_folder_that_is_proposed_for_the_working_directory(project, tmp_path, monkeypatch):
    shutil.copytree(project / "scenes" / ID, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(MapError, match=re.escape(f"To fix: out = '{tmp_path}/here-maps'")):
        predict(project / "outputs/a", ".", "outputs/maps")
    assert predict(project / "outputs/a", ".", tmp_path / "here-maps")


def test_an_open_scene_has_its_own_options(project, tmp_path):
    scene = open_scene(project / "scenes" / ID)
    with pytest.raises(MapError, match="masked, bounds: found for a scene that is open") as e:
        predict("a", scene, tmp_path, masked="cloud", bounds=(0, 0, 1, 1))
    assert e.value.cause is MapCause.OPTIONS
    with pytest.raises(MapError, match="dates: found for a scene that is open"):
        predict("a", scene, tmp_path, dates="2020-10")
    with pytest.raises(MapError, match="found an empty list"):
        predict("a", [], tmp_path)


def test_only_scenes_of_some_dates(project, tmp_path):
    assert predict("a", "scenes", tmp_path, dates=f"{ID[17:21]}-{ID[21:23]}")
    with pytest.raises(TileError, match="1999"):
        predict("a", "scenes", tmp_path, dates="1999")


def test_workers_of_a_client_compute_the_windows(project, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "map_scene", lambda *args, client, **options: asked.append(client))
    client = SimpleNamespace(submit=None)
    predict("a", "scenes", tmp_path, client=client)
    assert {id(found) for found in asked} == {id(client)}
    with pytest.raises(MapError, match="expected a client of dask"):
        predict("a", "scenes", tmp_path, client="tcp://HOST:8786")


def test_two_maps_of_one_name(project, tmp_path):
    shutil.copytree(project / "scenes" / ID, tmp_path / ID)
    with pytest.raises(MapError, match=r"found the file name .* for maps of both"):
        predict("a", [f"scenes/{ID}", tmp_path / ID], tmp_path / "maps")
    bands = open_scene(project / "scenes" / ID).read()[0].astype("uint16")
    for name in ("x.tif", "x_Confidence.tif"):
        write(tmp_path / "stacks" / name, bands, nodata=0)
    with pytest.raises(MapError, match=r"x and x_Confidence: found the file name x_confidence\.tif"):
        predict("a", tmp_path / "stacks", tmp_path / "maps")


@pytest.fixture
def reflectance(project, tmp_path):
    "A folder of three scenes, the second of which holds reflectance."
    for name in "abc":
        bands, valid = open_scene(project / "scenes" / ID).read()
        for k in range(5 * (name == "b")):
            bands[k] = np.where(valid, (REFLECTANCE if k < 4 else TEMPERATURE)(bands[k]), 0)
        write(tmp_path / "stacks" / f"{name}.tif", bands, nodata=0)
    return tmp_path / "stacks"


def test_a_scene_that_cannot_be_mapped_does_not_stop_the_others(reflectance, tmp_path, monkeypatch):
    bars = []
    bar = lambda **options: bars.append(tqdm(file=io.StringIO(), **options)) or bars[-1]  # noqa: E731
    monkeypatch.setattr(module, "progress_bar", bar)
    with pytest.raises(MapError, match=r"1 of 3 scenes are not mapped.*\nb: CodingError: ") as e:
        predict("a", reflectance, tmp_path / "maps", window=64, overlap=0, progress=True)
    assert e.value.cause is MapCause.SCENES
    assert [type(x) for x in e.value.errors.values()] == [CodingError]
    assert [m.classes.stem for m in e.value.maps] == ["a", "c"]
    assert (bars[0].n, bars[0].total, bars[0].initial) == (3, 3, 1)
    with pytest.raises(CodingError, match="or give coding = 'physical'"):
        predict("a", reflectance / "b.tif", tmp_path / "maps")
    assert predict("a", reflectance / "b.tif", tmp_path / "fixed", coding="physical")
    (reflectance / "b.tif").unlink()
    again = predict("a", reflectance, tmp_path / "maps", window=64, overlap=0, progress=True)
    assert all(m.found for m in again)
    assert (bars[1].n, bars[1].total, bars[1].initial) == (2, 2, 2)
    assert "2 of 2: c" in bars[1].fp.getvalue()


def test_a_full_disk_stops_the_scenes_after_it(project, tmp_path, monkeypatch):
    from glacier_nb.prediction.maps import _Draft

    def full(self, *args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_Draft, "append", full)
    with pytest.raises(MapError, match="No space left") as e:
        predict("a", "scenes", tmp_path / "maps")
    assert e.value.cause is MapCause.DISK
    assert len(list((tmp_path / "maps").iterdir())) == 1
