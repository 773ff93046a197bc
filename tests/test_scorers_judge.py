"""The judge as a reward: an LLM behind a real server on loopback, which answers, lies, hangs and dies."""

from __future__ import annotations

import pickle
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import Loopback, Scripted, chat, stalls, status, wrong_json

from rbalign import scorers
from rbalign.config.endpoints import JudgeEndpoint
from rbalign.eval.judges import LlmJudge, prompt, rating
from rbalign.remote.client import Client, EndpointError


def judge_at(server, cache=None, **more):
    config = JudgeEndpoint(**{"url": server.url, "model": "tiny-judge", "retries": 0, **more})
    return scorers.build("judge", judge=LlmJudge(config, Client(config, cache)))


def asked_of(asked):
    """The (request, answer) that a request shows."""
    request, answer = asked.body["messages"][1]["content"].split("\n\nAnswer:\n")
    return request.removeprefix("Request:\n"), answer


def by_words(asked):
    """As many points as the answer has words."""
    return chat(f"I count.\nScore: {len(asked_of(asked)[1].split())}")


def scored(scorer, answers, requests=None):
    return scorer(requests or ["Who?"] * len(answers), answers, [[]] * len(answers))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Score: 1", 0.0), ("Score: 10", 1.0), ("score: **7**", 6 / 9), ("Score: 8/10", 7 / 9), ("Score: 7.", 6 / 9),
        ("Score: 5.5", 0.5), ("I write 'Score: N'.\nScore: 4 of 10", 3 / 9), ("Score: 2 ... no. Score: 3", 2 / 9),
        ("Score: 0", None), ("Score: 11", None), ("Score: -3", None), ("Score: 1234", None), ("Score: 1.2.3", None),
        ("Score: ten", None), ("Underscore: 3", None), ("7", None), ("", None), (None, None),
        ("Score: " + "9" * 5000, None),
    ],
)  # fmt: skip
def test_a_rating_is_read_or_is_none(text, found):
    assert rating(text) == (None if found is None else pytest.approx(found))


@settings(derandomize=True, deadline=None)
@given(st.one_of(st.text(), st.text("score: 0123456789./-*_", max_size=60)))
def test_reading_a_rating_never_raises_and_is_bounded(text):
    assert rating(text) is None or 0 <= rating(text) <= 1


def test_each_answer_is_rated_once_and_in_its_place(tmp_path):
    with Loopback(by_words) as server:
        scorer = judge_at(server, tmp_path)
        answers = ["a b c d", "a", "", "a b c d", "  "]
        assert scored(scorer, answers) == pytest.approx([3 / 9, 0.0, 0.0, 3 / 9, 0.0])
        assert sorted(map(asked_of, server.asked)) == [("Who?", "a"), ("Who?", "a b c d")], "empty ones are not asked"
        assert scored(scorer, answers[::-1]) == pytest.approx([0.0, 3 / 9, 0.0, 0.0, 3 / 9])
        assert len(server.asked) == 2, "and none twice: the cache remembers"
        assert (scorer.counts["requests"], scorer.counts["cache_hits"]) == (2, 2)
        assert server.asked[0].body["messages"][0]["content"] == prompt("rating").system
        assert scored(scorer, ["a b"], ["How?"]) == pytest.approx([1 / 9])
        assert prompt("rating").name.startswith("rating-1 (")


def test_no_more_at_once_than_the_recipe_says():
    gate = threading.Barrier(3)

    def answer(asked):
        gate.wait(30)  # passes only if three are under way together
        return by_words(asked)

    with Loopback(answer) as server:
        found = scored(judge_at(server, concurrency=3), [" ".join(["a"] * n) for n in range(1, 10)])
        assert found == pytest.approx([n / 9 for n in range(9)])
        assert server.most_at_once == 3


def test_a_judge_that_lies_or_babbles_leaves_unscored_and_is_counted():
    faults = {"lie": chat("Score: 99"), "babble": chat("A fine answer!"), "html": wrong_json,
              "refuse": status(400, "too rude"), "null": chat(None)}  # fmt: skip

    def answer(asked):
        return faults.get(asked_of(asked)[1]) or by_words(asked)

    with Loopback(answer) as server:
        scorer = judge_at(server)
        assert scored(scorer, [*faults, "fine"]) == [None] * 5 + [0.0]
        assert scorer.counts["failures"] == 2, "what cannot be used; lies and babble are answers that say nothing"


def test_a_judge_that_hangs_is_given_up_and_leaves_unscored():
    with Loopback(lambda asked: stalls) as server:
        scorer = judge_at(server, timeout=0.3, retries=1)
        assert scored(scorer, ["a b", "a"]) == [None, None]
        assert (scorer.counts["requests"], scorer.counts["failures"]) == (4, 2)


def test_a_fault_that_passes_is_asked_again():
    with Loopback(Scripted(by_words, status(503, retry_after="0"))) as server:
        scorer = judge_at(server, retries=1)
        assert scored(scorer, ["a b"]) == pytest.approx([1 / 9])
        assert scorer.counts["retries"] == 1


def test_a_judge_that_dies_stops_training_with_its_reason_and_what_it_said_is_kept(tmp_path):
    with Loopback(by_words) as server:
        scorer = judge_at(server, tmp_path, concurrency=1)
        assert scored(scorer, ["a b", "a"]) == pytest.approx([1 / 9, 0.0])
    scorer = judge_at(server, tmp_path, concurrency=1)  # a connection of its own: the old one is served to its end
    with pytest.raises(EndpointError, match=r"failed 10 requests in a row.*what it answered is kept") as gone:
        scored(scorer, [f"{n} words" for n in range(20)])
    assert scored(scorer, ["a b", "a"]) == pytest.approx([1 / 9, 0.0])
    again = pickle.loads(pickle.dumps(gone.value))  # from a training process to its parent
    assert (type(again), str(again), again.fault.kind) == (EndpointError, str(gone.value), gone.value.fault.kind)


def test_a_refused_key_stops_at_once():
    with Loopback(lambda asked: status(401, "who are you")) as server:
        with pytest.raises(EndpointError, match="refuses"):
            scored(judge_at(server, concurrency=1), [f"{n}" for n in range(20)])
        assert len(server.asked) == 1


class Rater:
    """Rates without a server: by length."""

    def rate(self, requests, answers):
        return [
            min(1.0, len(answer) / 10) if request else None for request, answer in zip(requests, answers, strict=True)
        ]


anything = st.one_of(st.none(), st.integers(), st.text(), st.lists(st.text(max_size=5), max_size=3), st.binary())


@settings(max_examples=80, deadline=None, derandomize=True)
@given(rows=st.lists(st.tuples(anything, anything), max_size=6), order=st.randoms(use_true_random=False))
def test_total_bounded_and_without_order(rows, order):
    scorer = scorers.build("judge", judge=Rater())
    whole = scored(scorer, [row[1] for row in rows], [row[0] for row in rows])
    assert all(value is None or 0 <= value <= 1 for value in whole)
    places = list(range(len(rows)))
    order.shuffle(places)
    turned = scored(scorer, [rows[place][1] for place in places], [rows[place][0] for place in places])
    assert turned == [whole[place] for place in places]
