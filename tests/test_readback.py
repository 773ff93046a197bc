"""Read-back: what the ASR does not understand is said by another voice, or dropped with its reason, and counted."""

from dataclasses import replace

import numpy as np
import pytest
from test_synth import RECIPE, fakes  # noqa: F401
from test_synth_views import BANK, EXAMPLES, SPOKEN, stopped_and_resumed, voice_of

from rbalign.asr.whisper import Transcriber
from rbalign.config.synth import FilterConfig, ReadBackConfig, SynthConfig, ViewPlan
from rbalign.data.dataset import Dataset
from rbalign.errors import UsageError
from rbalign.rundir.journal import Journal
from rbalign.rundir.run import RunDir
from rbalign.stages import synth as stage
from rbalign.stages.inspect import unspoken
from rbalign.synth import speak
from rbalign.synth.readback import ReadBack, other_voices, read_back_summary
from rbalign.synth.speak import planned, speak_shard
from rbalign.text.normalise import word_errors
from rbalign.voices.pool import SpeakFailure

VIEWS = planned(EXAMPLES, SynthConfig(views=(ViewPlan(per_example=2),)), BANK, 1)["train"]


class Ears:
    """A listener that knows every clip that was spoken; voices in `mumbling` it does not understand."""

    def __init__(self, mumbling=()):
        self.mumbling, self.words, self.clips, self.jobs = set(mumbling), {}, 0, []

    def speak_many(self, jobs, workers):
        for job in jobs:
            clip = voice_of(job)
            self.jobs.append(job)
            self.words[clip.tobytes()] = "mumble mumble" if job.voice in self.mumbling else job.text
            yield job.id, SpeakFailure(job, "broken") if job.voice == "broken" else clip

    def transcribe_many(self, clips):
        for clip in clips:
            self.clips += 1
            yield self.words[clip.tobytes()]


def understood(monkeypatch, tmp_path, ears, views=VIEWS, **settings):
    """What comes of a shard: {view id: (voice, failure's reason)}, the summary, the journal's rows."""
    monkeypatch.setattr(speak, "speak_many", ears.speak_many)
    with Journal(tmp_path / "heard.jsonl") as journal:
        config = ReadBackConfig(**{"share": 1.0, **settings})
        read_back = ReadBack(config, 1, ears.transcribe_many, other_voices(views, BANK, 1), journal)
        made = {
            view.id: (view.spec.voice, failure and failure.reason)
            for view, failure in speak_shard(views, SPOKEN, 1, read_back=read_back)
        }
        rows = list(journal.rows())
        return made, read_back_summary(rows, config.max_wer), rows


def test_clips_that_are_understood_stay_as_they_are(monkeypatch, tmp_path):
    made, summary, rows = understood(monkeypatch, tmp_path, Ears())
    assert made == {view.id: (view.spec.voice, None) for view in VIEWS}
    assert summary == {"clips": len(VIEWS), "said_again": 0, "dropped": 0, "wer_of_kept": 0.0}
    assert {row["heard"] for row in rows} == set(SPOKEN.values())


def test_what_is_not_understood_is_said_by_a_voice_that_the_example_does_not_have(monkeypatch, tmp_path):
    bad = BANK.names("train", "kokoro")[::2]
    made, summary, _ = understood(monkeypatch, tmp_path, Ears(bad), other_voices=20)
    again = [view for view in VIEWS if view.spec.voice in bad]
    assert summary["said_again"] == len(again) > 5
    assert summary["dropped"] == 0
    for view in VIEWS:
        voice, failure = made[view.id]
        others = {other.spec.voice for other in VIEWS if other.example_id == view.example_id}
        assert failure is None
        assert voice not in others if view in again else voice == view.spec.voice
        assert BANK.voice(voice).split == "train"


def test_other_languages_are_compared_by_their_own_rules(tmp_path):
    assert word_errors("请告诉我明天上海的天气。", "请告诉我明天上海天气", "zh") == (1, 11), "of characters"
    hindi = "कल दिल्ली में मौसम कैसा रहेगा।"
    assert word_errors(hindi, hindi.replace("कैसा", "कैसी"), "hi") == (1, 6), "vowel signs count, and part no words"
    assert word_errors("Die Farbe ist grau.", "die farbe ist grau", "de") == (0, 4)
    assert word_errors("Die colour ist twenty.", "die color ist 20", "de") == (2, 4), "no English spelling, no numbers"
    view, said = replace(VIEWS[0], example_id="e"), "Wie heißt der Bürgermeister, der die colour mag?"
    clip = np.zeros(16, np.float32)
    for language, errors in (("de", 1), ("en", 0)):
        with Journal(tmp_path / f"{language}.jsonl") as journal:
            config = ReadBackConfig(share=1.0, max_wer=1.0)
            read_back = ReadBack(
                config,
                1,
                lambda clips: ["wie heißt der bürgermeister der die color mag"],
                lambda view: [],
                journal,
                language,
            )
            list(read_back.understood([view], {view.id}, {"e": said}, lambda views: ((one.id, clip) for one in views)))
            assert [row["errors"] for row in journal.rows()] == [errors]


@pytest.mark.parametrize(
    ("language", "model"), [("ga", "whisper-base-ct2"), ("rw", "whisper-base-ct2"), ("de", "whisper-tiny.en-ct2")]
)
def test_a_language_that_the_asr_does_not_know_is_refused(language, model):
    read_back = ReadBackConfig(share=0.1, model=model)
    SynthConfig(filters=FilterConfig(language=language))
    SynthConfig(filters=FilterConfig(language="en"), read_back=read_back)
    SynthConfig(filters=FilterConfig(language="zh"), read_back=ReadBackConfig(share=0.1))
    refused = rf"{model} does not hear '{language}' → set \[synth.read_back\] share = 0; .* without ga, ug, xh, zu"
    with pytest.raises((UsageError, ValueError), match=refused):
        SynthConfig(filters=FilterConfig(language=language), read_back=read_back)


def test_the_asr_is_told_the_language(monkeypatch):
    asked = {}

    class Model:
        def transcribe(self, samples, **settings):
            asked.update(settings)
            return [], None

    listener = Transcriber(language="de")
    monkeypatch.setattr(listener, "_model", Model(), raising=False)
    assert listener.transcribe(np.ones(16_000, np.float32)) == ""
    assert asked["language"] == "de"


def test_other_voices_are_of_the_split_none_of_the_example_and_of_one_view_alone():
    others = other_voices(VIEWS, BANK, 1)
    for example in EXAMPLES:
        mine = [view for view in VIEWS if view.example_id == example.id]
        shared_out = [voice for view in mine for voice in others(view)]
        assert sorted(shared_out) == sorted(set(BANK.names("train", "kokoro")) - {view.spec.voice for view in mine})


def test_voices_that_only_make_babble_are_not_heard(monkeypatch, tmp_path):
    babble = planned(EXAMPLES, SynthConfig(views=(ViewPlan(per_example=2, channels=("noise:babble@5dB",)),)), BANK, 1)
    monkeypatch.setattr(speak, "speak_many", (ears := Ears()).speak_many)
    with Journal(tmp_path / "heard.jsonl") as journal:
        read_back = ReadBack(ReadBackConfig(share=1.0), 1, ears.transcribe_many, lambda view: [], journal)
        made = list(speak_shard(babble["train"][-1:], SPOKEN, 1, crowd=babble["train"], read_back=read_back))
    assert [failure for _, failure in made] == [None]
    assert len(ears.jobs) > 3
    assert ears.clips == 1


def test_what_no_voice_makes_clear_is_dropped_with_its_reason(monkeypatch, tmp_path):
    made, summary, rows = understood(monkeypatch, tmp_path, Ears(BANK.names()), other_voices=2)
    assert {reason for _, reason in made.values()} == {"not understood by whisper-base-ct2"}
    assert summary == {
        "clips": len(VIEWS), "said_again": len(VIEWS), "dropped": len(VIEWS), "wer_of_kept": None,
    }  # fmt: skip
    assert len(rows) == 3 * len(VIEWS)


def test_a_share_is_heard_the_same_for_any_shard(monkeypatch, tmp_path):
    _, _, rows = understood(monkeypatch, tmp_path / "a", Ears(), share=0.5)
    _, _, part = understood(monkeypatch, tmp_path / "b", Ears(), VIEWS[::3], share=0.5)
    ids = {row["id"] for row in rows}
    assert 0.2 * len(VIEWS) < len(ids) < 0.8 * len(VIEWS)
    assert {row["id"] for row in part} == ids & {f"{view.id}#0" for view in VIEWS[::3]}


def test_a_clip_that_could_not_be_made_keeps_its_own_reason(monkeypatch, tmp_path):
    views = [replace(view, spec=replace(view.spec, voice="broken")) if i == 3 else view for i, view in enumerate(VIEWS)]
    monkeypatch.setattr(speak, "speak_many", (ears := Ears()).speak_many)
    with Journal(tmp_path / "heard.jsonl") as journal:
        read_back = ReadBack(ReadBackConfig(share=1.0), 1, ears.transcribe_many, lambda view: [], journal)
        failed = {
            view.id: failure.reason for view, failure in speak_shard(views, SPOKEN, 1, read_back=read_back) if failure
        }
    assert failed == {views[3].id: "broken"}


def test_a_disfluent_clip_may_be_heard_fluent(monkeypatch, tmp_path):
    view = replace(VIEWS[0], said="Is the, um, is the meeting on, uh, Friday at s-seven?")
    ears = Ears()
    ears.transcribe_many = lambda clips: ["Is the meeting on Friday at seven?"] * len(clips)
    made, _, rows = understood(monkeypatch, tmp_path, ears, [view], max_wer=0.0)
    assert made[view.id] == (view.spec.voice, None)
    assert rows[0]["wer"] == 0


def test_the_stage_reads_back_and_resumes_to_the_same_dataset(tmp_path, fakes, monkeypatch):  # noqa: F811
    bad = BANK.names("train", "kokoro")[:3]
    ears = Ears([*bad, *BANK.names("test", "kokoro")])
    monkeypatch.setattr(speak, "speak_many", ears.speak_many)
    monkeypatch.setattr(stage, "speak_shard", speak_shard)
    monkeypatch.setattr(stage, "Transcriber", lambda *model, **workers: ears)
    monkeypatch.setattr(stage, "VIEWS_PER_SHARD", 14)
    synth = RECIPE.synth.model_dump() | {"read_back": {"share": 1.0}}
    recipe = RECIPE.model_copy(update={"synth": SynthConfig.model_validate(synth)})
    assert [row.count for row in stage.plan(recipe, None).rows if "hear" in row.what] == [17 * 4]
    with RunDir.open(tmp_path / "a", recipe) as run:
        outputs = stage.run(recipe, run)
        data = Dataset.open(run.path("data"))
        found = data.manifest["read_back"]
    assert found["clips"] == 17 * 4
    assert found["dropped"] == 4 * 4 == len(unspoken(data.folder)["not understood by whisper-base-ct2"])
    assert found["said_again"] > 0
    assert not {view.spec.voice for view in data.views()}.intersection(ears.mumbling)

    with RunDir.open(tmp_path / "b", recipe) as run:
        assert stopped_and_resumed(recipe, run, monkeypatch) == outputs
        assert Dataset.open(run.path("data")).manifest["read_back"] == found
