"""Practice sentences: every word comes round, marks and capitals stay, and only their own rule speaks them."""

from collections import Counter
from types import SimpleNamespace

import pytest
from test_synth import RECIPE, FakeTeacher, fakes  # noqa: F401
from tiny import tiny_tokenizer

from rbalign.config.synth import ViewPlan
from rbalign.data.dataset import Dataset
from rbalign.errors import DataError
from rbalign.rundir.run import RunDir
from rbalign.stages import synth as stage
from rbalign.synth.speak import plan_views
from rbalign.synth.vocabulary import (
    OFTENER,
    SOURCE,
    inflected_words,
    practice_examples,
    practice_words,
    vocabulary_words,
)
from rbalign.types import Example
from rbalign.voices.bank import load_bank


class WholeWords(list):
    """A tokenizer whose tokens are whole words."""

    def batch_decode(self, rows):
        return [self[row] for (row,) in rows]

    def __call__(self, texts, add_special_tokens):
        return {"input_ids": [[0] if text in self else [0, 0, 0] for text in texts]}


WORDS = ["alpha", "beta", "gamma", "delta", "Malawi"]
TEXTS = ["How do I paint, repair and clean it?", 'She said "maybe" to my old friend.']


def test_words_are_single_tokens_that_a_voice_can_pronounce():
    tokenizer = tiny_tokenizer()
    with pytest.raises(DataError, match="lexicon"):
        vocabulary_words(tokenizer, {"birds"})
    found = vocabulary_words(tokenizer, {"please", "to", "birds", "plea"})
    assert len(found) == 3
    assert set(found) == {"please", "to", "plea"}
    for word in found:
        assert len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1


def test_inflected_words_are_those_that_the_lexicon_derives():
    lexicon = {"berry", "plant", "bake", "stop", "go", "voice", "his", "see"}
    words = ["berries", "planting", "baked", "stopped", "goes", "voices", "his", "tions", "Plants", "seen", "strength"]
    tokenizer = WholeWords(f" {word}" for word in words)
    assert inflected_words(tokenizer, lexicon) == ["berries", "planting", "baked", "stopped", "goes", "voices"]
    with pytest.raises(DataError, match="lexicon"):
        inflected_words(tokenizer, {"xylophone"})
    listed, derived = vocabulary_words(tokenizer, lexicon), inflected_words(tokenizer, lexicon)
    assert practice_words(tokenizer, lexicon, "lexicon") == listed == ["his"]
    assert practice_words(tokenizer, lexicon, "inflected") == derived
    assert practice_words(tokenizer, lexicon, "all") == listed + derived
    assert Counter(practice_words(tokenizer, lexicon, "all", 2)) == dict.fromkeys([*listed, *derived], OFTENER)


def test_longer_words_and_names_come_too_and_short_ones_oftener():
    tokenizer = tiny_tokenizer()
    lexicon = {"please", "to", "birds", "plea", "xylophonists", "don't"}
    size = {word: len(tokenizer.encode(f" {word}", add_special_tokens=False)) for word in lexicon}
    assert size["please"] == 1 < size["birds"] < size["xylophonists"]
    found = Counter(vocabulary_words(tokenizer, lexicon, pieces=size["birds"]))
    assert found["please"] == OFTENER
    assert found["birds"] == 1
    assert "xylophonists" not in found
    assert "don't" not in found

    names = WholeWords([" France", " tea", "France"])
    assert vocabulary_words(names, {"france", "tea"}) == ["tea"]
    assert vocabulary_words(names, {"france", "tea"}, pieces=2) == ["France", "tea"] * OFTENER


def test_all_words_may_be_replaced():
    said = {
        word.strip('",.?').lower() for e in practice_examples(9, TEXTS, WORDS, 3, 1.0) for word in e.instruction.split()
    }
    assert said == {word.lower() for word in WORDS}


def test_every_word_comes_before_any_comes_again():
    examples = practice_examples(40, TEXTS, WORDS, seed=3)
    said = Counter(word.strip('",.?').lower() for e in examples for word in e.instruction.split())
    counts = [said[word.lower()] for word in WORDS]
    assert min(counts) > 10
    assert max(counts) - min(counts) <= 1
    assert examples == practice_examples(40, TEXTS, WORDS, seed=3)
    assert examples != practice_examples(40, TEXTS, WORDS, seed=4)
    assert practice_examples(10, TEXTS, WORDS, seed=3) == examples[:10], "more sentences keep the first"


def test_marks_and_capitals_of_the_sentence_stay():
    for example in practice_examples(40, TEXTS, WORDS, seed=3):
        first, *_, last = example.instruction.split()
        assert first[0].isupper()
        assert last[-1] in "?."
        assert example.instruction.count(",") in (0, 1)
        assert example.answer is None
        assert example.split == "train"


@pytest.mark.parametrize("of", ["all", "written", SOURCE])
def test_a_rule_speaks_its_own_kind_alone(of):
    rule = ViewPlan(voices="hibari", per_example=1, splits=("train",), of=of)
    written = Example("a", "train", "Hello", "Hello")
    (practice,) = practice_examples(1, TEXTS, WORDS, seed=0)
    spoken = [e.id for e in (written, practice) if plan_views(e, (rule,), load_bank(), 0)]
    assert spoken == {"all": ["a", practice.id], "written": ["a"], SOURCE: [practice.id]}[of]


def test_the_stage_adds_them_and_the_written_ones_stay_as_they_were(tmp_path, fakes, monkeypatch):  # noqa: F811
    teacher = FakeTeacher()
    teacher.lm = SimpleNamespace(tokenizer=tiny_tokenizer())
    monkeypatch.setattr(stage, "open_teacher", lambda config: teacher)
    monkeypatch.setattr(stage, "pronounced_words", lambda: {"please", "to", "of"})
    (rule,) = RECIPE.synth.views
    rules = (
        rule.model_copy(update={"of": "written"}),
        ViewPlan(of=SOURCE, voices="hibari", per_example=1, splits=("train",)),
    )
    practising = RECIPE.model_copy(update={"synth": RECIPE.synth.model_copy(update={"vocabulary": 6, "views": rules})})
    with RunDir.open(tmp_path / "a", RECIPE) as run:
        stage.run(RECIPE, run)
        before = Dataset.open(run.path("data"))
    with RunDir.open(tmp_path / "b", practising) as run:
        rows = {row.what: row.count for row in stage.plan(practising, run).rows}
        assert rows["speak views with hibari"] == 6
        stage.run(practising, run)
        after = Dataset.open(run.path("data"))
    examples = after.examples("train")
    assert [e.labels.get("source") for e in examples] == [None] * 10 + [SOURCE] * 6
    assert examples[:10] == before.examples("train")
    assert [v.id for v in after.views("train")][:40] == [v.id for v in before.views("train")]
    assert len(after.views("train")) == 40 + 6
