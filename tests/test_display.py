"""What objects show as the last line of a cell: a name and a few facts, in the colours of the page."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from glacier_nb import progress
from glacier_nb.checks import diagnosis
from glacier_nb.config.training import TrainConfig
from glacier_nb.data.tileset import TileSet
from glacier_nb.demo.tiles import cached_demo
from glacier_nb.prediction.maps import SceneMap
from glacier_nb.prediction.members import Member
from glacier_nb.prediction.scenes import open_scene
from glacier_nb.prediction.views import PLAIN
from glacier_nb.prediction.windows import SceneWindows
from glacier_nb.progress import LiveCurves, curve_limit, facts_html
from glacier_nb.sampling.samplers import RandomCrops, WeightedTiles
from glacier_nb.tiles.read import read_tiles
from glacier_nb.training.callbacks import _panels, make_learner
from glacier_nb.training.recipe import prepare_data

EPOCH = {"epoch": 1, "train_loss": 0.5, "val_loss": 33.0, "mcc": 0.2, "mcc_valid": 0.25, "seconds": 1.0}


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    "One object of each class, with a learner that has finished an epoch."
    folder = cached_demo(n_tiles=9, size=96, seed=3)
    small = {"n_folds": 3, "crop_size": 32, "samples_per_epoch": 16, "epochs": 2, "include_glcm": False}
    cfg = TrainConfig(**small, architecture="scratch", precision="fp32", memory_format="contiguous")
    tiles = read_tiles(folder)
    data = prepare_data(cfg, tiles)
    learner = make_learner(cfg, data, tmp_path_factory.mktemp("run"), progress=False)
    learner.history, learner.epoch = [EPOCH], 1
    scene = open_scene(cached_demo(n_tiles=1, size=96, seed=3))
    member = Member(
        folder / "model.pt", learner.model, cfg, data.stats, data.classes, (0, 85, 170, 255), *"cd"
    )
    paths = (folder / "map.tif", None, None)
    objects = (tiles[0], data, data.train, data.split, cfg, learner, learner.sampler, scene, member)
    found = {type(o).__name__: o for o in objects}
    return found | {
        "PixelIndex": learner.sampler.index,
        "SceneWindows": SceneWindows((member,), scene, PLAIN, 64, 0),
        "SceneMap": SceneMap(*paths, True, 4, 0, 1.0, scene),
    }


NAMES = ("Tile", "RunData", "TileSet", "Split", "TrainConfig", "Learner", "PixelCrops", "PixelIndex", "Scene")
NAMES += ("Member", "SceneWindows", "SceneMap")


@pytest.mark.parametrize("name", NAMES)
def test_text_is_short_and_names_the_class(shown, name):
    text = repr(shown[name])
    assert text.startswith(name)
    assert len(text) < 700
    assert max(map(len, text.splitlines())) < 220
    assert " at 0x" not in text


@pytest.mark.parametrize(
    "name", ["Tile", "RunData", "TileSet", "TrainConfig", "Learner", "PixelCrops", "Scene", "SceneMap"]
)
def test_html_has_no_colours_of_its_own(shown, name):
    page = re.sub(r"base64,[^'\"]+", "", shown[name]._repr_html_())
    assert len(page) < 20_000
    assert not re.search(r"#[0-9a-fA-F]{3,6}\b|rgba?\(|(?<!-)color:(?!inherit)|background:(?!none)", page)


def test_facts_of_a_learner_and_a_sampler(shown):
    assert "train_loss 0.500, val_loss 33.000, mcc 0.200" in repr(shown["Learner"])
    assert "1 of 2 epochs, 0 of 8 steps" in shown["Learner"]._repr_html_()
    assert repr(shown["PixelCrops"]) == "PixelCrops(6 tiles, crop_size=32, n=16, seed=0)"
    boosted = WeightedTiles(shown["TileSet"], 32, 8, boosts={"lake": 3})
    assert repr(boosted) == "WeightedTiles(6 tiles, crop_size=32, n=8, seed=0, boosts={'lake': 3})"
    whole = RandomCrops(
        shown["TileSet"], 0
    )._repr_html_()  # a random sampler of whole tiles: all pixels alike
    cells = re.findall(r"<td>([\d.]+%)</td>", whole)
    assert cells[::2] == cells[1::2]


def test_a_set_without_a_tile_and_one_with_many(shown):
    train = shown["TileSet"]
    assert "tiles: none" in repr(TileSet.empty(train.classes, train.stats))
    groups = (tuple(g) * 3 for g in (train.images, train.labels, train.valids))
    many = TileSet(tuple(f"t{k}" for k in range(18)), train.classes, train.stats, *groups)
    assert "6 more tiles" in many._repr_html_()
    assert "t12" not in many._repr_html_()


def test_facts_escape_and_leave_out():
    page = facts_html("A<B", {"a&b": "<i>", "none": None}, "<img>")
    assert "A&lt;B" in page
    assert "<th" in page and "&lt;i&gt;" in page  # noqa: PT018
    assert "none</th>" not in page


# curves


@pytest.mark.parametrize(
    ("values", "limit"),
    [
        ([33, 1.2, 1, 0.9, 0.8], 1.2),
        ([189.0, np.nan, 2, 1], 2),
        ([2, 1, 0.6, 0.5, 0.45], None),
        ([0.0, 0, 9], None),
        ([np.inf, 1, 1, 1], None),
        ([], None),
    ],
)
def test_the_limit_cuts_off_only_what_flattens_the_rest(values, limit):
    assert curve_limit(values) == limit


def test_curves_that_are_not_wanted_stay_away_from_an_open_page(monkeypatch):
    monkeypatch.setattr(progress, "_has_page", lambda: True)
    monkeypatch.setattr(progress, "display", lambda *args, **options: "shown")
    assert [LiveCurves(shown=wanted).handle for wanted in (None, True, False)] == ["shown", "shown", None]


def test_curves_are_drawn_only_for_a_page(monkeypatch):
    drawn = []
    handle = SimpleNamespace(update=lambda data, raw: drawn.append(data))
    monkeypatch.setattr(progress, "display", lambda *args, **options: handle)
    headless, live = LiveCurves(), LiveCurves(shown=True, seconds=60)
    panels = {"loss": {"train": [1.0, 0.5], "validation": [33.0, None]}, "MCC": {"all": []}}
    headless.show(panels, final=True)
    assert drawn == []
    for _ in range(3):
        live.show(panels)
    assert len(drawn) == 1
    live.show(panels | {"MCC": {"all": [0.1, 0.2]}}, final=True)
    assert len(drawn) == 2
    page = drawn[-1]["text/html"]
    assert page.count("<polyline") == 3
    assert "nan" not in page
    assert len(page) < 5000
    wide, starts = (re.findall(p, page) for p in (r"viewBox='0 0 (\d+)", r"translate\((\d+),0\)"))
    assert (starts, wide) == (["0", "364"], ["728"])  # both panels lie inside the picture


def test_the_bar_of_the_checks_moves_and_is_gone_at_the_end(monkeypatch):
    drawn, names = [], []
    handle = SimpleNamespace(update=lambda data, raw: drawn.append(data["text/plain"]))
    monkeypatch.setattr(progress, "display", lambda *args, **options: names.append("shown") or handle)
    monkeypatch.setattr(progress, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    checks = [diagnosis._Check(name, "files", lambda subject: []) for name in ("bands", "split")]
    monkeypatch.setattr(diagnosis, "_CHECKS", checks)
    subject = SimpleNamespace(cfg=TrainConfig(), files=[1], build_findings=[])
    diagnosis._examine(subject, progress=False)
    assert (names, drawn) == ([], [])
    diagnosis._examine(subject, progress=True)
    assert names == ["shown"]
    assert any(text.startswith("bands") for text in drawn)
    assert drawn[-1] == ""


@pytest.mark.parametrize("session", [True, False])
def test_a_page_is_a_kernel_that_a_server_opened(monkeypatch, session):
    shell = SimpleNamespace(kernel=object(), user_ns={})
    monkeypatch.setattr(progress, "get_ipython", lambda: shell)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    if session:
        monkeypatch.setenv("JPY_SESSION_NAME", "lab/nbs/train.ipynb")
    assert progress._has_page() == session
    shell.user_ns["__vsc_ipynb_file__"] = "train.ipynb"
    assert progress._has_page()
    shell.kernel = None
    assert not progress._has_page()


def test_panels_of_a_run_with_and_without_held_out_tiles(shown):
    assert list(_panels(shown["Learner"])) == ["loss", "MCC"]
    alone = SimpleNamespace(cfg=shown["TrainConfig"], history=[{"train_loss": 0.5}])
    assert _panels(alone) == {"loss": {"train": [0.5], "validation": []}}
