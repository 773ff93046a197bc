"""`rba inspect`: counts, voices, drops with their texts, a few rows."""

from pathlib import Path

import pytest

from rbalign.cli.main import run_command
from rbalign.config.recipe import Recipe
from rbalign.config.synth import FilterConfig, SynthConfig
from rbalign.data.dataset import DatasetWriter
from rbalign.errors import UsageError
from rbalign.rundir.journal import Journal
from rbalign.rundir.run import RunDir
from rbalign.stages.inspect import look_at
from rbalign.types import Example, View, ViewSpec


def write_dataset(folder: Path) -> None:
    import numpy as np

    from rbalign.audio.io import to_flac

    flac = to_flac(np.zeros(1600, dtype=np.float32), 16000)
    drops = {"too-long": 1234, "near-duplicate": 2}
    texts = {"too-long": ["word " * 60, "so\nlong"]}
    writer = DatasetWriter(folder, {"teacher": "t", "recipe": "r", "dropped": drops, "dropped_texts": texts})
    writer.add_examples([Example(f"e{i}", "train", f"Say [b]{i}[/b].", f"say {i}", f"Answer {i}") for i in range(3)])
    specs = [ViewSpec("af_heart"), ViewSpec("af_heart", speed=1.1), ViewSpec("am_adam")]
    writer.commit_views("train", 0, [View(f"e{i}", i, "train", spec, 1200.0, flac) for i, spec in enumerate(specs)])
    writer.finish()


def write_journals(folder: Path) -> None:
    with Journal(folder / "drafts.jsonl") as journal:
        journal.append([{"id": str(i), "text": "word " * 60, "stop": "length"} for i in range(7)])
    with Journal(folder / "unspoken.jsonl") as journal:
        journal.append([{"id": "e1/0", "voice": "am_adam", "reason": "no phonemes"}])


def test_a_dataset_shows_counts_distinct_voices_and_rows(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    found = look_at(tmp_path, rows=2)
    assert found.splits == [["train", "3", "3", "1.00", "2"]], "another speed of a voice is no other voice"
    assert "train voices: af_heart, am_adam" in found.lines
    assert [row[0] for row in found.examples] == ["e0", "e1"]
    assert found.bytes > 0
    (cause, count, texts), near = found.drops
    assert (cause, count) == ("too-long", "1,234")
    assert texts.endswith("… | so long")
    assert near == ["near-duplicate", "2", ""]


def test_a_run_shows_stages_and_clips_that_no_voice_made(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, Recipe(name="demo")) as run:
        run.stage("synth", {}, {}).finish({"dataset": "x"})
        write_dataset(run.path("data"))
        write_journals(run.path("data"))
    found = look_at(tmp_path / "demo")
    assert [row[:2] for row in found.stages] == [["synth", "done"]]
    assert found.drops[-1] == ["unspoken: no phonemes", "1", "e1/0 by am_adam"]


def test_a_run_in_the_middle_of_synth_shows_how_far_it_is(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, Recipe(name="demo")) as run:
        run.stage("synth", {}, {})
        write_journals(run.path("data"))
        found = look_at(run.folder)
    assert "candidates written so far: 7" in found.lines
    assert "no finished dataset in it" in found.lines


def test_a_run_in_the_middle_of_synth_shows_what_was_dropped_and_why(tmp_path: Path) -> None:
    synth = SynthConfig(train=3, validation=0, test=0, answers=False)
    texts = [("How do I bake a loaf of bread?", "end"), ("What should", "length"), ("Go now", "end")]
    rows = [{"id": f"{place:06d}", "text": text, "stop": stop} for place, (text, stop) in enumerate(texts)]
    with RunDir.open(tmp_path, Recipe(name="demo", synth=synth)) as run:
        run.stage("synth", {}, {})
        with Journal(run.path("data") / "drafts.jsonl") as journal:
            journal.append([rows[2], *rows[:2], {"id": "000009", "text": "It waits for those before.", "stop": "end"}])
        found = look_at(run.folder)
    assert "candidates written so far: 4" in found.lines
    assert "of the first 3: 1 of 3 accepted" in found.lines
    assert found.drops == [["unfinished", "1", "What should"], ["too short", "1", "Go now"]]


def test_a_run_whose_files_are_not_here_is_shown_without_judging(tmp_path: Path) -> None:
    synth = SynthConfig(filters=FilterConfig(leakage_files=("not/here.txt",)))
    with RunDir.open(tmp_path, Recipe(name="demo", synth=synth)) as run:
        run.stage("synth", {}, {})
        write_journals(run.path("data"))
        found = look_at(run.folder)
    assert "candidates written so far: 7" in found.lines
    assert found.lines[-1].startswith("not judged, for what they must not resemble is not here")
    assert "not/here.txt" in found.lines[-1]


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a run nor a dataset"):
        look_at(tmp_path)


def test_the_command_shows_texts_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path)
    assert run_command(["inspect", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Say [b]0[/b]." in out
    assert "near-duplicate" in out
