"""The filters' thresholds in the recipe: scorers, exact duplicates, mathematics, certainty of the language."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest
from test_scorers_reward import classifier
from test_synth import RECIPE, fakes  # noqa: F401
from test_synth_shards import changed, plain, shared

from rbalign import scorers
from rbalign.config.load import load_recipe
from rbalign.config.recipe import Recipe
from rbalign.config.synth import RATING, FilterConfig, SpeakableConfig, SynthConfig
from rbalign.data.dataset import Dataset
from rbalign.errors import UsageError
from rbalign.rundir.journal import read_rows
from rbalign.rundir.run import RunDir
from rbalign.scorers.registry import SCORERS
from rbalign.stages import synth as stage
from rbalign.synth.accept import Acceptance, digest
from rbalign.synth.filters import draft_cause, drop_cause
from rbalign.synth.parts import merged
from rbalign.types import StopReason

SWIM = "What is the best way to learn to swim?"


def draft(identity, text, answer="Yes."):
    return {"id": f"{identity}", "text": text, "stop": "end", "answer": answer, "answer_stop": "end"}


def judged(said, kind="instructions", **filters):
    """An acceptance that heard (instruction, answer) pairs under these filters."""
    acceptance = Acceptance(SynthConfig(kind=kind, train=99, validation=0, test=0, filters=FilterConfig(**filters)))
    for number, (text, answer) in enumerate(said):
        acceptance.add(draft(number, text, answer))
    return acceptance


# ---- scorers ---------------------------------------------------------------------------------------------------------


def test_an_answer_below_a_scorers_minimum_falls_under_its_name():
    """Runs of three words: 2 different ones of 4, so repetition is 0.5; 3 of 9 that the request lacks."""
    said = [
        ("How do I cook rice for six people?", "Boil rice boil rice boil rice."),
        ("Can you help with the recipe for a corn chowder?", "Can you help me with the recipe for a corn chowder?"),
        ("Why do cats sleep so long every day?", "They hunt at dawn, and rest until then."),
    ]
    assert judged(said).causes == {}
    assert judged(said, scorers={"repetition": 0.5, "novelty": 0.33}).causes == {}
    two = judged(said, scorers={"novelty": 0.34, "repetition": 0.51})
    assert two.causes == {"score below minimum: repetition": 1, "score below minimum: novelty": 1}
    assert two.dropped["score below minimum: novelty"] == [said[1][0]]
    assert [example.instruction for example in two.examples] == [said[2][0]]


def test_a_score_is_asked_after_all_other_filters_and_what_falls_to_it_blocks_nothing():
    echo, fine = "How do I cook rice for six people?", "Boil three cups of it slowly."
    said = [(echo, ""), (echo, echo), (echo, fine), (echo, echo)]
    acceptance = judged(said, scorers={"novelty": 0.5})
    assert acceptance.causes == {"answer empty": 1, "score below minimum: novelty": 1, "duplicate": 1}
    assert [example.answer for example in acceptance.examples] == [fine]


def test_the_same_question_of_a_quiz_may_come_again_with_a_better_answer():
    said = [("Who wrote Emma?", "Jane Jane Jane Jane"), ("Who wrote Emma?", "Jane Austen")]
    acceptance = judged(said, kind="qa", min_words=3, scorers={"repetition": 0.6})
    assert acceptance.causes == {"score below minimum: repetition": 1}
    assert [example.answer for example in acceptance.examples] == ["Jane Austen"]


def test_the_scorer_language_expects_the_language_of_the_answers():
    german = "Das ist eine gute Frage, und die Antwort darauf kennt leider niemand so genau."
    english = "Nobody knows the answer to this question, and that is a pity."
    scored = {"scorers": {"language": 1.0}}
    assert judged([(SWIM, german), (english, english)], **scored).causes == {"score below minimum: language": 1}
    assert judged([(SWIM, german)], kind="s2tt", **scored, language="en").causes == {}


def test_what_a_scorer_leaves_unscored_is_kept(tmp_path):
    """The request alone fills the reward model's 96 positions."""
    folder = str(classifier(tmp_path / "rm", max_position_embeddings=96))
    long = " ".join(["tell me about gardens"] * 7)
    given = {"scorers": {"reward-model": 1000.0}, "reward_model": folder}
    assert scorers.build("reward-model", folder=folder)([long], ["Yes."], [None]) == [None]
    acceptance = judged([(long, "Yes."), (SWIM, "Yes.")], **given)
    assert acceptance.causes == {"score below minimum: reward-model": 1}
    assert [example.instruction for example in acceptance.examples] == [long]


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_a_scorer_is_taken_if_it_rates_a_pair_by_itself_and_refused_if_not(name, tmp_path):
    if name not in RATING:
        with pytest.raises(ValueError, match=f"'{name}' is no scorer that rates a request and its answer alone"):
            FilterConfig(scorers={name: 0.5})
        return
    own = {"folder": classifier(tmp_path)} if name == "reward-model" else {}
    scorer = scorers.build(name, **own)
    assert scorer.needs == frozenset()
    assert isinstance(scorer([SWIM], ["Begin in shallow water."], [None])[0], float)


def test_scorers_that_cannot_rate_are_refused_when_the_recipe_is_read(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text("name = 'x'\n[synth.filters]\nscorers = { novelty = 0.3 }\n")
    assert load_recipe(path).synth.filters.scorers == {"novelty": 0.3}
    assert load_recipe(path, ["--synth.filters.scorers.novelty", "0.4"]).synth.filters.scorers == {"novelty": 0.4}
    for words, match in (
        (["--synth.filters.scorers.novelly", "1"], r"'novelly' is no scorer.*choose from language, repetition"),
        (["--synth.filters.scorers.chrf", "0.5"], "'chrf' is no scorer that rates a request and its answer alone"),
        (["--synth.filters.scorers.reward-model", "0"], r"no model to ask.*reward_model = \"FOLDER\""),
        (["--synth.filters.scorers.novelty", "nan"], "finite"),
        (["--synth.answers", "false"], "no example has one"),
        (["--synth.sentences", "true"], "no example has one"),
    ):
        with pytest.raises(UsageError, match=match):
            load_recipe(path, words)


# ---- exact duplicates ------------------------------------------------------------------------------------------------


def test_the_same_words_are_a_duplicate_and_nearly_the_same_a_near_duplicate():
    """One of ten words more leaves 17 of 21 words and pairs."""
    near = "What is the best way to learn to swim fast?"
    said = [(text, "Yes.") for text in (SWIM, SWIM, "what is the BEST way, to learn to swim", near)]
    acceptance = judged(said)
    assert acceptance.causes == {"duplicate": 2, "near-duplicate": 1}
    assert acceptance.dropped == {"duplicate": [SWIM, said[2][0]], "near-duplicate": [near]}
    loose = judged([*said, (near, "No.")], max_near_duplicate=1.0)
    assert loose.causes == {"duplicate": 3}
    assert [example.instruction for example in loose.examples] == [SWIM, near]


def test_the_same_question_of_a_quiz_is_a_duplicate_however_its_numbers_are_written():
    said = [("Who has seven sons?", "Jacob"), ("Who has 7 sons?", "Abel"), ("Who has six sons?", "Adam")]
    assert judged(said, kind="qa", min_words=3).causes == {"duplicate": 1}
    one, other = (f"Who wrote the {how} old novel that all of us call Emma?" for how in ("famous", "splendid"))
    said = [(one, "Jane Austen"), (other, "Jane Austen"), (other, "Charles Dickens of Portsmouth")]
    assert judged(said, kind="qa").causes == {"near-duplicate": 1, "duplicate": 1}


def test_a_digest_tells_words_and_their_order_apart():
    assert digest(["learn", "to", "swim"]) == digest(("learn", "to", "swim")) < 2**64
    assert len({digest(each) for each in (["to", "be"], ["be", "to"], ["tobe"], [])}) == 4


def test_duplicates_of_other_shards_are_found_in_the_merge(tmp_path, fakes):  # noqa: F811
    """Every tenth candidate of the fake teacher asks how to swim, whatever shard it is of."""
    recipe = changed(RECIPE, train=50)
    one = plain(recipe, tmp_path)
    assert shared(recipe, tmp_path / "shards", 3) == one
    data = Dataset.open(tmp_path / "shards/tiny/data")
    parts = sorted((tmp_path / "shards/tiny/shards").glob("*-of-3/texts/drafts.jsonl"))
    seen = islice(merged([read_rows(path) for path in parts]), data.manifest["candidates"])
    swims = [row for row in seen if row["text"] == SWIM and draft_cause(row, recipe.synth) is None]
    assert len({int(row["id"]) % 3 for row in swims}) > 1, "of several shards"
    assert data.manifest["dropped"]["duplicate"] == len(swims) - 1
    assert Counter(example.instruction for example in data.examples())[SWIM] == 1


def test_scores_are_the_same_after_a_restart_and_in_a_merge(tmp_path, fakes):  # noqa: F811
    """The minimum is the median of what a run without one accepts."""
    with RunDir.open(tmp_path / "free", RECIPE) as run:
        stage.run(RECIPE, run)
        made = Dataset.open(run.path("data")).examples()
    folder = classifier(tmp_path / "rm")
    scorer = scorers.build("reward-model", folder=folder)

    def scores(examples):
        texts = [[example.instruction for example in examples], [example.answer for example in examples]]
        return scorer(*texts, [None] * len(examples))

    minimum = sorted(scores(made))[len(made) // 2]
    recipe = changed(RECIPE, filters={"scorers": {"reward-model": minimum}, "reward_model": str(folder)})
    one = plain(recipe, tmp_path)
    assert shared(recipe, tmp_path / "shards", 3) == one
    with RunDir.open(tmp_path / "plain", recipe) as run:
        outputs = stage.run(recipe, run)
        data = Dataset.open(run.path("data"))
    assert outputs["dataset"] == data.content_hash == json.loads(one["manifest.json"])["content_hash"]
    assert data.manifest["dropped"]["score below minimum: reward-model"] > 3
    assert len(data.examples()) == 17
    assert min(scores(data.examples())) >= minimum - 1e-4, "these stood in batches"


def test_another_reward_model_under_the_same_name_is_another_input(tmp_path, fakes):  # noqa: F811
    folder = classifier(tmp_path / "rm")
    recipe = changed(RECIPE, filters={"scorers": {"reward-model": 0.0}, "reward_model": str(folder)})
    first = stage.inputs(recipe)
    assert "reward_model" not in stage.inputs(changed(RECIPE, filters={"reward_model": str(folder)}))
    classifier(folder, initializer_range=0.3)
    assert stage.inputs(recipe)["reward_model"] != first["reward_model"]
    classifier(folder, num_labels=3)
    with pytest.raises(UsageError, match="3 labels"):
        stage.inputs(recipe)


# ---- thresholds ------------------------------------------------------------------------------------------------------


def test_mathematics_is_let_through_where_the_recipe_says_so():
    text = "What is 2 + 2 = 4 about?"
    assert drop_cause(text, StopReason.END, FilterConfig()) == "not speakable: mathematics"
    assert drop_cause(text, StopReason.END, FilterConfig(mathematics=True)) is None
    latex = r"What is $\frac{1}{2}$ of a whole cake?"
    assert drop_cause(latex, StopReason.END, FilterConfig(mathematics=True)) == "not speakable: latex"


def test_what_can_be_said_aloud_is_a_table_of_the_recipe(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text("name = 'x'\n[synth.filters.speakable]\nmax_sentence_words = 7\n")
    filters = load_recipe(path).synth.filters
    assert filters == FilterConfig(speakable=SpeakableConfig(max_sentence_words=7))
    assert drop_cause("What should I cook for dinner tonight?", StopReason.END, filters) is None
    long = "What should I cook for my dinner tonight?"
    assert drop_cause(long, StopReason.END, filters) == "not speakable: long sentence"


def test_how_certain_another_language_must_be_is_the_recipes_to_say():
    """py3langid holds this for Dutch (0.85)."""
    text = "Was is dat voor een"
    causes = [drop_cause(text, StopReason.END, FilterConfig(min_language_certainty=at)) for at in (0.0, 0.84, 0.9)]
    assert causes == ["other language", "other language", None]


def test_runs_made_before_these_keys_keep_their_key():
    dump = Recipe(name="x", synth=SynthConfig()).model_dump(mode="json")["synth"]["filters"]
    assert set(dump) == {"min_words", "max_words", "max_near_duplicate", "max_leakage", "leakage_files", "language",
                         "mathematics"}  # fmt: skip
    given = FilterConfig(scorers={"novelty": 0.1}, speakable=SpeakableConfig(max_items=3), min_language_certainty=0.5)
    assert FilterConfig.model_validate(given.model_dump(mode="json")) == given
