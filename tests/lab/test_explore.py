"""nbs/explore.ipynb used by hand, in a browser."""

import re
from statistics import median

import numpy as np
import pytest

from glacier_nb.demo.tiles import cached_demo
from glacier_nb.tiles.read import read_tiles

# milliseconds from the end of a click on the picture to the new picture of its spectrum
CLICK = """([x, y]) => new Promise((done, fail) => {
  const all = document.querySelector('.glacier-explorer');
  const [view, image] = ['.glacier-view', 'img.glacier-spectrum'].map((css) => all.querySelector(css));
  const box = view.getBoundingClientRect(), start = performance.now();
  const [left, top] = [box.left + view.clientLeft, box.top + view.clientTop];  // within the border
  const [clientX, clientY] = [left + x * view.clientWidth, top + y * view.clientHeight];
  const at = {clientX, clientY, bubbles: true};
  const drawn = () => requestAnimationFrame(() => done(performance.now() - start));
  image.addEventListener('load', drawn, {once: true});
  setTimeout(() => fail(new Error(`no new spectrum after a click at ${x}, ${y}`)), 120000);
  view.setPointerCapture = () => {};
  for (const kind of ['pointerdown', 'pointerup']) view.dispatchEvent(new PointerEvent(kind, at));
})"""
BANDS, SPECTRUM = ".glacier-explorer img.glacier-bands", "img.glacier-spectrum"
NEW = """([css, before]) => {
  const image = document.querySelector(css);
  return image.src !== before && image.complete;
}"""


class Explored:
    "The explorer in a page."

    def __init__(self, lab):
        self.lab, self.page = lab, lab.page
        self.all = lab.page.locator(".glacier-explorer")
        self.view = self.all.locator(".glacier-view")

    def run(self, **parameters) -> None:
        "Run the notebook; until the bands are drawn."
        self.lab.set_parameters(**parameters)
        self.lab.run_all()
        self.page.wait_for_function(f"document.querySelector('{BANDS}')?.naturalWidth")

    def redraws(self, css: str, act) -> None:
        "Do something; until a picture is a new one."
        before = self.page.locator(css).first.get_attribute("src")
        act()
        self.page.wait_for_function(NEW, arg=[css, before])

    @property
    def tile(self) -> str:
        "The tile that is shown."
        return self.all.locator(".glacier-tile select").input_value()


def click(view, x: float, y: float) -> None:
    "Click a picture at shares of its width and height."
    box = view.bounding_box()
    view.click(position={"x": x * box["width"], "y": y * box["height"]})


@pytest.fixture(scope="module")
def explored(new_lab, trained):
    "The explorer with the demo tiles and a run."
    with new_lab() as lab:
        lab.open("lab/nbs/explore.ipynb")
        found = Explored(lab)
        found.run(runs="small-trial", compare="none")
        yield found


def test_explore_answers_clicks_sliders_and_keys(explored):
    page, view, parts = explored.page, explored.view, explored.all
    explored.redraws(SPECTRUM, lambda: click(view, 0.25, 0.5))
    facts = page.locator(".glacier-facts")
    facts.get_by_text(re.compile(r"row 4[78], column 2[345] of ")).wait_for()
    facts.get_by_text("small-trial").wait_for()

    explored.redraws(BANDS, lambda: parts.locator(".glacier-bands select").select_option("NDSI"))
    parts.locator(".glacier-legend").get_by_text("NDSI").wait_for()
    handle = parts.locator(".glacier-limits .noUi-handle-upper")
    explored.redraws(BANDS, lambda: handle.press("ArrowLeft"))
    before = parts.locator("img.glacier-left").evaluate("e => e.style.opacity")
    parts.locator(".glacier-opacity .noUi-handle").press("ArrowRight")
    page.wait_for_function(
        "(old) => document.querySelector('.glacier-explorer img.glacier-left').style.opacity > old",
        arg=before,
    )

    tile = explored.tile
    view.focus()
    explored.redraws(BANDS, lambda: view.press("ArrowRight"))
    assert explored.tile != tile
    assert parts.locator(".glacier-divider").is_hidden()
    parts.locator(".glacier-compare select").select_option("small-trial: map")
    parts.locator(".glacier-divider").wait_for()

    parts.get_by_text("Confusion matrix", exact=True).click()
    parts.locator(".glacier-cell-glacier-background").click()
    parts.locator(".glacier-name-left").get_by_text("glacier mapped as background").wait_for()
    parts.get_by_text("Pixel", exact=True).click()


def test_keys_in_a_list_are_not_taken_by_jupyterlab(explored):
    page, tiles = explored.page, explored.all.locator(".glacier-tile select")
    tiles.focus()
    page.keyboard.press("0")
    page.keyboard.press("0")
    assert page.locator(".jp-Dialog").count() == 0
    before = explored.tile
    explored.redraws(BANDS, lambda: page.keyboard.press("ArrowDown"))
    assert explored.tile != before
    assert page.locator(".jp-Dialog").count() == 0
    assert page.evaluate("document.activeElement.closest('.glacier-tile') !== null")
    explored.all.locator(".glacier-name-left").get_by_text(re.compile(f"^{explored.tile}")).wait_for()
    for css in (".glacier-overview select", ".glacier-thresholds .noUi-handle"):
        page.locator(css).first.focus()
        page.keyboard.press("0")
        page.keyboard.press("0")
    assert page.locator(".jp-Dialog").count() == 0


def test_the_overview_opens_tiles_and_thresholds_are_drawn(explored):
    tile = explored.tile
    overview = explored.page.locator(".glacier-overview .glacier-view")
    x = 0.1 if tile.endswith("03") else 0.9
    explored.redraws(BANDS, lambda: click(overview, x, 0.9))
    assert explored.tile != tile
    explored.page.locator(".glacier-facts").get_by_text(f" of {explored.tile}").wait_for()
    slider = explored.page.locator(".glacier-thresholds .noUi-handle").first
    explored.redraws(".glacier-thresholds img", lambda: slider.press("ArrowRight"))


def test_click_to_picture_is_measured(explored, project, capsys):
    folder = cached_demo(n_tiles=1, size=512, seed=3)
    (project / "data/large").symlink_to(folder, target_is_directory=True)
    explored.run(data_dir="data/large", runs="small-trial", compare="none")
    pixels = np.argwhere(read_tiles(folder)[0].valid)  # a pixel without data has no spectrum
    chosen = pixels[:: len(pixels) // 8]
    times = [explored.page.evaluate(CLICK, [(x + 0.5) / 512, (y + 0.5) / 512]) for y, x in chosen.tolist()]
    with capsys.disabled():
        print(f" click to picture, 512 pixels: {median(times):.0f} ms, at most {max(times):.0f} ms ", end="")
    row, col = chosen[-1]
    explored.page.locator(".glacier-facts").get_by_text(f"row {row}, column {col} of ").wait_for()
