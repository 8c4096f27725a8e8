"""Findings and reports: order, verdicts, saving and reading, escaped text, and what an import loads."""

import json
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from glacier_nb.report.figures import draw, png, spread_labels
from glacier_nb.report.findings import CAUSES, SYMPTOMS, Finding, bars, curves, maps, ranked
from glacier_nb.report.report import FatalFinding, Report, read_report

NASTY = "<script>alert('a & b')</script> | `x` *y* [z](w)"


def finding(cause="starved", severity="warning", change=None, picture=None, **more):
    "A finding with text in each field."
    return Finding(cause, severity, f"Evidence of {cause}.", f"Fix {cause}.", more, change or {}, picture)


def report(*findings, checks=(("bands", 1.0, "nothing found"),), **more):
    return Report("Diagnosis of a", findings=findings, checks=checks, **more)


class Page(HTMLParser):
    "The tags of a page; fails where one is not closed in order."

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.alts = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.alts += [v for k, v in attrs if k == "alt"]
        self.open += [tag] if tag != "img" else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_any_order_is_ranked():
    found = [finding(c, s) for c in CAUSES for s in ("note", "fatal", "warning")]
    order = np.random.default_rng(0).permutation(len(found))
    made = report(*[found[i] for i in order]).findings
    assert [(f.severity, f.cause) for f in made] == [
        (s, c) for s in ("fatal", "warning", "note") for c in CAUSES
    ]
    assert list(made) == ranked(found)


def test_every_finding_is_a_cause_or_a_symptom():
    made = report(*[finding(c) for c in CAUSES])
    assert [f.cause for f in made.symptoms] == list(SYMPTOMS)
    assert len(made.causes) + len(made.symptoms) == len(CAUSES)


def test_first_cause_wins_and_symptoms_and_notes_change_nothing():
    made = report(
        finding("lr-high", change={"lr": 1e-4, "epochs": 9}),
        finding("starved", change={"lr": 1e-3, "samples_per_epoch": 256}),
        finding("collapsed", "fatal", change={"epochs": 1}),
        finding("norm-small", "note", change={"batch_size": 16}),
    )
    assert made.change == {"lr": 1e-3, "samples_per_epoch": 256, "epochs": 9}
    assert made.first.cause == "collapsed"
    assert made.fatal == [made.first]
    assert made.symptoms_heading == "Symptoms, cause not found"


DONE, NOT_DONE = ("a", 1, "nothing found"), ("b", 0, "not done: no label")
VERDICTS = [
    ((), [DONE] * 14, "You can train. 14 checks found nothing."),
    ((), [], "no check was done"),
    ((), [NOT_DONE], "no check was done"),
    ((), [DONE, NOT_DONE], "1 check was done, 1 not: b (no label)."),
    ([finding(severity="note")], [DONE], "You can train. 1 check found no error and no warning."),
    ([finding()], [DONE], "You can train. 1 warning: too few optimizer steps."),
    (
        [finding("label-turned", "fatal")],
        [],
        "Do not train yet: labels are flipped or rotated against the image.",
    ),
]


@pytest.mark.parametrize(("findings", "checks", "expected"), VERDICTS)
def test_verdict(findings, checks, expected):
    made = report(*findings, checks=checks)
    assert expected in made.verdict
    for text in (str(made), made.markdown(), made._repr_html_()):
        assert expected in " ".join(text.split())


def test_verdict_after_training():
    assert report(trained=True).verdict.startswith("The run is usable.")
    assert report(finding(severity="fatal"), trained=True).verdict.startswith("Do not train again yet: ")


def test_stop_names_cause_evidence_fix_and_how_to_train_anyway():
    report(finding()).stop()
    made = report(finding("label-turned", "fatal"), finding())
    with pytest.raises(FatalFinding) as caught:
        made.stop()
    for part in (
        "label-turned",
        "Evidence of label-turned.",
        "Fix label-turned.",
        "1 more finding",
        "'report'",
    ):
        assert part in str(caught.value)


def test_text_of_users_is_escaped():
    shown = bars({NASTY: 1.0}, NASTY, NASTY)
    bad = Finding("starved", "fatal", NASTY, NASTY, {}, {"run": NASTY}, shown)
    symptom = Finding("noise", "note", NASTY, NASTY)
    made = Report(NASTY, {}, [bad, symptom], [(NASTY, 1, NASTY)], {NASTY: NASTY})
    page = Page(made._repr_html_())
    assert "script" not in page.tags
    assert page.alts == [NASTY]
    text = made.markdown()
    outside = text.replace(f"run = {NASTY!r}", "")
    assert "<script" not in outside
    assert "[z](w)" not in outside
    assert "| `x`" not in outside


def test_lines_of_text_fit_a_terminal():
    made = report(Finding("starved", "warning", "word " * 200, "more " * 90), facts={"tiles": 25})
    assert max(map(len, str(made).splitlines())) <= 100


def test_round_trip(tmp_path):
    shown = curves([1, 2], {"MCC": [0.1, np.nan]}, "epoch", "MCC", "It falls.")
    found = [finding("peaked", picture=shown, change={"epochs": 9}, best=np.float32(0.5), of=np.arange(2))]
    found += [finding("peaked", "note", picture=shown), finding("noise", "note")]
    made = report(*found, cfg={"encoder_weights": None, "lr": 1e-3}, facts={"tiles": np.int64(25)})
    made.save(tmp_path)
    names = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert names == [
        "diagnosis.json", "diagnosis.md", "figures/diagnosis-peaked-2.png", "figures/diagnosis-peaked.png",
    ]  # fmt: skip
    again = read_report(tmp_path)
    assert again.to_dict() == made.to_dict()
    assert png(again.findings[0].picture) == png(shown)
    assert Report.from_dict(made.to_dict()).findings[0].picture is None
    again.save(tmp_path)  # into the folder that its pictures lie in
    assert read_report(tmp_path / "diagnosis.json").to_dict() == made.to_dict()
    (tmp_path / "figures/diagnosis-peaked.png").unlink()
    assert "is missing." in again._repr_html_()


def test_json_is_strict():
    made = report(finding(a=np.nan, b=np.float32(np.inf), c=np.array([1.0, np.nan])), facts={"MCC": np.nan})
    record = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert record["findings"][0]["numbers"] == {"a": None, "b": None, "c": [1.0, None]}
    assert record["facts"] == {"MCC": None}
    with pytest.raises(ValueError, match="starved: a: found type object"):
        report(finding(a=object())).to_dict()
    with pytest.raises(ValueError, match="starved: lr = nan"):
        report(finding(change={"lr": float("nan")}))


def test_a_failed_save_changes_no_file(tmp_path):
    shown = bars({"a": 1.0}, "y", "A bar.")
    report(finding(picture=shown)).save(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    broken = finding("lr-high", picture=bars({"a": "no number"}, "y", ""))
    with pytest.raises(ValueError, match="could not convert"):
        report(finding(picture=shown), broken).save(tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    report().save(tmp_path)
    assert list((tmp_path / "figures").iterdir()) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"title": "a"}', '{"findings": [{"cause": "x"}]}'])
def test_other_files_are_not_reports(tmp_path, text):
    (tmp_path / "diagnosis.json").write_text(text)
    with pytest.raises(ValueError, match=r"diagnosis\.json: .*; run the diagnosis again"):
        read_report(tmp_path)


def test_reports_import_no_matplotlib():
    code = (
        "import sys, glacier_nb.report.findings, glacier_nb.report.report as r\n"
        "str(r.Report('a')), r.Report('a').markdown(), r.Report('a')._repr_html_()\n"
        "assert not [m for m in sys.modules if m.startswith('matplotlib')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_drawing_imports_no_pyplot():
    code = (
        "import sys\nfrom glacier_nb.report.findings import bars\nfrom glacier_nb.report.figures import png\n"
        "assert png(bars({'a': 1.0}, 'y', '')) == png(bars({'a': 1.0}, 'y', ''))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_labels_are_spread_in_order():
    rng = np.random.default_rng(0)
    for n in range(6):
        wanted = rng.random(n)
        placed = spread_labels(wanted, 0.15)
        order = np.argsort(wanted)
        assert (np.diff(placed[order]) >= 0.15 - 1e-9).all()
    np.testing.assert_allclose(spread_labels([0.1, 0.9], 0.15), [0.1, 0.9])


def test_bars_have_the_length_of_their_values():
    heights = {"a": {"x": 1.0, "y": 2.0}, "b": {"x": 3.0, "y": np.nan}}
    ax = draw(bars(heights, "y", "")).axes[0]
    assert sorted(p.get_width() for p in ax.patches) == [1.0, 2.0, 3.0]
    texts = [t.get_text() for t in ax.texts]
    assert sorted(texts) == ["1", "2", "3", "no value"]


def test_maps_have_the_colours_of_their_classes():
    label = np.array([[0, 1], [2, 255]], np.uint8)
    image = draw(maps({"label": label}, "", ("background", "glacier", "debris"))).axes[0].images[0]
    expected = [["#E8E8E8", "#56B4E9"], ["#D55E00", "#B5AC9E"]]
    found = [["#" + "".join(f"{round(255 * v):02X}" for v in c) for c in row] for row in image.get_array()]
    assert found == expected
