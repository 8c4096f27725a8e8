"""STAC items of several archives, collections on disk and by an API, mosaics on one grid, errors."""

import json
import pickle
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds
from scene_folders import ID, NAMES, SIZE, product, write

from glacier_nb.config.fields import ConfigError
from glacier_nb.files.errors import TileCause, TileError
from glacier_nb.landsat import BANDS, REFLECTANCE, TEMPERATURE
from glacier_nb.prediction.scenes import open_scene, open_scenes
from glacier_nb.tiles.stac import StacScene, _path, find_stac, in_dates, is_stac

pystac = pytest.importorskip("pystac")
pytest.importorskip("odc.stac")
KEYS = ("blue", "green", "red", "swir16", "lwir11")
TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"
OTHER = ID.replace("20201031_20201106", "20201116_20201122")


def item(folder, name=ID, cloud=None, keys=KEYS, **properties):
    "An item in the words of the Planetary Computer; its files lie in `folder`/`name`."
    assets = {}
    for key, band, known in zip(keys, NAMES, BANDS, strict=True):
        scale, offset = TEMPERATURE if known == "B10" else REFLECTANCE
        assets[key] = {"href": f"./{name}/{name}_{band}.TIF", "type": TIFF}
        assets[key]["raster:bands"] = [{"scale": scale, "offset": offset, "nodata": 0}]
    assets["qa_pixel"] = {"href": f"./{name}/{name}_QA_PIXEL.TIF", "type": TIFF}
    assets["preview"] = {"href": "blue.png", "type": "image/png"}
    with rasterio.open(folder / name / f"{name}_SR_B2.TIF") as f:
        west, south, east, north = transform_bounds(f.crs, "EPSG:4326", *f.bounds)
        code = f.crs.to_epsg()
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    day = f"{name[17:21]}-{name[21:23]}-{name[23:25]}"
    known = {"datetime": f"{day}T05:30:00Z", "platform": "landsat-8", "proj:epsg": code}
    known |= {} if cloud is None else {"eo:cloud_cover": cloud}
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [],
        "id": name,
        "properties": known | properties,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [west, south, east, north],
        "links": [],
        "assets": assets,
    }


def save(path, found):
    path.write_text(json.dumps(found))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Two products of one grid, the second one 16 pixels to the east."
    root = tmp_path_factory.mktemp("stac")
    product(root)
    product(root, OTHER, transform=from_origin(567945 + 16 * 30, 3771855, 30, 30))
    save(root / "one.json", item(root))
    features = [item(root, cloud=30.0), item(root, OTHER, cloud=10.0)]
    save(root / "many.json", {"type": "FeatureCollection", "features": features})
    return root


def refused(function, *args, cause=None, **kwargs):
    with pytest.raises((TileError, ConfigError)) as e:
        function(*args, **kwargs)
    assert cause is None or e.value.cause == cause
    return str(e.value)


def test_an_item_is_the_product_folder(folder):
    expected, found = open_scene(folder / ID), open_scene(folder / "one.json")
    assert (found.name, found.crs, found.transform, found.date) == (
        ID,
        expected.crs,
        expected.transform,
        "2020-10-31",
    )
    for masked in ("fill", "cloud, cloud shadow"):
        here, there = (open_scene(path, masked).read() for path in (folder / ID, folder / "one.json"))
        np.testing.assert_array_equal(here[0], there[0])
        np.testing.assert_array_equal(here[1], there[1])


@pytest.mark.parametrize("keys", [BANDS, NAMES, [f"{n}.TIF" for n in NAMES], ["a", "b", "c", "d", "e"]])
def test_names_of_other_archives(folder, tmp_path, keys):
    one = item(folder, keys=keys)
    for k, asset in enumerate(list(one["assets"].values())[:5]):
        asset["href"] = str(folder / ID / f"{ID}_{NAMES[k]}.TIF")
        asset["eo:bands"] = [{"common_name": KEYS[k]}]
    one["assets"]["qa_pixel"]["href"] = str(folder / ID / f"{ID}_QA_PIXEL.TIF")
    found = open_scene(save(tmp_path / "x.json", one))
    np.testing.assert_array_equal(found.read()[0], open_scene(folder / ID).read()[0])


def test_stac_1_1_and_another_scale(folder, tmp_path):
    "The words of STAC 1.1, and numbers that mean other reflectances."
    one = item(folder, name=ID)
    for key, asset in one["assets"].items():
        asset["href"] = f"{folder}/{asset['href'][2:]}"
        for values in asset.pop("raster:bands", []):
            scale = 2 * values["scale"] if key != "lwir11" else values["scale"]
            asset["bands"] = [{"raster:scale": scale, "raster:offset": values["offset"]}]
    path = save(tmp_path / "x.json", one | {"stac_version": "1.1.0"})
    found, valid = open_scene(path).read()
    plain = open_scene(folder / ID).read()[0]
    np.testing.assert_array_equal(found[:4, valid], 2 * plain[:4, valid])
    np.testing.assert_array_equal(found[4], plain[4])


def test_reflectance_and_temperature_of_usgs_are_two_items(folder):
    one = item(folder)
    parts = [one | {"id": f"{ID}_{end}", "assets": {}} for end in ("SR", "ST")]
    for key, asset in one["assets"].items():
        asset["href"] = f"{folder}/{asset['href'][2:]}"
        parts[key == "lwir11"]["assets"][key] = asset
    (found,) = find_stac([pystac.Item.from_dict(part) for part in parts])
    assert [p.name for p in found.source.files.bands] == [f"{ID}_{name}.TIF" for name in NAMES]


def test_a_file_beside_the_item_comes_before_its_address(folder, tmp_path):
    one = item(folder)
    for asset in one["assets"].values():
        asset["href"] = f"https://example.org/{Path(asset['href']).name}"
    path = save(folder / ID / f"{ID}_stac.json", one)
    try:
        np.testing.assert_array_equal(open_scene(path).read()[0], open_scene(folder / ID).read()[0])
    finally:
        path.unlink()
    message = refused(open_scene, save(tmp_path / "x.json", one), cause=TileCause.FILES)
    assert f"https://example.org/{ID}_SR_B2.TIF" in message


def test_addresses(monkeypatch, folder):
    found = {
        href: str(_path(href, "s3://b/items"))
        for href in ("https://x.org/a//b.TIF?x=1&y=2", "gs://b/a.TIF", "./a.TIF")
    }
    assert list(found.values()) == [
        "/vsicurl?empty_dir=yes&url=https%3A%2F%2Fx.org%2Fa%2F%2Fb.TIF%3Fx%3D1%26y%3D2",
        "/vsigs/b/a.TIF",
        "/vsis3/b/items/a.TIF",
    ]
    assert "ftp" in refused(_path, "ftp://x.org/a.TIF", "")
    one = item(folder)
    one["assets"]["blue"]["alternate"] = {"s3": {"href": "s3://usgs-landsat/b.TIF"}}
    assert StacScene.of(one, str(folder)).source.files.bands[0].name == f"{ID}_SR_B2.TIF"
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    assert str(StacScene.of(one, str(folder)).source.files.bands[0]) == "/vsis3/usgs-landsat/b.TIF"


def test_what_is_no_landsat_is_refused_and_what_is_missing_is_named(folder):
    def of(**changes):
        return refused(StacScene.of, item(folder) | changes, str(folder))

    for name in (ID.replace("LC08", "LE07"), ID.replace("L2SP", "L1TP"), "S2A_MSIL2A_20201031T053951"):
        assert refused(StacScene.of, item(folder) | {"id": name}, "", cause=TileCause.PRODUCT)
    properties = item(folder)["properties"]
    assert "landsat-5" in of(id="x", properties=properties | {"platform": "landsat-5"})
    assert "L2SR" in of(id="x", properties=properties | {"landsat:correction": "L2SR"})
    assets = item(folder)["assets"]
    assert "no asset for B6 (swir16) among blue, green" in of(
        assets={k: v for k, v in assets.items() if k != "swir16"}
    )
    twice = {("SR_B4" if k == "red" else k): v for k, v in assets.items()} | {"B4": assets["red"]}
    assert "SR_B4, B4, all of them B4" in of(assets=twice)
    assert open_scene(folder / "one.json", "cloud").quality


def test_dates_and_boxes_choose(folder):
    many = folder / "many.json"
    assert [s.name for s in open_scenes(many)] == [OTHER, ID]  # the least cloud first
    for dates in (
        "2020-10",
        "2020-10-31",
        "/2020-11-01",
        "2020/2020-10",
        "../2020-11-15",
    ):
        assert [s.name for s in open_scenes(many, dates=dates)] == [ID]
    west, south, east, north = transform_bounds("EPSG:32643", "EPSG:4326", 567945, 3771200, 568200, 3771800)
    assert [s.name for s in open_scenes(many, bounds=(west, south, east, north))] == [ID]
    assert "2020-07" in refused(open_scenes, many, dates="summer")
    for dates in ("2020-13", "2020-02-30", "2021/2020", "a/b/c", "/"):
        assert "expected a day" in refused(in_dates, "2020-10-31", dates)
    refused(open_scenes, many, dates="2019", cause=TileCause.OUTSIDE)
    refused(open_scenes, many, bounds="10, 46, 11, 47", cause=TileCause.OUTSIDE)


def test_dates_choose_among_folders_of_products_too(folder, tmp_path):
    assert [s.name for s in open_scenes(folder, dates="2020-11")] == [OTHER]
    refused(open_scenes, folder, dates="2019", cause=TileCause.OUTSIDE)
    write(tmp_path / "scene.tif", np.ones((5, 4, 4), "uint16"))
    assert "no date in the name" in refused(open_scene, tmp_path / "scene.tif", dates="2020")


def test_a_static_collection(folder, tmp_path):
    catalog = pystac.Catalog("c", "two scenes")
    for one in json.loads((folder / "many.json").read_text())["features"]:
        for asset in one["assets"].values():
            asset["href"] = f"{folder}/{asset['href'][2:]}"
        catalog.add_item(pystac.Item.from_dict(one))
    catalog.normalize_and_save(str(tmp_path), pystac.CatalogType.SELF_CONTAINED)
    assert [s.name for s in open_scenes(tmp_path / "catalog.json", dates="2020-10")] == [ID]
    assert len(find_stac(catalog)) == 2
    found = pystac.ItemCollection(catalog.get_items(), clone_items=False)  # as a search returns it
    assert [s.name for s in open_scenes(found)] == [OTHER, ID]
    assert open_scene(found).name == "mosaic_20201031_20201116_2"


@contextmanager
def api(pages):
    "A STAC API of one collection: `pages` by their token; the queries that were asked."
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            query, base = parse_qs(urlparse(self.path).query), f"http://127.0.0.1:{server.server_port}"
            found = {"type": "Collection", "stac_version": "1.0.0", "id": "landsat-c2-l2"}
            found |= {"links": [{"rel": "items", "href": f"{base}/items"}]}
            if "/items" in self.path:
                asked.append(query)
                token = int(query.get("token", ["0"])[0])
                found = {"type": "FeatureCollection", "features": pages[token], "links": []}
                more = {"rel": "next", "href": f"{base}/items?token={token + 1}"}
                found["links"] += [more] if token + 1 < len(pages) else []
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/collections/landsat-c2-l2", asked
        server.shutdown()


def test_the_collection_of_an_api_is_read_page_by_page(folder):
    features = json.loads((folder / "many.json").read_text())["features"]
    for one in features:
        for asset in one["assets"].values():
            asset["href"] = f"file://{folder}/{asset['href'][2:]}"
    with api([[one] for one in features]) as (address, asked):
        scenes = open_scenes(address, dates="2020-10/2020-11", bounds=features[0]["bbox"])
        assert [s.name for s in scenes] == [OTHER, ID]
        assert asked[0]["datetime"] == ["2020-10-01T00:00:00Z/2020-11-30T23:59:59Z"]
        assert asked[0]["bbox"][0].count(",") == 3
        assert "bounds or dates" in refused(open_scenes, address)
    assert refused(open_scenes, address, dates="2020", cause=TileCause.UNREADABLE)


def test_a_mosaic_takes_pixels_from_the_first_valid_item(folder):
    mosaic = open_scene(folder / "many.json")
    assert (mosaic.date, mosaic.name) == ("2020-10-31/2020-11-16", "mosaic_20201031_20201116_2")
    first, second = open_scene(folder / OTHER), open_scene(folder / ID)
    left = round((second.transform.c - mosaic.transform.c) / 30)
    top = round((mosaic.transform.f - second.transform.f) / 30)
    bands, valid = mosaic.read((top, top + SIZE, left, left + SIZE + 16))
    expected, seen = np.zeros((5, SIZE, SIZE + 16), np.float32), np.zeros((SIZE, SIZE + 16), bool)
    for scene, at in ((second, 0), (first, 16)):  # the preferred one is written last
        b, v = scene.read()
        expected[:, :, at : at + SIZE][:, v], seen[:, at : at + SIZE] = b[:, v], seen[:, at : at + SIZE] | v
    np.testing.assert_array_equal(bands, expected)
    np.testing.assert_array_equal(valid, seen)
    part = pickle.loads(pickle.dumps(mosaic)).read((top + 2, top + 9, left + 10, left + 30))
    np.testing.assert_array_equal(part[0], bands[:, 2:9, 10:30])


def test_a_cloud_in_one_item_is_filled_by_another(folder):
    cloudy, whole = (
        open_scene(folder / "many.json", "cloud, cloud shadow, cirrus"),
        open_scene(folder / "many.json"),
    )
    assert (whole.read()[1] & ~cloudy.read()[1]).any()
    alone = open_scene(folder / OTHER, "cloud, cloud shadow, cirrus").read()[1].mean()
    box = cloudy.transform
    left, top = round((open_scene(folder / OTHER).transform.c - box.c) / 30), round((box.f - 3771855) / 30)
    assert cloudy.read((top, top + SIZE, left, left + SIZE))[1].mean() > alone


def test_an_item_of_the_next_zone_is_resampled(folder, tmp_path):
    name = OTHER.replace("20201116", "20201117")
    product(tmp_path, name, crs="EPSG:32644", transform=from_origin(15900, 3778000, 30, 30))
    product(tmp_path)
    far = item(tmp_path, name)
    both = {"type": "FeatureCollection", "features": [item(tmp_path), far]}
    mosaic = open_scene(save(tmp_path / "x.json", both))
    assert mosaic.crs.to_epsg() in (32643, 32644)
    bands, valid = mosaic.read()
    seen = {tuple(column) for column in bands[:, valid].T}
    own = open_scene(tmp_path / name).read()
    assert seen & {tuple(column) for column in own[0][:, own[1]].T}


def test_a_mosaic_is_clipped_and_coded_as_a_scene(folder, tmp_path):
    second = open_scene(folder / ID)
    mosaic = open_scene(folder / "many.json", bounds=second.bounds, bounds_crs=second.crs)
    assert mosaic.shape == second.shape
    assert mosaic.transform == second.transform
    assert "masked='fill'" in refused(
        open_scene, save(tmp_path / "x.json", without_quality(folder)), "cloud", cause=TileCause.FILES
    )
    assert open_scene(folder / "many.json", coding="dn").read()[1].any()


def without_quality(folder):
    features = [item(folder), item(folder, OTHER)]
    for one in features:
        del one["assets"]["qa_pixel"]
        for asset in one["assets"].values():
            asset["href"] = f"{folder}/{asset['href'][2:]}"
    return {"type": "FeatureCollection", "features": features}


def test_what_is_no_stac(folder, tmp_path):
    assert not is_stac(folder)
    assert not is_stac([])
    assert is_stac([folder / "one.json", folder / "many.json"])
    (tmp_path / "x.json").write_text("{")
    save(tmp_path / "y.geojson", {"type": "FeatureCollection", "features": [{"type": "Feature"}]})
    for name in ("x.json", "y.geojson"):
        assert not is_stac(tmp_path / name)
        assert "STAC item" in refused(open_scene, tmp_path / name)
    refused(open_scene, "http://127.0.0.1:9/x.json", cause=TileCause.UNREADABLE)
    path = save(tmp_path / "z.json", item(folder) | {"type": "Topology"})
    assert "type Topology" in refused(open_scene, path, cause=TileCause.UNREADABLE)
