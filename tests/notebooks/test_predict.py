"""predict.ipynb in a project folder with a small run, a scene and tiles, in this process."""

import ast
import inspect
import re
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
import rasterio
from made_runs import save_run
from scene_folders import ID, product, write
from tiny_network import TinyUNet

from glacier_nb.landsat import BANDS
from glacier_nb.prediction import members
from glacier_nb.prediction.scenes import open_scene
from glacier_nb.runs.predict import predict

ROOT = Path(__file__).parents[2]
CELLS = [c for c in nbformat.read(ROOT / "nbs/predict.ipynb", 4).cells if c.cell_type == "code"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A project's root with a run, a product folder and two tiles side by side."
    root = tmp_path_factory.mktemp("project")
    (root / "nbs").mkdir()
    shutil.copy(ROOT / "settings.ini", root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(members, "empty_network", lambda cfg, channels, n: TinyUNet(channels, n))
        tile = open_scene(product(root / "data")).tile()
        save_run("small", tile, 0.5, data_dir="data/demo")
        for k in range(2):
            place = tile.transform * rasterio.Affine.translation(24 * k, 0)
            for n, (band, pixels) in enumerate(zip(BANDS, tile.bands, strict=True), 1):
                write(root / f"data/demo/Band{n}/{band}_00_0{k}.tif", pixels, nodata=0, transform=place)
        yield root


def executed(root, monkeypatch, **parameters) -> dict:
    "Run the notebook's cells; returns their variables."
    monkeypatch.chdir(root / "nbs")  # as JupyterLab does
    space = {}
    for cell in CELLS:
        exec(cell.source, space)
        space |= parameters if "parameters" in cell.metadata.get("tags", ()) else {}
    plt.close("all")
    return space


def test_defaults_map_the_demo_tiles_with_the_best_run(project, monkeypatch):
    space = executed(project, monkeypatch)
    folder = project / "outputs/maps/best-demo"
    assert [m.classes for m in space["maps"]] == [folder / "00_00.tif", folder / "00_01.tif"]
    assert {p.name for p in (folder / "figures").iterdir()} == {"overview.png", "confidence.png", "zooms.png"}
    table = pd.read_csv(folder / "areas.csv", index_col=0)
    assert list(table.index) == ["00_00", "00_01", "all"]
    assert table.loc["all"].sum() == pytest.approx(2 * 24**2 * 9e-4, rel=0.01)


def test_a_product_with_options(project, monkeypatch):
    options = {"model": "outputs/small", "scene": f"data/{ID}/", "masked": "cloud", "zooms": 0}
    space = executed(project, monkeypatch, **options, tta="flips", batch=2, probabilities=True)
    assert space["maps"][0].probabilities == project / f"outputs/maps/small-{ID}/{ID}_probabilities.tif"
    assert space["table"].index[-1] == "no data"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "smal"}, "Existing runs: small"),
        ({"scene": "data/nowhere"}, "no such file or folder"),
        ({"bounds": "0,0,1"}, "expected west, south, east, north"),
        ({"bounds": "0,0,1,1"}, "correct bounds"),
        ({"polygon": "nothing.gpkg"}, "correct the path of the polygon file"),
        ({"masked": "clouds", "scene": f"data/{ID}"}, "did you mean 'cloud'"),
        ({"window": 500}, "To fix: window = 512"),
        ({"out": "data/demo/maps"}, "To fix: out = 'outputs/maps'"),
        ({"modle": "best"}, "unknown parameter 'modle': did you mean 'model'"),
        ({"scene": 7}, "scene = 7 is not allowed: expected text"),
    ],
)
def test_errors_say_what_was_expected(project, monkeypatch, given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        executed(project, monkeypatch, **given)


def test_parameters_are_flat_and_have_the_defaults_of_the_call():
    (cell,) = [c for c in CELLS if "parameters" in c.metadata.get("tags", [])]
    lines = [line for line in cell.source.splitlines() if not line.startswith("#")]
    assert all(line.count("=") == 1 and "  # " in line for line in lines), "papermill skips a second ="
    values = {line.split(" = ")[0]: ast.literal_eval(line.split(" = ")[1].split("  # ")[0]) for line in lines}
    known = {name: p.default for name, p in inspect.signature(predict).parameters.items()}
    shared = {name for name in values if name in known} - {"scene", "out", "progress"}
    assert {name: values[name] or None for name in shared} == {name: known[name] or None for name in shared}
    assert set(known) - set(values) == {"run", "confidence", "client"}
