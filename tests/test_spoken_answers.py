"""Speech to speech: answers are said and heard, the transcript is scored, the ASR's error stands beside."""

from __future__ import annotations

import json

import numpy as np
import pytest
from benchdata import parquet
from loopback import Loopback, chat, clip

from rbalign.cli.main import run_command
from rbalign.errors import UsageError
from rbalign.eval.tasks.scored import read_scored
from rbalign.stages import spoken_answers
from rbalign.voices.pool import SpeakFailure

QA = "web-questions-twinkstart"
SAID = ["It is nine.", "", "It is one of two.", "Ice and snow."]
"""Right, empty, right, and one that the voice cannot say."""
HEARD = {"It is nine.": "It is mine.", "It is one of two.": "It is one of two."}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A server that gives SAID by the length of the clip, a voice whose clips hold the place of the text, an ASR."""
    import rbalign.asr.whisper as whisper

    monkeypatch.setenv("RBA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    texts, spoken = [], []

    def speak_many(jobs, workers):
        for job in jobs:
            spoken.append((job.voice, job.text))
            texts.append(job.text)
            made = np.full(10, float(len(texts) - 1), dtype=np.float32)
            yield job.id, SpeakFailure(job, "no breath") if "snow" in job.text else made

    class Transcriber:
        def __init__(self, model):
            assert model == spoken_answers.ASR

        def transcribe(self, samples):
            return HEARD[texts[int(samples[0])]]

    monkeypatch.setattr(spoken_answers, "speak_many", speak_many)
    monkeypatch.setattr(whisper, "Transcriber", Transcriber)
    audio = [{"bytes": clip(0.2 + 0.1 * i, 16_000), "path": ""} for i in range(4)]
    answers = [["nine"], ["x"], ["two"], ["ice"]]
    parquet(tmp_path / "data" / "t.parquet", question=["Q?"] * 4, answers=answers, audio=audio)

    def answer(asked):
        size = len(asked.body["messages"][-1]["content"][0]["input_audio"]["data"])
        return chat(SAID[round(size * 3 / 4 / 3200) - 2])

    with Loopback(answer) as server:
        (tmp_path / "m.toml").write_text(f'url = "{server.url}"\nmodel = "m"\n')
        yield tmp_path, server, spoken


def evaluate(folder, *more):
    words = ["eval", "--model", "m.toml", "--tasks", QA, "--data", "data", "--output", "out", *more]
    code = run_command([str(word) for word in words])
    return code, folder / "out" / QA


def figures(path):
    return {one["metric"]: one for one in read_scored(path)["figures"]}


def test_the_transcript_is_scored_and_the_asr_beside(world):
    place, _, spoken = world
    code, folder = evaluate(place, "--voice", "bf_isabella")
    assert code == 0
    assert sorted(spoken) == [("bf_isabella", text) for text in ("Ice and snow.", "It is nine.", "It is one of two.")]
    text, heard = figures(folder / "m.json"), figures(folder / "m-spoken.json")
    assert text["accuracy"]["value"] == 75.0
    assert "asr_wer" not in text
    assert heard["accuracy"]["value"] == 25.0, "nine was heard as mine; what was never said is failed and counts"
    # One word of three, none of five, all three: 4 of 11. The empty answer has no words.
    assert heard["asr_wer"]["value"] == pytest.approx(100 * 4 / 11)
    assert heard["asr_wer"]["n"] == 4
    for one in heard.values():
        assert "said by bf_isabella, heard by whisper-base-ct2" in one["protocol"]
    counts = read_scored(folder / "m-spoken.json")["counts"]
    assert (counts["items"], counts["failed"], counts["answered"]) == (4, 1, 3)
    lines = [json.loads(line) for line in (folder / "m-spoken.jsonl").open()]
    assert [line["response"] for line in lines] == ["It is mine.", "", "It is one of two.", None]
    assert "no breath" in lines[3]["error"]


def test_what_was_heard_is_not_said_again(world):
    place, server, spoken = world
    assert evaluate(place, "--voice", "bf_isabella", "--limit", 1)[0] == 0
    code, folder = evaluate(place, "--voice", "bf_isabella")
    assert (code, len(spoken), len(server.asked)) == (0, 3, 4)
    (journal,) = folder.glob("*.heard.jsonl")
    journal.write_bytes(journal.read_bytes()[:-5])
    assert evaluate(place, "--voice", "bf_isabella")[0] == 0
    assert len(spoken) == 4, "the torn line alone"
    assert evaluate(place, "--voice", "am_michael")[0] == 0
    assert (len(spoken), len(server.asked)) == (7, 4), "another voice says the same answers"


def test_a_failed_answer_says_nothing(world):
    from loopback import status

    place, server, spoken = world
    server.answer = lambda asked: status(400, "no")
    code, folder = evaluate(place, "--voice", "bf_isabella")
    assert (code, spoken) == (0, [])
    found = figures(folder / "m-spoken.json")
    assert found["accuracy"]["value"] == 0.0
    assert found["asr_wer"]["value"] is None


@pytest.mark.parametrize(("voice", "part"), [("bf_isabela", "bf_isabella"), ("espeak-en-us", "does not run")])
def test_a_voice_that_cannot_speak_is_refused_at_once(voice, part, world, capsys):
    place, server, _ = world
    assert evaluate(place, "--voice", voice)[0] == 2
    assert part in capsys.readouterr().err
    assert server.asked == []
    with pytest.raises(UsageError):
        spoken_answers.check_voice(voice)
