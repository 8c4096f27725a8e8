"""Write what the runs of configs/iterations gave into their record.json.

nbs/studies/00_iterations.ipynb shows it.

make iterations
glacier-nb sweep configs/iterations/0*.yaml --n-jobs 2 --prefix real- \
    -p data_dir data/competition
python benchmarks/iterations.py
"""

import json
from pathlib import Path

from glacier_nb.files.paths import project_root, write_text
from glacier_nb.runs.folder import read_history, read_metrics

KEPT = ("mcc", "mcc_valid", "macro_mcc", "ci95", "baselines", "select", "selected_epoch")
KEPT += ("seconds", "started_from", "evaluation")
CURVES = ("epoch", "step", "lr", "train_loss", "val_loss", "mcc", "mcc_valid")


def record_of(folder: Path) -> dict:
    "What the notebook needs of a finished run; tiles by number, without names."
    metrics = read_metrics(folder)
    history = read_history(folder)
    tiles = {str(k): {"all": pair["all"]} for k, pair in enumerate(metrics["tile_confusions"].values())}
    curves = {name: [round(epoch[name], 6) for epoch in history] for name in CURVES}
    return {k: metrics[k] for k in KEPT if k in metrics} | {"tile_confusions": tiles, "curves": curves}


def main():
    root = project_root()
    names = sorted(path.stem for path in (root / "configs/iterations").glob("[0-9]*.yaml"))
    record = {}
    for tiles, prefix in (("demo", ""), ("competition", "real-")):
        folders = {name: root / "outputs" / f"{prefix}{name}" for name in names}
        record[tiles] = {n: record_of(f) for n, f in folders.items() if (f / "metrics.json").is_file()}
    groups = ",\n".join(
        f'"{tiles}": {{\n'
        + ",\n".join(f'"{name}": {json.dumps(run, separators=(",", ":"))}' for name, run in runs.items())
        + "\n}"
        for tiles, runs in record.items()
    )
    path = write_text(root / "configs/iterations/record.json", f"{{\n{groups}\n}}\n")
    print(path.relative_to(root), {tiles: len(runs) for tiles, runs in record.items()})


if __name__ == "__main__":
    main()
