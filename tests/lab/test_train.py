"""nbs/train.ipynb run by hand, in a browser."""

import re

SMALL = {"run": "small", "trial": True, "n_folds": 3, "include_glcm": False, "encoder": "tu-test_resnet"}


def test_train_runs_to_its_end_and_its_bars_move_in_place(lab, project):
    lab.open("lab/nbs/train.ipynb")
    before = {path.name for path in project.iterdir()}
    lab.set_parameters(**SMALL)
    seen = lab.run_all()
    assert seen["most"] == 1, "one bar and one picture of the curves a cell, replaced in place"
    checks, epochs = (
        [re.search(r"(\d+)/(\d+) \[", bar).groups() for bar in seen["bars"] if unit in bar]
        for unit in ("check", "step")
    )
    assert len(set(checks)) > 2
    assert epochs[-1][0] == epochs[-1][1]
    assert len(set(epochs)) > 2
    assert "validation" in seen["curves"][-1]

    saved = lab.save()
    cells = [cell for cell in saved.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    text = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs]
    assert max(map(len, text)) < 10_000
    assert (project / "outputs/small-trial/metrics.json").is_file()
    assert {path.name for path in project.iterdir()} == before | {"outputs"}
