"""The files of scenes: found by name, and other products refused."""

import pytest
from scene_folders import ID, product

from glacier_nb.files.errors import TileCause, TileError
from glacier_nb.tiles.products import SceneFiles


def refused(path, cause=TileCause.FILES):
    "The message of an error."
    with pytest.raises(TileError) as e:
        SceneFiles.find(path)
    assert (e.value.cause, len(e.value.args)) == (cause, 4)
    return str(e.value)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("LC08_L1TP_147036_20201031_20201106_02_T1", "Level 1"),
        ("LC09_L2SR_147036_20201031_20201106_02_T2", "without surface temperature"),
        ("LE07_L2SP_147036_20201031_20201106_02_T1", "Landsat 7"),
        ("LT05_L2SP_147036_20101031_20201106_02_T1", "Landsat 4 or 5"),
        ("LO08_L1GT_147036_20201031_20201106_02_RT", "OLI alone"),
        ("LC08_L1TP_147036_20170131_20170215_01_T1", "Collection 1"),
        ("LC81470362013104LGN01", "before the collections"),
        ("HLS.S30.T43SET.2020305T053951.v2.0", "HLS"),
        ("T43SET_20201031T053951", "Sentinel-2"),
    ],
)
def test_other_products_are_refused_before_a_file_is_opened(tmp_path, name, found):
    (tmp_path / "scene").mkdir()
    for band in ("B2", "B3", "B4", "B6", "B10", "QA_PIXEL"):
        (tmp_path / "scene" / f"{name}_{band}.TIF").touch()
    text = refused(tmp_path / "scene", cause=TileCause.PRODUCT)
    assert found in text
    assert "LC08_L2SP" in text


def test_sentinel_folder_is_refused(tmp_path):
    safe = tmp_path / "S2A_MSIL2A_20201031T053951_N0214_R005_T43SET_20201031T080049.SAFE"
    safe.mkdir()
    assert "Sentinel-2" in refused(safe, cause=TileCause.PRODUCT)


def test_missing_bands_are_named(tmp_path):
    copy = product(tmp_path)
    (copy / f"{ID}_SR_B4.TIF").unlink()
    (copy / f"{ID}_ST_B10.TIF").unlink()
    text = refused(copy)
    assert f"{ID}_SR_B4.TIF, {ID}_ST_B10.TIF" in text


@pytest.mark.parametrize("name", ["none", "empty", f"{ID}.tar", f"{ID}.zip"])
def test_paths_without_a_scene(tmp_path, name):
    if name == "empty":
        (tmp_path / name).mkdir()
    elif name != "none":
        (tmp_path / name).touch()
        assert "unpack" in refused(tmp_path)
    assert "To fix" in refused(tmp_path / name)


def test_a_catalogue_entry_is_no_scene(tmp_path):
    (tmp_path / "item.json").write_text("{}")
    assert "STAC item" in refused(tmp_path / "item.json")
