"""Findings and reports: order, verdicts, saving and reading, escaped text, and what an import loads."""

import json
import pickle
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from glacier_nb.plot.colours import LINE_COLOURS
from glacier_nb.report.figures import _spread_labels, bar_chart, image_row, line_chart
from glacier_nb.report.findings import _SYMPTOMS, CAUSES, CheckResult, Finding, Status
from glacier_nb.report.report import FatalFinding, Report

NASTY = "<script>alert('a & b')</script> | `x` *y* [z](w)"


def finding(cause="starved", severity="warning", change=None, picture=None, **more):
    "A finding with text in each field."
    picture = picture or (None,)
    return Finding(cause, severity, f"Evidence of {cause}.", f"Fix {cause}.", more, change or {}, *picture)


BAR = partial(bar_chart, {"a": 1.0}, "y"), "A bar."


PASSED = CheckResult("bands", Status.PASSED, 1.0)


def report(*findings, checks=(PASSED,), **more):
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
    assert list(made) == sorted(found)


def test_every_finding_is_a_cause_or_a_symptom():
    made = report(*[finding(c) for c in CAUSES])
    assert [f.cause for f in made.symptoms] == list(_SYMPTOMS)
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


DONE, NOT_DONE = CheckResult("a", Status.PASSED), CheckResult("b", Status.SKIPPED, reason="no label")
VERDICTS = [
    ((), [DONE] * 14, "You can train. 14 checks found nothing."),
    ((), [], "no check was done"),
    ((), [NOT_DONE], "no check was done"),
    ((), [DONE, NOT_DONE], "1 check was done, 1 not: b (no label)."),
    (
        [finding(severity="note")],
        [DONE],
        "You can train. 1 check found no error and no warning, but 1 note: too few optimizer steps.",
    ),
    (
        [finding("tiles-left-out", "note"), finding("noise", "note")],
        [DONE],
        "no error and no warning, but 2 notes, the first: some tiles have no label or no data.",
    ),
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
    for text in (repr(made), str(made), made.markdown(), made._repr_html_()):
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
    shown = partial(bar_chart, {NASTY: 1.0}, NASTY)
    bad = Finding("starved", "fatal", NASTY, NASTY, {}, {"run": NASTY}, shown, NASTY)
    symptom = Finding("noise", "note", NASTY, NASTY)
    checks = [CheckResult(NASTY, Status.SKIPPED, reason=NASTY)]
    made = Report(NASTY, {}, [bad, symptom], checks, {NASTY: NASTY})
    page = Page(made._repr_html_())
    assert "script" not in page.tags
    assert page.alts == [NASTY]
    assert "script" not in Page(bad._repr_html_()).tags
    text = made.markdown()
    outside = text.replace(f"run = {NASTY!r}", "")
    assert "<script" not in outside
    assert "[z](w)" not in outside
    assert "| `x`" not in outside


def test_lines_of_text_fit_a_terminal():
    made = report(Finding("starved", "warning", "word " * 200, "more " * 90), facts={"tiles": 25})
    assert max(map(len, str(made).splitlines())) <= 100


def test_logs_hold_a_few_lines():
    many = [
        Finding(c, "warning", "word " * 99, "more " * 99, change={"lr": 1e-3}, picture=BAR[0]) for c in CAUSES
    ]
    shown = repr(report(*many, cfg=dict.fromkeys("abcdefgh", "value")))
    assert len(shown.splitlines()) <= 10
    assert max(map(len, shown.splitlines())) <= 100
    assert f"{len(CAUSES)} warnings" in shown
    assert f"and {len(CAUSES) - 4} more" in shown
    assert len(repr(many[0])) < 140


def test_a_picture_is_drawn_when_it_is_shown():
    drawn = []

    def chart():
        drawn.append(1)
        return bar_chart({"a": 1.0}, "y")

    made = report(finding(picture=(chart, "A bar.")))
    assert "Evidence of starved." in str(made) + made.markdown() + json.dumps(made.to_dict())
    assert drawn == []
    assert "data:image/png" in made._repr_html_()
    assert drawn == [1]
    there = pickle.loads(pickle.dumps(finding(picture=BAR)))
    assert there.png() == finding(picture=BAR).png()


def test_round_trip(tmp_path):
    shown = partial(line_chart, [1, 2], {"MCC": [0.1, np.nan]}, "epoch", "MCC"), "It falls."
    found = [finding("peaked", picture=shown, change={"epochs": 9}, best=np.float32(0.5), of=np.arange(2))]
    found += [finding("peaked", "note", picture=shown), finding("noise", "note")]
    made = report(*found, cfg={"encoder_weights": None, "lr": 1e-3}, facts={"tiles": np.int64(25)})
    made.save(tmp_path)
    names = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert names == [
        "diagnosis.json", "diagnosis.md", "figures/diagnosis-peaked-2.png", "figures/diagnosis-peaked.png",
    ]  # fmt: skip
    again = Report.read(tmp_path)
    assert again.to_dict() == made.to_dict()
    assert again.checks == made.checks
    assert again.findings[0].png() == made.findings[0].png()
    assert Report.from_dict(made.to_dict()).findings[0].picture is None
    again.save(tmp_path)  # into the folder that its pictures lie in
    assert Report.read(tmp_path / "diagnosis.json").to_dict() == made.to_dict()
    (tmp_path / "figures/diagnosis-peaked.png").unlink()
    assert "is missing." in again._repr_html_()


def test_json_is_strict():
    made = report(finding(a=np.nan, b=np.float32(np.inf), c=np.array([1.0, np.nan])), facts={"MCC": np.nan})
    record = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert record["findings"][0]["numbers"] == {"a": None, "b": None, "c": [1.0, None]}
    assert record["facts"] == {"MCC": None}
    with pytest.raises(ValueError, match="starved: a: found type object"):
        finding(a=object())
    with pytest.raises(ValueError, match="starved: lr = nan"):
        finding(change={"lr": float("nan")})


def test_a_failed_save_changes_no_file(tmp_path):
    report(finding(picture=BAR)).save(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    broken = finding("lr-high", picture=(partial(bar_chart, {"a": "no number"}, "y"), ""))
    with pytest.raises(ValueError, match="could not convert"):
        report(finding(picture=BAR), broken).save(tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    report().save(tmp_path)
    assert list((tmp_path / "figures").iterdir()) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"title": "a"}', '{"findings": [{"cause": "x"}]}'])
def test_other_files_are_not_reports(tmp_path, text):
    (tmp_path / "diagnosis.json").write_text(text)
    with pytest.raises(ValueError, match=r"diagnosis\.json: .*; run the diagnosis again"):
        Report.read(tmp_path)


def test_a_report_of_an_earlier_version_is_refused(tmp_path):
    path = report().save(tmp_path)
    record = json.loads(path.read_text())
    record["checks"] = [{"name": "bands", "seconds": 1.0, "outcome": "nothing found"}]
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"not a report of this version .*; run the diagnosis again"):
        Report.read(tmp_path)


def test_reports_import_no_matplotlib():
    code = (
        "import sys, glacier_nb.report.figures, glacier_nb.report.findings, glacier_nb.report.report as r\n"
        "str(r.Report('a')), r.Report('a').markdown(), r.Report('a')._repr_html_()\n"
        "assert not [m for m in sys.modules if m.startswith('matplotlib')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_drawing_imports_no_pyplot():
    code = (
        "import sys\nfrom glacier_nb.report.figures import bar_chart, image_row, line_chart\n"
        "bar_chart({'a': {'b': 1.0}}, 'y', {'level': 2}, log=True)\n"
        "line_chart([1, 2], {'a': [1, 2]}, 'x', 'y')\n"
        "image_row({'a': [[True]], 'b': [[1.0]]})\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_labels_are_spread_in_order():
    rng = np.random.default_rng(0)
    for n in range(6):
        wanted = rng.random(n)
        placed = _spread_labels(wanted, 0.15)
        order = np.argsort(wanted)
        assert (np.diff(placed[order]) >= 0.15 - 1e-9).all()
    np.testing.assert_allclose(_spread_labels([0.1, 0.9], 0.15), [0.1, 0.9])


def test_bars_have_the_length_of_their_values():
    heights = {"a": {"x": 1.0, "y": 2.0}, "b": {"x": 3.0, "y": np.nan}}
    ax = bar_chart(heights, "y").axes[0]
    assert sorted(p.get_width() for p in ax.patches) == [1.0, 2.0, 3.0]
    texts = [t.get_text() for t in ax.texts]
    assert sorted(texts) == ["1", "2", "3", "no value"]


def test_images_show_masks_and_missing_numbers():
    mask = np.array([[True, False], [False, True]])
    figure = image_row({"mask": mask, "number": np.array([[1.0, np.nan], [2.0, 3.0]])})
    shown, number = (ax.images[0] for ax in figure.axes[:2])
    blue, grey = to_rgba(LINE_COLOURS[0]), to_rgba("0.93")
    np.testing.assert_allclose(shown.to_rgba(shown.get_array()), [[blue, grey], [grey, blue]], atol=1 / 255)
    assert number.get_array().mask.tolist() == [[False, True], [False, False]]
