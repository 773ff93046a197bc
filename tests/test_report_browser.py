"""The page in a real browser: opened from the disk as by a double click, on a phone, in print, in the dark.

Not part of CI: a browser is 100 MB and 25 packages of Debian for root to install, which nothing else here asks of a
machine; tests/test_report.py checks all that can be checked without one. To run it:

    pip install -e '.[browser]' && apt-get install chromium && pytest tests/test_report_browser.py
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from synthetic_run import EVIL, clip, make_run

from rbalign.config.sections import ReportConfig
from rbalign.report import benchmarks, samples
from rbalign.report import page as report
from rbalign.report.benchmarks import Evaluated, Question, TaskAnswers
from rbalign.report.dataset import Heard, Shown
from rbalign.report.dataset import build as build_dataset
from rbalign.report.document import render
from rbalign.types import Example, View, ViewSpec

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install 'rbalign[browser]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SAMPLES = 5000


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        if CHROMIUM is None and not Path(driver.chromium.executable_path).exists():
            pytest.skip("no Chromium on the PATH, nor playwright's own: apt-get install chromium")
        opened = driver.chromium.launch(executable_path=CHROMIUM)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report of 5,000 samples: those of a small run again and again, each under its own name."""
    run = make_run(tmp_path_factory.mktemp("runs") / "demo")
    report.build(run, ReportConfig(samples=40, single_file=2))
    made = run / "report"
    text = (made / "samples-0.js").read_text()
    some = json.loads(text.removeprefix("rbaSamples(").removesuffix(");\n"))
    items = [{**some[i % len(some)], "id": f"item-{i}"} for i in range(SAMPLES)]
    items[-1] = {**items[-1], "instruction": "the needle", "flags": ["cut answer"]}
    page = report.page_of(run, report.read_results(run), [])
    (made / "index.html").write_text(render(page, items, samples.write_chunks(made, items)))
    return made


@pytest.fixture
def opened(browser, folder, request):
    """The open page; `asked` are the names of the files that it read, `faults` what went wrong in it."""
    settings = {"viewport": {"width": 1280, "height": 800}, **getattr(request, "param", {})}
    context = browser.new_context(offline=True, **settings)
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.asked, page.faults = [], []
    page.on("request", lambda one: page.asked.append(one.url))
    page.on("pageerror", lambda one: page.faults.append(str(one)))
    page.on("console", lambda one: page.faults.append(one.text) if one.type == "error" else None)
    page.goto((folder / "index.html").as_uri())
    page.locator(".card").first.wait_for()
    yield page
    assert page.faults == []
    assert page.evaluate("window.owned") is None
    assert all(url.startswith(("file:", "data:")) for url in page.asked)
    context.close()


def names(page):
    return [url.rsplit("/", 1)[1] for url in page.asked]


def until(page, expression):
    """Wait for something to be true; Playwright's own way evaluates text, which the page's policy forbids."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never true: {expression}")


def test_opening_reads_one_file_of_samples_and_no_clip(opened):
    assert names(opened) == ["index.html", "samples-0.js"]
    assert opened.locator(".card").count() == 10
    assert opened.locator("audio").count() == 0
    assert opened.locator("#count").text_content() == f"10 of {SAMPLES} shown"


def test_a_search_finds_the_last_of_5000(opened):
    opened.fill("#search", "NEEDLE the")
    opened.get_by_text("1 of 1 shown").wait_for()
    assert opened.locator(".card h3").text_content().startswith("the needle")
    assert len([name for name in names(opened) if name.startswith("samples-")]) == SAMPLES // samples.CHUNK
    assert opened.locator("#more").is_hidden()


def test_filters_and_order_pick_samples(opened, folder):
    opened.select_option("#flag", "cut answer")
    opened.get_by_text("1 of 1 shown").wait_for()
    opened.select_option("#flag", "")
    opened.select_option("#voice", "bm_lewis")
    opened.get_by_text(f"10 of {SAMPLES} shown").wait_for()
    assert opened.locator(".card").first.locator("[aria-pressed=true]").text_content() == "bm_lewis"
    opened.select_option("#order", "-rba-group-s0")
    text = (folder / "samples-0.js").read_text()
    some = json.loads(text.removeprefix("rbaSamples(").removesuffix(");\n"))
    worst = min(some, key=lambda item: item["gains"]["rba-group-s0"])
    opened.locator(".card").first.get_by_text(worst["id"], exact=False).wait_for()


def test_every_arm_stands_side_by_side_and_texts_are_texts(opened):
    card = opened.locator(".card").first
    shown = [
        re.sub(r"[\d.]+(, \w+)?$", "", text) for text in card.locator(".answers").first.locator("b").all_text_contents()
    ]
    assert shown[0] == "y_ref"
    assert [name for name in shown if name in ("base", "text", "cascade", "self-cascade")] == [
        "base", "text", "cascade", "self-cascade",
    ]  # fmt: skip
    opened.fill("#search", "onerror=window.owned")
    until(opened, f"document.getElementById('cards').textContent.includes({json.dumps(EVIL)})")


def test_a_clip_is_read_when_it_is_played_by_keyboard_too(opened):
    play = opened.get_by_role("button", name="Play").first
    assert re.fullmatch(r"Play \w+, 0\.5 seconds", play.get_attribute("aria-label"))
    play.focus()
    opened.keyboard.press("Enter")
    until(opened, "document.querySelector('audio')?.duration > 0.4")
    assert opened.evaluate("document.activeElement.tagName") == "AUDIO"
    assert names(opened)[-1].endswith(".flac")


def test_show_more_keeps_what_is_there_and_moves_the_focus_on(opened):
    opened.locator(".card").first.evaluate("card => { card.dataset.mark = 'kept'; }")
    opened.locator("#more").click()
    until(opened, "document.querySelectorAll('.card').length === 20")
    assert opened.locator("[data-mark=kept]").count() == 1
    assert opened.evaluate("[...document.querySelectorAll('.card')].indexOf(document.activeElement)") == 10


@pytest.mark.parametrize("opened", [{"viewport": {"width": 360, "height": 740}}], indirect=True)
def test_a_phone_shows_it_without_sideways_scrolling_and_figures_can_be_read(opened):
    assert opened.evaluate("document.documentElement.scrollWidth") == 360
    sizes = opened.evaluate(
        "[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect()).map(r => [r.left, r.right])"
    )
    assert all(left >= -1 and right <= 361 for left, right in sizes)
    scale = opened.evaluate(
        "(s => s.getBoundingClientRect().width / s.viewBox.baseVal.width)(document.querySelector('svg'))"
    )
    assert 9 * scale >= 8  # CSS pixels of the smallest letters, drawn with 9 points
    low = opened.evaluate(
        "[...document.querySelectorAll('#samples button')].filter(b => b.offsetHeight && b.offsetHeight < 40).length"
    )
    assert low == 0


def test_print_has_figures_and_tables_and_no_players(opened):
    opened.emulate_media(media="print", color_scheme="dark")
    assert opened.locator("#samples").is_hidden()
    assert opened.locator("nav").is_hidden()
    assert all(figure.is_visible() for figure in opened.locator("figure").all())
    assert opened.locator("#table table").is_visible()
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    width = opened.evaluate("document.querySelector('#table table').offsetWidth")
    assert width <= 1280
    assert len(opened.pdf()) > 10_000


def made_evaluation():
    """The page of `rba eval --model` with a hostile name and answer."""
    views = [View(f"e{i}", 0, "test", ViewSpec(v), 0.5, clip(i)) for i, v in enumerate(("af_sarah", "am_michael"))]
    questions = [Question(f"e{i}", f"e{i}", "", f"Question {i}?", {"accepted": "tea"}, views[i]) for i in range(2)]
    answers = {
        name: {one.id: {"response": text, "status": "answered", "scores": {"accuracy": 1.0}} for one in questions}
        for name, text in (("mine", "tea"), ("<i>", EVIL))
    }
    shared = {"task": "t", "ci_low": 20.0, "ci_high": 80.0, "n": 2, "optimised": False}
    figures = [
        {"model": model, "metric": metric, "part": part, "value": 50.0, "unit": "%", **shared}
        for model in answers
        for metric, part in (("accuracy", ""), ("accuracy", "clean"), ("accuracy", "noise:pink"))
    ]
    row = {
        "a": "mine",
        "b": EVIL,
        "metric": "accuracy",
        "part": "",
        "difference": 50.0,
        "wins": 1,
        "losses": 0,
        "ties": 1,
    }
    row |= {
        "sign_p": 1.0,
        "p": 0.4,
        "p_holm": 0.4,
        "headline": True,
        "unit": "%",
        "lower_is_better": False,
        "optimised": False,
    }
    tasks = [TaskAnswers("t", questions, answers, "accuracy")]
    return Evaluated("mine", EVIL, list(answers), {"t": EVIL}, figures, [shared | row], [("by", EVIL)], tasks)


@pytest.mark.parametrize("width", [360, 1280])
def test_an_evaluation_has_such_a_page_too(browser, tmp_path, width):
    index = benchmarks.build(tmp_path, made_evaluation(), ReportConfig(samples=2))
    page, faults = browser.new_context(offline=True, viewport={"width": width, "height": 740}).new_page(), []
    page.on("pageerror", lambda one: faults.append(str(one)))
    page.on("console", lambda one: faults.append(one.text) if one.type == "error" else None)
    page.goto(index.as_uri())
    page.locator(".card").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(CONTRAST) >= 4.5
    assert page.locator("figure svg").count() == 2
    page.get_by_role("button", name="Play").first.click()
    until(page, "document.querySelector('audio')?.duration > 0.4")
    assert (faults, page.evaluate("window.owned")) == ([], None)


def test_the_page_of_a_dataset_has_pictures_and_no_order_to_choose(browser, tmp_path):
    """Its cards have no arms, so there is nothing to sort by; a hostile instruction stays text."""
    example = Example("e0", "train", EVIL, "say it", "Well.")
    views = {"e0": [View("e0", i, "train", ViewSpec(v), 0.5, clip(i)) for i, v in enumerate(("hibari", "af_heart"))]}
    heard = {"e0/0": Heard(EVIL, 3, 2)}
    shown = Shown(EVIL, ["one"], {EVIL: 3}, {"instruction": [2, 3]}, [example], views, heard, [("by", EVIL)])
    index = build_dataset(tmp_path, shown)
    page, faults = browser.new_context(offline=True, viewport={"width": 360, "height": 740}).new_page(), []
    page.on("pageerror", lambda one: faults.append(str(one)))
    page.on("console", lambda one: faults.append(one.text) if one.type == "error" else None)
    page.goto(index.as_uri())
    page.locator(".card").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator("#order").count() == 0
    assert page.evaluate("document.querySelector('.picture').naturalHeight") == 128
    page.get_by_role("button", name="af_heart").first.click()
    page.get_by_role("button", name="Play").first.click()
    until(page, "document.querySelector('audio')?.duration > 0.4")
    page.locator("#search").fill("nothing like it")
    page.locator(".card").first.wait_for(state="detached")
    assert (faults, page.evaluate("window.owned")) == ([], None)


CONTRAST = """() => {
  const part = (x) => (x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((x) => part(x / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    while (node && /, 0\\)$/.test(getComputedStyle(node).backgroundColor)) node = node.parentElement;
    return node ? getComputedStyle(node).backgroundColor : "rgb(255, 255, 255)";
  };
  const ratio = (node) => {
    const [high, low] = [getComputedStyle(node).color, ground(node)].map(light).sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
  };
  const texts = "p, li, th, td, small, a, b, span, dt, dd, summary, button, label, figcaption, output";
  return Math.min(...[...document.querySelectorAll(texts)].map(ratio));
}"""


@pytest.mark.parametrize("opened", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True)
def test_text_stands_out_in_both_colour_schemes(opened):
    assert opened.evaluate(CONTRAST) >= 4.5  # WCAG 2.1, 1.4.3


def test_the_single_file_plays_alone(browser, folder, tmp_path):
    shutil.copy(folder / "single.html", tmp_path)
    page = browser.new_context(offline=True).new_page()
    faults = []
    page.on("pageerror", lambda one: faults.append(str(one)))
    page.on("console", lambda one: faults.append(one.text) if one.type == "error" else None)
    page.goto((tmp_path / "single.html").as_uri())
    page.get_by_role("button", name="Play").first.click()
    until(page, "document.querySelector('audio')?.duration > 0.4")
    assert page.locator(".card").count() == 2
    assert page.locator("#count").text_content() == "2 of 2 shown"
    assert faults == []
