"""The page: complete, inert to hostile texts, without any outside resource."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from synthetic_run import EVIL, make_run
from typer.testing import CliRunner

from rbalign.cli import pipeline
from rbalign.config.sections import ReportConfig
from rbalign.errors import DataError, UsageError
from rbalign.report import charts, drawing, markdown, samples, tables
from rbalign.report.page import build, read_results
from rbalign.report.pivot import CURVES, UNITS, Results
from rbalign.report.samples import script_json
from rbalign.types import View, ViewSpec


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "demo")
    build(folder, ReportConfig(samples=15, single_file=3))
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
        "verdict", "table", "differences", "gap", "length", "consistency", "voices", "training", "samples", "method",
    }  # fmt: skip
    links = {a["href"] for tag, a in elements.found if tag == "a" and a["href"].startswith("#")}
    assert links == {f"#{name}" for name in sections} | {"#main"}


def figures_of(page):
    """(caption, what a screen reader says, texts drawn) of every figure."""
    found = []
    for block in re.findall(r"<figure>(.*?)</figure>", page, re.DOTALL):
        caption = re.search(r"<figcaption>(.*?)</figcaption>", block)[1]
        said = re.search(r'<svg role="img" aria-label="([^"]*)"', block)[1]
        found.append((caption, said, [text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", block)]))
    return found


def test_every_figure_has_a_title_axes_with_units_and_its_numbers_in_words(page):
    figures = figures_of(page)
    captions = " | ".join(caption for caption, _, _ in figures)
    for title in (
        "Differences in chrF, 95 % intervals",
        "Where the gap lies in chrF",
        "Gap to reading by voice, chrF",
        "Length against wins over base, chrF",
        "Consistency against quality",
        "Loss over updates",
    ):
        assert title in captions
    units = [*UNITS.values(), *(unit for _, unit in CURVES.values())]
    for caption, said, drawn in figures:
        assert re.search(r"\d\.\d|\d %", said), caption
        assert any(unit in text for unit in units for text in drawn), (caption, drawn)
        assert len([text for text in drawn if re.fullmatch(r"[−\d.]+", text)]) >= 3, caption  # ticks
    assert len(figures) == len(re.findall("<svg", page))


def test_figures_show_every_arm(page, run):
    arms = read_results(run).arms()
    ladder = next(drawn for caption, _, drawn in figures_of(page) if caption.startswith("Where the gap lies"))
    assert set(arms) <= set(ladder)
    voices = next(drawn for caption, _, drawn in figures_of(page) if caption.startswith("Gap to reading"))
    assert {"base", "sft", "kd", "rba-single", "rba-group", "text (reads)", "af_sarah", "bm_lewis"} <= set(voices)
    assert all(f"</i>{arm}</th>" in page for arm in arms)


def test_arms_stand_out_on_light_and_on_dark():
    css = Path(charts.__file__).with_name("templates").joinpath("page.css").read_text()
    light, dark = re.findall(r"--paper: (#[0-9a-f]{6})", css)[:2]

    def luminance(code):
        parts = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for shade in (*drawing.COLOURS.values(), *drawing.SPARE):  # WCAG 2.1, 1.4.11
        assert (luminance(light) + 0.05) / (luminance(shade) + 0.05) >= 3, shade
        assert (luminance(shade) + 0.05) / (luminance(dark) + 0.05) >= 3, shade


def test_win_shares_have_the_interval_of_the_sign_test():
    share = charts.win_share(15, 5)
    assert share["value"] == 75
    # Clopper and Pearson's, from the quantiles of Beta(15, 6) and Beta(16, 5).
    assert (share["ci_low"], share["ci_high"]) == (pytest.approx(50.895, abs=0.01), pytest.approx(91.343, abs=0.01))


def test_no_length_figure_without_a_comparison_with_base():
    rows = [
        {"arm": arm, "task": "open", "metric": "tokens", "seed": None, "value": 20.0, "ci_low": 19.0, "ci_high": 21.0}
        for arm in ("base", "sft")
    ]
    pair = {"a": "sft", "b": "base", "metric": "chrf", "task": "open", "wins": 0, "losses": 0, "ties": 9}
    assert charts.length_against_win(Results({"rows": rows, "comparisons": [pair]}), "chrf") is None
    drawn = charts.length_against_win(Results({"rows": rows, "comparisons": [{**pair, "wins": 6}]}), "chrf")
    assert "base has 20.0 tokens; sft 20.0 tokens, wins 100 % (54 to 100)" in drawn.alt


def test_nothing_comes_from_outside(page, elements):
    for tag, attributes in elements.found:
        for name in ("src", "href", "xlink:href", "data", "action"):
            value = attributes.get(name) or ""
            assert not re.match(r"(https?:)?//", value), (tag, value)
    without_namespaces = re.sub(r'(xmlns(:\w+)?|rdf:resource|rdf:about)="[^"]*"', "", page)
    assert not re.search(r"url\(\s*['\"]?(https?:|//)|@import", without_namespaces)


def test_tables_can_be_read_aloud_and_scrolled_by_keyboard(page, elements):
    regions = [a for tag, a in elements.found if a.get("class") == "scroll"]
    assert [a["aria-label"] for a in regions] == [
        "Every arm under every metric",
        "Paired comparisons",
        "Gap closed",
        "Consistency between voices",
        "chrF by voice",
    ]
    assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in regions)
    assert len(re.findall("<caption>", page)) == len(regions)
    assert all("scope" in a for tag, a in elements.found if tag == "th")
    labelled = re.sub(r"<label>.*?</label>", "", page, flags=re.DOTALL)
    assert not re.search("<(input|select)", labelled)


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
    single = (run / "report" / "single.html").read_text()
    assert EVIL not in single
    assert len(re.findall("<script", single)) == 2


def load_items(run):
    items = []
    for path in sorted((run / "report").glob("samples-*.js")):
        text = path.read_text()
        items += json.loads(text.removeprefix("rbaSamples(").removesuffix(");\n"))
    return items


def test_samples_hold_every_arm_and_the_clip(run, page):
    items = load_items(run)
    assert len(items) == 15
    assert "const CHUNKS = 1, COUNT = 15, INLINE = [];" in page
    for item in items:
        assert len(item["views"]) == 4
        for view in item["views"]:
            names = [answer["name"] for answer in view["answers"]]
            assert names[0] == "base"
            assert {"sft-s0", "kd-s0", "rba-single-s0", "rba-group-s0", "text", "cascade", "self-cascade"} < set(names)
            data = (run / "report" / view["audio"]).read_bytes()
            assert data[:4] == b"fLaC"
            assert view["seconds"] == 0.5
            aside = [answer["name"] for answer in view["aside"]]
            assert aside == (["kd-s0", "rba-group-s0", "rba-single-s0", "sft-s0"] if view["index"] == 0 else [])
        assert set(item["gains"]) >= {"sft-s0", "text"}


def test_samples_lie_in_files_of_fifty(tmp_path):
    items = [{"id": str(i)} for i in range(120)]
    assert samples.write_chunks(tmp_path, items) == 3
    assert samples.write_chunks(tmp_path, items[:60]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples-0.js", "samples-1.js"]
    assert '"id": "49"}]' in (tmp_path / "samples-0.js").read_text()


def test_a_single_file_holds_a_few_samples_and_their_clips(run):
    page = (run / "report" / "single.html").read_text()
    items = json.loads(re.search(r"INLINE = (\[.*\]);</script>", page)[1])
    assert len(items) == 3
    assert items == [{**item, "views": items[i]["views"]} for i, item in enumerate(load_items(run)[:3])]
    for item in items:
        for view in item["views"]:
            kind, data = view["audio"].split(",")
            assert kind == "data:audio/flac;base64"
            assert base64.b64decode(data)[:4] == b"fLaC"
    assert "CHUNKS = 0" in page
    assert "samples-0" not in page
    assert 'href="report.md"' not in page
    assert "media-src data:" in page


def test_a_view_is_called_by_all_that_is_not_plain_about_it():
    assert samples.condition(ViewSpec("af_sarah")) == "af_sarah"
    assert samples.condition(ViewSpec("af_sarah", 1.2, "telephone", "stutter")) == "af_sarah, telephone, stutter, 1.2x"


def test_samples_can_be_filtered_by_what_went_wrong():
    def row(score, stop="end"):
        return {"score": score, "stop": stop}

    answers = {("e", 0): {"base": row(1.0), "sft": row(0.0)}, ("e", 1): {"base": row(1.0), "sft": row(0.0, "length")}}
    assert samples._flags("qa", "e", [0, 1], answers) == ["cut answer"]
    answers["e", 1]["base"] = row(0.0, "error")
    assert samples._flags("qa", "e", [0, 1], answers) == ["cut answer", "failed answer", samples.FLIPS]
    assert samples._flags("open", "e", [0, 1], answers) == ["cut answer", "failed answer"]


def test_opus_clips_are_called_by_their_name(tmp_path):
    items = [{"task": "open", "id": "e/../x", "views": [{"index": 0, "audio": None}, {"index": 1, "audio": None}]}]
    views = {
        ("open", f"e/../x/{i}"): View("e/../x", i, "test", ViewSpec("v"), 1.0, clip)
        for i, clip in enumerate((b"OggS..", b""))
    }
    samples.write_audio(tmp_path / "audio", items, views)
    assert [view["audio"] for view in items[0]["views"]] == ["audio/0000-e____x-0.ogg", None]
    assert [path.name for path in (tmp_path / "audio").iterdir()] == ["0000-e____x-0.ogg"]


def test_markdown_and_json_hold_the_same_numbers(run):
    text = (run / "report" / "report.md").read_text()
    results = read_results(run)
    assert json.loads((run / "report" / "results.json").read_text()) == results.value
    row = results.find("rba-group", "chrf")
    cell = f"{row['value']:.3f} ({row['ci_low']:.3f} to {row['ci_high']:.3f})"
    assert re.search(rf"^\| rba-group \| {re.escape(cell)} \|", text, re.MULTILINE)
    assert text.count("\n| rba-group − base |") == len(
        [r for r in results.comparisons if r["a"] == "rba-group" and r["b"] == "base"]
    )
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert "<" not in text


def test_markdown_cannot_be_broken_out_of():
    assert markdown.plain("a|b\n<i> *x* [y](z) `c`") == r"a\|b &lt;i> \*x\* \[y\](z) \`c\`"


def test_drawing_again_replaces_what_was_there(run, tmp_path):
    before = (run / "report" / "index.html").read_text()
    build(run, ReportConfig(samples=5, audio=False))
    assert len(list((run / "report").glob("samples-*.js"))) == 1
    assert not (run / "report" / "audio").exists()
    assert all(view["audio"] is None for item in load_items(run) for view in item["views"])
    assert not (run / "report" / "single.html").exists()
    build(run, ReportConfig(samples=15, single_file=3))
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


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["--single-file"], ["--report.single_file", "8"]),
        (["--single-file", "--report.single_file", "2"], ["--report.single_file", "2"]),
        ([], []),
    ],
)
def test_single_file_is_short_for_a_key_of_the_recipe(monkeypatch, words, asked):
    seen = []
    monkeypatch.setattr(pipeline, "execute", lambda *given: seen.append(given))
    app = typer.Typer()
    pipeline.register(app)
    result = CliRunner().invoke(app, ["report", "quickstart", *words])
    assert result.exit_code == 0, result.output
    assert seen == [("quickstart", asked, Path("runs"), None, False, "report")]
