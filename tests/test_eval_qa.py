"""The questions: enough of them, mostly people's, none to be answered by yes or no, every key answers itself."""

from __future__ import annotations

import tomllib
from collections import Counter
from importlib import resources

import pytest

from rbalign.errors import UsageError
from rbalign.eval import qa
from rbalign.scorers.qa import matches
from rbalign.text.speakable import speakability
from rbalign.voices.bank import load_bank

TRIVIA = """
categories: [trivia]
conversations:
- - Who was the 37th President of the United States?
  - Richard Nixon
- - Is the sky blue?
  - 'Yes'
- - Name something
  - Anything
- - What is the meaning of everything that has ever been said or written down by anybody at all?
  - This is a very long answer that nobody can be expected to give word for word
- a malformed entry that is no list
- - Which two U.S. states don’t observe Daylight Saving Time?
  - Arizona and Hawaii
- - Who invented scissors?
  - Leonardo da Vinci
"""


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "trivia.yml").write_text(TRIVIA)
    return tmp_path


def test_filters_repairs_and_mixing(corpus):
    found = qa.all_questions(corpus)
    human = {e.instruction: e.labels["aliases"] for e in found if e.labels["source"] == qa.HUMAN}
    assert set(human) == {
        "Who was the 37th President of the United States?",
        "Which two U.S. states don't observe Daylight Saving Time?",
    }
    assert matches("It was Nixon.", human["Who was the 37th President of the United States?"])
    assert matches("Hawaii and Arizona", human["Which two U.S. states don't observe Daylight Saving Time?"])
    assert [e.labels["source"] for e in found[:4]] == [qa.HUMAN, qa.HUMAN, qa.OWN, qa.OWN]
    assert [e.id for e in found] == [e.id for e in qa.all_questions(corpus)]


def test_own_questions_hold_their_rules(corpus):
    own = [e for e in qa.all_questions(corpus) if e.labels["source"] == qa.OWN]
    assert len(own) >= 100
    assert len({e.id for e in own}) == len(own)
    for example in own:
        assert not speakability(example.instruction), example.instruction
        assert qa._askable(example.instruction, example.labels["aliases"][0]), example.instruction
        assert all(matches(f"I think it is {alias}.", [alias]) for alias in example.labels["aliases"])
        words = example.instruction.rstrip("?").lower().split()
        assert not matches(" ".join(words), example.labels["aliases"]), f"repeating scores: {example.instruction}"


def test_repairs_name_no_question_twice():
    repairs = tomllib.loads(resources.files("rbalign.eval").joinpath("questions.toml").read_text())
    assert not set(repairs["drop"]) & (set(repairs["aliases"]) | set(repairs["own"]))
    assert not set(repairs["aliases"]) & set(repairs["own"])


def test_too_many_are_refused(corpus):
    with pytest.raises(UsageError, match=r"\[eval\] qa = 100000"):
        qa.questions(100_000, corpus)
    assert qa.questions(3, corpus) == qa.all_questions(corpus)[:3]


def test_every_question_gets_two_distinct_test_voices_evenly(corpus):
    voices = load_bank().names("test", "kokoro")
    views = qa.plan_views(qa.all_questions(corpus), voices, seed=0)
    by_question: dict[str, list[str]] = {}
    for view in views:
        by_question.setdefault(view.example_id, []).append(view.spec.voice)
    assert all(len(own) == len(set(own)) == 2 for own in by_question.values())
    shares = Counter(view.spec.voice for view in views)
    assert set(shares) == set(voices)
    assert max(shares.values()) < 1.6 * min(shares.values())
    assert views == qa.plan_views(qa.all_questions(corpus), voices, seed=0)


@pytest.mark.assets
def test_the_real_list_is_long_enough_and_repaired():
    found = qa.all_questions()
    people = [e for e in found if e.labels["source"] == qa.HUMAN]
    assert len(found) >= 300
    assert len(people) >= 200
    assert sum(e.labels["source"] == qa.HUMAN for e in found[:300]) >= 200
    known = {question for question, _ in qa._trivia(None)}
    repairs = tomllib.loads(resources.files("rbalign.eval").joinpath("questions.toml").read_text())
    assert set(repairs["drop"]) | set(repairs["aliases"]) <= known
    assert not [e for e in found if qa.asks_yes_or_no(e.instruction)]
