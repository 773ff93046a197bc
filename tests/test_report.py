"""The page: complete, inert to hostile texts, without any outside resource."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic_run import EVIL, make_run

from rbalign.config.sections import ReportConfig
from rbalign.errors import DataError, UsageError
from rbalign.report import tables
from rbalign.report.page import build, read_results
from rbalign.report.pivot import Results
from rbalign.report.samples import script_json


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "demo")
    build(folder, ReportConfig(samples=15))
    return folder


class Elements(HTMLParser):
    """Collects elements, and checks that open tags are closed."""

    VOID = frozenset(["meta", "input", "br", "path", "use", "line", "rect", "circle", "polygon", "polyline"])

    def __init__(self):
        super().__init__()
        self.found, self.open, self.ids = [], [], []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(run):
    return (run / "report" / "index.html").read_text()


@pytest.fixture(scope="module")
def elements(page):
    parser = Elements()
    parser.feed(page)
    assert parser.open == []
    return parser


def test_every_section_and_figure_is_there(elements):
    sections = {a["id"] for tag, a in elements.found if tag == "section"}
    assert sections == {
        "verdict", "table", "differences", "gap", "consistency", "voices", "training", "samples", "method",
    }  # fmt: skip
    links = {a["href"] for tag, a in elements.found if tag == "a" and a["href"].startswith("#")}
    assert {f"#{name}" for name in sections} == links
    figures = [a["aria-label"] for tag, a in elements.found if tag == "svg"]
    assert any("Differences" in title for title in figures)
    assert any("Gap decomposition" in title for title in figures)
    assert any("loss over updates" in title for title in figures)


def test_nothing_comes_from_outside(page, elements):
    for tag, attributes in elements.found:
        for name in ("src", "href", "xlink:href", "data", "action"):
            value = attributes.get(name) or ""
            assert not re.match(r"(https?:)?//", value), (tag, value)
    without_namespaces = re.sub(r'(xmlns(:\w+)?|rdf:resource|rdf:about)="[^"]*"', "", page)
    assert not re.search(r"url\(\s*['\"]?(https?:|//)|@import", without_namespaces)


def test_hostile_texts_are_inert(run, page, elements):
    assert EVIL not in page
    assert "&lt;/script&gt;" in page
    assert [tag for tag, _ in elements.found].count("script") == 2
    assert not [a for tag, a in elements.found if tag == "img"]
    for path in (run / "report").glob("samples-*.js"):
        assert "<" not in path.read_text()
        assert "\u2028" not in path.read_text()
    assert "<" not in script_json(EVIL)
    assert json.loads(script_json(EVIL)) == EVIL


def load_items(run):
    items = []
    for path in sorted((run / "report").glob("samples-*.js")):
        text = path.read_text()
        items += json.loads(text.removeprefix("rbaSamples(").removesuffix(");\n"))
    return items


def test_samples_hold_every_arm_and_the_clip(run, page):
    items = load_items(run)
    assert len(items) == 15
    assert "const CHUNKS = 2;" in page
    for item in items:
        assert len(item["views"]) == 4
        for view in item["views"]:
            names = [answer["name"] for answer in view["answers"]]
            assert names[0] == "base"
            assert {"sft-s0", "kd-s0", "rba-single-s0", "rba-group-s0", "text", "cascade", "self-cascade"} < set(names)
            data = (run / "report" / view["audio"]).read_bytes()
            assert data[:4] == b"fLaC"
            assert view["seconds"] == 0.5
        assert set(item["gains"]) >= {"sft-s0", "text"}


def test_drawing_again_replaces_what_was_there(run, tmp_path):
    before = (run / "report" / "index.html").read_text()
    build(run, ReportConfig(samples=5, audio=False))
    assert len(list((run / "report").glob("samples-*.js"))) == 1
    assert not (run / "report" / "audio").exists()
    assert all(view["audio"] is None for item in load_items(run) for view in item["views"])
    build(run, ReportConfig(samples=15))
    assert (run / "report" / "index.html").read_text() == before


def test_numbers_on_the_page_are_those_of_results(run, page):
    results = read_results(run)
    row = results.find("rba-group", "chrf")
    assert f"{row['value']:.3f}" in page
    text = "\n".join(line["text"] for line in tables.verdict(results))
    assert "reading beats hearing by +0.1" in text
    assert "rba-group against base: chrF better, +0.0" in text
    assert "rba-group against sft" in text
    assert "sft against kd" not in text
    marked = tables.main_table(results)
    likelihood = [c["label"] for c in marked["columns"]].index("teacher likelihood")
    flags = {line["arm"]: line["cells"][likelihood]["optimised"] for line in marked["lines"]}
    assert flags["sft"]
    assert not flags["base"]
    best = [line["arm"] for line in marked["lines"] if line["cells"][0]["best"]]
    assert best == ["rba-group"]


def test_a_verdict_says_what_hearing_costs_in_answers():
    def row(task, value, low, high):
        where = {"arm": "base", "metric": "qa/where-text-right", "task": task, "seed": None, "n": 33}
        return where | {"value": value, "ci_low": low, "ci_high": high}

    right = row("qa", 0.4848, 0.325, 0.6451)
    said = "Of 33 questions that reading answers rightly, hearing answers 48 % (32 to 65) rightly"
    (alone,) = tables._questions_kept(Results({"rows": [right]}))
    assert alone["text"] == f"{said}."
    (both,) = tables._questions_kept(Results({"rows": [right, row("qa-wrong-audio", 0.0, 0.0, 0.0)]}))
    assert both["text"] == f"{said}; with another question's audio 0 % (0 to 0)."
    assert tables._questions_kept(Results({"rows": []})) == []


@pytest.mark.parametrize(("metric", "embedder"), [("wordllama", "wordllama"), ("similarity", "minilm")])
def test_the_main_table_shows_the_sides_of_the_similarity_that_there_is(metric, embedder):
    sides = [("open-text", metric), ("open", f"{metric}/worst-voice"), ("open", f"consistency:{embedder}/headline")]
    rows = [
        {"arm": "base", "seed": 0, "task": task, "metric": name, "value": 0.5}
        for task, name in [("open", metric), *sides]
    ]
    assert Results({"rows": rows}).columns() == [("open", metric), *sides]


def test_a_verdict_does_not_claim_what_is_open():
    row = {"metric": "chrf", "difference": 0.05, "ci_low": 0.01, "ci_high": 0.09, "p_holm": 0.06}
    line = tables._sentence("sft", "base", [row])
    assert line["kind"] == "open"
    assert "no clear difference" in line["text"]
    sure = {**row, "p_holm": 0.01}
    assert tables._sentence("sft", "base", [sure, row])["kind"] == "up"
    assert tables._sentence("sft", "base", [{**sure, "difference": -0.05}])["kind"] == "down"
    assert tables._sentence("sft", "base", [sure, {**sure, "difference": -0.05}])["kind"] == "open"
    assert tables._sentence("sft", "base", [{**sure, "metric": "wer", "difference": -0.05}])["kind"] == "up"


def test_missing_and_damaged_results_are_named(tmp_path):
    with pytest.raises(UsageError, match="no results"):
        build(tmp_path, ReportConfig())
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(DataError, match="not a table"):
        build(tmp_path, ReportConfig())


def test_thin_results_still_make_a_page(tmp_path):
    row = {
        "arm": "base", "task": "open", "metric": "chrf", "value": None, "ci_low": None, "ci_high": None, "n": 0,
        "reference": "", "protocol": "", "optimised": False, "seed": None,
    }  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps({"rows": [row]}))
    page = build(tmp_path, ReportConfig()).read_text()
    assert "No headline comparison" in page
    assert 'id="samples"' not in page


def test_report_imports_no_torch(run: Path):
    code = (
        "import sys; from pathlib import Path; from rbalign.report.page import build; "
        "from rbalign.config.sections import ReportConfig; "
        f"build(Path({str(run)!r}), ReportConfig(samples=15)); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
