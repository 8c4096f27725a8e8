"""nbs/train.ipynb run by hand, in a browser."""

import re


def numbers(bars: list[str], unit: str) -> list[tuple[str, str]]:
    "Done and all of each state of a bar."
    found = (re.search(rf"(\d+)/(\d+) \[.*({unit}/s|s/{unit})", bar) for bar in bars)
    return [match.groups()[:2] for match in found if match]


def test_bars_and_curves_are_replaced_in_place(trained):
    seen, _, _ = trained
    assert seen["most"] == 1
    checks, steps = numbers(seen["bars"], "check"), numbers(seen["bars"], "step")
    assert len(set(checks)) > 2
    assert (steps[0], steps[-1]) == (("0", "4"), ("4", "4"))
    assert len(seen["curves"]) > 1
    assert "validation" in seen["curves"][-1]


def test_train_runs_to_its_end_without_warnings(trained, project):
    _, saved, new = trained
    cells = [cell for cell in saved.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    text = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs]
    assert max(map(len, text)) < 10_000
    assert (project / "outputs/small-trial/metrics.json").is_file()
    assert new == {"outputs"}
