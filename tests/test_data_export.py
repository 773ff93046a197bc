"""`rba export-data`: other trainers open what it writes; the same bytes each time; whole or not there."""

import builtins
import json
import re
import sys
import types
import weakref
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from refusals import assert_refused

from rbalign.audio.io import read_audio, to_flac
from rbalign.cli.main import run_command
from rbalign.config.recipe import Recipe
from rbalign.data import dataset as dataset_module
from rbalign.data import export as export_module
from rbalign.data.dataset import Dataset, DatasetWriter
from rbalign.data.export import FORMATS, export_dataset
from rbalign.errors import DataError, UsageError
from rbalign.rundir.run import RunDir
from rbalign.types import Example, View, ViewSpec

ODD = "Où est\u2028la “gare”?\x85 \u65e5\u672c"
FLAC = to_flac(np.linspace(-0.5, 0.5, 320, dtype=np.float32))
EXAMPLES = [
    Example("dev/test 1", "train", ODD, ODD, 'Là-bas.\u2029"Oui"', labels={"topic": "travel", "aliases": ["x", None]}),
    Example("e2", "train", "Say two?", "say two", "Two."),
    Example("silent", "train", "Say nothing?", "say nothing", "Nothing."),
    Example("open", "train", "No answer?", "no answer"),
    Example("tagged", "train", "Tag?", "tag", "Use <audio> in HTML."),
    Example("t1", "test", "Held out?", "held out", "Yes.", "Yes, it is."),
]


def view(identity, index=0, split="train", clip=FLAC, **spec):
    return View(identity, index, split, ViewSpec(spec.pop("voice", "af_heart"), **spec), 0.02, clip)


def write(folder):
    writer = DatasetWriter(folder, {"teacher": "smollm2-135m-instruct", "recipe": "0"})
    writer.add_examples(EXAMPLES)
    writer.commit_views(
        "train", 0, [view("dev/test 1"), view("dev/test 1", 1, voice="am_adam", speed=1.25), view("e2")]
    )
    writer.commit_views("train", 3, [view("e2", 1, clip=b"OggS and so on"), view("open"), view("tagged")])
    writer.commit_views("test", 0, [view("t1", split="test", voice="af_sarah", seed=2**62)])
    writer.finish()
    return folder


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return write(tmp_path / "data")


def rba(*words):
    return run_command([str(word) for word in words])


def rows(path):
    """Lines as the strictest reader splits them."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load(*words, **options):
    import datasets

    return datasets.load_dataset(*words, cache_dir="cache", **options)


@pytest.fixture
def no_decoder(monkeypatch):
    """`datasets` asks for torchcodec before it looks at a path; nothing of it is called."""
    import datasets  # noqa: F401  (looks for it once, at import)

    package, encoders = types.ModuleType("torchcodec"), types.ModuleType("torchcodec.encoders")
    encoders.AudioEncoder = None
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setitem(sys.modules, "torchcodec.encoders", encoders)


@pytest.mark.parametrize("how", ["builder", "card"])
def test_the_datasets_library_opens_an_audiofolder(data, no_decoder, how):
    import datasets

    assert rba("export-data", data, "audiofolder", "out") == 0
    loaded = load("audiofolder", data_dir="out") if how == "builder" else load("out")
    assert {split: len(part) for split, part in loaded.items()} == {"train": 6, "test": 1}
    loaded = loaded.cast_column("audio", datasets.Audio(decode=False))
    first, second = loaded["train"][0], loaded["train"][1]
    assert first["audio"]["path"].endswith("out/train/00000/00000.flac")
    assert Path(first["audio"]["path"]).read_bytes() == FLAC
    assert read_audio(FLAC).shape == (320,)
    assert (first["instruction"], first["answer"]) == (ODD, EXAMPLES[0].answer)
    assert json.loads(first["labels"]) == EXAMPLES[0].labels
    assert (second["example_id"], second["index"], second["voice"], second["speed"]) == (
        "dev/test 1",
        1,
        "am_adam",
        1.25,
    )
    assert (first["reference"], loaded["test"][0]["reference"]) == ("", "Yes, it is.")
    assert loaded["test"][0]["seed"] == 2**62
    assert [row["answer"] for row in loaded["train"]][4] == ""


def test_ms_swift_rows_are_as_its_documentation_has_them(data, capsys):
    assert rba("export-data", data, "ms-swift", "out", "--system", "Be brief.") == 0
    out = capsys.readouterr().out
    assert "4 train, 1 test clips" in out or "1 test, 4 train clips" in out
    for part in ("1 examples no voice could speak", "1 examples have no answer", "1 examples hold a placeholder"):
        assert part in out
    sft, grpo = rows("out/train-sft.jsonl"), rows("out/train-grpo.jsonl")
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<audio>"}]
    answered = [*asked, {"role": "assistant", "content": EXAMPLES[0].answer}]
    assert sft[0] == {"messages": answered, "audios": ["train/00000/00000.flac"]}
    assert grpo[0]["messages"] == asked
    assert (grpo[0]["solution"], grpo[0]["instruction"]) == (EXAMPLES[0].answer, ODD)
    assert [row["audios"] for row in sft] == [row["audios"] for row in grpo]
    assert [row["audios"][0] for row in sft] == [
        "train/00000/00000.flac", "train/00000/00001.flac", "train/00000/00002.flac", "train/00003/00000.ogg",
    ]  # fmt: skip
    for row in sft:
        assert sum(message["content"].count("<audio>") for message in row["messages"]) == len(row["audios"]) == 1
        assert Path("out", row["audios"][0]).is_file()
    assert len(rows("out/test-sft.jsonl")) == 1
    loaded = load("json", data_files="out/train-sft.jsonl", split="train")
    assert loaded[0]["messages"] == answered


def test_verl_rows_are_what_its_dataset_reads(data):
    assert rba("export-data", data, "verl", "out") == 0
    loaded = load("parquet", data_files="out/train.parquet", split="train")
    assert len(loaded) == 4
    row = loaded[0]
    assert row["prompt"] == [{"role": "user", "content": "<audio>"}]
    assert row["audios"] == ["train/00000/00000.flac"]
    assert row["reward_model"] == {"style": "rule", "ground_truth": EXAMPLES[0].answer}
    assert (row["data_source"], row["ability"], loaded[2]["ability"]) == ("rbalign", "travel", "instruction")
    assert [info["index"] for info in loaded["extra_info"]] == [0, 1, 2, 3]
    assert row["extra_info"]["split"] == "train"
    assert row["extra_info"]["instruction"] == ODD
    assert pq.read_table("out/test.parquet").to_pylist()[0]["extra_info"]["reference"] == "Yes, it is."


def test_many_rows_become_row_groups(data, monkeypatch):
    monkeypatch.setattr(export_module, "_ROW_GROUP", 2)
    export_dataset(Dataset.open(data), "verl", Path("out"))
    with pq.ParquetFile("out/train.parquet") as file:
        assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [2, 2]


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_dataset_gives_the_same_bytes_and_no_path_of_this_machine(data, tmp_path, form):
    for place in ("one", "two"):
        assert rba("export-data", data, form, place) == 0
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert one == two
    assert len([name for name in one if name.endswith((".flac", ".ogg"))]) == (7 if form == "audiofolder" else 5)
    for content in one.values():
        assert str(tmp_path).encode() not in content
    front = yaml.safe_load(one["README.md"].decode().split("---\n")[1])
    for entry in front["configs"][0]["data_files"]:
        assert list((tmp_path / "one").glob(entry["path"]))


def test_the_teachers_own_prompt_goes_with_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.model_validate({"name": "small", "synth": {"answer_system": "Speak plainly."}})
    with RunDir.open(tmp_path / "runs", recipe) as run:
        run.stage("synth", {}, {})
        write(run.path("data"))
    for number, place in enumerate(("runs/small", "runs/small/data")):
        assert rba("export-data", place, "ms-swift", f"out{number}") == 0
        assert rows(f"out{number}/test-sft.jsonl")[0]["messages"][0] == {"role": "system", "content": "Speak plainly."}
    assert rba("export-data", "runs/small", "ms-swift", "bare", "--system", "") == 0
    assert [message["role"] for message in rows("bare/test-sft.jsonl")[0]["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("form", FORMATS)
def test_a_stop_in_the_middle_leaves_nothing(data, tmp_path, monkeypatch, form, fault):
    written = []

    def write_bytes(path, content):
        if len(written) == 2:
            raise fault
        written.append(path)
        with builtins.open(path, "wb") as file:
            file.write(content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_bytes)
        with pytest.raises(DataError if isinstance(fault, OSError) else KeyboardInterrupt):
            export_dataset(Dataset.open(data), form, Path("out"))
    assert len(written) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    (tmp_path / ".out.partial" / "train").mkdir(parents=True)  # what kill -9 would have left
    (tmp_path / ".out.partial" / "train" / "old").write_text("old")
    assert rba("export-data", data, form, "out") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"data", "out"}
    assert not list((tmp_path / "out").rglob("old"))


def test_a_full_disk_is_told_before_anything_is_written(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    assert rba("export-data", data, "audiofolder", "out") == 1
    assert "out needs 0.0 GB" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["data", "verl", "full"], ["full is there and not empty", "does not exist yet"]),
        (["data", "audiofoldr", "out"], ["unknown format 'audiofoldr'", "did you mean 'audiofolder'?"]),
        (["full", "verl", "out"], ["full is neither a run nor a dataset"]),
        (["nowhere", "verl", "out"], ["nowhere is no run"]),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(data, tmp_path, capsys, words, parts):
    assert_refused(lambda: rba("export-data", *words), parts, tmp_path, capsys)


def test_a_dataset_without_answers_has_nothing_for_trainers(tmp_path):
    writer = DatasetWriter(tmp_path / "data", {"teacher": "t", "recipe": "0"})
    writer.add_examples([Example("e", "train", "Hm?", "hm")])
    writer.commit_views("train", 0, [view("e")])
    writer.finish()
    with pytest.raises(DataError, match="nothing to export: 1 examples have no answer"):
        export_dataset(Dataset.open(tmp_path / "data"), "verl", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="unknown format"):
        export_dataset(Dataset.open(tmp_path / "data"), "csv", tmp_path / "out")


def test_the_documented_reward_function_scores_an_exported_row(data):
    docs = (Path(__file__).parent.parent / "docs" / "datasets.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", docs, re.DOTALL) if "compute_score" in block]
    names = {}
    exec(code, names)
    export_dataset(Dataset.open(data), "verl", Path("out"))
    row = pq.read_table("out/test.parquet").to_pylist()[0]
    truth = row["reward_model"]["ground_truth"]
    assert names["compute_score"](row["data_source"], truth, truth, row["extra_info"]) == 1.0
    assert names["compute_score"](row["data_source"], "", truth) == 0.0
    for form in FORMATS:
        assert f"## {form}\n" in docs


class Shard(list):
    """A list that can be watched."""


@pytest.mark.parametrize("form", FORMATS)
def test_one_shard_is_in_memory_whatever_the_number_of_shards(tmp_path, monkeypatch, form):
    writer = DatasetWriter(tmp_path / "data", {"teacher": "t", "recipe": "0"})
    writer.add_examples(Example(f"e{n}", "train", "Hm?", "hm", "Yes.") for n in range(30))
    for shard in range(10):
        writer.commit_views("train", shard, [view(f"e{n}") for n in range(3 * shard, 3 * shard + 3)])
    writer.finish()
    alive, most, read = weakref.WeakSet(), [], dataset_module.read_shard

    def watched(path, split):
        most.append(len(alive))
        shard = Shard(read(path, split))
        alive.add(shard)
        return shard

    Shard.__hash__ = object.__hash__
    monkeypatch.setattr(dataset_module, "read_shard", watched)
    made = export_dataset(Dataset.open(tmp_path / "data"), form, tmp_path / "out")
    assert made.clips == {"train": 30}
    assert len(most) == 10
    assert max(most) <= 1, "the shard before may still be held while the next is read, no other"
