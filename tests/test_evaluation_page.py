"""The page of `rba eval --model`: models side by side, differences by instruction, conditions, samples with clips."""

from __future__ import annotations

import html
import json
import re

import numpy as np
import pytest
from benchdata import FirstLetter

from rbalign.config.sections import ReportConfig, Sampling
from rbalign.errors import UsageError
from rbalign.eval.collect import Answered
from rbalign.eval.paired import LOWER_IS_BETTER
from rbalign.eval.tasks import measure
from rbalign.eval.tasks.scored import read_scored
from rbalign.report.benchmarks import Evaluated, build
from rbalign.stages import evaluation
from rbalign.stages.evaluation import Wanted, prepare
from rbalign.stages.evaluation_page import read_evaluation, side_by_side
from rbalign.stages.exams import Settings
from rbalign.stages.subjects import Subject

EVIL = "</script><script>window.owned=1</script>"
LIMIT = 10


class Answers:
    """Right where `wrong` does not hold; a reader is always right and says more."""

    def __init__(self, source, wrong):
        self.reads, self.wrong = source == "text", wrong

    def answer(self, items):
        return [Answered(self.one(item), "end") for item in items]

    def one(self, item):
        right = (item.example.labels.get("aliases") or [item.example.reference or "Ja."])[0]
        if self.reads:
            return f"{right}."
        return EVIL if self.wrong(item) else right


def noisy(item):
    return item.view.spec.channel.startswith("noise")


def odd(item):
    return item.view.spec.channel != "clean" or sum(map(ord, item.example.id)) % 2 == 1


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """Evaluate a fake model on smoke sets; voices are tones as long as the text."""

    def speak_many(given, workers):
        for job in given:
            yield job.id, (np.sin(np.arange(len(job.text) * 200) / 20) * 0.3).astype(np.float32)

    wrong = {"good": noisy, "poor": odd, "keen": noisy}
    trained = {"keen": frozenset({"chrf"})}
    monkeypatch.setenv("RBA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("rbalign.synth.speak.speak_many", speak_many)
    monkeypatch.setattr(measure, "build_embedder", lambda name: FirstLetter())
    monkeypatch.setattr(
        evaluation.LocalAnswering, "_new", lambda self, work: Answers(work.source, wrong[self.subject.name])
    )
    monkeypatch.setattr(
        evaluation,
        "subject_named",
        lambda name, _: Subject(name, f"{name}, a fake", name, None, optimised=trained.get(name, frozenset())),
    )

    def run(name, tasks=("smoke-qa", "smoke-views", "smoke-open"), baselines=(), limit=LIMIT, **settings):
        asked = Settings(Sampling(temperature=0.0, max_new_tokens=4), limit=limit, workers=1, **settings)
        out, page = tmp_path / name, ReportConfig(samples=4, single_file=1)
        wanted = Wanted(name, tasks, {}, out, asked, baselines=tuple(baselines), page=page)
        return out, prepare(wanted).run()

    return run


@pytest.fixture
def two(evaluate):
    """`poor` with the text reference, then `good` beside it."""
    poor, _ = evaluate("poor", references=("text",), judge="chrf")
    good, summary = evaluate("good", baselines=[poor], judge="chrf")
    return poor, good, summary


def samples(folder):
    found = []
    for path in sorted((folder / "report").glob("samples-*.js")):
        found += json.loads(path.read_text().removeprefix("rbaSamples(").removesuffix(");\n"))
    return found


def test_models_are_compared_by_instruction(two):
    poor, _, summary = two
    rows = {(row["b"], row["task"], row["metric"], row["part"]): row for row in summary["comparisons"]}
    assert {row["a"] for row in rows.values()} == {"good"}
    assert {row["b"] for row in rows.values()} == {"poor", "text"}
    views = rows["poor", "smoke-views", "score", ""]
    figures = {(one["task"], one["part"]): one["value"] for one in summary["figures"] if one["metric"] == "score"}
    ours = np.mean([figures["smoke-views", part] for part in ("clean", "noise:pink", "telephone", "fast", "slow")])
    theirs = read_scored(poor / "smoke-views" / "poor.json")["samples"]
    assert views["difference"] == pytest.approx(ours - 100 * np.mean([one["scores"]["score"] for one in theirs]))
    assert (views["headline"], views["n"]) == (True, LIMIT)
    assert views["p"] <= views["p_holm"] <= 1
    assert rows["poor", "smoke-views", "score", "fast"]["p_holm"] is None
    assert [row["b"] for row in summary["comparisons"] if row["headline"] and row["task"] == "smoke-qa"] == [
        "poor",
        "text",
    ]


def test_an_opponent_may_be_a_baselines_text_llm(two):
    poor, good, summary = two
    rates = [one for one in summary["figures"] if one["metric"].startswith("winrate")]
    assert [one["metric"] for one in rates] == ["winrate@text"]
    ours, theirs = (read_scored(folder / "smoke-open" / f"{folder.name}.json") for folder in (good, poor))
    assert ours["against"]["predictions"] == theirs["against"]["predictions"]
    rows = [row for row in summary["comparisons"] if row["task"] == "smoke-open"]
    assert [(row["b"], row["metric"], row["headline"], row["unit"]) for row in rows] == [
        ("poor", "chrf", False, ""),
        ("poor", "win", True, "%"),
        ("text", "chrf", True, ""),
    ]
    figures = {one["metric"]: one["value"] for one in summary["figures"] if one["task"] == "smoke-open"}
    reads = {one["metric"]: one["value"] for one in read_scored(poor / "smoke-open" / "text.json")["figures"]}
    assert rows[2]["difference"] == pytest.approx(figures["chrf"] - reads["chrf"], abs=2e-6)


def test_the_page_shows_everybody(two):
    _, good, _ = two
    page = (good / "report" / "index.html").read_text()
    for id_ in ("verdict", "tasks", "differences", "gap", "length", "samples", "method"):
        assert f'<section id="{id_}">' in page, id_
        assert f'href="#{id_}"' in page
    assert 'id="consistency"' not in page
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert "Differences in smoke-views score, %, 95 % intervals" in titles
    assert "smoke-views: score by condition" in titles
    assert "smoke-open: length against wins over text" in titles
    assert re.search(r"noise:pink: good 0\.0, poor 0\.0", page)
    report = (good / "report" / "report.md").read_text()
    assert "| figure | n | good | poor | text |" in report
    assert "| score noise:pink, % | 10 | 0.0 (0.0 to 0.0) | 0.0 (0.0 to 0.0) | 100.0 (100.0 to 100.0) |" in report


def test_samples_have_everybodys_answers_and_the_clip(two):
    _, good, _ = two
    found = samples(good)
    assert len(found) == 3 * 4
    views = [item for item in found if item["task"] == "smoke-views"]
    for item in views:
        assert [answer["name"] for answer in item["views"][0]["answers"]] == ["good", "poor", "text"]
        assert {view["voice"].partition(", ")[2] for view in item["views"]} >= {"", "telephone"}
        assert all((good / "report" / view["audio"]).read_bytes()[:4] == b"fLaC" for view in item["views"])
        assert "reading right, hearing wrong" in item["flags"], "it is deaf in noise"
        assert item["gains"]["text"] > 0
        assert [target["name"] for target in item["targets"]] == ["accepted"]
    assert EVIL in json.dumps(found)
    assert "<script>window" not in "".join(path.read_text() for path in (good / "report").glob("samples-*.js"))
    single = (good / "report" / "single.html").read_text()
    assert "<script>window.owned" not in single
    assert len(json.loads(re.search(r"INLINE = (\[.*\]);</script>", single)[1])) == 3


def test_an_evaluation_alone_has_a_page(evaluate):
    good, summary = evaluate("good", tasks=("smoke-consistency",))
    assert summary["comparisons"] == []
    page = (good / "report" / "index.html").read_text()
    assert '<section id="differences">' not in page
    assert len(samples(good)) == 4


def test_references_of_one_name_are_taken_once_and_models_are_told_apart(evaluate, tmp_path):
    first, _ = evaluate("good", references=("text",))
    own = read_evaluation(first)
    assert list(side_by_side(own, [own])) == ["good", "good of good", "text"]


def test_other_data_is_not_set_beside(evaluate):
    poor, _ = evaluate("poor", tasks=("smoke-qa",))
    file = poor / "smoke-qa" / "poor.json"
    scored = json.loads(file.read_text())
    file.write_text(json.dumps({**scored, "data": {**scored["data"], "content": "another"}}))
    _, summary = evaluate("good", tasks=("smoke-qa",), baselines=[poor])
    assert summary["comparisons"] == []


def test_what_a_model_was_trained_to_raise_judges_nothing(evaluate):
    """chrF was its reward: no headline, by itself or as the judge of wins, and a mark wherever it stands."""
    poor, _ = evaluate("poor", tasks=("smoke-open", "smoke-qa"), references=("text",), judge="chrf")
    keen, summary = evaluate("keen", tasks=("smoke-open", "smoke-qa"), baselines=[poor], judge="chrf")
    rows = {(row["b"], row["metric"]): row for row in summary["comparisons"]}
    assert {key for key, row in rows.items() if row["optimised"]} == {
        ("poor", "chrf"),
        ("poor", "win"),
        ("text", "chrf"),
    }
    assert {key for key, row in rows.items() if row["headline"]} == {("poor", "accuracy"), ("text", "accuracy")}
    assert {one["metric"] for one in summary["figures"] if one["optimised"]} == {
        "chrf",
        "winrate@text",
        "lc_winrate@text",
    }
    report = (keen / "report" / "report.md").read_text()
    assert re.search(r"\| chrf \| \d+ \| \d\.\d+† \(.*\) \| \d\.\d+ \(", report)
    assert "one side optimised this metric" in (keen / "report" / "index.html").read_text()


def test_wins_in_the_eyes_of_another_judge_are_no_difference(evaluate):
    poor, _ = evaluate("poor", tasks=("smoke-open",), references=("text",), judge="chrf")
    good, summary = evaluate("good", tasks=("smoke-open",), baselines=[poor], judge="wordllama")
    assert {row["metric"] for row in summary["comparisons"]} == {"chrf"}
    report = (good / "report" / "report.md").read_text()
    assert "winrate@text, % (protocol of poor)" in report


def made(figures, comparisons=()):
    """A page of these figures and differences alone: (model, metric, part, value, n), (metric, difference, p_holm)."""
    rows = [
        {"model": model, "task": "t", "metric": metric, "part": part, "value": value, "n": n, "unit": "%"}
        | {"ci_low": value - 1, "ci_high": value + 1, "protocol": "p", "optimised": False}
        for model, metric, part, value, n in figures
    ]
    shared = {"a": "mine", "b": "other", "task": "t", "part": "", "unit": "%", "headline": True, "n": 9}
    shared |= {"wins": 1, "losses": 8, "ties": 0, "sign_p": 0.04, "p": 0.01}
    pairs = [
        shared
        | {"metric": metric, "difference": value, "ci_low": value - 1, "ci_high": value + 1, "p_holm": p_holm}
        | {"lower_is_better": metric in LOWER_IS_BETTER, "optimised": False}
        for metric, value, p_holm in comparisons
    ]
    models = list(dict.fromkeys(row["model"] for row in rows))
    return Evaluated("mine", "a fake", models, {"t": "a task"}, rows, pairs, [], [])


def page_and_report(folder, shown):
    index = build(folder, shown, ReportConfig())
    return html.unescape(index.read_text()), index.with_name("report.md").read_text()


def test_less_of_what_was_taken_back_is_better(tmp_path):
    shown = made([("mine", "score", "", 50.0, 9)], [("retracted_said", -20.0, 0.01), ("followed", -20.0, 0.01)])
    page, report = page_and_report(tmp_path, shown)
    assert "t retracted said, % better, -20.0" in report
    assert "t rate, % worse, -20.0" in report
    assert "| t retracted said, % | -20.0 | -21.0 to -19.0 | 9 | 8 / 1 / 0 |" in report
    assert page.count("(lower is better)") == page.count("(higher is better)") == 1


def test_reading_is_a_line_only_where_conditions_leave_it_alone(tmp_path):
    def shown(second):
        figures = [(who, "score", part, 40.0, 9) for who in ("mine", "text") for part in ("clean", "fast")]
        return made([*figures[:3], ("text", "score", "fast", second, 9)])

    page, _ = page_and_report(tmp_path / "same", shown(40.0))
    assert "t: score by condition; the text LLM reads 40.0; clean: mine 40.0; fast: mine 40.0." in page
    page, _ = page_and_report(tmp_path / "other", shown(60.0))
    assert "t: score by condition; clean: mine 40.0, text 40.0; fast: mine 40.0, text 60.0." in page


def test_other_numbers_of_instructions_are_said(tmp_path):
    _, report = page_and_report(
        tmp_path, made([("mine", "accuracy", "", 50.0, 9), ("other", "accuracy", "", 50.0, 20)])
    )
    assert "| accuracy, % | – | 50.0 (49.0 to 51.0; n 9) | 50.0 (49.0 to 51.0; n 20) |" in report


def test_an_opponent_that_was_asked_less_is_none(evaluate):
    poor, _ = evaluate("poor", tasks=("smoke-open",), references=("text",), judge="chrf", limit=4)
    _, summary = evaluate("good", tasks=("smoke-open",), baselines=[poor], judge="chrf")
    assert not [one for one in summary["figures"] if one["metric"].startswith("winrate")]


def test_a_baseline_that_is_none_is_refused_before_any_work(evaluate, tmp_path):
    with pytest.raises(UsageError, match="nothing is not what `rba eval --model` wrote"):
        evaluate("good", baselines=[tmp_path / "nothing"])
    assert not (tmp_path / "good").exists()
