"""Whole scenes: masked, clipped, in one coding, read in windows, with an error for what misleads."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds
from scene_folders import ID, NAMES, PLACE, SIZE, numbers, product, write
from torch import nn

from glacier_nb.config.fields import ConfigError
from glacier_nb.config.training import TrainConfig
from glacier_nb.data.stats import fit_stats
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.files.errors import TileCause, TileError
from glacier_nb.landsat import BANDS, BINARY_CLASSES, BINARY_CODES, REFLECTANCE, TEMPERATURE
from glacier_nb.prediction.members import CodingError, Member
from glacier_nb.prediction.scenes import Quality, open_scene, open_scenes
from glacier_nb.tiles.read import read_tiles


@pytest.fixture(scope="module")
def usgs(tmp_path_factory):
    return product(tmp_path_factory.mktemp("usgs"))


def refused(*args, cause=None, **kwargs):
    "The message of an error."
    with pytest.raises(TileError) as e:
        open_scene(*args, **kwargs)
    assert cause is None or e.value.cause == cause
    assert len(e.value.args) == 4
    return str(e.value)


def polygons(path, *boxes, crs="EPSG:4326", kind="Polygon"):
    "A GeoJSON file of rectangles."
    rings = [[(w, s), (e, s), (e, n), (w, n), (w, s)] for w, s, e, n in boxes]
    shapes = [{"type": kind, "coordinates": [ring] if kind == "Polygon" else ring} for ring in rings]
    features = [{"type": "Feature", "properties": {}, "geometry": shape} for shape in shapes]
    name = {"type": "name", "properties": {"name": crs}}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, "crs": name}))
    return path


def test_product_is_read_in_windows_without_its_other_bands(usgs):
    bands, _quality = numbers()
    scene = open_scene(usgs)
    assert (scene.name, scene.shape, str(scene.crs)) == (ID, (SIZE, SIZE), "EPSG:32643")
    found, valid = pickle.loads(pickle.dumps(scene)).read((2, 9, 1, 20))
    np.testing.assert_array_equal(found, bands[:, 2:9, 1:20])
    np.testing.assert_array_equal(valid, bands[0, 2:9, 1:20] > 0)
    assert (found.dtype, valid.dtype) == (np.float32, bool)
    assert scene.tile((2, 9, 1, 20)).transform == PLACE["transform"] * rasterio.Affine.translation(1, 2)
    for box in ((0, 0, 0, 4), (0, 25, 0, 4), (-1, 3, 0, 4), (0, 3, 5, 4)):
        with pytest.raises(ValueError, match="expected rows in 0 to 24"):
            scene.read(box)


def test_a_scene_by_a_relative_path_is_found_from_another_folder(usgs, tmp_path, monkeypatch):
    monkeypatch.chdir(usgs.parent)
    sent = pickle.dumps(open_scene(usgs.name, "cloud"))
    monkeypatch.chdir(tmp_path)
    scene = pickle.loads(sent)
    np.testing.assert_array_equal(scene.read()[0], open_scene(usgs, "cloud").read()[0])


def test_no_file_stays_open(usgs):
    scene = open_scene(usgs, "cloud")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for top in range(20):
        scene.read((top, top + 1, 0, 9))
    assert before == 0 or len(os.listdir("/proc/self/fd")) == before


def test_zero_is_fill_in_a_product_that_has_lost_its_nodata_value(tmp_path):
    scene = open_scene(product(tmp_path, nodata=None))
    assert not scene.read()[1][:, :3].any()
    assert scene.read()[1][:, 3:].all()


@pytest.mark.parametrize(
    ("masked", "share"),
    [
        ("fill", 0),
        ("cloud", 16),
        ("Cloud_Shadow, cirrus", 32),
        ([Quality.CLOUD, "cloud shadow", "cirrus", "dilated cloud"], 48),
    ],
)
def test_bits_become_nodata_as_a_choice(usgs, masked, share):
    bands, valid = open_scene(usgs, masked).read()
    assert (~valid[:, 3:]).sum() == share
    assert not bands[:, ~valid].any()


def test_mask_needs_its_file_and_its_name(usgs, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'cloud'"):
        open_scene(usgs, "clouds")
    copy = shutil.copytree(usgs, tmp_path / ID)
    (copy / f"{ID}_QA_PIXEL.TIF").unlink()
    assert "masked='fill'" in refused(copy, "cloud", cause=TileCause.FILES)
    assert open_scene(copy).quality is None


def test_metadata_decides_what_the_product_is(usgs, tmp_path):
    copy = shutil.copytree(usgs, tmp_path / ID)
    path = copy / f"{ID}_MTL.json"
    path.write_text(path.read_text().replace("LC08_L2SP", "LE07_L2SP"))
    assert "MTL.json" in refused(copy, cause=TileCause.PRODUCT)
    path.write_text("{")
    assert "remove it" in refused(copy, cause=TileCause.UNREADABLE)
    scales = {"LEVEL2_SURFACE_REFLECTANCE_PARAMETERS": {"REFLECTANCE_MULT_BAND_3": "NULL"}}
    path.write_text(json.dumps({"LANDSAT_METADATA_FILE": scales}))
    assert "NULL" in refused(copy, cause=TileCause.UNREADABLE)
    path.unlink()
    np.testing.assert_array_equal(open_scene(copy).read()[0], open_scene(usgs).read()[0])


def test_metadata_as_text_and_another_scale(usgs, tmp_path):
    copy = shutil.copytree(usgs, tmp_path / ID)
    (copy / f"{ID}_MTL.json").unlink()
    lines = ["GROUP = LANDSAT_METADATA_FILE", "  GROUP = LEVEL1_RADIOMETRIC_RESCALING"]
    lines += ["    REFLECTANCE_MULT_BAND_2 = 2.0000E-05", "  END_GROUP = LEVEL1_RADIOMETRIC_RESCALING"]
    lines += ["  GROUP = LEVEL2_SURFACE_REFLECTANCE_PARAMETERS", "    REFLECTANCE_MULT_BAND_2 = 5.5e-05"]
    lines += [
        "    REFLECTANCE_ADD_BAND_2 = -0.2",
        "  END_GROUP = LEVEL2_SURFACE_REFLECTANCE_PARAMETERS",
        "END",
    ]
    (copy / f"{ID}_MTL.txt").write_text("\n".join(lines))
    found, plain = open_scene(copy).read()[0], open_scene(usgs).read()[0]
    np.testing.assert_array_equal(found[0], 2 * plain[0])
    np.testing.assert_array_equal(found[1:], plain[1:])


def test_metadata_file_and_list_of_files_stand_for_the_product(usgs):
    expected = open_scene(usgs).read()[0]
    files = [usgs / f"{ID}_{name}.TIF" for name in (*NAMES, "QA_PIXEL")]
    for path in (usgs / f"{ID}_MTL.json", files, map(str, files)):
        scene = open_scene(path, "cloud")
        np.testing.assert_array_equal(scene.read()[0][:, :, 8:], expected[:, :, 8:])


@pytest.mark.parametrize(
    "names",
    [
        NAMES,
        BANDS,
        ("blue", "green", "red", "swir1", "thermal"),
        [f"kolahoi_{band}" for band in BANDS],
        [f"LC08_CU_003009_20200101_20210502_02_{name}" for name in NAMES],  # US analysis-ready data
    ],
)
def test_separate_bands_by_name(tmp_path, names):
    bands, quality = numbers()
    files = [write(tmp_path / f"{n}.tif", b, nodata=0) for n, b in zip(names, bands, strict=True)]
    prefix = names[0].removesuffix(NAMES[0]).removesuffix("B2").removesuffix("blue")
    write(tmp_path / f"{prefix}QA_PIXEL.tif", quality)
    write(tmp_path / f"{prefix}B1.tif", quality)
    scene = open_scene(tmp_path, "cloud")
    np.testing.assert_array_equal(scene.read()[0][:, :, 8:], bands[:, :, 8:])
    np.testing.assert_array_equal(open_scene(files[::-1]).read()[0], bands)
    assert refused(files[0], cause=TileCause.UNREADABLE).count("give the folder") == 1
    assert "no B6, B10" in refused(files[:3])
    with rasterio.open(files[0], "r+") as f:
        f.descriptions = ["SR_B4"]
    assert "B2, as in its name" in refused(files, cause=TileCause.UNREADABLE)


def test_multi_band_file_by_descriptions(tmp_path):
    bands, _quality = numbers()
    path = write(tmp_path / "stack.tif", bands[::-1], nodata=0)
    with rasterio.open(path, "r+") as f:
        f.descriptions = NAMES[::-1]
    write(tmp_path / "dem.tif", bands[0])
    for source in (path, tmp_path):
        scene = open_scene(source)
        np.testing.assert_array_equal(scene.read((3, 9, 4, 9))[0], bands[:, 3:9, 4:9])
    assert scene.name == "stack"
    with rasterio.open(path, "r+") as f:
        f.descriptions = ("SR_B7", *NAMES[-2::-1])
    refused(path, cause=TileCause.UNREADABLE)


def test_vrt_of_two_files_is_one_scene(tmp_path):
    bands, _quality = numbers()
    for k in range(2):
        write(tmp_path / f"part{k}.tif", bands[:, :, 12 * k : 12 * k + 12], nodata=0)
    size = "ySize='24' xSize='12' yOff='0'"
    source = "<SimpleSource><SourceFilename relativeToVRT='1'>part{0}.tif</SourceFilename>"
    source += f"<SourceBand>{{1}}</SourceBand><SrcRect xOff='0' {size}/><DstRect xOff='{{2}}' {size}/>"
    parts = [
        f"<VRTRasterBand dataType='UInt16' band='{k}'><NoDataValue>0</NoDataValue>"
        + "".join(source.format(i, k, 12 * i) + "</SimpleSource>" for i in range(2))
        + "</VRTRasterBand>"
        for k in range(1, 6)
    ]
    head = "<VRTDataset rasterXSize='24' rasterYSize='24'><SRS>EPSG:32643</SRS>"
    head += "<GeoTransform>567945, 30, 0, 3771855, 0, -30</GeoTransform>"
    (tmp_path / "mosaic.vrt").write_text(f"{head}{''.join(parts)}</VRTDataset>")
    found, _valid = open_scene(tmp_path / "mosaic.vrt").read((3, 8, 9, 20))
    np.testing.assert_array_equal(found, bands[:, 3:8, 9:20])


def test_tiles_as_scenes_have_the_pixels_of_tiles():
    folder = cached_demo(n_tiles=4, size=32, seed=0)
    for scene, tile in zip(open_scenes(folder), read_tiles(folder), strict=True):
        assert (scene.name, scene.crs, scene.transform) == (tile.id, tile.crs, tile.transform)
        for found, expected in zip(scene.read(), (tile.bands, tile.valid), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert "open_scenes" in refused(folder)


def test_folder_of_products(tmp_path):
    other = ID.replace("20201031", "20201116")
    for name in (ID, other):
        product(tmp_path, name)
    (tmp_path / "notes").mkdir()
    assert [scene.name for scene in open_scenes(tmp_path)] == [ID, other]
    for name in ("a", "b"):
        shutil.copytree(tmp_path / ID, tmp_path / "copies" / name)
    assert [scene.name for scene in open_scenes(tmp_path / "copies")] == [f"a_{ID}", f"b_{ID}"]


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32643", "EPSG:3857", "EPSG:32644"])
def test_bounds_in_any_crs_give_the_window_that_covers_them(usgs, crs):
    scene = open_scene(usgs)
    x, y = PLACE["transform"] @ (6.5, 10.5)
    box = transform_bounds("EPSG:32643", crs, x, y - 4 * 30, x + 7 * 30, y)
    part = open_scene(usgs, bounds=",".join(map(str, box)), bounds_crs=crs)
    top, bottom, left, right = part.window
    assert top <= 10
    assert bottom >= 15
    assert left <= 6
    assert right >= 14
    assert bottom - top <= (5 if crs == "EPSG:32643" else 7)
    assert right - left <= (8 if crs == "EPSG:32643" else 10)
    np.testing.assert_array_equal(part.read()[0], scene.read(part.window)[0])
    assert part.transform == scene.tile(part.window).transform


def test_polygon_masks_what_lies_outside(usgs, tmp_path):
    west, south, east, north = open_scene(usgs).bounds
    inside = [
        (west + 150, south + 150, west + 300, south + 330),
        (east - 210, north - 240, east - 90, north - 90),
    ]
    wgs = [transform_bounds("EPSG:32643", "EPSG:4326", *box) for box in inside]
    same = open_scene(usgs, polygon=polygons(tmp_path / "m.geojson", *inside, crs="EPSG:32643"))
    valid = np.zeros((SIZE, SIZE), bool)
    valid[13:19, 5:10] = valid[3:8, 17:21] = True
    assert same.window == (3, 19, 5, 21)
    np.testing.assert_array_equal(same.read()[1], valid[3:19, 5:21])
    np.testing.assert_array_equal(same.read((1, 4, 0, 16))[1], valid[4:7, 5:21])
    assert not same.read((0, 2, 0, 5))[1].any()
    other = open_scene(usgs, polygon=polygons(tmp_path / "w.geojson", *wgs, (0, 0, 1, 1)))
    y, x = other.window[0], other.window[2]
    assert (
        np.abs(np.pad(other.read()[1], ((y, 24 - other.window[1]), (x, 24 - other.window[3]))).sum() - 50)
        < 20
    )
    both = open_scene(usgs, polygon=tmp_path / "m.geojson", bounds=inside[0], bounds_crs="EPSG:32643")
    assert both.window == (13, 19, 5, 10)


def test_polygon_on_both_sides_of_the_antimeridian(tmp_path):
    bands, _quality = numbers()
    x = transform_bounds("EPSG:4326", "EPSG:32660", 179.9999, 67.4, 180, 67.5)[2]
    place = {"crs": "EPSG:32660", "transform": from_origin(x - 360, 7500000, 30, 30)}
    path = write(tmp_path / "stack.tif", bands, nodata=0, **place)
    inside = polygons(tmp_path / "p.geojson", (179.9, 67.4, 180, 67.8), (-180, 67.4, -179.9, 67.8))
    assert open_scene(path, polygon=inside).read()[1][:, 3:].mean() > 0.9


def test_geopackage_and_shapefile_as_geojson(usgs, tmp_path):
    pyogrio, shapely = pytest.importorskip("pyogrio"), pytest.importorskip("shapely")
    west, south, _east, _north = open_scene(usgs).bounds
    shape = shapely.to_wkb([shapely.Point(west + 400, south + 300).buffer(150)])
    for name in ("basin.gpkg", "basin.shp"):
        options = {"crs": "EPSG:32643", "geometry_type": "Polygon"}
        pyogrio.raw.write(tmp_path / name, shape, [], [], **options)
        scene = open_scene(usgs, polygon=tmp_path / name)
        assert scene.read()[1].sum() == pytest.approx(np.pi * 25, abs=6)
    pyogrio.raw.write(tmp_path / "basin.gpkg", shape, [], [], layer="second", append=False, **options)
    assert "layers basin, second" in refused(usgs, polygon=tmp_path / "basin.gpkg")
    (tmp_path / "basin.prj").unlink()
    assert "a_srs" in refused(usgs, polygon=tmp_path / "basin.shp", cause=TileCause.UNREADABLE)


def test_what_lies_elsewhere_is_refused_with_both_places(usgs, tmp_path):
    far = polygons(tmp_path / "far.geojson", (11, 46, 12, 47))
    for text in (
        refused(usgs, polygon=far, cause=TileCause.OUTSIDE),
        refused(usgs, bounds=(11, 46, 12, 47), cause=TileCause.OUTSIDE),
    ):
        assert "longitude 11.00 to 12.00, latitude 46.00 to 47.00" in text
        assert "75.7" in text
        assert "34.0" in text
    lines = polygons(tmp_path / "lines.geojson", (75, 34, 76, 35), kind="LineString")
    assert "LineString" in refused(usgs, polygon=lines, cause=TileCause.UNREADABLE)
    assert "no such file" in refused(usgs, polygon=tmp_path / "none.gpkg")
    (tmp_path / "text.gpkg").write_text("no database")
    refused(usgs, polygon=tmp_path / "text.gpkg", cause=TileCause.UNREADABLE)
    for bounds in ("1,2,3", (3, 1, 2, 4), "a,b,c,d"):
        with pytest.raises(ConfigError, match="west < east"):
            open_scene(usgs, bounds=bounds)
    with pytest.raises(ConfigError, match="bounds_crs"):
        open_scene(usgs, bounds=(1, 2, 3, 4), bounds_crs="nowhere")


def test_scenes_outside_are_left_out_unless_all_are(tmp_path):
    product(tmp_path)
    other = product(
        tmp_path, ID.replace("20201031", "20201116"), transform=from_origin(300000, 3771855, 30, 30)
    )
    shutil.rmtree(tmp_path / "x", ignore_errors=True)
    (other / f"{other.name}_QA_PIXEL.TIF").unlink()
    bounds = open_scene(tmp_path / ID).bounds
    assert [s.name for s in open_scenes(tmp_path, bounds=bounds, bounds_crs="EPSG:32643")] == [ID]
    with pytest.raises(TileError, match="longitude"):
        open_scenes(tmp_path, bounds=(0, 0, 1, 1))


@pytest.mark.parametrize(
    ("change", "size"),
    [({"transform": from_origin(567960, 3771855, 30, 30)}, SIZE), ({"crs": "EPSG:32644"}, SIZE), ({}, 23)],
)
@pytest.mark.parametrize("name", ["SR_B4", "QA_PIXEL"])
def test_different_grids_are_refused_with_both_files(usgs, tmp_path, change, size, name):
    copy = shutil.copytree(usgs, tmp_path / ID)
    bands, _quality = numbers()
    write(copy / f"{ID}_{name}.TIF", bands[0][:size, :size], nodata=0, **change)
    text = refused(copy, cause=TileCause.GRID)
    assert f"{ID}_{name}.TIF" in text
    assert f"{ID}_SR_B2.TIF" in text


def test_scene_without_valid_pixels(usgs, tmp_path):
    copy = shutil.copytree(usgs, tmp_path / ID)
    write(copy / f"{ID}_QA_PIXEL.TIF", np.full((SIZE, SIZE), 22280, "uint16"))
    assert "masked='fill'" in refused(copy, "cloud", cause=TileCause.EMPTY)
    x, y = PLACE["transform"] @ (0, 10)
    box = (x + 3, y, x + 40, y + 200)
    assert "polygon or bounds" in refused(usgs, bounds=box, bounds_crs="EPSG:32643", cause=TileCause.EMPTY)
    write(copy / f"{ID}_SR_B6.TIF", np.zeros((SIZE, SIZE), "uint16"))
    assert "another scene" in refused(copy, cause=TileCause.EMPTY)


def test_undeclared_zeros_in_a_corner_are_refused(tmp_path):
    bands, _quality = numbers()
    for name, band in zip(BANDS, bands, strict=True):
        write(tmp_path / f"x_{name}.tif", band)
    assert "--nodata 0" in refused(tmp_path, cause=TileCause.NODATA)


def test_no_georeference_is_refused_only_where_it_is_needed(tmp_path):
    bands, _quality = numbers()
    path = write(tmp_path / "stack.tif", bands, nodata=0, crs=None, transform=rasterio.Affine.identity())
    assert open_scene(path).shape == (SIZE, SIZE)
    refused(path, bounds=(1, 2, 3, 4), cause=TileCause.GRID)


def physical(folder, tag):
    "The bands as reflectance and kelvin; tags: none, units, celsius, or scale and offset of 10,000 and 100."
    bands, _quality = numbers()
    for name, dn in zip(BANDS, bands, strict=True):
        warm = name == "B10"
        value = (TEMPERATURE if warm else REFLECTANCE)(dn.astype("float64"))
        value -= 273.15 * (tag == "celsius" and warm)
        data, scale = value.astype("float32"), 1.0
        if tag == "scale":
            scale = 0.01 if warm else 1e-4
            data = np.rint((value - 200 * warm) / scale).astype("int16")
        path = write(
            folder / f"x_{name}.tif", np.where(dn == 0, -9999, data).astype(data.dtype), nodata=-9999
        )
        with rasterio.open(path, "r+") as f:
            if tag == "scale":
                f.scales, f.offsets = [scale], [200 * warm]
            elif tag:
                f.units = [("°C" if tag == "celsius" else "K") if warm else "reflectance"]
    return folder


def test_network_on_dn_refuses_reflectance_and_takes_it_with_tags(usgs, tmp_path):
    scene = open_scene(usgs)
    stats, cpu = fit_stats([scene.tile()]), torch.device("cpu")
    parts = (stats, BINARY_CLASSES, BINARY_CODES, cpu, torch.float32)
    member = Member(tmp_path / "run/model.pt", nn.Identity(), TrainConfig(), *parts)
    known = member.image(scene.tile())
    plain = physical(tmp_path / "plain", "")
    with pytest.raises(CodingError, match="B2"):
        member.image(open_scene(plain).tile())
    torch.testing.assert_close(
        member.image(open_scene(plain, coding="physical").tile()), known, rtol=0, atol=0
    )
    for tag in ("units", "celsius"):
        image = member.image(open_scene(physical(tmp_path / tag, tag)).tile())
        torch.testing.assert_close(image, known, rtol=0, atol=0)
    found = open_scene(physical(tmp_path / "scale", "scale")).read()[0]
    np.testing.assert_allclose(found, scene.read()[0], atol=3)  # 1e-4 of reflectance is 3.6 DN
    with pytest.raises(CodingError):
        member.image(open_scene(tmp_path / "scale", coding="dn").tile())
    with pytest.raises(ConfigError, match="coding"):
        open_scene(plain, coding="reflectance")
