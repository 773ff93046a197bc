import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbalign.data import signatures as module
from rbalign.data.signatures import NEAR, PERMUTATIONS, Signatures, jaccard, signature
from rbalign.errors import DataError

TEN = "could you please tell me how tall the tower is"


def test_one_changed_word_in_ten_is_a_near_duplicate_and_another_question_is_not():
    assert jaccard(TEN, TEN.replace("tall", "old")) >= NEAR
    assert jaccard(TEN, TEN.replace("tall", "old").replace("tower", "church")) < NEAR
    assert jaccard("What is the capital of France?", "What is the capital of Spain?") < NEAR


def test_case_punctuation_and_apostrophes_do_not_matter():
    assert jaccard("What’s THAT, then?", "what's that then") == 1.0
    assert Signatures.build(["What’s THAT, then?"]).worst("what's that then") == 1.0


def test_the_estimate_is_unbiased_and_as_exact_as_promised_around_the_threshold():
    rng = random.Random(0)
    words = [f"w{n}" for n in range(3000)]
    errors = []
    while len(errors) < 600:
        one = rng.choices(words, k=20)
        other = [rng.choice(words) if rng.random() < 0.1 else word for word in one]
        exact = jaccard(" ".join(one), " ".join(other))
        if 0.6 <= exact <= 0.8:
            errors.append(Signatures.build([" ".join(one)]).worst(" ".join(other)) - exact)
    promised = np.sqrt(0.7 * 0.3 / PERMUTATIONS)
    assert abs(np.mean(errors)) < 4 * promised / np.sqrt(600)
    assert promised * 0.8 < np.std(errors) < promised * 1.2


def test_unrelated_texts_score_low():
    rng = random.Random(1)
    texts = [" ".join(f"w{rng.randint(0, 3000)}" for _ in range(15)) for _ in range(2000)]
    assert Signatures.build(texts[:-1]).worst(texts[-1]) < 0.25


def test_signatures_are_the_same_on_every_machine_and_in_every_version():
    """Shipped signatures must keep their meaning: these numbers may never change."""
    assert signature(TEN)[:8].tolist() == GOLDEN


GOLDEN = [10, 125, 111, 46, 118, 70, 78, 79]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(), max_size=8), st.lists(st.text(), max_size=300), st.text())
def test_adding_one_by_one_equals_building_at_once(first, more, probe):
    grown = Signatures.build(first)
    for text in more:
        grown.add(text)
    assert len(grown) == len(first) + len(more)
    assert grown.worst(probe) == Signatures.build(first + more).worst(probe)
    for text in first + more:
        assert grown.worst(text) == 1.0


def test_a_union_keeps_order_and_drops_what_is_there_already():
    both = Signatures.build(["one two", "three"]).union(Signatures.build(["three", "four five six", "one two"]))
    assert len(both) == 3
    assert [both.worst(text) for text in ("one two", "three", "four five six")] == [1.0, 1.0, 1.0]
    assert len(Signatures.build(()).union(Signatures.build(()))) == 0


def test_saved_signatures_are_small_and_load_as_they_were(tmp_path):
    path = tmp_path / "seen.minhash"
    signatures = Signatures.build([TEN, "another one entirely"])
    signatures.add("and a third")
    signatures.save(path)
    assert path.stat().st_size < 3 * 128 + 100
    loaded = Signatures.load(path)
    assert len(loaded) == 3
    assert loaded.near_duplicates(["something else", TEN, "and a third"]) == [1, 2]
    loaded.add("a fourth")
    assert loaded.worst("a fourth") == 1.0


def test_nothing_seen_is_near_nothing():
    assert Signatures.build([]).worst("anything") == 0.0


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "seen.minhash"
    with pytest.raises(DataError, match="cannot read signatures"):
        Signatures.load(path)
    path.write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match="does not hold rbalign signatures"):
        Signatures.load(path)
    Signatures.build([TEN]).save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="does not hold rbalign signatures"):
        Signatures.load(path)


WORDS = [f"w{n}" for n in range(60)]


def varied(rng, text):
    """The text with up to all of its words changed: similarities of every size."""
    changed = rng.random()
    return " ".join(rng.choice(WORDS) if rng.random() < changed else word for word in text.split())


@pytest.mark.parametrize("threshold", [-0.1, 0.0, 0.3, 0.5, 0.66, NEAR, 0.75, 0.8, 0.9, 0.99, 1.0, 1.1])
def test_filed_rows_give_the_answers_of_comparing_with_every_row(monkeypatch, threshold):
    monkeypatch.setattr(module, "TAIL", 40)
    rng = random.Random(2)
    seeds = [" ".join(rng.choices(WORDS, k=12)) for _ in range(15)]
    grown = Signatures.build([])
    answers = []
    for _ in range(500):
        text = varied(rng, rng.choice(seeds))
        answers.append(grown.has_near(text, threshold))
        assert answers[-1] == (grown.worst(text) >= threshold)
        grown.add(text)
    if 0.3 <= threshold <= 0.99:
        assert 20 < sum(answers) < 480, "both answers must occur"
    if threshold >= module.NEAR:
        assert grown._filed is not None
        assert 0 < len(grown) - grown._filed.count <= 41


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, PERMUTATIONS), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
def test_no_row_at_the_threshold_is_missed(equal, seed):
    """Rows with just enough equal bytes, wherever they lie, meet the text often enough: the pigeonhole bound."""
    noise = np.random.default_rng(seed)
    own = signature(TEN)
    rows = np.stack([own] * len(equal))
    for row, same in zip(rows, equal, strict=True):
        row[noise.permutation(PERMUTATIONS)[same:]] += noise.integers(1, 256, PERMUTATIONS - same, dtype=np.uint8)
    for least in (87, 90, 128):
        width = module._band_width(least)
        times = PERMUTATIONS // width - (PERMUTATIONS - least)
        met = module._Filed(rows, width).meeting(own, times)
        assert {n for n, same in enumerate(equal) if same >= least} <= set(met.tolist())


def test_many_rows_are_compared_in_blocks(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 3)
    texts = [f"number {n} of {n * n} things" for n in range(20)]
    assert [Signatures.build(texts).worst(text) for text in texts] == [1.0] * 20


def test_few_rows_are_compared_when_many_are_filed(monkeypatch):
    monkeypatch.setattr(module, "TAIL", 100)
    rng, words = random.Random(3), [f"x{n}" for n in range(4000)]
    filed = Signatures.build(" ".join(rng.choices(words, k=12)) for _ in range(3000))
    compared, original = [], Signatures._most_equal

    def counted(rows, own, chosen=None):
        compared.append(len(rows) if chosen is None else len(chosen))
        return original(rows, own, chosen)

    monkeypatch.setattr(Signatures, "_most_equal", staticmethod(counted))
    assert not filed.has_near("what should I cook for dinner tonight when nobody is hungry")
    assert sum(compared) < 30
