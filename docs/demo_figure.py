"""The picture of the first page: a held-out demo tile, its label, its map and the errors.

After `make demo`: python docs/demo_figure.py"""

from pathlib import Path

import matplotlib.pyplot as plt

from glacier_nb import load_run, read_tiles
from glacier_nb.plot.colours import ERROR_PALETTE, handles
from glacier_nb.plot.tiles import class_image, composite, error_map

ROOT = Path(__file__).parents[1]


def main() -> None:
    "Write docs/images/demo_map.png."
    run = load_run("demo")
    per_tile = run.metrics["per_tile"]
    tile_id = sorted(per_tile, key=lambda i: per_tile[i]["mcc"])[len(per_tile) // 2]  # the median of the five
    (tile,) = [t for t in read_tiles(ROOT / "data/demo") if t.id == tile_id]
    pred = run.predict(tile)
    errors = error_map(tile.label, pred, tile.valid)
    fig, axes = plt.subplots(1, 4, figsize=(11, 3.15), layout="constrained", dpi=100)
    panels = {
        "bands": composite(tile),
        "label": class_image(tile.label, tile.classes, tile.valid),
        f"map, MCC {per_tile[tile_id]['mcc']:.2f}": class_image(pred, tile.classes, tile.valid),
        "errors": class_image(errors, tuple(ERROR_PALETTE), palette=ERROR_PALETTE),
    }
    for ax, (title, image) in zip(axes, panels.items(), strict=True):
        ax.imshow(image, interpolation="nearest")
        ax.set_title(title, fontsize=11)
        ax.axis("off")
    wrong = ("false positive", "false negative", "wrong class", "no data")
    fig.legend(handles=handles(tile.classes), loc="outside lower left", ncols=4, frameon=False)
    fig.legend(handles=handles(wrong, ERROR_PALETTE), loc="outside lower right", ncols=4, frameon=False)
    fig.savefig(ROOT / "docs/images/demo_map.png", pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
