import hashlib
import io
import json
import os
import pickle
import shutil
from dataclasses import asdict, replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rbalign.data import dataset as dataset_module
from rbalign.data import shards
from rbalign.data.dataset import Dataset, DatasetWriter
from rbalign.data.examples import ExampleIndex
from rbalign.errors import DataError
from rbalign.rundir.files import stable_hash
from rbalign.synth.heldout import SHIPPED_FOLDER
from rbalign.types import Example, View, ViewSpec

META = {"teacher": "tiny", "recipe": "abc"}


def example(number, split="train", **fields):
    return Example(f"e{number}", split, f"Say {number}?", f"say {number}", **fields)


def view(number, index=0, split="train", voice="af_heart", flac=None, speed=1.0):
    return View(f"e{number}", index, split, ViewSpec(voice, speed), 1.5, flac or f"flac {number} {index}".encode())


def facts(view):
    return (view.example_id, view.index, view.split, view.spec, view.seconds, view.flac)


def write(folder, examples, shards_of_views):
    writer = DatasetWriter(folder, META)
    writer.add_examples(examples)
    for (split, number), views in shards_of_views.items():
        writer.commit_views(split, number, views)
    return writer.finish()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), lambda inner: st.lists(inner) | inner
)
texts = st.text(st.characters(exclude_categories=["Cs"]))
examples = st.builds(
    Example,
    id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    split=st.sampled_from(["train", "test"]),
    instruction=texts,
    spoken=texts,
    answer=st.none() | texts,
    reference=st.none() | texts,
    labels=st.dictionaries(texts, json_values, max_size=3),
)
specs = st.builds(
    ViewSpec,
    voice=texts,
    speed=st.floats(0.5, 2),
    channel=texts,
    delivery=texts,
    seed=st.integers(-(2**63), 2**63 - 1),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(examples, max_size=5, unique_by=lambda e: e.id), st.data())
def test_what_is_written_is_what_is_read(tmp_path_factory, written, data):
    folder = tmp_path_factory.mktemp("dataset")
    views = [
        View(e.id, index, e.split, data.draw(specs), data.draw(st.floats(0, 1e4)), data.draw(st.binary(max_size=50)))
        for e in written
        for index in range(data.draw(st.integers(0, 20)))
    ]
    manifest = write(
        folder, written, {(s, 0): [v for v in views if v.split == s] for s in ("train", "test") if written}
    )
    dataset = Dataset.open(folder)
    assert dataset.examples() == written
    for split in ("train", "test"):
        assert dataset.examples(split) == [e for e in written if e.split == split]
        assert [facts(v) for v in dataset.views(split)] == [facts(v) for v in views if v.split == split]
    assert dataset.manifest == json.loads(json.dumps(manifest))
    assert list(dataset.iter_examples()) == written
    found = dataset.by_id()
    assert list(found) == [e.id for e in written]
    assert [found[e.id] for e in reversed(written)] == written[::-1]


def test_the_audio_is_read_from_disk_only_when_asked_for(tmp_path, monkeypatch):
    write(tmp_path, [example(n) for n in range(40)], {("train", 0): [view(n) for n in range(40)]})
    reads = []
    original = shards._row_group
    monkeypatch.setattr(
        shards, "_row_group", lambda path, stamp, group: reads.append(group) or original(path, stamp, group)
    )
    views = Dataset.open(tmp_path).views("train")
    assert reads == []
    assert views[37].flac == b"flac 37 0"
    assert reads == [37 // shards.ROW_GROUP]


def test_a_stored_view_can_be_pickled_and_replaced(tmp_path):
    write(tmp_path, [example(1)], {("train", 0): [view(1)]})
    (stored,) = Dataset.open(tmp_path).views("train")
    assert facts(pickle.loads(pickle.dumps(stored))) == facts(view(1))
    assert replace(stored, flac=b"other").flac == b"other"
    with pytest.raises(AttributeError):
        stored.samples  # noqa: B018


def test_the_datasets_library_opens_a_shard_as_audio(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    write(tmp_path / "d", [example(1), example(2)], {("train", 0): [view(1, speed=1.25), view(2)]})
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "d/views/train-*.parquet"), split="train", cache_dir=str(tmp_path / "c")
    )
    assert loaded.features["audio"] == datasets.Audio(sampling_rate=16000, decode=False)
    assert loaded[0]["audio"] == {"bytes": b"flac 1 0", "path": "e1-0.flac"}
    assert (loaded[0]["voice"], loaded[0]["speed"], loaded[0]["index"]) == ("af_heart", 1.25, 0)


def pinned_shard(views):
    """The bytes of a shard as they were written before there were deliveries, by the schema of that time."""
    names = ["example_id", "index", "voice", "channel", "delivery", "speed", "seed", "seconds"]
    types = [pa.string(), pa.int64(), *[pa.string()] * 3, pa.float64(), pa.int64(), pa.float64()]
    audio = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([*zip(names, types, strict=True), ("audio", audio)], metadata=shards.SCHEMA.metadata)
    rows = [
        [v.example_id, v.index, v.spec.voice, v.spec.channel, v.spec.delivery, v.spec.speed, v.spec.seed, v.seconds]
        for v in views
    ]
    clips = [{"bytes": v.flac, "path": f"{v.example_id}-{v.index}.flac"} for v in views]
    table = pa.Table.from_pylist(
        [dict(zip(names, row, strict=True)) | {"audio": clip} for row, clip in zip(rows, clips, strict=True)], schema
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=16, compression="NONE", use_dictionary=False)
    return sink.getvalue()


def test_shards_of_fluent_views_have_the_bytes_that_they_always_had():
    views = [view(n, speed=1.25, flac=b"x" * n) for n in range(40)]
    views[3] = replace(views[3], spec=replace(views[3].spec, channel="noise:white@10dB+room"))
    assert shards.encode_shard(views) == pinned_shard(views)
    features = json.loads(shards.SCHEMA.metadata[b"huggingface"])["info"]["features"]
    assert stable_hash(features) == "6de1dddd4bba2a4a5de3ac54db58888d"
    views[3] = replace(views[3], said="um, say 3")
    assert shards.encode_shard(views) != pinned_shard(views)


def test_content_hashes_from_before_there_were_deliveries_stay_true():
    """The set that ships was written then: its manifest's hash is what its texts and clips give today."""
    shipped = Dataset.open(SHIPPED_FOLDER)
    shipped.verify()
    rows = [dataset_module._example_digest(one) for one in shipped.examples()]
    rows += [dataset_module._view_digest(one, one.flac) for one in shipped.views()]
    assert dataset_module._content_hash(b"".join(rows)) == shipped.content_hash
    assert all(view.said is None and view.retracted is None for view in shipped.views())
    one = view(0)
    as_then = [one.id, one.split, asdict(one.spec), one.seconds, hashlib.sha256(one.flac).hexdigest()]
    assert dataset_module._view_digest(one, one.flac).hex() == stable_hash(as_then)
    said = dataset_module._view_digest(replace(one, said="um, say 0"), one.flac)
    assert said.hex() != stable_hash(as_then)


def test_a_shard_with_disfluent_views_says_what_was_said(tmp_path, monkeypatch):
    views = [view(1), replace(view(2), said="say one, no, two", retracted="one")]
    write(tmp_path / "d", [example(1), example(2), example(3)], {("train", 0): views, ("train", 1): [view(3)]})
    stored = Dataset.open(tmp_path / "d").views()
    assert [(v.said, v.retracted) for v in stored] == [(None, None), ("say one, no, two", "one"), (None, None)]
    assert pickle.loads(pickle.dumps(stored[1])).retracted == "one"
    assert replace(stored[1], flac=b"other").said == "say one, no, two"

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "d/views/train-*.parquet"), split="train", cache_dir=str(tmp_path / "c")
    )
    assert loaded["said"] == [None, "say one, no, two", None], "a shard without the columns is filled up"
    assert loaded["retracted"][1] == "one"


def test_a_reopened_writer_goes_on_and_other_shards_and_order_are_the_same_content(tmp_path):
    examples = [example(n) for n in range(6)]
    whole = write(tmp_path / "whole", examples, {("train", n): [view(2 * n), view(2 * n + 1)] for n in range(3)})
    first = DatasetWriter(tmp_path / "parts", META)
    first.add_examples(examples[2:])
    first.commit_views("train", 1, [view(2), view(3)])
    second = DatasetWriter(tmp_path / "parts", META)
    assert second.committed("train") == {1}
    second.add_examples(examples)
    second.commit_views("train", 0, [view(5), view(4)])
    second.commit_views("train", 2, [view(1), view(0)])
    assert second.finish()["content_hash"] == whole["content_hash"]
    assert Dataset.open(tmp_path / "parts").content_hash == whole["content_hash"]
    assert Dataset.open(tmp_path / "parts").examples() == examples[2:] + examples[:2]


@pytest.mark.parametrize(
    "change",
    [
        {"examples": [example(0, answer="x"), example(1)]},
        {"views": [view(0), view(1, flac=b"other")]},
        {"views": [view(0), view(1, voice="am_adam")]},
        {"views": [view(0)]},
    ],
)
def test_other_content_has_another_hash(tmp_path, change):
    examples, views = [example(0), example(1)], [view(0), view(1)]
    hashes = {
        write(tmp_path / "a", examples, {("train", 0): views})["content_hash"],
        write(tmp_path / "b", change.get("examples", examples), {("train", 0): change.get("views", views)})[
            "content_hash"
        ],
    }
    assert len(hashes) == 2


def test_a_crash_while_a_shard_is_written_leaves_no_shard(tmp_path, monkeypatch):
    writer = DatasetWriter(tmp_path, META)
    writer.add_examples([example(1)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(DataError, match="No space left"):
            writer.commit_views("train", 0, [view(1)])
    assert DatasetWriter(tmp_path, META).committed("train") == set()
    (tmp_path / "views" / ".train-00000.parquet.99.tmp").write_bytes(b"half")
    (tmp_path / "views" / "train-00000.parquet.partial").write_bytes(b"half")
    assert DatasetWriter(tmp_path, META).committed("train") == set()
    writer.commit_views("train", 0, [view(1)])
    writer.finish()
    assert [facts(v) for v in Dataset.open(tmp_path).views("train")] == [facts(view(1))]


def test_a_dataset_that_grows_is_unfinished_until_it_is_finished_again(tmp_path):
    write(tmp_path, [example(1)], {("train", 0): [view(1)]})
    DatasetWriter(tmp_path, META).add_examples([example(1)])
    Dataset.open(tmp_path)
    writer = DatasetWriter(tmp_path, META)
    writer.add_examples([example(2)])
    with pytest.raises(DataError, match="no finished dataset"):
        Dataset.open(tmp_path)
    writer.finish()
    assert len(Dataset.open(tmp_path).examples()) == 2


def test_the_manifest_counts_voices_not_renderings(tmp_path):
    views = [view(1, 0), view(1, 1, speed=1.2), view(1, 2, voice="am_adam"), view(2, 0, voice="bf_emma")]
    manifest = write(tmp_path, [example(1), example(2), example(3, "test")], {("train", 0): views})
    assert manifest["splits"]["train"] == {
        "examples": 2,
        "views": 4,
        "seconds": 6.0,
        "voices": ["af_heart", "am_adam", "bf_emma"],
        "distinct_voices": 3,
    }
    assert manifest["splits"]["test"]["examples"] == 1
    assert manifest["teacher"] == "tiny"


def test_the_writer_refuses_what_does_not_fit(tmp_path):
    writer = DatasetWriter(tmp_path, META)
    writer.add_examples([example(1), example(9, "test")])
    with pytest.raises(DataError, match="'e1' is already there with other content"):
        writer.add_examples([example(1, answer="another")])
    with pytest.raises(DataError, match="belongs to 'test'"):
        writer.commit_views("train", 0, [view(9, split="test")])
    with pytest.raises(DataError, match="does not fit"):
        writer.commit_views("train", 0, [replace(view(1), spec=ViewSpec("af_heart", seed=2**63))])
    writer.commit_views("train", 0, [view(1)])
    with pytest.raises(DataError, match="already committed"):
        writer.commit_views("train", 0, [view(1)])


@pytest.mark.parametrize(
    ("views", "problem"),
    [
        ([view(7)], "view e7/0 .* has no example"),
        ([view(9)], "has an example of 'test'"),
        ([view(1), view(1)], "e1/0 stands twice"),
    ],
)
def test_finish_refuses_views_that_belong_nowhere(tmp_path, views, problem):
    with pytest.raises(DataError, match=problem):
        write(tmp_path, [example(1), example(9, "test")], {("train", 0): views})


def test_damage_is_found_and_named(tmp_path):
    write(tmp_path, [example(1)], {("train", 0): [view(1)]})
    shard = tmp_path / "views/train-00000.parquet"
    content = shard.read_bytes()
    Dataset.open(tmp_path).verify()
    shard.write_bytes(content.replace(b"flac 1 0", b"flac 1 1"))
    with pytest.raises(DataError, match=r"train-00000.parquet is not what was written"):
        Dataset.open(tmp_path).verify()
    shard.write_bytes(content[:-20])
    with pytest.raises(DataError, match=r"train-00000.parquet is damaged"):
        Dataset.open(tmp_path).views("train")
    shard.unlink()
    with pytest.raises(DataError, match=r"lacks views/train-00000.parquet"):
        Dataset.open(tmp_path)
    (tmp_path / "examples-00000.jsonl").write_text('{"id": "e1"}\n')
    with pytest.raises(DataError, match=r"examples-00000.jsonl line 1 is not an example"):
        DatasetWriter(tmp_path, META)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest.json is damaged"):
        Dataset.open(tmp_path)


def test_a_rewritten_shard_is_read_anew(tmp_path):
    write(tmp_path, [example(1)], {("train", 0): [view(1)]})
    assert Dataset.open(tmp_path).views("train")[0].flac == b"flac 1 0"
    (tmp_path / "views/train-00000.parquet").unlink()
    write(tmp_path, [example(1)], {("train", 0): [view(1, flac=b"new")]})
    assert Dataset.open(tmp_path).views("train")[0].flac == b"new"


def test_content_hashes_are_those_of_every_version(tmp_path):
    """Runs are keyed by them: the shipped set, written by an older version, must hash to what its manifest says."""
    pinned = Dataset.open(SHIPPED_FOLDER)
    shutil.copytree(SHIPPED_FOLDER, tmp_path / "again", ignore=shutil.ignore_patterns("manifest.json"))
    meta = {key: value for key, value in pinned.manifest.items() if key not in ("content_hash", "splits", "files")}
    made = DatasetWriter(tmp_path / "again", meta).finish()
    assert made["content_hash"] == "280ad8cd0883aa97112c0aadae246097"
    assert json.loads(json.dumps(made)) == pinned.manifest


@given(st.lists(st.binary(min_size=16, max_size=16)))
def test_the_content_hash_is_the_hash_of_the_sorted_hashes(digests):
    assert dataset_module._content_hash(b"".join(digests)) == stable_hash(sorted(digest.hex() for digest in digests))


def test_many_examples_are_several_files_and_the_same_content(tmp_path, monkeypatch):
    examples = [example(n, "test" if n % 3 else "train", answer="\u2028\r\x85") for n in range(25)]
    one = write(tmp_path / "one", examples, {})
    monkeypatch.setattr(dataset_module, "EXAMPLES_PER_FILE", 10)
    many = write(tmp_path / "many", examples, {})
    assert many["content_hash"] == one["content_hash"]
    assert [path.name for path in sorted((tmp_path / "many").glob("examples-*"))] == [
        f"examples-0000{number}.jsonl" for number in range(3)
    ]
    dataset = Dataset.open(tmp_path / "many")
    assert dataset.examples() == examples
    assert list(dataset.iter_examples("test")) == dataset.examples("test") == [e for e in examples if e.split == "test"]
    found = dataset.by_id()
    assert (found["e24"], found["e0"], len(found)) == (examples[24], examples[0], 25)
    with pytest.raises(DataError, match="no example 'e25'"):
        found["e25"]


def test_a_crash_between_two_files_of_examples_is_mended_by_adding_them_again(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_module, "EXAMPLES_PER_FILE", 2)
    wanted, original, calls = [example(n) for n in range(5)], dataset_module.atomic_write, []

    def fails_once(path, content):
        calls.append(path)
        if len(calls) == 2:
            raise DataError("cannot write")
        original(path, content)

    monkeypatch.setattr(dataset_module, "atomic_write", fails_once)
    with pytest.raises(DataError, match="cannot write"):
        DatasetWriter(tmp_path, META).add_examples(wanted)
    writer = DatasetWriter(tmp_path, META)
    writer.add_examples(wanted)
    writer.finish()
    assert Dataset.open(tmp_path).examples() == wanted


def test_views_are_read_shard_by_shard_and_opening_reads_no_row(tmp_path, monkeypatch):
    write(tmp_path, [example(n) for n in range(8)], {("train", n): [view(2 * n), view(2 * n + 1)] for n in range(4)})
    opened, original = [], dataset_module.read_shard
    monkeypatch.setattr(dataset_module, "read_shard", lambda path, split: opened.append(path) or original(path, split))
    monkeypatch.setattr(dataset_module, "iter_examples", lambda folder: pytest.fail("read examples"))
    dataset = Dataset.open(tmp_path)
    views = dataset.iter_views("train")
    assert opened == []
    assert [next(views).id, next(views).id] == ["e0/0", "e1/0"]
    assert len(opened) == 1
    assert next(views).id == "e2/0"
    assert len(opened) == 2
    assert [facts(v) for v in dataset.iter_views()] == [facts(v) for v in dataset.views("train")]
    assert list(dataset.iter_views("test")) == []


def test_opening_asks_for_folders_and_not_for_every_file(tmp_path, monkeypatch):
    write(tmp_path, [example(n) for n in range(30)], {("train", n): [view(n)] for n in range(30)})
    listed, stats, scan, stat = [], [], os.scandir, os.stat
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scan(path))
    monkeypatch.setattr(os, "stat", lambda path, *a, **k: stats.append(path) or stat(path, *a, **k))
    Dataset.open(tmp_path)
    assert len(listed) == 2
    assert len(stats) < 10


def test_the_index_reads_odd_rows_and_names_bad_ones(tmp_path):
    path = tmp_path / "examples-00000.jsonl"
    path.write_text(
        '{"split": "train", "id": "b", "instruction": "", "spoken": ""}\n'
        '{"id": "a\\u2028\\"é", "split": "train", "instruction": "", "spoken": ""}\n{"id": "torn'
    )
    found = ExampleIndex(tmp_path)
    assert list(found) == ["b", 'a\u2028"é']
    assert found['a\u2028"é'].split == "train"
    path.write_text('{"id": "a", "split": "train"}\n')
    with pytest.raises(DataError, match=r"examples-00000.jsonl at byte 0 is not an example"):
        ExampleIndex(tmp_path)["a"]
    path.write_text('{"id": \n')
    with pytest.raises(DataError, match=r"examples-00000.jsonl line 1 is not an example"):
        ExampleIndex(tmp_path)
