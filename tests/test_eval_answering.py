"""Answers by several processes: the same as by one, and told well when a process dies."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_eval_stage import example, new_policy, view

from rbalign.config.recipe import Recipe
from rbalign.config.sections import EvalConfig, Sampling
from rbalign.errors import RunError
from rbalign.eval.collect import _batches, collect, in_turn
from rbalign.eval.items import by_example
from rbalign.eval.schedule import Spoken, reference_work
from rbalign.eval.score import load_rows
from rbalign.stages.answering import Answering, answering

REFERENCES = ("text", "self-cascade", "wrong-audio")
CONFIG = EvalConfig(sampling=Sampling(temperature=0.7, max_new_tokens=6), references=REFERENCES)


def reopen():
    """What a worker finds: six instructions in two voices, one clip of them damaged, and a tiny random policy."""
    examples = [example(i) for i in range(6)]
    clips = [view(i, v, b"not audio" if (i, v) == (3, 1) else None) for i in range(6) for v in range(2)]
    spoken = Spoken(examples, by_example(clips))
    made = Answering(Recipe(name="tiny"), SimpleNamespace(), CONFIG, (spoken, Spoken([], {})))
    made._policy = new_policy()
    return made, reference_work(REFERENCES, spoken, Spoken([], {}), 2, 0)


def dying():
    os._exit(9)


def rows(folder, workers):
    made, everything = reopen()
    with answering(lambda: made, reopen, workers) as answered_by:
        for number, work in enumerate(everything):
            path = folder / f"{work.folder}-{work.task}.jsonl"
            batches = answered_by(number, work)
            collect(batches, work.items, path, {}, batch_size=4, label="test", workers=workers)
            yield from ((work.folder, work.task, row) for row in load_rows([path]))


def test_two_processes_answer_as_one_does(tmp_path):
    found = {}
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        found[workers] = {
            (folder, task, row["id"]): row for folder, task, row in rows(tmp_path / str(workers), workers)
        }
    assert found[1].keys() == found[2].keys()
    assert {task for _, task, _ in found[1]} == {"open", "nll", "open-wrong-audio"}
    for name, row in found[1].items():
        other = found[2][name]
        assert (row["answer"], row["ids"], row["stop"]) == (other["answer"], other["ids"], other["stop"])
        assert row["values"] == pytest.approx(other["values"], abs=1e-4)
    failed = {name for name, row in found[2].items() if row["stop"] == "error"}
    assert {name[2].rpartition("/")[0] for name in failed if name[1] == "open"} == {"e3/1"}


def test_a_dead_process_is_told_with_its_cure(tmp_path):
    made, everything = reopen()
    with pytest.raises(RunError, match="died") as caught, answering(lambda: made, dying, 2) as answered_by:
        collect(answered_by(0, everything[0]), everything[0].items, tmp_path / "a.jsonl", {}, batch_size=4, label="t")
    assert "--eval.workers 1" in caught.value.cure


@given(st.integers(0, 400), st.integers(1, 70), st.integers(1, 9))
def test_batches_are_nearly_equal_and_share_out_evenly(count, largest, workers):
    todo = list(range(count))
    batches = _batches(todo, largest, workers)
    assert [one for batch in batches for one in batch] == todo
    sizes = [len(batch) for batch in batches]
    assert max(sizes, default=0) <= largest
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert len(batches) % workers == 0 or len(batches) == count


def test_one_process_asks_no_pool():
    made, everything = reopen()
    with answering(lambda: made, dying, 1) as answered_by:
        (_, answers, _), *_ = answered_by(0, everything[0])([everything[0].items[:2]])
    assert [one.text for one in answers] == [
        one.text for _, own, _ in in_turn(made.answerer(everything[0]))([everything[0].items[:2]]) for one in own
    ]
