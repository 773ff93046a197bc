import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbalign.errors import DataError
from rbalign.text.normalise import for_wer, wer, word_errors


def test_spelling_case_marks_and_number_forms_are_no_errors():
    assert for_wer("Mr. Gray paid twenty-five dollars!") == for_wer("mister grey paid $25")
    assert wer(["I have twenty minutes, colour it."], ["i have 20 minutes color it"]) == 0.0


def test_the_rate_is_of_the_corpus_not_the_mean_of_its_lines():
    references, hypotheses = (
        ["one two three four five six seven eight", "cat"],
        ["one two three four five six seven eight", "dog"],
    )
    references = [text.replace("one two", "alpha beta") for text in references]
    hypotheses = [text.replace("one two", "alpha beta") for text in hypotheses]
    errors = [word_errors(r, h) for r, h in zip(references, hypotheses, strict=True)]
    assert errors[1] == (1, 1)
    assert wer(references, hypotheses) == 1 / (errors[0][1] + 1)


def test_what_stands_in_brackets_was_said_but_not_heard():
    said = "How do I cook lobster? (Make note of [your] marks)"
    assert word_errors(said, "How do I cook lobster? Make note of your marks.") == (0, 10)
    assert word_errors("How do I cook lobster?", "(laughs) How do I cook lobster? [music]") == (0, 5)


def test_pauses_leave_no_words():
    assert for_wer("Wait... what… now....") == "wait what now"


def test_substitutions_deletions_and_insertions_count():
    assert word_errors("the red cat sat", "the blue cat") == (2, 4)
    assert word_errors("the cat", "the big fat cat") == (2, 2)
    assert word_errors("the cat", "") == (2, 2)
    assert word_errors("...", "something said") == (2, 0)


def test_lists_that_do_not_pair_are_refused():
    with pytest.raises(DataError, match="2 references and 1 hypotheses"):
        wer(["a", "b"], ["a"])
    with pytest.raises(DataError, match="no reference holds a word"):
        wer(["..."], ["a"])


@given(st.text())
def test_a_text_has_no_errors_against_itself(text):
    assert word_errors(text, text)[0] == 0
