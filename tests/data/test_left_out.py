"""Tiles without a label or without data, and tiles chosen by id: what a run uses, and that it says so."""

import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import rasterio
import yaml

from glacier_nb.checks.diagnosis import _CHECKS, _run_check, _Subject
from glacier_nb.config.fields import ConfigError
from glacier_nb.config.training import TrainConfig
from glacier_nb.data.storage import run_tiles
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.files.errors import TileCause, TileError
from glacier_nb.tiles.read import describe, read_tiles
from glacier_nb.training.recipe import prepare_data

CAUSES = {"01_03": TileCause.EMPTY, "02_01": TileCause.UNLABELLED, "03_03": TileCause.EMPTY}


@pytest.fixture
def folder(tmp_path):
    """Nine tiles: one without a label, two without data in one band or in all."""
    path = shutil.copytree(cached_demo(9, 64, 3), tmp_path / "tiles")
    next((path / "label").glob("*_02_01.tif")).unlink()
    for band in [*path.glob("Band2/*_01_03.tif"), *path.glob("Band*/*_03_03.tif")]:
        with rasterio.open(band, "r+") as f:
            f.write(np.zeros((1, 64, 64), "float32"))
    return path


def config(folder, **changed):
    """A config without texture, which is not needed here."""
    return TrainConfig(data_dir=str(folder), include_glcm=False, **changed)


def findings(cfg):
    """What the diagnosis says about tiles left out."""
    subject = _Subject(cfg, data=prepare_data(cfg, run_tiles(cfg)))
    (check,) = [c for c in _CHECKS if c.name == "tiles left out"]
    return _run_check(check, subject)[0]


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_unusable_tiles_are_left_out_all_at_once(folder, tmp_path, monkeypatch, store):
    monkeypatch.setenv("GLACIER_NB_CACHE", str(tmp_path / "cache"))
    cfg = config(folder, tile_store=store)
    tiles = run_tiles(cfg)
    assert (len(tiles), tiles.left_out) == (6, CAUSES)
    data = prepare_data(cfg, tiles)
    assert data.tiles_left_out == CAUSES
    assert "left out: 01_03 (no valid pixel), 02_01 (no label), 03_03 (no valid pixel)" in repr(data)
    assert "left out: 01_03 (no valid pixel)" in data._repr_html_()
    assert not {*data.train.ids, *data.val.ids} & set(CAUSES)


def test_the_diagnosis_says_so_until_it_is_mended(folder):
    (found,) = findings(config(folder))
    assert (found.cause, found.severity) == ("tiles-left-out", "warning")
    assert found.evidence.startswith("3 of 9 tiles are left out: 01_03 (no valid pixel), 02_01 (no label)")
    assert found.numbers == {"tiles": CAUSES}
    kept = ",".join(t.id for t in run_tiles(config(folder)))
    assert not findings(config(folder, ids=kept))
    demo = cached_demo(9, 64, 3)
    for path in [*demo.glob("Band*/*0[13]_03.tif"), *demo.glob("label/*02_01.tif")]:
        shutil.copy(path, folder / path.relative_to(demo))
    assert not findings(config(folder))
    assert not run_tiles(config(folder)).left_out


def test_the_folds_need_tiles(folder):
    cfg = config(folder, n_folds=7)
    with pytest.raises(TileError, match=r"6 usable tiles.*03_03 \(no valid pixel\).*or set n_folds=6\.") as e:
        run_tiles(cfg)
    assert e.value.cause is TileCause.EMPTY
    assert prepare_data(replace(cfg, n_folds=6), run_tiles(replace(cfg, n_folds=6))).train.ids


def test_a_label_without_a_labelled_pixel(folder):
    """255 declared as nodata and nothing else: the split dropped it from training without a word."""
    path = next(folder.glob("label/*_02_02.tif"))
    with rasterio.open(path) as f:
        profile = f.profile | {"nodata": 255}
    with rasterio.open(path, "w", **profile) as f:
        f.write(np.full((1, 64, 64), 255, "float32"))
    assert run_tiles(config(folder)).left_out == CAUSES | {"02_02": TileCause.IGNORED}


def test_a_damaged_file_is_an_error(folder):
    next(folder.glob("Band4/*_02_02.tif")).write_bytes(b"")
    with pytest.raises(TileError, match="0 bytes that GDAL cannot read"):
        run_tiles(config(folder))


def test_a_label_left_over_means_that_names_do_not_match(folder):
    path = next(folder.glob("label/*_02_02.tif"))
    path.rename(path.with_name("Y_2_2.tif"))
    with pytest.raises(TileError, match="no label for tile 02_01, 02_02"):
        run_tiles(config(folder))


def test_reading_without_a_run_names_them_and_a_way_out(folder):
    """`ids` of the message, as text, is what the functions take."""
    for read in (read_tiles, describe):
        with pytest.raises(TileError, match=r"no label for tile 02_01 .*ids='01_01,01_02,01_03'"):
            read(folder)
        with pytest.raises(TileError, match=r"in tile 01_03, 03_03 \(B3 of 01_03 is .*ids='01_01'"):
            read(folder, ids="01_01,01_03,03_03")
        assert len(read(folder, ids="01_01,01_02")) == 2


def test_ids_of_a_config(folder):
    cfg = config(folder, ids=["02_03", "01_01", "01_01 "])
    assert cfg.ids == "01_01,02_03"
    assert config(folder, ids="['02_03', '01_01']").ids == cfg.ids
    assert cfg == config(folder, ids=" 02_03, 01_01,") == TrainConfig(**asdict(cfg))
    assert [t.id for t in run_tiles(replace(cfg, n_folds=2))] == ["01_01", "02_03"]
    assert not cfg.differences(asdict(config(folder, ids="02_03,01_01")))
    assert "ids" in cfg.differences(asdict(config(folder)))
    with pytest.raises(TileError, match=r"no tile 2_3\. Expected .* such as 02_03"):
        run_tiles(replace(cfg, ids="01_01,2_3"))
    for number in (207, [135], {"02_07": 1}):
        with pytest.raises(ConfigError, match=r"expected tile ids as text.* in quotes.* -r ids 02_07"):
            config(folder, ids=number)
    assert config(folder, ids=yaml.safe_load("ids: '02_07'")["ids"]).ids == "02_07"
    assert config(folder, ids=yaml.safe_load("ids: ['02_07', 01_01x]")["ids"]).ids == "01_01x,02_07"
