"""nbs/explore.ipynb used by hand, in a browser."""

import re
from statistics import median

import pytest

from glacier_nb.demo.tiles import cached_demo

# milliseconds from the end of a click on the picture to the new picture of its spectrum
CLICK = """([x, y]) => new Promise((done) => {
  const [view, image] = ['.glacier-view', 'img.glacier-spectrum'].map((css) => document.querySelector(css));
  const box = view.getBoundingClientRect(), start = performance.now();
  const at = {clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true};
  const drawn = () => requestAnimationFrame(() => done(performance.now() - start));
  image.addEventListener('load', drawn, {once: true});
  view.setPointerCapture = () => {};
  for (const kind of ['pointerdown', 'pointerup']) view.dispatchEvent(new PointerEvent(kind, at));
})"""
NEW = """([css, before]) => {
  const image = document.querySelector(`img.${css}`);
  return image.src !== before && image.complete;
}"""


class Explored:
    "The explorer in a page."

    def __init__(self, lab):
        self.lab, self.page = lab, lab.page
        self.view = lab.page.locator(".glacier-view")

    def run(self, **parameters) -> None:
        "Run the notebook; until the bands are drawn."
        self.lab.set_parameters(**parameters)
        self.lab.run_all()
        self.page.wait_for_function("document.querySelector('img.glacier-bands')?.naturalWidth")

    def redraws(self, css: str, act) -> None:
        "Do something; until a picture is a new one."
        before = self.page.locator(f"img.{css}").get_attribute("src")
        act()
        self.page.wait_for_function(NEW, arg=[css, before])

    def click(self, x: float, y: float) -> None:
        "Click the picture at shares of its width and height."
        box = self.view.bounding_box()
        self.view.click(position={"x": x * box["width"], "y": y * box["height"]})


@pytest.fixture(scope="module")
def explored(new_lab, trained):
    "The explorer with the demo tiles and a run."
    with new_lab() as lab:
        lab.open("lab/nbs/explore.ipynb")
        found = Explored(lab)
        found.run(runs="small-trial")
        yield found


def test_explore_answers_clicks_sliders_and_keys(explored):
    page, view = explored.page, explored.view
    explored.redraws("glacier-spectrum", lambda: explored.click(0.25, 0.5))
    facts = page.locator(".glacier-facts")
    facts.get_by_text(re.compile(r"row 4[78], column 2[345] of ")).wait_for()
    facts.get_by_text("small-trial").wait_for()

    explored.redraws("glacier-bands", lambda: page.locator(".glacier-bands select").select_option("NDSI"))
    page.locator(".glacier-legend").get_by_text("NDSI").wait_for()
    handle = page.locator(".glacier-limits .noUi-handle-upper")
    explored.redraws("glacier-bands", lambda: handle.press("ArrowLeft"))
    before = page.locator("img.glacier-left").evaluate("e => e.style.opacity")
    page.locator(".glacier-opacity .noUi-handle").press("ArrowRight")
    page.wait_for_function(
        "(old) => document.querySelector('img.glacier-left').style.opacity > old", arg=before
    )

    tile = page.locator(".glacier-tile select").input_value()
    view.focus()
    explored.redraws("glacier-bands", lambda: view.press("ArrowRight"))
    assert page.locator(".glacier-tile select").input_value() != tile
    assert page.locator(".glacier-divider").is_hidden()
    page.locator(".glacier-compare select").select_option("small-trial: map")
    page.locator(".glacier-divider").wait_for()

    page.get_by_text("Confusion matrix", exact=True).click()
    page.locator(".glacier-cell-glacier-background").click()
    page.locator(".glacier-name-left").get_by_text("glacier mapped as background").wait_for()


def test_click_to_picture_is_measured(explored, project, capsys):
    (project / "data/large").symlink_to(cached_demo(n_tiles=1, size=512, seed=3), target_is_directory=True)
    explored.run(data_dir="data/large", runs="small-trial")
    times = [explored.page.evaluate(CLICK, [k / 9, k / 9]) for k in range(1, 9)]
    with capsys.disabled():
        print(f" click to picture, 512 pixels: {median(times):.0f} ms, at most {max(times):.0f} ms ", end="")
    explored.page.locator(".glacier-facts").get_by_text("row 455, column 455 of ").wait_for()
