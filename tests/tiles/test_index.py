"""Names of files and folders as they come: which files make a tile."""

import shutil
import unicodedata

import pytest
from tile_folders import IDS, band_file, geo, label_file, pixels, refusal, write

from glacier_nb.files.errors import TileCause, TileError
from glacier_nb.landsat import BANDS
from glacier_nb.tiles.index import TileFiles
from glacier_nb.tiles.read import read_tiles

SCENE = "LC08_L2SP_148035_2020081{}_20200919_02_T1"


@pytest.fixture
def names(tmp_path):
    """Make a folder of empty files: `names(bands, labels)`, with `{}` in place of the band."""

    def make(bands, labels=(), spell=lambda band: band):
        for k, band in enumerate(BANDS, 1):
            for name in bands:
                path = tmp_path / f"Band{k}" / name.format(spell(band))
                path.parent.mkdir(exist_ok=True)
                path.touch()
        for name in labels:
            (tmp_path / "label").mkdir(exist_ok=True)
            (tmp_path / "label" / name).touch()
        return tmp_path

    return make


def ids(folder, **options):
    """The ids of a folder, after a look at what belongs together."""
    found = TileFiles.find(folder, **options)
    for tile in found:
        assert [path.parent.name for path in tile.bands] == [f"Band{k}" for k in range(1, 6)]
    return [tile.id for tile in found]


def usgs(band):
    """SR_B2, ..., ST_B10."""
    return f"{'ST' if band == 'B10' else 'SR'}_{band}"


COLOURS = dict(zip(BANDS, ("blue", "green", "red", "swir1", "thermal"), strict=True))


@pytest.mark.parametrize(
    ("bands", "labels", "spell", "expected"),
    [
        ([SCENE + "_{{}}.TIF"], [SCENE + "_label.tif"], usgs, [SCENE]),
        ([SCENE + "_{{}}.TIF"], [SCENE + ".tif"], usgs, [SCENE]),
        (["hunza{}.{{}}.tif"], ["hunza{}.tif"], usgs, ["hunza{}"]),  # Earth Engine
        (["hunza{}_{{}}.tif"], ["hunza{}_mask.tif"], str, ["hunza{}"]),
        (["hunza{}_{{}}.tif"], ["mask_hunza{}.tif"], COLOURS.get, ["hunza{}"]),
        (["{{}}_hunza{}.tif"], ["Y_hunza{}.tif"], usgs, ["hunza{}"]),
        (["hunza{}_{{}}_crop.tif"], ["hunza{}_crop.tif"], usgs, ["hunza{}_crop"]),
        (["T43SFT_{{}}_{}.tif"], ["T43SFT_{}.tif"], str, ["T43SFT_{}"]),
        (["hunza{}_sat.tif"], ["hunza{}_mask.tif"], str, ["hunza{}_sat"]),
        (["hunza{}.SR.tif"], ["hunza{}.tif"], str, ["hunza{}.SR"]),
        (["hunza{}_B2.tif"], ["hunza{}_B2.tif"], str, ["hunza{}_B2"]),  # B2 of a grid A1 ... C9
        (["{}_mask.tif"], ["{}_mask.tif"], str, ["{}_mask"]),
        (["lake_blue_{}.tif"], ["lake_blue_{}.tif"], str, ["lake_blue_{}"]),
    ],
)
def test_ends_of_names(names, bands, labels, spell, expected):
    def three(patterns):
        return [pattern.format(k) for pattern in patterns for k in range(3)]

    folder = names(three(bands), three(labels), spell)
    assert ids(folder) == three(expected)
    assert all(tile.label for tile in TileFiles.find(folder))


def test_swapped_folders_of_the_usgs(names):
    folder = names(["LC08_{}_00_01.TIF", "LC08_{}_00_02.TIF"], (), usgs)
    (folder / "Band1").rename(folder / "x")
    (folder / "Band2").rename(folder / "Band1")
    (folder / "x").rename(folder / "Band2")
    with pytest.raises(TileError, match="found B3 in the name"):
        ids(folder)


def test_a_misplaced_band_of_the_usgs(names):
    folder = names([SCENE.format(k) + "_{}.TIF" for k in range(3)], (), usgs)
    wrong = folder / "Band1" / f"{SCENE.format(0)}_SR_B3.TIF"
    (folder / "Band1" / f"{SCENE.format(0)}_SR_B2.TIF").rename(wrong)
    with pytest.raises(TileError, match=r"SR_B3\.TIF: found B3 in the name\. Expected B2"):
        ids(folder)
    wrong.rename(folder / "Band1" / f"{SCENE.format(0)}_SR_B2.TIF")
    assert len(ids(folder)) == 3


@pytest.mark.parametrize(
    ("name", "bands", "found"),
    [
        ("LE07_L2SP_1_{}.TIF", ("SR_B1", "SR_B2", "SR_B3", "SR_B5", "ST_B6"), None),  # from blue to thermal
        ("S2A_1_{}_20m.tif", ("B02", "B03", "B04", "B06", "B10"), "B6 of Sentinel-2"),  # a red edge, cirrus
        ("LC08_1_{}.TIF", ("SR_B1", "SR_B2", "SR_B3", "SR_B5", "ST_B6"), "B1"),
    ],
)
def test_bands_of_sensors_in_names(names, name, bands, found):
    folder = names([name], (), dict(zip(BANDS, bands, strict=True)).get)
    if found is None:
        assert ids(folder) == ["LE07_L2SP_1"]
    else:
        with pytest.raises(TileError, match=f"found {found} in the name"):
            ids(folder)


def test_names_without_anything_in_common_are_one_line(names):
    with pytest.raises(TileError) as e:
        ids(names([f"{{}}x{k}.tif" for k in range(40)]))
    assert "no name that two folders have in common: Band1/B2x0.tif, Band2/B3x0.tif" in str(e.value)
    assert len(str(e.value)) < 400


PLACES = ["hunza_01_01", "hunza_01_02", "khumbu_01_01"]


@pytest.mark.parametrize("label", ["{}.tif", "{}_label.tif", "Y_{}.tif"])
def test_two_places_with_one_grid(names, label):
    folder = names([f"{p}.tif" for p in PLACES], [label.format(p) for p in PLACES])
    assert ids(folder) == PLACES
    assert ids(folder, ids="khumbu_01_01, hunza_01_01") == [PLACES[0], PLACES[2]]
    assert all(tile.id in tile.label.name for tile in TileFiles.find(folder))


def test_a_copy_in_one_folder_is_no_second_place(names):
    folder = names([f"{p}.tif" for p in PLACES[:2]])
    (folder / "Band2" / "copy_01_01.tif").touch()
    with pytest.raises(TileError, match="a second file for tile 01_01, beside copy_01_01"):
        ids(folder)
    (folder / "Band2" / "copy_01_01.tif").unlink()
    assert ids(folder) == ["01_01", "01_02"]


def test_letter_case(names):
    """A matter of the file system: ignored, unless two tiles differ in nothing else."""
    folder = names(["Hunza_a.tif"], ["HUNZA_A_Label.TIF"])
    path = folder / "Band3" / "Hunza_a.tif"
    path.rename(path.with_name("hunza_A.TIFF"))
    assert ids(folder) == ["Hunza_a"]
    assert TileFiles.find(folder)[0].label
    if not path.exists():
        path.with_name("hunza_A.TIFF").rename(path)
        names(["hunza_a.tif"], ["Hunza_a.tif", "hunza_a.tif"])
        (folder / "label" / "HUNZA_A_Label.TIF").unlink()
        assert ids(folder) == ["Hunza_a", "hunza_a"]


def test_accents_of_macos(names):
    name = "Aletsch_Gl\u00e4tscher"
    folder = names([f"{name}.tif"], [unicodedata.normalize("NFD", f"{name}_mask.tif")])
    for k in (2, 4):
        path = folder / f"Band{k}" / f"{name}.tif"
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    assert ids(folder) == ids(folder, ids=unicodedata.normalize("NFD", name)) == [name]


# Data that are elsewhere


def unlink(path, target):
    """Replace a file or folder by a link to nothing."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(f"{target}/{path.name}")


def test_links_without_target(folder):
    """All at once, whatever tile they belong to; after fetching, the folder is read."""
    paths = [*(band_file(folder, band, "02_07") for band in BANDS), label_file(folder, "02_07")]
    kept = {path: path.read_bytes() for path in paths}
    for path in paths:
        unlink(path, "../.git/annex/objects")
    refusal("../.git/annex/objects/B2_", "and 5 more", f"git annex get {folder}.", folder=folder)
    assert [tile.id for tile in read_tiles(folder, ids="02_08,03_07")] == ["02_08", "03_07"]
    for path in paths:
        path.unlink()
        path.write_bytes(kept[path])
    assert len(read_tiles(folder)) == 3


@pytest.mark.parametrize("which", ["band", "label"])
def test_one_link_without_target(folder, which):
    path = band_file(folder, "B4") if which == "band" else label_file(folder)
    unlink(path, "/nowhere")
    refusal(path, "a link to /nowhere/", "which is missing", "restore the target", folder=folder)
    with pytest.raises(TileError) as e:
        TileFiles.find(folder)
    assert e.value.cause is TileCause.LINK


@pytest.mark.parametrize("name", ["Band3", "label", "."])
def test_a_folder_that_is_a_link_without_target(folder, name):
    path = (folder / name).resolve()
    unlink(path, "../.dvc/cache")
    refusal(path, "a link to ../.dvc/cache", "dvc pull", folder=folder)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_dvc_file_without_its_data(folder, what):
    path = band_file(folder, "B6") if what == "file" else folder / "label"
    moved = path.rename(folder.parent / "elsewhere")
    path.with_name(f"{path.name}.dvc").write_text("outs:")
    refusal(path, f"the file {path.name}.dvc alone", "dvc pull", folder=folder)
    moved.rename(path)
    assert len(read_tiles(folder)) == 3


@pytest.mark.parametrize(
    ("content", "tool", "command"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS", "git lfs pull"),
        ("/annex/objects/SHA256E-s9--0.tif\n", "git-annex", "git annex get"),
    ],
)
def test_a_pointer_in_place_of_a_file(folder, content, tool, command):
    path = band_file(folder, "B3")
    path.write_text(content)
    refusal(path, f"a pointer of {tool}", command, folder=folder)


def test_images_of_two_places(tmp_path):
    for place in PLACES:
        write(tmp_path / "images" / f"{place}.tif", pixels(0)[0], nodata=0, **geo())
        write(tmp_path / "labels" / f"{place}_mask.tif", pixels(0)[1], **geo())
    assert [tile.id for tile in read_tiles(tmp_path)] == PLACES
    assert len(IDS) == 3
