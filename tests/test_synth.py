"""Self-synthesis with a fake teacher and fake voices: order, restarts and batch sizes cannot change the texts."""

import json
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from rbalign.audio.io import to_flac
from rbalign.config.recipe import Recipe
from rbalign.config.sections import TeacherConfig
from rbalign.config.synth import Domain, FilterConfig, SynthConfig, ViewPlan
from rbalign.data.dataset import Dataset, DatasetWriter
from rbalign.data.signatures import Signatures
from rbalign.errors import DataError, UsageError
from rbalign.rundir.run import RunDir
from rbalign.stages import synth as stage
from rbalign.stages.inspect import look_at
from rbalign.synth.accept import Acceptance
from rbalign.synth.filters import drop_cause, sentences
from rbalign.synth.speak import plan_views
from rbalign.synth.write import write_drafts
from rbalign.teacher.base import Written
from rbalign.types import Example, Split, StopReason, View
from rbalign.voices.bank import load_bank

NOUNS = [
    "garden",
    "kitchen",
    "river",
    "teacher",
    "violin",
    "market",
    "winter",
    "camera",
    "bicycle",
    "doctor",
    "island",
    "library",
]
VERBS = ["paint", "repair", "explain", "visit", "describe", "clean", "compare", "choose", "grow", "find"]


class FakeTeacher:
    """Writes by key alone: sometimes unfinished, sometimes code, sometimes twice the same."""

    def params(self, temperature, top_p, max_new_tokens):
        return max_new_tokens

    def write_instructions(self, keys, params, systems):
        return [self._instruction(key.generator()) for key in keys]

    def _instruction(self, draw):
        words = [*draw.choice(VERBS, 2), *draw.choice(NOUNS, 3)]
        text = "How do I {} and {} the {} near a {} with my {}?".format(*words)
        kind = draw.integers(10)
        if kind == 0:
            return Written(text, StopReason.LENGTH, 20)
        if kind == 1:
            return Written("Write a function ```def f(x): return x``` for me please.", StopReason.END, 20)
        return Written("What is the best way to learn to swim?" if kind == 2 else text, StopReason.END, 20)

    def answer(self, instructions, keys, params, system=None):
        return [
            Written(
                f"{key.stage} of {text} Do it slowly.",
                StopReason.LENGTH if key.generator().random() < 0.3 else StopReason.END,
                9,
            )
            for text, key in zip(instructions, keys, strict=True)
        ]


def accepted(config, indices, chunk):
    acceptance = Acceptance(config)
    drafts = []
    for start in range(0, len(indices), chunk):
        drafts += write_drafts(FakeTeacher(), config, 7, indices[start : start + chunk])
    for draft in sorted(drafts, key=lambda d: d["id"]):
        acceptance.add(draft)
    return acceptance


def test_texts_do_not_depend_on_chunks_or_their_order():
    config = SynthConfig(train=20, validation=5, test=5)
    one = accepted(config, list(range(120)), 120)
    shuffled = list(range(120))
    random.Random(3).shuffle(shuffled)
    assert accepted(config, shuffled, 7).examples == one.examples
    assert one.is_full()
    assert [e.split for e in one.examples] == ["test"] * 5 + ["validation"] * 5 + ["train"] * 20


def test_a_larger_train_split_keeps_the_held_out_texts():
    small = accepted(SynthConfig(train=5, validation=4, test=4), list(range(200)), 50).examples
    large = accepted(SynthConfig(train=30, validation=4, test=4), list(range(200)), 50).examples
    assert large[: len(small)] == small


def test_drops_are_counted_by_cause_and_nothing_vanishes():
    config = SynthConfig(train=1000, validation=0, test=0)
    acceptance = accepted(config, list(range(150)), 50)
    assert acceptance.seen == 150 == len(acceptance.examples) + sum(acceptance.causes.values())
    assert {"unfinished", "near-duplicate", "answer unfinished", "not speakable: code"} <= set(acceptance.causes)
    assert all(e.answer.startswith("answer of") for e in acceptance.examples)


def causes_of(said, **filters):
    """What (instruction, answer) pairs fall to under these filters, counted."""
    acceptance = Acceptance(SynthConfig(train=9, filters=FilterConfig(**filters)))
    for number, (question, answer) in enumerate(said):
        acceptance.add({"id": f"{number}", "text": question, "stop": "end", "answer": answer, "answer_stop": "end"})
    return dict(acceptance.causes)


def test_refusals_and_boilerplate_fall_only_where_the_recipe_says_so():
    said = [
        ("How do I cook rice for six people?", "I'm sorry, but I can't help with that."),
        ("How can I help you today?", "Hi."),
    ]
    causes = {kept: causes_of(said, refusals=kept) for kept in (True, False)}
    assert causes == {True: {}, False: {"refusal": 1, "boilerplate": 1}}


def test_an_answer_that_says_the_request_again_falls_only_where_the_recipe_says_so():
    """3 of 9 and 6 of 8 runs of three words are new."""
    said = [
        ("Can you help with the recipe for a corn chowder?", "Can you help me with the recipe for a corn chowder?"),
        ("How do I cook rice for six people?", "Rice for six people takes three cups and twenty minutes."),
    ]
    causes = {least: causes_of(said, min_novelty=least) for least in (0.0, 0.5)}
    assert causes == {0.0: {}, 0.5: {"echo": 1}}


def test_leaked_texts_are_refused():
    config = SynthConfig(train=1000, validation=0, test=0)
    free = accepted(config, list(range(60)), 60).examples
    acceptance = Acceptance(config, [Signatures.build(e.instruction for e in free[:10])])
    for draft in write_drafts(FakeTeacher(), config, 7, list(range(60))):
        acceptance.add(draft)
    assert acceptance.causes["leakage"] >= 10
    assert not {e.instruction for e in free[:10]} & {e.instruction for e in acceptance.examples}


def test_texts_of_a_jsonl_file_are_kept_out_of_a_run(tmp_path, fakes):
    with RunDir.open(tmp_path / "free", RECIPE) as run:
        stage.run(RECIPE, run)
        free = Dataset.open(run.path("data"))
    held_out = {example.instruction for example in free.examples("train")}
    path = tmp_path / "eval.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in sorted(held_out)))
    filters = FilterConfig(leakage_files=(str(path),))
    recipe = RECIPE.model_copy(update={"synth": RECIPE.synth.model_copy(update={"filters": filters})})
    with RunDir.open(tmp_path / "kept", recipe) as run:
        stage.run(recipe, run)
        data = Dataset.open(run.path("data"))
    assert not held_out & {example.instruction for example in data.examples()}
    assert data.manifest["dropped"]["leakage"] >= len(held_out)


def test_domains_are_mixed_by_weight_and_label_their_examples():
    asked = []

    class Listening(FakeTeacher):
        def write_instructions(self, keys, params, systems):
            asked.extend(zip((key.example for key in keys), systems, strict=True))
            return super().write_instructions(keys, params, systems)

    domains = (Domain(name="advice", weight=3, system="Ask for advice."), Domain(name="any"))
    config = SynthConfig(train=1000, validation=0, test=0, domains=domains)
    acceptance = Acceptance(config)
    drafts = write_drafts(Listening(), config, 7, range(400))
    for draft in drafts:
        acceptance.add(draft)
    systems = {"advice": "Ask for advice.", "any": None}
    assert dict(asked) == {draft["id"]: systems[draft["domain"]] for draft in drafts}
    assert Counter(draft["domain"] for draft in drafts)["advice"] == pytest.approx(300, abs=30)
    of = {draft["id"]: draft["domain"] for draft in drafts}
    assert acceptance.examples
    assert all(example.labels == {"domain": of[example.id]} for example in acceptance.examples)
    assert write_drafts(FakeTeacher(), config, 7, [399, 5]) == [drafts[399], drafts[5]]


def test_sentences_become_examples_of_their_own():
    assert sentences("One thing. Two things! A cut off") == ["One thing.", "Two things!"]
    config = SynthConfig(train=50, validation=0, test=0, sentences=True, filters=FilterConfig(min_words=3))
    acceptance = accepted(config, list(range(80)), 40)
    assert acceptance.is_full()
    assert len({e.id for e in acceptance.examples}) == 50
    assert all("-" in e.id and e.answer is None for e in acceptance.examples)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("Tell me", "too short"),
        ("word " * 31, "too long"),
        ("Solve the equation for the unknown value please.", "mathematics"),
        ("Können Sie mir bitte sagen, wie ich morgen nach Hamburg komme?", "other language"),
        ("Was ist die Hauptstadt von Frankreich und warum ist sie so schön?", "other language"),
        ("What should I cook for dinner tonight?", None),
        ("I have 3 apples and 2 kids, how do I share?", None),
    ],
)
def test_filters(text, cause):
    assert drop_cause(text.strip(), StopReason.END, FilterConfig()) == cause


def test_views_are_distinct_voices_of_the_split():
    bank = load_bank()
    rules = (ViewPlan(voices="kokoro", per_example=4), ViewPlan(voices="hibari", per_example=1))
    for split in (Split.TRAIN, Split.VALIDATION, Split.TEST):
        views = plan_views(Example("e1", split, "x", "x"), rules, bank, 0)
        names = [v.spec.voice for v in views]
        assert len(set(names)) == len(names) == (5 if split is Split.TRAIN else 4)
        assert {bank.voice(n).split for n in names} == {split}
        assert [v.index for v in views] == list(range(len(names)))
    several = {
        tuple(v.spec.voice for v in plan_views(Example(f"e{i}", "train", "", ""), rules, bank, 0)) for i in range(9)
    }
    assert len(several) > 5


def test_test_only_voices_are_refused(tmp_path):
    recipe = Recipe(name="leak", synth=SynthConfig(views=(ViewPlan(voices=("af_heart", "flite_slt")),)))
    with RunDir.open(tmp_path, recipe) as run, pytest.raises(UsageError, match="flite"):
        stage.run(recipe, run)


@pytest.fixture
def fakes(monkeypatch):
    """The stage with a fake teacher in this process and clips that are tones; the ids of clips made."""
    return put_fakes(monkeypatch)


def put_fakes(monkeypatch):
    spoken = []

    def write_many(teacher, config, seed, chunks, workers):
        for chunk in chunks:
            yield write_drafts(FakeTeacher(), config, seed, chunk)

    def speak_shard(views, texts, workers, **around):
        for view in reversed(views):
            spoken.append(view.id)
            tone = 0.1 * np.sin(np.arange(1600) * 0.01 * (1 + view.index)).astype(np.float32)
            yield View(view.example_id, view.index, view.split, view.spec, 0.1, to_flac(tone, 16_000)), None

    monkeypatch.setattr(stage, "write_many", write_many)
    monkeypatch.setattr(stage, "speak_shard", speak_shard)
    monkeypatch.setattr(stage, "open_teacher", lambda config: FakeTeacher())
    return spoken


RECIPE = Recipe(name="tiny", synth=SynthConfig(train=10, validation=3, test=4, batch_size=16))


def test_the_stage_writes_a_whole_dataset_and_restarts_cost_nothing(tmp_path, fakes, monkeypatch):
    with RunDir.open(tmp_path / "a", RECIPE) as run:
        outputs = stage.run(RECIPE, run)
        data = Dataset.open(run.path("data"))
        assert [len(data.examples(s)) for s in ("train", "validation", "test")] == [10, 3, 4]
        assert len(data.views()) == 17 * 4 == len(fakes)
        assert all(e.reference and e.reference != e.answer for e in data.examples("test"))
        assert all(e.reference is None for e in data.examples("train"))
        assert data.manifest["dropped"]
        shown = look_at(run.folder).drops
        assert [row[:2] for row in shown] == [[c, str(n)] for c, n in Counter(data.manifest["dropped"]).most_common()]
        assert all(texts for _, _, texts in shown)
        assert stage.run(RECIPE, run) == outputs
        assert len(fakes) == 17 * 4

    # A start that dies while speaking the second split, then another: same content.
    real, calls = stage.speak_shard, []

    def dies(*shard, **around):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*shard, **around)

    monkeypatch.setattr(stage, "speak_shard", dies)
    with RunDir.open(tmp_path / "b", RECIPE) as run:
        with pytest.raises(KeyboardInterrupt):
            stage.run(RECIPE, run)
        monkeypatch.setattr(stage, "speak_shard", real)
        assert stage.run(RECIPE, run)["dataset"] == outputs["dataset"]


def test_another_batch_size_gives_the_same_dataset(tmp_path, fakes):
    hashes = set()
    for size in (5, 64):
        recipe = RECIPE.model_copy(update={"synth": RECIPE.synth.model_copy(update={"batch_size": size})})
        with RunDir.open(tmp_path / str(size), recipe) as run:
            stage.run(recipe, run)
            rows = [json.loads(r) for r in (run.path("data") / "examples-00000.jsonl").read_text().splitlines()]
            hashes.add(json.dumps(rows))
    assert len(hashes) == 1


def test_filters_that_nothing_passes_end_with_a_cure(tmp_path, fakes, monkeypatch):
    monkeypatch.setattr(stage, "MOST_CANDIDATES_PER_ACCEPTED", 20)
    strict = RECIPE.synth.model_copy(update={"filters": FilterConfig(max_words=4)})
    recipe = RECIPE.model_copy(update={"synth": strict})
    with RunDir.open(tmp_path, recipe) as run, pytest.raises(DataError, match=r"too long.*loosen"):
        stage.run(recipe, run)


def test_a_plan_counts_views_and_clips():
    plan = stage.plan(RECIPE, RunDir.look("runs", RECIPE))
    assert plan.rows[0].count == 17
    assert sum(row.count for row in plan.rows[1:]) == 68
    assert plan.seconds > 0
    assert plan.bytes > 0


@pytest.fixture
def ready(tmp_path, fakes):
    """A finished dataset of 6 test examples, as `dev/ship_heldout.py` would ship it."""
    recipe = Recipe(name="ready", seed=1, synth=SynthConfig(train=0, validation=0, test=6, batch_size=16))
    with RunDir.open(tmp_path / "ready", recipe) as run:
        stage.run(recipe, run)
        made = Dataset.open(run.path("data"))
    writer = DatasetWriter(tmp_path / "shipped", made.manifest)
    writer.add_examples(replace(e, id=f"heldout-{e.id}") for e in made.examples())
    moved = [replace(v, example_id=f"heldout-{v.example_id}", flac=v.flac) for v in made.views()]
    writer.commit_views("test", 0, moved)
    writer.finish()
    fakes.clear()
    return tmp_path / "shipped"


def with_ready(ready, **changes):
    return RECIPE.model_copy(update={"synth": RECIPE.synth.model_copy(update={"test_views": str(ready), **changes})})


def test_ready_test_views_are_taken_and_their_texts_kept_out_of_training(tmp_path, fakes, ready):
    recipe = with_ready(ready)
    with RunDir.open(tmp_path / "run", recipe) as run:
        first = stage.run(recipe, run)
        data = Dataset.open(run.path("data"))
        assert data.examples("test") == Dataset.open(ready).examples("test")[:4]
        assert len(data.views("test")) == 16
        assert len(data.examples("train")) == 10
        assert not [identity for identity in fakes if identity.startswith("heldout")]
        every = Signatures.build(e.instruction for e in data.examples("test"))
        assert max(every.worst(e.instruction) for e in data.examples("train")) < 0.7
        assert stage.run(recipe, run) == first
    assert stage.plan(recipe, RunDir.look(tmp_path / "new", recipe)).rows[0].count == 13


def test_ready_test_texts_that_were_seen_are_left_out(tmp_path, fakes, ready):
    examples = Dataset.open(ready).examples()
    leak = tmp_path / "seen.txt"
    leak.write_text("\n".join(e.instruction for e in examples[:2]))
    filters = FilterConfig(leakage_files=(str(leak),))
    recipe = with_ready(ready, filters=filters)
    with RunDir.open(tmp_path / "run", recipe) as run:
        stage.run(recipe, run)
        assert Dataset.open(run.path("data")).examples("test") == examples[2:]
    recipe = with_ready(ready, filters=filters, test=5)
    with (
        RunDir.open(tmp_path / "more", recipe) as run,
        pytest.raises(DataError, match=r"4 test .* for 5"),
    ):
        stage.run(recipe, run)


def test_ready_test_views_need_their_own_teacher_and_a_finished_folder(tmp_path, fakes, ready):
    recipe = with_ready(ready).model_copy(update={"teacher": TeacherConfig(model="other")})
    with RunDir.open(tmp_path / "run", recipe) as run, pytest.raises(UsageError, match="'other'"):
        stage.run(recipe, run)
    recipe = with_ready(tmp_path / "nowhere")
    with RunDir.open(tmp_path / "none", recipe) as run, pytest.raises(UsageError, match="no finished dataset"):
        stage.run(recipe, run)
    with pytest.raises(UsageError, match="no finished dataset"):
        stage.inputs(recipe)
