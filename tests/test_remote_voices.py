"""Voices behind HTTP: named and cloned, whatever the server sends, and no voice in two splits."""

from __future__ import annotations

import base64
import io
import re
import struct

import numpy as np
import pytest
import soundfile
from loopback import FakeTime, Loopback, Scripted, chat, clip, status, truncated
from pydantic import ValidationError

from rbalign.audio.io import audio_seconds, read_audio
from rbalign.config.endpoints import VoiceEndpoint
from rbalign.config.synth import ViewPlan
from rbalign.errors import DataError, UsageError
from rbalign.remote.client import EndpointError
from rbalign.synth.speak import plan_views, speak_shard
from rbalign.types import Example, Split
from rbalign.voices.bank import load_bank
from rbalign.voices.endpoint import endpoint_speakers, put_at, speak_remote, with_sizes
from rbalign.voices.pool import SpeakFailure, SpeakJob
from rbalign.voices.speakers import reference_speakers


def voices(server, split="train", **more):
    fields = {"url": server.url, "model": "tts", "split": split, "timeout": 60.0, "retries": 1}
    return VoiceEndpoint(**{**fields, "voices": ("vivian", "ryan"), **more})


def speakers_of(*endpoints, cache=None):
    return endpoint_speakers(endpoints, cache, FakeTime().clock)


def tone(asked):
    """Every voice has its own pitch."""
    return clip(pitch=100.0 + 50.0 * len(asked.body.get("voice", "")))


# ---- named voices --------------------------------------------------------------------------------------------------


def test_a_named_voice_speaks_at_16_khz_mono():
    with Loopback(tone) as server:
        speaker = speakers_of(voices(server, extra_body={"language": "English"}))["vivian"]
        samples = speaker.speak("How do I make tea?", "vivian")
        fast = speaker.speak("How do I make tea?", "vivian", 1.25)
        bodies = [asked.body for asked in server.asked]
    assert samples.dtype == np.float32
    assert len(samples) == 8000 == len(fast)
    assert np.abs(samples).max() == pytest.approx(0.3, abs=0.02)
    assert server.asked[0].path == "/v1/audio/speech"
    expected = {"model": "tts", "input": "How do I make tea?", "voice": "vivian", "response_format": "wav"}
    assert bodies == [expected | {"language": "English"}, expected | {"language": "English", "speed": 1.25}]
    assert speaker.client.counts.table()["characters"] == 36


def as_raw(**_):
    samples, _ = soundfile.read(io.BytesIO(clip()), dtype="int16")
    return samples.astype("<i2").tobytes()


def stereo():
    sink = io.BytesIO()
    left = 0.2 * np.sin(np.arange(22_050) / 20)
    soundfile.write(sink, np.stack([left, left], 1), 44_100, format="WAV")
    return sink.getvalue()


@pytest.mark.parametrize(
    ("sound", "form", "rate"),
    [
        (clip(), "wav", 24_000),
        (clip(kind="FLAC"), "flac", 24_000),
        (as_raw(), "pcm", 24_000),
        (clip(rate=48_000), "wav", 24_000),
        (stereo(), "wav", 24_000),
    ],
    ids=["wav", "flac", "pcm", "48 kHz", "stereo"],
)
def test_every_form_becomes_the_same_half_second(sound, form, rate):
    with Loopback(lambda asked: sound) as server:
        speaker = speakers_of(voices(server, format=form, pcm_rate=rate))["ryan"]
        assert len(speaker.speak("Tea?", "ryan")) == 8000
        assert server.asked[0].body["response_format"] == form


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF, 2_000_000_000])
def test_a_streamed_wav_without_sizes_is_read_whole(size):
    whole = clip()
    at = whole.index(b"data") + 4
    streamed = whole[:4] + struct.pack("<I", size) + whole[8:at] + struct.pack("<I", size) + whole[at + 4 :]
    with pytest.raises(DataError):
        read_audio(streamed)
    assert with_sizes(streamed) == whole
    assert len(read_audio(with_sizes(streamed))) == 8000


@pytest.mark.parametrize(
    "sound", [clip(), clip(kind="FLAC"), b"", b"RIFF", b"RIFF....WAVEdata", b"x" * 100, clip()[:900]]
)
def test_what_has_sizes_or_is_no_wav_stays_as_it_is(sound):
    assert with_sizes(sound) == sound


def silence():
    sink = io.BytesIO()
    soundfile.write(sink, np.zeros(8000), 16_000, format="WAV")
    return sink.getvalue()


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (chat(), r"no clip: audio bytes cannot be read"),
        (b"", "no clip"),
        (clip()[:9000], "no clip: .*(damaged|ends after)"),
        (clip(seconds=121.0, rate=8000), "121 s long; the limit is 120 s"),
        (silence(), "the clip is silent"),
        (truncated, "broke off"),
        (status(500), "500"),
        (status(400, "text too long"), "text too long"),
    ],
    ids=["json", "nothing", "cut", "too long", "silent", "truncated", "500", "400"],
)
def test_what_is_no_speech_is_a_named_failure_and_the_rest_goes_on(reply, says):
    with Loopback(lambda asked: reply if "bad" in asked.body["input"] else tone(asked)) as server:
        jobs = [SpeakJob(str(n), "bad" if n == 3 else f"text {n}", "vivian") for n in range(8)]
        results = list(speak_remote(jobs, speakers_of(voices(server))))
    assert sorted(identity for identity, _ in results) == [str(n) for n in range(8)]
    failures = {identity: made.reason for identity, made in results if isinstance(made, SpeakFailure)}
    assert set(failures) == {"3"}
    (reason,) = failures.values()
    assert re.search(says, reason), reason


def test_a_passing_fault_gives_the_clip_once():
    with Loopback(Scripted(tone, truncated)) as server:
        (result,) = speak_remote([SpeakJob("a", "Tea?", "ryan")], speakers_of(voices(server)))
        assert len(result[1]) == 8000
        assert len(server.asked) == 2


def test_a_refused_key_ends_the_speaking():
    with Loopback(lambda asked: status(401)) as server:
        jobs = (SpeakJob(str(n), f"text {n}", "vivian") for n in range(500))
        with pytest.raises(EndpointError, match="refuses"):
            list(speak_remote(jobs, speakers_of(voices(server, concurrency=2))))
        assert len(server.asked) < 10


def test_the_probe_refuses_what_is_no_voice():
    with Loopback(lambda asked: chat()) as server, pytest.raises(UsageError, match=r"gives no clip of voice 'vivian'"):
        speakers_of(voices(server))["ryan"].probe()
    with Loopback(lambda asked: status(404)) as server, pytest.raises(EndpointError, match="check its url"):
        speakers_of(voices(server))["ryan"].probe()


def test_the_bound_holds_over_all_voices_of_an_endpoint():
    with Loopback(tone) as server:
        jobs = [SpeakJob(str(n), f"text {n}", ("vivian", "ryan")[n % 2]) for n in range(40)]
        assert len(list(speak_remote(jobs, speakers_of(voices(server, concurrency=3))))) == 40
        assert server.most_at_once <= 3


def test_a_restart_speaks_nothing_again(tmp_path):
    with Loopback(tone) as server:
        jobs = [SpeakJob(str(n), f"text {n}", "ryan") for n in range(5)]
        first = dict(speak_remote(jobs, speakers_of(voices(server), cache=tmp_path)))
        second = dict(speak_remote(jobs, speakers_of(voices(server), cache=tmp_path)))
        assert len(server.asked) == 5
    assert all(np.array_equal(first[n], second[n]) for n in first)


# ---- splits --------------------------------------------------------------------------------------------------------


def test_endpoint_voices_join_the_bank_in_their_split():
    with Loopback(tone) as server:
        held = voices(server, "test", voices=("uncle",), accent="scottish", gender="male")
        bank = load_bank().with_endpoints([voices(server), held])
        assert bank.names(engine="endpoint") == ["vivian", "ryan", "uncle"]
        assert bank.names(Split.TEST, "endpoint") == ["uncle"]
        assert bank.voice("uncle").accent == "scottish"
        assert bank.names("train", "kokoro") == load_bank().names("train", "kokoro")
        with pytest.raises(UsageError, match="align may not use voice 'uncle'"):
            bank.require(["uncle"], {Split.TRAIN}, "align")
        views = plan_views(Example("e", "train", "", ""), (ViewPlan(voices="endpoint", per_example=4),), bank, 0)
        assert {view.spec.voice for view in views} == {"vivian", "ryan"}
    assert load_bank().with_endpoints([]) is load_bank()


@pytest.mark.parametrize("name", ["ryan", "af_heart"])
def test_a_voice_in_two_splits_is_refused(name):
    with Loopback(tone) as server:
        other = voices(server, "test", voices=(name,))
        with pytest.raises(UsageError, match=f"voice '{name}' stands twice"):
            load_bank().with_endpoints([voices(server), other])


def test_a_shard_takes_each_voice_from_its_own_place(monkeypatch):
    from rbalign.synth import speak

    local = []

    def speak_many(jobs, workers):
        for job in jobs:
            local.append(job.voice)
            yield job.id, np.full(1600, 0.1, dtype=np.float32)

    monkeypatch.setattr(speak, "speak_many", speak_many)
    with Loopback(tone) as server:
        bank = load_bank().with_endpoints([voices(server)])
        rules = (ViewPlan(voices="endpoint", per_example=2), ViewPlan(voices="kokoro", per_example=3))
        examples = [Example(str(n), "train", "", "") for n in range(4)]
        views = [view for example in examples for view in plan_views(example, rules, bank, 0)]
        made = list(speak_shard(views, {str(n): f"Tea {n}?" for n in range(4)}, 1, remote=speakers_of(voices(server))))
        assert len(server.asked) == 8
    assert sorted(view.id for view, failure in made if failure is None) == sorted(view.id for view in views)
    assert len(local) == 12
    assert all(bank.voice(name).engine == "kokoro" for name in local)


# ---- cloning -------------------------------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path):
    """A folder like LibriTTS's: sub-folders and files, fitting and not."""
    folder = tmp_path / "speakers"
    for name, file, seconds in [
        ("1034", "121119/1034_b.wav", 4.0),
        ("1034", "121119/1034_a.wav", 2.0),
        ("1040", "1/long.wav", 31.0),
        ("1050", "1/broken.wav", 0.0),
        ("1050", "2/fits.flac", 5.0),
    ]:
        path = folder / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(clip(seconds, 8000, kind=path.suffix[1:].upper()) if seconds else b"RIFF no wav")
    (folder / "1034/121119/1034_b.normalized.txt").write_text("It was a  dark night.\n")
    (folder / "alice.flac").write_bytes(clip(3.5, 8000, kind="FLAC"))
    (folder / "three.wav").write_bytes(clip(3.0, 8000))
    (folder / "notes.txt").write_text("no speaker")
    (folder / ".hidden").mkdir()
    return folder


def test_reference_speakers_have_a_fitting_clip(library):
    found, without = reference_speakers(library)
    assert {name: found[name].path.name for name in found} == {
        "1034": "1034_b.wav",
        "1050": "fits.flac",
        "alice": "alice.flac",
    }
    assert without == ["1040", "three"]
    assert found["1034"].transcript == "It was a dark night."
    assert found["1050"].transcript is None
    assert found["1034"].seconds == audio_seconds(found["1034"].path) == 4.0


def test_a_clone_is_sent_its_clip_and_transcript(library):
    with Loopback(tone) as server:
        endpoint = voices(server, voices=(), speakers=str(library))
        speakers = speakers_of(endpoint)
        assert set(speakers) == {"1034", "1050", "alice"}
        for name in ("1034", "alice"):
            assert len(speakers[name].speak("Tea?", name)) == 8000
        first, second = (asked.body for asked in server.asked)
    head, _, data = first["ref_audio"].partition(",")
    assert head == "data:audio/wav;base64"
    assert base64.b64decode(data) == (library / "1034/121119/1034_b.wav").read_bytes()
    assert first["ref_text"] == "It was a dark night."
    assert "voice" not in first
    assert second["ref_audio"].startswith("data:audio/flac;base64,")
    assert "ref_text" not in second


def test_other_servers_want_other_fields(library):
    with Loopback(tone) as server:
        endpoint = voices(
            server,
            voices=("1034",),
            speakers=str(library),
            clone_voice="default",
            reference_audio="references.0.audio_path",
            reference_text="references.0.text",
            reference_as="base64",
        )
        speakers_of(endpoint)["1034"].speak("Tea?", "1034")
        body = server.asked[0].body
    assert body["voice"] == "default"
    (reference,) = body["references"]
    assert reference["text"] == "It was a dark night."
    assert base64.b64decode(reference["audio_path"])[:4] == b"RIFF"


def test_fields_that_contradict_each_other_are_refused():
    body = {"voice": "default"}
    with pytest.raises(UsageError, match="lies inside 'default'"):
        put_at(body, "voice.clone.audio", "x")
    put_at(body := {}, "voice.clone.audio", "x")
    assert body == {"voice": {"clone": {"audio": "x"}}}


def test_folders_that_cannot_be_right(library, tmp_path):
    with Loopback(tone) as server:
        for fields, says in [
            ({"speakers": str(tmp_path / "none")}, "no folder of reference speakers"),
            ({"speakers": str(library), "voices": ("1040",)}, "'1040' has no clip of 3 to 30 s"),
            ({"speakers": str(library), "voices": ("1035",)}, "unknown reference speaker '1035'"),
        ]:
            with pytest.raises(UsageError, match=says):
                speakers_of(voices(server, **{"voices": (), **fields}))
        empty = tmp_path / "empty"
        empty.mkdir()
        with pytest.raises(UsageError, match="holds no speaker"):
            speakers_of(voices(server, voices=(), speakers=str(empty)))
        (library / "alice").mkdir()
        with pytest.raises(UsageError, match="'alice' stands twice"):
            reference_speakers(library)
        with pytest.raises(ValidationError, match="name the server's voices"):
            voices(server, voices=())
