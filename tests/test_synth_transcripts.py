"""Where recordings may lie: audiofolders, parquet of the hub, tables of CoVoST2 and FLEURS, texts beside clips."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recorded import SENTENCES, audiofolder, tone

from rbalign.audio.io import read_audio
from rbalign.errors import DataError, UsageError
from rbalign.synth.recordings import Recordings
from rbalign.synth.transcripts import clip_of, read_transcripts, source_hash
from rbalign.types import Split


def test_the_layouts_say_the_same(tmp_path):
    listed = read_transcripts(audiofolder(tmp_path / "jsonl"), "transcription")
    assert len(listed) == 21
    assert list(listed.values()).count(SENTENCES[0]) == 2
    rows = [json.loads(line) for line in (tmp_path / "jsonl/metadata.jsonl").read_text().splitlines()]
    (tmp_path / "csv").mkdir()
    lines = "".join(f'{row["file_name"]},"{row["transcription"]}"\n' for row in rows)
    (tmp_path / "csv/metadata.csv").write_text("file_name,transcription\n" + lines)
    assert read_transcripts(tmp_path / "csv", "transcription") == listed
    for row in rows:
        tone(tmp_path / "beside" / row["file_name"])
        (tmp_path / "beside" / row["file_name"]).with_suffix(".txt").write_text(f"  {row['transcription']}\n")
    assert read_transcripts(tmp_path / "beside", "transcription") == listed
    assert source_hash(tmp_path / "jsonl") == source_hash(audiofolder(tmp_path / "again"))
    assert source_hash(tmp_path / "jsonl") != source_hash(audiofolder(tmp_path / "other", SENTENCES[::-1]))


def test_sources_that_are_none_are_refused_with_a_cure(tmp_path):
    with pytest.raises(UsageError, match="is no folder"):
        read_transcripts(tmp_path / "nowhere", "transcription")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no recording with a transcript"):
        read_transcripts(tmp_path / "empty", "transcription")
    folder = audiofolder(tmp_path / "named", column="sentence")
    with pytest.raises(UsageError, match=r"'transcription'; allowed: file_name, sentence .*column"):
        read_transcripts(folder, "transcription")
    assert read_transcripts(folder, "sentence")
    listing = folder / "metadata.jsonl"
    for text, match in (
        ('{"sentence": "x"}\n', "row 1 has no file_name"),
        ('{"file_name": "../../secret.wav", "sentence": "x"}\n', "outside the folder"),
        ("not json\n", "line 1 is no JSON object"),
        ("[1]\n", "line 1 is no JSON object"),
    ):
        listing.write_text(text)
        with pytest.raises(DataError, match=match):
            read_transcripts(folder, "sentence")
    listing.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="UTF-8"):
        read_transcripts(folder, "sentence")
    audiofolder(tmp_path / "half", split="train")
    audiofolder(tmp_path / "half")
    with pytest.raises(UsageError, match="name a split in every path"):
        Recordings(tmp_path / "half", "transcription", 1, 30.0)


def parquet(path, texts, first=0, group=2):
    """As the hub has audio datasets: a struct of bytes and path; clip N is a tone of 200 + 20 N Hz, and every third is
    missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clips = []
    for number in range(first, first + len(texts)):
        tone(path.with_suffix(".wav"), pitch=200 + 20 * number)
        clips.append({"bytes": path.with_suffix(".wav").read_bytes(), "path": f"{number}.wav"} if number % 3 else None)
    path.with_suffix(".wav").unlink()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"audio": pa.array(clips, kind), "sentence": pa.array(texts)}
    pq.write_table(pa.table(columns), path, row_group_size=group)


def pitch(clip):
    wave = read_audio(clip)
    return np.argmax(np.abs(np.fft.rfft(wave))) * 16_000 / len(wave)


def test_parquet_of_the_hub_has_texts_clips_and_splits(tmp_path):
    parquet(tmp_path / "data/train-00000-of-00002.parquet", SENTENCES[:5])
    parquet(tmp_path / "data/train-00001-of-00002.parquet", SENTENCES[5:8], first=5)
    parquet(tmp_path / "data/test-00000-of-00001.parquet", SENTENCES[8:10], first=8)
    found = read_transcripts(tmp_path, "sentence")
    assert sorted(found.values()) == sorted(SENTENCES[:10])
    names = {text: name for name, text in found.items()}
    for number in (1, 4, 5, 7, 8):
        assert pitch(clip_of(tmp_path, names[SENTENCES[number]])) == pytest.approx(200 + 20 * number, abs=4), number
    source = Recordings(tmp_path, "sentence", 1, 30.0)
    pools = dict(source.pools())
    assert sorted(said.text for said in pools[(Split.TRAIN,)]) == sorted(SENTENCES[:8])
    assert sorted(said.text for said in pools[(Split.TEST,)]) == sorted(SENTENCES[8:10])
    problems = {said.text: source.problem(said) for own in pools.values() for said in own}
    assert {text for text, problem in problems.items() if problem} == {SENTENCES[n] for n in (0, 3, 6, 9)}
    before = source_hash(tmp_path)
    parquet(tmp_path / "data/test-00000-of-00001.parquet", SENTENCES[8:10], first=9)
    assert source_hash(tmp_path) != before


def test_parquet_that_is_none_is_refused(tmp_path):
    parquet(tmp_path / "train.parquet", SENTENCES[:2])
    with pytest.raises(UsageError, match=r"'text'; allowed: audio, sentence .*column"):
        read_transcripts(tmp_path, "text")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match="cannot be read"):
        read_transcripts(tmp_path, "sentence")


def test_tables_of_covost_and_fleurs(tmp_path):
    """CoVoST2 names a clip of Common Voice by `path`, and has quotes that are letters; FLEURS has no head."""
    tone(tmp_path / "covost/clips/a.mp3.wav")
    rows = ["path\tsentence\ttranslation\tclient_id", 'a.mp3.wav\t"Ja, gut.\tYes, fine.\tx', "b.wav\tNein.\tNo.\tx"]
    (tmp_path / "covost/covost_v2.de_en.tsv").write_text("\n".join(rows) + "\n")
    assert read_transcripts(tmp_path / "covost", "sentence") == {"clips/a.mp3.wav": '"Ja, gut.', "b.wav": "Nein."}
    tone(tmp_path / "fleurs/audio/dev/17.wav")
    row = ["1604", "17.wav", "Quartz is a mineral.", "quartz is a mineral", "q u a r t z |", "4800", "FEMALE"]
    (tmp_path / "fleurs/dev.tsv").write_text("\t".join(row) + "\n")
    for column, text in (("raw_transcription", "Quartz is a mineral."), ("transcription", "quartz is a mineral")):
        assert read_transcripts(tmp_path / "fleurs", column) == {"audio/dev/17.wav": text}
    (said,) = Recordings(tmp_path / "fleurs", "transcription", 1, 30.0).pools()[1][1]
    assert said.split is Split.VALIDATION
    (tmp_path / "fleurs/dev.tsv").write_text("path\ttranscription\n../secret.wav\tx\n")
    with pytest.raises(DataError, match="outside the folder"):
        read_transcripts(tmp_path / "fleurs", "transcription")
