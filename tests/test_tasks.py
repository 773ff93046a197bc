"""Benchmark tasks: what their data must look like, and figures worked out by hand for every kind."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from benchdata import (
    ifeval_answers,
    ifeval_row,
    parquet,
    write_alpaca,
    write_ifeval,
    write_lines,
    write_questions,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import Loopback, chat

from rbalign.config.endpoints import JudgeEndpoint
from rbalign.data.dataset import DatasetWriter
from rbalign.errors import DataError, ServiceError, UsageError
from rbalign.eval.judges import LlmJudge
from rbalign.eval.tasks.files import local_copy, origin
from rbalign.eval.tasks.items import TaskData, TaskItem, load
from rbalign.eval.tasks.measure import Rules, measure
from rbalign.eval.tasks.registry import task_named, tasks
from rbalign.eval.tasks.scored import as_scored, markdown, number
from rbalign.eval.tasks.sheet import Sheet
from rbalign.remote.client import Client
from rbalign.scorers.constraints import CONSTRAINTS
from rbalign.types import Example, View, ViewSpec

RESAMPLES = 200


def sheet_of(name, folder, responses, rules=None):
    task = task_named(name)
    sheet = Sheet(task, load(task, folder), responses, RESAMPLES)
    measure(sheet, rules or Rules(task.scorers[0]))
    return sheet


def figures(sheet):
    return {(one["metric"], one["part"]): one for one in sheet.figures}


class Sides:
    """A judge that says what it is told to of each pair of texts; it knows an LLM's name when asked to."""

    name, protocol = "sides", "judge by hand"

    def __init__(self, prefer, llm=False):
        self._prefer, self.llm, self.asked = prefer, llm, []

    def prefer(self, pairs):
        self.asked += pairs
        return [self._prefer(pair) for pair in pairs]


# ---- registry and data -------------------------------------------------------------------------------------------


def test_every_task_is_whole():
    assert "speech-ifeval" in tasks()
    for task in tasks().values():
        assert task.rule, task.name
        assert task.place, task.name
        assert task.ids, task.name
        assert task.of_dataset == task.data.startswith("a dataset folder of rba"), task.name
        assert bool(task.against) == (task.kind in ("preference", "open") or task.name == "speech-ifeval")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("speech-ifevall", ["did you mean 'speech-ifeval'"]),
        ("fleurs", ["names no two languages"]),
        ("covost2:en", ["names no two languages"]),
        ("covost2:en_../x", ["names no two languages"]),
        ("spoken-alpaca:en_de", ["takes no languages"]),
    ],
)
def test_unknown_names_are_refused(given, parts):
    with pytest.raises(UsageError) as error:
        task_named(given)
    assert all(part in str(error.value) for part in parts), str(error.value)


def without(row, name):
    return {key: value for key, value in row.items() if key != name}


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([without(ifeval_row("startend:quotation", {}), "kwargs")], ["row 0", "no column 'kwargs'", "it has audio_fi"]),
        ([ifeval_row("startend:quotation", {}) | {"instruction": 3}], ["'instruction' is int", "allowed: a text"]),
        ([ifeval_row("startend:quotation", {}) | {"kwargs": {}}], ["'kwargs' is dict", "list of tables"]),
        ([ifeval_row("startend:quotation", {}) | {"kwargs": []}], ["closed/0", "0 kwargs"]),
        ([ifeval_row("startend:quote", {})], ["unknown constraint 'startend:quote'"]),
        ([ifeval_row("length_constraints:number_words", {"num_word": 3})], ["num_word"]),
    ],
)
def test_data_of_another_form_is_refused_in_one_line(rows, parts, tmp_path):
    write_lines(write_ifeval(tmp_path) / "eval_data" / "closed_ended_questions.jsonl", rows)
    with pytest.raises((DataError, UsageError)) as error:
        load(task_named("speech-ifeval"), tmp_path)
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_broken_files_are_named(tmp_path):
    task = task_named("speech-ifeval")
    with pytest.raises(DataError, match=r"has none of eval_data/closed_ended_questions.jsonl.*kehanlu"):
        load(task, tmp_path)
    write_ifeval(tmp_path)
    (tmp_path / "eval_data" / "creative_writing.jsonl").write_text('{"a": 1}\n[1\n')
    with pytest.raises(DataError, match="row 0 has no column"):
        load(task, tmp_path)
    (tmp_path / "eval_data" / "creative_writing.jsonl").write_text("[1\n")
    with pytest.raises(DataError, match="line 1 is no JSON object"):
        load(task, tmp_path)
    questions = tmp_path / "q"
    questions.mkdir()
    (questions / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read"):
        load(task_named("web-questions-twinkstart"), questions)
    parquet(questions / "x.parquet", answers=[[1, 2]])
    with pytest.raises(DataError, match="'answers' is list, allowed: a text or a list of texts"):
        load(task_named("web-questions-twinkstart"), questions)


def test_the_hub_is_asked_for_one_revision(tmp_path, monkeypatch):
    asked = []

    def snapshot(name, **more):
        asked.append((name, more["revision"], more["repo_type"]))
        if name == "gone/away":
            raise OSError("no\nnetwork")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    task = task_named("fleurs:de_de-en_us")
    assert local_copy("hf:", task) == tmp_path
    assert local_copy("hf:mine/copy@abc", task) == tmp_path
    assert origin("hf:mine/copy@abc", task) == "hub dataset mine/copy at abc"
    assert origin("hf:", task) == "hub dataset google/fleurs at refs/convert/parquet"
    assert origin(str(tmp_path), task) == "a local copy, in the form of google/fleurs"
    assert asked == [("google/fleurs", "refs/convert/parquet", "dataset"), ("mine/copy", "abc", "dataset")]
    with pytest.raises(ServiceError, match=r"does not give gone/away \(OSError: no network\)"):
        local_copy("hf:gone/away", task)
    with pytest.raises(UsageError, match="not on the hub"):
        local_copy("hf:", task_named("speech-ifeval"))
    with pytest.raises(UsageError, match="is no folder"):
        local_copy(str(tmp_path / "none"), task)


# ---- Speech-IFEval -----------------------------------------------------------------------------------------------


def reasoning_judge(asked):
    answer = asked.body["messages"][1]["content"].split("Response:\n")[1]
    return chat("Hm." if "rubbish" in answer else f"Result: {'YES' if 'Because' in answer else 'NO'}")


def ifeval(folder, responses, server=None, **more):
    if server is None:
        return sheet_of("speech-ifeval", folder, responses, Rules("speech-ifeval", **more))
    config = JudgeEndpoint(url=server.url, model="tiny", retries=0)
    judge = LlmJudge(config, Client(config))
    try:
        return sheet_of("speech-ifeval", folder, responses, Rules("speech-ifeval", judge, **more))
    finally:
        judge.close()


def test_there_are_thirteen_constraints():
    assert len(CONSTRAINTS) == 13


def test_speech_ifeval_by_hand(tmp_path):
    """3 of 4 closed, 1 of 2 creative, 1 of 4 reasoning (one judgement unreadable): IF rate is (75 + 50 + 25) / 3."""
    folder = write_ifeval(tmp_path, reasoning=4)
    responses = ifeval_answers(reasoning=4)
    responses |= {"closed/1": "yes", "creative/1": None, "reasoning/1": "rubbish", "reasoning/2": "B"}
    del responses["reasoning/3"]
    reference = ifeval_answers(reasoning=4)
    with Loopback(reasoning_judge) as server:
        sheet = ifeval(folder, responses, server, against=reference, opponent="text")
    found = figures(sheet)
    rates = {part: found["rate", part]["value"] for part in ("closed", "creative", "reasoning")}
    assert rates == {"closed": 75.0, "creative": 50.0, "reasoning": 25.0}
    assert found["if_rate", ""]["value"] == 50.0
    assert found["if_rate@text", ""]["value"] == 100.0
    assert found["delta", ""]["value"] == -50.0
    assert found["delta", ""]["ci_low"] < -50 < found["delta", ""]["ci_high"]
    assert found["rate", "startend:quotation"]["value"] == 0.0
    assert found["rate", "startend:end_checker"]["value"] == 100.0
    assert sheet.unparsed == 1
    counts = sheet.counts()
    assert (counts["items"], counts["answered"], counts["missing"], counts["failed"]) == (10, 8, 1, 1)
    assert "reasoning-1" in found["if_rate", ""]["protocol"]
    assert "unreadable judgements count as NO" in found["rate", "reasoning"]["protocol"]


def test_without_a_judge_reasoning_is_open_not_zero(tmp_path):
    found = figures(ifeval(write_ifeval(tmp_path), ifeval_answers()))
    assert found["rate", "closed"]["value"] == found["rate", "creative"]["value"] == 100.0
    for key in (("rate", "reasoning"), ("if_rate", "")):
        assert found[key]["value"] is None
        assert found[key]["note"]
    assert ("delta", "") not in found
    beside = figures(ifeval(write_ifeval(tmp_path), ifeval_answers(), against=ifeval_answers(), opponent="text"))
    assert beside["delta", ""]["value"] is None
    assert beside["delta", ""]["note"]


def test_deep_json_is_no_crash(tmp_path):
    responses = ifeval_answers() | {"closed/2": "[" * 5000}
    assert figures(ifeval(write_ifeval(tmp_path), responses))["rate", "closed"]["value"] == 75.0


# ---- win rate ----------------------------------------------------------------------------------------------------


def test_winrate_by_hand(tmp_path):
    """Ours wins item 0 in both orders, the judge takes the first answer of item 1 (a tie), says nothing readable of
    item 2, and item 3 is missing: labels 1, 1/2, 1/2, 0."""
    ours = {"0": "good", "1": "place", "2": "?"}
    theirs = {"0": "bad one", "1": "place too", "2": "?!", "3": "there"}

    def prefer(pair):
        if "place" in pair.first:
            return 1.0
        return None if "?" in pair.first else float(pair.first == "good")

    judge = Sides(prefer)
    sheet = sheet_of("spoken-alpaca", write_alpaca(tmp_path), ours, Rules("pairwise", judge, theirs, "base"))
    row = figures(sheet)["winrate@base", ""]
    assert row["value"] == 50.0
    assert (row["wins"], row["ties"], row["losses"], row["n"]) == (1, 2, 1, 4)
    assert (row["characters"], row["opponent_characters"]) == ((4 + 5 + 1 + 0) / 4, (7 + 9 + 2 + 5) / 4)
    assert row["orders_agree"] == pytest.approx(2 / 3, abs=1e-6)  # 0 and the missing one agree, 1 does not
    assert sheet.unparsed == 2
    assert len(judge.asked) == 6, "who has no answer is not judged"
    assert judge.asked[0].request == "Say 0"
    assert judge.asked[0].reference == "The number is 0."
    assert figures(sheet)["lc_winrate@base", ""]["value"] is None
    assert "LLM judges" in figures(sheet)["lc_winrate@base", ""]["note"]


def test_winrate_mirrors_and_ignores_the_files_order(tmp_path):
    folder = write_alpaca(tmp_path, 12)
    ours = {str(i): "word " * (i % 5 + 1) for i in range(11)} | {"11": None}
    theirs = {str(i): "term " * (i % 3 + 2) for i in range(1, 12)}
    judge = Sides(lambda pair: 0.5 if "?" in pair.first else float(sum(pair.first.encode()) % 7 > 3), llm=True)
    there = figures(sheet_of("spoken-alpaca", folder, ours, Rules("pairwise", judge, theirs, "b")))
    shuffled = dict(random.Random(0).sample(sorted(ours.items()), len(ours)))
    again = figures(sheet_of("spoken-alpaca", folder, shuffled, Rules("pairwise", judge, theirs, "b")))
    back = figures(sheet_of("spoken-alpaca", folder, theirs, Rules("pairwise", judge, ours, "b")))
    assert there == again
    for metric in ("winrate@b", "lc_winrate@b"):
        assert there[metric, ""]["value"] + back[metric, ""]["value"] == pytest.approx(100, abs=1e-4)
        assert there[metric, ""]["ci_low"] is not None
    assert there["lc_winrate@b", ""]["wins"] == there["winrate@b", ""]["wins"]


# ---- accepted answers --------------------------------------------------------------------------------------------

ALIASES = [["Paris"], "seven", ["art"], ["Zürich"], []]
SAID = {"0": "It is Paris.", "1": "There are 7.", "2": "A party.", "3": "Zurich", "4": "anything"}


@pytest.mark.parametrize(
    ("scorer", "right"),
    [
        ("rba", [1, 1, 0, 1, None]),  # numbers and marks fold, art is no part of a party
        ("ultraeval", [1, 0, 0, 0, None]),  # nothing folds: the mark of ü is a part of its token
        ("vocalbench", [1, 1, 1, 1, None]),  # a substring will do
    ],
)
def test_three_scorers_by_hand(scorer, right, tmp_path):
    folder = tmp_path / "data"
    write_lines(folder / "q.jsonl", [{"answers": one} for one in ALIASES])
    sheet = sheet_of("web-questions-twinkstart", folder, SAID, Rules(scorer))
    assert [sheet.scores[str(i)]["accuracy"] for i in range(5)] == right
    row = figures(sheet)["accuracy", ""]
    assert row["value"] == pytest.approx(100 * sum(right[:4]) / 4)
    assert (row["n"], row["unscored"]) == (4, 1)
    assert scorer.replace("rba", "containment") in row["protocol"]


def test_an_llm_says_right_or_wrong(tmp_path):
    folder = write_questions(tmp_path, [["Paris"], ["Rome"], ["Oslo"], ["Bern"]])
    told = {"Question 0?": "Result: YES", "Question 1?": "Result: NO", "Question 2?": "perhaps"}
    with Loopback(lambda asked: chat(told[asked.body["messages"][1]["content"].split("\n")[1]])) as server:
        config = JudgeEndpoint(url=server.url, model="tiny", retries=0)
        judge = LlmJudge(config, Client(config))
        responses = {"0": "Paris", "1": "Rome", "2": "x", "3": ""}
        sheet = sheet_of("web-questions-twinkstart", folder, responses, Rules("judge", judge))
        judge.close()
    assert figures(sheet)["accuracy", ""]["value"] == 25.0
    assert sheet.unparsed == 1
    with pytest.raises(UsageError, match="needs an LLM judge"):
        sheet_of("web-questions-twinkstart", folder, responses, Rules("judge"))


# ---- translation -------------------------------------------------------------------------------------------------


def test_translation_is_sacrebleus_own_number(tmp_path):
    references = [
        "Die Katze saß auf der Matte .",
        "Guten Morgen allerseits , wie geht es ?",
        "Das ist ein kurzer Satz .",
    ]
    said = ["Die Katze saß auf einer Matte .", "Guten Morgen allerseits , wie geht's ?"]
    write_lines(tmp_path / "en_de" / "test.jsonl", [{"sentence": "x", "translation": one} for one in references])
    sheet = sheet_of("covost2:en_de", tmp_path, dict(zip("01", said, strict=True)))
    found = figures(sheet)
    outside = sacrebleu.corpus_bleu([*said, ""], [references])
    assert found["bleu", ""]["value"] == pytest.approx(outside.score, abs=1e-6)
    plus = sacrebleu.corpus_chrf([*said, ""], [references], word_order=2)
    assert found["chrf++", ""]["value"] == pytest.approx(plus.score, abs=1e-6)
    assert "tok:13a" in found["bleu", ""]["protocol"]
    assert "nw:2" in found["chrf++", ""]["protocol"]
    assert found["bleu", ""]["n"] == 3
    assert found["bleu", ""]["ci_low"] <= found["bleu", ""]["value"] <= found["bleu", ""]["ci_high"]


def test_chinese_is_cut_into_signs(tmp_path):
    reference = "今天天气很好，我们去公园吧。"
    write_lines(tmp_path / "en_zh-CN" / "test.jsonl", [{"sentence": "x", "translation": reference}])
    found = figures(sheet_of("covost2:en_zh-CN", tmp_path, {"0": reference}))
    assert found["bleu", ""]["value"] == pytest.approx(100)
    assert "tok:zh" in found["bleu", ""]["protocol"]


def test_japanese_without_its_tokenizer_is_one_line(tmp_path, monkeypatch):
    def missing(*args, **more):
        raise RuntimeError("pip install something\nlong")

    monkeypatch.setattr("sacrebleu.metrics.BLEU", missing)
    write_lines(tmp_path / "en_ja" / "test.jsonl", [{"sentence": "x", "translation": "はい"}])
    with pytest.raises(UsageError, match=r"tokenizer ja-mecab.*sacrebleu\[ja\]"):
        sheet_of("covost2:en_ja", tmp_path, {"0": "はい"})


def test_fleurs_joins_on_the_sentence(tmp_path):
    """Two recordings of sentence 5 are one unit; sentence 9 is not in the target."""
    parquet(tmp_path / "de_de" / "test" / "0000.parquet", id=[5, 5, 7, 9], raw_transcription=["a", "a", "b", "c"])
    parquet(tmp_path / "en_us" / "test" / "0000.parquet", id=[7, 5, 5], raw_transcription=["B here", "A is", "A is"])
    task = task_named("fleurs:de_de-en_us")
    data = load(task, tmp_path)
    assert [(item.id, item.unit, item.reference) for item in data.items] == [
        ("5/0", "5", "A is"), ("5/1", "5", "A is"), ("7/0", "7", "B here"),
    ]  # fmt: skip
    assert data.left_out == 1
    sheet = sheet_of(task.name, tmp_path, {"5/0": "A was", "5/1": "A is", "7/0": "B here"})
    outside = sacrebleu.corpus_chrf(["A was", "A is", "B here"], [["A is", "A is", "B here"]], word_order=2)
    assert figures(sheet)["chrf++", ""]["value"] == pytest.approx(outside.score, abs=1e-6)
    assert figures(sheet)["chrf++", ""]["n"] == 2


# ---- disfluency and noise ----------------------------------------------------------------------------------------


def write_views(folder, aliases=True):
    """Four questions; each fluent and clean, corrected, stuttered over a telephone, and in babble."""
    specs = [
        ViewSpec("af_sarah"),
        ViewSpec("af_sarah", delivery="correction+filler"),
        ViewSpec("am_michael", channel="telephone", delivery="stutter"),
        ViewSpec("am_michael", channel="noise:babble@7.5dB"),
    ]
    names = ["France", "Italy", "Norway", "Spain"]
    cities = ["Paris", "Rome", "Oslo", "Madrid"]
    examples = [
        Example(f"q{i}", "test", f"Capital of {names[i]}?", "q", "y", f"It is {cities[i]}.",
                {"aliases": [cities[i]]} if aliases else {})
        for i in range(4)
    ]  # fmt: skip
    writer = DatasetWriter(folder, {"teacher": "tiny", "recipe": "0"})
    writer.add_examples(examples)
    said = [None, "Capital of Peru, no sorry, of it?", "Ca- capital?", None]
    clips = [
        View(f"q{i}", v, "test", specs[v], 0.5, b"", said[v], "Peru" if v == 1 else None)
        for i in range(4)
        for v in range(4)
    ]
    writer.commit_views("test", 0, clips)
    writer.finish()
    return folder


def test_relative_accuracy_by_hand(tmp_path):
    """Fluent: 3 of 4 right. Corrected: 1 of 4 right, 2 of 4 say Peru: relative accuracy (1/4) / (3/4)."""
    folder = write_views(tmp_path / "views")
    responses = {"q0/0": "Paris", "q1/0": "Rome", "q2/0": "Oslo", "q3/0": "no idea", "q0/1": "Paris, not Peru"}
    responses |= {"q1/1": "Lima is Peru's", "q2/1": "?", "q3/1": None, "q0/2": "passed over"}
    sheet = sheet_of("disfluency", folder, responses)
    found = figures(sheet)
    assert found["score", "fluent"]["value"] == 75.0
    for kind in ("correction", "filler"):
        assert found["score", kind]["value"] == 25.0
        assert found["relative_accuracy", kind]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["retracted_said", "correction"]["value"] == 50.0
    assert ("score", "stutter") not in found, "a telephone has done something else to that clip"
    assert sheet.counts()["items"] == 8
    assert sheet.counts()["passed_over"] == 1


def test_preserve_rate_is_capped_at_one(tmp_path):
    folder = write_views(tmp_path / "views")
    responses = {f"q{i}/0": "no idea" for i in range(3)} | {"q3/0": "Madrid"}
    responses |= {"q0/3": "Paris", "q1/3": "Rome"}
    found = figures(sheet_of("robustness", folder, responses))
    assert found["score", "clean"]["value"] == 25.0
    assert found["score", "noise:babble"]["value"] == 50.0
    assert found["preserve_rate", "noise:babble"]["value"] == 1.0
    nothing = figures(sheet_of("robustness", folder, {"q0/0": "x"}))
    assert nothing["preserve_rate", "noise:babble"]["value"] is None
    assert nothing["preserve_rate", "noise:babble"]["note"]


def test_views_without_answers_are_compared_with_references(tmp_path):
    folder = write_views(tmp_path / "views", aliases=False)
    with pytest.raises(UsageError, match=r"accepted answers.*--scorer chrf"):
        sheet_of("robustness", folder, {"q0/0": "Paris"})
    responses = {
        f"q{i}/{v}": f"It is {city}." for i, city in enumerate(("Paris", "Rome", "Oslo", "Madrid")) for v in (0, 3)
    }
    found = figures(sheet_of("robustness", folder, responses, Rules("chrf")))
    assert found["preserve_rate", "noise:babble"]["value"] == pytest.approx(1.0)
    assert found["score", "clean"]["value"] == pytest.approx(100.0)


# ---- whatever is answered ----------------------------------------------------------------------------------------

anything = st.one_of(st.none(), st.text(max_size=60), st.text(alphabet='"<>*-{}[]`\n•1 a', max_size=80))
ITEMS = [
    TaskItem(f"closed/{place}", f"closed/{place}", "closed", constraints=((name, given),))
    for place, (name, given) in enumerate(
        (name, {"prompt_to_repeat": "a"} if "repeat" in name else {"end_phrase": "a"} if "end_checker" in name
         else {"num_bullets": 2} if "bullet" in name else {"keywords": ["a"]} if "existence" in name
         else {"forbidden_words": ["a"]} if "forbidden" in name else {"num_paragraphs": 2} if "paragraphs" in name
         else {"num_sentences": 2, "relation": "at least"} if "sentences" in name
         else {"num_words": 2, "relation": "less than"} if "words" in name else {})
        for name in CONSTRAINTS
    )
]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(anything, st.just("absent")), min_size=13, max_size=13))
def test_constraints_are_total_and_bounded(said):
    task = task_named("speech-ifeval")
    extra = [TaskItem(f"{part}/0", f"{part}/0", part) for part in ("reasoning",)]
    extra += [TaskItem("creative/0", "creative/0", "creative", constraints=(("startend:quotation", {}),))]
    responses = {item.id: text for item, text in zip(ITEMS, said, strict=True) if text != "absent"}
    sheet = Sheet(task, TaskData((*ITEMS, *extra), "x"), responses, 20)
    measure(sheet, Rules("speech-ifeval"))
    for figure in sheet.figures:
        assert figure["value"] is None or 0 <= figure["ci_low"] <= figure["value"] <= figure["ci_high"] <= 100


@pytest.mark.parametrize("name", ["web-questions-twinkstart", "covost2:en_de", "covost2:en_zh-CN"])
@settings(max_examples=30, deadline=None)
@given(said=st.lists(anything, min_size=1, max_size=5), order=st.randoms(use_true_random=False))
def test_any_answer_scores_and_order_does_not_matter(name, said, order):
    items = [
        TaskItem(str(place), str(place), request="q", reference="Ein Satz .", aliases=("Paris", "7"))
        for place in range(len(said))
    ]
    rows = [(item.id, text) for item, text in zip(items, said, strict=True)]
    made = []
    for _ in range(2):
        order.shuffle(rows)
        order.shuffle(items)
        sheet = Sheet(task_named(name), TaskData(tuple(items), "x"), dict(rows), 20)
        measure(sheet, Rules("rba"))
        made.append((sheet.figures, sheet.samples()))
        assert all(figure["value"] is None or 0 <= figure["value"] <= 100.000001 for figure in sheet.figures)
    assert made[0] == made[1]


def test_intervals_of_an_if_rate_cover():
    """Parts of 40, 20 and 10 items with chances 0.8, 0.5 and 0.6: the IF rate is 63.3 by construction."""
    covered = 0
    chances = {"closed": (0.8, 40), "creative": (0.5, 20), "reasoning": (0.6, 10)}
    task = task_named("speech-ifeval")
    for seed in range(150):
        noise = np.random.default_rng(seed)
        draws = {}
        sheet = Sheet(task, TaskData((), "x"), {}, 300, seed)
        for part, (chance, n) in chances.items():
            draws[part] = sheet.bootstrap(part, n).means((noise.random(n) < chance).astype(float))
        estimate = sheet.bootstrap("closed", 40).estimate(np.mean(list(draws.values()), axis=0), 70)
        covered += estimate.low <= (0.8 + 0.5 + 0.6) / 3 <= estimate.high
    assert 0.88 <= covered / 150 <= 0.99


def test_the_page_of_protocols_is_current():
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, root / "dev" / "protocols.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_page_says_every_number_and_protocol(tmp_path):
    sheet = ifeval(write_ifeval(tmp_path), ifeval_answers() | {"closed/0": "a | b <script>"})
    scored = as_scored(sheet, "my|model<b>", "a local copy")
    page = markdown(scored)
    assert json.loads(json.dumps(scored)) == scored
    for figure in sheet.figures:
        assert number(figure) in page
        assert figure["protocol"].replace("|", "\\|") in page
    assert "<b>" not in page
    assert "Items 8: 8 answered, 0 missing" in page


def test_speeds_far_from_one_are_conditions_of_their_own(tmp_path):
    writer = DatasetWriter(tmp_path, {"teacher": "none", "recipe": "0"})
    writer.add_examples([Example("a", "test", "Hm?", "hm", labels={"aliases": ["tea"]})])
    ways = [("clean", 1.0), ("clean", 1.1), ("clean", 1.3), ("telephone", 0.7), ("noise:pink@5dB", 0.9)]
    specs = [ViewSpec("v", speed=speed, channel=channel) for channel, speed in ways]
    views = [View("a", i, "test", spec, 1.0, b"x") for i, spec in enumerate(specs)]
    writer.commit_views("test", 0, views)
    writer.finish()
    parts = [item.part for item in load(task_named("robustness"), tmp_path).items]
    assert parts == ["clean", "clean", "fast", "telephone+slow", "noise:pink"]
