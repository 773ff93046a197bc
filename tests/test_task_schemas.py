"""Public benchmarks as the hub has them: local copies with each one's files, columns and Arrow types, a few rows with
tiny clips, scored by `rba score --task` and played by what `rba eval --model` plays. What the hub holds beyond the
named columns is there, too: it must not be read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from benchdata import CLOSED, CREATIVE, ifeval_answers, ifeval_row, predictions, rba, write_lines
from loopback import Loopback, chat, clip

from rbalign.eval.tasks.registry import task_named, tasks
from rbalign.eval.tasks.scored import read_scored
from rbalign.stages.exams import Settings, exam_of

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How `datasets` stores the feature Audio."""
TEXT, TEXTS = pa.string(), pa.list_(pa.string())
LENGTHS = (0.2, 0.3, 0.4)
"""Seconds of the clips of a table, by row."""
VOICEBENCH = {"prompt": TEXT, "audio": AUDIO}
ACCENTS = ("usa", "aus", "gbr", "ind_n", "ind_s", "irl", "kenya", "nga", "nzl", "phl", "zaf")


@dataclass(frozen=True)
class Copy:
    """A benchmark's local copy, predictions for it, and the figures worked out by hand."""

    task: str
    files: Mapping[str, Mapping[str, tuple[pa.DataType, Sequence[Any]]]]
    """Path -> column -> its type and values."""
    said: Mapping[str, str | None]
    figures: Mapping[tuple[str, str], float | None]
    clips: Mapping[str, float] = field(default_factory=lambda: {str(i): one for i, one in enumerate(LENGTHS)})
    """Item -> seconds."""
    asked: Callable[[Path, str], Sequence[object]] = lambda folder, judge: ()
    """Further options of `rba score`, of a folder and a judge's file."""


def heard(kind: str = "WAV", rate: int = 24_000) -> tuple[pa.DataType, list[dict[str, Any]]]:
    """A column of clips; the hub keeps them as they were recorded."""
    made = [clip(seconds, rate) if kind == "WAV" else encoded(seconds, rate, kind) for seconds in LENGTHS]
    return AUDIO, [{"bytes": one, "path": f"{i}.{kind.lower()}"} for i, one in enumerate(made)]


def encoded(seconds: float, rate: int, kind: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.1 * np.sin(np.arange(int(seconds * rate)) / 9), rate, format=kind)
    return buffer.getvalue()


def against_base(folder: Path, judge: str) -> Sequence[object]:
    return ("--against", predictions(folder / "base.jsonl", {str(i): "no" for i in range(3)}), "--judge", judge)


QUESTIONS = (TEXT, ["Capital of France?", "Capital of Italy?", "Capital of Norway?"])
SAID = {"0": "It is Paris.", "1": "Milan", "2": None}
THIRD = {("accuracy", ""): 100 / 3}

COPIES = [
    Copy(
        "llama-questions-twinkstart",
        {
            "data/test-00000-of-00001.parquet": {
                "Questions": QUESTIONS, "Answer": (TEXT, ["Paris", "Rome", "Oslo"]), "audio": heard(),
            }
        },
        SAID,
        THIRD,
    ),
    Copy(
        "web-questions-twinkstart",
        {
            "data/test-00000-of-00001.parquet": {
                "url": (TEXT, ["a", "b", "c"]), "question": QUESTIONS, "audio": heard(),
                "answers": (TEXTS, [["Lutetia", "Paris"], ["Rome"], ["Oslo"]]),
            }
        },
        SAID,
        THIRD,
    ),
    Copy(
        "trivia-qa-twinkstart",
        {
            "data/test-00000-of-00001.parquet": {
                "question": QUESTIONS, "answer": (TEXTS, [["Paris"], ["Rome", "Roma"], ["Oslo"]]), "audio": heard(),
            }
        },
        SAID,
        THIRD,
    ),
    Copy(
        "spoken-alpaca",
        {
            "data/train-00000-of-00001.parquet": {
                "instruction": (TEXT, ["Name a city.", "Name a sea.", "Name a hill."]),
                "input": (TEXT, ["", "In Europe.", ""]),
                "output": (TEXT, ["Paris is a city.", "The Baltic Sea.", "no"]),
                "speech_input": (TEXT, ["Name a city.", "Name a sea in Europe.", "Name a hill."]),
                "input_speaker": (TEXT, ["a", "b", "c"]),
                "output_speaker": (TEXT, ["d", "d", "d"]),
                "input_audio": heard(rate=16_000),
                "output_audio": (AUDIO, [{"bytes": b"never read", "path": None}] * 3),
            }
        },
        {"0": "Paris is a city.", "1": "The Baltic Sea.", "2": "Everest"},
        {("winrate@base", ""): 200 / 3, ("lc_winrate@base", ""): None},
        asked=lambda folder, judge: against_base(folder, "chrf"),
    ),
    Copy(
        "voicebench-alpacaeval",
        {
            "alpacaeval_full/test-00000-of-00001.parquet": {
                "prompt": (TEXT, ["Name a city.", "Name a sea.", "Name a hill."]), "audio": heard(rate=22_050),
            }
        },
        {"0": "Paris, good", "1": "Baltic, good", "2": None},
        {("winrate@base", ""): 200 / 3},
        asked=against_base,
    ),
    Copy(
        "voicebench-sd-qa",
        {
            f"sd-qa/{accent}-00000-of-00001.parquet": {
                "prompt": QUESTIONS, "reference": (TEXT, ["Paris", "Rome", "Oslo"]), "audio": heard(rate=16_000),
            }
            for accent in ACCENTS
        },
        {f"{accent}/{i}": city for accent in ACCENTS[:2] for i, city in enumerate(("Paris", "Rome", "Bergen"))}
        | {"aus/1": "Milan"},
        {("score", "usa"): 200 / 3, ("score", "aus"): 100 / 3, ("score", "zaf"): 0.0, ("preserve_rate", "aus"): 0.5},
        {f"{accent}/{i}": one for accent in ACCENTS for i, one in enumerate(LENGTHS)},
    ),
    Copy(
        "covost2:en_de",
        {
            "en_de/test-00000-of-00001.parquet": {
                "client_id": (TEXT, ["x"] * 3), "file": (TEXT, ["x.mp3"] * 3), "id": (TEXT, ["common_voice_en_1"] * 3),
                "audio": heard("MP3", 48_000),
                "sentence": (TEXT, ["The house is red .", "I see the sea .", "We go home ."]),
                "translation": (TEXT, ["Das Haus ist rot .", "Ich sehe das Meer .", "Wir gehen nach Hause ."]),
            }
        },
        {"0": "Das Haus ist rot .", "1": "Ich sehe das Meer .", "2": "Wir gehen nach Hause ."},
        {("bleu", ""): 100.0, ("chrf++", ""): 100.0},
    ),
    Copy(
        "fleurs:de_de-en_us",
        {
            f"{language}/test/0000.parquet": {
                "id": (pa.int32(), ids), "num_samples": (pa.int32(), [3200] * 3), "path": (TEXT, ["p"] * 3),
                "audio": heard(rate=16_000), "transcription": (TEXT, ["lower case"] * 3),
                "raw_transcription": (TEXT, [f"The {language} sentence number {one} is here ." for one in ids]),
                "gender": (pa.int64(), [0, 1, 0]), "lang_id": (pa.int64(), [19] * 3),
                "language": (TEXT, ["German"] * 3), "lang_group_id": (pa.int64(), [0] * 3),
            }
            for language, ids in (("de_de", [1675, 1675, 1732]), ("en_us", [1732, 1675, 1999]))
        },
        {f"{one}": f"The en_us sentence number {one[:4]} is here ." for one in ("1675/0", "1675/1", "1732/0")},
        {("bleu", ""): 100.0},
        dict(zip(("1675/0", "1675/1", "1732/0"), LENGTHS, strict=True)),
    ),
]  # fmt: skip


pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def judge(tmp_path):
    """The file of a judge that prefers the answer with "good" in it."""

    def prefers(asked):
        first = asked.body["messages"][1]["content"].split("Answer 1:\n")[1].split("\n\nAnswer 2:\n")[0]
        return chat(f"Verdict: {1 if 'good' in first else 2}")

    with Loopback(prefers) as server:
        (tmp_path / "judge.toml").write_text(f'url = "{server.url}"\nmodel = "tiny"\n')
        yield str(tmp_path / "judge.toml")


def write_copy(folder, copy, without="", retyped=None):
    """The files of a copy, in row groups of two, with the features that `datasets` notes in the schema."""
    for name, columns in copy.files.items():
        kept = {key: value for key, value in columns.items() if key != without} | (retyped or {})
        kinds = {key: {"_type": "Audio" if kind == AUDIO else "Value"} for key, (kind, _) in kept.items()}
        noted = {"huggingface": json.dumps({"info": {"features": kinds}})}
        schema = pa.schema([(key, kind) for key, (kind, _) in kept.items()], metadata=noted)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({key: values for key, (_, values) in kept.items()}, schema=schema)
        pq.write_table(table, folder / name, row_group_size=2)
    return folder


@pytest.mark.parametrize("copy", COPIES, ids=lambda copy: copy.task)
def test_a_copy_of_the_hub_is_scored(copy, tmp_path, judge):
    data = write_copy(tmp_path / "data", copy)
    file = predictions(tmp_path / "mine.jsonl", copy.said)
    out = tmp_path / "scored.json"
    assert rba("score", "--task", copy.task, "--data", data, file, "--out", out, *copy.asked(tmp_path, judge)) == 0
    scored = read_scored(out)
    found = {(one["metric"], one["part"]): one["value"] for one in scored["figures"]}
    for key, value in copy.figures.items():
        assert found[key] == (None if value is None else pytest.approx(value, abs=1e-4)), key
    assert scored["counts"]["items"] == len(copy.clips)
    assert scored["counts"]["passed_over"] == 0


@pytest.mark.parametrize("copy", COPIES, ids=lambda copy: copy.task)
def test_a_copy_of_the_hub_is_played(copy, tmp_path):
    """Every item has the clip of its own row, whatever it is encoded in."""
    data = write_copy(tmp_path / "data", copy)
    exam = exam_of(task_named(copy.task), str(data), Settings(beside="Translate this into German."))
    assert exam.clips.silent == {}
    lengths = {name: item.view.seconds for name, item in exam.clips.played.items()}
    assert lengths == pytest.approx(dict(copy.clips), abs=0.06)  # MP3 pads to whole frames
    for name, item in exam.clips.played.items():
        assert soundfile.info(io.BytesIO(item.view.flac)).duration == pytest.approx(copy.clips[name], abs=0.06)


@pytest.mark.parametrize("copy", COPIES, ids=lambda copy: copy.task)
def test_a_copy_without_a_column_is_refused_in_one_line(copy, tmp_path, capsys):
    """Each column that is scored, absent and as numbers: neither is guessed at."""
    file = predictions(tmp_path / "mine.jsonl", copy.said)
    needed = {key for one in task_named(copy.task).files for key, kind in one.columns.items() if not kind.endswith("?")}
    for column in sorted(needed):
        for way, retyped in (("absent", {}), ("wrong", {column: (pa.float64(), [0.5, 1.5, 2.5])})):
            data = write_copy(tmp_path / f"{column}-{way}", copy, without=column, retyped=retyped)
            options = copy.asked(tmp_path, "chrf")
            assert rba("score", "--task", copy.task, "--data", data, file, *options) == 1
            err = capsys.readouterr().err
            assert len(err.splitlines()) == 1, err
            assert f"column {column!r}" in err


def test_speech_ifeval_as_its_repository_has_it(tmp_path):
    """JSONL, with the audio of `audios.tar` unpacked below the folder; fields as upstream's, `label` null or a text."""
    parts = {"closed": CLOSED, "creative": CREATIVE, "reasoning": [(None, None, "", "")] * 2}
    names = {"closed": "closed_ended_questions", "creative": "creative_writing", "reasoning": "chain-of-thought"}
    data = tmp_path / "data"
    for part, rows in parts.items():
        lines = []
        for place, (constraint, arguments, _, _) in enumerate(rows):
            audio = f"audios/{part}/{place}.wav"
            (data / audio).parent.mkdir(parents=True, exist_ok=True)
            (data / audio).write_bytes(clip(0.2 + 0.1 * place, 16_000))
            row = ifeval_row(constraint, arguments) | {"audio_filepath": audio, "label": None if place else "A"}
            lines.append(row)
        write_lines(data / "eval_data" / f"{names[part]}.jsonl", lines)
    file = predictions(tmp_path / "mine.jsonl", ifeval_answers() | {"closed/0": "no capitals"})
    assert rba("score", "--task", "speech-ifeval", "--data", data, file, "--out", tmp_path / "o.json") == 0
    scored = read_scored(tmp_path / "o.json")
    found = {(one["metric"], one["part"]): one["value"] for one in scored["figures"]}
    assert (found["rate", "closed"], found["rate", "creative"], found["if_rate", ""]) == (75.0, 100.0, None)
    exam = exam_of(task_named("speech-ifeval"), str(data), Settings())
    assert exam.clips.silent == {}
    lengths = {name: round(item.view.seconds, 1) for name, item in exam.clips.played.items()}
    assert (lengths["closed/3"], lengths["creative/1"], lengths["reasoning/1"]) == (0.5, 0.3, 0.3)
    assert exam.clips.played["closed/0"].beside == "Do it."
    assert exam.clips.played["closed/0"].example.instruction == "hi (Gender: Male)"


def test_every_task_of_the_hub_has_a_copy_here():
    public = {name for name, task in tasks().items() if task.files and task.kind != "prompts"}
    assert public == {copy.task.partition(":")[0] for copy in COPIES} | {"speech-ifeval"}


def test_the_documented_way_to_comet_writes_its_three_files(tmp_path):
    """The code of docs/evaluation.md as it stands there; COMET itself is in an environment of its own."""
    (copy,) = (copy for copy in COPIES if copy.task == "covost2:en_de")
    write_copy(tmp_path / "FOLDER", copy)
    file = tmp_path / "results" / "base" / "covost2-en_de" / "NAME.jsonl"
    predictions_of = {"0": "Das Haus\n ist rot .", "1": None}
    write_lines(file, [{"id": name, "response": text} for name, text in predictions_of.items()])
    page = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
    code = page.partition("## COMET")[2].partition("```python\n")[2].partition("```")[0]
    exec(compile(code, "docs/evaluation.md", "exec"), {})  # paths in it are below the working folder
    texts = {name: (tmp_path / f"{name}.txt").read_text(encoding="utf-8") for name in ("src", "mt", "ref")}
    assert texts["src"] == "The house is red .\nI see the sea .\nWe go home .\n"
    assert texts["mt"] == "Das Haus ist rot .\n\n\n"
    assert texts["ref"] == "Das Haus ist rot .\nIch sehe das Meer .\nWir gehen nach Hause .\n"
