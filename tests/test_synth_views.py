"""Channels and deliveries from the recipe to the dataset: keyed, readable, and nothing where they are not asked for."""

import hashlib
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from test_synth import RECIPE, fakes  # noqa: F401

from rbalign.audio.channel import transmit
from rbalign.audio.io import read_audio
from rbalign.config.synth import SynthConfig, ViewPlan
from rbalign.data.dataset import Dataset, DatasetWriter
from rbalign.errors import UsageError
from rbalign.keys import Key
from rbalign.rundir.run import RunDir
from rbalign.stages import synth as stage
from rbalign.synth import speak
from rbalign.synth.heldout import as_flac
from rbalign.synth.speak import plan_views, planned, speak_shard
from rbalign.types import Example
from rbalign.voices.bank import load_bank
from rbalign.voices.pool import SpeakFailure

BANK = load_bank()
CHANNELS = ("clean", "noise:babble@5dB+telephone", "packet-loss:10%", "room")
DELIVERIES = ("fluent", "filler", "correction", "stutter+pause")
RULE = ViewPlan(per_example=4, channels=CHANNELS, deliveries=DELIVERIES)
EXAMPLES = [
    Example(f"e{n}", "train", text, text)
    for n, text in enumerate(
        [
            "Is the meeting on Friday at seven?",
            "Can you find a book about Paris?",
            "How do I paint the kitchen in winter?",
            "Tell me something about rivers.",
        ]
        * 3
    )
]
SPOKEN = {example.id: example.spoken for example in EXAMPLES}


def voice_of(job):
    """A made-up clip that depends on all of a job but its id: text, voice and speed."""
    seed = int.from_bytes(hashlib.blake2b(f"{job.text}|{job.voice}|{job.speed}".encode(), digest_size=4).digest())
    return (0.1 * np.random.default_rng(seed).standard_normal(3000 + seed % 2000)).astype(np.float32)


@pytest.fixture
def spoken_jobs(monkeypatch):
    """`speak_many` without voices: clips come in another order each time; the jobs that were asked for, in a list."""
    asked = []

    def speak_many(jobs, workers):
        jobs = list(jobs)
        asked.append(jobs)
        order = list(jobs)
        random.Random(len(asked)).shuffle(order)
        for job in order:
            yield job.id, SpeakFailure(job, "broken") if job.voice == "broken" else voice_of(job)

    monkeypatch.setattr(speak, "speak_many", speak_many)
    return asked


def plan(rule=RULE, examples=EXAMPLES, seed=1):
    return planned(examples, SynthConfig(views=(rule,)), BANK, seed)["train"]


def heard(views, **surroundings):
    return {view.id: view.flac for view, failure in speak_shard(views, SPOKEN, 1, **surroundings) if failure is None}


# ---- the plan --------------------------------------------------------------------------------------------------------


def test_views_draw_channels_and_deliveries_by_key():
    views = plan()
    assert set(Counter(view.spec.channel for view in views)) == set(CHANNELS)
    found = Counter(view.spec.delivery for view in views)
    assert set(found) == {"fluent", "filler", "correction", "restart", "stutter+pause"}
    assert plan() == views
    assert plan(seed=2) != views
    assert plan(examples=EXAMPLES[::-1])[-4:] == views[:4]


def test_a_disfluent_view_says_something_else_and_keeps_what_it_retracts():
    for view in plan():
        fluent = SPOKEN[view.example_id]
        assert (view.said is None) == (view.spec.delivery == "fluent")
        assert view.said != fluent
        assert (view.retracted is not None) == (view.spec.delivery in ("correction", "restart"))
        if view.retracted:
            assert view.retracted in view.said
            assert view.retracted not in fluent


def test_a_correction_without_a_value_is_planned_as_what_it_became():
    views = plan(ViewPlan(deliveries=("correction",)))
    assert {v.spec.delivery for v in views if v.example_id == "e0"} == {"correction"}
    assert {v.spec.delivery for v in views if v.example_id == "e3"} == {"restart"}


def test_a_rule_that_gets_channels_keeps_its_voices_and_speeds():
    speeds = (0.9, 1.0, 1.1)
    before = plan(ViewPlan(per_example=4, speeds=speeds))
    after = plan(RULE.model_copy(update={"speeds": speeds}))
    assert [(v.id, v.spec.voice, v.spec.speed) for v in before] == [(v.id, v.spec.voice, v.spec.speed) for v in after]


def test_plans_of_empty_texts_are_fluent():
    """A dry run counts views of examples that are not written yet."""
    views = plan_views(Example("e", "train", "", ""), [RULE], BANK, 1)
    assert {view.spec.delivery for view in views} == {"fluent"}


# ---- the speaking ----------------------------------------------------------------------------------------------------


def words_of(view):
    return (SPOKEN[view.example_id] if view.said is None else view.said), view.spec.voice


def test_the_voice_gets_what_is_said_and_the_clip_goes_through_its_channel(spoken_jobs):
    views = plan(ViewPlan(per_example=2, channels=("packet-loss:10%",), deliveries=("fluent", "filler")))
    flac = heard(views)
    jobs = {(job.text, job.voice): job for job in spoken_jobs[0]}
    assert len(flac) == len(views)
    assert {words_of(view) for view in views} == set(jobs)
    assert len(spoken_jobs[0]) == len(jobs), "what a voice says twice it says once"
    for view in views:
        job = jobs[words_of(view)]
        key = Key(1, "channel", example=view.example_id, view=view.index)
        expected = transmit(voice_of(job), "packet-loss:10%", key.generator())
        np.testing.assert_allclose(read_audio(flac[view.id]), expected, atol=2**-15)


def test_clips_do_not_depend_on_the_order_in_which_workers_finish(spoken_jobs):
    views = plan()
    first = heard(views)
    assert len(first) == len(views) == 48
    assert heard(views) == first
    said = {(*words_of(view), view.spec.speed): view.id for view in reversed(views)}
    assert sorted(job.id for job in spoken_jobs[0]) == sorted(said.values()), "babble costs no clip in a full shard"


def test_clean_clips_are_what_the_voice_said(spoken_jobs):
    views = plan(ViewPlan(per_example=1))
    flac = heard(views)
    for job in spoken_jobs[0]:
        np.testing.assert_allclose(read_audio(flac[job.id]), voice_of(job), atol=2**-15)


def test_babble_is_other_people_saying_something_else(spoken_jobs):
    views = plan(ViewPlan(per_example=4, channels=("noise:babble@0dB",)))
    by_id = {view.id: view for view in views}
    for view in views:
        talkers = speak._talkers(view, views, views)
        assert 3 <= len(talkers) <= 7
        assert all(talker.example_id != view.example_id for talker in talkers)
        assert all(talker.spec.voice != view.spec.voice for talker in talkers)
        assert all(talker.id in by_id for talker in talkers)
    counts = {len(speak._talkers(view, views, views)) for view in views}
    assert counts == {3, 4, 5, 6, 7}


def test_a_small_shard_borrows_its_babble_from_the_plan_of_its_split(spoken_jobs):
    views = plan(ViewPlan(per_example=2, channels=("noise:babble@5dB",)))
    last = views[-1:]
    flac = heard(last, crowd=views)
    assert set(flac) == {last[0].id}
    assert 3 <= len(spoken_jobs[0]) - 1 <= 7
    assert heard(last, crowd=views) == flac


def test_babble_of_nobody_is_a_failure_with_its_reason(spoken_jobs):
    (view,) = plan(ViewPlan(per_example=1, channels=("noise:babble@5dB",)))[:1]
    ((failed, failure),) = speak_shard([view], SPOKEN, 1)
    assert failed == view
    assert "no other clip" in failure.reason


def test_a_voice_that_fails_takes_no_other_clip_with_it(spoken_jobs):
    views = plan(ViewPlan(per_example=2, channels=("noise:babble@5dB",)))
    broken = replace(views[0], spec=replace(views[0].spec, voice="broken"))
    outcomes = list(speak_shard([broken, *views[1:]], SPOKEN, 1))
    assert [view.id for view, failure in outcomes if failure] == [broken.id]
    assert len(outcomes) == len(views)


# ---- the dataset -----------------------------------------------------------------------------------------------------


def test_what_was_said_is_read_from_the_dataset(tmp_path, spoken_jobs):
    views = [view for view, _ in speak_shard(plan(), SPOKEN, 1)]
    writer = DatasetWriter(tmp_path / "d", {"teacher": "tiny", "recipe": "abc"})
    writer.add_examples(EXAMPLES)
    writer.commit_views("train", 0, views)
    manifest = writer.finish()
    read = {view.id: view for view in Dataset.open(tmp_path / "d").views()}
    for view in views:
        assert (read[view.id].spec, read[view.id].said, read[view.id].retracted) == (
            view.spec,
            view.said,
            view.retracted,
        )
        assert read[view.id].flac == view.flac
    again = as_flac(list(read.values()))
    assert {v.id: (v.said, v.retracted) for v in again} == {v.id: (v.said, v.retracted) for v in views}
    other = DatasetWriter(tmp_path / "other", {"teacher": "tiny", "recipe": "abc"})
    other.add_examples(EXAMPLES)
    changed = next(i for i, view in enumerate(views) if view.said)
    views[changed] = replace(views[changed], said="something else")
    other.commit_views("train", 0, views)
    assert other.finish()["content_hash"] != manifest["content_hash"]


def with_rule(**changes):
    synth = RECIPE.synth.model_dump() | {"views": [RULE.model_dump()]} | changes
    return RECIPE.model_copy(update={"synth": SynthConfig.model_validate(synth)})


def stopped_and_resumed(recipe, run, monkeypatch):
    """What the stage gives when its first start ends at the third shard."""
    commit, commits = DatasetWriter.commit_views, []

    def dies(writer, split, index, clips):
        commits.append(index)
        if len(commits) == 3:
            raise KeyboardInterrupt
        commit(writer, split, index, clips)

    monkeypatch.setattr(DatasetWriter, "commit_views", dies)
    with pytest.raises(KeyboardInterrupt):
        stage.run(recipe, run)
    monkeypatch.setattr(DatasetWriter, "commit_views", commit)
    return stage.run(recipe, run)


def test_the_stage_speaks_and_resumes_views_of_all_kinds(tmp_path, fakes, monkeypatch, spoken_jobs):  # noqa: F811
    monkeypatch.setattr(stage, "speak_shard", speak_shard)
    monkeypatch.setattr(stage, "VIEWS_PER_SHARD", 14)
    recipe = with_rule()
    with RunDir.open(tmp_path / "a", recipe) as run:
        outputs = stage.run(recipe, run)
        views = Dataset.open(run.path("data")).views()
    assert len(views) == 17 * 4
    assert {view.spec.channel for view in views} == set(CHANNELS)
    assert sum(view.said is not None for view in views) > 20

    with RunDir.open(tmp_path / "b", recipe) as run:
        assert stopped_and_resumed(recipe, run, monkeypatch) == outputs
        for shard in sorted((tmp_path / "a").rglob("*.parquet")):
            twin = tmp_path / "b" / shard.relative_to(tmp_path / "a")
            assert twin.read_bytes() == shard.read_bytes(), "a resumed shard has the same bytes"


def test_a_folder_of_noises_is_looked_at_before_any_work(tmp_path, fakes, monkeypatch, spoken_jobs):  # noqa: F811
    monkeypatch.setattr(stage, "speak_shard", speak_shard)
    folder = tmp_path / "streets"
    rule = RULE.model_copy(update={"channels": ("noise:folder@5dB",), "deliveries": ("fluent",)}).model_dump()
    recipe = with_rule(views=[rule], noise_folder=str(folder))
    with RunDir.open(tmp_path / "none", recipe) as run, pytest.raises(UsageError, match="streets is no folder"):
        stage.run(recipe, run)
    folder.mkdir()
    soundfile.write(folder / "a.wav", 0.2 * np.random.default_rng(0).standard_normal(9000), 16_000)
    with RunDir.open(tmp_path / "run", recipe) as run:
        stage.run(recipe, run)
        assert {view.spec.channel for view in Dataset.open(run.path("data")).views()} == {"noise:folder@5dB"}
    before = stage.inputs(recipe)
    assert set(before) == {"noise_folder"}
    soundfile.write(folder / "b.wav", np.ones(100), 16_000)
    assert stage.inputs(recipe) != before
