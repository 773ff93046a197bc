"""Scorers: golden cases by hand, totality, bounds."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbalign import scorers
from rbalign.errors import DataError, UsageError
from rbalign.eval.consistency import pair_mean
from rbalign.scorers.base import as_text
from rbalign.scorers.constraints import follows
from rbalign.scorers.qa import matches, tokens


class LetterCounts:
    """An embedder by hand: counts of the letters a to z, normalised."""

    name = "letters"

    def embed(self, texts):
        out = np.array([[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], dtype=np.float32)
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)


def score(name, completions, **columns):
    resources = {"embedder": LetterCounts()} if name in ("similarity", "consistency", "relevance") else {}
    return scorers.build(name, **resources)(["?"] * len(completions), completions, [[]] * len(completions), **columns)


@pytest.mark.parametrize(
    ("answer", "aliases", "right"),
    [
        ("It was Richard Nixon.", ["Richard Nixon"], True),
        ("There are seven continents.", ["7"], True),
        ("There are 7 continents.", ["seven"], True),
        ("An octopus has three hearts", ["3"], True),
        ("In nineteen eighty-four, I think.", ["1984"], True),
        ("Twenty-four ribs", ["24"], True),
        ("I love a party", ["art"], False),
        ("He was a partial artist.", ["art"], False),
        ("vitamin D", ["Vitamin A"], False),
        ("vitamin A", ["Vitamin A"], True),
        ("The answer is andromeda galaxy", ["The Andromeda Galaxy"], True),
        ("Aluminum", ["Aluminium"], True),
        ("Hawaii, and also Arizona", ["Arizona & Hawaii"], True),
        ("Hawaii only", ["Arizona & Hawaii"], False),
        ("(Paris)", ["Paris"], True),
        ("1,877 people", ["1877"], True),
        ("world war one", ["World War 1"], True),
        ("70", ["7"], False),
        ("", ["Paris"], False),
        ("the", ["the"], True),
        ("It is the Arctic Ocean", ["Pacific", "arctic ocean"], True),
    ],
)
def test_qa_golden(answer, aliases, right):
    assert score("qa", [answer], aliases=[aliases]) == [float(right)]
    assert matches(answer, aliases) is right


def test_qa_unscored_without_aliases():
    assert score("qa", ["Paris"] * 4, aliases=[[], None, ["?!"], ["Paris"]]) == [None, None, None, 1.0]
    assert score("qa", ["Paris"]) == [None]


@pytest.mark.parametrize(
    ("answer", "alias", "ours", "ultraeval", "vocalbench"),
    [
        ("There are seven.", "7", True, False, True),
        ("I love a party", "art", False, False, True),
        ("Zurich", "Zürich", True, False, True),
        ("Zu\u0308rich!", "zürich", True, True, True),  # composed and decomposed are one
        ("It is U.S.A.", "U S A", True, True, True),  # marks become blanks
        ("the colour", "color", True, False, True),
        ("the beatles", "The Beatles", True, True, True),
        ("Beatles", "The Beatles", True, False, False),  # only ours frees an alias of its article
        ("(Paris)", "Paris", True, True, False),  # Whisper's normaliser drops what stands in brackets
        ("new york city", "York", True, True, True),
        ("", "Paris", False, False, False),
    ],
)
def test_three_rules_for_one_answer(answer, alias, ours, ultraeval, vocalbench):
    found = [score(name, [answer], aliases=[[alias]])[0] for name in ("qa", "qa-ultraeval", "qa-vocalbench")]
    assert found == [float(one) for one in (ours, ultraeval, vocalbench)]


def test_tokens_fold_spelling_and_numbers():
    assert tokens("The colour of twenty-one flags!") == ("the", "color", "of", "21", "flags")
    assert tokens("one") == ("1",)


def test_chrf_golden():
    same, other, empty, unscored = score("chrf", ["a cat sat", "zzzz", "", "a"], answer=["a cat sat"] * 3 + [None])
    assert same == pytest.approx(1.0)
    assert other == 0.0
    assert empty == 0.0
    assert unscored is None
    # By hand, order 1 and 2 only contribute for two letters: "ab" against "ac" has P = R = 1/2 at order 1, 0 at 2;
    # sacrebleu averages orders that both sides have: P = R = 1/4, so F2 = 1/4.
    assert score("chrf", ["ab"], answer=["ac"]) == [pytest.approx(0.25)]


def test_similarity_by_hand():
    values = score("similarity", ["aab", "b", "", "a"], answer=["ab", "a", "a", ""])
    assert values[0] == pytest.approx(3 / np.sqrt(10), abs=1e-6)
    assert values[1:] == [0.0, 0.0, None]


def test_similarity_target_is_a_choice():
    scorer = scorers.build("similarity", embedder=LetterCounts(), against="reference")
    assert scorer(["?"], ["a"], [[]], answer=["b"], reference=["a"]) == [pytest.approx(1.0)]


def test_likelihood_is_the_mean_and_bounded():
    columns = {"teacher_logprobs": [[-1.0, -3.0], [], None, [float("nan")], [float("-inf")], "rubbish"]}
    assert score("teacher-likelihood", ["x"] * 6, **columns) == [-2.0, None, None, None, -50.0, None]
    assert scorers.build("teacher-likelihood").needs == {"teacher_logprobs"}


def test_hidden_similarity_is_the_mean_cosine_of_the_tokens():
    columns = {"hidden_cosines": [[1.0, 0.5], [], None, [float("nan")], [1.5], [-0.25]]}
    assert score("hidden-similarity", ["x"] * 6, **columns) == [0.75, None, None, None, 1.0, -0.25]
    assert scorers.build("hidden-similarity").needs == {"hidden_cosines"}


def test_consistency_by_hand():
    """Letters: ab to a is 1/sqrt 2, ab to b likewise, a to b 0; a view's own second sample does not count."""
    said = ["ab", "a", "a", "b", "", "a"]
    groups, views = ["e1", "e1", "e1", "e1", "e2", "e2"], [0, 1, 1, 2, 0, 1]
    half = 1 / np.sqrt(2)
    found = score("consistency", said, group=groups, view=views)
    assert found == pytest.approx([half, half / 2, half / 2, half / 3, 0.0, 0.0], abs=1e-6)


def test_consistency_needs_another_view_of_a_known_instruction():
    one_view = score("consistency", ["a", "a"], group=["e", "e"], view=[1, 1])
    nobodys = score("consistency", ["a"] * 4, group=["e", "f", None, None], view=[1, 2, 3, 4])
    unknown = score("consistency", ["a"] * 3, group=["e"] * 3, view=[1, None, None])
    assert one_view + nobodys + unknown + score("consistency", ["a", "a"]) == [None] * 11
    assert scorers.build("consistency", embedder=LetterCounts()).needs == {"group", "view"}


letters = st.lists(st.tuples(st.text("abc", max_size=3), st.sampled_from("xyz"), st.integers(0, 2)), max_size=12)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(rows=letters, order=st.randoms(use_true_random=False))
def test_consistency_does_not_depend_on_order_or_on_other_instructions(rows, order):
    def scored(rows):
        columns = {"group": [row[1] for row in rows], "view": [row[2] for row in rows]}
        return score("consistency", [row[0] for row in rows], **columns)

    whole = scored(rows)
    places = list(range(len(rows)))
    order.shuffle(places)
    assert scored([rows[place] for place in places]) == pytest.approx([whole[place] for place in places])
    for name in "xyz":
        own = [place for place in places if rows[place][1] == name]
        assert scored([rows[place] for place in own]) == pytest.approx([whole[place] for place in own])


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.text("abcd", min_size=1, max_size=4), min_size=2, max_size=6))
def test_the_mean_of_consistency_scores_is_the_metric(said):
    """One answer a view: the reward's mean over them is the cross-view cosine that `rba eval` reports, by hand here."""
    vectors = LetterCounts().embed(said)
    pairs = [float(vectors[i] @ vectors[j]) for i in range(len(said)) for j in range(i)]
    found = score("consistency", said, group=["e"] * len(said), view=list(range(len(said))))
    assert np.mean(found) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert pair_mean(vectors) == pytest.approx(np.mean(pairs), abs=1e-6)


anything = st.one_of(st.none(), st.integers(), st.text(), st.lists(st.text(max_size=5), max_size=3), st.binary())
BOUNDS = {
    "relevance": (-1, 1),
    "polarity": (0, 1),
    "similarity": (-1, 1), "chrf": (0, 1), "bleu": (0, 1), "teacher-likelihood": (-50, 0), "qa": (0, 1),
    "qa-ultraeval": (0, 1), "qa-vocalbench": (0, 1),
    "hidden-similarity": (-1, 1), "consistency": (-1, 1),
    "length": (0, 1), "repetition": (0, 1), "novelty": (0, 1), "language": (0, 1), "constraints": (0, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BOUNDS))
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(anything, anything), max_size=4))
def test_total_and_bounded(name, rows):
    completions = [completion for completion, _ in rows]
    column = [target for _, target in rows]
    names = ("answer", "reference", "aliases", "teacher_logprobs", "hidden_cosines", "group", "view")
    values = score(name, completions, **dict.fromkeys(names, column))
    low, high = BOUNDS[name]
    assert len(values) == len(rows)
    assert all(value is None or low <= value <= high for value in values)


def test_bleu_golden():
    said = ["the cat sat on the mat", "the cat", "", "x"]
    same, part, empty, unscored = score("bleu", said, answer=["the cat sat on the mat"] * 3 + [None])
    assert same == pytest.approx(1.0)
    # Precisions 1 (effective order 2), brevity exp(1 - 6/2).
    assert part == pytest.approx(np.exp(-2), rel=1e-6)
    assert (empty, unscored) == (0.0, None)


def test_degenerate_answers_give_themselves_away():
    answer = "The capital of France is Paris."
    said = [
        answer,
        "",
        "Paris Paris Paris Paris Paris Paris",
        "What is the capital of France?",
        "Der Fluss ist sehr lang und tief.",
    ]
    of = {name: scorers.build(name)(["What is the capital of France?"] * 5, said, [[]] * 5, answer=[answer] * 5)
          for name in ("length", "repetition", "novelty", "language")}  # fmt: skip
    assert of["length"] == [1.0, 0.0, 1.0, 1.0, 6 / 7]
    assert of["repetition"] == [1.0, 0.0, 0.25, 1.0, 1.0]
    assert of["novelty"] == [0.5, 0.0, 1.0, 0.0, 1.0]
    assert of["language"] == [1.0, 0.0, of["language"][2], 1.0, 0.0]


def test_a_weighted_sum_is_unscored_where_a_part_is():
    mixed = scorers.build({"length": 3.0, "qa": 1.0})
    assert mixed.needs == frozenset()
    columns = {"answer": ["Paris now", "Rome", ""], "aliases": [["Paris"]] * 3}
    assert mixed(["?"] * 3, ["Paris", "Rome", "Oslo"], [[]] * 3, **columns) == [(3 * 0.5 + 1) / 4, 3 / 4, None]


@pytest.mark.parametrize(
    ("constraint", "arguments", "kept", "broken"),
    [
        ("change_case:english_capital", {}, "I AM 4 YOU!", "I AM 4 you"),
        ("change_case:english_capital", {}, "ÉTÉ", "123"),
        ("change_case:english_lowercase", {}, "all small, 3 words", "All small"),
        ("startend:quotation", {}, ' "Yes." ', '"'),
        ("startend:quotation", {}, '"a" or "b"', '"Yes.'),
        ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "a: 1"),
        ("detectable_format:json_format", {}, "```JSON [1]```", "``` json {} ``` and more"),
        ("detectable_format:title", {}, "<<A song>> la la", "<< >> la"),
        ("detectable_format:title", {}, "<< >> and <<yes>>", "<<one\ntwo>>"),
        ("detectable_format:title", {}, "<<< >> x >>", "<<>>>"),
        ("detectable_format:json_format", {}, "[[[]]]", "[" * 5000),
        ("combination:repeat_prompt", {"prompt_to_repeat": " Say it. "}, '"Say it." Well', "Well, say it."),
        ("startend:end_checker", {"end_phrase": "Any more?"}, 'Yes. any more?"', "Any more? No."),
        ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n** b"),
        ("detectable_format:number_bullet_lists", {"num_bullets": 3}, "• a\\n 1. b\\n- c", "• a\n1. b\n- c\n2 d"),
        ("keywords:existence", {"keywords": ["Cat", "dog"]}, "concatenated dogs", "a cat"),
        ("keywords:forbidden_words", {"forbidden_words": ["art"]}, "a party", "Art, you say"),
        ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\none\n\ntwo\n", "one *** *** two"),
        ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one***two", "one"),
        ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "Yes. No", "Yes."),
        (
            "length_constraints:number_sentences",
            {"num_sentences": 2, "relation": "less than"},
            "It is 3.5 km.",
            "A. B.",
        ),
        ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "two words", "It's two"),
        ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "It's two", "two words"),
    ],
)
def test_constraints_golden(constraint, arguments, kept, broken):
    assert follows(kept, constraint, arguments)
    assert not follows(broken, constraint, arguments)
    assert not follows(" \n", constraint, arguments)


def test_constraints_of_a_row_must_all_hold():
    rows = [[["startend:quotation", {}], ["change_case:english_lowercase", None]]] * 2 + [[], None]
    assert score("constraints", ['"yes"', '"Yes"', "x", "x"], constraints=rows) == [1.0, 0.0, None, None]
    with pytest.raises(UsageError, match=r"unknown constraint 'startend:quote'.*startend:quotation"):
        follows("x", "startend:quote")
    with pytest.raises(DataError, match="num_word"):
        follows("x", "length_constraints:number_words", {"num_word": 3})


def test_messages_and_lone_surrogates_are_texts():
    assert as_text([{"role": "assistant", "content": "hello"}]) == "hello"
    assert score("qa", ["\ud800 Paris"], aliases=[["Paris"]]) == [1.0]
    assert len(as_text("x" * 10**6)) == 8_000


def test_unknown_name_and_resource():
    assert scorers.names() == sorted(
        [*BOUNDS, "judge", "reward-model"]
    )  # test_scorers_judge.py, test_scorers_reward.py
    with pytest.raises(UsageError, match="did you mean 'chrf'"):
        scorers.build("chrff")
    with pytest.raises(UsageError, match="constructor"):
        scorers.build("qa", temperature=1)


def test_listing_imports_no_torch():
    code = "import sys; from rbalign import scorers; scorers.names(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.assets
@pytest.mark.parametrize("name", ["minilm", "wordllama"])
def test_embedders_put_paraphrases_closer(name):
    from rbalign.scorers.similarity import build_embedder

    vectors = build_embedder(name).embed(["How do I cook rice?", "What is the way to boil rice?", "Paris", ""])
    assert np.allclose(np.linalg.norm(vectors[:3], axis=1), 1, atol=1e-5)
    assert not vectors[3].any()
    assert vectors[0] @ vectors[1] > 0.6 > 0.4 > vectors[0] @ vectors[2]
