"""RBA-QA: short questions of fact with short answers and other ways to say them."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from test_synth import fakes  # noqa: F401

from rbalign.config.kinds import QA_SYSTEM, QaConfig
from rbalign.config.load import load_recipe
from rbalign.config.recipe import Recipe
from rbalign.config.synth import Domain, SynthConfig
from rbalign.data.dataset import Dataset
from rbalign.errors import UsageError
from rbalign.rundir.run import RunDir
from rbalign.scorers import build
from rbalign.scorers.base import example_columns
from rbalign.scorers.qa import matches, tokens
from rbalign.stages import eval as evaluation
from rbalign.stages import synth as stage
from rbalign.synth.accept import Acceptance
from rbalign.synth.qa import (
    ALIAS_SYSTEM,
    MOST_ALIASES,
    QUESTION_SYSTEM,
    accepted_answers,
    alias_request,
    pair_cause,
    question_cause,
)
from rbalign.synth.write import write_drafts
from rbalign.teacher.base import Written
from rbalign.types import Example, StopReason

CONFIG = QaConfig()


@pytest.mark.parametrize(
    ("question", "cause"),
    [
        ("What is the capital of France?", None),
        ('Who said "I have a dream?"', None),
        ("Name the capital of France.", "not a question"),
        ("Is Paris the capital of France?", "yes or no"),
        ("Does the sun rise in the east?", "yes or no"),
        ("Isaac Newton was born in which year?", None),
    ],
)
def test_questions_of_fact(question, cause):
    assert question_cause(question) == cause


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ("Paris", None),
        ("The city of Paris.", None),
        ("The beautiful old city of Paris", "answer too long"),
        ("Yes.", "yes or no"),
        ("No, never.", "yes or no"),
        ("...", "answer empty"),
        ("France", "answer in the question"),
        ("the capital", "answer in the question"),
        ("The capital is France.", "answer in the question"),
        ("7", None),
    ],
)
def test_answers_are_short_facts(answer, cause):
    assert pair_cause("What is the capital of France?", answer, CONFIG) == cause


def test_aliases_are_cleaned_and_the_answer_comes_first():
    written = (
        "1. JFK\n- John Kennedy.\n* john f kennedy\n\nnone\nyes\nThe man who was shot in Dallas in 1963\npresident"
    )
    question = "Which president was shot in Dallas?"
    assert accepted_answers(question, "John F. Kennedy.", written, CONFIG) == [
        "John F. Kennedy",
        "JFK",
        "John Kennedy",
    ]
    assert accepted_answers("How many moons has Earth?", "One", "1\none\na single one", CONFIG) == [
        "One",
        "a single one",
    ]
    said = accepted_answers(
        "Which oil is healthy?", 'The answer is: "Olive Oil"', "\"olives' oil\".\nIt's olive\nolive oil", CONFIG
    )
    assert said == ["Olive Oil", "olives' oil", "olive"]
    many = "\n".join(f"name {letter}x" for letter in "abcdefghijklm")
    assert len(accepted_answers(question, "Someone", many, CONFIG)) == 1 + MOST_ALIASES


@given(st.text(max_size=300), st.sampled_from(["Paris", "42", "the Moon", "J. S. Bach"]))
def test_whatever_is_written_the_answer_is_accepted_and_an_echo_is_not(written, answer):
    question = "What do people of this town call it, and why was it so?"
    assume(tokens(answer))
    aliases = accepted_answers(question, answer, written, CONFIG)
    assert matches(f"It is {answer}.", aliases)
    assert not matches(question, aliases)
    assert all(0 < len(alias.split()) <= CONFIG.max_answer_words for alias in aliases)
    assert len({tokens(alias) for alias in aliases}) == len(aliases)


# ---- the writing -----------------------------------------------------------------------------------------------------

PLACES = ["France", "Spain", "Peru", "Kenya", "Japan", "Norway", "Chile", "Ghana", "Nepal", "Cuba", "Mali", "Laos"]
THINGS = ["capital", "largest river", "highest mountain", "oldest harbor", "national bird"]


class Quiz:
    """Asks by key alone: mostly facts, sometimes yes or no; answers sometimes in a sentence, sometimes with an echo."""

    def __init__(self):
        self.systems = Counter()
        self.asked_aliases = []

    def params(self, temperature, top_p, max_new_tokens):
        return max_new_tokens

    def write_instructions(self, keys, params, systems):
        self.systems.update(systems)
        return [Written(self._question(key.generator()), StopReason.END, 9) for key in keys]

    def _question(self, draw):
        thing, place = draw.choice(THINGS), draw.choice(PLACES)
        kind = draw.integers(8)
        return f"Is there a {thing} in {place}?" if kind == 0 else f"What is the {thing} of {place}?"

    def answer(self, instructions, keys, params, system=None):
        self.systems[system] += len(instructions)
        return [self._answer(text, key, system) for text, key in zip(instructions, keys, strict=True)]

    def _answer(self, text, key, system):
        draw = key.generator()
        if system == ALIAS_SYSTEM:
            self.asked_aliases.append(text)
            failed = draw.integers(5) == 0
            return Written(
                "" if failed else f"- Old {text[-4:]}\n- none", StopReason.FAILED if failed else StopReason.END, 4
            )
        kind = draw.integers(6)
        answer = (
            "There is none that anybody would know of" if kind == 0 else "France" if kind == 1 else f"Mar{text[-4:-1]}"
        )
        return Written(answer, StopReason.END, 4)


def accepted(config, chunk, count=160):
    teacher, acceptance = Quiz(), Acceptance(config)
    for start in range(0, count, chunk):
        for draft in write_drafts(teacher, config, 5, range(start, start + chunk)):
            acceptance.add(draft)
    return teacher, acceptance


def test_questions_fall_to_named_filters_and_keep_their_aliases():
    config = SynthConfig(kind="qa", train=1000, validation=0, test=0)
    teacher, acceptance = accepted(config, 160)
    assert acceptance.seen == 160 == len(acceptance.examples) + sum(acceptance.causes.values())
    assert set(acceptance.causes) == {
        "yes or no",
        "answer too long",
        "answer in the question",
        "duplicate",
        "near-duplicate",
        "teacher-failed",
    }
    assert len(acceptance.examples) > 20
    for example in acceptance.examples:
        first, second = example.labels["aliases"]
        assert first == example.answer
        assert second == f"Old {example.answer[-4:]}"
        assert tokens(example.answer) not in {tokens(example.instruction)}
    assert len({e.instruction for e in acceptance.examples}) == len(acceptance.examples), "one answer for each question"
    assert len({e.instruction[:20] for e in acceptance.examples}) < len(acceptance.examples), "one word makes another"
    assert teacher.systems[QUESTION_SYSTEM] == 160
    assert teacher.systems[QA_SYSTEM] < 160, "what is no question gets no answer"
    assert len(teacher.asked_aliases) < teacher.systems[QA_SYSTEM], "what is no answer gets no aliases"
    assert accepted(config, 8)[1].examples == acceptance.examples


def test_aliases_can_be_left_out_and_domains_have_their_own_prompt():
    domains = (Domain(name="geography", system="Quiz on places."), Domain(name="any"))
    config = SynthConfig(kind="qa", train=1000, validation=0, test=0, qa=QaConfig(aliases=False), domains=domains)
    teacher, acceptance = accepted(config, 160)
    assert not teacher.asked_aliases
    assert all(example.labels["aliases"] == [example.answer] for example in acceptance.examples)
    assert teacher.systems["Quiz on places."] > 50
    assert teacher.systems[QUESTION_SYSTEM] > 50
    assert {example.labels["domain"] for example in acceptance.examples} == {"geography", "any"}
    assert alias_request("Q?", "A") == "Question: Q?\nAnswer: A"


@pytest.fixture
def quiz(fakes, monkeypatch):  # noqa: F811
    def write_many(teacher, config, seed, chunks, workers):
        for chunk in chunks:
            yield write_drafts(Quiz(), config, seed, chunk)

    monkeypatch.setattr(stage, "write_many", write_many)
    monkeypatch.setattr(stage, "open_teacher", lambda config: Quiz())
    return fakes


RECIPE = Recipe(name="quiz", synth=SynthConfig(kind="qa", train=9, validation=0, test=4, batch_size=16))


def test_the_dataset_obeys_the_contract_and_can_be_scored(tmp_path, quiz, capsys):
    with RunDir.open(tmp_path / "a", RECIPE) as run:
        first = stage.run(RECIPE, run)
        data = Dataset.open(run.path("data"))
        examples = data.examples()
        assert len(examples) == 13
        assert len(data.views()) == 13 == len(quiz), "one voice by default"
        assert data.manifest["kind"] == "qa"
        assert all(example.reference for example in data.examples("test"))
        columns = example_columns(examples)
        scorer = build("qa")
        right = scorer([None] * 13, [f"That is {e.labels['aliases'][-1]}." for e in examples], [None] * 13, **columns)
        wrong = scorer([None] * 13, [example.instruction for example in examples], [None] * 13, **columns)
        assert (set(right), set(wrong)) == ({1.0}, {0.0})
        assert stage.run(RECIPE, run) == first
        assert len(quiz) == 13
    rows = [json.loads(line) for line in (tmp_path / "a/quiz/data/drafts.jsonl").read_text().splitlines()]
    kept = {example.id for example in examples}
    assert all("aliases" in row for row in rows if row["id"] in kept)
    from rbalign.stages.card import dataset_card
    from rbalign.stages.named import dataset_named

    text = dataset_card(dataset_named(str(tmp_path / "a/quiz")))
    assert "13 questions in 13 clips" in text
    assert "other ways to say them" in text


def test_eval_tells_right_from_wrong_where_there_are_accepted_answers(monkeypatch):
    monkeypatch.setattr(evaluation, "_embedder", lambda name, notes: None)
    plain = Example("a", "test", "Hm?", "hm", "Yes.", "Yes.")
    scorers, _ = evaluation.text_scorers([], [plain])
    assert set(scorers) == {"chrf"}
    scorers, _ = evaluation.text_scorers([], [plain, replace(plain, labels={"aliases": ["7"]})])
    assert scorers["qa"]([None], ["Seven of them."], [None], aliases=[["7"]]) == [1.0]


def test_recipes_for_questions_have_their_own_defaults(tmp_path):
    plain, asked = SynthConfig(), SynthConfig(kind="qa")
    assert (plain.views[0].per_example, asked.views[0].per_example) == (4, 1)
    assert (plain.answer.temperature, asked.answer.temperature) == (0.7, 0.0)
    assert (plain.filters.min_words, asked.filters.min_words) == (4, 3)
    assert asked.answer_system == QA_SYSTEM != plain.answer_system
    path = tmp_path / "r.toml"
    path.write_text("name = 'x'\n[synth]\nkind = 'qa'\nanswer_system = 'Short.'\nqa = {max_answer_words = 3}\n")
    synth = load_recipe(path).synth
    assert (synth.answer_system, synth.qa) == ("Short.", QaConfig(max_answer_words=3))
    for more in ({"answers": False}, {"sentences": True}):
        with pytest.raises((UsageError, ValueError), match="without answers"):
            SynthConfig(kind="qa", **more)
    assert np.isclose(sum(domain.weight for domain in load_recipe("qa").synth.domains), 8.0)


def test_a_question_gets_no_second_answer_but_another_word_makes_another_question():
    acceptance = Acceptance(SynthConfig(kind="qa", train=9, validation=0, test=0))
    asked = [("Who wrote Emma?", "Jane Austen"), ("who wrote emma?", "Charles Dickens of Portsmouth")]
    asked += [("Who wrote Dracula?", "Bram Stoker")]
    for number, (question, answer) in enumerate(asked):
        acceptance.add({"id": f"{number}", "text": question, "stop": "end", "answer": answer, "answer_stop": "end"})
    assert [example.answer for example in acceptance.examples] == ["Jane Austen", "Bram Stoker"]
    assert acceptance.causes == {"duplicate": 1}
