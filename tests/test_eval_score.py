"""Scoring journals: floors for failures, unscored kept apart, what scorers need is computed once, resume."""

from __future__ import annotations

import json

import pytest

from rbalign import scorers
from rbalign.eval.score import load_rows, score, word_errors
from rbalign.types import Example

EXAMPLES = {
    "a": Example("a", "test", "Say tea.", "say tea", answer="tea", reference="tea"),
    "b": Example("b", "test", "Say milk.", "say milk", answer="milk"),
}


def answer(example, text, stop="end", **more):
    row = {
        "id": f"{example}/0/0", "example": example, "view": 0, "sample": 0, "voice": "x", "prompt": "<a/0>",
        "heard": "say tea", "answer": text, "stop": stop, "ids": [5, 6], "logprob": -1.0, "values": {}, "error": None,
    }  # fmt: skip
    return row | more


def run(tmp_path, answers, **options):
    (tmp_path / "open.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    score(
        tmp_path / "open.jsonl",
        tmp_path / "open.scores.jsonl",
        EXAMPLES,
        {"chrf": scorers.build("chrf", against="reference"), "teacher-likelihood": scorers.build("teacher-likelihood")},
        floors={"chrf": 0.0, "teacher-likelihood": None},
        label="test",
        **options,
    )
    return {row["id"]: row for row in load_rows([tmp_path / "open.scores.jsonl"])}


def test_failed_items_get_floors_and_unscored_stays_none(tmp_path):
    asked = []

    def teacher(instructions, ids):
        asked.append(list(instructions))
        return [[-1.0, -2.0] for _ in ids]

    found = run(tmp_path, [answer("a", "tea", "error"), answer("b", "milk")], teacher_logprobs=teacher)
    assert found["a/0/0"]["scores"] == {"chrf": 0.0, "teacher-likelihood": None, "failed": 1.0}
    assert found["b/0/0"]["scores"]["chrf"] is None
    assert found["b/0/0"]["scores"]["teacher-likelihood"] == -1.5
    assert found["b/0/0"]["scores"]["failed"] == 0.0
    assert asked == [["Say tea.", "Say milk."]]


def test_lengths_cuts_surprisal_and_word_errors(tmp_path):
    scored = run(tmp_path, [answer("a", "tea", "length"), answer("b", "", "end", ids=[], heard=None)])
    assert scored["a/0/0"]["scores"]["truncated"] == 1.0
    assert scored["a/0/0"]["scores"]["tokens"] == 2.0
    assert scored["a/0/0"]["scores"]["surprisal"] == 0.5
    assert scored["a/0/0"]["scores"]["echo"] == 0.5  # "tea" of "Say tea."
    assert scored["b/0/0"]["scores"]["echo"] == 0.0
    assert scored["a/0/0"]["wer"] == [0, 2]
    assert scored["b/0/0"]["scores"]["surprisal"] is None
    assert scored["b/0/0"]["wer"] is None


def test_numbers_about_given_texts_have_no_length(tmp_path):
    row = run(tmp_path, [answer("a", "", "scored", values={"nll": 0.7}, ids=[])])["a/0/0"]
    assert row["scores"]["nll"] == pytest.approx(0.7)
    assert "tokens" not in row["scores"]


def test_only_new_answers_are_scored(tmp_path):
    run(tmp_path, [answer("a", "tea")])
    found = run(tmp_path, [answer("a", "changed"), answer("b", "milk")])
    assert found["a/0/0"]["scores"]["chrf"] == pytest.approx(1.0)
    assert len(found) == 2


def test_word_errors_by_hand():
    assert word_errors("The colour is red.", "the color is read") == [1, 4]
    assert word_errors("seven dogs", "7 dogs bark") == [1, 2]
    assert word_errors("", "hello there") == [2, 0]
