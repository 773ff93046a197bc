"""`rba score PLACE FILE`: predictions made elsewhere, their ids, their denominators and the run that they become."""

import json

import numpy as np
import pytest

from rbalign import scorers
from rbalign.cli.main import run_command
from rbalign.data.dataset import DatasetWriter
from rbalign.eval.score import load_rows
from rbalign.stages import eval as stage
from rbalign.stages.compare import compare
from rbalign.stages.predictions import read, score_predictions
from rbalign.types import Example, View, ViewSpec

VOICES = ("af_sarah", "am_michael")


class Letters:
    name = "minilm"

    def embed(self, texts):
        out = np.array([[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], dtype=np.float32)
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Four held-out instructions in two voices; e3 has no reference, "mute" no clip."""
    monkeypatch.setattr(stage, "build_embedder", lambda name: Letters())
    monkeypatch.chdir(tmp_path)
    return write_data(tmp_path / "data")


def write_data(folder):
    references = ["Boil the water first.", "Birds flap their wings.", "It is Paris.", None]
    examples = [
        Example(f"e{i}", "test", f"Question {i}?", "q", "An answer.", text) for i, text in enumerate(references)
    ]
    writer = DatasetWriter(folder, {"teacher": "tiny", "recipe": "0"})
    writer.add_examples([*examples, Example("mute", "test", "Hm?", "hm", "No.", "Maybe.")])
    clips = [View(example.id, v, "test", ViewSpec(VOICES[v]), 0.5, b"") for example in examples for v in range(2)]
    writer.commit_views("test", 0, clips)
    writer.finish()
    return folder


def write(folder, *rows, name="mine.jsonl"):
    path = folder.parent / name
    lines = [
        row if isinstance(row, str) else json.dumps(dict(zip(("id", "response"), row, strict=True))) for row in rows
    ]
    path.write_text("\n".join(lines), encoding="utf-8")  # no newline at the end: a foreign file's last line counts
    return path


def rba(*words):
    return run_command([str(word) for word in words])


def values(run_folder):
    rows = json.loads((run_folder / "results.json").read_text())["rows"]
    return {row["metric"]: row for row in rows}


def test_each_clips_response_against_the_independent_reference(data, tmp_path, capsys):
    said = ["Boil water.", "Boil the water first.", "Birds fly.", "Wings.", "Paris.", "It is Paris."]
    ids = [f"e{i}/{v}" for i in range(3) for v in range(2)]
    file = write(data, *zip(ids, said, strict=True), ("e3/0", "nobody can judge this one"))
    assert rba("score", data, file) == 0
    out = capsys.readouterr().out
    assert "6 of 6 clips have a response" in out
    assert "1 responses belong to other instructions" in out
    assert "2 instructions have no clip or no independent reference: left out" in out
    assert "independent teacher sample" in out
    references = [
        text for text in ("Boil the water first.", "Birds flap their wings.", "It is Paris.") for _ in range(2)
    ]
    found = values(tmp_path / "runs" / "mine")
    for metric, scorer in (
        ("chrf", scorers.build("chrf", against="reference")),
        ("similarity", scorers.build("similarity", against="reference", embedder=Letters())),
    ):
        by_hand = scorer([], said, [], reference=references)
        assert found[metric]["value"] == pytest.approx(np.mean(by_hand), abs=1e-6)
        assert found[metric]["n"] == 3
        assert found[metric]["ci_low"] < found[metric]["value"] < found[metric]["ci_high"]
    assert set(found) >= {"chrf/voice:af_sarah", "chrf/worst-voice", "wordllama", "failed"}
    assert not {"tokens", "truncated", "similarity-answer"} & set(found)  # unknown, unknown, and no judge


def test_missing_and_failed_stay_in_the_denominator(data, tmp_path):
    outside = read(str(data), write(data, ("e0", "It is Paris."), ("e1", None)))
    assert outside.predictions.kind == "instruction"
    assert outside.counted()[:2] == [
        "1 of 3 instructions have a response",
        "1 missing, 1 failed: both count with the lowest score",
    ]
    run = score_predictions(outside)
    found = values(run.folder)
    alone = scorers.build("chrf", against="reference")([], ["It is Paris."], [], reference=["Boil the water first."])[0]
    assert found["chrf"]["value"] == pytest.approx(alone / 3, abs=1e-6)
    assert found["chrf"]["n"] == 3
    assert found["failed"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    notes = json.loads((run.folder / "results.json").read_text())["notes"]
    assert outside.counted() == notes


def test_a_run_is_as_good_as_its_dataset_and_compares(data, tmp_path, capsys):
    """Predictions on a run's own data are read by the run's [eval], and pair with its arms."""
    from synthetic_run import make_run

    folder = make_run(tmp_path / "runs" / "made")
    (folder / "status.json").write_text(
        json.dumps({"forked_from": None, "stages": {"synth": {"outputs": {"dataset": content_hash(folder / "data")}}}})
    )
    ids = [f"e{i:03d}" for i in range(40)]
    file = write(data, *((one, "the old river") for one in ids))
    assert rba("score", folder, file, "--name", "river") == 0
    found = compare(tmp_path / "runs" / "made:base", tmp_path / "runs" / "river:river")
    assert "same dataset" in found.note
    assert {row["metric"] for row in found.paired} >= {"chrf", "similarity"}
    assert all(row["n"] == 40 for row in found.paired)


def content_hash(folder):
    return json.loads((folder / "manifest.json").read_text())["content_hash"]


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([("e0/0", "a"), "{not json"], ["line 2 is not JSON", '"response"']),
        ([("e0/0", "a"), "[1]"], ["line 2 is no JSON object"]),
        (['{"id": "e0/0"}'], ["line 1 has no 'response'"]),
        (['{"response": "x"}'], ["line 1 has no 'id'"]),
        ([(7, "a")], ["line 1: id 7 is no string"]),
        ([("e0", 7)], ["'e0' is neither a string nor null"]),
        ([("e0/0", "a"), "", ("e0/0", "b")], ["line 3: id 'e0/0' stands there twice"]),
        (
            [("e0/7", "a")],
            ["unknown id 'e0/7'", "3 instructions, such as 'e0'", "6 clips, such as 'e0/0'", "did you mean"],
        ),
        ([("elsewhere", "a")], ["unknown id 'elsewhere'", "--split"]),
        ([("e0/0", "a"), ("e1", "b")], ["line 2: 'e1' is an instruction's, 'e0/0' (line 1) a clip's id", "one kind"]),
        ([""], ["holds no prediction"]),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(data, tmp_path, rows, parts, capsys):
    assert rba("score", data, write(data, *rows)) == 1
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1, err
    for part in parts:
        assert part in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["data", "nowhere.jsonl"], ["cannot read nowhere.jsonl"]),
        (["data", "mine.jsonl", "--split", "validation"], ["validation split has no instruction"]),
        (["data", "mine.jsonl", "--split", "tset"], ["--split 'tset'", "'validation' or 'test'"]),
        (["data", "mine.jsonl", "--name", "Not A Name"], ["--name 'Not A Name'", "small letters"]),
        (["data", "mine.jsonl", "--limit", "0"], ["--limit", "equal to 1"]),
        ([".", "mine.jsonl"], [". is neither a run nor a dataset"]),
        (["nowhere"], ["nowhere is no run, and no recipe of one"]),
        (["smoke"], ["runs/smoke is no run", "--runs DIR"]),
        (["smoke", "--split", "test"], ["--split without a file"]),
    ],
)
def test_wrong_words_are_one_line(data, words, parts, capsys):
    write(data, ("e0/0", "a"))
    assert rba("score", *words) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1, err
    for part in parts:
        assert part in err


def test_a_dry_run_checks_and_writes_nothing(data, tmp_path, capsys):
    assert rba("score", data, write(data, ("e0/0", "a")), "--dry-run", "--limit", "2") == 0
    assert "1 of 4 clips have a response" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_another_file_is_refused_until_it_is_asked_for(data, tmp_path, capsys):
    chrf = {}
    for text, words, code in (("Boil.", [], 0), ("Boil.", [], 0), ("Paris.", [], 1), ("Paris.", ["--again"], 0)):
        assert rba("score", data, write(data, ("e0", text)), *words) == code
        chrf[text, code] = values(tmp_path / "runs" / "mine")["chrf"]["value"]
    err = capsys.readouterr().err
    assert "predictions was" in err
    assert "--again scores these instead; --name NAME keeps both" in err
    assert chrf["Boil.", 0] == chrf["Paris.", 1] != chrf["Paris.", 0]
    (answer,) = [row for row in load_rows([tmp_path / "runs/mine/eval/mine/open.jsonl"]) if row["stop"] == "given"]
    assert answer["answer"] == "Paris."


def test_a_run_of_another_kind_is_never_overwritten(data, tmp_path, capsys):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "status.json").write_text('{"forked_from": null, "stages": {"synth": {}}}')
    assert rba("score", data, write(data, ("e0", "a")), "--again") == 1
    assert "another run, not scores of predictions" in capsys.readouterr().err


def test_killed_while_scoring_goes_on(data, tmp_path, monkeypatch):
    outside = read(str(data), write(data, ("e0", "Boil."), ("e1", "Birds."), ("e2", "Paris.")))
    whole = values(score_predictions(outside).folder)
    scores = tmp_path / "runs/mine/eval/mine/open.scores.jsonl"
    lines = scores.read_bytes().splitlines(keepends=True)
    scores.write_bytes(lines[0] + b'{"id": "torn')
    status = json.loads((tmp_path / "runs/mine/status.json").read_text())
    status["stages"]["eval"]["state"] = "started"
    (tmp_path / "runs/mine/status.json").write_text(json.dumps(status))
    assert values(score_predictions(outside).folder) == whole
    assert len(load_rows([scores])) == 3
