"""DOWIS before another task's clips: which prompt an item gets, what is played, the gap by hand, refusals."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from benchdata import parquet, write_lines
from loopback import Loopback, chat
from test_evaluation import QA, length_of, questions, rba, server_file

from rbalign.audio.io import read_audio
from rbalign.errors import DataError, UsageError
from rbalign.eval.tasks.prompts import MODES, read_prompts
from rbalign.eval.tasks.registry import task_named
from rbalign.eval.tasks.scored import read_scored
from rbalign.stages.exams import Settings, SpokenPrompts, exam_of

STYLES = ("basic", "detailed")
COLUMNS = [f"audio_prompt_{sex}_{number}" for sex in ("female", "male") for number in (1, 2)]


pytestmark = pytest.mark.usefixtures("home")


def tone(seconds, pitch, rate=24_000):
    """A prompt in another rate than the clips'."""
    sink = io.BytesIO()
    soundfile.write(sink, 0.3 * np.sin(np.arange(int(seconds * rate)) * pitch / rate), rate, format="WAV")
    return sink.getvalue()


def rows():
    """Two prompts of each style for SQA in English, one of ST in German."""
    made = [
        {"text_prompt": f"Answer, {style} {i}.", "language": "en", "task": "SQA", "prompt_type": style}
        for style in STYLES
        for i in range(2)
    ]
    return [*made, {"text_prompt": "Übersetze.", "language": "de", "task": "ST", "prompt_type": "basic"}]


def dowis(folder, silent=()):
    """As the hub has it; prompts whose row is in `silent` were spoken by nobody."""
    table = {name: [row[name] for row in rows()] for name in rows()[0]}
    for at, column in enumerate(COLUMNS):
        clips = [{"bytes": tone(0.3, 400 + 50 * i + 7 * at), "path": f"{i}.wav"} for i in range(len(rows()))]
        clips = [
            None if i in silent or (column.endswith("male_2") and i == 0) else clip for i, clip in enumerate(clips)
        ]
        table[column] = pa.array(clips, type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    parquet(folder / "data" / "test-0.parquet", **table)
    return folder


def as_lines(folder):
    made = []
    for i, row in enumerate(rows()):
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        paths = {column: f"audio/{i}-{column}.wav" for column in COLUMNS}
        for at, path in enumerate(paths.values()):
            (folder / path).write_bytes(tone(0.3, 400 + 50 * i + 7 * at))
        made.append(row | paths)
    write_lines(folder / "prompts.jsonl", made)
    return folder


def exam(tmp_path, silent=(), count=4):
    data, folder = questions(tmp_path / "data", count), dowis(tmp_path / "dowis", silent)
    prompts = read_prompts(folder, "SQA", "en")
    return exam_of(task_named(QA), str(data), Settings(), prompts), exam_of(task_named(QA), str(data), Settings())


def test_both_forms_of_the_table_are_the_same_prompts(tmp_path):
    first, second = (read_prompts(make(tmp_path / make.__name__), "SQA", "en") for make in (dowis, as_lines))
    assert list(first.by_style) == list(second.by_style) == list(STYLES)
    assert [one.text for one in first.by_style["basic"]] == ["Answer, basic 0.", "Answer, basic 1."]
    assert [len(one.clips) for one in first.by_style["basic"]] == [2, 4], "what is null is passed over"
    assert first.by_style["detailed"] == second.by_style["detailed"]


def test_what_is_played(tmp_path):
    """In writing the item alone is heard; spoken it comes half a second after the prompt, in one clip."""
    made, plain = exam(tmp_path)
    assert len(made.clips.played) == len(made.data.items) == 4 * len(STYLES) * len(MODES)
    assert len({item.id for item in made.clips.played.values()}) == 16
    for item in plain.data.items:
        own = read_audio(plain.clips.played[item.id].view.flac)
        for style in STYLES:
            words, said = made.prompts.draw(style, item.id)
            text, speech = (made.clips.played[f"{item.id}/{style}/{mode}"] for mode in MODES)
            assert (text.beside, speech.beside) == (words, "")
            assert words.startswith(f"Answer, {style}")
            assert np.array_equal(read_audio(text.view.flac), own)
            heard, prompt = read_audio(speech.view.flac), read_audio(said)
            assert len(heard) == len(prompt) + 8_000 + len(own)
            assert speech.view.seconds == pytest.approx(len(heard) / 16_000, abs=1e-3)
            assert np.abs(heard[: len(prompt)] - prompt).max() < 1e-4
            assert not heard[len(prompt) : len(prompt) + 8_000].any()
            assert np.abs(heard[len(prompt) + 8_000 :] - own).max() < 1e-4
            assert words in speech.written()
            assert words in text.written()
    drawn = {made.prompts.draw("basic", str(i))[0] for i in range(40)}
    assert len(drawn) == 2, "both prompts of a style are asked"


def test_a_prompt_that_nobody_spoke_fails_and_stays(tmp_path):
    made, _ = exam(tmp_path, silent=(0, 1))
    assert set(made.clips.silent) == {f"{i}/basic/speech" for i in range(4)}
    assert "nobody spoke" in made.clips.silent["0/basic/speech"]
    assert len(made.data.items) == 16


def test_the_gap_by_hand(tmp_path, capsys):
    """A server that answers with the clip's length is right in writing (its clip alone), and wrong when a prompt comes
    before it; one detailed question it gets wrong either way, for it is told nothing of the clip."""
    data, folder = questions(tmp_path / "data", 4), dowis(tmp_path / "dowis")

    def answer(asked):
        parts = asked.body["messages"][-1]["content"]
        beside = parts[1]["text"] if len(parts) > 1 else ""
        return chat("No idea.") if beside == "Answer, detailed 0." else length_of(asked)

    with Loopback(answer) as server:
        words = ["eval", "--model", server_file(tmp_path, server, cache="false"), "--tasks", QA, "--data", data]
        words += ["--spoken-prompts", folder, "--prompt-task", "SQA", "--output", tmp_path / "out"]
        assert rba(*words) == 0
        assert len(server.asked) == 16
        assert rba(*words) == 0
        assert len(server.asked) == 16, "nothing is asked twice"
        assert rba(*words[:-6], "--output", tmp_path / "plain") == 0
        assert len(server.asked) == 20
    scored = read_scored(tmp_path / "out" / QA / "voice-lm.json")
    figures = {(one["metric"], one["part"]): one for one in scored["figures"]}
    prompts = read_prompts(folder, "SQA", "en")
    blind = sum(prompts.draw("detailed", str(i))[0].endswith("0.") for i in range(4))
    assert 0 < blind < 4
    value = {key: one["value"] for key, one in figures.items()}
    assert value["accuracy", "basic text"] == 100.0
    assert value["accuracy", "basic speech"] == value["accuracy", "detailed speech"] == 0.0
    assert value["accuracy", "detailed text"] == 100 * (4 - blind) / 4
    assert value["prompt_gap:accuracy", "basic"] == 100.0
    assert value["prompt_gap:accuracy", "detailed"] == 100 * (4 - blind) / 4
    assert value["prompt_gap:accuracy", "all styles"] == (100 + 100 * (4 - blind) / 4) / 2
    gap = figures["prompt_gap:accuracy", "detailed"]
    assert gap["ci_low"] < gap["value"] < gap["ci_high"]
    assert "spoken before the clip" in figures["accuracy", "basic speech"]["protocol"]
    assert "en SQA, basic" in figures["accuracy", "basic speech"]["protocol"]
    assert (scored["counts"]["items"], scored["counts"]["answered"]) == (16, 16)
    right = {one["id"]: one["scores"]["accuracy"] for one in scored["samples"]}
    assert right["2/basic/text"] == 1.0
    assert right["2/basic/speech"] == 0.0
    assert "prompt_gap" in capsys.readouterr().out


def test_a_translation_is_asked_by_its_prompts_alone(tmp_path):
    prompts = read_prompts(dowis(tmp_path / "dowis"), "ST", "de")
    made = exam_of(task_named("smoke-translation-de"), None, Settings(limit=2), prompts)
    assert len(made.data.items) == 4
    assert {one.beside for name, one in made.clips.played.items() if name.endswith("/text")} == {"Übersetze."}


def test_only_tasks_of_one_score_take_prompts_and_the_table_is_checked(tmp_path, capsys):
    folder = dowis(tmp_path / "dowis")
    prompts = read_prompts(folder, "SQA", "en")
    with pytest.raises(UsageError, match="beside smoke-if, of kind constraints"):
        exam_of(task_named("smoke-if"), None, Settings(), prompts)
    with pytest.raises(UsageError, match="dowis is no task of its own"):
        task_named("dowis")
    with pytest.raises(UsageError, match=r"unknown prompt task 'SQUA'.*SQA"):
        SpokenPrompts(str(folder), "SQUA").read()
    with pytest.raises(UsageError, match="unknown prompt language 'fr'"):
        SpokenPrompts(str(folder), "SQA", "fr").read()
    with pytest.raises(UsageError, match="DOWIS has no ST in en"):
        SpokenPrompts(str(folder), "ST").read()
    write_lines(tmp_path / "bad" / "x.jsonl", [{"text_prompt": "Hm.", "language": "en", "task": "SQA"}])
    with pytest.raises(DataError, match="no column 'prompt_type'"):
        SpokenPrompts(str(tmp_path / "bad"), "SQA").read()
    words = ["eval", "--model", "embedded", "--tasks", "smoke-qa", "--output", "o"]
    assert rba(*words, "--prompt-task", "ST") == 2
    err = capsys.readouterr().err
    assert "--spoken-prompts and --prompt-task go together" in err
    assert err.count("\n") == 1
