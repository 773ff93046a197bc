"""Disfluencies: insertions that can be taken out again, speakable, keyed, with what was retracted."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbalign.config.views import DELIVERIES, RETRACTING
from rbalign.data.dataset import Dataset
from rbalign.errors import UsageError
from rbalign.synth.heldout import SHIPPED_FOLDER
from rbalign.text.disfluency import FALLBACKS, OPENERS, PROLONGED, disfluent
from rbalign.text.speakable import speakability

RICH = "Could you book a table for Friday at seven? I want to sit near the window with my mother."
words = st.sampled_from(
    [*RICH.split(), "Paris", "red", "twenty-four", "I", "a", '"quote"', "so", "(well)", "12", "-", "ça"]
)
sentences = st.lists(words, min_size=1, max_size=25).map(" ".join)
texts = sentences | st.text(max_size=60)
deliveries = (
    st.lists(st.sampled_from(DELIVERIES), min_size=1, max_size=3, unique=True)
    .filter(lambda kinds: not set(RETRACTING) <= set(kinds))
    .map("+".join)
)


def said(text, delivery, seed=0):
    return disfluent(text, delivery, np.random.default_rng(seed))


def undone(way):
    text = way.said
    for start, end in reversed(way.inserted):
        text = text[:start] + text[end:]
    return text


@settings(max_examples=150)
@given(texts, deliveries, st.integers(0, 2**32))
def test_any_text_can_be_made_disfluent_and_fluent_again(text, delivery, seed):
    way = said(text, delivery, seed)
    if way is None:
        assert not re.search(r"\w", text)
        return
    assert way.said != text == way.fluent == undone(way)
    assert all(start < end for start, end in way.inserted)
    assert way == said(text, delivery, seed)
    assert set(way.kinds) <= set(DELIVERIES)
    assert (way.retracted is not None) == bool(set(RETRACTING) & set(way.kinds))
    if way.retracted is not None:
        assert way.retracted in way.said
        assert way.retracted.lower() not in text.lower()


@pytest.mark.parametrize("kind", DELIVERIES)
def test_every_kind_is_there_for_an_ordinary_request(kind):
    ways = [said(RICH, kind, seed) for seed in range(20)]
    assert {way.kinds for way in ways} == {(kind,)}
    assert len({way.said for way in ways}) > 5


PATTERNS = {
    "filler": r"\b(um|uh|er|you know|I mean|like),",
    "word-repetition": r"\b([\w-]+),? \1\b",
    "phrase-repetition": r"\b(\w+(?: \w+){1,3}), \1\b",
    "stutter": r"\b([A-Za-z]+)- (\1- )?\1[a-z]",
    "pause": r"\w\.\.\. \w",
    "prolongation": r"\b(\w+)-(oh|oo|uh|eye|ow|ee|or|air)\b",
    "restart": r"^|\? [A-Z][^,]+, [^,]+, ",
    "reback": r"\b(\w+(?: \w+){1,7}), (let me|wait|sorry|hold on).* \1\b",
    "correction": r"\w+, (no|sorry|I mean|actually)",
}


@pytest.mark.parametrize("kind", DELIVERIES)
def test_every_kind_looks_like_its_kind(kind):
    assert not re.search(PATTERNS[kind], RICH) or kind == "restart"
    for seed in range(20):
        assert re.search(PATTERNS[kind], said(RICH, kind, seed).said, re.IGNORECASE), said(RICH, kind, seed).said


def test_long_texts_get_more_of_the_short_kinds():
    long = " ".join(["The little dog near our house likes the garden."] * 4)
    for kind, count in {"filler": 4, "stutter": 4, "pause": 4, "prolongation": 4, "word-repetition": 4}.items():
        assert len(said(long, kind).inserted) == count
    assert len(said(long, "reback").inserted) == 1


def test_a_composition_does_all_of_its_kinds_at_different_words():
    for seed in range(20):
        way = said(RICH, "pause+stutter+correction", seed)
        assert way.kinds == ("pause", "stutter", "correction")
        assert way.delivery == "pause+stutter+correction"
        assert "..." in way.said
        assert re.search(r"[a-z]- ", way.said)
        assert way.retracted
        apart = said("Paint kitchen", "stutter+word-repetition", seed).inserted
        assert apart[0][1] < apart[1][0], "two words, two kinds"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("Is it on Friday?", r"(Mon|Tues|Wednes|Thurs|Satur|Sun)day"),
        ("Play the blue one.", r"red|green|yellow|purple|pink|brown|grey|black|white"),
        ("It costs twenty-four dollars.", r"twenty-(two|three|five|six|seven|eight|nine)"),
        ("I was born in two thousand five.", r"two thousand (two|three|four|six|seven|eight|nine)"),
        ("Wake me at 7.", r"[1-9]"),
        ("Call Anna.", r"Sarah|Emily|Maria|Julia|Laura|Linda|Susan|Karen|Helen|Alice|Emma"),
        ("I need an affordable sofa.", r"expensive"),
        ("Give me a cheap sofa.", r"nothing: the others begin with a vowel"),
    ],
)
def test_a_correction_says_another_value_of_the_kind_first(text, values):
    for seed in range(30):
        way = said(text, "correction", seed)
        if values.startswith("nothing"):
            assert way.kinds == ("restart",)
        else:
            assert re.fullmatch(values, way.retracted), way.said
            before, _, after = way.said.partition(f"{way.retracted}, ")
            assert text.startswith(before)
            assert after.endswith(text[len(before) :])


def test_what_is_retracted_is_no_other_word_of_the_text():
    week = "Is it Monday, Tuesday, Wednesday, Thursday, Friday or Saturday?"
    assert {said(week, "correction", seed).retracted for seed in range(30)} == {"Sunday"}
    *started, left = OPENERS
    text = " ".join(f"{opener} it?" for opener in started)
    assert {said(text, "restart", seed).retracted for seed in range(30)} == {left}


def test_a_correction_may_say_its_preposition_again():
    ways = {said("Book it for Friday", "correction", seed).said for seed in range(200)}
    assert "Book it for Tuesday, no sorry, for Friday" in ways
    assert "Book it for Tuesday, no sorry, Friday" in ways


@pytest.mark.parametrize(
    "text",
    [
        "May I ask something?",
        "One never knows.",
        "Wait a second.",
        "What is in version 3.1?",
        "A twenty-first try, or 9:30.",
    ],
)
def test_what_is_no_value_is_not_corrected(text):
    assert said(text, "correction").kinds == (FALLBACKS["correction"],)


@pytest.mark.parametrize(
    ("text", "delivery", "kinds"),
    [
        ("Stop!", "phrase-repetition", ("filler",)),
        ("Stop!", "reback", ("filler",)),
        ("Go up.", "stutter", ("filler",)),
        ("Stop!", "pause", ("filler",)),
        ("Stop!", "prolongation", ("filler",)),
        ("Stop!", "correction", ("restart",)),
        ("Stop!", "pause+filler", ("filler",)),
    ],
)
def test_what_a_text_does_not_offer_falls_back_and_says_so(text, delivery, kinds):
    assert said(text, delivery).kinds == kinds


def test_fluent_and_wordless_texts_have_no_disfluency():
    assert said(RICH, "fluent") is None
    assert said("?!", "filler") is None
    assert said("", "correction") is None
    with pytest.raises(UsageError, match="unknown delivery 'stuter'"):
        said(RICH, "stuter")


def test_what_was_speakable_stays_speakable():
    """Of what can be said, on 100 of the shipped requests: only their length may go beyond the bounds."""
    spoken = [example.spoken for example in Dataset.open(SHIPPED_FOLDER).examples()[:100]]
    for number, text in enumerate(text for text in spoken if not speakability(text)):
        for kind in DELIVERIES:
            found = set(speakability(said(text, kind, number).said)) - {"too long", "long sentence"}
            assert not found, said(text, kind, number).said


def test_drawn_out_words_are_in_lower_case_and_their_tails_are_words_of_the_reader():
    assert all(word == word.lower() for word in PROLONGED)
    assert set(PROLONGED.values()) == {"oh", "oo", "uh", "eye", "ow", "ee", "or", "air"}
