"""The sets that ship: sound texts, test voices alone, clips that are spoken once, scores worked out by hand."""

from __future__ import annotations

import json
import re
import tomllib
from importlib.resources import files

import numpy as np
import pytest
from benchdata import FirstLetter, predictions

from rbalign.cli.main import run_command
from rbalign.config.sections import Sampling
from rbalign.data.signatures import Signatures
from rbalign.errors import UsageError
from rbalign.eval.collect import Answered
from rbalign.eval.tasks import measure
from rbalign.eval.tasks.items import load
from rbalign.eval.tasks.registry import task_named, tasks, tasks_named
from rbalign.eval.tasks.scored import read_scored
from rbalign.eval.tasks.smoke import ENGINE, smoke_set
from rbalign.rundir.files import sha256_file
from rbalign.scorers.constraints import follows
from rbalign.scorers.qa import matches
from rbalign.stages import evaluation, smoke
from rbalign.stages.evaluation import ModelEvaluation, Wanted, prepare
from rbalign.stages.exams import Settings
from rbalign.stages.subjects import Subject
from rbalign.stages.tasks import read, score
from rbalign.synth.heldout import SHIPPED_FOLDER as HELD_OUT
from rbalign.text.questions import asks_yes_or_no
from rbalign.text.speakable import speakability
from rbalign.types import Split
from rbalign.voices.bank import load_bank

SETS = ("qa", "disfluency", "open", "instructions", "translation")
SMOKE = [task.name for task in tasks().values() if task.smoke]


pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def spoken(monkeypatch):
    """Voices by hand: a tone as long as the text. Every job is remembered."""
    jobs = []

    def speak_many(given, workers):
        for job in given:
            jobs.append(job)
            tone = np.sin(np.arange(len(job.text) * 200) / 20) * 0.3
            yield job.id, tone.astype(np.float32)

    monkeypatch.setattr("rbalign.synth.speak.speak_many", speak_many)
    return jobs


# ---- texts -----------------------------------------------------------------------------------------------------------


def test_a_set_is_large_enough_for_a_table():
    """Two hundred answers each; a question with a correction is asked in two ways."""
    sizes = {name: len(smoke_set(name).examples) * (2 if name == "disfluency" else 1) for name in SETS}
    assert min(sizes.values()) >= 200, sizes


def test_smoke_is_the_name_of_all_eight():
    assert [task.name for task in tasks_named(["smoke", "smoke-qa"])] == SMOKE
    assert len(SMOKE) == 8
    assert all("not comparable" in tasks()[name].title for name in SMOKE)


@pytest.mark.parametrize("name", SETS)
def test_texts_can_be_said_and_asked(name):
    examples = smoke_set(name).examples
    assert len(examples) >= 40
    assert len({one.instruction.lower() for one in examples}) == len(examples)
    for one in examples:
        assert not asks_yes_or_no(one.instruction), one.instruction
        assert not speakability(one.instruction), one.instruction


@pytest.mark.parametrize("name", ["qa", "disfluency"])
def test_answers_are_found_and_not_given_away(name):
    for one in smoke_set(name).examples:
        right, wrong = one.labels["aliases"], one.labels.get("retracted_aliases", [])
        for alias in [*right, *wrong]:
            assert matches(f"I think that it is {alias}.", [alias])
            assert not matches(one.instruction, [alias]), (one.instruction, alias)
        for alias in right:
            assert not matches(alias, wrong), one.instruction
        for alias in wrong:
            assert not matches(alias, right), one.instruction


def test_what_is_taken_back_is_said_first_and_gives_no_answer():
    given = smoke_set("disfluency")
    examples = {one.id: one for one in given.examples}
    corrected = [view for view in given.views if view.spec.delivery == "correction"]
    assert len(corrected) == len(examples)
    for view in corrected:
        own = examples[view.example_id]
        assert view.retracted in view.said
        assert view.retracted.lower() not in own.instruction.lower()
        assert re.search(r"(no sorry|I mean|no wait|sorry|actually no), ", view.said), view.said
        for alias in [*own.labels["aliases"], *own.labels["retracted_aliases"]]:
            assert not matches(view.said, [alias]), (view.said, alias)


def test_constraints_are_known_and_can_be_kept_and_broken():
    kept = {
        "change_case:english_capital": "YES.",
        "change_case:english_lowercase": "yes.",
        "startend:quotation": '"Yes."',
        "detectable_format:json_format": '{"a": 1}',
    }
    rows = [row for one in smoke_set("instructions").examples for row in one.labels["constraints"]]
    assert len({name for name, _ in rows}) == 11
    for name, arguments in rows:
        words = arguments.get("keywords") or [arguments.get("end_phrase", "word")]
        if "num_bullets" in arguments:
            said = "* a\n" * arguments["num_bullets"]
        elif "num_paragraphs" in arguments:
            said = "\n\n".join(["A."] * arguments["num_paragraphs"])
        elif arguments.get("relation") == "at least":
            said = "It is. " * 40
        else:
            said = kept.get(name, " ".join(words))
        assert follows(said, name, arguments), (name, said)
        assert not follows("", name, arguments)


def test_no_text_is_known_from_elsewhere():
    """Neither the shipped connector nor the held-out set holds anything like them; our other questions are others."""
    from rbalign.data.dataset import Dataset
    from rbalign.speechlm.connector import DEFAULT_FOLDER, SIGNATURES

    texts = [one.spoken for name in SETS for one in smoke_set(name).examples]
    heard = Signatures.load(DEFAULT_FOLDER / SIGNATURES)
    assert [texts[place] for place in heard.near_duplicates(texts)] == []
    own = tomllib.loads((files("rbalign.eval") / "questions.toml").read_text(encoding="utf-8"))["own"]
    assert not {text.lower() for text in own} & {text.lower() for text in texts}
    others = Signatures.build([one.instruction for one in Dataset.open(HELD_OUT).examples()])
    assert [texts[place] for place in others.near_duplicates(texts)] == []


# ---- voices and clips ------------------------------------------------------------------------------------------------


def test_only_test_voices_speak_and_no_stage_may_train_on_them():
    bank = load_bank()
    voices = {view.spec.voice for name in SETS for view in smoke_set(name).views}
    assert voices == set(bank.names(Split.TEST, ENGINE))
    for voice in voices:
        with pytest.raises(UsageError):
            bank.require([voice], {Split.TRAIN, Split.VALIDATION}, "align")
    for name in SETS:
        for example in smoke_set(name).examples:
            own = {view.spec.voice for view in smoke_set(name).views if view.example_id == example.id}
            assert len(own) == 1, "only the way it is said differs between an instruction's views"


@pytest.mark.parametrize("name", SETS)
def test_the_plan_depends_on_the_key_alone(name):
    first = smoke_set(name)
    smoke_set.cache_clear()
    assert smoke_set(name) == first


def test_clips_are_spoken_once_and_grow_with_the_limit(spoken):
    assert smoke.unspoken("qa", 12) == 15 * 5, "whole shards of five"
    data = smoke.speak("qa", 12)
    assert len(data.views("test")) == 75
    assert len(spoken) == 15 * 3, "noise and telephone are the clean clip's own words: one job for the three"
    assert {job.speed for job in spoken} == {1.0, 1.3, 0.75}
    shard = smoke.smoke_folder("qa") / "views" / "test-00000.parquet"
    before = sha256_file(shard)
    assert smoke.unspoken("qa", 15) == 0
    smoke.speak("qa", 15)
    assert len(spoken) == 45
    smoke.speak("qa", 16)
    assert (len(spoken), sha256_file(shard)) == (60, before)
    clips = {view.spec.channel: view.flac for view in data.views("test")[:5] if view.spec.speed == 1.0}
    assert len(set(clips.values())) == 3


def test_a_start_that_ended_before_the_manifest_is_finished(spoken):
    smoke.speak("open", 10)
    (smoke.smoke_folder("open") / "manifest.json").unlink()
    assert len(smoke.speak("open", 10).views("test")) == 10
    assert len(spoken) == 10


# ---- scores ----------------------------------------------------------------------------------------------------------


def scored(tmp_path, task, responses, **options):
    file = predictions(tmp_path / "m.jsonl", responses)
    return score(read(task, "shipped", file, again=True, **options), 50)


def values(found, metric):
    return {one["part"]: one["value"] for one in found["figures"] if one["metric"] == metric}


def test_a_model_that_answers_what_was_taken_back(tmp_path):
    """Ten questions: all right when fluent; of the corrected ones four right, three the first question's, two both,
    one nothing."""
    data = load(task_named("smoke-disfluency"), tmp_path).first(10)
    responses, corrected = {}, 0
    for item in data.items:
        right = f"It is {item.aliases[0]}."
        if item.part == "correction":
            other = f"It is {item.retracted_aliases[0]}."
            right = [right, right, right, right, other, other, other, right + other, other + right, "Hm."][corrected]
            corrected += 1
        responses[item.id] = right
    found = scored(tmp_path, "smoke-disfluency", responses, limit=10)
    assert values(found, "score") == {"fluent": 100.0, "correction": 60.0}
    assert values(found, "relative_accuracy") == {"correction": 0.6}
    assert values(found, "retracted_answered") == {"correction": 30.0}
    assert found["counts"]["items"] == 20


def test_ways_are_held_against_the_clean_clip(tmp_path):
    data = load(task_named("smoke-views"), tmp_path).first(4)
    wrong = {"noise:pink": 2, "fast": 1}
    responses: dict[str, str | None] = {}
    for item in data.items:
        lost = wrong.get(item.part, 0) > 0
        wrong[item.part] = wrong.get(item.part, 0) - 1
        responses[item.id] = None if lost else item.aliases[0]
    found = scored(tmp_path, "smoke-views", responses, limit=4)
    assert values(found, "preserve_rate") == {"noise:pink": 0.5, "fast": 0.75, "slow": 1.0, "telephone": 1.0}
    assert found["counts"]["failed"] == 3


def test_form_and_open_answers(tmp_path):
    data = load(task_named("smoke-if"), tmp_path)
    capitals = [item for item in data.items if item.constraints[0][0] == "change_case:english_capital"]
    found = scored(tmp_path, "smoke-if", {item.id: "YES" if item in capitals else "" for item in data.items})
    assert values(found, "rate")[""] == pytest.approx(100 * 18 / 200)
    assert values(found, "rate")["change_case:english_capital"] == 100.0
    opened = load(task_named("smoke-open"), tmp_path)
    half = {item.id: item.reference if place % 2 else None for place, item in enumerate(opened.items)}
    found = scored(tmp_path, "smoke-open", half)
    assert values(found, "chrf")[""] == pytest.approx(0.5)
    file = predictions(tmp_path / "other.jsonl", {item.id: "No idea." for item in opened.items})
    found = scored(tmp_path, "smoke-open", half, against=file, judge="chrf")
    assert values(found, "winrate@other")[""] == pytest.approx(50.0)


def test_the_command_line_needs_no_data(tmp_path, capsys):
    item = load(task_named("smoke-qa"), tmp_path).items[0]
    file = predictions(tmp_path / "mine.jsonl", {item.id: item.aliases[0]})
    assert run_command(["score", "--task", "smoke-qa", str(file), "--limit", "1"]) == 0
    assert "100.00 %" in capsys.readouterr().out
    assert read_scored(tmp_path / "mine.smoke-qa.json")["data"]["from"] == "ships with rba: smoke, not comparable"
    assert run_command(["score", "--task", "smoke-qa", "--data", str(tmp_path), str(file)]) == 2
    assert "leave it out" in capsys.readouterr().err


# ---- the whole -------------------------------------------------------------------------------------------------------


class Knows:
    """Answers rightly whatever it hears, once it is heard at all."""

    def answer(self, items):
        known = [(item.example.labels.get("aliases") or ["Hm."])[0] for item in items]
        return [Answered(text if item.view.flac else "", "end") for text, item in zip(known, items, strict=True)]


def test_smoke_from_speaking_to_scores(tmp_path, spoken, monkeypatch):
    monkeypatch.setattr(evaluation.LocalAnswering, "_new", lambda self, work: Knows())
    monkeypatch.setattr(measure, "build_embedder", lambda name: FirstLetter())
    subject = Subject("knows", "a fake", "0", None, lambda: None)
    monkeypatch.setattr(evaluation, "subject_named", lambda *_: subject)
    settings = Settings(Sampling(temperature=0.0, max_new_tokens=4), limit=3, workers=1)
    wanted = Wanted("knows", ("smoke",), {}, tmp_path / "out", settings)
    found = prepare(wanted)
    assert isinstance(found, ModelEvaluation)
    assert spoken == []
    counted = {(row[0], row[1]): row[2:] for row in found.counted()}
    assert counted["smoke-views", "voices"] == ["3", "25", "", "", "25"]
    assert counted["smoke-views", "knows"] == ["3", "15", "0", "0", "15"]
    found.run()
    assert len(spoken) == 5 + 5 + 5 * 3 + 5 * 2 + 5 * 4 + 5
    for name in SMOKE:
        one = read_scored(tmp_path / "out" / name / "knows.json")
        assert one["counts"]["answered"] == one["counts"]["items"], name
    views = read_scored(tmp_path / "out" / "smoke-views" / "knows.json")
    assert values(views, "score") == dict.fromkeys(("clean", "fast", "noise:pink", "slow", "telephone"), 100.0)
    figures = json.loads((tmp_path / "out" / "evaluation.json").read_text())["figures"]
    assert {one["task"] for one in figures} == set(SMOKE)
